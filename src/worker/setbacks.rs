//! Writes that came back undone: what may be tried again, and what was decided
//! otherwise meanwhile.

use std::collections::BTreeSet;

use crm_core::model::{ErrorClass, Millis, RemoteError};
use crm_core::state;

use crate::pg::store::ledger;
use crate::pg::store::spi::Result;
use crate::pg::store::writes::{self, Setback, WriteRow};
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
            state::claimed(state, mirror.side, &value, row.claimed_at);
            if !state::retry(state, mirror.side, &value, now) {
                let columns = info.columns(field, mirror.side);
                let names = columns.iter().map(|c| mirror.columns[*c].field.clone());
                moot.extend(names.map(|name| (row.id, name)));
            }
            touched.insert(key);
        }
    }
    let stored = touched.into_iter().filter_map(|key| {
        let json = serde_json::to_string(states.get(&key)?).ok()?;
        Some((key.0, key.1, Some(json)))
    });
    ledger::store_field_states(stored.collect())?;
    writes::take_out(moot)
}
