//! Replays: what a stream brought, decided again.

use super::spi::{self, Result};

/// A replay under way.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) id: i64,
    pub(crate) stream: i32,
    pub(crate) next_seq: i64,
    pub(crate) to_seq: i64,
}

/// An event of it.
#[derive(Clone, Debug)]
pub(crate) struct Replayed {
    pub(crate) seq: i64,
    pub(crate) mirror: i32,
    pub(crate) record_id: String,
    pub(crate) kind: String,
    /// Milliseconds since 1970.
    pub(crate) occurred_at: i64,
    pub(crate) actor: String,
    /// The program, as far as the CRM told.
    pub(crate) application: String,
    /// Values that the event carried.
    pub(crate) carried: i32,
    /// Fields and values of which nothing newer is known.
    pub(crate) fields: Vec<(String, Option<String>)>,
}

/// What a batch came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) events: i64,
    pub(crate) unchanged: i64,
    pub(crate) put_off: i64,
    pub(crate) failed: i64,
}

/// The replay that was asked for first and is not done.
pub(crate) fn running() -> Result<Option<Run>> {
    let runs = spi::write_rows(
        "SELECT id, stream, next_seq, to_seq FROM crm.replay_run WHERE state = 'running' ORDER BY id LIMIT 1",
        &[],
        |row| {
            Ok(Run {
                id: row.get(1)?.unwrap_or_default(),
                stream: row.get(2)?.unwrap_or_default(),
                next_seq: row.get(3)?.unwrap_or_default(),
                to_seq: row.get(4)?.unwrap_or_default(),
            })
        },
    )?;
    Ok(runs.into_iter().next())
}

/// Its next events up to number `to`, at most `limit`.
pub(crate) fn batch(run: &Run, to: i64, limit: i32) -> Result<Vec<Replayed>> {
    spi::write_rows(
        "SELECT seq, mirror, record_id, kind, occurred_at, actor, application, carried, fields, new_values \
         FROM crm._replay_batch($1, $2, $3, $4)",
        &[
            run.stream.into(),
            run.next_seq.into(),
            to.into(),
            limit.into(),
        ],
        |row| {
            let names: Vec<String> = row.get(9)?.unwrap_or_default();
            let values: Vec<Option<String>> = row.get(10)?.unwrap_or_default();
            Ok(Replayed {
                seq: row.get(1)?.unwrap_or_default(),
                mirror: row.get(2)?.unwrap_or_default(),
                record_id: row.get(3)?.unwrap_or_default(),
                kind: row.get(4)?.unwrap_or_default(),
                occurred_at: row.get(5)?.unwrap_or_default(),
                actor: row.get(6)?.unwrap_or_default(),
                application: row.get(7)?.unwrap_or_default(),
                carried: row.get(8)?.unwrap_or_default(),
                fields: names.into_iter().zip(values).collect(),
            })
        },
    )
}

/// Moves a replay, in the transaction that decided what it passes.
pub(crate) fn advance(run: &Run, next: i64, counts: Counts) -> Result<usize> {
    let changed = counts.events - counts.unchanged - counts.put_off - counts.failed;
    spi::write(
        "UPDATE crm.replay_run SET next_seq = $2, events = events + $3, changed = changed + $4, unchanged = unchanged + $5, \
         put_off = put_off + $6, failed = failed + $7, state = CASE WHEN $2 > to_seq THEN 'done' ELSE state END, \
         finished_at = CASE WHEN $2 > to_seq THEN clock_timestamp() END WHERE id = $1",
        &[
            run.id.into(),
            next.into(),
            counts.events.into(),
            changed.max(0).into(),
            counts.unchanged.into(),
            counts.put_off.into(),
            counts.failed.into(),
        ],
    )
}
