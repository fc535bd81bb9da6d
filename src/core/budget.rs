//! What a DBA allows of an account's calls, and who may take them, as data.
//!
//! Shares are in thousandths, so that nothing here rounds differently on two
//! machines.

use std::collections::BTreeMap;

use crate::http::Purpose;
use crate::model::Millis;

/// Who asks, most urgent first. Lanes are served strictly in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Users' writes.
    Push,
    /// Reads that a decision waits for: records that events named.
    Read,
    /// Polls, catalog.
    Poll,
    /// Writes and reads of links that may be late.
    Relaxed,
    /// First copies.
    Backfill,
    /// Comparisons of whole objects.
    Reconcile,
}

impl Lane {
    /// All lanes, most urgent first.
    pub const ALL: [Self; 6] = [
        Self::Push,
        Self::Read,
        Self::Poll,
        Self::Relaxed,
        Self::Backfill,
        Self::Reconcile,
    ];

    /// The lane of a purpose; `None` for what counts against no budget.
    pub fn of(purpose: Purpose) -> Option<Self> {
        match purpose {
            Purpose::Auth => None,
            Purpose::Push => Some(Self::Push),
            Purpose::ReadBack | Purpose::Match | Purpose::Journal => Some(Self::Read),
            Purpose::Poll | Purpose::Catalog => Some(Self::Poll),
            Purpose::Backfill => Some(Self::Backfill),
            Purpose::Reconcile => Some(Self::Reconcile),
        }
    }

    /// Somebody notices when it waits.
    pub fn is_live(self) -> bool {
        self <= Self::Read
    }

    /// Work that may wait for the night.
    pub fn is_heavy(self) -> bool {
        self >= Self::Backfill
    }
}

/// How soon the changes of a link are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Latency {
    /// At once.
    #[default]
    Interactive,
    /// When nothing interactive waits.
    Relaxed,
    /// In the off-peak windows, as heavy work.
    OffPeak,
}

impl Latency {
    /// The class of this name; an unknown one is the default.
    pub fn named(name: &str) -> Self {
        match name {
            "relaxed" => Self::Relaxed,
            "off_peak" => Self::OffPeak,
            _ => Self::Interactive,
        }
    }

    /// The lane of a call for this purpose; nothing becomes more urgent by its class.
    pub fn lane(self, purpose: Purpose) -> Lane {
        // What counts against no budget is as urgent as can be.
        let lane = Lane::of(purpose).unwrap_or(Lane::Push);
        match (self, purpose) {
            (_, Purpose::Auth | Purpose::Catalog) | (Self::Interactive, _) => lane,
            (Self::Relaxed, _) => lane.max(Lane::Relaxed),
            (Self::OffPeak, _) => lane.max(Lane::Backfill),
        }
    }
}

/// What an account's CRM says is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exhausted {
    /// The calls of the present window.
    Window,
    /// Those of a class of calls with a limit of its own.
    Class,
    /// The day's calls.
    Day,
    /// Calls at a time.
    Concurrency,
    /// The account takes none at all for a while.
    Account,
}

impl Exhausted {
    /// Its name in the tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Window => "window",
            Self::Class => "class",
            Self::Day => "day",
            Self::Concurrency => "concurrency",
            Self::Account => "account",
        }
    }
}

/// The budget of one server as configured; the defaults leave the CRM's own
/// limits to rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Calls per window at most, whatever the CRM allows.
    pub calls_per_window: Option<u32>,
    /// Of what the CRM allows, per window and per day: 1 to 1000.
    pub share: u32,
    /// Calls of ours in 24 hours at most.
    pub calls_per_day: Option<u64>,
    /// Of the day's calls, what heavy work leaves to everything else.
    pub reserve: u32,
    /// Of the day's calls, what is left when all but users' writes and the reads
    /// for events stop.
    pub pause_at: u32,
    /// Calls at a time at most.
    pub concurrent: Option<u32>,
    /// Calls of a class per second (searches), instead of what the CRM documents.
    pub class_per_second: Option<u32>,
    /// When heavy work may run, wall clock, from and until, ascending; `None` is always.
    pub heavy: Option<Vec<(Millis, Millis)>>,
    /// Of the server's budget, what a mirror may use: its number, 1 to 1000.
    pub mirrors: BTreeMap<i32, u32>,
    /// Calls of the last 24 hours, of all and of each mirror with a share.
    pub spent: u64,
    /// By mirror.
    pub mirror_spent: BTreeMap<i32, u64>,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            calls_per_window: None,
            share: 1_000,
            calls_per_day: None,
            reserve: 100,
            pause_at: 20,
            concurrent: None,
            class_per_second: None,
            heavy: None,
            mirrors: BTreeMap::new(),
            spent: 0,
            mirror_spent: BTreeMap::new(),
        }
    }
}

/// `part` thousandths of `whole`, at least 1.
pub fn thousandths(whole: u64, part: u32) -> u64 {
    let (whole, part) = (u128::from(whole), u128::from(part));
    u64::try_from(whole * part / 1_000)
        .unwrap_or(u64::MAX)
        .max(1)
}

impl Budget {
    /// Calls per window where the CRM allows `told`.
    pub fn window(&self, told: Option<u32>) -> Option<u32> {
        let of_told = told.map(|t| {
            let share = thousandths(u64::from(t), self.share);
            u32::try_from(share).unwrap_or(u32::MAX)
        });
        match (of_told, self.calls_per_window) {
            (Some(a), Some(b)) => Some(a.min(b).max(1)),
            (a, b) => a.or(b).map(|n| n.max(1)),
        }
    }

    /// Calls of ours per day where the CRM allows `told`; `None` is without a limit of ours.
    pub fn day(&self, told: Option<u64>) -> Option<u64> {
        let of_told = told
            .filter(|_| self.share < 1_000)
            .map(|t| thousandths(t, self.share));
        match (of_told, self.calls_per_day) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Of the day's calls (in thousandths), what a lane leaves to those above it.
    pub fn kept(&self, lane: Lane) -> u32 {
        let kept = match lane {
            Lane::Push => 0,
            Lane::Read => self.pause_at / 4,
            Lane::Poll => self.pause_at,
            Lane::Relaxed => self.pause_at + self.pause_at / 2,
            Lane::Backfill => self.reserve.max(self.kept(Lane::Relaxed)),
            Lane::Reconcile => self.kept(Lane::Backfill) + self.reserve / 2,
        };
        kept.min(950)
    }

    /// When heavy work may go on: `None` is now. Where the list of windows ends,
    /// in an hour: a new one is there by then.
    pub fn heavy_from(&self, wall: Millis) -> Option<Millis> {
        let spans = self.heavy.as_ref()?;
        match spans.iter().find(|(_, until)| *until > wall) {
            Some((from, _)) if *from <= wall => None,
            Some((from, _)) => Some(*from),
            None => Some(wall + 3_600_000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heavy_work_runs_in_its_windows_only() {
        let none = Budget {
            heavy: Some(Vec::new()),
            ..Budget::default()
        };
        assert_eq!(Budget::default().heavy_from(5), None);
        assert_eq!(none.heavy_from(5), Some(3_600_005));
        let two = Budget {
            heavy: Some(vec![(10, 20), (30, 40)]),
            ..Budget::default()
        };
        let seen = [9, 10, 19, 20, 30, 39, 40].map(|t| two.heavy_from(t));
        let expected = [Some(10), None, None, Some(30), None, None, Some(3_600_040)];
        assert_eq!(seen, expected);
    }

    #[test]
    fn shares_of_little_are_never_nothing_and_of_much_do_not_overflow() {
        assert_eq!(thousandths(5, 1), 1);
        assert_eq!(thousandths(190, 500), 95);
        assert_eq!(thousandths(u64::MAX, 1_000), u64::MAX);
        let half = Budget {
            share: 500,
            calls_per_window: Some(50),
            calls_per_day: Some(7),
            ..Budget::default()
        };
        assert_eq!(half.window(Some(190)), Some(50));
        assert_eq!(half.window(Some(60)), Some(30));
        assert_eq!(half.window(None), Some(50));
        assert_eq!(half.day(Some(10)), Some(5));
        assert_eq!(half.day(None), Some(7));
        assert_eq!(Budget::default().day(Some(10)), None);
    }

    #[test]
    fn a_class_of_latency_makes_nothing_more_urgent() {
        for purpose in [
            Purpose::Push,
            Purpose::ReadBack,
            Purpose::Match,
            Purpose::Poll,
            Purpose::Backfill,
            Purpose::Reconcile,
        ] {
            let lanes = [Latency::Interactive, Latency::Relaxed, Latency::OffPeak]
                .map(|class| class.lane(purpose));
            assert!(lanes.is_sorted(), "{purpose:?}: {lanes:?}");
            assert_eq!(Some(lanes[0]), Lane::of(purpose));
            assert!(lanes[2].is_heavy());
        }
        assert_eq!(Latency::OffPeak.lane(Purpose::Auth), Lane::Push);
    }

    #[test]
    fn each_lane_leaves_at_least_what_those_above_leave() {
        for (reserve, pause_at) in [(0, 0), (100, 20), (20, 100), (900, 900)] {
            let budget = Budget {
                reserve,
                pause_at,
                ..Budget::default()
            };
            let kept = Lane::ALL.map(|lane| budget.kept(lane));
            assert!(kept.is_sorted(), "{kept:?}");
            assert_eq!(kept[0], 0);
        }
    }
}
