//! The REST API below `/services/data/vXX.X`. [`dispatch`] is plain code from call to reply, so that composite requests run
//! their parts through the same door as HTTP.

pub(crate) mod bulk;
mod collections;
mod composite;
mod describe;
pub(crate) mod http;
mod limits;
pub(crate) mod query;
mod replicate;
mod rows;
pub(crate) mod running;

use super::State;
use super::error::Error;
use super::session::SYNC_USER;
use super::store::Store;
use super::tx::{Tx, Writer};
use serde_json::{Map, Value, json};

/// Versions that are served; older ones are gone, newer ones do not exist yet.
pub(crate) const VERSIONS: std::ops::RangeInclusive<u32> = 62..=67;

/// A request inside one API version.
pub(crate) struct Call<'a> {
    pub(crate) method: &'a str,
    /// Segments after the version, decoded.
    pub(crate) path: Vec<String>,
    pub(crate) query: Vec<(String, String)>,
    /// Lower-case names.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: &'a [u8],
    /// `62.0`
    pub(crate) version: String,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    /// JSON; empty for answers without a body.
    pub(crate) body: Vec<u8>,
    /// Rows that are rendered while they are sent, instead of a body.
    pub(crate) rows: Option<bulk::Rows>,
}

impl Reply {
    /// A JSON answer.
    pub(crate) fn json(status: u16, body: &Value) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.to_string().into_bytes(),
            rows: None,
        }
    }

    /// An answer without a body.
    pub(crate) fn empty(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            rows: None,
        }
    }

    /// 200 with JSON bytes.
    pub(crate) fn bytes(body: Vec<u8>) -> Self {
        Self {
            status: 200,
            headers: Vec::new(),
            body,
            rows: None,
        }
    }

    /// Adds a header.
    pub(crate) fn with(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }
}

impl From<Error> for Reply {
    fn from(error: Error) -> Self {
        Self::json(error.status, &error.to_rest())
    }
}

/// What handlers answer.
pub(crate) type Answer = Result<Reply, Error>;

impl Call<'_> {
    /// The value of a query parameter.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// One `key=value` of a header that holds several, such as `Sforce-Query-Options: batchSize=200`.
    pub(crate) fn option(&self, header: &str, key: &str) -> Option<&str> {
        let parts = self
            .header(header)?
            .split([',', ';'])
            .filter_map(|part| part.split_once('='));
        parts
            .map(|(name, value)| (name.trim(), value.trim()))
            .find(|(name, _)| name.eq_ignore_ascii_case(key))
            .map(|(_, value)| value)
    }

    /// The body as a JSON object.
    pub(crate) fn object(&self) -> Result<Map<String, Value>, Error> {
        serde_json::from_slice(self.body).map_err(|error| {
            Error::json(format!(
                "The HTTP entity body is required to be a JSON object: {error}"
            ))
        })
    }

    /// The caller as change events will name it.
    pub(crate) fn writer(&self) -> Writer {
        let mut origin = format!("com/salesforce/api/rest/{}", self.version);
        if let Some(client) = self.option("sforce-call-options", "client") {
            origin.push_str(";client=");
            origin.push_str(client);
        }
        let allow = self.option("sforce-duplicate-rule-header", "allowSave");
        Writer {
            user: SYNC_USER,
            origin,
            system: false,
            allow_duplicates: allow.is_some_and(|text| text.eq_ignore_ascii_case("true")),
        }
    }

    /// `/services/data/v62.0`
    pub(crate) fn root(&self) -> String {
        format!("/services/data/v{}", self.version)
    }
}

/// Answers a call. Every error is already in the REST shape.
pub(crate) fn dispatch(org: &State, call: &Call<'_>) -> Reply {
    route(org, call, None).unwrap_or_else(Reply::from)
}

/// Answers a call, inside a transaction when there is one.
pub(crate) fn route(org: &State, call: &Call<'_>, tx: Option<&mut Tx<'_>>) -> Answer {
    let path: Vec<&str> = call.path.iter().map(String::as_str).collect();
    match (call.method, path.as_slice()) {
        ("GET", []) => Ok(resources(call)),
        ("GET", ["limits"]) => Ok(limits::limits(org)),
        ("GET", ["query" | "queryAll", cursor]) => query::more(org, call, cursor, tx),
        ("GET", ["sobjects"]) => Ok(describe::global(org, call)),
        ("GET", ["sobjects", object]) => describe::basic(org, call, object),
        ("GET", ["sobjects", object, "describe"]) => describe::full(org, call, object),
        ("GET", ["query"]) => query::start(org, call, tx, false),
        ("GET", ["queryAll"]) => query::start(org, call, tx, true),
        ("GET", ["event", "eventSchema", id]) => describe::schema_by_id(org, id),
        ("GET", ["sobjects", event, "eventSchema"]) => describe::schema_of(org, event),
        ("GET", ["sobjects", ..]) => with_store(org, tx, |store| read(org, call, store, &path)),
        (_, ["composite", "sobjects", ..]) => collections::route(org, call, &path[2..], tx),
        ("POST", ["composite"]) if tx.is_none() => composite::composite(org, call),
        ("POST", ["composite", "batch"]) if tx.is_none() => composite::batch(org, call),
        ("POST" | "PATCH" | "DELETE", ["sobjects", ..]) => {
            in_tx(org, call, tx, |tx| write(tx, org, call, &path[1..]))
        }
        (_, ["jobs", rest @ ..]) if tx.is_none() => bulk::route(org, call, rest),
        (
            method,
            [
                "limits" | "query" | "queryAll" | "sobjects" | "composite",
                ..,
            ],
        ) if method != "GET" || path[0] == "composite" => Err(Error::method(method)),
        _ => Err(Error::not_found()),
    }
}

/// Runs a read on the store: the transaction's own view of it inside one.
pub(crate) fn with_store<T>(
    org: &State,
    tx: Option<&mut Tx<'_>>,
    work: impl FnOnce(&Store) -> T,
) -> T {
    match tx {
        Some(tx) => work(&tx.store),
        None => work(&org.read_store()),
    }
}

fn read(org: &State, call: &Call<'_>, store: &Store, path: &[&str]) -> Answer {
    match path {
        ["sobjects", object, "updated"] => replicate::updated(org, call, store, object),
        ["sobjects", object, "deleted"] => replicate::deleted(org, call, store, object),
        ["sobjects", object, id] => rows::get(org, call, store, object, id),
        ["sobjects", object, field, value] => {
            rows::get_by_key(org, call, store, object, field, value)
        }
        _ => Err(Error::not_found()),
    }
}

/// Runs a write in the given transaction, or in one of its own: kept when it succeeds, taken back when not.
pub(crate) fn in_tx(
    org: &State,
    call: &Call<'_>,
    tx: Option<&mut Tx<'_>>,
    work: impl FnOnce(&mut Tx<'_>) -> Answer,
) -> Answer {
    if let Some(tx) = tx {
        return work(tx);
    }
    let mut tx = Tx::begin(org, call.writer());
    let reply = work(&mut tx)?;
    if reply.status < 400 {
        tx.commit();
    }
    Ok(reply)
}

/// A write of one row; `path` starts with the object.
fn write(tx: &mut Tx<'_>, org: &State, call: &Call<'_>, path: &[&str]) -> Answer {
    match (call.method, path) {
        ("POST", [object] | [object, "Id"]) => rows::create(tx, org, call, object),
        ("PATCH", [object, id]) => rows::update(tx, org, call, object, id),
        ("DELETE", [object, id]) => rows::delete(tx, org, object, id),
        ("PATCH", [object, field, value]) => rows::upsert(tx, org, call, object, field, value),
        ("DELETE", [object, field, value]) => {
            rows::delete_by_key(tx, org, call, object, field, value)
        }
        (method, _) => Err(Error::method(method)),
    }
}

fn resources(call: &Call<'_>) -> Reply {
    let root = call.root();
    let names = [
        "sobjects",
        "query",
        "queryAll",
        "limits",
        "composite",
        "jobs",
    ];
    let map: Map<String, Value> = names
        .iter()
        .map(|name| ((*name).to_owned(), json!(format!("{root}/{name}"))))
        .collect();
    Reply::json(200, &Value::Object(map))
}
