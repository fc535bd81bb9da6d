//! What the ledger remembers, so that states need not.

use crm_core::decide::{Observed, Outcome, Step};
use crm_core::state::{Entity, FieldState, SideRecord, SideState};

use crate::engine::Engine;

impl Engine {
    /// The ledger remembers what a CRM's people wrote: not what came back of ours.
    pub fn keep_shown(&mut self, thing: usize, observed: &Observed, outcome: &Outcome) {
        for (field, value, _) in &observed.values {
            let step = outcome
                .decisions
                .iter()
                .find(|d| d.field == *field)
                .map(|d| d.step);
            let news = matches!(
                step,
                Some(
                    Step::OneSide
                        | Step::Conflict
                        | Step::Owner
                        | Step::FillBlank
                        | Step::Held
                        | Step::Flapping
                        | Step::Known
                )
            ) && !(step == Some(Step::Known) && self.counts(*field));
            let last = &mut self.things[thing].shown[observed.side][*field];
            if news && last.as_ref().is_none_or(|(_, at)| at.to <= observed.at.to) {
                *last = Some((value.clone(), observed.at));
            }
        }
    }

    /// Whether every edit of a field counts: then what is known is no news.
    fn counts(&self, field: usize) -> bool {
        let rule = self.policy.rules[field].strategy;
        rule.entry().merge.is_some()
    }

    /// Puts what the ledger knows of later observations beside a late event.
    pub fn recall(&mut self, thing: usize, side: usize) {
        let origin = self.group.sides[side].origin.clone();
        let thing = &mut self.things[thing];
        for field in 0..thing.shown[side].len() {
            let Some((value, at)) = thing.shown[side][field].clone() else {
                continue;
            };
            let state = thing.entity.fields.remove(&field);
            let mut state = state.unwrap_or_else(|| at_rest(&thing.entity, field));
            let there = &mut state.sides[side];
            if there.seen.as_ref().is_none_or(|(_, c)| c.at.to < at.to) {
                let origin = origin.clone();
                let clock = self.policy.record_quality(&origin).clock(at, 0, &origin);
                there.seen = Some((value, clock));
            }
            thing.entity.fields.insert(field, state);
        }
    }
}

/// State of a field at rest: the mirrors are the base.
fn at_rest(entity: &Entity, field: usize) -> FieldState {
    let side = |record: &SideRecord| SideState {
        base: record.exists.then(|| record.values[field].clone()),
        ..SideState::default()
    };
    FieldState {
        sides: entity.records.iter().map(side).collect(),
        ..FieldState::default()
    }
}

/// Whether a state says more than the mirrors and the ledger do.
pub fn keep(state: &FieldState, entity: &Entity) -> bool {
    let linked = entity.records.iter().filter(|r| r.exists).count() > 1;
    let mut sides = entity.records.iter().zip(&state.sides);
    state.hold.is_some()
        || sides.any(|(record, side)| {
            let open = linked && record.exists && side.base.is_none();
            !side.sent.is_empty() || side.flap.is_some() || !side.waiting.is_empty() || open
        })
}
