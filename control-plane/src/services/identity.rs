//! What a caller may have done for the identity it proves to hold: new certificates, and roles for others.

use std::time::Instant;

use rustls_pki_types::CertificateDer;
use signet_identity::SpiffeId;
use signet_sync::negotiate;
use signet_sync::proto::sync as wire;
use signet_sync::proto::sync::identity_server::Identity;
use tonic::{Code, Request, Response, Status};

use crate::appointments::{self, AppointError, Wish};
use crate::metrics::count;
use crate::registrar::Requests;
use crate::services::{Mesh, peer, peer_or_ended, status};

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

    async fn appoint(
        &self,
        request: Request<wire::AppointRequest>,
    ) -> Result<Response<wire::AppointResponse>, Status> {
        let mesh = &self.0;
        let peer = peer(mesh, &request)?;
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
