//! Executes plans: the first page at once, the rest by cursor.

use super::ast::{Expr, Op, Order, Query};
use super::plan::{Plan, Walk, plan};
use crate::people::People;
use crate::salesforce::schema::Object;
use crate::salesforce::store::{Hit, Table, View};
use crate::salesforce::value::Value;
use std::cmp::Ordering;
use std::sync::Arc;

/// What remains of a result after some pages.
#[derive(Clone, Debug)]
pub(crate) enum Rest {
    /// Nothing.
    Done,
    /// These records, by number, from this place in the list on. Shared: every page's place holds it.
    Listed(Arc<Vec<u64>>, usize),
    /// So many more along the plan's walk, after the last record already given.
    Along { after: (i64, u64), remaining: u64 },
}

/// A page of a result.
#[derive(Debug)]
pub(crate) struct Page {
    /// Rows of the whole result, the same on every page.
    pub(crate) total: u64,
    pub(crate) hits: Vec<Hit>,
    pub(crate) rest: Rest,
}

/// What a query runs on.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) table: &'a Table,
    pub(crate) object: &'a Object,
    pub(crate) people: &'a People,
    /// `queryAll`: rows in the recycle bin count too.
    pub(crate) with_deleted: bool,
}

/// Runs `query` and answers its first `size` rows.
pub(crate) fn first(source: Source<'_>, query: &Query, size: usize) -> Page {
    let plan = plan(query, source.object);
    if !plan.filter && !plan.sort {
        return walked(source, query, &plan, size);
    }
    let wanted = query.limit.map(|limit| limit.saturating_add(query.offset));
    let enough = if plan.sort {
        u64::MAX
    } else {
        wanted.unwrap_or(u64::MAX)
    };
    let mut found = matching(source, query, &plan, enough);
    if plan.sort {
        sort(source, &query.order, &mut found);
    }
    let skip = usize::try_from(query.offset)
        .unwrap_or(usize::MAX)
        .min(found.len());
    found.drain(..skip);
    if let Some(limit) = query.limit {
        found.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    }
    let total = found.len() as u64;
    let later = found.split_off(size.min(found.len()));
    let rest = if later.is_empty() {
        Rest::Done
    } else {
        Rest::Listed(Arc::new(later.iter().map(Hit::number).collect()), 0)
    };
    Page {
        total,
        hits: found,
        rest,
    }
}

/// Counts the rows of a query without fetching them, by arithmetic where the plan allows.
pub(crate) fn count(source: Source<'_>, query: &Query) -> u64 {
    let plan = plan(query, source.object);
    let all = if plan.filter {
        matching(source, query, &plan, u64::MAX).len() as u64
    } else {
        counted(source, &plan)
    };
    all.saturating_sub(query.offset)
        .min(query.limit.unwrap_or(u64::MAX))
}

fn counted(source: Source<'_>, plan: &Plan) -> u64 {
    match &plan.walk {
        Walk::Numbers { from, to, .. } => {
            source
                .table
                .count_by_number(*from, *to, source.with_deleted)
        }
        Walk::Stamps { span, .. } => {
            source
                .table
                .count_by_stamp(span.0, span.1, source.with_deleted)
        }
        Walk::Keys { .. } => 0,
    }
}

/// A result that is exactly a range of an order the store keeps.
fn walked(source: Source<'_>, query: &Query, plan: &Plan, size: usize) -> Page {
    let skip = usize::try_from(query.offset).unwrap_or(usize::MAX);
    let limit = query
        .limit
        .map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
    if let Some(limit) = limit.filter(|limit| *limit <= size) {
        // All of it is on this page: nothing else has to be counted.
        let hits: Vec<Hit> = along(source, &plan.walk).skip(skip).take(limit).collect();
        return Page {
            total: hits.len() as u64,
            hits,
            rest: Rest::Done,
        };
    }
    let total = counted(source, plan)
        .saturating_sub(query.offset)
        .min(query.limit.unwrap_or(u64::MAX));
    let page = usize::try_from(total).unwrap_or(usize::MAX).min(size);
    let hits: Vec<Hit> = along(source, &plan.walk).skip(skip).take(page).collect();
    let remaining = total - hits.len() as u64;
    let rest = match hits.last() {
        Some(last) if remaining > 0 => Rest::Along {
            after: (source.table.stamp(last), last.number()),
            remaining,
        },
        _ => Rest::Done,
    };
    Page { total, hits, rest }
}

/// The next `size` rows of a result of which `rest` remains. `total` is what its first page said.
pub(crate) fn next(source: Source<'_>, query: &Query, total: u64, rest: Rest, size: usize) -> Page {
    match rest {
        Rest::Done => Page {
            total,
            hits: Vec::new(),
            rest: Rest::Done,
        },
        Rest::Listed(numbers, from) => {
            let to = from.saturating_add(size).min(numbers.len());
            // Rows deleted meanwhile are left out, as in Salesforce.
            let hits = numbers[from..to]
                .iter()
                .filter_map(|number| source.table.get(*number))
                .filter(|hit| source.shows(hit))
                .collect();
            let rest = if to == numbers.len() {
                Rest::Done
            } else {
                Rest::Listed(numbers, to)
            };
            Page { total, hits, rest }
        }
        Rest::Along { after, remaining } => resumed(source, query, total, after, remaining, size),
    }
}

fn resumed(
    source: Source<'_>,
    query: &Query,
    total: u64,
    after: (i64, u64),
    remaining: u64,
    size: usize,
) -> Page {
    let most = usize::try_from(remaining).unwrap_or(usize::MAX);
    match plan(query, source.object).walk {
        Walk::Numbers {
            from,
            to,
            descending,
        } => {
            let (from, to) = if descending {
                (from, after.1.saturating_sub(1))
            } else {
                (after.1 + 1, to)
            };
            let walk = Walk::Numbers {
                from,
                to,
                descending,
            };
            let hits: Vec<Hit> = along(source, &walk).take(most.min(size)).collect();
            let remaining = remaining - hits.len() as u64;
            let rest = match hits.last() {
                Some(last) if remaining > 0 && hits.len() == size => Rest::Along {
                    after: (0, last.number()),
                    remaining,
                },
                _ => Rest::Done,
            };
            Page { total, hits, rest }
        }
        // Rows that change meanwhile move in this order: the result is pinned to numbers here.
        Walk::Stamps { span, descending } => {
            let span = if descending {
                (span.0, before(after))
            } else {
                ((after.0, after.1 + 1), span.1)
            };
            let walk = Walk::Stamps { span, descending };
            let numbers: Vec<u64> = along(source, &walk)
                .take(most)
                .map(|hit| hit.number())
                .collect();
            next(
                source,
                query,
                total,
                Rest::Listed(Arc::new(numbers), 0),
                size,
            )
        }
        Walk::Keys { .. } => Page {
            total,
            hits: Vec::new(),
            rest: Rest::Done,
        },
    }
}

fn before(position: (i64, u64)) -> (i64, u64) {
    match position.1.checked_sub(1) {
        Some(number) => (position.0, number),
        None => (position.0 - 1, u64::MAX),
    }
}

impl Source<'_> {
    fn shows(&self, hit: &Hit) -> bool {
        self.with_deleted || !hit.deleted()
    }
}

/// Visible records along a walk.
fn along<'a>(source: Source<'a>, walk: &Walk) -> Box<dyn Iterator<Item = Hit> + 'a> {
    let table = source.table;
    let shown = move |hit: &Hit| source.shows(hit);
    match walk {
        Walk::Numbers {
            from,
            to,
            descending: false,
        } => Box::new(table.by_number(*from, *to).filter(shown)),
        Walk::Numbers {
            from,
            to,
            descending: true,
        } => Box::new(table.by_number(*from, *to).rev().filter(shown)),
        Walk::Stamps { span, descending } => {
            Box::new(table.by_stamp(span.0, span.1, *descending).filter(shown))
        }
        Walk::Keys { field, values } => {
            let mut found = std::collections::BTreeMap::new();
            for value in values {
                for hit in table.lookup(source.object, source.people, *field, value) {
                    found.insert(hit.number(), hit);
                }
            }
            Box::new(found.into_values().filter(shown))
        }
    }
}

fn matching(source: Source<'_>, query: &Query, plan: &Plan, enough: u64) -> Vec<Hit> {
    let enough = usize::try_from(enough).unwrap_or(usize::MAX);
    let wanted = |hit: &Hit| match &query.filter {
        Some(filter) if plan.filter => holds(filter, &hit.view(source.object, source.people)),
        _ => true,
    };
    along(source, &plan.walk)
        .filter(wanted)
        .take(enough)
        .collect()
}

fn sort(source: Source<'_>, order: &[Order], hits: &mut Vec<Hit>) {
    if order.is_empty() {
        hits.sort_unstable_by_key(Hit::number);
        return;
    }
    let keyed = |hit: Hit| {
        let keys: Vec<Value> = {
            let view = hit.view(source.object, source.people);
            order.iter().map(|key| view.get(key.field)).collect()
        };
        (keys, hit)
    };
    let mut rows: Vec<(Vec<Value>, Hit)> = std::mem::take(hits).into_iter().map(keyed).collect();
    rows.sort_by(|a, b| {
        let by_key = order
            .iter()
            .zip(a.0.iter().zip(&b.0))
            .map(|(key, (one, two))| by(key, one, two));
        by_key
            .fold(Ordering::Equal, Ordering::then)
            .then(a.1.number().cmp(&b.1.number()))
    });
    hits.extend(rows.into_iter().map(|(_, hit)| hit));
}

fn by(key: &Order, one: &Value, two: &Value) -> Ordering {
    match (one.is_null(), two.is_null()) {
        (true, true) => Ordering::Equal,
        (true, false) if key.nulls_last => Ordering::Greater,
        (true, false) => Ordering::Less,
        (false, true) if key.nulls_last => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => {
            let order = one.compare(two).unwrap_or(Ordering::Equal);
            if key.descending {
                order.reverse()
            } else {
                order
            }
        }
    }
}

/// Whether a condition holds for a record.
pub(crate) fn holds(expr: &Expr, view: &View<'_>) -> bool {
    match expr {
        Expr::And(parts) => parts.iter().all(|part| holds(part, view)),
        Expr::Or(parts) => parts.iter().any(|part| holds(part, view)),
        Expr::Not(inner) => !holds(inner, view),
        Expr::Compare { field, op, value } => {
            view.with(*field, |found| compares(found, *op, value))
        }
        Expr::In {
            field,
            negated,
            values,
        } => {
            let listed = view.with(*field, |found| {
                values
                    .iter()
                    .any(|value| found.compare(value) == Some(Ordering::Equal))
            });
            listed != *negated
        }
        Expr::Like { field, pattern } => view.with(*field, |found| {
            found
                .as_text()
                .is_some_and(|text| like(&text.to_lowercase(), pattern))
        }),
        Expr::Includes {
            field,
            negated,
            sets,
        } => {
            let text = view.with(*field, |found| found.as_text().unwrap_or("").to_lowercase());
            let chosen: Vec<&str> = text.split(';').collect();
            let any = sets
                .iter()
                .any(|set| set.iter().all(|wanted| chosen.contains(&wanted.as_str())));
            any != *negated
        }
    }
}

fn compares(found: &Value, op: Op, value: &Value) -> bool {
    let order = found.compare(value);
    match op {
        Op::Eq => order == Some(Ordering::Equal),
        Op::Ne => order != Some(Ordering::Equal),
        _ if found.is_null() || value.is_null() => false,
        Op::Lt => order == Some(Ordering::Less),
        Op::Le => matches!(order, Some(Ordering::Less | Ordering::Equal)),
        Op::Gt => order == Some(Ordering::Greater),
        Op::Ge => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
    }
}

/// SOQL's LIKE on lower-case text: `%` any run, `_` one character, `\` takes the next literally. Linear in the text but for
/// the last `%`, so that no pattern can stall the server.
fn like(text: &str, pattern: &str) -> bool {
    #[derive(PartialEq)]
    enum Part {
        Run,
        One,
        Exactly(char),
    }
    let mut parts = Vec::new();
    let mut symbols = pattern.chars();
    while let Some(symbol) = symbols.next() {
        parts.push(match symbol {
            '%' => Part::Run,
            '_' => Part::One,
            '\\' => Part::Exactly(symbols.next().unwrap_or('\\')),
            other => Part::Exactly(other),
        });
    }
    let text: Vec<char> = text.chars().collect();
    let (mut at, mut part) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while at < text.len() {
        match parts.get(part) {
            Some(Part::Run) => {
                retry = Some((part, at));
                part += 1;
            }
            Some(Part::One) => {
                at += 1;
                part += 1;
            }
            Some(Part::Exactly(symbol)) if *symbol == text[at] => {
                at += 1;
                part += 1;
            }
            _ => {
                let Some((run, start)) = retry else {
                    return false;
                };
                retry = Some((run, start + 1));
                at = start + 1;
                part = run + 1;
            }
        }
    }
    parts[part.min(parts.len())..]
        .iter()
        .all(|part| *part == Part::Run)
}
