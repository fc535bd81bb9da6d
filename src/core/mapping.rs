//! Field maps: pure, total functions between the sides of a field.

use std::borrow::Cow;

use crate::group::{Group, SideField};
use crate::model::{FieldType, Value};
use crate::structure::each_cell;
use crate::transform::cut;
pub use crate::transform::{Images, Transform, Unmapped};

/// A value of one side in the domain of another: through both maps, cut to
/// length, with the default in place of blank.
pub fn between(
    from: &SideField,
    to: &SideField,
    value: &Value,
    images: &Images,
) -> Result<Value, Unmapped> {
    let common = match value {
        Some(text) => from.from_side.image(text, images)?,
        None => None,
    };
    let image = match &common {
        Some(text) => to.to_side.image(text, images)?.map(Cow::into_owned),
        None => None,
    };
    if to.parts.is_empty() {
        return shaped(
            image,
            to.field_type,
            to.max_length,
            to.required,
            &to.default,
        );
    }
    each_cell(&image, to.parts.len(), |i, cell| {
        let part = &to.parts[i];
        shaped(
            cell,
            FieldType::Text,
            part.max_length,
            part.required,
            &part.default,
        )
    })
}

fn shaped(
    image: Value,
    field_type: FieldType,
    max_length: Option<i32>,
    required: bool,
    default: &Option<String>,
) -> Result<Value, Unmapped> {
    match (image, max_length) {
        (None, _) if default.is_some() => Ok(default.clone()),
        (None, _) if required => Err(Unmapped::Required),
        (Some(mut text), Some(length)) if field_type == FieldType::Text => {
            text.truncate(cut(&text, length).len());
            Ok(Some(text))
        }
        (image, _) => Ok(image),
    }
}

/// Whether a value written in SQL on this side can be sent to its own CRM.
pub fn fits(column: &SideField, value: &Value) -> Result<(), Unmapped> {
    if column.parts.is_empty() {
        let text = column.field_type == FieldType::Text;
        return cell_fits(value, text, column.max_length, column.required);
    }
    each_cell(value, column.parts.len(), |i, cell| {
        let part = &column.parts[i];
        cell_fits(&cell, true, part.max_length, part.required)?;
        Ok(cell)
    })?;
    Ok(())
}

fn cell_fits(
    value: &Value,
    text: bool,
    max_length: Option<i32>,
    required: bool,
) -> Result<(), Unmapped> {
    match (value, max_length) {
        (None, _) if required => Err(Unmapped::Required),
        (Some(value), Some(length)) if text && cut(value, length).len() < value.len() => {
            Err(Unmapped::TooLong(length))
        }
        _ => Ok(()),
    }
}

/// Values of a new record, by field of the group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Projection {
    /// Values that are not blank.
    pub mapped: Vec<(usize, Value)>,
    /// Fields without an image, and why.
    pub refused: Vec<(usize, Unmapped)>,
}

/// Values of a new record on side `to`, from the values of side `from`.
pub fn project(
    group: &Group,
    from: usize,
    to: usize,
    values: &[Value],
    images: &Images,
) -> Projection {
    project_from(group, &[(from, values)], to, images)
}

/// The same from all records of a thing, the one that counts first: what it has no
/// field for comes from the next that has.
pub fn project_from(
    group: &Group,
    sources: &[(usize, &[Value])],
    to: usize,
    images: &Images,
) -> Projection {
    let mut projection = Projection::default();
    for field in 0..group.fields.len() {
        let column = |(side, values): &(usize, &'_ [Value])| {
            let column = group.column(field, *side).filter(|c| c.inbound)?;
            Some((column, values.get(field)?.clone()))
        };
        let target = group.column(field, to).filter(|t| t.accepts_writes());
        let (Some((source, value)), Some(target)) = (sources.iter().find_map(column), target)
        else {
            continue;
        };
        match between(source, target, &value, images) {
            Ok(None) => {}
            Ok(image) => projection.mapped.push((field, image)),
            Err(reason) => projection.refused.push((field, reason)),
        }
    }
    projection
}
