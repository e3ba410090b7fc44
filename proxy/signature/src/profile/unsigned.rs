//! A message between its preparation and its signature: everything is fixed but the signature itself.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue};

use super::{Form, SignError};
use crate::input::{SIGNATURE, SIGNATURE_INPUT};

/// A prepared message, waiting to be signed alone or together with others.
pub struct Unsigned {
    form: Form,
    label: String,
    signature_input: HeaderValue,
    nonce: String,
    base: Vec<u8>,
}

/// The fields of a new signature, to be appended to those the message already has.
#[derive(Clone, Debug)]
pub struct SignedHead {
    /// A further line of `Signature-Input`.
    pub signature_input: HeaderValue,
    /// A further line of `Signature`.
    pub signature: HeaderValue,
    /// The nonce in it, which a response to this message repeats.
    pub nonce: String,
    /// The signature base. The record layer continues from its hash.
    pub base: Vec<u8>,
}

impl SignedHead {
    /// Appends both fields to the headers, or to the trailers for a tail.
    pub fn append_to(&self, fields: &mut HeaderMap) {
        fields.append(&SIGNATURE_INPUT, self.signature_input.clone());
        fields.append(&SIGNATURE, self.signature.clone());
    }
}

impl Unsigned {
    pub(crate) fn new(
        form: Form,
        label: String,
        input: String,
        base: String,
        nonce: &str,
    ) -> Result<Self, SignError> {
        Ok(Self {
            form,
            label,
            signature_input: HeaderValue::try_from(input).map_err(|_| SignError::TooLong)?,
            nonce: nonce.to_owned(),
            base: base.into_bytes(),
        })
    }

    /// How it is to be signed.
    #[must_use]
    pub fn form(&self) -> Form {
        self.form
    }

    /// The signature base: what is signed.
    #[must_use]
    pub fn base(&self) -> &[u8] {
        &self.base
    }

    pub(crate) fn seal(self, signature: &[u8]) -> Result<SignedHead, SignError> {
        let mut value = String::with_capacity(self.label.len() + 4 + signature.len().div_ceil(3) * 4);
        value.push_str(&self.label);
        value.push_str("=:");
        STANDARD.encode_string(signature, &mut value);
        value.push(':');
        Ok(SignedHead {
            signature_input: self.signature_input,
            signature: HeaderValue::try_from(value).map_err(|_| SignError::TooLong)?,
            nonce: self.nonce,
            base: self.base,
        })
    }
}

// What is signed may hold credentials, so it is never printed.
impl fmt::Debug for Unsigned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unsigned").field("form", &self.form).finish_non_exhaustive()
    }
}
