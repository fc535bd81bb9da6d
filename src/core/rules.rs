//! The last steps of a decision: who may write, and what the policy row says.

use crate::broken::{Mistake, made};
use crate::case::{Case, Keep, Source};
use crate::echo::{self, Order};
use crate::effect;
use crate::evaluate::Question;
use crate::model::Value;
use crate::order;
use crate::own_page::shows_own_past;
use crate::policy::Rule;
use crate::state::{Clock, Interval, Turns, Waiting};
use crate::strategy::Verdict;
use crate::timeline::{self, Place};
use crate::value::{canonical, same};

/// How often the writers of a field may take turns.
pub(crate) const TURNS_LIMIT: u32 = 20;

/// A field that only some may write: what others write is put back.
pub(crate) fn locked(case: &mut Case<'_>) -> Option<Keep> {
    if made(Mistake::LockIgnored) {
        return None;
    }
    let lock = case.policy.lock(&case.group.fields[case.field].name)?;
    if lock.origins.contains(&case.observed.origin) {
        return None;
    }
    case.record_seen();
    case.notes.lock = Some(lock);
    Some(Keep::Incumbent)
}

/// What SQL writes must say how sure it is, and be sure enough.
pub(crate) fn score(case: &mut Case<'_>) -> Option<Keep> {
    let least = case.rule?.min_score?;
    let local = case.observed.source == Source::Local;
    let enough = case.observed.score.is_some_and(|s| s >= least);
    (local && !enough).then_some(Keep::Incumbent)
}

/// Strategies under which both edits stand: each is counted against what its
/// writer saw, once.
pub(crate) fn merging(case: &mut Case<'_>) -> Option<Keep> {
    let merge = case.rule?.strategy.entry().merge?;
    let field_type = case.column.field_type;
    let saw = if case.observed.source == Source::Local {
        // Too long to be kept: what was added cannot be told.
        match case.old {
            Some(old) => old.clone(),
            None if case.is(&case.held) => return Some(Keep::Nothing),
            None => {
                return Some(Keep::Review(
                    "what the field held before is unknown".to_owned(),
                ));
            }
        }
    } else {
        match edit_seen(case) {
            Ok(saw) => saw,
            Err(keep) => return Some(keep),
        }
    };
    case.conflict = !same(field_type, &saw, &case.held);
    if !case.conflict {
        return Some(Keep::Challenger);
    }
    if case.is(&saw) {
        return Some(Keep::Nothing);
    }
    let merged = merge(&saw, case.value, &case.held);
    let fits = |value| match crate::mapping::fits(case.column, &value) {
        Ok(()) => Ok(value),
        Err(reason) => Err(reason.to_string()),
    };
    Some(match merged.and_then(fits) {
        Ok(value) => Keep::Merged(value),
        Err(reason) => Keep::Review(format!("both edits cannot be kept: {reason}")),
    })
}

/// Of the edits of one second the one that was told first has its turn first.
fn has_turn_before(case: &Case<'_>) -> bool {
    let (seq, at) = (case.clock.seq, case.observed.at);
    let before = |Waiting(_, c, _): &Waiting| c.seq < seq && c.at.overlaps(at);
    case.here().waiting.iter().any(before)
}

/// Told late, in the second of one that was counted: a page may have shown that.
fn late_beside_counted(case: &Case<'_>) -> bool {
    let at = case.observed.at;
    let late = case.here().seen.as_ref();
    let late = late.is_some_and(|(_, c)| at.before(c.at)) && at.from < at.to;
    let twin = |(v, t): (&Value, Interval)| t.overlaps(at) && !case.is(v);
    late && timeline::edits(case.here()).any(twin)
}

/// What stood there before our write is nobody's edit, whatever its stamp. Looked at
/// after the answer it shows that our write is not there (any more).
fn shows_what_stood(case: &mut Case<'_>) -> bool {
    let old = echo::known(case.here()).is_some_and(|k| case.is(k));
    let order = case.order();
    if !old || order == Order::After || !case.here().waiting.is_empty() {
        return false;
    }
    if order == Order::Unclear && timeline::is_decisive(case.here(), case.observed.asked_at) {
        echo::doubt_newest(case.here_mut());
    }
    true
}

/// Whether a page shows an edit that waits to be decided in its turn: it says when, or
/// its stamp is of another field, and of those that wait it is the newest.
fn shows_what_waits(case: &mut Case<'_>) -> bool {
    let at = case.observed.at;
    let waiting = || case.here().waiting.iter();
    let beside = waiting().any(|Waiting(v, c, _)| c.at.overlaps(at) && case.is(v));
    let newest = waiting().rfind(|Waiting(_, c, _)| c.at.before(at));
    let newest = newest.is_some_and(|Waiting(v, ..)| case.is(v));
    case.notes.no_edit |= newest && !beside;
    beside || newest
}

/// The value that the writer of an edit at the CRM saw.
fn edit_seen(case: &mut Case<'_>) -> Result<Value, Keep> {
    let (value, at) = (case.value, case.observed.at);
    let field_type = case.column.field_type;
    let skew = case.policy.tolerance_ms();
    let asked_at = case.observed.asked_at;
    let page = case.observed.source == Source::Page;
    if page && shows_what_stood(case) {
        return Err(Keep::Nothing);
    }
    // Nor is what our newest write left there, under the stamp of another field,
    // unless somebody wrote since: then it came back.
    let edited = case.here().seen.as_ref().map(|(_, c)| c.at);
    let replaced = |w: Interval| edited.is_some_and(|edited| w.before(edited));
    let ours = echo::last_own(case.here())
        .is_some_and(|w| case.is(w.result()) && !w.window(skew).is_some_and(replaced));
    if page && ours && case.here().waiting.is_empty() {
        return Err(Keep::Nothing);
    }
    if page && shows_what_waits(case) {
        return Err(Keep::Wait);
    }
    let queued = has_turn_before(case);
    if page && queued {
        case.notes.no_edit = shows_own_past(case);
        return Err(Keep::Wait);
    }
    let beside = !page && (queued || case.beside_page() || late_beside_counted(case));
    let here = case.here_mut();
    let place = match timeline::place(here, value, at, field_type, skew) {
        Place::After(_) if beside => Place::Unclear { before: false },
        place => place,
    };
    match place {
        Place::Known => Err(Keep::Nothing),
        Place::Superseded => {
            case.record_seen();
            Err(Keep::Ignore)
        }
        Place::After(saw) => {
            case.record_seen();
            Ok(saw)
        }
        Place::Unclear { .. }
            if asked_at.is_some_and(|asked| timeline::is_in(at, asked, skew))
                && timeline::is_decisive(here, asked_at) =>
        {
            case.record_seen();
            Err(Keep::Review(
                "whether this edit was made before or after our write cannot be told".to_owned(),
            ))
        }
        // A page from before our write, most likely: looked at again after it.
        Place::Unclear { before: true } if page => {
            case.notes.no_edit = true;
            Err(Keep::Wait)
        }
        Place::Unclear { .. } => Err(Keep::Wait),
        Place::Unknown => {
            case.record_seen();
            Err(Keep::Review(
                "what this edit was made on top of is not known".to_owned(),
            ))
        }
    }
}

/// Two writers that set a field against each other, whatever the values.
pub(crate) fn take_turns(case: &mut Case<'_>, window_ms: i64) -> Option<String> {
    let (writer, at) = (&case.observed.origin, case.observed.at.to);
    let first = || Turns {
        last: writer.clone(),
        before: String::new(),
        count: 0,
        since: at,
    };
    let turns = case.state.turns.get_or_insert_with(first);
    if at.saturating_sub(turns.since) > window_ms {
        *turns = first();
    }
    if turns.last == *writer {
        return None;
    }
    turns.before = std::mem::replace(&mut turns.last, writer.clone());
    turns.count += 1;
    (turns.count >= TURNS_LIMIT).then(|| {
        format!(
            "{} and {} keep overwriting each other ({} times)",
            turns.last, turns.before, turns.count
        )
    })
}

/// Strategies that decide every change.
pub(crate) fn every_change(case: &mut Case<'_>) -> Option<Keep> {
    let rule = case.rule?;
    let entry = rule.strategy.entry();
    let lone = case.group.sides.len() < 2 && rule.winner.is_empty();
    if !entry.every_change || lone {
        return None;
    }
    Some(keep((entry.apply)(&case.contest(rule)), rule))
}

/// No conflict: the change applies.
pub(crate) fn one_side(case: &mut Case<'_>) -> Option<Keep> {
    if case.conflict {
        return None;
    }
    case.state.rivals.clear();
    Some(Keep::Challenger)
}

/// Two sides changed: the strategy decides.
pub(crate) fn conflict(case: &mut Case<'_>) -> Option<Keep> {
    Some(match case.rule {
        Some(_) if made(Mistake::AsksAboutEverything) => Keep::Review("asked".to_owned()),
        None => Keep::Review("no policy row decides this field".to_owned()),
        // Time orders edits. What was written as a new record is none of one that was there.
        Some(rule) if rule.strategy.entry().by_time && case.observed.anew => {
            Keep::Review("inserted as a new record, which the CRM has already".to_owned())
        }
        Some(rule) if rule.strategy.entry().evaluates => evaluated(case, rule),
        Some(rule) if rule.strategy.entry().by_time => latest(case, rule),
        Some(rule) => keep((rule.strategy.entry().apply)(&case.contest(rule)), rule),
    })
}

/// All writers whose edits time cannot tell apart are looked at together.
fn latest(case: &mut Case<'_>, rule: &Rule) -> Keep {
    let pairwise = |case: &Case<'_>| keep((rule.strategy.entry().apply)(&case.contest(rule)), rule);
    let Some(held) = case.state.clock.clone() else {
        return pairwise(case);
    };
    if held.origin == case.clock.origin {
        return pairwise(case);
    }
    let skew = case.policy.skew_ms;
    let (incumbent, challenger) = (
        effect::incumbent_claim(case),
        effect::challenger_claim(case),
    );
    for claim in [&incumbent, &challenger] {
        order::note(&mut case.state.rivals, claim.clone(), skew);
    }
    if made(Mistake::TieNotTotal) {
        return circle(case, rule, &held);
    }
    match order::latest(rule, skew, &case.state.rivals) {
        Some(best) if best.clock.origin == case.clock.origin && *best == challenger => {
            Keep::Challenger
        }
        Some(best) if best.clock != held && best.clock.origin != case.clock.origin => {
            Keep::Rival(best.clone())
        }
        _ => Keep::Incumbent,
    }
}

/// The mistake: the first origin beats the second, the second the third, and the
/// third the first.
fn circle(case: &Case<'_>, rule: &Rule, held: &Clock) -> Keep {
    let skew = case.policy.skew_ms;
    let (came, at) = (case.clock.at, held.at);
    let apart = came.from > at.to + skew || at.from > came.to + skew;
    let (ours, theirs) = (rule.rank(&case.clock.origin), rule.rank(&held.origin));
    match apart {
        true => keep((rule.strategy.entry().apply)(&case.contest(rule)), rule),
        false if (theirs + 3 - ours % 3) % 3 == 1 => Keep::Challenger,
        false => Keep::Incumbent,
    }
}

fn keep(verdict: Verdict, rule: &Rule) -> Keep {
    match verdict {
        Verdict::Challenger => Keep::Challenger,
        Verdict::Incumbent => Keep::Incumbent,
        Verdict::Review => Keep::Review(format!(
            "policy row {} asks for a person's decision",
            rule.id
        )),
    }
}

/// What the user's function said, or the question to it.
fn evaluated(case: &mut Case<'_>, rule: &Rule) -> Keep {
    let clock = case.state.clock.as_ref();
    let question = Question {
        rule: rule.id,
        function: rule.function.clone().unwrap_or_default(),
        field: case.group.fields[case.field].name.clone(),
        side: case.observed.side,
        held: case.held.clone(),
        held_origin: clock.map_or_else(String::new, |c| c.origin.clone()),
        held_at: clock.map(|c| c.at),
        came: case.value.clone(),
        came_origin: case.observed.origin.clone(),
        came_at: case.observed.at,
        base: case.here().base.clone(),
    };
    let said = case.observed.evaluations.iter();
    let Some(said) = said.clone().find(|e| e.question == question) else {
        return Keep::Ask(Box::new(question));
    };
    case.notes.evaluation = Some(Box::new(said.clone()));
    let field_type = case.column.field_type;
    let answer = said.answer.clone().and_then(|v| match v {
        Some(text) => canonical(field_type, &text).map_err(|e| e.to_string()),
        None => Ok(None),
    });
    match answer {
        Err(error) => Keep::Review(format!("function {}: {error}", question.function)),
        Ok(value) if case.is(&value) => Keep::Challenger,
        Ok(value) if same(field_type, &value, &case.held) => Keep::Incumbent,
        Ok(value) => match crate::mapping::fits(case.column, &value) {
            Ok(()) => Keep::Merged(value),
            Err(e) => Keep::Review(format!("function {}: {e}", question.function)),
        },
    }
}
