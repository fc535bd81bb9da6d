//! HubSpot's objects and properties.

use serde::Deserialize;

use crate::http::HttpResponse;
use crate::model::{FieldType, RemoteError, RemoteField, RemoteObject};

use super::OUR_UNIQUE;
use super::errors::{classify, not_expected};

/// Longest text of a property, in characters.
const TEXT_MAX: i32 = 65_536;

/// A standard object: names that HubSpot uses for it.
pub(crate) struct Standard {
    /// API name.
    pub(crate) name: &'static str,
    /// Type id.
    pub(crate) type_id: &'static str,
    /// Singular; also the prefix of its legacy webhook events.
    pub(crate) singular: &'static str,
    pub(crate) label: &'static str,
    label_plural: &'static str,
    /// What paths call it: the type id where the API's own name is not certain.
    pub(crate) path: &'static str,
}

/// An object that paths call by its type id.
const fn by_id(
    name: &'static str,
    type_id: &'static str,
    singular: &'static str,
    label: &'static str,
    label_plural: &'static str,
) -> Standard {
    Standard {
        path: type_id,
        ..standard(name, type_id, singular, label, label_plural)
    }
}

const fn standard(
    name: &'static str,
    type_id: &'static str,
    singular: &'static str,
    label: &'static str,
    label_plural: &'static str,
) -> Standard {
    Standard {
        name,
        type_id,
        singular,
        label,
        label_plural,
        path: name,
    }
}

/// The standard objects; the API lists custom ones only.
#[rustfmt::skip]
pub(crate) const STANDARD: &[Standard] = &[
    standard("contacts", "0-1", "contact", "Contact", "Contacts"),
    standard("companies", "0-2", "company", "Company", "Companies"),
    standard("deals", "0-3", "deal", "Deal", "Deals"),
    standard("tickets", "0-5", "ticket", "Ticket", "Tickets"),
    standard("products", "0-7", "product", "Product", "Products"),
    standard("line_items", "0-8", "line_item", "Line item", "Line items"),
    standard("quotes", "0-14", "quote", "Quote", "Quotes"),
    standard("communications", "0-18", "communication", "Communication", "Communications"),
    standard("tasks", "0-27", "task", "Task", "Tasks"),
    standard("notes", "0-46", "note", "Note", "Notes"),
    standard("meetings", "0-47", "meeting", "Meeting", "Meetings"),
    standard("calls", "0-48", "call", "Call", "Calls"),
    standard("emails", "0-49", "email", "Email", "Emails"),
    standard("invoices", "0-53", "invoice", "Invoice", "Invoices"),
    standard("subscriptions", "0-69", "subscription", "Subscription", "Subscriptions"),
    standard("discounts", "0-84", "discount", "Discount", "Discounts"),
    standard("fees", "0-85", "fee", "Fee", "Fees"),
    standard("taxes", "0-86", "tax", "Tax", "Taxes"),
    standard("postal_mail", "0-116", "postal_mail", "Postal mail", "Postal mail"),
    standard("orders", "0-123", "order", "Order", "Orders"),
    standard("leads", "0-136", "lead", "Lead", "Leads"),
    standard("carts", "0-142", "cart", "Cart", "Carts"),
    by_id("goals", "0-74", "goal", "Goal", "Goals"),
    by_id("payments", "0-101", "payment", "Payment", "Payments"),
    by_id("users", "0-115", "user", "User", "Users"),
    by_id("services", "0-162", "service", "Service", "Services"),
    by_id("courses", "0-410", "course", "Course", "Courses"),
    by_id("listings", "0-420", "listing", "Listing", "Listings"),
    by_id("appointments", "0-421", "appointment", "Appointment", "Appointments"),
    by_id("projects", "0-970", "project", "Project", "Projects"),
];

/// The standard object that has this name, singular or type id.
pub(crate) fn standard_object(name: &str) -> Option<&'static Standard> {
    STANDARD
        .iter()
        .find(|s| s.name == name || s.type_id == name || s.singular == name)
}

/// Contacts alone have a stamp without prefix.
pub(crate) fn modified_field(object: &str) -> &'static str {
    match object {
        "contacts" | "contact" | "0-1" => "lastmodifieddate",
        _ => "hs_lastmodifieddate",
    }
}

/// Standard objects and the custom ones of the answer. An account without the
/// right to see schemas has no custom objects for us.
pub(crate) fn objects(response: &HttpResponse) -> Result<Vec<RemoteObject>, RemoteError> {
    let mut found: Vec<RemoteObject> = STANDARD
        .iter()
        .map(|s| RemoteObject {
            name: s.name.to_owned(),
            type_id: s.type_id.to_owned(),
            label: s.label.to_owned(),
            label_plural: s.label_plural.to_owned(),
            custom: false,
            createable: true,
            updateable: true,
            deletable: true,
            streamable: true,
        })
        .chain(super::reference::objects())
        .collect();
    if response.status == 403 {
        found.extend(super::association::objects(&[]));
        return Ok(found);
    }
    if !(200..300).contains(&response.status) {
        return Err(classify(response));
    }
    let list: Schemas =
        serde_json::from_slice(&response.body).map_err(|e| not_expected(response, &e))?;
    let standard = found.len();
    for schema in list.results {
        if schema.archived || schema.object_type_id.is_empty() {
            continue;
        }
        // The qualified name is unique; the bare one may be taken by a standard object.
        let name = if schema.fully_qualified_name.is_empty() {
            schema.object_type_id.clone()
        } else {
            schema.fully_qualified_name
        };
        found.push(RemoteObject {
            label: non_empty(schema.labels.singular, &schema.name),
            label_plural: non_empty(schema.labels.plural, &schema.name),
            name,
            type_id: schema.object_type_id,
            custom: true,
            createable: true,
            updateable: true,
            deletable: true,
            streamable: true,
        });
    }
    let pairs = super::association::objects(&found[standard..]);
    found.extend(pairs);
    Ok(found)
}

fn non_empty(text: Option<String>, otherwise: &str) -> String {
    text.filter(|t| !t.is_empty())
        .unwrap_or_else(|| otherwise.to_owned())
}

#[derive(Deserialize)]
struct Schemas {
    results: Vec<Schema>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Schema {
    #[serde(default)]
    name: String,
    #[serde(default)]
    object_type_id: String,
    #[serde(default)]
    fully_qualified_name: String,
    #[serde(default)]
    labels: Labels,
    #[serde(default)]
    archived: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Labels {
    singular: Option<String>,
    plural: Option<String>,
}

#[derive(Deserialize)]
struct Properties {
    results: Vec<Property>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Property {
    name: String,
    #[serde(default)]
    label: Option<String>,
    #[serde(default)]
    description: Option<String>,
    #[serde(rename = "type", default)]
    data_type: String,
    #[serde(default)]
    field_type: String,
    #[serde(default)]
    options: Option<Vec<PropertyOption>>,
    #[serde(default)]
    calculated: Option<bool>,
    #[serde(default)]
    external_options: Option<bool>,
    #[serde(default)]
    has_unique_value: Option<bool>,
    #[serde(default)]
    archived: Option<bool>,
    #[serde(default)]
    referenced_object_type: Option<String>,
    #[serde(default)]
    modification_metadata: Option<Modification>,
}

#[derive(Deserialize)]
struct PropertyOption {
    #[serde(default)]
    label: Option<String>,
    #[serde(default)]
    value: Option<String>,
}

#[derive(Deserialize)]
struct Modification {
    #[serde(rename = "readOnlyValue", default)]
    read_only_value: bool,
}

/// Parses the properties of an object.
pub(crate) fn fields(
    object: &str,
    response: &HttpResponse,
) -> Result<Vec<RemoteField>, RemoteError> {
    if !(200..300).contains(&response.status) {
        return Err(classify(response));
    }
    let list: Properties =
        serde_json::from_slice(&response.body).map_err(|e| not_expected(response, &e))?;
    Ok(list
        .results
        .into_iter()
        .filter(|p| p.archived != Some(true) && !p.name.is_empty())
        .map(|p| field(object, p))
        .collect())
}

fn field_type(property: &Property) -> FieldType {
    match property.data_type.as_str() {
        "bool" => FieldType::Boolean,
        "number" => FieldType::Number,
        "date" => FieldType::Date,
        "datetime" => FieldType::DateTime,
        "enumeration" if property.referenced_object_type.is_some() => FieldType::Reference,
        // The only case in which the form control changes what is stored.
        "enumeration" if property.field_type == "checkbox" => FieldType::MultiChoice,
        _ => FieldType::Text,
    }
}

fn field(object: &str, property: Property) -> RemoteField {
    let field_type = field_type(&property);
    let is_choice = property.data_type == "enumeration" && field_type != FieldType::Reference;
    let is_email = property.name == "email" && modified_field(object) == "lastmodifieddate";
    let unique = property.has_unique_value == Some(true) || is_email;
    let system = property.name == "hs_object_id" || property.name == modified_field(object);
    RemoteField {
        label: non_empty(property.label, &property.name),
        description: property.description.unwrap_or_default(),
        field_type,
        max_length: (property.data_type == "string").then_some(TEXT_MAX),
        precision: None,
        scale: None,
        options: property
            .options
            .unwrap_or_default()
            .into_iter()
            .filter_map(|o| {
                let value = o.value?;
                let label = non_empty(o.label, &value);
                Some((value, label))
            })
            .collect(),
        restricted: is_choice && property.external_options != Some(true),
        required: false,
        unique,
        external_id: unique || property.name == OUR_UNIQUE,
        read_only: system
            || property
                .modification_metadata
                .is_some_and(|m| m.read_only_value),
        calculated: property.calculated == Some(true),
        references: match property.referenced_object_type.as_deref() {
            Some("OWNER") => vec!["owners".to_owned()],
            Some(other) => vec![other.to_lowercase()],
            None => Vec::new(),
        },
        remote_type: match property.field_type.as_str() {
            "" => property.data_type,
            control => format!("{}/{control}", property.data_type),
        },
        name: property.name,
    }
}
