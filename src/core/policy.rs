//! Policy rows: which rule decides for a field.

use crate::strategy::Strategy;

/// One policy row.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// How far two clocks may differ before their order means something.
    pub skew_ms: i64,
}

impl Policy {
    /// The row of a field, else the `*` row. There is no hidden default.
    pub fn rule(&self, field: &str) -> Option<&Rule> {
        self.rules
            .iter()
            .find(|r| r.field.as_deref() == Some(field))
            .or_else(|| self.rules.iter().find(|r| r.field.is_none()))
    }
}
