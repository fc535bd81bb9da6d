//! The configuration as the worker reads it: servers, mirrors, links, policy.

use serde::Deserialize;

use super::spi::{self, Result};
use crate::pg::tx::{self, SqlError};

/// Everything the worker needs to know, read in one statement.
#[derive(Debug, Deserialize)]
pub(crate) struct ConfigRows {
    pub(crate) installation: String,
    pub(crate) policy_version: i64,
    pub(crate) mirrors: Vec<MirrorRow>,
    pub(crate) links: Vec<LinkRow>,
    pub(crate) policies: Vec<PolicyRow>,
    pub(crate) locks: Vec<LockRow>,
    pub(crate) stamps: Vec<StampRow>,
    pub(crate) paused_servers: Vec<String>,
}

/// One mirror with its table as it is now.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct MirrorRow {
    pub(crate) id: i32,
    pub(crate) server: String,
    pub(crate) object: String,
    pub(crate) type_id: String,
    pub(crate) relid: u32,
    /// Quoted and qualified.
    pub(crate) table: String,
    pub(crate) mode: String,
    pub(crate) paused: bool,
    pub(crate) poll_ms: i64,
    /// Milliseconds since 1970.
    pub(crate) created_at: i64,
    pub(crate) row_filter: Option<String>,
    pub(crate) unique_field: Option<String>,
    pub(crate) source_field: Option<String>,
    pub(crate) columns: Vec<ColumnRow>,
}

/// One mirrored column that exists in the table.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ColumnRow {
    pub(crate) name: String,
    /// Quoted.
    pub(crate) quoted: String,
    pub(crate) attnum: i16,
    pub(crate) column_type: String,
    pub(crate) field: String,
    pub(crate) field_type: String,
    pub(crate) max_length: Option<i32>,
    pub(crate) read_only: bool,
    pub(crate) required: bool,
}

/// One link with its field maps.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct LinkRow {
    pub(crate) name: String,
    pub(crate) left_mirror: i32,
    pub(crate) right_mirror: i32,
    pub(crate) mode: String,
    pub(crate) paused: bool,
    pub(crate) create_left: bool,
    pub(crate) create_right: bool,
    pub(crate) on_left_delete: String,
    pub(crate) on_right_delete: String,
    pub(crate) on_delete_conflict: String,
    /// Conditions over the columns of the mirrors; none is "all rows".
    pub(crate) left_scope: Option<String>,
    pub(crate) right_scope: Option<String>,
    pub(crate) on_leave: String,
    pub(crate) latency: String,
    pub(crate) maps: Vec<FieldMapRow>,
    pub(crate) defaults: Vec<DefaultRow>,
}

/// A value for new records of one side, in a field that nothing is mapped to.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct DefaultRow {
    pub(crate) side: String,
    pub(crate) field: String,
    pub(crate) value: String,
}

/// One field map.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct FieldMapRow {
    pub(crate) left_field: String,
    pub(crate) right_field: String,
    pub(crate) direction: String,
    pub(crate) to_left: String,
    pub(crate) to_right: String,
    pub(crate) value_map: Option<serde_json::Value>,
    /// Reverse of value_map where that is not one-to-one.
    pub(crate) value_map_back: Option<serde_json::Value>,
    pub(crate) default_left: Option<String>,
    pub(crate) default_right: Option<String>,
    /// How several columns are one value; see `crm_core::structure`.
    pub(crate) structure: Option<String>,
    /// Columns that are one value with `left_field`, in order.
    pub(crate) left_more: Vec<String>,
    pub(crate) right_more: Vec<String>,
    pub(crate) match_order: Option<i16>,
    /// From which similarity on a key matches; equality if there is none.
    pub(crate) match_threshold: Option<f32>,
    /// From which similarity on the only candidate is taken unasked.
    pub(crate) match_accept: Option<f32>,
    /// The value exists once on each side.
    pub(crate) unique_key: bool,
}

impl FieldMapRow {
    /// All fields of one side, in order.
    pub(crate) fn fields(&self, right: bool) -> impl Iterator<Item = &String> {
        let (first, more) = if right {
            (&self.right_field, &self.right_more)
        } else {
            (&self.left_field, &self.left_more)
        };
        std::iter::once(first).chain(more)
    }
}

/// One policy row.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct PolicyRow {
    pub(crate) id: i64,
    pub(crate) link: String,
    pub(crate) field: String,
    pub(crate) strategy: String,
    pub(crate) winner: Option<String>,
    pub(crate) skew_ms: i64,
    pub(crate) function: Option<String>,
    /// In thousandths.
    pub(crate) min_score: Option<u16>,
    pub(crate) strict: bool,
}

/// One locked field.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct LockRow {
    pub(crate) id: i64,
    pub(crate) link: String,
    pub(crate) field: String,
    pub(crate) origin: String,
}

/// How exact the stamps of a server are that come one way; see `crm.stamp_quality`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct StampRow {
    /// `local` for SQL.
    pub(crate) server: String,
    pub(crate) source: String,
    /// `edit`, `record` or `received`.
    pub(crate) exactness: String,
    pub(crate) resolution_ms: i64,
    /// None is any time before.
    pub(crate) tolerance_ms: Option<i64>,
}

/// Makes the installation's row if it is missing. Only when a user asked for
/// something: a database that is being restored brings its own.
pub(crate) fn found() -> Result<()> {
    spi::write(
        "INSERT INTO crm.installation DEFAULT VALUES ON CONFLICT DO NOTHING",
        &[],
    )?;
    Ok(())
}

/// Makes the partitions of the ledger that are needed next.
pub(crate) fn prepare() -> Result<()> {
    spi::write("SELECT crm._event_partition_ensure()", &[])?;
    Ok(())
}

/// Drops what of the ledger and of the identities of events need not be kept.
pub(crate) fn retain() -> Result<()> {
    spi::write("SELECT crm._event_retain(), crm._event_seen_forget()", &[])?;
    Ok(())
}

/// Reads the whole configuration as JSON text, and takes note of the changes
/// that it shows: what commits later leaves a new one.
pub(crate) fn read() -> Result<String> {
    spi::write("DELETE FROM crm.config_change", &[])?;
    Ok(spi::write_text(&statement(RULES), &[None::<Vec<i32>>.into()])?.unwrap_or_default())
}

fn statement(rules: &str) -> String {
    format!("{MAPS}{rules})::text")
}

/// Reads of these mirrors and their links how they are mapped, and no rule of policy.
pub(crate) fn peek_maps(mirrors: Vec<i32>) -> Result<String> {
    let sql = statement(NO_RULES);
    let found = spi::read_rows(&sql, &[mirrors.into()], |row| row.get::<String>(1))?;
    Ok(found.into_iter().next().flatten().unwrap_or_default())
}

/// Reads the configuration of these mirrors, or of all, and takes note of nothing.
pub(crate) fn peek(mirrors: Option<Vec<i32>>) -> Result<String> {
    let found = spi::read_rows(&statement(RULES), &[mirrors.into()], |row| {
        row.get::<String>(1)
    })?;
    Ok(found.into_iter().next().flatten().unwrap_or_default())
}

/// The same, with what this transaction has changed.
pub(crate) fn peek_now() -> Result<String> {
    Ok(spi::write_text(&statement(RULES), &[None::<Vec<i32>>.into()])?.unwrap_or_default())
}

/// The mirrors that are decided together with this one.
pub(crate) fn group_of(mirror: i32) -> Result<Vec<i32>> {
    spi::read_rows(
        "WITH RECURSIVE g(id) AS (SELECT $1 UNION SELECT CASE WHEN l.left_mirror = g.id THEN l.right_mirror ELSE l.left_mirror END \
         FROM g JOIN crm.link l ON g.id IN (l.left_mirror, l.right_mirror)) SELECT id FROM g",
        &[mirror.into()],
        |row| Ok(row.get(1)?.unwrap_or_default()),
    )
}

/// Whether a mirror may be sent to: the switches of its server, of itself and of
/// its links, with everything that is committed by now. They stay as they are to
/// the end of the transaction, so that nothing is claimed any more once
/// `crm.pause` has returned: it waits for us, and while somebody else is turning
/// a switch the answer is no.
pub(crate) fn may_send(mirror: i32) -> Result<bool> {
    let found = spi::write_rows(
        "WITH m AS MATERIALIZED (SELECT m.paused FROM crm.mirror m WHERE m.id = $1 FOR SHARE SKIP LOCKED), \
         s AS MATERIALIZED (SELECT s.paused FROM crm.server_state s WHERE s.server = (SELECT m.server FROM crm.mirror m WHERE m.id = $1) FOR SHARE SKIP LOCKED), \
         l AS MATERIALIZED (SELECT l.paused FROM crm.link l WHERE $1 IN (l.left_mirror, l.right_mirror) FOR SHARE SKIP LOCKED) \
         SELECT EXISTS (SELECT FROM m WHERE NOT paused) AND NOT EXISTS (SELECT FROM s WHERE paused) \
           AND (EXISTS (SELECT FROM s) OR NOT EXISTS (SELECT FROM crm.server_state s JOIN crm.mirror m USING (server) WHERE m.id = $1)) \
           AND (EXISTS (SELECT FROM l WHERE NOT paused) OR NOT EXISTS (SELECT FROM crm.link l WHERE $1 IN (l.left_mirror, l.right_mirror)))",
        &[mirror.into()],
        |row| Ok(row.get::<bool>(1)?.unwrap_or_default()),
    )?;
    Ok(found == [true])
}

/// Whether an error may be over at the next try: a lock, a full disk, or a
/// configuration (a dropped column) that the worker has not read yet.
pub(crate) fn is_passing(error: &SqlError) -> bool {
    let unread = || spi::read_text("SELECT 1::text FROM crm.config_change LIMIT 1");
    error.is_transient() || tx::in_transaction(|| Ok(unread()?.is_some())).unwrap_or(true)
}

/// What [`ConfigRows`] says of mirrors and links.
const MAPS: &str = "
SELECT pg_catalog.json_build_object(
    'installation', (SELECT id FROM crm.installation),
    'policy_version', (SELECT policy_version FROM crm.installation),
    'paused_servers', coalesce((SELECT json_agg(server) FROM crm.server_state WHERE paused), '[]'),
    'mirrors', coalesce((SELECT json_agg(json_build_object(
        'id', m.id, 'server', m.server, 'object', m.object,
        'type_id', coalesce(o.type_id, ''),
        'relid', c.oid::bigint,
        'table', format('%I.%I', m.schema_name, m.table_name),
        'mode', m.mode, 'paused', m.paused,
        'poll_ms', (extract(epoch FROM m.poll_interval) * 1000)::bigint,
        'created_at', (extract(epoch FROM m.created_at) * 1000)::bigint,
        'row_filter', m.row_filter, 'unique_field', m.unique_field, 'source_field', m.source_field,
        'columns', coalesce((SELECT json_agg(json_build_object(
            'name', a.attname, 'quoted', quote_ident(a.attname), 'attnum', a.attnum,
            'column_type', format_type(a.atttypid, a.atttypmod), 'field', k.field,
            'field_type', k.field_type, 'max_length', k.max_length,
            'read_only', k.read_only, 'required', k.required) ORDER BY a.attnum)
          FROM crm.mirror_column k
          JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = k.column_name
               AND a.attnum > 0 AND NOT a.attisdropped
          WHERE k.mirror = m.id AND k.gone_at IS NULL), '[]')) ORDER BY m.id)
      FROM crm.mirror m
      JOIN pg_catalog.pg_namespace n ON n.nspname = m.schema_name
      JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = m.table_name AND c.relkind = 'r'
      LEFT JOIN crm.remote_object o ON o.server = m.server AND o.object = m.object
      WHERE $1::int[] IS NULL OR m.id = ANY($1)), '[]'),
    'links', coalesce((SELECT json_agg(to_jsonb(l) || jsonb_build_object('maps',
        coalesce((SELECT json_agg(to_jsonb(f) ORDER BY f.id) FROM crm.field_map f WHERE f.link = l.name), '[]'),
        'defaults', coalesce((SELECT json_agg(to_jsonb(d)) FROM crm.field_default d WHERE d.link = l.name), '[]'))
        ORDER BY l.id) FROM crm.link l WHERE $1::int[] IS NULL OR l.left_mirror = ANY($1) OR l.right_mirror = ANY($1)), '[]')";

/// And of who wins.
const RULES: &str = ",
    'policies', coalesce((SELECT json_agg(json_build_object('id', p.id, 'link', p.link, 'field', p.field,
        'strategy', p.strategy, 'winner', p.winner, 'function', p.function, 'min_score', ceil(p.min_score * 1000)::integer, 'strict', p.strict,
        'skew_ms', (extract(epoch FROM p.skew) * 1000)::bigint) ORDER BY p.id) FROM crm.conflict_policy p), '[]'),
    'locks', coalesce((SELECT json_agg(json_build_object('id', f.id, 'link', f.link, 'field', f.field, 'origin', f.origin) ORDER BY f.id)
        FROM crm.field_lock f), '[]'),
    'stamps', coalesce((SELECT json_agg(json_build_object('server', q.server, 'source', q.source, 'exactness', q.exactness,
        'resolution_ms', (extract(epoch FROM q.resolution) * 1000)::bigint, 'tolerance_ms', (extract(epoch FROM q.tolerance) * 1000)::bigint))
        FROM crm._stamp_qualities() q), '[]')";

/// The same without any rule.
const NO_RULES: &str =
    ", 'policies', json_build_array(), 'locks', json_build_array(), 'stamps', json_build_array()";
