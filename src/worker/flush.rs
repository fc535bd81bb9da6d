//! Decided cases go back to the database: rows, states, outgoing writes, events.

use std::collections::{BTreeMap, HashMap};

use crm_core::model::Value;

use crate::pg::store::ledger::{self, EventRow};
use crate::pg::store::rows::{self, RowUpdate};
use crate::pg::store::spi::Result;
use crate::pg::store::streams::{self, Wait};
use crate::pg::store::writes::{self, NewWrite};
use crate::worker::cases::Case;
use crate::worker::reviews;
use crate::worker::world::{GroupInfo, World};

/// Writes everything back: rows, states, outgoing writes, events.
pub(crate) fn flush(world: &World, mut cases: Vec<Case>, mut events: Vec<EventRow>) -> Result<()> {
    make_entities(world, &mut cases)?;
    if world.rehearsal.is_none() {
        flush_rows(world, &cases)?;
    }
    flush_writes(world, &cases)?;
    let mut states = Vec::new();
    for case in &cases {
        let Some(entity) = case.entity_id else {
            continue;
        };
        let info = &world.groups[case.group];
        for field in &case.states {
            let json = case
                .entity
                .fields
                .get(field)
                .map(|s| serde_json::to_string(s).unwrap_or_default());
            states.push((entity, info.group.fields[*field].name.clone(), json));
        }
    }
    ledger::store_field_states(states)?;
    reviews::note(world, &cases)?;
    streams::defer(rereads(world, &cases))?;
    let mut entity_of: HashMap<(i32, i64), i64> = HashMap::new();
    for case in &cases {
        for (side, row) in case.rows.iter().enumerate() {
            if let (Some(row), Some(entity)) = (row, case.entity_id) {
                let mirror = world.groups[case.group].group.sides[side].mirror;
                entity_of.insert((mirror, row.row_id), entity);
            }
        }
    }
    for event in &mut events {
        let key = event.row_id.map(|row| (event.mirror, row));
        event.entity = key.and_then(|k| entity_of.get(&k).copied());
    }
    append(world, events)
}

/// Requests to read records again, for sides about which a decision was in doubt.
fn rereads(world: &World, cases: &[Case]) -> Vec<Wait> {
    let mut out = Vec::new();
    for case in cases {
        for side in &case.reread {
            let member = &world.groups[case.group].group.sides[*side];
            let record = case.rows[*side].as_ref().and_then(|r| r.record_id.clone());
            out.extend(record.map(|record| reread(member.mirror, record)));
        }
    }
    out
}

/// A request to read a record again, as a deferred event.
pub(crate) fn reread(mirror: i32, record: String) -> Wait {
    let change = serde_json::json!({
        "object": "", "record_id": record, "kind": {"kind": "reread"}, "fields": [],
        "reread": [], "occurred_at": 0, "identity": "", "actor": "", "mark": "",
        "transaction": null,
    });
    Wait {
        id: None,
        mirror,
        record,
        source: "read".to_owned(),
        change: change.to_string(),
        reason: "read",
    }
}

/// Numbers events and appends them to the ledger.
pub(crate) fn append(world: &World, events: Vec<EventRow>) -> Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    if let Some(rehearsal) = &world.rehearsal {
        rehearsal.append(events);
        return Ok(());
    }
    let first = ledger::reserve_sequence(events.len())?;
    ledger::append(first, world.policy_version, events)?;
    Ok(())
}

fn make_entities(world: &World, cases: &mut [Case]) -> Result<()> {
    let mut keys = Vec::new();
    let mut mirrors = Vec::new();
    let mut row_ids = Vec::new();
    for (i, case) in cases.iter().enumerate().filter(|(_, c)| c.needs_entity()) {
        for (side, row) in case.rows.iter().enumerate() {
            if let Some(row) = row {
                keys.push(i64::try_from(i).unwrap_or_default());
                mirrors.push(world.groups[case.group].group.sides[side].mirror);
                row_ids.push(row.row_id);
            }
        }
    }
    if keys.is_empty() {
        return Ok(());
    }
    let made = ledger::link_rows(keys, mirrors, row_ids)?;
    let by_row: HashMap<(i32, i64), i64> = made
        .into_iter()
        .map(|x| ((x.mirror, x.row_id), x.entity))
        .collect();
    for case in cases.iter_mut().filter(|c| c.needs_entity()) {
        case.entity_id = case.rows.iter().enumerate().find_map(|(side, row)| {
            let mirror = world.groups[case.group].group.sides[side].mirror;
            by_row.get(&(mirror, row.as_ref()?.row_id)).copied()
        });
    }
    Ok(())
}

/// One UPDATE per mirror and set of columns.
fn flush_rows(world: &World, cases: &[Case]) -> Result<()> {
    let mut batches: BTreeMap<(i32, Vec<usize>), Vec<RowUpdate>> = BTreeMap::new();
    for case in cases {
        let info = &world.groups[case.group];
        for (side, row) in case.rows.iter().enumerate() {
            let Some(row) = row else { continue };
            let stamp = case.stamps[side].max(0);
            let mut columns = Vec::new();
            let mut values = Vec::new();
            for ((_, field), value) in case.cells.range((side, 0)..(side + 1, 0)) {
                for (column, cell) in info.cells(*field, side, value) {
                    columns.push(column);
                    values.push(cell);
                }
            }
            if columns.is_empty() && stamp <= row.modified_at && case.writers[side].is_empty() {
                continue;
            }
            batches
                .entry((info.group.sides[side].mirror, columns))
                .or_default()
                .push(RowUpdate {
                    row_id: row.row_id,
                    tid: row.tid,
                    source: case.writers[side].clone(),
                    modified_at: stamp,
                    values,
                });
        }
    }
    for ((mirror, columns), updates) in batches {
        let Some(mirror) = world.mirrors.get(&mirror) else {
            continue;
        };
        let columns: Vec<_> = columns.iter().map(|c| &mirror.columns[*c]).collect();
        rows::update(&mirror.table, &columns, updates)?;
    }
    Ok(())
}

fn flush_writes(world: &World, cases: &[Case]) -> Result<()> {
    let mut queue = Vec::new();
    let mut cancels = Vec::new();
    for case in cases {
        let info = &world.groups[case.group];
        for (side, field) in &case.cancels {
            let mirror = info.group.sides[*side].mirror;
            let (Some(row), Some(of)) = (&case.rows[*side], world.mirrors.get(&mirror)) else {
                continue;
            };
            for column in info.columns(*field, *side) {
                cancels.push((mirror, row.row_id, of.columns[*column].field.clone()));
            }
        }
        for (side, (vals, olds)) in per_side(world, info, &case.writes) {
            let Some(row) = &case.rows[side] else {
                continue;
            };
            let member = &info.group.sides[side];
            queue.push(NewWrite {
                mirror: member.mirror,
                row_id: row.row_id,
                entity: case.entity_id,
                kind: "update",
                record_id: row.record_id.clone(),
                vals: serde_json::Value::Object(vals).to_string(),
                old_vals: serde_json::Value::Object(olds).to_string(),
                origin: case.source.clone(),
                state: state_of(world, member.mirror, member.shadow, case.held),
                txs: case.txs.clone(),
            });
        }
    }
    writes::cancel(cancels)?;
    writes::enqueue(queue)
}

type Fields = serde_json::Map<String, serde_json::Value>;

/// New and old values per side, under the side's own field names.
fn per_side(
    world: &World,
    info: &GroupInfo,
    cells: &BTreeMap<(usize, usize), (Value, Value)>,
) -> BTreeMap<usize, (Fields, Fields)> {
    let mut sides: BTreeMap<usize, (Fields, Fields)> = BTreeMap::new();
    for ((side, field), (value, old)) in cells {
        let mirror = info.group.sides.get(*side).map(|s| s.mirror);
        let Some(mirror) = mirror.and_then(|m| world.mirrors.get(&m)) else {
            continue;
        };
        let (vals, olds) = sides.entry(*side).or_default();
        let new = info.cells(*field, *side, value);
        for ((column, value), (_, old)) in new.zip(info.cells(*field, *side, old)) {
            let name = &mirror.columns[column].field;
            vals.insert(name.clone(), serde_json::json!(value));
            olds.insert(name.clone(), serde_json::json!(old));
        }
    }
    sides
}

/// Where a new write starts: sent, only shown, or waiting for approval.
pub(crate) fn state_of(world: &World, mirror: i32, shadow: bool, held: bool) -> &'static str {
    let live = world.mirrors.get(&mirror).is_some_and(|m| m.live);
    match (live && !shadow, held) {
        (false, _) => "would_send",
        (true, true) => "held",
        (true, false) => "queued",
    }
}
