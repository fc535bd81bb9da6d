//! `POST …/search`.

use serde_json::{Map, Value};

use super::{
    filter::{self, Groups, Operator, Target},
    index::Index,
};
use crate::{
    hubspot::{
        State,
        error::ApiError,
        http::{Call, Outcome, Reply},
        model::{Catalog, PropertyId, Table},
        render::{self, Extras},
        store::View,
    },
    people::push_number,
};

const MAX_LIMIT: u64 = 200;
const REACHABLE: u64 = 10_000;
const LONGEST_BODY: usize = 3_000;

enum Order {
    /// Ids as texts: 10 before 9.
    IdText {
        descending: bool,
    },
    Id {
        descending: bool,
    },
    Modified {
        descending: bool,
    },
    Property {
        id: PropertyId,
        descending: bool,
    },
}

struct Question {
    groups: Groups,
    order: Order,
    words: Vec<String>,
    limit: u64,
    after: u64,
}

/// `POST /crm/…/{type}/search`.
pub(crate) fn search(call: &Call<'_>) -> Outcome {
    if call.body.len() > LONGEST_BODY {
        return Err(ApiError::validation(format!(
            "The request body is too long: at most {LONGEST_BODY} characters"
        )));
    }
    let table = call.table("type")?;
    let catalog = table.catalog();
    let body = call.json()?;
    let question = read(call.state, table, &catalog, &body)?;
    let names = body.get("properties").and_then(Value::as_array);
    let names = names.into_iter().flatten().filter_map(Value::as_str);
    let wanted = render::wanted(table, &catalog, names);
    // Unique values are looked up before the index is locked: writers hold the records first.
    let candidates = candidates(table, &catalog, &question);
    let index = table.search.open();
    let (total, mut ids) = run(call.state, &index, &catalog, &question, candidates);
    // By the total, so that the same question gets the same pages.
    if call.state.shared.options.search_short_pages && ids.len() > 1 && total % 2 == 0 {
        ids.truncate(ids.len().div_ceil(2));
    }
    let mut out = Vec::with_capacity(64 + ids.len() * 800);
    out.extend_from_slice(b"{\"total\":");
    push_number(&mut out, total, 1);
    out.extend_from_slice(b",\"results\":[");
    for (i, id) in ids.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        if let Some(view) = index.view(*id) {
            let portal = call.state.portal();
            render::record(
                &mut out,
                portal,
                table,
                &catalog,
                &view,
                &wanted,
                &Extras::default(),
            );
        }
    }
    out.push(b']');
    let next = question.after + ids.len() as u64;
    if next < total && !ids.is_empty() {
        out.extend_from_slice(b",\"paging\":{\"next\":{\"after\":\"");
        push_number(&mut out, next, 1);
        out.extend_from_slice(b"\"}}");
    }
    out.push(b'}');
    Ok(Reply::json(200, out))
}

fn read(
    state: &State,
    table: &Table,
    catalog: &Catalog,
    body: &Map<String, Value>,
) -> Result<Question, ApiError> {
    let number = |key: &str, default: u64| match body.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(Value::String(text)) if text.is_empty() => Ok(default),
        Some(Value::String(text)) => text.parse().map_err(|_| key.to_owned()),
        Some(value) => value.as_u64().ok_or_else(|| key.to_owned()),
    };
    let bad = |key: String| {
        ApiError::validation(format!("Invalid input JSON: `{key}` is not a whole number"))
    };
    let limit = number("limit", 10).map_err(bad)?;
    if limit > MAX_LIMIT {
        return Err(ApiError::validation(format!(
            "The requested limit {limit} is greater than the maximum of {MAX_LIMIT}"
        )));
    }
    let after = number("after", 0).map_err(bad)?;
    if after >= REACHABLE || after + limit > REACHABLE {
        return Err(ApiError::validation(format!(
            "There was a problem with the request. Only the first {REACHABLE} results can be paged through"
        )));
    }
    let words = body
        .get("query")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let words = words
        .to_lowercase()
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    Ok(Question {
        groups: filter::read(state, table, catalog, body)?,
        order: order(state, table, catalog, body.get("sorts"))?,
        words,
        limit,
        after,
    })
}

/// One sort at most: `{"propertyName","direction"}`, `"x"` or `"-x"`.
fn order(
    state: &State,
    table: &Table,
    catalog: &Catalog,
    sorts: Option<&Value>,
) -> Result<Order, ApiError> {
    let sorts = sorts
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice);
    if sorts.len() > 1 {
        return Err(ApiError::validation(
            "There was a problem with the request. Only one sort is allowed",
        ));
    }
    let (name, descending) = match sorts.first() {
        None => return Ok(Order::Id { descending: false }),
        Some(Value::String(text)) => match text.strip_prefix('-') {
            Some(name) => (name, true),
            None => (text.as_str(), false),
        },
        Some(sort) => (
            sort.get("propertyName")
                .and_then(Value::as_str)
                .unwrap_or_default(),
            sort.get("direction").and_then(Value::as_str) == Some("DESCENDING"),
        ),
    };
    let Some(id) = catalog.find(name) else {
        return Err(ApiError::validation(format!(
            "There was a problem with the request. Property '{name}' does not exist"
        )));
    };
    Ok(match name {
        "hs_object_id" if state.shared.options.search_id_text => Order::IdText { descending },
        "hs_object_id" => Order::Id { descending },
        _ if name == table.facts.modified => Order::Modified { descending },
        _ => Order::Property { id, descending },
    })
}

/// Ids that can match at all, when a single group asks for values of the id or a unique property.
fn candidates(table: &Table, catalog: &Catalog, question: &Question) -> Option<Vec<u64>> {
    let [group] = &question.groups.0[..] else {
        return None;
    };
    let filter = group.iter().find(|f| {
        let exact = matches!(f.operator, Operator::Eq | Operator::In);
        let keyed = match f.target {
            Target::Id => true,
            Target::Property(id) => catalog.get(id).unique,
            Target::Modified | Target::Associated(_) => false,
        };
        exact && keyed
    })?;
    let live = table.read();
    let mut ids: Vec<u64> = filter
        .values
        .iter()
        .filter_map(|value| match filter.target {
            Target::Property(id) => live.find(catalog, id, value),
            _ => value.parse().ok(),
        })
        .collect();
    ids.sort_unstable();
    ids.dedup();
    Some(ids)
}

/// Total matches and the ids of the asked page.
fn run(
    state: &State,
    index: &Index,
    catalog: &Catalog,
    question: &Question,
    candidates: Option<Vec<u64>>,
) -> (u64, Vec<u64>) {
    let matches = |id: u64| {
        index
            .view(id)
            .filter(|view| question.groups.matches(state, catalog, view))
            .is_some_and(|view| has_words(catalog, &view, &question.words))
    };
    let (after, limit) = (question.after as usize, question.limit as usize);
    if let Some(ids) = candidates {
        let mut found: Vec<u64> = ids.into_iter().filter(|id| matches(*id)).collect();
        sort(index, catalog, &question.order, &mut found);
        let total = found.len() as u64;
        return (total, found.into_iter().skip(after).take(limit).collect());
    }
    let (low, high) = question.groups.bounds(Target::Modified);
    let ordered = match question.order {
        Order::Modified { descending } => index.by_modified(low, high, descending),
        Order::Id { descending } => {
            let (low, high) = question.groups.bounds(Target::Id);
            index.by_id(low.max(0) as u64, high.max(0) as u64, descending)
        }
        Order::Property { .. } | Order::IdText { .. } => {
            let mut found: Vec<u64> = index
                .by_modified(low, high, false)
                .map(|(_, id)| id)
                .filter(|id| matches(*id))
                .collect();
            sort(index, catalog, &question.order, &mut found);
            let total = found.len() as u64;
            return (total, found.into_iter().skip(after).take(limit).collect());
        }
    };
    if question.words.is_empty() {
        match question.order {
            Order::Modified { descending } if question.groups.is_stamp_range(descending) => {
                return cheap(index, question, ordered, (low, high));
            }
            Order::Id { .. } if question.groups.is_id_range() => {
                let (low, high) = question.groups.bounds(Target::Id);
                let total = index.count_ids(low.max(0) as u64, high.max(0) as u64);
                return (
                    total,
                    ordered.map(|p| p.1).skip(after).take(limit).collect(),
                );
            }
            _ => {}
        }
    }
    if question.words.is_empty() && question.groups.0.is_empty() {
        return (
            index.count(),
            ordered.map(|p| p.1).skip(after).take(limit).collect(),
        );
    }
    let mut total = 0;
    let mut page = Vec::new();
    for (_, id) in ordered.filter(|(_, id)| matches(*id)) {
        if total >= after && page.len() < limit {
            page.push(id);
        }
        total += 1;
    }
    (total as u64, page)
}

/// A page by stamp of a range or keyset: what does not match comes first, so everything after the
/// page counts as matching.
fn cheap(
    index: &Index,
    question: &Question,
    ordered: impl Iterator<Item = (i64, u64)>,
    (low, high): (i64, i64),
) -> (u64, Vec<u64>) {
    let reach = question.after + question.limit;
    let (mut passed, mut refused) = (0, 0);
    let mut page = Vec::new();
    for (stamp, id) in ordered {
        if question.groups.matches_stamp(stamp, id) {
            if passed >= question.after && passed < reach {
                page.push(id);
            }
            passed += 1;
            // One more than the page, so that its end is known.
            if passed > reach {
                break;
            }
        } else {
            refused += 1;
        }
    }
    let total = if passed > reach {
        index.count_modified(low, high) - refused
    } else {
        passed
    };
    (total, page)
}

fn sort(index: &Index, catalog: &Catalog, order: &Order, ids: &mut [u64]) {
    match order {
        Order::Id { descending } => {
            ids.sort_unstable();
            if *descending {
                ids.reverse();
            }
        }
        Order::Modified { descending } => {
            ids.sort_by_key(|id| (index.view(*id).map_or(0, |v| v.modified_ms), *id));
            if *descending {
                ids.reverse();
            }
        }
        Order::IdText { descending } => {
            ids.sort_by_cached_key(u64::to_string);
            if *descending {
                ids.reverse();
            }
        }
        Order::Property { id, descending } => {
            let property = catalog.get(*id);
            let key = |record: &u64| {
                let text = index.view(*record).and_then(|v| v.text(*id, property));
                let number = text.as_deref().and_then(|t| t.parse::<f64>().ok());
                (text.is_some(), number.map(ordered_bits), text, *record)
            };
            ids.sort_by_cached_key(key);
            if *descending {
                ids.reverse();
            }
        }
    }
}

/// A number whose integer order is the order of the floats.
fn ordered_bits(number: f64) -> i64 {
    let bits = number.to_bits() as i64;
    bits ^ (((bits >> 63) as u64) >> 1) as i64
}

/// Whether every word of the full-text query starts some word of the default properties.
fn has_words(catalog: &Catalog, view: &View<'_>, words: &[String]) -> bool {
    if words.is_empty() {
        return true;
    }
    let texts: Vec<String> = catalog
        .ids()
        .filter(|id| catalog.get(*id).default || catalog.get(*id).name == "phone")
        .filter_map(|id| view.text(id, catalog.get(id)))
        .map(|text| text.to_lowercase())
        .collect();
    words.iter().all(|word| {
        texts.iter().any(|text| {
            text.starts_with(word.as_str())
                || text
                    .split(|c: char| !c.is_alphanumeric())
                    .any(|token| token.starts_with(word.as_str()))
        })
    })
}
