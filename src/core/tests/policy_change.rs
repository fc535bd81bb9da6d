//! A policy that changes while things are under way.

mod common;

use common::{A, B, HORIZON, World, only, policy, text, writes};
use crm_core::again::Again;
use crm_core::decide::{Outcome, Step};
use crm_core::policy::FieldLock;
use crm_core::state::Interval;
use crm_core::strategy::Strategy::{self, Delta, LastWriteWins, Owner, Priority, Review};

const T: i64 = 1_000_000;

fn again(w: &World) -> Again<'_> {
    Again {
        group: &w.group,
        policy: &w.policy,
        entity: &w.entity,
        now: w.now,
        horizon_ms: HORIZON,
    }
}

fn change(w: &mut World, strategy: Strategy, winner: &[&str]) -> Outcome {
    w.policy = policy(strategy, winner);
    w.policy.version = 2;
    let outcome = again(w).unsent(0);
    w.apply(&outcome);
    outcome
}

/// A and B wrote within the tolerance; A's value stands and waits to be sent to B.
fn contested() -> World {
    let mut w = World::at_rest(policy(Priority, &["alpha", "beta"]), "base");
    w.remote(A, "x", T);
    w.remote(B, "y", T + 200);
    assert_eq!((w.row(A), w.row(B)), (text("x"), text("x")));
    w
}

#[test]
fn a_write_that_nobody_took_is_decided_again() {
    let mut w = contested();
    let outcome = change(&mut w, Owner, &["beta"]);
    assert_eq!(only(&outcome).step, Step::Policy);
    assert_eq!(only(&outcome).losers, [("alpha".to_owned(), text("x"))]);
    assert_eq!((w.row(A), w.row(B)), (text("y"), text("y")));
    assert_eq!(writes(&outcome), [(A, text("y"))]);
    assert_eq!(outcome.cancel, [(B, 0)], "B holds y already");
    assert!(again(&w).unsent(0).decisions.is_empty(), "once");
}

#[test]
fn the_same_winner_under_another_policy_changes_nothing() {
    let mut w = contested();
    let before = w.state().clone();
    for (strategy, winner) in [
        (Owner, "alpha"),
        (Priority, "alpha"),
        (LastWriteWins, "alpha"),
    ] {
        assert!(change(&mut w, strategy, &[winner]).decisions.is_empty());
    }
    assert_eq!(*w.state(), before);
}

#[test]
fn a_write_in_flight_finishes() {
    let mut w = contested();
    w.claim(B, "x", T + 300);
    assert!(change(&mut w, Owner, &["beta"]).decisions.is_empty());
    assert_eq!(w.row(B), text("x"));
}

#[test]
fn an_open_question_is_answered_by_a_policy_that_can() {
    let mut w = World::at_rest(policy(Review, &[]), "base");
    w.remote(A, "x", T);
    w.remote(B, "y", T + 200);
    assert!(w.state().hold.is_some());
    let outcome = change(&mut w, Priority, &["beta", "alpha"]);
    assert!(w.state().hold.is_none());
    assert_eq!((w.row(A), w.row(B)), (text("y"), text("y")));
    assert_eq!(only(&outcome).losers, [("alpha".to_owned(), text("x"))]);
}

#[test]
fn a_policy_of_review_asks_about_what_is_not_sent() {
    let mut w = contested();
    let outcome = change(&mut w, Review, &[]);
    assert!(only(&outcome).held.is_some());
    assert_eq!(outcome.cancel, [(B, 0)]);
    assert_eq!(w.state().hold.as_ref().map(|h| h.claims.len()), Some(2));
}

#[test]
fn an_owner_that_wrote_nothing_gets_its_value_back() {
    let mut w = World::at_rest(policy(LastWriteWins, &[]), "base");
    w.remote(B, "y", T);
    let outcome = change(&mut w, Owner, &["alpha"]);
    assert_eq!((w.row(A), w.row(B)), (text("base"), text("base")));
    assert_eq!(writes(&outcome), [(B, text("base"))]);
    assert_eq!(outcome.cancel, [(A, 0)]);
}

#[test]
fn a_new_lock_counts_for_what_is_not_sent() {
    let mut w = World::at_rest(policy(LastWriteWins, &[]), "base");
    w.remote(B, "y", T);
    w.policy.locks.push(FieldLock {
        id: 5,
        field: "phone".to_owned(),
        origins: vec!["alpha".to_owned()],
    });
    let outcome = again(&w).unsent(0);
    assert_eq!(only(&outcome).rule, Some(5));
    assert_eq!(only(&outcome).value, text("base"));
}

#[test]
fn sums_count_from_the_next_edit_on() {
    let mut w = contested();
    assert!(change(&mut w, Delta, &[]).decisions.is_empty());
}

#[test]
fn differences_that_stand_are_settled_on_request_only() {
    let mut w = World::at_rest(policy(Owner, &["beta"]), "x");
    w.entity.records[B].values[0] = text("y");
    assert!(again(&w).unsent(0).decisions.is_empty());
    let stamps = [Interval::instant(T), Interval::instant(T - 9_000)];
    let outcome = again(&w).differences(0, &stamps);
    assert_eq!(only(&outcome).step, Step::Policy);
    assert_eq!(writes(&outcome), [(A, text("y"))]);
    w.apply(&outcome);
    assert!(again(&w).differences(0, &stamps).decisions.is_empty());
    let mut w = World::at_rest(policy(LastWriteWins, &[]), "x");
    w.entity.records[B].values[0] = text("y");
    assert_eq!(writes(&again(&w).differences(0, &stamps)), [(B, text("x"))]);
    w.policy = policy(Review, &[]);
    let asked = again(&w).differences(0, &stamps);
    assert!(only(&asked).held.is_some() && asked.writes.is_empty());
}
