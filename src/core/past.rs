//! The past as the ledger tells it: edits with what was decided about them, and
//! what a replay of them makes of it.

use std::collections::BTreeMap;

use crate::case::Step;
use crate::model::Value;
use crate::stamps::Quality;
use crate::state::Interval;

/// What the ledger says of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The step that decided.
    pub step: Step,
    /// Policy row, where one decided.
    pub rule: Option<i64>,
    /// The value that stood, where told.
    pub value: Option<Value>,
    /// Whose value stood.
    pub winner: String,
    /// Whose values did not.
    pub losers: Vec<String>,
    /// Two sides had changed.
    pub conflict: bool,
    /// Something waited for a person or could not be carried.
    pub held: bool,
}

/// One field of one event of the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PastEdit {
    /// The thing.
    pub entity: i64,
    /// Field of the group.
    pub field: usize,
    /// Side of the group.
    pub side: usize,
    /// Who wrote.
    pub origin: String,
    /// When.
    pub at: Interval,
    /// How exact that is.
    pub quality: Quality,
    /// Engine sequence.
    pub seq: i64,
    /// SQL, not a CRM.
    pub local: bool,
    /// How sure SQL was, in thousandths; `None` where it did not say.
    pub score: Option<u16>,
    /// What that side held before; `None` if nobody knows.
    pub old: Option<Value>,
    /// What came.
    pub came: Value,
    /// What it replaced on other sides.
    pub carried: Vec<(usize, Value)>,
    /// What was decided; `None` where it simply applied.
    pub recorded: Option<Recorded>,
    /// Nobody wrote: a change of the policy, or a request, decided it again.
    pub again: bool,
}

/// The event at which the two pasts parted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deciding {
    /// Engine sequence of the event.
    pub seq: i64,
    /// Policy row that would have decided.
    pub rule: Option<i64>,
    /// What it would have done, in words.
    pub by: String,
}

/// A cell that would hold something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The thing.
    pub entity: i64,
    /// Field of the group.
    pub field: usize,
    /// Side of the group.
    pub side: usize,
    /// What it would hold.
    pub then: Value,
    /// Since when.
    pub deciding: Deciding,
}

/// What of the past a replay cannot know, and takes as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gap {
    /// A value that only the function of a map could carry to another side.
    Map,
    /// Decided again by a change of policy; what it replaced is not known.
    Again,
}

/// How often, and where first: engine sequence and field.
pub type Gaps = BTreeMap<Gap, (u64, i64, String)>;

/// Whether an edit was made without knowledge of another.
pub(crate) fn met_another(edit: &PastEdit) -> bool {
    let recorded = edit.recorded.as_ref();
    recorded.is_some_and(|r| r.conflict || r.step == Step::Conflict)
}

/// Steps at which an edit was news, whatever came of it.
pub(crate) fn is_edit(step: Step) -> bool {
    match step {
        Step::Locked
        | Step::Score
        | Step::Owner
        | Step::FillBlank
        | Step::OneSide
        | Step::Conflict
        | Step::Merge
        | Step::Held
        | Step::Flapping
        | Step::OneWay
        | Step::Resolved => true,
        Step::Tombstone
        | Step::TooLate
        | Step::Echo
        | Step::NormalForm
        | Step::Equal
        | Step::Known
        | Step::Stale
        | Step::Unsettled
        | Step::NotLanded
        | Step::Waiting
        | Step::Policy => false,
    }
}
