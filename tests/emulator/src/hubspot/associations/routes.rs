//! Association calls of v3, v4 and the dated API.

use std::sync::PoisonError;

use serde_json::{Value, json};

use super::{Label, LinkType, Links, kinds, natural, number, primary, types::FIRST_LABEL};
use crate::hubspot::{
    State,
    batch::{finish, inputs},
    error::ApiError,
    http::{Call, Outcome, Reply},
    model::OBJECTS,
};

const MAX_READ: usize = 1_000;
const MAX_WRITE: usize = 2_000;

fn id_at(input: &Value, key: &str) -> Result<u64, ApiError> {
    input
        .pointer(&format!("/{key}/id"))
        .and_then(number)
        .ok_or_else(|| {
            ApiError::validation(format!("Some required fields were not set: [{key}.id]"))
        })
}

fn label_of(state: &State, kind: LinkType) -> Value {
    let labels = state
        .associations
        .labels
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let found = labels
        .iter()
        .find(|l| l.kind == kind)
        .map(|l| l.label.clone());
    let is_primary = (0..OBJECTS.len())
        .flat_map(|a| (0..OBJECTS.len()).map(move |b| (a, b)))
        .any(|(a, b)| primary(a, b) == Some(kind));
    match found {
        Some(label) => json!(label),
        None if is_primary => json!("Primary"),
        None => Value::Null,
    }
}

/// The `to` items: ids are numbers on v4 and texts on the dated API.
fn to_items(call: &Call<'_>, links: &Links) -> Vec<Value> {
    links
        .iter()
        .map(|(id, kinds)| {
            let types: Vec<Value> = kinds
                .iter()
                .map(|k| {
                    json!({"category": k.category(), "typeId": k.id, "label": label_of(call.state, *k)})
                })
                .collect();
            let id = if call.is_dated() { json!(id.to_string()) } else { json!(id) };
            json!({"toObjectId": id, "associationTypes": types})
        })
        .collect()
}

fn pair(call: &Call<'_>) -> Result<(usize, usize), ApiError> {
    Ok((call.table("from")?.index, call.table("to")?.index))
}

fn list_json(results: &[Value]) -> Vec<u8> {
    format!("{{\"status\":\"COMPLETE\",\"results\":{}", json!(results)).into_bytes()
}

/// `POST …/{from}/{to}/batch/read`.
pub(crate) fn read(call: &Call<'_>) -> Outcome {
    let (from, to) = pair(call)?;
    let body = call.json()?;
    let start = call.state.now_ms();
    let (mut results, mut errors) = (Vec::new(), Vec::new());
    for input in inputs(&body, MAX_READ)? {
        let Some(id) = input.get("id").and_then(number) else {
            return Err(ApiError::validation(
                "Some required fields were not set: [id]",
            ));
        };
        let links = call.state.links(from, id, to);
        if links.is_empty() {
            errors.push(json!({"status": "error", "category": "OBJECT_NOT_FOUND",
                "subCategory": "crm.associations.NO_ASSOCIATIONS_FOUND",
                "message": format!("No {} is associated with {} {id}.",
                    OBJECTS[to].singular, OBJECTS[from].singular),
                "context": {"fromObjectId": [id.to_string()],
                    "fromObjectType": [OBJECTS[from].singular], "toObjectType": [OBJECTS[to].singular]}}));
        } else {
            results.push(json!({"from": {"id": id.to_string()}, "to": to_items(call, &links)}));
        }
    }
    Ok(finish(call, list_json(&results), start, &errors, 200))
}

fn link_all(call: &Call<'_>, default: bool) -> Outcome {
    let (from, to) = pair(call)?;
    let body = call.json()?;
    let start = call.state.now_ms();
    let mut results = Vec::new();
    for input in inputs(&body, MAX_WRITE)? {
        let (a, b) = (id_at(input, "from")?, id_at(input, "to")?);
        let types = if default {
            vec![natural(from, to)]
        } else {
            kinds(input.get("types"))?
        };
        exists(call.state, from, a)?;
        exists(call.state, to, b)?;
        defined(call.state, (from, to), &types)?;
        call.state.link((from, a), (to, b), &types, &call.origin());
        results.push(json!({"fromObjectTypeId": OBJECTS[from].type_id, "fromObjectId": a,
            "toObjectTypeId": OBJECTS[to].type_id, "toObjectId": b,
            "labels": types.iter().map(|t| label_of(call.state, *t)).filter(|l| !l.is_null()).collect::<Vec<_>>()}));
    }
    Ok(finish(call, list_json(&results), start, &[], 201))
}

fn exists(state: &State, table: usize, id: u64) -> Result<(), ApiError> {
    match state.tables[table].read().live_view(id) {
        Some(_) => Ok(()),
        None => Err(ApiError::not_found(format!(
            "{} with id {id} was not found",
            OBJECTS[table].singular
        ))),
    }
}

/// Refuses types that links between these object types do not have.
fn defined(state: &State, (from, to): (usize, usize), types: &[LinkType]) -> Result<(), ApiError> {
    let labels = (state.associations.labels.lock()).unwrap_or_else(PoisonError::into_inner);
    let known = |kind: &LinkType| {
        *kind == natural(from, to)
            || Some(*kind) == primary(from, to)
            || (labels.iter()).any(|l| (l.from, l.to, l.kind) == (from, to, *kind))
    };
    match types.iter().find(|t| !known(t)) {
        None => Ok(()),
        Some(kind) => Err(ApiError::validation(format!(
            "{} {} is no association type from {} to {}",
            kind.category(),
            kind.id,
            OBJECTS[from].singular,
            OBJECTS[to].singular
        ))
        .with("context", json!({"type": [kind.id.to_string()]}))),
    }
}

/// `POST …/batch/create`.
pub(crate) fn create(call: &Call<'_>) -> Outcome {
    link_all(call, false)
}

/// `POST …/batch/associate/default`.
pub(crate) fn create_default(call: &Call<'_>) -> Outcome {
    link_all(call, true)
}

/// `POST …/batch/archive`: `to` is a list.
pub(crate) fn archive(call: &Call<'_>) -> Outcome {
    let (from, to) = pair(call)?;
    let body = call.json()?;
    for input in inputs(&body, MAX_WRITE)? {
        let a = id_at(input, "from")?;
        let list = input.get("to").and_then(Value::as_array);
        for b in list
            .into_iter()
            .flatten()
            .filter_map(|t| t.get("id").and_then(number))
        {
            call.state.unlink((from, a), (to, b), &[], &call.origin());
        }
    }
    Ok(Reply::empty(204))
}

/// `POST …/batch/labels/archive`.
pub(crate) fn archive_labels(call: &Call<'_>) -> Outcome {
    let (from, to) = pair(call)?;
    let body = call.json()?;
    for input in inputs(&body, MAX_WRITE)? {
        let (a, b) = (id_at(input, "from")?, id_at(input, "to")?);
        let types = kinds(input.get("types"))?;
        call.state
            .unlink((from, a), (to, b), &types, &call.origin());
    }
    Ok(Reply::empty(204))
}

/// `POST /crm/v3/associations/{from}/{to}/batch/create`: types by name, answers both directions.
pub(crate) fn create_v3(call: &Call<'_>) -> Outcome {
    let (from, to) = pair(call)?;
    let body = call.json()?;
    let start = call.state.now_ms();
    let mut results = Vec::new();
    for input in inputs(&body, MAX_WRITE)? {
        let (a, b) = (id_at(input, "from")?, id_at(input, "to")?);
        exists(call.state, from, a)?;
        exists(call.state, to, b)?;
        call.state
            .link((from, a), (to, b), &[natural(from, to)], &call.origin());
        let (one, two) = (OBJECTS[from].singular, OBJECTS[to].singular);
        results.push(
            json!({"from": {"id": a.to_string()}, "to": {"id": b.to_string()},
            "type": format!("{one}_to_{two}")}),
        );
        results.push(
            json!({"from": {"id": b.to_string()}, "to": {"id": a.to_string()},
            "type": format!("{two}_to_{one}")}),
        );
    }
    Ok(finish(call, list_json(&results), start, &[], 201))
}

/// `GET …/objects/{type}/{id}/associations/{to}`.
pub(crate) fn of_record(call: &Call<'_>) -> Outcome {
    let (from, to) = (call.table("type")?.index, call.table("to")?.index);
    let id = record_id(call, "id")?;
    exists(call.state, from, id)?;
    let limit = call.query.number("limit", 500)?.clamp(1, 500) as usize;
    let after = call.query.number("after", 0)?;
    let mut links: Links = call.state.links(from, id, to).split_off(&after);
    let next = links.keys().nth(limit).copied();
    if let Some(next) = next {
        links.split_off(&next);
    }
    let mut body = json!({"results": to_items(call, &links)});
    if let Some(next) = next {
        let mut out = b"{".to_vec();
        crate::hubspot::objects::push_paging(call, next, &mut out);
        out.push(b'}');
        // `{,"paging":…}` without the comma.
        out.remove(1);
        let paging: Value = serde_json::from_slice(&out).unwrap_or_default();
        body["paging"] = paging["paging"].clone();
    }
    Ok(Reply::value(200, &body))
}

fn record_id(call: &Call<'_>, name: &str) -> Result<u64, ApiError> {
    call.param(name)
        .parse()
        .map_err(|_| ApiError::validation(format!("Invalid record id `{}`", call.param(name))))
}

/// `PUT …/objects/{type}/{id}/associations/{to}/{toId}`, body `[{associationCategory,…}]`.
pub(crate) fn put(call: &Call<'_>) -> Outcome {
    let (from, to) = (call.table("type")?.index, call.table("to")?.index);
    let (a, b) = (record_id(call, "id")?, record_id(call, "toId")?);
    exists(call.state, from, a)?;
    exists(call.state, to, b)?;
    let body: Value = serde_json::from_slice(&call.body)
        .map_err(|e| ApiError::validation(format!("Invalid input JSON: {e}")))?;
    let types = kinds(Some(&body))?;
    defined(call.state, (from, to), &types)?;
    call.state.link((from, a), (to, b), &types, &call.origin());
    Ok(Reply::value(
        201,
        &json!({"fromObjectTypeId": OBJECTS[from].type_id, "fromObjectId": a,
        "toObjectTypeId": OBJECTS[to].type_id, "toObjectId": b,
        "labels": types.iter().map(|t| label_of(call.state, *t)).filter(|l| !l.is_null()).collect::<Vec<_>>()}),
    ))
}

/// `PUT …/objects/{type}/{id}/associations/default/{to}/{toId}`.
pub(crate) fn put_default(call: &Call<'_>) -> Outcome {
    let (from, to) = (call.table("type")?.index, call.table("to")?.index);
    let (a, b) = (record_id(call, "id")?, record_id(call, "toId")?);
    exists(call.state, from, a)?;
    exists(call.state, to, b)?;
    let kind = natural(from, to);
    call.state.link((from, a), (to, b), &[kind], &call.origin());
    Ok(Reply::value(
        200,
        &json!({"status": "COMPLETE", "results": [
        {"from": {"id": a.to_string()}, "to": {"id": b.to_string()},
         "associationSpec": {"associationCategory": kind.category(), "associationTypeId": kind.id}}]}),
    ))
}

/// `DELETE …/objects/{type}/{id}/associations/{to}/{toId}`.
pub(crate) fn delete(call: &Call<'_>) -> Outcome {
    let (from, to) = (call.table("type")?.index, call.table("to")?.index);
    let (a, b) = (record_id(call, "id")?, record_id(call, "toId")?);
    call.state.unlink((from, a), (to, b), &[], &call.origin());
    Ok(Reply::empty(204))
}

/// `GET …/{from}/{to}/labels`.
pub(crate) fn labels(call: &Call<'_>) -> Outcome {
    let (from, to) = pair(call)?;
    let mut kinds = vec![natural(from, to)];
    kinds.extend(primary(from, to));
    {
        let labels = call
            .state
            .associations
            .labels
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        kinds.extend(
            labels
                .iter()
                .filter(|l| (l.from, l.to) == (from, to))
                .map(|l| l.kind),
        );
    }
    let results: Vec<Value> = kinds
        .into_iter()
        .map(
            |k| json!({"category": k.category(), "typeId": k.id, "label": label_of(call.state, k)}),
        )
        .collect();
    Ok(Reply::value(200, &json!({"results": results})))
}

/// `POST …/{from}/{to}/labels`: makes both directions.
pub(crate) fn create_label(call: &Call<'_>) -> Outcome {
    let (from, to) = pair(call)?;
    let body = call.json()?;
    let text = |key: &str| body.get(key).and_then(Value::as_str).map(str::to_owned);
    let Some(label) = text("label") else {
        return Err(ApiError::validation(
            "Some required fields were not set: [label]",
        ));
    };
    let inverse = text("inverseLabel").unwrap_or_else(|| label.clone());
    let kinds = add_label(call.state, (from, to), &label, &inverse);
    Ok(Reply::value(
        201,
        &json!({"results": [
        {"category": "USER_DEFINED", "typeId": kinds[0].id, "label": label},
        {"category": "USER_DEFINED", "typeId": kinds[1].id, "label": inverse}]}),
    ))
}

/// Makes a label, its two directions.
pub(super) fn add_label(
    state: &State,
    (from, to): (usize, usize),
    label: &str,
    inverse: &str,
) -> [LinkType; 2] {
    let mut labels = (state.associations.labels.lock()).unwrap_or_else(PoisonError::into_inner);
    let id = FIRST_LABEL + labels.len() as u64;
    let kinds = [id, id + 1].map(|id| LinkType {
        user_defined: true,
        id,
    });
    for (from, to, kind, label) in [(from, to, kinds[0], label), (to, from, kinds[1], inverse)] {
        labels.push(Label {
            from,
            to,
            kind,
            label: label.to_owned(),
        });
    }
    kinds
}
