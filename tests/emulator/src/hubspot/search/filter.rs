//! Filter groups of a search: reading, bounds for the index, and matching.

use serde_json::{Map, Value};

use crate::hubspot::{
    State,
    error::ApiError,
    model::{Catalog, PropertyId, Table, Type},
    store::View,
    write::moment,
};

/// HubSpot's walls.
const MAX_GROUPS: usize = 5;
const MAX_FILTERS: usize = 6;
const MAX_TOTAL: usize = 18;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operator {
    Eq,
    Neq,
    Lt,
    Lte,
    Gt,
    Gte,
    Between,
    In,
    NotIn,
    Has,
    HasNot,
    Contains,
    ContainsNot,
}

impl Operator {
    fn parse(name: &str) -> Option<Operator> {
        Some(match name {
            "EQ" => Operator::Eq,
            "NEQ" => Operator::Neq,
            "LT" => Operator::Lt,
            "LTE" => Operator::Lte,
            "GT" => Operator::Gt,
            "GTE" => Operator::Gte,
            "BETWEEN" => Operator::Between,
            "IN" => Operator::In,
            "NOT_IN" => Operator::NotIn,
            "HAS_PROPERTY" => Operator::Has,
            "NOT_HAS_PROPERTY" => Operator::HasNot,
            "CONTAINS_TOKEN" => Operator::Contains,
            "NOT_CONTAINS_TOKEN" => Operator::ContainsNot,
            _ => return None,
        })
    }
}

/// What a filter looks at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    Id,
    Modified,
    Property(PropertyId),
    /// Associated records of the type at this position.
    Associated(usize),
}

/// One condition. `values` are texts as sent; `numbers` their numeric or epoch form, if any.
#[derive(Debug)]
pub(crate) struct Filter {
    pub(crate) target: Target,
    pub(crate) operator: Operator,
    pub(crate) values: Vec<String>,
    numbers: Vec<Option<f64>>,
    kind: Type,
}

/// OR of groups, each an AND of filters. No groups: everything.
#[derive(Debug, Default)]
pub(crate) struct Groups(pub(crate) Vec<Vec<Filter>>);

/// Reads `filterGroups` (or the older top-level `filters`).
pub(crate) fn read(
    state: &State,
    table: &Table,
    catalog: &Catalog,
    body: &Map<String, Value>,
) -> Result<Groups, ApiError> {
    let empty = Vec::new();
    let list = |value: Option<&Value>| -> Vec<Value> {
        value.and_then(Value::as_array).unwrap_or(&empty).clone()
    };
    let mut raw: Vec<Vec<Value>> = list(body.get("filterGroups"))
        .iter()
        .map(|group| list(group.get("filters")))
        .collect();
    if body.contains_key("filters") {
        raw.push(list(body.get("filters")));
    }
    if raw.len() > MAX_GROUPS {
        return Err(ApiError::validation(format!(
            "There was a problem with the request. filterGroups: size must be between 0 and {MAX_GROUPS}"
        )));
    }
    if raw.iter().any(|g| g.len() > MAX_FILTERS) {
        return Err(ApiError::validation(format!(
            "There was a problem with the request. filters: size must be between 0 and {MAX_FILTERS}"
        )));
    }
    if raw.iter().map(Vec::len).sum::<usize>() > MAX_TOTAL {
        return Err(ApiError::validation(format!(
            "There was a problem with the request. Total number of filters must not exceed {MAX_TOTAL}"
        )));
    }
    let mut groups = Vec::new();
    for group in raw.iter().filter(|g| !g.is_empty()) {
        let filters: Result<Vec<Filter>, ApiError> = group
            .iter()
            .map(|filter| one(state, table, catalog, filter))
            .collect();
        groups.push(filters?);
    }
    Ok(Groups(groups))
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn values_of(operator: Operator, filter: &Value) -> Vec<String> {
    match operator {
        Operator::In | Operator::NotIn => filter
            .get("values")
            .and_then(Value::as_array)
            .map(|v| v.iter().map(text).collect())
            .unwrap_or_default(),
        Operator::Between => ["value", "highValue"]
            .iter()
            .filter_map(|key| filter.get(*key).map(text))
            .collect(),
        Operator::Has | Operator::HasNot => vec![String::new()],
        _ => filter.get("value").map(text).into_iter().collect(),
    }
}

fn one(
    state: &State,
    table: &Table,
    catalog: &Catalog,
    filter: &Value,
) -> Result<Filter, ApiError> {
    let name = filter
        .get("propertyName")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let operator = filter
        .get("operator")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let Some(operator) = Operator::parse(operator) else {
        return Err(ApiError::validation(format!(
            "Invalid input JSON: operator `{operator}` is not one of [EQ, NEQ, LT, LTE, GT, GTE, BETWEEN, IN, \
             NOT_IN, HAS_PROPERTY, NOT_HAS_PROPERTY, CONTAINS_TOKEN, NOT_CONTAINS_TOKEN]"
        )));
    };
    let as_text = state.shared.options.search_id_text;
    let (target, kind) = if let Some(other) = name.strip_prefix("associations.") {
        let other = state.table(other)?;
        (Target::Associated(other.index), Type::Number)
    } else {
        let Some(id) = catalog.find(name) else {
            return Err(ApiError::validation(format!(
                "There was a problem with the request. Property '{name}' does not exist"
            )));
        };
        let property = catalog.get(id);
        let target = match name {
            "hs_object_id" if as_text => return id_as_text(id, operator, name, filter),
            "hs_object_id" => Target::Id,
            _ if name == table.facts.modified => Target::Modified,
            _ => Target::Property(id),
        };
        (target, property.kind)
    };
    let values = values(operator, kind, name, filter)?;
    let numbers = values
        .iter()
        .map(|v| match kind {
            Type::Date | Type::DateTime => moment(v).map(|ms| ms as f64),
            Type::Number => v.trim().parse().ok(),
            _ => None,
        })
        .collect();
    Ok(Filter {
        target,
        operator,
        values,
        numbers,
        kind,
    })
}

/// A filter of ids that compares texts: no bounds of the index follow from it.
fn id_as_text(
    id: PropertyId,
    operator: Operator,
    name: &str,
    filter: &Value,
) -> Result<Filter, ApiError> {
    let values = values(operator, Type::Text, name, filter)?;
    Ok(Filter {
        target: Target::Property(id),
        operator,
        numbers: vec![None; values.len()],
        values,
        kind: Type::Text,
    })
}

/// The texts to compare with, in lower case for texts.
fn values(
    operator: Operator,
    kind: Type,
    name: &str,
    filter: &Value,
) -> Result<Vec<String>, ApiError> {
    let mut values = values_of(operator, filter);
    let needed = if operator == Operator::Between { 2 } else { 1 };
    if values.len() < needed {
        return Err(ApiError::validation(format!(
            "There was a problem with the request. {operator:?} on '{name}' needs {}",
            if needed == 2 {
                "value and highValue"
            } else {
                "a value"
            }
        )));
    }
    if matches!(kind, Type::Text | Type::PhoneNumber) {
        values.iter_mut().for_each(|v| *v = v.to_lowercase());
    }
    Ok(values)
}

impl Groups {
    /// Whether a page in the order of stamps can be counted without looking at every record: a
    /// range of stamps, or a keyset, that is stamps beyond one and ids beyond one at that stamp.
    pub(crate) fn is_stamp_range(&self, descending: bool) -> bool {
        let beyond = |f: &Filter| match f.operator {
            Operator::Gt | Operator::Gte => !descending,
            Operator::Lt | Operator::Lte => descending,
            _ => false,
        };
        if let [group] = &self.0[..] {
            return group
                .iter()
                .all(|f| f.target == Target::Modified && f.is_range());
        }
        self.0.iter().all(|group| {
            let tied = group
                .iter()
                .any(|f| f.target == Target::Modified && f.operator == Operator::Eq);
            group.iter().all(|f| match f.target {
                Target::Modified => beyond(f) || f.operator == Operator::Eq,
                Target::Id => tied && beyond(f),
                Target::Property(_) | Target::Associated(_) => false,
            })
        })
    }

    /// Whether a single range of ids is asked for.
    pub(crate) fn is_id_range(&self) -> bool {
        match &self.0[..] {
            [group] => group.iter().all(|f| f.target == Target::Id && f.is_range()),
            _ => false,
        }
    }

    /// Smallest and largest value of `target` that can match any group.
    pub(crate) fn bounds(&self, target: Target) -> (i64, i64) {
        if self.0.is_empty() {
            return (i64::MIN, i64::MAX);
        }
        let mut outer = (i64::MAX, i64::MIN);
        for group in &self.0 {
            let mut inner = (i64::MIN, i64::MAX);
            for filter in group.iter().filter(|f| f.target == target) {
                let number =
                    |at: usize| filter.numbers.get(at).copied().flatten().map(|f| f as i64);
                let (low, high) = match filter.operator {
                    Operator::Eq => (number(0), number(0)),
                    Operator::Gte => (number(0), None),
                    Operator::Gt => (number(0).map(|n| n.saturating_add(1)), None),
                    Operator::Lte => (None, number(0)),
                    Operator::Lt => (None, number(0).map(|n| n.saturating_sub(1))),
                    Operator::Between => (number(0), number(1)),
                    _ => (None, None),
                };
                inner.0 = inner.0.max(low.unwrap_or(i64::MIN));
                inner.1 = inner.1.min(high.unwrap_or(i64::MAX));
            }
            outer = (outer.0.min(inner.0), outer.1.max(inner.1));
        }
        outer
    }

    /// Whether the record matches some group.
    pub(crate) fn matches(&self, state: &State, catalog: &Catalog, view: &View<'_>) -> bool {
        self.0.is_empty()
            || self.0.iter().any(|group| {
                group
                    .iter()
                    .all(|filter| filter.matches(state, catalog, view))
            })
    }

    /// The same from stamp and id alone, for [`Groups::is_stamp_range`].
    pub(crate) fn matches_stamp(&self, modified_ms: i64, id: u64) -> bool {
        self.0.is_empty()
            || self.0.iter().any(|group| {
                group.iter().all(|filter| match filter.target {
                    Target::Id => filter.holds(Some((id as f64, id.to_string()))),
                    _ => filter.holds(Some((modified_ms as f64, String::new()))),
                })
            })
    }
}

impl Filter {
    /// Whether it is a range of whole numbers, so that bounds say all.
    fn is_range(&self) -> bool {
        let whole = |n: &Option<f64>| n.is_some_and(|n| n.fract() == 0.0);
        let range = matches!(
            self.operator,
            Operator::Eq
                | Operator::Lt
                | Operator::Lte
                | Operator::Gt
                | Operator::Gte
                | Operator::Between
        );
        range && self.numbers.iter().all(whole)
    }

    fn matches(&self, state: &State, catalog: &Catalog, view: &View<'_>) -> bool {
        match self.target {
            Target::Id => self.holds(Some((view.id as f64, view.id.to_string()))),
            Target::Modified => self.holds(Some((view.modified_ms as f64, String::new()))),
            Target::Associated(other) => {
                let ids = state.associated_ids(view.ground.kind, view.id, other);
                match self.operator {
                    Operator::Has => !ids.is_empty(),
                    Operator::HasNot => ids.is_empty(),
                    Operator::Neq | Operator::NotIn => {
                        !ids.iter().any(|id| self.values.contains(&id.to_string()))
                    }
                    _ => ids.iter().any(|id| self.values.contains(&id.to_string())),
                }
            }
            Target::Property(id) => {
                let text = view.text(id, catalog.get(id));
                self.holds(text.map(|text| {
                    let number = match self.kind {
                        Type::Date | Type::DateTime => moment(&text).map(|ms| ms as f64),
                        Type::Number => text.parse().ok(),
                        _ => None,
                    };
                    let text = match self.kind {
                        Type::Text | Type::PhoneNumber => text.to_lowercase(),
                        _ => text,
                    };
                    (number.unwrap_or(f64::NAN), text)
                }))
            }
        }
    }

    /// Whether a value (number, text), or its absence, satisfies the condition.
    fn holds(&self, value: Option<(f64, String)>) -> bool {
        let numeric = matches!(self.kind, Type::Number | Type::Date | Type::DateTime);
        let Some((number, text)) = value else {
            return matches!(
                self.operator,
                Operator::HasNot | Operator::Neq | Operator::NotIn | Operator::ContainsNot
            );
        };
        let equal = |at: usize| match self.numbers.get(at).copied().flatten() {
            Some(wanted) if numeric => wanted == number,
            _ => self.values.get(at).is_some_and(|v| *v == text),
        };
        let compare = |at: usize| -> Option<std::cmp::Ordering> {
            if numeric {
                number.partial_cmp(&self.numbers.get(at).copied().flatten()?)
            } else {
                Some(text.as_str().cmp(self.values.get(at)?))
            }
        };
        let any = || (0..self.values.len()).any(equal);
        match self.operator {
            Operator::Eq => equal(0),
            Operator::Neq => !equal(0),
            Operator::Lt => compare(0).is_some_and(std::cmp::Ordering::is_lt),
            Operator::Lte => compare(0).is_some_and(std::cmp::Ordering::is_le),
            Operator::Gt => compare(0).is_some_and(std::cmp::Ordering::is_gt),
            Operator::Gte => compare(0).is_some_and(std::cmp::Ordering::is_ge),
            Operator::Between => {
                compare(0).is_some_and(std::cmp::Ordering::is_ge)
                    && compare(1).is_some_and(std::cmp::Ordering::is_le)
            }
            Operator::In => any(),
            Operator::NotIn => !any(),
            Operator::Has => true,
            Operator::HasNot => false,
            Operator::Contains => contains(&text, &self.values[0]),
            Operator::ContainsNot => !contains(&text, &self.values[0]),
        }
    }
}

/// Whether a token of `text` equals `pattern`, which may start or end with `*`.
fn contains(text: &str, pattern: &str) -> bool {
    let pattern = pattern.to_lowercase();
    let core = pattern.trim_matches('*');
    let text = text.to_lowercase();
    let split = |c: char| c.is_whitespace() || matches!(c, '@' | '.' | ',' | ';' | '-' | '_');
    std::iter::once(text.as_str())
        .chain(text.split(split))
        .any(
            |token| match (pattern.starts_with('*'), pattern.ends_with('*')) {
                (true, true) => token.contains(core),
                (true, false) => token.ends_with(core),
                (false, true) => token.starts_with(core),
                (false, false) => token == core,
            },
        )
}
