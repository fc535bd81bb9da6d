//! Reading or writing many records as one job of the CRM's own, where it has
//! such a way: start a job, ask how far it is, read its rows as they arrive or
//! what became of those handed over, end it.

use std::sync::Arc;

use crate::connectors::ServerConfig;
use crate::http::{HttpRequest, HttpResponse};
use crate::model::{FieldType, Millis, Page, RemoteError, Write, WriteKind, WriteResult};

/// Requested fields: the order of the values.
pub type Fields = Arc<Vec<(String, FieldType)>>;

/// How far a job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Not done: ask again.
    Waiting,
    /// Its rows can be read.
    Ready {
        /// How many, where told.
        rows: Option<u64>,
        /// They are as of this time or later, in the CRM's clock.
        began: Option<Millis>,
    },
    /// It ended without rows.
    Failed(RemoteError),
}

/// A CRM that reads in bulk. A *place* is a cursor of [`crate::connectors::Connector::list_request`]
/// that names a job and how far its rows were read: it can be stored, and means
/// the same rows as long as the job lives.
pub trait BulkReader: Send + Sync {
    /// Starts a job that reads all live records of an object.
    fn start(&self, config: &ServerConfig, object: &str, fields: &Fields) -> HttpRequest;
    /// The place where a new job's rows begin.
    fn started(&self, response: &HttpResponse, fields: &Fields) -> Result<String, RemoteError>;
    /// Whether the rows at a place have these fields.
    fn fits(&self, place: &str, fields: &Fields) -> bool;
    /// Asks how far a job is; `None` for a cursor that is no place of one.
    fn ask(&self, config: &ServerConfig, place: &str) -> Option<HttpRequest>;
    /// Parses it.
    fn told(&self, response: &HttpResponse) -> Result<Progress, RemoteError>;
    /// Ends a job whose rows were read, or stops one that still waits.
    fn end(&self, config: &ServerConfig, place: &str, done: bool) -> Option<HttpRequest>;
    /// Whether an error says that this job, or any, leads nowhere: the records
    /// must be read another way. Otherwise the same may be tried again.
    fn hopeless(&self, error: &RemoteError) -> bool;
    /// Reads the body of an answer that is rows of a job; `None` for any other.
    /// `answer` is its head.
    fn rows(
        &self,
        request: &HttpRequest,
        answer: &HttpResponse,
        fields: &Fields,
    ) -> Option<Box<dyn Rows>>;
}

/// Rows of an answer, while it arrives in pieces.
pub trait Rows: Send {
    /// Takes the next piece. What is kept between pieces is less than a row.
    fn feed(&mut self, piece: &[u8]) -> Result<(), RemoteError>;
    /// The answer has ended: an error if it lacks anything.
    fn end(&mut self) -> Result<(), RemoteError>;
    /// Records that wait to be taken.
    fn waiting(&self) -> usize;
    /// Takes them as a page. Its `next` is this answer's own place until `end`
    /// was called, and then what follows it.
    fn take(&mut self) -> Page;
}

/// Code of the error of a write that its job did not come to.
pub const UNTOUCHED: &str = "unprocessed";

/// How far a job that writes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It waits for its rows to be complete.
    Open,
    /// At work, or in a queue.
    Waiting,
    /// Nothing more will be written: ask for its results.
    Ended,
}

/// A CRM that writes in bulk. A job is named by a text that can be stored.
pub trait BulkWriter: Send + Sync {
    /// Most writes of a job.
    fn most(&self) -> usize;
    /// Which of these writes can be rows of one job: what cannot be said in a row, or be told
    /// apart in the results, cannot, nor can what is beyond the size of a job.
    fn fits(&self, kind: WriteKind, unique_field: Option<&str>, writes: &[Write]) -> Vec<bool>;
    /// Makes a job for writes of one kind.
    fn open(
        &self,
        config: &ServerConfig,
        object: &str,
        kind: WriteKind,
        unique_field: Option<&str>,
    ) -> HttpRequest;
    /// Its name.
    fn opened(&self, response: &HttpResponse) -> Result<String, RemoteError>;
    /// Hands over its rows; nothing is written yet.
    fn upload(
        &self,
        config: &ServerConfig,
        job: &str,
        kind: WriteKind,
        unique_field: Option<&str>,
        writes: &[Write],
    ) -> HttpRequest;
    /// Lets it begin (`true`), or stops it where it is.
    fn set(&self, config: &ServerConfig, job: &str, go: bool) -> HttpRequest;
    /// Asks how far it is.
    fn state(&self, config: &ServerConfig, job: &str) -> HttpRequest;
    /// Parses it.
    fn stage(&self, response: &HttpResponse) -> Result<Stage, RemoteError>;
    /// Asks what became of its rows, part by part.
    fn results(&self, config: &ServerConfig, job: &str) -> Vec<HttpRequest>;
    /// What became of each write, from the answers to `results` in their order.
    fn outcomes(
        &self,
        kind: WriteKind,
        unique_field: Option<&str>,
        writes: &[Write],
        answers: &[HttpResponse],
    ) -> Result<Vec<WriteResult>, RemoteError>;
    /// Removes a job that ended.
    fn remove(&self, config: &ServerConfig, job: &str) -> HttpRequest;
    /// Whether an error says that such jobs lead nowhere.
    fn hopeless(&self, error: &RemoteError) -> bool;
}
