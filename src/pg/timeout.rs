//! A bound on how long SQL may run in a worker. The server arms its statement
//! timeout in the command loop of sessions, which a worker does not have.

use std::time::Duration;

use pgrx::pg_sys;

/// The server's number for its statement timeout, the same in all versions.
const STATEMENT_TIMEOUT: std::ffi::c_int = 3;

unsafe extern "C-unwind" {
    fn enable_timeout_after(id: std::ffi::c_int, delay_ms: std::ffi::c_int);
    fn disable_timeout(id: std::ffi::c_int, keep_indicator: bool);
    fn get_timeout_indicator(id: std::ffi::c_int, reset_indicator: bool) -> bool;
}

/// Ends the time that is running, on return and on unwinding.
struct Disarm;

impl Drop for Disarm {
    fn drop(&mut self) {
        // SAFETY: on the worker's only thread that knows the server. A cancel that
        // came too late must not hit what follows.
        unsafe {
            if get_timeout_indicator(STATEMENT_TIMEOUT, true) {
                pg_sys::QueryCancelPending = 0;
            }
            disable_timeout(STATEMENT_TIMEOUT, false);
        }
    }
}

/// Runs `work`: after `most` its statement is cancelled with SQLSTATE 57014. Not
/// to be nested. In a session it is up to the session's own timeout.
pub(crate) fn within<T>(most: Duration, work: impl FnOnce() -> T) -> T {
    // SAFETY: a plain global of the server, read on its only thread.
    if unsafe { pg_sys::MyBackendType } != pg_sys::BackendType::B_BG_WORKER {
        return work();
    }
    let most = std::ffi::c_int::try_from(most.as_millis()).unwrap_or(std::ffi::c_int::MAX);
    // SAFETY: on the worker's only thread that knows the server; the timeout is
    // registered for every process with a database and unused in this one.
    unsafe { enable_timeout_after(STATEMENT_TIMEOUT, most.max(1)) };
    let _disarm = Disarm;
    work()
}
