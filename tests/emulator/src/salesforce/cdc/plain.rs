//! Change events as CometD shows them: JSON, names in place of bitmaps, and only
//! the fields that the event is about.

use super::layout::Codec;
use crate::salesforce::schema::{Kind, Object};
use crate::salesforce::stamps::{self, DAY_MS};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// The payload of an event of `object`; `None` if the bytes are not what the codec says.
pub(crate) fn render(object: &Object, codec: &Codec, payload: &[u8]) -> Option<Value> {
    let schema: Value = serde_json::from_str(&codec.schema_json).ok()?;
    let mut named = HashMap::new();
    learn(&schema, &mut named);
    let root = Reader {
        bytes: payload,
        named: &named,
    }
    .value(&schema)?;
    let fields = schema["fields"].as_array()?;
    let Value::Object(values) = root else {
        return None;
    };
    let mut header = values.get("ChangeEventHeader")?.as_object()?.clone();
    let bits = |header: &mut Map<String, Value>, name: &str| -> Vec<(usize, Option<usize>)> {
        let list = header.remove(name).unwrap_or_default();
        let list = list.as_array().cloned().unwrap_or_default();
        list.iter()
            .filter_map(Value::as_str)
            .flat_map(places)
            .collect()
    };
    let _nulled = bits(&mut header, "nulledFields");
    let diffs = bits(&mut header, "diffFields");
    let changed = bits(&mut header, "changedFields");
    let update = header.get("changeType")? == "UPDATE";
    let names: Vec<String> = changed
        .iter()
        .filter_map(|p| name(fields, &named, *p))
        .collect();
    header.insert("changedFields".into(), json!(names));
    let mut out = Map::new();
    out.insert("ChangeEventHeader".into(), Value::Object(header));
    for (place, (field, value)) in values.into_iter().enumerate().skip(1) {
        let told = changed.iter().any(|(parent, _)| *parent == place);
        if update && !told || !update && value.is_null() {
            continue;
        }
        let value = match (diffs.contains(&(place, None)), value) {
            (true, text) => json!({"diff": text}),
            (false, value) => dated(object, &field, value),
        };
        out.insert(field, value);
    }
    Some(Value::Object(out))
}

/// Times and days are text here.
fn dated(object: &Object, field: &str, value: Value) -> Value {
    let kind = object.index(field).map(|index| object.fields[index].kind);
    match (kind, value.as_i64()) {
        (Some(Kind::DateTime), Some(ms)) => {
            let text = stamps::datetime(ms.div_euclid(1_000) * 1_000);
            json!(format!("{}Z", text.split('.').next().unwrap_or_default()))
        }
        (Some(Kind::Date), Some(ms)) => {
            let mut text = Vec::new();
            stamps::push_date(&mut text, i32::try_from(ms.div_euclid(DAY_MS)).unwrap_or(0));
            json!(String::from_utf8_lossy(&text))
        }
        _ => value,
    }
}

/// The fields that a bitmap names: positions in the event, and in a compound one.
fn places(bitmap: &str) -> Vec<(usize, Option<usize>)> {
    let (parent, hex) = match bitmap.split_once('-') {
        Some((parent, hex)) => (parent.parse().ok(), hex),
        None => (None, bitmap),
    };
    let digits = hex.trim_start_matches("0x").bytes().rev();
    let set = digits.enumerate().flat_map(|(digit, byte)| {
        let value = char::from(byte).to_digit(16).unwrap_or(0);
        (0..4)
            .filter(move |bit| value & (1 << bit) != 0)
            .map(move |bit| digit * 4 + bit)
    });
    set.map(|bit| match parent {
        Some(parent) => (parent, Some(bit)),
        None => (bit, None),
    })
    .collect()
}

/// `Phone`, or `BillingAddress.City`.
fn name(
    fields: &[Value],
    named: &HashMap<String, Value>,
    (parent, part): (usize, Option<usize>),
) -> Option<String> {
    let field = fields.get(parent)?;
    let own = field["name"].as_str()?;
    let Some(part) = part else {
        return Some(own.to_owned());
    };
    let union = field["type"].as_array()?;
    let record = union.iter().find_map(|branch| match branch {
        Value::String(name) => named.get(name),
        record => Some(record).filter(|r| r.is_object()),
    })?;
    let inner = record["fields"].get(part)?["name"].as_str()?;
    Some(format!("{own}.{inner}"))
}

/// Collects the record types of a schema: a field may name one that an earlier field defines, whether that one has a
/// value or not.
fn learn(kind: &Value, named: &mut HashMap<String, Value>) {
    match kind {
        Value::Array(branches) => branches.iter().for_each(|branch| learn(branch, named)),
        Value::Object(complex) => {
            if let (Some(fields), Some(name)) = (complex.get("fields"), complex.get("name")) {
                let fields = fields.as_array().into_iter().flatten();
                fields.for_each(|field| learn(&field["type"], named));
                named.insert(name.as_str().unwrap_or_default().to_owned(), kind.clone());
            }
        }
        _ => {}
    }
}

/// Avro binary, as far as change events need it.
struct Reader<'a> {
    bytes: &'a [u8],
    named: &'a HashMap<String, Value>,
}

impl Reader<'_> {
    fn take(&mut self, n: usize) -> Option<&[u8]> {
        let (head, rest) = self.bytes.split_at_checked(n)?;
        self.bytes = rest;
        Some(head)
    }

    fn long(&mut self) -> Option<i64> {
        let mut bits = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first()?;
            bits |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some((bits >> 1) as i64 ^ -((bits & 1) as i64));
            }
        }
        None
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.long()?).ok()?;
        Some(String::from_utf8_lossy(self.take(length)?).into_owned())
    }

    fn value(&mut self, kind: &Value) -> Option<Value> {
        match kind {
            Value::Array(branches) => {
                let branch = usize::try_from(self.long()?).ok()?;
                self.value(branches.get(branch)?)
            }
            Value::String(name) => self.named(name),
            Value::Object(complex) => match complex.get("type")?.as_str()? {
                "record" => {
                    let mut out = Map::new();
                    for field in complex.get("fields")?.as_array()? {
                        let value = self.value(&field["type"])?;
                        out.insert(field["name"].as_str()?.to_owned(), value);
                    }
                    Some(Value::Object(out))
                }
                "array" => {
                    let mut items = Vec::new();
                    loop {
                        let count = self.long()?;
                        if count == 0 {
                            return Some(Value::Array(items));
                        }
                        for _ in 0..count {
                            items.push(self.value(complex.get("items")?)?);
                        }
                    }
                }
                "enum" => {
                    let symbol = usize::try_from(self.long()?).ok()?;
                    complex.get("symbols")?.get(symbol).cloned()
                }
                _ => None,
            },
            _ => None,
        }
    }

    fn named(&mut self, name: &str) -> Option<Value> {
        Some(match name {
            "null" => Value::Null,
            "boolean" => json!(*self.take(1)?.first()? != 0),
            "int" | "long" => json!(self.long()?),
            "double" => json!(f64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            "string" => json!(self.text()?),
            _ => {
                let record = self.named.get(name)?.clone();
                self.value(&record)?
            }
        })
    }
}
