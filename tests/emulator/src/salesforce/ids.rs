//! Salesforce record ids: 15 case-sensitive characters plus 3 checksum characters.
//!
//! An id here is a key prefix (which object), two instance characters, a reserved `0` and nine base-62 digits. The digits
//! are in ASCII order, so that ordering ids as text is ordering record numbers.

use std::fmt;

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const CHECK: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ012345";
/// Length of the form every answer carries.
pub(crate) const LONG: usize = 18;
/// Length of the form requests may carry.
pub(crate) const SHORT: usize = 15;

/// A record id: the object's key prefix and the record's number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct SfId {
    /// Three characters that name the object, such as `003`.
    pub(crate) prefix: [u8; 3],
    /// The record's number, from 1.
    pub(crate) number: u64,
}

impl SfId {
    /// An id of the object with `prefix`.
    pub(crate) const fn new(prefix: [u8; 3], number: u64) -> Self {
        Self { prefix, number }
    }

    /// The 18-character form.
    pub(crate) fn bytes(self) -> [u8; LONG] {
        let mut out = *b"000xx0000000000AAA";
        out[..3].copy_from_slice(&self.prefix);
        let mut rest = self.number;
        for slot in out[6..SHORT].iter_mut().rev() {
            *slot = DIGITS[(rest % 62) as usize];
            rest /= 62;
        }
        let sum = checksum(&out[..SHORT]);
        out[SHORT..].copy_from_slice(&sum);
        out
    }

    /// Reads a 15- or 18-character id. `None` when it is not one, its checksum is wrong, or another instance issued it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() != SHORT && bytes.len() != LONG {
            return None;
        }
        if !bytes.iter().all(u8::is_ascii_alphanumeric) || &bytes[3..6] != b"xx0" {
            return None;
        }
        if bytes.len() == LONG && !checksum(&bytes[..SHORT]).eq_ignore_ascii_case(&bytes[SHORT..]) {
            return None;
        }
        let mut number: u64 = 0;
        for byte in &bytes[6..SHORT] {
            let digit = match byte {
                b'0'..=b'9' => byte - b'0',
                b'A'..=b'Z' => byte - b'A' + 10,
                _ => byte - b'a' + 36,
            };
            number = number * 62 + u64::from(digit);
        }
        Some(Self {
            prefix: [bytes[0], bytes[1], bytes[2]],
            number,
        })
    }
}

impl fmt::Display for SfId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(std::str::from_utf8(&self.bytes()).unwrap_or_default())
    }
}

/// Whether `text` has the shape of a record id of any instance.
pub(crate) fn looks_like_id(text: &str) -> bool {
    (text.len() == SHORT || text.len() == LONG)
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// The three checksum characters of a 15-character id: per five characters, one bit per upper-case letter.
pub(crate) fn checksum(short: &[u8]) -> [u8; 3] {
    let mut out = [b'A'; 3];
    for (slot, chunk) in out.iter_mut().zip(short.chunks(5)) {
        let mut bits = 0usize;
        for (position, byte) in chunk.iter().enumerate() {
            if byte.is_ascii_uppercase() {
                bits |= 1 << position;
            }
        }
        *slot = CHECK[bits];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_matches_ids_of_real_orgs() {
        for id in [
            "00Dxx0000000001EAA",
            "750Tn000004ZoR3IAK",
            "012000000000000AAA",
        ] {
            assert_eq!(checksum(&id.as_bytes()[..15]), id.as_bytes()[15..], "{id}");
        }
    }

    #[test]
    fn short_and_long_forms_name_the_same_record() {
        for number in [1, 61, 62, 999_999, 12_345_678_901] {
            let id = SfId::new(*b"003", number);
            let text = id.to_string();
            assert_eq!(SfId::parse(&text), Some(id));
            assert_eq!(SfId::parse(&text[..15]), Some(id));
        }
    }

    #[test]
    fn a_wrong_checksum_or_length_is_no_id() {
        let text = SfId::new(*b"003", 77).to_string();
        assert_eq!(SfId::parse(&text[..17]), None);
        assert_eq!(SfId::parse(&format!("{}ZZZ", &text[..15])), None);
        assert_eq!(SfId::parse("003xx0000000-01"), None);
    }

    #[test]
    fn text_order_is_number_order() {
        let mut last = String::new();
        for number in (1..200_000).step_by(37) {
            let text = SfId::new(*b"003", number).to_string();
            assert!(last < text, "{last} < {text}");
            last = text;
        }
    }
}
