//! What users changed with SQL: from the capture log to decisions and writes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crm_core::decide::{Observed, Source};
use crm_core::guard::Window;
use crm_core::model::Millis;
use crm_core::plan::DeletedBy;
use crm_core::strategy::LOCAL;

use crate::pg::capture::decode::OldValue;
use crate::pg::guc;
use crate::pg::store::changes::{self, Before, ChangeRow, TxRow};
use crate::pg::store::ledger::EventRow;
use crate::pg::store::rows::{self, Row};
use crate::pg::store::spi::Result;
use crate::pg::store::streams::{self, Poison};
use crate::pg::store::writes::{self, NewWrite};
use crate::pg::tx::SqlError;
use crate::worker::batch::{self, Batch};
use crate::worker::cases::{self, Case};
use crate::worker::creates;
use crate::worker::edits::{Cells, canonical_old, value_then, whole_values};
use crate::worker::engine;
use crate::worker::flush;
use crate::worker::foresee;
use crate::worker::record::{self, Cause};
use crate::worker::removals::{self, Removal};
use crate::worker::scope;
use crate::worker::world::{Mirror, World};

/// What a drain did.
#[derive(Debug, Default)]
pub(crate) struct Drained {
    /// Changes taken out of the log.
    pub(crate) changes: usize,
    /// Rows left for later because a user holds them.
    pub(crate) locked: usize,
}

/// Takes up to about `limit` changes and decides them, in one transaction of
/// the caller.
pub(crate) fn drain(
    world: &World,
    window: &mut Window,
    limit: i64,
    now: Millis,
) -> Result<Drained> {
    let mut by_mirror: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
    let (rows, more) = changes::peek(limit)?;
    for (mirror, row) in rows {
        by_mirror.entry(mirror).or_default().push(row);
    }
    if more {
        batch::add_partners(world, &mut by_mirror)?;
    }
    drain_rows(world, window, by_mirror, now)
}

/// Takes and decides all changes of these rows.
pub(crate) fn drain_rows(
    world: &World,
    window: &mut Window,
    by_mirror: BTreeMap<i32, Vec<i64>>,
    now: Millis,
) -> Result<Drained> {
    let batch: HashSet<(i32, i64)> = by_mirror
        .iter()
        .flat_map(|(mirror, rows)| rows.iter().map(|r| (*mirror, *r)))
        .collect();
    let mut drained = Drained::default();
    // What is decided for one mirror may write over a row of the next, whose
    // new values stand nowhere else: they are read before anything is decided.
    let mut found: HashMap<i32, Vec<Row>> = HashMap::new();
    let mut before: HashMap<i32, Before> = HashMap::new();
    if by_mirror.len() > 1 {
        for (id, rows) in &by_mirror {
            if let Some(mirror) = world.mirrors.get(id) {
                let all: Vec<usize> = (0..mirror.columns.len()).collect();
                found.insert(*id, cases::lock(mirror, &all, rows.clone())?);
                before.insert(*id, changes::before(*id, rows.clone())?);
            }
        }
    }
    for (id, rows) in by_mirror {
        let found = found.remove(&id).unwrap_or_default();
        before.remove(&id);
        let batch = Batch {
            rows: &batch,
            before: &before,
        };
        match world.mirrors.get(&id) {
            Some(mirror) => {
                drain_mirror(
                    world,
                    window,
                    mirror,
                    (rows, batch),
                    found,
                    now,
                    &mut drained,
                )?;
            }
            // The mirror was dropped: nobody wants its changes any more.
            None => drained.changes += changes::take(id, rows)?.len(),
        }
    }
    Ok(drained)
}

/// Parks the changes of the row that comes first: the database refuses what
/// follows from them. The row keeps its values; nothing is sent.
pub(crate) fn park_first(world: &World, error: &SqlError) -> Result<()> {
    for (id, row) in changes::peek(1)?.0 {
        let taken = changes::take(id, vec![row])?;
        let txs: BTreeSet<i64> = taken.iter().map(|c| c.tx).collect();
        let newest: Vec<&i64> = txs.iter().rev().take(1_000).collect();
        streams::park(&Poison {
            mirror: Some(id),
            server: world.mirrors.get(&id).map_or("", |m| m.server.as_str()),
            source: "sql",
            record_id: &row.to_string(),
            change: Some(
                serde_json::json!({"row": row, "changes": taken.len(), "txs": newest}).to_string(),
            ),
            sqlstate: &error.sqlstate,
            error: &error.message,
            advice: "Mend what the error names on the linked table (a CHECK, a trigger), then change the row again and discard this letter; the value that it shows already is no change.",
        })?;
    }
    Ok(())
}

fn drain_mirror(
    world: &World,
    window: &mut Window,
    mirror: &Mirror,
    (row_ids, batch): (Vec<i64>, Batch<'_>),
    found: Vec<Row>,
    now: Millis,
    drained: &mut Drained,
) -> Result<()> {
    let all: Vec<usize> = (0..mirror.columns.len()).collect();
    let locked = cases::lock(mirror, &all, row_ids.clone())?;
    let busy = busy(mirror, &row_ids, &locked)?;
    let current: HashMap<i64, Row> = locked
        .iter()
        .cloned()
        .chain(found)
        .map(|r| (r.row_id, r))
        .collect();
    let (mut loaded, blocked) = cases::load_drained(world, mirror, &all, locked, batch.rows)?;
    batch.take_back(world, &mut loaded);
    let mut blocked: HashSet<i64> = blocked.into_iter().collect();
    let vanished = row_ids
        .iter()
        .filter(|r| !current.contains_key(r) && !busy.contains(r));
    blocked.extend(cases::busy(world, mirror, vanished.copied().collect())?);
    drained.locked += busy.len() + blocked.len();
    let free: Vec<i64> = row_ids
        .into_iter()
        .filter(|r| !busy.contains(r) && !blocked.contains(r))
        .collect();
    let taken = changes::take(mirror.id, free)?;
    drained.changes += taken.len();
    let headers = headers(window, &taken)?;
    let mut of_row: BTreeMap<i64, Vec<ChangeRow>> = BTreeMap::new();
    for change in taken {
        of_row.entry(change.row_id).or_default().push(change);
    }
    let mut work = Local {
        world,
        mirror,
        headers,
        current,
        case_of: loaded
            .iter()
            .enumerate()
            .filter_map(|(i, c)| Some((c.rows[mirror.side].as_ref()?.row_id, i)))
            .collect(),
        cases: loaded,
        events: Vec::new(),
        queue: Vec::new(),
        created: Vec::new(),
        deleted: Vec::new(),
        now,
    };
    foresee::edits(world, mirror, &mut work.cases, &work.current, &of_row)?;
    for (row_id, log) in of_row {
        work.record(row_id, &log);
    }
    work.finish()
}

/// Rows that are there and that somebody else holds.
fn busy(mirror: &Mirror, row_ids: &[i64], locked: &[Row]) -> Result<HashSet<i64>> {
    let held: HashSet<i64> = locked.iter().map(|r| r.row_id).collect();
    let rest: Vec<i64> = row_ids
        .iter()
        .copied()
        .filter(|r| !held.contains(r))
        .collect();
    if rest.is_empty() {
        return Ok(HashSet::new());
    }
    let busy = rows::present_rows(&mirror.table, rest)?;
    Ok(busy.into_iter().collect())
}

/// The transactions of these changes. What a writer changes beyond the guard's
/// limit for a span of time, as a loop of small transactions does, is held.
fn headers(window: &mut Window, taken: &[ChangeRow]) -> Result<HashMap<i64, TxRow>> {
    let mut rows: BTreeMap<i64, u64> = BTreeMap::new();
    for change in taken {
        *rows.entry(change.tx).or_default() += 1;
    }
    let mut headers: HashMap<i64, TxRow> = changes::transactions(rows.keys().copied().collect())?
        .into_iter()
        .map(|t| (t.tx, t))
        .collect();
    let Some(limit) = guc::guard_window_rows() else {
        return Ok(headers);
    };
    window.set_span(guc::guard_window_ms());
    let mut over = Vec::new();
    for (tx, rows) in rows {
        // What is held already does not press on what the writer does next.
        let Some(header) = headers.get_mut(&tx).filter(|h| !h.held) else {
            continue;
        };
        let writer = format!("{}\n{}", header.user, header.application);
        if window.count(&writer, header.at, rows) > limit {
            header.held = true;
            over.push(tx);
        }
    }
    if !over.is_empty() {
        changes::hold(over)?;
    }
    Ok(headers)
}

/// Whether one of these changes is of this attribute.
fn is_in(log: &[ChangeRow], attnum: i16) -> bool {
    log.iter().any(|c| c.old.iter().any(|(a, _)| *a == attnum))
}

struct Local<'w> {
    world: &'w World,
    mirror: &'w Mirror,
    headers: HashMap<i64, TxRow>,
    current: HashMap<i64, Row>,
    cases: Vec<Case>,
    case_of: HashMap<i64, usize>,
    events: Vec<EventRow>,
    queue: Vec<NewWrite>,
    created: Vec<(i64, String, i64, bool)>,
    deleted: Vec<(i64, String, i64, bool)>,
    now: Millis,
}

impl Local<'_> {
    fn cause(&self, tx: i64) -> Cause {
        Cause::of(tx, self.headers.get(&tx), self.now)
    }

    /// One row's changes, oldest first.
    fn record(&mut self, row_id: i64, log: &[ChangeRow]) {
        let born = log.first().is_some_and(|c| c.op == 'I');
        let Some(row) = self.current.get(&row_id).cloned() else {
            self.removed(row_id, log, born);
            return;
        };
        let Some(last) = log.last() else { return };
        if born && row.record_id.is_none() {
            let cause = self.cause(last.tx);
            self.inserted(row_id, &row, &cause);
            self.created
                .push((row_id, cause.origin, last.tx, cause.held));
            return;
        }
        for (i, change) in log.iter().enumerate().filter(|(_, c)| c.op == 'U') {
            self.edited(&row, &log[..i], change, &log[i + 1..]);
        }
    }

    fn inserted(&mut self, row_id: i64, row: &Row, cause: &Cause) {
        let mut vals = serde_json::Map::new();
        let mut event = record::by_sql(self.mirror, row_id, None, "create", cause);
        for (column, value) in self.mirror.columns.iter().zip(&row.values) {
            if value.is_some() && !column.read_only {
                vals.insert(column.field.clone(), serde_json::json!(value));
                event.fields.push(column.field.clone());
                event.new_values.push(value.clone());
            }
        }
        self.events.push(event);
        let shadow = self.world.groups[self.mirror.group].group.sides[self.mirror.side].shadow;
        self.queue.push(NewWrite {
            mirror: self.mirror.id,
            row_id,
            entity: None,
            kind: "create",
            record_id: None,
            vals: serde_json::Value::Object(vals).to_string(),
            old_vals: "{}".to_owned(),
            origin: cause.origin.clone(),
            state: flush::state_of(self.world, self.mirror.id, shadow, cause.held),
            txs: vec![cause.tx],
        });
    }

    /// One edit: its new values are the next edit's old ones, else the row's.
    fn edited(
        &mut self,
        row: &Row,
        earlier: &[ChangeRow],
        change: &ChangeRow,
        later: &[ChangeRow],
    ) {
        let (world, mirror) = (self.world, self.mirror);
        let info = &world.groups[mirror.group];
        let cause = self.cause(change.tx);
        let record_id = row.record_id.clone();
        let mut event = record::by_sql(mirror, row.row_id, record_id, "update", &cause);
        let mut cells: BTreeMap<usize, Cells> = BTreeMap::new();
        let mut decided = Vec::new();
        for (attnum, old) in &change.old {
            let Some(column) = mirror.by_attnum.get(attnum).copied() else {
                continue;
            };
            let new = value_then(mirror, row, column, later);
            let old = canonical_old(mirror.types[column], old);
            let name = &mirror.columns[column].field;
            if old.is_none() {
                event.unknown.push(name.clone());
            }
            event.fields.push(name.clone());
            event.old_values.push(old.clone().flatten());
            event.new_values.push(new.clone());
            if let Some(field) = info.field_of[mirror.side].get(&column) {
                let again = is_in(earlier, *attnum);
                decided.extend(again.then_some(*field));
                let chained = again || is_in(later, *attnum);
                cells
                    .entry(*field)
                    .or_default()
                    .insert(column, (new, old, chained));
            }
        }
        let values = whole_values(info, mirror, row, &cells, later);
        let Some(case) = self.case_of.get(&row.row_id).map(|i| &mut self.cases[*i]) else {
            return;
        };
        // The row shows the last of several edits; the first is decided against what
        // it found itself, the others against what came of the one before.
        for (field, _, old, chained) in &values {
            let first = *chained && !decided.contains(field);
            if let (Some(old), true) = (old, first) {
                case.entity.records[mirror.side].values[*field].clone_from(old);
            }
        }
        let quality = info.policy.quality(LOCAL, "sql");
        let observed = Observed {
            side: mirror.side,
            source: Source::Local,
            origin: cause.origin,
            values: values.into_iter().map(|(f, n, o, _)| (f, n, o)).collect(),
            at: quality.interval(cause.at),
            quality,
            seq: engine::order(),
            score: cause.score,
            decided,
            held: cause.held,
            ..Observed::default()
        };
        case.caused_by(change.tx, cause.held);
        let decisions = case.observe(world, &observed, self.now);
        event.decision = record::decision_json(world, mirror, &decisions);
        event.carried = record::take_carried(world, case);
        self.events.push(event);
    }

    fn removed(&mut self, row_id: i64, log: &[ChangeRow], born: bool) {
        let Some(last) = log.iter().rev().find(|c| c.op == 'D') else {
            return;
        };
        let cause = self.cause(last.tx);
        let record_id = last
            .old
            .iter()
            .find(|(attnum, _)| *attnum == crate::pg::capture::ID_ATTNUM)
            .and_then(|(_, v)| match v {
                OldValue::Text(text) => Some(text.clone()),
                OldValue::Null | OldValue::TooLong(_) => None,
            });
        let mut event = record::by_sql(self.mirror, row_id, record_id.clone(), "delete", &cause);
        for (attnum, old) in &last.old {
            if let Some(column) = self.mirror.by_attnum.get(attnum).copied() {
                let name = &self.mirror.columns[column].field;
                let old = canonical_old(self.mirror.types[column], old);
                if old.is_none() {
                    event.unknown.push(name.clone());
                }
                event.fields.push(name.clone());
                event.old_values.push(old.flatten());
            }
        }
        self.events.push(event);
        if born && record_id.is_none() {
            return;
        }
        self.queue.push(NewWrite {
            mirror: self.mirror.id,
            row_id,
            entity: None,
            kind: "delete",
            record_id,
            vals: "{}".to_owned(),
            old_vals: "{}".to_owned(),
            origin: cause.origin.clone(),
            state: flush::state_of(self.world, self.mirror.id, false, cause.held),
            txs: vec![last.tx],
        });
        self.deleted
            .push((row_id, cause.origin, last.tx, cause.held));
    }

    fn finish(mut self) -> Result<()> {
        let watched = scope::watch(self.world, &self.cases);
        flush::flush(self.world, self.cases, self.events)?;
        for (origin, tx, held, rows) in by_cause(self.deleted) {
            let removal = Removal {
                by: DeletedBy::Local,
                origin: &origin,
                tx: Some(tx),
                held,
                confirmed: false,
                at: self.now,
            };
            let open = removals::removed(self.world, self.mirror, &rows, removal)?;
            self.queue.retain(|w| !open.contains(&w.row_id));
        }
        writes::enqueue(self.queue)?;
        for (origin, tx, held, rows) in by_cause(self.created) {
            let cause = creates::Cause {
                origin,
                txs: vec![tx],
                held,
            };
            creates::spread(self.world, self.mirror, rows, &cause, self.now)?;
        }
        scope::settle(self.world, self.mirror, watched, self.now)?;
        Ok(())
    }
}

/// Groups rows by the transaction that caused them.
fn by_cause(list: Vec<(i64, String, i64, bool)>) -> Vec<(String, i64, bool, Vec<i64>)> {
    let mut groups: BTreeMap<(i64, String, bool), Vec<i64>> = BTreeMap::new();
    for (row, origin, tx, held) in list {
        groups.entry((tx, origin, held)).or_default().push(row);
    }
    groups
        .into_iter()
        .map(|((tx, origin, held), rows)| (origin, tx, held, rows))
        .collect()
}
