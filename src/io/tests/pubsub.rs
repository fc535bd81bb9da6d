//! Change streams against a bus that fails in all the ways it is known to.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod common;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::bus::{Bus, FetchResponse, Subscriber, event, failed};
use common::{FakeServer, answer, next_event, spec, spec_with_login, started, submit, wait_until};
use crm_core::model::{ChangeKind, ErrorClass, RemoteError};
use crm_io::{Command, Event, IoThread, Replay, ServerSpec, Settings, StreamItem};
use tonic::Code;

const TOPIC: &str = "/data/ContactChangeEvent";
const ID: &str = "003000000000001AAA";

fn on(bus: &Bus, mut spec: ServerSpec) -> ServerSpec {
    spec.config.pubsub_endpoint = bus.url.clone();
    spec
}

fn subscribe(io: &IoThread, replay: Replay) {
    submit(
        io,
        Command::Subscribe {
            stream: 7,
            server: 1,
            topic: TOPIC.into(),
            replay,
        },
    );
}

fn opened(bus: &Bus, replay: Replay) -> IoThread {
    let io = started(Settings::default(), on(bus, spec("http://127.0.0.1:1")));
    subscribe(&io, replay);
    io
}

fn credit(io: &IoThread, events: u32) {
    submit(io, Command::Credit { stream: 7, events });
}

/// The next event but notes.
fn next(io: &IoThread) -> Event {
    loop {
        match next_event(io) {
            Event::Note { .. } => {}
            event => return event,
        }
    }
}

fn up(io: &IoThread) {
    match next(io) {
        Event::StreamUp { stream: 7 } => {}
        other => panic!("not up: {other:?}"),
    }
}

fn batch(io: &IoThread) -> (Vec<StreamItem>, Option<Vec<u8>>) {
    match next(io) {
        Event::Stream {
            stream: 7,
            batch,
            latest_replay_id,
        } => (batch, latest_replay_id),
        other => panic!("not a batch: {other:?}"),
    }
}

fn ended(io: &IoThread) -> (RemoteError, bool) {
    loop {
        match next(io) {
            Event::StreamEnded {
                stream: 7,
                error,
                replay_expired,
            } => return (error, replay_expired),
            Event::StreamUp { .. } => {}
            other => panic!("not ended: {other:?}"),
        }
    }
}

fn number(replay_id: &[u8]) -> u64 {
    u64::from_be_bytes(replay_id.try_into().unwrap())
}

fn send(to: &Subscriber, numbers: std::ops::RangeInclusive<u64>) {
    let response = FetchResponse {
        events: numbers.map(|n| event(n, &[ID])).collect(),
        ..FetchResponse::default()
    };
    to.responses.send(Ok(response)).unwrap();
}

/// Serves events without end, as many as asked for, and records what was asked.
#[derive(Default)]
struct Log {
    /// Topic, preset and replay id of each first request.
    starts: Mutex<Vec<(String, i32, Vec<u8>)>>,
    asked: AtomicU64,
    sent: AtomicU64,
}

/// Ends each subscription after `per_connection` events with an error.
async fn serve(mut s: Subscriber, log: Arc<Log>, per_connection: u64) {
    let mut at = None;
    let mut here = 0;
    while let Ok(Some(request)) = s.requests.message().await {
        let next = at.get_or_insert_with(|| {
            let start = (
                request.topic_name.clone(),
                request.replay_preset,
                request.replay_id.clone(),
            );
            log.starts.lock().unwrap().push(start);
            match &request.replay_id[..] {
                [] => 1,
                id => number(id) + 1,
            }
        });
        let n = u64::try_from(request.num_requested).unwrap();
        log.asked.fetch_add(n, Ordering::SeqCst);
        for _ in 0..n {
            if here == per_connection {
                let end = failed(Code::Unavailable, "");
                let _ = s.responses.send(Err(end));
                return;
            }
            send(&s, *next..=*next);
            log.sent.fetch_add(1, Ordering::SeqCst);
            *next += 1;
            here += 1;
        }
    }
}

#[test]
fn changes_arrive_decoded_with_the_sessions_metadata() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&seen);
    let bus = Bus::start(move |mut s| {
        let keep = Arc::clone(&keep);
        async move {
            let first = s.requests.message().await.unwrap().unwrap();
            let text = |k: &str| s.metadata.get(k).unwrap().to_str().unwrap().to_string();
            let all = ["accesstoken", "instanceurl", "tenantid"].map(text);
            keep.lock().unwrap().push((all, first.topic_name));
            let two = event(2, &[ID, "003000000000002AAA"]);
            let response = FetchResponse {
                events: vec![event(1, &[ID]), two],
                latest_replay_id: 9_u64.to_be_bytes().to_vec(),
                ..FetchResponse::default()
            };
            s.responses.send(Ok(response)).unwrap();
            let alive = FetchResponse {
                latest_replay_id: 50_u64.to_be_bytes().to_vec(),
                ..FetchResponse::default()
            };
            s.responses.send(Ok(alive)).unwrap();
            while let Ok(Some(_)) = s.requests.message().await {}
        }
    });
    let login = FakeServer::start(|_, s| answer(s, 200, "", br#"{"access":"t0"}"#));
    let io = started(Settings::default(), on(&bus, spec_with_login(&login.url)));
    subscribe(&io, Replay::Latest);
    up(&io);
    let (items, latest) = batch(&io);
    assert_eq!(items.len(), 3);
    assert_eq!(items[0].change.record_id, ID);
    assert_eq!(items[0].change.kind, ChangeKind::Update);
    assert_eq!(
        items[0].change.fields,
        [("Phone".to_string(), Some("1".to_string()))]
    );
    assert_eq!(items[2].change.record_id, "003000000000002AAA");
    assert_eq!(items[1].replay_id, items[2].replay_id);
    assert_eq!(number(&latest.unwrap()), 2, "of the last event delivered");
    let (items, latest) = batch(&io);
    assert!(items.is_empty());
    assert_eq!(number(&latest.unwrap()), 50);
    let (metadata, topic) = seen.lock().unwrap()[0].clone();
    assert_eq!(metadata[0], "t0");
    assert_eq!(metadata[1], login.url);
    assert_eq!(metadata[2], "00D000000000001AAA");
    assert_eq!(topic, TOPIC);
    assert_eq!(*bus.schemas.lock().unwrap(), ["schema-1"], "asked for once");
}

#[test]
fn no_more_than_a_hundred_events_are_out_whatever_the_credit() {
    let log = Arc::new(Log::default());
    let keep = Arc::clone(&log);
    let bus = Bus::start(move |s| serve(s, Arc::clone(&keep), u64::MAX));
    let io = opened(&bus, Replay::Earliest);
    up(&io);
    let mut got = 0;
    while got < 100 {
        got += batch(&io).0.len();
    }
    // All is delivered and nothing committed: nothing more is asked for.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(log.asked.load(Ordering::SeqCst), 100);
    assert!(io.try_recv().is_none());
    credit(&io, 30);
    while got < 130 {
        got += batch(&io).0.len();
    }
    assert_eq!(log.asked.load(Ordering::SeqCst), 130);
    // Credit given twice over does not lift the bound.
    credit(&io, 5_000);
    let mut last = 0;
    while got < 230 {
        let (items, latest) = batch(&io);
        got += items.len();
        last = number(&latest.unwrap());
    }
    std::thread::sleep(Duration::from_millis(200));
    assert!(io.try_recv().is_none());
    assert_eq!(log.asked.load(Ordering::SeqCst), 230);
    // One by one it flows.
    while got < 400 {
        credit(&io, 1);
        let (items, latest) = batch(&io);
        got += items.len();
        last = number(&latest.unwrap());
    }
    assert_eq!(log.sent.load(Ordering::SeqCst), 400);
    assert_eq!((got, last), (400, 400));
}

#[test]
fn a_broken_stream_goes_on_after_the_last_delivered_event() {
    let log = Arc::new(Log::default());
    let keep = Arc::clone(&log);
    let bus = Bus::start(move |s| serve(s, Arc::clone(&keep), 7));
    let io = opened(&bus, Replay::After(1_000_u64.to_be_bytes().to_vec()));
    let mut numbers = Vec::new();
    let mut ups = 0;
    while numbers.len() < 30 {
        match next(&io) {
            Event::StreamUp { .. } => ups += 1,
            Event::Stream { batch, .. } => {
                numbers.extend(batch.iter().map(|i| number(&i.replay_id)));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(numbers[..30], (1_001..=1_030).collect::<Vec<_>>()[..]);
    assert!(ups >= 5, "{ups}");
    let starts = log.starts.lock().unwrap().clone();
    assert_eq!(starts[0].1, 2);
    let ids: Vec<u64> = starts.iter().map(|s| number(&s.2)).collect();
    assert_eq!(ids[..4], [1_000, 1_007, 1_014, 1_021]);
}

#[test]
fn an_event_that_cannot_be_read_asks_for_the_object_and_stops_nothing() {
    let bus = Bus::start(|mut s| async move {
        s.requests.message().await.unwrap();
        let mut bad = event(1, &[ID]);
        bad.event.as_mut().unwrap().payload.truncate(9);
        let response = FetchResponse {
            events: vec![bad, event(2, &[ID])],
            ..FetchResponse::default()
        };
        s.responses.send(Ok(response)).unwrap();
        while let Ok(Some(_)) = s.requests.message().await {}
    });
    let io = opened(&bus, Replay::Latest);
    up(&io);
    let (items, _) = batch(&io);
    assert_eq!(items.len(), 2);
    assert_eq!(items[0].change.kind, ChangeKind::Overflow);
    assert_eq!(items[0].change.object, "Contact");
    assert_eq!(items[1].change.record_id, ID);
}

#[test]
fn a_replay_id_that_is_not_kept_ends_the_stream_and_says_so() {
    for trailer in [
        "subscription.fetch.replayid.corrupted",
        "subscription.fetch.replayid.validation.failed",
    ] {
        let bus = Bus::start(move |s| async move {
            let status = failed(Code::InvalidArgument, trailer);
            s.responses.send(Err(status)).unwrap();
        });
        let io = opened(&bus, Replay::After(vec![1]));
        let (error, expired) = ended(&io);
        assert!(expired, "{error:?}");
        assert_eq!(error.code, trailer);
    }
}

#[test]
fn what_cannot_be_cured_by_reconnecting_ends_the_stream() {
    for (code, trailer, class) in [
        (Code::InvalidArgument, "", ErrorClass::FixMapping),
        (Code::NotFound, "topic.notfound", ErrorClass::FixMapping),
        (Code::PermissionDenied, "", ErrorClass::FixPermission),
        (
            Code::ResourceExhausted,
            "subscription.limit.exceeded",
            ErrorClass::Wait,
        ),
    ] {
        let tries = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&tries);
        let bus = Bus::start(move |s| {
            count.fetch_add(1, Ordering::SeqCst);
            async move {
                s.responses.send(Err(failed(code, trailer))).unwrap();
            }
        });
        let io = opened(&bus, Replay::Latest);
        let (error, expired) = ended(&io);
        assert_eq!((error.class, expired), (class, false), "{error:?}");
        assert_eq!(tries.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn an_ended_session_is_renewed_and_the_stream_goes_on() {
    let logins = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&logins);
    let login = FakeServer::start(move |_, s| {
        let n = count.fetch_add(1, Ordering::SeqCst);
        answer(s, 200, "", format!(r#"{{"access":"t{n}"}}"#).as_bytes())
    });
    let bus = Bus::start(|mut s| async move {
        if s.metadata.get("accesstoken").unwrap() == "t0" {
            let status = failed(Code::Unauthenticated, "service.auth.error");
            s.responses.send(Err(status)).unwrap();
            return;
        }
        s.requests.message().await.unwrap();
        send(&s, 1..=3);
        while let Ok(Some(_)) = s.requests.message().await {}
    });
    let io = started(Settings::default(), on(&bus, spec_with_login(&login.url)));
    subscribe(&io, Replay::Latest);
    let mut got = 0;
    while got < 3 {
        if let Event::Stream { batch, .. } = next(&io) {
            got += batch.len();
        }
    }
    assert_eq!(logins.load(Ordering::SeqCst), 2);
}

#[test]
fn a_stream_is_silent_after_unsubscribe_and_told_when_its_server_goes() {
    let log = Arc::new(Log::default());
    let keep = Arc::clone(&log);
    let bus = Bus::start(move |s| serve(s, Arc::clone(&keep), 10));
    let io = opened(&bus, Replay::Latest);
    up(&io);
    batch(&io);
    submit(&io, Command::Unsubscribe { stream: 7 });
    submit(&io, Command::Forget(99));
    wait_until("quiet", || {
        while io.try_recv().is_some() {}
        std::thread::sleep(Duration::from_millis(150));
        io.try_recv().is_none()
    });
    let starts = log.starts.lock().unwrap().len();
    subscribe(&io, Replay::Latest);
    up(&io);
    // The stream is up before its server has read what it asks for.
    wait_until("the second start is seen", || {
        log.starts.lock().unwrap().len() > starts
    });
    submit(&io, Command::Forget(1));
    loop {
        match next(&io) {
            Event::StreamEnded { error, .. } => {
                assert_eq!(error.code, "unknown_server");
                break;
            }
            Event::Stream { .. } | Event::StreamUp { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_endpoint_is_checked_like_any_other_host() {
    let mut spec = spec("http://127.0.0.1:1");
    for (endpoint, code) in [
        ("http://pubsub.example:7443", "host_not_allowed"),
        ("evil.example:7443", "host_not_allowed"),
        ("", "host_not_allowed"),
        ("http://127.0.0.1:9/", "connect"),
    ] {
        spec.config.pubsub_endpoint = endpoint.into();
        let settings = Settings {
            connect_timeout_ms: 300,
            ..Settings::default()
        };
        let io = started(settings, spec.clone());
        subscribe(&io, Replay::Latest);
        if code == "connect" {
            // It is tried again and again, with a note each time.
            match next_event(&io) {
                Event::Note { message, .. } => assert!(message.contains("connect"), "{message}"),
                other => panic!("{other:?}"),
            }
        } else {
            assert_eq!(ended(&io).0.code, code, "{endpoint}");
        }
    }
    subscribe_to_nothing();
}

fn subscribe_to_nothing() {
    let io = IoThread::start(Settings::default()).unwrap();
    subscribe(&io, Replay::Latest);
    assert_eq!(ended(&io).0.code, "unknown_server");
}

#[test]
fn a_stop_is_quick_while_streams_are_open() {
    let bus =
        Bus::start(|mut s| async move { while let Ok(Some(_)) = s.requests.message().await {} });
    let io = opened(&bus, Replay::Latest);
    up(&io);
    let began = std::time::Instant::now();
    drop(io);
    assert!(began.elapsed() < Duration::from_millis(1_500));
}
