//! First copies by a bulk job of the CRM: start it, wait for it, read its rows,
//! end it. Whatever cannot be had that way goes by pages.

use crm_core::connectors::bulk::{BulkReader, Progress};
use crm_core::http::{HttpRequest, HttpResponse};
use crm_core::model::{Millis, RemoteError};
use crm_core::ranges::Ranges;

use crate::pg::guc;
use crate::pg::store::streams;
use crate::pg::tx;
use crate::worker::engine::{Engine, Job, Server, Step};
use crate::worker::servers;
use crate::worker::session::Session;

/// First and longest wait before a job is asked about again.
const ASK_MS: (Millis, Millis) = (50, 30_000);

/// A bulk job of a first copy.
#[derive(Clone)]
pub(crate) struct Bulk {
    /// Where its rows are.
    pub(crate) place: String,
    /// How often it was not done yet.
    pub(crate) asked: u32,
    /// Its rows are as of this time or later, once they are being read.
    pub(crate) began: Option<Millis>,
}

/// A mirror's server and how it reads in bulk.
fn reader(engine: &Engine, mirror: i32) -> Option<(&Server, &'static dyn BulkReader)> {
    let m = engine.world.mirrors.get(&mirror)?;
    let server = engine.server(&m.server)?;
    Some((server, server.connector.bulk()?))
}

impl Engine {
    /// Starts a bulk job for a first copy of so many records; false where pages
    /// are the way.
    pub(super) fn start_bulk(&mut self, id: i32, total: Option<i64>) -> bool {
        let rows = total.and_then(|t| u64::try_from(t).ok()).unwrap_or(0);
        let worth = guc::bulk_read_rows().is_some_and(|least| rows >= least);
        if !worth || self.watch(id).no_bulk {
            return false;
        }
        let request = reader(self, id).and_then(|(server, bulk)| {
            let m = self.world.mirrors.get(&id)?;
            Some(bulk.start(&server.config, &m.object, &m.fields))
        });
        request.is_some_and(|r| self.ask_reader(id, r, Job::BulkStart { mirror: id }))
    }

    /// Goes on with a bulk job that a copy went by; false if it went by pages.
    pub(super) fn resume_bulk(&mut self, id: i32, left: &Ranges) -> Step<bool> {
        let Some(place) = left.get(0).and_then(|range| range.at.clone()) else {
            return Ok(false);
        };
        let fields = self.world.mirrors.get(&id).map(|m| m.fields.clone());
        let reads = reader(self, id).zip(fields);
        if reads.is_some_and(|((_, bulk), fields)| !bulk.fits(&place, &fields)) {
            // The mirror has other columns by now than the job reads.
            self.watch(id).bulk = None;
            tx::in_transaction(|| Ok(streams::backfill_restart(id)?))?;
            return Ok(true);
        }
        let request = reader(self, id).and_then(|(server, bulk)| bulk.ask(&server.config, &place));
        let Some(request) = request else {
            return Ok(false);
        };
        let watch = self.watch(id);
        let bulk = watch.bulk.get_or_insert_with(|| Bulk {
            place: place.clone(),
            asked: 0,
            began: None,
        });
        bulk.place.clone_from(&place);
        // If nothing can be sent now, it is tried again with the next look.
        let sent = self.ask_reader(id, request, Job::BulkAsk { mirror: id, place });
        self.watch(id).backfilling = sent;
        Ok(true)
    }

    /// When the next job is to be asked about.
    pub(super) fn bulk_due(&self) -> Millis {
        let waiting = |w: &&crate::worker::engine::Watch| w.bulk.is_some() && !w.backfilling;
        let due = self.watches.values().filter(waiting).map(|w| w.backfill_at);
        due.min()
            .map_or(Millis::MAX, |at| at.max(self.backfills_at))
    }

    /// Stops jobs that still wait while their mirror is paused: the copy starts
    /// over when it goes on.
    pub(super) fn stop_paused_bulk(&mut self) -> Step<()> {
        let paused = |id: &i32| self.world.mirrors.get(id).is_some_and(|m| m.paused);
        let stopped: Vec<(i32, String)> = (self.watches.iter())
            .filter(|(id, w)| paused(id) && !w.backfilling)
            .filter_map(|(id, w)| Some((*id, w.bulk.as_ref()?)))
            .filter(|(_, bulk)| bulk.began.is_none())
            .map(|(id, bulk)| (id, bulk.place.clone()))
            .collect();
        for (id, place) in stopped {
            self.finish_bulk(id, &place, false);
            self.watch(id).bulk = None;
            tx::in_transaction(|| Ok(streams::backfill_restart(id)?))?;
        }
        Ok(())
    }

    /// What a poll must look at again once the rows of a job are all there: what
    /// changed, and what was removed, since the job looked. `last` with the last rows.
    pub(super) fn poll_after_bulk(
        &mut self,
        id: i32,
        last: bool,
    ) -> Option<(String, String, Millis)> {
        let began = self.watch(id).bulk.as_ref()?.began.filter(|_| last)?;
        let mirror = self.world.mirrors.get(&id)?;
        Some((mirror.server.clone(), mirror.object.clone(), began))
    }

    /// A copy is done: its job, if it went by one, is not needed any more.
    pub(super) fn end_bulk(&mut self, id: i32, now: Millis) {
        if let Some(bulk) = self.watch(id).bulk.take() {
            self.finish_bulk(id, &bulk.place, true);
            self.watch(id).poll_at = now;
        }
    }

    fn finish_bulk(&mut self, id: i32, place: &str, done: bool) {
        let request =
            reader(self, id).and_then(|(server, bulk)| bulk.end(&server.config, place, done));
        if let Some(request) = request {
            // If it is not sent, the CRM forgets the job by itself in a few days.
            self.ask_reader(id, request, Job::BulkEnd);
        }
    }

    fn ask_reader(&mut self, id: i32, request: HttpRequest, job: Job) -> bool {
        let server = reader(self, id).map(|(server, _)| server.id);
        server.is_some_and(|server| self.call(server, self.tag(id), request, job))
    }
}

impl Session {
    /// The answer to a call came.
    pub(super) fn called(
        &mut self,
        job: Job,
        result: Result<HttpResponse, RemoteError>,
        now: Millis,
    ) -> Step<()> {
        match job {
            Job::Count { mirror } => self.counted(mirror, result.as_ref(), now),
            Job::BulkStart { mirror } => self.bulk_started(mirror, result, now),
            Job::BulkAsk { mirror, place } => self.bulk_told(mirror, &place, result, now),
            Job::BulkWrite { id } => self.bulk_written(id, result, now),
            Job::BulkEnd => Ok(()),
            Job::Journal { server } => self.journal_told(server, result, now),
            job => servers::on_answer(&mut self.engine, job, result),
        }
    }

    /// A job was made, or refused: then the copy goes by pages.
    fn bulk_started(
        &mut self,
        mirror: i32,
        result: Result<HttpResponse, RemoteError>,
        now: Millis,
    ) -> Step<()> {
        let fields = self
            .engine
            .world
            .mirrors
            .get(&mirror)
            .map(|m| m.fields.clone());
        let Some(((_, bulk), fields)) = reader(&self.engine, mirror).zip(fields) else {
            self.engine.watch(mirror).backfilling = false;
            return Ok(());
        };
        match result.and_then(|answer| bulk.started(&answer, &fields)) {
            Ok(place) => {
                tx::in_transaction(|| {
                    Ok(streams::backfill_advance(mirror, Some(place.clone()), 0)?)
                })?;
                let watch = self.engine.watch(mirror);
                watch.bulk = Some(Bulk {
                    place,
                    asked: 0,
                    began: None,
                });
                self.ask_later(mirror, now);
                Ok(())
            }
            Err(error) if bulk.hopeless(&error) => {
                let text = format!("no bulk job, by pages instead: {error}");
                tx::in_transaction(|| Ok(streams::backfill_error(mirror, &text)?))?;
                self.engine.watch(mirror).no_bulk = true;
                self.engine.copy(mirror, Ranges::split_at(Vec::new()));
                Ok(())
            }
            Err(error) => self.bulk_again(mirror, &error, now),
        }
    }

    /// A job said how far it is.
    fn bulk_told(
        &mut self,
        mirror: i32,
        place: &str,
        result: Result<HttpResponse, RemoteError>,
        now: Millis,
    ) -> Step<()> {
        let Some((_, bulk)) = reader(&self.engine, mirror) else {
            self.engine.watch(mirror).backfilling = false;
            return Ok(());
        };
        match result.and_then(|answer| bulk.told(&answer)) {
            Ok(Progress::Ready { began, .. }) => {
                let mirrors = &self.engine.world.mirrors;
                let created = mirrors.get(&mirror).map(|m| m.created_at);
                if let Some(bulk) = &mut self.engine.watch(mirror).bulk {
                    bulk.began = began.or(created);
                }
                self.engine.copy(mirror, Ranges::decode(Some(place)));
                Ok(())
            }
            Ok(Progress::Waiting) => {
                self.ask_later(mirror, now);
                Ok(())
            }
            Ok(Progress::Failed(error)) => self.by_pages(mirror, &error),
            Err(error) if bulk.hopeless(&error) => self.by_pages(mirror, &error),
            Err(error) => self.bulk_again(mirror, &error, now),
        }
    }

    fn ask_later(&mut self, mirror: i32, now: Millis) {
        let watch = self.engine.watch(mirror);
        watch.backfilling = false;
        if let Some(bulk) = &mut watch.bulk {
            let wait = (ASK_MS.0 << bulk.asked.min(16)).min(ASK_MS.1);
            bulk.asked += 1;
            watch.backfill_at = now + wait;
            self.engine.backfills_at = self.engine.backfills_at.min(now + wait);
        }
    }

    /// Trouble that passes: the same again after a while.
    fn bulk_again(&mut self, mirror: i32, error: &RemoteError, now: Millis) -> Step<()> {
        let watch = self.engine.watch(mirror);
        watch.backfilling = false;
        watch.backfill_at = now + error.retry_after_ms.unwrap_or(0).max(1_000);
        tx::in_transaction(|| Ok(streams::backfill_error(mirror, &error.to_string())?)).map(|_| ())
    }

    /// The rows of a job could not be read: true if they never will.
    pub(super) fn bulk_lost(&mut self, mirror: i32, error: &RemoteError) -> Step<bool> {
        let bulk = reader(&self.engine, mirror).map(|(_, bulk)| bulk);
        let lost = self.engine.watch(mirror).bulk.is_some()
            && bulk.is_some_and(|bulk| bulk.hopeless(error));
        if lost {
            self.by_pages(mirror, error)?;
        }
        Ok(lost)
    }

    /// Starts the copy over, by pages: rows that are there are compared.
    fn by_pages(&mut self, mirror: i32, error: &RemoteError) -> Step<()> {
        let watch = self.engine.watch(mirror);
        watch.no_bulk = true;
        watch.bulk = None;
        watch.backfilling = false;
        watch.ranges = None;
        watch.copied = Default::default();
        // Answers that are still on their way belong to the run that ended.
        watch.run += 1;
        let text = format!("bulk job lost, by pages instead: {error}");
        pgrx::log!("pg_crm_sync: {text}");
        tx::in_transaction(|| {
            streams::backfill_restart(mirror)?;
            streams::backfill_error(mirror, &text)?;
            Ok(())
        })
    }
}
