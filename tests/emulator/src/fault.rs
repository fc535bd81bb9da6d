//! Faults on request: rejected calls, answers lost after the write, slow or senseless bodies, and
//! event streams that lose, double, delay or reorder.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::Deserialize;

use crate::{clock::Rng, shared::Side};

/// Rules kept at once; more are refused.
const MAX_RULES: usize = 1_000;

/// What to do to matching requests, `remaining` times.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    /// `hubspot` or `salesforce`.
    crm: String,
    /// HTTP method; any if absent.
    method: Option<String>,
    /// Start of the path; any if absent.
    path_prefix: Option<String>,
    /// How many matching requests to leave alone first.
    #[serde(default)]
    skip: u64,
    /// How many requests to hit; 1 if absent.
    #[serde(default = "once")]
    remaining: u64,
    action: Action,
}

fn once() -> u64 {
    1
}

/// The kinds of fault for requests.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Action {
    /// Answers without performing.
    Reject(Reply),
    /// Performs, then answers this; without a status the connection is cut.
    FailAfterWrite {
        status: Option<u16>,
        #[serde(default)]
        body: serde_json::Value,
    },
    /// Performs and answers after a wait.
    Hold { ms: u64 },
    /// Performs and drips the body.
    SlowBody { bytes_per_s: u64 },
    /// Answers 200 with something that is not the API's JSON.
    Garbage(Garbage),
    /// Cuts the connection without performing.
    Close,
}

/// A canned answer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reply {
    status: u16,
    #[serde(default)]
    headers: std::collections::BTreeMap<String, String>,
    /// How long the answer takes.
    #[serde(default)]
    after_ms: u64,
    /// Text is sent as it is, anything else as JSON.
    #[serde(default)]
    body: serde_json::Value,
}

/// Bodies that no client should trust.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Garbage {
    Html,
    Truncated,
    Endless,
    Empty,
}

/// How an event stream misbehaves.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EventFault {
    /// Drop this many events.
    #[serde(default)]
    pub(crate) lose: u64,
    /// Send this many events twice.
    #[serde(default)]
    pub(crate) duplicate: u64,
    /// Shuffle events inside windows of this many (0 and 1: keep the order).
    #[serde(default)]
    pub(crate) reorder_window: usize,
    /// Hold each event back this long.
    #[serde(default)]
    pub(crate) delay_ms: u64,
}

/// The event streams that can misbehave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Webhook,
    Cdc,
}

/// A fault as an answer.
pub(crate) enum Answer {
    Reply(Reply),
    Garbage(Garbage),
    Close,
}

/// What the gate does with a request.
pub(crate) enum Verdict {
    Pass,
    /// Answer this, perform nothing.
    Answer(Answer),
    /// Perform, then answer this.
    After(Answer),
    Hold(u64),
    Slow(u64),
}

struct Inner {
    rules: Vec<Rule>,
    events: [EventFault; 2],
    rng: Rng,
}

/// All faults in force.
pub(crate) struct Faults(Mutex<Inner>);

impl Faults {
    pub(crate) fn new(seed: u64) -> Faults {
        Faults(Mutex::new(Inner {
            rules: Vec::new(),
            events: [EventFault::default(), EventFault::default()],
            rng: Rng::new(seed ^ 0xfa17),
        }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds rules, or says what is wrong and adds none.
    pub(crate) fn add(&self, rules: Vec<Rule>) -> Result<usize, String> {
        for rule in &rules {
            if Side::parse(&rule.crm).is_none() {
                return Err(format!(
                    "crm `{}`: expected hubspot or salesforce",
                    rule.crm
                ));
            }
            let status = match &rule.action {
                Action::Reject(reply) => Some(reply.status),
                Action::FailAfterWrite { status, .. } => *status,
                _ => None,
            };
            if status.is_some_and(|s| !(200..=599).contains(&s)) {
                return Err("status: expected 200 to 599".to_owned());
            }
        }
        let mut inner = self.lock();
        if inner.rules.len() + rules.len() > MAX_RULES {
            return Err(format!("more than {MAX_RULES} rules"));
        }
        inner.rules.extend(rules);
        Ok(inner.rules.len())
    }

    /// Sets how `stream` misbehaves from now on.
    pub(crate) fn set_events(&self, stream: Stream, fault: EventFault) {
        self.lock().events[stream as usize] = fault;
    }

    /// Ends every fault.
    pub(crate) fn clear(&self) {
        let mut inner = self.lock();
        inner.rules.clear();
        inner.events = [EventFault::default(), EventFault::default()];
    }

    /// Decides about one request and counts it against the first rule that fits.
    pub(crate) fn on_request(&self, side: Side, method: &str, path: &str) -> Verdict {
        let mut inner = self.lock();
        let fits = |rule: &Rule| {
            rule.crm == side.name()
                && rule.remaining > 0
                && rule
                    .method
                    .as_ref()
                    .is_none_or(|m| m.eq_ignore_ascii_case(method))
                && rule
                    .path_prefix
                    .as_ref()
                    .is_none_or(|p| path.starts_with(p.as_str()))
        };
        let Some(at) = inner.rules.iter().position(fits) else {
            return Verdict::Pass;
        };
        let rule = &mut inner.rules[at];
        if rule.skip > 0 {
            rule.skip -= 1;
            return Verdict::Pass;
        }
        rule.remaining -= 1;
        let action = rule.action.clone();
        if rule.remaining == 0 {
            inner.rules.remove(at);
        }
        match action {
            Action::Reject(reply) => Verdict::Answer(Answer::Reply(reply)),
            Action::FailAfterWrite { status, body } => Verdict::After(match status {
                Some(status) => Answer::Reply(Reply {
                    status,
                    headers: std::collections::BTreeMap::new(),
                    after_ms: 0,
                    body,
                }),
                None => Answer::Close,
            }),
            Action::Hold { ms } => Verdict::Hold(ms),
            Action::SlowBody { bytes_per_s } => Verdict::Slow(bytes_per_s),
            Action::Garbage(kind) => Verdict::Answer(Answer::Garbage(kind)),
            Action::Close => Verdict::Answer(Answer::Close),
        }
    }

    /// Applies the stream's faults to `events` that are about to leave; the answer is what leaves,
    /// in that order, and how long to wait before.
    pub(crate) fn on_events<T: Clone>(&self, stream: Stream, events: Vec<T>) -> (Vec<T>, Duration) {
        let mut inner = self.lock();
        let Inner {
            events: faults,
            rng,
            ..
        } = &mut *inner;
        let fault = &mut faults[stream as usize];
        let delay = Duration::from_millis(fault.delay_ms);
        if fault.lose == 0 && fault.duplicate == 0 && fault.reorder_window < 2 {
            return (events, delay);
        }
        let mut out = Vec::with_capacity(events.len());
        for event in events {
            if fault.lose > 0 {
                fault.lose -= 1;
                continue;
            }
            if fault.duplicate > 0 {
                fault.duplicate -= 1;
                out.push(event.clone());
            }
            out.push(event);
        }
        if fault.reorder_window > 1 {
            for window in out.chunks_mut(fault.reorder_window) {
                rng.shuffle(window);
            }
        }
        (out, delay)
    }
}

impl Answer {
    /// How long it takes.
    pub(crate) fn delay(&self) -> Duration {
        Duration::from_millis(match self {
            Self::Reply(reply) => reply.after_ms,
            Self::Garbage(_) | Self::Close => 0,
        })
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        match self {
            Answer::Reply(reply) => reply.into_response(),
            Answer::Garbage(kind) => garbage(kind),
            Answer::Close => Response::new(broken()),
        }
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let (kind, body) = match self.body {
            serde_json::Value::Null => ("application/json", String::new()),
            serde_json::Value::String(text) => ("text/plain;charset=utf-8", text),
            other => ("application/json;charset=utf-8", other.to_string()),
        };
        let mut response = Response::new(Body::from(body));
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert("content-type", HeaderValue::from_static(kind));
        for (name, value) in &self.headers {
            if let (Ok(name), Ok(value)) = (
                HeaderName::from_bytes(name.as_bytes()),
                HeaderValue::from_str(value),
            ) {
                headers.insert(name, value);
            }
        }
        response
    }
}

/// A body whose first poll fails: the server cuts the connection before a byte of the answer.
fn broken() -> Body {
    Body::from_stream(stream::once(async {
        Err::<Bytes, _>(std::io::Error::other("cut by a fault rule"))
    }))
}

fn garbage(kind: Garbage) -> Response {
    let (content_type, body) = match kind {
        Garbage::Html => (
            "text/html",
            Body::from("<!doctype html><html><body><h1>502 Bad Gateway</h1></body></html>"),
        ),
        Garbage::Truncated => (
            "application/json",
            Body::from("{\"results\":[{\"id\":\"1\",\"properties\":{\"ema"),
        ),
        Garbage::Endless => (
            "application/json",
            Body::from_stream(stream::repeat_with(|| {
                Ok::<_, std::io::Error>(Bytes::from_static(&[b' '; 65_536]))
            })),
        ),
        Garbage::Empty => ("application/json", Body::empty()),
    };
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert("content-type", HeaderValue::from_static(content_type));
    response
}

/// Lets the body of `response` through at `bytes_per_s`, in ten pieces a second.
pub(crate) fn slow(response: Response, bytes_per_s: u64) -> Response {
    let piece = usize::try_from((bytes_per_s / 10).max(1)).unwrap_or(usize::MAX);
    let (parts, body) = response.into_parts();
    let chunks = body.into_data_stream().flat_map(move |chunk| {
        let pieces: Vec<Result<Bytes, axum::Error>> = match chunk {
            Ok(mut bytes) => {
                let mut pieces = Vec::new();
                while !bytes.is_empty() {
                    pieces.push(Ok(bytes.split_to(piece.min(bytes.len()))));
                }
                pieces
            }
            Err(error) => vec![Err(error)],
        };
        stream::iter(pieces).then(|piece| async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            piece
        })
    });
    Response::from_parts(parts, Body::from_stream(chunks))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Rule {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_rule_hits_only_its_crm_method_and_path_and_only_so_often() {
        let faults = Faults::new(1);
        faults
            .add(vec![rule(
                r#"{"crm":"hubspot","method":"PATCH","path_prefix":"/crm/","skip":1,"remaining":1,
                    "action":{"reject":{"status":503}}}"#,
            )])
            .unwrap();
        let hit =
            |side, method, path| !matches!(faults.on_request(side, method, path), Verdict::Pass);
        assert!(!hit(Side::Salesforce, "PATCH", "/crm/x"));
        assert!(!hit(Side::HubSpot, "GET", "/crm/x"));
        assert!(!hit(Side::HubSpot, "PATCH", "/oauth"));
        assert!(
            !hit(Side::HubSpot, "PATCH", "/crm/x"),
            "the first is skipped"
        );
        assert!(hit(Side::HubSpot, "patch", "/crm/x"));
        assert!(!hit(Side::HubSpot, "PATCH", "/crm/x"), "used up");
    }

    #[test]
    fn an_unknown_crm_or_status_is_refused_and_adds_nothing() {
        let faults = Faults::new(1);
        assert!(
            faults
                .add(vec![rule(r#"{"crm":"zoho","action":"close"}"#)])
                .is_err()
        );
        let bad = rule(r#"{"crm":"hubspot","action":{"reject":{"status":99}}}"#);
        assert!(faults.add(vec![bad]).is_err());
        assert!(matches!(
            faults.on_request(Side::HubSpot, "GET", "/"),
            Verdict::Pass
        ));
    }

    #[test]
    fn lost_and_doubled_events_are_counted_down() {
        let faults = Faults::new(1);
        faults.set_events(
            Stream::Webhook,
            EventFault {
                lose: 2,
                duplicate: 1,
                ..EventFault::default()
            },
        );
        assert_eq!(faults.on_events(Stream::Cdc, vec![1, 2]).0, [1, 2]);
        assert_eq!(
            faults.on_events(Stream::Webhook, vec![1, 2, 3, 4]).0,
            [3, 3, 4]
        );
        assert_eq!(faults.on_events(Stream::Webhook, vec![5]).0, [5]);
    }

    #[test]
    fn reordering_keeps_every_event() {
        let faults = Faults::new(7);
        faults.set_events(
            Stream::Webhook,
            EventFault {
                reorder_window: 50,
                ..EventFault::default()
            },
        );
        let sent: Vec<u32> = (0..200).collect();
        let (mut got, _) = faults.on_events(Stream::Webhook, sent.clone());
        assert_ne!(got, sent);
        got.sort_unstable();
        assert_eq!(got, sent);
    }
}
