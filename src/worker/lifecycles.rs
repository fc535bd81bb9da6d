//! What people answer about whole records: matches, creates, removals, merges.

use crm_core::model::Millis;
use crm_core::plan::DeletedBy;

use crate::pg::store::reconciles;
use crate::pg::store::reviews::{self, Answer};
use crate::pg::store::rows;
use crate::pg::store::spi::Result;
use crate::pg::store::{ends, ledger, writes};
use crate::worker::creates;
use crate::worker::erasure;
use crate::worker::flush;
use crate::worker::kept;
use crate::worker::rematch;
use crate::worker::removals::{self, Removal};
use crate::worker::reviews as queue;
use crate::worker::world::{Mirror, World};

/// Carries out an answer; 1 if the question is done with.
pub(crate) fn settle(world: &World, answer: &Answer, now: Millis) -> Result<usize> {
    let Some(mirror) = world.mirrors.get(&answer.mirror) else {
        return reviews::remove(vec![answer.id]);
    };
    let row = answer.row_id;
    match (answer.kind.as_str(), answer.resolution.as_str()) {
        ("match", "match") => tie(world, answer)?,
        // The row is a thing of its own: it gets its own counterpart.
        ("match", _) => {
            let link = answer.link.as_deref();
            creates::make_counterparts(world, mirror, vec![row], &mirror.server, link)?;
        }
        ("create", "retry") => retry(world, mirror, row, now)?,
        ("create", word) => {
            let made = answer.value.clone().filter(|_| word == "made");
            writes::answer_held_create(mirror.id, row, made, word == "discard")?;
        }
        // What a user holds comes later: the answer waits with it.
        ("delete", "keep") if !keep(world, mirror, answer, now)? => return Ok(0),
        ("delete", "keep") => {}
        ("delete", _) => stand(world, mirror, answer, now)?,
        ("missing", word) => {
            let asked: serde_json::Value =
                serde_json::from_str(&answer.question).unwrap_or_default();
            let run = asked["candidates"]["run"].as_i64().unwrap_or_default();
            reconciles::answer(run, word == "delete")?;
        }
        ("merge", "delete") => remove(world, mirror, row, now)?,
        ("erase", "delete") => {
            remove(world, mirror, row, now)?;
            erasure::erase(world, mirror, vec![row], Vec::new(), now)?;
        }
        _ => {}
    }
    flush::append(world, vec![queue::event(world, mirror, answer, &[])])?;
    let taken = reviews::remove(vec![answer.id])?;
    if answer.resolution == "match" {
        rematch::rest(answer)?;
    }
    Ok(taken)
}

/// The create is sent again, or tried for the first time.
fn retry(world: &World, mirror: &Mirror, row: i64, now: Millis) -> Result<()> {
    match writes::answer_held_create(mirror.id, row, None, false)? {
        0 => creates::after_remote_create(world, mirror, vec![row], now),
        _ => Ok(()),
    }
}

/// Two rows are one thing.
fn tie(world: &World, answer: &Answer) -> Result<()> {
    let mut links = world.groups.iter().flat_map(|g| &g.links);
    let link = links.find(|l| Some(&l.name) == answer.link.as_ref());
    let pair = answer.value.as_deref().and_then(|v| {
        let (left, right) = v.split_once(',')?;
        Some((left.parse().ok()?, right.parse().ok()?))
    });
    if let (Some(link), Some((left, right))) = (link, pair) {
        ledger::tie(&[(link.left_mirror, left), (link.right_mirror, right)])?;
    }
    Ok(())
}

/// Whether the removed row is still there: its CRM removed the record, not SQL.
fn present(mirror: &Mirror, row: i64) -> Result<bool> {
    Ok(!rows::present_rows(&mirror.table, vec![row])?.is_empty())
}

/// The removal is undone; false if a user holds the row.
fn keep(world: &World, mirror: &Mirror, answer: &Answer, now: Millis) -> Result<bool> {
    if present(mirror, answer.row_id)? {
        kept::revive(world, mirror, answer.row_id, answer.entity, now)
    } else {
        kept::reinsert(mirror, answer.row_id, answer.entity)
    }
}

/// The removal stands.
fn stand(world: &World, mirror: &Mirror, answer: &Answer, now: Millis) -> Result<()> {
    let row = answer.row_id;
    let mut removal = Removal {
        confirmed: true,
        ..Removal::remote(mirror, now)
    };
    if !present(mirror, row)? {
        removal.by = DeletedBy::Local;
        removal.origin = "local";
        let record = ends::last_deleted(mirror.id, row)?.and_then(|(record, _)| record);
        let gone = rows::Row {
            row_id: row,
            record_id: record,
            ..rows::Row::default()
        };
        let write = removals::delete_write(world, mirror, &gone, removal);
        writes::enqueue(vec![write])?;
        if let Some(entity) = answer.entity {
            ends::join_entity(entity, &[(mirror.id, row)])?;
        }
    }
    removals::removed(world, mirror, &[row], removal)?;
    Ok(())
}

/// A record goes because a person said so.
fn remove(world: &World, mirror: &Mirror, row: i64, now: Millis) -> Result<()> {
    let removal = Removal {
        origin: "local",
        confirmed: true,
        ..Removal::remote(mirror, now)
    };
    let found = rows::lock_by_row(&mirror.table, &[], vec![row])?;
    for row in found.iter().filter(|r| !r.deleted || r.hidden) {
        writes::enqueue(vec![removals::delete_write(world, mirror, row, removal)])?;
    }
    rows::mark_deleted(&mirror.table, vec![row], true, "local")?;
    removals::removed(world, mirror, &[row], removal)?;
    Ok(())
}
