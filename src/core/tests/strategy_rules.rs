//! What each strategy keeps, puts back, counts and asks.
#![allow(clippy::unwrap_used)]

mod common;

use common::{A, B, World, only, policy, text, writes};
use crm_core::decide::{Outcome, Source, Step};
use crm_core::evaluate::Evaluation;
use crm_core::model::{FieldType, Mark};
use crm_core::outgoing::Answer;
use crm_core::policy::FieldLock;
use crm_core::strategy::Strategy::{
    Append, Delta, Function, LastWriteWins, Owner, Priority, Review, Union,
};
use crm_core::strategy::{Strategy, strategies};

const T: i64 = 1_000_000;

fn world(strategy: Strategy, winner: &[&str], value: &str) -> World {
    let mut w = World::at_rest(policy(strategy, winner), value);
    let field_type = match strategy {
        Delta => FieldType::Number,
        Union => FieldType::MultiChoice,
        _ => FieldType::Text,
    };
    for side in w.group.fields[0].sides.iter_mut().flatten() {
        side.field_type = field_type;
    }
    w
}

fn both(w: &World) -> (String, String) {
    (w.row(A).unwrap_or_default(), w.row(B).unwrap_or_default())
}

fn all(value: &str) -> (String, String) {
    (value.to_owned(), value.to_owned())
}

#[test]
fn every_name_has_one_row_of_the_table() {
    let mut names: Vec<&str> = strategies().iter().map(|s| s.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 9);
    for entry in strategies() {
        assert_eq!(entry.strategy.entry().name, entry.name);
    }
}

#[test]
fn amounts_added_on_two_sides_at_once_add_up() {
    for first in [A, B] {
        let mut w = world(Delta, &[], "10");
        let (one, two) = if first == A {
            ("12", "15")
        } else {
            ("15", "12")
        };
        w.remote(first, one, T + 200);
        let second = w.remote(1 - first, two, T + 400);
        assert_eq!(only(&second).step, Step::Conflict);
        assert_eq!(only(&second).merged.len(), 2, "both are named");
        assert_eq!(both(&w), all("17"), "first {first}");
    }
}

#[test]
fn one_edit_told_by_webhook_poll_and_reconciliation_counts_once() {
    let mut w = world(Delta, &[], "10");
    w.local(A, "15", T);
    w.remote(A, "12", T + 500);
    assert_eq!(both(&w), all("17"));
    for _ in 0..3 {
        let again = w.remote(A, "12", T + 500);
        assert_eq!(only(&again).step, Step::Known);
        assert!(again.writes.is_empty());
        let page = w.page(A, "12", T + 500);
        assert_eq!(only(&page).step, Step::Known);
        // Another field of the record was changed meanwhile.
        w.page(A, "12", T + 900);
    }
    w.send(A, "17", T + 5_000);
    w.send(B, "17", T + 5_000);
    w.remote(A, "17", T + 5_050);
    w.remote(A, "12", T + 500);
    w.page(A, "12", T + 500);
    assert_eq!(both(&w), all("17"));
}

#[test]
fn an_amount_set_after_our_write_landed_is_taken_as_it_is() {
    let mut w = world(Delta, &[], "10");
    w.local(A, "15", T);
    w.send(A, "15", T + 500);
    w.send(B, "15", T + 500);
    let outcome = w.remote(A, "12", T + 60_000);
    assert_eq!(only(&outcome).step, Step::OneSide);
    assert_eq!(both(&w), all("12"));
}

#[test]
fn an_edit_beside_a_write_in_flight_waits_for_the_echo_to_tell_the_order() {
    for landed_first in [true, false] {
        let mut w = world(Delta, &[], "10");
        w.local(A, "15", T);
        w.claim(A, "15", T + 1_000);
        let edit = w.remote(A, "16", T + 1_050);
        assert_eq!(only(&edit).step, Step::Waiting);
        assert_eq!(w.row(A), text("15"), "nothing is guessed");
        assert!(w.state().has_waiting());
        w.answer(A, "15", Answer::Done { echoed: None }, T + 1_200);
        let echo = w.remote(A, "15", if landed_first { T + 1_020 } else { T + 1_080 });
        assert!(!w.state().has_waiting());
        let last = echo.decisions.last().unwrap();
        if landed_first {
            // The editor saw 15 and wrote 16.
            assert_eq!(last.value, text("16"));
            assert_eq!(both(&w), all("16"));
        } else {
            // The editor saw 10; our write covered the 16.
            assert_eq!(last.value, text("21"));
            assert_eq!(both(&w), all("21"));
        }
    }
}

#[test]
fn without_an_echo_the_record_is_read_and_tells_what_came_last() {
    for (shown, result) in [("15", "21"), ("16", "16")] {
        let mut w = world(Delta, &[], "10");
        w.local(A, "15", T);
        w.send(A, "15", T + 1_000);
        let edit = w.remote(A, "16", T + 1_050);
        assert_eq!(only(&edit).step, Step::Waiting);
        assert_eq!(edit.reread, [A]);
        let mut page = w.event(A, Source::Page, shown, T + 1_090);
        page.asked_at = Some(T + 2_000);
        w.now = T + 2_100;
        // Asked for too soon to be sure, by two clocks.
        assert_eq!(w.observe(&page).reread, [A]);
        page.asked_at = Some(T + 7_000);
        w.now = T + 7_100;
        w.observe(&page);
        assert!(!w.state().has_waiting());
        assert_eq!(both(&w), all(result), "shown {shown}");
    }
}

/// Somebody sets back, by name, what we had written just before; a page tells the order.
fn set_back_while_ours_lands(mark: Mark) -> (World, Outcome) {
    let mut w = world(Delta, &[], "10");
    for (value, at) in [("12", T), ("15", T + 300)] {
        w.local(A, value, at);
        w.send(A, value, at + 100);
    }
    let mut back = w.event(A, Source::Remote, "12", T + 700);
    back.mark = mark;
    assert_eq!(only(&w.observe(&back)).step, Step::Waiting);
    let mut page = w.event(A, Source::Page, "12", T + 700);
    page.asked_at = Some(T + 20_000);
    w.now = T + 20_100;
    let outcome = w.observe(&page);
    (w, outcome)
}

#[test]
fn an_edit_that_waited_is_decided_by_the_name_of_its_writer() {
    let (w, outcome) = set_back_while_ours_lands(Mark::Others);
    assert!(!w.state().has_waiting(), "{outcome:?}");
    assert_eq!(both(&w), all("12"), "{outcome:?}");
    let steps = outcome.decisions.iter().map(|d| d.step);
    assert!(
        !steps.collect::<Vec<_>>().contains(&Step::Echo),
        "{outcome:?}"
    );
}

#[test]
fn a_page_that_still_shows_our_write_before_is_no_edit_whatever_its_stamp() {
    let mut w = world(Delta, &[], "10");
    w.local(A, "15", T);
    w.send(A, "15", T + 100);
    w.remote(A, "15", T + 150);
    w.remote(B, "12", T + 400);
    assert_eq!(w.row(A), text("17"));
    // Another field of the record has moved its stamp; 17 is not there yet.
    let queued = w.page(A, "15", T + 600);
    assert_eq!(only(&queued).step, Step::Known);
    w.claim(A, "17", T + 700);
    for asked_at in [None, Some(T + 710)] {
        let mut page = w.event(A, Source::Page, "15", T + 705);
        page.asked_at = asked_at;
        let outcome = w.observe(&page);
        assert!(
            w.state().hold.is_none() && !w.state().has_waiting(),
            "{outcome:?}"
        );
    }
    // A late edit from between is counted, not taken for the page's past.
    w.answer(A, "17", Answer::Done { echoed: None }, T + 900);
    w.remote(A, "17", T + 750);
    w.remote(A, "16", T + 500);
    assert_eq!(both(&w), all("18"));
}

#[test]
fn an_unknown_write_makes_an_edit_wait_until_it_is_settled() {
    let mut w = world(Delta, &[], "10");
    w.local(A, "15", T);
    w.claim(A, "15", T + 1_000);
    w.answer(A, "15", Answer::Unknown, T + 31_000);
    let edit = w.remote(A, "16", T + 20_000);
    assert_eq!(only(&edit).step, Step::Waiting);
    assert_eq!(w.row(A), text("15"));
    w.remote(A, "15", T + 1_500);
    assert_eq!(both(&w), all("16"), "it landed before the edit");
}

#[test]
fn an_edit_that_our_write_covered_counts_however_late_it_is_told() {
    let mut w = world(Delta, &[], "10");
    w.local(A, "15", T);
    w.send(A, "15", T + 10_000);
    w.remote(A, "15", T + 10_050);
    w.remote(A, "16", T + 30_000);
    assert_eq!(both(&w), all("16"));
    // 10 became 12 before our 15 landed there.
    let late = w.remote(A, "12", T + 1_000);
    assert_eq!(only(&late).step, Step::Conflict);
    assert_eq!(both(&w), all("18"));
    // One between two edits of the same side is contained in the second.
    let middle = w.remote(A, "15.5", T + 29_000);
    assert_eq!(only(&middle).step, Step::Stale);
    assert_eq!(both(&w), all("18"));
}

#[test]
fn notes_appended_on_three_sides_all_stay() {
    let mut w = world(Append, &[], "note");
    w.remote(A, "note\na", T + 200);
    w.remote(B, "note\nb", T + 400);
    w.local(A, "note\na\nb\nc", T + 500);
    assert_eq!(both(&w), all("note\na\nb\nc"));
}

#[test]
fn a_text_that_was_rewritten_under_another_edit_goes_to_review() {
    let mut w = world(Append, &[], "note");
    w.remote(A, "note\na", T + 200);
    let outcome = w.remote(B, "something else", T + 400);
    assert!(
        only(&outcome)
            .held
            .as_ref()
            .unwrap()
            .contains("not only added to")
    );
    assert!(w.state().hold.is_some());
}

#[test]
fn a_text_too_long_with_both_tails_goes_to_review() {
    let mut w = world(Append, &[], "note");
    w.group.fields[0].sides[B].as_mut().unwrap().max_length = Some(8);
    w.remote(A, "note 1", T);
    let outcome = w.remote(B, "note 23", T + 100);
    assert!(
        only(&outcome)
            .held
            .as_ref()
            .unwrap()
            .contains("longer than 8")
    );
}

#[test]
fn choices_picked_and_unpicked_on_two_sides_are_all_respected() {
    let mut w = world(Union, &[], "a;b");
    w.remote(A, "a;b;c", T + 200);
    w.remote(B, "b;d", T + 400);
    assert_eq!(both(&w), all("b;c;d"));
}

#[test]
fn a_function_is_asked_about_conflicts_only_and_its_answer_stands() {
    let mut w = world(Function, &[], "base");
    w.policy.rules[0].function = Some("public.longer".to_owned());
    assert!(w.remote(A, "xx", T).questions.is_empty());
    let mut event = w.event(B, Source::Remote, "y", T + 100);
    let asked = w.observe(&event);
    let question = asked.questions[0].clone();
    assert!(asked.decisions.is_empty() && asked.writes.is_empty());
    assert_eq!(question.held, text("xx"));
    assert_eq!(question.came_origin, "beta");
    assert_eq!(question.base, Some(text("base")));
    event.evaluations.push(Evaluation {
        question,
        version: "v1".to_owned(),
        answer: Ok(text("xxy")),
    });
    let outcome = w.observe(&event);
    assert_eq!(only(&outcome).evaluation.as_ref().unwrap().version, "v1");
    assert_eq!(both(&w), all("xxy"));
    assert_eq!(writes(&outcome), [(B, text("xxy")), (A, text("xxy"))]);
}

#[test]
fn a_function_that_fails_leaves_the_question_to_a_person() {
    let mut w = world(Function, &[], "base");
    w.remote(A, "x", T);
    let mut event = w.event(B, Source::Remote, "y", T + 100);
    let question = w.observe(&event).questions[0].clone();
    event.evaluations.push(Evaluation {
        question,
        version: "v1".to_owned(),
        answer: Err("canceling statement due to statement timeout".to_owned()),
    });
    let outcome = w.observe(&event);
    assert!(only(&outcome).held.as_ref().unwrap().contains("timeout"));
    assert!(w.state().hold.is_some());
}

#[test]
fn a_locked_field_is_put_back_whatever_the_strategy() {
    for strategy in [LastWriteWins, Delta, Review, Priority] {
        let mut w = world(strategy, &["beta"], "10");
        w.policy.locks.push(FieldLock {
            id: 3,
            field: "phone".to_owned(),
            origins: vec!["alpha".to_owned()],
        });
        let outcome = w.remote(B, "99", T);
        assert_eq!(only(&outcome).step, Step::Locked, "{strategy:?}");
        assert_eq!(only(&outcome).rule, Some(3));
        assert_eq!(writes(&outcome), [(B, text("10"))]);
        w.send(B, "10", T + 500);
        let sql = w.local(A, "98", T + 1_000);
        assert_eq!(only(&sql).step, Step::Locked);
        assert_eq!(both(&w), all("10"));
        w.remote(A, "11", T + 60_000);
        assert_eq!(both(&w), all("11"));
    }
}

#[test]
fn an_enrichment_lands_only_above_the_score() {
    let mut w = world(LastWriteWins, &[], "base");
    w.policy.rules[0].min_score = Some(800);
    for (score, lands) in [(None, false), (Some(799), false), (Some(800), true)] {
        let mut event = w.event(A, Source::Local, "guess", T);
        event.score = score;
        event.values[0].2 = Some(text("base"));
        w.entity.records[A].values[0] = text("guess");
        let outcome = w.observe(&event);
        assert_eq!(only(&outcome).step == Step::Score, !lands, "{score:?}");
        assert_eq!(w.row(A), text(if lands { "guess" } else { "base" }));
    }
    // A CRM's users give no score.
    assert_eq!(
        only(&w.remote(B, "by hand", T + 60_000)).step,
        Step::Conflict
    );
}

#[test]
fn writers_that_take_turns_are_stopped_at_the_policys_value_and_both_are_named() {
    let mut w = world(Priority, &["alpha", "local"], "base");
    for round in 0..40 {
        let at = T + i64::from(round) * 5_000;
        let outcome = if round % 2 == 0 {
            w.local(B, &format!("sql {round}"), at)
        } else {
            w.remote(A, &format!("crm {round}"), at)
        };
        if only(&outcome).step == Step::Flapping {
            let reason = only(&outcome).held.clone().unwrap();
            assert!(
                reason.contains("alpha") && reason.contains("local"),
                "{reason}"
            );
            let frozen = both(&w);
            assert_eq!(frozen.0, frozen.1, "the policy's value is everywhere");
            assert!(w.state().hold.is_some());
            assert!(round >= 19);
            return;
        }
        for side in [A, B] {
            let queued = w.state().sides[side].sent.last().cloned();
            if let Some(write) = queued {
                w.send(side, &write.value.unwrap(), at + 100);
            }
        }
    }
    panic!("never stopped");
}

#[test]
fn an_owner_that_is_challenged_over_and_over_keeps_its_value_when_the_field_stops() {
    let mut w = world(Owner, &["alpha"], "mine");
    for round in 0..20 {
        let at = T + i64::from(round) * 20_000;
        let outcome = w.remote(B, "theirs", at);
        assert_eq!(both(&w), all("mine"));
        if only(&outcome).step == Step::Flapping {
            assert_eq!(writes(&outcome), [(B, text("mine"))], "one last correction");
            return;
        }
        w.send(B, "mine", at + 5_000);
    }
    panic!("never stopped");
}

#[test]
fn three_writers_end_the_same_in_whatever_order_their_edits_are_told() {
    use crm_core::state::Interval;
    // Each within the tolerance of the next, the first and the last beyond it.
    for (gaps, winner) in [
        ([0, 1_500, 3_000], "alpha"),
        ([3_000, 1_500, 0], "alpha"),
        ([0, 5_000, 5_900], "beta"),
        ([0, 3_000, 9_000], "gamma"),
        ([5_000, 0, 6_500], "alpha"),
    ] {
        for order in [
            [0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ] {
            let mut w = world(LastWriteWins, &["alpha", "beta", "gamma"], "base");
            let mut third = w.group.sides[B].clone();
            third.origin = "gamma".to_owned();
            w.group.sides.push(third);
            let column = w.group.fields[0].sides[A].clone();
            w.group.fields[0].sides.push(column);
            let record = w.entity.records[A].clone();
            w.entity.records.push(record);
            for side in order {
                let value = ["a", "b", "c"][side];
                let mut event = w.event(side, Source::Remote, value, T + gaps[side]);
                event.at = Interval::instant(T + gaps[side]);
                w.observe(&event);
            }
            let expected = text(
                ["a", "b", "c"][w
                    .group
                    .sides
                    .iter()
                    .position(|s| s.origin == winner)
                    .unwrap()],
            );
            for side in 0..3 {
                let told = format!("{gaps:?} told as {order:?}");
                assert_eq!(w.row(side), expected, "{told}");
            }
        }
    }
}

#[test]
fn the_database_knows_the_strategies_of_the_resolver_and_their_types() {
    let sql = include_str!("../../../sql/042_policies.sql");
    let list = sql.split("VALUES (").nth(1).unwrap();
    let list = list.split("$$;").next().unwrap();
    for entry in strategies() {
        let line = list
            .lines()
            .find(|l| l.contains(&format!("'{}'", entry.name)));
        let line = line.unwrap_or_else(|| panic!("{} is unknown to SQL", entry.name));
        for field_type in entry.field_types {
            let name = serde_json::to_value(field_type).unwrap();
            assert!(line.contains(name.as_str().unwrap()), "{line}");
        }
        assert_eq!(
            entry.field_types.is_empty(),
            line.contains("NULL"),
            "{line}"
        );
    }
    assert_eq!(list.matches("('").count() + 1, strategies().len(), "{list}");
}
