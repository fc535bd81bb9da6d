//! The webhooks journal. Its answers are documented; of its data files only some
//! names are, so they are read with tolerance: what cannot be understood leads to
//! a read of the record.

use serde::Deserialize;
use serde_json::{Map, Value as Json};

use crate::connectors::ServerConfig;
use crate::connectors::journal::{Journal, Place, Told};
use crate::connectors::table::{self, Rule};
use crate::connectors::text::{encode, fingerprint};
use crate::http::{HttpRequest, HttpResponse, Method, Purpose};
use crate::model::{Change, ChangeKind, ErrorClass, Millis, RemoteError, Value};
use crate::value::parse_instant;

use super::catalog::standard_object;
use super::{HubSpot, errors, webhook};

/// Scope of the token that reads it.
pub(crate) const SCOPE: &str = "developer.webhooks_journal.read";
/// The version of the journal; the beta before it has another root.
const ROOT: &str = "/webhooks-journal/journal/2026-03";
const BETA: &str = "/webhooks/v4/journal";

/// Names under which a file may keep its events.
const LISTS: [&str; 4] = ["journalEvents", "events", "results", "entries"];
/// Names under which an answer may keep several places.
const PLACES: [&str; 4] = ["results", "entries", "journalEntries", "journals"];
/// Names under which a change of a property may keep the new value.
const VALUES: [&str; 4] = ["value", "newValue", "propertyValue", "currentValue"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    url: String,
    current_offset: String,
}

fn get(target: String) -> HttpRequest {
    HttpRequest {
        method: Method::Get,
        target,
        headers: vec![("accept".into(), "application/json".into())],
        body: Vec::new(),
        purpose: Purpose::Journal,
    }
}

fn root(config: &ServerConfig) -> &'static str {
    match config.api_version.as_str() {
        "v3" => BETA,
        _ => ROOT,
    }
}

impl Journal for HubSpot {
    fn keeps_ms(&self) -> Millis {
        3 * 86_400_000
    }

    fn next(&self, config: &ServerConfig, after: Option<&str>) -> HttpRequest {
        let root = root(config);
        get(match after {
            Some(offset) => format!("{root}/offset/{}/next", encode(offset)),
            None => format!("{root}/earliest"),
        })
    }

    fn next_many(&self, config: &ServerConfig, after: &str, most: usize) -> Option<HttpRequest> {
        let root = root(config);
        Some(get(format!("{root}/batch/{}/next/{most}", encode(after))))
    }

    /// A list under some name or none, or one place by itself: how several are told is not documented.
    fn places(&self, response: &HttpResponse) -> Result<Vec<Place>, RemoteError> {
        if response.status == 204 || !(200..300).contains(&response.status) {
            return Ok(self.place(response)?.into_iter().collect());
        }
        let list = match serde_json::from_slice(&response.body) {
            Ok(Json::Array(list)) => list,
            Ok(Json::Object(mut map)) => {
                let named = PLACES.iter().find_map(|name| match map.remove(*name) {
                    Some(Json::Array(list)) => Some(list),
                    _ => None,
                });
                named.unwrap_or_else(|| vec![Json::Object(map)])
            }
            _ => return Err(malformed("not places in the journal")),
        };
        let place = |json| {
            let answer: Answer = serde_json::from_value(json)
                .map_err(|_| malformed("not places in the journal: one lacks what a place has"))?;
            Ok(Place {
                offset: answer.current_offset,
                url: answer.url,
            })
        };
        list.into_iter().map(place).collect()
    }

    fn latest(&self, config: &ServerConfig) -> HttpRequest {
        get(format!("{}/latest", root(config)))
    }

    fn place(&self, response: &HttpResponse) -> Result<Option<Place>, RemoteError> {
        if response.status == 204 {
            return Ok(None);
        }
        if !(200..300).contains(&response.status) {
            return Err(errors::classify(response));
        }
        let answer: Answer = serde_json::from_slice(&response.body).map_err(|e| {
            let place = table::where_json_fails(&e);
            malformed(&format!("not a place in the journal: {place}"))
        })?;
        Ok(Some(Place {
            offset: answer.current_offset,
            url: answer.url,
        }))
    }

    fn file(&self, place: &Place) -> HttpRequest {
        get(place.url.clone())
    }

    fn told(&self, response: &HttpResponse, at: Millis) -> Result<Told, RemoteError> {
        let mut told = Told::default();
        for entry in entries(&response.body)? {
            match change(&entry, at) {
                Some(changes) => told.changes.extend(changes),
                None => told.unknown += 1,
            }
        }
        Ok(told)
    }
}

fn malformed(message: &str) -> RemoteError {
    let rule = Rule::new(
        0,
        "",
        ErrorClass::Retry,
        "HubSpot has changed its journal, or something answers in its place; records are found by polling.",
    );
    table::error(&rule, 200, "not_journal", message)
}

/// The entries of a file: a list under some name or none, or a line for each.
fn entries(body: &[u8]) -> Result<Vec<Json>, RemoteError> {
    let broken = |e: serde_json::Error| {
        let place = table::where_json_fails(&e);
        malformed(&format!("not a journal file: {place}"))
    };
    match serde_json::from_slice(body) {
        Ok(Json::Array(list)) => Ok(list),
        Ok(Json::Object(mut file)) => {
            let named = LISTS.iter().find_map(|name| match file.remove(*name) {
                Some(Json::Array(list)) => Some(list),
                _ => None,
            });
            // One entry by itself, or something that says nothing.
            Ok(named.unwrap_or_else(|| vec![Json::Object(file)]))
        }
        Ok(_) => Err(malformed("not a journal file: a bare value")),
        Err(error) => {
            let lines = body.split(|b| *b == b'\n').filter(|l| !l.is_empty());
            let parsed: Result<Vec<Json>, _> = lines.map(serde_json::from_slice).collect();
            match parsed {
                Ok(lines) if lines.len() > 1 => Ok(lines),
                _ => Err(broken(error)),
            }
        }
    }
}

fn text(entry: &Map<String, Json>, names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| match entry.get(*name)? {
        Json::String(text) if !text.is_empty() => Some(text.clone()),
        Json::Number(number) => Some(number.to_string()),
        _ => None,
    })
}

fn object_type(entry: &Map<String, Json>, names: &[&str]) -> Option<String> {
    let name = text(entry, names)?;
    let known = standard_object(&name.to_ascii_lowercase());
    Some(known.map_or(name, |s| s.type_id.to_owned()))
}

fn time(entry: &Map<String, Json>) -> Option<Millis> {
    let names = ["occurredAt", "occurred_at", "timestamp", "publishedAt"];
    parse_instant(&text(entry, &names)?)
}

/// What an entry says; `None` if not even about which record.
fn change(entry: &Json, at: Millis) -> Option<Vec<Change>> {
    let map = entry.as_object()?;
    // In the form of webhooks.
    if map.contains_key("subscriptionType")
        && let Ok(body) = serde_json::to_vec(&[entry])
        && let Ok(changes) = webhook::decode(&body)
    {
        return Some(changes);
    }
    let word = |names| text(map, names).unwrap_or_default().to_ascii_uppercase();
    let (sort, action) = (
        word(&["type", "eventType"]),
        word(&["action", "changeType"]),
    );
    let occurred = time(map);
    let source = text(map, &["changeSource"]);
    let base = Change {
        identity: identity(entry),
        object: String::new(),
        record_id: String::new(),
        kind: ChangeKind::Reread,
        fields: Vec::new(),
        reread: Vec::new(),
        occurred_at: occurred.unwrap_or(at),
        actor: text(map, &["sourceId", "changeSource"]).unwrap_or_default(),
        by_others: source.as_deref().is_some_and(webhook::names_writer),
        mark: source.unwrap_or_else(|| "journal".to_owned()),
        transaction: None,
    };
    if sort.contains("ASSOCIATION") || action.starts_with("ASSOCIATION") {
        return association(map, &action, base);
    }
    let object = object_type(map, &["objectTypeId", "objectType"])?;
    let record_id = text(map, &["objectId", "recordId"])?;
    let mut change = Change {
        object,
        record_id,
        ..base
    };
    change.kind = match action.as_str() {
        _ if sort.contains("PRIVACY") => ChangeKind::PrivacyDelete,
        // Without its time an event has no place among others: the record has.
        _ if occurred.is_none() => ChangeKind::Reread,
        "CREATE" => ChangeKind::Create,
        "DELETE" => ChangeKind::Delete,
        "RESTORE" => ChangeKind::Restore,
        "MERGE" => merged(map, &mut change),
        "UPDATE" => updated(map, &mut change),
        _ => ChangeKind::Reread,
    };
    Some(vec![change])
}

fn merged(map: &Map<String, Json>, change: &mut Change) -> ChangeKind {
    let primary = text(map, &["primaryObjectId"]);
    let Some(into) = text(map, &["newObjectId"]).or_else(|| primary.clone()) else {
        return ChangeKind::Reread;
    };
    let ids = map.get("mergedObjectIds").and_then(Json::as_array);
    let ids = ids.into_iter().flatten().filter_map(|id| match id {
        Json::String(id) => Some(id.clone()),
        Json::Number(id) => Some(id.to_string()),
        _ => None,
    });
    let mut losers: Vec<String> = Vec::new();
    for id in ids.chain(primary) {
        if id != into && !losers.contains(&id) {
            losers.push(id);
        }
    }
    if losers.is_empty() {
        return ChangeKind::Reread;
    }
    change.record_id.clone_from(&into);
    ChangeKind::Merge { into, losers }
}

/// The values of an update, as far as they are told; the other fields are read.
fn updated(map: &Map<String, Json>, change: &mut Change) -> ChangeKind {
    let mut take = |name: &str, value: Option<Value>| match value {
        Some(value) if value.as_deref() != Some("REDACTED") => {
            change.fields.push((name.to_owned(), value));
        }
        _ => change.reread.push(name.to_owned()),
    };
    let changes = ["propertyChanges", "changes", "properties"];
    match changes.iter().find_map(|name| map.get(*name)) {
        Some(Json::Object(changes)) => {
            for (name, json) in changes {
                take(name, value(json));
            }
        }
        Some(Json::Array(changes)) => {
            for json in changes {
                match json {
                    Json::String(name) => take(name, None),
                    Json::Object(change) => {
                        if let Some(name) = text(change, &["name", "propertyName"]) {
                            take(&name, value(json));
                        }
                    }
                    _ => {}
                }
            }
        }
        _ => {}
    }
    if change.fields.is_empty() && change.reread.is_empty() {
        return ChangeKind::Reread;
    }
    ChangeKind::Update
}

/// A value, by itself or in an object that names it; `None` if neither.
fn value(json: &Json) -> Option<Value> {
    match json {
        Json::Object(change) => {
            let hidden = change.get("isSensitive") == Some(&Json::Bool(true));
            let found = VALUES.iter().find_map(|name| change.get(*name));
            found.filter(|_| !hidden).and_then(scalar)
        }
        json => scalar(json),
    }
}

fn scalar(json: &Json) -> Option<Value> {
    match json {
        Json::Object(_) | Json::Array(_) => None,
        json => Some(webhook::value_text(json)),
    }
}

fn association(map: &Map<String, Json>, action: &str, base: Change) -> Option<Vec<Change>> {
    let from = object_type(map, &["fromObjectTypeId", "fromObjectType", "objectTypeId"])?;
    let record_id = text(map, &["fromObjectId", "objectId"])?;
    let to = object_type(map, &["toObjectTypeId", "toObjectType"]);
    let other = text(map, &["toObjectId"]);
    let pair = to.map(|to| Change {
        identity: format!("{}:pair", base.identity),
        object: format!("{from}/{to}"),
        record_id: record_id.clone(),
        ..base.clone()
    });
    let change = Change {
        object: from,
        record_id,
        kind: match other {
            Some(to) => ChangeKind::Association {
                to,
                removed: action.contains("REMOVED"),
                association_type: text(map, &["associationTypeId", "associationType"])
                    .unwrap_or_default(),
            },
            None => ChangeKind::Reread,
        },
        ..base
    };
    Some([change].into_iter().chain(pair).collect())
}

/// Equal for the same entry in another file or a second reading: all that it
/// says, but for when it was published.
fn identity(entry: &Json) -> String {
    let mut entry = entry.clone();
    if let Some(map) = entry.as_object_mut() {
        map.remove("publishedAt");
    }
    format!("journal:{}", fingerprint(&[&entry.to_string()]))
}
