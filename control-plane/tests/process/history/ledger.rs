//! What was asked for, what was acknowledged, and what follows from that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::harness::{Proxy, workload};

/// The history of all clients.
#[derive(Default)]
pub(super) struct Ledger {
    /// Workloads that one client each rewrites, one version after the other.
    pub(super) registers: BTreeMap<String, Register>,
    /// Join tokens by id.
    pub(super) tokens: BTreeMap<String, Uses>,
    /// Of every certificate that was ever received.
    pub(super) serials: BTreeSet<Vec<u8>>,
    /// Of which the revision was told.
    pub(super) changes: Vec<Change>,
    /// Instances that have to be known.
    pub(super) enrolled: Vec<Proxy>,
    /// Instances that must not come back.
    pub(super) revoked: Vec<Proxy>,
    /// How many of both were looked for after a kill.
    proven: (usize, usize),
}

/// The newest version of one workload.
#[derive(Default)]
pub(super) struct Register {
    pub(super) asked: u64,
    pub(super) acknowledged: u64,
}

/// Of one token.
pub(super) struct Uses {
    pub(super) all: u32,
    pub(super) asked: u32,
    pub(super) acknowledged: u32,
}

/// A write and the time it took.
pub(super) struct Change {
    pub(super) began: Instant,
    pub(super) ended: Instant,
    pub(super) revision: u64,
}

impl Register {
    /// What is found is the last that was acknowledged, or one that was asked for later; from now on it stays.
    pub(super) fn settle(&mut self, name: &str, found: u64) {
        let (least, most) = (self.acknowledged, self.asked);
        assert!(
            (least..=most).contains(&found),
            "{name} is {found}: {least} was acknowledged, {most} asked for"
        );
        *self = Self { asked: found, acknowledged: found };
    }
}

impl Uses {
    /// Every enrolment that was acknowledged took a use, none took two, and what was not asked for took none.
    pub(super) fn settle(&mut self, id: &str, left: u32) {
        let used = self.all.checked_sub(left).expect("no use comes back");
        let (least, most) = (self.acknowledged, self.asked);
        assert!(
            (least..=most).contains(&used),
            "{used} of {id} are used: {least} acknowledged, {most} asked for"
        );
        (self.asked, self.acknowledged) = (used, used);
    }
}

impl Ledger {
    /// Certificates that were received: none of them was ever given to anybody.
    pub(super) fn received(&mut self, proxy: &Proxy) {
        for chain in [&proxy.tls.chain, &proxy.signing.chain] {
            assert!(self.serials.insert(serial(&chain[0])), "a serial number twice");
        }
    }

    /// Instances that nobody looked for since they were acknowledged.
    pub(super) fn unproven(&mut self) -> (&mut [Proxy], &mut [Proxy]) {
        let (enrolled, revoked) = self.proven;
        (&mut self.enrolled[enrolled..], &mut self.revoked[revoked..])
    }

    /// They were looked for.
    pub(super) fn prove(&mut self) {
        self.proven = (self.enrolled.len(), self.revoked.len());
    }

    /// No two changes have one revision, and one that began after another was acknowledged has a later one.
    pub(super) fn ordered(&self) {
        let mut by_begin: Vec<&Change> = self.changes.iter().collect();
        by_begin.sort_by_key(|change| change.began);
        let mut by_end = by_begin.clone();
        by_end.sort_by_key(|change| change.ended);
        let (mut ended, mut latest) = (by_end.into_iter().peekable(), 0);
        for change in by_begin {
            while let Some(before) = ended.next_if(|before| before.ended < change.began) {
                latest = before.revision.max(latest);
            }
            assert!(change.revision > latest, "revision {} after {latest}", change.revision);
        }
        let distinct: BTreeSet<u64> = self.changes.iter().map(|change| change.revision).collect();
        assert_eq!(distinct.len(), self.changes.len(), "one revision for two changes");
    }
}

/// A workload's manifest of a version.
pub(super) fn versioned(name: &str, version: u64) -> String {
    workload(name)
        .replace(&format!("names: [{name}.example]"), &format!("names: [v{version}.{name}.example]"))
}

/// The version in it.
pub(super) fn version_in(text: &str) -> u64 {
    let digits = text.split(|c: char| c.is_whitespace() || c == '[').find_map(|word| {
        let (version, rest) = word.strip_prefix('v')?.split_once('.')?;
        rest.contains(".example").then(|| version.parse().ok())?
    });
    digits.unwrap_or_else(|| panic!("no version in {text}"))
}

/// The serial number of a certificate in DER: what follows the version (RFC 5280 section 4.1).
fn serial(certificate: &[u8]) -> Vec<u8> {
    const VERSION_3: [u8; 5] = [0xa0, 0x03, 0x02, 0x01, 0x02];
    let at = certificate.windows(VERSION_3.len()).position(|bytes| bytes == VERSION_3).unwrap();
    let [0x02, length, rest @ ..] = &certificate[at + VERSION_3.len()..] else { panic!("no serial number") };
    rest[..usize::from(*length)].to_vec()
}
