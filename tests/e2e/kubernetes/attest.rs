//! Enrolment by a pod's service-account token.

use std::fs;
use std::net::SocketAddr;

use signet_cli::lab::Container;
use signet_cli::lab::mesh::app;
use signet_cli::lab::mesh::intruder::{IntruderError, inside};
use signet_cli::lab::runner::TestResult;
use signet_identity::{ALPN_CONTROL, Fingerprint, KeyRequest, pinned_client_config, spki_sha256};
use signet_sync::PROTOCOL;
use signet_sync::proto::sync::EnrolRequest;
use signet_sync::proto::sync::enrolment_client::EnrolmentClient;
use signet_tests::claimant::channel;
use signet_tests::kubernetes::PodToken;
use signet_tests::manifest::{allow, mesh, policy, workload};
use signet_tests::{Failure, place, wait_for};
use tonic::Code;

use super::stage::{Stage, audience, token};
use crate::protocols::http::get;

const PORT: u16 = 8201;

fn manifests() -> [String; 4] {
    [
        mesh(&[]),
        workload("server", &["ports: [{port: 8201, protocol: http}]"]),
        workload("client", &[]),
        policy("access", "server", &[&allow("client", "{methods: [GET]}")]),
    ]
}

/// Enrols with evidence as a sidecar does: the identity, or the code and the words of the refusal.
fn enrol(
    stage: &Stage,
    from: &Container,
    attestor: &str,
    evidence: &str,
) -> Result<Result<String, (Code, String)>, Failure> {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;
    let root = CertificateDer::from_pem_slice(&fs::read(stage.roots()?)?)?;
    let (pin, control_plane): (_, SocketAddr) = (spki_sha256(&root)?, stage.mesh.address());
    let (attestor, evidence) = (attestor.to_owned(), evidence.as_bytes().to_vec());
    Ok(inside(from.namespace(), move || async move {
        let config = pinned_client_config(pin, None, &[ALPN_CONTROL])
            .map_err(|error| IntruderError::Message(error.to_string()))?;
        let channel = channel(config, control_plane)
            .await
            .map_err(|error| IntruderError::Message(format!("{error:?}")))?;
        let request = EnrolRequest {
            protocol: PROTOCOL,
            min_protocol: PROTOCOL,
            tls_csr: KeyRequest::new_tls()?.csr,
            signing_csr: KeyRequest::new_signing()?.csr,
            attestor,
            attestation: evidence,
            ..EnrolRequest::default()
        };
        let answer = EnrolmentClient::new(channel).enrol(request).await;
        Ok(answer
            .map(|answer| answer.into_inner().spiffe_id)
            .map_err(|status| (status.code(), status.message().to_owned())))
    })?)
}

pub(super) fn pods_enrol_by_their_tokens_and_call_each_other() -> TestResult {
    let stage = Stage::new(&manifests())?;
    stage.until("accesspolicies", "access", "Accepted", "True", "")?;
    let (server, client) = (stage.host.container("server")?, stage.host.container("client")?);
    let _app = app(&server, &["rest"], &[PORT])?;
    let _server = stage.sidecar(&server, "server")?;
    let mut sidecar = stage.sidecar(&client, "client")?;
    sidecar.wait_until_known(place(&server, PORT))?;
    assert_eq!(get(client.namespace(), place(&server, PORT), "/api")?.status(), 200);

    // A container that starts again has lost its keys and has its pod's token: nobody is needed.
    sidecar.restart()?;
    sidecar.wait_until_known(place(&server, PORT))?;
    assert_eq!(get(client.namespace(), place(&server, PORT), "/api")?.status(), 200);
    let proxies = stage.mesh.proxies()?;
    assert_eq!(proxies.len(), 2, "a pod is one instance, however often it enrols: {proxies:?}");
    Ok(())
}

pub(super) fn token_that_proves_nothing_gets_no_identity() -> TestResult {
    let stage = Stage::new(&manifests())?;
    stage.until("accesspolicies", "access", "Accepted", "True", "")?;
    let from = stage.host.container("client")?;
    let pod = stage.pod("client");
    let enrolled = enrol(&stage, &from, "kubernetes", &token("client"))?;
    assert_eq!(enrolled, Ok("spiffe://site.example/app/host/client".to_owned()));

    let refused = |attestor: &str, evidence: &str| -> Result<(Code, String), Failure> {
        let (code, words) = enrol(&stage, &from, attestor, evidence)?.err().ok_or("it was enrolled")?;
        Ok((code, words.split(':').next().unwrap_or_default().to_owned()))
    };
    let denied = |code: &str| (Code::PermissionDenied, code.to_owned());
    assert_eq!(
        refused("kubernetes", "no-token")?,
        (Code::InvalidArgument, "attestation-malformed".to_owned())
    );
    assert_eq!(refused("docker", &token("client"))?, (Code::InvalidArgument, "attestor-unknown".to_owned()));
    assert_eq!(refused("kubernetes", &token("forged"))?, denied("attestation-refused"));
    // For the API server itself, as every pod has one; and for another mesh of the cluster.
    for (name, audience) in [("api", "https://kubernetes.default.svc"), ("other", "spiffe://other.example")] {
        stage.cluster.issue(&token(name), PodToken { audience: audience.to_owned(), ..pod.clone() });
        assert_eq!(refused("kubernetes", &token(name))?, denied("attestation-refused"));
    }
    stage.cluster.issue(&token("old"), PodToken { expired: true, ..pod.clone() });
    assert_eq!(refused("kubernetes", &token("old"))?, denied("attestation-refused"));
    // A pod of another namespace that says it is the same workload.
    let thief = PodToken {
        namespace: "other".to_owned(),
        uid: "0f0f0f0f-0000-4000-8000-00000000beef".to_owned(),
        ..pod.clone()
    };
    let mut copy = stage.cluster.object("pods", super::stage::NAMESPACE, &pod.pod).ok_or("no pod")?;
    (copy["metadata"]["namespace"], copy["metadata"]["uid"]) = ("other".into(), thief.uid.clone().into());
    stage.cluster.put(&copy);
    stage.cluster.issue(&token("thief"), thief);
    assert_eq!(refused("kubernetes", &token("thief"))?, denied("attestation-no-workload"));
    // A pod that has no place in the mesh.
    stage.pod("stranger");
    assert_eq!(refused("kubernetes", &token("stranger"))?, denied("attestation-no-workload"));
    // The pod is deleted, then another has its name.
    stage.cluster.remove("pods", super::stage::NAMESPACE, &pod.pod);
    assert_eq!(refused("kubernetes", &token("client"))?, denied("attestation-refused"));
    copy["metadata"]["namespace"] = super::stage::NAMESPACE.into();
    copy["metadata"]["uid"] = "0f0f0f0f-0000-4000-8000-00000000cafe".into();
    stage.cluster.put(&copy);
    assert_eq!(refused("kubernetes", &token("client"))?, denied("attestation-refused"));
    assert_eq!(audience(), "spiffe://site.example");
    Ok(())
}

pub(super) fn pod_whose_certificate_was_revoked_does_not_come_back() -> TestResult {
    let stage = Stage::new(&manifests())?;
    stage.until("accesspolicies", "access", "Accepted", "True", "")?;
    // What a sidecar's container sends is captured, so who tries again does it from elsewhere.
    let (container, elsewhere) = (stage.host.container("client")?, stage.host.container("elsewhere")?);
    let _sidecar = stage.sidecar(&container, "client")?;
    let instance = stage.mesh.proxies()?.first().map(|proxy| proxy.instance.clone()).ok_or("no proxy")?;
    stage.mesh.revoke(instance.parse::<Fingerprint>()?, "stolen")?;
    let refused = enrol(&stage, &elsewhere, "kubernetes", &token("client"))?;
    assert!(
        refused
            .as_ref()
            .is_err_and(|(code, words)| *code == Code::PermissionDenied && words.starts_with("revoked:")),
        "{refused:?}"
    );
    // An operator deletes the pod; the one in its place is another.
    stage.cluster.remove("pods", super::stage::NAMESPACE, "client-7d9f8b6c5-x2x4z");
    let mut pod = stage.pod("client");
    pod.uid = "0f0f0f0f-0000-4000-8000-00000000beef".to_owned();
    let mut object = stage.cluster.object("pods", super::stage::NAMESPACE, &pod.pod).ok_or("no pod")?;
    stage.cluster.remove("pods", super::stage::NAMESPACE, &pod.pod);
    object["metadata"]["uid"] = pod.uid.clone().into();
    stage.cluster.put(&object);
    stage.cluster.issue(&token("client"), pod);
    let enrolled = wait_for("the new pod to enrol", || {
        enrol(&stage, &elsewhere, "kubernetes", &token("client")).ok()?.ok()
    })?;
    assert_eq!(enrolled, "spiffe://site.example/app/host/client");
    Ok(())
}
