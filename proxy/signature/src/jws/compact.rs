//! The compact serialization (RFC 7515 section 7.1): three parts of base64url without padding, with dots between them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{JwsError, MAX_HEADER, MAX_MESSAGE, encoded, verifying_key};
use crate::profile::MeshSigner;

pub(super) const SIGNATURE_LEN: usize = 64;

/// The decoded parts, and the bytes that the signature is over.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) header: Vec<u8>,
    pub(super) payload: Vec<u8>,
    signature: [u8; SIGNATURE_LEN],
    signed: &'a str,
}

impl<'a> Parts<'a> {
    pub(super) fn split(message: &'a str) -> Result<Self, JwsError> {
        if message.len() > MAX_MESSAGE {
            return Err(JwsError::TooLarge);
        }
        let (signed, signature) = message.rsplit_once('.').ok_or(JwsError::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(JwsError::Malformed)?;
        if header.len() > encoded(MAX_HEADER) {
            return Err(JwsError::TooLarge);
        }
        // A dot more is in no part: the alphabet has none.
        Ok(Self {
            header: decode(header)?,
            payload: decode(payload)?,
            signature: decode(signature)?.try_into().map_err(|_| JwsError::Malformed)?,
            signed,
        })
    }

    pub(super) fn verify(&self, public_key: &[u8; 32]) -> Result<(), JwsError> {
        let key = verifying_key(public_key)?;
        key.verify(self.signed.as_bytes(), &self.signature).map_err(|_| JwsError::BadSignature)
    }
}

/// The one encoding of these bytes: padding, other alphabets and stray bits at the end are refused.
fn decode(part: &str) -> Result<Vec<u8>, JwsError> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| JwsError::Malformed)
}

pub(super) fn sign(signer: &MeshSigner, header: &[u8], payload: &[u8]) -> Result<String, JwsError> {
    let mut out =
        String::with_capacity(encoded(header.len()) + encoded(payload.len()) + encoded(SIGNATURE_LEN) + 2);
    URL_SAFE_NO_PAD.encode_string(header, &mut out);
    out.push('.');
    URL_SAFE_NO_PAD.encode_string(payload, &mut out);
    let signature = signer.sign(out.as_bytes()).map_err(|_| JwsError::NotSigned)?;
    out.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut out);
    Ok(out)
}
