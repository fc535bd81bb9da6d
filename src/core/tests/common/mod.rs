//! A group of three writers, small enough to read in an assertion.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use crm_core::decide::{Decision, Observed, Outcome, Source, decide};
use crm_core::group::{Group, GroupField, Side, SideField};
use crm_core::model::{Mark, Value};
use crm_core::outgoing::{Answer, answered, claimed};
use crm_core::policy::{Policy, Rule};
use crm_core::state::{Entity, FieldState, Interval, SideRecord};
use crm_core::strategy::Strategy;

/// Side with milliseconds.
pub const A: usize = 0;
/// Side with seconds.
pub const B: usize = 1;
/// A week: longer than any test.
pub const HORIZON: i64 = 7 * 86_400_000;
/// Tolerance between clocks.
pub const SKEW: i64 = 2_000;

pub fn text(value: &str) -> Value {
    (!value.is_empty()).then(|| value.to_owned())
}

/// One field that maps one to one on both sides.
pub fn group() -> Group {
    let side = |mirror, origin: &str| Side {
        mirror,
        origin: origin.to_owned(),
        live: true,
        shadow: false,
    };
    Group {
        id: 1,
        sides: vec![side(1, "alpha"), side(2, "beta")],
        fields: vec![GroupField {
            name: "phone".to_owned(),
            sides: vec![
                Some(SideField::text("phone")),
                Some(SideField::text("Phone")),
            ],
        }],
    }
}

pub fn policy(strategy: Strategy, winner: &[&str]) -> Policy {
    Policy {
        version: 1,
        rules: vec![Rule {
            id: 7,
            field: None,
            strategy,
            winner: winner.iter().map(|w| (*w).to_owned()).collect(),
            ..Rule::default()
        }],
        skew_ms: SKEW,
        ..Policy::default()
    }
}

/// One entity under a policy, with the outcome applied after each event.
pub struct World {
    pub group: Group,
    pub policy: Policy,
    pub entity: Entity,
    pub seq: i64,
    pub now: i64,
}

impl World {
    /// Both records hold `value` and are at rest.
    pub fn at_rest(policy: Policy, value: &str) -> Self {
        let record = |id: &str| SideRecord {
            exists: true,
            record_id: Some(id.to_owned()),
            deleted: false,
            values: vec![text(value)],
        };
        Self {
            group: group(),
            policy,
            entity: Entity {
                records: vec![record("1"), record("003")],
                ..Entity::default()
            },
            seq: 0,
            now: 1_000_000,
        }
    }

    pub fn observe(&mut self, observed: &Observed) -> Outcome {
        let outcome = decide(
            &self.group,
            &self.policy,
            &self.entity,
            observed,
            self.now,
            HORIZON,
        );
        self.apply(&outcome);
        outcome
    }

    pub fn apply(&mut self, outcome: &Outcome) {
        for (side, field, value) in &outcome.rows {
            self.entity.records[*side].values[*field] = value.clone();
        }
        for (field, state) in &outcome.states {
            match state {
                Some(state) => self.entity.fields.insert(*field, state.clone()),
                None => self.entity.fields.remove(field),
            };
        }
    }

    pub fn event(&mut self, side: usize, source: Source, value: &str, at: i64) -> Observed {
        self.seq += 1;
        self.now = self.now.max(at);
        let at = if side == B && source != Source::Local {
            Interval::second(at)
        } else {
            Interval::instant(at)
        };
        Observed {
            side,
            source,
            origin: if source == Source::Local {
                "local".to_owned()
            } else {
                self.group.sides[side].origin.clone()
            },
            values: vec![(0, text(value), None)],
            at,
            seq: self.seq,
            ..Observed::default()
        }
    }

    /// Somebody edits at the CRM and the event arrives.
    pub fn remote(&mut self, side: usize, value: &str, at: i64) -> Outcome {
        let observed = self.event(side, Source::Remote, value, at);
        self.observe(&observed)
    }

    /// An event of a write under our mark arrives.
    pub fn ours(&mut self, side: usize, value: &str, at: i64) -> Outcome {
        let mut observed = self.event(side, Source::Remote, value, at);
        observed.mark = Mark::Ours;
        self.observe(&observed)
    }

    /// A page with this record arrives.
    pub fn page(&mut self, side: usize, value: &str, at: i64) -> Outcome {
        let observed = self.event(side, Source::Page, value, at);
        self.observe(&observed)
    }

    /// SQL edits the mirror row.
    pub fn local(&mut self, side: usize, value: &str, at: i64) -> Outcome {
        let mut observed = self.event(side, Source::Local, value, at);
        let row = &mut self.entity.records[side].values[0];
        observed.values[0].2 = Some(row.clone());
        *row = text(value);
        self.observe(&observed)
    }

    /// The same, held by the guard.
    pub fn held(&mut self, side: usize, value: &str, at: i64) -> Outcome {
        let mut observed = self.event(side, Source::Local, value, at);
        let row = &mut self.entity.records[side].values[0];
        observed.values[0].2 = Some(row.clone());
        observed.held = true;
        *row = text(value);
        self.observe(&observed)
    }

    pub fn claim(&mut self, side: usize, value: &str, at: i64) {
        self.now = self.now.max(at);
        let state = self.entity.fields.get_mut(&0).unwrap();
        claimed(state, side, &text(value), at);
    }

    pub fn answer(&mut self, side: usize, value: &str, answer: Answer, at: i64) {
        self.now = self.now.max(at);
        let state = self.entity.fields.get_mut(&0).unwrap();
        if let Some(normal) = answered(state, side, &text(value), answer, at) {
            self.entity.records[side].values[0] = normal;
        }
    }

    /// The write is claimed, lands and is answered, all in 100 ms.
    pub fn send(&mut self, side: usize, value: &str, at: i64) {
        self.claim(side, value, at);
        self.answer(side, value, Answer::Done { echoed: None }, at + 100);
    }

    pub fn row(&self, side: usize) -> Value {
        self.entity.records[side].values[0].clone()
    }

    pub fn state(&self) -> &FieldState {
        &self.entity.fields[&0]
    }
}

/// The only decision of an outcome.
pub fn only(outcome: &Outcome) -> &Decision {
    assert_eq!(outcome.decisions.len(), 1, "{outcome:?}");
    &outcome.decisions[0]
}

/// Writes as (side, value).
pub fn writes(outcome: &Outcome) -> Vec<(usize, Value)> {
    outcome
        .writes
        .iter()
        .map(|(side, _, value)| (*side, value.clone()))
        .collect()
}
