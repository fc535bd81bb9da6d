//! Writes that wait for a person's approval beside others that do not.
#![allow(clippy::unwrap_used)]

mod common;

use common::{A, B, World, only, policy, text, writes};
use crm_core::decide::{Source, Step};
use crm_core::model::Mark;
use crm_core::outgoing::{Answer, retry};
use crm_core::state::Sent;
use crm_core::strategy::Strategy::LastWriteWins;

const T: i64 = 1_000_000;

/// "sent" waits in the outbox when the guard begins to hold what follows.
fn overtaken_by_a_held_write() -> World {
    let mut w = World::at_rest(policy(LastWriteWins, &["alpha", "beta", "local"]), "base");
    w.local(A, "sent", T);
    assert_eq!(writes(&w.held(A, "held", T + 10)).len(), 2);
    w
}

#[test]
fn a_write_that_leaves_before_a_held_one_is_known_when_it_comes_back() {
    let mut w = overtaken_by_a_held_write();
    w.send(B, "sent", T + 100);
    let mut back = w.event(B, Source::Remote, "sent", T + 150);
    back.mark = Mark::Ours;
    let outcome = w.observe(&back);
    assert_eq!(only(&outcome).step, Step::Echo);
    assert_eq!((w.row(A), w.row(B)), (text("held"), text("held")));
    // Approved, the held one follows.
    w.send(B, "held", T + 200);
    let outcome = w.remote(B, "held", T + 250);
    assert_eq!(only(&outcome).step, Step::Echo);
}

#[test]
fn a_write_that_is_tried_again_does_not_give_way_to_a_held_one() {
    let mut w = overtaken_by_a_held_write();
    w.claim(B, "sent", T + 100);
    let state = w.entity.fields.get_mut(&0).unwrap();
    assert!(retry(state, B, &text("sent"), T + 200), "it was given up");
    w.send(B, "sent", T + 300);
    let outcome = w.remote(B, "sent", T + 350);
    assert_eq!(only(&outcome).step, Step::Echo);
}

#[test]
fn held_edits_of_one_field_are_one_write() {
    let mut w = overtaken_by_a_held_write();
    w.held(A, "later", T + 20);
    let waiting = |w: &World| {
        let sent = w.state().sides[B].sent.iter();
        let waiting = sent.filter(|s| s.sent == Sent::Queued);
        waiting.map(|s| s.value.clone()).collect::<Vec<_>>()
    };
    assert_eq!(waiting(&w), [text("sent"), text("later")]);
    // What need not be approved takes the place of all.
    w.local(A, "free", T + 30);
    assert_eq!(waiting(&w), [text("free")]);
}

#[test]
fn a_write_approved_and_then_replaced_is_known_when_it_comes_back() {
    let mut w = overtaken_by_a_held_write();
    // The outbox has both, and puts the newest in the place of the second.
    w.local(A, "newest", T + 30);
    w.claim(B, "sent", T + 100);
    w.answer(B, "sent", Answer::Done { echoed: None }, T + 200);
    let outcome = w.remote(B, "sent", T + 150);
    assert_eq!(only(&outcome).step, Step::Echo);
    w.send(B, "newest", T + 300);
    let outcome = w.remote(B, "newest", T + 350);
    assert_eq!(only(&outcome).step, Step::Echo);
}
