//! HubSpot requests: paths by API version, pages, searches, batches.

use crate::connectors::text::{encode, names, push_json, push_json_list};
use crate::connectors::{Credential, Keyset, ServerConfig, oauth, table};
use crate::http::{HttpRequest, Method, Purpose};
use crate::model::{FieldType, RemoteError, WriteKind};

use super::catalog::{STANDARD, modified_field};

/// API version used when the server names none.
pub(crate) const DEFAULT_VERSION: &str = "2026-03";
/// API root.
pub(crate) const BASE_URL: &str = "https://api.hubapi.com";
/// Records per list page, ids per batch read, inputs per batch write.
pub(crate) const BATCH: usize = 100;
/// Records per search page.
const SEARCH_LIMIT: usize = 200;
/// Longest `properties` parameter; the whole URL must stay below 8 kB.
const LIST_PROPERTIES_MAX: usize = 7_000;
/// Longest `properties` list of a search, whose body is refused above 3,000
/// characters. The rest is for the filters.
const SEARCH_PROPERTIES_MAX: usize = 2_200;
/// Longest search body that we send.
const SEARCH_BODY_MAX: usize = 2_950;

fn version(config: &ServerConfig) -> &str {
    match config.api_version.trim() {
        "" => DEFAULT_VERSION,
        v => v,
    }
}

/// `/{api}/v3/{rest}` or `/{api}/{area}/{version}/{rest}`: HubSpot moved the
/// version behind the area when it began to name versions by date.
pub(crate) fn path(config: &ServerConfig, v3: &str, dated: &str, rest: &str) -> String {
    match version(config) {
        "v3" => format!("{v3}{rest}"),
        v => format!("{dated}/{}{rest}", encode(v)),
    }
}

/// An object's name as paths have it.
fn called(object: &str) -> String {
    let known = STANDARD.iter().find(|s| s.name == object);
    encode(known.map_or(object, |s| s.path))
}

pub(crate) fn objects_path(config: &ServerConfig, object: &str) -> String {
    let rest = format!("/{}", called(object));
    path(config, "/crm/v3/objects", "/crm/objects", &rest)
}

pub(crate) fn get(target: String, purpose: Purpose) -> HttpRequest {
    HttpRequest {
        method: Method::Get,
        target,
        headers: vec![("accept".into(), "application/json".into())],
        body: Vec::new(),
        purpose,
    }
}

pub(crate) fn post(target: String, body: String, purpose: Purpose) -> HttpRequest {
    HttpRequest {
        method: Method::Post,
        target,
        headers: vec![
            ("accept".into(), "application/json".into()),
            ("content-type".into(), "application/json".into()),
        ],
        body: body.into_bytes(),
        purpose,
    }
}

pub(crate) fn token(
    config: &ServerConfig,
    credential: &Credential,
) -> Result<Option<HttpRequest>, RemoteError> {
    let pairs = match (credential, oauth::grant(credential)) {
        // Such a token is for the journal alone.
        (Credential::ClientCredentials { .. }, Some(mut pairs)) => {
            pairs.push(("scope", super::journal::SCOPE));
            pairs
        }
        (_, Some(pairs)) => pairs,
        (Credential::Jwt { .. }, None) => {
            return Err(table::unusable(
                "credential_kind",
                "HubSpot has no JWT bearer flow",
                "Use a service key or an OAuth refresh token in the credential file.",
            ));
        }
        (_, None) => return Ok(None),
    };
    let root = [&config.login_url, &config.base_url]
        .into_iter()
        .find(|u| !u.is_empty())
        .map_or(BASE_URL, |u| u.trim_end_matches('/'));
    let target = format!("{root}{}", path(config, "/oauth/v1", "/oauth", "/token"));
    Ok(Some(oauth::request(target, &pairs)))
}

pub(crate) fn probe(config: &ServerConfig) -> HttpRequest {
    let target = path(config, "/account-info/v3", "/account-info", "/details");
    get(target, Purpose::Catalog)
}

pub(crate) fn schemas(config: &ServerConfig) -> HttpRequest {
    let target = path(
        config,
        "/crm-object-schemas/v3",
        "/crm-object-schemas",
        "/schemas",
    );
    get(target, Purpose::Catalog)
}

pub(crate) fn properties(config: &ServerConfig, object: &str) -> HttpRequest {
    let rest = format!("/{}", called(object));
    let target = path(config, "/crm/v3/properties", "/crm/properties", &rest);
    get(target, Purpose::Catalog)
}

fn comma_list(fields: &[(String, FieldType)]) -> String {
    let list: Vec<String> = fields.iter().map(|(n, _)| encode(n)).collect();
    list.join(",")
}

/// Whether the fields fit into a list URL.
pub(crate) fn list_fits(fields: &[(String, FieldType)]) -> bool {
    fields.iter().map(|(n, _)| n.len() + 1).sum::<usize>() <= LIST_PROPERTIES_MAX
}

/// Whether the fields fit into a search body.
pub(crate) fn search_fits(fields: &[(String, FieldType)]) -> bool {
    fields.iter().map(|(n, _)| n.len() + 3).sum::<usize>() <= SEARCH_PROPERTIES_MAX
}

pub(crate) fn list(
    config: &ServerConfig,
    object: &str,
    fields: &[(String, FieldType)],
    cursor: Option<&str>,
) -> HttpRequest {
    let mut target = list_target(config, object, false, cursor);
    if !fields.is_empty() && list_fits(fields) {
        target.push_str("&properties=");
        target.push_str(&comma_list(fields));
    }
    get(target, Purpose::Backfill)
}

/// Archived records of the last 90 days, which no search shows.
pub(crate) fn removed(config: &ServerConfig, object: &str, cursor: Option<&str>) -> HttpRequest {
    get(list_target(config, object, true, cursor), Purpose::Poll)
}

fn list_target(
    config: &ServerConfig,
    object: &str,
    archived: bool,
    cursor: Option<&str>,
) -> String {
    let path = objects_path(config, object);
    let mut target = format!("{path}?limit={BATCH}&archived={archived}");
    if let Some(after) = cursor {
        target.push_str("&after=");
        target.push_str(&encode(after));
    }
    target
}

/// `,"properties":[…]`: the fields if they fit, and always the stamp.
fn search_properties(object: &str, fields: &[(String, FieldType)]) -> String {
    let mut out = String::from(",\"properties\":");
    let asked = if search_fits(fields) { fields } else { &[] };
    push_json_list(&mut out, names(&[modified_field(object)], asked));
    out
}

fn search(config: &ServerConfig, object: &str, body: String, purpose: Purpose) -> HttpRequest {
    let target = format!("{}/search", objects_path(config, object));
    post(target, body, purpose)
}

pub(crate) fn count(config: &ServerConfig, object: &str) -> HttpRequest {
    let body = String::from("{\"filterGroups\":[],\"properties\":[],\"limit\":1}");
    search(config, object, body, Purpose::Catalog)
}

/// Everything after `since` in the order (stamp, id): a search takes one sort
/// only, so ties are excluded by filter groups, and what the sort leaves open
/// is put in order when the page is read.
pub(crate) fn poll(
    config: &ServerConfig,
    object: &str,
    fields: &[(String, FieldType)],
    since: &Keyset,
) -> HttpRequest {
    let stamp = modified_field(object);
    let at = since.modified_at;
    let mut sort = stamp;
    let groups = if since.ties {
        sort = "hs_object_id";
        let mut id = String::new();
        push_json(&mut id, &since.id);
        format!(
            concat!(
                r#"{{"filters":[{{"propertyName":"{stamp}","operator":"EQ","value":"{at}"}},"#,
                r#"{{"propertyName":"hs_object_id","operator":"GT","value":{id}}}]}}"#
            ),
            stamp = stamp,
            at = at,
            id = id
        )
    } else if since.id.is_empty() {
        format!(r#"{{"filters":[{{"propertyName":"{stamp}","operator":"GTE","value":"{at}"}}]}}"#)
    } else {
        let mut id = String::new();
        push_json(&mut id, &since.id);
        format!(
            concat!(
                r#"{{"filters":[{{"propertyName":"{stamp}","operator":"EQ","value":"{at}"}},"#,
                r#"{{"propertyName":"hs_object_id","operator":"GT","value":{id}}}]}},"#,
                r#"{{"filters":[{{"propertyName":"{stamp}","operator":"GT","value":"{at}"}}]}}"#
            ),
            stamp = stamp,
            at = at,
            id = id
        )
    };
    let body = format!(
        r#"{{"filterGroups":[{groups}],"sorts":[{{"propertyName":"{sort}","direction":"ASCENDING"}}],"limit":{SEARCH_LIMIT}{}}}"#,
        search_properties(object, fields)
    );
    search(config, object, body, Purpose::Poll)
}

/// The first record in the order of ids that has at least this one. List cursors
/// are ids of records, so this gives a place where a list may start.
pub(crate) fn by_id(config: &ServerConfig, object: &str, id: &str, order: &str) -> HttpRequest {
    let mut value = String::new();
    push_json(&mut value, id);
    let body = format!(
        concat!(
            r#"{{"filterGroups":[{{"filters":[{{"propertyName":"hs_object_id","operator":"GTE","value":{}}}]}}],"#,
            r#""sorts":[{{"propertyName":"hs_object_id","direction":"{}"}}],"limit":1,"properties":["hs_object_id"]}}"#
        ),
        value, order
    );
    search(config, object, body, Purpose::Backfill)
}

fn batch_read(
    config: &ServerConfig,
    object: &str,
    fields: &[(String, FieldType)],
    ids: &[String],
    id_property: Option<&str>,
    purpose: Purpose,
    archived: bool,
) -> HttpRequest {
    let mut body = String::with_capacity(64 + ids.len() * 24 + fields.len() * 24);
    body.push_str("{\"inputs\":[");
    for (i, id) in ids.iter().enumerate() {
        body.push_str(if i > 0 { ",{\"id\":" } else { "{\"id\":" });
        push_json(&mut body, id);
        body.push('}');
    }
    body.push_str("],\"properties\":");
    // The losers of merges answer under the survivor's id; this list tells.
    push_json_list(&mut body, names(&["hs_merged_object_ids"], fields));
    if let Some(property) = id_property {
        body.push_str(",\"idProperty\":");
        push_json(&mut body, property);
    }
    body.push('}');
    let path = objects_path(config, object);
    let target = format!("{path}/batch/read?archived={archived}");
    post(target, body, purpose)
}

pub(crate) fn read(
    config: &ServerConfig,
    object: &str,
    fields: &[(String, FieldType)],
    ids: &[String],
) -> HttpRequest {
    batch_read(config, object, fields, ids, None, Purpose::ReadBack, false)
}

/// Fields by which a batch read finds records, without a search's limits and lag.
fn finds_by_read(object: &str, field: &str) -> bool {
    field == super::OUR_UNIQUE
        || (field == "email" && matches!(object, "contacts" | "contact" | "0-1"))
}

pub(crate) fn find(
    config: &ServerConfig,
    object: &str,
    fields: &[(String, FieldType)],
    field: &str,
    values: &[String],
) -> HttpRequest {
    if finds_by_read(object, field) {
        let (by, purpose) = (Some(field), Purpose::Match);
        return batch_read(config, object, fields, values, by, purpose, false);
    }
    let mut body = String::from("{\"filterGroups\":[{\"filters\":[{\"propertyName\":");
    push_json(&mut body, field);
    body.push_str(",\"operator\":\"IN\",\"values\":");
    let lower: Vec<String> = values.iter().map(|v| v.to_lowercase()).collect();
    push_json_list(&mut body, lower.iter().map(String::as_str));
    body.push_str("}]}],\"limit\":");
    body.push_str(&SEARCH_LIMIT.to_string());
    body.push_str(&search_properties(object, fields));
    body.push('}');
    search(config, object, body, Purpose::Match)
}

/// A search never shows archived records; a batch read by our own property does.
pub(crate) fn find_removed(
    config: &ServerConfig,
    object: &str,
    fields: &[(String, FieldType)],
    field: &str,
    values: &[String],
) -> Option<HttpRequest> {
    let (by, purpose) = (Some(field), Purpose::Match);
    let read = || batch_read(config, object, fields, values, by, purpose, true);
    (field == super::OUR_UNIQUE).then(read)
}

pub(crate) fn find_batch(
    object: &str,
    fields: &[(String, FieldType)],
    field: &str,
    values: &[String],
) -> usize {
    if finds_by_read(object, field) {
        return values.len().clamp(1, BATCH);
    }
    let mut left = SEARCH_BODY_MAX
        .saturating_sub(110 + field.len())
        .saturating_sub(search_properties(object, fields).chars().count());
    let mut fit = 0;
    let mut text = String::new();
    for value in values.iter().take(BATCH) {
        text.clear();
        push_json(&mut text, value);
        let size = text.chars().count() + 1;
        if size > left {
            break;
        }
        left -= size;
        fit += 1;
    }
    fit.max(1)
}

/// Path of a batch write.
pub(crate) fn push_target(
    config: &ServerConfig,
    object: &str,
    kind: WriteKind,
    by_unique: bool,
) -> String {
    let verb = match (kind, by_unique) {
        (WriteKind::Create, true) => "upsert",
        (WriteKind::Create, false) => "create",
        (WriteKind::Update, _) => "update",
        (WriteKind::Delete, _) => "archive",
    };
    format!("{}/batch/{verb}", objects_path(config, object))
}
