//! Outgoing writes by bulk jobs of the CRM, where many wait: make a job, hand
//! over its rows, let it begin, wait for its end, and take every row's result as
//! if a batch had been answered.
//!
//! The job's name stands with its writes before it may begin: after a crash the
//! job is asked what became of them, nothing is sent anew.

use std::collections::BTreeMap;

use crm_core::connectors::bulk::{BulkWriter, UNTOUCHED};
use crm_core::http::{HttpRequest, HttpResponse};
use crm_core::model::{Millis, RemoteError, WriteKind, WriteResult};
use crm_core::transport;

use crate::pg::guc;
use crate::pg::store::writes::WriteRow;
use crate::pg::store::{jobs, streams};
use crate::pg::tx;
use crate::worker::bulk_turn::{AGAIN_MS, BulkWrite, Next, Turn};
use crate::worker::conditions;
use crate::worker::deliver::{self, Batch};
use crate::worker::engine::{self, Engine, Job, Server, Step};
use crate::worker::session::Session;
use crate::worker::world::Mirror;

/// First and longest pause in jobs of a mirror after one that led nowhere: its
/// writes go in batches. Jobs that the CRM refuses pause for the longest at once.
const FUTILE_MS: (Millis, Millis) = (60_000, 3_600_000);

/// How a mirror's server writes in bulk.
fn writer<'e>(
    engine: &'e Engine,
    mirror: &Mirror,
) -> Option<(&'e Server, &'static dyn BulkWriter)> {
    let server = engine.server(&mirror.server)?;
    Some((server, server.connector.bulk_writer()?))
}

impl Engine {
    /// How many writes of a mirror are taken at once: as many as a job may have
    /// where enough wait for one, else `usual`. `None` while they wait for a job
    /// to end.
    pub(super) fn claim_size(&self, mirror: &Mirror, usual: i64) -> Step<Option<i64>> {
        let Some(least) = guc::bulk_write_rows().filter(|_| !self.no_bulk_writes(mirror)) else {
            return Ok(Some(usual));
        };
        if tx::in_transaction(|| Ok(jobs::waiting(mirror.id, least)?))? < least {
            return Ok(Some(usual));
        }
        let most = writer(self, mirror).map_or(0, |(_, bulk)| bulk.most());
        let under_way = |b: &BulkWrite| b.batch.mirror == mirror.id;
        Ok(match i64::try_from(most) {
            _ if self.bulk_writes.values().any(under_way) => None,
            Ok(most) => Some(most.max(usual)),
            Err(_) => Some(usual),
        })
    }

    fn no_bulk_writes(&self, mirror: &Mirror) -> bool {
        let rests = |w: &engine::Watch| w.bulk_writes_at > engine::now();
        self.watches.get(&mirror.id).is_some_and(rests) || writer(self, mirror).is_none()
    }

    /// Splits what was claimed: what goes as jobs, and what goes in batches of the
    /// size of a call.
    pub(super) fn portions(&self, batch: Batch) -> (Vec<Batch>, Vec<Batch>) {
        let mut rest = batch;
        let mut jobs = Vec::new();
        while let Some(fit) = self.fitting(&rest) {
            let mut fit = fit.into_iter();
            let rows = std::mem::take(&mut rest.rows);
            let (job, left) = rows.into_iter().partition(|_| fit.next().unwrap_or(false));
            jobs.push(Batch {
                rows: job,
                ..rest.clone()
            });
            rest.rows = left;
        }
        let size = self.call_size(&rest);
        let rows = conditions::chunks(std::mem::take(&mut rest.rows), size);
        let calls = rows.into_iter().map(|rows| Batch {
            rows,
            ..rest.clone()
        });
        (jobs, calls.collect())
    }

    /// Writes that a call of the batch's kind takes.
    pub(super) fn call_size(&self, batch: &Batch) -> usize {
        let mirror = self.world.mirrors.get(&batch.mirror);
        let server = mirror.and_then(|m| self.server(&m.server));
        server.map_or(1, |s| s.connector.push_batch(batch.kind).max(1))
    }

    /// Which writes of a batch can go as a job, if so many can that it is worth it.
    fn fitting(&self, batch: &Batch) -> Option<Vec<bool>> {
        let mirror = self.world.mirrors.get(&batch.mirror)?;
        let least = usize::try_from(guc::bulk_write_rows()?).ok()?;
        // Creates that are looked for by other keys go in the portions of searches.
        let looked = batch.kind == WriteKind::Create && !mirror.unique_keys.is_empty();
        if looked || batch.rows.len() < least || self.no_bulk_writes(mirror) {
            return None;
        }
        let writes = deliver::to_writes(&self.world, mirror, batch);
        let (_, bulk) = writer(self, mirror)?;
        let fit = bulk.fits(batch.kind, mirror.unique_field.as_deref(), &writes);
        (fit.iter().filter(|fits| **fits).count() >= least).then_some(fit)
    }

    /// Sends a batch as a job.
    pub(super) fn push_bulk(&mut self, batch: Batch, now: Millis) {
        self.watch(batch.mirror).pushes += 1;
        self.next_job += 1;
        let id = self.next_job;
        self.bulk_writes.insert(id, BulkWrite::new(batch, None));
        self.step_bulk_write(id, now);
    }

    /// A CRM is back: jobs that led nowhere may have done so because it was not there.
    pub(super) fn bulk_writes_again(&mut self, server: &str) {
        let of_server = self.world.mirrors.values().filter(|m| m.server == server);
        for id in of_server.map(|m| m.id).collect::<Vec<i32>>() {
            self.watch(id).bulk_writes_at = 0;
        }
    }

    /// Takes up jobs that an earlier session left.
    pub(super) fn resume_bulk_writes(&mut self) -> Step<()> {
        let rows = tx::in_transaction(|| Ok(jobs::carried()?))?;
        let mut by_job: BTreeMap<(i32, String), Vec<WriteRow>> = BTreeMap::new();
        for (job, row) in rows {
            by_job.entry((row.mirror, job)).or_default().push(row);
        }
        for ((mirror, job), rows) in by_job {
            let batch = Batch {
                mirror,
                kind: kind_of(&rows),
                rows,
                looked: 0,
            };
            self.watch(mirror).pushes += 1;
            self.next_job += 1;
            let id = self.next_job;
            self.bulk_writes
                .insert(id, BulkWrite::new(batch, Some(job)));
        }
        Ok(())
    }

    /// Sends what jobs are due to be asked; the time when the next will be.
    pub(super) fn step_bulk_writes(&mut self, now: Millis) -> Millis {
        let ids: Vec<u64> = self.bulk_writes.keys().copied().collect();
        for id in ids {
            self.step_bulk_write(id, now);
        }
        let idle = self.bulk_writes.values().filter(|b| !b.busy);
        idle.map(|b| b.at).min().unwrap_or(Millis::MAX)
    }

    fn step_bulk_write(&mut self, id: u64, now: Millis) {
        let Some(bulk) = self.bulk_writes.get(&id).filter(|b| !b.busy && now >= b.at) else {
            return;
        };
        let Some(mirror) = self.world.mirrors.get(&bulk.batch.mirror) else {
            // The mirror is gone, and its writes with it.
            self.bulk_writes.remove(&id);
            return;
        };
        // What waits in a queue of the CRM is called back when its mirror is paused.
        let stop = mirror.paused && bulk.next == Next::State && !bulk.stopped;
        let next = if stop { Next::Stop } else { bulk.next };
        // A copy of the database says nothing to jobs of the original.
        let request = (self.active).then(|| self.bulk_request(bulk, mirror, next));
        let mirror = mirror.id;
        let sent = request.flatten().is_some_and(|(server, request)| {
            self.call(server, self.tag(mirror), request, Job::BulkWrite { id })
        });
        if let Some(bulk) = self.bulk_writes.get_mut(&id) {
            bulk.busy = sent;
            bulk.next = next;
            if !sent {
                // A paused server, or a full I/O thread.
                bulk.at = now + AGAIN_MS;
            }
        }
    }

    fn bulk_request(
        &self,
        bulk: &BulkWrite,
        mirror: &Mirror,
        next: Next,
    ) -> Option<(u32, HttpRequest)> {
        let (server, writer) = writer(self, mirror)?;
        let config = &server.config;
        let (kind, unique) = (bulk.batch.kind, mirror.unique_field.as_deref());
        let job = bulk.job.as_deref().unwrap_or_default();
        let request = match next {
            Next::Open => writer.open(config, &mirror.object, kind, unique),
            Next::Upload => {
                let writes = deliver::to_writes(&self.world, mirror, &bulk.batch);
                writer.upload(config, job, kind, unique, &writes)
            }
            Next::Begin => writer.set(config, job, true),
            Next::Stop => writer.set(config, job, false),
            Next::State => writer.state(config, job),
            Next::Result(part) => writer.results(config, job).into_iter().nth(part)?,
        };
        Some((server.id, request))
    }

    /// Ends a job at the CRM, whatever the answer: it would be forgotten there in a few days.
    fn leave_bulk_write(&mut self, mirror: i32, job: Option<&str>, done: bool) {
        let asked = self.world.mirrors.get(&mirror).zip(job);
        let request = asked.and_then(|(mirror, job)| {
            let (server, writer) = writer(self, mirror)?;
            let request = match done {
                true => writer.remove(&server.config, job),
                false => writer.set(&server.config, job, false),
            };
            Some((server.id, request))
        });
        if let Some((server, request)) = request {
            self.call(server, self.tag(mirror), request, Job::BulkEnd);
        }
    }
}

/// What the writes of a job are. Creates whose records came as events meanwhile
/// call themselves updates.
fn kind_of(rows: &[WriteRow]) -> WriteKind {
    let kinds = || rows.iter().map(deliver::kind_of);
    match kinds().find(|kind| *kind == WriteKind::Create) {
        Some(create) => create,
        None => kinds().next().unwrap_or(WriteKind::Update),
    }
}

impl Session {
    /// A request of a job was answered.
    pub(super) fn bulk_written(
        &mut self,
        id: u64,
        result: Result<HttpResponse, RemoteError>,
        now: Millis,
    ) -> Step<()> {
        let Some(mut bulk) = self.engine.bulk_writes.remove(&id) else {
            return Ok(());
        };
        bulk.busy = false;
        let engine = &self.engine;
        let mirror = engine.world.mirrors.get(&bulk.batch.mirror);
        let Some((mirror, (_, writer))) = mirror.and_then(|m| Some((m, writer(engine, m)?))) else {
            // The server was paused: asked again when it is back.
            bulk.at = now + AGAIN_MS;
            self.engine.bulk_writes.insert(id, bulk);
            return Ok(());
        };
        let writes = match bulk.next {
            Next::Result(2) => deliver::to_writes(&engine.world, mirror, &bulk.batch),
            _ => Vec::new(),
        };
        let (unique, server) = (mirror.unique_field.clone(), mirror.server.clone());
        let nameless = bulk.job.is_none();
        let (next, wait, trouble) = match bulk.turn(writer, (unique.as_deref(), &writes), result) {
            Turn::Results(results, done) => return self.bulk_done(bulk, results, done, now),
            Turn::Next(next, wait) => (next, wait, None),
            Turn::Troubled(next, wait, error) => (next, wait, Some(error)),
        };
        if let Some(job) = bulk.job.as_ref().filter(|_| nameless) {
            let ids = bulk.batch.rows.iter().map(|r| r.id).collect();
            if let Err(error) = tx::in_transaction(|| Ok(jobs::carry(ids, job)?)) {
                // A job that nobody would know of must not begin.
                let why = transport::error("internal", "internal", &error.message);
                let results = bulk.nothing(why);
                self.bulk_done(bulk, results, false, now)?;
                return Err(error);
            }
        }
        bulk.next = next;
        bulk.at = now + wait;
        self.engine.bulk_writes.insert(id, bulk);
        self.engine.step_bulk_write(id, now);
        let Some(error) = trouble.filter(|e| e.code != "rate_limited") else {
            return Ok(());
        };
        tx::in_transaction(|| {
            streams::server_error(&server, Some((&error.to_string(), error.advice)))?;
            Ok(())
        })
    }

    /// Every write of a job has its result: they are recorded, then the job goes.
    fn bulk_done(
        &mut self,
        bulk: BulkWrite,
        results: Vec<WriteResult>,
        done: bool,
        now: Millis,
    ) -> Step<()> {
        let untouched =
            |r: &WriteResult| matches!(r, WriteResult::Failed(e) if e.code == UNTOUCHED);
        let mirror = bulk.batch.mirror;
        if bulk.futile || !bulk.stopped && results.iter().all(untouched) {
            // Something is wrong with such jobs, or with the CRM for a while.
            let watch = self.engine.watch(mirror);
            let pause = match bulk.hopeless {
                true => FUTILE_MS.1,
                false => (FUTILE_MS.0 << watch.futile_jobs.min(6)).min(FUTILE_MS.1),
            };
            watch.futile_jobs += 1;
            watch.bulk_writes_at = now + pause;
        } else if done {
            self.engine.watch(mirror).futile_jobs = 0;
        }
        let job = bulk.job;
        let recorded = self.pushed(bulk.batch, results, now);
        self.engine.leave_bulk_write(mirror, job.as_deref(), done);
        recorded
    }
}
