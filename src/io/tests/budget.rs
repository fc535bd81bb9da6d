//! Budget, pauses and bounds: what is accepted is answered, and not too fast.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{
    FakeServer, answer, ask, call, get, next_answer, next_event, spec, started, submit, wait_until,
};
use crm_core::budget::{Budget, Exhausted, Latency};
use crm_core::http::{HttpRequest, Purpose};
use crm_core::model::ErrorClass;
use crm_io::{Command, Event, Settings, Tag};

#[test]
fn a_429_pauses_all_and_repeats_within_the_bound() {
    let first = AtomicUsize::new(0);
    let server = FakeServer::start(move |r, s| match r.target() {
        "/long" => answer(s, 429, "retry-after-ms: 3600000\r\n", b""),
        "/locked" | "/limited" if first.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) => {
            let status = if r.target() == "/locked" { 423 } else { 429 };
            answer(s, status, "retry-after-ms: 300\r\n", b"")
        }
        _ => answer(s, 200, "", b"ok"),
    });
    let io = started(Settings::default(), spec(&server.url));
    let began = Instant::now();
    assert_eq!(ask(&io, get("/limited")).unwrap().body, b"ok");
    assert!(began.elapsed() >= Duration::from_millis(300));
    // A lock is one record's matter: others pass it.
    submit(&io, call(1, get("/locked")));
    submit(&io, call(2, get("/other")));
    let order: Vec<u64> = (0..2)
        .map(|_| match next_event(&io) {
            Event::Answer { job, result, .. } => {
                result.unwrap();
                job
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(order, [2, 1]);
    // Longer than the bound: said at once, and to whoever comes next.
    let began = Instant::now();
    for target in ["/long", "/after"] {
        let e = ask(&io, get(target)).unwrap_err();
        assert_eq!(e.class, ErrorClass::Wait, "{target}");
        assert!(e.retry_after_ms.unwrap() > 3_500_000, "{e:?}");
        assert!(!e.maybe_applied);
    }
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(!server.targets().contains(&"/after".to_string()));
}

#[test]
fn the_budget_told_by_the_crm_is_kept() {
    // Ten calls per second, counted strictly at arrival.
    let log: std::sync::Mutex<Vec<Instant>> = std::sync::Mutex::default();
    let refused = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&refused);
    let server = FakeServer::start(move |_, s| {
        let now = Instant::now();
        let mut log = log.lock().unwrap();
        log.retain(|t| now - *t < Duration::from_secs(1));
        if log.len() >= 10 {
            count.fetch_add(1, Ordering::SeqCst);
            return answer(s, 429, "retry-after-ms: 1000\r\n", b"");
        }
        log.push(now);
        let left = 10 - log.len();
        let headers = format!("x-max: 10\r\nx-left: {left}\r\nx-window-ms: 1000\r\n");
        answer(s, 200, &headers, b"")
    });
    let io = started(Settings::default(), spec(&server.url));
    let bulk = |n| HttpRequest {
        purpose: Purpose::Backfill,
        ..get(&format!("/bulk/{n}"))
    };
    ask(&io, bulk(0)).unwrap();
    let began = Instant::now();
    for n in 1..=30 {
        submit(&io, call(n, bulk(n)));
    }
    for _ in 1..=30 {
        next_answer(&io).unwrap();
    }
    let took = began.elapsed();
    assert_eq!(refused.load(Ordering::SeqCst), 0);
    assert!(took >= Duration::from_millis(2_000), "{took:?}");
    assert!(took <= Duration::from_millis(5_500), "{took:?}");
}

#[test]
fn full_is_told_and_nothing_accepted_is_lost() {
    let server = FakeServer::start(|_, s| answer(s, 200, "", &[b'x'; 1_000]));
    let settings = Settings {
        max_outstanding: 20,
        max_in_flight_per_server: 4,
        max_waiting_bytes: 4_000,
        ..Settings::default()
    };
    let io = started(settings, spec(&server.url));
    for job in 0..20 {
        submit(&io, call(job, get("/x")));
    }
    assert!(io.submit(call(20, get("/x"))).is_err());
    // What waits to be taken stops further requests before it grows.
    wait_until("some are answered", || server.seen().len() >= 5);
    std::thread::sleep(Duration::from_millis(100));
    let sent = server.seen().len();
    assert!(sent < 20, "{sent} were sent");
    let mut jobs: Vec<u64> = (0..20)
        .map(|_| match next_event(&io) {
            Event::Answer { job, .. } => job,
            other => panic!("{other:?}"),
        })
        .collect();
    jobs.sort_unstable();
    assert_eq!(jobs, (0..20).collect::<Vec<_>>());
    submit(&io, call(21, get("/x")));
    next_answer(&io).unwrap();
}

#[test]
fn usage_counts_every_call_by_purpose() {
    let server = FakeServer::start(|_, s| answer(s, 200, "x-max: 190\r\n", b"12345"));
    let io = started(Settings::default(), spec(&server.url));
    for job in 0..3 {
        submit(&io, call(job, get("/x")));
    }
    let (mut answers, mut counted, mut bytes_seen) = (0, 0, 0);
    wait_until("usage of three calls", || {
        while let Some(event) = io.try_recv() {
            match event {
                Event::Answer { .. } => answers += 1,
                Event::Limits {
                    server: 1,
                    hint,
                    refused: None,
                } => assert_eq!(hint.window_max, Some(190)),
                Event::Usage {
                    server: 1,
                    mirror: 0,
                    asked,
                    calls,
                    limited: 0,
                    failed: 0,
                    bytes,
                } => {
                    assert_eq!(asked.purpose, Purpose::ReadBack);
                    assert_eq!(&*asked.endpoint, "GET /x");
                    counted += calls;
                    bytes_seen += bytes;
                }
                other => panic!("{other:?}"),
            }
        }
        answers == 3 && counted == 3
    });
    assert_eq!(bytes_seen, 15);
}

#[test]
fn a_forgotten_or_unknown_server_answers_its_jobs() {
    let server = FakeServer::start(|_, s| answer(s, 429, "retry-after-ms: 2000\r\n", b""));
    let io = started(Settings::default(), spec(&server.url));
    submit(&io, call(1, get("/x")));
    wait_until("it is sent", || !server.seen().is_empty());
    submit(&io, call(2, get("/x")));
    submit(&io, Command::Forget(1));
    submit(&io, call(3, get("/x")));
    let mut jobs = Vec::new();
    for _ in 0..3 {
        match next_event(&io) {
            Event::Answer {
                job,
                result: Err(e),
                ..
            } => jobs.push((job, e.code)),
            other => panic!("{other:?}"),
        }
    }
    jobs.sort();
    assert!(
        jobs.iter().all(|(_, code)| code == "unknown_server"),
        "{jobs:?}"
    );
}

#[test]
fn lanes_go_in_strict_order_and_a_mirrors_share_holds_up_nobody_else() {
    // One call at a time, so that the order of arrival is the order of choice.
    let server = FakeServer::start(|r, s| {
        if r.target() == "/first" {
            std::thread::sleep(Duration::from_millis(300));
        }
        answer(
            s,
            200,
            "x-max: 40\r\nx-left: 40\r\nx-window-ms: 60000\r\n",
            b"",
        )
    });
    let io = started(Settings::default(), spec(&server.url));
    submit(
        &io,
        Command::Budget {
            server: 1,
            budget: Box::new(Budget {
                concurrent: Some(1),
                mirrors: [(5, 25)].into(),
                ..Budget::default()
            }),
        },
    );
    let tagged = |job, target: &str, purpose, mirror, latency| Command::Call {
        job,
        server: 1,
        tag: Tag { mirror, latency },
        request: HttpRequest {
            purpose,
            ..get(target)
        },
    };
    let live = Latency::Interactive;
    submit(&io, tagged(1, "/first", Purpose::Push, 0, live));
    wait_until("the first is on its way", || server.seen().len() == 1);
    submit(&io, tagged(2, "/reconcile", Purpose::Reconcile, 0, live));
    submit(&io, tagged(3, "/backfill", Purpose::Backfill, 0, live));
    submit(
        &io,
        tagged(4, "/relaxed", Purpose::Push, 0, Latency::Relaxed),
    );
    submit(&io, tagged(5, "/poll", Purpose::Poll, 0, live));
    submit(&io, tagged(6, "/read", Purpose::ReadBack, 0, live));
    submit(&io, tagged(7, "/own", Purpose::Push, 5, live));
    submit(&io, tagged(8, "/own", Purpose::Push, 5, live));
    submit(&io, tagged(9, "/push", Purpose::Push, 0, live));
    wait_until("all but the mirror's second call arrived", || {
        server.seen().len() >= 8
    });
    let mut targets = server.targets();
    // Two lines of one lane, and both came within a millisecond.
    targets[1..3].sort();
    let order = [
        "/first",
        "/own",
        "/push",
        "/read",
        "/poll",
        "/relaxed",
        "/backfill",
        "/reconcile",
    ];
    assert_eq!(targets, order);
}

#[test]
fn heavy_work_is_told_when_its_window_opens() {
    let server = FakeServer::start(|_, s| answer(s, 200, "", b""));
    let io = started(Settings::default(), spec(&server.url));
    let budget = |heavy| Command::Budget {
        server: 1,
        budget: Box::new(Budget {
            heavy,
            ..Budget::default()
        }),
    };
    submit(&io, budget(Some(Vec::new())));
    let bulk = || HttpRequest {
        purpose: Purpose::Backfill,
        ..get("/bulk")
    };
    let e = ask(&io, bulk()).unwrap_err();
    assert_eq!(e.class, ErrorClass::Wait);
    assert!(e.retry_after_ms.unwrap() > 3_000_000, "{e:?}");
    ask(&io, get("/read")).unwrap();
    submit(&io, budget(None));
    ask(&io, bulk()).unwrap();
    assert_eq!(server.targets(), ["/read", "/bulk"]);
}

#[test]
fn a_refusal_is_told_with_its_end_and_usage_counts_it_for_its_mirror() {
    let server = FakeServer::start(|_, s| answer(s, 429, "retry-after-ms: 3600000\r\n", b""));
    let io = started(Settings::default(), spec(&server.url));
    let request = Command::Call {
        job: 1,
        server: 1,
        tag: Tag {
            mirror: 3,
            ..Tag::default()
        },
        request: get("/x"),
    };
    submit(&io, request);
    let (mut told, mut counted) = (false, false);
    wait_until("refusal and usage", || {
        while let Some(event) = io.try_recv() {
            match event {
                Event::Limits { refused, .. } => {
                    let (what, until) = refused.unwrap();
                    assert_eq!(what, Exhausted::Window);
                    assert!(until > 1_700_000_000_000, "{until}");
                    told = true;
                }
                Event::Usage {
                    mirror: 3,
                    calls: 1,
                    limited: 1,
                    failed: 0,
                    ..
                } => counted = true,
                Event::Answer { result: Err(_), .. } => {}
                other => panic!("{other:?}"),
            }
        }
        told && counted
    });
}
