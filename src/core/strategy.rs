//! The strategies as a table: name, scope, function.

use crate::broken::{Mistake, made};
use crate::merge::{self, Merge};
use crate::model::{FieldType, Value};
use crate::policy::Rule;
pub use crate::policy::Strategy;
use crate::stamps::later;
use crate::state::Clock;

/// Name of SQL as an origin, where no application name is registered.
pub const LOCAL: &str = "local";

/// One of the two values that compete.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Who wrote it; empty if nobody remembers.
    pub origin: &'a str,
    /// The value, in the type of the side where the competition happens.
    pub value: &'a Value,
    /// When, where it is known.
    pub clock: Option<&'a Clock>,
}

/// Everything that a strategy may look at.
#[derive(Clone, Copy, Debug)]
pub struct Contest<'a> {
    /// The policy row.
    pub rule: &'a Rule,
    /// The value held now.
    pub incumbent: Candidate<'a>,
    /// The value that came.
    pub challenger: Candidate<'a>,
    /// Both were written without knowledge of each other.
    pub conflict: bool,
    /// An origin named by the row takes part in the entity.
    pub named_present: bool,
    /// Tolerance between clocks.
    pub skew_ms: i64,
}

/// What a strategy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The value that came.
    Challenger,
    /// The value held.
    Incumbent,
    /// A person is asked; nothing is overwritten until then.
    Review,
}

/// A row of the table of strategies.
#[derive(Clone, Copy, Debug)]
pub struct StrategyEntry {
    /// Which.
    pub strategy: Strategy,
    /// Name in policy rows.
    pub name: &'static str,
    /// Decides every change, not only conflicts.
    pub every_change: bool,
    /// `winner` must name somebody.
    pub needs_winner: bool,
    /// Types of fields that it can decide; empty is all.
    pub field_types: &'static [FieldType],
    /// The decision between two values.
    pub apply: fn(&Contest<'_>) -> Verdict,
    /// How it keeps both edits, where it does: then every edit counts.
    pub merge: Option<Merge>,
    /// A user's function is asked.
    pub evaluates: bool,
    /// Time decides, so all recent writers count, not only two.
    pub by_time: bool,
}

impl StrategyEntry {
    /// A strategy for conflicts of any type that names no winner and asks.
    const fn new(strategy: Strategy, name: &'static str) -> Self {
        Self {
            strategy,
            name,
            every_change: false,
            needs_winner: false,
            field_types: &[],
            apply: |_| Verdict::Review,
            merge: None,
            evaluates: false,
            by_time: false,
        }
    }
}

static STRATEGIES: [StrategyEntry; 9] = [
    StrategyEntry {
        every_change: true,
        needs_winner: true,
        apply: owner,
        ..StrategyEntry::new(Strategy::Owner, "owner")
    },
    StrategyEntry {
        every_change: true,
        apply: fill_blank,
        ..StrategyEntry::new(Strategy::FillBlank, "fill_blank")
    },
    StrategyEntry {
        apply: last_write_wins,
        by_time: true,
        ..StrategyEntry::new(Strategy::LastWriteWins, "last_write_wins")
    },
    StrategyEntry {
        needs_winner: true,
        apply: priority,
        ..StrategyEntry::new(Strategy::Priority, "priority")
    },
    StrategyEntry {
        field_types: &[FieldType::Text],
        merge: Some(merge::append),
        ..StrategyEntry::new(Strategy::Append, "append")
    },
    StrategyEntry {
        field_types: &[FieldType::Number],
        merge: Some(merge::delta),
        ..StrategyEntry::new(Strategy::Delta, "delta")
    },
    StrategyEntry {
        field_types: &[FieldType::MultiChoice],
        merge: Some(merge::union),
        ..StrategyEntry::new(Strategy::Union, "union")
    },
    StrategyEntry {
        evaluates: true,
        ..StrategyEntry::new(Strategy::Function, "function")
    },
    StrategyEntry::new(Strategy::Review, "review"),
];

/// The table of strategies.
pub fn strategies() -> &'static [StrategyEntry] {
    &STRATEGIES
}

/// The strategy of a policy row's name.
pub fn by_name(name: &str) -> Option<&'static StrategyEntry> {
    STRATEGIES.iter().find(|e| e.name == name)
}

impl Strategy {
    /// Its row of the table.
    pub fn entry(self) -> &'static StrategyEntry {
        // The table is in the order of the strategies.
        &STRATEGIES[self as usize]
    }
}

/// Owners write; two owners that did not know of each other keep their order
/// in the row. Where no owner takes part in the entity there is nobody to ask.
fn owner(contest: &Contest<'_>) -> Verdict {
    let named = contest.rule.winner.len();
    let rank = contest.rule.rank(contest.challenger.origin);
    if !contest.named_present || made(Mistake::OwnerIsAnybody) {
        return Verdict::Challenger;
    }
    if rank == named {
        return Verdict::Incumbent;
    }
    if contest.conflict && contest.rule.rank(contest.incumbent.origin) < rank {
        return Verdict::Incumbent;
    }
    Verdict::Challenger
}

fn fill_blank(contest: &Contest<'_>) -> Verdict {
    let named = contest.rule.winner.len();
    let rank = contest.rule.rank(contest.challenger.origin);
    if contest.incumbent.value.is_none() {
        return Verdict::Challenger;
    }
    if rank == named || (contest.conflict && contest.rule.rank(contest.incumbent.origin) < rank) {
        return Verdict::Incumbent;
    }
    Verdict::Challenger
}

/// Later wins. Stamps that overlap, or differ by less than the tolerance, have
/// no order of their own: the more exact one wins, then the row's order decides,
/// then the engine's sequence.
fn last_write_wins(contest: &Contest<'_>) -> Verdict {
    let (Some(held), Some(came)) = (contest.incumbent.clock, contest.challenger.clock) else {
        return Verdict::Challenger;
    };
    if later(came, held, contest.skew_ms) {
        return Verdict::Challenger;
    }
    if later(held, came, contest.skew_ms) {
        return Verdict::Incumbent;
    }
    match came.exactness.cmp(&held.exactness) {
        std::cmp::Ordering::Less => return Verdict::Challenger,
        std::cmp::Ordering::Greater => return Verdict::Incumbent,
        std::cmp::Ordering::Equal => {}
    }
    let rank = |c: &Candidate<'_>| contest.rule.rank(c.origin);
    match rank(&contest.challenger).cmp(&rank(&contest.incumbent)) {
        std::cmp::Ordering::Less => Verdict::Challenger,
        std::cmp::Ordering::Greater => Verdict::Incumbent,
        std::cmp::Ordering::Equal if came.seq >= held.seq => Verdict::Challenger,
        std::cmp::Ordering::Equal => Verdict::Incumbent,
    }
}

/// The better rank wins; of two unnamed origins the one decided later.
fn priority(contest: &Contest<'_>) -> Verdict {
    let rank = |c: &Candidate<'_>| contest.rule.rank(c.origin);
    if rank(&contest.challenger) <= rank(&contest.incumbent) {
        Verdict::Challenger
    } else {
        Verdict::Incumbent
    }
}
