//! Slots of a sliding window, and the pace of heavy work.

use std::collections::VecDeque;

use super::Refusal;
use crate::model::Millis;

/// Clocks tick in whole milliseconds, ours and theirs.
const SLACK_MS: Millis = 2;

/// A sliding window of slots.
#[derive(Clone, Debug)]
pub(super) struct Window {
    pub(super) max: u32,
    pub(super) length: Millis,
    pub(super) in_flight: u32,
    /// Release times, ascending, with how many slots each gives back.
    pub(super) spent: VecDeque<(Millis, u32)>,
    pub(super) spent_total: u32,
}

impl Window {
    pub(super) fn new(max: u32, length: Millis) -> Self {
        Self {
            max: max.max(1),
            length: length.max(1),
            in_flight: 0,
            spent: VecDeque::new(),
            spent_total: 0,
        }
    }

    pub(super) fn expire(&mut self, now: Millis) {
        while let Some(&(at, n)) = self.spent.front() {
            if at > now {
                break;
            }
            self.spent.pop_front();
            self.spent_total -= n;
        }
    }

    pub(super) fn used(&self) -> u32 {
        self.in_flight + self.spent_total
    }

    /// When more than `reserve` slots are free, as far as answered calls tell.
    pub(super) fn ready(&self, reserve: u32) -> Result<(), Refusal> {
        let limit = self.max.saturating_sub(reserve).max(1);
        if self.used() < limit {
            return Ok(());
        }
        let mut excess = self.used() - limit + 1;
        for &(at, n) in &self.spent {
            if n >= excess {
                return Err(Refusal::Until(at));
            }
            excess -= n;
        }
        Err(Refusal::AfterAnswer)
    }

    pub(super) fn spend(&mut self, now: Millis, n: u32) {
        let at = now + self.length + SLACK_MS;
        self.spent_total += n;
        match self.spent.back_mut() {
            Some((last, count)) if *last >= at => *count += n,
            _ => self.spent.push_back((at, n)),
        }
    }

    pub(super) fn answered(&mut self, now: Millis) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.spend(now, 1);
    }
}

/// Evens out the backfill lane: a bucket that fills at the contract's rate.
/// Credit is counted in calls x window length, so that it stays integral.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    credit: i64,
    last: Option<Millis>,
}

impl Pace {
    pub(super) fn ready(&mut self, now: Millis, max: u32, length: Millis) -> Result<(), Refusal> {
        let cap = length.saturating_mul(i64::from((max / 8).max(2)));
        let since = self.last.map_or(cap, |l| (now - l).max(0));
        self.last = Some(now);
        self.credit = self
            .credit
            .saturating_add(since.saturating_mul(i64::from(max)))
            .min(cap);
        let missing = length - self.credit;
        if missing <= 0 {
            return Ok(());
        }
        let max = i64::from(max);
        Err(Refusal::Until(now + (missing + max - 1) / max))
    }

    pub(super) fn spend(&mut self, length: Millis) {
        self.credit -= length;
    }
}
