//! New values of rows that this transaction has locked, stored below the executor:
//! no plan, no look-up of the row, no queue of trigger events for a trigger that
//! lets the engine's own changes pass.
//!
//! Only where nothing of a user's making must see the row before it is stored:
//! constraints and all kinds of indexes are served, the rest is UPDATE's business,
//! see [`Plan::of`].

use pgrx::pg_sys;

use crate::pg::bulk;
use crate::pg::form::{self, Form, Place, Row, is_plain};
use crate::pg::image::Tid;

/// New values of one row; `values` in the order of the columns of the call.
pub(crate) struct Amendment<'a> {
    pub(crate) row_id: i64,
    /// Where the version is that this transaction has locked.
    pub(crate) tid: Tid,
    /// New `_sync_source`; empty leaves it as it is.
    pub(crate) source: &'a str,
    /// Milliseconds since 1970; 0 leaves `_remote_modified_at` as it is.
    pub(crate) modified_at: i64,
    pub(crate) values: &'a [Option<String>],
}

/// Where the attributes of a table are that change.
struct Plan {
    row_id: usize,
    source: usize,
    stamp: usize,
    columns: Vec<(usize, Form)>,
}

impl Plan {
    /// `None` where rows must go the long way: triggers, rules, row security, generated
    /// columns, children and types whose casts differ from their input are for the
    /// executor to mind.
    ///
    /// # Safety
    /// The relation is open, in a transaction.
    unsafe fn of(relation: pg_sys::Relation, columns: &[&str]) -> Option<Self> {
        // SAFETY: the caller's promise; catalog look-ups.
        unsafe {
            let of_users = (*(*relation).rd_rel).relhassubclass
                || (*(*relation).rd_rel).relrowsecurity
                || !(*relation).rd_rules.is_null();
            if of_users || !is_plain(relation, pg_sys::TRIGGER_TYPE_UPDATE) {
                return None;
            }
            let attributes = pgrx::PgTupleDesc::from_pg_unchecked((*relation).rd_att);
            if attributes.iter().any(|a| a.attgenerated != 0) {
                return None;
            }
            let place = |name: &str, of: Option<pg_sys::Oid>| {
                let found = (attributes.iter().enumerate())
                    .find(|(_, a)| !a.attisdropped && a.name() == name)?;
                let fits = found.1.atttypmod < 0 && of.is_none_or(|t| found.1.atttypid == t);
                fits.then_some(found)
            };
            let columns = columns.iter().map(|name| {
                let (at, attribute) = place(name, None)?;
                let form = form::form_of(attribute)?;
                form.is_cast().then_some((at, form))
            });
            Some(Self {
                columns: columns.collect::<Option<Vec<_>>>()?,
                row_id: place("_id", Some(pg_sys::INT8OID))?.0,
                source: place("_sync_source", Some(pg_sys::TEXTOID))?.0,
                stamp: place("_remote_modified_at", Some(pg_sys::TIMESTAMPTZOID))?.0,
            })
        }
    }

    /// Lays out a row as it becomes; false if that cannot be told here, or if it
    /// may be so already: that takes the operators of the types.
    ///
    /// # Safety
    /// `row` holds the places of the version that is there.
    unsafe fn lay_out(&mut self, change: &Amendment<'_>, row: &mut Row) -> bool {
        row.image.clear();
        let is = |place: &Place| match place {
            Place::Value(datum) => Some(datum.value() as i64),
            Place::Null | Place::At(_) => None,
        };
        if is(&row.places[self.row_id]) != Some(change.row_id) {
            return false;
        }
        let stamp = is(&row.places[self.stamp]);
        let at = bulk::stamp(change.modified_at);
        let moved = change.modified_at > 0 && stamp != Some(at);
        let named = Some(change.source).filter(|s| !s.is_empty());
        // SAFETY: texts of the version that is there, on the page that is held.
        let differs = unsafe {
            moved
                || named.is_some_and(|s| form::differ(&row.places[self.source], Some(s)))
                || (self.columns.iter().zip(change.values))
                    .any(|((at, form), value)| form.differs(&row.places[*at], value.as_deref()))
        };
        if !differs {
            return false;
        }
        if moved && stamp.is_none_or(|known| known < at) {
            row.places[self.stamp] = Place::Value(pg_sys::Datum::from(at));
        }
        if !change.source.is_empty() {
            row.places[self.source] = Place::At(row.image.text(change.source));
        }
        for ((at, form), value) in self.columns.iter_mut().zip(change.values) {
            row.places[*at] = match value {
                None => Place::Null,
                Some(text) if form.is_odd(text) => return false,
                // SAFETY: in a transaction, in memory of the batch.
                Some(text) => unsafe { form.place(text, row) },
            };
        }
        true
    }
}

/// What the server needs to change rows of one table.
struct Target {
    relation: pg_sys::Relation,
    state: *mut pg_sys::EState,
    info: *mut pg_sys::ResultRelInfo,
    slot: *mut pg_sys::TupleTableSlot,
    /// For what lives as long as the batch.
    memory: pg_sys::MemoryContext,
    constrained: bool,
    values: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
}

impl Target {
    unsafe fn open(relation: pg_sys::Relation) -> Self {
        // SAFETY: as the executor begins an UPDATE; an error leaves through the
        // (sub)transaction, which releases all of it.
        unsafe {
            let state = pg_sys::CreateExecutorState();
            let size = size_of::<pg_sys::ResultRelInfo>();
            let info = pg_sys::palloc0(size).cast::<pg_sys::ResultRelInfo>();
            (*info).type_ = pg_sys::NodeTag::T_ResultRelInfo;
            pg_sys::InitResultRelInfo(info, relation, 0, std::ptr::null_mut(), 0);
            pg_sys::ExecOpenIndices(info, false);
            let memory = pg_sys::AllocSetContextCreateInternal(
                pg_sys::CurrentMemoryContext,
                c"pg_crm_sync rows".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            );
            let width = usize::try_from((*(*relation).rd_att).natts).unwrap_or(0);
            let operations = &raw const pg_sys::TTSOpsHeapTuple;
            Self {
                relation,
                state,
                info,
                slot: pg_sys::MakeSingleTupleTableSlot((*relation).rd_att, operations),
                memory,
                constrained: !(*(*relation).rd_att).constr.is_null(),
                values: vec![pg_sys::Datum::from(0); width],
                nulls: vec![true; width],
            }
        }
    }

    /// The new version of a row; null if it is not for us to make.
    unsafe fn amended(
        &mut self,
        plan: &mut Plan,
        change: &Amendment<'_>,
        row: &mut Row,
    ) -> pg_sys::HeapTuple {
        // SAFETY: the values of the old version are on its page, which is held
        // until the new one is made of them.
        unsafe {
            let mut old = pg_sys::HeapTupleData {
                t_self: change.tid.pointer(),
                ..Default::default()
            };
            let mut page = 0;
            let (relation, old) = (self.relation, &raw mut old);
            // It was locked, but this transaction itself may have changed it since: by a
            // trigger of a user on a table that was written before.
            let now = &raw mut pg_sys::SnapshotSelfData;
            if !pg_sys::heap_fetch(relation, now, old, &raw mut page, false) {
                return std::ptr::null_mut();
            }
            let descriptor = (*relation).rd_att;
            let (values, nulls) = (self.values.as_mut_ptr(), self.nulls.as_mut_ptr());
            pg_sys::heap_deform_tuple(old, descriptor, values, nulls);
            row.places.clear();
            row.places
                .extend(self.values.iter().zip(&self.nulls).map(|(value, null)| {
                    if *null {
                        Place::Null
                    } else {
                        Place::Value(*value)
                    }
                }));
            let new = if plan.lay_out(change, row) {
                row.form(descriptor)
            } else {
                std::ptr::null_mut()
            };
            pg_sys::ReleaseBuffer(page);
            new
        }
    }

    /// Stores the new version of the row at `tid`; false if somebody, a trigger
    /// perhaps, has changed it since it was locked.
    unsafe fn store(&mut self, tid: Tid, new: pg_sys::HeapTuple) -> bool {
        // SAFETY: a tuple of this relation, which lives until the batch ends.
        unsafe {
            pg_sys::ExecStoreHeapTuple(new, self.slot, false);
            if self.constrained {
                pg_sys::ExecConstraints(self.info, self.slot, self.state);
            }
            let mut at = tid.pointer();
            let Some(indexed) = update(self.relation, &raw mut at, new) else {
                return false;
            };
            (*self.slot).tts_tid = (*new).t_self;
            if indexed != Indexed::Not {
                insert_index_tuples(self.info, self.slot, self.state, indexed);
            }
            let expressions = (*self.state).es_per_tuple_exprcontext;
            if !expressions.is_null() {
                pg_sys::MemoryContextReset((*expressions).ecxt_per_tuple_memory);
            }
            true
        }
    }

    unsafe fn close(self) {
        // SAFETY: all of it was opened in `open`, and nothing uses it any more.
        unsafe {
            pg_sys::ExecDropSingleTupleTableSlot(self.slot);
            pg_sys::ExecCloseIndices(self.info);
            pg_sys::FreeExecutorState(self.state);
            pg_sys::MemoryContextDelete(self.memory);
        }
    }
}

/// Which indexes need an entry for a new version.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Indexed {
    Not,
    All,
    /// Those that say something of whole pages.
    #[cfg(not(feature = "pg15"))]
    Summaries,
}

unsafe fn update(
    relation: pg_sys::Relation,
    at: pg_sys::ItemPointer,
    new: pg_sys::HeapTuple,
) -> Option<Indexed> {
    let mut failure = pg_sys::TM_FailureData::default();
    let mut lock = pg_sys::LockTupleMode::LockTupleNoKeyExclusive;
    let none = std::ptr::null_mut();
    // SAFETY: the tuple fits the relation, which is open for writing.
    unsafe {
        let command = pg_sys::GetCurrentCommandId(true);
        let (failure, lock) = (&raw mut failure, &raw mut lock);
        #[cfg(feature = "pg15")]
        let (done, indexed) = {
            let done = pg_sys::heap_update(relation, at, new, command, none, true, failure, lock);
            let only = (*(*new).t_data).t_infomask2 & pg_sys::HEAP_ONLY_TUPLE as u16 != 0;
            (done, if only { Indexed::Not } else { Indexed::All })
        };
        #[cfg(not(feature = "pg15"))]
        let (done, indexed) = {
            let mut which = pg_sys::TU_UpdateIndexes::TU_None;
            let indexes = &raw mut which;
            let done = pg_sys::heap_update(
                relation, at, new, command, none, true, failure, lock, indexes,
            );
            let indexed = match which {
                pg_sys::TU_UpdateIndexes::TU_None => Indexed::Not,
                pg_sys::TU_UpdateIndexes::TU_Summarizing => Indexed::Summaries,
                _ => Indexed::All,
            };
            (done, indexed)
        };
        (done == pg_sys::TM_Result::TM_Ok).then_some(indexed)
    }
}

unsafe fn insert_index_tuples(
    info: *mut pg_sys::ResultRelInfo,
    slot: *mut pg_sys::TupleTableSlot,
    state: *mut pg_sys::EState,
    indexed: Indexed,
) {
    let (none, all) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: the row of the slot was stored and knows its place.
    unsafe {
        #[cfg(feature = "pg15")]
        {
            let _ = indexed;
            pg_sys::ExecInsertIndexTuples(info, slot, state, true, false, none, all);
        }
        #[cfg(not(feature = "pg15"))]
        {
            let summaries = indexed == Indexed::Summaries;
            pg_sys::ExecInsertIndexTuples(info, slot, state, true, false, none, all, summaries);
        }
    }
}

/// Gives rows their new values; `columns` are the names of the values, in their
/// order. Inside a transaction, whose errors are SQL errors. How many were done:
/// the others hold their values already, may hold them, or were changed since.
/// `None`, with nothing done, where the table takes UPDATE.
pub(crate) fn amend(relation: u32, columns: &[&str], changes: &[Amendment<'_>]) -> Option<usize> {
    // SAFETY: the relation stays locked until the end of the transaction. An
    // error leaves through the surrounding (sub)transaction, which releases all.
    unsafe {
        let lock = pg_sys::RowExclusiveLock as pg_sys::LOCKMODE;
        let relation = pg_sys::table_open(pg_sys::Oid::from(relation), lock);
        let plan = Plan::of(relation, columns);
        let done = plan.map(|plan| amend_all(relation, plan, changes));
        pg_sys::table_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
        done
    }
}

unsafe fn amend_all(
    relation: pg_sys::Relation,
    mut plan: Plan,
    changes: &[Amendment<'_>],
) -> usize {
    let mut row = Row::default();
    let mut done = 0;
    // SAFETY: as in `amend`.
    unsafe {
        pg_sys::CheckCmdReplicaIdentity(relation, pg_sys::CmdType::CMD_UPDATE);
        let mut target = Target::open(relation);
        let before = pg_sys::MemoryContextSwitchTo(target.memory);
        for change in changes {
            let new = target.amended(&mut plan, change, &mut row);
            if !new.is_null() && target.store(change.tid, new) {
                done += 1;
            }
        }
        pg_sys::MemoryContextSwitchTo(before);
        target.close();
        pg_sys::CommandCounterIncrement();
    }
    done
}
