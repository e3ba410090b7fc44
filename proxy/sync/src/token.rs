//! The join token an operator hands to a new proxy: `id.secret.pin`.
//!
//! `id` names the token, `secret` proves possession, `pin` is the SHA-256 of the authority's root SubjectPublicKeyInfo;
//! secret and pin are base64url without padding. The secret is only ever sent to a server under that pin.

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;

/// Bytes of a secret: beyond guessing.
pub const SECRET_BYTES: usize = 32;

/// Most bytes of what an attestor checks in place of a token: service-account tokens have one to two kilobytes, other
/// documents with a chain of certificates several.
pub const MAX_ATTESTATION_BYTES: usize = 16 * 1024;

/// Bytes of a token's id: it is a key in the control plane's store.
const MAX_ID_BYTES: usize = 64;

/// A join token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    id: String,
    secret: [u8; SECRET_BYTES],
    pin: [u8; 32],
}

/// A token is not of the form `id.secret.pin`. What it holds is not repeated: it is a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The id is empty, too long, or has other characters than letters, digits, `-` and `_`.
    #[error("the token's first part, its id, is malformed")]
    Id,
    /// Not three parts.
    #[error("a token has three parts separated by dots")]
    Parts,
    /// The third part is not a SHA-256 digest in base64url.
    #[error("the token's third part, the pin, is malformed")]
    Pin,
    /// The second part is not a secret in base64url.
    #[error("the token's second part, the secret, is malformed")]
    Secret,
}

impl Token {
    /// A token of a new id and secret for the authority whose root key has the digest `pin`.
    ///
    /// # Errors
    /// [`TokenError::Id`].
    pub fn new(id: String, secret: [u8; SECRET_BYTES], pin: [u8; 32]) -> Result<Self, TokenError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if id.is_empty() || id.len() > MAX_ID_BYTES || !id.bytes().all(allowed) {
            return Err(TokenError::Id);
        }
        Ok(Self { id, secret, pin })
    }

    /// From `id.secret.pin`; white space around it, as a file's last line break, is passed over.
    ///
    /// # Errors
    /// [`TokenError`] says which part is wrong.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.trim().split('.');
        let (Some(id), Some(secret), Some(pin), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Parts);
        };
        let secret = decode_32(secret).ok_or(TokenError::Secret)?;
        let pin = decode_32(pin).ok_or(TokenError::Pin)?;
        Self::new(id.to_owned(), secret, pin)
    }

    /// The token's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What proves possession.
    pub fn secret(&self) -> &[u8; SECRET_BYTES] {
        &self.secret
    }

    /// SHA-256 of the authority's root SubjectPublicKeyInfo.
    pub fn pin(&self) -> [u8; 32] {
        self.pin
    }

    /// The whole token as text, to be shown once. There is no `Display`, so that it cannot be logged by accident.
    pub fn reveal(&self) -> String {
        format!("{}.{}.{}", self.id, BASE64.encode(self.secret), BASE64.encode(self.pin))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("id", &self.id).finish_non_exhaustive()
    }
}

fn decode_32(text: &str) -> Option<[u8; 32]> {
    BASE64.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revealed_token_parses_to_itself_and_debug_hides_it() {
        let token = Token::new("t-1".into(), [7; 32], [9; 32]).unwrap();
        let text = token.reveal();
        assert_eq!(Token::parse(&format!(" {text}\n")), Ok(token.clone()));
        assert_eq!(format!("{token:?}"), "Token { id: \"t-1\", .. }");
    }

    #[test]
    fn malformed_tokens_are_refused_by_part() {
        let good = Token::new("t".into(), [7; 32], [9; 32]).unwrap().reveal();
        let part = |n: usize| good.split('.').nth(n).unwrap().to_owned();
        assert_eq!(Token::parse(""), Err(TokenError::Parts));
        assert_eq!(Token::parse(&format!("{good}.x")), Err(TokenError::Parts));
        assert_eq!(Token::parse(&format!("a b.{}.{}", part(1), part(2))), Err(TokenError::Id));
        assert_eq!(Token::parse(&format!("t.{}=.{}", part(1), part(2))), Err(TokenError::Secret));
        assert_eq!(Token::parse(&format!("t.{}.AAAA", part(1))), Err(TokenError::Pin));
    }
}
