//! `crm.what_if`: the ledger under a policy that is only thought of.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crm_core::decide::Step;
use crm_core::evaluate::{Evaluation, Question};
use crm_core::model::Value;
use crm_core::state::Interval;
use crm_core::strategy::LOCAL;
use crm_core::structure;
use crm_core::value::same;
use crm_core::what_if::{Difference, Gap, Gaps, PastEdit, Recorded, Replay};
use pgrx::JsonB;
use pgrx::prelude::*;
use serde::{Deserialize, Deserializer};

use super::draft;
use super::told;
use crate::pg::report;
use crate::pg::store::past::{self, PastEvent};
use crate::pg::store::{ask, functions, rows};
use crate::pg::tx::{self, SqlError};
use crate::worker::world::{GroupInfo, Mirror, World};

/// Events read at once.
const PIECE: std::ffi::c_long = 5_000;
/// Fields followed at most: about a gigabyte.
const TRACKS_MAX: usize = 2_000_000;

/// One cell that would hold something else.
struct Line {
    link: Option<String>,
    mirror: String,
    row_id: i64,
    record: String,
    field: String,
    now: Value,
    then: Value,
    rule: Option<i64>,
    decided_by: String,
    seq: i64,
}

/// The cells that would hold something else if the policy had been with these
/// rows since then.
#[pg_extern(name = "_what_if", volatile, parallel_unsafe)]
#[allow(
    clippy::type_complexity,
    reason = "pgrx reads the names of the columns here"
)]
fn what_if(
    policy: JsonB,
    since: TimestampWithTimeZone,
    max_rows: i32,
) -> TableIterator<
    'static,
    (
        name!(link, Option<String>),
        name!(mirror, String),
        name!(row_id, i64),
        name!(record, String),
        name!(field, String),
        name!(value_now, Option<String>),
        name!(value_then, Option<String>),
        name!(rule, Option<i64>),
        name!(decided_by, String),
        name!(seq, i64),
    ),
> {
    let most = usize::try_from(max_rows).unwrap_or(0);
    let told = draft::worlds(policy).and_then(|(now, then)| {
        let mut lines = Vec::new();
        for group in 0..now.groups.len() {
            tx::as_worker(|| of_group(&now, &then, group, since, &mut lines))?;
            if lines.len() > most {
                return Err(SqlError {
                    detail: Some(format!(
                        "At least {} cells would hold something else.",
                        lines.len()
                    )),
                    hint: Some(
                        "Give a later since, rows for fewer fields, or a higher max_rows."
                            .to_owned(),
                    ),
                    ..SqlError::new("54000", format!("more than {most} cells would differ"))
                });
            }
        }
        Ok(lines)
    });
    let lines = match told {
        Ok(lines) => lines,
        Err(error) => report::raise(&error),
    };
    TableIterator::new(lines.into_iter().map(|l| {
        (
            l.link,
            l.mirror,
            l.row_id,
            l.record,
            l.field,
            l.now,
            l.then,
            l.rule,
            l.decided_by,
            l.seq,
        )
    }))
}

/// Which thing a row is, and where it has records.
#[derive(Clone, Debug)]
struct Thing {
    entity: i64,
    present: Vec<bool>,
}

/// The things met so far, by row, and their rows by side.
#[derive(Default)]
struct Things {
    of_row: HashMap<(i32, i64), Thing>,
    rows: HashMap<(i64, usize), i64>,
}

fn of_group(
    now: &World,
    then: &World,
    group: usize,
    since: TimestampWithTimeZone,
    lines: &mut Vec<Line>,
) -> Result<(), SqlError> {
    let (info, new) = (&now.groups[group], &then.groups[group]);
    let mut replay = Replay::new(&info.group, &new.policy, &info.policy);
    if !replay.concerns_any() {
        return Ok(());
    }
    let kept = new.policy.rules.iter();
    let kept = kept.filter(|r| info.policy.rules.contains(r));
    let known: BTreeSet<i64> = kept.map(|r| r.id).collect();
    let author = ask::session_user()?;
    let mut said = |question: &Question| {
        let author = Some(author.as_str()).filter(|_| !known.contains(&question.rule));
        functions::evaluate(question, author).unwrap_or_else(|error| Evaluation {
            question: question.clone(),
            version: String::new(),
            answer: Err(error.to_string()),
        })
    };
    let mut things = Things::default();
    let mirrors: Vec<i32> = info.group.sides.iter().map(|s| s.mirror).collect();
    let mut full = false;
    past::each(mirrors, since, PIECE, |piece| {
        things.meet(info, &piece)?;
        full = full || replay.len() > TRACKS_MAX;
        for event in piece.iter().filter(|_| !full) {
            let Some(thing) = things.of_row.get(&(event.mirror, event.row_id)) else {
                continue;
            };
            for edit in edits(now, info, event, thing.entity) {
                replay.edit(&edit, &thing.present, &mut said);
            }
        }
        Ok(())
    })?;
    if full {
        return Err(SqlError {
            hint: Some("Give a later since.".to_owned()),
            ..SqlError::new(
                "54000",
                format!("more than {TRACKS_MAX} fields were edited since then"),
            )
        });
    }
    tell(replay.gaps());
    let differs = replay.differences();
    lines.extend(compared(now, info, &things, differs, &known)?);
    Ok(())
}

/// Says what was taken as it was because nobody can know better.
fn tell(gaps: &Gaps) {
    for (gap, (count, seq, field)) in gaps {
        let (what, taken) = match gap {
            Gap::Map => (
                "values would go through the function of a map, which is not asked",
                "The other side is shown as it was.",
            ),
            Gap::Again => (
                "values were decided again by a change of policy, and what they replaced is older than since",
                "They are taken as they are.",
            ),
        };
        report::notice(
            format!("{count} {what}"),
            format!("The first is event {seq}, field {field}."),
            taken,
        );
    }
}

impl Things {
    /// Looks up the things of rows that were not met before.
    fn meet(&mut self, info: &GroupInfo, piece: &[PastEvent]) -> Result<(), pgrx::spi::Error> {
        let new: BTreeSet<(i32, i64)> = (piece.iter())
            .map(|e| (e.mirror, e.row_id))
            .filter(|at| !self.of_row.contains_key(at))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        let side_of = |mirror: i32| info.group.sides.iter().position(|s| s.mirror == mirror);
        let new: Vec<(i32, i64)> = new.into_iter().collect();
        for tie in ask::ties(&new)? {
            let Some(side) = side_of(tie.other) else {
                continue;
            };
            let thing = self.of_row.entry((tie.mirror, tie.row_id));
            let thing = thing.or_insert_with(|| Thing {
                entity: tie.entity,
                present: vec![false; info.group.sides.len()],
            });
            thing.present[side] = true;
            self.rows.insert((tie.entity, side), tie.other_row);
        }
        for at in new {
            let Some(side) = side_of(at.0) else { continue };
            // A row that is tied to nothing is a thing of its own.
            let own = -i64::try_from(self.of_row.len()).unwrap_or(0) - 1;
            if let std::collections::hash_map::Entry::Vacant(place) = self.of_row.entry(at) {
                let mut present = vec![false; info.group.sides.len()];
                present[side] = true;
                self.rows.insert((own, side), at.1);
                place.insert(Thing {
                    entity: own,
                    present,
                });
            }
        }
        Ok(())
    }
}

/// A decision as the ledger keeps it.
#[derive(Deserialize)]
struct Entry {
    field: String,
    step: Step,
    #[serde(default)]
    rule: Option<i64>,
    #[serde(default)]
    winner: String,
    #[serde(default, deserialize_with = "told_value")]
    value: Option<Value>,
    #[serde(default)]
    losers: Vec<Loser>,
    #[serde(default)]
    conflict: bool,
    #[serde(default)]
    held: Option<String>,
}

#[derive(Deserialize)]
struct Loser {
    #[serde(default)]
    origin: String,
}

/// A null that is there is a value; no entry is none.
fn told_value<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(from).map(Some)
}

type Carried = BTreeMap<String, BTreeMap<String, Value>>;

/// The edits of an event, in the group's fields.
fn edits(world: &World, info: &GroupInfo, event: &PastEvent, entity: i64) -> Vec<PastEdit> {
    let Some(mirror) = world.mirrors.get(&event.mirror) else {
        return Vec::new();
    };
    if event.kind == "policy" {
        return decided_again(info, mirror, event, entity);
    }
    let teller = match event.source.as_str() {
        "sql" => LOCAL,
        _ => mirror.server.as_str(),
    };
    let quality = info.policy.quality(teller, &event.source);
    // What a person answered or gave back stands as it is.
    let by_hand = event.kind == "resolved" || event.source == "reject";
    let entries: Vec<Entry> = event
        .decision
        .as_deref()
        .filter(|_| !by_hand)
        .and_then(|json| serde_json::from_str(json).ok())
        .unwrap_or_default();
    let carried: Carried = event
        .carried
        .as_deref()
        .and_then(|json| serde_json::from_str(json).ok())
        .unwrap_or_default();
    let mut found = Vec::with_capacity(event.fields.len());
    for (place, name) in event.fields.iter().enumerate() {
        let column = mirror.by_field.get(name);
        let field = column.and_then(|c| info.field_of[mirror.side].get(c));
        let (Some(field), Some(came)) = (field.copied(), event.news.get(place)) else {
            continue;
        };
        let known = !event.unknown.contains(name);
        let group_name = &info.group.fields[field].name;
        let recorded = entries.iter().find(|e| e.field == *group_name);
        found.push(PastEdit {
            entity,
            field,
            side: mirror.side,
            origin: event.origin.clone(),
            at: quality.interval(event.at),
            quality,
            seq: event.seq,
            local: event.source == "sql",
            score: event.score,
            old: event.olds.get(place).filter(|_| known).cloned(),
            came: came.clone(),
            carried: replaced(info, &carried, field),
            again: false,
            recorded: by_hand.then(resolved).or(recorded.map(|e| Recorded {
                step: e.step,
                rule: e.rule,
                value: e.value.clone(),
                winner: e.winner.clone(),
                losers: e.losers.iter().map(|l| l.origin.clone()).collect(),
                conflict: e.conflict,
                held: e.held.is_some(),
            })),
        });
    }
    found
}

fn resolved() -> Recorded {
    Recorded {
        step: Step::Resolved,
        rule: None,
        value: None,
        winner: String::new(),
        losers: Vec::new(),
        conflict: false,
        held: false,
    }
}

/// What a change of policy, or a request, decided again: the line names fields as
/// the group does, and gives each value as the side of its writer has it.
fn decided_again(
    info: &GroupInfo,
    mirror: &Mirror,
    event: &PastEvent,
    entity: i64,
) -> Vec<PastEdit> {
    let entries: Vec<Entry> = event
        .decision
        .as_deref()
        .and_then(|json| serde_json::from_str(json).ok())
        .unwrap_or_default();
    let edit = |entry: Entry| {
        let fields = &info.group.fields;
        let field = fields.iter().position(|f| f.name == entry.field)?;
        let sides = &info.group.sides;
        let side = sides.iter().position(|s| s.origin == entry.winner);
        Some(PastEdit {
            entity,
            field,
            side: side.unwrap_or(mirror.side),
            origin: entry.winner,
            at: Interval::instant(event.at),
            seq: event.seq,
            came: entry.value.filter(|_| entry.held.is_none())?,
            again: true,
            ..PastEdit::default()
        })
    };
    entries.into_iter().filter_map(edit).collect()
}

/// What an event replaced on other sides.
fn replaced(info: &GroupInfo, carried: &Carried, field: usize) -> Vec<(usize, Value)> {
    if carried.is_empty() {
        return Vec::new();
    }
    let of = |(side, member): (usize, &crm_core::group::Side)| {
        let values = carried.get(&member.mirror.to_string())?;
        let column = info.group.column(field, side)?;
        Some((side, values.get(&column.field)?.clone()))
    };
    info.group.sides.iter().enumerate().filter_map(of).collect()
}

/// Differences beside what the mirrors hold now; those that hold it already are none.
fn compared(
    world: &World,
    info: &GroupInfo,
    things: &Things,
    differs: Vec<Difference>,
    known: &BTreeSet<i64>,
) -> Result<Vec<Line>, SqlError> {
    let mut by_side: BTreeMap<usize, Vec<(i64, Difference)>> = BTreeMap::new();
    for difference in differs {
        if let Some(row) = things.rows.get(&(difference.entity, difference.side)) {
            by_side
                .entry(difference.side)
                .or_default()
                .push((*row, difference));
        }
    }
    let mut lines = Vec::new();
    for (side, list) in by_side {
        let Some(mirror) = world.mirrors.get(&info.group.sides[side].mirror) else {
            continue;
        };
        // A row may have hundreds of columns, and few of them differ.
        let differing: BTreeSet<usize> = list
            .iter()
            .flat_map(|(_, d)| info.columns(d.field, side))
            .copied()
            .collect();
        let read: Vec<_> = differing.iter().map(|c| &mirror.columns[*c]).collect();
        let place: HashMap<usize, usize> = differing.into_iter().zip(0..).collect();
        for part in list.chunks(1_000) {
            pgrx::check_for_interrupts!();
            let ids: BTreeSet<i64> = part.iter().map(|(row, _)| *row).collect();
            let found = rows::look(&mirror.table, &read, ids.into_iter().collect())?;
            let found: HashMap<i64, _> = found.into_iter().map(|r| (r.row_id, r)).collect();
            for (row, difference) in part {
                let columns = info.columns(difference.field, side);
                let (Some(row), Some(column)) = (found.get(row), columns.first().copied()) else {
                    continue;
                };
                let value = |c: &usize| row.values[place[c]].clone();
                let cells: Vec<_> = columns.iter().map(value).collect();
                let now = structure::pack(&cells);
                if same(mirror.types[column], &now, &difference.then) {
                    continue;
                }
                let rule = difference.deciding.rule;
                let draft = rule.is_some_and(|r| !known.contains(&r));
                let note = if draft { " (draft)" } else { "" };
                lines.push(Line {
                    link: link_of(info, mirror.id),
                    mirror: mirror.table.name.clone(),
                    row_id: row.row_id,
                    record: told::record(row.record_id.as_ref(), row.row_id),
                    field: mirror.columns[column].field.clone(),
                    now,
                    then: difference.then.clone(),
                    rule: rule.filter(|_| !draft),
                    decided_by: format!("{}{note}", difference.deciding.by),
                    seq: difference.deciding.seq,
                });
            }
        }
    }
    Ok(lines)
}

fn link_of(info: &GroupInfo, mirror: i32) -> Option<String> {
    let ends = |l: &&crate::pg::store::config::LinkRow| {
        l.left_mirror == mirror || l.right_mirror == mirror
    };
    info.links.iter().find(ends).map(|l| l.name.clone())
}
