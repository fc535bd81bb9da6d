//! Outgoing writes: queue, claim, record.

use super::causes;
use super::spi::{self, Result};
use crate::pg::image;

/// A write to queue. Values are a JSON object of field names to text or null.
#[derive(Clone, Debug)]
pub(crate) struct NewWrite {
    pub(crate) mirror: i32,
    pub(crate) row_id: i64,
    pub(crate) entity: Option<i64>,
    pub(crate) kind: &'static str,
    pub(crate) record_id: Option<String>,
    pub(crate) vals: String,
    pub(crate) old_vals: String,
    pub(crate) origin: String,
    /// `queued`, `held` or `would_send`.
    pub(crate) state: &'static str,
    /// The user transactions that caused it, if any did.
    pub(crate) txs: Vec<i64>,
}

/// A write taken for sending, or pending.
#[derive(Clone, Debug)]
pub(crate) struct WriteRow {
    pub(crate) id: i64,
    pub(crate) row_id: i64,
    pub(crate) entity: Option<i64>,
    pub(crate) kind: String,
    pub(crate) record_id: Option<String>,
    pub(crate) vals: String,
    pub(crate) state: String,
    pub(crate) attempts: i32,
    /// Milliseconds since 1970; 0 if never claimed.
    pub(crate) claimed_at: i64,
    pub(crate) mirror: i32,
    /// Who wrote the values that it carries.
    pub(crate) origin: String,
    /// Sent only if the record did not change since, in milliseconds since 1970.
    pub(crate) unchanged_since: Option<i64>,
}

pub(super) const COLUMNS: &str = "w.id, w.row_id, w.entity, w.kind, w.record_id, w.vals::text, w.state, w.attempts, coalesce((extract(epoch FROM w.claimed_at) * 1000)::bigint, 0), w.mirror, w.origin";

pub(super) fn row(row: &super::cells::Cells) -> Result<WriteRow> {
    Ok(WriteRow {
        id: row.get(1)?.unwrap_or_default(),
        row_id: row.get(2)?.unwrap_or_default(),
        entity: row.get(3)?,
        kind: row.get(4)?.unwrap_or_default(),
        record_id: row.get(5)?,
        vals: row.get(6)?.unwrap_or_default(),
        state: row.get(7)?.unwrap_or_default(),
        attempts: row.get(8)?.unwrap_or_default(),
        claimed_at: row.get(9)?.unwrap_or_default(),
        mirror: row.get(10)?.unwrap_or_default(),
        origin: row.get(11)?.unwrap_or_default(),
        unchanged_since: None,
    })
}

const GIVEN: &str = "SELECT v.mirror, v.row_id, v.entity, v.kind, v.record_id, v.vals::jsonb AS vals, \
     v.olds::jsonb AS olds, v.origin, v.state, v.txs::bigint[] AS txs FROM unnest($1::int[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], \
     $9::text[], $10::text[]) AS v(mirror, row_id, entity, kind, record_id, vals, olds, origin, state, txs)";

/// A PostgreSQL array literal; arrays of arrays have no SPI argument type.
fn numbers(list: &[i64]) -> String {
    let list: Vec<String> = list.iter().map(i64::to_string).collect();
    format!("{{{}}}", list.join(","))
}

fn enqueue_sql() -> String {
    let causes = causes::and("v.txs");
    format!(
        "WITH v AS MATERIALIZED ({GIVEN}), \
         dropped AS (DELETE FROM crm.write w USING v WHERE v.kind = 'delete' AND w.mirror = v.mirror AND w.row_id = v.row_id \
           AND w.state IN ('queued', 'held', 'would_send', 'dead') RETURNING w.mirror, w.row_id, w.kind), \
         hit AS MATERIALIZED (SELECT v.*, (SELECT max(o.id) FROM crm.write o WHERE o.mirror = v.mirror \
           AND o.row_id = v.row_id AND o.kind <> 'delete' AND o.state IN ('dead', v.state)) AS id \
           FROM v WHERE v.kind = 'update'), \
         older AS MATERIALIZED (SELECT o.id, o.vals - k.names AS rest, k.names \
           FROM (SELECT ARRAY(SELECT jsonb_object_keys(v.vals)) AS names, (SELECT max(o.id) FROM crm.write o \
             WHERE o.mirror = v.mirror AND o.row_id = v.row_id AND o.kind = 'update' AND o.state IN ('held', 'would_send')) AS id \
             FROM v WHERE v.kind = 'update' AND v.state = 'queued') k JOIN crm.write o ON o.id = k.id), \
         outdone AS (DELETE FROM crm.write w USING older o WHERE w.id = o.id AND o.rest = '{{}}'), \
         cut AS (UPDATE crm.write w SET vals = o.rest, old_vals = w.old_vals - o.names FROM older o \
           WHERE w.id = o.id AND o.rest <> '{{}}'), \
         joined AS (UPDATE crm.write w SET vals = w.vals || v.vals, old_vals = v.olds || w.old_vals, txs = {causes}, \
           state = CASE WHEN w.state = 'dead' THEN v.state ELSE w.state END, \
           attempts = CASE WHEN w.state = 'dead' THEN 0 ELSE w.attempts END, \
           not_before = NULL, error = NULL, error_code = NULL, error_class = NULL, advice = NULL \
           FROM hit v WHERE w.id = v.id \
           RETURNING w.mirror, w.row_id) \
         INSERT INTO crm.write (mirror, row_id, entity, kind, record_id, vals, old_vals, origin, state, txs) \
         SELECT v.mirror, v.row_id, v.entity, v.kind, v.record_id, v.vals, v.olds, v.origin, v.state, v.txs FROM v \
         WHERE NOT EXISTS (SELECT 1 FROM joined j WHERE j.mirror = v.mirror AND j.row_id = v.row_id) \
         AND NOT (v.kind = 'delete' AND v.record_id IS NULL AND EXISTS \
           (SELECT 1 FROM dropped d WHERE d.mirror = v.mirror AND d.row_id = v.row_id AND d.kind = 'create'))"
    )
}

/// Queues writes, at most one per record in a call. An update joins a write of
/// the record that has not been sent, or that died (editing a record is how a
/// user repairs it); a delete replaces unsent ones, and an unsent create with it.
/// Of what is held or only shown, an update to be sent takes the place field by
/// field: it was decided later.
///
/// Scalar subqueries, here and in [`claim`], go by the index whatever the
/// planner believes of a table that is now empty and now full.
pub(crate) fn enqueue(writes: Vec<NewWrite>) -> Result<()> {
    if writes.is_empty() {
        return Ok(());
    }
    let n = writes.len();
    let (mut mirror, mut row_id, mut entity) = (
        Vec::with_capacity(n),
        Vec::with_capacity(n),
        Vec::with_capacity(n),
    );
    let (mut kind, mut record_id, mut vals) = (
        Vec::with_capacity(n),
        Vec::with_capacity(n),
        Vec::with_capacity(n),
    );
    let (mut olds, mut origin, mut state, mut txs) = (
        Vec::with_capacity(n),
        Vec::with_capacity(n),
        Vec::with_capacity(n),
        Vec::with_capacity(n),
    );
    for w in writes {
        mirror.push(w.mirror);
        row_id.push(w.row_id);
        entity.push(w.entity);
        kind.push(w.kind);
        record_id.push(w.record_id);
        vals.push(w.vals);
        olds.push(w.old_vals);
        origin.push(w.origin);
        state.push(w.state);
        txs.push(numbers(&w.txs));
    }
    spi::write(
        &enqueue_sql(),
        &[
            mirror.into(),
            row_id.into(),
            entity.into(),
            kind.into(),
            record_id.into(),
            vals.into(),
            olds.into(),
            origin.into(),
            state.into(),
            txs.into(),
        ],
    )?;
    Ok(())
}

/// Takes up to `limit` writes of a mirror for sending, oldest first, one per
/// record, none whose record has an earlier unfinished one. What is held blocks
/// only if the record is not made yet: the fields of held updates are others.
pub(crate) fn claim(mirror: i32, limit: i64) -> Result<Vec<WriteRow>> {
    let sql = format!(
        "UPDATE crm.write w SET state = 'in_flight', job = NULL, claimed_at = clock_timestamp(), attempts = w.attempts + 1 \
         WHERE w.id IN (SELECT q.id FROM crm.write q WHERE q.mirror = $1 AND q.state = 'queued' \
           AND (q.not_before IS NULL OR q.not_before <= now()) \
           AND q.id = (SELECT min(e.id) FROM crm.write e WHERE e.mirror = q.mirror AND e.row_id = q.row_id \
             AND (e.state IN ('in_flight', 'unknown', 'queued') OR e.state = 'held' AND e.kind = 'create')) ORDER BY q.id LIMIT $2) \
         RETURNING {COLUMNS}"
    );
    // A claim must survive a crash: without it the write would be sent again as
    // if it never had been.
    crate::pg::wal::await_disk();
    let mut rows = spi::write_rows(&sql, &[mirror.into(), limit.into()], row)?;
    rows.sort_by_key(|w| w.id);
    Ok(rows)
}

/// Mirrors that have a write ready or becoming ready: `(mirror, ms until the first is ready)`.
/// Rounded up: who looks too early claims nothing and waits for another cause.
pub(crate) fn ready() -> Result<Vec<(i32, i64)>> {
    spi::read_rows(
        "SELECT m.id, (SELECT coalesce(greatest(0, ceil(extract(epoch FROM min(coalesce(w.not_before, now())) - now()) * 1000)), 0)::bigint \
           FROM (SELECT q.not_before FROM crm.write q WHERE q.mirror = m.id AND q.state = 'queued' ORDER BY q.id LIMIT 200) w) \
         FROM crm.mirror m WHERE EXISTS (SELECT 1 FROM crm.write q WHERE q.mirror = m.id AND q.state = 'queued')",
        &[],
        |row| {
            Ok((
                row.get(1)?.unwrap_or_default(),
                row.get(2)?.unwrap_or_default(),
            ))
        },
    )
}

/// Unfinished writes of these rows.
pub(crate) fn pending(mirrors: Vec<i32>, row_ids: Vec<i64>) -> Result<Vec<WriteRow>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM unnest($1::int[], $2::bigint[]) AS v(mirror, row_id) \
         JOIN crm.write w ON w.mirror = v.mirror AND w.row_id = v.row_id ORDER BY w.id"
    );
    spi::write_rows(&sql, &[mirrors.into(), row_ids.into()], row)
}

/// Of these records, those whose removal waits, and the rows that they had.
pub(crate) fn removals(mirror: i32, records: &[String]) -> Result<Vec<(String, i64)>> {
    spi::write_rows(
        "SELECT w.record_id, w.row_id FROM crm.write w WHERE w.mirror = $1 AND w.kind = 'delete' \
         AND w.record_id = ANY($2) AND w.state <> 'dead'",
        &[mirror.into(), image::texts(records)],
        |row| {
            let record = row.get::<String>(1)?.unwrap_or_default();
            Ok((record, row.get(2)?.unwrap_or_default()))
        },
    )
}

/// After a restart nobody knows what became of writes that were in flight,
/// unless a job can be asked.
pub(crate) fn in_flight_to_unknown() -> Result<usize> {
    spi::write(
        "UPDATE crm.write SET state = 'unknown' WHERE state = 'in_flight' AND job IS NULL",
        &[],
    )
}

/// Removes finished writes; those that were still there. One whose row was
/// erased meanwhile is gone, and leaves no trace.
pub(crate) fn finish(ids: Vec<i64>) -> Result<Vec<i64>> {
    spi::write_rows(
        "DELETE FROM crm.write WHERE id = ANY($1) RETURNING id",
        &[ids.into()],
        |row| Ok(row.get::<i64>(1)?.unwrap_or_default()),
    )
}

/// Tells waiting writes of a record its CRM id. A create whose answer is awaited has
/// done its work: as an update it would undo what somebody has changed since.
pub(crate) fn set_record_ids(mirror: i32, row_ids: Vec<i64>, ids: Vec<String>) -> Result<usize> {
    spi::write(
        "UPDATE crm.write w SET record_id = v.id, kind = CASE WHEN w.kind = 'create' AND w.state NOT IN ('in_flight', 'unknown') THEN 'update' ELSE w.kind END \
         FROM unnest($2::bigint[], $3::text[]) AS v(row_id, id) \
         WHERE w.mirror = $1 AND w.row_id = v.row_id AND w.record_id IS NULL",
        &[mirror.into(), row_ids.into(), ids.into()],
    )
}

/// What becomes of a write that did not succeed.
#[derive(Clone, Debug)]
pub(crate) struct Setback {
    pub(crate) id: i64,
    /// `queued`, `unknown`, `dead` or `held`.
    pub(crate) state: &'static str,
    pub(crate) wait_ms: i64,
    pub(crate) status: i32,
    pub(crate) class: String,
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) advice: String,
}

/// Records setbacks.
pub(crate) fn set_back(setbacks: &[Setback]) -> Result<usize> {
    if setbacks.is_empty() {
        return Ok(0);
    }
    let column = |f: fn(&Setback) -> String| setbacks.iter().map(f).collect::<Vec<_>>();
    let ids: Vec<i64> = setbacks.iter().map(|s| s.id).collect();
    let waits: Vec<i64> = setbacks.iter().map(|s| s.wait_ms).collect();
    let statuses: Vec<i32> = setbacks.iter().map(|s| s.status).collect();
    spi::write(
        "UPDATE crm.write w SET state = v.state, not_before = now() + v.wait * interval '1 millisecond', status = v.status, \
         error_class = v.class, error_code = v.code, error = v.message, advice = v.advice \
         FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::int[], $5::text[], $6::text[], $7::text[], $8::text[]) \
         AS v(id, state, wait, status, class, code, message, advice) WHERE w.id = v.id",
        &[
            ids.into(),
            column(|s| s.state.to_owned()).into(),
            waits.into(),
            statuses.into(),
            column(|s| s.class.clone()).into(),
            column(|s| s.code.clone()).into(),
            column(|s| s.message.clone()).into(),
            column(|s| s.advice.clone()).into(),
        ],
    )
}

/// Takes fields out of unsent writes: `(mirror, row, field)`; a write left empty goes.
pub(crate) fn cancel(cells: Vec<(i32, i64, String)>) -> Result<()> {
    if cells.is_empty() {
        return Ok(());
    }
    let mut mirrors = Vec::with_capacity(cells.len());
    let mut rows = Vec::with_capacity(cells.len());
    let mut fields = Vec::with_capacity(cells.len());
    for (mirror, row, field) in cells {
        mirrors.push(mirror);
        rows.push(row);
        fields.push(field);
    }
    spi::write(
        "UPDATE crm.write w SET vals = w.vals - v.fields, old_vals = w.old_vals - v.fields \
         FROM (SELECT mirror, row_id, array_agg(field) AS fields FROM unnest($1::int[], $2::bigint[], $3::text[]) \
           AS c(mirror, row_id, field) GROUP BY 1, 2) v \
         WHERE w.mirror = v.mirror AND w.row_id = v.row_id AND w.kind = 'update' AND w.state IN ('queued', 'held', 'would_send', 'dead')",
        &[mirrors.clone().into(), rows.clone().into(), fields.into()],
    )?;
    spi::write(
        "DELETE FROM crm.write w USING unnest($1::int[], $2::bigint[]) AS v(mirror, row_id) \
         WHERE w.mirror = v.mirror AND w.row_id = v.row_id AND w.kind = 'update' AND w.vals = '{}' \
         AND w.state IN ('queued', 'held', 'would_send', 'dead')",
        &[mirrors.into(), rows.into()],
    )?;
    Ok(())
}

/// Takes fields out of updates: `(write, field)`; one left empty goes.
pub(crate) fn take_out(cells: Vec<(i64, String)>) -> Result<()> {
    if cells.is_empty() {
        return Ok(());
    }
    let (ids, fields): (Vec<i64>, Vec<String>) = cells.into_iter().unzip();
    spi::write(
        "UPDATE crm.write w SET vals = w.vals - v.fields, old_vals = w.old_vals - v.fields \
         FROM (SELECT id, array_agg(field) AS fields FROM unnest($1::bigint[], $2::text[]) AS c(id, field) GROUP BY 1) v WHERE w.id = v.id",
        &[ids.clone().into(), fields.into()],
    )?;
    spi::write(
        "DELETE FROM crm.write WHERE id = ANY($1) AND kind = 'update' AND vals = '{}'",
        &[ids.into()],
    )?;
    Ok(())
}

/// Whether any write is in doubt.
pub(crate) fn any_unknown() -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM crm.write WHERE state = 'unknown')";
    let found = spi::read_rows(sql, &[], |row| row.get::<bool>(1))?;
    Ok(found == [Some(true)])
}

/// Takes writes in doubt for examination: not looked at again for ten seconds.
pub(crate) fn take_unknown(limit: i64) -> Result<Vec<WriteRow>> {
    let sql = format!(
        "UPDATE crm.write w SET not_before = now() + interval '10 seconds', attempts = w.attempts + 1 WHERE w.id IN \
         (SELECT id FROM crm.write WHERE state = 'unknown' AND (not_before IS NULL OR not_before <= now()) ORDER BY id LIMIT $1) \
         RETURNING {COLUMNS}"
    );
    spi::write_rows(&sql, &[limit.into()], row)
}

/// Answers what became of a create that was held because nobody knew: `made`
/// under that id, else sent again, or given up.
pub(crate) fn answer_held_create(
    mirror: i32,
    row_id: i64,
    made: Option<String>,
    give_up: bool,
) -> Result<usize> {
    let held = "mirror = $1 AND row_id = $2 AND kind = 'create' AND state = 'held' AND error_code = 'unknown_create'";
    if give_up {
        let sql = format!("DELETE FROM crm.write WHERE {held}");
        return spi::write(&sql, &[mirror.into(), row_id.into()]);
    }
    let sql = format!(
        "UPDATE crm.write SET state = CASE WHEN $3 IS NULL THEN 'queued' ELSE 'unknown' END, record_id = $3, attempts = 0, \
         not_before = NULL, status = NULL, error = NULL, error_code = NULL, error_class = NULL, advice = NULL WHERE {held}"
    );
    spi::write(&sql, &[mirror.into(), row_id.into(), made.into()])
}

/// A write that was shown and not sent, of a link or mirror that is live by now.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) id: i64,
    pub(crate) mirror: i32,
    pub(crate) row_id: i64,
    pub(crate) kind: String,
    pub(crate) vals: String,
    pub(crate) origin: String,
    /// Milliseconds since 1970.
    pub(crate) queued_at: i64,
}

const SHOWN: &str = "SELECT w.id, w.mirror, w.row_id, w.kind, w.vals::text, w.origin, \
     (extract(epoch FROM w.queued_at) * 1000)::bigint FROM crm.write w";

fn shown_row(row: &super::cells::Cells) -> Result<Shown> {
    Ok(Shown {
        id: row.get(1)?.unwrap_or_default(),
        mirror: row.get(2)?.unwrap_or_default(),
        row_id: row.get(3)?.unwrap_or_default(),
        kind: row.get(4)?.unwrap_or_default(),
        vals: row.get(5)?.unwrap_or_default(),
        origin: row.get(6)?.unwrap_or_default(),
        queued_at: row.get(7)?.unwrap_or_default(),
    })
}

/// The oldest writes that were only shown and may be sent now.
pub(crate) fn shown(limit: i64) -> Result<Vec<Shown>> {
    let sql = format!(
        "{SHOWN} JOIN crm.mirror m ON m.id = w.mirror WHERE w.state = 'would_send' AND m.mode = 'live' AND coalesce( \
           (SELECT bool_or(l.mode = 'live') FROM crm.link l WHERE m.id IN (l.left_mirror, l.right_mirror)), true) \
         ORDER BY w.id LIMIT $1"
    );
    spi::write_rows(&sql, &[limit.into()], shown_row)
}

/// Shown updates of these rows.
pub(crate) fn shown_of(mirror: i32, row_ids: Vec<i64>) -> Result<Vec<Shown>> {
    let sql = format!(
        "{SHOWN} WHERE w.mirror = $1 AND w.row_id = ANY($2) AND w.state = 'would_send' AND w.kind = 'update'"
    );
    spi::write_rows(&sql, &[mirror.into(), row_ids.into()], shown_row)
}

/// Takes the creates of rows out of the queue: somebody else made the record.
pub(crate) fn withdraw_creates(mirror: i32, row_ids: Vec<i64>) -> Result<usize> {
    spi::write(
        "DELETE FROM crm.review_item r WHERE r.mirror = $1 AND r.row_id = ANY($2) AND r.link IS NULL AND r.field IS NULL",
        &[mirror.into(), row_ids.clone().into()],
    )?;
    spi::write(
        "DELETE FROM crm.write w WHERE w.mirror = $1 AND w.row_id = ANY($2) AND w.kind = 'create'",
        &[mirror.into(), row_ids.into()],
    )
}

/// Rows of a mirror that wait for their own create and share a key with one of
/// `keys`: position in `keys`, row, and whether the create may have happened.
pub(crate) fn waiting_creates(
    mirror: i32,
    field: &str,
    normal: impl Fn(&str) -> Result<String>,
    keys: Vec<Option<String>>,
) -> Result<Vec<(usize, i64, bool)>> {
    let sql = format!(
        "SELECT v.ord, w.row_id, w.state IN ('in_flight', 'unknown') FROM crm.write w \
         JOIN unnest($3::text[]) WITH ORDINALITY AS v(key, ord) ON {} = {} \
         WHERE w.mirror = $1 AND w.kind = 'create' ORDER BY 1, 2",
        normal("v.key")?,
        normal("(w.vals ->> $2)")?,
    );
    spi::write_rows(&sql, &[mirror.into(), field.into(), keys.into()], |row| {
        let ord = row.get::<i64>(1)?.unwrap_or(1);
        Ok((
            usize::try_from(ord - 1).unwrap_or_default(),
            row.get(2)?.unwrap_or_default(),
            row.get(3)?.unwrap_or_default(),
        ))
    })
}

/// Of these creates, those whose key an earlier unfinished create of the mirror
/// has too: its id, and that of the earlier one.
pub(crate) fn same_key(
    mirror: i32,
    field: &str,
    normal: impl Fn(&str) -> Result<String>,
    ids: Vec<i64>,
) -> Result<Vec<(i64, i64)>> {
    let sql = format!(
        "SELECT w.id, min(e.id) FROM crm.write w JOIN crm.write e ON e.mirror = w.mirror AND e.id < w.id AND {} = {} \
         WHERE w.mirror = $1 AND w.id = ANY($3) AND e.id < (SELECT max(i) FROM unnest($3) i) AND e.kind = 'create' \
         AND e.state IN ('queued', 'in_flight', 'unknown', 'held') GROUP BY w.id",
        normal("(e.vals ->> $2)")?,
        normal("(w.vals ->> $2)")?,
    );
    spi::write_rows(&sql, &[mirror.into(), field.into(), ids.into()], |row| {
        Ok((
            row.get(1)?.unwrap_or_default(),
            row.get(2)?.unwrap_or_default(),
        ))
    })
}

/// Sends writes again.
pub(crate) fn requeue(ids: Vec<i64>) -> Result<usize> {
    let sql = "UPDATE crm.write SET state = 'queued', not_before = NULL WHERE id = ANY($1)";
    spi::write(sql, &[ids.into()])
}
