//! Verifies a message that outlived its hop, for somebody it need not be for: an operator or an auditor.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use signet_signature::jws::{JwsError, Message, Rules, Signer, Unproven};

use crate::chain::{self, ChainError};

/// What was found. Everything but `valid` and `reason` is there only of a valid message.
#[derive(Debug, Default, Serialize)]
pub(crate) struct JwsOutcome {
    pub(crate) valid: bool,
    /// Stable word for what is wrong.
    pub(crate) code: Option<&'static str>,
    pub(crate) reason: String,
    pub(crate) sender: Option<String>,
    pub(crate) keyid: Option<String>,
    pub(crate) level: Option<&'static str>,
    pub(crate) id: Option<String>,
    pub(crate) created: Option<u64>,
    pub(crate) expires: Option<u64>,
    pub(crate) audience: Vec<String>,
    pub(crate) content_type: Option<String>,
    /// Of a protected message; a private one stays sealed.
    pub(crate) payload_base64: Option<String>,
}

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("certificate chain: {0}")]
    Chain(#[from] ChainError),
    #[error(transparent)]
    Message(#[from] JwsError),
}

/// Verifies `text` against the roots as of `now`; `own` is whom it must be for, nobody in particular without.
pub(crate) fn verify_jws(
    text: &str,
    roots: &[CertificateDer<'static>],
    own: Option<&str>,
    now: u64,
    skew: u64,
) -> JwsOutcome {
    match verified(text, roots, own, now, skew) {
        Ok(message) => JwsOutcome {
            valid: true,
            reason: "signed by the workload of the certificate".to_owned(),
            sender: Some(message.sender().to_owned()),
            keyid: Some(message.keyid().to_owned()),
            level: Some(message.level().name()),
            id: Some(message.head().id.to_string()),
            created: Some(message.head().created),
            expires: Some(message.head().expires),
            audience: message.head().audience.to_list(),
            content_type: message.head().content_type.clone(),
            payload_base64: message.payload().ok().map(|payload| STANDARD.encode(payload)),
            ..JwsOutcome::default()
        },
        Err(refused) => JwsOutcome {
            code: Some(match refused {
                Refused::Chain(_) => "certificate",
                Refused::Message(error) => error.code(),
            }),
            reason: refused.to_string(),
            ..JwsOutcome::default()
        },
    }
}

fn verified(
    text: &str,
    roots: &[CertificateDer<'static>],
    own: Option<&str>,
    now: u64,
    skew: u64,
) -> Result<Message, Refused> {
    let unproven = Unproven::parse(text)?;
    let identity = chain::verify(unproven.chain(), roots, UNIX_EPOCH + Duration::from_secs(now))?;
    let keyid = identity.keyid();
    let signer = Signer {
        spiffe_id: identity.id().as_str(),
        keyid: &keyid,
        public_key: identity.public_key(),
        not_before: unix(identity.not_before()),
        not_after: unix(identity.not_after()),
    };
    Ok(unproven.verify(&signer, Rules { own, now, skew })?)
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
