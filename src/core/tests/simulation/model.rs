//! The reference: who wrote what, knowing what, and which values may stand in
//! the end. It knows nothing of the engine's state, steps or messages; it goes
//! by true time and by what each writer could see.
//!
//! Each edit writes a value of its own (`V007`), so that a value seen anywhere
//! names its edit whatever the CRMs and maps made of it: lower case, cut to four
//! characters, with words of the CRM behind it.

use crm_core::model::Value;
use crm_core::policy::Rule;
use crm_core::state::Interval;
use crm_core::strategy::Strategy;

use crate::world::{CLEAR, NAMES, SKEW};

/// Most edits of a history; the base is number 0.
pub const EDITS_MAX: usize = 120;

/// How often writers may take turns before a field stops.
const TURNS: usize = 20;

/// The number of the edit that wrote a value.
pub fn token(value: &Value) -> Option<u32> {
    let text = value.as_deref()?;
    let digits = text.strip_prefix('V').or_else(|| text.strip_prefix('v'))?;
    digits.get(..3)?.parse().ok()
}

/// A value that names its edit.
pub fn value_of(edit: u32, long: bool) -> Value {
    Some(if long {
        format!("V{edit:03} And More")
    } else {
        format!("V{edit:03}")
    })
}

/// Edits by number.
pub type Edits = u128;

/// Who made an edit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// A person or program at this side's CRM.
    Crm(usize),
    /// SQL, on this side's mirror, or a person's answer to a question.
    Sql(usize),
}

/// An edit that somebody had before their eyes.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    pub edit: u32,
    /// Since when it stood there.
    pub since: i64,
    /// It was made at the same place, or the row says exactly what was seen.
    pub own: bool,
}

/// An edit, in true time.
#[derive(Clone, Debug)]
pub struct Made {
    pub at: i64,
    /// The stamp under which it is told.
    pub stamp: Interval,
    /// Latest time that anything says of it: a page shows the record's stamp.
    pub until: i64,
    pub writer: Writer,
    /// Which thing and field.
    pub cell: (u32, usize),
    pub value: Value,
    /// The engine surely learns of it.
    pub sure: bool,
    /// Its own event is not lost.
    pub told: bool,
    /// At a CRM that shows whole seconds: the record, and the second of its stamp.
    pub second: Option<(usize, i64)>,
    /// The engine's memory of it may have been lost in a failover.
    pub shaken: bool,
    /// What stood where it was made: that side's field.
    pub sights: Vec<Sight>,
    /// Nothing of ours was under way there when it was made.
    pub calm: bool,
    /// A write of it landed long after it was given up.
    pub revived: bool,
    /// Edits that its writer saw, and that the engine can tell were seen.
    pub knows: Edits,
    /// Edits that its writer may have seen.
    pub may_know: Edits,
    /// A person decided with it.
    pub answer: bool,
}

impl Made {
    /// What was there before anybody edited.
    pub fn base() -> Self {
        Self {
            at: 0,
            stamp: Interval::instant(0),
            until: 0,
            writer: Writer::Crm(0),
            cell: (0, 0),
            value: value_of(0, false),
            sure: true,
            told: true,
            second: None,
            shaken: false,
            calm: true,
            revived: false,
            sights: Vec::new(),
            knows: 0,
            may_know: 0,
            answer: false,
        }
    }

    /// The origin that policy rows name.
    pub fn origin(&self) -> &'static str {
        match self.writer {
            Writer::Crm(side) => NAMES[side],
            Writer::Sql(_) => "local",
        }
    }
}

/// All edits of a history; number 0 is what was there before.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub made: Vec<Made>,
    /// How much earlier than a page's stamp an edit may be.
    pub vague: i64,
}

/// What must hold for a field in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// One of these stands on every side.
    pub stands: Edits,
    /// A question may be open.
    pub may_ask: bool,
    /// A question must be open.
    pub must_ask: bool,
}

fn bit(edit: u32) -> Edits {
    1 << edit
}

impl Model {
    /// Notes an edit; its number.
    pub fn add(&mut self, made: Made) -> u32 {
        self.made.push(made);
        self.made.len() as u32 - 1
    }

    /// Works out what each writer knew: what it saw, closed over what those
    /// saw. `calm` says for each whether nothing of ours was under way to the place of an
    /// edit when it was made: else the engine cannot tell what was seen.
    pub fn close(&mut self, calm: &[bool]) {
        for (i, quiet) in calm.iter().copied().enumerate() {
            let (mut knows, mut may) = (1, 1);
            self.made[i].calm = quiet;
            let made = &self.made[i];
            for sight in &made.sights {
                let seen = &self.made[sight.edit as usize];
                may |= bit(sight.edit) | seen.may_know;
                if sight.own || (quiet && sight.since < made.at - CLEAR) {
                    knows |= bit(sight.edit) | seen.knows;
                }
            }
            (self.made[i].knows, self.made[i].may_know) = (knows, may | knows);
        }
    }

    /// The number that the next edit will have.
    pub fn next(&self) -> u32 {
        self.made.len() as u32
    }

    /// Edits of a cell besides the base.
    pub fn of(&self, cell: (u32, usize)) -> impl Iterator<Item = (u32, &Made)> {
        let all = self.made.iter().enumerate().skip(1);
        all.filter(move |(_, m)| m.cell == cell)
            .map(|(i, m)| (i as u32, m))
    }

    /// Edits that no other of `among` surely replaced.
    fn heads(&self, cell: (u32, usize), among: Edits) -> Edits {
        let sure = |(i, m): &(u32, &Made)| among & bit(*i) != 0 && m.sure && !m.shaken;
        let replaced = self.of(cell).filter(sure);
        let replaced = replaced.fold(0, |all, (_, m)| all | m.knows);
        let revived = self.of(cell).filter(|(_, m)| m.revived);
        among & !(replaced & !revived.fold(0, |all, (i, _)| all | bit(i)))
    }

    fn all(&self, cell: (u32, usize)) -> Edits {
        self.of(cell).fold(1, |all, (i, _)| all | bit(i))
    }

    /// What must hold under one rule that was in force all the time.
    pub fn predict(&self, cell: (u32, usize), rule: &Rule) -> Prediction {
        let all = self.all(cell);
        let stands = match rule.strategy {
            Strategy::LastWriteWins => self.latest(cell, self.heads(cell, all), rule),
            Strategy::Priority => self.ranked(cell, self.heads(cell, all), rule),
            Strategy::Owner => self.owned(cell, rule),
            Strategy::FillBlank => self.owned(cell, rule),
            Strategy::Review | Strategy::Function => self.heads(cell, all),
            // Every edit stands.
            Strategy::Append | Strategy::Delta | Strategy::Union => all,
        };
        let counts = rule.strategy.entry().merge.is_some();
        // Writers that take turns this often are stopped, whatever the rule.
        let tireless = self.of(cell).count() >= TURNS;
        let function = rule.strategy == Strategy::Function;
        let review = rule.strategy == Strategy::Review || function || counts;
        Prediction {
            stands,
            may_ask: (tireless && !counts)
                || review
                    && (self.conflict_possible(cell)
                        || (counts && self.of(cell).any(|(_, m)| !m.calm))),
            must_ask: rule.strategy == Strategy::Review && self.conflict_certain(cell),
        }
    }

    /// The newest edits that no clock can tell apart, going back from the last.
    fn latest(&self, cell: (u32, usize), heads: Edits, rule: &Rule) -> Edits {
        if let Some(winner) = self.bout(cell, rule) {
            return bit(winner);
        }
        let some: Vec<(u32, &Made)> = self
            .of(cell)
            .filter(|(i, _)| heads & bit(*i) != 0)
            .collect();
        let sure = some.iter().filter(|(_, m)| m.sure && !m.shaken);
        let clear = CLEAR + self.vague;
        let Some(mut reach) = sure.map(|(_, m)| m.at - clear).max() else {
            return heads;
        };
        loop {
            let near = some.iter().filter(|(_, m)| m.until >= reach);
            let lower = near.map(|(_, m)| m.at - clear).min().unwrap_or(reach);
            if lower >= reach {
                break;
            }
            reach = lower;
        }
        let near = some.iter().filter(|(_, m)| m.until >= reach);
        near.fold(0, |all, (i, _)| all | bit(*i))
    }

    /// Of edits that did not know of each other, exactly one: those that no clock
    /// can tell from the latest, directly or by others in between, are one bunch,
    /// and its best rank stands, in whatever order they were told.
    fn bout(&self, cell: (u32, usize), rule: &Rule) -> Option<u32> {
        let mut edits: Vec<(u32, &Made)> = self.of(cell).collect();
        let plain = |m: &Made| m.sure && !m.shaken && !m.revived && !m.answer && m.until == m.at;
        let all = self.all(cell) & !1;
        let apart = |(i, m): &(u32, &Made)| plain(m) && m.may_know & all & !bit(*i) == 0;
        if edits.len() < 2 || !edits.iter().all(apart) {
            return None;
        }
        edits.sort_by_key(|(_, m)| std::cmp::Reverse(m.stamp.to));
        let mut reach = edits[0].1.stamp.from;
        let mut bunch: Vec<(usize, u32)> = Vec::new();
        for (i, m) in edits {
            if m.stamp.to + SKEW + self.vague < reach {
                break;
            }
            reach = reach.min(m.stamp.from);
            bunch.push((rule.rank(m.origin()), i));
        }
        bunch.sort_unstable();
        match bunch.as_slice() {
            // Which of them a page told first is the network's matter.
            [_, _, ..] if self.vague > 0 => None,
            [(first, _), (second, _), ..] if first == second => None,
            [(_, winner), ..] => Some(*winner),
            [] => None,
        }
    }

    /// The best rank, if everybody that it did not know of ranks lower and
    /// nobody may have replaced it.
    fn ranked(&self, cell: (u32, usize), heads: Edits, rule: &Rule) -> Edits {
        let wins = |i: u32, e: &Made| {
            heads & bit(i) != 0
                && e.sure
                && !e.shaken
                && self.of(cell).filter(|(j, _)| *j != i).all(|(j, f)| {
                    let older = e.knows & bit(j) != 0 && !f.revived;
                    let newer = f.may_know & bit(i) != 0 || f.revived;
                    older || (!newer && rule.rank(e.origin()) < rule.rank(f.origin()))
                })
        };
        let winner = self.of(cell).find(|(i, e)| wins(*i, e));
        winner.map_or(heads, |(i, _)| bit(i))
    }

    /// What an owner wrote last; who else wrote does not count.
    fn owned(&self, cell: (u32, usize), rule: &Rule) -> Edits {
        let mut owners: Edits = 0;
        for (i, m) in self.of(cell) {
            if rule.rank(m.origin()) < rule.winner.len() || m.answer {
                owners |= bit(i);
            }
        }
        let sure = self
            .of(cell)
            .any(|(i, m)| owners & bit(i) != 0 && m.sure && !m.shaken);
        self.heads(cell, if sure { owners } else { owners | 1 })
    }

    /// Two edits of which neither surely knew the other.
    fn conflict_possible(&self, cell: (u32, usize)) -> bool {
        let unordered = |i: u32, a: &Made, j: u32, b: &Made| {
            (a.knows & bit(j) == 0 && b.knows & bit(i) == 0) || a.revived || b.revived
        };
        self.of(cell)
            .any(|(i, a)| self.of(cell).any(|(j, b)| i < j && unordered(i, a, j, b)))
    }

    /// Two CRMs' edits, both known, of which neither can have known the other.
    fn conflict_certain(&self, cell: (u32, usize)) -> bool {
        let heads = self.heads(cell, self.all(cell));
        let crm = |i: u32, m: &Made| {
            matches!(m.writer, Writer::Crm(_)) && m.sure && !m.shaken && heads & bit(i) != 0
        };
        let apart = |i: u32, a: &Made, j: u32, b: &Made| {
            a.writer != b.writer && a.may_know & bit(j) == 0 && b.may_know & bit(i) == 0
        };
        self.of(cell).filter(|(i, m)| crm(*i, m)).any(|(i, a)| {
            self.of(cell)
                .filter(|(j, m)| crm(*j, m))
                .any(|(j, b)| i < j && apart(i, a, j, b))
        })
    }
}

/// Predictions for fields whose rule changed meanwhile.
impl Model {
    /// Edits that may stand under any rules.
    pub fn free(&self, cell: (u32, usize)) -> Edits {
        self.all(cell)
    }

    /// `free` without edits that were made under the rule, in force since `at`,
    /// by others than its owners.
    pub fn not_by_others_since(
        &self,
        cell: (u32, usize),
        rule: &Rule,
        at: i64,
        free: Edits,
    ) -> Edits {
        let others = self.of(cell).filter(|(_, m)| {
            m.at > at && !m.answer && !m.shaken && rule.rank(m.origin()) == rule.winner.len()
        });
        let mut stands = free & !others.fold(0, |all, (i, _)| all | bit(i));
        let owners = self.of(cell).filter(|(_, m)| {
            m.at > at && m.sure && !m.shaken && rule.rank(m.origin()) < rule.winner.len()
        });
        for (_, m) in owners {
            stands &= !m.knows;
        }
        stands
    }
}
