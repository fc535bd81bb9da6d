//! Bulk API 2.0: jobs that read or write many records as CSV, done beside the requests that ask for them.
//!
//! A job's state follows the clock: so long in the queue (`bulk_queue_ms`), so long at work (`bulk_work_ms`). Jobs move on
//! by themselves ([`work`]) and whenever one is asked for.

mod csv;
mod ingest;
mod query;

pub(crate) use query::Rows;

use super::{Answer, Call, Reply};
use crate::salesforce::State;
use crate::salesforce::error::Error;
use crate::salesforce::ids::SfId;
use crate::salesforce::session::SYNC_USER;
use crate::salesforce::stamps;
use crate::salesforce::tx::Writer;
use csv::Format;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Jobs kept at once; the oldest goes when one more is made.
const MAX_JOBS: usize = 200;
/// A job is kept so long.
const JOB_LIFE_MS: i64 = 7 * 86_400_000;
const PREFIX: [u8; 3] = *b"750";

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Waits for its data; ingest only.
    Open,
    UploadComplete,
    InProgress,
    JobComplete,
    Failed,
    Aborted,
}

impl Stage {
    const fn name(self) -> &'static str {
        match self {
            Self::Open => "Open",
            Self::UploadComplete => "UploadComplete",
            Self::InProgress => "InProgress",
            Self::JobComplete => "JobComplete",
            Self::Failed => "Failed",
            Self::Aborted => "Aborted",
        }
    }

    const fn ended(self) -> bool {
        matches!(self, Self::JobComplete | Self::Failed | Self::Aborted)
    }
}

enum Work {
    Query(query::Job),
    Ingest(ingest::Job),
}

struct Job {
    id: SfId,
    /// API name of the object.
    object: &'static str,
    operation: String,
    stage: Stage,
    created: i64,
    /// Last change of the stage.
    moved: i64,
    /// When its data was complete: the queue begins.
    queued: i64,
    version: String,
    format: Format,
    writer: Writer,
    error: Option<String>,
    work: Work,
}

#[derive(Default)]
struct Inner {
    next: u64,
    jobs: BTreeMap<u64, Job>,
}

/// All jobs, and what they used of the day's allowances.
#[derive(Default)]
pub(crate) struct Jobs {
    inner: Mutex<Inner>,
    pub(crate) query_jobs: AtomicU64,
    pub(crate) batches: AtomicU64,
}

impl Jobs {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts against an allowance of the day.
fn count(org: &State, used: &AtomicU64, more: u64, allowed: u64, what: &str) -> Result<(), Error> {
    let before = used.fetch_add(more, Ordering::Relaxed);
    if org.settings().enforce && before + more > allowed {
        used.fetch_sub(more, Ordering::Relaxed);
        return Err(Error::bad(
            "LIMIT_EXCEEDED",
            format!("{what} limit exceeded"),
        ));
    }
    Ok(())
}

/// `/jobs/…`; `path` is what follows.
pub(crate) fn route(org: &State, call: &Call<'_>, path: &[&str]) -> Answer {
    let (kind, rest) = path.split_first().ok_or_else(Error::not_found)?;
    let is_query = match *kind {
        "query" => true,
        "ingest" => false,
        _ => return Err(Error::not_found()),
    };
    let mut inner = org.bulk.lock();
    advance_all(org, &mut inner);
    let inner = &mut *inner;
    match (call.method, rest) {
        ("POST", []) if is_query => create(org, call, inner, query::create(org, call)?),
        ("POST", []) => create(org, call, inner, ingest::create(org, call)?),
        ("GET", []) => Ok(list(inner, is_query)),
        (_, []) => Err(Error::method(call.method)),
        (_, [id, rest @ ..]) => {
            let number = number(id, is_query, inner)?;
            match (call.method, rest) {
                ("GET", []) => Ok(Reply::json(200, &shown(&inner.jobs[&number], true))),
                ("DELETE", []) => delete(inner, number),
                ("PATCH", []) => patch(org, call, inner, number),
                (method, rest) => {
                    let job = inner.jobs.get_mut(&number).ok_or_else(Error::not_found)?;
                    part(org, call, job, method, rest)
                }
            }
        }
    }
}

fn number(id: &str, is_query: bool, inner: &Inner) -> Result<u64, Error> {
    let parsed = SfId::parse(id).filter(|id| id.prefix == PREFIX);
    let job = parsed.and_then(|id| inner.jobs.get(&id.number));
    let fits = |job: &&Job| matches!(job.work, Work::Query(_)) == is_query;
    let job = job.filter(fits).ok_or_else(Error::not_found)?;
    Ok(job.id.number)
}

/// Results and data of a job.
fn part(org: &State, call: &Call<'_>, job: &mut Job, method: &str, rest: &[&str]) -> Answer {
    let name = rest.first().map(|name| name.to_lowercase());
    match (method, &mut job.work, name.as_deref()) {
        ("GET", Work::Query(_), Some("results" | "resultpages")) if job.version != call.version => {
            // The documentation names the status, not the text.
            let message = format!("The job was made with API version {}", job.version);
            Err(Error::new(409, "API_VERSION_MISMATCH", message))
        }
        ("GET", Work::Query(work), Some("results")) => {
            finished(job.stage)?;
            query::results(org, call, work, job.format)
        }
        ("GET", Work::Query(work), Some("resultpages")) => {
            finished(job.stage)?;
            query::pages(org, call, work, job.id)
        }
        ("PUT", Work::Ingest(work), Some("batches")) => {
            if job.stage != Stage::Open {
                return Err(state_error(job.stage));
            }
            ingest::upload(org, call, work)
        }
        ("GET", Work::Ingest(work), Some(which)) => {
            if !job.stage.ended() {
                return Err(state_error(job.stage));
            }
            ingest::results(work, which, job.format)
        }
        ("GET" | "PUT", ..) => Err(Error::not_found()),
        (method, ..) => Err(Error::method(method)),
    }
}

fn finished(stage: Stage) -> Result<(), Error> {
    if stage == Stage::JobComplete {
        return Ok(());
    }
    Err(state_error(stage))
}

fn state_error(stage: Stage) -> Error {
    let message = format!("The job is in state {}", stage.name());
    Error::bad("INVALIDJOBSTATE", message)
}

/// What a new job does, before it has a number.
struct Draft {
    object: &'static str,
    operation: String,
    format: Format,
    stage: Stage,
    work: Work,
}

fn create(org: &State, call: &Call<'_>, inner: &mut Inner, draft: Draft) -> Answer {
    inner.next += 1;
    let now = org.now();
    let mut writer = call.writer();
    writer.origin = writer.origin.replacen("/rest/", "/bulkapi/", 1);
    let job = Job {
        id: SfId::new(PREFIX, inner.next),
        object: draft.object,
        operation: draft.operation,
        stage: draft.stage,
        created: now,
        moved: now,
        queued: now,
        version: call.version.clone(),
        format: draft.format,
        writer,
        error: None,
        work: draft.work,
    };
    let body = shown(&job, false);
    while inner.jobs.len() >= MAX_JOBS {
        inner.jobs.pop_first();
    }
    inner.jobs.insert(inner.next, job);
    Ok(Reply::json(200, &body))
}

fn list(inner: &Inner, is_query: bool) -> Reply {
    let fits = |job: &&Job| matches!(job.work, Work::Query(_)) == is_query;
    let records: Vec<Value> = (inner.jobs.values().filter(fits))
        .map(|job| shown(job, false))
        .collect();
    Reply::json(200, &json!({"done": true, "records": records}))
}

fn delete(inner: &mut Inner, number: u64) -> Answer {
    let stage = inner.jobs[&number].stage;
    // A job at work must be aborted first.
    if !stage.ended() && stage != Stage::Open && stage != Stage::UploadComplete {
        return Err(state_error(stage));
    }
    inner.jobs.remove(&number);
    Ok(Reply::empty(204))
}

fn patch(org: &State, call: &Call<'_>, inner: &mut Inner, number: u64) -> Answer {
    let body = call.object()?;
    let asked = body.get("state").and_then(Value::as_str).unwrap_or("");
    let job = inner.jobs.get_mut(&number).ok_or_else(Error::not_found)?;
    let now = org.now();
    match (asked, job.stage, &mut job.work) {
        ("Aborted", stage, _) if !stage.ended() => {
            job.stage = Stage::Aborted;
            job.moved = now;
        }
        ("UploadComplete", Stage::Open, Work::Ingest(work)) => {
            ingest::close(org, work, job.format)?;
            job.stage = Stage::UploadComplete;
            job.queued = now;
            job.moved = now;
        }
        ("Aborted" | "UploadComplete", stage, _) => return Err(state_error(stage)),
        _ => return Err(Error::bad("INVALIDJOB", "state: Aborted or UploadComplete")),
    }
    Ok(Reply::json(200, &shown(&inner.jobs[&number], true)))
}

/// Forgets what is old and moves every job on to where it is by now.
fn advance_all(org: &State, inner: &mut Inner) {
    let now = org.now();
    inner.jobs.retain(|_, job| now - job.created < JOB_LIFE_MS);
    for job in inner.jobs.values_mut() {
        advance(org, job, now);
    }
}

fn advance(org: &State, job: &mut Job, now: i64) {
    if !matches!(job.stage, Stage::UploadComplete | Stage::InProgress) {
        return;
    }
    let ms = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX / 4);
    let (queue, work) = {
        let settings = org.settings();
        (ms(settings.bulk_queue_ms), ms(settings.bulk_work_ms))
    };
    let at_work = now - job.queued - queue;
    if at_work < 0 {
        return;
    }
    if job.stage == Stage::UploadComplete {
        job.stage = Stage::InProgress;
        job.moved = now;
    }
    let done = at_work >= work;
    let result = match &mut job.work {
        Work::Query(query) if done => query::run(org, query),
        Work::Query(_) => Ok(()),
        Work::Ingest(ingest) => {
            let share = if done {
                1.0
            } else {
                at_work as f64 / work as f64
            };
            let fails = org.settings().bulk_fail;
            let share = if fails { share / 2.0 } else { share };
            ingest::run(org, ingest, &job.operation, &job.writer, share);
            match done && fails {
                true => Err(Error::bad("INTERNAL_ERROR", "The job failed")),
                false => Ok(()),
            }
        }
    };
    if let Err(error) = result {
        job.stage = Stage::Failed;
        job.error = Some(format!("{} : {}", error.code, error.message));
        job.moved = now;
    } else if done {
        job.stage = Stage::JobComplete;
        job.moved = now;
    }
}

/// A job as answers show it; `full` as asked for by itself.
fn shown(job: &Job, full: bool) -> Value {
    let mut body = Map::new();
    let mut set = |key: &str, value: Value| {
        body.insert(key.to_owned(), value);
    };
    set("id", json!(job.id.to_string()));
    set("operation", json!(job.operation));
    set("object", json!(job.object));
    set("createdById", json!(SYNC_USER.to_string()));
    set("createdDate", json!(stamps::datetime(job.created)));
    set("systemModstamp", json!(stamps::datetime(job.moved)));
    set("state", json!(job.stage.name()));
    set("concurrencyMode", json!("Parallel"));
    set("contentType", json!("CSV"));
    set(
        "apiVersion",
        json!(job.version.parse::<f64>().unwrap_or(0.0)),
    );
    set("lineEnding", json!(job.format.line_ending()));
    set("columnDelimiter", json!(job.format.delimiter_name()));
    if let Work::Ingest(work) = &job.work {
        let url = format!(
            "services/data/v{}/jobs/ingest/{}/batches",
            job.version, job.id
        );
        set("contentUrl", json!(url));
        if let Some(field) = work.key_name() {
            set("externalIdFieldName", json!(field));
        }
    }
    if full {
        let (kind, processed) = match &job.work {
            Work::Query(work) => ("V2Query", work.found()),
            Work::Ingest(work) => ("V2Ingest", work.processed()),
        };
        set("jobType", json!(kind));
        set("numberRecordsProcessed", json!(processed));
        set("retries", json!(0));
        set(
            "totalProcessingTime",
            json!((job.moved - job.queued).max(0)),
        );
        match &job.work {
            Work::Query(_) => set("isPkChunkingSupported", json!(true)),
            Work::Ingest(work) => {
                set("numberRecordsFailed", json!(work.failed()));
                set("apiActiveProcessingTime", json!(0));
                set("apexProcessingTime", json!(0));
            }
        }
        if let Some(error) = &job.error {
            set("errorMessage", json!(error));
        }
    }
    Value::Object(body)
}

/// Moves jobs on while nobody asks for them: what was uploaded is done whoever is there to see it.
pub(crate) async fn work(org: Arc<State>) {
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut inner = org.bulk.lock();
        if inner.jobs.values().any(|job| !job.stage.ended()) {
            advance_all(&org, &mut inner);
        }
    }
}

/// A key of a request that must be one of a few words; absent or null is `default`.
fn word<'a>(
    body: &'a Map<String, Value>,
    key: &str,
    default: &'a str,
    known: &[&str],
) -> Result<&'a str, Error> {
    let text = match body.get(key) {
        None | Some(Value::Null) => default,
        Some(value) => value.as_str().unwrap_or(""),
    };
    if known.contains(&text) {
        return Ok(text);
    }
    let message = format!("{key}: expected one of {}", known.join(", "));
    Err(Error::bad("INVALIDJOB", message))
}
