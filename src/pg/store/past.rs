//! The ledger from some time on, in pieces: what a replay reads.

use pgrx::prelude::*;

use super::cells;
use super::spi::Result;

/// One event of a record.
#[derive(Clone, Debug, Default)]
pub(crate) struct PastEvent {
    pub(crate) seq: i64,
    pub(crate) mirror: i32,
    pub(crate) row_id: i64,
    pub(crate) kind: String,
    pub(crate) origin: String,
    pub(crate) source: String,
    /// Milliseconds since 1970.
    pub(crate) at: i64,
    pub(crate) fields: Vec<String>,
    /// Empty if nothing before is known.
    pub(crate) olds: Vec<Option<String>>,
    pub(crate) news: Vec<Option<String>>,
    pub(crate) unknown: Vec<String>,
    /// JSON.
    pub(crate) decision: Option<String>,
    pub(crate) carried: Option<String>,
    /// How sure SQL was, in thousandths.
    pub(crate) score: Option<u16>,
}

const PAST: &str = "SELECT e.seq, e.mirror, e.row_id, e.origin, e.source, (extract(epoch FROM e.occurred_at) * 1000)::bigint, \
     e.fields, e.old_values, e.new_values, e.unknown, e.decision::text, e.carried::text, e.kind, round(e.score * 1000)::integer \
     FROM crm.event e WHERE e.mirror = ANY($1) AND e.received_at >= $2 AND e.kind IN ('create', 'update', 'resolved', 'policy') AND e.source NOT IN ('result', 'link', 'replay') \
     AND e.row_id IS NOT NULL AND e.new_values IS NOT NULL ORDER BY e.seq";

/// Hands the changes of these mirrors to `take`, in order, `size` at a time.
pub(crate) fn each(
    mirrors: Vec<i32>,
    since: TimestampWithTimeZone,
    size: std::ffi::c_long,
    mut take: impl FnMut(Vec<PastEvent>) -> Result<()>,
) -> Result<()> {
    Spi::connect(|client| {
        let mut cursor = client.try_open_cursor(PAST, &[mirrors.into(), since.into()])?;
        loop {
            pgrx::check_for_interrupts!();
            cursor.fetch(size)?;
            let piece = cells::map(|row| {
                Ok(PastEvent {
                    seq: row.get(1)?.unwrap_or_default(),
                    mirror: row.get(2)?.unwrap_or_default(),
                    row_id: row.get(3)?.unwrap_or_default(),
                    origin: row.get(4)?.unwrap_or_default(),
                    source: row.get(5)?.unwrap_or_default(),
                    at: row.get(6)?.unwrap_or_default(),
                    fields: row.get(7)?.unwrap_or_default(),
                    olds: row.get(8)?.unwrap_or_default(),
                    news: row.get(9)?.unwrap_or_default(),
                    unknown: row.get(10)?.unwrap_or_default(),
                    decision: row.get(11)?,
                    carried: row.get(12)?,
                    kind: row.get(13)?.unwrap_or_default(),
                    score: row.get::<i32>(14)?.and_then(|s| u16::try_from(s).ok()),
                })
            })?;
            if piece.is_empty() {
                return Ok(());
            }
            take(piece)?;
        }
    })
}
