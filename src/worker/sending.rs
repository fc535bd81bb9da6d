//! Writes leave: claimed mirror by mirror, sent batch by batch.

use crm_core::model::Millis;
use crm_io::Command;

use crate::pg::store::{config, writes};
use crate::pg::tx;
use crate::worker::arrivals;
use crate::worker::deliver::{self, Batch};
use crate::worker::engine::{Engine, Job, Step};
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
            } else if !self.push_in_portions(batch.clone(), now) {
                self.halves.push_front(batch);
                return Ok(now + 100);
            }
        }
        if !self.may_send {
            return Ok(bulk);
        }
        let ready = tx::in_transaction(|| Ok(writes::ready()?))?;
        let mut next = bulk;
        let mut full = false;
        for (id, wait) in ready {
            if wait > 0 {
                next = next.min(now + wait);
                continue;
            }
            if let Some(at) = self.sends_from(id, now) {
                next = next.min(at);
                continue;
            }
            match self.send(id, now)? {
                Sending::More => full = true,
                Sending::Later => next = next.min(now + 100),
                Sending::Done => {}
            }
        }
        // Claimed nothing and nothing is due: wait for the next cause.
        self.may_send = full || next != bulk;
        Ok(if full { now } else { next })
    }

    /// Sends what one mirror has.
    fn send(&mut self, id: i32, now: Millis) -> Step<Sending> {
        let Some(mirror) = self.world.mirrors.get(&id).filter(|m| m.live && !m.paused) else {
            return Ok(Sending::Done);
        };
        let Some(server) = self.server(&mirror.server) else {
            return Ok(Sending::Done);
        };
        let connector = server.connector;
        if self
            .watches
            .get(&id)
            .is_some_and(|w| w.pushes >= PUSHES || now < w.push_at)
        {
            return Ok(Sending::Done);
        }
        let Some(limit) = self.claim_size(mirror, CLAIM)? else {
            return Ok(Sending::Done);
        };
        let batches = tx::in_transaction(|| {
            if !config::may_send(id)? {
                return Ok(None);
            }
            arrivals::wait_for_news(&self.world, mirror)?;
            Ok(Some(deliver::claim(mirror, limit)?))
        })?;
        let Some(batches) = batches else {
            return Ok(Sending::Later);
        };
        let more = !batches.is_empty();
        for batch in self.portions(batches, |kind| connector.push_batch(kind)) {
            if self.is_bulk(&batch) {
                self.push_bulk(batch, now);
            } else if !self.push(batch.clone()) {
                self.halves.push_back(batch);
            }
        }
        Ok(if more { Sending::More } else { Sending::Done })
    }

    /// Sends a batch, in several if it is larger than one may be; false if not.
    fn push_in_portions(&mut self, batch: Batch, now: Millis) -> bool {
        let size = |kind| {
            let mirror = self.world.mirrors.get(&batch.mirror);
            let server = mirror.and_then(|m| self.server(&m.server));
            server.map_or(1, |s| s.connector.push_batch(kind))
        };
        if batch.rows.len() <= size(batch.kind) {
            return self.push(batch);
        }
        if self.is_bulk(&batch) {
            self.push_bulk(batch, now);
            return true;
        }
        let rest = self.portions(vec![batch.clone()], size);
        // They wait their turn, and are sent with the next look.
        self.halves.extend(rest);
        true
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
