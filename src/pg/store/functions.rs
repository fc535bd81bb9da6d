//! Users' functions: those that decide ([`evaluate`]) and those that map
//! ([`images`]). All are called in one way ([`ask`]): as their owner, for a bounded
//! time, and with no error getting further than the value that raised it.

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

/// Calls a user's function in a statement that returns one text per row: with the
/// rights of its owner and no search path of anybody's, in a subtransaction, for at
/// most so long. Empty is null.
fn ask(
    owner: u32,
    sql: &str,
    args: &[spi::Arg<'_>],
    most: Duration,
) -> std::result::Result<Vec<Value>, SqlError> {
    let owner = pgrx::pg_sys::Oid::from(owner);
    timeout::within(most, || {
        tx::in_subtransaction(|| {
            let rows = tx::as_role(owner, || {
                tx::with_search_path(c"pg_catalog, pg_temp", || {
                    spi::write_rows(sql, args, |row| row.get::<String>(1))
                })
            })?;
            let filled = |value: Value| value.filter(|v| !v.is_empty());
            Ok(rows.into_iter().map(filled).collect())
        })
    })
}

/// An error of a function as its caller tells it.
fn told(error: &SqlError) -> String {
    format!("{} ({})", error.message, error.sqlstate)
}

/// A mapping function as the catalog knows it now.
struct Function {
    /// Quoted and qualified name.
    name: String,
    owner: u32,
    argument: String,
    result: String,
}

const LOOK_UP: &str = "
SELECT format('%I.%I', n.nspname, p.proname), p.proowner::bigint,
       format_type(p.proargtypes[0], NULL), format_type(p.prorettype, NULL)
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE p.oid = crm._function_found($1) AND p.provolatile = 'i' AND NOT p.proretset AND p.prokind = 'f'";

/// The images of values, in canonical text, or why there is none. One call may
/// take `pg_crm_sync.function_timeout`, all of them ten times that.
pub(crate) fn images(
    signature: &str,
    values: Vec<String>,
) -> Result<Vec<std::result::Result<Option<String>, String>>> {
    let found = spi::write_rows(LOOK_UP, &[signature.into()], |row| {
        Ok(Function {
            name: row.get(1)?.unwrap_or_default(),
            owner: u32::try_from(row.get::<i64>(2)?.unwrap_or_default()).unwrap_or_default(),
            argument: row.get(3)?.unwrap_or_default(),
            result: row.get(4)?.unwrap_or_default(),
        })
    })?;
    let Some(function) = found.into_iter().next() else {
        let reason = format!("function {signature} is not there any more, or not IMMUTABLE");
        return Ok(values.iter().map(|_| Err(reason.clone())).collect());
    };
    let timeout = guc::function_timeout();
    let mut calls = Calls {
        until: Instant::now() + timeout * 10,
        timeout,
        sql: format!(
            "SELECT {} FROM unnest($1::text[]) WITH ORDINALITY AS v(x, n) ORDER BY v.n",
            output(
                &format!("{}({})", function.name, input(&function.argument)),
                &function.result
            )
        ),
        function,
    };
    Ok(calls.halved(values))
}

fn input(argument: &str) -> String {
    match argument {
        "text" => "v.x".to_owned(),
        "text[]" => "string_to_array(v.x, ';')".to_owned(),
        other => format!("v.x::{other}"),
    }
}

fn output(call: &str, result: &str) -> String {
    match result {
        "timestamp with time zone" => {
            format!("to_char({call} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')")
        }
        "text[]" => format!("array_to_string({call}, ';')"),
        _ => format!("{call}::text"),
    }
}

struct Calls {
    function: Function,
    sql: String,
    timeout: Duration,
    until: Instant,
}

impl Calls {
    /// All values in one statement; where that fails, in halves, down to the
    /// values that fail.
    fn halved(
        &mut self,
        mut values: Vec<String>,
    ) -> Vec<std::result::Result<Option<String>, String>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let reason = "its function had used up its time for this batch".to_owned();
            return values.iter().map(|_| Err(reason.clone())).collect();
        }
        match self.call(&values, self.timeout.min(left)) {
            Ok(images) => images.into_iter().map(Ok).collect(),
            Err(error) if values.len() <= 1 => values.iter().map(|_| Err(told(&error))).collect(),
            Err(_) => {
                let second = values.split_off(values.len() / 2);
                let mut images = self.halved(values);
                images.extend(self.halved(second));
                images
            }
        }
    }

    fn call(
        &self,
        values: &[String],
        most: Duration,
    ) -> std::result::Result<Vec<Option<String>>, SqlError> {
        let arg: spi::Arg<'_> = values.to_vec().into();
        ask(self.function.owner, &self.sql, &[arg], most)
    }
}

const DECIDES: &str = "SELECT format('%I.%I', n.nspname, p.proname), p.proowner::bigint, left(md5(pg_get_functiondef(p.oid)), 12), \
     coalesce(pg_has_role(a.oid, p.proowner, 'MEMBER') AND (a.rolsuper OR NOT o.rolsuper), false) \
     FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
     JOIN pg_catalog.pg_roles o ON o.oid = p.proowner \
     LEFT JOIN crm.conflict_policy c ON c.id = $2 LEFT JOIN pg_catalog.pg_roles a ON a.rolname = coalesce($3, c.changed_by) \
     WHERE p.oid = crm._function_found($1 || '(text, text, jsonb)') AND p.prorettype = 'text'::regtype \
     AND p.provolatile <> 'v' AND p.prokind = 'f' AND NOT p.proretset";

/// A function that decides, as the catalog knows it now.
struct Decider {
    name: String,
    owner: u32,
    version: String,
    /// Who wrote the policy row may act as the function's owner.
    allowed: bool,
}

/// Asks the function of a policy row; an error or a timeout is an answer too.
/// `author` wrote the row, where it is only thought of.
pub(crate) fn evaluate(question: &Question, author: Option<&str>) -> Result<Evaluation> {
    let found = spi::write_rows(
        DECIDES,
        &[
            question.function.clone().into(),
            question.rule.into(),
            author.map(str::to_owned).into(),
        ],
        |row| {
            Ok(Decider {
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
    Ok(said(function.version, answer.map_err(|e| told(&e))))
}

fn call(function: &Decider, question: &Question) -> std::result::Result<Value, SqlError> {
    let sql = format!("SELECT {}($1, $2, $3::jsonb)", function.name);
    let args = [
        question.held.clone().into(),
        question.came.clone().into(),
        context(question).into(),
    ];
    let said = ask(function.owner, &sql, &args, guc::function_timeout())?;
    Ok(said.into_iter().next().flatten())
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
