//! Errors and warnings for people: each with an SQLSTATE and what to do about it.

use super::tx::SqlError;
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

/// Raises an SQL error that was caught, as it was.
#[cold]
pub(crate) fn raise(error: &SqlError) -> ! {
    let mut report = ErrorReport::new(
        code_of(&error.sqlstate),
        error.message.clone(),
        "pg_crm_sync",
    );
    if let Some(detail) = &error.detail {
        report = report.set_detail(detail.clone());
    }
    if let Some(hint) = &error.hint {
        report = report.set_hint(hint.clone());
    }
    report.report(PgLogLevel::ERROR);
    unreachable!("a report of level ERROR does not return")
}

/// The server packs an SQLSTATE into six bits a character.
fn code_of(sqlstate: &str) -> PgSqlErrorCode {
    let packed = (sqlstate.bytes().enumerate().take(5)).fold(0_i32, |packed, (at, byte)| {
        packed | i32::from(byte.wrapping_sub(b'0') & 0x3f) << (6 * at)
    });
    PgSqlErrorCode::from(packed)
}

/// Writes a warning to the server log.
#[cold]
pub(crate) fn warn(code: PgSqlErrorCode, message: String, hint: &str) {
    ErrorReport::new(code, message, "pg_crm_sync")
        .set_hint(hint)
        .report(PgLogLevel::WARNING);
}

/// Tells the caller something that is no error.
#[cold]
pub(crate) fn notice(message: String, detail: String, hint: &str) {
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
        message,
        "pg_crm_sync",
    )
    .set_detail(detail)
    .set_hint(hint)
    .report(PgLogLevel::NOTICE);
}
