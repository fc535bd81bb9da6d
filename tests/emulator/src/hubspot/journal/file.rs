//! Data files in the shapes that one may think of.

use serde_json::{Map, Value, json};

use super::Entry;
use crate::hubspot::{
    base::iso_short,
    model::OBJECTS,
    webhooks::event::{Event, What},
};

/// How a file looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The documented keys; numbers for ids and times, changes as an object of values.
    Plain,
    /// The same with texts for ids and times, lower case words, and values in objects.
    Text,
    /// Changes as a list of names and values.
    List,
    /// Changes as names only.
    Names,
    /// A line of JSON for each event.
    Lines,
    /// A list of events without anything around it.
    Bare,
    /// Other keys altogether.
    Alien,
}

impl Shape {
    pub(super) const NAMES: &str = "plain, text, list, names, lines, bare or alien";

    pub(super) fn parse(name: &str) -> Option<Shape> {
        Some(match name {
            "plain" => Shape::Plain,
            "text" => Shape::Text,
            "list" => Shape::List,
            "names" => Shape::Names,
            "lines" => Shape::Lines,
            "bare" => Shape::Bare,
            "alien" => Shape::Alien,
            _ => return None,
        })
    }
}

/// What kind of subscription an event comes by, and its action.
fn words(event: &Event) -> (&'static str, &'static str) {
    match &event.what {
        What::Creation => ("OBJECT", "CREATE"),
        What::Deletion => ("OBJECT", "DELETE"),
        What::PrivacyDeletion => ("GDPR_PRIVACY_DELETION", "DELETE"),
        What::Restore => ("OBJECT", "RESTORE"),
        What::Property { .. } => ("OBJECT", "UPDATE"),
        What::Merge { .. } => ("OBJECT", "MERGE"),
        What::Association { removed: true, .. } => ("ASSOCIATION", "ASSOCIATION_REMOVED"),
        What::Association { .. } => ("ASSOCIATION", "ASSOCIATION_ADDED"),
    }
}

fn changes(shape: Shape, name: &str, value: Option<&str>) -> Value {
    let value = value.unwrap_or_default();
    match shape {
        Shape::Text => json!({name: {"value": value}}),
        Shape::List => json!([{"name": name, "value": value}]),
        Shape::Names => json!([name]),
        _ => json!({name: value}),
    }
}

fn event(shape: Shape, event: &Event, portal: u64, published_ms: i64) -> Value {
    let text = shape == Shape::Text;
    let id = |id: u64| {
        if text {
            json!(id.to_string())
        } else {
            json!(id)
        }
    };
    let time = |ms: i64| {
        if text {
            json!(iso_short(ms))
        } else {
            json!(ms)
        }
    };
    let word = |word: &str| match text {
        true => json!(word.to_ascii_lowercase()),
        false => json!(word),
    };
    let (kind, action) = words(event);
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    put("type", word(kind));
    put("portalId", id(portal));
    put("occurredAt", time(event.at_ms));
    put("action", word(action));
    put("publishedAt", time(published_ms));
    if let What::Association { from, to, kind, .. } = &event.what {
        put("fromObjectTypeId", json!(OBJECTS[from.0].type_id));
        put("fromObjectId", id(from.1));
        put("toObjectTypeId", json!(OBJECTS[to.0].type_id));
        put("toObjectId", id(to.1));
        put("associationTypeId", json!(kind.id));
        return Value::Object(out);
    }
    put("objectTypeId", json!(OBJECTS[event.table].type_id));
    put("objectId", id(event.id));
    match &event.what {
        What::Property { name, value } => {
            put("propertyChanges", changes(shape, name, value.as_deref()));
        }
        What::Merge {
            primary,
            merged,
            new,
            ..
        } => {
            put("primaryObjectId", id(*primary));
            put("mergedObjectIds", merged.iter().map(|m| id(*m)).collect());
            put("newObjectId", id(*new));
        }
        _ => {}
    }
    Value::Object(out)
}

fn alien(event: &Event) -> Value {
    json!({"what": format!("{} of {}", event.what.name(), OBJECTS[event.table].singular), "ref": event.id.to_string()})
}

/// The bytes of an entry's file.
pub(super) fn bytes(shape: Shape, entry: &Entry, portal: u64) -> Vec<u8> {
    let all = || {
        let events = entry.events.iter();
        events.map(|e| event(shape, e, portal, entry.at_ms))
    };
    let text = match shape {
        Shape::Lines => all().map(|e| format!("{e}\n")).collect(),
        Shape::Bare => Value::from_iter(all()).to_string(),
        Shape::Alien => {
            let entries = Value::from_iter(entry.events.iter().map(|e| alien(e)));
            json!({"version": 2, "entries": entries}).to_string()
        }
        _ => json!({"offset": entry.offset, "journalEvents": Value::from_iter(all())}).to_string(),
    };
    text.into_bytes()
}
