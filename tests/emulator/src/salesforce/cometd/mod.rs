//! CometD: the Bayeux protocol over long polling, with the replay extension, for
//! change events.

mod clients;

use super::State;
use super::api::http::{bearer, check_version};
use super::cdc::bus::Event;
use super::cdc::plain;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State as Extract};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
pub(crate) use clients::Clients;
use clients::Unknown;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Cookie that ties a client to the node that knows it.
const COOKIE: &str = "BAYEUX_BROWSER";
/// Events and bytes of one answer at most.
const MAX_EVENTS: usize = 500;
const MAX_ANSWER: usize = 3 << 20;

/// Routes under `/cometd`.
pub(crate) fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/cometd/{version}", post(handle))
        .route("/cometd/{version}/", post(handle))
        .route("/cometd/{version}/{kind}", post(handle))
        .with_state(state)
}

/// One HTTP request: who sends it.
struct Caller {
    token: String,
    cookie: Option<String>,
}

impl Caller {
    fn of(headers: &HeaderMap) -> Self {
        let cookies = headers.get_all(header::COOKIE).iter();
        let cookie = cookies
            .filter_map(|value| value.to_str().ok())
            .flat_map(|text| text.split(';'))
            .find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
            .map(str::to_owned);
        Self {
            token: bearer(headers).unwrap_or_default().to_owned(),
            cookie,
        }
    }
}

async fn handle(
    Extract(org): Extract<Arc<State>>,
    Path(path): Path<Vec<(String, String)>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let version = path.first().map_or("", |(_, version)| version.as_str());
    if let Err(error) = check_version(version) {
        return plain_text(error.status, &error.message);
    }
    let messages = match serde_json::from_slice(&body) {
        Ok(Value::Array(messages)) => messages,
        Ok(message @ Value::Object(_)) => vec![message],
        _ => return plain_text(400, "expected messages as JSON"),
    };
    let mut caller = Caller::of(&headers);
    let fresh = caller.cookie.is_none();
    let mut answers = Vec::new();
    for message in &messages {
        let Value::Object(message) = message else {
            return plain_text(400, "expected messages as JSON objects");
        };
        answer(&org, &mut caller, message, &mut answers).await;
    }
    let mut response = Response::new(Body::from(Value::Array(answers).to_string()));
    let out = response.headers_mut();
    let json = HeaderValue::from_static("application/json;charset=UTF-8");
    out.insert(header::CONTENT_TYPE, json);
    if let Some(cookie) = caller.cookie.filter(|_| fresh)
        && let Ok(value) = HeaderValue::from_str(&format!("{COOKIE}={cookie};Path=/;HttpOnly"))
    {
        out.insert(header::SET_COOKIE, value);
    }
    response
}

fn plain_text(status: u16, text: &str) -> Response {
    let mut response = Response::new(Body::from(text.to_owned()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    response
}

/// The answer to a message, what it answers copied.
fn reply(message: &Map<String, Value>, successful: bool) -> Map<String, Value> {
    let mut out = Map::new();
    for key in ["clientId", "channel", "id", "subscription"] {
        if let Some(value) = message.get(key) {
            out.insert(key.to_owned(), value.clone());
        }
    }
    out.insert("successful".into(), json!(successful));
    out
}

fn refusal(message: &Map<String, Value>, error: &str, advice: &Value) -> Value {
    let mut out = reply(message, false);
    out.insert("error".into(), json!(error));
    if !advice.is_null() {
        out.insert("advice".into(), advice.clone());
    }
    Value::Object(out)
}

async fn answer(
    org: &State,
    caller: &mut Caller,
    message: &Map<String, Value>,
    out: &mut Vec<Value>,
) {
    let text = |key: &str| message.get(key).and_then(Value::as_str).unwrap_or_default();
    let channel = text("channel");
    if !org.session_valid(&caller.token) {
        let none = json!({"reconnect": "none"});
        out.push(refusal(message, "401::Authentication invalid", &none));
        return;
    }
    if channel == "/meta/handshake" {
        out.push(handshake(org, caller, message));
        return;
    }
    let id = text("clientId");
    if let Err(problem) = org.comets.check(id, caller.cookie.as_deref()) {
        let again = json!({"interval": 0, "reconnect": "handshake"});
        out.push(match problem {
            Unknown::Client => refusal(message, "403::Unknown client", &again),
            Unknown::Cookie => {
                refusal(message, "400::The BAYEUX_BROWSER cookie is missing", &again)
            }
        });
        return;
    }
    match channel {
        "/meta/connect" => connect(org, id, message, out).await,
        "/meta/subscribe" => out.push(subscribe(org, id, message)),
        "/meta/unsubscribe" => {
            org.comets.unsubscribe(id, text("subscription"));
            out.push(Value::Object(reply(message, true)));
        }
        "/meta/disconnect" => {
            org.comets.forget(id);
            out.push(Value::Object(reply(message, true)));
        }
        _ => out.push(refusal(
            message,
            "400::The channel is not one to publish to",
            &Value::Null,
        )),
    }
}

fn handshake(org: &State, caller: &mut Caller, message: &Map<String, Value>) -> Value {
    let idle = Duration::from_millis(org.settings().connect_ms * 2 + 10_000);
    let cookie = caller
        .cookie
        .get_or_insert_with(|| org.comets.cookie())
        .clone();
    let Some(id) = org.comets.greet(cookie, idle) else {
        let mut out = reply(message, false);
        out.insert("error".into(), json!("403::Handshake denied"));
        let reason = json!({"sfdc": {"failureReason": "403::Concurrent client limit exceeded"}});
        out.insert("ext".into(), reason);
        out.insert("advice".into(), json!({"reconnect": "none"}));
        return Value::Object(out);
    };
    let mut out = reply(message, true);
    out.insert("clientId".into(), json!(id));
    out.insert("version".into(), json!("1.0"));
    out.insert("minimumVersion".into(), json!("1.0"));
    out.insert("supportedConnectionTypes".into(), json!(["long-polling"]));
    out.insert(
        "ext".into(),
        json!({"replay": true, "payload.format": true}),
    );
    Value::Object(out)
}

fn subscribe(org: &State, id: &str, message: &Map<String, Value>) -> Value {
    let channel = message
        .get("subscription")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let Some(topic) = super::cdc::Topic::parse(channel) else {
        let error =
            format!("400::The channel you requested to subscribe to does not exist {{{channel}}}");
        return refusal(message, &error, &Value::Null);
    };
    if org.withholds(topic) {
        let error = format!("403::No permission to subscribe to {{{channel}}}");
        return refusal(message, &error, &Value::Null);
    }
    let replay = message
        .get("ext")
        .and_then(|ext| ext.get("replay")?.get(channel)?.as_i64());
    let after = match replay {
        None | Some(-1) => org.bus.latest(),
        Some(-2) => org.bus.earliest(),
        Some(n) => match org.bus.resume(&n.to_be_bytes()) {
            Ok(after) => after,
            Err(_) => {
                let error = format!(
                    "400::The replayId {{{n}}} you provided was invalid.  Please provide a valid ID, -2 to replay all events, or -1 to replay only new events."
                );
                return refusal(message, &error, &Value::Null);
            }
        },
    };
    org.comets.subscribe(id, channel, topic, after);
    Value::Object(reply(message, true))
}

/// Holds the call until there are events, or the time is up.
async fn connect(org: &State, id: &str, message: &Map<String, Value>, out: &mut Vec<Value>) {
    let (hold, most) = {
        let settings = org.settings();
        (settings.connect_ms, settings.deliveries)
    };
    if org.bus.delivered() >= most {
        let none = json!({"reconnect": "none"});
        out.push(refusal(
            message,
            "403::Organization total events daily limit exceeded",
            &none,
        ));
        return;
    }
    let until = Instant::now() + Duration::from_millis(hold);
    let mut wake = org.bus.listen();
    loop {
        wake.borrow_and_update();
        if !org.comets.knows(id) {
            let again = json!({"interval": 0, "reconnect": "handshake"});
            out.push(refusal(message, "403::Unknown client", &again));
            return;
        }
        let (events, later) = org.comets.read(id, &org.bus, (MAX_EVENTS, MAX_ANSWER));
        org.bus.count(events.len());
        if !events.is_empty() {
            out.extend(
                events
                    .iter()
                    .map(|(channel, event)| delivery(org, channel, event)),
            );
            break;
        }
        let soon = later.map_or(until, |ms| {
            until.min(Instant::now() + Duration::from_millis(ms))
        });
        tokio::select! {
            changed = wake.changed() => if changed.is_err() { break },
            () = tokio::time::sleep_until(soon) => if Instant::now() >= until { break },
        }
    }
    let mut done = reply(message, true);
    let advice = json!({"interval": 0, "timeout": hold, "reconnect": "retry"});
    done.insert("advice".into(), advice);
    out.push(Value::Object(done));
}

fn delivery(org: &State, channel: &str, event: &Event) -> Value {
    let schema = org.schema();
    let codecs = org.codecs();
    let payload = codecs
        .by_id(&event.schema_id)
        .and_then(|codec| plain::render(schema.object(event.obj), codec, &event.payload));
    json!({
        "data": {"schema": &*event.schema_id, "payload": payload, "event": {"replayId": event.replay}},
        "channel": channel,
    })
}
