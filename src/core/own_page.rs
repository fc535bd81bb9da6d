//! What a page tells of our own writes. Its stamp is the record's: any field may
//! have changed then.

use crate::case::{Case, Keep, Source};
use crate::echo::{self, Order};
use crate::model::{FieldType, Millis, Value};
use crate::state::{Clock, Interval, Sent, SentWrite, SideState};
use crate::timeline;
use crate::value::same;

/// How old what a page shows can be when it is decided, index lag included.
pub(crate) const READ_AGE_MS: i64 = 120_000;

/// A page that shows one of our writes although a newer one may have landed by
/// then: somebody may have set the value back. What is held is sent again.
pub(crate) fn shows_earlier_write(case: &Case<'_>) -> bool {
    let field_type = case.column.field_type;
    let Some(newest) = echo::last_own(case.here()) else {
        return false;
    };
    let current = echo::alike(&newest.value, case.value);
    let form = |w: &SentWrite| !current && echo::alike(&w.value, case.value);
    let written = |w: &SentWrite| {
        w.sent != Sent::Queued && (case.is(w.result()) || form(w)) && !is_replaced(case, w)
    };
    if same(field_type, newest.result(), case.value) || !case.here().sent.iter().any(written) {
        return false;
    }
    match (newest.sent, case.order()) {
        (Sent::InFlight { .. }, _) => false,
        (_, Order::Unclear | Order::After) => true,
        (
            Sent::Answered { answered: end, .. } | Sent::Unknown { given_up: end, .. },
            Order::Before,
        ) => newest.landed.is_none() && case.now - end > READ_AGE_MS,
        _ => false,
    }
}

/// Whether somebody surely wrote over a write of ours, and what is shown is later: by
/// its stamp, or, in the same second, because it was asked for later.
fn is_replaced(case: &Case<'_>, write: &SentWrite) -> bool {
    let (at, skew) = (case.observed.at, case.policy.tolerance_ms());
    let edited = case.here().seen.as_ref().map(|(_, clock)| clock.at);
    let window = write.window(skew);
    let later = |edited: Interval| {
        let asked = case.observed.asked_at;
        let asked_later = asked.is_some_and(|asked| timeline::is_in(edited, asked, skew));
        edited.before(at) || (asked_later && edited.overlaps(at))
    };
    edited.is_some_and(|e| later(e) && window.is_some_and(|w| w.before(e)))
}

/// A page that shows what our newest write left there, under the stamp of
/// another field: nobody has changed it since.
pub(crate) fn still_shows_ours(case: &Case<'_>) -> bool {
    let skew = case.policy.tolerance_ms();
    let seen = case.here().seen.as_ref().map(|(_, clock)| clock.at);
    let replaced = |w: &SentWrite| {
        let window = w.window(skew);
        seen.is_some_and(|seen| window.is_some_and(|w| w.before(seen)))
    };
    // Sent again before its form was known, it has none by itself.
    let field_type = case.column.field_type;
    let form = |w: &SentWrite| echo::stores_as(case.here(), &w.value, case.value, field_type);
    case.observed.source == Source::Page
        && echo::last_own(case.here())
            .is_some_and(|w| (case.is(w.result()) || form(w)) && !replaced(w))
}

/// A page that shows our newest write as this CRM seems to spell it: a page has
/// no mark, and nobody wrote there since. Learned as the form of our write.
pub(crate) fn shows_our_form(case: &mut Case<'_>) -> Option<Keep> {
    let skew = case.policy.tolerance_ms();
    let (value, field_type) = (case.value.clone(), case.column.field_type);
    let held = case.held.clone();
    if case.observed.source != Source::Page || case.merges() {
        return None;
    }
    let newest = is_newest(case, skew)?;
    let news = !echo::known(case.here()).is_some_and(|k| case.is(k))
        && !case.here().sent.iter().any(|w| case.is(w.result()));
    let own = echo::last_own_mut(case.here_mut()).filter(|_| news)?;
    let unknown = own.normal.is_none() && !same(field_type, &own.value, &value);
    if !unknown || !echo::alike(&own.value, &value) {
        return None;
    }
    own.confirmed |= newest;
    own.normal = Some(value);
    Some(if same(field_type, &own.value, &held) {
        Keep::RowOnly
    } else {
        Keep::Nothing
    })
}

/// Whether what a page shows may be what our newest write left there, or (`false`)
/// only what an earlier one of the same value did: the stamp is not from before that,
/// and nobody wrote anything else after it.
fn is_newest(case: &Case<'_>, skew_ms: i64) -> Option<bool> {
    let (here, at) = (case.here(), case.observed.at);
    let sent = here.sent.iter().rev();
    let mut sent = sent.filter(|w| !matches!(w.sent, Sent::Queued | Sent::Failed));
    let newest = sent.next()?;
    let stands = |w: &SentWrite| {
        let window = w.window(skew_ms);
        let replaced = |(v, c): &(Value, Clock)| {
            !echo::alike(v, &w.value) && window.is_none_or(|w| w.before(c.at))
        };
        window.is_some_and(|w| !at.before(w)) && !here.seen.as_ref().is_some_and(replaced)
    };
    if stands(newest) {
        return Some(true);
    }
    let mut again = sent.take_while(|w| w.value == newest.value);
    again.any(stands).then_some(false)
}

/// Whether a page shows what its users wrote and what we wrote there again: since
/// when it stands there nobody can tell, and edits in between may still be told.
pub(crate) fn is_own_too(case: &Case<'_>) -> bool {
    let (here, skew) = (case.here(), case.policy.tolerance_ms());
    let again = |seen: Interval| {
        here.sent.iter().any(|w| {
            let later = w.window(skew).is_some_and(|w| !w.before(seen));
            later && case.is(w.result())
        })
    };
    let seen = here.seen.as_ref().filter(|(v, _)| case.is(v));
    case.observed.source == Source::Page && seen.is_some_and(|(_, c)| again(c.at))
}

/// A page that shows what one of our earlier writes left there: its stamp is of
/// another field, so the write's own window does not tell.
pub(crate) fn shows_own_past(case: &Case<'_>) -> bool {
    let sent = &case.here().sent;
    let written = |w: &SentWrite| !matches!(w.sent, Sent::Queued | Sent::Failed);
    let newest = sent.iter().rposition(written).unwrap_or(0);
    // Its form of the newest one is news.
    let alike = |w: &SentWrite| echo::alike(&w.value, case.value);
    let current = sent.get(newest).is_some_and(alike);
    let shown = |w: &SentWrite| case.is(w.result()) || (alike(w) && !current);
    case.observed.source == Source::Page
        && (sent[..newest].iter()).any(|w| written(w) && shown(w) && !is_replaced(case, w))
}

/// Notes that the CRM shows what our newest write carried, if that is surely
/// what it held after the write.
pub(crate) fn confirm_newest(
    side: &mut SideState,
    value: &Value,
    at: Interval,
    field_type: FieldType,
    (skew_ms, now): (i64, Millis),
) {
    let other_landed_later = side
        .sent
        .iter()
        .any(|w| !same(field_type, w.result(), value) && w.landed.is_some_and(|l| at.before(l)));
    let stood_before = echo::known(side).is_some_and(|k| same(field_type, k, value));
    let Some(newest) = echo::last_own_mut(side) else {
        return;
    };
    let ended = match newest.sent {
        Sent::Answered { answered: end, .. } | Sent::Unknown { given_up: end, .. } => Some(end),
        Sent::Queued | Sent::InFlight { .. } | Sent::Failed => None,
    };
    let stamped = !stood_before
        && !other_landed_later
        && newest.window(skew_ms).is_some_and(|w| !at.before(w));
    let read_later = ended.is_some_and(|end| now - end > READ_AGE_MS);
    let shown = same(field_type, newest.result(), value) && (stamped || read_later);
    newest.confirmed |= shown;
    newest.doubted &= !shown;
}

/// Whether a page shows what the CRM answered to have kept against our newest write.
pub(crate) fn has_kept(case: &Case<'_>) -> bool {
    let kept = echo::last_own(case.here()).and_then(|w| w.kept.as_ref());
    case.observed.source == Source::Page && kept.is_some_and(|k| case.is(k))
}

/// A page read well after the CRM accepted our write, with a stamp from before, or of
/// what it answered to have kept: for the CRM our write changed nothing. If the values
/// are alike, what it shows is its form of ours; else it ignored us, and a person
/// should know.
pub(crate) fn without_effect(case: &mut Case<'_>) -> Option<Keep> {
    let kept = has_kept(case);
    let before = case.order() == Order::Before;
    if case.observed.source != Source::Page || !(before || kept) {
        return None;
    }
    let field_type = case.column.field_type;
    let (value, now) = (case.value, case.now);
    let own = echo::last_own_mut(case.here_mut())?;
    let long_ago = match own.sent {
        Sent::Answered { answered, .. } => kept || now - answered > READ_AGE_MS,
        Sent::Queued | Sent::InFlight { .. } | Sent::Unknown { .. } | Sent::Failed => false,
    };
    if !long_ago || own.landed.is_some() {
        return None;
    }
    own.confirmed = true;
    if !echo::alike(&own.value, value) {
        return Some(Keep::Review(
            "the CRM accepted our write and kept its own value".to_owned(),
        ));
    }
    own.normal = Some(value.clone());
    let current = same(field_type, &own.value.clone(), &case.held);
    Some(if current {
        Keep::RowOnly
    } else {
        Keep::Nothing
    })
}
