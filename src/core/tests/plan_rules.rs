//! Records as a whole: creation races, deletes, coalescing, match keys, maps.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{A, B, World, group, policy, text};
use crm_core::join::join;
use crm_core::mapping::{Images, Transform, Unmapped, between, project, project_from};
use crm_core::matching::{KeyKind, normal_key};
use crm_core::model::Value;
use crm_core::outgoing::Answer;
use crm_core::plan::{
    ArrivalPlan, CreatePlan, DeletePlan, DeleteRule, DeletedBy, Edit, Found, Standing, coalesce,
    delete_conflict, plan_arrival, plan_create, plan_delete,
};
use crm_core::state::Interval;
use crm_core::strategy::{Strategy, strategies};

const T: i64 = 1_000_000;

fn found(record: &str, standing: Standing) -> Found {
    Found {
        record: record.to_owned(),
        standing,
    }
}

#[test]
fn a_record_is_made_only_where_no_key_finds_one() {
    assert_eq!(plan_create(&[]), CreatePlan::Create);
    assert_eq!(plan_create(&[vec![], vec![]]), CreatePlan::Create);
    let one = vec![found("1", Standing::Free)];
    assert_eq!(plan_create(&[vec![], one]), CreatePlan::Link("1".into()));
}

#[test]
fn two_records_with_one_key_are_a_persons_question() {
    let two = vec![found("1", Standing::Free), found("2", Standing::Free)];
    let ambiguous = CreatePlan::Ambiguous(vec!["1".into(), "2".into()]);
    assert_eq!(plan_create(std::slice::from_ref(&two)), ambiguous);
    let sure = vec![found("3", Standing::Free)];
    let strong_key_first = plan_create(&[sure, two]);
    assert_eq!(strong_key_first, CreatePlan::Link("3".into()));
    let taken = vec![found("1", Standing::Taken)];
    assert_eq!(
        plan_create(&[taken]),
        CreatePlan::Ambiguous(vec!["1".into()])
    );
}

#[test]
fn a_create_under_way_is_waited_for_and_one_that_waits_is_joined() {
    let reserved = vec![found("r", Standing::Reserved)];
    assert_eq!(
        plan_create(std::slice::from_ref(&reserved)),
        CreatePlan::Wait
    );
    assert_eq!(plan_arrival(&[reserved]), ArrivalPlan::Wait);
    let queued = vec![found("q", Standing::Queued)];
    assert_eq!(
        plan_create(std::slice::from_ref(&queued)),
        CreatePlan::Link("q".into())
    );
    assert_eq!(plan_arrival(&[queued]), ArrivalPlan::Adopt("q".into()));
    let free = vec![found("1", Standing::Free)];
    assert_eq!(plan_arrival(&[free]), ArrivalPlan::New);
}

fn deleted(w: &World, side: usize, by: DeletedBy, rule: DeleteRule) -> DeletePlan {
    plan_delete(&w.group, &w.entity, side, by, &[rule, rule])
}

#[test]
fn a_sql_delete_removes_the_record_it_names_and_no_other_unless_told() {
    let w = World::at_rest(policy(Strategy::LastWriteWins, &[]), "x");
    let plan = deleted(&w, A, DeletedBy::Local, DeleteRule::Unlink);
    assert_eq!((plan.send, plan.unlink), (vec![A], vec![A]));
    assert!(plan.mark.is_empty() && plan.hide.is_empty());
    let plan = deleted(&w, A, DeletedBy::Local, DeleteRule::Propagate);
    assert_eq!((plan.send, plan.mark), (vec![A, B], vec![B]));
    let plan = deleted(&w, A, DeletedBy::Remote, DeleteRule::Propagate);
    assert_eq!((plan.send, plan.mark), (vec![B], vec![A, B]));
}

#[test]
fn a_soft_delete_hides_the_other_row_and_both_stay_tied() {
    let w = World::at_rest(policy(Strategy::LastWriteWins, &[]), "x");
    let plan = deleted(&w, A, DeletedBy::Remote, DeleteRule::SoftDelete);
    assert_eq!((&plan.mark[..], &plan.hide[..]), (&[A][..], &[B][..]));
    assert!(plan.send.is_empty() && plan.unlink.is_empty(), "{plan:?}");
    let plan = deleted(&w, A, DeletedBy::Local, DeleteRule::SoftDelete);
    assert_eq!(
        (plan.send, plan.hide, plan.unlink),
        (vec![A], vec![B], vec![A])
    );
}

#[test]
fn an_ignored_delete_leaves_the_other_side_alone_and_tied() {
    let w = World::at_rest(policy(Strategy::LastWriteWins, &[]), "x");
    let plan = deleted(&w, A, DeletedBy::Remote, DeleteRule::Ignore);
    let expected = DeletePlan {
        mark: vec![A],
        ..DeletePlan::default()
    };
    assert_eq!(plan, expected);
}

#[test]
fn rules_of_a_delete_have_names() {
    for (name, rule) in [
        ("unlink", DeleteRule::Unlink),
        ("propagate", DeleteRule::Propagate),
        ("soft_delete", DeleteRule::SoftDelete),
        ("ignore", DeleteRule::Ignore),
    ] {
        assert_eq!(DeleteRule::by_name(name), rule);
    }
}

#[test]
fn a_delete_that_crosses_an_update_is_a_conflict() {
    let mut w = World::at_rest(policy(Strategy::LastWriteWins, &[]), "x");
    let crossing =
        |w: &World, side, by, origin| delete_conflict(&w.group, &w.entity, side, by, origin);
    w.remote(A, "y", T);
    let asked = crossing(&w, B, DeletedBy::Remote, "beta");
    assert!(asked.unwrap().contains("phone"));
    w.send(B, "y", T + 100);
    assert_eq!(crossing(&w, B, DeletedBy::Remote, "beta"), None);
    // Our write met the removal before we were told of it.
    w.remote(A, "x2", T + 3_000);
    w.claim(B, "x2", T + 3_100);
    w.answer(B, "x2", Answer::Failed, T + 3_200);
    let asked = crossing(&w, B, DeletedBy::Remote, "beta");
    assert!(asked.unwrap().contains("phone"));
    assert_eq!(crossing(&w, B, DeletedBy::Remote, "alpha"), None);
    // SQL saw the row as decided: what waits for that record is moot.
    w.local(B, "z", T + 5_000);
    assert_eq!(crossing(&w, B, DeletedBy::Local, "local"), None);
    let plan = deleted(&w, B, DeletedBy::Local, DeleteRule::Propagate);
    assert_eq!(plan.cancel, [(B, 0), (A, 0)]);
}

#[test]
fn coalescing_keeps_the_first_old_the_last_new_and_every_edit() {
    let edit = |field, old: &str, new: &str, ordinal| Edit {
        field,
        old: Some(text(old)),
        new: text(new),
        ordinal,
    };
    // A user's AFTER trigger logs the inner change first.
    let edits = vec![
        edit(0, "b", "c", 2),
        edit(0, "a", "b", 1),
        edit(1, "x", "y", 3),
        edit(1, "y", "x", 4),
    ];
    let one = coalesce(edits);
    assert_eq!(one.values, [(0, text("c"), Some(text("a")))]);
    assert_eq!(one.edits.len(), 4);
}

#[test]
fn keys_match_however_people_write_them() {
    let cases = [
        (KeyKind::Email, " Ann@Example.COM ", Some("ann@example.com")),
        (KeyKind::Email, "nobody", None),
        (KeyKind::Email, "a b@example.com", None),
        (
            KeyKind::Domain,
            "https://www.Example.com:8080/path?q",
            Some("example.com"),
        ),
        (KeyKind::Domain, "example.com", Some("example.com")),
        (KeyKind::Domain, "localhost", None),
        (
            KeyKind::Domain,
            "http://user@www.example.org.",
            Some("example.org"),
        ),
        (KeyKind::ExternalId, " K-1 ", Some("K-1")),
        (KeyKind::ExternalId, "  ", None),
    ];
    for (kind, input, expected) in cases {
        assert_eq!(normal_key(kind, input).as_deref(), expected, "{input}");
    }
}

#[test]
fn a_value_without_a_counterpart_is_held_and_says_so() {
    let mut w = World::at_rest(policy(Strategy::LastWriteWins, &[]), "lead");
    let pairs = Arc::new(vec![("lead".to_owned(), "Lead".to_owned())]);
    w.group.fields[0].sides[B].as_mut().unwrap().to_side = Transform::ValueMap(pairs);
    let outcome = w.remote(A, "unheard of", T);
    assert!(outcome.writes.is_empty());
    assert_eq!(w.row(B), text("lead"));
    let held = outcome.decisions[0].held.clone().unwrap();
    assert!(
        held.contains("beta.Phone") && held.contains("unheard of"),
        "{held}"
    );
}

#[test]
fn transforms_are_total_and_say_what_they_refuse() {
    let t = |transform: &Transform, value: &str| transform.apply(&text(value), &Images::default());
    assert_eq!(
        t(&Transform::DomainOfUrl, "https://a.example/x"),
        Ok(text("a.example"))
    );
    assert_eq!(
        t(&Transform::UrlOfDomain, "a.example"),
        Ok(text("https://a.example"))
    );
    assert_eq!(
        t(&Transform::DateOf, "2024-02-03T04:05:06.000Z"),
        Ok(text("2024-02-03"))
    );
    assert_eq!(
        t(&Transform::MidnightOf, "2024-02-03"),
        Ok(text("2024-02-03T00:00:00.000Z"))
    );
    assert!(matches!(
        t(&Transform::DateOf, "soon"),
        Err(Unmapped::Malformed(..))
    ));
    assert_eq!(t(&Transform::Truncate(2), "äöü"), Ok(text("äö")));
    let pairs = Arc::new(vec![
        ("a".to_owned(), "1".to_owned()),
        ("b".to_owned(), "2".to_owned()),
    ]);
    assert_eq!(t(&Transform::ValueMap(pairs), "b;a"), Ok(text("2;1")));
    for transform in [
        Transform::Identity,
        Transform::DateOf,
        Transform::DomainOfUrl,
    ] {
        assert_eq!(
            transform.apply(&None, &Images::default()),
            Ok(None),
            "blank maps to blank"
        );
    }
}

#[test]
fn a_new_record_gets_from_others_of_its_thing_what_the_first_has_no_field_for() {
    let mut g = group();
    let third = g.sides[B].clone();
    g.sides.push(third);
    let field = g.fields[0].sides[B].clone();
    g.fields[0].sides = vec![None, field.clone(), field];
    let known: [(usize, &[Value]); 2] = [(A, &[None]), (B, &[text("x")])];
    let images = Images::default();
    assert_eq!(project(&g, A, 2, &[None], &images).mapped, []);
    assert_eq!(
        project_from(&g, &known, 2, &images).mapped,
        [(0, text("x"))]
    );
    // The first that has the field counts, blank or not.
    let known: [(usize, &[Value]); 2] = [(B, &[None]), (2, &[text("y")])];
    assert_eq!(project_from(&g, &known, B, &images).mapped, []);
}

#[test]
fn a_required_field_gets_its_default_or_is_held() {
    let mut g = group();
    let target = g.fields[0].sides[B].as_mut().unwrap();
    target.required = true;
    let (source, required) = (g.column(0, A).unwrap(), g.column(0, B).unwrap());
    assert_eq!(
        between(source, required, &None, &Images::default()),
        Err(Unmapped::Required)
    );
    assert_eq!(
        project(&g, A, B, &[None], &Images::default()).refused.len(),
        1
    );
    g.fields[0].sides[B].as_mut().unwrap().default = Some("n/a".to_owned());
    assert_eq!(
        project(&g, A, B, &[None], &Images::default()).mapped,
        [(0, text("n/a"))]
    );
}

#[test]
fn every_strategy_has_one_row_in_the_table() {
    for entry in strategies() {
        assert_eq!(entry.strategy.entry().name, entry.name);
        let found = crm_core::strategy::by_name(entry.name).unwrap();
        assert_eq!(found.strategy, entry.strategy);
    }
    let mut names: Vec<_> = strategies().iter().map(|e| e.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), strategies().len());
}

fn joined(
    strategy: Strategy,
    winner: &[&str],
    a: &str,
    b: &str,
) -> (World, crm_core::decide::Outcome) {
    let mut w = World::at_rest(policy(strategy, winner), a);
    w.entity.records[B].values[0] = text(b);
    let stamps = [Interval::instant(T), Interval::second(T + 60_000)];
    let outcome = join(
        &w.group,
        &w.policy,
        &w.entity,
        &stamps,
        1,
        T + 90_000,
        common::HORIZON,
    );
    w.apply(&outcome);
    (w, outcome)
}

#[test]
fn a_new_link_fills_blanks_and_leaves_equal_fields_alone() {
    let (w, outcome) = joined(Strategy::Review, &[], "", "y");
    assert_eq!(common::writes(&outcome), [(A, text("y"))]);
    assert_eq!(w.row(A), text("y"));
    let (_, outcome) = joined(Strategy::Review, &[], "x", "x");
    assert_eq!(outcome, crm_core::decide::Outcome::default());
}

#[test]
fn a_new_link_never_picks_a_side_without_the_policy() {
    let (w, outcome) = joined(Strategy::Owner, &["alpha"], "x", "y");
    assert_eq!(common::writes(&outcome), [(B, text("x"))]);
    assert_eq!(
        outcome.decisions[0].losers,
        [("beta".to_owned(), text("y"))]
    );
    assert!(outcome.decisions[0].conflict);
    assert_eq!(w.row(B), text("x"));
    let (_, outcome) = joined(Strategy::LastWriteWins, &["alpha"], "x", "y");
    assert_eq!(common::writes(&outcome), [(A, text("y"))]);
    let (w, outcome) = joined(Strategy::Review, &[], "x", "y");
    assert!(outcome.writes.is_empty() && w.state().hold.is_some());
    assert_eq!((w.row(A), w.row(B)), (text("x"), text("y")));
}
