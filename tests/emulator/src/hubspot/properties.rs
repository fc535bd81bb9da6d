//! The properties API.

use serde_json::{Map, Value, json};

use super::{
    State,
    base::{Source, iso_short},
    batch::{finish, inputs},
    error::ApiError,
    http::{Call, Outcome, Reply},
    model::{Catalog, Choice, Property, Table, Type},
};

const MAX_UNIQUE: usize = 10;

/// A property with all documented keys, custom ones and HubSpot's own told apart as recorded.
pub(crate) fn to_json(property: &Property) -> Value {
    let options: Vec<Value> = property
        .choices
        .iter()
        .enumerate()
        .map(|(i, c)| {
            json!({"label": c.label, "value": c.value, "displayOrder": i, "hidden": false})
        })
        .collect();
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    // `hs_object_id` and its like lack the stamps.
    if property.custom || !property.name.starts_with("hs_object") {
        put("updatedAt", json!(iso_short(property.updated_ms)));
        put("createdAt", json!(iso_short(property.created_ms)));
    }
    put("name", json!(property.name));
    put("label", json!(property.label));
    put("type", json!(property.kind.name()));
    put("fieldType", json!(property.field_type));
    put("description", json!(property.description));
    put("groupName", json!(property.group));
    put("options", json!(options));
    if property.owner {
        put("referencedObjectType", json!("OWNER"));
    }
    if property.kind == Type::Number && property.name.contains("amount") {
        put("showCurrencySymbol", json!(true));
    }
    put("displayOrder", json!(-1));
    put("calculated", json!(property.calculated));
    put("externalOptions", json!(property.owner));
    if property.custom {
        put("archived", json!(property.archived));
        put("createdUserId", json!("9339236"));
        put("updatedUserId", json!("9339236"));
    } else {
        put("hubspotDefined", json!(true));
    }
    put("hasUniqueValue", json!(property.unique));
    put("hidden", json!(property.hidden));
    let mut metadata = json!({"archivable": property.custom, "readOnlyDefinition": !property.custom,
        "readOnlyValue": property.read_only});
    if property.kind == Type::Enumeration {
        metadata["readOnlyOptions"] = json!(!property.custom);
    }
    put("modificationMetadata", metadata);
    put("formField", json!(!property.read_only && !property.hidden));
    put("dataSensitivity", json!("non_sensitive"));
    Value::Object(out)
}

/// `GET …/properties/{type}`: unpaged.
pub(crate) fn list(call: &Call<'_>) -> Outcome {
    let catalog = call.table("type")?.catalog();
    let archived = call.query.flag("archived");
    let mut all: Vec<&Property> = catalog
        .properties
        .iter()
        .filter(|p| p.archived == archived)
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    let results: Vec<Value> = all.into_iter().map(to_json).collect();
    Ok(Reply::value(200, &json!({"results": results})))
}

fn find<'c>(catalog: &'c Catalog, name: &str) -> Result<&'c Property, ApiError> {
    match catalog.find(name) {
        Some(id) => Ok(catalog.get(id)),
        None => Err(ApiError::not_found(format!(
            "Property {name} does not exist"
        ))),
    }
}

/// `GET …/properties/{type}/{name}`.
pub(crate) fn get(call: &Call<'_>) -> Outcome {
    let catalog = call.table("type")?.catalog();
    Ok(Reply::value(
        200,
        &to_json(find(&catalog, call.param("name"))?),
    ))
}

/// `POST …/properties/{type}`.
pub(crate) fn create(call: &Call<'_>) -> Outcome {
    let table = call.table("type")?;
    Ok(Reply::value(201, &add(call.state, table, &call.json()?)?))
}

fn choices(body: &Map<String, Value>) -> Vec<Choice> {
    let list = body.get("options").and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(|o| {
            let value = o.get("value")?.as_str()?.to_owned();
            let label = o
                .get("label")
                .and_then(Value::as_str)
                .unwrap_or(&value)
                .to_owned();
            Some(Choice { value, label })
        })
        .collect()
}

/// The property a create body describes.
fn parse(body: &Map<String, Value>, now: i64) -> Result<Property, ApiError> {
    let text = |key: &str| {
        body.get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let flag = |key: &str| body.get(key).and_then(Value::as_bool).unwrap_or(false);
    let absent: Vec<&str> = ["name", "label", "type", "fieldType", "groupName"]
        .into_iter()
        .filter(|key| text(key).is_empty())
        .collect();
    if !absent.is_empty() {
        return Err(ApiError::validation(format!(
            "Invalid input JSON: Some required fields were not set: [{}]",
            absent.join(", ")
        )));
    }
    let name = text("name");
    check_name(&name)?;
    let Some(kind) = Type::parse(&text("type")) else {
        return Err(ApiError::validation(format!(
            "Property type `{}` is not valid",
            text("type")
        )));
    };
    Ok(Property {
        key: format!("\"{name}\":").into_bytes(),
        name,
        label: text("label"),
        description: text("description"),
        kind,
        field_type: text("fieldType"),
        group: text("groupName"),
        choices: choices(body),
        read_only: false,
        calculated: false,
        unique: flag("hasUniqueValue"),
        hidden: flag("hidden"),
        custom: true,
        echoed: false,
        default: false,
        owner: text("referencedObjectType") == "OWNER",
        archived: false,
        created_ms: now,
        updated_ms: now,
        source: Source::Empty,
    })
}

fn check_name(name: &str) -> Result<(), ApiError> {
    let valid = name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if !valid || name.starts_with("hs_") || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        return Err(ApiError::validation(format!(
            "Property name `{name}` is invalid: lower-case letters, digits and _, starting with a letter, not hs_"
        )));
    }
    Ok(())
}

fn add(state: &State, table: &Table, body: &Map<String, Value>) -> Result<Value, ApiError> {
    let property = parse(body, state.now_ms())?;
    let answer = to_json(&property);
    let name = property.name.clone();
    let added = table.change_catalog(|catalog| {
        let taken = |p: &&Property| p.unique && p.custom && !p.archived;
        if property.unique && catalog.properties.iter().filter(taken).count() >= MAX_UNIQUE {
            return Err(ApiError::validation(format!(
                "At most {MAX_UNIQUE} properties may have unique values"
            )));
        }
        Ok(catalog.add(property).is_some())
    })?;
    if added {
        return Ok(answer);
    }
    Err(ApiError::new(
        409,
        "OBJECT_ALREADY_EXISTS",
        format!("A property named '{name}' already exists."),
    ))
}

/// `PATCH …/properties/{type}/{name}`: label, description, options, hidden.
pub(crate) fn update(call: &Call<'_>) -> Outcome {
    let table = call.table("type")?;
    let body = call.json()?;
    let name = call.param("name");
    let now = call.state.now_ms();
    let changed = table.change_catalog(|catalog| {
        let id = catalog.find(name)?;
        let property = &mut catalog.properties[usize::from(id)];
        let text = |key: &str| body.get(key).and_then(Value::as_str).map(str::to_owned);
        if let Some(label) = text("label") {
            property.label = label;
        }
        if let Some(description) = text("description") {
            property.description = description;
        }
        if let Some(hidden) = body.get("hidden").and_then(Value::as_bool) {
            property.hidden = hidden;
        }
        if body.contains_key("options") {
            property.choices = choices(&body);
        }
        if let Some(kind) = text("type").as_deref().and_then(Type::parse) {
            property.kind = kind;
        }
        if let Some(control) = text("fieldType") {
            property.field_type = control;
        }
        property.updated_ms = now;
        Some(to_json(property))
    });
    match changed {
        Some(json) => Ok(Reply::value(200, &json)),
        None => Err(ApiError::not_found(format!(
            "Property {name} does not exist"
        ))),
    }
}

/// What an administrator does in HubSpot's settings: `do` is add (body as of `POST …/properties`, and `filled` for one
/// that holds the record's number everywhere), retype, choices, remove or restore. Names never change.
pub(crate) fn administer(
    table: &Table,
    change: &Map<String, Value>,
    now: i64,
) -> Result<Value, ApiError> {
    let text = |key: &str| change.get(key).and_then(Value::as_str).unwrap_or_default();
    let (deed, name) = (text("do"), text("name"));
    if deed == "add" {
        let mut property = parse(change, now)?;
        if change.get("filled").and_then(Value::as_bool) == Some(true) {
            property.source = Source::Serial;
        }
        let answer = to_json(&property);
        return match table.change_catalog(|catalog| catalog.add(property)) {
            Some(_) => Ok(answer),
            None => Err(ApiError::validation(format!("`{name}` exists"))),
        };
    }
    table.change_catalog(|catalog| {
        let Some(id) = catalog.find_any(name) else {
            return Err(ApiError::not_found(format!(
                "Property {name} does not exist"
            )));
        };
        let property = &mut catalog.properties[usize::from(id)];
        property.updated_ms = now;
        match deed {
            "retype" => {
                let Some(kind) = Type::parse(text("type")) else {
                    return Err(ApiError::validation("type: unknown".to_owned()));
                };
                property.kind = kind;
                property.field_type = text("fieldType").to_owned();
            }
            "choices" => property.choices = choices(change),
            "remove" => property.archived = true,
            "restore" => property.archived = false,
            other => return Err(ApiError::validation(format!("do: unknown `{other}`"))),
        }
        Ok(to_json(property))
    })
}

fn drop_one(table: &Table, name: &str) -> Result<(), ApiError> {
    table.change_catalog(|catalog| match catalog.find_any(name) {
        Some(id) if catalog.get(id).custom => {
            catalog.properties[usize::from(id)].archived = true;
            Ok(())
        }
        Some(_) => Err(ApiError::validation(format!(
            "Property {name} is defined by HubSpot and cannot be archived"
        ))),
        None => Ok(()),
    })
}

/// `DELETE …/properties/{type}/{name}`.
pub(crate) fn archive(call: &Call<'_>) -> Outcome {
    drop_one(call.table("type")?, call.param("name"))?;
    Ok(Reply::empty(204))
}

fn input_name(input: &Value) -> &str {
    input
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// `POST …/properties/{type}/batch/archive`.
pub(crate) fn archive_many(call: &Call<'_>) -> Outcome {
    let table = call.table("type")?;
    let body = call.json()?;
    for input in inputs(&body, 100)? {
        drop_one(table, input_name(input))?;
    }
    Ok(Reply::empty(204))
}

/// `POST …/properties/{type}/batch/read`.
pub(crate) fn read(call: &Call<'_>) -> Outcome {
    let catalog = call.table("type")?.catalog();
    let body = call.json()?;
    let start = call.state.now_ms();
    let (mut results, mut errors) = (Vec::new(), Vec::new());
    for input in inputs(&body, 100)? {
        match find(&catalog, input_name(input)) {
            Ok(property) => results.push(to_json(property)),
            Err(error) => errors.push(error.item(json!({"name": [input_name(input)]}))),
        }
    }
    let out = format!("{{\"status\":\"COMPLETE\",\"results\":{}", json!(results));
    Ok(finish(call, out.into_bytes(), start, &errors, 200))
}

/// `POST …/properties/{type}/batch/create`.
pub(crate) fn create_many(call: &Call<'_>) -> Outcome {
    let table = call.table("type")?;
    let body = call.json()?;
    let start = call.state.now_ms();
    let (mut results, mut errors) = (Vec::new(), Vec::new());
    for input in inputs(&body, 100)? {
        let empty = Map::new();
        match add(call.state, table, input.as_object().unwrap_or(&empty)) {
            Ok(property) => results.push(property),
            Err(error) => errors.push(error.item(json!({"name": [input_name(input)]}))),
        }
    }
    let out = format!("{{\"status\":\"COMPLETE\",\"results\":{}", json!(results));
    Ok(finish(call, out.into_bytes(), start, &errors, 201))
}

/// `GET …/properties/{type}/groups`.
pub(crate) fn groups(call: &Call<'_>) -> Outcome {
    let catalog = call.table("type")?.catalog();
    let mut names: Vec<&str> = catalog
        .properties
        .iter()
        .map(|p| p.group.as_str())
        .collect();
    names.sort_unstable();
    names.dedup();
    let results: Vec<Value> = names
        .into_iter()
        .map(|n| json!({"name": n, "label": n, "displayOrder": -1, "archived": false}))
        .collect();
    Ok(Reply::value(200, &json!({"results": results})))
}
