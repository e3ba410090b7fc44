//! Verifies one signature with a known key (RFC 9421 section 3.2).
//!
//! Which key and which components an application demands is its own policy: a valid signature over
//! nothing is still valid. [`crate::profile`] is such a policy.

use thiserror::Error;

use crate::base::BaseError;
use crate::input::LabelledSignature;
use crate::key::{BadSignature, VerifyingKey};
use crate::message::MessageView;

/// Why a signature was refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum VerifyError {
    /// The `alg` parameter names another algorithm than the key has, or an unknown one.
    #[error("alg parameter does not fit the key")]
    Algorithm,
    /// The message has no signature base for what the signature covers.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// `created` lies in the future by more than the skew allowed.
    #[error("signature was created in the future")]
    Clock,
    /// `expires` has passed.
    #[error("signature has expired")]
    Expired,
    /// The signature does not verify.
    #[error(transparent)]
    Signature(#[from] BadSignature),
}

/// Verifies `signature` over `message` and answers the signature base. `now` and `skew` are in seconds;
/// `created` and `expires` are checked as far as the signature has them.
///
/// # Errors
/// When the algorithm, the time, the components or the signature itself do not fit.
pub fn verify(
    message: &MessageView<'_>,
    signature: &LabelledSignature,
    key: &VerifyingKey,
    now: u64,
    skew: u64,
) -> Result<String, VerifyError> {
    let params = signature.params();
    if params.alg().is_some_and(|alg| alg != key.algorithm().name()) {
        return Err(VerifyError::Algorithm);
    }
    if params.created().is_some_and(|created| created > now.saturating_add(skew)) {
        return Err(VerifyError::Clock);
    }
    if params.expires().is_some_and(|expires| now >= expires.saturating_add(skew)) {
        return Err(VerifyError::Expired);
    }
    let base = signature.base(message)?;
    key.verify(base.as_bytes(), signature.signature())?;
    Ok(base)
}
