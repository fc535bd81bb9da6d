//! Which things take part in which links. A row outside of a link's scope is
//! not there for the other side: nothing travels between them. What follows
//! when a row leaves or enters is done after its change is in the table.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crm_core::model::{FieldType, Millis, Value};

use crate::pg::store::config::LinkRow;
use crate::pg::store::ledger;
use crate::pg::store::rows;
use crate::pg::store::scopes::{self, Told};
use crate::pg::store::spi::Result;
use crate::pg::store::writes::{self, NewWrite};
use crate::worker::cases::Case;
use crate::worker::creates::{self, Cause};
use crate::worker::flush;
use crate::worker::world::{GroupInfo, Mirror, World};

/// One end of a link that has a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct End {
    /// Place of the link in its group.
    pub(crate) link: usize,
    /// Side of the group.
    pub(crate) side: usize,
}

/// Values by column that stand in place of a row's own, by row.
pub(crate) type Changed = HashMap<i64, BTreeMap<usize, Value>>;

/// What a row of each end was, before the change.
pub(crate) type Before = BTreeMap<End, bool>;

/// The scope of a mirror in a link.
fn scope_of(link: &LinkRow, mirror: i32) -> Option<&str> {
    let scope = if link.left_mirror == mirror {
        &link.left_scope
    } else {
        &link.right_scope
    };
    scope.as_deref()
}

fn ends_of(info: &GroupInfo, side: usize) -> Vec<(End, &str)> {
    let mirror = info.group.sides[side].mirror;
    let links = info.links.iter().enumerate();
    links
        .filter(|(_, l)| l.left_mirror == mirror || l.right_mirror == mirror)
        .filter_map(|(link, l)| Some((End { link, side }, scope_of(l, mirror)?)))
        .collect()
}

/// Whether any link of the group leaves something out.
pub(crate) fn any(info: &GroupInfo) -> bool {
    let scoped = |l: &LinkRow| l.left_scope.is_some() || l.right_scope.is_some();
    info.links.iter().any(scoped)
}

fn json(mirror: &Mirror, changed: &BTreeMap<usize, Value>) -> String {
    let object: serde_json::Map<String, serde_json::Value> = changed
        .iter()
        .map(|(column, value)| {
            let json = match (value, mirror.types[*column]) {
                (Some(list), FieldType::MultiChoice) => {
                    serde_json::json!(list.split(';').collect::<Vec<_>>())
                }
                (value, _) => serde_json::json!(value),
            };
            (mirror.columns[*column].name.clone(), json)
        })
        .collect();
    serde_json::Value::Object(object).to_string()
}

/// Whether rows of a side are in each scope that concerns it, as far as that can be told.
fn told(
    world: &World,
    info: &GroupInfo,
    side: usize,
    row_ids: &BTreeSet<i64>,
    changed: Option<&Changed>,
) -> Result<HashMap<i64, Vec<(End, Told)>>> {
    let ends = ends_of(info, side);
    let mirror = world.mirrors.get(&info.group.sides[side].mirror);
    let (Some(mirror), false) = (mirror, ends.is_empty()) else {
        return Ok(HashMap::new());
    };
    let conditions: Vec<&str> = ends.iter().map(|(_, scope)| *scope).collect();
    let changes = row_ids
        .iter()
        .map(|row| Some(json(mirror, changed?.get(row)?)))
        .collect();
    let rows = row_ids.iter().copied().collect();
    let holds = scopes::holds(&mirror.table, &conditions, rows, changes)?;
    let ends: Vec<End> = ends.into_iter().map(|(end, _)| end).collect();
    Ok(holds
        .into_iter()
        .map(|(row, told)| (row, ends.iter().copied().zip(told).collect()))
        .collect())
}

fn rows_of(cases: &[Case], side: usize) -> BTreeSet<i64> {
    let row = |c: &Case| c.rows.get(side)?.as_ref().map(|r| r.row_id);
    cases.iter().filter_map(row).collect()
}

/// Finds out what takes part before changes of `mirror` are decided. `was` and
/// `becomes` hold the values of its rows before and after, where these are not
/// the ones in the table.
pub(crate) fn mark(
    world: &World,
    mirror: &Mirror,
    cases: &mut [Case],
    was: Option<&Changed>,
    becomes: Option<&Changed>,
) -> Result<()> {
    let info = &world.groups[mirror.group];
    if cases.is_empty() || !any(info) {
        return Ok(());
    }
    for side in 0..info.group.sides.len() {
        let own = side == mirror.side;
        let rows = rows_of(cases, side);
        let before = told(world, info, side, &rows, was.filter(|_| own))?;
        let after = match (own, was, becomes) {
            (false, _, _) | (true, None, None) => None,
            (true, _, becomes) => Some(told(world, info, side, &rows, becomes)?),
        };
        for case in cases.iter_mut() {
            let Some(row) = case.rows[side].as_ref().map(|r| r.row_id) else {
                continue;
            };
            let was = before.get(&row).into_iter().flatten();
            case.scope_before
                .extend(was.map(|(end, holds)| (*end, *holds == Some(true))));
            let now = after.as_ref().unwrap_or(&before).get(&row);
            let out = now
                .into_iter()
                .flatten()
                .filter(|(_, holds)| *holds != Some(true));
            case.outside.extend(out.map(|(end, _)| *end));
        }
    }
    let converted = converted(info, cases)?;
    for case in cases {
        if let Some(sides) = case.entity_id.and_then(|e| converted.get(&e)) {
            let bound = |end: &End| !is_settled(info, *end, sides);
            case.outside.retain(bound);
            case.scope_before.retain(|end, _| bound(end));
        }
        case.hidden = hidden(info, case, mirror.side);
    }
    Ok(())
}

/// Sides whose record another one of the same thing was converted into, by
/// entity. That it is this kind of record its CRM has decided: what the other
/// ends of its links say about their rows counts no more.
pub(crate) fn converted(info: &GroupInfo, cases: &[Case]) -> Result<HashMap<i64, Vec<usize>>> {
    let entities: Vec<i64> = cases.iter().filter_map(|c| c.entity_id).collect();
    let mut sides: HashMap<i64, Vec<usize>> = HashMap::new();
    if entities.is_empty() || info.group.sides.len() < 3 {
        return Ok(sides);
    }
    let became = ledger::became(entities)?;
    for case in cases {
        let Some(entity) = case.entity_id else {
            continue;
        };
        for (_, from, into) in became.iter().filter(|(e, _, _)| *e == entity) {
            let heir = case.rows.iter().position(|r| {
                let id = r.as_ref().and_then(|r| r.record_id.as_ref());
                id == Some(into)
            });
            let heir = heir.filter(|s| info.group.sides[*s].mirror != *from);
            sides.entry(entity).or_default().extend(heir);
        }
    }
    Ok(sides)
}

/// Whether a scope counts as fulfilled because its link leads to a record that
/// another one was converted into.
pub(crate) fn is_settled(info: &GroupInfo, end: End, converted: &[usize]) -> bool {
    let link = &info.links[end.link];
    converted.iter().any(|side| {
        let mirror = info.group.sides[*side].mirror;
        end.side != *side && (link.left_mirror == mirror || link.right_mirror == mirror)
    })
}

/// Sides that no link whose scopes hold leads to.
fn hidden(info: &GroupInfo, case: &Case, from: usize) -> Vec<usize> {
    let mut reached = BTreeSet::from([from]);
    let mut grown = true;
    while grown {
        grown = false;
        for (n, link) in info.links.iter().enumerate() {
            if case.outside.iter().any(|end| end.link == n) {
                continue;
            }
            let side = |mirror: i32| info.group.sides.iter().position(|s| s.mirror == mirror);
            if let (Some(a), Some(b)) = (side(link.left_mirror), side(link.right_mirror))
                && reached.contains(&a) != reached.contains(&b)
            {
                reached.extend([a, b]);
                grown = true;
            }
        }
    }
    (0..info.group.sides.len())
        .filter(|s| !reached.contains(s))
        .collect()
}

/// What must be known of a case once its change is in the table.
pub(crate) struct Watched {
    rows: Vec<Option<rows::Row>>,
    before: Before,
    cause: Cause,
}

/// Cases to look at again after they are written back.
pub(crate) fn watch(world: &World, cases: &[Case]) -> Vec<Watched> {
    cases
        .iter()
        .filter(|c| any(&world.groups[c.group]) && !c.scope_before.is_empty())
        .map(|c| Watched {
            rows: c.rows.clone(),
            before: c.scope_before.clone(),
            cause: Cause {
                origin: c.source.clone(),
                txs: c.txs.clone(),
                held: c.held,
            },
        })
        .collect()
}

/// Does what leaving and entering asks for.
pub(crate) fn settle(
    world: &World,
    mirror: &Mirror,
    watched: Vec<Watched>,
    at: Millis,
) -> Result<()> {
    let info = &world.groups[mirror.group];
    if watched.is_empty() {
        return Ok(());
    }
    let mut now: HashMap<(usize, i64), Vec<(End, Told)>> = HashMap::new();
    for side in 0..info.group.sides.len() {
        let row = |w: &Watched| w.rows[side].as_ref().map(|r| r.row_id);
        let rows = watched.iter().filter_map(row).collect();
        for (row, ends) in told(world, info, side, &rows, None)? {
            now.insert((side, row), ends);
        }
    }
    let mut entering: BTreeMap<(End, String, Vec<i64>, bool), Vec<i64>> = BTreeMap::new();
    for w in &watched {
        for (end, before) in &w.before {
            let Some(row) = w.rows[end.side].as_ref().filter(|r| !r.deleted) else {
                continue;
            };
            let mut ends = now.get(&(end.side, row.row_id)).into_iter().flatten();
            let holds = ends
                .find(|(e, _)| e == end)
                .map_or(Some(false), |(_, holds)| *holds);
            match (before, holds) {
                // An error is no leaving: on_leave may delete.
                (true, Some(false)) => leave(world, info, *end, &w.rows, &w.cause)?,
                (false, Some(true)) => {
                    let Cause { origin, txs, held } = w.cause.clone();
                    let key = (*end, origin, txs, held);
                    entering.entry(key).or_default().push(row.row_id);
                }
                _ => {}
            }
        }
    }
    for ((end, origin, txs, held), rows) in entering {
        let link = &info.links[end.link];
        let own = world.mirrors.get(&info.group.sides[end.side].mirror);
        if let Some(own) = own {
            let cause = Cause { origin, txs, held };
            creates::spread_link(world, link, own, rows, &cause, at)?;
        }
    }
    Ok(())
}

/// A row has left the scope of a link; `rows` are those of its thing, by side.
pub(crate) fn leave(
    world: &World,
    info: &GroupInfo,
    end: End,
    rows_of: &[Option<rows::Row>],
    cause: &Cause,
) -> Result<()> {
    let link = &info.links[end.link];
    let own = info.group.sides[end.side].mirror;
    let other = if link.left_mirror == own {
        link.right_mirror
    } else {
        link.left_mirror
    };
    let side = info.group.sides.iter().position(|s| s.mirror == other);
    let (Some(side), Some(theirs)) = (side, world.mirrors.get(&other)) else {
        return Ok(());
    };
    let (Some(row), Some(partner)) = (&rows_of[end.side], &rows_of[side]) else {
        return Ok(());
    };
    if link.mode != "live" || link.on_leave == "keep" || partner.deleted {
        return Ok(());
    }
    let links = |mirror: i32| {
        let at = |l: &&LinkRow| l.left_mirror == mirror || l.right_mirror == mirror;
        info.links.iter().filter(at).count()
    };
    // Of a mirror that other links hold too, the row stays with them.
    let goes = if link.on_leave == "delete" || links(other) <= links(own) {
        (other, partner.row_id)
    } else {
        (own, row.row_id)
    };
    if link.on_leave == "delete" {
        let shadow = info.group.sides[side].shadow;
        writes::enqueue(vec![NewWrite {
            mirror: other,
            row_id: partner.row_id,
            entity: None,
            kind: "delete",
            record_id: partner.record_id.clone(),
            vals: "{}".to_owned(),
            old_vals: "{}".to_owned(),
            origin: cause.origin.clone(),
            state: flush::state_of(world, other, shadow, cause.held),
            txs: cause.txs.clone(),
        }])?;
        // What is held is there until somebody approves.
        if !cause.held {
            rows::mark_deleted(&theirs.table, vec![partner.row_id], true, &cause.origin)?;
        }
    }
    ledger::unlink_rows(goes.0, vec![goes.1])?;
    Ok(())
}

/// Rows of a mirror that are in its scope of a link.
pub(crate) fn inside(link: &LinkRow, mirror: &Mirror, row_ids: Vec<i64>) -> Result<Vec<i64>> {
    let Some(scope) = scope_of(link, mirror.id) else {
        return Ok(row_ids);
    };
    let none = vec![None; row_ids.len()];
    let holds = scopes::holds(&mirror.table, &[scope], row_ids.clone(), none)?;
    let inside = |row: &i64| {
        holds
            .get(row)
            .is_some_and(|told| told.contains(&Some(true)))
    };
    Ok(row_ids.into_iter().filter(inside).collect())
}
