//! The day's calls: what the CRM says is left, and what is left of our own part.

use std::collections::BTreeMap;

use super::Refusal;
use crate::budget::{Budget, Lane, thousandths};
use crate::model::Millis;

/// How often a call may ask whether there are calls again.
const PROBE_MS: Millis = 300_000;

/// The day's calls of one server.
#[derive(Clone, Debug, Default)]
pub(super) struct Day {
    /// All calls of the day and what is left of them, as the CRM last said, with
    /// our calls since then taken off.
    told: Option<(u64, u64)>,
    /// Calls of ours in the last 24 hours.
    spent: u64,
    /// Of mirrors with a share.
    mirrors: BTreeMap<i32, u64>,
    probe_at: Option<Millis>,
}

impl Day {
    /// Takes over what was counted in the last 24 hours.
    pub(super) fn counted(&mut self, spent: u64, mirrors: &BTreeMap<i32, u64>) {
        self.spent = spent;
        self.mirrors.clone_from(mirrors);
    }

    pub(super) fn told(&mut self, max: u64, left: u64) {
        if left > 0 && self.told.is_some_and(|(_, before)| before == 0) {
            // A new day.
            self.probe_at = None;
        }
        self.told = Some((max, left));
    }

    /// The CRM says that nothing is left, and to ask again at `until`; false where
    /// it does not tell how much there is.
    pub(super) fn is_spent(&mut self, until: Millis) -> bool {
        let Some((_, left)) = &mut self.told else {
            return false;
        };
        *left = 0;
        self.probe_at = Some(until);
        true
    }

    /// A lane that ran into what it leaves to others may ask now and then whether
    /// there is more: only an answer can tell.
    pub(super) fn check(
        &mut self,
        now: Millis,
        lane: Lane,
        budget: &Budget,
        mirror: i32,
    ) -> Result<(), Refusal> {
        let day = self.told.map(|(max, _)| max);
        let own = budget.day(day);
        // Calls of ours that leave the last 24 hours need no answer to be seen.
        if let Some(own) = own
            && own.saturating_sub(self.spent) <= kept(own, budget.kept(lane))
        {
            return Err(Refusal::Until(now + PROBE_MS));
        }
        let share = budget.mirrors.get(&mirror);
        if let (Some(share), Some(day)) = (share, own.or(day))
            && self.mirrors.get(&mirror).copied().unwrap_or(0) >= thousandths(day, *share)
        {
            return Err(Refusal::Until(now + PROBE_MS));
        }
        let Some((max, left)) = self.told else {
            return Ok(());
        };
        if left > kept(max, budget.kept(lane)) {
            return Ok(());
        }
        match self.probe_at {
            Some(at) if now < at => Err(Refusal::Until(at)),
            _ => {
                self.probe_at = Some(now + PROBE_MS);
                Ok(())
            }
        }
    }

    pub(super) fn take(&mut self, mirror: i32) {
        if let Some((_, left)) = &mut self.told {
            *left = left.saturating_sub(1);
        }
        self.spent += 1;
        if mirror != 0 {
            *self.mirrors.entry(mirror).or_default() += 1;
        }
    }

    pub(super) fn unsent(&mut self, mirror: i32) {
        self.spent = self.spent.saturating_sub(1);
        if let Some(n) = self.mirrors.get_mut(&mirror) {
            *n = n.saturating_sub(1);
        }
    }
}

fn kept(of: u64, part: u32) -> u64 {
    if part == 0 { 0 } else { thousandths(of, part) }
}
