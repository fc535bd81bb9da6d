//! Events on their way to the session, and the socket that says so.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crm_core::budget::Exhausted;
use crm_core::connectors::LimitHint;
use crm_core::model::{Millis, Page, RemoteError, WriteResult};
use tokio::sync::Notify;

use crate::api::{Asked, Content, Event, Level};

/// Notes that wait; more are dropped and counted.
const MAX_NOTES: usize = 64;
/// Names under which refused webhooks are counted; strangers choose them.
const MAX_REFUSED: usize = 64;

/// Rows of usage that wait; what is asked beyond them goes without an endpoint.
const MAX_USAGE: usize = 2_048;

#[derive(Default)]
struct Usage {
    calls: u32,
    limited: u32,
    failed: u32,
    bytes: u64,
}

/// How a call ended, for the count.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Well,
    Limited,
    Failed,
}

#[derive(Default)]
struct Told {
    hint: LimitHint,
    refused: Option<(Exhausted, Millis)>,
}

struct Inner {
    events: VecDeque<(Event, usize)>,
    notes: usize,
    dropped_notes: u64,
    usage: BTreeMap<(u32, i32, Asked), Usage>,
    told: BTreeMap<u32, Told>,
    refused: BTreeMap<String, u32>,
    signalled: bool,
    signal: UnixStream,
    wait: UnixStream,
}

/// Queue of events. Bounded by what feeds it: outstanding jobs, streams'
/// credit, the listener's concurrency, and [`MAX_NOTES`].
pub(crate) struct Mailbox {
    inner: Mutex<Inner>,
    fd: RawFd,
    outstanding: AtomicUsize,
    bytes: AtomicUsize,
    max_bytes: usize,
    /// Fires when the session took enough for requests to start again.
    pub(crate) drained: Notify,
}

impl Mailbox {
    pub(crate) fn new(max_bytes: usize) -> std::io::Result<Self> {
        let (signal, wait) = UnixStream::pair()?;
        signal.set_nonblocking(true)?;
        wait.set_nonblocking(true)?;
        let fd = wait.as_raw_fd();
        Ok(Self {
            inner: Mutex::new(Inner {
                events: VecDeque::new(),
                notes: 0,
                dropped_notes: 0,
                usage: BTreeMap::new(),
                told: BTreeMap::new(),
                refused: BTreeMap::new(),
                signalled: false,
                signal,
                wait,
            }),
            fd,
            outstanding: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            max_bytes,
            drained: Notify::new(),
        })
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.fd
    }

    /// Books a job in, unless `max` are outstanding.
    pub(crate) fn reserve(&self, max: usize) -> bool {
        self.outstanding
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                (n < max).then_some(n + 1)
            })
            .is_ok()
    }

    /// Takes a booking back: the job was not accepted after all.
    pub(crate) fn unreserve(&self) {
        self.outstanding.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether so much waits to be taken that nothing more should be fetched.
    pub(crate) fn is_heavy(&self) -> bool {
        self.bytes.load(Ordering::Acquire) > self.max_bytes
    }

    /// Queues an event.
    pub(crate) fn post(&self, event: Event) {
        let size = weight(&event);
        self.bytes.fetch_add(size, Ordering::AcqRel);
        let mut inner = self.lock();
        inner.events.push_back((event, size));
        inner.wake();
    }

    /// Queues a note, or counts it as dropped.
    pub(crate) fn note(&self, level: Level, message: String) {
        let mut inner = self.lock();
        if inner.notes >= MAX_NOTES {
            inner.dropped_notes += 1;
            return;
        }
        inner.notes += 1;
        inner.events.push_back((Event::Note { level, message }, 0));
        inner.wake();
    }

    /// Adds to the usage that the session gets once its other events are taken.
    pub(crate) fn used(&self, server: u32, mirror: i32, asked: &Asked, ended: Ended, bytes: usize) {
        let mut inner = self.lock();
        let mut key = (server, mirror, asked.clone());
        if inner.usage.len() >= MAX_USAGE && !inner.usage.contains_key(&key) {
            key.2.endpoint = "(others)".into();
        }
        let u = inner.usage.entry(key).or_default();
        u.calls = u.calls.saturating_add(1);
        u.limited = u.limited.saturating_add(u32::from(ended == Ended::Limited));
        u.failed = u.failed.saturating_add(u32::from(ended == Ended::Failed));
        u.bytes = u.bytes.saturating_add(bytes as u64);
    }

    /// Takes note of what a CRM said of its limits.
    pub(crate) fn told(&self, server: u32, hint: LimitHint, refused: Option<(Exhausted, Millis)>) {
        let mut inner = self.lock();
        let told = inner.told.entry(server).or_default();
        told.hint = hint;
        told.refused = refused.or(told.refused);
    }

    /// Counts a webhook that was refused without asking the session.
    pub(crate) fn refused(&self, name: &str) {
        let mut inner = self.lock();
        if inner.refused.len() < MAX_REFUSED || inner.refused.contains_key(name) {
            let count = inner.refused.entry(name.to_owned()).or_default();
            *count = count.saturating_add(1);
            inner.wake();
        }
    }

    /// Makes the wait socket readable without an event (the thread ended).
    pub(crate) fn wake(&self) {
        self.lock().wake();
    }

    /// The next event; after the last one, the wait socket is quiet again.
    pub(crate) fn take(&self) -> Option<Event> {
        let mut inner = self.lock();
        let Some((event, size)) = inner.next() else {
            inner.quiet();
            return None;
        };
        drop(inner);
        if is_outcome(&event) {
            self.unreserve();
        }
        if size > 0 {
            let before = self.bytes.fetch_sub(size, Ordering::AcqRel);
            if before > self.max_bytes && before - size <= self.max_bytes {
                self.drained.notify_waiters();
            }
        }
        Some(event)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn wake(&mut self) {
        if !self.signalled {
            self.signalled = true;
            // A full socket is readable already, a closed one has no reader.
            let _ = self.signal.write(&[1]);
        }
    }

    fn quiet(&mut self) {
        if self.signalled {
            self.signalled = false;
            let mut buffer = [0; 16];
            while matches!(self.wait.read(&mut buffer), Ok(n) if n > 0) {}
        }
    }

    fn next(&mut self) -> Option<(Event, usize)> {
        if let Some((event, size)) = self.events.pop_front() {
            if matches!(event, Event::Note { .. }) {
                self.notes -= 1;
            }
            return Some((event, size));
        }
        if self.dropped_notes > 0 {
            let n = std::mem::take(&mut self.dropped_notes);
            let message = format!("{n} further messages were dropped");
            let level = Level::Warning;
            return Some((Event::Note { level, message }, 0));
        }
        if let Some((name, count)) = self.refused.pop_first() {
            return Some((Event::Refused { name, count }, 0));
        }
        if let Some((server, told)) = self.told.pop_first() {
            let Told { hint, refused } = told;
            let event = Event::Limits {
                server,
                hint,
                refused,
            };
            return Some((event, 0));
        }
        let ((server, mirror, asked), u) = self.usage.pop_first()?;
        let event = Event::Usage {
            server,
            mirror,
            asked,
            calls: u.calls,
            limited: u.limited,
            failed: u.failed,
            bytes: u.bytes,
        };
        Some((event, 0))
    }
}

fn is_outcome(event: &Event) -> bool {
    matches!(
        event,
        Event::Answer { .. } | Event::Fetched { .. } | Event::Pushed { .. }
    )
}

/// Roughly the memory that an event holds.
fn weight(event: &Event) -> usize {
    match event {
        Event::Answer { result: Ok(r), .. } => r.body.len(),
        Event::Fetched { result: Ok(p), .. } => page_weight(p),
        Event::Pushed { results, .. } => results.iter().map(result_weight).sum(),
        Event::Webhook { content, .. } => match content {
            Content::Raw(delivery) => delivery.body.len(),
            // A change is a handful of short texts.
            Content::Opened(Ok(changes)) => changes.len() * 512,
            Content::Opened(Err(_)) => 0,
        },
        Event::Answer { .. }
        | Event::Fetched { .. }
        | Event::StreamUp { .. }
        | Event::Stream { .. }
        | Event::StreamEnded { .. }
        | Event::Refused { .. }
        | Event::Usage { .. }
        | Event::Limits { .. }
        | Event::Note { .. } => 0,
    }
}

fn page_weight(page: &Page) -> usize {
    let own = std::mem::size_of::<crm_core::model::Record>();
    page.records
        .iter()
        // A place of eight bytes for each value, null or not.
        .map(|r| own + r.id.len() + r.values.bytes() + r.values.len() * 8)
        .sum()
}

fn result_weight(result: &WriteResult) -> usize {
    let own = std::mem::size_of::<WriteResult>();
    match result {
        WriteResult::Done { echoed, .. } => {
            own + echoed
                .iter()
                .map(|(n, v)| 48 + n.len() + v.as_ref().map_or(0, String::len))
                .sum::<usize>()
        }
        WriteResult::Failed(RemoteError { message, .. })
        | WriteResult::Exists { message, .. }
        | WriteResult::Unknown(RemoteError { message, .. }) => own + message.len(),
    }
}
