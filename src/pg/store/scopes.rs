//! Whether rows of a mirror fulfil conditions over its columns, also as they
//! would be with some values changed.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::rows::{Table, as_owner};
use super::spi::{self, Result};

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
