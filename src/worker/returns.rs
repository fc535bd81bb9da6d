//! Records that are back, by what waited for them to be read: who brought them back, and
//! rows that `crm.reject` put back.

use std::collections::{HashMap, HashSet};

use crm_core::identity;
use crm_core::model::{Change, ChangeKind, Millis, Record};

use crate::pg::store::ledger::EventRow;
use crate::pg::store::spi::Result;
use crate::pg::store::streams::{self, DeferredRow};
use crate::worker::cases::Case;
use crate::worker::removals;
use crate::worker::world::{Mirror, World};

/// Puts what events tell of returns into the lines about them.
pub(super) fn name_who(mirror: &Mirror, lines: &mut [EventRow]) -> Result<()> {
    let back = lines.iter().filter(|line| line.kind == "restore");
    let back: Vec<String> = back.filter_map(|line| line.record_id.clone()).collect();
    if back.is_empty() {
        return Ok(());
    }
    let mut told: HashMap<String, (DeferredRow, Change)> = HashMap::new();
    for event in streams::unread(mirror.id, back)? {
        let change = serde_json::from_str::<Change>(&event.change).ok();
        if let Some(change) = change.filter(|c| c.kind == ChangeKind::Restore) {
            told.insert(event.record_id.clone(), (event, change));
        }
    }
    for line in lines.iter_mut().filter(|line| line.kind == "restore") {
        let event = line.record_id.as_ref().and_then(|id| told.remove(id));
        if let Some((event, change)) = event {
            line.identity = (!change.identity.is_empty())
                .then(|| identity::digest(&mirror.server, &change.identity));
            line.occurred_at = change.occurred_at;
            line.actor = Some(change.actor);
            line.source = event.source;
            line.stream = event.stream;
        }
    }
    Ok(())
}

/// Which of these records have rows that SQL had deleted and a rejection put back.
pub(super) fn put_back(mirror: &Mirror, records: Vec<String>) -> Result<HashSet<String>> {
    let waiting = streams::unread(mirror.id, records)?.into_iter();
    let rejected = waiting.filter(|event| event.source == "reject");
    Ok(rejected.map(|event| event.record_id).collect())
}

/// Lets a row that was put back agree with its partners: what was on its way to it went
/// with its removal. The line that tells of it.
pub(super) fn agree(
    world: &World,
    mirror: &Mirror,
    case: &mut Case,
    record: &Record,
    now: Millis,
) -> Result<Option<EventRow>> {
    if let Some(row) = case.rows[mirror.side]
        .as_mut()
        .filter(|r| r.modified_at == 0)
    {
        row.modified_at = record.modified_at.unwrap_or_default();
    }
    removals::join(world, mirror, case, &Case::returned, now)
}
