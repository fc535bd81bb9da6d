//! The words of the product as plain data: types, records, changes, writes.
//!
//! **Canonical text.** A value is `Option<String>` in one spelling per type,
//! whatever the CRM: `None` for null and for the empty string; numbers as
//! the CRM wrote them; `true`/`false`; `YYYY-MM-DD`;
//! `YYYY-MM-DDTHH:MM:SS.mmmZ`; multi-choice as `a;b` in the CRM's order.
//! PostgreSQL's input functions accept each of them for the column type.

use serde::{Deserialize, Serialize};

use crate::cells::Cells;
pub use crate::cells::Value;

/// Milliseconds since 1970-01-01 UTC.
pub type Millis = i64;

/// What a field holds, as far as storing and comparing need to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FieldType {
    /// Text, e-mail, phone, URL, single choice, encrypted text.
    Text,
    /// Any number.
    Number,
    /// True or false.
    Boolean,
    /// A day.
    Date,
    /// An instant.
    DateTime,
    /// A time of day (`HH:MM:SS.mmm`).
    Time,
    /// Several choices.
    MultiChoice,
    /// The id of another record.
    Reference,
}

impl FieldType {
    /// The column type of a mirror.
    pub fn column_type(self) -> &'static str {
        match self {
            Self::Text | Self::Reference => "text",
            Self::Number => "numeric",
            Self::Boolean => "boolean",
            Self::Date => "date",
            Self::DateTime => "timestamptz",
            Self::Time => "time",
            Self::MultiChoice => "text[]",
        }
    }
}

/// An object type as the CRM describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteObject {
    /// API name: `contacts`, `Contact`, `p62515_subscriptions`, `Subscription__c`.
    pub name: String,
    /// The CRM's type id or key prefix (`0-1`, `003`). Two with a slash between
    /// them are an object that pairs records of the two (`0-1/0-2`): its records
    /// are read by the ids of the first, all of each at once.
    pub type_id: String,
    /// Label, singular.
    pub label: String,
    /// Label, plural.
    pub label_plural: String,
    /// Made by the account, not the vendor.
    pub custom: bool,
    /// Rows can be made.
    pub createable: bool,
    /// Rows can be changed.
    pub updateable: bool,
    /// Rows can be removed.
    pub deletable: bool,
    /// Changes can be streamed, as far as the CRM says.
    pub streamable: bool,
}

/// A field (property) as the CRM describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteField {
    /// API name.
    pub name: String,
    /// Label.
    pub label: String,
    /// Description or help text.
    pub description: String,
    /// Our type.
    pub field_type: FieldType,
    /// The CRM's own type name.
    pub remote_type: String,
    /// Longest text in characters.
    pub max_length: Option<i32>,
    /// Digits, for numbers.
    pub precision: Option<i32>,
    /// Digits after the point.
    pub scale: Option<i32>,
    /// Choices: value and label.
    pub options: Vec<(String, String)>,
    /// Whether a value outside `options` is refused.
    pub restricted: bool,
    /// Must be given at create.
    pub required: bool,
    /// Values are unique.
    pub unique: bool,
    /// Can name a record in an upsert.
    pub external_id: bool,
    /// Cannot be written.
    pub read_only: bool,
    /// Computed by the CRM.
    pub calculated: bool,
    /// Objects that a reference may point to.
    pub references: Vec<String>,
}

/// One record of a page or read, values in the order of the requested fields.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Record {
    /// Record id in its canonical form.
    pub id: String,
    /// Last change, in the CRM's clock.
    pub modified_at: Option<Millis>,
    /// In the recycle bin or archived.
    pub deleted: bool,
    /// Values in canonical text, one per requested field.
    pub values: Cells,
}

/// A page of records.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Page {
    /// The records; may be fewer than asked although more follow.
    pub records: Vec<Record>,
    /// Where the next page starts, `None` on the last.
    pub next: Option<String>,
    /// Records in all, where the CRM says.
    pub total: Option<u64>,
    /// Ids asked for that do not exist (batch reads only).
    pub missing: Vec<String>,
    /// For merged records: `(id asked for, surviving id)`.
    pub merged: Vec<(String, String)>,
    /// The requested fields do not fit into such a request: the records carry
    /// id and stamp only, values must be read by id.
    pub ids_only: bool,
    /// Values that their type cannot hold, given as null in the records:
    /// `(record id, field, text)`, at most 1,000.
    pub unreadable: Vec<(String, String, String)>,
    /// Requested fields of which the answer says nothing, not even that they are
    /// empty: the CRM may not know them any more.
    pub absent: Vec<String>,
}

impl Page {
    /// The records of a page without values ([`Page::ids_only`]) as changes that
    /// ask for each to be read. A page that is seen twice gives equal identities.
    pub fn rereads(&self, object: &str) -> Vec<Change> {
        let change = |record: &Record| {
            let at = record.modified_at.unwrap_or_default();
            let kind = match record.deleted {
                true => ChangeKind::Delete,
                false => ChangeKind::Reread,
            };
            Change {
                object: object.to_owned(),
                record_id: record.id.clone(),
                identity: format!("page:{object}:{}:{at}:{}", record.id, record.deleted),
                kind,
                fields: Vec::new(),
                reread: Vec::new(),
                occurred_at: at,
                actor: String::new(),
                mark: String::new(),
                by_others: false,
                transaction: None,
            }
        };
        self.records.iter().map(change).collect()
    }
}

/// What kind of change an event announces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ChangeKind {
    /// Record made. `fields` holds what the event carried, maybe nothing.
    Create,
    /// Fields changed.
    Update,
    /// Record removed (soft: archived or in the bin).
    Delete,
    /// Record back from the bin.
    Restore,
    /// Records became one. The losers' ids now lead to `into`.
    Merge {
        /// Surviving id; some CRMs make a new one.
        into: String,
        /// Ids that ceased.
        losers: Vec<String>,
    },
    /// Record must be forgotten, values included.
    PrivacyDelete,
    /// The CRM could not say what changed: read the record again.
    Reread,
    /// The CRM could not say which records changed: read the object again.
    Overflow,
    /// Two records were tied or untied; carried, not applied as a field.
    Association {
        /// The other record.
        to: String,
        /// Untied rather than tied.
        removed: bool,
        /// The CRM's association type.
        association_type: String,
    },
}

/// Whom a CRM names as the writer of what an event tells: evidence, not proof.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// Nobody, or a program that may be ours.
    #[default]
    None,
    /// Our client.
    Ours,
    /// Surely somebody else: a person, or a client of another name.
    Others,
}

impl Mark {
    /// Whether nobody is named.
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// One observed change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// API name or type id of the object, as in the event.
    pub object: String,
    /// Record id; empty for [`ChangeKind::Overflow`].
    pub record_id: String,
    /// What happened.
    pub kind: ChangeKind,
    /// Changed fields in canonical text where the event carries values. Dates
    /// and numbers are in the CRM's spelling until typed by the catalog: see
    /// [`crate::connectors::Connector::canonical`].
    pub fields: Vec<(String, Value)>,
    /// Fields named as changed whose value must be read (diffs, compounds).
    pub reread: Vec<String>,
    /// When it happened, in the CRM's clock.
    pub occurred_at: Millis,
    /// Equal for two deliveries of one change and unequal otherwise.
    pub identity: String,
    /// Who: CRM user, app, integration; empty if unknown.
    pub actor: String,
    /// The CRM's evidence of the writing client (`changeOrigin`, `sourceId`).
    pub mark: String,
    /// Unless it bears our mark, somebody else wrote it: the CRM names a person or a
    /// client, not just any program.
    #[serde(default)]
    pub by_others: bool,
    /// Key of the CRM transaction, where there is one.
    pub transaction: Option<String>,
}

impl Change {
    /// Whom the CRM names, where our own writes bear the text `own`.
    pub fn named(&self, own: &str) -> Mark {
        match () {
            () if self.mark.contains(own) => Mark::Ours,
            () if self.by_others => Mark::Others,
            () => Mark::None,
        }
    }
}

/// What a write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteKind {
    /// Make a record; by upsert on our unique field when the account has it.
    Create,
    /// Change fields by record id.
    Update,
    /// Remove (archive) by record id.
    Delete,
}

/// One write of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Our identity of the write; unique in the batch, sent as trace id.
    pub key: String,
    /// Record id; `None` for creates.
    pub record_id: Option<String>,
    /// Value of our unique field, for creates by upsert.
    pub unique_value: Option<String>,
    /// Fields to set, canonical text, `None` clears.
    pub values: Vec<(String, FieldType, Value)>,
    /// To be refused if the record was changed after this, by the CRM's clock; see
    /// [`crate::connectors::Connector::writes_on_condition`].
    pub unchanged_since: Option<Millis>,
}

/// What became of one write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteResult {
    /// It is there.
    Done {
        /// Record id.
        id: String,
        /// Made by this call (creates and upserts).
        created: bool,
        /// The CRM's modified stamp after the write, where told.
        modified_at: Option<Millis>,
        /// Values that the answer shows, in the CRM's normal form.
        echoed: Vec<(String, Value)>,
    },
    /// It is not there, and the class says what to do.
    Failed(RemoteError),
    /// The CRM says that this record exists already: a match candidate.
    Exists {
        /// Id of the existing record.
        id: String,
        /// The CRM's words.
        message: String,
    },
    /// Nobody knows: the answer was lost or did not mention this write.
    Unknown(RemoteError),
}

/// What an error asks for. The table from status and code is per connector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorClass {
    /// Try again with back-off.
    Retry,
    /// Try again not before `retry_after`.
    Wait,
    /// Get a new token, then try again.
    Reauth,
    /// The batch is refused whole: send its halves.
    Split,
    /// The value is refused: parked until somebody changes it.
    FixData,
    /// The account lacks a right: parked.
    FixPermission,
    /// A field or object is not there (any more): parked.
    FixMapping,
    /// The record is gone or merged: read it, then decide again.
    Gone,
    /// Configuration or account is unusable: the server is paused.
    Stop,
}

impl ErrorClass {
    /// As it stands in tables: `fix_data`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Wait => "wait",
            Self::Reauth => "reauth",
            Self::Split => "split",
            Self::FixData => "fix_data",
            Self::FixPermission => "fix_permission",
            Self::FixMapping => "fix_mapping",
            Self::Gone => "gone",
            Self::Stop => "stop",
        }
    }

    /// What the worker does about it, in words.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Retry => "sent again, each time after a longer pause",
            Self::Wait => {
                "sent again when the CRM allows it; everything else of the account waits too where its budget is spent"
            }
            Self::Reauth => "a new access token, then sent again",
            Self::Split => "the batch is sent in halves",
            Self::FixData => "parked: somebody has to change the value",
            Self::FixPermission => "parked: somebody has to grant a right in the CRM",
            Self::FixMapping => "parked: the field or object is not there; map or import anew",
            Self::Gone => "the record is read, then it is decided again",
            Self::Stop => "the server's calls stop until the setting or credential is mended",
        }
    }
}

/// An error of a CRM or of the way to it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct RemoteError {
    /// What to do.
    pub class: ErrorClass,
    /// HTTP status, 0 for errors before an answer.
    pub status: u16,
    /// The CRM's code (`VALIDATION_ERROR`, `UNABLE_TO_LOCK_ROW`) or ours in lower case (`timeout`, `tls`, `dns`, `connect`, `body_too_large`, `not_json`).
    pub code: String,
    /// The CRM's words, bounded to 500 characters, free of secrets.
    pub message: String,
    /// Fields the CRM blames.
    pub fields: Vec<String>,
    /// What a DBA should do, one sentence.
    pub advice: &'static str,
    /// Not before, in milliseconds from now.
    pub retry_after_ms: Option<i64>,
    /// The request may have had an effect although it failed.
    pub maybe_applied: bool,
}
