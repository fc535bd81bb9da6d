//! Functions of the schema `crm` that SQL cannot express. Each is private: a
//! public one in SQL wraps it and checks who may.

use crate::pg::{capture, origin, report};
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
    let owner = Spi::connect(|client| {
        let sql = "SELECT relowner FROM pg_catalog.pg_class WHERE oid = $1";
        let rows = client.select(sql, Some(1), &[relation.into()])?;
        match rows.into_iter().next() {
            Some(row) => row.get::<pg_sys::Oid>(1),
            None => Ok(None),
        }
    });
    let Ok(Some(owner)) = owner else {
        report::refuse(
            PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
            "the table of the mirror is missing".to_owned(),
            None,
            "SELECT crm.mirror_drop(…) forgets a mirror whose table is gone.",
        );
    };
    let touched = origin::as_engine(relation.to_u32(), owner.to_u32(), || {
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
