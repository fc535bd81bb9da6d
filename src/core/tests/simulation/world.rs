//! What one history takes place in: CRMs with their habits, fields, maps, a
//! policy, and which kinds of trouble happen.

use std::sync::Arc;

use crm_core::group::{Group, GroupField, Side, SideField};
use crm_core::mapping::Transform;
use crm_core::model::FieldType;
use crm_core::plan::DeleteRule;
use crm_core::policy::{FieldLock, Policy, Rule};
use crm_core::stamps::{Exactness, Quality, StampRule};
use crm_core::strategy::Strategy;

use crate::rng::Rng;

/// Tolerance of the policy.
pub const SKEW: i64 = 2_000;
/// Edits further apart than this have an order that every clock shows.
pub const CLEAR: i64 = SKEW + 4_000;
/// How much earlier an edit may be than the stamp of a page, where pages say so.
pub const VAGUE: i64 = 3_000;
/// Names of the sides: three portals and an organisation.
pub const NAMES: [&str; 4] = ["alpha", "beta", "gamma", "delta"];
/// Stages, lowest first.
pub const STAGES: [&str; 5] = ["1", "2", "3", "4", "5"];

/// What differs between CRMs.
#[derive(Clone, Debug, Default)]
pub struct Habits {
    /// Its clock minus ours.
    pub offset: i64,
    /// Stamps show whole seconds.
    pub seconds: bool,
    /// Stores text in lower case.
    pub lower: bool,
    /// Adds its own words to what we write, in our transaction.
    pub adorns: bool,
    /// Sets its computed field when we write, in our transaction.
    pub computes: bool,
    /// Keeps a later stage when we write an earlier one, and says nothing.
    pub forward_only: bool,
    /// Refuses this value for good.
    pub refuses: bool,
    /// Its answers show the stored value.
    pub echoes: bool,
    /// Its events say which client wrote.
    pub marks: bool,
    /// One event per field rather than one per change.
    pub single_fields: bool,
    /// Has our unique property: creates are upserts.
    pub unique: bool,
    /// Refuses a second record with the same key.
    pub unique_key: bool,
    /// Length of its text fields.
    pub length: usize,
}

/// What a field of the group holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text; each edit writes a value of its own.
    Text,
    /// A stage, under different names on the sides.
    Stage,
    /// Set by the automation of one CRM only.
    Computed,
    /// A number to which everybody adds an amount of their own.
    Amount,
    /// A text to which everybody adds a line of their own.
    Log,
    /// Choices to which everybody adds one of their own.
    Choices,
}

impl Kind {
    /// Every edit counts, once.
    pub fn counts(self) -> bool {
        matches!(self, Self::Amount | Self::Log | Self::Choices)
    }
}

/// One history's surroundings.
#[derive(Clone, Debug)]
pub struct World {
    pub habits: Vec<Habits>,
    pub kinds: Vec<Kind>,
    pub group: Arc<Group>,
    pub policy: Policy,
    /// A stage that goes back and forth more than other fields are edited, under any rule.
    pub toggled: Option<usize>,
    /// Values may come back, blank included: less can be predicted.
    pub repeats: bool,
    /// The policy changes while changes are under way.
    pub reforms: bool,
    /// Records are made, removed, restored and merged.
    pub records: bool,
    pub deletes: DeleteRule,
    /// A stand-by takes over that lacks the newest transactions.
    pub failover: bool,
    /// A write in doubt is read back before it is sent again.
    pub reads_back: bool,
    /// Only values that differ from the row are decided when a page is read,
    /// and states that say no more than the ledger are not kept.
    pub lean: bool,
    /// It begins with edits of the first field on three sides or more, before
    /// anybody hears of another; time and a ranking of all decide between them.
    pub burst: bool,
    /// Deliveries with a known identity are dropped before they are decided.
    pub dedupes: bool,
}

const STRATEGIES: [(Strategy, &[&str]); 10] = [
    (
        Strategy::LastWriteWins,
        &["alpha", "beta", "gamma", "delta", "local"],
    ),
    (Strategy::LastWriteWins, &[]),
    (Strategy::LastWriteWins, &["local"]),
    (Strategy::Owner, &["alpha"]),
    (Strategy::Owner, &["local"]),
    (
        Strategy::Priority,
        &["local", "beta", "alpha", "gamma", "delta"],
    ),
    (
        Strategy::Priority,
        &["delta", "gamma", "beta", "alpha", "local"],
    ),
    (Strategy::FillBlank, &["local"]),
    (Strategy::Review, &[]),
    (Strategy::Function, &[]),
];

/// A rule for a field, by chance.
pub fn draw_rule(rng: &mut Rng, field: usize, kind: Kind) -> Rule {
    let (strategy, winner) = match kind {
        Kind::Text => STRATEGIES[rng.below(STRATEGIES.len())],
        Kind::Stage => STRATEGIES[rng.below(4)],
        Kind::Computed => STRATEGIES[1],
        Kind::Amount => (Strategy::Delta, &[] as &[&str]),
        Kind::Log => (Strategy::Append, &[] as &[&str]),
        Kind::Choices => (Strategy::Union, &[] as &[&str]),
    };
    Rule {
        id: field as i64 + 1,
        field: Some(name(field)),
        strategy,
        winner: winner.iter().map(|w| (*w).to_owned()).collect(),
        function: (strategy == Strategy::Function).then(|| "pick".to_owned()),
        min_score: None,
        strict: false,
    }
}

/// Name of a field.
pub fn name(field: usize) -> String {
    format!("f{field}")
}

impl World {
    /// The world of a seed.
    pub fn draw(seed: u64) -> Self {
        let mut rng = Rng::of(seed, 1_000_000);
        let records = rng.chance(30);
        let most = if rng.chance(20) { 3 } else { 2 };
        let sides = 2 + rng.below(most);
        let habits = draw_habits(&mut rng, sides);
        let mut kinds = vec![Kind::Text];
        for _ in 0..rng.below(3) {
            kinds.push(match rng.below(8) {
                0 | 1 => Kind::Stage,
                2 => Kind::Amount,
                3 => Kind::Log,
                4 => Kind::Choices,
                _ => Kind::Text,
            });
        }
        if habits.iter().any(|h| h.computes) {
            kinds.push(Kind::Computed);
        }
        let fields = kinds.iter().enumerate();
        let mut rules: Vec<Rule> = fields.map(|(f, k)| draw_rule(&mut rng, f, *k)).collect();
        let group = Arc::new(group(&mut rng, &habits, &kinds));
        let lock = |origin: &str| FieldLock {
            id: 99,
            field: name(0),
            origins: vec![origin.to_owned()],
        };
        let locks = match rng.below(16) {
            0 => vec![lock("alpha")],
            1 => vec![lock("local")],
            _ => Vec::new(),
        };
        if !locks.is_empty() {
            rules[0].strategy = Strategy::LastWriteWins;
            rules[0].winner.clear();
        }
        let toggled = toggle(seed, &kinds, &mut rules);
        let mut rng_of_burst = Rng::of(seed, 1_000_001);
        let burst = locks.is_empty() && sides > 2 && rng_of_burst.chance(15);
        if burst {
            rules[0].strategy = Strategy::LastWriteWins;
            rules[0].winner = ranking(&mut rng_of_burst);
        }
        Self {
            group,
            policy: Policy {
                version: 1,
                rules,
                skew_ms: SKEW,
                locks,
                stamps: stamps(seed, &habits),
            },
            habits,
            kinds,
            repeats: rng.chance(20),
            reforms: rng.chance(20),
            records,
            deletes: if rng.chance(50) {
                DeleteRule::Propagate
            } else {
                DeleteRule::Unlink
            },
            failover: rng.chance(8),
            reads_back: rng.chance(50),
            lean: rng.chance(50),
            burst,
            toggled,
            dedupes: rng.chance(30),
        }
    }

    pub fn sides(&self) -> usize {
        self.habits.len()
    }

    /// The rule of a field now.
    pub fn mapped(&self, field: usize, side: usize) -> bool {
        self.group.column(field, side).is_some()
    }
}

/// In some worlds a stage goes back and forth, under any rule. Drawn apart, as below.
fn toggle(seed: u64, kinds: &[Kind], rules: &mut [Rule]) -> Option<usize> {
    let mut rng = Rng::of(seed, 1_000_002);
    let field = kinds.iter().position(|k| *k == Kind::Stage)?;
    rng.chance(25).then(|| {
        rules[field] = draw_rule(&mut rng, field, Kind::Text);
        field
    })
}

/// In some worlds the stamps of pages are of records only. Drawn apart: histories
/// of old seeds stay what they were.
fn stamps(seed: u64, habits: &[Habits]) -> Vec<StampRule> {
    if !Rng::of(seed, 2_000_000).chance(25) {
        return Vec::new();
    }
    let of_records = |side: usize| StampRule {
        origin: NAMES[side].to_owned(),
        source: "poll".to_owned(),
        quality: Quality {
            exactness: Exactness::Record,
            tolerance_ms: VAGUE,
            ..Quality::default()
        },
    };
    (0..habits.len()).map(of_records).collect()
}

/// Everybody, in an order by chance.
fn ranking(rng: &mut Rng) -> Vec<String> {
    let mut left: Vec<&str> = NAMES.into_iter().chain(["local"]).collect();
    let mut order = Vec::new();
    while !left.is_empty() {
        order.push(left.swap_remove(rng.below(left.len())).to_owned());
    }
    order
}

fn draw_habits(rng: &mut Rng, sides: usize) -> Vec<Habits> {
    let lower = rng.chance(30).then(|| rng.below(sides));
    let adorns = (lower.is_none() && rng.chance(15)).then(|| rng.below(sides));
    let computes = rng.chance(10).then(|| rng.below(sides));
    let refuses = rng.chance(8);
    (0..sides)
        .map(|side| Habits {
            offset: rng.below(2_000) as i64 - 1_000,
            seconds: side == 1 || rng.chance(20),
            lower: lower == Some(side),
            adorns: adorns == Some(side),
            computes: computes == Some(side),
            forward_only: rng.chance(30),
            refuses: side == 1 && refuses,
            echoes: rng.chance(50),
            marks: lower == Some(side) || adorns == Some(side) || rng.chance(70),
            single_fields: rng.chance(50),
            unique: rng.chance(60),
            unique_key: rng.chance(50),
            length: if side == 2 && adorns != Some(side) {
                4
            } else {
                40
            },
        })
        .collect()
}

fn group(rng: &mut Rng, habits: &[Habits], kinds: &[Kind]) -> Group {
    let side = |i: usize| Side {
        mirror: i as i32,
        origin: NAMES[i].to_owned(),
        live: true,
        shadow: false,
    };
    let mut fields = Vec::new();
    for (field, kind) in kinds.iter().enumerate() {
        // Sometimes a side does not have the field; two always do.
        let missing = (field > 0 && habits.len() > 2 && rng.chance(15)).then_some(2);
        let fold = *kind == Kind::Text && rng.chance(15);
        let columns = habits.iter().enumerate().map(|(i, habits)| {
            if missing == Some(i) && *kind != Kind::Computed {
                return None;
            }
            let mut column = SideField::text(format!("{}{field}", NAMES[i]));
            match kind {
                Kind::Text => {
                    column.max_length = Some(habits.length as i32);
                    // A map that says less than what it is given.
                    if fold && i == 1 {
                        column.to_side = Transform::Lower;
                    }
                }
                Kind::Stage if i % 2 == 1 => {
                    let pairs = |flip: bool| {
                        let pair = |s: &&str| {
                            let (a, b) = ((*s).to_owned(), format!("Stage {s}"));
                            if flip { (b, a) } else { (a, b) }
                        };
                        Transform::ValueMap(Arc::new(STAGES.iter().map(pair).collect()))
                    };
                    column.to_side = pairs(false);
                    column.from_side = pairs(true);
                }
                Kind::Computed if habits.computes => column.writable = false,
                Kind::Amount => column.field_type = FieldType::Number,
                Kind::Choices => column.field_type = FieldType::MultiChoice,
                Kind::Stage | Kind::Computed | Kind::Log => {}
            }
            Some(column)
        });
        fields.push(GroupField {
            name: name(field),
            sides: columns.collect(),
        });
    }
    Group {
        id: 1,
        sides: (0..habits.len()).map(side).collect(),
        fields,
    }
}
