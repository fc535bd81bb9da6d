//! HTTP messages as values. Who sends them is not this crate's business.

/// Request method; the CRMs use no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Read.
    Get,
    /// Create, search, batch.
    Post,
    /// Upload.
    Put,
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
    /// Reading a journal of events.
    Journal,
    /// Objects, fields, limits, checks.
    Catalog,
    /// First copy of a mirror.
    Backfill,
    /// Comparing a mirror with its CRM.
    Reconcile,
}

impl Purpose {
    /// Its name in the tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::Push => "push",
            Self::ReadBack => "readback",
            Self::Match => "match",
            Self::Poll => "poll",
            Self::Journal => "journal",
            Self::Catalog => "catalog",
            Self::Backfill => "backfill",
            Self::Reconcile => "reconcile",
        }
    }
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

/// Longest name of an endpoint.
const ENDPOINT_LEN: usize = 120;

impl HttpRequest {
    /// Method and path with versions and ids taken out: few of them however many
    /// records there are, and none with a value of a record in it.
    pub fn endpoint(&self) -> String {
        let method = match self.method {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Patch => "PATCH",
            Method::Delete => "DELETE",
        };
        let path = match self.target.split_once("://") {
            Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
            None => &self.target,
        };
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let mut out = format!("{method} ");
        for segment in path.split('/').filter(|s| !s.is_empty()) {
            out.push('/');
            out.push_str(plain_segment(segment));
            if out.len() > ENDPOINT_LEN {
                out.truncate(out.rfind('/').unwrap_or(0));
                return out;
            }
        }
        if out.ends_with(' ') {
            out.push('/');
        }
        out
    }
}

/// What a segment of a path stands for: only a name of letters stands for itself.
fn plain_segment(segment: &str) -> &str {
    let version = segment.strip_prefix('v').unwrap_or(segment);
    let numeric = |c: char| c.is_ascii_digit() || matches!(c, '.' | '-');
    if version.starts_with(|c: char| c.is_ascii_digit())
        && version.len() <= 7
        && version.chars().all(numeric)
        && (version.len() < segment.len() || is_month(version))
    {
        return "{version}";
    }
    let letters = |c: char| c.is_ascii_alphabetic() || matches!(c, '_' | '-');
    if segment.len() <= 60 && segment.chars().all(letters) || segment == "oauth2" {
        segment
    } else {
        "{id}"
    }
}

/// `2026-03`.
fn is_month(text: &str) -> bool {
    text.len() == 7 && text.starts_with("20") && text.as_bytes()[4] == b'-'
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_names_neither_records_nor_versions() {
        let endpoint = |target: &str| {
            HttpRequest {
                method: Method::Post,
                target: target.to_owned(),
                headers: Vec::new(),
                body: Vec::new(),
                purpose: Purpose::Push,
            }
            .endpoint()
        };
        for (target, expected) in [
            (
                "/crm/v3/objects/contacts/batch/update",
                "POST /crm/{version}/objects/contacts/batch/update",
            ),
            (
                "/crm/objects/2026-03/contacts/101?properties=a,b",
                "POST /crm/objects/{version}/contacts/{id}",
            ),
            (
                "/services/data/v62.0/query?q=SELECT+Id",
                "POST /services/data/{version}/query",
            ),
            (
                "/services/data/v62.0/query/01gXX0000-2000",
                "POST /services/data/{version}/query/{id}",
            ),
            (
                "/services/data/v62.0/sobjects/Deal__c/003A",
                "POST /services/data/{version}/sobjects/Deal__c/{id}",
            ),
            (
                "https://a.example:1/services/oauth2/token",
                "POST /services/oauth2/token",
            ),
            ("/x/ann%40example.net/2-17", "POST /x/{id}/{id}"),
            ("https://a.example", "POST /"),
        ] {
            assert_eq!(endpoint(target), expected);
        }
        assert!(endpoint(&"/abcdefghij".repeat(50)).len() <= ENDPOINT_LEN);
    }
}
