//! sObject Collections: up to 200 rows per call, each with its own result.

use super::rows::{self, Upserted};
use super::{Answer, Call, Reply, in_tx, with_store};
use crate::salesforce::State;
use crate::salesforce::error::Error;
use crate::salesforce::ids::SfId;
use crate::salesforce::render::{Line, Renderer};
use crate::salesforce::schema::{Object, at};
use crate::salesforce::store::Store;
use crate::salesforce::tx::Tx;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Rows per call.
const MAX_ROWS: usize = 200;
/// Runs of one type per call.
const MAX_CHUNKS: usize = 10;
/// Rows per retrieve.
const MAX_RETRIEVE: usize = 2_000;

/// `/composite/sobjects…`; `path` is what follows.
pub(crate) fn route(
    org: &State,
    call: &Call<'_>,
    path: &[&str],
    tx: Option<&mut Tx<'_>>,
) -> Answer {
    match (call.method, path) {
        ("POST", []) => in_tx(org, call, tx, |tx| change(org, call, tx, create)),
        ("PATCH", []) => in_tx(org, call, tx, |tx| change(org, call, tx, update)),
        ("DELETE", []) => in_tx(org, call, tx, |tx| delete(call, tx)),
        ("GET" | "POST", [object]) => {
            with_store(org, tx, |store| retrieve(org, call, store, object))
        }
        ("PATCH", [object, field]) => {
            in_tx(org, call, tx, |tx| upsert(org, call, tx, object, field))
        }
        (method, _) => Err(Error::method(method)),
    }
}

/// The `records` and `allOrNone` of a body.
fn records(call: &Call<'_>) -> Result<(Vec<Map<String, Value>>, bool), Error> {
    let mut body = call.object()?;
    let all_or_none = match body.get("allOrNone") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(truth)) => *truth,
        Some(_) => {
            return Err(Error::json(
                "Cannot deserialize instance of boolean from the value of allOrNone",
            ));
        }
    };
    let Some(Value::Array(list)) = body.remove("records") else {
        return Err(Error::json(
            "The request body must contain an array named records",
        ));
    };
    limit(list.len())?;
    let object = |value| match value {
        Value::Object(map) => Ok(map),
        _ => Err(Error::json("Each element of records must be an object")),
    };
    let rows: Vec<Map<String, Value>> = list.into_iter().map(object).collect::<Result<_, _>>()?;
    let mut chunks = 0;
    let mut last = None;
    for row in &rows {
        let name = type_of(row);
        if last != Some(name) {
            chunks += 1;
            last = Some(name);
        }
    }
    if chunks > MAX_CHUNKS {
        let message = "Cannot have more than 10 chunks in a single operation. Please rearrange the data to reduce chunking.";
        return Err(Error::bad("LIMIT_EXCEEDED", message));
    }
    Ok((rows, all_or_none))
}

fn limit(rows: usize) -> Result<(), Error> {
    if rows <= MAX_ROWS {
        return Ok(());
    }
    let message = format!(
        "record limit reached. cannot submit more than {MAX_ROWS} records in this request; {rows} were sent"
    );
    Err(Error::bad("EXCEEDED_ID_LIMIT", message))
}

fn type_of(row: &Map<String, Value>) -> &str {
    row.get("attributes")
        .and_then(|attributes| attributes.get("type"))
        .and_then(Value::as_str)
        .unwrap_or("")
}

type Work = fn(&State, &mut Tx<'_>, Map<String, Value>) -> Result<Value, Error>;

fn change(org: &State, call: &Call<'_>, tx: &mut Tx<'_>, work: Work) -> Answer {
    let (rows, all_or_none) = records(call)?;
    let results = rows
        .into_iter()
        .map(|row| move |tx: &mut Tx<'_>| work(org, tx, row));
    Ok(each(tx, all_or_none, results))
}

/// Runs every row behind its own savepoint; with `all_or_none`, one failure takes back all.
fn each<'r, W>(tx: &mut Tx<'_>, all_or_none: bool, rows: impl Iterator<Item = W> + 'r) -> Reply
where
    W: FnOnce(&mut Tx<'_>) -> Result<Value, Error>,
{
    let start = tx.savepoint();
    let mut results: Vec<Result<Value, Error>> = Vec::new();
    for row in rows {
        let before = tx.savepoint();
        let result = row(tx);
        if result.is_err() {
            tx.rollback(before);
        }
        results.push(result);
    }
    let failed = results.iter().any(Result::is_err);
    if all_or_none && failed {
        tx.rollback(start);
    }
    let rolled_back = || {
        let message = "Record rolled back because not all records were valid and the request was using AllOrNone header";
        Error::bad("ALL_OR_NONE_OPERATION_ROLLED_BACK", message).to_row()
    };
    let shown = results.into_iter().map(|result| match result {
        Ok(_) if all_or_none && failed => rolled_back(),
        Ok(value) => value,
        Err(error) => in_row(error).to_row(),
    });
    Reply::json(200, &Value::Array(shown.collect()))
}

/// What plain REST calls a missing row is an invalid reference here.
fn in_row(error: Error) -> Error {
    if error.status == 404 && error.code == "NOT_FOUND" {
        return Error::bad("INVALID_CROSS_REFERENCE_KEY", "invalid cross reference id");
    }
    error
}

fn done(id: SfId) -> Value {
    json!({"id": id.to_string(), "success": true, "errors": []})
}

fn object_of<'a>(org: &'a State, row: &Map<String, Value>) -> Result<&'a Object, Error> {
    let name = type_of(row);
    org.schema().find(name).ok_or_else(|| {
        Error::bad(
            "INVALID_TYPE",
            format!("sObject type '{name}' is not supported."),
        )
    })
}

fn create(org: &State, tx: &mut Tx<'_>, row: Map<String, Value>) -> Result<Value, Error> {
    let object = object_of(org, &row)?;
    tx.create(object.obj, &row).map(done)
}

/// Takes the id out of a row, whatever the case of its key.
fn take_id(row: &mut Map<String, Value>) -> Option<Value> {
    let key = row
        .keys()
        .find(|key| key.eq_ignore_ascii_case("id"))
        .cloned()?;
    row.shift_remove(&key)
}

fn update(org: &State, tx: &mut Tx<'_>, mut row: Map<String, Value>) -> Result<Value, Error> {
    let object = object_of(org, &row)?;
    let given = take_id(&mut row);
    let Some(text) = given.as_ref().and_then(Value::as_str) else {
        return Err(
            Error::bad("MISSING_ARGUMENT", "Id not specified in an update call").on(&["Id"]),
        );
    };
    let id = rows::id_of(object.obj, text)?;
    tx.update(id, &row)?;
    Ok(done(id))
}

fn delete(call: &Call<'_>, tx: &mut Tx<'_>) -> Answer {
    let ids = call.parameter("ids").unwrap_or_default();
    let ids: Vec<&str> = ids
        .split(',')
        .map(str::trim)
        .filter(|id| !id.is_empty())
        .collect();
    if ids.is_empty() {
        return Err(Error::bad(
            "MISSING_ARGUMENT",
            "The ids parameter is required",
        ));
    }
    limit(ids.len())?;
    let all_or_none = call
        .parameter("allOrNone")
        .is_some_and(|text| text.eq_ignore_ascii_case("true"));
    let rows = ids.into_iter().map(|text| {
        move |tx: &mut Tx<'_>| {
            let id = SfId::parse(text)
                .ok_or_else(|| Error::bad("MALFORMED_ID", format!("malformed id {text}")))?;
            tx.delete(id)?;
            Ok(done(id))
        }
    });
    Ok(each(tx, all_or_none, rows))
}

fn upsert(org: &State, call: &Call<'_>, tx: &mut Tx<'_>, name: &str, field: &str) -> Answer {
    let object = rows::object(org, name)?;
    let field = rows::key_field(object, field)?;
    let (rows, all_or_none) = records(call)?;
    let key = object.fields[field].name;
    let mut seen: HashMap<String, usize> = HashMap::new();
    for row in &rows {
        if let Some(value) = key_text(row, key) {
            *seen.entry(value.to_lowercase()).or_default() += 1;
        }
    }
    let work = rows.into_iter().map(|row| {
        let repeated = key_text(&row, key).filter(|value| {
            seen.get(&value.to_lowercase())
                .is_some_and(|times| *times > 1)
        });
        move |tx: &mut Tx<'_>| match repeated {
            Some(value) => Err(Error::bad(
                "DUPLICATE_VALUE",
                format!("Duplicate external id specified: {value}"),
            )
            .on(&[key])),
            None => upsert_one(org, tx, object, field, row),
        }
    });
    Ok(each(tx, all_or_none, work))
}

fn key_text(row: &Map<String, Value>, key: &str) -> Option<String> {
    let value = row
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(key))
        .map(|(_, value)| value)?;
    match value {
        Value::String(text) if !text.trim().is_empty() => Some(text.trim().to_owned()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn upsert_one(
    org: &State,
    tx: &mut Tx<'_>,
    object: &Object,
    field: usize,
    row: Map<String, Value>,
) -> Result<Value, Error> {
    let key = object.fields[field].name;
    // jsforce puts the key first, and real orgs take it; they were recorded refusing an Id there.
    let mut names = row
        .keys()
        .filter(|name| field == at::ID || !name.eq_ignore_ascii_case(key));
    if names.next().is_none_or(|first| first != "attributes") {
        let message = "Nested object for polymorphic foreign key must have an attributes field before any other fields.";
        return Err(Error::json(message));
    }
    if !type_of(&row).eq_ignore_ascii_case(object.obj.name()) {
        let message = format!("The attributes type must be {}", object.obj.name());
        return Err(Error::bad("INVALID_TYPE", message));
    }
    if field != at::ID && row.keys().any(|name| name.eq_ignore_ascii_case("id")) {
        let message = "The Id field should not be specified in the sobject data.";
        return Err(Error::bad("INVALID_FIELD", message).on(&["Id"]));
    }
    let value = key_text(&row, key)
        .ok_or_else(|| Error::bad("MISSING_ARGUMENT", format!("{key} not specified")).on(&[key]))?;
    match rows::upsert_row(tx, org, object, field, &value, row, false)? {
        Upserted::Created(id) => Ok(upserted(id, true)),
        Upserted::Updated(id) => Ok(upserted(id, false)),
        Upserted::Ambiguous(_) => {
            let message =
                format!("{key}: more than one record found for external id field: [{value}]");
            Err(Error::bad("DUPLICATE_EXTERNAL_ID", message).on(&[key]))
        }
    }
}

fn upserted(id: SfId, created: bool) -> Value {
    json!({"id": id.to_string(), "success": true, "errors": [], "created": created})
}

fn retrieve(org: &State, call: &Call<'_>, store: &Store, name: &str) -> Answer {
    let object = rows::object(org, name)?;
    let (ids, fields) = asked(call)?;
    if ids.len() > MAX_RETRIEVE {
        return Err(Error::bad(
            "EXCEEDED_ID_LIMIT",
            format!("cannot retrieve more than {MAX_RETRIEVE} records in one request"),
        ));
    }
    let columns = rows::columns(object, fields.iter().map(String::as_str))?;
    let renderer = Renderer::new(
        org.schema(),
        &org.shared.people,
        object.obj,
        &columns,
        &call.version,
    );
    let mut out = vec![b'['];
    for (place, text) in ids.iter().enumerate() {
        if place > 0 {
            out.push(b',');
        }
        let id = rows::id_of(object.obj, text).ok();
        match id
            .and_then(|id| store.table(object.obj).get(id.number))
            .filter(|hit| !hit.deleted())
        {
            Some(hit) => renderer.record(
                &mut out,
                &Line {
                    hit,
                    parents: Vec::new(),
                },
                &call.version,
            ),
            None => out.extend_from_slice(b"null"),
        }
    }
    out.push(b']');
    Ok(Reply::bytes(out))
}

/// Ids and fields of a retrieve, from the body or the query string.
fn asked(call: &Call<'_>) -> Result<(Vec<String>, Vec<String>), Error> {
    if call.method == "GET" {
        let list = |name: &str| -> Vec<String> {
            let text = call.parameter(name).unwrap_or_default();
            text.split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty())
                .map(str::to_owned)
                .collect()
        };
        return Ok((list("ids"), list("fields")));
    }
    let body = call.object()?;
    let list = |name: &str| -> Result<Vec<String>, Error> {
        let items = body.get(name).and_then(Value::as_array);
        let items = items.ok_or_else(|| {
            Error::json(format!(
                "The request body must contain an array named {name}"
            ))
        })?;
        Ok(items
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect())
    };
    Ok((list("ids")?, list("fields")?))
}
