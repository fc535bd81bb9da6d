//! HTTP in front of the API: paths, versions, sessions, sizes, headers.

use super::bulk::Rows;
use super::running::Turn;
use super::{Call, Reply, VERSIONS, dispatch};
use crate::salesforce::State;
use crate::salesforce::error::Error;
use crate::salesforce::oauth;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State as Extract};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::any;
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Largest request body.
const MAX_BODY: usize = 8 << 20;
/// Largest upload of a bulk job: 150 MB in base64.
const MAX_UPLOAD: usize = 112_500_000;
/// Longest URI, and URI with headers.
const MAX_HEAD: usize = 16_384;

/// Route templates, only so that the request log can group calls; all lead to one handler.
const TEMPLATES: [&str; 25] = [
    "/services/data",
    "/services/data/{version}",
    "/services/data/{version}/limits",
    "/services/data/{version}/query",
    "/services/data/{version}/query/{cursor}",
    "/services/data/{version}/queryAll",
    "/services/data/{version}/queryAll/{cursor}",
    "/services/data/{version}/sobjects",
    "/services/data/{version}/sobjects/{object}",
    "/services/data/{version}/sobjects/{object}/describe",
    "/services/data/{version}/sobjects/{object}/updated",
    "/services/data/{version}/sobjects/{object}/deleted",
    "/services/data/{version}/sobjects/{object}/{id}",
    "/services/data/{version}/sobjects/{object}/{id}/{value}",
    "/services/data/{version}/composite",
    "/services/data/{version}/composite/batch",
    "/services/data/{version}/composite/sobjects",
    "/services/data/{version}/composite/sobjects/{object}",
    "/services/data/{version}/composite/sobjects/{object}/{field}",
    "/services/data/{version}/jobs/query",
    "/services/data/{version}/jobs/query/{job}",
    "/services/data/{version}/jobs/query/{job}/{part}",
    "/services/data/{version}/jobs/ingest",
    "/services/data/{version}/jobs/ingest/{job}",
    "/services/data/{version}/jobs/ingest/{job}/{part}",
];

/// Routes under `/services` and `/id`.
pub(crate) fn router(state: Arc<State>) -> Router {
    let mut router = Router::new();
    for template in TEMPLATES {
        // simple-salesforce ends many paths with a slash.
        router = router
            .route(template, any(handle))
            .route(&format!("{template}/"), any(handle));
    }
    for path in [
        "/services/oauth2/{call}",
        "/services/{*rest}",
        "/id/{org}/{user}",
    ] {
        router = router.route(path, any(handle));
    }
    router.with_state(state)
}

async fn handle(Extract(org): Extract<Arc<State>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let size = head.uri.to_string().len();
    if size > MAX_HEAD {
        return finish(
            &org,
            Error::new(414, "URI_TOO_LONG", "URI Too Long").into(),
            false,
        );
    }
    let headers: usize = head
        .headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    if size + headers > MAX_HEAD {
        return finish(
            &org,
            Error::new(
                431,
                "REQUEST_HEADER_FIELDS_TOO_LARGE",
                "Request Header Fields Too Large",
            )
            .into(),
            false,
        );
    }
    let upload = head.uri.path().contains("/jobs/ingest/");
    let most = if upload { MAX_UPLOAD } else { MAX_BODY };
    let Ok(body) = axum::body::to_bytes(body, most).await else {
        return finish(
            &org,
            Error::new(
                413,
                "REQUEST_ENTITY_TOO_LARGE",
                "The request body is too large",
            )
            .into(),
            false,
        );
    };
    let path = head.uri.path().to_owned();
    let query = parse_query(head.uri.query().unwrap_or_default());
    if !path.starts_with("/services/data") {
        let base = base_url(&head.headers, &org);
        let reply = oauth::route(
            &org,
            head.method.as_str(),
            &path,
            &query,
            &head.headers,
            &body,
            &base,
        );
        return finish(&org, reply, false);
    }
    let counted = path.trim_end_matches('/') != "/services/data";
    let _turn = match begin(&org).await {
        Ok(turn) => turn,
        Err(error) => return finish(&org, error.into(), counted),
    };
    let method = head.method.as_str();
    let reply = data(&org, method, &path, query, &head.headers, &body);
    finish(&org, reply, counted)
}

/// Works on a call for a while, unless too many run long.
async fn begin(org: &State) -> Result<Turn, Error> {
    let (work, long, most) = {
        let s = org.settings();
        let most = s.enforce.then_some(s.concurrent as usize);
        (s.work_ms, Duration::from_millis(s.long_ms), most)
    };
    let turn = org.running.begin(most, long)?;
    if work > 0 {
        tokio::time::sleep(Duration::from_millis(work)).await;
    }
    Ok(turn)
}

/// The URL the caller reached us by: answers name the instance with it.
fn base_url(headers: &HeaderMap, org: &State) -> String {
    let host = headers
        .get(header::HOST)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("127.0.0.1");
    let port = host
        .rsplit_once(':')
        .and_then(|(_, port)| port.parse::<u16>().ok());
    let tls = port.is_some() && port == org.https_port.get().copied();
    let scheme = if tls { "https" } else { "http" };
    format!("{scheme}://{host}")
}

fn data(
    org: &State,
    method: &str,
    path: &str,
    query: Vec<(String, String)>,
    headers: &HeaderMap,
    body: &Bytes,
) -> Reply {
    let mut segments = path
        .split('/')
        .filter(|segment| !segment.is_empty())
        .skip(2);
    let Some(version) = segments.next() else {
        return Reply::json(200, &versions());
    };
    let Some(version) = version.strip_prefix('v') else {
        return Error::not_found().into();
    };
    let admitted = check_version(version)
        .and_then(|()| authorize(org, headers))
        .and_then(|()| org.count_call());
    if let Err(error) = admitted {
        return error.into();
    }
    let known = |(name, value): (&HeaderName, &HeaderValue)| {
        Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
    };
    let call = Call {
        method,
        path: segments.map(|segment| decode(segment, false)).collect(),
        query,
        headers: headers.iter().filter_map(known).collect(),
        body,
        version: version.to_owned(),
    };
    dispatch(org, &call)
}

/// Accepts the versions that are served, says 410 for retired ones and 404 for the rest.
pub(crate) fn check_version(version: &str) -> Result<(), Error> {
    let number = version
        .strip_suffix(".0")
        .and_then(|text| text.parse::<u32>().ok())
        .ok_or_else(Error::not_found)?;
    if VERSIONS.contains(&number) {
        return Ok(());
    }
    if (7..=30).contains(&number) {
        return Err(Error::new(
            410,
            "UNSUPPORTED_API_VERSION",
            "The requested API version is retired",
        ));
    }
    Err(Error::not_found())
}

fn versions() -> Value {
    // One real label has a typographic quote; clients must not parse labels.
    const LABELS: [&str; 6] = [
        "Winter '25",
        "Spring ’25",
        "Summer '25",
        "Winter '26",
        "Spring '26",
        "Summer '26",
    ];
    let entry = |(number, label): (u32, &str)| json!({"label": label, "url": format!("/services/data/v{number}.0"), "version": format!("{number}.0")});
    Value::Array(VERSIONS.zip(LABELS).map(entry).collect())
}

fn authorize(org: &State, headers: &HeaderMap) -> Result<(), Error> {
    if org.session_valid(bearer(headers).unwrap_or_default()) {
        return Ok(());
    }
    Err(Error::new(
        401,
        "INVALID_SESSION_ID",
        "Session expired or invalid",
    ))
}

/// The token of `Authorization: Bearer …` or `OAuth …`.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let known = scheme.eq_ignore_ascii_case("bearer") || scheme.eq_ignore_ascii_case("oauth");
    known.then_some(token.trim())
}

fn finish(org: &Arc<State>, reply: Reply, counted: bool) -> Response {
    let body = match reply.rows {
        None => Body::from(reply.body),
        Some(rows) => Body::from_stream(stream::iter(Sent {
            org: Arc::clone(org),
            rows,
        })),
    };
    let mut response = Response::new(body);
    *response.status_mut() =
        StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    if !matches!(reply.status, 204 | 304) {
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json;charset=UTF-8"),
        );
    }
    if counted {
        let usage = format!(
            "api-usage={}/{}",
            org.calls.load(Ordering::Relaxed),
            org.settings().daily
        );
        if let Ok(value) = HeaderValue::from_str(&usage) {
            headers.insert("sforce-limit-info", value);
        }
    }
    for (name, value) in reply.headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    response
}

/// An answer's rows, rendered as fast as they are read.
struct Sent {
    org: Arc<State>,
    rows: Rows,
}

impl Iterator for Sent {
    type Item = Result<Bytes, std::convert::Infallible>;
    fn next(&mut self) -> Option<Self::Item> {
        let org = &self.org;
        let piece = self.rows.next(org.schema(), &org.shared.people)?;
        Some(Ok(Bytes::from(piece)))
    }
}

/// Splits a query string or form body into decoded pairs.
pub(crate) fn parse_query(text: &str) -> Vec<(String, String)> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key, true), decode(value, true))
        })
        .collect()
}

/// Undoes percent-encoding; in queries and forms `+` is a space.
pub(crate) fn decode(text: &str, plus: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = bytes
            .get(at + 1..at + 3)
            .filter(|_| bytes[at] == b'%')
            .and_then(|hex| {
                let hex = std::str::from_utf8(hex).ok()?;
                u8::from_str_radix(hex, 16).ok()
            });
        match escaped {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(if plus && bytes[at] == b'+' {
                    b' '
                } else {
                    bytes[at]
                });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
