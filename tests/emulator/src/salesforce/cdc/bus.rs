//! The event bus: what was published, in order, kept for replay within bounds.

use crate::clock::{Rng, real_ms};
use crate::salesforce::schema::Obj;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// Bytes of payload kept for replay; older events go first.
const MAX_BYTES: usize = 512 << 20;

/// A published event.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) replay: u64,
    pub(crate) obj: Obj,
    pub(crate) id: String,
    pub(crate) schema_id: Arc<str>,
    pub(crate) payload: Bytes,
    /// Real time (ms) before which subscribers do not see it.
    visible_at: i64,
}

/// An event about to be published.
#[derive(Clone)]
pub(crate) struct Draft {
    pub(crate) obj: Obj,
    pub(crate) schema_id: Arc<str>,
    pub(crate) payload: Bytes,
}

/// Why a replay id cannot be resumed from.
#[derive(Debug, PartialEq)]
pub(crate) enum Unusable {
    /// Not an id this bus issued.
    Corrupted,
    /// Older than what is kept.
    Expired,
}

struct Inner {
    events: VecDeque<Event>,
    bytes: usize,
    /// Latest id issued.
    last: u64,
    /// Ids below are expired.
    floor: u64,
    /// Id of the newest event that is no longer kept.
    dropped: u64,
    rng: Rng,
}

/// What a read found.
pub(crate) struct Batch {
    pub(crate) events: Vec<Event>,
    /// Everything up to this id was looked at.
    pub(crate) seen: u64,
    /// An event is there but delayed until this real time (ms).
    pub(crate) later: Option<i64>,
}

/// All events of the org.
pub(crate) struct Bus {
    inner: Mutex<Inner>,
    wake: watch::Sender<u64>,
    delivered: AtomicU64,
}

impl Bus {
    /// An empty bus.
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0xcdc);
        let last = 1_000_000 + rng.below(1_000_000);
        let inner = Inner {
            events: VecDeque::new(),
            bytes: 0,
            last,
            floor: last,
            dropped: 0,
            rng,
        };
        Self {
            inner: Mutex::new(inner),
            wake: watch::Sender::new(last),
            delivered: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends events; `delay_ms` hides them that long. Keeps at most `retained`.
    pub(crate) fn publish(&self, drafts: Vec<Draft>, delay_ms: u64, retained: u64) {
        let visible_at = real_ms() + i64::try_from(delay_ms).unwrap_or(0);
        let mut inner = self.lock();
        for draft in drafts {
            let replay = inner.issue();
            let (a, b) = (inner.rng.next_u64(), inner.rng.next_u64());
            let id = format!(
                "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
                a >> 32,
                a >> 16 & 0xffff,
                a & 0xfff,
                b >> 52,
                b & 0xffff_ffff_ffff
            );
            inner.bytes += draft.payload.len();
            inner.events.push_back(Event {
                replay,
                obj: draft.obj,
                id,
                schema_id: draft.schema_id,
                payload: draft.payload,
                visible_at,
            });
        }
        let keep = usize::try_from(retained).unwrap_or(usize::MAX);
        while inner.events.len() > keep || inner.bytes > MAX_BYTES {
            let Some(gone) = inner.events.pop_front() else {
                break;
            };
            inner.bytes -= gone.payload.len();
            inner.floor = gone.replay;
            inner.dropped = gone.replay;
        }
        let last = inner.last;
        drop(inner);
        self.wake.send_replace(last);
    }

    /// A receiver that wakes when events were published.
    pub(crate) fn listen(&self) -> watch::Receiver<u64> {
        self.wake.subscribe()
    }

    /// Wakes every subscriber, so that it looks at its session again.
    pub(crate) fn wake(&self) {
        self.wake.send_modify(|_| {});
    }

    /// The id of "now": only later events follow it.
    pub(crate) fn latest(&self) -> u64 {
        self.lock().last
    }

    /// The id before the oldest event kept.
    pub(crate) fn earliest(&self) -> u64 {
        self.lock().floor
    }

    /// Whether a reader that stands at `after` has missed an event for good.
    pub(crate) fn missed(&self, after: u64) -> bool {
        after < self.lock().dropped
    }

    /// A newer id without an event, as keepalive answers carry, if `seen` is still the latest.
    pub(crate) fn keepalive(&self, seen: u64) -> u64 {
        let mut inner = self.lock();
        if inner.last == seen {
            inner.issue()
        } else {
            seen
        }
    }

    /// Reads a stored id.
    pub(crate) fn resume(&self, replay: &[u8]) -> Result<u64, Unusable> {
        let id = u64::from_be_bytes(replay.try_into().map_err(|_| Unusable::Corrupted)?);
        let inner = self.lock();
        if id > inner.last {
            Err(Unusable::Corrupted)
        } else if id < inner.floor {
            Err(Unusable::Expired)
        } else {
            Ok(id)
        }
    }

    /// Up to `most` events after `after` that `wanted` admits.
    pub(crate) fn read(&self, after: u64, most: usize, wanted: impl Fn(Obj) -> bool) -> Batch {
        let now = real_ms();
        let inner = self.lock();
        let start = inner.events.partition_point(|event| event.replay <= after);
        let mut batch = Batch {
            events: Vec::new(),
            seen: after,
            later: None,
        };
        for event in inner.events.range(start..) {
            if event.visible_at > now {
                batch.later = Some(event.visible_at);
                return batch;
            }
            if wanted(event.obj) {
                if batch.events.len() == most {
                    return batch;
                }
                batch.events.push(event.clone());
            }
            batch.seen = event.replay;
        }
        batch.seen = batch.seen.max(inner.last);
        batch
    }

    /// Makes every id issued so far unusable, as after 72 hours.
    pub(crate) fn expire(&self) {
        let mut inner = self.lock();
        if let Some(newest) = inner.events.back().map(|event| event.replay) {
            inner.dropped = newest;
        }
        inner.events.clear();
        inner.bytes = 0;
        inner.floor = inner.issue();
    }

    /// Counts delivered events.
    pub(crate) fn count(&self, events: usize) {
        self.delivered.fetch_add(events as u64, Ordering::Relaxed);
    }

    /// Events delivered to subscribers since start.
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }
}

impl Inner {
    /// The next id: rising, not consecutive.
    fn issue(&mut self) -> u64 {
        self.last += 1 + self.rng.below(5);
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(obj: Obj) -> Draft {
        Draft {
            obj,
            schema_id: "s".into(),
            payload: Bytes::from_static(b"x"),
        }
    }

    #[test]
    fn a_reader_resumes_after_any_id_and_skips_other_channels() {
        let bus = Bus::new(1);
        let start = bus.latest();
        bus.publish(
            vec![
                draft(Obj::Contact),
                draft(Obj::Account),
                draft(Obj::Contact),
            ],
            0,
            100,
        );
        let all = bus.read(start, 10, |_| true);
        assert_eq!(all.events.len(), 3);
        assert!(
            all.events
                .windows(2)
                .all(|pair| pair[0].replay < pair[1].replay)
        );
        let contacts = bus.read(start, 10, |obj| obj == Obj::Contact);
        assert_eq!((contacts.events.len(), contacts.seen), (2, bus.latest()));
        let first = bus.read(start, 1, |_| true);
        assert_eq!(first.seen, all.events[0].replay);
        assert_eq!(bus.read(first.seen, 10, |_| true).events.len(), 2);
    }

    #[test]
    fn ids_expire_with_their_events_and_foreign_ids_are_corrupted() {
        let bus = Bus::new(1);
        let start = bus.latest();
        bus.publish(vec![draft(Obj::Contact); 5], 0, 2);
        assert_eq!(bus.resume(&start.to_be_bytes()), Err(Unusable::Expired));
        let kept = bus.read(bus.earliest(), 10, |_| true);
        assert_eq!(kept.events.len(), 2);
        assert_eq!(
            bus.resume(&kept.events[0].replay.to_be_bytes()),
            Ok(kept.events[0].replay)
        );
        assert_eq!(bus.resume(&[1, 2, 3]), Err(Unusable::Corrupted));
        assert_eq!(
            bus.resume(&u64::MAX.to_be_bytes()),
            Err(Unusable::Corrupted)
        );
        bus.expire();
        assert_eq!(
            bus.resume(&kept.events[1].replay.to_be_bytes()),
            Err(Unusable::Expired)
        );
    }

    #[test]
    fn a_keepalive_id_is_newer_and_loses_nothing() {
        let bus = Bus::new(1);
        let id = bus.keepalive(bus.latest());
        bus.publish(vec![draft(Obj::Contact)], 0, 10);
        assert_eq!(bus.read(id, 10, |_| true).events.len(), 1);
        let stale = bus.keepalive(id);
        assert_eq!(stale, id, "no jump over an event that was not read");
    }

    #[test]
    fn a_delayed_event_is_not_passed_over() {
        let bus = Bus::new(1);
        let start = bus.latest();
        bus.publish(vec![draft(Obj::Contact)], 60_000, 10);
        let batch = bus.read(start, 10, |_| true);
        assert!(batch.events.is_empty() && batch.later.is_some());
        assert_eq!(batch.seen, start);
    }
}
