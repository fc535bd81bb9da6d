//! The thread's life: signals, stop, wake socket, added latency.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod common;

use std::io::Read;
use std::time::{Duration, Instant};

use common::{
    FakeServer, answer, ask, call, get, next_answer, next_event, readable, spec, started, submit,
    wait_until,
};
use crm_io::{Command, Event, IoThread, Settings};

fn hanging() -> FakeServer {
    FakeServer::start(|_, s| {
        let _ = s.set_read_timeout(Some(common::PATIENCE));
        let _ = s.read(&mut [0]);
        false
    })
}

#[test]
fn a_stop_is_quick_while_requests_hang() {
    let server = hanging();
    let io = started(Settings::default(), spec(&server.url));
    for job in 0..40 {
        submit(&io, call(job, get("/x")));
    }
    wait_until("requests hang", || server.seen().len() >= 10);
    assert!(io.alive());
    let began = Instant::now();
    drop(io);
    let took = began.elapsed();
    assert!(took < Duration::from_millis(1_500), "{took:?}");
}

#[test]
fn a_stop_is_quick_while_a_name_lookup_hangs() {
    // 100 lookups of names that no server answers for; each blocks a helper.
    let mut unknown = spec("https://name.invalid");
    unknown.allowed_hosts = vec![".invalid".into()];
    let io = started(Settings::default(), unknown);
    for n in 0..100 {
        submit(&io, call(n, get(&format!("https://n{n}.invalid/"))));
    }
    let began = Instant::now();
    drop(io);
    assert!(began.elapsed() < Duration::from_millis(1_500));
}

/// Name and blocked signals of this process's I/O threads, as the kernel
/// tells them.
fn masks() -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        let status = std::fs::read_to_string(path.join("status")).unwrap_or_default();
        let field = |key: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(key));
            line.unwrap_or("").trim().to_string()
        };
        let name = field("Name:");
        if name.starts_with("crm-io") {
            found.push((name, u64::from_str_radix(&field("SigBlk:"), 16).unwrap()));
        }
    }
    found
}

static MAIN: std::sync::OnceLock<libc::pthread_t> = std::sync::OnceLock::new();
static ELSEWHERE: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
static HERE: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

extern "C" fn count_signal(_: libc::c_int) {
    // SAFETY: pthread_self has no preconditions and is async-signal-safe.
    let me = unsafe { libc::pthread_self() };
    let counter = if MAIN.get() == Some(&me) {
        &HERE
    } else {
        &ELSEWHERE
    };
    counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
}

#[test]
fn no_signal_ever_reaches_the_thread_or_its_helpers() {
    let server = FakeServer::start(|_, s| answer(s, 200, "", b""));
    let io = started(Settings::default(), spec(&server.url));
    ask(&io, get("/x")).unwrap();
    // A name lookup needs a helper thread.
    let mut named = spec("https://name.invalid");
    named.allowed_hosts = vec![".invalid".into()];
    let lookup = started(Settings::default(), named);
    let _ = ask(&lookup, get("/"));
    let masks = masks();
    for wanted in ["crm-io", "crm-io-helper"] {
        assert!(masks.iter().any(|(name, _)| name == wanted), "{masks:?}");
    }
    for (name, mask) in masks {
        for signal in [libc::SIGHUP, libc::SIGTERM, libc::SIGUSR1, libc::SIGINT] {
            assert!(
                mask & (1 << (signal - 1)) != 0,
                "{name}: {signal} in {mask:x}"
            );
        }
    }
    // Handlers run on whichever thread the kernel picks among those that do
    // not block: flood this thread while the I/O thread works.
    // SAFETY: pthread_self has no preconditions.
    MAIN.get_or_init(|| unsafe { libc::pthread_self() });
    // SAFETY: the handler only touches atomics.
    unsafe {
        libc::signal(
            libc::SIGUSR2,
            count_signal as *const () as libc::sighandler_t,
        )
    };
    let main = *MAIN.get().unwrap();
    for round in 0..200 {
        submit(&io, call(round, get("/x")));
        for _ in 0..100 {
            // SAFETY: the thread of this test is alive.
            unsafe { libc::pthread_kill(main, libc::SIGUSR2) };
        }
        next_answer(&io).unwrap();
    }
    let here = HERE.load(std::sync::atomic::Ordering::SeqCst);
    assert!(here > 0, "the flood was real");
    assert_eq!(ELSEWHERE.load(std::sync::atomic::Ordering::SeqCst), 0);
    assert!(io.alive());
    let before = {
        let mut mask = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: a null second argument only reads the mask into the third.
        unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), mask.as_mut_ptr());
            libc::sigismember(mask.as_ptr(), libc::SIGTERM)
        }
    };
    assert_eq!(before, 0, "the spawning thread has its mask back");
}

#[test]
fn the_wake_socket_is_readable_exactly_while_events_wait() {
    let server = FakeServer::start(|_, s| answer(s, 200, "", b""));
    let io = started(Settings::default(), spec(&server.url));
    assert!(!readable(io.wake_fd(), Duration::from_millis(50)));
    for job in 0..5 {
        submit(&io, call(job, get("/x")));
    }
    for _ in 0..5 {
        next_answer(&io).unwrap();
    }
    while io.try_recv().is_some() {}
    assert!(!readable(io.wake_fd(), Duration::from_millis(50)));
    submit(&io, call(6, get("/x")));
    assert!(readable(io.wake_fd(), Duration::from_secs(5)));
}

#[test]
fn a_call_over_loopback_is_answered_at_once() {
    let server = FakeServer::start(|_, s| answer(s, 200, "", b"{}"));
    let io = started(Settings::default(), spec(&server.url));
    ask(&io, get("/warm")).unwrap();
    let mut times: Vec<Duration> = (0..500)
        .map(|_| {
            let began = Instant::now();
            ask(&io, get("/x")).unwrap();
            began.elapsed()
        })
        .collect();
    times.sort_unstable();
    let (p50, p99) = (times[250], times[495]);
    println!("call over loopback: p50 {p50:?}, p99 {p99:?}");
    // Generous, as the machine may be busy; the printed figure is the measure.
    assert!(p50 < Duration::from_millis(5), "{p50:?}");
}

#[test]
fn many_calls_in_parallel_keep_one_thread_busy_not_one_request() {
    let server = FakeServer::start(|_, s| {
        std::thread::sleep(Duration::from_millis(50));
        answer(s, 200, "", b"")
    });
    let io = started(Settings::default(), spec(&server.url));
    let began = Instant::now();
    for job in 0..32 {
        submit(&io, call(job, get("/x")));
    }
    for _ in 0..32 {
        next_answer(&io).unwrap();
    }
    assert!(began.elapsed() < Duration::from_millis(800));
}

#[test]
fn commands_for_what_does_not_exist_are_harmless() {
    let io = IoThread::start(Settings::default()).unwrap();
    submit(&io, Command::Forget(99));
    submit(&io, Command::Unsubscribe { stream: 5 });
    submit(
        &io,
        Command::Credit {
            stream: 5,
            events: 1,
        },
    );
    submit(
        &io,
        Command::Reply {
            token: 5,
            status: 200,
            body: String::new(),
        },
    );
    submit(&io, call(1, get("/x")));
    match next_event(&io) {
        Event::Answer {
            job: 1,
            result: Err(e),
            ..
        } => assert_eq!(e.code, "unknown_server"),
        other => panic!("{other:?}"),
    }
    assert!(io.alive());
}
