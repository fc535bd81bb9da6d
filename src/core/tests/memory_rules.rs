//! What is kept of a field, and what the ledger gives back of what is not.
#![allow(clippy::unwrap_used)]

mod common;

use common::{A, B, World, group, only, policy, text};
use crm_core::decide::Step;
use crm_core::memory::{at_rest, must_keep, recall};
use crm_core::model::Mark;
use crm_core::state::{
    Clock, Entity, FieldState, Flap, Hold, Interval, SideRecord, SideState, Turns, Waiting,
};
use crm_core::strategy::Strategy;

/// Any time that matters.
const T: i64 = 1_000_000;

fn edit(value: &str, at: i64) -> (Option<String>, Clock) {
    let clock = Clock {
        at: Interval::instant(at),
        origin: "alpha".to_owned(),
        ..Clock::default()
    };
    (text(value), clock)
}

fn entity(there: [bool; 2]) -> Entity {
    let record = |exists| SideRecord {
        exists,
        values: vec![text("10")],
        ..SideRecord::default()
    };
    Entity {
        records: there.map(record).to_vec(),
        ..Entity::default()
    }
}

#[test]
fn what_rows_and_ledger_tell_is_not_kept() {
    let both = entity([true, true]);
    let mut state = at_rest(&both, 0);
    assert_eq!(state.sides[A].base, Some(text("10")));
    state.sides[A].seen = Some(edit("11", T));
    state.sides[A].past = vec![(text("9"), Interval::instant(T - 1))];
    state.turns = Some(Turns {
        last: "alpha".to_owned(),
        before: String::new(),
        count: 0,
        since: T,
    });
    assert!(!must_keep(&state, &both, &group()), "{state:?}");
}

#[test]
fn each_thing_that_only_the_state_knows_keeps_it() {
    let both = entity([true, true]);
    let rest = || at_rest(&both, 0);
    type Change = fn(&mut FieldState);
    let changes: [(&str, Change); 7] = [
        ("a question", |s| s.hold = Some(Hold::default())),
        ("turns", |s| {
            s.turns = Some(Turns {
                last: "alpha".to_owned(),
                before: "beta".to_owned(),
                count: 1,
                since: T,
            });
        }),
        ("a write", |s| {
            crm_core::outgoing::queue(s, B, &text("11"), &Clock::default());
        }),
        ("a value that comes back", |s| {
            s.sides[B].flap = Some(Flap {
                value: text("11"),
                count: 1,
                since: T,
            });
        }),
        ("an edit that waits", |s| {
            let (value, clock) = edit("11", T);
            s.sides[B].waiting.push(Waiting(value, clock, Mark::Others));
        }),
        ("sides that never agreed", |s| s.sides[B].base = None),
        // Set and set back before anything was sent.
        ("who wrote last", |s| s.clock = Some(edit("10", T).1)),
    ];
    for (what, change) in changes {
        let mut state = rest();
        change(&mut state);
        assert!(must_keep(&state, &both, &group()), "{what}");
    }
}

#[test]
fn a_record_alone_and_a_side_without_one_have_nothing_to_agree_about() {
    for there in [[true, false], [false, true], [false, false]] {
        let entity = entity(there);
        let mut state = at_rest(&entity, 0);
        state.clock = Some(edit("11", T).1);
        assert!(!must_keep(&state, &entity, &group()), "{there:?}");
        for side in &mut state.sides {
            side.base = None;
        }
        assert!(!must_keep(&state, &entity, &group()), "{there:?}");
    }
}

#[test]
fn only_a_later_edit_takes_the_place_of_what_is_known() {
    let mut state = at_rest(&entity([true, true]), 0);
    recall(&mut state, A, edit("11", T), false);
    recall(&mut state, A, edit("12", T - 1), false);
    assert_eq!(state.sides[A].seen, Some(edit("11", T)));
    recall(&mut state, A, edit("13", T + 1), false);
    assert_eq!(state.sides[A].seen, Some(edit("13", T + 1)));
    assert!(state.sides[A].past.is_empty());
    // A side that is not there any more is nobody's.
    recall(&mut state, 7, edit("14", T + 2), true);
}

#[test]
fn an_edit_that_counted_does_not_count_again_after_a_later_one_was_recalled() {
    let mut w = World::at_rest(policy(Strategy::Delta, &[]), "10");
    w.remote(A, "12", T);
    w.send(B, "12", T + 1_000);
    w.local(B, "15", T + 5_000);
    w.send(A, "15", T + 5_000);
    // The ledger names an edit on top of our write that the state does not know.
    let state = w.entity.fields.get_mut(&0).unwrap();
    recall(state, A, edit("20", T + 60_000), true);
    let held = w.row(A);
    let again = w.remote(A, "12", T);
    assert_eq!(only(&again).step, Step::Known, "{again:?}");
    assert_eq!(w.row(A), held);
}

#[test]
fn an_edit_that_waits_keeps_its_writers_name_and_is_read_as_it_was_stored_before() {
    let (value, clock) = edit("11", T);
    let stored = serde_json::json!({"waiting": [[value, clock]]});
    let side: SideState = serde_json::from_value(stored.clone()).unwrap();
    let unnamed = Waiting(value.clone(), clock.clone(), Mark::None);
    assert_eq!(side.waiting, [unnamed]);
    assert_eq!(serde_json::to_value(&side).unwrap(), stored);
    let named = SideState {
        waiting: vec![Waiting(value, clock, Mark::Others)],
        ..SideState::default()
    };
    let stored = serde_json::to_string(&named).unwrap();
    let read: SideState = serde_json::from_str(&stored).unwrap();
    assert_eq!(read, named, "{stored}");
}
