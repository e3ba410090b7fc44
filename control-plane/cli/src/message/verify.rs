//! Verifies one signature of a raw message and says what was found.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use serde::Serialize;
use signet_identity::SigningIdentity;
use signet_signature::component::Parameter;
use signet_signature::verify::VerifyError;
use signet_signature::{
    Algorithm, BaseError, Component, LabelledSignature, ParseError, VerifyingKey, parse_signatures,
    verify_digest,
};

use super::{Message, same};
use crate::chain::{self, ChainError};

/// Which signature, and what it must satisfy.
#[derive(Debug)]
pub(crate) struct Demand {
    pub(crate) label: Option<String>,
    pub(crate) tag: Option<String>,
    pub(crate) require: Vec<Component>,
    /// Chooses for a key that permits several.
    pub(crate) alg: Option<Algorithm>,
    /// Unix seconds.
    pub(crate) now: u64,
    /// Seconds.
    pub(crate) skew: u64,
}

/// What makes the signer's key believable.
pub(crate) enum Trust {
    /// Given by hand.
    Key(VerifyingKey),
    /// Certified by one of these roots.
    Chain { chain: Vec<CertificateDer<'static>>, roots: Vec<CertificateDer<'static>> },
}

/// What was found. Everything but `valid` and `reason` is there as far as it could be read.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Outcome {
    pub(crate) valid: bool,
    /// Stable word for what is wrong.
    pub(crate) code: Option<&'static str>,
    pub(crate) reason: String,
    pub(crate) label: Option<String>,
    pub(crate) alg: Option<&'static str>,
    pub(crate) covered: Vec<String>,
    pub(crate) params: Option<ParamsShown>,
    /// SPIFFE ID of the certificate's holder.
    pub(crate) signer: Option<String>,
    /// Whether the body was compared with a covered Content-Digest.
    pub(crate) content_digest: &'static str,
    pub(crate) signature_base: Option<String>,
}

/// The parameters that RFC 9421 registers.
#[derive(Debug, Serialize)]
pub(crate) struct ParamsShown {
    created: Option<u64>,
    expires: Option<u64>,
    nonce: Option<String>,
    alg: Option<String>,
    keyid: Option<String>,
    tag: Option<String>,
}

/// Why a message is not validly signed.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the message has {0} signatures that could be meant: choose one with --label or --tag")]
    Ambiguous(usize),
    #[error("certificate chain: {0}")]
    Chain(#[from] ChainError),
    #[error("{0} is not covered by the signature")]
    Coverage(Component),
    #[error("content-digest is covered, and the body does not match it: {0}")]
    Digest(signet_signature::DigestError),
    #[error("content-digest is covered, and no body was given")]
    DigestWithoutBody,
    #[error("keyid names another key than the certificate's, which is {0}")]
    KeyId(String),
    #[error("the message has no such signature")]
    Missing,
    #[error("signature fields: {0}")]
    Parse(#[from] ParseError),
    #[error(transparent)]
    Verify(#[from] VerifyError),
}

impl Refused {
    const fn code(&self) -> &'static str {
        match self {
            Self::Ambiguous(_) => "ambiguous",
            Self::Chain(_) => "certificate",
            Self::Coverage(_) | Self::Verify(VerifyError::Base(_)) => "coverage",
            Self::Digest(_) | Self::DigestWithoutBody => "digest",
            Self::KeyId(_) => "unknown-key",
            Self::Missing => "missing",
            Self::Parse(_) => "malformed",
            Self::Verify(VerifyError::Algorithm) => "algorithm",
            Self::Verify(VerifyError::Clock) => "clock",
            Self::Verify(VerifyError::Expired) => "expired",
            Self::Verify(VerifyError::Signature(_)) => "bad-signature",
        }
    }
}

/// Verifies the signature that `demand` chooses.
pub(crate) fn verify(message: &Message, request: Option<&Message>, trust: Trust, demand: &Demand) -> Outcome {
    let mut outcome = Outcome { content_digest: "not covered", ..Outcome::default() };
    match judge(message, request, trust, demand, &mut outcome) {
        Ok(()) => {
            outcome.valid = true;
            outcome.reason = "the signature is valid".to_owned();
        }
        Err(refused) => {
            outcome.code = Some(refused.code());
            outcome.reason = match &refused {
                Refused::Verify(VerifyError::Base(BaseError::NoRequest)) => {
                    format!("{refused}: name it with --request")
                }
                _ => refused.to_string(),
            };
        }
    }
    outcome
}

fn judge(
    message: &Message,
    request: Option<&Message>,
    trust: Trust,
    demand: &Demand,
    outcome: &mut Outcome,
) -> Result<(), Refused> {
    let signature = choose(message, demand)?;
    outcome.label = Some(signature.label().to_owned());
    outcome.covered = signature.components().iter().map(ToString::to_string).collect();
    outcome.params = Some(shown(&signature));
    let view = message.view(request);
    // Kept even if the signature fails: comparing bases is how a difference is found.
    outcome.signature_base = signature.base(&view).ok();

    for component in &demand.require {
        if !signature.components().iter().any(|covered| same(covered, component)) {
            return Err(Refused::Coverage(component.clone()));
        }
    }
    let key = key(trust, &signature, demand, outcome)?;
    outcome.alg = Some(key.algorithm().name());
    signet_signature::verify::verify(&view, &signature, &key, demand.now, demand.skew)?;
    digests(message, request, &signature, outcome)
}

fn choose(message: &Message, demand: &Demand) -> Result<LabelledSignature, Refused> {
    let mut signatures = parse_signatures(message.headers())?;
    if let Some(trailers) = message.trailers() {
        signatures.extend(parse_signatures(trailers)?);
    }
    let wanted = |signature: &LabelledSignature| {
        demand.label.as_deref().is_none_or(|label| signature.label() == label)
            && demand.tag.as_deref().is_none_or(|tag| signature.params().tag() == Some(tag))
    };
    signatures.retain(wanted);
    match signatures.len() {
        0 => Err(Refused::Missing),
        1 => Ok(signatures.remove(0)),
        several => Err(Refused::Ambiguous(several)),
    }
}

fn key(
    trust: Trust,
    signature: &LabelledSignature,
    demand: &Demand,
    outcome: &mut Outcome,
) -> Result<VerifyingKey, Refused> {
    let key = match trust {
        Trust::Key(key) => key,
        Trust::Chain { chain, roots } => {
            let now =
                UNIX_EPOCH.checked_add(Duration::from_secs(demand.now)).unwrap_or(SystemTime::UNIX_EPOCH);
            let identity = chain::verify(&chain, &roots, now)?;
            outcome.signer = Some(identity.id().to_string());
            names_the_certificate(signature, &identity)?;
            // The verifier has checked that this is a point of the curve; a refusal here is a refusal of the key.
            VerifyingKey::from_ed25519(identity.public_key()).map_err(|_| VerifyError::Algorithm)?
        }
    };
    // Only an RSA key leaves a choice. What the message says about it counts where the user says nothing.
    let wanted = demand.alg.or_else(|| signature.params().alg().and_then(Algorithm::from_name));
    match wanted {
        Some(algorithm) => Ok(key.with_algorithm(algorithm).map_err(|_| VerifyError::Algorithm)?),
        None => Ok(key),
    }
}

/// A mesh keyid holds the fingerprint of its certificate; keyids of other people's making are left alone.
fn names_the_certificate(signature: &LabelledSignature, identity: &SigningIdentity) -> Result<(), Refused> {
    match signature.params().keyid() {
        Some(keyid) if keyid.starts_with("spiffe://") && keyid != identity.keyid() => {
            Err(Refused::KeyId(identity.keyid()))
        }
        _ => Ok(()),
    }
}

/// Compares bodies with every Content-Digest that is covered.
fn digests(
    message: &Message,
    request: Option<&Message>,
    signature: &LabelledSignature,
    outcome: &mut Outcome,
) -> Result<(), Refused> {
    for component in signature.components().iter().filter(|component| component.name() == "content-digest") {
        let source = if component.parameters().contains(&Parameter::Req) { request } else { Some(message) };
        let Some(source) = source else { continue };
        let fields = match source.trailers() {
            Some(trailers) if component.parameters().contains(&Parameter::Tr) => trailers,
            _ => source.headers(),
        };
        outcome.content_digest = "does not match";
        verify_digest(fields, source.body()).map_err(|error| match error {
            signet_signature::DigestError::Mismatch if source.body().is_empty() => Refused::DigestWithoutBody,
            error => Refused::Digest(error),
        })?;
        outcome.content_digest = "matches the body";
    }
    Ok(())
}

fn shown(signature: &LabelledSignature) -> ParamsShown {
    let params = signature.params();
    ParamsShown {
        created: params.created(),
        expires: params.expires(),
        nonce: params.nonce().map(str::to_owned),
        alg: params.alg().map(str::to_owned),
        keyid: params.keyid().map(str::to_owned),
        tag: params.tag().map(str::to_owned),
    }
}
