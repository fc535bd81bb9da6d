//! One history: random edits on all sides, a bad network, then quiet and a
//! last read of every side; then what must hold.

use crm_core::decide::Source;
use crm_core::model::Value;
use crm_core::policy::{Policy, Rule};
use crm_core::state::{Answer, Interval, settle};
use crm_core::strategy::Strategy;

use crate::crm::{Crm, Habits};
use crate::engine::{Engine, HORIZON};
use crate::rng::Rng;

/// Tolerance of the policy.
const SKEW: i64 = 2_000;
/// Edits further apart than this have an order that every clock shows.
const CLEAR: i64 = SKEW + 4_000;

/// Something under way.
enum Message {
    Event {
        side: usize,
        value: Value,
        at: Interval,
        ours: bool,
    },
    Page {
        side: usize,
        value: Value,
        at: Interval,
    },
    Apply {
        side: usize,
        value: Value,
        claim: i64,
        fate: Fate,
    },
    Result {
        side: usize,
        claim: i64,
        answer: Answer,
    },
}

/// What happens to a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Fine,
    Refused,
    LostBefore,
    LostAfter,
}

/// An edit by a person or program, in true time.
#[derive(Clone, Debug)]
struct Made {
    at: i64,
    /// `None` for SQL.
    side: Option<usize>,
    value: Value,
    /// The engine can know of it.
    told: bool,
}

pub struct History {
    rng: Rng,
    pub crms: Vec<Crm>,
    pub engine: Engine,
    net: Vec<(i64, Message)>,
    now: i64,
    made: Vec<Made>,
    /// Last time anything touched a record without editing the field.
    bumped: i64,
    faults: bool,
    next: u32,
}

const POLICIES: [(Strategy, &[&str]); 6] = [
    (
        Strategy::LastWriteWins,
        &["alpha", "beta", "gamma", "local"],
    ),
    (Strategy::LastWriteWins, &[]),
    (Strategy::Owner, &["alpha"]),
    (Strategy::Priority, &["local", "beta", "alpha"]),
    (Strategy::FillBlank, &["local"]),
    (Strategy::Review, &[]),
];

impl History {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let sides = 2 + rng.below(2) as usize;
        let lower = rng.chance(30).then(|| rng.below(sides as u64) as usize);
        let crms: Vec<Crm> = (0..sides)
            .map(|side| {
                let habits = Habits {
                    offset: rng.below(2_000) as i64 - 1_000,
                    seconds: side == 1,
                    lower: lower == Some(side),
                    refuses: (side == 1 && rng.chance(10)).then_some("refused"),
                    echoes: side == 0,
                    marks: lower == Some(side) || rng.chance(70),
                    length: if side == 2 { 4 } else { 40 },
                };
                let value = Some("base".to_owned());
                Crm {
                    habits,
                    value,
                    stamp: 0,
                    history: Vec::new(),
                }
            })
            .collect();
        let (strategy, winner) = POLICIES[rng.below(POLICIES.len() as u64) as usize];
        let policy = Policy {
            version: 1,
            rules: vec![Rule {
                id: 1,
                field: None,
                strategy,
                winner: winner.iter().map(|w| (*w).to_owned()).collect(),
                ..Rule::default()
            }],
            skew_ms: SKEW,
            ..Policy::default()
        };
        Self {
            engine: Engine::new(policy, &crms),
            crms,
            rng,
            net: Vec::new(),
            now: 1_000_000,
            made: Vec::new(),
            bumped: 0,
            faults: true,
            next: 0,
        }
    }

    /// Runs it; what broke, if anything.
    pub fn run(&mut self) -> Result<(), String> {
        for _ in 0..6 + self.rng.below(30) {
            self.act();
            self.advance();
        }
        self.quiet()?;
        self.check()
    }

    fn act(&mut self) {
        let side = self.rng.below(self.crms.len() as u64) as usize;
        match self.rng.below(12) {
            0..=3 => self.human(side),
            4 | 5 => {
                let length = self.crms[side].habits.length;
                let value = self.value().map(|v| v.chars().take(length).collect());
                if *self.engine.row(side) != value {
                    self.made.push(Made {
                        at: self.now,
                        side: None,
                        value: value.clone(),
                        told: true,
                    });
                }
                self.engine.sql(side, value, self.now);
            }
            6 => {
                self.crms[side].touch(self.now);
                self.bumped = self.now;
            }
            7 | 8 => {
                let lag = self.rng.below(2_000) as i64;
                self.read(side, lag);
            }
            9 => self.engine.restart(),
            _ => {}
        }
    }

    fn value(&mut self) -> Value {
        self.next += 1;
        match self.rng.below(12) {
            0 => None,
            1 => Some("base".to_owned()),
            2 => Some("refused".to_owned()),
            3 | 4 if !self.made.is_empty() => {
                let old = self.rng.below(self.made.len() as u64) as usize;
                self.made[old].value.clone()
            }
            5 => Some(format!("Long{}", self.next)),
            _ => Some(format!("V{}", self.next)),
        }
    }

    fn human(&mut self, side: usize) {
        let value = self.value();
        if !self.crms[side].set(&value, self.now) {
            return;
        }
        let told = self.announce(side, false);
        let value = self.crms[side].value.clone();
        self.made.push(Made {
            at: self.now,
            side: Some(side),
            value,
            told,
        });
    }

    /// The CRM tells of its newest change: maybe late, twice, or not at all.
    fn announce(&mut self, side: usize, ours: bool) -> bool {
        let crm = &self.crms[side];
        let (value, at) = (crm.value.clone(), crm.shown(crm.stamp));
        let ours = ours && crm.habits.marks;
        let copies = match self.rng.below(20) {
            0 if self.faults => 0,
            1 | 2 if self.faults => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let due = self.now + self.rng.delay();
            let message = Message::Event {
                side,
                value: value.clone(),
                at,
                ours,
            };
            self.net.push((due, message));
        }
        copies > 0
    }

    fn read(&mut self, side: usize, lag: i64) {
        let crm = &self.crms[side];
        let (value, stamp) = crm.as_of(self.now - lag);
        let at = crm.shown(stamp);
        let due = self.now + self.rng.delay();
        self.net.push((due, Message::Page { side, value, at }));
    }

    /// Lets time pass and everything due arrive.
    fn advance(&mut self) {
        let until = self.now + self.rng.delay();
        loop {
            if self.rng.chance(60) {
                self.engine.drain(self.now);
            }
            self.engine.expire(self.now);
            for side in 0..self.crms.len() {
                if self.rng.chance(70) {
                    self.send(side);
                }
            }
            let next = self.net.iter().enumerate().min_by_key(|(_, (due, _))| *due);
            match next.map(|(i, (due, _))| (i, *due)) {
                Some((i, due)) if due <= until => {
                    self.now = self.now.max(due);
                    let (_, message) = self.net.swap_remove(i);
                    self.handle(message);
                }
                _ => break,
            }
        }
        self.now = until;
    }

    fn send(&mut self, side: usize) {
        let Some(value) = self.engine.claim(side, self.now) else {
            return;
        };
        let claim = self.now;
        let fate = match self.rng.below(20) {
            0 if self.faults => Fate::Refused,
            1 if self.faults => Fate::LostBefore,
            2 if self.faults => Fate::LostAfter,
            // The process dies between claim and call.
            3 if self.faults => return,
            _ => Fate::Fine,
        };
        let due = self.now + self.rng.below(400) as i64;
        self.net.push((
            due,
            Message::Apply {
                side,
                value,
                claim,
                fate,
            },
        ));
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Event {
                side,
                value,
                at,
                ours,
            } => {
                self.engine
                    .arrive(side, Source::Remote, value, at, ours, self.now);
            }
            Message::Page { side, value, at } => {
                self.engine
                    .arrive(side, Source::Page, value, at, false, self.now);
            }
            Message::Result {
                side,
                claim,
                answer,
            } => {
                self.engine.result(side, claim, answer, self.now);
            }
            Message::Apply {
                side,
                value,
                claim,
                fate,
            } => self.call(side, &value, claim, fate),
        }
    }

    fn call(&mut self, side: usize, value: &Value, claim: i64, fate: Fate) {
        let forbidden = self.crms[side].habits.refuses;
        let answer = if value.is_some() && value.as_deref() == forbidden {
            Answer::Failed
        } else if fate == Fate::Refused {
            Answer::Retry
        } else {
            if fate != Fate::LostBefore && self.crms[side].set(value, self.now) {
                self.announce(side, true);
            }
            let crm = &self.crms[side];
            Answer::Done {
                echoed: crm.habits.echoes.then(|| crm.value.clone()),
            }
        };
        let lost = matches!(fate, Fate::LostBefore | Fate::LostAfter);
        let (after, answer) = if lost {
            (10_000, Answer::Unknown)
        } else {
            (self.rng.below(300) as i64, answer)
        };
        self.net.push((
            self.now + after,
            Message::Result {
                side,
                claim,
                answer,
            },
        ));
    }

    /// Faults end, everything arrives, every side is read again until nothing
    /// more follows.
    fn quiet(&mut self) -> Result<(), String> {
        self.faults = false;
        let mut calm = 0;
        for _ in 0..60 {
            let before: usize = self.engine.sent.iter().sum();
            while !self.net.is_empty() || self.engine.flying.iter().any(Option::is_some) {
                self.now += 1_000;
                self.advance();
            }
            self.now += 100_000;
            self.advance();
            let waiting = self.engine.queued.iter().any(Option::is_some);
            for side in 0..self.crms.len() {
                self.read(side, 0);
            }
            let idle = before == self.engine.sent.iter().sum::<usize>() && !waiting;
            calm = if idle && self.engine.log.is_empty() {
                calm + 1
            } else {
                0
            };
            if calm == 3 {
                return Ok(());
            }
        }
        Err("never quiet".to_owned())
    }

    fn check(&mut self) -> Result<(), String> {
        if let Some(fault) = self.engine.faults.first() {
            return Err(fault.clone());
        }
        let writes: usize = self.engine.sent.iter().sum();
        let bound = 12 * (self.made.len() + 4);
        if writes > bound {
            return Err(format!("{writes} writes for {} edits", self.made.len()));
        }
        let rule = self.engine.policy.rules[0].clone();
        if let Some(reason) = self.engine.held() {
            let asked = rule.strategy == Strategy::Review || reason.contains("overwriting");
            return if asked {
                Ok(())
            } else {
                Err(format!("held: {reason}"))
            };
        }
        if self.crms.iter().any(|c| c.habits.refuses.is_some()) {
            return self.agree(true);
        }
        self.agree(false)?;
        match rule.strategy {
            Strategy::Owner => self.owner_kept()?,
            Strategy::LastWriteWins => self.last_won()?,
            _ => {}
        }
        let later = self.now + HORIZON + 100_000;
        match self.engine.entity.fields.get(&0) {
            Some(state) if !settle(state, later, HORIZON) => Err(format!("not settled: {state:?}")),
            _ => Ok(()),
        }
    }

    /// Each mirror shows its CRM, and all show one value by the map.
    fn agree(&self, refusing: bool) -> Result<(), String> {
        for (side, crm) in self.crms.iter().enumerate() {
            let row = self.engine.row(side);
            if refusing && row.as_deref() == Some("refused") {
                continue;
            }
            if *row != crm.value {
                return Err(format!("side {side}: row {row:?}, CRM {:?}", crm.value));
            }
        }
        let rows: Vec<&Value> = (0..self.crms.len()).map(|s| self.engine.row(s)).collect();
        for a in 0..rows.len() {
            for b in 0..rows.len() {
                let refused = refusing && rows.iter().any(|r| r.as_deref() == Some("refused"));
                let (from_a, from_b) = (self.crms[b].stored(rows[a]), self.crms[a].stored(rows[b]));
                let same = from_a == self.crms[b].stored(rows[b])
                    || from_b == self.crms[a].stored(rows[a])
                    || self.crms[a].stored(&from_a)
                        == self.crms[a].stored(&self.crms[b].stored(rows[b]));
                if !same && !refused {
                    return Err(format!("sides differ: {rows:?}"));
                }
            }
        }
        Ok(())
    }

    fn owner_kept(&self) -> Result<(), String> {
        if self.engine.sent[0] > 0 {
            return Err("the owner's field was written at the owner".to_owned());
        }
        let last = self.made.iter().rev().find(|m| m.side == Some(0));
        let expected = last.map_or(Some("base".to_owned()), |m| m.value.clone());
        if *self.engine.row(0) != expected {
            return Err(format!(
                "owner wrote {expected:?}, row {:?}",
                self.engine.row(0)
            ));
        }
        Ok(())
    }

    /// The last edit wins where it is clearly the last and anybody told us.
    fn last_won(&self) -> Result<(), String> {
        let Some((last, earlier)) = self.made.split_last() else {
            return Ok(());
        };
        let folded = |v: &Value| {
            v.as_ref()
                .map(|v| v.chars().take(4).collect::<String>().to_lowercase())
        };
        // An edit that repeats a value looks like an echo or like nothing.
        let repeats = |m: &Made| folded(&m.value) == folded(&last.value);
        if earlier.iter().any(repeats) || folded(&last.value).as_deref() == Some("base") {
            return Ok(());
        }
        let before = earlier.last().map_or(0, |m| m.at).max(self.bumped);
        if !last.told || last.at - before < CLEAR {
            return Ok(());
        }
        let alike = (0..self.crms.len()).all(|s| folded(self.engine.row(s)) == folded(&last.value));
        if alike {
            return Ok(());
        }
        let rows: Vec<&Value> = (0..self.crms.len()).map(|s| self.engine.row(s)).collect();
        Err(format!("last edit {last:?} lost: {rows:?}"))
    }
}
