//! Strategies that keep both edits: what one edit added, put onto the value held.
//!
//! Each takes the value that the editor saw, the one the editor wrote, and the
//! one held now, all of one side and in its type. If the editor saw what is
//! held, the result is what the editor wrote.

use std::collections::HashSet;
use std::str::FromStr;

use bigdecimal::BigDecimal;

use crate::model::Value;

/// `(saw, wrote, held)` to the value that keeps both, or why there is none.
pub type Merge = fn(&Value, &Value, &Value) -> Result<Value, String>;

/// Digits that a sum may have; more is a mistake, not an amount.
const DIGITS_MAX: u64 = 1_000;

/// Text: what was added at the end goes to the end. Line ends count as equal,
/// however they are spelled.
pub(crate) fn append(saw: &Value, wrote: &Value, held: &Value) -> Result<Value, String> {
    let (saw, wrote) = (unix(saw), unix(wrote));
    let Some(tail) = wrote.strip_prefix(saw.as_str()) else {
        return Err("the text was changed, not only added to".to_owned());
    };
    let Some(held) = held.as_deref().filter(|h| !h.is_empty()) else {
        return Ok((!tail.is_empty()).then(|| tail.to_owned()));
    };
    // Two texts that were both begun on a blank are two lines.
    let between = if saw.is_empty() && !tail.is_empty() && !tail.starts_with('\n') {
        "\n"
    } else {
        ""
    };
    Ok(Some(format!("{held}{between}{tail}")))
}

fn unix(text: &Value) -> String {
    text.as_deref().unwrap_or("").replace("\r\n", "\n")
}

/// Numbers: the difference is added, in decimal, without rounding. Blank is zero.
pub(crate) fn delta(saw: &Value, wrote: &Value, held: &Value) -> Result<Value, String> {
    let sum = number(held)? + number(wrote)? - number(saw)?;
    if sum.digits() + sum.fractional_digit_count().unsigned_abs() > DIGITS_MAX {
        return Err("the sum has too many digits".to_owned());
    }
    Ok(Some(sum.to_plain_string()))
}

fn number(value: &Value) -> Result<BigDecimal, String> {
    let text = value.as_deref().unwrap_or("0").trim();
    let unreadable = || {
        format!(
            "'{}' is not a number",
            text.chars().take(40).collect::<String>()
        )
    };
    let number = BigDecimal::from_str(text).map_err(|_| unreadable())?;
    if number.fractional_digit_count().unsigned_abs() > DIGITS_MAX {
        return Err(unreadable());
    }
    Ok(number)
}

/// Choices: what was picked is added, what was unpicked is removed.
pub(crate) fn union(saw: &Value, wrote: &Value, held: &Value) -> Result<Value, String> {
    let (before, after) = (choices(saw), choices(wrote));
    let mut kept: Vec<&str> = choices(held)
        .into_iter()
        .filter(|c| after.contains(c) || !before.contains(c))
        .collect();
    for choice in after.into_iter().filter(|c| !before.contains(c)) {
        if !kept.contains(&choice) {
            kept.push(choice);
        }
    }
    Ok((!kept.is_empty()).then(|| kept.join(";")))
}

fn choices(value: &Value) -> Vec<&str> {
    let mut met = HashSet::new();
    let parts = value.as_deref().unwrap_or("").split(';');
    parts.filter(|c| !c.is_empty() && met.insert(*c)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> Value {
        (!value.is_empty()).then(|| value.to_owned())
    }

    fn check(merge: Merge, saw: &str, wrote: &str, held: &str, result: &str) {
        assert_eq!(
            merge(&text(saw), &text(wrote), &text(held)),
            Ok(text(result))
        );
    }

    #[test]
    fn tails_of_both_sides_follow_each_other() {
        check(append, "a", "a\nb", "a\nc", "a\nc\nb");
        check(append, "", "b", "c", "c\nb");
        check(append, "", "b", "", "b");
        check(append, "a\r\n", "a\nb", "a\r\nc", "a\r\ncb");
        check(append, "a", "a", "c", "c");
    }

    #[test]
    fn a_text_that_was_rewritten_is_no_addition() {
        assert!(append(&text("abc"), &text("xabc"), &text("abc")).is_err());
        assert!(append(&text("abc"), &None, &text("abc d")).is_err());
    }

    #[test]
    fn sums_are_exact_beyond_what_floats_hold() {
        check(delta, "0.1", "0.3", "0.1", "0.3");
        check(delta, "9007199254740993", "9007199254740994", "1", "2");
        check(delta, "", "5", "", "5");
        check(delta, "5", "", "7", "2");
        check(delta, "10", "8.50", "10.00", "8.50");
        check(delta, "1e3", "1001", "2", "3");
    }

    #[test]
    fn what_is_no_number_is_no_sum() {
        assert!(delta(&text("1"), &text("x"), &text("1")).is_err());
        assert!(delta(&text("1"), &text("1e999999999"), &text("1")).is_err());
    }

    #[test]
    fn choices_are_added_and_removed_once() {
        check(union, "a;b", "a;c", "a;b;d", "a;d;c");
        check(union, "a", "", "a", "");
        check(union, "", "b;a", "a", "a;b");
        check(union, "a;b", "b", "b;c", "b;c");
    }
}
