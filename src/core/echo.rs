//! What a CRM may hold now, and which of its events are our own writes.

use crate::broken::{Mistake, made};
use crate::model::{FieldType, Millis, Value};
use crate::state::{Clock, FieldState, Interval, SENT_MAX, Sent, SentWrite, SideState};
use crate::value::same;

/// The newest write that may have taken effect.
pub(crate) fn last_own(side: &SideState) -> Option<&SentWrite> {
    let unknown = |w: &&SentWrite| matches!(w.sent, Sent::Unknown { .. });
    side.sent
        .iter()
        .rev()
        .filter(|w| !(made(Mistake::UnknownIgnored) && unknown(w)))
        .find(|w| !matches!(w.sent, Sent::Queued | Sent::Failed))
}

/// The same, to note what the CRM showed of it.
pub(crate) fn last_own_mut(side: &mut SideState) -> Option<&mut SentWrite> {
    side.sent
        .iter_mut()
        .rev()
        .find(|w| !matches!(w.sent, Sent::Queued | Sent::Failed))
}

/// The write that waits in the outbox.
pub(crate) fn queued(side: &SideState) -> Option<usize> {
    side.sent.iter().rposition(|w| w.sent == Sent::Queued)
}

/// Forgets what waits in the outbox; whether anything did.
pub(crate) fn withdraw(side: &mut SideState) -> bool {
    let before = side.sent.len();
    side.sent.retain(|w| w.sent != Sent::Queued);
    side.sent.len() < before
}

/// What the CRM's own users left there, as far as we know.
pub(crate) fn known(side: &SideState) -> Option<&Value> {
    side.seen.as_ref().map(|(v, _)| v).or(side.base.as_ref())
}

/// Forgets what never reached a record before it went, and tells what it held then and
/// since when; `None` if that is not remembered, or a person is asked.
pub(crate) fn when_gone(
    state: &mut FieldState,
    side: usize,
    skew_ms: i64,
) -> Option<(Value, Option<Clock>)> {
    let side = state.sides.get_mut(side).filter(|_| state.hold.is_none())?;
    side.sent
        .retain(|w| !matches!(w.sent, Sent::Queued | Sent::Failed));
    let seen = side.seen.as_ref().filter(|(_, clock)| {
        matches!(
            order(side, clock.at, skew_ms),
            Order::NoWrite | Order::After
        )
    });
    match (seen, side.sent.last(), &side.base) {
        (Some((value, clock)), ..) => Some((value.clone(), Some(clock.clone()))),
        (None, Some(write), _) => Some((write.result().clone(), Some(write.clock.clone()))),
        (None, None, base) => Some((base.clone()?, None)),
    }
}

/// Since when a side holds a value that it may hold, if that is remembered; `None` if
/// nothing tells that it may.
pub(crate) fn since(side: &SideState, value: &Value) -> Option<Option<Clock>> {
    let mut sent = side.sent.iter().rev();
    if let Some(write) = sent.find(|w| alike(w.result(), value)) {
        return Some(Some(write.clock.clone()));
    }
    let seen = side.seen.as_ref().filter(|(seen, _)| alike(seen, value));
    let base = side.base.as_ref().filter(|base| alike(base, value));
    seen.map(|(_, clock)| Some(clock.clone()))
        .or_else(|| base.map(|_| None))
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

/// Whether the CRM surely holds `wanted`: whatever may have been stored there
/// last, by everything observed, is that value.
pub(crate) fn holds(side: &SideState, wanted: &Value, field_type: FieldType, skew_ms: i64) -> bool {
    let is = |v: &Value| same(field_type, v, wanted);
    if side.sent.is_empty() {
        return known(side).is_some_and(is);
    }
    let seen = side.seen.as_ref().map(|(_, clock)| clock.at);
    let windows: Vec<Option<Interval>> = side.sent.iter().map(|w| w.window(skew_ms)).collect();
    let sure = |w: &SentWrite| {
        let lost = matches!(w.sent, Sent::Unknown { .. });
        !w.doubted && (!lost || w.confirmed || w.landed.is_some())
    };
    let mut foreign_stays = true;
    for (place, write) in side.sent.iter().enumerate() {
        let Some(window) = windows[place] else {
            continue;
        };
        foreign_stays &= !sure(write) || seen.is_some_and(|seen| !seen.before(window));
        let replaced = seen.is_some_and(|seen| window.before(seen));
        let overtaken = || {
            let mut later = side.sent.iter().enumerate();
            later.any(|(i, w)| sure(w) && follows(side, &windows, skew_ms, (i, place)))
        };
        if !is(write.result()) && !replaced && !overtaken() {
            return false;
        }
    }
    !foreign_stays || known(side).is_some_and(is)
}

/// Whether one write landed after another: writes of a record go one after
/// another, unless one was seen to land after those sent later.
fn follows(
    side: &SideState,
    windows: &[Option<Interval>],
    skew_ms: i64,
    (one, other): (usize, usize),
) -> bool {
    let landed = |place: usize| side.sent[place].landed;
    let (Some(first), Some(second)) = (windows[one], windows[other]) else {
        return false;
    };
    // One that landed after it was given up is overtaken only by what surely
    // came later.
    let late = |landed: Interval| {
        let attempt = side.sent[other].attempt(skew_ms);
        attempt.is_some_and(|a| a.before(landed))
    };
    match one > other {
        true => match landed(other) {
            None => !first.before(second),
            Some(at) if late(at) => at.before(first),
            Some(at) => !first.before(at),
        },
        false => one < other && landed(one).is_some_and(|late| second.before(late)),
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
    let matches = |place: &usize, late: bool| {
        let w = &side.sent[*place];
        let ours = same(field_type, value, w.result());
        let late = late && w.landed.is_none() && matches!(w.sent, Sent::Unknown { .. });
        let timely = w
            .window(skew_ms)
            .is_some_and(|window| window.overlaps(at) || (late && window.from <= at.to));
        // Writes of one record go one after another.
        let overtaken = is_overtaken(side, *place, at, skew_ms);
        // It left after this was told.
        let known = w.after.is_some_and(|after| match at.from == at.to {
            true => at.to <= after,
            false => at.to < after,
        });
        ours && timely && !overtaken && !known
    };
    let places = 0..side.sent.len();
    places
        .clone()
        .find(|p| side.sent[*p].landed.is_some() && matches(p, false))
        .or_else(|| places.clone().find(|p| matches(p, false)))
        .or_else(|| places.clone().find(|p| marked && matches(p, true)))
}

/// Whether another write of the same value may have landed at this time as well.
pub(crate) fn has_twin(
    side: &SideState,
    place: Option<usize>,
    at: Interval,
    field_type: FieldType,
    skew_ms: i64,
) -> bool {
    let Some(found) = place.and_then(|p| side.sent.get(p)) else {
        return false;
    };
    let possible = |w: &SentWrite| {
        w.landed.is_none() && w.window(skew_ms).is_some_and(|window| window.overlaps(at))
    };
    let alike = |w: &&SentWrite| same(field_type, w.result(), found.result()) && possible(w);
    side.sent.iter().filter(alike).count() > 1
}

/// Whether an earlier write landed after this time, and none later than `place` can
/// have landed in its stead.
fn is_overtaken(side: &SideState, place: usize, at: Interval, skew_ms: i64) -> bool {
    let later = |e: &usize| side.sent[*e].landed.is_some_and(|l| at.before(l));
    (0..place).any(|e| later(&e) && twin_after(side, e, place, skew_ms).is_none())
}

/// The write after `place` of the same value as an earlier one, that may have landed
/// when that one seems to.
fn twin_after(side: &SideState, earlier: usize, place: usize, skew_ms: i64) -> Option<usize> {
    let first = &side.sent[earlier];
    let landed = first.landed?;
    let is_twin = |w: &SentWrite| {
        let free = w.landed.is_none() && w.result() == first.result();
        free && w
            .window(skew_ms)
            .is_some_and(|window| window.overlaps(landed))
    };
    (place + 1..side.sent.len()).find(|q| is_twin(&side.sent[*q]))
}

/// Notes when a write landed. A later write that seemed to have landed before
/// was somebody else's doing; an earlier one that seemed to have landed after it was
/// a later one of the same value.
pub(crate) fn landed(side: &mut SideState, place: usize, at: Interval, skew_ms: i64) {
    if is_overtaken(side, place, at, skew_ms) {
        return;
    }
    for earlier in 0..place {
        if side.sent[earlier].landed.is_some_and(|l| at.before(l))
            && let Some(twin) = twin_after(side, earlier, place, skew_ms)
        {
            side.sent[twin].landed = side.sent[earlier].landed.take();
            side.sent[twin].confirmed |= std::mem::take(&mut side.sent[earlier].confirmed);
        }
    }
    side.sent[place].landed = Some(at);
    for later in &mut side.sent[place + 1..] {
        if later.landed.is_some_and(|l| l.before(at)) {
            later.landed = None;
            later.confirmed = false;
        }
    }
}

/// Our mark on a value of ours, later than that write can have landed: an attempt
/// that was given up, or a write that is forgotten. Noted as one of its own, in
/// its place among the others, which is returned.
pub(crate) fn landed_again(
    side: &mut SideState,
    place: usize,
    at: Interval,
    skew_ms: i64,
) -> usize {
    let again = SentWrite {
        sent: Sent::Answered {
            claimed: at.from,
            answered: at.to,
        },
        landed: Some(at),
        confirmed: true,
        doubted: false,
        after: None,
        covers: Vec::new(),
        covered_by: Vec::new(),
        ..side.sent[place].clone()
    };
    make_room(side);
    let ended = |w: &SentWrite| !matches!(w.sent, Sent::Queued | Sent::InFlight { .. });
    let earlier = |w: &SentWrite| ended(w) && w.window(skew_ms).is_none_or(|w| !at.before(w));
    let next = side.sent.iter().rposition(earlier).map_or(0, |p| p + 1);
    side.sent.insert(next, again);
    next
}

/// An event without our mark shows what our newest write wanted, after we had given
/// it up: it landed then, or somebody wrote the same.
pub(crate) fn landed_late(
    side: &mut SideState,
    value: &Value,
    at: Interval,
    field_type: FieldType,
    skew_ms: i64,
) {
    let sent = |w: &SentWrite| !matches!(w.sent, Sent::Queued | Sent::Failed);
    let Some(newest) = side.sent.iter().rposition(sent) else {
        return;
    };
    let write = &side.sent[newest];
    let given_up = matches!(write.sent, Sent::Unknown { .. }) && write.landed.is_none();
    let later = write.window(skew_ms).is_some_and(|w| w.before(at));
    if given_up && later && same(field_type, write.result(), value) {
        landed(side, newest, at, skew_ms);
    }
}

/// The CRM was seen to hold an earlier write: what it answered to those after it
/// proves nothing.
pub(crate) fn doubt_later(side: &mut SideState, shown: &Value, field_type: FieldType) {
    let is = |w: &SentWrite| w.sent != Sent::Queued && same(field_type, w.result(), shown);
    let like = |w: &SentWrite| w.sent != Sent::Queued && alike(&w.value, shown);
    let place = side.sent.iter().rposition(is);
    let place = place.or_else(|| side.sent.iter().rposition(like));
    for write in &mut side.sent[place.map_or(0, |p| p + 1)..] {
        write.doubted |= matches!(write.sent, Sent::Answered { .. } | Sent::Unknown { .. });
    }
}

/// A record read since `read` has not changed since `at`: what was answered between
/// the two had no effect there, whatever the answers said.
pub(crate) fn doubt_effectless(side: &mut SideState, at: Interval, skew_ms: i64, read: Millis) {
    for write in side.sent.iter_mut().filter(|w| w.landed.is_none()) {
        let since = write.window(skew_ms).is_some_and(|w| at.before(w));
        if let Sent::Answered { answered, .. } = write.sent {
            write.doubted |= since && answered < read;
        }
    }
}

/// The CRM was seen to hold what stood there before: the answer proves nothing.
pub(crate) fn doubt_newest(side: &mut SideState) {
    if let Some(newest) = last_own_mut(side) {
        newest.doubted |= matches!(newest.sent, Sent::Answered { .. });
    }
}

/// The write of ours whose normal form an event under our mark shows. Several
/// may have been under way at that time: likeness decides, else the newest
/// that nothing is known of.
pub(crate) fn find_marked(
    side: &SideState,
    value: &Value,
    at: Interval,
    skew_ms: i64,
) -> Option<usize> {
    let possible = |w: &SentWrite| w.attempt(skew_ms).is_some_and(|a| a.overlaps(at));
    let like = |w: &SentWrite| possible(w) && alike(&w.value, value);
    side.sent
        .iter()
        // Of two alike the first: the other may have landed later.
        .position(|w| w.landed.is_none() && like(w))
        .or_else(|| side.sent.iter().rposition(like))
        // One that lands long after it was given up.
        .or_else(|| {
            let sent = |w: &SentWrite| w.attempt(skew_ms).is_some_and(|a| !at.before(a));
            side.sent
                .iter()
                .rposition(|w| sent(w) && alike(&w.value, value))
        })
        .or_else(|| {
            side.sent
                .iter()
                .rposition(|w| possible(w) && w.landed.is_none())
        })
}

/// Equal but for case, spacing and punctuation.
pub(crate) fn alike(a: &Value, b: &Value) -> bool {
    fn text(v: &Value) -> &str {
        v.as_deref().unwrap_or("")
    }
    let (a, b) = (text(a), text(b));
    if a.is_ascii() && b.is_ascii() {
        return ascii_letters(a).eq(ascii_letters(b));
    }
    letters(a).eq(letters(b))
}

fn letters(text: &str) -> impl Iterator<Item = char> {
    let letters = text.chars().filter(|c| c.is_alphanumeric());
    letters.flat_map(char::to_lowercase)
}

/// The same, several times as fast.
fn ascii_letters(text: &str) -> impl Iterator<Item = u8> {
    let letters = text.bytes().filter(u8::is_ascii_alphanumeric);
    letters.map(|c| c.to_ascii_lowercase())
}

/// Whether this CRM is known to store `wanted` as `shown`.
pub(crate) fn stores_as(
    side: &SideState,
    wanted: &Value,
    shown: &Value,
    field_type: FieldType,
) -> bool {
    side.sent.iter().any(|w| {
        same(field_type, &w.value, wanted)
            && w.normal
                .as_ref()
                .is_some_and(|n| same(field_type, n, shown))
    })
}

/// The CRM shows a write as it was sent, or nearly: what was taken for its form of it,
/// though nothing like it, was something else. Whether the row shows that.
pub(crate) fn refute_form(
    side: &mut SideState,
    shown: &Value,
    row: &Value,
    field_type: FieldType,
) -> bool {
    let mut rows = false;
    for write in &mut side.sent {
        let guess = write.normal.as_ref().filter(|n| !alike(n, shown));
        let like = same(field_type, &write.value, shown) || alike(&write.value, shown);
        if let Some(guess) = guess.filter(|_| like) {
            rows |= same(field_type, guess, row);
            write.normal = None;
        }
    }
    rows
}

/// What this CRM will make of a value, as far as it showed us.
pub(crate) fn stored_form(side: &SideState, value: Value, field_type: FieldType) -> Value {
    side.sent
        .iter()
        .rev()
        .find(|w| same(field_type, &w.value, &value) && w.normal.is_some())
        .and_then(|w| w.normal.clone())
        .unwrap_or(value)
}

/// Remembers what the CRM's users wrote, if it is the newest of its kind.
pub(crate) fn record_seen(side: &mut SideState, value: &Value, clock: &Clock) {
    let older = side
        .seen
        .as_ref()
        .is_some_and(|(_, seen)| clock.at.before(seen.at));
    if !older && !made(Mistake::SeenForgotten) {
        side.seen = Some((value.clone(), clock.clone()));
    }
}

/// Puts a write into the outbox, in place of one that waits there. What is held
/// for approval takes the place of nothing that is on its way.
pub(crate) fn enqueue(side: &mut SideState, value: &Value, clock: &Clock, held: bool) {
    side.sent
        .retain(|w| w.sent != Sent::Queued || held && !w.held);
    make_room(side);
    side.sent.push(SentWrite {
        held,
        ..SentWrite::queued(value, clock)
    });
}

/// Forgets the oldest writes where one more would be too many.
fn make_room(side: &mut SideState) {
    while side.sent.len() >= SENT_MAX {
        let done = |w: &SentWrite| !matches!(w.sent, Sent::InFlight { .. });
        let oldest = side.sent.iter().position(done).unwrap_or(0);
        side.sent.remove(oldest);
    }
}
