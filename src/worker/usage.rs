//! What calls were used for and what the CRMs said of their limits, collected
//! in memory and stored now and then.

use std::collections::{BTreeMap, HashMap};

use crm_core::budget::Exhausted;
use crm_core::connectors::LimitHint;
use crm_core::http::Purpose;
use crm_core::model::{Millis, Page, RemoteError};
use crm_io::{Asked, Event};
use serde_json::{Value as Json, json};

use crate::pg::store::budgets;
use crate::pg::tx;
use crate::worker::engine::{Engine, Job, Step};
use crate::worker::reconcile;

/// How often it is stored.
const FLUSH_MS: Millis = 5_000;
/// How often hours are put together to days.
const FOLD_MS: Millis = 3_600_000;

/// Server, mirror (0 for none) and what was asked.
type Key = (u32, i32, Asked);

#[derive(Default)]
struct Counts {
    calls: u64,
    limited: u64,
    failed: u64,
    bytes: u64,
    records: u64,
    changed: u64,
}

/// What changed a mirror or its CRM, as far as calls are counted for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Way {
    Backfill,
    Poll,
    Read,
    Push,
    Reconcile,
}

impl Way {
    fn of(purpose: Purpose) -> Self {
        match purpose {
            Purpose::Backfill => Self::Backfill,
            Purpose::Reconcile => Self::Reconcile,
            Purpose::Poll => Self::Poll,
            Purpose::Push => Self::Push,
            Purpose::Auth
            | Purpose::ReadBack
            | Purpose::Match
            | Purpose::Journal
            | Purpose::Catalog => Self::Read,
        }
    }

    /// By the source of a page.
    pub(crate) fn named(source: &str) -> Self {
        match source {
            "backfill" => Self::Backfill,
            "poll" => Self::Poll,
            reconcile::SOURCE => Self::Reconcile,
            _ => Self::Read,
        }
    }
}

/// Everything not stored yet. Bounded by mirrors and endpoints.
#[derive(Default)]
pub(crate) struct Usage {
    counts: BTreeMap<Key, Counts>,
    told: BTreeMap<u32, (LimitHint, Option<(Exhausted, Millis)>)>,
    /// Limits that the account named itself: server, name, all, left.
    named: Vec<(u32, String, u64, u64)>,
    /// The last call of a kind for a mirror: what is changed later is its doing.
    last: HashMap<(i32, Way), (u32, Asked)>,
    /// Calls that were left of the day, as last told.
    left: HashMap<u32, u64>,
    flush_at: Millis,
    fold_at: Millis,
}

impl Usage {
    /// Takes in an event of the I/O thread, if it is about usage.
    fn note(&mut self, event: &Event) {
        match event {
            Event::Usage {
                server,
                mirror,
                asked,
                calls,
                limited,
                failed,
                bytes,
            } => {
                let c = self.of((*server, *mirror, asked.clone()));
                c.calls += u64::from(*calls);
                c.limited += u64::from(*limited);
                c.failed += u64::from(*failed);
                c.bytes += bytes;
            }
            Event::Limits {
                server,
                hint,
                refused,
            } => {
                let told = self.told.entry(*server).or_default();
                *told = (*hint, refused.or(told.1));
            }
            _ => {}
        }
    }

    /// A page came.
    pub(crate) fn fetched(
        &mut self,
        server: u32,
        asked: Asked,
        job: &Job,
        result: &Result<Page, RemoteError>,
    ) {
        if let (true, Ok(page)) = (job.is_of_records(), result) {
            self.brought(server, job.mirror(), asked, page.records.len());
        }
    }

    /// An answer brought so many records, or results of writes.
    pub(crate) fn brought(&mut self, server: u32, mirror: Option<i32>, asked: Asked, n: usize) {
        let mirror = mirror.unwrap_or(0);
        let way = Way::of(asked.purpose);
        self.last.insert((mirror, way), (server, asked.clone()));
        self.of((server, mirror, asked)).records += n as u64;
    }

    /// So many records were changed by it, here or there.
    pub(crate) fn changed(&mut self, mirror: i32, way: Way, n: usize) {
        if let Some((server, asked)) = self.last.get(&(mirror, way)).filter(|_| n > 0) {
            let key = (*server, mirror, asked.clone());
            self.of(key).changed += n as u64;
        }
    }

    /// Limits that an account named.
    pub(crate) fn named(&mut self, server: u32, limits: Vec<(String, u64, u64)>) {
        self.named.retain(|(s, ..)| *s != server);
        let own = limits
            .into_iter()
            .map(|(n, max, left)| (server, n, max, left));
        self.named.extend(own);
    }

    fn of(&mut self, key: Key) -> &mut Counts {
        self.counts.entry(key).or_default()
    }
}

impl Engine {
    /// Takes in what the I/O thread tells of calls and limits.
    pub(crate) fn note_usage(&mut self, event: &Event, now: Millis) {
        let of_journal = |id: &u32| self.servers.iter().any(|s| s.journal == Some(*id));
        if matches!(event, Event::Limits { server, .. } if of_journal(server)) {
            // A budget of its own, which the account's tables do not show.
            return;
        }
        if let Event::Limits { server, hint, .. } = event
            && let Some(left) = hint.daily_remaining
            && (self.usage.left.insert(*server, left)).is_some_and(|before| left > before)
        {
            // A new day: what was told to come again later may come now.
            let name = self.server_by_id(*server).map(|s| s.name.clone());
            for (id, watch) in &mut self.watches {
                let mirror = self.world.mirrors.get(id);
                if mirror.is_some_and(|m| Some(&m.server) == name.as_ref()) {
                    watch.backfill_at = watch.backfill_at.min(now);
                    watch.reads_at = 0;
                    let interval = mirror.map_or(0, |m| m.poll_ms);
                    watch.poll_at = watch.poll_at.min(now + interval);
                }
            }
        }
        self.usage.note(event);
    }

    /// Stores what was collected, when it is time. It is forgotten only when it
    /// is committed: a lock or a full disk must not make calls uncounted.
    pub(crate) fn store_usage(&mut self, now: Millis) -> Step<()> {
        let usage = &self.usage;
        let fold = now >= usage.fold_at;
        let idle = usage.counts.is_empty() && usage.told.is_empty() && usage.named.is_empty();
        if now < usage.flush_at || (idle && !fold) {
            return Ok(());
        }
        let (counts, told) = (self.counts_json(), self.told_json());
        // Also after a failure: not at every turn.
        self.usage.flush_at = now + FLUSH_MS;
        tx::in_transaction(|| {
            budgets::add_counts(&counts.to_string())?;
            budgets::add_limits(&told.to_string())?;
            if fold {
                budgets::fold()?;
            }
            Ok(())
        })?;
        self.usage.counts.clear();
        self.usage.told.clear();
        self.usage.named.clear();
        if fold {
            self.usage.fold_at = now + FOLD_MS;
        }
        Ok(())
    }

    fn counts_json(&self) -> Json {
        let rows = self.usage.counts.iter().filter_map(|(key, c)| {
            let (server, mirror, asked) = key;
            let server = &self.server_by_id(*server)?.name;
            Some(json!({
                "server": server, "purpose": asked.purpose.name(), "endpoint": &*asked.endpoint, "mirror": mirror,
                "calls": c.calls, "limited": c.limited, "failed": c.failed, "bytes": c.bytes,
                "records": c.records, "changed": c.changed,
            }))
        });
        rows.collect()
    }

    fn told_json(&self) -> Json {
        let mut rows = Vec::new();
        for (server, (hint, refused)) in &self.usage.told {
            let Some(server) = self.server_by_id(*server).map(|s| s.name.as_str()) else {
                continue;
            };
            if let Some(max) = hint.window_max {
                rows.push(json!({"server": server, "name": "window", "calls_max": max,
                    "calls_left": hint.window_remaining, "per_ms": hint.window_ms}));
            }
            if let Some(max) = hint.daily_max {
                rows.push(json!({"server": server, "name": "day", "calls_max": max,
                    "calls_left": hint.daily_remaining, "per_ms": 86_400_000}));
            }
            let Some((what, until)) = refused else {
                continue;
            };
            // A line of the statement may name a limit only once.
            match rows
                .iter_mut()
                .find(|r| r["server"] == server && r["name"] == what.name())
            {
                Some(row) => row["until"] = json!(until),
                None => {
                    rows.push(json!({"server": server, "name": what.name(), "until": until}));
                }
            }
        }
        for (server, name, max, left) in &self.usage.named {
            if let Some(server) = self.server_by_id(*server) {
                rows.push(json!({"server": server.name, "name": name, "calls_max": max, "calls_left": left}));
            }
        }
        Json::Array(rows)
    }
}
