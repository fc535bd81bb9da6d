//! Errors and warnings for people: each with an SQLSTATE and what to do about it.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

/// Raises an SQL error.
#[cold]
pub(crate) fn refuse(
    code: PgSqlErrorCode,
    message: String,
    detail: Option<String>,
    hint: &str,
) -> ! {
    let mut report = ErrorReport::new(code, message, "pg_crm_sync").set_hint(hint);
    if let Some(detail) = detail {
        report = report.set_detail(detail);
    }
    report.report(PgLogLevel::ERROR);
    unreachable!("a report of level ERROR does not return")
}

/// Writes a warning to the server log.
#[cold]
pub(crate) fn warn(code: PgSqlErrorCode, message: String, hint: &str) {
    ErrorReport::new(code, message, "pg_crm_sync")
        .set_hint(hint)
        .report(PgLogLevel::WARNING);
}
