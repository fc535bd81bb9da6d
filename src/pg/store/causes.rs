//! The user transactions that caused a write.

use super::spi::{self, Result};

/// Transactions that a write names: a row in shadow may be edited for weeks,
/// one in a loop that the guard holds every second. `crm.wait_synced` knows the number, too.
const CAUSES_MAX: usize = 1_000;

/// SQL for the causes of write `w` and some more: the newest, but of what the guard
/// holds the first, so that a big change is approved or rejected on all its rows.
pub(super) fn and(more: &str) -> String {
    format!(
        "CASE WHEN w.state = 'held' THEN (w.txs || {more})[:{CAUSES_MAX}] \
         ELSE (w.txs || {more})[greatest(cardinality(w.txs) + cardinality({more}) - {CAUSES_MAX}, 0) + 1:] END"
    )
}

/// The user transactions that caused a write.
pub(crate) fn of(write: i64) -> Result<Vec<i64>> {
    spi::write_rows(
        "SELECT t FROM crm.write w, unnest(w.txs) t WHERE w.id = $1",
        &[write.into()],
        |row| Ok(row.get::<i64>(1)?.unwrap_or_default()),
    )
}

/// The user transactions of what the guard holds of rows.
pub(crate) fn held(mirrors: Vec<i32>, row_ids: Vec<i64>) -> Result<Vec<i64>> {
    spi::write_rows(
        "SELECT DISTINCT t FROM unnest($1::int[], $2::bigint[]) AS v(mirror, row_id) \
         JOIN crm.write w ON w.mirror = v.mirror AND w.row_id = v.row_id AND w.state = 'held', unnest(w.txs) t ORDER BY t",
        &[mirrors.into(), row_ids.into()],
        |row| Ok(row.get::<i64>(1)?.unwrap_or_default()),
    )
}

/// What caused a write: mirror, row, and the user transactions as an array literal.
pub(crate) type Causes = (i32, i64, String);

/// Removes writes of which nobody knows whether they landed.
pub(crate) fn finish(ids: Vec<i64>) -> Result<Vec<Causes>> {
    spi::write_rows(
        "DELETE FROM crm.write WHERE id = ANY($1) RETURNING mirror, row_id, txs::text",
        &[ids.into()],
        |row| {
            Ok((
                row.get(1)?.unwrap_or_default(),
                row.get(2)?.unwrap_or_default(),
                row.get(3)?.unwrap_or_default(),
            ))
        },
    )
}

/// Names further causes of the newest unsent updates of rows.
pub(crate) fn add(all: Vec<Causes>) -> Result<()> {
    let sql = format!(
        "UPDATE crm.write w SET txs = {} WHERE w.id = (SELECT max(q.id) FROM crm.write q \
         WHERE q.mirror = $1 AND q.row_id = $2 AND q.kind = 'update' AND q.state IN ('queued', 'held'))",
        and("$3::bigint[]")
    );
    for (mirror, row_id, txs) in all {
        spi::write(&sql, &[mirror.into(), row_id.into(), txs.into()])?;
    }
    Ok(())
}
