//! The webhook listener against callers that are slow, large or many.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use common::{next_event, readable, submit};
use crm_core::http::Delivery;
use crm_io::{Command, Content, Event, IoThread, ListenerSettings, Settings};

fn listening(change: impl FnOnce(&mut ListenerSettings)) -> IoThread {
    let mut listener = ListenerSettings::at("127.0.0.1:0".parse().unwrap());
    change(&mut listener);
    IoThread::start(Settings {
        listener: Some(listener),
        ..Settings::default()
    })
    .unwrap()
}

fn connect(io: &IoThread) -> TcpStream {
    let stream = TcpStream::connect(io.listen_addr().unwrap()).unwrap();
    stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
    stream
}

fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: hooks.example\r\nX-Forwarded-Proto: https\r\n\
         X-Signature: s\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn send(io: &IoThread, bytes: &[u8]) -> TcpStream {
    let mut stream = connect(io);
    stream.write_all(bytes).unwrap();
    stream
}

/// Status line and headers of the next answer, and what came of the body.
fn read(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => text.extend_from_slice(&piece[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(e) => panic!("no answer: {e}"),
        }
        let so_far = String::from_utf8_lossy(&text).into_owned();
        if let Some((head, body)) = so_far.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|l| l.strip_prefix("content-length: "))
                .map_or(0, |v| v.parse().unwrap());
            if body.len() >= length {
                break;
            }
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn status(stream: &mut TcpStream) -> u16 {
    let text = read(stream);
    let code = text.split(' ').nth(1).unwrap_or("0");
    code.parse().unwrap_or(0)
}

/// The next webhook; counts of refused ones on the way are left aside.
fn webhook(io: &IoThread) -> (u64, Delivery) {
    loop {
        match next_event(io) {
            Event::Webhook {
                token,
                content: Content::Raw(delivery),
                ..
            } => return (token, delivery),
            Event::Refused { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Takes counts of refused webhooks until `expected` are told.
fn refused(io: &IoThread, expected: u64) {
    let mut told = 0;
    while told < expected {
        match next_event(io) {
            Event::Refused { name, count } => {
                assert_eq!(name, "hub");
                told += u64::from(count);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told, expected);
    assert!(io.try_recv().is_none());
}

fn reply(io: &IoThread, token: u64, status: u16) {
    submit(
        io,
        Command::Reply {
            token,
            status,
            body: "done".into(),
        },
    );
}

#[test]
fn bytes_arrive_raw_and_the_sessions_word_goes_back() {
    let io = listening(|_| {});
    let body = b"[{\"a\": 1}]\r\n\0\xff";
    let mut stream = send(&io, &post("/webhook/hub?x=%40", body));
    let (token, delivery) = webhook(&io);
    assert_eq!(delivery.method, "POST");
    assert_eq!(delivery.uri, "https://hooks.example/webhook/hub?x=%40");
    assert_eq!(delivery.body, body);
    assert!(
        delivery
            .headers
            .contains(&("x-signature".into(), "s".into()))
    );
    reply(&io, token, 202);
    let text = read(&mut stream);
    assert!(text.starts_with("HTTP/1.1 202"), "{text}");
    assert!(text.ends_with("done"), "{text}");
    // The connection is kept: a proxy sends the next delivery on it.
    stream.write_all(&post("/webhook/hub", b"2")).unwrap();
    let (token, delivery) = webhook(&io);
    assert_eq!(delivery.body, b"2");
    reply(&io, token, 401);
    assert_eq!(status(&mut stream), 401);
}

#[test]
fn only_posts_to_webhook_paths_reach_the_session() {
    let io = listening(|_| {});
    for (request, expected) in [
        ("GET /webhook/hub HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        ("PUT /webhook/hub HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        ("POST / HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        ("POST /webhook/ HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        ("POST /webhook/a/b HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        ("nonsense\r\n\r\n", 400),
    ] {
        let mut stream = send(&io, request.as_bytes());
        assert_eq!(status(&mut stream), expected, "{request}");
    }
    assert!(io.try_recv().is_none());
}

#[test]
fn a_long_body_is_413_whether_announced_or_not() {
    let io = listening(|l| l.max_body_bytes = 1_000);
    let mut stream = send(&io, &post("/webhook/hub", &[b'x'; 1_001]));
    assert_eq!(status(&mut stream), 413);
    let head = "POST /webhook/hub HTTP/1.1\r\nHost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = format!("190\r\n{}\r\n", "x".repeat(400));
    let mut stream = send(&io, format!("{head}{}", chunk.repeat(3)).as_bytes());
    assert_eq!(status(&mut stream), 413);
    refused(&io, 2);
    let mut stream = send(&io, &post("/webhook/hub", &[b'x'; 1_000]));
    let (token, _) = webhook(&io);
    reply(&io, token, 204);
    assert_eq!(status(&mut stream), 204);
}

#[test]
fn too_many_or_too_long_headers_are_431() {
    let io = listening(|_| {});
    let many = "a: b\r\n".repeat(100);
    let long = format!("a: {}\r\n", "b".repeat(20_000));
    for headers in [many, long] {
        let head = format!("POST /webhook/hub HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        let mut stream = send(&io, head.as_bytes());
        assert_eq!(status(&mut stream), 431);
    }
    assert!(io.try_recv().is_none());
}

#[test]
fn a_session_that_does_not_reply_costs_a_503_in_time() {
    let io = listening(|l| l.timeout_ms = 300);
    let began = Instant::now();
    let mut stream = send(&io, &post("/webhook/hub", b"1"));
    assert_eq!(status(&mut stream), 503);
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(3));
    let (token, _) = webhook(&io);
    reply(&io, token, 200);
    // The late word is dropped; the connection serves the next delivery.
    stream.write_all(&post("/webhook/hub", b"2")).unwrap();
    let (token, _) = webhook(&io);
    reply(&io, token, 200);
    assert_eq!(status(&mut stream), 200);
}

#[test]
fn deliveries_beyond_the_bound_are_503_and_the_others_unharmed() {
    let io = listening(|l| l.max_concurrent = 3);
    let mut held: Vec<_> = (0..3)
        .map(|_| {
            let stream = send(&io, &post("/webhook/hub", b"1"));
            (stream, webhook(&io).0)
        })
        .collect();
    let mut extra = send(&io, &post("/webhook/hub", b"2"));
    assert_eq!(status(&mut extra), 503);
    for (stream, token) in &mut held {
        reply(&io, *token, 200);
        assert_eq!(status(stream), 200);
    }
    let mut stream = send(&io, &post("/webhook/hub", b"3"));
    let (token, _) = webhook(&io);
    reply(&io, token, 200);
    assert_eq!(status(&mut stream), 200);
}

#[test]
fn slow_senders_are_cut_off_and_cost_nobody_else_a_place() {
    let io = listening(|l| {
        l.timeout_ms = 300;
        l.max_concurrent = 2;
    });
    let half = post("/webhook/hub", b"body that never ends");
    let mut slow_body = send(&io, &half[..half.len() - 5]);
    let mut slow_head: Vec<_> = (0..5).map(|_| send(&io, &half[..30])).collect();
    assert_eq!(status(&mut slow_body), 408);
    for stream in &mut slow_head {
        let text = read(stream);
        assert!(text.is_empty() || text.contains(" 408 "), "{text}");
    }
    let mut stream = send(&io, &post("/webhook/hub", b"1"));
    let (token, _) = webhook(&io);
    reply(&io, token, 200);
    assert_eq!(status(&mut stream), 200);
}

#[test]
fn a_caller_that_hangs_up_is_forgotten() {
    let io = listening(|l| l.max_concurrent = 1);
    let stream = send(&io, &post("/webhook/hub", b"1"));
    let (token, _) = webhook(&io);
    drop(stream);
    common::wait_until("its place is free", || {
        let mut stream = send(&io, &post("/webhook/hub", b"2"));
        loop {
            if let Some(Event::Webhook { token, .. }) = io.try_recv() {
                reply(&io, token, 200);
                return status(&mut stream) == 200;
            }
            if readable(stream.as_raw_fd(), Duration::from_millis(5)) {
                assert_eq!(status(&mut stream), 503);
                return false;
            }
        }
    });
    reply(&io, token, 200);
}

#[test]
fn an_address_that_others_can_reach_is_refused() {
    for addr in ["0.0.0.0:0", "10.1.2.3:80", "[::]:0"] {
        let error = IoThread::start(Settings {
            listener: Some(ListenerSettings::at(addr.parse().unwrap())),
            ..Settings::default()
        })
        .err()
        .unwrap();
        assert!(error.to_string().contains("loopback"), "{error}");
    }
}

#[test]
fn a_taken_address_is_told_at_the_start() {
    let io = listening(|_| {});
    let again = IoThread::start(Settings {
        listener: Some(ListenerSettings::at(io.listen_addr().unwrap())),
        ..Settings::default()
    });
    let error = again.err().unwrap();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
}
