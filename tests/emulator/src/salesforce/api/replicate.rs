//! `updated` and `deleted`: which records changed in a span of time.

use super::{Answer, Call, Reply, rows};
use crate::salesforce::State;
use crate::salesforce::error::Error;
use crate::salesforce::ids::SfId;
use crate::salesforce::schema::at;
use crate::salesforce::stamps::{self, DAY_MS};
use crate::salesforce::store::{Hit, Store};
use crate::salesforce::value::Value;
use serde_json::{Value as Json, json};

/// Ids in one answer.
const MAX_IDS: usize = 600_000;
const MINUTE_MS: i64 = 60_000;
/// How far back each of the two looks.
const UPDATED_DAYS: i64 = 30;
const DELETED_DAYS: i64 = 15;

/// Start and end of the span, whole minutes: seconds are ignored.
fn span(org: &State, call: &Call<'_>, days: i64) -> Result<(i64, i64), Error> {
    let at = |name: &str| -> Result<i64, Error> {
        let text = call.parameter(name).ok_or_else(|| {
            Error::bad(
                "MISSING_ARGUMENT",
                format!("The {name} parameter is required"),
            )
        })?;
        // A `+` that was not escaped arrives as a space.
        let text = text.replace(' ', "+");
        let parsed = stamps::parse_datetime(&text)
            .ok_or_else(|| Error::bad("INVALID_FIELD", format!("{name}: bad date {text}")))?;
        Ok(parsed.div_euclid(MINUTE_MS) * MINUTE_MS)
    };
    let (start, end) = (at("start")?, at("end")?);
    if end <= start {
        let message = "endDate must be at least one minute greater than startDate";
        return Err(Error::bad("INVALID_REPLICATION_DATE", message));
    }
    if start < org.now() - days * DAY_MS {
        let message = format!("startDate cannot be more than {days} days ago");
        return Err(Error::bad("INVALID_REPLICATION_DATE", message));
    }
    Ok((start, end))
}

fn walk<'a>(
    store: &'a Store,
    obj: crate::salesforce::schema::Obj,
    span: (i64, i64),
) -> impl Iterator<Item = Hit> + 'a {
    store
        .table(obj)
        .by_stamp((span.0, 0), (span.1 - 1, u64::MAX), false)
}

/// `GET /sobjects/X/updated?start=…&end=…`
pub(crate) fn updated(org: &State, call: &Call<'_>, store: &Store, name: &str) -> Answer {
    let object = rows::object(org, name)?;
    let span = span(org, call, UPDATED_DAYS)?;
    let id = |hit: Hit| SfId::new(object.obj.prefix(), hit.number()).to_string();
    let ids: Vec<String> = walk(store, object.obj, span)
        .filter(|hit| !hit.deleted())
        .take(MAX_IDS + 1)
        .map(id)
        .collect();
    if ids.len() > MAX_IDS {
        return Err(Error::bad(
            "EXCEEDED_ID_LIMIT",
            "Too many ids; choose a shorter span",
        ));
    }
    let covered = stamps::datetime(span.1.min(org.now().div_euclid(MINUTE_MS) * MINUTE_MS));
    Ok(Reply::json(
        200,
        &json!({"ids": ids, "latestDateCovered": covered}),
    ))
}

/// `GET /sobjects/X/deleted?start=…&end=…`
pub(crate) fn deleted(org: &State, call: &Call<'_>, store: &Store, name: &str) -> Answer {
    let object = rows::object(org, name)?;
    let span = span(org, call, DELETED_DAYS)?;
    let entry = |hit: Hit| -> Json {
        let stamp = hit
            .view(object, &org.shared.people)
            .with(at::STAMP, Value::as_datetime)
            .unwrap_or_default();
        json!({"id": SfId::new(object.obj.prefix(), hit.number()).to_string(), "deletedDate": stamps::datetime(stamp)})
    };
    let records: Vec<Json> = walk(store, object.obj, span)
        .filter(Hit::deleted)
        .take(MAX_IDS + 1)
        .map(entry)
        .collect();
    if records.len() > MAX_IDS {
        return Err(Error::bad(
            "EXCEEDED_ID_LIMIT",
            "Too many ids; choose a shorter span",
        ));
    }
    let covered = stamps::datetime(span.1.min(org.now().div_euclid(MINUTE_MS) * MINUTE_MS));
    let earliest =
        stamps::datetime((org.now() - DELETED_DAYS * DAY_MS).div_euclid(MINUTE_MS) * MINUTE_MS);
    Ok(Reply::json(
        200,
        &json!({"deletedRecords": records, "earliestDateAvailable": earliest, "latestDateCovered": covered}),
    ))
}
