//! Changing records: validation of values, unique values, stamps, history and events.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{
    State,
    base::iso_short,
    error::{ApiError, invalid_value, invalid_values},
    model::{Catalog, Property, PropertyId, Table, Type},
    store::{Live, Past, Record},
    webhooks::event::{Event, What},
};

/// The longest text a property holds, in characters.
const LONGEST: usize = 65_536;

/// A checked value for a property; `None` clears it.
pub(crate) struct Change {
    pub(crate) property: PropertyId,
    pub(crate) value: Option<String>,
}

/// Who writes, as events and history show it.
#[derive(Clone)]
pub(crate) struct Origin {
    /// `INTEGRATION`, `CRM_UI`, …
    pub(crate) source: Arc<str>,
    /// App id, `userId:…`, …
    pub(crate) id: Arc<str>,
}

/// Checks all values at once, so that the error names every bad one.
pub(crate) fn check(
    state: &State,
    table: &Table,
    catalog: &Catalog,
    properties: &Map<String, Value>,
) -> Result<Vec<Change>, ApiError> {
    let portal = state.portal();
    let mut changes = Vec::with_capacity(properties.len());
    let mut bad = Vec::new();
    for (name, value) in properties {
        let Some(id) = catalog.find(name) else {
            let message = format!("Property \"{name}\" does not exist");
            bad.push(invalid_value(
                portal,
                name,
                "PROPERTY_DOESNT_EXIST",
                &message,
            ));
            continue;
        };
        let property = catalog.get(id);
        if property.read_only {
            let message = format!("\"{name}\" is a read only property; its value cannot be set.");
            bad.push(invalid_value(portal, name, "READ_ONLY_VALUE", &message));
            continue;
        }
        match normal(state, table, property, value) {
            Ok(value) => changes.push(Change {
                property: id,
                value,
            }),
            Err((code, message)) => bad.push(invalid_value(portal, name, code, &message)),
        }
    }
    if bad.is_empty() {
        Ok(changes)
    } else {
        Err(invalid_values(bad))
    }
}

/// The text to store: `None` for empty, otherwise as written (numbers keep their digits).
fn normal(
    state: &State,
    table: &Table,
    property: &Property,
    value: &Value,
) -> Result<Option<String>, (&'static str, String)> {
    let text = match value {
        Value::Null => return Ok(None),
        Value::String(text) => text.clone(),
        Value::Number(_) | Value::Bool(_) => value.to_string(),
        Value::Array(_) | Value::Object(_) => {
            return Err(("INVALID_VALUE", format!("{value} is not a valid value")));
        }
    };
    if text.is_empty() {
        return Ok(None);
    }
    if text.chars().count() > LONGEST {
        let message = format!("Property values must be at most {LONGEST} characters");
        return Err(("INVALID_LENGTH", message));
    }
    match property.kind {
        Type::Number => {
            if text.trim().parse::<f64>().is_ok_and(f64::is_finite) {
                Ok(Some(text))
            } else {
                Err(("INVALID_INTEGER", format!("{text} was not a valid number.")))
            }
        }
        Type::Bool => match text.to_ascii_lowercase().as_str() {
            "true" => Ok(Some("true".to_owned())),
            "false" => Ok(Some("false".to_owned())),
            _ => Err((
                "INVALID_OPTION",
                format!("{text} was not one of the allowed options: [true, false]"),
            )),
        },
        Type::DateTime => moment(&text)
            .map(|ms| Some(iso_short(ms)))
            .ok_or_else(|| ("INVALID_DATE", format!("{text} was not a valid date."))),
        Type::Date => match moment(&text) {
            Some(ms) if ms % 86_400_000 == 0 => Ok(Some(iso_short(ms)[..10].to_owned())),
            Some(_) => Err(("INVALID_DATE", format!("{text} is not midnight UTC."))),
            None => Err(("INVALID_DATE", format!("{text} was not a valid date."))),
        },
        Type::Enumeration => choices(property, text).map(Some),
        Type::Text | Type::PhoneNumber => {
            if table.facts.plural == "contacts" && property.name == "email" {
                let text = text.trim().to_lowercase();
                let valid = text.split_once('@').is_some_and(|(name, domain)| {
                    !name.is_empty() && domain.contains('.') && !text.contains(char::is_whitespace)
                });
                if !valid {
                    return Err(("INVALID_EMAIL", format!("Email address {text} is invalid")));
                }
                return Ok(Some(text));
            }
            let _ = state;
            Ok(Some(text))
        }
    }
}

fn choices(property: &Property, text: String) -> Result<String, (&'static str, String)> {
    if property.owner {
        return if text.bytes().all(|b| b.is_ascii_digit()) {
            Ok(text)
        } else {
            Err((
                "INVALID_OWNER_ID",
                format!("{text} is not a valid owner id"),
            ))
        };
    }
    if property.choices.is_empty() {
        return Ok(text);
    }
    let known = |value: &str| property.choices.iter().any(|c| c.value == value);
    let unknown = if property.is_multiple() {
        text.split(';').find(|v| !v.is_empty() && !known(v))
    } else {
        Some(text.as_str()).filter(|v| !known(v))
    };
    let Some(value) = unknown else {
        return Ok(text);
    };
    let allowed: Vec<&str> = property.choices.iter().map(|c| c.value.as_str()).collect();
    let message = format!(
        "{value} was not one of the allowed options: [{}]",
        allowed.join(", ")
    );
    Err(("INVALID_OPTION", message))
}

/// Milliseconds of an ISO date, ISO date-time or epoch-millisecond text.
pub(crate) fn moment(text: &str) -> Option<i64> {
    let text = text.trim();
    if let Ok(ms) = text.parse::<i64>() {
        return Some(ms);
    }
    if let Ok(day) = chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d") {
        return Some(day.and_hms_opt(0, 0, 0)?.and_utc().timestamp_millis());
    }
    let time = chrono::DateTime::parse_from_rfc3339(text).ok()?;
    Some(time.timestamp_millis())
}

/// Whether another live record holds one of the unique values.
pub(crate) fn conflict(
    state: &State,
    table: &Table,
    catalog: &Catalog,
    live: &Live,
    own: Option<u64>,
    changes: &[Change],
) -> Result<(), ApiError> {
    for change in changes {
        let property = catalog.get(change.property);
        let Some(value) = change.value.as_deref().filter(|_| property.unique) else {
            continue;
        };
        let Some(other) = live.find(catalog, change.property, value) else {
            continue;
        };
        if Some(other) == own {
            continue;
        }
        if property.name == "email" {
            let message = format!("Contact already exists. Existing ID: {other}");
            return Err(ApiError::new(409, "CONFLICT", message));
        }
        let target = own.map_or_else(|| "null".to_owned(), |id| id.to_string());
        return Err(ApiError::validation(format!(
            "Cannot set PropertyValueCoordinates{{portalId={}, objectTypeId={}, propertyName={}, \
             value={value}}} on {target}. {other} already has that value.",
            state.portal(),
            table.facts.type_id,
            property.name,
        )));
    }
    Ok(())
}

/// Creates a record from checked values; the caller has ruled out conflicts. Answers its id and
/// the properties written.
pub(crate) fn create(
    state: &State,
    table: &Table,
    catalog: &Catalog,
    live: &mut Live,
    mut changes: Vec<Change>,
    origin: &Origin,
) -> (u64, Vec<PropertyId>) {
    let id = live.take_id();
    let now = state.now_ms();
    add_website(table, catalog, &mut changes);
    let written = changes.iter().map(|c| c.property).collect();
    let mut record = Record {
        created_ms: now,
        modified_ms: now,
        ..Record::default()
    };
    let event = |what| Event::new(table, id, now, origin, what);
    state.webhooks.emit(event(What::Creation));
    for change in changes.into_iter().filter(|c| c.value.is_some()) {
        let property = catalog.get(change.property);
        let value = change.value.as_deref().unwrap_or_default();
        let value = value
            .strip_prefix(';')
            .filter(|_| property.is_multiple())
            .unwrap_or(value);
        set(
            &mut record,
            live,
            id,
            property,
            change.property,
            Some(value),
            now,
            origin,
        );
        state
            .webhooks
            .emit(event(What::property(property, Some(value))));
    }
    state.store(table, live, id, record);
    (id, written)
}

/// A company created with a domain gets a website.
fn add_website(table: &Table, catalog: &Catalog, changes: &mut Vec<Change>) {
    if table.facts.plural != "companies" {
        return;
    }
    let (Some(domain), Some(website)) = (catalog.find("domain"), catalog.find("website")) else {
        return;
    };
    if changes.iter().any(|c| c.property == website) {
        return;
    }
    let value = changes
        .iter()
        .find(|c| c.property == domain)
        .and_then(|c| c.value.clone());
    if value.is_some() {
        changes.push(Change {
            property: website,
            value,
        });
    }
}

/// Writes checked values to an existing record. Values that are the same already are left out; if
/// none is left, neither the stamp moves nor an event fires. Answers whether anything changed.
pub(crate) fn update(
    state: &State,
    table: &Table,
    catalog: &Catalog,
    live: &mut Live,
    id: u64,
    changes: &[Change],
    origin: &Origin,
) -> Result<bool, ApiError> {
    conflict(state, table, catalog, live, Some(id), changes)?;
    let mut real: Vec<(PropertyId, Option<String>, Option<String>)> = Vec::new();
    {
        let Some(view) = live.view(id) else {
            return Err(ApiError::not_found("resource not found"));
        };
        for change in changes {
            let property = catalog.get(change.property);
            let old = view.text(change.property, property);
            let new = next_value(property, old.as_deref(), change.value.as_deref());
            if new != old {
                real.push((change.property, old, new));
            }
        }
    }
    if real.is_empty() {
        return Ok(false);
    }
    let Some(mut record) = live.copy(id) else {
        return Err(ApiError::not_found("resource not found"));
    };
    let now = state.now_ms();
    record.modified_ms = now;
    for (property_id, old, new) in real {
        let property = catalog.get(property_id);
        if let Some(old) = old.filter(|_| property.unique) {
            live.release(property_id, &old, id);
        }
        set(
            &mut record,
            live,
            id,
            property,
            property_id,
            new.as_deref(),
            now,
            origin,
        );
        let what = What::property(property, new.as_deref());
        state
            .webhooks
            .emit(Event::new(table, id, now, origin, what));
    }
    state.store(table, live, id, record);
    Ok(true)
}

/// What the property holds after `new` is written over `old`.
fn next_value(property: &Property, old: Option<&str>, new: Option<&str>) -> Option<String> {
    let new = new?;
    if property.is_multiple()
        && let Some(added) = new.strip_prefix(';')
    {
        let mut values: Vec<&str> = old
            .unwrap_or("")
            .split(';')
            .filter(|v| !v.is_empty())
            .collect();
        for value in added.split(';').filter(|v| !v.is_empty()) {
            if !values.contains(&value) {
                values.push(value);
            }
        }
        return Some(values.join(";"));
    }
    if property.name == "lifecyclestage"
        && let Some(old) = old
    {
        // Moves forward only, unless it was cleared before; the API says nothing about it.
        let rank = |value: &str| property.choices.iter().position(|c| c.value == value);
        if rank(new) < rank(old) {
            return Some(old.to_owned());
        }
    }
    Some(new.to_owned())
}

#[expect(clippy::too_many_arguments, reason = "the parts of one value")]
fn set(
    record: &mut Record,
    live: &mut Live,
    id: u64,
    property: &Property,
    property_id: PropertyId,
    value: Option<&str>,
    now: i64,
    origin: &Origin,
) {
    if let Some(value) = value.filter(|_| property.unique) {
        live.claim(property_id, value, id);
    }
    record.set(Past {
        property: property_id,
        value: value.map(Into::into),
        at_ms: now,
        source_type: Arc::clone(&origin.source),
        source_id: Arc::clone(&origin.id),
    });
}

/// Archives a live record; answers whether there was one.
pub(crate) fn archive(
    state: &State,
    table: &Table,
    catalog: &Catalog,
    live: &mut Live,
    id: u64,
    origin: &Origin,
) -> bool {
    let Some(mut record) = live.copy(id).filter(Record::is_live) else {
        return false;
    };
    let now = state.now_ms();
    for (property, value) in unique_values(catalog, live, id) {
        live.release(property, &value, id);
    }
    record.archived_ms = Some(now);
    record.modified_ms = now;
    state.store(table, live, id, record);
    state
        .webhooks
        .emit(Event::new(table, id, now, origin, What::Deletion));
    true
}

/// Brings an archived record back; answers whether there was one.
pub(crate) fn restore(
    state: &State,
    table: &Table,
    catalog: &Catalog,
    live: &mut Live,
    id: u64,
    origin: &Origin,
) -> bool {
    let Some(mut record) = live.copy(id).filter(|r| r.archived_ms.is_some()) else {
        return false;
    };
    let now = state.now_ms();
    record.archived_ms = None;
    record.modified_ms = now;
    state.store(table, live, id, record);
    for (property, value) in unique_values(catalog, live, id) {
        live.claim(property, &value, id);
    }
    state
        .webhooks
        .emit(Event::new(table, id, now, origin, What::Restore));
    true
}

/// The values of unique properties that were written to this record.
pub(crate) fn unique_values(catalog: &Catalog, live: &Live, id: u64) -> Vec<(PropertyId, String)> {
    let Some(record) = live.overlay.get(&id) else {
        return Vec::new();
    };
    catalog
        .ids()
        .filter(|p| catalog.get(*p).unique)
        .filter_map(|p| Some((p, record.written(p)??.to_owned())))
        .collect()
}
