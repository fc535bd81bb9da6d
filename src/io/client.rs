//! One HTTP exchange: a checked URL and a request in, an answer out, read whole or in pieces.
//!
//! No retries, no authorization, no budget here. Redirects are not followed: a
//! token must not travel to wherever an answer points. The proxy variables of
//! the environment are not read, for the same reason.

use std::sync::Once;
use std::time::Duration;

use bytes::Bytes;
use crm_core::http::{HttpRequest, HttpResponse, Method};
use crm_core::model::RemoteError;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::{Instant, timeout_at};

use crate::api::Settings;
use crate::errors::{from_body, from_send, is_write, local, timeout};

/// Idle connections are closed after this: shorter than what proxies and
/// firewalls commonly forget them after, so that a write does not go into one
/// that is dead.
const IDLE: Duration = Duration::from_secs(50);

/// A connection pool with one server's trust and our limits.
pub(crate) struct Client {
    http: reqwest::Client,
    request_timeout: Duration,
    read_timeout: Duration,
    max_body: usize,
}

impl Client {
    pub(crate) fn new(settings: &Settings, ca_pem: Option<&[u8]>) -> Result<Self, RemoteError> {
        use_ring();
        let mut builder = reqwest::Client::builder()
            .http1_only()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_millis(settings.connect_timeout_ms))
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(settings.max_in_flight_per_server as usize)
            .tcp_nodelay(true)
            .referer(false)
            .user_agent(concat!("pg_crm_sync/", env!("CARGO_PKG_VERSION")));
        if let Some(pem) = ca_pem {
            let certificates = reqwest::Certificate::from_pem_bundle(pem).map_err(bad_ca)?;
            if certificates.is_empty() {
                return Err(no_ca());
            }
            for certificate in certificates {
                builder = builder.add_root_certificate(certificate);
            }
        }
        Ok(Self {
            http: builder.build().map_err(bad_ca)?,
            request_timeout: Duration::from_millis(settings.request_timeout_ms),
            read_timeout: Duration::from_millis(settings.read_timeout_ms),
            max_body: settings.max_body_bytes,
        })
    }

    /// Sends a request and waits for the head of its answer. Any status is an
    /// `Ok` except a redirect.
    pub(crate) async fn open(&self, url: Url, request: HttpRequest) -> Result<Opened, RemoteError> {
        let limits = (self.request_timeout, self.read_timeout);
        self.exchange(url, request, limits).await
    }

    /// The same for an answer that may be silent for so long, and takes no longer.
    pub(crate) async fn open_within(
        &self,
        url: Url,
        request: HttpRequest,
        patience: Duration,
    ) -> Result<Opened, RemoteError> {
        self.exchange(url, request, (patience, patience)).await
    }

    async fn exchange(
        &self,
        url: Url,
        request: HttpRequest,
        (whole, silence): (Duration, Duration),
    ) -> Result<Opened, RemoteError> {
        let write = is_write(&request);
        let deadline = Instant::now() + whole;
        let method = match request.method {
            Method::Get => reqwest::Method::GET,
            Method::Post => reqwest::Method::POST,
            Method::Put => reqwest::Method::PUT,
            Method::Patch => reqwest::Method::PATCH,
            Method::Delete => reqwest::Method::DELETE,
        };
        let mut builder = self
            .http
            .request(method, url)
            .headers(header_map(&request.headers)?);
        if !request.body.is_empty() {
            builder = builder.body(request.body);
        } else if matches!(request.method, Method::Post | Method::Put | Method::Patch) {
            // Servers answer 411 to a POST that does not say that it is empty.
            builder = builder.header(reqwest::header::CONTENT_LENGTH, 0);
        }
        let answer = match timeout_at(deadline, builder.send()).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(e)) => return Err(from_send(e, write)),
            Err(_) => {
                let mut e = timeout("no answer in time");
                e.maybe_applied = write;
                return Err(e);
            }
        };
        let status = answer.status().as_u16();
        if matches!(status, 301 | 302 | 303 | 307 | 308) {
            let mut e = local(
                "redirect",
                format!("status {status} sends the request elsewhere"),
            );
            e.status = status;
            return Err(e);
        }
        Ok(Opened {
            answer,
            deadline,
            read_timeout: silence,
            max_body: self.max_body,
            write,
        })
    }
}

/// An answer whose body is still to be read.
pub(crate) struct Opened {
    answer: reqwest::Response,
    deadline: Instant,
    read_timeout: Duration,
    max_body: usize,
    write: bool,
}

impl Opened {
    /// Status and headers, without a body.
    pub(crate) fn head(&self) -> HttpResponse {
        let text = |v: &HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned();
        let headers = self.answer.headers().iter();
        HttpResponse {
            status: self.answer.status().as_u16(),
            headers: headers
                .map(|(n, v)| (n.as_str().to_string(), text(v)))
                .collect(),
            body: Vec::new(),
        }
    }

    /// The next piece of the body, `None` at its end; it may come as late as the
    /// longest silence allowed, however long the body takes as a whole.
    pub(crate) async fn piece(&mut self) -> Result<Option<Bytes>, RemoteError> {
        self.piece_by(Instant::now() + self.read_timeout).await
    }

    async fn piece_by(&mut self, at: Instant) -> Result<Option<Bytes>, RemoteError> {
        match timeout_at(at, self.answer.chunk()).await {
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(e)) => Err(from_body(e, self.write)),
            Err(_) => {
                let mut e = timeout("the answer stopped arriving");
                e.maybe_applied = self.write;
                Err(e)
            }
        }
    }

    /// Reads the body to its end, within the limits of size and time.
    pub(crate) async fn whole(mut self) -> Result<HttpResponse, RemoteError> {
        let head = self.head();
        let known = self.answer.content_length().unwrap_or(0);
        let mut body = Vec::with_capacity(usize::try_from(known).unwrap_or(0).min(self.max_body));
        loop {
            let next = self.deadline.min(Instant::now() + self.read_timeout);
            let Some(piece) = self.piece_by(next).await? else {
                return Ok(HttpResponse { body, ..head });
            };
            if body.len() + piece.len() > self.max_body {
                return Err(too_large(head.status, self.max_body, self.write));
            }
            body.extend_from_slice(&piece);
        }
    }
}

/// rustls wants to know its cryptography once per process.
pub(crate) fn use_ring() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error means that one is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

fn header_map(headers: &[(String, String)]) -> Result<HeaderMap, RemoteError> {
    let mut map = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let parsed = HeaderName::try_from(name.as_str())
            .ok()
            .zip(HeaderValue::try_from(value.as_str()).ok());
        let Some((name, mut value)) = parsed else {
            // The value may be a token read from a file with a stray line break.
            return Err(local(
                "bad_credential",
                format!("header {name} has characters that cannot be sent"),
            ));
        };
        value.set_sensitive(name == reqwest::header::AUTHORIZATION);
        map.append(name, value);
    }
    Ok(map)
}

fn too_large(status: u16, max: usize, write: bool) -> RemoteError {
    let mut e = local(
        "body_too_large",
        format!("the answer is longer than {max} bytes"),
    );
    e.status = status;
    e.maybe_applied = write;
    e
}

fn bad_ca(error: reqwest::Error) -> RemoteError {
    local(
        "ca_file",
        format!("certificates cannot be used: {}", error.without_url()),
    )
}

fn no_ca() -> RemoteError {
    local("ca_file", "no certificate in the given file")
}
