//! What follows from a decision: rows, writes, corrections, remembered state.

use crate::broken::{Mistake, made};
use crate::case::{Case, Decision, Outcome, Source};
use crate::echo::{self, Order};
use crate::group::Group;
use crate::mapping::{between, fits};
use crate::model::Value;
use crate::own_page::has_kept;
use crate::stamps::Exactness;
use crate::state::{Claim, Clock, Entity, FieldState, Hold, Interval, Sent, SideState, settle};
use crate::value::same;

static BLANK: Value = None;

/// The mirror's value of a field; blank where there is no row.
pub(crate) fn mirror_value(entity: &Entity, side: usize, field: usize) -> &Value {
    entity
        .records
        .get(side)
        .and_then(|r| r.values.get(field))
        .unwrap_or(&BLANK)
}

/// State of a field at rest: the mirrors are the base.
pub(crate) fn fresh_state(group: &Group, entity: &Entity, field: usize) -> FieldState {
    let side = |side: usize| SideState {
        base: group
            .column(field, side)
            .map(|_| mirror_value(entity, side, field).clone()),
        ..SideState::default()
    };
    FieldState {
        sides: (0..group.sides.len()).map(side).collect(),
        ..FieldState::default()
    }
}

pub(crate) fn incumbent_origin(case: &Case<'_>) -> String {
    match (&case.state.clock, case.rule) {
        (Some(clock), _) => clock.origin.clone(),
        (None, Some(rule)) if rule.strategy.entry().every_change => {
            rule.winner.first().cloned().unwrap_or_default()
        }
        (None, _) => String::new(),
    }
}

/// A value stands on every side.
pub(crate) fn accept(
    case: &mut Case<'_>,
    value: &Value,
    decision: &mut Decision,
    outcome: &mut Outcome,
) {
    let side = case.observed.side;
    decision.winner.clone_from(&case.observed.origin);
    decision.value = value.clone();
    case.state.clock = Some(case.clock.clone());
    if made(Mistake::ClockOfArrival) {
        let at = Interval::instant(case.now);
        case.state.clock = Some(Clock {
            at,
            ..case.clock.clone()
        });
    }
    // SQL's row shows the value already, unless a decision on another mirror of
    // the same transaction came between.
    row(case, side, value, outcome);
    put(case, side, value, decision, outcome);
    for other in (0..case.group.sides.len()).filter(|s| *s != side) {
        fan_out(case, side, other, value, decision, outcome);
    }
}

/// Shows a value of one side on another, by its map.
fn fan_out(
    case: &mut Case<'_>,
    from: usize,
    to: usize,
    value: &Value,
    decision: &mut Decision,
    outcome: &mut Outcome,
) {
    let (Some(source), Some(target)) = (
        case.group.column(case.field, from),
        case.group.column(case.field, to),
    ) else {
        return;
    };
    if !case.entity.alive(to) || !source.inbound || !target.accepts_writes() {
        return;
    }
    let image = match between(source, target, value, &case.entity.images) {
        Ok(image) => image,
        Err(reason) => {
            hold_note(decision, case.group, to, &target.field, &reason.to_string());
            return;
        }
    };
    let shown = mirror_value(case.entity, to, case.field);
    // What is there stands for this value already, in a form that says more
    // (the time of a day, the path of a site, text past a length): it stays.
    let back = between(target, source, shown, &case.entity.images);
    let image = if back.is_ok_and(|b| same(source.field_type, &b, value)) {
        shown.clone()
    } else {
        echo::stored_form(&case.state.sides[to], image, target.field_type)
    };
    let differs = !same(target.field_type, shown, &image);
    if case.group.sides[to].shadow {
        // Shown, not sent: nothing to remember and no row to change.
        if differs {
            outcome.writes.push((to, case.field, image));
        } else {
            outcome.cancel.push((to, case.field));
        }
        return;
    }
    let shown = shown.clone();
    if differs {
        outcome.rows.push((to, case.field, image.clone()));
    }
    put(
        case,
        to,
        if differs { &image } else { &shown },
        decision,
        outcome,
    );
}

fn hold_note(decision: &mut Decision, group: &Group, side: usize, field: &str, reason: &str) {
    let note = format!("{}.{field}: {reason}", group.origin(side));
    decision.held = Some(match decision.held.take() {
        Some(held) => format!("{held}; {note}"),
        None => note,
    });
}

/// The value held stands; the side that showed another is corrected.
pub(crate) fn put_back(case: &mut Case<'_>, decision: &mut Decision, outcome: &mut Outcome) {
    let side = case.observed.side;
    let field_type = case.column.field_type;
    let wanted = echo::stored_form(case.here(), owned_value(case), field_type);
    if !case.column.accepts_writes() {
        // Nobody can correct it there: the mirror tells the truth.
        row(case, side, case.value, outcome);
        let name = &case.column.field;
        hold_note(decision, case.group, side, name, "cannot be written");
        return;
    }
    decision.value = wanted.clone();
    if made(Mistake::LoserNotCorrected) {
        return;
    }
    let local = case.observed.source == Source::Local;
    if local || !same(case.column.field_type, &wanted, &case.held) {
        outcome.rows.push((side, case.field, wanted.clone()));
    }
    put(case, side, &wanted, decision, outcome);
}

/// What this side should hold where an owner decides: the owner's value by the
/// map, unless what is held stands for the same.
fn owned_value(case: &Case<'_>) -> Value {
    let rule = case.rule.filter(|r| r.strategy.entry().every_change);
    let names = match (case.notes.lock, rule) {
        (Some(lock), _) => lock.origins.first(),
        (None, rule) => rule.and_then(|r| r.winner.first()),
    };
    let owner = names
        .and_then(|name| case.group.sides.iter().position(|s| s.origin == *name))
        .filter(|o| *o != case.observed.side && case.entity.alive(*o));
    let Some(owner) = owner else {
        return case.held.clone();
    };
    let Some(source) = case.group.column(case.field, owner) else {
        return case.held.clone();
    };
    let theirs = mirror_value(case.entity, owner, case.field);
    let back = between(case.column, source, &case.held, &case.entity.images);
    if back.is_ok_and(|b| same(source.field_type, &b, theirs)) {
        return case.held.clone();
    }
    between(source, case.column, theirs, &case.entity.images).unwrap_or_else(|_| case.held.clone())
}

/// Both values stay where they are, each mirror shows its own CRM, and what was
/// queued against the newcomer is withdrawn.
pub(crate) fn review(case: &mut Case<'_>, reason: &str, outcome: &mut Outcome) {
    let side = case.observed.side;
    if echo::withdraw(case.here_mut()) {
        outcome.cancel.push((side, case.field));
    }
    if case.state.hold.is_none() {
        let claims = if case.claims.is_empty() {
            vec![incumbent_claim(case)]
        } else {
            std::mem::take(&mut case.claims)
        };
        case.state.hold = Some(Hold {
            claims,
            ..Hold::default()
        });
    }
    let rule = case.rule.map(|r| r.id);
    let claim = challenger_claim(case);
    if let Some(hold) = &mut case.state.hold {
        reason.clone_into(&mut hold.reason);
        hold.rule = rule;
        hold.claim(claim);
    }
    // An edit from before a write of ours is not what its CRM holds now.
    let holds = case.order() != Order::Before || has_kept(case);
    if case.observed.source != Source::Local && holds {
        row(case, side, case.value, outcome);
    }
}

/// The value that came, as a candidate.
pub(crate) fn challenger_claim(case: &Case<'_>) -> Claim {
    Claim {
        side: case.observed.side,
        value: case.value.clone(),
        clock: case.clock.clone(),
    }
}

/// Whether the value that came can stand for a value of some side: the same by
/// the map, which may say less.
pub(crate) fn stands_for(case: &Case<'_>, side: usize, value: &Value) -> bool {
    let (forth, back) = images_match(case, side, value);
    forth || back
}

/// Whether it says neither less nor more.
pub(crate) fn says_the_same(case: &Case<'_>, side: usize, value: &Value) -> bool {
    images_match(case, side, value) == (true, true)
}

/// Whether the other value's image here is ours, and ours there is the other.
fn images_match(case: &Case<'_>, side: usize, value: &Value) -> (bool, bool) {
    let (here, field_type) = (case.column, case.column.field_type);
    if side == case.observed.side {
        let same = same(field_type, value, case.value);
        return (same, same);
    }
    let Some(there) = case.group.column(case.field, side) else {
        return (false, false);
    };
    let images = &case.entity.images;
    (
        between(there, here, value, images).is_ok_and(|v| same(field_type, &v, case.value)),
        between(here, there, case.value, images).is_ok_and(|v| same(there.field_type, &v, value)),
    )
}

/// The value held, as a candidate: where its writer wrote it, if that is a side.
pub(crate) fn incumbent_claim(case: &Case<'_>) -> Claim {
    let clock = case.state.clock.clone().unwrap_or_else(|| Clock {
        at: Interval::instant(0),
        seq: 0,
        origin: incumbent_origin(case),
        exactness: Exactness::Received,
        ..Clock::default()
    });
    let home = (0..case.group.sides.len()).find(|s| {
        *s != case.observed.side
            && case.group.origin(*s) == clock.origin
            && case.entity.alive(*s)
            && case.group.column(case.field, *s).is_some()
    });
    match home {
        Some(side) => Claim {
            side,
            value: mirror_value(case.entity, side, case.field).clone(),
            clock,
        },
        None => Claim {
            side: case.observed.side,
            value: case.held.clone(),
            clock,
        },
    }
}

/// Sets the mirror cell of the observed side, if it shows something else.
pub(crate) fn row(case: &Case<'_>, side: usize, value: &Value, outcome: &mut Outcome) {
    if *mirror_value(case.entity, side, case.field) != *value {
        outcome.rows.push((side, case.field, value.clone()));
    }
}

/// Makes sure that a side's CRM gets a value: queues a write unless everything
/// observed says that it holds it, and withdraws one that became moot.
pub(crate) fn put(
    case: &mut Case<'_>,
    side: usize,
    wanted: &Value,
    decision: &mut Decision,
    outcome: &mut Outcome,
) {
    let Some(column) = case.group.column(case.field, side) else {
        return;
    };
    let (field, skew) = (case.field, case.policy.tolerance_ms());
    // What was written there stands until a person has decided.
    if case.state.hold.is_some() {
        return;
    }
    let (clock, held) = (carried_clock(case), case.observed.held);
    let state = &mut case.state.sides[side];
    if echo::holds(state, wanted, column.field_type, skew) {
        let mut moot = echo::withdraw(state);
        // What was refused before is wanted no more, nor tried again by hand.
        while state.sent.last().is_some_and(|w| w.sent == Sent::Failed) {
            state.sent.pop();
            moot = true;
        }
        if moot && !made(Mistake::CancelDropped) {
            outcome.cancel.push((side, field));
        }
        return;
    }
    if !column.writable {
        return;
    }
    if let Err(reason) = fits(column, wanted) {
        hold_note(
            decision,
            case.group,
            side,
            &column.field,
            &reason.to_string(),
        );
        return;
    }
    let refused = state
        .sent
        .last()
        .is_some_and(|w| w.sent == Sent::Failed && w.value == *wanted);
    let asked = echo::queued(state).is_some_and(|place| state.sent[place].value == *wanted);
    if refused && !made(Mistake::RefusedSentAgain) {
        hold_note(
            decision,
            case.group,
            side,
            &column.field,
            "refused by the CRM",
        );
    } else if !asked {
        echo::enqueue(state, wanted, &clock, held);
        outcome.writes.push((side, field, wanted.clone()));
    }
}

/// A write inherits the clock of the value that it carries.
fn carried_clock(case: &Case<'_>) -> Clock {
    case.state.clock.clone().unwrap_or_else(|| Clock {
        origin: incumbent_origin(case),
        ..case.clock.clone()
    })
}

/// Stores the state if the observation changed it.
pub(crate) fn store(case: &mut Case<'_>, stored: Option<&FieldState>, outcome: &mut Outcome) {
    let state = std::mem::take(&mut case.state);
    let early = made(Mistake::SettledTooEarly);
    let at_rest = early || settle(&state, case.now, case.horizon_ms);
    match stored {
        Some(_) if at_rest => outcome.states.push((case.field, None)),
        Some(before) if *before == state => {}
        None if at_rest => {}
        // A fresh state has no clock.
        None if state.clock.is_none()
            && state == fresh_state(case.group, case.entity, case.field) => {}
        _ => outcome.states.push((case.field, Some(state))),
    }
}
