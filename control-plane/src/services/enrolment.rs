//! Enrolment: a token, or evidence for an attestor, in; certificates out. The only calls that need no certificate.

use signet_sync::negotiate;
use signet_sync::proto::sync as wire;
use signet_sync::proto::sync::enrolment_server::Enrolment;
use tonic::{Request, Response, Status};

use crate::attest::Shown;
use crate::metrics::count;
use crate::registrar::Requests;
use crate::services::{Mesh, connection, status, unattested};

/// The service.
pub(crate) struct EnrolmentService(pub(crate) Mesh);

#[tonic::async_trait]
impl Enrolment for EnrolmentService {
    async fn enrol(
        &self,
        request: Request<wire::EnrolRequest>,
    ) -> Result<Response<wire::EnrolResponse>, Status> {
        let mesh = &self.0;
        let connection = connection(&request)?;
        connection.asked.note();
        let (source, binding) = (connection.source, connection.binding);
        let request = request.into_inner();
        let protocol = negotiate(request.min_protocol, request.protocol)
            .map_err(|mismatch| Status::failed_precondition(mismatch.to_string()))?;
        let requests = Requests { tls: &request.tls_csr, signing: &request.signing_csr };
        let now = mesh.clock.issuing().await.map_err(|error| {
            count(&mesh.metrics.enrolments, error.code());
            tracing::error!(%source, code = error.code(), %error, "nothing is issued");
            Status::from(&error)
        })?;
        let model = mesh.model();
        let outcome = if request.attestor.is_empty() {
            mesh.registrar.enrol(&request.token_id, &request.secret, requests, &model, now).await
        } else {
            let shown = Shown {
                evidence: &request.attestation,
                binding: &binding,
                requests: [requests.tls, requests.signing],
            };
            match mesh.attestors.attest(&request.attestor, shown, &model, now).await {
                Ok(attested) => mesh.registrar.admit(&attested, requests, &model, now).await,
                Err(error) => {
                    count(&mesh.metrics.enrolments, error.code());
                    tracing::warn!(%source, code = error.code(), %error, "enrolment refused");
                    return Err(unattested(&error));
                }
            }
        };
        let roots = mesh.authority.bundle().map_err(|error| {
            tracing::error!(%error, "the roots in force cannot be read");
            Status::unavailable("authority-unavailable: the control plane cannot certify now, try again")
        })?;
        let issued = match outcome {
            Ok(issued) => issued,
            Err(error) => {
                count(&mesh.metrics.enrolments, error.code());
                tracing::warn!(%source, code = error.code(), "enrolment refused");
                return Err(status(&error));
            }
        };
        count(&mesh.metrics.enrolments, "ok");
        tracing::info!(%source, id = %issued.id, network = issued.network, "enrolled");
        let der =
            |chain: &[rustls_pki_types::CertificateDer<'_>]| chain.iter().map(|der| der.to_vec()).collect();
        Ok(Response::new(wire::EnrolResponse {
            protocol,
            tls_chain: der(&issued.tls_chain),
            signing_chain: der(&issued.signing_chain),
            roots: der(roots.roots()),
            policy_key: mesh.authority.origins_key().to_vec(),
            spiffe_id: issued.id.to_string(),
            network: issued.network,
            control_plane_spiffe_id: mesh.authority.id().to_string(),
        }))
    }

    async fn challenge(
        &self,
        request: Request<wire::ChallengeRequest>,
    ) -> Result<Response<wire::ChallengeResponse>, Status> {
        let connection = connection(&request)?;
        connection.asked.note();
        let (source, binding) = (connection.source, connection.binding);
        let request = request.into_inner();
        let shown = Shown {
            evidence: &request.about,
            binding: &binding,
            requests: [&request.tls_csr, &request.signing_csr],
        };
        match self.0.attestors.challenge(&request.attestor, shown) {
            Ok(challenge) => Ok(Response::new(wire::ChallengeResponse { challenge })),
            Err(error) => {
                count(&self.0.metrics.enrolments, error.code());
                tracing::warn!(%source, code = error.code(), %error, "no challenge is given");
                Err(unattested(&error))
            }
        }
    }
}
