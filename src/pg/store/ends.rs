//! Entities whose records end: merged, converted, removed, erased.

use super::spi::{self, Arg, Result};

/// Takes rows out of their entities, because their records live on as `into`.
/// The line stays, so that the successor finds the entity.
pub(crate) fn note_merged(mirror: i32, row_ids: Vec<i64>, into: &str) -> Result<usize> {
    spi::write(
        "UPDATE crm.xref SET merged_into = $3 WHERE mirror = $1 AND row_id = ANY($2)",
        &[mirror.into(), row_ids.into(), into.into()],
    )
}

/// Entities that records of a server inherit: `(record, entity)`. Only those
/// that have no row of this mirror any more.
pub(crate) fn inherited(mirror: i32, records: Vec<String>) -> Result<Vec<(String, i64)>> {
    spi::write_rows(
        "SELECT DISTINCT ON (x.merged_into) x.merged_into, x.entity FROM crm.xref x \
         JOIN crm.mirror o ON o.id = x.mirror JOIN crm.mirror m ON m.id = $1 AND m.server = o.server \
         WHERE x.merged_into = ANY($2) AND NOT EXISTS \
           (SELECT FROM crm.xref y WHERE y.entity = x.entity AND y.mirror = $1 AND y.merged_into IS NULL) \
         ORDER BY x.merged_into, x.entity",
        &[mirror.into(), records.into()],
        |row| {
            Ok((
                row.get(1)?.unwrap_or_default(),
                row.get(2)?.unwrap_or_default(),
            ))
        },
    )
}

/// The rows of entities: mirror and row.
pub(crate) fn rows_of(entities: Vec<i64>) -> Result<Vec<(i32, i64)>> {
    if entities.is_empty() {
        return Ok(Vec::new());
    }
    spi::write_rows(
        "SELECT x.mirror, x.row_id FROM crm.xref x WHERE x.entity = ANY($1) AND x.merged_into IS NULL",
        &[entities.into()],
        |row| {
            Ok((
                row.get(1)?.unwrap_or_default(),
                row.get(2)?.unwrap_or_default(),
            ))
        },
    )
}

/// Puts rows into an entity.
pub(crate) fn join_entity(entity: i64, rows: &[(i32, i64)]) -> Result<()> {
    let (mirrors, row_ids): (Vec<i32>, Vec<i64>) = rows.iter().copied().unzip();
    spi::write(
        "INSERT INTO crm.xref (mirror, row_id, entity) SELECT v.mirror, v.row_id, $3 \
         FROM unnest($1::int[], $2::bigint[]) AS v(mirror, row_id) \
         ON CONFLICT (mirror, row_id) DO UPDATE SET entity = excluded.entity, merged_into = NULL, linked_at = now()",
        &[mirrors.into(), row_ids.into(), entity.into()],
    )?;
    Ok(())
}

/// A question about a record, or a field of it, that ended without an answer.
pub(crate) struct Ended {
    pub(crate) mirror: i32,
    pub(crate) row_id: i64,
    pub(crate) entity: i64,
    /// As policies call it.
    pub(crate) field: Option<String>,
    /// The question as it stood, JSON text: goes into the ledger.
    pub(crate) question: String,
}

/// Takes away the questions about fields of these entities, all or only those
/// that have no two sides left.
fn end_questions(entities: Vec<i64>, lonely: &str) -> Result<Vec<Ended>> {
    let of = format!("q.kind = 'field' AND q.entity = ANY($1){lonely}");
    end(&of, &[entities.into()])
}

/// Takes away the questions whether these rows may go.
pub(crate) fn close_deletes(mirror: i32, row_ids: Vec<i64>) -> Result<Vec<Ended>> {
    let of = "q.kind = 'delete' AND q.mirror = $1 AND q.row_id = ANY($2)";
    end(of, &[mirror.into(), row_ids.into()])
}

fn end(of: &str, args: &[Arg<'_>]) -> Result<Vec<Ended>> {
    let sql = format!(
        "DELETE FROM crm.review_item q WHERE {of} \
         RETURNING coalesce(q.mirror, 0), coalesce(q.row_id, 0), coalesce(q.entity, 0), q.field, jsonb_build_object('id', q.id, 'kind', q.kind, \
           'reason', q.reason, 'rule', q.rule, 'candidates', q.candidates, 'opened_at', q.opened_at, 'resolution', 'ended')::text"
    );
    spi::write_rows(&sql, args, |row| {
        Ok(Ended {
            mirror: row.get(1)?.unwrap_or_default(),
            row_id: row.get(2)?.unwrap_or_default(),
            entity: row.get(3)?.unwrap_or_default(),
            field: row.get(4)?,
            question: row.get(5)?.unwrap_or_default(),
        })
    })
}

/// Questions about fields of entities that have no two sides left are moot.
pub(crate) fn close_lonely(entities: Vec<i64>) -> Result<Vec<Ended>> {
    let lonely = " AND (SELECT count(*) FROM crm.xref x WHERE x.entity = q.entity AND x.merged_into IS NULL) < 2";
    let ended = end_questions(entities.clone(), lonely)?;
    spi::write(
        &format!(
            "DELETE FROM crm.field_state q WHERE q.state ? 'hold' AND q.entity = ANY($1){lonely}"
        ),
        &[entities.into()],
    )?;
    Ok(ended)
}

/// Forgets the states of an entity's fields: its rows are the base again.
/// Answers the questions about them that end with it.
pub(crate) fn forget_states(entity: i64) -> Result<Vec<Ended>> {
    spi::write(
        "DELETE FROM crm.field_state WHERE entity = $1",
        &[entity.into()],
    )?;
    end_questions(vec![entity], "")
}

/// Forgets what is known of the fields of a side of an entity: another record stands there.
pub(crate) fn forget_side(entity: i64, side: usize) -> Result<usize> {
    let side = i32::try_from(side).unwrap_or(i32::MAX);
    spi::write(
        "UPDATE crm.field_state SET state = jsonb_set(state, ARRAY['sides', $2::text], '{}', false) WHERE entity = $1",
        &[entity.into(), side.into()],
    )
}

/// Questions about fields of a row are about its successor's from now on.
pub(crate) fn hand_questions(mirror: i32, row_id: i64, heir: i64) -> Result<usize> {
    spi::write(
        "UPDATE crm.review_item SET row_id = $3, changed_at = now() WHERE kind = 'field' AND mirror = $1 AND row_id = $2",
        &[mirror.into(), row_id.into(), heir.into()],
    )
}

/// Unsent changes of rows: `(row, who wrote, values as JSON)`; they are gone
/// afterwards.
pub(crate) fn drop_unsent(mirror: i32, row_ids: Vec<i64>) -> Result<Vec<(i64, String, String)>> {
    spi::write_rows(
        "DELETE FROM crm.write WHERE mirror = $1 AND row_id = ANY($2) AND kind <> 'delete' \
         AND state IN ('queued', 'would_send', 'held', 'dead') RETURNING row_id, origin, vals::text",
        &[mirror.into(), row_ids.into()],
        |row| {
            Ok((
                row.get(1)?.unwrap_or_default(),
                row.get(2)?.unwrap_or_default(),
                row.get(3)?.unwrap_or_default(),
            ))
        },
    )
}

/// Drops every change on its way to a record that is gone, also those that were
/// sent: put back into the queue they would hold up what comes after.
pub(crate) fn drop_all(mirror: i32, row_id: i64) -> Result<usize> {
    spi::write(
        "DELETE FROM crm.write WHERE mirror = $1 AND row_id = $2 AND kind <> 'delete'",
        &[mirror.into(), row_id.into()],
    )
}

/// Tells a row's unsent changes the id under which its record lives on.
pub(crate) fn readdress(mirror: i32, row_id: i64, record_id: &str) -> Result<usize> {
    spi::write(
        "UPDATE crm.write SET record_id = $3, not_before = NULL, \
           state = CASE WHEN state = 'dead' AND error_class = 'gone' THEN 'queued' ELSE state END \
         WHERE mirror = $1 AND row_id = $2 AND kind <> 'create' AND state IN ('queued', 'would_send', 'held', 'dead')",
        &[mirror.into(), row_id.into(), record_id.into()],
    )
}

/// A record's id, where it had one, and its values by field.
pub(crate) type Deleted = (Option<String>, Vec<(String, Option<String>)>);

/// The last deleted state of a row: its record and its values by field.
pub(crate) fn last_deleted(mirror: i32, row_id: i64) -> Result<Option<Deleted>> {
    let head = spi::write_rows(
        "SELECT e.seq, e.record_id FROM crm.event e WHERE e.mirror = $1 AND e.row_id = $2 AND e.kind = 'delete' AND e.source = 'sql' \
         ORDER BY e.seq DESC LIMIT 1",
        &[mirror.into(), row_id.into()],
        |row| {
            Ok((
                row.get::<i64>(1)?.unwrap_or_default(),
                row.get::<String>(2)?,
            ))
        },
    )?;
    let Some((seq, record)) = head.into_iter().next() else {
        return Ok(None);
    };
    let values = spi::write_rows(
        "SELECT f.name, f.value FROM crm.event e CROSS JOIN LATERAL unnest(e.fields, e.old_values) AS f(name, value) WHERE e.seq = $1",
        &[seq.into()],
        |row| {
            Ok((
                row.get::<String>(1)?.unwrap_or_default(),
                row.get::<String>(2)?,
            ))
        },
    )?;
    Ok(Some((record, values)))
}

/// Rows of a mirror, with those whose records were merged into theirs, or into
/// these records, under whatever id.
pub(crate) fn merged_into(
    mirror: i32,
    row_ids: Vec<i64>,
    records: Vec<String>,
) -> Result<Vec<i64>> {
    spi::write_rows(
        "WITH RECURSIVE own(row_id) AS ( \
           (SELECT r FROM unnest($2::bigint[]) AS r \
            UNION SELECT x.row_id FROM crm.xref x WHERE x.mirror = $1 AND x.merged_into = ANY($3)) \
           UNION SELECT x.row_id FROM own o JOIN crm.event e ON e.mirror = $1 AND e.row_id = o.row_id \
             JOIN crm.xref x ON x.mirror = $1 AND x.merged_into = e.record_id) \
         SELECT row_id FROM own",
        &[mirror.into(), row_ids.into(), records.into()],
        |row| Ok(row.get(1)?.unwrap_or_default()),
    )
}

/// Rows that are, or as far as the ledger tells were, of the same entities as
/// these rows of a mirror: mirror and row.
pub(crate) fn once_one_with(mirror: i32, row_ids: Vec<i64>) -> Result<Vec<(i32, i64)>> {
    spi::write_rows(
        "WITH things AS ( \
           SELECT x.entity FROM crm.xref x WHERE x.mirror = $1 AND x.row_id = ANY($2) \
           UNION SELECT e.entity FROM crm.event e WHERE e.mirror = $1 AND e.row_id = ANY($2)) \
         SELECT o.mirror, o.row_id FROM ( \
           SELECT x.mirror, x.row_id FROM crm.xref x JOIN things USING (entity) \
           UNION SELECT e.mirror, e.row_id FROM crm.event e JOIN things USING (entity)) o \
         WHERE o.mirror <> $1 AND o.row_id > 0 ORDER BY 1, 2",
        &[mirror.into(), row_ids.into()],
        |row| {
            Ok((
                row.get(1)?.unwrap_or_default(),
                row.get(2)?.unwrap_or_default(),
            ))
        },
    )
}

/// Which of these rows, mirror and row, a link removed because rows of a mirror that they
/// were one with were removed.
pub(crate) fn removed_with(
    mirror: i32,
    row_ids: Vec<i64>,
    others: &[(i32, i64)],
) -> Result<Vec<(i32, i64)>> {
    let (mirrors, rows): (Vec<i32>, Vec<i64>) = others.iter().copied().unzip();
    spi::write_rows(
        "SELECT DISTINCT e.mirror, e.row_id FROM unnest($3::int[], $4::bigint[]) AS o(mirror, row_id) \
         JOIN crm.event e USING (mirror, row_id) JOIN crm.event own ON own.entity = e.entity \
         WHERE own.mirror = $1 AND own.row_id = ANY($2) AND e.kind = 'delete' AND e.source = 'link'",
        &[mirror.into(), row_ids.into(), mirrors.into(), rows.into()],
        |row| {
            Ok((
                row.get(1)?.unwrap_or_default(),
                row.get(2)?.unwrap_or_default(),
            ))
        },
    )
}

/// Forgets all values that the engine's own tables hold of these rows and
/// records, and of the entities they belong to. That something happened, and
/// when, stays.
pub(crate) fn erase(mirror: i32, row_ids: Vec<i64>, records: Vec<String>) -> Result<()> {
    spi::write(
        "SELECT crm._erase($1, $2, $3)",
        &[mirror.into(), row_ids.into(), records.into()],
    )?;
    Ok(())
}
