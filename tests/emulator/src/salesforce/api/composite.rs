//! Composite requests: several calls in one, with references between them; and batches.

use super::http::{check_version, decode, parse_query};
use super::{Answer, Call, Reply, route};
use crate::salesforce::State;
use crate::salesforce::error::Error;
use crate::salesforce::tx::Tx;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Calls per composite or batch.
const MAX_PARTS: usize = 25;
/// Queries and collections among them.
const MAX_HEAVY: usize = 5;

struct Part {
    method: String,
    url: String,
    reference: String,
    body: Value,
    headers: Vec<(String, String)>,
}

fn part(value: &Value) -> Result<Part, Error> {
    let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let missing = |name: &str| Error::json(format!("Each composite subrequest needs {name}"));
    let headers = value.get("httpHeaders").and_then(Value::as_object);
    let pair = |(name, value): (&String, &Value)| {
        Some((name.to_ascii_lowercase(), value.as_str()?.to_owned()))
    };
    Ok(Part {
        method: text("method")
            .ok_or_else(|| missing("method"))?
            .to_ascii_uppercase(),
        url: text("url").ok_or_else(|| missing("url"))?,
        reference: text("referenceId").ok_or_else(|| missing("referenceId"))?,
        body: value.get("body").cloned().unwrap_or(Value::Null),
        headers: headers.into_iter().flatten().filter_map(pair).collect(),
    })
}

/// `POST /composite`
pub(crate) fn composite(org: &State, call: &Call<'_>) -> Answer {
    let body = call.object()?;
    let Some(Value::Array(list)) = body.get("compositeRequest") else {
        return Err(Error::json(
            "The request body must contain an array named compositeRequest",
        ));
    };
    if list.len() > MAX_PARTS {
        let message = format!(
            "Limit Exceeded. The composite request can have up to {MAX_PARTS} subrequests."
        );
        return Err(Error::bad("LIMIT_EXCEEDED", message));
    }
    let parts: Vec<Part> = list.iter().map(part).collect::<Result<_, _>>()?;
    let heavy =
        |part: &&Part| part.url.contains("/query") || part.url.contains("/composite/sobjects");
    if parts.iter().filter(heavy).count() > MAX_HEAVY {
        let message = format!(
            "Limit Exceeded. At most {MAX_HEAVY} subrequests can be queries or sObject collections."
        );
        return Err(Error::bad("LIMIT_EXCEEDED", message));
    }
    let all_or_none = body
        .get("allOrNone")
        .and_then(Value::as_bool)
        .unwrap_or(false);
    let mut tx = all_or_none.then(|| Tx::begin(org, call.writer()));
    let mut answers: HashMap<String, Value> = HashMap::new();
    let mut replies: Vec<Reply> = Vec::new();
    for part in &parts {
        let reply = one(org, call, part, &answers, tx.as_mut());
        if reply.status < 400 {
            answers.insert(part.reference.clone(), body_of(&reply));
        }
        let failed = reply.status >= 400;
        replies.push(reply);
        if failed && all_or_none {
            break;
        }
    }
    let failed = replies.iter().any(|reply| reply.status >= 400);
    if let Some(tx) = tx
        && !failed
    {
        tx.commit();
    }
    let halted = all_or_none && failed;
    let shown = parts
        .iter()
        .enumerate()
        .map(|(place, part)| shown(part, replies.get(place), halted));
    Ok(Reply::json(
        200,
        &json!({"compositeResponse": shown.collect::<Vec<_>>()}),
    ))
}

fn shown(part: &Part, reply: Option<&Reply>, halted: bool) -> Value {
    let stopped;
    let reply = match reply {
        Some(reply) if !halted || reply.status >= 400 => reply,
        _ => {
            let message = "The transaction was rolled back since another operation in the same transaction failed.";
            stopped = Reply::from(Error::bad("PROCESSING_HALTED", message));
            &stopped
        }
    };
    let location = reply.headers.iter().find(|(name, _)| *name == "location");
    let headers = location.map_or_else(|| json!({}), |(_, value)| json!({"Location": value}));
    json!({"body": body_of(reply), "httpHeaders": headers, "httpStatusCode": reply.status, "referenceId": part.reference})
}

fn body_of(reply: &Reply) -> Value {
    serde_json::from_slice(&reply.body).unwrap_or(Value::Null)
}

fn one(
    org: &State,
    call: &Call<'_>,
    part: &Part,
    answers: &HashMap<String, Value>,
    tx: Option<&mut Tx<'_>>,
) -> Reply {
    let run = || -> Answer {
        let url = resolved(&part.url, answers)?;
        let mut body = part.body.clone();
        resolve(&mut body, answers)?;
        let rest = url
            .strip_prefix("/services/data/")
            .ok_or_else(Error::not_found)?;
        perform(org, call, &part.method, rest, &body, &part.headers, tx)
    };
    run().unwrap_or_else(Reply::from)
}

/// Runs one part; `url` starts with the version.
fn perform(
    org: &State,
    call: &Call<'_>,
    method: &str,
    url: &str,
    body: &Value,
    headers: &[(String, String)],
    tx: Option<&mut Tx<'_>>,
) -> Answer {
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let mut segments = path.split('/').filter(|segment| !segment.is_empty());
    let version = segments
        .next()
        .and_then(|text| text.strip_prefix('v'))
        .ok_or_else(Error::not_found)?;
    check_version(version)?;
    let body = if body.is_null() {
        Vec::new()
    } else {
        body.to_string().into_bytes()
    };
    let mut all = headers.to_vec();
    // Marks of the caller hold for every part.
    all.extend(
        call.headers
            .iter()
            .filter(|(name, _)| name.starts_with("sforce-"))
            .cloned(),
    );
    let inner = Call {
        method,
        path: segments.map(|segment| decode(segment, false)).collect(),
        query: parse_query(query),
        headers: all,
        body: &body,
        version: version.to_owned(),
    };
    if inner.path.first().is_some_and(|first| first == "composite")
        && inner.path.get(1).is_none_or(|second| second != "sobjects")
    {
        return Err(Error::bad(
            "INVALID_REQUEST",
            "A composite request cannot contain another composite request",
        ));
    }
    route(org, &inner, tx)
}

/// Replaces `@{reference.path}` in text.
fn resolved(text: &str, answers: &HashMap<String, Value>) -> Result<String, Error> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("@{") {
        out.push_str(&rest[..start]);
        let Some(length) = rest[start..].find('}') else {
            break;
        };
        out.push_str(&looked_up(&rest[start + 2..start + length], answers)?);
        rest = &rest[start + length + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

fn looked_up(path: &str, answers: &HashMap<String, Value>) -> Result<String, Error> {
    let (reference, pointer) = path.split_once('.').unwrap_or((path, ""));
    let invalid = || {
        let message =
            format!("Invalid reference specified. No value for {path} found in {reference}");
        Error::bad("PROCESSING_HALTED", message)
    };
    let mut value = answers.get(reference).ok_or_else(invalid)?;
    for step in pointer
        .split(['.', '[', ']'])
        .filter(|step| !step.is_empty())
    {
        value = match value {
            Value::Array(list) => step.parse::<usize>().ok().and_then(|place| list.get(place)),
            other => other.get(step),
        }
        .ok_or_else(invalid)?;
    }
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(truth) => Ok(truth.to_string()),
        _ => Err(invalid()),
    }
}

fn resolve(value: &mut Value, answers: &HashMap<String, Value>) -> Result<(), Error> {
    match value {
        Value::String(text) if text.contains("@{") => *text = resolved(text, answers)?,
        Value::Array(list) => list
            .iter_mut()
            .try_for_each(|item| resolve(item, answers))?,
        Value::Object(map) => map
            .values_mut()
            .try_for_each(|item| resolve(item, answers))?,
        _ => {}
    }
    Ok(())
}

/// `POST /composite/batch`
pub(crate) fn batch(org: &State, call: &Call<'_>) -> Answer {
    let body: Map<String, Value> = call.object()?;
    let Some(Value::Array(list)) = body.get("batchRequests") else {
        return Err(Error::json(
            "The request body must contain an array named batchRequests",
        ));
    };
    if list.len() > MAX_PARTS {
        return Err(Error::bad(
            "LIMIT_EXCEEDED",
            format!("A batch can have up to {MAX_PARTS} subrequests."),
        ));
    }
    let halt = body
        .get("haltOnError")
        .and_then(Value::as_bool)
        .unwrap_or(false);
    let mut errors = false;
    let mut results = Vec::new();
    for item in list {
        if halt && errors {
            let error = Error::new(
                412,
                "BATCH_PROCESSING_HALTED",
                "Batch processing is halted per request.",
            );
            results.push(json!({"statusCode": 412, "result": error.to_rest()}));
            continue;
        }
        let text = |name: &str| item.get(name).and_then(Value::as_str).unwrap_or_default();
        let method = text("method").to_ascii_uppercase();
        let input = item.get("richInput").cloned().unwrap_or(Value::Null);
        let url = text("url")
            .trim_start_matches("/services/data/")
            .trim_start_matches('/');
        let reply = perform(org, call, &method, url, &input, &[], None).unwrap_or_else(Reply::from);
        errors |= reply.status >= 400;
        results.push(json!({"statusCode": reply.status, "result": body_of(&reply)}));
    }
    Ok(Reply::json(
        200,
        &json!({"hasErrors": errors, "results": results}),
    ))
}
