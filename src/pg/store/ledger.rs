//! Events, their identities, entities and the state of unsettled fields.

use crm_core::identity::Identity;
use serde::{Deserialize, Serialize};

use super::append;
use super::spi::{self, Result};
use crate::pg::image;

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
    /// Microseconds beyond them, where the source tells.
    pub(crate) micros: i64,
    /// Row of `crm.stream` that brought it.
    pub(crate) stream: Option<i32>,
    /// Of the source's event.
    pub(crate) identity: Option<Identity>,
    /// The SQL transaction that made the change.
    pub(crate) tx: Option<i64>,
    pub(crate) actor: Option<String>,
    pub(crate) application: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) fields: Vec<String>,
    /// Empty if no value before is known.
    pub(crate) old_values: Vec<Option<String>>,
    /// Empty if none came.
    pub(crate) new_values: Vec<Option<String>>,
    /// Fields whose entry in `old_values` says nothing.
    pub(crate) unknown: Vec<String>,
    /// JSON text.
    pub(crate) decision: Option<String>,
    /// JSON text: values that the event replaced on other mirrors.
    pub(crate) carried: Option<String>,
    /// How sure SQL was, 0 to 1.
    pub(crate) score: Option<f32>,
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

const APPEND: &str = "INSERT INTO crm.event (seq, mirror, row_id, record_id, entity, kind, origin, source, occurred_at, \
     received_at, policy_version, stream, identity, tx, actor, application, reason, fields, old_values, \
     new_values, unknown, decision, carried, score) \
     SELECT $1 + v.ord - 1, v.mirror, v.row_id, v.record_id, v.entity, v.kind, v.origin, v.source, \
     to_timestamp(v.at / 1000000.0::float8), now(), $2, v.stream, v.identity, v.tx, v.actor, v.application, v.reason, \
     v.fields::text[], v.olds::text[], v.news::text[], v.unknown::text[], v.decision::jsonb, v.carried::jsonb, v.score \
     FROM unnest($3::int[], $4::bigint[], $5::text[], $6::bigint[], $7::text[], $8::text[], $9::text[], \
     $10::bigint[], $11::int[], $12::uuid[], $13::bigint[], $14::text[], $15::text[], $16::text[], $17::text[], \
     $18::text[], $19::text[], $20::text[], $21::text[], $22::text[], $23::real[]) WITH ORDINALITY \
     AS v(mirror, row_id, record_id, entity, kind, origin, source, at, stream, identity, tx, actor, application, \
     reason, fields, olds, news, unknown, decision, carried, score, ord)";

/// Appends events with consecutive numbers from `first`.
pub(crate) fn append(first: i64, policy_version: i64, events: Vec<EventRow>) -> Result<usize> {
    if events.is_empty() {
        return Ok(0);
    }
    let n = events.len();
    if append::events(first, policy_version, &events)? {
        return Ok(n);
    }
    let mut mirror = Vec::with_capacity(n);
    let mut row_id = Vec::with_capacity(n);
    let mut record_id = Vec::with_capacity(n);
    let mut entity = Vec::with_capacity(n);
    let mut kind = Vec::with_capacity(n);
    let mut origin = Vec::with_capacity(n);
    let mut source = Vec::with_capacity(n);
    let mut occurred = Vec::with_capacity(n);
    let mut score = Vec::with_capacity(n);
    let mut facts = Facts::with_capacity(n);
    let mut values = Values::with_capacity(n);
    for e in events {
        mirror.push(e.mirror);
        row_id.push(e.row_id);
        record_id.push(e.record_id);
        entity.push(e.entity);
        kind.push(e.kind);
        origin.push(e.origin);
        source.push(e.source);
        occurred.push(e.occurred_at * 1000 + e.micros);
        score.push(e.score);
        facts.push(
            (e.stream, e.identity, e.tx),
            (e.actor, e.application, e.reason),
        );
        values.push(
            (e.fields, e.unknown),
            (&e.old_values, &e.new_values),
            (e.decision, e.carried),
        );
    }
    spi::write(
        APPEND,
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
            facts.stream.into(),
            facts.identity.into(),
            facts.tx.into(),
            facts.actor.into(),
            facts.application.into(),
            facts.reason.into(),
            values.fields.into(),
            values.olds.into(),
            values.news.into(),
            values.unknown.into(),
            values.decision.into(),
            values.carried.into(),
            score.into(),
        ],
    )
}

/// Columns that say where events come from and who made them.
#[derive(Default)]
struct Facts {
    stream: Vec<Option<i32>>,
    identity: Vec<Option<pgrx::Uuid>>,
    tx: Vec<Option<i64>>,
    actor: Vec<Option<String>>,
    application: Vec<Option<String>>,
    reason: Vec<Option<String>>,
}

impl Facts {
    fn with_capacity(n: usize) -> Self {
        Self {
            stream: Vec::with_capacity(n),
            identity: Vec::with_capacity(n),
            tx: Vec::with_capacity(n),
            actor: Vec::with_capacity(n),
            application: Vec::with_capacity(n),
            reason: Vec::with_capacity(n),
        }
    }

    fn push(
        &mut self,
        (stream, identity, tx): (Option<i32>, Option<Identity>, Option<i64>),
        (actor, application, reason): (Option<String>, Option<String>, Option<String>),
    ) {
        let told = |text: Option<String>| text.filter(|t| !t.is_empty());
        self.stream.push(stream);
        self.identity.push(identity.map(pgrx::Uuid::from_bytes));
        self.tx.push(tx);
        self.actor.push(told(actor));
        self.application.push(told(application));
        self.reason.push(told(reason));
    }
}

/// Columns that say what changed; arrays as literals, JSON as text.
#[derive(Default)]
struct Values {
    fields: Vec<Option<String>>,
    olds: Vec<Option<String>>,
    news: Vec<Option<String>>,
    unknown: Vec<Option<String>>,
    decision: Vec<Option<String>>,
    carried: Vec<Option<String>>,
}

impl Values {
    fn with_capacity(n: usize) -> Self {
        Self {
            fields: Vec::with_capacity(n),
            olds: Vec::with_capacity(n),
            news: Vec::with_capacity(n),
            unknown: Vec::with_capacity(n),
            decision: Vec::with_capacity(n),
            carried: Vec::with_capacity(n),
        }
    }

    fn push(
        &mut self,
        (fields, unknown): (Vec<String>, Vec<String>),
        (olds, news): (&[Option<String>], &[Option<String>]),
        (decision, carried): (Option<String>, Option<String>),
    ) {
        let names = |names: Vec<String>| {
            let names: Vec<Option<String>> = names.into_iter().map(Some).collect();
            array_literal(&names)
        };
        self.fields.push(names(fields));
        self.unknown.push(names(unknown));
        self.olds.push(array_literal(olds));
        self.news.push(array_literal(news));
        self.decision.push(decision);
        self.carried.push(carried);
    }
}

/// Takes these identities; the ones that were not known, by position.
pub(crate) fn take_identities(identities: &[Identity]) -> Result<Vec<usize>> {
    if let Some(taken) = append::identities(identities)? {
        return Ok(taken);
    }
    spi::write_rows(
        "WITH given AS (SELECT i, ord FROM unnest($1::uuid[]) WITH ORDINALITY AS g(i, ord)), \
         firsts AS (SELECT i, min(ord) AS ord FROM given GROUP BY i), \
         taken AS (INSERT INTO crm.event_seen (identity) SELECT i FROM firsts ON CONFLICT DO NOTHING RETURNING identity) \
         SELECT ord FROM firsts JOIN taken ON taken.identity = firsts.i",
        &[identities
            .iter()
            .map(|i| pgrx::Uuid::from_bytes(*i))
            .collect::<Vec<_>>()
            .into()],
        |row| {
            let ord = row.get::<i64>(1)?.unwrap_or(1);
            Ok(usize::try_from(ord - 1).unwrap_or_default())
        },
    )
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
         WHERE EXISTS (SELECT FROM crm.xref z WHERE z.mirror = $1) \
         AND x.mirror = $1 AND x.row_id = ANY($2) AND x.merged_into IS NULL AND y.merged_into IS NULL",
        &[mirror.into(), image::longs(&row_ids)],
        |row| {
            Ok(XrefRow {
                mirror: row.get(1)?.unwrap_or_default(),
                row_id: row.get(2)?.unwrap_or_default(),
                entity: row.get(3)?.unwrap_or_default(),
            })
        },
    )
}

/// Records that went on as others, of these entities: entity, mirror, and the
/// record that they became.
pub(crate) fn became(entities: Vec<i64>) -> Result<Vec<(i64, i32, String)>> {
    spi::write_rows(
        "SELECT x.entity, x.mirror, x.merged_into FROM crm.xref x WHERE x.entity = ANY($1) AND x.merged_into IS NOT NULL",
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

/// Rows whose record in the other mirror was converted into one of another
/// object, which they are one with now.
pub(crate) fn converted(mirror: i32, other: i32, row_ids: Vec<i64>) -> Result<Vec<i64>> {
    spi::write_rows(
        "SELECT DISTINCT a.row_id FROM crm.xref a JOIN crm.xref l ON l.entity = a.entity AND l.mirror = $2 AND l.merged_into IS NOT NULL \
         JOIN crm.xref c ON c.entity = a.entity AND c.mirror <> l.mirror AND c.merged_into IS NULL \
         JOIN crm.mirror m ON m.id = l.mirror JOIN crm.mirror n ON n.id = c.mirror AND n.server = m.server \
         WHERE a.mirror = $1 AND a.row_id = ANY($3) AND a.merged_into IS NULL",
        &[mirror.into(), other.into(), row_ids.into()],
        |row| Ok(row.get(1)?.unwrap_or_default()),
    )
}

/// Makes an entity of each group of rows, or adds them to the one that a row of
/// the group belongs to already; `keys` tell the groups apart.
pub(crate) fn link_rows(
    keys: Vec<i64>,
    mirrors: Vec<i32>,
    row_ids: Vec<i64>,
) -> Result<Vec<XrefRow>> {
    spi::write_rows(
        "WITH v AS (SELECT * FROM unnest($1::bigint[], $2::int[], $3::bigint[]) AS v(key, mirror, row_id)), \
         known AS MATERIALIZED (SELECT v.key, min(x.entity) AS entity FROM v JOIN crm.xref x USING (mirror, row_id) WHERE x.merged_into IS NULL GROUP BY 1), \
         fresh AS MATERIALIZED (SELECT k.key, coalesce(known.entity, nextval('crm.entity_seq')) AS entity \
           FROM (SELECT DISTINCT key FROM v ORDER BY key) k LEFT JOIN known USING (key)) \
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

/// Makes rows one thing, of the entity that one of them belongs to already.
pub(crate) fn tie(rows: &[(i32, i64)]) -> Result<()> {
    let (mirrors, row_ids): (Vec<i32>, Vec<i64>) = rows.iter().copied().unzip();
    spi::write(
        "WITH v AS (SELECT * FROM unnest($1::int[], $2::bigint[]) AS v(mirror, row_id)), \
         thing AS MATERIALIZED (SELECT coalesce((SELECT min(x.entity) FROM crm.xref x JOIN v USING (mirror, row_id) \
           WHERE x.merged_into IS NULL), nextval('crm.entity_seq')) AS entity) \
         INSERT INTO crm.xref (mirror, row_id, entity) SELECT v.mirror, v.row_id, thing.entity FROM v, thing \
         ON CONFLICT (mirror, row_id) DO UPDATE SET entity = excluded.entity, merged_into = NULL, linked_at = now()",
        &[mirrors.into(), row_ids.into()],
    )?;
    Ok(())
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
    pub(crate) source: String,
}

/// What people wrote last per field of these rows in their own CRM, from the
/// ledger: not what came back of our own writes, and not what was late itself. In
/// `counted` fields, where every edit counts, what was known already is no edit. A
/// value that was held already counts where it was told with its own time.
pub(crate) fn last_shown(
    mirror: i32,
    row_ids: Vec<i64>,
    counted: Vec<String>,
) -> Result<Vec<Shown>> {
    spi::write_rows(
        "SELECT DISTINCT ON (e.row_id, f.name) e.row_id, f.name, f.value, (extract(epoch FROM e.occurred_at) * 1000)::bigint, e.source \
         FROM crm.event e CROSS JOIN LATERAL unnest(e.fields, e.new_values) AS f(name, value) \
         WHERE e.mirror = $1 AND e.row_id = ANY($2) AND e.source NOT IN ('sql', 'result', 'review', 'reject', 'link') \
         AND e.occurred_at > now() - interval '72 hours' \
         AND NOT EXISTS (SELECT FROM jsonb_array_elements(e.decision) d WHERE coalesce(d ->> 'as', d ->> 'field') = f.name AND d ->> 'step' \
           NOT IN ('one_side', 'conflict', 'owner', 'fill_blank', 'held', 'flapping', 'one_way', 'locked', 'score') \
           AND (d ->> 'step' <> 'known' OR f.name = ANY($3)) \
           AND (d ->> 'step' <> 'equal' OR e.source NOT IN ('webhook', 'pubsub'))) \
         ORDER BY e.row_id, f.name, e.occurred_at DESC, e.seq DESC",
        &[mirror.into(), row_ids.into(), counted.into()],
        |row| {
            Ok(Shown {
                row_id: row.get(1)?.unwrap_or_default(),
                field: row.get(2)?.unwrap_or_default(),
                value: row.get(3)?,
                at: row.get(4)?.unwrap_or_default(),
                source: row.get(5)?.unwrap_or_default(),
            })
        },
    )
}
