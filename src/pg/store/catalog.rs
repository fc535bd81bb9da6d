//! Servers and their catalog, as the worker reads and replaces them: whole
//! batches as JSON, one statement per table. Main thread, inside a transaction.

use crm_core::model::{RemoteError, RemoteField, RemoteObject};
use pgrx::prelude::*;
use serde::{Deserialize, Serialize};

/// An SPI status or conversion error; SQL errors are caught around the transaction.
type Result<T> = std::result::Result<T, pgrx::spi::Error>;

/// A server of our wrapper.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct ServerRow {
    /// OID of the foreign server.
    pub(crate) oid: u32,
    /// Its name.
    pub(crate) name: String,
    /// Its TYPE; empty for none.
    pub(crate) server_type: String,
    /// Role that owns it.
    pub(crate) owner: String,
    /// Options in order: name and value.
    pub(crate) options: Vec<(String, String)>,
    /// The worker has read its catalog before.
    pub(crate) known: bool,
    /// What was last said to be wrong with it.
    pub(crate) last_error: Option<String>,
    /// Objects that are mirrored or described.
    pub(crate) objects: Vec<String>,
}

impl ServerRow {
    /// Value of an option; empty if absent.
    pub(crate) fn option(&self, name: &str) -> &str {
        self.options
            .iter()
            .find(|(option, _)| option == name)
            .map_or("", |(_, value)| value.as_str())
    }
}

const SERVERS: &str = "
SELECT coalesce(jsonb_agg(jsonb_build_object(
    'oid', s.server_oid::bigint, 'name', s.server, 'server_type', coalesce(s.server_type, ''), 'owner', s.owner,
    'options', coalesce((SELECT jsonb_agg(jsonb_build_array(split_part(o, '=', 1), substr(o, strpos(o, '=') + 1)))
                         FROM unnest(s.options) o), '[]'),
    'known', t.catalog_at IS NOT NULL, 'last_error', t.last_error,
    'objects', coalesce((SELECT jsonb_agg(object) FROM (
        SELECT object FROM crm.mirror WHERE server = s.server UNION SELECT DISTINCT object FROM crm.remote_field WHERE server = s.server) k), '[]')
    ) ORDER BY s.server_oid), '[]')::text
FROM crm._server s LEFT JOIN crm.server_state t USING (server)";

/// All servers of our wrapper. An answer that cannot be understood is none.
pub(crate) fn servers() -> Result<Vec<ServerRow>> {
    let text = Spi::connect(|client| {
        let rows = client.select(SERVERS, Some(1), &[])?;
        match rows.into_iter().next() {
            Some(row) => row.get::<String>(1),
            None => Ok(None),
        }
    })?;
    Ok(text
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default())
}

#[derive(Serialize)]
struct FieldRow<'a> {
    object: &'a str,
    ordinal: usize,
    column_type: &'static str,
    choices: Vec<Choice<'a>>,
    #[serde(flatten)]
    field: &'a RemoteField,
}

#[derive(Serialize)]
struct Choice<'a> {
    value: &'a str,
    label: &'a str,
}

fn run(sql: &str, args: &[pgrx::datum::DatumWithOid<'_>]) -> Result<()> {
    Spi::connect_mut(|client| client.update(sql, None, args).map(|_| ()))
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "[]".to_owned())
}

/// Replaces the objects of a server, if they were asked for, and the fields of
/// those objects that are given. Rows that did not change are not touched.
pub(crate) fn store_catalog(
    server: &str,
    server_type: &str,
    ticket: i64,
    objects: Option<&[RemoteObject]>,
    fields: &[(String, Vec<RemoteField>)],
) -> Result<()> {
    if let Some(objects) = objects {
        run(OBJECTS, &[server.into(), json(&objects).into()])?;
    }
    let rows: Vec<FieldRow<'_>> = fields
        .iter()
        .flat_map(|(object, fields)| {
            fields.iter().enumerate().map(move |(at, field)| FieldRow {
                object,
                ordinal: at + 1,
                column_type: field.field_type.column_type(),
                choices: field
                    .options
                    .iter()
                    .map(|(value, label)| Choice { value, label })
                    .collect(),
                field,
            })
        })
        .collect();
    run(FIELDS, &[server.into(), json(&rows).into()])?;
    run(
        "INSERT INTO crm.server_state AS t (server, server_type, catalog_at, catalog_ticket) VALUES ($1, $2, clock_timestamp(), $3)
         ON CONFLICT (server) DO UPDATE SET catalog_at = clock_timestamp(), catalog_ticket = greatest(t.catalog_ticket, $3),
                last_error = NULL, last_error_at = NULL, advice = NULL",
        &[server.into(), server_type.into(), ticket.into()],
    )
}

const OBJECTS: &str = "
WITH given AS (
    SELECT DISTINCT ON (name) * FROM jsonb_to_recordset($2::jsonb) AS x (name text, type_id text, label text, label_plural text, custom boolean,
        createable boolean, updateable boolean, deletable boolean, streamable boolean) ORDER BY name
), gone AS (
    DELETE FROM crm.remote_object o WHERE o.server = $1 AND NOT EXISTS (SELECT FROM given g WHERE g.name = o.object)
), gone_fields AS (
    DELETE FROM crm.remote_field f WHERE f.server = $1 AND NOT EXISTS (SELECT FROM given g WHERE g.name = f.object)
)
INSERT INTO crm.remote_object AS o (server, object, type_id, label, label_plural, custom, createable, updateable, deletable, streamable)
SELECT $1, g.* FROM given g
ON CONFLICT (server, object) DO UPDATE SET type_id = excluded.type_id, label = excluded.label, label_plural = excluded.label_plural,
    custom = excluded.custom, createable = excluded.createable, updateable = excluded.updateable, deletable = excluded.deletable,
    streamable = excluded.streamable
WHERE o.* IS DISTINCT FROM excluded.*";

const FIELDS: &str = "
WITH given AS (
    SELECT DISTINCT ON (object, name) * FROM jsonb_to_recordset($2::jsonb) AS x (object text, name text, ordinal integer, label text, description text,
        field_type text, remote_type text, column_type text, max_length integer, \"precision\" integer, scale integer, choices jsonb,
        restricted boolean, required boolean, \"unique\" boolean, external_id boolean, read_only boolean, calculated boolean, \"references\" text[])
    ORDER BY object, name
), gone AS (
    DELETE FROM crm.remote_field f WHERE f.server = $1 AND f.object IN (SELECT object FROM given)
        AND NOT EXISTS (SELECT FROM given g WHERE g.object = f.object AND g.name = f.field)
)
INSERT INTO crm.remote_field AS f (server, object, field, ordinal, label, description, field_type, remote_type, column_type, max_length,
    \"precision\", scale, options, restricted, required, is_unique, external_id, read_only, calculated, \"references\")
SELECT $1, g.* FROM given g
ON CONFLICT (server, object, field) DO UPDATE SET ordinal = excluded.ordinal, label = excluded.label, description = excluded.description,
    field_type = excluded.field_type, remote_type = excluded.remote_type, column_type = excluded.column_type, max_length = excluded.max_length,
    \"precision\" = excluded.\"precision\", scale = excluded.scale, options = excluded.options, restricted = excluded.restricted,
    required = excluded.required, is_unique = excluded.is_unique, external_id = excluded.external_id, read_only = excluded.read_only,
    calculated = excluded.calculated, \"references\" = excluded.\"references\"
WHERE f.* IS DISTINCT FROM excluded.*";

/// Notes why a catalog could not be read, and answers those who wait for it.
pub(crate) fn store_failure(
    server: &str,
    server_type: &str,
    ticket: i64,
    error: &str,
    advice: &str,
) -> Result<()> {
    run(
        "INSERT INTO crm.server_state AS t (server, server_type, catalog_ticket, last_error, last_error_at, advice)
         SELECT $1, $2, $3, $4, clock_timestamp(), $5 WHERE $2 IN ('hubspot', 'salesforce')
         ON CONFLICT (server) DO UPDATE SET catalog_ticket = greatest(t.catalog_ticket, $3), last_error = $4,
                last_error_at = clock_timestamp(), advice = $5",
        &[
            server.into(),
            server_type.into(),
            ticket.into(),
            error.into(),
            advice.into(),
        ],
    )
}

/// A failure of a CRM as [`store_failure`] wants it.
pub(crate) fn store_error(
    server: &str,
    server_type: &str,
    ticket: i64,
    error: &RemoteError,
) -> Result<()> {
    store_failure(
        server,
        server_type,
        ticket,
        &error.to_string(),
        error.advice,
    )
}

/// One finding: item, whether it is right, detail, advice.
pub(crate) type Finding = (String, Option<bool>, String, Option<String>);

/// Answers a `crm.server_check`, and forgets answers older than an hour.
pub(crate) fn store_check(ticket: i64, rows: &[Finding]) -> Result<()> {
    // Tickets are microseconds since 2000, as timestamps are.
    run(
        "DELETE FROM crm.check_result WHERE ticket < $1 - 3600000000",
        &[ticket.into()],
    )?;
    run(
        "INSERT INTO crm.check_result (ticket, ordinal, item, ok, detail, advice)
         SELECT $1, n, r ->> 0, (r ->> 1)::boolean, coalesce(r ->> 2, ''), r ->> 3
         FROM jsonb_array_elements($2::jsonb || '[[\"end\", true, \"\", null]]') WITH ORDINALITY AS x (r, n)
         ON CONFLICT DO NOTHING",
        &[ticket.into(), json(&rows).into()],
    )
}

/// Remembers the account that answered.
pub(crate) fn store_tenant(server: &str, tenant: &str) -> Result<()> {
    run(
        "UPDATE crm.server_state SET tenant = $2 WHERE server = $1 AND tenant IS DISTINCT FROM $2",
        &[server.into(), tenant.into()],
    )
}
