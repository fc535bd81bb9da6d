//! Functions of the schema `crm` that SQL cannot express. Each is private: a
//! public one in SQL wraps it and checks who may.

pub(crate) mod errors;
mod expression;
mod maps;

use crate::pg::{capture, origin};
use pgrx::pg_sys;
use pgrx::prelude::*;

/// Number of this session's last transaction that changed mirrors.
#[pg_extern(name = "_last_tx", volatile, parallel_unsafe)]
fn last_tx() -> Option<i64> {
    capture::last_tx()
}

/// Has the running transaction changed mirrors?
#[pg_extern(name = "_tx_has_changes", volatile, parallel_unsafe)]
fn tx_has_changes() -> bool {
    capture::has_changes()
}

/// Runs a statement on a mirror as the engine does: with the rights of the
/// mirror's owner, and not captured. Returns the rows it touched.
#[pg_extern(name = "_as_engine", volatile, strict, parallel_unsafe)]
fn as_engine(relation: pg_sys::Oid, statement: &str, data: pgrx::JsonB) -> i64 {
    let touched = origin::as_engine(relation.to_u32(), || {
        Spi::connect_mut(|client| {
            client
                .update(statement, None, &[data.into()])
                .map(|rows| rows.len())
        })
    });
    match touched {
        Ok(rows) => i64::try_from(rows).unwrap_or(i64::MAX),
        Err(error) => error!("{error}"),
    }
}

/// Does the row trigger that runs now belong to a statement of the engine on this
/// mirror?
#[pg_extern(name = "_by_engine", volatile, strict, parallel_unsafe)]
fn by_engine(relation: pg_sys::Oid) -> bool {
    origin::is_engine(relation)
}

/// The reference map for which the statement on this mirror runs that the row trigger
/// that runs now belongs to.
#[pg_extern(name = "_by_reference", volatile, strict, parallel_unsafe)]
fn by_reference(relation: pg_sys::Oid) -> Option<i32> {
    origin::carries(relation)
}

/// The JSON that a query on a mirror answers, with the rights of its owner.
#[pg_extern(name = "_as_engine_found", volatile, strict, parallel_unsafe)]
fn as_engine_found(relation: pg_sys::Oid, query: &str, data: pgrx::JsonB) -> Option<pgrx::JsonB> {
    let found = origin::as_engine(relation.to_u32(), || {
        Spi::connect_mut(|client| {
            let rows = client.update(query, Some(1), &[data.into()])?;
            rows.first().get_one::<pgrx::JsonB>()
        })
    });
    match found {
        Ok(found) => found,
        Err(error) => error!("{error}"),
    }
}
