//! Outgoing writes: claim in a short transaction, send with none open, record
//! the results in another.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crm_core::connectors::CHANGED;
use crm_core::model::{ErrorClass, FieldType, Millis, RemoteError, Write, WriteKind, WriteResult};
use crm_core::outgoing::{self, Answer};
use crm_core::retry::Backoff;
use crm_core::state::FieldState;

use crate::pg::store::ledger::{self, EventRow};
use crate::pg::store::rows;
use crate::pg::store::spi::Result;
use crate::pg::store::streams;
use crate::pg::store::writes::{self, Setback, WriteRow};
use crate::worker::absent;
use crate::worker::cases;
use crate::worker::conditions;
use crate::worker::creates;
use crate::worker::flush;
use crate::worker::met;
use crate::worker::pairs;
use crate::worker::references;
use crate::worker::retypes;
use crate::worker::setbacks::{self, no_record, setback};
use crate::worker::unique;
use crate::worker::world::{Mirror, World};

/// A call on its way.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    pub(crate) mirror: i32,
    pub(crate) kind: WriteKind,
    pub(crate) rows: Vec<WriteRow>,
    /// 1 once it was asked what their records were before ([`crate::worker::origins`]),
    /// and 1 more for each of the mirror's unique keys that the CRM was asked for, see
    /// [`crate::worker::unique`].
    pub(crate) looked: usize,
}

const BACKOFF: Backoff = Backoff {
    first_ms: 500,
    max_ms: 300_000,
    attempts: u32::MAX,
};

pub(super) fn kind_of(row: &WriteRow) -> WriteKind {
    match row.kind.as_str() {
        "delete" => WriteKind::Delete,
        "create" => WriteKind::Create,
        _ => WriteKind::Update,
    }
}

/// Takes writes of a mirror for sending, as a batch for each kind.
pub(crate) fn claim(world: &World, mirror: &Mirror, limit: i64) -> Result<Vec<Batch>> {
    let mut by_kind: BTreeMap<u8, (WriteKind, Vec<WriteRow>)> = BTreeMap::new();
    let mut orphans = Vec::new();
    references::await_needed(mirror.id, limit)?;
    for row in unique::one_by_one(mirror, writes::claim(mirror.id, limit)?)? {
        let kind = kind_of(&row);
        if row.record_id.is_none() && kind != WriteKind::Create {
            orphans.push(setback(row.id, "dead", 0, &no_record()));
            continue;
        }
        let order = match kind {
            WriteKind::Create => 0,
            WriteKind::Update => 1,
            WriteKind::Delete => 2,
        };
        by_kind
            .entry(order)
            .or_insert_with(|| (kind, Vec::new()))
            .1
            .push(row);
    }
    writes::set_back(&orphans)?;
    if let Some((_, updates)) = by_kind.get_mut(&1) {
        conditions::set(world, mirror, updates)?;
    }
    let mut batches = Vec::new();
    for (kind, rows) in by_kind.into_values() {
        batches.push(Batch {
            mirror: mirror.id,
            kind,
            rows,
            looked: 0,
        });
    }
    Ok(batches)
}

/// The writes of a batch as the connector wants them.
pub(crate) fn to_writes(world: &World, mirror: &Mirror, batch: &Batch) -> Vec<Write> {
    batch
        .rows
        .iter()
        .map(|row| {
            let mut values: Vec<_> = cases::json_values(&row.vals)
                .into_iter()
                .map(|(field, value)| {
                    let field_type = mirror
                        .by_field
                        .get(&field)
                        .map_or(FieldType::Text, |c| mirror.types[*c]);
                    (field, field_type, value)
                })
                .collect();
            if let (Some(source), true) = (&mirror.source_field, batch.kind != WriteKind::Delete) {
                values.push((
                    source.clone(),
                    FieldType::Text,
                    Some("pg_crm_sync".to_owned()),
                ));
            }
            Write {
                key: format!("w{}", row.id),
                record_id: row.record_id.clone(),
                unique_value: (batch.kind == WriteKind::Create && mirror.unique_field.is_some())
                    .then(|| creates::unique_value(&world.installation, mirror.id, row.row_id)),
                values,
                unchanged_since: row.unchanged_since,
            }
        })
        .collect()
}

/// What to do after the results of a batch are recorded.
#[derive(Debug, Default)]
pub(crate) struct After {
    /// Halves of a batch that was refused whole.
    pub(crate) resend: Vec<Batch>,
    /// Records to read, because they are gone, merged or in doubt.
    pub(crate) read: Vec<String>,
    /// The server cannot be used: `(message, advice)`.
    pub(crate) stop: Option<(String, &'static str)>,
    /// Writes that succeeded.
    pub(crate) done: usize,
}

/// Records results, one per row of the batch, in the caller's transaction.
pub(crate) fn record(
    world: &World,
    mirror: &Mirror,
    batch: Batch,
    results: Vec<WriteResult>,
    now: Millis,
) -> Result<After> {
    let mut sorted = Sorted::default();
    let mut after = After::default();
    let many = batch.rows.len() > 1;
    for (row, result) in batch.rows.into_iter().zip(results) {
        match result {
            WriteResult::Done { id, echoed, .. } => {
                if shows_other(&row, &echoed) {
                    after.read.push(id.clone());
                }
                sorted.done.push((row, id, echoed));
            }
            WriteResult::Exists { id, message } => sorted.exists.push((row, id, message)),
            WriteResult::Unknown(error) => sorted.unknown(row, &error),
            WriteResult::Failed(error) if error.class == ErrorClass::Split && many => {
                sorted.split.push(row);
            }
            WriteResult::Failed(error) => sorted.failed(row, error, &mut after, now),
        }
    }
    after.done = sorted.done.len();
    after.read.extend(sorted.exists.iter().map(|e| e.1.clone()));
    if mirror.pairs().is_some() {
        // What else is between the two records follows from it.
        let starts = sorted.done.iter().map(|(_, id, _)| pairs::start(id));
        after.read.extend(starts);
    }
    if !sorted.split.is_empty() {
        let second = sorted.split.split_off(sorted.split.len().div_ceil(2));
        for rows in [std::mem::take(&mut sorted.split), second] {
            if !rows.is_empty() {
                after.resend.push(Batch {
                    mirror: batch.mirror,
                    kind: batch.kind,
                    rows,
                    looked: batch.looked,
                });
            }
        }
    }
    sorted.write(world, mirror, batch.kind, now)?;
    Ok(after)
}

/// Whether the CRM says that it is done and shows something else, such as a stage that
/// only goes forward: no event tells of what it kept.
fn shows_other(row: &WriteRow, echoed: &[(String, Option<String>)]) -> bool {
    if echoed.is_empty() {
        return false;
    }
    let sent = cases::json_values(&row.vals);
    let other = |(name, shown): &(String, Option<String>)| {
        let ours = sent.iter().find(|(field, _)| field == name);
        ours.is_some_and(|(_, value)| !outgoing::is_form(shown, value))
    };
    echoed.iter().any(other)
}

/// A write that succeeded: the record's id and the values the answer shows.
pub(crate) type Landed = (WriteRow, String, Vec<(String, Option<String>)>);

#[derive(Default)]
struct Sorted {
    done: Vec<Landed>,
    exists: Vec<(WriteRow, String, String)>,
    split: Vec<WriteRow>,
    setbacks: Vec<Setback>,
    /// Rows to show as faulty: row id and message.
    faulty: Vec<(i64, String)>,
    refused: Vec<WriteRow>,
    /// Updates that wait for another try.
    again: Vec<WriteRow>,
}

impl Sorted {
    fn unknown(&mut self, row: WriteRow, error: &RemoteError) {
        self.setbacks.push(setback(row.id, "unknown", 500, error));
    }

    fn failed(&mut self, row: WriteRow, error: RemoteError, after: &mut After, now: Millis) {
        let seed = u64::try_from(row.id).unwrap_or_default() ^ now.unsigned_abs();
        let failures = u32::try_from(row.attempts).unwrap_or(1);
        let wait = BACKOFF
            .delay(failures, seed, error.retry_after_ms)
            .unwrap_or(BACKOFF.max_ms);
        match error.class {
            _ if error.maybe_applied => self.unknown(row, &error),
            ErrorClass::Retry | ErrorClass::Wait | ErrorClass::Reauth => {
                if error.code == CHANGED {
                    after.read.extend(row.record_id.clone());
                }
                self.later(row, wait, &error);
            }
            ErrorClass::Stop => {
                after.stop = Some((error.message.clone(), error.advice));
                self.later(row, wait.max(30_000), &error);
            }
            ErrorClass::Gone => {
                after.read.extend(row.record_id.clone());
                self.dead(row, &error);
            }
            ErrorClass::Split
            | ErrorClass::FixData
            | ErrorClass::FixPermission
            | ErrorClass::FixMapping => self.dead(row, &error),
        }
    }

    fn later(&mut self, row: WriteRow, wait: i64, error: &RemoteError) {
        self.setbacks.push(setback(row.id, "queued", wait, error));
        if kind_of(&row) == WriteKind::Update {
            self.again.push(row);
        }
    }

    fn dead(&mut self, row: WriteRow, error: &RemoteError) {
        self.faulty.push((row.row_id, error.message.clone()));
        self.setbacks.push(setback(row.id, "dead", 0, error));
        self.refused.push(row);
    }

    fn write(self, world: &World, mirror: &Mirror, kind: WriteKind, now: Millis) -> Result<()> {
        writes::set_back(&self.setbacks)?;
        setbacks::wait_again(world, mirror, &self.again, now)?;
        if kind == WriteKind::Create {
            let made = self
                .done
                .iter()
                .map(|(r, id, _)| (r.row_id, id.clone()))
                .collect();
            adopt(mirror, made)?;
        }
        if kind == WriteKind::Delete {
            absent::bury(mirror, self.done.iter().map(|(r, _, _)| r), now)?;
        }
        retypes::landed(mirror, &self.done)?;
        let landed: Vec<i64> = self.done.iter().map(|(r, _, _)| r.id).collect();
        let known: HashSet<i64> = writes::finish(landed)?.into_iter().collect();
        for (row, id, _) in &self.exists {
            if met::exists(world, mirror, row, id, now)? {
                continue;
            }
            writes::set_back(&[Setback {
                id: row.id,
                state: "queued",
                wait_ms: 0,
                status: 409,
                class: "retry".to_owned(),
                code: "exists".to_owned(),
                message: format!("the CRM already has this record as {id}; updating it"),
                advice: String::new(),
            }])?;
            adopt(mirror, vec![(row.row_id, id.clone())])?;
        }
        show_results(mirror, &self.done, self.faulty)?;
        remember(world, mirror, &self.done, &self.refused, now)?;
        let events = self
            .done
            .into_iter()
            .filter(|(row, _, _)| known.contains(&row.id))
            .map(|(row, id, _)| result_event(mirror, &row, id, now))
            .collect();
        flush::append(world, events)
    }
}

pub(super) fn result_event(mirror: &Mirror, row: &WriteRow, id: String, now: Millis) -> EventRow {
    let (fields, new_values) = cases::json_values(&row.vals).into_iter().unzip();
    EventRow {
        mirror: mirror.id,
        row_id: Some(row.row_id),
        record_id: Some(id),
        entity: row.entity,
        kind: match kind_of(row) {
            WriteKind::Create => "create",
            WriteKind::Update => "update",
            WriteKind::Delete => "delete",
        },
        origin: row.origin.clone(),
        source: "result".to_owned(),
        occurred_at: now,
        fields,
        new_values,
        ..EventRow::default()
    }
}

/// Clears or shows errors on the rows.
fn show_results(mirror: &Mirror, done: &[Landed], faulty: Vec<(i64, String)>) -> Result<()> {
    let bad: HashSet<i64> = faulty.iter().map(|(r, _)| *r).collect();
    let mut row_ids = Vec::new();
    let mut states = Vec::new();
    let mut errors = Vec::new();
    for (row, _, _) in done {
        let deleted = kind_of(row) == WriteKind::Delete;
        if !deleted && !bad.contains(&row.row_id) {
            row_ids.push(row.row_id);
            states.push(None);
            errors.push(None);
        }
    }
    for (row, message) in faulty {
        row_ids.push(row);
        states.push(Some("error".to_owned()));
        errors.push(Some(message));
    }
    if !row_ids.is_empty() {
        let none = vec![None; row_ids.len()];
        rows::record_results(&mirror.table, row_ids, none, states, errors)?;
    }
    Ok(())
}

/// Ties rows that were created, or turned out to exist, to their records. Where
/// a page or event brought the record as a row of its own already, that row
/// takes the place of ours.
pub(crate) fn adopt(mirror: &Mirror, made: Vec<(i64, String)>) -> Result<()> {
    if made.is_empty() {
        return Ok(());
    }
    let ids: Vec<String> = made.iter().map(|(_, id)| id.clone()).collect();
    let present: HashSet<String> = rows::present(&mirror.table, ids)?.into_iter().collect();
    let (double, fresh): (Vec<_>, Vec<_>) =
        made.into_iter().partition(|(_, id)| present.contains(id));
    let (row_ids, ids) = fresh.into_iter().unzip();
    creates::give_ids(mirror, row_ids, ids)?;
    for (row_id, id) in double {
        let kept = rows::replace(&mirror.table, mirror.id, row_id, &id)?;
        pairs::tied_again(mirror, kept)?;
    }
    Ok(())
}

/// The states of all unsettled fields of the entities that were written.
pub(super) fn states_of<'w>(
    rows: impl Iterator<Item = &'w WriteRow>,
) -> Result<HashMap<(i64, String), FieldState>> {
    let entities: Vec<i64> = rows.filter_map(|r| r.entity).collect();
    if entities.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = ledger::field_states(entities)?;
    let parsed = rows.into_iter().filter_map(|(entity, field, json)| {
        Some(((entity, field), serde_json::from_str(&json).ok()?))
    });
    Ok(parsed.collect())
}

/// Tells the states of fields what became of the writes.
pub(super) fn remember(
    world: &World,
    mirror: &Mirror,
    done: &[Landed],
    refused: &[WriteRow],
    now: Millis,
) -> Result<()> {
    let info = &world.groups[mirror.group];
    let mut states = states_of(done.iter().map(|(r, _, _)| r).chain(refused))?;
    let no_echo = Vec::new();
    let all = done
        .iter()
        .map(|(r, _, echoed)| (r, echoed, true))
        .chain(refused.iter().map(|r| (r, &no_echo, false)));
    let mut touched = HashSet::new();
    let mut rereads = BTreeSet::new();
    let mut normals: BTreeMap<usize, Vec<(i64, Option<String>)>> = BTreeMap::new();
    for (row, echoed, good) in all {
        let Some(entity) = row.entity else { continue };
        for (field, value) in info.by_name(mirror, &cases::json_values(&row.vals)) {
            let key = (entity, info.group.fields[field].name.clone());
            let Some(state) = states.get_mut(&key) else {
                continue;
            };
            outgoing::claimed(state, mirror.side, &value, row.claimed_at);
            let answer = if good {
                Answer::Done {
                    echoed: echoed_value(world, mirror, echoed, field),
                }
            } else {
                Answer::Failed
            };
            if let Some(value) = outgoing::answered(state, mirror.side, &value, answer, now) {
                for (column, cell) in info.cells(field, mirror.side, &value) {
                    normals.entry(column).or_default().push((row.row_id, cell));
                }
            }
            // What waits for this answer is told by a look at the record.
            if state.has_waiting()
                && let Some(record) = &row.record_id
            {
                rereads.insert(record.clone());
            }
            touched.insert(key);
        }
    }
    let reread = |record: String| flush::reread(mirror.id, record);
    streams::defer(rereads.into_iter().map(reread).collect())?;
    let stored = touched
        .into_iter()
        .filter_map(|key| {
            let json = serde_json::to_string(states.get(&key)?).ok()?;
            Some((key.0, key.1, Some(json)))
        })
        .collect();
    ledger::store_field_states(stored)?;
    show_normal_forms(mirror, normals)
}

/// Puts the CRM's form of values into rows, where it is not ours.
fn show_normal_forms(
    mirror: &Mirror,
    normals: BTreeMap<usize, Vec<(i64, Option<String>)>>,
) -> Result<()> {
    for (column, cells) in normals {
        let updates = cells
            .into_iter()
            .map(|(row_id, value)| rows::RowUpdate {
                row_id,
                tid: None,
                source: String::new(),
                modified_at: 0,
                values: vec![value],
            })
            .collect();
        rows::update(&mirror.table, &[&mirror.columns[column]], updates)?;
    }
    Ok(())
}

/// What the answer shows of a field, in canonical text: all of its columns.
fn echoed_value(
    world: &World,
    mirror: &Mirror,
    echoed: &[(String, Option<String>)],
    field: usize,
) -> Option<Option<String>> {
    let info = &world.groups[mirror.group];
    let cells: Option<Vec<_>> = info
        .columns(field, mirror.side)
        .iter()
        .map(|column| {
            let name = &mirror.columns[*column].field;
            let (_, raw) = echoed.iter().find(|(n, _)| n == name)?;
            world.canonical(mirror, *column, raw)
        })
        .collect();
    cells.map(|cells| crm_core::structure::pack(&cells))
}
