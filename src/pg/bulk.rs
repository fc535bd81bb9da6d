//! Rows into tables of the extension, below the executor: one log record per
//! page instead of one per row, no plan, no arrays to take apart.
//!
//! Only for tables that are the extension's own, of which it knows that no
//! trigger, constraint or rule stands between the row and the page.

use std::cell::RefCell;

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::pg::image::Image;

/// Longest row that is certain to stay whole: the server moves parts of longer
/// ones elsewhere, and the indexes would then point nowhere.
const ROW_MAX: u32 = 2_000;
/// Rows handed to the server at once.
const BATCH: usize = 256;

thread_local! {
    static SLOTS: RefCell<Vec<*mut pg_sys::TupleTableSlot>> = const { RefCell::new(Vec::new()) };
}

/// One row while it is filled, column by column.
#[derive(Default)]
pub(crate) struct RowImage {
    image: Image,
    cells: Vec<Cell>,
}

#[derive(Clone, Copy)]
enum Cell {
    Null,
    Value(pg_sys::Datum),
    /// In the image.
    At(usize),
}

impl RowImage {
    pub(crate) fn long(&mut self, value: Option<i64>) {
        self.cells.push(value.map_or(Cell::Null, |v| {
            v.into_datum().map_or(Cell::Null, Cell::Value)
        }));
    }

    pub(crate) fn int(&mut self, value: Option<i32>) {
        self.cells.push(value.map_or(Cell::Null, |v| {
            v.into_datum().map_or(Cell::Null, Cell::Value)
        }));
    }

    pub(crate) fn real(&mut self, value: Option<f32>) {
        self.cells.push(value.map_or(Cell::Null, |v| {
            v.into_datum().map_or(Cell::Null, Cell::Value)
        }));
    }

    pub(crate) fn text(&mut self, value: Option<&str>) {
        let cell = value.map_or(Cell::Null, |text| Cell::At(self.image.text(text)));
        self.cells.push(cell);
    }

    /// A `text[]`; an empty list is null.
    pub(crate) fn texts<'a>(
        &mut self,
        items: impl ExactSizeIterator<Item = Option<&'a str>> + Clone,
    ) {
        let cell = match items.len() {
            0 => Cell::Null,
            _ => Cell::At(self.image.texts(items)),
        };
        self.cells.push(cell);
    }

    /// A value of 16 bytes.
    pub(crate) fn fixed(&mut self, bytes: Option<&[u8; 16]>) {
        let cell = bytes.map_or(Cell::Null, |b| Cell::At(self.image.fixed(b)));
        self.cells.push(cell);
    }

    /// A `jsonb` from its text, which must be JSON.
    pub(crate) fn jsonb(&mut self, json: Option<&str>) {
        let datum = json
            .and_then(|json| std::ffi::CString::new(json).ok())
            .and_then(|json| {
                let text = pg_sys::Datum::from(json.as_ptr());
                // SAFETY: the input function reads a C string and answers a value of the server's making.
                unsafe { pgrx::direct_function_call_as_datum(pg_sys::jsonb_in, &[Some(text)]) }
            });
        self.cells.push(datum.map_or(Cell::Null, Cell::Value));
    }

    fn clear(&mut self) {
        self.image.clear();
        self.cells.clear();
    }

    unsafe fn form(&self, descriptor: pg_sys::TupleDesc) -> pg_sys::HeapTuple {
        let mut nulls: Vec<bool> = Vec::with_capacity(self.cells.len());
        let mut values: Vec<pg_sys::Datum> = Vec::with_capacity(self.cells.len());
        for cell in &self.cells {
            nulls.push(matches!(cell, Cell::Null));
            values.push(match cell {
                Cell::Null => pg_sys::Datum::from(0),
                Cell::Value(datum) => *datum,
                Cell::At(at) => self.image.datum(*at),
            });
        }
        // SAFETY: as many values as the descriptor has columns, of their types.
        unsafe { pg_sys::heap_form_tuple(descriptor, values.as_mut_ptr(), nulls.as_mut_ptr()) }
    }
}

/// Microseconds from 1970 to 2000, where the server's stamps begin.
const EPOCH: i64 = 946_684_800_000_000;

/// Milliseconds since 1970 as a `timestamptz`.
pub(crate) fn stamp(millis: i64) -> i64 {
    millis.saturating_mul(1_000).saturating_sub(EPOCH)
}

/// `now()`: the start of the transaction.
pub(crate) fn now() -> i64 {
    // SAFETY: reads a variable of this process.
    unsafe { pg_sys::GetCurrentTransactionStartTimestamp() }
}

/// Today in UTC, as a `date`.
pub(crate) fn today() -> i32 {
    i32::try_from(now().div_euclid(86_400_000_000)).unwrap_or_default()
}

/// Adds `count` rows, which `fill` lays out column by column. False, with
/// nothing added, where only the executor can do it: the table is gone or has
/// other columns, an index needs more than plain columns, a row is too long.
/// A row that a unique index has already is an error.
pub(crate) fn insert(
    table: pg_sys::Oid,
    columns: &[pg_sys::Oid],
    count: usize,
    mut fill: impl FnMut(usize, &mut RowImage),
) -> bool {
    // SAFETY: inside a transaction, whose end releases lock and memory if an
    // error leaves through here. The tuples fit the descriptor, see `fits`.
    unsafe {
        let lock = pg_sys::RowExclusiveLock as pg_sys::LOCKMODE;
        let relation = pg_sys::try_relation_open(table, lock);
        if relation.is_null() {
            return false;
        }
        let mut tuples = Vec::with_capacity(count);
        let mut row = RowImage::default();
        let mut done = fits((*relation).rd_att, columns);
        for i in 0..count {
            row.clear();
            fill(i, &mut row);
            done = done && row.cells.len() == columns.len();
            if !done {
                break;
            }
            let tuple = row.form((*relation).rd_att);
            tuples.push(tuple);
            done = (*tuple).t_len <= ROW_MAX;
        }
        if done {
            let indexes = pg_sys::CatalogOpenIndexes(relation);
            done = are_plain(indexes);
            if done {
                for batch in tuples.chunks(BATCH) {
                    put(relation, indexes, batch);
                }
            }
            pg_sys::CatalogCloseIndexes(indexes);
        }
        for tuple in tuples {
            pg_sys::heap_freetuple(tuple);
        }
        pg_sys::relation_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
        if done {
            pg_sys::CommandCounterIncrement();
        }
        done
    }
}

/// Whether a table's columns are of these types, and none was dropped.
unsafe fn fits(descriptor: pg_sys::TupleDesc, columns: &[pg_sys::Oid]) -> bool {
    // SAFETY: the descriptor belongs to an open relation.
    let attributes = unsafe { pgrx::PgTupleDesc::from_pg_unchecked(descriptor) };
    attributes.len() == columns.len()
        && attributes
            .iter()
            .zip(columns)
            .all(|(a, c)| !a.is_dropped() && a.type_oid().value() == *c)
}

/// Whether all indexes are over plain columns.
unsafe fn are_plain(indexes: pg_sys::CatalogIndexState) -> bool {
    // SAFETY: made by the server for an open relation.
    unsafe {
        let count = usize::try_from((*indexes).ri_NumIndices).unwrap_or(0);
        (0..count).all(|i| {
            let info = *(*indexes).ri_IndexRelationInfo.add(i);
            (*info).ii_Expressions.is_null()
                && (*info).ii_Predicate.is_null()
                && (*info).ii_ExclusionOps.is_null()
        })
    }
}

unsafe fn put(
    relation: pg_sys::Relation,
    indexes: pg_sys::CatalogIndexState,
    tuples: &[pg_sys::HeapTuple],
) {
    SLOTS.with_borrow_mut(|slots| {
        // SAFETY: slots without a descriptor, made once per process; they point
        // at tuples of the caller during the call only.
        unsafe {
            while slots.len() < tuples.len() {
                let before = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
                let operations = &raw const pg_sys::TTSOpsHeapTuple;
                slots.push(pg_sys::MakeTupleTableSlot(std::ptr::null_mut(), operations));
                pg_sys::MemoryContextSwitchTo(before);
            }
            for (tuple, slot) in tuples.iter().zip(slots.iter()) {
                let slot = slot.cast::<pg_sys::HeapTupleTableSlot>();
                // It seems to own its tuple, so that the server does not copy it.
                (*slot).base.tts_flags &= !(pg_sys::TTS_FLAG_EMPTY as u16);
                (*slot).base.tts_flags |= pg_sys::TTS_FLAG_SHOULDFREE as u16;
                (*slot).tuple = *tuple;
            }
            pg_sys::CatalogTuplesMultiInsertWithInfo(
                relation,
                slots.as_mut_ptr(),
                tuples.len() as i32,
                indexes,
            );
        }
    });
}
