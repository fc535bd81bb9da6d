//! Merging two records and deleting one for good.

use super::{
    State,
    error::ApiError,
    model::{Catalog, PropertyId, Table},
    store::{Live, Past, Record},
    webhooks::event::{Event, What},
    write::{self, Origin},
};

/// Merges `loser` into `winner`. The survivor is a new record with a new id; both old ids lead
/// to it. Values of the winner win, the loser's fill the gaps. Answers the new id.
pub(crate) fn merge(
    state: &State,
    table: &Table,
    catalog: &Catalog,
    live: &mut Live,
    winner: u64,
    loser: u64,
    origin: &Origin,
) -> Result<u64, ApiError> {
    let (winner, loser) = (live.resolve(winner), live.resolve(loser));
    if winner == loser {
        return Err(ApiError::validation("Cannot merge an object with itself"));
    }
    let (values, created_ms, moved) = united(catalog, live, winner, loser)?;
    let id = live.take_id();
    let now = state.now_ms();
    let mut record = Record {
        created_ms,
        modified_ms: now,
        ..Record::default()
    };
    for old in [winner, loser] {
        for (property, value) in write::unique_values(catalog, live, old) {
            live.release(property, &value, old);
        }
        if let Some(mut gone) = live.copy(old) {
            gone.gone = true;
            gone.archived_ms = Some(now);
            gone.modified_ms = now;
            state.store(table, live, old, gone);
        }
        live.aliases.insert(old, id);
    }
    for (property, value) in values {
        if catalog.get(property).unique {
            live.claim(property, &value, id);
        }
        record.set(Past {
            property,
            value: Some(value.into()),
            at_ms: now,
            source_type: origin.source.clone(),
            source_id: origin.id.clone(),
        });
    }
    state.store(table, live, id, record);
    let what = What::Merge {
        primary: winner,
        merged: vec![loser],
        new: id,
        moved,
    };
    state
        .webhooks
        .emit(Event::new(table, winner, now, origin, what));
    state.move_associations(table.index, &[winner, loser], id);
    Ok(id)
}

type United = (Vec<(PropertyId, String)>, i64, u64);

/// The values of the survivor, its creation stamp, and how many came from the loser.
fn united(catalog: &Catalog, live: &Live, winner: u64, loser: u64) -> Result<United, ApiError> {
    let missing = || ApiError::not_found("resource not found");
    let first = live.live_view(winner).ok_or_else(missing)?;
    let second = live.live_view(loser).ok_or_else(missing)?;
    let mut values = Vec::new();
    let mut moved = 0;
    for id in catalog.ids() {
        let property = catalog.get(id);
        if property.name == "hs_merged_object_ids" {
            let mut ids: Vec<String> = [&first, &second]
                .iter()
                .filter_map(|v| v.text(id, property))
                .collect();
            ids.push(format!("{winner};{loser}"));
            values.push((id, ids.join(";")));
        } else if !property.read_only {
            let value = first.text(id, property).or_else(|| {
                let value = second.text(id, property)?;
                moved += 1;
                Some(value)
            });
            values.extend(value.map(|v| (id, v)));
        }
    }
    Ok((values, first.created_ms.min(second.created_ms), moved))
}

/// Deletes a record and its values for good; answers whether there was one.
pub(crate) fn forget(
    state: &State,
    table: &Table,
    catalog: &Catalog,
    live: &mut Live,
    id: u64,
    origin: &Origin,
) -> bool {
    let Some(record) = live.copy(id) else {
        return false;
    };
    for (property, value) in write::unique_values(catalog, live, id) {
        live.release(property, &value, id);
    }
    let now = state.now_ms();
    let gone = Record {
        n: record.n,
        created_ms: record.created_ms,
        modified_ms: now,
        archived_ms: Some(now),
        gone: true,
        ..Record::default()
    };
    state.store(table, live, id, gone);
    for what in [What::PrivacyDeletion, What::Deletion] {
        state
            .webhooks
            .emit(Event::new(table, id, now, origin, what));
    }
    true
}
