//! One SQL edit of a row: what its columns held before and after, by field.

use std::collections::BTreeMap;

use crm_core::model::{FieldType, Value};
use crm_core::structure;

use crate::pg::capture::decode::OldValue;
use crate::pg::store::changes::ChangeRow;
use crate::pg::store::rows::Row;
use crate::worker::world::{GroupInfo, Mirror};

/// PostgreSQL's text form in canonical text; a hashed value is unknown.
pub(super) fn canonical_old(field_type: FieldType, old: &OldValue) -> Option<Value> {
    match old {
        OldValue::Null => Some(None),
        OldValue::Text(text) => crm_core::value::from_postgres(field_type, text).ok(),
        OldValue::TooLong(_) => None,
    }
}

/// New value, value before where known, and whether the column is edited more
/// than once.
pub(super) type Cells = BTreeMap<usize, (Value, Option<Value>, bool)>;

/// What a column held after an edit: the next edit's old value, else the row's.
pub(super) fn value_then(mirror: &Mirror, row: &Row, column: usize, later: &[ChangeRow]) -> Value {
    let attnum = mirror.columns[column].attnum;
    let next = later
        .iter()
        .flat_map(|c| c.old.iter())
        .find(|(a, _)| *a == attnum)
        .and_then(|(_, v)| canonical_old(mirror.types[column], v));
    next.unwrap_or_else(|| row.values[column].clone())
}

/// The edited fields with all their columns: new, before, edited more than once.
pub(super) fn whole_values(
    info: &GroupInfo,
    mirror: &Mirror,
    row: &Row,
    edited: &BTreeMap<usize, Cells>,
    later: &[ChangeRow],
) -> Vec<(usize, Value, Option<Value>, bool)> {
    let whole = |(field, cells): (&usize, &Cells)| {
        let unedited = |c: usize| value_then(mirror, row, c, later);
        let new = |c: usize| cells.get(&c).map_or_else(|| unedited(c), |x| x.0.clone());
        let old = |c: usize| match cells.get(&c) {
            Some((_, old, _)) => old.clone(),
            None => Some(unedited(c)),
        };
        let columns = info.columns(*field, mirror.side);
        let news: Vec<Value> = columns.iter().map(|c| new(*c)).collect();
        let olds: Option<Vec<Value>> = columns.iter().map(|c| old(*c)).collect();
        (
            *field,
            structure::pack(&news),
            olds.map(|o| structure::pack(&o)),
            cells.values().any(|x| x.2),
        )
    };
    edited.iter().map(whole).collect()
}
