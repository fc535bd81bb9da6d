//! What the ledger remembers, so that states need not.

use crm_core::decide::{Observed, Outcome, Source, Step};
use crm_core::memory::{at_rest, recall};

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
            ) && !(step == Some(Step::Known) && self.counts(*field))
                || step == Some(Step::Equal) && observed.source == Source::Remote;
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
        for field in 0..self.things[thing].shown[side].len() {
            let counts = self.counts(field);
            let thing = &mut self.things[thing];
            let Some((value, at)) = thing.shown[side][field].clone() else {
                continue;
            };
            let state = thing.entity.fields.remove(&field);
            let mut state = state.unwrap_or_else(|| at_rest(&thing.entity, field));
            let quality = self.policy.record_quality(&origin);
            let clock = quality.clock(at, 0, &origin);
            recall(&mut state, side, (value, clock), counts);
            thing.entity.fields.insert(field, state);
        }
    }
}
