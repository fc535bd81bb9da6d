//! What the session does with answers: pages, ends of streams. Results of writes
//! are [`crate::worker::outcomes`].

use std::cell::RefCell;

use crm_core::connectors::{self, Keyset};
use crm_core::model::{ErrorClass, Millis, Page, RemoteError};

use crate::pg::store::lives;
use crate::pg::store::spi::Result as SqlResult;
use crate::pg::store::streams::{self, Advance};
use crate::pg::store::writes::WriteRow;
use crate::pg::tx;
use crate::worker::absent;
use crate::worker::doubt::{self, Look};
use crate::worker::engine::{Job, Step};
use crate::worker::given_up;
use crate::worker::merges;
use crate::worker::pages::Via;
use crate::worker::reading;
use crate::worker::returns::Who;
use crate::worker::reviews;
use crate::worker::session::Session;
use crate::worker::world::{Mirror, World};

/// Settles writes in one transaction, else one by one: a row that somebody holds, or
/// that refuses what it is shown, keeps nobody else in doubt. It is looked at again
/// when its time comes.
fn together_or_each(
    writes: Vec<WriteRow>,
    mut settle: impl FnMut(Vec<WriteRow>) -> Step<()>,
) -> Step<()> {
    let mut settled = settle(writes.clone());
    if settled.is_err() && writes.len() > 1 {
        let each = writes.into_iter().map(|write| settle(vec![write]));
        settled = each.fold(Ok(()), Result::and);
    }
    match settled {
        Err(error) if error.sqlstate == "55P03" => Ok(()),
        settled => settled,
    }
}

impl Session {
    pub(super) fn stream_up(&mut self, stream: u64) {
        let mirror = self.engine.streams.get(&stream).and_then(|s| {
            self.engine
                .world
                .mirror_of(&s.server, &s.object)
                .map(|m| m.id)
        });
        if let Some(id) = mirror {
            let watch = self.engine.watch(id);
            watch.streaming = true;
            watch.failures = 0;
        }
    }

    pub(super) fn fetched(
        &mut self,
        job: Job,
        result: Result<Page, RemoteError>,
        following: bool,
        now: Millis,
    ) -> Step<()> {
        let mut page = match result {
            Ok(page) => page,
            Err(error) => return self.fetch_failed(job, &error, now),
        };
        if !page.absent.is_empty() && !self.engine.doubt_page(&job, &mut page, now)? {
            return Ok(());
        }
        match job {
            Job::Highest { mirror } => self.highest(mirror, Some(&page)),
            Job::Seek { mirror } => self.sought(mirror, &page),
            Job::Backfill { mirror, range, run } => {
                self.backfilled(mirror, (range, run), page, following, now)
            }
            Job::Fill { mirror, what } => self.filled(mirror, what, page, now),
            Job::Poll { mirror, since } => self.polled(mirror, &since, page, now),
            Job::Removed { mirror } => self.removed(mirror, page, now),
            Job::Read { mirror, ids } => self.was_read(mirror, ids, page, now),
            Job::Compare { mirror, turn } => self.compared((mirror, turn), page, following, now),
            Job::Repair { mirror, turn } => self.repaired((mirror, turn), page, now),
            Job::Fate { mirror, ids, who } => self.fate_known(mirror, (ids, &who), page, now),
            Job::Settle {
                mirror,
                writes,
                asked_at,
            } => self.settled((mirror, writes, asked_at), page, now),
            Job::FindCreated { mirror, write } => {
                self.looked_for(mirror, vec![*write], |world, m, writes| {
                    doubt::take_found(world, m, writes, &page.records, now)
                })
            }
            Job::FindMade {
                mirror,
                writes,
                removed,
            } => self.looked_for_made((mirror, writes, removed), page, now),
            Job::Pairs(asked) => self.paired(*asked, page, now),
            Job::Look { batch, column } => self.looked(batch, column, page, now),
            Job::Origins(asked) => self.looked_back(*asked, page, now),
            _ => Ok(()),
        }
    }

    /// Records with writes in doubt were looked at.
    fn settled(
        &mut self,
        (mirror, writes, asked_at): (i32, Vec<WriteRow>, Millis),
        page: Page,
        now: Millis,
    ) -> Step<()> {
        let Some(m) = self.engine.world.mirrors.get(&mirror) else {
            return Ok(());
        };
        let look = Look {
            found: (page.records.into_iter())
                .map(|r| (r.id.clone(), r))
                .collect(),
            unreadable: page.unreadable,
            asked_at,
        };
        // A record that a create turned out to have made may differ by now.
        let made: Vec<String> = writes
            .iter()
            .filter(|w| w.kind == "create")
            .filter_map(|w| w.record_id.clone())
            .collect();
        let world = &self.engine.world;
        together_or_each(writes, |writes| {
            tx::in_transaction(|| doubt::settle(world, m, writes, &look, now))
        })?;
        self.engine.may_send = true;
        self.engine.may_undefer = true;
        self.engine.watch(mirror).reads.extend(made);
        self.engine.read(mirror);
        Ok(())
    }

    /// Records were looked for that creates in doubt may have made. What is there may
    /// have been edited since: it is read and decided.
    fn looked_for(
        &mut self,
        mirror: i32,
        writes: Vec<WriteRow>,
        take: impl Fn(&World, &Mirror, Vec<WriteRow>) -> SqlResult<Vec<String>>,
    ) -> Step<()> {
        let Some(m) = self.engine.world.mirrors.get(&mirror) else {
            return Ok(());
        };
        let mut made = Vec::new();
        together_or_each(writes, |writes| {
            made.extend(tx::in_transaction(|| {
                Ok(take(&self.engine.world, m, writes)?)
            })?);
            Ok(())
        })?;
        self.engine.may_send = true;
        self.engine.watch(mirror).reads.extend(made);
        self.engine.read(mirror);
        Ok(())
    }

    /// Records were looked for by our own key. Of those that are not there the CRM is
    /// asked whether they were removed, before they are made again.
    fn looked_for_made(
        &mut self,
        (mirror, writes, removed): (i32, Vec<WriteRow>, bool),
        page: Page,
        now: Millis,
    ) -> Step<()> {
        let Some(m) = self.engine.world.mirrors.get(&mirror) else {
            return Ok(());
        };
        let made = tx::in_transaction(|| {
            let world = &self.engine.world;
            Ok(doubt::made(world, m, &writes, &page.records, removed)?)
        })?;
        let (mut found, missing): (Vec<WriteRow>, Vec<WriteRow>) =
            (writes.into_iter()).partition(|w| made.contains_key(&w.row_id));
        if removed || !self.engine.look_for_removed(mirror, &missing) {
            found.extend(missing);
        }
        self.looked_for(mirror, found, |world, m, writes| {
            doubt::take_made(world, m, writes, &made, now)
        })
    }

    pub(super) fn fetch_failed(&mut self, job: Job, error: &RemoteError, now: Millis) -> Step<()> {
        let job = match job {
            Job::Look { batch, .. } => return self.look_failed(batch, error, now),
            Job::Origins(asked) => return self.look_back_failed(*asked, error, now),
            Job::Pairs(asked) => return self.pairs_failed(*asked, error, now),
            job => job,
        };
        let mirror = match &job {
            Job::Highest { mirror } => return self.highest(*mirror, None),
            // Without this place to split at, the copy has a range less.
            Job::Seek { .. } => return Ok(()),
            Job::Compare { mirror, turn } | Job::Repair { mirror, turn } => {
                return self.reconcile_refused((*mirror, *turn), error, now);
            }
            Job::Backfill { mirror, .. }
            | Job::Poll { mirror, .. }
            | Job::Removed { mirror }
            | Job::Fill { mirror, .. }
            | Job::Read { mirror, .. }
            | Job::Fate { mirror, .. }
            | Job::Settle { mirror, .. }
            | Job::FindCreated { mirror, .. }
            | Job::FindMade { mirror, .. } => *mirror,
            _ => return Ok(()),
        };
        if matches!(job, Job::Backfill { .. }) && self.bulk_lost(mirror, error)? {
            return Ok(());
        }
        let wait = error.retry_after_ms.unwrap_or(0).max(1_000);
        self.engine.in_vain(&job, mirror, error, (now, wait))?;
        let backfill_failed = matches!(job, Job::Backfill { .. });
        let mut misnamed = Vec::new();
        let watch = self.engine.watch(mirror);
        match job {
            Job::Backfill { .. } => {
                watch.backfilling = false;
                watch.backfill_at = now + wait;
            }
            Job::Poll { .. } | Job::Removed { .. } => {
                watch.polling = false;
                watch.poll_at = watch.poll_at.max(now + wait);
            }
            Job::Read { ids, .. } => {
                watch.reading = false;
                watch.reads_at = now + error.retry_after_ms.unwrap_or(0);
                watch.reads.extend(ids);
            }
            Job::Fate { ids, .. } => watch.reads.extend(ids),
            // A person named a record whose id the CRM does not even take.
            Job::Settle { writes, .. }
                if matches!(error.class, ErrorClass::FixData | ErrorClass::Gone) =>
            {
                misnamed.extend(writes.into_iter().filter(|w| w.kind == "create"));
            }
            _ => {}
        }
        let Some(m) = self.engine.world.mirrors.get(&mirror) else {
            return Ok(());
        };
        tx::in_transaction(|| Ok(doubt::note_failed(m, misnamed, backfill_failed, error)?))
    }

    pub(super) fn polled(
        &mut self,
        mirror: i32,
        since: &Keyset,
        page: Page,
        now: Millis,
    ) -> Step<()> {
        let Some(m) = self.engine.world.mirrors.get(&mirror) else {
            return Ok(());
        };
        let (server, object) = (m.server.clone(), m.object.clone());
        // Whatever becomes of this page, the next poll starts from what is stored.
        self.engine.watch(mirror).polling = false;
        // In the CRM's order, which is not that of ids as text.
        let last = page
            .records
            .iter()
            .rev()
            .find_map(|r| Some((r.modified_at?, r.id.clone())));
        let next = self
            .engine
            .server(&server)
            .and_then(|s| s.connector.next_keyset(&object, since, &page));
        let all =
            (self.engine.world.connectors.get(&server)).is_some_and(|c| c.polls_list_all(&object));
        if all {
            let shown = page.records.iter().map(|r| r.id.clone());
            self.engine.watch(mirror).listed.extend(shown);
        }
        let via = Via {
            source: "poll",
            stream: self.engine.watch(mirror).poll_row,
            asked_at: None,
            awaited: i64::MAX,
        };
        let events = i64::try_from(page.records.len()).unwrap_or_default();
        let to = last.map(|(at, id)| Advance {
            modified_at: Some(at),
            record_id: Some(id),
            events,
            ..Advance::default()
        });
        reading::page(&mut self.engine, mirror, via, page, now, |_| {
            if let (Some(row), Some(to)) = (streams::stream(&server, "poll", &object)?, &to) {
                streams::advance(row.id, to.clone())?;
            }
            streams::server_error(&server, None)?;
            Ok(())
        })?;
        match next {
            Some(next) => self.engine.poll_from(mirror, &next),
            None if all => self.listed(mirror, now)?,
            None => {}
        }
        Ok(())
    }

    /// A list of all records is at its end: what it does not show is gone.
    fn listed(&mut self, mirror: i32, now: Millis) -> Step<()> {
        let listed = std::mem::take(&mut self.engine.watch(mirror).listed);
        let world = &self.engine.world;
        let Some(m) = world.mirrors.get(&mirror) else {
            return Ok(());
        };
        tx::in_transaction(|| {
            let gone = lives::others(&m.table, listed.into_iter().collect())?;
            reading::gone(world, m, Via::asked("poll"), gone, now)
        })
    }

    fn removed(&mut self, mirror: i32, page: Page, now: Millis) -> Step<()> {
        self.engine.watch(mirror).polling = false;
        let ids: Vec<String> = page.records.into_iter().map(|r| r.id).collect();
        let world = &self.engine.world;
        if let Some(m) = world.mirrors.get(&mirror) {
            tx::in_transaction(|| reading::gone(world, m, Via::asked("read"), ids, now))?;
        }
        if let Some(next) = page.next {
            self.engine.removed_from(mirror, Some(&next));
        }
        Ok(())
    }

    pub(super) fn was_read(
        &mut self,
        mirror: i32,
        ids: Vec<String>,
        page: Page,
        now: Millis,
    ) -> Step<()> {
        // Not every CRM names what it did not find.
        let missing = connectors::missing(&ids, &page);
        let missing: Vec<String> = missing.into_iter().map(str::to_owned).collect();
        self.engine.watch(mirror).reading = false;
        let asked = ids.clone();
        let watch = self.engine.watch(mirror);
        let read_for = watch.read_for;
        let via = Via {
            asked_at: Some(watch.read_at),
            awaited: read_for,
            ..Via::asked("read")
        };
        let open = RefCell::new(Vec::new());
        let mut who = Who::default();
        let world = &self.engine.world;
        if let Some(m) = world.mirrors.get(&mirror) {
            who = tx::in_transaction(|| {
                let removed = absent::removed(m, &ids)?.leaving;
                let gone: Vec<String> = missing.iter().chain(removed.keys()).cloned().collect();
                if gone.is_empty() {
                    return Ok(Who::default());
                }
                Ok(given_up::told_too_late(world, m, gone, &removed, read_for)?)
            })?;
        }
        let applied = reading::page(&mut self.engine, mirror, via, page, now, |applied| {
            let done: Vec<String> = ids
                .iter()
                .filter(|i| !applied.locked.contains(i))
                .cloned()
                .collect();
            open.replace(streams::undefer_records(mirror, done, read_for)?);
            Ok(())
        });
        let held = match applied {
            Ok(applied) => applied.locked,
            Err(error) => {
                self.engine.watch(mirror).reads.extend(asked);
                return Err(error);
            }
        };
        if !missing.is_empty() && !self.engine.ask_fate(mirror, &missing, &who) {
            let world = &self.engine.world;
            if let Some(m) = world.mirrors.get(&mirror) {
                tx::in_transaction(|| reading::removed_by(world, m, via, missing, &who, now))?;
            }
        }
        self.engine
            .watch(mirror)
            .was_read(&asked, &open.into_inner(), &held, now);
        self.engine.undefer_soon(now);
        self.engine.read(mirror);
        Ok(())
    }

    /// Records are gone: merged into others, or removed.
    fn fate_known(
        &mut self,
        mirror: i32,
        (ids, who): (Vec<String>, &Who),
        page: Page,
        now: Millis,
    ) -> Step<()> {
        let world = &self.engine.world;
        let Some(m) = world.mirrors.get(&mirror) else {
            return Ok(());
        };
        let pairs: Vec<(String, String)> = page
            .records
            .into_iter()
            .filter_map(|r| Some((r.id, r.values.value(0)?)))
            .collect();
        let lost = ids
            .into_iter()
            .filter(|id| !pairs.iter().any(|(loser, _)| loser == id))
            .collect();
        let survivors: Vec<String> = pairs.iter().map(|(_, s)| s.clone()).collect();
        tx::in_transaction(|| {
            merges::shown(world, m, &pairs, &[], now)?;
            reading::removed_by(world, m, Via::asked("read"), lost, who, now)?;
            Ok(())
        })?;
        self.engine.watch(mirror).reads.extend(survivors);
        self.engine.may_send = true;
        self.engine.read(mirror);
        Ok(())
    }

    /// What stewards have answered. Answers about rows that somebody holds wait
    /// for the next look.
    pub(super) fn answered(&mut self, now: Millis) -> Step<()> {
        let world = &self.engine.world;
        let taken = tx::in_transaction(|| Ok(reviews::settle(world, now)?))?;
        self.engine.may_send |= taken > 0;
        if taken > 0 {
            self.engine.reconcile_at = 0;
        }
        Ok(())
    }
}
