//! Keys as a TPM describes them (part 2, section 12): the endorsement key that every TPM has one of, and the key of a
//! channel.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use signet_identity::{hex, p256_spki};
use thiserror::Error;

use crate::wire::{Reader, Refusal, sized};

/// Bytes of a coordinate on P-256.
pub(crate) const COORDINATE: usize = 32;
/// Bytes of an uncompressed point.
pub(crate) const POINT: usize = 1 + 2 * COORDINATE;

const SHA256_ID: u16 = 0x000b;
const NULL: u16 = 0x0010;
const ECC: u16 = 0x0023;
const ECDSA: u16 = 0x0018;
const AES: u16 = 0x0006;
const CFB: u16 = 0x0043;
const P256: u16 = 0x0003;

/// It never leaves the TPM and was made by it; the empty password uses it, and failures do not lock it; it signs what is
/// given.
const CHANNEL_ATTRIBUTES: u32 =
    FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | USER_WITH_AUTH | NO_DA | SIGN;
/// Template L-2 of TCG's "EK Credential Profile", section B.3.4.
const ENDORSEMENT_ATTRIBUTES: u32 =
    FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | ADMIN_WITH_POLICY | RESTRICTED | DECRYPT;

const FIXED_TPM: u32 = 1 << 1;
const FIXED_PARENT: u32 = 1 << 4;
const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
const USER_WITH_AUTH: u32 = 1 << 6;
const ADMIN_WITH_POLICY: u32 = 1 << 7;
const NO_DA: u32 = 1 << 10;
const RESTRICTED: u32 = 1 << 16;
const DECRYPT: u32 = 1 << 17;
const SIGN: u32 = 1 << 18;

/// The digest of PolicySecret over the endorsement hierarchy, as the same profile gives it (section B.6.2, PolicyA).
const ENDORSEMENT_POLICY: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24, 0xfd,
    0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];

/// The public half of a TPM's endorsement key on P-256: it is made from a seed that the TPM was built with, so it names the
/// TPM until somebody has that seed changed (TPM2_ChangeEPS). TPM2_Clear leaves it, and ends the keys of channels.
#[derive(Clone, PartialEq, Eq)]
pub struct EndorsementKey([u8; POINT]);

/// Not an endorsement key.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("an endorsement key is an uncompressed point on P-256, 65 bytes")]
pub struct EndorsementKeyError;

impl EndorsementKey {
    /// From an uncompressed point. Whether it lies on the curve is for the first that is encrypted to it to say.
    ///
    /// # Errors
    /// [`EndorsementKeyError`].
    pub fn new(point: &[u8]) -> Result<Self, EndorsementKeyError> {
        let point: [u8; POINT] = point.try_into().map_err(|_| EndorsementKeyError)?;
        if point.first() == Some(&0x04) { Ok(Self(point)) } else { Err(EndorsementKeyError) }
    }

    /// The uncompressed point.
    pub fn point(&self) -> &[u8] {
        &self.0
    }

    /// SHA-256 of its SubjectPublicKeyInfo in DER: what `openssl pkey -pubin -outform der | sha256sum` says of it.
    pub fn sha256(&self) -> [u8; 32] {
        let hash = digest(&SHA256, &p256_spki(&self.0));
        hash.as_ref().try_into().unwrap_or_default()
    }
}

impl fmt::Debug for EndorsementKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EndorsementKey({})", hex(&self.sha256()))
    }
}

/// What the endorsement key is made from: the same for all TPMs, for each has a seed of its own.
pub(crate) fn endorsement_template() -> Vec<u8> {
    let zeros = [0; COORDINATE];
    let symmetric = [AES, 128, CFB];
    public(ENDORSEMENT_ATTRIBUTES, &ENDORSEMENT_POLICY, &symmetric, &[NULL], [&zeros, &zeros])
}

/// What a channel's key is made from: with the same `nonce` the same TPM makes the same key again, and nothing has to be kept
/// but the nonce.
pub(crate) fn channel_template(nonce: &[u8; COORDINATE]) -> Vec<u8> {
    public(CHANNEL_ATTRIBUTES, &[], &[NULL], &[ECDSA, SHA256_ID], [nonce, &[]])
}

/// The name (part 1, section 16) of a channel's key: its hash, attributes and all. A key that could leave its TPM, or came
/// from outside, has another.
pub(crate) fn channel_name(point: &[u8]) -> Option<Vec<u8>> {
    let [x, y] = coordinates(point)?;
    let public = public(CHANNEL_ATTRIBUTES, &[], &[NULL], &[ECDSA, SHA256_ID], [x, y]);
    Some([&SHA256_ID.to_be_bytes()[..], digest(&SHA256, &public).as_ref()].concat())
}

/// Both coordinates of an uncompressed point.
pub(crate) fn coordinates(point: &[u8]) -> Option<[&[u8]; 2]> {
    if point.len() != POINT || point.first() != Some(&0x04) {
        return None;
    }
    let (x, y) = point.get(1..)?.split_at_checked(COORDINATE)?;
    Some([x, y])
}

/// TPMT_PUBLIC of a key on P-256.
fn public(attributes: u32, policy: &[u8], symmetric: &[u16], scheme: &[u16], unique: [&[u8]; 2]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(ECC.to_be_bytes());
    out.extend(SHA256_ID.to_be_bytes());
    out.extend(attributes.to_be_bytes());
    out.extend(sized(policy));
    // What it encrypts children with, what it signs with, its curve, and how it derives keys: not at all.
    for word in symmetric.iter().chain(scheme).chain(&[P256, NULL]) {
        out.extend(word.to_be_bytes());
    }
    unique.iter().for_each(|coordinate| out.extend(sized(coordinate)));
    out
}

/// The point in a TPMT_PUBLIC that a TPM made from one of the templates here; `None` when a coordinate begins with a zero
/// that the TPM left out.
pub(crate) fn point_of(
    made: &[u8],
    template: &[u8],
    unique_bytes: usize,
) -> Result<Option<[u8; POINT]>, Refusal> {
    // All but the last two strings is what was asked for.
    let fixed = template.len().checked_sub(unique_bytes).ok_or(Refusal::Malformed)?;
    let (head, unique) = made.split_at_checked(fixed).ok_or(Refusal::Malformed)?;
    if template.get(..fixed) != Some(head) {
        return Err(Refusal::Malformed);
    }
    let mut reader = Reader::new(unique);
    let (x, y) = (reader.sized()?, reader.sized()?);
    reader.finish()?;
    Ok([&[0x04], x, y].concat().try_into().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_have_the_attributes_and_the_layout_of_the_profiles() {
        let endorsement = endorsement_template();
        assert_eq!(&endorsement[..8], [0, 0x23, 0, 0x0b, 0, 0x03, 0, 0xb2]);
        assert_eq!(endorsement.len(), 8 + 2 + 32 + 12 + 2 * 34);
        let channel = channel_template(&[5; COORDINATE]);
        assert_eq!(&channel[..10], [0, 0x23, 0, 0x0b, 0, 0x04, 0x04, 0x72, 0, 0]);
        assert_eq!(channel.len(), 10 + 10 + 34 + 2);
    }

    #[test]
    fn a_name_is_of_a_whole_point_only() {
        let point = [&[0x04][..], &[1; 64]].concat();
        assert_eq!(channel_name(&point).unwrap().len(), 34);
        assert_eq!(channel_name(&point[1..]), None);
        assert_eq!(channel_name(&[&[0x02][..], &[1; 64]].concat()), None);
        assert_eq!(EndorsementKey::new(&point[1..]), Err(EndorsementKeyError));
    }

    #[test]
    fn what_the_tpm_made_is_what_was_asked_for() {
        let template = channel_template(&[5; COORDINATE]);
        let made = public(CHANNEL_ATTRIBUTES, &[], &[NULL], &[ECDSA, SHA256_ID], [&[1; 32], &[2; 32]]);
        let unique = 34 + 2;
        assert_eq!(point_of(&made, &template, unique).unwrap().unwrap()[33], 2);
        let exportable = public(SIGN, &[], &[NULL], &[ECDSA, SHA256_ID], [&[1; 32], &[2; 32]]);
        assert!(point_of(&exportable, &template, unique).is_err());
        let short = public(CHANNEL_ATTRIBUTES, &[], &[NULL], &[ECDSA, SHA256_ID], [&[1; 31], &[2; 32]]);
        assert_eq!(point_of(&short, &template, unique).unwrap(), None);
        assert!(point_of(&made[..made.len() - 1], &template, unique).is_err());
    }
}
