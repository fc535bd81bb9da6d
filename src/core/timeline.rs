//! What one CRM held when, as far as it was told: the base, the edits of its
//! users, our own writes. An edit is counted against what stood there before
//! it, and once, whatever number of times and in whatever order it is told.

use crate::broken::{Mistake, made};
use crate::model::{FieldType, Millis, Value};
use crate::state::{Clock, Interval, PAST_MAX, SENT_MAX, Sent, SentWrite, SideState, Waiting};
use crate::value::same;

/// Where an edit lies in the history of its side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Counted already.
    Known,
    /// A later edit of the same side was made on top of it and counts for both.
    Superseded,
    /// It was made on top of this value.
    After(Value),
    /// Whether a write of ours came before or after it is not known. `before`:
    /// the value is one that may have stood there anyway.
    Unclear { before: bool },
    /// It is older than what is remembered, or the sides never agreed.
    Unknown,
}

/// Whether a write of ours took effect.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Sure,
    Maybe,
    Never,
}

fn fate(write: &SentWrite) -> Fate {
    match write.sent {
        Sent::Queued | Sent::Failed => Fate::Never,
        Sent::Answered { .. } => Fate::Sure,
        _ if write.landed.is_some() || write.confirmed => Fate::Sure,
        Sent::InFlight { .. } | Sent::Unknown { .. } => Fate::Maybe,
    }
}

/// When, by the CRM's clock, a write may have taken effect: not before the edits
/// that we had been told of when it left. Those tell nothing of another edit of their
/// second (`of`).
fn window(write: &SentWrite, of: Option<Interval>, skew_ms: i64) -> Option<Interval> {
    let mut window = write.window(skew_ms)?;
    let twin = |after: Millis| of.filter(|of| of.from <= after && after <= of.to);
    let after =
        (write.after).map(|after| twin(after).map_or(after, |of| of.from.saturating_sub(1)));
    if let Some(after) = after.filter(|after| *after >= window.from) {
        window.from = after.saturating_add(1).min(window.to);
    }
    Some(window)
}

/// The writes of a side with their windows, in the order they were sent. Writes of
/// one record follow one another: what left after an answer landed after what was
/// answered, by whatever clock.
fn windows(side: &SideState, of: Interval, skew_ms: i64) -> Vec<(&SentWrite, Interval)> {
    let follows = |late: &SentWrite, early: &SentWrite| match (early.sent, late.sent) {
        (
            Sent::Answered { answered, .. },
            Sent::InFlight { claimed }
            | Sent::Answered { claimed, .. }
            | Sent::Unknown { claimed, .. },
        ) => answered <= claimed,
        _ => false,
    };
    let narrowed = |(i, write): (usize, &SentWrite)| {
        let mut window = window(write, Some(of), skew_ms)?;
        let earlier = side.sent[..i].iter().filter(|early| follows(write, early));
        if let Some(floor) = earlier.filter_map(|w| w.landed).map(|l| l.from).max() {
            window.from = window.from.max(floor);
            window.to = window.to.max(window.from);
        }
        let later = side.sent[i + 1..]
            .iter()
            .filter(|late| follows(late, write));
        if let Some(roof) = later.filter_map(|w| w.landed).map(|l| l.to).min() {
            window.to = window.to.min(roof);
            window.from = window.from.min(window.to);
        }
        Some(window)
    };
    let sent = side.sent.iter().enumerate();
    sent.filter_map(|(i, write)| Some((write, narrowed((i, write))?)))
        .collect()
}

/// Edits that were counted, with their times.
pub(crate) fn edits(side: &SideState) -> impl Iterator<Item = (&Value, Interval)> {
    let seen = side.seen.as_ref().map(|(v, c)| (v, c.at));
    side.past.iter().map(|(v, at)| (v, *at)).chain(seen)
}

/// The place of an edit.
pub(crate) fn place(
    side: &SideState,
    value: &Value,
    at: Interval,
    field_type: FieldType,
    skew_ms: i64,
) -> Place {
    let told = |(v, t): (&Value, Interval)| t.overlaps(at) && same(field_type, v, value);
    if edits(side).any(told) {
        if made(Mistake::DuplicatesCount) {
            return Place::After(side.base.clone().flatten());
        }
        return Place::Known;
    }
    let previous = edits(side)
        .filter(|(_, t)| !at.before(*t))
        .max_by_key(|(_, t)| (t.to, t.from));
    let next = edits(side)
        .filter(|(_, t)| at.before(*t))
        .min_by_key(|(_, t)| (t.from, t.to));
    let forgotten = side.past.len() >= PAST_MAX || side.sent.len() >= SENT_MAX;
    if forgotten && previous.is_none() && next.is_some() {
        return Place::Unknown;
    }
    if let Some(next) = next
        && let Some(place) = overtaken(side, (value, at), next, field_type, skew_ms)
    {
        return place;
    }
    match before(side, previous, (value, at), field_type, skew_ms) {
        Ok(saw) if same(field_type, &saw, value) => Place::Known,
        Ok(saw) => Place::After(saw),
        Err(possible) if possible.is_empty() => Place::Unknown,
        Err(possible) => Place::Unclear {
            before: possible.iter().any(|v| same(field_type, v, value)),
        },
    }
}

/// How long after its answer the stamp of a write is waited for: its own event,
/// which is late or lost, tells it.
const STAMP_WAIT_MS: Millis = 5_000;

/// Whether a record asked for at this time shows what our newest write left, and
/// nothing more will be heard of those before it.
pub(crate) fn is_decisive(side: &SideState, asked_at: Option<Millis>) -> bool {
    let Some(asked) = asked_at else {
        return false;
    };
    let Some(newest) = crate::echo::last_own(side) else {
        return true;
    };
    let shown = match newest.sent {
        Sent::Answered { answered: end, .. } | Sent::Unknown { given_up: end, .. } => asked > end,
        Sent::Queued | Sent::InFlight { .. } | Sent::Failed => false,
    };
    shown
        && !side
            .sent
            .iter()
            .any(|w| !std::ptr::eq(w, newest) && is_awaited(w, asked))
}

/// Whether edits wait that a page asked for then could not place, as events of
/// our writes may still tell: should those be lost, a later page has to.
pub(crate) fn awaits_stamps(side: &SideState, asked: Millis, skew_ms: i64) -> bool {
    !side.waiting.is_empty()
        && (side.sent.iter().any(|w| is_awaited(w, asked))
            || side.waiting.iter().any(|w| !is_in(w.1.at, asked, skew_ms)))
}

/// Whether an edit was surely made before a record was asked for.
pub(crate) fn is_in(edit: Interval, asked: Millis, skew_ms: i64) -> bool {
    edit.to.saturating_add(skew_ms) < asked
}

/// Whether the event of an answered write may still tell when it landed.
fn is_awaited(write: &SentWrite, asked: Millis) -> bool {
    match write.sent {
        Sent::Answered { answered, .. } => {
            write.landed.is_none() && asked < answered.saturating_add(STAMP_WAIT_MS)
        }
        _ => false,
    }
}

/// How an edit lies to a write of ours.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lies {
    Before,
    After,
    Open,
}

/// By what a page showed of the two, else by time.
fn lies(
    (value, at): (&Value, Interval),
    (write, window): (&SentWrite, Interval),
    field_type: FieldType,
) -> Lies {
    let listed = |list: &[(Value, Interval)]| {
        let is = |(v, t): &(Value, Interval)| t.overlaps(at) && same(field_type, v, value);
        list.iter().any(is)
    };
    match () {
        () if listed(&write.covers) => Lies::Before,
        () if listed(&write.covered_by) => Lies::After,
        () if at.before(window) => Lies::Before,
        () if window.before(at) => Lies::After,
        () => Lies::Open,
    }
}

/// The same of an edit that was counted: it may have been known when the write left.
fn lay(edit: (&Value, Interval), of: (&SentWrite, Interval), field_type: FieldType) -> Lies {
    let known = of.0.after.is_some_and(|after| edit.1.to <= after);
    match lies(edit, of, field_type) {
        Lies::Open if known => Lies::Before,
        lies => lies,
    }
}

/// An edit that was followed by another counts only if a write of ours came
/// between and covered it.
fn overtaken(
    side: &SideState,
    edit: (&Value, Interval),
    next: (&Value, Interval),
    field_type: FieldType,
    skew_ms: i64,
) -> Option<Place> {
    let mut unclear = false;
    for of in windows(side, edit.1, skew_ms) {
        let (first, then) = (lies(edit, of, field_type), lay(next, of, field_type));
        if first == Lies::After || then == Lies::Before {
            continue;
        }
        if fate(of.0) == Fate::Sure && (first, then) == (Lies::Before, Lies::After) {
            return None;
        }
        unclear = true;
    }
    Some(if unclear {
        Place::Unclear { before: false }
    } else {
        Place::Superseded
    })
}

/// The value on top of which an edit was made, or those that it may be.
fn before<'s>(
    side: &'s SideState,
    previous: Option<(&'s Value, Interval)>,
    edit: (&Value, Interval),
    field_type: FieldType,
    skew_ms: i64,
) -> Result<Value, Vec<&'s Value>> {
    let mut possible: Vec<&Value> = Vec::new();
    let mut ours = false;
    for of in windows(side, edit.1, skew_ms).into_iter().rev() {
        let here = lies(edit, of, field_type);
        let earlier = previous.map_or(Lies::Before, |p| lay(p, of, field_type));
        if here == Lies::Before || earlier == Lies::After {
            continue;
        }
        possible.push(of.0.result());
        if fate(of.0) == Fate::Sure && (earlier, here) == (Lies::Before, Lies::After) {
            ours = true;
            break;
        }
    }
    if !ours {
        let known = previous.map(|(v, _)| v).or(side.base.as_ref());
        possible.push(known.ok_or_else(Vec::new)?);
    }
    match possible.split_first() {
        Some((first, rest)) if rest.iter().all(|v| same(field_type, first, v)) => {
            Ok((*first).clone())
        }
        _ => Err(possible),
    }
}

/// Notes an edit as counted.
pub(crate) fn record(side: &mut SideState, value: &Value, clock: &Clock) {
    let is = |(v, t): &(Value, Interval)| v == value && t.overlaps(clock.at);
    // What left before this edit was known followed others of its second only.
    for write in (side.sent.iter_mut()).filter(|w| !w.covers.iter().any(is)) {
        let twin = |after: &Millis| clock.at.from <= *after && *after <= clock.at.to;
        if write.after.as_ref().is_some_and(twin) {
            write.after = Some(clock.at.from.saturating_sub(1));
        }
    }
    let older = side
        .seen
        .as_ref()
        .is_some_and(|(_, seen)| clock.at.before(seen.at));
    let edit = if older {
        Some((value.clone(), clock.at))
    } else {
        let shown = side.seen.replace((value.clone(), clock.clone()));
        shown.map(|(v, c)| (v, c.at))
    };
    side.past.extend(edit);
    trim(side);
}

/// Keeps what was counted in order, and bounded.
fn trim(side: &mut SideState) {
    side.past.sort_by_key(|(_, at)| (at.to, at.from));
    let surplus = side.past.len().saturating_sub(PAST_MAX);
    side.past.drain(..surplus);
}

/// An edit whose place is unclear waits.
pub(crate) fn wait(side: &mut SideState, edit: Waiting) {
    let Waiting(value, clock, mark) = &edit;
    let same = |w: &&mut Waiting| w.0 == *value && w.1.at.overlaps(clock.at);
    match side.waiting.iter_mut().find(same) {
        // Told again by another way, which may name the writer or not.
        Some(known) if known.2.is_none() => known.2 = *mark,
        Some(_) => {}
        None => {
            side.waiting.push(edit);
            in_order(&mut side.waiting);
        }
    }
}

fn in_order(waiting: &mut [Waiting]) {
    waiting.sort_by_key(|Waiting(_, c, _)| (c.at.from, c.at.to));
}

/// What a page showed still stands: the events of its second came before it, if the
/// record was asked for after them.
fn close_second(
    side: &mut SideState,
    shown: &Value,
    asked_at: Millis,
    field_type: FieldType,
    skew_ms: i64,
) {
    if let Some((value, clock)) = side.seen.clone()
        && same(field_type, &value, shown)
    {
        let paged = side.paged;
        let twin = |at: Interval| at.from == at.to && at == clock.at;
        let beside = |at: Interval| match paged {
            true => at.overlaps(clock.at),
            false => twin(at),
        };
        let before = |c: &Clock| beside(c.at) && is_in(c.at, asked_at, skew_ms);
        for Waiting(value, earlier, _) in side.waiting.extract_if(.., |w| before(&w.1)) {
            side.past.push((value, earlier.at));
        }
        trim(side);
    }
}

/// Of the edits that wait, the one that a page shows came last in its second.
fn turn_to_last(side: &mut SideState, shown: &Value, field_type: FieldType) {
    let is = |w: &Waiting| same(field_type, &w.0, shown);
    let newest = side.waiting.iter().map(|w| w.1.seq).max();
    if let (Some(place), Some(newest)) = (side.waiting.iter().position(is), newest)
        && place + 1 < side.waiting.len()
    {
        let mut last = side.waiting.remove(place);
        last.1.seq = newest.saturating_add(1);
        side.waiting.push(last);
        in_order(&mut side.waiting);
    }
}

/// A page shows a write of ours: it came after the edits that were surely made
/// before the record was asked for.
fn stands_over(
    write: &mut SentWrite,
    window: Interval,
    waiting: Vec<(Value, Interval)>,
    asked_at: Millis,
    field_type: FieldType,
    skew_ms: i64,
) {
    let shown = write.result().clone();
    let mut first = waiting.clone();
    first.retain(|(_, t)| is_in(*t, asked_at, skew_ms));
    let last = first.iter().map(|(_, t)| t.to).max();
    let Some(last) = last else { return };
    write.after = write.after.max(Some(last));
    write.confirmed = true;
    // It landed long after it was given up, and its event has no mark.
    let own = |(v, t): &&(Value, Interval)| same(field_type, v, &shown) && window.before(*t);
    if let (Sent::Unknown { .. }, Some((_, late))) = (write.sent, waiting.iter().find(own)) {
        write.landed = write.landed.or(Some(*late));
    }
    first.retain(|edit| !same(field_type, &edit.0, &shown) && !write.covers.contains(edit));
    write.covers.extend(first);
    let surplus = write.covers.len().saturating_sub(PAST_MAX);
    write.covers.drain(..surplus);
}

/// A record that was asked for after our newest write was answered shows what
/// came last: our write, or the edit.
pub(crate) fn order_by_page(
    side: &mut SideState,
    shown: &Value,
    at: Interval,
    asked_at: Millis,
    field_type: FieldType,
    skew_ms: i64,
) {
    close_second(side, shown, asked_at, field_type, skew_ms);
    // Of edits made after it was asked for it says nothing.
    if side
        .waiting
        .iter()
        .all(|w| is_in(w.1.at, asked_at, skew_ms))
    {
        turn_to_last(side, shown, field_type);
    }
    // An edit that is newer than all that the page tells of is not in it.
    let waiting: Vec<(Value, Interval)> = side
        .waiting
        .iter()
        .filter(|w| !at.before(w.1.at))
        .map(|Waiting(v, c, _)| (v.clone(), c.at))
        .collect();
    // A stamp that shows whole seconds leaves open what came first in its second.
    let open = |w: &SentWrite| match w.landed {
        None => true,
        Some(landed) => waiting.iter().any(|(_, t)| t.overlaps(landed)),
    };
    // What is under way and does not show has not landed: the one before tells.
    let passed = |w: &SentWrite| {
        matches!(w.sent, Sent::InFlight { .. }) && !same(field_type, w.result(), shown)
    };
    let ours = |w: &&mut SentWrite| !matches!(w.sent, Sent::Queued | Sent::Failed) && !passed(w);
    let newest = side.sent.iter_mut().rev().find(ours);
    let Some(write) = newest.filter(|w| open(w)) else {
        return;
    };
    let (Sent::Answered { answered: end, .. } | Sent::Unknown { given_up: end, .. }) = write.sent
    else {
        return;
    };
    let Some(window) = window(write, None, skew_ms).filter(|_| asked_at > end) else {
        return;
    };
    if same(field_type, write.result(), shown) {
        stands_over(write, window, waiting, asked_at, field_type, skew_ms);
    } else if write.landed.is_some() {
        let edit = waiting.iter().find(|(v, _)| same(field_type, v, shown));
        write.covered_by = edit.cloned().into_iter().collect();
    } else if matches!(write.sent, Sent::Answered { .. }) {
        let edit = waiting.iter().find(|(v, _)| same(field_type, v, shown));
        let edit = match edit {
            Some((_, t)) => *t,
            None if waiting.is_empty() => at,
            None => return,
        };
        // Its own event may name the second of the edit on top of it.
        let to = edit.to.min(window.to);
        let from = window.from.min(to);
        write.landed = Some(Interval { from, to });
        write.covered_by = vec![(shown.clone(), Interval { from, to: edit.to })];
    }
}
