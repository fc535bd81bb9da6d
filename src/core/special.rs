//! What follows from rarer decisions: an edit that waits, a field that stops, an
//! earlier edit that stands again.

use crate::case::{Case, Decision, Outcome, Step};
use crate::echo;
use crate::effect::{accept, challenger_claim, incumbent_origin, put_back, review};
use crate::mapping::between;
use crate::model::Value;
use crate::state::{Claim, Hold, Sent, Waiting};
use crate::timeline;

/// The value of an earlier edit stands again.
pub(crate) fn reinstate(
    case: &mut Case<'_>,
    rival: &Claim,
    lost: (String, Value),
    decision: &mut Decision,
    outcome: &mut Outcome,
) {
    let held = (incumbent_origin(case), case.held.clone());
    decision.losers.extend([held, lost]);
    let there = case.group.column(case.field, rival.side);
    match there.map(|there| between(there, case.column, &rival.value, &case.entity.images)) {
        Some(Ok(value)) => {
            case.clock.clone_from(&rival.clock);
            accept(case, &value, decision, outcome);
            decision.winner.clone_from(&rival.clock.origin);
        }
        Some(Err(reason)) => {
            review(case, &reason.to_string(), outcome);
            decision.held = Some(reason.to_string());
        }
        None => put_back(case, decision, outcome),
    }
}

/// The edit is kept until it is known what it was made on top of. A write under
/// way is answered in any case; after it, only a look at the record helps.
pub(crate) fn wait(case: &mut Case<'_>, decision: &mut Decision, outcome: &mut Outcome) {
    let side = case.observed.side;
    let (value, clock) = (case.value.clone(), case.clock.clone());
    if !case.notes.no_edit {
        let mark = case.observed.mark;
        timeline::wait(case.here_mut(), Waiting(value, clock, mark));
    }
    decision.held = Some("waits for what became of our write".to_owned());
    let under_way =
        echo::last_own(case.here()).is_some_and(|w| matches!(w.sent, Sent::InFlight { .. }));
    if (!under_way || case.here().paged) && !outcome.reread.contains(&side) {
        outcome.reread.push(side);
    }
}

/// Stops a field after its last decision until a person has looked.
pub(crate) fn freeze(case: &mut Case<'_>, incumbent: Claim, reason: String, outcome: &mut Outcome) {
    let rule = case.rule.map(|r| r.id);
    let challenger = challenger_claim(case);
    let hold = case.state.hold.get_or_insert_with(Hold::default);
    hold.reason.clone_from(&reason);
    hold.rule = rule;
    hold.claim(incumbent);
    hold.claim(challenger);
    if let Some(decision) = outcome.decisions.last_mut() {
        decision.step = Step::Flapping;
        decision.held = Some(reason);
    }
}
