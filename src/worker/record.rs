//! What a line of the ledger says besides the values themselves.

use std::collections::BTreeMap;

use crm_core::decide::{Decision, Step};
use crm_core::identity;
use crm_core::model::{Millis, Value};
use serde_json::{Map, json};

use crate::pg::store::changes::TxRow;
use crate::pg::store::ledger::EventRow;
use crate::worker::cases::{self, Case};
use crate::worker::engine;
use crate::worker::ingest::Inbound;
use crate::worker::world::{Mirror, World};

/// Decisions as JSON, without those that say nothing: only this side had
/// changed and its value applied. Keys without content are left out.
pub(crate) fn decision_json(
    world: &World,
    mirror: &Mirror,
    decisions: &[Decision],
) -> Option<String> {
    let group = &world.groups[mirror.group].group;
    let kept: Vec<serde_json::Value> = decisions
        .iter()
        .filter(|d| d.step != Step::OneSide || says_more(d))
        .map(|d| {
            let mut entry = Map::new();
            let name = &group.fields[d.field].name;
            entry.insert("field".to_owned(), json!(name));
            let own = group.column(d.field, mirror.side).map(|c| &c.field);
            if let Some(own) = own.filter(|own| *own != name) {
                entry.insert("as".to_owned(), json!(own));
            }
            entry.insert("step".to_owned(), json!(d.step));
            if says_more(d) {
                entry.insert("winner".to_owned(), json!(d.winner));
                entry.insert("value".to_owned(), json!(d.value));
            }
            if let Some(rule) = d.rule {
                let strategy = d.strategy.map(|s| s.entry().name);
                entry.insert("rule".to_owned(), json!(rule));
                entry.insert("strategy".to_owned(), json!(strategy));
            }
            for (key, values) in [("losers", &d.losers), ("merged", &d.merged)] {
                let values: Vec<_> = values
                    .iter()
                    .map(|(origin, value)| json!({"origin": origin, "value": value}))
                    .collect();
                if !values.is_empty() {
                    entry.insert(key.to_owned(), json!(values));
                }
            }
            if let Some(evaluation) = &d.evaluation {
                entry.insert("evaluation".to_owned(), json!(evaluation));
            }
            if d.conflict {
                entry.insert("conflict".to_owned(), json!(true));
            }
            if let Some(held) = &d.held {
                entry.insert("held".to_owned(), json!(held));
            }
            serde_json::Value::Object(entry)
        })
        .collect();
    (!kept.is_empty()).then(|| serde_json::Value::Array(kept).to_string())
}

fn says_more(d: &Decision) -> bool {
    d.conflict || d.held.is_some() || !d.losers.is_empty() || d.rule.is_some()
}

/// What an event replaced on the rows of other mirrors, as JSON by mirror and field.
pub(crate) fn carried_json(
    world: &World,
    group: usize,
    carried: Vec<(usize, usize, Value)>,
) -> Option<String> {
    if carried.is_empty() {
        return None;
    }
    let group = &world.groups[group].group;
    let mut mirrors: BTreeMap<String, Map<String, serde_json::Value>> = BTreeMap::new();
    for (side, field, old) in carried {
        if let Some(column) = group.column(field, side) {
            mirrors
                .entry(group.sides[side].mirror.to_string())
                .or_default()
                .insert(column.field.clone(), json!(old));
        }
    }
    Some(json!(mirrors).to_string())
}

/// A line for what a CRM's stream told of a record.
pub(crate) fn told(mirror: &Mirror, item: &Inbound, kind: &'static str) -> EventRow {
    let change = &item.change;
    let named = Some(&change.identity).filter(|i| !i.is_empty());
    EventRow {
        mirror: mirror.id,
        record_id: Some(change.record_id.clone()),
        kind,
        origin: mirror.server.clone(),
        source: item.source.to_owned(),
        occurred_at: change.occurred_at,
        stream: item.stream,
        identity: named.map(|name| {
            let known = item.identity;
            known.unwrap_or_else(|| identity::digest(&mirror.server, name))
        }),
        actor: Some(change.actor.clone()),
        application: application(&change.mark, &change.actor),
        ..EventRow::default()
    }
}

/// The program that wrote, as far as the CRM's mark tells beside the user.
pub(super) fn application(mark: &str, actor: &str) -> Option<String> {
    let client = mark
        .split(';')
        .find_map(|part| part.trim().strip_prefix("client="));
    let app = client.unwrap_or_else(|| {
        mark.strip_suffix(actor)
            .map_or(mark, |rest| rest.trim_end_matches('/'))
    });
    Some(app.to_owned()).filter(|app| app != actor)
}

/// A line for what a transaction of a user did to a row.
pub(crate) fn by_sql(
    mirror: &Mirror,
    row_id: i64,
    record_id: Option<String>,
    kind: &'static str,
    cause: &Cause,
) -> EventRow {
    EventRow {
        mirror: mirror.id,
        row_id: Some(row_id),
        record_id,
        kind,
        origin: cause.origin.clone(),
        source: "sql".to_owned(),
        occurred_at: cause.at,
        micros: cause.micros,
        tx: Some(cause.tx),
        actor: cause.actor.clone(),
        application: cause.application.clone(),
        reason: cause.reason.clone(),
        score: cause.score.map(|s| f32::from(s) / 1_000.0),
        ..EventRow::default()
    }
}

/// A line for a row that came or went because of its counterpart: `(row, record
/// id)`, and the values that it was made with as JSON.
pub(crate) fn by_link(
    mirror: &Mirror,
    (row_id, record_id): (i64, Option<String>),
    kind: &'static str,
    origin: &str,
    vals: &str,
) -> EventRow {
    let (fields, new_values) = cases::json_values(vals).into_iter().unzip();
    EventRow {
        mirror: mirror.id,
        row_id: Some(row_id),
        record_id,
        kind,
        origin: origin.to_owned(),
        source: "link".to_owned(),
        occurred_at: engine::now(),
        fields,
        new_values,
        ..EventRow::default()
    }
}

/// The transaction behind a change by SQL.
#[derive(Clone, Debug)]
pub(crate) struct Cause {
    pub(crate) tx: i64,
    pub(crate) origin: String,
    pub(crate) at: Millis,
    micros: i64,
    /// The guard holds its writes.
    pub(crate) held: bool,
    actor: Option<String>,
    application: Option<String>,
    reason: Option<String>,
    /// How sure it was, in thousandths.
    pub(crate) score: Option<u16>,
}

impl Cause {
    /// From the transaction's header; `now` where there is none any more.
    pub(crate) fn of(tx: i64, header: Option<&TxRow>, now: Millis) -> Self {
        let origin = header.and_then(|t| t.origin.clone());
        Self {
            tx,
            origin: origin.unwrap_or_else(|| "local".to_owned()),
            at: header.map_or(now, |t| t.at),
            micros: header.map_or(0, |t| t.micros),
            held: header.is_some_and(|t| t.held),
            actor: header.map(|t| t.user.clone()),
            application: header.map(|t| t.application.clone()),
            reason: header.and_then(|t| t.reason.clone()),
            score: header.and_then(|t| t.score),
        }
    }
}

/// Takes what the last observation carried to other mirrors out of a case.
pub(crate) fn take_carried(world: &World, case: &mut Case) -> Option<String> {
    carried_json(world, case.group, std::mem::take(&mut case.carried))
}
