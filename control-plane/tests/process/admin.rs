//! The operator's calls.

use signet_sync::proto::admin::explain_request::Question;
use signet_sync::proto::admin::{
    ApplyRequest, CreateTokenRequest, DeleteRequest, ExplainRequest, GetRequest, Header, HistoryRequest,
    Hypothetical, ManifestFile, RevokeRequest, RollbackRequest,
};
use signet_sync::proto::sync as wire;
use signet_sync::proto::sync::control_message::Message as Down;
use signet_sync::proto::sync::proxy_message::Message as Up;
use tonic::Code;

use crate::harness::{MESH, Server, hello, mesh, workload};

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
        ..Hypothetical::default()
    };
    let ask = |question| ExplainRequest { question: Some(Question::Hypothetical(question)) };
    let mut operator = server.operator().await;
    let answer = operator.explain(ask(question.clone())).await.unwrap().into_inner();
    let json: serde_json::Value = serde_json::from_str(&answer.json).unwrap();
    assert_eq!(json["decision"]["outcome"], "refused");
    assert!(!answer.text.is_empty());
    let unknown = Hypothetical { destination: "none".to_owned(), ..question.clone() };
    assert_eq!(operator.explain(ask(unknown)).await.unwrap_err().code(), Code::NotFound);
    let no_port = Hypothetical { port: 65_536, ..question.clone() };
    assert_eq!(operator.explain(ask(no_port)).await.unwrap_err().code(), Code::InvalidArgument);
    let nowhere = Hypothetical { source_address: "here".to_owned(), ..question.clone() };
    assert_eq!(operator.explain(ask(nowhere)).await.unwrap_err().code(), Code::InvalidArgument);

    // Under conditions.
    let rule = "{from: [{any: authenticated}], to: [{headers: [{name: x-a, exact: b}]}], \
                when: {sourceAddresses: [10.0.0.0/8], time: [{days: [mon]}]}}";
    server.apply(&policy("conditional", rule)).await;
    let met = Hypothetical {
        headers: vec![Header { name: "X-A".to_owned(), value: "b".to_owned() }],
        source_address: "10.1.1.1".to_owned(),
        // A Monday.
        at: 1_772_452_800,
        ..question
    };
    let outcome = async |question| {
        let answer = server.operator().await.explain(ask(question)).await.unwrap().into_inner();
        let json: serde_json::Value = serde_json::from_str(&answer.json).unwrap();
        json["decision"]["outcome"].as_str().unwrap().to_owned()
    };
    assert_eq!(outcome(met.clone()).await, "allowed");
    assert_eq!(outcome(Hypothetical { headers: Vec::new(), ..met.clone() }).await, "refused");
    assert_eq!(
        outcome(Hypothetical { source_address: "192.0.2.1".to_owned(), ..met.clone() }).await,
        "refused"
    );
    assert_eq!(outcome(Hypothetical { at: met.at + 86_400, ..met }).await, "refused");
}

/// A policy for workload `api` with these rules.
fn policy(name: &str, rules: &str) -> String {
    format!(
        "apiVersion: signet.mf2c-project.eu/v1alpha1\nkind: AccessPolicy\nmetadata: {{ name: {name} }}\nspec:\n  \
         target: {{ workloads: [api] }}\n  rules: [{rules}]\n"
    )
}

const ANYBODY: &str = "{ from: [{ any: authenticated }] }";

#[tokio::test]
async fn every_change_has_a_version_and_can_be_undone() {
    let (_state, server) = mesh().await;
    let mut operator = server.operator().await;
    let first = server.apply(&workload("api")).await.version;
    let second = server.apply(&policy("open", ANYBODY)).await;
    assert_eq!(second.version, first + 1);
    let third = server.apply(&policy("open", "")).await;
    let [change] = third.changes.as_slice() else { panic!("{third:?}") };
    let lines: Vec<&str> = change.diff.lines().filter(|line| !line.starts_with(' ')).collect();
    assert_eq!(lines, ["-  rules: [{ from: [{ any: authenticated }] }]", "+  rules: []"]);
    // What changes nothing is no version.
    assert_eq!(server.apply(&policy("open", "")).await.version, third.version);

    let text = async |name: &str| {
        let get = GetRequest { kind: "AccessPolicy".to_owned(), name: name.to_owned() };
        server.operator().await.get(get).await.map(|got| got.into_inner().items.remove(0).yaml)
    };
    let back = |version, dry_run| RollbackRequest { version, dry_run };
    let dry = operator.rollback(back(None, true)).await.unwrap().into_inner();
    assert_eq!((dry.version, dry.changes.len()), (third.version, 1));
    assert_eq!(text("open").await.unwrap(), policy("open", ""), "a dry run changes nothing");

    let undone = operator.rollback(back(None, false)).await.unwrap().into_inner();
    assert_eq!((undone.version, undone.diagnostics.len()), (third.version + 1, 0));
    assert_eq!(text("open").await.unwrap(), policy("open", ANYBODY));
    // An undo can be undone, and several changes at once.
    operator.rollback(back(Some(first), false)).await.unwrap();
    assert_eq!(text("open").await.unwrap_err().code(), Code::NotFound);
    operator.rollback(back(Some(third.version), false)).await.unwrap();
    assert_eq!(text("open").await.unwrap(), policy("open", ""));
    let delete = DeleteRequest { kind: "AccessPolicy".to_owned(), name: "open".to_owned(), dry_run: false };
    operator.delete(delete).await.unwrap();
    operator.rollback(back(None, false)).await.unwrap();
    assert_eq!(text("open").await.unwrap(), policy("open", ""));

    let history = operator.history(HistoryRequest {}).await.unwrap().into_inner().versions;
    let numbers: Vec<u64> = history.iter().map(|version| version.version).collect();
    let newest = third.version + 5;
    assert_eq!(numbers, (1..=newest).rev().collect::<Vec<_>>());
    assert_eq!((history[0].changes[0].name.as_str(), history[0].more), ("open", 0));
    for gone in [Some(newest + 1), Some(u64::MAX)] {
        assert_eq!(operator.rollback(back(gone, false)).await.unwrap_err().code(), Code::NotFound);
    }
    // Before the first version there was nothing.
    let emptied = operator.rollback(back(Some(0), false)).await.unwrap().into_inner();
    assert!(emptied.diagnostics.is_empty() && emptied.changes.len() == 3, "{emptied:?}");
}

#[tokio::test]
async fn only_the_latest_versions_are_kept() {
    let (_state, server) = mesh().await;
    server.apply(&workload("api")).await;
    for number in 0..55 {
        server
            .apply(&policy("open", &format!("{{ name: r{number}, from: [{{ any: authenticated }}] }}")))
            .await;
    }
    let mut operator = server.operator().await;
    let versions = operator.history(HistoryRequest {}).await.unwrap().into_inner().versions;
    let (newest, oldest) = (versions[0].version, versions.last().unwrap().version);
    assert_eq!((versions.len(), newest - oldest), (50, 49));
    let back = |version| RollbackRequest { version: Some(version), dry_run: true };
    assert!(operator.rollback(back(oldest - 1)).await.is_ok());
    assert_eq!(operator.rollback(back(oldest - 2)).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_role_that_is_over_is_noted_and_stored() {
    let (_state, server) = mesh().await;
    let grant = |end: &str| {
        format!(
            "apiVersion: signet.mf2c-project.eu/v1alpha1\nkind: RoleGrant\nmetadata: {{ name: g }}\nspec: {{ identity: \
             spiffe://mesh.example/app/edge/api, role: leader, notAfter: {end} }}\n"
        )
    };
    assert!(server.apply(&grant("2100-01-01T00:00:00Z")).await.notes.is_empty());
    let [note] = server.apply(&grant("2020-01-01T00:00:00Z")).await.notes.try_into().unwrap();
    assert!(note.message.contains("RoleGrant g is over already"), "{note:?}");
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

#[tokio::test]
async fn a_workload_behind_a_gateway_without_addresses_is_noted_and_stored() {
    let (_state, server) = mesh().await;
    assert!(server.apply(&workload("api")).await.notes.is_empty());
    let gateways = MESH.replace("127.0.0.0/8] }", "127.0.0.0/8], gateways: [127.0.0.9] }");
    let [note] = server.apply(&gateways).await.notes.try_into().unwrap();
    assert!(
        note.message.contains("Workload api lists no addresses") && note.fix.contains("addresses"),
        "{note:?}"
    );
    let [note] = server.apply(&workload("web")).await.notes.try_into().unwrap();
    assert_eq!((note.file.as_str(), note.line), ("test.yaml", 3));
    let listed = workload("web").replace("network: edge", "network: edge, addresses: [127.0.0.6]");
    assert!(server.apply(&listed).await.notes.is_empty());
}

#[tokio::test]
async fn nothing_a_proxy_says_moves_the_operators_cursor() {
    let (_state, server) = mesh().await;
    let proxy = server.proxy("api").await;
    let evil = "\u{1b}[2J\u{9b}1m\r\u{202e}x";
    let hello = wire::Hello { version: evil.to_owned(), ..hello() };
    let mut stream = proxy.hello(server.control, "127.0.0.5", hello).await.unwrap();
    let section = loop {
        if let Some(Down::Section(section)) = stream.down.message().await.unwrap().unwrap().message {
            break section;
        }
    };
    let (name, code, error) = (section.name, evil.to_owned(), evil.to_owned());
    stream
        .send(Up::Nack(wire::Nack { name, epoch: section.epoch, counter: section.counter, code, error }))
        .await;
    let shown = loop {
        let shown = server.proxies().await.remove(0);
        if !shown.last_nack.is_empty() {
            break shown;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(shown.version, "[2J1mx");
    assert!(shown.last_nack.ends_with(": [2J1mx: [2J1mx"), "{:?}", shown.last_nack);
    let mut operator = server.operator().await;
    let asking = tokio::spawn(async move {
        let question = Some(Question::RequestId("r-1".to_owned()));
        operator.explain(ExplainRequest { question }).await
    });
    let query = loop {
        // Raw messages: the first section was refused, so a subscriber would believe none.
        if let Some(Down::ExplainQuery(query)) = stream.down.message().await.unwrap().unwrap().message {
            break query;
        }
    };
    let json = "[{\"request_id\":\"r-1\",\"direction\":\"inbound\",\"path\":\"\\u009b\u{9b}b\"}]".to_owned();
    stream.send(Up::ExplainAnswer(wire::ExplainAnswer { query_id: query.query_id, json })).await;
    let answer = asking.await.unwrap().unwrap().into_inner();
    let json: serde_json::Value = serde_json::from_str(&answer.json).unwrap();
    assert_eq!(json["proxies"][0]["answer"][0]["path"], "b", "{json}");
    assert!(!answer.text.chars().any(|character| character.is_control() && character != '\n'));
}

#[tokio::test]
async fn everything_that_a_mesh_may_hold_is_rolled_back_in_one_step() {
    let state = tempfile::tempdir().unwrap();
    let server = Server::start(state.path());
    let head = "apiVersion: signet.mf2c-project.eu/v1alpha1\nkind: ";
    let workloads = (0..10_000).map(|number| {
        format!(
            "{head}Workload\nmetadata: {{name: w{number}}}\nspec: {{class: app, device: d, network: lan}}\n"
        )
    });
    let roles = (0..10_000).map(|number| {
        format!(
            "{head}RoleGrant\nmetadata: {{name: r{number}}}\nspec: {{identity: 'spiffe://mesh.example/app/d/w{number}', \
             role: r, notAfter: 2099-01-01T00:00:00Z}}\n"
        )
    });
    let documents: Vec<String> = std::iter::once(MESH.to_owned()).chain(workloads).chain(roles).collect();
    // A file has its own limits.
    let files = documents.chunks(4_000).enumerate().map(|(number, documents)| ManifestFile {
        name: format!("{number}.yaml"),
        text: documents.join("---\n"),
    });
    let mut operator = server.operator().await;
    let applied = operator.apply(ApplyRequest { files: files.collect(), dry_run: false }).await.unwrap();
    let applied = applied.into_inner();
    assert!(applied.diagnostics.is_empty(), "{:?}", applied.diagnostics);
    assert_eq!((applied.version, applied.changes.len()), (1, 20_001));
    let held = async || {
        let all = server.operator().await.get(GetRequest::default()).await.unwrap().into_inner();
        all.items.len()
    };
    for (version, expected) in [(Some(0), 0), (None, 20_001)] {
        let rolled =
            operator.rollback(RollbackRequest { version, dry_run: false }).await.unwrap().into_inner();
        assert!(rolled.diagnostics.is_empty(), "{:?}", rolled.diagnostics);
        assert_eq!(rolled.changes.len(), 20_001);
        assert_eq!(held().await, expected);
    }
}
