//! The operator's calls.

use signet_sync::proto::admin::explain_request::Question;
use signet_sync::proto::admin::{
    CreateTokenRequest, DeleteRequest, ExplainRequest, GetRequest, Hypothetical, RevokeRequest,
};
use tonic::Code;

use crate::harness::{Server, mesh, workload};

#[tokio::test]
async fn manifests_are_given_back_as_written_and_as_json() {
    let (_state, server) = mesh().await;
    server.apply(&workload("api")).await;
    let get = |kind: &str, name: &str| GetRequest { kind: kind.to_owned(), name: name.to_owned() };
    let mut operator = server.operator().await;
    let all = operator.get(get("", "")).await.unwrap().into_inner();
    assert_eq!(all.items.len(), 2);
    let one = operator.get(get("workload", "api")).await.unwrap().into_inner().items.remove(0);
    assert_eq!(one.yaml.trim(), workload("api").trim());
    let json: serde_json::Value = serde_json::from_str(&one.json).unwrap();
    assert_eq!(json["spec"]["network"], "edge");
    assert_eq!(operator.get(get("Workload", "none")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(operator.get(get("Wrkload", "")).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_manifest_others_need_cannot_be_deleted() {
    let (_state, server) = mesh().await;
    server.apply(&workload("api")).await;
    let delete = |kind: &str, name: &str| DeleteRequest {
        kind: kind.to_owned(),
        name: name.to_owned(),
        dry_run: false,
    };
    let mut operator = server.operator().await;
    let refused = operator.delete(delete("Mesh", "mesh")).await.unwrap().into_inner();
    assert!(!refused.diagnostics.is_empty() && refused.changes.is_empty());
    let deleted = operator.delete(delete("Workload", "api")).await.unwrap().into_inner();
    assert_eq!(deleted.changes.len(), 1);
    assert_eq!(operator.delete(delete("Workload", "api")).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_token_is_made_only_for_a_known_workload_and_network_within_bounds() {
    let (_state, server) = mesh().await;
    server.apply(&workload("api")).await;
    let mut operator = server.operator().await;
    let known = CreateTokenRequest { workload: "api".to_owned(), ..Default::default() };
    let created = operator.create_token(known.clone()).await.unwrap().into_inner();
    assert_eq!((created.network.as_str(), created.token.split('.').count()), ("edge", 3));
    let by_id = CreateTokenRequest { workload: created.spiffe_id, ..known.clone() };
    operator.create_token(by_id).await.unwrap();
    for (request, code) in [
        (CreateTokenRequest { workload: "none".to_owned(), ..known.clone() }, Code::NotFound),
        (CreateTokenRequest { network: "none".to_owned(), ..known.clone() }, Code::InvalidArgument),
        (CreateTokenRequest { uses: u32::MAX, ..known.clone() }, Code::InvalidArgument),
        (CreateTokenRequest { ttl_s: u64::MAX, ..known.clone() }, Code::InvalidArgument),
    ] {
        assert_eq!(operator.create_token(request).await.unwrap_err().code(), code);
    }
}

#[tokio::test]
async fn a_hypothetical_request_is_explained() {
    let (_state, server) = mesh().await;
    server.apply(&workload("api")).await;
    let question = Hypothetical {
        source: "spiffe://mesh.example/app/edge/other".to_owned(),
        destination: "api".to_owned(),
        port: 8080,
        method: "GET".to_owned(),
        path: "/".to_owned(),
        authority: "api.example".to_owned(),
        opaque: false,
    };
    let ask = |question| ExplainRequest { question: Some(Question::Hypothetical(question)) };
    let mut operator = server.operator().await;
    let answer = operator.explain(ask(question.clone())).await.unwrap().into_inner();
    let json: serde_json::Value = serde_json::from_str(&answer.json).unwrap();
    assert_eq!(json["decision"]["outcome"], "refused");
    assert!(!answer.text.is_empty());
    let unknown = Hypothetical { destination: "none".to_owned(), ..question.clone() };
    assert_eq!(operator.explain(ask(unknown)).await.unwrap_err().code(), Code::NotFound);
    let no_port = Hypothetical { port: 65_536, ..question };
    assert_eq!(operator.explain(ask(no_port)).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn nonsense_cannot_be_revoked() {
    let (_state, server) = mesh().await;
    let refusal = server.operator().await.revoke(RevokeRequest::default()).await.unwrap_err();
    assert_eq!(refusal.code(), Code::InvalidArgument);
}

#[test]
fn the_admin_socket_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let state = tempfile::tempdir().unwrap();
    let server = Server::start(state.path());
    let mode = std::fs::metadata(&server.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
