//! Copies of single columns into mirrors that are full already: a column that was
//! added, a field that came back. Only these fields are asked for, page by page,
//! while everything else goes on.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crm_core::model::{FieldType, Millis, Page, Record};

use crate::pg::store::changes;
use crate::pg::store::drift::{self, FillRow};
use crate::pg::store::rows::{self, Row, RowUpdate};
use crate::pg::store::spi::Result;
use crate::pg::store::streams;
use crate::pg::tx;
use crate::worker::engine::{Engine, Job, Step};
use crate::worker::pages::{Via, interval};
use crate::worker::session::Session;
use crate::worker::world::{Mirror, World};

/// Records waiting to be read one by one above which no further page is asked for.
const READS: usize = 1_000;
/// Pause between looks for copies that stand still.
const LOOK_MS: Millis = 1_000;

/// A copy under way in this session.
#[derive(Default)]
pub(crate) struct Fill {
    open: bool,
    at: Millis,
}

impl Engine {
    /// Asks for the next page of each copy that is not waiting for one; when to
    /// look again, if any is left.
    pub(crate) fn resume_fills(&mut self, now: Millis) -> Step<Option<Millis>> {
        let (rows, any) = tx::in_transaction(|| Ok((drift::fills()?, drift::any_fill()?)))?;
        for row in rows {
            let waits = self.watch(row.mirror).reads.len() > READS;
            let fill = self.drift.fills.entry(row.mirror).or_default();
            if !fill.open && now >= fill.at && !waits {
                self.fill_from(row)?;
            }
        }
        Ok(any.then_some(now + LOOK_MS))
    }

    fn fill_from(&mut self, row: FillRow) -> Step<()> {
        let Some(m) = self.world.mirrors.get(&row.mirror).filter(|m| !m.paused) else {
            return Ok(());
        };
        let Some(server) = self.server(&m.server) else {
            return Ok(());
        };
        let typed = |f: &String| Some((f.clone(), m.types[*m.by_field.get(f)?]));
        if row.fields.is_empty() {
            // Gone again, or their columns are dropped.
            return tx::in_transaction(|| Ok(drift::fill_advance(row.id, None, 0, 0)?));
        }
        let fields: Option<Vec<(String, FieldType)>> = row.fields.iter().map(typed).collect();
        let Some(fields) = fields else {
            // Newer than the configuration in memory, which is read again at once.
            return Ok(());
        };
        let cursor = row.cursor.as_deref();
        let request = server
            .connector
            .list_request(&server.config, &m.object, &fields, cursor);
        let job = Job::Fill {
            mirror: row.mirror,
            what: (row.id, row.fields),
        };
        let open = self.fetch_fields(row.mirror, request, job, Arc::new(fields));
        self.drift.fills.entry(row.mirror).or_default().open = open;
        Ok(())
    }

    /// A copy asks again after a pause.
    pub(crate) fn fill_failed(&mut self, mirror: i32, at: Millis) {
        self.drift.fills.insert(mirror, Fill { open: false, at });
    }
}

impl Session {
    /// A page of a copy came.
    pub(super) fn filled(
        &mut self,
        mirror: i32,
        (fill, fields): (i64, Vec<String>),
        page: Page,
        now: Millis,
    ) -> Step<()> {
        self.engine.fill_failed(mirror, now);
        let world = &self.engine.world;
        let Some(m) = world.mirrors.get(&mirror) else {
            return Ok(());
        };
        let columns: Option<Vec<usize>> =
            fields.iter().map(|f| m.by_field.get(f).copied()).collect();
        let Some(columns) = columns else {
            // One of them went meanwhile: asked for anew, without it.
            self.engine.drift.fills_at = Some(now);
            return Ok(());
        };
        let next = page.next.clone();
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let read = tx::in_transaction(|| {
            let done = count(page.records.len());
            let (filled, read) = fill_page(world, m, &columns, &page)?;
            drift::fill_advance(fill, next.clone(), done, count(filled))?;
            // Before the cursor passes them, what is to be read is stored.
            let wait = read
                .iter()
                .map(|r| crate::worker::flush::reread(mirror, r.clone()));
            streams::defer(wait.collect())?;
            Ok(read)
        });
        if let Err(error) = &read {
            self.engine.fill_failed(mirror, now + 2_000);
            self.engine.drift.fills_at = Some(now + 2_000);
            tx::in_transaction(|| Ok(drift::fill_error(fill, &error.to_string())?))?;
        }
        if !read?.is_empty() {
            self.engine.undefer_soon(now);
        }
        self.engine.drift.fills_at = Some(now);
        Ok(())
    }
}

/// Puts values of a page into rows that have none. What may be otherwise by now
/// is not judged here but read again: rows that somebody holds, that were seen
/// later than the page or changed here, that differ, or whose field other sides
/// share. Answers rows filled and records to read.
fn fill_page(
    world: &World,
    mirror: &Mirror,
    columns: &[usize],
    page: &Page,
) -> Result<(usize, Vec<String>)> {
    streams::park_values(mirror.id, &mirror.server, "backfill", &page.unreadable)?;
    let blind: HashSet<&str> = page.unreadable.iter().map(|(id, ..)| id.as_str()).collect();
    let live = |r: &&Record| !r.deleted && !blind.contains(r.id.as_str());
    let records: HashMap<&str, &Record> = (page.records.iter().filter(live))
        .map(|r| (r.id.as_str(), r))
        .collect();
    let rows_of: Vec<_> = columns.iter().map(|c| &mirror.columns[*c]).collect();
    let ids: Vec<String> = records.keys().map(|id| (*id).to_owned()).collect();
    let locked = rows::lock_by_record(&mirror.table, &rows_of, ids.clone())?;
    let row_ids: Vec<i64> = locked.iter().map(|r| r.row_id).collect();
    let mut busy: HashSet<i64> = changes::undrained(mirror.id, row_ids.clone())?
        .into_iter()
        .collect();
    busy.extend(drift::unfinished(mirror.id, &row_ids)?);
    let shared = page.ids_only || columns.iter().any(|c| is_shared(world, mirror, *c));
    let mut met: HashSet<String> = HashSet::with_capacity(locked.len());
    let (mut updates, mut read) = (Vec::new(), Vec::new());
    for row in locked {
        let Some(record) = row.record_id.as_deref().and_then(|id| records.get(id)) else {
            continue;
        };
        met.insert(record.id.clone());
        let same = |(i, c): (usize, &usize)| {
            let (held, came) = (row.values[i].clone(), record.values.value(i));
            crm_core::value::same(mirror.types[*c], &held, &came)
        };
        if columns.iter().enumerate().all(same) && !page.ids_only {
            continue;
        }
        let at = record.modified_at.unwrap_or(0);
        let via = Via::asked("backfill");
        let older = at == 0 || interval(world, mirror, via, at).to < row.modified_at;
        let empty = row.values.iter().all(Option::is_none);
        if shared || older || !empty || row.deleted || busy.contains(&row.row_id) {
            read.push(record.id.clone());
        } else {
            updates.push(update(&row, record, columns.len()));
        }
    }
    let filled = rows::update(&mirror.table, &rows_of, updates)?;
    let held: Vec<String> = ids.into_iter().filter(|id| !met.contains(id)).collect();
    if !held.is_empty() {
        read.extend(rows::present(&mirror.table, held)?);
    }
    Ok((filled, read))
}

fn update(row: &Row, record: &Record, columns: usize) -> RowUpdate {
    RowUpdate {
        row_id: row.row_id,
        tid: row.tid,
        source: String::new(),
        modified_at: 0,
        values: (0..columns).map(|i| record.values.value(i)).collect(),
    }
}

/// Whether a column's field has columns on other sides.
fn is_shared(world: &World, mirror: &Mirror, column: usize) -> bool {
    let info = &world.groups[mirror.group];
    let Some(field) = info.field_of[mirror.side].get(&column) else {
        return false;
    };
    (0..info.group.sides.len())
        .any(|side| side != mirror.side && !info.columns(*field, side).is_empty())
}
