//! Rows that a statement answers, taken apart once each. A call through
//! pgrx per value costs more than the value: two of the server's functions
//! behind a saved error context, for a number that lies there ready.

use pgrx::pg_sys;
use pgrx::prelude::*;
use pgrx::varlena;

use super::spi::Result;
use crate::pg::image::Tid;

/// A row of a result; its values are still the server's.
pub(crate) struct Cells {
    values: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
    types: Vec<pg_sys::Oid>,
}

impl Cells {
    /// The value of a column, counted from 1; none if it is null.
    ///
    /// # Errors
    /// The column is not there or has another type.
    pub(crate) fn get<T: Cell>(&self, column: usize) -> Result<Option<T>> {
        let Some(index) = column.checked_sub(1).filter(|i| *i < self.values.len()) else {
            return Err(pgrx::spi::Error::InvalidPosition);
        };
        if self.nulls[index] {
            return Ok(None);
        }
        // SAFETY: a value of a row that the server still holds, not null, with its type.
        unsafe { T::read(self.values[index], self.types[index]) }
    }
}

/// A type that values of a row are read as.
pub(crate) trait Cell: Sized {
    /// # Safety
    /// The value is not null and of the type given.
    unsafe fn read(value: pg_sys::Datum, of: pg_sys::Oid) -> Result<Option<Self>>;
}

macro_rules! by_conversion {
    ($($t:ty),*) => { $(
        impl Cell for $t {
            unsafe fn read(value: pg_sys::Datum, of: pg_sys::Oid) -> Result<Option<Self>> {
                // SAFETY: by the caller's promise; a wrong type is an error.
                let read = unsafe { <$t as FromDatum>::try_from_datum(value, false, of) };
                Ok(read?)
            }
        }
    )* };
}

by_conversion!(
    bool,
    i32,
    i64,
    f32,
    f64,
    Tid,
    pg_sys::Oid,
    Vec<u8>,
    Vec<bool>,
    Vec<i32>,
    Vec<i64>,
    Vec<String>,
    Vec<Option<String>>
);

impl Cell for String {
    unsafe fn read(value: pg_sys::Datum, of: pg_sys::Oid) -> Result<Option<Self>> {
        let at: *const pg_sys::varlena = value.cast_mut_ptr();
        let is_text = of == pg_sys::TEXTOID || of == pg_sys::VARCHAROID;
        // SAFETY: a text is a pointer to a header that says how the bytes are kept. Those that lie there as they
        // are get copied; what is compressed, kept elsewhere or not UTF-8 is for pgrx.
        unsafe {
            let plain = is_text
                && (varlena::varatt_is_4b_u(at)
                    || (varlena::varatt_is_1b(at) && !varlena::varatt_is_1b_e(at)));
            if plain && let Ok(text) = varlena::text_to_rust_str(at) {
                return Ok(Some(text.to_owned()));
            }
            Ok(Self::try_from_datum(value, false, of)?)
        }
    }
}

/// Maps the rows that the last statement of SPI answered.
pub(super) fn map<T>(mut read: impl FnMut(&Cells) -> Result<T>) -> Result<Vec<T>> {
    // SAFETY: no other thread runs statements; null where the statement answers no rows.
    let Some(table) = (unsafe { pg_sys::SPI_tuptable.as_ref() }) else {
        return Ok(Vec::new());
    };
    let count = usize::try_from(table.numvals).unwrap_or_default();
    if count == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the table describes its rows and holds as many as it says.
    let (rows, width) = unsafe {
        let rows = std::slice::from_raw_parts(table.vals, count);
        (
            rows,
            usize::try_from((*table.tupdesc).natts).unwrap_or_default(),
        )
    };
    let column = |i: usize| i32::try_from(i + 1).unwrap_or_default();
    let mut cells = Cells {
        values: vec![pg_sys::Datum::from(0); width],
        nulls: vec![true; width],
        // SAFETY: columns of this descriptor.
        types: (0..width)
            .map(|i| unsafe { pg_sys::SPI_gettypeid(table.tupdesc, column(i)) })
            .collect(),
    };
    let mut out = Vec::with_capacity(count);
    for row in rows {
        let (values, nulls) = (cells.values.as_mut_ptr(), cells.nulls.as_mut_ptr());
        // SAFETY: both have a place for each column of the descriptor.
        unsafe { pg_sys::heap_deform_tuple(*row, table.tupdesc, values, nulls) };
        out.push(read(&cells)?);
    }
    Ok(out)
}
