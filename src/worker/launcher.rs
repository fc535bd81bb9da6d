//! The launcher: one per cluster, connected to no database.
//!
//! It keeps one session worker running in every database that has the extension.
//! Which ones have it, only a connection to each can tell, so it starts a session
//! everywhere once; a session that finds no extension says so and ends. After
//! that it looks again at databases that are new, that became connectable, or
//! whose extensions changed (`docs/adr/0004-database-discovery.md`).

use crate::pg::shmem::{self, Outcome, Slot};
use crate::pg::{catalog, guc, report, signal};
use pgrx::bgworkers::BackgroundWorkerStatus;
use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime, DynamicBackgroundWorker};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How often the list of databases is read without being woken.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// Sessions that may be starting or probing at the same time.
const MAX_STARTING: usize = 2;
/// First and longest pause before a failed session is started again.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// A session that ran this long starts over with the first pause.
const STEADY: Duration = Duration::from_secs(60);

/// Registers the static worker; only while the server preloads libraries.
pub(crate) fn register() {
    BackgroundWorkerBuilder::new("pg_crm_sync launcher")
        .set_type("pg_crm_sync launcher")
        .set_library("pg_crm_sync")
        .set_function("crm_launcher_main")
        .enable_spi_access()
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(Duration::from_secs(1)))
        .load();
}

/// What the launcher knows of one database.
enum State {
    /// Start a session at this time; the number of failures in a row.
    Due(Instant, u32),
    /// A session was started: its handle, when, and the failures before it.
    Running(DynamicBackgroundWorker, Instant, u32),
    /// The extension is not there.
    Absent,
}

/// Entry point of the launcher process.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn crm_launcher_main(_argument: pg_sys::Datum) {
    signal::install();
    // SAFETY: connecting to no database gives access to shared catalogs.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnectionByOid(
            pg_sys::InvalidOid,
            pg_sys::InvalidOid,
            0,
        );
        pg_sys::before_shmem_exit(Some(on_exit), pg_sys::Datum::from(0));
    }
    shmem::launcher_ready();
    let mut launcher = Launcher::default();
    loop {
        signal::service();
        let pause = launcher.look();
        signal::wait(None, pause);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_exit(_code: i32, _argument: pg_sys::Datum) {
    shmem::launcher_gone();
}

#[derive(Default)]
struct Launcher {
    known: BTreeMap<u32, State>,
    /// Said once, until it works again.
    told_full: bool,
}

impl Launcher {
    /// One round; returns how long to sleep if nothing happens.
    fn look(&mut self) -> Duration {
        let now = Instant::now();
        let databases = catalog::connectable_databases(&guc::databases());
        self.forget_gone(&databases);
        self.note_rechecks(now);
        for database in &databases {
            let fresh = || State::Due(now, 0);
            self.known
                .entry(database.oid.to_u32())
                .or_insert_with(fresh);
        }
        self.reap(now);
        self.adopt_orphans(now);
        self.start_due(now, &databases);
        self.next_look(now)
    }

    /// Frees what belonged to databases that are gone or not served any more. A
    /// session that still runs there is noticed when it has ended.
    fn forget_gone(&mut self, databases: &[catalog::Database]) {
        self.known.retain(|oid, state| {
            let listed = databases
                .iter()
                .any(|database| database.oid.to_u32() == *oid);
            let keep = listed || matches!(state, State::Running(..));
            if !keep && let Some(slot) = shmem::slot_of(pg_sys::Oid::from(*oid)) {
                slot.release();
            }
            keep
        });
    }

    fn note_rechecks(&mut self, now: Instant) {
        let rechecks = shmem::take_rechecks();
        for (oid, state) in &mut self.known {
            let asked = rechecks
                .as_ref()
                .is_none_or(|list| list.iter().any(|it| it.to_u32() == *oid));
            if asked && !matches!(state, State::Running(..)) {
                *state = State::Due(now, 0);
            }
        }
    }

    /// Notes which sessions have ended, and why.
    fn reap(&mut self, now: Instant) {
        for (oid, state) in &mut self.known {
            let State::Running(handle, since, failures) = state else {
                continue;
            };
            if !matches!(handle.pid(), Err(BackgroundWorkerStatus::Stopped)) {
                continue;
            }
            let slot = shmem::slot_of(pg_sys::Oid::from(*oid));
            if slot.is_some_and(|slot| slot.outcome() == Outcome::Absent) {
                // The extension may have come since the session looked.
                let asked = slot.is_some_and(Slot::take_recheck);
                slot.into_iter().for_each(Slot::release);
                *state = match asked {
                    true => State::Due(now, 0),
                    false => State::Absent,
                };
            } else if shmem::is_held(pg_sys::Oid::from(*oid)) {
                // Stopped by a statement: start again as soon as that ends.
                *state = State::Due(now, 0);
            } else {
                let failures = if now - *since > STEADY {
                    1
                } else {
                    *failures + 1
                };
                *state = State::Due(now + back_off(failures), failures);
            }
        }
    }

    /// After a restart of the launcher alone its sessions still run: wait for
    /// them to end instead of starting a second one.
    fn adopt_orphans(&mut self, now: Instant) {
        for (oid, state) in &mut self.known {
            let running =
                shmem::slot_of(pg_sys::Oid::from(*oid)).is_some_and(|slot| slot.pid() != 0);
            if let State::Due(at, failures) = state
                && running
            {
                *state = State::Due((*at).max(now + LOOK_INTERVAL), *failures);
            }
        }
    }

    fn start_due(&mut self, now: Instant, databases: &[catalog::Database]) {
        for database in databases {
            let starting = self
                .known
                .iter()
                .filter(|(oid, state)| is_starting(**oid, state))
                .count();
            if starting >= MAX_STARTING {
                return;
            }
            let Some(State::Due(at, failures)) = self.known.get(&database.oid.to_u32()) else {
                continue;
            };
            let (at, failures) = (*at, *failures);
            if at > now || shmem::is_held(database.oid) {
                continue;
            }
            let Some(slot) = slot_for(database.oid) else {
                return;
            };
            let state = match start_session(database, slot) {
                Some(handle) => {
                    self.told_full = false;
                    State::Running(handle, now, failures)
                }
                None => {
                    self.tell_full(&database.name);
                    State::Due(now + back_off(failures + 1), failures + 1)
                }
            };
            self.known.insert(database.oid.to_u32(), state);
        }
    }

    fn tell_full(&mut self, database: &str) {
        if !std::mem::replace(&mut self.told_full, true) {
            report::warn(
                PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                format!(
                    "pg_crm_sync cannot start the worker of database \"{database}\": no free worker process"
                ),
                "Raise max_worker_processes in postgresql.conf and restart; one is needed per database, and one for the launcher. It will be tried again.",
            );
        }
    }

    fn next_look(&self, now: Instant) -> Duration {
        let waits = self.known.iter().filter_map(|(oid, state)| match state {
            State::Due(at, _) => Some(
                at.saturating_duration_since(now)
                    .max(Duration::from_millis(20)),
            ),
            State::Running(..) if is_starting(*oid, state) => Some(Duration::from_millis(100)),
            State::Running(..) | State::Absent => None,
        });
        waits.min().unwrap_or(LOOK_INTERVAL).min(LOOK_INTERVAL)
    }
}

fn is_starting(oid: u32, state: &State) -> bool {
    let connected = || shmem::slot_of(pg_sys::Oid::from(oid)).is_some_and(Slot::is_serving);
    matches!(state, State::Running(..)) && !connected()
}

/// The database's slot, or a free one given to it.
fn slot_for(database: pg_sys::Oid) -> Option<usize> {
    let slots = shmem::slots();
    let mine = slots.iter().position(|slot| slot.database() == database);
    let free = || {
        slots
            .iter()
            .position(|slot| slot.database() == pg_sys::InvalidOid && slot.pid() == 0)
    };
    let at = mine.or_else(free)?;
    if mine.is_none() {
        slots[at].assign(database);
    }
    Some(at)
}

fn start_session(database: &catalog::Database, slot: usize) -> Option<DynamicBackgroundWorker> {
    // SAFETY: a plain global, set before any of our code runs.
    let me = unsafe { pg_sys::MyProcPid };
    BackgroundWorkerBuilder::new(&format!("pg_crm_sync session {}", database.name))
        .set_type("pg_crm_sync session")
        .set_library("pg_crm_sync")
        .set_function("crm_session_main")
        .enable_spi_access()
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(None)
        .set_argument(Some(pg_sys::Datum::from(slot)))
        .set_notify_pid(me)
        .load_dynamic()
        .ok()
}

fn back_off(failures: u32) -> Duration {
    let doubled = 1u32
        .checked_shl(failures.saturating_sub(1))
        .unwrap_or(u32::MAX);
    BACK_OFF.0.saturating_mul(doubled).min(BACK_OFF.1)
}
