//! What the control plane says now and then on each stream: what time it is, and which anchors, policy and list of
//! revocations are the newest. Signed, so that a proxy can keep it and show itself, after a restart, when it last heard.
//!
//! The signature is Ed25519 by the policy key over
//!
//! ```text
//! "signet-freshness-v2\0" ‖ u64 unix_ms ‖ u64 epoch, u64 counter of anchors ‖ the same of policy ‖ the same of revocations
//! ```
//!
//! with integers in network byte order.

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};

use crate::proto::sync as wire;
use crate::{KeyError, SectionError, SectionKey, Version};

/// What an area passes on within this time was said now, in milliseconds: clocks are set by it.
pub const SAID_NOW_MS: u64 = 1_000;

const CONTEXT: &[u8] = b"signet-freshness-v2\0";

impl SectionKey {
    /// Says what time it is and which versions are the newest. The key is the policy key.
    ///
    /// # Errors
    /// [`KeyError::Crypto`].
    pub fn sign_freshness(
        &self,
        unix_ms: u64,
        [anchors, policy, revocations]: [Version; 3],
    ) -> Result<wire::Freshness, KeyError> {
        let mut said = wire::Freshness {
            unix_ms,
            anchors_epoch: anchors.epoch,
            anchors_counter: anchors.counter,
            policy_epoch: policy.epoch,
            policy_counter: policy.counter,
            revocations_epoch: revocations.epoch,
            revocations_counter: revocations.counter,
            signature: Vec::new(),
            kept_ms: 0,
        };
        said.signature = self.sign_bytes(&input(&said))?;
        Ok(said)
    }
}

pub(crate) fn verify(policy_key: &[u8; 32], said: &wire::Freshness) -> Result<(), SectionError> {
    UnparsedPublicKey::new(&ED25519, policy_key)
        .verify(&input(said), &said.signature)
        .map_err(|_| SectionError::BadSignature)
}

pub(crate) fn anchors(said: &wire::Freshness) -> Version {
    Version { epoch: said.anchors_epoch, counter: said.anchors_counter }
}

pub(crate) fn policy(said: &wire::Freshness) -> Version {
    Version { epoch: said.policy_epoch, counter: said.policy_counter }
}

pub(crate) fn revocations(said: &wire::Freshness) -> Version {
    Version { epoch: said.revocations_epoch, counter: said.revocations_counter }
}

fn input(said: &wire::Freshness) -> Vec<u8> {
    let mut input = CONTEXT.to_vec();
    for number in [
        said.unix_ms,
        said.anchors_epoch,
        said.anchors_counter,
        said.policy_epoch,
        said.policy_counter,
        said.revocations_epoch,
        said.revocations_counter,
    ] {
        input.extend(number.to_be_bytes());
    }
    input
}
