//! A change of policy as an event of its own: it gets its place in the ledger,
//! then what is not sent yet and what people were asked is decided again, some
//! entities per transaction. Writes in flight finish.

use std::collections::{HashMap, HashSet};

use crm_core::again::Again;
use crm_core::decide::{Decision, Observed, Outcome, Source};
use crm_core::evaluate::{Evaluation, Question};
use crm_core::model::Millis;
use crm_core::state::Interval;
use crm_core::strategy::LOCAL;

use crate::pg::store::changes;
use crate::pg::store::functions;
use crate::pg::store::ledger::EventRow;
use crate::pg::store::policy::{self, TaskRow};
use crate::pg::store::spi::Result;
use crate::pg::tx;
use crate::worker::cases::{self, Case, HORIZON_MS};
use crate::worker::engine::{Engine, Step};
use crate::worker::flush;
use crate::worker::given_up;
use crate::worker::policies::group_field;
use crate::worker::record;
use crate::worker::sweep;
use crate::worker::world::{GroupInfo, Mirror, World};

/// Entities per transaction.
const BATCH: i64 = 500;

/// What one turn came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing waits.
    #[default]
    Idle,
    /// There may be more.
    More,
    /// A user holds a row that comes next: later.
    Locked,
}

/// Carries on with the first task, in the transaction of the caller.
pub(crate) fn step(world: &World, now: Millis) -> Result<Turn> {
    let Some(task) = policy::first()? else {
        return Ok(Turn::Idle);
    };
    // Decided under what the worker has read: the change itself is on its way.
    if task.policy_version > world.policy_version {
        return Ok(Turn::Locked);
    }
    let group = world
        .groups
        .iter()
        .find_map(|g| Some((g, g.links.iter().find(|l| l.name == task.link)?)));
    let Some((info, link)) = group else {
        // The default of mirrors without a link, or a link that is gone.
        note(world, None, &task)?;
        policy::finish(task.id)?;
        return Ok(Turn::More);
    };
    let Some(mirror) = world.mirrors.get(&link.left_mirror) else {
        policy::finish(task.id)?;
        return Ok(Turn::More);
    };
    if task.cursor == 0 && task.looked_at == 0 {
        note(world, Some(mirror), &task)?;
    }
    let named = match task.field.as_str() {
        "*" => Some("*".to_owned()),
        field => group_field(info, &world.mirrors, link, field),
    };
    let Some(field) = named else {
        policy::finish(task.id)?;
        return Ok(Turn::More);
    };
    batch(world, info, mirror, &task, &field, now)
}

/// The task's line in the ledger.
fn note(world: &World, mirror: Option<&Mirror>, task: &TaskRow) -> Result<()> {
    let mirror = mirror.or_else(|| world.mirrors.values().next());
    let Some(mirror) = mirror else {
        return Ok(());
    };
    let event = EventRow {
        mirror: mirror.id,
        kind: "policy",
        origin: "local".to_owned(),
        source: "sql".to_owned(),
        occurred_at: task.asked_at,
        actor: Some(task.asked_by.clone()),
        reason: match task.kind.as_str() {
            "apply" => Some(format!("crm.policy_apply: {}.{}", task.link, task.field)),
            _ => task.reason.clone(),
        },
        fields: vec![format!("{}.{}", task.link, task.field)],
        old_values: vec![task.before.clone()],
        new_values: vec![task.after.clone()],
        ..EventRow::default()
    };
    flush::append(world, vec![event])
}

impl Engine {
    /// Carries on with what changes of policy, of scopes, and of people's minds left
    /// to do.
    pub(crate) fn carry_out_policy(&mut self, now: Millis) -> Step<()> {
        let world = &self.world;
        let turn = tx::in_transaction(|| {
            let noted = given_up::note(world)?;
            Ok(match step(world, now)? {
                Turn::Idle => match sweep::step(world, now)? {
                    Turn::Idle if noted => Turn::More,
                    turn => turn,
                },
                turn => turn,
            })
        })?;
        self.may_send |= turn == Turn::More;
        self.policy_at = match turn {
            Turn::Idle => None,
            Turn::More => Some(now),
            Turn::Locked => Some(now + 200),
        };
        Ok(())
    }
}

fn batch(
    world: &World,
    info: &GroupInfo,
    mirror: &Mirror,
    task: &TaskRow,
    field: &str,
    now: Millis,
) -> Result<Turn> {
    let unsettled = (task.kind == "decide").then_some(field);
    let found = policy::entities(mirror.id, unsettled, task.cursor, BATCH)?;
    let Some((last, _)) = found.last().copied() else {
        policy::finish(task.id)?;
        return Ok(Turn::More);
    };
    let rows: Vec<i64> = found.iter().map(|(_, row)| *row).collect();
    let entity_of: HashMap<i64, i64> = found.iter().map(|(e, r)| (*r, *e)).collect();
    let all: Vec<usize> = (0..mirror.columns.len()).collect();
    let locked = cases::lock(mirror, &all, rows.clone())?;
    let undrained: HashSet<i64> = changes::undrained(mirror.id, rows.clone())?
        .into_iter()
        .collect();
    let locked = locked
        .into_iter()
        .filter(|r| !undrained.contains(&r.row_id))
        .collect();
    let (mut loaded, _) = cases::load_drained(world, mirror, &all, locked, &HashSet::new())?;
    let done: HashSet<i64> = loaded
        .iter()
        .filter_map(|c| Some(c.rows[mirror.side].as_ref()?.row_id))
        .collect();
    // What a user holds comes later, and everything after it.
    let first_missing = rows
        .iter()
        .filter(|r| !done.contains(r))
        .filter_map(|r| entity_of.get(r).copied())
        .min();
    let until = first_missing.map_or(last, |e| e - 1);
    loaded.retain(|c| c.entity_id.is_some_and(|e| e <= until));
    let looked = loaded.len();
    let mut events = Vec::new();
    for case in &mut loaded {
        events.extend(again(world, info, mirror, task, field, case, now));
    }
    let changed = events.len();
    flush::flush(world, loaded, events)?;
    policy::advance(task.id, until.max(task.cursor), looked, changed)?;
    Ok(match first_missing {
        Some(_) if looked == 0 => Turn::Locked,
        _ => Turn::More,
    })
}

impl Case {
    /// Keeps what follows from a decision without an observation; rows of sides
    /// other than `side` count as carried.
    fn take_up(&mut self, world: &World, outcome: Outcome, side: usize) -> Vec<Decision> {
        if let Some(rehearsal) = &world.rehearsal {
            rehearsal.again(world, self, side, &outcome);
        }
        let winner = outcome.decisions.iter().map(|d| d.winner.as_str());
        let winner = winner.clone().find(|w| !w.is_empty()).unwrap_or(LOCAL);
        self.source = winner.to_owned();
        self.name_writers(&world.groups[self.group], &outcome);
        let observed = Observed {
            side,
            source: Source::Page,
            ..Observed::default()
        };
        self.absorb(&world.groups[self.group].group, outcome, &observed)
    }
}

/// Decides the fields of an entity again; its line for the ledger.
fn again(
    world: &World,
    info: &GroupInfo,
    mirror: &Mirror,
    task: &TaskRow,
    field: &str,
    case: &mut Case,
    now: Millis,
) -> Option<EventRow> {
    let stamps: Vec<Interval> = case
        .rows
        .iter()
        .map(|r| Interval::instant(r.as_ref().map_or(0, |r| r.modified_at)))
        .collect();
    let concerned = |index: &usize| {
        let name = &info.group.fields[*index].name;
        let rule = info.policy.rule(name);
        match field {
            // The default concerns fields without a row of their own.
            "*" if task.kind == "decide" => rule.is_none_or(|r| r.field.is_none()),
            "*" => true,
            field => name == field,
        }
    };
    let mut decisions = Vec::new();
    let fields: Vec<usize> = (0..info.group.fields.len()).filter(concerned).collect();
    for index in fields {
        let again = Again {
            group: &info.group,
            policy: &info.policy,
            entity: &case.entity,
            now,
            horizon_ms: HORIZON_MS,
        };
        let outcome = match task.kind.as_str() {
            "apply" => again.differences(index, &stamps),
            _ => again.unsent(index),
        };
        decisions.extend(case.take_up(world, outcome, mirror.side));
    }
    let row = case.rows[mirror.side].as_ref()?;
    (!decisions.is_empty()).then(|| EventRow {
        mirror: mirror.id,
        row_id: Some(row.row_id),
        record_id: row.record_id.clone(),
        kind: "policy",
        origin: "local".to_owned(),
        source: "sql".to_owned(),
        occurred_at: task.asked_at,
        actor: Some(task.asked_by.clone()),
        fields: decisions
            .iter()
            .map(|d| info.group.fields[d.field].name.clone())
            .collect(),
        new_values: decisions.iter().map(|d| d.value.clone()).collect(),
        decision: record::decision_json(world, mirror, &decisions),
        carried: record::carried_json(world, mirror.group, std::mem::take(&mut case.carried)),
        ..EventRow::default()
    })
}

/// The observation with what functions of users say to it.
pub(crate) fn answered(observed: &Observed, questions: &[Question]) -> Observed {
    let said = |question: &Question| {
        let failed = |error: pgrx::spi::Error| Evaluation {
            question: question.clone(),
            version: String::new(),
            answer: Err(error.to_string()),
        };
        functions::evaluate(question, None).unwrap_or_else(failed)
    };
    Observed {
        evaluations: questions.iter().map(said).collect(),
        ..observed.clone()
    }
}
