//! The two tables that every event adds to, written below the executor: the
//! ledger and the identities of events taken.

use std::cell::Cell;

use crm_core::identity::Identity;
use pgrx::pg_sys;

use super::ledger::EventRow;
use super::spi::{self, Result};
use crate::pg::bulk;
use crate::pg::tx;

/// Columns of `crm.event`, in their order.
const EVENT_COLUMNS: [pg_sys::Oid; 24] = [
    pg_sys::INT8OID,
    pg_sys::INT8OID,
    pg_sys::INT8OID,
    pg_sys::INT8OID,
    pg_sys::TIMESTAMPTZOID,
    pg_sys::TIMESTAMPTZOID,
    pg_sys::INT4OID,
    pg_sys::INT4OID,
    pg_sys::INT4OID,
    pg_sys::UUIDOID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::TEXTARRAYOID,
    pg_sys::TEXTARRAYOID,
    pg_sys::TEXTARRAYOID,
    pg_sys::TEXTARRAYOID,
    pg_sys::JSONBOID,
    pg_sys::JSONBOID,
    pg_sys::FLOAT4OID,
];

/// Columns of `crm.event_seen`, in their order.
const SEEN_COLUMNS: [pg_sys::Oid; 2] = [pg_sys::UUIDOID, pg_sys::DATEOID];

thread_local! {
    /// The partition last written to: first number, first number behind it, table.
    static PARTITION: Cell<Option<(i64, i64, pg_sys::Oid)>> = const { Cell::new(None) };
    static SEEN: Cell<Option<pg_sys::Oid>> = const { Cell::new(None) };
}

/// Appends events with consecutive numbers from `first`; false, with none
/// appended, where it takes a statement.
pub(super) fn events(first: i64, policy_version: i64, events: &[EventRow]) -> Result<bool> {
    let last = first + i64::try_from(events.len()).unwrap_or(0) - 1;
    let Some(table) = partition(first, last)? else {
        return Ok(false);
    };
    let Ok(policy_version) = i32::try_from(policy_version) else {
        return Ok(false);
    };
    let now = bulk::now();
    let done = bulk::insert(table, &EVENT_COLUMNS, events.len(), |i, row| {
        let e = &events[i];
        row.long(Some(first + i as i64));
        row.long(e.row_id);
        row.long(e.entity);
        row.long(e.tx);
        row.long(Some(bulk::stamp(e.occurred_at) + e.micros));
        row.long(Some(now));
        row.int(Some(e.mirror));
        row.int(e.stream);
        row.int(Some(policy_version));
        row.fixed(e.identity.as_ref());
        row.text(Some(e.kind));
        row.text(Some(&e.origin));
        row.text(Some(&e.source));
        row.text(e.record_id.as_deref());
        row.text(told(e.actor.as_ref()));
        row.text(told(e.application.as_ref()));
        row.text(told(e.reason.as_ref()));
        row.texts(e.fields.iter().map(|f| Some(f.as_str())));
        row.texts(e.old_values.iter().map(Option::as_deref));
        row.texts(e.new_values.iter().map(Option::as_deref));
        row.texts(e.unknown.iter().map(|f| Some(f.as_str())));
        row.jsonb(e.decision.as_deref());
        row.jsonb(e.carried.as_deref());
        row.real(e.score);
    });
    if !done {
        PARTITION.set(None);
    }
    Ok(done)
}

/// The partition that holds all these numbers, if one does.
fn partition(first: i64, last: i64) -> Result<Option<pg_sys::Oid>> {
    let holds = |part: &(i64, i64, pg_sys::Oid)| part.0 <= first && last < part.1;
    if let Some(part) = PARTITION.get().filter(holds) {
        return Ok(Some(part.2));
    }
    let found = spi::write_rows(
        "SELECT (b.bounds)[1]::bigint, (b.bounds)[2]::bigint, c.oid FROM pg_catalog.pg_inherits i \
         JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid CROSS JOIN LATERAL (SELECT pg_catalog.regexp_match( \
           pg_catalog.pg_get_expr(c.relpartbound, c.oid), $r$FROM [(]'?([0-9]+)'?[)] TO [(]'?([0-9]+)'?[)]$r$) AS bounds) b \
         WHERE i.inhparent = 'crm.event'::regclass AND NOT i.inhdetachpending AND c.relkind = 'r' \
         AND $1 >= (b.bounds)[1]::bigint AND $1 < (b.bounds)[2]::bigint",
        &[first.into()],
        |row| {
            Ok((
                row.get(1)?.unwrap_or_default(),
                row.get(2)?.unwrap_or_default(),
                row.get::<pg_sys::Oid>(3)?.unwrap_or(pg_sys::InvalidOid),
            ))
        },
    )?;
    PARTITION.set(found.first().copied());
    Ok(PARTITION.get().filter(holds).map(|part| part.2))
}

/// Takes identities of which none is known, as nearly always; `None`, with none
/// taken, if one is. Only the one session worker adds any.
pub(super) fn identities(given: &[Identity]) -> Result<Option<Vec<usize>>> {
    if given.is_empty() {
        return Ok(None);
    }
    let mut fresh: Vec<(Identity, usize)> = given.iter().copied().zip(0..).collect();
    // In the order of the index, which is descended once per page of it at best.
    fresh.sort_unstable();
    fresh.dedup_by_key(|(identity, _)| *identity);
    let table = match SEEN.get() {
        Some(table) => table,
        None => {
            let found = spi::write_rows("SELECT 'crm.event_seen'::regclass::oid", &[], |row| {
                Ok(row.get::<pg_sys::Oid>(1)?.unwrap_or(pg_sys::InvalidOid))
            })?;
            found.first().copied().unwrap_or(pg_sys::InvalidOid)
        }
    };
    let today = bulk::today();
    let taken = tx::in_subtransaction(|| {
        Ok(bulk::insert(table, &SEEN_COLUMNS, fresh.len(), |i, row| {
            row.fixed(Some(&fresh[i].0));
            row.int(Some(today));
        }))
    });
    let done = taken.unwrap_or(false);
    SEEN.set(done.then_some(table));
    Ok(done.then(|| fresh.into_iter().map(|(_, i)| i).collect()))
}

/// Text that says something.
fn told(text: Option<&String>) -> Option<&str> {
    text.map(String::as_str).filter(|t| !t.is_empty())
}
