use super::*;
use crate::group::{GroupField, Side};
use crate::policy::FieldLock;
use crate::stamps::Quality;
use crate::state::Interval;
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
        quality: Quality::default(),
        seq,
        local: origin == "local",
        score: None,
        old: Some(value(old)),
        came: value(came),
        carried: Vec::new(),
        recorded: None,
        again: false,
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
    let (differs, _) = replayed_with(now, then, edits, &mut |question| Evaluation {
        question: question.clone(),
        version: String::new(),
        answer: Err("nobody is asked".to_owned()),
    });
    differs
}

/// The same with a function to ask; and what could not be known.
fn replayed_with(
    now: &Policy,
    then: &Policy,
    edits: &[PastEdit],
    ask: Asker<'_>,
) -> (Vec<(usize, String, i64)>, Gaps) {
    let group = group();
    let mut replay = Replay::new(&group, then, now);
    for edit in edits {
        replay.edit(edit, &[true, true], &mut *ask);
    }
    let told = |d: &Difference| (d.side, d.then.clone().unwrap_or_default(), d.deciding.seq);
    let differs = replay.differences().iter().map(told).collect();
    (differs, replay.gaps().clone())
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

#[test]
fn a_lock_that_is_only_thought_of_would_have_put_back_what_applied() {
    let now = policy(1, "last_write_wins", "");
    let mut then = now.clone();
    then.locks.push(FieldLock {
        id: 5,
        field: "phone".to_owned(),
        origins: vec!["right".to_owned()],
    });
    let edits = [edit(1, 0, "left", "old", "mine")];
    let back = [(0, "old".to_owned(), 1), (1, "old".to_owned(), 1)];
    assert_eq!(replayed(&now, &then, &edits), back);
    // And without the lock what it put back would have stood.
    let put_back = [decided(
        edit(1, 0, "left", "old", "mine"),
        Step::Locked,
        "old",
        &["left"],
        "right",
    )];
    let stood = [(0, "mine".to_owned(), 1), (1, "mine".to_owned(), 1)];
    assert_eq!(replayed(&then, &now, &put_back), stood);
}

#[test]
fn the_function_of_a_draft_is_asked_about_each_conflict() {
    let now = policy(1, "last_write_wins", "");
    let mut then = policy(2, "function", "");
    then.rules[0].function = Some("public.both".to_owned());
    let mut asked = Vec::new();
    let (differs, gaps) = replayed_with(&now, &then, &a_conflict(), &mut |question| {
        asked.push((question.held.clone(), question.came.clone()));
        Evaluation {
            question: question.clone(),
            version: String::new(),
            answer: Ok(value("L and R")),
        }
    });
    assert_eq!(
        asked,
        [(value("L"), value("R"))],
        "the conflict, and only that"
    );
    let both = [(0, "L and R".to_owned(), 2), (1, "L and R".to_owned(), 2)];
    assert_eq!(differs, both);
    assert!(gaps.is_empty());
    // One that fails leaves the question to a person, as it would have.
    assert_eq!(
        replayed(&now, &then, &a_conflict()),
        [(0, "L".to_owned(), 2)]
    );
}

#[test]
fn what_a_past_change_of_policy_decided_again_differs_where_the_draft_decides_and_only_there() {
    let now = policy(1, "priority", "left,right");
    let then = policy(2, "last_write_wins", "");
    let mut edits = a_conflict();
    // The policy became what it is now, and somebody had it applied.
    edits.push(PastEdit {
        again: true,
        ..edit(3, 0, "left", "", "L")
    });
    let differs = replayed(&now, &then, &edits);
    assert_eq!(differs, [(0, "R".to_owned(), 3), (1, "R".to_owned(), 3)]);
    let (none, gaps) = replayed_with(&now, &now, &edits, &mut |_| unreachable!());
    assert_eq!((none, gaps.len()), (Vec::new(), 0));
    // Of a field that nobody edited since, what was replaced is not known.
    let (none, gaps) = replayed_with(&now, &then, &edits[2..], &mut |_| unreachable!());
    assert_eq!(none, []);
    assert_eq!(gaps.get(&Gap::Again), Some(&(1, 3, "phone".to_owned())));
}

#[test]
fn edits_by_sql_land_where_their_score_reaches_what_the_draft_asks_and_only_there() {
    let now = policy(1, "last_write_wins", "");
    let mut then = policy(2, "last_write_wins", "");
    then.rules[0].min_score = Some(800);
    let scored = |seq, old, new, score| PastEdit {
        score,
        ..edit(seq, 0, "local", old, new)
    };
    let edits = [
        scored(1, "old", "sure", Some(800)),
        scored(2, "sure", "guess", Some(799)),
    ];
    let (differs, gaps) = replayed_with(&now, &then, &edits, &mut |_| unreachable!());
    assert_eq!(
        differs,
        [(0, "sure".to_owned(), 2), (1, "sure".to_owned(), 2)]
    );
    assert!(gaps.is_empty());
    let silent = [scored(1, "old", "unsaid", None)];
    let kept = [(0, "old".to_owned(), 1), (1, "old".to_owned(), 1)];
    assert_eq!(replayed(&now, &then, &silent), kept);
    // What was put back for its score lands where less is asked.
    let mut strict = now.clone();
    strict.rules[0].min_score = Some(900);
    let refused = PastEdit {
        score: Some(700),
        ..decided(
            edit(1, 0, "local", "old", "guess"),
            Step::Score,
            "old",
            &["local"],
            "local",
        )
    };
    let lands = [(0, "guess".to_owned(), 1), (1, "guess".to_owned(), 1)];
    assert_eq!(replayed(&strict, &now, &[refused]), lands);
}
