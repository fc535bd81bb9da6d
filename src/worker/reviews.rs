//! The review queue: questions follow from decisions, answers become decisions.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crm_core::decide::Decision;
use crm_core::join::Resolution;
use crm_core::model::Millis;
use crm_core::state::{Claim, Clock, Hold, Interval};
use crm_core::strategy::LOCAL;
use crm_core::value::format_instant;

use crate::pg::store::ends::{self, Ended};
use crate::pg::store::ledger::EventRow;
use crate::pg::store::reviews::{self, Answer, FieldQuestion};
use crate::pg::store::spi::Result;
use crate::pg::store::{changes, drift, lives, streams};
use crate::worker::cases::{self, Case};
use crate::worker::flush;
use crate::worker::lifecycles;
use crate::worker::record::{self, decision_json};
use crate::worker::world::{GroupInfo, Mirror, World};

/// Answers taken in one transaction.
const ANSWERS: i64 = 500;

/// Opens, renews and closes the questions that decisions led to.
pub(crate) fn note(world: &World, cases: &[Case]) -> Result<()> {
    let mut asked = Vec::new();
    let mut closed = Vec::new();
    for case in cases {
        let Some(entity) = case.entity_id else {
            continue;
        };
        let info = &world.groups[case.group];
        for field in &case.questions {
            let state = case.entity.fields.get(field);
            match state.and_then(|s| s.hold.as_ref()) {
                Some(hold) => asked.extend(question(world, info, case, entity, *field, hold)),
                None => closed.push((entity, info.group.fields[*field].name.clone())),
            }
        }
    }
    reviews::ask_fields(asked)?;
    reviews::close_fields(closed)?;
    Ok(())
}

fn question(
    world: &World,
    info: &GroupInfo,
    case: &Case,
    entity: i64,
    field: usize,
    hold: &Hold,
) -> Option<FieldQuestion> {
    let shown = |side: &usize| info.group.column(field, *side).is_some();
    let side = (0..case.rows.len()).find(|s| case.rows[*s].is_some() && shown(s))?;
    let (member, own) = (&info.group.sides[side], info.group.column(field, side)?);
    let of_mirror = |l: &&_| links(l, member.mirror);
    let link = info.links.iter().find(of_mirror).or(info.links.first());
    let candidates: Vec<_> = hold
        .claims
        .iter()
        .filter_map(|c| candidate(world, info, field, c))
        .collect();
    Some(FieldQuestion {
        link: link.map(|l| l.name.clone()),
        mirror: member.mirror,
        row_id: case.rows[side].as_ref()?.row_id,
        entity,
        field: info.group.fields[field].name.clone(),
        own_field: own.field.clone(),
        reason: hold.reason.clone(),
        rule: hold.rule,
        candidates: serde_json::Value::Array(candidates).to_string(),
    })
}

fn links(link: &crate::pg::store::config::LinkRow, mirror: i32) -> bool {
    link.left_mirror == mirror || link.right_mirror == mirror
}

/// A candidate as the review queue shows it.
fn candidate(
    world: &World,
    info: &GroupInfo,
    field: usize,
    claim: &Claim,
) -> Option<serde_json::Value> {
    let member = info.group.sides.get(claim.side)?;
    let origin = Some(&claim.clock.origin).filter(|o| !o.is_empty());
    let at = Some(claim.clock.at.to).filter(|at| *at > 0);
    Some(serde_json::json!({
        "origin": origin,
        "table": world.mirrors.get(&member.mirror)?.table.name,
        "field": info.group.column(field, claim.side)?.field,
        "value": claim.value,
        "at": at.and_then(format_instant),
        "mirror": member.mirror,
    }))
}

/// Carries out what stewards have answered; how many answers were taken.
pub(crate) fn settle(world: &World, now: Millis) -> Result<usize> {
    let mut taken = 0;
    let mut of_mirror: BTreeMap<i32, Vec<Answer>> = BTreeMap::new();
    for answer in reviews::answered(ANSWERS)? {
        if answer.kind == "field" {
            of_mirror.entry(answer.mirror).or_default().push(answer);
        } else {
            taken += lifecycles::settle(world, &answer, now)?;
        }
    }
    for (id, answers) in of_mirror {
        match world.mirrors.get(&id) {
            Some(mirror) => taken += fields(world, mirror, answers, now)?,
            None => taken += reviews::remove(answers.iter().map(|a| a.id).collect())?,
        }
    }
    Ok(taken)
}

/// Answers about fields of rows of one mirror. Rows that a user holds, or has
/// changed in the meantime, wait.
fn fields(world: &World, mirror: &Mirror, answers: Vec<Answer>, now: Millis) -> Result<usize> {
    let info = &world.groups[mirror.group];
    let place = |a: &Answer| info.group.fields.iter().position(|f| f.name == a.field);
    let columns: BTreeSet<usize> = answers
        .iter()
        .filter_map(&place)
        .flat_map(|f| info.columns(f, mirror.side).iter().copied())
        .collect();
    let columns: Vec<usize> = columns.into_iter().collect();
    let ids: BTreeSet<i64> = answers.iter().map(|a| a.row_id).collect();
    let ids: Vec<i64> = ids.into_iter().collect();
    let present = crate::pg::store::rows::present_rows(&mirror.table, ids.clone())?;
    let present: HashSet<i64> = present.into_iter().collect();
    let undrained = changes::undrained(mirror.id, ids.clone())?;
    let locked = cases::lock(mirror, &columns, ids)?
        .into_iter()
        .filter(|r| !undrained.contains(&r.row_id))
        .collect();
    let (mut batch, _) = cases::load_drained(world, mirror, &columns, locked, &HashSet::new())?;
    let case_of: HashMap<i64, usize> = batch
        .iter()
        .enumerate()
        .filter_map(|(i, c)| Some((c.rows[mirror.side].as_ref()?.row_id, i)))
        .collect();
    let mut done = Vec::new();
    let mut events = Vec::new();
    for answer in &answers {
        let case = case_of.get(&answer.row_id).map(|i| &mut batch[*i]);
        match (case, place(answer)) {
            (Some(case), Some(field)) => {
                events.extend(resolve(world, mirror, case, field, answer, now));
                done.push(answer.id);
            }
            // Nothing is left to decide about.
            (_, None) => done.push(answer.id),
            (None, _) if !present.contains(&answer.row_id) => done.push(answer.id),
            (None, _) => {}
        }
    }
    // The questions leave as answered, not as closed.
    let taken = reviews::remove(done)?;
    flush::flush(world, batch, events)?;
    Ok(taken)
}

fn resolve(
    world: &World,
    mirror: &Mirror,
    case: &mut Case,
    field: usize,
    answer: &Answer,
    now: Millis,
) -> Option<EventRow> {
    let info = &world.groups[mirror.group];
    let sides = &info.group.sides;
    let side = sides
        .iter()
        .position(|s| s.mirror == answer.answer_mirror)?;
    let own = info.group.column(field, mirror.side)?.field.clone();
    let shown = case.entity.records[mirror.side].values[field].clone();
    let resolution = Resolution {
        field,
        side,
        value: answer.value.clone(),
        clock: Clock {
            at: Interval::instant(answer.at),
            seq: 0,
            origin: LOCAL.to_owned(),
            ..Clock::default()
        },
    };
    let mut decisions = case.resolve(world, mirror.side, &resolution, now);
    let named = sides.iter().any(|s| s.origin == answer.resolution);
    for decision in decisions.iter_mut().filter(|_| named) {
        decision.winner.clone_from(&answer.resolution);
    }
    Some(EventRow {
        row_id: Some(answer.row_id),
        record_id: case.rows[mirror.side].as_ref()?.record_id.clone(),
        entity: case.entity_id,
        fields: vec![own],
        old_values: vec![shown],
        new_values: vec![case.entity.records[mirror.side].values[field].clone()],
        carried: record::take_carried(world, case),
        ..event(world, mirror, answer, &decisions)
    })
}

/// The line of the ledger about an answer: the question as it stood, who
/// answered what, and which values lost.
pub(crate) fn event(
    world: &World,
    mirror: &Mirror,
    answer: &Answer,
    decisions: &[Decision],
) -> EventRow {
    let question: serde_json::Value = serde_json::from_str(&answer.question).unwrap_or_default();
    let listed = decision_json(world, mirror, decisions)
        .and_then(|text| serde_json::from_str::<Vec<serde_json::Value>>(&text).ok());
    let mut listed = listed.unwrap_or_default();
    if listed.is_empty() {
        listed
            .push(serde_json::json!({"step": "resolved", "winner": LOCAL, "value": answer.value}));
    }
    if let Some(first) = listed.first_mut() {
        first["question"] = question;
    }
    EventRow {
        mirror: mirror.id,
        row_id: Some(answer.row_id).filter(|row| *row > 0),
        entity: answer.entity,
        kind: "resolved",
        origin: LOCAL.to_owned(),
        source: "review".to_owned(),
        occurred_at: answer.at,
        actor: Some(answer.by.clone()),
        application: answer.with.clone(),
        reason: answer.why.clone(),
        decision: Some(serde_json::Value::Array(listed).to_string()),
        ..EventRow::default()
    }
}

/// The lines of the ledger about questions that nobody need answer any more,
/// because of what happened to their record on the side of a mirror.
pub(crate) fn ended(
    world: &World,
    questions: Vec<Ended>,
    mirror: &Mirror,
    because: &str,
    at: Millis,
) -> Result<()> {
    show_again(world, &questions)?;
    let line = |ended: Ended| {
        let question: serde_json::Value = serde_json::from_str(&ended.question).unwrap_or_default();
        let decision =
            serde_json::json!([{"step": "ended", "field": ended.field, "question": question}]);
        EventRow {
            mirror: ended.mirror,
            row_id: Some(ended.row_id).filter(|row| *row > 0),
            entity: Some(ended.entity).filter(|entity| *entity > 0),
            kind: "resolved",
            origin: mirror.server.clone(),
            source: "link".to_owned(),
            occurred_at: at,
            reason: Some(because.to_owned()),
            decision: Some(decision.to_string()),
            ..EventRow::default()
        }
    };
    flush::append(world, questions.into_iter().map(line).collect())
}

/// Has the records of rows read again about which somebody was asked: a row may go on
/// showing what a policy took back on its way to its CRM. What is still on its way
/// makes them agree by itself.
fn show_again(world: &World, questions: &[Ended]) -> Result<()> {
    let mut of_mirror: BTreeMap<i32, BTreeSet<i64>> = BTreeMap::new();
    let ended: Vec<&Ended> = questions.iter().filter(|q| q.field.is_some()).collect();
    let tied = ends::rows_of(ended.iter().map(|q| q.entity).collect())?;
    // A row that was removed is untied by now, and one that stays may be.
    let asked = ended.iter().map(|q| (q.mirror, q.row_id));
    for (mirror, row) in tied.into_iter().chain(asked) {
        of_mirror.entry(mirror).or_default().insert(row);
    }
    let mut reads = Vec::new();
    for (id, mut rows) in of_mirror {
        let Some(mirror) = world.mirrors.get(&id) else {
            continue;
        };
        let asked: Vec<i64> = rows.iter().copied().collect();
        for row in drift::unfinished(id, &asked)? {
            rows.remove(&row);
        }
        let records = lives::shown(&mirror.table, rows.into_iter().collect())?;
        reads.extend(records.into_iter().map(|record| flush::reread(id, record)));
    }
    streams::defer(reads)?;
    Ok(())
}
