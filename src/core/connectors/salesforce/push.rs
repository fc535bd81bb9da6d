//! Salesforce collection writes: the request, and what became of each row.

use serde::Deserialize;

use crate::connectors::table::{self, Rule};
use crate::connectors::text::{encode, push_json};
use crate::connectors::{CHANGED, ServerConfig};
use crate::http::{HttpRequest, HttpResponse, Method, Purpose};
use crate::model::{
    ErrorClass, FieldType, Millis, RemoteError, Value, Write, WriteKind, WriteResult,
};
use crate::value::http_date;

use super::errors::{ErrorItem, classify, not_expected};
use super::id18;
use super::request::{bare, root, with_body};

/// Builds one collection call, rows independent of each other; of an update on
/// condition a call of its own, because collections know no conditions.
pub(crate) fn request(
    config: &ServerConfig,
    object: &str,
    kind: WriteKind,
    unique_field: Option<&str>,
    writes: &[Write],
) -> HttpRequest {
    if let Some((id, since, write)) = on_condition(kind, writes) {
        return conditional(config, object, id, since, write);
    }
    let collections = format!("{}/composite/sobjects", root(config));
    if kind == WriteKind::Delete {
        let ids: Vec<String> = writes
            .iter()
            .map(|w| encode(w.record_id.as_deref().unwrap_or_default()))
            .collect();
        let target = format!("{collections}?ids={}&allOrNone=false", ids.join(","));
        return bare(Method::Delete, target, Purpose::Push);
    }
    let unique = by_unique(kind, unique_field, writes);
    let mut body = String::with_capacity(40 + writes.len() * 200);
    body.push_str("{\"allOrNone\":false,\"records\":[");
    for (i, write) in writes.iter().enumerate() {
        if i > 0 {
            body.push(',');
        }
        push_row(&mut body, object, kind, unique, write);
    }
    body.push_str("]}");
    let (method, target) = match (kind, unique) {
        (WriteKind::Create, Some(field)) => (
            Method::Patch,
            format!("{collections}/{}/{}", encode(object), encode(field)),
        ),
        (WriteKind::Create, None) => (Method::Post, collections),
        _ => (Method::Patch, collections),
    };
    with_body(method, target, body, Purpose::Push)
}

/// The write that is alone in its call and depends on its record: id and since when.
fn on_condition(kind: WriteKind, writes: &[Write]) -> Option<(&str, Millis, &Write)> {
    match (kind, writes) {
        (WriteKind::Update, [write]) => {
            let id = write.record_id.as_deref()?;
            Some((id, write.unchanged_since?, write))
        }
        _ => None,
    }
}

fn conditional(
    config: &ServerConfig,
    object: &str,
    id: &str,
    since: Millis,
    write: &Write,
) -> HttpRequest {
    let mut body = String::with_capacity(200);
    push_values(&mut body, None, write);
    // The members follow a comma each.
    let body = format!("{{{}}}", body.trim_start_matches(','));
    let target = format!(
        "{}/sobjects/{}/{}",
        root(config),
        encode(object),
        encode(id)
    );
    let mut request = with_body(Method::Patch, target, body, Purpose::Push);
    let since = ("if-unmodified-since".into(), http_date(since));
    request.headers.push(since);
    request
}

/// The External ID, if the whole batch can go by it.
fn by_unique<'a>(kind: WriteKind, field: Option<&'a str>, writes: &[Write]) -> Option<&'a str> {
    let usable = kind == WriteKind::Create && writes.iter().all(|w| w.unique_value.is_some());
    field.filter(|_| usable)
}

/// One row: `attributes` must come before anything else.
fn push_row(body: &mut String, object: &str, kind: WriteKind, unique: Option<&str>, write: &Write) {
    body.push_str("{\"attributes\":{\"type\":");
    push_json(body, object);
    body.push('}');
    if let (WriteKind::Update, Some(id)) = (kind, &write.record_id) {
        member(body, "id");
        push_json(body, id);
    }
    if let (Some(field), Some(value)) = (unique, &write.unique_value) {
        member(body, field);
        push_json(body, value);
    }
    push_values(body, unique, write);
    body.push('}');
}

/// The fields, a comma before each.
fn push_values(body: &mut String, unique: Option<&str>, write: &Write) {
    for (name, field_type, value) in &write.values {
        if unique == Some(name.as_str()) || name.eq_ignore_ascii_case("id") {
            continue;
        }
        member(body, name);
        push_value(body, *field_type, value);
    }
}

fn member(body: &mut String, name: &str) {
    body.push(',');
    push_json(body, name);
    body.push(':');
}

fn push_value(body: &mut String, field_type: FieldType, value: &Value) {
    match (field_type, value) {
        // A checkbox knows no null: to clear it is to untick it.
        (FieldType::Boolean, None) => body.push_str("false"),
        (_, None) => body.push_str("null"),
        (FieldType::Boolean, Some(text)) if text == "true" || text == "false" => {
            body.push_str(text);
        }
        (FieldType::Number, Some(text)) if is_json_number(text) => body.push_str(text),
        (FieldType::Time, Some(text)) if !text.ends_with('Z') => {
            push_json(body, &format!("{text}Z"));
        }
        (_, Some(text)) => push_json(body, text),
    }
}

/// Whether the text is a number by JSON's grammar: it is sent as it stands,
/// digit for digit.
fn is_json_number(text: &str) -> bool {
    let bytes = text.as_bytes();
    let starts = matches!(bytes.first(), Some(b'-' | b'0'..=b'9'));
    starts
        && bytes.last().is_some_and(u8::is_ascii_digit)
        && serde_json::from_str::<&serde_json::value::RawValue>(text).is_ok()
}

#[derive(Deserialize)]
struct Row {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    success: bool,
    #[serde(default)]
    created: Option<bool>,
    #[serde(default)]
    errors: Option<Vec<ErrorItem>>,
}

/// What became of each write: rows answer in the order they were sent.
pub(crate) fn pushed(
    kind: WriteKind,
    unique_field: Option<&str>,
    writes: &[Write],
    response: &HttpResponse,
) -> Vec<WriteResult> {
    if let Some((id, ..)) = on_condition(kind, writes) {
        return vec![alone(id, response)];
    }
    if !(200..300).contains(&response.status) {
        return refused(writes, classify(response));
    }
    let rows: Vec<Row> = match serde_json::from_slice(&response.body) {
        Ok(rows) => rows,
        Err(e) => {
            let error = not_expected(response, &e);
            return vec![WriteResult::Unknown(error); writes.len()];
        }
    };
    // Rows have no name: with another number of them, none can be told apart.
    if rows.len() != writes.len() {
        let message = format!("{} rows answered, {} sent", rows.len(), writes.len());
        let error = unmentioned(response.status, &message);
        return vec![WriteResult::Unknown(error); writes.len()];
    }
    let unique = by_unique(kind, unique_field, writes);
    let results = writes.iter().zip(rows);
    results
        .map(|(write, row)| result(kind, unique, write, row, response.status))
        .collect()
}

/// What became of an update on condition, which is answered without a body.
fn alone(id: &str, response: &HttpResponse) -> WriteResult {
    if response.status == 204 {
        return WriteResult::Done {
            id: id18(id),
            created: false,
            modified_at: None,
            echoed: Vec::new(),
        };
    }
    let mut error = classify(response);
    if (200..300).contains(&response.status) {
        return WriteResult::Unknown(error);
    }
    if response.status == 412 {
        error.code = CHANGED.to_owned();
        error.message = "the record was changed since it was last seen".to_owned();
        return WriteResult::Failed(error);
    }
    match error.maybe_applied {
        true => WriteResult::Unknown(error),
        false => WriteResult::Failed(error),
    }
}

fn result(
    kind: WriteKind,
    unique: Option<&str>,
    write: &Write,
    row: Row,
    status: u16,
) -> WriteResult {
    if row.success {
        let id = row.id.as_deref().or(write.record_id.as_deref());
        let Some(id) = id.filter(|id| !id.is_empty()) else {
            return WriteResult::Unknown(unmentioned(status, "a row without an id"));
        };
        return WriteResult::Done {
            id: id18(id),
            created: kind == WriteKind::Create && (unique.is_none() || row.created != Some(false)),
            modified_at: None,
            echoed: Vec::new(),
        };
    }
    let errors = row.errors.unwrap_or_default();
    let Some(first) = errors.first() else {
        return WriteResult::Unknown(unmentioned(status, "a failed row without an error"));
    };
    let existing = errors.iter().find_map(|e| Some((e.existing()?, e)));
    if let (Some((id, error)), WriteKind::Create) = (existing, kind) {
        return WriteResult::Exists {
            id,
            message: error.remote_error(400).message,
        };
    }
    // Row errors come under status 200; by themselves they are refusals.
    let mut error = first.remote_error(400);
    error.status = status;
    failed(kind, write, error)
}

/// What the error of a row means for its write.
pub(crate) fn failed(kind: WriteKind, write: &Write, mut error: RemoteError) -> WriteResult {
    // Deleting what is gone is what was wanted.
    if kind == WriteKind::Delete && error.code == "ENTITY_IS_DELETED" {
        return WriteResult::Done {
            id: write.record_id.as_deref().map(id18).unwrap_or_default(),
            created: false,
            modified_at: None,
            echoed: Vec::new(),
        };
    }
    // Without a blamed field, the id that leads nowhere is the row's own.
    if kind != WriteKind::Create
        && error.code == "INVALID_CROSS_REFERENCE_KEY"
        && error.fields.is_empty()
    {
        error.class = ErrorClass::Gone;
        error.advice = "The record is gone in Salesforce; it is read again.";
    }
    WriteResult::Failed(error)
}

/// The same verdict for each row of a call that was refused whole.
fn refused(writes: &[Write], error: RemoteError) -> Vec<WriteResult> {
    if error.maybe_applied {
        return vec![WriteResult::Unknown(error); writes.len()];
    }
    let mut error = error;
    if writes.len() > 1
        && matches!(
            error.class,
            ErrorClass::FixData | ErrorClass::FixMapping | ErrorClass::Gone
        )
    {
        error.class = ErrorClass::Split;
    }
    vec![WriteResult::Failed(error); writes.len()]
}

pub(crate) fn unmentioned(status: u16, message: &str) -> RemoteError {
    let rule = Rule::new(
        0,
        "",
        ErrorClass::Retry,
        "Nothing needs to be done: the record is read to see whether the write arrived.",
    )
    .unsure();
    table::error(&rule, status, "unmentioned", message)
}
