//! Keys that exist once, such as an invoice number: before a record is made its
//! CRM is asked for them, one search per batch of creates and key. What is
//! found takes the create's place, or a person is asked. Creates without such
//! a key are not looked for.

use std::collections::{HashMap, HashSet};

use crm_core::model::{Millis, Page, Record, RemoteError, WriteKind};
use crm_core::retry::Backoff;

use crate::pg::store::reviews::{self, Kind, RowQuestion};
use crate::pg::store::spi::Result;
use crate::pg::store::writes::{self, NewWrite, Setback, WriteRow};
use crate::pg::store::{ends, ledger, matches, rows};
use crate::pg::tx;
use crate::worker::cases;
use crate::worker::deliver::Batch;
use crate::worker::engine::{Engine, Job, Step};
use crate::worker::flush;
use crate::worker::pages::Via;
use crate::worker::reading;
use crate::worker::removals;
use crate::worker::session::Session;
use crate::worker::world::{Mirror, World};

/// While a found record is taken over its create is not claimed.
pub(super) const TAKE_MS: i64 = 2_000;

const BACKOFF: Backoff = Backoff {
    first_ms: 500,
    max_ms: 300_000,
    attempts: u32::MAX,
};

/// What became of a batch that may have to be looked for first.
pub(super) enum Look {
    /// The CRM was asked; the batch comes back with the answer.
    Asked,
    /// The I/O thread has its fill.
    Full,
    /// Nothing to look for.
    Free(Batch),
}

/// Keys are compared without regard to case and surrounding blanks, as in
/// `crm._match_expr`.
pub(super) fn normal(value: &str) -> Option<String> {
    let text = value.trim().to_lowercase();
    (!text.is_empty()).then_some(text)
}

/// The value that a create would give a field, without surrounding blanks.
pub(crate) fn value_of(vals: &str, field: &str) -> Option<String> {
    let values = cases::json_values(vals);
    let value = values.into_iter().find(|(name, _)| name == field)?.1?;
    let text = value.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// Where a batch is cut of whose values the first `fit` are looked for in one search.
pub(crate) fn end_of_search(values: &[Option<String>], fit: usize) -> Option<usize> {
    let mut left = fit;
    values.iter().position(|v| {
        let over = v.is_some() && left == 0;
        left -= usize::from(v.is_some() && left > 0);
        over
    })
}

/// Puts creates back whose key an earlier unfinished one has: they are looked
/// for when that one is done. The others are returned.
pub(super) fn one_by_one(mirror: &Mirror, claimed: Vec<WriteRow>) -> Result<Vec<WriteRow>> {
    let creates: Vec<i64> = (claimed.iter())
        .filter(|r| r.kind == "create")
        .map(|r| r.id)
        .collect();
    if mirror.unique_keys.is_empty() || creates.is_empty() {
        return Ok(claimed);
    }
    let mut later = HashMap::new();
    for column in &mirror.unique_keys {
        let field = &mirror.columns[*column].field;
        let normal = |text: &str| matches::normal_form(text, false);
        for (id, before) in writes::same_key(mirror.id, field, normal, creates.clone())? {
            later.insert(id, (before, field.clone()));
        }
    }
    let setbacks: Vec<Setback> = later
        .iter()
        .map(|(id, (before, field))| Setback {
            id: *id,
            state: "queued",
            wait_ms: TAKE_MS,
            status: 0,
            class: "wait".to_owned(),
            code: "key_waits".to_owned(),
            message: format!("write {before} makes a record with the same {field} first"),
            advice: String::new(),
        })
        .collect();
    writes::set_back(&setbacks)?;
    Ok(claimed
        .into_iter()
        .filter(|r| !later.contains_key(&r.id))
        .collect())
}

impl Engine {
    /// Asks the CRM for the next unique key of a batch of creates, if they have
    /// one.
    pub(super) fn look_first(&mut self, batch: Batch) -> Look {
        let mut batch = match self.ask_origins(batch) {
            Look::Free(batch) => batch,
            asked => return asked,
        };
        let Some(mirror) = self.world.mirrors.get(&batch.mirror) else {
            return Look::Free(batch);
        };
        if batch.kind != WriteKind::Create {
            return Look::Free(batch);
        }
        let keys = mirror.unique_keys.clone();
        for column in keys.into_iter().skip(batch.looked.saturating_sub(1)) {
            let field = mirror.columns[column].field.clone();
            let values: Vec<Option<String>> = batch
                .rows
                .iter()
                .map(|r| value_of(&r.vals, &field))
                .collect();
            let given: Vec<String> = values.iter().flatten().cloned().collect();
            if given.is_empty() {
                batch.looked += 1;
                continue;
            }
            let Some(server) = self.server(&mirror.server) else {
                return Look::Full;
            };
            let (connector, config) = (server.connector, &server.config);
            let fit = connector.find_batch(&mirror.object, &mirror.fields, &field, &given);
            let given = &given[..fit.min(given.len())];
            let request =
                connector.find_request(config, &mirror.object, &mirror.fields, &field, given);
            // The rows behind the last value that fits are a batch of their own.
            let cut = end_of_search(&values, given.len());
            let rest = cut.map(|at| batch.rows.split_off(at));
            let (id, kind, looked) = (batch.mirror, batch.kind, batch.looked);
            if !self.fetch(id, request, Job::Look { batch, column }) {
                return Look::Full;
            }
            self.watch(id).pushes += 1;
            self.halves.extend(rest.map(|rows| Batch {
                mirror: id,
                kind,
                rows,
                looked,
            }));
            return Look::Asked;
        }
        Look::Free(batch)
    }
}

/// What a search says about the creates of a batch.
struct Found {
    /// Their keys are free.
    free: Vec<WriteRow>,
    /// One record has the key.
    one: Vec<(WriteRow, Record)>,
    /// Several have it: their ids.
    several: Vec<(WriteRow, Vec<String>)>,
}

fn sort(field: &str, column: usize, rows: Vec<WriteRow>, records: Vec<Record>) -> Found {
    let mut by_key: HashMap<String, Vec<Record>> = HashMap::new();
    for record in records.into_iter().filter(|r| !r.deleted) {
        if let Some(key) = record.values.get(column).and_then(normal) {
            let same = by_key.entry(key).or_default();
            if same.iter().all(|r| r.id != record.id) {
                same.push(record);
            }
        }
    }
    let mut found = Found {
        free: Vec::new(),
        one: Vec::new(),
        several: Vec::new(),
    };
    for row in rows {
        let key = value_of(&row.vals, field).as_deref().and_then(normal);
        match key.and_then(|k| by_key.get(&k)).map(Vec::as_slice) {
            None | Some([]) => found.free.push(row),
            Some([one]) => found.one.push((row, one.clone())),
            Some(several) => {
                let ids = several.iter().map(|r| r.id.clone()).collect();
                found.several.push((row, ids));
            }
        }
    }
    found
}

impl Session {
    /// The CRM has answered which records have the keys of a batch.
    pub(super) fn looked(
        &mut self,
        batch: Batch,
        column: usize,
        page: Page,
        now: Millis,
    ) -> Step<()> {
        let id = batch.mirror;
        let watch = self.engine.watch(id);
        watch.pushes = watch.pushes.saturating_sub(1);
        self.engine.may_send = true;
        let Some(mirror) = self.engine.world.mirrors.get(&id) else {
            return Ok(());
        };
        if page.next.is_some() && batch.rows.len() > 1 {
            // More than one answer shows: fewer keys at a time.
            let (mut first, mut second) = (batch.clone(), batch);
            second.rows = first.rows.split_off(first.rows.len() / 2);
            self.engine.halves.extend([first, second]);
            return Ok(());
        }
        let field = mirror.columns[column].field.clone();
        let (kept, looked) = (batch.clone(), batch.looked + 1);
        let found = sort(&field, column, batch.rows, page.records);
        let put = tx::in_transaction(|| Ok(put_aside(mirror, &field, &found)?));
        if put.is_err() {
            // Nobody else knows of these writes: they are looked for again.
            self.engine.halves.push_back(kept);
            return put;
        }
        if !found.free.is_empty() {
            self.engine.halves.push_back(Batch {
                mirror: id,
                kind: WriteKind::Create,
                rows: found.free,
                looked,
            });
        }
        if found.one.is_empty() {
            return Ok(());
        }
        let (rows, records): (Vec<WriteRow>, Vec<Record>) = found.one.into_iter().unzip();
        let pairs: Vec<(WriteRow, String)> = (rows.into_iter())
            .zip(records.iter().map(|r| r.id.clone()))
            .collect();
        let mut shown = HashSet::new();
        let page = Page {
            records: (records.into_iter())
                .filter(|r| shown.insert(r.id.clone()))
                .collect(),
            ..Page::default()
        };
        // A record that is new here takes the row whose create waits.
        reading::page(&mut self.engine, id, Via::asked("read"), page, now, |_| {
            Ok(())
        })?;
        let world = &self.engine.world;
        let Some(mirror) = world.mirrors.get(&id) else {
            return Ok(());
        };
        tx::in_transaction(|| {
            for (row, record) in &pairs {
                take(world, mirror, &field, row, record, now)?;
            }
            Ok(())
        })
    }

    /// The CRM could not be asked: the creates wait.
    pub(super) fn look_failed(
        &mut self,
        batch: Batch,
        error: &RemoteError,
        now: Millis,
    ) -> Step<()> {
        let watch = self.engine.watch(batch.mirror);
        watch.pushes = watch.pushes.saturating_sub(1);
        let setback = |row: &WriteRow| Setback {
            id: row.id,
            state: "queued",
            wait_ms: BACKOFF
                .delay(
                    u32::try_from(row.attempts).unwrap_or(1),
                    now.unsigned_abs(),
                    error.retry_after_ms,
                )
                .unwrap_or(BACKOFF.max_ms),
            status: i32::from(error.status),
            class: error.class.name().to_owned(),
            code: error.code.clone(),
            message: format!("its key could not be looked for: {}", error.message),
            advice: error.advice.to_owned(),
        };
        let setbacks: Vec<Setback> = batch.rows.iter().map(setback).collect();
        let stored = tx::in_transaction(|| Ok(writes::set_back(&setbacks)?));
        if stored.is_err() {
            self.engine.halves.push_back(batch);
        }
        self.engine.may_send = true;
        stored.map(drop)
    }
}

/// Creates that are not sent now: back in the queue until the found record is
/// in the mirror, or held with a question.
fn put_aside(mirror: &Mirror, field: &str, found: &Found) -> Result<()> {
    let waits: Vec<Setback> = (found.one.iter())
        .map(|(row, record)| Setback {
            id: row.id,
            state: "queued",
            wait_ms: TAKE_MS,
            status: 0,
            class: "wait".to_owned(),
            code: "key_found".to_owned(),
            message: format!("record {} has this {field} already", record.id),
            advice: String::new(),
        })
        .collect();
    writes::set_back(&waits)?;
    for (row, ids) in &found.several {
        let reason = format!("{} records of the CRM have its {field}", ids.len());
        hold(mirror, field, row, &ids[..ids.len().min(20)], &reason)?;
    }
    Ok(())
}

/// A person says which record it is.
pub(super) fn hold(
    mirror: &Mirror,
    field: &str,
    row: &WriteRow,
    records: &[String],
    reason: &str,
) -> Result<()> {
    let candidates = serde_json::json!({
        "field": field, "value": value_of(&row.vals, field), "records": records,
    });
    reviews::ask(&RowQuestion {
        kind: Kind::Create,
        link: None,
        mirror: mirror.id,
        row_id: row.row_id,
        entity: row.entity,
        reason,
        candidates: &candidates.to_string(),
    })?;
    writes::set_back(&[Setback {
        id: row.id,
        state: "held",
        wait_ms: 0,
        status: 0,
        class: "match".to_owned(),
        code: "unknown_create".to_owned(),
        message: reason.to_owned(),
        advice: format!(
            "It is not made again. Mend the CRM and SELECT crm.resolve_create({id}, 'not made'); or name the record that it is: SELECT crm.resolve_create({id}, 'made', '{record}');",
            id = row.id,
            record = records.first().map_or("its id", String::as_str),
        ),
    }])?;
    Ok(())
}

/// Lets the row of a found record take the place of the row that waits for its
/// create; where it is another thing's, a person is asked.
pub(super) fn take(
    world: &World,
    mirror: &Mirror,
    field: &str,
    write: &WriteRow,
    record: &str,
    now: Millis,
) -> Result<()> {
    let waiting = matches::without_id(&mirror.table, vec![write.row_id])?;
    if waiting.is_empty() {
        // It has its record, or somebody removed it.
        return Ok(());
    }
    let all: Vec<usize> = (0..mirror.columns.len()).collect();
    let locked = rows::lock_by_record(&mirror.table, &[], vec![record.to_owned()])?;
    let Some(found) = locked.first().map(|r| (r.row_id, r.deleted)) else {
        return Ok(());
    };
    let (kept, deleted) = found;
    let theirs = ledger::entities_of(mirror.id, vec![kept])?;
    let ours = ledger::entities_of(mirror.id, vec![write.row_id])?;
    let others = |x: &&ledger::XrefRow| x.mirror != mirror.id;
    let clash = (theirs.iter().filter(others)).any(|t| {
        ours.iter()
            .any(|o| o.mirror == t.mirror && o.row_id != t.row_id)
    });
    if deleted || clash || (ours.is_empty() && !theirs.is_empty()) {
        let reason = format!("record {record} has its {field} and is one with another record");
        return hold(mirror, field, write, &[record.to_owned()], &reason);
    }
    let locked = cases::lock(mirror, &all, vec![kept, write.row_id])?;
    if locked.len() < 2 {
        return Ok(());
    }
    writes::withdraw_creates(mirror.id, vec![write.row_id])?;
    rows::replace(&mirror.table, mirror.id, write.row_id, record)?;
    if let Some(entity) = ours.first().map(|x| x.entity) {
        let mut thing = vec![(mirror.id, kept)];
        thing.extend(theirs.iter().filter(others).map(|x| (x.mirror, x.row_id)));
        ends::join_entity(entity, &thing)?;
    }
    let fills = lone_values(world, mirror, write, &locked, kept);
    if !fills.is_empty() {
        let shadow = world.groups[mirror.group].group.sides[mirror.side].shadow;
        writes::enqueue(vec![NewWrite {
            mirror: mirror.id,
            row_id: kept,
            entity: None,
            kind: "update",
            record_id: Some(record.to_owned()),
            vals: serde_json::Value::Object(fills).to_string(),
            old_vals: "{}".to_owned(),
            origin: write.origin.clone(),
            state: flush::state_of(world, mirror.id, shadow, false),
            txs: Vec::new(),
        }])?;
    }
    removals::agree(world, mirror, vec![kept], now)
}

/// What only the row that goes holds, in fields that no other side has.
fn lone_values(
    world: &World,
    mirror: &Mirror,
    write: &WriteRow,
    locked: &[rows::Row],
    kept: i64,
) -> serde_json::Map<String, serde_json::Value> {
    let info = &world.groups[mirror.group];
    let shown = locked.iter().find(|r| r.row_id == kept);
    let mut fills = serde_json::Map::new();
    for (name, value) in cases::json_values(&write.vals) {
        let Some(column) = mirror.by_field.get(&name) else {
            continue;
        };
        let field = info.field_of[mirror.side].get(column);
        let shared = field.is_some_and(|f| {
            let sides = &info.group.fields[*f].sides;
            sides.iter().flatten().count() > 1
        });
        let blank = shown.is_some_and(|r| r.values[*column].is_none());
        if !shared && blank && value.is_some() {
            fills.insert(name, serde_json::json!(value));
        }
    }
    fills
}
