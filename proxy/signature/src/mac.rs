//! The key with which one end of a channel authenticates its messages to the other (RFC 9421 section 3.3.3).

use std::fmt;

use aws_lc_rs::hmac::{self, HMAC_SHA256};

/// Bytes of a key, and of what it makes.
pub(crate) const MAC_LEN: usize = 32;

/// A key for `hmac-sha256`, known to the two ends of one channel and good for one direction of it.
///
/// Both ends can make with it what the other can: it proves nothing to a third party.
pub struct MacKey(hmac::Key);

impl MacKey {
    /// The key with these bytes, exported from the TLS connection.
    #[must_use]
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(hmac::Key::new(HMAC_SHA256, bytes))
    }

    /// The code of a message.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 32] {
        let mut code = [0; MAC_LEN];
        // SHA-256 is 32 bytes long, so the slices have the same length.
        code.copy_from_slice(hmac::sign(&self.0, message).as_ref());
        code
    }

    /// Whether `code` belongs to the message; takes the same time for every code.
    #[must_use]
    pub fn verifies(&self, message: &[u8], code: &[u8]) -> bool {
        hmac::verify(&self.0, message, code).is_ok()
    }
}

// A key is never printed.
impl fmt::Debug for MacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MacKey").finish_non_exhaustive()
    }
}
