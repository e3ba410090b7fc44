//! Who may vouch for a proxy that has no token.
//!
//! An [`Attestor`] turns evidence into an identity that the mesh has declared; [`crate::registrar`] alone turns that into
//! certificates. Evidence is as secret as a token: it is in no log, error or record.

use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use signet_identity::SpiffeId;
use signet_policy::PolicyModel;
use thiserror::Error;

/// The longest name of an attestor, so that a peer's text is not compared whatever its length.
const NAME_MAX: usize = 64;

/// Checks one kind of evidence.
pub(crate) trait Attestor: Send + Sync {
    /// What proxies call it.
    fn name(&self) -> &'static str;

    /// Something that it wants done before it judges, for whoever asks; [`Shown::evidence`] is what the question is about.
    ///
    /// # Errors
    /// [`AttestError::Unasked`] of those that judge at once.
    fn challenge(&self, _shown: Shown<'_>) -> Result<Vec<u8>, AttestError> {
        Err(AttestError::Unasked)
    }

    /// Whom the evidence proves.
    fn attest<'a>(
        &'a self,
        shown: Shown<'a>,
        model: &'a PolicyModel,
        now: SystemTime,
    ) -> BoxFuture<'a, Result<Attested, AttestError>>;
}

/// What a proxy shows, and what its evidence may be bound to so that it is good once.
#[derive(Clone, Copy)]
pub(crate) struct Shown<'a> {
    pub(crate) evidence: &'a [u8],
    /// 32 bytes that only the two ends of the proxy's connection know, see
    /// [`attestation_binding`](signet_identity::attestation_binding).
    pub(crate) binding: &'a [u8; 32],
    /// The certification requests for TLS and for messages, as received.
    pub(crate) requests: [&'a [u8]; 2],
}

/// A proxy that an attestor knows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Attested {
    /// Who it is in the mesh.
    pub(crate) id: SpiffeId,
    /// Where its addresses must lie.
    pub(crate) network: String,
    /// What there is one of, such as `kubernetes/POD-UID`: it has one instance, however often it enrols.
    pub(crate) holder: String,
    /// The device that the requested channel key lies in, if that was proven too.
    pub(crate) device: Option<[u8; 32]>,
}

/// All attestors of this control plane. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Attestors(Arc<[Arc<dyn Attestor>]>);

impl Attestors {
    pub(crate) fn new(all: Vec<Arc<dyn Attestor>>) -> Self {
        Self(all.into())
    }

    /// A challenge of the attestor of that name.
    pub(crate) fn challenge(&self, name: &str, shown: Shown<'_>) -> Result<Vec<u8>, AttestError> {
        self.named(name)?.challenge(shown)
    }

    /// Asks the attestor of that name.
    pub(crate) async fn attest(
        &self,
        name: &str,
        shown: Shown<'_>,
        model: &PolicyModel,
        now: SystemTime,
    ) -> Result<Attested, AttestError> {
        self.named(name)?.attest(shown, model, now).await
    }

    fn named(&self, name: &str) -> Result<&dyn Attestor, AttestError> {
        let named = self.0.iter().find(|attestor| name.len() <= NAME_MAX && attestor.name() == name);
        Ok(&**named.ok_or(AttestError::UnknownAttestor)?)
    }
}

/// Why evidence proves nobody.
#[derive(Debug, Error)]
pub(crate) enum AttestError {
    #[error("the evidence was not made for this mesh")]
    Audience,
    #[error("too many are being attested; try again")]
    Busy,
    #[error("the evidence is malformed")]
    Malformed,
    #[error("there is no Workload for {0}")]
    NoWorkload(String),
    #[error("whoever the evidence belongs to is gone")]
    Gone,
    #[error(
        "the evidence is not accepted: it is forged, has expired, is for others, or whoever it belongs to is gone"
    )]
    Refused,
    #[error("the evidence belongs to nothing that runs; a token must be bound to its pod")]
    Unbound,
    #[error("whoever checks the evidence cannot be asked; try again")]
    Unavailable,
    #[error("this attestor has no challenges: show it the evidence")]
    Unasked,
    #[error("this control plane has no such attestor")]
    UnknownAttestor,
}

impl AttestError {
    /// A stable name for metrics, logs and the proxy's own errors.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Audience => "attestation-audience",
            Self::Busy => "busy",
            Self::Malformed => "attestation-malformed",
            Self::NoWorkload(_) => "attestation-no-workload",
            Self::Gone => "attestation-gone",
            Self::Refused => "attestation-refused",
            Self::Unbound => "attestation-unbound",
            Self::Unavailable => "attestation-unavailable",
            Self::Unasked => "attestation-unasked",
            Self::UnknownAttestor => "attestor-unknown",
        }
    }
}
