//! CRMs as data transformations: build a request, parse its answer.
//!
//! A third CRM is one folder here and one line in [`by_type`].

pub mod bulk;
pub mod hubspot;
pub mod journal;
pub mod salesforce;

mod oauth;
mod rows;
pub(crate) mod table;
mod text;

use crate::budget::Exhausted;
use crate::http::{Delivery, HttpRequest, HttpResponse};
use crate::model::{
    Change, FieldType, Millis, Page, Record, RemoteError, RemoteField, RemoteObject, Value, Write,
    WriteKind, WriteResult,
};
use crate::secret::Secret;

pub use table::{CHANGED, Rule as ErrorRule};

/// Where a server is and how to speak to it: the options of `CREATE SERVER`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerConfig {
    /// API root without trailing slash; empty means the vendor's.
    pub base_url: String,
    /// Token endpoint root without trailing slash; empty means the vendor's.
    pub login_url: String,
    /// gRPC endpoint `host:port`, or `http://host:port` for plain loopback; empty means the vendor's.
    pub pubsub_endpoint: String,
    /// Change events come by CometD, not by the Pub/Sub API.
    pub cometd: bool,
    /// API version (`2026-03`, `v3`, `62.0`); empty means the connector's default.
    pub api_version: String,
    /// Installation id: the suffix of our client mark.
    pub installation: String,
}

/// A credential file or variable, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// HubSpot service key or private app token.
    Token {
        /// The key.
        token: Secret,
    },
    /// OAuth client credentials.
    ClientCredentials {
        /// Client id.
        client_id: String,
        /// Client secret.
        client_secret: Secret,
    },
    /// OAuth refresh token.
    RefreshToken {
        /// Client id.
        client_id: String,
        /// Client secret, where the app has one.
        client_secret: Option<Secret>,
        /// Refresh token.
        refresh_token: Secret,
    },
    /// JWT bearer (RS256).
    Jwt {
        /// Client id.
        client_id: String,
        /// User name.
        username: String,
        /// Audience.
        audience: String,
        /// Private key, PEM.
        private_key: Secret,
    },
}

/// A session with the CRM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Access token.
    pub access: Secret,
    /// Expiry if the CRM told one.
    pub expires_at: Option<Millis>,
    /// API root that the token belongs to, if told.
    pub instance_url: Option<String>,
    /// Organisation or portal id, if told.
    pub tenant: Option<String>,
    /// New refresh token, if rotated.
    pub refresh_token: Option<Secret>,
}

/// What an answer says of the budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitHint {
    /// Calls per window.
    pub window_max: Option<u32>,
    /// Calls left in the window.
    pub window_remaining: Option<u32>,
    /// Window length.
    pub window_ms: Option<u32>,
    /// Calls per day.
    pub daily_max: Option<u64>,
    /// Calls left today.
    pub daily_remaining: Option<u64>,
}

/// What an account says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Its time zone, by its name in the IANA database.
    pub time_zone: Option<String>,
    /// Limits that it names: what they are called, all, what is left.
    pub limits: Vec<(String, u64, u64)>,
}

/// A bucket that some requests take from besides the server's budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassLimit {
    /// What the calls are called together, in the tables.
    pub name: &'static str,
    /// Calls per window.
    pub calls: u32,
    /// Window length.
    pub window_ms: u32,
}

/// Resume point of a poll: everything up to and including it was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keyset {
    /// Modified stamp.
    pub modified_at: Millis,
    /// Record id; empty to start at `modified_at`.
    pub id: String,
    /// Only records of this very stamp, in the order of ids: for searches that
    /// sort by one field, when a page cannot hold all of one stamp.
    pub ties: bool,
}

/// Why a webhook was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// No signature header of an accepted version.
    #[error("no signature header of an accepted version")]
    Missing,
    /// Timestamp header missing or not a number.
    #[error("timestamp header missing or not a number")]
    BadTimestamp,
    /// Older than five minutes, or from the future.
    #[error("timestamp outside the accepted window")]
    Stale,
    /// Signature differs.
    #[error("signature differs")]
    Mismatch,
}

/// A CRM as pure data transformations.
///
/// No method performs I/O, reads a clock or retries. Requests lack
/// authorization until [`Connector::authorize`]. Parsers take any bytes a
/// server may answer and never panic: garbage is a [`RemoteError`].
pub trait Connector: Send + Sync {
    /// `hubspot` or `salesforce`: the TYPE of the server.
    fn name(&self) -> &'static str;
    /// Hosts of the vendor: suffixes such as `.salesforce.com`, or whole names.
    fn vendor_hosts(&self) -> &'static [&'static str];
    /// API root in force for this server.
    fn base_url(&self, config: &ServerConfig, token: Option<&Token>) -> String;
    /// The request that gets a token; `None` when the credential is one.
    fn token_request(
        &self,
        config: &ServerConfig,
        credential: &Credential,
        now: Millis,
    ) -> Result<Option<HttpRequest>, RemoteError>;
    /// Parses the token answer.
    fn token(&self, response: &HttpResponse, now: Millis) -> Result<Token, RemoteError>;
    /// Adds authorization and our mark.
    fn authorize(&self, config: &ServerConfig, token: &Token, request: &mut HttpRequest);
    /// The table that [`Self::classify`] goes by.
    fn errors(&self) -> &'static [ErrorRule];
    /// What an unsuccessful answer means. Also for 2xx whose body is not what was asked.
    fn classify(&self, response: &HttpResponse) -> RemoteError;
    /// Budget told by an answer.
    fn limits(&self, response: &HttpResponse) -> LimitHint;
    /// What is used up, where an answer of class `Wait` says so.
    fn exhausted(&self, _error: &RemoteError) -> Exhausted {
        Exhausted::Window
    }
    /// The bucket of its own that a request takes from, for calls that the CRM limits apart (search).
    fn class_limit(&self, _request: &HttpRequest) -> Option<ClassLimit> {
        None
    }
    /// A cheap authenticated call for `crm.server_check`.
    fn probe(&self, config: &ServerConfig) -> HttpRequest;
    /// Reads the probe's answer: `(what, value)` pairs worth showing (account id, time zone, quota).
    fn probed(&self, response: &HttpResponse) -> Result<Vec<(String, String)>, RemoteError>;

    /// What else the probe's answer says of the account; nothing where it cannot be read.
    fn account(&self, _response: &HttpResponse) -> Account {
        Account::default()
    }

    /// Requests that list the objects; several where one list is not enough.
    fn objects_requests(&self, config: &ServerConfig) -> Vec<HttpRequest>;
    /// Parses one of them, in the order of `objects_requests`.
    fn objects(
        &self,
        index: usize,
        response: &HttpResponse,
    ) -> Result<Vec<RemoteObject>, RemoteError>;
    /// The request that describes an object's fields; with `since`, the answer's
    /// `last-modified` of an earlier one, 304 says that nothing changed, where the
    /// CRM knows that.
    fn fields_request(
        &self,
        config: &ServerConfig,
        object: &str,
        since: Option<&str>,
    ) -> HttpRequest;
    /// Whether a field can get another API name.
    fn renames_fields(&self) -> bool {
        false
    }
    /// Parses it. System fields (id, modified stamp) are included and read-only.
    fn fields(
        &self,
        object: &str,
        response: &HttpResponse,
    ) -> Result<Vec<RemoteField>, RemoteError>;
    /// Name of the modified stamp of an object.
    fn modified_field(&self, object: &str) -> &'static str;

    /// The request that tells the account's time zone.
    fn time_zone_request(&self, _config: &ServerConfig) -> Option<HttpRequest> {
        None
    }
    /// Parses it: a name such as `Europe/Paris`; `None` if none is set.
    fn time_zone(&self, _response: &HttpResponse) -> Result<Option<String>, RemoteError> {
        Ok(None)
    }
    /// Most records of a page of [`Self::list_request`].
    fn list_batch(&self) -> usize {
        self.read_batch()
    }

    /// How many records the object has.
    fn count_request(&self, config: &ServerConfig, object: &str) -> HttpRequest;
    /// Parses it.
    fn count(&self, response: &HttpResponse) -> Result<u64, RemoteError>;
    /// A page of all live records, in an order that a resumed run continues safely.
    fn list_request(
        &self,
        config: &ServerConfig,
        object: &str,
        fields: &[(String, FieldType)],
        cursor: Option<&str>,
    ) -> HttpRequest;
    /// The way to read many records as one job, where the CRM has one.
    fn bulk(&self) -> Option<&dyn bulk::BulkReader> {
        None
    }
    /// The way to write many records as one job, where the CRM has one.
    fn bulk_writer(&self) -> Option<&dyn bulk::BulkWriter> {
        None
    }
    /// A page that shows the highest id, where copies may go by ranges of ids.
    fn highest_request(&self, _config: &ServerConfig, _object: &str) -> Option<HttpRequest> {
        None
    }
    /// A page that shows the first record with this id or a higher one.
    fn seek_request(
        &self,
        _config: &ServerConfig,
        _object: &str,
        _id: &str,
    ) -> Option<HttpRequest> {
        None
    }
    /// A page of records changed after a keyset (at or after it if its id is
    /// empty), ascending; deleted ones too where the CRM lists them.
    /// [`Page::next`] only says whether more follows: see [`Self::next_keyset`].
    fn poll_request(
        &self,
        config: &ServerConfig,
        object: &str,
        fields: &[(String, FieldType)],
        since: &Keyset,
    ) -> HttpRequest;
    /// Most records whose associations one `read_request` of such an object
    /// names; see [`crate::model::RemoteObject::type_id`].
    fn pairs_in_a_read(&self) -> usize {
        self.read_batch()
    }
    /// Polls of the object list every record there is, with no regard to when it
    /// changed: what a whole poll does not show is gone.
    fn polls_list_all(&self, _object: &str) -> bool {
        false
    }
    /// Where a poll goes on after a page; `None` at its end.
    fn next_keyset(&self, _object: &str, _asked: &Keyset, page: &Page) -> Option<Keyset> {
        page.next.as_ref()?;
        let last = |r: &Record| Some((r.modified_at?, r.id.clone()));
        let (modified_at, id) = page.records.iter().rev().find_map(last)?;
        Some(Keyset {
            modified_at,
            id,
            ties: false,
        })
    }
    /// A page of removed records, from a cursor of such pages, where polls do
    /// not list them; `None` where they do.
    fn removed_request(
        &self,
        _config: &ServerConfig,
        _object: &str,
        _cursor: Option<&str>,
    ) -> Option<HttpRequest> {
        None
    }
    /// Reads records by id.
    fn read_request(
        &self,
        config: &ServerConfig,
        object: &str,
        fields: &[(String, FieldType)],
        ids: &[String],
    ) -> HttpRequest;
    /// Finds records whose `field` has one of `values`.
    fn find_request(
        &self,
        config: &ServerConfig,
        object: &str,
        fields: &[(String, FieldType)],
        field: &str,
        values: &[String],
    ) -> HttpRequest;
    /// Finds removed records whose `field`, a key of ours, has one of `values`, of which
    /// [`Self::find_request`] knows nothing; none where the CRM does not tell.
    fn find_removed_request(
        &self,
        _config: &ServerConfig,
        _object: &str,
        _fields: &[(String, FieldType)],
        _field: &str,
        _values: &[String],
    ) -> Option<HttpRequest> {
        None
    }
    /// Whether the program of an event, as the ledger keeps it of [`Change::mark`], is a
    /// name that [`Change::by_others`] goes by.
    fn names_writer(&self, _application: &str) -> bool {
        false
    }
    /// Parses the answer of list, poll, read and find.
    fn page(
        &self,
        object: &str,
        fields: &[(String, FieldType)],
        response: &HttpResponse,
    ) -> Result<Page, RemoteError>;
    /// Most ids in one `read_request` and values in one `find_request`.
    fn read_batch(&self) -> usize;
    /// How many of `values`, from the first, fit into one `find_request`;
    /// at least 1. Fewer than [`Connector::read_batch`] when values are long.
    fn find_batch(
        &self,
        _object: &str,
        _fields: &[(String, FieldType)],
        _field: &str,
        values: &[String],
    ) -> usize {
        values.len().clamp(1, self.read_batch())
    }

    /// Whether an update of one record alone can be made to depend on nobody having
    /// changed the record since ([`Write::unchanged_since`]). Where somebody has,
    /// it fails with class `Retry` and code [`CHANGED`].
    fn writes_on_condition(&self) -> bool {
        false
    }
    /// Most writes in one `push_request`.
    fn push_batch(&self, kind: WriteKind) -> usize;
    /// One call for a batch of writes of one object. `unique_field` is our own
    /// unique property or External ID, where the account has it.
    fn push_request(
        &self,
        config: &ServerConfig,
        object: &str,
        kind: WriteKind,
        unique_field: Option<&str>,
        writes: &[Write],
    ) -> HttpRequest;
    /// What became of each write, in their order. A refusal of the whole batch
    /// gives the same error for each, with class `Split` if halves may pass.
    fn pushed(
        &self,
        kind: WriteKind,
        unique_field: Option<&str>,
        writes: &[Write],
        response: &HttpResponse,
    ) -> Vec<WriteResult>;
    /// Topic of the object's change stream, where the CRM has streams.
    fn topic(&self, object: &str) -> Option<String> {
        let _ = object;
        None
    }
    /// The journal of events, where the CRM keeps one.
    fn journal(&self) -> Option<&dyn journal::Journal> {
        None
    }
    /// Removals of the object may be merges, which only [`Self::fate_request`] tells.
    fn hides_merges(&self, object: &str) -> bool {
        let _ = object;
        false
    }
    /// Asks what became of removed records, and the field that names whom each
    /// was merged into.
    fn fate_request(
        &self,
        config: &ServerConfig,
        object: &str,
        ids: &[String],
    ) -> Option<(HttpRequest, &'static str)> {
        let _ = (config, object, ids);
        None
    }
    /// Fields that name the record as which a record lives on: field and object.
    fn successor_fields(&self, object: &str) -> &'static [(&'static str, &'static str)] {
        let _ = object;
        &[]
    }
    /// Names of the fields of ours that an account may offer: unique key and source stamp.
    fn our_fields(&self) -> OurFields;

    /// Checks a webhook's signature over the raw bytes, in constant time.
    fn verify(
        &self,
        delivery: &Delivery,
        secret: &Secret,
        now: Millis,
    ) -> Result<(), SignatureError>;
    /// Decodes a webhook body.
    fn decode(&self, delivery: &Delivery) -> Result<Vec<Change>, RemoteError>;
    /// Brings an event's or a person's spelling of a value into canonical text of its type.
    fn canonical(&self, field_type: FieldType, raw: &str) -> Result<Value, RemoteError>;
}

/// Names of fields that we use if the account has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OurFields {
    /// Unique property or External ID that carries our create key.
    pub unique: &'static str,
    /// Property that says who wrote last.
    pub source: &'static str,
}

/// Every server TYPE.
pub const TYPES: [&str; 2] = ["hubspot", "salesforce"];

/// The connector of a server TYPE.
pub fn by_type(server_type: &str) -> Option<&'static dyn Connector> {
    match server_type {
        "hubspot" => Some(&hubspot::HubSpot),
        "salesforce" => Some(&salesforce::Salesforce),
        _ => None,
    }
}

/// Ids asked for that a read did not bring: named as missing by the CRM, or
/// neither among its records nor merged into one of them. Not every CRM names
/// what it did not find, so this, not [`Page::missing`], is what to act on.
pub fn missing<'a>(asked: &'a [String], page: &Page) -> Vec<&'a str> {
    let found: std::collections::HashSet<&str> = page
        .records
        .iter()
        .map(|r| r.id.as_str())
        .chain(page.merged.iter().map(|(loser, _)| loser.as_str()))
        .collect();
    asked
        .iter()
        .map(String::as_str)
        .filter(|id| !found.contains(id))
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test panics")]
mod errors_tests;
