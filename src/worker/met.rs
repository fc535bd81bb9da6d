//! Creates that a CRM refuses because it has such a record already.
//!
//! Where a thing on several sides is concerned it is a match like any other. A row on
//! its own gives way to the record's: what the record lacks is filled, and what both
//! say otherwise is decided as two edits made without knowledge of each other.

use std::collections::BTreeMap;

use crm_core::decide::{Observed, Source};
use crm_core::model::{Millis, Value};
use crm_core::strategy::LOCAL;

use crate::pg::store::creates;
use crate::pg::store::ledger::EventRow;
use crate::pg::store::rows::Row;
use crate::pg::store::spi::Result;
use crate::pg::store::writes::{self, Setback, WriteRow};
use crate::pg::store::{changes, ends, ledger, rows};
use crate::worker::arrivals;
use crate::worker::cases::{self, Case};
use crate::worker::engine;
use crate::worker::flush;
use crate::worker::record::{self, Cause};
use crate::worker::unique::{self, TAKE_MS, normal};
use crate::worker::world::{Mirror, World};

/// So often a record that a create met is read before a person is asked.
const READS: i32 = 5;

/// Lets the row of the record that a create met take the create's place once it is
/// here and was read, or asks a person. False for a tie between two records, which is
/// made by writing it again.
pub(super) fn exists(
    world: &World,
    mirror: &Mirror,
    write: &WriteRow,
    record: &str,
    now: Millis,
) -> Result<bool> {
    if mirror.pairs().is_some() {
        return Ok(false);
    }
    let again = creates::has_met(write.id)?;
    writes::set_back(&[Setback {
        id: write.id,
        state: "queued",
        wait_ms: TAKE_MS,
        status: 409,
        class: "wait".to_owned(),
        code: "exists".to_owned(),
        message: format!("the CRM has this record already, as {record}"),
        advice: String::new(),
    }])?;
    let known = rows::lock_by_record(&mirror.table, &[], vec![record.to_owned()])?;
    let mut ids = vec![write.row_id];
    ids.extend(known.iter().map(|r| r.row_id));
    let xrefs = ledger::entities_of(mirror.id, ids)?;
    let alone = xrefs.iter().all(|x| x.mirror == mirror.id);
    let here = known.first().filter(|r| !alone || !r.deleted);
    let key = arrivals::first_key(world, mirror).unwrap_or_else(|| "key".to_owned());
    match here {
        Some(_) if !alone => unique::take(world, mirror, &key, write, record, now)?,
        // The row may show an older state: what the CRM has is read first.
        Some(_) if !again => {}
        Some(row) => give_way(world, mirror, write, (row.row_id, record), now)?,
        None if write.attempts < READS => {}
        None if !rows::present(&mirror.table, vec![record.to_owned()])?.is_empty()
            && known.is_empty() => {}
        None => {
            let reason = format!("the CRM has it already as record {record}, which cannot be read");
            unique::hold(mirror, &key, write, &[record.to_owned()], &reason)?;
        }
    }
    Ok(true)
}

/// Lets a row on its own give way to that of a record; it waits while somebody holds
/// one of them, or has just changed it.
fn give_way(
    world: &World,
    mirror: &Mirror,
    write: &WriteRow,
    (kept, record): (i64, &str),
    now: Millis,
) -> Result<()> {
    let pair = vec![kept, write.row_id];
    if !changes::undrained(mirror.id, pair.clone())?.is_empty() {
        return Ok(());
    }
    let all: Vec<usize> = (0..mirror.columns.len()).collect();
    let locked = cases::lock(mirror, &all, pair)?;
    let (goes, stays): (Vec<Row>, Vec<Row>) =
        (locked.into_iter()).partition(|r| r.row_id == write.row_id);
    let ([goes], [stays]) = (goes.as_slice(), stays.as_slice()) else {
        return Ok(());
    };
    let keys: Vec<usize> = (creates::keys(mirror.id)?.iter())
        .filter_map(|field| mirror.by_field.get(field).copied())
        .collect();
    if !keys.iter().any(|c| is_same_key(goes, stays, *c)) {
        let reason = format!("the CRM takes it for record {record}");
        let key = "no key of both";
        return unique::hold(mirror, key, write, &[record.to_owned()], &reason);
    }
    let txs = creates::give_up(mirror.id, goes.row_id)?;
    let cause = cause(write, &txs, now)?;
    for xref in ledger::entities_of(mirror.id, vec![goes.row_id])? {
        ends::forget_states(xref.entity)?;
    }
    ledger::unlink_rows(mirror.id, vec![goes.row_id])?;
    rows::replace(&mirror.table, mirror.id, goes.row_id, record)?;
    let (mut batch, _) = cases::load(world, mirror, &all, vec![stays.clone()])?;
    let events = batch
        .iter_mut()
        .filter_map(|case| {
            for tx in &txs {
                case.caused_by(*tx, false);
            }
            decide(world, mirror, case, (goes, stays), (&keys, &cause), now)
        })
        .collect();
    flush::flush(world, batch, events)
}

/// Whether two rows have one value of a key, as CRMs compare them.
fn is_same_key(one: &Row, other: &Row, column: usize) -> bool {
    let key = |row: &Row| row.values[column].as_deref().and_then(normal);
    key(one).is_some() && key(one) == key(other)
}

/// The statement that inserted a row.
fn cause(write: &WriteRow, txs: &[i64], now: Millis) -> Result<Cause> {
    let tx = txs.first().copied().unwrap_or_default();
    let header = changes::transactions(vec![tx])?;
    let mut cause = Cause::of(tx, header.first(), now);
    cause.origin.clone_from(&write.origin);
    Ok(cause)
}

/// Lets what the row that goes holds be decided; the line that tells of it.
fn decide(
    world: &World,
    mirror: &Mirror,
    case: &mut Case,
    (goes, stays): (&Row, &Row),
    (keys, cause): (&[usize], &Cause),
    now: Millis,
) -> Option<EventRow> {
    let info = &world.groups[mirror.group];
    let record_id = stays.record_id.clone();
    let mut event = record::by_sql(mirror, stays.row_id, record_id, "update", cause);
    let mut wishes: BTreeMap<usize, BTreeMap<usize, Value>> = BTreeMap::new();
    for (column, of) in mirror.columns.iter().enumerate() {
        let (ours, theirs) = (&goes.values[column], &stays.values[column]);
        let same = crm_core::value::same(mirror.types[column], ours, theirs)
            || (keys.contains(&column) && is_same_key(goes, stays, column));
        if ours.is_none() || of.read_only || same {
            continue;
        }
        event.fields.push(of.field.clone());
        event.old_values.push(theirs.clone());
        event.new_values.push(ours.clone());
        if let Some(field) = info.field_of[mirror.side].get(&column) {
            wishes
                .entry(*field)
                .or_default()
                .insert(column, ours.clone());
        }
    }
    if event.fields.is_empty() {
        return None;
    }
    let held = &case.entity.records[mirror.side].values;
    let values = (wishes.into_iter())
        .map(|(field, cells)| {
            let wish = info.overlaid(field, mirror.side, &held[field], |c| cells.get(&c).cloned());
            // It was written where nothing was seen.
            (field, wish, Some(None))
        })
        .collect();
    let quality = info.policy.quality(LOCAL, "sql");
    let observed = Observed {
        side: mirror.side,
        source: Source::Local,
        origin: cause.origin.clone(),
        values,
        at: quality.interval(cause.at),
        quality,
        seq: engine::order(),
        score: cause.score,
        anew: true,
        ..Observed::default()
    };
    let decisions = case.observe(world, &observed, now);
    event.decision = record::decision_json(world, mirror, &decisions);
    event.carried = record::take_carried(world, case);
    Some(event)
}
