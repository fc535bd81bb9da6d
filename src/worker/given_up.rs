//! Values that are lost other than by a rule: given up by a person, gone with the
//! record that they were on their way to, or told when it was gone. Each leaves its line in the ledger.

use crm_core::model::{Change, Millis, Value};

use crate::pg::store::given_up;
use crate::pg::store::ledger::EventRow;
use crate::pg::store::rows;
use crate::pg::store::spi::Result;
use crate::pg::store::streams;
use crate::worker::cases::json_values;
use crate::worker::flush;
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
/// waiting for these to be read.
pub(crate) fn told_too_late(
    world: &World,
    mirror: &Mirror,
    records: Vec<String>,
    read_for: i64,
) -> Result<()> {
    let mut lines = Vec::new();
    for (source, change) in streams::take_unread(mirror.id, records.clone(), read_for)? {
        let Ok(change) = serde_json::from_str::<Change>(&change) else {
            continue;
        };
        let origin = || mirror.server.clone();
        let known = change
            .fields
            .iter()
            .filter(|(f, _)| mirror.by_field.contains_key(f));
        let lost = known
            .map(|(f, v)| (f.clone(), origin(), v.clone()))
            .collect();
        let record = Some(change.record_id.clone());
        let line = line(
            mirror,
            0,
            record,
            ("tombstone", ""),
            lost,
            change.occurred_at,
        );
        lines.extend(line.map(|line| EventRow {
            row_id: None,
            origin: origin(),
            source,
            actor: Some(change.actor).filter(|a| !a.is_empty()),
            ..line
        }));
    }
    if lines.is_empty() {
        return Ok(());
    }
    let rows = rows::lock_by_record(&mirror.table, &[], records)?;
    for line in &mut lines {
        let own = rows.iter().find(|r| r.record_id == line.record_id);
        line.row_id = own.map(|r| r.row_id);
    }
    flush::append(world, lines)
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
