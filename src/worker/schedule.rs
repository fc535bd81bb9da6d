//! What is due without being asked: first copies, polls, streams, reads,
//! deliveries, writes in doubt, housekeeping.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use crm_core::connectors::Keyset;
use crm_core::http::HttpRequest;
use crm_core::model::{Change, FieldType, Millis};

use crate::pg::store::writes::WriteRow;
use crate::pg::store::{changes, config, writes};
use crate::pg::store::{streams, topics};
use crate::pg::tx;
use crate::worker::creates;
use crate::worker::doubt;
use crate::worker::engine::{self, Again, Engine, Job, Step};
use crate::worker::ingest::{self, Inbound};
use crate::worker::journal;
use crate::worker::pairs::Why;
use crate::worker::release;
use crate::worker::returns::Who;

/// One poll in so many asks for removed records instead.
pub(super) const REMOVED_EVERY: u32 = 10;
/// How far a poll looks back before the last stamp it saw: rows that commit
/// late, and a search index that lags.
const LOOK_BACK_MS: Millis = 5_000;
/// Writes in doubt that are looked at together.
const UNKNOWN: i64 = 1_000;

impl Engine {
    /// Starts whatever is due; the time of the next thing that will be.
    pub(crate) fn schedule(&mut self, now: Millis) -> Step<Millis> {
        let mut next = now + 5_000;
        self.renew_budgets(now)?;
        self.resume_backfills(now)?;
        next = next.min(self.bulk_due());
        next = next.min(self.reconcile(now)?);
        next = next.min(self.follow_schemas(now)?);
        next = next.min(self.read_journals(now)?);
        let ids: Vec<i32> = self.world.mirrors.keys().copied().collect();
        for id in ids {
            next = next.min(self.open_stream(id, now)?);
            next = next.min(self.poll(id, now)?);
            self.read(id);
        }
        if streams::take_deferred() {
            self.undefer_soon(now);
        }
        if now >= self.undefer_at && self.may_undefer {
            self.undefer(now)?;
        }
        if self.may_undefer {
            next = next.min(self.undefer_at.max(now + 1));
        }
        // Before anything is sent that a changed policy may not want any more.
        if self.policy_at.is_some_and(|at| now >= at) {
            self.carry_out_policy(now)?;
        }
        next = next.min(self.policy_at.unwrap_or(next));
        if self.may_replay && self.replay(now)? {
            next = now;
        }
        if self.active {
            next = next.min(self.deliver(now)?);
            if now >= self.unknown_at {
                self.unknown_at = now + 2_000;
                self.settle_unknown()?;
            }
        }
        if now >= self.housekeeping_at {
            self.housekeeping_at = now + 60_000;
            self.release(now)?;
            tx::in_transaction(|| {
                config::prepare()?;
                config::retain()?;
                streams::purge()?;
                changes::forget_transactions()?;
                Ok(())
            })?;
        }
        Ok(next)
    }

    fn poll(&mut self, id: i32, now: Millis) -> Step<Millis> {
        let Some(mirror) = self.world.mirrors.get(&id).filter(|m| !m.paused) else {
            return Ok(Millis::MAX);
        };
        let (name, object, interval) =
            (mirror.server.clone(), mirror.object.clone(), mirror.poll_ms);
        let created = mirror.created_at;
        let watch = self.watches.entry(id).or_default();
        if watch.polling {
            return Ok(Millis::MAX);
        }
        if now < watch.poll_at {
            return Ok(watch.poll_at);
        }
        if mirror.pairs().is_some() {
            watch.poll_at = now + interval;
            return self.start_pairs(id, Why::Poll, now);
        }
        // A stream that works leaves little for polling to find. One that was never
        // heard of may be of an object that nobody selected for events.
        let streams =
            watch.streaming && tx::in_transaction(|| Ok(topics::has_brought(&name, &object)?))?;
        let interval = if streams {
            interval.saturating_mul(5)
        } else {
            interval
        };
        watch.polls += 1;
        watch.listed.clear();
        watch.poll_at = now + interval;
        let Some(row) = tx::in_transaction(|| Ok(streams::stream(&name, "poll", &object)?))? else {
            return Ok(Millis::MAX);
        };
        self.watch(id).poll_row = Some(row.id);
        let since = Keyset {
            modified_at: row.modified_at.unwrap_or(created) - LOOK_BACK_MS,
            ..Keyset::default()
        };
        // A poll shows no removals where the CRM lists them apart.
        if !self.watch(id).polls.is_multiple_of(REMOVED_EVERY) || !self.removed_from(id, None) {
            self.poll_from(id, &since);
        }
        Ok(now + interval)
    }

    /// Lets writes go that were only shown until their link went live; what a
    /// user holds a row of stays for the next time.
    pub(crate) fn release(&mut self, now: Millis) -> Step<()> {
        let world = &self.world;
        while tx::in_transaction(|| Ok(release::release(world, now)?))? > 0 {
            self.may_send = true;
        }
        Ok(())
    }

    /// Takes note that an answer for this mirror could not be stored: what it
    /// was for is asked again after a pause.
    pub(crate) fn ask_again(&mut self, mirror: i32, now: Millis) {
        let watch = self.watch(mirror);
        watch.polling = false;
        watch.poll_at = now + 5_000;
        // What was to be read stands in crm.deferred.
        watch.reading = false;
        self.may_undefer = true;
    }

    /// Asks for the page of changes after a keyset.
    pub(crate) fn poll_from(&mut self, id: i32, since: &Keyset) {
        let request = self.world.mirrors.get(&id).and_then(|m| {
            let server = self.server(&m.server)?;
            Some(
                server
                    .connector
                    .poll_request(&server.config, &m.object, &m.fields, since),
            )
        });
        let sent = request.is_some_and(|r| {
            let since = since.clone();
            self.fetch(id, r, Job::Poll { mirror: id, since })
        });
        self.watch(id).polling = sent;
    }

    /// Asks for a page of removed records; false where polls list them.
    pub(crate) fn removed_from(&mut self, id: i32, cursor: Option<&str>) -> bool {
        let request = self.world.mirrors.get(&id).and_then(|m| {
            let server = self.server(&m.server)?;
            server
                .connector
                .removed_request(&server.config, &m.object, cursor)
        });
        let sent = request.is_some_and(|r| self.fetch(id, r, Job::Removed { mirror: id }));
        self.watch(id).polling |= sent;
        sent
    }

    /// Reads records that events named, a batch at a time.
    pub(crate) fn read(&mut self, id: i32) {
        let Some(mirror) = self.world.mirrors.get(&id).filter(|m| !m.paused) else {
            return;
        };
        let Some(server) = self.server(&mirror.server) else {
            return;
        };
        let size = server.connector.read_batch();
        let Some(watch) = self
            .watches
            .get(&id)
            .filter(|w| !w.reading && !w.reads.is_empty() && engine::now() >= w.reads_at)
        else {
            return;
        };
        let asked_at = engine::now();
        if mirror.pairs().is_some() {
            let size = server.connector.pairs_in_a_read();
            return self.read_pairs(id, size);
        }
        let ids: Vec<String> = watch.reads.iter().take(size).cloned().collect();
        let request =
            server
                .connector
                .read_request(&server.config, &mirror.object, &mirror.fields, &ids);
        if self.fetch(
            id,
            request,
            Job::Read {
                mirror: id,
                ids: ids.clone(),
            },
        ) {
            let watch = self.watch(id);
            watch.reading = true;
            watch.read_at = asked_at;
            watch.read_for = watch.awaited;
            for record in ids {
                watch.reads.remove(&record);
            }
        }
    }

    /// Asks what became of records that are gone; false where the CRM's events
    /// have told.
    pub(crate) fn ask_fate(&mut self, id: i32, ids: &[String], who: &Who) -> bool {
        let asked = self.world.mirrors.get(&id).and_then(|m| {
            let server = self.server(&m.server)?;
            let connector = server.connector;
            connector.fate_request(&server.config, &m.object, ids)
        });
        let Some((request, field)) = asked else {
            return false;
        };
        let fields = Arc::new(vec![(field.to_owned(), FieldType::Reference)]);
        let job = Job::Fate {
            mirror: id,
            ids: ids.to_vec(),
            who: who.clone(),
        };
        self.fetch_fields(id, request, job, fields)
    }

    /// Takes up again what waits for a lock, and asks for records that must be read.
    fn undefer(&mut self, now: Millis) -> Step<()> {
        let world = &self.world;
        let (again, reads) = tx::in_transaction(|| {
            let mut reads = Vec::new();
            for row in streams::deferred("read", 1_000)? {
                reads.push((row.mirror, row.record_id, row.id));
            }
            let locked = streams::deferred("locked", 1_000)?;
            if locked.is_empty() {
                return Ok((0, reads));
            }
            let taken: Vec<i64> = locked.iter().map(|d| d.id).collect();
            let batch: Vec<Inbound> = locked
                .into_iter()
                .filter_map(|d| {
                    let change: Change = serde_json::from_str(&d.change).ok()?;
                    Some(Inbound {
                        mirror: d.mirror,
                        source: source_name(&d.source),
                        stream: d.stream,
                        change: Rc::new(change),
                        identity: None,
                        waited: Some(d.id),
                    })
                })
                .collect();
            let applied = ingest::apply(world, batch, now)?;
            let wait_on: HashSet<i64> = applied.wait_on.into_iter().collect();
            streams::undefer(taken.into_iter().filter(|i| !wait_on.contains(i)).collect())?;
            Ok((applied.locked, reads))
        })?;
        self.undefer_at = now + 50;
        self.may_undefer = again > 0 || !reads.is_empty();
        self.may_send = true;
        if again == 0 && !reads.is_empty() {
            self.undefer_at = now + 1_000;
        }
        let mut mirrors: BTreeSet<i32> = reads.iter().map(|(m, ..)| *m).collect();
        for (mirror, record, id) in reads {
            let watch = self.watch(mirror);
            watch.awaited = watch.awaited.max(id);
            let early = |again: &Again| now < again.at;
            // What is being read now is gone from here when it comes.
            if !watch.reading && !watch.read_again.get(&record).is_some_and(early) {
                watch.reads.insert(record);
            }
        }
        for (mirror, watch) in &mut self.watches {
            if let Some(at) = watch.ask_again(now) {
                self.undefer_at = match self.may_undefer {
                    true => self.undefer_at.min(at),
                    false => at,
                };
                self.may_undefer = true;
            }
            mirrors.extend((!watch.reads.is_empty()).then_some(*mirror));
        }
        for mirror in mirrors {
            self.read(mirror);
        }
        Ok(())
    }

    /// Finds out what became of writes whose answer was lost.
    fn settle_unknown(&mut self) -> Step<()> {
        let rows = tx::in_transaction(|| {
            if !writes::any_unknown()? {
                return Ok(Vec::new());
            }
            Ok(writes::take_unknown(UNKNOWN)?)
        })?;
        let mut known: BTreeMap<i32, Vec<WriteRow>> = BTreeMap::new();
        let mut sought: BTreeMap<i32, Vec<WriteRow>> = BTreeMap::new();
        for row in rows {
            let keyed =
                (self.world.mirrors.get(&row.mirror)).is_some_and(|m| m.unique_field.is_some());
            match (row.kind.as_str(), &row.record_id) {
                ("create", None) if keyed => sought.entry(row.mirror).or_default().push(row),
                ("create", None) => self.settle_create(row)?,
                // A person named it: an id that is none must not spoil the others' call.
                ("create", Some(_)) => self.look_back(row.mirror, vec![row]),
                _ => known.entry(row.mirror).or_default().push(row),
            }
        }
        for (id, rows) in sought {
            self.look_for_made(id, rows);
        }
        for (id, rows) in known {
            let server = self.world.mirrors.get(&id).map(|m| &m.server);
            let Some(server) = server.and_then(|s| self.server(s)) else {
                continue;
            };
            let size = server.connector.read_batch().max(1);
            for rows in rows.chunks(size) {
                self.look_back(id, rows.to_vec());
            }
        }
        Ok(())
    }

    /// Sends a create in doubt again where that is safe, else looks for its record.
    fn settle_create(&mut self, row: WriteRow) -> Step<()> {
        let Some(mirror) = self.world.mirrors.get(&row.mirror) else {
            return Ok(());
        };
        if mirror.pairs().is_some() {
            // A pair is safe to make again.
            tx::in_transaction(|| Ok(writes::requeue(vec![row.id])?))?;
            self.may_send = true;
            return Ok(());
        }
        if self.server(&mirror.server).is_none() {
            return Ok(());
        }
        let Some(request) = doubt::find_created(self, mirror, &row) else {
            return tx::in_transaction(|| Ok(doubt::hold_create(mirror, &row)?));
        };
        let (id, write) = (row.mirror, Box::new(row));
        self.fetch(id, request, Job::FindCreated { mirror: id, write });
        Ok(())
    }

    /// Looks for what creates in doubt may have made, by our own key: made again, they
    /// would write over what somebody has changed in their records since.
    fn look_for_made(&mut self, id: i32, mut rows: Vec<WriteRow>) {
        while !rows.is_empty() {
            // Looked for again when its time comes.
            let Some((request, fit)) = self.find_made(id, &rows, false) else {
                return;
            };
            let rest = rows.split_off(fit);
            let job = Job::FindMade {
                mirror: id,
                writes: std::mem::replace(&mut rows, rest),
                removed: false,
            };
            if !self.fetch(id, request, job) {
                return;
            }
        }
    }

    /// The same among removed records, for creates that were looked for in vain; false
    /// if the CRM cannot be asked.
    pub(super) fn look_for_removed(&mut self, id: i32, writes: &[WriteRow]) -> bool {
        if writes.is_empty() {
            return true;
        }
        let Some((request, fit)) = self.find_made(id, writes, true) else {
            return false;
        };
        // What does not fit, or is not asked, is looked for again when its time comes.
        let job = Job::FindMade {
            mirror: id,
            writes: writes[..fit].to_vec(),
            removed: true,
        };
        self.fetch(id, request, job);
        true
    }

    /// A search for records by our own key of these rows, and for how many of them.
    fn find_made(&self, id: i32, rows: &[WriteRow], removed: bool) -> Option<(HttpRequest, usize)> {
        let m = self.world.mirrors.get(&id)?;
        let (server, field) = (self.server(&m.server)?, m.unique_field.as_ref()?);
        let key = |w: &WriteRow| creates::unique_value(&self.world.installation, id, w.row_id);
        let keys: Vec<String> = rows.iter().map(key).collect();
        let (config, connector) = (&server.config, server.connector);
        let fit = connector.find_batch(&m.object, &m.fields, field, &keys);
        let keys = &keys[..fit.clamp(1, keys.len())];
        let request = match removed {
            false => connector.find_request(config, &m.object, &m.fields, field, keys),
            true => connector.find_removed_request(config, &m.object, &m.fields, field, keys)?,
        };
        Some((request, keys.len()))
    }

    /// Reads the records of writes in doubt, in one call.
    fn look_back(&mut self, id: i32, writes: Vec<WriteRow>) {
        let ids: Vec<String> = writes.iter().filter_map(|w| w.record_id.clone()).collect();
        let request = self.world.mirrors.get(&id).and_then(|m| {
            let server = self.server(&m.server)?;
            let (config, connector) = (&server.config, server.connector);
            Some(connector.read_request(config, &m.object, &m.fields, &ids))
        });
        let Some(request) = request else {
            return;
        };
        let job = Job::Settle {
            mirror: id,
            writes,
            asked_at: engine::now(),
        };
        self.fetch(id, request, job);
    }
}

/// Stored names of sources as the constants they came from.
pub(crate) fn source_name(name: &str) -> &'static str {
    match name {
        "pubsub" => "pubsub",
        journal::SOURCE => journal::SOURCE,
        "cometd" => "cometd",
        "replay" => "replay",
        "reconcile" => "reconcile",
        "poll" => "poll",
        "read" => "read",
        "sql" => "sql",
        _ => "webhook",
    }
}
