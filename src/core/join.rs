//! Decisions without an event: records that become one entity, and answers of
//! people.

use std::collections::BTreeMap;

use crate::carry::carry_out;
use crate::case::{Case, Decision, Frame, Keep, Observed, Outcome, Source, Step};
use crate::echo;
use crate::effect::{self, mirror_value};
use crate::group::Group;
use crate::mapping::between;
use crate::model::{Millis, Value};
use crate::policy::Policy;
use crate::stamps::Exactness;
use crate::state::{
    Claim, Clock, Entity, FieldState, Hold, Interval, SentWrite, SideState, Waiting,
};
use crate::strategy::{Candidate, Contest, LOCAL, Verdict};
use crate::value::same;

/// A person's answer, or a request to copy one side's value to the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// Field of the group.
    pub field: usize,
    /// Side in whose type the value is.
    pub side: usize,
    /// The value.
    pub value: Value,
    /// Who and when; an empty origin is SQL.
    pub clock: Clock,
}

/// Ends a hold: the value goes to every side, whatever was there.
pub fn resolve(
    group: &Group,
    policy: &Policy,
    entity: &Entity,
    resolution: &Resolution,
    now: Millis,
    horizon_ms: i64,
) -> Outcome {
    let mut clock = resolution.clock.clone();
    if clock.origin.is_empty() {
        LOCAL.clone_into(&mut clock.origin);
    }
    let mut outcome = Outcome::default();
    let observed = observation(resolution.side, &clock);
    let frame = Frame {
        group,
        policy,
        entity,
        observed: &observed,
        now,
        horizon_ms,
    };
    let stored = entity.fields.get(&resolution.field);
    let mut state = stored
        .cloned()
        .unwrap_or_else(|| effect::fresh_state(group, entity, resolution.field));
    let question = state.hold.take();
    state.turns = None;
    state.rivals.clear();
    for side in &mut state.sides {
        side.flap = None;
        for Waiting(value, clock, _) in std::mem::take(&mut side.waiting) {
            crate::timeline::record(side, &value, &clock);
        }
    }
    let held = mirror_value(entity, observed.side, resolution.field);
    let Some(mut case) = frame.case(resolution.field, &resolution.value, held, clock, state) else {
        return outcome;
    };
    carry_out(&mut case, Step::Resolved, Keep::Challenger, &mut outcome);
    if let Some(decision) = outcome.decisions.last_mut() {
        decision.rule = question.as_ref().and_then(|q| q.rule);
        decision.losers = outvoted(&case, question);
    }
    effect::store(&mut case, stored, &mut outcome);
    outcome
}

/// The candidates that the answer is not.
fn outvoted(case: &Case<'_>, question: Option<Hold>) -> Vec<(String, Value)> {
    let claims = question.map(|q| q.claims).unwrap_or_default();
    claims
        .into_iter()
        .filter(|c| !effect::stands_for(case, c.side, &c.value))
        .map(|c| (c.clock.origin, c.value))
        .collect()
}

/// Brings the records of a new entity together: they were never agreed. Blank
/// gives way to a value; two values are a conflict that the policy decides with
/// the records' stamps. `stamps` has one entry per side.
pub fn join(
    group: &Group,
    policy: &Policy,
    entity: &Entity,
    stamps: &[Interval],
    seq: i64,
    now: Millis,
    horizon_ms: i64,
) -> Outcome {
    let all: Vec<usize> = (0..group.fields.len()).collect();
    join_fields(group, policy, entity, &all, (stamps, seq), now, horizon_ms)
}

/// [`join`] of some fields; stamps per side, and the sequence.
pub fn join_fields(
    group: &Group,
    policy: &Policy,
    entity: &Entity,
    fields: &[usize],
    by: (&[Interval], i64),
    now: Millis,
    horizon_ms: i64,
) -> Outcome {
    let known = (0, BTreeMap::new());
    Meeting::new(group, policy, by, known, now, horizon_ms).bring_together(entity, fields)
}

/// Brings a record that is back together with the others, as [`join`] does. What was
/// on its way to it did not arrive: it holds what it held when it went, and that is no
/// newer than it was then.
pub fn returned(
    group: &Group,
    policy: &Policy,
    entity: &mut Entity,
    side: usize,
    by: (&[Interval], i64),
    now: Millis,
    horizon_ms: i64,
) -> Outcome {
    let (mut rows, mut states) = (Vec::new(), Vec::new());
    let mut known = BTreeMap::new();
    for (field, state) in &mut entity.fields {
        let Some((value, clock)) = echo::when_gone(state, side, policy.skew_ms) else {
            continue;
        };
        let row = entity.records.get_mut(side);
        if let Some(row) = row.and_then(|r| r.values.get_mut(*field)) {
            row.clone_from(&value);
        }
        let origin = group.origin(side);
        known.insert(*field, clock.unwrap_or_else(|| nobodys(origin)));
        rows.push((side, *field, value));
        states.push((*field, Some(state.clone())));
    }
    let all: Vec<usize> = (0..group.fields.len()).collect();
    let known = (side, known);
    let joined =
        Meeting::new(group, policy, by, known, now, horizon_ms).bring_together(entity, &all);
    rows.extend(joined.rows);
    states.extend(joined.states);
    Outcome {
        rows,
        states,
        ..joined
    }
}

/// Brings a record together with the others that takes the place of one of them, as
/// [`join`] does. What it shows of that one is a copy: no newer than it was there.
pub fn succeeded(
    group: &Group,
    policy: &Policy,
    entity: &Entity,
    side: usize,
    by: (&[Interval], i64),
    now: Millis,
    horizon_ms: i64,
) -> Outcome {
    let mut known = BTreeMap::new();
    for (field, state) in &entity.fields {
        let value = mirror_value(entity, side, *field);
        let gone = state.sides.iter().enumerate();
        let mut gone = gone.filter(|(s, _)| *s != side && !entity.alive(*s));
        let copied = gone.find_map(|(s, there)| {
            let origin = group.origin(s);
            echo::since(there, value).map(|clock| clock.unwrap_or_else(|| nobodys(origin)))
        });
        known.extend(copied.map(|clock| (*field, clock)));
    }
    let all: Vec<usize> = (0..group.fields.len()).collect();
    let known = (side, known);
    Meeting::new(group, policy, by, known, now, horizon_ms).bring_together(entity, &all)
}

/// Who is not remembered wrote it, before everything that is.
pub(crate) fn nobodys(origin: &str) -> Clock {
    Clock {
        at: Interval::instant(0),
        origin: origin.to_owned(),
        exactness: Exactness::Received,
        ..Clock::default()
    }
}

/// Records that are brought together.
struct Meeting<'a> {
    group: &'a Group,
    policy: &'a Policy,
    /// The records' stamps, one per side, and the sequence.
    by: (&'a [Interval], i64),
    /// Fields of a side of which more is known than the stamp of its record.
    known: (usize, BTreeMap<usize, Clock>),
    now: Millis,
    horizon_ms: i64,
}

impl<'a> Meeting<'a> {
    fn new(
        group: &'a Group,
        policy: &'a Policy,
        by: (&'a [Interval], i64),
        known: (usize, BTreeMap<usize, Clock>),
        now: Millis,
        horizon_ms: i64,
    ) -> Self {
        Self {
            group,
            policy,
            by,
            known,
            now,
            horizon_ms,
        }
    }

    fn clock(&self, field: usize, side: usize) -> Clock {
        let (of, known) = &self.known;
        if let Some(clock) = known.get(&field).filter(|_| side == *of) {
            return clock.clone();
        }
        let (stamps, seq) = self.by;
        let stamp = stamps.get(side).copied();
        let at = stamp.unwrap_or(Interval {
            from: 0,
            to: self.now,
        });
        let origin = self.group.origin(side);
        self.policy.record_quality(origin).clock(at, seq, origin)
    }

    fn bring_together(&self, entity: &Entity, fields: &[usize]) -> Outcome {
        let mut outcome = Outcome::default();
        for &field in fields {
            self.bring(entity, field, &mut outcome);
        }
        outcome
    }

    fn bring(&self, entity: &Entity, field: usize, outcome: &mut Outcome) {
        let (group, policy) = (self.group, self.policy);
        let sides: Vec<usize> = (0..group.sides.len())
            .filter(|s| entity.alive(*s) && group.column(field, *s).is_some())
            .collect();
        let clock = |side: usize| self.clock(field, side);
        let Some(pick) = pick(group, policy, entity, field, &sides, &clock) else {
            return;
        };
        let mut state = FieldState::default();
        for side in 0..group.sides.len() {
            let there = sides.contains(&side).then(|| clock(side));
            let mut known = side_state(entity, field, side, there);
            // What waits is no one's wish any more while a person is asked, or
            // where the row shows another value.
            let moot = pick.review.is_some() || !wishes(entity, field, side);
            if moot && echo::withdraw(&mut known) {
                outcome.cancel.push((side, field));
            }
            state.sides.push(known);
        }
        let observed = observation(pick.side, &clock(pick.side));
        let frame = Frame {
            group,
            policy,
            entity,
            observed: &observed,
            now: self.now,
            horizon_ms: self.horizon_ms,
        };
        let value = mirror_value(entity, pick.side, field);
        let Some(mut case) = frame.case(field, value, value, clock(pick.side), state) else {
            return;
        };
        case.claims = all_shown(entity, field, &sides, &clock);
        let step = if pick.conflict {
            Step::Conflict
        } else {
            Step::FillBlank
        };
        let keep = match pick.review {
            Some(reason) => Keep::Review(reason),
            None => Keep::Challenger,
        };
        carry_out(&mut case, step, keep, outcome);
        effect::store(&mut case, None, outcome);
        if let Some(decision) = outcome.decisions.last_mut() {
            name_losers(decision, pick.losers, pick.conflict);
        }
    }
}

/// Whether the row shows what was last written to its CRM, or waits to be.
fn wishes(entity: &Entity, field: usize, side: usize) -> bool {
    let state = entity.fields.get(&field).and_then(|f| f.sides.get(side));
    let row = mirror_value(entity, side, field);
    let last = state.and_then(|s| s.sent.last());
    last.is_some_and(|w| w.value == *row || w.result() == row)
}

/// What is known of a side that joins, if it has a record: its row says what the
/// CRM holds unless it shows our own write, which can still come back as an
/// event, or be lost.
fn side_state(entity: &Entity, field: usize, side: usize, there: Option<Clock>) -> SideState {
    let before = entity.fields.get(&field).and_then(|f| f.sides.get(side));
    let sent: Vec<SentWrite> = before.map_or_else(Vec::new, |s| s.sent.clone());
    let row = || mirror_value(entity, side, field).clone();
    let (base, seen) = match before {
        Some(known) if there.is_some() && wishes(entity, field, side) => {
            (known.base.clone(), known.seen.clone())
        }
        _ => (None, there.map(|clock| (row(), clock))),
    };
    SideState {
        base,
        seen,
        sent,
        ..SideState::default()
    }
}

/// What each side shows, as candidates.
fn all_shown(
    entity: &Entity,
    field: usize,
    sides: &[usize],
    clock: &dyn Fn(usize) -> Clock,
) -> Vec<Claim> {
    let shown = |side: &usize| Claim {
        side: *side,
        value: mirror_value(entity, *side, field).clone(),
        clock: clock(*side),
    };
    sides.iter().map(shown).collect()
}

fn name_losers(decision: &mut Decision, losers: Vec<(String, Value)>, conflict: bool) {
    decision.losers = losers;
    decision.conflict = conflict;
}

/// The side whose value stands in a new entity.
pub(crate) struct Pick {
    pub(crate) side: usize,
    pub(crate) conflict: bool,
    pub(crate) losers: Vec<(String, Value)>,
    pub(crate) review: Option<String>,
}

/// `None` where all sides show the same by the map.
pub(crate) fn pick(
    group: &Group,
    policy: &Policy,
    entity: &Entity,
    field: usize,
    sides: &[usize],
    clock: &dyn Fn(usize) -> Clock,
) -> Option<Pick> {
    let mut best = Pick {
        side: *sides.first()?,
        conflict: false,
        losers: Vec::new(),
        review: None,
    };
    let mut differs = false;
    for &side in &sides[1..] {
        let (held, came) = (group.column(field, best.side)?, group.column(field, side)?);
        let (ours, theirs) = (
            mirror_value(entity, best.side, field),
            mirror_value(entity, side, field),
        );
        let agree = between(held, came, ours, &entity.images)
            .is_ok_and(|v| same(came.field_type, &v, theirs))
            || between(came, held, theirs, &entity.images)
                .is_ok_and(|v| same(held.field_type, &v, ours));
        if agree || !(held.inbound || came.inbound) {
            continue;
        }
        differs = true;
        let verdict = if theirs.is_none() || !came.inbound {
            Verdict::Incumbent
        } else if ours.is_none() || !held.inbound {
            Verdict::Challenger
        } else {
            best.conflict = true;
            let (a, b) = (clock(best.side), clock(side));
            contest(
                group,
                policy,
                field,
                (&a, ours),
                (&b, theirs),
                &mut best.review,
            )
        };
        let (loser, value) = match verdict {
            Verdict::Challenger => (std::mem::replace(&mut best.side, side), ours),
            Verdict::Incumbent | Verdict::Review => (side, theirs),
        };
        if value.is_some() {
            best.losers
                .push((group.origin(loser).to_owned(), value.clone()));
        }
    }
    differs.then_some(best)
}

fn contest(
    group: &Group,
    policy: &Policy,
    field: usize,
    held: (&Clock, &Value),
    came: (&Clock, &Value),
    review: &mut Option<String>,
) -> Verdict {
    let Some(rule) = policy.rule(&group.fields[field].name) else {
        *review = Some("no policy row decides this field".to_owned());
        return Verdict::Review;
    };
    let candidate = |(clock, value)| Candidate {
        origin: clock_origin(clock),
        value,
        clock: Some(clock),
    };
    let verdict = (rule.strategy.entry().apply)(&Contest {
        rule,
        incumbent: candidate(held),
        challenger: candidate(came),
        conflict: true,
        named_present: rule
            .winner
            .iter()
            .any(|w| *w == held.0.origin || *w == came.0.origin),
        skew_ms: policy.skew_ms,
    });
    if verdict == Verdict::Review {
        *review = Some(format!(
            "policy row {} asks for a person's decision",
            rule.id
        ));
    }
    verdict
}

fn clock_origin(clock: &Clock) -> &str {
    &clock.origin
}

pub(crate) fn observation(side: usize, clock: &Clock) -> Observed {
    Observed {
        side,
        source: Source::Local,
        origin: clock.origin.clone(),
        values: Vec::new(),
        at: clock.at,
        seq: clock.seq,
        ..Observed::default()
    }
}
