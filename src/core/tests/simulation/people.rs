//! What people do to whole records: make, remove, restore, merge.

use crm_core::model::Value;

use crate::history::{History, stage};
use crate::model::{EDITS_MAX, Writer, token, value_of};
use crate::outbox::LANDED;
use crate::trace::note;
use crate::world::Kind;

/// Things of a history.
const THINGS_MAX: usize = 6;

impl History {
    /// One act on records, by SQL or at a CRM.
    pub fn record_act(&mut self, side: usize, thing: usize) {
        let full = self.model.made.len() + self.world.kinds.len() >= EDITS_MAX;
        match self.rng.below(9) {
            0..=2 if !full && self.engine.things.len() < THINGS_MAX => self.make(side),
            3 if !full && self.engine.things.len() < THINGS_MAX => self.insert(side),
            4 => self.remove(side),
            5 | 6 => self.restore(side),
            7 => self.sql_delete(thing, side),
            8 => self.merge(side),
            _ => {}
        }
    }

    /// Values of a new record, each an edit of its own.
    fn new_values(&mut self, side: usize, key: u32, writer: Writer) -> Vec<(usize, Value)> {
        let mut values = Vec::new();
        for field in 0..self.world.kinds.len() {
            if !self.world.mapped(field, side) || self.world.kinds[field] == Kind::Computed {
                continue;
            }
            let value = match self.world.kinds[field] {
                Kind::Stage => stage(side, self.rng.below(5)),
                Kind::Amount => Some("7".to_owned()),
                Kind::Log => Some("log".to_owned()),
                Kind::Choices => Some("base".to_owned()),
                _ if self.rng.chance(20) => None,
                _ => value_of(self.model.next(), false),
            };
            if token(&value).is_some() {
                self.made((key, field), writer, value.clone(), Vec::new(), false);
            }
            values.push((field, value));
        }
        values
    }

    /// Somebody makes a record; sometimes of a thing that exists elsewhere.
    fn make(&mut self, side: usize) {
        let key = if self.rng.chance(50) {
            self.new_key()
        } else {
            self.last_key()
        };
        if !self.crms[side].with_key(key).is_empty() {
            return;
        }
        let values = self.new_values(side, key, Writer::Crm(side));
        let now = self.now;
        let id = self.crms[side].create(key, &values, None, now, false);
        note(|| format!("{now} human makes s{side} r{id} key {key} {values:?}"));
        self.announce(side, id, &[], false);
        self.disturbed.push(key);
    }

    /// Somebody inserts a row with SQL.
    fn insert(&mut self, side: usize) {
        let key = if self.rng.chance(50) {
            self.new_key()
        } else {
            self.last_key()
        };
        let present = |t: &crate::engine::Thing| t.key == key && t.entity.records[side].exists;
        if self.engine.things.iter().any(present) {
            return;
        }
        let values = self.new_values(side, key, Writer::Sql(side));
        let mut row = vec![None; self.world.kinds.len()];
        for (field, value) in values {
            row[field] = value;
        }
        self.engine.insert(side, key, row, self.now);
        self.disturbed.push(key);
    }

    fn pick(&mut self, side: usize, deleted: bool) -> Option<usize> {
        let records = &self.crms[side].records;
        let fit = |i: &usize| records[*i].deleted == deleted && records[*i].merged.is_none();
        let fitting: Vec<usize> = (0..records.len()).filter(fit).collect();
        let n = self.rng.below(fitting.len());
        fitting.get(n).copied()
    }

    fn remove(&mut self, side: usize) {
        if let Some(id) = self.pick(side, false) {
            note(|| format!("{} human removes s{side} r{id}", self.now));
            self.crms[side].set_deleted(id, true, self.now);
            self.disturbed.push(self.crms[side].records[id].key);
            self.announce(side, id, &[], false);
        }
    }

    fn restore(&mut self, side: usize) {
        if let Some(id) = self.pick(side, true) {
            note(|| format!("{} human restores s{side} r{id}", self.now));
            self.crms[side].set_deleted(id, false, self.now);
            self.disturbed.push(self.crms[side].records[id].key);
            self.announce(side, id, &[], false);
        }
    }

    fn sql_delete(&mut self, thing: usize, side: usize) {
        let there = &self.engine.things[thing];
        let record = &there.entity.records[side];
        if record.exists && !record.deleted {
            self.disturbed.push(there.key);
            self.engine.delete(thing, side, self.now);
        }
    }

    /// Two records of a CRM become one: the first, or a new one.
    fn merge(&mut self, side: usize) {
        let crm = &self.crms[side];
        let fit = |i: &usize| !crm.records[*i].deleted && crm.records[*i].merged.is_none();
        let some: Vec<usize> = (0..crm.records.len()).filter(fit).collect();
        let [first, .., last] = some.as_slice() else {
            return;
        };
        let (stays, goes) = (*first, *last);
        let new_id = side == 0;
        let (key, other) = (crm.records[stays].key, crm.records[goes].key);
        self.disturbed.extend([key, other]);
        let now = self.now;
        let into = if new_id {
            let values = self.crms[side].records[stays].values.clone();
            let values: Vec<_> = values.into_iter().enumerate().collect();
            self.crms[side].create(key, &values, None, now, false)
        } else {
            stays
        };
        note(|| format!("{now} human merges s{side} r{goes} with r{stays} into r{into}"));
        for id in [stays, goes].into_iter().filter(|id| *id != into) {
            self.crms[side].records[id].merged = Some(into);
            self.crms[side].touch(id, now);
            self.announce(side, id, &[], false);
        }
        self.crms[side].touch(into, now);
        self.announce(side, into, &[], false);
    }

    /// A person looks in the CRM for the record that a create may have made; what
    /// has been removed or merged since stays a question. Another record of the same
    /// thing is a reason not to make one more.
    pub fn find_made(&mut self, thing: usize, side: usize) {
        let out = &self.engine.things[thing].out[side];
        if !out.held {
            return;
        }
        let ours = |r: &crate::crm::Record| r.made_as.as_ref() == Some(&out.unique);
        let made = self.crms[side].records.iter().position(ours);
        let other = self.crms[side].with_key(self.engine.things[thing].key);
        let made = made.or(other.first().copied());
        // A call may land long after it was given up: it is looked for after that.
        if made.is_none() && self.now < out.claimed + LANDED {
            return;
        }
        let gone = |id: usize| {
            let record = &self.crms[side].records[id];
            record.deleted || record.merged.is_some()
        };
        if !made.is_some_and(gone) {
            self.engine.answer_create((thing, side), made, self.now);
        }
    }

    /// Everybody edits one text before anything is told.
    pub fn burst(&mut self) {
        let first = self.rng.below(self.crms.len());
        for place in 0..self.crms.len() {
            let side = (first + place) % self.crms.len();
            self.now += self.rng.below(2_500) as i64;
            let value = value_of(self.model.next(), false);
            if self.can_edit(side, 0, 0) {
                self.edit_at_crm(side, 0, (0, value), false);
            }
        }
    }
}
