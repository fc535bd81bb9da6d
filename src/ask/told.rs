//! The rows of an explanation.

use std::collections::{BTreeMap, BTreeSet};

use crm_core::decide::Step;
use crm_core::model::Value;
use crm_core::policy::Rule;

use crate::pg::store::ask::OpenWrite;
use crate::pg::store::ledger::EventRow;
use crate::worker::cases::json_values;
use crate::worker::rehearsal::Judged;
use crate::worker::world::{Mirror, World};

/// One row of an explanation.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Line {
    /// `change`, `write`, `review`, `link`, `calls`, `guard` or `note`.
    pub(super) what: &'static str,
    pub(super) server: Option<String>,
    pub(super) object: Option<String>,
    /// Id at the CRM, or `_id N` of a row without one.
    pub(super) record: Option<String>,
    pub(super) field: Option<String>,
    pub(super) value: Value,
    pub(super) instead_of: Value,
    pub(super) competing: Option<serde_json::Value>,
    pub(super) winner: Option<String>,
    pub(super) rule: Option<i64>,
    pub(super) decided_by: Option<String>,
    pub(super) calls: Option<i32>,
    pub(super) verdict: String,
    pub(super) detail: Option<String>,
}

/// The id of a record, or what stands for it.
pub(super) fn record(id: Option<&String>, row_id: i64) -> String {
    id.cloned().unwrap_or_else(|| format!("_id {row_id}"))
}

fn about(what: &'static str, mirror: Option<&Mirror>) -> Line {
    Line {
        what,
        server: mirror.map(|m| m.server.clone()),
        object: mirror.map(|m| m.object.clone()),
        ..Line::default()
    }
}

/// The name of a step, as policies and the ledger write it.
pub(super) fn step_name(step: Step) -> String {
    let name = serde_json::to_value(step).unwrap_or_default();
    name.as_str().unwrap_or_default().to_owned()
}

/// A field that was decided.
pub(super) fn decided(world: &World, judged: &Judged) -> Line {
    let mirror = world.mirrors.get(&judged.mirror);
    let decision = &judged.decision;
    let column = mirror.and_then(|m| {
        let group = &world.groups[m.group].group;
        group.column(decision.field, m.side)
    });
    let step = step_name(decision.step);
    let strategy = decision.strategy.map(|s| s.entry().name);
    let mut rivals = vec![serde_json::json!({"origin": judged.origin, "value": judged.came})];
    if judged.held != judged.came {
        let holder = Some(&judged.holder).filter(|h| !h.is_empty());
        rivals.push(serde_json::json!({"origin": holder, "value": judged.held}));
    }
    for (origin, value) in &decision.losers {
        if *value != judged.held && *value != judged.came {
            rivals.push(serde_json::json!({"origin": origin, "value": value}));
        }
    }
    let same =
        column.is_some_and(|c| crm_core::value::same(c.field_type, &decision.value, &judged.came));
    let verdict = match decision.step {
        _ if judged.asked => "review",
        Step::Policy => "decided again",
        Step::Owner
        | Step::FillBlank
        | Step::OneSide
        | Step::Conflict
        | Step::Merge
        | Step::Resolved
        | Step::OneWay
        | Step::Held
        | Step::Flapping
            if same =>
        {
            "applies"
        }
        Step::Waiting => "waits",
        Step::Merge | Step::Conflict if !decision.merged.is_empty() => "merged",
        Step::Owner
        | Step::FillBlank
        | Step::Conflict
        | Step::Locked
        | Step::Score
        | Step::Held
        | Step::Flapping => "put back",
        _ => "no news",
    };
    Line {
        record: Some(record(judged.record_id.as_ref(), judged.row_id)),
        field: column.map(|c| c.field.clone()),
        value: decision.value.clone(),
        instead_of: judged.held.clone(),
        competing: Some(serde_json::Value::Array(rivals)),
        winner: Some(decision.winner.clone()).filter(|w| !w.is_empty()),
        rule: decision.rule,
        decided_by: Some(match strategy {
            Some(name) if name != step => format!("{step}: {name}"),
            _ => step,
        }),
        verdict: verdict.to_owned(),
        detail: decision.held.clone(),
        ..about("change", mirror)
    }
}

/// A record that begins or ends.
pub(super) fn whole(world: &World, event: &EventRow) -> Line {
    let filled = event.new_values.iter().flatten().count();
    Line {
        record: Some(record(
            event.record_id.as_ref(),
            event.row_id.unwrap_or_default(),
        )),
        winner: Some(event.origin.clone()),
        decided_by: Some(event.kind.to_owned()),
        verdict: "applies".to_owned(),
        detail: (event.kind == "create").then(|| format!("{filled} fields")),
        ..about("change", world.mirrors.get(&event.mirror))
    }
}

/// The fields of writes that were not open before, or are open no longer.
pub(super) fn writes(world: &World, before: &[OpenWrite], after: &[OpenWrite]) -> Vec<Line> {
    let known: BTreeMap<i64, BTreeMap<String, Value>> = (before.iter())
        .map(|w| (w.id, json_values(&w.vals).into_iter().collect()))
        .collect();
    let mut lines = Vec::new();
    for write in after {
        let was = known.get(&write.id);
        let news = |name: &str, value: &Value| was.is_none_or(|w| w.get(name) != Some(value));
        lines.extend(of_write(world, write, news));
    }
    let left: BTreeMap<i64, BTreeSet<String>> = (after.iter())
        .map(|w| {
            (
                w.id,
                json_values(&w.vals).into_iter().map(|v| v.0).collect(),
            )
        })
        .collect();
    for write in before {
        let gone = |name: &str, _: &Value| left.get(&write.id).is_none_or(|w| !w.contains(name));
        lines.extend(of_write(world, write, gone).into_iter().map(|line| Line {
            verdict: "withdrawn".to_owned(),
            ..line
        }));
    }
    lines
}

/// The fields of a write that `wanted` picks; a deletion is one line without field.
pub(super) fn of_write(
    world: &World,
    write: &OpenWrite,
    wanted: impl Fn(&str, &Value) -> bool,
) -> Vec<Line> {
    let olds: BTreeMap<String, Value> = json_values(&write.old_vals).into_iter().collect();
    let line = || Line {
        record: Some(record(write.record_id.as_ref(), write.row_id)),
        winner: Some(write.origin.clone()),
        decided_by: Some(write.kind.clone()),
        verdict: match write.state.as_str() {
            "queued" => "would be sent".to_owned(),
            "would_send" => "shadow: not sent".to_owned(),
            state => state.to_owned(),
        },
        detail: write.error.clone(),
        ..about("write", world.mirrors.get(&write.mirror))
    };
    let values = json_values(&write.vals);
    if values.is_empty() {
        return wanted("", &None).then(line).into_iter().collect();
    }
    (values.into_iter())
        .filter(|(name, value)| wanted(name, value))
        .map(|(name, value)| Line {
            instead_of: olds.get(&name).cloned().flatten(),
            field: Some(name),
            value,
            ..line()
        })
        .collect()
}

/// Rows of a draft that leave what is open as it is, and count from the next edit
/// on: nobody can tell from here what they would do.
pub(super) fn later(now: &World, then: &World) -> Vec<Line> {
    let mut lines = Vec::new();
    for (old, new) in now.groups.iter().zip(&then.groups) {
        let fresh = |r: &&Rule| !old.policy.rules.contains(r);
        for rule in new.policy.rules.iter().filter(fresh) {
            let entry = rule.strategy.entry();
            let why = if entry.merge.is_some() || entry.evaluates {
                "what is open stays as it is: this strategy looks at edits, from the next one on"
            } else if rule.min_score.is_some() {
                "scores are judged when something is written: from the next edit on"
            } else {
                continue;
            };
            lines.push(Line {
                what: "note",
                field: Some(rule.field.clone().unwrap_or_else(|| "*".to_owned())),
                decided_by: Some(entry.name.to_owned()),
                verdict: "next edits".to_owned(),
                detail: Some(why.to_owned()),
                ..Line::default()
            });
        }
    }
    lines
}

/// A question that would be opened about a record.
pub(super) fn question(world: &World, mirror: i32, row_id: i64, reason: &str) -> Line {
    Line {
        record: Some(format!("_id {row_id}")),
        verdict: "review".to_owned(),
        detail: Some(reason.to_owned()),
        ..about("review", world.mirrors.get(&mirror))
    }
}

/// A record of another side that would become the counterpart.
pub(super) fn tie(world: &World, mirror: i32, row_id: i64) -> Line {
    Line {
        record: Some(format!("_id {row_id}")),
        verdict: "linked".to_owned(),
        detail: Some("the keys of the link say that it is the same thing".to_owned()),
        ..about("link", world.mirrors.get(&mirror))
    }
}
