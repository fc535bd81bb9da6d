//! A made-up CRM for tests: its connector, its server, and waiting helpers.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "each test file uses its part"
)]

pub mod bus;
mod connector;
mod server;

use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use crm_core::connectors::{Credential, ServerConfig};
use crm_core::http::{HttpRequest, HttpResponse, Method, Purpose};
use crm_core::model::RemoteError;
use crm_core::secret::Secret;
use crm_io::{Command, Event, IoThread, ServerSpec, Settings, Tag};

pub use connector::Fake;
pub use server::{FakeServer, Request, answer};

/// Longest wait of any test for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Settings with short timeouts.
pub fn impatient() -> Settings {
    Settings {
        connect_timeout_ms: 400,
        request_timeout_ms: 500,
        read_timeout_ms: 300,
        max_body_bytes: 100_000,
        max_wait_ms: 5_000,
        ..Settings::default()
    }
}

/// Server 1 at an address, with a fixed token.
pub fn spec(base_url: &str) -> ServerSpec {
    ServerSpec {
        id: 1,
        connector: &Fake,
        config: ServerConfig {
            base_url: base_url.to_string(),
            ..ServerConfig::default()
        },
        credential: Credential::Token {
            token: Secret::new("fixed"),
        },
        credential_file: None,
        allowed_hosts: vec!["127.0.0.1".into()],
        ca_pem: None,
        webhook: None,
    }
}

/// The same with a log-in.
pub fn spec_with_login(base_url: &str) -> ServerSpec {
    ServerSpec {
        credential: Credential::ClientCredentials {
            client_id: "app".into(),
            client_secret: Secret::new("canary-secret"),
        },
        ..spec(base_url)
    }
}

/// A thread that knows server 1.
pub fn started(settings: Settings, spec: ServerSpec) -> IoThread {
    let io = IoThread::start(settings).unwrap();
    submit(&io, Command::Configure(Box::new(spec)));
    io
}

pub fn submit(io: &IoThread, command: Command) {
    io.submit(command).map_err(|_| "full").unwrap();
}

pub fn get(target: &str) -> HttpRequest {
    HttpRequest {
        method: Method::Get,
        target: target.into(),
        headers: Vec::new(),
        body: Vec::new(),
        purpose: Purpose::ReadBack,
    }
}

pub fn call(job: u64, request: HttpRequest) -> Command {
    Command::Call {
        job,
        server: 1,
        tag: Tag::default(),
        request,
    }
}

/// The next event but usage, waited for on the wake socket alone.
pub fn next_event(io: &IoThread) -> Event {
    let end = Instant::now() + PATIENCE;
    loop {
        match io.try_recv() {
            Some(Event::Usage { .. } | Event::Limits { .. }) => {}
            Some(event) => return event,
            None => {
                let left = end.saturating_duration_since(Instant::now());
                assert!(readable(io.wake_fd(), left), "no event within {PATIENCE:?}");
            }
        }
    }
}

/// The answer to a call.
pub fn next_answer(io: &IoThread) -> Result<HttpResponse, RemoteError> {
    match next_event(io) {
        Event::Answer { result, .. } => result,
        other => panic!("not an answer: {other:?}"),
    }
}

/// Calls and waits for the answer.
pub fn ask(io: &IoThread, request: HttpRequest) -> Result<HttpResponse, RemoteError> {
    submit(io, call(1, request));
    next_answer(io)
}

/// Whether a descriptor is readable within a time.
pub fn readable(fd: RawFd, within: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let ms = i32::try_from(within.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one live pollfd, and the count says so.
    unsafe { libc::poll(&raw mut poll, 1, ms) == 1 }
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
