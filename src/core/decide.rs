//! The decision: one observation against what is held, by named steps.
//!
//! Steps run in the order of `steps`; the first that has an opinion decides.
//! What follows from the opinion (rows, writes, corrections) is in `carry` and `effect`.
//! Nothing here reads a clock or knows a CRM.

use crate::carry::carry_out;
use crate::case::{Case, Frame, Keep};
pub use crate::case::{Decision, Observed, Outcome, Source, Step};
use crate::effect;
use crate::group::{Group, SideField};
use crate::model::{Millis, Value};
use crate::policy::Policy;
use crate::reconcile::is_damage;
use crate::special;
use crate::stamps::{Clock, Exactness};
use crate::state::{Entity, FieldState};
use crate::strategy::Strategy;
use crate::timeline;
use crate::value::same;

/// Decides an observation of one record, and edits that waited for what it tells.
pub fn decide(
    group: &Group,
    policy: &Policy,
    entity: &Entity,
    observed: &Observed,
    now: Millis,
    horizon_ms: i64,
) -> Outcome {
    let frame = Frame {
        group,
        policy,
        entity,
        observed,
        now,
        horizon_ms,
    };
    let outcome = decide_one(frame);
    let waits = |f: &usize| entity.fields.get(f).is_some_and(FieldState::has_waiting);
    let fields = observed.values.iter().map(|(f, _, _)| *f);
    let fields: Vec<usize> = fields.filter(waits).collect();
    if fields.is_empty() || !outcome.questions.is_empty() {
        return outcome;
    }
    let decide = |entity: &Entity, observed: &Observed| {
        decide_one(Frame {
            entity,
            observed,
            ..frame
        })
    };
    crate::replay::waiting(entity, &fields, observed, outcome, &decide)
}

fn decide_one(frame: Frame<'_>) -> Outcome {
    let Frame {
        group,
        entity,
        observed,
        ..
    } = frame;
    let mut outcome = Outcome::default();
    for (field, value, old) in &observed.values {
        let (Some(column), Some(_)) = (
            group.column(*field, observed.side),
            entity.records.get(observed.side),
        ) else {
            continue;
        };
        let row = effect::mirror_value(entity, observed.side, *field);
        let stored = entity.fields.get(field);
        // What is remembered does not speak for a row that was changed behind our back.
        let known = stored.filter(|state| !is_damaged(observed, column, value, row, state));
        if is_known_page(observed, column, value, row, stored) {
            continue;
        }
        let held = match observed.decided.contains(field) {
            true => row,
            false => held_before(observed, column, value, old.as_ref(), row),
        };
        let (at, origin) = (observed.at, &observed.origin);
        let clock = observed.quality.clock(at, observed.seq, origin);
        let state = known
            .cloned()
            .unwrap_or_else(|| effect::fresh_state(group, entity, *field));
        let Some(mut case) = frame.case(*field, value, held, clock, state) else {
            continue;
        };
        case.old = old.as_ref();
        if known.is_none() && observed.source == Source::Local {
            case.state.sides[observed.side].base = Some(case.held.clone());
        }
        if observed.anew {
            case.state
                .clock
                .get_or_insert_with(|| holder(group, observed));
        }
        decide_field(&mut case, stored, &mut outcome);
    }
    outcome
}

/// Who wrote what a new record met, if nobody is remembered: somebody of its CRM, at
/// some time.
fn holder(group: &Group, observed: &Observed) -> Clock {
    Clock {
        origin: group.origin(observed.side).to_owned(),
        exactness: Exactness::Received,
        ..Clock::default()
    }
}

/// A field at rest whose value a page shows again costs nothing: most of a page. An
/// event tells when it was written, which earlier ones that come later are asked for.
fn is_known_page(
    observed: &Observed,
    column: &SideField,
    value: &Value,
    held: &Value,
    stored: Option<&FieldState>,
) -> bool {
    observed.source == Source::Page && stored.is_none() && same(column.field_type, value, held)
}

/// Whether the row shows what nobody wrote that we know of, while its CRM shows what
/// it held last: to send the row's value there would be nobody's decision.
fn is_damaged(
    observed: &Observed,
    column: &SideField,
    value: &Value,
    held: &Value,
    state: &FieldState,
) -> bool {
    observed.source != Source::Local
        && !same(column.field_type, value, held)
        && is_damage(state, observed.side, value)
}

/// The mirror's value before this event. SQL has changed its own row already,
/// so where the row shows the new value the old one is what SQL saw.
fn held_before<'v>(
    observed: &Observed,
    column: &SideField,
    value: &Value,
    old: Option<&'v Value>,
    row: &'v Value,
) -> &'v Value {
    match old {
        Some(old) if observed.source == Source::Local && same(column.field_type, row, value) => old,
        _ => row,
    }
}

fn decide_field(case: &mut Case<'_>, stored: Option<&FieldState>, outcome: &mut Outcome) {
    let counted = case.merges() && case.observed.source == Source::Page;
    if let (true, Some(asked_at)) = (counted, case.observed.asked_at) {
        let (field_type, skew) = (case.column.field_type, case.policy.tolerance_ms());
        let (value, at) = (case.value, case.observed.at);
        timeline::order_by_page(case.here_mut(), value, at, asked_at, field_type, skew);
    }
    let side = case.observed.side;
    let skew = case.policy.tolerance_ms();
    let open = |asked| counted && timeline::awaits_stamps(case.here(), asked, skew);
    if case.observed.asked_at.is_some_and(open) && !outcome.reread.contains(&side) {
        outcome.reread.push(side);
    }
    let mut chosen = (Step::Held, Keep::Ignore);
    for (step, apply) in crate::steps::STEPS {
        if let Some(keep) = apply(case) {
            chosen = (*step, keep);
            break;
        }
    }
    let (step, keep) = chosen;
    let step = match (step, case.rule.map(|r| r.strategy), &keep) {
        (_, _, Keep::Ask(question)) => {
            outcome.questions.push((**question).clone());
            return;
        }
        (Step::Owner, Some(Strategy::FillBlank), _) => Step::FillBlank,
        (Step::Merge, _, Keep::Nothing) => Step::Known,
        (Step::Merge, _, Keep::Ignore) => Step::Stale,
        (Step::Merge, _, Keep::Wait) => Step::Waiting,
        (Step::Merge, _, Keep::Challenger) => Step::OneSide,
        (Step::Merge, _, _) => Step::Conflict,
        (step, _, _) => step,
    };
    let freeze = case.notes.freeze.take();
    let freeze = freeze.map(|reason| (reason, effect::incumbent_claim(case)));
    carry_out(case, step, keep, outcome);
    if let Some((reason, incumbent)) = freeze {
        special::freeze(case, incumbent, reason, outcome);
    }
    effect::store(case, stored, outcome);
}
