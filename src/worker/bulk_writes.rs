//! Outgoing writes by bulk jobs of the CRM, where many wait: make a job, hand
//! over its rows, let it begin, wait for its end, and take every row's result as
//! if a batch had been answered.
//!
//! The job's name stands with its writes before it may begin: after a crash the
//! job is asked what became of them, nothing is sent anew.

use std::collections::BTreeMap;

use crm_core::connectors::bulk::{BulkWriter, Stage, UNTOUCHED};
use crm_core::http::{HttpRequest, HttpResponse};
use crm_core::model::{ErrorClass, Millis, RemoteError, Write, WriteKind, WriteResult};
use crm_io::Command;

use crate::pg::guc;
use crate::pg::store::jobs;
use crate::pg::store::writes::WriteRow;
use crate::pg::tx;
use crate::worker::deliver::{self, Batch};
use crate::worker::engine::{Engine, Job, Server, Step};
use crate::worker::session::Session;
use crate::worker::world::Mirror;

/// First and longest wait before a job is asked about again.
const ASK_MS: (Millis, Millis) = (100, 30_000);
/// Pause after trouble that passes.
const AGAIN_MS: Millis = 2_000;
/// How often a job is told to begin, or its results are read, in vain.
const TRIES: u32 = 5;

/// What is to be asked of a job next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Open,
    Upload,
    Begin,
    Stop,
    State,
    Result(usize),
}

/// A bulk job under way.
pub(crate) struct BulkWrite {
    batch: Batch,
    /// Its name, once it has one.
    job: Option<String>,
    next: Next,
    /// Not before.
    at: Millis,
    /// A request of it is on its way.
    busy: bool,
    /// Its rows were handed over by this session.
    uploaded: bool,
    stopped: bool,
    asked: u32,
    tries: u32,
    answers: Vec<HttpResponse>,
}

impl BulkWrite {
    fn new(batch: Batch, job: Option<String>) -> Self {
        Self {
            next: if job.is_some() {
                Next::State
            } else {
                Next::Open
            },
            batch,
            job,
            at: 0,
            busy: false,
            uploaded: false,
            stopped: false,
            asked: 0,
            tries: 0,
            answers: Vec::new(),
        }
    }
}

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
        let refused = self.watches.get(&mirror.id);
        refused.is_some_and(|w| w.no_bulk_writes) || writer(self, mirror).is_none()
    }

    /// Splits what was claimed into batches: one that a job can carry stays whole.
    pub(super) fn portions(
        &self,
        batches: Vec<Batch>,
        usual: impl Fn(WriteKind) -> usize,
    ) -> Vec<Batch> {
        let mut out = Vec::new();
        for batch in batches {
            if self.is_bulk(&batch) {
                out.push(batch);
                continue;
            }
            for rows in batch.rows.chunks(usual(batch.kind).max(1)) {
                out.push(Batch {
                    rows: rows.to_vec(),
                    ..batch.clone()
                });
            }
        }
        out
    }

    /// Whether a batch is for a job: so many writes, and such that it can carry.
    pub(super) fn is_bulk(&self, batch: &Batch) -> bool {
        let Some(mirror) = self.world.mirrors.get(&batch.mirror) else {
            return false;
        };
        let many = guc::bulk_write_rows().is_some_and(|least| batch.rows.len() as u64 >= least);
        // Creates that are looked for by other keys go in the portions of searches.
        let looked = batch.kind == WriteKind::Create && !mirror.unique_keys.is_empty();
        if !many || looked || self.no_bulk_writes(mirror) {
            return false;
        }
        let writes = deliver::to_writes(&self.world, mirror, batch);
        let unique = mirror.unique_field.as_deref();
        writer(self, mirror).is_some_and(|(_, bulk)| bulk.fits(batch.kind, unique, &writes))
    }

    /// Sends a batch as a job.
    pub(super) fn push_bulk(&mut self, batch: Batch, now: Millis) {
        self.watch(batch.mirror).pushes += 1;
        self.next_job += 1;
        let id = self.next_job;
        self.bulk_writes.insert(id, BulkWrite::new(batch, None));
        self.step_bulk_write(id, now);
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
                kind: rows.first().map_or(WriteKind::Update, deliver::kind_of),
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
        idle.map(|b| b.at.max(now + 100))
            .min()
            .unwrap_or(Millis::MAX)
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
        let Some((server, request)) = self.bulk_request(bulk, mirror, next) else {
            return;
        };
        let tag = self.tag(mirror.id);
        let job = self.job(Job::BulkWrite { id });
        let sent = self.submit(Command::Call {
            job,
            server,
            tag,
            request,
        });
        if !sent {
            self.jobs.remove(&job);
        }
        if let Some(bulk) = self.bulk_writes.get_mut(&id) {
            bulk.busy = sent;
            bulk.next = next;
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
    fn leave_bulk_write(&mut self, bulk: &BulkWrite, done: bool) {
        let mirror = self.world.mirrors.get(&bulk.batch.mirror);
        let request = mirror.zip(bulk.job.as_deref()).and_then(|(mirror, job)| {
            let (server, writer) = writer(self, mirror)?;
            let request = match done {
                true => writer.remove(&server.config, job),
                false => writer.set(&server.config, job, false),
            };
            Some((server.id, request))
        });
        if let Some((server, request)) = request {
            let (job, tag) = (self.job(Job::BulkEnd), self.tag(bulk.batch.mirror));
            if !self.submit(Command::Call {
                job,
                server,
                tag,
                request,
            }) {
                self.jobs.remove(&job);
            }
        }
    }
}

/// What an answer means for a job.
enum Turn {
    /// This is to be asked next, so much later.
    Next(Next, Millis),
    /// Every write has its result; the job is done with, or must be stopped.
    Results(Vec<WriteResult>, bool),
    /// Such jobs are not possible here.
    Refused,
}

/// The same result for all writes.
fn all(bulk: &BulkWrite, result: WriteResult) -> Turn {
    Turn::Results(vec![result; bulk.batch.rows.len()], true)
}

/// Nothing was written: the writes wait for another try.
fn nothing(bulk: &BulkWrite, mut error: RemoteError) -> Turn {
    error.maybe_applied = false;
    if !matches!(
        error.class,
        ErrorClass::Wait | ErrorClass::Reauth | ErrorClass::Stop
    ) {
        error.class = ErrorClass::Retry;
    }
    match all(bulk, WriteResult::Failed(error)) {
        Turn::Results(results, _) => Turn::Results(results, false),
        turn => turn,
    }
}

/// Decides what follows an answer.
fn turn(
    bulk: &mut BulkWrite,
    writer: &dyn BulkWriter,
    (unique, writes): (Option<&str>, &[Write]),
    result: Result<HttpResponse, RemoteError>,
) -> Turn {
    match (bulk.next, result) {
        (Next::Open, Ok(answer)) => match writer.opened(&answer) {
            Ok(job) => {
                bulk.job = Some(job);
                Turn::Next(Next::Upload, 0)
            }
            Err(error) => nothing(bulk, error),
        },
        (Next::Upload, Ok(_)) => {
            bulk.uploaded = true;
            Turn::Next(Next::Begin, 0)
        }
        (Next::Open | Next::Upload, Err(error)) if writer.hopeless(&error) => Turn::Refused,
        (Next::Open | Next::Upload, Err(error)) => nothing(bulk, error),
        // Whether it began is what its state tells.
        (Next::Begin, _) => Turn::Next(Next::State, 0),
        (Next::Stop, _) => {
            bulk.stopped = true;
            Turn::Next(Next::State, 0)
        }
        (Next::State, Ok(answer)) => stage(bulk, writer.stage(&answer)),
        (Next::Result(part), Ok(answer)) => {
            bulk.answers.truncate(part);
            bulk.answers.push(answer);
            if part < 2 {
                return Turn::Next(Next::Result(part + 1), 0);
            }
            let answers = std::mem::take(&mut bulk.answers);
            match writer.outcomes(bulk.batch.kind, unique, writes, &answers) {
                Ok(results) => Turn::Results(results, true),
                Err(error) => again(bulk, Next::Result(0), error),
            }
        }
        // Nobody tells any more what became of them: their records do.
        (Next::State | Next::Result(_), Err(error)) if error.class == ErrorClass::Gone => {
            all(bulk, WriteResult::Unknown(error))
        }
        (next, Err(error)) => {
            let wait = error.retry_after_ms.unwrap_or(0).max(AGAIN_MS);
            Turn::Next(next, wait)
        }
    }
}

/// Asks the same once more, a few times.
fn again(bulk: &mut BulkWrite, next: Next, error: RemoteError) -> Turn {
    bulk.tries += 1;
    match bulk.tries <= TRIES {
        true => Turn::Next(next, AGAIN_MS),
        false => all(bulk, WriteResult::Unknown(error)),
    }
}

fn stage(bulk: &mut BulkWrite, stage: Result<Stage, RemoteError>) -> Turn {
    match stage {
        Ok(Stage::Ended) => Turn::Next(Next::Result(0), 0),
        // Its rows may not have arrived before a crash: better none of them.
        Ok(Stage::Open) if !bulk.uploaded || bulk.stopped => Turn::Next(Next::Stop, AGAIN_MS),
        Ok(Stage::Open) if bulk.tries < TRIES => {
            bulk.tries += 1;
            Turn::Next(Next::Begin, AGAIN_MS)
        }
        Ok(Stage::Open) => Turn::Next(Next::Stop, 0),
        Ok(Stage::Waiting) => {
            let wait = (ASK_MS.0 << bulk.asked.min(16)).min(ASK_MS.1);
            bulk.asked += 1;
            Turn::Next(Next::State, wait)
        }
        Err(error) => again(bulk, Next::State, error),
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
            // Asked again when the server is back.
            bulk.at = now + AGAIN_MS;
            self.engine.bulk_writes.insert(id, bulk);
            return Ok(());
        };
        let writes = match bulk.next {
            Next::Result(_) => deliver::to_writes(&engine.world, mirror, &bulk.batch),
            _ => Vec::new(),
        };
        let unique = mirror.unique_field.clone();
        let named = bulk.job.is_some();
        match turn(&mut bulk, writer, (unique.as_deref(), &writes), result) {
            Turn::Next(next, wait) => {
                if !named && let Some(job) = &bulk.job {
                    let ids = bulk.batch.rows.iter().map(|r| r.id).collect();
                    let carried = tx::in_transaction(|| Ok(jobs::carry(ids, job)?));
                    if let Err(error) = carried {
                        // A job that nobody would know of must not begin.
                        self.engine.leave_bulk_write(&bulk, false);
                        self.engine.halves.push_back(bulk.batch);
                        return Err(error);
                    }
                }
                bulk.next = next;
                bulk.at = now + wait;
                self.engine.bulk_writes.insert(id, bulk);
                self.engine.step_bulk_write(id, now);
                Ok(())
            }
            Turn::Results(results, done) => {
                self.engine.leave_bulk_write(&bulk, done);
                let untouched =
                    |r: &WriteResult| matches!(r, WriteResult::Failed(e) if e.code == UNTOUCHED);
                if !bulk.stopped && results.iter().all(untouched) {
                    // The job did nothing at all: something is wrong with such jobs.
                    self.engine.watch(bulk.batch.mirror).no_bulk_writes = true;
                }
                self.pushed(bulk.batch, results, now)
            }
            Turn::Refused => {
                self.engine.leave_bulk_write(&bulk, false);
                let watch = self.engine.watch(bulk.batch.mirror);
                watch.no_bulk_writes = true;
                watch.pushes = watch.pushes.saturating_sub(1);
                // Not possible: in batches, then.
                let ids = bulk.batch.rows.iter().map(|r| r.id).collect();
                self.engine.halves.push_back(bulk.batch);
                self.engine.may_send = true;
                tx::in_transaction(|| Ok(jobs::put_down(ids)?))?;
                Ok(())
            }
        }
    }
}
