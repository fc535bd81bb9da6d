//! Reconciliation: a mirror compared with what its CRM lists. Only ids and stamps
//! are asked for, or all values if that is wanted; what differs is noted in the
//! transaction that moves the place in the list, and read by [`super::repair`].
//!
//! Memory does not grow with the mirror: pages are compared some thousand records
//! at a time, and which rows were listed is remembered in the database, a bit each.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crm_core::http::{HttpResponse, Purpose};
use crm_core::model::{FieldType, Millis, Page, Record, RemoteError};
use crm_core::reconcile::{self, Bucket, CHUNK, Finding, Kind};
use crm_io::{Follow, Tag};

use crate::pg::store::reconciles::{self, Run};
use crate::pg::store::spi::Result;
use crate::pg::tx::{self, SqlError};
use crate::worker::engine::{Engine, Job, Step};
use crate::worker::pages;
use crate::worker::session::Session;
use crate::worker::world::Mirror;

/// The source of what a reconciliation changes, in `crm.event`.
pub(crate) const SOURCE: &str = "reconcile";
/// Records that are compared together.
const LISTED: usize = 5_000;
/// The same where each comes with its values.
const WHOLE: usize = 1_000;
/// Records of a bucket that is hashed.
const BUCKET: usize = 100;
/// Pages of the list that come one after the other without being asked for.
const FOLLOW: u32 = 8;
/// How often to look for runs, besides when somebody asks for one.
const LOOK_MS: Millis = 60_000;
/// How soon to try again what the database refused.
const AGAIN_MS: Millis = 5_000;
/// How often an account is asked for its time zone, until it tells one.
const ZONE_MS: Millis = 3_600_000;

/// A reconciliation under way.
pub(crate) struct Reconciling {
    pub(crate) run: Run,
    /// Tells answers of this start from those of an earlier one.
    pub(crate) turn: u64,
    /// A call is on its way.
    pub(crate) busy: bool,
    /// Nothing to do before.
    pub(crate) at: Millis,
    pub(crate) failures: u32,
    /// Calls that are not stored yet.
    pub(crate) calls: i64,
    /// Where the list goes on behind what was received.
    next: Option<String>,
    listed: Vec<(String, Millis)>,
    records: Vec<Record>,
    /// Records whose values the list cannot bring: each is read.
    unlisted: bool,
    /// What is being read.
    pub(crate) asked: HashMap<String, (Finding, Millis)>,
    pub(crate) asked_at: Millis,
}

impl Reconciling {
    fn new(run: Run, turn: u64) -> Self {
        Self {
            next: run.cursor.clone(),
            run,
            turn,
            busy: false,
            at: 0,
            failures: 0,
            calls: 0,
            listed: Vec::new(),
            records: Vec::new(),
            unlisted: false,
            asked: HashMap::new(),
            asked_at: 0,
        }
    }
}

impl Engine {
    /// Begins and goes on with reconciliations; when there is something to do next.
    pub(crate) fn reconcile(&mut self, now: Millis) -> Step<Millis> {
        if now >= self.reconcile_at {
            self.find_runs(now)?;
        }
        let idle = |w: &super::engine::Watch| w.reconciling.as_ref().is_some_and(|r| !r.busy);
        let ready: Vec<i32> = (self.watches.iter())
            .filter(|(_, w)| idle(w))
            .map(|(id, _)| *id)
            .collect();
        let mut next = self.reconcile_at;
        for id in ready {
            let at = self.watch(id).reconciling.as_ref().map_or(now, |r| r.at);
            if now < at {
                next = next.min(at);
                continue;
            }
            if let Err(error) = self.reconcile_step(id, now) {
                self.reconcile_failed(id, &error, now)?;
            }
            if let Some(r) = &self.watch(id).reconciling
                && !r.busy
            {
                next = next.min(r.at.max(now));
            }
        }
        Ok(next.min(self.reconcile_at))
    }

    fn find_runs(&mut self, now: Millis) -> Step<()> {
        let (next, runs, zones) = tx::in_transaction(|| {
            let next = reconciles::schedule()?;
            Ok((next, reconciles::open()?, reconciles::without_zone()?))
        })?;
        let next = next.unwrap_or(Millis::MAX).min(now + LOOK_MS);
        self.reconcile_at = next.max(now + 500);
        for server in zones {
            self.ask_zone(server, now);
        }
        for watch in self.watches.values_mut() {
            let open = |r: &mut Reconciling| !runs.iter().any(|run| run.id == r.run.id);
            drop(watch.reconciling.take_if(open));
        }
        for run in runs {
            let Some(mirror) = self.world.mirrors.get(&run.mirror) else {
                continue;
            };
            let connector = self.world.connectors.get(&mirror.server);
            let whole = connector.is_some_and(|c| c.polls_list_all(&mirror.object));
            if whole || mirror.pairs().is_some() {
                // Every poll compares it whole.
                tx::in_transaction(|| Ok(reconciles::finish(run.id)?))?;
                self.watch(run.mirror).poll_at = 0;
                continue;
            }
            // One after the other: they share the account's budget.
            let same = |id: &i32| {
                let other = self.world.mirrors.get(id);
                other.is_some_and(|m| m.server == mirror.server)
            };
            let mut busy = self.watches.iter().filter(|(_, w)| w.reconciling.is_some());
            if busy.any(|(id, _)| same(id)) {
                continue;
            }
            self.next_job += 1;
            let (turn, id) = (self.next_job, run.mirror);
            self.watch(id).reconciling = Some(Reconciling::new(run, turn));
        }
        Ok(())
    }

    fn ask_zone(&mut self, name: String, now: Millis) {
        if self.zones.get(&name).is_some_and(|at| now - at < ZONE_MS) {
            return;
        }
        let Some(server) = self.server(&name) else {
            return;
        };
        let id = server.id;
        let request = server.connector.time_zone_request(&server.config);
        self.zones.insert(name.clone(), now);
        if let Some(request) = request {
            self.call(id, Tag::default(), request, Job::Zone { server: name });
        }
    }

    /// Asks for the next page of the list, or for records that differ.
    fn reconcile_step(&mut self, id: i32, now: Millis) -> Step<()> {
        let usable = (self.world.mirrors.get(&id))
            .is_some_and(|m| !m.paused && self.server(&m.server).is_some());
        let Some(r) = self.watch(id).reconciling.as_mut() else {
            return Ok(());
        };
        if !usable {
            r.at = now + AGAIN_MS;
            return Ok(());
        }
        if r.run.reading {
            return self.repair(id, now);
        }
        if r.run.started_at == 0 {
            let run = r.run.id;
            let Some(mirror) = self.world.mirrors.get(&id) else {
                return Ok(());
            };
            if !tx::in_transaction(|| Ok(reconciles::begin(run, &mirror.table)?))? {
                self.reconciled(id);
                return Ok(());
            }
            if let Some(r) = self.watch(id).reconciling.as_mut() {
                r.run.started_at = now;
            }
        }
        self.list_page(id);
        Ok(())
    }

    /// Asks for the page of the list that comes next.
    fn list_page(&mut self, id: i32) {
        let Some(r) = self.watches.get(&id).and_then(|w| w.reconciling.as_ref()) else {
            return;
        };
        let (turn, cursor, values) = (r.turn, r.next.clone(), r.run.values);
        let request = self.world.mirrors.get(&id).and_then(|m| {
            let server = self.server(&m.server)?;
            let stamp = server.connector.modified_field(&m.object);
            let fields = match values {
                true => Arc::clone(&m.fields),
                false => Arc::new(vec![(stamp.to_owned(), FieldType::DateTime)]),
            };
            let (config, connector) = (&server.config, server.connector);
            let mut request = connector.list_request(config, &m.object, &fields, cursor.as_deref());
            request.purpose = Purpose::Reconcile;
            Some((request, fields))
        });
        let job = Job::Compare { mirror: id, turn };
        let follow = Follow {
            pages: FOLLOW,
            end: None,
        };
        let sent = request.is_some_and(|(request, fields)| {
            self.fetch_with(id, request, job, fields, Some(follow))
        });
        if let Some(r) = self.watch(id).reconciling.as_mut() {
            r.busy = sent;
            r.at = if sent { 0 } else { super::engine::now() + 100 };
        }
    }

    /// The run of a mirror is over: another may begin.
    pub(crate) fn reconciled(&mut self, id: i32) {
        self.watch(id).reconciling = None;
        self.reconcile_at = 0;
    }

    /// The database refused a step: it is tried again from what is stored.
    pub(crate) fn reconcile_failed(&mut self, id: i32, error: &SqlError, now: Millis) -> Step<()> {
        let Some(r) = self.watch(id).reconciling.take() else {
            return Ok(());
        };
        self.reconcile_at = now + AGAIN_MS;
        let told = error.to_string();
        tx::in_transaction(|| Ok(reconciles::note(r.run.id, r.calls, Some(&told))?))?;
        Ok(())
    }
}

impl Session {
    /// A page of the list came.
    pub(super) fn compared(
        &mut self,
        (id, turn): (i32, u64),
        page: Page,
        following: bool,
        now: Millis,
    ) -> Step<()> {
        let Some(r) = self.engine.watch(id).reconciling.as_mut() else {
            return Ok(());
        };
        if r.turn != turn || r.run.reading {
            return Ok(());
        }
        r.calls += 1;
        r.failures = 0;
        r.unlisted |= page.ids_only && r.run.values;
        r.next = page.next;
        let stamp = |record: &Record| (record.id.clone(), record.modified_at.unwrap_or_default());
        r.listed.extend(page.records.iter().map(stamp));
        if r.run.values && !r.unlisted {
            r.records.extend(page.records);
        }
        let last = r.next.is_none();
        let full = r.listed.len() >= if r.run.values { WHOLE } else { LISTED };
        if !last && !following {
            // The next pages are on their way while these are compared.
            self.engine.list_page(id);
        }
        if !last && !full {
            return Ok(());
        }
        let step = self.compare(id).and_then(|open| match (open, last) {
            (true, true) => self.end_of_list(id, now),
            (true, false) => Ok(()),
            (false, _) => {
                self.engine.reconciled(id);
                Ok(())
            }
        });
        match step {
            Err(error) => self.engine.reconcile_failed(id, &error, now),
            Ok(()) => Ok(()),
        }
    }

    /// Compares what was received; false if the run was given up.
    fn compare(&mut self, id: i32) -> Step<bool> {
        let Some(r) = self.engine.watch(id).reconciling.as_mut() else {
            return Ok(false);
        };
        let (listed, records) = (
            std::mem::take(&mut r.listed),
            std::mem::take(&mut r.records),
        );
        let (run, next, calls) = (r.run.id, r.next.clone(), std::mem::take(&mut r.calls));
        let (values, unlisted) = (r.run.values, r.unlisted);
        let Some(mirror) = self.engine.world.mirrors.get(&id) else {
            return Ok(false);
        };
        tx::in_transaction(|| {
            let ids: Vec<String> = listed.iter().map(|(id, _)| id.clone()).collect();
            let rows = reconciles::standing(&mirror.table, &ids)?;
            let mut compared = reconcile::compare(&listed, &rows);
            if values {
                let known = compared.findings.iter().map(|f| f.record.clone());
                let known: HashSet<String> = known.collect();
                let stamps: HashMap<_, _> = listed.iter().cloned().collect();
                let damaged = match unlisted {
                    true => (rows.iter().filter(|r| !r.deleted))
                        .map(|r| r.record.clone())
                        .filter(|id| stamps.contains_key(id) && !known.contains(id))
                        .collect(),
                    false => damaged(mirror, &records, &known)?,
                };
                let finding = |record: String| Finding {
                    kind: Kind::Value,
                    listed_at: stamps.get(&record).copied().unwrap_or_default(),
                    record,
                };
                compared.findings.extend(damaged.into_iter().map(finding));
            }
            reconciles::found(run, id, &compared.findings)?;
            remember(run, &compared.seen)?;
            let count = i64::try_from(listed.len()).unwrap_or_default();
            Ok(reconciles::advance(run, next.clone(), count, calls)?)
        })
    }

    /// The list is through: what was not listed is missing.
    fn end_of_list(&mut self, id: i32, now: Millis) -> Step<()> {
        let Some(r) = self.engine.watch(id).reconciling.as_mut() else {
            return Ok(());
        };
        let (run, started_at) = (r.run.id, r.run.started_at);
        let Some(mirror) = self.engine.world.mirrors.get(&id) else {
            return Ok(());
        };
        let not_before = tx::in_transaction(|| Ok(missing(mirror, run, started_at, now)?))?;
        let Some(not_before) = not_before else {
            self.engine.reconciled(id);
            return Ok(());
        };
        if let Some(r) = self.engine.watch(id).reconciling.as_mut() {
            r.run.reading = true;
            r.run.not_before = not_before;
            r.busy = false;
            r.at = not_before;
        }
        Ok(())
    }
}

/// Notes which records are missing, and asks a person if they are very many;
/// when to read what was found. None if the run was given up.
fn missing(mirror: &Mirror, run: i64, started_at: Millis, now: Millis) -> Result<Option<Millis>> {
    let Some(end) = reconciles::ending(run)? else {
        return Ok(None);
    };
    let (mut seen, mut gone) = (0, 0_u64);
    for chunk in 0..=end.max_row / CHUNK {
        let mut pieces = reconciles::seen(run, vec![chunk])?;
        let mut bits = pieces.pop().map(|(_, bits)| bits).unwrap_or_default();
        seen += bits.iter().map(|b| u64::from(b.count_ones())).sum::<u64>();
        bits.resize(usize::try_from(CHUNK / 8).unwrap_or_default(), 0);
        let ids = reconciles::unseen(&mirror.table, (chunk, bits), (end.max_row, started_at))?;
        gone += ids.len() as u64;
        let findings: Vec<Finding> = (ids.into_iter())
            .map(|record| Finding {
                record,
                kind: Kind::Delete,
                listed_at: 0,
            })
            .collect();
        reconciles::found(run, mirror.id, &findings)?;
    }
    let rows = seen + gone;
    if reconcile::is_suspicious(gone, rows, end.limit) {
        let some = reconciles::hold(run)?;
        let reason = format!(
            "{gone} of {rows} records of {} are missing in {}: none was removed here",
            mirror.table.name, mirror.server
        );
        let candidates = serde_json::json!({
            "run": run, "missing": gone, "rows": rows, "records": some,
        });
        reconciles::ask(mirror.id, &reason, &candidates.to_string())?;
    }
    let not_before = now.saturating_add(end.patience_ms);
    reconciles::listed(run, i64::try_from(rows).unwrap_or(i64::MAX), not_before)?;
    Ok(Some(not_before))
}

/// Remembers that these rows were listed.
fn remember(run: i64, rows: &[i64]) -> Result<()> {
    let mut places: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    for row in rows {
        let (chunk, bit) = reconcile::place(*row);
        places.entry(chunk).or_default().push(bit);
    }
    let chunks = places.keys().copied().collect();
    let mut known: HashMap<i64, Vec<u8>> = reconciles::seen(run, chunks)?.into_iter().collect();
    for (chunk, bits) in places {
        let mut all = known.remove(&chunk).unwrap_or_default();
        bits.into_iter().for_each(|b| reconcile::mark(&mut all, b));
        reconciles::remember(run, chunk, all)?;
    }
    Ok(())
}

/// Records whose rows hold other values, of those not `known` to differ: buckets
/// are compared by their hash first, and only where that differs the values.
fn damaged(mirror: &Mirror, records: &[Record], known: &HashSet<String>) -> Result<Vec<String>> {
    let mut whole: Vec<&Record> = (records.iter())
        .filter(|r| !known.contains(&r.id))
        .collect();
    whole.sort_by(|a, b| a.id.cmp(&b.id));
    whole.dedup_by(|a, b| a.id == b.id);
    if whole.is_empty() {
        return Ok(Vec::new());
    }
    let columns: Vec<_> = mirror.columns.iter().collect();
    let buckets: Vec<&[&Record]> = whole.chunks(BUCKET).collect();
    let starts: Vec<String> = buckets.iter().map(|b| b[0].id.clone()).collect();
    let ids: Vec<String> = whole.iter().map(|r| r.id.clone()).collect();
    let hashes: HashMap<usize, String> =
        reconciles::hashes(&mirror.table, &columns, &ids, &starts)?
            .into_iter()
            .collect();
    let differs = |i: usize, bucket: &[&Record]| {
        let mut hash = Bucket::default();
        for record in bucket {
            let values = (0..columns.len()).map(|c| record.values.get(c));
            hash.add(&record.id, values);
        }
        hashes.get(&i) != Some(&hash.hex())
    };
    let mut out = Vec::new();
    for (_, bucket) in buckets.iter().enumerate().filter(|(i, b)| differs(*i, b)) {
        let ids: Vec<String> = bucket.iter().map(|r| r.id.clone()).collect();
        let rows = reconciles::look(&mirror.table, &columns, &ids)?;
        let by_id: HashMap<&str, &Record> = bucket.iter().map(|r| (r.id.as_str(), *r)).collect();
        for row in rows.into_iter().filter(|r| !r.deleted) {
            let record = row.record_id.as_deref().and_then(|id| by_id.get(id));
            if record.is_some_and(|record| pages::differences(mirror, &row, record) > 0) {
                out.extend(row.record_id);
            }
        }
    }
    Ok(out)
}

/// An account has told its time zone.
pub(crate) fn zone_known(
    engine: &mut Engine,
    name: &str,
    result: std::result::Result<&HttpResponse, &RemoteError>,
) -> Step<()> {
    let zone = engine.server(name).and_then(|s| {
        let zone = s.connector.time_zone(result.ok()?).ok()?;
        zone.filter(|z| !z.is_empty())
    });
    let Some(zone) = zone else {
        return Ok(());
    };
    engine.reconcile_at = 0;
    tx::in_transaction(|| Ok(reconciles::set_zone(name, &zone)?))?;
    Ok(())
}
