//! Field values and how they become JSON bytes.

use super::ids::SfId;
use super::stamps;
use std::cmp::Ordering;

/// One value of a record's field.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// The field is empty. Salesforce keeps no difference between empty text and null.
    Null,
    /// Checkbox.
    Bool(bool),
    /// Whole number.
    Int(i64),
    /// Number, currency or percent.
    Double(f64),
    /// Every kind of text, picklists included.
    Text(Box<str>),
    /// Days since 1970-01-01.
    Date(i32),
    /// Milliseconds since 1970-01-01 UTC.
    DateTime(i64),
    /// Record id or reference.
    Id(SfId),
}

impl Value {
    /// Text; empty text is null.
    pub(crate) fn text(text: &str) -> Self {
        if text.is_empty() {
            Self::Null
        } else {
            Self::Text(text.into())
        }
    }

    /// Whether the field is empty.
    pub(crate) fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// The text, if this is text.
    pub(crate) fn as_text(&self) -> Option<&str> {
        if let Self::Text(text) = self {
            Some(text)
        } else {
            None
        }
    }

    /// The reference, if this is one.
    pub(crate) fn as_id(&self) -> Option<SfId> {
        if let Self::Id(id) = self {
            Some(*id)
        } else {
            None
        }
    }

    /// The instant, if this is one.
    pub(crate) fn as_datetime(&self) -> Option<i64> {
        if let Self::DateTime(ms) = self {
            Some(*ms)
        } else {
            None
        }
    }

    /// Appends the JSON form.
    pub(crate) fn push_json(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.extend_from_slice(b"null"),
            Self::Bool(true) => out.extend_from_slice(b"true"),
            Self::Bool(false) => out.extend_from_slice(b"false"),
            Self::Int(number) => push_int(out, *number),
            Self::Double(number) => push_double(out, *number),
            Self::Text(text) => push_json_text(out, text),
            Self::Date(days) => {
                out.push(b'"');
                stamps::push_date(out, *days);
                out.push(b'"');
            }
            Self::DateTime(ms) => {
                out.push(b'"');
                stamps::push_datetime(out, *ms);
                out.push(b'"');
            }
            Self::Id(id) => {
                out.push(b'"');
                out.extend_from_slice(&id.bytes());
                out.push(b'"');
            }
        }
    }

    /// The JSON form as a tree, for the admin API and error bodies.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let mut out = Vec::new();
        self.push_json(&mut out);
        serde_json::from_slice(&out).unwrap_or_default()
    }

    /// Text that hashes and compares equal exactly for values Salesforce's unique indexes hold equal (case-insensitively).
    pub(crate) fn index_key(&self) -> Option<String> {
        match self {
            Self::Null => None,
            Self::Text(text) => Some(text.to_lowercase()),
            Self::Id(id) => Some(id.to_string()),
            other => {
                let mut out = Vec::new();
                other.push_json(&mut out);
                String::from_utf8(out).ok()
            }
        }
    }

    /// Order of ORDER BY and of comparisons: null first, text without regard to case; `None` for kinds that do not compare.
    pub(crate) fn compare(&self, other: &Self) -> Option<Ordering> {
        Some(match (self, other) {
            (Self::Null, Self::Null) => Ordering::Equal,
            (Self::Null, _) => Ordering::Less,
            (_, Self::Null) => Ordering::Greater,
            (Self::Bool(a), Self::Bool(b)) => a.cmp(b),
            (Self::Int(a), Self::Int(b)) => a.cmp(b),
            (Self::Int(a), Self::Double(b)) => (*a as f64).total_cmp(b),
            (Self::Double(a), Self::Int(b)) => a.total_cmp(&(*b as f64)),
            (Self::Double(a), Self::Double(b)) => a.total_cmp(b),
            (Self::Text(a), Self::Text(b)) => compare_text(a, b),
            (Self::Date(a), Self::Date(b)) => a.cmp(b),
            (Self::DateTime(a), Self::DateTime(b)) => a.cmp(b),
            (Self::Id(a), Self::Id(b)) => a.cmp(b),
            _ => return None,
        })
    }
}

fn compare_text(a: &str, b: &str) -> Ordering {
    if a.is_ascii() && b.is_ascii() {
        let lower = |byte: u8| byte.to_ascii_lowercase();
        return a.bytes().map(lower).cmp(b.bytes().map(lower));
    }
    a.to_lowercase().cmp(&b.to_lowercase())
}

/// Appends a whole number.
pub(crate) fn push_int(out: &mut Vec<u8>, number: i64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = number.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends a double the way Salesforce does: always with a decimal point (`1000.0`).
fn push_double(out: &mut Vec<u8>, number: f64) {
    use std::io::Write;
    if number.fract() == 0.0 && number.abs() < 1e15 {
        push_int(out, number as i64);
        out.extend_from_slice(b".0");
    } else {
        // Writing to a vector cannot fail.
        let _ = write!(out, "{number}");
    }
}

/// Appends a JSON string. Runs of plain bytes are copied whole: page rendering spends most of its time here.
pub(crate) fn push_json_text(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut start = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let escape: &[u8] = match byte {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            0..=0x1f => b"",
            _ => continue,
        };
        out.extend_from_slice(&bytes[start..at]);
        if escape.is_empty() {
            const HEX: &[u8; 16] = b"0123456789abcdef";
            out.extend_from_slice(b"\\u00");
            out.push(HEX[usize::from(byte >> 4)]);
            out.push(HEX[usize::from(byte & 15)]);
        } else {
            out.extend_from_slice(escape);
        }
        start = at + 1;
    }
    out.extend_from_slice(&bytes[start..]);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rendered_json_parses_back_for_awkward_text() {
        for text in [
            "plain",
            "quo\"te",
            "back\\slash",
            "line\nfeed\r\ttab",
            "\u{1}\u{1f}",
            "ünï\u{1f600}",
        ] {
            let mut out = Vec::new();
            push_json_text(&mut out, text);
            assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }

    #[test]
    fn numbers_keep_sign_and_extremes() {
        for number in [0, -1, 10, i64::MAX, i64::MIN] {
            let mut out = Vec::new();
            push_int(&mut out, number);
            assert_eq!(String::from_utf8(out).unwrap(), number.to_string());
        }
        let mut out = Vec::new();
        Value::Double(1000.0).push_json(&mut out);
        assert_eq!(out, b"1000.0");
    }

    #[test]
    fn text_compares_without_case() {
        assert_eq!(
            Value::text("abc").compare(&Value::text("ABC")),
            Some(Ordering::Equal)
        );
        assert_eq!(Value::text("É").index_key(), Value::text("é").index_key());
        assert_eq!(Value::Int(1).compare(&Value::text("1")), None);
    }
}
