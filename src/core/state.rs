//! What is remembered of a field while its sides may still differ.
//!
//! Observations, not intentions: what each CRM held when it was last agreed
//! (`base`), what it showed since (`seen`), what we sent (`sent`). The value
//! decided last is in the mirrors. Once [`settle`] holds, the mirrors say it all
//! and the state is dropped.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::mapping::Images;
use crate::model::{Millis, Value};
pub use crate::sent::{Sent, SentWrite};
use crate::stamps::Exactness;

/// Most writes remembered per side; older ones make room.
pub const SENT_MAX: usize = 16;
/// Most counted edits remembered per side, where every edit counts.
pub const PAST_MAX: usize = 16;

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
    pub waiting: Vec<(Value, Clock)>,
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

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The CRM accepted it; `echoed` is the value that the answer showed.
    Done {
        /// In the CRM's normal form.
        echoed: Option<Value>,
    },
    /// It is not there, and is not tried again as it is.
    Failed,
    /// It is not there, and waits in the outbox for another try.
    Retry,
    /// The answer was lost.
    Unknown,
}

/// A write leaves the outbox; told twice is told once. A write sent again keeps
/// its first time: either attempt may be the one that lands.
pub fn claimed(state: &mut FieldState, side: usize, value: &Value, now: Millis) {
    let Some(side) = state.sides.get_mut(side) else {
        return;
    };
    let under_way = |w: &SentWrite| w.value == *value && matches!(w.sent, Sent::InFlight { .. });
    if side.sent.iter().any(under_way) {
        return;
    }
    let told = side.seen.as_ref().map(|(_, c)| c.at.to);
    let waiting = side
        .sent
        .iter_mut()
        .rev()
        .find(|w| w.value == *value && !matches!(w.sent, Sent::Answered { .. }));
    if let Some(write) = waiting {
        let first = match write.sent {
            Sent::Unknown { claimed, .. } => claimed,
            _ => {
                write.after = told;
                now
            }
        };
        write.sent = Sent::InFlight { claimed: first };
        write.held = false;
        return;
    }
    // Approved meanwhile and then queued again: the outbox kept the first, too.
    if let Some(place) = crate::echo::queued(side) {
        let clock = side.sent[place].clock.clone();
        let write = SentWrite {
            sent: Sent::InFlight { claimed: now },
            after: told,
            ..SentWrite::queued(value, &clock)
        };
        side.sent.insert(place, write);
    }
}

/// Notes that a value waits for a side in the outbox, in place of another.
pub fn queue(state: &mut FieldState, side: usize, value: &Value, clock: &Clock) {
    if let Some(side) = state.sides.get_mut(side) {
        crate::echo::enqueue(side, value, clock, false);
    }
}

/// Forgets what waits for a side in the outbox: it was taken out of there.
pub fn withdraw(state: &mut FieldState, side: usize) {
    if let Some(side) = state.sides.get_mut(side) {
        crate::echo::withdraw(side);
    }
}

/// A write came back. Returns the value that the mirror row should show
/// instead, where the CRM stored another form of it and it is still wanted.
pub fn answered(
    state: &mut FieldState,
    side: usize,
    value: &Value,
    result: Answer,
    now: Millis,
) -> Option<Value> {
    let claims = state.hold.iter().flat_map(|h| &h.claims);
    // A person is asked about what somebody wrote there in the meantime.
    let contested = claims.filter(|c| c.side == side).any(|c| c.value != *value);
    let side = state.sides.get_mut(side)?;
    let place = side
        .sent
        .iter()
        .rposition(|w| w.value == *value && matches!(w.sent, Sent::InFlight { .. }))?;
    // What waits for approval may never leave.
    let newest = side.sent[place + 1..].iter().all(|w| w.held);
    let write = &mut side.sent[place];
    let Sent::InFlight { claimed } = write.sent else {
        return None;
    };
    match result {
        Answer::Failed => write.sent = Sent::Failed,
        // A newer write in the outbox has taken its place.
        Answer::Retry if newest && !contested => write.sent = Sent::Queued,
        Answer::Retry => {
            side.sent.remove(place);
        }
        Answer::Unknown => {
            write.sent = Sent::Unknown {
                claimed,
                given_up: now,
            }
        }
        Answer::Done { echoed } => {
            write.sent = Sent::Answered {
                claimed,
                answered: now,
            };
            if crate::broken::made(crate::broken::Mistake::AnswerIsLanding) {
                write.landed = Some(Interval::instant(now));
                write.confirmed = true;
            }
            let echoed = echoed?;
            // Something else than a form of ours: somebody's edit, or the CRM kept
            // what it had (a stage that only goes forward). What it shows tells.
            if !crate::echo::alike(&echoed, &write.value) {
                return None;
            }
            write.confirmed = true;
            let changed = echoed != write.value;
            if changed && write.normal.is_none() {
                write.normal = Some(echoed.clone());
            }
            return (changed && newest).then_some(echoed);
        }
    }
    None
}

/// A write came back undone and may be tried again. Whether it is still wanted:
/// no newer one waits, and no person is asked about what somebody wrote there
/// since.
pub fn retry(state: &mut FieldState, side: usize, value: &Value, now: Millis) -> bool {
    let known = is_in_flight(state, side, value);
    answered(state, side, value, Answer::Retry, now);
    !known || has_sent(state, side, value, |s| *s == Sent::Queued)
}

/// Whether a write of this value is under way.
pub fn is_in_flight(state: &FieldState, side: usize, value: &Value) -> bool {
    has_sent(state, side, value, |s| matches!(s, Sent::InFlight { .. }))
}

fn has_sent(state: &FieldState, side: usize, value: &Value, is: fn(&Sent) -> bool) -> bool {
    let writes = state.sides.get(side).map(|s| &s.sent);
    writes.is_some_and(|all| all.iter().any(|w| w.value == *value && is(&w.sent)))
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
