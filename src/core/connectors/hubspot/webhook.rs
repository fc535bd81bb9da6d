//! HubSpot webhooks: signatures over the raw bytes, and events.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::connectors::SignatureError;
use crate::connectors::table::{self, Rule};
use crate::connectors::text::{fingerprint, hex};
use crate::http::Delivery;
use crate::model::{Change, ChangeKind, ErrorClass, Millis, RemoteError, Value};
use crate::secret::Secret;

use super::catalog::standard_object;

/// Oldest timestamp accepted.
const PAST_MS: i64 = 300_000;
/// Furthest timestamp in the future accepted: clocks differ, but not by more.
const FUTURE_MS: i64 = 60_000;
/// `changeSource` of what people did in HubSpot's own pages; programs, ours too, have
/// other names in common.
const BY_PEOPLE: &str = "CRM_UI";
/// Most events in one delivery.
pub const EVENTS_MAX: usize = 100;

/// Whether a change source is that of somebody at the screen.
pub(super) fn names_writer(source: &str) -> bool {
    source.trim_end_matches('/') == BY_PEOPLE
}

/// Which signatures are good enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    /// v3 only: the one with a timestamp.
    V3,
    /// v3 if present, else v2 or v1, which can be replayed for ever.
    Old,
}

/// Checks a delivery's signature in constant time.
///
/// With [`Accept::Old`] a delivery that has a v3 signature is still judged by
/// it alone.
pub fn verify(
    delivery: &Delivery,
    secret: &Secret,
    now: Millis,
    accept: Accept,
) -> Result<(), SignatureError> {
    if let Some(signature) = header(delivery, "x-hubspot-signature-v3") {
        return verify_v3(delivery, secret, signature, now);
    }
    if accept == Accept::V3 {
        return Err(SignatureError::Missing);
    }
    let signature = header(delivery, "x-hubspot-signature").ok_or(SignatureError::Missing)?;
    let expected = match header(delivery, "x-hubspot-signature-version") {
        Some("v1") => signature_v1(secret, &delivery.body),
        Some("v2") => signature_v2(secret, &delivery.method, &delivery.uri, &delivery.body),
        _ => return Err(SignatureError::Missing),
    };
    equal(expected.as_bytes(), signature.as_bytes())
}

fn header<'a>(delivery: &'a Delivery, name: &str) -> Option<&'a str> {
    delivery
        .headers
        .iter()
        .find(|(n, _)| n == name)
        .map(|(_, v)| v.as_str())
}

fn equal(expected: &[u8], given: &[u8]) -> Result<(), SignatureError> {
    if bool::from(expected.ct_eq(given)) {
        Ok(())
    } else {
        Err(SignatureError::Mismatch)
    }
}

fn verify_v3(
    delivery: &Delivery,
    secret: &Secret,
    signature: &str,
    now: Millis,
) -> Result<(), SignatureError> {
    let stamp = header(delivery, "x-hubspot-request-timestamp");
    let stamp = stamp.ok_or(SignatureError::BadTimestamp)?;
    let at: i64 = stamp.parse().map_err(|_| SignatureError::BadTimestamp)?;
    let age = i128::from(now) - i128::from(at);
    if age > i128::from(PAST_MS) || age < -i128::from(FUTURE_MS) {
        return Err(SignatureError::Stale);
    }
    let of = |uri: &str| signature_v3(secret, &delivery.method, uri, &delivery.body, stamp);
    let decoded = decode_uri(&delivery.uri);
    let verdict = equal(of(&decoded).as_bytes(), signature.as_bytes());
    // HubSpot's documentation decodes the URI before hashing, its SDKs do not.
    if verdict.is_err() && decoded != delivery.uri {
        return equal(of(&delivery.uri).as_bytes(), signature.as_bytes());
    }
    verdict
}

/// v1: hex of SHA-256 over secret and body.
pub fn signature_v1(secret: &Secret, body: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(secret.expose());
    hash.update(body);
    hex(&hash.finalize())
}

/// v2: hex of SHA-256 over secret, method, URI and body.
pub fn signature_v2(secret: &Secret, method: &str, uri: &str, body: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(secret.expose());
    hash.update(method);
    hash.update(uri);
    hash.update(body);
    hex(&hash.finalize())
}

/// v3: base64 of HMAC-SHA256 over method, URI, body and the timestamp as its header's text.
pub fn signature_v3(
    secret: &Secret,
    method: &str,
    uri: &str,
    body: &[u8],
    timestamp: &str,
) -> String {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()) else {
        return String::new();
    };
    mac.update(method.as_bytes());
    mac.update(uri.as_bytes());
    mac.update(body);
    mac.update(timestamp.as_bytes());
    BASE64.encode(mac.finalize().into_bytes())
}

/// Decodes the escapes that HubSpot decodes before hashing, and no others.
fn decode_uri(uri: &str) -> String {
    const TABLE: [(&str, char); 12] = [
        ("3A", ':'),
        ("2F", '/'),
        ("3F", '?'),
        ("40", '@'),
        ("21", '!'),
        ("24", '$'),
        ("27", '\''),
        ("28", '('),
        ("29", ')'),
        ("2A", '*'),
        ("2C", ','),
        ("3B", ';'),
    ];
    let mut out = String::with_capacity(uri.len());
    let mut rest = uri;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let escape = rest.get(at + 1..at + 3).unwrap_or_default();
        match TABLE.iter().find(|(e, _)| e.eq_ignore_ascii_case(escape)) {
            Some((_, c)) => {
                out.push(*c);
                rest = &rest[at + 3..];
            }
            None => {
                out.push('%');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    #[serde(alias = "eventType")]
    subscription_type: String,
    #[serde(default, deserialize_with = "crate::connectors::rows::id")]
    portal_id: String,
    occurred_at: Millis,
    #[serde(default, deserialize_with = "crate::connectors::rows::id")]
    object_id: String,
    #[serde(default)]
    object_type_id: Option<String>,
    #[serde(default)]
    property_name: Option<String>,
    #[serde(default)]
    property_value: serde_json::Value,
    #[serde(default)]
    change_source: Option<String>,
    #[serde(default)]
    source_id: Option<String>,
    #[serde(default)]
    is_sensitive: Option<bool>,
    #[serde(default, deserialize_with = "crate::connectors::rows::id")]
    primary_object_id: String,
    #[serde(default, deserialize_with = "crate::connectors::rows::ids")]
    merged_object_ids: Vec<String>,
    #[serde(default, deserialize_with = "crate::connectors::rows::id")]
    new_object_id: String,
    #[serde(default)]
    association_type: Option<String>,
    #[serde(default, deserialize_with = "crate::connectors::rows::id")]
    association_type_id: String,
    #[serde(default, deserialize_with = "crate::connectors::rows::id")]
    from_object_id: String,
    #[serde(default, deserialize_with = "crate::connectors::rows::id")]
    to_object_id: String,
    #[serde(default)]
    from_object_type_id: Option<String>,
    #[serde(default)]
    to_object_type_id: Option<String>,
    #[serde(default)]
    association_removed: Option<bool>,
}

fn malformed(code: &str, message: &str) -> RemoteError {
    let rule = Rule::new(
        0,
        "",
        ErrorClass::FixData,
        "The sender is not HubSpot, or HubSpot has changed its webhook format; the delivery is refused.",
    );
    table::error(&rule, 0, code, message)
}

/// Decodes a webhook body: a JSON array of at most [`EVENTS_MAX`] events.
pub fn decode(body: &[u8]) -> Result<Vec<Change>, RemoteError> {
    let events: Vec<Event> = serde_json::from_slice(body).map_err(|e| {
        let place = table::where_json_fails(&e);
        malformed("not_json", &format!("not a list of events: {place}"))
    })?;
    if events.len() > EVENTS_MAX {
        let message = format!(
            "{} events in one delivery, {EVENTS_MAX} allowed",
            events.len()
        );
        return Err(malformed("too_many_events", &message));
    }
    let mut changes = Vec::with_capacity(events.len());
    for event in events {
        let pair = pair(&event);
        let change = change(event)?;
        let told = pair.map(|object| Change {
            identity: format!("{}:pair", change.identity),
            object,
            kind: ChangeKind::Reread,
            ..change.clone()
        });
        changes.push(change);
        changes.extend(told);
    }
    Ok(changes)
}

/// The object that holds the association an event is about, by type ids. What
/// the event says of it (a type, or in its older form none) is no more than a
/// reason to read what the record is associated with.
fn pair(event: &Event) -> Option<String> {
    let of = |name: &str| standard_object(&name.to_ascii_lowercase()).map(|s| s.type_id.to_owned());
    event
        .subscription_type
        .ends_with(".associationChange")
        .then_some(())?;
    let names = event.association_type.as_deref();
    let names = names.and_then(|t| t.split_once("_TO_"));
    let from = event.from_object_type_id.clone();
    let from = from.or_else(|| of(names?.0))?;
    let to = event.to_object_type_id.clone();
    let to = to.or_else(|| of(names?.1))?;
    Some(format!("{from}/{to}"))
}

/// The type id of a legacy prefix (`contact`), of a generic event's own field,
/// or of the first half of an association's name (`CONTACT_TO_COMPANY`).
fn object_of(event: &Event, prefix: &str) -> String {
    if let Some(id) = event
        .object_type_id
        .as_ref()
        .or(event.from_object_type_id.as_ref())
    {
        return id.clone();
    }
    let from = event
        .association_type
        .as_deref()
        .and_then(|t| t.split_once("_TO_"))
        .map(|(from, _)| from.to_ascii_lowercase());
    let name = from.as_deref().unwrap_or(prefix);
    standard_object(name).map_or_else(|| name.to_owned(), |s| s.type_id.to_owned())
}

fn change(event: Event) -> Result<Change, RemoteError> {
    let (prefix, verb) = event
        .subscription_type
        .split_once('.')
        .ok_or_else(|| malformed("unknown_event", "subscriptionType without a dot"))?;
    let object = object_of(&event, prefix);
    let mut fields = Vec::new();
    let mut reread = Vec::new();
    let mut record_id = event.object_id.clone();
    let kind = match verb {
        "creation" => ChangeKind::Create,
        "deletion" => ChangeKind::Delete,
        "restore" => ChangeKind::Restore,
        "privacyDeletion" => ChangeKind::PrivacyDelete,
        "propertyChange" => {
            property(&event, &mut fields, &mut reread);
            ChangeKind::Update
        }
        "merge" => {
            let (survivor, kind) = merge(&event);
            record_id = survivor;
            kind
        }
        "associationChange" => {
            record_id.clone_from(&event.from_object_id);
            ChangeKind::Association {
                to: event.to_object_id.clone(),
                removed: event.association_removed == Some(true),
                association_type: event
                    .association_type
                    .clone()
                    .unwrap_or_else(|| event.association_type_id.clone()),
            }
        }
        // A verb of tomorrow still names a record that changed.
        _ => ChangeKind::Reread,
    };
    if record_id.is_empty() {
        return Err(malformed("no_record", "event without a record id"));
    }
    let source_id = event.source_id.clone().unwrap_or_default();
    let change_source = event.change_source.clone().unwrap_or_default();
    Ok(Change {
        identity: identity(&event, &object, &source_id),
        object,
        record_id,
        kind,
        fields,
        reread,
        occurred_at: event.occurred_at,
        actor: if source_id.is_empty() {
            change_source.clone()
        } else {
            source_id.clone()
        },
        by_others: names_writer(&change_source),
        mark: format!("{change_source}/{source_id}"),
        transaction: None,
    })
}

fn property(event: &Event, fields: &mut Vec<(String, Value)>, reread: &mut Vec<String>) {
    let Some(name) = event.property_name.clone().filter(|n| !n.is_empty()) else {
        return;
    };
    // Sensitive values are masked in events; the truth needs a read.
    let value = value_text(&event.property_value);
    if event.is_sensitive == Some(true) || value.as_deref() == Some("REDACTED") {
        reread.push(name);
    } else {
        fields.push((name, value));
    }
}

pub(crate) fn value_text(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::String(s) if s.is_empty() => None,
        serde_json::Value::String(s) => Some(s.chars().filter(|c| *c != '\0').collect()),
        serde_json::Value::Null => None,
        other => Some(other.to_string()),
    }
}

/// The surviving id and what ceased. Newer merges make a new record, in which
/// case the primary one ceases too.
fn merge(event: &Event) -> (String, ChangeKind) {
    let primary = if event.primary_object_id.is_empty() {
        &event.object_id
    } else {
        &event.primary_object_id
    };
    let into = if event.new_object_id.is_empty() {
        primary.clone()
    } else {
        event.new_object_id.clone()
    };
    let mut losers: Vec<String> = Vec::new();
    for id in event.merged_object_ids.iter().chain([primary]) {
        if *id != into && !id.is_empty() && !losers.contains(id) {
            losers.push(id.clone());
        }
    }
    (into.clone(), ChangeKind::Merge { into, losers })
}

/// Equal for redeliveries: nothing of the delivery (attempt, event id, which
/// HubSpot does not keep unique) goes in, everything of the change does.
fn identity(event: &Event, object: &str, source_id: &str) -> String {
    let value = value_text(&event.property_value).unwrap_or_default();
    let occurred_at = event.occurred_at.to_string();
    let losers = event.merged_object_ids.join(",");
    let removed = if event.association_removed == Some(true) {
        "removed"
    } else {
        ""
    };
    let parts = [
        event.portal_id.as_str(),
        &event.subscription_type,
        object,
        &event.object_id,
        event.property_name.as_deref().unwrap_or_default(),
        &occurred_at,
        &value,
        source_id,
        &event.primary_object_id,
        &losers,
        &event.new_object_id,
        &event.from_object_id,
        &event.to_object_id,
        event.association_type.as_deref().unwrap_or_default(),
        &event.association_type_id,
        removed,
    ];
    format!("hook:{}", fingerprint(&parts))
}
