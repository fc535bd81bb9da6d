//! `crm.why`: which values of a record differ from its counterparts', and why.

use std::collections::BTreeMap;

use crm_core::compare::{self, Difference, Obstacle};
use crm_core::model::Value;
use crm_core::state::{Entity, FieldState, SideRecord};
use pgrx::prelude::*;

use super::fine;
use crate::pg::store::ledger::XrefRow;
use crate::pg::store::{ask, config, rows};
use crate::pg::tx;
use crate::worker::images;
use crate::worker::world::{GroupInfo, Mirror, World};

/// Longest part of a value that an answer shows.
const SHOWN_CHARS: usize = 120;

/// `crm._why_values`: one row per field that a counterpart shows differently.
#[pg_extern(name = "_why_values", stable, strict, parallel_unsafe)]
fn why_values(
    mirror: i32,
    row_id: i64,
) -> TableIterator<
    'static,
    (
        name!(verdict, String),
        name!(detail, String),
        name!(advice, String),
    ),
> {
    let mut found = Vec::new();
    let tied = fine(ask::entity_of(mirror, row_id));
    if tied.len() > 1 {
        let world = super::maps(fine(config::group_of(mirror)));
        if let Some(own) = world.mirrors.get(&mirror) {
            let (mut entity, unread) = tx::canonically(|| load(&world, own, &tied));
            found.extend(unread.into_iter().map(hidden));
            let info = &world.groups[own.group];
            let differs = differences(&world, info, &mut entity, own.side);
            found.extend(differs.iter().map(|d| told(&world, info, own, d)));
        }
    }
    TableIterator::new(found)
}

/// The entity as its mirrors show it, and the tables that the caller may not read.
fn load(world: &World, own: &Mirror, tied: &[XrefRow]) -> (Entity, Vec<String>) {
    let info = &world.groups[own.group];
    let mut unread = Vec::new();
    let mut records = vec![SideRecord::default(); info.group.sides.len()];
    for (side, member) in info.group.sides.iter().enumerate() {
        let row = tied.iter().find(|x| x.mirror == member.mirror);
        let (Some(row), Some(mirror)) = (row, world.mirrors.get(&member.mirror)) else {
            continue;
        };
        if !fine(ask::may_read(mirror.table.relid)) {
            unread.push(mirror.table.name.clone());
            continue;
        }
        let places: Vec<usize> = info.field_of[side].keys().copied().collect();
        let columns: Vec<_> = places.iter().map(|c| &mirror.columns[*c]).collect();
        let Some(row) = fine(rows::read(&mirror.table, &columns, row.row_id)) else {
            continue;
        };
        let mut values = vec![None; info.group.fields.len()];
        for (field, value) in info.gather(side, &places, &row.values) {
            values[field] = value;
        }
        records[side] = SideRecord {
            exists: true,
            record_id: row.record_id,
            deleted: row.deleted,
            values,
        };
    }
    let fields = tied
        .first()
        .map(|x| states(info, x.entity))
        .unwrap_or_default();
    let entity = Entity {
        records,
        fields,
        ..Entity::default()
    };
    (entity, unread)
}

/// Compares under the maps; what users' functions make of values is asked for.
fn differences(
    world: &World,
    info: &GroupInfo,
    entity: &mut Entity,
    side: usize,
) -> Vec<Difference> {
    let mut rounds = 0;
    loop {
        let found = compare::differences(&info.group, entity, side);
        let missing = entity.images.take_missing();
        rounds += 1;
        if missing.is_empty() || rounds > images::ROUNDS {
            return found;
        }
        for ((function, value), image) in images::evaluate(world, missing) {
            entity.images.put(function, value, image);
        }
    }
}

fn states(info: &GroupInfo, entity: i64) -> BTreeMap<usize, FieldState> {
    let stored = fine(ask::field_states(entity));
    let place = |name: &str| info.group.fields.iter().position(|f| f.name == name);
    (stored.iter())
        .filter_map(|(name, json)| Some((place(name)?, serde_json::from_str(json).ok()?)))
        .collect()
}

fn hidden(table: String) -> (String, String, String) {
    (
        "note".to_owned(),
        format!("values of {table} are not compared: you may not read it"),
        format!("GRANT SELECT ON {table} lets you see them."),
    )
}

/// A difference in words.
fn told(
    world: &World,
    info: &GroupInfo,
    own: &Mirror,
    difference: &Difference,
) -> (String, String, String) {
    let table = |side: usize| {
        let mirror = info.group.sides[side].mirror;
        let found = world.mirrors.get(&mirror);
        found.map_or("?", |m| m.table.name.as_str())
    };
    let column = |side: usize| {
        let column = info.group.column(difference.field, side);
        format!("{}.{}", table(side), column.map_or("?", |c| &c.field))
    };
    let (verdict, reason, advice) = cause(info, own, difference, &table, &column);
    let detail = format!(
        "{} is {}, {} is {}: {reason}",
        column(own.side),
        shown(&difference.ours),
        column(difference.other),
        shown(&difference.theirs)
    );
    (verdict.to_owned(), detail, advice)
}

/// What keeps two values apart, and what to do about it.
fn cause<'t>(
    info: &GroupInfo,
    own: &Mirror,
    difference: &Difference,
    table: &dyn Fn(usize) -> &'t str,
    column: &dyn Fn(usize) -> String,
) -> (&'static str, String, String) {
    let link = info.links.iter().find(|l| {
        let ends = [l.left_mirror, l.right_mirror];
        ends.contains(&own.id) && ends.contains(&info.group.sides[difference.other].mirror)
    });
    let link = link.map_or("?", |l| l.name.as_str());
    match &difference.obstacle {
        Obstacle::ByDesign => (
            "note",
            "the map lets no value pass between them".to_owned(),
            format!("See direction in crm.field_map of link {link}."),
        ),
        Obstacle::Asked(why) => (
            "stops",
            format!("a person is asked: {why}"),
            "Answer it in crm.review.".to_owned(),
        ),
        Obstacle::Pending => (
            "waits",
            "a write is on its way".to_owned(),
            "See crm.outbox.".to_owned(),
        ),
        Obstacle::Refused(side) => (
            "stops",
            format!("the CRM of {} refused the value", table(*side)),
            "See crm.dead_letter; correct the value, or SELECT crm.dead_letter_retry().".to_owned(),
        ),
        Obstacle::Unmapped(side, why) => (
            "stops",
            format!("{} cannot take it: {why}", table(*side)),
            format!("Change the value, or its map in crm.field_map of link {link}."),
        ),
        Obstacle::OneWay(from) => (
            "differs",
            format!(
                "values go from {} only, and it has not changed since",
                column(*from)
            ),
            format!("See direction in crm.field_map of link {link}; its next change goes over."),
        ),
        Obstacle::Apart => (
            "differs",
            "nothing stands in the way, but nobody changed it since the records met or the map changed"
                .to_owned(),
            format!(
                "It stays so until one side changes; SELECT crm.policy_apply('{link}', '{}') lets the policy decide.",
                info.group.fields[difference.field].name
            ),
        ),
    }
}

fn shown(value: &Value) -> String {
    match value {
        None => "empty".to_owned(),
        Some(text) => match text.char_indices().nth(SHOWN_CHARS) {
            Some((end, _)) => format!("'{}…'", &text[..end]),
            None => format!("'{text}'"),
        },
    }
}
