//! Single rows: create, read, change, delete, by id or by an external id.

use super::{Answer, Call, Reply};
use crate::salesforce::State;
use crate::salesforce::error::Error;
use crate::salesforce::ids::{SfId, looks_like_id};
use crate::salesforce::render::{Line, Renderer};
use crate::salesforce::schema::{Kind, Obj, Object, at};
use crate::salesforce::soql::ast::Column;
use crate::salesforce::stamps;
use crate::salesforce::store::{Hit, Store};
use crate::salesforce::tx::Tx;
use crate::salesforce::value::Value;
use serde_json::{Map, json};

/// The object a path names.
pub(crate) fn object<'a>(org: &'a State, name: &str) -> Result<&'a Object, Error> {
    org.schema().find(name).ok_or_else(Error::not_found)
}

/// Reads an id of `obj`, 15 or 18 characters.
pub(crate) fn id_of(obj: Obj, text: &str) -> Result<SfId, Error> {
    match SfId::parse(text) {
        Some(id) if id.prefix == obj.prefix() => Ok(id),
        Some(_) => {
            let message = format!("{} ID: id value of incorrect type: {text}", obj.name());
            Err(Error::bad("MALFORMED_ID", message).on(&["Id"]))
        }
        None if looks_like_id(text) => Err(Error::not_found()),
        None => Err(no_key(text)),
    }
}

fn no_key(name: &str) -> Error {
    Error::new(
        404,
        "NOT_FOUND",
        format!("Provided external ID field does not exist or is not accessible: {name}"),
    )
}

/// A field that may serve as the key of an upsert.
pub(crate) fn key_field(object: &Object, name: &str) -> Result<usize, Error> {
    object
        .index(name)
        .filter(|index| object.fields[*index].is_key())
        .ok_or_else(|| no_key(name))
}

/// The records with this key, deleted ones left out.
pub(crate) fn by_key(
    org: &State,
    store: &Store,
    object: &Object,
    field: usize,
    text: &str,
) -> Vec<Hit> {
    let value = match object.fields[field].kind {
        Kind::Id => SfId::parse(text).map_or(Value::Null, Value::Id),
        _ => Value::text(text.trim()),
    };
    let mut found = store
        .table(object.obj)
        .lookup(object, &org.shared.people, field, &value);
    found.retain(|hit| !hit.deleted());
    found
}

/// 201 with the new id.
pub(crate) fn create(tx: &mut Tx<'_>, org: &State, call: &Call<'_>, name: &str) -> Answer {
    let object = object(org, name)?;
    let id = tx.create(object.obj, &call.object()?)?;
    let body = json!({"id": id.to_string(), "success": true, "errors": []});
    Ok(Reply::json(201, &body).with("location", location(call, object, id)))
}

fn location(call: &Call<'_>, object: &Object, id: SfId) -> String {
    format!("{}/sobjects/{}/{id}", call.root(), object.obj.name())
}

/// 200 with the row.
pub(crate) fn get(org: &State, call: &Call<'_>, store: &Store, name: &str, id: &str) -> Answer {
    let object = object(org, name)?;
    let id = id_of(object.obj, id)?;
    let table = store.table(object.obj);
    let hit = table.get(id.number).ok_or_else(Error::not_found)?;
    let stamp = table.stamp(&hit);
    if hit.deleted() {
        return Err(Error::deleted());
    }
    if date_header(call, "if-modified-since")?.is_some_and(|since| !later(stamp, since)) {
        return Ok(Reply::empty(304));
    }
    let body = row(org, call, object, &hit)?;
    let tag = format!("\"{stamp:x}--gzip\"");
    Ok(Reply::bytes(body)
        .with("last-modified", stamps::http_date(stamp))
        .with("etag", tag))
}

/// Later by whole seconds, which is all HTTP dates can say.
fn later(stamp: i64, than: i64) -> bool {
    stamp.div_euclid(1_000) > than.div_euclid(1_000)
}

/// 200 with the row that has this key; 300 with all of them when there are several.
pub(crate) fn get_by_key(
    org: &State,
    call: &Call<'_>,
    store: &Store,
    name: &str,
    field: &str,
    value: &str,
) -> Answer {
    let object = object(org, name)?;
    let field = key_field(object, field)?;
    let found = by_key(org, store, object, field, value);
    match found.as_slice() {
        [] => Err(Error::not_found()),
        [hit] => Ok(Reply::bytes(row(org, call, object, hit)?)),
        several => Ok(ambiguous(call, object, several)),
    }
}

fn ambiguous(call: &Call<'_>, object: &Object, hits: &[Hit]) -> Reply {
    let url = |hit: &Hit| location(call, object, SfId::new(object.obj.prefix(), hit.number()));
    let urls: Vec<String> = hits.iter().map(url).collect();
    Reply::json(300, &json!(urls))
}

fn row(org: &State, call: &Call<'_>, object: &Object, hit: &Hit) -> Result<Vec<u8>, Error> {
    let columns = match call.parameter("fields") {
        Some(names) => columns(
            object,
            names
                .split(',')
                .map(str::trim)
                .filter(|name| !name.is_empty()),
        )?,
        None => object
            .visible()
            .map(|(index, field)| column(index, field.kind))
            .collect(),
    };
    let renderer = Renderer::new(
        org.schema(),
        &org.shared.people,
        object.obj,
        &columns,
        &call.version,
    );
    let mut out = Vec::with_capacity(2_048);
    renderer.record(
        &mut out,
        &Line {
            hit: hit.clone(),
            parents: Vec::new(),
        },
        &call.version,
    );
    Ok(out)
}

fn column(index: usize, kind: Kind) -> Column {
    if kind == Kind::Address {
        Column::Compound(index)
    } else {
        Column::Field(index)
    }
}

/// The named fields; an error names the first that does not exist.
pub(crate) fn columns<'a>(
    object: &Object,
    names: impl Iterator<Item = &'a str>,
) -> Result<Vec<Column>, Error> {
    let find = |name: &str| match object.index(name) {
        Some(index) => Ok(column(index, object.fields[index].kind)),
        None => Err(Error::bad(
            "INVALID_FIELD",
            format!(
                "No such column '{name}' on sobject of type {}",
                object.obj.name()
            ),
        )),
    };
    names.map(find).collect()
}

pub(crate) fn date_header(call: &Call<'_>, name: &str) -> Result<Option<i64>, Error> {
    let Some(text) = call.header(name) else {
        return Ok(None);
    };
    let parsed = stamps::parse_http_date(text);
    parsed.map(Some).ok_or_else(|| {
        Error::bad(
            "INVALID_HEADER",
            format!("Bad date in header {name}: {text}"),
        )
    })
}

/// 204; 412 when the row changed after `If-Unmodified-Since`.
pub(crate) fn update(
    tx: &mut Tx<'_>,
    org: &State,
    call: &Call<'_>,
    name: &str,
    id: &str,
) -> Answer {
    let object = object(org, name)?;
    let id = id_of(object.obj, id)?;
    let (_, hit) = tx.alive(id)?;
    let stamp = tx.store.table(object.obj).stamp(&hit);
    if date_header(call, "if-unmodified-since")?.is_some_and(|since| later(stamp, since)) {
        return Ok(Reply::empty(412));
    }
    if date_header(call, "if-modified-since")?.is_some_and(|since| !later(stamp, since)) {
        return Ok(Reply::empty(304));
    }
    tx.update(id, &call.object()?)?;
    Ok(Reply::empty(204))
}

/// 204.
pub(crate) fn delete(tx: &mut Tx<'_>, org: &State, name: &str, id: &str) -> Answer {
    let object = object(org, name)?;
    tx.delete(id_of(object.obj, id)?)?;
    Ok(Reply::empty(204))
}

/// 204; 300 when several rows have the key.
pub(crate) fn delete_by_key(
    tx: &mut Tx<'_>,
    org: &State,
    call: &Call<'_>,
    name: &str,
    field: &str,
    value: &str,
) -> Answer {
    let object = object(org, name)?;
    let field = key_field(object, field)?;
    let found = by_key(org, &tx.store, object, field, value);
    match found.as_slice() {
        [] => Err(Error::not_found()),
        [hit] => {
            tx.delete(SfId::new(object.obj.prefix(), hit.number()))?;
            Ok(Reply::empty(204))
        }
        several => Ok(ambiguous(call, object, several)),
    }
}

/// What an upsert did.
pub(crate) enum Upserted {
    Created(SfId),
    Updated(SfId),
    /// Several records have the key.
    Ambiguous(Vec<Hit>),
}

/// Creates or changes the record that has `value` in the key `field`.
pub(crate) fn upsert_row(
    tx: &mut Tx<'_>,
    org: &State,
    object: &Object,
    field: usize,
    value: &str,
    mut fields: Map<String, serde_json::Value>,
    update_only: bool,
) -> Result<Upserted, Error> {
    let key = object.fields[field].name;
    let found = by_key(org, &tx.store, object, field, value);
    fields.retain(|name, _| !name.eq_ignore_ascii_case(key));
    match found.as_slice() {
        [hit] => {
            let id = SfId::new(object.obj.prefix(), hit.number());
            tx.update(id, &fields)?;
            Ok(Upserted::Updated(id))
        }
        [] if update_only || field == at::ID => Err(Error::not_found()),
        [] => {
            fields.insert(key.to_owned(), json!(value));
            tx.create(object.obj, &fields).map(Upserted::Created)
        }
        _ => Ok(Upserted::Ambiguous(found)),
    }
}

/// 201 created, 200 changed, 300 several.
pub(crate) fn upsert(
    tx: &mut Tx<'_>,
    org: &State,
    call: &Call<'_>,
    name: &str,
    field: &str,
    value: &str,
) -> Answer {
    let object = object(org, name)?;
    let field = key_field(object, field)?;
    let fields = call.object()?;
    if fields.keys().any(|key| key.eq_ignore_ascii_case("Id")) && field != at::ID {
        return Err(Error::bad(
            "INVALID_FIELD",
            "The Id field should not be specified in the sobject data.",
        )
        .on(&["Id"]));
    }
    let update_only = call
        .parameter("updateOnly")
        .is_some_and(|text| text.eq_ignore_ascii_case("true"));
    let done = upsert_row(tx, org, object, field, value, fields, update_only)?;
    let (status, id, created) = match done {
        Upserted::Created(id) => (201, id, true),
        Upserted::Updated(id) => (200, id, false),
        Upserted::Ambiguous(hits) => return Ok(ambiguous(call, object, &hits)),
    };
    let body = json!({"id": id.to_string(), "success": true, "errors": [], "created": created});
    Ok(Reply::json(status, &body).with("location", location(call, object, id)))
}
