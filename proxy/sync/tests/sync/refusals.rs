//! Every way a section can be wrong is refused under its own code, and nothing of it is applied.

use prost::Message;
use signet_policy::{PolicyModel, SignatureMode, Verification};
use signet_sync::proto::sync as wire;
use signet_sync::{
    MAX_SECTION_BYTES, POLICY_KEY_ID, PROTOCOL, SectionKey, SectionName, Version, area_key_id,
};

use crate::mesh::{AREA, Mesh, NETWORK, directory, id, key, policy_model, trust_domain, v};

/// The code `section` is refused with by a proxy that holds version 1.5 of everything; it must hold it still afterwards.
fn refusal(section: wire::Section) -> &'static str {
    let mesh = Mesh::new();
    let mut subscriber = mesh.subscriber();
    let held = v(1, 5);
    for good in [mesh.anchors(held), mesh.policy(held), mesh.directory(held), mesh.revocations(held)] {
        subscriber.apply(good).unwrap();
    }
    let before = subscriber.have();
    let outcome = subscriber.handle(section);
    assert_eq!(subscriber.have(), before, "nothing changed");
    assert_eq!(outcome.changed, None);
    assert_eq!(subscriber.policy().unwrap().model.clock_skew_s, 5);
    let code = outcome.refused.expect("refused").code();
    let Some(wire::proxy_message::Message::Nack(nack)) = outcome.reply.message else { panic!("a nack") };
    assert_eq!(nack.code, code);
    code
}

#[test]
fn a_tampered_section_is_refused_whichever_field_was_touched() {
    let mesh = Mesh::new();
    let good = || mesh.policy(v(1, 6));
    let tampered: [fn(&mut wire::Section); 7] = [
        |s| s.payload[10] ^= 1,
        |s| s.payload.push(0),
        |s| s.counter += 1,
        |s| s.epoch += 1,
        |s| s.minimum_reader = 0,
        |s| s.signature[0] ^= 1,
        |s| s.signature.clear(),
    ];
    for tamper in tampered {
        let mut section = good();
        tamper(&mut section);
        assert_eq!(refusal(section), "bad-signature");
    }
}

#[test]
fn one_sections_payload_does_not_pass_for_anothers() {
    let mesh = Mesh::new();
    let mut section = mesh.policy(v(1, 6));
    section.name = "revocations".into();
    assert_eq!(refusal(section), "bad-signature");
}

#[test]
fn a_section_signed_by_the_wrong_key_is_refused() {
    let mesh = Mesh::new();
    let payload = mesh.policy(v(1, 6)).payload;
    let stranger = key(77);
    let forged =
        stranger.sign(POLICY_KEY_ID, &SectionName::Policy, v(1, 6), 1, payload.clone(), vec![]).unwrap();
    assert_eq!(refusal(forged), "bad-signature");
    let by_area =
        mesh.area_key.sign(&area_key_id(AREA), &SectionName::Policy, v(1, 6), 1, payload, vec![]).unwrap();
    assert_eq!(refusal(by_area), "key-not-allowed");
}

#[test]
fn an_area_may_not_write_the_directory_of_a_network_that_is_not_its_own() {
    let mesh = Mesh::new();
    let name = SectionName::Directory("elsewhere".into());
    let payload = mesh.directory(v(1, 6)).payload;
    let foreign = mesh.area_key.sign(&area_key_id(AREA), &name, v(1, 6), 1, payload.clone(), vec![]).unwrap();
    assert_eq!(refusal(foreign), "key-not-allowed");
    let own = SectionName::Directory(NETWORK.into());
    let unknown =
        mesh.area_key.sign(&area_key_id("nobody"), &own, v(1, 6), 1, payload.clone(), vec![]).unwrap();
    assert_eq!(refusal(unknown), "key-not-allowed");
    let by_policy_key = mesh.policy_key.sign(POLICY_KEY_ID, &own, v(1, 6), 1, payload, vec![]).unwrap();
    assert_eq!(refusal(by_policy_key), "key-not-allowed");
}

#[test]
fn an_older_version_replayed_is_refused() {
    let mesh = Mesh::new();
    assert_eq!(refusal(mesh.policy(v(1, 4))), "rollback");
    assert_eq!(refusal(mesh.anchors(v(1, 1))), "rollback");
    assert_eq!(refusal(mesh.directory(v(1, 4))), "rollback");
}

#[test]
fn a_new_epoch_without_the_policy_keys_proof_is_refused() {
    let mesh = Mesh::new();
    let name = SectionName::Directory(NETWORK.into());
    let payload = mesh.directory(v(2, 1)).payload;
    let sign =
        |proof| mesh.area_key.sign(&area_key_id(AREA), &name, v(2, 1), 1, payload.clone(), proof).unwrap();
    assert_eq!(refusal(sign(vec![])), "epoch-unproven");
    assert_eq!(refusal(sign(mesh.area_key.prove_epoch(&name, 2).unwrap())), "epoch-unproven");
    assert_eq!(refusal(sign(mesh.policy_key.prove_epoch(&name, 3).unwrap())), "epoch-unproven");
    let of_another = mesh.policy_key.prove_epoch(&SectionName::Policy, 2).unwrap();
    assert_eq!(refusal(sign(of_another)), "epoch-unproven");
}

#[test]
fn a_proven_epoch_is_applied_though_its_counter_is_lower() {
    let mesh = Mesh::new();
    let mut subscriber = mesh.subscriber();
    subscriber.apply(mesh.anchors(v(1, 9))).unwrap();
    subscriber.apply(mesh.directory(v(1, 9))).unwrap();
    assert!(subscriber.apply(mesh.directory(v(2, 1))).unwrap().is_some());
    assert!(subscriber.apply(mesh.directory(v(1, 10))).is_err());
}

#[test]
fn versions_start_at_one() {
    let mesh = Mesh::new();
    for version in [v(1, 0), v(0, 6)] {
        let section = mesh.by_policy_key(&SectionName::Policy, version, mesh.policy(v(1, 6)).payload);
        assert!(matches!(refusal(section), "version-zero" | "epoch-unproven"));
    }
}

#[test]
fn what_only_a_newer_reader_may_apply_is_refused() {
    let mesh = Mesh::new();
    let payload = mesh.policy(v(1, 6)).payload;
    let newer = mesh
        .policy_key
        .sign(POLICY_KEY_ID, &SectionName::Policy, v(1, 6), PROTOCOL + 1, payload, vec![])
        .unwrap();
    assert_eq!(refusal(newer), "reader-too-old");
}

#[test]
fn a_section_nobody_has_heard_of_is_refused() {
    let mesh = Mesh::new();
    for name in ["incidents", "", "directory/", &"directory/x".repeat(100)] {
        let mut section = mesh.policy(v(1, 6));
        section.name = name.to_owned();
        assert_eq!(refusal(section), "unknown-section");
    }
}

#[test]
fn an_oversized_payload_is_refused_before_its_signature_is_looked_at() {
    let mesh = Mesh::new();
    let mut section = mesh.policy(v(1, 6));
    section.payload = vec![0; MAX_SECTION_BYTES + 1];
    assert_eq!(refusal(section), "too-large");
    let oversized = vec![0; MAX_SECTION_BYTES + 1];
    assert!(
        mesh.policy_key.sign(POLICY_KEY_ID, &SectionName::Policy, v(1, 6), 1, oversized, vec![]).is_err()
    );
}

#[test]
fn sections_of_another_trust_domain_are_refused() {
    let mesh = Mesh::new();
    let foreign = PolicyModel {
        trust_domain: signet_identity::TrustDomain::parse("other").unwrap(),
        ..policy_model(6)
    };
    assert_eq!(refusal(mesh.policy_of(v(1, 6), &foreign)), "trust-domain");
}

#[test]
fn anchors_may_not_change_the_policy_key() {
    let mesh = Mesh::new();
    let mut anchors = wire::Anchors::decode(&*mesh.anchors(v(1, 6)).payload).unwrap();
    anchors.policy_key = key(5).public_key().to_vec();
    let section = mesh.by_policy_key(&SectionName::Anchors, v(1, 6), anchors.encode_to_vec());
    assert_eq!(refusal(section), "policy-key-changed");
}

#[test]
fn values_a_reader_does_not_know_refuse_the_policy() {
    let mesh = Mesh::new();
    let edits: [fn(&mut wire::Policy); 26] = [
        |p| p.mtls = 9,
        |p| p.mtls = 0,
        |p| p.policies[0].mode = 9,
        |p| p.policies[0].target = None,
        |p| p.policies[0].rules[0].from[0].source = None,
        |p| p.workloads[0].class = 0,
        |p| p.workloads[0].ports[0].protocol = 77,
        |p| p.workloads[0].ports[0].port = 65_536,
        |p| p.lifetimes = None,
        |p| p.policies[0].action = 3,
        |p| p.policies[3].rules[0].to[0].headers[0].value = None,
        |p| p.policies[3].rules[0].to[0].headers[0].name = "X-Tenant".into(),
        |p| p.policies[3].rules[0].when.as_mut().unwrap().time[0].days = 0,
        |p| p.policies[3].rules[0].when.as_mut().unwrap().time[0].from = 1_440,
        |p| p.policies[3].rules[0].when.as_mut().unwrap().source_addresses[0].length = 33,
        |p| p.header_policies[0].fields[0].names[0] = "host".into(),
        |p| p.header_policies[0].peer_header = Some("x-*".into()),
        |p| p.traffic_policies[0].load_balancing.as_mut().unwrap().policy = None,
        |p| p.traffic_policies[0].settings.as_mut().unwrap().retries.as_mut().unwrap().on[0] = 9,
        |p| {
            let limits = p.traffic_policies[0].settings.as_mut().unwrap().rate_limits.as_mut().unwrap();
            limits.limits[0].key = 0;
        },
        |p| p.workloads[0].virtual_addresses[0].address.clear(),
        |p| p.egress_policies[0].to[0].names[0] = "*".into(),
        |p| p.egress_policies[0].to[0].protocol = 0,
        |p| p.egress_policies[0].to[2].cidrs.clear(),
        |p| p.egress_policies[0].to[0].tls.as_mut().unwrap().server_name = Some("*.api.test".into()),
        |p| p.role_grants[0].spiffe_id = "spiffe://mf2c.test".into(),
    ];
    for edit in edits {
        let mut policy = wire::Policy::from(&policy_model(6));
        edit(&mut policy);
        let section = mesh.by_policy_key(&SectionName::Policy, v(1, 6), policy.encode_to_vec());
        assert_eq!(refusal(section), "malformed-payload");
    }
}

#[test]
fn a_directory_that_contradicts_itself_is_refused() {
    let mesh = Mesh::new();
    let edits: [fn(&mut wire::Directory); 7] = [
        |d| d.network = "elsewhere".into(),
        |d| d.entries.push(d.entries[0].clone()),
        |d| d.entries[0].identities.clear(),
        |d| d.entries[0].identities[0] = "spiffe://mf2c.test".into(),
        |d| d.entries[0].address = vec![1, 2, 3],
        |d| {
            d.entries[0].address =
                "::ffff:172.18.0.2".parse::<std::net::Ipv6Addr>().unwrap().octets().to_vec()
        },
        |d| d.entries = vec![wire::DirectoryEntry::default(); signet_sync::MAX_ENTRIES + 100],
    ];
    for edit in edits {
        let mut changed = wire::Directory::from(&directory(6));
        edit(&mut changed);
        let name = SectionName::Directory(NETWORK.into());
        let section = mesh
            .area_key
            .sign(&area_key_id(AREA), &name, v(1, 6), 1, changed.encode_to_vec(), vec![])
            .unwrap();
        assert_eq!(refusal(section), "malformed-payload");
    }
}

#[test]
fn a_revocation_of_an_unknown_kind_refuses_the_list() {
    let mesh = Mesh::new();
    let list = wire::Revocations { entries: vec![wire::Revocation::default()], federated: Vec::new() };
    let section = mesh.by_policy_key(&SectionName::Revocations, v(1, 6), list.encode_to_vec());
    assert_eq!(refusal(section), "malformed-payload");
}

#[test]
fn fields_added_by_a_newer_version_are_passed_over() {
    let mesh = Mesh::new();
    let mut subscriber = mesh.subscriber();
    for (name, section) in
        [(SectionName::Anchors, mesh.anchors(v(1, 1))), (SectionName::Policy, mesh.policy(v(1, 1)))]
    {
        let mut payload = section.payload;
        // Field 1000, length-delimited, three bytes.
        payload.extend([0xc2, 0x3e, 3, b'n', b'e', b'w']);
        let newer = mesh.by_policy_key(&name, Version::FIRST, payload);
        assert_eq!(subscriber.apply(newer).unwrap(), Some(name));
    }
    assert_eq!(*subscriber.policy().unwrap().model, policy_model(1));
}

#[test]
fn more_networks_than_the_bound_are_refused() {
    let mesh = Mesh::new();
    let mut subscriber = mesh.subscriber();
    let mut anchors = wire::Anchors::decode(&*mesh.anchors(v(1, 1)).payload).unwrap();
    anchors.directory_keys[0].networks.clear();
    subscriber.apply(mesh.by_policy_key(&SectionName::Anchors, v(1, 1), anchors.encode_to_vec())).unwrap();
    let codes: Vec<_> = (0..signet_sync::MAX_SECTIONS)
        .filter_map(|n| {
            let network = format!("net-{n}");
            let payload = wire::Directory { network: network.clone(), entries: vec![] }.encode_to_vec();
            let name = SectionName::Directory(network);
            let section = mesh.area_key.sign(&area_key_id(AREA), &name, v(1, 1), 1, payload, vec![]).unwrap();
            subscriber.apply(section).err().map(|error| error.code())
        })
        .collect();
    assert_eq!(codes, ["too-many-sections"]);
}

#[test]
fn arbitrary_bytes_never_panic_a_decoder() {
    let mesh = Mesh::new();
    let originals =
        [mesh.anchors(v(1, 1)), mesh.policy(v(1, 1)), mesh.directory(v(1, 1)), mesh.revocations(v(1, 1))];
    for section in originals {
        for at in 0..section.payload.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut payload = section.payload.clone();
                payload[at] ^= flip;
                let _ = signet_sync::Anchors::decode(&payload);
                let _ = signet_sync::Directory::decode(&payload);
                let _ = signet_sync::Revocations::decode(&payload);
                let _ = wire::Policy::decode(&*payload).map(PolicyModel::try_from);
            }
        }
    }
}

#[test]
fn a_revocation_bites_by_certificate_and_by_identity() {
    let mesh = Mesh::new();
    let mut subscriber = mesh.subscriber();
    subscriber.apply(mesh.revocations(v(1, 1))).unwrap();
    let revocations = subscriber.revocations();
    let (other, stolen) = (signet_identity::Fingerprint([1; 32]), signet_identity::Fingerprint([3; 32]));
    let innocent = id("spiffe://mf2c.test/agent/d1/cimi");
    assert!(revocations.of(&innocent, other).is_none());
    assert!(revocations.of(&innocent, stolen).is_some());
    assert_eq!(revocations.of(&id("spiffe://mf2c.test/app/d2/thief"), other).unwrap().reason, "key stolen");
    assert_eq!(trust_domain().as_str(), "mf2c.test");
}

#[test]
fn younger_words_of_protection_arrive_and_unknown_ones_refuse_the_section() {
    let mesh = Mesh::new();
    let mut model = policy_model(9);
    model.protection.mode = SignatureMode::Hmac;
    model.protection.verify = Verification::Async;
    let mut subscriber = mesh.subscriber();
    subscriber.apply(mesh.policy_of(v(1, 9), &model)).unwrap();
    assert_eq!(*subscriber.policy().unwrap().model, model);

    let unknown = |change: fn(&mut wire::Protection)| {
        let mut policy = wire::Policy::from(&model);
        policy.protection.iter_mut().for_each(change);
        let section = mesh.by_policy_key(&SectionName::Policy, v(1, 10), policy.encode_to_vec());
        mesh.subscriber().apply(section).is_err()
    };
    assert!(!unknown(|_| {}));
    assert!(unknown(|protection| protection.verify = 9) && unknown(|protection| protection.mode = 9));
}

#[test]
fn what_is_held_is_the_newest_only_by_the_control_planes_signed_word() {
    let mesh = Mesh::new();
    let mut subscriber = mesh.subscriber();
    let said =
        |policy, revocations| mesh.policy_key.sign_freshness(1_000, [v(1, 1), policy, revocations]).unwrap();
    assert!(!subscriber.is_newest(&said(v(1, 1), v(1, 1))).unwrap(), "nothing is held");
    for section in [mesh.anchors(v(1, 1)), mesh.policy(v(1, 3)), mesh.revocations(v(1, 2))] {
        subscriber.apply(section).unwrap();
    }
    assert!(subscriber.is_newest(&said(v(1, 3), v(1, 2))).unwrap());
    // A word that was said earlier is true of its own moment.
    assert!(subscriber.is_newest(&said(v(1, 2), v(1, 1))).unwrap());
    for newer in [said(v(1, 4), v(1, 2)), said(v(1, 3), v(1, 3)), said(v(2, 1), v(1, 2))] {
        assert!(!subscriber.is_newest(&newer).unwrap());
    }
    // An area that passes the rest on must not keep the anchors, by which it is revoked, to itself.
    let anchored = mesh.policy_key.sign_freshness(1_000, [v(1, 2), v(1, 3), v(1, 2)]).unwrap();
    assert!(!subscriber.is_newest(&anchored).unwrap());
    let tampered: [fn(&mut wire::Freshness); 8] = [
        |said| said.anchors_epoch = 0,
        |said| said.anchors_counter -= 1,
        |said| said.unix_ms += 1,
        |said| said.policy_epoch = 0,
        |said| said.policy_counter -= 1,
        |said| said.revocations_epoch = 0,
        |said| said.revocations_counter -= 1,
        |said| said.signature.clear(),
    ];
    for tamper in tampered {
        let mut said = said(v(1, 3), v(1, 2));
        tamper(&mut said);
        assert_eq!(subscriber.is_newest(&said).unwrap_err().code(), "bad-signature");
    }
    let other = key(9).sign_freshness(1_000, [v(1, 1), v(1, 3), v(1, 2)]).unwrap();
    assert_eq!(subscriber.is_newest(&other).unwrap_err().code(), "bad-signature");
}

#[test]
fn the_directory_of_an_areas_network_is_the_areas_alone_and_goes_when_the_area_does() {
    let mesh = Mesh::new();
    let mut subscriber = mesh.subscriber();
    let origin = SectionKey::generate().unwrap();
    let name = SectionName::Directory(NETWORK.to_owned());
    let by_origin = |network: &SectionName, counter| {
        let SectionName::Directory(of) = network else { unreachable!() };
        let payload = wire::Directory { network: of.clone(), entries: vec![] }.encode_to_vec();
        origin.sign(&area_key_id("main"), network, v(1, counter), 1, payload, vec![]).unwrap()
    };
    let anchors = |counter: u64, owned: bool| {
        let mut anchors = wire::Anchors::decode(&*mesh.anchors(v(1, 1)).payload).unwrap();
        if !owned {
            anchors.directory_keys.clear();
        }
        let key = origin.public_key().to_vec();
        anchors.directory_keys.push(wire::DirectoryKey { area: "main".into(), key, networks: vec![] });
        mesh.by_policy_key(&SectionName::Anchors, v(1, counter), anchors.encode_to_vec())
    };
    subscriber.apply(anchors(1, false)).unwrap();
    subscriber.apply(by_origin(&name, 7)).unwrap();

    // The network becomes an area's: what the origin said of it is gone, and a lower number of the area's is newer.
    subscriber.apply(anchors(2, true)).unwrap();
    assert_eq!(subscriber.directories().count(), 0);
    subscriber.apply(mesh.directory(v(1, 3))).unwrap();
    assert_eq!(subscriber.apply(by_origin(&name, 8)).unwrap_err().code(), "key-not-allowed");
    let foreign = SectionName::Directory("elsewhere".to_owned());
    let payload = wire::Directory { network: "elsewhere".into(), entries: vec![] }.encode_to_vec();
    let stolen = mesh.area_key.sign(&area_key_id(AREA), &foreign, v(1, 1), 1, payload, vec![]).unwrap();
    assert_eq!(subscriber.check_directory(&stolen).unwrap_err().code(), "key-not-allowed");
    assert_eq!(subscriber.apply(stolen).unwrap_err().code(), "key-not-allowed");
    subscriber.apply(by_origin(&foreign, 1)).unwrap();
    let policy = mesh.policy(v(1, 1));
    let forged = wire::Section { key_id: area_key_id(AREA), ..policy };
    assert_eq!(subscriber.apply(forged).unwrap_err().code(), "key-not-allowed");

    subscriber.apply(anchors(3, false)).unwrap();
    assert_eq!(subscriber.directories().count(), 1, "the origin's own stays");
    subscriber.apply(by_origin(&name, 1)).unwrap();
}
