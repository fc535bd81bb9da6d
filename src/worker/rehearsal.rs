//! A decision that leaves no trace: what was decided is kept here for whoever
//! asked, events do not go into the ledger, and no linked row is written. The
//! rest is undone by the asker, who runs it in a subtransaction.

use std::cell::RefCell;

use crm_core::decide::{Decision, Observed, Outcome};
use crm_core::model::Value;

use crate::pg::store::ledger::EventRow;
use crate::worker::cases::Case;
use crate::worker::world::World;

/// What a rehearsed decision path did.
#[derive(Debug, Default)]
pub(crate) struct Rehearsal {
    decided: RefCell<Vec<Judged>>,
    events: RefCell<Vec<EventRow>>,
}

/// One field of one observation, decided.
#[derive(Clone, Debug)]
pub(crate) struct Judged {
    pub(crate) mirror: i32,
    pub(crate) row_id: i64,
    pub(crate) record_id: Option<String>,
    /// Who wrote.
    pub(crate) origin: String,
    /// What came.
    pub(crate) came: Value,
    /// What was there, as far as known.
    pub(crate) held: Value,
    /// Who had written that; empty if nobody remembers.
    pub(crate) holder: String,
    pub(crate) decision: Decision,
    /// A person is asked.
    pub(crate) asked: bool,
}

impl Rehearsal {
    /// Notes what the core decided about an observation, before it is absorbed.
    pub(crate) fn note(&self, world: &World, case: &Case, observed: &Observed, outcome: &Outcome) {
        let side = observed.side;
        let row = case.rows.get(side).and_then(Option::as_ref);
        let Some(member) = world.groups[case.group].group.sides.get(side) else {
            return;
        };
        for decision in &outcome.decisions {
            let of = |v: &&(usize, Value, Option<Value>)| v.0 == decision.field;
            let Some((field, came, old)) = observed.values.iter().find(of) else {
                continue;
            };
            let shown = || {
                let record = case.entity.records.get(side);
                record.and_then(|r| r.values.get(*field).cloned().flatten())
            };
            let state = case.entity.fields.get(field);
            let clock = state.and_then(|s| s.clock.as_ref());
            let asked = (outcome.states.iter())
                .any(|(f, s)| f == field && s.as_ref().is_some_and(|s| s.hold.is_some()));
            self.decided.borrow_mut().push(Judged {
                mirror: member.mirror,
                row_id: row.map_or(0, |r| r.row_id),
                record_id: row.and_then(|r| r.record_id.clone()),
                origin: observed.origin.clone(),
                came: came.clone(),
                held: old.clone().unwrap_or_else(shown),
                holder: clock.map(|c| c.origin.clone()).unwrap_or_default(),
                decision: decision.clone(),
                asked,
            });
        }
    }

    /// Notes fields that were decided again without anything new observed; `side`
    /// is the one that the policy's rows speak of.
    pub(crate) fn again(&self, world: &World, case: &Case, side: usize, outcome: &Outcome) {
        let group = &world.groups[case.group].group;
        for decision in &outcome.decisions {
            let named = |s: &usize| group.column(decision.field, *s).is_some();
            let Some(side) = [side].into_iter().chain(0..group.sides.len()).find(named) else {
                continue;
            };
            let row = case.rows.get(side).and_then(Option::as_ref);
            let record = case.entity.records.get(side);
            let held = record.and_then(|r| r.values.get(decision.field).cloned().flatten());
            let state = case.entity.fields.get(&decision.field);
            let clock = state.and_then(|s| s.clock.as_ref());
            let asked = (outcome.states.iter())
                .any(|(f, s)| *f == decision.field && s.as_ref().is_some_and(|s| s.hold.is_some()));
            self.decided.borrow_mut().push(Judged {
                mirror: group.sides[side].mirror,
                row_id: row.map_or(0, |r| r.row_id),
                record_id: row.and_then(|r| r.record_id.clone()),
                origin: decision.winner.clone(),
                came: decision.value.clone(),
                held,
                holder: clock.map(|c| c.origin.clone()).unwrap_or_default(),
                decision: decision.clone(),
                asked,
            });
        }
    }

    /// Takes events that would go into the ledger. Rows that a link makes or
    /// removes are told by the writes that follow.
    pub(crate) fn append(&self, events: Vec<EventRow>) {
        let events = events.into_iter().filter(|e| e.source != "link");
        self.events.borrow_mut().extend(events);
    }

    /// What was decided, and the events of records as a whole.
    pub(crate) fn end(self) -> (Vec<Judged>, Vec<EventRow>) {
        (self.decided.into_inner(), self.events.into_inner())
    }
}
