//! Changes of policy that wait to be carried out, and whom they concern.

use super::spi::{self, Result};

/// A change of policy, or a request to settle differences.
#[derive(Clone, Debug)]
pub(crate) struct TaskRow {
    pub(crate) id: i64,
    pub(crate) policy_version: i64,
    /// `decide` or `apply`.
    pub(crate) kind: String,
    pub(crate) link: String,
    /// As the left side calls it; `*` for all.
    pub(crate) field: String,
    pub(crate) asked_by: String,
    /// Milliseconds since 1970.
    pub(crate) asked_at: i64,
    /// Entities up to this one are done.
    pub(crate) cursor: i64,
    pub(crate) looked_at: i64,
    pub(crate) reason: Option<String>,
    /// JSON text of the policy's row.
    pub(crate) before: Option<String>,
    pub(crate) after: Option<String>,
}

/// The task that comes first.
pub(crate) fn first() -> Result<Option<TaskRow>> {
    let rows = spi::write_rows(
        "SELECT t.id, t.policy_version, t.kind, t.link, t.field, t.asked_by::text, (extract(epoch FROM t.asked_at) * 1000)::bigint, \
         t.cursor, t.looked_at, h.reason, h.before::text, h.after::text \
         FROM crm.policy_task t LEFT JOIN crm.policy_history h ON h.policy_version = t.policy_version AND t.kind = 'decide' \
         ORDER BY t.id LIMIT 1",
        &[],
        |row| {
            Ok(TaskRow {
                id: row.get(1)?.unwrap_or_default(),
                policy_version: row.get(2)?.unwrap_or_default(),
                kind: row.get(3)?.unwrap_or_default(),
                link: row.get(4)?.unwrap_or_default(),
                field: row.get(5)?.unwrap_or_default(),
                asked_by: row.get(6)?.unwrap_or_default(),
                asked_at: row.get(7)?.unwrap_or_default(),
                cursor: row.get(8)?.unwrap_or_default(),
                looked_at: row.get(9)?.unwrap_or_default(),
                reason: row.get(10)?,
                before: row.get(11)?,
                after: row.get(12)?,
            })
        },
    )?;
    Ok(rows.into_iter().next())
}

/// The next entities of a mirror: those with an unsettled field of this name
/// (any if `*`), or all. With the rows they have there.
pub(crate) fn entities(
    mirror: i32,
    unsettled: Option<&str>,
    after: i64,
    limit: i64,
) -> Result<Vec<(i64, i64)>> {
    let sql = match unsettled {
        Some(_) => {
            "SELECT x.entity, x.row_id FROM crm.xref x WHERE x.mirror = $1 AND x.entity > $2 \
             AND EXISTS (SELECT FROM crm.field_state s WHERE s.entity = x.entity AND $4 IN ('*', s.field)) \
             ORDER BY x.entity LIMIT $3"
        }
        None => {
            "SELECT x.entity, x.row_id FROM crm.xref x WHERE x.mirror = $1 AND x.entity > $2 AND $4 IS NULL \
             ORDER BY x.entity LIMIT $3"
        }
    };
    let field = unsettled.map(str::to_owned);
    spi::write_rows(
        sql,
        &[mirror.into(), after.into(), limit.into(), field.into()],
        |row| {
            Ok((
                row.get(1)?.unwrap_or_default(),
                row.get(2)?.unwrap_or_default(),
            ))
        },
    )
}

/// Notes how far a task has come.
pub(crate) fn advance(task: i64, cursor: i64, looked_at: usize, changed: usize) -> Result<()> {
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    spi::write(
        "UPDATE crm.policy_task SET cursor = $2, looked_at = looked_at + $3, changed = changed + $4 WHERE id = $1",
        &[
            task.into(),
            cursor.into(),
            count(looked_at).into(),
            count(changed).into(),
        ],
    )?;
    Ok(())
}

/// A task is done, or nobody needs it any more.
pub(crate) fn finish(task: i64) -> Result<()> {
    spi::write("DELETE FROM crm.policy_task WHERE id = $1", &[task.into()])?;
    Ok(())
}
