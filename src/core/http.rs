//! HTTP messages as values. Who sends them is not this crate's business.

/// Request method; the CRMs use no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Read.
    Get,
    /// Create, search, batch.
    Post,
    /// Change.
    Patch,
    /// Remove.
    Delete,
}

/// What a request is for: the budget lane it takes and the row it is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// Token exchange; counts against no budget.
    Auth,
    /// A user's write on its way out.
    Push,
    /// Reading records that an event announced.
    ReadBack,
    /// Looking for an existing record before a create.
    Match,
    /// Polling for changes.
    Poll,
    /// Objects, fields, limits, checks.
    Catalog,
    /// First copy of a mirror.
    Backfill,
    /// Comparing a mirror with its CRM, and reading what differs.
    Reconcile,
}

/// A request, complete but for authorization.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRequest {
    /// Method.
    pub method: Method,
    /// Path and query below the server's base URL (`/crm/v3/...`), or an absolute URL.
    pub target: String,
    /// Headers besides authorization and content length, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body; empty for none.
    pub body: Vec<u8>,
    /// Lane and counter.
    pub purpose: Purpose,
}

/// An answer, read whole and within the size cap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpResponse {
    /// Status code.
    pub status: u16,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

impl HttpResponse {
    /// First value of a header; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }
}

/// A webhook request as it arrived: raw bytes, nothing interpreted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Method in upper case.
    pub method: String,
    /// Full URI as the CRM called it (scheme, host, path, query).
    pub uri: String,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}
