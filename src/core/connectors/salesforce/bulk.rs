//! Bulk API 2.0, query jobs: start, state, results as CSV by locator.

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::json;

use crate::cells::Cells;
use crate::connectors::ServerConfig;
use crate::connectors::bulk::{BulkReader, Fields, Progress, Rows};
use crate::connectors::table;
use crate::connectors::text::{encode, fingerprint, names};
use crate::http::{HttpRequest, HttpResponse, Method, Purpose};
use crate::model::{ErrorClass, Page, Record, RemoteError};
use crate::value::{append_canonical, parse_instant};

use super::errors::{classify, not_expected, row_error};
use super::request::{bare, get, name, root, with_body};
use super::{Salesforce, id18};

/// Rows per answer. More of them save calls; fewer are read again after a crash.
const RESULT_ROWS: u32 = 50_000;
/// Longest row: the limit is 400,000 characters, of up to four bytes, in quotes.
const ROW_MAX: usize = 4 << 20;
/// Most columns of a row.
const COLUMNS_MAX: usize = 10_000;
/// Most unreadable values reported of one page.
const UNREADABLE_MAX: usize = 1_000;
/// Most bytes set aside for the text of a record before it is read.
const ROOM_MAX: usize = 4_096;

/// A job, which columns it reads, and where to go on in its results:
/// `bulk:750…:1f2e3d4c:MTAwMDA`, without a locator at their start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    job: String,
    columns: String,
    locator: String,
}

impl Place {
    pub(super) fn parse(cursor: &str) -> Option<Self> {
        let (job, rest) = cursor.strip_prefix("bulk:")?.split_once(':')?;
        let (columns, locator) = rest.split_once(':')?;
        (!job.is_empty()).then(|| Self {
            job: job.to_owned(),
            columns: columns.to_owned(),
            locator: locator.to_owned(),
        })
    }

    fn text(&self) -> String {
        format!("bulk:{}:{}:{}", self.job, self.columns, self.locator)
    }

    /// The place whose rows this request asks for.
    fn of(target: &str, columns: String) -> Option<Self> {
        let (_, rest) = target.split_once("/jobs/query/")?;
        let (job, query) = rest.split_once("/results?")?;
        let locator = query.split('&').find_map(|p| p.strip_prefix("locator="));
        Some(Self {
            job: job.to_owned(),
            columns,
            locator: locator.unwrap_or_default().to_owned(),
        })
    }

    fn url(&self, config: &ServerConfig) -> String {
        format!("{}/jobs/query/{}", root(config), encode(&self.job))
    }

    /// Asks for the rows at this place.
    pub(super) fn results(&self, config: &ServerConfig) -> HttpRequest {
        let mut target = format!("{}/results?maxRecords={RESULT_ROWS}", self.url(config));
        if !self.locator.is_empty() {
            target.push_str("&locator=");
            target.push_str(&encode(&self.locator));
        }
        let mut request = get(target, Purpose::Backfill);
        request.headers = vec![("accept".into(), "text/csv".into())];
        request
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Job {
    id: String,
    state: String,
    #[serde(default)]
    created_date: Option<String>,
    #[serde(default)]
    number_records_processed: Option<u64>,
    #[serde(default)]
    error_message: Option<String>,
}

fn job(response: &HttpResponse) -> Result<Job, RemoteError> {
    if !(200..300).contains(&response.status) {
        return Err(classify(response));
    }
    serde_json::from_slice(&response.body).map_err(|e| not_expected(response, &e))
}

/// Columns of the query, in its order.
fn queried(fields: &Fields) -> Vec<String> {
    let all = names(&["Id", "SystemModstamp"], fields);
    all.into_iter().map(name).collect()
}

/// Tells one list of columns from another.
fn mark(fields: &Fields) -> String {
    let queried = queried(fields);
    let parts: Vec<&str> = queried.iter().map(String::as_str).collect();
    let mut mark = fingerprint(&parts);
    mark.truncate(8);
    mark
}

impl BulkReader for Salesforce {
    /// Without ORDER BY: it would keep Salesforce from reading in pieces.
    fn start(&self, config: &ServerConfig, object: &str, fields: &Fields) -> HttpRequest {
        let columns = queried(fields).join(",");
        let body = json!({
            "operation": "query",
            "query": format!("SELECT {columns} FROM {}", name(object)),
            "contentType": "CSV",
            "columnDelimiter": "COMMA",
            "lineEnding": "LF",
        });
        let target = format!("{}/jobs/query", root(config));
        with_body(Method::Post, target, body.to_string(), Purpose::Backfill)
    }

    fn started(&self, response: &HttpResponse, fields: &Fields) -> Result<String, RemoteError> {
        let place = Place {
            job: job(response)?.id,
            columns: mark(fields),
            locator: String::new(),
        };
        Ok(place.text())
    }

    fn fits(&self, place: &str, fields: &Fields) -> bool {
        Place::parse(place).is_none_or(|place| place.columns == mark(fields))
    }

    fn ask(&self, config: &ServerConfig, place: &str) -> Option<HttpRequest> {
        let place = Place::parse(place)?;
        Some(get(place.url(config), Purpose::Backfill))
    }

    fn told(&self, response: &HttpResponse) -> Result<Progress, RemoteError> {
        let job = job(response)?;
        Ok(match job.state.as_str() {
            "JobComplete" => Progress::Ready {
                rows: job.number_records_processed,
                began: job.created_date.as_deref().and_then(parse_instant),
            },
            "Failed" | "Aborted" => {
                let message = job.error_message.unwrap_or(job.state);
                Progress::Failed(row_error(&message))
            }
            _ => Progress::Waiting,
        })
    }

    fn end(&self, config: &ServerConfig, place: &str, done: bool) -> Option<HttpRequest> {
        let url = Place::parse(place)?.url(config);
        Some(if done {
            bare(Method::Delete, url, Purpose::Backfill)
        } else {
            let body = json!({"state": "Aborted"}).to_string();
            with_body(Method::Patch, url, body, Purpose::Backfill)
        })
    }

    fn hopeless(&self, error: &RemoteError) -> bool {
        let refused = matches!(
            error.class,
            ErrorClass::FixData
                | ErrorClass::FixPermission
                | ErrorClass::FixMapping
                | ErrorClass::Gone
                | ErrorClass::Split
        );
        // 409: the job was made with another API version. 405, 415 and a query that is not
        // understood are no reason to stop the server: pages are asked for otherwise.
        refused || matches!(error.status, 400 | 405 | 409 | 415 | 501)
    }

    fn rows(
        &self,
        request: &HttpRequest,
        answer: &HttpResponse,
        fields: &Fields,
    ) -> Option<Box<dyn Rows>> {
        let place = Place::of(&request.target, mark(fields))?;
        let csv = |kind: &str| kind.trim_start().starts_with("text/csv");
        if !answer.header("content-type").is_some_and(csv) {
            return None;
        }
        let next = answer.header("sforce-locator").map(str::trim);
        // The last answer's locator is the text null.
        let next = next.filter(|text| !text.is_empty() && !text.eq_ignore_ascii_case("null"));
        let next = next.map(|locator| Place {
            job: place.job.clone(),
            columns: place.columns.clone(),
            locator: locator.to_owned(),
        });
        let announced = answer.header("sforce-numberofrecords");
        Some(Box::new(Csv::new(
            fields,
            place.text(),
            next.map(|next| next.text()),
            announced.and_then(|n| n.trim().parse().ok()),
        )))
    }
}

/// What a column of the CSV is.
#[derive(Clone, Copy, Default)]
struct Column {
    field: Option<usize>,
    id: bool,
    stamp: bool,
}

struct Csv {
    fields: Fields,
    queried: Vec<String>,
    /// By position in the row; as queried until a header says otherwise.
    columns: Vec<Column>,
    parser: csv_core::Reader,
    /// The row under way: its cells one after the other, and where each ends.
    text: Vec<u8>,
    filled: usize,
    ends: Vec<usize>,
    cells: usize,
    /// No row was read yet.
    first: bool,
    rows: u64,
    announced: Option<u64>,
    place: String,
    next: Option<String>,
    ended: bool,
    records: Vec<Record>,
    unreadable: Vec<(String, String, String)>,
    room: usize,
}

impl Csv {
    fn new(fields: &Fields, place: String, next: Option<String>, announced: Option<u64>) -> Self {
        let queried = queried(fields);
        Self {
            columns: columns(fields, queried.iter().map(String::as_str)),
            fields: Fields::clone(fields),
            queried,
            parser: csv_core::Reader::new(),
            text: vec![0; 4_096],
            filled: 0,
            ends: vec![0; 128],
            cells: 0,
            first: true,
            rows: 0,
            announced,
            place,
            next,
            ended: false,
            records: Vec::new(),
            unreadable: Vec::new(),
            room: 0,
        }
    }

    /// Reads on; with an empty piece, to the end.
    fn read(&mut self, mut piece: &[u8]) -> Result<(), RemoteError> {
        let last = piece.is_empty();
        loop {
            let (result, read, text, cells) = self.parser.read_record(
                piece,
                &mut self.text[self.filled..],
                &mut self.ends[self.cells..],
            );
            piece = &piece[read..];
            self.filled += text;
            self.cells += cells;
            match result {
                csv_core::ReadRecordResult::InputEmpty if !last => return Ok(()),
                csv_core::ReadRecordResult::InputEmpty => {}
                csv_core::ReadRecordResult::OutputFull => {
                    grow(&mut self.text, ROW_MAX)?;
                }
                csv_core::ReadRecordResult::OutputEndsFull => {
                    grow(&mut self.ends, COLUMNS_MAX)?;
                }
                csv_core::ReadRecordResult::Record => {
                    self.row()?;
                    self.filled = 0;
                    self.cells = 0;
                }
                csv_core::ReadRecordResult::End => return Ok(()),
            }
            if piece.is_empty() && !last {
                return Ok(());
            }
        }
    }

    fn row(&mut self) -> Result<(), RemoteError> {
        let text = std::str::from_utf8(&self.text[..self.filled])
            .map_err(|_| broken("a row is not UTF-8"))?;
        let mut start = 0;
        let cells: Option<Vec<&str>> = (self.ends[..self.cells].iter())
            .map(|end| text.get(std::mem::replace(&mut start, *end)..*end))
            .collect();
        let cells = cells.ok_or_else(|| broken("a row is not UTF-8"))?;
        if std::mem::take(&mut self.first) && is_header(&self.queried, &cells) {
            // Every answer may begin with it, or the first one only: both were seen.
            self.columns = columns(&self.fields, cells.iter().copied());
            return Ok(());
        }
        if cells.len() != self.columns.len() {
            let (found, expected) = (cells.len(), self.columns.len());
            return Err(broken(&format!("a row of {found} values, not {expected}")));
        }
        let mut record = Record {
            values: Cells::nulls(self.fields.len(), self.room),
            ..Record::default()
        };
        let before = self.unreadable.len();
        for (cell, column) in cells.iter().zip(&self.columns) {
            if let Some(field) = column.field {
                let (field_name, field_type) = &self.fields[field];
                let read =
                    (record.values).write(field, |out| append_canonical(*field_type, cell, out));
                if let Err(error) = read
                    && self.unreadable.len() < UNREADABLE_MAX
                {
                    let name = field_name.clone();
                    self.unreadable.push((String::new(), name, error.text));
                }
            }
            if column.id {
                record.id = id18(cell);
            } else if column.stamp {
                record.modified_at = parse_instant(cell);
            }
        }
        if record.id.is_empty() {
            return Err(broken("a row without an id"));
        }
        for (id, ..) in &mut self.unreadable[before..] {
            id.clone_from(&record.id);
        }
        self.room = self.room.max(record.values.bytes()).min(ROOM_MAX);
        self.rows += 1;
        self.records.push(record);
        Ok(())
    }
}

/// What the columns of these names are; strangers are nothing.
fn columns<'a>(fields: &Fields, names: impl Iterator<Item = &'a str>) -> Vec<Column> {
    let column = |column: &str| Column {
        field: (fields.iter()).position(|(field, _)| name(field).eq_ignore_ascii_case(column)),
        id: column.eq_ignore_ascii_case("Id"),
        stamp: column.eq_ignore_ascii_case("SystemModstamp"),
    };
    names.map(column).collect()
}

/// Whether a row is the names of the columns that were asked for, in any order.
fn is_header(queried: &[String], cells: &[&str]) -> bool {
    let known: HashSet<String> = queried.iter().map(|n| n.to_ascii_lowercase()).collect();
    cells.len() == queried.len()
        && cells
            .iter()
            .all(|c| known.contains(&c.to_ascii_lowercase()))
}

/// Doubles what a row needs, up to a bound.
fn grow<T: Clone + Default>(room: &mut Vec<T>, most: usize) -> Result<(), RemoteError> {
    if room.len() >= most {
        return Err(broken("a row is longer than any may be"));
    }
    let size = (room.len() * 2).min(most);
    room.resize(size, T::default());
    Ok(())
}

/// An answer that is not the CSV it should be: asked for again.
fn broken(why: &str) -> RemoteError {
    let rule = table::find(super::errors::RULES, 0, "");
    let mut error = table::error(&rule, 200, "not_csv", why);
    error.maybe_applied = false;
    error
}

impl Rows for Csv {
    fn feed(&mut self, piece: &[u8]) -> Result<(), RemoteError> {
        if piece.is_empty() {
            return Ok(());
        }
        self.read(piece)
    }

    fn end(&mut self) -> Result<(), RemoteError> {
        self.read(&[])?;
        self.ended = true;
        match self.announced {
            Some(announced) if announced != self.rows => Err(broken(&format!(
                "{} rows came, {announced} were announced",
                self.rows
            ))),
            _ => Ok(()),
        }
    }

    fn waiting(&self) -> usize {
        self.records.len()
    }

    fn take(&mut self) -> Page {
        let next = match self.ended {
            true => self.next.clone(),
            false => Some(self.place.clone()),
        };
        let room = self.records.len().next_power_of_two();
        Page {
            records: std::mem::replace(&mut self.records, Vec::with_capacity(room)),
            next,
            unreadable: std::mem::take(&mut self.unreadable),
            ..Page::default()
        }
    }
}
