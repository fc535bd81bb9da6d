//! The two segments of the change log: one is written to, the other drained.
//!
//! When the one in use has grown past `pg_crm_sync.change_segment_size`, backends
//! are turned to the other; a drained one is truncated, which gives its space
//! back without vacuum. Truncation takes the strongest lock without waiting, so
//! it never delays a user and never meets an uncommitted change: whoever wrote to
//! a segment holds a lock on it until the end of the transaction.

use crate::pg::guc;
use crate::pg::shmem::Slot;
use crate::pg::tx::{self, SqlError};
use pgrx::prelude::*;

/// What [`maintain`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Maintained {
    /// Backends write to the other segment from now on.
    pub(crate) switched: bool,
    /// A drained segment was emptied.
    pub(crate) truncated: bool,
}

/// Looks after the segments; by the session, from time to time, outside any
/// transaction. Cheap when there is nothing to do.
pub(crate) fn maintain(slot: &Slot) -> Result<Maintained, SqlError> {
    let active = slot.segment();
    let sizes = tx::in_transaction(|| Ok([size_of(0)?, size_of(1)?]))?;
    let mut done = Maintained::default();
    let other = 1 - active;
    if sizes[other as usize] > 0 {
        done.truncated = tx::in_transaction(|| truncate_drained(other))?;
    }
    let free = sizes[other as usize] == 0 || done.truncated;
    if free && sizes[active as usize] > guc::change_segment_bytes() {
        slot.set_segment(other);
        done.switched = true;
    }
    Ok(done)
}

fn size_of(segment: u32) -> Result<u64, SqlError> {
    let query = format!("SELECT pg_catalog.pg_relation_size('crm.change_{segment}')");
    Spi::connect(|client| {
        let size = client
            .select(&query, Some(1), &[])?
            .first()
            .get_one::<i64>()?;
        Ok(u64::try_from(size.unwrap_or(0)).unwrap_or(0))
    })
}

/// Empties a segment if nothing is left in it. A lock that someone holds is no
/// error: there will be another time.
fn truncate_drained(segment: u32) -> Result<bool, SqlError> {
    let table = format!("crm.change_{segment}");
    let locked = tx::in_subtransaction(|| {
        Spi::run(&format!(
            "LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE NOWAIT"
        ))?;
        // What committed before the lock was granted must be seen.
        let query = format!("SELECT EXISTS (SELECT FROM {table})");
        let left = Spi::connect_mut(|client| {
            client
                .update(&query, Some(1), &[])?
                .first()
                .get_one::<bool>()
        })?;
        if left != Some(false) {
            return Ok(false);
        }
        Spi::run(&format!("TRUNCATE {table}"))?;
        Ok(true)
    });
    match locked {
        Err(error) if error.sqlstate == "55P03" => Ok(false),
        other => other,
    }
}
