//! What a CRM may hold now, and which of its events are our own writes.

use crate::model::{FieldType, Value};
use crate::state::{Clock, Interval, SENT_MAX, Sent, SentWrite, SideState};
use crate::value::same;

/// The newest write that may have taken effect.
pub(crate) fn last_own(side: &SideState) -> Option<&SentWrite> {
    side.sent
        .iter()
        .rev()
        .find(|w| !matches!(w.sent, Sent::Queued | Sent::Failed))
}

/// The write that waits in the outbox.
pub(crate) fn queued(side: &SideState) -> Option<usize> {
    side.sent.iter().rposition(|w| w.sent == Sent::Queued)
}

/// What the CRM's own users left there, as far as we know.
pub(crate) fn known(side: &SideState) -> Option<&Value> {
    side.seen.as_ref().map(|(v, _)| v).or(side.base.as_ref())
}

/// How a stamp of the CRM lies to our newest write there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Nothing of ours may be there.
    NoWrite,
    /// Surely older than our write.
    Before,
    /// Surely newer.
    After,
    /// The clocks cannot say.
    Unclear,
}

/// Order of a stamp against our newest write.
pub(crate) fn order(side: &SideState, at: Interval, skew_ms: i64) -> Order {
    match last_own(side).and_then(|w| w.window(skew_ms)) {
        None => Order::NoWrite,
        Some(window) if at.before(window) => Order::Before,
        Some(window) if window.before(at) => Order::After,
        Some(_) => Order::Unclear,
    }
}

/// Whether the CRM surely holds `wanted`, going by everything observed.
pub(crate) fn holds(side: &SideState, wanted: &Value, field_type: FieldType, skew_ms: i64) -> bool {
    let is = |v: &Value| same(field_type, v, wanted);
    let foreign = known(side).is_some_and(is);
    let Some(own) = last_own(side) else {
        return foreign;
    };
    let ours = is(own.result());
    if own.confirmed && own.landed.is_none() && ours && side.seen.is_none() {
        return true;
    }
    let place = match &side.seen {
        None => Order::Before,
        Some((_, clock)) => order(side, clock.at, skew_ms),
    };
    match place {
        Order::After | Order::NoWrite => foreign,
        Order::Before if !matches!(own.sent, Sent::Unknown { .. }) || own.landed.is_some() => ours,
        Order::Before | Order::Unclear => ours && foreign,
    }
}

/// Whether a value and a stamp are one of our writes coming back: the value
/// was sent, and the stamp is in that write's window. For a write without an
/// answer our mark opens the window to the end, because it may land late.
pub(crate) fn find(
    side: &SideState,
    value: &Value,
    at: Interval,
    marked: bool,
    field_type: FieldType,
    skew_ms: i64,
) -> Option<usize> {
    let matches = |w: &SentWrite| {
        let ours = same(field_type, value, &w.value)
            || w.normal
                .as_ref()
                .is_some_and(|n| same(field_type, value, n));
        let late = marked && w.landed.is_none() && matches!(w.sent, Sent::Unknown { .. });
        ours && w
            .window(skew_ms)
            .is_some_and(|window| window.overlaps(at) || (late && window.from <= at.to))
    };
    let again = |w: &SentWrite| w.landed.is_some() && matches(w);
    side.sent
        .iter()
        .position(again)
        .or_else(|| side.sent.iter().position(matches))
}

/// The write of ours whose normal form an event under our mark shows.
pub(crate) fn find_marked(side: &SideState, at: Interval, skew_ms: i64) -> Option<usize> {
    let place = side
        .sent
        .iter()
        .rposition(|w| w.window(skew_ms).is_some())?;
    let open = side.sent[place].landed.is_none()
        && side.sent[place]
            .window(skew_ms)
            .is_some_and(|window| window.overlaps(at));
    open.then_some(place)
}

/// Remembers what the CRM's users wrote, if it is the newest of its kind.
pub(crate) fn record_seen(side: &mut SideState, value: &Value, clock: &Clock) {
    let older = side
        .seen
        .as_ref()
        .is_some_and(|(_, seen)| clock.at.before(seen.at));
    if !older {
        side.seen = Some((value.clone(), clock.clone()));
    }
}

/// Puts a write into the outbox, in place of one that waits there.
pub(crate) fn enqueue(side: &mut SideState, value: &Value, clock: &Clock) {
    if let Some(place) = queued(side) {
        side.sent.remove(place);
    }
    while side.sent.len() >= SENT_MAX {
        let done = |w: &SentWrite| !matches!(w.sent, Sent::InFlight { .. });
        let oldest = side.sent.iter().position(done).unwrap_or(0);
        side.sent.remove(oldest);
    }
    side.sent.push(SentWrite {
        value: value.clone(),
        sent: Sent::Queued,
        clock: clock.clone(),
        landed: None,
        confirmed: false,
        normal: None,
    });
}
