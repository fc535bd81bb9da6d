//! Rows of a first copy, from the text of an answer into tuples without COPY's
//! text in between.
//!
//! Only where nothing of a user's making must see the row before it is stored:
//! constraints and all kinds of indexes are served, the rest is COPY's business,
//! see [`Plan::of`].

use crm_core::model::Record;
use pgrx::pg_sys;

use crate::pg::bulk;
use crate::pg::form::{self, Form, Place, Row, is_plain};

/// Rows handed to the server at once.
const BATCH: usize = 250;

mod raw {
    unsafe extern "C-unwind" {
        /// The server's own nextval, without the check of the user's rights.
        pub(super) fn nextval_internal(relation: pgrx::pg_sys::Oid, check_permissions: bool)
        -> i64;
    }
}

/// Where the value of an attribute comes from.
enum Fill {
    Null,
    /// The next number of this sequence.
    Number(pg_sys::Oid),
    Id,
    Source,
    Stamp,
    Cell(usize, Form),
}

/// What to do for each attribute of a table.
struct Plan(Vec<Fill>);

impl Plan {
    /// `None` where rows must go the long way: the values of a trigger, a
    /// default, a domain or a generated column are for the executor to make.
    ///
    /// # Safety
    /// The relation is open, in a transaction.
    unsafe fn of(relation: pg_sys::Relation, columns: &[&str]) -> Option<Self> {
        // SAFETY: the caller's promise; catalog look-ups.
        unsafe {
            if !is_plain(relation, pg_sys::TRIGGER_TYPE_INSERT) {
                return None;
            }
            let descriptor = pgrx::PgTupleDesc::from_pg_unchecked((*relation).rd_att);
            let attributes = descriptor.iter();
            let fills = attributes.map(|a| fill_of(relation, a, columns));
            fills.collect::<Option<Vec<_>>>().map(Self)
        }
    }

    /// Lays out the values of a row; those of variable length in `image`.
    unsafe fn lay_out(&mut self, record: &Record, source: &str, row: &mut Row) {
        row.image.clear();
        row.places.clear();
        for fill in &mut self.0 {
            let place = match fill {
                Fill::Null => Place::Null,
                Fill::Number(sequence) => {
                    let sequence = *sequence;
                    // SAFETY: the mirror's own sequence; errors are caught at the boundary.
                    let next = unsafe {
                        pg_sys::ffi::pg_guard_ffi_boundary(|| {
                            raw::nextval_internal(sequence, false)
                        })
                    };
                    Place::Value(pg_sys::Datum::from(next))
                }
                Fill::Id => Place::At(row.image.text(&record.id)),
                Fill::Source => Place::At(row.image.text(source)),
                Fill::Stamp => record
                    .modified_at
                    .filter(|at| *at > 0)
                    .map_or(Place::Null, |at| {
                        Place::Value(pg_sys::Datum::from(bulk::stamp(at)))
                    }),
                Fill::Cell(index, form) => match record.values.get(*index) {
                    None => Place::Null,
                    // SAFETY: in a transaction.
                    Some(text) => unsafe { form.place(text, row) },
                },
            };
            row.places.push(place);
        }
    }
}

unsafe fn fill_of(
    relation: pg_sys::Relation,
    attribute: &pg_sys::FormData_pg_attribute,
    columns: &[&str],
) -> Option<Fill> {
    if attribute.attisdropped {
        return Some(Fill::Null);
    }
    if attribute.attgenerated != 0 {
        return None;
    }
    let is = |oid: pg_sys::Oid| attribute.atttypid == oid && attribute.atttypmod < 0;
    let name = attribute.name();
    match name {
        "id" => return is(pg_sys::TEXTOID).then_some(Fill::Id),
        "_sync_source" => return is(pg_sys::TEXTOID).then_some(Fill::Source),
        "_remote_modified_at" => return is(pg_sys::TIMESTAMPTZOID).then_some(Fill::Stamp),
        _ => {}
    }
    if let Some(index) = columns.iter().position(|c| *c == name) {
        // SAFETY: a type of the catalog.
        let form = unsafe { form::form_of(attribute)? };
        return Some(Fill::Cell(index, form));
    }
    if attribute.attidentity != 0 && is(pg_sys::INT8OID) {
        // SAFETY: the column has a sequence: it is an identity.
        return Some(Fill::Number(unsafe { identity(relation, attribute) }));
    }
    // SAFETY: a type of the catalog.
    let kind = unsafe { pg_sys::get_typtype(attribute.atttypid) };
    let domain = kind == pg_sys::TYPTYPE_DOMAIN as std::ffi::c_char;
    (!attribute.atthasdef && attribute.attidentity == 0 && !domain).then_some(Fill::Null)
}

#[cfg(not(any(feature = "pg17", feature = "pg18")))]
unsafe fn identity(
    relation: pg_sys::Relation,
    attribute: &pg_sys::FormData_pg_attribute,
) -> pg_sys::Oid {
    // SAFETY: of an open relation; an error if there is none.
    unsafe { pg_sys::getIdentitySequence((*relation).rd_id, attribute.attnum, false) }
}

#[cfg(any(feature = "pg17", feature = "pg18"))]
unsafe fn identity(
    relation: pg_sys::Relation,
    attribute: &pg_sys::FormData_pg_attribute,
) -> pg_sys::Oid {
    // SAFETY: of an open relation; an error if there is none.
    unsafe { pg_sys::getIdentitySequence(relation, attribute.attnum, false) }
}

/// What the server needs to store rows of one table.
struct Target {
    relation: pg_sys::Relation,
    state: *mut pg_sys::EState,
    info: *mut pg_sys::ResultRelInfo,
    bulk: pg_sys::BulkInsertState,
    slots: Vec<*mut pg_sys::TupleTableSlot>,
    /// For what lives as long as a batch.
    memory: pg_sys::MemoryContext,
    constrained: bool,
    indexed: bool,
}

impl Target {
    unsafe fn open(relation: pg_sys::Relation, rows: usize) -> Self {
        // SAFETY: as the server's own COPY begins; an error leaves through the
        // (sub)transaction, which releases all of it.
        unsafe {
            let state = pg_sys::CreateExecutorState();
            let size = size_of::<pg_sys::ResultRelInfo>();
            let info = pg_sys::palloc0(size).cast::<pg_sys::ResultRelInfo>();
            (*info).type_ = pg_sys::NodeTag::T_ResultRelInfo;
            pg_sys::InitResultRelInfo(info, relation, 0, std::ptr::null_mut(), 0);
            pg_sys::ExecOpenIndices(info, false);
            let operations = &raw const pg_sys::TTSOpsHeapTuple;
            let slots = (0..rows.min(BATCH))
                .map(|_| pg_sys::MakeSingleTupleTableSlot((*relation).rd_att, operations))
                .collect();
            let memory = pg_sys::AllocSetContextCreateInternal(
                pg_sys::CurrentMemoryContext,
                c"pg_crm_sync rows".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            );
            Self {
                relation,
                state,
                info,
                bulk: pg_sys::GetBulkInsertState(),
                slots,
                memory,
                constrained: !(*(*relation).rd_att).constr.is_null(),
                indexed: (*info).ri_NumIndices > 0,
            }
        }
    }

    /// Stores the first `count` rows of the slots.
    unsafe fn store(&mut self, count: usize) {
        let filled = &mut self.slots[..count];
        // SAFETY: the slots hold tuples of this relation.
        unsafe {
            if self.constrained {
                for slot in filled.iter() {
                    pg_sys::ExecConstraints(self.info, *slot, self.state);
                }
            }
            pg_sys::heap_multi_insert(
                self.relation,
                filled.as_mut_ptr(),
                count as i32,
                pg_sys::GetCurrentCommandId(true),
                0,
                self.bulk,
            );
            for slot in filled.iter() {
                if self.indexed {
                    insert_index_tuples(self.info, *slot, self.state);
                }
                if let Some(clear) = (*(**slot).tts_ops).clear {
                    clear(*slot);
                }
            }
            let expressions = (*self.state).es_per_tuple_exprcontext;
            if !expressions.is_null() {
                pg_sys::MemoryContextReset((*expressions).ecxt_per_tuple_memory);
            }
            pg_sys::MemoryContextReset(self.memory);
        }
    }

    unsafe fn close(self) {
        // SAFETY: all of it was opened in `open`, and nothing uses it any more.
        unsafe {
            for slot in self.slots {
                pg_sys::ExecDropSingleTupleTableSlot(slot);
            }
            pg_sys::FreeBulkInsertState(self.bulk);
            pg_sys::ExecCloseIndices(self.info);
            pg_sys::FreeExecutorState(self.state);
            pg_sys::MemoryContextDelete(self.memory);
        }
    }
}

unsafe fn insert_index_tuples(
    info: *mut pg_sys::ResultRelInfo,
    slot: *mut pg_sys::TupleTableSlot,
    state: *mut pg_sys::EState,
) {
    let none = std::ptr::null_mut();
    // SAFETY: the row of the slot was stored and knows its place.
    unsafe {
        #[cfg(feature = "pg15")]
        pg_sys::ExecInsertIndexTuples(info, slot, state, false, false, none, std::ptr::null_mut());
        #[cfg(not(feature = "pg15"))]
        pg_sys::ExecInsertIndexTuples(
            info,
            slot,
            state,
            false,
            false,
            none,
            std::ptr::null_mut(),
            false,
        );
    }
}

/// Stores rows; `columns` are the names of the values of the records, in their
/// order. Inside a transaction, whose errors are SQL errors. The number of rows;
/// `None`, with nothing stored, where the table takes COPY.
pub(crate) fn load(
    relation: u32,
    columns: &[&str],
    source: &str,
    records: &[&Record],
) -> Option<usize> {
    // SAFETY: the relation stays locked until the end of the transaction. An
    // error leaves through the surrounding (sub)transaction, which releases all.
    unsafe {
        let lock = pg_sys::RowExclusiveLock as pg_sys::LOCKMODE;
        let relation = pg_sys::table_open(pg_sys::Oid::from(relation), lock);
        let plan = Plan::of(relation, columns);
        let count = plan.map(|plan| fill(relation, plan, source, records));
        pg_sys::table_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
        count
    }
}

unsafe fn fill(
    relation: pg_sys::Relation,
    mut plan: Plan,
    source: &str,
    records: &[&Record],
) -> usize {
    let mut row = Row::default();
    // SAFETY: as in `load`.
    unsafe {
        let mut target = Target::open(relation, records.len());
        for batch in records.chunks(BATCH) {
            let before = pg_sys::MemoryContextSwitchTo(target.memory);
            for (record, slot) in batch.iter().zip(&target.slots) {
                plan.lay_out(record, source, &mut row);
                let tuple = row.form((*relation).rd_att);
                pg_sys::ExecStoreHeapTuple(tuple, *slot, true);
            }
            target.store(batch.len());
            pg_sys::MemoryContextSwitchTo(before);
        }
        target.close();
        pg_sys::CommandCounterIncrement();
    }
    records.len()
}
