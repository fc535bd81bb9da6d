//! The life of a write: from the outbox to what the CRM made of it.

use crate::echo;
use crate::model::{Millis, Value};
use crate::state::{Clock, FieldState, Interval, Sent, SentWrite, SideState};

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The CRM accepted it; `echoed` is the value that the answer showed.
    Done {
        /// In the CRM's normal form.
        echoed: Option<Value>,
    },
    /// It is not there, and is not tried again as it is.
    Failed,
    /// It is not there, and waits in the outbox for another try.
    Retry,
    /// The answer was lost.
    Unknown,
}

/// A write leaves the outbox; told twice is told once. A write sent again keeps
/// its first time: either attempt may be the one that lands.
pub fn claimed(state: &mut FieldState, side: usize, value: &Value, now: Millis) {
    let Some(side) = state.sides.get_mut(side) else {
        return;
    };
    let under_way = |w: &SentWrite| w.value == *value && matches!(w.sent, Sent::InFlight { .. });
    if side.sent.iter().any(under_way) {
        return;
    }
    let told = side.seen.as_ref().map(|(_, c)| c.at.to);
    let waiting = side
        .sent
        .iter_mut()
        .rev()
        .find(|w| w.value == *value && !matches!(w.sent, Sent::Answered { .. }));
    if let Some(write) = waiting {
        let first = match write.sent {
            Sent::Unknown { claimed, .. } => claimed,
            _ => {
                write.after = told;
                now
            }
        };
        write.sent = Sent::InFlight { claimed: first };
        write.held = false;
        return;
    }
    // Approved meanwhile and then queued again: the outbox kept the first, too.
    if let Some(place) = echo::queued(side) {
        let clock = side.sent[place].clock.clone();
        let write = SentWrite {
            sent: Sent::InFlight { claimed: now },
            after: told,
            ..SentWrite::queued(value, &clock)
        };
        side.sent.insert(place, write);
    }
}

/// Notes that a value waits for a side in the outbox, in place of another.
pub fn queue(state: &mut FieldState, side: usize, value: &Value, clock: &Clock) {
    if let Some(side) = state.sides.get_mut(side) {
        echo::enqueue(side, value, clock, false);
    }
}

/// Forgets what waits for a side in the outbox: it was taken out of there.
pub fn withdraw(state: &mut FieldState, side: usize) {
    if let Some(side) = state.sides.get_mut(side) {
        echo::withdraw(side);
    }
}

/// A write came back. Returns the value that the mirror row should show
/// instead, where the CRM stored another form of it and it is still wanted.
pub fn answered(
    state: &mut FieldState,
    side: usize,
    value: &Value,
    result: Answer,
    now: Millis,
) -> Option<Value> {
    let claims = state.hold.iter().flat_map(|h| &h.claims);
    // A person is asked about what somebody wrote there in the meantime.
    let contested = claims.filter(|c| c.side == side).any(|c| c.value != *value);
    let side = state.sides.get_mut(side)?;
    let place = side
        .sent
        .iter()
        .rposition(|w| w.value == *value && matches!(w.sent, Sent::InFlight { .. }))?;
    // What waits for approval may never leave.
    let newest = side.sent[place + 1..].iter().all(|w| w.held);
    let stood = |side: &SideState, value: &Value| {
        let earlier = side.sent[..place].iter().any(|w| w.result() == value);
        earlier || echo::known(side) == Some(value)
    };
    let kept = matches!(&result, Answer::Done { echoed: Some(shown) } if stood(side, shown));
    let write = &mut side.sent[place];
    let Sent::InFlight { claimed } = write.sent else {
        return None;
    };
    match result {
        Answer::Failed => write.sent = Sent::Failed,
        // A newer write in the outbox has taken its place.
        Answer::Retry if newest && !contested => write.sent = Sent::Queued,
        Answer::Retry => {
            side.sent.remove(place);
        }
        Answer::Unknown => {
            write.sent = Sent::Unknown {
                claimed,
                given_up: now,
            }
        }
        Answer::Done { echoed } => {
            write.sent = Sent::Answered {
                claimed,
                answered: now,
            };
            if crate::broken::made(crate::broken::Mistake::AnswerIsLanding) {
                write.landed = Some(Interval::instant(now));
                write.confirmed = true;
            }
            let echoed = echoed?;
            // Something else than a form of ours: somebody's edit, or the CRM kept
            // what it had (a stage that only goes forward). What it shows tells.
            if !is_form(&echoed, &write.value) {
                write.kept = kept.then_some(echoed);
                return None;
            }
            write.confirmed = true;
            let changed = echoed != write.value;
            if changed && write.normal.is_none() {
                write.normal = Some(echoed.clone());
            }
            return (changed && newest).then_some(echoed);
        }
    }
    None
}

/// Whether an answer shows what was sent, in whatever form.
pub fn is_form(echoed: &Value, sent: &Value) -> bool {
    echo::alike(echoed, sent)
}

/// A write came back undone and may be tried again. Whether it is still wanted:
/// no newer one waits, and no person is asked about what somebody wrote there
/// since.
pub fn retry(state: &mut FieldState, side: usize, value: &Value, now: Millis) -> bool {
    let known = is_in_flight(state, side, value);
    answered(state, side, value, Answer::Retry, now);
    !known || has_sent(state, side, value, |s| *s == Sent::Queued)
}

/// Whether a write of this value is under way.
pub fn is_in_flight(state: &FieldState, side: usize, value: &Value) -> bool {
    has_sent(state, side, value, |s| matches!(s, Sent::InFlight { .. }))
}

fn has_sent(state: &FieldState, side: usize, value: &Value, is: fn(&Sent) -> bool) -> bool {
    let writes = state.sides.get(side).map(|s| &s.sent);
    writes.is_some_and(|all| all.iter().any(|w| w.value == *value && is(&w.sent)))
}
