//! One history: random acts on all sides over a bad network, then quiet and a
//! last read of every record; then what must hold.

use std::collections::HashMap;

use crm_core::model::Value;
use crm_core::state::{Interval, SideRecord};

use crate::crm::Crm;
use crate::engine::Engine;
use crate::model::{EDITS_MAX, Made, Model, Sight, Writer, token, value_of};
use crate::network::Network;
use crate::rng::Rng;
use crate::trace::note;
use crate::world::{Kind, STAGES, VAGUE, World, draw_rule};

/// Bit of the acts' mask for the burst before them.
pub const BURST: u64 = 63;

/// Everything of one history.
pub struct History {
    pub seed: u64,
    pub world: World,
    pub crms: Vec<Crm>,
    pub engine: Engine,
    pub net: Network,
    pub now: i64,
    pub model: Model,
    pub rng: Rng,
    /// Things go wrong.
    pub faults: bool,
    /// What a stand-by knows: since when, and what.
    pub standby: Option<(i64, Box<Engine>)>,
    /// Field and time of the last change of a rule.
    pub reformed: Vec<Option<i64>>,
    /// A stand-by took over at this time.
    pub failed_over: Option<i64>,
    /// Keys and fields of writes that a stand-by which took over had not got, and
    /// whether they bear our mark.
    pub forgotten: HashMap<(u32, usize), bool>,
    /// Keys whose records were removed, restored or merged.
    pub disturbed: Vec<u32>,
    keys: u32,
}

impl History {
    pub fn new(seed: u64) -> Self {
        let world = World::draw(seed);
        let crms = world.habits.iter().enumerate().map(|(side, habits)| Crm {
            habits: habits.clone(),
            kinds: world.kinds.clone(),
            records: Vec::new(),
            ignored: 0,
            columns: (0..world.kinds.len())
                .map(|f| world.mapped(f, side))
                .collect(),
        });
        let mut history = Self {
            seed,
            crms: crms.collect(),
            engine: Engine::new(&world),
            net: Network::default(),
            now: 1_000_000,
            model: Model {
                vague: if world.policy.stamps.is_empty() {
                    0
                } else {
                    VAGUE
                },
                ..Model::default()
            },
            rng: Rng::of(seed, 0),
            faults: true,
            standby: None,
            reformed: vec![None; world.kinds.len()],
            failed_over: None,
            forgotten: HashMap::new(),
            disturbed: Vec::new(),
            keys: 1,
            world,
        };
        history.model.made.push(Made::base());
        history.first_thing();
        history
    }

    /// A thing that all sides have and agree about, long ago.
    fn first_thing(&mut self) {
        let thing = self.engine.new_thing(1);
        for (side, crm) in self.crms.iter_mut().enumerate() {
            let values: Vec<(usize, Value)> = (0..crm.kinds.len())
                .map(|field| match crm.kinds[field] {
                    Kind::Stage => (field, stage(side, 0)),
                    Kind::Amount => (field, Some("0".to_owned())),
                    Kind::Log => (field, Some("log".to_owned())),
                    Kind::Choices => (field, Some("base".to_owned())),
                    Kind::Text | Kind::Computed => (field, value_of(0, false)),
                })
                .collect();
            let id = crm.create(1, &values, None, 100_000, false);
            let record = &crm.records[id];
            self.engine.things[thing].entity.records[side] = SideRecord {
                exists: true,
                record_id: Some(id.to_string()),
                deleted: false,
                values: record.values.clone(),
            };
        }
    }

    /// Number of acts.
    pub fn acts(&self) -> u64 {
        6 + Rng::of(self.seed, 2_000_000).below(30) as u64
    }

    /// Runs the acts whose bit is set in `mask`; what broke, if anything.
    pub fn run(&mut self, mask: u64) -> Result<(), String> {
        if self.world.burst && mask >> BURST & 1 == 1 {
            self.rng = Rng::of(self.seed, 4_000_000);
            self.burst();
            self.advance();
        }
        for act in (0..self.acts()).filter(|a| mask >> a & 1 == 1) {
            self.rng = Rng::of(self.seed, act + 1);
            self.act();
            self.advance();
        }
        self.rng = Rng::of(self.seed, 3_000_000);
        self.quiet()?;
        self.net.early = self.check_questions().err();
        // What is under way while a person answers can lead to a new question.
        for _ in 0..3 {
            self.answer_all();
            self.quiet()?;
        }
        self.check()
    }

    fn act(&mut self) {
        let side = self.rng.below(self.crms.len());
        let (field, thing) = (
            self.rng.below(self.world.kinds.len()),
            self.rng.below(self.engine.things.len()),
        );
        // What follows on a burst is not to blur it.
        let others = self.world.kinds.len() - 1;
        let field = match self.world.burst && others > 0 {
            true => 1 + field % others,
            false => field,
        };
        let toggled = self.world.toggled.filter(|_| self.rng.chance(25));
        let field = toggled.unwrap_or(field);
        match self.rng.below(24) {
            0..=6 => self.human(side, field),
            7..=10 => self.sql(thing, side, field),
            11 => self.bump(side),
            12..=14 => self.read_some(side),
            15 => self.crash(),
            16 if self.world.reforms => self.reform(field),
            17 if self.world.failover => self.fail_over(),
            18 => {
                self.steward(thing, field);
                self.find_made(thing, side);
            }
            19..=23 if self.world.records => self.record_act(side, thing),
            _ => {}
        }
    }

    /// A value for a field, and whether it is one of its own.
    pub fn value(&mut self, side: usize, field: usize) -> Value {
        if self.world.kinds[field] == Kind::Stage {
            let some = match self.world.toggled {
                Some(_) => 3,
                None => STAGES.len(),
            };
            return stage(side, self.rng.below(some));
        }
        if self.world.kinds[field].counts() {
            return None;
        }
        if self.world.repeats && self.rng.chance(30) {
            return match self.rng.below(4) {
                0 => None,
                _ => value_of(self.rng.below(self.model.made.len()) as u32, false),
            };
        }
        if self.world.habits[side].refuses && self.rng.chance(10) {
            return Some("refused".to_owned());
        }
        let long = self.rng.chance(20);
        let value = value_of(self.model.next(), long);
        let length = self.world.habits[side].length;
        value.map(|v| v.chars().take(length).collect())
    }

    /// What somebody makes of a value by adding something of their own.
    fn added(&self, field: usize, held: &Value) -> Value {
        let edit = self.model.next();
        let text = held.clone().unwrap_or_default();
        Some(match self.world.kinds[field] {
            Kind::Amount => {
                let number: i128 = text.parse().unwrap_or(0);
                (number + amount_of(edit)).to_string()
            }
            Kind::Choices if text.is_empty() => format!("V{edit:03}"),
            Kind::Choices => format!("{text};V{edit:03}"),
            _ => format!("{text}\nV{edit:03}"),
        })
    }

    /// Somebody edits a record at a CRM.
    fn human(&mut self, side: usize, field: usize) {
        let there = self.crms[side].records.len();
        let id = self.rng.below(there);
        if id >= there || !self.can_edit(side, id, field) {
            return;
        }
        let mut value = self.value(side, field);
        if self.world.kinds[field].counts() {
            let held = self.crms[side].records[id].values[field].clone();
            value = self.added(field, &held);
        }
        self.edit_at_crm(side, id, (field, value), false);
    }

    pub fn can_edit(&self, side: usize, id: usize, field: usize) -> bool {
        let record = &self.crms[side].records[id];
        self.model.made.len() < EDITS_MAX
            && !record.deleted
            && record.merged.is_none()
            && self.world.kinds[field] != Kind::Computed
            && self.world.mapped(field, side)
    }

    /// An edit at a CRM, by people or by an automation; told of or not.
    pub fn edit_at_crm(&mut self, side: usize, id: usize, edit: (usize, Value), quiet: bool) {
        let (field, value) = edit;
        let sights = match self.world.kinds[field] {
            Kind::Stage => self.stages_seen(side, id, field),
            _ => self.sights(side, id, field),
        };
        let changed = self.crms[side].set(id, &[(field, value)], self.now, false);
        if changed.is_empty() {
            return;
        }
        let record = &self.crms[side].records[id];
        let (key, value) = (record.key, record.values[field].clone());
        note(|| format!("{} human s{side} r{id} f{field} {value:?}", self.now));
        let told = quiet || self.announce(side, id, &changed, false);
        let seconds = self.crms[side].habits.seconds;
        let second = self.crms[side].records[id].stamp.div_euclid(1_000);
        self.made((key, field), Writer::Crm(side), value, sights, told);
        if let Some(made) = self.model.made.last_mut() {
            made.second = seconds.then_some((id, second));
        }
    }

    /// What somebody sees at a CRM.
    fn sights(&self, side: usize, id: usize, field: usize) -> Vec<Sight> {
        let record = &self.crms[side].records[id];
        let mut sights: Vec<Sight> = Vec::new();
        for past in record.history.iter().rev() {
            let Some(edit) = token(&past.values[field]).filter(|e| *e > 0) else {
                continue;
            };
            let made = self.model.made.get(edit as usize);
            // Two edits of one second have no order that could be told.
            let near = if self.world.habits[side].seconds {
                1_000
            } else {
                0
            };
            let own = made.is_some_and(|m| {
                m.writer == Writer::Crm(side) && m.at + near < self.now.max(m.at + 1)
            });
            let first = sights.is_empty();
            let last = sights.last_mut().filter(|s| s.edit == edit);
            match last {
                Some(sight) if sight.since < i64::MAX => sight.since = past.at,
                Some(_) => {}
                None if own || first => sights.push(Sight {
                    edit,
                    since: past.at,
                    own,
                }),
                // Seen before, and gone again: nobody can tell who knew of it.
                None => sights.push(Sight {
                    edit,
                    since: i64::MAX,
                    own: false,
                }),
            }
        }
        sights
    }

    /// Notes an edit in the model.
    pub fn made(
        &mut self,
        cell: (u32, usize),
        writer: Writer,
        value: Value,
        sights: Vec<Sight>,
        sure: bool,
    ) {
        self.model.add(Made {
            at: self.now,
            stamp: match writer {
                Writer::Crm(side) => {
                    let crm = &self.crms[side];
                    crm.shown(self.now + crm.habits.offset)
                }
                Writer::Sql(_) => Interval::instant(self.now),
            },
            until: self.now,
            writer,
            cell,
            value,
            sure,
            told: sure,
            sights,
            ..Made::base()
        });
    }

    /// What somebody sees in a row.
    fn row_seen(&self, row: &Value) -> Option<Sight> {
        let edit = token(row).filter(|e| *e > 0)?;
        let since = self.now;
        Some(Sight {
            edit,
            since,
            own: true,
        })
    }

    /// Somebody edits a row with SQL.
    fn sql(&mut self, thing: usize, side: usize, field: usize) {
        let record = &self.engine.things[thing].entity.records[side];
        let computed = self.world.kinds[field] == Kind::Computed;
        let full = self.model.made.len() >= EDITS_MAX;
        if !record.exists || record.deleted || computed || full || !self.world.mapped(field, side) {
            return;
        }
        let mut value = self.value(side, field);
        let row = self.engine.row(thing, side, field);
        if self.world.kinds[field].counts() {
            value = self.added(field, row);
        }
        let key = self.engine.things[thing].key;
        let sights = match self.world.kinds[field] {
            Kind::Stage => self.stages_in_row((key, field), row),
            _ => self.row_seen(row).into_iter().collect(),
        };
        if self
            .engine
            .sql(thing, side, (field, value.clone()), self.now)
        {
            self.made((key, field), Writer::Sql(side), value, sights, true);
        }
    }

    /// Another field of a record changes.
    fn bump(&mut self, side: usize) {
        let id = self.rng.below(self.crms[side].records.len());
        if let Some(record) = self.crms[side].records.get(id)
            && record.merged.is_none()
        {
            self.crms[side].touch(id, self.now);
        }
    }

    fn read_some(&mut self, side: usize) {
        let lag = self.rng.below(2_000) as i64;
        for id in 0..self.crms[side].records.len() {
            self.read(side, id, lag);
        }
    }

    /// The rule of a field changes.
    fn reform(&mut self, field: usize) {
        if self.world.kinds[field].counts() || !self.engine.policy.locks.is_empty() {
            return;
        }
        let rule = draw_rule(&mut self.rng, field, self.world.kinds[field]);
        note(|| format!("{} policy {rule:?}", self.now));
        self.engine.reform(field, rule, self.now);
        self.reformed[field] = Some(self.now);
    }

    /// A stand-by that lags takes over, or one is set up.
    fn fail_over(&mut self) {
        let Some((at, engine)) = self.standby.take() else {
            self.standby = Some((self.now, Box::new(self.engine.clone())));
            self.net.since_standby.clear();
            return;
        };
        note(|| format!("{} failover to the state of {at}", self.now));
        let (policy, version) = (self.engine.policy.clone(), self.engine.policy.version);
        // Numbers of rows are not given twice: activation leaves a gap.
        let rows = self.engine.rows;
        for (thing, side, field) in self.net.claimed_since(at) {
            let key = self.engine.things[thing].key;
            let marked = self.forgotten.entry((key, field)).or_default();
            *marked |= self.crms[side].habits.marks;
        }
        self.engine = *engine;
        self.engine.rows = rows;
        // Somebody sets the policy again that the stand-by had not got.
        self.engine.policy = policy;
        self.engine.policy.version = version + 1;
        self.engine.take_over(at, self.now);
        self.net.fail_over();
        self.failed_over = Some(self.now);
        for made in &mut self.model.made {
            made.shaken = true;
            made.until = made.until.max(self.now);
        }
    }

    /// A person answers a question about a field with a value of their own.
    pub fn steward(&mut self, thing: usize, field: usize) {
        if self.engine.held(thing, field).is_none() || self.model.made.len() >= EDITS_MAX {
            return;
        }
        self.engine.drain(self.now);
        let records = &self.engine.things[thing].entity.records;
        let there =
            |s: &usize| records[*s].exists && !records[*s].deleted && self.world.mapped(field, *s);
        let sides: Vec<usize> = (0..self.crms.len()).filter(there).collect();
        let Some(&side) = sides.first() else { return };
        let kind = self.world.kinds[field];
        let value = if kind == Kind::Stage || kind.counts() {
            stage_like(self.engine.row(thing, side, field))
        } else {
            value_of(self.model.next(), false)
        };
        let key = self.engine.things[thing].key;
        let mut sights: Vec<Sight> = Vec::new();
        for side in sides {
            let row = self.engine.row(thing, side, field);
            match kind {
                Kind::Stage => sights.extend(self.stages_in_row((key, field), row)),
                _ => sights.extend(self.row_seen(row)),
            }
        }
        self.made((key, field), Writer::Sql(side), value.clone(), sights, true);
        if let Some(made) = self.model.made.last_mut() {
            made.answer = true;
        }
        self.engine.answer(thing, side, (field, value), self.now);
    }

    /// People answer whatever is open in the end, after its check.
    fn answer_all(&mut self) {
        for thing in 0..self.engine.things.len() {
            for field in 0..self.world.kinds.len() {
                self.steward(thing, field);
            }
            for side in 0..self.crms.len() {
                self.find_made(thing, side);
            }
        }
    }

    /// A key for something new in the world.
    pub fn new_key(&mut self) -> u32 {
        self.keys += 1;
        self.keys
    }

    pub fn last_key(&self) -> u32 {
        self.keys
    }
}

/// A stage under the name that a side uses.
pub fn stage(side: usize, at: usize) -> Value {
    Some(if side % 2 == 1 {
        format!("Stage {}", STAGES[at])
    } else {
        STAGES[at].to_owned()
    })
}

/// What an edit adds to an amount: a digit of its own to the base of 4, so that
/// the sum tells how often each edit was counted.
pub fn amount_of(edit: u32) -> i128 {
    1 << (2 * edit.min(60))
}

/// Any stage does: the person confirms what the side shows.
fn stage_like(row: &Value) -> Value {
    row.clone()
}
