//! Edits that waited are decided as soon as what they waited for is known.

use crate::case::{Observed, Outcome, Source, Step};
use crate::model::Millis;
use crate::stamps::Quality;
use crate::state::{Entity, Sent, SentWrite, SideState, Waiting};

/// Decides again what waits in these fields, on top of an outcome.
pub(crate) fn waiting(
    entity: &Entity,
    fields: &[usize],
    page: &Observed,
    mut outcome: Outcome,
    decide: &dyn Fn(&Entity, &Observed) -> Outcome,
) -> Outcome {
    let mut entity = entity.clone();
    take_up(&mut entity, &outcome);
    for field in fields {
        for (side, item) in items(&entity, *field) {
            let mut without = entity.clone();
            let here = without
                .fields
                .get_mut(field)
                .and_then(|f| f.sides.get_mut(side));
            let Some(here) = here else { continue };
            here.waiting.retain(|w| *w != item);
            let Waiting(value, clock, mark) = item;
            let observed = Observed {
                side,
                source: Source::Remote,
                origin: clock.origin.clone(),
                values: vec![(*field, value, None)],
                at: clock.at,
                quality: Quality::of(&clock),
                seq: clock.seq,
                mark,
                asked_at: looked(here, side, page),
                ..Observed::default()
            };
            let later = decide(&without, &observed);
            if later.decisions.iter().any(|d| d.step == Step::Waiting) {
                continue;
            }
            take_up(&mut without, &later);
            entity = without;
            // Nothing but the queue may have changed.
            if later.states.is_empty() {
                let state = entity.fields.get(field).cloned();
                outcome.states.retain(|(f, _)| f != field);
                outcome.states.push((*field, state));
            }
            append(&mut outcome, later);
        }
    }
    outcome
}

/// When the record was looked at after all that we sent there had ended: what is
/// unclear then stays unclear.
fn looked(here: &SideState, side: usize, page: &Observed) -> Option<Millis> {
    let asked_at = page.asked_at.filter(|_| page.side == side)?;
    let ended = |w: &SentWrite| match w.sent {
        Sent::Queued | Sent::Failed => true,
        Sent::InFlight { .. } => false,
        Sent::Answered { answered: end, .. } | Sent::Unknown { given_up: end, .. } => {
            end < asked_at
        }
    };
    here.sent.iter().all(ended).then_some(asked_at)
}

/// What waits, oldest first.
fn items(entity: &Entity, field: usize) -> Vec<(usize, Waiting)> {
    let Some(state) = entity.fields.get(&field) else {
        return Vec::new();
    };
    let sides = state.sides.iter().enumerate();
    let mut items: Vec<_> = sides
        .flat_map(|(side, s)| s.waiting.iter().map(move |w| (side, w.clone())))
        .collect();
    items.sort_by_key(|(_, Waiting(_, c, _))| (c.at.from, c.at.to));
    items
}

/// The entity as an outcome leaves it.
fn take_up(entity: &mut Entity, outcome: &Outcome) {
    for (side, field, value) in &outcome.rows {
        let record = entity.records.get_mut(*side);
        if let Some(cell) = record.and_then(|r| r.values.get_mut(*field)) {
            cell.clone_from(value);
        }
    }
    for (field, state) in &outcome.states {
        match state {
            Some(state) => entity.fields.insert(*field, state.clone()),
            None => entity.fields.remove(field),
        };
    }
}

/// One outcome after another as one.
fn append(outcome: &mut Outcome, later: Outcome) {
    outcome.decisions.extend(later.decisions);
    for (side, field) in later.cancel {
        outcome.writes.retain(|(s, f, _)| (*s, *f) != (side, field));
        outcome.cancel.push((side, field));
    }
    for write in later.writes {
        let cell = (write.0, write.1);
        outcome.writes.retain(|(s, f, _)| (*s, *f) != cell);
        outcome.cancel.retain(|c| *c != cell);
        outcome.writes.push(write);
    }
    for row in later.rows {
        outcome.rows.retain(|(s, f, _)| (*s, *f) != (row.0, row.1));
        outcome.rows.push(row);
    }
    for state in later.states {
        outcome.states.retain(|(f, _)| *f != state.0);
        outcome.states.push(state);
    }
    for side in later.reread {
        if !outcome.reread.contains(&side) {
            outcome.reread.push(side);
        }
    }
    outcome.questions.extend(later.questions);
}
