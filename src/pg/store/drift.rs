//! Schema drift as the worker reads and stores it: what was known of an object's
//! fields, the changes noticed, the statements that follow them, and copies of
//! single columns. Main thread, inside a transaction.

use crm_core::drift::{Mirrored, Shape};
use serde::Deserialize;

use super::spi::{self, Result};
use crate::pg::image;
use crate::pg::origin;

/// A mirror and what was known of its object before a catalog is stored.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct KnownRow {
    pub(crate) mirror: i32,
    pub(crate) object: String,
    pub(crate) policy: String,
    pub(crate) fields: Vec<Shape>,
    pub(crate) mirrored: Vec<Mirrored>,
}

const KNOWN: &str = "
SELECT coalesce(jsonb_agg(jsonb_build_object('mirror', m.id, 'object', m.object, 'policy', m.on_schema_change,
    'fields', coalesce((SELECT jsonb_agg(jsonb_build_object('name', f.field, 'label', f.label, 'field_type', f.field_type,
            'remote_type', f.remote_type, 'max_length', f.max_length, 'read_only', f.read_only OR f.calculated,
            'choices', coalesce((SELECT jsonb_agg(o ->> 'value') FROM jsonb_array_elements(f.options) o), '[]')))
        FROM crm.remote_field f WHERE f.server = m.server AND f.object = m.object), '[]'),
    'mirrored', coalesce((SELECT jsonb_agg(jsonb_build_object('field', k.field, 'gone', k.gone, 'mapped', k.mapped)) FROM (
        SELECT c.field, c.gone_at IS NOT NULL AS gone, EXISTS (SELECT FROM crm.link l JOIN crm.field_map f ON f.link = l.name
            WHERE (l.left_mirror = m.id AND (f.left_field = c.field OR c.field = ANY (f.left_more)))
               OR (l.right_mirror = m.id AND (f.right_field = c.field OR c.field = ANY (f.right_more)))) AS mapped
        FROM crm.mirror_column c WHERE c.mirror = m.id
        UNION ALL SELECT u, false, false FROM unnest(ARRAY[m.unique_field, m.source_field]) u WHERE u IS NOT NULL
            AND NOT EXISTS (SELECT FROM crm.mirror_column c WHERE c.mirror = m.id AND c.field = u)) k), '[]'))), '[]')::text
FROM crm.mirror m WHERE m.server = $1 AND m.object = ANY($2)";

/// The mirrors of these objects, with what is known of their fields.
pub(crate) fn known(server: &str, objects: Vec<String>) -> Result<Vec<KnownRow>> {
    let text = spi::write_text(KNOWN, &[server.into(), objects.into()])?;
    Ok(text
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default())
}

/// Stores a change, as JSON text of [`crm_core::drift::SchemaChange`], with what
/// follows at once.
pub(crate) fn note(
    mirror: i32,
    change: &str,
    policy: &str,
    action: &str,
    rests: Option<&str>,
) -> Result<()> {
    spi::write(
        "SELECT crm._schema_note($1, $2::jsonb, $3, $4, $5)",
        &[
            mirror.into(),
            change.into(),
            policy.into(),
            action.into(),
            rests.map(str::to_owned).into(),
        ],
    )?;
    Ok(())
}

/// Takes fields that are gone out of writes that came back meanwhile.
pub(crate) fn writes_without_gone(server: &str) -> Result<()> {
    spi::write(
        "SELECT crm._writes_without(k.mirror, k.field) FROM crm.mirror_column k JOIN crm.mirror m ON m.id = k.mirror \
         WHERE m.server = $1 AND k.gone_at IS NOT NULL",
        &[server.into()],
    )?;
    Ok(())
}

/// A change that is to be carried out: its number, and the table's oid.
#[derive(Clone, Debug)]
pub(crate) struct ApplyRow {
    pub(crate) id: i64,
    pub(crate) relid: u32,
    pub(crate) attempts: i32,
    /// Milliseconds since 1970.
    pub(crate) not_before: i64,
}

/// The changes that are to be carried out, in the order in which they came.
pub(crate) fn applying() -> Result<Vec<ApplyRow>> {
    spi::read_rows(
        "SELECT c.id, r.oid::bigint, c.attempts, coalesce((extract(epoch FROM c.not_before) * 1000)::bigint, 0) \
         FROM crm.schema_change c JOIN crm.mirror m ON m.id = c.mirror JOIN pg_catalog.pg_namespace n ON n.nspname = m.schema_name \
         JOIN pg_catalog.pg_class r ON r.relnamespace = n.oid AND r.relname = m.table_name AND r.relkind = 'r' \
         WHERE c.state = 'applying' ORDER BY c.id LIMIT 500",
        &[],
        |row| {
            Ok(ApplyRow {
                id: row.get(1)?.unwrap_or_default(),
                relid: u32::try_from(row.get::<i64>(2)?.unwrap_or_default()).unwrap_or_default(),
                attempts: row.get(3)?.unwrap_or_default(),
                not_before: row.get(4)?.unwrap_or_default(),
            })
        },
    )
}

/// Carries a change out: statements on the table as its owner, then our own rows.
/// Fails when a lock is not to be had at once.
pub(crate) fn apply(row: &ApplyRow) -> Result<()> {
    let plan = spi::write_rows(
        "SELECT s FROM unnest(crm._schema_plan($1)) WITH ORDINALITY AS p (s, n) ORDER BY n",
        &[row.id.into()],
        |row| Ok(row.get::<String>(1)?.unwrap_or_default()),
    )?;
    for statement in plan {
        origin::as_engine(row.relid, || spi::write(&statement, &[]))?;
    }
    spi::write("SELECT crm._schema_done($1)", &[row.id.into()])?;
    Ok(())
}

/// Notes that a change could not be carried out: tried again after a pause, or
/// left to a person.
pub(crate) fn not_applied(id: i64, wait_ms: Option<i64>, error: &str, advice: &str) -> Result<()> {
    spi::write(
        "UPDATE crm.schema_change SET attempts = attempts + 1, error = $3, advice = $4, state = CASE WHEN $2 IS NULL THEN 'failed' ELSE 'applying' END, \
         not_before = clock_timestamp() + $2 * interval '1 millisecond' WHERE id = $1 AND state = 'applying'",
        &[id.into(), wait_ms.into(), error.into(), advice.into()],
    )?;
    Ok(())
}

/// A copy of single columns that is not done.
#[derive(Clone, Debug)]
pub(crate) struct FillRow {
    pub(crate) id: i64,
    pub(crate) mirror: i32,
    /// Those of its fields that have a column that does not rest.
    pub(crate) fields: Vec<String>,
    pub(crate) cursor: Option<String>,
}

/// The next copy of columns of each mirror whose first copy is done.
pub(crate) fn fills() -> Result<Vec<FillRow>> {
    spi::read_rows(
        "SELECT DISTINCT ON (f.mirror) f.id, f.mirror, ARRAY(SELECT k.field FROM crm.mirror_column k \
         WHERE k.mirror = f.mirror AND k.field = ANY (f.fields) AND k.gone_at IS NULL ORDER BY k.field), f.cursor FROM crm.column_fill f JOIN crm.backfill b USING (mirror) \
         WHERE f.state <> 'done' AND b.state = 'done' ORDER BY f.mirror, f.id",
        &[],
        |row| {
            Ok(FillRow {
                id: row.get(1)?.unwrap_or_default(),
                mirror: row.get(2)?.unwrap_or_default(),
                fields: row.get(3)?.unwrap_or_default(),
                cursor: row.get(4)?,
            })
        },
    )
}

/// Whether any copy of columns is left, also one that waits for the first copy.
pub(crate) fn any_fill() -> Result<bool> {
    let found =
        spi::read_text("SELECT 1::text FROM crm.column_fill WHERE state <> 'done' LIMIT 1")?;
    Ok(found.is_some())
}

/// Moves a copy by a page, in the page's transaction.
pub(crate) fn fill_advance(id: i64, cursor: Option<String>, done: i64, filled: i64) -> Result<()> {
    spi::write(
        "UPDATE crm.column_fill SET cursor = $2, done = done + $3, filled = filled + $4, error = NULL, \
         started_at = coalesce(started_at, now()), state = CASE WHEN $2 IS NULL THEN 'done' ELSE 'running' END, \
         finished_at = CASE WHEN $2 IS NULL THEN now() END WHERE id = $1",
        &[id.into(), cursor.into(), done.into(), filled.into()],
    )?;
    Ok(())
}

/// Notes its trouble; it goes on from its cursor.
pub(crate) fn fill_error(id: i64, error: &str) -> Result<()> {
    spi::write(
        "UPDATE crm.column_fill SET error = $2 WHERE id = $1",
        &[id.into(), error.into()],
    )?;
    Ok(())
}

/// Which of these rows have a write that is not finished.
pub(crate) fn unfinished(mirror: i32, row_ids: &[i64]) -> Result<Vec<i64>> {
    spi::write_rows(
        "SELECT DISTINCT row_id FROM crm.write WHERE mirror = $1 AND row_id = ANY($2)",
        &[mirror.into(), image::longs(row_ids)],
        |row| Ok(row.get::<i64>(1)?.unwrap_or_default()),
    )
}
