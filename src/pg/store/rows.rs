//! Rows of mirrors: lock, read, update, insert; always whole batches.
//!
//! Every statement runs as the mirror's owner in a security-restricted
//! context, and with the capture trigger told that the engine itself writes.

use std::fmt::Write as _;

use crm_core::model::{FieldType, Record};
use crm_core::value;

use super::config::ColumnRow;
use super::spi::{self, Arg, Result};
pub(crate) use super::updates::{RowUpdate, update};
use crate::pg::copy::{self, CopyText};
use crate::pg::image::{self, Tid};
use crate::pg::load;
use crate::pg::origin;

/// A mirror's table, as far as statements need it.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    /// Quoted and qualified name.
    pub(crate) name: String,
    /// Oid, for the capture trigger.
    pub(crate) relid: u32,
    /// Which rows the mirror takes from the CRM: an expression over its columns.
    pub(crate) filter: Option<String>,
}

/// A locked row with some of its columns in canonical text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    pub(crate) row_id: i64,
    /// Where the locked version is.
    pub(crate) tid: Option<Tid>,
    pub(crate) record_id: Option<String>,
    /// Milliseconds since 1970; 0 if never observed.
    pub(crate) modified_at: i64,
    pub(crate) deleted: bool,
    /// Shown as deleted because its linked record is; its own CRM keeps it.
    pub(crate) hidden: bool,
    pub(crate) values: Vec<Option<String>>,
}

impl Row {
    /// Whether its CRM has its record no more.
    pub(crate) fn is_gone(&self) -> bool {
        self.deleted && !self.hidden
    }
}

/// A row to insert.
#[derive(Clone, Debug)]
pub(crate) struct RowInsert {
    pub(crate) record_id: Option<String>,
    pub(crate) source: String,
    pub(crate) modified_at: i64,
    pub(crate) deleted: bool,
    pub(crate) values: Vec<Option<String>>,
}

/// A column as canonical text, from the row called `m`.
fn output(column: &ColumnRow) -> String {
    let q = &column.quoted;
    match column.column_type.as_str() {
        "text" => format!("m.{q}"),
        "timestamp with time zone" => {
            format!("to_char(m.{q} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')")
        }
        "text[]" => format!("array_to_string(m.{q}, ';')"),
        _ => format!("m.{q}::text"),
    }
}

/// Canonical text from `v.c<index>` as the column's type.
pub(super) fn input(column: &ColumnRow, index: usize) -> String {
    match column.column_type.as_str() {
        "text" => format!("v.c{index}"),
        "text[]" => format!("string_to_array(v.c{index}, ';')"),
        other => format!("v.c{index}::{other}"),
    }
}

/// Runs `work` with the owner's rights, not captured.
pub(crate) fn as_owner<T>(table: &Table, work: impl FnOnce() -> Result<T>) -> Result<T> {
    origin::as_engine(table.relid, work)
}

pub(super) fn select_list(columns: &[&ColumnRow]) -> String {
    columns.iter().fold(String::new(), |mut list, column| {
        let _ = write!(list, ", {}", output(column));
        list
    })
}

fn lock(table: &Table, columns: &[&ColumnRow], key: &str, arg: Arg<'_>) -> Result<Vec<Row>> {
    let key = format!("{key} FOR NO KEY UPDATE OF m SKIP LOCKED");
    select(table, columns, &key, arg)
}

/// Locks rows, waiting for those who hold them, up to the lock timeout.
pub(crate) fn wait_for(table: &Table, ids: Vec<i64>) -> Result<()> {
    let sql = format!(
        "SELECT m._id FROM {} m WHERE m._id = ANY($1) ORDER BY m._id FOR NO KEY UPDATE",
        table.name
    );
    spi::write_rows(&sql, &[ids.into()], |_| Ok(()))?;
    Ok(())
}

/// Rows as they are, by local row id, not locked.
pub(crate) fn look(table: &Table, columns: &[&ColumnRow], ids: Vec<i64>) -> Result<Vec<Row>> {
    select(table, columns, "m._id = ANY($1)", ids.into())
}

pub(super) fn select(
    table: &Table,
    columns: &[&ColumnRow],
    rest: &str,
    arg: Arg<'_>,
) -> Result<Vec<Row>> {
    let sql = format!(
        "SELECT m._id, m.id, coalesce((date_part('epoch', m._remote_modified_at) * 1000)::bigint, 0), \
         m._deleted_at IS NOT NULL, coalesce(m._sync_state = 'soft_deleted', false), m.ctid{} FROM {} m WHERE {rest}",
        select_list(columns),
        table.name,
    );
    as_owner(table, || {
        spi::write_rows(&sql, &[arg], |row| {
            let mut values = Vec::with_capacity(columns.len());
            for i in 0..columns.len() {
                values.push(row.get::<String>(7 + i)?.filter(|v| !v.is_empty()));
            }
            Ok(Row {
                row_id: row.get(1)?.unwrap_or_default(),
                tid: row.get(6)?,
                record_id: row.get(2)?,
                modified_at: row.get(3)?.unwrap_or_default(),
                deleted: row.get(4)?.unwrap_or_default(),
                hidden: row.get(5)?.unwrap_or_default(),
                values,
            })
        })
    })
}

/// One row as it is, not locked, with the rights of whoever asks.
pub(crate) fn read(table: &Table, columns: &[&ColumnRow], row_id: i64) -> Result<Option<Row>> {
    let sql = format!(
        "SELECT m._id, m.id, m._deleted_at IS NOT NULL{} FROM {} m WHERE m._id = $1",
        select_list(columns),
        table.name,
    );
    let found = spi::read_rows(&sql, &[row_id.into()], |row| {
        let mut values = Vec::with_capacity(columns.len());
        for i in 0..columns.len() {
            values.push(row.get::<String>(4 + i)?.filter(|v| !v.is_empty()));
        }
        Ok(Row {
            row_id: row.get(1)?.unwrap_or_default(),
            tid: None,
            record_id: row.get(2)?,
            modified_at: 0,
            deleted: row.get(3)?.unwrap_or_default(),
            hidden: false,
            values,
        })
    })?;
    Ok(found.into_iter().next())
}

/// Locks the rows of these CRM ids that nobody else holds, and reads `columns`.
pub(crate) fn lock_by_record(
    table: &Table,
    columns: &[&ColumnRow],
    ids: Vec<String>,
) -> Result<Vec<Row>> {
    lock(table, columns, "m.id = ANY($1)", image::texts(&ids))
}

/// The same by local row id.
pub(crate) fn lock_by_row(
    table: &Table,
    columns: &[&ColumnRow],
    ids: Vec<i64>,
) -> Result<Vec<Row>> {
    lock(table, columns, "m._id = ANY($1)", image::longs(&ids))
}

/// Which of these CRM ids have a row, locked by somebody or not.
pub(crate) fn present(table: &Table, ids: Vec<String>) -> Result<Vec<String>> {
    let sql = format!("SELECT m.id FROM {} m WHERE m.id = ANY($1)", table.name);
    as_owner(table, || {
        spi::write_rows(&sql, &[image::texts(&ids)], |row| {
            Ok(row.get::<String>(1)?.unwrap_or_default())
        })
    })
}

/// Which of these CRM ids have a row that does not show them as gone from their CRM.
pub(crate) fn there(table: &Table, ids: Vec<String>) -> Result<Vec<String>> {
    let sql = format!(
        "SELECT m.id FROM {} m WHERE m.id = ANY($1) AND (m._deleted_at IS NULL OR m._sync_state = 'soft_deleted')",
        table.name
    );
    as_owner(table, || {
        spi::write_rows(&sql, &[image::texts(&ids)], |row| {
            Ok(row.get::<String>(1)?.unwrap_or_default())
        })
    })
}

/// Which of these local row ids exist, locked by somebody or not.
pub(crate) fn present_rows(table: &Table, ids: Vec<i64>) -> Result<Vec<i64>> {
    let sql = format!("SELECT m._id FROM {} m WHERE m._id = ANY($1)", table.name);
    as_owner(table, || {
        spi::write_rows(&sql, &[ids.into()], |row| {
            Ok(row.get::<i64>(1)?.unwrap_or_default())
        })
    })
}

/// Turns rows of values into one array per column.
pub(super) fn by_column(
    width: usize,
    rows: impl Iterator<Item = Vec<Option<String>>>,
) -> Vec<Vec<Option<String>>> {
    let mut out: Vec<Vec<Option<String>>> = (0..width).map(|_| Vec::new()).collect();
    for values in rows {
        for (column, value) in out.iter_mut().zip(values) {
            column.push(value);
        }
    }
    out
}

pub(super) fn unnest_columns(first: usize, width: usize) -> (String, String) {
    let mut arrays = String::new();
    let mut names = String::new();
    for i in 0..width {
        let _ = write!(arrays, ", ${}::text[]", first + i);
        let _ = write!(names, ", c{i}");
    }
    (arrays, names)
}

/// Inserts rows; those whose CRM id has a row already are left out.
/// Answers `(row id, CRM id)` of the new ones.
pub(crate) fn insert(
    table: &Table,
    columns: &[&ColumnRow],
    rows: Vec<RowInsert>,
) -> Result<Vec<(i64, Option<String>)>> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let (arrays, names) = unnest_columns(5, columns.len());
    let mut into = String::new();
    let mut list = String::new();
    for (i, column) in columns.iter().enumerate() {
        let _ = write!(into, ", {}", column.quoted);
        let _ = write!(list, ", {} AS {}", input(column, i), column.quoted);
    }
    // The filter speaks of the mirror's columns, hence the inner names.
    let filter = table.filter.as_ref().map_or(String::new(), |f| {
        format!(" WHERE n._deleted_at IS NOT NULL OR n.id IS NULL OR ({f})")
    });
    let sql = format!(
        "INSERT INTO {} AS m (id, _sync_source, _remote_modified_at, _deleted_at, _sync_state{into}) \
         SELECT n.* FROM (SELECT v.id, v.src AS _sync_source, \
         CASE WHEN v.at > 0 THEN to_timestamp(v.at::float8 / 1000) END AS _remote_modified_at, \
         CASE WHEN v.gone THEN now() END AS _deleted_at, CASE WHEN v.gone THEN 'deleted' END AS _sync_state{list} \
         FROM unnest($1::text[], $2::text[], $3::bigint[], $4::boolean[]{arrays}) AS v(id, src, at, gone{names})) n{filter} \
         ON CONFLICT (id) DO NOTHING RETURNING m._id, m.id",
        table.name
    );
    let mut ids = Vec::with_capacity(rows.len());
    let mut sources = Vec::with_capacity(rows.len());
    let mut stamps = Vec::with_capacity(rows.len());
    let mut gone = Vec::with_capacity(rows.len());
    let values = by_column(
        columns.len(),
        rows.into_iter().map(|row| {
            ids.push(row.record_id);
            sources.push(row.source);
            stamps.push(row.modified_at);
            gone.push(row.deleted);
            row.values
        }),
    );
    let mut args: Vec<Arg<'_>> = vec![ids.into(), sources.into(), stamps.into(), gone.into()];
    args.extend(values.into_iter().map(Arg::from));
    as_owner(table, || {
        spi::write_rows(&sql, &args, |row| {
            Ok((row.get(1)?.unwrap_or_default(), row.get(2)?))
        })
    })
}

/// Marks rows as gone from, or back in, the CRM, if they are not marked so yet. Hidden
/// ones, whose CRM kept the record, are gone from then on.
pub(crate) fn mark_deleted(
    table: &Table,
    row_ids: Vec<i64>,
    deleted: bool,
    source: &str,
) -> Result<usize> {
    let sql = format!(
        "UPDATE {} m SET _deleted_at = CASE WHEN $2 THEN coalesce(m._deleted_at, now()) END, \
         _sync_state = CASE WHEN $2 THEN 'deleted' END, _sync_source = $3 \
         WHERE m._id = ANY($1) AND ((m._deleted_at IS NOT NULL) <> $2 OR $2 AND m._sync_state = 'soft_deleted')",
        table.name
    );
    as_owner(table, || {
        spi::write(&sql, &[row_ids.into(), deleted.into(), source.into()])
    })
}

/// Records the result of writes on their rows: new CRM ids, error or all clear.
/// `state` and `error` are per row; `id` only where the row has none yet. Hidden rows
/// stay hidden.
pub(crate) fn record_results(
    table: &Table,
    row_ids: Vec<i64>,
    ids: Vec<Option<String>>,
    states: Vec<Option<String>>,
    errors: Vec<Option<String>>,
) -> Result<usize> {
    let sql = format!(
        "UPDATE {} m SET id = coalesce(m.id, v.id), _sync_error = v.error, \
         _sync_state = CASE WHEN m._sync_state = 'soft_deleted' THEN m._sync_state ELSE v.state END \
         FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[]) AS v(_id, id, state, error) \
         WHERE m._id = v._id AND m._sync_state IS DISTINCT FROM 'erased' AND (m.id IS NULL AND v.id IS NOT NULL \
         OR m._sync_state IS DISTINCT FROM v.state OR m._sync_error IS DISTINCT FROM v.error)",
        table.name
    );
    as_owner(table, || {
        spi::write(
            &sql,
            &[row_ids.into(), ids.into(), states.into(), errors.into()],
        )
    })
}

/// Puts the row that already holds `record_id` in the place of `row_id`, which
/// was waiting for that id: its entity and its writes move, the row goes. Answers
/// the row that stays.
pub(crate) fn replace(
    table: &Table,
    mirror: i32,
    row_id: i64,
    record_id: &str,
) -> Result<Option<i64>> {
    let sql = format!("SELECT m._id FROM {} m WHERE m.id = $1", table.name);
    let kept = as_owner(table, || {
        spi::write_rows(&sql, &[record_id.into()], |row| {
            Ok(row.get::<i64>(1)?.unwrap_or_default())
        })
    })?;
    let Some(kept) = kept.first().copied().filter(|k| *k != row_id) else {
        return Ok(None);
    };
    let args = |a: i64, b: i64| -> [Arg<'static>; 3] { [mirror.into(), a.into(), b.into()] };
    spi::write(
        "UPDATE crm.xref SET row_id = $3 WHERE mirror = $1 AND row_id = $2 \
         AND NOT EXISTS (SELECT 1 FROM crm.xref x WHERE x.mirror = $1 AND x.row_id = $3)",
        &args(row_id, kept),
    )?;
    spi::write(
        "DELETE FROM crm.xref WHERE mirror = $1 AND row_id = $2 AND $3 > 0",
        &args(row_id, kept),
    )?;
    spi::write(
        "UPDATE crm.write SET row_id = $3, kind = CASE WHEN kind = 'create' THEN 'update' ELSE kind END \
         WHERE mirror = $1 AND row_id = $2",
        &args(row_id, kept),
    )?;
    spi::write(
        "UPDATE crm.write SET record_id = $3 WHERE mirror = $1 AND row_id = $2 AND record_id IS NULL",
        &[mirror.into(), kept.into(), record_id.into()],
    )?;
    let sql = format!(
        "DELETE FROM {} m WHERE m._id = $1 AND m.id IS NULL",
        table.name
    );
    as_owner(table, || spi::write(&sql, &[row_id.into()]))?;
    Ok(Some(kept))
}

/// Loads records of a first copy. The mirror has no row filter. A record that
/// has a row already is an error.
pub(crate) fn load<'r>(
    table: &Table,
    columns: &[&ColumnRow],
    source: &str,
    records: impl Iterator<Item = &'r Record>,
) -> Result<usize> {
    let records: Vec<&Record> = records.collect();
    spi::grown(records.len());
    let names: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
    as_owner(table, || {
        if let Some(loaded) = load::load(table.relid, &names, source, &records) {
            return Ok(loaded);
        }
        let mut all = vec!["id", "_sync_source", "_remote_modified_at"];
        all.extend(names);
        let text = copy_text(columns, source, &records);
        let loaded = copy::load(table.relid, &all, text);
        Ok(usize::try_from(loaded).unwrap_or_default())
    })
}

/// What COPY reads for these records.
fn copy_text(columns: &[&ColumnRow], source: &str, records: &[&Record]) -> CopyText {
    let is_list: Vec<bool> = columns.iter().map(|c| c.column_type == "text[]").collect();
    let mut text = CopyText::default();
    for record in records {
        text.row();
        text.value(Some(&record.id));
        text.value(Some(source));
        let stamp = record.modified_at.filter(|at| *at > 0);
        text.value(stamp.and_then(value::format_instant).as_deref());
        for (index, is_list) in is_list.iter().enumerate() {
            match record.values.get(index) {
                Some(value) if *is_list => {
                    text.value(Some(&value::to_postgres(FieldType::MultiChoice, value)));
                }
                value => text.value(value),
            }
        }
    }
    text
}
