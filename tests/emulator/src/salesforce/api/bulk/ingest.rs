//! Ingest jobs: rows of a CSV written one by one, each with its own result.

use super::csv::Format;
use super::{Draft, Stage, Work, count, word};
use crate::salesforce::State;
use crate::salesforce::api::rows::{self, Upserted};
use crate::salesforce::api::{Answer, Call, Reply};
use crate::salesforce::error::Error;
use crate::salesforce::ids::SfId;
use crate::salesforce::schema::{Obj, at};
use crate::salesforce::tx::{Tx, Writer};
use serde_json::{Map, Value};

/// Rows of one transaction.
const CHUNK: usize = 200;
/// Rows of one batch, as allowances count them.
const BATCH: usize = 10_000;

/// Rows and what became of them, in their order.
pub(crate) struct Job {
    obj: Obj,
    /// Position of the external id of an upsert.
    key: Option<(usize, &'static str)>,
    data: Vec<u8>,
    header: Vec<String>,
    rows: Vec<Vec<String>>,
    /// Of the first rows: id and whether it was made, or the error.
    results: Vec<Result<(SfId, bool), Error>>,
}

impl Job {
    pub(super) fn key_name(&self) -> Option<&'static str> {
        self.key.map(|(_, name)| name)
    }

    pub(super) fn processed(&self) -> usize {
        self.results.len()
    }

    pub(super) fn failed(&self) -> usize {
        self.results.iter().filter(|result| result.is_err()).count()
    }
}

pub(super) fn create(org: &State, call: &Call<'_>) -> Result<Draft, Error> {
    let body = call.object()?;
    let known = ["insert", "update", "upsert", "delete", "hardDelete"];
    let operation = word(&body, "operation", "", &known)?;
    let format = Format::read(&body)?;
    let name = body.get("object").and_then(Value::as_str).unwrap_or("");
    let object = org.schema().find(name).ok_or_else(|| {
        let message = format!("Unable to find object: {name}");
        Error::bad("INVALIDENTITY", message)
    })?;
    let key = match (operation, body.get("externalIdFieldName")) {
        ("upsert", Some(Value::String(field))) => {
            let index = rows::key_field(object, field)?;
            Some((index, object.fields[index].name))
        }
        ("upsert", _) => {
            let message = "externalIdFieldName is required for upsert";
            return Err(Error::bad("INVALIDJOB", message));
        }
        _ => None,
    };
    Ok(Draft {
        object: object.obj.name(),
        operation: operation.to_owned(),
        format,
        stage: Stage::Open,
        work: Work::Ingest(Job {
            obj: object.obj,
            key,
            data: Vec::new(),
            header: Vec::new(),
            rows: Vec::new(),
            results: Vec::new(),
        }),
    })
}

/// Takes a job's data, once.
pub(super) fn upload(org: &State, call: &Call<'_>, job: &mut Job) -> Answer {
    if !job.data.is_empty() {
        let message = "The job's data was uploaded already";
        return Err(Error::bad("INVALIDJOBSTATE", message));
    }
    let csv = call.header("content-type").unwrap_or_default();
    if !csv.starts_with("text/csv") {
        let message = "The content type of job data is text/csv";
        return Err(Error::new(415, "UNSUPPORTED_MEDIA_TYPE", message));
    }
    // The limit is on the data as Salesforce stores it, in base64.
    let stored = (call.body.len() as u64).div_ceil(3) * 4;
    if stored > org.settings().bulk_upload_bytes {
        let message = "Job data is larger than the allowed size";
        return Err(Error::new(413, "REQUEST_ENTITY_TOO_LARGE", message));
    }
    job.data = call.body.to_vec();
    Ok(Reply::empty(201))
}

/// Reads the uploaded data.
pub(super) fn close(org: &State, job: &mut Job, format: Format) -> Result<(), Error> {
    let wrong = |message: String| Error::bad("INVALIDBATCH", message);
    let data = std::mem::take(&mut job.data);
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(format.delimiter())
        .from_reader(data.as_slice());
    let header = reader.headers().map_err(|e| wrong(e.to_string()))?;
    job.header = header.iter().map(str::to_owned).collect();
    for row in reader.records() {
        let row = row.map_err(|e| wrong(e.to_string()))?;
        job.rows.push(row.iter().map(str::to_owned).collect());
    }
    let batches = job.rows.len().div_ceil(BATCH) as u64;
    let allowed = org.settings().bulk_batches;
    count(
        org,
        &org.bulk.batches,
        batches,
        allowed,
        "DailyBulkApiBatches",
    )
}

/// Writes rows until `share` of all are done.
pub(super) fn run(org: &State, job: &mut Job, operation: &str, writer: &Writer, share: f64) {
    let wanted = (job.rows.len() as f64 * share) as usize;
    let wanted = if share >= 1.0 { job.rows.len() } else { wanted };
    while job.results.len() < wanted {
        let from = job.results.len();
        let to = (from + CHUNK).min(job.rows.len());
        let mut tx = Tx::begin(org, writer.clone());
        for at in from..to {
            let before = tx.savepoint();
            let result = write(org, &mut tx, job, operation, &job.rows[at]);
            if result.is_err() {
                tx.rollback(before);
            }
            job.results.push(result);
        }
        tx.commit();
    }
}

/// The cells of a row that say something: an empty one leaves its field alone, `#N/A` empties it.
fn fields(job: &Job, row: &[String]) -> Map<String, Value> {
    let cells = job.header.iter().zip(row);
    let said = cells.filter(|(_, cell)| !cell.is_empty());
    let read = |(name, cell): (&String, &String)| {
        let value = match cell.as_str() {
            "#N/A" => Value::Null,
            text => Value::String(text.to_owned()),
        };
        // A parent by its key: `Account.Ext__c`.
        match name.split_once('.') {
            Some((relation, key)) => {
                let parent = Map::from_iter([(key.to_owned(), value)]);
                (relation.to_owned(), Value::Object(parent))
            }
            None => (name.clone(), value),
        }
    };
    said.map(read).collect()
}

fn write(
    org: &State,
    tx: &mut Tx<'_>,
    job: &Job,
    operation: &str,
    row: &[String],
) -> Result<(SfId, bool), Error> {
    let mut fields = fields(job, row);
    let id_key = fields.keys().find(|name| name.eq_ignore_ascii_case("id"));
    let id_key = id_key.cloned();
    let mut id = || -> Result<SfId, Error> {
        let given = id_key.as_ref().and_then(|key| fields.shift_remove(key));
        let text = given.as_ref().and_then(Value::as_str).unwrap_or_default();
        if text.is_empty() {
            let message = "Id not specified";
            return Err(Error::bad("MISSING_ARGUMENT", message).on(&["Id"]));
        }
        rows::id_of(job.obj, text)
    };
    match operation {
        "insert" => tx.create(job.obj, &fields).map(|id| (id, true)),
        "update" => {
            let id = id()?;
            tx.update(id, &fields).map(|()| (id, false))
        }
        "upsert" => upsert(org, tx, job, fields),
        _ => {
            let id = id()?;
            tx.delete(id)?;
            if operation == "hardDelete" {
                tx.purge(id)?;
            }
            Ok((id, false))
        }
    }
}

fn upsert(
    org: &State,
    tx: &mut Tx<'_>,
    job: &Job,
    fields: Map<String, Value>,
) -> Result<(SfId, bool), Error> {
    let (field, key) = job.key.unwrap_or((at::ID, "Id"));
    let named = |name: &&String| name.eq_ignore_ascii_case(key);
    let value = fields
        .keys()
        .find(named)
        .and_then(|name| fields[name].as_str());
    let missing = || Error::bad("MISSING_ARGUMENT", format!("{key} not specified")).on(&[key]);
    let value = value.ok_or_else(missing)?.trim().to_owned();
    let object = org.schema().object(job.obj);
    match rows::upsert_row(tx, org, object, field, &value, fields, false)? {
        Upserted::Created(id) => Ok((id, true)),
        Upserted::Updated(id) => Ok((id, false)),
        Upserted::Ambiguous(_) => {
            let message =
                format!("{key}: more than one record found for external id field: [{value}]");
            Err(Error::bad("DUPLICATE_EXTERNAL_ID", message).on(&[key]))
        }
    }
}

/// `CODE:message:fields --`, as failed rows show it.
fn error_text(error: &Error) -> String {
    // What plain REST calls a missing row is an invalid reference here.
    let (code, message) = match (error.status, error.code.as_str()) {
        (404, "NOT_FOUND") => ("INVALID_CROSS_REFERENCE_KEY", "invalid cross reference id"),
        (_, code) => (code, error.message.as_str()),
    };
    format!("{code}:{message}:{} --", error.fields.join(", "))
}

/// `successfulResults`, `failedResults` or `unprocessedrecords`, whatever the case: clients differ.
pub(super) fn results(job: &Job, which: &str, format: Format) -> Answer {
    let mut out = Vec::new();
    let own = job.header.iter().map(String::as_str);
    let system: &[&str] = match which {
        "successfulresults" => &["sf__Id", "sf__Created"],
        "failedresults" => &["sf__Id", "sf__Error"],
        "unprocessedrecords" => &[],
        _ => return Err(Error::not_found()),
    };
    format.line(&mut out, system.iter().copied().chain(own));
    for (at, row) in job.rows.iter().enumerate() {
        let own = row.iter().map(String::as_str);
        match (which, job.results.get(at)) {
            ("successfulresults", Some(Ok((id, made)))) => {
                let made = if *made { "true" } else { "false" };
                let id = id.to_string();
                format.line(&mut out, [id.as_str(), made].into_iter().chain(own));
            }
            ("failedresults", Some(Err(error))) => {
                let text = error_text(error);
                format.line(&mut out, ["", text.as_str()].into_iter().chain(own));
            }
            ("unprocessedrecords", None) => format.line(&mut out, own),
            _ => {}
        }
    }
    Ok(Reply::bytes(out).with("content-type", "text/csv".to_owned()))
}
