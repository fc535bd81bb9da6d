//! Policies that are only thought of: checked as real ones, and undone.

use pgrx::JsonB;

use super::fine;
use crate::pg::store::{ask, config};
use crate::pg::tx::{self, SqlError};
use crate::worker::world::World;

/// The configuration as it is, and as it would be with the rows of a draft. They
/// go into the table with the caller's rights, through all its checks, and out
/// again at once: what follows holds no lock on it.
pub(super) fn worlds(draft: JsonB) -> Result<(World, World), SqlError> {
    let then = tx::rehearse(|| Ok(ask::with_draft(draft)?))?;
    Ok((parsed(&fine(config::peek(None)))?, parsed(&then)?))
}

fn parsed(json: &str) -> Result<World, SqlError> {
    let rows = serde_json::from_str(json)
        .map_err(|e| SqlError::new("XX000", format!("cannot read the configuration: {e}")))?;
    Ok(World::new(rows))
}
