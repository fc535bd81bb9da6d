//! The session worker without PostgreSQL: each method is one transaction.

use crm_core::decide::{Decision, Observed, Outcome, Source, Step, decide};
use crm_core::group::{Group, GroupField, Side, SideField};
use crm_core::model::Value;
use crm_core::plan::{Edit, coalesce};
use crm_core::policy::Policy;
use crm_core::state::{Answer, Entity, Interval, SideRecord, answered, claimed};

use crate::crm::Crm;

/// Longest redelivery.
pub const HORIZON: i64 = 3 * 86_400_000;
/// After this a claim without result is unknown.
pub const LEASE: i64 = 30_000;

/// What is durable.
pub struct Engine {
    pub group: Group,
    pub policy: Policy,
    pub entity: Entity,
    /// Waiting write per side.
    pub queued: Vec<Option<Value>>,
    /// Claimed write per side, and when.
    pub flying: Vec<Option<(Value, i64)>>,
    /// SQL edits not yet drained: side, edit, time.
    pub log: Vec<(usize, Edit, i64)>,
    pub seq: i64,
    /// Writes handed to the network, per side.
    pub sent: Vec<usize>,
    /// Print what is decided.
    pub trace: bool,
    /// What went wrong, in words.
    pub faults: Vec<String>,
}

impl Engine {
    pub fn new(policy: Policy, crms: &[Crm]) -> Self {
        let names = ["alpha", "beta", "gamma"];
        let sides = (0..crms.len()).map(|i| Side {
            mirror: i as i32,
            origin: names[i].to_owned(),
            live: true,
            shadow: false,
        });
        let column = |crm: &Crm| {
            let mut column = SideField::text("phone");
            column.max_length = Some(crm.habits.length as i32);
            Some(column)
        };
        let record = |crm: &Crm| SideRecord {
            exists: true,
            record_id: Some("1".to_owned()),
            deleted: false,
            values: vec![crm.value.clone()],
        };
        Self {
            group: Group {
                id: 1,
                sides: sides.collect(),
                fields: vec![GroupField {
                    name: "phone".to_owned(),
                    sides: crms.iter().map(column).collect(),
                }],
            },
            policy,
            entity: Entity {
                records: crms.iter().map(record).collect(),
                fields: std::collections::BTreeMap::new(),
            },
            queued: vec![None; crms.len()],
            flying: vec![None; crms.len()],
            log: Vec::new(),
            seq: 0,
            sent: vec![0; crms.len()],
            trace: std::env::var("TRACE").is_ok(),
            faults: Vec::new(),
        }
    }

    pub fn row(&self, side: usize) -> &Value {
        &self.entity.records[side].values[0]
    }

    pub fn held(&self) -> Option<&str> {
        let state = self.entity.fields.get(&0)?;
        state.hold.as_ref().map(|h| h.reason.as_str())
    }

    /// A user's UPDATE commits.
    pub fn sql(&mut self, side: usize, value: Value, now: i64) {
        let row = &mut self.entity.records[side].values[0];
        if *row == value {
            return;
        }
        self.seq += 1;
        let edit = Edit {
            field: 0,
            old: Some(row.clone()),
            new: value.clone(),
            ordinal: self.seq,
        };
        *row = value;
        self.log.push((side, edit, now));
    }

    /// Decides what SQL did since the last time.
    pub fn drain(&mut self, now: i64) {
        let log = std::mem::take(&mut self.log);
        for side in 0..self.group.sides.len() {
            let mine = log.iter().filter(|(s, _, _)| *s == side);
            let at = mine.clone().map(|(_, _, at)| *at).max();
            let edits = coalesce(mine.map(|(_, e, _)| e.clone()).collect());
            let Some(at) = at.filter(|_| !edits.values.is_empty()) else {
                continue;
            };
            let observed = self.observed(side, Source::Local, "local", Interval::instant(at));
            self.decide(
                &Observed {
                    values: edits.values,
                    ..observed
                },
                now,
            );
        }
    }

    /// An event or a page arrives. The row's own changes come first.
    pub fn arrive(
        &mut self,
        side: usize,
        source: Source,
        value: Value,
        at: Interval,
        ours: bool,
        now: i64,
    ) {
        self.drain(now);
        let origin = self.group.sides[side].origin.clone();
        let mut observed = self.observed(side, source, &origin, at);
        observed.values.push((0, value, None));
        observed.mark_is_ours = ours;
        self.decide(&observed, now);
    }

    fn observed(&mut self, side: usize, source: Source, origin: &str, at: Interval) -> Observed {
        self.seq += 1;
        Observed {
            side,
            source,
            origin: origin.to_owned(),
            values: Vec::new(),
            at,
            seq: self.seq,
            mark_is_ours: false,
            ..Observed::default()
        }
    }

    fn decide(&mut self, observed: &Observed, now: i64) {
        let outcome = decide(
            &self.group,
            &self.policy,
            &self.entity,
            observed,
            now,
            HORIZON,
        );
        if self.trace {
            println!(
                "{now} {observed:?}\n    -> {:?} rows {:?} writes {:?} cancel {:?}",
                outcome.decisions, outcome.rows, outcome.writes, outcome.cancel
            );
        }
        self.apply(&outcome);
        if observed.source == Source::Page && outcome.decisions.is_empty() {
            return;
        }
        let [decision] = outcome.decisions.as_slice() else {
            let n = outcome.decisions.len();
            self.faults
                .push(format!("{n} decisions for one event and field"));
            return;
        };
        if !names(decision, &observed.values[0].1) {
            self.faults.push(format!(
                "{decision:?} does not name {:?}",
                observed.values[0].1
            ));
        }
    }

    fn apply(&mut self, outcome: &Outcome) {
        for (side, field, value) in &outcome.rows {
            self.entity.records[*side].values[*field] = value.clone();
        }
        for (side, _) in &outcome.cancel {
            self.queued[*side] = None;
        }
        for (side, _, value) in &outcome.writes {
            self.queued[*side] = Some(value.clone());
        }
        for (field, state) in &outcome.states {
            match state {
                Some(state) => self.entity.fields.insert(*field, state.clone()),
                None => self.entity.fields.remove(field),
            };
        }
    }

    /// Takes the waiting write of a side, one at a time per record.
    pub fn claim(&mut self, side: usize, now: i64) -> Option<Value> {
        if self.flying[side].is_some() {
            return None;
        }
        let value = self.queued[side].take()?;
        if let Some(state) = self.entity.fields.get_mut(&0) {
            claimed(state, side, &value, now);
        }
        self.flying[side] = Some((value.clone(), now));
        self.sent[side] += 1;
        if self.trace {
            println!("{now} send {side} {value:?}");
        }
        Some(value)
    }

    /// Records a result; one that belongs to an earlier claim is ignored.
    pub fn result(&mut self, side: usize, claim: i64, answer: Answer, now: i64) {
        let Some((value, _)) = self.flying[side].take_if(|(_, at)| *at == claim) else {
            return;
        };
        if answer == Answer::Retry && self.queued[side].is_none() {
            self.queued[side] = Some(value.clone());
        }
        if self.trace {
            println!("{now} result {side} {value:?} {answer:?}");
        }
        let Some(state) = self.entity.fields.get_mut(&0) else {
            return;
        };
        if let Some(normal) = answered(state, side, &value, answer, now) {
            // A user's edit that is not drained yet stays.
            let row = &mut self.entity.records[side].values[0];
            if *row == value && !self.log.iter().any(|(s, _, _)| *s == side) {
                *row = normal;
            }
        }
    }

    /// Claims whose results were lost with the process.
    pub fn expire(&mut self, now: i64) {
        for side in 0..self.flying.len() {
            if let Some((_, at)) = self.flying[side].clone().filter(|(_, at)| at + LEASE < now) {
                self.result(side, at, Answer::Unknown, now);
            }
        }
    }

    /// What a crash leaves: exactly what was stored.
    pub fn restart(&mut self) {
        for state in self.entity.fields.values_mut() {
            let json = serde_json::to_string(state).expect("state to JSON");
            *state = serde_json::from_str(&json).expect("state from JSON");
        }
    }
}

/// A value that was observed stands, lost by name, or is no news.
fn names(decision: &Decision, value: &Value) -> bool {
    matches!(
        decision.step,
        Step::Echo | Step::NormalForm | Step::Equal | Step::Known | Step::NotLanded
    ) || decision.value == *value
        || decision.merged.iter().any(|(_, v)| v == value)
        || decision.losers.iter().any(|(_, v)| v == value)
}
