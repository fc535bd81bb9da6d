//! Fixed-length names of events.

use sha2::{Digest, Sha256};

/// 32 hex digits that stand for an event of a server: enough bits that two
/// events of one account never meet by chance.
pub fn digest(server: &str, identity: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(server.as_bytes());
    hash.update([0]);
    hash.update(identity.as_bytes());
    hash.finalize()
        .iter()
        .take(16)
        .fold(String::with_capacity(32), |mut out, byte| {
            out.push_str(&format!("{byte:02x}"));
            out
        })
}
