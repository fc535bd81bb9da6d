//! Events of records that a mirror does not hold yet.

use std::collections::{BTreeMap, HashMap};

use crm_core::model::{ChangeKind, Millis};

use crate::pg::store::ledger::EventRow;
use crate::pg::store::rows::{self, RowInsert};
use crate::pg::store::spi::Result;
use crate::worker::arrivals;
use crate::worker::creates;
use crate::worker::flush;
use crate::worker::ingest::{Deferred, Inbound, put_off};
use crate::worker::record;
use crate::worker::world::{Mirror, World};

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
                inserts.push(arrivals::tombstone(mirror, &item.change));
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
    let mut lines = Vec::new();
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
