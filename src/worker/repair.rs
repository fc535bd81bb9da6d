//! What a reconciliation found is read again, later than the streams had time
//! to bring it, and decided like every other page.

use std::collections::{HashMap, HashSet};

use crm_core::connectors;
use crm_core::http::Purpose;
use crm_core::model::{Millis, Page, RemoteError};
use crm_core::reconcile::{self, Finding, Kind, Read, Standing};

use crate::pg::store::{reconciles, streams};
use crate::pg::tx;
use crate::worker::engine::{Engine, Job, Step};
use crate::worker::flush;
use crate::worker::pages::{PageApplied, Via};
use crate::worker::reading;
use crate::worker::reconcile::SOURCE;
use crate::worker::returns::Who;
use crate::worker::session::Session;

/// Batches that may be found to stand no more before others get their turn.
const LOOKS: usize = 20;

/// What is to be done next.
enum Next {
    /// These still differ; with the stamps of their rows.
    Read(HashMap<String, (Finding, Millis)>),
    /// All of the batch was brought by streams.
    Again,
    /// Nothing is left.
    Done,
}

impl Engine {
    /// Asks for the next records that differ; ends the run when there are none.
    pub(super) fn repair(&mut self, id: i32, now: Millis) -> Step<()> {
        let Some(r) = self.watch(id).reconciling.as_mut() else {
            return Ok(());
        };
        let (run, turn) = (r.run.id, r.turn);
        if now < r.run.not_before {
            r.at = r.run.not_before;
            return Ok(());
        }
        let calls = std::mem::take(&mut r.calls);
        let Some(mirror) = self.world.mirrors.get(&id) else {
            return Ok(());
        };
        let Some(server) = self.server(&mirror.server) else {
            return Ok(());
        };
        let size = i64::try_from(server.connector.read_batch()).unwrap_or(1);
        let open = tx::in_transaction(|| Ok(reconciles::note(run, calls, None)?))?;
        if !open {
            self.reconciled(id);
            return Ok(());
        }
        for _ in 0..LOOKS {
            let table = &mirror.table;
            let next = tx::in_transaction(|| {
                let found = reconciles::next(run, size)?;
                if found.is_empty() {
                    reconciles::finish(run)?;
                    return Ok(Next::Done);
                }
                let ids: Vec<String> = found.iter().map(|f| f.record.clone()).collect();
                let rows = reconciles::standing(table, &ids)?;
                let (asked, late) = still(found, &rows);
                reconciles::judged(run, late)?;
                Ok(if asked.is_empty() {
                    Next::Again
                } else {
                    Next::Read(asked)
                })
            })?;
            let asked = match next {
                Next::Again => continue,
                Next::Done => {
                    self.reconciled(id);
                    return Ok(());
                }
                Next::Read(asked) => asked,
            };
            let ids: Vec<String> = asked.keys().cloned().collect();
            let (config, connector) = (&server.config, server.connector);
            let mut request = connector.read_request(config, &mirror.object, &mirror.fields, &ids);
            request.purpose = Purpose::Reconcile;
            let sent = self.fetch(id, request, Job::Repair { mirror: id, turn });
            if let Some(r) = self.watch(id).reconciling.as_mut() {
                r.busy = sent;
                r.asked = asked;
                r.asked_at = now;
                r.at = now + 100;
            }
            return Ok(());
        }
        Ok(())
    }
}

/// Findings that stand, with the stamps of their rows, and those that do not any more.
type Still = (
    HashMap<String, (Finding, Millis)>,
    Vec<(String, &'static str)>,
);

fn still(found: Vec<Finding>, rows: &[Standing]) -> Still {
    let rows: HashMap<&str, &Standing> = rows.iter().map(|r| (r.record.as_str(), r)).collect();
    let (mut asked, mut late) = (HashMap::new(), Vec::new());
    for finding in found {
        let row = rows.get(finding.record.as_str()).copied();
        if reconcile::stands(&finding, row) {
            let at = row.map_or(0, |r| r.at);
            asked.insert(finding.record.clone(), (finding, at));
        } else {
            late.push((finding.record, "late"));
        }
    }
    (asked, late)
}

impl Session {
    /// Records that differ were read.
    pub(super) fn repaired(&mut self, (id, turn): (i32, u64), page: Page, now: Millis) -> Step<()> {
        let watch = self.engine.watch(id);
        let Some(r) = watch.reconciling.as_mut().filter(|r| r.turn == turn) else {
            return Ok(());
        };
        let asked = std::mem::take(&mut r.asked);
        r.calls += 1;
        (r.busy, r.failures, r.at) = (false, 0, 0);
        let (run, asked_at) = (r.run.id, r.asked_at);
        match self.take_repair(id, (run, asked_at), asked, page, now) {
            Err(error) => self.engine.reconcile_failed(id, &error, now),
            Ok(()) => Ok(()),
        }
    }

    fn take_repair(
        &mut self,
        id: i32,
        (run, asked_at): (i64, Millis),
        asked: HashMap<String, (Finding, Millis)>,
        mut page: Page,
        now: Millis,
    ) -> Step<()> {
        let ids: Vec<String> = asked.keys().cloned().collect();
        let missing = connectors::missing(&ids, &page);
        let missing: Vec<String> = missing.into_iter().map(str::to_owned).collect();
        let merged: HashSet<String> = page.merged.iter().map(|(loser, _)| loser.clone()).collect();
        let stamps: HashMap<String, Millis> = (page.records.iter())
            .map(|r| (r.id.clone(), r.modified_at.unwrap_or_default()))
            .collect();
        for record in &mut page.records {
            // Events stamp rows a little later than the record's own stamp says.
            // What was read after them is not older than they are.
            if let Some((finding, at)) = asked.get(&record.id)
                && finding.kind == Kind::Value
                && record.modified_at == Some(finding.listed_at)
            {
                record.modified_at = record.modified_at.max(Some(*at));
            }
        }
        let via = Via {
            asked_at: Some(asked_at),
            ..Via::asked(SOURCE)
        };
        let judge = |applied: &PageApplied| -> Vec<(String, &'static str)> {
            let verdict = |(record, (finding, _)): (&String, &(Finding, Millis))| {
                let read = if merged.contains(record) {
                    Read::Gone
                } else if applied.locked.contains(record) {
                    Read::PutOff
                } else if applied.differed.contains(record) {
                    Read::Differed(*stamps.get(record)?)
                } else {
                    stamps.get(record).map(|_| Read::Same)?
                };
                Some((record.clone(), reconcile::verdict(finding, read).name()))
            };
            asked.iter().filter_map(verdict).collect()
        };
        reading::page(&mut self.engine, id, via, page, now, |applied| {
            let waits = applied.locked.iter().cloned();
            streams::defer(waits.map(|r| flush::reread(id, r)).collect())?;
            reconciles::judged(run, judge(applied))?;
            Ok(())
        })?;
        self.engine.may_undefer = true;
        self.lost(id, (run, via), &asked, missing, now)
    }

    /// Records that the CRM does not have.
    fn lost(
        &mut self,
        id: i32,
        (run, via): (i64, Via),
        asked: &HashMap<String, (Finding, Millis)>,
        missing: Vec<String>,
        now: Millis,
    ) -> Step<()> {
        if missing.is_empty() {
            return Ok(());
        }
        let verdicts = (missing.iter())
            .filter_map(|record| {
                let (finding, _) = asked.get(record)?;
                let verdict = reconcile::verdict(finding, Read::Gone);
                Some((record.clone(), verdict.name()))
            })
            .collect();
        // Merged into others, perhaps: asked for what became of them.
        let told = self.engine.ask_fate(id, &missing, &Who::default());
        let Some(m) = self.engine.world.mirrors.get(&id) else {
            return Ok(());
        };
        let world = &self.engine.world;
        tx::in_transaction(|| {
            if !told {
                reading::gone(world, m, via, missing, now)?;
            }
            reconciles::judged(run, verdicts)?;
            Ok(())
        })?;
        self.engine.may_send = true;
        if let Some(r) = self.engine.watch(id).reconciling.as_mut() {
            r.calls += i64::from(told);
        }
        Ok(())
    }

    /// A call of a reconciliation failed: it is made again after a while.
    pub(super) fn reconcile_refused(
        &mut self,
        (id, turn): (i32, u64),
        error: &RemoteError,
        now: Millis,
    ) -> Step<()> {
        let watch = self.engine.watch(id);
        let Some(r) = watch.reconciling.as_mut().filter(|r| r.turn == turn) else {
            return Ok(());
        };
        r.failures += 1;
        let wait = 1_000_i64 << r.failures.min(8);
        r.busy = false;
        r.at = now + error.retry_after_ms.unwrap_or(0).max(wait);
        let (run, calls) = (r.run.id, std::mem::take(&mut r.calls) + 1);
        let told = format!("{error}. {}", error.advice);
        let open = tx::in_transaction(|| Ok(reconciles::note(run, calls, Some(&told))?))?;
        if !open {
            self.engine.reconciled(id);
        }
        Ok(())
    }
}
