//! What arrives: webhooks, stream events and pages, each applied in one
//! transaction with the offset that covers it; a poison event is parked and
//! the rest goes on.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

use crm_core::identity::{self, Identity};
use crm_core::model::{Change, Millis};
use crm_io::{Command, Content, Opened, StreamItem};

use crate::pg::store::config;
use crate::pg::store::ledger;
use crate::pg::store::streams::{self, Advance, Poison};
use crate::pg::tx::{self, SqlError};
use crate::worker::engine::{Copied, Engine, Server, Step};
use crate::worker::ingest::{self, Applied, Inbound};
use crate::worker::world::World;

/// A change with its identity and the server it came from.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) server: String,
    pub(crate) source: &'static str,
    /// Row of `crm.stream`, where known.
    pub(crate) stream: Option<i32>,
    pub(crate) change: Rc<Change>,
}

/// A webhook that waits for its answer.
pub(crate) struct Waiting {
    pub(crate) token: u64,
    pub(crate) status: u16,
    pub(crate) reason: &'static str,
}

/// Checks and decodes a webhook. Refusals are statuses, never log lines.
fn open(server: &Server, content: Content, now: Millis) -> Opened {
    let Some(secret) = &server.webhook_secret else {
        return Err((403, "no webhook secret is configured for this server"));
    };
    match content {
        Content::Opened(opened) => opened,
        Content::Raw(delivery) => {
            let url = server.webhook_url.as_deref();
            crm_io::open(server.connector, secret, url, delivery, now)
        }
    }
}

/// Applies arrivals and moves the offsets, all in one transaction if it can be;
/// otherwise piece by piece, parking what fails.
pub(crate) fn apply(
    engine: &mut Engine,
    arrivals: Vec<Arrival>,
    advances: Vec<(i32, Advance)>,
    queued: Vec<i64>,
    now: Millis,
) -> Step<()> {
    let world = &engine.world;
    let linked = |a: &Arrival| {
        let mirror = world.mirror_of(&a.server, &a.change.object);
        mirror.is_none_or(|m| world.groups[m.group].group.sides.len() > 1)
    };
    let linked = arrivals.iter().any(linked);
    let whole = tx::in_transaction(|| {
        let applied = apply_new(world, &arrivals, now)?;
        for (stream, advance) in &advances {
            streams::advance(*stream, advance.clone())?;
        }
        streams::drop_webhooks(queued.clone())?;
        Ok(applied)
    });
    let applied = match whole {
        Ok(applied) => applied,
        Err(error) if arrivals.is_empty() || config::is_passing(&error) => return Err(error),
        Err(_) => {
            let applied = bisect(world, &arrivals, now)?;
            tx::in_transaction(|| {
                for (stream, advance) in &advances {
                    streams::advance(*stream, advance.clone())?;
                }
                streams::drop_webhooks(queued.clone())?;
                Ok(())
            })?;
            applied
        }
    };
    engine.linked_events = linked;
    engine.may_send = true;
    for mirror in applied.overflowed {
        restart_backfill(engine, mirror)?;
    }
    Ok(())
}

fn restart_backfill(engine: &mut Engine, mirror: i32) -> Step<()> {
    tx::in_transaction(|| Ok(streams::backfill_restart(mirror)?))?;
    let watch = engine.watch(mirror);
    watch.backfilling = false;
    watch.ranges = None;
    watch.copied = Copied::default();
    Ok(())
}

fn apply_new(world: &World, arrivals: &[Arrival], now: Millis) -> Result<Applied, SqlError> {
    if arrivals.is_empty() {
        return Ok(Applied::default());
    }
    let identities: Vec<Identity> = arrivals
        .iter()
        .map(|a| identity::digest(&a.server, &a.change.identity))
        .collect();
    let mut fresh = ledger::take_identities(&identities)?;
    fresh.sort_unstable();
    let batch: Vec<Inbound> = fresh
        .into_iter()
        .filter_map(|i| {
            let a = &arrivals[i];
            let mirror = world.mirror_of(&a.server, &a.change.object)?;
            Some(Inbound {
                waited: None,
                mirror: mirror.id,
                source: a.source,
                stream: a.stream,
                change: Rc::clone(&a.change),
                identity: Some(identities[i]),
            })
        })
        .collect();
    Ok(ingest::apply(world, batch, now)?)
}

/// Halves a failing batch until the poison event stands alone.
fn bisect(world: &World, arrivals: &[Arrival], now: Millis) -> Step<Applied> {
    match tx::in_transaction(|| apply_new(world, arrivals, now)) {
        Ok(applied) => Ok(applied),
        Err(error) if config::is_passing(&error) => Err(error),
        Err(error) if arrivals.len() <= 1 => {
            if let Some(arrival) = arrivals.first() {
                park(world, arrival, &error)?;
            }
            Ok(Applied::default())
        }
        Err(_) => {
            let (a, b) = arrivals.split_at(arrivals.len() / 2);
            let mut applied = bisect(world, a, now)?;
            let second = bisect(world, b, now)?;
            applied.locked += second.locked;
            applied.to_read += second.to_read;
            applied.overflowed.extend(second.overflowed);
            Ok(applied)
        }
    }
}

fn park(world: &World, arrival: &Arrival, error: &SqlError) -> Step<()> {
    let mirror = world.mirror_of(&arrival.server, &arrival.change.object);
    tx::in_transaction(|| {
        let change = &arrival.change;
        ledger::take_identities(&[identity::digest(&arrival.server, &change.identity)])?;
        streams::park(&Poison {
            mirror: mirror.map(|m| m.id),
            server: &arrival.server,
            source: arrival.source,
            record_id: &arrival.change.record_id,
            change: serde_json::to_string(&**change).ok(),
            sqlstate: &error.sqlstate,
            error: &error.message,
            advice: "Mend what the error names (a CHECK, a trigger, a column type), then call crm.dead_letter_retry.",
        })?;
        Ok(())
    })
}

/// What is noted of a stream's events that could not be read.
const LOST: &str =
    "events could not be read, or were too many for one answer; their object is read again";

/// All that one turn of the loop took from the listener, the queue and the streams.
#[derive(Default)]
pub(crate) struct Turn {
    pub(crate) arrivals: Vec<Arrival>,
    pub(crate) waiting: Vec<Waiting>,
    /// Webhooks of `crm.webhook()` among them, by row of the queue.
    pub(crate) queued: Vec<i64>,
    pub(crate) rejected: BTreeMap<String, i64>,
    pub(crate) accepted: BTreeMap<String, i64>,
    pub(crate) stream_offsets: HashMap<u64, Vec<u8>>,
    pub(crate) stream_events: HashMap<u64, u32>,
    /// How often something of a stream could not be read.
    pub(crate) stream_lost: HashMap<u64, i64>,
}

impl Turn {
    /// Takes a webhook of the listener.
    pub(crate) fn webhook(
        &mut self,
        engine: &Engine,
        token: u64,
        (name, content): (String, Content),
        now: Millis,
    ) {
        let (status, reason) = self.delivery(engine, &name, content, now);
        self.waiting.push(Waiting {
            token,
            status,
            reason,
        });
    }

    /// Counts webhooks that the listener refused by itself.
    pub(crate) fn refused(&mut self, engine: &Engine, name: String, count: u32) {
        if engine.servers.iter().any(|s| s.name == name) {
            *self.rejected.entry(name).or_default() += i64::from(count);
        }
    }

    /// Takes a webhook for a server by name; status and reason to answer.
    pub(crate) fn delivery(
        &mut self,
        engine: &Engine,
        name: &str,
        content: Content,
        now: Millis,
    ) -> (u16, &'static str) {
        let Some(server) = engine.servers.iter().find(|s| s.name == name) else {
            return (404, "no such server");
        };
        // Taken here, it would be missing where it belongs; the CRM tries again.
        if engine.inert {
            return (503, "this database is inert");
        }
        match open(server, content, now) {
            Ok(changes) => {
                *self.accepted.entry(name.to_owned()).or_default() += changes.len() as i64;
                self.arrivals
                    .extend(changes.into_iter().map(|change| Arrival {
                        server: name.to_owned(),
                        source: "webhook",
                        stream: None,
                        change: Rc::new(change),
                    }));
                (200, "ok")
            }
            Err((status, reason)) => {
                *self.rejected.entry(name.to_owned()).or_default() += 1;
                (status, reason)
            }
        }
    }

    /// Takes events of a change stream.
    pub(crate) fn stream(
        &mut self,
        engine: &Engine,
        id: u64,
        batch: Vec<StreamItem>,
        latest: Option<Vec<u8>>,
    ) {
        let Some(stream) = engine.streams.get(&id) else {
            return;
        };
        *self.stream_events.entry(id).or_default() += u32::try_from(batch.len()).unwrap_or(0);
        let lost = batch.iter().map(|i| &i.change.identity);
        let lost = lost.filter(|i| i.starts_with(crm_io::UNREADABLE)).count();
        *self.stream_lost.entry(id).or_default() += lost as i64;
        let last = batch.last().map(|i| i.replay_id.clone()).or(latest);
        if let Some(last) = last {
            self.stream_offsets.insert(id, last);
        }
        self.arrivals.extend(batch.into_iter().map(|item| Arrival {
            server: stream.server.clone(),
            source: stream.source,
            stream: Some(stream.row),
            change: Rc::new(item.change),
        }));
    }

    fn advances(&self, engine: &mut Engine) -> Step<Vec<(i32, Advance)>> {
        let mut out = Vec::new();
        for (id, replay) in &self.stream_offsets {
            if let Some(stream) = engine.streams.get(id) {
                let events = self.stream_events.get(id).copied().unwrap_or(0);
                let lost = self.stream_lost.get(id).copied().unwrap_or(0);
                out.push((
                    stream.row,
                    Advance {
                        replay_id: Some(replay.clone()),
                        events: i64::from(events) - lost,
                        rejected: lost,
                        trouble: (lost > 0).then(|| LOST.to_owned()),
                        ..Advance::default()
                    },
                ));
            }
        }
        let mut servers: Vec<&String> = self.accepted.keys().chain(self.rejected.keys()).collect();
        servers.sort();
        servers.dedup();
        for name in servers {
            let known = engine.webhook_rows.get(name).copied();
            let row = match known {
                Some(row) => Some(row),
                None => tx::in_transaction(|| Ok(streams::stream(name, "webhook", "")?))?
                    .map(|row| row.id),
            };
            if let Some(row) = row {
                engine.webhook_rows.insert(name.clone(), row);
                out.push((
                    row,
                    Advance {
                        events: self.accepted.get(name).copied().unwrap_or(0),
                        rejected: self.rejected.get(name).copied().unwrap_or(0),
                        ..Advance::default()
                    },
                ));
            }
        }
        Ok(out)
    }

    /// Applies everything and asks the streams for more. The answers to the
    /// webhooks are for the caller to give, when the events are on disk.
    pub(crate) fn finish(mut self, engine: &mut Engine, now: Millis) -> Step<Vec<Command>> {
        if self.arrivals.is_empty()
            && self.waiting.is_empty()
            && self.queued.is_empty()
            && self.rejected.is_empty()
            && self.stream_offsets.is_empty()
        {
            return Ok(Vec::new());
        }
        let advances = self.advances(engine)?;
        for arrival in self.arrivals.iter_mut().filter(|a| a.stream.is_none()) {
            arrival.stream = engine.webhook_rows.get(&arrival.server).copied();
        }
        let result = apply(engine, self.arrivals, advances, self.queued, now);
        let failed = result.is_err();
        let replies: Vec<Command> = self
            .waiting
            .into_iter()
            .map(|waiting| Command::Reply {
                token: waiting.token,
                status: match waiting.status {
                    200 if failed => 503,
                    status => status,
                },
                body: waiting.reason.to_owned(),
            })
            .collect();
        if let Err(error) = result {
            // What could not be applied comes again: from the CRM, the queue, or
            // the stored offset.
            let rows: HashSet<i32> = self
                .stream_offsets
                .keys()
                .filter_map(|id| Some(engine.streams.get(id)?.row))
                .collect();
            engine.unsubscribe(|s| rows.contains(&s.row));
            for reply in replies {
                engine.submit(reply);
            }
            return Err(error);
        }
        for (stream, events) in self.stream_events {
            if events > 0 {
                engine.submit(Command::Credit { stream, events });
            }
        }
        Ok(replies)
    }
}
