//! Pairs that become of another type: for the CRM another record. What a pair is to
//! become is added first, and what it was is taken away when that is there, so that
//! a refusal or a crash in between costs neither.

use crm_core::model::WriteKind;

use crate::pg::store::causes;
use crate::pg::store::ends;
use crate::pg::store::lives;
use crate::pg::store::pairs;
use crate::pg::store::rows;
use crate::pg::store::spi::Result;
use crate::pg::store::writes::{self, NewWrite, WriteRow};
use crate::worker::cases;
use crate::worker::deliver::{Landed, kind_of};
use crate::worker::pairs::tied_again;
use crate::worker::world::Mirror;

/// The record that an update makes of a pair, where it is one.
pub(crate) fn target(mirror: &Mirror, write: &WriteRow) -> Option<String> {
    mirror
        .pairs()
        .filter(|_| kind_of(write) == WriteKind::Update)?;
    let mut is: Vec<&str> = write.record_id.as_ref()?.splitn(4, ':').collect();
    let values = cases::json_values(&write.vals);
    for (name, value) in &values {
        match (name.as_str(), value.as_deref()) {
            ("category", Some(category)) => *is.get_mut(2)? = category,
            ("type_id", Some(type_id)) => *is.get_mut(3)? = type_id,
            _ => {}
        }
    }
    Some(is.join(":"))
}

/// Updates of pairs landed: their rows get the new ids, and the former records
/// are to be removed.
pub(crate) fn landed(mirror: &Mirror, done: &[Landed]) -> Result<()> {
    let mut leave = Vec::new();
    for (write, id, _) in done {
        let former = write.record_id.as_ref().filter(|old| *old != id);
        let (Some(former), Some(_)) = (former, target(mirror, write)) else {
            continue;
        };
        let mut gone = vec![former.clone()];
        let there = !rows::present_rows(&mirror.table, vec![write.row_id])?.is_empty();
        if there && !lives::rename(&mirror.table, write.row_id, id)? {
            // The pair was of that type already: its row stands for both.
            lives::revive(&mirror.table, write.row_id)?;
            let kept = rows::replace(&mirror.table, mirror.id, write.row_id, id)?;
            tied_again(mirror, kept)?;
        } else if !there {
            // Deleted while the write was on its way: that meant what it became.
            gone.push(id.clone());
        }
        ends::readdress(mirror.id, write.row_id, id)?;
        for record in gone {
            leave.push(removal(mirror, write, record)?);
        }
    }
    writes::enqueue(leave)
}

/// The removal of a record that no row stands for any more.
fn removal(mirror: &Mirror, write: &WriteRow, record: String) -> Result<NewWrite> {
    Ok(NewWrite {
        mirror: mirror.id,
        row_id: pairs::spare_row(&mirror.table)?,
        entity: None,
        kind: "delete",
        record_id: Some(record),
        vals: "{}".to_owned(),
        old_vals: "{}".to_owned(),
        origin: write.origin.clone(),
        state: "queued",
        txs: causes::of(write.id)?,
    })
}
