//! Records that are back: who brought them back, what is told of their removal only then,
//! and what has to agree when they are read.

use std::collections::{HashMap, HashSet};

use crm_core::identity;
use crm_core::model::{Change, ChangeKind, Millis, Record};

use crate::pg::store::ledger::EventRow;
use crate::pg::store::lives;
use crate::pg::store::rows::Row;
use crate::pg::store::spi::Result;
use crate::pg::store::streams::{self, DeferredRow, Wait};
use crate::worker::cases::Case;
use crate::worker::flush;
use crate::worker::ingest::Inbound;
use crate::worker::pages::Via;
use crate::worker::record;
use crate::worker::removals;
use crate::worker::world::{Mirror, World};

/// Who removed records, or brought them back, as far as events told that waited for these
/// to be read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Who(HashMap<String, Vec<(DeferredRow, Change)>>);

impl Who {
    pub(super) fn add(&mut self, event: DeferredRow, change: Change) {
        if matches!(change.kind, ChangeKind::Delete | ChangeKind::Restore) {
            let of_record = self.0.entry(event.record_id.clone()).or_default();
            of_record.push((event, change));
        }
    }

    /// Puts what was told last into the line of a removal or a return.
    pub(super) fn name(&self, mirror: &Mirror, line: &mut EventRow) {
        let kind = match line.kind {
            "delete" => ChangeKind::Delete,
            "restore" => ChangeKind::Restore,
            _ => return,
        };
        let told = line.record_id.as_ref().and_then(|id| self.0.get(id));
        let told = told.and_then(|t| t.iter().rfind(|(_, change)| change.kind == kind));
        if let Some((event, change)) = told {
            line.identity = (!change.identity.is_empty())
                .then(|| identity::digest(&mirror.server, &change.identity));
            line.occurred_at = change.occurred_at;
            line.actor = Some(change.actor.clone());
            line.application = record::application(&change.mark, &change.actor);
            line.source.clone_from(&event.source);
            line.stream = event.stream;
        }
    }
}

/// Puts what events tell of removals and returns into the lines about them.
pub(super) fn name_who(mirror: &Mirror, lines: &mut [EventRow]) -> Result<()> {
    let named = lines
        .iter()
        .filter(|l| matches!(l.kind, "delete" | "restore"));
    let records: Vec<String> = named.filter_map(|line| line.record_id.clone()).collect();
    if records.is_empty() {
        return Ok(());
    }
    let mut who = Who::default();
    for event in streams::unread(mirror.id, records)? {
        if let Ok(change) = serde_json::from_str::<Change>(&event.change) {
            who.add(event, change);
        }
    }
    for line in lines {
        who.name(mirror, line);
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

    /// Whether a record was there after it is said to have been removed, or showed news of
    /// then: `stamp` is that of what was told of it just now.
    pub(super) fn after(&self, row: &Row, stamp: Millis, removed_at: Millis) -> bool {
        let told = self.0.get(&row.row_id).copied().unwrap_or_default();
        told.max(stamp).max(row.modified_at) > removed_at
    }
}

/// Records that were asked for because what their rows are tied to must agree with them.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// Rows that SQL had deleted and a rejection put back.
    put_back: HashSet<String>,
    /// Records that others were merged into.
    merged: HashSet<String>,
}

impl Asked {
    pub(super) fn of(mirror: &Mirror, via: Via, records: &[String]) -> Result<Self> {
        let mut asked = Self::default();
        if via.asked_at.is_none() {
            return Ok(asked);
        }
        let mut waiting = streams::unread(mirror.id, records.to_vec())?;
        waiting.retain(|event| event.id <= via.awaited);
        for event in waiting {
            match event.source.as_str() {
                "reject" => asked.put_back.insert(event.record_id),
                MERGED => asked.merged.insert(event.record_id),
                _ => false,
            };
        }
        Ok(asked)
    }

    /// Whether its row is looked at whatever the stamps say.
    pub(super) fn must_agree(&self, record: &str) -> bool {
        self.put_back.contains(record) || self.merged.contains(record)
    }

    /// Before what a record shows is decided: what was on its way to a row that was put
    /// back went with its removal. The line that tells of it.
    pub(super) fn before(
        &self,
        world: &World,
        mirror: &Mirror,
        case: &mut Case,
        record: &Record,
        now: Millis,
    ) -> Result<Option<EventRow>> {
        if !self.put_back.contains(&record.id) {
            return Ok(None);
        }
        if let Some(row) = case.rows[mirror.side]
            .as_mut()
            .filter(|r| r.modified_at == 0)
        {
            row.modified_at = record.modified_at.unwrap_or_default();
        }
        removals::join(world, mirror, case, &Case::returned, now)
    }

    /// After it: what a merge made of a record nobody knew before. The line that tells
    /// how it was brought together with the counterpart that it got.
    pub(super) fn after(
        &self,
        world: &World,
        mirror: &Mirror,
        case: &mut Case,
        record: &Record,
        now: Millis,
    ) -> Result<Option<EventRow>> {
        if !self.merged.contains(&record.id) {
            return Ok(None);
        }
        removals::join(world, mirror, case, &Case::join, now)
    }
}

/// Of a read that is asked for because of a merge.
const MERGED: &str = "merge";

/// A record that others were merged into is read, and agrees then with its counterpart.
pub(super) fn merged(mirror: &Mirror, record: &str) -> Wait {
    Wait {
        source: MERGED.to_owned(),
        ..flush::reread(mirror.id, record.to_owned())
    }
}
