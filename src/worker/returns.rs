//! Records that are back: who brought them back, what is told of their removal only then,
//! and rows that `crm.reject` put back.

use std::collections::{HashMap, HashSet};

use crm_core::identity;
use crm_core::model::{Change, ChangeKind, Millis, Record};

use crate::pg::store::ledger::EventRow;
use crate::pg::store::lives;
use crate::pg::store::rows::Row;
use crate::pg::store::spi::Result;
use crate::pg::store::streams::{self, DeferredRow};
use crate::worker::cases::Case;
use crate::worker::ingest::Inbound;
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

/// Rows of records that are there, and since when that is known. CRMs tell in any order:
/// a removal before that is over.
#[derive(Debug, Default)]
pub(super) struct There(HashMap<i64, Millis>);

impl There {
    /// What is known of the rows that these events say are gone.
    pub(super) fn of(mirror: &Mirror, items: &[Inbound], rows: &[Row]) -> Result<Self> {
        let told = items.iter().filter(|i| i.change.kind == ChangeKind::Delete);
        let told: HashSet<&String> = told.map(|i| &i.change.record_id).collect();
        let there = rows.iter().filter(|row| !row.is_gone());
        let there = there.filter(|row| row.record_id.as_ref().is_some_and(|id| told.contains(id)));
        let row_ids: Vec<i64> = there.map(|row| row.row_id).collect();
        if row_ids.is_empty() {
            return Ok(Self::default());
        }
        let known = lives::last_there(mirror.id, row_ids)?;
        Ok(Self(known.into_iter().collect()))
    }

    /// Somebody tells that a record that is there is back.
    pub(super) fn note(&mut self, row_id: i64, at: Millis) {
        let known = self.0.entry(row_id).or_insert(at);
        *known = at.max(*known);
    }

    /// Whether a record was there after it is said to have been removed.
    pub(super) fn after(&self, row_id: i64, removed_at: Millis) -> bool {
        self.0.get(&row_id).is_some_and(|at| *at > removed_at)
    }
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
