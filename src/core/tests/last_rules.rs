//! Which of several writes and edits a CRM holds, where they came out of order,
//! late, or in one second.
#![allow(clippy::unwrap_used)]

mod common;

use common::{A, B, HORIZON, World, only, policy, text, writes};
use crm_core::decide::{Outcome, Source, Step};
use crm_core::join::join;
use crm_core::model::{FieldType, Mark};
use crm_core::outgoing::Answer;
use crm_core::state::Interval;
use crm_core::strategy::Strategy::{Delta, LastWriteWins, Owner, Priority, Review};

const T: i64 = 1_000_000;

fn lww() -> World {
    World::at_rest(policy(LastWriteWins, &["alpha", "beta", "local"]), "base")
}

#[test]
fn what_a_crm_ignored_before_is_sent_again_when_the_last_answer_is_lost() {
    let mut w = lww();
    w.remote(B, "4", T);
    w.local(A, "3", T + 10_000);
    w.send(B, "3", T + 10_100);
    w.local(A, "1", T + 20_000);
    w.claim(B, "1", T + 20_100);
    w.local(A, "3", T + 20_200);
    w.answer(B, "1", Answer::Retry, T + 20_300);
    w.claim(B, "3", T + 20_400);
    w.answer(B, "3", Answer::Unknown, T + 60_000);
    w.now = T + 300_000;
    let page = w.page(B, "4", T);
    assert_eq!(writes(&page), [(B, text("3"))], "{page:?}");
}

/// We write two values, one after the other, and the first comes back at once.
fn back_at_once(mark: Mark) -> Outcome {
    let mut w = lww();
    for (value, at) in [("old", T), ("new", T + 300)] {
        w.local(A, value, at);
        w.send(B, value, at + 100);
    }
    let mut back = w.event(B, Source::Remote, "old", T + 700);
    back.mark = mark;
    w.observe(&back)
}

#[test]
fn what_a_person_sets_back_is_an_edit_though_we_had_written_it_just_before() {
    let outcome = back_at_once(Mark::Others);
    let decision = only(&outcome);
    // The clocks cannot say whether the person had seen the second value.
    assert_eq!(decision.step, Step::Conflict);
    assert_eq!(decision.value, text("old"));
    assert_eq!(decision.losers, [("local".to_owned(), text("new"))]);
    // To its own CRM as well: the second value may have landed after it.
    let sent = writes(&outcome);
    assert_eq!(sent, [(B, text("old")), (A, text("old"))]);
    // A program without a name may be ours.
    assert_eq!(only(&back_at_once(Mark::None)).step, Step::Echo);
}

#[test]
fn a_call_that_lands_after_it_was_given_up_is_written_over_again() {
    let mut w = lww();
    w.local(A, "x", T);
    w.claim(B, "x", T + 100);
    w.answer(B, "x", Answer::Unknown, T + 10_000);
    w.local(A, "y", T + 11_000);
    w.send(B, "y", T + 11_100);
    w.remote(B, "y", T + 11_150);
    assert_eq!(writes(&w.ours(B, "x", T + 60_000)), [(B, text("y"))]);
    assert_eq!(w.row(B), text("y"));
}

#[test]
fn a_write_sent_twice_that_lands_twice_is_written_over_again() {
    let mut w = lww();
    w.local(A, "x", T);
    w.claim(A, "x", T + 100);
    w.answer(A, "x", Answer::Unknown, T + 10_000);
    w.claim(A, "x", T + 10_100);
    w.answer(A, "x", Answer::Done { echoed: None }, T + 10_200);
    w.remote(A, "x", T + 10_150);
    w.remote(A, "y", T + 20_000);
    assert_eq!(writes(&w.ours(A, "x", T + 60_000)), [(A, text("y"))]);
}

#[test]
fn a_page_of_the_second_of_an_edit_does_not_undo_it() {
    let mut w = lww();
    w.remote(B, "x", T + 100);
    let page = w.page(B, "older", T + 300);
    assert_eq!(only(&page).step, Step::TooLate);
    assert_eq!(page.reread, [B]);
    assert_eq!(w.row(B), text("x"));
    // Asked for well after the edit, it tells what came last.
    let mut later = w.event(B, Source::Page, "z", T + 400);
    later.asked_at = Some(T + 10_000);
    w.observe(&later);
    assert_eq!(w.row(B), text("z"));
}

#[test]
fn an_event_of_the_second_that_a_page_showed_is_looked_up() {
    let mut w = lww();
    w.page(B, "second", T + 600);
    let event = w.remote(B, "first", T + 100);
    assert_eq!(only(&event).step, Step::TooLate);
    assert_eq!(event.reread, [B]);
    assert_eq!(w.row(A), text("second"));
    let told = w.remote(B, "second", T + 600);
    assert_eq!(only(&told).step, Step::Equal);
}

#[test]
fn a_page_that_shows_what_was_known_proves_no_write() {
    // Beta's edit and our writes to it are of one second.
    let mut w = World::at_rest(policy(Priority, &["beta", "local"]), "base");
    w.remote(B, "x", T);
    w.local(A, "y", T + 10);
    w.send(B, "y", T + 20);
    w.local(A, "x", T + 200);
    w.claim(B, "x", T + 210);
    w.page(B, "x", T + 220);
    let sent = &w.state().sides[B].sent;
    assert_eq!(sent.last().unwrap().value, text("x"));
    assert!(!sent.last().unwrap().confirmed, "{sent:?}");
}

/// Every edit counts, from 10 on.
fn sums() -> World {
    let mut w = World::at_rest(policy(Delta, &[]), "10");
    for side in w.group.fields[0].sides.iter_mut().flatten() {
        side.field_type = FieldType::Number;
    }
    w
}

/// The record is looked at long after all that was sent there.
fn look(w: &mut World, value: &str, at: i64) {
    let mut page = w.event(B, Source::Page, value, at);
    page.asked_at = Some(T + 200_000);
    w.now = T + 200_100;
    w.observe(&page);
}

#[test]
fn an_edit_in_the_second_of_one_that_we_knew_may_still_have_followed_our_write() {
    let mut w = sums();
    w.local(A, "14", T + 100);
    w.remote(B, "26", T + 400);
    w.claim(B, "30", T + 450);
    w.answer(B, "30", Answer::Done { echoed: None }, T + 600);
    let next = w.remote(B, "94", T + 700);
    assert_eq!(only(&next).step, Step::Waiting, "{next:?}");
    look(&mut w, "94", T + 700);
    assert_eq!((w.row(A), w.row(B)), (text("94"), text("94")));
}

#[test]
fn a_page_from_before_an_edit_says_nothing_of_its_order() {
    let mut w = sums();
    w.local(A, "15", T);
    w.claim(A, "15", T + 1_000);
    w.remote(A, "16", T + 1_100);
    w.answer(A, "15", Answer::Done { echoed: None }, T + 1_200);
    let mut page = w.event(A, Source::Page, "15", T + 1_050);
    page.asked_at = Some(T + 1_300);
    w.observe(&page);
    assert_ne!(w.row(A), text("21"), "the editor saw 15, not 10");
}

#[test]
fn what_was_sent_and_not_seen_is_no_value_of_its_crm_when_records_join() {
    let mut w = lww();
    w.local(A, "x", T);
    w.claim(B, "x", T + 100);
    w.answer(B, "x", Answer::Unknown, T + 10_000);
    w.entity.records[A].values[0] = text("restored");
    let stamps = [Interval::instant(T + 20_000), Interval::second(T)];
    let outcome = join(
        &w.group,
        &w.policy,
        &w.entity,
        &stamps,
        9,
        T + 20_000,
        HORIZON,
    );
    w.apply(&outcome);
    let there = &w.state().sides[B];
    assert_eq!(there.seen, None);
    assert_eq!(there.base, Some(text("base")));
    assert!(writes(&outcome).contains(&(B, text("restored"))));
}

/// SQL adds 8 to 10 everywhere; users added 1 on A and 2 on B just before. B's own
/// event tells that its edit came first, so 20 is written before A's event is there.
fn two_writes_after_an_edit() -> World {
    let mut w = sums();
    w.local(A, "18", T + 20);
    for side in [A, B] {
        w.claim(side, "18", T + 30);
        w.answer(side, "18", Answer::Done { echoed: None }, T + 40);
    }
    assert_eq!(only(&w.remote(A, "11", T - 1_000)).step, Step::Waiting);
    assert_eq!(only(&w.remote(B, "12", T - 1_000)).step, Step::Waiting);
    own(&mut w, B, "18", T + 35);
    assert_eq!(w.row(A), text("20"));
    for side in [A, B] {
        w.claim(side, "20", T + 1_400);
        w.answer(side, "20", Answer::Done { echoed: None }, T + 1_410);
    }
    w
}

fn own(w: &mut World, side: usize, value: &str, at: i64) {
    let mut event = w.event(side, Source::Remote, value, at);
    event.mark = Mark::Ours;
    w.observe(&event);
}

#[test]
fn a_page_does_not_ask_a_person_what_the_event_of_an_earlier_write_will_tell() {
    let mut w = two_writes_after_an_edit();
    let mut page = w.event(A, Source::Page, "20", T + 1_405);
    page.asked_at = Some(T + 1_420);
    let read = w.observe(&page);
    // Read again meanwhile: the event may be lost, and then a page has to end it.
    assert!(w.state().hold.is_none(), "{read:?}");
    assert_eq!(read.reread, [A]);
    own(&mut w, A, "18", T + 35);
    assert_eq!(w.row(A), text("21"), "the 1 counts once");
}

#[test]
fn an_edit_whose_place_no_event_tells_any_more_is_a_question() {
    let mut w = two_writes_after_an_edit();
    let mut page = w.event(A, Source::Page, "20", T + 1_405);
    page.asked_at = Some(T + 60_000);
    w.observe(&page);
    assert!(w.state().hold.is_some());
    assert_eq!(w.row(A), text("20"));
}

#[test]
fn an_unmarked_event_of_a_write_that_was_given_up_tells_when_it_landed() {
    let mut w = World::at_rest(policy(Review, &[]), "base");
    w.remote(A, "x", T);
    w.claim(B, "x", T + 100);
    w.answer(B, "x", Answer::Unknown, T + 10_000);
    assert_eq!(only(&w.remote(B, "x", T + 60_000)).step, Step::Equal);
    // A page from before it landed shows what stood there, not somebody's edit.
    let page = w.page(B, "base", T + 8_000);
    assert_eq!(only(&page).step, Step::Known, "{page:?}");
    assert_eq!(writes(&page), []);
    assert_eq!(w.row(B), text("x"));
}

#[test]
fn a_counted_value_that_was_written_over_by_a_late_create_is_sent_again() {
    let mut w = World::at_rest(policy(Delta, &[]), "10");
    w.local(A, "15", T);
    w.send(B, "15", T + 100);
    // Looked at before the answer a page may be from before our write.
    let mut page = w.event(B, Source::Page, "10", T + 300);
    page.asked_at = Some(T + 150);
    assert_eq!(writes(&w.observe(&page)), []);
    page.asked_at = Some(T + 60_000);
    let again = w.observe(&page);
    assert_eq!(writes(&again), [(B, text("15"))], "{again:?}");
    assert_eq!((w.row(A), w.row(B)), (text("15"), text("15")));
}

#[test]
fn a_row_that_was_changed_behind_capture_is_put_right_and_not_sent() {
    for source in [Source::Remote, Source::Page] {
        let mut w = lww();
        w.remote(A, "x", T);
        w.send(B, "x", T + 100);
        w.entity.records[B].values[0] = text("damaged");
        let mut echo = w.event(B, source, "x", T + 150);
        if source == Source::Remote {
            echo.mark = Mark::Ours;
        }
        let outcome = w.observe(&echo);
        assert_eq!(writes(&outcome), [], "{outcome:?}");
        assert_eq!((w.row(A), w.row(B)), (text("x"), text("x")));
    }
}

/// B's user answers an edit that A's made half a second before and that is not sent
/// yet; both values stood there before.
fn meets_a_value_that_stood_before(mut w: World) {
    w.remote(A, "open", T + 120_000);
    let outcome = w.remote(B, "lost", T + 121_000);
    assert_eq!(only(&outcome).step, Step::Conflict);
    assert_eq!(only(&outcome).losers, [("beta".to_owned(), text("lost"))]);
}

#[test]
fn a_value_that_was_there_once_and_was_written_over_since_is_not_known_to_who_edits_now() {
    let mut w = lww();
    w.remote(A, "open", T);
    w.send(B, "open", T + 500);
    w.remote(A, "closed", T + 60_000);
    w.send(B, "closed", T + 60_500);
    meets_a_value_that_stood_before(w);
}

#[test]
fn a_value_that_was_there_once_and_was_edited_since_is_not_known_to_who_edits_now() {
    let mut w = lww();
    w.remote(A, "open", T);
    w.send(B, "open", T + 500);
    w.remote(B, "closed", T + 60_000);
    w.send(A, "closed", T + 60_500);
    meets_a_value_that_stood_before(w);
}

#[test]
fn who_edits_over_a_value_that_is_sent_a_second_time_knew_it() {
    let mut w = lww();
    w.policy = policy(Owner, &["alpha"]);
    w.remote(A, "open", T);
    w.send(B, "open", T + 500);
    // Put back, and not sent yet.
    w.remote(B, "closed", T + 60_000);
    w.policy = policy(LastWriteWins, &["alpha", "beta"]);
    let outcome = w.remote(B, "lost", T + 70_000);
    assert_eq!(only(&outcome).step, Step::OneSide);
}

#[test]
fn who_edits_over_a_write_that_a_lost_primary_had_made_is_heard() {
    let mut w = lww();
    for (value, at) in [("4", T), ("2", T + 500)] {
        w.local(B, value, at);
        w.send(A, value, at + 100);
        w.ours(A, value, at + 150);
    }
    w.claim(B, "2", T + 600);
    w.remote(B, "4", T + 9_000);
    // The old primary had sent it already.
    assert_eq!(w.ours(A, "4", T + 10_000).cancel, [(A, 0)]);
    w.page(A, "2", T + 45_000);
    assert_eq!((w.row(A), w.row(B)), (text("2"), text("2")));
}

#[test]
fn a_form_that_an_old_page_shows_does_not_prove_that_the_newest_write_landed() {
    let mut w = World::at_rest(policy(Owner, &["local"]), "base");
    w.local(A, "V", T);
    w.claim(B, "V", T + 100);
    w.answer(B, "V", Answer::Unknown, T + 10_000);
    w.remote(B, "other", T + 8_000);
    w.claim(B, "V", T + 13_000);
    w.page(B, "v", T + 200);
    w.answer(B, "V", Answer::Unknown, T + 23_000);
    let still = w.page(B, "other", T + 8_000);
    assert_eq!(writes(&still).len(), 1, "{still:?}");
}

#[test]
fn a_sum_that_came_back_over_our_write_is_not_the_edit_that_was_counted_before() {
    let mut w = sums();
    w.remote(B, "80", T);
    w.send(A, "80", T + 50);
    w.local(A, "96", T + 2_500);
    w.send(B, "96", T + 2_600);
    w.remote(B, "96", T + 2_650);
    let again = w.remote(B, "80", T + 2_900);
    assert_eq!(only(&again).step, Step::Waiting, "{again:?}");
    look(&mut w, "80", T + 2_900);
    assert_eq!((w.row(A), w.row(B)), (text("80"), text("80")));
}

#[test]
fn the_form_of_a_value_that_was_sent_twice_is_ours_though_another_was_written_since() {
    let mut w = World::at_rest(policy(Priority, &["local", "beta", "alpha"]), "base");
    w.local(A, "V", T);
    w.claim(B, "V", T + 100);
    w.answer(B, "V", Answer::Unknown, T + 10_000);
    let before = w.page(B, "base", T - 60_000);
    assert_eq!(writes(&before), [(B, text("V"))]);
    w.ours(B, "v", T + 200);
    w.send(B, "V", T + 11_000);
    w.send(A, "V", T + 11_000);
    w.remote(A, "newer", T + 60_000);
    // The stamp is of another field.
    w.page(B, "v", T + 61_000);
    assert_eq!((w.row(A), w.row(B)), (text("newer"), text("newer")));
}

#[test]
fn who_sets_back_the_old_value_is_heard_though_what_came_between_was_not_told() {
    let mut w = lww();
    w.local(A, "x", T);
    w.local(A, "y", T + 100);
    // At its CRM somebody had written y, too, of which we were not told.
    w.remote(B, "base", T + 12_000);
    assert_eq!((w.row(A), w.row(B)), (text("base"), text("base")));
}

#[test]
fn an_older_edit_told_later_does_not_hide_who_set_the_value_that_we_had_written() {
    let mut w = lww();
    w.remote(B, "2", T);
    w.send(A, "2", T + 100);
    w.ours(A, "2", T + 150);
    // Over a 3 that comes late.
    w.remote(A, "2", T + 4_800);
    w.remote(B, "3", T + 7_000);
    let late = w.remote(A, "3", T + 4_500);
    assert_eq!(late.cancel, [], "{late:?}");
}

#[test]
fn a_page_that_shows_again_what_our_write_was_sent_over_shows_an_edit() {
    let mut w = lww();
    w.remote(A, "2", T);
    w.send(B, "2", T + 50);
    w.local(A, "3", T + 200);
    w.send(A, "3", T + 300);
    w.page(A, "2", T + 46_000);
    assert_eq!((w.row(A), w.row(B)), (text("2"), text("2")));
}

#[test]
fn who_edited_before_a_value_came_back_did_not_know_it_though_nothing_was_sent_again() {
    let mut w = lww();
    w.local(A, "3", T);
    w.send(A, "3", T + 100);
    w.local(A, "2", T + 5_000);
    w.local(A, "3", T + 8_000);
    // Made between the two, and told late.
    let late = w.remote(A, "1", T + 5_500);
    assert_eq!(only(&late).step, Step::Conflict, "{late:?}");
    assert_eq!((w.row(A), w.row(B)), (text("3"), text("3")));
}

#[test]
fn who_writes_what_is_held_already_wrote_last() {
    let mut w = lww();
    w.remote(A, "2", T);
    w.send(B, "2", T + 100);
    w.ours(B, "2", T + 150);
    // Over a value that we were not told of.
    w.remote(A, "2", T + 12_000);
    w.remote(B, "5", T + 5_000);
    assert_eq!((w.row(A), w.row(B)), (text("2"), text("2")));
}

#[test]
fn what_stands_in_the_second_of_an_edit_and_was_asked_for_later_came_after_it() {
    let mut w = lww();
    w.local(A, "1", T);
    w.send(B, "1", T + 100);
    w.local(A, "2", T + 5_000);
    w.claim(B, "2", T + 5_100);
    w.answer(B, "2", Answer::Unknown, T + 15_000);
    w.remote(B, "3", T + 38_100);
    let mut page = w.event(B, Source::Page, "1", T + 38_500);
    page.asked_at = Some(T + 200_000);
    w.observe(&page);
    assert_eq!((w.row(A), w.row(B)), (text("1"), text("1")));
}

#[test]
fn who_ranks_higher_and_writes_what_is_held_already_speaks_for_it() {
    let ranks = ["beta", "alpha", "local"];
    let mut w = World::at_rest(policy(Priority, &ranks), "base");
    w.local(A, "1", T);
    w.remote(B, "1", T + 200);
    // Knows neither of the two.
    w.remote(A, "3", T + 400);
    assert_eq!((w.row(A), w.row(B)), (text("1"), text("1")));
}

#[test]
fn what_a_lost_primary_wrote_is_no_form_of_what_we_write_meanwhile() {
    let mut w = lww();
    w.local(A, "V001", T);
    w.claim(B, "V001", T + 100);
    // Told while ours was under way.
    w.ours(B, "v005", T + 300);
    w.answer(B, "V001", Answer::Done { echoed: None }, T + 500);
    w.ours(B, "v001", T + 900);
    assert_eq!((w.row(A), w.row(B)), (text("V001"), text("v001")));
}
