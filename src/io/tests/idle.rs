//! Nothing happens while nothing happens. Alone in its file, so that the
//! process has one I/O thread to look at.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod common;

use std::time::Duration;

use common::{FakeServer, answer, ask, get, spec, started};
use crm_io::{ListenerSettings, Settings};

/// How often the I/O thread went to sleep so far.
fn sleeps() -> u64 {
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        let status = std::fs::read_to_string(path.join("status")).unwrap_or_default();
        if status.starts_with("Name:\tcrm-io\n") {
            let line = status.lines().find(|l| l.starts_with("voluntary")).unwrap();
            return line.split('\t').nth(1).unwrap().parse().unwrap();
        }
    }
    panic!("no thread named crm-io");
}

#[test]
fn an_idle_thread_does_not_wake_up() {
    let server = FakeServer::start(|_, s| answer(s, 200, "", b""));
    let settings = Settings {
        listener: Some(ListenerSettings::at("127.0.0.1:0".parse().unwrap())),
        ..Settings::default()
    };
    let io = started(settings, spec(&server.url));
    ask(&io, get("/x")).unwrap();
    // What the call left to do ends soon; then there is silence.
    let mut before = sleeps();
    common::wait_until("a quiet while", || {
        std::thread::sleep(Duration::from_millis(300));
        let now = sleeps();
        std::mem::replace(&mut before, now) == now
    });
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(sleeps(), before);
}
