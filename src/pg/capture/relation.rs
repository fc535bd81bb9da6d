//! What the trigger must know of a mirror, kept per backend.
//!
//! Built from the relation's own descriptor and the trigger's arguments, and
//! built again after any relation was invalidated in the catalog caches: a column
//! that is added, dropped or renamed is noticed at the next row.

use crate::pg::report;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CStr, c_char};
use std::rc::Rc;

/// What a column is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Not there any more; its place in the tuple still is.
    Dropped,
    /// `_id`, the local key.
    RowId,
    /// `id`, the CRM's key.
    RecordId,
    /// Kept by the engine and nobody else.
    Engine,
    /// The CRM refuses writes to it.
    ReadOnly,
    /// Anything a user may write.
    Plain,
}

/// One column, as far as the tuple walk needs it.
#[derive(Debug)]
pub(super) struct Attribute {
    pub(super) number: i16,
    /// Bytes; -1 for a variable length, -2 for a C string.
    pub(super) length: i16,
    /// Alignment in bytes.
    pub(super) align: usize,
    pub(super) type_oid: u32,
    pub(super) role: Role,
    pub(super) name: Box<str>,
    /// Value of rows that are older than the column, null if `None`.
    pub(super) missing: Option<Box<[u8]>>,
}

/// One mirror.
#[derive(Debug)]
pub(super) struct Mirror {
    pub(super) id: i32,
    pub(super) name: Box<str>,
    pub(super) attributes: Vec<Attribute>,
    /// The CRM makes its records itself.
    pub(super) no_insert: bool,
    /// The CRM lets nobody remove its records.
    pub(super) no_delete: bool,
    generation: u64,
}

thread_local! {
    static GENERATION: Cell<u64> = const { Cell::new(0) };
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
    static LAST: RefCell<Option<(u32, Rc<Mirror>)>> = const { RefCell::new(None) };
    static MIRRORS: RefCell<HashMap<u32, Rc<Mirror>>> = RefCell::new(HashMap::new());
}

/// Counts invalidations of any relation; what was derived from catalogs at
/// another count must be derived again.
pub(super) fn generation() -> u64 {
    if !REGISTERED.replace(true) {
        // SAFETY: a static callback, registered once per process.
        unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(invalidated), pg_sys::Datum::from(0)) };
    }
    GENERATION.get()
}

#[pg_guard]
unsafe extern "C-unwind" fn invalidated(_argument: pg_sys::Datum, _relation: pg_sys::Oid) {
    GENERATION.set(GENERATION.get() + 1);
}

/// The mirror that a trigger call is about.
///
/// # Safety
/// `data` is what the server passed to a trigger.
pub(super) unsafe fn lookup(data: &pg_sys::TriggerData) -> Rc<Mirror> {
    // SAFETY: the server keeps the relation alive during the call.
    let relation = unsafe { (*data.tg_relation).rd_id.to_u32() };
    let generation = generation();
    let fresh = |mirror: &&Rc<Mirror>| mirror.generation == generation;
    let last = LAST.with_borrow(|last| match last {
        Some((oid, mirror)) if *oid == relation => Some(mirror).filter(fresh).cloned(),
        _ => None,
    });
    if let Some(mirror) = last {
        return mirror;
    }
    let known = MIRRORS.with_borrow(|mirrors| mirrors.get(&relation).filter(fresh).cloned());
    let mirror = known.unwrap_or_else(|| {
        // SAFETY: as the caller promises.
        let built = Rc::new(unsafe { build(data, generation) });
        MIRRORS.with_borrow_mut(|mirrors| mirrors.insert(relation, Rc::clone(&built)));
        built
    });
    LAST.set(Some((relation, Rc::clone(&mirror))));
    mirror
}

/// # Safety
/// `relation` is open.
pub(super) unsafe fn name_of(relation: pg_sys::Relation) -> String {
    // SAFETY: an open relation has its catalog row; namespaces outlive their tables.
    unsafe {
        let form = (*relation).rd_rel;
        let schema = pg_sys::get_namespace_name((*form).relnamespace);
        let table = CStr::from_ptr((&raw const (*form).relname.data).cast());
        if schema.is_null() {
            return table.to_string_lossy().into_owned();
        }
        format!(
            "{}.{}",
            CStr::from_ptr(schema).to_string_lossy(),
            table.to_string_lossy()
        )
    }
}

unsafe fn build(data: &pg_sys::TriggerData, generation: u64) -> Mirror {
    // SAFETY: relation and trigger are the server's and alive during the call.
    unsafe {
        let (id, read_only) = arguments(&*data.tg_trigger);
        let descriptor = (*data.tg_relation).rd_att;
        let count = (*descriptor).natts;
        let attributes = (0..count)
            .map(|at| attribute(descriptor, at, &read_only))
            .collect();
        Mirror {
            id,
            name: name_of(data.tg_relation).into_boxed_str(),
            attributes,
            no_insert: read_only.iter().any(|what| what == "!insert"),
            no_delete: read_only.iter().any(|what| what == "!delete"),
            generation,
        }
    }
}

/// The mirror's number, then the names of the columns that users must not write,
/// and `!insert` and `!delete` where they must not do that.
unsafe fn arguments(trigger: &pg_sys::Trigger) -> (i32, Vec<String>) {
    let count = usize::try_from(trigger.tgnargs).unwrap_or(0);
    let text = |at: usize| {
        // SAFETY: the server says how many C strings there are.
        unsafe { CStr::from_ptr(*trigger.tgargs.add(at)) }
            .to_string_lossy()
            .into_owned()
    };
    let id = (count > 0).then(|| text(0)).and_then(|id| id.parse().ok());
    let Some(id) = id else {
        report::refuse(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            "the trigger of crm._capture() must name its mirror by number".to_owned(),
            None,
            "Attach it with crm._mirror_attach, not with CREATE TRIGGER.",
        );
    };
    (id, (1..count).map(text).collect())
}

/// The descriptor's array of attributes, which the server reaches by a macro.
#[cfg(not(feature = "pg18"))]
unsafe fn attributes_of(descriptor: pg_sys::TupleDesc) -> *const pg_sys::FormData_pg_attribute {
    // SAFETY: a descriptor ends with its attributes.
    unsafe { (*descriptor).attrs.as_ptr() }
}

/// The descriptor's array of attributes, which the server reaches by a macro.
#[cfg(feature = "pg18")]
unsafe fn attributes_of(descriptor: pg_sys::TupleDesc) -> *const pg_sys::FormData_pg_attribute {
    // SAFETY: a descriptor ends with short forms of its attributes and, after as
    // many of them as there are attributes, the attributes themselves.
    unsafe {
        (*descriptor)
            .compact_attrs
            .as_ptr()
            .add((*descriptor).natts as usize)
            .cast()
    }
}

unsafe fn attribute(descriptor: pg_sys::TupleDesc, at: i32, read_only: &[String]) -> Attribute {
    // SAFETY: `at` is below the descriptor's number of attributes.
    unsafe {
        let form = &*attributes_of(descriptor).add(at as usize);
        let name = CStr::from_ptr((&raw const form.attname.data).cast()).to_string_lossy();
        let role = match name.as_ref() {
            _ if form.attisdropped => Role::Dropped,
            "_id" => Role::RowId,
            "id" => Role::RecordId,
            "_remote_modified_at" | "_deleted_at" => Role::Engine,
            name if name.starts_with("_sync_") => Role::Engine,
            name if read_only.iter().any(|column| column == name) => Role::ReadOnly,
            _ => Role::Plain,
        };
        Attribute {
            number: form.attnum,
            length: form.attlen,
            align: alignment(form.attalign),
            type_oid: form.atttypid.to_u32(),
            role,
            name: name.into(),
            missing: form
                .atthasmissing
                .then(|| missing_value(descriptor, form))
                .flatten(),
        }
    }
}

fn alignment(code: c_char) -> usize {
    match code as u8 {
        b'c' => 1,
        b's' => 2,
        b'i' => 4,
        _ => 8,
    }
}

/// The bytes, as they would stand in a tuple, of a value that rows from before
/// ADD COLUMN … DEFAULT do not hold.
unsafe fn missing_value(
    descriptor: pg_sys::TupleDesc,
    form: &pg_sys::FormData_pg_attribute,
) -> Option<Box<[u8]>> {
    let mut is_null = false;
    // SAFETY: the attribute belongs to the descriptor; the datum is copied out.
    unsafe {
        let datum = pg_sys::getmissingattr(descriptor, i32::from(form.attnum), &raw mut is_null);
        if is_null {
            return None;
        }
        let length = usize::try_from(form.attlen).ok();
        let bytes: &[u8] = match length {
            Some(length) if form.attbyval => &datum.value().to_ne_bytes()[..length],
            Some(length) => std::slice::from_raw_parts(datum.cast_mut_ptr::<u8>(), length),
            None if form.attlen == -1 => {
                let value = datum.cast_mut_ptr::<pg_sys::varlena>();
                std::slice::from_raw_parts(value.cast::<u8>(), pgrx::varlena::varsize_any(value))
            }
            None => CStr::from_ptr(datum.cast_mut_ptr::<c_char>()).to_bytes_with_nul(),
        };
        Some(bytes.into())
    }
}
