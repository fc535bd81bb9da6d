//! What questions read: nothing is locked, written or noted, and no transaction
//! id is taken, so that they work on a standby too.

use super::ledger::XrefRow;
use super::spi::{self, Result};

/// All rows of the entity that a row belongs to, itself included; empty if it
/// belongs to none.
pub(crate) fn entity_of(mirror: i32, row_id: i64) -> Result<Vec<XrefRow>> {
    spi::read_rows(
        "SELECT y.mirror, y.row_id, y.entity FROM crm.xref x JOIN crm.xref y ON y.entity = x.entity \
         WHERE x.mirror = $1 AND x.row_id = $2 AND x.merged_into IS NULL AND y.merged_into IS NULL",
        &[mirror.into(), row_id.into()],
        |row| {
            Ok(XrefRow {
                mirror: row.get(1)?.unwrap_or_default(),
                row_id: row.get(2)?.unwrap_or_default(),
                entity: row.get(3)?.unwrap_or_default(),
            })
        },
    )
}

/// Names and states (JSON) of an entity's unsettled fields.
pub(crate) fn field_states(entity: i64) -> Result<Vec<(String, String)>> {
    spi::read_rows(
        "SELECT field, state::text FROM crm.field_state WHERE entity = $1",
        &[entity.into()],
        |row| {
            Ok((
                row.get(1)?.unwrap_or_default(),
                row.get(2)?.unwrap_or_default(),
            ))
        },
    )
}

/// Whether the caller may read a table.
pub(crate) fn may_read(relid: u32) -> Result<bool> {
    let oid = pgrx::pg_sys::Oid::from(relid);
    let found = spi::read_rows(
        "SELECT pg_catalog.has_table_privilege($1, 'SELECT')",
        &[oid.into()],
        |row| row.get::<bool>(1),
    )?;
    Ok(found.into_iter().next().flatten().unwrap_or_default())
}
