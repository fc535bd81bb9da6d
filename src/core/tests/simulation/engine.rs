//! The session worker without PostgreSQL: each public method is one
//! transaction. What follows for whole records is in `records`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crm_core::again::Again;
use crm_core::decide::{Decision, Observed, Outcome, Source, Step, decide};
use crm_core::evaluate::{Evaluation, Question};
use crm_core::group::Group;
use crm_core::join::{Resolution, resolve};
use crm_core::memory::must_keep;
use crm_core::model::{FieldType, Mark, Value};
use crm_core::plan::{DeleteRule, Edit};
use crm_core::policy::{Policy, Rule};
use crm_core::state::{Clock, Entity, FieldState, Interval, SideRecord};
use crm_core::value::same;

use crate::model::token;
use crate::outbox::Out;
use crate::trace::note;
use crate::world::World;

/// Longest redelivery.
pub const HORIZON: i64 = 3 * 86_400_000;

/// One thing: its rows, its outboxes, and what the ledger says of it.
#[derive(Clone, Debug)]
pub struct Thing {
    pub key: u32,
    pub entity: Entity,
    pub out: Vec<Out>,
    /// Newest stamp seen per side.
    pub stamps: Vec<Option<Interval>>,
    /// What each side showed last, by field: the ledger's memory.
    pub shown: Vec<Vec<Option<(Value, Interval)>>>,
    /// Asked about the record as a whole.
    pub question: Option<String>,
    /// Sides where it has no record yet and a create must wait.
    pub waits: bool,
}

/// What is durable.
#[derive(Clone)]
pub struct Engine {
    pub group: Arc<Group>,
    pub policy: Policy,
    pub deletes: DeleteRule,
    pub things: Vec<Thing>,
    /// SQL edits not yet drained: thing, side, edit, time.
    pub log: Vec<(usize, usize, Edit, i64)>,
    pub seq: i64,
    /// Rows ever made.
    pub rows: u64,
    /// Records that became part of others: side and id.
    pub ended: HashSet<(usize, usize)>,
    /// When records came back, by side and id.
    pub returned: HashMap<(usize, usize), i64>,
    /// Writes handed to the network.
    pub sent: usize,
    /// Creates handed to the network, per side and key.
    pub reads_back: bool,
    pub lean: bool,
    /// Identities of events taken, if duplicates are dropped.
    pub taken: Option<HashSet<u64>>,
    /// Values that a decision named, by thing, field and value.
    pub named: HashSet<(usize, u32)>,
    /// How often an observed value was let stand anew.
    pub accepted: HashMap<(usize, u32), u32>,
    /// Things and sides whose record a decision wants read again.
    pub rereads: Vec<(usize, usize)>,
    /// Questions about fields that were ever opened.
    pub asked: u32,
    /// What went wrong, in words.
    pub faults: Vec<String>,
}

impl Engine {
    pub fn new(world: &World) -> Self {
        Self {
            group: Arc::clone(&world.group),
            policy: world.policy.clone(),
            deletes: world.deletes,
            things: Vec::new(),
            log: Vec::new(),
            seq: 0,
            rows: 0,
            ended: HashSet::new(),
            returned: HashMap::new(),
            sent: 0,
            reads_back: world.reads_back,
            lean: world.lean,
            taken: world.dedupes.then(HashSet::new),
            named: HashSet::new(),
            accepted: HashMap::new(),
            rereads: Vec::new(),
            asked: 0,
            faults: Vec::new(),
        }
    }

    pub fn sides(&self) -> usize {
        self.group.sides.len()
    }

    /// A thing without records.
    pub fn new_thing(&mut self, key: u32) -> usize {
        let sides = self.sides();
        let fields = self.group.fields.len();
        let record = SideRecord {
            values: vec![None; fields],
            ..SideRecord::default()
        };
        let out = (0..sides).map(|_| self.new_row()).collect();
        self.things.push(Thing {
            key,
            entity: Entity {
                records: vec![record; sides],
                ..Entity::default()
            },
            out,
            stamps: vec![None; sides],
            shown: vec![vec![None; fields]; sides],
            question: None,
            waits: false,
        });
        self.things.len() - 1
    }

    /// The outbox of a row that is still to be made.
    pub fn new_row(&mut self) -> Out {
        self.rows += 1;
        Out {
            unique: format!("ours-{}", self.rows),
            ..Out::default()
        }
    }

    pub fn row(&self, thing: usize, side: usize, field: usize) -> &Value {
        &self.things[thing].entity.records[side].values[field]
    }

    pub fn held(&self, thing: usize, field: usize) -> Option<&str> {
        let state = self.things[thing].entity.fields.get(&field)?;
        state.hold.as_ref().map(|h| h.reason.as_str())
    }

    /// A user's UPDATE commits; whether it changed anything.
    pub fn sql(&mut self, thing: usize, side: usize, edit: (usize, Value), now: i64) -> bool {
        let (field, value) = edit;
        let cell = &mut self.things[thing].entity.records[side].values[field];
        if *cell == value {
            return false;
        }
        self.seq += 1;
        let edit = Edit {
            field,
            old: Some(cell.clone()),
            new: value.clone(),
            ordinal: self.seq,
        };
        note(|| format!("{now} sql t{thing} s{side} f{field} {cell:?} -> {value:?}"));
        *cell = value;
        self.log.push((thing, side, edit, now));
        true
    }

    /// Decides what SQL did since the last time.
    pub fn drain(&mut self, now: i64) {
        let log = std::mem::take(&mut self.log);
        // What is decided sees rows as they were before it: of each mirror.
        for (thing, side, edit, _) in log.iter().rev() {
            let old = edit.old.clone().unwrap_or_default();
            self.things[*thing].entity.records[*side].values[edit.field] = old;
        }
        // Mirror by mirror, each edit by itself.
        let mut log = log;
        log.sort_by_key(|(thing, side, _, _)| (*thing, *side));
        for (thing, side, edit, at) in log {
            let mut observed = self.observed(side, Source::Local, "local", Interval::instant(at));
            observed.values = vec![(edit.field, edit.new, edit.old)];
            observed.decided = vec![edit.field];
            self.decide(thing, &observed, now);
        }
    }

    /// Values that a record showed, by event or page.
    pub fn show(&mut self, thing: usize, seen: &Seen, now: i64) {
        let side = seen.side;
        let stamp = self.things[thing].stamps[side];
        let late = stamp.is_some_and(|s| seen.at.to < s.to);
        let page = seen.source == Source::Page;
        if self.lean && page && late {
            return;
        }
        if self.lean && late {
            self.recall(thing, side);
        }
        let origin = self.group.sides[side].origin.clone();
        let mut observed = self.observed(side, seen.source, &origin, seen.at);
        observed.mark = seen.mark;
        observed.asked_at = seen.asked_at;
        if page {
            observed.quality = self.policy.record_quality(&origin);
        }
        for (field, value) in &seen.values {
            let row = self.row(thing, side, *field);
            let open = self.things[thing].entity.fields.contains_key(field);
            if !(self.lean && page && row == value && !open)
                && self.group.column(*field, side).is_some()
            {
                observed.values.push((*field, value.clone(), None));
            }
        }
        if !late {
            self.things[thing].stamps[side] = Some(seen.at);
        }
        if !observed.values.is_empty() {
            let outcome = self.decide(thing, &observed, now);
            self.keep_shown(thing, &observed, &outcome);
        }
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
            ..Observed::default()
        }
    }

    fn decide(&mut self, thing: usize, observed: &Observed, now: i64) -> Outcome {
        let entity = &self.things[thing].entity;
        let mut asked = observed.clone();
        let outcome = loop {
            let outcome = decide(&self.group, &self.policy, entity, &asked, now, HORIZON);
            if outcome.questions.is_empty() || asked.evaluations.len() > 9 {
                break outcome;
            }
            asked
                .evaluations
                .extend(outcome.questions.into_iter().map(pick));
        };
        note(|| {
            let came = &observed.values;
            let (source, side, at) = (observed.source, observed.side, observed.at);
            format!(
                "{now} decide t{thing} s{side} {source:?} {came:?} at {}..{} {:?}",
                at.from, at.to, observed.mark
            )
        });
        for (field, value, _) in &observed.values {
            // What waited is decided besides, after its own event.
            let of = outcome.decisions.iter().filter(|d| d.field == *field);
            let waited = self.things[thing].entity.fields.get(field);
            let waited = waited.is_some_and(FieldState::has_waiting);
            let n = of.count();
            if (n > 1 && !waited) || (n == 0 && observed.source != Source::Page) {
                self.faults
                    .push(format!("{n} decisions for one event and field"));
            }
            self.judge(observed, &outcome, (*field, value));
        }
        let rereads = outcome.reread.iter().map(|side| (thing, *side));
        self.rereads.extend(rereads);
        let removed = self.things[thing].entity.records[observed.side].deleted;
        // What waited on other sides may be decided on the occasion.
        let fields = &self.things[thing].entity.fields;
        let of = |f: &usize| observed.values.iter().any(|(field, _, _)| field == f);
        let waited = fields.iter().any(|(f, s)| of(f) && s.has_waiting());
        let here = |(side, _, _): &(usize, usize, Value)| !waited || *side == observed.side;
        let effect = outcome.rows.iter().chain(&outcome.writes).any(here);
        if removed && effect && observed.source != Source::Local {
            self.faults.push("a removed record took part".to_owned());
        }
        self.apply(thing, &outcome);
        outcome
    }

    /// Keeps what the decision says, for the checks at the end.
    fn judge(&mut self, observed: &Observed, outcome: &Outcome, came: (usize, &Value)) {
        let Some(decision) = outcome.decisions.iter().find(|d| d.field == came.0) else {
            return;
        };
        let column = self.group.column(came.0, observed.side);
        let field_type = column.map_or(FieldType::Text, |c| c.field_type);
        if !names(decision, came.1, field_type) {
            self.faults
                .push(format!("{decision:?} does not name {:?}", came.1));
        }
        if observed.mark == Mark::Others && is_ours(decision.step) {
            let (side, value) = (observed.side, came.1);
            self.faults.push(format!(
                "an edit of others at s{side}, {value:?}, was taken for ours"
            ));
        }
        let others = decision.losers.iter().chain(&decision.merged);
        for value in others.map(|(_, v)| v).chain([&decision.value]) {
            self.named.extend(token(value).map(|t| (came.0, t)));
        }
        let stands = matches!(
            decision.step,
            Step::Owner | Step::FillBlank | Step::OneSide | Step::Conflict
        );
        let anew = outcome.rows.iter().any(|(_, f, _)| *f == came.0);
        if let (true, true, Some(token)) = (
            stands && anew && decision.value == *came.1,
            observed.source != Source::Local && decision.winner == observed.origin,
            token(came.1),
        ) {
            *self.accepted.entry((came.0, token)).or_default() += 1;
        }
    }

    /// Stores what follows from a decision.
    pub fn apply(&mut self, thing: usize, outcome: &Outcome) {
        for d in &outcome.decisions {
            note(|| {
                format!(
                    "    {:?} f{} winner {} value {:?} losers {:?} conflict {} held {:?}",
                    d.step, d.field, d.winner, d.value, d.losers, d.conflict, d.held
                )
            });
        }
        note(|| {
            let (r, w, c) = (&outcome.rows, &outcome.writes, &outcome.cancel);
            format!("    rows {r:?} writes {w:?} cancel {c:?}")
        });
        let lean = self.lean;
        let thing = &mut self.things[thing];
        for (side, field, value) in &outcome.rows {
            thing.entity.records[*side].values[*field].clone_from(value);
        }
        for (side, field) in &outcome.cancel {
            thing.out[*side].queued.remove(field);
        }
        for (side, field, value) in &outcome.writes {
            thing.out[*side].queued.insert(*field, value.clone());
        }
        for (field, state) in &outcome.states {
            let before = thing.entity.fields.remove(field);
            let was_held = before.is_some_and(|b| b.hold.is_some());
            if let Some(state) = state
                .clone()
                .filter(|s| !lean || must_keep(s, &thing.entity, &self.group))
            {
                self.asked += u32::from(state.hold.is_some() && !was_held);
                thing.entity.fields.insert(*field, state);
            }
        }
        if lean {
            let entity = &thing.entity;
            let kept = entity
                .fields
                .iter()
                .filter(|(_, s)| must_keep(s, entity, &self.group));
            thing.entity.fields = kept.map(|(f, s)| (*f, s.clone())).collect();
        }
    }

    /// The rule of a field changes: what is not sent, and what people were
    /// asked, is decided again.
    pub fn reform(&mut self, field: usize, rule: Rule, now: i64) {
        self.drain(now);
        self.policy.version += 1;
        self.policy.rules[field] = rule;
        for thing in 0..self.things.len() {
            let again = Again {
                group: &self.group,
                policy: &self.policy,
                entity: &self.things[thing].entity,
                now,
                horizon_ms: HORIZON,
            };
            let outcome = again.unsent(field);
            self.apply(thing, &outcome);
        }
    }

    /// A person answers a question about a field.
    pub fn answer(&mut self, thing: usize, side: usize, answer: (usize, Value), now: i64) {
        self.seq += 1;
        note(|| format!("{now} steward t{thing} s{side} {answer:?}"));
        let resolution = Resolution {
            field: answer.0,
            side,
            value: answer.1,
            clock: Clock {
                at: Interval::instant(now),
                seq: self.seq,
                origin: String::new(),
                ..Clock::default()
            },
        };
        let entity = &self.things[thing].entity;
        let outcome = resolve(&self.group, &self.policy, entity, &resolution, now, HORIZON);
        for decision in &outcome.decisions {
            for value in decision
                .losers
                .iter()
                .map(|(_, v)| v)
                .chain([&decision.value])
            {
                self.named.extend(token(value).map(|t| (decision.field, t)));
            }
        }
        self.apply(thing, &outcome);
    }

    /// What a crash leaves: exactly what was stored.
    pub fn restart(&mut self) {
        for thing in &mut self.things {
            for state in thing.entity.fields.values_mut() {
                let json = serde_json::to_string(state).expect("state to JSON");
                *state = serde_json::from_str(&json).expect("state from JSON");
            }
        }
    }
}

/// What a record showed.
#[derive(Clone, Debug)]
pub struct Seen {
    pub side: usize,
    pub source: Source,
    pub values: Vec<(usize, Value)>,
    pub at: Interval,
    /// Whom the CRM names.
    pub mark: Mark,
    /// The record was asked for at this time.
    pub asked_at: Option<i64>,
}

/// The function of the policy: the greater text, by chance an error.
fn pick(question: Question) -> Evaluation {
    let greater = question.held.clone().max(question.came.clone());
    let odd = greater.as_ref().is_some_and(|v| v.ends_with("13"));
    Evaluation {
        answer: if odd {
            Err("unlucky".to_owned())
        } else {
            Ok(greater)
        },
        question,
        version: "1".to_owned(),
    }
}

/// Whether a step takes what it sees for our own doing.
fn is_ours(step: Step) -> bool {
    matches!(step, Step::Echo | Step::NormalForm | Step::NotLanded)
}

/// A value that was observed stands, lost by name, or is no news.
fn names(decision: &Decision, value: &Value, field_type: FieldType) -> bool {
    let no_news = matches!(
        decision.step,
        Step::Echo | Step::NormalForm | Step::Equal | Step::Known | Step::NotLanded | Step::Waiting
    );
    let is = |v: &Value| same(field_type, v, value);
    let merged = decision.merged.iter().any(|(_, v)| is(v));
    no_news || merged || is(&decision.value) || decision.losers.iter().any(|(_, v)| is(v))
}
