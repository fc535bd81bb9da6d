//! The loop of one database: wait, take what came, decide and apply, send.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use crm_core::guard::Window;
use crm_core::model::{Millis, WriteResult};
use crm_io::{Command, Content, Event, IoThread, Level, ListenerSettings, Settings};
use pgrx::prelude::*;

use super::SessionContext;
use crate::pg::capture::segment;
use crate::pg::fence::{self, Fence};
use crate::pg::guc;
use crate::pg::shmem::Request;
use crate::pg::store::streams;
use crate::pg::store::{changes, config};
use crate::pg::store::{spi, writes};
use crate::pg::tx::{self, SqlError};
use crate::pg::wal;
use crate::worker::engine::{self, Engine, IoHandle, Job, Step};
use crate::worker::inbound::Turn;
use crate::worker::pending::{Pending, pending};
use crate::worker::references;
use crate::worker::world::World;
use crate::worker::{deliver, local, servers};

/// Changes drained in one transaction.
const DRAIN: i64 = 1_250;
/// Events of the I/O thread taken in one turn.
const EVENTS: usize = 512;
/// Changes of CRMs applied in one transaction, at most about.
const ARRIVALS: usize = 2_000;

/// Works until the extension changes; ends with the process otherwise.
pub(crate) fn run(context: &mut SessionContext) {
    let mut session = match Session::start(context) {
        Ok(session) => session,
        Err(error) => {
            warn(&error);
            context.wait(None, 5_000);
            return;
        }
    };
    let mut next = 0;
    loop {
        let timeout = u64::try_from(next - engine::now()).unwrap_or(0).min(5_000);
        let wake = context.wait(session.engine.io.wake_fd(), timeout);
        if wake.recheck {
            session.engine.io.stop();
            return;
        }
        if wake.reloaded {
            session.stale = true;
        }
        if session
            .listen_again_at
            .is_some_and(|at| engine::now() >= at)
        {
            // Started anew, with the listener if its address is free by now.
            session.engine.io.stop();
            return;
        }
        session.look |= wake.latch || wake.timeout;
        next = match session.turn(context) {
            Ok(next) => next,
            Err(error) => {
                warn(&error);
                engine::now() + 1_000
            }
        };
        if !session.engine.io.alive() {
            // The launcher starts us again: a session without its I/O thread
            // would look healthy and do nothing.
            pgrx::error!("the I/O thread of pg_crm_sync ended");
        }
    }
}

/// Says what went wrong, the same thing at most once a minute.
fn warn(error: &SqlError) {
    thread_local! {
        static LAST: RefCell<(String, Millis)> = const { RefCell::new((String::new(), 0)) };
    }
    let now = engine::now();
    let known = LAST.with_borrow(|(text, at)| *text == error.message && now - at < 60_000);
    if known {
        return;
    }
    LAST.set((error.message.clone(), now));
    ereport!(
        WARNING,
        PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
        format!("pg_crm_sync could not finish a step and will try again: {error}")
    );
}

fn settings() -> Settings {
    let request_timeout_ms = u64::try_from(guc::request_timeout().as_millis()).unwrap_or(60_000);
    let listener = guc::listen().and_then(|addr| match addr.parse() {
        Ok(addr) => Some(ListenerSettings::at(addr)),
        Err(_) => {
            ereport!(
                WARNING,
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("pg_crm_sync.listen is not an address: {addr}"),
                "Write it as 127.0.0.1:8910."
            );
            None
        }
    });
    Settings {
        request_timeout_ms,
        max_in_flight_per_server: u32::try_from(guc::max_in_flight()).unwrap_or(1),
        // Enough for both threads to be busy all the time.
        max_waiting_bytes: 2 << 20,
        listener,
        ..Settings::default()
    }
}

pub(super) struct Session {
    pub(super) engine: Engine,
    /// The configuration must be read.
    stale: bool,
    maintain_at: Millis,
    requests: VecDeque<Request>,
    /// Answers to webhooks whose events are committed.
    replies: Vec<Command>,
    /// Answers to writes that could not be stored yet.
    pub(super) unrecorded: VecDeque<(deliver::Batch, Vec<WriteResult>)>,
    /// The listener's address was taken: try again then.
    listen_again_at: Option<Millis>,
    /// Changes to drain in the next transaction.
    drain_limit: i64,
    /// What each user changed lately, for the guard.
    window: Window,
    /// Somebody committed something for us.
    look: bool,
    look_at: Millis,
}

impl Session {
    fn start(context: &mut SessionContext) -> Step<Self> {
        tx::in_transaction(|| {
            for (name, value) in [
                ("timezone", "UTC"),
                ("datestyle", "ISO, MDY"),
                ("intervalstyle", "postgres"),
                ("extra_float_digits", "1"),
                ("synchronous_commit", "off"),
            ] {
                spi::write(
                    &format!("SELECT set_config('{name}', '{value}', false)"),
                    &[],
                )?;
            }
            let lock_timeout = guc::lock_timeout().as_millis();
            spi::write(
                &format!("SELECT set_config('lock_timeout', '{lock_timeout}', false)"),
                &[],
            )?;
            writes::in_flight_to_unknown()?;
            Ok(())
        })?;
        let wanted = settings();
        let listens = wanted.listener.is_some();
        let mut listen_again_at = None;
        let thread = match IoThread::start(wanted.clone()) {
            // Somebody has the address: everything else goes on without it.
            Err(error) if listens && error.kind() == std::io::ErrorKind::AddrInUse => {
                warn(&SqlError::new(
                    "55006",
                    format!("pg_crm_sync.listen cannot be used, webhooks are not taken: {error}"),
                ));
                listen_again_at = Some(engine::now() + 30_000);
                IoThread::start(Settings {
                    listener: None,
                    ..wanted
                })
            }
            started => started,
        };
        let thread = thread
            .map_err(|e| SqlError::new("58000", format!("the I/O thread cannot start: {e}")))?;
        let io = IoHandle(Rc::new(RefCell::new(Some(thread))));
        let for_stop = io.clone();
        context.on_stop(move || for_stop.stop());
        let mut engine = Engine::new(io);
        engine.resume_bulk_writes()?;
        Ok(Self {
            engine,
            stale: true,
            maintain_at: 0,
            requests: VecDeque::new(),
            replies: Vec::new(),
            unrecorded: VecDeque::new(),
            listen_again_at,
            drain_limit: DRAIN,
            window: Window::default(),
            look: true,
            look_at: 0,
        })
    }

    /// One turn of the loop; when the next one is due at the latest.
    fn turn(&mut self, context: &mut SessionContext) -> Step<Millis> {
        let now = engine::now();
        self.requests.extend(context.take_requests());
        // Answers of the network alone need no look at the tables.
        let mut waiting = Pending::default();
        if self.look || self.stale || !self.requests.is_empty() || now >= self.look_at {
            self.look_at = now + 100;
            self.look = false;
            match pending()? {
                Some(pending) => waiting = pending,
                None if self.requests.is_empty() => {
                    self.look = true;
                    return Ok(now + 1_000);
                }
                None => tx::in_transaction(|| Ok(config::found()?))?,
            }
        }
        // Again while it changes: what came after crm.go_live must not be decided
        // by the configuration before it.
        for _ in 0..5 {
            if !(waiting.config || self.stale) {
                break;
            }
            self.reload()?;
            waiting = pending()?.unwrap_or_default();
        }
        let pending = waiting;
        // A request leaves only when it was served: a step that fails on a
        // user's lock must not lose it.
        while let Some(request) = self.requests.front().cloned() {
            servers::on_request(&mut self.engine, &request)?;
            self.requests.pop_front();
        }
        servers::store_done(&mut self.engine)?;
        self.record_again(now)?;
        // A copy must not touch mirrors either: it may be half restored.
        if self.engine.inert {
            let more = self.take_events(false, now)?;
            return Ok(if more { now } else { now + 5_000 });
        }
        let more = self.take_events(pending.webhooks, now)?;
        if pending.answers {
            self.answered(now)?;
        }
        if pending.references {
            self.look |= references::carry_over()?;
        }
        if !self.engine.linked_events {
            self.reply();
        }
        let rest = self.rest(context, pending.changes, now);
        // The claim of what follows from the events has usually brought them to disk.
        self.reply();
        let (drained, next) = rest?;
        self.engine.store_usage(now)?;
        self.look |= drained > 0;
        let at_once = more || drained > 0 || self.stale;
        Ok(if at_once { now } else { next })
    }

    /// Answers webhooks, not before their events are on disk.
    fn reply(&mut self) {
        if self.replies.is_empty() {
            return;
        }
        wal::flush();
        for reply in std::mem::take(&mut self.replies) {
            self.engine.submit(reply);
        }
    }

    /// What users changed, and what is due; the changes drained and the time of
    /// the next thing due.
    fn rest(
        &mut self,
        context: &mut SessionContext,
        changes: bool,
        now: Millis,
    ) -> Step<(usize, Millis)> {
        let mut drained = 0;
        if changes {
            drained = self.drain(now)?;
            if drained == 0 || now >= self.maintain_at {
                self.maintain_at = now + 1_000;
                segment::maintain(context.slot)?;
            }
        }
        self.stale |= context.service();
        let late: Vec<i32> = self
            .engine
            .watches
            .iter()
            .filter(|(_, w)| w.copied.since.is_some_and(|s| now - s > 500))
            .map(|(id, _)| *id)
            .collect();
        for mirror in late {
            self.flush_copied(mirror, now)?;
        }
        let next = self.engine.schedule(engine::now())?;
        Ok((drained, next))
    }

    fn reload(&mut self) -> Step<()> {
        let text = tx::in_transaction(|| Ok(config::read()?))?;
        let rows = serde_json::from_str(&text)
            .map_err(|e| SqlError::new("XX000", format!("configuration cannot be read: {e}")))?;
        spi::forget_plans();
        self.engine.world = World::new(rows);
        let fence = tx::in_transaction(|| Ok(fence::fence_state()))?;
        self.engine.active = fence == Fence::Active;
        self.engine.inert = matches!(fence, Fence::Inert(_));
        if !self.engine.inert {
            tx::in_transaction(|| {
                config::prepare()?;
                Ok(())
            })?;
            self.engine.release(engine::now())?;
        }
        servers::load(&mut self.engine, false)?;
        let wanted: Vec<(String, String)> = self
            .engine
            .world
            .mirrors
            .values()
            .map(|m| (m.server.clone(), m.object.clone()))
            .collect();
        self.engine
            .unsubscribe(|s| !wanted.iter().any(|(n, o)| *n == s.server && *o == s.object));
        let mirrors = &self.engine.world.mirrors;
        self.engine.watches.retain(|id, _| mirrors.contains_key(id));
        let now = engine::now();
        for (id, watch) in &mut self.engine.watches {
            // A shorter interval counts at once.
            let interval = mirrors.get(id).map_or(0, |m| m.poll_ms);
            watch.poll_at = watch.poll_at.min(now + interval);
            // What waited for calls may have them by a new budget.
            watch.backfill_at = watch.backfill_at.min(now + 1_000);
            watch.reads_at = 0;
        }
        self.engine.may_send = true;
        self.engine.may_undefer = true;
        self.engine.policy_at = Some(0);
        self.engine.may_replay = true;
        self.stale = false;
        (self.engine.backfills_at, self.engine.reconcile_at) = (0, 0);
        self.engine.drift.apply_at = Some(0);
        self.engine.drift.fills_at = Some(0);
        self.engine.webhook_rows.clear();
        Ok(())
    }

    fn drain(&mut self, now: Millis) -> Step<usize> {
        let world = &self.engine.world;
        let limit = self.drain_limit;
        let mut window = self.window.clone();
        let drained = match tx::in_transaction(|| Ok(local::drain(world, &mut window, limit, now)?))
        {
            Ok(drained) => drained,
            Err(error) if config::is_passing(&error) => {
                changes::undone();
                return Err(error);
            }
            // A partner's row that refuses the value must not hold up all other
            // changes: fewer at a time, until it stands alone.
            Err(error) => {
                changes::undone();
                if limit == 1 {
                    tx::in_transaction(|| Ok(local::park_first(world, &error)?))?;
                }
                self.drain_limit = (limit / 8).max(1);
                return Ok(1);
            }
        };
        self.window = window;
        self.drain_limit = (limit * 2).min(DRAIN);
        self.engine.may_send = true;
        Ok(drained.changes)
    }

    /// Takes what the I/O thread reports; true if it may have more.
    fn take_events(&mut self, queued: bool, now: Millis) -> Step<bool> {
        let mut turn = Turn::default();
        let mut more = false;
        let mut failed = None;
        if queued {
            let waiting = tx::in_transaction(|| Ok(streams::webhooks(100)?))?;
            more |= waiting.len() >= 100;
            for hook in waiting {
                turn.queued.push(hook.id);
                let (server, delivery, at) = hook.open();
                turn.delivery(&self.engine, &server, Content::Raw(delivery), at);
            }
        }
        for i in 0..EVENTS {
            let Some(event) = self.engine.io.try_recv() else {
                if let Err(error) = self.flush_some(now) {
                    failed = Some(error);
                }
                break;
            };
            // One answer that cannot be stored must not take along what came with it.
            if let Err(error) = self.event(event, &mut turn, now) {
                failed = Some(error);
            }
            if turn.arrivals.len() >= ARRIVALS || i + 1 == EVENTS {
                more = true;
                break;
            }
        }
        self.replies.extend(turn.finish(&mut self.engine, now)?);
        failed.map_or(Ok(more), Err)
    }

    fn event(&mut self, event: Event, turn: &mut Turn, now: Millis) -> Step<()> {
        match event {
            Event::Webhook {
                token,
                name,
                content,
            } => turn.webhook(&self.engine, token, (name, content), now),
            Event::Stream {
                stream,
                batch,
                latest_replay_id,
            } => turn.stream(&self.engine, stream, batch, latest_replay_id),
            Event::StreamUp { stream } => self.stream_up(stream),
            Event::StreamEnded {
                stream,
                error,
                replay_expired,
            } => self
                .engine
                .close_stream(stream, &error, replay_expired, now)?,
            Event::Fetched {
                job,
                server,
                asked,
                result,
                following,
            } => {
                let jobs = &mut self.engine.jobs;
                let known = match following {
                    true => jobs.get(&job).and_then(Job::repeated),
                    false => jobs.remove(&job),
                };
                if let Some(job) = known {
                    self.engine.usage.fetched(server, asked, &job, &result);
                    let mirror = job.mirror();
                    if let Err(error) = self.fetched(job, result, following, now) {
                        if let Some(mirror) = mirror {
                            self.engine.ask_again(mirror, now);
                        }
                        return Err(error);
                    }
                }
            }
            Event::Answer { job, result, .. } => {
                if let Some(job) = self.engine.jobs.remove(&job) {
                    self.called(job, result, now)?;
                }
            }
            Event::Pushed {
                job,
                server,
                asked,
                results,
            } => {
                if let Some(Job::Push(batch)) = self.engine.jobs.remove(&job) {
                    let (mirror, n) = (Some(batch.mirror), results.len());
                    self.engine.usage.brought(server, mirror, asked, n);
                    self.pushed(batch, results, now)?;
                }
            }
            Event::Usage { .. } | Event::Limits { .. } => self.engine.note_usage(&event, now),
            Event::Refused { name, count } => turn.refused(&self.engine, name, count),
            Event::Note { level, message } => match level {
                Level::Warning => pgrx::warning!("pg_crm_sync: {message}"),
                Level::Info => pgrx::log!("pg_crm_sync: {message}"),
                Level::Debug => pgrx::debug1!("pg_crm_sync: {message}"),
            },
        }
        Ok(())
    }
}
