//! Pages that the CRM answered with, applied in one transaction with the
//! offset that covers them; a record that cannot be stored is parked.

use std::rc::Rc;

use crm_core::model::{Millis, Page, Record};

use crate::pg::store::config;
use crate::pg::store::rows;
use crate::pg::store::streams::{self, Poison};
use crate::pg::tx::{self, SqlError};
use crate::worker::engine::{Engine, Step};
use crate::worker::flush;
use crate::worker::inbound::{self, Arrival};
use crate::worker::merges;
use crate::worker::pages::{self, Via};
use crate::worker::removals::{self, Removal};
use crate::worker::returns::Who;
use crate::worker::usage::Way;
use crate::worker::world::{Mirror, World};

/// Halves a failing page until the record that cannot be stored stands alone.
fn bisect_page(
    world: &World,
    mirror: &Mirror,
    via: Via,
    records: &[Record],
    bad: &pages::Unreadable,
    now: Millis,
) -> Step<pages::PageApplied> {
    let apply = || pages::apply(world, mirror, via, records.to_vec(), bad, now, false);
    let whole = tx::in_transaction(|| Ok(apply()?));
    match whole {
        Err(error) if config::is_passing(&error) => Err(error),
        Err(error) if records.len() <= 1 => {
            for record in records {
                tx::in_transaction(|| {
                    streams::park(&Poison {
                        mirror: Some(mirror.id),
                        server: &mirror.server,
                        source: via.source,
                        record_id: &record.id,
                        change: None,
                        sqlstate: &error.sqlstate,
                        error: &error.message,
                        advice: "Mend what the error names (a CHECK, a trigger, a column type), then call crm.dead_letter_retry.",
                    })?;
                    Ok(())
                })?;
            }
            Ok(pages::PageApplied::default())
        }
        Err(_) => {
            let (a, b) = records.split_at(records.len() / 2);
            let mut applied = bisect_page(world, mirror, via, a, bad, now)?;
            let second = bisect_page(world, mirror, via, b, bad, now)?;
            applied.inserted += second.inserted;
            applied.examined += second.examined;
            applied.locked.extend(second.locked);
            applied.differed.extend(second.differed);
            Ok(applied)
        }
        Ok(applied) => Ok(applied),
    }
}

/// Applies a page of a mirror; `advance` moves its offset in the same transaction.
pub(crate) fn page(
    engine: &mut Engine,
    mirror: i32,
    via: Via,
    page: Page,
    now: Millis,
    advance: impl Fn(&pages::PageApplied) -> Result<(), SqlError>,
) -> Step<pages::PageApplied> {
    let world = &engine.world;
    let Some(m) = world.mirrors.get(&mirror) else {
        return Ok(pages::PageApplied::default());
    };
    if page.ids_only {
        let object = m.object.clone();
        let arrivals = page
            .rereads(&object)
            .into_iter()
            .map(|change| Arrival {
                server: m.server.clone(),
                source: via.source,
                stream: via.stream,
                change: Rc::new(change),
            })
            .collect();
        // What is to be read is stored before the offset passes it.
        inbound::apply(engine, arrivals, Vec::new(), Vec::new(), now)?;
        let applied = pages::PageApplied {
            examined: page.records.len(),
            ..pages::PageApplied::default()
        };
        tx::in_transaction(|| advance(&applied))?;
        return Ok(applied);
    }
    // A first copy is read again with care when a page of it fails; only then
    // is it worth keeping a second copy of the page.
    let watch = engine.watches.get(&mirror);
    let careful = via.source != "backfill" || watch.is_some_and(|w| w.careful);
    let hope = !careful && !watch.is_some_and(|w| w.met);
    let kept = if careful {
        page.records.clone()
    } else {
        Vec::new()
    };
    let merged = page.merged;
    let whole = tx::in_transaction(|| {
        // Whoever lives on under another id is known before anything is matched.
        merges::shown(world, m, &merged, &page.records, now)?;
        let applied = pages::apply(world, m, via, page.records, &page.unreadable, now, hope)?;
        advance(&applied)?;
        Ok(applied)
    });
    let applied = match whole {
        Err(error) if !config::is_passing(&error) && !kept.is_empty() => {
            let applied = bisect_page(world, m, via, &kept, &page.unreadable, now)?;
            tx::in_transaction(|| advance(&applied))?;
            applied
        }
        whole => whole?,
    };
    note(engine, mirror, via, &applied);
    Ok(applied)
}

/// What the session remembers of a page that is applied.
fn note(engine: &mut Engine, mirror: i32, via: Via, applied: &pages::PageApplied) {
    let changed = applied.inserted + applied.updated;
    engine
        .usage
        .changed(mirror, Way::named(via.source), changed);
    engine.watch(mirror).met |= applied.met;
    // A first copy causes no writes.
    engine.may_send |= via.source != "backfill";
    // Who reads records by their ids asks for these again.
    if via.source != "read" {
        let watch = engine.watch(mirror);
        let known = |id: &&String| !watch.read_again.contains_key(*id);
        let held: Vec<String> = applied.locked.iter().filter(known).cloned().collect();
        watch.reads.extend(held);
    }
}

/// Records that turned out not to exist any more.
pub(crate) fn gone(
    world: &World,
    mirror: &Mirror,
    via: Via,
    missing: Vec<String>,
    now: Millis,
) -> Result<(), SqlError> {
    removed_by(world, mirror, via, missing, &Who::default(), now)
}

/// [`gone`], where events told who removed them.
pub(crate) fn removed_by(
    world: &World,
    mirror: &Mirror,
    via: Via,
    missing: Vec<String>,
    who: &Who,
    now: Millis,
) -> Result<(), SqlError> {
    if missing.is_empty() {
        return Ok(());
    }
    let rows = rows::lock_by_record(&mirror.table, &[], missing)?;
    let rows: Vec<_> = rows.iter().filter(|r| !r.is_gone()).collect();
    let row_ids: Vec<i64> = rows.iter().map(|r| r.row_id).collect();
    let lines = rows
        .iter()
        .map(|r| {
            let mut line = pages::existence(mirror, via, r, "delete", now);
            who.name(mirror, &mut line);
            line
        })
        .collect();
    flush::append(world, lines)?;
    // First: a removal that does not stand brings the row back.
    rows::mark_deleted(&mirror.table, row_ids.clone(), true, &mirror.server)?;
    removals::removed(world, mirror, &row_ids, Removal::remote(mirror, now))?;
    Ok(())
}
