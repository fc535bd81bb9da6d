//! Who knew of whom, and what follows from rarer decisions: an edit that waits, a
//! field that stops, an earlier edit that stands again.

use crate::broken::{Mistake, made};
use crate::decide::{Case, Decision, Outcome, Source, Step};
use crate::echo;
use crate::effect::{accept, challenger_claim, incumbent_origin, put_back, review};
use crate::mapping::between;
use crate::model::Value;
use crate::state::{Claim, Hold, Interval, Sent, SentWrite};
use crate::timeline;
use crate::value::same;

impl Case<'_> {
    /// Whether the two values were written without knowledge of each other.
    pub(crate) fn concurrent(&self) -> bool {
        if made(Mistake::NoConflictSeen) {
            return false;
        }
        if self.observed.source == Source::Local {
            return self
                .old
                .is_some_and(|old| !same(self.column.field_type, old, &self.held));
        }
        let here = self.here();
        let Some(clock) = &self.state.clock else {
            return false;
        };
        if clock.origin == self.observed.origin {
            return false;
        }
        // Nothing was sent because this side showed the same value: an edit
        // from before that value was written cannot have known it.
        let Some(last) = here.sent.last() else {
            return !clock.at.before(self.observed.at);
        };
        let skew = self.policy.tolerance_ms();
        // It stood there before, though it may have been sent again since, in the
        // form that the CRM made of it. The same value written anew, after another
        // one, is another edit.
        let stood = |(place, w): (usize, &SentWrite)| {
            let there = matches!(w.sent, Sent::Answered { .. }) || w.landed.is_some();
            let same = w.value == last.value || w.result() == last.result();
            let window = w.window(skew).filter(|_| there && same);
            window.is_some_and(|window| {
                window.before(self.observed.at)
                    && (w.clock == last.clock || !self.written_over(place, window, last))
            })
        };
        !here.sent.iter().enumerate().any(stood)
    }

    /// Whether another value than the newest may have stood on this side since one
    /// of our writes landed there.
    fn written_over(&self, place: usize, landed: Interval, newest: &SentWrite) -> bool {
        let here = self.here();
        let edited = here.seen.as_ref();
        let sent = |w: &SentWrite| !matches!(w.sent, Sent::Queued | Sent::Failed);
        edited.is_some_and(|(v, c)| landed.before(c.at) && v != newest.result())
            || here.sent[place + 1..]
                .iter()
                .any(|w| sent(w) && w.value != newest.value && w.result() != newest.result())
    }
}

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
        timeline::wait(case.here_mut(), &value, &clock);
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
