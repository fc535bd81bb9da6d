//! The limiter against a CRM that counts strictly, in virtual time.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crm_core::connectors::{ClassLimit, LimitHint};
use crm_core::limiter::{Lane, Limiter, Permit, Refusal};

const WINDOW: i64 = 10_000;
const MAX: u32 = 190;

/// Numbers that look random and repeat with the seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> i64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides) as i64
    }
}

/// A CRM that allows `max` calls in any window of ten seconds.
struct Crm {
    max: u32,
    calls: VecDeque<i64>,
    refused: u32,
}

impl Crm {
    fn call(&mut self, now: i64) -> LimitHint {
        while self.calls.front().is_some_and(|t| t + WINDOW <= now) {
            self.calls.pop_front();
        }
        if self.calls.len() >= self.max as usize {
            self.refused += 1;
        } else {
            self.calls.push_back(now);
        }
        LimitHint {
            window_max: Some(self.max),
            window_remaining: Some(self.max - self.calls.len() as u32),
            window_ms: Some(WINDOW as u32),
            ..LimitHint::default()
        }
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Arrive(usize),
    Answer(usize),
    Wake,
    Live,
}

struct Run {
    limiter: Limiter,
    crm: Crm,
    dice: Dice,
    round_trip: (i64, u64),
    agenda: BinaryHeap<Reverse<(i64, u64, Step)>>,
    order: u64,
    open: Vec<Option<(Permit, LimitHint)>>,
    live_waiting: VecDeque<i64>,
    live_waits: Vec<i64>,
    bulk: u32,
    next_wake: i64,
}

impl Run {
    fn new(seed: u64, max: u32, round_trip: (i64, u64)) -> Self {
        Self {
            limiter: Limiter::new(16, None),
            crm: Crm {
                max,
                calls: VecDeque::new(),
                refused: 0,
            },
            dice: Dice(seed | 1),
            round_trip,
            agenda: BinaryHeap::new(),
            order: 0,
            open: Vec::new(),
            live_waiting: VecDeque::new(),
            live_waits: Vec::new(),
            bulk: 0,
            next_wake: i64::MIN,
        }
    }

    fn at(&mut self, t: i64, step: Step) {
        self.order += 1;
        self.agenda.push(Reverse((t, self.order, step)));
    }

    fn wake(&mut self, now: i64, t: i64) {
        assert!(t > now, "a refusal must name a later time");
        if self.next_wake <= now || t < self.next_wake {
            self.next_wake = t;
            self.at(t, Step::Wake);
        }
    }

    fn send(&mut self, now: i64, permit: Permit) {
        let n = self.open.len();
        self.open.push(Some((permit, LimitHint::default())));
        let trip = self.round_trip.0 + self.dice.roll(self.round_trip.1);
        let there = self.dice.roll(trip as u64 + 1);
        self.at(now + there, Step::Arrive(n));
        self.at(now + trip, Step::Answer(n));
    }

    /// Sends all that may go: live calls first, then bulk without end.
    fn pump(&mut self, now: i64) {
        while let Some(&since) = self.live_waiting.front() {
            match self.limiter.take(now, Lane::Push, None) {
                Ok(permit) => {
                    self.live_waiting.pop_front();
                    self.live_waits.push(now - since);
                    self.send(now, permit);
                }
                Err(Refusal::Until(t)) => {
                    self.wake(now, t);
                    break;
                }
                Err(Refusal::AfterAnswer) => break,
            }
        }
        loop {
            match self.limiter.take(now, Lane::Backfill, None) {
                Ok(permit) => {
                    self.bulk += 1;
                    self.send(now, permit);
                }
                Err(Refusal::Until(t)) => {
                    self.wake(now, t);
                    return;
                }
                Err(Refusal::AfterAnswer) => return,
            }
        }
    }

    fn until(&mut self, end: i64, live_every: Option<i64>) {
        self.at(0, Step::Wake);
        if live_every.is_some() {
            self.at(1, Step::Live);
        }
        while let Some(Reverse((now, _, step))) = self.agenda.pop() {
            if now >= end {
                return;
            }
            match step {
                Step::Arrive(n) => {
                    let hint = self.crm.call(now);
                    self.open[n].as_mut().unwrap().1 = hint;
                }
                Step::Answer(n) => {
                    let (permit, hint) = self.open[n].take().unwrap();
                    self.limiter.learn(now, hint);
                    self.limiter.answered(now, permit);
                }
                Step::Live => {
                    self.live_waiting.push_back(now);
                    let every = live_every.unwrap();
                    let next = now + every / 2 + self.dice.roll(every as u64);
                    self.at(next, Step::Live);
                }
                Step::Wake => {}
            }
            self.pump(now);
        }
    }
}

#[test]
fn bulk_alone_uses_the_contract_and_is_never_refused() {
    for seed in 1..=8 {
        let mut run = Run::new(seed, MAX, (100, 10));
        run.until(300_000, None);
        let share = f64::from(run.bulk) / f64::from(MAX * 30);
        assert_eq!(run.crm.refused, 0, "seed {seed}");
        assert!(share >= 0.97, "seed {seed}: {share}");
    }
}

#[test]
fn no_round_trip_time_makes_the_crm_refuse() {
    for (seed, trip) in [(1, (0, 1)), (2, (1, 3)), (3, (5, 900)), (4, (2_000, 9_000))] {
        let mut run = Run::new(seed, MAX, trip);
        run.until(200_000, Some(500));
        assert_eq!(run.crm.refused, 0, "round trip {trip:?}");
    }
}

#[test]
fn live_writes_do_not_wait_behind_a_backfill() {
    for seed in 1..=4 {
        let mut run = Run::new(seed, MAX, (100, 50));
        run.until(120_000, Some(400));
        run.live_waits.sort_unstable();
        let p99 = run.live_waits[run.live_waits.len() * 99 / 100];
        assert!(run.live_waits.len() > 200);
        assert!(p99 <= 120, "seed {seed}: p99 {p99} ms");
        assert_eq!(run.crm.refused, 0, "seed {seed}");
        let all = f64::from(run.bulk) + run.live_waits.len() as f64;
        assert!(all / f64::from(MAX * 12) >= 0.90, "seed {seed}: {all}");
    }
}

#[test]
fn what_others_spent_before_us_is_respected() {
    let mut run = Run::new(5, MAX, (20, 10));
    for _ in 0..150 {
        run.crm.call(-1);
    }
    run.until(60_000, None);
    assert_eq!(run.crm.refused, 0);
    assert!(run.bulk > 900, "{}", run.bulk);
}

#[test]
fn a_share_caps_calls_whatever_the_crm_allows() {
    let mut limiter = Limiter::new(1_000, Some(10));
    let hint = LimitHint {
        window_max: Some(190),
        window_remaining: Some(189),
        window_ms: Some(10_000),
        ..LimitHint::default()
    };
    let mut granted = 0;
    while let Ok(permit) = limiter.take(granted, Lane::Push, None) {
        limiter.learn(granted, hint);
        limiter.answered(granted, permit);
        granted += 1;
    }
    assert_eq!(granted, 10);
}

#[test]
fn searches_have_a_bucket_of_their_own_and_hold_up_nothing_else() {
    let search = Some(ClassLimit {
        name: "search",
        calls: 5,
        window_ms: 1_000,
    });
    let mut limiter = Limiter::new(100, None);
    for _ in 0..5 {
        let permit = limiter.take(0, Lane::Poll, search).unwrap();
        limiter.answered(0, permit);
    }
    let Err(Refusal::Until(t)) = limiter.take(0, Lane::Poll, search) else {
        panic!("a sixth search in a second");
    };
    assert!((1_000..1_010).contains(&t), "{t}");
    let other = limiter.take(0, Lane::Poll, None).unwrap();
    limiter.answered(0, other);
    assert!(limiter.take(t, Lane::Poll, search).is_ok());
}

#[test]
fn a_pause_stops_all_lanes_and_a_class_pause_only_its_class() {
    let search = Some(ClassLimit {
        name: "search",
        calls: 5,
        window_ms: 1_000,
    });
    let mut limiter = Limiter::new(10, None);
    limiter.pause(500, true);
    assert_eq!(
        limiter.take(0, Lane::Push, search),
        Err(Refusal::Until(500))
    );
    let permit = limiter.take(0, Lane::Backfill, None).unwrap();
    limiter.unsent(permit);
    limiter.pause(2_000, false);
    limiter.pause(1_000, false);
    for lane in Lane::ALL {
        assert_eq!(limiter.take(0, lane, None), Err(Refusal::Until(2_000)));
    }
    assert_eq!(limiter.paused_until(0), Some(2_000));
    assert!(limiter.take(2_000, Lane::Push, None).is_ok());
    assert_eq!(limiter.paused_until(2_000), None);
}

#[test]
fn the_last_calls_of_a_day_are_kept_for_users_writes() {
    let mut limiter = Limiter::new(10, None);
    let hint = |left| LimitHint {
        daily_max: Some(10_000),
        daily_remaining: Some(left),
        ..LimitHint::default()
    };
    limiter.learn(0, hint(900));
    // One probe, as only an answer can tell that a new day began.
    let probe = limiter.take(0, Lane::Backfill, None).unwrap();
    limiter.answered(0, probe);
    assert!(matches!(
        limiter.take(1, Lane::Backfill, None),
        Err(Refusal::Until(t)) if t > 60_000
    ));
    let push = limiter.take(1, Lane::Push, None).unwrap();
    limiter.learn(2, hint(9_999));
    limiter.answered(2, push);
    assert!(limiter.take(3, Lane::Backfill, None).is_ok());
}

#[test]
fn bulk_leaves_room_on_the_wire() {
    let mut limiter = Limiter::new(8, None);
    let mut held = Vec::new();
    while let Ok(permit) = limiter.take(0, Lane::Backfill, None) {
        held.push(permit);
    }
    assert_eq!(held.len(), 6);
    held.push(limiter.take(0, Lane::Push, None).unwrap());
    held.push(limiter.take(0, Lane::Push, None).unwrap());
    assert_eq!(limiter.take(0, Lane::Push, None), Err(Refusal::AfterAnswer));
    for permit in held {
        limiter.answered(1, permit);
    }
    assert!(limiter.take(1, Lane::Backfill, None).is_ok());
}
