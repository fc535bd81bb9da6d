//! Schema drift: catalogs are read again now and then and where an answer of the
//! CRM raises doubt; what changed is noted by the mirror's policy and carried
//! out as soon as the table's lock is to be had.

use std::collections::{BTreeMap, HashMap};

use crm_core::drift::{self, Action, DriftPolicy, SchemaChange, Shape};
use crm_core::model::{ErrorClass, Millis, Page, RemoteError, RemoteField};
use crm_core::retry::Backoff;

use crate::pg::guc;
use crate::pg::store::config;
use crate::pg::store::drift as store;
use crate::pg::store::ledger::EventRow;
use crate::pg::store::spi::Result;
use crate::pg::tx::{self, SqlError};
use crate::worker::engine::{Engine, Job, Step};
use crate::worker::fills::Fill;
use crate::worker::flush;
use crate::worker::servers;
use crate::worker::world::World;

/// A description this old is good enough to believe that a field is there.
const FRESH_MS: Millis = 60_000;
/// Least time between two readings that answers of the CRM gave reason to, and
/// the longest that it grows to while they show nothing new.
const ASK_AGAIN: (Millis, Millis) = (10_000, 600_000);
/// Nobody trusts a condition longer than this: rights of our user are no part of
/// what the CRM takes for a change.
const WHOLE_MS: Millis = 24 * 3_600_000;
/// Between tries to get the lock of a table.
const LOCK: Backoff = Backoff {
    first_ms: 500,
    max_ms: 30_000,
    attempts: u32::MAX,
};

/// What the session knows of catalogs and of what follows from them.
#[derive(Default)]
pub(crate) struct Drift {
    /// By server and object: when it was described, our clock, and as of when,
    /// in the CRM's words.
    described: HashMap<(u32, String), (Millis, Option<String>)>,
    /// By server: when it is read next, and when whole.
    due: HashMap<u32, (Millis, Millis)>,
    /// By server: not asked again before, and the pause.
    asked: HashMap<u32, (Millis, Millis)>,
    /// By mirror: records whose reading waits for a description.
    doubtful: BTreeMap<i32, Vec<String>>,
    /// When to look for changes that are to be carried out; none waits otherwise.
    pub(crate) apply_at: Option<Millis>,
    /// The same for copies of columns.
    pub(crate) fills_at: Option<Millis>,
    /// Copies of columns by mirror.
    pub(crate) fills: BTreeMap<i32, Fill>,
}

/// Compares what came with what is known, before it is stored, and notes what
/// changed; how much that is.
pub(crate) fn learn(
    world: &World,
    server: &str,
    renames: bool,
    fields: &[(String, Vec<RemoteField>)],
    now: Millis,
) -> Result<usize> {
    let objects = fields.iter().map(|(object, _)| object.clone()).collect();
    let mut events = Vec::new();
    for known in store::known(server, objects)? {
        let described = fields.iter().find(|(object, _)| *object == known.object);
        let shapes: Vec<Shape> = described
            .iter()
            .flat_map(|(_, f)| f)
            .map(Shape::from)
            .collect();
        let policy = DriftPolicy::by_name(&known.policy);
        for change in drift::compare(&known.fields, &known.mirrored, &shapes, renames) {
            let was = change.drift.rests(&change.field).unwrap_or(&change.field);
            let column = known.mirrored.iter().find(|m| m.field == was);
            let action = drift::action(policy, &change, column);
            let name = action_name(action);
            let text = serde_json::to_string(&change).unwrap_or_default();
            let rests = column.and(change.drift.rests(&change.field));
            store::note(known.mirror, &text, &known.policy, name, rests)?;
            if world.mirrors.contains_key(&known.mirror) {
                events.push(line(
                    known.mirror,
                    server,
                    &change,
                    &known.policy,
                    name,
                    now,
                ));
            }
        }
    }
    let count = events.len();
    flush::append(world, events)?;
    store::writes_without_gone(server)?;
    Ok(count)
}

const fn action_name(action: Action) -> &'static str {
    match action {
        Action::Note => "note",
        Action::Apply => "apply",
        Action::Done => "done",
        Action::Ask => "ask",
        Action::Pause => "pause",
    }
}

/// The ledger's line about a change.
fn line(
    mirror: i32,
    server: &str,
    change: &SchemaChange,
    policy: &str,
    action: &str,
    now: Millis,
) -> EventRow {
    let decision = serde_json::json!([{"field": change.field, "step": "schema", "change": change.drift, "policy": policy, "action": action}]);
    EventRow {
        mirror,
        kind: "schema",
        origin: server.to_owned(),
        source: "catalog".to_owned(),
        occurred_at: now,
        fields: vec![change.field.clone()],
        decision: Some(decision.to_string()),
        ..EventRow::default()
    }
}

impl Engine {
    /// Takes note of what a refresh described, and lets go on what waited for it.
    pub(crate) fn described(
        &mut self,
        server: u32,
        stamps: Vec<(String, Option<String>)>,
        changes: usize,
        now: Millis,
    ) {
        for (object, stamp) in stamps {
            let known = self.drift.described.entry((server, object)).or_default();
            known.0 = now;
            if stamp.is_some() {
                known.1 = stamp;
            }
        }
        if changes > 0 {
            self.drift.asked.remove(&server);
            self.may_send = true;
        }
        for (mirror, records) in std::mem::take(&mut self.drift.doubtful) {
            self.watch(mirror).reads.extend(records);
        }
    }

    /// When each object of a server was described, in the CRM's words.
    pub(crate) fn described_since(&self, server: u32) -> HashMap<String, String> {
        let of = self
            .drift
            .described
            .iter()
            .filter(|((s, _), _)| *s == server);
        of.filter_map(|((_, object), (_, stamp))| Some((object.clone(), stamp.clone()?)))
            .collect()
    }

    /// Follows the schemas of CRMs; when there is more to do.
    pub(crate) fn follow_schemas(&mut self, now: Millis) -> Step<Millis> {
        let mut next = self.reread_catalogs(now)?;
        if let Some(at) = self.drift.apply_at {
            if now >= at {
                self.drift.apply_at = carry_out(now)?;
            }
            next = next.min(self.drift.apply_at.unwrap_or(next));
        }
        if let Some(at) = self.drift.fills_at {
            if now >= at {
                self.drift.fills_at = self.resume_fills(now)?;
            }
            next = next.min(self.drift.fills_at.unwrap_or(next));
        }
        Ok(next)
    }

    fn reread_catalogs(&mut self, now: Millis) -> Step<Millis> {
        let Some(interval) = guc::catalog_interval_ms() else {
            return Ok(Millis::MAX);
        };
        let mut next = Millis::MAX;
        let servers: Vec<u32> = self
            .servers
            .iter()
            .filter(|s| s.usable)
            .map(|s| s.id)
            .collect();
        for id in servers {
            let due = self
                .drift
                .due
                .entry(id)
                .or_insert((now + interval, now + WHOLE_MS));
            // A shorter interval counts at once.
            due.0 = due.0.min(now + interval);
            if now < due.0 {
                next = next.min(due.0);
                continue;
            }
            let whole = now >= due.1;
            if whole {
                due.1 = now + WHOLE_MS;
            }
            due.0 = now + interval;
            next = next.min(due.0);
            servers::describe_again(self, id, !whole)?;
        }
        Ok(next)
    }

    /// The CRM's answer gives reason to think that its fields are not as we know them.
    pub(crate) fn doubt_catalog(&mut self, server: &str, now: Millis) -> Step<()> {
        let Some(id) = self.server(server).map(|s| s.id) else {
            return Ok(());
        };
        let (at, pause) = self
            .drift
            .asked
            .get(&id)
            .copied()
            .unwrap_or((0, ASK_AGAIN.0));
        if now < at {
            return Ok(());
        }
        let after = (pause * 2).min(ASK_AGAIN.1);
        self.drift.asked.insert(id, (now + pause, after));
        servers::describe_again(self, id, false)
    }

    /// A call for records failed: perhaps because of what it asked for.
    pub(crate) fn in_vain(
        &mut self,
        job: &Job,
        mirror: i32,
        error: &RemoteError,
        (now, wait): (Millis, Millis),
    ) -> Step<()> {
        if matches!(job, Job::Fill { .. }) {
            self.fill_failed(mirror, now + wait);
        }
        self.doubt_by(mirror, error, now)
    }

    /// The same for a call that failed.
    pub(crate) fn doubt_by(&mut self, mirror: i32, error: &RemoteError, now: Millis) -> Step<()> {
        if error.class != ErrorClass::FixMapping {
            return Ok(());
        }
        let server = self.world.mirrors.get(&mirror).map(|m| m.server.clone());
        server.map_or(Ok(()), |server| self.doubt_catalog(&server, now))
    }

    /// A page without a word about fields that were asked for: they are empty, or
    /// gone. Unless the object was described just now, nobody may take them for
    /// empty: its records are read once more when it is. False if the page is to
    /// be let go of.
    pub(crate) fn doubt_page(&mut self, job: &Job, page: &mut Page, now: Millis) -> Step<bool> {
        let (Job::Backfill { mirror, .. } | Job::Poll { mirror, .. } | Job::Read { mirror, .. }) =
            job
        else {
            return Ok(true);
        };
        let Some(m) = self.world.mirrors.get(mirror) else {
            return Ok(true);
        };
        // Fields that went since the page was asked for are gone for the better.
        let doubtful = page.absent.iter().any(|f| m.by_field.contains_key(f));
        let id = self.server(&m.server).map(|s| s.id);
        let described = id.and_then(|id| self.drift.described.get(&(id, m.object.clone())));
        if !doubtful || described.is_some_and(|(at, _)| now - at < FRESH_MS) {
            return Ok(true);
        }
        let server = m.server.clone();
        self.doubt_catalog(&server, now)?;
        if let Job::Read { mirror, ids } = job {
            self.watch(*mirror).reading = false;
            self.drift
                .doubtful
                .entry(*mirror)
                .or_default()
                .extend(ids.iter().cloned());
            return Ok(false);
        }
        page.ids_only = true;
        Ok(true)
    }
}

/// Carries out changes that were decided; when to look again, if any is left.
fn carry_out(now: Millis) -> Step<Option<Millis>> {
    let mut next = None;
    for row in tx::in_transaction(|| Ok(store::applying()?))? {
        if row.not_before > now {
            next = Some(next.unwrap_or(row.not_before).min(row.not_before));
            continue;
        }
        let Err(error) = tx::in_transaction(|| Ok(store::apply(&row)?)) else {
            continue;
        };
        let attempts = u32::try_from(row.attempts)
            .unwrap_or(u32::MAX)
            .saturating_add(1);
        let seed = row.id.unsigned_abs();
        let wait = LOCK.delay(attempts, seed, None).unwrap_or(LOCK.max_ms);
        let wait = config::is_passing(&error).then_some(wait);
        let advice = advice(row.id, wait.is_some());
        let told = told(&error);
        tx::in_transaction(|| Ok(store::not_applied(row.id, wait, &told, &advice)?))?;
        next = wait.map_or(next, |w| Some(next.unwrap_or(now + w).min(now + w)));
    }
    Ok(next)
}

fn told(error: &SqlError) -> String {
    match error.sqlstate.as_str() {
        "55P03" => {
            "The table is locked; the worker waits a moment only, so that nobody queues behind it."
                .to_owned()
        }
        _ => error.message.clone(),
    }
}

fn advice(id: i64, passing: bool) -> String {
    match passing {
        true => "Tried again by itself. A transaction that stays open on the table holds it up: see pg_locks.".to_owned(),
        false => format!("Mend what the error names, then SELECT crm.schema_answer({id}, 'apply');"),
    }
}
