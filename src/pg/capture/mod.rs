//! The capture trigger: what users change on mirrors becomes rows of
//! `crm.change_0` or `crm.change_1`.
//!
//! A change row is a hint with old values: the new value is read from the mirror
//! later. Per row this costs a walk over two tuples and a copy of the changed old
//! values into memory ([`buffer`]); they are written with the server's
//! multi-insert when the transaction commits or the buffer is full ([`flush`]).
//! No SPI, no JSON and no PL runs here.

mod buffer;
pub(crate) mod decode;
mod encode;
mod flush;
mod relation;
pub(crate) mod segment;
mod tuple;

use super::{origin, report};
use buffer::Op;
use pgrx::pg_sys;
use pgrx::prelude::*;
use relation::{Mirror, Role};
use std::rc::Rc;
use tuple::{Field, Tuple};

/// Attribute number of `id`, the CRM's record id: mirrors are made with `_id`
/// first and `id` second, and neither can be dropped while capture is attached.
pub(crate) const ID_ATTNUM: i16 = 2;

/// Registers the transaction callbacks; only while the server preloads libraries,
/// so that they see every transaction of every backend from its start.
pub(crate) fn register() {
    buffer::register();
}

/// Number of this session's last transaction that changed mirrors.
pub(crate) fn last_tx() -> Option<i64> {
    buffer::last_tx()
}

/// Has the running transaction changed mirrors?
pub(crate) fn has_changes() -> bool {
    buffer::has_changes()
}

/// What an explained statement changed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Staged {
    /// Number of its transaction in the change log.
    pub(crate) tx: i64,
    /// Its first change there.
    pub(crate) first: i32,
    /// The guard would hold its writes.
    pub(crate) held: bool,
}

/// Runs a statement of which at most `most` changes are taken and puts them into
/// the change log at once, for this subtransaction to read; `None` if it changed
/// nothing. The caller undoes the subtransaction.
pub(crate) fn staged(most: i32, statement: impl FnOnce()) -> Option<Staged> {
    buffer::staged(most, statement).map(|(header, first)| Staged {
        tx: header.tx,
        first,
        held: header.held,
    })
}

/// Tells the server that `crm_capture` takes its arguments the current way.
#[unsafe(no_mangle)]
pub(crate) extern "C-unwind" fn pg_finfo_crm_capture() -> *const pg_sys::Pg_finfo_record {
    static RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &raw const RECORD
}

/// `crm._capture()`: AFTER INSERT, UPDATE or DELETE, for each row; and BEFORE
/// TRUNCATE, which it refuses. Arguments: mirror number, read-only columns,
/// `!insert` and `!delete` for what users must not do.
#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn crm_capture(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: the server passes valid call information; the node's tag is
    // checked before it is taken for trigger data.
    unsafe {
        let node = (*call).context;
        if node.is_null() || (*node).type_ != pg_sys::NodeTag::T_TriggerData {
            report::refuse(
                PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                "crm._capture() can only be called as a trigger".to_owned(),
                None,
                "",
            );
        }
        capture(&*node.cast::<pg_sys::TriggerData>());
    }
    pg_sys::Datum::from(0)
}

unsafe fn capture(data: &pg_sys::TriggerData) {
    // SAFETY: the server keeps relation and trigger alive during the call.
    let relation = unsafe { (*data.tg_relation).rd_id };
    let operation = data.tg_event & pg_sys::TRIGGER_EVENT_OPMASK;
    if operation == pg_sys::TRIGGER_EVENT_TRUNCATE {
        refuse_truncate(data);
    }
    if origin::is_engine(relation) {
        return;
    }
    // SAFETY: as above.
    let mirror = unsafe { relation::lookup(data) };
    // SAFETY: the server passes the tuples that belong to the operation, laid
    // out as the relation's tuple descriptor says, which `mirror` was made from.
    unsafe {
        match operation {
            pg_sys::TRIGGER_EVENT_INSERT => inserted(&mirror, &Tuple::new(data.tg_trigtuple)),
            pg_sys::TRIGGER_EVENT_DELETE => deleted(&mirror, &Tuple::new(data.tg_trigtuple)),
            _ => updated(
                &mirror,
                &Tuple::new(data.tg_trigtuple),
                &Tuple::new(data.tg_newtuple),
            ),
        }
    }
}

fn updated(mirror: &Rc<Mirror>, old: &Tuple<'_>, new: &Tuple<'_>) {
    if old.same_bytes(new) {
        return;
    }
    let (mut before, mut after) = (old.fields(), new.fields());
    let mut row_id = 0;
    buffer::append(mirror, Op::Update, |out| {
        for attribute in &mirror.attributes {
            let (was, is) = (before.next(attribute), after.next(attribute));
            match attribute.role {
                Role::Dropped => continue,
                Role::RowId => row_id = was.as_i64(),
                _ => {}
            }
            if !tuple::differs(attribute, was, is) {
                continue;
            }
            match attribute.role {
                Role::Plain => encode::put(out, attribute, was),
                _ => refuse_column(mirror, attribute),
            }
        }
        (!out.is_empty()).then_some(row_id)
    });
}

fn inserted(mirror: &Rc<Mirror>, new: &Tuple<'_>) {
    if mirror.no_insert {
        refuse_row(mirror, "take new rows", KEPT);
    }
    let mut fields = new.fields();
    let mut row_id = 0;
    buffer::append(mirror, Op::Insert, |_| {
        for attribute in &mirror.attributes {
            let field = fields.next(attribute);
            match attribute.role {
                Role::RowId => row_id = field.as_i64(),
                Role::Plain | Role::Dropped => {}
                Role::Engine | Role::RecordId | Role::ReadOnly => {
                    if !matches!(field, Field::Null) {
                        refuse_column(mirror, attribute);
                    }
                }
            }
        }
        Some(row_id)
    });
}

/// The whole old row except what the engine keeps for itself; a column that is
/// not in the list was null.
fn deleted(mirror: &Rc<Mirror>, old: &Tuple<'_>) {
    if mirror.no_delete {
        refuse_row(mirror, "lose rows", KEPT);
    }
    let mut fields = old.fields();
    let mut row_id = 0;
    buffer::append(mirror, Op::Delete, |out| {
        for attribute in &mirror.attributes {
            let field = fields.next(attribute);
            match attribute.role {
                Role::RowId => row_id = field.as_i64(),
                Role::Dropped | Role::Engine => {}
                Role::Plain | Role::RecordId | Role::ReadOnly => {
                    if !matches!(field, Field::Null) {
                        encode::put(out, attribute, field);
                    }
                }
            }
        }
        Some(row_id)
    });
}

const KEPT: &str = "The CRM keeps these records itself and takes no such change: make it in the CRM, the mirror follows.";

#[cold]
fn refuse_row(mirror: &Mirror, what: &str, hint: &str) -> ! {
    report::refuse(
        PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        format!("mirror \"{}\" cannot {what}", mirror.name),
        None,
        hint,
    );
}

#[cold]
fn refuse_column(mirror: &Mirror, attribute: &relation::Attribute) -> ! {
    let hint = match attribute.role {
        Role::ReadOnly => "The CRM computes this property; leave it out of the statement.",
        Role::RecordId => {
            "The CRM gives the record id; leave it out, it is filled in when the record is created there."
        }
        _ => {
            "Columns that begin with an underscore are kept by the pg_crm_sync worker; leave them out of the statement."
        }
    };
    report::refuse(
        PgSqlErrorCode::ERRCODE_GENERATED_ALWAYS,
        format!(
            "column \"{}\" of mirror \"{}\" cannot be written",
            attribute.name, mirror.name
        ),
        None,
        hint,
    );
}

#[cold]
fn refuse_truncate(data: &pg_sys::TriggerData) -> ! {
    // SAFETY: the server keeps the relation alive during the call.
    let name = unsafe { relation::name_of(data.tg_relation) };
    report::refuse(
        PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        format!("mirror \"{name}\" cannot be truncated: it would not say which records to delete"),
        None,
        "Use DELETE to delete the records in the CRM too, or crm.mirror_drop to forget the mirror only.",
    );
}
