//! Change Data Capture: from a Pub/Sub payload to changes.
//!
//! In such an event every field of the schema is present and null where it did
//! not change. What did change is told by bitmaps of the header, and a null is
//! a null only if `nulledFields` says so.

pub mod cometd;

use serde_json::Value as Json;

use crate::connectors::table::{self, Rule};
use crate::model::{Change, ChangeKind, ErrorClass, Millis, RemoteError, Value};
use crate::value::{canonical, format_instant};

use super::avro::{AvroError, Datum, Field, Node, Types};
use super::id18;

/// Largest payload: Salesforce sends at most 1 MB.
const PAYLOAD_MAX: usize = 4 << 20;
/// Largest schema text.
const SCHEMA_MAX: usize = 16 << 20;
/// Record id of an overflow event.
const NO_RECORD: &str = "000000000000000AAA";
/// Before a program's own name in a change origin, which is a path of the platform.
const CLIENT: &str = ";client=";
const PLATFORM: &str = "com/salesforce/";

/// Whether a program of an event is a client's name.
pub(super) fn names_writer(application: &str) -> bool {
    !application.is_empty() && !application.starts_with(PLATFORM)
}

/// The schema of an event, parsed once and cached by its id.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema {
    types: Types,
    root: usize,
    header: usize,
}

fn malformed(code: &str, message: &str) -> RemoteError {
    let rule = Rule::new(
        0,
        "",
        ErrorClass::FixData,
        "The event is set aside and its object read again; report it if it repeats.",
    );
    table::error(&rule, 0, code, message)
}

fn avro(error: &AvroError) -> RemoteError {
    malformed("bad_event", &error.to_string())
}

impl Schema {
    /// Parses the JSON text of `GetSchema`.
    pub fn parse(json: &str) -> Result<Self, RemoteError> {
        if json.len() > SCHEMA_MAX {
            return Err(malformed("bad_schema", "the schema is too large"));
        }
        let json: Json = serde_json::from_str(json)
            .map_err(|e| malformed("bad_schema", &format!("not JSON: {e}")))?;
        let (types, root) =
            Types::parse(&json).map_err(|e| malformed("bad_schema", &e.to_string()))?;
        let header = types.records[root]
            .iter()
            .position(|f| f.name == "ChangeEventHeader")
            .ok_or_else(|| malformed("bad_schema", "no ChangeEventHeader: not a change event"))?;
        Ok(Self {
            types,
            root,
            header,
        })
    }

    /// Decodes one payload: a change per record id.
    pub fn decode(&self, payload: &[u8]) -> Result<Vec<Change>, RemoteError> {
        if payload.len() > PAYLOAD_MAX {
            return Err(malformed("bad_event", "the payload is too large"));
        }
        let values = self
            .types
            .decode(self.root, payload)
            .map_err(|e| avro(&e))?;
        let Some(Datum::Record(index, header)) = values.get(self.header) else {
            return Err(malformed("bad_event", "no header"));
        };
        let header = Header::read(&self.types.records[*index], header)?;
        Ok(self.changes(&header, &values))
    }

    fn fields(&self) -> &[Field] {
        &self.types.records[self.root]
    }

    fn changes(&self, header: &Header, values: &[Datum]) -> Vec<Change> {
        let kind = header.kind();
        let mut event = Carried::default();
        if matches!(
            kind,
            ChangeKind::Create | ChangeKind::Update | ChangeKind::Restore
        ) {
            self.carry(header, values, &mut event);
        }
        let all = header.record_ids.iter();
        let overflow = kind == ChangeKind::Overflow
            || header.record_ids.is_empty()
            || all.clone().any(|id| id.contains('*') || id == NO_RECORD);
        if overflow {
            return vec![header.change("", ChangeKind::Overflow, Carried::default())];
        }
        all.map(|id| header.change(id, kind.clone(), event.clone()))
            .collect()
    }

    /// Collects what the event says of fields.
    fn carry(&self, header: &Header, values: &[Datum], out: &mut Carried) {
        let told = Told::new(header);
        for (i, (field, datum)) in self.fields().iter().zip(values).enumerate() {
            if i == self.header {
                continue;
            }
            // A name that may be a person's comes as text or as a record.
            let as_record = matches!(datum, Datum::Record(..)) || told.inside(i);
            match compound(field) {
                Some((inner, or_text)) if as_record || !or_text => {
                    self.carry_parts(i, inner, datum, &told, out);
                }
                _ => scalar(&field.name, field, datum, &told.field(i), out),
            }
        }
    }

    /// Collects what the event says of the components of field `i`.
    fn carry_parts(&self, i: usize, inner: usize, datum: &Datum, told: &Told, out: &mut Carried) {
        let name = &self.fields()[i].name;
        let parts = match datum {
            Datum::Record(_, parts) => parts.as_slice(),
            _ => &[],
        };
        let before = out.fields.len() + out.reread.len();
        for (j, component) in self.types.records[inner].iter().enumerate() {
            let part = parts.get(j).unwrap_or(&Datum::Null);
            let full = component_name(name, &component.name);
            scalar(&full, component, part, &told.part(i, j), out);
        }
        // The whole name is a field too, and is not sent beside its parts.
        if name == "Name" && out.fields.len() + out.reread.len() > before {
            out.reread.push(name.clone());
        }
    }
}

/// The record type among a field's branches, if it is a compound, and whether
/// it may be text instead.
fn compound(field: &Field) -> Option<(usize, bool)> {
    let branches = match &field.node {
        Node::Union(branches) => branches.as_slice(),
        node => std::slice::from_ref(node),
    };
    let record = branches.iter().find_map(|b| match b {
        Node::Record(index) => Some(*index),
        _ => None,
    })?;
    Some((record, branches.contains(&Node::Text)))
}

/// What the header tells of fields.
struct Told {
    /// `None` in creates and restores, where what is not null counts.
    changed: Option<Bits>,
    nulled: Bits,
    diffs: Bits,
}

impl Told {
    fn new(header: &Header) -> Self {
        let changed = Bits::parse(&header.changed);
        Self {
            changed: (!changed.is_empty()).then_some(changed),
            nulled: Bits::parse(&header.nulled),
            diffs: Bits::parse(&header.diffs),
        }
    }

    /// Whether it tells of components of field `i`.
    fn inside(&self, i: usize) -> bool {
        let all = [self.changed.as_ref(), Some(&self.nulled), Some(&self.diffs)];
        all.into_iter().flatten().any(|bits| bits.inside(i))
    }

    fn field(&self, i: usize) -> Flags {
        self.flags(|bits| bits.top(i))
    }

    fn part(&self, i: usize, j: usize) -> Flags {
        self.flags(|bits| bits.nested(i, j))
    }

    fn flags(&self, of: impl Fn(&Bits) -> bool) -> Flags {
        Flags {
            changed: self.changed.as_ref().map(&of),
            nulled: of(&self.nulled),
            diff: of(&self.diffs),
        }
    }
}

struct Flags {
    /// `None` where the event tells no changed fields.
    changed: Option<bool>,
    nulled: bool,
    diff: bool,
}

/// Takes over one field of the event, if it counts.
fn scalar(name: &str, field: &Field, datum: &Datum, flags: &Flags, out: &mut Carried) {
    if flags.diff {
        // The value is a unified diff against text that we may not have.
        out.reread.push(name.to_owned());
        return;
    }
    if flags.nulled {
        out.fields.push((name.to_owned(), None));
        return;
    }
    if flags.changed == Some(false) {
        return;
    }
    match (text(field, datum), flags.changed) {
        (Read::Value(value), _) => out.fields.push((name.to_owned(), Some(value))),
        (Read::Unknown, _) => out.reread.push(name.to_owned()),
        // Named as changed, no value, not named as null: only a read can tell.
        (Read::Null, Some(_)) => out.reread.push(name.to_owned()),
        (Read::Null, None) => {}
    }
}

enum Read {
    Null,
    Value(String),
    Unknown,
}

/// A datum as text. Salesforce notes its own type in `doc`, as the second part.
fn text(field: &Field, datum: &Datum) -> Read {
    match datum {
        Datum::Null => Read::Null,
        Datum::Boolean(b) => Read::Value(b.to_string()),
        Datum::Integer(n) => {
            let kinds: Vec<&str> = field.doc.split(':').skip(1).collect();
            let ms = kinds.contains(&"DateTime").then(|| format_instant(*n));
            let day = kinds.contains(&"DateOnly") || kinds.contains(&"Date");
            let day = day.then(|| canonical(crate::model::FieldType::Date, &n.to_string()));
            let known = ms.flatten().or(day.and_then(|d| d.ok().flatten()));
            Read::Value(known.unwrap_or_else(|| n.to_string()))
        }
        Datum::Real(n) if n.is_finite() => Read::Value(n.to_string()),
        Datum::Text(s) if s.is_empty() => Read::Null,
        Datum::Text(s) => Read::Value(s.chars().filter(|c| *c != '\0').collect()),
        Datum::Real(_) | Datum::Bytes | Datum::List(_) | Datum::Record(..) => Read::Unknown,
    }
}

/// The field that a component of a compound is in REST: `BillingAddress.City`
/// is `BillingCity`, `Name.FirstName` is `FirstName`, `Plant__c.City` is
/// `Plant__City__s`.
fn component_name(compound: &str, component: &str) -> String {
    if let Some(base) = compound.strip_suffix("__c") {
        return format!("{base}__{component}__s");
    }
    match compound.strip_suffix("Address") {
        Some(prefix) => format!("{prefix}{component}"),
        None => component.to_owned(),
    }
}

#[derive(Clone, Default)]
struct Carried {
    fields: Vec<(String, Value)>,
    reread: Vec<String>,
}

/// The header's fields, by name.
#[derive(Default)]
struct Header {
    entity: String,
    record_ids: Vec<String>,
    change_type: String,
    origin: String,
    transaction: String,
    sequence: i64,
    committed_at: Millis,
    commit_number: i64,
    user: String,
    nulled: Vec<String>,
    diffs: Vec<String>,
    changed: Vec<String>,
}

fn strings(datum: &Datum) -> Vec<String> {
    match datum {
        Datum::List(items) => items
            .iter()
            .filter_map(|i| match i {
                Datum::Text(s) => Some(s.clone()),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}

impl Header {
    fn read(fields: &[Field], values: &[Datum]) -> Result<Self, RemoteError> {
        let mut header = Self::default();
        for (field, datum) in fields.iter().zip(values) {
            let text = || match datum {
                Datum::Text(s) => s.clone(),
                _ => String::new(),
            };
            let number = || match datum {
                Datum::Integer(n) => *n,
                _ => 0,
            };
            match field.name.as_str() {
                "entityName" => header.entity = text(),
                "recordIds" => header.record_ids = strings(datum),
                "changeType" => header.change_type = text(),
                "changeOrigin" => header.origin = text(),
                "transactionKey" => header.transaction = text(),
                "sequenceNumber" => header.sequence = number(),
                "commitTimestamp" => header.committed_at = number(),
                "commitNumber" => header.commit_number = number(),
                "commitUser" => header.user = text(),
                "nulledFields" => header.nulled = strings(datum),
                "diffFields" => header.diffs = strings(datum),
                "changedFields" => header.changed = strings(datum),
                _ => {}
            }
        }
        if header.entity.is_empty() {
            return Err(malformed("bad_event", "no entityName in the header"));
        }
        Ok(header)
    }

    fn kind(&self) -> ChangeKind {
        match self.change_type.as_str() {
            "CREATE" => ChangeKind::Create,
            "UPDATE" => ChangeKind::Update,
            "DELETE" => ChangeKind::Delete,
            "UNDELETE" => ChangeKind::Restore,
            "GAP_OVERFLOW" => ChangeKind::Overflow,
            // Gaps carry a header only; a type of tomorrow still names records.
            _ => ChangeKind::Reread,
        }
    }

    fn change(&self, id: &str, kind: ChangeKind, carried: Carried) -> Change {
        let record_id = id18(id);
        // A transaction numbers its events; without one the commit must do.
        let key = if self.transaction.is_empty() {
            format!(
                "{}@{}:{}",
                self.commit_number, self.committed_at, self.change_type
            )
        } else {
            self.transaction.clone()
        };
        Change {
            identity: format!("cdc:{key}:{}:{}:{record_id}", self.sequence, self.entity),
            object: self.entity.clone(),
            record_id,
            kind,
            fields: carried.fields,
            reread: carried.reread,
            occurred_at: self.committed_at,
            actor: self.user.clone(),
            mark: self.origin.clone(),
            by_others: self.origin.contains(CLIENT),
            transaction: Some(self.transaction.clone()).filter(|t| !t.is_empty()),
        }
    }
}

/// Field bitmaps: `0x400080` for fields of the event, `4-0x02` for components
/// of its field 4. Bit 0 is the last bit of the last digit. Names, as CometD
/// gives them, set no bits.
#[derive(Default)]
struct Bits {
    top: Vec<u8>,
    nested: Vec<(usize, Vec<u8>)>,
}

impl Bits {
    fn parse(list: &[String]) -> Self {
        let mut bits = Self::default();
        for text in list {
            match text.split_once('-') {
                None => bits.top = hex_bits(text).unwrap_or_default(),
                Some((parent, rest)) => {
                    if let (Ok(parent), Some(inner)) = (parent.parse(), hex_bits(rest)) {
                        bits.nested.push((parent, inner));
                    }
                }
            }
        }
        bits
    }

    fn is_empty(&self) -> bool {
        self.top.is_empty() && self.nested.is_empty()
    }

    fn top(&self, i: usize) -> bool {
        bit(&self.top, i)
    }

    fn inside(&self, parent: usize) -> bool {
        self.nested.iter().any(|(p, _)| *p == parent)
    }

    /// The component's own bit; where the components are not told apart, the
    /// bit of the whole field.
    fn nested(&self, parent: usize, i: usize) -> bool {
        if !self.inside(parent) {
            return self.top(parent);
        }
        let mut of = self.nested.iter().filter(|(p, _)| *p == parent);
        of.any(|(_, bits)| bit(bits, i))
    }
}

/// Bytes of a bitmap, the least significant first.
fn hex_bits(text: &str) -> Option<Vec<u8>> {
    let digits = text
        .strip_prefix("0x")
        .or_else(|| text.strip_prefix("0X"))?;
    if digits.is_empty() || digits.len() > 4_096 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len().div_ceil(2));
    for pair in digits.as_bytes().rchunks(2) {
        let pair = std::str::from_utf8(pair).ok()?;
        bytes.push(u8::from_str_radix(pair, 16).ok()?);
    }
    Some(bytes)
}

fn bit(bytes: &[u8], i: usize) -> bool {
    bytes.get(i / 8).is_some_and(|b| b & (1 << (i % 8)) != 0)
}

#[cfg(test)]
mod tests;
