//! Questions to people: what they hold, how they end.

mod common;

use common::{A, B, HORIZON, World, policy, text, writes};
use crm_core::decide::{Source, Step};
use crm_core::join::{Resolution, join, resolve};
use crm_core::model::Mark;
use crm_core::outgoing::Answer;
use crm_core::state::{CLAIMS_MAX, Clock, Interval};
use crm_core::strategy::Strategy;

const T: i64 = 5_000_000;

/// Both sides changed: alpha to `x`, then beta to `y`.
fn asked() -> World {
    let mut w = World::at_rest(policy(Strategy::Review, &[]), "base");
    w.remote(A, "x", T);
    w.remote(B, "y", T + 10_000);
    assert!(w.state().hold.is_some());
    w
}

fn claims(w: &World) -> Vec<(String, Option<String>)> {
    let hold = w.state().hold.clone().expect("a question");
    let mut all: Vec<_> = hold
        .claims
        .into_iter()
        .map(|c| (c.clock.origin, c.value))
        .collect();
    all.sort();
    all
}

fn by(origin: &str, at: i64) -> Clock {
    Clock {
        at: Interval::instant(at),
        seq: 99,
        origin: origin.to_owned(),
        ..Clock::default()
    }
}

#[test]
fn a_question_names_every_candidate_and_each_mirror_shows_its_own_crm() {
    let w = asked();
    let all = [
        ("alpha".to_owned(), text("x")),
        ("beta".to_owned(), text("y")),
    ];
    assert_eq!(claims(&w), all);
    assert_eq!((w.row(A), w.row(B)), (text("x"), text("y")));
    assert_eq!(w.state().hold.as_ref().and_then(|h| h.rule), Some(7));
}

#[test]
fn new_edits_replace_their_writers_candidate_and_send_nothing() {
    let mut w = asked();
    let outcome = w.remote(A, "xx", T + 20_000);
    assert!(outcome.writes.is_empty());
    assert!(w.local(B, "typed", T + 30_000).writes.is_empty());
    let all = [
        ("alpha".to_owned(), text("xx")),
        ("beta".to_owned(), text("y")),
        ("local".to_owned(), text("typed")),
    ];
    assert_eq!(claims(&w), all);
}

#[test]
fn a_question_ends_by_itself_when_the_sides_come_to_agree() {
    let mut w = asked();
    let outcome = w.remote(A, "y", T + 20_000);
    assert!(w.state().hold.is_none(), "{:?}", w.state());
    assert!(outcome.writes.is_empty(), "both hold it: {outcome:?}");
    assert_eq!((w.row(A), w.row(B)), (text("y"), text("y")));
}

#[test]
fn an_answer_corrects_the_losers_and_names_their_values() {
    for (side, wins, corrected) in [(A, "x", B), (B, "y", A)] {
        let mut w = asked();
        let resolution = Resolution {
            field: 0,
            side,
            value: text(wins),
            clock: by("local", T + 60_000),
        };
        let outcome = resolve(
            &w.group,
            &w.policy,
            &w.entity,
            &resolution,
            T + 60_000,
            HORIZON,
        );
        w.apply(&outcome);
        assert_eq!(writes(&outcome), [(corrected, text(wins))]);
        let decision = &outcome.decisions[0];
        assert_eq!((decision.step, decision.rule), (Step::Resolved, Some(7)));
        assert_eq!(decision.losers.len(), 1, "{decision:?}");
        assert!(w.state().hold.is_none());
    }
}

#[test]
fn an_answer_of_its_own_goes_to_every_side() {
    let mut w = asked();
    let resolution = Resolution {
        field: 0,
        side: A,
        value: text("z"),
        clock: by("", T + 60_000),
    };
    let outcome = resolve(
        &w.group,
        &w.policy,
        &w.entity,
        &resolution,
        T + 60_000,
        HORIZON,
    );
    w.apply(&outcome);
    let mut sent = writes(&outcome);
    sent.sort();
    assert_eq!(sent, [(A, text("z")), (B, text("z"))]);
    assert_eq!(outcome.decisions[0].losers.len(), 2);
    // What the CRMs showed before is no news afterwards.
    assert!(w.remote(B, "y", T + 10_000).writes.is_empty());
    assert_eq!((w.row(A), w.row(B)), (text("z"), text("z")));
}

#[test]
fn a_write_that_lands_after_all_is_what_its_mirror_shows() {
    let mut w = World::at_rest(policy(Strategy::Review, &[]), "base");
    w.remote(A, "x", T);
    w.claim(B, "x", T + 100);
    w.remote(B, "y", T + 200);
    assert_eq!((w.row(A), w.row(B)), (text("x"), text("y")));
    w.answer(B, "x", Answer::Done { echoed: None }, T + 5_000);
    let mut echo = w.event(B, Source::Remote, "x", T + 3_000);
    echo.mark = Mark::Ours;
    w.observe(&echo);
    assert_eq!(w.row(B), text("x"), "{:?}", w.state());
    assert!(w.state().hold.is_some());
}

#[test]
fn records_that_never_agreed_are_all_candidates() {
    let mut w = World::at_rest(policy(Strategy::Review, &[]), "x");
    w.entity.records[B].values[0] = text("y");
    let stamps = [Interval::instant(T), Interval::second(T + 60_000)];
    let outcome = join(
        &w.group,
        &w.policy,
        &w.entity,
        &stamps,
        1,
        T + 90_000,
        HORIZON,
    );
    w.apply(&outcome);
    let all = [
        ("alpha".to_owned(), text("x")),
        ("beta".to_owned(), text("y")),
    ];
    assert_eq!(claims(&w), all);
}

#[test]
fn candidates_are_bounded() {
    let mut w = asked();
    for n in 0..3 * CLAIMS_MAX {
        let mut edit = w.event(A, Source::Local, &format!("v{n}"), T + 20_000);
        edit.origin = format!("app {n}");
        w.observe(&edit);
    }
    assert_eq!(claims(&w).len(), CLAIMS_MAX);
}

/// SQL inserts a record that its CRM has already, with another value.
fn inserted_anew(strategy: Strategy, winner: &[&str], held: &str) -> (World, Step) {
    let mut w = World::at_rest(policy(strategy, winner), held);
    let mut insert = w.event(A, Source::Local, "x", T);
    insert.anew = true;
    insert.values[0].2 = Some(None);
    let outcome = w.observe(&insert);
    (w, outcome.decisions[0].step)
}

#[test]
fn a_new_record_that_meets_one_is_asked_about_where_only_time_would_decide() {
    let (w, _) = inserted_anew(Strategy::LastWriteWins, &["alpha", "beta", "local"], "base");
    let all = [
        ("alpha".to_owned(), text("base")),
        ("local".to_owned(), text("x")),
    ];
    assert_eq!((claims(&w), w.row(A)), (all.to_vec(), text("base")));
    let ranked = [(&["local"][..], "x"), (&["alpha"][..], "base")];
    for (winner, stands) in ranked {
        let (w, step) = inserted_anew(Strategy::Priority, winner, "base");
        assert_eq!((step, w.row(A)), (Step::Conflict, text(stands)));
    }
}
