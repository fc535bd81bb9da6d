//! One budget per server, shared by lanes, in virtual time.
//!
//! **Slots.** A CRM that allows `max` calls in any `window` counts a call at
//! some instant between its departure and its answer. So a call holds a slot
//! from departure until `window` after its answer: by then it has certainly
//! left the CRM's window, and no refusal is possible however the network
//! delays. The price is one round trip per window: at 100 ms in 10 s, 1 %.
//!
//! **Lanes** are served in order; lower ones leave a reserve that grows with
//! the live traffic of the last window. Heavy lanes are also paced, or they
//! would spend a window's calls in its first second and leave live traffic to
//! wait for the end of the window. They run in their windows of the day only.
//!
//! **Days.** Each lane leaves part of the day's calls to those above it, of the
//! CRM's count and of what is allowed to us ([`Budget`]), so work stops from
//! below as the day's calls run out. Only an answer can tell that there are
//! calls again: now and then one call may ask.
//!
//! **Learning.** `max` and `window` come from the CRM's answers
//! ([`LimitHint`]); what others spend shows as the difference between the
//! CRM's count and ours. Until the first answer nothing is known and only the
//! number of calls in flight is bounded. How many may run at a time no CRM
//! tells: a refusal halves it, and it grows again by one a minute.

mod day;
mod window;

use std::collections::BTreeMap;

use crate::budget::{Budget, Exhausted, thousandths};
use crate::connectors::{ClassLimit, LimitHint};
use crate::model::Millis;
use day::Day;
use window::{Pace, Window};

pub use crate::budget::Lane;

/// Window of a configured share when the CRM has not told one.
const DEFAULT_WINDOW_MS: Millis = 10_000;
/// How long after a refusal one more call at a time is tried.
const CONCURRENCY_STEP_MS: Millis = 60_000;

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
    class: Option<&'static str>,
    mirror: i32,
}

/// The budget of one server.
#[derive(Clone, Debug)]
pub struct Limiter {
    budget: Budget,
    /// What to add to a time of ours for the wall clock's.
    wall: Millis,
    max_in_flight: u32,
    /// What the CRM seems to allow of it.
    ceiling: u32,
    ceiling_at: Millis,
    in_flight: u32,
    general: Option<Window>,
    classes: BTreeMap<&'static str, Window>,
    /// Of mirrors with a share.
    mirrors: BTreeMap<i32, Window>,
    pace: Pace,
    live: Window,
    paused_until: Millis,
    class_paused_until: Millis,
    day: Day,
    hint: LimitHint,
}

impl Limiter {
    /// A budget of which nothing is known yet. `share` caps the calls per window.
    pub fn new(max_in_flight: u32, share: Option<u32>) -> Self {
        let budget = Budget {
            calls_per_window: share,
            ..Budget::default()
        };
        let ceiling = max_in_flight.max(1);
        Self {
            general: share.map(|n| Window::new(n, DEFAULT_WINDOW_MS)),
            budget,
            wall: 0,
            max_in_flight: ceiling,
            ceiling,
            ceiling_at: Millis::MIN,
            in_flight: 0,
            classes: BTreeMap::new(),
            mirrors: BTreeMap::new(),
            pace: Pace::default(),
            live: Window::new(u32::MAX, DEFAULT_WINDOW_MS),
            paused_until: Millis::MIN,
            class_paused_until: Millis::MIN,
            day: Day::default(),
            hint: LimitHint::default(),
        }
    }

    /// Replaces what is configured; what is spent stays spent. `wall` is the wall
    /// clock at `now`.
    pub fn configure(&mut self, now: Millis, wall: Millis, max_in_flight: u32, budget: Budget) {
        let most = budget
            .concurrent
            .map_or(max_in_flight, |n| n.min(max_in_flight));
        if self.max_in_flight != most.max(1) {
            self.max_in_flight = most.max(1);
            self.ceiling = self.max_in_flight;
        }
        self.wall = wall - now;
        self.day.counted(budget.spent, &budget.mirror_spent);
        self.mirrors.retain(|m, _| budget.mirrors.contains_key(m));
        self.budget = budget;
        let length = self.hint.window_ms.map(Millis::from);
        self.resize(length);
    }

    /// The window as told and configured.
    fn resize(&mut self, length: Option<Millis>) {
        let Some(max) = self.budget.window(self.hint.window_max) else {
            self.general = None;
            return;
        };
        let length = length.unwrap_or(DEFAULT_WINDOW_MS).max(1);
        let in_flight = self.in_flight;
        let w = self.general.get_or_insert_with(|| {
            let mut w = Window::new(max, length);
            w.in_flight = in_flight;
            w
        });
        (w.max, w.length, self.live.length) = (max, length, length);
        for (mirror, own) in &mut self.mirrors {
            own.max = share_of(max, self.budget.mirrors.get(mirror));
            own.length = length;
        }
    }

    /// Takes the right to one call in a lane, of a class with a bucket of its own if any.
    pub fn take(
        &mut self,
        now: Millis,
        lane: Lane,
        class: Option<ClassLimit>,
    ) -> Result<Permit, Refusal> {
        self.take_for(now, lane, class, 0)
    }

    /// The same for a mirror; 0 is none.
    pub fn take_for(
        &mut self,
        now: Millis,
        lane: Lane,
        class: Option<ClassLimit>,
        mirror: i32,
    ) -> Result<Permit, Refusal> {
        self.expire(now);
        self.check_pauses(now, class.is_some())?;
        if lane.is_heavy()
            && let Some(from) = self.budget.heavy_from(now + self.wall)
        {
            return Err(Refusal::Until(from - self.wall));
        }
        self.check_in_flight(now, lane)?;
        let reserve = self.reserve(lane);
        if let Some(w) = &self.general {
            w.ready(reserve)?;
        }
        if let Some(c) = class {
            let (max, length) = match self.budget.class_per_second {
                Some(n) => (n.max(1), 1_000),
                None => (c.calls.max(1), Millis::from(c.window_ms)),
            };
            let w = (self.classes.entry(c.name)).or_insert_with(|| Window::new(max, length));
            (w.max, w.length) = (max, length.max(1));
            w.ready(0)?;
        }
        let share = self.budget.mirrors.get(&mirror).copied();
        if let (Some(share), Some(general)) = (share, &self.general) {
            let max = share_of(general.max, Some(&share));
            let own = || Window::new(max, general.length);
            self.mirrors.entry(mirror).or_insert_with(own).ready(0)?;
        }
        if let (true, Some(w)) = (lane.is_heavy(), &self.general) {
            self.pace.ready(now, w.max, w.length)?;
        }
        self.day.check(now, lane, &self.budget, mirror)?;
        if let (true, Some(w)) = (lane.is_heavy(), &self.general) {
            self.pace.spend(w.length);
        }
        let permit = Permit {
            class: class.map(|c| c.name),
            mirror,
        };
        self.grant(now, lane, &permit);
        Ok(permit)
    }

    /// The call was answered, or given up: its slot ages from now.
    pub fn answered(&mut self, now: Millis, permit: Permit) {
        self.in_flight = self.in_flight.saturating_sub(1);
        for w in self.windows_of(&permit) {
            w.answered(now);
        }
    }

    /// The call was never sent: its slot is free again.
    pub fn unsent(&mut self, permit: Permit) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.day.unsent(permit.mirror);
        for w in self.windows_of(&permit) {
            w.in_flight = w.in_flight.saturating_sub(1);
        }
    }

    fn windows_of(&mut self, permit: &Permit) -> impl Iterator<Item = &mut Window> {
        let class = permit.class.and_then(|name| self.classes.get_mut(name));
        let mirror = self.mirrors.get_mut(&permit.mirror);
        [self.general.as_mut(), class, mirror].into_iter().flatten()
    }

    /// Takes in what an answer said. Call it before [`Self::answered`].
    pub fn learn(&mut self, now: Millis, hint: LimitHint) {
        merge(&mut self.hint, hint);
        self.expire(now);
        if hint.window_max.is_some() {
            self.resize(hint.window_ms.map(Millis::from));
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
            self.day.told(max, left);
        }
    }

    /// The CRM refused a call of ours for the budget, and takes no other before `until`.
    pub fn refused(&mut self, now: Millis, what: Exhausted, until: Millis, class: bool) {
        match what {
            Exhausted::Class => self.pause(until, class),
            Exhausted::Window | Exhausted::Account => self.pause(until, false),
            // As long as the CRM tells what is left, an answer ends this pause too.
            Exhausted::Day => {
                if !self.day.is_spent(until) {
                    self.pause(until, false);
                }
            }
            Exhausted::Concurrency => {
                // The refused call is still among those in flight.
                let running = self.in_flight.saturating_sub(1);
                self.ceiling = (running.min(self.ceiling) / 2).max(1);
                self.ceiling_at = now + CONCURRENCY_STEP_MS;
            }
        }
    }

    /// No call (of this class) before `until`.
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

    /// Whether calls of this mirror are bounded apart from others.
    pub fn is_shared_out(&self, mirror: i32) -> bool {
        self.budget.mirrors.contains_key(&mirror)
    }

    /// All that the CRM told so far.
    pub fn hint(&self) -> LimitHint {
        self.hint
    }

    fn expire(&mut self, now: Millis) {
        self.live.expire(now);
        let apart = self.classes.values_mut().chain(self.mirrors.values_mut());
        for w in self.general.iter_mut().chain(apart) {
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

    fn check_in_flight(&mut self, now: Millis, lane: Lane) -> Result<(), Refusal> {
        if self.ceiling < self.max_in_flight && now >= self.ceiling_at {
            self.ceiling += 1;
            self.ceiling_at = now + CONCURRENCY_STEP_MS;
        }
        let kept = match lane {
            Lane::Push | Lane::Read => 0,
            Lane::Poll => self.ceiling / 8,
            Lane::Relaxed | Lane::Backfill | Lane::Reconcile => self.ceiling / 4,
        };
        if self.in_flight < (self.ceiling - kept).max(1) {
            Ok(())
        } else {
            Err(Refusal::AfterAnswer)
        }
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
            Lane::Relaxed | Lane::Backfill => live,
            Lane::Reconcile => (live + w.max / 50).min(w.max / 2),
        }
    }

    fn grant(&mut self, now: Millis, lane: Lane, permit: &Permit) {
        self.in_flight += 1;
        for w in self.windows_of(permit) {
            w.in_flight += 1;
        }
        self.day.take(permit.mirror);
        if lane.is_live() && self.general.is_some() {
            self.live.spend(now, 1);
        }
    }
}

fn share_of(max: u32, share: Option<&u32>) -> u32 {
    let part = thousandths(u64::from(max), share.copied().unwrap_or(1_000));
    u32::try_from(part).unwrap_or(u32::MAX)
}

fn merge(known: &mut LimitHint, new: LimitHint) {
    known.window_max = new.window_max.or(known.window_max);
    known.window_remaining = new.window_remaining.or(known.window_remaining);
    known.window_ms = new.window_ms.or(known.window_ms);
    known.daily_max = new.daily_max.or(known.daily_max);
    known.daily_remaining = new.daily_remaining.or(known.daily_remaining);
}
