//! What must be known before changes are decided: the images of their values,
//! and which links the records take part in before and after them.

use std::collections::{BTreeMap, HashMap};

use crate::pg::store::changes::ChangeRow;
use crate::pg::store::rows::Row;
use crate::pg::store::spi::Result;
use crate::worker::cases::Case;
use crate::worker::edits::canonical_old;
use crate::worker::images;
use crate::worker::ingest::Inbound;
use crate::worker::scope;
use crate::worker::world::{Mirror, World};

/// Whether nothing need be known of this mirror's group.
fn plain(world: &World, mirror: &Mirror) -> bool {
    let info = &world.groups[mirror.group];
    info.with_functions.is_empty() && !scope::any(info)
}

/// Before events of a CRM.
pub(super) fn events(
    world: &World,
    mirror: &Mirror,
    cases: &mut [Case],
    items: &[Inbound],
) -> Result<()> {
    if plain(world, mirror) {
        return Ok(());
    }
    let rows = cases.iter().enumerate().filter_map(|(i, case)| {
        let row = case.rows[mirror.side].as_ref()?;
        Some((row.record_id.clone()?, (i, row.row_id)))
    });
    let rows: HashMap<String, (usize, i64)> = rows.collect();
    let info = &world.groups[mirror.group];
    let mut becomes = scope::Changed::new();
    let mut coming = Vec::new();
    for item in items {
        let Some((case, row)) = rows.get(&item.change.record_id) else {
            continue;
        };
        for (name, raw) in &item.change.fields {
            let column = mirror.by_field.get(name).copied();
            let value = column.and_then(|c| world.canonical(mirror, c, raw));
            let (Some(column), Some(value)) = (column, value) else {
                continue;
            };
            if let Some(field) = info.field_of[mirror.side].get(&column) {
                coming.push((*case, *field, value.clone()));
            }
            becomes.entry(*row).or_default().insert(column, value);
        }
    }
    images::warm(world, cases, mirror.side, &coming);
    scope::mark(world, mirror, cases, None, Some(&becomes))
}

/// Before edits by SQL: the rows show what they became, their log what they were.
pub(super) fn edits(
    world: &World,
    mirror: &Mirror,
    cases: &mut [Case],
    current: &HashMap<i64, Row>,
    logs: &BTreeMap<i64, Vec<ChangeRow>>,
) -> Result<()> {
    if plain(world, mirror) {
        return Ok(());
    }
    let case_of: HashMap<i64, usize> = cases
        .iter()
        .enumerate()
        .filter_map(|(i, c)| Some((c.rows[mirror.side].as_ref()?.row_id, i)))
        .collect();
    let info = &world.groups[mirror.group];
    let mut was = scope::Changed::new();
    let mut coming = Vec::new();
    for (row_id, log) in logs {
        let of = was.entry(*row_id).or_default();
        for (attnum, old) in log.iter().rev().flat_map(|c| &c.old) {
            let Some(column) = mirror.by_attnum.get(attnum).copied() else {
                continue;
            };
            if let Some(old) = canonical_old(mirror.types[column], old) {
                of.insert(column, old);
            }
            let field = info.field_of[mirror.side].get(&column);
            let row = current.get(row_id);
            if let (Some(field), Some(row), Some(case)) = (field, row, case_of.get(row_id)) {
                coming.push((*case, *field, row.values[column].clone()));
            }
        }
    }
    images::warm(world, cases, mirror.side, &coming);
    scope::mark(world, mirror, cases, Some(&was), None)
}
