//! Questions for stewards and their answers.

use std::collections::HashSet;

use super::spi::{self, Result};

/// What a question is about; see `crm.review_item`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Which rows describe the same thing.
    Match,
    /// Whether a create may be made, or was.
    Create,
    /// Whether a record that changed meanwhile may go.
    Delete,
    /// What becomes of a second counterpart after a merge.
    Merge,
    /// Whether a person erased on one side goes on the other.
    Erase,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Match => "match",
            Self::Create => "create",
            Self::Delete => "delete",
            Self::Merge => "merge",
            Self::Erase => "erase",
        }
    }
}

/// A question about a row.
#[derive(Clone, Debug)]
pub(crate) struct RowQuestion<'a> {
    pub(crate) kind: Kind,
    pub(crate) link: Option<&'a str>,
    pub(crate) mirror: i32,
    pub(crate) row_id: i64,
    pub(crate) entity: Option<i64>,
    pub(crate) reason: &'a str,
    /// JSON text.
    pub(crate) candidates: &'a str,
}

/// Asks about a row; the same question again takes the place of the first, and
/// an answer to what was asked before counts no more.
pub(crate) fn ask(question: &RowQuestion<'_>) -> Result<usize> {
    spi::write(
        "INSERT INTO crm.review_item AS r (kind, link, mirror, row_id, entity, reason, candidates) \
         VALUES ($1, $2, $3, $4, $5, $6, $7::jsonb) \
         ON CONFLICT (kind, link, mirror, row_id) WHERE kind <> 'field' \
         DO UPDATE SET entity = excluded.entity, reason = excluded.reason, candidates = excluded.candidates, changed_at = now(), resolution = NULL, value = NULL, answer_mirror = NULL, resolved_by = NULL, resolved_with = NULL, resolved_why = NULL, resolved_at = NULL \
         WHERE (r.reason, r.candidates) IS DISTINCT FROM (excluded.reason, excluded.candidates)",
        &[
            question.kind.name().into(),
            question.link.into(),
            question.mirror.into(),
            question.row_id.into(),
            question.entity.into(),
            question.reason.into(),
            question.candidates.into(),
        ],
    )
}

/// A question about a field of an entity.
#[derive(Clone, Debug)]
pub(crate) struct FieldQuestion {
    pub(crate) link: Option<String>,
    pub(crate) mirror: i32,
    pub(crate) row_id: i64,
    pub(crate) entity: i64,
    /// As policies call it.
    pub(crate) field: String,
    /// As the row's CRM calls it.
    pub(crate) own_field: String,
    pub(crate) reason: String,
    pub(crate) rule: Option<i64>,
    /// JSON text.
    pub(crate) candidates: String,
}

/// Asks about fields; new candidates of an open question are added to it, and
/// an answer that did not know of them counts no more.
pub(crate) fn ask_fields(questions: Vec<FieldQuestion>) -> Result<usize> {
    if questions.is_empty() {
        return Ok(0);
    }
    let text = |f: fn(&FieldQuestion) -> String| questions.iter().map(f).collect::<Vec<_>>();
    let links: Vec<Option<String>> = questions.iter().map(|q| q.link.clone()).collect();
    let mirrors: Vec<i32> = questions.iter().map(|q| q.mirror).collect();
    let rows: Vec<i64> = questions.iter().map(|q| q.row_id).collect();
    let entities: Vec<i64> = questions.iter().map(|q| q.entity).collect();
    let rules: Vec<Option<i64>> = questions.iter().map(|q| q.rule).collect();
    spi::write(
        "INSERT INTO crm.review_item AS r (kind, link, mirror, row_id, entity, field, own_field, reason, rule, candidates) \
         SELECT 'field', v.link, v.mirror, v.row_id, v.entity, v.field, v.own, v.reason, v.rule, v.candidates::jsonb \
         FROM unnest($1::text[], $2::int[], $3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::text[], $8::bigint[], $9::text[]) \
         AS v(link, mirror, row_id, entity, field, own, reason, rule, candidates) \
         ON CONFLICT (entity, field) WHERE kind = 'field' DO UPDATE SET link = excluded.link, mirror = excluded.mirror, row_id = excluded.row_id, \
           own_field = excluded.own_field, reason = excluded.reason, rule = excluded.rule, candidates = excluded.candidates, changed_at = now(), resolution = NULL, value = NULL, answer_mirror = NULL, resolved_by = NULL, resolved_with = NULL, resolved_why = NULL, resolved_at = NULL \
         WHERE (r.reason, r.candidates) IS DISTINCT FROM (excluded.reason, excluded.candidates)",
        &[
            links.into(),
            mirrors.into(),
            rows.into(),
            entities.into(),
            text(|q| q.field.clone()).into(),
            text(|q| q.own_field.clone()).into(),
            text(|q| q.reason.clone()).into(),
            rules.into(),
            text(|q| q.candidates.clone()).into(),
        ],
    )
}

/// Which of these entities have questions about fields that somebody is answering: a
/// steward may take all day to COMMIT.
pub(crate) fn being_answered(entities: Vec<i64>) -> Result<HashSet<i64>> {
    if entities.is_empty() {
        return Ok(HashSet::new());
    }
    let rows = spi::write_rows(
        "WITH free AS MATERIALIZED (SELECT r.id FROM crm.review_item r WHERE r.kind = 'field' AND r.entity = ANY($1) FOR UPDATE SKIP LOCKED) \
         SELECT r.entity FROM crm.review_item r WHERE r.kind = 'field' AND r.entity = ANY($1) AND r.id NOT IN (SELECT f.id FROM free f)",
        &[entities.into()],
        |row| Ok(row.get::<i64>(1)?.unwrap_or_default()),
    )?;
    Ok(rows.into_iter().collect())
}

/// Removes questions about fields that ended otherwise.
pub(crate) fn close_fields(questions: Vec<(i64, String)>) -> Result<usize> {
    if questions.is_empty() {
        return Ok(0);
    }
    let (entities, fields): (Vec<i64>, Vec<String>) = questions.into_iter().unzip();
    spi::write(
        "DELETE FROM crm.review_item r USING unnest($1::bigint[], $2::text[]) AS v(entity, field) \
         WHERE r.kind = 'field' AND r.entity = v.entity AND r.field = v.field",
        &[entities.into(), fields.into()],
    )
}

/// An answered question.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) id: i64,
    pub(crate) kind: String,
    pub(crate) link: Option<String>,
    pub(crate) mirror: i32,
    pub(crate) row_id: i64,
    pub(crate) entity: Option<i64>,
    pub(crate) field: String,
    /// The question as it stood, JSON text: goes into the ledger.
    pub(crate) question: String,
    pub(crate) resolution: String,
    pub(crate) value: Option<String>,
    pub(crate) answer_mirror: i32,
    /// session_user, application_name and reason of the steward.
    pub(crate) by: String,
    pub(crate) with: Option<String>,
    pub(crate) why: Option<String>,
    /// Milliseconds since 1970.
    pub(crate) at: i64,
}

/// Answered questions, oldest first; those whose steward is changing the
/// answer right now are left for later.
pub(crate) fn answered(limit: i64) -> Result<Vec<Answer>> {
    spi::write_rows(
        "SELECT r.id, r.kind, r.link, coalesce(r.mirror, 0), coalesce(r.row_id, 0), r.entity, coalesce(r.field, ''), \
           jsonb_build_object('id', r.id, 'kind', r.kind, 'reason', r.reason, 'rule', r.rule, 'candidates', r.candidates, \
             'opened_at', r.opened_at, 'resolution', r.resolution)::text, \
           r.resolution, r.value, coalesce(r.answer_mirror, r.mirror, 0), coalesce(r.resolved_by, ''), \
           (extract(epoch FROM r.resolved_at) * 1000)::bigint, r.resolved_with, r.resolved_why \
         FROM crm.review_item r WHERE r.resolution IS NOT NULL ORDER BY r.id LIMIT $1 FOR UPDATE SKIP LOCKED",
        &[limit.into()],
        |row| {
            Ok(Answer {
                id: row.get(1)?.unwrap_or_default(),
                kind: row.get(2)?.unwrap_or_default(),
                link: row.get(3)?,
                mirror: row.get(4)?.unwrap_or_default(),
                row_id: row.get(5)?.unwrap_or_default(),
                entity: row.get(6)?,
                field: row.get(7)?.unwrap_or_default(),
                question: row.get(8)?.unwrap_or_default(),
                resolution: row.get(9)?.unwrap_or_default(),
                value: row.get(10)?,
                answer_mirror: row.get(11)?.unwrap_or_default(),
                by: row.get(12)?.unwrap_or_default(),
                at: row.get(13)?.unwrap_or_default(),
                with: row.get(14)?,
                why: row.get(15)?,
            })
        },
    )
}

/// Takes questions away that were answered.
pub(crate) fn remove(ids: Vec<i64>) -> Result<usize> {
    if ids.is_empty() {
        return Ok(0);
    }
    spi::write(
        "DELETE FROM crm.review_item WHERE id = ANY($1)",
        &[ids.into()],
    )
}

/// A row of a question about matches that has one candidate left, or none.
pub(crate) struct Settled {
    pub(crate) link: String,
    pub(crate) mirror: i32,
    pub(crate) row_id: i64,
}

/// Whether there are questions about matches at all.
pub(crate) fn any_match() -> Result<bool> {
    let any = spi::write_rows(
        "SELECT EXISTS (SELECT FROM crm.review_item WHERE kind = 'match')",
        &[],
        |row| Ok(row.get::<bool>(1)?.unwrap_or_default()),
    )?;
    Ok(any.first() == Some(&true))
}

/// Whether a mirror is the left one of a link.
pub(crate) fn is_left(link: Option<&str>, mirror: i32) -> Result<bool> {
    let left = spi::write_rows(
        "SELECT EXISTS (SELECT FROM crm.link k WHERE k.name = $1 AND k.left_mirror = $2)",
        &[link.into(), mirror.into()],
        |row| Ok(row.get::<bool>(1)?.unwrap_or_default()),
    )?;
    Ok(left.first() == Some(&true))
}

/// Takes rows out of the candidates of open questions, with what was answered
/// about them. Questions that need no person any more are removed; answers those
/// of them whose row is still there.
pub(crate) fn drop_candidates(mirror: i32, row_ids: Vec<i64>) -> Result<Vec<Settled>> {
    spi::write_rows(
        "WITH hit AS MATERIALIZED (SELECT r.id, k.left_mirror = r.mirror AS of_left, \
             ARRAY(SELECT e::bigint FROM jsonb_array_elements_text(r.candidates -> 'left') e WHERE k.left_mirror <> $1 OR e::bigint <> ALL ($2)) AS l, \
             ARRAY(SELECT e::bigint FROM jsonb_array_elements_text(r.candidates -> 'right') e WHERE k.right_mirror <> $1 OR e::bigint <> ALL ($2)) AS r \
           FROM crm.review_item r JOIN crm.link k ON k.name = r.link WHERE r.kind = 'match' AND (r.resolution IS NULL OR r.resolution = 'match') \
             AND EXISTS (SELECT FROM unnest($2) i WHERE k.left_mirror = $1 AND r.candidates -> 'left' @> to_jsonb(i) \
                         OR k.right_mirror = $1 AND r.candidates -> 'right' @> to_jsonb(i))), \
         left_over AS (SELECT h.*, CASE WHEN h.of_left THEN h.l ELSE h.r END AS own, CASE WHEN h.of_left THEN h.r ELSE h.l END AS their FROM hit h), \
         changed AS (UPDATE crm.review_item r SET candidates = r.candidates || jsonb_build_object('left', o.l, 'right', o.r), changed_at = now(), \
             row_id = CASE WHEN r.row_id = ANY (o.own) THEN r.row_id ELSE o.own[1] END, resolution = NULL, value = NULL, resolved_by = NULL, \
             resolved_with = NULL, resolved_why = NULL, resolved_at = NULL \
           FROM left_over o WHERE r.id = o.id AND cardinality(o.own) > 0 AND cardinality(o.their) > 0 AND cardinality(o.own || o.their) > 2), \
         ended AS (DELETE FROM crm.review_item r USING left_over o WHERE r.id = o.id AND (cardinality(o.own) = 0 OR cardinality(o.their) = 0 OR cardinality(o.own || o.their) = 2) \
           RETURNING r.link, r.mirror, o.own) \
         SELECT e.link, e.mirror, i FROM ended e, unnest(e.own) i",
        &[mirror.into(), row_ids.into()],
        |row| {
            Ok(Settled {
                link: row.get(1)?.unwrap_or_default(),
                mirror: row.get(2)?.unwrap_or_default(),
                row_id: row.get(3)?.unwrap_or_default(),
            })
        },
    )
}
