//! Mirrors whose rows pair records of two others: what to read, and what a read
//! shows to be gone.

use super::rows::{Table, as_owner};
use super::spi::{self, Result};
use crate::pg::image;

/// Whether the first copy of a mirror is done.
pub(crate) fn copied(mirror: i32) -> Result<bool> {
    let done = spi::write_rows(
        "SELECT state = 'done' FROM crm.backfill WHERE mirror = $1",
        &[mirror.into()],
        |row| Ok(row.get::<bool>(1)?.unwrap_or_default()),
    )?;
    Ok(done.into_iter().all(|done| done))
}

/// The next record ids of a mirror after one, in the order of their bytes.
pub(crate) fn records(table: &Table, after: &str, limit: i64) -> Result<Vec<String>> {
    let sql = format!(
        "SELECT m.id FROM {} m WHERE m.id > $1 AND m._deleted_at IS NULL ORDER BY m.id LIMIT $2",
        table.name
    );
    as_owner(table, || {
        spi::write_rows(&sql, &[after.into(), limit.into()], |row| {
            Ok(row.get::<String>(1)?.unwrap_or_default())
        })
    })
}

/// Rows that start `from` one of these records and were not `shown`.
pub(crate) fn unshown(
    table: &Table,
    column: &str,
    from: &[String],
    shown: &[String],
) -> Result<Vec<String>> {
    let sql = format!(
        "SELECT m.id FROM {} m WHERE m.{column} = ANY($1) AND m.id IS NOT NULL AND m._deleted_at IS NULL \
         AND NOT EXISTS (SELECT FROM unnest($2::text[]) s WHERE s = m.id)",
        table.name
    );
    as_owner(table, || {
        let args = [image::texts(from), image::texts(shown)];
        spi::write_rows(&sql, &args, |row| {
            Ok(row.get::<String>(1)?.unwrap_or_default())
        })
    })
}

/// Rows that start from a record that is gone, at most `limit`.
pub(crate) fn orphans(
    table: &Table,
    column: &str,
    parent: &Table,
    limit: i64,
) -> Result<Vec<String>> {
    let sql = format!(
        "SELECT m.id FROM {} m JOIN {} p ON p.id = m.{column} \
         WHERE p._deleted_at IS NOT NULL AND m.id IS NOT NULL AND m._deleted_at IS NULL LIMIT $1",
        table.name, parent.name
    );
    as_owner(table, || {
        spi::write_rows(&sql, &[limit.into()], |row| {
            Ok(row.get::<String>(1)?.unwrap_or_default())
        })
    })
}

/// A row number that no row has or will have.
pub(crate) fn spare_row(table: &Table) -> Result<i64> {
    let found = as_owner(table, || {
        spi::write_rows(
            "SELECT nextval(pg_get_serial_sequence($1, '_id'))",
            &[table.name.clone().into()],
            |row| Ok(row.get::<i64>(1)?.unwrap_or_default()),
        )
    })?;
    Ok(found.first().copied().unwrap_or_default())
}
