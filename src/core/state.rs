//! What is remembered of a field while its sides may still differ.
//!
//! Observations, not intentions: what each CRM held when it was last agreed
//! (`base`), what it showed since (`seen`), what we sent (`sent`). The value
//! decided last is in the mirrors. Once [`settle`] holds, the mirrors say it all
//! and the state is dropped.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::{Mark, Millis, Value};
pub use crate::sent::{Sent, SentWrite};
pub use crate::stamps::{Clock, Interval};
use crate::transform::Images;

/// Most writes remembered per side; older ones make room.
pub const SENT_MAX: usize = 16;
/// Most counted edits remembered per side, where every edit counts.
pub const PAST_MAX: usize = 16;

/// A value that a CRM keeps showing against our writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flap {
    /// The value.
    pub value: Value,
    /// How often it came back.
    pub count: u32,
    /// Since when, in event time.
    pub since: Millis,
}

/// An edit that waits: its value, when it was made, and whom its CRM named as the
/// writer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting(
    pub Value,
    pub Clock,
    #[serde(default, skip_serializing_if = "Mark::is_none")] pub Mark,
);

/// One side of a field that is not settled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SideState {
    /// What its CRM held when all sides last agreed; `None` is never agreed.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "agreed")]
    pub base: Option<Value>,
    /// What its users last wrote there, as far as we know, and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<(Value, Clock)>,
    /// A page showed it: of the events of the same second it may be any.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paged: bool,
    /// What we wrote there, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sent: Vec<SentWrite>,
    /// Earlier edits there, where every edit counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub past: Vec<(Value, Interval)>,
    /// Edits there that wait until it is known whether they came before or after
    /// a write of ours.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<Waiting>,
    /// Value that keeps coming back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flap: Option<Flap>,
}

/// JSON has one null and `Option<Value>` two: an agreed blank is `[]`.
mod agreed {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::model::Value;

    pub(super) fn serialize<S: Serializer>(base: &Option<Value>, s: S) -> Result<S::Ok, S::Error> {
        base.as_ref()
            .map(|v| v.iter().collect::<Vec<_>>())
            .serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Value>, D::Error> {
        let list: Option<Vec<String>> = Deserialize::deserialize(d)?;
        Ok(list.map(|l| l.into_iter().next()))
    }
}

/// Most candidates of one question; older ones make room.
pub const CLAIMS_MAX: usize = 16;

/// One of the values among which a person is asked to choose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Side in whose type the value is.
    pub side: usize,
    /// The value.
    pub value: Value,
    /// Who wrote it and when; an empty origin is nobody remembered.
    pub clock: Clock,
}

/// Why a field waits for a person, and what for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Shown in the review queue.
    pub reason: String,
    /// Policy row that asked, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<i64>,
    /// The newest value of each writer on each side.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<Claim>,
}

impl Hold {
    /// Takes up a value; it replaces what its writer wanted on that side before.
    pub fn claim(&mut self, claim: Claim) {
        let same = |c: &&mut Claim| c.side == claim.side && c.clock.origin == claim.clock.origin;
        match self.claims.iter_mut().find(same) {
            Some(held) => *held = claim,
            None => self.claims.push(claim),
        }
        let surplus = self.claims.len().saturating_sub(CLAIMS_MAX);
        self.claims.drain(..surplus);
    }
}

/// Writers that take turns in setting a field against each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turns {
    /// Who wrote last.
    pub last: String,
    /// Who wrote before.
    pub before: String,
    /// How often the writer changed.
    pub count: u32,
    /// Since when, in event time.
    pub since: Millis,
}

/// A field that is not settled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldState {
    /// One entry per side of the group.
    pub sides: Vec<SideState>,
    /// Clock of the value held now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<Clock>,
    /// Waiting for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
    /// Writers that take turns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turns: Option<Turns>,
    /// What each writer wrote last, where time could not tell the order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rivals: Vec<Claim>,
}

impl FieldState {
    /// Whether edits wait to be counted.
    pub fn has_waiting(&self) -> bool {
        self.sides.iter().any(|s| !s.waiting.is_empty())
    }
}

/// One record of an entity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SideRecord {
    /// The mirror has a row.
    pub exists: bool,
    /// Its id at the CRM; `None` until created there.
    pub record_id: Option<String>,
    /// Removed there (soft) or being removed.
    pub deleted: bool,
    /// The row's values before the event, by field of the group, in the side's
    /// own type; `None` where not mapped.
    pub values: Vec<Value>,
}

/// One real thing: its records and its unsettled fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entity {
    /// One per side of the group.
    pub records: Vec<SideRecord>,
    /// Unsettled fields by number.
    pub fields: BTreeMap<usize, FieldState>,
    /// What users' functions make of its values.
    pub images: Images,
}

impl Entity {
    /// The side has a row that may be written.
    pub(crate) fn alive(&self, side: usize) -> bool {
        let row = self.records.get(side);
        row.is_some_and(|r| r.exists && !r.deleted)
    }
}

/// Whether nothing is left to wait for: no write is queued, in flight, unknown
/// or refused, the newest one was seen at its CRM, no person is asked, and even
/// the slowest redelivery of what happened has passed.
pub fn settle(state: &FieldState, now: Millis, horizon_ms: i64) -> bool {
    let limit = now.saturating_sub(horizon_ms);
    let quiet = |at: Interval| at.to < limit;
    let side_done = |side: &SideState| {
        // What somebody wrote there, or an earlier write that came late, clearly
        // after our write.
        let replaced = |w: &SentWrite| {
            let later = |at: Interval| w.window(2_000).is_some_and(|o| o.before(at));
            let mut late = side.sent.iter().filter_map(|other| other.landed);
            side.seen.as_ref().is_some_and(|(_, c)| later(c.at)) || late.any(later)
        };
        let shown = |w: &SentWrite| w.confirmed || w.landed.is_some() || replaced(w);
        let done = side.sent.last().is_none_or(|w| match w.sent {
            Sent::Answered { answered: end, .. } | Sent::Unknown { given_up: end, .. } => {
                end < limit && shown(w)
            }
            Sent::Queued | Sent::InFlight { .. } | Sent::Failed => false,
        });
        let rest = side.sent.iter().rev().skip(1).all(|w| match w.sent {
            Sent::Queued | Sent::InFlight { .. } => false,
            Sent::Answered { answered, .. } => answered < limit,
            Sent::Unknown { given_up, .. } => given_up < limit,
            Sent::Failed => true,
        });
        done && rest
            && side.waiting.is_empty()
            && side.seen.as_ref().is_none_or(|(_, c)| quiet(c.at))
    };
    state.hold.is_none()
        && state.clock.as_ref().is_none_or(|c| quiet(c.at))
        && state.sides.iter().all(side_done)
}
