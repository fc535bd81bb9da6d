//! What befalls whole rows: hidden, renamed, brought back, erased. Like
//! [`super::rows`], with the rights of the mirror's owner.

use std::fmt::Write as _;

use super::config::ColumnRow;
use super::rows::{Table, as_owner, input};
use super::spi::{self, Arg, Result};
use crate::pg::image;

/// Shows rows as deleted although their CRM keeps the records.
pub(crate) fn hide(table: &Table, row_ids: Vec<i64>, source: &str) -> Result<usize> {
    let sql = format!(
        "UPDATE {} m SET _deleted_at = now(), _sync_state = 'soft_deleted', _sync_source = $2 WHERE m._id = ANY($1) AND m._deleted_at IS NULL",
        table.name
    );
    as_owner(table, || spi::write(&sql, &[row_ids.into(), source.into()]))
}

/// The record lives on under another id, the row stays. False if a row has
/// that id already.
pub(crate) fn rename(table: &Table, row_id: i64, record_id: &str) -> Result<bool> {
    let sql = format!(
        "UPDATE {0} m SET id = $2 WHERE m._id = $1 AND NOT EXISTS (SELECT FROM {0} o WHERE o.id = $2)",
        table.name
    );
    let renamed = as_owner(table, || {
        spi::write(&sql, &[row_id.into(), record_id.into()])
    })?;
    Ok(renamed > 0)
}

/// A removed record's row becomes one that is not in its CRM yet.
pub(crate) fn revive(table: &Table, row_id: i64) -> Result<usize> {
    let sql = format!(
        "UPDATE {} m SET id = NULL, _deleted_at = NULL, _sync_state = NULL, _sync_error = NULL WHERE m._id = $1",
        table.name
    );
    as_owner(table, || spi::write(&sql, &[row_id.into()]))
}

/// A row that SQL deleted comes back as it was.
pub(crate) fn reinsert(
    table: &Table,
    columns: &[&ColumnRow],
    row_id: i64,
    record_id: Option<String>,
    values: Vec<Option<String>>,
) -> Result<usize> {
    let mut into = String::new();
    let mut list = String::new();
    let mut names = String::new();
    let mut arrays = String::new();
    for (i, column) in columns.iter().enumerate() {
        let _ = write!(into, ", {}", column.quoted);
        let _ = write!(list, ", {}", input(column, i));
        let _ = write!(names, ", c{i}");
        let _ = write!(arrays, ", ${}::text", 3 + i);
    }
    let sql = format!(
        "INSERT INTO {} (_id, id{into}) OVERRIDING SYSTEM VALUE SELECT v._id, v.id{list} \
         FROM (SELECT $1::bigint, $2::text{arrays}) AS v(_id, id{names}) ON CONFLICT DO NOTHING",
        table.name
    );
    let mut args: Vec<Arg<'_>> = vec![row_id.into(), record_id.into()];
    args.extend(values.into_iter().map(Arg::from));
    as_owner(table, || spi::write(&sql, &args))
}

/// Records that are gone leave rows without values in the places of those that SQL
/// deleted, unless they have rows.
pub(crate) fn leave_trace(
    table: &Table,
    gone: Vec<(i64, String)>,
    source: &str,
    at: i64,
) -> Result<usize> {
    let (row_ids, records): (Vec<i64>, Vec<String>) = gone.into_iter().unzip();
    let sql = format!(
        "INSERT INTO {} (_id, id, _sync_source, _remote_modified_at, _deleted_at, _sync_state) OVERRIDING SYSTEM VALUE \
         SELECT v.row_id, v.id, $3, to_timestamp($4::float8 / 1000), now(), 'deleted' \
         FROM unnest($1::bigint[], $2::text[]) AS v(row_id, id) ON CONFLICT DO NOTHING",
        table.name
    );
    let args = [row_ids.into(), records.into(), source.into(), at.into()];
    as_owner(table, || spi::write(&sql, &args))
}

/// Forgets the values of rows, the CRM's id included. The row stays, because
/// others may refer to it.
pub(crate) fn erase(table: &Table, columns: &[&ColumnRow], row_ids: Vec<i64>) -> Result<usize> {
    let sets = columns.iter().fold(String::new(), |mut sets, column| {
        let _ = write!(sets, "{} = NULL, ", column.quoted);
        sets
    });
    let sql = format!(
        "UPDATE {} m SET {sets}id = NULL, _sync_error = NULL, _sync_state = 'erased', _deleted_at = coalesce(_deleted_at, now()) \
         WHERE m._id = ANY($1)",
        table.name
    );
    as_owner(table, || spi::write(&sql, &[row_ids.into()]))
}

/// Leaves the hashed tombstones of erased records, see `crm.erased`.
pub(crate) fn bury(mirror: i32, records: Vec<String>) -> Result<usize> {
    spi::write(
        "INSERT INTO crm.erased (mirror, record) SELECT $1, crm._erased_hash($1, r) FROM unnest($2::text[]) AS r ON CONFLICT DO NOTHING",
        &[mirror.into(), records.into()],
    )
}

/// Which of these records were erased and must not come back.
pub(crate) fn buried(mirror: i32, records: Vec<String>) -> Result<Vec<String>> {
    spi::write_rows(
        "SELECT r FROM unnest($2::text[]) AS r WHERE EXISTS (SELECT FROM crm.erased e WHERE e.mirror = $1) \
         AND EXISTS (SELECT FROM crm.erased e WHERE e.mirror = $1 AND e.record = crm._erased_hash($1, r))",
        &[mirror.into(), records.into()],
        |row| Ok(row.get::<String>(1)?.unwrap_or_default()),
    )
}

/// The CRM ids of those of these rows that the table shows as there.
pub(crate) fn shown(table: &Table, row_ids: Vec<i64>) -> Result<Vec<String>> {
    let sql = format!(
        "SELECT m.id FROM {} m WHERE m._id = ANY($1) AND m.id IS NOT NULL AND m._deleted_at IS NULL",
        table.name
    );
    as_owner(table, || {
        spi::write_rows(&sql, &[row_ids.into()], |row| {
            Ok(row.get::<String>(1)?.unwrap_or_default())
        })
    })
}

/// CRM ids that the table shows as there and that are not among these.
pub(crate) fn others(table: &Table, ids: Vec<String>) -> Result<Vec<String>> {
    let sql = format!(
        "SELECT m.id FROM {} m WHERE m.id IS NOT NULL AND m._deleted_at IS NULL \
         AND NOT EXISTS (SELECT FROM unnest($1::text[]) k WHERE k = m.id)",
        table.name
    );
    as_owner(table, || {
        spi::write_rows(&sql, &[image::texts(&ids)], |row| {
            Ok(row.get::<String>(1)?.unwrap_or_default())
        })
    })
}

/// When these rows' records were last known to be there, as far as somebody told that they
/// were back or a look found them, in milliseconds since 1970.
pub(crate) fn last_there(mirror: i32, row_ids: Vec<i64>) -> Result<Vec<(i64, i64)>> {
    spi::write_rows(
        "SELECT e.row_id, (extract(epoch FROM max(greatest(e.occurred_at, e.received_at))) * 1000)::bigint FROM crm.event e \
         WHERE e.mirror = $1 AND e.row_id = ANY($2) AND (e.kind = 'restore' OR e.kind = 'create' AND e.source IN ('read', 'poll', 'reconcile')) \
         GROUP BY e.row_id",
        &[mirror.into(), row_ids.into()],
        |row| {
            Ok((
                row.get(1)?.unwrap_or_default(),
                row.get(2)?.unwrap_or_default(),
            ))
        },
    )
}
