//! HTTP against servers that hang, lie, refuse and break off.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod common;

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{
    FakeServer, PATIENCE, answer, ask, call, get, impatient, next_answer, next_event, spec,
    spec_with_login, started, submit,
};
use crm_core::http::{HttpRequest, Method};
use crm_core::model::{
    ErrorClass, FieldType, RemoteError, Write as Change, WriteKind, WriteResult,
};
use crm_io::{Command, Event, IoThread, Settings, Tag};

/// Holds a connection open without a word until the client gives up.
fn hang(stream: &mut TcpStream) -> bool {
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let _ = std::io::Read::read(stream, &mut [0]);
    false
}

fn push(job: u64, keys: &[&str]) -> Command {
    let write = |key: &&str| Change {
        key: (*key).into(),
        record_id: Some("1".into()),
        unique_value: None,
        unchanged_since: None,
        values: Vec::new(),
    };
    Command::Push {
        job,
        server: 1,
        tag: Tag::default(),
        object: "contacts".into(),
        kind: WriteKind::Update,
        unique_field: None,
        writes: keys.iter().map(write).collect(),
    }
}

fn pushed(io: &IoThread) -> Vec<WriteResult> {
    match next_event(io) {
        Event::Pushed { results, .. } => results,
        other => panic!("not pushed: {other:?}"),
    }
}

fn fetch(io: &IoThread, target: &str) -> Result<crm_core::model::Page, RemoteError> {
    submit(
        io,
        Command::Fetch {
            follow: None,
            job: 9,
            server: 1,
            tag: Tag::default(),
            object: "contacts".into(),
            fields: Arc::new(vec![("a".into(), FieldType::Text)]),
            request: get(target),
        },
    );
    match next_event(io) {
        Event::Fetched { result, job: 9, .. } => result,
        other => panic!("not fetched: {other:?}"),
    }
}

#[test]
fn a_call_carries_the_token_and_comes_back_whole() {
    let server = FakeServer::start(|_, s| answer(s, 200, "x-thing: 1\r\n", b"hello"));
    let io = started(Settings::default(), spec(&server.url));
    let response = ask(&io, get("/a?b=c%20d")).unwrap();
    assert_eq!(response.status, 200);
    assert_eq!(response.body, b"hello");
    assert_eq!(response.header("x-thing"), Some("1"));
    let seen = server.seen();
    assert_eq!(seen[0].line, "GET /a?b=c%20d HTTP/1.1");
    assert_eq!(seen[0].header("authorization"), Some("Bearer fixed"));
    for _ in 0..20 {
        ask(&io, get("/again")).unwrap();
    }
    let connections = server.connections.load(Ordering::SeqCst);
    assert_eq!(connections, 1, "connections are kept alive");
}

#[test]
fn an_answer_that_hangs_at_any_stage_ends_in_a_timeout() {
    let server = FakeServer::start(|r, s| {
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n";
        match r.target() {
            "/head" => {}
            "/half-head" => s.write_all(&head[..20]).unwrap(),
            "/body" => s.write_all(head).unwrap(),
            _ => {
                s.write_all(head).unwrap();
                s.write_all(b"half").unwrap();
            }
        }
        hang(s)
    });
    let io = started(impatient(), spec(&server.url));
    for target in ["/head", "/half-head", "/body", "/half-body"] {
        let began = Instant::now();
        let e = ask(&io, get(target)).unwrap_err();
        assert_eq!(e.code, "timeout", "{target}: {e:?}");
        assert_eq!((e.class, e.maybe_applied), (ErrorClass::Retry, false));
        assert!(began.elapsed() < Duration::from_secs(2), "{target}");
        submit(&io, push(2, &["k"]));
        let results = pushed(&io);
        assert!(
            matches!(&results[..], [WriteResult::Unknown(e)] if e.maybe_applied),
            "{target}: {results:?}"
        );
    }
}

#[test]
fn an_endless_body_is_cut_at_the_cap() {
    let server = FakeServer::start(|r, s| {
        let _ = s.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        let piece = [b'x'; 1024];
        while r.target() == "/endless" {
            let chunk = [b"400\r\n", &piece[..], b"\r\n"].concat();
            if s.write_all(&chunk).is_err() {
                return false;
            }
        }
        false
    });
    let io = started(impatient(), spec(&server.url));
    let e = ask(&io, get("/endless")).unwrap_err();
    assert_eq!(e.code, "body_too_large", "{e:?}");
}

#[test]
fn gzip_is_read_and_cut_at_the_cap_by_its_true_length() {
    let server = FakeServer::start(|r, s| {
        let n = if r.target() == "/bomb" { 200 } else { 2 };
        let body = gzip(&[b'x'; 1_000], n);
        answer(s, 200, "content-encoding: gzip\r\n", &body)
    });
    let io = started(impatient(), spec(&server.url));
    let response = ask(&io, get("/honest")).unwrap();
    assert_eq!(response.body, vec![b'x'; 2_000]);
    let e = ask(&io, get("/bomb")).unwrap_err();
    assert_eq!(e.code, "body_too_large", "{e:?}");
}

/// A gzip file of stored blocks: `n` times `data`.
fn gzip(data: &[u8], n: usize) -> Vec<u8> {
    let len = u16::try_from(data.len()).unwrap();
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let mut crc = !0_u32;
    for block in 1..=n {
        out.push(u8::from(block == n));
        out.extend(len.to_le_bytes());
        out.extend((!len).to_le_bytes());
        out.extend(data);
        for byte in data {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
            }
        }
    }
    out.extend((!crc).to_le_bytes());
    out.extend(u32::try_from(data.len() * n).unwrap().to_le_bytes());
    out
}

#[test]
fn garbage_is_an_error_and_the_next_call_works() {
    let server = FakeServer::start(|r, s| match r.target() {
        "/html" => answer(s, 200, "", b"<html>maintenance</html>"),
        "/truncated" => answer(s, 200, "", b"[\"1\", \"2"),
        "/panic" => answer(s, 200, "", b"\"panic\""),
        "/short" => {
            let _ = s.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
            false
        }
        "/not-http" => {
            let _ = s.write_all(b"SSH-2.0-OpenSSH_9.2\r\n");
            false
        }
        "/nothing" => false,
        _ => answer(s, 200, "", b"[\"1\",\"2\"]"),
    });
    let io = started(impatient(), spec(&server.url));
    for (target, code) in [
        ("/html", "not_json"),
        ("/truncated", "not_json"),
        ("/panic", "abandoned"),
        ("/short", "connection_lost"),
        ("/not-http", "protocol"),
        ("/nothing", "connection_lost"),
    ] {
        let e = fetch(&io, target).unwrap_err();
        assert_eq!(e.code, code, "{target}: {e:?}");
        let page = fetch(&io, "/page").unwrap();
        assert_eq!(page.records.len(), 2);
        assert_eq!(page.records[1].id, "2");
    }
}

#[test]
fn a_large_page_is_parsed_whole() {
    let ids: Vec<String> = (0..60_000).map(|n| format!("{n:08}")).collect();
    let body = serde_json::to_vec(&ids).unwrap();
    let server = FakeServer::start(move |_, s| answer(s, 200, "", &body));
    let io = started(Settings::default(), spec(&server.url));
    let page = fetch(&io, "/page").unwrap();
    assert_eq!(page.records.len(), 60_000);
    assert_eq!(page.records[59_999].id, "00059999");
}

#[test]
fn no_connection_has_a_code_that_says_why() {
    let closed = {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap()
    };
    let io = started(impatient(), spec(&format!("http://{closed}")));
    let e = ask(&io, get("/")).unwrap_err();
    assert_eq!(
        (e.code.as_str(), e.maybe_applied),
        ("connect", false),
        "{e:?}"
    );
    submit(&io, push(1, &["k"]));
    assert!(matches!(&pushed(&io)[..], [WriteResult::Failed(e)] if e.code == "connect"));

    let mut unknown = spec("https://name.invalid");
    unknown.allowed_hosts = vec![".invalid".into()];
    submit(&io, Command::Configure(Box::new(unknown)));
    assert_eq!(ask(&io, get("/")).unwrap_err().code, "dns");

    let plain = FakeServer::start(|_, _| false);
    let tls = plain.url.replace("http:", "https:");
    submit(&io, Command::Configure(Box::new(spec(&tls))));
    let e = ask(&io, get("/")).unwrap_err();
    assert!(e.code == "tls" || e.code == "connect", "{e:?}");
    assert!(!e.maybe_applied);
}

#[test]
fn foreign_hosts_are_refused_before_any_connection() {
    let foreign = FakeServer::start(|_, s| answer(s, 200, "", b"stolen"));
    let port = foreign.url.rsplit(':').next().unwrap().to_string();
    let redirect = format!("location: {}/x\r\n", foreign.url);
    let server = FakeServer::start(move |r, s| match r.target() {
        "/token" => {
            let body = r#"{"access":"t","instance_url":"http://127.0.0.2:1"}"#;
            answer(s, 200, "", body.as_bytes())
        }
        _ => answer(s, 302, &redirect, b""),
    });
    let own = server.url.trim_start_matches("http://").to_string();
    let mut only_own = spec(&server.url);
    only_own.allowed_hosts = vec![own.clone()];
    let io = started(impatient(), only_own);
    let code = |target: &str| ask(&io, get(target)).unwrap_err().code;
    assert_eq!(code("/go"), "redirect");
    assert_eq!(code(&format!("{}/x", foreign.url)), "host_not_allowed");
    assert_eq!(
        code(&format!("http://localhost:{port}/x")),
        "host_not_allowed"
    );
    assert_eq!(code(&format!("http://x@{own}/")), "bad_url");
    // An address that a log-in answer names is checked like any other.
    let mut with_login = spec_with_login(&server.url);
    with_login.allowed_hosts = vec![own];
    submit(&io, Command::Configure(Box::new(with_login)));
    assert_eq!(code("/anything"), "host_not_allowed");
    assert_eq!(foreign.connections.load(Ordering::SeqCst), 0);
    assert_eq!(server.targets(), ["/go", "/token"]);
}

#[test]
fn many_callers_share_one_login_and_an_expiring_token_is_renewed() {
    let logins = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&logins);
    let server = FakeServer::start(move |r, s| match r.target() {
        "/token" => {
            std::thread::sleep(Duration::from_millis(50));
            let n = count.fetch_add(1, Ordering::SeqCst);
            // The first one ends within the margin, so it is good for one use.
            let ttl = if n == 0 { 30_000 } else { 3_600_000 };
            let body = format!(r#"{{"access":"t{n}","ttl_ms":{ttl}}}"#);
            answer(s, 200, "", body.as_bytes())
        }
        _ => answer(s, 200, "", b""),
    });
    let io = started(Settings::default(), spec_with_login(&server.url));
    ask(&io, get("/first")).unwrap();
    for job in 0..10 {
        // The same configuration once more ends no session.
        let again = Box::new(spec_with_login(&server.url));
        submit(&io, Command::Configure(again));
        submit(&io, call(job, get("/many")));
    }
    for _ in 0..10 {
        next_answer(&io).unwrap();
    }
    assert_eq!(logins.load(Ordering::SeqCst), 2);
    let seen = server.seen();
    assert_eq!(
        seen.last().unwrap().header("authorization"),
        Some("Bearer t1")
    );
}

#[test]
fn a_refused_token_is_replaced_once_and_the_write_is_repeated() {
    let logins = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&logins);
    let server = FakeServer::start(move |r, s| match r.target() {
        "/token" => {
            let n = count.fetch_add(1, Ordering::SeqCst);
            answer(s, 200, "", format!(r#"{{"access":"t{n}"}}"#).as_bytes())
        }
        "/never" => answer(s, 401, "", b""),
        _ if r.header("authorization") == Some("Bearer t0") => answer(s, 401, "", b""),
        _ => answer(s, 200, "", b"[\"7\"]"),
    });
    let io = started(Settings::default(), spec_with_login(&server.url));
    submit(&io, push(1, &["k"]));
    assert!(matches!(&pushed(&io)[..], [WriteResult::Done { id, .. }] if id == "7"));
    assert_eq!(logins.load(Ordering::SeqCst), 2);
    let e = ask(&io, get("/never")).unwrap_err();
    assert_eq!((e.status, e.class), (401, ErrorClass::Reauth));
    let never = server.targets().iter().filter(|t| *t == "/never").count();
    assert_eq!(never, 2, "one repeat and no loop");
}

#[test]
fn a_failing_login_is_not_repeated_for_every_job() {
    let server = FakeServer::start(|_, s| answer(s, 400, "", b"{}"));
    let io = started(Settings::default(), spec_with_login(&server.url));
    for job in 0..50 {
        submit(&io, call(job, get("/x")));
    }
    for _ in 0..50 {
        let e = next_answer(&io).unwrap_err();
        assert_eq!(
            (e.code.as_str(), e.class),
            ("invalid_grant", ErrorClass::Stop)
        );
        assert!(!format!("{e:?}").contains("canary"));
    }
    assert_eq!(server.targets(), ["/token"]);
}

#[test]
fn a_lost_response_leaves_the_write_unknown_and_a_refusal_does_not() {
    let server = FakeServer::start(|r, s| {
        let keys: Vec<String> = serde_json::from_slice(&r.body).unwrap_or_default();
        match keys.first().map(String::as_str) {
            Some("lost") => false,
            Some("refused") => answer(s, 400, "", b""),
            _ => answer(s, 200, "", b"[\"1\", null]"),
        }
    });
    let io = started(Settings::default(), spec(&server.url));
    submit(&io, push(1, &["lost", "x"]));
    let results = pushed(&io);
    assert_eq!(results.len(), 2);
    for r in &results {
        assert!(
            matches!(r, WriteResult::Unknown(e) if e.code == "connection_lost"),
            "{r:?}"
        );
    }
    let sent = server.seen().len();
    assert_eq!(
        sent, 1,
        "a write whose answer was lost is never sent again here"
    );
    submit(&io, push(2, &["refused"]));
    assert!(matches!(&pushed(&io)[..], [WriteResult::Failed(e)] if e.status == 400));
    submit(&io, push(3, &["a", "b"]));
    let results = pushed(&io);
    assert!(matches!(
        &results[..],
        [WriteResult::Done { .. }, WriteResult::Unknown(_)]
    ));
}

#[test]
fn an_unusable_certificate_file_or_token_is_named_not_shown() {
    let server = FakeServer::start(|_, s| answer(s, 200, "", b""));
    let mut bad_ca = spec(&server.url);
    bad_ca.ca_pem = Some(b"not a certificate".to_vec());
    let io = started(Settings::default(), bad_ca);
    let e = ask(&io, get("/")).unwrap_err();
    assert_eq!(
        (e.code.as_str(), e.class),
        ("ca_file", ErrorClass::Stop),
        "{e:?}"
    );
    let mut bad_token = spec(&server.url);
    bad_token.credential = crm_core::connectors::Credential::Token {
        token: crm_core::secret::Secret::new("canary\n"),
    };
    submit(&io, Command::Configure(Box::new(bad_token)));
    let e = ask(&io, get("/")).unwrap_err();
    assert_eq!(e.code, "bad_credential");
    assert!(!format!("{e:?}").contains("canary"));
    assert_eq!(server.seen().len(), 0);
}

#[test]
fn a_post_without_a_body_says_so() {
    let server = FakeServer::start(|_, s| answer(s, 200, "", b""));
    let io = started(Settings::default(), spec(&server.url));
    let post = HttpRequest {
        method: Method::Post,
        ..get("/x")
    };
    ask(&io, post).unwrap();
    assert_eq!(server.seen()[0].header("content-length"), Some("0"));
}
