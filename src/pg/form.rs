//! Values of a mirror's columns from canonical text into what the server stores,
//! without the server's own text in between.

use std::ffi::CStr;

use crm_core::value;
use pgrx::{pg_sys, varlena};

use crate::pg::bulk;
use crate::pg::image::Image;

/// Days from 1970 to 2000, where the server's dates begin.
const EPOCH_DAYS: i64 = 10_957;
const DAY_MS: i64 = 86_400_000;

/// How canonical text becomes a value.
pub(super) struct Form {
    kind: Kind,
    of: pg_sys::Oid,
    /// The type's own input function, for what is not done here.
    input: pg_sys::FmgrInfo,
    parameter: pg_sys::Oid,
    modifier: i32,
}

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Boolean,
    Date,
    Instant,
    List,
    Other,
}

/// `None` for types that are not base types: a domain has a say also about null.
pub(super) unsafe fn form_of(attribute: &pg_sys::FormData_pg_attribute) -> Option<Form> {
    let (mut function, mut parameter) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
    let mut input = pg_sys::FmgrInfo::default();
    // SAFETY: look-ups of a type of the catalog.
    unsafe {
        if pg_sys::get_typtype(attribute.atttypid) != pg_sys::TYPTYPE_BASE as std::ffi::c_char {
            return None;
        }
        pg_sys::getTypeInputInfo(attribute.atttypid, &raw mut function, &raw mut parameter);
        pg_sys::fmgr_info(function, &raw mut input);
    }
    let kind = match attribute.atttypid {
        _ if attribute.atttypmod >= 0 => Kind::Other,
        pg_sys::TEXTOID => Kind::Text,
        pg_sys::BOOLOID => Kind::Boolean,
        pg_sys::DATEOID => Kind::Date,
        pg_sys::TIMESTAMPTZOID => Kind::Instant,
        pg_sys::TEXTARRAYOID => Kind::List,
        _ => Kind::Other,
    };
    Some(Form {
        kind,
        of: attribute.atttypid,
        input,
        parameter,
        modifier: attribute.atttypmod,
    })
}

impl Form {
    /// Whether text goes the same way through a cast as through the type's input.
    pub(super) fn is_cast(&self) -> bool {
        !matches!(self.kind, Kind::Other)
            || [
                pg_sys::NUMERICOID,
                pg_sys::INT2OID,
                pg_sys::INT4OID,
                pg_sys::INT8OID,
                pg_sys::FLOAT4OID,
                pg_sys::FLOAT8OID,
                pg_sys::TIMEOID,
            ]
            .contains(&self.of)
    }

    /// Whether a list has items without text, which [`Self::place`] leaves out.
    pub(super) fn is_odd(&self, text: &str) -> bool {
        matches!(self.kind, Kind::List) && text.split(';').any(str::is_empty)
    }

    /// Whether a value is certainly another than the text says.
    ///
    /// # Safety
    /// `held` is a value of this type that can be read.
    pub(super) unsafe fn differs(&self, held: &Place, text: Option<&str>) -> bool {
        match (held, text) {
            // SAFETY: by the caller's promise.
            (_, Some(_)) if matches!(self.kind, Kind::Text) => unsafe { differ(held, text) },
            (Place::Null, text) => text.is_some(),
            (_, text) => text.is_none(),
        }
    }

    /// # Safety
    /// In a transaction; memory is the current context's.
    pub(super) unsafe fn place(&mut self, text: &str, row: &mut Row) -> Place {
        let ready = match self.kind {
            Kind::Text => return Place::At(row.image.text(text)),
            Kind::List => {
                let items: Vec<_> = text
                    .split(';')
                    .filter(|c| !c.is_empty())
                    .map(Some)
                    .collect();
                return Place::At(row.image.texts(items.into_iter()));
            }
            Kind::Boolean if text == "true" => Some(pg_sys::Datum::from(true)),
            Kind::Boolean if text == "false" => Some(pg_sys::Datum::from(false)),
            Kind::Instant => {
                value::parse_instant(text).map(|at| pg_sys::Datum::from(bulk::stamp(at)))
            }
            Kind::Date => value::parse_instant(text)
                .and_then(|at| i32::try_from(at.div_euclid(DAY_MS) - EPOCH_DAYS).ok())
                .map(pg_sys::Datum::from),
            Kind::Boolean | Kind::Other => None,
        };
        if let Some(datum) = ready {
            return Place::Value(datum);
        }
        row.scratch.clear();
        row.scratch.extend_from_slice(text.as_bytes());
        row.scratch.push(0);
        let text = row.scratch.as_mut_ptr().cast();
        // SAFETY: a C string; what is none of the type is an SQL error.
        Place::Value(unsafe {
            pg_sys::InputFunctionCall(&raw mut self.input, text, self.parameter, self.modifier)
        })
    }
}

#[derive(Clone, Copy)]
pub(super) enum Place {
    Null,
    Value(pg_sys::Datum),
    /// In the image.
    At(usize),
}

/// Whether a text is certainly another; of one that is compressed or kept
/// elsewhere that is not known.
///
/// # Safety
/// `held` is a `text` that can be read.
pub(super) unsafe fn differ(held: &Place, text: Option<&str>) -> bool {
    let (Place::Value(held), Some(text)) = (held, text) else {
        return matches!(held, Place::Null) != text.is_none();
    };
    let at: *const pg_sys::varlena = held.cast_mut_ptr();
    // SAFETY: a text is a pointer to a header that says how the bytes are kept.
    unsafe {
        let plain = varlena::varatt_is_4b_u(at)
            || (varlena::varatt_is_1b(at) && !varlena::varatt_is_1b_e(at));
        plain && varlena::text_to_rust_str(at).is_ok_and(|held| held != text)
    }
}

/// A row while it is laid out; memory that the next one uses again.
#[derive(Default)]
pub(super) struct Row {
    pub(super) image: Image,
    pub(super) places: Vec<Place>,
    scratch: Vec<u8>,
    values: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
}

impl Row {
    pub(super) unsafe fn form(&mut self, descriptor: pg_sys::TupleDesc) -> pg_sys::HeapTuple {
        self.values.clear();
        self.nulls.clear();
        for place in &self.places {
            self.nulls.push(matches!(place, Place::Null));
            self.values.push(match place {
                Place::Null => pg_sys::Datum::from(0),
                Place::Value(datum) => *datum,
                Place::At(at) => self.image.datum(*at),
            });
        }
        let (values, nulls) = (self.values.as_mut_ptr(), self.nulls.as_mut_ptr());
        // SAFETY: as many values as the descriptor has attributes, of their types.
        unsafe { pg_sys::heap_form_tuple(descriptor, values, nulls) }
    }
}

/// Whether rows of a table may be stored without the executor, as far as the table
/// itself goes, by this kind of statement (`TRIGGER_TYPE_INSERT` or `_UPDATE`).
///
/// # Safety
/// The relation is open, in a transaction.
pub(super) unsafe fn is_plain(relation: pg_sys::Relation, kind: u32) -> bool {
    // SAFETY: the caller's promise; catalog look-ups.
    unsafe {
        let form = &*(*relation).rd_rel;
        form.relkind == pg_sys::RELKIND_RELATION as std::ffi::c_char
            && form.relam == pg_sys::HEAP_TABLE_AM_OID
            && !form.relispartition
            && pg_sys::GetDatabaseEncoding() == pg_sys::pg_enc::PG_UTF8 as i32
            && only_captured(relation, kind)
    }
}

/// Whether no trigger but the capture, which the engine's own rows pass unseen,
/// is there for this kind of statement (`TRIGGER_TYPE_INSERT` or `_UPDATE`).
///
/// # Safety
/// The relation is open, in a transaction.
unsafe fn only_captured(relation: pg_sys::Relation, kind: u32) -> bool {
    // SAFETY: the relation is open; the descriptor is null or complete.
    unsafe {
        let Some(triggers) = (*relation).trigdesc.as_ref() else {
            return true;
        };
        let schema = pg_sys::get_namespace_oid(c"crm".as_ptr(), true);
        let count = usize::try_from(triggers.numtriggers).unwrap_or(0);
        (0..count).all(|i| {
            let trigger = &*triggers.triggers.add(i);
            let fires = trigger.tgtype as u32;
            if fires & kind == 0 {
                return true;
            }
            let after_row = fires & pg_sys::TRIGGER_TYPE_ROW != 0
                && fires & (pg_sys::TRIGGER_TYPE_BEFORE | pg_sys::TRIGGER_TYPE_INSTEAD) == 0;
            let name = pg_sys::get_func_name(trigger.tgfoid);
            after_row
                && !name.is_null()
                && CStr::from_ptr(name) == c"_capture"
                && pg_sys::get_func_namespace(trigger.tgfoid) == schema
        })
    }
}
