//! Records of one side made from those of another.

use std::collections::BTreeMap;

use crm_core::mapping::{self, Images};
use crm_core::model::Value;

use crate::pg::store::ledger;
use crate::pg::store::reviews::{self, Kind, RowQuestion};
use crate::pg::store::rows::{self, Row, RowInsert};
use crate::pg::store::spi::Result;
use crate::pg::store::writes::{self, NewWrite};
use crate::worker::cases;
use crate::worker::creates::Cause;
use crate::worker::flush;
use crate::worker::images;
use crate::worker::record;
use crate::worker::world::{GroupInfo, Mirror, World};

/// Makes the rows' counterparts: a row without id in the other mirror, a
/// create in the queue, one entity for both.
pub(super) fn create(
    world: &World,
    mirror: &Mirror,
    other: &Mirror,
    orphans: Vec<i64>,
    cause: &Cause,
) -> Result<()> {
    let origin = cause.origin.as_str();
    if orphans.is_empty() {
        return Ok(());
    }
    let all: Vec<usize> = (0..mirror.columns.len()).collect();
    let columns: Vec<_> = other.columns.iter().collect();
    let mut queue = Vec::new();
    let mut lines = Vec::new();
    let mut ties = (Vec::new(), Vec::new(), Vec::new());
    let sources = cases::lock(mirror, &all, orphans)?;
    let info = &world.groups[mirror.group];
    let known = known(world, mirror, other, &sources)?;
    let images = images::for_new(world, info, other.side, &known);
    let wanted = sources.iter().zip(&known).filter(|(r, _)| !r.deleted);
    for (source, known) in wanted {
        let known: Vec<_> = known.iter().map(|(s, v)| (*s, v.as_slice())).collect();
        let new = (known.as_slice(), &images);
        let Some((row, vals)) = counterpart(world, mirror, other, source.row_id, new)? else {
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
        queue.push(new_write(world, other, row_id, vals, cause));
    }
    if !ties.0.is_empty() {
        ledger::link_rows(ties.0, ties.1, ties.2)?;
    }
    flush::append(world, lines)?;
    writes::enqueue(queue)
}

/// The create of a record whose row has been made.
fn new_write(world: &World, other: &Mirror, row_id: i64, vals: String, cause: &Cause) -> NewWrite {
    let shadow = world.groups[other.group].group.sides[other.side].shadow;
    NewWrite {
        mirror: other.id,
        row_id,
        entity: None,
        kind: "create",
        record_id: None,
        vals,
        old_vals: "{}".to_owned(),
        origin: cause.origin.clone(),
        state: flush::state_of(world, other.id, shadow, cause.held),
        txs: cause.txs.clone(),
    }
}

/// The values of a row on the other side, by column and as JSON by field; none
/// if a required one has no image, which is asked about in review.
fn counterpart(
    world: &World,
    mirror: &Mirror,
    other: &Mirror,
    source: i64,
    (known, images): (&[(usize, &[Value])], &Images),
) -> Result<Option<(Vec<Option<String>>, String)>> {
    let info = &world.groups[mirror.group];
    let mapping::Projection { mapped, refused } =
        mapping::project_from(&info.group, known, other.side, images);
    if !refused.is_empty() {
        let reasons: BTreeMap<_, _> = refused
            .iter()
            .map(|(f, why)| (info.group.fields[*f].name.clone(), why.to_string()))
            .collect();
        reviews::ask(&RowQuestion {
            kind: Kind::Create,
            link: None,
            mirror: mirror.id,
            row_id: source,
            entity: None,
            reason: "cannot be created there",
            candidates: &serde_json::json!(reasons).to_string(),
        })?;
        return Ok(None);
    }
    let mut row = vec![None; other.columns.len()];
    let mut vals = serde_json::Map::new();
    for (field, value) in mapped {
        for (column, cell) in info.cells(field, other.side, &value) {
            if cell.is_some() {
                let name = other.columns[column].field.clone();
                vals.insert(name, serde_json::json!(cell));
            }
            row[column] = cell;
        }
    }
    for (column, value) in defaults(info, mirror, other) {
        vals.insert(
            other.columns[column].field.clone(),
            serde_json::json!(value),
        );
        row[column] = Some(value.clone());
    }
    Ok(Some((row, serde_json::Value::Object(vals).to_string())))
}

/// Values of a thing by side and field of the group, the side that counts first.
pub(super) type Known = Vec<(usize, Vec<Value>)>;

/// What is known of each row's thing, by side and field of the group: the row itself,
/// and other records of the thing for what it has no field for.
fn known(world: &World, mirror: &Mirror, other: &Mirror, rows: &[Row]) -> Result<Vec<Known>> {
    let info = &world.groups[mirror.group];
    let all: Vec<usize> = (0..mirror.columns.len()).collect();
    let by_field = |side: usize, columns: &[usize], row: &Row| {
        let mut values = vec![None; info.group.fields.len()];
        for (field, value) in info.gather(side, columns, &row.values) {
            values[field] = value;
        }
        (side, values)
    };
    let own = |row| vec![by_field(mirror.side, &all, row)];
    let mut known: Vec<Vec<_>> = rows.iter().map(own).collect();
    let lacks = |f: &usize| {
        let told = info.group.column(*f, mirror.side).filter(|c| c.inbound);
        told.is_none() && info.group.column(*f, other.side).is_some()
    };
    let fields: Vec<usize> = (0..info.group.fields.len()).filter(lacks).collect();
    if fields.is_empty() {
        return Ok(known);
    }
    let ids = rows.iter().map(|r| r.row_id).collect();
    let xrefs = ledger::entities_of(mirror.id, ids)?;
    let partners = cases::lock_partners(world, info, mirror, &fields, &xrefs)?;
    for (row, known) in rows.iter().zip(&mut known) {
        let own = |x: &&ledger::XrefRow| x.mirror == mirror.id && x.row_id == row.row_id;
        let entity = xrefs.iter().find(own).map(|x| x.entity);
        let others = entity.and_then(|e| partners.get(&e)).into_iter().flatten();
        for (side, columns, partner) in others.filter(|(_, _, r)| !r.deleted) {
            known.push(by_field(*side, columns, partner));
        }
    }
    Ok(known)
}

/// What new records of `other` get in fields that nothing is mapped to.
fn defaults<'w>(
    info: &'w GroupInfo,
    mirror: &Mirror,
    other: &'w Mirror,
) -> impl Iterator<Item = (usize, &'w String)> {
    let (id, between) = (other.id, [mirror.id, other.id]);
    info.links
        .iter()
        .filter(move |l| between.contains(&l.left_mirror) && between.contains(&l.right_mirror))
        .flat_map(move |l| {
            let side = if l.left_mirror == id { "left" } else { "right" };
            l.defaults.iter().filter(move |d| d.side == side)
        })
        .filter_map(|d| Some((*other.by_field.get(&d.field)?, &d.value)))
}
