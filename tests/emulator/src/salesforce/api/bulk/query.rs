//! Query jobs: a query is run once, its rows are given out in parts of any size.

use super::csv::{self, Format};
use super::{Draft, Stage, Work, count, word};
use crate::people::People;
use crate::salesforce::State;
use crate::salesforce::api::query::lines;
use crate::salesforce::api::{Answer, Call, Reply};
use crate::salesforce::error::Error;
use crate::salesforce::ids::SfId;
use crate::salesforce::render::Line;
use crate::salesforce::schema::{Object, Schema};
use crate::salesforce::soql::ast::{Column, Query};
use crate::salesforce::soql::parser::parse;
use crate::salesforce::soql::run::{self, Source};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::json;
use std::ops::Range;
use std::sync::Arc;

/// Rows rendered at a time while an answer is sent.
const CHUNK: usize = 1_000;
/// Most URLs in a list of result pages.
const MAX_PAGES: usize = 5;

/// A query and, once run, its rows as they were then.
pub(crate) struct Job {
    query: Arc<Query>,
    with_deleted: bool,
    rows: Option<Arc<Vec<Line>>>,
}

impl Job {
    pub(super) fn found(&self) -> usize {
        self.rows.as_ref().map_or(0, |rows| rows.len())
    }
}

pub(super) fn create(org: &State, call: &Call<'_>) -> Result<Draft, Error> {
    let body = call.object()?;
    let operation = word(&body, "operation", "", &["query", "queryAll"])?;
    let format = Format::read(&body)?;
    let text = body.get("query").and_then(|text| text.as_str());
    let text = text.ok_or_else(|| Error::bad("INVALIDJOB", "query: expected SOQL"))?;
    let query = parse(org.schema(), text, org.now())?;
    let compound = |column: &Column| matches!(column, Column::Compound(_));
    if query.count || query.offset > 0 || query.columns.iter().any(compound) {
        let message = "COUNT(), OFFSET and compound fields are not supported in Bulk Query";
        return Err(Error::bad("INVALIDJOB", message));
    }
    let allowed = org.settings().bulk_query_jobs;
    count(
        org,
        &org.bulk.query_jobs,
        1,
        allowed,
        "DailyBulkV2QueryJobs",
    )?;
    Ok(Draft {
        object: query.obj.name(),
        operation: operation.to_owned(),
        format,
        stage: Stage::UploadComplete,
        work: Work::Query(Job {
            with_deleted: operation == "queryAll",
            query: Arc::new(query),
            rows: None,
        }),
    })
}

/// Runs the query: in the order of ids, unless it says otherwise.
pub(super) fn run(org: &State, job: &mut Job) -> Result<(), Error> {
    if org.settings().bulk_fail {
        return Err(Error::bad("INTERNAL_ERROR", "The job failed"));
    }
    let store = org.read_store();
    let source = Source {
        table: store.table(job.query.obj),
        object: org.schema().object(job.query.obj),
        people: &org.shared.people,
        with_deleted: job.with_deleted,
    };
    let page = run::first(source, &job.query, usize::MAX);
    job.rows = Some(Arc::new(lines(&store, &job.query, &page, org)));
    Ok(())
}

/// Rows of an answer, rendered while it is sent.
#[derive(Debug)]
pub(crate) struct Rows {
    rows: Arc<Vec<Line>>,
    query: Arc<Query>,
    format: Format,
    range: Range<usize>,
    header: bool,
    zulu: bool,
}

impl Rows {
    /// The next piece of the answer; `None` at its end.
    pub(crate) fn next(&mut self, schema: &Schema, people: &People) -> Option<Vec<u8>> {
        let object = schema.object(self.query.obj);
        let mut out = Vec::with_capacity(256 << 10);
        if std::mem::take(&mut self.header) {
            let names = header(schema, object, &self.query.columns);
            self.format.line(&mut out, names.iter().map(String::as_str));
        } else if self.range.is_empty() {
            return None;
        }
        for _ in 0..CHUNK {
            let Some(at) = self.range.next() else {
                break;
            };
            self.row(&mut out, &self.rows[at], schema, object, people);
        }
        Some(out)
    }

    fn row(
        &self,
        out: &mut Vec<u8>,
        line: &Line,
        schema: &Schema,
        object: &Object,
        people: &People,
    ) {
        let view = line.hit.view(object, people);
        let mut parents = line.parents.iter();
        let mut first = true;
        let mut part = |out: &mut Vec<u8>| {
            if !std::mem::take(&mut first) {
                out.push(self.format.delimiter());
            }
        };
        for column in &self.query.columns {
            match column {
                Column::Field(field) | Column::Compound(field) => {
                    part(out);
                    view.with(*field, |value| csv::value(out, value, self.zulu));
                }
                Column::Parent { obj, fields, .. } => {
                    let parent = parents.next().and_then(Option::as_ref);
                    let view = parent.map(|hit| hit.view(schema.object(*obj), people));
                    for field in fields {
                        part(out);
                        match &view {
                            Some(view) => {
                                view.with(*field, |value| csv::value(out, value, self.zulu));
                            }
                            None => out.extend_from_slice(b"\"\""),
                        }
                    }
                }
            }
        }
        self.format.end_line(out);
    }
}

fn header(schema: &Schema, object: &Object, columns: &[Column]) -> Vec<String> {
    let mut names = Vec::new();
    for column in columns {
        match column {
            Column::Field(field) | Column::Compound(field) => {
                names.push(object.fields[*field].name.to_owned());
            }
            Column::Parent {
                reference,
                obj,
                fields,
            } => {
                let relation = object.fields[*reference].relationship.unwrap_or_default();
                let parent = schema.object(*obj);
                let name = |field: &usize| format!("{relation}.{}", parent.fields[*field].name);
                names.extend(fields.iter().map(name));
            }
        }
    }
    names
}

fn locator(at: usize) -> String {
    STANDARD_NO_PAD.encode(at.to_string())
}

/// The row that a locator points to; text that is none is refused.
fn place(text: &str) -> Option<usize> {
    let bytes = STANDARD_NO_PAD.decode(text).ok()?;
    std::str::from_utf8(&bytes).ok()?.parse().ok()
}

pub(super) fn results(org: &State, call: &Call<'_>, job: &Job, format: Format) -> Answer {
    let rows = job.rows.as_ref().ok_or_else(Error::not_found)?;
    let wrong = |what: &str| Error::bad("INVALID_LOCATOR", format!("{what} is not valid"));
    let start = match call.parameter("locator") {
        None => 0,
        Some(text) => place(text)
            .filter(|at| *at <= rows.len())
            .ok_or_else(|| wrong("locator"))?,
    };
    let (most, every, zulu) = {
        let settings = org.settings();
        let rows = usize::try_from(settings.bulk_page_rows).unwrap_or(usize::MAX);
        (rows, settings.bulk_header_every_page, settings.bulk_zulu)
    };
    let size = match call.parameter("maxRecords") {
        None => most,
        Some(text) => text
            .parse::<usize>()
            .ok()
            .filter(|size| *size > 0)
            .ok_or_else(|| wrong("maxRecords"))?
            .min(most),
    };
    let end = start.saturating_add(size).min(rows.len());
    let next = if end < rows.len() {
        locator(end)
    } else {
        // The documented end: a text, not an absent header.
        "null".to_owned()
    };
    let mut reply = Reply::empty(200)
        .with("content-type", "text/csv".to_owned())
        .with("sforce-locator", next)
        .with("sforce-numberofrecords", (end - start).to_string());
    reply.rows = Some(Rows {
        rows: Arc::clone(rows),
        query: Arc::clone(&job.query),
        format,
        range: start..end,
        header: every || start == 0,
        zulu,
    });
    Ok(reply)
}

/// The places where pages of the results start, so that several can be fetched at once.
pub(super) fn pages(org: &State, call: &Call<'_>, job: &Job, id: SfId) -> Answer {
    let size = usize::try_from(org.settings().bulk_page_rows).unwrap_or(usize::MAX);
    let rows = job.found();
    let from = call.parameter("locator").and_then(place).unwrap_or(0);
    let root = format!("{}/jobs/query/{id}", call.root());
    let starts: Vec<usize> = (from..rows.max(1)).step_by(size.max(1)).collect();
    let url = |at: &usize| match at {
        0 => json!({"resultUrl": format!("{root}/results")}),
        at => json!({"resultUrl": format!("{root}/results?locator={}", locator(*at))}),
    };
    let shown: Vec<_> = starts.iter().take(MAX_PAGES).map(url).collect();
    let mut body = json!({"resultPages": shown, "done": starts.len() <= MAX_PAGES});
    if let Some(next) = starts.get(MAX_PAGES) {
        body["nextRecordsUrl"] = json!(format!("{root}/resultPages?locator={}", locator(*next)));
    }
    Ok(Reply::json(200, &body))
}
