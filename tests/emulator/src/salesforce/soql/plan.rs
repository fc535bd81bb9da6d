//! Finds the cheapest way to walk the rows a query wants.
//!
//! The reads of a replica must not look at every record: by id (`Id > x ORDER BY Id`) and by keyset
//! (`SystemModstamp > t OR (SystemModstamp = t AND Id > x) ORDER BY SystemModstamp, Id`). Both become ranges of an order the
//! store keeps, and where the whole condition is such a range their number is counted without evaluating a row.

use super::ast::{Expr, Op, Query};
use crate::salesforce::ids::SfId;
use crate::salesforce::schema::{Obj, Object, at};
use crate::salesforce::value::Value;

/// A place in the order of (stamp, record number).
pub(crate) type Position = (i64, u64);
/// A closed range of positions.
pub(crate) type Span = (Position, Position);

/// First and last possible positions.
pub(crate) const ALL: Span = ((i64::MIN, 0), (i64::MAX, u64::MAX));

/// How to visit candidates.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Walk {
    /// Records numbered `from..=to`, in that order or backwards.
    Numbers {
        from: u64,
        to: u64,
        descending: bool,
    },
    /// Records in a range of stamps, in that order or backwards.
    Stamps { span: Span, descending: bool },
    /// Records with one of these values in an indexed field.
    Keys { field: usize, values: Vec<Value> },
}

/// A walk and what is left to do on its rows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    pub(crate) walk: Walk,
    /// The condition must be evaluated per row; else the walk yields exactly the wanted rows.
    pub(crate) filter: bool,
    /// The walk's order is not the wanted one.
    pub(crate) sort: bool,
}

/// Plans `query`.
pub(crate) fn plan(query: &Query, object: &Object) -> Plan {
    let filter = query.filter.as_ref();
    if let Some((field, values)) = filter.and_then(|filter| keys(filter, object)) {
        return Plan {
            walk: Walk::Keys { field, values },
            filter: true,
            sort: true,
        };
    }
    let obj = query.obj;
    let exact = match filter {
        None => Some(vec![ALL]),
        Some(filter) => spans(filter, obj),
    };
    let hull = filter.map_or(ALL, |filter| hull(filter, &|leaf| stamp_leaf(leaf)));
    let numbers = filter.map_or(FULL, |filter| hull_of_numbers(filter, obj));
    let by_id = query.order.is_empty() || query.order[0].field == at::ID;
    let descending = query.order.first().is_some_and(|order| order.descending);
    if by_stamp(query) {
        let single = exact.as_ref().is_some_and(|spans| spans.len() == 1);
        let span = exact
            .filter(|spans| spans.len() == 1)
            .map_or(hull, |spans| spans[0]);
        return Plan {
            walk: Walk::Stamps { span, descending },
            filter: !single,
            sort: false,
        };
    }
    if by_id && hull == ALL {
        let exact = filter.is_none_or(only_numbers);
        let walk = Walk::Numbers {
            from: numbers.0,
            to: numbers.1,
            descending,
        };
        return Plan {
            walk,
            filter: !exact,
            sort: false,
        };
    }
    if hull != ALL {
        let exact = exact.filter(|spans| spans.len() == 1);
        let span = exact.as_ref().map_or(hull, |spans| spans[0]);
        return Plan {
            walk: Walk::Stamps {
                span,
                descending: false,
            },
            filter: exact.is_none(),
            sort: true,
        };
    }
    let walk = Walk::Numbers {
        from: numbers.0,
        to: numbers.1,
        descending: false,
    };
    Plan {
        walk,
        filter: filter.is_some_and(|filter| !only_numbers(filter)),
        sort: true,
    }
}

const FULL: (u64, u64) = (0, u64::MAX);

fn by_stamp(query: &Query) -> bool {
    match query.order.as_slice() {
        [first] => first.field == at::STAMP,
        [first, second, ..] => {
            first.field == at::STAMP
                && second.field == at::ID
                && first.descending == second.descending
        }
        [] => false,
    }
}

/// An indexed field that the condition pins to a list of values.
fn keys(filter: &Expr, object: &Object) -> Option<(usize, Vec<Value>)> {
    let indexed = |field: usize| field == at::ID || object.fields[field].is_indexed();
    match filter {
        Expr::And(parts) => parts.iter().find_map(|part| keys(part, object)),
        Expr::Compare {
            field,
            op: Op::Eq,
            value,
        } if indexed(*field) && !value.is_null() => Some((*field, vec![value.clone()])),
        Expr::In {
            field,
            negated: false,
            values,
        } if indexed(*field) && values.iter().all(|value| !value.is_null()) => {
            Some((*field, values.clone()))
        }
        _ => None,
    }
}

fn stamp_leaf(leaf: &Expr) -> Option<Span> {
    let Expr::Compare {
        field: at::STAMP,
        op,
        value: Value::DateTime(ms),
    } = leaf
    else {
        return None;
    };
    let (low, high) = (ALL.0, ALL.1);
    match op {
        Op::Eq => Some(((*ms, 0), (*ms, u64::MAX))),
        Op::Lt => Some((low, (ms - 1, u64::MAX))),
        Op::Le => Some((low, (*ms, u64::MAX))),
        Op::Gt => Some(((ms + 1, 0), high)),
        Op::Ge => Some(((*ms, 0), high)),
        Op::Ne => None,
    }
}

/// The smallest range that holds every row the condition can hold for.
fn hull(expr: &Expr, leaf: &dyn Fn(&Expr) -> Option<Span>) -> Span {
    match expr {
        Expr::And(parts) => parts.iter().fold(ALL, |sum, part| {
            let span = hull(part, leaf);
            (sum.0.max(span.0), sum.1.min(span.1))
        }),
        Expr::Or(parts) => {
            let spans = parts.iter().map(|part| hull(part, leaf));
            spans
                .reduce(|sum, span| (sum.0.min(span.0), sum.1.max(span.1)))
                .unwrap_or(ALL)
        }
        other => leaf(other).unwrap_or(ALL),
    }
}

/// Record numbers `from..=to` an Id comparison allows.
fn number_leaf(leaf: &Expr, obj: Obj) -> Option<(u64, u64)> {
    let Expr::Compare {
        field: at::ID,
        op,
        value: Value::Id(id),
    } = leaf
    else {
        return None;
    };
    let (below, number, above) = place(*id, obj);
    Some(match op {
        Op::Gt | Op::Ge if below => FULL,
        Op::Lt | Op::Le if above => FULL,
        Op::Gt | Op::Ge if above => (1, 0),
        Op::Lt | Op::Le | Op::Eq if below => (1, 0),
        Op::Eq if above => (1, 0),
        Op::Gt => (number.saturating_add(1), u64::MAX),
        Op::Ge => (number, u64::MAX),
        Op::Lt => (0, number.saturating_sub(1)),
        Op::Le => (0, number),
        Op::Eq => (number, number),
        Op::Ne => return None,
    })
}

/// Whether `id` sorts before or after every id of `obj`, and its number.
fn place(id: SfId, obj: Obj) -> (bool, u64, bool) {
    (
        id.prefix < obj.prefix(),
        id.number,
        id.prefix > obj.prefix(),
    )
}

fn hull_of_numbers(expr: &Expr, obj: Obj) -> (u64, u64) {
    match expr {
        Expr::And(parts) => parts.iter().fold(FULL, |sum, part| {
            let span = hull_of_numbers(part, obj);
            (sum.0.max(span.0), sum.1.min(span.1))
        }),
        other => number_leaf(other, obj).unwrap_or(FULL),
    }
}

/// Whether the condition is nothing but a range of ids.
fn only_numbers(expr: &Expr) -> bool {
    match expr {
        Expr::And(parts) => parts.iter().all(only_numbers),
        Expr::Compare {
            field: at::ID,
            op,
            value: Value::Id(_),
        } => *op != Op::Ne,
        _ => false,
    }
}

/// The exact set of positions a condition on stamps and ids holds for, as sorted ranges; `None` when it looks at more.
fn spans(expr: &Expr, obj: Obj) -> Option<Vec<Span>> {
    match expr {
        Expr::Or(parts) => {
            let mut all = Vec::new();
            for part in parts {
                all.extend(spans(part, obj)?);
            }
            Some(joined(all))
        }
        Expr::And(parts) => {
            let (ids, rest): (Vec<_>, Vec<_>) = parts.iter().partition(|part| only_numbers(part));
            let mut sum = vec![ALL];
            for part in rest {
                sum = common(&sum, &spans(part, obj)?);
            }
            for part in ids {
                sum = narrowed(&sum, hull_of_numbers(part, obj))?;
            }
            Some(sum)
        }
        leaf => stamp_leaf(leaf).map(|span| {
            if span.0 <= span.1 {
                vec![span]
            } else {
                Vec::new()
            }
        }),
    }
}

/// Ranges of single instants, cut down to a range of record numbers; `None` for wider ranges, where ids are no range.
fn narrowed(spans: &[Span], numbers: (u64, u64)) -> Option<Vec<Span>> {
    let mut out = Vec::new();
    for (low, high) in spans {
        if low.0 != high.0 {
            return None;
        }
        let cut = (
            (low.0, low.1.max(numbers.0)),
            (high.0, high.1.min(numbers.1)),
        );
        if cut.0 <= cut.1 {
            out.push(cut);
        }
    }
    Some(out)
}

fn common(a: &[Span], b: &[Span]) -> Vec<Span> {
    let mut out = Vec::new();
    for one in a {
        for two in b {
            let both = (one.0.max(two.0), one.1.min(two.1));
            if both.0 <= both.1 {
                out.push(both);
            }
        }
    }
    joined(out)
}

/// Sorts ranges and joins those that touch.
fn joined(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable();
    let mut out: Vec<Span> = Vec::new();
    for span in spans {
        match out.last_mut() {
            Some(last) if span.0 <= next(last.1) => last.1 = last.1.max(span.1),
            _ => out.push(span),
        }
    }
    out
}

fn next(position: Position) -> Position {
    match position.1.checked_add(1) {
        Some(number) => (position.0, number),
        None => (position.0.saturating_add(1), 0),
    }
}
