//! Finding rows that describe the same thing.

use super::rows::{Table, as_owner};
use pgrx::spi::SpiHeapTupleData;

use super::spi::{self, Result};

/// Which of these rows have no CRM id yet.
pub(crate) fn without_id(table: &Table, row_ids: Vec<i64>) -> Result<Vec<i64>> {
    let sql = format!(
        "SELECT m._id FROM {} m WHERE m._id = ANY($1) AND m.id IS NULL",
        table.name
    );
    as_owner(table, || {
        spi::write_rows(&sql, &[row_ids.into()], |row| {
            Ok(row.get::<i64>(1)?.unwrap_or_default())
        })
    })
}

/// A column that identifies records.
#[derive(Clone, Copy)]
pub(crate) struct Key<'a> {
    pub(crate) mirror: i32,
    pub(crate) table: &'a Table,
    /// Quoted.
    pub(crate) column: &'a str,
}

/// Rows of `theirs` whose key equals that of our rows in normal form:
/// `(our row, their row, whether that one is tied to another row of our mirror)`.
/// Pairs tied long ago are no candidates: keys such as a deal's name return in
/// new things. Within the hour it may be one thing typed in on both sides.
pub(crate) fn candidates(
    ours: Key<'_>,
    theirs: Key<'_>,
    domain: bool,
    row_ids: Vec<i64>,
) -> Result<Vec<(i64, i64, bool)>> {
    if row_ids.is_empty() {
        return Ok(Vec::new());
    }
    let left = normal_form(&format!("a.{}", ours.column), domain)?;
    let right = normal_form(&format!("b.{}", theirs.column), domain)?;
    // Each table is read with the rights of its own owner.
    let sql = format!(
        "SELECT a._id, {left} FROM {} a WHERE a._id = ANY($1) AND a._deleted_at IS NULL AND {left} IS NOT NULL",
        ours.table.name,
    );
    let keys = as_owner(ours.table, || {
        spi::write_rows(&sql, &[row_ids.into()], |row| {
            let id: i64 = row.get(1)?.unwrap_or_default();
            Ok((id, row.get::<String>(2)?.unwrap_or_default()))
        })
    })?;
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let (rows, keys): (Vec<i64>, Vec<String>) = keys.into_iter().unzip();
    let sql = format!(
        "SELECT v.row_id, b._id FROM unnest($1::bigint[], $2::text[]) AS v(row_id, key) \
         JOIN {} b ON {right} = v.key WHERE b._deleted_at IS NULL",
        theirs.table.name,
    );
    let pair = |row: &SpiHeapTupleData<'_>| {
        let ours: i64 = row.get(1)?.unwrap_or_default();
        Ok((ours, row.get::<i64>(2)?.unwrap_or_default()))
    };
    let pairs = as_owner(theirs.table, || {
        spi::write_rows(&sql, &[rows.into(), keys.into()], pair)
    })?;
    if pairs.is_empty() {
        return Ok(Vec::new());
    }
    let (left, right): (Vec<i64>, Vec<i64>) = pairs.into_iter().unzip();
    spi::write_rows(
        "SELECT p.a, p.b, t.at IS NOT NULL FROM unnest($1::bigint[], $2::bigint[]) AS p(a, b) \
         LEFT JOIN LATERAL (SELECT min(greatest(x.linked_at, y.linked_at)) AS at FROM crm.xref x \
           JOIN crm.xref y ON y.entity = x.entity AND y.mirror = $4 WHERE x.mirror = $3 AND x.row_id = p.b) t ON true \
         WHERE t.at IS NULL OR t.at >= now() - interval '1 hour' ORDER BY 1, 2",
        &[
            left.into(),
            right.into(),
            theirs.mirror.into(),
            ours.mirror.into(),
        ],
        |row| {
            Ok((
                row.get(1)?.unwrap_or_default(),
                row.get(2)?.unwrap_or_default(),
                row.get(3)?.unwrap_or_default(),
            ))
        },
    )
}

/// SQL text of a key's normal form: the one that `crm._match` compares, so that
/// a new row meets what a whole match would have met.
pub(crate) fn normal_form(column: &str, domain: bool) -> Result<String> {
    let transform = if domain { "domain_of_url" } else { "identity" };
    let text = spi::write_text(
        "SELECT crm._match_expr($1, $2, $2)",
        &[column.into(), transform.into()],
    )?;
    Ok(text.unwrap_or_default())
}
