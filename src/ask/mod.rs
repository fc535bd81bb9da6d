//! Questions about decisions: asked in a user's backend, answered by the same
//! code that decides, without effect on anything. It uses `pg`, the core, and of
//! `worker` the configuration and the path of a decision; no network.

mod cost;
mod draft;
mod explain;
mod told;
mod what_if;
mod why;

use std::cell::RefCell;
use std::rc::Rc;

use pgrx::prelude::*;

use crate::pg::report;
use crate::pg::store::config;
use crate::worker::world::World;

/// The configuration as committed, of these mirrors or of all.
fn world(mirrors: Option<Vec<i32>>) -> World {
    parsed(&fine(config::peek(mirrors)))
}

/// Without the rules of policy, for questions that only compare: what the last one of
/// the session made of the configuration serves as long as that reads the same.
fn maps(mirrors: Vec<i32>) -> Rc<World> {
    thread_local! {
        static LAST: RefCell<Option<(String, Rc<World>)>> = const { RefCell::new(None) };
    }
    let json = fine(config::peek_maps(mirrors));
    let last = LAST.take().filter(|(known, _)| *known == json);
    let (json, world) = match last {
        Some(last) => last,
        None => {
            let world = Rc::new(parsed(&json));
            (json, world)
        }
    };
    LAST.set(Some((json, Rc::clone(&world))));
    world
}

fn parsed(json: &str) -> World {
    match serde_json::from_str(json) {
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
