//! Events, their identities, entities and the state of unsettled fields.

use serde::{Deserialize, Serialize};

use super::spi::{self, Result};

/// One line of the ledger.
#[derive(Clone, Debug, Default)]
pub(crate) struct EventRow {
    pub(crate) mirror: i32,
    pub(crate) row_id: Option<i64>,
    pub(crate) record_id: Option<String>,
    pub(crate) entity: Option<i64>,
    pub(crate) kind: &'static str,
    pub(crate) origin: String,
    pub(crate) source: String,
    /// Milliseconds since 1970.
    pub(crate) occurred_at: i64,
    pub(crate) actor: Option<String>,
    pub(crate) fields: Vec<String>,
    pub(crate) old_values: Vec<Option<String>>,
    pub(crate) new_values: Vec<Option<String>>,
    /// JSON text.
    pub(crate) decision: Option<String>,
}

/// A PostgreSQL array literal; arrays of arrays have no SPI argument type.
fn array_literal(values: &[Option<String>]) -> Option<String> {
    if values.is_empty() {
        return None;
    }
    let mut out = String::from("{");
    for (i, value) in values.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        match value {
            None => out.push_str("NULL"),
            Some(value) => {
                out.push('"');
                for c in value.chars() {
                    if c == '"' || c == '\\' {
                        out.push('\\');
                    }
                    out.push(c);
                }
                out.push('"');
            }
        }
    }
    out.push('}');
    Some(out)
}

/// Reserves `count` numbers of the engine sequence; the first of them.
/// Only the one session worker calls this, so the numbers are consecutive.
pub(crate) fn reserve_sequence(count: usize) -> Result<i64> {
    let text = spi::write_text(
        "SELECT (setval('crm.event_seq', (SELECT last_value + is_called::int FROM crm.event_seq) + $1 - 1) - $1 + 1)::text",
        &[i64::try_from(count).unwrap_or(i64::MAX).into()],
    )?;
    Ok(text.and_then(|t| t.parse().ok()).unwrap_or_default())
}

/// Appends events with consecutive numbers from `first`.
pub(crate) fn append(first: i64, policy_version: i64, events: Vec<EventRow>) -> Result<usize> {
    if events.is_empty() {
        return Ok(0);
    }
    let n = events.len();
    let mut mirror = Vec::with_capacity(n);
    let mut row_id = Vec::with_capacity(n);
    let mut record_id = Vec::with_capacity(n);
    let mut entity = Vec::with_capacity(n);
    let mut kind = Vec::with_capacity(n);
    let mut origin = Vec::with_capacity(n);
    let mut source = Vec::with_capacity(n);
    let mut occurred = Vec::with_capacity(n);
    let mut actor = Vec::with_capacity(n);
    let mut fields = Vec::with_capacity(n);
    let mut old_values = Vec::with_capacity(n);
    let mut new_values = Vec::with_capacity(n);
    let mut decision = Vec::with_capacity(n);
    for e in events {
        mirror.push(e.mirror);
        row_id.push(e.row_id);
        record_id.push(e.record_id);
        entity.push(e.entity);
        kind.push(e.kind);
        origin.push(e.origin);
        source.push(e.source);
        occurred.push(e.occurred_at);
        actor.push(e.actor.filter(|a| !a.is_empty()));
        let names: Vec<Option<String>> = e.fields.into_iter().map(Some).collect();
        fields.push(array_literal(&names));
        old_values.push(array_literal(&e.old_values));
        new_values.push(array_literal(&e.new_values));
        decision.push(e.decision);
    }
    spi::write(
        "INSERT INTO crm.event (seq, mirror, row_id, record_id, entity, kind, origin, source, occurred_at, \
         received_at, actor, fields, old_values, new_values, decision, policy_version) \
         SELECT $1 + v.ord - 1, v.mirror, v.row_id, v.record_id, v.entity, v.kind, v.origin, v.source, \
         to_timestamp(v.at / 1000.0), now(), v.actor, v.fields::text[], v.olds::text[], v.news::text[], \
         v.decision::jsonb, $2 \
         FROM unnest($3::int[], $4::bigint[], $5::text[], $6::bigint[], $7::text[], $8::text[], $9::text[], \
         $10::bigint[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[]) WITH ORDINALITY \
         AS v(mirror, row_id, record_id, entity, kind, origin, source, at, actor, fields, olds, news, decision, ord)",
        &[
            first.into(),
            policy_version.into(),
            mirror.into(),
            row_id.into(),
            record_id.into(),
            entity.into(),
            kind.into(),
            origin.into(),
            source.into(),
            occurred.into(),
            actor.into(),
            fields.into(),
            old_values.into(),
            new_values.into(),
            decision.into(),
        ],
    )
}

/// Takes these identities (as UUID text); the ones that were not known, by position.
pub(crate) fn take_identities(identities: Vec<String>) -> Result<Vec<usize>> {
    spi::write_rows(
        "WITH given AS (SELECT i, ord FROM unnest($1::uuid[]) WITH ORDINALITY AS g(i, ord)), \
         firsts AS (SELECT i, min(ord) AS ord FROM given GROUP BY i), \
         taken AS (INSERT INTO crm.event_seen (identity) SELECT i FROM firsts ON CONFLICT DO NOTHING RETURNING identity) \
         SELECT ord FROM firsts JOIN taken ON taken.identity = firsts.i",
        &[uuids(identities)?.into()],
        |row| {
            let ord = row.get::<i64>(1)?.unwrap_or(1);
            Ok(usize::try_from(ord - 1).unwrap_or_default())
        },
    )
}

fn uuids(identities: Vec<String>) -> Result<Vec<pgrx::Uuid>> {
    let mut out = Vec::with_capacity(identities.len());
    for identity in identities {
        let mut bytes = [0_u8; 16];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(identity.get(2 * i..2 * i + 2).unwrap_or("00"), 16)
                .unwrap_or_default();
        }
        out.push(pgrx::Uuid::from_bytes(bytes));
    }
    Ok(out)
}

/// Which entity a row belongs to, and the other rows of it.
#[derive(Clone, Debug)]
pub(crate) struct XrefRow {
    pub(crate) mirror: i32,
    pub(crate) row_id: i64,
    pub(crate) entity: i64,
}

/// All rows of the entities that these rows belong to.
pub(crate) fn entities_of(mirror: i32, row_ids: Vec<i64>) -> Result<Vec<XrefRow>> {
    spi::write_rows(
        "SELECT y.mirror, y.row_id, y.entity FROM crm.xref x JOIN crm.xref y ON y.entity = x.entity \
         WHERE x.mirror = $1 AND x.row_id = ANY($2) AND x.merged_into IS NULL AND y.merged_into IS NULL",
        &[mirror.into(), row_ids.into()],
        |row| {
            Ok(XrefRow {
                mirror: row.get(1)?.unwrap_or_default(),
                row_id: row.get(2)?.unwrap_or_default(),
                entity: row.get(3)?.unwrap_or_default(),
            })
        },
    )
}

/// Makes an entity of each group of rows; `rows` carry a key per new entity.
pub(crate) fn link_rows(
    keys: Vec<i64>,
    mirrors: Vec<i32>,
    row_ids: Vec<i64>,
) -> Result<Vec<XrefRow>> {
    spi::write_rows(
        "WITH v AS (SELECT * FROM unnest($1::bigint[], $2::int[], $3::bigint[]) AS v(key, mirror, row_id)), \
         fresh AS MATERIALIZED (SELECT key, nextval('crm.entity_seq') AS entity FROM (SELECT DISTINCT key FROM v ORDER BY key) k) \
         INSERT INTO crm.xref (mirror, row_id, entity) SELECT v.mirror, v.row_id, fresh.entity FROM v JOIN fresh USING (key) \
         ON CONFLICT (mirror, row_id) DO UPDATE SET entity = excluded.entity, merged_into = NULL \
         RETURNING mirror, row_id, entity",
        &[keys.into(), mirrors.into(), row_ids.into()],
        |row| {
            Ok(XrefRow {
                mirror: row.get(1)?.unwrap_or_default(),
                row_id: row.get(2)?.unwrap_or_default(),
                entity: row.get(3)?.unwrap_or_default(),
            })
        },
    )
}

/// Takes rows out of their entities; the rest of each entity stays.
pub(crate) fn unlink_rows(mirror: i32, row_ids: Vec<i64>) -> Result<usize> {
    spi::write(
        "DELETE FROM crm.xref WHERE mirror = $1 AND row_id = ANY($2)",
        &[mirror.into(), row_ids.into()],
    )
}

/// State of unsettled fields: `(entity, field, state as JSON)`.
pub(crate) fn field_states(entities: Vec<i64>) -> Result<Vec<(i64, String, String)>> {
    spi::write_rows(
        "SELECT entity, field, state::text FROM crm.field_state WHERE entity = ANY($1)",
        &[entities.into()],
        |row| {
            Ok((
                row.get(1)?.unwrap_or_default(),
                row.get(2)?.unwrap_or_default(),
                row.get(3)?.unwrap_or_default(),
            ))
        },
    )
}

/// Stores states; `None` removes one.
pub(crate) fn store_field_states(states: Vec<(i64, String, Option<String>)>) -> Result<()> {
    let (gone, kept): (Vec<_>, Vec<_>) = states.into_iter().partition(|s| s.2.is_none());
    if !gone.is_empty() {
        let (entities, fields): (Vec<i64>, Vec<String>) =
            gone.into_iter().map(|(e, f, _)| (e, f)).unzip();
        spi::write(
            "DELETE FROM crm.field_state s USING unnest($1::bigint[], $2::text[]) AS v(entity, field) \
             WHERE s.entity = v.entity AND s.field = v.field",
            &[entities.into(), fields.into()],
        )?;
    }
    if !kept.is_empty() {
        let mut entities = Vec::with_capacity(kept.len());
        let mut fields = Vec::with_capacity(kept.len());
        let mut values = Vec::with_capacity(kept.len());
        for (entity, field, state) in kept {
            entities.push(entity);
            fields.push(field);
            values.push(state);
        }
        spi::write(
            "INSERT INTO crm.field_state (entity, field, state) \
             SELECT v.entity, v.field, v.state::jsonb FROM unnest($1::bigint[], $2::text[], $3::text[]) AS v(entity, field, state) \
             ON CONFLICT (entity, field) DO UPDATE SET state = excluded.state, at = now()",
            &[entities.into(), fields.into(), values.into()],
        )?;
    }
    Ok(())
}

/// What a side already showed for a field, later than an event that comes late.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Shown {
    pub(crate) row_id: i64,
    pub(crate) field: String,
    pub(crate) value: Option<String>,
    pub(crate) at: i64,
}

/// The newest observation per field of these rows from their own CRM, from the ledger.
pub(crate) fn last_shown(mirror: i32, row_ids: Vec<i64>) -> Result<Vec<Shown>> {
    spi::write_rows(
        "SELECT DISTINCT ON (e.row_id, f.name) e.row_id, f.name, f.value, (extract(epoch FROM e.occurred_at) * 1000)::bigint \
         FROM crm.event e CROSS JOIN LATERAL unnest(e.fields, e.new_values) AS f(name, value) \
         WHERE e.mirror = $1 AND e.row_id = ANY($2) AND e.source NOT IN ('sql', 'result') \
         AND e.occurred_at > now() - interval '72 hours' \
         ORDER BY e.row_id, f.name, e.occurred_at DESC, e.seq DESC",
        &[mirror.into(), row_ids.into()],
        |row| {
            Ok(Shown {
                row_id: row.get(1)?.unwrap_or_default(),
                field: row.get(2)?.unwrap_or_default(),
                value: row.get(3)?,
                at: row.get(4)?.unwrap_or_default(),
            })
        },
    )
}

/// Remembers under which id merged records live on: `(old id, new id)`.
pub(crate) fn note_merges(mirror: i32, merged: Vec<(String, String)>) -> Result<()> {
    if merged.is_empty() {
        return Ok(());
    }
    let (old, new): (Vec<String>, Vec<String>) = merged.into_iter().unzip();
    spi::write(
        "UPDATE crm.xref x SET merged_into = v.new FROM unnest($2::text[], $3::text[]) AS v(old, new) \
         WHERE x.mirror = $1 AND x.record_id = v.old",
        &[mirror.into(), old.into(), new.into()],
    )?;
    Ok(())
}

/// Forgets the values that the ledger, the queue, the dead letters and the
/// review hold of rows. What happened, and when, stays.
pub(crate) fn erase(mirror: i32, row_ids: Vec<i64>) -> Result<()> {
    for sql in [
        "DELETE FROM crm.field_state WHERE entity IN \
         (SELECT entity FROM crm.xref WHERE mirror = $1 AND row_id = ANY($2))",
        "UPDATE crm.event SET old_values = NULL, new_values = NULL, decision = NULL, actor = NULL \
         WHERE mirror = $1 AND row_id = ANY($2)",
        "DELETE FROM crm.write WHERE mirror = $1 AND row_id = ANY($2)",
        "DELETE FROM crm.review_item WHERE mirror = $1 AND row_id = ANY($2)",
        "DELETE FROM crm.poison WHERE mirror = $1 AND record_id IN \
         (SELECT record_id FROM crm.event WHERE mirror = $1 AND row_id = ANY($2))",
        "DELETE FROM crm.deferred WHERE mirror = $1 AND record_id IN \
         (SELECT record_id FROM crm.event WHERE mirror = $1 AND row_id = ANY($2))",
    ] {
        spi::write(sql, &[mirror.into(), row_ids.clone().into()])?;
    }
    Ok(())
}
