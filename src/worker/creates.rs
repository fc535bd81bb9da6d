//! Records that begin or end: matching, creating and removing on other sides.

use std::collections::{HashMap, HashSet};

use crm_core::model::{Change, ChangeKind, Millis, Record};

use crate::pg::store::config::LinkRow;
use crate::pg::store::ledger;
use crate::pg::store::matches;
use crate::pg::store::reviews::{self, Kind, RowQuestion};
use crate::pg::store::rows;
use crate::pg::store::spi::Result;
use crate::pg::store::writes;
use crate::worker::counterparts;
use crate::worker::merges;
use crate::worker::removals;
use crate::worker::scope;
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
    spread(world, mirror, row_ids, &Cause::of(&mirror.server), now)
}

/// Who or what made records begin.
#[derive(Clone, Debug)]
pub(crate) struct Cause {
    /// A server's name, `local`, or an application.
    pub(crate) origin: String,
    /// The user's transactions.
    pub(crate) txs: Vec<i64>,
    /// Its writes wait for approval.
    pub(crate) held: bool,
}

impl Cause {
    /// No transaction of a user.
    pub(crate) fn of(origin: &str) -> Self {
        Self {
            origin: origin.to_owned(),
            txs: Vec::new(),
            held: false,
        }
    }
}

/// Matches new rows over every live link and creates what has no counterpart.
pub(crate) fn spread(
    world: &World,
    mirror: &Mirror,
    row_ids: Vec<i64>,
    cause: &Cause,
    now: Millis,
) -> Result<()> {
    for link in &world.groups[mirror.group].links {
        spread_link(world, link, mirror, row_ids.clone(), cause, now)?;
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
            let cause = Cause::of(origin);
            counterparts::create(world, mirror, other, row_ids.clone(), &cause)?;
        }
    }
    Ok(())
}

/// The same over one link, for the rows that are in its scope.
pub(crate) fn spread_link(
    world: &World,
    link: &LinkRow,
    mirror: &Mirror,
    row_ids: Vec<i64>,
    cause: &Cause,
    now: Millis,
) -> Result<()> {
    let Some((other, may_create)) = other_end(world, link, mirror) else {
        return Ok(());
    };
    if row_ids.is_empty() || link.mode != "live" || link.paused {
        return Ok(());
    }
    let row_ids = scope::inside(link, mirror, row_ids)?;
    let open = without_counterpart(mirror, other, row_ids)?;
    let (open, doubles) = apart(link, mirror, open)?;
    let found = find(link, mirror, other, &open)?;
    let mut pairs = (Vec::new(), Vec::new(), Vec::new());
    let mut orphans = Vec::new();
    for row in open {
        let hits = found.get(&row).cloned().unwrap_or_default();
        match hits.free.as_slice() {
            [] if hits.taken.is_empty() => orphans.push(row),
            [one] if hits.sure => {
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
                &hits.taken,
            )?,
            [one] => ask(link, mirror, row, "match by likeness", &[*one])?,
            several => ask(link, mirror, row, "several records match", several)?,
        }
    }
    if !pairs.0.is_empty() {
        let tied = pairs.2.iter().step_by(2).copied().collect();
        ledger::link_rows(pairs.0, pairs.1, pairs.2)?;
        removals::agree(world, mirror, tied, now)?;
    }
    if may_create {
        counterparts::create(world, mirror, other, orphans, cause)?;
    }
    // They meet what has just been made or tied of the rows before them.
    spread_link(world, link, mirror, doubles, cause, now)
}

/// Rows with a key that exists once, and those that share it with one of them.
fn apart(link: &LinkRow, mirror: &Mirror, rows: Vec<i64>) -> Result<(Vec<i64>, Vec<i64>)> {
    let mut doubles = HashSet::new();
    for map in link.maps.iter().filter(|m| m.unique_key && rows.len() > 1) {
        let field = match link.left_mirror == mirror.id {
            true => &map.left_field,
            false => &map.right_field,
        };
        if let Some(column) = mirror.by_field.get(field) {
            doubles.extend(matches::doubles(
                key_of(mirror, *column),
                false,
                rows.clone(),
            )?);
        }
    }
    Ok(rows.into_iter().partition(|r| !doubles.contains(r)))
}

/// Rows whose thing has no record in the other mirror.
fn without_counterpart(mirror: &Mirror, other: &Mirror, row_ids: Vec<i64>) -> Result<Vec<i64>> {
    let xrefs = ledger::entities_of(mirror.id, row_ids.clone())?;
    let there: HashSet<i64> = (xrefs.iter())
        .filter(|x| x.mirror == other.id)
        .map(|x| x.entity)
        .collect();
    let mut linked: HashSet<i64> = (xrefs.iter())
        .filter(|x| x.mirror == mirror.id && there.contains(&x.entity))
        .map(|x| x.row_id)
        .collect();
    if linked.len() < xrefs.len() {
        // A converted lead is not made again.
        linked.extend(ledger::converted(mirror.id, other.id, row_ids.clone())?);
    }
    Ok(row_ids
        .into_iter()
        .filter(|r| !linked.contains(r))
        .collect())
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

/// Rows of the other side that match a row.
#[derive(Clone, Debug, Default)]
struct Hits {
    /// Not tied yet.
    free: Vec<i64>,
    /// Tied to other rows of ours.
    taken: Vec<i64>,
    /// By equal keys, or so alike that nobody need be asked.
    sure: bool,
}

/// Candidates on the other side by the link's match keys, equal ones before
/// alike ones, in their order; the first key that finds something decides.
fn find(
    link: &LinkRow,
    mirror: &Mirror,
    other: &Mirror,
    rows: &[i64],
) -> Result<HashMap<i64, Hits>> {
    let mut found: HashMap<i64, Hits> = HashMap::new();
    let mut keys: Vec<_> = link
        .maps
        .iter()
        .filter(|m| m.match_order.is_some())
        .collect();
    keys.sort_by_key(|m| (m.match_threshold.is_some(), !m.unique_key, m.match_order));
    let right = link.right_mirror == mirror.id;
    for key in keys {
        let (own_field, other_field) = match right {
            false => (&key.left_field, &key.right_field),
            true => (&key.right_field, &key.left_field),
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
        let scope = match right {
            false => &link.right_scope,
            true => &link.left_scope,
        };
        let likeness = matches::Likeness {
            threshold: key.match_threshold,
            domain: key.to_left.contains("domain") || key.to_right.contains("domain"),
            unique: key.unique_key,
        };
        let hits = matches::candidates(
            key_of(mirror, *a),
            key_of(other, *b),
            scope.as_deref(),
            likeness,
            open,
        )?;
        for hit in hits {
            let of = found.entry(hit.ours).or_default();
            of.sure = key
                .match_accept
                .map_or(key.match_threshold.is_none(), |a| hit.alike >= a);
            let list = if hit.tied {
                &mut of.taken
            } else {
                &mut of.free
            };
            list.push(hit.theirs);
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
