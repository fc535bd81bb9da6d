//! What one drain of SQL changes decides together: both sides of one thing.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::pg::store::changes::{self, Before};
use crate::pg::store::ledger;
use crate::pg::store::spi::Result;
use crate::worker::cases::Case;
use crate::worker::edits::canonical_old;
use crate::worker::world::World;

/// Takes along what else was changed of the same things: decided apart, the
/// first would be written over the rest.
pub(super) fn add_partners(world: &World, by_mirror: &mut BTreeMap<i32, Vec<i64>>) -> Result<()> {
    let mut others: BTreeMap<i32, BTreeSet<i64>> = BTreeMap::new();
    for (id, rows) in by_mirror.iter() {
        let Some(mirror) = world.mirrors.get(id) else {
            continue;
        };
        if world.groups[mirror.group].group.sides.len() > 1 {
            for x in ledger::entities_of(*id, rows.clone())? {
                if x.mirror != *id {
                    others.entry(x.mirror).or_default().insert(x.row_id);
                }
            }
        }
    }
    for (id, rows) in others {
        let waiting = changes::undrained(id, rows.into_iter().collect())?;
        let taken = by_mirror.entry(id).or_default();
        taken.extend(waiting);
        taken.sort_unstable();
        taken.dedup();
    }
    by_mirror.retain(|_, rows| !rows.is_empty());
    Ok(())
}

/// What one drain decides together.
#[derive(Clone, Copy)]
pub(super) struct Batch<'b> {
    /// Mirror and row.
    pub(super) rows: &'b HashSet<(i32, i64)>,
    /// By mirror that is still to come: what its rows held before.
    pub(super) before: &'b HashMap<i32, Before>,
}

impl Batch<'_> {
    /// Shows rows of other sides as they were before changes that are not
    /// decided yet: that is what their CRMs hold.
    pub(super) fn take_back(self, world: &World, cases: &mut [Case]) {
        for case in cases {
            let info = &world.groups[case.group];
            for (side, row) in case.rows.iter().enumerate() {
                let id = info.group.sides[side].mirror;
                let olds = row
                    .as_ref()
                    .and_then(|r| self.before.get(&id)?.get(&r.row_id));
                let (Some(olds), Some(mirror)) = (olds, world.mirrors.get(&id)) else {
                    continue;
                };
                for (attnum, old) in olds {
                    let column = mirror.by_attnum.get(attnum).copied();
                    let field = column.and_then(|c| info.field_of[side].get(&c));
                    if let (Some(column), Some(field)) = (column, field)
                        && let Some(old) = canonical_old(mirror.types[column], old)
                    {
                        case.entity.records[side].values[*field] = old;
                    }
                }
            }
        }
    }
}
