//! From what the steps chose to what is done.

use crate::broken::{Mistake, made};
use crate::case::{Case, Decision, Keep, Outcome, Step};
use crate::effect::{accept, incumbent_origin, mirror_value, put, put_back, review, row};
use crate::model::Value;
use crate::special;
use crate::value::same;

/// Carries out what the steps chose.
pub(crate) fn carry_out(case: &mut Case<'_>, step: Step, keep: Keep, outcome: &mut Outcome) {
    let ruled = matches!(
        step,
        Step::Owner | Step::FillBlank | Step::Conflict | Step::Held | Step::Score | Step::Waiting
    );
    let rule = case.rule.filter(|_| ruled);
    let lock = case.notes.lock.map(|l| l.id);
    let mut decision = Decision {
        field: case.field,
        step,
        rule: rule.map(|r| r.id).or(lock),
        strategy: rule.map(|r| r.strategy),
        winner: incumbent_origin(case),
        value: case.held.clone(),
        merged: Vec::new(),
        evaluation: case.notes.evaluation.take(),
        losers: Vec::new(),
        conflict: case.conflict,
        held: None,
    };
    let lost = |case: &Case<'_>| (case.observed.origin.clone(), case.value.clone());
    match keep {
        Keep::Ignore => ignore(case, step, &mut decision, outcome),
        Keep::Nothing => {
            let held = std::mem::take(&mut case.held);
            put(case, case.observed.side, &held, &mut decision, outcome);
            case.held = held;
        }
        Keep::RowOnly => {
            row(case, case.observed.side, case.value, outcome);
            decision.value = case.value.clone();
            decision.winner.clone_from(&case.observed.origin);
        }
        Keep::Challenger => {
            if case.conflict {
                let loser = (incumbent_origin(case), held(case).clone());
                decision.losers.push(loser);
            }
            accept(case, case.value, &mut decision, outcome);
        }
        Keep::Merged(value) => {
            let held = (incumbent_origin(case), case.held.clone());
            decision.merged.extend([held, lost(case)]);
            accept(case, &value, &mut decision, outcome);
        }
        Keep::Rival(rival) => {
            let lost = lost(case);
            special::reinstate(case, &rival, lost, &mut decision, outcome);
        }
        Keep::Wait => special::wait(case, &mut decision, outcome),
        // Nothing is decided before the answer.
        Keep::Ask(_) => return,
        Keep::Incumbent => {
            if !made(Mistake::LoserNotNamed) {
                decision.losers.push(lost(case));
            }
            put_back(case, &mut decision, outcome);
        }
        Keep::Review(reason) => {
            decision.losers.push(lost(case));
            review(case, &reason, outcome);
            decision.held = Some(reason);
        }
    }
    outcome.decisions.push(decision);
}

/// Nothing changes, but a value that differs and is passed over gets named.
fn ignore(case: &Case<'_>, step: Step, decision: &mut Decision, outcome: &mut Outcome) {
    if !same(case.column.field_type, case.value, &case.held) && step != Step::Echo {
        decision
            .losers
            .push((case.observed.origin.clone(), case.value.clone()));
    }
    if step == Step::TooLate && !outcome.reread.contains(&case.observed.side) {
        outcome.reread.push(case.observed.side);
        decision.held = Some("older than any order is known for: read again".to_owned());
    }
}

/// The value that was written last: where it could not be shown on this side, it stands
/// on that of its writer.
fn held<'a>(case: &'a Case<'_>) -> &'a Value {
    let clock = case.state.clock.as_ref();
    match clock.and_then(|c| case.unseen_origin(c)) {
        Some(side) => mirror_value(case.entity, side, case.field),
        None => &case.held,
    }
}
