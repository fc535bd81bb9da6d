//! Finding rows that describe the same thing.

use std::collections::HashMap;

use super::cells::Cells;
use super::rows::{Table, as_owner};
use super::scopes;

use super::spi::{self, Result};

/// Which of these rows have no CRM id yet.
pub(crate) fn without_id(table: &Table, row_ids: Vec<i64>) -> Result<Vec<i64>> {
    let sql = format!(
        "SELECT m._id FROM {} m WHERE m._id = ANY($1) AND m.id IS NULL",
        table.name
    );
    as_owner(table, || {
        spi::write_rows(&sql, &[row_ids.into()], |row| {
            Ok(row.get::<i64>(1)?.unwrap_or_default())
        })
    })
}

/// A column that identifies records.
#[derive(Clone, Copy)]
pub(crate) struct Key<'a> {
    pub(crate) mirror: i32,
    pub(crate) table: &'a Table,
    /// Quoted.
    pub(crate) column: &'a str,
}

/// How keys are compared.
#[derive(Clone, Copy)]
pub(crate) struct Likeness {
    /// From which similarity on (`pg_trgm`); equality if there is none.
    pub(crate) threshold: Option<f32>,
    /// The key is a web domain.
    pub(crate) domain: bool,
    /// The key exists once: a pair tied long ago has it still.
    pub(crate) unique: bool,
}

/// A row of theirs that matches one of ours.
pub(crate) struct Hit {
    pub(crate) ours: i64,
    pub(crate) theirs: i64,
    /// It is tied to another row of our mirror.
    pub(crate) tied: bool,
    /// 1 for equal keys.
    pub(crate) alike: f32,
}

/// Most candidates of one row that are shown to a person.
const CANDIDATES: i64 = 20;

/// Rows of `theirs`, within `scope`, whose key matches that of our rows in
/// normal form. Pairs tied long ago are no candidates, unless the key exists
/// once: keys such as a deal's name return in new things. Within the hour it may be one thing typed in on
/// both sides.
pub(crate) fn candidates(
    ours: Key<'_>,
    theirs: Key<'_>,
    scope: Option<&str>,
    likeness: Likeness,
    row_ids: Vec<i64>,
) -> Result<Vec<Hit>> {
    if row_ids.is_empty() {
        return Ok(Vec::new());
    }
    let left = normal_form(&format!("a.{}", ours.column), likeness.domain)?;
    let right = normal_form(&format!("b.{}", theirs.column), likeness.domain)?;
    // Each table is read with the rights of its own owner.
    let sql = format!(
        "SELECT a._id, {left} FROM {} a WHERE a._id = ANY($1) AND a._deleted_at IS NULL AND {left} IS NOT NULL",
        ours.table.name,
    );
    let keys = as_owner(ours.table, || {
        spi::write_rows(&sql, &[row_ids.into()], |row| {
            let id: i64 = row.get(1)?.unwrap_or_default();
            Ok((id, row.get::<String>(2)?.unwrap_or_default()))
        })
    })?;
    let Some(how) = comparison(&right, likeness.threshold)?.filter(|_| !keys.is_empty()) else {
        return Ok(Vec::new());
    };
    let (rows, keys): (Vec<i64>, Vec<String>) = keys.into_iter().unzip();
    let matching = |from: &str| {
        format!(
            "SELECT v.row_id, c._id, c.alike FROM unnest($1::bigint[], $2::text[]) AS v(row_id, key) \
             CROSS JOIN LATERAL (SELECT b._id, {}::real AS alike FROM {from} b WHERE {} AND b._deleted_at IS NULL \
               ORDER BY alike DESC, b._id LIMIT {CANDIDATES}) c",
            how.measure, how.test,
        )
    };
    let pair = |row: &Cells| {
        let ours: i64 = row.get(1)?.unwrap_or_default();
        let theirs: i64 = row.get(2)?.unwrap_or_default();
        Ok((ours, theirs, row.get::<f32>(3)?.unwrap_or_default()))
    };
    let found = |from: &str| {
        as_owner(theirs.table, || {
            let args = [rows.clone().into(), keys.clone().into()];
            spi::write_rows(&matching(from), &args, pair)
        })
    };
    let whole = &theirs.table.name;
    let pairs = match scope {
        None => found(whole)?,
        Some(scope) => {
            let from = format!("(SELECT * FROM {whole} WHERE {scope})");
            match scopes::unless_raised(|| found(&from)) {
                Some(pairs) => pairs,
                // Some row raises an error, maybe one without any such key.
                None => within(theirs.table, scope, found(whole)?)?,
            }
        }
    };
    untied(pairs, (ours.mirror, theirs.mirror), likeness.unique)
}

/// Those of the pairs whose row of theirs is in the scope.
fn within(table: &Table, scope: &str, pairs: Vec<(i64, i64, f32)>) -> Result<Vec<(i64, i64, f32)>> {
    let mut rows: Vec<i64> = pairs.iter().map(|p| p.1).collect();
    rows.sort_unstable();
    rows.dedup();
    let none = vec![None; rows.len()];
    let told = scopes::holds(table, &[scope], rows, none)?;
    let inside = |p: &(i64, i64, f32)| told.get(&p.1).is_some_and(|t| t.contains(&Some(true)));
    Ok(pairs.into_iter().filter(inside).collect())
}

/// Of these rows, those that share a key with one before them.
pub(crate) fn doubles(key: Key<'_>, domain: bool, row_ids: Vec<i64>) -> Result<Vec<i64>> {
    let form = normal_form(&format!("a.{}", key.column), domain)?;
    let sql = format!(
        "SELECT d._id FROM (SELECT a._id, row_number() OVER (PARTITION BY {form} ORDER BY a._id) AS n \
         FROM {} a WHERE a._id = ANY($1) AND {form} IS NOT NULL) d WHERE d.n > 1",
        key.table.name,
    );
    as_owner(key.table, || {
        spi::write_rows(&sql, &[row_ids.into()], |row| {
            Ok(row.get::<i64>(1)?.unwrap_or_default())
        })
    })
}

/// SQL text of a comparison with `v.key`.
struct Comparison {
    test: String,
    measure: String,
}

/// None if it takes an extension that is not there.
fn comparison(column: &str, threshold: Option<f32>) -> Result<Option<Comparison>> {
    let Some(threshold) = threshold else {
        return Ok(Some(Comparison {
            test: format!("{column} = v.key"),
            measure: "1".to_owned(),
        }));
    };
    let trgm = |name: &str| spi::write_text("SELECT crm._trgm($1)", &[name.into()]);
    let (Some(like), Some(similarity)) = (trgm("%")?, trgm("similarity")?) else {
        return Ok(None);
    };
    spi::write_text(
        "SELECT set_config('pg_trgm.similarity_threshold', $1, true)",
        &[threshold.to_string().into()],
    )?;
    let measure = format!("{similarity}({column}, v.key)");
    Ok(Some(Comparison {
        test: format!("{column} {like} v.key AND {measure} >= {threshold}"),
        measure,
    }))
}

fn untied(pairs: Vec<(i64, i64, f32)>, (ours, theirs): (i32, i32), ever: bool) -> Result<Vec<Hit>> {
    if pairs.is_empty() {
        return Ok(Vec::new());
    }
    let alike: HashMap<(i64, i64), f32> = pairs.iter().map(|p| ((p.0, p.1), p.2)).collect();
    let (left, right): (Vec<i64>, Vec<i64>) = pairs.into_iter().map(|p| (p.0, p.1)).unzip();
    spi::write_rows(
        "SELECT p.a, p.b, t.at IS NOT NULL FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY AS p(a, b, n) \
         LEFT JOIN LATERAL (SELECT min(greatest(x.linked_at, y.linked_at)) AS at FROM crm.xref x \
           JOIN crm.xref y ON y.entity = x.entity AND y.mirror = $4 WHERE x.mirror = $3 AND x.row_id = p.b) t ON true \
         WHERE $5 OR t.at IS NULL OR t.at >= now() - interval '1 hour' ORDER BY p.a, p.n",
        &[
            left.into(),
            right.into(),
            theirs.into(),
            ours.into(),
            ever.into(),
        ],
        |row| {
            let (ours, theirs) = (
                row.get(1)?.unwrap_or_default(),
                row.get(2)?.unwrap_or_default(),
            );
            Ok(Hit {
                ours,
                theirs,
                tied: row.get(3)?.unwrap_or_default(),
                alike: alike.get(&(ours, theirs)).copied().unwrap_or_default(),
            })
        },
    )
}

/// SQL text of a key's normal form: the one that `crm._match` compares, so that
/// a new row meets what a whole match would have met.
pub(crate) fn normal_form(column: &str, domain: bool) -> Result<String> {
    let transform = if domain { "domain_of_url" } else { "identity" };
    let text = spi::write_text(
        "SELECT crm._match_expr($1, $2, $2)",
        &[column.into(), transform.into()],
    )?;
    Ok(text.unwrap_or_default())
}
