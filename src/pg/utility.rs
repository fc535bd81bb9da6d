//! Statements that a connected session worker would be in the way of.
//!
//! DROP DATABASE, CREATE DATABASE … TEMPLATE, ALTER DATABASE … RENAME and SET
//! TABLESPACE need a database without connections. The hook stops our session
//! first, keeps it away while the statement runs, and lets the launcher start it
//! again afterwards, also after a failure. Besides, COMMIT PREPARED makes changes
//! visible without any commit callback of ours, so it wakes the session here.

use super::{shmem, wake};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ffi::{CStr, c_char};
use std::time::{Duration, Instant};

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
    // SAFETY: written once before any backend existed.
    if let Some(next) = unsafe { NEXT_ACCESS } {
        // SAFETY: the next hook gets exactly what we got.
        unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| next(access, class, object, sub, arg)) };
    }
    if class == pg_sys::ExtensionRelationId {
        wake::recheck_at_commit();
    }
}

#[pg_guard]
#[allow(
    clippy::too_many_arguments,
    reason = "the hook's signature is the server's"
)]
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
    // SAFETY: the server passes a valid statement.
    let subject = unsafe { subject_of((*statement).utilityStmt) };
    let run = || {
        // SAFETY: both take exactly what we got.
        unsafe {
            match NEXT_UTILITY {
                Some(next) => pg_sys::ffi::pg_guard_ffi_boundary(|| {
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
                }),
                None => pg_sys::standard_ProcessUtility(
                    statement,
                    text,
                    read_only,
                    context,
                    params,
                    environment,
                    destination,
                    completion,
                ),
            }
        }
    };
    match subject {
        Subject::Other => run(),
        Subject::CommitPrepared => {
            run();
            wake::now();
        }
        Subject::EmptyDatabase(database) => {
            PgTryBuilder::new(std::panic::AssertUnwindSafe(|| {
                stop_session(database);
                run();
            }))
            .finally(|| shmem::hold_release(database))
            .execute();
        }
        Subject::NewDatabase => {
            run();
            shmem::wake_launcher();
        }
    }
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
