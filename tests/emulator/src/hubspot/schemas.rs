//! Object schemas: the list has custom objects only, a single read answers for standard ones too.

use serde_json::{Value, json};

use super::{
    associations::natural,
    base::iso_short,
    batch::{finish, inputs},
    error::ApiError,
    http::{Call, Outcome, Reply},
    model::{OBJECTS, Table},
    properties,
};
use crate::people::FIRST_MS;

fn to_json(table: &Table) -> Value {
    let facts = table.facts;
    let catalog = table.catalog();
    let all: Vec<Value> = catalog
        .ids()
        .map(|id| properties::to_json(catalog.get(id)))
        .collect();
    let names = |keep: fn(&super::model::Property) -> bool| -> Vec<&str> {
        catalog
            .properties
            .iter()
            .filter(|p| keep(p) && !p.archived)
            .map(|p| p.name.as_str())
            .collect()
    };
    let at = iso_short(FIRST_MS - 86_400_000);
    let associations: Vec<Value> = (0..OBJECTS.len())
        .filter(|other| *other != table.index)
        .map(|other| {
            json!({"id": natural(table.index, other).id.to_string(), "fromObjectTypeId": facts.type_id,
                "toObjectTypeId": OBJECTS[other].type_id,
                "name": format!("{}_to_{}", facts.singular, OBJECTS[other].singular),
                "createdAt": at, "updatedAt": at})
        })
        .collect();
    let searchable = names(|p| p.default && !p.read_only);
    let id = facts.type_id.rsplit('-').next().unwrap_or_default();
    json!({"id": id, "objectTypeId": facts.type_id, "fullyQualifiedName": table.qualified,
        "name": facts.singular, "labels": {"singular": title(facts.singular), "plural": title(facts.plural)},
        "description": "", "primaryDisplayProperty": searchable.first(),
        "secondaryDisplayProperties": [], "requiredProperties": facts.required,
        "searchableProperties": searchable, "properties": all, "associations": associations,
        "archived": false, "allowsSensitiveProperties": false, "createdByUserId": 9_339_236,
        "updatedByUserId": 9_339_236, "createdAt": at, "updatedAt": at})
}

fn title(name: &str) -> String {
    let mut letters = name.chars();
    letters
        .next()
        .map(|first| format!("{}{}", first.to_uppercase(), letters.as_str()))
        .unwrap_or_default()
}

/// `GET …/schemas`.
pub(crate) fn list(call: &Call<'_>) -> Outcome {
    let custom = call.state.tables.iter().filter(|t| t.facts.custom);
    let results: Vec<Value> = if call.query.flag("archived") {
        Vec::new()
    } else {
        custom.map(to_json).collect()
    };
    Ok(Reply::value(200, &json!({"results": results})))
}

/// `GET …/schemas/{type}`.
pub(crate) fn get(call: &Call<'_>) -> Outcome {
    match call.table("type") {
        Ok(table) => Ok(Reply::value(200, &to_json(table))),
        Err(_) => Err(ApiError::not_found(format!(
            "No schema {}",
            call.param("type")
        ))),
    }
}

/// `POST …/schemas/batch/read`, body `{"inputs":["2-1001"]}` or objects with `id`.
pub(crate) fn read(call: &Call<'_>) -> Outcome {
    let body = call.json()?;
    let start = call.state.now_ms();
    let (mut results, mut errors) = (Vec::new(), Vec::new());
    for input in inputs(&body, 100)? {
        let name = input
            .as_str()
            .or_else(|| input.get("id").and_then(Value::as_str))
            .unwrap_or_default();
        match call.state.table(name) {
            Ok(table) => results.push(to_json(table)),
            Err(error) => errors.push(error.item(json!({"id": [name]}))),
        }
    }
    let out = format!("{{\"status\":\"COMPLETE\",\"results\":{}", json!(results));
    Ok(finish(call, out.into_bytes(), start, &errors, 200))
}
