//! New values of rows of mirrors: below the executor where that can be, by a
//! statement where not.

use std::fmt::Write as _;

use pgrx::pg_sys;

use super::config::ColumnRow;
use super::rows::{Table, as_owner, by_column, input, unnest_columns};
use super::spi::{self, Arg, Result};
use crate::pg::amend::{self, Amendment};
use crate::pg::image::{Image, Tid};

/// New values for one row; `values` in the order of the columns of the call.
#[derive(Clone, Debug)]
pub(crate) struct RowUpdate {
    pub(crate) row_id: i64,
    /// Where the version is that this transaction has locked, if it has.
    pub(crate) tid: Option<Tid>,
    /// New `_sync_source`; empty leaves it as it is.
    pub(crate) source: String,
    /// Milliseconds; 0 leaves `_remote_modified_at` as it is.
    pub(crate) modified_at: i64,
    pub(crate) values: Vec<Option<String>>,
}

/// Sets `columns` of the given rows; rows that hold the values already stay untouched.
pub(crate) fn update(table: &Table, columns: &[&ColumnRow], rows: Vec<RowUpdate>) -> Result<usize> {
    if rows.is_empty() {
        return Ok(0);
    }
    let amended = amend(table, columns, &rows)?;
    if amended == Some(rows.len()) {
        return Ok(rows.len());
    }
    let count = rows.len();
    let mut ids = Vec::with_capacity(count);
    let mut tids = Vec::with_capacity(count);
    let mut sources = Vec::with_capacity(count);
    let mut stamps = Vec::with_capacity(count);
    let values = by_column(
        columns.len(),
        rows.into_iter().map(|row| {
            ids.push(row.row_id);
            tids.extend(row.tid);
            sources.push(row.source);
            stamps.push(row.modified_at);
            row.values
        }),
    );
    let mut image = Image::default();
    let mut places = vec![
        (image.longs(&ids), pg_sys::INT8ARRAYOID),
        (
            image.texts(sources.iter().map(|s| Some(s.as_str()))),
            pg_sys::TEXTARRAYOID,
        ),
        (image.longs(&stamps), pg_sys::INT8ARRAYOID),
    ];
    for column in &values {
        let at = image.texts(column.iter().map(Option::as_deref));
        places.push((at, pg_sys::TEXTARRAYOID));
    }
    // Of those that were done below the executor the places are others now.
    let by_place = amended.is_none() && tids.len() == count;
    if by_place {
        places.push((image.tids(&tids), pg_sys::TIDARRAYOID));
    }
    let mut args: Vec<Arg<'_>> = places.iter().map(|(at, t)| image.arg(*at, *t)).collect();
    as_owner(table, || {
        if by_place {
            let done = spi::write(&update_statement(table, columns, true), &args)?;
            if done == count {
                return Ok(done);
            }
            // Some hold the values already, or a trigger has touched them since
            // they were locked: look at them by their key.
            args.pop();
        }
        let rest = spi::write(&update_statement(table, columns, false), &args)?;
        Ok(amended.unwrap_or(0) + rest)
    })
}

/// The statement of [`update`]; rows are found by place, which costs no descent
/// of an index, or by key.
fn update_statement(table: &Table, columns: &[&ColumnRow], by_place: bool) -> String {
    let (arrays, names) = unnest_columns(4, columns.len());
    let mut sets = String::new();
    let mut differs = String::from(
        "v.src <> '' AND m._sync_source IS DISTINCT FROM v.src \
         OR v.at > 0 AND m._remote_modified_at IS DISTINCT FROM to_timestamp(v.at::float8 / 1000)",
    );
    for (i, column) in columns.iter().enumerate() {
        let value = input(column, i);
        let _ = write!(sets, "{} = {value}, ", column.quoted);
        let _ = write!(differs, " OR m.{} IS DISTINCT FROM {value}", column.quoted);
    }
    let (places, place, found) = match by_place {
        true => (
            format!(", ${}::tid[]", 4 + columns.len()),
            ", tid",
            "m.ctid = v.tid AND m._id = v._id",
        ),
        false => (String::new(), "", "m._id = v._id"),
    };
    format!(
        "UPDATE {} m SET {sets}_sync_source = CASE WHEN v.src = '' THEN m._sync_source ELSE v.src END, _remote_modified_at = CASE WHEN v.at > 0 \
         THEN greatest(m._remote_modified_at, to_timestamp(v.at::float8 / 1000)) ELSE m._remote_modified_at END \
         FROM unnest($1::bigint[], $2::text[], $3::bigint[]{arrays}{places}) AS v(_id, src, at{names}{place}) \
         WHERE {found} AND ({differs})",
        table.name
    )
}

/// [`update`] below the executor, for rows whose places are known; how many were
/// done, if the table allows it. For the others it takes the statement.
fn amend(table: &Table, columns: &[&ColumnRow], rows: &[RowUpdate]) -> Result<Option<usize>> {
    let changes: Option<Vec<Amendment<'_>>> = (rows.iter())
        .map(|row| {
            Some(Amendment {
                row_id: row.row_id,
                tid: row.tid?,
                source: &row.source,
                modified_at: row.modified_at,
                values: &row.values,
            })
        })
        .collect();
    let Some(changes) = changes else {
        return Ok(None);
    };
    let names: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
    as_owner(table, || Ok(amend::amend(table.relid, &names, &changes)))
}
