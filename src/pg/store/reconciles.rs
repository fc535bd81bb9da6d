//! Reconciliations: how far each has come, what it found and what became of it.

use crm_core::reconcile::{CHUNK, Finding, Kind, Limit, Standing};

use super::rows::{Row, Table, as_owner, select_list};
use super::spi::{self, Result};
use crate::pg::image;
use crate::pg::store::config::ColumnRow;

/// A reconciliation that is not finished.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) id: i64,
    pub(crate) mirror: i32,
    /// Values are compared too.
    pub(crate) values: bool,
    /// The list has been gone through; what was found is read.
    pub(crate) reading: bool,
    pub(crate) cursor: Option<String>,
    /// Milliseconds since 1970; 0 before it has begun.
    pub(crate) started_at: i64,
    pub(crate) not_before: i64,
}

/// Runs that the worker has to go on with, oldest first.
pub(crate) fn open() -> Result<Vec<Run>> {
    spi::write_rows(
        "SELECT id, mirror, depth = 'values', state = 'reading', cursor, (extract(epoch FROM started_at) * 1000)::bigint, \
         (extract(epoch FROM not_before) * 1000)::bigint FROM crm.reconcile_run WHERE state IN ('waiting', 'listing', 'reading') ORDER BY id",
        &[],
        |row| {
            Ok(Run {
                id: row.get(1)?.unwrap_or_default(),
                mirror: row.get(2)?.unwrap_or_default(),
                values: row.get(3)?.unwrap_or_default(),
                reading: row.get(4)?.unwrap_or_default(),
                cursor: row.get(5)?,
                started_at: row.get(6)?.unwrap_or_default(),
                not_before: row.get(7)?.unwrap_or_default(),
            })
        },
    )
}

/// Begins those that are due; when the next one will be.
pub(crate) fn schedule() -> Result<Option<i64>> {
    let next = spi::write_rows("SELECT crm._reconcile_schedule()", &[], |row| row.get(1))?;
    Ok(next.into_iter().next().flatten())
}

/// Servers with mirrors whose time zone is not known, once a mirror of theirs
/// has been there for an hour: before that no schedule matters.
pub(crate) fn without_zone() -> Result<Vec<String>> {
    spi::write_rows(
        "SELECT DISTINCT s.server FROM crm.server_state s JOIN crm.mirror m ON m.server = s.server \
         WHERE s.time_zone IS NULL AND m.reconcile_at IS NOT NULL AND m.reconcile_zone IS NULL AND m.created_at < now() - interval '1 hour'",
        &[],
        |row| Ok(row.get(1)?.unwrap_or_default()),
    )
}

/// Notes an account's time zone, if the database knows it.
pub(crate) fn set_zone(server: &str, zone: &str) -> Result<usize> {
    spi::write(
        "UPDATE crm.server_state s SET time_zone = z.name FROM pg_catalog.pg_timezone_names z \
         WHERE s.server = $1 AND lower(z.name) = lower($2)",
        &[server.into(), zone.into()],
    )
}

/// The last row number of a mirror.
fn last_row(table: &Table) -> Result<i64> {
    let sql = format!(
        "SELECT coalesce(max(m._id), 0)::bigint FROM {} m",
        table.name
    );
    let last = as_owner(table, || spi::write_rows(&sql, &[], |row| row.get(1)))?;
    Ok(last.into_iter().next().flatten().unwrap_or_default())
}

/// Begins a run; false if it was given up.
pub(crate) fn begin(run: i64, table: &Table) -> Result<bool> {
    let last = last_row(table)?;
    let done = spi::write(
        "UPDATE crm.reconcile_run SET state = 'listing', started_at = clock_timestamp(), max_row = $2 WHERE id = $1 AND state = 'waiting'",
        &[run.into(), last.into()],
    )?;
    Ok(done > 0)
}

/// Moves a run through the list, in the transaction that compared what it passes;
/// false if it was given up.
pub(crate) fn advance(run: i64, cursor: Option<String>, listed: i64, calls: i64) -> Result<bool> {
    let done = spi::write(
        "UPDATE crm.reconcile_run SET cursor = $2, listed = listed + $3, calls = calls + $4, error = NULL WHERE id = $1 AND state = 'listing'",
        &[run.into(), cursor.into(), listed.into(), calls.into()],
    )?;
    Ok(done > 0)
}

/// Counts calls, and notes trouble or that there is none; false if it was given up.
pub(crate) fn note(run: i64, calls: i64, error: Option<&str>) -> Result<bool> {
    let done = spi::write(
        "UPDATE crm.reconcile_run SET calls = calls + $2, error = $3 WHERE id = $1 AND state IN ('waiting', 'listing', 'reading')",
        &[run.into(), calls.into(), error.into()],
    )?;
    Ok(done > 0)
}

/// Rows of these records, as far as they are compared; some others may be among them.
pub(crate) fn standing(table: &Table, ids: &[String]) -> Result<Vec<Standing>> {
    if let (true, [first, .., last]) = (is_run(ids), ids) {
        let most = 2 * ids.len();
        let args = [
            first.as_str().into(),
            last.as_str().into(),
            i32::try_from(first.len()).unwrap_or_default().into(),
            i64::try_from(most).unwrap_or_default().into(),
        ];
        let within = "m.id >= $1 AND m.id <= $2 AND octet_length(m.id) = $3 LIMIT $4";
        let rows = standing_where(table, within, &args)?;
        if rows.len() < most {
            return Ok(rows);
        }
    }
    standing_where(table, "m.id = ANY($1)", &[image::texts(ids)])
}

/// Whether ids follow each other as an index has them: it is read from the first to the last then, without
/// a search for each. Ids of one length, for `10` stands before `9` there.
fn is_run(ids: &[String]) -> bool {
    ids.windows(2)
        .all(|pair| pair[0].len() == pair[1].len() && pair[0] < pair[1])
}

fn standing_where(table: &Table, rest: &str, args: &[spi::Arg<'_>]) -> Result<Vec<Standing>> {
    let sql = format!(
        "SELECT m._id, m.id, coalesce((date_part('epoch', m._remote_modified_at) * 1000)::bigint, 0), m._deleted_at IS NOT NULL, \
         coalesce(m._sync_state = 'soft_deleted', false) FROM {} m WHERE {rest}",
        table.name
    );
    as_owner(table, || {
        spi::write_rows(&sql, args, |row| {
            Ok(Standing {
                row: row.get(1)?.unwrap_or_default(),
                record: row.get(2)?.unwrap_or_default(),
                at: row.get(3)?.unwrap_or_default(),
                deleted: row.get(4)?.unwrap_or_default(),
                hidden: row.get(5)?.unwrap_or_default(),
            })
        })
    })
}

/// Hash of each bucket of records, as [`crm_core::reconcile::Bucket`] makes it:
/// `starts` are the first ids of the buckets, in the order of their bytes.
pub(crate) fn hashes(
    table: &Table,
    columns: &[&ColumnRow],
    ids: &[String],
    starts: &[String],
) -> Result<Vec<(usize, String)>> {
    let values = columns.iter().fold(String::new(), |list, column| {
        format!(
            "{list} || coalesce({}, '') || E'\\x1f'",
            select_list(&[*column]).trim_start_matches(", ")
        )
    });
    let sql = format!(
        "SELECT width_bucket(m.id, $2) - 1, encode(sha256(convert_to(string_agg(m.id || E'\\x1f'{values} || E'\\x1e', '' ORDER BY m.id), 'UTF8')), 'hex') \
         FROM {} m WHERE m.id = ANY($1) GROUP BY 1",
        table.name
    );
    as_owner(table, || {
        spi::write_rows(&sql, &[image::texts(ids), image::texts(starts)], |row| {
            let bucket: i32 = row.get(1)?.unwrap_or_default();
            let hash = row.get(2)?.unwrap_or_default();
            Ok((usize::try_from(bucket).unwrap_or(usize::MAX), hash))
        })
    })
}

/// Rows of these records with their values, not locked.
pub(crate) fn look(table: &Table, columns: &[&ColumnRow], ids: &[String]) -> Result<Vec<Row>> {
    super::rows::select(table, columns, "m.id = ANY($1)", image::texts(ids))
}

/// Notes differences, but those that we ourselves brought about: a removal that
/// has not left, values that are on their way.
pub(crate) fn found(run: i64, mirror: i32, findings: &[Finding]) -> Result<usize> {
    if findings.is_empty() {
        return Ok(0);
    }
    let ids: Vec<String> = findings.iter().map(|f| f.record.clone()).collect();
    let kinds: Vec<String> = findings.iter().map(|f| f.kind.name().to_owned()).collect();
    let stamps: Vec<i64> = findings.iter().map(|f| f.listed_at).collect();
    spi::write(
        "WITH new AS (INSERT INTO crm.reconcile_found (run, record_id, kind, listed_at) \
           SELECT $1, v.id, v.kind, CASE WHEN v.at > 0 THEN to_timestamp(v.at::float8 / 1000) END \
           FROM unnest($3::text[], $4::text[], $5::bigint[]) AS v(id, kind, at), crm.reconcile_run r JOIN crm.mirror m ON m.id = r.mirror \
           WHERE r.id = $1 AND (v.kind <> 'create' OR m.row_filter IS NULL OR v.at >= r.since) AND NOT EXISTS (SELECT FROM crm.write w \
           WHERE w.mirror = $2 AND w.record_id = v.id AND (v.kind = 'value' OR w.kind = 'delete' AND v.kind = 'create')) \
           ON CONFLICT (run, record_id) DO NOTHING RETURNING 1) \
         UPDATE crm.reconcile_run SET found = found + (SELECT count(*) FROM new) WHERE id = $1",
        &[
            run.into(),
            mirror.into(),
            ids.into(),
            kinds.into(),
            stamps.into(),
        ],
    )
}

/// What is remembered of these pieces.
pub(crate) fn seen(run: i64, chunks: Vec<i64>) -> Result<Vec<(i64, Vec<u8>)>> {
    spi::write_rows(
        "SELECT chunk, bits FROM crm._reconcile_seen WHERE run = $1 AND chunk = ANY($2)",
        &[run.into(), chunks.into()],
        |row| {
            Ok((
                row.get(1)?.unwrap_or_default(),
                row.get(2)?.unwrap_or_default(),
            ))
        },
    )
}

/// Remembers a piece.
pub(crate) fn remember(run: i64, chunk: i64, bits: Vec<u8>) -> Result<usize> {
    spi::write(
        "INSERT INTO crm._reconcile_seen (run, chunk, bits) VALUES ($1, $2, $3) \
         ON CONFLICT (run, chunk) DO UPDATE SET bits = excluded.bits",
        &[run.into(), chunk.into(), bits.into()],
    )
}

/// Live rows of one piece that were there when the run began and whose records
/// were not listed: id and whether the CRM had ever told their stamp.
pub(crate) fn unseen(
    table: &Table,
    (chunk, bits): (i64, Vec<u8>),
    (max_row, started_at): (i64, i64),
) -> Result<Vec<String>> {
    let first = chunk.saturating_mul(CHUNK);
    let end = first.saturating_add(CHUNK).min(max_row.saturating_add(1));
    let sql = format!(
        "SELECT m.id FROM {} m WHERE m._id >= $1 AND m._id < $2 AND m.id IS NOT NULL AND m._deleted_at IS NULL \
         AND (m._remote_modified_at IS NULL OR m._remote_modified_at < to_timestamp($4::float8 / 1000)) \
         AND get_bit($3, (m._id - $1)::int) = 0",
        table.name
    );
    as_owner(table, || {
        spi::write_rows(
            &sql,
            &[first.into(), end.into(), bits.into(), started_at.into()],
            |row| Ok(row.get(1)?.unwrap_or_default()),
        )
    })
}

/// What the end of a list is judged by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    pub(crate) max_row: i64,
    pub(crate) limit: Limit,
    /// How long streams get to bring what was found.
    pub(crate) patience_ms: i64,
}

/// Reads it; none if the run was given up.
pub(crate) fn ending(run: i64) -> Result<Option<Ending>> {
    let found = spi::write_rows(
        "SELECT coalesce(r.max_row, 0), m.missing_limit, m.missing_share::float8, (extract(epoch FROM m.reconcile_patience) * 1000)::bigint \
         FROM crm.reconcile_run r JOIN crm.mirror m ON m.id = r.mirror WHERE r.id = $1 AND r.state = 'listing'",
        &[run.into()],
        |row| {
            Ok(Ending {
                max_row: row.get(1)?.unwrap_or_default(),
                limit: Limit {
                    records: u64::try_from(row.get::<i64>(2)?.unwrap_or_default())
                        .unwrap_or_default(),
                    share: row.get(3)?.unwrap_or_default(),
                },
                patience_ms: row.get(4)?.unwrap_or_default(),
            })
        },
    )?;
    Ok(found.into_iter().next())
}

/// The list is through: what was found is read from `not_before` on.
pub(crate) fn listed(run: i64, rows: i64, not_before: i64) -> Result<usize> {
    spi::write(
        "UPDATE crm.reconcile_run SET state = 'reading', cursor = NULL, \"rows\" = $2, not_before = to_timestamp($3::float8 / 1000) WHERE id = $1",
        &[run.into(), rows.into(), not_before.into()],
    )
}

/// Keeps missing records from being removed until a person has said so; some of
/// them.
pub(crate) fn hold(run: i64) -> Result<Vec<String>> {
    spi::write(
        "UPDATE crm.reconcile_found SET state = 'held' WHERE run = $1 AND kind = 'delete' AND state = 'found'",
        &[run.into()],
    )?;
    spi::write_rows(
        "SELECT record_id FROM crm.reconcile_found WHERE run = $1 AND state = 'held' ORDER BY record_id LIMIT 20",
        &[run.into()],
        |row| Ok(row.get(1)?.unwrap_or_default()),
    )
}

/// Asks a person about them.
pub(crate) fn ask(mirror: i32, reason: &str, candidates: &str) -> Result<usize> {
    spi::write(
        "INSERT INTO crm.review_item (kind, mirror, reason, candidates) VALUES ('missing', $1, $2, $3::jsonb) \
         ON CONFLICT (kind, link, mirror, row_id) WHERE kind <> 'field' \
         DO UPDATE SET reason = excluded.reason, candidates = excluded.candidates, changed_at = now(), resolution = NULL",
        &[mirror.into(), reason.into(), candidates.into()],
    )
}

/// A person has said what becomes of records that are missing: they are read
/// and go, or their rows stay.
pub(crate) fn answer(run: i64, remove: bool) -> Result<usize> {
    spi::write(
        "UPDATE crm.reconcile_found SET state = CASE WHEN $2 THEN 'found' ELSE 'kept' END WHERE run = $1 AND state = 'held'",
        &[run.into(), remove.into()],
    )?;
    // Also one that still reads: it goes on with these.
    spi::write(
        "UPDATE crm.reconcile_run SET state = 'reading', held = 0 WHERE id = $1 AND state IN ('held', 'reading')",
        &[run.into()],
    )
}

/// What is to be read next.
pub(crate) fn next(run: i64, limit: i64) -> Result<Vec<Finding>> {
    let rows = spi::write_rows(
        "SELECT record_id, kind, (extract(epoch FROM listed_at) * 1000)::bigint FROM crm.reconcile_found \
         WHERE run = $1 AND state = 'found' ORDER BY record_id LIMIT $2",
        &[run.into(), limit.into()],
        |row| {
            Ok((
                row.get::<String>(1)?.unwrap_or_default(),
                row.get::<String>(2)?.unwrap_or_default(),
                row.get::<i64>(3)?.unwrap_or_default(),
            ))
        },
    )?;
    let finding = |(record, kind, listed_at): (String, String, i64)| {
        Some(Finding {
            record,
            kind: Kind::by_name(&kind)?,
            listed_at,
        })
    };
    Ok(rows.into_iter().filter_map(finding).collect())
}

/// Notes what became of findings: record and state.
pub(crate) fn judged(run: i64, verdicts: Vec<(String, &'static str)>) -> Result<usize> {
    if verdicts.is_empty() {
        return Ok(0);
    }
    let (ids, states): (Vec<String>, Vec<String>) = verdicts
        .into_iter()
        .map(|(id, state)| (id, state.to_owned()))
        .unzip();
    spi::write(
        "UPDATE crm.reconcile_found f SET state = v.state FROM unnest($2::text[], $3::text[]) AS v(id, state) \
         WHERE f.run = $1 AND f.record_id = v.id AND f.state = 'found'",
        &[run.into(), ids.into(), states.into()],
    )
}

/// Nothing is left to read.
pub(crate) fn finish(run: i64) -> Result<usize> {
    spi::write("SELECT crm._reconcile_finish($1)", &[run.into()])
}
