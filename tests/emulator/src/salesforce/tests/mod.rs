//! Rules that the CRMs' client libraries do not reach, through the same door as HTTP.

mod bulk;
mod events;
mod pubsub;
mod queries;
mod sales;
mod writes;

use super::State;
use super::api::{Call, Reply, dispatch, http::parse_query};
use crate::cli::Options;
use crate::shared::Shared;
use serde_json::Value;
use std::sync::Arc;

/// An org with `contacts` contacts.
fn org(contacts: u64) -> Arc<State> {
    let options = Options {
        contacts,
        ..Options::defaults()
    };
    State::start(Shared::new(options)).unwrap()
}

/// Calls the API; `path` starts after the version and may have a query.
fn call(org: &State, method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> Reply {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    raw(org, method, path, headers, body.as_bytes(), "62.0")
}

/// The same with any body and API version.
fn raw(
    org: &State,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    version: &str,
) -> Reply {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let call = Call {
        method,
        path: path
            .split('/')
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect(),
        query: parse_query(query),
        headers: headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        body,
        version: version.to_owned(),
    };
    dispatch(org, &call)
}

fn body(reply: &Reply) -> Value {
    serde_json::from_slice(&reply.body).unwrap_or(Value::Null)
}

fn send(org: &State, method: &str, path: &str, json: Value) -> (u16, Value) {
    let reply = call(org, method, path, &[], &json);
    (reply.status, body(&reply))
}

fn soql(org: &State, query: &str) -> Value {
    let escaped: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
    body(&call(
        org,
        "GET",
        &format!("query?q={escaped}"),
        &[],
        &Value::Null,
    ))
}

/// Ids of all pages.
fn ids(org: &State, query: &str) -> Vec<String> {
    let mut page = soql(org, query);
    let mut out = Vec::new();
    loop {
        let records = page["records"]
            .as_array()
            .unwrap_or_else(|| panic!("{query}: {page}"));
        out.extend(
            records
                .iter()
                .map(|row| row["Id"].as_str().unwrap().to_owned()),
        );
        let Some(next) = page["nextRecordsUrl"].as_str() else {
            return out;
        };
        let total = page["totalSize"].clone();
        page = body(&call(
            org,
            "GET",
            next.strip_prefix("/services/data/v62.0/").unwrap(),
            &[],
            &Value::Null,
        ));
        assert_eq!(page["totalSize"], total, "the same total on every page");
    }
}
