//! What questions read: nothing is locked, written or noted, and no transaction
//! id is taken, so that they work on a standby too.

use super::ledger::XrefRow;
use super::rows::{Table, as_owner};
use super::spi::{self, Result};

/// All rows of the entity that a row belongs to, itself included; empty if it
/// belongs to none.
pub(crate) fn entity_of(mirror: i32, row_id: i64) -> Result<Vec<XrefRow>> {
    spi::read_rows(
        "SELECT y.mirror, y.row_id, y.entity FROM crm.xref x JOIN crm.xref y ON y.entity = x.entity \
         WHERE x.mirror = $1 AND x.row_id = $2 AND x.merged_into IS NULL AND y.merged_into IS NULL",
        &[mirror.into(), row_id.into()],
        |row| {
            Ok(XrefRow {
                mirror: row.get(1)?.unwrap_or_default(),
                row_id: row.get(2)?.unwrap_or_default(),
                entity: row.get(3)?.unwrap_or_default(),
            })
        },
    )
}

/// Names and states (JSON) of an entity's unsettled fields.
pub(crate) fn field_states(entity: i64) -> Result<Vec<(String, String)>> {
    spi::read_rows(
        "SELECT field, state::text FROM crm.field_state WHERE entity = $1",
        &[entity.into()],
        |row| {
            Ok((
                row.get(1)?.unwrap_or_default(),
                row.get(2)?.unwrap_or_default(),
            ))
        },
    )
}

/// Whether the caller may read a table.
pub(crate) fn may_read(relid: u32) -> Result<bool> {
    let oid = pgrx::pg_sys::Oid::from(relid);
    let found = spi::read_rows(
        "SELECT pg_catalog.has_table_privilege($1, 'SELECT')",
        &[oid.into()],
        |row| row.get::<bool>(1),
    )?;
    Ok(found.into_iter().next().flatten().unwrap_or_default())
}

/// A write that is not finished, as answers show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OpenWrite {
    pub(crate) id: i64,
    pub(crate) mirror: i32,
    pub(crate) row_id: i64,
    pub(crate) record_id: Option<String>,
    pub(crate) kind: String,
    pub(crate) state: String,
    /// JSON objects by field: what is sent, and what it replaces.
    pub(crate) vals: String,
    pub(crate) old_vals: String,
    pub(crate) origin: String,
    pub(crate) error: Option<String>,
}

const OPEN: &str = "SELECT w.id, w.mirror, w.row_id, w.record_id, w.kind, w.state, w.vals::text, w.old_vals::text, w.origin, w.error \
     FROM crm.write w";

fn open_write(row: &super::cells::Cells) -> Result<OpenWrite> {
    Ok(OpenWrite {
        id: row.get(1)?.unwrap_or_default(),
        mirror: row.get(2)?.unwrap_or_default(),
        row_id: row.get(3)?.unwrap_or_default(),
        record_id: row.get(4)?,
        kind: row.get(5)?.unwrap_or_default(),
        state: row.get(6)?.unwrap_or_default(),
        vals: row.get(7)?.unwrap_or_default(),
        old_vals: row.get(8)?.unwrap_or_default(),
        origin: row.get(9)?.unwrap_or_default(),
        error: row.get(10)?,
    })
}

/// Unfinished writes of these rows, as a rehearsal sees them.
pub(crate) fn open_writes(rows: &[(i32, i64)]) -> Result<Vec<OpenWrite>> {
    let (mirrors, row_ids): (Vec<i32>, Vec<i64>) = rows.iter().copied().unzip();
    let sql = format!(
        "{OPEN} JOIN unnest($1::int[], $2::bigint[]) AS v(mirror, row_id) USING (mirror, row_id) ORDER BY w.id"
    );
    spi::write_rows(&sql, &[mirrors.into(), row_ids.into()], open_write)
}

/// One unfinished write.
pub(crate) fn write(id: i64) -> Result<Option<OpenWrite>> {
    let sql = format!("{OPEN} WHERE w.id = $1");
    let found = spi::read_rows(&sql, &[id.into()], open_write)?;
    Ok(found.into_iter().next())
}

/// All rows of the entities of these rows, with them, as a rehearsal sees them.
pub(crate) fn with_partners(rows: &[(i32, i64)]) -> Result<Vec<(i32, i64)>> {
    let (mirrors, row_ids): (Vec<i32>, Vec<i64>) = rows.iter().copied().unzip();
    spi::write_rows(
        "SELECT v.mirror, v.row_id FROM unnest($1::int[], $2::bigint[]) AS v(mirror, row_id) \
         UNION SELECT y.mirror, y.row_id FROM unnest($1::int[], $2::bigint[]) AS v(mirror, row_id) \
         JOIN crm.xref x ON x.mirror = v.mirror AND x.row_id = v.row_id AND x.merged_into IS NULL \
         JOIN crm.xref y ON y.entity = x.entity AND y.merged_into IS NULL",
        &[mirrors.into(), row_ids.into()],
        |row| {
            Ok((
                row.get(1)?.unwrap_or_default(),
                row.get(2)?.unwrap_or_default(),
            ))
        },
    )
}

/// Questions about these rows as a whole: `(id, mirror, row, reason)`.
pub(crate) fn questions(rows: &[(i32, i64)]) -> Result<Vec<(i64, i32, i64, String)>> {
    let (mirrors, row_ids): (Vec<i32>, Vec<i64>) = rows.iter().copied().unzip();
    spi::write_rows(
        "SELECT r.id, r.mirror, r.row_id, r.reason FROM unnest($1::int[], $2::bigint[]) AS v(mirror, row_id) \
         JOIN crm.review_item r USING (mirror, row_id) WHERE r.kind <> 'field' ORDER BY r.id",
        &[mirrors.into(), row_ids.into()],
        |row| {
            Ok((
                row.get(1)?.unwrap_or_default(),
                row.get(2)?.unwrap_or_default(),
                row.get(3)?.unwrap_or_default(),
                row.get(4)?.unwrap_or_default(),
            ))
        },
    )
}

/// Names and types of the servers of our kind.
pub(crate) fn servers() -> Result<Vec<(String, String)>> {
    spi::read_rows(
        "SELECT server, coalesce(server_type, '') FROM crm._server",
        &[],
        |row| {
            Ok((
                row.get(1)?.unwrap_or_default(),
                row.get(2)?.unwrap_or_default(),
            ))
        },
    )
}

/// An event that waits to be decided.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) mirror: i32,
    pub(crate) record_id: String,
    pub(crate) source: String,
    /// JSON.
    pub(crate) change: String,
    /// `locked` or `read`.
    pub(crate) reason: String,
}

/// An event that waits, after those of the same record that wait before it.
/// Empty if there is no such event.
pub(crate) fn waiting(id: i64) -> Result<Vec<Waiting>> {
    spi::read_rows(
        "SELECT d.mirror, d.record_id, d.source, d.change::text, d.reason FROM crm.deferred asked \
         JOIN crm.deferred d ON d.mirror = asked.mirror AND d.record_id = asked.record_id AND d.id <= asked.id \
         WHERE asked.id = $1 ORDER BY d.id",
        &[id.into()],
        |row| {
            Ok(Waiting {
                mirror: row.get(1)?.unwrap_or_default(),
                record_id: row.get(2)?.unwrap_or_default(),
                source: row.get(3)?.unwrap_or_default(),
                change: row.get(4)?.unwrap_or_default(),
                reason: row.get(5)?.unwrap_or_default(),
            })
        },
    )
}

/// The row of a record, as `(mirror, row)`, if there is one.
pub(crate) fn rows_of(
    mirror: i32,
    record_id: &str,
    table: Option<&Table>,
) -> Result<Vec<(i32, i64)>> {
    let Some(table) = table else {
        return Ok(Vec::new());
    };
    let sql = format!("SELECT m._id FROM {} m WHERE m.id = $1", table.name);
    as_owner(table, || {
        spi::read_rows(&sql, &[record_id.into()], |row| {
            Ok((mirror, row.get::<i64>(1)?.unwrap_or_default()))
        })
    })
}

/// A row, the entity that it belongs to, and one row of that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tie {
    pub(crate) mirror: i32,
    pub(crate) row_id: i64,
    pub(crate) entity: i64,
    pub(crate) other: i32,
    pub(crate) other_row: i64,
}

/// The entities of rows, with all their rows.
pub(crate) fn ties(rows: &[(i32, i64)]) -> Result<Vec<Tie>> {
    let (mirrors, row_ids): (Vec<i32>, Vec<i64>) = rows.iter().copied().unzip();
    spi::read_rows(
        "SELECT v.mirror, v.row_id, x.entity, y.mirror, y.row_id FROM unnest($1::int[], $2::bigint[]) AS v(mirror, row_id) \
         JOIN crm.xref x ON x.mirror = v.mirror AND x.row_id = v.row_id AND x.merged_into IS NULL \
         JOIN crm.xref y ON y.entity = x.entity AND y.merged_into IS NULL",
        &[mirrors.into(), row_ids.into()],
        |row| {
            Ok(Tie {
                mirror: row.get(1)?.unwrap_or_default(),
                row_id: row.get(2)?.unwrap_or_default(),
                entity: row.get(3)?.unwrap_or_default(),
                other: row.get(4)?.unwrap_or_default(),
                other_row: row.get(5)?.unwrap_or_default(),
            })
        },
    )
}

/// Puts rows of a draft into the policy, checked as any, and reads the whole
/// configuration with them. The caller undoes it.
pub(crate) fn with_draft(draft: pgrx::JsonB) -> Result<String> {
    spi::write("SELECT crm._policy_draft($1)", &[draft.into()])?;
    super::config::peek_now()
}

/// Who asks.
pub(crate) fn session_user() -> Result<String> {
    Ok(spi::read_text("SELECT session_user::text")?.unwrap_or_default())
}

/// Number of the newest change of policy that the worker has not carried out.
pub(crate) fn last_task() -> Result<i64> {
    let found = spi::read_rows(
        "SELECT coalesce(max(id), 0) FROM crm.policy_task",
        &[],
        |row| row.get::<i64>(1),
    )?;
    Ok(found.into_iter().next().flatten().unwrap_or_default())
}

/// Leaves those tasks out of a rehearsal.
pub(crate) fn forget_tasks(until: i64) -> Result<()> {
    spi::write(
        "DELETE FROM crm.policy_task WHERE id <= $1",
        &[until.into()],
    )?;
    Ok(())
}

/// Rows of entities with unsettled fields, one per entity, up to `limit`.
pub(crate) fn unsettled(limit: i64) -> Result<Vec<(i32, i64)>> {
    spi::write_rows(
        "SELECT min(x.mirror), (array_agg(x.row_id ORDER BY x.mirror))[1] FROM crm.xref x \
         WHERE x.entity IN (SELECT DISTINCT s.entity FROM crm.field_state s LIMIT $1) AND x.merged_into IS NULL GROUP BY x.entity",
        &[limit.into()],
        |row| {
            Ok((
                row.get(1)?.unwrap_or_default(),
                row.get(2)?.unwrap_or_default(),
            ))
        },
    )
}
