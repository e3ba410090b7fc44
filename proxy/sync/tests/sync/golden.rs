//! The bytes of the contract, kept as files: a change that moves one of them breaks N and N−1, and has to be meant.
//!
//! `SIGNET_BLESS=1 cargo test -p signet-sync` writes them anew.

use std::path::Path;

use prost::Message;
use signet_policy::{
    HeaderMatch, JwtApi, Offline, PolicyAction, PolicyModel, SourceMatch, ValueMatch, WorkloadApi,
};
use signet_sync::proto::sync as wire;
use signet_sync::{PROTOCOL, SectionName, minimum_reader};

use crate::mesh::{Mesh, directory, policy_model, policy_model_1, v};

#[test]
fn sections_are_the_bytes_they_have_always_been() {
    let mesh = Mesh::new();
    golden("anchors.section", &mesh.anchors(v(1, 1)).encode_to_vec());
    golden("policy.section", &mesh.policy(v(1, 2)).encode_to_vec());
    golden("directory.section", &mesh.directory(v(2, 1)).encode_to_vec());
    golden("revocations.section", &mesh.revocations(v(1, 1)).encode_to_vec());
}

#[test]
fn stored_sections_are_applied() {
    let mesh = Mesh::new();
    let mut subscriber = mesh.subscriber();
    for file in ["anchors.section", "policy.section", "directory.section", "revocations.section"] {
        let section = wire::Section::decode(&*read(file)).unwrap();
        assert!(subscriber.apply(section).unwrap().is_some(), "{file}");
    }
    assert_eq!(*subscriber.policy().unwrap().model, policy_model(2));
    assert_eq!(**subscriber.directories().next().unwrap(), directory(1));
    assert_eq!(subscriber.versions().map(|(_, version)| version).max(), Some(v(2, 1)));
}

/// This file is never written anew: it is what the program before this protocol has sent and stored.
#[test]
fn a_policy_of_the_protocol_before_means_what_it_meant() {
    let mesh = Mesh::new();
    let mut subscriber = mesh.subscriber();
    let section = wire::Section::decode(&*read("policy-1.section")).unwrap();
    assert_eq!(section.minimum_reader, 1);
    subscriber.apply(section).unwrap();
    // Names of sealed fields could not be given then; nothing was sealed.
    let mut model = policy_model_1(2);
    model.sealed_headers.clear();
    model.workloads.iter_mut().for_each(|workload| workload.sealed_headers.clear());
    assert_eq!(*subscriber.policy().unwrap().model, model);
    // And what could be said then is still for everybody.
    assert_eq!(mesh.policy_of(v(1, 2), &policy_model_1(2)).minimum_reader, 1);
}

#[test]
fn whatever_an_older_reader_would_pass_over_is_kept_from_it() {
    let mut all = policy_model(1);
    assert_eq!(minimum_reader(&all), 4);
    all.offline = Offline::default();
    let younger: [fn(&mut PolicyModel); 6] = [
        |model| model.protection_policies.clear(),
        |model| model.normalization_policies.clear(),
        |model| model.intermediaries.clear(),
        |model| model.traffic_policies.clear(),
        |model| model.egress_policies.clear(),
        |model| model.workloads[0].virtual_addresses.clear(),
    ];
    for clear in younger {
        assert_eq!(minimum_reader(&all), 3);
        clear(&mut all);
    }
    assert_eq!(minimum_reader(&all), 2);
    let edits: [fn(&mut PolicyModel); 3] = [
        |model| model.policies.retain(|policy| policy.name != "shut"),
        |model| model.header_policies.clear(),
        |model| model.role_grants.clear(),
    ];
    for keep in 0..edits.len() {
        let mut model = all.clone();
        edits.iter().enumerate().filter(|(at, _)| *at != keep).for_each(|(_, edit)| edit(&mut model));
        assert_eq!(minimum_reader(&model), 2, "{keep}");
    }
    let newest: [fn(&mut PolicyModel); 3] = [
        |model| model.traffic_policies.clear(),
        |model| model.egress_policies.clear(),
        |model| model.workloads[0].virtual_addresses.clear(),
    ];
    for keep in 0..newest.len() {
        let mut model = policy_model(1);
        model.offline = Offline::default();
        newest.iter().enumerate().filter(|(at, _)| *at != keep).for_each(|(_, edit)| edit(&mut model));
        assert_eq!(minimum_reader(&model), 3);
    }
    let rules: [fn(&mut PolicyModel); 4] = [
        |model| model.policies[0].action = PolicyAction::Deny,
        |model| model.policies[0].rules[0].from.push(SourceMatch::Role("x".into())),
        |model| model.policies[0].rules[0].when.source_addresses.push("10.0.0.0/8".parse().unwrap()),
        |model| {
            let header = HeaderMatch { name: "x".into(), value: ValueMatch::Present };
            model.policies[0].rules[0].to[0].headers.push(header);
        },
    ];
    for edit in rules {
        let mut model = policy_model_1(1);
        assert_eq!(minimum_reader(&model), 1);
        edit(&mut model);
        assert_eq!(minimum_reader(&model), 2);
    }
}

#[test]
fn what_an_application_is_offered_is_the_same_after_the_wire_and_asks_nothing_of_older_readers() {
    let jwt = |audiences: &[&str]| JwtApi { audiences: audiences.iter().map(|&a| a.to_owned()).collect() };
    for offered in [
        WorkloadApi { x509: true, jwt: None },
        WorkloadApi { x509: false, jwt: Some(jwt(&[])) },
        WorkloadApi { x509: true, jwt: Some(jwt(&["https://vault.example", "db"])) },
    ] {
        let mut model = policy_model_1(1);
        model.workloads[0].workload_api = offered;
        assert_eq!(minimum_reader(&model), 1);
        let section = Mesh::new().policy_of(v(1, 1), &model);
        let mut subscriber = Mesh::new().subscriber();
        subscriber.apply(section).unwrap();
        assert_eq!(*subscriber.policy().unwrap().model, model);
    }
}

#[test]
fn stream_messages_are_the_bytes_they_have_always_been() {
    let mesh = Mesh::new();
    let mut subscriber = mesh.subscriber();
    subscriber.apply(mesh.policy(v(1, 2))).unwrap();
    let hello = wire::Hello {
        protocol: PROTOCOL,
        min_protocol: 1,
        version: "0.1.0".into(),
        have: subscriber.have(),
        claims: vec![wire::Claim { address: vec![172, 18, 0, 2], ports: vec![8201] }],
        sealing_key: vec![7; 32],
    };
    let hello = wire::ProxyMessage { message: Some(wire::proxy_message::Message::Hello(hello)) };
    golden("hello.message", &hello.encode_to_vec());
    let nack = subscriber.handle(mesh.policy(v(1, 1))).reply;
    golden("nack.message", &nack.encode_to_vec());
    assert_eq!(SectionName::parse("policy"), Some(SectionName::Policy));
}

fn golden(file: &str, bytes: &[u8]) {
    if std::env::var_os("SIGNET_BLESS").is_some() {
        std::fs::write(path(file), bytes).unwrap();
    }
    assert_eq!(read(file), bytes, "{file} changed");
}

fn read(file: &str) -> Vec<u8> {
    std::fs::read(path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn path(file: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file)
}
