//! Creates that wait for what their CRM has announced itself, or for what the other
//! CRM says of the record that they are made from.

use super::spi::{self, Result};
use super::writes::{COLUMNS, WriteRow, row};
use crate::pg::wal;

/// Puts off the ready creates of a mirror for which a record waits to be read
/// that has an equal value in one of `keys`, or of which no such value is known
/// and which is not `ours`: at most `waits` milliseconds after they were queued.
pub(crate) fn put_off(mirror: i32, keys: Vec<String>, ours: &str, waits: (i64, i64)) -> Result<()> {
    spi::write(
        "UPDATE crm.write w SET not_before = clock_timestamp() + interval '200 milliseconds' \
         WHERE EXISTS (SELECT FROM crm.deferred d WHERE d.mirror = $1) AND w.mirror = $1 AND w.kind = 'create' AND w.state = 'queued' \
         AND (w.not_before IS NULL OR w.not_before <= now()) AND w.queued_at > now() - $4 * interval '1 millisecond' \
         AND EXISTS (SELECT FROM crm.deferred d CROSS JOIN LATERAL (SELECT count(*) AS known, \
             bool_or(lower(btrim(f ->> 1)) = lower(btrim(w.vals ->> (f ->> 0)))) AS equal \
             FROM jsonb_array_elements(d.change -> 'fields') f WHERE f ->> 0 = ANY ($2) AND f ->> 1 IS NOT NULL) k \
           WHERE d.mirror = $1 AND d.change -> 'kind' ->> 'kind' = 'create' \
           AND (k.equal OR k.known = 0 AND strpos(d.change ->> 'mark', $3) = 0 AND w.queued_at > now() - $5 * interval '1 millisecond'))",
        &[
            mirror.into(),
            keys.into(),
            ours.into(),
            waits.0.into(),
            waits.1.into(),
        ],
    )?;
    Ok(())
}

/// The rows of mirror `source` from which waiting rows of a mirror are made, unless
/// their thing has been a record of `before`: waiting row, source row.
pub(crate) fn sources(
    mirror: i32,
    row_ids: Vec<i64>,
    source: i32,
    before: i32,
) -> Result<Vec<(i64, i64)>> {
    spi::write_rows(
        "SELECT w.row_id, s.row_id FROM crm.xref w JOIN crm.xref s ON s.entity = w.entity AND s.mirror = $3 AND s.merged_into IS NULL \
         WHERE w.mirror = $1 AND w.row_id = ANY ($2) AND w.merged_into IS NULL \
         AND NOT EXISTS (SELECT FROM crm.xref b WHERE b.entity = w.entity AND b.mirror = $4)",
        &[mirror.into(), row_ids.into(), source.into(), before.into()],
        |row| {
            Ok((
                row.get(1)?.unwrap_or_default(),
                row.get(2)?.unwrap_or_default(),
            ))
        },
    )
}

/// Takes creates again that were put back a moment ago, those that are still wanted.
pub(crate) fn take_again(ids: Vec<i64>) -> Result<Vec<WriteRow>> {
    let sql = format!(
        "UPDATE crm.write w SET state = 'in_flight', not_before = NULL, error = NULL, error_code = NULL, error_class = NULL, advice = NULL, \
           claimed_at = clock_timestamp() WHERE w.id = ANY ($1) AND w.kind = 'create' AND w.state = 'queued' RETURNING {COLUMNS}"
    );
    wal::await_disk();
    let mut rows = spi::write_rows(&sql, &[ids.into()], row)?;
    rows.sort_by_key(|w| w.id);
    Ok(rows)
}

/// Whether the CRM has said before that it has the record of this create already.
pub(crate) fn has_met(write: i64) -> Result<bool> {
    let sql = "SELECT error_code = 'exists' FROM crm.write WHERE id = $1";
    let found = spi::write_rows(sql, &[write.into()], |row| row.get::<bool>(1))?;
    Ok(found == [Some(true)])
}

/// The writes of a row that is given up for another: nothing of it waits any more.
/// Answers the user transactions behind them.
pub(crate) fn give_up(mirror: i32, row_id: i64) -> Result<Vec<i64>> {
    let dropped = spi::write_rows(
        "DELETE FROM crm.write WHERE mirror = $1 AND row_id = $2 RETURNING txs",
        &[mirror.into(), row_id.into()],
        |row| Ok(row.get::<Vec<i64>>(1)?.unwrap_or_default()),
    )?;
    spi::write(
        "DELETE FROM crm.review_item WHERE mirror = $1 AND row_id = $2",
        &[mirror.into(), row_id.into()],
    )?;
    let mut txs: Vec<i64> = dropped.into_iter().flatten().collect();
    txs.sort_unstable();
    txs.dedup();
    Ok(txs)
}

/// Fields of a mirror's object whose values exist once in the CRM, by its catalog.
pub(crate) fn keys(mirror: i32) -> Result<Vec<String>> {
    spi::write_rows(
        "SELECT f.field FROM crm.mirror m JOIN crm.remote_field f ON f.server = m.server AND f.object = m.object \
         WHERE m.id = $1 AND (f.is_unique OR lower(f.field) = 'email')",
        &[mirror.into()],
        |row| Ok(row.get::<String>(1)?.unwrap_or_default()),
    )
}

/// Which of these rows had these records before, by the ledger: row and record.
pub(crate) fn had_before(mirror: i32, pairs: &[(i64, String)]) -> Result<Vec<(i64, String)>> {
    if pairs.is_empty() {
        return Ok(Vec::new());
    }
    let (rows, records): (Vec<i64>, Vec<String>) = pairs.iter().cloned().unzip();
    spi::write_rows(
        "SELECT v.row_id, v.record FROM unnest($2::bigint[], $3::text[]) AS v (row_id, record) \
         WHERE EXISTS (SELECT FROM crm.event e WHERE e.mirror = $1 AND e.row_id = v.row_id AND e.record_id = v.record)",
        &[mirror.into(), rows.into(), records.into()],
        |row| {
            Ok((
                row.get(1)?.unwrap_or_default(),
                row.get(2)?.unwrap_or_default(),
            ))
        },
    )
}
