//! What users changed on mirrors, as the capture trigger logged it.

use std::collections::HashMap;

use super::cells::Cells;

use crate::pg::capture::ID_ATTNUM;
use crate::pg::capture::decode::{self, OldValue};
use crate::pg::image::{self, Tid};

use super::backlog::{self, Place};
use super::spi::{self, Result};

/// From so many changes at a time on the log is read ahead.
const MANY: usize = 100;

const BOTH: &str = "(SELECT * FROM crm.change_0 UNION ALL SELECT * FROM crm.change_1)";

/// One logged change of one row.
#[derive(Clone, Debug)]
pub(crate) struct ChangeRow {
    pub(crate) flush: i64,
    pub(crate) ord: i32,
    pub(crate) tx: i64,
    /// `I`, `U` or `D`.
    pub(crate) op: char,
    pub(crate) row_id: i64,
    /// Old values by attribute number, in PostgreSQL's text form.
    pub(crate) old: Vec<(i16, OldValue)>,
}

/// A transaction that changed mirrors.
#[derive(Clone, Debug)]
pub(crate) struct TxRow {
    pub(crate) tx: i64,
    pub(crate) user: String,
    pub(crate) application: String,
    pub(crate) reason: Option<String>,
    pub(crate) origin: Option<String>,
    /// Milliseconds since 1970.
    pub(crate) at: i64,
    /// Microseconds beyond them.
    pub(crate) micros: i64,
    pub(crate) held: bool,
    /// How sure the writer is, in thousandths.
    pub(crate) score: Option<u16>,
}

/// Rows that have changes waiting, the first found up to `limit` changes, and
/// whether there may be more.
pub(crate) fn peek(limit: i64) -> Result<(Vec<(i32, i64)>, bool)> {
    // A few changes at a time are drained to find the one that fails, which must
    // be the first of the log each time.
    let many = usize::try_from(limit).ok().filter(|l| *l >= MANY);
    if let Some(rows) = many.map_or(Ok(None), backlog::next)? {
        return Ok((rows, true));
    }
    let sql = format!(
        "SELECT mirror_id, row_id, count(*) FROM (SELECT mirror_id, row_id FROM {BOTH} c LIMIT $1) c GROUP BY 1, 2"
    );
    let mut changes = 0;
    let rows = spi::write_rows(&sql, &[limit.into()], |row| {
        changes += row.get::<i64>(3)?.unwrap_or_default();
        Ok((
            row.get(1)?.unwrap_or_default(),
            row.get(2)?.unwrap_or_default(),
        ))
    })?;
    Ok((rows, changes >= limit))
}

/// Whether changes are known to wait, without a look.
pub(crate) fn known_to_wait() -> bool {
    backlog::is_open()
}

/// A transaction that took changes was undone: where they stand is found anew.
pub(crate) fn undone() {
    backlog::forget();
}

/// The rows that a transaction changed from its change number `first` on.
pub(crate) fn of_statement(tx: i64, first: i32) -> Result<Vec<(i32, i64)>> {
    let sql =
        format!("SELECT DISTINCT mirror_id, row_id FROM {BOTH} c WHERE tx = $1 AND ord >= $2");
    spi::write_rows(&sql, &[tx.into(), first.into()], |row| {
        Ok((
            row.get(1)?.unwrap_or_default(),
            row.get(2)?.unwrap_or_default(),
        ))
    })
}

/// Which of these rows have changes waiting.
pub(crate) fn undrained(mirror: i32, row_ids: Vec<i64>) -> Result<Vec<i64>> {
    let row_ids = backlog::suspects(mirror, &row_ids)?.unwrap_or(row_ids);
    if row_ids.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT DISTINCT row_id FROM {BOTH} c WHERE mirror_id = $1 AND row_id IN (SELECT unnest($2))"
    );
    spi::write_rows(&sql, &[mirror.into(), image::longs(&row_ids)], |row| {
        Ok(row.get::<i64>(1)?.unwrap_or_default())
    })
}

/// Records of which SQL removed the rows, as far as that waits; none if they are more
/// than `limit`.
pub(crate) fn removed(mirror: i32, limit: usize) -> Result<Option<Vec<String>>> {
    let sql = format!("SELECT old FROM {BOTH} c WHERE mirror_id = $1 AND op = 'D' LIMIT $2");
    let most = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
    let found = spi::write_rows(&sql, &[mirror.into(), most.into()], |row| {
        let packed: Vec<u8> = row.get(1)?.unwrap_or_default();
        let mut olds = decode::old_values(&packed).into_iter();
        Ok(olds.find(|(attnum, _)| *attnum == ID_ATTNUM))
    })?;
    let few = found.len() <= limit;
    let ids = found.into_iter().filter_map(|old| match old?.1 {
        OldValue::Text(id) => Some(id),
        OldValue::Null | OldValue::TooLong(_) => None,
    });
    Ok(few.then(|| ids.collect()))
}

/// What these rows held before their first change that waits, by attribute.
pub(crate) fn before(mirror: i32, row_ids: Vec<i64>) -> Result<Before> {
    let sql = format!(
        "SELECT row_id, old FROM {BOTH} c WHERE mirror_id = $1 AND row_id IN (SELECT unnest($2)) ORDER BY flush, ord"
    );
    let mut before = Before::new();
    spi::write_rows(&sql, &[mirror.into(), row_ids.into()], |row| {
        let packed: Vec<u8> = row.get(2)?.unwrap_or_default();
        let olds = before.entry(row.get(1)?.unwrap_or_default()).or_default();
        for (attnum, old) in decode::old_values(&packed) {
            olds.entry(attnum).or_insert(old);
        }
        Ok(())
    })?;
    Ok(before)
}

/// Old values by row and attribute.
pub(crate) type Before = HashMap<i64, HashMap<i16, OldValue>>;

/// Takes the changes of these rows out of the log, in the order they were made.
pub(crate) fn take(mirror: i32, row_ids: Vec<i64>) -> Result<Vec<ChangeRow>> {
    let mut out = match backlog::take(mirror, &row_ids)? {
        Some(places) => take_places(mirror, &row_ids, &places)?,
        None => take_rows(mirror, &row_ids)?,
    };
    out.sort_by_key(|c| (c.flush, c.ord));
    Ok(out)
}

/// By a look at the whole log.
fn take_rows(mirror: i32, row_ids: &[i64]) -> Result<Vec<ChangeRow>> {
    let mut out = Vec::new();
    for segment in ["crm.change_0", "crm.change_1"] {
        let sql = format!(
            "DELETE FROM {segment} c WHERE mirror_id = $1 AND row_id IN (SELECT unnest($2)) RETURNING {CHANGE}"
        );
        let args = [mirror.into(), image::longs(row_ids)];
        out.extend(spi::write_rows(&sql, &args, change)?);
    }
    Ok(out)
}

/// Where they stand.
fn take_places(mirror: i32, row_ids: &[i64], places: &[(i64, Place)]) -> Result<Vec<ChangeRow>> {
    let mut out = Vec::with_capacity(places.len());
    for segment in 0..2_u8 {
        let here = places.iter().filter(|(_, place)| place.0 == segment);
        let (rows, tids): (Vec<i64>, Vec<Tid>) = here.map(|(row, place)| (*row, place.1)).unzip();
        if tids.is_empty() {
            continue;
        }
        let sql = format!(
            "DELETE FROM crm.change_{segment} c USING unnest($1, $2) AS p(place, row_id) \
             WHERE c.ctid = p.place AND c.row_id = p.row_id AND c.mirror_id = $3 RETURNING {CHANGE}"
        );
        let args = [image::tids(&tids), image::longs(&rows), mirror.into()];
        out.extend(spi::write_rows(&sql, &args, change)?);
    }
    if out.len() != places.len() {
        // Somebody else took some, as the removal of a mirror does.
        backlog::forget();
        out.extend(take_rows(mirror, row_ids)?);
    }
    Ok(out)
}

/// What is read of a change.
const CHANGE: &str = "c.flush, c.ord, c.tx, c.mirror_id, c.op::text, c.row_id, c.old";

fn change(row: &Cells) -> Result<ChangeRow> {
    let packed: Vec<u8> = row.get(7)?.unwrap_or_default();
    let op: String = row.get(5)?.unwrap_or_default();
    Ok(ChangeRow {
        flush: row.get(1)?.unwrap_or_default(),
        ord: row.get(2)?.unwrap_or_default(),
        tx: row.get(3)?.unwrap_or_default(),
        op: op.chars().next().unwrap_or('U'),
        row_id: row.get(6)?.unwrap_or_default(),
        old: decode::old_values(&packed),
    })
}

/// The headers of these transactions.
pub(crate) fn transactions(txs: Vec<i64>) -> Result<Vec<TxRow>> {
    spi::write_rows(
        "SELECT tx, \"session_user\"::text, application_name, reason, origin, (extract(epoch FROM at) * 1000000)::bigint, held, \
         round(score * 1000)::integer \
         FROM crm.change_tx WHERE tx = ANY($1)",
        &[txs.into()],
        |row| {
            Ok(TxRow {
                tx: row.get(1)?.unwrap_or_default(),
                user: row.get(2)?.unwrap_or_default(),
                application: row.get(3)?.unwrap_or_default(),
                reason: row.get(4)?,
                origin: row.get(5)?,
                at: row.get::<i64>(6)?.unwrap_or_default().div_euclid(1000),
                micros: row.get::<i64>(6)?.unwrap_or_default().rem_euclid(1000),
                held: row.get(7)?.unwrap_or_default(),
                score: row.get::<i32>(8)?.and_then(|s| u16::try_from(s).ok()),
            })
        },
    )
}

/// Marks transactions as waiting for approval.
pub(crate) fn hold(txs: Vec<i64>) -> Result<()> {
    spi::write(
        "UPDATE crm.change_tx SET held = true WHERE tx = ANY ($1)",
        &[txs.into()],
    )?;
    Ok(())
}

/// Removes headers whose changes are all taken and that nobody must approve.
pub(crate) fn forget_transactions() -> Result<usize> {
    let sql = format!(
        "DELETE FROM crm.change_tx t WHERE t.at < now() - interval '1 hour' \
         AND NOT EXISTS (SELECT 1 FROM {BOTH} c WHERE c.tx = t.tx) \
         AND NOT EXISTS (SELECT 1 FROM crm.scope_sweep s WHERE s.tx = t.tx) \
         AND NOT EXISTS (SELECT 1 FROM crm.write w WHERE w.state = 'held' AND t.tx = ANY (w.txs))"
    );
    spi::write(&sql, &[])
}
