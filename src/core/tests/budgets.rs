//! What is configured of a budget, against the limiter, in virtual time.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

use std::collections::BTreeMap;

use crm_core::budget::{Budget, Exhausted, Lane};
use crm_core::connectors::LimitHint;
use crm_core::limiter::{Limiter, Refusal};

const MINUTE: i64 = 60_000;

fn window(max: u32, left: u32) -> LimitHint {
    LimitHint {
        window_max: Some(max),
        window_remaining: Some(left),
        window_ms: Some(10_000),
        ..LimitHint::default()
    }
}

fn day(max: u64, left: u64) -> LimitHint {
    LimitHint {
        daily_max: Some(max),
        daily_remaining: Some(left),
        ..LimitHint::default()
    }
}

fn limiter(budget: Budget) -> Limiter {
    let mut limiter = Limiter::new(1_000, None);
    limiter.configure(0, 0, 1_000, budget);
    limiter
}

/// Calls that a lane gets at one instant, each answered at once.
fn granted(limiter: &mut Limiter, now: i64, lane: Lane, mirror: i32) -> u32 {
    let mut n = 0;
    while let Ok(permit) = limiter.take_for(now, lane, None, mirror) {
        limiter.answered(now, permit);
        n += 1;
        assert!(n <= 100_000, "no end of calls");
    }
    n
}

#[test]
fn work_stops_from_below_as_the_days_calls_run_out_and_resumes_by_itself() {
    let open = |left: u64| -> Vec<Lane> {
        let mut limiter = limiter(Budget::default());
        limiter.learn(0, day(100_000, left));
        // The one call that may ask.
        if let Ok(permit) = limiter.take(0, Lane::Reconcile, None) {
            limiter.answered(0, permit);
        }
        (Lane::ALL.into_iter())
            .filter(|lane| limiter.take(1, *lane, None).is_ok())
            .collect()
    };
    use Lane::{Backfill, Poll, Push, Read, Reconcile, Relaxed};
    let all = [Push, Read, Poll, Relaxed, Backfill, Reconcile];
    for (left, lanes) in [
        (100_000, 6),
        (15_010, 6),
        (14_000, 5),
        (9_000, 4),
        (2_500, 3),
        (1_500, 2),
        (400, 1),
        (0, 0),
    ] {
        assert_eq!(open(left), all[..lanes], "{left} left");
    }
    // It ends with the answer that says so, before the next call might ask.
    let mut limiter = limiter(Budget::default());
    limiter.learn(0, day(100_000, 5_000));
    let probe = limiter.take(0, Lane::Backfill, None).unwrap();
    limiter.answered(0, probe);
    assert!(limiter.take(1, Lane::Backfill, None).is_err());
    limiter.learn(2, day(100_000, 99_999));
    assert!(limiter.take(3, Lane::Backfill, None).is_ok());
}

#[test]
fn a_day_that_the_crm_calls_used_up_stops_all_until_one_call_may_ask() {
    let mut limiter = limiter(Budget::default());
    limiter.learn(0, day(1_000, 700));
    limiter.refused(10, Exhausted::Day, 900_000, false);
    for lane in Lane::ALL {
        assert_eq!(limiter.take(11, lane, None), Err(Refusal::Until(900_000)));
    }
    let probe = limiter.take(900_000, Lane::Push, None).unwrap();
    assert!(
        limiter.take(900_000, Lane::Push, None).is_err(),
        "one call asks"
    );
    limiter.learn(900_050, day(1_000, 999));
    limiter.answered(900_050, probe);
    assert!(limiter.take(900_051, Lane::Backfill, None).is_ok());
    // Where the CRM tells no numbers, the pause is all there is.
    let mut blind = self::limiter(Budget::default());
    blind.refused(0, Exhausted::Day, 500, false);
    assert_eq!(blind.take(1, Lane::Push, None), Err(Refusal::Until(500)));
    assert!(blind.take(500, Lane::Push, None).is_ok());
}

#[test]
fn too_many_at_a_time_halves_them_and_they_grow_again() {
    let mut limiter = limiter(Budget {
        concurrent: Some(16),
        ..Budget::default()
    });
    let mut held = Vec::new();
    while let Ok(permit) = limiter.take(0, Lane::Push, None) {
        held.push(permit);
    }
    assert_eq!(held.len(), 16);
    limiter.refused(1, Exhausted::Concurrency, 5_000, false);
    for permit in held.drain(..) {
        limiter.answered(2, permit);
    }
    let most = |limiter: &mut Limiter, now: i64| {
        let mut held = Vec::new();
        while let Ok(permit) = limiter.take(now, Lane::Push, None) {
            held.push(permit);
        }
        let n = held.len();
        held.into_iter().for_each(|p| limiter.unsent(p));
        n
    };
    assert_eq!(most(&mut limiter, 3), 7);
    assert_eq!(most(&mut limiter, MINUTE + 2), 8, "one more a minute");
    for minute in 2..60 {
        most(&mut limiter, minute * MINUTE + 2);
    }
    assert_eq!(
        most(&mut limiter, 60 * MINUTE),
        16,
        "and not beyond what is configured"
    );
}

#[test]
fn a_mirror_gets_its_share_of_window_and_day_and_leaves_the_rest() {
    let shares = BTreeMap::from([(7, 250)]);
    let mut limiter = limiter(Budget {
        mirrors: shares.clone(),
        ..Budget::default()
    });
    limiter.learn(0, window(100, 100));
    assert!(limiter.is_shared_out(7) && !limiter.is_shared_out(8));
    assert_eq!(granted(&mut limiter, 0, Lane::Push, 7), 25);
    assert_eq!(granted(&mut limiter, 0, Lane::Push, 8), 75);
    assert_eq!(granted(&mut limiter, 10_002, Lane::Push, 7), 25);
    // Of the day: what was counted before, and what came since.
    let mut limiter = self::limiter(Budget {
        mirrors: shares,
        mirror_spent: BTreeMap::from([(7, 240)]),
        ..Budget::default()
    });
    limiter.learn(0, day(1_000, 900));
    assert_eq!(granted(&mut limiter, 0, Lane::Push, 7), 10);
    assert!(granted(&mut limiter, 0, Lane::Push, 8) > 500);
}

#[test]
fn a_share_of_the_account_holds_for_the_window_and_for_24_hours() {
    let mut limiter = limiter(Budget {
        share: 500,
        spent: 4_000,
        ..Budget::default()
    });
    limiter.learn(
        0,
        LimitHint {
            daily_max: Some(10_000),
            daily_remaining: Some(9_000),
            ..window(190, 190)
        },
    );
    assert_eq!(granted(&mut limiter, 0, Lane::Push, 0), 95);
    // 905 of our 5,000 are left, of which heavy work leaves 500 and more.
    let mut now = 0;
    let mut heavy = 0;
    while now < 3_600_000 {
        heavy += granted(&mut limiter, now, Lane::Backfill, 0);
        now += 1_000;
    }
    assert_eq!(heavy, 405);
    // What left the 24 hours may be used again.
    limiter.configure(
        now,
        now,
        1_000,
        Budget {
            share: 500,
            spent: 100,
            ..Budget::default()
        },
    );
    assert!(limiter.take(now, Lane::Backfill, None).is_ok());
}

#[test]
fn heavy_work_waits_for_its_window_by_the_wall_clock() {
    let mut limiter = Limiter::new(10, None);
    let night = Budget {
        heavy: Some(vec![(1_000_000, 1_500_000), (9_000_000, 9_500_000)]),
        ..Budget::default()
    };
    // Our clock began 900 seconds after theirs.
    limiter.configure(0, 900_000, 10, night);
    for lane in [Lane::Backfill, Lane::Reconcile] {
        assert_eq!(limiter.take(0, lane, None), Err(Refusal::Until(100_000)));
    }
    for lane in [Lane::Push, Lane::Read, Lane::Poll, Lane::Relaxed] {
        let permit = limiter.take(0, lane, None).unwrap();
        limiter.answered(0, permit);
    }
    let permit = limiter.take(100_000, Lane::Backfill, None).unwrap();
    limiter.answered(100_000, permit);
    assert_eq!(
        limiter.take(600_000, Lane::Backfill, None),
        Err(Refusal::Until(8_100_000))
    );
    limiter.configure(600_000, 1_500_000, 10, Budget::default());
    assert!(limiter.take(600_000, Lane::Backfill, None).is_ok());
}

#[test]
fn a_class_is_paused_alone_and_its_rate_can_be_set() {
    let search = Some(crm_core::connectors::ClassLimit {
        name: "search",
        calls: 5,
        window_ms: 1_000,
    });
    let mut limiter = limiter(Budget {
        class_per_second: Some(2),
        ..Budget::default()
    });
    for _ in 0..2 {
        let permit = limiter.take(0, Lane::Poll, search).unwrap();
        limiter.answered(0, permit);
    }
    assert!(limiter.take(0, Lane::Poll, search).is_err());
    limiter.refused(0, Exhausted::Class, 3_000, true);
    assert_eq!(
        limiter.take(2_000, Lane::Poll, search),
        Err(Refusal::Until(3_000))
    );
    assert!(limiter.take(2_000, Lane::Poll, None).is_ok());
    limiter.refused(2_000, Exhausted::Window, 4_000, true);
    assert_eq!(
        limiter.take(2_000, Lane::Push, None),
        Err(Refusal::Until(4_000))
    );
}
