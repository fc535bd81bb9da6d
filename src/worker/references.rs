//! References between records, carried over: an association of one side becomes a
//! field of the other, and back. What is to be done says `crm._reference_step`; it is
//! done here, as the owner of the mirror would do it, and travels on like any edit.

use std::collections::BTreeSet;

use crate::pg::origin;
use crate::pg::store::spi;
use crate::pg::tx::{self, SqlError};
use crate::worker::engine::Step;

/// Changes looked at in one transaction.
const BATCH: i32 = 200;

/// One statement that carries a change over.
struct Act {
    due: i64,
    map: i32,
    relation: u32,
    statement: String,
    args: Vec<Option<String>>,
}

/// Carries over what is due; whether there may be more at once.
pub(crate) fn carry_over() -> Step<bool> {
    tx::in_transaction(|| {
        let acts = spi::write_rows(
            "SELECT due, map, relation::bigint, statement, args FROM crm._reference_step($1)",
            &[BATCH.into()],
            |row| {
                Ok(Act {
                    due: row.get(1)?.unwrap_or_default(),
                    map: row.get(2)?.unwrap_or_default(),
                    relation: u32::try_from(row.get::<i64>(3)?.unwrap_or_default())
                        .unwrap_or_default(),
                    statement: row.get(4)?.unwrap_or_default(),
                    args: row.get(5)?.unwrap_or_default(),
                })
            },
        )?;
        // What was put behind one of these is due now.
        let more = !acts.is_empty();
        let mut done: BTreeSet<i64> = acts.iter().map(|a| a.due).collect();
        for act in acts {
            // A row that somebody holds, or a CHECK that refuses the value: later.
            if let Err(error) = perform(&act) {
                done.remove(&act.due);
                let why = format!("{} ({})", error.message, error.sqlstate);
                spi::write(
                    "SELECT crm._reference_later($1, $2)",
                    &[act.due.into(), why.into()],
                )?;
            }
        }
        let done: Vec<i64> = done.into_iter().collect();
        spi::write(
            "DELETE FROM crm.reference_due WHERE id = ANY ($1)",
            &[done.into()],
        )?;
        Ok(more)
    })
}

/// Puts off creates that must be made with a reference which is not known yet, so
/// that the next `limit` writes to claim are none of them.
pub(crate) fn await_needed(mirror: i32, limit: i64) -> spi::Result<()> {
    // In the place of those put off come others.
    loop {
        let put_off = spi::write_rows(
            "SELECT crm._references_awaited($1, $2) WHERE EXISTS (SELECT FROM crm.reference_map r WHERE r.theirs = $1 AND r.at_creation)",
            &[mirror.into(), limit.into()],
            |row| row.get::<i64>(1),
        )?;
        if !put_off.into_iter().flatten().any(|n| n > 0) {
            return Ok(());
        }
    }
}

fn perform(act: &Act) -> Result<(), SqlError> {
    tx::in_subtransaction(|| {
        origin::as_owner(act.relation, act.map, || {
            spi::write(&act.statement, &[act.args.clone().into()])
        })?;
        Ok(())
    })
}
