//! Privacy erasure: values leave rows, ledger, queues and questions; a hashed
//! tombstone stays and keeps late events and pages from bringing them back.

use std::collections::HashSet;

use crm_core::model::{ChangeKind, Millis, Record};

use crate::pg::store::ledger;
use crate::pg::store::reviews::{self, Kind, RowQuestion};
use crate::pg::store::rows;
use crate::pg::store::spi::Result;
use crate::pg::store::writes;
use crate::pg::store::{ends, lives, streams};
use crate::worker::flush;
use crate::worker::ingest::Inbound;
use crate::worker::removals::{self, Removal};
use crate::worker::world::{Mirror, World};

/// Forgets rows of a mirror, and records that may have none (any more). What
/// was merged into them is the same person.
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
    let own = ends::merged_into(mirror.id, row_ids.clone(), records.clone())?;
    let others = ends::once_one_with(mirror.id, own.clone())?;
    let tied: HashSet<(i32, i64)> = ledger::entities_of(mirror.id, row_ids.clone())?
        .iter()
        .map(|x| (x.mirror, x.row_id))
        .collect();
    let went: HashSet<(i32, i64)> = ends::removed_with(mirror.id, own.clone(), &others)?
        .into_iter()
        .collect();
    let removal = Removal {
        confirmed: true,
        ..Removal::remote(mirror, now)
    };
    removals::removed(world, mirror, &row_ids, removal)?;
    forget(mirror, own, records)?;
    for at in others {
        if let Some(other) = world.mirrors.get(&at.0) {
            let tie = match (tied.contains(&at), went.contains(&at)) {
                (true, _) => Tie::Stood,
                (false, true) => Tie::Removed,
                (false, false) => Tie::None,
            };
            follow(world, mirror, other, at.1, tie)?;
        }
    }
    Ok(())
}

/// Values leave the rows and everything that the engine keeps of them.
fn forget(mirror: &Mirror, row_ids: Vec<i64>, mut records: Vec<String>) -> Result<()> {
    let found = rows::lock_by_row(&mirror.table, &[], row_ids.clone())?;
    records.extend(found.into_iter().filter_map(|r| r.record_id));
    lives::bury(mirror.id, records.clone())?;
    ends::erase(mirror.id, row_ids.clone(), records)?;
    let columns: Vec<_> = mirror.columns.iter().collect();
    lives::erase(&mirror.table, &columns, row_ids.clone())?;
    ledger::unlink_rows(mirror.id, row_ids)?;
    Ok(())
}

/// How a row was one with an erased one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tie {
    Stood,
    /// Until the link removed its record because the other was removed.
    Removed,
    /// Once, perhaps.
    None,
}

/// What becomes of a row that is, or once was, one with an erased one: it is
/// forgotten, too, if the link took its record away as well or it never had
/// one. Whoever still describes the person is for a steward to say.
fn follow(world: &World, erased: &Mirror, other: &Mirror, row: i64, tie: Tie) -> Result<()> {
    let found = rows::lock_by_row(&other.table, &[], vec![row])?;
    let (forgotten, ended) = match found.first() {
        Some(r) if r.record_id.is_none() => (r.deleted, !under_way(other, row)?),
        Some(r) => (false, r.is_gone()),
        None => (
            rows::present_rows(&other.table, vec![row])?.is_empty(),
            false,
        ),
    };
    if forgotten {
        return Ok(());
    }
    if tie != Tie::None && ended {
        return forget(other, vec![row], Vec::new());
    }
    if tie == Tie::Stood {
        ends::erase(other.id, vec![row], Vec::new())?;
        // What was on its way there was forgotten, and its row may show it.
        let record = found.into_iter().find_map(|r| r.record_id);
        let reread = record.map(|id| flush::reread(other.id, id));
        streams::defer(reread.into_iter().collect())?;
    }
    ask(world, erased, other, row)
}

/// Whether a record may be made of a row at this moment.
fn under_way(mirror: &Mirror, row: i64) -> Result<bool> {
    let pending = writes::pending(vec![mirror.id], vec![row])?;
    let sent = |w: &writes::WriteRow| matches!(w.state.as_str(), "in_flight" | "unknown");
    Ok(pending.iter().any(sent))
}

fn ask(world: &World, mirror: &Mirror, other: &Mirror, row: i64) -> Result<()> {
    let links = &world.groups[mirror.group].links;
    let of = |id: i32| {
        links
            .iter()
            .filter(move |l| [l.left_mirror, l.right_mirror].contains(&id))
    };
    let both = of(other.id).find(|l| [l.left_mirror, l.right_mirror].contains(&mirror.id));
    let link = both.or_else(|| of(other.id).next());
    reviews::ask(&RowQuestion {
        kind: Kind::Erase,
        link: link.map(|l| l.name.as_str()),
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
