//! What records refer to without being records: owners, pipelines and stages.
//! They are listed whole, have no search and cannot be written.

use serde::Deserialize;
use serde_json::Value as Json;

use crate::connectors::text::encode;
use crate::connectors::{Keyset, ServerConfig};
use crate::http::{HttpRequest, HttpResponse, Purpose};
use crate::model::{FieldType, Page, Record, RemoteError, RemoteField, RemoteObject, Value};
use crate::value::{self, parse_instant};

use super::catalog::standard_object;
use super::errors::{classify, not_expected, scalar};
use super::request::{get, path};

/// Owners in a page.
const OWNERS_PAGE: usize = 100;
/// Standard objects that have pipelines, by their singular.
const WITH_PIPELINES: [&str; 4] = ["deal", "ticket", "lead", "order"];
/// In place of an id in a poll's keyset: the archived owners are listed, from the cursor behind it.
const ARCHIVED: &str = "archived:";

/// An object of this kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reference {
    /// Users who own records.
    Owners,
    /// Pipelines of the object type with this singular.
    Pipelines(&'static str),
    /// Stages of all its pipelines.
    Stages(&'static str),
}

/// `owners`, `deal_pipelines`, `ticket_stages`, …
pub(crate) fn of(object: &str) -> Option<Reference> {
    if object == "owners" {
        return Some(Reference::Owners);
    }
    let (singular, what) = object.rsplit_once('_')?;
    let singular = WITH_PIPELINES.into_iter().find(|s| *s == singular)?;
    match what {
        "pipelines" => Some(Reference::Pipelines(singular)),
        "stages" => Some(Reference::Stages(singular)),
        _ => None,
    }
}

/// All of them, as the catalog shows them.
pub(crate) fn objects() -> impl Iterator<Item = RemoteObject> {
    let owners = object("owners".to_owned(), "Owner".to_owned());
    let pipelines = WITH_PIPELINES.into_iter().flat_map(|singular| {
        let label = standard_object(singular).map_or(singular, |s| s.label);
        [
            object(format!("{singular}_pipelines"), format!("{label} pipeline")),
            object(format!("{singular}_stages"), format!("{label} stage")),
        ]
    });
    std::iter::once(owners).chain(pipelines)
}

fn object(name: String, label: String) -> RemoteObject {
    RemoteObject {
        // They have no type id; their names are as unique.
        type_id: name.clone(),
        label_plural: format!("{label}s"),
        label,
        name,
        custom: false,
        createable: false,
        updateable: false,
        deletable: false,
        streamable: false,
    }
}

/// A field: API name, label, type, what it refers to.
type Field = (&'static str, &'static str, FieldType, Option<String>);

fn list_of_fields(reference: Reference) -> Vec<Field> {
    use FieldType::{Boolean, DateTime, MultiChoice, Number, Text};
    let dates = [
        ("createdAt", "Created", DateTime, None),
        ("updatedAt", "Changed", DateTime, None),
        ("archived", "Archived", Boolean, None),
    ];
    let mut fields: Vec<Field> = match reference {
        Reference::Owners => vec![
            ("email", "Email", Text, None),
            ("firstName", "First name", Text, None),
            ("lastName", "Last name", Text, None),
            ("type", "Person or queue", Text, None),
            ("userId", "User, while active", Text, None),
            ("userIdIncludingInactive", "User", Text, None),
            (
                "teams",
                "Names of teams, the main one first",
                MultiChoice,
                None,
            ),
        ],
        Reference::Pipelines(_) => vec![
            ("label", "Name", Text, None),
            ("displayOrder", "Place in lists", Number, None),
        ],
        Reference::Stages(singular) => vec![
            (
                "pipelineId",
                "Pipeline",
                FieldType::Reference,
                Some(format!("{singular}_pipelines")),
            ),
            ("label", "Name", Text, None),
            ("displayOrder", "Place in its pipeline", Number, None),
            ("isClosed", "Nothing follows it", Boolean, None),
            ("probability", "Chance of success, 0 to 1", Number, None),
            ("ticketState", "Open or closed", Text, None),
            ("leadState", "State of the lead", Text, None),
            ("writePermissions", "Who may change it", Text, None),
        ],
    };
    fields.extend(dates);
    fields
}

/// The fields of a reference. The answer only proves that it may be read.
pub(crate) fn fields(
    reference: Reference,
    response: &HttpResponse,
) -> Result<Vec<RemoteField>, RemoteError> {
    parse(response)?;
    let field = |(name, label, field_type, refers): Field| RemoteField {
        name: name.to_owned(),
        label: label.to_owned(),
        description: String::new(),
        field_type,
        remote_type: "reference".to_owned(),
        max_length: None,
        precision: None,
        scale: None,
        options: Vec::new(),
        restricted: false,
        required: false,
        unique: false,
        external_id: false,
        read_only: true,
        calculated: false,
        references: refers.into_iter().collect(),
    };
    Ok(list_of_fields(reference).into_iter().map(field).collect())
}

/// A page: of the active ones, or of the archived owners.
pub(crate) fn list(
    config: &ServerConfig,
    reference: Reference,
    archived: bool,
    cursor: Option<&str>,
    purpose: Purpose,
) -> HttpRequest {
    let singular = match reference {
        Reference::Owners => {
            let path = path(config, "/crm/v3/owners", "/crm/owners", "");
            let mut target = format!("{path}?limit={OWNERS_PAGE}&archived={archived}");
            if let Some(after) = cursor {
                target.push_str("&after=");
                target.push_str(&encode(after));
            }
            return get(target, purpose);
        }
        Reference::Pipelines(singular) | Reference::Stages(singular) => singular,
    };
    let object = standard_object(singular).map_or(singular, |s| s.name);
    let rest = format!("/{}", encode(object));
    get(
        path(config, "/crm/v3/pipelines", "/crm/pipelines", &rest),
        purpose,
    )
}

/// A poll lists everything; its keyset holds a list's cursor in place of an id.
pub(crate) fn poll(config: &ServerConfig, reference: Reference, since: &Keyset) -> HttpRequest {
    let (archived, cursor) = match since.id.strip_prefix(ARCHIVED) {
        Some(cursor) => (true, cursor),
        None => (false, since.id.as_str()),
    };
    let cursor = Some(cursor).filter(|c| !c.is_empty());
    list(config, reference, archived, cursor, Purpose::Poll)
}

/// Where a poll goes on: behind the last of the active owners come the archived ones.
pub(crate) fn next_keyset(reference: Reference, asked: &Keyset, page: &Page) -> Option<Keyset> {
    let archived = asked.id.starts_with(ARCHIVED);
    let id = match (&page.next, archived) {
        (Some(next), true) => format!("{ARCHIVED}{next}"),
        (Some(next), false) => next.clone(),
        (None, false) if reference == Reference::Owners => ARCHIVED.to_owned(),
        (None, _) => return None,
    };
    Some(Keyset {
        id,
        ..asked.clone()
    })
}

#[derive(Deserialize)]
struct Answer {
    results: Vec<Json>,
    #[serde(default)]
    paging: Option<Json>,
}

fn parse(response: &HttpResponse) -> Result<Answer, RemoteError> {
    if !(200..300).contains(&response.status) {
        return Err(classify(response));
    }
    serde_json::from_slice(&response.body).map_err(|e| not_expected(response, &e))
}

/// Parses a page.
pub(crate) fn page(
    reference: Reference,
    fields: &[(String, FieldType)],
    response: &HttpResponse,
) -> Result<Page, RemoteError> {
    let answer = parse(response)?;
    let next = answer
        .paging
        .as_ref()
        .and_then(|p| p.pointer("/next/after"));
    let mut page = Page {
        next: next.and_then(scalar).filter(|n| !n.is_empty()),
        ..Page::default()
    };
    for item in &answer.results {
        match reference {
            Reference::Owners | Reference::Pipelines(_) => push(&mut page, fields, item, None),
            Reference::Stages(_) => {
                let stages = item.get("stages").and_then(Json::as_array);
                for stage in stages.into_iter().flatten() {
                    push(&mut page, fields, stage, Some(item));
                }
            }
        }
    }
    Ok(page)
}

fn push(page: &mut Page, fields: &[(String, FieldType)], item: &Json, pipeline: Option<&Json>) {
    let Some(id) = item.get("id").and_then(scalar).filter(|id| !id.is_empty()) else {
        return;
    };
    let flag = |of: &Json| of.get("archived").and_then(Json::as_bool) == Some(true);
    let deleted = flag(item) || pipeline.is_some_and(flag);
    let mut cell = |(name, field_type): &(String, FieldType)| -> Value {
        let raw = text(item, pipeline, name)?;
        value::canonical(*field_type, &raw).unwrap_or_else(|_| {
            page.unreadable.push((id.clone(), name.clone(), raw));
            None
        })
    };
    let values = fields.iter().map(&mut cell).collect();
    page.records.push(Record {
        modified_at: item
            .get("updatedAt")
            .and_then(Json::as_str)
            .and_then(parse_instant),
        deleted,
        values,
        id,
    });
}

/// A field as text, wherever the item keeps it.
fn text(item: &Json, pipeline: Option<&Json>, name: &str) -> Option<String> {
    match name {
        "pipelineId" => scalar(pipeline?.get("id")?),
        "teams" => {
            let mut teams: Vec<&Json> = item.get("teams")?.as_array()?.iter().collect();
            teams.sort_by_key(|t| t.get("primary").and_then(Json::as_bool) != Some(true));
            let names = teams.into_iter().filter_map(|t| t.get("name")?.as_str());
            // A semicolon separates choices.
            let names: Vec<String> = names.map(|n| n.replace(';', ",")).collect();
            Some(names.join(";"))
        }
        _ => {
            let metadata = item.get("metadata").and_then(|m| m.get(name));
            match item.get(name).or(metadata)? {
                Json::Bool(b) => Some(b.to_string()),
                other => scalar(other),
            }
        }
    }
}
