//! How exact the time of a change is, by where it was told: passed in with the
//! policy, because no step of a decision knows a CRM.
//!
//! Two things are said of a stamp. Its `resolution` is what it shows: whole
//! seconds are a second wide. Its `exactness` is what it is the time of: the edit
//! itself, or the record, which changed last when *some* field did. By how much the
//! edit may then be older is the `tolerance`; only strategies look at it.

use serde::{Deserialize, Serialize};

use crate::model::Millis;

/// A stamp as precise as its clock: whole seconds, milliseconds, or an instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    /// Earliest.
    pub from: Millis,
    /// Latest, inclusive.
    pub to: Millis,
}

impl Interval {
    /// A stamp exact to the millisecond.
    pub fn instant(at: Millis) -> Self {
        Self { from: at, to: at }
    }

    /// A stamp that shows whole seconds.
    pub fn second(at: Millis) -> Self {
        let from = at.div_euclid(1000) * 1000;
        Self {
            from,
            to: from + 999,
        }
    }

    /// Ends before the other begins.
    pub fn before(self, other: Self) -> bool {
        self.to < other.from
    }

    /// Neither is before the other.
    pub fn overlaps(self, other: Self) -> bool {
        !self.before(other) && !other.before(self)
    }
}

/// When and by whom a value was written, and in which order we learned of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// Time at the writer.
    pub at: Interval,
    /// Engine sequence.
    pub seq: i64,
    /// Origin: a server, `local`, or an application.
    pub origin: String,
    /// What `at` is the time of.
    #[serde(default, skip_serializing_if = "Exactness::is_edit")]
    pub exactness: Exactness,
    /// How much earlier the edit may have been made.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tolerance_ms: i64,
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

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

    /// How exact a clock is.
    pub fn of(clock: &Clock) -> Self {
        Self {
            exactness: clock.exactness,
            resolution_ms: clock.at.to.saturating_sub(clock.at.from).saturating_add(1),
            tolerance_ms: clock.tolerance_ms,
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
