//! The services on the control port, and what they have in common: who is calling, and how a refusal is told.

pub(crate) mod areas;
pub(crate) mod control;
pub(crate) mod enrolment;
pub(crate) mod frames;
pub(crate) mod identity;

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use signet_policy::PolicyModel;
use signet_sync::proto::sync as wire;
use signet_sync::{SectionName, Version};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};

use crate::attest::{AttestError, Attestors};
use crate::authority::Authority;
use crate::caller::Caller;
use crate::churn::Churn;
use crate::claims::Claims;
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::publish::{ObservedHabits, Published};
use crate::registrar::{Registrar, RegistrarError};
use crate::replica::Replicas;
use crate::server::ConnectionInfo;
use crate::services::frames::Frames;
use crate::store::Store;
use crate::streams::Streams;

/// What every service works on.
#[derive(Clone)]
pub(crate) struct Mesh {
    /// How often each instance gets something for its application.
    pub(crate) app_svids: Arc<Churn>,
    pub(crate) attestors: Attestors,
    pub(crate) authority: Arc<Authority>,
    pub(crate) churn: Arc<Churn>,
    pub(crate) claims: Arc<Claims>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) draining: CancellationToken,
    /// The manifests are those of a cluster, and nobody else changes them.
    pub(crate) followed: bool,
    pub(crate) frames: Arc<Frames>,
    pub(crate) habits: Arc<ObservedHabits>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) published: watch::Receiver<Arc<Published>>,
    pub(crate) registrar: Registrar,
    pub(crate) replicas: Arc<Replicas>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) streams: Arc<Streams>,
}

impl Mesh {
    /// The policy in force.
    fn model(&self) -> Arc<PolicyModel> {
        self.published.borrow().model.clone()
    }

    /// What time it is and what the newest versions are, under the policy key; nothing while the store cannot be read.
    pub(crate) fn freshness(&self) -> Option<wire::Freshness> {
        let published = self.published.borrow().clone();
        if !published.is_current(tokio::time::Instant::now()) {
            return None;
        }
        let version = |name| published.sections.get(&name).map(|section| Version::from(&**section));
        let newest = [
            version(SectionName::Anchors)?,
            version(SectionName::Policy)?,
            version(SectionName::Revocations)?,
        ];
        let now_ms = self.clock.best().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let now_ms = u64::try_from(now_ms).unwrap_or(u64::MAX);
        let said = self.authority.policy_key().sign_freshness(now_ms, newest);
        said.inspect_err(|error| tracing::error!(%error, "what time it is cannot be signed")).ok()
    }

    /// What only the origin does: refused at an area, which says where it is done.
    pub(crate) fn refuse_at_an_area(&self, what: &str) -> Result<(), Status> {
        match self.authority.area() {
            None => Ok(()),
            Some(area) => Err(Status::failed_precondition(format!(
                "area: {what} at the origin, {}; this is its area {}, which passes it on",
                area.parent(),
                area.name()
            ))),
        }
    }
}

/// The connection a request came by.
fn connection<T>(request: &Request<T>) -> Result<&ConnectionInfo, Status> {
    request.extensions().get::<ConnectionInfo>().ok_or_else(|| Status::internal("no connection"))
}

/// The verified caller, whose certificate is in force. Without one there is none.
fn peer<T>(mesh: &Mesh, request: &Request<T>) -> Result<Caller, Status> {
    let peer = peer_or_ended(request)?;
    if peer.not_after() <= mesh.clock.best() {
        return Err(Status::unauthenticated("certificate-expired: connect again with a valid one"));
    }
    Ok(peer)
}

/// The verified caller, whose certificate may have ended: the handshake lets those in that renewal may be for.
fn peer_or_ended<T>(request: &Request<T>) -> Result<Caller, Status> {
    connection(request)?.peer.clone().ok_or_else(|| {
        Status::unauthenticated("certificate-required: this call needs mutual TLS with a valid certificate")
    })
}

/// As [`status`], for who an attestor does not know.
fn unattested(error: &AttestError) -> Status {
    let code = match error {
        AttestError::Busy | AttestError::Unavailable => Code::Unavailable,
        AttestError::Malformed | AttestError::Unasked | AttestError::UnknownAttestor => Code::InvalidArgument,
        AttestError::Audience
        | AttestError::Gone
        | AttestError::NoWorkload(_)
        | AttestError::Refused
        | AttestError::Unbound => Code::PermissionDenied,
    };
    Status::new(code, format!("{}: {error}", error.code()))
}

/// A refusal as the caller sees it: a stable code, then a sentence. Faults of the store are not the caller's business.
fn status(error: &RegistrarError) -> Status {
    let code = match error {
        RegistrarError::Authority(_) | RegistrarError::Busy | RegistrarError::Store(_) => Code::Unavailable,
        RegistrarError::Expired | RegistrarError::Unknown => Code::Unauthenticated,
        RegistrarError::Instances | RegistrarError::Renewals => Code::ResourceExhausted,
        RegistrarError::Request(_) => Code::InvalidArgument,
        RegistrarError::OtherKey
        | RegistrarError::Revoked
        | RegistrarError::Token(_)
        | RegistrarError::Undeclared => Code::PermissionDenied,
    };
    match error {
        RegistrarError::Authority(error) => {
            tracing::error!(%error, "nothing can be certified");
            Status::new(code, "authority-unavailable: the control plane cannot certify now, try again")
        }
        RegistrarError::Store(error) => {
            tracing::error!(%error, "the store failed");
            Status::new(code, "store-unavailable: the control plane cannot write now, try again")
        }
        _ => Status::new(code, format!("{}: {error}", error.code())),
    }
}
