//! Writes that came back undone: what may be tried again, and what was decided
//! otherwise meanwhile.

use std::collections::{BTreeSet, HashMap};

use crm_core::model::{ErrorClass, Millis, RemoteError, WriteResult};
use crm_core::outgoing::{self, Answer};
use crm_core::state::FieldState;

use crate::pg::store::ledger;
use crate::pg::store::spi::Result;
use crate::pg::store::writes::{self, Setback, WriteRow};
use crate::pg::tx::SqlError;
use crate::worker::cases;
use crate::worker::deliver::states_of;
use crate::worker::world::{Mirror, World};

/// A setback of a write, in the CRM's words.
pub(super) fn setback(id: i64, state: &'static str, wait_ms: i64, error: &RemoteError) -> Setback {
    Setback {
        id,
        state,
        wait_ms,
        status: i32::from(error.status),
        class: error.class.name().to_owned(),
        code: error.code.clone(),
        message: error.message.clone(),
        advice: error.advice.to_owned(),
    }
}

/// What becomes of a write whose answer the mirror's table refuses, by a CHECK or
/// a trigger: nothing is told to the row. One that the CRM took, or may have, is
/// in doubt until the table takes what the CRM shows.
pub(crate) fn unrecordable(write: i64, result: &WriteResult, refusal: &SqlError) -> Setback {
    match result {
        WriteResult::Failed(error) if !error.maybe_applied => setback(write, "dead", 0, error),
        WriteResult::Done { .. }
        | WriteResult::Exists { .. }
        | WriteResult::Unknown(_)
        | WriteResult::Failed(_) => Setback {
            id: write,
            state: "unknown",
            wait_ms: 10_000,
            status: 0,
            class: "fix_data".to_owned(),
            code: refusal.sqlstate.clone(),
            message: format!("the answer cannot be recorded: {}", refusal.message),
            advice: "Mend what the error names (a CHECK, a trigger); the record is read again until its row takes it.".to_owned(),
        },
    }
}

/// An update of a row that has no record to update.
pub(super) fn no_record() -> RemoteError {
    RemoteError {
        class: ErrorClass::FixData,
        status: 0,
        code: "no_record".to_owned(),
        message: "the row has no record in the CRM and no create is waiting".to_owned(),
        fields: Vec::new(),
        advice: "Delete the row and insert it again, or discard the write.",
        retry_after_ms: None,
        maybe_applied: false,
    }
}

/// Tells the states of fields that these updates wait for another try. What is
/// not wanted any more is taken out of them: sent again, it would go over the
/// edit of a person that was decided, or is being asked about, meanwhile.
pub(super) fn wait_again(
    world: &World,
    mirror: &Mirror,
    rows: &[WriteRow],
    now: Millis,
) -> Result<()> {
    let info = &world.groups[mirror.group];
    let mut states = states_of(rows.iter())?;
    let mut touched = BTreeSet::new();
    let mut moot = Vec::new();
    for row in rows {
        let Some(entity) = row.entity else { continue };
        for (field, value) in info.by_name(mirror, &cases::json_values(&row.vals)) {
            let key = (entity, info.group.fields[field].name.clone());
            let Some(state) = states.get_mut(&key) else {
                continue;
            };
            outgoing::claimed(state, mirror.side, &value, row.claimed_at);
            if !outgoing::retry(state, mirror.side, &value, now) {
                let columns = info.columns(field, mirror.side);
                let names = columns.iter().map(|c| mirror.columns[*c].field.clone());
                moot.extend(names.map(|name| (row.id, name)));
            }
            touched.insert(key);
        }
    }
    store(&states, touched)?;
    writes::take_out(moot)
}

type States = HashMap<(i64, String), FieldState>;

fn store(states: &States, touched: BTreeSet<(i64, String)>) -> Result<()> {
    let stored = touched.into_iter().filter_map(|key| {
        let json = serde_json::to_string(states.get(&key)?).ok()?;
        Some((key.0, key.1, Some(json)))
    });
    ledger::store_field_states(stored.collect())?;
    Ok(())
}

/// Tells the states of fields that nobody knows what became of these updates.
/// Answers which states know of, and the others.
pub(super) fn unknown(
    world: &World,
    mirror: &Mirror,
    rows: Vec<WriteRow>,
    now: Millis,
) -> Result<(Vec<WriteRow>, Vec<WriteRow>)> {
    let info = &world.groups[mirror.group];
    let mut states = states_of(rows.iter())?;
    let mut touched = BTreeSet::new();
    let (known, rest) = rows.into_iter().partition(|row| {
        let values = cases::json_values(&row.vals);
        let fields = info.by_name(mirror, &values);
        let columns: usize = (fields.iter())
            .map(|(f, _)| info.columns(*f, mirror.side).len())
            .sum();
        let key = |field: usize| {
            let name = info.group.fields[field].name.clone();
            row.entity.map(|entity| (entity, name))
        };
        for (field, value) in &fields {
            if let Some(state) = key(*field).and_then(|k| states.get_mut(&k)) {
                outgoing::claimed(state, mirror.side, value, row.claimed_at);
            }
        }
        let all = columns == values.len()
            && fields.iter().all(|(field, value)| {
                let state = key(*field).and_then(|k| states.get(&k));
                state.is_some_and(|s| outgoing::is_in_flight(s, mirror.side, value))
            });
        for (field, value) in fields.iter().filter(|_| all) {
            if let Some(key) = key(*field)
                && let Some(state) = states.get_mut(&key)
            {
                outgoing::answered(state, mirror.side, value, Answer::Unknown, now);
                touched.insert(key);
            }
        }
        all
    });
    store(&states, touched)?;
    Ok((known, rest))
}
