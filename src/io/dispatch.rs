//! The queue of a server: who goes next, and when.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crm_core::limiter::{Lane, Limiter, Permit, Refusal};
use crm_core::model::Millis;

use crate::clock;
use crate::job::{Job, waited};
use crate::server::Server;

/// Jobs that wait, by lane; within a lane in lines by the bucket of their own that
/// applies and by mirrors with a share, so that a full search bucket holds up
/// nothing but searches, and a mirror that has its share nothing but itself.
#[derive(Default)]
pub(crate) struct Queue {
    lanes: [BTreeMap<Line, VecDeque<Job>>; Lane::ALL.len()],
}

type Line = (Option<&'static str>, i32);

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
            .flat_map(std::mem::take)
            .flat_map(|(_, line)| line)
            .collect()
    }

    fn line(&mut self, job: &Job) -> &mut VecDeque<Job> {
        // Lines of mirrors without a share are one as far as the limiter goes;
        // they are kept apart all the same, since shares may be given any time.
        let line = (job.class.map(|c| c.name), job.tag.mirror);
        self.lanes[job.lane as usize].entry(line).or_default()
    }

    /// Asks the limiter for the first of each line, most urgent first, and in a
    /// lane for the one that waits longest.
    pub(crate) fn pick(&mut self, limiter: &mut Limiter, now: Millis) -> Pick {
        let mut wake: Option<Millis> = None;
        for lane in &mut self.lanes {
            lane.retain(|_, line| !line.is_empty());
            let mut lines: Vec<&mut VecDeque<Job>> = lane.values_mut().collect();
            lines.sort_by_key(|line| line.front().map(|job| job.deadline));
            for line in lines {
                let Some(job) = line.front() else {
                    continue;
                };
                let until = match limiter.take_for(now, job.lane, job.class, job.tag.mirror) {
                    Ok(permit) => match line.pop_front() {
                        Some(job) => return Pick::Go(Box::new(job), permit),
                        None => continue,
                    },
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
