use super::*;
use crate::group::{GroupField, Side};
use crate::strategy::{Strategy, by_name};

fn group() -> Group {
    let side = |origin: &str| Side {
        origin: origin.to_owned(),
        live: true,
        ..Side::default()
    };
    Group {
        id: 1,
        sides: vec![side("left"), side("right")],
        fields: vec![GroupField {
            name: "phone".to_owned(),
            sides: vec![
                Some(SideField::text("phone")),
                Some(SideField::text("Phone")),
            ],
        }],
    }
}

fn policy(id: i64, strategy: &str, winner: &str) -> Policy {
    Policy {
        version: id,
        skew_ms: 2_000,
        rules: vec![Rule {
            id,
            strategy: by_name(strategy).map_or(Strategy::Review, |e| e.strategy),
            winner: winner
                .split(',')
                .filter(|w| !w.is_empty())
                .map(str::to_owned)
                .collect(),
            ..Rule::default()
        }],
        ..Policy::default()
    }
}

fn value(text: &str) -> Value {
    (!text.is_empty()).then(|| text.to_owned())
}

fn edit(seq: i64, side: usize, origin: &str, old: &str, came: &str) -> PastEdit {
    PastEdit {
        entity: 7,
        field: 0,
        side,
        origin: origin.to_owned(),
        at: Interval::instant(seq * 100),
        seq,
        local: origin == "local",
        old: Some(value(old)),
        came: value(came),
        carried: Vec::new(),
        recorded: None,
    }
}

fn decided(mut edit: PastEdit, step: Step, stood: &str, losers: &[&str], winner: &str) -> PastEdit {
    edit.recorded = Some(Recorded {
        step,
        rule: Some(1),
        value: Some(value(stood)),
        winner: winner.to_owned(),
        losers: losers.iter().map(|l| (*l).to_owned()).collect(),
        conflict: step == Step::Conflict,
        held: false,
    });
    edit
}

/// `(side, value)` of what would differ, with the sequence of the deciding event.
fn replayed(now: &Policy, then: &Policy, edits: &[PastEdit]) -> Vec<(usize, String, i64)> {
    let group = group();
    let mut replay = Replay::new(&group, then, now);
    for edit in edits {
        replay.edit(edit, &[true, true]);
    }
    let told = |d: &Difference| (d.side, d.then.clone().unwrap_or_default(), d.deciding.seq);
    replay.differences().iter().map(told).collect()
}

/// Left writes, then right within the tolerance, which wins; what left showed is corrected.
fn a_conflict() -> Vec<PastEdit> {
    vec![
        edit(1, 0, "left", "old", "L"),
        decided(
            edit(2, 1, "right", "L", "R"),
            Step::Conflict,
            "R",
            &["left"],
            "right",
        ),
    ]
}

#[test]
fn under_the_policy_that_decided_nothing_would_differ() {
    let now = policy(1, "last_write_wins", "");
    assert_eq!(replayed(&now, &now, &a_conflict()), []);
}

#[test]
fn another_winner_would_stand_on_both_sides_and_the_event_that_decides_is_named() {
    let now = policy(1, "last_write_wins", "");
    let then = policy(1, "priority", "left,right");
    let differs = replayed(&now, &then, &a_conflict());
    assert_eq!(differs, [(0, "L".to_owned(), 2), (1, "L".to_owned(), 2)]);
    // An edit that nobody contested stands under both: the pasts meet again.
    let mut met = a_conflict();
    met.push(edit(3, 0, "left", "R", "last"));
    assert_eq!(replayed(&now, &then, &met), []);
}

#[test]
fn an_owner_would_have_put_back_what_simply_applied() {
    let now = policy(1, "last_write_wins", "");
    let then = policy(2, "owner", "right");
    let edits = [
        edit(1, 0, "left", "old", "mine"),
        edit(2, 0, "local", "mine", "again"),
    ];
    let differs = replayed(&now, &then, &edits);
    assert_eq!(
        differs,
        [(0, "old".to_owned(), 2), (1, "old".to_owned(), 2)]
    );
    // And what the owner then writes stands either way.
    let mut settled = edits.to_vec();
    settled.push(edit(3, 1, "right", "again", "owned"));
    assert_eq!(replayed(&now, &then, &settled), []);
}

#[test]
fn an_edit_that_was_put_back_would_have_stood_without_the_owner() {
    let now = policy(1, "owner", "right");
    let then = policy(2, "last_write_wins", "");
    let edits = [decided(
        edit(1, 0, "left", "old", "mine"),
        Step::Owner,
        "old",
        &["left"],
        "right",
    )];
    let differs = replayed(&now, &then, &edits);
    assert_eq!(
        differs,
        [(0, "mine".to_owned(), 1), (1, "mine".to_owned(), 1)]
    );
}

#[test]
fn a_question_leaves_each_side_its_own_value_until_it_is_answered() {
    let now = policy(1, "last_write_wins", "");
    let then = policy(2, "review", "");
    assert_eq!(
        replayed(&now, &then, &a_conflict()),
        [(0, "L".to_owned(), 2)]
    );
    let mut answered = a_conflict();
    answered.push(decided(
        edit(3, 0, "local", "R", "R"),
        Step::Resolved,
        "R",
        &[],
        "local",
    ));
    assert_eq!(replayed(&now, &then, &answered), []);
}

#[test]
fn both_edits_would_be_kept_where_the_strategy_adds_them_up() {
    let now = policy(1, "last_write_wins", "");
    let then = policy(2, "delta", "");
    let edits = [
        edit(1, 0, "left", "10", "15"),
        decided(
            edit(2, 1, "right", "15", "12"),
            Step::Conflict,
            "12",
            &["left"],
            "right",
        ),
    ];
    let differs = replayed(&now, &then, &edits);
    assert_eq!(differs, [(0, "17".to_owned(), 2), (1, "17".to_owned(), 2)]);
}

#[test]
fn echoes_are_no_edits_under_any_policy() {
    let now = policy(1, "last_write_wins", "");
    let then = policy(2, "priority", "left,right");
    let mut edits = a_conflict();
    edits.push(decided(
        edit(3, 0, "left", "R", "R"),
        Step::Echo,
        "R",
        &[],
        "right",
    ));
    edits.push(decided(
        edit(4, 0, "left", "R", "L"),
        Step::Stale,
        "R",
        &[],
        "right",
    ));
    let differs = replayed(&now, &then, &edits);
    assert_eq!(differs, [(0, "L".to_owned(), 2), (1, "L".to_owned(), 2)]);
}
