//! What the outbox says of unsettled fields: states follow the writes that
//! there are.

use std::collections::{BTreeMap, HashMap, HashSet};

use crm_core::state::FieldState;

use crate::pg::store::ledger;
use crate::pg::store::writes::WriteRow;
use crate::worker::cases::json_values;
use crate::worker::world::{GroupInfo, World};

/// What people took out of the outbox (rejected, discarded, unlinked) is not
/// waited for: a state follows the writes that there are.
pub(super) fn forget_withdrawn(
    info: &GroupInfo,
    xrefs: &[ledger::XrefRow],
    pending: &[WriteRow],
    states: &mut HashMap<i64, BTreeMap<usize, FieldState>>,
) {
    let entity_of: HashMap<(i32, i64), i64> = xrefs
        .iter()
        .map(|x| ((x.mirror, x.row_id), x.entity))
        .collect();
    let mut waiting: HashSet<(i64, i32, String)> = HashSet::new();
    for write in pending {
        if let Some(entity) = entity_of.get(&(write.mirror, write.row_id)) {
            for (name, _) in json_values(&write.vals) {
                waiting.insert((*entity, write.mirror, name));
            }
        }
    }
    for (entity, fields) in states {
        for (index, state) in fields {
            for (side, member) in info.group.sides.iter().enumerate() {
                let Some(column) = info.group.column(*index, side) else {
                    continue;
                };
                if !waiting.contains(&(*entity, member.mirror, column.field.clone())) {
                    crm_core::outgoing::withdraw(state, side);
                }
            }
        }
    }
}

/// A claim is stored with the write only; the state learns of it here.
pub(super) fn overlay_claim(
    world: &World,
    info: &GroupInfo,
    write: &WriteRow,
    states: &mut HashMap<i64, BTreeMap<usize, FieldState>>,
) {
    let Some(fields) = write.entity.and_then(|e| states.get_mut(&e)) else {
        return;
    };
    let Some(mirror) = world.mirrors.get(&write.mirror) else {
        return;
    };
    for (field, value) in info.by_name(mirror, &json_values(&write.vals)) {
        if let Some(state) = fields.get_mut(&field) {
            crm_core::outgoing::claimed(state, mirror.side, &value, write.claimed_at);
        }
    }
}
