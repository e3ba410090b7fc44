//! What the stream promises: the newest version arrives, versions never go back, and a slow proxy costs nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use signet_sync::{ACK_TIMEOUT, Publisher, SectionName, Version};

use crate::mesh::{AREA, Mesh, NETWORK, v};
use crate::pair::{Pair, hello};

fn directory_name() -> SectionName {
    SectionName::Directory(NETWORK.to_owned())
}

fn all_sections(mesh: &Mesh, counter: u64) -> [signet_sync::proto::sync::Section; 4] {
    let version = v(1, counter);
    [mesh.directory(version), mesh.policy(version), mesh.revocations(version), mesh.anchors(version)]
}

#[test]
fn a_new_proxy_receives_everything_and_anchors_come_first() {
    let mesh = Mesh::new();
    let mut pair = Pair::new(mesh.subscriber());
    for section in all_sections(&mesh, 1) {
        pair.publish(section);
    }
    pair.drive();
    let names: Vec<_> = pair.applied.iter().map(|(name, _)| name.clone()).collect();
    let expected = [SectionName::Anchors, SectionName::Revocations, SectionName::Policy, directory_name()];
    assert_eq!(names, expected);
    assert_eq!(pair.subscriber.policy().unwrap().model.clock_skew_s, 1);
    assert_eq!(pair.subscriber.directories().count(), 1);
    assert_eq!(pair.subscriber.revocations().len(), 2);
    assert!(pair.publisher.states().all(|state| state.acked == Some(v(1, 1)) && state.nack.is_none()));
}

#[test]
fn a_burst_becomes_its_last_version() {
    let mesh = Mesh::new();
    let mut pair = Pair::new(mesh.subscriber());
    pair.publish(mesh.policy(v(1, 1)));
    pair.transmit();
    for counter in 2..=500 {
        pair.publish(mesh.policy(v(1, counter)));
        pair.transmit();
    }
    assert_eq!(pair.to_proxy.len(), 1, "one unanswered version at a time");
    pair.drive();
    assert_eq!(pair.sent, 2);
    assert_eq!(pair.applied, [(SectionName::Policy, v(1, 1)), (SectionName::Policy, v(1, 500))]);
}

#[test]
fn a_silent_proxy_is_sent_one_version_per_section_and_is_overdue() {
    let mesh = Mesh::new();
    let mut pair = Pair::new(mesh.subscriber());
    for counter in 1..=100 {
        for section in all_sections(&mesh, counter) {
            pair.publish(section);
        }
        pair.transmit();
    }
    assert_eq!(pair.sent, 4);
    assert!(!pair.publisher.overdue(pair.now));
    pair.pass(ACK_TIMEOUT - Duration::from_millis(1));
    assert!(!pair.publisher.overdue(pair.now));
    pair.pass(Duration::from_millis(1));
    assert!(pair.publisher.overdue(pair.now));
}

#[test]
fn a_lost_connection_loses_no_version() {
    let mesh = Mesh::new();
    let mut pair = Pair::new(mesh.subscriber());
    pair.publish(mesh.policy(v(1, 1)));
    pair.drive();
    pair.publish(mesh.policy(v(1, 2)));
    pair.transmit();
    pair.reconnect();
    pair.publish(mesh.policy(v(1, 2)));
    pair.drive();
    assert_eq!(pair.held(&SectionName::Policy), Some(v(1, 2)));
}

#[test]
fn a_lost_answer_costs_no_second_transmission() {
    let mesh = Mesh::new();
    let mut pair = Pair::new(mesh.subscriber());
    pair.publish(mesh.policy(v(1, 1)));
    pair.transmit();
    pair.receive();
    pair.reconnect();
    pair.publish(mesh.policy(v(1, 1)));
    pair.drive();
    assert_eq!(pair.sent, 1, "the proxy's hello told that it has it");
    assert_eq!(pair.publisher.states().next().unwrap().acked, Some(v(1, 1)));
}

#[test]
fn duplicates_are_acknowledged_and_change_nothing() {
    let mesh = Mesh::new();
    let mut pair = Pair::new(mesh.subscriber());
    pair.deliver(mesh.policy(v(1, 7)));
    pair.deliver(mesh.policy(v(1, 7)));
    assert_eq!(pair.applied.len(), 1);
    assert!(pair.refused.is_empty());
    assert_eq!(pair.to_control.len(), 2);
}

#[test]
fn reordered_versions_never_go_back() {
    let mesh = Mesh::new();
    let mut pair = Pair::new(mesh.subscriber());
    for counter in [3, 1, 2, 5, 4] {
        pair.deliver(mesh.policy(v(1, counter)));
    }
    assert_eq!(pair.applied, [(SectionName::Policy, v(1, 3)), (SectionName::Policy, v(1, 5))]);
    assert_eq!(pair.refused, ["rollback"; 3]);
    assert_eq!(pair.subscriber.policy().unwrap().model.clock_skew_s, 5);
}

#[test]
fn late_answers_about_versions_not_in_flight_mean_nothing() {
    let mesh = Mesh::new();
    let mut pair = Pair::new(mesh.subscriber());
    pair.publish(mesh.policy(v(1, 2)));
    pair.transmit();
    let stale = signet_sync::proto::sync::Ack { name: "policy".into(), epoch: 1, counter: 1 };
    pair.publisher.on_ack(&stale);
    assert_eq!(pair.publisher.states().next().unwrap().acked, None);
    pair.drive();
    let future = signet_sync::proto::sync::Ack { name: "policy".into(), epoch: 1, counter: 9 };
    pair.publisher.on_ack(&future);
    assert_eq!(pair.publisher.states().next().unwrap().acked, Some(v(1, 2)));
}

#[test]
fn a_refused_version_is_not_sent_again_but_its_successor_is() {
    let mesh = Mesh::new();
    let mut pair = Pair::new(mesh.subscriber());
    pair.publish(mesh.by_policy_key(&SectionName::Policy, v(1, 1), vec![0xff]));
    pair.drive();
    pair.drive();
    assert_eq!(pair.sent, 1);
    let state = pair.publisher.states().next().unwrap();
    assert_eq!((state.acked, state.nack.unwrap().code.as_str()), (None, "malformed-payload"));
    pair.publish(mesh.policy(v(1, 2)));
    pair.drive();
    assert!(pair.publisher.states().next().unwrap().nack.is_none());
    assert_eq!(pair.held(&SectionName::Policy), Some(v(1, 2)));
}

#[test]
fn a_directory_refused_for_want_of_its_key_is_sent_again_with_the_anchors() {
    let mesh = Mesh::new();
    let mut pair = Pair::new(mesh.subscriber());
    pair.publish(mesh.anchors_with(v(1, 1), BTreeMap::new()));
    pair.publish(mesh.directory(v(1, 1)));
    pair.drive();
    assert_eq!(pair.refused, ["key-not-allowed"]);
    pair.publish(mesh.anchors(v(1, 2)));
    pair.drive();
    assert_eq!(pair.held(&directory_name()), Some(v(1, 1)));
}

#[test]
fn a_key_taken_from_the_anchors_takes_its_directories_along() {
    let mesh = Mesh::new();
    let mut pair = Pair::new(mesh.subscriber());
    pair.deliver(mesh.anchors(v(1, 1)));
    pair.deliver(mesh.directory(v(1, 1)));
    assert_eq!(pair.subscriber.directories().count(), 1);
    let replaced = BTreeMap::from([(AREA.to_owned(), crate::mesh::key(9).public_key())]);
    pair.deliver(mesh.anchors_with(v(1, 2), replaced));
    assert_eq!(pair.subscriber.directories().count(), 0);
    assert_eq!(pair.held(&directory_name()), None);
}

#[test]
fn a_restarted_proxy_resumes_from_what_it_saved() {
    let mesh = Mesh::new();
    let mut pair = Pair::new(mesh.subscriber());
    for section in all_sections(&mesh, 4) {
        pair.publish(section);
    }
    pair.drive();
    let saved: Vec<_> = pair.subscriber.sections().map(|(_, section)| (**section).clone()).collect();
    let mut restarted = mesh.subscriber();
    for section in saved {
        restarted.apply(section).unwrap();
    }
    let mut pair = Pair::new(restarted);
    for section in all_sections(&mesh, 4) {
        pair.publish(section);
    }
    pair.drive();
    assert_eq!(pair.sent, 0, "nothing is sent that is held");
    pair.deliver(mesh.policy(v(1, 3)));
    assert_eq!(pair.refused, ["rollback"]);
}

#[test]
fn a_control_plane_restored_from_a_backup_needs_a_new_epoch() {
    let mesh = Mesh::new();
    let mut pair = Pair::new(mesh.subscriber());
    pair.publish(mesh.policy(v(1, 57)));
    pair.drive();
    pair.reconnect();
    pair.publish(mesh.policy(v(1, 40)));
    pair.drive();
    let state = pair.publisher.states().next().unwrap();
    assert!(state.acked > state.latest, "the control plane can tell that it went back");
    pair.publish(mesh.policy(v(2, 1)));
    pair.drive();
    assert_eq!(pair.held(&SectionName::Policy), Some(v(2, 1)));
}

#[test]
fn a_forked_history_under_the_same_version_comes_to_light() {
    let mesh = Mesh::new();
    let mut pair = Pair::new(mesh.subscriber());
    pair.publish(mesh.policy(v(1, 5)));
    pair.drive();
    pair.reconnect();
    pair.publish(mesh.policy_of(v(1, 5), &crate::mesh::policy_model(99)));
    pair.drive();
    assert_eq!(pair.refused, ["conflict"]);
    assert_eq!(pair.subscriber.policy().unwrap().model.clock_skew_s, 5, "the last good one stays");
    assert_eq!(pair.publisher.states().next().unwrap().nack.unwrap().code, "conflict");
}

#[test]
fn any_mix_of_loss_repetition_and_reordering_ends_on_the_newest_version() {
    for seed in 1..=200 {
        chaos(seed);
    }
}

/// One random run: a link that loses connections, repeats and reorders, and sections that keep changing.
fn chaos(seed: u64) {
    let mesh = Mesh::new();
    let mut random = Random(seed);
    let mut pair = Pair::new(mesh.subscriber());
    let mut newest = 0;
    for _ in 0..30 {
        if random.one_in(2) {
            newest += 1;
            for section in all_sections(&mesh, newest) {
                pair.publish(section);
            }
        }
        pair.transmit();
        if random.one_in(4)
            && let Some(section) = pair.to_proxy.front().map(Arc::clone)
        {
            pair.to_proxy.push_back(section);
        }
        if random.one_in(3) {
            pair.to_proxy.make_contiguous().reverse();
        }
        match random.next() % 4 {
            0 => {
                pair.reconnect();
                if newest > 0 {
                    all_sections(&mesh, newest).into_iter().for_each(|section| pair.publish(section));
                }
            }
            1 => drop(pair.receive()),
            2 => {
                pair.receive();
                pair.answer();
            }
            _ => {}
        }
    }
    if newest > 0 {
        all_sections(&mesh, newest).into_iter().for_each(|section| pair.publish(section));
        pair.drive();
        // A directory that overtook its anchors on a link that reorders is offered again with the next stream.
        pair.reconnect();
        all_sections(&mesh, newest).into_iter().for_each(|section| pair.publish(section));
        pair.drive();
        let held: Vec<_> = pair.subscriber.versions().map(|(_, version)| version).collect();
        assert_eq!(held, [v(1, newest); 4], "seed {seed}");
    }
    let mut last: BTreeMap<SectionName, Version> = BTreeMap::new();
    for (name, version) in pair.applied {
        assert!(last.insert(name, version) < Some(version), "versions only grow (seed {seed})");
    }
}

#[test]
fn an_unbounded_hello_is_cut_to_the_bound() {
    let mesh = Mesh::new();
    let mut hello = hello(&mesh.subscriber());
    hello.have = (0..10_000)
        .map(|n| signet_sync::proto::sync::SectionVersion {
            name: format!("directory/{n}"),
            epoch: 1,
            counter: 1,
            payload_sha256: Vec::new(),
        })
        .collect();
    let publisher = Publisher::new(&hello);
    assert_eq!(publisher.states().count(), signet_sync::MAX_SECTIONS);
}

/// xorshift64*: the same run for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }
}
