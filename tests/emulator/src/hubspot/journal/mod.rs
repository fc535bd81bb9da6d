//! The webhooks journal: the same events as webhooks, kept as files for whoever comes to read them.
//!
//! Nobody outside has seen a data file; `shape` offers several, one of which no reader can know.

mod file;
mod routes;

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

pub(crate) use file::Shape;
pub(crate) use routes::{add_to, data};
use serde_json::{Map, Value, json};

use super::webhooks::event::{Event, What};
use crate::{
    admin::Refused,
    clock::{self, mix},
};

/// Entries kept at once; the oldest go first.
const MAX_ENTRIES: usize = 10_000;
/// How long HubSpot keeps an entry.
const RETENTION_MS: i64 = 3 * 86_400_000;

/// How the journal answers where its documentation is silent.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) on: bool,
    pub(crate) shape: Shape,
    /// Most events of a file.
    pub(crate) file_events: usize,
    pub(crate) retention_ms: i64,
    /// How long the address of a file works.
    pub(crate) url_ms: i64,
    /// Status when nothing is newer: 204 or 404.
    pub(crate) end: u16,
    /// Status for an offset that is not known, or not any more; 200 answers the earliest entry.
    pub(crate) unknown: u16,
}

/// A file of events.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) offset: String,
    pub(crate) at_ms: i64,
    pub(crate) events: Vec<Arc<Event>>,
}

struct Inner {
    settings: Settings,
    entries: VecDeque<Entry>,
    /// Events that no entry holds yet.
    fresh: Vec<Arc<Event>>,
}

/// The journal of the app.
pub(crate) struct Journal {
    inner: Mutex<Inner>,
    next: AtomicU64,
}

impl Journal {
    pub(crate) fn new(seed: u64) -> Journal {
        Journal {
            inner: Mutex::new(Inner {
                settings: Settings {
                    on: false,
                    shape: Shape::Plain,
                    file_events: 100,
                    retention_ms: RETENTION_MS,
                    url_ms: 900_000,
                    end: 204,
                    unknown: 404,
                },
                entries: VecDeque::new(),
                fresh: Vec::new(),
            }),
            next: AtomicU64::new(mix(seed ^ 0x6a6f)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a change.
    pub(crate) fn note(&self, event: &Event) {
        let mut inner = self.lock();
        if !inner.settings.on {
            return;
        }
        if let What::Property { name, .. } = &event.what
            && super::webhooks::SILENT.contains(&&**name)
        {
            return;
        }
        inner.fresh.push(Arc::new(event.clone()));
        if inner.fresh.len() >= inner.settings.file_events {
            self.close(&mut inner);
        }
    }

    /// Makes an entry of what is fresh, and forgets what is old.
    fn close(&self, inner: &mut Inner) {
        let now = clock::real_ms();
        while !inner.fresh.is_empty() {
            let count = inner.fresh.len().min(inner.settings.file_events.max(1));
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            let (a, b) = (mix(n), mix(!n));
            let offset = format!(
                "{:08x}-{:04x}-7{:03x}-8{:03x}-{:012x}",
                a >> 32,
                a >> 16 & 0xffff,
                a & 0xfff,
                b >> 52,
                b & 0xffff_ffff_ffff
            );
            let events = inner.fresh.drain(..count).collect();
            inner.entries.push_back(Entry {
                offset,
                at_ms: now,
                events,
            });
        }
        let oldest = now - inner.settings.retention_ms;
        while inner.entries.len() > MAX_ENTRIES
            || inner.entries.front().is_some_and(|e| e.at_ms < oldest)
        {
            inner.entries.pop_front();
        }
    }

    /// Works with the settings and all entries there are, oldest first.
    fn read<T>(&self, look: impl FnOnce(&Settings, &VecDeque<Entry>) -> T) -> T {
        let mut inner = self.lock();
        self.close(&mut inner);
        look(&inner.settings, &inner.entries)
    }

    /// Takes settings from the admin interface; `forget: true` drops every entry at once.
    pub(crate) fn set(&self, given: &Map<String, Value>) -> Result<Value, Refused> {
        let mut inner = self.lock();
        let mut new = inner.settings.clone();
        for (key, value) in given {
            let bad = |what: &str| Refused::Bad(format!("{key}: expected {what}"));
            let number = || value.as_i64().ok_or_else(|| bad("a whole number"));
            match key.as_str() {
                "on" => new.on = value.as_bool().ok_or_else(|| bad("true or false"))?,
                "shape" => {
                    let name = value.as_str().unwrap_or_default();
                    new.shape = Shape::parse(name).ok_or_else(|| bad(Shape::NAMES))?;
                }
                "file_events" => new.file_events = number()?.clamp(1, 100_000) as usize,
                "retention_ms" => new.retention_ms = number()?,
                "url_ms" => new.url_ms = number()?,
                "end" => match number()? {
                    status @ (204 | 404) => new.end = status as u16,
                    _ => return Err(bad("204 or 404")),
                },
                "unknown" => match number()? {
                    status @ (200 | 400 | 404 | 410) => new.unknown = status as u16,
                    _ => return Err(bad("200, 400, 404 or 410")),
                },
                "forget" => {
                    inner.fresh.clear();
                    inner.entries.clear();
                }
                _ => {
                    let known =
                        "on, shape, file_events, retention_ms, url_ms, end, unknown or forget";
                    return Err(bad(known));
                }
            }
        }
        inner.settings = new;
        self.close(&mut inner);
        Ok(json!({"on": inner.settings.on, "entries": inner.entries.len()}))
    }
}
