//! `ALTER COLUMN … TYPE` on a mirror's column that a trigger of ours looks at.
//!
//! PostgreSQL refuses it, rightly: the trigger's condition compares values of the
//! type it has now. But it cannot know what to do about it, so this says it first.

use std::ffi::{CStr, c_char};

use super::report;
use pgrx::pg_sys;
use pgrx::prelude::*;

/// A trigger in the way, its column and its table. Everything is named with its
/// schema: the statement's own search path must not choose what runs here.
const IN_THE_WAY: &str = "SELECT t.tgname::pg_catalog.text, a.attname::pg_catalog.text, pg_catalog.format('%I.%I', n.nspname, c.relname) \
     FROM pg_catalog.pg_depend d \
     JOIN pg_catalog.pg_trigger t ON d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_trigger'::pg_catalog.regclass AND t.oid OPERATOR(pg_catalog.=) d.objid \
     JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) d.refobjid AND a.attnum OPERATOR(pg_catalog.=) d.refobjsubid \
     JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) t.tgrelid JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
     JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) t.tgfoid \
     JOIN pg_catalog.pg_namespace pn ON pn.oid OPERATOR(pg_catalog.=) p.pronamespace AND pn.nspname OPERATOR(pg_catalog.=) 'crm' \
     WHERE d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid OPERATOR(pg_catalog.=) $1 \
       AND a.attname OPERATOR(pg_catalog.=) ANY ($2) AND t.tgname OPERATOR(pg_catalog.~) '^crm_(reference|pair)_' \
     ORDER BY t.tgname LIMIT 1";

/// Raises where the statement would change the type of such a column.
///
/// # Safety
/// `alter` is a statement that the server is about to run.
pub(super) unsafe fn check(alter: *mut pg_sys::AlterTableStmt) {
    // SAFETY: see above.
    let (relation, columns) = unsafe { ((*alter).relation, retyped((*alter).cmds)) };
    if columns.is_empty() || !installed() {
        return;
    }
    // SAFETY: no lock, and no error if there is no such table: the statement says so itself.
    let table = unsafe {
        let flags = pg_sys::RVROption::RVR_MISSING_OK;
        pg_sys::RangeVarGetRelidExtended(
            relation,
            pg_sys::NoLock as pg_sys::LOCKMODE,
            flags,
            None,
            std::ptr::null_mut(),
        )
    };
    if table != pg_sys::InvalidOid {
        refuse(table, columns);
    }
}

/// The columns whose type these commands change.
unsafe fn retyped(commands: *mut pg_sys::List) -> Vec<String> {
    let mut columns = Vec::new();
    // SAFETY: null, or a list of AlterTableCmd nodes.
    unsafe {
        let length = if commands.is_null() {
            0
        } else {
            (*commands).length as usize
        };
        for at in 0..length {
            let command = (*(*commands).elements.add(at))
                .ptr_value
                .cast::<pg_sys::AlterTableCmd>();
            if (*command).subtype == pg_sys::AlterTableType::AT_AlterColumnType {
                columns.extend(text((*command).name));
            }
        }
    }
    columns
}

unsafe fn text(name: *const c_char) -> Option<String> {
    if name.is_null() {
        return None;
    }
    // SAFETY: a name from the statement's tree.
    let name = unsafe { CStr::from_ptr(name) };
    name.to_str().ok().map(str::to_owned)
}

fn installed() -> bool {
    // SAFETY: a catalog look-up inside the statement's transaction; a missing extension is no error.
    unsafe { pg_sys::get_extension_oid(c"pg_crm_sync".as_ptr(), true) != pg_sys::InvalidOid }
}

fn refuse(table: pg_sys::Oid, columns: Vec<String>) {
    let found = Spi::connect(|client| {
        let rows = client.select(IN_THE_WAY, Some(1), &[table.into(), columns.into()])?;
        rows.into_iter()
            .map(|row| {
                let text = |n| row.get::<String>(n).map(Option::unwrap_or_default);
                Ok((text(1)?, text(2)?, text(3)?))
            })
            .next()
            .transpose()
    });
    let (trigger, column, table) = match found {
        Ok(Some(found)) => found,
        Ok(None) => return,
        Err(error) => {
            let error: pgrx::spi::SpiError = error;
            pgrx::error!("the triggers of a table could not be read: {error}");
        }
    };
    let map: String = (trigger.chars())
        .skip_while(|c| !c.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .collect();
    let hint = match Some(map).filter(|_| trigger.starts_with("crm_reference_")) {
        Some(map) => format!(
            "DELETE FROM crm.reference_map WHERE id = {map}; then ALTER the column and make the row again, all in one transaction; crm.link_references(link) makes the usual ones."
        ),
        None => "The columns of a mirror of associations are pg_crm_sync's own: leave them as they are, and cast them in a view.".to_owned(),
    };
    report::refuse(
        PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        format!("column {column} of {table} cannot change its type while pg_crm_sync looks at it"),
        Some(format!(
            "Trigger {trigger} compares its values, to carry over references between records."
        )),
        &hint,
    );
}
