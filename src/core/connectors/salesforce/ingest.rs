//! Bulk API 2.0, ingest jobs: rows as CSV, and what became of each.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::json;

use crate::connectors::ServerConfig;
use crate::connectors::bulk::{BulkReader, BulkWriter, Stage, UNTOUCHED};
use crate::connectors::table::{self, Rule};
use crate::connectors::text::encode;
use crate::http::{HttpRequest, HttpResponse, Method, Purpose};
use crate::model::{ErrorClass, FieldType, RemoteError, Value, Write, WriteKind, WriteResult};

use super::errors::{classify, id_in, not_expected, row_error};
use super::push::{failed, unmentioned};
use super::request::{get, name, root, with_body};
use super::{Salesforce, id18};

/// Writes of a job: what Salesforce counts as one batch.
const MOST: usize = 10_000;
/// Longest upload. Its results are as long and more, and are read whole.
const MOST_BYTES: usize = 6 << 20;
/// Bytes of a cell without its text: two quotes and a comma.
const EMPTY: usize = 3;
/// Longest value and longest row of a job, in characters.
const MOST_CHARS: (usize, usize) = (32_000, 400_000);
/// What a cell says to empty its field; an empty cell leaves it alone.
const NULL: &str = "#N/A";

#[derive(Deserialize)]
struct Job {
    id: String,
    state: String,
}

fn parsed(response: &HttpResponse) -> Result<Job, RemoteError> {
    if !(200..300).contains(&response.status) {
        return Err(classify(response));
    }
    serde_json::from_slice(&response.body).map_err(|e| not_expected(response, &e))
}

fn url(config: &ServerConfig, job: &str) -> String {
    format!("{}/jobs/ingest/{}", root(config), encode(job))
}

/// The column that names a row, and what it holds for a write.
fn key<'w>(kind: WriteKind, unique: Option<&str>, write: &'w Write) -> Option<&'w str> {
    match (kind, unique) {
        (WriteKind::Create, Some(_)) => write.unique_value.as_deref(),
        (WriteKind::Create, None) => None,
        _ => write.record_id.as_deref(),
    }
}

fn key_column(kind: WriteKind, unique: Option<&str>) -> &str {
    match (kind, unique) {
        (WriteKind::Create, Some(field)) => field,
        _ => "Id",
    }
}

/// A value as a cell.
fn cell(field_type: FieldType, value: &Value) -> String {
    match (field_type, value) {
        // A checkbox knows no null: to clear it is to untick it.
        (FieldType::Boolean, None) => "false".to_owned(),
        (_, None) => NULL.to_owned(),
        // No text to Salesforce, which in a cell would leave the field alone.
        (_, Some(text)) if text.trim().is_empty() => NULL.to_owned(),
        (FieldType::Time, Some(text)) if !text.ends_with('Z') => format!("{text}Z"),
        (_, Some(text)) => text.clone(),
    }
}

fn push_cell(out: &mut String, first: bool, text: &str) {
    if !first {
        out.push(',');
    }
    out.push('"');
    for (at, part) in text.split('"').enumerate() {
        if at > 0 {
            out.push_str("\"\"");
        }
        out.push_str(part);
    }
    out.push('"');
}

/// The rows of a job. Every column that any write has is one of the table's.
fn csv(kind: WriteKind, unique: Option<&str>, writes: &[Write]) -> String {
    let key_name = key_column(kind, unique);
    let mut columns: Vec<&str> = Vec::new();
    let mut place: HashMap<&str, usize> = HashMap::new();
    if kind != WriteKind::Delete {
        let names = writes.iter().flat_map(|w| w.values.iter());
        for (field, ..) in names {
            let own = field.eq_ignore_ascii_case("id") || field == key_name;
            if !own && !place.contains_key(field.as_str()) {
                place.insert(field, columns.len());
                columns.push(field);
            }
        }
    }
    let mut out = String::with_capacity(writes.len() * (24 + columns.len() * 16));
    push_cell(&mut out, true, key_name);
    columns
        .iter()
        .for_each(|c| push_cell(&mut out, false, &name(c)));
    out.push('\n');
    for write in writes {
        push_cell(&mut out, true, key(kind, unique, write).unwrap_or_default());
        let mut cells: Vec<String> = vec![String::new(); columns.len()];
        for (field, field_type, value) in &write.values {
            if let Some(at) = place.get(field.as_str()) {
                cells[*at] = cell(*field_type, value);
            }
        }
        for text in &cells {
            push_cell(&mut out, false, text);
        }
        out.push('\n');
    }
    out
}

/// Bytes of the values of a row, inner quotes doubled; `None` where it cannot be one.
fn row_bytes(write: &Write) -> Option<usize> {
    let mut bytes = 0;
    for (_, _, value) in &write.values {
        let text = value.as_deref().unwrap_or_default();
        // Counted only if it can be: no text has more characters than bytes.
        let long = text.len() > MOST_CHARS.0 && text.chars().count() > MOST_CHARS.0;
        if long || text == NULL {
            return None;
        }
        let quotes = text.bytes().filter(|b| *b == b'"').count();
        bytes += (text.len() + quotes).max(NULL.len());
    }
    (bytes <= MOST_CHARS.1).then_some(bytes)
}

impl BulkWriter for Salesforce {
    fn most(&self) -> usize {
        MOST
    }

    fn fits(&self, kind: WriteKind, unique_field: Option<&str>, writes: &[Write]) -> Vec<bool> {
        let mut keys = HashSet::with_capacity(writes.len());
        let mut columns = HashSet::new();
        let (mut rows, mut bytes) = (0, 0);
        let fits = writes.iter().map(|write| {
            // A job knows no conditions.
            if write.unchanged_since.is_some() {
                return false;
            }
            let key = key(kind, unique_field, write);
            let Some((key, own)) = key.zip(row_bytes(write)) else {
                return false;
            };
            let names = || write.values.iter().map(|(field, ..)| field.as_str());
            let wide = columns.len() + names().filter(|f| !columns.contains(f)).count() + 1;
            // Every row has a cell, if an empty one, for every column of any.
            let size = bytes + key.len() + own + (rows + 1) * wide * EMPTY;
            if rows == MOST || size > MOST_BYTES || !keys.insert(key) {
                return false;
            }
            columns.extend(names());
            (rows, bytes) = (rows + 1, bytes + key.len() + own);
            true
        });
        fits.collect()
    }

    fn open(
        &self,
        config: &ServerConfig,
        object: &str,
        kind: WriteKind,
        unique_field: Option<&str>,
    ) -> HttpRequest {
        let operation = match kind {
            WriteKind::Create => "upsert",
            WriteKind::Update => "update",
            WriteKind::Delete => "delete",
        };
        let mut body = json!({
            "object": object,
            "operation": operation,
            "contentType": "CSV",
            "columnDelimiter": "COMMA",
            "lineEnding": "LF",
        });
        if let (WriteKind::Create, Some(field)) = (kind, unique_field) {
            body["externalIdFieldName"] = json!(field);
        }
        let target = format!("{}/jobs/ingest", root(config));
        with_body(Method::Post, target, body.to_string(), Purpose::Push)
    }

    fn opened(&self, response: &HttpResponse) -> Result<String, RemoteError> {
        parsed(response).map(|job| job.id)
    }

    fn upload(
        &self,
        config: &ServerConfig,
        job: &str,
        kind: WriteKind,
        unique_field: Option<&str>,
        writes: &[Write],
    ) -> HttpRequest {
        let target = format!("{}/batches", url(config, job));
        let rows = csv(kind, unique_field, writes);
        let mut request = with_body(Method::Put, target, rows, Purpose::Push);
        for (header, value) in &mut request.headers {
            if header == "content-type" {
                *value = "text/csv; charset=UTF-8".into();
            }
        }
        request
    }

    fn set(&self, config: &ServerConfig, job: &str, go: bool) -> HttpRequest {
        let state = if go { "UploadComplete" } else { "Aborted" };
        let body = json!({"state": state}).to_string();
        with_body(Method::Patch, url(config, job), body, Purpose::Push)
    }

    fn state(&self, config: &ServerConfig, job: &str) -> HttpRequest {
        get(url(config, job), Purpose::Push)
    }

    fn stage(&self, response: &HttpResponse) -> Result<Stage, RemoteError> {
        let job = parsed(response)?;
        Ok(match job.state.as_str() {
            "Open" => Stage::Open,
            "JobComplete" | "Failed" | "Aborted" => Stage::Ended,
            _ => Stage::Waiting,
        })
    }

    fn results(&self, config: &ServerConfig, job: &str) -> Vec<HttpRequest> {
        let part = |part: &str| {
            let mut request = get(format!("{}/{part}", url(config, job)), Purpose::Push);
            request.headers = vec![("accept".into(), "text/csv".into())];
            request
        };
        ["successfulResults", "failedResults", "unprocessedrecords"]
            .map(part)
            .to_vec()
    }

    fn outcomes(
        &self,
        kind: WriteKind,
        unique_field: Option<&str>,
        writes: &[Write],
        answers: &[HttpResponse],
    ) -> Result<Vec<WriteResult>, RemoteError> {
        let mut results = Results {
            kind,
            writes,
            places: (writes.iter().enumerate())
                .filter_map(|(at, w)| Some((key(kind, unique_field, w).map(id18)?, at)))
                .collect(),
            column: key_column(kind, unique_field),
            found: vec![None; writes.len()],
        };
        for (part, answer) in answers.iter().enumerate() {
            results.read(part, answer)?;
        }
        let unknown = || WriteResult::Unknown(unmentioned(200, "a row without a result"));
        let found = results.found.into_iter();
        Ok(found.map(|r| r.unwrap_or_else(unknown)).collect())
    }

    fn remove(&self, config: &ServerConfig, job: &str) -> HttpRequest {
        super::request::bare(Method::Delete, url(config, job), Purpose::Push)
    }

    fn hopeless(&self, error: &RemoteError) -> bool {
        BulkReader::hopeless(self, error)
    }
}

/// Results while they are read.
struct Results<'w> {
    kind: WriteKind,
    writes: &'w [Write],
    /// Writes by what names their rows.
    places: HashMap<String, usize>,
    column: &'w str,
    found: Vec<Option<WriteResult>>,
}

impl Results<'_> {
    /// Reads a part: successful rows, failed ones, those not reached.
    fn read(&mut self, part: usize, answer: &HttpResponse) -> Result<(), RemoteError> {
        let rows = rows_of(&answer.body)?;
        let Some((header, rows)) = rows.split_first() else {
            return Ok(());
        };
        let find = |name: &str| header.iter().position(|h| h.eq_ignore_ascii_case(name));
        let (id, made, text) = (find("sf__Id"), find("sf__Created"), find("sf__Error"));
        if part < 2 && id.is_none() {
            return Err(broken("results without the ids of records"));
        }
        // A job that has no data knows no columns.
        let Some(key) = find(self.column) else {
            let broken = || broken("results without what names their rows");
            return rows.is_empty().then_some(()).ok_or_else(broken);
        };
        for row in rows {
            let cell = |at: Option<usize>| at.and_then(|at| row.get(at)).map_or("", String::as_str);
            let Some(at) = self.places.get(&id18(cell(Some(key)))).copied() else {
                continue;
            };
            let result = match part {
                0 if cell(id).is_empty() => continue,
                0 => WriteResult::Done {
                    id: id18(cell(id)),
                    created: self.kind == WriteKind::Create && cell(made) == "true",
                    modified_at: None,
                    echoed: Vec::new(),
                },
                1 => self.refused(at, cell(text)),
                _ => WriteResult::Failed(unprocessed()),
            };
            // Whatever else is said of it: what was written must not be sent again.
            if !matches!(self.found[at], Some(WriteResult::Done { .. })) {
                self.found[at] = Some(result);
            }
        }
        Ok(())
    }

    fn refused(&self, at: usize, text: &str) -> WriteResult {
        let error = row_error(text);
        if self.kind == WriteKind::Create
            && error.code == "DUPLICATE_VALUE"
            && let Some(id) = id_in(&error.message)
        {
            let message = error.message;
            return WriteResult::Exists { id, message };
        }
        failed(self.kind, &self.writes[at], error)
    }
}

/// A row that its job did not come to.
fn unprocessed() -> RemoteError {
    let advice = "The bulk job ended before this row; it is sent again.";
    let rule = Rule::new(0, "", ErrorClass::Retry, advice);
    table::error(&rule, 0, UNTOUCHED, "the bulk job did not come to this row")
}

fn broken(why: &str) -> RemoteError {
    let rule = Rule::new(0, "", ErrorClass::Retry, "The results are asked for again.");
    table::error(&rule, 200, "not_csv", why)
}

/// All rows of a CSV, the header first.
fn rows_of(body: &[u8]) -> Result<Vec<Vec<String>>, RemoteError> {
    let mut parser = csv_core::Reader::new();
    let mut text = vec![0; 64 << 10];
    let mut ends = vec![0; 1_024];
    let (mut filled, mut cells, mut at) = (0, 0, 0);
    let mut rows = Vec::new();
    loop {
        let (result, read, wrote, ended) =
            parser.read_record(&body[at..], &mut text[filled..], &mut ends[cells..]);
        at += read;
        filled += wrote;
        cells += ended;
        match result {
            // What follows the last byte is the end of the last row.
            csv_core::ReadRecordResult::InputEmpty => {}
            csv_core::ReadRecordResult::OutputFull if text.len() <= body.len() => {
                text.resize(text.len() * 2, 0);
            }
            csv_core::ReadRecordResult::OutputEndsFull if ends.len() <= body.len() => {
                ends.resize(ends.len() * 2, 0);
            }
            csv_core::ReadRecordResult::OutputFull | csv_core::ReadRecordResult::OutputEndsFull => {
                return Err(broken("no table"));
            }
            csv_core::ReadRecordResult::Record => {
                let mut start = 0;
                let cut = |end: &usize| {
                    let bytes = &text[std::mem::replace(&mut start, *end)..*end];
                    String::from_utf8_lossy(bytes).into_owned()
                };
                rows.push(ends[..cells].iter().map(cut).collect());
                filled = 0;
                cells = 0;
            }
            csv_core::ReadRecordResult::End => return Ok(rows),
        }
    }
}
