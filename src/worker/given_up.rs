//! Values that are lost other than by a rule: given up by a person, gone with the
//! record that they were on their way to, or told when it was gone. Each leaves its line in the ledger.

use std::collections::HashMap;

use crm_core::model::{Change, Mark, Millis, Value};

use crate::pg::store::given_up;
use crate::pg::store::ledger::EventRow;
use crate::pg::store::rows;
use crate::pg::store::spi::Result;
use crate::pg::store::streams;
use crate::worker::cases::json_values;
use crate::worker::flush;
use crate::worker::returns::Who;
use crate::worker::world::{Mirror, World};

/// Lines moved in one transaction.
const BATCH: i64 = 1_000;

/// Moves what people gave up into the ledger; whether there may be more.
pub(crate) fn note(world: &World) -> Result<bool> {
    let lines = given_up::take(BATCH)?;
    let more = i64::try_from(lines.len()).is_ok_and(|n| n >= BATCH);
    flush::append(world, lines)?;
    Ok(more)
}

/// Notes edits of which events told only when their records were gone: they were
/// waiting for these to be read. `removed` are the rows of records that we remove.
/// Answers who removed the others.
pub(crate) fn told_too_late(
    world: &World,
    mirror: &Mirror,
    records: Vec<String>,
    removed: &HashMap<String, i64>,
    read_for: i64,
) -> Result<Who> {
    let mut who = Who::default();
    let mut lines = Vec::new();
    for event in streams::take_unread(mirror.id, records.clone(), read_for)? {
        if let Ok(change) = serde_json::from_str::<Change>(&event.change) {
            lines.extend(told(world, mirror, &event.source, &change));
            who.add(event, change);
        }
    }
    if lines.is_empty() {
        return Ok(who);
    }
    let rows = rows::lock_by_record(&mirror.table, &[], records)?;
    for line in &mut lines {
        let own = rows.iter().find(|r| r.record_id == line.record_id);
        let was = || removed.get(line.record_id.as_ref()?).copied();
        line.row_id = own.map(|r| r.row_id).or_else(was);
    }
    flush::append(world, lines)?;
    Ok(who)
}

/// The line of an edit of a record that is gone; none of what we wrote ourselves.
pub(crate) fn told(
    world: &World,
    mirror: &Mirror,
    source: &str,
    change: &Change,
) -> Option<EventRow> {
    let mark = format!("pg_crm_sync_{}", world.installation);
    if change.named(&mark) == Mark::Ours {
        return None;
    }
    let origin = || mirror.server.clone();
    let fields = change.fields.iter();
    let known = fields.filter(|(f, _)| mirror.by_field.contains_key(f));
    let lost = known.map(|(f, v)| (f.clone(), origin(), v.clone()));
    let record = Some(change.record_id.clone());
    let step = ("tombstone", "");
    let line = line(mirror, 0, record, step, lost.collect(), change.occurred_at)?;
    Some(EventRow {
        row_id: None,
        origin: origin(),
        source: source.to_owned(),
        actor: Some(change.actor.clone()).filter(|a| !a.is_empty()),
        ..line
    })
}

/// A value that goes with a record: field, who wrote it, value.
pub(crate) type Lost = (String, String, Value);

/// The values of an unsent write, as [`Lost`].
pub(crate) fn values(origin: &str, vals: &str) -> Vec<Lost> {
    let lost = json_values(vals).into_iter();
    lost.map(|(field, value)| (field, origin.to_owned(), value))
        .collect()
}

/// The line that names values lost with a record; none if nothing is lost.
pub(crate) fn line(
    mirror: &Mirror,
    row_id: i64,
    record_id: Option<String>,
    (step, winner): (&str, &str),
    lost: Vec<Lost>,
    at: Millis,
) -> Option<EventRow> {
    if lost.is_empty() {
        return None;
    }
    let decision: Vec<serde_json::Value> = lost
        .iter()
        .map(|(field, origin, value)| {
            serde_json::json!({
                "field": field, "step": step, "winner": winner,
                "losers": [{"origin": origin, "value": value}],
            })
        })
        .collect();
    let (fields, values) = lost.into_iter().map(|(f, _, v)| (f, v)).unzip();
    Some(EventRow {
        mirror: mirror.id,
        row_id: Some(row_id),
        record_id,
        kind: "discard",
        origin: winner.to_owned(),
        source: "link".to_owned(),
        occurred_at: at,
        fields,
        new_values: values,
        decision: Some(serde_json::Value::Array(decision).to_string()),
        ..EventRow::default()
    })
}
