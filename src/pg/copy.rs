//! Loading rows with the server's own COPY machinery: many rows per page write,
//! no plan, no executor. Used for first copies, where it is most of the work.

use std::cell::RefCell;
use std::ffi::CString;

use pgrx::pg_sys;

thread_local! {
    /// What COPY reads: the text and how far it was read. The callback has no argument.
    static SOURCE: RefCell<(Vec<u8>, usize)> = const { RefCell::new((Vec::new(), 0)) };
}

/// Text in COPY's own format, built row by row.
#[derive(Default)]
pub(crate) struct CopyText {
    bytes: Vec<u8>,
    /// Nothing was written to the current row.
    fresh: bool,
}

impl CopyText {
    /// Begins a row.
    pub(crate) fn row(&mut self) {
        if !self.bytes.is_empty() {
            self.bytes.push(b'\n');
        }
        self.fresh = true;
    }

    /// Adds a value to the row.
    pub(crate) fn value(&mut self, value: Option<&str>) {
        if !self.fresh {
            self.bytes.push(b'\t');
        }
        self.fresh = false;
        let Some(text) = value else {
            self.bytes.extend_from_slice(b"\\N");
            return;
        };
        // Looked at as a whole first: few values hold anything to escape.
        let special = |b: &u8| u8::from(*b < b' ') | u8::from(*b == b'\\');
        if text.as_bytes().iter().fold(0, |any, b| any | special(b)) == 0 {
            self.bytes.extend_from_slice(text.as_bytes());
            return;
        }
        for byte in text.bytes() {
            match byte {
                b'\\' => self.bytes.extend_from_slice(b"\\\\"),
                b'\n' => self.bytes.extend_from_slice(b"\\n"),
                b'\r' => self.bytes.extend_from_slice(b"\\r"),
                b'\t' => self.bytes.extend_from_slice(b"\\t"),
                _ => self.bytes.push(byte),
            }
        }
    }
}

/// Hands COPY the next piece.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn next_piece(
    out: *mut std::ffi::c_void,
    _at_least: std::ffi::c_int,
    at_most: std::ffi::c_int,
) -> std::ffi::c_int {
    SOURCE.with_borrow_mut(|(bytes, read)| {
        let room = usize::try_from(at_most).unwrap_or(0);
        let piece = &bytes[*read..bytes.len().min(*read + room)];
        // SAFETY: the server gives a buffer of `at_most` bytes.
        unsafe { std::ptr::copy_nonoverlapping(piece.as_ptr(), out.cast(), piece.len()) };
        *read += piece.len();
        i32::try_from(piece.len()).unwrap_or(0)
    })
}

/// Loads rows into a table; `columns` are plain names, in the order of the
/// values. Inside a transaction; errors are SQL errors. Rows loaded.
pub(crate) fn load(relation: u32, columns: &[&str], mut text: CopyText) -> u64 {
    if !text.bytes.is_empty() {
        text.bytes.push(b'\n');
    }
    SOURCE.set((text.bytes, 0));
    let names: Vec<CString> = columns
        .iter()
        .filter_map(|c| CString::new(*c).ok())
        .collect();
    // SAFETY: the calls of the server's own table synchronisation, in its
    // order; the relation stays locked until the end of the transaction. An
    // error leaves through the surrounding (sub)transaction, which releases all.
    unsafe {
        let lock = pg_sys::RowExclusiveLock as pg_sys::LOCKMODE;
        let rel = pg_sys::table_open(pg_sys::Oid::from(relation), lock);
        let state = pg_sys::make_parsestate(std::ptr::null_mut());
        pg_sys::addRangeTableEntryForRelation(state, rel, lock, std::ptr::null_mut(), false, false);
        let mut list = std::ptr::null_mut();
        for name in &names {
            let node = pg_sys::makeString(pg_sys::pstrdup(name.as_ptr()));
            list = pg_sys::lappend(list, node.cast());
        }
        let copy = pg_sys::BeginCopyFrom(
            state,
            rel,
            std::ptr::null_mut(),
            std::ptr::null(),
            false,
            Some(next_piece),
            list,
            std::ptr::null_mut(),
        );
        let rows = pg_sys::CopyFrom(copy);
        pg_sys::EndCopyFrom(copy);
        pg_sys::free_parsestate(state);
        pg_sys::table_close(rel, pg_sys::NoLock as pg_sys::LOCKMODE);
        pg_sys::CommandCounterIncrement();
        SOURCE.set((Vec::new(), 0));
        rows
    }
}
