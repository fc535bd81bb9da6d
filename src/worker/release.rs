//! Writes that were only shown while their link or mirror was in shadow: they
//! leave as if they had been decided now.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crm_core::decide::{Decision, Observed, Source};
use crm_core::join;
use crm_core::memory;
use crm_core::model::{Millis, Value};
use crm_core::state::{Clock, Interval};

use crate::pg::store::ledger::EventRow;
use crate::pg::store::spi::Result;
use crate::pg::store::writes::{self, Shown};
use crate::worker::cases::{self, Case, HORIZON_MS};
use crate::worker::flush;
use crate::worker::record;
use crate::worker::world::{Mirror, World};

/// Shown writes released in one transaction.
const RELEASE: i64 = 500;

fn bring_together(
    world: &World,
    mirror: &Mirror,
    case: &mut Case,
    fields: &[usize],
    stamps: &[Interval],
    now: Millis,
) -> Vec<Decision> {
    let info = &world.groups[case.group];
    let outcome = join::join_fields(
        &info.group,
        &info.policy,
        &case.entity,
        fields,
        (stamps, 0),
        now,
        HORIZON_MS,
    );
    case.source.clone_from(&mirror.server);
    case.name_writers(info, &outcome);
    let observed = Observed {
        side: mirror.side,
        source: Source::Page,
        origin: mirror.server.clone(),
        ..Observed::default()
    };
    case.absorb(&info.group, outcome, &observed)
}

/// The line of the ledger that says what became of the differences.
fn line(
    world: &World,
    mirror: &Mirror,
    case: &mut Case,
    decisions: &[Decision],
    now: Millis,
) -> Option<EventRow> {
    if decisions.is_empty() {
        return None;
    }
    let row = case.rows[mirror.side].clone()?;
    Some(EventRow {
        mirror: mirror.id,
        row_id: Some(row.row_id),
        record_id: row.record_id,
        kind: "join",
        origin: mirror.server.clone(),
        source: "link".to_owned(),
        occurred_at: now,
        decision: record::decision_json(world, mirror, decisions),
        carried: record::take_carried(world, case),
        ..EventRow::default()
    })
}

/// Queues a batch of writes that were only shown until their link or mirror
/// went live: rows that stand for them get the values, and states what is
/// waited for, as if they had been decided now. Answers how many left.
pub(crate) fn release(world: &World, now: Millis) -> Result<usize> {
    let shown = writes::shown(RELEASE)?;
    let mut by_mirror: BTreeMap<i32, Vec<Shown>> = BTreeMap::new();
    for write in shown {
        by_mirror.entry(write.mirror).or_default().push(write);
    }
    let mut released = 0;
    for (id, list) in by_mirror {
        let Some(mirror) = world.mirrors.get(&id) else {
            continue;
        };
        let (edits, others): (Vec<Shown>, Vec<Shown>) =
            list.into_iter().partition(|w| w.kind == "update");
        released += writes::requeue(others.iter().map(|w| w.id).collect())?;
        // What was released before may have answered some of these.
        let rows = edits.iter().map(|w| w.row_id).collect();
        let edits = writes::shown_of(id, rows)?;
        released += release_edits(world, mirror, edits, now)?;
    }
    Ok(released)
}

fn release_edits(world: &World, mirror: &Mirror, edits: Vec<Shown>, now: Millis) -> Result<usize> {
    if edits.is_empty() {
        return Ok(0);
    }
    let all: Vec<usize> = (0..mirror.columns.len()).collect();
    let of_row: HashMap<i64, Shown> = edits.into_iter().map(|w| (w.row_id, w)).collect();
    let locked = cases::lock(mirror, &all, of_row.keys().copied().collect())?;
    let (mut cases, _) = cases::load_drained(world, mirror, &all, locked, &HashSet::new())?;
    let mut partners: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
    for case in &cases {
        for (side, row) in case.rows.iter().enumerate() {
            let other = world.groups[case.group].group.sides[side].mirror;
            if let Some(row) = row.as_ref().filter(|_| other != mirror.id) {
                partners.entry(other).or_default().push(row.row_id);
            }
        }
    }
    let mut opposed: HashMap<(i32, i64), Shown> = HashMap::new();
    for (other, rows) in partners {
        for write in writes::shown_of(other, rows)? {
            opposed.insert((other, write.row_id), write);
        }
    }
    let mut free = Vec::new();
    let mut events = Vec::new();
    for case in &mut cases {
        let row = case.rows[mirror.side].as_ref().map(|r| r.row_id);
        let Some(write) = row.and_then(|r| of_row.get(&r)) else {
            continue;
        };
        let torn = stand(world, mirror, case, write, &opposed);
        if !torn.is_empty() {
            let stamps = torn_stamps(world, mirror, case, write, &opposed);
            let decisions = bring_together(world, mirror, case, &torn, &stamps, now);
            events.extend(line(world, mirror, case, &decisions, now));
        }
        free.push(write.id);
    }
    let count = writes::requeue(free)?;
    flush::flush(world, cases, events)?;
    Ok(count)
}

/// Lets the values of a shown write stand on its row. Fields that the other
/// side's shown writes change too are left out and answered: two sides were
/// changed without knowledge of each other.
fn stand(
    world: &World,
    mirror: &Mirror,
    case: &mut Case,
    write: &Shown,
    opposed: &HashMap<(i32, i64), Shown>,
) -> Vec<usize> {
    let info = &world.groups[case.group];
    let side = mirror.side;
    let mut torn = Vec::new();
    for (name, value) in cases::json_values(&write.vals) {
        let column = mirror.by_field.get(&name);
        let Some(field) = column.and_then(|c| info.field_of[side].get(c)).copied() else {
            continue;
        };
        let known = case.entity.fields.contains_key(&field);
        if !known && is_opposed(world, case, side, field, opposed) {
            torn.push(field);
            case.cancels
                .extend((0..info.group.sides.len()).map(|s| (s, field)));
            continue;
        }
        let mut state = match case.entity.fields.remove(&field) {
            Some(state) => state,
            None => memory::at_rest(&case.entity, field),
        };
        let clock = Clock {
            at: Interval::instant(write.queued_at),
            seq: 0,
            origin: write.origin.clone(),
            ..Clock::default()
        };
        crm_core::outgoing::queue(&mut state, side, &value, &clock);
        state.clock.get_or_insert(clock);
        case.entity.fields.insert(field, state);
        case.states.insert(field);
        let held: &Value = &case.entity.records[side].values[field];
        if !crm_core::value::same(
            mirror.types[column.copied().unwrap_or_default()],
            held,
            &value,
        ) {
            case.entity.records[side].values[field].clone_from(&value);
            case.cells.insert((side, field), value);
            case.writers[side].clone_from(&write.origin);
        }
    }
    torn
}

/// Whether another side's shown write changes the same field.
fn is_opposed(
    world: &World,
    case: &Case,
    own: usize,
    field: usize,
    opposed: &HashMap<(i32, i64), Shown>,
) -> bool {
    let group = &world.groups[case.group].group;
    (0..group.sides.len()).filter(|s| *s != own).any(|side| {
        let write = case.rows[side]
            .as_ref()
            .and_then(|r| opposed.get(&(group.sides[side].mirror, r.row_id)));
        let name = group.column(field, side).map(|c| &c.field);
        write.is_some_and(|w| {
            cases::json_values(&w.vals)
                .iter()
                .any(|(n, _)| Some(n) == name)
        })
    })
}

/// A shown write carries what the other side was changed to, so its time is the
/// other side's.
fn torn_stamps(
    world: &World,
    mirror: &Mirror,
    case: &Case,
    write: &Shown,
    opposed: &HashMap<(i32, i64), Shown>,
) -> Vec<Interval> {
    let group = &world.groups[case.group].group;
    let theirs: BTreeSet<Millis> = (0..group.sides.len())
        .filter_map(|side| {
            let row = case.rows[side].as_ref()?;
            let write = opposed.get(&(group.sides[side].mirror, row.row_id))?;
            Some(write.queued_at)
        })
        .collect();
    let own = theirs.last().copied().unwrap_or(write.queued_at);
    (0..group.sides.len())
        .map(|side| {
            let at = if side == mirror.side {
                own
            } else {
                write.queued_at
            };
            Interval::instant(at)
        })
        .collect()
}
