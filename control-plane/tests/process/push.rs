//! What proxies are sent, and what they answer.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;
use signet_policy::PolicyModel;
use signet_sync::proto::admin::explain_request::Question;
use signet_sync::proto::admin::{ApplyRequest, ExplainRequest, ListEdgesRequest, ManifestFile};
use signet_sync::proto::sync as wire;
use signet_sync::proto::sync::control_client::ControlClient;
use signet_sync::proto::sync::control_message::Message as Down;
use signet_sync::proto::sync::proxy_message::Message as Up;
use signet_sync::proto::sync::{Edge, ExplainAnswer, Nack, Status, edge};
use signet_sync::{ACK_TIMEOUT, SectionName, Subscriber};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Endpoint;

use crate::harness::{Stream, counter, dial_by, enrol, hello, mesh, workload};

fn model(subscriber: &Subscriber) -> Option<&PolicyModel> {
    subscriber.policy().map(|policy| &*policy.model)
}

#[tokio::test]
async fn a_change_reaches_a_connected_proxy_signed_and_versioned() {
    let (_state, server) = mesh().await;
    let proxy = server.proxy("api").await;
    let mut stream = proxy.connect(server.control, "127.0.0.5").await;
    stream.until(|subscriber| model(subscriber).is_some()).await;
    let before = counter(&server.info().await, &SectionName::Policy);
    server.apply(&workload("web")).await;
    assert_eq!(counter(&server.info().await, &SectionName::Policy), before + 1);
    stream.until(|subscriber| model(subscriber).unwrap().workload_named("web").is_some()).await;
}

#[tokio::test]
async fn applying_the_same_again_changes_nothing() {
    let (_state, server) = mesh().await;
    let first = server.apply(&workload("api")).await;
    let info = server.info().await;
    let second = server.apply(&workload("api")).await;
    assert_eq!(first.revision, second.revision);
    assert_eq!(info.sections, server.info().await.sections);
}

#[tokio::test]
async fn an_invalid_apply_stores_nothing_and_names_file_line_and_fix() {
    let (_state, server) = mesh().await;
    let before = server.info().await;
    let good = ManifestFile { name: "good.yaml".to_owned(), text: workload("api") };
    let unknown_field = workload("web").replace("class: app", "class: app, colour: red");
    let bad = ManifestFile { name: "bad.yaml".to_owned(), text: unknown_field };
    let request = ApplyRequest { files: vec![good, bad], dry_run: false };
    let response = server.operator().await.apply(request).await.unwrap().into_inner();
    let [diagnostic] = response.diagnostics.as_slice() else { panic!("{response:?}") };
    assert_eq!((diagnostic.file.as_str(), diagnostic.line), ("bad.yaml", 4));
    assert!(!diagnostic.message.is_empty() && !diagnostic.fix.is_empty());
    assert!(response.changes.is_empty());
    assert_eq!(server.info().await.sections, before.sections);
    assert_eq!(server.info().await.revision, before.revision);
}

#[tokio::test]
async fn a_dry_run_tells_and_stores_nothing() {
    let (_state, server) = mesh().await;
    let before = server.info().await;
    let file = ManifestFile { name: "a.yaml".to_owned(), text: workload("api") };
    let request = ApplyRequest { files: vec![file], dry_run: true };
    let response = server.operator().await.apply(request).await.unwrap().into_inner();
    assert_eq!(response.changes.len(), 1);
    assert_eq!(server.info().await.revision, before.revision);
}

#[tokio::test]
async fn another_trust_domain_is_refused() {
    let (_state, server) = mesh().await;
    let foreign = crate::harness::MESH.replace("mesh.example", "other.example");
    let response = server.try_apply(&foreign).await.unwrap();
    assert!(response.diagnostics[0].message.contains("mesh.example"), "{response:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_changes_is_coalesced_and_ends_on_the_last() {
    let (_state, server) = mesh().await;
    let proxy = server.proxy("api").await;
    let mut stream = proxy.connect(server.control, "127.0.0.5").await;
    stream.until(|subscriber| model(subscriber).is_some()).await;
    for number in 0..40 {
        server.apply(&workload("web").replace("web.example", &format!("web-{number}.example"))).await;
    }
    let last = ["web-39.example".to_owned()];
    stream
        .until(|subscriber| {
            model(subscriber).unwrap().workload_named("web").is_some_and(|web| web.names == last)
        })
        .await;
    let sent = stream.subscriber.versions().find(|(name, _)| **name == SectionName::Policy).unwrap().1;
    assert_eq!(sent.counter, counter(&server.info().await, &SectionName::Policy));
}

#[tokio::test]
async fn a_refusal_by_a_proxy_is_shown_to_the_operator() {
    let (_state, server) = mesh().await;
    let proxy = server.proxy("api").await;
    let mut stream = proxy.connect(server.control, "127.0.0.5").await;
    // Raw messages: the subscriber would accept it.
    let section = loop {
        let message = stream.down.message().await.unwrap().unwrap().message;
        if let Some(Down::Section(section)) = message {
            break section;
        }
    };
    stream
        .send(Up::Nack(Nack {
            name: section.name,
            epoch: section.epoch,
            counter: section.counter,
            code: "malformed-payload".to_owned(),
            error: "no".repeat(10_000),
        }))
        .await;
    stream.send(Up::Status(Status { unix_ms: 1, open_connections: 7, ..Default::default() })).await;
    let shown = loop {
        let shown = server.proxies().await.remove(0);
        if shown.status.is_some() && !shown.last_nack.is_empty() {
            break shown;
        }
        tokio::task::yield_now().await;
    };
    assert!(shown.last_nack.contains("malformed-payload") && shown.last_nack.len() < 3_000);
    let status = shown.status.unwrap();
    assert_eq!(status.open_connections, 7);
    assert!(status.clock_offset_ms > 1_000_000);
    assert!(shown.connected);
}

#[tokio::test]
async fn edges_of_replicas_are_one_and_the_reporting_end_is_who_it_proved_to_be() {
    let (_state, server) = mesh().await;
    let first = server.proxy("api").await;
    let second = enrol(server.control, &server.token("api", 1).await).await.unwrap();
    let other = server.proxy("web").await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let seen = |end: edge::End, last_seen_ms: u64| Edge {
        end: Some(end),
        port: 80,
        plaintext: 2,
        last_seen_ms,
        ..Default::default()
    };
    let caller = edge::End::CallerAddress(vec![192, 0, 2, 7]);
    let outside = edge::End::OutsideAddress(vec![198, 51, 100, 1]);
    let unreadable = Edge { end: None, ..seen(caller.clone(), now) };
    let mut streams = Vec::new();
    for (proxy, source, edges, edges_lost) in [
        (&first, "127.0.0.5", vec![seen(caller.clone(), now - 9_000), unreadable], 3),
        (&second, "127.0.0.6", vec![seen(caller.clone(), now - 5_000)], 0),
        (&other, "127.0.0.7", vec![seen(outside, now)], 0),
    ] {
        let stream = proxy.connect(server.control, source).await;
        stream.send(Up::Status(Status { unix_ms: now, edges, edges_lost, ..Default::default() })).await;
        streams.push(stream);
    }
    while server.proxies().await.iter().any(|proxy| proxy.status.is_none()) {
        tokio::task::yield_now().await;
    }
    let shown = server.operator().await.list_edges(ListEdgesRequest {}).await.unwrap().into_inner();
    let ends: Vec<_> =
        shown.edges.iter().map(|e| (e.source.as_str(), e.destination.as_str(), e.plaintext)).collect();
    let (api, web) = (first.id().to_string(), other.id().to_string());
    assert_eq!(ends, [(web.as_str(), "198.51.100.1", 2), ("192.0.2.7", api.as_str(), 4)]);
    assert!(shown.edges[1].last_seen_ms >= now - 5_000, "the later of the two");
    assert_eq!(shown.lost, 4, "three that the proxy lost, and one that cannot be read");
}

#[tokio::test]
async fn a_past_request_is_explained_by_the_proxies_that_remember_it() {
    let (_state, server) = mesh().await;
    let knowing = server.proxy("api").await;
    let forgetful = server.proxy("web").await;
    let mut knowing = knowing.connect(server.control, "127.0.0.5").await;
    let mut forgetful = forgetful.connect(server.control, "127.0.0.6").await;
    knowing.until(|subscriber| model(subscriber).is_some()).await;
    forgetful.until(|subscriber| model(subscriber).is_some()).await;
    let mut operator = server.operator().await;
    let asking = tokio::spawn(async move {
        let question = Some(Question::RequestId("r-1".to_owned()));
        operator.explain(ExplainRequest { question }).await
    });
    let known =
        json!([{ "request_id": "r-1", "direction": "inbound", "refused": "access-denied" }]).to_string();
    for (stream, json) in [(&mut knowing, &*known), (&mut forgetful, "")] {
        assert_eq!(tell(stream, json).await, "r-1");
    }
    let answer = asking.await.unwrap().unwrap().into_inner();
    let json: serde_json::Value = serde_json::from_str(&answer.json).unwrap();
    assert_eq!(json["proxies"].as_array().unwrap().len(), 1);
    assert_eq!(json["proxies"][0]["answer"][0]["refused"], "access-denied");
    assert_eq!(json["decision"]["outcome"], "refused");
}

/// Answers the next question about a request, and tells which one it was about.
async fn tell(stream: &mut Stream, json: &str) -> String {
    let query = loop {
        if let Some(Down::ExplainQuery(query)) = stream.next().await.unwrap() {
            break query;
        }
    };
    let answer = ExplainAnswer { query_id: query.query_id, json: json.to_owned() };
    stream.send(Up::ExplainAnswer(answer)).await;
    query.request_id
}

#[tokio::test]
async fn a_proxy_speaks_for_itself_alone_about_a_past_request() {
    let (_state, server) = mesh().await;
    let (ends, mut streams) = (["api", "web", "liar"], Vec::new());
    for (name, address) in ends.iter().zip(["127.0.0.5", "127.0.0.6", "127.0.0.7"]) {
        let mut stream = server.proxy(name).await.connect(server.control, address).await;
        stream.until(|subscriber| model(subscriber).is_some()).await;
        streams.push(stream);
    }
    let [api, web, liar] = ends.map(|name| format!("spiffe://mesh.example/app/edge/{name}"));
    let record = |direction: &str, peer: &str, refused: &str, more: serde_json::Value| {
        let mut record =
            json!({ "request_id": "r-1", "direction": direction, "peer": peer, "refused": refused });
        record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        record
    };
    let explained = async |streams: &mut [Stream], answers: [serde_json::Value; 3]| {
        let mut operator = server.operator().await;
        let asking = tokio::spawn(async move {
            let question = Some(Question::RequestId("r-1".to_owned()));
            operator.explain(ExplainRequest { question }).await
        });
        for (stream, answer) in streams.iter_mut().zip(answers) {
            let text = if answer.is_null() { String::new() } else { answer.to_string() };
            tell(stream, &text).await;
        }
        let answer = asking.await.unwrap().unwrap().into_inner();
        (serde_json::from_str::<serde_json::Value>(&answer.json).unwrap(), answer.text)
    };
    // The two ends, and a third that says it was the one: what it says stands there as its own, and leads nothing.
    let from_web = record("inbound", &web, "", json!({ "source": web, "destination": api }));
    let to_api = record("outbound", &api, "", json!({ "source": web, "destination": api }));
    for lie in [record("inbound", &web, "replay", json!({})), record("inbound", "", "replay", json!({}))] {
        let answers = [json!([from_web]), json!([to_api]), json!([lie])];
        let (json, text) = explained(&mut streams, answers).await;
        assert_eq!(json["decision"]["outcome"], "allowed", "{json:#}");
        assert!(text.contains(&format!("at {liar}: ")), "{text}");
        let told = json["proxies"].as_array().unwrap().iter().find(|proxy| proxy["spiffeId"] == *liar);
        let told = &told.unwrap()["answer"][0];
        assert_eq!((&told["refused"], &told["disputed"]), (&"replay".into(), &(lie["peer"] == *web).into()));
    }
    // In another's name it says nothing.
    let as_api = record("inbound", &web, "replay", json!({ "source": web, "destination": api }));
    let (json, text) = explained(&mut streams, [json!([from_web]), json!([to_api]), json!([as_api])]).await;
    assert_eq!(json["decision"]["outcome"], "allowed", "{json:#}");
    assert!(!json.to_string().contains("replay"), "{json:#}");
    assert!(text.contains(&format!("dropped from what {liar} says: a record of an exchange")), "{text}");
    // Nor is that an answer where nobody else has one.
    let (json, _) = explained(&mut streams, [json!(null), json!(null), json!([as_api])]).await;
    assert_eq!(json["decision"]["outcome"], "unknown", "{json:#}");
}

#[tokio::test]
async fn a_request_nobody_remembers_is_not_found() {
    let (_state, server) = mesh().await;
    let question = Some(Question::RequestId("r-0".to_owned()));
    let refusal = server.operator().await.explain(ExplainRequest { question }).await.unwrap_err();
    assert_eq!(refusal.code(), Code::NotFound);
}

#[tokio::test]
async fn only_the_newest_streams_of_an_instance_are_kept() {
    let (_state, server) = mesh().await;
    let proxy = server.proxy("api").await;
    let mut streams = Vec::new();
    for _ in 0..5 {
        let mut stream = proxy.connect(server.control, "127.0.0.5").await;
        stream.until(|subscriber| model(subscriber).is_some()).await;
        streams.push(stream);
    }
    loop {
        match streams[0].next().await.unwrap() {
            Some(Down::Goaway(goaway)) => break assert_eq!(goaway.reason, "superseded"),
            Some(_) => {}
            None => panic!("ended without a word"),
        }
    }
    assert_eq!(server.proxies().await.len(), 1);
    server.apply(&workload("web")).await;
    streams[4].until(|subscriber| model(subscriber).unwrap().workload_named("web").is_some()).await;
}

/// Anchors, revocations, policy, and the directory of its network.
const SECTIONS: usize = 4;

/// It answers pings, as HTTP/2 does by itself, so its connection is as alive as any.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_gives_no_room_for_what_it_is_sent_loses_its_stream() {
    let (_state, server) = mesh().await;
    let proxy = server.proxy("api").await;
    // It has everything that it is sent, so nothing is sent that it would owe an answer to.
    let mut stream = proxy.try_connect(server.control).await.unwrap();
    stream.until(|subscriber| subscriber.have().len() == SECTIONS).await;
    let have = stream.subscriber.have();
    drop(stream);
    let endpoint = Endpoint::from_static("http://signet.invalid").initial_stream_window_size(1);
    let channel = dial_by(endpoint, server.control, proxy.tls_config(), None).await.unwrap();
    let (up, messages) = tokio::sync::mpsc::channel(1);
    up.send(wire::ProxyMessage { message: Some(Up::Hello(wire::Hello { have, ..hello() })) }).await.unwrap();
    let mut client = ControlClient::new(channel);
    let _unread = client.connect(ReceiverStream::new(messages)).await.unwrap().into_inner();
    let is_connected = async || server.proxies().await.iter().any(|proxy| proxy.connected);
    assert!(is_connected().await);
    let ends = async {
        while is_connected().await {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(3 * ACK_TIMEOUT, ends).await.expect("the stream to be ended");
}
