//! Fixed-length names of events.

use sha2::{Digest, Sha256};

/// Stands for an event of a server: enough bits that two events of one account
/// never meet by chance.
pub type Identity = [u8; 16];

/// The name of a server's event, which the connector calls `identity`.
pub fn digest(server: &str, identity: &str) -> Identity {
    let mut hash = Sha256::new();
    hash.update(server.as_bytes());
    hash.update([0]);
    hash.update(identity.as_bytes());
    let hash = hash.finalize();
    std::array::from_fn(|i| hash[i])
}
