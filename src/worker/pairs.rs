//! Mirrors that pair records of two object types. A CRM lists their rows by the
//! records that they start from, all of a record at once, so copies and polls
//! go along the mirror of these, and what an answer lacks is gone.

use std::cell::RefCell;
use std::collections::BTreeSet;

use crm_core::model::{Millis, Page, RemoteError};

use crate::pg::store::pairs;
use crate::pg::store::rows;
use crate::pg::store::spi;
use crate::pg::store::streams::{self, Advance};
use crate::pg::tx::{self, SqlError};
use crate::worker::engine::{self, Engine, Job, Step};
use crate::worker::pages::Via;
use crate::worker::reading;
use crate::worker::session::Session;
use crate::worker::world::Mirror;

/// Rows of removed records that one poll marks.
const ORPHANS: i64 = 10_000;
/// Pause before a copy looks again whether it can begin.
const LOOK_MS: Millis = 1_000;

/// What pairs are read for.
#[derive(Clone, Debug)]
pub(crate) enum Why {
    /// The first copy.
    Copy,
    /// A poll of everything.
    Poll,
    /// Events named these.
    Read(Vec<String>),
}

/// A read that is on its way.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) mirror: i32,
    pub(crate) why: Why,
    /// The records whose pairs are read.
    from: Vec<String>,
    /// What answers have shown of them so far.
    shown: BTreeSet<String>,
    at: Millis,
}

/// The column that holds where a pair starts.
fn start_column(mirror: &Mirror) -> Option<&str> {
    let column = mirror.by_field.get("from_id")?;
    Some(&mirror.columns[*column].quoted)
}

/// The record that a pair starts from, by the pair's id or its own.
pub(crate) fn start(id: &str) -> String {
    id.split(':').next().unwrap_or_default().to_owned()
}

/// A pair that was tied again has a row from before, which took the place of the
/// new one. A pair is all that its id says, so that row is back at once: between
/// the two its records would seem untied, and references would follow that.
pub(crate) fn tied_again(mirror: &Mirror, kept: Option<i64>) -> spi::Result<()> {
    if let Some(kept) = kept.filter(|_| mirror.pairs().is_some()) {
        rows::mark_deleted(&mirror.table, vec![kept], false, &mirror.server)?;
    }
    Ok(())
}

impl Engine {
    /// The mirror of the records that pairs of this one start from.
    fn parent(&self, id: i32) -> Option<&Mirror> {
        let mirror = self.world.mirrors.get(&id)?;
        let (from, _) = mirror.pairs()?;
        self.world.mirror_of(&mirror.server, from)
    }

    /// Begins a copy when the records are there, and a poll when the copy is done.
    pub(crate) fn start_pairs(&mut self, id: i32, why: Why, now: Millis) -> Step<Millis> {
        let Some(parent) = self.parent(id).map(|m| m.id) else {
            let watch = self.watch(id);
            watch.backfill_at = now + LOOK_MS;
            watch.poll_at = now + LOOK_MS;
            return Ok(watch.poll_at);
        };
        let needed = match why {
            Why::Copy => parent,
            Why::Poll | Why::Read(_) => id,
        };
        if !tx::in_transaction(|| Ok(pairs::copied(needed)?))? {
            let watch = self.watch(id);
            match why {
                Why::Copy => watch.backfill_at = now + LOOK_MS,
                Why::Poll | Why::Read(_) => watch.poll_at = now + LOOK_MS,
            }
            return Ok(now + LOOK_MS);
        }
        let after = match why {
            Why::Copy => {
                let rows = tx::in_transaction(|| Ok(streams::backfills()?))?;
                let row = rows.into_iter().find(|r| r.mirror == id);
                tx::in_transaction(|| Ok(streams::backfill_started(id, None)?))?;
                row.and_then(|r| r.cursor).unwrap_or_default()
            }
            Why::Poll | Why::Read(_) => String::new(),
        };
        self.next_pairs(id, why, &after, now)?;
        Ok(Millis::MAX)
    }

    /// Reads the pairs of the records after one; the end of the walk if there are none.
    fn next_pairs(&mut self, id: i32, why: Why, after: &str, now: Millis) -> Step<()> {
        let Some((parent, server)) = self.parent(id).and_then(|p| {
            let server = self.server(&p.server)?;
            Some((p, server))
        }) else {
            self.rest(id, &why, now + LOOK_MS);
            return Ok(());
        };
        let limit = i64::try_from(server.connector.pairs_in_a_read()).unwrap_or(100);
        let from = tx::in_transaction(|| Ok(pairs::records(&parent.table, after, limit)?))?;
        if from.is_empty() {
            return self.walked(id, &why, now);
        }
        self.ask_pairs(
            Asked {
                mirror: id,
                why,
                from,
                shown: BTreeSet::new(),
                at: engine::now(),
            },
            None,
        );
        Ok(())
    }

    /// Reads the pairs that events named, of so many records at most.
    pub(crate) fn read_pairs(&mut self, id: i32, size: usize) {
        let watch = self.watch(id);
        // What is read while writes are on their way would be read again.
        if watch.pushes > 0 {
            return;
        }
        let ids: Vec<String> = watch.reads.iter().take(size).cloned().collect();
        if self.ask_named(id, ids.clone()) {
            let watch = self.watch(id);
            watch.read_for = watch.awaited;
            for record in ids {
                watch.reads.remove(&record);
            }
        }
    }

    fn ask_named(&mut self, id: i32, ids: Vec<String>) -> bool {
        let from: BTreeSet<String> = ids.iter().map(|i| start(i)).collect();
        self.ask_pairs(
            Asked {
                mirror: id,
                why: Why::Read(ids),
                from: from.into_iter().collect(),
                shown: BTreeSet::new(),
                at: engine::now(),
            },
            None,
        )
    }

    /// A read is over without a next one: what it was for is taken up later.
    fn rest(&mut self, id: i32, why: &Why, until: Millis) {
        let watch = self.watch(id);
        match why {
            Why::Copy => {
                watch.backfilling = false;
                watch.backfill_at = until;
            }
            Why::Poll => {
                watch.polling = false;
                // Not only when the next one is due: it is seldom.
                watch.poll_at = until;
            }
            Why::Read(ids) => {
                watch.reading = false;
                watch.reads.extend(ids.iter().cloned());
                watch.reads_at = until;
            }
        }
    }

    /// Sends a read, or what is left of it.
    fn ask_pairs(&mut self, asked: Asked, rest: Option<Vec<String>>) -> bool {
        let id = asked.mirror;
        let why = asked.why.clone();
        let request = self.world.mirrors.get(&id).and_then(|m| {
            let server = self.server(&m.server)?;
            let ids = rest.as_deref().unwrap_or(&asked.from);
            let connector = server.connector;
            Some(connector.read_request(&server.config, &m.object, &m.fields, ids))
        });
        let sent = request.is_some_and(|r| self.fetch(id, r, Job::Pairs(Box::new(asked))));
        let watch = self.watch(id);
        match why {
            Why::Copy => watch.backfilling = sent,
            Why::Poll => watch.polling = sent,
            Why::Read(_) => watch.reading = sent,
        }
        sent
    }

    /// Every record was asked about.
    fn walked(&mut self, id: i32, why: &Why, now: Millis) -> Step<()> {
        let Some((m, parent)) = self.world.mirrors.get(&id).zip(self.parent(id)) else {
            return Ok(());
        };
        let interval = m.poll_ms;
        let world = &self.world;
        tx::in_transaction(|| {
            match why {
                Why::Copy => drop(streams::backfill_advance(id, None, 0)?),
                Why::Poll | Why::Read(_) => {
                    if let Some(column) = start_column(m) {
                        let lost = pairs::orphans(&m.table, column, &parent.table, ORPHANS)?;
                        reading::gone(world, m, Via::asked("poll"), lost, now)?;
                    }
                    if let Some(row) = streams::stream(&m.server, "poll", &m.object)? {
                        streams::advance(row.id, Advance::default())?;
                    }
                }
            }
            Ok(())
        })?;
        let watch = self.watch(id);
        match why {
            Why::Copy => {
                watch.backfilling = false;
                watch.poll_at = now + interval;
            }
            Why::Poll | Why::Read(_) => watch.polling = false,
        }
        Ok(())
    }
}

impl Session {
    /// Pairs came.
    pub(super) fn paired(&mut self, mut asked: Asked, mut page: Page, now: Millis) -> Step<()> {
        let id = asked.mirror;
        // What left meanwhile may or may not be in the answer: asked again.
        let watch = self.engine.watch(id);
        if watch.pushes > 0 || watch.pushed_at >= asked.at {
            watch.reads.extend(asked.from.iter().cloned());
            page.records.clear();
            page.next = None;
            return self.pairs_done(asked, None, now);
        }
        asked
            .shown
            .extend(page.records.iter().map(|r| r.id.clone()));
        if let Some(rest) = page.next.take() {
            self.apply_pairs(&asked, page, |_| Ok(()), now)?;
            let rest = rest.split(',').map(str::to_owned).collect();
            self.engine.ask_pairs(asked, Some(rest));
            return Ok(());
        }
        self.pairs_done(asked, Some(page), now)
    }

    /// The CRM did not answer as it should.
    pub(super) fn pairs_failed(
        &mut self,
        asked: Asked,
        error: &RemoteError,
        now: Millis,
    ) -> Step<()> {
        let id = asked.mirror;
        let wait = error.retry_after_ms.unwrap_or(0).max(LOOK_MS);
        self.engine.rest(id, &asked.why, now + wait);
        let Some(m) = self.engine.world.mirrors.get(&id) else {
            return Ok(());
        };
        tx::in_transaction(|| {
            if matches!(asked.why, Why::Copy) {
                streams::backfill_error(id, &error.to_string())?;
            }
            streams::server_error(&m.server, Some((&error.to_string(), error.advice)))?;
            Ok(())
        })
    }

    fn apply_pairs(
        &mut self,
        asked: &Asked,
        page: Page,
        advance: impl Fn(&[String]) -> Result<(), SqlError>,
        now: Millis,
    ) -> Step<()> {
        let via = match asked.why {
            Why::Copy => Via::asked("backfill"),
            Why::Poll => Via::asked("poll"),
            Why::Read(_) => Via {
                asked_at: Some(asked.at),
                ..Via::asked("read")
            },
        };
        let applied = reading::page(&mut self.engine, asked.mirror, via, page, now, |applied| {
            advance(&applied.locked)
        });
        if applied.is_err() {
            // The walk begins again where its rows were last stored.
            self.engine.rest(asked.mirror, &asked.why, now + 5_000);
        }
        applied.map(|_| ())
    }

    /// A read is complete: its last page is applied, what it lacks is gone, and
    /// the next one leaves. Without a page nothing is known of what was asked.
    fn pairs_done(&mut self, asked: Asked, page: Option<Page>, now: Millis) -> Step<()> {
        let id = asked.mirror;
        let last = asked.from.last().cloned().unwrap_or_default();
        let open = RefCell::new(Vec::new());
        let known = page.is_some();
        let read_for = self.engine.watch(id).read_for;
        let page = page.unwrap_or_default();
        let rows = i64::try_from(page.records.len()).unwrap_or_default();
        let store = |locked: &[String]| {
            match &asked.why {
                Why::Copy => drop(streams::backfill_advance(id, Some(last.clone()), rows)?),
                Why::Read(ids) if known => {
                    let done = ids.iter().filter(|i| !locked.contains(i)).cloned();
                    open.replace(streams::undefer_records(id, done.collect(), read_for)?);
                }
                Why::Poll | Why::Read(_) => {}
            }
            Ok(())
        };
        self.apply_pairs(&asked, page, store, now)?;
        let world = &self.engine.world;
        if let Some(m) = world.mirrors.get(&id).filter(|_| known)
            && let Some(column) = start_column(m)
        {
            let via = Via::asked(match asked.why {
                Why::Copy | Why::Poll => "poll",
                Why::Read(_) => "read",
            });
            let shown: Vec<String> = asked.shown.iter().cloned().collect();
            tx::in_transaction(|| {
                let gone = pairs::unshown(&m.table, column, &asked.from, &shown)?;
                reading::gone(world, m, via, gone, now)
            })?;
        }
        match asked.why {
            Why::Copy | Why::Poll => self.engine.next_pairs(id, asked.why, &last, now),
            Why::Read(ids) => {
                let watch = self.engine.watch(id);
                watch.reading = false;
                watch.was_read(&ids, &open.into_inner(), &[], now);
                self.engine.undefer_soon(now);
                if known {
                    self.engine.read(id);
                }
                Ok(())
            }
        }
    }
}
