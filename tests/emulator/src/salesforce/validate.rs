//! Turns the JSON of a write into typed field values, refusing what Salesforce refuses.

use super::error::Error;
use super::ids::{SfId, looks_like_id};
use super::schema::{Field, Kind, Obj, Object, Schema, flag};
use super::stamps;
use super::store::Store;
use super::value::Value;
use crate::people::People;
use serde_json::{Map, Value as Json};

/// What a write may touch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    Create,
    Update,
    /// An administrator or the platform itself: read-only fields too.
    System,
}

/// Values to write, by field position.
pub(crate) type Values = Vec<(usize, Value)>;

/// What a write is checked against.
#[derive(Clone, Copy)]
pub(crate) struct Org<'a> {
    pub(crate) schema: &'a Schema,
    pub(crate) store: &'a Store,
    pub(crate) people: &'a People,
}

/// Reads the fields of a record. `attributes` is skipped; a nested object names a parent by its external id.
pub(crate) fn values(
    object: &Object,
    org: Org<'_>,
    fields: &Map<String, Json>,
    mode: Mode,
) -> Result<Values, Error> {
    let mut out: Values = Vec::with_capacity(fields.len());
    let mut refused = Vec::new();
    for (name, json) in fields {
        if name == "attributes" {
            continue;
        }
        let parent = json
            .as_object()
            .and_then(|key| Some((relation(object, name)?, key)));
        let Some(index) = object.index(name).or(parent.map(|(index, _)| index)) else {
            let message = format!(
                "No such column '{name}' on sobject of type {}",
                object.obj.name()
            );
            return Err(Error::bad("INVALID_FIELD", message));
        };
        let field = &object.fields[index];
        let may = match mode {
            Mode::Create => field.has(flag::CREATE),
            Mode::Update => field.has(flag::UPDATE),
            Mode::System => field.kind != Kind::Address,
        };
        if !may {
            refused.push(field.name);
            continue;
        }
        let value = match parent {
            Some((_, key)) => by_key(org, field, key)?,
            None => typed(field, json)?,
        };
        checked(object, org.store, field, &value)?;
        out.retain(|(known, _)| *known != index);
        out.push((index, value));
    }
    if !refused.is_empty() {
        let message = format!(
            "Unable to create/update fields: {}. Please check the security settings of this field and verify that it is read/write for \
             your profile or permission set.",
            refused.join(", ")
        );
        return Err(Error::bad("INVALID_FIELD_FOR_INSERT_UPDATE", message).on(&refused));
    }
    Ok(out)
}

/// The reference field whose relationship is called `name`.
fn relation(object: &Object, name: &str) -> Option<usize> {
    let is_it = |field: &Field| {
        field
            .relationship
            .is_some_and(|known| known.eq_ignore_ascii_case(name))
    };
    object.fields.iter().position(is_it)
}

/// The parent that `{"Ext__c":"value"}` names; a field with several parent types needs `attributes` to choose one.
fn by_key(org: Org<'_>, field: &Field, key: &Map<String, Json>) -> Result<Value, Error> {
    let chosen = key
        .get("attributes")
        .and_then(|attributes| attributes["type"].as_str());
    let obj = match chosen {
        Some(name) => field
            .refers
            .iter()
            .find(|obj| obj.name().eq_ignore_ascii_case(name)),
        None => field.refers.first().filter(|_| field.refers.len() == 1),
    };
    let pair = key.iter().find(|(name, _)| *name != "attributes");
    let (Some(obj), Some((name, value))) = (obj, pair) else {
        let message = "Nested object for polymorphic foreign key must have an attributes field before any other fields.";
        return Err(Error::json(message));
    };
    let parent = org.schema.object(*obj);
    let missing = |what: String| Error::bad("INVALID_FIELD", what).on(&[field.name]);
    let index = parent
        .index(name)
        .filter(|index| parent.fields[*index].is_key());
    let index = index.ok_or_else(|| {
        missing(format!(
            "{name} is not an External ID or indexed field for {}",
            obj.name()
        ))
    })?;
    let value = typed(&parent.fields[index], value)?;
    let mut found = org
        .store
        .table(*obj)
        .lookup(parent, org.people, index, &value);
    found.retain(|hit| !hit.deleted());
    match found.as_slice() {
        [hit] => Ok(Value::Id(SfId::new(obj.prefix(), hit.number()))),
        _ => Err(missing(format!(
            "Foreign key external ID: {} not found for field {name} in entity {}",
            value.index_key().unwrap_or_default(),
            obj.name()
        ))),
    }
}

fn parser_error(field: &Field, json: &Json) -> Error {
    let (kind, text) = match json {
        Json::String(text) => ("VALUE_STRING", text.clone()),
        Json::Number(number) if number.is_f64() => ("VALUE_NUMBER_FLOAT", number.to_string()),
        Json::Number(number) => ("VALUE_NUMBER_INT", number.to_string()),
        Json::Bool(true) => ("VALUE_TRUE", "true".to_owned()),
        Json::Bool(false) => ("VALUE_FALSE", "false".to_owned()),
        Json::Array(_) => ("START_ARRAY", "[".to_owned()),
        Json::Object(_) => ("START_OBJECT", "{".to_owned()),
        Json::Null => ("VALUE_NULL", "null".to_owned()),
    };
    Error::json(format!(
        "Cannot deserialize instance of {} from {kind} value {text} or request may be missing a required field at [line:1, column:1]",
        field.kind.name()
    ))
    .on(&[field.name])
}

/// The value a JSON value stands for in this field.
fn typed(field: &Field, json: &Json) -> Result<Value, Error> {
    let wrong = || parser_error(field, json);
    Ok(match json {
        Json::Null if field.kind == Kind::Boolean => return Err(wrong()),
        Json::Null => Value::Null,
        Json::String(text) => from_text(field, text).ok_or_else(wrong)?,
        Json::Bool(truth) if field.kind == Kind::Boolean => Value::Bool(*truth),
        Json::Number(number) => match field.kind {
            Kind::Int => Value::Int(number.as_i64().ok_or_else(wrong)?),
            kind if kind.is_number() => {
                Value::Double(rounded(number.as_f64().ok_or_else(wrong)?, field.scale))
            }
            _ => return Err(wrong()),
        },
        _ => return Err(wrong()),
    })
}

fn from_text(field: &Field, text: &str) -> Option<Value> {
    let trimmed = text.trim();
    Some(match field.kind {
        // Spaces at both ends of text are dropped, as Salesforce does.
        Kind::MultiPicklist => Value::text(&ordered(field, trimmed)),
        kind if kind.is_text() => Value::text(trimmed),
        _ if trimmed.is_empty() && field.kind != Kind::Boolean => Value::Null,
        Kind::Boolean => match trimmed {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            _ => return None,
        },
        Kind::Int => Value::Int(trimmed.parse().ok()?),
        kind if kind.is_number() => {
            let number: f64 = trimmed.parse().ok()?;
            Value::Double(rounded(
                Some(number).filter(|number| number.is_finite())?,
                field.scale,
            ))
        }
        Kind::Date => Value::Date(stamps::parse_date(trimmed)?),
        Kind::DateTime => {
            Value::DateTime(stamps::parse_datetime(trimmed)?.div_euclid(1_000) * 1_000)
        }
        // Told apart from other mistakes by `checked`, which names the id.
        Kind::Id | Kind::Reference => {
            SfId::parse(trimmed).map_or_else(|| Value::Text(trimmed.into()), Value::Id)
        }
        _ => return None,
    })
}

fn rounded(number: f64, scale: u8) -> f64 {
    let factor = 10f64.powi(i32::from(scale));
    let scaled = number * factor;
    if scaled.abs() < 1e15 {
        scaled.round() / factor
    } else {
        number
    }
}

/// A multi-select in the order of its definition, without repetitions; unknown values last.
fn ordered(field: &Field, text: &str) -> String {
    let mut chosen: Vec<&str> = text
        .split(';')
        .map(str::trim)
        .filter(|value| !value.is_empty())
        .collect();
    chosen.sort_by_key(|value| {
        field
            .picklist
            .iter()
            .position(|known| known == value)
            .unwrap_or(usize::MAX)
    });
    chosen.dedup();
    chosen.join(";")
}

fn checked(object: &Object, store: &Store, field: &Field, value: &Value) -> Result<(), Error> {
    match value {
        Value::Text(text) if matches!(field.kind, Kind::Id | Kind::Reference) => {
            Err(malformed(object.obj, field, text))
        }
        Value::Text(text) => check_text(field, text),
        Value::Double(number) => check_number(field, *number),
        Value::Int(number) => check_number(field, *number as f64),
        Value::Id(id) if field.kind == Kind::Reference => {
            check_reference(object.obj, store, field, *id)
        }
        _ => Ok(()),
    }
}

fn malformed(obj: Obj, field: &Field, text: &str) -> Error {
    let message = if looks_like_id(text) {
        format!("{} ID: id value of incorrect type: {text}", obj.name())
    } else {
        format!("{}: id value of incorrect type: {text}", field.name)
    };
    Error::bad("MALFORMED_ID", message).on(&[field.name])
}

fn check_text(field: &Field, text: &str) -> Result<(), Error> {
    // Salesforce counts UTF-16 code units.
    if text.encode_utf16().count() > field.length as usize {
        let shown: String = text.chars().take(64).collect();
        let message = format!(
            "{}: data value too large: {shown} (max length={})",
            field.name, field.length
        );
        return Err(Error::bad("STRING_TOO_LONG", message).on(&[field.name]));
    }
    if field.kind == Kind::Email && !is_email(text) {
        let message = format!("{}: invalid email address: {text}", field.name);
        return Err(Error::bad("INVALID_EMAIL_ADDRESS", message).on(&[field.name]));
    }
    if field.has(flag::RESTRICTED) {
        let known = |value: &str| field.picklist.contains(&value);
        let fits = if field.kind == Kind::MultiPicklist {
            text.split(';').all(known)
        } else {
            known(text)
        };
        if !fits {
            let message = format!("bad value for restricted picklist field: {text}");
            return Err(
                Error::bad("INVALID_OR_NULL_FOR_RESTRICTED_PICKLIST", message).on(&[field.name]),
            );
        }
    }
    Ok(())
}

fn is_email(text: &str) -> bool {
    let plain = !text.contains([' ', ',', ';', '<', '>']);
    plain
        && matches!(text.split_once('@'), Some((name, host)) if !name.is_empty() && host.contains('.') && !host.starts_with('.') && !host.ends_with('.') && !host.contains('@'))
}

fn check_number(field: &Field, number: f64) -> Result<(), Error> {
    let whole = i32::from(field.precision) - i32::from(field.scale);
    if whole > 0 && number.abs() >= 10f64.powi(whole) {
        let message = format!(
            "{}: value outside of valid range on numeric field: {number}",
            field.name
        );
        return Err(Error::bad("NUMBER_OUTSIDE_VALID_RANGE", message).on(&[field.name]));
    }
    Ok(())
}

fn check_reference(obj: Obj, store: &Store, field: &Field, id: SfId) -> Result<(), Error> {
    if !field
        .refers
        .iter()
        .any(|target| target.prefix() == id.prefix)
    {
        return Err(malformed(obj, field, &id.to_string()));
    }
    match store.find(id) {
        Some((_, hit)) if !hit.deleted() => Ok(()),
        Some(_) => Err(Error::bad("ENTITY_IS_DELETED", "entity is deleted").on(&[field.name])),
        None => {
            let message = format!("insufficient access rights on cross-reference id: {id}");
            Err(
                Error::bad("INSUFFICIENT_ACCESS_ON_CROSS_REFERENCE_ENTITY", message)
                    .on(&[field.name]),
            )
        }
    }
}

/// Refuses a row that lacks what it must have.
pub(crate) fn required(object: &Object, row: &[Value]) -> Result<(), Error> {
    let missing: Vec<&str> = object
        .visible()
        .filter(|(index, field)| field.has(flag::REQUIRED) && row[*index].is_null())
        .map(|(_, field)| field.name)
        .collect();
    let empty = |name: &str| object.index(name).is_some_and(|at| row[at].is_null());
    let missing = match object.obj {
        // A meeting needs a start, and an end or a length: what it has of them, the others follow from.
        Obj::Event if empty("StartDateTime") || empty("EndDateTime") => {
            vec!["DurationInMinutes", "ActivityDateTime"]
        }
        Obj::LineItem if missing.is_empty() && empty("PricebookEntryId") && empty("Product2Id") => {
            let message = "field integrity exception: PricebookEntryId, unknown (versions 3.0 and higher must specify pricebook entry id, others must specify product id)";
            return Err(Error::bad("FIELD_INTEGRITY_EXCEPTION", message).on(&["PricebookEntryId"]));
        }
        _ => missing,
    };
    if missing.is_empty() {
        return Ok(());
    }
    let message = format!("Required fields are missing: [{}]", missing.join(", "));
    Err(Error::bad("REQUIRED_FIELD_MISSING", message).on(&missing))
}
