//! The bitmaps that name fields in change events: `0x400080`, and `3-0x02` for components of field 3.

use std::fmt::Write;

/// Big-endian hex of the set bits, trimmed to whole bytes; `None` when no bit is set.
pub(crate) fn encode(bits: &[usize]) -> Option<String> {
    let top = bits.iter().max()?;
    let mut bytes = vec![0u8; top / 8 + 1];
    for bit in bits {
        bytes[bit / 8] |= 1 << (bit % 8);
    }
    let mut out = String::from("0x");
    for byte in bytes.iter().rev() {
        // Writing to a string cannot fail.
        let _ = write!(out, "{byte:02X}");
    }
    Some(out)
}

/// The list an event carries: plain fields first, then one entry per compound field.
pub(crate) fn list(plain: &[usize], nested: &[(usize, Vec<usize>)]) -> Vec<String> {
    let parts = nested
        .iter()
        .filter_map(|(parent, bits)| Some(format!("{parent}-{}", encode(bits)?)));
    encode(plain).into_iter().chain(parts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_vectors_come_out() {
        // Positions in the standard Account schema: Fax 7, Description 16, LastModifiedDate 22.
        assert_eq!(encode(&[7, 22]).as_deref(), Some("0x400080"));
        assert_eq!(encode(&[16, 22]).as_deref(), Some("0x410000"));
        assert_eq!(encode(&[16]).as_deref(), Some("0x010000"));
        assert_eq!(encode(&[2, 4]).as_deref(), Some("0x14"));
        assert_eq!(list(&[], &[(3, vec![1])]), ["3-0x02"]);
        assert_eq!(list(&[1], &[(3, vec![1]), (4, vec![])]), ["0x02", "3-0x02"]);
    }

    #[test]
    fn nothing_set_is_no_bitmap() {
        assert_eq!(encode(&[]), None);
        assert!(list(&[], &[]).is_empty());
    }
}
