//! The past under another policy: every edit of the ledger judged again, and the
//! fields that would hold something else today.
//!
//! What is replayed are edits: echoes, values told twice and late ones were told
//! apart when they came, which no policy changes. Whether an edit met another one
//! is taken from the record too. What followed then and what would follow now are
//! carried side by side, through the same maps; only where they part company is
//! there anything to tell.

use std::collections::BTreeMap;

use crate::decide::Step;
use crate::group::{Group, SideField};
use crate::mapping::{Images, Unmapped, between};
use crate::model::Value;
use crate::policy::{Policy, Rule};
use crate::state::{Clock, Interval};
use crate::strategy::{Candidate, Contest, Verdict};
use crate::value::same;

/// What the ledger says of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The step that decided.
    pub step: Step,
    /// Policy row, where one decided.
    pub rule: Option<i64>,
    /// The value that stood, where told.
    pub value: Option<Value>,
    /// Whose value stood.
    pub winner: String,
    /// Whose values did not.
    pub losers: Vec<String>,
    /// Two sides had changed.
    pub conflict: bool,
    /// Something waited for a person or could not be carried.
    pub held: bool,
}

/// One field of one event of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastEdit {
    /// The thing.
    pub entity: i64,
    /// Field of the group.
    pub field: usize,
    /// Side of the group.
    pub side: usize,
    /// Who wrote.
    pub origin: String,
    /// When.
    pub at: Interval,
    /// Engine sequence.
    pub seq: i64,
    /// SQL, not a CRM.
    pub local: bool,
    /// What that side held before; `None` if nobody knows.
    pub old: Option<Value>,
    /// What came.
    pub came: Value,
    /// What it replaced on other sides.
    pub carried: Vec<(usize, Value)>,
    /// What was decided; `None` where it simply applied.
    pub recorded: Option<Recorded>,
}

/// The event at which the two pasts parted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deciding {
    /// Engine sequence of the event.
    pub seq: i64,
    /// Policy row that would have decided.
    pub rule: Option<i64>,
    /// What it would have done, in words.
    pub by: String,
}

/// A cell that would hold something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The thing.
    pub entity: i64,
    /// Field of the group.
    pub field: usize,
    /// Side of the group.
    pub side: usize,
    /// What it would hold.
    pub then: Value,
    /// Since when.
    pub deciding: Deciding,
}

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

/// A replay under way. Memory follows the fields that were edited.
pub struct Replay<'a> {
    group: &'a Group,
    policy: &'a Policy,
    /// Rules that were in force as they are; what they decided stands.
    unchanged: Vec<i64>,
    tracks: BTreeMap<(i64, usize), Track>,
}

/// Steps at which an edit was news, whatever came of it.
fn is_edit(step: Step) -> bool {
    match step {
        Step::Locked
        | Step::Score
        | Step::Owner
        | Step::FillBlank
        | Step::OneSide
        | Step::Conflict
        | Step::Merge
        | Step::Held
        | Step::Flapping
        | Step::OneWay
        | Step::Resolved => true,
        Step::Tombstone
        | Step::TooLate
        | Step::Echo
        | Step::NormalForm
        | Step::Equal
        | Step::Known
        | Step::Stale
        | Step::Unsettled
        | Step::NotLanded
        | Step::Waiting
        | Step::Policy => false,
    }
}

impl<'a> Replay<'a> {
    /// A replay under `policy`; `current` is the policy in force.
    pub fn new(group: &'a Group, policy: &'a Policy, current: &Policy) -> Self {
        let known =
            |rule: &&Rule| policy.skew_ms == current.skew_ms && current.rules.contains(rule);
        Self {
            group,
            policy,
            unchanged: policy.rules.iter().filter(known).map(|r| r.id).collect(),
            tracks: BTreeMap::new(),
        }
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
    pub fn edit(&mut self, edit: &PastEdit, present: &[bool]) {
        let Some(column) = self.group.column(edit.field, edit.side) else {
            return;
        };
        if edit.recorded.as_ref().is_some_and(|r| !is_edit(r.step)) {
            return;
        }
        let key = (edit.entity, edit.field);
        let mut track = match self.tracks.remove(&key) {
            Some(track) => track,
            None => first(self.group, edit, column),
        };
        let fact = in_fact(edit, column, &track.fact[edit.side]);
        let agreed = self.agree(&track, edit.field, present);
        let (would, deciding) = if agreed && self.stands_as_recorded(edit) {
            (fact.clone(), None)
        } else {
            self.judge(&mut track, edit, column, present)
        };
        if matches!(would, End::Stands(_)) {
            track.before.clone_from(&track.would);
            track.asked = false;
            track.clock = Some(Clock {
                at: edit.at,
                seq: edit.seq,
                origin: edit.origin.clone(),
            });
        }
        let parts = fact != would;
        carry(self.group, &mut track.fact, edit, &fact);
        carry(self.group, &mut track.would, edit, &would);
        if self.agree(&track, edit.field, present) {
            track.parted = None;
        } else if let (true, Some(deciding)) = (parts || track.parted.is_none(), deciding) {
            track.parted = Some(deciding);
        }
        self.tracks.insert(key, track);
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

    /// Whether the policy row that would decide is the one that did.
    fn stands_as_recorded(&self, edit: &PastEdit) -> bool {
        let rule = self.policy.rule(&self.group.fields[edit.field].name);
        let Some(rule) = rule.filter(|r| self.unchanged.contains(&r.id)) else {
            return false;
        };
        let decided = edit.recorded.as_ref().and_then(|r| r.rule);
        decided.map_or(!rule.strategy.entry().every_change, |id| id == rule.id)
    }

    fn judge(
        &self,
        track: &mut Track,
        edit: &PastEdit,
        column: &SideField,
        present: &[bool],
    ) -> (End, Option<Deciding>) {
        let name = &self.group.fields[edit.field].name;
        let held = track.would[edit.side].clone();
        let rule = self.policy.rule(name);
        let told = |by: &str| {
            Some(Deciding {
                seq: edit.seq,
                rule: rule.map(|r| r.id),
                by: by.to_owned(),
            })
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
        let lock = self.policy.lock(name);
        if lock.is_some_and(|l| !l.origins.contains(&edit.origin)) {
            return (put_back(column, held, edit), told("field_lock"));
        }
        let (end, by) = match rule {
            None if met_another(edit) => (None, "no policy row"),
            None => (Some(End::Stands(edit.came.clone())), "one_side"),
            Some(rule) => (
                self.by_rule(rule, track, (edit, column), &held, present),
                rule.strategy.entry().name,
            ),
        };
        match end {
            Some(end) => (end, told(by)),
            None => {
                track.asked = true;
                (End::Shown, told(&format!("{by}: a person would be asked")))
            }
        }
    }

    /// `None` where a person would be asked.
    fn by_rule(
        &self,
        rule: &Rule,
        track: &Track,
        (edit, column): (&PastEdit, &SideField),
        held: &Value,
        present: &[bool],
    ) -> Option<End> {
        let entry = rule.strategy.entry();
        let met = met_another(edit);
        let stands = || End::Stands(edit.came.clone());
        if let Some(merge) = entry.merge {
            let saw = match (&edit.old, edit.local) {
                (Some(old), true) => old,
                _ if met => &track.before[edit.side],
                _ => held,
            };
            return merge(saw, &edit.came, held).ok().map(End::Stands);
        }
        let lone = self.group.sides.len() < 2 && rule.winner.is_empty();
        if !(met || entry.every_change && !lone) {
            return Some(stands());
        }
        if entry.evaluates {
            return None;
        }
        let holder = holder(track, edit);
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
                clock: Some(&Clock {
                    at: edit.at,
                    seq: edit.seq,
                    origin: edit.origin.clone(),
                }),
            },
            conflict: met,
            named_present: self.named_present(rule, edit.field, present),
            skew_ms: self.policy.skew_ms,
        });
        match verdict {
            Verdict::Challenger => Some(stands()),
            Verdict::Incumbent => Some(put_back(column, held.clone(), edit)),
            Verdict::Review => None,
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

fn met_another(edit: &PastEdit) -> bool {
    edit.recorded
        .as_ref()
        .is_some_and(|r| r.conflict || r.step == Step::Conflict)
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

/// Puts what became of an edit onto the sides.
fn carry(group: &Group, values: &mut [Value], edit: &PastEdit, end: &End) {
    let value = match end {
        End::Stands(value) | End::PutBack(value) => value,
        End::Shown => &edit.came,
    };
    values[edit.side].clone_from(value);
    if !matches!(end, End::Stands(_)) {
        return;
    }
    let Some(source) = group.column(edit.field, edit.side) else {
        return;
    };
    for side in (0..group.sides.len()).filter(|s| *s != edit.side) {
        let target = group.column(edit.field, side);
        let Some(target) = target.filter(|t| source.inbound && t.accepts_writes()) else {
            continue;
        };
        if let Ok(image) = image(source, target, value) {
            values[side] = image;
        }
    }
}

/// What a map makes of a value. What users' functions made of it stands in the
/// record, if anywhere: a replay calls none.
fn image(from: &SideField, to: &SideField, value: &Value) -> Result<Value, Unmapped> {
    between(from, to, value, &Images::default())
}

#[cfg(test)]
#[path = "what_if_tests.rs"]
mod tests;
