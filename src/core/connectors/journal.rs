//! Events that a CRM keeps as files for whoever comes to read them: ask for the
//! next place, fetch the file that it names, take what it says.

use crate::connectors::ServerConfig;
use crate::http::{HttpRequest, HttpResponse};
use crate::model::{Change, Millis, RemoteError};

/// A place in a journal and the file that lies there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What follows is asked for by it, in words of the CRM.
    pub offset: String,
    /// Address of the file; it works for a while and carries its own permission.
    pub url: String,
}

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Its changes. Those whose content was not understood ask for their record to be read.
    pub changes: Vec<Change>,
    /// Entries of which not even the record could be made out.
    pub unknown: usize,
}

/// A CRM that has such a journal. Its calls go by a token of their own.
pub trait Journal: Send + Sync {
    /// How long it keeps a file.
    fn keeps_ms(&self) -> Millis;
    /// Asks for what follows an offset, or for the earliest that is kept.
    fn next(&self, config: &ServerConfig, after: Option<&str>) -> HttpRequest;
    /// Asks for up to so many places after an offset at once, where the CRM has a call for it.
    fn next_many(&self, config: &ServerConfig, after: &str, most: usize) -> Option<HttpRequest> {
        let _ = (config, after, most);
        None
    }
    /// Parses its answer: the places in their order.
    fn places(&self, response: &HttpResponse) -> Result<Vec<Place>, RemoteError> {
        Ok(self.place(response)?.into_iter().collect())
    }
    /// Asks for the latest.
    fn latest(&self, config: &ServerConfig) -> HttpRequest;
    /// Parses an answer to either; `None` if there is nothing.
    fn place(&self, response: &HttpResponse) -> Result<Option<Place>, RemoteError>;
    /// Asks for the file.
    fn file(&self, place: &Place) -> HttpRequest;
    /// Reads it. `at` dates what says no time itself.
    fn told(&self, response: &HttpResponse, at: Millis) -> Result<Told, RemoteError>;
}
