//! Literals as values of the field they are compared with; `None` when they do not fit it.

use crate::salesforce::ids::SfId;
use crate::salesforce::schema::{Field, Kind};
use crate::salesforce::stamps;
use crate::salesforce::value::Value;

/// The value of a keyword: `true`, `false`, `TODAY`, `YESTERDAY`.
pub(super) fn word(field: &Field, word: &str, now: i64) -> Option<Value> {
    if field.kind == Kind::Boolean {
        return if word.eq_ignore_ascii_case("true") {
            Some(Value::Bool(true))
        } else {
            word.eq_ignore_ascii_case("false")
                .then_some(Value::Bool(false))
        };
    }
    let back = match word.to_ascii_uppercase().as_str() {
        "TODAY" => 0,
        "YESTERDAY" => 1,
        _ => return None,
    };
    let day = now.div_euclid(stamps::DAY_MS) - back;
    match field.kind {
        Kind::Date => i32::try_from(day).ok().map(Value::Date),
        Kind::DateTime => Some(Value::DateTime(day * stamps::DAY_MS)),
        _ => None,
    }
}

/// The value of a quoted literal.
pub(super) fn quoted(field: &Field, text: &str) -> Option<Value> {
    match field.kind {
        Kind::Id | Kind::Reference => SfId::parse(text)
            .map(Value::Id)
            .or_else(|| text.is_empty().then_some(Value::Null)),
        kind if kind.is_text() => Some(Value::text(text)),
        _ => None,
    }
}

/// The value of a number, date or date-time.
pub(super) fn bare(field: &Field, text: &str) -> Option<Value> {
    match field.kind {
        Kind::Int => text
            .parse()
            .ok()
            .map(Value::Int)
            .or_else(|| text.parse().ok().map(Value::Double)),
        kind if kind.is_number() => text.parse().ok().map(Value::Double),
        Kind::Date => text
            .get(10..)
            .filter(|rest| rest.is_empty())
            .and_then(|_| stamps::parse_date(text))
            .map(Value::Date),
        Kind::DateTime => stamps::parse_datetime(text).map(Value::DateTime),
        _ => None,
    }
}
