//! Streams over CometD against a server that is scripted down to the byte.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod common;

use std::collections::VecDeque;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Mutex;

use common::{
    FakeServer, Request, answer, impatient, next_event, spec, started, submit, wait_until,
};
use crm_core::connectors::salesforce::cdc::cometd::{EARLIEST, LATEST, replay_id, replay_number};
use crm_core::model::{ChangeKind, ErrorClass, RemoteError};
use crm_io::{Command, Event, IoThread, Replay, StreamItem, UNREADABLE};
use serde_json::{Value, json};

const TOPIC: &str = "/data/ContactChangeEvent";

/// What the server does with a connect.
enum Act {
    /// Answers: these messages before its own, which is merged with this.
    Say(Vec<Value>, Value),
    /// Sends the answer's head and a part of its body, and closes.
    CutOff(Vec<Value>),
    /// A body that is no JSON to its end.
    Broken,
    /// A body longer than is read.
    Endless,
    /// Nothing at all.
    Hang,
}

/// A server that greets everybody, and does with each connect what the script
/// says next; then it holds connects for good.
struct Script {
    /// Merged with the answers to the first handshakes and subscriptions.
    greetings: Mutex<VecDeque<Value>>,
    subscriptions: Mutex<VecDeque<Value>>,
    connects: Mutex<VecDeque<Act>>,
}

impl Script {
    fn serve(self) -> FakeServer {
        FakeServer::start(move |request, stream| self.turn(request, stream))
    }

    fn turn(&self, request: &Request, stream: &mut TcpStream) -> bool {
        let said: Value = serde_json::from_slice(&request.body).unwrap();
        let said = &said[0];
        let mut reply = json!({"channel": said["channel"], "id": said["id"], "clientId": "c-1", "successful": true});
        let next = |from: &Mutex<VecDeque<Value>>| from.lock().unwrap().pop_front();
        match said["channel"].as_str().unwrap() {
            "/meta/handshake" => merge(&mut reply, next(&self.greetings)),
            "/meta/subscribe" => merge(&mut reply, next(&self.subscriptions)),
            "/meta/connect" => {
                let act = self.connects.lock().unwrap().pop_front();
                return act.unwrap_or(Act::Hang).perform(reply, stream);
            }
            _ => {}
        }
        body(stream, &json!([reply]))
    }
}

fn merge(reply: &mut Value, with: Option<Value>) {
    let more = with.unwrap_or_default();
    for (key, value) in more.as_object().into_iter().flatten() {
        reply[key] = value.clone();
    }
}

fn body(stream: &mut TcpStream, messages: &Value) -> bool {
    answer(stream, 200, "", messages.to_string().as_bytes())
}

impl Act {
    fn perform(self, mut reply: Value, stream: &mut TcpStream) -> bool {
        match self {
            Act::Say(mut messages, with) => {
                merge(&mut reply, Some(with));
                messages.push(reply);
                body(stream, &Value::Array(messages))
            }
            Act::CutOff(mut messages) => {
                messages.push(reply);
                let text = Value::Array(messages).to_string();
                let head = format!("HTTP/1.1 200 X\r\ncontent-length: {}\r\n\r\n", text.len());
                let part = &text[..text.len() - 20];
                stream
                    .write_all(format!("{head}{part}").as_bytes())
                    .unwrap();
                false
            }
            Act::Broken => answer(stream, 200, "", br#"[{"channel":"/meta/connect","#),
            Act::Endless => answer(stream, 200, "", &vec![b' '; 200_000]),
            Act::Hang => {
                let mut byte = [0];
                // Until the client gives up.
                let _ = std::io::Read::read(stream, &mut byte);
                false
            }
        }
    }
}

/// A change of a contact with this replay number.
fn event(number: i64) -> Value {
    let header = json!({"entityName": "Contact", "recordIds": ["003000000000001AAA"], "changeType": "UPDATE",
        "transactionKey": format!("t-{number}"), "sequenceNumber": 1, "commitTimestamp": 1_714_156_685_000_i64,
        "changedFields": ["Phone"]});
    json!({"channel": TOPIC, "data": {"payload": {"ChangeEventHeader": header, "Phone": "1"}, "event": {"replayId": number}}})
}

fn says(numbers: std::ops::RangeInclusive<i64>) -> Act {
    Act::Say(numbers.map(event).collect(), json!({}))
}

fn script(connects: impl IntoIterator<Item = Act>) -> Script {
    Script {
        greetings: Mutex::default(),
        subscriptions: Mutex::default(),
        connects: Mutex::new(connects.into_iter().collect()),
    }
}

fn follow(server: &FakeServer, replay: Replay) -> IoThread {
    let mut spec = spec(&server.url);
    spec.config.cometd = true;
    let io = started(impatient(), spec);
    let topic = TOPIC.into();
    submit(
        &io,
        Command::Subscribe {
            stream: 7,
            server: 1,
            topic,
            replay,
        },
    );
    io
}

/// The next items of the stream, however often it was opened again meanwhile.
fn items(io: &IoThread) -> Vec<StreamItem> {
    loop {
        match next_event(io) {
            Event::Stream { batch, .. } if !batch.is_empty() => {
                let events = u32::try_from(batch.len()).unwrap();
                submit(io, Command::Credit { stream: 7, events });
                return batch;
            }
            Event::StreamEnded { error, .. } => panic!("ended: {error}"),
            _ => {}
        }
    }
}

fn numbers(items: &[StreamItem]) -> Vec<i64> {
    let ids = items.iter().map(|i| replay_number(&i.replay_id));
    ids.map(Option::unwrap).collect()
}

fn ended(io: &IoThread) -> (RemoteError, bool) {
    loop {
        if let Event::StreamEnded {
            error,
            replay_expired,
            ..
        } = next_event(io)
        {
            return (error, replay_expired);
        }
    }
}

/// Behind which replay number each subscription began.
fn starts(server: &FakeServer) -> Vec<i64> {
    said(server, "/meta/subscribe")
        .iter()
        .map(|m| m["ext"]["replay"][TOPIC].as_i64().unwrap())
        .collect()
}

fn said(server: &FakeServer, channel: &str) -> Vec<Value> {
    let seen = server.seen();
    let messages = seen
        .iter()
        .map(|r| serde_json::from_slice::<Value>(&r.body).unwrap()[0].clone());
    messages.filter(|m| m["channel"] == channel).collect()
}

#[test]
fn whatever_breaks_a_conversation_the_next_one_begins_behind_what_was_delivered() {
    let unknown = |code: &str, text: &str| {
        let advice = json!({"interval": 0, "reconnect": "handshake"});
        Act::Say(
            vec![],
            json!({"successful": false, "error": format!("{code}::{text}"), "advice": advice}),
        )
    };
    let connects = [
        says(1..=2),
        // A part of it arrived, and nothing of it counts.
        Act::CutOff(vec![event(3), event(4)]),
        says(3..=4),
        unknown("403", "Unknown client"),
        says(5..=5),
        // A server that was started again, by its other name.
        unknown("402", "Unknown client"),
        says(6..=6),
        Act::Broken,
        says(7..=7),
        // Delivered, and a new client wanted.
        Act::Say(
            vec![event(8)],
            json!({"advice": {"reconnect": "handshake"}}),
        ),
        // The same client goes on.
        Act::Say(
            vec![event(9)],
            json!({"advice": {"reconnect": "retry", "interval": 1, "timeout": 100}}),
        ),
        // Longer than it said that it would hold.
        Act::Hang,
        says(10..=10),
    ];
    let server = script(connects).serve();
    let io = follow(&server, Replay::Earliest);
    let mut got = Vec::new();
    while got.last() != Some(&10) {
        got.extend(numbers(&items(&io)));
    }
    assert_eq!(got, (1..=10).collect::<Vec<_>>(), "each once, in order");
    assert_eq!(starts(&server), [EARLIEST, 2, 4, 5, 6, 8, 9]);
}

#[test]
fn a_handshake_that_is_denied_is_tried_again_and_subscribes_to_nothing() {
    let denied = json!({"successful": false, "error": "403::Handshake denied", "clientId": null,
        "ext": {"sfdc": {"failureReason": "403::Concurrent client limit exceeded"}}, "advice": {"reconnect": "none"}});
    let script = script([says(1..=1)]);
    script.greetings.lock().unwrap().push_back(denied);
    let server = script.serve();
    let io = follow(&server, Replay::Latest);
    assert_eq!(numbers(&items(&io)), [1]);
    assert_eq!(said(&server, "/meta/handshake").len(), 2);
    assert_eq!(starts(&server), [LATEST]);
}

#[test]
fn advice_not_to_come_back_is_obeyed() {
    let none = json!({"reconnect": "none"});
    let refused = json!({"successful": false, "error": "500::Going down", "advice": none});
    for (act, events) in [
        (Act::Say(vec![], refused), 0),
        (Act::Say(vec![event(1)], json!({"advice": none})), 1),
    ] {
        let server = script([act]).serve();
        let io = follow(&server, Replay::Earliest);
        if events > 0 {
            assert_eq!(items(&io).len(), events, "what came with it is not lost");
        }
        let (error, expired) = ended(&io);
        assert_eq!((error.code.as_str(), expired), ("conversation_over", false));
        assert_eq!(error.class, ErrorClass::Wait);
        assert_eq!(
            said(&server, "/meta/handshake").len(),
            1,
            "nobody comes back"
        );
    }
}

#[test]
fn a_replay_id_that_is_no_longer_kept_ends_the_stream_as_expired() {
    let text = "400::The replayId {5} you provided was invalid.  Please provide a valid ID, -2 to replay all events, or -1 to replay only new events.";
    let script = script([]);
    let refused = json!({"successful": false, "error": text});
    script.subscriptions.lock().unwrap().push_back(refused);
    let server = script.serve();
    let io = follow(&server, Replay::After(replay_id(5)));
    assert!(ended(&io).1);
    assert_eq!(starts(&server), [5]);
}

#[test]
fn an_answer_that_is_too_long_is_skipped_once_and_its_object_read_again() {
    let server = script([says(1..=1), Act::Endless, says(9..=9)]).serve();
    let io = follow(&server, Replay::Earliest);
    assert_eq!(numbers(&items(&io)), [1]);
    let skipped = items(&io);
    let [item] = skipped.as_slice() else {
        panic!("{skipped:?}");
    };
    assert_eq!(item.change.kind, ChangeKind::Overflow);
    assert_eq!(item.change.object, "Contact");
    assert!(item.change.identity.starts_with(UNREADABLE));
    // A crash before the next event comes back to where the trouble was.
    assert_eq!(item.replay_id, replay_id(1));
    assert_eq!(numbers(&items(&io)), [9]);
    assert_eq!(
        starts(&server),
        [EARLIEST, LATEST],
        "not the same answer again"
    );
    assert_eq!(said(&server, "/meta/disconnect").len(), 1);
}

#[test]
fn a_stream_that_is_given_up_takes_leave_and_so_does_a_thread_that_stops() {
    let server = script([says(1..=1)]).serve();
    let io = follow(&server, Replay::Earliest);
    items(&io);
    submit(&io, Command::Unsubscribe { stream: 7 });
    wait_until("the server is told", || {
        !said(&server, "/meta/disconnect").is_empty()
    });
    let leave = &said(&server, "/meta/disconnect")[0];
    assert_eq!(leave["clientId"], "c-1");
    drop(io);
    assert_eq!(said(&server, "/meta/disconnect").len(), 1, "once");

    let server = script([says(1..=1)]).serve();
    let io = follow(&server, Replay::Earliest);
    items(&io);
    drop(io);
    wait_until("the server is told", || {
        !said(&server, "/meta/disconnect").is_empty()
    });
}
