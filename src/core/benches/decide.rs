//! Decisions per second on one core: what a session spends on the rules alone.
#![allow(
    clippy::disallowed_methods,
    reason = "the bans keep the core pure; this program measures it"
)]

use std::hint::black_box;
use std::time::Instant;

use crm_core::decide::{Observed, Source, decide};
use crm_core::group::{Group, GroupField, Side, SideField};
use crm_core::model::Value;
use crm_core::outgoing::{Answer, answered, claimed};
use crm_core::policy::{Policy, Rule};
use crm_core::state::{Entity, Interval, SideRecord};
use crm_core::strategy::Strategy;

const HORIZON: i64 = 3 * 86_400_000;
const NOW: i64 = 1_700_000_000_000;
const ROUNDS: usize = 7;
const DECISIONS: usize = 400_000;

fn group() -> Group {
    let side = |mirror, origin: &str| Side {
        mirror,
        origin: origin.to_owned(),
        live: true,
        shadow: false,
    };
    let mut short = SideField::text("Phone");
    short.max_length = Some(40);
    Group {
        id: 1,
        sides: vec![side(1, "hub"), side(2, "org")],
        fields: vec![GroupField {
            name: "phone".to_owned(),
            sides: vec![Some(SideField::text("phone")), Some(short)],
        }],
    }
}

fn policy() -> Policy {
    Policy {
        version: 1,
        rules: vec![Rule {
            id: 1,
            strategy: Strategy::LastWriteWins,
            winner: vec!["org".to_owned(), "hub".to_owned()],
            ..Rule::default()
        }],
        skew_ms: 2_000,
        ..Policy::default()
    }
}

fn text(value: &str) -> Value {
    Some(value.to_owned())
}

fn at_rest() -> Entity {
    let record = |id: &str| SideRecord {
        exists: true,
        record_id: Some(id.to_owned()),
        deleted: false,
        values: vec![text("+44 20 7946 0000")],
    };
    Entity {
        records: vec![record("101"), record("003xx000004TmiQAAS")],
        ..Entity::default()
    }
}

fn seen(side: usize, value: &str, at: i64) -> Observed {
    Observed {
        side,
        source: Source::Remote,
        origin: if side == 0 { "hub" } else { "org" }.to_owned(),
        values: vec![(0, text(value), None)],
        at: Interval::instant(at),
        seq: 7,
        ..Observed::default()
    }
}

/// An entity after an edit in the first CRM whose write to the second landed.
fn written(group: &Group, policy: &Policy) -> Entity {
    let mut entity = at_rest();
    let edit = seen(0, "+44 20 7946 0001", NOW);
    let outcome = decide(group, policy, &entity, &edit, NOW, HORIZON);
    for (side, field, value) in outcome.rows {
        entity.records[side].values[field] = value;
    }
    for (field, state) in outcome.states {
        entity.fields.extend(state.map(|s| (field, s)));
    }
    let value = text("+44 20 7946 0001");
    if let Some(state) = entity.fields.get_mut(&0) {
        claimed(state, 1, &value, NOW + 100);
        answered(state, 1, &value, Answer::Done { echoed: None }, NOW + 300);
    }
    entity
}

/// Nanoseconds per decision.
fn measure(cases: &[(Entity, Observed)], group: &Group, policy: &Policy) -> f64 {
    let started = Instant::now();
    let mut made = 0;
    for n in 0..DECISIONS {
        let (entity, observed) = &cases[n % cases.len()];
        let outcome = decide(
            group,
            policy,
            black_box(entity),
            observed,
            NOW + 9_000,
            HORIZON,
        );
        made += black_box(outcome).decisions.len();
    }
    started.elapsed().as_nanos() as f64 / made.max(1) as f64
}

fn main() {
    let (group, policy) = (group(), policy());
    let quiet = (at_rest(), seen(0, "+44 20 7946 0000", NOW));
    let edit = (at_rest(), seen(0, "+44 20 7946 0009", NOW));
    let echo = (
        written(&group, &policy),
        seen(1, "+44 20 7946 0001", NOW + 200),
    );
    let clash = (
        written(&group, &policy),
        seen(1, "+44 20 7946 0002", NOW + 150),
    );
    let late = (
        written(&group, &policy),
        seen(0, "+44 20 7946 0008", NOW - 60_000),
    );
    let named = [
        ("equal", quiet),
        ("edit", edit),
        ("echo", echo),
        ("conflict", clash),
        ("late", late),
    ];
    for (name, case) in &named {
        measure(std::slice::from_ref(case), &group, &policy);
        let nanos = measure(std::slice::from_ref(case), &group, &policy);
        println!("{name}: {nanos:.0} ns");
    }
    let all: Vec<_> = named.into_iter().map(|(_, case)| case).collect();
    let mut rates: Vec<f64> = (0..=ROUNDS)
        .map(|_| 1e9 / measure(&all, &group, &policy))
        .skip(1)
        .collect();
    rates.sort_by(f64::total_cmp);
    let (low, middle, high) = (rates[0], rates[ROUNDS / 2], rates[ROUNDS - 1]);
    println!("decisions_per_second={middle:.0} low={low:.0} high={high:.0}");
}
