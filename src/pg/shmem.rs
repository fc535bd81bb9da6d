//! Shared memory: one slot per database that has a session worker, and what
//! backends, launcher and sessions tell each other.
//!
//! Only numbers are stored, never pointers: a process is named by its number in
//! the server's process array, where its latch is. Everything here is a hint or
//! is rebuilt after a restart; nothing in it is data.

use pgrx::pg_sys;
use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, PgAtomic, PgLwLock, pg_shmem_init};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};

/// Databases of one cluster that can have a session worker at the same time.
pub(crate) const MAX_DATABASES: usize = 64;
/// Requests of one database that wait for its worker.
const MAX_REQUESTS: usize = 64;
/// Longest name of a request kind, in bytes.
const MAX_KIND: usize = 24;
/// Statements that need a database without connections, at the same time.
const MAX_HOLDS: usize = 16;
/// Databases that changed since the launcher looked; more means "look at all".
const MAX_RECHECKS: usize = 32;

/// Why the last session of a slot ended, as far as it could say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It runs, or it died without a word: start it again after a while.
    Unknown,
    /// The database does not have the extension: do not start it again.
    Absent,
}

/// A process that can be woken: its index in the process array plus one.
#[derive(Default)]
struct Waker(AtomicU32);

impl Waker {
    fn set_to_me(&self) {
        // SAFETY: MyProc points into the array that ProcGlobal heads; both are
        // set before any of our code runs in a process with shared memory.
        let index = unsafe { pg_sys::MyProc.offset_from((*pg_sys::ProcGlobal).allProcs) };
        self.0.store(
            u32::try_from(index).map_or(0, |index| index + 1),
            Ordering::Release,
        );
    }

    fn clear(&self) {
        self.0.store(0, Ordering::Release);
    }

    /// Sets the latch. A stale number wakes a stranger, which does no harm.
    fn wake(&self) {
        let number = self.0.load(Ordering::Acquire);
        if number == 0 {
            return;
        }
        // SAFETY: the number came from `set_to_me`, so it is an index into the
        // process array, which lives as long as the server.
        unsafe {
            let process = (*pg_sys::ProcGlobal).allProcs.add(number as usize - 1);
            pg_sys::SetLatch(&raw mut (*process).procLatch);
        }
    }
}

/// What concerns one database.
#[derive(Default)]
pub(crate) struct Slot {
    database: AtomicU32,
    pid: AtomicI32,
    waker: Waker,
    absent: AtomicBool,
    serving: AtomicBool,
    recheck: AtomicBool,
    segment: AtomicU32,
}

struct Directory {
    launcher: Waker,
    next_ticket: AtomicU64,
    slots: [Slot; MAX_DATABASES],
}

impl Default for Directory {
    /// Tickets start at the clock, so that none repeats one from before a restart.
    fn default() -> Self {
        // SAFETY: reads the clock; called while shared memory is set up.
        let now = unsafe { pg_sys::GetCurrentTimestamp() };
        Self {
            launcher: Waker::default(),
            next_ticket: AtomicU64::new(u64::try_from(now).unwrap_or(1)),
            slots: std::array::from_fn(|_| Slot::default()),
        }
    }
}

/// What a backend asks of the session worker outside any transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    /// Number under which the worker answers.
    pub(crate) ticket: i64,
    /// What is wanted, for example `catalog`.
    pub(crate) kind: String,
    /// The server it is wanted of.
    pub(crate) server_oid: pg_sys::Oid,
}

#[derive(Clone, Copy, Default)]
struct RawRequest {
    database: u32,
    server: u32,
    ticket: i64,
    kind: [u8; MAX_KIND],
}

#[derive(Clone, Copy, Default)]
struct Hold {
    database: u32,
    pid: i32,
}

/// The part under a lock: all of it is short lists.
#[derive(Clone, Copy)]
struct Board {
    requests: [RawRequest; MAX_REQUESTS],
    waiting: usize,
    holds: [Hold; MAX_HOLDS],
    rechecks: [u32; MAX_RECHECKS],
    rechecking: usize,
    recheck_all: bool,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            requests: [RawRequest::default(); MAX_REQUESTS],
            waiting: 0,
            holds: [Hold::default(); MAX_HOLDS],
            rechecks: [0; MAX_RECHECKS],
            rechecking: 0,
            recheck_all: false,
        }
    }
}

// SAFETY: atomics only, no pointers.
unsafe impl PGRXSharedMemory for Directory {}
// SAFETY: plain numbers, always behind the lock.
unsafe impl PGRXSharedMemory for Board {}

// SAFETY: the names belong to this library.
static DIRECTORY: PgAtomic<Directory> = unsafe { PgAtomic::new(c"pg_crm_sync directory") };
// SAFETY: as above.
static BOARD: PgLwLock<Board> = unsafe { PgLwLock::new(c"pg_crm_sync board") };

/// Asks for the shared memory; only while the server preloads libraries.
#[allow(
    unexpected_cfgs,
    reason = "the macro asks for server versions that we do not build for"
)]
pub(crate) fn register() {
    pg_shmem_init!(DIRECTORY);
    pg_shmem_init!(BOARD);
}

/// The slots, in a fixed order.
pub(crate) fn slots() -> &'static [Slot; MAX_DATABASES] {
    &DIRECTORY.get().slots
}

/// The slot of a database, if it has one.
pub(crate) fn slot_of(database: pg_sys::Oid) -> Option<&'static Slot> {
    slots().iter().find(|slot| slot.database() == database)
}

impl Slot {
    /// The database, `InvalidOid` while the slot is free.
    pub(crate) fn database(&self) -> pg_sys::Oid {
        pg_sys::Oid::from(self.database.load(Ordering::Acquire))
    }

    /// The session's process id, 0 while none is connected.
    pub(crate) fn pid(&self) -> i32 {
        self.pid.load(Ordering::Acquire)
    }

    /// Launcher: gives the slot to a database, forgetting what it held.
    pub(crate) fn assign(&self, database: pg_sys::Oid) {
        self.absent.store(false, Ordering::Release);
        self.recheck.store(false, Ordering::Release);
        self.database.store(database.to_u32(), Ordering::Release);
    }

    /// Launcher: the database is gone or has no extension.
    pub(crate) fn release(&self) {
        self.database.store(0, Ordering::Release);
        self.segment.store(0, Ordering::Release);
    }

    /// Launcher: how the last session of this slot ended.
    pub(crate) fn outcome(&self) -> Outcome {
        if self.absent.load(Ordering::Acquire) {
            Outcome::Absent
        } else {
            Outcome::Unknown
        }
    }

    /// Session: takes the slot, unless another has it or a statement
    /// wants the database empty.
    pub(crate) fn enter(&self) -> bool {
        let board = BOARD.exclusive();
        let database = self.database.load(Ordering::Acquire);
        let held = board.holds.iter().any(|hold| hold.database == database);
        if database == 0 || held || self.pid() != 0 {
            return false;
        }
        self.absent.store(false, Ordering::Release);
        self.waker.set_to_me();
        // SAFETY: a plain global, set before any of our code runs.
        self.pid
            .store(unsafe { pg_sys::MyProcPid }, Ordering::Release);
        true
    }

    /// Session: it is connected and has found the extension.
    pub(crate) fn report_serving(&self) {
        self.serving.store(true, Ordering::Release);
        wake_launcher();
    }

    /// Is a session connected that has found the extension?
    pub(crate) fn is_serving(&self) -> bool {
        self.serving.load(Ordering::Acquire)
    }

    /// Session: leaves, from its exit callback.
    pub(crate) fn leave(&self) {
        // SAFETY: a plain global, set before any of our code runs.
        if self.pid() != unsafe { pg_sys::MyProcPid } {
            return;
        }
        self.serving.store(false, Ordering::Release);
        self.waker.clear();
        self.pid.store(0, Ordering::Release);
    }

    /// Session: says that the extension is not here.
    pub(crate) fn report_absent(&self) {
        self.absent.store(true, Ordering::Release);
    }

    /// Session: was the extension created, altered or dropped since last asked?
    pub(crate) fn take_recheck(&self) -> bool {
        self.recheck.swap(false, Ordering::AcqRel)
    }

    /// Any process: sets the session's latch.
    pub(crate) fn wake(&self) {
        self.waker.wake();
    }

    /// The segment of `crm.change` that backends write to: 0 or 1.
    pub(crate) fn segment(&self) -> u32 {
        self.segment.load(Ordering::Acquire) & 1
    }

    /// Session: turns backends to the other segment.
    pub(crate) fn set_segment(&self, segment: u32) {
        self.segment.store(segment & 1, Ordering::Release);
    }
}

/// Launcher: may be woken from now on.
pub(crate) fn launcher_ready() {
    DIRECTORY.get().launcher.set_to_me();
}

/// Launcher: must not be woken any more.
pub(crate) fn launcher_gone() {
    DIRECTORY.get().launcher.clear();
}

/// Sets the launcher's latch.
pub(crate) fn wake_launcher() {
    DIRECTORY.get().launcher.wake();
}

/// The extension of a database was created, altered or dropped: its session and
/// the launcher look again.
pub(crate) fn recheck(database: pg_sys::Oid) {
    {
        let mut board = BOARD.exclusive();
        let known = board.rechecking;
        if board.rechecks[..known].contains(&database.to_u32()) {
            // Already on the list.
        } else if known < MAX_RECHECKS {
            board.rechecks[known] = database.to_u32();
            board.rechecking += 1;
        } else {
            board.recheck_all = true;
        }
    }
    if let Some(slot) = slot_of(database) {
        slot.recheck.store(true, Ordering::Release);
        slot.wake();
    }
    wake_launcher();
}

/// Launcher: databases to look at again, `None` for all of them.
pub(crate) fn take_rechecks() -> Option<Vec<pg_sys::Oid>> {
    let mut board = BOARD.exclusive();
    let all = std::mem::take(&mut board.recheck_all);
    let known = std::mem::take(&mut board.rechecking);
    (!all).then(|| {
        board.rechecks[..known]
            .iter()
            .map(|oid| pg_sys::Oid::from(*oid))
            .collect()
    })
}

/// A statement that needs a database without connections begins: no session is
/// started in it until [`hold_release`]. False if the list is full.
pub(crate) fn hold(database: pg_sys::Oid) -> bool {
    // SAFETY: a plain global, set before any of our code runs.
    let pid = unsafe { pg_sys::MyProcPid };
    let mut board = BOARD.exclusive();
    let Some(free) = board.holds.iter_mut().find(|hold| hold.pid == 0) else {
        return false;
    };
    *free = Hold {
        database: database.to_u32(),
        pid,
    };
    true
}

/// The statement of this backend ended, in whichever way.
pub(crate) fn hold_release(database: pg_sys::Oid) {
    // SAFETY: a plain global, set before any of our code runs.
    let pid = unsafe { pg_sys::MyProcPid };
    {
        let mut board = BOARD.exclusive();
        let ours = |hold: &&mut Hold| hold.pid == pid && hold.database == database.to_u32();
        if let Some(hold) = board.holds.iter_mut().find(ours) {
            *hold = Hold::default();
        }
    }
    recheck(database);
}

/// Launcher: is the database held? A hold whose backend died without releasing
/// it ends here.
pub(crate) fn is_held(database: pg_sys::Oid) -> bool {
    let mut board = BOARD.exclusive();
    let mut held = false;
    for hold in board.holds.iter_mut().filter(|hold| hold.pid != 0) {
        // SAFETY: looks the pid up in the process array under its lock.
        if unsafe { pg_sys::BackendPidGetProc(hold.pid) }.is_null() {
            *hold = Hold::default();
        } else {
            held |= hold.database == database.to_u32();
        }
    }
    held
}

/// Backend: leaves a request for the session of this database. `None` if the
/// list is full or the kind's name too long.
pub(crate) fn ask(database: pg_sys::Oid, kind: &str, server: pg_sys::Oid) -> Option<i64> {
    let mut request = RawRequest {
        database: database.to_u32(),
        server: server.to_u32(),
        ..RawRequest::default()
    };
    request
        .kind
        .get_mut(..kind.len())?
        .copy_from_slice(kind.as_bytes());
    let ticket = DIRECTORY.get().next_ticket.fetch_add(1, Ordering::AcqRel);
    request.ticket = i64::try_from(ticket).ok()?;
    let mut board = BOARD.exclusive();
    let at = board.waiting;
    *board.requests.get_mut(at)? = request;
    board.waiting += 1;
    Some(request.ticket)
}

/// Session: takes the requests for its database, oldest first.
pub(crate) fn take_requests(database: pg_sys::Oid) -> Vec<Request> {
    let mut board = BOARD.exclusive();
    let waiting = board.waiting;
    let (mut taken, mut kept) = (Vec::new(), 0);
    for at in 0..waiting {
        let raw = board.requests[at];
        if raw.database == database.to_u32() {
            taken.push(raw);
        } else {
            board.requests[kept] = raw;
            kept += 1;
        }
    }
    board.waiting = kept;
    drop(board);
    taken.iter().map(RawRequest::request).collect()
}

impl RawRequest {
    fn request(&self) -> Request {
        let end = self
            .kind
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(MAX_KIND);
        Request {
            ticket: self.ticket,
            kind: String::from_utf8_lossy(&self.kind[..end]).into_owned(),
            server_oid: pg_sys::Oid::from(self.server),
        }
    }
}
