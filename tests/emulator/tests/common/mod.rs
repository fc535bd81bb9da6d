//! A running emulator and a receiver of webhooks, for tests from outside.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, http::StatusCode};
use serde_json::{Value, json};

/// How long anything may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A child process, stopped when dropped.
pub(crate) struct Emulator {
    child: Child,
    pub http: String,
    pub ready: Value,
    client: reqwest::Client,
}

/// Status, selected headers and body of an answer.
pub(crate) struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Emulator {
    /// Starts one on free ports and waits for its line of addresses.
    pub(crate) fn start(arguments: &[&str]) -> Emulator {
        let free = "127.0.0.1:0";
        let ports = [
            "--listen",
            free,
            "--tls-listen",
            free,
            "--pubsub-listen",
            free,
            "--pubsub-plain",
            free,
        ];
        let mut child = Command::new(env!("CARGO_BIN_EXE_crm-emulator"))
            .args(ports)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the emulator starts");
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().expect("stdout is piped"));
        out.read_line(&mut line).expect("a line of addresses");
        let ready: Value = serde_json::from_str(&line).expect("JSON");
        // No crypto is used: the provider is asked for all the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Emulator {
            child,
            http: ready["http"].as_str().expect("an address").to_owned(),
            ready,
            client: reqwest::Client::builder()
                .no_proxy()
                .timeout(PATIENCE)
                .build()
                .expect("a client"),
        }
    }

    /// A request with the service key.
    pub(crate) async fn call(&self, method: &str, path: &str, body: Value) -> Answer {
        self.call_as("pat-na1-emulator", method, path, body).await
    }

    pub(crate) async fn call_as(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Value,
    ) -> Answer {
        let method = method.parse().expect("a method");
        let mut request = self
            .client
            .request(method, format!("{}{path}", self.http))
            .header("authorization", format!("Bearer {token}"));
        if !body.is_null() {
            request = request.body(body.to_string());
        }
        let response = request.send().await.expect("an answer");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.expect("a body");
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Answer {
            status,
            headers,
            body,
        }
    }

    /// A request whose answer may be cut; the error says how.
    pub(crate) async fn try_call(
        &self,
        method: &str,
        path: &str,
    ) -> Result<String, reqwest::Error> {
        let method = method.parse().expect("a method");
        self.client
            .request(method, format!("{}{path}", self.http))
            .header("authorization", "Bearer pat-na1-emulator")
            .body("{}")
            .send()
            .await?
            .text()
            .await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, Value::Null).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.call("POST", path, body).await
    }

    /// An admin call that must succeed.
    pub(crate) async fn admin(&self, path: &str, body: Value) -> Value {
        let answer = self.post(&format!("/_admin/{path}"), body).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        answer.body
    }

    /// A HubSpot search; the found ids in order.
    pub(crate) async fn search(&self, body: Value) -> (u64, Vec<String>) {
        let answer = self.post("/crm/v3/objects/contacts/search", body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let total = answer.body["total"].as_u64().expect("a total");
        (total, ids(&answer.body))
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The ids of `results`.
pub(crate) fn ids(body: &Value) -> Vec<String> {
    let results = body["results"].as_array().expect("results");
    results
        .iter()
        .map(|r| r["id"].as_str().expect("an id").to_owned())
        .collect()
}

/// Asks again until `done` holds, or fails with `what`.
pub(crate) async fn wait_until<F: AsyncFnMut() -> bool>(what: &str, mut done: F) {
    let end = Instant::now() + PATIENCE;
    while !done().await {
        assert!(Instant::now() < end, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// One webhook request.
#[derive(Clone)]
pub(crate) struct Delivery {
    pub headers: HeaderMap,
    pub body: Bytes,
    pub events: Vec<Value>,
}

#[derive(Default)]
struct Inbox {
    deliveries: Mutex<Vec<Delivery>>,
    status: AtomicU16,
    hold_ms: AtomicUsize,
    open: AtomicUsize,
    most: AtomicUsize,
}

/// A webhook receiver on loopback.
#[derive(Clone)]
pub(crate) struct Receiver {
    pub url: String,
    inbox: Arc<Inbox>,
}

impl Receiver {
    pub(crate) async fn start() -> Receiver {
        let inbox = Arc::new(Inbox::default());
        inbox.status.store(200, Ordering::SeqCst);
        let app = Router::new().fallback(take).with_state(Arc::clone(&inbox));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let url = format!("http://{}/hook", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Receiver { url, inbox }
    }

    /// What it answers from now on.
    pub(crate) fn answer(&self, status: u16) {
        self.inbox.status.store(status, Ordering::SeqCst);
    }

    /// How long it thinks before it answers.
    pub(crate) fn hold(&self, ms: usize) {
        self.inbox.hold_ms.store(ms, Ordering::SeqCst);
    }

    pub(crate) fn deliveries(&self) -> Vec<Delivery> {
        self.inbox
            .deliveries
            .lock()
            .expect("no panic inside")
            .clone()
    }

    pub(crate) fn events(&self) -> Vec<Value> {
        self.deliveries()
            .into_iter()
            .flat_map(|d| d.events)
            .collect()
    }

    /// The most requests that were open at once.
    pub(crate) fn most_open(&self) -> usize {
        self.inbox.most.load(Ordering::SeqCst)
    }

    /// Waits for at least `count` events and answers them.
    pub(crate) async fn expect(&self, count: usize) -> Vec<Value> {
        wait_until(&format!("{count} events arrived"), async || {
            self.events().len() >= count
        })
        .await;
        self.events()
    }

    pub(crate) fn clear(&self) {
        self.inbox
            .deliveries
            .lock()
            .expect("no panic inside")
            .clear();
    }
}

async fn take(State(inbox): State<Arc<Inbox>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let open = inbox.open.fetch_add(1, Ordering::SeqCst) + 1;
    inbox.most.fetch_max(open, Ordering::SeqCst);
    let hold = inbox.hold_ms.load(Ordering::SeqCst) as u64;
    tokio::time::sleep(Duration::from_millis(hold)).await;
    let events = serde_json::from_slice::<Vec<Value>>(&body).unwrap_or_default();
    inbox
        .deliveries
        .lock()
        .expect("no panic inside")
        .push(Delivery {
            headers,
            body,
            events,
        });
    inbox.open.fetch_sub(1, Ordering::SeqCst);
    StatusCode::from_u16(inbox.status.load(Ordering::SeqCst)).expect("a status")
}

/// `{"object":…,"id":…,"fields":…}` for the admin interface.
pub(crate) fn edit(id: &str, fields: Value) -> Value {
    json!({"object": "contacts", "id": id, "fields": fields})
}
