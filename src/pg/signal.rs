//! Signals of the workers, and the one place where they are acted upon.
//!
//! SIGTERM must be the server's own `die`: its waits (synchronous replication,
//! locks) look at the flag that `die` sets and at no other. SIGINT stays as the
//! server set it, because `lock_timeout` and `pg_cancel_backend` use it.

use pgrx::pg_sys;
#[cfg(not(feature = "pg18"))]
use pgrx::pg_sys::pqsignal;
// PostgreSQL 18 gave the server's own its own name, apart from that of client programs.
#[cfg(feature = "pg18")]
use pgrx::pg_sys::pqsignal_be as pqsignal;
use std::os::fd::RawFd;
use std::time::Duration;

mod raw {
    unsafe extern "C-unwind" {
        /// The server's handlers, by address: no Rust code runs in a handler.
        pub(super) fn die(signal: std::ffi::c_int);
        pub(super) fn SignalHandlerForConfigReload(signal: std::ffi::c_int);
    }
}

/// Installs the handlers, then lets signals in. First thing a worker does.
pub(crate) fn install() {
    // SAFETY: called once at the start of a worker, while signals are blocked;
    // both handlers are the server's and async-signal-safe.
    unsafe {
        pqsignal(libc::SIGTERM, Some(raw::die));
        pqsignal(libc::SIGHUP, Some(raw::SignalHandlerForConfigReload));
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

/// Has this process been told to end? [`service`] then does not return.
pub(crate) fn dying() -> bool {
    // SAFETY: a flag that the signal handler sets.
    unsafe { (&raw const pg_sys::ProcDiePending).read_volatile() != 0 }
}

/// Takes the reload flag and reads the configuration file if it was set.
fn reload() -> bool {
    // SAFETY: the flag is set by the handler and cleared only here; reading the
    // file is what the server's own processes do at this point.
    unsafe {
        let flag = &raw mut pg_sys::ConfigReloadPending;
        if flag.read_volatile() == 0 {
            return false;
        }
        flag.write_volatile(0);
        pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
    }
    true
}

/// Services what is pending; true if the configuration was read again. Ends the
/// process if it was told to die, so callers stop their threads first.
pub(crate) fn service() -> bool {
    pgrx::check_for_interrupts!();
    reload()
}

/// What ended a [`wait`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ready {
    pub(crate) latch: bool,
    pub(crate) socket: bool,
    pub(crate) timeout: bool,
}

/// Sleeps until the latch is set, the descriptor is readable or the time is
/// over, and clears the latch. Ends the process if the server died.
pub(crate) fn wait(fd: Option<RawFd>, timeout: Duration) -> Ready {
    let mut events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    if fd.is_some() {
        events |= pg_sys::WL_SOCKET_READABLE;
    }
    let millis = i64::try_from(timeout.as_millis()).unwrap_or(i64::from(i32::MAX));
    // SAFETY: waits on this process's own latch and a descriptor of the caller's.
    let ready = unsafe {
        let ready = pg_sys::WaitLatchOrSocket(
            pg_sys::MyLatch,
            events as i32,
            fd.unwrap_or(-1),
            millis,
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
        ready as u32
    };
    Ready {
        latch: ready & pg_sys::WL_LATCH_SET != 0,
        socket: ready & pg_sys::WL_SOCKET_READABLE != 0,
        timeout: ready & pg_sys::WL_TIMEOUT != 0,
    }
}
