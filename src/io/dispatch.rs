//! The queue of a server: who goes next, and when.

use std::collections::VecDeque;
use std::sync::Arc;

use crm_core::limiter::{Lane, Limiter, Permit, Refusal};
use crm_core::model::Millis;

use crate::clock;
use crate::job::{Job, waited};
use crate::server::Server;

/// Jobs that wait, by lane and by whether a bucket of their own applies, so
/// that a full search bucket holds up nothing but searches.
#[derive(Default)]
pub(crate) struct Queue {
    lanes: [[VecDeque<Job>; 2]; Lane::ALL.len()],
}

/// What [`Queue::pick`] found.
pub(crate) enum Pick {
    /// Send this one.
    Go(Box<Job>, Permit),
    /// Too late for this one: answer it so, with the time it would have gone.
    Late(Box<Job>, Option<Millis>),
    /// Look again at this time, or when something changed.
    Wait(Option<Millis>),
}

impl Queue {
    pub(crate) fn push(&mut self, job: Job) {
        self.line(&job).push_back(job);
    }

    /// For a job that had its turn already.
    pub(crate) fn push_front(&mut self, job: Job) {
        self.line(&job).push_front(job);
    }

    pub(crate) fn drain(&mut self) -> Vec<Job> {
        self.lanes
            .iter_mut()
            .flatten()
            .flat_map(std::mem::take)
            .collect()
    }

    fn line(&mut self, job: &Job) -> &mut VecDeque<Job> {
        &mut self.lanes[job.lane as usize][usize::from(job.class.is_some())]
    }

    /// Asks the limiter for the first of each line, most urgent first.
    pub(crate) fn pick(&mut self, limiter: &mut Limiter, now: Millis) -> Pick {
        let mut wake: Option<Millis> = None;
        for line in self.lanes.iter_mut().flatten() {
            let Some(job) = line.front() else {
                continue;
            };
            let until = match limiter.take(now, job.lane, job.class) {
                Ok(permit) => {
                    if let Some(job) = line.pop_front() {
                        return Pick::Go(Box::new(job), permit);
                    }
                    continue;
                }
                Err(Refusal::Until(t)) => Some(t),
                Err(Refusal::AfterAnswer) => None,
            };
            if now >= job.deadline || until.is_some_and(|t| t > job.deadline) {
                if let Some(job) = line.pop_front() {
                    return Pick::Late(Box::new(job), until);
                }
            } else {
                let at = until.unwrap_or(job.deadline).min(job.deadline);
                wake = Some(wake.map_or(at, |w| w.min(at)));
            }
        }
        Pick::Wait(wake)
    }
}

/// Serves a server's queue until the server is forgotten. Sleeps without a
/// timer while there is nothing to wait for.
pub(crate) async fn run(server: Arc<Server>) {
    loop {
        let drained = server.mailbox.drained.notified();
        tokio::pin!(drained);
        drained.as_mut().enable();
        if server.is_closed() {
            return;
        }
        let wake = if server.mailbox.is_heavy() {
            None
        } else {
            start_ready(&server)
        };
        match wake {
            Some(at) => tokio::select! {
                () = server.changed.notified() => {}
                () = &mut drained => {}
                () = tokio::time::sleep_until(clock::instant(at)) => {}
            },
            None => tokio::select! {
                () = server.changed.notified() => {}
                () = &mut drained => {}
            },
        }
    }
}

fn start_ready(server: &Arc<Server>) -> Option<Millis> {
    loop {
        let now = clock::mono();
        match server.pick(now) {
            Pick::Go(job, permit) => {
                tokio::spawn(Arc::clone(server).attempt(*job, permit));
            }
            Pick::Late(job, until) => job.ticket.answer(Err(waited(now, until))),
            Pick::Wait(at) => return at,
        }
    }
}
