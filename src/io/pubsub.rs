//! Change streams over Salesforce's Pub/Sub API, or over CometD where a server
//! says so: see [`comet`].
//!
//! One task per stream: it connects, asks for as many events as the session
//! allows, decodes them with the schemas they name, and delivers them in
//! order. When the connection fails it comes back from the last delivered
//! replay id, a bounded number of times without any success in between. It
//! commits nothing: what was delivered and not committed is asked for again by
//! the next session, from its own replay id.

mod comet;
mod messages;
mod parting;
mod rpc;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crm_core::connectors::salesforce::cdc::Schema;
use crm_core::model::{Change, ChangeKind, RemoteError};
use crm_core::retry::Backoff;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};
use tonic::Streaming;

use crate::api::{Event, Level, Replay, Settings, StreamItem};
use crate::clock;
use crate::errors::timeout;
use crate::server::Server;

pub(crate) use parting::Parting;

use messages::{ConsumerEvent, FetchRequest, FetchResponse, ReplayPreset};
use rpc::{Failure, Rpc, failure};

/// Events asked for or delivered, and not yet credited: the API's bound on the
/// former.
const MAX_OUTSTANDING: u32 = 100;
/// The server gives a sign of life at least every 270 seconds.
const SILENCE: Duration = Duration::from_secs(300);
/// Schemas kept; an object has a new one whenever its fields change.
const MAX_SCHEMAS: usize = 128;

const RECONNECT: Backoff = Backoff {
    first_ms: 200,
    max_ms: 30_000,
    attempts: 8,
};

/// The window of a stream: shared between the thread's loop and the stream's
/// task. Events delivered and not yet credited take room in it, so credit given
/// twice, or for changes instead of events, never adds up.
#[derive(Default)]
pub(crate) struct Credit {
    unsettled: AtomicU32,
    more: Notify,
}

impl Credit {
    /// The session has settled that many events.
    pub(crate) fn give(&self, events: u32) {
        let settle = |n: u32| Some(n.saturating_sub(events));
        // The closure never declines.
        let _ = self
            .unsettled
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, settle);
        self.more.notify_one();
    }

    fn delivered(&self, events: u32) {
        self.unsettled.fetch_add(events, Ordering::AcqRel);
    }

    /// Events that may be asked for while `outstanding` are under way.
    fn room(&self, outstanding: u32) -> u32 {
        let taken = self.unsettled.load(Ordering::Acquire);
        MAX_OUTSTANDING.saturating_sub(taken.saturating_add(outstanding))
    }
}

/// A stream's task and what it remembers between connections.
pub(crate) struct Subscription {
    pub(crate) stream: u64,
    pub(crate) server: Arc<Server>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) topic: String,
    pub(crate) replay: Replay,
    pub(crate) credit: Arc<Credit>,
    pub(crate) schemas: Arc<Schemas>,
    pub(crate) parting: Arc<Parting>,
    /// Events were skipped for this reason: told once new ones come again.
    pub(crate) skipped: Option<String>,
}

/// An open connection.
struct Open {
    rpc: Rpc,
    requests: mpsc::Sender<FetchRequest>,
    events: Option<Streaming<FetchResponse>>,
    outstanding: u32,
    heard: Instant,
}

impl Subscription {
    /// Runs the stream to its end, which is told in an event.
    pub(crate) async fn run(mut self) {
        let mut failures = 0;
        let (error, replay_expired) = loop {
            let before = self.replay.clone();
            let error = match self.connection(&mut failures).await {
                Ok(()) => continue,
                Err(Failure::Again(e) | Failure::Reauth(e)) => e,
                Err(Failure::Expired(e)) => break (e, matches!(before, Replay::After(_))),
                Err(Failure::Final(e)) => break (e, false),
            };
            failures += 1;
            let asked = error.retry_after_ms;
            match RECONNECT.delay(failures, clock::seed(), asked) {
                Some(ms) if ms <= self.settings.max_wait_ms.max(RECONNECT.max_ms) => {
                    self.note(
                        Level::Info,
                        &format!("opened again in {ms} ms after: {error}"),
                    );
                    sleep_until(clock::instant(clock::mono() + ms)).await;
                }
                _ => break (error, false),
            }
        };
        self.server.mailbox.post(Event::StreamEnded {
            stream: self.stream,
            error,
            replay_expired,
        });
    }

    fn note(&self, level: Level, text: &str) {
        let message = format!("stream {}: {text}", self.topic);
        self.server.mailbox.note(level, message);
    }

    /// One connection, from credit to the error that ends it. `Ok` is an
    /// orderly end while nothing was asked for.
    async fn connection(&mut self, failures: &mut u32) -> Result<(), Failure> {
        let first = self.wait_for_credit().await;
        let target = self.server.target();
        let token = match target.token(&self.server).await {
            Ok(token) => token,
            Err(e) => return Err(verdict(e)),
        };
        if target.spec.config.cometd {
            let result = self.comet(&target, &token, failures).await;
            if let Err(Failure::Reauth(_)) = &result {
                target.token_refused(&token).await;
            }
            return result;
        }
        let rpc = match Rpc::connect(&target, &token, &self.settings).await {
            Ok(rpc) => rpc,
            Err(e) => return Err(verdict(e)),
        };
        let (requests, receiver) = mpsc::channel(MAX_OUTSTANDING as usize + 1);
        let mut open = Open {
            rpc,
            requests,
            events: None,
            outstanding: first,
            heard: Instant::now(),
        };
        let result = self.converse(&mut open, receiver, failures).await;
        if let Err(Failure::Reauth(_)) = &result {
            target.token_refused(&token).await;
        }
        result
    }

    async fn wait_for_credit(&self) -> u32 {
        loop {
            let more = self.credit.more.notified();
            let n = self.credit.room(0);
            if n > 0 {
                return n;
            }
            more.await;
        }
    }

    async fn converse(
        &mut self,
        open: &mut Open,
        receiver: mpsc::Receiver<FetchRequest>,
        failures: &mut u32,
    ) -> Result<(), Failure> {
        self.request(open, open.outstanding).await?;
        let opened = self.answered(open, receiver).await?;
        self.server.mailbox.post(Event::StreamUp {
            stream: self.stream,
        });
        open.events = Some(opened);
        loop {
            let Some(response) = self.next(open).await? else {
                if open.outstanding == 0 {
                    return Ok(());
                }
                return Err(failure(&tonic::Status::unavailable(
                    "the stream was closed",
                )));
            };
            *failures = 0;
            self.deliver(open, response).await?;
            self.request_more(open).await?;
        }
    }

    /// The stream is open when the server's headers are there; some send them
    /// with the first event only, so credit is passed on meanwhile.
    async fn answered(
        &self,
        open: &mut Open,
        receiver: mpsc::Receiver<FetchRequest>,
    ) -> Result<Streaming<FetchResponse>, Failure> {
        let requests = open.requests.clone();
        let opening = open.rpc.subscribe(receiver);
        tokio::pin!(opening);
        let mut asked = open.outstanding;
        let result = loop {
            let more = self.credit.more.notified();
            tokio::select! {
                opened = &mut opening => break opened.map_err(|s| failure(&s)),
                () = more => {
                    let n = self.credit.room(asked);
                    asked += n;
                    if n > 0 {
                        send(&requests, self.later(n)).await?;
                    }
                }
                () = sleep_until(open.heard + SILENCE) => break Err(silent()),
            }
        };
        open.outstanding = asked;
        open.heard = Instant::now();
        result
    }

    /// The next response; passes credit on while waiting.
    async fn next(&self, open: &mut Open) -> Result<Option<FetchResponse>, Failure> {
        loop {
            self.request_more(open).await?;
            let Some(events) = open.events.as_mut() else {
                return Ok(None);
            };
            let more = self.credit.more.notified();
            let quiet = open.heard + SILENCE;
            tokio::select! {
                message = events.message() => {
                    open.heard = Instant::now();
                    return message.map_err(|s| failure(&s));
                }
                () = more => {}
                () = sleep_until(quiet), if open.outstanding > 0 => return Err(silent()),
            }
        }
    }

    async fn request_more(&self, open: &mut Open) -> Result<(), Failure> {
        let n = self.credit.room(open.outstanding);
        if n == 0 {
            return Ok(());
        }
        if open.outstanding == 0 {
            open.heard = Instant::now();
        }
        open.outstanding += n;
        send(&open.requests, self.later(n)).await
    }

    async fn request(&self, open: &Open, events: u32) -> Result<(), Failure> {
        let (preset, replay_id) = match &self.replay {
            Replay::Latest => (ReplayPreset::Latest, Vec::new()),
            Replay::Earliest => (ReplayPreset::Earliest, Vec::new()),
            Replay::After(id) => (ReplayPreset::Custom, id.clone()),
        };
        let first = FetchRequest {
            replay_preset: preset as i32,
            replay_id,
            ..self.later(events)
        };
        send(&open.requests, first).await
    }

    fn later(&self, events: u32) -> FetchRequest {
        FetchRequest {
            topic_name: self.topic.clone(),
            num_requested: i32::try_from(events).unwrap_or(0),
            ..FetchRequest::default()
        }
    }

    async fn deliver(&mut self, open: &mut Open, response: FetchResponse) -> Result<(), Failure> {
        let count = u32::try_from(response.events.len()).unwrap_or(u32::MAX);
        let mut batch = Vec::new();
        let mut latest = response.latest_replay_id;
        let mut silent_events = 0;
        for event in response.events {
            let changes = self.decode(&open.rpc, &event).await?;
            silent_events += u32::from(changes.is_empty());
            batch.extend(changes.into_iter().map(|change| StreamItem {
                change,
                replay_id: event.replay_id.clone(),
            }));
            latest = event.replay_id;
        }
        open.outstanding = open.outstanding.saturating_sub(count);
        // The session cannot give credit for what it never sees.
        self.credit.delivered(count.saturating_sub(silent_events));
        let latest_replay_id = (!latest.is_empty()).then_some(latest);
        if let Some(id) = &latest_replay_id {
            self.replay = Replay::After(id.clone());
        }
        self.server.mailbox.post(Event::Stream {
            stream: self.stream,
            batch,
            latest_replay_id,
        });
        Ok(())
    }

    /// The changes of an event. One that cannot be read is delivered as "read
    /// the object again": a stream must not stop, nor skip in silence.
    async fn decode(&self, rpc: &Rpc, event: &ConsumerEvent) -> Result<Vec<Change>, Failure> {
        let Some(inner) = &event.event else {
            return Ok(Vec::new());
        };
        let changes = match self.schemas.get(rpc, &inner.schema_id).await? {
            Ok(schema) => schema.decode(&inner.payload),
            Err(e) => Err(e),
        };
        Ok(changes.unwrap_or_else(|e| {
            self.note(Level::Warning, &format!("an event cannot be read: {e}"));
            vec![unreadable(&self.topic, &inner.id)]
        }))
    }
}

async fn send(to: &mpsc::Sender<FetchRequest>, request: FetchRequest) -> Result<(), Failure> {
    to.send(request)
        .await
        .map_err(|_| failure(&tonic::Status::unavailable("the stream was closed")))
}

fn silent() -> Failure {
    Failure::Again(timeout("the event stream gave no sign of life"))
}

/// Errors before the stream: those of log-in and connection.
fn verdict(error: RemoteError) -> Failure {
    use crm_core::model::ErrorClass;
    match error.class {
        ErrorClass::Retry | ErrorClass::Wait | ErrorClass::Reauth => Failure::Again(error),
        ErrorClass::Split
        | ErrorClass::FixData
        | ErrorClass::FixPermission
        | ErrorClass::FixMapping
        | ErrorClass::Gone
        | ErrorClass::Stop => Failure::Final(error),
    }
}

/// `/data/ContactChangeEvent` is about `Contact`, `/data/Emp__ChangeEvent`
/// about `Emp__c`; a channel of several objects is about none in particular.
fn object_of(topic: &str) -> String {
    let name = topic.rsplit('/').next().unwrap_or("");
    match name.strip_suffix("ChangeEvent") {
        Some(custom) if custom.ends_with("__") => format!("{custom}c"),
        Some(standard) => standard.to_string(),
        None => String::new(),
    }
}

/// How the identities of changes begin that stand for what could not be read.
pub const UNREADABLE: &str = "unreadable:";

fn unreadable(topic: &str, event_id: &str) -> Change {
    Change {
        object: object_of(topic),
        record_id: String::new(),
        kind: ChangeKind::Overflow,
        fields: Vec::new(),
        reread: Vec::new(),
        occurred_at: clock::wall(),
        identity: format!("{UNREADABLE}{event_id}"),
        actor: String::new(),
        mark: String::new(),
        by_others: false,
        transaction: None,
    }
}

/// Schemas by id; they never change.
#[derive(Default)]
pub(crate) struct Schemas(Mutex<HashMap<String, Arc<Schema>>>);

impl Schemas {
    /// The schema, fetched if needed. The inner error is one of the schema itself.
    async fn get(&self, rpc: &Rpc, id: &str) -> Result<Result<Arc<Schema>, RemoteError>, Failure> {
        if let Some(schema) = self.lock().get(id) {
            return Ok(Ok(Arc::clone(schema)));
        }
        let json = rpc.schema(id).await.map_err(|s| failure(&s))?;
        let schema = match Schema::parse(&json) {
            Ok(schema) => Arc::new(schema),
            Err(e) => return Ok(Err(e)),
        };
        let mut known = self.lock();
        if known.len() >= MAX_SCHEMAS {
            known.clear();
        }
        known.insert(id.to_string(), Arc::clone(&schema));
        Ok(Ok(schema))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Schema>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::object_of;

    #[test]
    fn a_topic_names_its_object() {
        assert_eq!(object_of("/data/ContactChangeEvent"), "Contact");
        assert_eq!(object_of("/data/Emp__ChangeEvent"), "Emp__c");
        assert_eq!(object_of("/data/ChangeEvents"), "");
        assert_eq!(object_of("/data/X__chn"), "");
    }
}
