//! Removals that do not stand: the record, or the row, comes back.

use std::collections::HashMap;

use crm_core::model::{Millis, Value};

use crate::pg::store::rows;
use crate::pg::store::spi::Result;
use crate::pg::store::writes::{self, NewWrite};
use crate::pg::store::{ends, lives};
use crate::worker::cases;
use crate::worker::flush;
use crate::worker::removals;
use crate::worker::reviews as questions;
use crate::worker::world::{Mirror, World};

/// A record that its CRM has no more is made there again, with what its row
/// shows; the row, its key and its ties stay. False if a user holds the row.
pub(crate) fn revive(
    world: &World,
    mirror: &Mirror,
    row_id: i64,
    entity: Option<i64>,
    at: Millis,
) -> Result<bool> {
    let all: Vec<usize> = (0..mirror.columns.len()).collect();
    let locked = cases::lock(mirror, &all, vec![row_id])?;
    let Some(row) = locked.into_iter().next() else {
        return Ok(rows::present_rows(&mirror.table, vec![row_id])?.is_empty());
    };
    ends::drop_all(mirror.id, row_id)?;
    lives::revive(&mirror.table, row_id)?;
    if let Some(entity) = entity {
        let moot = ends::forget_states(entity)?;
        let because = format!(
            "its record was removed in {} and is made again",
            mirror.server
        );
        questions::ended(world, moot, mirror, &because, at)?;
    }
    let vals: serde_json::Map<String, serde_json::Value> = mirror
        .columns
        .iter()
        .zip(&row.values)
        .filter(|(c, v)| v.is_some() && !c.read_only)
        .map(|(c, v)| (c.field.clone(), serde_json::json!(v)))
        .collect();
    let shadow = world.groups[mirror.group].group.sides[mirror.side].shadow;
    writes::enqueue(vec![NewWrite {
        mirror: mirror.id,
        row_id,
        entity: None,
        kind: "create",
        record_id: None,
        vals: serde_json::Value::Object(vals).to_string(),
        old_vals: "{}".to_owned(),
        origin: "local".to_owned(),
        state: flush::state_of(world, mirror.id, shadow, false),
        txs: Vec::new(),
    }])?;
    // What was asked, or on its way, is decided anew.
    removals::agree(world, mirror, vec![row_id], at)?;
    Ok(true)
}

/// A row that SQL deleted comes back as the ledger has it, with its ties. False
/// if a user holds the row that news of its record has brought meanwhile.
pub(crate) fn reinsert(mirror: &Mirror, row_id: i64, entity: Option<i64>) -> Result<bool> {
    let Some((record, values)) = ends::last_deleted(mirror.id, row_id)? else {
        return Ok(true);
    };
    let mut values: HashMap<String, Value> = values.into_iter().collect();
    let columns: Vec<_> = mirror.columns.iter().collect();
    let values = columns
        .iter()
        .map(|c| values.remove(&c.field).flatten())
        .collect();
    // News of the record may have brought a row of its own meanwhile.
    let known = record.clone().into_iter().collect();
    let back = rows::lock_by_record(&mirror.table, &[], known)?;
    let row_id = match back.first() {
        Some(row) => row.row_id,
        None if !rows::present(&mirror.table, record.clone().into_iter().collect())?.is_empty() => {
            return Ok(false);
        }
        None => {
            lives::reinsert(&mirror.table, &columns, row_id, record, values)?;
            row_id
        }
    };
    if let Some(entity) = entity {
        ends::join_entity(entity, &[(mirror.id, row_id)])?;
    }
    Ok(true)
}
