//! How exact the time of a change is, and what that decides.
#![allow(clippy::unwrap_used)]

mod common;

use common::{A, B, World, only, policy, text};
use crm_core::decide::{Outcome, Source, Step};
use crm_core::policy::Policy;
use crm_core::stamps::{Exactness, Quality, StampRule};
use crm_core::state::{Clock, Interval};
use crm_core::strategy::Strategy;

/// Any time that matters.
const T: i64 = 1_000_000;
/// What pages of these servers leave open.
const MINUTES: i64 = 120_000;

/// Time decides; stamps of pages are of records.
fn by_time(winner: &[&str], tolerance_ms: i64) -> Policy {
    let of_records = |origin: &str| StampRule {
        origin: origin.to_owned(),
        source: "poll".to_owned(),
        quality: Quality {
            exactness: Exactness::Record,
            resolution_ms: 1,
            tolerance_ms,
        },
    };
    Policy {
        stamps: vec![of_records("alpha"), of_records("beta")],
        ..policy(Strategy::LastWriteWins, winner)
    }
}

/// SQL edits one side at `T`; then a page shows another value there, stamped so much later.
fn page_after_sql(policy: Policy, later: i64) -> (World, Outcome) {
    let quality = policy.record_quality("alpha");
    let mut w = World::at_rest(policy, "old");
    w.local(B, "sql", T);
    let mut page = w.event(A, Source::Page, "page", T + later);
    page.quality = quality;
    page.at = quality.interval(T + later);
    let outcome = w.observe(&page);
    (w, outcome)
}

#[test]
fn a_record_s_stamp_never_beats_an_edit_s_inside_its_tolerance() {
    // Not even by rank: the edit may be two minutes older than its record's stamp.
    for winner in [&["alpha", "local"][..], &[]] {
        for later in [0, 1_000, 3_000, MINUTES] {
            let (w, outcome) = page_after_sql(by_time(winner, MINUTES), later);
            assert_eq!(only(&outcome).step, Step::Conflict, "{later} ms later");
            assert_eq!(w.row(A), text("sql"), "{later} ms later");
            assert_eq!(w.row(B), text("sql"), "{later} ms later");
        }
    }
}

#[test]
fn beyond_its_tolerance_a_record_s_stamp_is_later() {
    let (w, outcome) = page_after_sql(by_time(&["local"], MINUTES), MINUTES + common::SKEW + 1);
    assert_eq!(only(&outcome).step, Step::Conflict);
    assert_eq!((w.row(A), w.row(B)), (text("page"), text("page")));
    // Any time before: never.
    let (w, _) = page_after_sql(by_time(&["alpha"], i64::MAX), 100 * MINUTES);
    assert_eq!((w.row(A), w.row(B)), (text("sql"), text("sql")));
}

#[test]
fn an_edit_that_comes_after_a_page_is_judged_as_if_it_had_come_before() {
    for (later, stands) in [(MINUTES, "sql"), (MINUTES + common::SKEW + 1, "page")] {
        let policy = by_time(&["alpha", "local"], MINUTES);
        let quality = policy.record_quality("alpha");
        let mut w = World::at_rest(policy, "old");
        let mut page = w.event(A, Source::Page, "page", T + later);
        page.quality = quality;
        w.observe(&page);
        // SQL wrote before it saw that.
        let mut sql = w.event(B, Source::Local, "sql", T);
        sql.values[0].2 = Some(text("old"));
        w.observe(&sql);
        assert_eq!(
            (w.row(A), w.row(B)),
            (text(stands), text(stands)),
            "{later}"
        );
    }
}

#[test]
fn where_nothing_is_said_stamps_are_of_edits_and_rank_decides_as_ever() {
    let (w, _) = page_after_sql(policy(Strategy::LastWriteWins, &["alpha"]), 1_000);
    assert_eq!((w.row(A), w.row(B)), (text("page"), text("page")));
}

#[test]
fn a_stamp_stands_for_every_moment_that_it_does_not_show() {
    let of = |resolution_ms| Quality {
        resolution_ms,
        ..Quality::default()
    };
    let (ms, second, minute) = (of(1), of(1_000), of(60_000));
    assert_eq!(ms.interval(61_234), Interval::instant(61_234));
    assert_eq!(second.interval(61_234), Interval::second(61_234));
    assert_eq!(
        minute.interval(61_234),
        Interval {
            from: 60_000,
            to: 119_999
        }
    );
    assert_eq!(
        second.interval(-1),
        Interval {
            from: -1_000,
            to: -1
        }
    );
}

#[test]
fn a_clock_of_an_edit_is_stored_as_before_and_read_as_one() {
    let clock = Clock {
        at: Interval::instant(5),
        seq: 1,
        origin: "alpha".to_owned(),
        ..Clock::default()
    };
    let json = serde_json::to_string(&clock).unwrap();
    assert_eq!(json, r#"{"at":{"from":5,"to":5},"seq":1,"origin":"alpha"}"#);
    assert_eq!(serde_json::from_str::<Clock>(&json).unwrap(), clock);
}
