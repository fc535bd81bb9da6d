//! What crosses the thread boundary: settings, commands in, events out.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::hooks::Opened;
use crm_core::budget::{Budget, Exhausted, Latency};
use crm_core::connectors::{Connector, Credential, LimitHint, ServerConfig};
use crm_core::http::{Delivery, HttpRequest, HttpResponse, Purpose};
use crm_core::model::{
    Change, FieldType, Millis, Page, RemoteError, Write, WriteKind, WriteResult,
};
use crm_core::secret::Secret;

/// Limits of the thread. All are bounds, none is a schedule.
#[derive(Clone, Debug)]
pub struct Settings {
    /// TCP and TLS must be up within this.
    pub connect_timeout_ms: u64,
    /// From sending a request to the last byte of its answer.
    pub request_timeout_ms: u64,
    /// Most silence between two pieces of an answer's body.
    pub read_timeout_ms: u64,
    /// Longest answer, after decompression.
    pub max_body_bytes: usize,
    /// Requests on the wire per server.
    pub max_in_flight_per_server: u32,
    /// Calls, fetches and pushes accepted and not yet taken back as events.
    pub max_outstanding: usize,
    /// Bytes of answers that wait to be taken; beyond it no request is started.
    pub max_waiting_bytes: usize,
    /// Longest time that a job waits for budget, a pause or a lock before it is
    /// answered with class `Wait`.
    pub max_wait_ms: i64,
    /// Webhook listener, if wanted.
    pub listener: Option<ListenerSettings>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connect_timeout_ms: 10_000,
            request_timeout_ms: 60_000,
            read_timeout_ms: 30_000,
            max_body_bytes: 16 << 20,
            max_in_flight_per_server: 16,
            max_outstanding: 512,
            max_waiting_bytes: 8 << 20,
            max_wait_ms: 30_000,
            listener: None,
        }
    }
}

/// Limits of the webhook listener.
#[derive(Clone, Debug)]
pub struct ListenerSettings {
    /// Where to listen. Must be a loopback address: a proxy with TLS stands in front.
    pub addr: SocketAddr,
    /// Longest body; a longer one is answered 413.
    pub max_body_bytes: usize,
    /// Time for the session to reply; after it the caller gets 503 and comes
    /// again. At most 4,900: the CRM gives up after five seconds.
    pub timeout_ms: u64,
    /// Deliveries waiting for a reply; more are answered 503.
    pub max_concurrent: usize,
}

impl ListenerSettings {
    /// The usual limits at an address.
    pub fn at(addr: SocketAddr) -> Self {
        Self {
            addr,
            max_body_bytes: 1 << 20,
            timeout_ms: 4_500,
            max_concurrent: 64,
        }
    }
}

/// The webhooks of a server.
#[derive(Clone)]
pub struct WebhookSpec {
    /// The server's name, the last part of their path.
    pub name: String,
    /// What they are signed with.
    pub secret: Secret,
    /// What the CRM calls, where a proxy stands in front of the listener.
    pub url: Option<String>,
}

/// A server as the thread needs to know it. Sending it again replaces it:
/// requests on the wire finish under the old one.
#[derive(Clone)]
pub struct ServerSpec {
    /// Key in commands and events.
    pub id: u32,
    /// How to speak to it.
    pub connector: &'static dyn Connector,
    /// Where it is.
    pub config: ServerConfig,
    /// How to log in.
    pub credential: Credential,
    /// The file that `credential` was read from: a refresh token that the CRM
    /// replaces is written back there. `None` keeps it in memory only.
    pub credential_file: Option<PathBuf>,
    /// Hosts that may be called: whole names or addresses (optionally with
    /// `:port`), or suffixes that start with a dot. Vendor hosts are not implied.
    pub allowed_hosts: Vec<String>,
    /// Certificates (PEM) trusted besides the system's.
    pub ca_pem: Option<Vec<u8>>,
    /// How its webhooks are recognised; `None` leaves them to the session.
    pub webhook: Option<WebhookSpec>,
}

impl ServerSpec {
    /// Whether the other one says the same, credentials aside.
    pub(crate) fn same_account(&self, other: &Self) -> bool {
        self.id == other.id
            && self.connector.name() == other.connector.name()
            && self.config == other.config
            && self.credential_file == other.credential_file
            && self.allowed_hosts == other.allowed_hosts
            && self.ca_pem == other.ca_pem
    }
}

impl std::fmt::Debug for ServerSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerSpec")
            .field("id", &self.id)
            .field("type", &self.connector.name())
            .finish_non_exhaustive()
    }
}

/// Where a stream starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replay {
    /// Only what comes from now on.
    Latest,
    /// All that is kept.
    Earliest,
    /// What follows this replay id.
    After(Vec<u8>),
}

/// Pages of a list that are fetched without being asked for one by one: while the
/// caller is busy with a page, the next are on their way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Follow {
    /// So many beyond the first, at most.
    pub pages: u32,
    /// A cursor behind which nothing is wanted, in the order of
    /// [`crm_core::ranges::id_order`].
    pub end: Option<String>,
}

/// Whose call it is: what it is counted for, and how soon it is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tag {
    /// The mirror that it is for; 0 for none.
    pub mirror: i32,
    /// How soon.
    pub latency: Latency,
}

/// What was asked, as usage is counted: by purpose and endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    /// Purpose.
    pub purpose: Purpose,
    /// Method and path without versions and ids.
    pub endpoint: Arc<str>,
}

impl Asked {
    /// What a request asks.
    pub fn by(request: &HttpRequest) -> Self {
        Self {
            purpose: request.purpose,
            endpoint: request.endpoint().into(),
        }
    }
}

/// Work for the thread.
#[derive(Clone, Debug)]
pub enum Command {
    /// Make a server known, or replace it.
    Configure(Box<ServerSpec>),
    /// Replace what is configured of a server's calls.
    Budget {
        /// Server.
        server: u32,
        /// Budget.
        budget: Box<Budget>,
    },
    /// Forget a server: its queued jobs are answered, its streams end.
    Forget(u32),
    /// Send a request; its answer comes as [`Event::Answer`].
    Call {
        /// The caller's number for it.
        job: u64,
        /// Server.
        server: u32,
        /// Whose it is.
        tag: Tag,
        /// Request, without authorization.
        request: HttpRequest,
    },
    /// Send a request whose answer is a page, parsed here; comes as [`Event::Fetched`].
    Fetch {
        /// The caller's number for it.
        job: u64,
        /// Server.
        server: u32,
        /// Whose it is.
        tag: Tag,
        /// Object type.
        object: String,
        /// Requested fields, the order of the values.
        fields: Arc<Vec<(String, FieldType)>>,
        /// Request, without authorization.
        request: HttpRequest,
        /// For a list: what follows its first page.
        follow: Option<Follow>,
    },
    /// Send a batch of writes; comes as [`Event::Pushed`], one result per write.
    Push {
        /// The caller's number for it.
        job: u64,
        /// Server.
        server: u32,
        /// Whose it is.
        tag: Tag,
        /// Object type.
        object: String,
        /// What the writes do.
        kind: WriteKind,
        /// Our unique field, where the account has it.
        unique_field: Option<String>,
        /// The writes.
        writes: Vec<Write>,
    },
    /// Open a stream of changes. At most a hundred events are under way or
    /// waiting for [`Command::Credit`].
    Subscribe {
        /// The caller's number for it.
        stream: u64,
        /// Server.
        server: u32,
        /// Topic (`/data/ContactChangeEvent`).
        topic: String,
        /// Where to start.
        replay: Replay,
    },
    /// Close a stream; no further event of it comes after those already waiting.
    Unsubscribe {
        /// Stream.
        stream: u64,
    },
    /// So many events are committed: as many others may come. Too much credit
    /// is forgotten, it never lifts the bound of a hundred.
    Credit {
        /// Stream.
        stream: u64,
        /// Events.
        events: u32,
    },
    /// Answer a webhook.
    Reply {
        /// Token of [`Event::Webhook`].
        token: u64,
        /// HTTP status.
        status: u16,
        /// Body, plain text.
        body: String,
    },
}

/// A change with its place in the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamItem {
    /// The change.
    pub change: Change,
    /// Replay id of the event that carried it.
    pub replay_id: Vec<u8>,
}

/// Weight of a [`Event::Note`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// For whoever debugs.
    Debug,
    /// Worth a line.
    Info,
    /// An operator should look.
    Warning,
}

/// What a webhook brought.
#[derive(Debug)]
pub enum Content {
    /// Signature and body were looked at, by what is known of the server.
    Opened(Opened),
    /// The request as it came. Scheme and host of `uri` are those that the proxy
    /// passed on, to be replaced where a public URL is configured.
    Raw(Delivery),
}

/// News from the thread.
#[derive(Debug)]
pub enum Event {
    /// Outcome of a [`Command::Call`]: `Ok` is a whole answer with a 2xx status.
    Answer {
        /// The caller's number.
        job: u64,
        /// Server.
        server: u32,
        /// Answer, or what the connector made of it.
        result: Result<HttpResponse, RemoteError>,
    },
    /// Outcome of a [`Command::Fetch`].
    Fetched {
        /// The caller's number.
        job: u64,
        /// Server.
        server: u32,
        /// What was asked.
        asked: Asked,
        /// Page.
        result: Result<Page, RemoteError>,
        /// The next page of the list will come as the same job.
        following: bool,
    },
    /// Outcome of a [`Command::Push`].
    Pushed {
        /// The caller's number.
        job: u64,
        /// Server.
        server: u32,
        /// What was asked.
        asked: Asked,
        /// One per write, in their order.
        results: Vec<WriteResult>,
    },
    /// A stream is connected (again).
    StreamUp {
        /// Stream.
        stream: u64,
    },
    /// Changes in order; a keepalive is an empty batch with `latest_replay_id`.
    /// One event may carry several changes: they share a replay id, so the
    /// events to credit are the distinct replay ids.
    Stream {
        /// Stream.
        stream: u64,
        /// Changes.
        batch: Vec<StreamItem>,
        /// Everything up to here was delivered.
        latest_replay_id: Option<Vec<u8>>,
    },
    /// A stream is over: bounded reconnects failed, or it cannot go on.
    StreamEnded {
        /// Stream.
        stream: u64,
        /// Why.
        error: RemoteError,
        /// The replay id is no longer kept: start at the earliest and reconcile.
        replay_expired: bool,
    },
    /// A webhook waits for its [`Command::Reply`].
    Webhook {
        /// Token to answer it.
        token: u64,
        /// Last part of its path: the server's name.
        name: String,
        /// What was delivered.
        content: Content,
    },
    /// Webhooks that the listener refused by itself since the last such event:
    /// too large, incomplete or too slow.
    Refused {
        /// Last part of their path.
        name: String,
        /// How many.
        count: u32,
    },
    /// Calls since the last such event, per server, mirror, purpose and endpoint.
    Usage {
        /// Server.
        server: u32,
        /// Mirror; 0 for none.
        mirror: i32,
        /// What was asked.
        asked: Asked,
        /// Requests sent.
        calls: u32,
        /// Of these, refused for the budget.
        limited: u32,
        /// Of these, without a useful answer for another reason.
        failed: u32,
        /// Bytes received, decompressed.
        bytes: u64,
    },
    /// What a CRM said of its limits since the last such event.
    Limits {
        /// Server.
        server: u32,
        /// Its newest word.
        hint: LimitHint,
        /// What it last refused calls for, and until when, by the wall clock.
        refused: Option<(Exhausted, Millis)>,
    },
    /// Something to log.
    Note {
        /// Weight.
        level: Level,
        /// Text without secrets or row values.
        message: String,
    },
}

/// Too much is outstanding: take events first, then submit again.
#[derive(Debug)]
pub struct Full<T>(pub T);
