//! Why a mesh signature was not made or not accepted.

use thiserror::Error;

use crate::base::BaseError;
use crate::input::ParseError;
use crate::replay::Replay;

/// Why a message could not be signed. All of these are faults of the message, not of the key.
#[derive(Debug, Error)]
pub enum SignError {
    /// The message has no signature base.
    #[error("message cannot be signed: {0}")]
    Base(#[from] BaseError),
    /// The body is bound twice, or not at all.
    #[error("message needs either content-digest or the mesh-rec content coding")]
    Body,
    /// The signature algorithm failed.
    #[error("signing failed")]
    Crypto,
    /// The signatures that the message already has cannot be read, so nobody could find ours.
    #[error("existing signature fields: {0}")]
    Existing(#[from] ParseError),
    /// A response was to be signed without the request it answers.
    #[error("response has no request to be bound to")]
    NoRequest,
    /// A signature of the mesh is already there.
    #[error("message already has a signature of the mesh")]
    ReservedTag,
    /// The fields would be longer than any verifier accepts.
    #[error("signature fields would be too long")]
    TooLong,
    /// Another signature would exceed what any verifier accepts.
    #[error("message already has the largest number of signatures")]
    TooManySignatures,
    /// The `trailer` field is missing or does not announce the fields of the tail signature.
    #[error("trailer field does not announce the tail signature")]
    Trailer,
}

/// Why a signature was refused. Whoever reports it to an unauthenticated peer uses only [`code`].
///
/// [`code`]: Self::code
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SignatureError {
    /// The algorithm is missing or is not the one of the key.
    #[error("signature algorithm does not fit the key")]
    Algorithm,
    /// The signature does not verify.
    #[error("signature does not verify")]
    BadSignature,
    /// `created` lies in the future by more than the skew allowed.
    #[error("signature was created {ahead_s} s in the future, so clocks disagree")]
    Clock {
        /// How far in the future, in seconds.
        ahead_s: u64,
    },
    /// A component that must be covered is not, or one that is covered is not understood or not there.
    #[error("signature does not cover {0}")]
    Coverage(String),
    /// The body is not the one the signed digest names, or the digest is not acceptable.
    #[error("body does not match its digest")]
    Digest,
    /// `expires` has passed.
    #[error("signature has expired; it was created {ago_s} s ago")]
    Expired {
        /// How long ago it was created, in seconds.
        ago_s: u64,
    },
    /// The signature fields are malformed, too long or contradictory.
    #[error("signature fields are malformed")]
    Malformed,
    /// There is no signature of the mesh.
    #[error("signature is missing")]
    Missing,
    /// The form of the signature was not agreed on for this channel.
    #[error("signature is of a form that is not taken here")]
    Mode,
    /// There is more than one signature with our tag.
    #[error("message has more than one signature of the mesh")]
    Multiple,
    /// The nonce was made for another channel or another request.
    #[error("signature was made for another channel or request")]
    OtherChannel,
    /// The sequence number cannot be accepted.
    #[error("signature was replayed: {0}")]
    Replay(#[from] Replay),
    /// No certificate is known for the key identifier.
    #[error("signing key is not known")]
    UnknownKey,
    /// The key belongs to somebody else than the peer.
    #[error("signing key does not belong to the peer")]
    WrongSigner,
}

impl SignatureError {
    /// How far the signer's clock seems ahead of the verifier's, in seconds, where the refusal is about that.
    pub fn skew_s(&self) -> Option<i64> {
        match self {
            Self::Clock { ahead_s } => Some(i64::try_from(*ahead_s).unwrap_or(i64::MAX)),
            Self::Expired { ago_s } => Some(-i64::try_from(*ago_s).unwrap_or(i64::MAX)),
            _ => None,
        }
    }

    /// The stable name of the error, as used in `urn:mesh:err:<code>`. Several errors share one, where
    /// the difference would tell an attacker more than a peer needs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Algorithm | Self::BadSignature => "bad-signature",
            Self::Clock { .. } => "clock",
            Self::Coverage(_) => "coverage",
            Self::Digest => "digest",
            Self::Expired { .. } => "expired",
            Self::Malformed => "malformed",
            Self::Missing | Self::Multiple => "missing",
            Self::Mode => "mode",
            Self::OtherChannel | Self::Replay(_) => "replay",
            Self::UnknownKey | Self::WrongSigner => "unknown-key",
        }
    }
}
