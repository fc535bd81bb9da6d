//! One record at a time, and lists.

use serde_json::{Value, json};

use super::{
    associations,
    error::ApiError,
    http::{Call, Outcome, Reply},
    model::{Catalog, PropertyId, Table},
    render::{self, Extras},
    store::{Live, View},
    write,
};
use crate::people::push_number;

const MAX_LIMIT: u64 = 100;
const MAX_LIMIT_HISTORY: u64 = 50;

/// The properties a read asks for.
pub(crate) struct Shape {
    pub(crate) wanted: Vec<PropertyId>,
    pub(crate) history: Vec<PropertyId>,
    /// Positions of the object types whose associations are shown.
    pub(crate) associations: Vec<usize>,
}

impl Shape {
    fn of_query(call: &Call<'_>, table: &Table, catalog: &Catalog) -> Result<Shape, ApiError> {
        let mut associations = Vec::new();
        for name in call.query.list("associations") {
            associations.push(call.state.table(name)?.index);
        }
        Ok(Shape {
            wanted: render::wanted(table, catalog, call.query.list("properties")),
            history: call
                .query
                .list("propertiesWithHistory")
                .filter_map(|name| catalog.find(name))
                .collect(),
            associations,
        })
    }

    fn push(
        &self,
        call: &Call<'_>,
        table: &Table,
        catalog: &Catalog,
        view: &View<'_>,
        out: &mut Vec<u8>,
    ) {
        let mut associated = Vec::new();
        if !self.associations.is_empty() {
            associations::push_of(
                call.state,
                table,
                view.id,
                &self.associations,
                &mut associated,
            );
        }
        let extras = Extras {
            history: &self.history,
            associations: (!associated.is_empty()).then_some(&associated[..]),
            ..Extras::default()
        };
        render::record(
            out,
            call.state.portal(),
            table,
            catalog,
            view,
            &self.wanted,
            &extras,
        );
    }
}

/// `GET /{type}`.
pub(crate) fn list(call: &Call<'_>) -> Outcome {
    let table = call.table("type")?;
    let catalog = table.catalog();
    let shape = Shape::of_query(call, table, &catalog)?;
    let most = if shape.history.is_empty() {
        MAX_LIMIT
    } else {
        MAX_LIMIT_HISTORY
    };
    let limit = call.query.number("limit", 10)?;
    if limit > most {
        return Err(ApiError::validation(format!(
            "The limit of {limit} is greater than the maximum of {most}"
        )));
    }
    let after = call.query.number("after", 0)?;
    let limit = limit.max(1) as usize;
    let live = table.read();
    let mut ids: Vec<u64> = if call.query.flag("archived") {
        live.archived
            .range(after..)
            .copied()
            .take(limit + 1)
            .collect()
    } else {
        live.ids_from(after).take(limit + 1).collect()
    };
    let next = if ids.len() > limit { ids.pop() } else { None };
    let mut out = Vec::with_capacity(256 + ids.len() * (200 + shape.wanted.len() * 45));
    out.extend_from_slice(b"{\"results\":[");
    for (i, id) in ids.into_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        if let Some(view) = live.view(id) {
            shape.push(call, table, &catalog, &view, &mut out);
        }
    }
    out.push(b']');
    if let Some(next) = next {
        push_paging(call, next, &mut out);
    }
    out.push(b'}');
    Ok(Reply::json(200, out))
}

/// `after` and an absolute link that works when followed as it is.
pub(crate) fn push_paging(call: &Call<'_>, next: u64, out: &mut Vec<u8>) {
    let (path, query) = call.target.split_once('?').unwrap_or((&call.target, ""));
    let mut link = format!("{}{path}?", call.base_url());
    for pair in query
        .split('&')
        .filter(|p| !p.is_empty() && !p.starts_with("after="))
    {
        link.push_str(pair);
        link.push('&');
    }
    link.push_str(&format!("after={next}"));
    out.extend_from_slice(b",\"paging\":{\"next\":{\"after\":\"");
    push_number(out, next, 1);
    out.extend_from_slice(b"\",\"link\":");
    render::push_string(out, &link);
    out.extend_from_slice(b"}}");
}

/// The id that a path or input names, by record id or unique property; the error if the property
/// will not do.
pub(crate) fn locate(
    table: &Table,
    catalog: &Catalog,
    live: &Live,
    id_property: Option<&str>,
    value: &str,
) -> Result<Option<u64>, ApiError> {
    match id_property.filter(|p| !p.is_empty() && *p != "hs_object_id") {
        None => Ok(value.parse().ok()),
        Some(name) => match catalog.find(name).filter(|id| catalog.get(*id).unique) {
            Some(property) => Ok(live.find(catalog, property, value)),
            None => Err(ApiError::validation(format!(
                "Invalid idProperty `{name}` for {}: not a unique property",
                table.facts.type_id
            ))),
        },
    }
}

/// `GET /{type}/{id}`.
pub(crate) fn get(call: &Call<'_>) -> Outcome {
    let table = call.table("type")?;
    let catalog = table.catalog();
    let shape = Shape::of_query(call, table, &catalog)?;
    let live = table.read();
    let id = locate(
        table,
        &catalog,
        &live,
        call.query.get("idProperty"),
        call.param("id"),
    )?;
    let archived = call.query.flag("archived");
    let view = id.and_then(|id| {
        if archived {
            live.view(id)
        } else {
            live.live_view(id)
        }
    });
    let Some(view) = view.filter(|v| v.archived_ms().is_some() == archived) else {
        return Err(missing());
    };
    let mut out = Vec::with_capacity(1_024);
    shape.push(call, table, &catalog, &view, &mut out);
    Ok(Reply::json(200, out))
}

fn missing() -> ApiError {
    ApiError::not_found("resource not found")
}

/// The `properties` of a write body.
pub(crate) fn properties(body: &Value) -> Result<&serde_json::Map<String, Value>, ApiError> {
    body.get("properties")
        .and_then(Value::as_object)
        .ok_or_else(|| {
            ApiError::validation(
                "Invalid input JSON: Some required fields were not set: [properties]",
            )
        })
}

/// The error for a create without a required property, if one is missing.
pub(crate) fn check_required(
    table: &Table,
    properties: &serde_json::Map<String, Value>,
) -> Result<(), ApiError> {
    let given = |name: &&&str| {
        properties
            .get(**name)
            .is_some_and(|v| !v.is_null() && v.as_str() != Some(""))
    };
    let absent: Vec<&str> = table
        .facts
        .required
        .iter()
        .filter(|n| !given(n))
        .copied()
        .collect();
    if absent.is_empty() {
        return Ok(());
    }
    Err(ApiError::validation(format!(
        "Error creating {}. Some required properties were not set.",
        table.facts.type_id
    ))
    .with("context", json!({"properties": absent})))
}

/// `POST /{type}`.
pub(crate) fn create(call: &Call<'_>) -> Outcome {
    let table = call.table("type")?;
    let catalog = table.catalog();
    let body = Value::Object(call.json()?);
    let properties = properties(&body)?;
    let changes = write::check(call.state, table, &catalog, properties)?;
    check_required(table, properties)?;
    let links = associations::of_create(call.state, table, &body)?;
    let mut live = table.write();
    write::conflict(call.state, table, &catalog, &live, None, &changes)?;
    let (id, written) = write::create(
        call.state,
        table,
        &catalog,
        &mut live,
        changes,
        &call.origin(),
    );
    let out = answer(
        call,
        table,
        &catalog,
        &live,
        id,
        &echo_of_create(table, &catalog, &written),
    );
    drop(live);
    associations::create_links(call.state, table, id, &links, &call.origin());
    Ok(Reply::json(201, out))
}

/// What a create echoes: as recorded, not the `website` of a contact.
pub(crate) fn echo_of_create(
    table: &Table,
    catalog: &Catalog,
    written: &[PropertyId],
) -> Vec<PropertyId> {
    let mut ids = render::echoed(catalog, written);
    if table.facts.plural == "contacts" {
        ids.retain(|id| catalog.get(*id).name != "website");
    }
    ids
}

fn answer(
    call: &Call<'_>,
    table: &Table,
    catalog: &Catalog,
    live: &Live,
    id: u64,
    echoed: &[PropertyId],
) -> Vec<u8> {
    let mut out = Vec::with_capacity(2_048);
    if let Some(view) = live.view(id) {
        let portal = call.state.portal();
        render::record(
            &mut out,
            portal,
            table,
            catalog,
            &view,
            echoed,
            &Extras::default(),
        );
    }
    out
}

/// `PATCH /{type}/{id}`.
pub(crate) fn update(call: &Call<'_>) -> Outcome {
    let table = call.table("type")?;
    let catalog = table.catalog();
    let body = Value::Object(call.json()?);
    let changes = write::check(call.state, table, &catalog, properties(&body)?)?;
    let written: Vec<PropertyId> = changes.iter().map(|c| c.property).collect();
    let mut live = table.write();
    let id = locate(
        table,
        &catalog,
        &live,
        call.query.get("idProperty"),
        call.param("id"),
    )?;
    let id = id
        .and_then(|id| live.live_view(id).map(|v| v.id))
        .ok_or_else(missing)?;
    write::update(
        call.state,
        table,
        &catalog,
        &mut live,
        id,
        &changes,
        &call.origin(),
    )?;
    let echoed = render::echoed(&catalog, &written);
    Ok(Reply::json(
        200,
        answer(call, table, &catalog, &live, id, &echoed),
    ))
}

/// `DELETE /{type}/{id}`: 204 whether or not there was such a record.
pub(crate) fn archive(call: &Call<'_>) -> Outcome {
    let table = call.table("type")?;
    let catalog = table.catalog();
    let mut live = table.write();
    if let Ok(id) = call.param("id").parse() {
        write::archive(call.state, table, &catalog, &mut live, id, &call.origin());
    }
    Ok(Reply::empty(204))
}

/// `POST /{type}/merge`.
pub(crate) fn merge(call: &Call<'_>) -> Outcome {
    let table = call.table("type")?;
    let catalog = table.catalog();
    let body = call.json()?;
    let id = |key: &str| -> Result<u64, ApiError> {
        let value = body.get(key);
        value
            .and_then(|v| v.as_u64().or_else(|| v.as_str()?.parse().ok()))
            .ok_or_else(|| {
                ApiError::validation(format!("Some required fields were not set: [{key}]"))
            })
    };
    let (winner, loser) = (id("primaryObjectId")?, id("objectIdToMerge")?);
    let mut live = table.write();
    let id = super::merge::merge(
        call.state,
        table,
        &catalog,
        &mut live,
        winner,
        loser,
        &call.origin(),
    )?;
    let out = answer(
        call,
        table,
        &catalog,
        &live,
        id,
        &render::echoed(&catalog, &[]),
    );
    drop(live);
    Ok(Reply::json(200, out))
}

/// `POST /{type}/gdpr-delete`.
pub(crate) fn gdpr_delete(call: &Call<'_>) -> Outcome {
    let table = call.table("type")?;
    let catalog = table.catalog();
    let body = call.json()?;
    let value = body
        .get("objectId")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let id_property = body.get("idProperty").and_then(Value::as_str);
    let mut live = table.write();
    let id = locate(table, &catalog, &live, id_property, value)?;
    if let Some(id) = id {
        super::merge::forget(call.state, table, &catalog, &mut live, id, &call.origin());
    }
    Ok(Reply::empty(204))
}
