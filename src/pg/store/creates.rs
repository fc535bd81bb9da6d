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
