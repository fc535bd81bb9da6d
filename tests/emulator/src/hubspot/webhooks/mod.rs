//! Webhooks: what is subscribed, the queue of events, and their delivery.

mod deliver;
pub(crate) mod event;
pub(crate) mod manage;
mod sign;

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

pub(crate) use deliver::{pass, start};
use event::{Event, What};
use serde_json::{Map, Value, json};
use tokio::sync::Notify;

use super::{journal::Journal, model::OBJECTS};
use crate::{admin::Refused, cli::Options, clock::mix};

/// Events waiting at most; further ones are dropped and counted.
const MAX_WAITING: usize = 1_000_000;
/// Properties whose changes cannot be subscribed to.
pub(crate) const SILENT: [&str; 2] = ["hs_lastmodifieddate", "num_unique_conversion_events"];

/// One subscription made through the API.
#[derive(Clone, Debug)]
pub(crate) struct Subscription {
    pub(crate) id: u64,
    /// `contact.creation`, `object.propertyChange`, …
    pub(crate) event_type: String,
    pub(crate) object_type_id: Option<String>,
    pub(crate) property: Option<String>,
    pub(crate) active: bool,
    pub(crate) created_ms: i64,
}

/// Where events go, and which.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) url: Option<String>,
    /// Signed instead of `url`, as when a proxy forwards.
    pub(crate) public_url: Option<String>,
    pub(crate) secret: String,
    pub(crate) legacy: bool,
    pub(crate) generic: bool,
    pub(crate) max_concurrent: usize,
    pub(crate) retry_ms: u64,
    /// `None`: everything is subscribed.
    pub(crate) subscriptions: Option<Vec<Subscription>>,
    next_subscription: u64,
}

/// An event in one of its forms, on its way.
#[derive(Clone)]
pub(crate) struct Outgoing {
    event: Arc<Event>,
    generic: bool,
    event_id: u64,
    subscription_id: u64,
}

/// Events that are sent, and sent again, together.
struct Batch {
    events: Vec<Outgoing>,
    attempt: u32,
    /// Not before so long.
    delay: Duration,
}

#[derive(Default)]
struct Queue {
    fresh: VecDeque<Outgoing>,
    /// Batches due again, or after a delay.
    ready: VecDeque<Batch>,
}

/// Counters that the admin interface shows.
#[derive(Default)]
struct Counters {
    requests: AtomicU64,
    delivered: AtomicU64,
    failed: AtomicU64,
    abandoned: AtomicU64,
    overflow: AtomicU64,
}

/// The webhook side of the account.
pub(crate) struct Webhooks {
    settings: Mutex<Settings>,
    /// Whether there is an address to send to: checked before anything else.
    on: AtomicBool,
    queue: Mutex<Queue>,
    wake: Notify,
    in_flight: AtomicUsize,
    /// Events queued, delayed or waiting for a retry.
    waiting: AtomicUsize,
    next_event: AtomicU64,
    counters: Counters,
    pub(crate) journal: Journal,
}

impl Webhooks {
    pub(crate) fn new(options: &Options) -> Webhooks {
        Webhooks {
            on: AtomicBool::new(options.webhook_url.is_some()),
            settings: Mutex::new(Settings {
                url: options.webhook_url.clone(),
                public_url: options.webhook_public_url.clone(),
                secret: options.signing_secret().to_owned(),
                legacy: options.webhook_shape != "generic",
                generic: options.webhook_shape != "legacy",
                max_concurrent: 10,
                retry_ms: options.webhook_retry_ms,
                subscriptions: None,
                next_subscription: 1_000,
            }),
            queue: Mutex::default(),
            wake: Notify::new(),
            in_flight: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            next_event: AtomicU64::new(1),
            counters: Counters::default(),
            journal: Journal::new(options.seed),
        }
    }

    pub(crate) fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues an event for every subscription that wants it. Never waits.
    pub(crate) fn emit(&self, event: Event) {
        self.journal.note(&event);
        if !self.on.load(Ordering::Relaxed) {
            return;
        }
        if let What::Property { name, .. } = &event.what
            && SILENT.contains(&&**name)
        {
            return;
        }
        let forms = self.settings().wanted(&event);
        let event = Arc::new(event);
        for (generic, subscription_id) in forms {
            if self.waiting.fetch_add(1, Ordering::Relaxed) >= MAX_WAITING {
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                self.counters.overflow.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            self.queue().fresh.push_back(Outgoing {
                event: Arc::clone(&event),
                generic,
                event_id: self.next_event.fetch_add(1, Ordering::Relaxed),
                subscription_id,
            });
            self.wake.notify_one();
        }
    }

    /// Takes settings from the admin interface: `url`, `public_url`, `secret`, `shape`,
    /// `max_concurrent`, `retry_ms`; null or "" as `url` turns webhooks off.
    pub(crate) fn set(&self, given: &Map<String, Value>) -> Result<Value, Refused> {
        let mut settings = self.settings();
        let mut new = settings.clone();
        for (key, value) in given {
            let text = value.as_str().filter(|t| !t.is_empty()).map(str::to_owned);
            let number = || {
                value
                    .as_u64()
                    .ok_or_else(|| Refused::Bad(format!("{key}: expected a whole number")))
            };
            match key.as_str() {
                "url" => new.url = text,
                "public_url" => new.public_url = text,
                "secret" => new.secret = text.unwrap_or_default(),
                "shape" => match text.as_deref() {
                    Some("legacy") => (new.legacy, new.generic) = (true, false),
                    Some("generic") => (new.legacy, new.generic) = (false, true),
                    Some("both") => (new.legacy, new.generic) = (true, true),
                    _ => {
                        return Err(Refused::Bad(
                            "shape: expected legacy, generic or both".to_owned(),
                        ));
                    }
                },
                "max_concurrent" => new.max_concurrent = number()?.clamp(1, 100) as usize,
                "retry_ms" => new.retry_ms = number()?,
                _ => {
                    return Err(Refused::Bad(format!(
                        "{key}: expected url, public_url, secret, shape, max_concurrent or retry_ms"
                    )));
                }
            }
        }
        *settings = new;
        self.on.store(settings.url.is_some(), Ordering::Relaxed);
        let shown = json!({"url": settings.url, "public_url": settings.public_url,
            "legacy": settings.legacy, "generic": settings.generic,
            "max_concurrent": settings.max_concurrent, "retry_ms": settings.retry_ms});
        drop(settings);
        self.wake.notify_one();
        Ok(shown)
    }

    /// What has been and is to be sent.
    pub(crate) fn report(&self) -> Value {
        let count = |c: &AtomicU64| c.load(Ordering::Relaxed);
        json!({"waiting": self.waiting.load(Ordering::Relaxed),
            "in_flight": self.in_flight.load(Ordering::Relaxed),
            "requests": count(&self.counters.requests),
            "delivered_events": count(&self.counters.delivered),
            "failed_requests": count(&self.counters.failed),
            "abandoned_events": count(&self.counters.abandoned),
            "overflow_events": count(&self.counters.overflow)})
    }
}

impl Settings {
    /// The forms (generic?) and subscription ids in which an event is wanted.
    fn wanted(&self, event: &Event) -> Vec<(bool, u64)> {
        let property = match &event.what {
            What::Property { name, .. } => Some(&**name),
            _ => None,
        };
        if let Some(subscriptions) = &self.subscriptions {
            let type_id = OBJECTS[event.table].type_id;
            return subscriptions
                .iter()
                .filter(|s| s.active && s.property.as_deref() == property)
                .filter_map(|s| {
                    let generic = s.event_type.starts_with("object.");
                    let same = event.subscription_type(generic)? == s.event_type;
                    let here = !generic || s.object_type_id.as_deref() == Some(type_id);
                    (same && here).then_some((generic, s.id))
                })
                .collect();
        }
        // Everything is subscribed: an id that is stable per type and property.
        let mut forms = Vec::with_capacity(2);
        let privacy = matches!(event.what, What::PrivacyDeletion);
        for generic in [false, true] {
            let on = if generic {
                self.generic
            } else {
                self.legacy || privacy
            };
            if let Some(name) = event.subscription_type(generic).filter(|_| on) {
                let text = name.bytes().chain(property.unwrap_or("").bytes());
                let hash = text.fold(event.table as u64, |h, b| mix(h ^ u64::from(b)));
                forms.push((generic, 1_000_000 + hash % 9_000_000));
            }
        }
        // A custom object has no legacy form: it is announced in the generic one.
        if forms.is_empty() && OBJECTS[event.table].custom {
            forms.push((true, 1_000_000));
        }
        forms
    }
}
