//! What the workers read of the server's catalogs.

use super::tx::{self, SqlError};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ffi::CStr;

/// A database that accepts connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Database {
    pub(crate) oid: pg_sys::Oid,
    pub(crate) name: String,
}

/// Databases that a session may connect to, by name if names are given. Works
/// without a connection to a database, from the shared catalog alone.
pub(crate) fn connectable_databases(only: &[String]) -> Vec<Database> {
    let listed = tx::in_transaction(|| {
        let mut databases = all_databases();
        databases.retain(|database| only.is_empty() || only.contains(&database.name));
        Ok(databases)
    });
    listed.unwrap_or_else(|error| {
        warning!("pg_crm_sync cannot read the list of databases: {error}");
        Vec::new()
    })
}

fn all_databases() -> Vec<Database> {
    let mut databases = Vec::new();
    // SAFETY: a sequential scan of a shared catalog inside a transaction; every
    // tuple is read before the scan moves on.
    unsafe {
        let relation =
            pg_sys::table_open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as i32);
        let scan = pg_sys::table_beginscan_catalog(relation, 0, std::ptr::null_mut());
        loop {
            let tuple = pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection);
            if tuple.is_null() {
                break;
            }
            let header = (*tuple).t_data;
            let row = header
                .cast::<u8>()
                .add((*header).t_hoff as usize)
                .cast::<pg_sys::FormData_pg_database>();
            // -2 marks a database whose removal was interrupted.
            if (*row).datallowconn && !(*row).datistemplate && (*row).datconnlimit != -2 {
                let name = CStr::from_ptr((&raw const (*row).datname.data).cast());
                databases.push(Database {
                    oid: (*row).oid,
                    name: name.to_string_lossy().into_owned(),
                });
            }
        }
        if let Some(end) = (*(*relation).rd_tableam).scan_end {
            end(scan);
        }
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
    }
    databases
}

/// Installed version of the extension in this database, `None` if absent.
pub(crate) fn extension_version() -> Result<Option<String>, SqlError> {
    tx::in_transaction(|| {
        let query = "SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'pg_crm_sync'";
        Spi::connect(|client| {
            let rows = client.select(query, Some(1), &[])?;
            match rows.into_iter().next() {
                Some(row) => Ok(row.get::<String>(1)?),
                None => Ok(None),
            }
        })
    })
}

/// Gives up the superuser's rights with which a session connects and goes on as
/// `crm_worker`; false if somebody dropped that role. Outside any transaction.
///
/// Not at connecting: before version 17 that asks for the LOGIN attribute, and a
/// role that nobody can log in as needs no line in pg_hba.conf to keep it out.
pub(crate) fn act_as_worker() -> Result<bool, SqlError> {
    let role = tx::in_transaction(|| {
        // SAFETY: a catalog look-up inside a transaction; a missing role is no error.
        Ok(unsafe { pg_sys::get_role_oid(c"crm_worker".as_ptr(), true) })
    })?;
    if role == pg_sys::InvalidOid {
        return Ok(false);
    }
    // SAFETY: the process was authenticated as the bootstrap superuser, and no
    // transaction or security-restricted operation is under way.
    unsafe { pg_sys::SetSessionAuthorization(role, false) };
    Ok(true)
}
