//! Rows of one object: generated base records plus an overlay of everything that was written.
//!
//! A base record costs no memory until someone writes it. Its stamp rises with its number, so both orders a replica reads
//! in (by id, by `SystemModstamp` and id) are walked without looking at every record.

use super::base::{self, Gen};
use super::ids::SfId;
use super::schema::{Obj, Object, Schema, at};
use super::value::Value;
use crate::people::People;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// A written row: one value per field of its object.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) values: Vec<Value>,
    /// Gone for good: not in the recycle bin, in no query.
    pub(crate) purged: bool,
}

impl Row {
    /// Whether the row is in the recycle bin.
    pub(crate) fn deleted(&self) -> bool {
        self.values[at::IS_DELETED] == Value::Bool(true)
    }

    /// Time of its last change.
    pub(crate) fn stamp(&self) -> i64 {
        self.values[at::STAMP].as_datetime().unwrap_or(0)
    }
}

/// A found record: still as generated, or written.
#[derive(Clone, Debug)]
pub(crate) enum Hit {
    Base(u64),
    Row(u64, Arc<Row>),
}

impl Hit {
    /// The record's number.
    pub(crate) fn number(&self) -> u64 {
        match self {
            Self::Base(number) | Self::Row(number, _) => *number,
        }
    }

    /// Whether the row is in the recycle bin.
    pub(crate) fn deleted(&self) -> bool {
        matches!(self, Self::Row(_, row) if row.deleted())
    }

    /// Opens the record for reading fields.
    pub(crate) fn view<'a>(&'a self, object: &'a Object, people: &'a People) -> View<'a> {
        match self {
            Self::Base(number) => View::Base(object, Gen::new(object.obj, *number, people)),
            Self::Row(_, row) => View::Row(row),
        }
    }
}

/// A record open for reading.
pub(crate) enum View<'a> {
    Base(&'a Object, Gen<'a>),
    Row(&'a Row),
}

impl View<'_> {
    /// The value of the field at `index`.
    pub(crate) fn get(&self, index: usize) -> Value {
        match self {
            Self::Base(object, gen_) => (object.fields[index].base)(gen_),
            Self::Row(row) => row.values[index].clone(),
        }
    }

    /// Lends the value of the field at `index`, without a copy for written rows.
    pub(crate) fn with<T>(&self, index: usize, use_it: impl FnOnce(&Value) -> T) -> T {
        match self {
            Self::Base(object, gen_) => use_it(&(object.fields[index].base)(gen_)),
            Self::Row(row) => use_it(&row.values[index]),
        }
    }

    /// All values.
    pub(crate) fn all(&self) -> Vec<Value> {
        match self {
            Self::Base(object, gen_) => object
                .fields
                .iter()
                .map(|field| (field.base)(gen_))
                .collect(),
            Self::Row(row) => row.values.clone(),
        }
    }
}

/// All rows of one object.
pub(crate) struct Table {
    pub(crate) obj: Obj,
    people: People,
    base: u64,
    next: u64,
    rows: BTreeMap<u64, Arc<Row>>,
    by_stamp: BTreeSet<(i64, u64)>,
    /// The part of `by_stamp` that is in the recycle bin.
    dead: BTreeSet<(i64, u64)>,
    /// Per indexed field and key, the written rows that have it.
    index: HashMap<(usize, String), BTreeSet<u64>>,
    indexed: Vec<usize>,
    live: u64,
}

impl Table {
    fn new(object: &Object, people: &People) -> Self {
        let base = base::count(object.obj, people);
        let indexed = (0..object.fields.len())
            .filter(|at| *at > 0 && object.fields[*at].is_indexed())
            .collect();
        Self {
            obj: object.obj,
            people: people.clone(),
            base,
            next: base + 1,
            rows: BTreeMap::new(),
            by_stamp: BTreeSet::new(),
            dead: BTreeSet::new(),
            index: HashMap::new(),
            indexed,
            live: base,
        }
    }

    /// Gives the written rows the fields that were added to their object.
    pub(crate) fn widen(&mut self, object: &Object) {
        for (number, row) in &mut self.rows {
            let row = Arc::make_mut(row);
            let gen_ = Gen::new(self.obj, *number, &self.people);
            for field in &object.fields[row.values.len().min(object.fields.len())..] {
                row.values.push((field.base)(&gen_));
            }
        }
    }

    fn base_stamp(&self, number: u64) -> i64 {
        base::stamp(self.obj, number, &self.people)
    }

    fn first_with_stamp(&self, ms: i64) -> u64 {
        base::first_with_stamp(self.obj, ms, &self.people)
    }

    /// Time of a record's last change.
    pub(crate) fn stamp(&self, hit: &Hit) -> i64 {
        match hit {
            Hit::Base(number) => self.base_stamp(*number),
            Hit::Row(_, row) => row.stamp(),
        }
    }

    /// Takes the next record number.
    pub(crate) fn allot(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// The largest number ever allotted.
    pub(crate) fn last(&self) -> u64 {
        self.next - 1
    }

    /// The record, deleted ones included.
    pub(crate) fn get(&self, number: u64) -> Option<Hit> {
        match self.rows.get(&number) {
            Some(row) if row.purged => None,
            Some(row) => Some(Hit::Row(number, Arc::clone(row))),
            None if number >= 1 && number <= self.base => Some(Hit::Base(number)),
            None => None,
        }
    }

    /// The written state of a record, if any: what an undo puts back.
    pub(crate) fn written(&self, number: u64) -> Option<Arc<Row>> {
        self.rows.get(&number).cloned()
    }

    /// Written records from `number` on, in order of number.
    pub(crate) fn written_from(&self, number: u64) -> impl Iterator<Item = (u64, &Arc<Row>)> {
        self.rows
            .range(number..)
            .map(|(number, row)| (*number, row))
    }

    fn is_live(&self, number: u64) -> bool {
        match self.rows.get(&number) {
            Some(row) => !row.purged && !row.deleted(),
            None => number >= 1 && number <= self.base,
        }
    }

    /// Puts a row in place (`None`: back to the generated record, or to nothing) and keeps every index in step.
    pub(crate) fn put(&mut self, number: u64, row: Option<Arc<Row>>) {
        let was_live = self.is_live(number);
        let old = match row {
            Some(row) => {
                if !row.purged {
                    self.by_stamp.insert((row.stamp(), number));
                    if row.deleted() {
                        self.dead.insert((row.stamp(), number));
                    }
                    self.enter(number, &row);
                }
                self.rows
                    .insert(number, Arc::clone(&row))
                    .map(|old| (old, Some(row)))
            }
            None => self.rows.remove(&number).map(|old| (old, None)),
        };
        if let Some((old, new)) = old {
            if new
                .as_ref()
                .is_none_or(|new| new.purged || new.stamp() != old.stamp())
            {
                self.by_stamp.remove(&(old.stamp(), number));
            }
            let still_dead = new
                .as_ref()
                .is_some_and(|new| !new.purged && new.deleted() && new.stamp() == old.stamp());
            if !still_dead {
                self.dead.remove(&(old.stamp(), number));
            }
            self.leave(number, &old, new.as_deref().filter(|new| !new.purged));
        }
        match (was_live, self.is_live(number)) {
            (false, true) => self.live += 1,
            (true, false) => self.live -= 1,
            _ => {}
        }
    }

    fn enter(&mut self, number: u64, row: &Row) {
        for field in &self.indexed {
            if let Some(key) = row.values[*field].index_key() {
                self.index.entry((*field, key)).or_default().insert(number);
            }
        }
    }

    fn leave(&mut self, number: u64, old: &Row, new: Option<&Row>) {
        for field in &self.indexed {
            let Some(key) = old.values[*field].index_key() else {
                continue;
            };
            if new.and_then(|new| new.values[*field].index_key()).as_ref() == Some(&key) {
                continue;
            }
            let slot = (*field, key);
            if let Some(numbers) = self.index.get_mut(&slot) {
                numbers.remove(&number);
                if numbers.is_empty() {
                    self.index.remove(&slot);
                }
            }
        }
    }

    /// Records whose indexed `field` equals `value`, without regard to case; deleted ones included.
    pub(crate) fn lookup(
        &self,
        object: &Object,
        people: &People,
        field: usize,
        value: &Value,
    ) -> Vec<Hit> {
        if field == at::ID {
            let id = value.as_id().filter(|id| id.prefix == self.obj.prefix());
            return id.and_then(|id| self.get(id.number)).into_iter().collect();
        }
        let Some(key) = value.index_key() else {
            return Vec::new();
        };
        let mut found = Vec::new();
        if let Some(number) =
            Gen::find(self.obj, object.fields[field].name, &key, self.base, people)
            && !self.rows.contains_key(&number)
        {
            let hit = Hit::Base(number);
            if hit.view(object, people).get(field).index_key().as_ref() == Some(&key) {
                found.push(hit);
            }
        }
        if let Some(numbers) = self.index.get(&(field, key)) {
            found.extend(numbers.iter().filter_map(|number| self.get(*number)));
        }
        found
    }

    /// Records in order of number from `from` to `to` inclusive, deleted ones included.
    pub(crate) fn by_number(&self, from: u64, to: u64) -> impl DoubleEndedIterator<Item = Hit> {
        (from.max(1)..=to.min(self.last())).filter_map(|number| self.get(number))
    }

    /// Records in order of (stamp, number) from one position to another, both inclusive, deleted ones included.
    pub(crate) fn by_stamp(
        &self,
        from: (i64, u64),
        to: (i64, u64),
        descending: bool,
    ) -> StampWalk<'_> {
        let (low, high) = self.base_range(from, to);
        let overlay = if from <= to {
            Some(self.by_stamp.range(from..=to))
        } else {
            None
        };
        StampWalk {
            table: self,
            low,
            high,
            overlay,
            descending,
            held_base: None,
            held_row: None,
        }
    }

    /// Base records inside a range of (stamp, number) positions, as numbers `low..high`.
    fn base_range(&self, from: (i64, u64), to: (i64, u64)) -> (u64, u64) {
        let first = |position: (i64, u64)| {
            let start = self.first_with_stamp(position.0);
            let end = self.first_with_stamp(position.0.saturating_add(1));
            position.1.clamp(start, end.max(start))
        };
        let low = first(from).max(1);
        let next = (to.0, to.1.saturating_add(1));
        let high = first(next).min(self.base + 1);
        (low, high.max(low))
    }

    /// How many live records lie between two (stamp, number) positions, by arithmetic over the base and a walk over the
    /// written rows of that range only.
    pub(crate) fn count_by_stamp(
        &self,
        from: (i64, u64),
        to: (i64, u64),
        with_deleted: bool,
    ) -> u64 {
        if from > to {
            return 0;
        }
        let (low, high) = self.base_range(from, to);
        let overlaid = self.rows.range(low..high).count() as u64;
        let mut written = self.by_stamp.range(from..=to).count() as u64;
        if !with_deleted {
            written -= self.dead.range(from..=to).count() as u64;
        }
        (high - low) - overlaid + written
    }

    /// How many records have numbers `from..=to`.
    pub(crate) fn count_by_number(&self, from: u64, to: u64, with_deleted: bool) -> u64 {
        let (from, to) = (from.max(1), to.min(self.last()));
        if from > to {
            return 0;
        }
        if from == 1 && to == self.last() && !with_deleted {
            return self.live;
        }
        let base = (to.min(self.base) + 1).saturating_sub(from);
        let overlaid = self
            .rows
            .range(from..=to.min(self.base).max(from - 1))
            .count() as u64;
        let counts = |row: &Row| !row.purged && (with_deleted || !row.deleted());
        let written = self
            .rows
            .range(from..=to)
            .filter(|(_, row)| counts(row))
            .count() as u64;
        base - overlaid.min(base) + written
    }
}

/// Walks records in order of (stamp, number): a merge of generated and written ones.
pub(crate) struct StampWalk<'a> {
    table: &'a Table,
    low: u64,
    high: u64,
    overlay: Option<std::collections::btree_set::Range<'a, (i64, u64)>>,
    descending: bool,
    held_base: Option<u64>,
    held_row: Option<(i64, u64)>,
}

impl StampWalk<'_> {
    fn next_base(&mut self) -> Option<u64> {
        while self.low < self.high {
            let number = if self.descending {
                self.high -= 1;
                self.high
            } else {
                self.low += 1;
                self.low - 1
            };
            if !self.table.rows.contains_key(&number) {
                return Some(number);
            }
        }
        None
    }

    fn next_row(&mut self) -> Option<(i64, u64)> {
        let overlay = self.overlay.as_mut()?;
        if self.descending {
            overlay.next_back().copied()
        } else {
            overlay.next().copied()
        }
    }
}

impl Iterator for StampWalk<'_> {
    type Item = Hit;

    fn next(&mut self) -> Option<Hit> {
        let base = self.held_base.take().or_else(|| self.next_base());
        let row = self.held_row.take().or_else(|| self.next_row());
        let base_first = match (base, row) {
            (Some(base), Some(row)) => {
                ((self.table.base_stamp(base), base) < row) != self.descending
            }
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => return None,
        };
        if base_first {
            self.held_row = row;
            return base.map(Hit::Base);
        }
        self.held_base = base;
        row.and_then(|(_, number)| self.table.get(number))
    }
}

/// All tables of the org.
pub(crate) struct Store {
    tables: Vec<Table>,
}

impl Store {
    /// The org as generated, with `people.contacts()`-many contacts and the other objects in proportion.
    pub(crate) fn new(schema: &Schema, people: &People) -> Self {
        let table = |object: &Object| Table::new(object, people);
        Self {
            tables: schema.objects.iter().map(table).collect(),
        }
    }

    /// The table of an object.
    pub(crate) fn table(&self, obj: Obj) -> &Table {
        &self.tables[obj as usize]
    }

    /// The table of an object, for writing.
    pub(crate) fn table_mut(&mut self, obj: Obj) -> &mut Table {
        &mut self.tables[obj as usize]
    }

    /// The record an id names, deleted ones included, with its object.
    pub(crate) fn find(&self, id: SfId) -> Option<(Obj, Hit)> {
        let obj = Obj::of_prefix(id.prefix)?;
        Some((obj, self.table(obj).get(id.number)?))
    }
}
