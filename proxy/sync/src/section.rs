//! One signed, versioned section: names, versions, keys, and what exactly is signed.
//!
//! The signature is Ed25519 over
//!
//! ```text
//! "signet-section-v1\0" ‖ u32 len(name) ‖ name ‖ u64 epoch ‖ u64 counter ‖ u32 minimum_reader ‖ sha256(payload)
//! ```
//!
//! with integers in network byte order; the proof of a new epoch is Ed25519 by the policy key over
//! `"signet-epoch-v1\0" ‖ u32 len(name) ‖ name ‖ u64 epoch`. The prefixes keep one kind of signature from passing for
//! another, the name keeps one section's payload from passing for another's.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use zeroize::Zeroizing;

use crate::proto::sync as wire;
use crate::{DecodeError, MAX_NAME_BYTES, MAX_SECTION_BYTES, MAX_SECTIONS};

/// `key_id` of sections signed by the policy key.
pub const POLICY_KEY_ID: &str = "policy";

/// Prefix of the `key_id` of sections signed by an area's directory key.
const AREA_KEY_PREFIX: &str = "area/";

const SECTION_CONTEXT: &[u8] = b"signet-section-v1\0";
const EPOCH_CONTEXT: &[u8] = b"signet-epoch-v1\0";

/// `key_id` of the directory key of `area`.
pub fn area_key_id(area: &str) -> String {
    format!("{AREA_KEY_PREFIX}{area}")
}

/// What a section is about. The order is the order of sending: a directory can only be verified with the anchors that
/// name its signer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SectionName {
    /// Roots and keys.
    Anchors,
    /// Certificates no longer believed.
    Revocations,
    /// Compiled policy.
    Policy,
    /// Directory of the network named.
    Directory(String),
}

impl SectionName {
    const DIRECTORY_PREFIX: &str = "directory/";

    /// From a section's `name`; `None` for a name this version does not know.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            _ if name.len() > MAX_NAME_BYTES => None,
            "anchors" => Some(Self::Anchors),
            "policy" => Some(Self::Policy),
            "revocations" => Some(Self::Revocations),
            _ => match name.strip_prefix(Self::DIRECTORY_PREFIX) {
                Some(network) if !network.is_empty() => Some(Self::Directory(network.to_owned())),
                _ => None,
            },
        }
    }
}

impl fmt::Display for SectionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anchors => f.write_str("anchors"),
            Self::Directory(network) => write!(f, "{}{network}", Self::DIRECTORY_PREFIX),
            Self::Policy => f.write_str("policy"),
            Self::Revocations => f.write_str("revocations"),
        }
    }
}

/// Version of a section. Only ever grows; both numbers start at 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Grows when the signer's state was restored from a backup and its counter may have gone back.
    pub epoch: u64,
    /// Grows with every change.
    pub counter: u64,
}

impl Version {
    /// The first version of every section.
    pub const FIRST: Self = Self { epoch: 1, counter: 1 };

    /// The next version in this epoch.
    pub fn next(self) -> Self {
        Self { epoch: self.epoch, counter: self.counter.saturating_add(1) }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.counter)
    }
}

impl From<&wire::Section> for Version {
    fn from(section: &wire::Section) -> Self {
        Self { epoch: section.epoch, counter: section.counter }
    }
}

/// An Ed25519 key that signs sections: the policy key of a trust domain or the directory key of an area.
pub struct SectionKey {
    pair: Ed25519KeyPair,
    public: [u8; 32],
}

/// A signing key could not be made, read or used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The cryptographic library failed.
    #[error("the cryptographic library failed")]
    Crypto,
    /// Not an Ed25519 key in PKCS#8.
    #[error("not an Ed25519 key in PKCS#8")]
    Encoding,
    /// The payload is larger than [`MAX_SECTION_BYTES`].
    #[error("the payload is {bytes} bytes, the most is {MAX_SECTION_BYTES}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
}

impl SectionKey {
    /// A new key.
    ///
    /// # Errors
    /// [`KeyError::Crypto`] when there is no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        Self::new(Ed25519KeyPair::generate().map_err(|_| KeyError::Crypto)?)
    }

    /// A key from PKCS#8, version 1 or 2.
    ///
    /// # Errors
    /// [`KeyError::Encoding`].
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        Self::new(Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|_| KeyError::Encoding)?)
    }

    fn new(pair: Ed25519KeyPair) -> Result<Self, KeyError> {
        let public = pair.public_key().as_ref().try_into().map_err(|_| KeyError::Crypto)?;
        Ok(Self { pair, public })
    }

    /// The key as PKCS#8 version 2. Secret: store it 0600.
    ///
    /// # Errors
    /// [`KeyError::Crypto`].
    pub fn to_pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        Ok(Zeroizing::new(self.pair.to_pkcs8().map_err(|_| KeyError::Crypto)?.as_ref().to_vec()))
    }

    /// The public half.
    pub fn public_key(&self) -> [u8; 32] {
        self.public
    }

    /// Signs one version of a section. `key_id` tells the reader which key this is; `epoch_proof` comes from
    /// [`SectionKey::prove_epoch`] of the policy key and is left empty in epoch 1.
    ///
    /// # Errors
    /// [`KeyError::TooLarge`], [`KeyError::Crypto`].
    pub fn sign(
        &self,
        key_id: &str,
        name: &SectionName,
        version: Version,
        minimum_reader: u32,
        payload: Vec<u8>,
        epoch_proof: Vec<u8>,
    ) -> Result<wire::Section, KeyError> {
        if payload.len() > MAX_SECTION_BYTES {
            return Err(KeyError::TooLarge { bytes: payload.len() });
        }
        let mut section = wire::Section {
            name: name.to_string(),
            epoch: version.epoch,
            counter: version.counter,
            minimum_reader,
            payload,
            key_id: key_id.to_owned(),
            signature: Vec::new(),
            epoch_proof,
        };
        section.signature = self.sign_bytes(&signing_input(&section))?;
        Ok(section)
    }

    /// Proof that `epoch` of section `name` was begun by the owner of this key, the policy key.
    ///
    /// # Errors
    /// [`KeyError::Crypto`].
    pub fn prove_epoch(&self, name: &SectionName, epoch: u64) -> Result<Vec<u8>, KeyError> {
        self.sign_bytes(&epoch_input(&name.to_string(), epoch))
    }

    pub(crate) fn sign_bytes(&self, input: &[u8]) -> Result<Vec<u8>, KeyError> {
        Ok(self.pair.try_sign(input).map_err(|_| KeyError::Crypto)?.as_ref().to_vec())
    }
}

impl fmt::Debug for SectionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SectionKey").finish_non_exhaustive()
    }
}

/// Why a section was not taken. The last good one stays in force.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SectionError {
    /// The signature is not of the key that must sign this section.
    #[error("the signature does not verify")]
    BadSignature,
    /// Another payload under a version already held: the signer's state forked.
    #[error(
        "version {0} is already held with another payload: the signer's state has forked, begin a new epoch"
    )]
    Conflict(Version),
    /// The payload was not understood.
    #[error("the payload is malformed: {0}")]
    Decode(#[from] DecodeError),
    /// An epoch above 1 without a proof by the policy key.
    #[error("epoch {0} has no valid proof by the policy key")]
    EpochUnproven(u64),
    /// Names another key than the one that must sign this section, or one the anchors do not list for it.
    #[error("key {0:?} may not sign this section")]
    KeyNotAllowed(String),
    /// Anchors name another policy key than the one learned at enrolment.
    #[error("the anchors name another policy key: enrol again")]
    PolicyKeyChanged,
    /// Only a newer version of this software may apply the section.
    #[error("only a reader of protocol {minimum} or later may apply this section: upgrade this proxy")]
    ReaderTooOld {
        /// Protocol number needed.
        minimum: u32,
    },
    /// An older version than the one held.
    #[error("version {offered} is older than {held}, which is held")]
    Rollback {
        /// Version in force.
        held: Version,
        /// Version received.
        offered: Version,
    },
    /// The payload is above [`MAX_SECTION_BYTES`].
    #[error("the payload is larger than {MAX_SECTION_BYTES} bytes")]
    TooLarge,
    /// More sections than a proxy follows.
    #[error("more than {MAX_SECTIONS} sections")]
    TooManySections,
    /// The payload is of another trust domain.
    #[error("the section is of another trust domain")]
    TrustDomain,
    /// A name this version does not know.
    #[error("this version knows no such section")]
    UnknownSection,
    /// Epoch or counter is 0.
    #[error("epoch and counter start at 1")]
    VersionZero,
}

impl SectionError {
    /// Stable code, for `Nack.code` and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadSignature => "bad-signature",
            Self::Conflict(_) => "conflict",
            Self::Decode(_) => "malformed-payload",
            Self::EpochUnproven(_) => "epoch-unproven",
            Self::KeyNotAllowed(_) => "key-not-allowed",
            Self::PolicyKeyChanged => "policy-key-changed",
            Self::ReaderTooOld { .. } => "reader-too-old",
            Self::Rollback { .. } => "rollback",
            Self::TooLarge => "too-large",
            Self::TooManySections => "too-many-sections",
            Self::TrustDomain => "trust-domain",
            Self::UnknownSection => "unknown-section",
            Self::VersionZero => "version-zero",
        }
    }
}

/// The area a `key_id` names, if it names one.
pub(crate) fn area_of(key_id: &str) -> Option<&str> {
    key_id.strip_prefix(AREA_KEY_PREFIX)
}

pub(crate) fn verify_section(key: &[u8; 32], section: &wire::Section) -> Result<(), SectionError> {
    UnparsedPublicKey::new(&ED25519, key)
        .verify(&signing_input(section), &section.signature)
        .map_err(|_| SectionError::BadSignature)
}

/// The first epoch needs no proof; every later one does, whatever is held, so that the answer depends on the section alone.
pub(crate) fn verify_epoch(policy_key: &[u8; 32], section: &wire::Section) -> Result<(), SectionError> {
    if section.epoch == Version::FIRST.epoch {
        return Ok(());
    }
    UnparsedPublicKey::new(&ED25519, policy_key)
        .verify(&epoch_input(&section.name, section.epoch), &section.epoch_proof)
        .map_err(|_| SectionError::EpochUnproven(section.epoch))
}

pub(crate) fn payload_sha256(payload: &[u8]) -> Vec<u8> {
    digest(&SHA256, payload).as_ref().to_vec()
}

fn signing_input(section: &wire::Section) -> Vec<u8> {
    let mut input = SECTION_CONTEXT.to_vec();
    push_name(&mut input, &section.name);
    input.extend(section.epoch.to_be_bytes());
    input.extend(section.counter.to_be_bytes());
    input.extend(section.minimum_reader.to_be_bytes());
    input.extend(payload_sha256(&section.payload));
    input
}

fn epoch_input(name: &str, epoch: u64) -> Vec<u8> {
    let mut input = EPOCH_CONTEXT.to_vec();
    push_name(&mut input, name);
    input.extend(epoch.to_be_bytes());
    input
}

fn push_name(input: &mut Vec<u8>, name: &str) {
    // Names are bounded by MAX_NAME_BYTES before anything is verified, so the length always fits.
    input.extend(u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes());
    input.extend(name.as_bytes());
}
