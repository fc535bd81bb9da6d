//! What the session does with results of writes: records them, or keeps them until it can.

use crm_core::model::{ErrorClass, Millis, WriteResult};

use crate::pg::store::{config, streams, writes};
use crate::pg::tx::{self, SqlError};
use crate::worker::deliver::{self, Batch};
use crate::worker::engine::{self, Step};
use crate::worker::session::Session;
use crate::worker::setbacks;
use crate::worker::usage::Way;

/// Results recorded in one transaction.
const PORTION: usize = 1_000;

impl Session {
    /// The CRM has answered what became of the writes of a batch, one result each.
    pub(super) fn pushed(
        &mut self,
        mut batch: Batch,
        mut results: Vec<WriteResult>,
        now: Millis,
    ) -> Step<()> {
        let watch = self.engine.watch(batch.mirror);
        watch.pushes = watch.pushes.saturating_sub(1);
        watch.pushed_at = engine::now();
        // Its own trouble must not keep the answers from being recorded.
        let heard = self.engine.heard(batch.mirror, &results, now);
        // Of many that blame the mapping, one is enough to have the catalog read again.
        let doubt = results.iter().find_map(|result| match result {
            WriteResult::Failed(e) if e.class == ErrorClass::FixMapping => Some(e.clone()),
            _ => None,
        });
        let mut failed = None;
        while !batch.rows.is_empty() {
            let rows = batch.rows.split_off(batch.rows.len().min(PORTION));
            let rest = results.split_off(results.len().min(PORTION));
            let portion = Batch {
                rows: std::mem::replace(&mut batch.rows, rows),
                mirror: batch.mirror,
                kind: batch.kind,
                looked: batch.looked,
            };
            let portion = (portion, std::mem::replace(&mut results, rest));
            // What failed is tried again in this order; the CRM's answer cannot be had twice.
            if failed.is_some() {
                self.unrecorded.push_back(portion);
            } else if let Err(error) = self.record(portion.0.clone(), portion.1.clone(), now) {
                self.unrecorded.push_back(portion);
                failed = Some(error);
            }
        }
        match (failed.or(heard.err()), doubt) {
            (Some(error), _) => Err(error),
            (None, Some(doubt)) => self.engine.doubt_by(batch.mirror, &doubt, now),
            (None, None) => Ok(()),
        }
    }

    /// Records results that could not be recorded before.
    pub(super) fn record_again(&mut self, now: Millis) -> Step<()> {
        while let Some((batch, results)) = self.unrecorded.front().cloned() {
            self.record(batch, results, now)?;
            self.unrecorded.pop_front();
        }
        Ok(())
    }

    fn record(&mut self, batch: Batch, results: Vec<WriteResult>, now: Millis) -> Step<()> {
        let id = batch.mirror;
        let Some(mirror) = self.engine.world.mirrors.get(&id) else {
            return Ok(());
        };
        let world = &self.engine.world;
        let server = mirror.server.clone();
        let attempt = (batch.clone(), results.clone());
        let recorded =
            tx::in_transaction(|| Ok(deliver::record(world, mirror, attempt.0, attempt.1, now)?));
        let after = match recorded {
            Ok(after) => after,
            Err(error) if config::is_passing(&error) => return Err(error),
            Err(error) => return self.record_apart(batch, results, &error, now),
        };
        self.engine.usage.changed(id, Way::Push, after.done);
        self.engine.halves.extend(after.resend);
        self.engine.watch(id).reads.extend(after.read);
        self.engine.may_send = true;
        if let Some((message, advice)) = after.stop {
            self.engine.watch(id).push_at = now + 30_000;
            tx::in_transaction(|| {
                streams::server_error(&server, Some((&message, advice)))?;
                Ok(())
            })?;
        } else if after.done > 0 {
            tx::in_transaction(|| {
                streams::server_error(&server, None)?;
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Records the answers of a batch one by one, so that a row which refuses its
    /// own keeps nobody waiting.
    fn record_apart(
        &mut self,
        batch: Batch,
        results: Vec<WriteResult>,
        error: &SqlError,
        now: Millis,
    ) -> Step<()> {
        if let ([row], [result]) = (batch.rows.as_slice(), results.as_slice()) {
            let doubt = setbacks::unrecordable(row.id, result, error);
            return tx::in_transaction(|| {
                writes::set_back(&[doubt])?;
                Ok(())
            });
        }
        for (row, result) in batch.rows.into_iter().zip(results) {
            let one = Batch {
                mirror: batch.mirror,
                kind: batch.kind,
                rows: vec![row],
                looked: batch.looked,
            };
            if self.record(one.clone(), vec![result.clone()], now).is_err() {
                self.unrecorded.push_back((one, vec![result]));
            }
        }
        Ok(())
    }
}
