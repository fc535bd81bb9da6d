//! The same changes over CometD: the Bayeux protocol in the client's words, and
//! events as JSON. For where gRPC cannot pass.
//!
//! Here the header names what changed, and a null under such a name is one:
//! there is no list of nulled fields. Of what is named and not shown, only a read
//! can tell.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::connectors::ServerConfig;
use crate::connectors::salesforce::request::{DEFAULT_VERSION, with_body};
use crate::http::{HttpRequest, HttpResponse, Method, Purpose};
use crate::model::{Change, ChangeKind, Millis, RemoteError};
use crate::transport;

use super::{Carried, Header, NO_RECORD, component_name, malformed};

/// Cookies kept; one is known.
const MAX_COOKIES: usize = 8;
/// Longest time that a connect may be held, whatever the server says.
const MAX_HOLD_MS: Millis = 180_000;

/// One client: what it says next, and what it has learned from the answers.
#[derive(Debug)]
pub struct Client {
    path: String,
    topic: String,
    id: String,
    cookies: BTreeMap<String, String>,
    said: u64,
}

/// What an answer brings.
#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    /// Events in order, each with its replay id.
    pub events: Vec<Event>,
    /// How long the next connect may be held, if told.
    pub hold_ms: Option<Millis>,
    /// Pause before the next connect.
    pub pause_ms: Millis,
    /// The server wants a new handshake.
    pub greet: bool,
    /// The server wants nothing more of this client.
    pub over: bool,
}

/// An event: its replay id, and its changes or why they cannot be read.
#[derive(Debug, PartialEq)]
pub struct Event {
    /// As [`replay_id`] stores it.
    pub replay_id: Vec<u8>,
    /// Changes, one per record.
    pub changes: Result<Vec<Change>, RemoteError>,
}

/// A replay number as it is stored: eight bytes, the first the highest.
pub fn replay_id(number: i64) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

/// A stored replay id as a number; `None` for one of another kind of stream.
pub fn replay_number(id: &[u8]) -> Option<i64> {
    Some(i64::from_be_bytes(id.try_into().ok()?))
}

/// Only what comes from now on.
pub const LATEST: i64 = -1;
/// All that is kept.
pub const EARLIEST: i64 = -2;

impl Client {
    /// A client that is still to be introduced.
    pub fn new(config: &ServerConfig, topic: &str) -> Self {
        let version = config.api_version.trim().trim_start_matches(['v', 'V']);
        let version = match version {
            "" => DEFAULT_VERSION,
            version => version,
        };
        Self {
            path: format!("/cometd/{version}"),
            topic: topic.to_owned(),
            id: String::new(),
            cookies: BTreeMap::new(),
            said: 0,
        }
    }

    /// Introduces the client.
    pub fn handshake(&mut self) -> HttpRequest {
        self.id.clear();
        let more = serde_json::json!({
            "version": "1.0", "minimumVersion": "1.0", "supportedConnectionTypes": ["long-polling"], "ext": {"replay": true},
        });
        self.say("handshake", more)
    }

    /// Subscribes, from behind a replay number on.
    pub fn subscribe(&mut self, after: i64) -> HttpRequest {
        let topic = &self.topic;
        let more =
            serde_json::json!({"subscription": topic, "ext": {"replay": {topic.as_str(): after}}});
        self.say("subscribe", more)
    }

    /// Asks for events; the answer comes when there are any, or after a while.
    pub fn connect(&mut self) -> HttpRequest {
        self.say(
            "connect",
            serde_json::json!({"connectionType": "long-polling"}),
        )
    }

    /// Takes leave: the server need not keep the client until it counts as dead.
    /// `None` before there is one.
    pub fn disconnect(&mut self) -> Option<HttpRequest> {
        let known = !self.id.is_empty();
        known.then(|| self.say("disconnect", serde_json::json!({})))
    }

    fn say(&mut self, what: &str, mut message: serde_json::Value) -> HttpRequest {
        self.said += 1;
        message["channel"] = format!("/meta/{what}").into();
        message["id"] = self.said.to_string().into();
        if !self.id.is_empty() {
            message["clientId"] = self.id.as_str().into();
        }
        let body = serde_json::json!([message]).to_string();
        // Nothing is changed by it: lost, it may be said again.
        let target = format!("{}/{what}", self.path);
        let mut request = with_body(Method::Post, target, body, Purpose::Poll);
        if !self.cookies.is_empty() {
            let all: Vec<String> = (self.cookies.iter())
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            request.headers.push(("cookie".into(), all.join("; ")));
        }
        request
    }

    /// Takes an answer with status 200 to what was said last.
    pub fn hear(&mut self, response: &HttpResponse) -> Result<Answer, RemoteError> {
        self.keep_cookies(response);
        let messages: Vec<Message> = serde_json::from_slice(&response.body)
            .map_err(|_| transport::error("protocol", "protocol", "not an answer of CometD"))?;
        let mut answer = Answer::default();
        let (mut refused, mut answered, mut over) = (None, false, false);
        let last = self.said.to_string();
        for message in messages {
            if let Some(data) = message.data {
                if message.channel == self.topic {
                    answer.events.extend(data.event());
                }
                continue;
            }
            if let Some(id) = message.client_id.filter(|_| self.id.is_empty()) {
                self.id = id;
            }
            if let Some(advice) = message.advice {
                answer.hold_ms = advice.timeout.map(|ms| ms.clamp(0, MAX_HOLD_MS));
                answer.pause_ms = advice.interval.unwrap_or(0).clamp(0, MAX_HOLD_MS);
                answer.greet = advice.reconnect.as_deref() == Some("handshake");
                over |= advice.reconnect.as_deref() == Some("none");
            }
            answered |= message.id.as_deref().is_none_or(|id| id == last);
            if message.successful == Some(false) {
                let reason = message.ext.pointer("/sfdc/failureReason");
                let reason = reason.and_then(|r| r.as_str()).unwrap_or_default();
                let (error, channel) = (message.error.unwrap_or_default(), &message.channel);
                refused = Some(refusal(&error, channel, reason));
            }
        }
        match refused {
            // Whoever is told not to come back, and not why, comes back much later.
            Some(error) if over && error.code == "stream" => Err(transport::error(
                "conversation_over",
                "stream",
                &error.message,
            )),
            Some(error) => Err(error),
            None if !answered || self.id.is_empty() => Err(transport::error(
                "protocol",
                "protocol",
                "an answer to something else",
            )),
            None => Ok(Answer { over, ..answer }),
        }
    }

    fn keep_cookies(&mut self, response: &HttpResponse) {
        let told = response.headers.iter().filter(|(n, _)| n == "set-cookie");
        for (_, cookie) in told {
            let pair = cookie.split(';').next().unwrap_or_default();
            if let Some((name, value)) = pair.trim().split_once('=')
                && (self.cookies.len() < MAX_COOKIES || self.cookies.contains_key(name))
            {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
    }
}

/// What `403::Unknown client` and the like mean.
fn refusal(error: &str, channel: &str, reason: &str) -> RemoteError {
    let (status, text) = error.split_once("::").unwrap_or(("", error));
    let code = match status.split(':').next().unwrap_or_default() {
        "401" => "service.auth.error",
        "402" | "403" if text.contains("nknown client") => "unknown_client",
        "403" if text.contains("limit exceeded") => "subscription.limit.exceeded",
        "403" if reason.contains("lient limit") => "concurrent.client.limit.exceeded",
        "400" if text.contains("replayId") => "subscription.fetch.replayid.validation.failed",
        "400" if text.contains("cookie") => "unknown_client",
        "400" => "channel_refused",
        "403" if channel == "/meta/subscribe" => "channel_refused",
        _ => "stream",
    };
    let message = match reason {
        "" => error.to_owned(),
        reason => format!("{error} ({reason})"),
    };
    transport::error(code, "stream", &message)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Message<'a> {
    channel: String,
    #[serde(default)]
    client_id: Option<String>,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    successful: Option<bool>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    advice: Option<Advice>,
    #[serde(default)]
    ext: serde_json::Value,
    #[serde(default, borrow)]
    data: Option<Data<'a>>,
}

#[derive(Deserialize)]
struct Advice {
    #[serde(default)]
    reconnect: Option<String>,
    #[serde(default)]
    timeout: Option<Millis>,
    #[serde(default)]
    interval: Option<Millis>,
}

#[derive(Deserialize)]
struct Data<'a> {
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    event: Place,
}

#[derive(Deserialize)]
struct Place {
    #[serde(rename = "replayId")]
    replay_id: i64,
}

type Fields<'a> = BTreeMap<String, &'a RawValue>;

impl Data<'_> {
    fn event(self) -> Option<Event> {
        let changes = self.payload.map_or_else(
            || Err(malformed("bad_event", "no payload")),
            |payload| decode(payload.get()),
        );
        Some(Event {
            replay_id: replay_id(self.event.replay_id),
            changes,
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Told {
    entity_name: String,
    record_ids: Vec<String>,
    change_type: String,
    change_origin: Option<String>,
    transaction_key: Option<String>,
    sequence_number: i64,
    commit_timestamp: Millis,
    commit_number: i64,
    commit_user: Option<String>,
    changed_fields: Vec<String>,
}

impl From<Told> for Header {
    fn from(told: Told) -> Self {
        Self {
            entity: told.entity_name,
            record_ids: told.record_ids,
            change_type: told.change_type,
            origin: told.change_origin.unwrap_or_default(),
            transaction: told.transaction_key.unwrap_or_default(),
            sequence: told.sequence_number,
            committed_at: told.commit_timestamp,
            commit_number: told.commit_number,
            user: told.commit_user.unwrap_or_default(),
            changed: told.changed_fields,
            ..Self::default()
        }
    }
}

/// The changes of one payload.
pub fn decode(payload: &str) -> Result<Vec<Change>, RemoteError> {
    let bad = |e: serde_json::Error| malformed("bad_event", &format!("not a change event: {e}"));
    let mut fields: Fields<'_> = serde_json::from_str(payload).map_err(bad)?;
    let Some(header) = fields.remove("ChangeEventHeader") else {
        return Err(malformed("bad_event", "no header"));
    };
    let header: Header = serde_json::from_str::<Told>(header.get())
        .map_err(bad)?
        .into();
    if header.entity.is_empty() {
        return Err(malformed("bad_event", "no entityName in the header"));
    }
    let kind = header.kind();
    let all = header.record_ids.iter();
    let lost = |id: &String| id.contains('*') || id == NO_RECORD;
    if kind == ChangeKind::Overflow || header.record_ids.is_empty() || all.clone().any(lost) {
        return Ok(vec![header.change(
            "",
            ChangeKind::Overflow,
            Carried::default(),
        )]);
    }
    let mut carried = Carried::default();
    match kind {
        ChangeKind::Update if !header.changed.is_empty() => {
            changed(&header.changed, &fields, &mut carried);
        }
        ChangeKind::Create | ChangeKind::Update | ChangeKind::Restore => {
            present(&fields, &mut carried);
        }
        _ => {}
    }
    Ok(all
        .map(|id| header.change(id, kind.clone(), carried.clone()))
        .collect())
}

/// A value of the payload.
enum Read<'a> {
    Null,
    Value(String),
    Parts(Fields<'a>),
    /// A difference to a text that we may not have, or nothing we know.
    Unknown,
}

fn read(raw: &RawValue) -> Read<'_> {
    let text = raw.get().trim();
    match text.as_bytes().first() {
        Some(b'n') => Read::Null,
        Some(b'"') => match serde_json::from_str::<String>(text) {
            Ok(text) if text.is_empty() => Read::Null,
            Ok(text) => Read::Value(text.chars().filter(|c| *c != '\0').collect()),
            Err(_) => Read::Unknown,
        },
        Some(b'{') => match serde_json::from_str::<Fields<'_>>(text) {
            Ok(parts) if !(parts.len() == 1 && parts.contains_key("diff")) => Read::Parts(parts),
            _ => Read::Unknown,
        },
        Some(b'[') | None => Read::Unknown,
        // Numbers digit for digit, and true and false.
        Some(_) => Read::Value(text.to_owned()),
    }
}

/// Takes over the fields that an update names.
fn changed(names: &[String], fields: &Fields<'_>, out: &mut Carried) {
    for name in names {
        let (compound, part) = match name.split_once('.') {
            Some((compound, part)) => (compound, Some(part)),
            None => (name.as_str(), None),
        };
        match (fields.get(compound).map(|raw| read(raw)), part) {
            (Some(Read::Parts(parts)), Some(part)) => {
                one(
                    &component_name(compound, part),
                    parts.get(part).copied(),
                    out,
                );
                whole_name(compound, out);
            }
            // Named whole: all of its parts may have changed.
            (Some(Read::Parts(parts)), None) => {
                for (part, raw) in &parts {
                    one(&component_name(compound, part), Some(raw), out);
                }
                whole_name(compound, out);
            }
            (Some(Read::Null), Some(part)) => {
                out.fields.push((component_name(compound, part), None));
                whole_name(compound, out);
            }
            (_, Some(part)) => out.reread.push(component_name(compound, part)),
            (_, None) => one(name, fields.get(compound).copied(), out),
        }
    }
}

fn one(name: &str, raw: Option<&RawValue>, out: &mut Carried) {
    match raw.map(read) {
        Some(Read::Null) => out.fields.push((name.to_owned(), None)),
        Some(Read::Value(value)) => out.fields.push((name.to_owned(), Some(value))),
        Some(Read::Parts(_) | Read::Unknown) | None => out.reread.push(name.to_owned()),
    }
}

/// The whole name is a field too, and is not sent beside its parts.
fn whole_name(compound: &str, out: &mut Carried) {
    if compound == "Name" && !out.reread.iter().any(|name| name == "Name") {
        out.reread.push("Name".to_owned());
    }
}

/// Takes over whatever has a value, as creates show it.
fn present(fields: &Fields<'_>, out: &mut Carried) {
    for (name, raw) in fields {
        match read(raw) {
            Read::Null => {}
            Read::Value(value) => out.fields.push((name.clone(), Some(value))),
            Read::Unknown => out.reread.push(name.clone()),
            Read::Parts(parts) => {
                let known = |raw: &&RawValue| raw.get().trim() != "null";
                for (part, raw) in parts.iter().filter(|(_, raw)| known(raw)) {
                    one(&component_name(name, part), Some(raw), out);
                    whole_name(name, out);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
