//! Salesforce's objects and fields, from describe.

use std::collections::HashSet;

use serde::Deserialize;

use crate::http::HttpResponse;
use crate::model::{FieldType, RemoteError, RemoteField, RemoteObject};

use super::errors::{classify, not_expected};

#[derive(Deserialize)]
struct Global {
    sobjects: Vec<Object>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Object {
    name: String,
    #[serde(default)]
    label: Option<String>,
    #[serde(default)]
    label_plural: Option<String>,
    #[serde(default)]
    key_prefix: Option<String>,
    #[serde(default)]
    custom: bool,
    #[serde(default)]
    createable: bool,
    #[serde(default)]
    updateable: bool,
    #[serde(default)]
    deletable: bool,
    #[serde(default)]
    queryable: bool,
    #[serde(default)]
    retrieveable: bool,
    #[serde(default)]
    deprecated_and_hidden: bool,
    #[serde(default)]
    associate_entity_type: Option<String>,
    #[serde(default)]
    associate_parent_entity: Option<String>,
}

fn parse<'a, T: Deserialize<'a>>(response: &'a HttpResponse) -> Result<T, RemoteError> {
    if !(200..300).contains(&response.status) {
        return Err(classify(response));
    }
    serde_json::from_slice(&response.body).map_err(|e| not_expected(response, &e))
}

/// Objects that can be queried and read by id. An object can be streamed if
/// the list has a change event for it.
pub(crate) fn objects(response: &HttpResponse) -> Result<Vec<RemoteObject>, RemoteError> {
    let global: Global = parse(response)?;
    let streamed: HashSet<String> = global
        .sobjects
        .iter()
        .filter(|o| o.associate_entity_type.as_deref() == Some("ChangeEvent"))
        .filter_map(|o| o.associate_parent_entity.clone())
        .collect();
    let all: HashSet<String> = global.sobjects.iter().map(|o| o.name.clone()).collect();
    Ok(global
        .sobjects
        .into_iter()
        .filter(|o| {
            o.queryable
                && o.retrieveable
                && !o.deprecated_and_hidden
                && o.associate_entity_type.is_none()
        })
        .map(|o| RemoteObject {
            streamable: streamed.contains(&o.name) || all.contains(&change_event(&o.name)),
            type_id: o.key_prefix.unwrap_or_default(),
            label: o.label.unwrap_or_else(|| o.name.clone()),
            label_plural: o.label_plural.unwrap_or_else(|| o.name.clone()),
            custom: o.custom,
            createable: o.createable,
            updateable: o.updateable,
            deletable: o.deletable,
            name: o.name,
        })
        .collect())
}

/// Name of an object's change event: `AccountChangeEvent`, `Emp__ChangeEvent`.
pub(crate) fn change_event(object: &str) -> String {
    match object.strip_suffix("__c") {
        Some(base) => format!("{base}__ChangeEvent"),
        None => format!("{object}ChangeEvent"),
    }
}

#[derive(Deserialize)]
struct Describe {
    fields: Vec<Field>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Field {
    name: String,
    #[serde(default)]
    label: Option<String>,
    #[serde(default)]
    inline_help_text: Option<String>,
    #[serde(rename = "type", default)]
    data_type: String,
    #[serde(default)]
    length: i32,
    #[serde(default)]
    precision: i32,
    #[serde(default)]
    scale: i32,
    #[serde(default)]
    digits: i32,
    #[serde(default)]
    picklist_values: Option<Vec<Choice>>,
    #[serde(default)]
    restricted_picklist: bool,
    #[serde(default)]
    nillable: bool,
    #[serde(default)]
    defaulted_on_create: bool,
    #[serde(default)]
    createable: bool,
    #[serde(default)]
    updateable: bool,
    #[serde(default)]
    calculated: bool,
    #[serde(default)]
    auto_number: bool,
    #[serde(default)]
    unique: bool,
    #[serde(default)]
    external_id: bool,
    #[serde(default)]
    id_lookup: bool,
    #[serde(default)]
    deprecated_and_hidden: bool,
    #[serde(default)]
    reference_to: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    active: bool,
    #[serde(default)]
    label: Option<String>,
    #[serde(default)]
    value: Option<String>,
}

/// Parses describe. Compound fields (`address`, `location`) are left out, since
/// their components are fields of their own, and so is what has no text form
/// (`base64`, `anyType`, `complexvalue`).
pub(crate) fn fields(response: &HttpResponse) -> Result<Vec<RemoteField>, RemoteError> {
    let describe: Describe = parse(response)?;
    Ok(describe
        .fields
        .into_iter()
        .filter(|f| !f.deprecated_and_hidden)
        .filter_map(field)
        .collect())
}

fn field_type(data_type: &str) -> Option<FieldType> {
    Some(match data_type {
        "address" | "location" | "base64" | "anyType" | "complexvalue" => return None,
        "boolean" => FieldType::Boolean,
        "int" | "long" | "double" | "currency" | "percent" => FieldType::Number,
        "date" => FieldType::Date,
        "datetime" => FieldType::DateTime,
        "time" => FieldType::Time,
        "multipicklist" => FieldType::MultiChoice,
        "reference" => FieldType::Reference,
        _ => FieldType::Text,
    })
}

fn field(f: Field) -> Option<RemoteField> {
    let field_type = field_type(&f.data_type)?;
    let is_number = field_type == FieldType::Number;
    let is_text = matches!(field_type, FieldType::Text | FieldType::Reference);
    let positive = |n: i32| (n > 0).then_some(n);
    let writable = (f.createable || f.updateable) && !f.calculated && !f.auto_number;
    Some(RemoteField {
        label: f.label.unwrap_or_else(|| f.name.clone()),
        description: f.inline_help_text.unwrap_or_default(),
        field_type,
        max_length: positive(f.length).filter(|_| is_text),
        // Integers have their size in `digits`, everything else in `precision`.
        precision: positive(f.precision)
            .or(positive(f.digits))
            .filter(|_| is_number),
        scale: is_number.then_some(f.scale),
        options: f
            .picklist_values
            .unwrap_or_default()
            .into_iter()
            .filter(|c| c.active)
            .filter_map(|c| {
                let value = c.value?;
                let label = c.label.unwrap_or_else(|| value.clone());
                Some((value, label))
            })
            .collect(),
        restricted: f.restricted_picklist,
        required: writable && f.createable && !f.nillable && !f.defaulted_on_create,
        unique: f.unique || f.data_type == "id",
        external_id: f.external_id || f.id_lookup,
        read_only: !writable,
        calculated: f.calculated,
        references: f.reference_to.unwrap_or_default(),
        remote_type: f.data_type,
        name: f.name,
    })
}
