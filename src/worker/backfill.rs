//! First copies: several ranges of ids at once, pages collected and loaded
//! together, what is left stored with the rows.

use crm_core::http::HttpResponse;
use crm_core::model::{Millis, Page, RemoteError};
use crm_core::ranges::{self, Ranges};
use crm_io::Follow;

use crate::pg::store::config;
use crate::pg::store::streams::{self, BackfillRow};
use crate::pg::tx;
use crate::worker::engine::{self, Copied, Engine, Job, Step};
use crate::worker::pages::Via;
use crate::worker::pairs::Why;
use crate::worker::reading;
use crate::worker::session::Session;

/// Rows that are applied together.
const COPY_ROWS: usize = 2_000;
/// Rows that are worth it when no further page is there: to wait for more would
/// leave the session idle while they travel, and the network while it copies.
const SOME_ROWS: usize = 400;
/// Pages of a range that come one after the other without being asked for.
const FOLLOW: u32 = 8;
/// Ranges that are copied at once.
const RANGES: u64 = 4;
/// Below this a copy is not worth splitting.
const SPLIT_ROWS: i64 = 5_000;

impl Engine {
    pub(crate) fn resume_backfills(&mut self, now: Millis) -> Step<()> {
        if now < self.backfills_at {
            return Ok(());
        }
        self.backfills_at = now + 1_000;
        self.stop_paused_bulk()?;
        let idle = self
            .world
            .mirrors
            .values()
            .any(|m| !m.paused && !self.watches.get(&m.id).is_some_and(|w| w.backfilling));
        if !idle {
            return Ok(());
        }
        let waiting = tx::in_transaction(|| Ok(streams::backfills()?))?;
        for row in waiting {
            let watch = self.watch(row.mirror);
            if watch.backfilling || now < watch.backfill_at {
                continue;
            }
            self.start_backfill(row, now)?;
        }
        Ok(())
    }

    fn start_backfill(&mut self, row: BackfillRow, now: Millis) -> Step<()> {
        let Some(mirror) = self.world.mirrors.get(&row.mirror).filter(|m| !m.paused) else {
            return Ok(());
        };
        let Some(server) = self.server(&mirror.server) else {
            return Ok(());
        };
        let id = mirror.id;
        if let Some(at) = self.heavy_from(server.id, now) {
            self.watch(id).backfill_at = at;
            return Ok(());
        }
        if mirror.pairs().is_some() {
            self.start_pairs(id, Why::Copy, engine::now())?;
            return Ok(());
        }
        // Without a cursor nothing was copied yet.
        if let Some(cursor) = row.cursor.as_deref().filter(|_| row.started) {
            let ranges = Ranges::decode(Some(cursor));
            if !self.resume_bulk(id, &ranges)? {
                self.copy(id, ranges);
            }
            return Ok(());
        }
        let (config, object) = (&server.config, &mirror.object);
        // One answer tells the number of records and where to split them.
        let sent = match server.connector.highest_request(config, object) {
            Some(request) => self.fetch(id, request, Job::Highest { mirror: id }),
            None => self.count(id),
        };
        self.watch(id).backfilling = sent;
        Ok(())
    }

    /// Asks for the number of records alone.
    fn count(&mut self, id: i32) -> bool {
        let Some(mirror) = self.world.mirrors.get(&id) else {
            return false;
        };
        let Some(server) = self.server(&mirror.server) else {
            return false;
        };
        let connector = server.connector;
        let request = connector.count_request(&server.config, &mirror.object);
        let server = server.id;
        self.call(server, self.tag(id), request, Job::Count { mirror: id })
    }

    /// Asks for the next page of every range.
    pub(super) fn copy(&mut self, id: i32, ranges: Ranges) {
        let open = ranges.open();
        let watch = self.watch(id);
        watch.run += 1;
        watch.ranges = Some(ranges);
        watch.backfilling = true;
        for range in open {
            self.backfill_page(id, range);
        }
    }

    /// Asks for the next page of a range; a refusal ends the run, which is
    /// started again from what is stored.
    fn backfill_page(&mut self, id: i32, range: usize) {
        let Some(watch) = self.watches.get(&id) else {
            return;
        };
        let run = watch.run;
        let place = watch.ranges.as_ref().and_then(|r| r.get(range));
        let cursor = place.and_then(|r| r.at.as_deref());
        let follow = Follow {
            pages: FOLLOW,
            end: place.and_then(|r| r.end.clone()),
        };
        let request = self.world.mirrors.get(&id).and_then(|m| {
            let server = self.server(&m.server)?;
            Some(
                server
                    .connector
                    .list_request(&server.config, &m.object, &m.fields, cursor),
            )
        });
        let job = Job::Backfill {
            mirror: id,
            range,
            run,
        };
        if !request.is_some_and(|r| self.fetch_list(id, r, job, follow)) {
            self.watch(id).backfilling = false;
        }
    }

    /// Looks for a record from this id on, where a range may start.
    fn seek(&mut self, id: i32, from: &str) {
        let request = self.world.mirrors.get(&id).and_then(|m| {
            let server = self.server(&m.server)?;
            server
                .connector
                .seek_request(&server.config, &m.object, from)
        });
        if let Some(request) = request {
            self.fetch(id, request, Job::Seek { mirror: id });
        }
    }
}

impl Session {
    /// The number of records is known, or unknown for good: the copy begins.
    pub(super) fn counted(
        &mut self,
        mirror: i32,
        result: Result<&HttpResponse, &RemoteError>,
        now: Millis,
    ) -> Step<()> {
        let Some(m) = self.engine.world.mirrors.get(&mirror) else {
            return Ok(());
        };
        let Some(server) = self.engine.server(&m.server) else {
            return Ok(());
        };
        if let Err(error) = result {
            let watch = self.engine.watch(mirror);
            watch.backfilling = false;
            watch.backfill_at = now + error.retry_after_ms.unwrap_or(0).max(1_000);
            return tx::in_transaction(|| {
                streams::backfill_error(mirror, &error.to_string())?;
                Ok(())
            });
        }
        let total = result.ok().and_then(|r| server.connector.count(r).ok());
        let total = total.and_then(|t| i64::try_from(t).ok());
        tx::in_transaction(|| Ok(streams::backfill_started(mirror, total)?))?;
        if !self.engine.start_bulk(mirror, total) {
            self.engine.copy(mirror, Ranges::split_at(Vec::new()));
        }
        Ok(())
    }

    /// The highest id and the number of records are known: the copy begins, and
    /// records at equal distances below are looked for meanwhile, to split it at.
    pub(super) fn highest(&mut self, mirror: i32, page: Option<&Page>) -> Step<()> {
        let total = page.and_then(|p| p.total);
        let Some(total) = total.and_then(|t| i64::try_from(t).ok()) else {
            // Not this way, then; what is wrong shows in the other answer.
            self.engine.watch(mirror).backfilling = self.engine.count(mirror);
            return Ok(());
        };
        tx::in_transaction(|| Ok(streams::backfill_started(mirror, Some(total))?))?;
        self.engine.copy(mirror, Ranges::split_at(Vec::new()));
        let highest = page.and_then(|p| p.records.first());
        if let Some(highest) = highest.filter(|_| total >= SPLIT_ROWS) {
            for mark in ranges::marks(&highest.id, RANGES) {
                self.engine.seek(mirror, &mark);
            }
        }
        Ok(())
    }

    /// A place to start a range was found.
    pub(super) fn sought(&mut self, mirror: i32, page: &Page) -> Step<()> {
        let watch = self.engine.watch(mirror);
        let Some(start) = page.records.first().filter(|_| watch.backfilling) else {
            return Ok(());
        };
        let new = (watch.ranges.as_mut()).and_then(|r| r.split(&start.id));
        if let Some(range) = new {
            self.engine.backfill_page(mirror, range);
        }
        Ok(())
    }

    /// A page of a range came.
    pub(super) fn backfilled(
        &mut self,
        mirror: i32,
        (range, run): (usize, u32),
        mut page: Page,
        following: bool,
        now: Millis,
    ) -> Step<()> {
        let watch = self.engine.watch(mirror);
        let Some(ranges) = watch.ranges.as_mut().filter(|_| watch.run == run) else {
            return Ok(());
        };
        if ranges.get(range).is_none() {
            // It was split while its pages were on their way: these are another's.
            return Ok(());
        }
        let more = ranges.received(range, &mut page.records, page.next.take());
        let last = ranges.open().is_empty();
        let ids_only = page.ids_only;
        watch.copied.since.get_or_insert(now);
        watch.copied.page.records.append(&mut page.records);
        watch.copied.page.ids_only |= ids_only;
        watch.copied.page.unreadable.append(&mut page.unreadable);
        let full = watch.copied.page.records.len() >= COPY_ROWS;
        if more && !following {
            // The next pages are on their way while this one is applied.
            self.engine.backfill_page(mirror, range);
        }
        if last || full || ids_only {
            self.flush_copied(mirror, now)?;
        }
        if last {
            let watch = self.engine.watch(mirror);
            watch.backfilling = false;
            watch.ranges = None;
            self.engine.end_bulk(mirror, now);
        }
        Ok(())
    }

    /// Applies what was collected while no further page waits to be taken.
    pub(super) fn flush_some(&mut self, now: Millis) -> Step<()> {
        let ready: Vec<i32> = (self.engine.watches.iter())
            .filter(|(_, w)| w.copied.page.records.len() >= SOME_ROWS)
            .map(|(id, _)| *id)
            .collect();
        ready
            .into_iter()
            .try_for_each(|mirror| self.flush_copied(mirror, now))
    }

    /// Applies the pages that were collected, with what is left behind them.
    pub(super) fn flush_copied(&mut self, mirror: i32, now: Millis) -> Step<()> {
        let watch = self.engine.watch(mirror);
        let copied = std::mem::take(&mut watch.copied);
        let Some(ranges) = watch.ranges.as_ref() else {
            return Ok(());
        };
        let cursor = ranges.encode();
        let again = self.engine.poll_after_bulk(mirror, cursor.is_none());
        let rows = i64::try_from(copied.page.records.len()).unwrap_or_default();
        let applied = reading::page(
            &mut self.engine,
            mirror,
            Via::asked("backfill"),
            copied.page,
            now,
            |_| {
                streams::backfill_advance(mirror, cursor.clone(), rows)?;
                if let Some((server, object, since)) = &again {
                    streams::poll_again(server, object, *since)?;
                }
                Ok(())
            },
        );
        if let Err(error) = applied {
            let watch = self.engine.watch(mirror);
            watch.backfilling = false;
            watch.ranges = None;
            watch.copied = Copied::default();
            watch.careful |= !config::is_passing(&error);
            watch.backfill_at = now + 5_000;
            tx::in_transaction(|| Ok(streams::backfill_error(mirror, &error.to_string())?))?;
            return Err(error);
        }
        Ok(())
    }
}
