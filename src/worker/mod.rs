//! The background workers: one launcher per cluster, one session per database.
//!
//! This file is the frame of a session: it connects, checks that the extension
//! is there in the version of this library, and hands a [`SessionContext`] to
//! [`session::run`]. Every wait of a session is [`SessionContext::wait`].

mod absent;
mod accord;
mod answers;
mod arrivals;
mod backfill;
mod batch;
mod budgets;
mod bulk;
mod bulk_turn;
mod bulk_writes;
pub(crate) mod cases;
mod conditions;
mod counterparts;
mod creates;
pub(crate) mod credential;
pub(crate) mod deliver;
mod doubt;
mod drift;
mod edits;
mod engine;
mod erasure;
mod fields;
mod fills;
mod flush;
mod foresee;
mod given_up;
mod handle;
pub(crate) mod images;
mod inbound;
pub(crate) mod ingest;
mod job;
mod journal;
mod kept;
pub(crate) mod launcher;
mod lifecycles;
pub(crate) mod local;
mod merges;
mod met;
mod origins;
mod outages;
mod outcomes;
mod pages;
mod pairs;
mod pending;
mod policies;
mod reading;
mod reconcile;
mod record;
mod references;
pub(crate) mod rehearsal;
mod release;
mod rematch;
mod removals;
mod repair;
mod replay;
pub(crate) mod repolicy;
mod returns;
mod retypes;
mod reviews;
mod schedule;
mod scope;
mod sending;
mod servers;
pub(crate) mod session;
mod setbacks;
mod shown;
mod specs;
mod sweep;
mod topics;
pub(crate) mod unique;
mod unsettled;
mod usage;
pub(crate) mod world;

pub(crate) use engine::now;
pub(crate) use schedule::source_name;

use crate::pg::shmem::{self, Request, Slot};
use crate::pg::{catalog, report, signal, tx};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::RefCell;
use std::os::fd::RawFd;
use std::time::Duration;

/// The version that the SQL objects must have for this library to work on them.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// How often an idle session looks whether the versions fit by now.
const MISMATCH_INTERVAL: Duration = Duration::from_secs(60);

thread_local! {
    static STOP_IO: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) };
}

/// Why [`SessionContext::wait`] returned; several may hold at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wake {
    /// Someone set the latch: a commit with changes, or a request.
    pub(crate) latch: bool,
    /// The file descriptor is readable.
    pub(crate) socket: bool,
    /// Nothing happened for the whole time.
    pub(crate) timeout: bool,
    /// The configuration file was read again.
    pub(crate) reloaded: bool,
    /// The extension was created, altered or dropped: return from `run`.
    pub(crate) recheck: bool,
}

/// What a session has besides its own state.
pub(crate) struct SessionContext {
    /// The database of this session.
    pub(crate) db_oid: pg_sys::Oid,
    /// Its place in shared memory.
    pub(crate) slot: &'static Slot,
}

impl SessionContext {
    /// Sleeps until something happens, at most `timeout_ms`, and services
    /// signals. Does not return if the process was told to end: it then first
    /// runs what [`SessionContext::on_stop`] was given.
    pub(crate) fn wait(&mut self, fd: Option<RawFd>, timeout_ms: u64) -> Wake {
        let ready = signal::wait(fd, Duration::from_millis(timeout_ms));
        let reloaded = self.service();
        Wake {
            latch: ready.latch,
            socket: ready.socket,
            timeout: ready.timeout,
            reloaded,
            recheck: self.slot.take_recheck(),
        }
    }

    /// Services signals without sleeping; true if the configuration was read
    /// again. To be called between the steps of long work.
    pub(crate) fn service(&mut self) -> bool {
        if signal::dying() {
            stop_io();
        }
        signal::service()
    }

    /// Registers what must end before this process may: the I/O thread. Bounded
    /// in time by whoever registers it.
    pub(crate) fn on_stop(&mut self, stop: impl FnOnce() + 'static) {
        STOP_IO.with_borrow_mut(|slot| *slot = Some(Box::new(stop)));
    }

    /// Requests that users' backends left, oldest first.
    pub(crate) fn take_requests(&mut self) -> Vec<Request> {
        shmem::take_requests(self.db_oid)
    }
}

fn stop_io() {
    if let Some(stop) = STOP_IO.with_borrow_mut(Option::take) {
        stop();
    }
}

/// Runs on every way out, also on a FATAL inside SQL, which unwinds nothing.
#[pg_guard]
unsafe extern "C-unwind" fn on_exit(_code: i32, slot: pg_sys::Datum) {
    stop_io();
    if let Some(slot) = shmem::slots().get(slot.value()) {
        slot.leave();
    }
}

/// Entry point of a session process; the argument is the number of its slot.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn crm_session_main(argument: pg_sys::Datum) {
    signal::install();
    let Some(slot) = shmem::slots().get(argument.value()) else {
        return;
    };
    // SAFETY: the callback is static; it runs on the main thread at exit.
    unsafe { pg_sys::before_shmem_exit(Some(on_exit), argument) };
    if !slot.enter() {
        // A statement wants the database empty: end at once, as a failure, so
        // that the launcher comes back to it.
        // SAFETY: ends this process in the regular way.
        unsafe { pg_sys::proc_exit(1) };
    }
    let db_oid = slot.database();
    // SAFETY: first and only connection of this process.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnectionByOid(db_oid, pg_sys::InvalidOid, 0);
        pg_sys::pgstat_report_appname(c"pg_crm_sync".as_ptr());
    }
    tx::set_canonical_output();
    let mut context = SessionContext { db_oid, slot };
    let mut told = None;
    loop {
        // Asked before the version is read, so that no change falls between.
        slot.take_recheck();
        match installed_version() {
            None => leave_for_good(slot),
            Some(version) if version == VERSION => {
                slot.report_serving();
                if has_given_up_superuser() {
                    session::run(&mut context);
                } else {
                    context.wait(None, MISMATCH_INTERVAL.as_millis() as u64);
                }
            }
            Some(version) => {
                slot.report_serving();
                warn_mismatch(&version, &mut told);
                context.wait(None, MISMATCH_INTERVAL.as_millis() as u64);
            }
        }
    }
}

fn installed_version() -> Option<String> {
    match catalog::extension_version() {
        Ok(version) => version,
        Err(error) => error!("pg_crm_sync cannot read pg_extension: {error}"),
    }
}

/// Continues as `crm_worker`. Without that role nothing runs, rather than
/// everything with a superuser's rights.
fn has_given_up_superuser() -> bool {
    match catalog::act_as_worker() {
        Ok(true) => true,
        Ok(false) => {
            report::warn(
                PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
                "pg_crm_sync is idle: role crm_worker does not exist".to_owned(),
                "Create the extension again, which makes the role and grants it what it needs.",
            );
            false
        }
        Err(error) => error!("pg_crm_sync cannot look up role crm_worker: {error}"),
    }
}

fn leave_for_good(slot: &Slot) -> ! {
    slot.report_absent();
    // SAFETY: ends this process in the regular way; exit callbacks run.
    #[cfg(not(feature = "pg18"))]
    unsafe {
        pg_sys::proc_exit(0)
    }
    // The bindings of 18 do not say that it never returns.
    // SAFETY: as above.
    #[cfg(feature = "pg18")]
    unsafe {
        pg_sys::proc_exit(0);
        unreachable!("proc_exit returned");
    }
}

/// A new library with old SQL is normal between the update of the package and
/// ALTER EXTENSION UPDATE: say so once and do nothing.
fn warn_mismatch(version: &str, told: &mut Option<String>) {
    if told.as_deref() != Some(version) {
        report::warn(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("pg_crm_sync is idle: its library is {VERSION}, its SQL objects are {version}"),
            "Run ALTER EXTENSION pg_crm_sync UPDATE in this database, or install the matching package and restart.",
        );
        *told = Some(version.to_owned());
    }
}
