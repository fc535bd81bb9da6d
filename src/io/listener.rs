//! Webhook listener: raw bytes in, the session's verdict out.
//!
//! It keeps limits on everything a caller controls, and answers within the CRM's
//! patience whatever the session does: a 503 is delivered again. What a webhook
//! means is the session's business.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use crm_core::http::Delivery;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{ALLOW, CONNECTION, HOST, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::api::{Content, Event, Level, ListenerSettings};
use crate::clock;
use crate::hooks::Hooks;
use crate::mailbox::Mailbox;

/// Longest name in `/webhook/<name>`: that of an SQL identifier.
const MAX_NAME: usize = 63;
/// The CRMs give up after five seconds.
const LONGEST_MS: u64 = 4_900;
/// Request line and headers, together.
const MAX_HEAD: usize = 16 << 10;
/// Header lines.
const MAX_HEADERS: usize = 64;
/// Bodies that wait for the session, together, in units of KiB.
const MAX_WAITING_KIB: usize = 16 << 10;

type Answer = (u16, String);

/// Deliveries that wait for the session's word.
#[derive(Default)]
pub(crate) struct Replies {
    waiting: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
    next: AtomicU64,
}

impl Replies {
    /// Passes the session's word on; a late one is dropped, its caller is gone.
    pub(crate) fn answer(&self, token: u64, status: u16, body: String) {
        if let Some(sender) = self.lock().remove(&token) {
            let _ = sender.send((status, body));
        }
    }

    fn expect(self: &Arc<Self>) -> Expected {
        let token = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, receiver) = oneshot::channel();
        self.lock().insert(token, sender);
        Expected {
            replies: Arc::clone(self),
            token,
            receiver,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Answer>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One wait, forgotten when the caller hangs up or time is over.
struct Expected {
    replies: Arc<Replies>,
    token: u64,
    receiver: oneshot::Receiver<Answer>,
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.replies.lock().remove(&self.token);
    }
}

/// A bound listener that does not serve yet.
pub(crate) struct Listener {
    socket: TcpListener,
    addr: SocketAddr,
    context: Arc<Context>,
}

struct Context {
    settings: ListenerSettings,
    timeout: Duration,
    mailbox: Arc<Mailbox>,
    replies: Arc<Replies>,
    hooks: Arc<Hooks>,
    places: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl Listener {
    /// Binds the address.
    ///
    /// # Errors
    /// Not a loopback address, or the system refuses it.
    pub(crate) fn bind(
        settings: ListenerSettings,
        mailbox: Arc<Mailbox>,
        replies: Arc<Replies>,
        hooks: Arc<Hooks>,
    ) -> std::io::Result<Self> {
        if !settings.addr.ip().is_loopback() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                format!(
                    "{} is not a loopback address: put a proxy with TLS in front of the listener",
                    settings.addr
                ),
            ));
        }
        let socket = TcpListener::bind(settings.addr)?;
        socket.set_nonblocking(true)?;
        let addr = socket.local_addr()?;
        let places = settings.max_concurrent.max(1);
        let context = Context {
            timeout: Duration::from_millis(settings.timeout_ms.min(LONGEST_MS)),
            mailbox,
            replies,
            hooks,
            places: Arc::new(Semaphore::new(places)),
            memory: Arc::new(Semaphore::new(MAX_WAITING_KIB)),
            connections: Arc::new(Semaphore::new(places * 2 + 8)),
            settings,
        };
        Ok(Self {
            socket,
            addr,
            context: Arc::new(context),
        })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Accepts connections from now on.
    ///
    /// # Errors
    /// The runtime refuses the socket.
    pub(crate) fn serve(self) -> std::io::Result<()> {
        let socket = tokio::net::TcpListener::from_std(self.socket)?;
        tokio::spawn(accept(socket, self.context));
        Ok(())
    }
}

async fn accept(socket: tokio::net::TcpListener, context: Arc<Context>) {
    loop {
        // Beyond the bound, callers wait in the system's backlog.
        let Ok(place) = Arc::clone(&context.connections).acquire_owned().await else {
            return;
        };
        match socket.accept().await {
            Ok((stream, _)) => {
                // Answers are small and awaited; a failure only costs time.
                let _ = stream.set_nodelay(true);
                tokio::spawn(converse(stream, Arc::clone(&context), place));
            }
            Err(e) => {
                // Out of descriptors or memory: others must end first.
                let message = format!("webhook listener cannot accept: {e}");
                context.mailbox.note(Level::Warning, message);
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn converse(
    stream: tokio::net::TcpStream,
    context: Arc<Context>,
    _place: OwnedSemaphorePermit,
) {
    let timeout = context.timeout;
    let service = hyper::service::service_fn(move |request| {
        let context = Arc::clone(&context);
        async move { Ok::<_, Infallible>(respond(request, &context).await) }
    });
    // A broken or slow caller is not worth a log line each.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(timeout)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn respond(request: Request<Incoming>, context: &Context) -> Response<Full<Bytes>> {
    let deadline = Instant::now() + context.timeout;
    if !is_webhook_path(request.uri().path()) {
        return closing(StatusCode::NOT_FOUND, "no such path");
    }
    if request.method() != Method::POST {
        let mut response = closing(StatusCode::METHOD_NOT_ALLOWED, "only POST");
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("POST"));
        return response;
    }
    let Ok(_place) = context.places.try_acquire() else {
        return closing(StatusCode::SERVICE_UNAVAILABLE, "busy");
    };
    let (head, body) = request.into_parts();
    let body = match read_body(body, context.settings.max_body_bytes, deadline).await {
        Ok(body) => body,
        Err((status, text)) => {
            let name = head.uri.path().rsplit('/').next().unwrap_or_default();
            context.mailbox.refused(name);
            return closing(status, text);
        }
    };
    let kib = u32::try_from(body.len() / 1024 + 1).unwrap_or(u32::MAX);
    let Ok(_memory) = context.memory.try_acquire_many(kib) else {
        return closing(StatusCode::SERVICE_UNAVAILABLE, "busy");
    };
    let mut expected = context.replies.expect();
    let name = head.uri.path().rsplit('/').next().unwrap_or_default();
    let opened = context
        .hooks
        .open(name, delivery(&head, &body), clock::wall());
    context.mailbox.post(Event::Webhook {
        token: expected.token,
        name: name.to_owned(),
        content: match opened {
            Ok(opened) => Content::Opened(opened),
            Err(delivery) => Content::Raw(delivery),
        },
    });
    match timeout_at(deadline, &mut expected.receiver).await {
        Ok(Ok((status, text))) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            reply(status, text)
        }
        Ok(Err(_)) | Err(_) => reply(StatusCode::SERVICE_UNAVAILABLE, "not now".into()),
    }
}

/// The whole body, or the answer to one that is too large, incomplete or too slow.
async fn read_body(
    body: Incoming,
    max: usize,
    deadline: Instant,
) -> Result<Bytes, (StatusCode, &'static str)> {
    if body.size_hint().lower() > max as u64 {
        return Err((StatusCode::PAYLOAD_TOO_LARGE, "body too large"));
    }
    match timeout_at(deadline, Limited::new(body, max).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => {
            Err((StatusCode::PAYLOAD_TOO_LARGE, "body too large"))
        }
        Ok(Err(_)) => Err((StatusCode::BAD_REQUEST, "body incomplete")),
        Err(_) => Err((StatusCode::REQUEST_TIMEOUT, "body too slow")),
    }
}

fn is_webhook_path(path: &str) -> bool {
    path.strip_prefix("/webhook/")
        .is_some_and(|name| (1..=MAX_NAME * 3).contains(&name.len()) && !name.contains('/'))
}

fn delivery(head: &hyper::http::request::Parts, body: &Bytes) -> Delivery {
    let text = |v: &HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned();
    let host = head.headers.get(HOST).map(text).unwrap_or_default();
    let scheme = match head.headers.get("x-forwarded-proto") {
        Some(v) if v.as_bytes().eq_ignore_ascii_case(b"https") => "https",
        _ => "http",
    };
    let path = head.uri.path_and_query().map_or("/", |p| p.as_str());
    Delivery {
        method: head.method.as_str().to_string(),
        uri: format!("{scheme}://{host}{path}"),
        headers: head
            .headers
            .iter()
            .map(|(n, v)| (n.as_str().to_string(), text(v)))
            .collect(),
        body: body.to_vec(),
    }
}

fn reply(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}

/// For requests whose body was not read: the connection is of no further use.
fn closing(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = reply(status, text.to_string());
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
