//! What writes cost in calls of the CRMs.

use std::collections::BTreeMap;

use crm_core::connectors::Connector;
use crm_core::model::WriteKind;

use super::told::Line;
use crate::pg::store::ask::OpenWrite;
use crate::worker::unique;
use crate::worker::world::{Mirror, World};

/// Calls for the writes of one object and kind.
#[derive(Clone, Copy, Debug, Default)]
struct Calls {
    /// That write.
    pushes: usize,
    /// That look first for keys which exist once.
    searches: usize,
}

/// What the writes cost: per server, full batches of each object and kind.
pub(super) fn calls(world: &World, writes: &[&OpenWrite]) -> Vec<Line> {
    let mut batches: BTreeMap<(&str, i32, &str), Vec<&str>> = BTreeMap::new();
    for write in writes {
        if let Some(mirror) = world.mirrors.get(&write.mirror) {
            let batch = batches.entry((&mirror.server, mirror.id, &write.kind));
            batch.or_default().push(&write.vals);
        }
    }
    let mut servers: BTreeMap<&str, (usize, Vec<String>)> = BTreeMap::new();
    for ((server, mirror, kind), vals) in batches {
        let write_kind = match kind {
            "create" => WriteKind::Create,
            "delete" => WriteKind::Delete,
            _ => WriteKind::Update,
        };
        let connector = world.connectors.get(server);
        let most = connector.map_or(1, |c| c.push_batch(write_kind)).max(1);
        let mirror = world.mirrors.get(&mirror);
        let object = mirror.map_or("?", |m| &m.object);
        let looks = mirror.zip(connector).filter(|_| kind == "create");
        let needed = match looks {
            Some((mirror, connector)) => of_creates(mirror, *connector, &vals, most),
            None => Calls {
                pushes: vals.len().div_ceil(most),
                searches: 0,
            },
        };
        let told = servers.entry(server).or_default();
        told.0 += needed.pushes + needed.searches;
        let (count, pushes) = (vals.len(), needed.pushes);
        let mut part = format!("{count} {kind} of {object} in {pushes} (at most {most} in one)");
        if needed.searches > 0 {
            part += &format!(" after {} for keys that exist once", needed.searches);
        }
        told.1.push(part);
    }
    (servers.into_iter())
        .map(|(server, (needed, parts))| Line {
            what: "calls",
            server: Some(server.to_owned()),
            calls: i32::try_from(needed).ok(),
            verdict: "costs".to_owned(),
            detail: Some(parts.join(", ")),
            ..Line::default()
        })
        .collect()
}

/// Creates are looked for by each key that exists once before they are sent: one
/// search per batch and key, and what does not fit into a search is a batch of its own.
fn of_creates(mirror: &Mirror, connector: &dyn Connector, vals: &[&str], most: usize) -> Calls {
    let mut calls = Calls::default();
    let mut open: Vec<(&[&str], usize)> = vals.chunks(most).map(|rows| (rows, 0)).collect();
    while let Some((rows, looked)) = open.pop() {
        let Some(column) = mirror.unique_keys.get(looked) else {
            calls.pushes += 1;
            continue;
        };
        let field = &mirror.columns[*column].field;
        let values: Vec<Option<String>> = rows.iter().map(|r| unique::value_of(r, field)).collect();
        let given: Vec<String> = values.iter().flatten().cloned().collect();
        if given.is_empty() {
            open.push((rows, looked + 1));
            continue;
        }
        let fit = connector.find_batch(&mirror.object, &mirror.fields, field, &given);
        calls.searches += 1;
        let cut = unique::end_of_search(&values, fit.clamp(1, given.len()));
        let (first, rest) = rows.split_at(cut.unwrap_or(rows.len()));
        open.push((first, looked + 1));
        if !rest.is_empty() {
            open.push((rest, looked));
        }
    }
    calls
}
