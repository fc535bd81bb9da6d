//! The decision: one observation against what is held, by named steps.
//!
//! Steps run in the order of `STEPS`; the first that has an opinion decides.
//! What follows from the opinion (rows, writes, corrections) is in `effect`.
//! Nothing here reads a clock or knows a CRM.

use crate::echo::{self, Order};
use crate::effect;
use crate::group::{Group, SideField};
use crate::model::{Millis, Value};
use crate::policy::{Policy, Rule};
use crate::state::{Clock, Entity, FieldState, Flap, Interval, Sent, SideState};
use crate::strategy::{Candidate, Contest, Strategy, Verdict};
use crate::value::same;

/// How often a CRM may bring the same value back against our writes.
pub const FLAP_LIMIT: u32 = 6;
/// Within how much event time.
pub const FLAP_WINDOW_MS: i64 = 600_000;

/// Where an observation comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// An event of a CRM about this field.
    Remote,
    /// SQL on this side's mirror.
    Local,
    /// A page of records (backfill, poll, re-read): the time is the record's.
    Page,
}

/// What was observed of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Side of the group.
    pub side: usize,
    /// Kind.
    pub source: Source,
    /// Who wrote: the server's name, `local`, or an application.
    pub origin: String,
    /// Field of the group, new value, and for SQL the value before, where known.
    pub values: Vec<(usize, Value, Option<Value>)>,
    /// When, by the source's clock.
    pub at: Interval,
    /// Engine sequence.
    pub seq: i64,
    /// The CRM says that our client wrote it: evidence, not proof.
    pub mark_is_ours: bool,
}

/// The step that decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The record is removed.
    Tombstone,
    /// Older than any order can be known for: the record is read again.
    TooLate,
    /// Our own write came back.
    Echo,
    /// The CRM stored our write in another form.
    NormalForm,
    /// The value is held already.
    Equal,
    /// The CRM's state from before our write, known already.
    Known,
    /// Older than what this side showed before.
    Stale,
    /// A page read while our write is on its way.
    Unsettled,
    /// A page shows that our write did not land.
    NotLanded,
    /// The map takes no values from this side.
    OneWay,
    /// A person is being asked about this field.
    Held,
    /// The value keeps coming back against our writes: stopped.
    Flapping,
    /// Who may write.
    Owner,
    /// Whether there was a value.
    FillBlank,
    /// Only this side changed.
    OneSide,
    /// Two sides changed.
    Conflict,
    /// A person or a request set the value.
    Resolved,
}

/// What was decided about one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Field of the group.
    pub field: usize,
    /// Step that decided.
    pub step: Step,
    /// Policy row, where one decided.
    pub rule: Option<i64>,
    /// Its strategy.
    pub strategy: Option<Strategy>,
    /// Origin of the value that stands; empty if nobody remembers.
    pub winner: String,
    /// The value that stands, in the observed side's type.
    pub value: Value,
    /// Values that do not stand, with their origins.
    pub losers: Vec<(String, Value)>,
    /// Two sides had changed.
    pub conflict: bool,
    /// Why something waits or could not be carried, in words.
    pub held: Option<String>,
}

/// What follows from an observation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// One per field that was looked at; a page's known values are left out.
    pub decisions: Vec<Decision>,
    /// Mirror cells to set: side, field, value.
    pub rows: Vec<(usize, usize, Value)>,
    /// Writes for the outbox; each replaces an unclaimed one of the same cell.
    pub writes: Vec<(usize, usize, Value)>,
    /// Unclaimed writes made moot.
    pub cancel: Vec<(usize, usize)>,
    /// Writes that a side in shadow would get.
    pub would_send: Vec<(usize, usize, Value)>,
    /// Sides whose record should be read again.
    pub reread: Vec<usize>,
    /// Field states to store; `None` removes.
    pub states: Vec<(usize, Option<FieldState>)>,
}

/// What a step wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Nothing changes; the side is only checked against what it should hold.
    Nothing,
    /// As `Nothing`, and the observation is older or foreign: not even that.
    Ignore,
    /// The mirror shows this value from now on, other sides do not.
    RowOnly,
    /// The value that came stands.
    Challenger,
    /// The value held stands; whoever wrote the other is corrected.
    Incumbent,
    /// Both stand until a person decides.
    Review(String),
}

/// One field of one observation on its way through the steps.
pub(crate) struct Case<'a> {
    pub(crate) group: &'a Group,
    pub(crate) policy: &'a Policy,
    pub(crate) entity: &'a Entity,
    pub(crate) observed: &'a Observed,
    pub(crate) now: Millis,
    pub(crate) horizon_ms: i64,
    pub(crate) field: usize,
    pub(crate) column: &'a SideField,
    /// The value that came.
    pub(crate) value: &'a Value,
    /// The value before, as SQL saw it.
    pub(crate) old: Option<&'a Value>,
    /// The value held on this side.
    pub(crate) held: Value,
    pub(crate) clock: Clock,
    pub(crate) state: FieldState,
    pub(crate) rule: Option<&'a Rule>,
    pub(crate) conflict: bool,
}

type StepFn = fn(&mut Case<'_>) -> Option<Keep>;

/// The steps. `Owner` and `FillBlank` are one function that names itself.
const STEPS: &[(Step, StepFn)] = &[
    (Step::Tombstone, tombstone),
    (Step::TooLate, too_late),
    (Step::Echo, own_write),
    (Step::NormalForm, normal_form),
    (Step::Equal, equal),
    (Step::Stale, stale),
    (Step::NotLanded, not_landed),
    (Step::Unsettled, unsettled),
    (Step::Known, known),
    (Step::OneWay, one_way),
    (Step::Held, on_hold),
    (Step::Flapping, flapping),
    (Step::Owner, every_change),
    (Step::OneSide, one_side),
    (Step::Conflict, conflict),
];

/// Decides an observation of one record.
pub fn decide(
    group: &Group,
    policy: &Policy,
    entity: &Entity,
    observed: &Observed,
    now: Millis,
    horizon_ms: i64,
) -> Outcome {
    let mut outcome = Outcome::default();
    for (field, value, old) in &observed.values {
        let (Some(column), Some(_)) = (
            group.column(*field, observed.side),
            entity.records.get(observed.side),
        ) else {
            continue;
        };
        let held = effect::mirror_value(entity, observed.side, *field);
        let stored = entity.fields.get(field);
        if let Some(quick) = settled_and_equal(observed, *field, column, value, held, stored) {
            outcome.decisions.extend(quick);
            continue;
        }
        let mut case = Case {
            group,
            policy,
            entity,
            observed,
            now,
            horizon_ms,
            field: *field,
            column,
            value,
            old: old.as_ref(),
            held: held_before(observed, column, value, old.as_ref(), held),
            clock: Clock {
                at: observed.at,
                seq: observed.seq,
                origin: observed.origin.clone(),
            },
            state: stored
                .cloned()
                .unwrap_or_else(|| effect::fresh_state(group, entity, *field)),
            rule: policy.rule(&group.fields[*field].name),
            conflict: false,
        };
        if stored.is_none() && observed.source == Source::Local {
            case.state.sides[observed.side].base = Some(case.held.clone());
        }
        decide_field(&mut case, stored, &mut outcome);
    }
    outcome
}

/// A field at rest whose value is shown again costs nothing: most of a page.
fn settled_and_equal(
    observed: &Observed,
    field: usize,
    column: &SideField,
    value: &Value,
    held: &Value,
    stored: Option<&FieldState>,
) -> Option<Option<Decision>> {
    if stored.is_some() || observed.source == Source::Local {
        return None;
    }
    if !same(column.field_type, value, held) {
        return None;
    }
    let decision = || Decision {
        field,
        step: Step::Equal,
        rule: None,
        strategy: None,
        winner: observed.origin.clone(),
        value: value.clone(),
        losers: Vec::new(),
        conflict: false,
        held: None,
    };
    Some((observed.source != Source::Page).then(decision))
}

/// The mirror's value before this event. SQL has changed its own row already,
/// so where the row shows the new value the old one is what SQL saw.
fn held_before(
    observed: &Observed,
    column: &SideField,
    value: &Value,
    old: Option<&Value>,
    row: &Value,
) -> Value {
    match old {
        Some(old) if observed.source == Source::Local && same(column.field_type, row, value) => {
            old.clone()
        }
        _ => row.clone(),
    }
}

fn decide_field(case: &mut Case<'_>, stored: Option<&FieldState>, outcome: &mut Outcome) {
    let mut chosen = (Step::Held, Keep::Ignore);
    for (step, apply) in STEPS {
        if let Some(keep) = apply(case) {
            chosen = (*step, keep);
            break;
        }
    }
    let (step, keep) = chosen;
    let step = match (step, case.rule.map(|r| r.strategy)) {
        (Step::Owner, Some(Strategy::FillBlank)) => Step::FillBlank,
        (step, _) => step,
    };
    effect::carry_out(case, step, keep, outcome);
    effect::store(case, stored, outcome);
}

impl<'a> Case<'a> {
    pub(crate) fn here(&self) -> &SideState {
        &self.state.sides[self.observed.side]
    }

    pub(crate) fn here_mut(&mut self) -> &mut SideState {
        &mut self.state.sides[self.observed.side]
    }

    fn is(&self, other: &Value) -> bool {
        same(self.column.field_type, self.value, other)
    }

    fn order(&self) -> Order {
        echo::order(self.here(), self.observed.at, self.policy.skew_ms)
    }

    pub(crate) fn record_seen(&mut self) {
        let (value, clock) = (self.value, self.clock.clone());
        if self.observed.source != Source::Local {
            echo::record_seen(self.here_mut(), value, &clock);
        }
    }

    /// Whether the two values were written without knowledge of each other.
    fn concurrent(&self) -> bool {
        if self.observed.source == Source::Local {
            return self
                .old
                .is_some_and(|old| !same(self.column.field_type, old, &self.held));
        }
        let here = self.here();
        let same_writer = self
            .state
            .clock
            .as_ref()
            .is_some_and(|c| c.origin == self.observed.origin);
        let Some(last) = here.sent.last().filter(|_| !same_writer) else {
            return false;
        };
        match last.sent {
            Sent::Answered { .. } => self.order() != Order::After,
            Sent::Unknown { .. } if last.landed.is_some() => self.order() != Order::After,
            Sent::Queued | Sent::InFlight { .. } | Sent::Unknown { .. } | Sent::Failed => true,
        }
    }

    pub(crate) fn contest<'b>(&'b self, rule: &'b Rule) -> Contest<'b> {
        let clock = self.state.clock.as_ref();
        Contest {
            rule,
            incumbent: Candidate {
                origin: clock.map_or("", |c| c.origin.as_str()),
                value: &self.held,
                clock,
            },
            challenger: Candidate {
                origin: &self.observed.origin,
                value: self.value,
                clock: Some(&self.clock),
            },
            conflict: self.conflict,
            named_present: effect::named_present(self, rule),
            skew_ms: self.policy.skew_ms,
        }
    }
}

fn tombstone(case: &mut Case<'_>) -> Option<Keep> {
    case.entity.records[case.observed.side]
        .deleted
        .then_some(Keep::Ignore)
}

/// Beyond the horizon the record of what we sent is gone, and with it the means
/// to tell an edit from an echo.
fn too_late(case: &mut Case<'_>) -> Option<Keep> {
    let limit = case.now.saturating_sub(case.horizon_ms);
    (case.observed.source == Source::Remote && case.observed.at.to < limit).then_some(Keep::Ignore)
}

fn own_write(case: &mut Case<'_>) -> Option<Keep> {
    if case.observed.source == Source::Local {
        return None;
    }
    let (at, page) = (case.observed.at, case.observed.source == Source::Page);
    let place = echo::find(
        case.here(),
        case.value,
        at,
        case.observed.mark_is_ours,
        case.column.field_type,
        case.policy.skew_ms,
    )?;
    let shown_later = case
        .here()
        .seen
        .as_ref()
        .is_some_and(|(_, seen)| at.before(seen.at));
    let write = &mut case.here_mut().sent[place];
    write.confirmed = true;
    // A page tells when the record changed last, not when this field did.
    if !page && write.landed.is_none() {
        write.landed = Some(at);
    }
    Some(if shown_later {
        Keep::Ignore
    } else {
        Keep::Nothing
    })
}

/// Bouncing our own value's normal form would never end.
fn normal_form(case: &mut Case<'_>) -> Option<Keep> {
    if case.observed.source == Source::Local || !case.observed.mark_is_ours {
        return None;
    }
    let (at, value) = (case.observed.at, case.value.clone());
    let place = echo::find_marked(case.here(), at, case.policy.skew_ms)?;
    let page = case.observed.source == Source::Page;
    let write = &mut case.here_mut().sent[place];
    let wanted = write.value.clone();
    write.normal = Some(value);
    write.confirmed = true;
    if !page {
        write.landed = Some(at);
    }
    let current = same(case.column.field_type, &wanted, &case.held);
    Some(if current {
        Keep::RowOnly
    } else {
        Keep::Nothing
    })
}

fn equal(case: &mut Case<'_>) -> Option<Keep> {
    if !case.is(&case.held.clone()) {
        return None;
    }
    let field_type = case.column.field_type;
    let value = case.value.clone();
    let confirms = case.observed.source != Source::Local;
    let newest = case
        .here_mut()
        .sent
        .iter_mut()
        .rev()
        .find(|w| !matches!(w.sent, Sent::Queued | Sent::Failed));
    match newest {
        Some(write) if confirms && same(field_type, &value, write.result()) => {
            write.confirmed = true;
        }
        _ => case.record_seen(),
    }
    Some(Keep::Nothing)
}

fn stale(case: &mut Case<'_>) -> Option<Keep> {
    let at = case.observed.at;
    let older = case.observed.source != Source::Local
        && case
            .here()
            .seen
            .as_ref()
            .is_some_and(|(_, seen)| at.before(seen.at));
    older.then_some(Keep::Ignore)
}

/// A page that shows the value from before a write without answer, or before
/// one answered at about the page's stamp: the value is sent (again), which is
/// harmless if it had landed.
fn not_landed(case: &mut Case<'_>) -> Option<Keep> {
    if case.observed.source != Source::Page || !echo::known(case.here()).is_some_and(|k| case.is(k))
    {
        return None;
    }
    let unclear = case.order() == Order::Unclear;
    let lost = match echo::last_own(case.here())?.sent {
        Sent::Unknown { .. } => echo::last_own(case.here())?.landed.is_none(),
        Sent::Answered { .. } => unclear,
        Sent::Queued | Sent::InFlight { .. } | Sent::Failed => false,
    };
    if !lost {
        return None;
    }
    case.record_seen();
    Some(Keep::Nothing)
}

/// While a write is on its way a page shows either side of it.
fn unsettled(case: &mut Case<'_>) -> Option<Keep> {
    let in_flight = case.observed.source == Source::Page
        && case.order() == Order::Unclear
        && echo::last_own(case.here()).is_some_and(|w| matches!(w.sent, Sent::InFlight { .. }))
        && echo::known(case.here()).is_some_and(|k| case.is(k));
    in_flight.then_some(Keep::Ignore)
}

/// What the CRM held before our write is no news, however late it is told; but
/// the same value after our write is somebody setting it back.
fn known(case: &mut Case<'_>) -> Option<Keep> {
    if case.observed.source == Source::Local
        || !echo::known(case.here()).is_some_and(|k| case.is(k))
    {
        return None;
    }
    let told_again = case
        .here()
        .seen
        .as_ref()
        .is_some_and(|(_, seen)| seen.at.overlaps(case.observed.at));
    match case.order() {
        Order::After => return None,
        Order::Unclear if !told_again => return None,
        Order::Unclear | Order::Before | Order::NoWrite => {}
    }
    case.record_seen();
    Some(Keep::Nothing)
}

fn one_way(case: &mut Case<'_>) -> Option<Keep> {
    if case.column.inbound || case.observed.source == Source::Local {
        return None;
    }
    case.record_seen();
    Some(Keep::RowOnly)
}

fn on_hold(case: &mut Case<'_>) -> Option<Keep> {
    let reason = case.state.hold.as_ref()?.reason.clone();
    case.record_seen();
    Some(Keep::Review(reason))
}

/// Two automations that set a field against each other never tire.
fn flapping(case: &mut Case<'_>) -> Option<Keep> {
    case.conflict = case.concurrent();
    if case.observed.source == Source::Local {
        return None;
    }
    let at = case.observed.at.to;
    let returned = case.here().seen.as_ref().is_some_and(|(v, _)| case.is(v));
    let value = case.value.clone();
    let here = case.here_mut();
    match &mut here.flap {
        Some(flap) if returned && at - flap.since <= FLAP_WINDOW_MS => flap.count += 1,
        flap if returned => {
            *flap = Some(Flap {
                value,
                count: 1,
                since: at,
            });
        }
        _ => {}
    }
    let count = here.flap.as_ref().map_or(0, |f| f.count);
    case.record_seen();
    if !returned || count < FLAP_LIMIT {
        return None;
    }
    let other = case
        .state
        .clock
        .as_ref()
        .map_or("another writer", |c| c.origin.as_str());
    Some(Keep::Review(format!(
        "{} and {other} keep overwriting each other ({count} times)",
        case.observed.origin
    )))
}

fn every_change(case: &mut Case<'_>) -> Option<Keep> {
    let rule = case.rule?;
    let entry = rule.strategy.entry();
    let lone = case.group.sides.len() < 2 && rule.winner.is_empty();
    if !entry.every_change || lone {
        return None;
    }
    Some(keep((entry.apply)(&case.contest(rule)), rule))
}

fn one_side(case: &mut Case<'_>) -> Option<Keep> {
    (!case.conflict).then_some(Keep::Challenger)
}

fn conflict(case: &mut Case<'_>) -> Option<Keep> {
    Some(match case.rule {
        None => Keep::Review("no policy row decides this field".to_owned()),
        Some(rule) => keep((rule.strategy.entry().apply)(&case.contest(rule)), rule),
    })
}

fn keep(verdict: Verdict, rule: &Rule) -> Keep {
    match verdict {
        Verdict::Challenger => Keep::Challenger,
        Verdict::Incumbent => Keep::Incumbent,
        Verdict::Review => Keep::Review(format!(
            "policy row {} asks for a person's decision",
            rule.id
        )),
    }
}
