//! Creates that wait for what their CRM has announced itself.

use super::spi::{self, Result};

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
