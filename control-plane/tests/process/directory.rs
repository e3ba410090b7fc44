//! Who may say that an address is theirs.

use signet_sync::Subscriber;
use signet_sync::proto::sync::proxy_message::Message as Up;
use signet_sync::proto::sync::{self as wire, Habit};
use tonic::Code;

use crate::harness::{Stream, claim, mesh, workload};

#[tokio::test]
async fn a_proxys_own_address_is_listed_for_its_network_with_names_from_the_manifest() {
    let (_state, server) = mesh().await;
    let api = server.proxy("api").await;
    let web = server.proxy("web").await;
    let mut watching = web.connect(server.control, "127.0.0.6").await;
    let mut stream = api.connect(server.control, "127.0.0.5").await;
    let verdict = stream.verdict().await;
    assert!(verdict.accepted, "{verdict:?}");
    assert_eq!(verdict.port, 8080);
    watching.until(|subscriber| Stream::lists(subscriber, "edge", "127.0.0.5", api.id())).await;
    let directory =
        watching.subscriber.directories().find(|directory| directory.network() == "edge").unwrap();
    let entry = directory.lookup("127.0.0.5".parse().unwrap(), 8080).unwrap();
    assert_eq!((entry.workload.as_str(), entry.names.as_slice()), ("api", &["api.example".to_owned()][..]));
}

#[tokio::test]
async fn a_stolen_key_that_claims_anothers_address_is_refused_and_the_older_claim_stays() {
    let (_state, server) = mesh().await;
    let victim = server.proxy("api").await;
    let thief = server.proxy("web").await;
    let mut victims = victim.connect(server.control, "127.0.0.5").await;
    assert!(victims.verdict().await.accepted);
    // From elsewhere it is not seen there; from the very address, the place is taken.
    let mut stream = thief.connect_with(server.control, "127.0.0.6", &["127.0.0.5"]).await;
    assert_eq!(stream.verdict().await.code, "source-mismatch");
    let mut stream = thief.connect_with(server.control, "127.0.0.5", &["127.0.0.5"]).await;
    assert_eq!(stream.verdict().await.code, "address-taken");
    stream.until(|subscriber| Stream::lists(subscriber, "edge", "127.0.0.5", victim.id())).await;
    // Nor does the place become free when the victim's stream breaks.
    drop(victims);
    stream.send(Up::Claims(wire::Claims { claims: vec![claim("127.0.0.5"), claim("127.0.0.6")] })).await;
    assert_eq!(stream.verdict().await.code, "source-mismatch");
    assert!(Stream::lists(&stream.subscriber, "edge", "127.0.0.5", victim.id()));
}

#[tokio::test]
async fn a_claim_survives_a_kill_and_is_listed_before_its_holder_is_back() {
    let (state, server) = mesh().await;
    let api = server.proxy("api").await;
    let web = server.proxy("web").await;
    let mut stream = api.connect(server.control, "127.0.0.5").await;
    assert!(stream.verdict().await.accepted);
    server.kill();
    let server = crate::harness::Server::start(state.path());
    let mut watching = web.connect(server.control, "127.0.0.6").await;
    watching.until(|subscriber| Stream::lists(subscriber, "edge", "127.0.0.5", api.id())).await;
    let mut thief = web.connect_with(server.control, "127.0.0.5", &["127.0.0.5"]).await;
    assert_eq!(thief.verdict().await.code, "address-taken");
    let mut back = api.connect(server.control, "127.0.0.5").await;
    assert!(back.verdict().await.accepted);
}

#[tokio::test]
async fn the_same_address_in_another_network_is_another_place_and_its_directory_is_not_sent() {
    let (_state, server) = mesh().await;
    let edge = server.proxy("api").await;
    let cloudy = workload("web").replace("network: edge", "network: cloud");
    server.apply(&cloudy).await;
    let token = server.token("web", 1).await;
    let cloud = crate::harness::enrol(server.control, &token).await.unwrap();
    let mut edge_stream = edge.connect(server.control, "127.0.0.5").await;
    let mut cloud_stream = cloud.connect(server.control, "127.0.0.5").await;
    assert!(edge_stream.verdict().await.accepted);
    assert!(cloud_stream.verdict().await.accepted);
    cloud_stream.until(|subscriber| Stream::lists(subscriber, "cloud", "127.0.0.5", cloud.id())).await;
    let networks: Vec<_> =
        cloud_stream.subscriber.directories().map(|directory| directory.network().to_owned()).collect();
    assert_eq!(networks, ["cloud"]);
}

#[tokio::test]
async fn an_advertised_address_is_told_to_every_network_and_its_removal_too() {
    let (_state, server) = mesh().await;
    let api = server.proxy("api").await;
    let advertised = workload("api").replace(
        "ports:",
        "advertise: [{ network: lan, address: 192.168.1.10, port: 8080, targetPort: 8080 }], ports:",
    );
    server.apply(&advertised).await;
    let web = server.proxy("web").await;
    let mut stream = web.connect(server.control, "127.0.0.6").await;
    stream.until(|subscriber| Stream::lists(subscriber, "lan", "192.168.1.10", api.id())).await;
    server.apply(&workload("api")).await;
    stream.until(|subscriber| !Stream::lists(subscriber, "lan", "192.168.1.10", api.id())).await;
}

#[tokio::test]
async fn a_refused_claim_is_accepted_as_soon_as_the_policy_allows_it() {
    let (_state, server) = mesh().await;
    let api = server.proxy("api").await;
    let mut stream = api.connect(server.control, "127.0.0.5").await;
    assert!(stream.verdict().await.accepted);
    stream
        .send(Up::Claims(wire::Claims {
            claims: vec![wire::Claim { ports: vec![9090], ..claim("127.0.0.5") }],
        }))
        .await;
    assert_eq!(stream.verdict().await.code, "port-not-declared");
    server.apply(&workload("api").replace("8080", "9090")).await;
    let verdict = stream.verdict().await;
    assert!(verdict.accepted && verdict.port == 9090, "{verdict:?}");
}

#[tokio::test]
async fn a_malformed_claim_ends_the_stream_and_takes_nothing() {
    let (_state, server) = mesh().await;
    let api = server.proxy("api").await;
    let mut stream = api.connect_with(server.control, "127.0.0.5", &[]).await;
    let malformed = wire::Claim { address: vec![1, 2, 3], ports: Vec::new() };
    stream.send(Up::Claims(wire::Claims { claims: vec![malformed] })).await;
    assert_eq!(stream.end().await.unwrap_err().code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn who_speaks_first_is_learned_from_the_proxy_and_told_to_its_callers() {
    let (_state, server) = mesh().await;
    let api = server.proxy("api").await;
    let web = server.proxy("web").await;
    let mut watching = web.connect(server.control, "127.0.0.6").await;
    let mut stream = api.connect(server.control, "127.0.0.5").await;
    assert!(stream.verdict().await.accepted);
    let habit = Habit {
        port: 8080,
        speaks_first: wire::SpeaksFirst::Server.into(),
        protocol: wire::Protocol::Opaque.into(),
    };
    stream.send(Up::Habit(habit)).await;
    watching
        .until(|subscriber| {
            subscriber.directories().any(|directory| {
                directory.lookup("127.0.0.5".parse().unwrap(), 8080).is_some_and(|entry| {
                    entry.speaks_first == Some(signet_policy::SpeaksFirst::Server)
                        && entry.habit_expires.is_some()
                })
            })
        })
        .await;
}

#[tokio::test]
async fn a_holder_by_gateway_is_told_when_somebody_at_the_address_takes_its_place() {
    let (_state, server) = mesh().await;
    let gateways = crate::harness::MESH.replace("127.0.0.0/8] }", "127.0.0.0/8], gateways: [127.0.0.9] }");
    server.apply(&gateways).await;
    let (thief, rightful) = (server.proxy("web").await, server.proxy("api").await);
    let mut thiefs = thief.connect_with(server.control, "127.0.0.9", &["127.0.0.5", "127.0.0.9"]).await;
    assert!(thiefs.verdict().await.accepted);
    assert_eq!(thiefs.verdict().await.code, "gateway-address");
    let mut stream = rightful.connect(server.control, "127.0.0.5").await;
    assert!(stream.verdict().await.accepted);
    assert_eq!(thiefs.verdict().await.code, "address-taken");
    stream.until(|subscriber| Stream::lists(subscriber, "edge", "127.0.0.5", rightful.id())).await;
}

#[tokio::test]
async fn a_proxy_that_changes_its_claims_without_end_has_to_wait() {
    let (_state, server) = mesh().await;
    let api = server.proxy("api").await;
    let mut stream = api.connect(server.control, "127.0.0.5").await;
    assert!(stream.verdict().await.accepted);
    let ports = |port| wire::Claims { claims: vec![wire::Claim { ports: vec![port], ..claim("127.0.0.5") }] };
    for port in 1..=7 {
        stream.send(Up::Claims(ports(port))).await;
        assert_eq!(stream.verdict().await.port, port);
    }
    // The next verdict takes as long as the budget needs for one more change; an operator's change does not.
    let start = std::time::Instant::now();
    stream.send(Up::Claims(ports(8))).await;
    server.apply(&workload("web")).await;
    stream
        .until(|subscriber| {
            subscriber.policy().is_some_and(|policy| policy.model.workload_named("web").is_some())
        })
        .await;
    assert!(start.elapsed().as_secs() < 5);
    assert_eq!(stream.verdict().await.port, 8);
    assert!(start.elapsed().as_secs() >= 5);
}

#[tokio::test]
async fn an_attested_address_is_listed_though_its_stream_comes_from_elsewhere_and_leaves_with_its_instance() {
    let (state, server) = mesh().await;
    let api = server.proxy("api").await;
    let web = server.proxy("web").await;
    let mut watching = web.connect(server.control, "127.0.0.6").await;
    let mut stream = api.connect_with(server.control, "127.0.0.5", &["127.0.0.5", "127.0.0.7"]).await;
    assert!(stream.verdict().await.accepted);
    assert_eq!(stream.verdict().await.code, "source-mismatch");
    // The refused claim is judged anew, without being sent again.
    server.attest("api", "4f1e", &["127.0.0.5", "127.0.0.7"]).await.unwrap();
    assert!(stream.verdict().await.accepted);
    let both = |subscriber: &Subscriber| {
        ["127.0.0.5", "127.0.0.7"].iter().all(|address| Stream::lists(subscriber, "edge", address, api.id()))
    };
    watching.until(both).await;
    // A restart forgets nothing of it.
    server.kill();
    let server = crate::harness::Server::start(state.path());
    let mut watching = web.connect(server.control, "127.0.0.6").await;
    watching.until(both).await;
    server.attest("api", "4f1e", &[]).await.unwrap();
    watching.until(|subscriber| !Stream::lists(subscriber, "edge", "127.0.0.7", api.id())).await;
}

#[tokio::test]
async fn an_address_that_an_attestor_gives_to_another_is_lost_at_once() {
    let (_state, server) = mesh().await;
    let api = server.proxy("api").await;
    let web = server.proxy("web").await;
    let mut old = api.connect(server.control, "127.0.0.5").await;
    assert!(old.verdict().await.accepted);
    server.attest("web", "new", &["127.0.0.5"]).await.unwrap();
    let mut new = web.connect(server.control, "127.0.0.5").await;
    assert!(new.verdict().await.accepted);
    assert_eq!(old.verdict().await.code, "address-taken");
    new.until(|subscriber| Stream::lists(subscriber, "edge", "127.0.0.5", web.id())).await;
}

#[tokio::test]
async fn instances_that_change_addresses_with_each_other_are_both_listed_in_the_end() {
    let (_state, server) = mesh().await;
    let watcher = server.proxy("web").await;
    server.apply(&workload("api")).await;
    let token = server.token("api", 2).await;
    let one = crate::harness::enrol(server.control, &token).await.unwrap();
    let two = crate::harness::enrol(server.control, &token).await.unwrap();
    let lists = |subscriber: &Subscriber, address: &str| Stream::lists(subscriber, "edge", address, one.id());
    let mut watching = watcher.connect(server.control, "127.0.0.6").await;
    server.attest("api", "one", &["127.0.0.5"]).await.unwrap();
    server.attest("api", "two", &["127.0.0.7"]).await.unwrap();
    let mut first = one.connect(server.control, "127.0.0.5").await;
    let mut second = two.connect(server.control, "127.0.0.7").await;
    assert!(first.verdict().await.accepted && second.verdict().await.accepted);
    watching.until(|subscriber| lists(subscriber, "127.0.0.5") && lists(subscriber, "127.0.0.7")).await;
    // Their engine restarts. The second is at the address of the first before the attestor says that the first has left it.
    drop((first, second));
    let mut second = two.connect(server.control, "127.0.0.5").await;
    assert!(second.verdict().await.accepted);
    server.attest("api", "one", &["127.0.0.8"]).await.unwrap();
    server.attest("api", "two", &["127.0.0.5"]).await.unwrap();
    let mut first = one.connect(server.control, "127.0.0.8").await;
    assert!(first.verdict().await.accepted);
    watching.until(|subscriber| lists(subscriber, "127.0.0.5") && lists(subscriber, "127.0.0.8")).await;
}

#[tokio::test]
async fn what_is_attested_wrongly_is_refused() {
    let (_state, server) = mesh().await;
    server.apply(&workload("api")).await;
    let many: Vec<String> = (0..65).map(|number| format!("127.0.1.{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for (workload, instance, addresses) in [
        ("nobody", "4f", &["127.0.0.5"][..]),
        ("api", "", &["127.0.0.5"]),
        ("api", "4f/..", &["127.0.0.5"]),
        ("api", &"x".repeat(129), &["127.0.0.5"]),
        ("api", "4f", &["127.0.0"]),
        ("api", "4f", &many),
    ] {
        let refusal = server.attest(workload, instance, addresses).await.unwrap_err();
        assert!(
            matches!(refusal.code(), Code::InvalidArgument | Code::NotFound),
            "{workload} {instance}: {refusal}"
        );
    }
}
