//! The column `old` of a change row: old values, packed.
//!
//! Per value: attribute number (u16), type (u32), length (u16), bytes; all
//! little-endian. The bytes are the server's own for that type, expanded and
//! without the header of a variable length. Two lengths are marks: [`NULL`], and
//! [`TOO_LONG`], after which 16 bytes of SHA-256 follow.

use super::relation::Attribute;
use super::tuple::{self, Detoasted, Field};
use sha2::{Digest, Sha256};

/// The old value was null; no bytes follow.
pub(super) const NULL: u16 = u16::MAX;
/// The old value is not kept, only a digest of it.
pub(super) const TOO_LONG: u16 = u16::MAX - 1;
/// Longest old value that is kept, in bytes.
pub(super) const MAX_VALUE: usize = 2048;
/// Bytes of a digest.
pub(super) const DIGEST: usize = 16;
/// Above this even the digest is left out (all zero): it would mean fetching
/// megabytes in the user's transaction.
const MAX_DIGESTED: usize = 1024 * 1024;

/// Appends one old value.
pub(super) fn put(out: &mut Out<'_>, attribute: &Attribute, field: Field<'_>) {
    match field {
        Field::Null => out.head(attribute, NULL),
        Field::Value(bytes) if attribute.length == -1 => put_variable(out, attribute, bytes),
        Field::Value(bytes) => put_content(out, attribute, bytes),
    }
}

fn put_variable(out: &mut Out<'_>, attribute: &Attribute, value: &[u8]) {
    if let Some(content) = tuple::inline(value) {
        return put_content(out, attribute, content);
    }
    // SAFETY: a variable-length value of a tuple that the trigger was given.
    unsafe {
        if tuple::raw_size(value) > MAX_DIGESTED {
            out.head(attribute, TOO_LONG);
            out.bytes(&[0; DIGEST]);
        } else {
            put_content(out, attribute, Detoasted::new(value).bytes());
        }
    }
}

fn put_content(out: &mut Out<'_>, attribute: &Attribute, content: &[u8]) {
    if content.len() > MAX_VALUE {
        out.head(attribute, TOO_LONG);
        out.bytes(&Sha256::digest(content)[..DIGEST]);
    } else {
        out.head(attribute, content.len() as u16);
        out.bytes(content);
    }
}

/// The end of the buffer's bytes, where one change is being written.
pub(super) struct Out<'a> {
    bytes: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Out<'a> {
    pub(super) fn new(bytes: &'a mut Vec<u8>) -> Self {
        let start = bytes.len();
        Self { bytes, start }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.len() == self.start
    }

    fn head(&mut self, attribute: &Attribute, length: u16) {
        let mut head = [0; 8];
        head[..2].copy_from_slice(&attribute.number.to_le_bytes());
        head[2..6].copy_from_slice(&attribute.type_oid.to_le_bytes());
        head[6..].copy_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(&head);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }
}
