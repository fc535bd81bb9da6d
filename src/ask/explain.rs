//! `crm.explain`: what would follow from a statement, an event or a write, told
//! by the code that would do it, in a subtransaction that is undone.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crm_core::guard::Window;
use pgrx::JsonB;
use pgrx::prelude::*;

use super::cost;
use super::told::{self, Line};
use crate::pg::capture::{self, Staged};
use crate::pg::store::ask::OpenWrite;
use crate::pg::store::{ask, changes};
use crate::pg::tx::{self, SqlError};
use crate::pg::{guc, report, statement};
use crate::worker::ingest::{self, Inbound};
use crate::worker::rehearsal::Rehearsal;
use crate::worker::repolicy::{self, Turn};
use crate::worker::world::World;
use crate::worker::{local, now, source_name};

/// Most rows that anybody may ask for.
const MAX_ROWS: i32 = 10_000;
/// Steps of a change of policy at most: each takes some hundred entities.
const TURNS_MAX: u32 = 1_000;

type Row = (
    &'static str,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<JsonB>,
    Option<String>,
    Option<i64>,
    Option<String>,
    Option<i32>,
    String,
    Option<String>,
);

fn row(line: Line) -> Row {
    (
        line.what,
        line.server,
        line.object,
        line.record,
        line.field,
        line.value,
        line.instead_of,
        line.competing.map(JsonB),
        line.winner,
        line.rule,
        line.decided_by,
        line.calls,
        line.verdict,
        line.detail,
    )
}

/// What would follow from a statement on a mirror. Runs it with the rights of
/// the caller, and undoes it.
#[pg_extern(name = "explain", volatile, parallel_unsafe)]
#[allow(
    clippy::type_complexity,
    reason = "pgrx reads the names of the columns here"
)]
fn explain_statement(
    statement: Option<&str>,
    max_rows: default!(Option<i32>, 1000),
) -> TableIterator<
    'static,
    (
        name!(what, &'static str),
        name!(server, Option<String>),
        name!(object, Option<String>),
        name!(record, Option<String>),
        name!(field, Option<String>),
        name!(value, Option<String>),
        name!(instead_of, Option<String>),
        name!(competing, Option<JsonB>),
        name!(winner, Option<String>),
        name!(rule, Option<i64>),
        name!(decided_by, Option<String>),
        name!(calls, Option<i32>),
        name!(verdict, String),
        name!(detail, Option<String>),
    ),
> {
    let Some(statement) = statement else {
        statement::refuse("it is null");
    };
    let max_rows = bounded(max_rows);
    let told = tx::rehearse(|| of_statement(statement, max_rows));
    TableIterator::new(finished(told).into_iter().map(row))
}

/// What would follow from an event that waits, or from a write that is not sent.
#[pg_extern(name = "_explain_pending", volatile, parallel_unsafe)]
#[allow(
    clippy::type_complexity,
    reason = "pgrx reads the names of the columns here"
)]
fn explain_pending(
    event: Option<i64>,
    write: Option<i64>,
) -> TableIterator<
    'static,
    (
        name!(what, &'static str),
        name!(server, Option<String>),
        name!(object, Option<String>),
        name!(record, Option<String>),
        name!(field, Option<String>),
        name!(value, Option<String>),
        name!(instead_of, Option<String>),
        name!(competing, Option<JsonB>),
        name!(winner, Option<String>),
        name!(rule, Option<i64>),
        name!(decided_by, Option<String>),
        name!(calls, Option<i32>),
        name!(verdict, String),
        name!(detail, Option<String>),
    ),
> {
    let told = match (event, write) {
        (Some(event), None) => tx::rehearse(|| tx::as_worker(|| of_event(event))),
        (None, Some(write)) => tx::as_worker(|| of_write(write)),
        _ => Err(SqlError {
            hint: Some("For example SELECT * FROM crm.explain(write => 17); ids of events are in crm.deferred, of writes in crm.outbox.".to_owned()),
            ..SqlError::new("22023", "name one event or one write")
        }),
    };
    TableIterator::new(finished(told).into_iter().map(row))
}

/// What would be decided otherwise under a policy that is only thought of.
#[pg_extern(name = "_explain_policy", volatile, parallel_unsafe)]
#[allow(
    clippy::type_complexity,
    reason = "pgrx reads the names of the columns here"
)]
fn explain_policy(
    policy: JsonB,
    max_rows: i32,
) -> TableIterator<
    'static,
    (
        name!(what, &'static str),
        name!(server, Option<String>),
        name!(object, Option<String>),
        name!(record, Option<String>),
        name!(field, Option<String>),
        name!(value, Option<String>),
        name!(instead_of, Option<String>),
        name!(competing, Option<JsonB>),
        name!(winner, Option<String>),
        name!(rule, Option<i64>),
        name!(decided_by, Option<String>),
        name!(calls, Option<i32>),
        name!(verdict, String),
        name!(detail, Option<String>),
    ),
> {
    let max_rows = bounded(Some(max_rows));
    let told = tx::rehearse(|| of_policy(policy, max_rows));
    TableIterator::new(finished(told).into_iter().map(row))
}

fn bounded(max_rows: Option<i32>) -> i32 {
    match max_rows {
        Some(rows) if (1..=MAX_ROWS).contains(&rows) => rows,
        _ => report::refuse(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!(
                "max_rows cannot be {}",
                max_rows.map_or_else(|| "null".to_owned(), |n| n.to_string())
            ),
            Some(format!("Expected 1 to {MAX_ROWS}.")),
            "Leave it out for 1000.",
        ),
    }
}

fn finished(told: Result<Vec<Line>, SqlError>) -> Vec<Line> {
    match told {
        Ok(lines) => lines,
        Err(error) => report::raise(&error),
    }
}

/// The configuration, with connectors, for decisions without effect.
fn rehearsing() -> Result<World, SqlError> {
    with_connectors(super::world(None))
}

fn with_connectors(mut world: World) -> Result<World, SqlError> {
    for (server, server_type) in ask::servers()? {
        if let Some(connector) = crm_core::connectors::by_type(&server_type) {
            world.connectors.insert(server, connector);
        }
    }
    world.rehearsal = Some(Rehearsal::default());
    Ok(world)
}

fn of_statement(statement: &str, max_rows: i32) -> Result<Vec<Line>, SqlError> {
    let mut world = tx::as_worker(rehearsing)?;
    let targets = statement::targets(statement);
    for target in &targets {
        let known = |relid: u32| world.mirrors.values().any(|m| m.table.relid == relid);
        if !known(target.relid) {
            statement::refuse(&format!("\"{}\" is no mirror", target.name));
        }
    }
    // In a subtransaction of its own, so that a refusal of the guard can be told.
    let run = tx::in_subtransaction(|| {
        let mut failed = None;
        let staged = capture::staged(max_rows, || failed = statement::run(statement).err());
        failed.map_or(Ok(staged), Err)
    });
    match run {
        Err(error) if is_guard(&error) => Ok(vec![guard("refused", error.message)]),
        Err(error) => Err(error),
        Ok(None) => Ok(vec![guard(
            "passes",
            "the statement changes no row".to_owned(),
        )]),
        Ok(Some(staged)) => tx::as_worker(|| decided(&mut world, staged)),
    }
}

/// Whether it was the guard that refused a statement.
fn is_guard(error: &SqlError) -> bool {
    let names = |hint: &String| hint.contains("pg_crm_sync.guard_hard_");
    error.sqlstate == "54000" && error.hint.as_ref().is_some_and(names)
}

fn guard(verdict: &str, detail: String) -> Line {
    Line {
        what: "guard",
        verdict: verdict.to_owned(),
        detail: Some(detail),
        ..Line::default()
    }
}

/// Decides what a statement changed, as the worker would.
fn decided(world: &mut World, staged: Staged) -> Result<Vec<Line>, SqlError> {
    let rows = changes::of_statement(staged.tx, staged.first)?;
    let mut by_mirror: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
    for (mirror, row) in &rows {
        by_mirror.entry(*mirror).or_default().push(*row);
    }
    let limit = |rows: Option<u64>| rows.map_or("never".to_owned(), |n| format!("above {n}"));
    let verdict = if staged.held { "held" } else { "passes" };
    let limits = format!(
        "rows changed: {} (other transactions of the writer are not counted); held {}, refused {} rows or {} deletes of a mirror",
        rows.len(),
        limit(guc::guard_soft_rows()),
        limit(guc::guard_hard_rows()),
        limit(guc::guard_hard_deletes()),
    );
    let mut lines = rehearsed(world, &rows, |world| {
        // What the writer changed in other transactions only the worker counts.
        let mut window = Window::default();
        Ok(local::drain_rows(world, &mut window, by_mirror, now())?.locked)
    })?;
    lines.push(guard(verdict, limits));
    Ok(lines)
}

/// Runs a part of the engine on these rows, and tells what it did and left to do.
fn rehearsed(
    world: &mut World,
    rows: &[(i32, i64)],
    part: impl FnOnce(&World) -> Result<usize, SqlError>,
) -> Result<Vec<Line>, SqlError> {
    let known: BTreeSet<(i32, i64)> = ask::with_partners(rows)?.into_iter().collect();
    let all = |set: &BTreeSet<(i32, i64)>| set.iter().copied().collect::<Vec<_>>();
    let before = ask::open_writes(&all(&known))?;
    let asked = ask::questions(&all(&known))?;
    let outcome = tx::in_subtransaction(|| part(world));
    let (decided, events) = world.rehearsal.take().unwrap_or_default().end();
    let mut lines: Vec<Line> = decided.iter().map(|j| told::decided(world, j)).collect();
    let whole = events
        .iter()
        .filter(|e| matches!(e.kind, "create" | "delete"));
    lines.extend(whole.map(|e| told::whole(world, e)));
    match outcome {
        Err(error) => lines.push(Line {
            what: "change",
            verdict: "parked".to_owned(),
            detail: Some(format!(
                "the database refuses what follows from it: {error}"
            )),
            ..Line::default()
        }),
        Ok(locked) if locked > 0 => lines.push(Line {
            what: "change",
            verdict: "waits".to_owned(),
            detail: Some(format!(
                "{locked} records wait: another transaction holds them or their counterparts"
            )),
            ..Line::default()
        }),
        Ok(_) => {}
    }
    let mut touched = known.clone();
    touched.extend(ask::with_partners(rows)?);
    let after = ask::open_writes(&all(&touched))?;
    let (old, new): (Vec<i64>, Vec<_>) = (
        asked.iter().map(|q| q.0).collect(),
        ask::questions(&all(&touched))?,
    );
    for (_, mirror, row_id, reason) in new.iter().filter(|q| !old.contains(&q.0)) {
        lines.push(told::question(world, *mirror, *row_id, reason));
    }
    let made = |at: &(i32, i64)| {
        let create = |w: &&OpenWrite| w.kind == "create" && (w.mirror, w.row_id) == *at;
        after.iter().any(|w| create(&w))
    };
    for (mirror, row_id) in touched.difference(&known).filter(|at| !made(at)) {
        lines.push(told::tie(world, *mirror, *row_id));
    }
    lines.extend(told::writes(world, &before, &after));
    let fresh: Vec<&OpenWrite> = (after.iter()).filter(|w| !before.contains(w)).collect();
    lines.extend(cost::calls(world, &fresh));
    Ok(lines)
}

/// What would follow from an event that waits, after those of its record before it.
fn of_event(id: i64) -> Result<Vec<Line>, SqlError> {
    let mut world = rehearsing()?;
    let taken = ask::waiting(id)?;
    let Some(last) = taken.last() else {
        return Err(SqlError {
            detail: Some("Events that wait to be decided are rows of crm.deferred.".to_owned()),
            hint: Some(
                "SELECT id, record_id, reason FROM crm.deferred; what was decided is in crm.event."
                    .to_owned(),
            ),
            ..SqlError::new("42704", format!("no event {id} waits"))
        });
    };
    let mirror = world.mirrors.get(&last.mirror);
    let mut lines = Vec::new();
    if last.reason == "read" {
        lines.push(Line {
            what: "calls",
            server: mirror.map(|m| m.server.clone()),
            object: mirror.map(|m| m.object.clone()),
            record: Some(last.record_id.clone()),
            calls: Some(1),
            verdict: "costs".to_owned(),
            detail: Some("the record is read first, with others in one call; what it then shows is decided field by field".to_owned()),
            ..Line::default()
        });
    }
    let batch: Vec<Inbound> = (taken.iter())
        .filter_map(|w| {
            Some(Inbound {
                waited: None,
                mirror: w.mirror,
                source: source_name(&w.source),
                stream: None,
                change: Rc::new(serde_json::from_str(&w.change).ok()?),
                identity: None,
            })
        })
        .collect();
    let rows = ask::rows_of(last.mirror, &last.record_id, mirror.map(|m| &m.table))?;
    lines.extend(rehearsed(&mut world, &rows, |world| {
        Ok(ingest::apply(world, batch, now())?.locked)
    })?);
    Ok(lines)
}

/// What is open and would be decided otherwise under a draft of the policy. The
/// worker's own tasks are left out: they go on under the policy that is.
fn of_policy(draft: JsonB, max_rows: i32) -> Result<Vec<Line>, SqlError> {
    let waiting = tx::as_worker(ask::last_task)?;
    let before = super::world(None);
    let json = ask::with_draft(draft)?;
    tx::as_worker(|| {
        let rows = serde_json::from_str(&json)
            .map_err(|e| SqlError::new("XX000", format!("cannot read the configuration: {e}")))?;
        let mut world = with_connectors(World::new(rows))?;
        let notes = told::later(&before, &world);
        ask::forget_tasks(waiting)?;
        let open = ask::unsettled(i64::from(max_rows) + 1)?;
        if i32::try_from(open.len()).is_ok_and(|n| n > max_rows) {
            return Err(SqlError {
                detail: Some(
                    "Each has a field that waits for a write, an answer or a person.".to_owned(),
                ),
                hint: Some(
                    "Give a higher max_rows (at most 10000), or wait until less is under way."
                        .to_owned(),
                ),
                ..SqlError::new(
                    "54000",
                    format!("more than {max_rows} records are not settled"),
                )
            });
        }
        let mut lines = rehearsed(&mut world, &open, |world| {
            let mut turns = 0;
            loop {
                turns += 1;
                match repolicy::step(world, now())? {
                    Turn::More if turns < TURNS_MAX => {}
                    Turn::Idle | Turn::More => return Ok(0),
                    Turn::Locked => return Ok(1),
                }
            }
        })?;
        lines.extend(notes);
        Ok(lines)
    })
}

/// What a write that is not finished would send, and why it has not.
fn of_write(id: i64) -> Result<Vec<Line>, SqlError> {
    let world = rehearsing()?;
    let Some(write) = ask::write(id)? else {
        return Err(SqlError {
            detail: Some(
                "Writes that are done have left the outbox; they stand in crm.event.".to_owned(),
            ),
            hint: Some("SELECT id, mirror, state FROM crm.outbox;".to_owned()),
            ..SqlError::new("42704", format!("there is no write {id}"))
        });
    };
    let mut lines = told::of_write(&world, &write, |_, _| true);
    lines.extend(cost::calls(&world, &[&write]));
    let verdict = if write.state == "held" {
        "held"
    } else {
        "passes"
    };
    lines.push(guard(verdict, format!("the write is {}", write.state)));
    Ok(lines)
}
