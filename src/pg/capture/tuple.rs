//! Walking two heap tuples side by side without copying or calling the server.
//!
//! Big-endian machines store the bytes of by-value datums the same way in tuples,
//! but `missing` values are cut from the wrong end there, so they are not built for.

use super::relation::Attribute;
use pgrx::pg_sys;
use std::marker::PhantomData;

#[cfg(target_endian = "big")]
compile_error!("pg_crm_sync is written for little-endian machines");

/// A heap tuple that the server passed to a trigger.
pub(super) struct Tuple<'a> {
    header: *const pg_sys::HeapTupleHeaderData,
    length: usize,
    scope: PhantomData<&'a [u8]>,
}

/// One value inside a tuple.
#[derive(Debug, Clone, Copy)]
pub(super) enum Field<'a> {
    Null,
    /// The bytes in the tuple, the header of a variable length included.
    Value(&'a [u8]),
}

/// Reads a tuple's fields in order.
pub(super) struct Fields<'a> {
    data: *const u8,
    nulls: Option<*const u8>,
    stored: usize,
    at: usize,
    offset: usize,
    scope: PhantomData<&'a [u8]>,
}

impl<'a> Tuple<'a> {
    /// # Safety
    /// `tuple` is valid for as long as `'a`.
    pub(super) unsafe fn new(tuple: pg_sys::HeapTuple) -> Self {
        // SAFETY: as the caller promises.
        let (header, length) = unsafe { ((*tuple).t_data.cast_const(), (*tuple).t_len as usize) };
        Self {
            header,
            length,
            scope: PhantomData,
        }
    }

    fn header(&self) -> &pg_sys::HeapTupleHeaderData {
        // SAFETY: valid since `new`.
        unsafe { &*self.header }
    }

    /// Number of attributes stored, and whether a null bitmap is there.
    fn shape(&self) -> (usize, bool) {
        let header = self.header();
        let stored = u32::from(header.t_infomask2) & pg_sys::HEAP_NATTS_MASK;
        let nulls = u32::from(header.t_infomask) & pg_sys::HEAP_HASNULL != 0;
        (stored as usize, nulls)
    }

    /// Null bitmap (with padding) and values.
    fn body(&self) -> &[u8] {
        let start = std::mem::offset_of!(pg_sys::HeapTupleHeaderData, t_bits);
        // SAFETY: a tuple is `length` bytes long from its header on.
        unsafe {
            std::slice::from_raw_parts(self.header.cast::<u8>().add(start), self.length - start)
        }
    }

    /// True only if both hold the same values in the same form.
    pub(super) fn same_bytes(&self, other: &Self) -> bool {
        self.length == other.length && self.shape() == other.shape() && self.body() == other.body()
    }

    /// The fields, in the order of the relation's attributes.
    pub(super) fn fields(&self) -> Fields<'a> {
        let (stored, has_nulls) = self.shape();
        let bits = std::mem::offset_of!(pg_sys::HeapTupleHeaderData, t_bits);
        // SAFETY: the header says where the values begin; the bitmap, if there is
        // one, follows the fixed part of the header.
        let (data, bitmap) = unsafe {
            let start = self.header.cast::<u8>();
            (
                start.add(usize::from(self.header().t_hoff)),
                start.add(bits),
            )
        };
        Fields {
            data,
            nulls: has_nulls.then_some(bitmap),
            stored,
            at: 0,
            offset: 0,
            scope: PhantomData,
        }
    }
}

impl<'a> Fields<'a> {
    /// The next field. Must be called for every attribute in order.
    #[inline]
    pub(super) fn next<'b>(&mut self, attribute: &'b Attribute) -> Field<'b>
    where
        'a: 'b,
    {
        let at = self.at;
        self.at += 1;
        if at >= self.stored {
            return attribute
                .missing
                .as_deref()
                .map_or(Field::Null, Field::Value);
        }
        if let Some(bits) = self.nulls {
            // SAFETY: the bitmap has a bit for every stored attribute.
            if unsafe { *bits.add(at >> 3) } & (1 << (at & 7)) == 0 {
                return Field::Null;
            }
        }
        // SAFETY: the attribute is stored and not null, so its bytes are there,
        // laid out by the server's rules for length and alignment.
        unsafe {
            self.align(attribute);
            let start = self.data.add(self.offset);
            let length = match attribute.length {
                -1 => pgrx::varlena::varsize_any(start.cast()),
                -2 => libc::strlen(start.cast()) + 1,
                fixed => fixed as usize,
            };
            self.offset += length;
            Field::Value(std::slice::from_raw_parts(start, length))
        }
    }

    /// A variable length with a one-byte header is not aligned; the padding in
    /// front of any other is zero, which no one-byte header is.
    #[inline]
    unsafe fn align(&mut self, attribute: &Attribute) {
        // SAFETY: a stored attribute follows, so there is a byte to look at.
        if attribute.length == -1 && unsafe { *self.data.add(self.offset) } != 0 {
            return;
        }
        self.offset = (self.offset + attribute.align - 1) & !(attribute.align - 1);
    }
}

impl Field<'_> {
    /// An `int8`; 0 for null, which a key is not.
    pub(super) fn as_i64(&self) -> i64 {
        match self {
            Field::Value(bytes) => <[u8; 8]>::try_from(*bytes).map_or(0, i64::from_le_bytes),
            Field::Null => 0,
        }
    }
}

/// Did the value change? The same value in another form (compressed, moved out
/// of line, long header) did not.
#[inline]
pub(super) fn differs(attribute: &Attribute, old: Field<'_>, new: Field<'_>) -> bool {
    match (old, new) {
        (Field::Null, Field::Null) => false,
        (Field::Value(old), Field::Value(new)) => {
            old != new && (attribute.length != -1 || content_differs(old, new))
        }
        _ => true,
    }
}

fn content_differs(old: &[u8], new: &[u8]) -> bool {
    match (inline(old), inline(new)) {
        (Some(old), Some(new)) => old != new,
        // SAFETY: both are variable-length values of live tuples.
        _ => unsafe {
            raw_size(old) != raw_size(new)
                || Detoasted::new(old).bytes() != Detoasted::new(new).bytes()
        },
    }
}

/// The content of a variable-length value that is stored plainly.
#[inline]
pub(super) fn inline(value: &[u8]) -> Option<&[u8]> {
    let first = value[0];
    if first & 1 == 1 {
        // One-byte header; exactly 1 means a pointer out of line.
        (first != 1).then(|| &value[1..])
    } else {
        (first & 2 == 0).then(|| &value[4..])
    }
}

/// Bytes of content that a value would have if it were fetched and expanded.
///
/// # Safety
/// `value` is a variable-length value with its header.
pub(super) unsafe fn raw_size(value: &[u8]) -> usize {
    // SAFETY: as the caller promises; the result includes a four-byte header.
    let size = unsafe { pg_sys::toast_raw_datum_size(pg_sys::Datum::from(value.as_ptr())) };
    size.saturating_sub(4)
}

/// The expanded content of a value that is compressed or out of line.
pub(super) struct Detoasted(*mut pg_sys::varlena);

impl Detoasted {
    /// # Safety
    /// `value` is a variable-length value with its header, stored in a table that
    /// the current transaction can see.
    pub(super) unsafe fn new(value: &[u8]) -> Self {
        let at = value.as_ptr().cast_mut().cast::<pg_sys::varlena>();
        // SAFETY: as the caller promises.
        Self(unsafe { pg_sys::pg_detoast_datum_copy(at) })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: a copy is always plain, with a four-byte header.
        unsafe {
            let length = pgrx::varlena::varsize_any(self.0);
            std::slice::from_raw_parts(self.0.cast::<u8>().add(4), length - 4)
        }
    }
}

impl Drop for Detoasted {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`, freed once.
        unsafe { pg_sys::pfree(self.0.cast()) };
    }
}
