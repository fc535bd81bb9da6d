//! The Bayeux clients of the org: who they are, and where they stand in each channel.

use crate::clock::{Rng, real_ms};
use crate::salesforce::cdc::Topic;
use crate::salesforce::cdc::bus::{Bus, Event};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Clients at a time, as in an Enterprise org.
const MAX_CLIENTS: usize = 1_000;

struct Client {
    cookie: String,
    heard: Instant,
    /// By channel: what it shows, and the last id that was read.
    channels: BTreeMap<String, (Topic, u64)>,
}

struct Inner {
    clients: HashMap<String, Client>,
    rng: Rng,
}

/// All clients.
pub(crate) struct Clients(Mutex<Inner>);

/// Why a message is not accepted.
pub(crate) enum Unknown {
    Client,
    Cookie,
}

impl Clients {
    /// No clients yet.
    pub(crate) fn new(seed: u64) -> Self {
        Self(Mutex::new(Inner {
            clients: HashMap::new(),
            rng: Rng::new(seed ^ 0xba_7e),
        }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A cookie that nobody has.
    pub(crate) fn cookie(&self) -> String {
        format!("{:016x}", self.lock().rng.next_u64())
    }

    /// Lets a client in; those that were silent for `idle` are forgotten. `None` if there are too many.
    pub(crate) fn greet(&self, cookie: String, idle: Duration) -> Option<String> {
        let mut inner = self.lock();
        inner
            .clients
            .retain(|_, client| client.heard.elapsed() < idle);
        if inner.clients.len() >= MAX_CLIENTS {
            return None;
        }
        let (a, b) = (inner.rng.next_u64(), inner.rng.next_u64());
        let id = format!("{a:016x}{:09x}", b >> 28);
        let client = Client {
            cookie,
            heard: Instant::now(),
            channels: BTreeMap::new(),
        };
        inner.clients.insert(id.clone(), client);
        Some(id)
    }

    /// Whether a client is one.
    pub(crate) fn knows(&self, id: &str) -> bool {
        self.lock().clients.contains_key(id)
    }

    /// Notes a sign of life of a client.
    pub(crate) fn check(&self, id: &str, cookie: Option<&str>) -> Result<(), Unknown> {
        let mut inner = self.lock();
        let client = inner.clients.get_mut(id).ok_or(Unknown::Client)?;
        if cookie != Some(&client.cookie) {
            return Err(Unknown::Cookie);
        }
        client.heard = Instant::now();
        Ok(())
    }

    /// Subscribes a client to a channel, from the id on.
    pub(crate) fn subscribe(&self, id: &str, channel: &str, topic: Topic, after: u64) {
        if let Some(client) = self.lock().clients.get_mut(id) {
            client.channels.insert(channel.to_owned(), (topic, after));
        }
    }

    /// Ends a subscription.
    pub(crate) fn unsubscribe(&self, id: &str, channel: &str) {
        if let Some(client) = self.lock().clients.get_mut(id) {
            client.channels.remove(channel);
        }
    }

    /// Ends a client.
    pub(crate) fn forget(&self, id: &str) {
        self.lock().clients.remove(id);
    }

    /// Forgets everybody, as when a node restarts.
    pub(crate) fn forget_all(&self) {
        self.lock().clients.clear();
    }

    /// What a client has not read yet, by channel, at most so many events and bytes; and in how many milliseconds
    /// a delayed event is there. What is answered counts as read, whether the answer arrives or not.
    pub(crate) fn read(
        &self,
        id: &str,
        bus: &Bus,
        (most, bytes): (usize, usize),
    ) -> (Vec<(String, Event)>, Option<u64>) {
        let mut inner = self.lock();
        let Some(client) = inner.clients.get_mut(id) else {
            return (Vec::new(), None);
        };
        let (mut events, mut later, mut size) = (Vec::new(), None, 0);
        for (channel, (topic, after)) in &mut client.channels {
            let batch = bus.read(*after, most - events.len(), |obj| topic.admits(obj));
            let read = batch.events.len();
            let mut taken = 0;
            for event in batch.events {
                if size > bytes || events.len() >= most {
                    break;
                }
                size += event.payload.len();
                *after = event.replay;
                taken += 1;
                events.push((channel.clone(), event));
            }
            if taken == read {
                *after = batch.seen;
            }
            let wait = batch
                .later
                .map(|at| u64::try_from(at - real_ms()).unwrap_or(0) + 1);
            later = later.into_iter().chain(wait).min();
        }
        (events, later)
    }
}
