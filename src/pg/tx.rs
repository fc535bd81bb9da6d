//! Transactions of the workers, and SQL errors as values.
//!
//! An SQL error inside SPI is a long jump that pgrx turns into a panic, not an
//! `Err`. Only [`in_transaction`] and [`in_subtransaction`] catch it, clean up as
//! the server requires, and return it with SQLSTATE, message, detail and hint.
//!
//! A transaction takes no transaction id until something is written: read with
//! `Spi::connect` and `select`, never with `Spi::get_one`, which takes one each
//! time.

use pgrx::pg_sys;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;
use std::cell::Cell;
use std::ffi::CStr;
use std::fmt;
use std::panic::AssertUnwindSafe;

/// An SQL error that was caught, with its transaction or subtransaction undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SqlError {
    /// Five characters, for example `23505`.
    pub(crate) sqlstate: String,
    pub(crate) message: String,
    pub(crate) detail: Option<String>,
    pub(crate) hint: Option<String>,
}

impl SqlError {
    /// An error of our own that should be handled as if SQL had raised it.
    pub(crate) fn new(sqlstate: &str, message: impl Into<String>) -> Self {
        Self {
            sqlstate: sqlstate.to_owned(),
            message: message.into(),
            detail: None,
            hint: None,
        }
    }

    /// Whether the same work may succeed later: a lock, a deadlock, a shutdown, a
    /// lack of resources. Anything else is a fault of the data, and so is taking
    /// longer than a statement may: tried as it is, it would take as long again.
    pub(crate) fn is_transient(&self) -> bool {
        let class = self.sqlstate.get(..2).unwrap_or_default();
        matches!(class, "40" | "53" | "55" | "57" | "58") && self.sqlstate != "57014"
    }

    fn from_caught(caught: CaughtError) -> Self {
        let from_server = matches!(caught, CaughtError::PostgresError(_)) && NOTED.get() != 0;
        let (CaughtError::PostgresError(report)
        | CaughtError::ErrorReport(report)
        | CaughtError::RustPanic {
            ereport: report, ..
        }) = caught;
        let sqlstate = match report.sql_error_code() {
            PgSqlErrorCode::ERRCODE_INTERNAL_ERROR if from_server => packed_text(NOTED.get()),
            code => packed_text(code as i32),
        };
        Self {
            sqlstate,
            message: report.message().to_owned(),
            detail: report.detail().map(str::to_owned),
            hint: report.hint().map(str::to_owned),
        }
    }
}

impl fmt::Display for SqlError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} ({})", self.message, self.sqlstate)
    }
}

impl std::error::Error for SqlError {}

impl From<pgrx::spi::SpiError> for SqlError {
    fn from(error: pgrx::spi::SpiError) -> Self {
        Self::new("XX000", error.to_string())
    }
}

/// SQLSTATEs are five characters of six bits each.
fn packed_text(packed: i32) -> String {
    (0..5)
        .map(|at| char::from(((packed >> (6 * at)) & 0x3f) as u8 + b'0'))
        .collect()
}

thread_local! {
    /// SQLSTATE of the last report of the server, packed: pgrx knows only the
    /// codes of the server itself, users raise others.
    static NOTED: Cell<i32> = const { Cell::new(0) };
}

#[pg_guard]
unsafe extern "C-unwind" fn note_code(_argument: *mut std::ffi::c_void) {
    // SAFETY: called by the server while it makes a report.
    NOTED.set(unsafe { pg_sys::geterrcode() });
}

/// Runs `body`, noting the SQLSTATE of every report meanwhile. `body` returns,
/// whatever happens in it.
fn noting<T>(body: impl FnOnce() -> T) -> T {
    NOTED.set(0);
    // SAFETY: the frame is taken from the stack before it goes out of scope.
    unsafe {
        let mut frame = pg_sys::ErrorContextCallback {
            previous: pg_sys::error_context_stack,
            callback: Some(note_code),
            arg: std::ptr::null_mut(),
        };
        pg_sys::error_context_stack = &raw mut frame;
        let value = body();
        pg_sys::error_context_stack = frame.previous;
        value
    }
}

/// Runs `body` in a transaction of its own and commits it; an error of either
/// kind aborts it. Only for workers, outside any transaction.
pub(crate) fn in_transaction<T>(body: impl FnOnce() -> Result<T, SqlError>) -> Result<T, SqlError> {
    // SAFETY: a worker's main loop is outside any transaction here, and this is
    // the order in which the server itself begins and ends one.
    unsafe {
        let context = pg_sys::CurrentMemoryContext;
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let result = noting(|| {
            PgTryBuilder::new(AssertUnwindSafe(|| {
                fire_constraints_at_once();
                let value = body()?;
                pg_sys::PopActiveSnapshot();
                pg_sys::CommitTransactionCommand();
                Ok(value)
            }))
            .catch_others(|caught| Err(SqlError::from_caught(caught)))
            .execute()
        });
        if result.is_err() {
            pg_sys::AbortCurrentTransaction();
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::pgstat_report_stat(result.is_err());
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null());
        result
    }
}

/// Nothing that users deferred to the end of the transaction may run there: it
/// would have the worker's rights, so the server refuses to defer it while the
/// mirror's owner writes. Fired at once, it runs as the owner.
unsafe fn fire_constraints_at_once() {
    // SAFETY: the node is read during the call only; inside a transaction.
    unsafe {
        let mut all = pg_sys::ConstraintsSetStmt {
            type_: pg_sys::NodeTag::T_ConstraintsSetStmt,
            constraints: std::ptr::null_mut(),
            deferred: false,
        };
        pg_sys::AfterTriggerSetState(&raw mut all);
    }
}

/// Runs `body` in a subtransaction: on success it is released into the
/// surrounding transaction, on any error it is rolled back and the surrounding
/// transaction goes on.
pub(crate) fn in_subtransaction<T>(
    body: impl FnOnce() -> Result<T, SqlError>,
) -> Result<T, SqlError> {
    // SAFETY: the caller is inside a transaction; memory context and resource
    // owner are put back on both ways out, as the server's own languages do.
    unsafe {
        let context = pg_sys::CurrentMemoryContext;
        let owner = pg_sys::CurrentResourceOwner;
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(context);
        let result = noting(|| {
            PgTryBuilder::new(AssertUnwindSafe(|| {
                let value = body()?;
                pg_sys::ReleaseCurrentSubTransaction();
                Ok(value)
            }))
            .catch_others(|caught| Err(SqlError::from_caught(caught)))
            .execute()
        });
        if result.is_err() {
            pg_sys::MemoryContextSwitchTo(context);
            pg_sys::RollbackAndReleaseCurrentSubTransaction();
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
        result
    }
}

/// Runs `body` in a subtransaction that is undone whatever comes of it: what it
/// returns is all that remains.
pub(crate) fn rehearse<T>(body: impl FnOnce() -> Result<T, SqlError>) -> Result<T, SqlError> {
    let mut kept = None;
    let undone = in_subtransaction(|| {
        kept = Some(body()?);
        Err::<(), _>(SqlError::new("00000", "undone on purpose"))
    });
    match (kept, undone) {
        (Some(value), _) => Ok(value),
        (None, Err(error)) => Err(error),
        (None, Ok(())) => Err(SqlError::new("XX000", "nothing was rehearsed")),
    }
}

/// Runs `body` in a user's session as the engine runs: as `crm_worker`, values as
/// text in its form, and with a search path into which no user can put anything.
/// An SQL error needs no clean-up: aborting the (sub)transaction restores all.
pub(crate) fn as_worker<T>(body: impl FnOnce() -> T) -> T {
    canonically(|| {
        let (mut user, mut context) = (pg_sys::InvalidOid, 0);
        // SAFETY: saves and restores the pair that the server keeps for this
        // purpose; a missing role is an SQL error.
        unsafe {
            set_for_now(c"search_path", c"pg_catalog, pg_temp");
            let role = pg_sys::get_role_oid(c"crm_worker".as_ptr(), false);
            pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut context);
            let local = pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32;
            pg_sys::SetUserIdAndSecContext(role, context | local);
            let value = body();
            pg_sys::SetUserIdAndSecContext(user, context);
            value
        }
    })
}

/// Runs `body` with the rights of `role` and security-restricted, as the server
/// runs index expressions: what users attached to their tables must not act with
/// the worker's rights. An SQL error in `body` needs no clean-up here: aborting
/// the (sub)transaction puts the role back.
pub(crate) fn as_role<T>(role: pg_sys::Oid, body: impl FnOnce() -> T) -> T {
    let (mut user, mut context) = (pg_sys::InvalidOid, 0);
    // SAFETY: saves and restores the pair that the server keeps for this purpose.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut context);
        let restricted =
            (pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION) as i32;
        let level = pg_sys::NewGUCNestLevel();
        pg_sys::SetConfigOption(
            c"row_security".as_ptr(),
            c"off".as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
        );
        pg_sys::SetUserIdAndSecContext(role, context | restricted);
        let value = body();
        pg_sys::AtEOXact_GUC(false, level);
        pg_sys::SetUserIdAndSecContext(user, context);
        value
    }
}

/// The forms in which values are text to the engine, whatever the session's are.
const CANONICAL: [(&CStr, &CStr); 5] = [
    (c"DateStyle", c"ISO, YMD"),
    (c"IntervalStyle", c"postgres"),
    (c"TimeZone", c"UTC"),
    (c"bytea_output", c"hex"),
    (c"extra_float_digits", c"1"),
];

/// Runs `body` in a user's session with values as text in the engine's form. An
/// SQL error needs no clean-up: aborting the (sub)transaction restores settings.
pub(crate) fn canonically<T>(body: impl FnOnce() -> T) -> T {
    // SAFETY: settings of a nest level of their own, ended below.
    unsafe {
        let level = pg_sys::NewGUCNestLevel();
        for (name, value) in CANONICAL {
            set_for_now(name, value);
        }
        let result = body();
        pg_sys::AtEOXact_GUC(false, level);
        result
    }
}

unsafe fn set_for_now(name: &CStr, value: &CStr) {
    // SAFETY: a known setting with a valid value; the caller ends the nest level.
    unsafe {
        let (who, how) = (
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
        );
        pg_sys::SetConfigOption(name.as_ptr(), value.as_ptr(), who, how);
    }
}

/// Makes this worker write dates, times, numbers and bytes in one form, whatever
/// the database's settings are: the engine compares them as text.
pub(crate) fn set_canonical_output() {
    for (name, value) in CANONICAL {
        // SAFETY: known settings with valid values, once, after connecting.
        unsafe {
            let (who, how) = (
                pg_sys::GucContext::PGC_USERSET,
                pg_sys::GucSource::PGC_S_OVERRIDE,
            );
            pg_sys::SetConfigOption(name.as_ptr(), value.as_ptr(), who, how);
        }
    }
}

/// Runs `body` with this search path; an error puts the old one back with the
/// (sub)transaction. Functions of users that rely on another path fail instead
/// of finding what somebody put in their way.
pub(crate) fn with_search_path<T>(path: &std::ffi::CStr, body: impl FnOnce() -> T) -> T {
    // SAFETY: a known setting with a valid value, undone at the end of the level.
    unsafe {
        let level = pg_sys::NewGUCNestLevel();
        pg_sys::SetConfigOption(
            c"search_path".as_ptr(),
            path.as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
        );
        let value = body();
        pg_sys::AtEOXact_GUC(false, level);
        value
    }
}
