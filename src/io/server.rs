//! One CRM account: its target, token, budget and queue, and the course of a
//! single attempt at a job.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crm_core::budget::{Budget, Exhausted};
use crm_core::connectors::LimitHint;
use crm_core::http::HttpResponse;
use crm_core::limiter::{Limiter, Permit};
use crm_core::model::{ErrorClass, Millis, RemoteError};
use crm_core::retry::Backoff;
use tokio::sync::{Notify, Semaphore};

use crate::api::{Asked, ServerSpec, Settings};
use crate::clock;
use crate::dispatch::{Pick, Queue};
use crate::errors::{is_write, local};
use crate::job::{Job, Outcome, Shape, Ticket};
use crate::mailbox::{Ended, Mailbox};
use crate::rows::Received;
use crate::target::Target;

/// Longer answers are parsed beside the thread's loop, one at a time.
const LARGE_BODY: usize = 256 << 10;

/// For refusals that do not say when to come back.
const REFUSED: Backoff = Backoff {
    first_ms: 1_000,
    max_ms: 30_000,
    attempts: u32::MAX,
};

/// Everything of one account.
pub(crate) struct Server {
    pub(crate) id: u32,
    pub(crate) mailbox: Arc<Mailbox>,
    /// A job came, an answer came, the target changed.
    pub(crate) changed: Notify,
    target: Mutex<Arc<Target>>,
    work: Mutex<Work>,
    closed: AtomicBool,
    parsers: Arc<Semaphore>,
    settings: Arc<Settings>,
}

struct Work {
    limiter: Limiter,
    queue: Queue,
}

/// A call's share of the budget, given back however the attempt ends.
struct Slot {
    server: Arc<Server>,
    permit: Option<Permit>,
}

impl Slot {
    fn unsent(mut self) {
        if let Some(permit) = self.permit.take() {
            self.server.work().limiter.unsent(permit);
            self.server.changed.notify_one();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            self.server.work().limiter.answered(clock::mono(), permit);
            self.server.changed.notify_one();
        }
    }
}

/// How an attempt ended.
enum Attempt {
    Done(Result<Outcome, RemoteError>),
    /// The server's budget is spent: again after the pause, error if too late.
    Paused(Millis, RemoteError),
    /// This record or portal is locked: again after a while, error if too late.
    Locked(Millis, RemoteError),
    /// Too many calls at a time: the same, and fewer from now on.
    Crowded(Millis, RemoteError),
    /// The token was refused: again with a new one.
    Unauthorized,
}

impl Server {
    pub(crate) fn new(
        spec: ServerSpec,
        settings: Arc<Settings>,
        mailbox: Arc<Mailbox>,
        parsers: Arc<Semaphore>,
    ) -> Self {
        let limiter = Limiter::new(settings.max_in_flight_per_server, None);
        Self {
            id: spec.id,
            mailbox,
            changed: Notify::new(),
            target: Mutex::new(Arc::new(Target::new(spec, &settings))),
            work: Mutex::new(Work {
                limiter,
                queue: Queue::default(),
            }),
            closed: AtomicBool::new(false),
            parsers,
            settings,
        }
    }

    /// Replaces the target; queue and budget stay. The same once more changes
    /// nothing: session and connections live on.
    pub(crate) fn reconfigure(&self, spec: ServerSpec) {
        let target = self.target();
        if target.spec.same_account(&spec)
            && target
                .tokens
                .knows(&target.spec.credential, &spec.credential)
        {
            return;
        }
        let target = Arc::new(Target::new(spec, &self.settings));
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = target;
        self.changed.notify_one();
    }

    /// Replaces what is configured of the budget; what is spent stays spent.
    pub(crate) fn budget(&self, budget: Budget) {
        let max = self.settings.max_in_flight_per_server;
        let (now, wall) = (clock::mono(), clock::wall());
        self.work().limiter.configure(now, wall, max, budget);
        self.changed.notify_one();
    }

    /// Answers what is queued and lets the dispatcher end.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let jobs = self.work().queue.drain();
        for job in jobs {
            job.ticket.answer(Err(unknown_server(self.id)));
        }
        self.changed.notify_one();
    }

    pub(crate) fn max_outstanding(&self) -> usize {
        self.settings.max_outstanding
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn target(&self) -> Arc<Target> {
        Arc::clone(&self.target.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn enqueue(&self, job: Job) {
        self.work().queue.push(job);
        self.changed.notify_one();
    }

    pub(crate) fn pick(&self, now: Millis) -> Pick {
        let work = &mut *self.work();
        work.queue.pick(&mut work.limiter, now)
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One attempt at a job: token, exchange, reading the answer; then the
    /// job is answered or back in the queue.
    pub(crate) async fn attempt(self: Arc<Self>, mut job: Job, permit: Permit) {
        let slot = Slot {
            server: Arc::clone(&self),
            permit: Some(permit),
        };
        let target = self.target();
        let token = match target.token(&self).await {
            Ok(token) => token,
            Err(e) => {
                slot.unsent();
                job.ticket.answer(Err(e));
                return;
            }
        };
        job.ticket.exposed = is_write(&job.request);
        let answer = target.exchange(&token, job.request.clone()).await;
        let Received { answer, rows } = self.receive(&target, &job, answer).await;
        let hint = target.hint(&answer);
        // Learning comes first: the slot of this call is among those the hint counts.
        self.work().limiter.learn(clock::mono(), hint);
        let attempt = match rows {
            Some((page, bytes)) => {
                let (asked, mirror) = (job.ticket.asked(), job.tag.mirror);
                (self.mailbox).used(self.id, mirror, asked, Ended::Well, bytes);
                Attempt::Done(Ok(Outcome::Page(page)))
            }
            None => self.judge(&target, &mut job, answer).await,
        };
        let refused = self.pause(&target, &attempt, &job);
        if hint != LimitHint::default() || refused.is_some() {
            let known = self.work().limiter.hint();
            self.mailbox.told(self.id, known, refused);
        }
        drop(slot);
        match attempt {
            Attempt::Done(outcome) => {
                // The next page leaves before this one is handed over.
                job.ticket.following = self.follow(&target, &mut job, &outcome);
                job.ticket.answer(outcome);
            }
            Attempt::Unauthorized => {
                target.token_refused(&token).await;
                job.reauthorized = true;
                self.again(job);
            }
            Attempt::Paused(until, e) | Attempt::Locked(until, e) | Attempt::Crowded(until, e)
                if until > job.deadline =>
            {
                job.ticket.answer(Err(e));
            }
            Attempt::Paused(..) => self.again(job),
            Attempt::Locked(until, _) | Attempt::Crowded(until, _) => {
                tokio::time::sleep_until(clock::instant(until)).await;
                self.again(job);
            }
        }
    }

    /// Takes note of a refusal for the budget: what is used up, and until when by the wall clock.
    fn pause(&self, target: &Target, attempt: &Attempt, job: &Job) -> Option<(Exhausted, Millis)> {
        let (Attempt::Paused(until, error) | Attempt::Crowded(until, error)) = attempt else {
            return None;
        };
        let what = target.spec.connector.exhausted(error);
        let (now, class) = (clock::mono(), job.class.is_some());
        self.work().limiter.refused(now, what, *until, class);
        Some((what, until - now + clock::wall()))
    }

    /// Asks for the page that follows in a chain, if one does.
    fn follow(
        &self,
        target: &Target,
        job: &mut Job,
        outcome: &Result<Outcome, RemoteError>,
    ) -> bool {
        let (Some(mut chain), Ok(Outcome::Page(page))) = (job.chain.take(), outcome) else {
            return false;
        };
        let Some(next) = page.next.as_deref().filter(|next| chain.take(next)) else {
            return false;
        };
        let max = self.settings.max_outstanding;
        if page.ids_only || self.is_closed() || !self.mailbox.reserve(max) {
            return false;
        }
        let (config, connector) = (&target.spec.config, target.spec.connector);
        let mut request = connector.list_request(config, &chain.object, &chain.fields, Some(next));
        request.purpose = job.request.purpose;
        let shape = Shape::Page {
            object: chain.object.clone(),
            fields: Arc::clone(&chain.fields),
        };
        let ids = (job.ticket.job(), self.id);
        let asked = Asked::by(&request);
        self.enqueue(Job {
            ticket: Ticket::new(Arc::clone(&self.mailbox), ids, asked, &shape),
            shape,
            tag: job.tag,
            class: connector.class_limit(&request),
            lane: job.lane,
            request,
            deadline: clock::mono() + self.settings.max_wait_ms,
            reauthorized: false,
            refusals: 0,
            chain: Some(chain),
        });
        true
    }

    fn again(&self, mut job: Job) {
        job.ticket.exposed = false;
        if self.is_closed() {
            job.ticket.answer(Err(unknown_server(self.id)));
            return;
        }
        self.work().queue.push_front(job);
        self.changed.notify_one();
    }

    async fn judge(
        &self,
        target: &Target,
        job: &mut Job,
        answer: Result<HttpResponse, RemoteError>,
    ) -> Attempt {
        let (mailbox, mirror) = (Arc::clone(&self.mailbox), job.tag.mirror);
        let asked = job.ticket.asked().clone();
        let used = |ended, bytes| mailbox.used(self.id, mirror, &asked, ended, bytes);
        let answer = match answer {
            Ok(answer) => answer,
            Err(e) => {
                used(Ended::Failed, 0);
                return Attempt::Done(Err(e));
            }
        };
        let bytes = answer.body.len();
        if (200..300).contains(&answer.status) {
            used(Ended::Well, bytes);
            return Attempt::Done(self.shape(target, job, answer).await);
        }
        let error = target.spec.connector.classify(&answer);
        let waits = error.class == ErrorClass::Wait || matches!(answer.status, 429 | 423);
        let limited = waits && answer.status != 423;
        let ended = if limited {
            Ended::Limited
        } else {
            Ended::Failed
        };
        used(ended, bytes);
        if error.class == ErrorClass::Reauth && !job.reauthorized && target.can_log_in() {
            return Attempt::Unauthorized;
        }
        if waits {
            job.refusals += 1;
            let until = REFUSED
                .next_attempt(
                    clock::mono(),
                    job.refusals,
                    clock::seed(),
                    error.retry_after_ms,
                )
                .unwrap_or(job.deadline);
            let what = target.spec.connector.exhausted(&error);
            return if limited && what == Exhausted::Concurrency {
                Attempt::Crowded(until, error)
            } else if limited {
                Attempt::Paused(until, error)
            } else {
                Attempt::Locked(until, error)
            };
        }
        // A refused batch is told per write by the connector.
        if matches!(job.shape, Shape::Results { .. }) {
            return Attempt::Done(self.shape(target, job, answer).await);
        }
        Attempt::Done(Err(error))
    }

    /// Parses an answer; a large one beside the loop.
    async fn shape(
        &self,
        target: &Target,
        job: &mut Job,
        answer: HttpResponse,
    ) -> Result<Outcome, RemoteError> {
        let shape = std::mem::replace(&mut job.shape, Shape::Answer);
        if matches!(shape, Shape::Answer) {
            return Ok(Outcome::Answer(answer));
        }
        let connector = target.spec.connector;
        let size = answer.body.len();
        let parse = move || match shape {
            Shape::Answer => Ok(Outcome::Answer(answer)),
            Shape::Page { object, fields } => {
                connector.page(&object, &fields, &answer).map(Outcome::Page)
            }
            Shape::Results {
                kind,
                unique_field,
                writes,
            } => Ok(Outcome::Results(connector.pushed(
                kind,
                unique_field.as_deref(),
                &writes,
                &answer,
            ))),
        };
        if size < LARGE_BODY {
            return parse();
        }
        let _turn = self.parsers.acquire().await;
        match tokio::task::spawn_blocking(parse).await {
            Ok(outcome) => outcome,
            Err(e) => Err(unparsable(&e.to_string(), is_write(&job.request))),
        }
    }
}

/// A command names a server that was never configured, or is gone.
pub(crate) fn unknown_server(id: u32) -> RemoteError {
    local("unknown_server", format!("server {id} is not configured"))
}

fn unparsable(message: &str, write: bool) -> RemoteError {
    let mut e = local("internal", message);
    e.maybe_applied = write;
    e
}
