//! Writes on their way out: claimed, answered, lost, settled by reading back.

use std::collections::BTreeMap;

use crm_core::model::{Value, WriteKind};
use crm_core::outgoing::{Answer, answered, claimed, retry, withdraw};
use crm_core::plan::Edit;
use crm_core::state::{FieldState, Sent};

use crate::engine::Engine;
use crate::trace::note;

/// After this a claim without result is unknown.
pub const LEASE: i64 = 30_000;

/// After this no call lands any more.
pub const LANDED: i64 = 60_000;

/// A write under way.
#[derive(Clone, Debug)]
pub struct Flying {
    pub kind: WriteKind,
    /// The thing's key and our unique value for its row.
    pub key: u32,
    pub unique: String,
    pub values: Vec<(usize, Value)>,
    pub claim: i64,
    /// When a create was on its way first: it may have been put off and sent again.
    pub since: i64,
    /// Nobody knows what became of it; it is being read back.
    pub doubt: bool,
}

/// What waits for, or is under way to, one record.
#[derive(Clone, Debug, Default)]
pub struct Out {
    /// Our unique value for the row: that of no other row, ever.
    pub unique: String,
    pub queued: BTreeMap<usize, Value>,
    pub create: bool,
    pub delete: bool,
    pub flying: Option<Flying>,
    /// When something was last sent.
    pub claimed: i64,
    /// When the create that was put off was on its way first.
    pub since: Option<i64>,
    /// A person is asked whether its create happened.
    pub held: bool,
}

impl Out {
    pub fn idle(&self) -> bool {
        let queued = !self.queued.is_empty() && !self.held;
        !queued && !self.create && !self.delete && self.flying.is_none()
    }
}

/// What became of a write of a record.
#[derive(Clone, Debug)]
pub enum Result {
    /// Record id and, where the answer shows them, the values.
    Done(usize, Option<Vec<(usize, Value)>>),
    /// The CRM has a record with this key already.
    Exists(usize),
    Failed,
    /// The record is not there any more.
    Gone,
    Retry,
    Unknown,
    /// The record was read and does not show it: what it shows is decided like
    /// any page.
    NotSeen,
    /// No record was found that the create may have made.
    NotFound,
}

fn has_queued(state: &FieldState, side: usize) -> bool {
    let mut sent = state.sides[side].sent.iter();
    sent.any(|w| w.sent == Sent::Queued)
}

impl Engine {
    /// Takes what waits for a record, one write at a time per record.
    pub fn claim(&mut self, thing: usize, side: usize, now: i64) -> Option<Flying> {
        let log = &self.log;
        let there = &mut self.things[thing];
        let record = &there.entity.records[side];
        let out = &mut there.out[side];
        out.held &= record.exists && !record.deleted;
        if out.flying.is_some() || out.idle() {
            return None;
        }
        let known = record.record_id.is_some();
        // What was never made need not be removed.
        out.delete &= known || out.create;
        if !known && !out.create && !out.held {
            out.queued.clear();
        }
        let (kind, values) = if out.create {
            let columns = (0..record.values.len()).filter(|f| {
                let column = self.group.column(*f, side);
                column.is_some_and(|c| c.writable)
            });
            // What nobody has looked at yet is not in the outbox.
            let undrained = |f: usize| {
                let mut edits = log.iter().filter(|(t, s, _, _)| (*t, *s) == (thing, side));
                edits.find(|(_, _, edit, _)| edit.field == f)
            };
            let value = |f: usize| match undrained(f) {
                Some((_, _, edit, _)) => edit.old.clone().unwrap_or_default(),
                None => record.values[f].clone(),
            };
            let values = columns.map(|f| (f, value(f)));
            // A blank that was decided meanwhile joins the create: an earlier
            // attempt may have landed with what stood there before.
            let state = |f: &usize| there.entity.fields.get(f);
            let waits = |f: &usize| state(f).is_some_and(|s| has_queued(s, side));
            let wanted = values.filter(|(f, v)| v.is_some() || waits(f));
            (WriteKind::Create, wanted.collect())
        } else if out.delete && known {
            (WriteKind::Delete, Vec::new())
        } else if known {
            let queued = std::mem::take(&mut out.queued);
            (WriteKind::Update, queued.into_iter().collect::<Vec<_>>())
        } else {
            return None;
        };
        if kind == WriteKind::Create {
            out.queued.clear();
            out.create = false;
        }
        out.delete &= kind != WriteKind::Delete;
        for (field, value) in &values {
            if let Some(state) = there.entity.fields.get_mut(field) {
                claimed(state, side, value, now);
            }
        }
        note(|| format!("{now} send t{thing} s{side} {kind:?} {values:?}"));
        self.sent += 1;
        let flying = Flying {
            kind,
            key: there.key,
            unique: out.unique.clone(),
            values,
            claim: now,
            since: out.since.take().unwrap_or(now),
            doubt: false,
        };
        out.flying = Some(flying.clone());
        out.claimed = now;
        Some(flying)
    }

    /// Records a result; one that belongs to an earlier claim is ignored.
    pub fn result(&mut self, place: (usize, usize), claim: i64, result: Result, now: i64) {
        let (thing, side) = place;
        let reads_back = self.reads_back;
        let out = &mut self.things[thing].out[side];
        let Some(flying) = out.flying.as_mut().filter(|f| f.claim == claim) else {
            return;
        };
        note(|| format!("{now} result t{thing} s{side} {result:?}"));
        let open = reads_back || flying.kind != WriteKind::Update;
        if matches!(result, Result::Unknown) && open {
            flying.doubt = true;
            return;
        }
        let result = match result {
            Result::NotSeen => Result::Unknown,
            result => result,
        };
        let Some(flying) = out.flying.take() else {
            return;
        };
        if flying.kind != WriteKind::Update {
            self.record_result(place, &flying, &result, now);
        }
        let made_again = flying.kind == WriteKind::Create && matches!(result, Result::Retry);
        for (field, value) in &flying.values {
            self.field_result(place, (*field, value), &result, now);
            let refused = self.things[thing].entity.records[side].record_id.is_none();
            let out = &mut self.things[thing].out[side];
            if made_again || (refused && !out.held) {
                out.queued.clear();
            }
        }
        // Removed meanwhile: nothing of it is made again, so nothing waits.
        if made_again && !self.things[thing].out[side].create {
            for state in self.things[thing].entity.fields.values_mut() {
                withdraw(state, side);
            }
        }
    }

    fn field_result(
        &mut self,
        (thing, side): (usize, usize),
        (field, value): (usize, &Value),
        result: &Result,
        now: i64,
    ) {
        let there = &mut self.things[thing];
        let answer = match result {
            Result::Done(_, echoed) => {
                let echoed = echoed.iter().flatten().find(|(f, _)| *f == field);
                Answer::Done {
                    echoed: echoed.map(|(_, v)| v.clone()),
                }
            }
            Result::Retry | Result::Exists(_) => Answer::Retry,
            Result::Unknown | Result::NotSeen | Result::NotFound => Answer::Unknown,
            Result::Failed | Result::Gone => Answer::Failed,
        };
        let queued = &mut there.out[side].queued;
        if answer == Answer::Retry && !queued.contains_key(&field) {
            queued.insert(field, value.clone());
        }
        let Some(state) = there.entity.fields.get_mut(&field) else {
            return;
        };
        if answer == Answer::Retry {
            if !retry(state, side, value, now) && queued.get(&field) == Some(value) {
                queued.remove(&field);
            }
            return;
        }
        if let Some(normal) = answered(state, side, value, answer, now) {
            // A user's edit that is not drained yet stays.
            let edited = |(t, s, e, _): &(usize, usize, Edit, i64)| {
                (*t, *s, e.field) == (thing, side, field)
            };
            let row = &mut there.entity.records[side].values[field];
            if *row == *value && !self.log.iter().any(edited) {
                *row = normal;
            }
        }
    }

    /// Claims whose results were lost with the process.
    pub fn expire(&mut self, now: i64) {
        for thing in 0..self.things.len() {
            for side in 0..self.sides() {
                let flying = self.things[thing].out[side].flying.as_ref();
                let old = flying.filter(|f| !f.doubt && f.claim + LEASE < now);
                if let Some(claim) = old.map(|f| f.claim) {
                    self.result((thing, side), claim, Result::Unknown, now);
                }
            }
        }
    }

    /// A stand-by goes on from here: nobody knows what was sent meanwhile. A create
    /// that waited may have happened, so it is looked for before it is sent.
    pub fn take_over(&mut self, snapshot_at: i64, now: i64) {
        for thing in 0..self.things.len() {
            for side in 0..self.sides() {
                let out = &self.things[thing].out[side];
                if out.create && out.flying.is_none() {
                    self.claim(thing, side, snapshot_at);
                }
            }
        }
        for thing in &mut self.things {
            for state in thing.entity.fields.values_mut() {
                let sent = state.sides.iter_mut().flat_map(|s| s.sent.iter_mut());
                for write in sent {
                    let claimed = match write.sent {
                        Sent::Queued => snapshot_at,
                        Sent::InFlight { claimed } => claimed,
                        Sent::Answered { .. } | Sent::Unknown { .. } | Sent::Failed => continue,
                    };
                    write.sent = Sent::Unknown {
                        claimed,
                        given_up: now,
                    };
                }
            }
            for out in &mut thing.out {
                out.queued.clear();
                if out
                    .flying
                    .as_ref()
                    .is_some_and(|f| f.kind == WriteKind::Update)
                {
                    out.flying = None;
                } else if let Some(flying) = &mut out.flying {
                    flying.doubt = true;
                }
            }
        }
    }
}
