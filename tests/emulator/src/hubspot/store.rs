//! Records of one object type: base records are computed, written ones overlay them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    base::{Meta, Source, Subject, push_base, push_iso},
    model::{Catalog, Property, PropertyId},
};
use crate::people::{Kind, People, push_number};

/// Past values kept per record and property.
const HISTORY: usize = 20;

/// A former or present value, as `propertiesWithHistory` shows it.
#[derive(Clone, Debug)]
pub(crate) struct Past {
    pub(crate) property: PropertyId,
    pub(crate) value: Option<Box<str>>,
    pub(crate) at_ms: i64,
    pub(crate) source_type: Arc<str>,
    pub(crate) source_id: Arc<str>,
}

/// A record that was written, created or archived since start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    /// Number of the base record underneath; 0 for none.
    pub(crate) n: u64,
    pub(crate) created_ms: i64,
    pub(crate) modified_ms: i64,
    pub(crate) archived_ms: Option<i64>,
    /// Gone for good (privacy deletion) or merged away: reads answer 404.
    pub(crate) gone: bool,
    /// Written values by property, sorted; `None` is cleared.
    pub(crate) values: Vec<(PropertyId, Option<Box<str>>)>,
    /// Oldest first.
    pub(crate) history: Vec<Past>,
}

impl Record {
    /// The written value: `None` when never written, `Some(None)` when cleared.
    pub(crate) fn written(&self, property: PropertyId) -> Option<Option<&str>> {
        let at = self.values.binary_search_by_key(&property, |v| v.0).ok()?;
        Some(self.values[at].1.as_deref())
    }

    /// Sets a value and remembers it in the history.
    pub(crate) fn set(&mut self, past: Past) {
        let property = past.property;
        match self.values.binary_search_by_key(&property, |v| v.0) {
            Ok(at) => self.values[at].1.clone_from(&past.value),
            Err(at) => {
                // A million written records are kept: no room to spare in any of them.
                self.values.reserve_exact(1);
                self.values.insert(at, (property, past.value.clone()));
            }
        }
        let same = |p: &Past| p.property == property;
        if self.history.iter().filter(|p| same(p)).count() >= HISTORY
            && let Some(at) = self.history.iter().position(same)
        {
            self.history.remove(at);
        }
        self.history.reserve_exact(1);
        self.history.push(past);
    }

    /// Whether reads and searches of live records see it.
    pub(crate) fn is_live(&self) -> bool {
        self.archived_ms.is_none() && !self.gone
    }
}

/// What is the same for every record of a type.
#[derive(Clone)]
pub(crate) struct Ground {
    pub(crate) people: People,
    pub(crate) kind: Kind,
    /// Base records have ids `id_base + 1 ..= id_base + count`.
    pub(crate) id_base: u64,
    pub(crate) count: u64,
    pub(crate) app_id: u64,
}

impl Ground {
    /// Number of the base record with this id; 0 for none.
    pub(crate) fn number(&self, id: u64) -> u64 {
        match id.checked_sub(self.id_base) {
            Some(n) if n <= self.count => n,
            _ => 0,
        }
    }

    pub(crate) fn id(&self, n: u64) -> u64 {
        self.id_base + n
    }

    /// The untouched base record `n`.
    pub(crate) fn record(&self, n: u64) -> Record {
        Record {
            n,
            created_ms: self.people.created_ms(self.kind, n),
            modified_ms: self.people.modified_ms(self.kind, n),
            ..Record::default()
        }
    }
}

/// A record as one sees it: base, overlay or both.
pub(crate) struct View<'a> {
    pub(crate) ground: &'a Ground,
    pub(crate) id: u64,
    pub(crate) created_ms: i64,
    pub(crate) modified_ms: i64,
    pub(crate) record: Option<&'a Record>,
    n: u64,
    subject: Subject,
}

impl<'a> View<'a> {
    pub(crate) fn new(ground: &'a Ground, id: u64, record: Option<&'a Record>) -> View<'a> {
        let n = record.map_or_else(|| ground.number(id), |r| r.n);
        let (created_ms, modified_ms) = match record {
            Some(record) => (record.created_ms, record.modified_ms),
            None => (
                ground.people.created_ms(ground.kind, n),
                ground.people.modified_ms(ground.kind, n),
            ),
        };
        View {
            ground,
            id,
            created_ms,
            modified_ms,
            record,
            n,
            subject: if n == 0 {
                Subject::Other
            } else {
                Subject::of(&ground.people, ground.kind, n)
            },
        }
    }

    pub(crate) fn archived_ms(&self) -> Option<i64> {
        self.record.and_then(|r| r.archived_ms)
    }

    /// Appends the value; `Pushed` says whether it is empty and whether JSON must escape it.
    pub(crate) fn push(&self, id: PropertyId, property: &Property, out: &mut Vec<u8>) -> Pushed {
        if let Source::Meta(meta) = property.source {
            match meta {
                Meta::Id => push_number(out, self.id, 1),
                Meta::Created => push_iso(out, self.created_ms),
                Meta::CreatedEpoch => push_number(out, self.created_ms.max(0) as u64, 1),
                Meta::Modified => push_iso(out, self.modified_ms),
                Meta::AppId => push_number(out, self.ground.app_id, 1),
            }
            return Pushed::Plain;
        }
        match self.record.and_then(|r| r.written(id)) {
            Some(Some(text)) => {
                out.extend_from_slice(text.as_bytes());
                Pushed::Text
            }
            Some(None) => Pushed::Empty,
            None if self.n == 0 => match &property.source {
                // Constants of computed properties hold for new records too.
                Source::Constant(text) if property.read_only => {
                    out.extend_from_slice(text.as_bytes());
                    Pushed::Plain
                }
                _ => Pushed::Empty,
            },
            None => {
                let ground = self.ground;
                let (people, kind) = (&ground.people, ground.kind);
                let salt = u64::from(id) + 1;
                if push_base(people, kind, self.n, &self.subject, property, salt, out) {
                    Pushed::Plain
                } else {
                    Pushed::Empty
                }
            }
        }
    }

    /// The value as text, `None` when empty.
    pub(crate) fn text(&self, id: PropertyId, property: &Property) -> Option<String> {
        let mut out = Vec::new();
        match self.push(id, property, &mut out) {
            Pushed::Empty => None,
            Pushed::Plain | Pushed::Text => String::from_utf8(out).ok(),
        }
    }
}

/// What [`View::push`] appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    Empty,
    /// Needs no escaping.
    Plain,
    /// May need escaping.
    Text,
}

/// The present state of all records of one type.
pub(crate) struct Live {
    pub(crate) ground: Ground,
    pub(crate) overlay: BTreeMap<u64, Arc<Record>>,
    /// Values written to unique properties (lower case) to record id.
    unique: HashMap<(PropertyId, String), u64>,
    /// Merged-away id to survivor.
    pub(crate) aliases: HashMap<u64, u64>,
    pub(crate) archived: BTreeSet<u64>,
    /// Live records.
    pub(crate) count: u64,
    next_id: u64,
}

impl Live {
    /// `next_id` is the first id for new records.
    pub(crate) fn new(ground: Ground, next_id: u64) -> Live {
        Live {
            overlay: BTreeMap::new(),
            unique: HashMap::new(),
            aliases: HashMap::new(),
            archived: BTreeSet::new(),
            count: ground.count,
            next_id: next_id.max(ground.id_base + ground.count + 1),
            ground,
        }
    }

    pub(crate) fn take_id(&mut self) -> u64 {
        let id = self.next_id;
        // Real ids have gaps.
        self.next_id += 1 + id % 3;
        id
    }

    /// The id after following merges.
    pub(crate) fn resolve(&self, id: u64) -> u64 {
        let mut id = id;
        while let Some(next) = self.aliases.get(&id) {
            id = *next;
        }
        id
    }

    /// The record with exactly this id, archived or not, unless gone.
    pub(crate) fn view(&self, id: u64) -> Option<View<'_>> {
        match self.overlay.get(&id) {
            Some(record) if record.gone => None,
            Some(record) => Some(View::new(&self.ground, id, Some(record))),
            None if self.ground.number(id) > 0 => Some(View::new(&self.ground, id, None)),
            None => None,
        }
    }

    /// The live record with this id or, after a merge, its survivor.
    pub(crate) fn live_view(&self, id: u64) -> Option<View<'_>> {
        self.view(self.resolve(id))
            .filter(|view| view.archived_ms().is_none())
    }

    /// A copy to change and [`Live::put`] back.
    pub(crate) fn copy(&self, id: u64) -> Option<Record> {
        match self.overlay.get(&id) {
            Some(record) if record.gone => None,
            Some(record) => Some(Record::clone(record)),
            None => match self.ground.number(id) {
                0 => None,
                n => Some(self.ground.record(n)),
            },
        }
    }

    /// Stores a record and keeps counts and unique values right. `freed` and `taken` are the
    /// unique values it lost and gained.
    pub(crate) fn put(&mut self, id: u64, record: Arc<Record>) {
        let was_live = match self.overlay.get(&id) {
            Some(old) => old.is_live(),
            None => self.ground.number(id) > 0,
        };
        match (was_live, record.is_live()) {
            (true, false) => self.count -= 1,
            (false, true) => self.count += 1,
            _ => {}
        }
        if record.archived_ms.is_some() && !record.gone {
            self.archived.insert(id);
        } else {
            self.archived.remove(&id);
        }
        self.overlay.insert(id, record);
    }

    pub(crate) fn claim(&mut self, property: PropertyId, value: &str, id: u64) {
        self.unique.insert((property, value.to_lowercase()), id);
    }

    pub(crate) fn release(&mut self, property: PropertyId, value: &str, id: u64) {
        let key = (property, value.to_lowercase());
        if self.unique.get(&key) == Some(&id) {
            self.unique.remove(&key);
        }
    }

    /// Id of the live record whose unique property holds `value` (any case).
    pub(crate) fn find(&self, catalog: &Catalog, property: PropertyId, value: &str) -> Option<u64> {
        let definition = catalog.get(property);
        if definition.source == Source::Meta(Meta::Id) {
            return value.parse().ok();
        }
        let lower = value.trim().to_lowercase();
        if let Some(id) = self.unique.get(&(property, lower.clone())) {
            return Some(*id);
        }
        let n = match self.ground.kind {
            Kind::Person => self.ground.people.find_email(&lower)?.n,
            Kind::Subscription => lower.strip_prefix("s-")?.parse().ok()?,
            _ => return None,
        };
        // Holds only while the base record still has the value.
        let id = self.ground.id(n);
        let text = self.live_view(id)?.text(property, definition)?;
        (text.to_lowercase() == lower && self.resolve(id) == id).then_some(id)
    }

    /// Id of the newest archived record whose property holds `value` (any case).
    pub(crate) fn find_archived(
        &self,
        catalog: &Catalog,
        property: PropertyId,
        value: &str,
    ) -> Option<u64> {
        let (definition, lower) = (catalog.get(property), value.trim().to_lowercase());
        let holds = |id: &&u64| {
            let text = self.view(**id).and_then(|v| v.text(property, definition));
            text.is_some_and(|text| text.to_lowercase() == lower)
        };
        self.archived.iter().rev().find(holds).copied()
    }

    /// Live ids from `from` on, in order.
    pub(crate) fn ids_from(&self, from: u64) -> impl Iterator<Item = u64> + '_ {
        let first = self.ground.id_base + 1;
        let end = first + self.ground.count;
        let mut base = from.clamp(first, end);
        let mut written = self.overlay.range(from..).peekable();
        std::iter::from_fn(move || {
            loop {
                let next_written = written.peek().map(|(id, record)| (**id, record.is_live()));
                match next_written {
                    Some((id, live)) if base >= end || id <= base => {
                        written.next();
                        if id == base {
                            base += 1;
                        }
                        if live {
                            return Some(id);
                        }
                    }
                    _ if base < end => {
                        base += 1;
                        return Some(base - 1);
                    }
                    _ => return None,
                }
            }
        })
    }
}
