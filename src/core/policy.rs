//! Policy rows: which rule decides for a field.

use serde::{Deserialize, Serialize};

use crate::stamps::{Quality, StampRule};

/// How a policy row decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Only the named origins may change the field; others are put back.
    Owner,
    /// Named origins write freely, others only where the field is blank.
    FillBlank,
    /// The later edit wins; inside the skew tolerance the named order.
    LastWriteWins,
    /// The origin named first wins.
    Priority,
    /// Text: the tails that both sides added follow each other.
    Append,
    /// Numbers: the differences of both sides are added up.
    Delta,
    /// Choices: what either side picked, without what it unpicked.
    Union,
    /// A user's SQL function decides.
    Function,
    /// A person decides.
    #[default]
    Review,
}

/// One policy row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Key of the row, stored with each decision.
    pub id: i64,
    /// Field of the group; `None` is `*`, the default of the group.
    pub field: Option<String>,
    /// What decides.
    pub strategy: Strategy,
    /// Origins, best first: owners, or the order of priority and of ties.
    /// `local` is SQL.
    pub winner: Vec<String>,
    /// The SQL function that decides, where the strategy is `function`.
    pub function: Option<String>,
    /// What SQL writes needs at least this score, in thousandths.
    pub min_score: Option<u16>,
    /// Nothing at a CRM may be overwritten unseen: where it can, a write goes out on
    /// condition that its record is as it was last seen.
    pub strict: bool,
}

/// A field that only some origins may write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldLock {
    /// Key of the row, stored with each decision.
    pub id: i64,
    /// Field of the group.
    pub field: String,
    /// Who may.
    pub origins: Vec<String>,
}

impl Rule {
    /// Place of an origin in `winner`; unnamed origins share the last place.
    pub fn rank(&self, origin: &str) -> usize {
        self.winner
            .iter()
            .position(|w| w == origin)
            .unwrap_or(self.winner.len())
    }
}

/// The rules of a group under one version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Version, stored with each decision.
    pub version: i64,
    /// The rows.
    pub rules: Vec<Rule>,
    /// How far apart two edits must be before the later one wins by time.
    pub skew_ms: i64,
    /// Locked fields.
    pub locks: Vec<FieldLock>,
    /// How exact the times of changes are.
    pub stamps: Vec<StampRule>,
}

impl Policy {
    /// How far a CRM's clock may be from ours when its events are compared with
    /// our writes. A tolerance of the policy that is very small or very large
    /// says something about people's edits, not about clocks.
    pub fn tolerance_ms(&self) -> i64 {
        self.skew_ms.clamp(2_000, 30_000)
    }

    /// How exact the stamps of a server are that come this way; as edits to the
    /// millisecond where nothing is said.
    pub fn quality(&self, origin: &str, source: &str) -> Quality {
        self.stated(origin, source).unwrap_or_default()
    }

    /// The same, where something is said.
    pub fn stated(&self, origin: &str, source: &str) -> Option<Quality> {
        // What a reconciliation shows was read.
        let source = if source == "reconcile" {
            "read"
        } else {
            source
        };
        let of = |s: &&StampRule| s.origin == origin && s.source == source;
        self.stamps.iter().find(of).map(|s| s.quality)
    }

    /// How exact the stamps of a server's records are.
    pub fn record_quality(&self, origin: &str) -> Quality {
        self.quality(origin, "poll")
    }

    /// The lock of a field.
    pub fn lock(&self, field: &str) -> Option<&FieldLock> {
        self.locks.iter().find(|l| l.field == field)
    }

    /// The row of a field, else the `*` row. There is no hidden default.
    pub fn rule(&self, field: &str) -> Option<&Rule> {
        self.rules
            .iter()
            .find(|r| r.field.as_deref() == Some(field))
            .or_else(|| self.rules.iter().find(|r| r.field.is_none()))
    }
}
