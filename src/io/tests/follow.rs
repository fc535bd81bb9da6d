//! Lists whose pages follow each other without being asked for.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod common;

use std::sync::Arc;

use common::{FakeServer, answer, get, next_event, spec, started, submit};
use crm_core::model::FieldType;
use crm_io::{Command, Event, Follow, IoThread, Settings, Tag};

/// Answers with one record per page, named as its cursor; ten pages.
fn list() -> FakeServer {
    FakeServer::start(|request, stream| {
        let after = request.target().rsplit('=').next().unwrap_or_default();
        let at: u32 = after.parse().unwrap_or(0);
        let next = match at {
            9 => String::new(),
            _ => format!("x-next: {}\r\n", at + 1),
        };
        answer(stream, 200, &next, format!("[\"{at}\"]").as_bytes())
    })
}

/// Records of the pages that came of one job, and whether each announced the next.
fn fetched(io: &IoThread, follow: Follow) -> Vec<(String, bool)> {
    submit(
        io,
        Command::Fetch {
            job: 9,
            server: 1,
            tag: Tag::default(),
            object: "contacts".into(),
            fields: Arc::new(vec![("a".into(), FieldType::Text)]),
            request: get("/list?after="),
            follow: Some(follow),
        },
    );
    let mut pages = Vec::new();
    loop {
        let event = next_event(io);
        let Event::Fetched {
            result,
            job: 9,
            following,
            ..
        } = event
        else {
            panic!("not fetched: {event:?}");
        };
        pages.push((result.unwrap().records[0].id.clone(), following));
        if !following {
            return pages;
        }
    }
}

fn follow(pages: u32, end: Option<&str>) -> Follow {
    Follow {
        pages,
        end: end.map(str::to_owned),
    }
}

#[test]
fn pages_follow_in_their_order_and_no_further_than_asked() {
    let server = list();
    let io = started(Settings::default(), spec(&server.url));
    let ids = |pages: Vec<(String, bool)>| -> String {
        let each = pages.iter().map(|(id, _)| id.as_str());
        each.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(ids(fetched(&io, follow(3, None))), "0 1 2 3");
    assert_eq!(ids(fetched(&io, follow(30, None))), "0 1 2 3 4 5 6 7 8 9");
    // The page at the end is another's.
    assert_eq!(ids(fetched(&io, follow(30, Some("5")))), "0 1 2 3 4");
    assert_eq!(ids(fetched(&io, follow(0, None))), "0");
    assert_eq!(
        server.seen().len(),
        4 + 10 + 5 + 1,
        "nothing was asked in vain"
    );
}

#[test]
fn a_chain_ends_where_too_much_is_outstanding() {
    let server = list();
    let settings = Settings {
        max_outstanding: 2,
        ..Settings::default()
    };
    let io = started(settings, spec(&server.url));
    // However fast the pages are taken, the last is not announced in vain.
    let pages = fetched(&io, follow(30, None));
    let (last, others) = pages.split_last().unwrap();
    assert!(!last.1 && others.iter().all(|(_, following)| *following));
    // Nothing stays booked: the next list comes too.
    assert_eq!(fetched(&io, follow(0, None)).len(), 1);
}
