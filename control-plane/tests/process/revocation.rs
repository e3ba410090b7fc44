//! Taking trust back lasts: over restarts and rotations, until an operator lets somebody in again.

use signet_sync::proto::admin::revocation::Subject as Listed;
use signet_sync::proto::admin::revoke_request::Subject;
use signet_sync::proto::admin::{
    LiftRevocationRequest, ListRevocationsRequest, RevokeRequest, RotateRequest, RotationRequest,
    RotationTarget,
};
use tonic::{Code, Status};

use crate::harness::{Server, code, enrol, mesh};

impl Server {
    async fn revoke_identity(&self, id: &str) {
        let subject = Some(Subject::SpiffeId(id.to_owned()));
        let request = RevokeRequest { subject, reason: "stolen".to_owned() };
        self.operator().await.revoke(request).await.unwrap();
    }

    async fn lift(&self, id: &str) -> Result<(), Status> {
        let request = LiftRevocationRequest { spiffe_id: id.to_owned() };
        self.operator().await.lift_revocation(request).await.map(drop)
    }

    /// How many certificates and identities are on the list.
    async fn revoked(&self) -> (usize, usize) {
        let listed = self.operator().await.list_revocations(ListRevocationsRequest {}).await.unwrap();
        let (certificates, identities): (Vec<_>, Vec<_>) = listed
            .into_inner()
            .revocations
            .into_iter()
            .partition(|revocation| matches!(revocation.subject, Some(Listed::Fingerprint(_))));
        assert!(certificates.iter().all(|revocation| revocation.expires > revocation.revoked_at));
        assert!(identities.iter().all(|revocation| revocation.expires == 0));
        (certificates.len(), identities.len())
    }

    /// A whole rotation while nobody is connected: they are parked.
    async fn rotate_alone(&self) {
        let target = RotationTarget::Root.into();
        let request = RotateRequest { target, emergency: false, ..Default::default() };
        let number = self.operator().await.rotate(request).await.unwrap().into_inner().number;
        while self
            .operator()
            .await
            .rotation(RotationRequest::default())
            .await
            .unwrap()
            .into_inner()
            .last_number
            < number
        {}
    }
}

#[tokio::test]
async fn a_lifted_identity_enrols_with_a_new_token_and_what_it_held_stays_out() {
    let (state, server) = mesh().await;
    let mut stolen = server.proxy("api").await;
    let token = server.token("api", 5).await;
    let id = stolen.id().to_string();
    server.revoke_identity(&id).await;
    assert_eq!(server.revoked().await, (0, 1));

    // Neither a restart nor a new root lets it in.
    server.kill();
    let server = Server::start(state.path());
    server.rotate_alone().await;
    let refused = stolen.renew(server.control).await.unwrap_err();
    assert_eq!(code(&refused), (Code::PermissionDenied, "revoked"));
    let made_meanwhile = server.token("api", 1).await;
    let refused = enrol(server.control, &made_meanwhile).await.err().unwrap();
    assert_eq!(code(&refused), (Code::PermissionDenied, "revoked"));

    server.lift(&id).await.unwrap();
    assert_eq!(server.lift(&id).await.unwrap_err().code(), Code::NotFound);
    // One for TLS, one for messages.
    assert_eq!(server.revoked().await, (2, 0));
    let refused = stolen.renew(server.control).await.unwrap_err();
    assert_eq!(code(&refused), (Code::PermissionDenied, "revoked"));
    let refused = enrol(server.control, &token).await.err().unwrap();
    assert_eq!(code(&refused), (Code::PermissionDenied, "token-refused"));
    assert!(refused.message().contains("withdrawn"), "{}", refused.message());
    let mut new = enrol(server.control, &server.token("api", 1).await).await.unwrap();
    new.renew(server.control).await.unwrap();
}

#[tokio::test]
async fn an_instance_that_was_revoked_does_not_enrol_again_with_the_token_it_came_with() {
    let (_state, server) = mesh().await;
    server.proxy("api").await;
    let token = server.token("api", 5).await;
    let stolen = enrol(server.control, &token).await.unwrap();
    let mut other = enrol(server.control, &token).await.unwrap();
    let subject = Some(Subject::Fingerprint(stolen.signing.fingerprint.to_string()));
    server.operator().await.revoke(RevokeRequest { subject, reason: String::new() }).await.unwrap();
    let refused = enrol(server.control, &token).await.err().unwrap();
    assert_eq!(code(&refused), (Code::PermissionDenied, "token-refused"));
    // Who holds a certificate by the same token keeps it.
    other.renew(server.control).await.unwrap();
    enrol(server.control, &server.token("api", 1).await).await.unwrap();
}
