//! A CRM as the outside world sees it: records, its own clock, its own habits.

use crm_core::model::Value;
use crm_core::state::Interval;

use crate::world::{Habits, Kind};

/// A record as it was.
#[derive(Clone, Debug)]
pub struct Past {
    /// Our time.
    pub at: i64,
    pub values: Vec<Value>,
    /// Its stamp.
    pub stamp: i64,
    pub deleted: bool,
}

/// One record.
#[derive(Clone, Debug)]
pub struct Record {
    /// What identifies the thing in the world (an e-mail address).
    pub key: u32,
    /// Our unique property.
    pub unique: Option<String>,
    /// Our row that it was made for, whether or not the CRM says so.
    pub made_as: Option<String>,
    pub values: Vec<Value>,
    /// Record stamp, by its own clock.
    pub stamp: i64,
    pub deleted: bool,
    /// It became part of this record.
    pub merged: Option<usize>,
    /// Earlier states, for readers that lag.
    pub history: Vec<Past>,
}

/// One CRM.
#[derive(Clone, Debug)]
pub struct Crm {
    pub habits: Habits,
    pub kinds: Vec<Kind>,
    pub records: Vec<Record>,
    /// Writes of ours that it accepted and ignored.
    pub ignored: u32,
    /// Which columns it has.
    pub columns: Vec<bool>,
}

/// Place of a stage in the order of stages.
fn stage(value: &Value) -> Option<u32> {
    value.as_ref()?.chars().last()?.to_digit(10)
}

impl Crm {
    /// What it makes of a value.
    pub fn stored(&self, field: usize, value: &Value, ours: bool) -> Value {
        if self.kinds[field] != Kind::Text {
            return value.clone();
        }
        value.as_ref().map(|v| {
            let mut text: String = v.chars().take(self.habits.length).collect();
            if self.habits.lower {
                text = text.to_lowercase();
            }
            if ours && self.habits.adorns && !text.ends_with('~') {
                text.push('~');
            }
            text
        })
    }

    /// Stores values; which fields changed.
    pub fn set(
        &mut self,
        record: usize,
        values: &[(usize, Value)],
        now: i64,
        ours: bool,
    ) -> Vec<usize> {
        let mut changed = Vec::new();
        for (field, value) in values.iter().filter(|(f, _)| self.columns[*f]) {
            let stored = self.stored(*field, value, ours);
            let held = &self.records[record].values[*field];
            if stored == *held {
                continue;
            }
            let back = stage(&stored) < stage(held);
            if ours && self.kinds[*field] == Kind::Stage && self.habits.forward_only && back {
                self.ignored += 1;
                continue;
            }
            self.records[record].values[*field] = stored;
            changed.push(*field);
        }
        if !changed.is_empty() {
            self.touch(record, now);
        }
        changed
    }

    /// Something of the record changed.
    pub fn touch(&mut self, record: usize, now: i64) {
        let stamp = now + self.habits.offset;
        let record = &mut self.records[record];
        record.stamp = stamp;
        record.history.push(Past {
            at: now,
            values: record.values.clone(),
            stamp,
            deleted: record.deleted,
        });
    }

    /// Makes a record.
    pub fn create(
        &mut self,
        key: u32,
        values: &[(usize, Value)],
        unique: Option<String>,
        now: i64,
        ours: bool,
    ) -> usize {
        let mut record = Record {
            key,
            unique,
            made_as: None,
            values: vec![None; self.kinds.len()],
            stamp: 0,
            deleted: false,
            merged: None,
            history: Vec::new(),
        };
        for (field, value) in values.iter().filter(|(f, _)| self.columns[*f]) {
            record.values[*field] = self.stored(*field, value, ours);
        }
        self.records.push(record);
        let id = self.records.len() - 1;
        self.touch(id, now);
        id
    }

    /// Removes a record or brings it back; whether that changed anything.
    pub fn set_deleted(&mut self, record: usize, deleted: bool, now: i64) -> bool {
        let there = &mut self.records[record];
        if there.merged.is_some() || there.deleted == deleted {
            return false;
        }
        there.deleted = deleted;
        self.touch(record, now);
        true
    }

    /// Records that are there with this key.
    pub fn with_key(&self, key: u32) -> Vec<usize> {
        let there = |r: &Record| r.key == key && !r.deleted && r.merged.is_none();
        (0..self.records.len())
            .filter(|i| there(&self.records[*i]))
            .collect()
    }

    /// A stamp as precise as this CRM shows it.
    pub fn shown(&self, stamp: i64) -> Interval {
        if self.habits.seconds {
            Interval::second(stamp)
        } else {
            Interval::instant(stamp)
        }
    }

    /// What a reader sees whose index is as old as `at`.
    pub fn as_of(&self, record: usize, at: i64) -> Past {
        let history = &self.records[record].history;
        let past = history.iter().rev().find(|p| p.at <= at);
        past.unwrap_or(&history[0]).clone()
    }
}
