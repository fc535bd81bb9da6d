//! What field maps do to values, for SQL that looks before anything is sent:
//! the very functions that the worker decides with.

use std::sync::Arc;

use crm_core::mapping::{Images, Transform};
use crm_core::structure::{self, Structure};
use pgrx::prelude::*;

/// The image of a value in canonical text under a transform or, where `pairs`
/// is given, a value map; a text that is null has none, for the reason beside it.
#[pg_extern(name = "_map_value", immutable, parallel_safe)]
fn map_value(
    transform: &str,
    pairs: Option<pgrx::JsonB>,
    value: Option<&str>,
) -> TableIterator<'static, (name!(image, Option<String>), name!(problem, Option<String>))> {
    let pairs = pairs.and_then(|p| match p.0 {
        serde_json::Value::Object(map) => Some(map),
        _ => None,
    });
    let transform = match (transform, pairs) {
        (_, Some(map)) => Transform::ValueMap(Arc::new(
            map.into_iter()
                .filter_map(|(from, to)| Some((from, to.as_str()?.to_owned())))
                .collect(),
        )),
        ("domain_of_url", None) => Transform::DomainOfUrl,
        ("url_of_domain", None) => Transform::UrlOfDomain,
        ("date_of", None) => Transform::DateOf,
        ("midnight_of", None) => Transform::MidnightOf,
        _ => Transform::Identity,
    };
    let value = value.filter(|v| !v.is_empty()).map(str::to_owned);
    let row = match transform.apply(&value, &Images::default()) {
        Ok(image) => (image, None),
        Err(reason) => (None, Some(reason.to_string())),
    };
    TableIterator::once(row)
}

/// The cells of one side for the cells of the other, where a map makes one
/// value of several columns; `width` is how many there are.
#[pg_extern(name = "_map_cells", immutable, parallel_safe)]
fn map_cells(structure: &str, cells: Vec<Option<String>>, width: i32) -> Vec<Option<String>> {
    let width = usize::try_from(width).unwrap_or(1).clamp(1, 100);
    let cells: Vec<Option<String>> = cells
        .into_iter()
        .map(|cell| cell.filter(|c| !c.is_empty()))
        .collect();
    let Some(structure) = Structure::by_name(structure) else {
        return cells;
    };
    let value = structure::pack(&cells);
    let transform = match (structure, cells.len() > 1) {
        (Structure::Unit, _) => Transform::Identity,
        (_, true) => Transform::Compose(structure),
        (_, false) => Transform::Split(structure, width),
    };
    let image = transform.apply(&value, &Images::default());
    structure::unpack(&image.unwrap_or_default(), width)
}
