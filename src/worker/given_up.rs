//! Values that are lost other than by a rule: given up by a person, or gone with
//! the record that they were on their way to. Each leaves its line in the ledger.

use crm_core::model::{Millis, Value};

use crate::pg::store::given_up;
use crate::pg::store::ledger::EventRow;
use crate::pg::store::spi::Result;
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
