//! Canonical text of values: into it, out of it, and equality in it.
//!
//! The spelling per type is fixed in [`crate::model`]. Everything here takes
//! any text and never panics; what cannot be read is an error of the value,
//! not of the page or batch that it arrived in.

mod decimal;

use std::borrow::Cow;

use chrono::{DateTime, Datelike, NaiveDate, Timelike};

use crate::model::{FieldType, Millis, Value};

use decimal::{Decimal, same_number};

const DAY_MS: i64 = 86_400_000;
/// Longest number text; PostgreSQL's numeric holds far more, no CRM does.
const NUMBER_MAX: usize = 1_000;
/// Largest exponent that PostgreSQL's numeric input takes without overflow.
const EXPONENT_MAX: i64 = 10_000;

/// A value that cannot be read as its type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot read {text:?} as {expected}")]
pub struct Unreadable {
    /// What was found, at most 100 characters.
    pub text: String,
    /// What was expected.
    pub expected: &'static str,
}

fn unreadable(text: &str, expected: &'static str) -> Unreadable {
    Unreadable {
        text: text.chars().take(100).collect(),
        expected,
    }
}

/// Brings any spelling that a CRM uses into canonical text.
///
/// Dates and instants may be ISO 8601 (with or without fraction, `Z`, `+0000`
/// or `+00:00`) or a count since 1970: milliseconds, for dates also days.
/// Text is taken as it is, without NUL, which PostgreSQL cannot store.
pub fn canonical(field_type: FieldType, raw: &str) -> Result<Value, Unreadable> {
    let mut out = String::new();
    append_canonical(field_type, raw, &mut out)?;
    Ok((!out.is_empty()).then_some(out))
}

/// The same, appended to `out`; nothing for null and for what cannot be read.
pub(crate) fn append_canonical(
    field_type: FieldType,
    raw: &str,
    out: &mut String,
) -> Result<(), Unreadable> {
    if raw.is_empty() {
        return Ok(());
    }
    match field_type {
        FieldType::Text | FieldType::Reference => append_text(raw, out),
        FieldType::Number => out.push_str(number(raw)?),
        FieldType::Boolean => match parse_bool(raw) {
            Some(true) => out.push_str("true"),
            Some(false) => out.push_str("false"),
            None => return Err(unreadable(raw, "true or false")),
        },
        FieldType::Date if raw.len() == 10 && day_prefix(raw.as_bytes()).is_some() => {
            out.push_str(raw);
        }
        FieldType::Date => match parse_day(raw) {
            Some(day) => out.push_str(&format_day(day)),
            None => return Err(unreadable(raw, "a date")),
        },
        FieldType::DateTime => match in_utc(raw) {
            Some((seconds, rest)) => out.extend([seconds, rest]),
            None => match parse_instant(raw).and_then(format_instant) {
                Some(text) => out.push_str(&text),
                None => return Err(unreadable(raw, "a date and time")),
            },
        },
        FieldType::Time => match parse_time(raw) {
            Some(time) => out.push_str(&format_time(time)),
            None => return Err(unreadable(raw, "a time of day")),
        },
        FieldType::MultiChoice => append_choices(raw, out),
    }
    Ok(())
}

fn append_text(raw: &str, out: &mut String) {
    if raw.as_bytes().contains(&0) {
        out.extend(raw.chars().filter(|c| *c != '\0'));
    } else {
        out.push_str(raw);
    }
}

fn choices(raw: &str) -> Value {
    let mut out = String::new();
    append_choices(raw, &mut out);
    (!out.is_empty()).then_some(out)
}

fn append_choices(raw: &str, out: &mut String) {
    let plain = !raw.contains(";;") && !raw.starts_with(';') && !raw.ends_with(';');
    if plain && !raw.as_bytes().contains(&0) {
        out.push_str(raw);
        return;
    }
    let before = out.len();
    for choice in raw.split(';') {
        let start = out.len();
        if start > before {
            out.push(';');
        }
        let behind = out.len();
        append_text(choice, out);
        if out.len() == behind {
            out.truncate(start);
        }
    }
}

fn number(raw: &str) -> Result<&str, Unreadable> {
    let trimmed = raw.trim();
    if trimmed.len() <= NUMBER_MAX
        && Decimal::parse(trimmed).is_some_and(|d| d.exponent_text.abs() <= EXPONENT_MAX)
    {
        Ok(trimmed)
    } else {
        Err(unreadable(raw, "a number"))
    }
}

fn parse_bool(raw: &str) -> Option<bool> {
    const TRUE: [&str; 4] = ["true", "t", "1", "yes"];
    const FALSE: [&str; 4] = ["false", "f", "0", "no"];
    let is = |s: &&str| raw.eq_ignore_ascii_case(s);
    if TRUE.iter().any(is) {
        Some(true)
    } else if FALSE.iter().any(is) {
        Some(false)
    } else {
        None
    }
}

fn digits(b: &[u8]) -> Option<u32> {
    if b.is_empty() || b.len() > 9 {
        return None;
    }
    b.iter().try_fold(0u32, |n, c| {
        c.is_ascii_digit().then(|| n * 10 + u32::from(c - b'0'))
    })
}

/// `YYYY-MM-DD` at the start; years 1 to 9999.
fn day_prefix(b: &[u8]) -> Option<NaiveDate> {
    if b.len() < 10 || b[4] != b'-' || b[7] != b'-' {
        return None;
    }
    let year = i32::try_from(digits(&b[..4])?).ok()?;
    let day = NaiveDate::from_ymd_opt(year, digits(&b[5..7])?, digits(&b[8..10])?)?;
    (day.year() >= 1).then_some(day)
}

/// `HH:MM[:SS[.fraction]]` at the start: milliseconds of the day and the rest.
fn time_prefix(b: &[u8]) -> Option<(u32, &[u8])> {
    if b.len() < 5 || b[2] != b':' {
        return None;
    }
    let (h, m) = (digits(&b[..2])?, digits(&b[3..5])?);
    let mut rest = &b[5..];
    let mut s = 0;
    let mut ms = 0;
    if rest.first() == Some(&b':') {
        s = digits(rest.get(1..3)?)?;
        rest = &rest[3..];
        if rest.first() == Some(&b'.') {
            let len = rest[1..].iter().take_while(|c| c.is_ascii_digit()).count();
            if len == 0 {
                return None;
            }
            // Milliseconds are all that a CRM keeps; the rest is cut, not rounded.
            for i in 0..3 {
                let digit = if i < len { rest[1 + i] - b'0' } else { 0 };
                ms = ms * 10 + u32::from(digit);
            }
            rest = &rest[1 + len..];
        }
    }
    (h < 24 && m < 60 && s < 60).then_some((((h * 60 + m) * 60 + s) * 1_000 + ms, rest))
}

/// Offset east of UTC in milliseconds: empty, `Z`, `+hh`, `+hhmm`, `+hh:mm`, `+hh:mm:ss`.
fn offset(b: &[u8]) -> Option<i64> {
    let (sign, rest) = match b.first() {
        None => return Some(0),
        Some(b'Z' | b'z') if b.len() == 1 => return Some(0),
        Some(b'+') => (1, &b[1..]),
        Some(b'-') => (-1, &b[1..]),
        Some(_) => return None,
    };
    let (h, m, s) = match rest.len() {
        2 => (digits(rest)?, 0, 0),
        4 => (digits(&rest[..2])?, digits(&rest[2..])?, 0),
        5 if rest[2] == b':' => (digits(&rest[..2])?, digits(&rest[3..])?, 0),
        8 if rest[2] == b':' && rest[5] == b':' => (
            digits(&rest[..2])?,
            digits(&rest[3..5])?,
            digits(&rest[6..])?,
        ),
        _ => return None,
    };
    (h < 24 && m < 60 && s < 60).then_some(sign * i64::from((h * 60 + m) * 60 + s) * 1_000)
}

/// Canonical text, in two parts, of an instant that the CRM gave in UTC, without
/// arithmetic: nearly all instants of a backfill come this way.
fn in_utc(raw: &str) -> Option<(&str, &'static str)> {
    let b = raw.as_bytes();
    if b.len() < 20 || b[10] != b'T' || b[16] != b':' || day_prefix(b)?.year() < 1 {
        return None;
    }
    let (_, rest) = time_prefix(&b[11..])?;
    if !matches!(rest, b"Z" | b"+0000") {
        return None;
    }
    match b.len() - rest.len() {
        23 => Some((&raw[..23], "Z")),
        19 => Some((&raw[..19], ".000Z")),
        _ => None,
    }
}

fn integer(raw: &str) -> Option<i64> {
    let b = raw.strip_prefix('-').unwrap_or(raw);
    if b.is_empty() || b.len() > 18 || !b.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    raw.parse().ok()
}

/// Reads an instant: ISO 8601 with `T` or a space, a bare date (midnight UTC),
/// or milliseconds since 1970. A missing offset means UTC.
pub fn parse_instant(raw: &str) -> Option<Millis> {
    if let Some(ms) = integer(raw) {
        return Some(ms);
    }
    let b = raw.as_bytes();
    let day = day_ms(day_prefix(b)?);
    if b.len() == 10 {
        return Some(day);
    }
    if !matches!(b[10], b'T' | b't' | b' ') {
        return None;
    }
    let (time, rest) = time_prefix(&b[11..])?;
    Some(day + i64::from(time) - offset(rest)?)
}

/// `YYYY-MM-DDTHH:MM:SS.mmmZ`; `None` outside the years 1 to 9999.
pub fn format_instant(at: Millis) -> Option<String> {
    let t = DateTime::from_timestamp_millis(at)?;
    if !(1..=9999).contains(&t.year()) {
        return None;
    }
    Some(format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        t.year(),
        t.month(),
        t.day(),
        t.hour(),
        t.minute(),
        t.second(),
        t.timestamp_subsec_millis()
    ))
}

/// A moment as HTTP headers write it, in whole seconds, the fraction cut:
/// `Sun, 06 Nov 1994 08:49:37 GMT`. One that has no such form is 1970.
pub fn http_date(at: Millis) -> String {
    let t = DateTime::from_timestamp_millis(at).filter(|t| (1..=9999).contains(&t.year()));
    let t = t.unwrap_or(DateTime::UNIX_EPOCH);
    format!("{}", t.format("%a, %d %b %Y %H:%M:%S GMT"))
}

fn day_ms(day: NaiveDate) -> i64 {
    i64::from(day.to_epoch_days()) * DAY_MS
}

/// A date, the UTC day of an instant, or a count since 1970. A count that is a
/// whole number of days in milliseconds is one; a small one is in days.
fn parse_day(raw: &str) -> Option<NaiveDate> {
    let days = if let Some(n) = integer(raw) {
        if n.abs() < 3_000_000 {
            n
        } else {
            n.div_euclid(DAY_MS)
        }
    } else {
        parse_instant(raw)?.div_euclid(DAY_MS)
    };
    let day = NaiveDate::from_epoch_days(i32::try_from(days).ok()?)?;
    (1..=9999).contains(&day.year()).then_some(day)
}

fn format_day(day: NaiveDate) -> String {
    format!("{:04}-{:02}-{:02}", day.year(), day.month(), day.day())
}

fn parse_time(raw: &str) -> Option<u32> {
    if let Some(ms) = integer(raw) {
        return u32::try_from(ms).ok().filter(|ms| i64::from(*ms) < DAY_MS);
    }
    let (ms, rest) = time_prefix(raw.as_bytes())?;
    (rest.is_empty() || rest == b"Z" || rest == b"+00").then_some(ms)
}

fn format_time(ms: u32) -> String {
    format!(
        "{:02}:{:02}:{:02}.{:03}",
        ms / 3_600_000,
        ms / 60_000 % 60,
        ms / 1_000 % 60,
        ms % 1_000
    )
}

fn same_choices(a: &str, b: &str) -> bool {
    fn set(s: &str) -> Vec<&str> {
        let mut parts: Vec<&str> = s.split(';').filter(|c| !c.is_empty()).collect();
        parts.sort_unstable();
        parts.dedup();
        parts
    }
    set(a) == set(b)
}

fn same_parsed<T: PartialEq>(a: &str, b: &str, parse: impl Fn(&str) -> Option<T>) -> bool {
    match (parse(a), parse(b)) {
        (Some(x), Some(y)) => x == y,
        _ => false,
    }
}

/// Whether two values of a type mean the same: numbers by value and without
/// float loss, instants to the millisecond, choices as sets, text exactly.
/// The empty string is null.
///
/// A number written out as a binary fraction (`0.40000000000000002220…`) is
/// the same as the shorter text that reads as the same double.
pub fn same(field_type: FieldType, a: &Value, b: &Value) -> bool {
    let a = a.as_deref().filter(|s| !s.is_empty());
    let b = b.as_deref().filter(|s| !s.is_empty());
    let (a, b) = match (a, b) {
        (None, None) => return true,
        (Some(a), Some(b)) => (a, b),
        (Some(s), None) | (None, Some(s)) => {
            return field_type == FieldType::MultiChoice && s.bytes().all(|c| c == b';');
        }
    };
    if a == b {
        return true;
    }
    match field_type {
        FieldType::Text | FieldType::Reference => false,
        FieldType::Number => same_number(a, b),
        FieldType::Boolean => same_parsed(a, b, parse_bool),
        FieldType::Date => same_parsed(a, b, parse_day),
        FieldType::DateTime => same_parsed(a, b, parse_instant),
        FieldType::Time => same_parsed(a, b, parse_time),
        FieldType::MultiChoice => same_choices(a, b),
    }
}

/// Reads PostgreSQL's text output of a mirror column (ISO DateStyle, any time
/// zone) into canonical text. `infinity`, `NaN` and years outside 1 to 9999
/// have no counterpart in a CRM and are errors.
pub fn from_postgres(field_type: FieldType, text: &str) -> Result<Value, Unreadable> {
    if field_type == FieldType::MultiChoice && text.starts_with('{') {
        let items = array_items(text).ok_or_else(|| unreadable(text, "a text[]"))?;
        return Ok(choices(&items.join(";")));
    }
    if text.ends_with(" BC") {
        return Err(unreadable(text, "a year from 1 to 9999"));
    }
    canonical(field_type, text)
}

/// What PostgreSQL's input function of the column type takes: canonical text,
/// but for multi-choice an array literal.
pub fn to_postgres(field_type: FieldType, canonical: &str) -> Cow<'_, str> {
    if field_type != FieldType::MultiChoice {
        return Cow::Borrowed(canonical);
    }
    let mut out = String::with_capacity(canonical.len() + 8);
    out.push('{');
    for (i, item) in canonical.split(';').filter(|c| !c.is_empty()).enumerate() {
        if i > 0 {
            out.push(',');
        }
        out.push('"');
        for c in item.chars() {
            if matches!(c, '"' | '\\') {
                out.push('\\');
            }
            out.push(c);
        }
        out.push('"');
    }
    out.push('}');
    Cow::Owned(out)
}

/// Items of a one-dimensional array literal; NULL items are dropped.
fn array_items(text: &str) -> Option<Vec<String>> {
    let inner = text.strip_prefix('{')?.strip_suffix('}')?;
    let mut items = Vec::new();
    let mut item = String::new();
    let mut quoted = false;
    let mut was_quoted = false;
    let mut chars = inner.chars();
    let mut take = |item: &mut String, was_quoted: bool| {
        let done = std::mem::take(item);
        if was_quoted || !done.eq_ignore_ascii_case("null") {
            items.push(done);
        }
    };
    while let Some(c) = chars.next() {
        match c {
            '\\' => item.push(chars.next()?),
            '"' => {
                quoted = !quoted;
                was_quoted = true;
            }
            ',' if !quoted => {
                take(&mut item, was_quoted);
                was_quoted = false;
            }
            '{' | '}' if !quoted => return None,
            c => item.push(c),
        }
    }
    if quoted {
        return None;
    }
    if !inner.is_empty() {
        take(&mut item, was_quoted);
    }
    Some(items)
}

#[cfg(test)]
mod tests;
