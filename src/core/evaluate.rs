//! Functions of users: the core says what to ask, others ask, and what was said
//! is kept with the decision so that it can be made again.

use serde::{Deserialize, Serialize};

use crate::model::Value;
use crate::state::Interval;

/// A question to a user's function, complete: the same question has the same
/// answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Policy row that asks.
    pub rule: i64,
    /// The function, as the row names it.
    pub function: String,
    /// Field of the group.
    pub field: String,
    /// Side in whose type the values are.
    pub side: usize,
    /// The value held.
    pub held: Value,
    /// Who wrote it; empty if nobody remembers.
    pub held_origin: String,
    /// When, where it is known.
    pub held_at: Option<Interval>,
    /// The value that came.
    pub came: Value,
    /// Who wrote it.
    pub came_origin: String,
    /// When.
    pub came_at: Interval,
    /// What the sides last had in common; `None` if they never agreed.
    pub base: Option<Value>,
}

/// What a function said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evaluation {
    /// What it was asked.
    pub question: Question,
    /// Which version of the function answered.
    pub version: String,
    /// The value, or why there is none.
    pub answer: Result<Value, String>,
}
