//! Writing buffered changes into the tables, below SPI and the executor.
//!
//! The tables have no index (the header's has one), no trigger and no constraint
//! that this could miss; users have no rights on them, and need none.

use super::buffer::{Entry, Header};
use super::relation;
use crate::pg::{guc, report, shmem, wake};
use pgrx::prelude::*;
use pgrx::{IntoDatum, pg_sys};
use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::mem::{offset_of, size_of};

/// Tuples handed to the server at once.
const BATCH: usize = 256;
/// From this many tuples on a bulk insert state pays for itself.
const BULK: usize = 128;
/// Where the values of a tuple without nulls begin.
const VALUES: usize = 24;
/// Bytes of the fixed columns: flush, tx, row_id, ord, mirror_id, op.
const FIXED: usize = 8 + 8 + 8 + 4 + 4 + 1;
/// From this length on a value needs a header of four bytes.
const MAX_SHORT: usize = 0x7f;
/// Number of columns of a segment.
const COLUMNS: u16 = 7;
/// Number of columns of `crm.change_tx`.
const HEADER_COLUMNS: usize = 9;

mod raw {
    unsafe extern "C-unwind" {
        /// The server's own nextval, without the check of the user's rights.
        pub(super) fn nextval_internal(relation: pgrx::pg_sys::Oid, check_permissions: bool)
        -> i64;
    }
}

/// The relations we write to.
#[derive(Clone, Copy)]
struct Targets {
    segments: [pg_sys::Oid; 2],
    header: pg_sys::Oid,
    sequence: pg_sys::Oid,
    generation: u64,
}

thread_local! {
    static TARGETS: Cell<Option<Targets>> = const { Cell::new(None) };
    static WRITER: RefCell<Writer> = const { RefCell::new(Writer::new()) };
}

fn targets() -> Targets {
    let generation = relation::generation();
    match TARGETS.get() {
        Some(targets) if targets.generation == generation => targets,
        _ => {
            let found = find_targets(generation);
            TARGETS.set(Some(found));
            found
        }
    }
}

fn find_targets(generation: u64) -> Targets {
    // SAFETY: catalog look-ups inside the user's transaction.
    let schema = unsafe { pg_sys::get_namespace_oid(c"crm".as_ptr(), false) };
    let find = |name: &CStr| {
        // SAFETY: as above; zero for "no such".
        let oid = unsafe { pg_sys::get_relname_relid(name.as_ptr(), schema) };
        if oid == pg_sys::InvalidOid {
            report::refuse(
                PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
                format!("crm.{} is missing", name.to_string_lossy()),
                None,
                "Changes of mirrors cannot be recorded without it: reinstall the extension, or detach the mirror.",
            );
        }
        oid
    };
    Targets {
        segments: [find(c"change_0"), find(c"change_1")],
        header: find(c"change_tx"),
        sequence: find(c"change_flush_seq"),
        generation,
    }
}

/// The number of the next write.
pub(super) fn next_number() -> i64 {
    let sequence = targets().sequence;
    // SAFETY: a sequence of ours; errors are caught at the boundary.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| raw::nextval_internal(sequence, false)) }
}

/// Writes changes to the segment that is in use.
pub(super) fn write(tx: i64, entries: &[Entry], bytes: &[u8]) {
    let segment = shmem::slot_of(wake::my_database()).map_or(0, shmem::Slot::segment);
    let table = targets().segments[segment as usize];
    WRITER.with_borrow_mut(|writer| {
        // SAFETY: the lock is kept until the transaction ends, which is what the
        // worker waits for before it truncates a segment.
        unsafe {
            let relation = pg_sys::table_open(table, pg_sys::RowExclusiveLock as i32);
            let bulk = if entries.len() >= BULK {
                pg_sys::GetBulkInsertState()
            } else {
                std::ptr::null_mut()
            };
            for batch in entries.chunks(BATCH) {
                writer.insert(relation, bulk, tx, batch, bytes);
            }
            if !bulk.is_null() {
                pg_sys::FreeBulkInsertState(bulk);
            }
            pg_sys::table_close(relation, pg_sys::NoLock as i32);
        }
    });
}

/// Memory that is used again for every batch.
struct Writer {
    /// Tuple images; eight-byte words, because tuples are aligned to that.
    words: Vec<u64>,
    tuples: Vec<pg_sys::HeapTupleData>,
    slots: Vec<*mut pg_sys::TupleTableSlot>,
}

impl Writer {
    const fn new() -> Self {
        Self {
            words: Vec::new(),
            tuples: Vec::new(),
            slots: Vec::new(),
        }
    }

    unsafe fn insert(
        &mut self,
        relation: pg_sys::Relation,
        bulk: pg_sys::BulkInsertState,
        tx: i64,
        batch: &[Entry],
        bytes: &[u8],
    ) {
        let sizes = batch
            .iter()
            .map(|entry| image_words(entry.end - entry.start));
        self.words.clear();
        self.words.resize(sizes.sum(), 0);
        self.tuples.clear();
        let mut at = 0;
        for entry in batch {
            let old = &bytes[entry.start..entry.end];
            let image = &mut self.words[at..at + image_words(old.len())];
            at += image.len();
            let length = fill_image(image, tx, entry, old);
            self.tuples.push(pg_sys::HeapTupleData {
                t_len: length as u32,
                t_data: image.as_mut_ptr().cast(),
                ..Default::default()
            });
        }
        // SAFETY: slots point at the tuples above, which stay in place until the
        // call returns; it copies them into pages.
        unsafe {
            self.fill_slots();
            let command = pg_sys::GetCurrentCommandId(true);
            let count = self.tuples.len() as i32;
            pg_sys::heap_multi_insert(relation, self.slots.as_mut_ptr(), count, command, 0, bulk);
        }
    }

    /// Makes slots that seem to own their tuples, so that the server does not
    /// copy them once more.
    unsafe fn fill_slots(&mut self) {
        while self.slots.len() < self.tuples.len() {
            // SAFETY: made once per backend, in memory that lives as long; a slot
            // without a descriptor needs no relation.
            unsafe {
                let before = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
                let slot = pg_sys::MakeTupleTableSlot(
                    std::ptr::null_mut(),
                    &raw const pg_sys::TTSOpsHeapTuple,
                );
                pg_sys::MemoryContextSwitchTo(before);
                self.slots.push(slot);
            }
        }
        for (tuple, slot) in self.tuples.iter_mut().zip(&self.slots) {
            let slot = slot.cast::<pg_sys::HeapTupleTableSlot>();
            // SAFETY: the slot was made for heap tuples.
            unsafe {
                (*slot).base.tts_flags &= !(pg_sys::TTS_FLAG_EMPTY as u16);
                (*slot).base.tts_flags |= pg_sys::TTS_FLAG_SHOULDFREE as u16;
                (*slot).tuple = tuple;
            }
        }
    }
}

/// Length of `old` with its varlena header: one byte while that suffices.
fn old_size(old: usize) -> usize {
    if old < MAX_SHORT {
        old + 1
    } else {
        fixed_aligned() - FIXED + old + 4
    }
}

/// Where a long `old` begins: a four-byte header is aligned to four.
const fn fixed_aligned() -> usize {
    FIXED.next_multiple_of(4)
}

fn image_words(old: usize) -> usize {
    (VALUES + FIXED + old_size(old)).div_ceil(8)
}

/// Writes a heap tuple as the server would form it; returns its length. The
/// server fills in the transaction's part of the header.
fn fill_image(image: &mut [u64], tx: i64, entry: &Entry, old: &[u8]) -> usize {
    let length = VALUES + FIXED + old_size(old.len());
    // SAFETY: any bytes are valid; a slice of words is one of eight times as many.
    let image =
        unsafe { std::slice::from_raw_parts_mut(image.as_mut_ptr().cast::<u8>(), image.len() * 8) };
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(
        offset_of!(pg_sys::HeapTupleHeaderData, t_infomask2),
        &COLUMNS.to_ne_bytes(),
    );
    put(
        offset_of!(pg_sys::HeapTupleHeaderData, t_infomask),
        &(pg_sys::HEAP_HASVARWIDTH as u16).to_ne_bytes(),
    );
    put(
        offset_of!(pg_sys::HeapTupleHeaderData, t_hoff),
        &[VALUES as u8],
    );
    put(VALUES, &entry.flush.to_ne_bytes());
    put(VALUES + 8, &tx.to_ne_bytes());
    put(VALUES + 16, &entry.row_id.to_ne_bytes());
    put(VALUES + 24, &entry.ord.to_ne_bytes());
    put(VALUES + 28, &entry.mirror.to_ne_bytes());
    put(VALUES + 32, &[entry.op as u8]);
    if old.len() < MAX_SHORT {
        put(VALUES + FIXED, &[((old.len() as u8 + 1) << 1) | 1]);
        put(VALUES + FIXED + 1, old);
    } else {
        let total = old.len() as u32 + 4;
        put(VALUES + fixed_aligned(), &(total << 2).to_ne_bytes());
        put(VALUES + fixed_aligned() + 4, old);
    }
    length
}

const _: () = assert!(size_of::<pg_sys::HeapTupleHeaderData>() <= VALUES);

/// Writes the one row that describes the transaction.
pub(super) fn write_header(header: &Header) {
    let reason = guc::reason();
    let origin = guc::application();
    // SAFETY: names of the session, copied; the relation is locked until the
    // transaction ends, and its index is kept by the call.
    unsafe {
        let user = CStr::from_ptr(pg_sys::GetUserNameFromId(pg_sys::GetSessionUserId(), false));
        let application = pg_sys::application_name;
        let application = if application.is_null() {
            c""
        } else {
            CStr::from_ptr(application)
        };
        let values = [
            header.tx.into_datum(),
            header.at.into_datum(),
            header.rows.into_datum(),
            header.held.into_datum(),
            user.to_string_lossy().as_ref().into_datum(),
            application.to_string_lossy().as_ref().into_datum(),
            reason.into_datum(),
            origin.into_datum(),
            guc::score().into_datum(),
        ];
        let mut nulls: [bool; HEADER_COLUMNS] = std::array::from_fn(|at| values[at].is_none());
        let mut datums: [pg_sys::Datum; HEADER_COLUMNS] =
            std::array::from_fn(|at| values[at].unwrap_or(pg_sys::Datum::from(0)));
        let relation = pg_sys::table_open(targets().header, pg_sys::RowExclusiveLock as i32);
        let tuple =
            pg_sys::heap_form_tuple((*relation).rd_att, datums.as_mut_ptr(), nulls.as_mut_ptr());
        pg_sys::CatalogTupleInsert(relation, tuple);
        pg_sys::heap_freetuple(tuple);
        pg_sys::table_close(relation, pg_sys::NoLock as i32);
    }
}
