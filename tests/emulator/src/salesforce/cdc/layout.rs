//! Order of the fields in an object's change events, and the Avro schema that says so.

use crate::salesforce::schema::{Field, Kind, Object, at, flag};
use base64::Engine;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A field of a change event.
#[derive(Debug, PartialEq)]
pub(crate) enum Slot {
    Plain(usize),
    /// An address or a person's name: the positions of its components.
    Compound {
        name: &'static str,
        parts: Vec<(&'static str, usize)>,
    },
    /// A name that could be a person's in other orgs: a union of three.
    SwitchableName(usize),
}

/// What subscribers get for one object.
pub(crate) struct Codec {
    /// Slot `i` is field `i + 1` of the schema: field 0 is the header.
    pub(crate) slots: Vec<Slot>,
    pub(crate) schema_id: String,
    pub(crate) schema_json: String,
}

impl Codec {
    /// The event layout of an object.
    pub(crate) fn new(object: &Object) -> Self {
        let slots = slots(object);
        let mut schema = schema(object, &slots);
        let digest = Sha256::digest(schema.to_string().as_bytes());
        let schema_id = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&digest[..16]);
        schema["uuid"] = json!(schema_id);
        Self {
            slots,
            schema_json: schema.to_string(),
            schema_id,
        }
    }

    /// Position in the Avro schema of a field, and of the component within a compound one.
    pub(crate) fn place(&self, field: usize) -> Option<(usize, Option<usize>)> {
        self.slots
            .iter()
            .enumerate()
            .find_map(|(slot, kind)| match kind {
                Slot::Plain(index) | Slot::SwitchableName(index) if *index == field => {
                    Some((slot + 1, None))
                }
                Slot::Compound { parts, .. } => parts
                    .iter()
                    .position(|(_, index)| *index == field)
                    .map(|part| (slot + 1, Some(part))),
                _ => None,
            })
    }
}

/// Standard fields, then owner and stamps, then custom fields.
fn slots(object: &Object) -> Vec<Slot> {
    let mut standard = Vec::new();
    let mut custom = Vec::new();
    let owner = object.index("OwnerId");
    let own = object.visible().filter(|(index, field)| {
        *index > at::STAMP && !field.has(flag::NO_EVENT) && Some(*index) != owner
    });
    for (index, field) in own {
        let target = if field.has(flag::CUSTOM) {
            &mut custom
        } else {
            &mut standard
        };
        if field.kind == Kind::Address {
            continue;
        }
        match field.compound {
            Some((name, _))
                if target.iter().any(
                    |slot| matches!(slot, Slot::Compound { name: known, .. } if *known == name),
                ) => {}
            Some((name, _)) => target.push(Slot::Compound {
                name,
                parts: parts(object, name),
            }),
            None if object.obj == crate::salesforce::schema::Obj::Account
                && field.name == "Name" =>
            {
                target.push(Slot::SwitchableName(index));
            }
            None => target.push(Slot::Plain(index)),
        }
    }
    standard.extend(owner.map(Slot::Plain));
    for index in [
        at::CREATED_DATE,
        at::CREATED_BY,
        at::LAST_MODIFIED,
        at::LAST_MODIFIED_BY,
    ] {
        standard.push(Slot::Plain(index));
    }
    standard.extend(custom);
    standard
}

/// Components in the order of the event's nested record.
fn parts(object: &Object, name: &str) -> Vec<(&'static str, usize)> {
    let mut parts: Vec<(&'static str, usize)> = object
        .components(name)
        .into_iter()
        .map(|(index, part)| (part, index))
        .collect();
    if name == "Name" {
        let order = ["Salutation", "FirstName", "LastName"];
        parts.sort_by_key(|(part, _)| order.iter().position(|known| known == part));
    }
    parts
}

fn avro_type(field: &Field) -> &'static str {
    match field.kind {
        Kind::Boolean => "boolean",
        Kind::Int => "int",
        Kind::Date | Kind::DateTime => "long",
        kind if kind.is_number() => "double",
        _ => "string",
    }
}

fn optional(name: &str, kind: Value) -> Value {
    json!({"name": name, "type": ["null", kind], "default": null})
}

fn schema(object: &Object, slots: &[Slot]) -> Value {
    let mut fields = vec![header()];
    let mut address_defined = false;
    for slot in slots {
        fields.push(match slot {
            Slot::Plain(index) => optional(object.fields[*index].name, json!(avro_type(&object.fields[*index]))),
            Slot::SwitchableName(index) => {
                let parts = ["Salutation", "FirstName", "LastName"].map(|part| optional(part, json!("string")));
                let person = json!({"type": "record", "name": "Switchable_PersonName", "fields": parts});
                json!({"name": object.fields[*index].name, "type": ["null", "string", person], "default": null})
            }
            Slot::Compound { name, parts } if *name == "Name" => optional(name, record("Switchable_PersonName", object, parts)),
            Slot::Compound { name, .. } if address_defined => optional(name, json!("Address")),
            Slot::Compound { name, parts } => {
                address_defined = true;
                optional(name, record("Address", object, parts))
            }
        });
    }
    json!({"type": "record", "name": object.obj.change_event(), "namespace": "com.sforce.eventbus", "fields": fields})
}

fn record(name: &str, object: &Object, parts: &[(&'static str, usize)]) -> Value {
    let fields: Vec<Value> = parts
        .iter()
        .map(|(part, index)| optional(part, json!(avro_type(&object.fields[*index]))))
        .collect();
    json!({"type": "record", "name": name, "fields": fields})
}

/// The kinds of change, in the order of the schema's enumeration.
pub(crate) const CHANGE_TYPES: [&str; 10] = [
    "CREATE",
    "UPDATE",
    "DELETE",
    "UNDELETE",
    "GAP_CREATE",
    "GAP_UPDATE",
    "GAP_DELETE",
    "GAP_UNDELETE",
    "GAP_OVERFLOW",
    "SNAPSHOT",
];

fn header() -> Value {
    let plain = |name: &str, kind: &str| json!({"name": name, "type": kind});
    let list = |name: &str| json!({"name": name, "type": {"type": "array", "items": "string"}});
    json!({"name": "ChangeEventHeader", "type": {"type": "record", "name": "ChangeEventHeader", "fields": [
        plain("entityName", "string"),
        list("recordIds"),
        {"name": "changeType", "type": {"type": "enum", "name": "ChangeType", "symbols": CHANGE_TYPES}},
        plain("changeOrigin", "string"),
        plain("transactionKey", "string"),
        plain("sequenceNumber", "int"),
        plain("commitTimestamp", "long"),
        plain("commitNumber", "long"),
        plain("commitUser", "string"),
        list("nulledFields"),
        list("diffFields"),
        list("changedFields"),
    ]}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::salesforce::schema::Obj;

    #[test]
    fn account_events_have_the_documented_order() {
        let schema = crate::salesforce::objects::schema(true);
        let object = schema.object(Obj::Account);
        let codec = Codec::new(object);
        let parsed: Value = serde_json::from_str(&codec.schema_json).unwrap();
        let names: Vec<&str> = parsed["fields"]
            .as_array()
            .unwrap()
            .iter()
            .map(|field| field["name"].as_str().unwrap())
            .collect();
        let documented = "ChangeEventHeader Name Type ParentId BillingAddress ShippingAddress Phone Fax AccountNumber Website Sic Industry \
            AnnualRevenue NumberOfEmployees Ownership TickerSymbol Description Rating Site OwnerId CreatedDate CreatedById LastModifiedDate";
        assert_eq!(
            names[..23],
            documented.split_whitespace().collect::<Vec<_>>()
        );
        assert_eq!(codec.place(object.index("Fax").unwrap()), Some((7, None)));
        assert_eq!(
            codec.place(object.index("ShippingCity").unwrap()),
            Some((5, Some(1)))
        );
        assert_eq!(
            codec.place(at::STAMP),
            None,
            "SystemModstamp is in no event"
        );
    }

    #[test]
    fn every_object_has_its_own_schema_id() {
        let schema = crate::salesforce::objects::schema(true);
        let ids: std::collections::HashSet<String> = schema
            .objects
            .iter()
            .map(|object| Codec::new(object).schema_id)
            .collect();
        assert_eq!(ids.len(), schema.objects.len());
    }
}
