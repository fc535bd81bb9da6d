//! Records that a CRM shows for the first time while a row waits for its own
//! create: one thing, made on both sides at once.

use std::collections::{BTreeSet, HashMap};

use crm_core::model::Millis;
use crm_core::plan::{self, ArrivalPlan, Found, Standing};

use crate::pg::store::creates as waiting;
use crate::pg::store::ledger::EventRow;
use crate::pg::store::matches;
use crate::pg::store::rows::{self, RowInsert, RowUpdate};
use crate::pg::store::spi::Result;
use crate::pg::store::writes::{self, NewWrite};
use crate::worker::cases;
use crate::worker::creates;
use crate::worker::flush;
use crate::worker::ingest::Inbound;
use crate::worker::record;
use crate::worker::removals;
use crate::worker::unique;
use crate::worker::world::{Mirror, World};

/// What became of arriving records.
#[derive(Default)]
pub(crate) struct Met {
    /// Records of their own, to be inserted.
    pub(crate) new: Vec<RowInsert>,
    /// Records that may be what a create under way makes: to be looked at again.
    pub(crate) wait: Vec<String>,
    /// Rows that took the record: record and row.
    pub(crate) adopted: Vec<(String, i64)>,
}

/// Gives arriving records to rows whose create has not left; such a create is
/// withdrawn, and what both hold is decided like any new match.
pub(crate) fn meet(
    world: &World,
    mirror: &Mirror,
    arriving: Vec<RowInsert>,
    now: Millis,
) -> Result<Met> {
    let plans = plans(world, mirror, &arriving)?;
    let mut met = Met::default();
    let mut rows = Vec::new();
    for (record, plan) in arriving.into_iter().zip(plans) {
        let id = record.record_id.clone().unwrap_or_default();
        match plan {
            ArrivalPlan::Wait => met.wait.push(id),
            ArrivalPlan::Adopt(row) => {
                let row: i64 = row.parse().unwrap_or_default();
                if rows.contains(&row) {
                    met.new.push(record);
                } else if adopt(world, mirror, row, record)? {
                    rows.push(row);
                    met.adopted.push((id, row));
                } else {
                    met.wait.push(id);
                }
            }
            // Several rows claim it: asked about when it is matched.
            ArrivalPlan::New | ArrivalPlan::Ambiguous(_) => met.new.push(record),
        }
    }
    removals::agree(world, mirror, rows, now)?;
    Ok(met)
}

/// Creates wait this long, in milliseconds, for a new record with an equal key
/// to be read, and for one of which nothing is known yet.
const KEY_WAIT_MS: i64 = 10_000;
const ANY_WAIT_MS: i64 = 3_000;

/// Puts off creates while a record that their CRM has announced, and that may be
/// the same thing, is still to be read: it takes their row, see [`meet`].
pub(crate) fn wait_for_news(world: &World, mirror: &Mirror) -> Result<()> {
    let links = &world.groups[mirror.group].links;
    let live = links.iter().filter(|l| l.mode == "live" && !l.paused);
    let mut keys = BTreeSet::new();
    for link in live {
        let maps = link.maps.iter().filter(|m| m.match_order.is_some());
        keys.extend(maps.map(|m| match link.left_mirror == mirror.id {
            true => &m.left_field,
            false => &m.right_field,
        }));
    }
    if keys.is_empty() {
        return Ok(());
    }
    let keys = keys.into_iter().cloned().collect();
    let ours = format!("pg_crm_sync_{}", world.installation);
    waiting::put_off(mirror.id, keys, &ours, (KEY_WAIT_MS, ANY_WAIT_MS))
}

fn plans(world: &World, mirror: &Mirror, arriving: &[RowInsert]) -> Result<Vec<ArrivalPlan>> {
    let mut keys: Vec<Vec<Vec<Found>>> = vec![Vec::new(); arriving.len()];
    if arriving.is_empty() {
        return Ok(Vec::new());
    }
    for link in &world.groups[mirror.group].links {
        if link.mode != "live" || link.paused {
            continue;
        }
        let mut maps: Vec<_> = link
            .maps
            .iter()
            .filter(|m| m.match_order.is_some())
            .collect();
        maps.sort_by_key(|m| (!m.unique_key, m.match_order));
        for map in maps {
            let field = match link.left_mirror == mirror.id {
                true => &map.left_field,
                false => &map.right_field,
            };
            let Some(column) = mirror.by_field.get(field) else {
                continue;
            };
            let domain = map.to_left.contains("domain") || map.to_right.contains("domain");
            let values = arriving
                .iter()
                .map(|r| r.values[*column].clone().filter(|_| !r.deleted))
                .collect();
            let normal = |text: &str| matches::normal_form(text, domain);
            let mut hits: HashMap<usize, Vec<Found>> = HashMap::new();
            for (ord, row, reserved) in writes::waiting_creates(mirror.id, field, normal, values)? {
                hits.entry(ord).or_default().push(Found {
                    record: row.to_string(),
                    standing: match reserved {
                        true => Standing::Reserved,
                        false => Standing::Queued,
                    },
                });
            }
            for (ord, keys) in keys.iter_mut().enumerate() {
                keys.push(hits.remove(&ord).unwrap_or_default());
            }
        }
    }
    Ok(keys.iter().map(|k| plan::plan_arrival(k)).collect())
}

/// Records that are back take the places of rows that wait for their own create of the
/// same thing: it need not be made again. Where both are one with other records a
/// person is asked, and the create waits.
pub(crate) fn back(world: &World, mirror: &Mirror, row_ids: Vec<i64>, now: Millis) -> Result<()> {
    let Some(key) = first_key(world, mirror) else {
        return Ok(());
    };
    let all: Vec<usize> = (0..mirror.columns.len()).collect();
    let locked = cases::lock(mirror, &all, row_ids)?;
    let record = |row: &rows::Row| RowInsert {
        record_id: row.record_id.clone(),
        source: mirror.server.clone(),
        modified_at: row.modified_at,
        deleted: false,
        values: row.values.clone(),
    };
    let records: Vec<RowInsert> = locked.iter().map(record).collect();
    for (row, plan) in locked.iter().zip(plans(world, mirror, &records)?) {
        // What is under way is made; its answer finds the record that is back.
        let (ArrivalPlan::Adopt(waiting), Some(id)) = (plan, &row.record_id) else {
            continue;
        };
        let waiting: i64 = waiting.parse().unwrap_or_default();
        let pending = writes::pending(vec![mirror.id], vec![waiting])?;
        if let Some(write) = pending.iter().find(|w| w.kind == "create") {
            unique::take(world, mirror, &key, write, id, now)?;
        }
    }
    Ok(())
}

/// The field of a mirror that says first whether two records are one thing.
pub(super) fn first_key(world: &World, mirror: &Mirror) -> Option<String> {
    let links = &world.groups[mirror.group].links;
    let maps = links.iter().filter(|l| l.mode == "live" && !l.paused);
    let maps = maps.flat_map(|l| l.maps.iter().map(move |m| (l, m)));
    let keys = maps.filter(|(_, m)| m.match_order.is_some());
    let first = keys.min_by_key(|(_, m)| (!m.unique_key, m.match_order))?;
    Some(match first.0.left_mirror == mirror.id {
        true => first.1.left_field.clone(),
        false => first.1.right_field.clone(),
    })
}

/// Lets a row have an arriving record; false if somebody holds the row. The
/// record's values stand on it; what only the row holds is sent.
fn adopt(world: &World, mirror: &Mirror, row_id: i64, record: RowInsert) -> Result<bool> {
    let all: Vec<usize> = (0..mirror.columns.len()).collect();
    let locked = cases::lock(mirror, &all, vec![row_id])?;
    let (Some(row), Some(id)) = (locked.first(), record.record_id) else {
        return Ok(false);
    };
    writes::withdraw_creates(mirror.id, vec![row_id])?;
    creates::give_ids(mirror, vec![row_id], vec![id.clone()])?;
    let info = &world.groups[mirror.group];
    let mut values = record.values;
    let mut vals = serde_json::Map::new();
    for (column, value) in values.iter_mut().enumerate() {
        let field = info.field_of[mirror.side].get(&column);
        let shared = field.is_some_and(|f| {
            let sides = &info.group.fields[*f].sides;
            sides.iter().flatten().count() > 1
        });
        let ours = &row.values[column];
        let writable = !mirror.columns[column].read_only;
        if value.is_none() && ours.is_some() && !shared && writable {
            let name = mirror.columns[column].field.clone();
            vals.insert(name, serde_json::json!(ours));
            value.clone_from(ours);
        }
    }
    let columns: Vec<_> = mirror.columns.iter().collect();
    let update = RowUpdate {
        row_id,
        tid: None,
        source: mirror.server.clone(),
        modified_at: record.modified_at,
        values,
    };
    rows::update(&mirror.table, &columns, vec![update])?;
    if !vals.is_empty() {
        let shadow = info.group.sides[mirror.side].shadow;
        writes::enqueue(vec![NewWrite {
            mirror: mirror.id,
            row_id,
            entity: None,
            kind: "update",
            record_id: Some(id),
            vals: serde_json::Value::Object(vals).to_string(),
            old_vals: "{}".to_owned(),
            origin: "local".to_owned(),
            state: flush::state_of(world, mirror.id, shadow, false),
            txs: Vec::new(),
        }])?;
    }
    Ok(true)
}

/// Keeps a page that was read before the deletion from bringing the record back.
pub(super) fn tombstone(mirror: &Mirror, record_id: String, at: Millis) -> RowInsert {
    RowInsert {
        record_id: Some(record_id),
        source: mirror.server.clone(),
        modified_at: at,
        deleted: true,
        values: vec![None; mirror.columns.len()],
    }
}

/// The row and the ledger's line of a record that an event carries whole.
pub(super) fn row_of(world: &World, mirror: &Mirror, item: &Inbound) -> (RowInsert, EventRow) {
    let mut values = vec![None; mirror.columns.len()];
    let mut event = record::told(mirror, item, "create");
    for (name, raw) in &item.change.fields {
        if let Some(column) = mirror.by_field.get(name).copied() {
            let value = world.canonical(mirror, column, raw).flatten();
            event.fields.push(name.clone());
            event.new_values.push(value.clone());
            values[column] = value;
        }
    }
    let row = RowInsert {
        record_id: Some(item.change.record_id.clone()),
        source: mirror.server.clone(),
        modified_at: item.change.occurred_at,
        deleted: false,
        values,
    };
    (row, event)
}
