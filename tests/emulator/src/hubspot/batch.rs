//! Batches of up to 100 inputs. Results come back in any order; partial success needs trace ids
//! on every input, except for reads.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::{
    associations,
    error::ApiError,
    http::{Call, Outcome, Reply},
    model::{Catalog, PropertyId, Table},
    objects::{check_required, echo_of_create, locate},
    render::{self, Extras},
    store::Live,
    write,
};
use crate::people::push_number;

const MAX_INPUTS: usize = 100;

/// A finished input: the record's id and what to say beside its properties.
struct Done {
    id: u64,
    echoed: Vec<PropertyId>,
    trace: Option<String>,
    new: Option<bool>,
}

/// The `inputs` of a batch, checked for number.
pub(crate) fn inputs(body: &Map<String, Value>, most: usize) -> Result<&[Value], ApiError> {
    let inputs = body
        .get("inputs")
        .and_then(Value::as_array)
        .ok_or_else(|| {
            ApiError::validation("Invalid input JSON: Some required fields were not set: [inputs]")
        })?;
    if inputs.len() > most {
        return Err(ApiError::validation(format!(
            "The number of inputs {} exceeds the maximum of {most}",
            inputs.len()
        )));
    }
    if inputs.is_empty() {
        return Err(ApiError::validation(
            "Invalid input: inputs must not be empty",
        ));
    }
    Ok(inputs)
}

fn id_text(input: &Value) -> String {
    match input.get("id") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    }
}

/// `POST /{type}/batch/read`.
pub(crate) fn read(call: &Call<'_>) -> Outcome {
    let table = call.table("type")?;
    let catalog = table.catalog();
    let body = call.json()?;
    let inputs = inputs(&body, MAX_INPUTS)?;
    let names = |key: &str| -> Vec<String> {
        let list = body.get(key).and_then(Value::as_array);
        list.into_iter()
            .flatten()
            .filter_map(|v| v.as_str().map(str::to_owned))
            .collect()
    };
    let properties = names("properties");
    let wanted = render::wanted(table, &catalog, properties.iter().map(String::as_str));
    let history: Vec<PropertyId> = names("propertiesWithHistory")
        .iter()
        .filter_map(|n| catalog.find(n))
        .collect();
    let extras = Extras {
        history: &history,
        ..Extras::default()
    };
    let id_property = body.get("idProperty").and_then(Value::as_str);
    let archived = call.query.flag("archived");
    let live = table.read();
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    let mut seen = HashSet::new();
    for input in inputs {
        let text = id_text(input);
        let id = locate(table, &catalog, &live, id_property, &text)?;
        let bin = id_property.filter(|_| archived);
        let id = id.or_else(|| live.find_archived(&catalog, catalog.find(bin?)?, &text));
        let view = id.and_then(|id| {
            if archived {
                live.view(id)
            } else {
                live.live_view(id)
            }
        });
        match view.filter(|v| v.archived_ms().is_some() == archived) {
            Some(view) if seen.insert(view.id) => found.push(view.id),
            Some(_) => {}
            None => missing.push(text),
        }
    }
    call.state.shuffle(&mut found);
    let start = call.state.now_ms();
    let mut out = Vec::with_capacity(256 + found.len() * (200 + wanted.len() * 45));
    out.extend_from_slice(b"{\"status\":\"COMPLETE\",\"results\":[");
    let portal = call.state.portal();
    for (i, id) in found.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        if let Some(view) = live.view(*id) {
            render::record(&mut out, portal, table, &catalog, &view, &wanted, &extras);
        }
    }
    out.push(b']');
    let errors = if missing.is_empty() {
        Vec::new()
    } else {
        vec![json!({"status": "error", "category": "OBJECT_NOT_FOUND",
            "message": format!("Could not get some {} objects, they may be deleted or not exist. Check that ids are valid.",
                table.facts.singular.to_uppercase()),
            "context": {"ids": missing}})]
    };
    Ok(finish(call, out, start, &errors, 200))
}

/// Appends the tail of a batch answer after `"results":[…]`.
pub(crate) fn finish(
    call: &Call<'_>,
    mut out: Vec<u8>,
    start: i64,
    errors: &[Value],
    status: u16,
) -> Reply {
    out.extend_from_slice(b",\"startedAt\":\"");
    super::base::push_iso(&mut out, start);
    out.extend_from_slice(b"\",\"completedAt\":\"");
    super::base::push_iso(&mut out, call.state.now_ms());
    out.push(b'"');
    if !errors.is_empty() {
        out.extend_from_slice(b",\"numErrors\":");
        push_number(&mut out, errors.len() as u64, 1);
        out.extend_from_slice(b",\"errors\":");
        out.extend_from_slice(json!(errors).to_string().as_bytes());
    }
    out.push(b'}');
    Reply::json(if errors.is_empty() { status } else { 207 }, out)
}

type Step = fn(&Call<'_>, &Table, &Catalog, &mut Live, &Value) -> Result<Done, ApiError>;

/// Checks every input, then performs each; the step functions do both for one input.
fn run(call: &Call<'_>, status: u16, prepare: Prepare, check: Check, step: Step) -> Outcome {
    let table = call.table("type")?;
    let catalog = table.catalog();
    let body = call.json()?;
    let inputs = inputs(&body, MAX_INPUTS)?;
    let traces: Vec<&str> = inputs
        .iter()
        .filter_map(|i| i.get("objectWriteTraceId").and_then(Value::as_str))
        .collect();
    let distinct: HashSet<&str> = traces.iter().copied().collect();
    let partial = distinct.len() == inputs.len();
    let start = call.state.now_ms();
    let prepared: Vec<Result<(), ApiError>> = inputs
        .iter()
        .map(|input| prepare(call, table, input))
        .collect();
    let mut live = table.write();
    let mut errors = Vec::new();
    let mut fine = Vec::new();
    let mut ids = HashSet::new();
    for (input, prepared) in inputs.iter().zip(prepared) {
        let checked = prepared.and_then(|()| {
            let key = check(call, table, &catalog, &live, input)?;
            if key.is_some_and(|key| !ids.insert(key)) {
                return Err(ApiError::validation("Duplicate IDs found in batch input"));
            }
            Ok(())
        });
        match checked {
            Ok(()) => fine.push(input),
            Err(error) if partial => errors.push(traced(&error, input)),
            Err(error) => return Err(error),
        }
    }
    let mut done = Vec::new();
    for input in fine {
        match step(call, table, &catalog, &mut live, input) {
            Ok(item) => done.push(item),
            Err(error) => errors.push(traced(&error, input)),
        }
    }
    call.state.shuffle(&mut done);
    let mut out = Vec::with_capacity(256 + done.len() * 1_500);
    out.extend_from_slice(b"{\"status\":\"COMPLETE\",\"results\":[");
    for item in &done {
        let Some(view) = live.view(item.id) else {
            continue;
        };
        if out.last() == Some(&b'}') {
            out.push(b',');
        }
        let extras = Extras {
            trace: item.trace.as_deref(),
            new: item.new,
            ..Extras::default()
        };
        let portal = call.state.portal();
        render::record(
            &mut out,
            portal,
            table,
            &catalog,
            &view,
            &item.echoed,
            &extras,
        );
    }
    out.push(b']');
    Ok(finish(call, out, start, &errors, status))
}

/// Checks what needs other tables, before this one is locked.
type Prepare = fn(&Call<'_>, &Table, &Value) -> Result<(), ApiError>;

/// Nothing to prepare.
const PLAIN: Prepare = |_, _, _| Ok(());

/// Checks one input against the present state; answers a key that may not repeat in the batch.
type Check = fn(&Call<'_>, &Table, &Catalog, &Live, &Value) -> Result<Option<String>, ApiError>;

fn traced(error: &ApiError, input: &Value) -> Value {
    let mut context = error
        .body
        .get("context")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    if let Some(trace) = input.get("objectWriteTraceId") {
        context.insert("objectWriteTraceId".to_owned(), json!([trace]));
    }
    error.item(Value::Object(context))
}

fn trace(input: &Value) -> Option<String> {
    input
        .get("objectWriteTraceId")
        .and_then(Value::as_str)
        .map(str::to_owned)
}

/// `POST /{type}/batch/create`: one conflict fails the whole batch unless all inputs have traces.
pub(crate) fn create(call: &Call<'_>) -> Outcome {
    let check: Check = |call, table, catalog, live, input| {
        let properties = super::objects::properties(input)?;
        let changes = write::check(call.state, table, catalog, properties)?;
        check_required(table, properties)?;
        write::conflict(call.state, table, catalog, live, None, &changes)?;
        Ok(first_unique(catalog, &changes))
    };
    let prepare: Prepare =
        |call, table, input| associations::of_create(call.state, table, input).map(drop);
    run(
        call,
        201,
        prepare,
        check,
        |call, table, catalog, live, input| {
            let properties = super::objects::properties(input)?;
            let changes = write::check(call.state, table, catalog, properties)?;
            write::conflict(call.state, table, catalog, live, None, &changes)?;
            let links = associations::parse(table, input)?;
            let origin = call.origin();
            let (id, written) = write::create(call.state, table, catalog, live, changes, &origin);
            associations::create_links(call.state, table, id, &links, &origin);
            Ok(Done {
                id,
                echoed: echo_of_create(table, catalog, &written),
                trace: trace(input),
                new: None,
            })
        },
    )
}

fn first_unique(catalog: &Catalog, changes: &[write::Change]) -> Option<String> {
    changes
        .iter()
        .filter(|c| catalog.get(c.property).unique)
        .find_map(|c| {
            Some(format!(
                "{}={}",
                c.property,
                c.value.as_ref()?.to_lowercase()
            ))
        })
}

/// The unique property that an update or upsert names.
fn unique_property(
    call: &Call<'_>,
    table: &Table,
    catalog: &Catalog,
    name: &str,
) -> Result<PropertyId, ApiError> {
    catalog
        .find(name)
        .filter(|id| catalog.get(*id).unique)
        .ok_or_else(|| {
            ApiError::validation(format!(
                "Unable to perform update/upsert by non-unique {} property {name} in portal ID {}",
                table.facts.type_id,
                call.state.portal()
            ))
        })
}

fn target(
    call: &Call<'_>,
    table: &Table,
    catalog: &Catalog,
    live: &Live,
    input: &Value,
) -> Result<u64, ApiError> {
    let text = id_text(input);
    let id = match input.get("idProperty").and_then(Value::as_str) {
        None => text.parse().ok(),
        // As recorded: e-mail is unique for upserts but not for updates.
        Some("email") => {
            return Err(ApiError::validation(format!(
                "Unable to perform update/upsert by non-unique {} property",
                table.facts.type_id
            )));
        }
        Some(name) => live.find(catalog, unique_property(call, table, catalog, name)?, &text),
    };
    id.and_then(|id| live.live_view(id)).map(|v| v.id).ok_or_else(|| {
        ApiError::not_found(format!(
            "Could not update some {} objects, they may be deleted or not exist. Check that ids are valid.",
            table.facts.singular.to_uppercase()
        ))
        .with("context", json!({"ids": [text]}))
    })
}

/// `POST /{type}/batch/update`.
pub(crate) fn update(call: &Call<'_>) -> Outcome {
    let check: Check = |call, table, catalog, live, input| {
        let id = target(call, table, catalog, live, input)?;
        let changes = write::check(
            call.state,
            table,
            catalog,
            super::objects::properties(input)?,
        )?;
        write::conflict(call.state, table, catalog, live, Some(id), &changes)?;
        Ok(Some(id.to_string()))
    };
    run(
        call,
        200,
        PLAIN,
        check,
        |call, table, catalog, live, input| {
            let id = target(call, table, catalog, live, input)?;
            let changes = write::check(
                call.state,
                table,
                catalog,
                super::objects::properties(input)?,
            )?;
            write::update(
                call.state,
                table,
                catalog,
                live,
                id,
                &changes,
                &call.origin(),
            )?;
            let written: Vec<PropertyId> = changes.iter().map(|c| c.property).collect();
            Ok(Done {
                id,
                echoed: render::echoed(catalog, &written),
                trace: trace(input),
                new: None,
            })
        },
    )
}

/// `POST /{type}/batch/upsert`: `idProperty` is required and `new` tells what happened.
pub(crate) fn upsert(call: &Call<'_>) -> Outcome {
    let check: Check = |call, table, catalog, live, input| {
        let name = input
            .get("idProperty")
            .and_then(Value::as_str)
            .ok_or_else(|| {
                ApiError::validation(
                    "Invalid input JSON: Some required fields were not set: [idProperty]",
                )
            })?;
        let property = unique_property(call, table, catalog, name)?;
        let changes = write::check(
            call.state,
            table,
            catalog,
            super::objects::properties(input)?,
        )?;
        let own = live.find(catalog, property, &id_text(input));
        write::conflict(call.state, table, catalog, live, own, &changes)?;
        Ok(Some(id_text(input).to_lowercase()))
    };
    run(
        call,
        200,
        PLAIN,
        check,
        |call, table, catalog, live, input| {
            let name = input
                .get("idProperty")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let property = unique_property(call, table, catalog, name)?;
            let mut changes = write::check(
                call.state,
                table,
                catalog,
                super::objects::properties(input)?,
            )?;
            let value = id_text(input);
            let origin = call.origin();
            let existing = live
                .find(catalog, property, &value)
                .filter(|id| live.live_view(*id).is_some());
            let (id, written) = match existing {
                Some(id) => {
                    write::update(call.state, table, catalog, live, id, &changes, &origin)?;
                    (id, changes.iter().map(|c| c.property).collect())
                }
                None => {
                    if !changes.iter().any(|c| c.property == property) {
                        let mut key = Map::new();
                        key.insert(name.to_owned(), json!(value));
                        changes.extend(write::check(call.state, table, catalog, &key)?);
                    }
                    write::create(call.state, table, catalog, live, changes, &origin)
                }
            };
            Ok(Done {
                id,
                echoed: render::echoed(catalog, &written),
                trace: trace(input),
                new: Some(existing.is_none()),
            })
        },
    )
}

/// `POST /{type}/batch/archive`: 204, unknown ids included.
pub(crate) fn archive(call: &Call<'_>) -> Outcome {
    let table = call.table("type")?;
    let catalog = table.catalog();
    let body = call.json()?;
    let inputs = inputs(&body, MAX_INPUTS)?;
    let mut live = table.write();
    for input in inputs {
        if let Ok(id) = id_text(input).parse() {
            write::archive(call.state, table, &catalog, &mut live, id, &call.origin());
        }
    }
    Ok(Reply::empty(204))
}
