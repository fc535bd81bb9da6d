//! Answers of any length whose rows are handed over while they arrive.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod common;

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{FakeServer, next_event, spec, started, submit};
use crm_core::connectors::bulk::{BulkReader, Fields};
use crm_core::connectors::{Connector, ServerConfig, by_type};
use crm_core::http::HttpResponse;
use crm_core::model::{FieldType, Page, RemoteError};
use crm_io::{Command, Event, Follow, IoThread, ServerSpec, Settings, Tag};

/// Rows of an answer, a kilobyte each: more than any answer that is read whole may have.
const ROWS: usize = 40_000;

fn salesforce() -> &'static dyn Connector {
    by_type("salesforce").unwrap()
}

fn bulk() -> &'static dyn BulkReader {
    salesforce().bulk().unwrap()
}

fn fields() -> Fields {
    Arc::new(vec![("Name".into(), FieldType::Text)])
}

/// Sends the head and so many rows of the announced number; false if the reader went away.
fn send(stream: &mut TcpStream, announced: usize, rows: usize, written: &AtomicUsize) -> bool {
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/csv\r\nsforce-locator: null\r\n\
         sforce-numberofrecords: {announced}\r\nconnection: close\r\n\r\n\"Id\",\"SystemModstamp\",\"Name\"\n"
    );
    let mut fine = stream.write_all(head.as_bytes()).is_ok();
    let name = "x".repeat(1_000);
    for n in 0..rows {
        let row = format!("\"{n}\",\"2026-05-01T07:25:37.000Z\",\"{name}\"\n");
        fine = fine && stream.write_all(row.as_bytes()).is_ok();
        written.fetch_add(row.len(), Ordering::AcqRel);
    }
    false
}

fn server(announced: usize, rows: usize) -> (FakeServer, Arc<AtomicUsize>) {
    let written = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&written);
    let server = FakeServer::start(move |_, stream| send(stream, announced, rows, &count));
    (server, written)
}

fn fetch(io: &IoThread) {
    let job = r#"{"id":"750xx0000000001AAA","state":"JobComplete"}"#;
    let started = HttpResponse {
        status: 200,
        headers: Vec::new(),
        body: job.as_bytes().to_vec(),
    };
    let place = bulk().started(&started, &fields()).unwrap();
    let config = ServerConfig::default();
    submit(
        io,
        Command::Fetch {
            job: 9,
            server: 1,
            tag: Tag::default(),
            object: "Contact".into(),
            fields: fields(),
            request: salesforce().list_request(&config, "Contact", &fields(), Some(&place)),
            follow: Some(Follow {
                pages: 8,
                end: None,
            }),
        },
    );
}

fn next_page(io: &IoThread) -> (Result<Page, RemoteError>, bool) {
    match next_event(io) {
        Event::Fetched {
            job: 9,
            result,
            following,
            ..
        } => (result, following),
        other => panic!("not fetched: {other:?}"),
    }
}

fn io(server: &FakeServer) -> IoThread {
    let settings = Settings {
        max_waiting_bytes: 1 << 20,
        ..Settings::default()
    };
    let spec = ServerSpec {
        connector: salesforce(),
        ..spec(&server.url)
    };
    started(settings, spec)
}

#[test]
fn rows_come_in_pages_and_the_rest_stays_with_the_crm_until_they_are_taken() {
    let (server, written) = server(ROWS, ROWS);
    let io = io(&server);
    fetch(&io);
    let mut seen = 0;
    loop {
        let (page, following) = next_page(&io);
        if seen == 0 {
            let ahead = written.load(Ordering::Acquire);
            assert!(ahead < 30 << 20, "{ahead} bytes were read ahead");
        }
        for record in page.unwrap().records {
            assert_eq!(record.id, seen.to_string());
            seen += 1;
        }
        if !following {
            break;
        }
    }
    assert_eq!(seen, ROWS);
}

#[test]
fn an_answer_that_breaks_off_is_an_error_after_the_rows_that_came() {
    let (server, _) = server(9_000, 8_999);
    let io = io(&server);
    fetch(&io);
    let mut seen = 0;
    let error = loop {
        match next_page(&io) {
            (Ok(page), true) => seen += page.records.len(),
            (Err(error), false) => break error,
            other => panic!("not expected: {other:?}"),
        }
    };
    assert!((2_000..9_000).contains(&seen), "{seen}");
    assert!(
        !error.maybe_applied && error.message.contains("announced"),
        "{error}"
    );
}
