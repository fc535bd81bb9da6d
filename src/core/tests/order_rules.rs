//! Edits and writes whose order a stamp does not tell, or seems not to.
#![allow(clippy::unwrap_used)]

mod common;

use common::{A, B, HORIZON, World, only, policy, text, writes};
use crm_core::decide::{Source, Step};
use crm_core::join::returned;
use crm_core::model::FieldType;
use crm_core::outgoing::Answer;
use crm_core::state::Interval;
use crm_core::strategy::Strategy::{Delta, LastWriteWins, Owner, Priority, Review};

const T: i64 = 1_000_000;

fn done() -> Answer {
    Answer::Done { echoed: None }
}

#[test]
fn what_the_crm_kept_against_two_of_our_writes_is_asked_about() {
    // Beta goes only forward: it keeps 5 and says nothing.
    let mut w = World::at_rest(policy(Owner, &["alpha"]), "1");
    w.remote(A, "5", T);
    w.send(B, "5", T + 100);
    w.page(B, "4", T + 300);
    w.claim(B, "5", T + 1_100);
    w.answer(B, "5", done(), T + 1_300);
    w.remote(A, "2", T + 1_500);
    w.claim(B, "2", T + 1_550);
    let late = w.remote(B, "4", T + 300);
    assert_eq!(writes(&late), [(B, text("2"))]);
    w.answer(B, "2", done(), T + 2_000);
    w.claim(B, "2", T + 2_100);
    w.answer(B, "2", done(), T + 2_200);
    w.remote(B, "5", T + 1_200);
    w.now = T + 200_000;
    let page = w.page(B, "5", T + 1_200);
    assert_eq!(writes(&page), [(B, text("2"))], "{page:?}");
    w.send(B, "2", T + 200_000);
    w.now = T + 400_000;
    let page = w.page(B, "5", T + 1_200);
    assert!(only(&page).held.is_some(), "{page:?}");
}

#[test]
fn a_page_later_than_an_edit_does_not_show_what_the_edit_replaced() {
    let mut w = World::at_rest(policy(LastWriteWins, &["alpha", "beta", "local"]), "1");
    w.local(B, "2", T);
    w.send(A, "2", T + 50);
    w.remote(A, "2", T + 100);
    w.remote(A, "5", T + 1_000);
    // Sent to be sure, and lost.
    if w.state().sides[A].sent.last().unwrap().value == text("5") {
        w.claim(A, "5", T + 1_100);
        w.answer(A, "5", Answer::Unknown, T + 30_000);
    }
    let page = w.page(A, "2", T + 5_000);
    assert_eq!(only(&page).step, Step::OneSide, "{page:?}");
    assert_eq!(w.row(B), text("2"));
}

#[test]
fn of_two_edits_of_one_millisecond_the_record_tells_the_later() {
    let mut w = World::at_rest(policy(LastWriteWins, &["alpha", "beta", "local"]), "base");
    w.remote(A, "second", T);
    let other = w.remote(A, "first", T);
    assert_eq!(only(&other).step, Step::TooLate, "{other:?}");
    assert_eq!(other.reread, [A]);
    assert_eq!(w.row(B), text("second"));
    let mut page = w.event(A, Source::Page, "first", T);
    page.asked_at = Some(T + 10_000);
    w.observe(&page);
    assert_eq!(w.row(B), text("first"));
}

#[test]
fn who_wrote_over_our_value_knew_it_although_it_is_to_be_sent_again() {
    let mut w = World::at_rest(policy(Priority, &["local", "beta"]), "base");
    w.local(A, "ours", T);
    w.remote(B, "x", T + 400);
    w.claim(B, "ours", T + 500);
    w.answer(B, "ours", done(), T + 800);
    // Of one second with the edit before it: sent again, to be sure.
    let echo = w.remote(B, "ours", T + 600);
    assert_eq!(writes(&echo), [(B, text("ours"))]);
    let mut sent = World {
        group: w.group.clone(),
        policy: w.policy.clone(),
        entity: w.entity.clone(),
        ..w
    };
    let later = w.remote(B, "y", T + 7_000);
    assert_eq!(only(&later).step, Step::OneSide, "{later:?}");
    assert_eq!(w.row(A), text("y"));
    // Nor does it matter that it has been.
    sent.send(B, "ours", T + 10_000);
    let later = sent.remote(B, "y", T + 7_000);
    assert_eq!(only(&later).step, Step::OneSide, "{later:?}");
}

/// Numbers that everybody adds to.
fn sums(value: &str) -> World {
    let mut w = World::at_rest(policy(Delta, &[]), value);
    for side in w.group.fields[0].sides.iter_mut().flatten() {
        side.field_type = FieldType::Number;
    }
    w
}

#[test]
fn an_observation_that_begins_to_wait_is_decided_once() {
    let mut w = sums("10");
    w.local(A, "11", T);
    w.claim(A, "11", T + 100);
    w.local(B, "13", T + 200);
    w.answer(A, "11", done(), T + 300);
    w.claim(A, "13", T + 400);
    w.answer(A, "13", done(), T + 600);
    let page = w.page(A, "15", T + 350);
    assert_eq!(page.decisions.len(), 1, "{page:?}");
}

#[test]
fn an_edit_of_one_second_with_our_write_on_an_earlier_edit_is_counted_once() {
    let mut w = sums("0");
    // An edit of beta, SQL's on top of nothing of it, and what both make.
    w.local(A, "100", T + 10);
    w.remote(B, "1", T + 20);
    assert_eq!(w.row(A), text("101"));
    w.claim(B, "101", T + 100);
    w.answer(B, "101", done(), T + 500);
    w.remote(B, "101", T + 400);
    // On top of ours, in the same second as both.
    w.remote(B, "1101", T + 450);
    assert_ne!(w.row(A), text("1201"), "100 is counted twice");
    w.now = T + 20_000;
    let mut page = w.event(B, Source::Page, "1101", T + 450);
    page.asked_at = Some(T + 20_000);
    let page = w.observe(&page);
    let asked = w.state().hold.is_some();
    assert!(asked || w.row(A) == text("1101"), "{page:?}");
}

#[test]
fn what_came_before_one_write_of_a_second_may_follow_another() {
    let mut w = sums("0");
    for (value, at) in [("100", 0), ("101", 310)] {
        w.local(A, value, T + at);
        w.claim(B, value, T + at + 10);
        w.answer(B, value, done(), T + at + 200);
        w.remote(B, value, T + at + 100);
    }
    // On top of our first write.
    w.remote(B, "1100", T + 320);
    w.now = T + 20_000;
    let mut page = w.event(B, Source::Page, "101", T + 450);
    page.asked_at = Some(T + 20_000);
    w.observe(&page);
    assert_ne!(w.row(A), text("1201"), "100 is counted twice");
    let asked = w.state().hold.is_some();
    assert!(asked || w.row(A) == text("1101"), "{:?}", w.state());
}

#[test]
fn a_call_that_lands_late_under_no_mark_is_known_by_its_value() {
    let mut w = sums("0");
    w.local(A, "100", T);
    w.claim(B, "100", T + 10);
    w.answer(B, "100", Answer::Unknown, T + 10_000);
    // It lands now, over an edit that is told later.
    w.remote(B, "100", T + 60_000);
    w.now = T + 70_000;
    let mut page = w.event(B, Source::Page, "100", T + 60_000);
    page.asked_at = Some(T + 70_000);
    w.observe(&page);
    w.remote(B, "7", T + 40_000);
    let asked = w.state().hold.is_some();
    assert!(asked || w.row(A) == text("107"), "{:?}", w.state());
}

#[test]
fn a_lagging_page_of_the_second_of_a_counted_edit_takes_nothing_back() {
    let mut w = sums("0");
    w.remote(B, "7", T + 500);
    w.remote(B, "8", T + 9_000);
    let page = w.page(B, "0", T + 100);
    assert_eq!(only(&page).step, Step::TooLate, "{page:?}");
    assert_eq!(w.row(A), text("8"));
}

#[test]
fn the_late_event_of_our_write_in_the_second_of_an_edit_is_no_edit() {
    let mut w = sums("0");
    w.local(A, "1", T);
    w.claim(B, "1", T + 10);
    w.answer(B, "1", done(), T + 300);
    for asked in [T + 400, T + 8_000] {
        w.now = asked;
        let mut page = w.event(B, Source::Page, "5", T + 250);
        page.asked_at = Some(asked);
        w.observe(&page);
    }
    assert_eq!(w.row(A), text("5"));
    w.remote(B, "1", T + 150);
    assert_eq!(w.row(A), text("5"));
}

#[test]
fn an_echo_of_one_of_two_equal_writes_places_neither() {
    let mut w = sums("0");
    w.remote(A, "16", T - 1_000);
    w.local(A, "80", T);
    w.send(A, "80", T + 50);
    // A lagging page has it sent again.
    let again = w.page(A, "16", T - 1_000);
    assert_eq!(writes(&again), [(A, text("80"))], "{again:?}");
    w.send(A, "80", T + 2_000);
    w.remote(A, "80", T + 2_100);
    // Made on top of the first.
    w.remote(A, "336", T + 300);
    assert_ne!(w.row(B), text("400"), "64 is counted twice");
}

#[test]
fn an_edit_that_waits_is_not_overtaken_by_the_next_of_its_second() {
    let mut w = sums("0");
    w.local(A, "4", T);
    w.claim(B, "4", T + 10);
    w.answer(B, "4", done(), T + 500);
    w.remote(B, "16", T + 100);
    for asked in [T + 2_300, T + 2_400] {
        w.now = asked;
        let mut page = w.event(B, Source::Page, "260", T + 700);
        page.asked_at = Some(asked);
        w.observe(&page);
    }
    w.now = T + 2_500;
    w.remote(A, "4", T + 2_000);
    assert_ne!(w.row(A), text("16"), "256 is lost");
}

#[test]
fn of_two_counted_edits_of_one_millisecond_the_record_tells_the_later() {
    let mut w = sums("0");
    w.remote(A, "5", T);
    let other = w.remote(A, "1", T);
    assert_eq!(only(&other).step, Step::Waiting, "{other:?}");
    assert_eq!(other.reread, [A]);
    w.now = T + 9_000;
    let mut page = w.event(A, Source::Page, "5", T);
    page.asked_at = Some(T + 9_000);
    w.observe(&page);
    assert!(!w.state().has_waiting());
    assert_eq!(w.row(B), text("5"));
}

#[test]
fn a_second_edit_of_sql_is_decided_against_what_came_of_the_first() {
    let mut w = World::at_rest(policy(Owner, &["alpha"]), "4");
    for (old, new) in [("4", "1"), ("1", "4"), ("4", "2")] {
        let mut edit = w.event(A, Source::Local, new, T);
        edit.values[0].2 = Some(text(old));
        edit.decided = vec![0];
        w.observe(&edit);
        assert_eq!(w.row(A), text("4"), "{old} to {new}");
    }
}

#[test]
fn the_event_of_what_a_page_showed_tells_its_time() {
    let mut w = World::at_rest(policy(Priority, &["beta", "local"]), "base");
    // The stamp is of another field.
    w.page(B, "x", T + 1_500);
    w.remote(B, "x", T + 100);
    w.local(A, "ours", T + 9_000);
    w.send(B, "ours", T + 9_100);
    let late = w.remote(B, "y", T + 1_600);
    assert_eq!(only(&late).step, Step::Conflict, "{late:?}");
    assert_eq!(w.row(A), text("y"));
}

#[test]
fn an_event_told_late_in_the_second_of_a_counted_edit_takes_nothing_back() {
    let mut w = sums("0");
    w.page(B, "5", T + 500);
    w.local(A, "105", T + 2_000);
    w.send(B, "105", T + 3_100);
    w.remote(B, "105", T + 3_150);
    w.remote(B, "107", T + 9_000);
    let late = w.remote(B, "1", T + 100);
    assert_eq!(only(&late).step, Step::Waiting, "{late:?}");
    assert_eq!(w.row(A), text("107"));
}

#[test]
fn a_write_that_landed_again_long_ago_and_is_told_late_came_before_the_later_ones() {
    let mut w = World::at_rest(policy(LastWriteWins, &["alpha", "beta", "local"]), "base");
    for (value, at) in [("old", T), ("middle", T + 10_000), ("new", T + 20_000)] {
        w.local(A, value, at);
        w.send(B, value, at + 100);
    }
    w.ours(B, "old", T + 100);
    w.ours(B, "middle", T + 10_100);
    w.now = T + 60_000;
    w.ours(B, "old", T + 5_000);
    let edit = w.local(A, "newest", T + 90_000);
    assert!(writes(&edit).contains(&(B, text("newest"))), "{edit:?}");
}

#[test]
fn an_edit_told_late_is_not_the_landing_of_what_was_written_back_to_where_it_was_made() {
    let mut w = World::at_rest(policy(LastWriteWins, &["alpha", "beta", "local"]), "base");
    w.local(A, "ours", T);
    w.send(B, "ours", T + 100);
    // It may have come before our write or after it: it is written back.
    let page = w.page(B, "theirs", T + 1_000);
    assert!(writes(&page).contains(&(B, text("theirs"))), "{page:?}");
    w.send(B, "theirs", T + 3_900);
    w.remote(B, "newest", T + 4_000);
    w.remote(B, "theirs", T + 1_000);
    let echo = w.remote(B, "theirs", T + 5_000);
    assert_eq!(only(&echo).step, Step::Echo, "{echo:?}");
    assert_eq!(w.row(B), text("newest"));
}

#[test]
fn the_landing_of_one_of_two_writes_of_a_value_is_not_taken_for_that_of_the_later() {
    let mut w = World::at_rest(policy(Priority, &["beta", "alpha", "local"]), "base");
    w.remote(B, "Kept", T);
    w.send(A, "Kept", T + 10_000);
    w.remote(A, "lower", T + 9_900);
    w.send(A, "Kept", T + 10_500);
    w.ours(A, "kept", T + 10_050);
    w.local(A, "sql", T + 20_000);
    // Whether it came before or after our second write nobody can tell.
    let edit = w.remote(A, "late", T + 10_200);
    assert_eq!(only(&edit).value, text("late"), "{edit:?}");
    assert!(writes(&edit).contains(&(A, text("late"))), "{edit:?}");
}

#[test]
fn of_two_writes_alike_the_later_one_landed_where_another_of_ours_came_between() {
    let mut w = World::at_rest(policy(LastWriteWins, &["alpha", "beta", "local"]), "base");
    w.local(A, "5", T);
    w.claim(A, "5", T + 100);
    w.answer(A, "5", Answer::Unknown, T + 45_000);
    w.local(A, "3", T + 45_000);
    w.send(A, "3", T + 45_000);
    w.local(A, "5", T + 46_000);
    w.claim(A, "5", T + 46_100);
    // Told before the one that it was written over; it might be the first of the two.
    w.remote(A, "5", T + 46_500);
    let late = w.remote(A, "3", T + 46_400);
    assert_eq!(only(&late).step, Step::Echo, "{late:?}");
    assert_eq!((w.row(A), w.row(B)), (text("5"), text("5")));
    w.answer(A, "5", done(), T + 46_600);
    let sent = &w.state().sides[A].sent;
    let landed: Vec<_> = sent.iter().map(|s| s.landed.map(|l| l.to - T)).collect();
    assert_eq!(landed, [None, Some(46_400), Some(46_500)]);
}

#[test]
fn a_change_that_is_told_after_the_value_came_back_is_not_the_last() {
    let mut w = World::at_rest(policy(LastWriteWins, &["alpha", "beta", "local"]), "base");
    w.remote(A, "base", T + 5_000);
    let late = w.remote(A, "between", T);
    assert_eq!(only(&late).step, Step::Stale, "{late:?}");
    assert_eq!((w.row(A), w.row(B)), (text("base"), text("base")));
}

#[test]
fn what_a_crm_answers_to_have_kept_is_shown_and_asked_about_and_not_sent_again() {
    let mut w = World::at_rest(policy(LastWriteWins, &["alpha", "beta", "local"]), "late");
    w.local(A, "early", T);
    w.claim(A, "early", T + 100);
    let echoed = Some(text("late"));
    w.answer(A, "early", Answer::Done { echoed }, T + 300);
    // Its stamp is of another field of that very write.
    let page = w.page(A, "late", T + 200);
    assert!(only(&page).held.is_some(), "{page:?}");
    assert_eq!(writes(&page), []);
    assert_eq!(w.row(A), text("late"));
}

#[test]
fn a_refused_write_that_was_outdone_is_withdrawn() {
    let mut w = World::at_rest(policy(LastWriteWins, &["alpha", "beta", "local"]), "base");
    w.remote(A, "refused", T);
    w.claim(B, "refused", T + 100);
    w.answer(B, "refused", Answer::Failed, T + 200);
    let newer = w.remote(B, "newer", T + 10_000);
    assert_eq!(newer.cancel, [(B, 0)], "{newer:?}");
}

#[test]
fn an_edit_on_a_side_that_could_not_show_what_was_written_last_is_a_conflict() {
    let mut w = World::at_rest(policy(Review, &[]), "base");
    w.group.fields[0].sides[B].as_mut().unwrap().required = true;
    w.remote(A, "", T);
    let edit = w.remote(B, "next", T + 60_000);
    assert!(only(&edit).held.is_some(), "{edit:?}");
    assert_eq!((w.row(A), w.row(B)), (text(""), text("next")));
}

#[test]
fn a_record_that_is_back_gets_what_was_on_its_way_when_it_went() {
    let mut w = World::at_rest(policy(LastWriteWins, &[]), "base");
    w.remote(A, "newer", T);
    w.claim(B, "newer", T + 100);
    w.answer(B, "newer", Answer::Failed, T + 200);
    let stamps = [Interval::instant(T), Interval::instant(T + 60_000)];
    let now = T + 60_100;
    let (group, policy) = (&w.group, &w.policy);
    let back = returned(group, policy, &mut w.entity, B, (&stamps, 9), now, HORIZON);
    assert_eq!(writes(&back), [(B, text("newer"))], "{back:?}");
    w.apply(&back);
    let page = w.page(B, "base", T + 60_000);
    assert_eq!((w.row(A), w.row(B)), (text("newer"), text("newer")));
    assert_eq!(writes(&page), [], "{page:?}");
}
