//! Renewal: new certificates for the identity the caller already proves to hold.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use signet_sync::negotiate;
use signet_sync::proto::sync as wire;
use signet_sync::proto::sync::identity_server::Identity;
use tonic::{Request, Response, Status};

use crate::metrics::count;
use crate::registrar::Requests;
use crate::services::{Mesh, peer, status};

/// The service.
pub(crate) struct IdentityService(pub(crate) Mesh);

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn renew(
        &self,
        request: Request<wire::RenewRequest>,
    ) -> Result<Response<wire::RenewResponse>, Status> {
        let mesh = &self.0;
        let peer = peer(&request)?;
        let request = request.into_inner();
        negotiate(request.min_protocol, request.protocol)
            .map_err(|mismatch| Status::failed_precondition(mismatch.to_string()))?;
        let requests = Requests { tls: &request.tls_csr, signing: &request.signing_csr };
        match mesh.registrar.renew(&peer, requests, &mesh.model(), SystemTime::now()).await {
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
}
