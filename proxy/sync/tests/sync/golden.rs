//! The bytes of the contract, kept as files: a change that moves one of them breaks N and N−1, and has to be meant.
//!
//! `SIGNET_BLESS=1 cargo test -p signet-sync` writes them anew.

use std::path::Path;

use prost::Message;
use signet_sync::proto::sync as wire;
use signet_sync::{PROTOCOL, SectionName};

use crate::mesh::{Mesh, directory, policy_model, v};

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
