//! How exact the time of a change is, by where it was told: passed in with the
//! policy, because no step of a decision knows a CRM.
//!
//! Two things are said of a stamp. Its `resolution` is what it shows: whole
//! seconds are a second wide. Its `exactness` is what it is the time of: the edit
//! itself, or the record, which changed last when *some* field did. By how much the
//! edit may then be older is the `tolerance`; only strategies look at it.

use serde::{Deserialize, Serialize};

use crate::model::Millis;
use crate::state::{Clock, Interval};

/// What a stamp is the time of; better ones first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Exactness {
    /// The edit of this field.
    #[default]
    Edit,
    /// The last change of the record, whatever field it was.
    Record,
    /// Nothing there: it is when we were told.
    Received,
}

impl Exactness {
    /// All, better ones first.
    pub const ALL: [Self; 3] = [Self::Edit, Self::Record, Self::Received];

    /// Whether it is the best there is.
    pub fn is_edit(&self) -> bool {
        *self == Self::Edit
    }
}

/// How exact stamps are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quality {
    /// What they are the time of.
    pub exactness: Exactness,
    /// What they show: 1 is milliseconds.
    pub resolution_ms: i64,
    /// How much earlier the edit may have been made, where the stamp is not its
    /// own.
    pub tolerance_ms: i64,
}

impl Default for Quality {
    fn default() -> Self {
        Self {
            exactness: Exactness::Edit,
            resolution_ms: 1,
            tolerance_ms: 0,
        }
    }
}

impl Quality {
    /// The times that a stamp stands for.
    pub fn interval(&self, at: Millis) -> Interval {
        let width = self.resolution_ms.max(1);
        let from = at.div_euclid(width).saturating_mul(width);
        Interval {
            from,
            to: from.saturating_add(width - 1),
        }
    }

    /// A clock of this quality.
    pub fn clock(&self, at: Interval, seq: i64, origin: &str) -> Clock {
        let own = self.exactness.is_edit();
        Clock {
            at,
            seq,
            origin: origin.to_owned(),
            exactness: self.exactness,
            tolerance_ms: if own { 0 } else { self.tolerance_ms },
        }
    }
}

/// How exact the stamps of one server are that come one way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StampRule {
    /// Name of the server, or `local`.
    pub origin: String,
    /// The way: as `crm.event.source` names it.
    pub source: String,
    /// What is known of its stamps.
    pub quality: Quality,
}

/// Whether `clock` is later than `other` beyond doubt: the tolerance between
/// clocks, and what the vaguer of two stamps leaves open.
pub(crate) fn later(clock: &Clock, other: &Clock, skew_ms: i64) -> bool {
    let doubt = match clock.exactness > other.exactness {
        true => clock.tolerance_ms,
        false => 0,
    };
    clock.at.from.saturating_sub(doubt) > other.at.to.saturating_add(skew_ms)
}
