//! Statements that are only explained: what they change, and running them.

use pgrx::pg_sys;
use pgrx::pg_sys::CmdType;
use pgrx::prelude::*;
use std::ffi::{CStr, CString};

use super::report;
use super::tx::SqlError;

/// A table that a statement changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) relid: u32,
    /// For messages.
    pub(crate) name: String,
}

/// The tables that a statement would change, views and rules resolved. Refuses
/// all but one INSERT, UPDATE, DELETE or MERGE.
pub(crate) fn targets(statement: &str) -> Vec<Target> {
    let Ok(text) = CString::new(statement) else {
        refuse("it contains a zero byte");
    };
    // SAFETY: the server's own parser and analyser, inside a transaction; their
    // errors are SQL errors, and what they return lives until the statement ends.
    unsafe {
        let parsed = pointers::<pg_sys::RawStmt>(pg_sys::pg_parse_query(text.as_ptr()));
        let [only] = parsed.as_slice() else {
            refuse("it is not exactly one statement");
        };
        let only = *only;
        if !changes_rows((*(*only).stmt).type_) {
            refuse("it is no INSERT, UPDATE, DELETE or MERGE");
        }
        let queries = pg_sys::pg_analyze_and_rewrite_fixedparams(
            only,
            text.as_ptr(),
            std::ptr::null(),
            0,
            std::ptr::null_mut(),
        );
        let queries = pointers::<pg_sys::Query>(queries);
        queries.into_iter().map(|query| target(&*query)).collect()
    }
}

/// The members of one of the server's lists of nodes.
///
/// # Safety
/// `list` is null or a list of pointers to `T`.
unsafe fn pointers<T>(list: *mut pg_sys::List) -> Vec<*mut T> {
    if list.is_null() {
        return Vec::new();
    }
    // SAFETY: as the caller promises; a list says how many cells it has.
    unsafe {
        let count = usize::try_from((*list).length).unwrap_or(0);
        let cells = std::slice::from_raw_parts((*list).elements, count);
        cells.iter().map(|cell| cell.ptr_value.cast()).collect()
    }
}

fn changes_rows(tag: pg_sys::NodeTag) -> bool {
    use pg_sys::NodeTag::{T_DeleteStmt, T_InsertStmt, T_MergeStmt, T_UpdateStmt};
    matches!(
        tag,
        T_InsertStmt | T_UpdateStmt | T_DeleteStmt | T_MergeStmt
    )
}

/// # Safety
/// `query` is analysed and rewritten.
unsafe fn target(query: &pg_sys::Query) -> Target {
    let plain = [
        CmdType::CMD_INSERT,
        CmdType::CMD_UPDATE,
        CmdType::CMD_DELETE,
        CmdType::CMD_MERGE,
    ];
    if !plain.contains(&query.commandType) || query.resultRelation < 1 {
        refuse("a rule makes something else of it");
    }
    if query.hasModifyingCTE {
        refuse("its WITH clause changes data too");
    }
    // SAFETY: the server numbers range table entries from one and keeps them as
    // long as the query.
    unsafe {
        let entries = pointers::<pg_sys::RangeTblEntry>(query.rtable);
        let entry = entries.get(query.resultRelation as usize - 1);
        let Some(relid) = entry.map(|e| (**e).relid) else {
            refuse("it has no target table");
        };
        let name = pg_sys::get_rel_name(relid);
        let name = if name.is_null() {
            String::new()
        } else {
            CStr::from_ptr(name).to_string_lossy().into_owned()
        };
        Target {
            relid: relid.to_u32(),
            name,
        }
    }
}

/// Runs a statement with the rights and settings of the session.
pub(crate) fn run(statement: &str) -> Result<usize, SqlError> {
    Spi::connect_mut(|client| Ok(client.update(statement, None, &[])?.len()))
}

#[cold]
pub(crate) fn refuse(why: &str) -> ! {
    report::refuse(
        PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        format!("this statement cannot be explained: {why}"),
        None,
        "Give one INSERT, UPDATE, DELETE or MERGE on a mirror, such as UPDATE hubspot.contacts SET phone = NULL WHERE id = '101'.",
    )
}
