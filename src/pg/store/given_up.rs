//! What people gave up, on its way into the ledger; see `crm.given_up`.

use super::ledger::EventRow;
use super::spi::{self, Result};

/// The kinds of `crm.given_up`, as the ledger names them.
const KINDS: [&str; 4] = ["create", "update", "delete", "discard"];

/// Takes the oldest lines; whoever calls this appends them to the ledger.
pub(crate) fn take(limit: i64) -> Result<Vec<EventRow>> {
    spi::write_rows(
        "WITH taken AS (DELETE FROM crm.given_up WHERE id IN (SELECT g.id FROM crm.given_up g ORDER BY g.id LIMIT $1) RETURNING *) \
         SELECT t.kind, t.mirror, t.row_id, t.record_id, t.entity, t.tx, t.fields, t.old_values, t.new_values, t.decision::text, \
         (extract(epoch FROM t.at) * 1000000)::bigint, t.actor, t.application, t.reason FROM taken t ORDER BY t.id",
        &[limit.into()],
        |row| {
            let kind = row.get::<String>(1)?.unwrap_or_default();
            let at = row.get::<i64>(11)?.unwrap_or_default();
            Ok(EventRow {
                kind: KINDS.into_iter().find(|k| *k == kind).unwrap_or("discard"),
                mirror: row.get(2)?.unwrap_or_default(),
                row_id: row.get(3)?,
                record_id: row.get(4)?,
                entity: row.get(5)?,
                tx: row.get(6)?,
                fields: row.get(7)?.unwrap_or_default(),
                old_values: row.get(8)?.unwrap_or_default(),
                new_values: row.get(9)?.unwrap_or_default(),
                decision: row.get(10)?,
                occurred_at: at.div_euclid(1_000),
                micros: at.rem_euclid(1_000),
                actor: row.get(12)?,
                application: row.get(13)?,
                reason: row.get(14)?,
                origin: "local".to_owned(),
                source: "reject".to_owned(),
                ..EventRow::default()
            })
        },
    )
}
