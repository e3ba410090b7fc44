//! Service-account tokens of pods, judged by the API server.
//!
//! `authentication.k8s.io/v1` TokenReview says whether a token is genuine, in time, for this mesh and of a pod that still
//! exists; the pod itself, which we read, says which workload of its namespace it is. A namespace never speaks for another:
//! the `device` of the Workload is the token's namespace.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use http::StatusCode;
use serde_json::{Value, json};
use signet_inject::kubernetes::{WORKLOAD_ANNOTATION, is_name};
use signet_policy::{PolicyModel, WorkloadModel};
use signet_sync::MAX_ATTESTATION_BYTES;
use tokio::sync::Semaphore;

use super::client::{Client, ClientError};
use crate::attest::{AttestError, Attested, Attestor, Shown};

/// Reviews at once: a namespace of pods that all start must not take the API server's time from others.
const REVIEWS_MAX: usize = 32;
/// How long a review waits for its turn; the proxy tries again.
const TURN: Duration = Duration::from_secs(3);
/// The longest name of a workload that is looked up; names of objects have as many bytes.
const NAME_MAX: usize = 253;
/// The longest uid; Kubernetes makes UUIDs.
const UID_MAX: usize = 64;

/// The claims of a token that is bound to a pod, as a review shows them.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// The attestor `kubernetes`.
pub(crate) struct Reviewer {
    client: Arc<Client>,
    audience: String,
    network: String,
    turns: Semaphore,
}

/// What a token says of its pod.
#[derive(Debug, Eq, PartialEq)]
struct Bound {
    namespace: String,
    account: String,
    pod: String,
    uid: String,
}

impl Reviewer {
    /// `audience` is what tokens must have been made for; only Workloads of `network` have pods.
    pub(crate) fn new(client: Arc<Client>, audience: String, network: String) -> Self {
        Self { client, audience, network, turns: Semaphore::new(REVIEWS_MAX) }
    }

    async fn review(&self, evidence: &[u8], model: &PolicyModel) -> Result<Attested, AttestError> {
        let token = token(evidence).ok_or(AttestError::Malformed)?;
        let turn = tokio::time::timeout(TURN, self.turns.acquire()).await;
        let _turn = turn.map_err(|_| AttestError::Busy)?.map_err(|_| AttestError::Busy)?;
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": { "token": token, "audiences": [self.audience] },
        });
        let answer = self.client.create("/apis/authentication.k8s.io/v1/tokenreviews", &review).await;
        let bound = bound(&answer.map_err(unavailable)?["status"], &self.audience)?;
        let path = format!("/api/v1/namespaces/{}/pods/{}", bound.namespace, bound.pod);
        let pod = match self.client.get(&path).await {
            Err(error) if error.is(StatusCode::NOT_FOUND) => return Err(AttestError::Gone),
            pod => pod.map_err(unavailable)?,
        };
        let name = name_of(&pod, &bound)?;
        let workload = workload(model, &self.network, &bound.namespace, name).ok_or_else(|| {
            AttestError::NoWorkload(format!(
                "pod {}/{}: declare one with `device: {}`, `workload: {name}` and `network: {}`",
                bound.namespace, bound.pod, bound.namespace, self.network
            ))
        })?;
        tracing::info!(
            namespace = bound.namespace, pod = bound.pod, account = bound.account, id = %workload.id, "attested"
        );
        Ok(Attested {
            id: workload.id.clone(),
            network: workload.network.clone(),
            holder: format!("kubernetes/{}", bound.uid),
            device: None,
        })
    }
}

impl Attestor for Reviewer {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn attest<'a>(
        &'a self,
        shown: Shown<'a>,
        model: &'a PolicyModel,
        _now: SystemTime,
    ) -> BoxFuture<'a, Result<Attested, AttestError>> {
        // A token of a pod is good for any connection, as long as it lives.
        Box::pin(self.review(shown.evidence, model))
    }
}

fn unavailable(error: ClientError) -> AttestError {
    tracing::warn!(%error, "a token cannot be reviewed");
    AttestError::Unavailable
}

/// Three parts in base64url: anything else need not be asked about.
fn token(evidence: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(evidence).ok().filter(|text| text.len() <= MAX_ATTESTATION_BYTES)?;
    let part = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    (text.split('.').count() == 3 && text.split('.').all(part)).then_some(text)
}

/// What the status of a review says.
fn bound(status: &Value, audience: &str) -> Result<Bound, AttestError> {
    if status["authenticated"] != true {
        return Err(AttestError::Refused);
    }
    // A server that knows nothing of audiences leaves them out, and the token may be for anybody.
    let audiences = status["audiences"].as_array().into_iter().flatten();
    if !audiences.into_iter().any(|found| found == audience) {
        return Err(AttestError::Audience);
    }
    let user = status["user"]["username"].as_str().unwrap_or_default();
    let account = user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let (namespace, account) = account.ok_or(AttestError::Unbound)?;
    let claim = |name: &str| match status["user"]["extra"][name].as_array().map(Vec::as_slice) {
        Some([only]) => only.as_str(),
        _ => None,
    };
    let (Some(pod), Some(uid)) = (claim(POD_NAME), claim(POD_UID)) else { return Err(AttestError::Unbound) };
    let safe = |text: &str, most: usize| {
        (1..=most).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
            && !text.starts_with('.')
    };
    if !is_name(namespace) || !safe(pod, NAME_MAX) || !safe(uid, UID_MAX) {
        return Err(AttestError::Unbound);
    }
    Ok(Bound {
        namespace: namespace.to_owned(),
        account: account.to_owned(),
        pod: pod.to_owned(),
        uid: uid.to_owned(),
    })
}

/// The last part of the identity, as the pod says it; the pod must be the token's own and must not have ended.
fn name_of<'p>(pod: &'p Value, bound: &Bound) -> Result<&'p str, AttestError> {
    let metadata = &pod["metadata"];
    let ended = matches!(pod["status"]["phase"].as_str(), Some("Failed" | "Succeeded"));
    if metadata["uid"] != bound.uid.as_str() || ended {
        return Err(AttestError::Gone);
    }
    // A part of an identity; whether there is a workload of that name is seen next.
    let part = |name: &&str| {
        let inside = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(inside)
    };
    let name = metadata["annotations"][WORKLOAD_ANNOTATION].as_str().filter(part);
    name.ok_or_else(|| {
        AttestError::NoWorkload(format!(
            "pod {}/{}: it has no annotation {WORKLOAD_ANNOTATION}, which injection writes",
            bound.namespace, bound.pod
        ))
    })
}

/// The one workload of that name in that namespace, of the cluster's network.
fn workload<'m>(
    model: &'m PolicyModel,
    network: &str,
    namespace: &str,
    name: &str,
) -> Option<&'m WorkloadModel> {
    let mut all = model.workloads.iter().filter(|workload| {
        let parts = workload.id.parts();
        workload.network == network
            && parts.is_some_and(|parts| parts.device == namespace && parts.workload == name)
    });
    // Two that differ in their class alone would leave the choice to nobody.
    all.next().filter(|_| all.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUDIENCE: &str = "spiffe://mesh.example";

    fn status() -> Value {
        json!({
            "authenticated": true,
            "audiences": [AUDIENCE],
            "user": {
                "username": "system:serviceaccount:shop:cart",
                "extra": { POD_NAME: ["cart-7d9f8-x2x4z"], POD_UID: ["2d6f2a6e-0000-4000-8000-000000000001"] },
            },
        })
    }

    fn changed(pointer: &str, value: Value) -> Value {
        let mut status = status();
        *status.pointer_mut(pointer).unwrap() = value;
        status
    }

    fn code(status: &Value) -> &'static str {
        bound(status, AUDIENCE).unwrap_err().code()
    }

    #[test]
    fn a_token_of_a_pod_names_its_namespace_and_its_pod() {
        let found = bound(&status(), AUDIENCE).unwrap();
        assert_eq!((found.namespace.as_str(), found.account.as_str()), ("shop", "cart"));
        assert_eq!((found.pod.as_str(), found.uid.len()), ("cart-7d9f8-x2x4z", 36));
    }

    #[test]
    fn tokens_that_are_not_authentic_not_ours_or_not_of_a_pod_are_refused_by_name() {
        assert_eq!(code(&changed("/authenticated", json!(false))), "attestation-refused");
        assert_eq!(code(&changed("/authenticated", json!("true"))), "attestation-refused");
        assert_eq!(code(&json!(null)), "attestation-refused");
        assert_eq!(
            code(&changed("/audiences", json!(["https://kubernetes.default.svc"]))),
            "attestation-audience"
        );
        assert_eq!(code(&changed("/audiences", json!(null))), "attestation-audience");
        for user in ["system:node:n1", "system:serviceaccount:shop", "system:serviceaccount:../x:y", ""] {
            assert_eq!(code(&changed("/user/username", json!(user))), "attestation-unbound", "{user}");
        }
        for (claim, value) in [
            (POD_NAME, json!(["a", "b"])),
            (POD_NAME, json!([])),
            (POD_NAME, json!(["../secrets/x"])),
            (POD_UID, json!("text")),
            (POD_UID, json!(["x".repeat(65)])),
        ] {
            let mut status = status();
            status["user"]["extra"][claim] = value;
            assert_eq!(code(&status), "attestation-unbound", "{claim}");
        }
    }

    #[test]
    fn what_is_no_token_is_not_asked_about() {
        assert_eq!(token(b"aa.bb_-.c9"), Some("aa.bb_-.c9"));
        for evidence in [&b""[..], b"a.b", b"a.b.c.d", b"a..c", b"a.b.c\n", b"a.b c.d", b"\xff.b.c"] {
            assert_eq!(token(evidence), None);
        }
        assert_eq!(token(format!("a.b.{}", "c".repeat(MAX_ATTESTATION_BYTES)).as_bytes()), None);
    }

    #[test]
    fn a_pod_that_was_replaced_or_has_ended_is_gone() {
        let bound = bound(&status(), AUDIENCE).unwrap();
        let pod = |uid: &str, phase: &str| {
            json!({
                "metadata": { "uid": uid, "annotations": { WORKLOAD_ANNOTATION: "cart" } },
                "status": { "phase": phase },
            })
        };
        assert_eq!(name_of(&pod(&bound.uid, "Pending"), &bound).unwrap(), "cart");
        assert_eq!(name_of(&pod("other", "Running"), &bound).unwrap_err().code(), "attestation-gone");
        assert_eq!(name_of(&pod(&bound.uid, "Succeeded"), &bound).unwrap_err().code(), "attestation-gone");
        let unnamed = json!({ "metadata": { "uid": bound.uid } });
        assert_eq!(name_of(&unnamed, &bound).unwrap_err().code(), "attestation-no-workload");
    }

    #[test]
    fn a_namespace_speaks_for_its_own_workloads_of_the_clusters_network_alone() {
        let yaml = "apiVersion: signet.mf2c-project.eu/v1alpha1\nkind: Mesh\nmetadata: {name: m}\n\
             spec: {trustDomain: mesh.example, networks: [{name: cluster}, {name: edge}]}\n";
        let of = |name: &str, class: &str, device: &str, network: &str| {
            format!(
                "---\napiVersion: signet.mf2c-project.eu/v1alpha1\nkind: Workload\nmetadata: {{name: {name}}}\n\
             spec: {{class: {class}, device: {device}, workload: cart, network: {network}}}\n"
            )
        };
        let yaml = yaml.to_owned()
            + &of("a", "app", "shop", "cluster")
            + &of("b", "app", "bank", "edge")
            + &of("c", "app", "two", "cluster")
            + &of("d", "agent", "two", "cluster");
        let model =
            signet_policy::compile(&signet_policy::parse_manifests("m.yaml", &yaml).unwrap()).unwrap();
        let found =
            |namespace| workload(&model, "cluster", namespace, "cart").map(|found| found.name.as_str());
        assert_eq!(found("shop"), Some("a"));
        assert_eq!(found("bank"), None, "of another network");
        assert_eq!(found("two"), None, "nobody says which");
        assert_eq!(found("else"), None);
        assert_eq!(workload(&model, "cluster", "shop", "other").map(|found| &found.name), None);
    }
}
