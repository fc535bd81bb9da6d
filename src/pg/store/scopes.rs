//! Whether rows of a mirror fulfil conditions over its columns, also as they
//! would be with some values changed.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::rows::{Table, as_owner};
use super::spi::{self, Result};

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
/// with values that stand in place of the row's own.
pub(crate) fn holds(
    table: &Table,
    conditions: &[&str],
    rows: Vec<i64>,
    changed: Vec<Option<String>>,
) -> Result<HashMap<i64, Vec<bool>>> {
    if rows.is_empty() || conditions.is_empty() {
        return Ok(HashMap::new());
    }
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
