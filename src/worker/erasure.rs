//! Privacy erasure: values leave rows, ledger, queues and questions; a hashed
//! tombstone stays and keeps late events and pages from bringing them back.

use std::collections::HashSet;

use crm_core::model::{ChangeKind, Millis, Record};

use crate::pg::store::ledger;
use crate::pg::store::reviews::{self, Kind, RowQuestion};
use crate::pg::store::rows;
use crate::pg::store::spi::Result;
use crate::pg::store::{ends, lives};
use crate::worker::ingest::Inbound;
use crate::worker::removals::{self, Removal};
use crate::worker::world::{Mirror, World};

/// Forgets rows of a mirror, and records that may have none (any more).
pub(crate) fn erase(
    world: &World,
    mirror: &Mirror,
    row_ids: Vec<i64>,
    mut records: Vec<String>,
    now: Millis,
) -> Result<()> {
    if row_ids.is_empty() && records.is_empty() {
        return Ok(());
    }
    let found = rows::lock_by_row(&mirror.table, &[], row_ids.clone())?;
    records.extend(found.into_iter().filter_map(|r| r.record_id));
    lives::bury(mirror.id, records.clone())?;
    let xrefs = ledger::entities_of(mirror.id, row_ids.clone())?;
    let partners: Vec<(i32, i64)> = xrefs
        .iter()
        .filter(|x| x.mirror != mirror.id)
        .map(|x| (x.mirror, x.row_id))
        .collect();
    let removal = Removal {
        confirmed: true,
        ..Removal::remote(mirror, now)
    };
    removals::removed(world, mirror, &row_ids, removal)?;
    // Whoever still describes the person is for a steward to say.
    for (other, row) in partners {
        let Some(other) = world.mirrors.get(&other) else {
            continue;
        };
        if rows::lock_by_row(&other.table, &[], vec![row])?
            .iter()
            .any(|r| !r.deleted)
        {
            ask(world, mirror, other, row)?;
        }
        ends::erase(other.id, vec![row], Vec::new())?;
    }
    ends::erase(mirror.id, row_ids.clone(), records)?;
    let columns: Vec<_> = mirror.columns.iter().collect();
    lives::erase(&mirror.table, &columns, row_ids.clone())?;
    ledger::unlink_rows(mirror.id, row_ids)?;
    Ok(())
}

fn ask(world: &World, mirror: &Mirror, other: &Mirror, row: i64) -> Result<()> {
    let links = &world.groups[mirror.group].links;
    let ties = |l: &&crate::pg::store::config::LinkRow| {
        [l.left_mirror, l.right_mirror].contains(&mirror.id)
            && [l.left_mirror, l.right_mirror].contains(&other.id)
    };
    reviews::ask(&RowQuestion {
        kind: Kind::Erase,
        link: links.iter().find(ties).map(|l| l.name.as_str()),
        mirror: other.id,
        row_id: row,
        entity: None,
        reason: &format!("the same person was erased in {}", mirror.server),
        candidates: "[]",
    })?;
    Ok(())
}

/// What is left of events of records without a row: those of erased records
/// are dropped, and erasures of records that never had one are noted.
pub(crate) fn absent(
    world: &World,
    mirror: &Mirror,
    items: Vec<Inbound>,
    now: Millis,
) -> Result<Vec<Inbound>> {
    if items.is_empty() {
        return Ok(items);
    }
    let told: Vec<String> = items
        .iter()
        .filter(|i| i.change.kind == ChangeKind::PrivacyDelete)
        .map(|i| i.change.record_id.clone())
        .collect();
    erase(world, mirror, Vec::new(), told, now)?;
    let ids = items.iter().map(|i| i.change.record_id.clone()).collect();
    let erased: HashSet<String> = lives::buried(mirror.id, ids)?.into_iter().collect();
    Ok(items
        .into_iter()
        .filter(|i| !erased.contains(&i.change.record_id))
        .collect())
}

/// The records of a page but those that have no row because they were erased.
pub(crate) fn without_erased(
    mirror: &Mirror,
    records: Vec<Record>,
    ids: &[String],
    present: &HashSet<String>,
) -> Result<Vec<Record>> {
    let unknown: Vec<String> = ids
        .iter()
        .filter(|i| !present.contains(*i))
        .cloned()
        .collect();
    if unknown.is_empty() {
        return Ok(records);
    }
    let erased: HashSet<String> = lives::buried(mirror.id, unknown)?.into_iter().collect();
    Ok(records
        .into_iter()
        .filter(|r| !erased.contains(&r.id))
        .collect())
}
