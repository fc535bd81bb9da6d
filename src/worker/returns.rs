//! Who brought records back: the events that told of it waited for these to be read.

use std::collections::HashMap;

use crm_core::identity;
use crm_core::model::{Change, ChangeKind};

use crate::pg::store::ledger::EventRow;
use crate::pg::store::spi::Result;
use crate::pg::store::streams::{self, DeferredRow};
use crate::worker::world::Mirror;

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
