//! Changes of policy that wait to be carried out, whom they concern, and the
//! functions of users that decide.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use crm_core::evaluate::{Evaluation, Question};
use crm_core::model::Value;
use crm_core::state::Interval;
use crm_core::value::format_instant;

use super::spi::{self, Result};
use crate::pg::guc;
use crate::pg::timeout;
use crate::pg::tx::{self, SqlError};

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

const FUNCTION: &str = "SELECT format('%I.%I', n.nspname, p.proname), p.proowner::bigint, left(md5(pg_get_functiondef(p.oid)), 12), \
     coalesce(pg_has_role(a.oid, p.proowner, 'MEMBER') AND (a.rolsuper OR NOT o.rolsuper), false) \
     FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
     JOIN pg_catalog.pg_roles o ON o.oid = p.proowner \
     LEFT JOIN crm.conflict_policy c ON c.id = $2 LEFT JOIN pg_catalog.pg_roles a ON a.rolname = c.changed_by \
     WHERE p.oid = pg_catalog.to_regprocedure($1 || '(text, text, jsonb)') AND p.prorettype = 'text'::regtype \
     AND p.provolatile <> 'v' AND p.prokind = 'f' AND NOT p.proretset";

/// A user's function as the catalog knows it now.
struct Function {
    name: String,
    owner: u32,
    version: String,
    /// Who wrote the policy row may act as the function's owner.
    allowed: bool,
}

/// Asks a user's function: as its owner, for a bounded time; an error or a
/// timeout is an answer too.
pub(crate) fn evaluate(question: &Question) -> Result<Evaluation> {
    let found = spi::write_rows(
        FUNCTION,
        &[question.function.clone().into(), question.rule.into()],
        |row| {
            Ok(Function {
                name: row.get(1)?.unwrap_or_default(),
                owner: u32::try_from(row.get::<i64>(2)?.unwrap_or_default()).unwrap_or_default(),
                version: row.get(3)?.unwrap_or_default(),
                allowed: row.get(4)?.unwrap_or_default(),
            })
        },
    )?;
    let said = |version: String, answer| Evaluation {
        question: question.clone(),
        version,
        answer,
    };
    let Some(function) = found.into_iter().next() else {
        let gone = "is not there any more, or is volatile".to_owned();
        return Ok(said(String::new(), Err(gone)));
    };
    if !function.allowed {
        let stranger = "belongs to a role that the author of the policy row cannot act as";
        return Ok(said(function.version, Err(stranger.to_owned())));
    }
    if resting(&function.name) {
        let rests = "was not asked: it timed out lately".to_owned();
        return Ok(said(function.version, Err(rests)));
    }
    let answer = call(&function, question);
    if answer.as_ref().is_err_and(|e| e.sqlstate == "57014") {
        rest(&function.name);
    }
    let answer = answer.map_err(|e| format!("{} ({})", e.message, e.sqlstate));
    Ok(said(function.version, answer))
}

fn call(function: &Function, question: &Question) -> std::result::Result<Value, SqlError> {
    let sql = format!("SELECT {}($1, $2, $3::jsonb)", function.name);
    let owner = pgrx::pg_sys::Oid::from(function.owner);
    let context = context(question);
    timeout::within(guc::function_timeout(), || {
        tx::in_subtransaction(|| {
            let args: [spi::Arg<'_>; 3] = [
                question.held.clone().into(),
                question.came.clone().into(),
                context.into(),
            ];
            let rows = tx::as_role(owner, || {
                tx::with_search_path(c"pg_catalog, pg_temp", || {
                    spi::write_rows(&sql, &args, |row| row.get::<String>(1))
                })
            })?;
            let value = rows.into_iter().next().flatten();
            Ok(value.filter(|v| !v.is_empty()))
        })
    })
}

/// What the function is told beside the two values, as JSON text.
fn context(question: &Question) -> String {
    let at = |interval: Option<Interval>| interval.and_then(|i| format_instant(i.from));
    serde_json::json!({
        "field": question.field,
        "held_origin": question.held_origin,
        "held_at": at(question.held_at),
        "came_origin": question.came_origin,
        "came_at": at(Some(question.came_at)),
        "agreed": question.base.is_some(),
        "base": question.base.clone().flatten(),
    })
    .to_string()
}

/// After so many timeouts in a row a function is left alone for a while: each
/// costs everybody the whole timeout.
const TIMEOUTS: u32 = 3;
const REST: Duration = Duration::from_secs(30);

thread_local! {
    static TIMED_OUT: RefCell<HashMap<String, (u32, Instant)>> = RefCell::new(HashMap::new());
}

fn resting(function: &str) -> bool {
    TIMED_OUT.with_borrow_mut(|list| {
        list.retain(|_, (_, at)| at.elapsed() < REST);
        list.get(function).is_some_and(|(n, _)| *n >= TIMEOUTS)
    })
}

fn rest(function: &str) {
    TIMED_OUT.with_borrow_mut(|list| {
        let entry = list
            .entry(function.to_owned())
            .or_insert_with(|| (0, Instant::now()));
        *entry = (entry.0 + 1, Instant::now());
    });
}
