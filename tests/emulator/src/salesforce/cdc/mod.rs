//! Change Data Capture: from committed changes to events on the bus, and the Pub/Sub API that serves them.

pub(crate) mod avro;
pub(crate) mod bitmap;
pub(crate) mod bus;
pub(crate) mod diff;
pub(crate) mod layout;
pub(crate) mod plain;
pub(crate) mod proto;
pub(crate) mod server;

use super::State;
use super::ids::SfId;
use super::schema::{Kind, Obj, Schema, at};
use super::store::Row;
use super::tx::{Change, ChangeKind, Writer};
use super::value::Value;
use crate::fault::Stream;
use bus::Draft;
use bytes::Bytes;
use layout::{CHANGE_TYPES, Codec, Slot};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Largest event; a larger change becomes a gap event.
const MAX_EVENT: usize = 1_000_000;

/// A channel of events.
#[derive(Clone, Copy)]
pub(crate) enum Topic {
    All,
    One(Obj),
}

impl Topic {
    /// `/data/ChangeEvents`, `/data/ContactChangeEvent`; `None` for one that does not exist.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let channel = name.strip_prefix("/data/")?;
        if channel == "ChangeEvents" {
            return Some(Self::All);
        }
        let found = Obj::ALL
            .into_iter()
            .find(|obj| obj.streams() && obj.change_event() == channel);
        found.map(Self::One)
    }

    /// Whether it shows changes of an object.
    pub(crate) fn admits(self, obj: Obj) -> bool {
        match self {
            Self::All => true,
            Self::One(only) => only == obj,
        }
    }
}

/// The event layouts of all objects.
pub(crate) struct Codecs {
    codecs: Vec<(Codec, Arc<str>)>,
    transactions: AtomicU64,
    /// Layouts that events still lie about in.
    before: Option<&'static Codecs>,
}

impl Codecs {
    /// Layouts for the org's objects.
    pub(crate) fn new(schema: &Schema) -> Self {
        let codec = |object| {
            let codec = Codec::new(object);
            let id: Arc<str> = codec.schema_id.as_str().into();
            (codec, id)
        };
        Self {
            codecs: schema.objects.iter().map(codec).collect(),
            transactions: AtomicU64::new(1),
            before: None,
        }
    }

    /// Layouts for objects whose definitions changed; events of before stay readable.
    pub(crate) fn succeeded_by(&'static self, schema: &Schema) -> Self {
        let number = self.transactions.load(Ordering::Relaxed);
        Self {
            transactions: AtomicU64::new(number),
            before: Some(self),
            ..Self::new(schema)
        }
    }

    /// The layout of one object.
    pub(crate) fn of(&self, obj: Obj) -> &Codec {
        &self.codecs[obj as usize].0
    }

    /// The schema with this id.
    pub(crate) fn by_id(&self, id: &str) -> Option<&Codec> {
        self.codecs
            .iter()
            .find(|(codec, _)| codec.schema_id == id)
            .map(|(codec, _)| codec)
            .or_else(|| self.before?.by_id(id))
    }
}

/// The header of an event, but for what the commit adds.
struct Header<'a> {
    obj: Obj,
    ids: Vec<String>,
    kind: &'a str,
    nulled: Vec<String>,
    diffs: Vec<String>,
    changed: Vec<String>,
}

/// What one commit gives all its events.
struct Commit {
    key: String,
    at: i64,
    number: u64,
    origin: String,
    user: String,
}

/// A change as it will be sent: equal ones of a transaction may share an event.
struct Body<'a> {
    header: Header<'a>,
    fields: Vec<u8>,
}

impl State {
    /// Turns the changes of a committed transaction into events.
    pub(crate) fn publish(&self, writer: &Writer, changes: &[Change]) {
        if changes.is_empty() {
            return;
        }
        let mut bodies: Vec<Body<'_>> = Vec::new();
        let merge = self.settings().merge_record_ids;
        for change in changes {
            let body = self.body(change);
            let twin = bodies
                .iter_mut()
                .find(|known| merge && known.matches(&body));
            match twin {
                Some(known) => known.header.ids.extend(body.header.ids),
                None => bodies.push(body),
            }
        }
        let commit = self.begin_commit(writer);
        let drafts = bodies
            .iter()
            .enumerate()
            // The places of what is not selected stay empty.
            .filter(|(_, body)| self.is_selected(body.header.obj))
            .map(|(place, body)| self.draft(&commit, place, body))
            .collect();
        self.send(drafts);
    }

    fn begin_commit(&self, writer: &Writer) -> Commit {
        let number = self.codecs().transactions.fetch_add(1, Ordering::Relaxed);
        let hash = crate::clock::mix(self.shared.options.seed ^ (number << 8));
        let key = format!(
            "{number:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            hash >> 48,
            hash >> 32 & 0xffff,
            hash >> 16 & 0xffff,
            hash & 0xffff_ffff
        );
        let number = 1_100_670_000_000 + number * 3;
        Commit {
            key,
            at: self.now(),
            number,
            origin: writer.origin.clone(),
            user: writer.user.to_string(),
        }
    }

    fn send(&self, drafts: Vec<Draft>) {
        let (drafts, delay) = self.shared.faults.on_events(Stream::Cdc, drafts);
        let retained = self.settings().retained_events;
        self.bus.publish(
            drafts,
            u64::try_from(delay.as_millis()).unwrap_or(0),
            retained,
        );
    }

    fn draft(&self, commit: &Commit, place: usize, body: &Body<'_>) -> Draft {
        let mut payload = Vec::with_capacity(256 + body.fields.len());
        push_header(&mut payload, &body.header, commit, place);
        payload.extend_from_slice(&body.fields);
        let (codec, schema_id) = &self.codecs().codecs[body.header.obj as usize];
        if payload.len() > MAX_EVENT {
            let kind = CHANGE_TYPES
                .iter()
                .find(|kind| **kind == format!("GAP_{}", body.header.kind))
                .copied()
                .unwrap_or("GAP_UPDATE");
            let header = Header {
                obj: body.header.obj,
                ids: body.header.ids.clone(),
                kind,
                nulled: vec![],
                diffs: vec![],
                changed: vec![],
            };
            payload.clear();
            push_header(&mut payload, &header, &commit.without_origin(), place);
            payload.extend(std::iter::repeat_n(0, codec.slots.len()));
        }
        Draft {
            obj: body.header.obj,
            schema_id: Arc::clone(schema_id),
            payload: Bytes::from(payload),
        }
    }

    /// Whether changes of an object raise events.
    fn is_selected(&self, obj: Obj) -> bool {
        let settings = self.settings();
        let named = settings.selected.iter().any(|name| name == obj.name());
        obj.streams() && (settings.selected.is_empty() || named)
    }

    /// Whether nobody may subscribe to a channel.
    pub(crate) fn withholds(&self, topic: Topic) -> bool {
        let Topic::One(obj) = topic else {
            return false;
        };
        let settings = self.settings();
        settings.withheld.iter().any(|name| name == obj.name())
    }

    /// Publishes a gap or overflow event: a header only.
    pub(crate) fn publish_gap(&self, obj: Obj, ids: Vec<String>, kind: &str, writer: &Writer) {
        let commit = self.begin_commit(writer).without_origin();
        let header = Header {
            obj,
            ids,
            kind,
            nulled: vec![],
            diffs: vec![],
            changed: vec![],
        };
        let fields = vec![0; self.codecs().of(obj).slots.len()];
        let draft = self.draft(&commit, 0, &Body { header, fields });
        self.send(vec![draft]);
    }

    fn body(&self, change: &Change) -> Body<'static> {
        let codec = self.codecs().of(change.obj);
        let mut header = Header {
            obj: change.obj,
            ids: vec![SfId::new(change.obj.prefix(), change.number).to_string()],
            kind: match change.kind {
                ChangeKind::Create => "CREATE",
                ChangeKind::Update => "UPDATE",
                ChangeKind::Delete => "DELETE",
                ChangeKind::Undelete => "UNDELETE",
            },
            nulled: Vec::new(),
            diffs: Vec::new(),
            changed: Vec::new(),
        };
        let mut fields = Vec::with_capacity(128);
        match change.kind {
            ChangeKind::Delete => fields.extend(std::iter::repeat_n(0, codec.slots.len())),
            ChangeKind::Create | ChangeKind::Undelete => {
                push_fields(&mut fields, codec, &change.row, &|_| true, &[])
            }
            ChangeKind::Update => {
                let diffs = self.diffs(change);
                header.changed = named(codec, &change.changed);
                let nulled: Vec<usize> = change
                    .changed
                    .iter()
                    .copied()
                    .filter(|index| change.row.values[*index].is_null())
                    .collect();
                header.nulled = named(codec, &nulled);
                header.diffs = named(
                    codec,
                    &diffs.iter().map(|(index, _)| *index).collect::<Vec<_>>(),
                );
                push_fields(
                    &mut fields,
                    codec,
                    &change.row,
                    &|index| change.changed.contains(&index),
                    &diffs,
                );
            }
        }
        Body { header, fields }
    }

    /// Long texts that are sent as differences.
    fn diffs(&self, change: &Change) -> Vec<(usize, Value)> {
        let Some(old) = change.old.as_ref().filter(|_| self.settings().diffs) else {
            return Vec::new();
        };
        let object = self.schema().object(change.obj);
        let long = change
            .changed
            .iter()
            .filter(|index| object.fields[**index].kind == Kind::TextArea);
        long.filter_map(|index| {
            let text = diff::unified(
                old.values[*index].as_text()?,
                change.row.values[*index].as_text()?,
            )?;
            Some((*index, Value::text(&text)))
        })
        .collect()
    }
}

impl Commit {
    fn without_origin(&self) -> Self {
        Self {
            key: self.key.clone(),
            at: self.at,
            number: self.number,
            origin: String::new(),
            user: self.user.clone(),
        }
    }
}

impl Body<'_> {
    fn matches(&self, other: &Self) -> bool {
        let (a, b) = (&self.header, &other.header);
        a.obj == b.obj
            && a.kind == b.kind
            && a.kind != "CREATE"
            && a.changed == b.changed
            && a.nulled == b.nulled
            && self.fields == other.fields
    }
}

/// The bitmaps that name these fields.
fn named(codec: &Codec, fields: &[usize]) -> Vec<String> {
    let mut plain = Vec::new();
    let mut nested: Vec<(usize, Vec<usize>)> = Vec::new();
    for (parent, part) in fields.iter().filter_map(|field| codec.place(*field)) {
        match part {
            None => plain.push(parent),
            Some(part) => match nested.iter_mut().find(|(known, _)| *known == parent) {
                Some((_, parts)) => parts.push(part),
                None => nested.push((parent, vec![part])),
            },
        }
    }
    nested.sort_unstable();
    bitmap::list(&plain, &nested)
}

fn push_fields(
    out: &mut Vec<u8>,
    codec: &Codec,
    row: &Row,
    sent: &dyn Fn(usize) -> bool,
    diffs: &[(usize, Value)],
) {
    let value = |index: usize| {
        if !sent(index) {
            return &Value::Null;
        }
        diffs
            .iter()
            .find(|(known, _)| *known == index)
            .map_or(&row.values[index], |(_, diff)| diff)
    };
    for slot in &codec.slots {
        match slot {
            // Both unions have their text in branch 1.
            Slot::Plain(index) | Slot::SwitchableName(index) => avro::optional(out, value(*index)),
            Slot::Compound { parts, .. } => {
                let any = parts.iter().any(|(_, index)| {
                    sent(*index) && (!row.values[*index].is_null() || !sent(at::ID))
                });
                avro::long(out, i64::from(any));
                if any {
                    parts
                        .iter()
                        .for_each(|(_, index)| avro::optional(out, value(*index)));
                }
            }
        }
    }
}

fn push_header(out: &mut Vec<u8>, header: &Header<'_>, commit: &Commit, place: usize) {
    avro::string(out, header.obj.name());
    avro::strings(out, &header.ids);
    let kind = CHANGE_TYPES
        .iter()
        .position(|kind| *kind == header.kind)
        .unwrap_or(1);
    avro::long(out, i64::try_from(kind).unwrap_or(1));
    avro::string(out, &commit.origin);
    avro::string(out, &commit.key);
    avro::long(out, i64::try_from(place).unwrap_or(0) + 1);
    avro::long(out, commit.at);
    avro::long(out, i64::try_from(commit.number).unwrap_or(0));
    avro::string(out, &commit.user);
    avro::strings(out, &header.nulled);
    avro::strings(out, &header.diffs);
    avro::strings(out, &header.changed);
}
