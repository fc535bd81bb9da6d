//! What an administrator does to the fields of an object while the org runs: add, rename, retype, remove, and change the
//! values of a picklist.
//!
//! A definition lives as long as the process, since readers hold it without a lock: a change makes a new one beside it.

use super::State;
use super::cdc::Codecs;
use super::objects::{field, pick};
use super::schema::{Field, Kind, Object, Schema, flag};
use super::value::Value;
use crate::admin::Refused;
use serde_json::{Map, Value as Json, json};
use std::sync::PoisonError;

/// The org's definitions as they are now.
#[derive(Clone, Copy)]
pub(super) struct Model {
    pub(super) schema: &'static Schema,
    pub(super) codecs: &'static Codecs,
    /// When they last changed.
    pub(super) changed_ms: i64,
}

fn forever(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

fn text<'a>(change: &'a Map<String, Json>, key: &str) -> Result<&'a str, Refused> {
    let found = change.get(key).and_then(Json::as_str);
    found.ok_or_else(|| Refused::Bad(format!("{key}: expected text")))
}

fn kind(name: &str) -> Result<Kind, Refused> {
    let kinds = [
        Kind::Text,
        Kind::TextArea,
        Kind::Phone,
        Kind::Email,
        Kind::Picklist,
        Kind::MultiPicklist,
        Kind::Boolean,
        Kind::Double,
        Kind::Date,
        Kind::DateTime,
    ];
    let found = kinds.into_iter().find(|kind| kind.name() == name);
    found.ok_or_else(|| Refused::Bad(format!("type: `{name}` cannot be made here")))
}

fn choices(change: &Map<String, Json>) -> Option<&'static [&'static str]> {
    let list = change.get("choices")?.as_array()?;
    let values: Vec<&'static str> = list.iter().filter_map(Json::as_str).map(forever).collect();
    Some(values.leak())
}

/// A new field; `filled`: every record has its own id in it.
fn made(change: &Map<String, Json>) -> Result<Field, Refused> {
    let name = forever(text(change, "name")?);
    let kind = kind(
        change
            .get("type")
            .and_then(Json::as_str)
            .unwrap_or("string"),
    )?;
    let filled = change.get("filled").and_then(Json::as_bool) == Some(true);
    let base = match filled {
        true => |gen_: &super::base::Gen<'_>| Value::text(&gen_.id().to_string()),
        false => |_: &super::base::Gen<'_>| Value::Null,
    };
    let made = match kind {
        Kind::Picklist => pick(name, choices(change).unwrap_or_default(), base),
        _ => field(name, kind, if kind.is_text() { 255 } else { 0 }, base),
    };
    Ok(Field {
        precision: if kind.is_number() { 18 } else { 0 },
        label: change.get("label").and_then(Json::as_str).map(forever),
        ..made.with(flag::CUSTOM)
    })
}

impl State {
    fn model(&self) -> Model {
        *self.model.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The objects as they are now.
    pub(super) fn schema(&self) -> &'static Schema {
        self.model().schema
    }

    /// The layouts of events as they are now.
    pub(super) fn codecs(&self) -> &'static Codecs {
        self.model().codecs
    }

    /// When the definitions changed last.
    pub(super) fn schema_changed_ms(&self) -> i64 {
        self.model().changed_ms
    }

    /// Changes a field of an object; answers its name.
    pub(super) fn change_field(
        &self,
        object: &str,
        change: &Map<String, Json>,
    ) -> Result<Json, Refused> {
        // Before the model: a transaction holds the store while it reads definitions.
        let mut store = self.write_store();
        let obj = self.named(object)?.obj;
        let old = self.schema();
        let mut fields = old.object(obj).fields.clone();
        let name = text(change, "name")?;
        let at = old.object(obj).index(name);
        let known =
            || at.ok_or_else(|| Refused::NotFound(format!("no field `{name}` in {}", obj.name())));
        match text(change, "do")? {
            "add" if at.is_none() => fields.push(made(change)?),
            "add" => return Err(Refused::Bad(format!("`{name}` exists"))),
            "rename" => {
                let field = &mut fields[known()?];
                // The label stays: that is how a rename is known from outside.
                field.label = Some(forever(&field.label()));
                field.name = forever(text(change, "to")?);
            }
            "retype" => {
                let field = &mut fields[known()?];
                field.kind = kind(text(change, "type")?)?;
                let length = change.get("length").and_then(Json::as_u64);
                field.length = length.and_then(|n| u32::try_from(n).ok()).unwrap_or(255);
                if !field.kind.is_text() {
                    field.length = 0;
                }
            }
            "choices" => fields[known()?].picklist = choices(change).unwrap_or_default(),
            "remove" => fields[known()?].flags |= flag::HIDDEN,
            "restore" => {
                let hidden = fields
                    .iter_mut()
                    .find(|f| f.name.eq_ignore_ascii_case(name));
                let hidden = hidden.ok_or_else(|| {
                    Refused::NotFound(format!("no field `{name}` was ever there"))
                })?;
                hidden.flags &= !flag::HIDDEN;
            }
            other => return Err(Refused::Bad(format!("do: unknown `{other}`"))),
        }
        let objects = old.objects.iter().map(|object| {
            let fields = if object.obj == obj {
                fields.clone()
            } else {
                object.fields.clone()
            };
            Object::new(object.obj, object.label, object.plural, fields)
        });
        let schema: &'static Schema = Box::leak(Box::new(Schema {
            objects: objects.collect(),
        }));
        let codecs: &'static Codecs = Box::leak(Box::new(self.codecs().succeeded_by(schema)));
        store.table_mut(obj).widen(schema.object(obj));
        // Header dates have seconds: the next one, so that a copy of this second is known to be old.
        let changed_ms = self.now().max(self.schema_changed_ms() + 1_000);
        let mut model = self.model.write().unwrap_or_else(PoisonError::into_inner);
        *model = Model {
            schema,
            codecs,
            changed_ms,
        };
        Ok(json!({"object": obj.name(), "field": name}))
    }
}
