//! Writes on condition: where a policy row is strict, nothing at the CRM is
//! overwritten unseen. Such an update goes out one record a call, and only if the
//! record is as it was last seen. One that is refused for that has its record
//! read, which decides anew; what still stands then goes out under the new stamp.

use std::collections::HashMap;

use crate::pg::store::rows;
use crate::pg::store::spi::Result;
use crate::pg::store::writes::WriteRow;
use crate::worker::cases;
use crate::worker::world::{Mirror, World};

/// Sets the condition of each update that has a field under a strict row. The
/// stamp is the newest that the CRM showed; a record that it never showed since it
/// was made counts as changed, so it is read first.
pub(super) fn set(world: &World, mirror: &Mirror, updates: &mut [WriteRow]) -> Result<()> {
    let connector = world.connectors.get(&mirror.server);
    let policy = &world.groups[mirror.group].policy;
    let any = policy.rules.iter().any(|r| r.strict);
    if !any || !connector.is_some_and(|c| c.writes_on_condition()) {
        return Ok(());
    }
    let strict: Vec<&mut WriteRow> = updates
        .iter_mut()
        .filter(|w| is_strict(world, mirror, w))
        .collect();
    let ids = strict.iter().map(|w| w.row_id).collect();
    let stamps: HashMap<i64, i64> = rows::look(&mirror.table, &[], ids)?
        .into_iter()
        .map(|r| (r.row_id, r.modified_at))
        .collect();
    for write in strict {
        let stamp = stamps.get(&write.row_id).copied();
        write.unchanged_since = Some(stamp.unwrap_or_default());
    }
    Ok(())
}

fn is_strict(world: &World, mirror: &Mirror, write: &WriteRow) -> bool {
    let info = &world.groups[mirror.group];
    let fields = info.by_name(mirror, &cases::json_values(&write.vals));
    fields.iter().any(|(field, _)| {
        let rule = info.policy.rule(&info.group.fields[*field].name);
        rule.is_some_and(|r| r.strict)
    })
}

/// Calls of at most so many writes; each one on condition has a call of its own.
pub(super) fn chunks(rows: Vec<WriteRow>, most: usize) -> Vec<Vec<WriteRow>> {
    let (alone, many): (Vec<_>, Vec<_>) =
        (rows.into_iter()).partition(|w| w.unchanged_since.is_some());
    let alone = alone.into_iter().map(|w| vec![w]);
    many.chunks(most)
        .map(<[WriteRow]>::to_vec)
        .chain(alone)
        .collect()
}
