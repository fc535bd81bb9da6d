//! Records that begin or end: matching, creating and removing on other sides.

use std::collections::{BTreeMap, HashMap, HashSet};

use crm_core::mapping;
use crm_core::model::{Change, ChangeKind, Millis, Record};

use crate::pg::store::config::LinkRow;
use crate::pg::store::ledger;
use crate::pg::store::matches;
use crate::pg::store::reviews::{self, Kind, RowQuestion};
use crate::pg::store::rows::{self, Row, RowInsert};
use crate::pg::store::spi::Result;
use crate::pg::store::writes::{self, NewWrite};
use crate::worker::cases;
use crate::worker::flush;
use crate::worker::merges;
use crate::worker::record;
use crate::worker::removals;
use crate::worker::world::{Mirror, World};

/// The value of our unique field for a row: names installation, mirror and row.
pub(crate) fn unique_value(installation: &str, mirror: i32, row_id: i64) -> String {
    format!("{installation}-{mirror}-{row_id}")
}

/// The row that a unique value names, if it is ours and of this mirror.
pub(crate) fn row_of_unique(installation: &str, mirror: i32, value: &str) -> Option<i64> {
    let rest = value.strip_prefix(installation)?.strip_prefix('-')?;
    let (of, row) = rest.split_once('-')?;
    (of.parse() == Ok(mirror)).then(|| row.parse().ok())?
}

/// Records that a create of ours made but whose answer has not come: their row
/// gets its id here. The others are returned.
pub(crate) fn adopt_ours(
    world: &World,
    mirror: &Mirror,
    records: Vec<Record>,
) -> Result<Vec<Record>> {
    if mirror.unique_field.is_none() {
        return Ok(records);
    }
    let mut ours: HashMap<String, i64> = HashMap::new();
    for record in &records {
        let row = record
            .values
            .get(mirror.columns.len())
            .and_then(Option::as_deref)
            .and_then(|v| row_of_unique(&world.installation, mirror.id, v));
        if let Some(row) = row {
            ours.insert(record.id.clone(), row);
        }
    }
    if ours.is_empty() {
        return Ok(records);
    }
    let waiting: HashSet<i64> =
        matches::without_id(&mirror.table, ours.values().copied().collect())?
            .into_iter()
            .collect();
    ours.retain(|_, row| waiting.contains(row));
    let (ids, row_ids): (Vec<String>, Vec<i64>) = ours.iter().map(|(i, r)| (i.clone(), *r)).unzip();
    give_ids(mirror, row_ids, ids)?;
    Ok(records
        .into_iter()
        .filter(|r| !ours.contains_key(&r.id))
        .collect())
}

/// Whether a create event announces what a create of ours made; its row then
/// gets the id, if the answer has not brought it yet.
pub(crate) fn is_ours(world: &World, mirror: &Mirror, change: &Change) -> Result<bool> {
    let value = mirror
        .unique_field
        .as_ref()
        .and_then(|field| change.fields.iter().find(|(name, _)| name == field))
        .and_then(|(_, value)| value.as_deref());
    let row = value.and_then(|v| row_of_unique(&world.installation, mirror.id, v));
    let Some(row) = row.filter(|_| change.kind == ChangeKind::Create) else {
        return Ok(false);
    };
    let waiting = !matches::without_id(&mirror.table, vec![row])?.is_empty();
    if waiting {
        give_ids(mirror, vec![row], vec![change.record_id.clone()])?;
    }
    Ok(waiting)
}

/// Gives rows their CRM ids, and tells their waiting writes.
pub(crate) fn give_ids(mirror: &Mirror, row_ids: Vec<i64>, ids: Vec<String>) -> Result<()> {
    if row_ids.is_empty() {
        return Ok(());
    }
    let n = row_ids.len();
    rows::record_results(
        &mirror.table,
        row_ids.clone(),
        ids.iter().cloned().map(Some).collect(),
        vec![None; n],
        vec![None; n],
    )?;
    writes::set_record_ids(mirror.id, row_ids, ids)?;
    Ok(())
}

/// The other end of a link, seen from a mirror.
fn other_end<'w>(world: &'w World, link: &LinkRow, mirror: &Mirror) -> Option<(&'w Mirror, bool)> {
    let (other, may_create) = if link.left_mirror == mirror.id {
        (link.right_mirror, link.create_right)
    } else if link.right_mirror == mirror.id {
        (link.left_mirror, link.create_left)
    } else {
        return None;
    };
    Some((world.mirrors.get(&other)?, may_create))
}

/// New rows that came from the CRM: tie them to what the other side has, or
/// make it there.
pub(crate) fn after_remote_create(
    world: &World,
    mirror: &Mirror,
    row_ids: Vec<i64>,
    now: Millis,
) -> Result<()> {
    let row_ids = merges::inherit(world, mirror, row_ids, now)?;
    spread(
        world,
        mirror,
        row_ids,
        &mirror.server.clone(),
        None,
        false,
        now,
    )
}

/// Matches new rows over every live link and creates what has no counterpart.
pub(crate) fn spread(
    world: &World,
    mirror: &Mirror,
    row_ids: Vec<i64>,
    origin: &str,
    tx: Option<i64>,
    held: bool,
    now: Millis,
) -> Result<()> {
    if row_ids.is_empty() {
        return Ok(());
    }
    for link in &world.groups[mirror.group].links {
        let Some((other, may_create)) = other_end(world, link, mirror) else {
            continue;
        };
        if link.mode != "live" || link.paused {
            continue;
        }
        let linked: HashSet<i64> = ledger::entities_of(mirror.id, row_ids.clone())?
            .into_iter()
            .filter(|x| x.mirror == mirror.id)
            .map(|x| x.row_id)
            .collect();
        let open: Vec<i64> = row_ids
            .iter()
            .copied()
            .filter(|r| !linked.contains(r))
            .collect();
        let found = find(world, link, mirror, other, &open)?;
        let mut pairs = (Vec::new(), Vec::new(), Vec::new());
        let mut orphans = Vec::new();
        for row in open {
            let (free, taken) = found.get(&row).cloned().unwrap_or_default();
            match free.as_slice() {
                [] if taken.is_empty() => orphans.push(row),
                [one] => {
                    let key = i64::try_from(pairs.0.len() / 2).unwrap_or_default();
                    pairs.0.extend([key, key]);
                    pairs.1.extend([mirror.id, other.id]);
                    pairs.2.extend([row, *one]);
                }
                // Another record of the same thing, or several: a third would not help.
                [] => ask(
                    link,
                    mirror,
                    row,
                    "another record is matched already",
                    &taken,
                )?,
                several => ask(link, mirror, row, "several records match", several)?,
            }
        }
        if !pairs.0.is_empty() {
            let tied = pairs.2.iter().step_by(2).copied().collect();
            ledger::link_rows(pairs.0, pairs.1, pairs.2)?;
            removals::agree(world, mirror, tied, now)?;
        }
        if may_create {
            create_counterparts(world, mirror, other, orphans, origin, tx, held)?;
        }
    }
    Ok(())
}

/// Makes the counterparts of rows over a link whatever the match keys find: a
/// person said that they are things of their own.
pub(crate) fn make_counterparts(
    world: &World,
    mirror: &Mirror,
    row_ids: Vec<i64>,
    origin: &str,
    link: Option<&str>,
) -> Result<()> {
    for known in &world.groups[mirror.group].links {
        let Some((other, may_create)) = other_end(world, known, mirror) else {
            continue;
        };
        if may_create && known.mode == "live" && link == Some(known.name.as_str()) {
            create_counterparts(world, mirror, other, row_ids.clone(), origin, None, false)?;
        }
    }
    Ok(())
}

/// Opens a question about a row that may be one of several of the other side.
fn ask(link: &LinkRow, mirror: &Mirror, row: i64, reason: &str, others: &[i64]) -> Result<()> {
    let left = link.left_mirror == mirror.id;
    let (own, their) = if left {
        ("left", "right")
    } else {
        ("right", "left")
    };
    let candidates = serde_json::json!({ own: [row], their: others }).to_string();
    reviews::ask(&RowQuestion {
        kind: Kind::Match,
        link: Some(&link.name),
        mirror: mirror.id,
        row_id: row,
        entity: None,
        reason,
        candidates: &candidates,
    })?;
    Ok(())
}

/// Rows of the other side that match a row: free ones, and ones tied already.
type Found = HashMap<i64, (Vec<i64>, Vec<i64>)>;

/// Candidates on the other side by the link's match keys, in their order; the
/// first key that finds something decides.
fn find(
    world: &World,
    link: &LinkRow,
    mirror: &Mirror,
    other: &Mirror,
    rows: &[i64],
) -> Result<Found> {
    let mut found = Found::new();
    let mut keys: Vec<_> = link
        .maps
        .iter()
        .filter(|m| m.match_order.is_some())
        .collect();
    keys.sort_by_key(|m| m.match_order);
    let _ = world;
    for key in keys {
        let left = link.left_mirror == mirror.id;
        let (own_field, other_field) = if left {
            (&key.left_field, &key.right_field)
        } else {
            (&key.right_field, &key.left_field)
        };
        let (Some(a), Some(b)) = (
            mirror.by_field.get(own_field),
            other.by_field.get(other_field),
        ) else {
            continue;
        };
        let open: Vec<i64> = rows
            .iter()
            .copied()
            .filter(|r| !found.contains_key(r))
            .collect();
        let hits = matches::candidates(
            key_of(mirror, *a),
            key_of(other, *b),
            key.to_left.contains("domain") || key.to_right.contains("domain"),
            open,
        )?;
        for (row, candidate, tied) in hits {
            let (free, taken) = found.entry(row).or_default();
            if tied { taken } else { free }.push(candidate);
        }
    }
    Ok(found)
}

fn key_of(mirror: &Mirror, column: usize) -> matches::Key<'_> {
    matches::Key {
        mirror: mirror.id,
        table: &mirror.table,
        column: &mirror.columns[column].quoted,
    }
}

/// Makes the rows' counterparts: a row without id in the other mirror, a
/// create in the queue, one entity for both.
fn create_counterparts(
    world: &World,
    mirror: &Mirror,
    other: &Mirror,
    orphans: Vec<i64>,
    origin: &str,
    tx: Option<i64>,
    held: bool,
) -> Result<()> {
    if orphans.is_empty() {
        return Ok(());
    }
    let all: Vec<usize> = (0..mirror.columns.len()).collect();
    let columns: Vec<_> = other.columns.iter().collect();
    let shadow = world.groups[mirror.group].group.sides[other.side].shadow;
    let mut queue = Vec::new();
    let mut lines = Vec::new();
    let mut ties = (Vec::new(), Vec::new(), Vec::new());
    let sources = cases::lock(mirror, &all, orphans)?;
    for source in sources.iter().filter(|r| !r.deleted) {
        let Some((row, vals)) = counterpart(world, mirror, other, source)? else {
            continue;
        };
        let made = rows::insert(
            &other.table,
            &columns,
            vec![RowInsert {
                record_id: None,
                source: origin.to_owned(),
                modified_at: 0,
                deleted: false,
                values: row,
            }],
        )?;
        let Some((row_id, _)) = made.first().cloned() else {
            continue;
        };
        ties.0.extend([source.row_id, source.row_id]);
        ties.1.extend([mirror.id, other.id]);
        ties.2.extend([source.row_id, row_id]);
        lines.push(record::by_link(
            other,
            (row_id, None),
            "create",
            origin,
            &vals,
        ));
        queue.push(NewWrite {
            mirror: other.id,
            row_id,
            entity: None,
            kind: "create",
            record_id: None,
            vals,
            old_vals: "{}".to_owned(),
            origin: origin.to_owned(),
            state: flush::state_of(world, other.id, shadow, held),
            txs: tx.into_iter().collect(),
        });
    }
    if !ties.0.is_empty() {
        ledger::link_rows(ties.0, ties.1, ties.2)?;
    }
    flush::append(world, lines)?;
    writes::enqueue(queue)
}

/// The values of a row on the other side, by column and as JSON by field; none
/// if a required one has no image, which is asked about in review.
fn counterpart(
    world: &World,
    mirror: &Mirror,
    other: &Mirror,
    source: &Row,
) -> Result<Option<(Vec<Option<String>>, String)>> {
    let info = &world.groups[mirror.group];
    let mut values = vec![None; info.group.fields.len()];
    for (column, value) in source.values.iter().enumerate() {
        if let Some(field) = info.field_of[mirror.side].get(&column) {
            values[*field].clone_from(value);
        }
    }
    let mapping::Projection { mapped, refused } =
        mapping::project(&info.group, mirror.side, other.side, &values);
    if !refused.is_empty() {
        let reasons: BTreeMap<_, _> = refused
            .iter()
            .map(|(f, why)| (info.group.fields[*f].name.clone(), why.to_string()))
            .collect();
        reviews::ask(&RowQuestion {
            kind: Kind::Create,
            link: None,
            mirror: mirror.id,
            row_id: source.row_id,
            entity: None,
            reason: "cannot be created there",
            candidates: &serde_json::json!(reasons).to_string(),
        })?;
        return Ok(None);
    }
    let mut row = vec![None; other.columns.len()];
    let mut vals = serde_json::Map::new();
    for (field, value) in mapped {
        if let Some(column) = info.column_of[field][other.side] {
            vals.insert(
                other.columns[column].field.clone(),
                serde_json::json!(value),
            );
            row[column] = value;
        }
    }
    Ok(Some((row, serde_json::Value::Object(vals).to_string())))
}
