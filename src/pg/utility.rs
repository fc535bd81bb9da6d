//! Statements that a connected session worker would be in the way of.
//!
//! DROP DATABASE, CREATE DATABASE … TEMPLATE, ALTER DATABASE … RENAME and SET
//! TABLESPACE need a database without connections. The hook stops our session
//! first, keeps it away while the statement runs, and lets the launcher start it
//! again afterwards, also after a failure. Besides, COMMIT PREPARED makes changes
//! visible without any commit callback of ours, so it wakes the session here.
//! ALTER TABLE is looked at for what [`retype`] explains better than the server.

use super::{retype, shmem, wake};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ffi::{CStr, c_char};
use std::time::{Duration, Instant};

mod raw {
    use super::{c_char, pg_sys};

    unsafe extern "C-unwind" {
        /// The server's own, without the guard that pgrx puts around it.
        pub(super) fn standard_ProcessUtility(
            statement: *mut pg_sys::PlannedStmt,
            text: *const c_char,
            read_only: bool,
            context: pg_sys::ProcessUtilityContext::Type,
            params: pg_sys::ParamListInfo,
            environment: *mut pg_sys::QueryEnvironment,
            destination: *mut pg_sys::DestReceiver,
            completion: *mut pg_sys::QueryCompletion,
        );
    }
}

static mut NEXT_UTILITY: pg_sys::ProcessUtility_hook_type = None;
static mut NEXT_ACCESS: pg_sys::object_access_hook_type = None;

/// How long a statement waits for our session to go: less than the five seconds
/// that the server itself waits for other connections.
const STOP_TIMEOUT: Duration = Duration::from_secs(4);

/// Chains both hooks; only while the server preloads libraries.
pub(crate) fn register() {
    // SAFETY: hooks are set once, by the postmaster, before any backend exists.
    unsafe {
        NEXT_UTILITY = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(on_utility);
        NEXT_ACCESS = pg_sys::object_access_hook;
        pg_sys::object_access_hook = Some(on_access);
    }
}

/// Any change of an extension, also by CASCADE, makes session and launcher look
/// again when, and only if, the transaction commits.
#[pg_guard]
unsafe extern "C-unwind" fn on_access(
    access: pg_sys::ObjectAccessType::Type,
    class: pg_sys::Oid,
    object: pg_sys::Oid,
    sub: i32,
    arg: *mut std::ffi::c_void,
) {
    if class == pg_sys::ExtensionRelationId {
        wake::recheck_at_commit();
    }
    // SAFETY: written once before any backend existed; the next hook gets exactly
    // what we got. Its errors jump past this frame, which owns nothing.
    unsafe {
        if let Some(next) = NEXT_ACCESS {
            next(access, class, object, sub, arg);
        }
    }
}

/// Every utility statement of every user passes here, so an error of one must
/// pass as it is: a guard around the call would drop its cursor position and
/// object names. Errors therefore jump past this frame, which owns nothing; only
/// the few statements that we prepare for are run under a guard.
unsafe extern "C-unwind" fn on_utility(
    statement: *mut pg_sys::PlannedStmt,
    text: *const c_char,
    read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    let run = || {
        // SAFETY: both take exactly what we got.
        unsafe {
            let next = NEXT_UTILITY.unwrap_or(raw::standard_ProcessUtility);
            next(
                statement,
                text,
                read_only,
                context,
                params,
                environment,
                destination,
                completion,
            );
        }
    };
    // SAFETY: the server passes a valid statement; a panic becomes an SQL error.
    let subject =
        unsafe { pg_sys::panic::pgrx_extern_c_guard(|| subject_of((*statement).utilityStmt)) };
    match subject {
        Subject::Other => run(),
        Subject::CommitPrepared => {
            run();
            wake::now();
        }
        Subject::NewDatabase => {
            run();
            shmem::wake_launcher();
        }
        // SAFETY: as above; errors of the statement are caught and raised again.
        Subject::EmptyDatabase(database) => unsafe {
            pg_sys::panic::pgrx_extern_c_guard(|| run_without_session(database, run));
        },
    }
}

/// Runs the statement while no session of ours is connected to the database.
fn run_without_session(database: pg_sys::Oid, run: impl Fn()) {
    PgTryBuilder::new(std::panic::AssertUnwindSafe(|| {
        stop_session(database);
        // SAFETY: the closure owns nothing that an error would leave behind.
        unsafe { pg_sys::ffi::pg_guard_ffi_boundary(&run) };
    }))
    .finally(|| shmem::hold_release(database))
    .execute();
}

/// What a utility statement means to us.
enum Subject {
    Other,
    CommitPrepared,
    /// The database must have no connections.
    EmptyDatabase(pg_sys::Oid),
    NewDatabase,
}

unsafe fn subject_of(node: *mut pg_sys::Node) -> Subject {
    use pg_sys::NodeTag;
    if node.is_null() {
        return Subject::Other;
    }
    // SAFETY: the tag says what the node is.
    unsafe {
        match (*node).type_ {
            NodeTag::T_TransactionStmt => {
                let kind = (*node.cast::<pg_sys::TransactionStmt>()).kind;
                if kind == pg_sys::TransactionStmtKind::TRANS_STMT_COMMIT_PREPARED {
                    return Subject::CommitPrepared;
                }
                Subject::Other
            }
            NodeTag::T_AlterTableStmt => {
                retype::check(node.cast());
                Subject::Other
            }
            NodeTag::T_DropdbStmt => named((*node.cast::<pg_sys::DropdbStmt>()).dbname),
            NodeTag::T_RenameStmt => {
                let rename = node.cast::<pg_sys::RenameStmt>();
                if (*rename).renameType == pg_sys::ObjectType::OBJECT_DATABASE {
                    return named((*rename).subname);
                }
                Subject::Other
            }
            NodeTag::T_AlterDatabaseStmt => {
                let alter = node.cast::<pg_sys::AlterDatabaseStmt>();
                match option_value((*alter).options, c"tablespace") {
                    Some(_) => named((*alter).dbname),
                    None => Subject::NewDatabase,
                }
            }
            NodeTag::T_CreatedbStmt => {
                let create = node.cast::<pg_sys::CreatedbStmt>();
                let template = option_value((*create).options, c"template");
                let template =
                    template.map_or(c"template1".as_ptr(), |value| pg_sys::defGetString(value));
                match named(template) {
                    Subject::Other => Subject::NewDatabase,
                    subject => subject,
                }
            }
            _ => Subject::Other,
        }
    }
}

/// The database of that name, if it has a session of ours and the current user
/// may do something to it; otherwise there is nothing to stop.
unsafe fn named(name: *const c_char) -> Subject {
    if name.is_null() {
        return Subject::Other;
    }
    // SAFETY: a name from the statement's tree; a missing database is no error.
    let database = unsafe { pg_sys::get_database_oid(name, true) };
    if database == pg_sys::InvalidOid || !may_alter(database) || shmem::slot_of(database).is_none()
    {
        return Subject::Other;
    }
    Subject::EmptyDatabase(database)
}

fn may_alter(database: pg_sys::Oid) -> bool {
    // SAFETY: catalog look-ups inside the statement's transaction.
    unsafe {
        let user = pg_sys::GetUserId();
        #[cfg(feature = "pg15")]
        let owner = pg_sys::pg_database_ownercheck(database, user);
        #[cfg(not(feature = "pg15"))]
        let owner = pg_sys::object_ownercheck(pg_sys::DatabaseRelationId, database, user);
        owner || pg_sys::superuser()
    }
}

unsafe fn option_value(options: *mut pg_sys::List, name: &CStr) -> Option<*mut pg_sys::DefElem> {
    // SAFETY: the list holds DefElem nodes.
    unsafe {
        let length = if options.is_null() {
            0
        } else {
            (*options).length as usize
        };
        (0..length)
            .map(|at| {
                (*(*options).elements.add(at))
                    .ptr_value
                    .cast::<pg_sys::DefElem>()
            })
            .find(|element| CStr::from_ptr((**element).defname) == name)
    }
}

/// Stops the session of a database and waits, bounded, until it is gone.
fn stop_session(database: pg_sys::Oid) {
    if !shmem::hold(database) {
        return;
    }
    let deadline = Instant::now() + STOP_TIMEOUT;
    let running = || shmem::slot_of(database).map_or(0, shmem::Slot::pid);
    loop {
        let pid = running();
        if pid == 0 || Instant::now() > deadline {
            return;
        }
        // SAFETY: a session clears its pid before it exits, so this is ours.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        pause();
    }
}

/// A short, interruptible wait.
fn pause() {
    let events = (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as i32;
    // SAFETY: waits on this process's own latch.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events, 10, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    pgrx::check_for_interrupts!();
}
