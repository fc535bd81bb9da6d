//! What we wrote to a CRM, or are about to, and how far it has come.

use serde::{Deserialize, Serialize};

use crate::model::{Millis, Value};
use crate::stamps::{Clock, Interval};

/// How far a write has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sent {
    /// In the outbox; nobody has taken it.
    Queued,
    /// Handed to the network.
    InFlight {
        /// When.
        claimed: Millis,
    },
    /// The CRM said that it is done.
    Answered {
        /// When it was handed over.
        claimed: Millis,
        /// When the answer came.
        answered: Millis,
    },
    /// Nobody knows whether it arrived.
    Unknown {
        /// When it was handed over.
        claimed: Millis,
        /// When we stopped waiting.
        given_up: Millis,
    },
    /// It is not there.
    Failed,
}

/// A value that we wrote, or are about to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentWrite {
    /// The value as sent.
    pub value: Value,
    /// How far it has come.
    pub sent: Sent,
    /// Clock of the value that it carries.
    pub clock: Clock,
    /// Stamp of the newest edit there that we knew of when it was handed over: it
    /// lands later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Millis>,
    /// Edits of about its time over which it was seen to have been written, and when
    /// they were made: the same value may be written again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub covers: Vec<(Value, Interval)>,
    /// Edits of about its time that were seen to have been made on top of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub covered_by: Vec<(Value, Interval)>,
    /// When it landed by the CRM's clock, told by its event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landed: Option<Interval>,
    /// The CRM was seen to hold it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub confirmed: bool,
    /// It was answered, and then the CRM was seen to hold an earlier one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub doubted: bool,
    /// What the CRM made of it, where that differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normal: Option<Value>,
    /// What the CRM answered to hold instead, though it said that it is done: what it
    /// held before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Value>,
    /// It was queued for a person's approval, beside what was on its way.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
}

impl SentWrite {
    /// A value that waits in the outbox.
    pub(crate) fn queued(value: &Value, clock: &Clock) -> Self {
        Self {
            value: value.clone(),
            sent: Sent::Queued,
            clock: clock.clone(),
            after: None,
            covers: Vec::new(),
            covered_by: Vec::new(),
            landed: None,
            confirmed: false,
            doubted: false,
            normal: None,
            kept: None,
            held: false,
        }
    }

    /// What the CRM holds once this write has landed.
    pub fn result(&self) -> &Value {
        self.normal.as_ref().unwrap_or(&self.value)
    }

    /// When, by the CRM's clock, this write may have taken effect; `None` if it
    /// cannot have.
    pub fn window(&self, skew_ms: i64) -> Option<Interval> {
        self.landed.or_else(|| self.attempt(skew_ms))
    }

    /// The same, going by our clock alone.
    pub fn attempt(&self, skew_ms: i64) -> Option<Interval> {
        let (from, to) = match self.sent {
            Sent::Queued | Sent::Failed => return None,
            Sent::InFlight { claimed } => (claimed, Millis::MAX),
            Sent::Answered { claimed, answered } => (claimed, answered),
            Sent::Unknown { claimed, given_up } => (claimed, given_up),
        };
        Some(Interval {
            from: from.saturating_sub(skew_ms),
            to: to.saturating_add(skew_ms),
        })
    }
}
