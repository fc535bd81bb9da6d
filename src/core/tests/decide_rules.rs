//! Each rule of the decision, named by the incident that it prevents.
#![allow(clippy::unwrap_used)]

mod common;

use common::{A, B, HORIZON, World, only, policy, text, writes};
use crm_core::decide::{Source, Step};
use crm_core::model::Mark;
use crm_core::outgoing::Answer;
use crm_core::state::{FieldState, settle};
use crm_core::strategy::Strategy::{FillBlank, LastWriteWins, Owner, Priority, Review};

const T: i64 = 1_000_000;

fn world(strategy: crm_core::strategy::Strategy, winner: &[&str]) -> World {
    World::at_rest(policy(strategy, winner), "base")
}

fn lww() -> World {
    world(LastWriteWins, &["alpha", "beta", "local"])
}

#[test]
fn a_remote_edit_reaches_the_mirror_and_the_other_side_once() {
    let mut w = lww();
    let outcome = w.remote(A, "x", T);
    assert_eq!(only(&outcome).step, Step::OneSide);
    assert_eq!(writes(&outcome), [(B, text("x"))]);
    assert_eq!((w.row(A), w.row(B)), (text("x"), text("x")));
    let again = w.remote(A, "x", T);
    assert_eq!(only(&again).step, Step::Equal);
    assert!(again.writes.is_empty());
}

#[test]
fn a_sql_edit_reaches_both_crms() {
    let mut w = lww();
    let outcome = w.local(A, "x", T);
    assert_eq!(writes(&outcome), [(A, text("x")), (B, text("x"))]);
    assert_eq!(w.row(B), text("x"));
}

#[test]
fn our_own_write_coming_back_causes_no_write() {
    let mut w = lww();
    w.remote(A, "x", T);
    w.send(B, "x", T + 500);
    let echo = w.remote(B, "x", T + 550);
    assert_eq!(only(&echo).step, Step::Echo);
    assert!(echo.writes.is_empty() && echo.rows.is_empty());
}

#[test]
fn an_echo_that_overtakes_the_answer_is_still_an_echo() {
    let mut w = lww();
    w.remote(A, "x", T);
    w.claim(B, "x", T + 500);
    assert_eq!(only(&w.remote(B, "x", T + 550)).step, Step::Echo);
}

#[test]
fn a_late_echo_after_a_newer_edit_does_not_bring_the_old_value_back() {
    let mut w = lww();
    w.remote(A, "x", T);
    w.send(B, "x", T + 500);
    w.remote(B, "y", T + 60_000);
    let late = w.remote(B, "x", T + 550);
    assert_eq!(only(&late).step, Step::Echo);
    assert!(late.writes.is_empty());
    assert_eq!((w.row(A), w.row(B)), (text("y"), text("y")));
}

#[test]
fn the_crms_normal_form_is_accepted_and_not_bounced() {
    let mut w = lww();
    w.remote(A, "Foo ", T);
    w.send(B, "Foo ", T + 500);
    let mut event = w.event(B, Source::Remote, "foo", T + 550);
    event.mark = Mark::Ours;
    let outcome = w.observe(&event);
    assert_eq!(only(&outcome).step, Step::NormalForm);
    assert!(outcome.writes.is_empty());
    assert_eq!((w.row(A), w.row(B)), (text("Foo "), text("foo")));
    assert!(w.page(B, "foo", T + 550).writes.is_empty());
}

#[test]
fn the_normal_form_in_an_answer_reaches_the_row() {
    let mut w = lww();
    w.remote(A, "Foo ", T);
    w.claim(B, "Foo ", T + 500);
    let echoed = Some(text("foo"));
    w.answer(B, "Foo ", Answer::Done { echoed }, T + 600);
    assert_eq!(w.row(B), text("foo"));
}

#[test]
fn a_human_edit_under_our_mark_long_after_our_write_is_an_edit() {
    let mut w = lww();
    w.remote(A, "x", T);
    w.send(B, "x", T + 500);
    let mut event = w.event(B, Source::Remote, "y", T + 600_000);
    event.mark = Mark::Ours;
    let outcome = w.observe(&event);
    assert_eq!(only(&outcome).step, Step::OneSide);
    assert_eq!(writes(&outcome), [(A, text("y"))]);
}

#[test]
fn stale_means_older_than_the_same_side_not_than_the_other() {
    let mut w = lww();
    w.remote(A, "x", T + 10_000);
    let stale = w.remote(A, "w", T);
    assert_eq!(only(&stale).step, Step::Stale);
    assert_eq!(only(&stale).losers, [("alpha".to_owned(), text("w"))]);
    // The other side's older edit is a conflict, and its loser is corrected.
    let conflict = w.remote(B, "y", T);
    assert_eq!(only(&conflict).step, Step::Conflict);
    assert_eq!(only(&conflict).winner, "alpha");
    assert_eq!(only(&conflict).losers, [("beta".to_owned(), text("y"))]);
    assert_eq!(w.row(B), text("x"));
    assert_eq!(w.state().sides[B].sent.len(), 1, "the write of x stands");
}

#[test]
fn a_double_write_within_the_tolerance_goes_by_the_named_order_not_by_arrival() {
    for first in [A, B] {
        let mut w = lww();
        w.remote(first, if first == A { "x" } else { "y" }, T + 200);
        let second = w.remote(1 - first, if first == A { "y" } else { "x" }, T + 400);
        assert_eq!(only(&second).step, Step::Conflict);
        assert_eq!(
            (w.row(A), w.row(B)),
            (text("x"), text("x")),
            "first {first}"
        );
        let waiting = |side: usize| w.state().sides[side].sent.last().map(|s| s.value.clone());
        assert_eq!(waiting(B), Some(text("x")), "the loser is corrected");
    }
}

#[test]
fn a_later_edit_outside_the_tolerance_wins_against_the_order() {
    let mut w = lww();
    w.remote(A, "x", T);
    let outcome = w.remote(B, "y", T + 10_000);
    assert_eq!(only(&outcome).winner, "beta");
    assert_eq!(only(&outcome).losers, [("alpha".to_owned(), text("x"))]);
    assert_eq!(writes(&outcome), [(A, text("y"))]);
    assert_eq!(outcome.cancel, [(B, 0)]);
}

#[test]
fn a_sql_edit_and_a_remote_edit_before_our_write_left_are_a_conflict() {
    let mut w = world(Priority, &["local", "alpha", "beta"]);
    w.local(A, "sql", T);
    let outcome = w.remote(A, "crm", T + 5_000);
    assert_eq!(only(&outcome).step, Step::Conflict);
    assert_eq!(only(&outcome).winner, "local");
    assert_eq!(w.row(A), text("sql"));
    let waiting = w.state().sides[A].sent.last().unwrap();
    assert_eq!(waiting.value, text("sql"));
}

#[test]
fn a_remote_edit_while_our_write_is_in_flight_is_settled_by_a_further_write() {
    let mut w = world(Priority, &["local", "alpha", "beta"]);
    w.local(A, "sql", T);
    w.claim(A, "sql", T + 1_000);
    // Nobody knows which of the two landed last: the winner is sent again.
    let outcome = w.remote(A, "crm", T + 1_050);
    assert_eq!(only(&outcome).winner, "local");
    assert_eq!(writes(&outcome), [(A, text("sql"))]);
}

#[test]
fn an_edit_after_our_write_landed_is_no_conflict() {
    let mut w = world(Priority, &["local", "alpha", "beta"]);
    w.local(A, "sql", T);
    w.send(A, "sql", T + 1_000);
    let outcome = w.remote(A, "crm", T + 60_000);
    assert_eq!(only(&outcome).step, Step::OneSide);
    assert_eq!(w.row(B), text("crm"));
}

#[test]
fn a_late_event_from_before_our_write_is_recognised_although_the_write_succeeded() {
    let mut w = lww();
    w.remote(A, "x", T);
    w.send(B, "x", T + 20_000);
    w.remote(B, "x", T + 20_050);
    // B's user had written y before our x arrived there; the event was slow.
    let outcome = w.remote(B, "y", T + 10_000);
    assert_eq!(only(&outcome).step, Step::Conflict);
    assert_eq!(only(&outcome).winner, "beta");
    assert_eq!(writes(&outcome), [(B, text("y")), (A, text("y"))]);
}

#[test]
fn the_value_from_before_our_write_told_late_is_no_edit() {
    let mut w = world(Priority, &["beta"]);
    w.remote(A, "x", T);
    w.send(B, "x", T + 20_000);
    let outcome = w.remote(B, "base", T + 500);
    assert_eq!(only(&outcome).step, Step::Known);
    assert!(outcome.writes.is_empty());
    assert_eq!(w.row(B), text("x"));
}

#[test]
fn setting_the_old_value_back_after_our_write_is_an_edit() {
    let mut w = lww();
    w.remote(A, "x", T);
    w.send(B, "x", T + 500);
    let outcome = w.remote(B, "base", T + 60_000);
    assert_eq!(only(&outcome).step, Step::OneSide);
    assert_eq!(writes(&outcome), [(A, text("base"))]);
}

#[test]
fn a_non_owners_edit_is_put_back_without_any_conflict() {
    let mut w = world(Owner, &["alpha"]);
    let outcome = w.remote(B, "y", T);
    assert_eq!(only(&outcome).step, Step::Owner);
    assert!(!only(&outcome).conflict);
    assert_eq!(only(&outcome).rule, Some(7));
    assert_eq!(only(&outcome).losers, [("beta".to_owned(), text("y"))]);
    assert_eq!(writes(&outcome), [(B, text("base"))]);
    assert_eq!(w.row(B), text("base"));
    let sql = w.local(A, "z", T + 1_000);
    assert_eq!(only(&sql).step, Step::Owner);
    assert_eq!(w.row(A), text("base"));
    assert!(sql.writes.is_empty(), "the CRM never held z");
}

#[test]
fn an_owners_edit_goes_everywhere() {
    let mut w = world(Owner, &["alpha"]);
    let outcome = w.remote(A, "x", T);
    assert_eq!(only(&outcome).step, Step::Owner);
    assert_eq!(writes(&outcome), [(B, text("x"))]);
}

#[test]
fn an_owner_without_a_record_in_the_entity_blocks_nobody() {
    let mut w = world(Owner, &["alpha"]);
    w.entity.records[A].exists = false;
    assert_eq!(only(&w.remote(B, "y", T)).winner, "beta");
}

#[test]
fn enrichment_fills_blanks_only() {
    let mut w = World::at_rest(policy(FillBlank, &["alpha"]), "");
    assert_eq!(only(&w.remote(B, "y", T)).step, Step::FillBlank);
    assert_eq!(w.row(A), text("y"));
    w.send(A, "y", T + 100);
    assert_eq!(writes(&w.remote(B, "z", T + 60_000)), [(B, text("y"))]);
    w.remote(A, "x", T + 120_000);
    assert_eq!(w.row(B), text("x"));
}

#[test]
fn review_overwrites_nobody_until_a_person_decided() {
    let mut w = world(Review, &[]);
    w.remote(A, "x", T);
    let outcome = w.remote(B, "y", T + 10_000);
    assert!(only(&outcome).held.is_some());
    assert_eq!(outcome.cancel, [(B, 0)]);
    assert!(outcome.writes.is_empty());
    let more = w.remote(A, "xx", T + 20_000);
    assert_eq!(only(&more).step, Step::Held);
    assert!(more.writes.is_empty());
    let clock = crm_core::state::Clock {
        at: crm_core::state::Interval::instant(T + 30_000),
        seq: 9,
        origin: "local".to_owned(),
        ..crm_core::state::Clock::default()
    };
    let resolution = crm_core::join::Resolution {
        field: 0,
        side: B,
        value: text("y"),
        clock,
    };
    let resolved = crm_core::join::resolve(
        &w.group,
        &w.policy,
        &w.entity,
        &resolution,
        T + 30_000,
        HORIZON,
    );
    w.apply(&resolved);
    assert_eq!(writes(&resolved), [(A, text("y"))]);
    assert_eq!((w.row(A), w.row(B)), (text("y"), text("y")));
    assert!(w.state().hold.is_none());
}

#[test]
fn without_a_policy_row_nothing_is_decided_silently() {
    let mut w = lww();
    w.policy.rules.clear();
    w.remote(A, "x", T);
    let outcome = w.remote(B, "y", T + 10_000);
    assert!(
        only(&outcome)
            .held
            .as_ref()
            .unwrap()
            .contains("no policy row")
    );
}

#[test]
fn an_unknown_write_is_sent_again_when_a_page_shows_the_value_before() {
    let mut w = lww();
    w.local(A, "x", T);
    w.claim(A, "x", T + 100);
    w.answer(A, "x", Answer::Unknown, T + 30_000);
    let outcome = w.page(A, "base", T - 50_000);
    assert_eq!(only(&outcome).step, Step::NotLanded);
    assert_eq!(writes(&outcome), [(A, text("x"))]);
}

#[test]
fn an_unknown_write_that_a_page_shows_is_not_sent_again() {
    let mut w = lww();
    w.local(A, "x", T);
    w.claim(A, "x", T + 100);
    w.answer(A, "x", Answer::Unknown, T + 30_000);
    let outcome = w.page(A, "x", T + 200);
    assert_eq!(only(&outcome).step, Step::Echo);
    assert!(outcome.writes.is_empty());
    assert!(w.state().sides[A].sent[0].confirmed);
}

#[test]
fn a_page_read_while_our_write_is_under_way_does_not_undo_it() {
    let mut w = lww();
    w.local(A, "x", T);
    w.claim(A, "x", T + 100);
    let outcome = w.page(A, "base", T + 200);
    assert_eq!(only(&outcome).step, Step::Unsettled);
    assert!(outcome.writes.is_empty() && outcome.rows.is_empty());
}

#[test]
fn a_page_older_than_what_the_side_showed_changes_nothing() {
    let mut w = lww();
    w.remote(A, "x", T + 5_000);
    let outcome = w.page(A, "older", T);
    assert_eq!(only(&outcome).step, Step::Stale);
    assert_eq!(w.row(A), text("x"));
}

#[test]
fn a_refused_write_is_not_repeated_by_every_page() {
    let mut w = lww();
    w.local(A, "x", T);
    w.claim(A, "x", T + 100);
    w.answer(A, "x", Answer::Failed, T + 200);
    let outcome = w.page(A, "base", T - 50_000);
    assert!(outcome.writes.is_empty());
    assert!(only(&outcome).held.as_ref().unwrap().contains("refused"));
}

#[test]
fn an_event_beyond_the_horizon_asks_for_a_read() {
    let mut w = lww();
    w.now = T + HORIZON + 10_000;
    let outcome = w.remote(A, "x", T);
    assert_eq!(only(&outcome).step, Step::TooLate);
    assert_eq!(outcome.reread, [A]);
    assert!(outcome.writes.is_empty());
}

#[test]
fn a_removed_record_is_not_written() {
    let mut w = lww();
    w.entity.records[B].deleted = true;
    assert!(w.remote(A, "x", T).writes.is_empty());
    assert_eq!(only(&w.remote(B, "y", T + 1)).step, Step::Tombstone);
}

#[test]
fn shadow_shows_the_write_and_changes_nothing() {
    let mut w = lww();
    w.group.sides[B].shadow = true;
    let outcome = w.remote(A, "x", T);
    assert_eq!(writes(&outcome), [(B, text("x"))]);
    assert_eq!(w.row(B), text("base"));
    assert!(w.state().sides[B].sent.is_empty(), "it will not be sent");
    let back = w.remote(A, "base", T + 10_000);
    assert_eq!(back.cancel, [(B, 0)]);
}

#[test]
fn a_text_cut_to_the_targets_length_is_the_same_text() {
    let mut w = lww();
    w.group.fields[0].sides[B].as_mut().unwrap().max_length = Some(3);
    let outcome = w.remote(A, "abcdef", T);
    assert_eq!(writes(&outcome), [(B, text("abc"))]);
    w.send(B, "abc", T + 100);
    assert!(w.remote(B, "abc", T + 150).writes.is_empty());
    assert_eq!(w.row(A), text("abcdef"));
}

#[test]
fn two_automations_that_fight_are_stopped_and_named() {
    let mut w = lww();
    let mut at = T;
    for round in 0..40 {
        at += 10_000;
        let mine = w.remote(A, "mine", at);
        if mine.decisions[0].held.is_some() {
            assert!(round < 12);
            let reason = mine.decisions[0].held.clone().unwrap();
            assert!(
                reason.contains("alpha") && reason.contains("beta"),
                "{reason}"
            );
            return;
        }
        w.send(B, "mine", at + 100);
        at += 10_000;
        let theirs = w.remote(B, "theirs", at);
        if theirs.decisions[0].held.is_some() {
            return;
        }
        w.send(A, "theirs", at + 100);
    }
    panic!("never stopped");
}

#[test]
fn two_mirrors_written_differently_in_one_transaction_are_one_conflict() {
    let mut w = lww();
    let mut first = w.event(A, Source::Local, "x", T);
    first.values[0].2 = Some(text("base"));
    let mut second = w.event(B, Source::Local, "y", T);
    second.values[0].2 = Some(text("base"));
    w.observe(&first);
    let outcome = w.observe(&second);
    assert_eq!(only(&outcome).step, Step::Conflict);
    assert_eq!(w.row(A), text("y"), "the later statement wins");
}

#[test]
fn a_field_settles_only_after_the_write_was_seen_and_the_horizon_passed() {
    let mut w = lww();
    w.remote(A, "x", T);
    w.send(B, "x", T + 500);
    let late = T + HORIZON + 10_000;
    assert!(
        !settle(w.state(), late, HORIZON),
        "an answer is no observation"
    );
    w.remote(B, "x", T + 550);
    assert!(!settle(w.state(), T + 1_000, HORIZON));
    assert!(settle(w.state(), late, HORIZON));
}

#[test]
fn the_stored_form_of_a_state_keeps_blank_apart_from_never_agreed() {
    let mut w = World::at_rest(policy(LastWriteWins, &[]), "");
    w.remote(A, "x", T);
    let json = serde_json::to_string(w.state()).unwrap();
    let back: FieldState = serde_json::from_str(&json).unwrap();
    assert_eq!(&back, w.state());
    assert_eq!(back.sides[B].base, Some(None));
}
