//! Users' functions, called for many values at once: as their owner, for a
//! bounded time, and with no error getting further than the value that raised it.

use std::time::{Duration, Instant};

use super::spi::{self, Result};
use crate::pg::guc;
use crate::pg::timeout;
use crate::pg::tx::{self, SqlError};

/// A function as the catalog knows it now.
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
WHERE p.oid = pg_catalog.to_regprocedure($1) AND p.provolatile = 'i' AND NOT p.proretset AND p.prokind = 'f'";

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
            Err(error) if values.len() <= 1 => values
                .iter()
                .map(|_| Err(format!("{} ({})", error.message, error.sqlstate)))
                .collect(),
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
        let owner = pgrx::pg_sys::Oid::from(self.function.owner);
        timeout::within(most, || {
            tx::in_subtransaction(|| {
                let arg: spi::Arg<'_> = values.to_vec().into();
                let rows = tx::as_role(owner, || {
                    tx::with_search_path(c"pg_catalog, pg_temp", || {
                        spi::write_rows(&self.sql, &[arg], |row| row.get::<String>(1))
                    })
                })?;
                Ok(rows
                    .into_iter()
                    .map(|image| image.filter(|i| !i.is_empty()))
                    .collect())
            })
        })
    }
}
