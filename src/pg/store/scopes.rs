//! Whether rows of a mirror fulfil conditions over its columns, also as they
//! would be with some values changed.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::rows::{Table, as_owner};
use super::spi::{self, Result};
use crate::pg::report;
use crate::pg::tx::{self, SqlError};

/// Whether a condition holds for a row; none where that raises an error: nobody can tell.
pub(crate) type Told = Option<bool>;

/// None if the values of some row raised an error; any other error goes on.
pub(super) fn unless_raised<T>(body: impl FnOnce() -> Result<T>) -> Option<T> {
    match tx::in_subtransaction(|| Ok(body()?)) {
        Ok(value) => Some(value),
        Err(error) if is_of_values(&error) => None,
        Err(error) => report::raise(&error),
    }
}

/// A column that is gone is not a fault of each row. Some types report what they
/// cannot read as syntax.
fn is_of_values(error: &SqlError) -> bool {
    let class = error.sqlstate.get(..2).unwrap_or_default();
    matches!(class, "22" | "54") || error.sqlstate == "42601"
}

/// A change of a link's scope that is carried out.
#[derive(Clone, Debug)]
pub(crate) struct SweepRow {
    pub(crate) id: i64,
    pub(crate) link: String,
    /// Whose scope it is: the right mirror's, else the left one's.
    pub(crate) right: bool,
    /// What held before; none is "all rows".
    pub(crate) before: Option<String>,
    /// What holds by now, maybe changed again since.
    pub(crate) now: Option<String>,
    /// The guard's number for what follows, if it wants approval.
    pub(crate) tx: Option<i64>,
    pub(crate) held: bool,
    /// Somebody rejected what followed.
    pub(crate) rejected: bool,
    /// Rows up to this one are done.
    pub(crate) cursor: i64,
    pub(crate) looked_at: i64,
    pub(crate) left_out: i64,
    pub(crate) let_in: i64,
    pub(crate) asked_by: String,
    /// Milliseconds since 1970.
    pub(crate) asked_at: i64,
    pub(crate) reason: Option<String>,
}

/// The sweep that comes first, of links that are not paused.
pub(crate) fn first_sweep() -> Result<Option<SweepRow>> {
    let rows = spi::write_rows(
        "SELECT s.id, s.link, s.side = 'right', s.before, CASE s.side WHEN 'right' THEN l.right_scope ELSE l.left_scope END, \
         s.tx, coalesce(t.held, false), s.tx IS NOT NULL AND t.tx IS NULL, s.cursor, s.looked_at, s.left_out, s.let_in, \
         s.asked_by::text, (extract(epoch FROM s.asked_at) * 1000)::bigint, s.reason \
         FROM crm.scope_sweep s JOIN crm.link l ON l.name = s.link LEFT JOIN crm.change_tx t ON t.tx = s.tx \
         WHERE NOT l.paused ORDER BY s.id LIMIT 1",
        &[],
        |row| {
            Ok(SweepRow {
                id: row.get(1)?.unwrap_or_default(),
                link: row.get(2)?.unwrap_or_default(),
                right: row.get(3)?.unwrap_or_default(),
                before: row.get(4)?,
                now: row.get(5)?,
                tx: row.get(6)?,
                held: row.get(7)?.unwrap_or_default(),
                rejected: row.get(8)?.unwrap_or_default(),
                cursor: row.get(9)?.unwrap_or_default(),
                looked_at: row.get(10)?.unwrap_or_default(),
                left_out: row.get(11)?.unwrap_or_default(),
                let_in: row.get(12)?.unwrap_or_default(),
                asked_by: row.get(13)?.unwrap_or_default(),
                asked_at: row.get(14)?.unwrap_or_default(),
                reason: row.get(15)?,
            })
        },
    )?;
    Ok(rows.into_iter().next())
}

/// Part of a mirror as a sweep sees it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stretch {
    /// Rows in it; 0 behind the last row.
    pub(crate) rows: i64,
    /// The last of them.
    pub(crate) last: i64,
    /// Rows that enter or leave, in order.
    pub(crate) differ: Vec<i64>,
}

/// The next `window` rows of a mirror after `cursor`, and the first `limit` of
/// them for which the two conditions differ.
pub(crate) fn stretch(
    table: &Table,
    conditions: (&str, &str),
    cursor: i64,
    most: (i64, i64),
) -> Result<Stretch> {
    match unless_raised(|| at_once(table, conditions, cursor, most)) {
        Some(stretch) => Ok(stretch),
        None => row_by_row(table, conditions, cursor, most),
    }
}

/// [`stretch`] where a condition raises errors: that nobody can tell is no leaving.
fn row_by_row(
    table: &Table,
    (before, now): (&str, &str),
    cursor: i64,
    (window, limit): (i64, i64),
) -> Result<Stretch> {
    let sql = format!(
        "SELECT x._id, x._deleted_at IS NULL FROM {} x WHERE x._id > $1 ORDER BY x._id LIMIT $2",
        table.name,
    );
    let rows = as_owner(table, || {
        spi::write_rows(&sql, &[cursor.into(), window.into()], |row| {
            let id: i64 = row.get(1)?.unwrap_or_default();
            Ok((id, row.get::<bool>(2)?.unwrap_or_default()))
        })
    })?;
    let live: Vec<i64> = rows.iter().filter(|r| r.1).map(|r| r.0).collect();
    let none = vec![None; live.len()];
    let told = holds(table, &[before, now], live.clone(), none)?;
    let differs = |row: &i64| {
        matches!(
            told.get(row).map(Vec::as_slice),
            Some([Some(true), Some(false)] | [None | Some(false), Some(true)])
        )
    };
    let most = usize::try_from(limit).unwrap_or_default();
    Ok(Stretch {
        rows: i64::try_from(rows.len()).unwrap_or_default(),
        last: rows.last().map(|r| r.0).unwrap_or_default(),
        differ: live.into_iter().filter(differs).take(most).collect(),
    })
}

fn at_once(
    table: &Table,
    (before, now): (&str, &str),
    cursor: i64,
    (window, limit): (i64, i64),
) -> Result<Stretch> {
    let sql = format!(
        "WITH w AS MATERIALIZED (SELECT t._id, t._deleted_at IS NULL AND (({before}) IS TRUE) <> (({now}) IS TRUE) AS differs \
           FROM (SELECT * FROM {} x WHERE x._id > $1 ORDER BY x._id LIMIT $2) AS t) \
         SELECT s.n, s.last, d._id FROM (SELECT count(*) AS n, max(w._id) AS last FROM w) s \
         LEFT JOIN (SELECT w._id FROM w WHERE w.differs ORDER BY w._id LIMIT $3) d ON true ORDER BY d._id",
        table.name,
    );
    let mut stretch = Stretch::default();
    as_owner(table, || {
        spi::write_rows(&sql, &[cursor.into(), window.into(), limit.into()], |row| {
            stretch.rows = row.get(1)?.unwrap_or_default();
            stretch.last = row.get(2)?.unwrap_or_default();
            stretch.differ.extend(row.get::<i64>(3)?);
            Ok(())
        })
    })?;
    Ok(stretch)
}

/// Notes how far a sweep has come.
pub(crate) fn advance(sweep: &SweepRow) -> Result<()> {
    spi::write(
        "UPDATE crm.scope_sweep SET cursor = $2, looked_at = $3, left_out = $4, let_in = $5 WHERE id = $1",
        &[
            sweep.id.into(),
            sweep.cursor.into(),
            sweep.looked_at.into(),
            sweep.left_out.into(),
            sweep.let_in.into(),
        ],
    )?;
    Ok(())
}

/// A sweep is done.
pub(crate) fn finish(sweep: i64) -> Result<()> {
    spi::write("DELETE FROM crm.scope_sweep WHERE id = $1", &[sweep.into()])?;
    Ok(())
}

/// Per row, whether each condition holds. `changed` is a JSON object per row
/// with values that stand in place of the row's own. One row that raises an error
/// does not stop the others: halves are looked at until it is alone.
pub(crate) fn holds(
    table: &Table,
    conditions: &[&str],
    mut rows: Vec<i64>,
    mut changed: Vec<Option<String>>,
) -> Result<HashMap<i64, Vec<Told>>> {
    if rows.is_empty() || conditions.is_empty() {
        return Ok(HashMap::new());
    }
    let all = unless_raised(|| evaluated(table, conditions, rows.clone(), changed.clone()));
    if let Some(told) = all {
        let known = |told: Vec<bool>| told.into_iter().map(Some).collect();
        return Ok(told.into_iter().map(|(row, t)| (row, known(t))).collect());
    }
    let first = rows[0];
    if rows.len() > 1 {
        let half = rows.len() / 2;
        let rest = (rows.split_off(half), changed.split_off(half));
        let mut told = holds(table, conditions, rows, changed)?;
        told.extend(holds(table, conditions, rest.0, rest.1)?);
        return Ok(told);
    }
    if conditions.len() == 1 {
        return Ok(HashMap::from([(first, vec![None])]));
    }
    let mut each = Vec::with_capacity(conditions.len());
    for condition in conditions {
        let told = holds(table, &[condition], rows.clone(), changed.clone())?;
        each.push(told.get(&first).and_then(|t| t[0]));
    }
    Ok(HashMap::from([(first, each)]))
}

fn evaluated(
    table: &Table,
    conditions: &[&str],
    rows: Vec<i64>,
    changed: Vec<Option<String>>,
) -> Result<HashMap<i64, Vec<bool>>> {
    let mut tests = String::new();
    for (i, condition) in conditions.iter().enumerate() {
        let _ = write!(
            tests,
            "{}({condition}) IS TRUE",
            if i > 0 { ", " } else { "" }
        );
    }
    // The inner FROM is all that the conditions' column names can mean.
    let sql = format!(
        "SELECT v.row_id, s.told FROM unnest($1::bigint[], $2::text[]) AS v(row_id, changed) \
         JOIN {} b ON b._id = v.row_id \
         CROSS JOIN LATERAL (SELECT ARRAY[{tests}] AS told \
           FROM jsonb_populate_record(b, coalesce(v.changed::jsonb, '{{}}')) AS t) s",
        table.name,
    );
    let told = as_owner(table, || {
        spi::write_rows(&sql, &[rows.into(), changed.into()], |row| {
            let id: i64 = row.get(1)?.unwrap_or_default();
            Ok((id, row.get::<Vec<bool>>(2)?.unwrap_or_default()))
        })
    })?;
    Ok(told.into_iter().collect())
}
