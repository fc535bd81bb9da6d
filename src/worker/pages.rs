//! Records read from the CRM: backfill, poll and read-back pages.

use std::collections::{BTreeSet, HashMap, HashSet};

use crm_core::model::{FieldType, Millis, Record, Value};
use crm_core::state::Interval;

use crate::pg::store::changes;
use crate::pg::store::ledger::EventRow;
use crate::pg::store::rows::{self, Row, RowInsert};
use crate::pg::store::spi::Result;
use crate::pg::store::streams;
use crate::pg::tx;
use crate::worker::absent;
use crate::worker::arrivals;
use crate::worker::cases::{self, Case};
use crate::worker::creates;
use crate::worker::erasure;
use crate::worker::flush;
use crate::worker::images;
use crate::worker::merges;
use crate::worker::reconcile;
use crate::worker::removals::{self, Removal};
use crate::worker::returns::{self, Asked};
use crate::worker::scope;
use crate::worker::shown;
use crate::worker::world::{Mirror, World};

/// How records came: as named in `crm.event.source`, and the row of
/// `crm.stream` if one brought them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Via {
    pub(crate) source: &'static str,
    pub(crate) stream: Option<i32>,
    /// When the records were asked for by id: they are no older than that.
    pub(crate) asked_at: Option<Millis>,
    /// Events up to this number had them read.
    pub(crate) awaited: i64,
}

impl Via {
    /// Not by a stream.
    pub(crate) fn asked(source: &'static str) -> Self {
        Self {
            source,
            stream: None,
            asked_at: None,
            awaited: i64::MAX,
        }
    }
}

/// What a page did.
#[derive(Debug, Default)]
pub(crate) struct PageApplied {
    pub(crate) inserted: usize,
    /// Rows that were there and are changed.
    pub(crate) updated: usize,
    pub(crate) examined: usize,
    /// Records put off because a user holds the row: read again later.
    pub(crate) locked: Vec<String>,
    /// Records that a reconciliation read and that were not as their rows showed them.
    pub(crate) differed: Vec<String>,
    /// Records of a first copy had rows already, although none was expected to.
    pub(crate) met: bool,
}

/// Applies records whose values are in the order of the mirror's columns.
/// A page's value applies unless the row was seen later, a write of ours is
/// unsettled, or the record is known to be deleted. Values that their type
/// cannot hold are parked. With `hope`, records of a first copy are taken for
/// new altogether before anything is looked up.
pub(crate) fn apply(
    world: &World,
    mirror: &Mirror,
    via: Via,
    mut records: Vec<Record>,
    unreadable: &Unreadable,
    now: Millis,
    hope: bool,
) -> Result<PageApplied> {
    streams::park_values(mirror.id, &mirror.server, via.source, unreadable)?;
    let blind: HashSet<(&str, usize)> = unreadable
        .iter()
        .filter_map(|(id, field, _)| Some((id.as_str(), *mirror.by_field.get(field)?)))
        .collect();
    let mut applied = PageApplied {
        examined: records.len(),
        ..PageApplied::default()
    };
    let ids: Vec<String> = records.iter().map(|r| r.id.clone()).collect();
    if hope && is_plain_copy(mirror, via) {
        let none = HashSet::new();
        records = erasure::without_erased(mirror, records, &ids, &none)?;
        records = absent::without_removed(mirror, records, &none, &mut applied.locked)?;
        records = creates::adopt_ours(world, mirror, records)?;
        match tx::in_subtransaction(|| Ok(load(mirror, &records)?)) {
            Ok(inserted) => {
                applied.inserted = inserted;
                return Ok(applied);
            }
            // Some are there, or something else is wrong with them: with care, then.
            Err(_) => applied.met = true,
        }
    }
    let present: HashSet<String> = rows::present(&mirror.table, ids.clone())?
        .into_iter()
        .collect();
    let records = erasure::without_erased(mirror, records, &ids, &present)?;
    let records = absent::without_removed(mirror, records, &present, &mut applied.locked)?;
    let (known, mut fresh): (Vec<Record>, Vec<Record>) =
        records.into_iter().partition(|r| present.contains(&r.id));
    // Pages that overlap show a record twice; the later one is the newer.
    let mut met = HashSet::new();
    fresh.reverse();
    fresh.retain(|r| met.insert(r.id.clone()));
    fresh.reverse();
    insert_fresh(world, mirror, via, fresh, &mut applied, now)?;
    if !known.is_empty() {
        let page = Compared { via, blind };
        compare_known(world, mirror, &page, known, &mut applied, now)?;
    }
    Ok(applied)
}

/// Record, field and text of values that their type cannot hold.
pub(crate) type Unreadable = Vec<(String, String, String)>;

/// A page while it is compared with the mirror.
pub(super) struct Compared<'p> {
    pub(super) via: Via,
    /// Cells of which the page tells nothing: record and column.
    pub(super) blind: HashSet<(&'p str, usize)>,
}

/// Whether records become rows without a line in the ledger and unfiltered.
fn is_plain_copy(mirror: &Mirror, via: Via) -> bool {
    via.source == "backfill" && mirror.table.filter.is_none()
}

/// Loads records of a first copy.
fn load(mirror: &Mirror, records: &[Record]) -> Result<usize> {
    let columns: Vec<_> = mirror.columns.iter().collect();
    let live = records.iter().filter(|r| !r.deleted);
    rows::load(&mirror.table, &columns, &mirror.server, live)
}

fn insert_fresh(
    world: &World,
    mirror: &Mirror,
    via: Via,
    fresh: Vec<Record>,
    applied: &mut PageApplied,
    now: Millis,
) -> Result<()> {
    let fresh = creates::adopt_ours(world, mirror, fresh)?;
    if is_plain_copy(mirror, via) {
        applied.inserted = load(mirror, &fresh)?;
        return Ok(());
    }
    let keep_deleted = via.source != "backfill";
    let mut stamps: HashMap<String, Millis> = HashMap::new();
    let inserts: Vec<RowInsert> = fresh
        .into_iter()
        .filter(|r| (keep_deleted || !r.deleted) && !r.id.is_empty())
        .map(|r| {
            stamps.insert(r.id.clone(), r.modified_at.unwrap_or_default());
            RowInsert {
                record_id: Some(r.id),
                source: mirror.server.clone(),
                modified_at: r.modified_at.unwrap_or_default(),
                deleted: r.deleted,
                values: (0..mirror.columns.len())
                    .map(|c| r.values.value(c))
                    .collect(),
            }
        })
        .collect();
    let columns: Vec<_> = mirror.columns.iter().collect();
    if via.source == "backfill" {
        applied.inserted = rows::insert(&mirror.table, &columns, inserts)?.len();
        return Ok(());
    }
    let met = arrivals::meet(world, mirror, inserts, now)?;
    applied.locked.extend(met.wait);
    let made = rows::insert(&mirror.table, &columns, met.new)?;
    applied.inserted = made.len() + met.adopted.len();
    if via.source == reconcile::SOURCE {
        let made = made.iter().filter_map(|(_, r)| r.clone());
        applied.differed.extend(made);
        let adopted = met.adopted.iter().map(|(r, _)| r.clone());
        applied.differed.extend(adopted);
    }
    let line = |row_id: i64, record: Option<String>| EventRow {
        mirror: mirror.id,
        row_id: Some(row_id),
        occurred_at: record
            .as_ref()
            .and_then(|r| stamps.get(r).copied())
            .unwrap_or(now),
        record_id: record,
        kind: "create",
        origin: mirror.server.clone(),
        source: via.source.to_owned(),
        stream: via.stream,
        ..EventRow::default()
    };
    let row_ids = made.iter().map(|(row_id, _)| *row_id).collect();
    let mut events: Vec<EventRow> = made.into_iter().map(|(row, r)| line(row, r)).collect();
    events.extend(met.adopted.into_iter().map(|(r, row)| line(row, Some(r))));
    flush::append(world, events)?;
    creates::after_remote_create(world, mirror, row_ids, now)
}

/// A line that says that a record is gone, or back.
pub(crate) fn existence(
    mirror: &Mirror,
    via: Via,
    row: &Row,
    kind: &'static str,
    at: Millis,
) -> EventRow {
    EventRow {
        mirror: mirror.id,
        row_id: Some(row.row_id),
        record_id: row.record_id.clone(),
        kind,
        origin: mirror.server.clone(),
        source: via.source.to_owned(),
        stream: via.stream,
        occurred_at: at,
        ..EventRow::default()
    }
}

/// The times that a record's stamp stands for. Where nothing says how exact it is,
/// whole seconds are a second wide.
pub(super) fn interval(world: &World, mirror: &Mirror, via: Via, at: Millis) -> Interval {
    let policy = &world.groups[mirror.group].policy;
    match policy.stated(&mirror.server, via.source) {
        Some(quality) => quality.interval(at),
        None if at % 1000 == 0 => Interval::second(at),
        None => Interval::instant(at),
    }
}

fn same(field_type: FieldType, a: &Value, b: Option<&str>) -> bool {
    a.as_deref() == b || crm_core::value::same(field_type, a, &b.map(str::to_owned))
}

/// Rows that a page shows otherwise, and what it shows of them.
struct Differing {
    rows: Vec<Row>,
    records: HashMap<String, Record>,
    asked: Asked,
}

/// Locks the rows of known records and keeps those worth a decision. Records
/// whose row somebody else holds are noted in `applied`.
fn differing(
    world: &World,
    mirror: &Mirror,
    page: &Compared<'_>,
    known: Vec<Record>,
    applied: &mut PageApplied,
) -> Result<Differing> {
    let columns: Vec<_> = mirror.columns.iter().collect();
    let ids: Vec<String> = known.iter().map(|r| r.id.clone()).collect();
    let asked = Asked::of(mirror, page.via, &ids)?;
    let locked = rows::lock_by_record(&mirror.table, &columns, ids)?;
    let row_ids: Vec<i64> = locked.iter().map(|r| r.row_id).collect();
    let undrained: HashSet<i64> = changes::undrained(mirror.id, row_ids)?
        .into_iter()
        .collect();
    let mut records: HashMap<String, Record> =
        known.into_iter().map(|r| (r.id.clone(), r)).collect();
    let leaving = absent::leaving(mirror, &locked, &records)?;
    let mut free: BTreeSet<String> = BTreeSet::new();
    let mut rows = Vec::new();
    for row in locked {
        let Some(record) = row.record_id.as_ref().and_then(|id| records.get_mut(id)) else {
            continue;
        };
        if undrained.contains(&row.row_id) {
            continue;
        }
        free.insert(record.id.clone());
        if leaving.contains(&record.id) {
            continue;
        }
        if asked.must_agree(&record.id) {
            // Events stamp rows a little later than their records are.
            record.modified_at = record.modified_at.max(Some(row.modified_at));
        }
        let at = record.modified_at.unwrap_or(0);
        let older = at > 0 && interval(world, mirror, page.via, at).to < row.modified_at;
        let equal = as_shown(mirror, page, &row, record);
        // What was asked for by id may tell more than its values: what came last.
        let asked = page.via.asked_at.is_some();
        if !older && (!equal || asked || at > row.modified_at) {
            rows.push(row);
        }
    }
    let held = records.keys().filter(|id| !free.contains(*id));
    applied.locked.extend(held.cloned());
    Ok(Differing {
        rows,
        records,
        asked,
    })
}

/// Whether a record is as its row shows it.
fn as_shown(mirror: &Mirror, page: &Compared<'_>, row: &Row, record: &Record) -> bool {
    let gone = row.is_gone();
    gone == record.deleted && (gone || changed(mirror, page, row, record).is_empty())
}

/// How many values of a record are others than those of its row.
pub(super) fn differences(mirror: &Mirror, row: &Row, record: &Record) -> usize {
    let page = Compared {
        via: Via::asked(reconcile::SOURCE),
        blind: HashSet::new(),
    };
    changed(mirror, &page, row, record).len()
}

/// Columns in which a record differs from its row.
pub(super) fn changed(
    mirror: &Mirror,
    page: &Compared<'_>,
    row: &Row,
    record: &Record,
) -> Vec<usize> {
    (0..mirror.columns.len())
        .filter(|c| !same(mirror.types[*c], &row.values[*c], record.values.get(*c)))
        .filter(|c| !page.blind.contains(&(record.id.as_str(), *c)))
        .collect()
}

/// The cases of rows that are compared. Records whose partner somebody else holds are noted in `applied`.
fn load_compared(
    world: &World,
    mirror: &Mirror,
    page: &Compared<'_>,
    rows: Vec<Row>,
    records: &HashMap<String, Record>,
    applied: &mut PageApplied,
) -> Result<Vec<Case>> {
    let all: Vec<usize> = (0..mirror.columns.len()).collect();
    let ids: HashMap<i64, String> = rows
        .iter()
        .filter_map(|r| Some((r.row_id, r.record_id.clone()?)))
        .collect();
    let (mut batch, blocked) = cases::load_drained(world, mirror, &all, rows, &HashSet::new())?;
    applied
        .locked
        .extend(blocked.iter().filter_map(|row| ids.get(row).cloned()));
    warm(world, mirror, page, &mut batch, records);
    mark_scope(world, mirror, page, &mut batch, records)?;
    Ok(batch)
}

fn compare_known(
    world: &World,
    mirror: &Mirror,
    page: &Compared<'_>,
    known: Vec<Record>,
    applied: &mut PageApplied,
    now: Millis,
) -> Result<()> {
    let Differing {
        rows,
        records,
        asked,
    } = differing(world, mirror, page, known, applied)?;
    let mut batch = load_compared(world, mirror, page, rows, &records, applied)?;
    let mut events = Vec::new();
    let (mut gone, mut back) = (Vec::new(), Vec::new());
    let mut conversions = Vec::new();
    for case in &mut batch {
        let Some(row) = case.rows[mirror.side].clone() else {
            continue;
        };
        let Some(record) = row.record_id.as_ref().and_then(|id| records.get(id)) else {
            continue;
        };
        if page.via.source == reconcile::SOURCE && !as_shown(mirror, page, &row, record) {
            applied.differed.push(record.id.clone());
        }
        let was_gone = row.is_gone();
        if was_gone && record.deleted {
            continue;
        }
        if was_gone != record.deleted {
            let kind = if record.deleted { "delete" } else { "restore" };
            let at = record.modified_at.unwrap_or(now);
            events.push(existence(mirror, page.via, &row, kind, at));
            if record.deleted { &mut gone } else { &mut back }.push(row.row_id);
        }
        // Of one that is tied first what it held when it went is decided, then what it
        // shows now.
        if was_gone && case.entity_id.is_some() {
            applied.locked.push(record.id.clone());
            continue;
        }
        // What a hidden row's CRM shows is ignored until the row is back.
        if was_gone {
            case.entity.records[mirror.side].deleted = false;
        }
        events.extend(asked.before(world, mirror, case, record, now)?);
        conversions.extend(conversion_of(world, mirror, page, &row, record));
        events.extend(shown::show(world, mirror, page, case, &row, record, now));
        events.extend(asked.after(world, mirror, case, record, now)?);
    }
    returns::name_who(mirror, &mut events)?;
    applied.updated += events.len();
    let watched = scope::watch(world, &batch);
    flush::flush(world, batch, events)?;
    scope::settle(world, mirror, watched, now)?;
    if !gone.is_empty() {
        // First: a removal that does not stand brings the row back.
        rows::mark_deleted(&mirror.table, gone.clone(), true, &mirror.server)?;
        removals::removed(world, mirror, &gone, Removal::remote(mirror, now))?;
    }
    if !back.is_empty() {
        rows::mark_deleted(&mirror.table, back.clone(), false, &mirror.server)?;
        removals::restored(world, mirror, back, now)?;
    }
    merges::convert(world, mirror, conversions, now)
}

/// The conversion that a record tells and its row did not show yet.
fn conversion_of(
    world: &World,
    mirror: &Mirror,
    page: &Compared<'_>,
    row: &Row,
    record: &Record,
) -> Option<merges::Conversion> {
    let fresh: Vec<(String, Value)> = changed(mirror, page, row, record)
        .into_iter()
        .map(|c| (mirror.columns[c].field.clone(), record.values.value(c)))
        .collect();
    merges::conversion(world, mirror, &record.id, &fresh)
}

/// Makes the images that deciding a page will need, all at once.
fn warm(
    world: &World,
    mirror: &Mirror,
    page: &Compared<'_>,
    batch: &mut [Case],
    records: &HashMap<String, Record>,
) {
    let info = &world.groups[mirror.group];
    if info.with_functions.is_empty() {
        return;
    }
    let mut coming = Vec::new();
    for (i, case) in batch.iter().enumerate() {
        let row = case.rows[mirror.side].as_ref();
        let record = row.and_then(|r| records.get(r.record_id.as_ref()?));
        let (Some(row), Some(record)) = (row, record) else {
            continue;
        };
        for column in changed(mirror, page, row, record) {
            if let Some(field) = info.field_of[mirror.side].get(&column) {
                coming.push((i, *field, record.values.value(column)));
            }
        }
    }
    images::warm(world, batch, mirror.side, &coming);
}

/// Finds out which links a page concerns.
fn mark_scope(
    world: &World,
    mirror: &Mirror,
    page: &Compared<'_>,
    batch: &mut [Case],
    records: &HashMap<String, Record>,
) -> Result<()> {
    if !scope::any(&world.groups[mirror.group]) {
        return Ok(());
    }
    let mut becomes = scope::Changed::new();
    for row in batch.iter().filter_map(|c| c.rows[mirror.side].as_ref()) {
        if let Some(record) = row.record_id.as_ref().and_then(|id| records.get(id)) {
            let values = changed(mirror, page, row, record).into_iter();
            let values = values.map(|c| (c, record.values.value(c)));
            becomes.insert(row.row_id, values.collect());
        }
    }
    scope::mark(world, mirror, batch, None, Some(&becomes))
}
