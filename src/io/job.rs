//! A job: something asked for that is answered exactly once.

use std::sync::Arc;

use crm_core::connectors::ClassLimit;
use crm_core::http::{HttpRequest, HttpResponse};
use crm_core::limiter::Lane;
use crm_core::model::{FieldType, Millis, Page, RemoteError, Write, WriteKind, WriteResult};

use crate::api::Event;
use crate::errors::local;
use crate::mailbox::Mailbox;

/// What the answer is made into.
pub(crate) enum Shape {
    Answer,
    Page {
        object: String,
        fields: Arc<Vec<(String, FieldType)>>,
    },
    Results {
        kind: WriteKind,
        unique_field: Option<String>,
        writes: Vec<Write>,
    },
}

/// A finished job's content.
pub(crate) enum Outcome {
    Answer(HttpResponse),
    Page(Page),
    Results(Vec<WriteResult>),
}

/// The duty to answer. Dropped without an answer (a panic, the end of the
/// thread), it answers that nobody knows.
pub(crate) struct Ticket {
    mailbox: Arc<Mailbox>,
    job: u64,
    server: u32,
    kind: Kind,
    /// A request with effects is on the wire.
    pub(crate) exposed: bool,
    answered: bool,
}

#[derive(Clone, Copy)]
enum Kind {
    Answer,
    Page,
    Results(usize),
}

impl Ticket {
    pub(crate) fn new(mailbox: Arc<Mailbox>, job: u64, server: u32, shape: &Shape) -> Self {
        let kind = match shape {
            Shape::Answer => Kind::Answer,
            Shape::Page { .. } => Kind::Page,
            Shape::Results { writes, .. } => Kind::Results(writes.len()),
        };
        Self {
            mailbox,
            job,
            server,
            kind,
            exposed: false,
            answered: false,
        }
    }

    /// Answers.
    pub(crate) fn answer(mut self, outcome: Result<Outcome, RemoteError>) {
        self.post(outcome);
    }

    fn post(&mut self, outcome: Result<Outcome, RemoteError>) {
        self.answered = true;
        let (job, server) = (self.job, self.server);
        let event = match (outcome, self.kind) {
            (Ok(Outcome::Answer(response)), _) => Event::Answer {
                job,
                server,
                result: Ok(response),
            },
            (Ok(Outcome::Page(page)), _) => Event::Fetched {
                job,
                server,
                result: Ok(page),
            },
            (Ok(Outcome::Results(results)), _) => Event::Pushed {
                job,
                server,
                results,
            },
            (Err(error), Kind::Answer) => Event::Answer {
                job,
                server,
                result: Err(error),
            },
            (Err(error), Kind::Page) => Event::Fetched {
                job,
                server,
                result: Err(error),
            },
            (Err(error), Kind::Results(n)) => Event::Pushed {
                job,
                server,
                results: vec![refused(error); n],
            },
        };
        self.mailbox.post(event);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        let mut error = local(
            "abandoned",
            "the request was given up before it was answered",
        );
        error.maybe_applied = self.exposed;
        self.post(Err(error));
    }
}

fn refused(error: RemoteError) -> WriteResult {
    if error.maybe_applied {
        WriteResult::Unknown(error)
    } else {
        WriteResult::Failed(error)
    }
}

/// A job in a server's queue.
pub(crate) struct Job {
    pub(crate) ticket: Ticket,
    pub(crate) shape: Shape,
    /// Without authorization: each attempt adds the token in force.
    pub(crate) request: HttpRequest,
    pub(crate) lane: Lane,
    pub(crate) class: Option<ClassLimit>,
    /// Answered with class `Wait` if not sent by then.
    pub(crate) deadline: Millis,
    /// A new token was tried.
    pub(crate) reauthorized: bool,
    /// Refusals for budget or lock so far.
    pub(crate) refusals: u32,
}

/// The error of a job that would wait too long.
pub(crate) fn waited(now: Millis, until: Option<Millis>) -> RemoteError {
    let mut e = local(
        "rate_limited",
        "the budget of calls leaves no room for this request now",
    );
    e.retry_after_ms = Some(until.map_or(1_000, |t| (t - now).max(1)));
    e
}
