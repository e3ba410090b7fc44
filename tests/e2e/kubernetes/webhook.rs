//! Admission reviews as an API server sends them, and what it has to know for that.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use signet_cli::lab::mesh::intruder::{IntruderError, inside};
use signet_cli::lab::runner::TestResult;
use signet_identity::{authorities, outside_client_config};
use signet_inject::kubernetes::{Enrolment, Options, Owner, inject_pod};
use signet_sync::proto::admin::RotationTarget;
use signet_tests::manifest::{TRUST_DOMAIN, mesh, workload};
use signet_tests::{Failure, wait_for};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::stage::{NAMESPACE, SYSTEM, Stage};

const NAME: &str = "signet-control-plane.signet-system.svc";
const REVIEW: &str = include_str!("review.json");

/// What the API server has as `caBundle` of the webhook.
fn ca_bundle(stage: &Stage) -> Result<String, Failure> {
    wait_for("the webhook's caBundle", || {
        let webhook = stage.cluster.object("mutatingwebhookconfigurations", "", "signet-control-plane")?;
        let bundle = webhook["webhooks"][0]["clientConfig"]["caBundle"].as_str()?;
        String::from_utf8(BASE64_STANDARD.decode(bundle).ok()?).ok()
    })
}

/// Calls the webhook as the API server does: by this name, under its `caBundle`.
fn call(
    stage: &Stage,
    name: &'static str,
    method: Method,
    path: &'static str,
    body: Vec<u8>,
) -> Result<(StatusCode, Bytes), Failure> {
    let roots = authorities(&ca_bundle(stage)?)?;
    let address = SocketAddr::from((stage.host.ipv4(), 9443));
    let said = |error: &dyn std::error::Error| IntruderError::Message(error.to_string());
    Ok(inside(stage.host.namespace(), move || async move {
        let config = outside_client_config(roots, &[b"http/1.1"]).map_err(|error| said(&error))?;
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from(name).map_err(|error| said(&error))?;
        let stream = TlsConnector::from(std::sync::Arc::new(config)).connect(name, stream).await?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| said(&error))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "webhook")
            .header("content-type", "application/json");
        let request = request.body(Full::new(Bytes::from(body))).map_err(|error| said(&error))?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            Ok::<_, hyper::Error>((status, response.into_body().collect().await?.to_bytes()))
        };
        tokio::pin!(connection);
        tokio::select! {
            answered = exchange => answered.map_err(|error| said(&error)),
            ended = &mut connection => Err(IntruderError::Message(format!("the connection ended: {ended:?}"))),
        }
    })?)
}

fn review(stage: &Stage, review: &Value) -> Result<Value, Failure> {
    let (status, body) = call(stage, NAME, Method::POST, "/inject", review.to_string().into_bytes())?;
    assert_eq!(status, StatusCode::OK, "{body:?}");
    Ok(serde_json::from_slice(&body)?)
}

fn recorded() -> Result<Value, Failure> {
    let mut review: Value = serde_json::from_str(REVIEW)?;
    review["request"]["namespace"] = NAMESPACE.into();
    Ok(review)
}

fn manifests() -> [String; 1] {
    [mesh(&[])]
}

pub(super) fn webhook_gives_a_pod_what_the_injector_gives() -> TestResult {
    let stage = Stage::new(&manifests())?;
    let asked = recorded()?;
    let answer = review(&stage, &asked)?;
    let response = &answer["response"];
    assert_eq!(
        (&response["uid"], &response["allowed"]),
        (&asked["request"]["uid"], &json!(true)),
        "{answer}"
    );
    assert_eq!(response["patchType"], "JSONPatch");
    let patch = BASE64_STANDARD.decode(response["patch"].as_str().ok_or("no patch")?)?;
    let patch: json_patch::Patch = serde_json::from_slice(&patch)?;
    let mut patched = asked["request"]["object"].clone();
    json_patch::patch(&mut patched, &patch)?;

    let mut injected = asked["request"]["object"].clone();
    let options = Options {
        control_plane: format!("signet-control-plane.{SYSTEM}.svc:15012"),
        enrolment: Enrolment::ServiceAccount { trust_domain: TRUST_DOMAIN.to_owned() },
        network: "lan".to_owned(),
        ..Options::default()
    };
    inject_pod(&mut injected, Owner { kind: "Deployment", name: "cart" }, &options)?;
    assert_eq!(patched, injected);
    assert_eq!(patched["metadata"]["annotations"]["signet.mf2c-project.eu/workload"], "cart");

    // Reviewed again, as after another webhook: nothing more.
    let mut again = asked.clone();
    again["request"]["object"] = patched;
    let answer = review(&stage, &again)?;
    assert!(answer["response"]["allowed"] == true && answer["response"].get("patch").is_none(), "{answer}");
    // Out by its own wish, and where the control plane itself is.
    let mut out = asked.clone();
    out["request"]["object"]["metadata"]["annotations"]["signet.mf2c-project.eu/inject"] = "false".into();
    assert!(review(&stage, &out)?["response"].get("patch").is_none());
    let mut own = asked.clone();
    own["request"]["namespace"] = SYSTEM.into();
    assert!(review(&stage, &own)?["response"].get("patch").is_none());
    // Under no other name.
    assert!(call(&stage, "kubernetes.default.svc", Method::POST, "/inject", Vec::new()).is_err());
    Ok(())
}

pub(super) fn webhook_answers_what_is_malformed_with_what_is_wrong() -> TestResult {
    let stage = Stage::new(&manifests())?;
    let posted = |body: &str| call(&stage, NAME, Method::POST, "/inject", body.as_bytes().to_vec());
    for body in [
        "",
        "{",
        "[]",
        "null",
        &"[".repeat(100_000),
        r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#,
    ] {
        let (status, said) = posted(body)?;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{said:?}");
    }
    let (status, _) = posted(&" ".repeat(3 * 1024 * 1024 + 1))?;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(call(&stage, NAME, Method::GET, "/inject", Vec::new())?.0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(call(&stage, NAME, Method::POST, "/", Vec::new())?.0, StatusCode::NOT_FOUND);

    // What can be answered is answered: not allowed, and why.
    let refused = |change: &dyn Fn(&mut Value)| -> Result<String, Failure> {
        let mut asked = recorded()?;
        change(&mut asked["request"]);
        let answer = review(&stage, &asked)?;
        assert_eq!(
            (&answer["response"]["allowed"], &answer["response"]["uid"]),
            (&json!(false), &asked["request"]["uid"]),
            "{answer}"
        );
        Ok(answer["response"]["status"]["message"].as_str().ok_or("no message")?.to_owned())
    };
    let said = refused(&|request| {
        request["object"]["spec"]["containers"][0]["securityContext"] = json!({ "runAsUser": 1337 })
    })?;
    assert!(
        said.contains("runs as user 1337") && said.contains(".spec.containers[0].securityContext.runAsUser"),
        "{said}"
    );
    let said = refused(&|request| {
        request["object"]["metadata"]["annotations"] = json!({ "signet.mf2c-project.eu/injekt": "no" })
    })?;
    assert!(said.contains("there is no annotation"), "{said}");
    assert!(refused(&|request| request["object"] = json!({}))?.contains("spec"));
    assert!(refused(&|request| request["object"] = Value::Null)?.contains("no object"));
    assert!(refused(&|request| request["object"]["spec"] = json!([1]))?.contains("spec"));
    assert!(refused(&|request| request["namespace"] = Value::Null)?.contains("namespace"));
    Ok(())
}

pub(super) fn roots_are_where_the_cluster_looks_for_them_and_stay_so() -> TestResult {
    let stage = Stage::new(&manifests())?;
    let roots = ca_bundle(&stage)?;
    let published = |namespace: &str| {
        let map = stage.cluster.object("configmaps", namespace, "signet-roots")?;
        map["data"]["roots.pem"].as_str().map(str::to_owned)
    };
    assert_eq!(wait_for("the roots", || published(NAMESPACE))?, roots);
    assert_eq!(published("other"), None, "a namespace without the label has nothing of ours");
    // Another namespace gets the label.
    let mut other = stage.cluster.object("namespaces", "", "other").ok_or("no namespace")?;
    other["metadata"]["labels"] = json!({ "signet.mf2c-project.eu/injection": "enabled" });
    stage.cluster.put(&other);
    assert_eq!(wait_for("the roots in the other namespace", || published("other"))?, roots);
    // Somebody applies the manifests again, without a caBundle, and with another webhook before ours.
    let mut webhook = stage
        .cluster
        .object("mutatingwebhookconfigurations", "", "signet-control-plane")
        .ok_or("no webhook")?;
    let mut first = webhook["webhooks"][0].clone();
    first["name"] = "another.signet.mf2c-project.eu".into();
    webhook["webhooks"][0]["clientConfig"]["caBundle"] = Value::Null;
    webhook["webhooks"].as_array_mut().ok_or("no list")?.insert(0, first);
    stage.cluster.put(&webhook);
    wait_for("both caBundles", || {
        let webhook = stage.cluster.object("mutatingwebhookconfigurations", "", "signet-control-plane")?;
        let bundle = BASE64_STANDARD.encode(&roots);
        webhook["webhooks"]
            .as_array()?
            .iter()
            .all(|webhook| webhook["clientConfig"]["caBundle"] == bundle.as_str())
            .then_some(())
    })?;
    Ok(())
}

/// Whoever believes the mesh by its root goes on when that is another: the API server, and pods that start later.
pub(super) fn next_root_is_known_to_the_webhooks_caller_and_to_pods() -> TestResult {
    let stage = Stage::new(&[mesh(&[]), workload("server", &[])])?;
    stage.until("workloads", "server", "Accepted", "True", "")?;
    let old = ca_bundle(&stage)?;
    stage.mesh.rotate(RotationTarget::Root, false)?;
    let new = wait_for("the caBundle to be the next root alone", || {
        ca_bundle(&stage).ok().filter(|bundle| !bundle.contains(old.trim()))
    })?;
    assert_eq!(review(&stage, &recorded()?)?["response"]["allowed"], true);
    wait_for("the ConfigMap to be the same", || {
        let map = stage.cluster.object("configmaps", NAMESPACE, "signet-roots")?;
        (map["data"]["roots.pem"] == new.as_str()).then_some(())
    })?;
    let container = stage.host.container("server")?;
    let _sidecar = stage.sidecar(&container, "server")?;
    Ok(())
}

/// One of each kind, a pod that enrols, a namespace and a webhook: what is allowed and not needed by then is too much.
pub(super) fn rules_of_access_are_all_needed_and_enough() -> TestResult {
    use signet_tests::manifest::{
        egress_policy, federation, header_policy, normalization_policy, policy, protection_policy,
        role_appointer, role_grant, traffic_policy,
    };
    let manifests = [
        mesh(&[]),
        workload("server", &["ports: [{port: 8201, protocol: http}]"]),
        policy("access", "server", &[]),
        header_policy("headers", "server", &["peerHeader: x-peer"]),
        protection_policy("protection", "server", &["default: {level: private}"]),
        normalization_policy("normal", "server", &["rules: [{to: [{paths: [/**]}], path: [slashes]}]"]),
        traffic_policy("traffic", "server", &["timeouts: {request: 1s}"]),
        egress_policy("egress", "server", &["{cidrs: [192.0.2.0/24]}"]),
        federation(
            "shop",
            "shop.example",
            &["outbound: [{workloads: [server], to: [{identity: 'spiffe://shop.example/**'}]}]"],
        ),
        role_grant("grant", "server", "reader", "2126-03-31T18:00:00Z"),
        role_appointer("appointer", "reader", "{role: leader}", "{class: app}", "1h"),
    ];
    let stage = Stage::new(&manifests)?;
    for (plural, name) in [
        ("accesspolicies", "access"),
        ("egresspolicies", "egress"),
        ("federations", "shop"),
        ("headerpolicies", "headers"),
        ("meshes", "site"),
        ("normalizationpolicies", "normal"),
        ("protectionpolicies", "protection"),
        ("roleappointers", "appointer"),
        ("rolegrants", "grant"),
        ("trafficpolicies", "traffic"),
        ("workloads", "server"),
    ] {
        wait_for(&format!("a status of {plural}/{name}"), || {
            stage.cluster.condition(plural, name, "Accepted")
        })?;
    }
    let container = stage.host.container("server")?;
    let _sidecar = stage.sidecar(&container, "server")?;
    ca_bundle(&stage)?;
    wait_for("every rule to be of use", || stage.cluster.rules().unused().is_empty().then_some(()))
        .map_err(|_| format!("nobody needs: {:?}", stage.cluster.rules().unused()))?;
    assert_eq!(stage.cluster.refused(), []);
    Ok(())
}
