//! SQL text that users give and that is put into statements: it must be one
//! expression by itself, before anything is put around it.

use std::ffi::CString;

use pgrx::pg_sys;
use pgrx::prelude::*;

/// Whether a text is one expression and nothing more; raises where it cannot be
/// parsed. Nothing is looked up and nothing runs.
#[pg_extern(name = "_is_expression", immutable, strict, parallel_safe)]
fn is_expression(given: &str) -> bool {
    let Ok(text) = CString::new(given) else {
        return false;
    };
    // SAFETY: the parser copies what it keeps of the text; its errors are SQL errors.
    unsafe {
        let parsed =
            pg_sys::raw_parser(text.as_ptr(), pg_sys::RawParseMode::RAW_PARSE_PLPGSQL_EXPR);
        only(parsed)
            .is_some_and(|statement| is_one_value((*statement.cast::<pg_sys::RawStmt>()).stmt))
    }
}

/// The one element of a list.
unsafe fn only(list: *mut pg_sys::List) -> Option<*mut pg_sys::Node> {
    // SAFETY: null, or a list of nodes.
    unsafe {
        let one = !list.is_null() && (*list).length == 1;
        one.then(|| (*(*list).elements).ptr_value.cast())
    }
}

/// An expression is parsed as what stands between SELECT and its end: there may
/// be one value without a name, and none of the clauses that could follow it.
unsafe fn is_one_value(node: *mut pg_sys::Node) -> bool {
    // SAFETY: the tag says what the node is.
    unsafe {
        if node.is_null() || (*node).type_ != pg_sys::NodeTag::T_SelectStmt {
            return false;
        }
        let select = &*node.cast::<pg_sys::SelectStmt>();
        let clauses = [
            select.distinctClause,
            select.fromClause,
            select.groupClause,
            select.windowClause,
            select.sortClause,
            select.lockingClause,
        ];
        let more = [
            select.whereClause,
            select.havingClause,
            select.limitOffset,
            select.limitCount,
        ];
        let target = only(select.targetList);
        clauses.iter().all(|list| list.is_null())
            && more.iter().all(|node| node.is_null())
            && target.is_some_and(|t| (*t.cast::<pg_sys::ResTarget>()).name.is_null())
    }
}
