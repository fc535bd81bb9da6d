//! Records that another one of their CRM was converted into: a Contact whose Lead is
//! a thing already. Where the Contact is told first and has no e-mail nothing matches
//! it, and a second counterpart would be made. So before a counterpart is made the
//! Contact's CRM is asked for the Lead, one search per batch; what it shows is a
//! conversion like any other, and takes the create back, see
//! [`crate::worker::merges::convert`].

use std::collections::{HashMap, HashSet};

use crm_core::model::{ErrorClass, Millis, Page, RemoteError, WriteKind};

use crate::pg::store::creates;
use crate::pg::store::rows;
use crate::pg::store::spi::Result;
use crate::pg::store::writes::{self, Setback, WriteRow};
use crate::pg::tx;
use crate::worker::deliver::Batch;
use crate::worker::engine::{Engine, Job, Step};
use crate::worker::pages::Via;
use crate::worker::reading;
use crate::worker::session::Session;
use crate::worker::unique::{Look, end_of_search};
use crate::worker::world::{Mirror, World};

/// While the found conversion is applied the create is not claimed.
const TAKE_MS: i64 = 2_000;

/// After so many claims a create goes out without an answer.
const ATTEMPTS: i32 = 10;

/// A batch of creates, and the records that they are made from, by row.
pub(crate) struct Origins {
    batch: Batch,
    /// Mirror of what may have been converted.
    pub(crate) mirror: i32,
    /// Its field that names the successor.
    field: &'static str,
    records: HashMap<i64, String>,
}

/// What may have been converted into records from which a mirror's are made, the
/// mirror of those, and the field of the former that names the latter.
fn origin<'w>(world: &'w World, made: &Mirror) -> Option<(&'w Mirror, &'w Mirror, &'static str)> {
    let of_group = |m: &&Mirror| m.group == made.group && m.server != made.server;
    let before = world.mirrors.values().filter(of_group);
    before.filter(|m| m.live && !m.paused).find_map(|before| {
        let connector = world.connectors.get(&before.server)?;
        let fields = connector.successor_fields(&before.object).iter();
        fields.clone().find_map(|(field, object)| {
            let known = before.by_field.contains_key(*field);
            let source = world.mirror_of(&before.server, object);
            let source = source.filter(|s| s.group == made.group && known)?;
            Some((before, source, *field))
        })
    })
}

/// The records that rows of a batch are made from.
fn records(
    made: &Mirror,
    before: &Mirror,
    source: &Mirror,
    rows: Vec<i64>,
) -> Result<HashMap<i64, String>> {
    let pairs = creates::sources(made.id, rows, source.id, before.id)?;
    if pairs.is_empty() {
        return Ok(HashMap::new());
    }
    let of = pairs.iter().map(|(_, source)| *source).collect();
    let found = rows::lock_by_row(&source.table, &[], of)?;
    let ids: HashMap<i64, String> = (found.into_iter())
        .filter_map(|r| Some((r.row_id, r.record_id?)))
        .collect();
    let named = pairs.into_iter();
    Ok(named
        .filter_map(|(row, source)| Some((row, ids.get(&source)?.clone())))
        .collect())
}

impl Engine {
    /// Asks for what the records of a batch of creates were before, if anything.
    pub(super) fn ask_origins(&mut self, mut batch: Batch) -> Look {
        if batch.kind != WriteKind::Create || batch.looked > 0 {
            return Look::Free(batch);
        }
        batch.looked = 1;
        let world = &self.world;
        let Some(made) = world.mirrors.get(&batch.mirror) else {
            return Look::Free(batch);
        };
        let Some((before, source, field)) = origin(world, made) else {
            return Look::Free(batch);
        };
        // Who cannot be asked keeps nothing from being made.
        let Some(server) = self.server(&before.server) else {
            return Look::Free(batch);
        };
        let rows = batch.rows.iter().map(|r| r.row_id).collect();
        let found = tx::in_transaction(|| Ok(records(made, before, source, rows)?));
        let records = match found {
            Ok(records) if records.is_empty() => return Look::Free(batch),
            Ok(records) => records,
            Err(_) => return Look::Full,
        };
        let of = |row: &WriteRow| records.get(&row.row_id).cloned();
        let values: Vec<Option<String>> = batch.rows.iter().map(of).collect();
        let given: Vec<String> = values.iter().flatten().cloned().collect();
        let (connector, config) = (server.connector, &server.config);
        let fit = connector.find_batch(&before.object, &before.fields, field, &given);
        let given = &given[..fit.min(given.len())];
        let request = connector.find_request(config, &before.object, &before.fields, field, given);
        let cut = end_of_search(&values, given.len());
        let rest = cut.map(|at| batch.rows.split_off(at));
        let (id, mirror) = (batch.mirror, before.id);
        let asked = Origins {
            batch,
            mirror,
            field,
            records,
        };
        if !self.fetch(mirror, request, Job::Origins(Box::new(asked))) {
            return Look::Full;
        }
        self.watch(id).pushes += 1;
        self.halves.extend(rest.map(|rows| Batch {
            mirror: id,
            kind: WriteKind::Create,
            rows,
            looked: 0,
        }));
        Look::Asked
    }
}

impl Session {
    /// The CRM has answered what the records of a batch were before.
    pub(super) fn looked_back(&mut self, asked: Origins, page: Page, now: Millis) -> Step<()> {
        let Origins { batch, records, .. } = asked;
        let id = batch.mirror;
        self.end_look(id);
        let column = self.engine.world.mirrors.get(&asked.mirror);
        let column = column.and_then(|m| m.by_field.get(asked.field)).copied();
        let heirs: HashSet<String> = (page.records.iter())
            .filter_map(|r| r.values.get(column?).map(str::to_owned))
            .collect();
        let is_heir = |row: &WriteRow| records.get(&row.row_id).is_some_and(|r| heirs.contains(r));
        let (found, free): (Vec<WriteRow>, Vec<WriteRow>) =
            batch.rows.into_iter().partition(is_heir);
        self.go_on(id, free);
        if found.is_empty() {
            return Ok(());
        }
        let waits: Vec<Setback> = found.iter().map(waits).collect();
        let ids: Vec<i64> = found.iter().map(|r| r.id).collect();
        let put = tx::in_transaction(|| Ok(writes::set_back(&waits)?));
        if put.is_err() {
            // Nobody else knows of these writes: they are asked about again.
            self.engine.halves.push_back(Batch {
                mirror: id,
                kind: WriteKind::Create,
                rows: found,
                looked: 0,
            });
            return put.map(drop);
        }
        let via = Via::asked("read");
        let applied = reading::page(&mut self.engine, asked.mirror, via, page, now, |_| Ok(()))?;
        // Behind a user's lock: asked again when it is claimed again.
        if applied.locked.is_empty() {
            let left = tx::in_transaction(|| Ok(creates::take_again(ids)?))?;
            self.go_on(id, left);
        }
        Ok(())
    }

    /// The CRM could not be asked: the creates wait, unless that would not help.
    pub(super) fn look_back_failed(
        &mut self,
        asked: Origins,
        error: &RemoteError,
        now: Millis,
    ) -> Step<()> {
        let batch = asked.batch;
        let passing = matches!(
            error.class,
            ErrorClass::Retry | ErrorClass::Wait | ErrorClass::Reauth
        );
        let tired = |row: &WriteRow| row.attempts >= ATTEMPTS;
        if passing && !batch.rows.iter().any(tired) {
            return self.look_failed(batch, error, now);
        }
        self.end_look(batch.mirror);
        self.go_on(batch.mirror, batch.rows);
        Ok(())
    }

    fn end_look(&mut self, mirror: i32) {
        let watch = self.engine.watch(mirror);
        watch.pushes = watch.pushes.saturating_sub(1);
        self.engine.may_send = true;
    }

    /// Creates about which nothing was found go their way.
    fn go_on(&mut self, mirror: i32, rows: Vec<WriteRow>) {
        if !rows.is_empty() {
            self.engine.halves.push_back(Batch {
                mirror,
                kind: WriteKind::Create,
                rows,
                looked: 1,
            });
        }
    }
}

fn waits(row: &WriteRow) -> Setback {
    Setback {
        id: row.id,
        state: "queued",
        wait_ms: TAKE_MS,
        status: 0,
        class: "wait".to_owned(),
        code: "converted".to_owned(),
        message: "the record that it is made from was another one before".to_owned(),
        advice: String::new(),
    }
}
