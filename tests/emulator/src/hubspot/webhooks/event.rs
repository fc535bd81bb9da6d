//! One change as HubSpot announces it, in its legacy and its generic form.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::hubspot::{
    associations::{LinkType, legacy_name},
    model::{OBJECTS, Property, Table},
    write::Origin,
};

/// What happened.
#[derive(Clone, Debug)]
pub(crate) enum What {
    Creation,
    Deletion,
    PrivacyDeletion,
    Restore,
    Property {
        name: Arc<str>,
        value: Option<Arc<str>>,
    },
    Merge {
        primary: u64,
        merged: Vec<u64>,
        new: u64,
        moved: u64,
    },
    Association {
        from: (usize, u64),
        to: (usize, u64),
        kind: LinkType,
        removed: bool,
        primary: bool,
    },
}

impl What {
    pub(crate) fn property(property: &Property, value: Option<&str>) -> What {
        What::Property {
            name: property.name.as_str().into(),
            value: value.map(Into::into),
        }
    }

    /// The part of the subscription type after the dot.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            What::Creation => "creation",
            What::Deletion => "deletion",
            What::PrivacyDeletion => "privacyDeletion",
            What::Restore => "restore",
            What::Property { .. } => "propertyChange",
            What::Merge { .. } => "merge",
            What::Association { .. } => "associationChange",
        }
    }
}

/// A change with its place, time and author.
#[derive(Clone)]
pub(crate) struct Event {
    /// Position in [`OBJECTS`].
    pub(crate) table: usize,
    pub(crate) id: u64,
    pub(crate) at_ms: i64,
    pub(crate) source: Arc<str>,
    pub(crate) source_id: Arc<str>,
    pub(crate) what: What,
}

/// The numbers that accompany every event.
#[derive(Clone, Copy)]
pub(crate) struct Envelope {
    pub(crate) event_id: u64,
    pub(crate) subscription_id: u64,
    pub(crate) portal_id: u64,
    pub(crate) app_id: u64,
}

impl Event {
    pub(crate) fn new(table: &Table, id: u64, at_ms: i64, origin: &Origin, what: What) -> Event {
        Event {
            table: table.index,
            id,
            at_ms,
            source: Arc::clone(&origin.source),
            source_id: Arc::clone(&origin.id),
            what,
        }
    }

    /// `contact.creation` or `object.creation`. Activities, leads and custom objects have the generic
    /// form only, privacy deletions the legacy one; an e-mail's subject and HTML are told by neither.
    pub(crate) fn subscription_type(&self, generic: bool) -> Option<String> {
        let facts = &OBJECTS[self.table];
        let privacy = matches!(self.what, What::PrivacyDeletion);
        if generic {
            let silent = matches!(&self.what, What::Property { name, .. }
                if matches!(&**name, "hs_email_html" | "hs_email_subject"));
            return (!privacy && !silent).then(|| format!("object.{}", self.what.name()));
        }
        let known = matches!(
            facts.singular,
            "contact" | "company" | "deal" | "ticket" | "product" | "line_item"
        );
        let allowed = known && (!privacy || facts.singular == "contact");
        allowed.then(|| format!("{}.{}", facts.singular, self.what.name()))
    }

    /// The JSON of one delivery attempt.
    pub(crate) fn json(&self, generic: bool, envelope: Envelope, attempt: u32) -> Value {
        let mut out = Map::new();
        let mut put = |key: &str, value: Value| {
            out.insert(key.to_owned(), value);
        };
        put("eventId", json!(envelope.event_id));
        put("subscriptionId", json!(envelope.subscription_id));
        put("portalId", json!(envelope.portal_id));
        put("appId", json!(envelope.app_id));
        put("occurredAt", json!(self.at_ms));
        put("subscriptionType", json!(self.subscription_type(generic)));
        put("attemptNumber", json!(attempt));
        if !matches!(self.what, What::Association { .. }) {
            put("objectId", json!(self.id));
            if generic {
                put("objectTypeId", json!(OBJECTS[self.table].type_id));
            }
        }
        put("changeSource", json!(*self.source));
        put("sourceId", json!(*self.source_id));
        match &self.what {
            What::Creation => put("changeFlag", json!("NEW")),
            What::Property { name, value } => {
                put("propertyName", json!(**name));
                put("propertyValue", json!(value.as_deref().unwrap_or("")));
                if generic {
                    put("isSensitive", json!(false));
                }
            }
            What::Merge {
                primary,
                merged,
                new,
                moved,
            } => {
                put("primaryObjectId", json!(primary));
                put("mergedObjectIds", json!(merged));
                put("newObjectId", json!(new));
                put("numberOfPropertiesMoved", json!(moved));
            }
            What::Association {
                from,
                to,
                kind,
                removed,
                primary,
            } => {
                put("associationType", json!(legacy_name(from.0, to.0)));
                put("fromObjectId", json!(from.1));
                put("toObjectId", json!(to.1));
                put("associationRemoved", json!(removed));
                put("isPrimaryAssociation", json!(primary));
                if generic {
                    put("fromObjectTypeId", json!(OBJECTS[from.0].type_id));
                    put("toObjectTypeId", json!(OBJECTS[to.0].type_id));
                    put("associationTypeId", json!(kind.id));
                    put("associationCategory", json!(kind.category()));
                }
            }
            What::Deletion | What::PrivacyDeletion | What::Restore => {}
        }
        Value::Object(out)
    }
}
