//! Inbound bookkeeping: offsets, deferred and poison events, backfill, usage.

use std::cell::Cell;

use super::spi::{self, Result};
use crate::pg::image;

/// A stream's row and its offset.
#[derive(Clone, Debug)]
pub(crate) struct StreamRow {
    pub(crate) id: i32,
    pub(crate) replay_id: Option<Vec<u8>>,
    pub(crate) modified_at: Option<i64>,
}

/// The stream's row, made if it is not there.
pub(crate) fn stream(server: &str, kind: &str, object: &str) -> Result<Option<StreamRow>> {
    let rows = spi::write_rows(
        "INSERT INTO crm.stream (server, kind, object) VALUES ($1, $2, $3) \
         ON CONFLICT (server, kind, object) DO UPDATE SET kind = excluded.kind \
         RETURNING id, replay_id, modified_at",
        &[server.into(), kind.into(), object.into()],
        |row| {
            Ok(StreamRow {
                id: row.get(1)?.unwrap_or_default(),
                replay_id: row.get(2)?,
                modified_at: row.get(3)?,
            })
        },
    )?;
    Ok(rows.into_iter().next())
}

/// What a batch did to a stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Advance {
    pub(crate) replay_id: Option<Vec<u8>>,
    pub(crate) modified_at: Option<i64>,
    pub(crate) record_id: Option<String>,
    pub(crate) events: i64,
    pub(crate) duplicates: i64,
    pub(crate) rejected: i64,
    /// What is to be noted of what was rejected.
    pub(crate) trouble: Option<String>,
}

/// Moves a stream's offset, in the transaction that applied what it covers.
pub(crate) fn advance(id: i32, to: Advance) -> Result<usize> {
    spi::write(
        "UPDATE crm.stream SET replay_id = coalesce($2, replay_id), modified_at = coalesce($3, modified_at), \
         record_id = CASE WHEN $3 IS NULL THEN record_id ELSE $4 END, events = events + $5, duplicates = duplicates + $6, \
         rejected = rejected + $7, last_event_at = CASE WHEN $5 > 0 THEN now() ELSE last_event_at END, \
         last_ok_at = CASE WHEN $7 = 0 THEN now() ELSE last_ok_at END, state = CASE WHEN $7 = 0 THEN 'running' ELSE state END, \
         last_error = coalesce($8, last_error), last_error_at = CASE WHEN $8 IS NULL THEN last_error_at ELSE now() END \
         WHERE id = $1",
        &[
            id.into(),
            to.replay_id.into(),
            to.modified_at.into(),
            to.record_id.into(),
            to.events.into(),
            to.duplicates.into(),
            to.rejected.into(),
            to.trouble.into(),
        ],
    )
}

/// Notes a stream's trouble.
pub(crate) fn stream_error(id: i32, state: &str, error: &str) -> Result<usize> {
    spi::write(
        "UPDATE crm.stream SET state = $2, last_error = $3, last_error_at = now() WHERE id = $1",
        &[id.into(), state.into(), error.into()],
    )
}

/// Forgets an offset that the CRM no longer accepts.
pub(crate) fn forget_replay(id: i32) -> Result<usize> {
    spi::write(
        "UPDATE crm.stream SET replay_id = NULL WHERE id = $1",
        &[id.into()],
    )
}

/// Notes a server's trouble, or that it is gone (`None`).
pub(crate) fn server_error(server: &str, error: Option<(&str, &str)>) -> Result<usize> {
    match error {
        Some((message, advice)) => spi::write(
            "UPDATE crm.server_state SET last_error = $2, advice = $3, last_error_at = now() \
             WHERE server = $1 AND last_error IS DISTINCT FROM $2",
            &[server.into(), message.into(), advice.into()],
        ),
        None => {
            // Nearly always there is none, and a look takes no transaction id.
            let sql = "SELECT FROM crm.server_state WHERE server = $1 AND last_error IS NOT NULL";
            if spi::read_rows(sql, &[server.into()], |_| Ok(()))?.is_empty() {
                return Ok(0);
            }
            spi::write(
                "UPDATE crm.server_state SET last_error = NULL, last_error_at = NULL, advice = NULL WHERE server = $1 AND last_error IS NOT NULL",
                &[server.into()],
            )
        }
    }
}

/// Writes that wait because a server did not answer go on at once: it does again.
pub(crate) fn end_outage(server: &str) -> Result<usize> {
    spi::write(
        "UPDATE crm.write w SET not_before = NULL FROM crm.mirror m WHERE m.server = $1 AND w.mirror = m.id \
         AND w.state IN ('queued', 'unknown') AND w.error_class = 'retry' AND w.not_before > now()",
        &[server.into()],
    )
}

/// An event that waits.
#[derive(Clone, Debug)]
pub(crate) struct DeferredRow {
    pub(crate) id: i64,
    pub(crate) mirror: i32,
    pub(crate) record_id: String,
    pub(crate) source: String,
    /// The stream that brings events of this source.
    pub(crate) stream: Option<i32>,
    /// [`crm_core::model::Change`] as JSON.
    pub(crate) change: String,
}

/// An event that must wait.
#[derive(Clone, Debug)]
pub(crate) struct Wait {
    /// Its row of `crm.deferred`, if it waits there already.
    pub(crate) id: Option<i64>,
    pub(crate) mirror: i32,
    pub(crate) record: String,
    pub(crate) source: String,
    /// [`crm_core::model::Change`] as JSON.
    pub(crate) change: String,
    /// `locked` or `read`.
    pub(crate) reason: &'static str,
}

thread_local! {
    /// Whether anything was stored in `crm.deferred` since it was last looked at.
    static DEFERRED: Cell<bool> = const { Cell::new(false) };
}

/// Whether events were told to wait since the last call: somebody must look.
pub(crate) fn take_deferred() -> bool {
    DEFERRED.take()
}

/// Stores events that wait. Those that waited before keep their place and their
/// number, by which people ask about them.
pub(crate) fn defer(events: Vec<Wait>) -> Result<usize> {
    if events.is_empty() {
        return Ok(0);
    }
    let (again, new): (Vec<Wait>, Vec<Wait>) = events.into_iter().partition(|w| w.id.is_some());
    let reads: Vec<i64> = again
        .iter()
        .filter(|w| w.reason == "read")
        .filter_map(|w| w.id)
        .collect();
    if !reads.is_empty() {
        spi::write(
            "UPDATE crm.deferred SET reason = 'read' WHERE id = ANY($1) AND reason <> 'read'",
            &[reads.into()],
        )?;
    }
    DEFERRED.set(true);
    if new.is_empty() {
        return Ok(0);
    }
    let mut cols = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for wait in new {
        cols.0.push(wait.mirror);
        cols.1.push(wait.record);
        cols.2.push(wait.source);
        cols.3.push(wait.change);
        cols.4.push(wait.reason);
    }
    spi::write(
        "INSERT INTO crm.deferred (mirror, record_id, source, change, reason) \
         SELECT v.mirror, v.record_id, v.source, v.change::jsonb, v.reason \
         FROM unnest($1::int[], $2::text[], $3::text[], $4::text[], $5::text[]) AS v(mirror, record_id, source, change, reason)",
        &[
            cols.0.into(),
            cols.1.into(),
            cols.2.into(),
            cols.3.into(),
            cols.4.into(),
        ],
    )
}

const DEFERRED_ROW: &str = "SELECT d.id, d.mirror, d.record_id, d.source, d.change::text, (SELECT s.id FROM crm.stream s JOIN crm.mirror m \
     ON m.id = d.mirror WHERE s.server = m.server AND s.kind = d.source \
     AND s.object = CASE WHEN d.source IN ('webhook', 'journal') THEN '' ELSE m.object END) FROM crm.deferred d";

fn deferred_row(row: &super::cells::Cells) -> Result<DeferredRow> {
    Ok(DeferredRow {
        id: row.get(1)?.unwrap_or_default(),
        mirror: row.get(2)?.unwrap_or_default(),
        record_id: row.get(3)?.unwrap_or_default(),
        source: row.get(4)?.unwrap_or_default(),
        change: row.get(5)?.unwrap_or_default(),
        stream: row.get(6)?,
    })
}

/// The oldest waiting events of a kind.
pub(crate) fn deferred(reason: &str, limit: i64) -> Result<Vec<DeferredRow>> {
    let sql = format!("{DEFERRED_ROW} WHERE d.reason = $1 ORDER BY d.id LIMIT $2");
    spi::write_rows(&sql, &[reason.into(), limit.into()], deferred_row)
}

/// What waits for these records to be read.
pub(crate) fn unread(mirror: i32, records: Vec<String>) -> Result<Vec<DeferredRow>> {
    let of = "d.mirror = $1 AND d.record_id = ANY($2) AND d.reason = 'read'";
    let sql = format!("{DEFERRED_ROW} WHERE {of} ORDER BY d.id");
    spi::write_rows(&sql, &[mirror.into(), image::texts(&records)], deferred_row)
}

/// Takes what waited for these records to be read when that was asked for.
pub(crate) fn take_unread(
    mirror: i32,
    records: Vec<String>,
    read_for: i64,
) -> Result<Vec<DeferredRow>> {
    let mut taken = unread(mirror, records)?;
    taken.retain(|event| event.id <= read_for);
    undefer(taken.iter().map(|event| event.id).collect())?;
    Ok(taken)
}

/// Which of these records have an event waiting. Events that are taken up again
/// wait only behind earlier ones: `taken` are their numbers.
pub(crate) fn waiting(mirror: i32, records: Vec<String>, taken: Vec<i64>) -> Result<Vec<String>> {
    spi::write_rows(
        "SELECT DISTINCT record_id FROM crm.deferred WHERE EXISTS (SELECT FROM crm.deferred) \
         AND mirror = $1 AND record_id = ANY($2) AND id <> ALL ($3) \
         AND id < coalesce((SELECT max(t) FROM unnest($3) t), 9223372036854775807)",
        &[mirror.into(), image::texts(&records), taken.into()],
        |row| Ok(row.get::<String>(1)?.unwrap_or_default()),
    )
}

/// Removes events that wait no longer.
pub(crate) fn undefer(ids: Vec<i64>) -> Result<usize> {
    spi::write("DELETE FROM crm.deferred WHERE id = ANY($1)", &[ids.into()])
}

/// An event that could not be applied.
#[derive(Clone, Debug)]
pub(crate) struct Poison<'a> {
    pub(crate) mirror: Option<i32>,
    pub(crate) server: &'a str,
    pub(crate) source: &'a str,
    pub(crate) record_id: &'a str,
    pub(crate) change: Option<String>,
    pub(crate) sqlstate: &'a str,
    pub(crate) error: &'a str,
    pub(crate) advice: &'a str,
}

/// Parks it.
pub(crate) fn park(poison: &Poison<'_>) -> Result<usize> {
    // A record that every poll shows again is parked once.
    spi::write(
        "INSERT INTO crm.poison (mirror, server, source, record_id, change, sqlstate, error, advice) \
         SELECT $1, $2, $3, $4, $5::jsonb, $6, $7, $8 WHERE NOT EXISTS (SELECT FROM crm.poison p \
         WHERE p.mirror = $1 AND p.record_id = $4 AND p.sqlstate = $6 AND p.error = $7)",
        &[
            poison.mirror.into(),
            poison.server.into(),
            poison.source.into(),
            poison.record_id.into(),
            poison.change.clone().into(),
            poison.sqlstate.into(),
            poison.error.into(),
            poison.advice.into(),
        ],
    )
}

/// Parks values that their type cannot hold: record, field, text; the rest of
/// the records applies. Of one field at most 1,000 wait at a time.
pub(crate) fn park_values(
    mirror: i32,
    server: &str,
    source: &str,
    values: &[(String, String, String)],
) -> Result<usize> {
    if values.is_empty() {
        return Ok(0);
    }
    let column = |f: fn(&(String, String, String)) -> &String| {
        values.iter().map(|v| f(v).clone()).collect::<Vec<_>>()
    };
    spi::write(
        "WITH known AS (SELECT p.record_id, p.change ->> 'field' AS field, p.change ->> 'text' AS text FROM crm.poison p \
           WHERE p.mirror = $1 AND p.change ? 'text'), \
         full_up AS (SELECT field FROM known GROUP BY 1 HAVING count(*) >= 1000) \
         INSERT INTO crm.poison (mirror, server, source, record_id, change, sqlstate, error, advice) \
         SELECT $1, $2, $3, v.id, jsonb_build_object('field', v.field, 'text', v.text), '22P02', \
           format('field %s holds %L, which is no %s', v.field, left(v.text, 100), coalesce(c.field_type, 'value of its type')), \
           'The rest of the record was applied; this column keeps what it held. Correct the value in the CRM, then crm.dead_letter_retry(direction => ''in'').' \
         FROM unnest($4::text[], $5::text[], $6::text[]) AS v(id, field, text) \
         LEFT JOIN crm.mirror_column c ON c.mirror = $1 AND c.field = v.field \
         WHERE NOT EXISTS (SELECT FROM known k WHERE (k.record_id, k.field, k.text) = (v.id, v.field, v.text)) \
         AND v.field NOT IN (SELECT f.field FROM full_up f)",
        &[
            mirror.into(),
            server.into(),
            source.into(),
            column(|v| &v.0).into(),
            column(|v| &v.1).into(),
            column(|v| &v.2).into(),
        ],
    )
}

/// A webhook taken by `crm.webhook()`.
#[derive(Clone, Debug)]
pub(crate) struct QueuedWebhook {
    pub(crate) id: i64,
    pub(crate) server: String,
    pub(crate) method: String,
    pub(crate) uri: String,
    pub(crate) headers: String,
    pub(crate) body: Vec<u8>,
    /// Milliseconds since 1970: signatures are judged by the time of arrival.
    pub(crate) received_at: i64,
}

/// The oldest queued webhooks; they leave with [`drop_webhooks`], in the
/// transaction that applies what they say.
pub(crate) fn webhooks(limit: i64) -> Result<Vec<QueuedWebhook>> {
    spi::write_rows(
        "SELECT id, server, method, uri, headers::text, body, (extract(epoch FROM received_at) * 1000)::bigint \
         FROM crm.webhook_queue ORDER BY id LIMIT $1",
        &[limit.into()],
        |row| {
            Ok(QueuedWebhook {
                id: row.get(1)?.unwrap_or_default(),
                server: row.get(2)?.unwrap_or_default(),
                method: row.get(3)?.unwrap_or_default(),
                uri: row.get(4)?.unwrap_or_default(),
                headers: row.get(5)?.unwrap_or_default(),
                body: row.get(6)?.unwrap_or_default(),
                received_at: row.get(7)?.unwrap_or_default(),
            })
        },
    )
}

/// A first copy that is not finished.
#[derive(Clone, Debug)]
pub(crate) struct BackfillRow {
    pub(crate) mirror: i32,
    pub(crate) cursor: Option<String>,
    pub(crate) started: bool,
}

/// First copies that are not finished.
pub(crate) fn backfills() -> Result<Vec<BackfillRow>> {
    spi::write_rows(
        "SELECT mirror, cursor, started_at IS NOT NULL FROM crm.backfill WHERE state IN ('waiting', 'running') ORDER BY mirror",
        &[],
        |row| {
            Ok(BackfillRow {
                mirror: row.get(1)?.unwrap_or_default(),
                cursor: row.get(2)?,
                started: row.get(3)?.unwrap_or_default(),
            })
        },
    )
}

/// Starts one, with the number of records if the CRM told.
pub(crate) fn backfill_started(mirror: i32, total: Option<i64>) -> Result<usize> {
    spi::write(
        "UPDATE crm.backfill SET state = 'running', started_at = coalesce(started_at, now()), total = coalesce($2, total) WHERE mirror = $1",
        &[mirror.into(), total.into()],
    )
}

/// Moves it by a page, in the page's transaction.
pub(crate) fn backfill_advance(mirror: i32, cursor: Option<String>, rows: i64) -> Result<usize> {
    spi::write(
        "UPDATE crm.backfill SET cursor = $2, done = done + $3, error = NULL, \
         state = CASE WHEN $2 IS NULL THEN 'done' ELSE 'running' END, \
         finished_at = CASE WHEN $2 IS NULL THEN now() END WHERE mirror = $1",
        &[mirror.into(), cursor.into(), rows.into()],
    )
}

/// Notes its trouble; it goes on from its cursor.
pub(crate) fn backfill_error(mirror: i32, error: &str) -> Result<usize> {
    spi::write(
        "UPDATE crm.backfill SET error = $2 WHERE mirror = $1",
        &[mirror.into(), error.into()],
    )
}

/// Removes what nobody needs any more: settled field states.
pub(crate) fn purge() -> Result<usize> {
    let states = spi::write(
        "DELETE FROM crm.field_state s WHERE s.at < now() - interval '72 hours' AND NOT EXISTS \
         (SELECT 1 FROM crm.write w WHERE w.entity = s.entity) AND NOT EXISTS \
         (SELECT 1 FROM crm.review_item r WHERE r.entity = s.entity)",
        &[],
    )?;
    Ok(states)
}

/// Starts a first copy over: the CRM could not say what changed.
pub(crate) fn backfill_restart(mirror: i32) -> Result<usize> {
    spi::write(
        "UPDATE crm.backfill SET state = 'waiting', cursor = NULL, done = 0, started_at = NULL, finished_at = NULL WHERE mirror = $1",
        &[mirror.into()],
    )
}

/// Makes the next poll of an object look from this time on, if it would look from a later one.
pub(crate) fn poll_again(server: &str, object: &str, since: i64) -> Result<usize> {
    spi::write(
        "INSERT INTO crm.stream AS s (server, kind, object, modified_at) VALUES ($1, 'poll', $2, $3) \
         ON CONFLICT (server, kind, object) DO UPDATE SET modified_at = least(s.modified_at, excluded.modified_at), record_id = NULL",
        &[server.into(), object.into(), since.into()],
    )
}

/// Removes what waited for these records to be read when that was asked for, up
/// to that number; the records for which more came since.
pub(crate) fn undefer_records(
    mirror: i32,
    records: Vec<String>,
    read_for: i64,
) -> Result<Vec<String>> {
    spi::write_rows(
        "WITH done AS (DELETE FROM crm.deferred WHERE mirror = $1 AND record_id = ANY($2) AND reason = 'read' AND id <= $3) \
         SELECT DISTINCT record_id FROM crm.deferred WHERE mirror = $1 AND record_id = ANY($2) AND reason = 'read' AND id > $3",
        &[mirror.into(), records.into(), read_for.into()],
        |row| Ok(row.get::<String>(1)?.unwrap_or_default()),
    )
}

impl QueuedWebhook {
    /// Server, delivery and time of arrival.
    pub(crate) fn open(self) -> (String, crm_core::http::Delivery, i64) {
        let headers: std::collections::BTreeMap<String, String> =
            serde_json::from_str(&self.headers).unwrap_or_default();
        let delivery = crm_core::http::Delivery {
            method: self.method.to_uppercase(),
            uri: self.uri,
            headers: headers
                .into_iter()
                .map(|(k, v)| (k.to_lowercase(), v))
                .collect(),
            body: self.body,
        };
        (self.server, delivery, self.received_at)
    }
}

/// Removes webhooks that were applied or refused.
pub(crate) fn drop_webhooks(ids: Vec<i64>) -> Result<usize> {
    if ids.is_empty() {
        return Ok(0);
    }
    spi::write(
        "DELETE FROM crm.webhook_queue WHERE id = ANY($1)",
        &[ids.into()],
    )
}
