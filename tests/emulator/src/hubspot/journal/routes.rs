//! Where the journal is read: places in it, and the files that they lead to.

use std::{collections::VecDeque, sync::Arc};

use axum::routing::{MethodFilter as M, MethodRouter};
use serde_json::{Value, json};

use super::{Entry, Settings, file};
use crate::{
    clock,
    hubspot::{
        State,
        base::iso_short,
        error::ApiError,
        http::{Access, Call, Outcome, Reply, guarded},
    },
};

/// Most entries of a batch.
const MAX_BATCH: usize = 100;

/// Adds the routes below a prefix.
pub(crate) fn add_to(prefix: &str, routes: &mut Vec<(String, MethodRouter<Arc<State>>)>) {
    let mut add = |path: &str, filter, handler| {
        let handler = guarded(filter, Access::Journal, handler);
        routes.push((format!("{prefix}{path}"), handler));
    };
    add("/earliest", M::GET, earliest);
    add("/latest", M::GET, latest);
    add("/offset/{offset}/next", M::GET, next);
    add("/batch/earliest/{n}", M::GET, batch_earliest);
    add("/batch/latest/{n}", M::GET, batch_latest);
    add("/batch/{offset}/next/{n}", M::GET, batch_next);
    add("/batch/read", M::POST, batch_read);
    add("/status/{offset}", M::GET, status);
}

/// The address of an entry's file, signed and for a while.
fn place(call: &Call<'_>, settings: &Settings, entry: &Entry) -> Value {
    let until = clock::real_ms() + settings.url_ms;
    let base = call.base_url();
    let path = format!("/webhooks-journal-data/{}.json", entry.offset);
    json!({"url": format!("{base}{path}?X-Amz-Expires={until}&X-Amz-Signature=emulated"),
        "expiresAt": iso_short(until), "currentOffset": entry.offset})
}

fn nothing(settings: &Settings) -> Outcome {
    match settings.end {
        404 => Err(ApiError::not_found("No journal entry")),
        status => Ok(Reply::empty(status)),
    }
}

/// The entries after an offset; the answer for one that is not known.
fn after<'e>(
    settings: &Settings,
    entries: &'e VecDeque<Entry>,
    offset: &str,
) -> Result<Vec<&'e Entry>, ApiError> {
    match entries.iter().position(|e| e.offset == offset) {
        Some(at) => Ok(entries.iter().skip(at + 1).collect()),
        None if settings.unknown == 200 => Ok(entries.iter().collect()),
        None => {
            let message = format!("Offset {offset} is not in the journal");
            Err(ApiError::new(settings.unknown, "OBJECT_NOT_FOUND", message))
        }
    }
}

fn one(call: &Call<'_>, settings: &Settings, entry: Option<&Entry>) -> Outcome {
    match entry {
        Some(entry) => Ok(Reply::value(200, &place(call, settings, entry))),
        None => nothing(settings),
    }
}

fn earliest(call: &Call<'_>) -> Outcome {
    let journal = &call.state.webhooks.journal;
    journal.read(|settings, entries| one(call, settings, entries.front()))
}

fn latest(call: &Call<'_>) -> Outcome {
    let journal = &call.state.webhooks.journal;
    journal.read(|settings, entries| one(call, settings, entries.back()))
}

fn next(call: &Call<'_>) -> Outcome {
    call.state.webhooks.journal.read(|settings, entries| {
        let newer = after(settings, entries, call.param("offset"))?;
        one(call, settings, newer.first().copied())
    })
}

fn many(call: &Call<'_>, settings: &Settings, entries: &[&Entry]) -> Outcome {
    if entries.is_empty() {
        return nothing(settings);
    }
    let places: Vec<Value> = (entries.iter()).map(|e| place(call, settings, e)).collect();
    Ok(Reply::value(200, &json!({"results": places})))
}

fn wanted(call: &Call<'_>) -> Result<usize, ApiError> {
    let n = call.param("n").parse().ok();
    n.filter(|n| (1..=MAX_BATCH).contains(n))
        .ok_or_else(|| ApiError::validation(format!("count: expected 1 to {MAX_BATCH}")))
}

fn batch_earliest(call: &Call<'_>) -> Outcome {
    let n = wanted(call)?;
    call.state.webhooks.journal.read(|settings, entries| {
        let first: Vec<&Entry> = entries.iter().take(n).collect();
        many(call, settings, &first)
    })
}

fn batch_latest(call: &Call<'_>) -> Outcome {
    let n = wanted(call)?;
    call.state.webhooks.journal.read(|settings, entries| {
        let last: Vec<&Entry> = (entries.iter().skip(entries.len().saturating_sub(n))).collect();
        many(call, settings, &last)
    })
}

fn batch_next(call: &Call<'_>) -> Outcome {
    let n = wanted(call)?;
    call.state.webhooks.journal.read(|settings, entries| {
        let mut newer = after(settings, entries, call.param("offset"))?;
        newer.truncate(n);
        many(call, settings, &newer)
    })
}

fn batch_read(call: &Call<'_>) -> Outcome {
    let body = call.json()?;
    let inputs = body.get("inputs").and_then(Value::as_array);
    let asked: Vec<&str> = (inputs.into_iter().flatten())
        .filter_map(|i| i.as_str().or_else(|| i.get("id")?.as_str()))
        .take(MAX_BATCH)
        .collect();
    call.state.webhooks.journal.read(|settings, entries| {
        let found: Vec<&Entry> = (entries.iter())
            .filter(|e| asked.contains(&e.offset.as_str()))
            .collect();
        many(call, settings, &found)
    })
}

/// Snapshots are not made here, so nothing has a status.
fn status(call: &Call<'_>) -> Outcome {
    let message = format!("No status for {}", call.param("offset"));
    Err(ApiError::not_found(message))
}

/// A data file, as a store of files gives it out: by the signature in its address and nothing else.
pub(crate) fn data(call: &Call<'_>) -> Outcome {
    if call.headers.contains_key("authorization") {
        let message = "Only one auth mechanism allowed";
        return Err(ApiError::new(400, "InvalidArgument", message));
    }
    let until: i64 = (call.query.get("X-Amz-Expires").unwrap_or_default())
        .parse()
        .unwrap_or(0);
    if until < clock::real_ms() || call.query.get("X-Amz-Signature").is_none() {
        return Err(ApiError::new(403, "AccessDenied", "Request has expired"));
    }
    let offset = call.param("file").trim_end_matches(".json");
    let portal = call.state.portal();
    call.state.webhooks.journal.read(|settings, entries| {
        let entry = entries.iter().find(|e| e.offset == offset);
        let entry = entry.ok_or_else(|| ApiError::not_found("NoSuchKey"))?;
        Ok(Reply::json(200, file::bytes(settings.shape, entry, portal)))
    })
}
