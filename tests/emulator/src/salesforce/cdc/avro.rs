//! Avro binary encoding, as far as change events need it.

use crate::salesforce::stamps::DAY_MS;
use crate::salesforce::value::Value;

/// Appends an int or long: zigzag, seven bits at a time.
pub(crate) fn long(out: &mut Vec<u8>, number: i64) {
    let mut rest = ((number << 1) ^ (number >> 63)) as u64;
    while rest > 0x7f {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Appends a string.
pub(crate) fn string(out: &mut Vec<u8>, text: &str) {
    long(out, i64::try_from(text.len()).unwrap_or(i64::MAX));
    out.extend_from_slice(text.as_bytes());
}

/// Appends an array of strings: one block and the end mark.
pub(crate) fn strings(out: &mut Vec<u8>, items: &[String]) {
    if !items.is_empty() {
        long(out, i64::try_from(items.len()).unwrap_or(i64::MAX));
        for item in items {
            string(out, item);
        }
    }
    long(out, 0);
}

/// Appends a value of the union `["null", T]`; dates and date-times are milliseconds.
pub(crate) fn optional(out: &mut Vec<u8>, value: &Value) {
    long(out, i64::from(!value.is_null()));
    match value {
        Value::Null => {}
        Value::Bool(truth) => out.push(u8::from(*truth)),
        Value::Int(number) => long(out, *number),
        Value::Double(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::Text(text) => string(out, text),
        Value::Date(days) => long(out, i64::from(*days) * DAY_MS),
        Value::DateTime(ms) => long(out, *ms),
        Value::Id(id) => string(out, &id.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_the_avro_specification() {
        for (number, bytes) in [
            (0, &[0x00][..]),
            (-1, &[0x01]),
            (1, &[0x02]),
            (-64, &[0x7f]),
            (64, &[0x80, 0x01]),
        ] {
            let mut out = Vec::new();
            long(&mut out, number);
            assert_eq!(out, bytes, "{number}");
        }
        let mut out = Vec::new();
        long(&mut out, i64::MIN);
        assert_eq!(out.len(), 10);
    }

    #[test]
    fn strings_arrays_and_unions_follow_the_avro_specification() {
        let mut out = Vec::new();
        string(&mut out, "foo");
        assert_eq!(out, [0x06, 0x66, 0x6f, 0x6f]);
        out.clear();
        strings(&mut out, &["a".into()]);
        assert_eq!(out, [0x02, 0x02, b'a', 0x00]);
        out.clear();
        optional(&mut out, &Value::Null);
        optional(&mut out, &Value::Bool(true));
        optional(&mut out, &Value::Date(1));
        assert_eq!(out[..4], [0x00, 0x02, 0x01, 0x02]);
    }
}
