//! Writes leave: claimed mirror by mirror, sent batch by batch.

use crm_core::model::Millis;
use crm_io::Command;

use crate::pg::store::{config, writes};
use crate::pg::tx;
use crate::worker::arrivals;
use crate::worker::deliver::{self, Batch};
use crate::worker::engine::{Engine, Job, Step};
use crate::worker::outages::PROBE;
use crate::worker::unique::Look;

/// Batches of writes on the way per mirror.
const PUSHES: usize = 4;
/// Writes claimed at a time per mirror.
const CLAIM: i64 = 400;

/// What became of an attempt to send what a mirror has.
enum Sending {
    /// It may have more.
    More,
    /// It was or is being paused.
    Later,
    /// There is nothing to send now.
    Done,
}

impl Engine {
    /// Claims and sends what is ready; the time when more will be.
    pub(super) fn deliver(&mut self, now: Millis) -> Step<Millis> {
        let bulk = self.step_bulk_writes(now);
        // Batches of a server that was paused meanwhile hold nobody up.
        let mut resting = 0;
        while resting < self.halves.len()
            && let Some(batch) = self.halves.pop_front()
        {
            let mirror = self.world.mirrors.get(&batch.mirror);
            if mirror.is_some_and(|m| self.server(&m.server).is_none()) {
                self.halves.push_back(batch);
                resting += 1;
            } else if batch.rows.len() > self.call_size(&batch) {
                self.push_in_portions(batch, now);
            } else if !self.push(batch.clone()) {
                self.halves.push_front(batch);
                return Ok(now + 100);
            }
        }
        if !self.may_send {
            return Ok(bulk);
        }
        let ready = tx::in_transaction(|| Ok(writes::ready()?))?;
        let mut next = Millis::MAX;
        let mut full = false;
        for (id, wait) in ready {
            if wait > 0 {
                next = next.min(now + wait);
                continue;
            }
            let outage = self.outage(id, now);
            let held = [self.sends_from(id, now), outage.flatten()];
            if let Some(at) = held.into_iter().flatten().max() {
                next = next.min(at);
                continue;
            }
            match self.send(id, outage.is_some(), now)? {
                Sending::More => full = true,
                Sending::Later => next = next.min(now + 100),
                Sending::Done => {}
            }
        }
        // Claimed nothing and nothing is due: wait for the next cause.
        self.may_send = full || next != Millis::MAX;
        Ok(if full { now } else { next.min(bulk) })
    }

    /// Sends what one mirror has, or a little of it to see whether the CRM answers.
    fn send(&mut self, id: i32, probe: bool, now: Millis) -> Step<Sending> {
        let Some(mirror) = self.world.mirrors.get(&id).filter(|m| m.live && !m.paused) else {
            return Ok(Sending::Done);
        };
        if self.server(&mirror.server).is_none() {
            return Ok(Sending::Done);
        }
        if self
            .watches
            .get(&id)
            .is_some_and(|w| w.pushes >= PUSHES || now < w.push_at)
        {
            return Ok(Sending::Done);
        }
        let limit = match probe {
            true => Some(PROBE),
            false => self.claim_size(mirror, CLAIM)?,
        };
        let Some(limit) = limit else {
            return Ok(Sending::Done);
        };
        let batches = tx::in_transaction(|| {
            if !config::may_send(id)? {
                return Ok(None);
            }
            arrivals::wait_for_news(&self.world, mirror)?;
            Ok(Some(deliver::claim(&self.world, mirror, limit)?))
        })?;
        let Some(batches) = batches else {
            return Ok(Sending::Later);
        };
        let more = !batches.is_empty();
        for batch in batches {
            self.push_in_portions(batch, now);
        }
        Ok(if more { Sending::More } else { Sending::Done })
    }

    /// Sends a batch of any size: as jobs, or call by call. What the I/O thread does
    /// not take waits its turn.
    fn push_in_portions(&mut self, batch: Batch, now: Millis) {
        let (jobs, calls) = self.portions(batch);
        for batch in jobs {
            self.push_bulk(batch, now);
        }
        for batch in calls {
            if !self.push(batch.clone()) {
                self.halves.push_back(batch);
            }
        }
    }

    /// Sends one batch.
    fn push(&mut self, batch: Batch) -> bool {
        let batch = match self.look_first(batch) {
            Look::Asked => return true,
            Look::Full => return false,
            Look::Free(batch) => batch,
        };
        let Some(mirror) = self.world.mirrors.get(&batch.mirror) else {
            return true;
        };
        let Some(server) = self.server(&mirror.server).map(|s| s.id) else {
            return false;
        };
        let writes = deliver::to_writes(&self.world, mirror, &batch);
        let (object, unique_field, kind, id) = (
            mirror.object.clone(),
            mirror.unique_field.clone(),
            batch.kind,
            batch.mirror,
        );
        let (job, tag) = (self.job(Job::Push(batch)), self.tag(id));
        let sent = self.submit(Command::Push {
            job,
            server,
            tag,
            object,
            kind,
            unique_field,
            writes,
        });
        if sent {
            self.watch(id).pushes += 1;
        } else {
            self.jobs.remove(&job);
        }
        sent
    }
}
