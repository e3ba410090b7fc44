//! Enrolment: a token, or evidence for an attestor, in; an identity out.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use signet_identity::{
    AttestationError, BundleError, ChannelKeyRequest, Enrolling, IdError, KeyRequest, RequestError,
    SigningSvid, SpiffeId, SvidError, TlsSvid, TrustBundle, TrustDomain, verify_tls_chain,
};
use signet_sync::proto::sync as wire;
use signet_sync::proto::sync::enrolment_client::EnrolmentClient;
use signet_sync::{MIN_PROTOCOL, PROTOCOL};
use thiserror::Error;
use tonic::transport::Channel;

use crate::clock::{self, Told};
use crate::control::connect::{ConnectError, ControlPlane, Server};
use crate::control::proof::Proof;
use crate::control::proof::tpm::{self, TpmProofError};
use crate::control::{Identity, Origin, custody};

/// How long the control plane may take to answer a call: it writes to its disk first.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// Why there is no identity.
#[derive(Debug, Error)]
pub(super) enum EnrolError {
    #[error("the answer's roots do not make a trust bundle: {0}")]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the answer names a malformed identity: {0}")]
    Id(#[from] IdError),
    #[error("the answer names another control plane than the one that gave it")]
    OtherControlPlane,
    #[error(transparent)]
    Attestation(#[from] AttestationError),
    #[error("the certificates issued are of another identity than the answer names")]
    OtherIdentity,
    #[error("the policy key is not 32 bytes long")]
    PolicyKey,
    #[error("the control plane refused: {}", .0.message())]
    Refused(Box<tonic::Status>),
    #[error("no keys can be made: {0}")]
    Request(#[from] RequestError),
    #[error("the answer names neither the root that is pinned nor one that it vouches for")]
    RootMissing,
    #[error("the certificates issued cannot be used: {0}")]
    Svid(#[from] SvidError),
    #[error("no answer within 15 s")]
    Timeout,
    #[error(transparent)]
    Tpm(#[from] TpmProofError),
    #[error("the certificates issued do not hold under the roots now, {0}")]
    Unverifiable(Told),
}

/// Enrols with fresh keys. What proves who this is, is sent only after the handshake has proven the control plane under a
/// pin.
pub(super) async fn enrol(origin: &Origin, proof: Proof) -> Result<Identity, EnrolError> {
    let plane = &origin.plane;
    let (tls, signing) =
        (custody::request(custody::keys(origin.tpm.as_ref())).await?, KeyRequest::new_signing()?);
    let mut request = wire::EnrolRequest {
        protocol: PROTOCOL,
        min_protocol: MIN_PROTOCOL,
        tls_csr: tls.csr.clone(),
        signing_csr: signing.csr.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..wire::EnrolRequest::default()
    };
    let (channel, server) = match proof {
        Proof::Attested { attestor, evidence, pins } => {
            (request.attestor, request.attestation) = (attestor, evidence);
            under_any(plane, &pins).await?
        }
        Proof::Svid { svid, pins } => {
            let (channel, server) = under_any(plane, &pins).await?;
            let requests = [request.tls_csr.as_slice(), request.signing_csr.as_slice()];
            request.attestation = svid.evidence(Enrolling { binding: &server.binding, requests })?;
            "spiffe".clone_into(&mut request.attestor);
            (channel, server)
        }
        Proof::Token(token) => {
            (request.token_id, request.secret) = (token.id().to_owned(), token.secret().to_vec());
            plane.by_pin(token.pin()).await?
        }
        Proof::Tpm { pins } => {
            let device = tpm::Device::of(origin.tpm.as_ref(), &tls.key).await?;
            let (channel, server) = under_any(plane, &pins).await?;
            let mut client = EnrolmentClient::new(channel.clone());
            request.attestation = device.evidence(&mut client, &request, &server.binding).await?;
            tpm::ATTESTOR.clone_into(&mut request.attestor);
            (channel, server)
        }
    };
    let mut client = EnrolmentClient::new(channel);
    let answer = tokio::time::timeout(CALL_TIMEOUT, client.enrol(request))
        .await
        .map_err(|_| EnrolError::Timeout)?
        .map_err(|status| EnrolError::Refused(Box::new(status)))?;
    accept(answer.into_inner(), tls, signing, &server).await
}

/// A control plane under one of several pins. It is dialled for each: the next is no answer to one that cannot be reached.
async fn under_any(plane: &ControlPlane, pins: &[[u8; 32]]) -> Result<(Channel, Server), ConnectError> {
    let mut last = ConnectError::Timeout;
    for pin in pins {
        match plane.by_pin(*pin).await {
            Err(error @ (ConnectError::Handshake(_) | ConnectError::Identity(_))) => last = error,
            answered => return answered,
        }
    }
    Err(last)
}

/// Believes an answer only as far as it agrees with the handshake and with itself.
async fn accept(
    mut answer: wire::EnrolResponse,
    tls: ChannelKeyRequest,
    signing: KeyRequest,
    server: &Server,
) -> Result<Identity, EnrolError> {
    let tls = custody::svid(certificates(std::mem::take(&mut answer.tls_chain)), tls.key).await?;
    let signing = SigningSvid::new(certificates(std::mem::take(&mut answer.signing_chain)), signing.key)?;
    let is_pinned_root_named = answer.roots.iter().any(|root| *root == server.root.as_ref());
    if answer.control_plane_spiffe_id != server.peer.id().as_str() {
        return Err(EnrolError::OtherControlPlane);
    }
    let identity = assemble(answer, tls, signing)?;
    identity.has_begun();
    // The pinned root may have been retired since. Then it vouched for the server in the handshake, and the roots named
    // must be those that the server itself stands under.
    if !is_pinned_root_named && verify_tls_chain(&identity.bundle, &server.chain, clock::now()).is_err() {
        return Err(EnrolError::RootMissing);
    }
    if !identity.holds_at(clock::now()) {
        return Err(EnrolError::Unverifiable(clock::told()));
    }
    Ok(identity)
}

/// An identity from the answer that named it, as received or as saved, and its two SVIDs.
pub(super) fn assemble(
    answer: wire::EnrolResponse,
    tls: TlsSvid,
    signing: SigningSvid,
) -> Result<Identity, EnrolError> {
    let id = SpiffeId::parse(&answer.spiffe_id)?;
    let control_plane = SpiffeId::parse(&answer.control_plane_spiffe_id)?;
    if tls.id != id || signing.id != id {
        return Err(EnrolError::OtherIdentity);
    }
    if control_plane.trust_domain() != id.trust_domain() {
        return Err(EnrolError::OtherControlPlane);
    }
    let bundle = TrustBundle::new(TrustDomain::parse(id.trust_domain())?, certificates(answer.roots))?;
    Ok(Identity {
        network: answer.network.into(),
        control_plane,
        policy_key: answer.policy_key.try_into().map_err(|_| EnrolError::PolicyKey)?,
        bundle: Arc::new(bundle),
        tls,
        signing,
    })
}

pub(super) fn certificates(chain: Vec<Vec<u8>>) -> Vec<CertificateDer<'static>> {
    chain.into_iter().map(CertificateDer::from).collect()
}
