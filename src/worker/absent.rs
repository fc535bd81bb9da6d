//! Records that a mirror does not hold: not yet, or not any more.

use std::collections::{BTreeMap, HashMap, HashSet};

use crm_core::model::{ChangeKind, Millis, Record};

use crate::pg::store::changes;
use crate::pg::store::ledger::EventRow;
use crate::pg::store::lives;
use crate::pg::store::rows::{self, Row, RowInsert};
use crate::pg::store::spi::Result;
use crate::pg::store::writes::{self, WriteRow};
use crate::pg::tx;
use crate::worker::arrivals;
use crate::worker::creates;
use crate::worker::flush;
use crate::worker::given_up;
use crate::worker::ingest::{Deferred, Inbound, put_off};
use crate::worker::record;
use crate::worker::world::{Mirror, World};

/// Records that SQL or a link has removed, and that their CRM still shows.
#[derive(Debug, Default)]
pub(crate) struct Removed {
    /// Their removal is on its way; the rows that they had.
    pub(crate) leaving: HashMap<String, i64>,
    /// Nobody has looked at their removal yet.
    waiting: HashSet<String>,
}

/// So many removals that wait are looked at; while there are more, all records wait
/// that have no row.
const MANY: usize = 1_000;

/// Which of these records SQL or a link has removed. They do not come back before their
/// CRM was told: it would be as records of their own, to be made on the other sides, too.
pub(crate) fn removed(mirror: &Mirror, records: &[String]) -> Result<Removed> {
    if records.is_empty() {
        return Ok(Removed::default());
    }
    let mut leaving: HashMap<String, i64> =
        writes::removals(mirror.id, records)?.into_iter().collect();
    let asked: HashSet<&String> = records.iter().collect();
    let waiting = match changes::removed(mirror.id, MANY)? {
        Some(few) => few.into_iter().filter(|id| asked.contains(id)).collect(),
        None => records.iter().cloned().collect(),
    };
    if !leaving.is_empty() {
        // Those that go with another one stay until they count as gone.
        let ids = leaving.keys().cloned().collect();
        for id in rows::there(&mirror.table, ids)? {
            leaving.remove(&id);
        }
    }
    Ok(Removed { leaving, waiting })
}

/// Records whose rows count as gone because we remove them, and that a page still shows.
pub(super) fn leaving(
    mirror: &Mirror,
    rows: &[Row],
    records: &HashMap<String, Record>,
) -> Result<HashSet<String>> {
    let gone = rows.iter().filter(|row| row.is_gone());
    let shown = gone.filter_map(|row| records.get(row.record_id.as_ref()?));
    let back: Vec<String> = (shown.filter(|r| !r.deleted).map(|r| r.id.clone())).collect();
    Ok(removed(mirror, &back)?.leaving.into_keys().collect())
}

/// The records of a page but those that SQL has removed. `wait` gets those of which
/// nobody knows yet what that means.
pub(crate) fn without_removed(
    mirror: &Mirror,
    mut records: Vec<Record>,
    present: &HashSet<String>,
    wait: &mut Vec<String>,
) -> Result<Vec<Record>> {
    let ids = records.iter().map(|r| &r.id);
    let ids: Vec<String> = ids.filter(|id| !present.contains(*id)).cloned().collect();
    let removed = removed(mirror, &ids)?;
    records.retain(|r| {
        let waits = removed.waiting.contains(&r.id) && !present.contains(&r.id);
        if waits {
            wait.push(r.id.clone());
        }
        !waits && !removed.leaving.contains_key(&r.id)
    });
    Ok(records)
}

/// Records are gone because we removed them. Of those that SQL removed rows stay, or a
/// page that was read before, or a search whose index lags, would bring them back.
pub(crate) fn bury<'w>(
    mirror: &Mirror,
    gone: impl Iterator<Item = &'w WriteRow>,
    now: Millis,
) -> Result<()> {
    let gone: Vec<&WriteRow> = gone.collect();
    let row_ids: Vec<i64> = gone.iter().map(|row| row.row_id).collect();
    if row_ids.is_empty() {
        return Ok(());
    }
    rows::mark_deleted(&mirror.table, row_ids, true, &mirror.server)?;
    let records = gone
        .iter()
        .filter_map(|row| Some((row.row_id, row.record_id.clone()?)));
    leave_trace(mirror, records.collect(), now)
}

fn leave_trace(mirror: &Mirror, mut gone: Vec<(i64, String)>, at: Millis) -> Result<()> {
    let records = gone.iter().map(|(_, id)| id.clone()).collect();
    // Of an erased record nothing but its hash stays.
    let erased: HashSet<String> = lives::buried(mirror.id, records)?.into_iter().collect();
    gone.retain(|(_, id)| !erased.contains(id));
    let table = &mirror.table;
    // Where a constraint of the user's refuses a row without values it does without.
    let _refused =
        tx::in_subtransaction(|| Ok(lives::leave_trace(table, gone, &mirror.server, at)?));
    Ok(())
}

/// Events but those of records that SQL has removed: they are too late, or tell that it
/// is done.
fn still_wanted(
    world: &World,
    mirror: &Mirror,
    items: Vec<Inbound>,
    deferred: &mut Deferred,
) -> Result<(Vec<Inbound>, Vec<EventRow>)> {
    let ids: Vec<String> = items.iter().map(|i| i.change.record_id.clone()).collect();
    let removed = removed(mirror, &ids)?;
    let (mut wanted, mut lines) = (Vec::new(), Vec::new());
    for item in items {
        let record = &item.change.record_id;
        let row_id = removed.leaving.get(record).copied();
        if removed.waiting.contains(record) {
            deferred.push(put_off(&item, "locked"));
        } else if row_id.is_none() {
            wanted.push(item);
        } else if let (Some(row), ChangeKind::Delete) = (row_id, &item.change.kind) {
            leave_trace(mirror, vec![(row, record.clone())], item.change.occurred_at)?;
            lines.push(EventRow {
                row_id,
                ..record::told(mirror, &item, "tombstone")
            });
        } else {
            let line = given_up::told(world, mirror, item.source, &item.change);
            lines.extend(line.map(|line| EventRow {
                row_id,
                stream: item.stream,
                ..line
            }));
        }
    }
    Ok((wanted, lines))
}

/// Events of records that have no row: made here if the event carries the
/// whole record, else read first.
pub(super) fn apply(
    world: &World,
    mirror: &Mirror,
    items: Vec<Inbound>,
    deferred: &mut Deferred,
    now: Millis,
) -> Result<()> {
    let mut inserts: Vec<RowInsert> = Vec::new();
    let mut events: BTreeMap<String, EventRow> = BTreeMap::new();
    let mut wholes: HashMap<String, Inbound> = HashMap::new();
    let (items, mut lines) = still_wanted(world, mirror, items, deferred)?;
    for item in items {
        if creates::is_ours(world, mirror, &item.change)? {
            continue;
        }
        let whole = item.change.kind == ChangeKind::Create
            && !item.change.fields.is_empty()
            && item.change.reread.is_empty();
        match item.change.kind {
            ChangeKind::Association { .. } | ChangeKind::Overflow | ChangeKind::PrivacyDelete => {}
            ChangeKind::Delete => {
                let (id, at) = (item.change.record_id.clone(), item.change.occurred_at);
                inserts.push(arrivals::tombstone(mirror, id, at));
                let line = record::told(mirror, &item, "tombstone");
                events.insert(item.change.record_id.clone(), line);
            }
            _ if whole && !events.contains_key(&item.change.record_id) => {
                let (row, event) = arrivals::row_of(world, mirror, &item);
                inserts.push(row);
                events.insert(item.change.record_id.clone(), event);
                wholes.insert(item.change.record_id.clone(), item);
            }
            _ => deferred.push(put_off(&item, "read")),
        }
    }
    let met = arrivals::meet(world, mirror, inserts, now)?;
    for record in &met.wait {
        deferred.extend(wholes.get(record).map(|item| put_off(item, "locked")));
    }
    let columns: Vec<_> = mirror.columns.iter().collect();
    let made = rows::insert(&mirror.table, &columns, met.new)?;
    let mut fresh = Vec::new();
    for (record, row_id) in met.adopted {
        lines.extend(events.remove(&record).map(|event| EventRow {
            row_id: Some(row_id),
            ..event
        }));
    }
    for (row_id, record) in made {
        if let Some(mut event) = record.and_then(|r| events.remove(&r)) {
            event.row_id = Some(row_id);
            if event.kind == "create" {
                fresh.push(row_id);
            }
            lines.push(event);
        }
    }
    flush::append(world, lines)?;
    creates::after_remote_create(world, mirror, fresh, now)
}
