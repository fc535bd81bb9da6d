//! Salesforce requests: describe, SOQL, collections.

use std::fmt::Write as _;

use crate::connectors::text::{encode, names, push_json_list};
use crate::connectors::{Keyset, ServerConfig};
use crate::http::{HttpRequest, Method, Purpose};
use crate::model::FieldType;
use crate::value::format_instant;

/// API version used when the server names none.
pub(crate) const DEFAULT_VERSION: &str = "62.0";
/// Rows per query, which is also the most of one page.
pub(crate) const QUERY_LIMIT: u64 = 2_000;
/// Records per collection call.
pub(crate) const BATCH: usize = 200;
/// Longest query, percent-encoded: the URI may have 16,384 bytes.
const QUERY_MAX: usize = 14_000;
/// Longest list of fields in a query; the rest is for conditions.
const FIELDS_MAX: usize = 9_000;

/// Objects whose rows cannot be in the recycle bin: they lack `IsDeleted`.
const WITHOUT_BIN: &[&str] = &[
    "User",
    "Profile",
    "UserRole",
    "Group",
    "PermissionSet",
    "Organization",
    "RecordType",
    "BusinessHours",
    "EmailTemplate",
    "Folder",
];

/// `/services/data/vNN.N` of the server.
pub(crate) fn root(config: &ServerConfig) -> String {
    let version = config.api_version.trim().trim_start_matches(['v', 'V']);
    let version = if version.is_empty() {
        DEFAULT_VERSION
    } else {
        version
    };
    format!("/services/data/v{}", encode(version))
}

pub(crate) fn get(target: String, purpose: Purpose) -> HttpRequest {
    bare(Method::Get, target, purpose)
}

pub(crate) fn bare(method: Method, target: String, purpose: Purpose) -> HttpRequest {
    HttpRequest {
        method,
        target,
        headers: vec![("accept".into(), "application/json".into())],
        body: Vec::new(),
        purpose,
    }
}

pub(crate) fn with_body(
    method: Method,
    target: String,
    body: String,
    purpose: Purpose,
) -> HttpRequest {
    let mut request = bare(method, target, purpose);
    request
        .headers
        .push(("content-type".into(), "application/json".into()));
    request.body = body.into_bytes();
    request
}

/// A SOQL string literal.
pub(crate) fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('\'');
    for c in text.chars() {
        match c {
            '\'' => out.push_str("\\'"),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out.push('\'');
    out
}

/// An API name, or nothing of it that is none: names go into queries bare.
pub(crate) fn name(text: &str) -> String {
    text.chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '_')
        .collect()
}

/// Whether the fields fit into a query URL.
pub(crate) fn query_fits(fields: &[(String, FieldType)]) -> bool {
    fields.iter().map(|(n, _)| n.len() + 1).sum::<usize>() <= FIELDS_MAX
}

fn has_bin(object: &str) -> bool {
    !WITHOUT_BIN.contains(&object)
}

/// `SELECT … FROM object`, with the fields if they fit and always id and stamp.
fn select(object: &str, fields: &[(String, FieldType)], with_deleted: bool) -> String {
    let asked = if query_fits(fields) { fields } else { &[] };
    let mut system = vec!["Id", "SystemModstamp"];
    if with_deleted && has_bin(object) {
        system.push("IsDeleted");
    }
    let list: Vec<String> = names(&system, asked).into_iter().map(name).collect();
    format!("SELECT {} FROM {}", list.join(","), name(object))
}

fn query(config: &ServerConfig, soql: &str, with_deleted: bool, purpose: Purpose) -> HttpRequest {
    let verb = if with_deleted { "queryAll" } else { "query" };
    get(
        format!("{}/{verb}?q={}", root(config), encode(soql)),
        purpose,
    )
}

/// Pages go by id, not by server-side cursor: a cursor dies in two days or
/// with the session, an id does not.
pub(crate) fn list(
    config: &ServerConfig,
    object: &str,
    fields: &[(String, FieldType)],
    cursor: Option<&str>,
) -> HttpRequest {
    let mut soql = select(object, fields, false);
    if let Some(id) = cursor {
        let _ = write!(soql, " WHERE Id > {}", literal(id));
    }
    let _ = write!(soql, " ORDER BY Id LIMIT {QUERY_LIMIT}");
    query(config, &soql, false, Purpose::Backfill)
}

pub(crate) fn poll(
    config: &ServerConfig,
    object: &str,
    fields: &[(String, FieldType)],
    since: &Keyset,
) -> HttpRequest {
    let mut soql = select(object, fields, true);
    let at = format_instant(since.modified_at)
        .unwrap_or_else(|| String::from("1970-01-01T00:00:00.000Z"));
    let _ = if since.id.is_empty() {
        write!(soql, " WHERE SystemModstamp >= {at}")
    } else {
        let id = literal(&since.id);
        write!(
            soql,
            " WHERE (SystemModstamp = {at} AND Id > {id}) OR SystemModstamp > {at}"
        )
    };
    let _ = write!(soql, " ORDER BY SystemModstamp, Id LIMIT {QUERY_LIMIT}");
    query(config, &soql, true, Purpose::Poll)
}

/// Reads by id with the fields in the body, so that any number fits.
pub(crate) fn read(
    config: &ServerConfig,
    object: &str,
    fields: &[(String, FieldType)],
    ids: &[String],
) -> HttpRequest {
    let mut body = String::with_capacity(32 + ids.len() * 22 + fields.len() * 24);
    body.push_str("{\"ids\":");
    push_json_list(&mut body, ids.iter().map(String::as_str));
    body.push_str(",\"fields\":");
    push_json_list(&mut body, names(&["Id", "SystemModstamp"], fields));
    body.push('}');
    let target = format!("{}/composite/sobjects/{}", root(config), encode(object));
    with_body(Method::Post, target, body, Purpose::ReadBack)
}

/// Objects whose losers of merges go to the recycle bin with a pointer to the
/// survivor; their events tell a removal only.
pub(crate) const MERGEABLE: &[&str] = &["Account", "Contact", "Lead", "Case"];

/// Names the survivor of a merge.
pub(crate) const MASTER: &str = "MasterRecordId";

/// Whom removed records were merged into.
pub(crate) fn fate(config: &ServerConfig, object: &str, ids: &[String]) -> HttpRequest {
    let list: Vec<String> = ids.iter().map(|id| literal(id)).collect();
    let soql = format!(
        "SELECT Id,SystemModstamp,IsDeleted,{MASTER} FROM {} WHERE Id IN ({}) ORDER BY Id LIMIT {QUERY_LIMIT}",
        name(object),
        list.join(",")
    );
    query(config, &soql, true, Purpose::ReadBack)
}

pub(crate) fn find(
    config: &ServerConfig,
    object: &str,
    fields: &[(String, FieldType)],
    field: &str,
    values: &[String],
) -> HttpRequest {
    let list: Vec<String> = values.iter().map(|v| literal(v)).collect();
    let mut soql = select(object, fields, false);
    let _ = write!(
        soql,
        " WHERE {} IN ({}) ORDER BY Id LIMIT {QUERY_LIMIT}",
        name(field),
        list.join(",")
    );
    query(config, &soql, false, Purpose::Match)
}

pub(crate) fn find_removed(
    config: &ServerConfig,
    object: &str,
    fields: &[(String, FieldType)],
    field: &str,
    values: &[String],
) -> Option<HttpRequest> {
    let list: Vec<String> = values.iter().map(|v| literal(v)).collect();
    let mut soql = select(object, fields, true);
    let _ = write!(
        soql,
        " WHERE {} IN ({}) AND IsDeleted = true ORDER BY Id LIMIT {QUERY_LIMIT}",
        name(field),
        list.join(",")
    );
    has_bin(object).then(|| query(config, &soql, true, Purpose::Match))
}

pub(crate) fn find_batch(
    object: &str,
    fields: &[(String, FieldType)],
    field: &str,
    values: &[String],
) -> usize {
    let mut left =
        QUERY_MAX.saturating_sub(encode(&select(object, fields, true)).len() + field.len() + 110);
    let mut fit = 0;
    for value in values.iter().take(BATCH) {
        let size = encode(&literal(value)).len() + 3;
        if size > left {
            break;
        }
        left -= size;
        fit += 1;
    }
    fit.max(1)
}

pub(crate) fn count(config: &ServerConfig, object: &str) -> HttpRequest {
    let soql = format!("SELECT COUNT() FROM {}", name(object));
    query(config, &soql, false, Purpose::Catalog)
}

pub(crate) fn time_zone(config: &ServerConfig) -> HttpRequest {
    let soql = "SELECT TimeZoneSidKey FROM Organization LIMIT 1";
    query(config, soql, false, Purpose::Catalog)
}

pub(crate) fn probe(config: &ServerConfig) -> HttpRequest {
    get(format!("{}/limits", root(config)), Purpose::Catalog)
}

pub(crate) fn objects(config: &ServerConfig) -> HttpRequest {
    get(format!("{}/sobjects", root(config)), Purpose::Catalog)
}

pub(crate) fn describe(config: &ServerConfig, object: &str, since: Option<&str>) -> HttpRequest {
    let target = format!("{}/sobjects/{}/describe", root(config), encode(object));
    let mut request = get(target, Purpose::Catalog);
    if let Some(since) = since {
        let header = ("if-modified-since".into(), since.into());
        request.headers.push(header);
    }
    request
}

/// Request for the Avro schema of an event, where gRPC is not at hand.
pub fn event_schema(config: &ServerConfig, schema_id: &str) -> HttpRequest {
    let target = format!(
        "{}/event/eventSchema/{}?payloadFormat=COMPACT",
        root(config),
        encode(schema_id)
    );
    get(target, Purpose::Catalog)
}
