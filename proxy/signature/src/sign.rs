//! Makes a signature with any key over any components (RFC 9421 section 3.1).

use http::HeaderValue;
use thiserror::Error;

use crate::base::{self, BaseError};
use crate::component::Component;
use crate::input::{Params, signature_params};
use crate::key::{KeyError, SigningKey};
use crate::message::MessageView;

/// Why a message could not be signed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SignMessageError {
    /// The `alg` parameter names another algorithm than the key has.
    #[error("alg parameter does not fit the key")]
    Algorithm,
    /// The message has no signature base.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// The key failed.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The label is not a key of a dictionary.
    #[error("signature label is malformed")]
    Label,
}

/// A new signature, as fields to append.
#[derive(Clone, Debug)]
pub struct SignedMessage {
    /// A further line of `Signature-Input`.
    pub signature_input: HeaderValue,
    /// A further line of `Signature`.
    pub signature: HeaderValue,
    /// What was signed.
    pub base: String,
}

/// Signs `message`, covering `components` in that order.
///
/// # Errors
/// When a component is missing, the label malformed, or `alg` contradicts the key.
pub fn sign(
    message: &MessageView<'_>,
    components: &[Component],
    params: &Params,
    label: &str,
    key: &SigningKey,
) -> Result<SignedMessage, SignMessageError> {
    if params.alg().is_some_and(|alg| alg != key.algorithm().name()) {
        return Err(SignMessageError::Algorithm);
    }
    if sfv::KeyRef::from_str(label).is_err() {
        return Err(SignMessageError::Label);
    }
    let serialised = signature_params(components, params)?;
    let base = base::with_params(message, components, &serialised)?;
    let signature = sfv::Item::new(key.sign(base.as_bytes())?);
    Ok(SignedMessage {
        signature_input: field(label, &serialised)?,
        signature: field(label, &sfv::FieldType::serialize(&signature))?,
        base,
    })
}

fn field(label: &str, value: &str) -> Result<HeaderValue, SignMessageError> {
    HeaderValue::try_from(format!("{label}={value}")).map_err(|_| SignMessageError::Label)
}
