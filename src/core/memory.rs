//! What the ledger remembers, so that states need not: which states say more
//! than rows and ledger do, and what is put back beside an observation that comes late.

use crate::group::Group;
use crate::model::Value;
use crate::state::{Clock, Entity, FieldState, SideRecord, SideState};
use crate::timeline;

/// State of a field at rest, as rows alone tell it: what each record shows is
/// what all sides agreed about.
pub fn at_rest(entity: &Entity, field: usize) -> FieldState {
    let side = |record: &SideRecord| SideState {
        base: record
            .exists
            .then(|| record.values.get(field).cloned().flatten()),
        ..SideState::default()
    };
    FieldState {
        sides: entity.records.iter().map(side).collect(),
        ..FieldState::default()
    }
}

/// Whether a state says more than the rows and the ledger do: something was
/// sent, a person is asked, edits wait, writers take turns or keep a value against
/// us, linked sides never agreed, or somebody set a value anew that nothing was sent
/// for (in shadow nothing is, and rows differ). What a side showed alone is in the ledger, see [`recall`].
pub fn must_keep(state: &FieldState, entity: &Entity, group: &Group) -> bool {
    let linked = entity.records.iter().filter(|r| r.exists).count() > 1;
    let live = group.sides.iter().all(|s| !s.shadow);
    let mut sides = entity.records.iter().zip(&state.sides);
    state.hold.is_some()
        || (linked && live && state.clock.is_some())
        || state.turns.as_ref().is_some_and(|t| t.count > 0)
        || sides.any(|(record, side)| {
            let open = linked && record.exists && side.base.is_none();
            !side.sent.is_empty() || side.flap.is_some() || !side.waiting.is_empty() || open
        })
}

/// Puts the newest edit of a side that the ledger names into a state that does not
/// know of it. Where every edit counts the one known before stays known: told
/// again it must not count twice.
pub fn recall(state: &mut FieldState, side: usize, edit: (Value, Clock), counts: bool) {
    let Some(side) = state.sides.get_mut(side) else {
        return;
    };
    let newest = |at: i64| side.seen.as_ref().is_none_or(|(_, c)| c.at.to < at);
    if !newest(edit.1.at.to) {
        return;
    }
    match counts {
        true => timeline::record(side, &edit.0, &edit.1),
        false => side.seen = Some(edit),
    }
}
