//! A job: something asked for that is answered exactly once.

use std::cmp::Ordering;
use std::sync::Arc;

use crm_core::connectors::ClassLimit;
use crm_core::http::{HttpRequest, HttpResponse};
use crm_core::limiter::Lane;
use crm_core::model::{FieldType, Millis, Page, RemoteError, Write, WriteKind, WriteResult};

use crm_core::ranges::id_order;

use crate::api::{Asked, Event, Follow, Tag};
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
    asked: Asked,
    kind: Kind,
    /// A request with effects is on the wire.
    pub(crate) exposed: bool,
    /// The next page of the list is on its way.
    pub(crate) following: bool,
    answered: bool,
}

#[derive(Clone, Copy)]
enum Kind {
    Answer,
    Page,
    Results(usize),
}

impl Ticket {
    pub(crate) fn new(
        mailbox: Arc<Mailbox>,
        (job, server): (u64, u32),
        asked: Asked,
        shape: &Shape,
    ) -> Self {
        let kind = match shape {
            Shape::Answer => Kind::Answer,
            Shape::Page { .. } => Kind::Page,
            Shape::Results { writes, .. } => Kind::Results(writes.len()),
        };
        Self {
            mailbox,
            job,
            server,
            asked,
            kind,
            exposed: false,
            following: false,
            answered: false,
        }
    }

    /// The caller's number.
    pub(crate) fn job(&self) -> u64 {
        self.job
    }

    /// What was asked.
    pub(crate) fn asked(&self) -> &Asked {
        &self.asked
    }

    /// Answers.
    pub(crate) fn answer(mut self, outcome: Result<Outcome, RemoteError>) {
        self.post(outcome);
    }

    fn post(&mut self, outcome: Result<Outcome, RemoteError>) {
        self.answered = true;
        let (job, server, asked) = (self.job, self.server, self.asked.clone());
        let event = match (outcome, self.kind) {
            (Ok(Outcome::Answer(response)), _) => Event::Answer {
                job,
                server,
                result: Ok(response),
            },
            (Ok(Outcome::Page(page)), _) => Event::Fetched {
                job,
                server,
                asked,
                result: Ok(page),
                following: self.following,
            },
            (Ok(Outcome::Results(results)), _) => Event::Pushed {
                job,
                server,
                asked,
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
                asked,
                result: Err(error),
                following: false,
            },
            (Err(error), Kind::Results(n)) => Event::Pushed {
                job,
                server,
                asked,
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
    pub(crate) tag: Tag,
    pub(crate) lane: Lane,
    pub(crate) class: Option<ClassLimit>,
    /// Answered with class `Wait` if not sent by then.
    pub(crate) deadline: Millis,
    /// A new token was tried.
    pub(crate) reauthorized: bool,
    /// Refusals for budget or lock so far.
    pub(crate) refusals: u32,
    /// What follows its page.
    pub(crate) chain: Option<Chain>,
}

/// The rest of a list whose pages are fetched one after the other.
pub(crate) struct Chain {
    pub(crate) object: String,
    pub(crate) fields: Arc<Vec<(String, FieldType)>>,
    pub(crate) rest: Follow,
}

impl Chain {
    /// Takes a page from what may still be fetched: whether that at `next` may.
    pub(crate) fn take(&mut self, next: &str) -> bool {
        let wanted = |end: &String| id_order(next, end) == Ordering::Less;
        let goes_on = self.rest.pages > 0 && self.rest.end.as_ref().is_none_or(wanted);
        self.rest.pages = self.rest.pages.saturating_sub(1);
        goes_on
    }
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
