//! Servers: their options and credentials go to the I/O thread, their catalogs
//! come back, `crm.server_check` is answered.

use std::collections::HashMap;

use crm_core::catalog::{CatalogRefresh, CheckRow, ServerCheck, Wanted};
use crm_core::connectors;
use crm_core::http::{HttpRequest, HttpResponse};
use crm_core::model::RemoteError;
use crm_io::{Command, Tag};

use crate::pg::guc;
use crate::pg::shmem::Request;
use crate::pg::store::catalog::{self, ServerRow};
use crate::pg::tx;
use crate::worker::drift;
use crate::worker::engine::{self, Engine, Job, Server, Step, now};
use crate::worker::journal;
use crate::worker::reconcile;
use crate::worker::specs::{check_events, config, journal_spec, spec};

/// A catalog refresh on its way, and who waits for it.
pub(crate) struct Refresh {
    machine: CatalogRefresh,
    ticket: i64,
    /// Only objects that were known are described.
    known: bool,
    /// Requests sent so far: the index of the next.
    sent: usize,
}

/// What is wanted of a server's catalog next, while a refresh is under way.
#[derive(Default)]
pub(crate) struct NextRefresh {
    hashes: Vec<String>,
    ticket: i64,
}

/// Reads servers and credentials again, and tells the I/O thread. What it finds
/// out is noted where this cluster may write to CRMs, or somebody `asked`: rows
/// made here would collide with those of a dump that is being restored.
pub(crate) fn load(engine: &mut Engine, asked: bool) -> Step<()> {
    let may_note = asked || engine.active;
    let rows = tx::in_transaction(|| Ok(catalog::servers()?))?;
    let gone: Vec<u32> = engine
        .servers
        .iter()
        .filter(|s| !rows.iter().any(|r| r.oid == s.id))
        .map(|s| s.id)
        .collect();
    for id in gone {
        engine.refreshes.remove(&id);
        engine.submit(Command::Forget(id));
        engine.submit(Command::Forget(journal::io_id(id)));
    }
    let before = ways(engine);
    engine.servers.clear();
    engine.world.connectors.clear();
    for row in rows {
        let Some(connector) = connectors::by_type(&row.server_type) else {
            continue;
        };
        engine.world.connectors.insert(row.name.clone(), connector);
        let mut server = Server {
            id: row.oid,
            name: row.name.clone(),
            connector,
            config: config(&row, &engine.world.installation),
            webhook_secret: None,
            webhook_url: Some(row.option("webhook_url").to_owned())
                .filter(|u| !u.is_empty())
                .or_else(|| {
                    guc::webhook_public_url().map(|base| format!("{base}/webhook/{}", row.name))
                }),
            journal: None,
            usable: false,
        };
        match spec(&row, &server) {
            Ok((mut spec, app)) => {
                server.journal = journal_spec(&row, &spec, app)
                    .filter(|spec| engine.submit(Command::Configure(Box::new(spec.clone()))))
                    .map(|spec| spec.id);
                if row.option("events") == "poll" {
                    spec.webhook = None;
                }
                server.webhook_secret = spec.webhook.as_ref().map(|w| w.secret.clone());
                server.usable = engine.submit(Command::Configure(Box::new(spec)));
            }
            Err(problem) if may_note => note_problem(&row, &problem)?,
            Err(_) => {}
        }
        let unread = server.usable && !row.known && may_note;
        let id = server.id;
        engine.servers.push(server);
        if unread && !engine.refreshes.contains_key(&id) {
            refresh(engine, &row, Vec::new(), 0)?;
        }
    }
    close_changed_streams(engine, &before);
    engine.load_budgets(true, now())
}

/// Ends streams whose server's option `stream` says otherwise now; they are
/// opened again the other way.
fn close_changed_streams(engine: &mut Engine, before: &HashMap<String, &'static str>) {
    let mut ways = ways(engine);
    engine.unsubscribe(|s| ways.get(&s.server).is_some_and(|way| *way != s.source));
    // What was refused one way is asked for the other way at once.
    ways.retain(|server, way| before.get(server).is_some_and(|old| old != way));
    let changed = engine.world.mirrors.values();
    let changed: Vec<i32> = changed
        .filter(|m| ways.contains_key(&m.server))
        .map(|m| m.id)
        .collect();
    for id in changed {
        engine.watch(id).stream_at = 0;
    }
}

/// How the streams of each server come.
fn ways(engine: &Engine) -> HashMap<String, &'static str> {
    let servers = engine.servers.iter();
    servers.map(|s| (s.name.clone(), s.stream())).collect()
}

fn note_problem(row: &ServerRow, problem: &str) -> Step<()> {
    if row.last_error.as_deref() == Some(problem) {
        return Ok(());
    }
    let advice = format!(
        "Mend it, then call SELECT * FROM crm.server_check('{}');",
        row.name
    );
    tx::in_transaction(|| {
        catalog::store_failure(&row.name, &row.server_type, 0, problem, &advice)?;
        Ok(())
    })
}

/// Starts a catalog refresh, or notes what the next one must bring.
fn refresh(engine: &mut Engine, row: &ServerRow, hashes: Vec<String>, ticket: i64) -> Step<()> {
    if engine.refreshes.contains_key(&row.oid) {
        let next = engine.next_refreshes.entry(row.oid).or_default();
        next.hashes.extend(hashes);
        next.ticket = next.ticket.max(ticket);
        return Ok(());
    }
    let Some(server) = engine.server_by_id(row.oid).filter(|s| s.usable) else {
        let problem = row
            .last_error
            .clone()
            .unwrap_or_else(|| "The server cannot be used.".to_owned());
        return tx::in_transaction(|| {
            catalog::store_failure(
                &row.name,
                &row.server_type,
                ticket,
                &problem,
                &format!("See SELECT * FROM crm.server_check('{}');", row.name),
            )?;
            Ok(())
        });
    };
    let wanted = Wanted {
        objects: row.objects.clone(),
        hashes,
        ..Wanted::default()
    };
    let (machine, requests) =
        CatalogRefresh::start(server.connector, server.config.clone(), wanted);
    engine.refreshes.insert(
        row.oid,
        Refresh {
            machine,
            ticket,
            known: false,
            sent: 0,
        },
    );
    send_catalog(engine, row.oid, 0, requests)
}

/// Describes the mirrored objects of a server again; where `conditional`, the CRM
/// is asked for those alone that changed since, if it can tell.
pub(crate) fn describe_again(engine: &mut Engine, id: u32, conditional: bool) -> Step<()> {
    let Some(server) = engine.server_by_id(id).filter(|s| s.usable) else {
        return Ok(());
    };
    let (name, connector, config) = (&server.name, server.connector, server.config.clone());
    let mirrors = engine.world.mirrors.values();
    let objects: Vec<String> = mirrors
        .filter(|m| m.server == *name)
        .map(|m| m.object.clone())
        .collect();
    if objects.is_empty() || engine.refreshes.contains_key(&id) {
        return Ok(());
    }
    let since = match conditional {
        true => engine.described_since(id),
        false => HashMap::new(),
    };
    let wanted = Wanted {
        objects,
        known: true,
        since,
        ..Wanted::default()
    };
    let (machine, requests) = CatalogRefresh::start(connector, config, wanted);
    let refresh = Refresh {
        machine,
        ticket: 0,
        known: true,
        sent: 0,
    };
    engine.refreshes.insert(id, refresh);
    send_catalog(engine, id, 0, requests)
}

/// Sends requests of a refresh; a request that finds no room counts as failed.
fn send_catalog(
    engine: &mut Engine,
    server: u32,
    mut first: usize,
    requests: Vec<HttpRequest>,
) -> Step<()> {
    let mut queue: Vec<HttpRequest> = requests;
    queue.reverse();
    while let Some(request) = queue.pop() {
        let part = first;
        first += 1;
        if !engine.call(
            server,
            Tag::default(),
            request,
            Job::Catalog { server, part },
        ) && let Some(refresh) = engine.refreshes.get_mut(&server)
        {
            queue.extend(refresh.machine.refused(part));
        }
    }
    if let Some(refresh) = engine.refreshes.get_mut(&server) {
        refresh.sent = first;
    }
    catalog_done(engine, server)
}

fn catalog_done(engine: &mut Engine, id: u32) -> Step<()> {
    if !engine.refreshes.get(&id).is_some_and(|r| r.machine.done()) {
        return Ok(());
    }
    let (Some(refresh), Some(server)) = (engine.refreshes.get(&id), engine.server_by_id(id)) else {
        return Ok(());
    };
    let (name, connector) = (server.name.clone(), server.connector);
    let (kind, world, now) = (connector.name(), &engine.world, engine::now());
    let machine = &refresh.machine;
    // Stored before it is forgotten: a lock that a user holds only delays it.
    let changes = tx::in_transaction(|| {
        let error = machine.error.as_ref();
        let mut changes = 0;
        if refresh.known || error.is_none() {
            changes = drift::learn(
                world,
                &name,
                connector.renames_fields(),
                &machine.fields,
                now,
            )?;
            let objects = (!refresh.known).then_some(machine.objects.as_slice());
            catalog::store_catalog(&name, kind, refresh.ticket, objects, &machine.fields)?;
        }
        if let Some(error) = error {
            catalog::store_error(&name, kind, refresh.ticket, error)?;
        }
        Ok(changes)
    })?;
    let stamp_of = |object: &String| {
        let found = machine.described.iter().find(|(o, _)| o == object);
        found.map(|(_, stamp)| stamp.clone())
    };
    let mut stamps: Vec<_> = (machine.fields.iter())
        .map(|(object, _)| (object.clone(), stamp_of(object)))
        .collect();
    stamps.extend(machine.unchanged.iter().map(|o| (o.clone(), None)));
    let whole = !refresh.known && machine.error.is_none();
    engine.described(id, stamps, changes, now);
    engine.refreshes.remove(&id);
    if whole {
        engine.ask_for_streams(&name, None)?;
    }
    if let Some(next) = engine.next_refreshes.remove(&id)
        && let Some(row) = row_of(id)?
    {
        refresh_again(engine, &row, next)?;
    }
    Ok(())
}

/// Stores catalogs that are read but could not be stored before.
pub(crate) fn store_done(engine: &mut Engine) -> Step<()> {
    let done: Vec<u32> = engine
        .refreshes
        .iter()
        .filter(|(_, r)| r.machine.done())
        .map(|(id, _)| *id)
        .collect();
    for id in done {
        catalog_done(engine, id)?;
    }
    Ok(())
}

fn refresh_again(engine: &mut Engine, row: &ServerRow, next: NextRefresh) -> Step<()> {
    refresh(engine, row, next.hashes, next.ticket)
}

fn row_of(id: u32) -> Step<Option<ServerRow>> {
    let rows = tx::in_transaction(|| Ok(catalog::servers()?))?;
    Ok(rows.into_iter().find(|r| r.oid == id))
}

/// Serves what a user's backend asked for outside its transaction.
pub(crate) fn on_request(engine: &mut Engine, request: &Request) -> Step<()> {
    if let Some(("poll", mirror)) = request.kind.split_once(':') {
        if let Ok(mirror) = mirror.parse() {
            engine.watch(mirror).poll_at = 0;
            let known = engine.world.mirrors.get(&mirror);
            if let Some((server, object)) = known.map(|m| (m.server.clone(), m.object.clone())) {
                engine.ask_for_streams(&server, Some(&object))?;
            }
        }
        return Ok(());
    }
    // The server may be newer than what was read last.
    load(engine, true)?;
    let Some(row) = row_of(request.server_oid.to_u32())? else {
        return Ok(());
    };
    match request.kind.split_once(':') {
        Some(("fields", hash)) => refresh(engine, &row, vec![hash.to_owned()], request.ticket),
        _ if request.kind == "check" => check(engine, &row, request.ticket),
        _ => refresh(engine, &row, Vec::new(), request.ticket),
    }
}

fn check(engine: &mut Engine, row: &ServerRow, ticket: i64) -> Step<()> {
    let mut rows = Vec::new();
    let server = engine.server_by_id(row.oid);
    let Some(server) = server else {
        rows.push(CheckRow::new(
            "type",
            Some(false),
            format!("TYPE is '{}'", row.server_type),
            Some("Make the server with TYPE 'hubspot' or 'salesforce'."),
        ));
        return finish_check(ticket, &rows);
    };
    match spec(row, server) {
        Ok(_) => rows.push(CheckRow::new(
            "credentials",
            Some(true),
            row.option("credentials"),
            None,
        )),
        Err(problem) => {
            rows.push(CheckRow::new(
                "credentials",
                Some(false),
                problem,
                Some("Mend the credential file or variable; see docs/servers-and-credentials.md."),
            ));
            return finish_check(ticket, &rows);
        }
    }
    rows.extend(check_events(engine, row));
    let mirrored = engine
        .world
        .mirrors
        .values()
        .filter(|m| m.server == row.name)
        .map(|m| m.object.clone())
        .collect();
    let (name, connector, config) = (row.name.clone(), server.connector, server.config.clone());
    engine.ask_for_streams(&name, None)?;
    let (machine, requests) = ServerCheck::start(connector, config, mirrored, rows);
    engine.checks.insert(ticket, (row.oid, machine, 0));
    send_check(engine, ticket, requests)
}

fn send_check(engine: &mut Engine, ticket: i64, requests: Vec<HttpRequest>) -> Step<()> {
    let mut queue: Vec<HttpRequest> = requests;
    queue.reverse();
    while let Some(request) = queue.pop() {
        let Some((server, _, sent)) = engine.checks.get_mut(&ticket) else {
            return Ok(());
        };
        let (server, part) = (*server, *sent);
        *sent += 1;
        if !engine.call(server, Tag::default(), request, Job::Check { ticket, part })
            && let Some((_, machine, _)) = engine.checks.get_mut(&ticket)
        {
            queue.extend(machine.refused(part));
        }
    }
    if engine.checks.get(&ticket).is_some_and(|(_, m, _)| m.done())
        && let Some((server, machine, _)) = engine.checks.remove(&ticket)
    {
        if let (Some(tenant), Some(server)) = (&machine.tenant, engine.server_by_id(server)) {
            tx::in_transaction(|| Ok(catalog::store_tenant(&server.name, tenant)?))?;
        }
        if let Some(account) = machine.account {
            engine.know_account(server, account)?;
        }
        finish_check(ticket, &machine.rows)?;
    }
    Ok(())
}

fn finish_check(ticket: i64, rows: &[CheckRow]) -> Step<()> {
    let rows: Vec<catalog::Finding> = rows
        .iter()
        .map(|r| (r.item.clone(), r.ok, r.detail.clone(), r.advice.clone()))
        .collect();
    tx::in_transaction(|| Ok(catalog::store_check(ticket, &rows)?))
}

/// Takes the answer to a part of a refresh or a check.
pub(crate) fn on_answer(
    engine: &mut Engine,
    job: Job,
    result: Result<HttpResponse, RemoteError>,
) -> Step<()> {
    match job {
        Job::Catalog { server, part } => {
            let Some(refresh) = engine.refreshes.get_mut(&server) else {
                return Ok(());
            };
            let more = refresh.machine.answer(part, result);
            let first = refresh.sent;
            send_catalog(engine, server, first, more)
        }
        Job::Check { ticket, part } => {
            let Some((_, machine, _)) = engine.checks.get_mut(&ticket) else {
                return Ok(());
            };
            let more = machine.answer(part, result);
            send_check(engine, ticket, more)
        }
        Job::Zone { server } => reconcile::zone_known(engine, &server, result.as_ref()),
        Job::Account { server } => {
            let account = result.ok().and_then(|response| {
                let known = engine.server_by_id(server)?;
                Some(known.connector.account(&response))
            });
            account.map_or(Ok(()), |account| engine.know_account(server, account))
        }
        _ => Ok(()),
    }
}
