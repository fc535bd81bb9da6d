//! Writes in doubt: the answer was lost, so the CRM is asked what it shows.

use std::collections::{BTreeSet, HashMap};

use crm_core::http::HttpRequest;
use crm_core::model::{Millis, Record, RemoteError, WriteKind};

use crate::pg::store::causes;
use crate::pg::store::creates as creates_of;
use crate::pg::store::reviews::{self, Kind, RowQuestion};
use crate::pg::store::spi::Result;
use crate::pg::store::streams;
use crate::pg::store::writes::{self, Setback, WriteRow};
use crate::pg::tx::SqlError;
use crate::worker::absent;
use crate::worker::cases;
use crate::worker::creates;
use crate::worker::deliver::{Landed, adopt, kind_of, remember, result_event};
use crate::worker::engine::Engine;
use crate::worker::flush;
use crate::worker::pages::{self, Unreadable, Via};
use crate::worker::retypes;
use crate::worker::setbacks;
use crate::worker::world::{Mirror, World};

/// What the CRM showed of records whose writes are in doubt.
pub(crate) struct Look {
    /// By id, values in the order of the mirror's columns.
    pub(crate) found: HashMap<String, Record>,
    pub(crate) unreadable: Unreadable,
    /// When it was asked.
    pub(crate) asked_at: Millis,
}

/// What a look at its record says of a write in doubt.
enum Shown {
    /// It made this record.
    Made(String),
    Landed(String),
    /// It may be sent again.
    Again,
    /// The record shows something else.
    Unseen,
    /// A create of which nobody knows a record.
    Nowhere,
}

fn shown(mirror: &Mirror, row: &WriteRow, look: &Look) -> Shown {
    // A pair that becomes another one: sent again, it does no harm.
    if let Some(id) = retypes::target(mirror, row) {
        return match look.found.contains_key(&id) {
            true => Shown::Landed(id),
            false => Shown::Again,
        };
    }
    let record = row.record_id.as_ref().and_then(|id| look.found.get(id));
    let deleted = record.is_none_or(|r| r.deleted);
    let id = || row.record_id.clone().unwrap_or_default();
    let values = cases::json_values(&row.vals);
    let shows = |r: &Record| {
        values.iter().all(|(name, value)| {
            let column = mirror.by_field.get(name);
            let same =
                |c: &usize| crm_core::value::same(mirror.types[*c], value, &r.values.value(*c));
            column.is_none_or(same)
        })
    };
    match (kind_of(row), &row.record_id) {
        // A record that has gone since is read, like any that is told of; one that a
        // person named must be there.
        (WriteKind::Create, Some(id))
            if !deleted || (mirror.unique_field.is_some() && row.attempts > 0) =>
        {
            Shown::Made(id.clone())
        }
        (WriteKind::Create, _) => Shown::Nowhere,
        (WriteKind::Delete, _) if deleted => Shown::Landed(id()),
        (WriteKind::Delete, _) => Shown::Again,
        (WriteKind::Update, _) if record.is_some_and(shows) => Shown::Landed(id()),
        (WriteKind::Update, _) => Shown::Unseen,
    }
}

/// Settles unknown writes with what the CRM shows now. An update that it does
/// not show is no longer waited for: what it shows instead is decided like any
/// page, for it may be what somebody wrote since. Fails with a lock's error if
/// somebody holds the row.
pub(crate) fn settle(
    world: &World,
    mirror: &Mirror,
    pending: Vec<WriteRow>,
    look: &Look,
    now: Millis,
) -> std::result::Result<(), SqlError> {
    let mut landed = Vec::new();
    let mut again = Vec::new();
    let mut unseen = Vec::new();
    for row in pending {
        match shown(mirror, &row, look) {
            Shown::Made(id) => {
                adopt(mirror, vec![(row.row_id, id.clone())])?;
                landed.push((row, id, Vec::new()));
            }
            Shown::Landed(id) => landed.push((row, id, Vec::new())),
            Shown::Again => again.push(row),
            Shown::Unseen => unseen.push(row),
            Shown::Nowhere => hold_create(mirror, &row)?,
        }
    }
    again.extend(give_up(world, mirror, unseen, look, now)?);
    let gone = landed.iter().map(|(r, _, _)| r);
    let gone = gone.filter(|r| kind_of(r) == WriteKind::Delete);
    absent::bury(mirror, gone, now)?;
    retypes::landed(mirror, &landed)?;
    writes::finish(landed.iter().map(|(r, _, _)| r.id).collect())?;
    remember(world, mirror, &landed, &[], now)?;
    let setbacks: Vec<Setback> = again
        .iter()
        .map(|r| Setback {
            id: r.id,
            state: "queued",
            wait_ms: 0,
            status: 0,
            class: "retry".to_owned(),
            code: "not_landed".to_owned(),
            message: "the answer was lost and the CRM does not show the write".to_owned(),
            advice: String::new(),
        })
        .collect();
    writes::set_back(&setbacks)?;
    let events = landed
        .into_iter()
        .map(|(row, id, _)| result_event(mirror, &row, id, now))
        .collect();
    flush::append(world, events)?;
    Ok(())
}

/// Lets the records of updates that are not shown be decided; the updates of
/// which the states of their fields know nothing are returned.
fn give_up(
    world: &World,
    mirror: &Mirror,
    unseen: Vec<WriteRow>,
    look: &Look,
    now: Millis,
) -> std::result::Result<Vec<WriteRow>, SqlError> {
    let (unknown, again) = setbacks::unknown(world, mirror, unseen, now)?;
    if unknown.is_empty() {
        return Ok(again);
    }
    let caused = causes::finish(unknown.iter().map(|r| r.id).collect())?;
    let records: BTreeSet<&String> = unknown
        .iter()
        .filter_map(|r| r.record_id.as_ref())
        .collect();
    let (shown, missing): (Vec<&String>, Vec<&String>) =
        (records.into_iter()).partition(|id| look.found.contains_key(*id));
    let shown = (shown.into_iter()).filter_map(|id| look.found.get(id).cloned());
    let via = Via {
        asked_at: Some(look.asked_at),
        ..Via::asked("read")
    };
    let shown = shown.collect();
    let applied = pages::apply(world, mirror, via, shown, &look.unreadable, now, false)?;
    if !applied.locked.is_empty() {
        return Err(SqlError::new(
            "55P03",
            "somebody holds the row of a write in doubt",
        ));
    }
    // Who caused a write also waits for what takes its place.
    causes::add(caused)?;
    let missing = missing.into_iter().cloned();
    streams::defer(missing.map(|id| flush::reread(mirror.id, id)).collect())?;
    Ok(again)
}

/// The records that creates in doubt turned out to have made, by row: of those that
/// are there, or of those that were removed since. One that the row had before its
/// create was removed before it.
pub(crate) fn made(
    world: &World,
    mirror: &Mirror,
    pending: &[WriteRow],
    records: &[Record],
    removed: bool,
) -> Result<HashMap<i64, String>> {
    let of = |record: &Record| {
        let key = record.values.get(mirror.columns.len())?;
        let row = creates::row_of_unique(&world.installation, mirror.id, key)?;
        Some((row, record.id.clone()))
    };
    let there = records.iter().filter(|r| r.deleted == removed);
    let mut made: Vec<(i64, String)> = there.filter_map(of).collect();
    made.retain(|(row, _)| pending.iter().any(|w| w.row_id == *row));
    if removed {
        let before = creates_of::had_before(mirror.id, &made)?;
        made.retain(|pair| !before.contains(pair));
    }
    Ok(made.into_iter().collect())
}

/// Gives rows the records that their creates made; answers their ids. The other creates
/// are sent again, which is safe under our own key.
pub(crate) fn take_made(
    world: &World,
    mirror: &Mirror,
    pending: Vec<WriteRow>,
    made: &HashMap<i64, String>,
    now: Millis,
) -> Result<Vec<String>> {
    let (landed, missing): (Vec<WriteRow>, Vec<WriteRow>) =
        (pending.into_iter()).partition(|w| made.contains_key(&w.row_id));
    writes::requeue(missing.iter().map(|w| w.id).collect())?;
    let landed = landed
        .into_iter()
        .filter_map(|w| Some((made.get(&w.row_id)?.clone(), w)));
    take(
        world,
        mirror,
        landed.map(|(id, w)| (w, id, Vec::new())).collect(),
        now,
    )
}

/// The same without our key, for one create: what has its e-mail is taken for what it
/// made; where there is none, or several, a person is asked.
pub(crate) fn take_found(
    world: &World,
    mirror: &Mirror,
    pending: Vec<WriteRow>,
    records: &[Record],
    now: Millis,
) -> Result<Vec<String>> {
    let mut landed = Vec::new();
    for write in pending {
        match records {
            [one] => landed.push((write, one.id.clone(), Vec::new())),
            // A search index lags: only the third look without a hit counts.
            [] if write.attempts < 5 => {}
            _ => hold_create(mirror, &write)?,
        }
    }
    take(world, mirror, landed, now)
}

/// Gives rows the records that their creates made; answers their ids, to be read:
/// somebody may have changed them since.
pub(crate) fn take(
    world: &World,
    mirror: &Mirror,
    landed: Vec<Landed>,
    now: Millis,
) -> Result<Vec<String>> {
    let ids = |l: &Landed| (l.0.row_id, l.1.clone());
    adopt(mirror, landed.iter().map(ids).collect())?;
    writes::finish(landed.iter().map(|(w, _, _)| w.id).collect())?;
    remember(world, mirror, &landed, &[], now)?;
    let (ids, events) = (landed.into_iter())
        .map(|(w, id, _)| (id.clone(), result_event(mirror, &w, id, now)))
        .unzip();
    flush::append(world, events)?;
    Ok(ids)
}

/// Opens a review for a create whose fate nobody can find out.
pub(crate) fn hold_create(mirror: &Mirror, row: &WriteRow) -> Result<()> {
    reviews::ask(&RowQuestion {
        kind: Kind::Create,
        link: None,
        mirror: mirror.id,
        row_id: row.row_id,
        entity: row.entity,
        reason: "a create may or may not have happened in the CRM",
        candidates: &row.vals,
    })?;
    writes::set_back(&[Setback {
        id: row.id,
        state: "held",
        wait_ms: 0,
        status: 0,
        class: "fix_data".to_owned(),
        code: "unknown_create".to_owned(),
        message: "the answer to the create was lost and no record was found".to_owned(),
        advice: format!(
            "Look for the record in the CRM; then SELECT crm.resolve_create({id}, 'made', 'its id'); or SELECT crm.resolve_create({id}, 'not made');",
            id = row.id
        ),
    }])?;
    Ok(())
}

/// A search for the record that a create may have made: by a key that exists
/// once, else by its e-mail.
pub(crate) fn find_created(
    engine: &Engine,
    mirror: &Mirror,
    row: &WriteRow,
) -> Option<HttpRequest> {
    let server = engine.server(&mirror.server)?;
    let values = cases::json_values(&row.vals);
    let unique = |name: &str| {
        let column = mirror.by_field.get(name);
        column.is_some_and(|c| mirror.unique_keys.contains(c))
    };
    let given = || values.iter().filter(|(_, value)| value.is_some());
    let (field, value) = given()
        .find(|(name, _)| unique(name))
        .or_else(|| given().find(|(name, _)| name.eq_ignore_ascii_case("email")))?;
    let value = value.clone()?;
    Some(server.connector.find_request(
        &server.config,
        &mirror.object,
        &mirror.fields,
        field,
        &[value],
    ))
}

/// Notes that a call for records of a mirror failed, and why; creates whose
/// record a person named in vain are held.
pub(crate) fn note_failed(
    mirror: &Mirror,
    misnamed: Vec<WriteRow>,
    is_backfill: bool,
    error: &RemoteError,
) -> Result<()> {
    for write in misnamed {
        hold_create(mirror, &write)?;
    }
    if is_backfill {
        streams::backfill_error(mirror.id, &error.to_string())?;
    }
    // A call that was not made says nothing of the CRM.
    if error.code != "rate_limited" {
        streams::server_error(&mirror.server, Some((&error.to_string(), error.advice)))?;
    }
    Ok(())
}
