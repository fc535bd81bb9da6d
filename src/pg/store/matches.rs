//! Finding rows that describe the same thing.

use super::rows::Table;
use super::spi::{self, Result};

/// Which of these rows have no CRM id yet.
pub(crate) fn without_id(table: &Table, row_ids: Vec<i64>) -> Result<Vec<i64>> {
    let sql = format!(
        "SELECT m._id FROM {} m WHERE m._id = ANY($1) AND m.id IS NULL",
        table.name
    );
    spi::write_rows(&sql, &[row_ids.into()], |row| {
        Ok(row.get::<i64>(1)?.unwrap_or_default())
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
/// `(our row, their row)`. Rows that are tied to another row of our mirror
/// already are no candidates.
pub(crate) fn candidates(
    ours: Key<'_>,
    theirs: Key<'_>,
    domain: bool,
    row_ids: Vec<i64>,
) -> Result<Vec<(i64, i64)>> {
    if row_ids.is_empty() {
        return Ok(Vec::new());
    }
    let normal = |alias: &str, column: &str| {
        if domain {
            format!("crm._domain_of({alias}.{column})")
        } else {
            format!("lower(btrim({alias}.{column}))")
        }
    };
    let sql = format!(
        "SELECT a._id, b._id FROM {} a JOIN {} b ON {} = {} \
         WHERE a._id = ANY($1) AND a._deleted_at IS NULL AND b._deleted_at IS NULL \
         AND NOT EXISTS (SELECT 1 FROM crm.xref x JOIN crm.xref y ON y.entity = x.entity AND y.mirror = $3 \
           WHERE x.mirror = $2 AND x.row_id = b._id) \
         ORDER BY 1, 2",
        ours.table.name,
        theirs.table.name,
        normal("a", ours.column),
        normal("b", theirs.column),
    );
    spi::write_rows(
        &sql,
        &[row_ids.into(), theirs.mirror.into(), ours.mirror.into()],
        |row| {
            Ok((
                row.get(1)?.unwrap_or_default(),
                row.get(2)?.unwrap_or_default(),
            ))
        },
    )
}
