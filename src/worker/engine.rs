//! The session's state: what it knows, what is on its way, what is due.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use crm_core::catalog::ServerCheck;
use crm_core::connectors::{Connector, ServerConfig};
use crm_core::http::HttpRequest;
use crm_core::model::{FieldType, Millis, Page};
use crm_core::ranges::Ranges;
use crm_core::secret::Secret;
use crm_io::{Command, Follow, Replay, Tag};
use std::cell::Cell;
use std::sync::Arc;

use crate::pg::tx::SqlError;
use crate::worker::budgets::Budgets;
use crate::worker::bulk::Bulk;
use crate::worker::bulk_turn::BulkWrite;
use crate::worker::deliver::Batch;
use crate::worker::drift::Drift;
pub(crate) use crate::worker::handle::IoHandle;
pub(crate) use crate::worker::job::Job;
use crate::worker::journal::Reading;
use crate::worker::outages::Outages;
use crate::worker::reconcile::Reconciling;
use crate::worker::replay;
use crate::worker::servers::{NextRefresh, Refresh};
use crate::worker::usage::Usage;
use crate::worker::world::World;

/// A server as the engine uses it.
pub(crate) struct Server {
    pub(crate) id: u32,
    pub(crate) name: String,
    pub(crate) connector: &'static dyn Connector,
    pub(crate) config: ServerConfig,
    pub(crate) webhook_secret: Option<Secret>,
    /// What HubSpot calls, when a proxy stands in front of the listener.
    pub(crate) webhook_url: Option<String>,
    /// Its journal's number at the I/O thread, where events are read from there.
    pub(crate) journal: Option<u32>,
    /// Known to the I/O thread; false while its options or credential are unusable.
    pub(crate) usable: bool,
}

/// A change stream that is open.
pub(crate) struct Stream {
    pub(crate) row: i32,
    /// `pubsub` or `cometd`.
    pub(crate) source: &'static str,
    pub(crate) server: String,
    pub(crate) object: String,
}

/// Timers and switches of one mirror.
#[derive(Default)]
pub(crate) struct Watch {
    pub(crate) poll_at: Millis,
    pub(crate) polling: bool,
    /// Row of `crm.stream` of its polls, once one was due.
    pub(crate) poll_row: Option<i32>,
    /// Polls since removed records were last asked for.
    pub(crate) polls: u32,
    /// Records that a poll of everything has shown so far.
    pub(crate) listed: BTreeSet<String>,
    pub(crate) backfilling: bool,
    pub(crate) backfill_at: Millis,
    /// A change stream brings this mirror's changes; polling is a net below it.
    pub(crate) streaming: bool,
    /// Not opened again before.
    pub(crate) stream_at: Millis,
    pub(crate) pushes: usize,
    pub(crate) push_at: Millis,
    /// When the last answer to writes came.
    pub(crate) pushed_at: Millis,
    pub(crate) reads: BTreeSet<String>,
    pub(crate) reading: bool,
    /// Nothing is read before: the last read was refused.
    pub(crate) reads_at: Millis,
    /// When the records being read were asked for.
    pub(crate) read_at: Millis,
    /// Number of the newest event known to wait for a read, and of those that
    /// the read under way is for.
    pub(crate) awaited: i64,
    pub(crate) read_for: i64,
    /// Records whose last read left something open.
    pub(crate) read_again: HashMap<String, Again>,
    pub(crate) failures: u32,
    pub(crate) copied: Copied,
    /// What is left of the first copy, as far as pages were received.
    pub(crate) ranges: Option<Ranges>,
    /// Counts starts of the first copy in this session.
    pub(crate) run: u32,
    /// The bulk job that the first copy goes by.
    pub(crate) bulk: Option<Bulk>,
    /// Bulk jobs of this mirror lead nowhere: its first copy goes by pages.
    pub(crate) no_bulk: bool,
    /// Writes of this mirror go out in no bulk job before.
    pub(crate) bulk_writes_at: Millis,
    /// Bulk jobs that led nowhere, one after the other.
    pub(crate) futile_jobs: u32,
    /// A page of the first copy failed: look for the record that did it.
    pub(crate) careful: bool,
    /// A page of the first copy held records that have rows already.
    pub(crate) met: bool,
    /// The mirror is being compared with its CRM.
    pub(crate) reconciling: Option<Reconciling>,
}

/// A record that is to be read once more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Again {
    /// Not before.
    pub(crate) at: Millis,
    pause: Millis,
    /// Its row was held, so that nothing may wait for it in `crm.deferred`.
    pub(crate) held: bool,
}

/// Pauses before a record is read again, a call each: where its row was held, where its
/// last read left something open, and the longest that they grow to.
const HELD_AGAIN: Millis = 50;
const READ_AGAIN: Millis = 1_000;
const LONGEST_AGAIN: Millis = 10_000;

impl Watch {
    /// Records were read; of these, `open` are to be read once more, and those whose rows
    /// were `held`.
    pub(crate) fn was_read(
        &mut self,
        ids: &[String],
        open: &[String],
        held: &[String],
        now: Millis,
    ) {
        for id in ids {
            let last = self.read_again.remove(id);
            let held = held.contains(id);
            if held || open.contains(id) {
                let first = if held { HELD_AGAIN } else { READ_AGAIN };
                let pause = last.map_or(first, |last| (last.pause * 2).min(LONGEST_AGAIN));
                let at = now + pause;
                self.read_again
                    .insert(id.clone(), Again { at, pause, held });
            }
        }
    }

    /// Asks again for records whose rows were held; when the next of them is due.
    pub(crate) fn ask_again(&mut self, now: Millis) -> Option<Millis> {
        let held = self.read_again.iter().filter(|(_, again)| again.held);
        let (due, later): (Vec<_>, Vec<_>) = held.partition(|(_, again)| again.at <= now);
        if !self.reading {
            self.reads.extend(due.into_iter().map(|(id, _)| id.clone()));
        }
        later.into_iter().map(|(_, again)| again.at).min()
    }
}

/// Pages of a first copy that wait to be applied together.
#[derive(Default)]
pub(crate) struct Copied {
    pub(crate) page: Page,
    pub(crate) since: Option<Millis>,
}

/// Everything of one session.
pub(crate) struct Engine {
    pub(crate) io: IoHandle,
    pub(crate) world: World,
    pub(crate) servers: Vec<Server>,
    pub(crate) jobs: HashMap<u64, Job>,
    pub(crate) streams: HashMap<u64, Stream>,
    pub(crate) watches: BTreeMap<i32, Watch>,
    pub(crate) refreshes: HashMap<u32, Refresh>,
    pub(crate) next_refreshes: HashMap<u32, NextRefresh>,
    /// What is known of catalogs, and what follows from their changes.
    pub(crate) drift: Drift,
    /// By ticket: the server, the check, and how many requests were sent.
    pub(crate) checks: HashMap<i64, (u32, ServerCheck, usize)>,
    /// Journals that are read, by server.
    pub(crate) journals: HashMap<u32, Reading>,
    /// Bulk jobs that write.
    pub(crate) bulk_writes: BTreeMap<u64, BulkWrite>,
    pub(crate) outages: Outages,
    /// Batches that were refused whole and go again in halves.
    pub(crate) halves: VecDeque<Batch>,
    pub(crate) next_job: u64,
    /// Rows of `crm.stream` for the webhooks of each server.
    pub(crate) webhook_rows: HashMap<String, i32>,
    /// A replay may be under way, and events of it decided at a time.
    pub(crate) may_replay: bool,
    pub(crate) replay_limit: i32,
    /// Something may be ready to send.
    pub(crate) may_send: bool,
    /// Of the events last taken some are of linked records: writes may follow.
    pub(crate) linked_events: bool,
    /// Something may wait in `crm.deferred`.
    pub(crate) may_undefer: bool,
    /// When changes of policy are carried out next; `None` if none waits.
    pub(crate) policy_at: Option<Millis>,
    pub(crate) undefer_at: Millis,
    /// When to look for first copies that stand still.
    pub(crate) backfills_at: Millis,
    /// When to look for reconciliations.
    pub(crate) reconcile_at: Millis,
    /// When servers were asked for their time zones.
    pub(crate) zones: HashMap<String, Millis>,
    pub(crate) housekeeping_at: Millis,
    pub(crate) unknown_at: Millis,
    /// Whether this cluster may write to CRMs.
    pub(crate) active: bool,
    /// A copy of an activated cluster: only questions of users are answered.
    pub(crate) inert: bool,
    /// Calls not stored yet.
    pub(crate) usage: Usage,
    /// What may be called, as the I/O thread knows it.
    pub(crate) budgets: Budgets,
}

impl Engine {
    /// An engine that knows nothing yet.
    pub(crate) fn new(io: IoHandle) -> Self {
        Self {
            io,
            world: World::default(),
            servers: Vec::new(),
            jobs: HashMap::new(),
            streams: HashMap::new(),
            watches: BTreeMap::new(),
            refreshes: HashMap::new(),
            next_refreshes: HashMap::new(),
            drift: Drift::default(),
            checks: HashMap::new(),
            journals: HashMap::new(),
            bulk_writes: BTreeMap::new(),
            outages: Outages::new(),
            halves: VecDeque::new(),
            next_job: 0,
            webhook_rows: HashMap::new(),
            may_replay: true,
            replay_limit: replay::BATCH,
            may_send: true,
            linked_events: false,
            may_undefer: true,
            policy_at: Some(0),
            undefer_at: 0,
            backfills_at: 0,
            reconcile_at: 0,
            zones: HashMap::new(),
            housekeeping_at: 0,
            unknown_at: 0,
            active: false,
            inert: false,
            usage: Usage::default(),
            budgets: Budgets::default(),
        }
    }

    /// A number for a job.
    pub(crate) fn job(&mut self, job: Job) -> u64 {
        self.next_job += 1;
        self.jobs.insert(self.next_job, job);
        self.next_job
    }

    /// The server of this name, if it is usable and not paused.
    pub(crate) fn server(&self, name: &str) -> Option<&Server> {
        self.servers
            .iter()
            .find(|s| s.name == name && s.usable)
            .filter(|s| !self.world.paused_servers.contains(&s.name))
    }

    /// The server of this id, or whose journal has it.
    pub(crate) fn server_by_id(&self, id: u32) -> Option<&Server> {
        let has = |s: &&Server| s.id == id || s.journal == Some(id);
        self.servers.iter().find(has)
    }

    /// Hands a command over; false when the I/O thread has its fill: stop, and
    /// come back when it reports something.
    pub(crate) fn submit(&mut self, command: Command) -> bool {
        self.io.submit(command)
    }

    /// Sends a request whose answer the job takes apart itself; false as for `submit`.
    pub(crate) fn call(&mut self, server: u32, tag: Tag, request: HttpRequest, job: Job) -> bool {
        let job = self.job(job);
        let sent = self.submit(Command::Call {
            job,
            server,
            tag,
            request,
        });
        if !sent {
            self.jobs.remove(&job);
        }
        sent
    }

    /// Sends a request whose answer is a page of a mirror.
    pub(crate) fn fetch(&mut self, mirror: i32, request: HttpRequest, job: Job) -> bool {
        match self.world.mirrors.get(&mirror) {
            Some(m) => self.fetch_fields(mirror, request, job, m.fields.clone()),
            None => false,
        }
    }

    /// The same for a list whose next pages are to come unasked.
    pub(crate) fn fetch_list(
        &mut self,
        mirror: i32,
        request: HttpRequest,
        job: Job,
        follow: Follow,
    ) -> bool {
        match self.world.mirrors.get(&mirror) {
            Some(m) => self.fetch_with(mirror, request, job, m.fields.clone(), Some(follow)),
            None => false,
        }
    }

    /// The same with other fields than the mirror's.
    pub(crate) fn fetch_fields(
        &mut self,
        mirror: i32,
        request: HttpRequest,
        job: Job,
        fields: Arc<Vec<(String, FieldType)>>,
    ) -> bool {
        self.fetch_with(mirror, request, job, fields, None)
    }

    pub(super) fn fetch_with(
        &mut self,
        mirror: i32,
        request: HttpRequest,
        job: Job,
        fields: Arc<Vec<(String, FieldType)>>,
        follow: Option<Follow>,
    ) -> bool {
        let Some(m) = self.world.mirrors.get(&mirror) else {
            return false;
        };
        let object = m.object.clone();
        let Some(server) = self.server(&m.server).map(|s| s.id) else {
            return false;
        };
        let (job, tag) = (self.job(job), self.tag(mirror));
        let sent = self.submit(Command::Fetch {
            job,
            server,
            tag,
            object,
            fields,
            request,
            follow,
        });
        if !sent {
            self.jobs.remove(&job);
        }
        sent
    }

    /// Opens a change stream.
    pub(crate) fn subscribe(&mut self, server: u32, topic: String, replay: Replay, stream: Stream) {
        self.next_job += 1;
        let id = self.next_job;
        let opened = self.submit(Command::Subscribe {
            stream: id,
            server,
            topic,
            replay,
        }) && self.submit(Command::Credit {
            stream: id,
            events: 100,
        });
        if opened {
            self.streams.insert(id, stream);
        }
    }

    /// Closes the streams that `unwanted` picks.
    pub(crate) fn unsubscribe(&mut self, unwanted: impl Fn(&Stream) -> bool) {
        let ids: Vec<u64> = self
            .streams
            .iter()
            .filter(|(_, s)| unwanted(s))
            .map(|(id, _)| *id)
            .collect();
        for stream in ids {
            self.streams.remove(&stream);
            self.submit(Command::Unsubscribe { stream });
        }
    }

    /// Events wait, or wait no longer for what just came.
    pub(crate) fn undefer_soon(&mut self, now: Millis) {
        self.may_undefer = true;
        self.undefer_at = self.undefer_at.min(now + 50);
    }

    /// The switches of a mirror.
    pub(crate) fn watch(&mut self, mirror: i32) -> &mut Watch {
        self.watches.entry(mirror).or_default()
    }
}

/// The next number of the engine's own sequence: later than every one before,
/// also of earlier sessions.
pub(crate) fn order() -> i64 {
    thread_local! {
        static LAST: Cell<i64> = const { Cell::new(0) };
    }
    LAST.with(|last| {
        let next = (last.get() + 1).max(now().saturating_mul(1_000));
        last.set(next);
        next
    })
}

/// Milliseconds since 1970. The one place where the engine looks at a clock.
pub(crate) fn now() -> Millis {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| {
            Millis::try_from(d.as_millis()).unwrap_or(Millis::MAX)
        })
}

/// Result of a step.
pub(crate) type Step<T> = Result<T, SqlError>;
