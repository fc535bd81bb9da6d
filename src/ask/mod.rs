//! Questions about decisions: asked in a user's backend, answered by the same
//! code that decides, without effect on anything. It uses `pg`, the core, and of
//! `worker` the configuration and the path of a decision; no network.

mod cost;
mod draft;
mod explain;
mod told;
mod what_if;
mod why;

use pgrx::prelude::*;

use crate::pg::report;
use crate::pg::store::config;
use crate::worker::world::World;

/// The configuration as committed, of these mirrors or of all.
fn world(mirrors: Option<Vec<i32>>) -> World {
    let json = fine(config::peek(mirrors));
    match serde_json::from_str(&json) {
        Ok(rows) => World::new(rows),
        Err(error) => error!("cannot read the configuration: {error}"),
    }
}

/// A value, or an SQL error of our own making.
fn fine<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => report::refuse(
            PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            format!("the question cannot be answered: {error}"),
            None,
            "Ask again; if it stays so, see the server log.",
        ),
    }
}
