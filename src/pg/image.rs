//! Values laid out as the server lays them out in memory, built in one piece
//! instead of with a call into the server for each of them.

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use pgrx::prelude::*;

/// Length word of a varlena.
const HEADER: usize = 4;
/// Length word, dimensions, offset of the data, element type, size and lower bound.
const ARRAY_HEADER: usize = 24;
/// Where the flags of null elements begin in an array of one dimension.
const FLAGS: usize = ARRAY_HEADER;

/// Position of a row version in its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tid {
    pub(crate) block: u32,
    pub(crate) offset: u16,
}

impl FromDatum for Tid {
    unsafe fn from_polymorphic_datum(
        datum: pg_sys::Datum,
        is_null: bool,
        _: pg_sys::Oid,
    ) -> Option<Self> {
        // SAFETY: a tid is passed as a pointer to its six bytes.
        let tid =
            (!is_null).then(|| unsafe { *datum.cast_mut_ptr::<pg_sys::ItemPointerData>() })?;
        Some(Self::of(tid))
    }
}

impl IntoDatum for Tid {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        // SAFETY: allocated by the server, in the memory context of the caller.
        let at = unsafe {
            pg_sys::palloc0(size_of::<pg_sys::ItemPointerData>()).cast::<pg_sys::ItemPointerData>()
        };
        // SAFETY: just allocated with that size.
        unsafe { *at = self.pointer() };
        Some(at.into())
    }

    fn type_oid() -> pg_sys::Oid {
        pg_sys::TIDOID
    }
}

impl Tid {
    /// From the server's form.
    pub(crate) fn of(tid: pg_sys::ItemPointerData) -> Self {
        Self {
            block: (u32::from(tid.ip_blkid.bi_hi) << 16) | u32::from(tid.ip_blkid.bi_lo),
            offset: tid.ip_posid,
        }
    }

    /// In the server's form.
    pub(crate) fn pointer(self) -> pg_sys::ItemPointerData {
        pg_sys::ItemPointerData {
            ip_blkid: pg_sys::BlockIdData {
                bi_hi: (self.block >> 16) as u16,
                bi_lo: (self.block & 0xffff) as u16,
            },
            ip_posid: self.offset,
        }
    }
}

/// A piece of memory with values in it. A value is named by where it begins.
#[derive(Default)]
pub(crate) struct Image {
    /// Words, because values are aligned to eight bytes at most.
    words: Vec<u64>,
    /// Bytes in use.
    len: usize,
}

impl Image {
    /// Forgets the values; keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    /// The value that begins at `at`; good until the image changes.
    pub(crate) fn datum(&self, at: usize) -> pg_sys::Datum {
        pg_sys::Datum::from(self.words[at / 8..].as_ptr())
    }

    /// The value that begins at `at`, as an argument of a statement.
    pub(crate) fn arg(&self, at: usize, oid: pg_sys::Oid) -> DatumWithOid<'_> {
        // SAFETY: the value lives as long as this borrow; its type is the
        // caller's, who put it there.
        unsafe { DatumWithOid::new(self.datum(at), oid) }
    }

    /// The same, copied to the memory of the transaction.
    fn copied(&self, at: usize, oid: pg_sys::Oid) -> DatumWithOid<'static> {
        let bytes = self.len - at;
        // SAFETY: the server's memory of that size, which lives as long as the
        // transaction's statements; the image holds as many bytes from `at` on.
        unsafe {
            let copy = pg_sys::palloc(bytes);
            let from = self.words.as_ptr().cast::<u8>().add(at);
            std::ptr::copy_nonoverlapping(from, copy.cast::<u8>(), bytes);
            DatumWithOid::new(pg_sys::Datum::from(copy), oid)
        }
    }

    /// Adds a text.
    pub(crate) fn text(&mut self, text: &str) -> usize {
        let at = self.begin();
        self.put(&length_word(HEADER + text.len()));
        self.put(text.as_bytes());
        at
    }

    /// Adds plain bytes of a type of fixed length.
    pub(crate) fn fixed(&mut self, bytes: &[u8]) -> usize {
        let at = self.begin();
        self.put(bytes);
        at
    }

    /// Adds a `text[]`.
    pub(crate) fn texts<'a>(
        &mut self,
        items: impl ExactSizeIterator<Item = Option<&'a str>> + Clone,
    ) -> usize {
        let at = self.begin();
        let count = items.len();
        let some = items.clone().any(|i| i.is_none());
        self.array_header(count, pg_sys::TEXTOID, some);
        if some {
            let mut flags = vec![0_u8; count.div_ceil(8)];
            for (i, item) in items.clone().enumerate() {
                flags[i / 8] |= u8::from(item.is_some()) << (i % 8);
            }
            self.put(&flags);
            self.align(8);
        }
        for text in items.flatten() {
            self.put(&length_word(HEADER + text.len()));
            self.put(text.as_bytes());
            // Behind the last element too, as the server does: readers count on it.
            self.align(4);
        }
        self.end_array(at);
        at
    }

    /// Adds a `bigint[]`.
    pub(crate) fn longs(&mut self, items: &[i64]) -> usize {
        let at = self.begin();
        self.array_header(items.len(), pg_sys::INT8OID, false);
        for item in items {
            self.put(&item.to_ne_bytes());
        }
        self.end_array(at);
        at
    }

    /// Adds a `tid[]`.
    pub(crate) fn tids(&mut self, items: &[Tid]) -> usize {
        let at = self.begin();
        self.array_header(items.len(), pg_sys::TIDOID, false);
        for item in items {
            self.put(&((item.block >> 16) as u16).to_ne_bytes());
            self.put(&((item.block & 0xffff) as u16).to_ne_bytes());
            self.put(&item.offset.to_ne_bytes());
        }
        self.end_array(at);
        at
    }

    fn begin(&mut self) -> usize {
        self.align(8);
        self.len
    }

    fn align(&mut self, to: usize) {
        let gap = self.len.next_multiple_of(to) - self.len;
        self.put(&[0; 8][..gap]);
    }

    fn array_header(&mut self, count: usize, element: pg_sys::Oid, nulls: bool) {
        let offset = if nulls { data_offset(count) } else { 0 };
        // An empty array has no dimension.
        let dimensions = i32::from(count > 0);
        self.put(&[0; HEADER]);
        self.put(&dimensions.to_ne_bytes());
        self.put(&(offset as i32).to_ne_bytes());
        self.put(&element.to_u32().to_ne_bytes());
        if count > 0 {
            self.put(&(count as i32).to_ne_bytes());
            self.put(&1_i32.to_ne_bytes());
        }
    }

    fn end_array(&mut self, at: usize) {
        let end = self.len;
        self.len = at;
        self.put(&length_word(end - at));
        self.len = end;
        self.grow(0);
    }

    /// Makes room for `more` bytes behind the last.
    fn grow(&mut self, more: usize) {
        let words = (self.len + more).div_ceil(8) + 1;
        if self.words.len() < words {
            self.words.resize(words.next_power_of_two(), 0);
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.grow(bytes.len());
        // SAFETY: any bytes are valid words, and there is room for these.
        let all = unsafe {
            std::slice::from_raw_parts_mut(
                self.words.as_mut_ptr().cast::<u8>(),
                self.words.len() * 8,
            )
        };
        all[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
}

/// A `text[]` as an argument.
pub(crate) fn texts(items: &[String]) -> DatumWithOid<'static> {
    let mut image = Image::default();
    let at = image.texts(items.iter().map(|i| Some(i.as_str())));
    image.copied(at, pg_sys::TEXTARRAYOID)
}

/// A `tid[]` as an argument.
pub(crate) fn tids(items: &[Tid]) -> DatumWithOid<'static> {
    let mut image = Image::default();
    let at = image.tids(items);
    image.copied(at, pg_sys::TIDARRAYOID)
}

/// A `bigint[]` as an argument.
pub(crate) fn longs(items: &[i64]) -> DatumWithOid<'static> {
    let mut image = Image::default();
    let at = image.longs(items);
    image.copied(at, pg_sys::INT8ARRAYOID)
}

/// Where the elements of an array with nulls begin.
fn data_offset(count: usize) -> usize {
    (FLAGS + count.div_ceil(8)).next_multiple_of(8)
}

/// The length word of a varlena of `bytes` in all, of the long kind.
fn length_word(bytes: usize) -> [u8; HEADER] {
    let bytes = bytes as u32;
    if cfg!(target_endian = "big") {
        bytes.to_ne_bytes()
    } else {
        (bytes << 2).to_ne_bytes()
    }
}
