//! The steps of a decision, in order. Each says what it wants done, or nothing.

use crate::broken::{Mistake, made};
use crate::case::{Case, Keep, Source, Step};
use crate::echo::{self, Order};
use crate::effect;
use crate::model::{Mark, Value};
use crate::own_page::{
    READ_AGE_MS, confirm_newest, has_kept, is_own_too, shows_earlier_write, shows_our_form,
    shows_own_past, still_shows_ours, without_effect,
};
use crate::rules::{self, conflict, every_change, locked, merging, one_side, score};
use crate::state::{Clock, Flap, Interval, Sent, SentWrite};
use crate::strategy::Strategy;
use crate::timeline;
use crate::value::same;

/// How often a CRM may bring the same value back against our writes.
pub(crate) const FLAP_LIMIT: u32 = 6;
/// Within how much event time.
pub(crate) const FLAP_WINDOW_MS: i64 = 600_000;

pub(crate) type StepFn = fn(&mut Case<'_>) -> Option<Keep>;

/// The steps. `Owner` and `FillBlank` are one function; `Merge` stands for what it
/// came to.
pub(crate) const STEPS: &[(Step, StepFn)] = &[
    (Step::Tombstone, tombstone),
    (Step::TooLate, too_late),
    (Step::Echo, own_write),
    (Step::NormalForm, normal_form),
    (Step::Equal, equal),
    (Step::Stale, stale),
    (Step::TooLate, unordered),
    (Step::NotLanded, not_landed),
    (Step::Unsettled, unsettled),
    (Step::NormalForm, without_effect),
    (Step::Known, known),
    (Step::OneWay, one_way),
    (Step::Held, on_hold),
    (Step::Flapping, flapping),
    (Step::Locked, locked),
    (Step::Score, score),
    (Step::Merge, merging),
    (Step::Owner, every_change),
    (Step::OneSide, one_side),
    (Step::Conflict, conflict),
];

fn tombstone(case: &mut Case<'_>) -> Option<Keep> {
    if made(Mistake::NoTombstone) {
        return None;
    }
    case.entity.records[case.observed.side]
        .deleted
        .then_some(Keep::Ignore)
}

/// Beyond the horizon the record of what we sent is gone, and with it the means
/// to tell an edit from an echo.
fn too_late(case: &mut Case<'_>) -> Option<Keep> {
    let limit = case.now.saturating_sub(case.horizon_ms);
    (case.observed.source == Source::Remote && case.observed.at.to < limit).then_some(Keep::Ignore)
}

fn own_write(case: &mut Case<'_>) -> Option<Keep> {
    let others = case.observed.mark == Mark::Others && !made(Mistake::NameIgnored);
    if case.observed.source == Source::Local || others || made(Mistake::NoEchoCheck) {
        return None;
    }
    let (at, page) = (case.observed.at, case.observed.source == Source::Page);
    let (field_type, skew) = (case.column.field_type, case.policy.tolerance_ms());
    let shown = case.value;
    let form = refutes_form(case) || echo::stores_as(case.here(), &case.held, shown, field_type);
    let marked = case.observed.mark == Mark::Ours;
    let place = echo::find(case.here(), case.value, at, marked, field_type, skew);
    let (value, now) = (case.value, case.now);
    // What stood there anyway proves no write: on a page, or told again.
    let stood = echo::known(case.here()).is_some_and(|k| case.is(k));
    let told = case
        .here()
        .seen
        .as_ref()
        .is_some_and(|(_, c)| c.at.overlaps(at));
    let proof = !stood || !(page || (told && !marked));
    // Which of two it was nobody can tell: where every edit counts it matters.
    let twins = case.merges() && echo::has_twin(case.here(), place, at, field_type, skew);
    // Nor does what was written back to where it came from: told late, it is the edit.
    let origin = &case.observed.origin;
    let edit = |w: &SentWrite| w.clock.origin == *origin && w.clock.at.overlaps(at);
    let proof = proof && (marked || !place.is_some_and(|p| edit(&case.here().sent[p])));
    let here = case.here_mut();
    if let Some(place) = place {
        here.sent[place].confirmed |= proof;
        here.sent[place].doubted &= !proof;
        // A page tells when the record changed last, not when this field did.
        if !page && proof && !twins && here.sent[place].landed.is_none() {
            echo::landed(here, place, at, skew);
        }
    }
    if page {
        confirm_newest(here, value, at, field_type, (skew, now));
    }
    if form {
        return Some(Keep::RowOnly);
    }
    if place.is_none()
        && let Some(keep) = shows_our_form(case)
    {
        return Some(keep);
    }
    let past = !case.merges()
        && shows_own_past(case)
        && case.order() == Order::Before
        && !shows_earlier_write(case);
    if place.is_none() && !case.merges() && (past || still_shows_ours(case)) {
        return Some(Keep::Nothing);
    }
    place?;
    if page && shows_earlier_write(case) {
        return None;
    }
    let seen = case.here().seen.as_ref();
    Some(if seen.is_some_and(|(_, seen)| at.before(seen.at)) {
        Keep::Ignore
    } else if case.state.hold.is_some() {
        // What landed after all is what the CRM holds while a person is asked.
        Keep::RowOnly
    } else {
        Keep::Nothing
    })
}

/// Whether the row shows what was taken for a form of ours and was something else.
fn refutes_form(case: &mut Case<'_>) -> bool {
    if case.here().sent.iter().all(|w| w.normal.is_none()) {
        return false;
    }
    let (shown, row, field_type) = (case.value, case.held.clone(), case.column.field_type);
    echo::refute_form(case.here_mut(), shown, &row, field_type)
}

/// Bouncing our own value's normal form would never end.
fn normal_form(case: &mut Case<'_>) -> Option<Keep> {
    if made(Mistake::NormalFormIsAnEdit)
        || case.observed.source != Source::Remote
        || case.observed.mark != Mark::Ours
    {
        return None;
    }
    let (at, value) = (case.observed.at, case.value);
    let skew = case.policy.tolerance_ms();
    let place = echo::find_marked(case.here(), case.value, at, skew)?;
    // What was there before is no form of what was sent over it; nor is what the
    // record was made with.
    let alike = echo::alike(&case.here().sent[place].value, value);
    let base = case.here().base.as_ref();
    let before = echo::known(case.here()).is_some_and(|k| case.is(k))
        || base.is_some_and(|b| echo::alike(b, value));
    if !alike && before {
        return Some(Keep::Nothing);
    }
    let field_type = case.column.field_type;
    let here = case.here_mut();
    let write = &here.sent[place];
    let given_up = matches!(write.sent, Sent::Unknown { .. }) && write.landed.is_none();
    let later = write.window(skew).is_some_and(|w| w.before(at));
    let place = match later && !given_up {
        true => echo::landed_again(here, place, at, skew),
        false => place,
    };
    let write = &mut here.sent[place];
    let wanted = write.value.clone();
    // The value as sent: of this or an earlier write, nobody can tell. Sent
    // twice, it can land twice.
    if same(field_type, &wanted, value) {
        if later && given_up {
            echo::landed(here, place, at, skew);
        }
        return Some(Keep::Nothing);
    }
    write.confirmed = true;
    write.normal = Some(value.clone());
    if write.landed.is_none_or(|l| l.before(at)) {
        echo::landed(here, place, at, skew);
    }
    let current = same(case.column.field_type, &wanted, &case.held);
    Some(if current {
        Keep::RowOnly
    } else {
        Keep::Nothing
    })
}

fn equal(case: &mut Case<'_>) -> Option<Keep> {
    // Two edits that are alike are two, where every edit counts.
    if case.merges() || !case.is(&case.held) {
        return None;
    }
    if case.observed.source == Source::Local {
        return Some(Keep::Nothing);
    }
    let (field_type, at) = (case.column.field_type, case.observed.at);
    let (value, now, skew) = (case.value, case.now, case.policy.tolerance_ms());
    let (event, clock) = (case.observed.source == Source::Remote, case.clock.clone());
    let others = case.observed.mark == Mark::Others;
    let here = case.here_mut();
    confirm_newest(here, value, at, field_type, (skew, now));
    // Its own event tells when it was written: a page's stamp is the record's.
    let paged = here.paged && event;
    let of_page =
        |(v, c): &&mut (Value, Clock)| paged && same(field_type, v, value) && at.to <= c.at.to;
    if let Some(seen) = here.seen.as_mut().filter(of_page) {
        seen.1 = clock;
        here.paged = false;
    }
    if event && !others {
        echo::landed_late(here, value, at, field_type, skew);
    }
    // An event that is none of our writes tells of somebody who set the value anew.
    let ours = echo::last_own(here).is_some_and(|w| {
        let may_be = !event || (!others && matches!(w.sent, Sent::Unknown { .. }));
        may_be && same(field_type, value, w.result())
    });
    if !ours {
        case.record_seen();
        speaks_for_it(case);
        let claim = effect::challenger_claim(case);
        if let Some(hold) = &mut case.state.hold {
            hold.claim(claim);
        }
    }
    Some(Keep::Nothing)
}

/// Who writes what is held already speaks for it, where the last write counts or the
/// rank, if that is the later one or ranks higher. What nobody signs may be ours, told
/// late; a locked field has one who speaks.
fn speaks_for_it(case: &mut Case<'_>) {
    let (Some(rule), Source::Remote) = (case.rule, case.observed.source) else {
        return;
    };
    let named = case.observed.mark == Mark::Others;
    let sent =
        |w: &SentWrite| !matches!(w.sent, Sent::Queued | Sent::Failed) && case.is(w.result());
    let ours = !named && case.here().sent.iter().any(sent);
    let field = &case.group.fields[case.field].name;
    if ours || !case.column.inbound || case.policy.lock(field).is_some() {
        return;
    }
    let (skew, new) = (case.policy.tolerance_ms(), &case.clock);
    let surely = |one: &Clock, other: &Clock| one.at.to.saturating_add(skew) < other.at.from;
    let speaks = |held: &Clock| {
        let higher = rule.rank(&new.origin) < rule.rank(&held.origin);
        match rule.strategy {
            Strategy::LastWriteWins => surely(held, new) || (higher && !surely(new, held)),
            Strategy::Priority => higher,
            _ => false,
        }
    };
    if case.state.clock.as_ref().is_some_and(speaks) {
        case.state.clock = Some(case.clock.clone());
    }
}

fn stale(case: &mut Case<'_>) -> Option<Keep> {
    let at = case.observed.at;
    if made(Mistake::StaleByRecord) {
        let side = case.observed.side;
        let mut shown = case
            .entity
            .fields
            .values()
            .filter_map(|f| f.sides.get(side)?.seen.as_ref());
        return shown.any(|(_, c)| at.before(c.at)).then_some(Keep::Ignore);
    }
    let older = case.observed.source != Source::Local
        && !case.merges()
        && case
            .here()
            .seen
            .as_ref()
            .is_some_and(|(_, seen)| at.before(seen.at));
    older.then_some(Keep::Ignore)
}

/// An event of the same second as what a page showed, or of the same millisecond as
/// another: which of the two came last only the record tells.
fn unordered(case: &mut Case<'_>) -> Option<Keep> {
    let event = case.observed.source == Source::Remote && !case.merges();
    ((event && case.beside_page()) || page_beside_edit(case)).then_some(Keep::Ignore)
}

/// A page of the same second as what is known, that was not surely asked for
/// later: it may show what stood there before.
fn page_beside_edit(case: &Case<'_>) -> bool {
    let (at, skew) = (case.observed.at, case.policy.tolerance_ms());
    let asked = case.observed.asked_at;
    let beside = |(v, edited): (&Value, Interval)| {
        let later = asked.is_some_and(|asked| asked > edited.to.saturating_add(skew));
        edited.overlaps(at) && !case.is(v) && !later
    };
    case.observed.source == Source::Page
        && at.from < at.to
        && timeline::edits(case.here()).any(beside)
}

/// A page that shows the value from before a write without answer, or before
/// one answered at about the page's stamp: the value is sent (again), which is
/// harmless if it had landed.
fn not_landed(case: &mut Case<'_>) -> Option<Keep> {
    let before = echo::known(case.here()).is_some_and(|k| case.is(k));
    if case.observed.source != Source::Page || !(before || shows_earlier_write(case)) {
        return None;
    }
    if has_kept(case) {
        return None;
    }
    // A page from before an edit that waits says nothing of what came after it.
    let at = case.observed.at;
    if case.here().waiting.iter().any(|w| at.before(w.1.at)) {
        return Some(Keep::Ignore);
    }
    let unclear = case.order() == Order::Unclear;
    let lost = match echo::last_own(case.here())?.sent {
        Sent::Unknown { .. } => {
            let own = echo::last_own(case.here())?;
            let shown = own.landed.is_some() || own.confirmed;
            !shown || (unclear && !case.merges())
        }
        Sent::Answered { .. } => unclear && !case.merges(),
        Sent::Queued | Sent::InFlight { .. } | Sent::Failed => false,
    };
    if !lost {
        return None;
    }
    // What we left there ourselves is not what its users wrote; but where it
    // stands against an answer, the answer proves nothing.
    if before && !is_own_too(case) {
        case.record_seen();
        let (skew, read) = (case.policy.tolerance_ms(), case.now - READ_AGE_MS);
        echo::doubt_effectless(case.here_mut(), at, skew, read);
    } else {
        let (value, field_type) = (case.value, case.column.field_type);
        echo::doubt_later(case.here_mut(), value, field_type);
    }
    Some(Keep::Nothing)
}

/// While a write is on its way a page shows either side of it.
fn unsettled(case: &mut Case<'_>) -> Option<Keep> {
    let in_flight = case.observed.source == Source::Page
        && case.order() == Order::Unclear
        && echo::last_own(case.here()).is_some_and(|w| matches!(w.sent, Sent::InFlight { .. }))
        && (echo::known(case.here()).is_some_and(|k| case.is(k)) || shows_own_past(case));
    in_flight.then_some(Keep::Ignore)
}

/// What the CRM held before our write is no news, however late it is told; but
/// the same value after our write is somebody setting it back.
fn known(case: &mut Case<'_>) -> Option<Keep> {
    if case.observed.source == Source::Local
        || made(Mistake::OldStateIsNews)
        || case.merges()
        || !echo::known(case.here()).is_some_and(|k| case.is(k))
    {
        return None;
    }
    let seen = case.here().seen.as_ref().filter(|(v, _)| case.is(v));
    let told_again = seen.is_some_and(|(_, seen)| seen.at.overlaps(case.observed.at));
    // It stood there after our newest write already, or was the later of two that
    // no clock can order: the page shows which of them stayed.
    // What our write was sent over is neither.
    let over = |at: Interval| {
        let told = echo::last_own(case.here()).and_then(|w| w.after);
        told.is_some_and(|told| at.to <= told)
    };
    let stands = case.observed.source == Source::Page
        && seen.is_some_and(|(_, seen)| {
            let order = echo::order(case.here(), seen.at, case.policy.tolerance_ms());
            matches!(order, Order::After | Order::Unclear) && !over(seen.at)
        });
    // An event tells of a change: since the value that is held was written somebody
    // set this one anew, over another that we were not told of.
    let skew = case.policy.tolerance_ms();
    let older = |c: &Clock| c.at.to.saturating_add(skew) < case.observed.at.from;
    let anew =
        case.observed.source == Source::Remote && case.state.clock.as_ref().is_some_and(older);
    match case.order() {
        Order::Before | Order::NoWrite if anew && !told_again => return None,
        Order::After if !told_again && !stands => return None,
        Order::Unclear if !told_again => return None,
        Order::After | Order::Unclear | Order::Before | Order::NoWrite => {}
    }
    // Surely after our newest write it is not what we left there.
    if case.order() == Order::After || !is_own_too(case) {
        case.record_seen();
    }
    Some(Keep::Nothing)
}

fn one_way(case: &mut Case<'_>) -> Option<Keep> {
    if case.column.inbound || case.observed.source == Source::Local {
        return None;
    }
    case.record_seen();
    Some(Keep::RowOnly)
}

/// A new edit is a new candidate. Where all candidates have become the same
/// there is nothing left to ask.
fn on_hold(case: &mut Case<'_>) -> Option<Keep> {
    let claim = effect::challenger_claim(case);
    let hold = case.state.hold.as_mut()?;
    hold.claim(claim);
    let reason = hold.reason.clone();
    case.record_seen();
    let agreed = case.state.hold.as_ref().is_some_and(|h| {
        h.claims
            .iter()
            .all(|c| effect::says_the_same(case, c.side, &c.value))
    });
    if agreed && !case.merges() {
        case.state.hold = None;
        return Some(Keep::Challenger);
    }
    Some(Keep::Review(reason))
}

/// Writers that set a field against each other never tire. The policy decides
/// once more; what it says stands until a person has looked.
fn flapping(case: &mut Case<'_>) -> Option<Keep> {
    if case.merges() {
        return None;
    }
    case.conflict = case.concurrent();
    case.notes.freeze = rules::take_turns(case, FLAP_WINDOW_MS);
    if case.observed.source == Source::Local {
        return None;
    }
    let at = case.observed.at.to;
    let returned = case.here().seen.as_ref().is_some_and(|(v, _)| case.is(v));
    let value = case.value;
    let here = case.here_mut();
    match &mut here.flap {
        Some(flap) if returned && at - flap.since <= FLAP_WINDOW_MS => flap.count += 1,
        flap if returned => {
            *flap = Some(Flap {
                value: value.clone(),
                count: 1,
                since: at,
            });
        }
        _ => {}
    }
    let count = here.flap.as_ref().map_or(0, |f| f.count);
    case.record_seen();
    if returned && count >= FLAP_LIMIT {
        let other = case
            .state
            .clock
            .as_ref()
            .map_or("another writer", |c| c.origin.as_str());
        case.notes.freeze = Some(format!(
            "{} and {other} keep overwriting each other ({count} times)",
            case.observed.origin
        ));
    }
    None
}
