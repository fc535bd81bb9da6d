//! One budget per server, shared by lanes, in virtual time.
//!
//! **Slots.** A CRM that allows `max` calls in any `window` counts a call at
//! some instant between its departure and its answer. So a call holds a slot
//! from departure until `window` after its answer: by then it has certainly
//! left the CRM's window, and no refusal is possible however the network
//! delays. The price is one round trip per window: at 100 ms in 10 s, 1 %.
//!
//! **Lanes** are served in order; lower ones leave a reserve that grows with
//! the live traffic of the last window. The backfill lane is also paced, or it
//! would spend a window's calls in its first second and leave live traffic to
//! wait for the end of the window.
//!
//! **Learning.** `max` and `window` come from the CRM's answers
//! ([`LimitHint`]); what others spend shows as the difference between the
//! CRM's count and ours. Until the first answer nothing is known and only the
//! number of calls in flight is bounded.

use std::collections::VecDeque;

use crate::connectors::{ClassLimit, LimitHint};
use crate::http::Purpose;
use crate::model::Millis;

/// Window of a configured share when the CRM has not told one.
const DEFAULT_WINDOW_MS: Millis = 10_000;
/// Clocks tick in whole milliseconds, ours and theirs.
const SLACK_MS: Millis = 2;
/// How often a call may ask whether an exhausted daily budget came back.
const DAILY_PROBE_MS: Millis = 300_000;

/// Who asks, most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Users' writes.
    Push,
    /// Reads that a decision waits for.
    Read,
    /// Polls, catalog.
    Poll,
    /// First copies.
    Backfill,
}

impl Lane {
    /// All lanes, most urgent first.
    pub const ALL: [Self; 4] = [Self::Push, Self::Read, Self::Poll, Self::Backfill];

    /// The lane of a purpose; `None` for what counts against no budget.
    pub fn of(purpose: Purpose) -> Option<Self> {
        match purpose {
            Purpose::Auth => None,
            Purpose::Push => Some(Self::Push),
            Purpose::ReadBack | Purpose::Match => Some(Self::Read),
            Purpose::Poll | Purpose::Catalog => Some(Self::Poll),
            Purpose::Backfill | Purpose::Reconcile => Some(Self::Backfill),
        }
    }

    fn live(self) -> bool {
        self <= Self::Read
    }

    /// Share of the day's calls (per mille) that this lane leaves to those above it.
    fn daily_reserve(self) -> u64 {
        match self {
            Self::Push | Self::Read => 0,
            Self::Poll => 20,
            Self::Backfill => 100,
        }
    }
}

/// Why a call may not go now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Ask again at this time, or when an answer came.
    Until(Millis),
    /// Ask again when an answer came: all slots are in flight.
    AfterAnswer,
}

/// Right to one call; give it back to [`Limiter::answered`].
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Permit {
    class: bool,
}

/// A sliding window of slots.
#[derive(Clone, Debug)]
struct Window {
    max: u32,
    length: Millis,
    in_flight: u32,
    /// Release times, ascending, with how many slots each gives back.
    spent: VecDeque<(Millis, u32)>,
    spent_total: u32,
}

impl Window {
    fn new(max: u32, length: Millis) -> Self {
        Self {
            max: max.max(1),
            length: length.max(1),
            in_flight: 0,
            spent: VecDeque::new(),
            spent_total: 0,
        }
    }

    fn expire(&mut self, now: Millis) {
        while let Some(&(at, n)) = self.spent.front() {
            if at > now {
                break;
            }
            self.spent.pop_front();
            self.spent_total -= n;
        }
    }

    fn used(&self) -> u32 {
        self.in_flight + self.spent_total
    }

    /// When more than `reserve` slots are free, as far as answered calls tell.
    fn ready(&self, reserve: u32) -> Result<(), Refusal> {
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

    fn spend(&mut self, now: Millis, n: u32) {
        let at = now + self.length + SLACK_MS;
        self.spent_total += n;
        match self.spent.back_mut() {
            Some((last, count)) if *last >= at => *count += n,
            _ => self.spent.push_back((at, n)),
        }
    }

    fn answered(&mut self, now: Millis) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.spend(now, 1);
    }
}

/// Evens out the backfill lane: a bucket that fills at the contract's rate.
/// Credit is counted in calls x window length, so that it stays integral.
#[derive(Clone, Debug, Default)]
struct Pace {
    credit: i64,
    last: Option<Millis>,
}

impl Pace {
    fn ready(&mut self, now: Millis, max: u32, length: Millis) -> Result<(), Refusal> {
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

    fn spend(&mut self, length: Millis) {
        self.credit -= length;
    }
}

/// The budget of one server.
#[derive(Clone, Debug)]
pub struct Limiter {
    share: Option<u32>,
    max_in_flight: u32,
    in_flight: u32,
    general: Option<Window>,
    class: Option<Window>,
    pace: Pace,
    live: Window,
    paused_until: Millis,
    class_paused_until: Millis,
    daily: Option<(u64, u64)>,
    daily_probe_at: Millis,
    hint: LimitHint,
}

impl Limiter {
    /// A budget of which nothing is known yet. `share` caps the calls per window.
    pub fn new(max_in_flight: u32, share: Option<u32>) -> Self {
        Self {
            share,
            max_in_flight: max_in_flight.max(1),
            in_flight: 0,
            general: share.map(|n| Window::new(n, DEFAULT_WINDOW_MS)),
            class: None,
            pace: Pace::default(),
            live: Window::new(u32::MAX, DEFAULT_WINDOW_MS),
            paused_until: Millis::MIN,
            class_paused_until: Millis::MIN,
            daily: None,
            daily_probe_at: Millis::MIN,
            hint: LimitHint::default(),
        }
    }

    /// Replaces the share and the bound on calls in flight; what is spent stays spent.
    pub fn reconfigure(&mut self, max_in_flight: u32, share: Option<u32>) {
        self.max_in_flight = max_in_flight.max(1);
        self.share = share;
        let told = self.hint.window_max;
        match (&mut self.general, share.or(told)) {
            (Some(w), Some(_)) => {
                w.max = told
                    .unwrap_or(u32::MAX)
                    .min(share.unwrap_or(u32::MAX))
                    .max(1);
            }
            (Some(_), None) => self.general = None,
            (none, Some(n)) => *none = Some(Window::new(n, DEFAULT_WINDOW_MS)),
            (None, None) => {}
        }
    }

    /// Takes the right to one call in a lane, of a class with a bucket of its own if any.
    pub fn take(
        &mut self,
        now: Millis,
        lane: Lane,
        class: Option<ClassLimit>,
    ) -> Result<Permit, Refusal> {
        self.expire(now);
        self.check_pauses(now, class.is_some())?;
        self.check_in_flight(lane)?;
        let reserve = self.reserve(lane);
        if let Some(w) = &self.general {
            w.ready(reserve)?;
        }
        if let Some(c) = class {
            let (max, length) = (c.calls.max(1), Millis::from(c.window_ms));
            let w = self.class.get_or_insert_with(|| Window::new(max, length));
            w.max = max;
            w.length = length.max(1);
            w.ready(0)?;
        }
        if let (Lane::Backfill, Some(w)) = (lane, &self.general) {
            self.pace.ready(now, w.max, w.length)?;
        }
        self.check_daily(now, lane)?;
        if let (Lane::Backfill, Some(w)) = (lane, &self.general) {
            self.pace.spend(w.length);
        }
        self.grant(now, lane, class.is_some());
        Ok(Permit {
            class: class.is_some(),
        })
    }

    /// The call was answered, or given up: its slot ages from now.
    pub fn answered(&mut self, now: Millis, permit: Permit) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(w) = &mut self.general {
            w.answered(now);
        }
        if let (true, Some(w)) = (permit.class, &mut self.class) {
            w.answered(now);
        }
    }

    /// The call was never sent: its slot is free again.
    pub fn unsent(&mut self, permit: Permit) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(w) = &mut self.general {
            w.in_flight = w.in_flight.saturating_sub(1);
        }
        if let (true, Some(w)) = (permit.class, &mut self.class) {
            w.in_flight = w.in_flight.saturating_sub(1);
        }
    }

    /// Takes in what an answer said. Call it before [`Self::answered`].
    pub fn learn(&mut self, now: Millis, hint: LimitHint) {
        merge(&mut self.hint, hint);
        self.expire(now);
        if let Some(max) = hint.window_max {
            let max = max.min(self.share.unwrap_or(u32::MAX)).max(1);
            let length = hint.window_ms.map_or(DEFAULT_WINDOW_MS, Millis::from);
            let in_flight = self.in_flight;
            let w = self.general.get_or_insert_with(|| {
                let mut w = Window::new(max, length);
                w.in_flight = in_flight;
                w
            });
            w.max = max;
            w.length = length.max(1);
            self.live.length = w.length;
        }
        if let (Some(w), Some(told), Some(left)) =
            (&mut self.general, hint.window_max, hint.window_remaining)
        {
            // What the CRM counts beyond our own calls was spent by others
            // (or by us before a restart). A share is ours alone: the others'
            // calls matter only as far as they leave less than it.
            let free_of_ours = w.max.saturating_sub(w.used());
            if left < free_of_ours && left < told {
                w.spend(now, free_of_ours - left);
            }
        }
        if let (Some(max), Some(left)) = (hint.daily_max, hint.daily_remaining) {
            self.daily = Some((max, left));
        }
    }

    /// The CRM refused for the budget: no call (of this class) before `until`.
    pub fn pause(&mut self, until: Millis, class: bool) {
        let p = if class {
            &mut self.class_paused_until
        } else {
            &mut self.paused_until
        };
        *p = (*p).max(until);
    }

    /// End of the present pause, if it lies ahead.
    pub fn paused_until(&self, now: Millis) -> Option<Millis> {
        (self.paused_until > now).then_some(self.paused_until)
    }

    /// All that the CRM told so far.
    pub fn hint(&self) -> LimitHint {
        self.hint
    }

    fn expire(&mut self, now: Millis) {
        self.live.expire(now);
        for w in [&mut self.general, &mut self.class].into_iter().flatten() {
            w.expire(now);
        }
    }

    fn check_pauses(&self, now: Millis, class: bool) -> Result<(), Refusal> {
        let mut until = self.paused_until;
        if class {
            until = until.max(self.class_paused_until);
        }
        if until > now {
            return Err(Refusal::Until(until));
        }
        Ok(())
    }

    fn check_in_flight(&self, lane: Lane) -> Result<(), Refusal> {
        let kept = match lane {
            Lane::Push | Lane::Read => 0,
            Lane::Poll => self.max_in_flight / 8,
            Lane::Backfill => self.max_in_flight / 4,
        };
        if self.in_flight < (self.max_in_flight - kept).max(1) {
            Ok(())
        } else {
            Err(Refusal::AfterAnswer)
        }
    }

    /// A lane that ran into its share of the day may ask now and then whether
    /// a new day began: only an answer can tell.
    fn check_daily(&mut self, now: Millis, lane: Lane) -> Result<(), Refusal> {
        let Some((max, left)) = self.daily else {
            return Ok(());
        };
        if left > max / 1000 * lane.daily_reserve() {
            return Ok(());
        }
        if now >= self.daily_probe_at {
            self.daily_probe_at = now + DAILY_PROBE_MS;
            return Ok(());
        }
        Err(Refusal::Until(self.daily_probe_at))
    }

    fn reserve(&self, lane: Lane) -> u32 {
        let Some(w) = &self.general else {
            return 0;
        };
        let floor = (w.max / 100).max(u32::from(w.max > 1));
        let live = (floor + self.live.spent_total / 4).min(w.max / 2);
        match lane {
            Lane::Push => 0,
            Lane::Read => live / 4,
            Lane::Poll => live / 2,
            Lane::Backfill => live,
        }
    }

    fn grant(&mut self, now: Millis, lane: Lane, class: bool) {
        self.in_flight += 1;
        if let Some(w) = &mut self.general {
            w.in_flight += 1;
        }
        if let (true, Some(w)) = (class, &mut self.class) {
            w.in_flight += 1;
        }
        if let Some((_, left)) = &mut self.daily {
            *left = left.saturating_sub(1);
        }
        if lane.live() && self.general.is_some() {
            self.live.spend(now, 1);
        }
    }
}

fn merge(known: &mut LimitHint, new: LimitHint) {
    known.window_max = new.window_max.or(known.window_max);
    known.window_remaining = new.window_remaining.or(known.window_remaining);
    known.window_ms = new.window_ms.or(known.window_ms);
    known.daily_max = new.daily_max.or(known.daily_max);
    known.daily_remaining = new.daily_remaining.or(known.daily_remaining);
}
