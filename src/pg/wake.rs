//! Waking the session worker: once per commit, never per row, and only a hint.
//!
//! Whoever writes something the worker should see calls [`at_commit`]; the
//! callback sets the worker's latch when the transaction has become visible. The
//! worker also looks by itself from time to time, so a lost wake costs time and
//! nothing else.

use super::{report, shmem};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::Cell;

thread_local! {
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
    static WAKE: Cell<bool> = const { Cell::new(false) };
    static RECHECK: Cell<bool> = const { Cell::new(false) };
}

/// The current database.
pub(crate) fn my_database() -> pg_sys::Oid {
    // SAFETY: a plain global, set when the backend connects.
    unsafe { pg_sys::MyDatabaseId }
}

/// Wakes this database's session when the current transaction commits.
pub(crate) fn at_commit() {
    WAKE.set(true);
    register();
}

/// Makes session and launcher look for the extension at commit.
pub(crate) fn recheck_at_commit() {
    RECHECK.set(true);
    register();
}

/// Wakes this database's session now.
pub(crate) fn now() {
    if let Some(slot) = shmem::slot_of(my_database()) {
        slot.wake();
    }
}

fn register() {
    if !REGISTERED.replace(true) {
        // SAFETY: the callback is a static function and never unregistered.
        unsafe { pg_sys::RegisterXactCallback(Some(on_xact), std::ptr::null_mut()) };
    }
}

/// Nothing in here may fail: the transaction has already committed.
#[pg_guard]
unsafe extern "C-unwind" fn on_xact(event: pg_sys::XactEvent::Type, _arg: *mut std::ffi::c_void) {
    use pg_sys::XactEvent::{XACT_EVENT_ABORT, XACT_EVENT_COMMIT, XACT_EVENT_PREPARE};
    match event {
        XACT_EVENT_COMMIT => {
            if WAKE.replace(false) {
                now();
            }
            if RECHECK.replace(false) {
                shmem::recheck(my_database());
            }
        }
        XACT_EVENT_ABORT | XACT_EVENT_PREPARE => {
            WAKE.set(false);
            RECHECK.set(false);
        }
        _ => {}
    }
}

/// Leaves a request for the session worker without waiting for the end of this
/// transaction; the answer is a row under the returned ticket. Private: public
/// functions wrap it and check their arguments.
#[pg_extern(name = "_request", volatile, strict, parallel_unsafe)]
fn request(kind: &str, server_oid: pg_sys::Oid) -> i64 {
    let database = my_database();
    let running = shmem::slot_of(database).filter(|slot| slot.pid() != 0);
    let Some(slot) = running else {
        report::refuse(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "the pg_crm_sync worker of this database is not running".to_owned(),
            None,
            "Look for \"pg_crm_sync\" in the server log; max_worker_processes may be too low.",
        );
    };
    let Some(ticket) = shmem::ask(database, kind, server_oid) else {
        report::refuse(
            PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            "too many requests wait for the pg_crm_sync worker".to_owned(),
            None,
            "Try again in a moment; if it persists, the worker is stuck: see crm.status.",
        );
    };
    slot.wake();
    ticket
}

/// Wakes the session worker when this transaction commits.
#[pg_extern(name = "_wake", volatile, parallel_unsafe)]
fn wake() {
    at_commit();
}

extension_sql!(
    "COMMENT ON FUNCTION crm._request(text, oid) IS 'Leaves a request for the session worker and returns the ticket under which the answer will stand.';
COMMENT ON FUNCTION crm._wake() IS 'Wakes the session worker when this transaction commits.';",
    name = "wake_comments",
    requires = [request, wake]
);
