//! What a caller may have done for the identity it proves to hold: new certificates, and roles for others.

use std::time::{Instant, SystemTime};

use rustls_pki_types::CertificateDer;
use signet_identity::SpiffeId;
use signet_sync::negotiate;
use signet_sync::proto::sync as wire;
use signet_sync::proto::sync::identity_server::Identity;
use tonic::{Code, Request, Response, Status};

use crate::app_svid::{self, AppSvidError};
use crate::appointments::{self, AppointError, Wish};
use crate::caller::Caller;
use crate::metrics::count;
use crate::plain;
use crate::registrar::{RegistrarError, Requests};
use crate::revocation::{RevocationError, revoke_tampered};
use crate::services::{Mesh, peer, peer_or_ended, status};

/// Characters of what a proxy says about tampering: a sensor and a sentence.
const DETAIL_MAX: usize = 160;

/// The service.
pub(crate) struct IdentityService(pub(crate) Mesh);

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn renew(
        &self,
        request: Request<wire::RenewRequest>,
    ) -> Result<Response<wire::RenewResponse>, Status> {
        let mesh = &self.0;
        // The registrar says for how long after its end.
        let peer = peer_or_ended(&request)?;
        let request = request.into_inner();
        negotiate(request.min_protocol, request.protocol)
            .map_err(|mismatch| Status::failed_precondition(mismatch.to_string()))?;
        let requests = Requests { tls: &request.tls_csr, signing: &request.signing_csr };
        let now = mesh.clock.issuing().await.map_err(|error| {
            count(&mesh.metrics.renewals, error.code());
            tracing::error!(id = %peer.id(), code = error.code(), %error, "nothing is issued");
            Status::from(&error)
        })?;
        match mesh.registrar.renew(&peer, requests, &mesh.model(), now).await {
            Ok(issued) => {
                count(&mesh.metrics.renewals, "ok");
                tracing::debug!(id = %issued.id, "renewed");
                let der = |chain: &[CertificateDer<'_>]| chain.iter().map(|der| der.to_vec()).collect();
                Ok(Response::new(wire::RenewResponse {
                    tls_chain: der(&issued.tls_chain),
                    signing_chain: der(&issued.signing_chain),
                }))
            }
            Err(error) => {
                count(&mesh.metrics.renewals, error.code());
                tracing::warn!(id = %peer.id(), code = error.code(), "renewal refused");
                Err(status(&error))
            }
        }
    }

    /// Whoever holds the instance's key may say so: all it can bring about is that this key is worth nothing.
    async fn report_tampering(
        &self,
        request: Request<wire::ReportTamperingRequest>,
    ) -> Result<Response<wire::ReportTamperingResponse>, Status> {
        let mesh = &self.0;
        // A device that was off for long may be opened too.
        let peer = peer_or_ended(&request)?;
        let wire::ReportTamperingRequest { code, detail } = request.into_inner();
        let (code, detail) = (plain::text(&code, DETAIL_MAX), plain::text(&detail, DETAIL_MAX));
        let now = mesh.clock.best();
        // Who is not known any more reports nothing: one report for each instance is all that is written.
        let known = mesh.registrar.known(&peer, &mesh.model(), now).await.map_err(|error| {
            count(&mesh.metrics.tampering, error.code());
            status(&error)
        })?;
        let reason = format!("tampered: {detail} ({code})");
        match revoke_tampered(&*mesh.store, peer.id(), peer.fingerprint(), &reason, now).await {
            Ok(_) => {
                count(&mesh.metrics.tampering, "ok");
                tracing::error!(
                    id = %peer.id(), instance = known.instance, code, detail,
                    "tampering: a proxy destroys its keys, and its instance is revoked"
                );
                Ok(Response::new(wire::ReportTamperingResponse {}))
            }
            Err(error) => {
                count(&mesh.metrics.tampering, "store-unavailable");
                tracing::error!(
                    id = %peer.id(), instance = known.instance, code, detail, %error,
                    "tampering: a proxy destroys its keys, and its instance could not be revoked; revoke it by hand"
                );
                Err(match error {
                    RevocationError::Full => Status::resource_exhausted(error.to_string()),
                    RevocationError::Store(_) => Status::unavailable(
                        "store-unavailable: the control plane cannot write now, try again",
                    ),
                })
            }
        }
    }

    async fn appoint(
        &self,
        request: Request<wire::AppointRequest>,
    ) -> Result<Response<wire::AppointResponse>, Status> {
        let mesh = &self.0;
        let peer = peer(mesh, &request)?;
        mesh.refuse_at_an_area("roles are given")?;
        let wire::AppointRequest { role, spiffe_id, not_after } = request.into_inner();
        let identity = SpiffeId::parse(&spiffe_id)
            .map_err(|error| Status::invalid_argument(format!("bad-request: spiffe_id: {error}")))?;
        let wish = Wish { role, identity, not_after: (not_after > 0).then_some(not_after) };
        let now = mesh.clock.best();
        let taken = match mesh.registrar.known(&peer, &mesh.model(), now).await {
            // Each may cost a durable write, and a new policy for every proxy.
            Ok(known) => mesh.churn.take(&known.instance, Instant::now()).map_err(|_| busy()),
            Err(error) => Err(status(&error)),
        };
        taken?;
        match appointments::appoint(&mesh.store, &mesh.registrar, &peer, &wish, &mesh.model(), now).await {
            Ok(not_after) => {
                count(&mesh.metrics.appointments, "ok");
                tracing::info!(by = %peer.id(), id = %wish.identity, not_after, "role given");
                Ok(Response::new(wire::AppointResponse { not_after }))
            }
            Err(error) => {
                count(&mesh.metrics.appointments, error.code());
                tracing::warn!(by = %peer.id(), id = %wish.identity, code = error.code(), "role not given");
                Err(refused(&error))
            }
        }
    }

    async fn certify_app(
        &self,
        request: Request<wire::CertifyAppRequest>,
    ) -> Result<Response<wire::CertifyAppResponse>, Status> {
        let mesh = &self.0;
        // Outside the mesh nobody knows what an area was granted, and refuses what it certified.
        mesh.refuse_at_an_area("certificates for applications are made")?;
        let (peer, now) = self.for_its_app(&request).await?;
        let csr = request.into_inner().csr;
        let chain = app_svid::certify(&mesh.authority, &mesh.model(), peer.id(), &csr, now);
        let chain = self.given(&peer, "x509", chain)?;
        Ok(Response::new(wire::CertifyAppResponse { chain: chain.iter().map(|der| der.to_vec()).collect() }))
    }

    async fn sign_jwt(
        &self,
        request: Request<wire::SignJwtRequest>,
    ) -> Result<Response<wire::SignJwtResponse>, Status> {
        let mesh = &self.0;
        // Nobody verifies under an area's key.
        mesh.refuse_at_an_area("tokens for applications are made")?;
        let (peer, now) = self.for_its_app(&request).await?;
        let audience = request.into_inner().audience;
        let token = app_svid::sign_jwt(&mesh.authority, &mesh.model(), peer.id(), &audience, now);
        let token = self.given(&peer, "jwt", token)?;
        Ok(Response::new(wire::SignJwtResponse { token }))
    }
}

impl IdentityService {
    /// Who asks for its application, and at what time: an instance that is known and not revoked, and has not asked too often.
    async fn for_its_app<T>(&self, request: &Request<T>) -> Result<(Caller, SystemTime), Status> {
        let mesh = &self.0;
        let peer = peer(mesh, request)?;
        let now = mesh.clock.issuing().await.map_err(|error| {
            count(&mesh.metrics.app_svids, error.code());
            tracing::error!(id = %peer.id(), code = error.code(), %error, "nothing is issued");
            Status::from(&error)
        })?;
        let known = mesh.registrar.known(&peer, &mesh.model(), now).await.map_err(|error| {
            count(&mesh.metrics.app_svids, error.code());
            status(&error)
        })?;
        mesh.app_svids.take(&known.instance, Instant::now()).map_err(|_| {
            count(&mesh.metrics.app_svids, "busy");
            Status::resource_exhausted("busy: this instance has asked too often for its application; wait")
        })?;
        Ok((peer, now))
    }

    fn given<T>(&self, peer: &Caller, kind: &str, outcome: Result<T, AppSvidError>) -> Result<T, Status> {
        match outcome {
            Ok(given) => {
                count(&self.0.metrics.app_svids, "ok");
                tracing::debug!(id = %peer.id(), kind, "given to its application");
                Ok(given)
            }
            Err(error) => {
                count(&self.0.metrics.app_svids, error.code());
                tracing::warn!(id = %peer.id(), kind, code = error.code(), "not given to its application");
                Err(not_given(error))
            }
        }
    }
}

/// For an application too: a refusal as its sidecar sees it.
fn not_given(error: AppSvidError) -> Status {
    let code = match error {
        AppSvidError::Audience(_) | AppSvidError::NotOffered => Code::PermissionDenied,
        AppSvidError::AudienceCount | AppSvidError::Jwt(_) | AppSvidError::Request(_) => {
            Code::InvalidArgument
        }
        AppSvidError::Authority(error) => return status(&RegistrarError::Authority(error)),
    };
    Status::new(code, format!("{}: {error}", error.code()))
}

fn busy() -> Status {
    Status::resource_exhausted("busy: this instance has appointed too often; wait some seconds")
}

fn refused(error: &AppointError) -> Status {
    let code = match error {
        AppointError::Busy => Code::Unavailable,
        AppointError::Full => Code::ResourceExhausted,
        AppointError::NotEntitled => Code::PermissionDenied,
        AppointError::Over => Code::InvalidArgument,
        AppointError::Registrar(error) => return status(error),
        AppointError::Store(error) => {
            tracing::error!(%error, "the store failed");
            return Status::unavailable("store-unavailable: the control plane cannot write now, try again");
        }
    };
    Status::new(code, format!("{}: {error}", error.code()))
}
