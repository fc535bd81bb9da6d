//! Whole records: what a create, an arrival or a delete leads to, and how the
//! edits of one record become one observation.

use crate::broken::{Mistake, made};
use crate::echo;
use crate::group::Group;
use crate::model::Value;
use crate::state::{Entity, FieldState, Sent};

/// How far a record that shares a match key has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Exists at the CRM and belongs to no entity of the group yet.
    Free,
    /// Exists and belongs to another entity.
    Taken,
    /// A row whose create waits in the outbox.
    Queued,
    /// A row whose create is under way, or whose answer was lost.
    Reserved,
}

/// A record on the target side that shares a match key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Record id at the CRM, or the row's own key where it has none yet.
    pub record: String,
    /// How far it has come.
    pub standing: Standing,
}

/// What to do for an entity that has no record on a side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreatePlan {
    /// This record is the one.
    Link(String),
    /// Several may be, or it belongs to another entity: a person decides.
    Ambiguous(Vec<String>),
    /// Make it.
    Create,
    /// A create with this key is under way: its result decides.
    Wait,
}

/// What to do with a record that a CRM shows for the first time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArrivalPlan {
    /// It takes the place of a row whose create had not left: the create is
    /// withdrawn, the row gets this record's id.
    Adopt(String),
    /// It may be our own create whose answer is not here yet.
    Wait,
    /// Several rows claim it: a person decides.
    Ambiguous(Vec<String>),
    /// A record of its own.
    New,
}

/// Plans a missing record. `keys` holds, for each match key in order, the
/// records of the target side that share its normal form; a key that is blank
/// on this entity contributes an empty list. The first key that finds anything
/// decides: a weaker key never overrules a stronger one.
pub fn plan_create(keys: &[Vec<Found>]) -> CreatePlan {
    let Some(found) = keys.iter().find(|found| !found.is_empty()) else {
        return CreatePlan::Create;
    };
    if made(Mistake::CreatesDoNotWait) {
        return CreatePlan::Create;
    }
    if found.iter().any(|f| f.standing == Standing::Reserved) {
        return CreatePlan::Wait;
    }
    match found.as_slice() {
        [one] if one.standing != Standing::Taken => CreatePlan::Link(one.record.clone()),
        several => CreatePlan::Ambiguous(names(several)),
    }
}

/// Plans an arriving record. `keys` holds, for each match key in order, the
/// rows of the same side that wait for their own create and share the key.
pub fn plan_arrival(keys: &[Vec<Found>]) -> ArrivalPlan {
    let waiting = |f: &&Found| matches!(f.standing, Standing::Queued | Standing::Reserved);
    for found in keys {
        let rows: Vec<&Found> = found.iter().filter(waiting).collect();
        if rows.iter().any(|f| f.standing == Standing::Reserved) {
            return ArrivalPlan::Wait;
        }
        match rows.as_slice() {
            [] => {}
            [one] => return ArrivalPlan::Adopt(one.record.clone()),
            several => {
                return ArrivalPlan::Ambiguous(several.iter().map(|f| f.record.clone()).collect());
            }
        }
    }
    ArrivalPlan::New
}

fn names(found: &[Found]) -> Vec<String> {
    found.iter().map(|f| f.record.clone()).collect()
}

/// What the deletion of one record means for another side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeleteRule {
    /// The other record stays and is a thing of its own.
    #[default]
    Unlink,
    /// The other record is removed too.
    Propagate,
    /// The other row is shown as deleted, its CRM keeps the record, and both
    /// come back together.
    SoftDelete,
    /// The other record stays as it is and tied, should the first come back.
    Ignore,
}

impl DeleteRule {
    /// Of its name in `crm.link`; what is not known unlinks.
    pub fn by_name(name: &str) -> Self {
        match name {
            "propagate" => Self::Propagate,
            "soft_delete" => Self::SoftDelete,
            "ignore" => Self::Ignore,
            _ => Self::Unlink,
        }
    }

    /// Whether the records stay one thing, should they come back.
    fn keeps_tie(self) -> bool {
        matches!(self, Self::SoftDelete | Self::Ignore)
    }
}

/// Who removed a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeletedBy {
    /// SQL, by `DELETE` on the mirror.
    Local,
    /// Somebody at the CRM.
    Remote,
}

/// What follows from a deletion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeletePlan {
    /// Sides whose CRM gets a delete.
    pub send: Vec<usize>,
    /// Sides whose row is marked as deleted.
    pub mark: Vec<usize>,
    /// Sides whose row is shown as deleted although its CRM keeps the record.
    pub hide: Vec<usize>,
    /// Sides whose record leaves the entity.
    pub unlink: Vec<usize>,
    /// Queued writes made moot: side, field.
    pub cancel: Vec<(usize, usize)>,
}

/// Why a person should look at a deletion first: a change that the deleting
/// party may not have seen. SQL sees every decided value in the row; a CRM only
/// what has landed there.
pub fn delete_conflict(
    group: &Group,
    entity: &Entity,
    side: usize,
    by: DeletedBy,
    deleting_origin: &str,
) -> Option<String> {
    let field = unseen_change(entity, side, by, deleting_origin)?;
    let name = group.fields.get(field).map_or("", |f| f.name.as_str());
    let origin = group.origin(side);
    Some(format!(
        "deleted on {origin} while a change of {name} was not settled there"
    ))
}

/// Plans a deletion on `side`; `rules` has one entry per side, that of `side`
/// itself unused.
pub fn plan_delete(
    group: &Group,
    entity: &Entity,
    side: usize,
    by: DeletedBy,
    rules: &[DeleteRule],
) -> DeletePlan {
    let mut plan = DeletePlan::default();
    let exists = |s: usize| entity.records.get(s).is_some_and(|r| r.exists);
    let there = |s: usize| exists(s) && !entity.records[s].deleted;
    let known = |s: usize| entity.records.get(s).is_some_and(|r| r.record_id.is_some());
    if by == DeletedBy::Local && known(side) {
        plan.send.push(side);
    }
    if by == DeletedBy::Remote {
        plan.mark.push(side);
    }
    let mut tied = false;
    for other in (0..group.sides.len()).filter(|s| *s != side && exists(*s)) {
        match rules.get(other).copied().unwrap_or_default() {
            // Both are gone then, and may come back.
            rule if !there(other) => tied |= rule.keeps_tie(),
            DeleteRule::Unlink => {}
            DeleteRule::Propagate => {
                plan.send.push(other);
                plan.mark.push(other);
                plan.unlink.push(other);
            }
            DeleteRule::SoftDelete => {
                plan.hide.push(other);
                tied = true;
            }
            DeleteRule::Ignore => tied = true,
        }
    }
    // A row that SQL removed cannot come back by itself.
    if by == DeletedBy::Local || !tied {
        plan.unlink.insert(0, side);
    }
    for (field, state) in &entity.fields {
        for gone in plan.unlink.iter().chain(&plan.hide).chain(&plan.mark) {
            let queued = state
                .sides
                .get(*gone)
                .is_some_and(|s| echo::queued(s).is_some());
            if queued && !plan.cancel.contains(&(*gone, *field)) {
                plan.cancel.push((*gone, *field));
            }
        }
    }
    plan
}

/// A field whose newest value the deleting party may not have seen. SQL sees
/// every decided value in the row; a CRM only what has landed there.
fn unseen_change(
    entity: &Entity,
    side: usize,
    by: DeletedBy,
    deleting_origin: &str,
) -> Option<usize> {
    let unseen = |state: &FieldState| {
        let other_writer = state
            .clock
            .as_ref()
            .is_some_and(|c| c.origin != deleting_origin);
        let pending = state.sides.get(side).is_some_and(|s| {
            s.sent.last().is_some_and(|w| {
                // One that failed may have met the removal before we were told of it.
                !matches!(w.sent, Sent::Answered { .. })
            })
        });
        state.hold.is_some() || (by == DeletedBy::Remote && other_writer && pending)
    };
    entity
        .fields
        .iter()
        .find(|(_, state)| unseen(state))
        .map(|(field, _)| *field)
}

/// One edit of one field, as captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// Field of the group.
    pub field: usize,
    /// Value before, where known.
    pub old: Option<Value>,
    /// Value after.
    pub new: Value,
    /// Place in the order of capture.
    pub ordinal: i64,
}

/// The edits of one record as one change per field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coalesced {
    /// Field, last new value, first old value: as [`crate::case::Observed`]
    /// takes them. A field that came back to where it was is left out.
    pub values: Vec<(usize, Value, Option<Value>)>,
    /// Every single edit, in order.
    pub edits: Vec<Edit>,
}

/// Coalesces the edits of one record, in whatever order they were read.
pub fn coalesce(mut edits: Vec<Edit>) -> Coalesced {
    edits.sort_by_key(|e| e.ordinal);
    let mut values: Vec<(usize, Value, Option<Value>)> = Vec::new();
    for edit in &edits {
        match values.iter_mut().find(|(field, _, _)| *field == edit.field) {
            Some((_, new, _)) => new.clone_from(&edit.new),
            None => values.push((edit.field, edit.new.clone(), edit.old.clone())),
        }
    }
    values.retain(|(_, new, old)| old.as_ref() != Some(new));
    Coalesced { values, edits }
}
