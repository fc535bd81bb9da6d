//! Decimal numbers as text, compared without passing through floats.

use std::cmp::Ordering;

use super::integer;

/// A decimal number without its meaningless zeros: `0.digits * 10^exponent`.
pub(super) struct Decimal {
    negative: bool,
    digits: Vec<u8>,
    exponent: i64,
    /// The exponent as written.
    pub(super) exponent_text: i64,
}

impl Decimal {
    /// Reads a number by PostgreSQL's grammar, without limits.
    pub(super) fn parse(raw: &str) -> Option<Self> {
        let b = raw.as_bytes();
        let (negative, b) = match b.first()? {
            b'-' => (true, &b[1..]),
            b'+' => (false, &b[1..]),
            _ => (false, b),
        };
        let end = b.iter().position(|c| matches!(c, b'e' | b'E'));
        let (mantissa, exponent_text) = match end {
            Some(i) => {
                let e = std::str::from_utf8(&b[i + 1..]).ok()?;
                let e = e.strip_prefix('+').unwrap_or(e);
                (&b[..i], integer(e)?)
            }
            None => (b, 0),
        };
        let point = mantissa.iter().position(|c| *c == b'.');
        let whole = point.unwrap_or(mantissa.len());
        let mut all: Vec<u8> = mantissa[..whole].to_vec();
        if let Some(p) = point {
            all.extend_from_slice(&mantissa[p + 1..]);
        }
        if all.is_empty() || !all.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let leading = all.iter().take_while(|c| **c == b'0').count();
        let trailing = all[leading..]
            .iter()
            .rev()
            .take_while(|c| **c == b'0')
            .count();
        let kept = all[leading..all.len() - trailing].to_vec();
        if kept.is_empty() {
            return Some(Self {
                negative: false,
                digits: kept,
                exponent: 0,
                exponent_text,
            });
        }
        let exponent = i64::try_from(whole).ok()? - i64::try_from(leading).ok()?;
        Some(Self {
            negative,
            digits: kept,
            exponent: exponent.checked_add(exponent_text)?,
            exponent_text,
        })
    }

    fn equals(&self, other: &Self) -> bool {
        self.negative == other.negative
            && self.exponent == other.exponent
            && self.digits == other.digits
    }

    /// The text of a binary number written out in full, as some CRMs show
    /// computed numbers: too many digits, and a fraction.
    fn looks_binary(&self) -> bool {
        let len = i64::try_from(self.digits.len()).unwrap_or(i64::MAX);
        len > 20 && self.exponent < len
    }
}

/// Whether two number texts mean the same number.
pub(super) fn same_number(a: &str, b: &str) -> bool {
    let (Some(x), Some(y)) = (Decimal::parse(a.trim()), Decimal::parse(b.trim())) else {
        return a == b;
    };
    if x.equals(&y) {
        return true;
    }
    if !x.looks_binary() && !y.looks_binary() {
        return false;
    }
    match (a.trim().parse::<f64>(), b.trim().parse::<f64>()) {
        (Ok(p), Ok(q)) => p.partial_cmp(&q) == Some(Ordering::Equal),
        _ => false,
    }
}
