//! From an HTTP request to a [`Call`], through authentication and limits, and back.

use std::sync::{Arc, atomic::Ordering};

use axum::{
    body::Body,
    extract::{FromRequestParts, RawPathParams, Request, State as Extract},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts},
    response::Response,
    routing::{MethodFilter, MethodRouter, on},
};
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{
    State,
    auth::Grant,
    error::ApiError,
    limits::{Exceeded, Standing},
    model::Table,
    write::Origin,
};
use crate::clock::mix;

/// Largest body taken.
const MAX_BODY: usize = 16 << 20;
/// Longest request target; HubSpot answers 414 beyond.
const MAX_TARGET: usize = 16_000;

/// Query parameters in order; names may repeat, values may be comma lists.
#[derive(Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(text: &str) -> Query {
        let pairs = text.split('&').filter(|p| !p.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        });
        Query(pairs.collect())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|p| p.0 == name).map(|p| p.1.as_str())
    }

    /// All values of repeated keys and comma lists.
    pub(crate) fn list<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |p| p.0 == name)
            .flat_map(|p| p.1.split(','))
            .map(str::trim)
            .filter(|v| !v.is_empty())
    }

    /// `true` and `True` are true.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|v| v.eq_ignore_ascii_case("true"))
    }

    /// A number, or the error for a value that is none.
    pub(crate) fn number(&self, name: &str, default: u64) -> Result<u64, ApiError> {
        match self.get(name).filter(|v| !v.is_empty()) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| {
                ApiError::validation(format!("Invalid value for parameter {name}: `{text}`"))
            }),
        }
    }
}

/// Undoes percent and plus encoding.
pub(crate) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |i: usize| (*bytes.get(i)? as char).to_digit(16);
        match bytes[at] {
            b'+' => out.push(b' '),
            b'%' => {
                if let (Some(high), Some(low)) = (hex(at + 1), hex(at + 2)) {
                    out.push((high * 16 + low) as u8);
                    at += 2;
                } else {
                    out.push(b'%');
                }
            }
            other => out.push(other),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// An authenticated request.
pub(crate) struct Call<'a> {
    pub(crate) state: &'a State,
    params: Vec<(String, String)>,
    pub(crate) query: Query,
    pub(crate) body: Bytes,
    pub(crate) headers: HeaderMap,
    /// Path and query as received.
    pub(crate) target: String,
}

/// What a handler answers.
pub(crate) type Outcome = Result<Reply, ApiError>;

/// A handler: runs without waiting for anything.
pub(crate) type Handler = fn(&Call<'_>) -> Outcome;

/// A successful answer.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn json(status: u16, body: Vec<u8>) -> Reply {
        Reply { status, body }
    }

    pub(crate) fn value(status: u16, body: &Value) -> Reply {
        Reply::json(status, body.to_string().into_bytes())
    }

    pub(crate) fn empty(status: u16) -> Reply {
        Reply::json(status, Vec::new())
    }
}

impl<'a> Call<'a> {
    /// A path parameter, decoded.
    pub(crate) fn param(&self, name: &str) -> &str {
        self.params
            .iter()
            .find(|p| p.0 == name)
            .map_or("", |p| p.1.as_str())
    }

    /// The object type named by a path parameter.
    pub(crate) fn table(&self, param: &str) -> Result<&'a Table, ApiError> {
        self.state.table(self.param(param))
    }

    /// The body as a JSON object.
    pub(crate) fn json(&self) -> Result<Map<String, Value>, ApiError> {
        match serde_json::from_slice(&self.body) {
            Ok(Value::Object(map)) => Ok(map),
            Ok(other) => Err(ApiError::validation(format!(
                "Invalid input JSON on line 1, column 1: expected an object, got {other}"
            ))),
            Err(error) => Err(ApiError::validation(format!(
                "Invalid input JSON on line {}, column {}: {error}",
                error.line(),
                error.column()
            ))),
        }
    }

    /// Who the call's writes belong to.
    pub(crate) fn origin(&self) -> Origin {
        self.state.app_origin()
    }

    /// Scheme and host the client used, for absolute links.
    pub(crate) fn base_url(&self) -> String {
        let host = self
            .headers
            .get(header::HOST)
            .and_then(|h| h.to_str().ok())
            .unwrap_or("127.0.0.1");
        let port = host.rsplit(':').next().and_then(|p| p.parse().ok());
        let secure = port.is_some() && port == self.state.shared.https_port();
        format!("{}://{host}", if secure { "https" } else { "http" })
    }

    /// Whether the path is one of the dated API, whose ids of associations are text.
    pub(crate) fn is_dated(&self) -> bool {
        self.target.contains("/2026-")
    }
}

/// Which limits a route counts against, and whether it needs a token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Token, rolling window.
    Normal,
    /// Token, searches per second; no rate headers.
    Search,
    /// A token for the journal, calls per second; no rate headers.
    Journal,
    /// No token, no limits.
    Open,
}

/// A route's method.
pub(crate) fn method(filter: MethodFilter, handler: Handler) -> MethodRouter<Arc<State>> {
    guarded(filter, Access::Normal, handler)
}

/// The same with another kind of access.
pub(crate) fn guarded(
    filter: MethodFilter,
    access: Access,
    handler: Handler,
) -> MethodRouter<Arc<State>> {
    on(
        filter,
        move |Extract(state): Extract<Arc<State>>, request: Request| async move {
            serve(&state, access, handler, request).await
        },
    )
}

async fn serve(state: &State, access: Access, handler: Handler, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    // Read before anything is refused: otherwise the refusal would cost the client its connection.
    let body = axum::body::to_bytes(body, MAX_BODY).await;
    let (standing, outcome) = match (admit(state, access, &parts), body) {
        (Err((error, standing)), _) => (standing, Err(error)),
        (Ok(standing), Err(_)) => {
            let message = "The request body is too large";
            (
                standing,
                Err(ApiError::new(413, "VALIDATION_ERROR", message)),
            )
        }
        (Ok(standing), Ok(body)) => {
            let call = Call {
                state,
                params: params(&mut parts).await,
                query: Query::parse(parts.uri.query().unwrap_or_default()),
                body,
                target: parts.uri.to_string(),
                headers: parts.headers,
            };
            // A search may scan for long: the runtime moves other work away meanwhile.
            let outcome = match access {
                Access::Search => tokio::task::block_in_place(|| handler(&call)),
                Access::Normal | Access::Journal | Access::Open => handler(&call),
            };
            (standing, outcome)
        }
    };
    respond(state, outcome, standing)
}

async fn params(parts: &mut Parts) -> Vec<(String, String)> {
    match RawPathParams::from_request_parts(parts, &()).await {
        Ok(params) => params
            .iter()
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect(),
        Err(_) => Vec::new(),
    }
}

type Refusal = (ApiError, Option<Standing>);

fn admit(state: &State, access: Access, parts: &Parts) -> Result<Option<Standing>, Refusal> {
    if parts.uri.to_string().len() > MAX_TARGET {
        return Err((ApiError::new(414, "VALIDATION_ERROR", "URI too long"), None));
    }
    if access == Access::Open {
        return Ok(None);
    }
    let header = parts
        .headers
        .get(header::AUTHORIZATION)
        .and_then(|h| h.to_str().ok());
    let grant = state.auth.check(header).map_err(|e| (e, None))?;
    if (grant == Grant::Journal) != (access == Access::Journal) {
        let message = "This app hasn't been granted all required scopes to make this call.";
        return Err((ApiError::new(403, "MISSING_SCOPES", message), None));
    }
    if access == Access::Journal {
        let taken = state.limits.take_journal();
        return taken.map(|()| None).map_err(|e| (too_many(state, e), None));
    }
    if access == Access::Search {
        return match state.limits.take_search() {
            Ok(()) => Ok(None),
            Err(exceeded) => Err((too_many(state, exceeded), None)),
        };
    }
    match state.limits.take(grant) {
        Ok(standing) => Ok(Some(standing)),
        Err((exceeded, standing)) => Err((too_many(state, exceeded), Some(standing))),
    }
}

/// 429 bodies have `errorType` where others have `category`.
fn too_many(state: &State, exceeded: Exceeded) -> ApiError {
    let (policy, message) = exceeded.words();
    let mut error = ApiError::new(429, "", message)
        .with("errorType", json!("RATE_LIMIT"))
        .with("policyName", json!(policy))
        .with("requestId", json!(correlation(state)));
    error.body.remove("category");
    error
}

/// A fresh id in the form of a UUID.
pub(crate) fn correlation(state: &State) -> String {
    let n = state.correlation.fetch_add(1, Ordering::Relaxed);
    let (a, b) = (mix(n), mix(!n));
    format!(
        "{:08x}-{:04x}-7{:03x}-8{:03x}-{:012x}",
        a >> 32,
        a >> 16 & 0xffff,
        a & 0xfff,
        b >> 52,
        b & 0xffff_ffff_ffff
    )
}

const RATE_HEADERS: [&str; 7] = [
    "x-hubspot-ratelimit-max",
    "x-hubspot-ratelimit-remaining",
    "x-hubspot-ratelimit-interval-milliseconds",
    "x-hubspot-ratelimit-daily",
    "x-hubspot-ratelimit-daily-remaining",
    "x-hubspot-ratelimit-secondly",
    "x-hubspot-ratelimit-secondly-remaining",
];

fn respond(state: &State, outcome: Outcome, standing: Option<Standing>) -> Response {
    let id = correlation(state);
    let (status, body) = match outcome {
        Ok(reply) => (reply.status, reply.body),
        Err(error) if error.body.is_empty() => (error.status, Vec::new()),
        Err(error) => {
            let body = error.with("correlationId", json!(id));
            (
                body.status,
                Value::Object(body.body).to_string().into_bytes(),
            )
        }
    };
    let has_body = !body.is_empty();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    if has_body {
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json;charset=utf-8"),
        );
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert("x-hubspot-correlation-id", id);
    }
    if let Some(standing) = standing {
        let mut put = |name: &'static str, value: u64| {
            headers.insert(HeaderName::from_static(name), HeaderValue::from(value));
        };
        put(RATE_HEADERS[0], standing.max);
        put(RATE_HEADERS[1], standing.remaining);
        put(RATE_HEADERS[2], 10_000);
        if let Some((daily, rest)) = standing.daily {
            put(RATE_HEADERS[3], daily);
            put(RATE_HEADERS[4], rest);
        }
        // Deprecated and meaningless, but still sent.
        put(RATE_HEADERS[5], standing.max / 10);
        put(RATE_HEADERS[6], (standing.max / 10).saturating_sub(1));
    }
    response
}
