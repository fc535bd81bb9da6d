//! Records that live on as others: merged by their CRM, or converted into
//! records of another object.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};

use crm_core::model::{ChangeKind, Millis, Record};

use crate::pg::store::ends::{self, Ended};
use crate::pg::store::ledger::{self, EventRow};
use crate::pg::store::lives;
use crate::pg::store::reviews::{self, Kind, RowQuestion};
use crate::pg::store::rows::{self, Row};
use crate::pg::store::spi::Result;
use crate::pg::store::streams;
use crate::pg::store::writes::{self, WriteRow};
use crate::worker::erasure;
use crate::worker::flush;
use crate::worker::given_up;
use crate::worker::ingest::Inbound;
use crate::worker::pages;
use crate::worker::rematch;
use crate::worker::removals;
use crate::worker::returns;
use crate::worker::reviews as questions;
use crate::worker::world::{Mirror, World};

/// Carries out the merges that events announce; answers the records whose rows
/// a user holds, so that their events must wait.
pub(crate) fn told(
    world: &World,
    mirror: &Mirror,
    items: &[Inbound],
    now: Millis,
) -> Result<HashSet<String>> {
    let mut blocked = HashSet::new();
    for item in items {
        if let ChangeKind::Merge { into, losers } = &item.change.kind
            && !merge(world, mirror, into, losers, item.change.occurred_at, now)?
        {
            blocked.insert(item.change.record_id.clone());
        }
    }
    Ok(blocked)
}

/// Whether a removal of this object may be a merge, which only a read tells.
pub(crate) fn hidden(world: &World, mirror: &Mirror) -> bool {
    let connector = world.connectors.get(&mirror.server);
    connector.is_some_and(|c| c.hides_merges(&mirror.object))
}

/// Carries out the merges that a page shows: `(loser, survivor)`, and what it shows of
/// the survivors.
pub(crate) fn shown(
    world: &World,
    mirror: &Mirror,
    pairs: &[(String, String)],
    records: &[Record],
    now: Millis,
) -> Result<()> {
    let mut of_survivor: BTreeMap<&String, Vec<String>> = BTreeMap::new();
    for (loser, survivor) in pairs.iter().filter(|(l, s)| l != s) {
        of_survivor.entry(survivor).or_default().push(loser.clone());
    }
    for (survivor, mut losers) in of_survivor {
        if let Some(record) = records.iter().find(|r| r.id == *survivor) {
            by_likeness(mirror, &mut losers, record)?;
        }
        merge(world, mirror, survivor, &losers, now, now)?;
    }
    Ok(())
}

/// Puts last what the survivor looks most like: whose values counted no page says.
fn by_likeness(mirror: &Mirror, losers: &mut [String], survivor: &Record) -> Result<()> {
    if losers.len() < 2 {
        return Ok(());
    }
    let columns: Vec<_> = mirror.columns.iter().collect();
    let rows = rows::lock_by_record(&mirror.table, &columns, losers.to_vec())?;
    losers.sort_by_cached_key(|loser| {
        let row = rows.iter().find(|r| r.record_id.as_ref() == Some(loser));
        Reverse(row.map_or(usize::MAX, |row| pages::differences(mirror, row, survivor)))
    });
    Ok(())
}

/// `losers` became `into`; the last of them is the one whose values counted.
/// False if a user holds one of the rows. Told twice is told once.
fn merge(
    world: &World,
    mirror: &Mirror,
    into: &str,
    losers: &[String],
    at: Millis,
    now: Millis,
) -> Result<bool> {
    let mut ids = losers.to_vec();
    ids.push(into.to_owned());
    let present = rows::present(&mirror.table, ids.clone())?;
    let found = rows::lock_by_record(&mirror.table, &[], ids)?;
    if found.len() < present.len() {
        return Ok(false);
    }
    if !lives::buried(mirror.id, vec![into.to_owned()])?.is_empty() {
        // The person was forgotten before it was told who that had been.
        let rows = found.iter().map(|r| r.row_id).collect();
        erasure::erase(world, mirror, rows, losers.to_vec(), now)?;
        return Ok(true);
    }
    let of_id = |id: &str| found.iter().find(|r| r.record_id.as_deref() == Some(id));
    let mut lost: Vec<&Row> = losers
        .iter()
        .filter_map(|id| of_id(id))
        .filter(|r| !r.deleted)
        .collect();
    let Some(primary) = lost.pop() else {
        return Ok(true);
    };
    let survivor = match of_id(into) {
        Some(row) => {
            lost.insert(0, primary);
            row.row_id
        }
        // The new id is another name of the row that counted.
        None => {
            lives::rename(&mirror.table, primary.row_id, into)?;
            ends::readdress(mirror.id, primary.row_id, into)?;
            primary.row_id
        }
    };
    let ended: Vec<i64> = lost.iter().map(|r| r.row_id).collect();
    let LeftOver {
        partners,
        questions,
        inherits,
    } = unite(mirror, survivor, &ended)?;
    let dropped = ends::drop_unsent(mirror.id, ended.clone())?;
    rows::mark_deleted(&mirror.table, ended.clone(), true, &mirror.server)?;
    ends::note_merged(mirror.id, ended.clone(), into)?;
    rematch::without(world, mirror, ended, now)?;
    for other in partners {
        ask(world, mirror, into, survivor, other)?;
    }
    note(world, mirror, survivor, into, losers, &dropped, at)?;
    let because = format!("its record was merged into {into} in {}", mirror.server);
    questions::ended(world, questions, mirror, &because, now)?;
    if inherits || of_id(into).is_some() {
        streams::defer(vec![returns::merged(mirror, into)])?;
    }
    Ok(true)
}

/// What is left of records that became part of another one.
#[derive(Default)]
struct LeftOver {
    /// Counterparts, mirror and row.
    partners: Vec<(i32, i64)>,
    /// Questions that are moot.
    questions: Vec<Ended>,
    /// The survivor has counterparts that it had not before.
    inherits: bool,
}

/// Gives the survivor the counterparts of those that ended, side by side. Where
/// it has one already the other is left over; answers those, untied.
fn unite(mirror: &Mirror, survivor: i64, ended: &[i64]) -> Result<LeftOver> {
    let mut own = entity_of(mirror.id, survivor)?;
    let mut left = LeftOver::default();
    for row in ended {
        let Some((entity, rows)) = entity_of(mirror.id, *row)? else {
            continue;
        };
        let others: Vec<(i32, i64)> = rows.into_iter().filter(|r| r.0 != mirror.id).collect();
        let Some((kept, sides)) = &mut own else {
            // The survivor had none: it takes over everything, and what is known of the
            // others.
            ends::join_entity(entity, &[(mirror.id, survivor)])?;
            ends::forget_side(entity, mirror.side)?;
            ends::hand_questions(mirror.id, *row, survivor)?;
            left.inherits |= !others.is_empty();
            own = Some((entity, others));
            continue;
        };
        for other in others {
            if sides.iter().any(|s| s.0 == other.0) {
                ledger::unlink_rows(other.0, vec![other.1])?;
                left.partners.push(other);
            } else {
                ends::join_entity(*kept, &[other])?;
                sides.push(other);
                left.inherits = true;
            }
        }
        left.questions.extend(ends::forget_states(entity)?);
    }
    Ok(left)
}

/// An entity and its rows: mirror and row id.
type Thing = (i64, Vec<(i32, i64)>);

/// A row's entity and all its rows.
fn entity_of(mirror: i32, row: i64) -> Result<Option<Thing>> {
    let xrefs = ledger::entities_of(mirror, vec![row])?;
    let entity = xrefs.first().map(|x| x.entity);
    Ok(entity.map(|e| (e, xrefs.iter().map(|x| (x.mirror, x.row_id)).collect())))
}

/// Two counterparts of one record remain.
fn ask(world: &World, mirror: &Mirror, into: &str, survivor: i64, other: (i32, i64)) -> Result<()> {
    let kept = entity_of(mirror.id, survivor)?
        .and_then(|(_, rows)| rows.into_iter().find(|r| r.0 == other.0));
    let table = world.mirrors.get(&other.0).map(|m| m.table.name.clone());
    let link = world.groups[mirror.group].links.iter().find(|l| {
        (l.left_mirror == mirror.id && l.right_mirror == other.0)
            || (l.right_mirror == mirror.id && l.left_mirror == other.0)
    });
    let candidates = serde_json::json!([
        {"table": mirror.table.name, "row": survivor, "record": into, "merged": true},
        {"table": table, "row": kept.map(|k| k.1), "tied": true},
        {"table": table, "row": other.1, "tied": false},
    ]);
    reviews::ask(&RowQuestion {
        kind: Kind::Merge,
        link: link.map(|l| l.name.as_str()),
        mirror: other.0,
        row_id: other.1,
        entity: None,
        reason: &format!(
            "its counterpart was merged in {} into one that has another counterpart",
            mirror.server
        ),
        candidates: &candidates.to_string(),
    })?;
    Ok(())
}

/// The line of the ledger, with the unsent changes that went with the losers.
fn note(
    world: &World,
    mirror: &Mirror,
    survivor: i64,
    into: &str,
    losers: &[String],
    dropped: &[(i64, String, String)],
    at: Millis,
) -> Result<()> {
    let lost: Vec<serde_json::Value> = dropped
        .iter()
        .map(|(_, origin, vals)| serde_json::json!({"origin": origin, "value": vals}))
        .collect();
    let decision = serde_json::json!([{
        "step": "merge", "winner": mirror.server, "value": into, "merged": losers, "losers": lost,
    }]);
    flush::append(
        world,
        vec![EventRow {
            mirror: mirror.id,
            row_id: Some(survivor),
            record_id: Some(into.to_owned()),
            kind: "merge",
            origin: mirror.server.clone(),
            source: "webhook".to_owned(),
            occurred_at: at,
            decision: Some(decision.to_string()),
            ..EventRow::default()
        }],
    )
}

/// A record that lives on as a record of another object.
#[derive(Clone, Debug)]
pub(crate) struct Conversion {
    pub(crate) record: String,
    object: &'static str,
    into: String,
}

/// The conversions that these values of a record tell.
pub(crate) fn conversion(
    world: &World,
    mirror: &Mirror,
    record: &str,
    values: &[(String, Option<String>)],
) -> Option<Conversion> {
    let connector = world.connectors.get(&mirror.server)?;
    let fields = connector.successor_fields(&mirror.object);
    fields.iter().find_map(|(field, object)| {
        let into = values.iter().find(|(n, _)| n == field)?.1.clone()?;
        Some(Conversion {
            record: record.to_owned(),
            object,
            into,
        })
    })
}

/// The entities of converted records go on with their successors, now or when
/// these arrive.
pub(crate) fn convert(
    world: &World,
    mirror: &Mirror,
    conversions: Vec<Conversion>,
    now: Millis,
) -> Result<()> {
    for conversion in conversions {
        let found = rows::lock_by_record(&mirror.table, &[], vec![conversion.record.clone()])?;
        let Some(row) = found.first() else { continue };
        let Some((entity, others)) = entity_of(mirror.id, row.row_id)? else {
            continue;
        };
        let dropped = ends::drop_unsent(mirror.id, vec![row.row_id])?;
        ends::note_merged(mirror.id, vec![row.row_id], &conversion.into)?;
        let mut events = vec![converted_event(mirror, row, entity, &conversion, now)];
        let lost = dropped.iter().flat_map(|(_, o, v)| given_up::values(o, v));
        let (record, by) = (row.record_id.clone(), ("convert", mirror.server.as_str()));
        events.extend(given_up::line(
            mirror,
            row.row_id,
            record,
            by,
            lost.collect(),
            now,
        ));
        flush::append(world, events)?;
        let Some(target) = world
            .mirror_of(&mirror.server, conversion.object)
            .filter(|t| t.group == mirror.group)
        else {
            continue;
        };
        let heir = rows::lock_by_record(&target.table, &[], vec![conversion.into.clone()])?;
        if let Some(heir) = heir.first() {
            let others: Vec<_> = others.into_iter().filter(|o| o.0 != mirror.id).collect();
            let heir = (heir.row_id, conversion.into.as_str());
            succeed(world, target, entity, heir, &others, now)?;
        }
    }
    Ok(())
}

fn converted_event(
    mirror: &Mirror,
    row: &Row,
    entity: i64,
    conversion: &Conversion,
    now: Millis,
) -> EventRow {
    let decision = serde_json::json!([{
        "step": "merge", "winner": mirror.server, "value": conversion.into, "object": conversion.object,
    }]);
    EventRow {
        mirror: mirror.id,
        row_id: Some(row.row_id),
        record_id: row.record_id.clone(),
        entity: Some(entity),
        kind: "convert",
        origin: mirror.server.clone(),
        source: "link".to_owned(),
        occurred_at: now,
        decision: Some(decision.to_string()),
        ..EventRow::default()
    }
}

/// The successor's row joins the entity. If it found counterparts of its own
/// meanwhile, those of the entity that it replaces are left over.
fn succeed(
    world: &World,
    target: &Mirror,
    entity: i64,
    (heir, into): (i64, &str),
    others: &[(i32, i64)],
    now: Millis,
) -> Result<()> {
    take_back_creates(world, target, heir, others)?;
    let own = entity_of(target.id, heir)?.filter(|(_, rows)| rows.len() > 1);
    match own {
        None => ends::join_entity(entity, &[(target.id, heir)])?,
        Some((kept, rows)) => {
            for other in others.iter().filter(|o| !rows.contains(o)) {
                if rows.iter().any(|r| r.0 == other.0) {
                    ledger::unlink_rows(other.0, vec![other.1])?;
                    ask(world, target, into, heir, *other)?;
                } else {
                    ends::join_entity(kept, &[*other])?;
                }
            }
        }
    }
    removals::succeeded(world, target, vec![heir], now)
}

/// Where the successor came first, counterparts may wait to be made of it that the
/// entity has already: those that nobody has sent are not made.
fn take_back_creates(
    world: &World,
    target: &Mirror,
    heir: i64,
    others: &[(i32, i64)],
) -> Result<()> {
    let Some((_, rows)) = entity_of(target.id, heir)? else {
        return Ok(());
    };
    for (mirror, row) in rows.into_iter().filter(|r| r.0 != target.id) {
        let other = others.iter().find(|o| o.0 == mirror && o.1 != row);
        let (Some(other), Some(mirror)) = (other, world.mirrors.get(&mirror)) else {
            continue;
        };
        let sent = |w: &WriteRow| matches!(w.state.as_str(), "in_flight" | "unknown");
        let pending = writes::pending(vec![mirror.id], vec![row])?;
        let create = pending.iter().any(|w| w.kind == "create");
        if !create || pending.iter().any(sent) {
            continue;
        }
        let kept = rows::lock_by_row(&mirror.table, &[], vec![other.1])?;
        if let Some(record) = kept.first().and_then(|r| r.record_id.as_ref()) {
            writes::withdraw_creates(mirror.id, vec![row])?;
            rows::replace(&mirror.table, mirror.id, row, record)?;
        }
    }
    Ok(())
}

/// New rows whose records succeed others take their places; the rest is
/// returned.
pub(crate) fn inherit(
    world: &World,
    mirror: &Mirror,
    row_ids: Vec<i64>,
    now: Millis,
) -> Result<Vec<i64>> {
    if world.groups[mirror.group].group.sides.len() < 2 || row_ids.is_empty() {
        return Ok(row_ids);
    }
    let made = rows::lock_by_row(&mirror.table, &[], row_ids.clone())?;
    let of_record: HashMap<String, i64> = made
        .into_iter()
        .filter_map(|r| Some((r.record_id?, r.row_id)))
        .collect();
    let mut heirs = HashSet::new();
    for (record, entity) in ends::inherited(mirror.id, of_record.keys().cloned().collect())? {
        if let Some(row) = of_record.get(&record) {
            ends::join_entity(entity, &[(mirror.id, *row)])?;
            heirs.insert(*row);
        }
    }
    removals::succeeded(world, mirror, heirs.iter().copied().collect(), now)?;
    Ok(row_ids.into_iter().filter(|r| !heirs.contains(r)).collect())
}
