//! The past under another policy: every edit of the ledger judged again, and the
//! fields that would hold something else today.
//!
//! What is replayed are edits of fields that another row, lock or tolerance would
//! decide: echoes, values told twice and late ones were told apart when they came,
//! which no policy changes. Whether an edit met another one is taken from the
//! record too. What followed then and what would follow now are carried side by
//! side, through the same maps; only where they part company is there anything to
//! tell. What changes of policy decided again is part of what followed then.

use std::collections::BTreeMap;

use crate::case::Step;
use crate::evaluate::{Evaluation, Question};
use crate::group::{Group, SideField};
use crate::mapping::{Images, Unmapped, between};
use crate::model::Value;
pub use crate::past::{Deciding, Difference, Gap, Gaps, PastEdit, Recorded};
use crate::past::{is_edit, met_another};
use crate::policy::{Policy, Rule};
use crate::state::Clock;
use crate::strategy::{Candidate, Contest, Verdict};
use crate::value::{canonical, same};

/// What became, or would become, of an edit.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    /// This value stands, on every side.
    Stands(Value),
    /// This value stays; the editor's side is put back to it.
    PutBack(Value),
    /// The editor's side shows it, the others do not.
    Shown,
}

/// One field of one thing, in both pasts.
#[derive(Clone, Debug)]
struct Track {
    fact: Vec<Value>,
    would: Vec<Value>,
    /// What would have been there before the last edit that stood.
    before: Vec<Value>,
    /// Of the value that would stand.
    clock: Option<Clock>,
    asked: bool,
    parted: Option<Deciding>,
}

/// Asks a user's function.
pub type Asker<'f> = &'f mut dyn FnMut(&Question) -> Evaluation;

/// A replay under way. Memory follows the fields that were edited.
pub struct Replay<'a> {
    group: &'a Group,
    policy: &'a Policy,
    /// Fields that would be decided otherwise than now: the others hold what they
    /// hold.
    concerned: Vec<bool>,
    tracks: BTreeMap<(i64, usize), Track>,
    gaps: Gaps,
}

impl<'a> Replay<'a> {
    /// A replay under `policy`; `current` is the policy in force.
    pub fn new(group: &'a Group, policy: &'a Policy, current: &Policy) -> Self {
        let concerned = |field: &crate::group::GroupField| {
            let (then, now) = (policy.rule(&field.name), current.rule(&field.name));
            let by_time = then.is_some_and(|r| r.strategy.entry().by_time);
            then != now
                || policy.lock(&field.name) != current.lock(&field.name)
                || (by_time && policy.skew_ms != current.skew_ms)
        };
        Self {
            group,
            policy,
            concerned: group.fields.iter().map(concerned).collect(),
            tracks: BTreeMap::new(),
            gaps: Gaps::new(),
        }
    }

    /// Whether any field would be decided otherwise than now.
    pub fn concerns_any(&self) -> bool {
        self.concerned.contains(&true)
    }

    /// What could not be known, and was taken as it was.
    pub fn gaps(&self) -> &Gaps {
        &self.gaps
    }

    fn gap(&mut self, gap: Gap, edit: &PastEdit) {
        let field = || self.group.fields[edit.field].name.clone();
        let entry = self
            .gaps
            .entry(gap)
            .or_insert_with(|| (0, edit.seq, field()));
        entry.0 += 1;
    }

    /// Fields followed so far.
    pub fn len(&self) -> usize {
        self.tracks.len()
    }

    /// Whether nothing was replayed yet.
    pub fn is_empty(&self) -> bool {
        self.tracks.is_empty()
    }

    /// Replays one edit; `present` says which sides the thing has records on.
    pub fn edit(&mut self, edit: &PastEdit, present: &[bool], ask: Asker<'_>) {
        let Some(column) = self.group.column(edit.field, edit.side) else {
            return;
        };
        if !self.concerned.get(edit.field).is_some_and(|c| *c) {
            return;
        }
        let key = (edit.entity, edit.field);
        if edit.again {
            return self.decided_again(edit, present);
        }
        if edit.recorded.as_ref().is_some_and(|r| !is_edit(r.step)) {
            return;
        }
        let mut track = match self.tracks.remove(&key) {
            Some(track) => track,
            None => first(self.group, edit, column),
        };
        let fact = in_fact(edit, column, &track.fact[edit.side]);
        let (would, deciding) = self.judge(&mut track, edit, column, (present, ask));
        if matches!(would, End::Stands(_)) {
            track.before.clone_from(&track.would);
            track.asked = false;
            track.clock = Some(clock(edit));
        }
        let parts = fact != would;
        carry(self.group, &mut track.fact, edit, &fact);
        if carry(self.group, &mut track.would, edit, &would) {
            self.gap(Gap::Map, edit);
        }
        if self.agree(&track, edit.field, present) {
            track.parted = None;
        } else if parts || track.parted.is_none() {
            track.parted = Some(deciding);
        }
        self.tracks.insert(key, track);
    }

    /// Had the policy been there all the time, nothing would have been decided
    /// again: what it did then is a difference now.
    fn decided_again(&mut self, edit: &PastEdit, present: &[bool]) {
        let Some(mut track) = self.tracks.remove(&(edit.entity, edit.field)) else {
            return self.gap(Gap::Again, edit);
        };
        carry(
            self.group,
            &mut track.fact,
            edit,
            &End::Stands(edit.came.clone()),
        );
        if self.agree(&track, edit.field, present) {
            track.parted = None;
        } else if track.parted.is_none() {
            let rule = self.policy.rule(&self.group.fields[edit.field].name);
            track.parted = Some(Deciding {
                seq: edit.seq,
                rule: rule.map(|r| r.id),
                by: "no change of policy".to_owned(),
            });
        }
        self.tracks.insert((edit.entity, edit.field), track);
    }

    /// The cells that would hold something else, by thing, field and side.
    pub fn differences(&self) -> Vec<Difference> {
        let mut found = Vec::new();
        for ((entity, field), track) in &self.tracks {
            let Some(deciding) = &track.parted else {
                continue;
            };
            for side in 0..self.group.sides.len() {
                let Some(column) = self.group.column(*field, side) else {
                    continue;
                };
                if !same(column.field_type, &track.fact[side], &track.would[side]) {
                    found.push(Difference {
                        entity: *entity,
                        field: *field,
                        side,
                        then: track.would[side].clone(),
                        deciding: deciding.clone(),
                    });
                }
            }
        }
        found
    }

    fn agree(&self, track: &Track, field: usize, present: &[bool]) -> bool {
        (0..self.group.sides.len()).all(|side| {
            let there = present.get(side).copied().unwrap_or(false);
            let column = self.group.column(field, side).filter(|_| there);
            column.is_none_or(|c| same(c.field_type, &track.fact[side], &track.would[side]))
        })
    }

    fn judge(
        &mut self,
        track: &mut Track,
        edit: &PastEdit,
        column: &SideField,
        (present, ask): (&[bool], Asker<'_>),
    ) -> (End, Deciding) {
        let policy = self.policy;
        let name = &self.group.fields[edit.field].name;
        let held = track.would[edit.side].clone();
        let rule = policy.rule(name);
        let told = |by: &str| Deciding {
            seq: edit.seq,
            rule: rule.map(|r| r.id),
            by: by.to_owned(),
        };
        let step = edit.recorded.as_ref().map(|r| r.step);
        if step == Some(Step::Resolved) || same(column.field_type, &edit.came, &held) {
            return (End::Stands(edit.came.clone()), told("resolved"));
        }
        if !column.inbound && !edit.local {
            return (End::Shown, told("one_way"));
        }
        if track.asked {
            return (End::Shown, told("held: a person would be asked"));
        }
        let lock = policy.lock(name);
        if lock.is_some_and(|l| !l.origins.contains(&edit.origin)) {
            let by_lock = Deciding {
                rule: None,
                ..told("field_lock")
            };
            return (put_back(column, held, edit), by_lock);
        }
        let least = rule.and_then(|r| r.min_score).filter(|_| edit.local);
        if least.is_some_and(|least| edit.score.is_none_or(|s| s < least)) {
            return (put_back(column, held, edit), told("score"));
        }
        let (end, by) = match rule {
            None if met_another(edit) => (Err(String::new()), "no policy row"),
            None => (Ok(End::Stands(edit.came.clone())), "one_side"),
            Some(rule) => (
                self.by_rule(rule, track, (edit, column), &held, (present, ask)),
                rule.strategy.entry().name,
            ),
        };
        match end {
            Ok(end) => (end, told(by)),
            Err(why) => {
                track.asked = true;
                let why = if why.is_empty() {
                    why
                } else {
                    format!(" ({why})")
                };
                (
                    End::Shown,
                    told(&format!("{by}: a person would be asked{why}")),
                )
            }
        }
    }

    /// An error says why a person would be asked, where there is more to say.
    fn by_rule(
        &self,
        rule: &Rule,
        track: &Track,
        (edit, column): (&PastEdit, &SideField),
        held: &Value,
        (present, ask): (&[bool], Asker<'_>),
    ) -> Result<End, String> {
        let entry = rule.strategy.entry();
        let met = met_another(edit);
        let stands = || End::Stands(edit.came.clone());
        if let Some(merge) = entry.merge {
            let saw = match (&edit.old, edit.local) {
                (Some(old), true) => old,
                _ if met => &track.before[edit.side],
                _ => held,
            };
            return merge(saw, &edit.came, held).map(End::Stands);
        }
        let lone = self.group.sides.len() < 2 && rule.winner.is_empty();
        if !(met || entry.every_change && !lone) {
            return Ok(stands());
        }
        let holder = holder(track, edit);
        if entry.evaluates {
            let said = ask(&self.question(rule, track, edit, held, holder));
            return evaluated(said, column, held, edit);
        }
        let verdict = (entry.apply)(&Contest {
            rule,
            incumbent: Candidate {
                origin: &holder,
                value: held,
                clock: track.clock.as_ref(),
            },
            challenger: Candidate {
                origin: &edit.origin,
                value: &edit.came,
                clock: Some(&clock(edit)),
            },
            conflict: met,
            named_present: self.named_present(rule, edit.field, present),
            skew_ms: self.policy.skew_ms,
        });
        match verdict {
            Verdict::Challenger => Ok(stands()),
            Verdict::Incumbent => Ok(put_back(column, held.clone(), edit)),
            Verdict::Review => Err(String::new()),
        }
    }

    /// What the engine would have asked a user's function.
    fn question(
        &self,
        rule: &Rule,
        track: &Track,
        edit: &PastEdit,
        held: &Value,
        held_origin: String,
    ) -> Question {
        Question {
            rule: rule.id,
            function: rule.function.clone().unwrap_or_default(),
            field: self.group.fields[edit.field].name.clone(),
            side: edit.side,
            held: held.clone(),
            held_origin,
            held_at: track.clock.as_ref().map(|c| c.at),
            came: edit.came.clone(),
            came_origin: edit.origin.clone(),
            came_at: edit.at,
            base: Some(track.before[edit.side].clone()),
        }
    }

    fn named_present(&self, rule: &Rule, field: usize, present: &[bool]) -> bool {
        rule.winner.iter().any(|name| {
            let side = self.group.sides.iter().position(|s| s.origin == *name);
            side.is_none_or(|s| {
                present.get(s).copied().unwrap_or(false) && self.group.column(field, s).is_some()
            })
        })
    }
}

/// Who wrote the value held; from the record where the replay began later.
fn holder(track: &Track, edit: &PastEdit) -> String {
    if let Some(clock) = &track.clock {
        return clock.origin.clone();
    }
    let recorded = edit.recorded.as_ref();
    let names = recorded.map(|r| r.losers.iter().chain([&r.winner]));
    let other = names.and_then(|mut n| n.find(|o| **o != edit.origin).cloned());
    other.unwrap_or_default()
}

/// What follows from a function's answer; an error says why a person is asked.
fn evaluated(
    said: Evaluation,
    column: &SideField,
    held: &Value,
    edit: &PastEdit,
) -> Result<End, String> {
    let value = match said.answer? {
        Some(text) => canonical(column.field_type, &text).map_err(|e| e.to_string())?,
        None => None,
    };
    if same(column.field_type, &value, &edit.came) {
        return Ok(End::Stands(edit.came.clone()));
    }
    if same(column.field_type, &value, held) {
        return Ok(put_back(column, held.clone(), edit));
    }
    crate::mapping::fits(column, &value).map_err(|e| e.to_string())?;
    Ok(End::Stands(value))
}

fn clock(edit: &PastEdit) -> Clock {
    edit.quality.clock(edit.at, edit.seq, &edit.origin)
}

fn put_back(column: &SideField, held: Value, edit: &PastEdit) -> End {
    if column.accepts_writes() || edit.local {
        End::PutBack(held)
    } else {
        End::Shown
    }
}

/// Both pasts before the first edit of a field: what the edit found.
fn first(group: &Group, edit: &PastEdit, column: &SideField) -> Track {
    let old = edit.old.clone().flatten();
    let found: Vec<Value> = (0..group.sides.len())
        .map(|side| {
            if side == edit.side {
                return old.clone();
            }
            let carried = edit.carried.iter().find(|(s, _)| *s == side);
            match (carried, group.column(edit.field, side)) {
                (Some((_, value)), _) => value.clone(),
                (None, Some(other)) => image(column, other, &old).unwrap_or_default(),
                (None, None) => None,
            }
        })
        .collect();
    Track {
        fact: found.clone(),
        before: found.clone(),
        would: found,
        clock: None,
        asked: false,
        parted: None,
    }
}

/// What became of an edit, from the record.
fn in_fact(edit: &PastEdit, column: &SideField, held: &Value) -> End {
    let Some(recorded) = &edit.recorded else {
        return End::Stands(edit.came.clone());
    };
    if recorded.step == Step::OneWay {
        return End::Shown;
    }
    match &recorded.value {
        None => End::Stands(edit.came.clone()),
        Some(value) if same(column.field_type, value, &edit.came) => End::Stands(edit.came.clone()),
        Some(_) if recorded.held => End::Shown,
        Some(value) if same(column.field_type, value, held) => End::PutBack(value.clone()),
        Some(value) if recorded.losers.contains(&edit.origin) => End::PutBack(value.clone()),
        Some(value) => End::Stands(value.clone()),
    }
}

/// Puts what became of an edit onto the sides; whether a map's function would
/// have been needed for that.
fn carry(group: &Group, values: &mut [Value], edit: &PastEdit, end: &End) -> bool {
    let value = match end {
        End::Stands(value) | End::PutBack(value) => value,
        End::Shown => &edit.came,
    };
    values[edit.side].clone_from(value);
    if !matches!(end, End::Stands(_)) {
        return false;
    }
    let Some(source) = group.column(edit.field, edit.side) else {
        return false;
    };
    let mut unknown = false;
    for side in (0..group.sides.len()).filter(|s| *s != edit.side) {
        let target = group.column(edit.field, side);
        let Some(target) = target.filter(|t| source.inbound && t.accepts_writes()) else {
            continue;
        };
        match image(source, target, value) {
            Ok(image) => values[side] = image,
            Err(why) => unknown |= matches!(why, Unmapped::NotEvaluated(_)),
        }
    }
    unknown
}

/// What a map makes of a value. What users' functions made of it stands in the
/// record, if anywhere: a replay calls none.
fn image(from: &SideField, to: &SideField, value: &Value) -> Result<Value, Unmapped> {
    between(from, to, value, &Images::default())
}

#[cfg(test)]
#[path = "what_if_tests.rs"]
mod tests;
