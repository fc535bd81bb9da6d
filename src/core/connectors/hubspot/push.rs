//! HubSpot batch writes: the request, and what became of each input.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use serde_json::Value as Json;

use crate::connectors::ServerConfig;
use crate::connectors::table::{self, Rule};
use crate::connectors::text::push_json;
use crate::http::{HttpRequest, HttpResponse, Purpose};
use crate::model::{ErrorClass, RemoteError, Value, Write, WriteKind, WriteResult};
use crate::value;

use super::errors::{ErrorBody, classify, existing_id, not_expected, scalar};
use super::request::{post, push_target};

/// Builds one batch call. Every input carries a trace id of its own: it makes
/// partial success possible and names the input in answers and errors.
pub(crate) fn request(
    config: &ServerConfig,
    object: &str,
    kind: WriteKind,
    unique_field: Option<&str>,
    writes: &[Write],
) -> HttpRequest {
    let unique = by_unique(kind, unique_field, writes);
    let mut body = String::with_capacity(32 + writes.len() * 160);
    body.push_str("{\"inputs\":[");
    for (i, write) in writes.iter().enumerate() {
        if i > 0 {
            body.push(',');
        }
        push_input(&mut body, kind, unique, write);
    }
    body.push_str("]}");
    let target = push_target(config, object, kind, unique.is_some());
    post(target, body, Purpose::Push)
}

/// The unique property, if the whole batch can go by it.
fn by_unique<'a>(kind: WriteKind, field: Option<&'a str>, writes: &[Write]) -> Option<&'a str> {
    let usable = kind == WriteKind::Create && writes.iter().all(|w| w.unique_value.is_some());
    field.filter(|_| usable)
}

fn push_input(body: &mut String, kind: WriteKind, unique: Option<&str>, write: &Write) {
    let key = |body: &mut String, name: &str, value: &str| {
        body.push_str(name);
        push_json(body, value);
    };
    body.push('{');
    if kind == WriteKind::Delete {
        key(
            body,
            "\"id\":",
            write.record_id.as_deref().unwrap_or_default(),
        );
        body.push('}');
        return;
    }
    key(body, "\"objectWriteTraceId\":", &write.key);
    match (unique, &write.unique_value, &write.record_id) {
        (Some(field), Some(value), _) => {
            key(body, ",\"idProperty\":", field);
            key(body, ",\"id\":", value);
        }
        (_, _, Some(id)) if kind == WriteKind::Update => key(body, ",\"id\":", id),
        _ => {}
    }
    body.push_str(",\"properties\":{");
    let mut first = true;
    let mut property = |body: &mut String, name: &str, value: &str| {
        if !std::mem::take(&mut first) {
            body.push(',');
        }
        push_json(body, name);
        body.push(':');
        push_json(body, value);
    };
    if let (Some(field), Some(value)) = (unique, &write.unique_value)
        && !write.values.iter().any(|(n, _, _)| n == field)
    {
        property(body, field, value);
    }
    for (name, _, value) in &write.values {
        // The empty string is what clears a property.
        property(body, name, value.as_deref().unwrap_or(""));
    }
    body.push_str("}}");
}

#[derive(Deserialize)]
struct Answer {
    results: Vec<Written>,
    #[serde(default)]
    errors: Option<Vec<ErrorBody>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    #[serde(default, deserialize_with = "crate::connectors::rows::id")]
    id: String,
    #[serde(default)]
    properties: BTreeMap<String, Json>,
    #[serde(default)]
    updated_at: Option<String>,
    #[serde(default)]
    new: Option<bool>,
    #[serde(default)]
    object_write_trace_id: Option<String>,
}

/// What became of each write. Answers come in any order and may lack some.
pub(crate) fn pushed(
    kind: WriteKind,
    unique_field: Option<&str>,
    writes: &[Write],
    response: &HttpResponse,
) -> Vec<WriteResult> {
    if !(200..300).contains(&response.status) {
        return refused(kind, writes, classify(response));
    }
    if kind == WriteKind::Delete && response.status == 204 {
        return writes.iter().map(archived).collect();
    }
    let answer: Answer = match serde_json::from_slice(&response.body) {
        Ok(answer) => answer,
        Err(e) => {
            let error = not_expected(response, &e);
            return vec![WriteResult::Unknown(error); writes.len()];
        }
    };
    let unique = by_unique(kind, unique_field, writes);
    let mut results: Vec<Option<WriteResult>> = vec![None; writes.len()];
    let finder = Finder::new(unique, writes);
    let mut strays = Vec::new();
    for written in answer.results {
        match finder.of_result(&written) {
            Some(i) => results[i] = Some(done(kind, unique, &writes[i], written)),
            None => strays.push(written),
        }
    }
    for error in answer.errors.unwrap_or_default() {
        for i in finder.of_error(&error) {
            results[i].get_or_insert_with(|| failed(kind, &error));
        }
    }
    // The survivor of a merge answers under its own id: with one write and one
    // answer left over they belong together, otherwise nobody can say.
    let open: Vec<usize> = (0..writes.len())
        .filter(|i| results[*i].is_none())
        .collect();
    if let (&[i], 1) = (open.as_slice(), strays.len())
        && let Some(written) = strays.pop()
        && !written.id.is_empty()
    {
        results[i] = Some(done(kind, unique, &writes[i], written));
    }
    results
        .into_iter()
        .map(|r| r.unwrap_or_else(|| WriteResult::Unknown(unmentioned(response.status))))
        .collect()
}

fn archived(write: &Write) -> WriteResult {
    WriteResult::Done {
        id: write.record_id.clone().unwrap_or_default(),
        created: false,
        modified_at: None,
        echoed: Vec::new(),
    }
}

/// The same verdict for each write of a batch that was refused whole.
pub(super) fn refused(kind: WriteKind, writes: &[Write], error: RemoteError) -> Vec<WriteResult> {
    if error.maybe_applied {
        return vec![WriteResult::Unknown(error); writes.len()];
    }
    if let [_] = writes {
        let conflict = error.status == 409 || error.code == "CONFLICT";
        return vec![existing(kind, conflict, error)];
    }
    let mut error = error;
    // One bad input spoils the batch: the good ones pass in smaller batches.
    if matches!(
        error.class,
        ErrorClass::FixData | ErrorClass::FixMapping | ErrorClass::Gone
    ) {
        error.class = ErrorClass::Split;
    }
    vec![WriteResult::Failed(error); writes.len()]
}

/// A create that met the record which its error names; any other write is refused: what
/// it changes must not get into another record.
fn existing(kind: WriteKind, conflict: bool, error: RemoteError) -> WriteResult {
    match existing_id(&error.message) {
        Some(id) if conflict && kind == WriteKind::Create => WriteResult::Exists {
            id,
            message: error.message,
        },
        _ => WriteResult::Failed(error),
    }
}

pub(super) fn failed(kind: WriteKind, error: &ErrorBody) -> WriteResult {
    let mut remote = error.remote_error(207);
    // A line without a known code is a refusal, whatever the status of the whole.
    if remote.maybe_applied {
        remote.class = ErrorClass::FixData;
        remote.maybe_applied = false;
        remote.advice = "HubSpot refuses the value; correct it in the row named.";
    }
    existing(kind, remote.code == "CONFLICT", remote)
}

fn unmentioned(status: u16) -> RemoteError {
    let rule = Rule::new(
        0,
        "",
        ErrorClass::Retry,
        "Nothing needs to be done: the record is read to see whether the write arrived.",
    )
    .unsure();
    let message = "the answer does not mention this write";
    table::error(&rule, status, "unmentioned", message)
}

fn done(kind: WriteKind, unique: Option<&str>, write: &Write, written: Written) -> WriteResult {
    let echoed = write
        .values
        .iter()
        .filter_map(|(name, field_type, _)| {
            let raw = scalar_or_bool(written.properties.get(name)?);
            let value: Value = value::canonical(*field_type, &raw).ok()?;
            Some((name.clone(), value))
        })
        .collect();
    let stamp = ["hs_lastmodifieddate", "lastmodifieddate"]
        .iter()
        .find_map(|n| written.properties.get(*n)?.as_str())
        .or(written.updated_at.as_deref());
    WriteResult::Done {
        created: kind == WriteKind::Create && (unique.is_none() || written.new != Some(false)),
        modified_at: stamp.and_then(value::parse_instant),
        echoed,
        id: written.id,
    }
}

fn scalar_or_bool(json: &Json) -> String {
    match json {
        Json::Bool(b) => b.to_string(),
        other => scalar(other).unwrap_or_default(),
    }
}

/// Finds the write that a result or an error is about: by trace id, by our
/// unique value, by record id.
struct Finder<'a> {
    unique: Option<&'a str>,
    keys: HashMap<&'a str, usize>,
    uniques: HashMap<&'a str, usize>,
    ids: HashMap<&'a str, usize>,
}

impl<'a> Finder<'a> {
    fn new(unique: Option<&'a str>, writes: &'a [Write]) -> Self {
        let by = |f: fn(&Write) -> Option<&str>| -> HashMap<&'a str, usize> {
            writes
                .iter()
                .enumerate()
                .filter_map(|(i, w)| Some((f(w)?, i)))
                .collect()
        };
        Self {
            unique,
            keys: by(|w| Some(w.key.as_str())),
            uniques: by(|w| w.unique_value.as_deref()),
            ids: by(|w| w.record_id.as_deref()),
        }
    }

    fn of_result(&self, written: &Written) -> Option<usize> {
        if written.id.is_empty() {
            return None;
        }
        let trace = written.object_write_trace_id.as_deref();
        if let Some(i) = trace.and_then(|t| self.keys.get(t)) {
            return Some(*i);
        }
        let value = self
            .unique
            .and_then(|u| written.properties.get(u)?.as_str());
        if let Some(i) = value.and_then(|v| self.uniques.get(v)) {
            return Some(*i);
        }
        self.ids.get(written.id.as_str()).copied()
    }

    fn of_error(&self, error: &ErrorBody) -> Vec<usize> {
        let mut found = Vec::new();
        let mut add = |map: &HashMap<&str, usize>, values: Vec<String>| {
            found.extend(values.iter().filter_map(|v| map.get(v.as_str()).copied()));
        };
        add(&self.keys, error.context("objectWriteTraceId"));
        for key in ["ids", "id"] {
            add(&self.ids, error.context(key));
            add(&self.uniques, error.context(key));
        }
        found
    }
}
