//! Bulk jobs that write, step by step: what an answer means, and what is to be asked next.

use crm_core::connectors::bulk::{BulkWriter, Stage};
use crm_core::http::HttpResponse;
use crm_core::model::{ErrorClass, Millis, RemoteError, Write, WriteResult};

use crate::worker::deliver::Batch;

/// First and longest wait before a job is asked about again.
const ASK_MS: (Millis, Millis) = (500, 30_000);
/// Pause after trouble that passes.
pub(super) const AGAIN_MS: Millis = 2_000;
/// Pause after a refusal to say how a job is. Whoever refuses for good forgets the
/// job in a few days: that ends it.
const REFUSED_MS: Millis = 300_000;
/// How often a job is told to begin, or its results are read, in vain.
const TRIES: u32 = 5;

/// What is to be asked of a job next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Open,
    Upload,
    Begin,
    Stop,
    State,
    Result(usize),
}

/// A bulk job under way.
pub(crate) struct BulkWrite {
    pub(super) batch: Batch,
    /// Its name, once it has one.
    pub(super) job: Option<String>,
    pub(super) next: Next,
    /// Not before.
    pub(super) at: Millis,
    /// A request of it is on its way.
    pub(super) busy: bool,
    /// Its rows were handed over by this session.
    uploaded: bool,
    /// It was stopped by us.
    pub(super) stopped: bool,
    /// The CRM does not let it begin, or its results cannot be read.
    pub(super) futile: bool,
    /// The CRM said that it does not let such jobs be made or begin.
    pub(super) hopeless: bool,
    asked: u32,
    tries: u32,
    answers: Vec<HttpResponse>,
}

impl BulkWrite {
    /// A job for a batch: to be made, or made by an earlier session.
    pub(super) fn new(batch: Batch, job: Option<String>) -> Self {
        Self {
            next: if job.is_some() {
                Next::State
            } else {
                Next::Open
            },
            batch,
            job,
            at: 0,
            busy: false,
            uploaded: false,
            stopped: false,
            futile: false,
            hopeless: false,
            asked: 0,
            tries: 0,
            answers: Vec::new(),
        }
    }

    /// The same result for all writes.
    fn all(&self, result: WriteResult) -> Turn {
        Turn::Results(vec![result; self.batch.rows.len()], true)
    }

    /// Nothing was written: the writes wait for another try.
    pub(super) fn nothing(&self, mut error: RemoteError) -> Vec<WriteResult> {
        error.maybe_applied = false;
        if !passes(&error) {
            error.class = ErrorClass::Retry;
        }
        vec![WriteResult::Failed(error); self.batch.rows.len()]
    }

    /// Decides what follows an answer. `writes` are those of the batch, if its
    /// results are being read.
    pub(super) fn turn(
        &mut self,
        writer: &dyn BulkWriter,
        (unique, writes): (Option<&str>, &[Write]),
        result: Result<HttpResponse, RemoteError>,
    ) -> Turn {
        match (self.next, result) {
            (Next::Open, Ok(answer)) => match writer.opened(&answer) {
                Ok(job) => {
                    self.job = Some(job);
                    Turn::Next(Next::Upload, 0)
                }
                Err(error) => Turn::Results(self.nothing(error), false),
            },
            (Next::Upload, Ok(_)) => {
                self.uploaded = true;
                Turn::Next(Next::Begin, 0)
            }
            (Next::Open | Next::Upload, Err(error)) => {
                self.hopeless = writer.hopeless(&error);
                self.futile = self.hopeless;
                Turn::Results(self.nothing(error), false)
            }
            // Whether it began is what its state tells.
            (Next::Begin, answer) => {
                self.hopeless = answer.is_err_and(|e| writer.hopeless(&e));
                self.futile = self.hopeless;
                Turn::Next(Next::State, 0)
            }
            (Next::Stop, _) => {
                self.stopped = true;
                Turn::Next(Next::State, 0)
            }
            (Next::State, Ok(answer)) => match writer.stage(&answer) {
                Ok(stage) => self.at(stage),
                Err(error) => Turn::Troubled(Next::State, REFUSED_MS, error),
            },
            (Next::Result(part), Ok(answer)) => {
                self.results(part, writer, (unique, writes), answer)
            }
            // Nobody tells any more what became of them: their records do.
            (Next::State | Next::Result(_), Err(error)) if error.class == ErrorClass::Gone => {
                self.all(WriteResult::Unknown(error))
            }
            (Next::Result(_), Err(error)) if !passes(&error) || error.code == "body_too_large" => {
                self.again(error)
            }
            (next, Err(error)) => {
                let least = if passes(&error) { AGAIN_MS } else { REFUSED_MS };
                let wait = error.retry_after_ms.unwrap_or(0).max(least);
                Turn::Troubled(next, wait, error)
            }
        }
    }

    fn results(
        &mut self,
        part: usize,
        writer: &dyn BulkWriter,
        (unique, writes): (Option<&str>, &[Write]),
        answer: HttpResponse,
    ) -> Turn {
        self.answers.truncate(part);
        self.answers.push(answer);
        if part < 2 {
            return Turn::Next(Next::Result(part + 1), 0);
        }
        let answers = std::mem::take(&mut self.answers);
        match writer.outcomes(self.batch.kind, unique, writes, &answers) {
            Ok(results) => Turn::Results(results, true),
            Err(error) => self.again(error),
        }
    }

    /// Reads the results once more, a few times. The job has ended: what became of
    /// its rows can be seen at their records as well.
    fn again(&mut self, error: RemoteError) -> Turn {
        self.tries += 1;
        if self.tries <= TRIES {
            return Turn::Next(Next::Result(0), AGAIN_MS);
        }
        self.futile = true;
        self.all(WriteResult::Unknown(error))
    }

    fn at(&mut self, stage: Stage) -> Turn {
        // It began all the same, if nobody stopped it.
        self.futile &= stage == Stage::Open || self.stopped;
        match stage {
            Stage::Ended => {
                self.tries = 0;
                Turn::Next(Next::Result(0), 0)
            }
            // Its rows may not have arrived before a crash: better none of them.
            Stage::Open if !self.uploaded || self.stopped || self.futile => {
                let wait = if self.stopped { AGAIN_MS } else { 0 };
                Turn::Next(Next::Stop, wait)
            }
            Stage::Open if self.tries < TRIES => {
                self.tries += 1;
                Turn::Next(Next::Begin, AGAIN_MS)
            }
            Stage::Open => {
                self.futile = true;
                Turn::Next(Next::Stop, 0)
            }
            Stage::Waiting => {
                let wait = (ASK_MS.0 << self.asked.min(16)).min(ASK_MS.1);
                self.asked += 1;
                Turn::Next(Next::State, wait)
            }
        }
    }
}

/// What an answer means for a job.
pub(super) enum Turn {
    /// This is to be asked next, so much later.
    Next(Next, Millis),
    /// The same, after an error that the DBA should see.
    Troubled(Next, Millis, RemoteError),
    /// Every write has its result; the job has ended, or must be stopped.
    Results(Vec<WriteResult>, bool),
}

/// Whether it helps to ask again.
fn passes(error: &RemoteError) -> bool {
    matches!(
        error.class,
        ErrorClass::Retry | ErrorClass::Wait | ErrorClass::Reauth | ErrorClass::Stop
    )
}
