//! What an application is refused for, with a stable name and a status (RFC 9457).

use http::StatusCode;
use signet_signature::jws::{JwsError, SeenError};
use signet_signature::seal::SealError;
use thiserror::Error;

/// A request that is not fulfilled, or a message that is not believed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum Refused {
    #[error("the certificate ends in {0} s, and a message must end before it: ask for a shorter expires_in")]
    CertificateEnds(u64),
    #[error("the sidecar has no valid certificate, policy or revocations yet")]
    NotReady,
    #[error("{0}")]
    Message(JwsError),
    #[error("the request has another method than this resource")]
    Method,
    #[error(
        "there is no such resource: try POST /v1/sign, /v1/verify, /v1/seal, /v1/open or GET /v1/identity"
    )]
    NotFound,
    #[error("a recipient is no SPIFFE ID, workload, host name or device that the directory knows")]
    RecipientUnknown,
    #[error(
        "the directory has no key of a recipient: its sidecar has to have been up, in a network that is known here"
    )]
    RecipientWithoutKey,
    #[error("the request is not the JSON object that this resource takes, see docs/messages.md")]
    Request,
    #[error("certificate or identity of the sender was revoked")]
    Revoked,
    #[error("{0}")]
    Seen(SeenError),
    #[error("the sender is none of those asked for")]
    Sender,
    #[error("request or payload is larger than --local-payload-bytes allows")]
    TooLarge,
    #[error("no root that is trusted here vouches for the signer's certificate at this time")]
    UnknownSigner,
}

impl Refused {
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::CertificateEnds(_) => "message-certificate",
            Self::Message(error) => error.code(),
            Self::Method => "local-method",
            Self::NotFound => "local-not-found",
            Self::NotReady => "not-ready",
            Self::RecipientUnknown => "recipient-unknown",
            Self::RecipientWithoutKey => "recipient-without-key",
            Self::Request => "local-request",
            Self::Revoked => "message-revoked",
            Self::Seen(error) => error.code(),
            Self::Sender => "message-sender",
            Self::TooLarge => "local-too-large",
            Self::UnknownSigner => "message-unknown-signer",
        }
    }

    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::NotReady | Self::Seen(SeenError::Full) | Self::Message(JwsError::NotSigned) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Request => StatusCode::BAD_REQUEST,
            Self::TooLarge | Self::Message(JwsError::TooLarge) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::CertificateEnds(_)
            | Self::Message(_)
            | Self::RecipientUnknown
            | Self::RecipientWithoutKey
            | Self::Revoked
            | Self::Seen(SeenError::Replay)
            | Self::Sender
            | Self::UnknownSigner => StatusCode::UNPROCESSABLE_ENTITY,
        }
    }
}

impl From<JwsError> for Refused {
    fn from(error: JwsError) -> Self {
        Self::Message(error)
    }
}

impl From<SeenError> for Refused {
    fn from(error: SeenError) -> Self {
        Self::Seen(error)
    }
}

/// Whether it was sealed for other keys than ours.
pub(crate) fn is_for_others(refused: Refused) -> bool {
    matches!(refused, Refused::Message(JwsError::Audience | JwsError::Seal(SealError::NotForUs)))
}
