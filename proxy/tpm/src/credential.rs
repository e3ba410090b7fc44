//! A credential that one TPM can open, and only if it holds a certain key (part 1, section 24; part 3, section 12.6): a
//! secret, encrypted for the endorsement key and bound to the other key's name.

use aws_lc_rs::agreement::{self, ECDH_P256, PrivateKey, UnparsedPublicKey};
use aws_lc_rs::cipher::{AES_128, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::digest::{self, SHA256};
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;
use thiserror::Error;

use crate::object::{EndorsementKey, channel_name, coordinates};
use crate::wire::sized;

/// What every answer is over first.
const ANSWER: &[u8] = b"signet answer of a tpm, version 1\0";

/// Bytes of the secret in a challenge.
pub const SECRET_BYTES: usize = 32;

/// What is sent to the device: both are of no use to anybody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// The content of a TPM2B_ID_OBJECT.
    pub credential: Vec<u8>,
    /// The content of a TPM2B_ENCRYPTED_SECRET.
    pub secret: Vec<u8>,
}

/// Why no challenge was made.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ChallengeError {
    /// The cryptographic library cannot.
    #[error("the cryptographic library cannot make a challenge")]
    Library,
    /// One of the two keys is none of P-256.
    #[error("the endorsement key or the channel's key is no point on P-256")]
    Point,
}

/// Hides `secret` so that it is given out by the TPM of `endorsement` alone, and only if that TPM holds the channel's key
/// `point`, made by itself and never to leave it.
///
/// # Errors
/// [`ChallengeError`].
pub fn challenge(
    endorsement: &EndorsementKey,
    point: &[u8],
    secret: &[u8; SECRET_BYTES],
) -> Result<Challenge, ChallengeError> {
    let name = channel_name(point).ok_or(ChallengeError::Point)?;
    let ephemeral = PrivateKey::generate(&ECDH_P256).map_err(|_| ChallengeError::Library)?;
    let public = ephemeral.compute_public_key().map_err(|_| ChallengeError::Library)?;
    let [ephemeral_x, ephemeral_y] = coordinates(public.as_ref()).ok_or(ChallengeError::Library)?;
    let [endorsement_x, _] = coordinates(endorsement.point()).ok_or(ChallengeError::Point)?;
    // Refuses what does not lie on the curve.
    let peer = UnparsedPublicKey::new(&ECDH_P256, endorsement.point());
    let seed = agreement::agree(&ephemeral, peer, ChallengeError::Point, |shared| {
        Ok(kdf_e(shared, b"IDENTITY", ephemeral_x, endorsement_x))
    })?;

    let key = kdf_a(&seed, b"STORAGE", &name, 128);
    let encrypted = encrypt(key.get(..16).ok_or(ChallengeError::Library)?, &sized(secret))?;
    let integrity = hmac::Key::new(hmac::HMAC_SHA256, &kdf_a(&seed, b"INTEGRITY", &[], 256));
    let mac = hmac::sign(&integrity, &[encrypted.as_slice(), &name].concat());
    Ok(Challenge {
        credential: [sized(mac.as_ref()), encrypted].concat(),
        secret: [sized(ephemeral_x), sized(ephemeral_y)].concat(),
    })
}

/// What a device answers: the secret that its TPM opened, for the connection it sees and the requests it made. Whoever passes a
/// challenge on that was made for a connection of his own gets an answer that is good nowhere.
pub fn answer(opened: &[u8], binding: &[u8; 32], requests: [&[u8]; 2]) -> [u8; 32] {
    let mut mac = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, opened));
    mac.update(ANSWER);
    mac.update(binding);
    for request in requests {
        mac.update(&(request.len() as u64).to_be_bytes());
        mac.update(request);
    }
    mac.sign().as_ref().try_into().unwrap_or_default()
}

/// KDFe (part 1, section 11.4.10.3) with SHA-256, for 256 bits: one round.
fn kdf_e(shared: &[u8], label: &[u8], party_u: &[u8], party_v: &[u8]) -> [u8; 32] {
    let mut hash = digest::Context::new(&SHA256);
    for part in [&1_u32.to_be_bytes()[..], shared, label, &[0], party_u, party_v] {
        hash.update(part);
    }
    hash.finish().as_ref().try_into().unwrap_or_default()
}

/// KDFa (part 1, section 11.4.10.2) with SHA-256, for up to 256 bits: one round, whose front is taken.
fn kdf_a(key: &[u8], label: &[u8], context: &[u8], bits: u32) -> Vec<u8> {
    let mut mac = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    for part in [&1_u32.to_be_bytes()[..], label, &[0], context, &bits.to_be_bytes()] {
        mac.update(part);
    }
    mac.sign().as_ref().to_vec()
}

/// AES-128 in CFB mode from an IV of zeros: the key is used once.
fn encrypt(key: &[u8], plain: &[u8]) -> Result<Vec<u8>, ChallengeError> {
    let key = UnboundCipherKey::new(&AES_128, key).map_err(|_| ChallengeError::Library)?;
    let key = EncryptingKey::cfb128(key).map_err(|_| ChallengeError::Library)?;
    let mut bytes = plain.to_vec();
    let zeros = EncryptionContext::Iv128(FixedLength::from(&[0; 16]));
    key.less_safe_encrypt(&mut bytes, zeros).map_err(|_| ChallengeError::Library)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point() -> Vec<u8> {
        PrivateKey::generate(&ECDH_P256).unwrap().compute_public_key().unwrap().as_ref().to_vec()
    }

    #[test]
    fn a_challenge_has_the_layout_of_its_structures_and_is_another_each_time() {
        let (endorsement, key) = (EndorsementKey::new(&point()).unwrap(), point());
        let [first, second] = [(); 2].map(|()| challenge(&endorsement, &key, &[7; 32]).unwrap());
        assert_ne!(first, second);
        assert_eq!((first.credential.len(), first.secret.len()), (2 + 32 + 2 + 32, 2 * 34));
        assert_eq!(&first.credential[..2], [0, 32]);
        assert!(!first.credential.windows(32).any(|window| window == [7; 32]));
    }

    #[test]
    fn points_off_the_curve_are_refused() {
        let good = point();
        let off = [&[0x04][..], &[1; 64]].concat();
        let endorsement = EndorsementKey::new(&off).unwrap();
        assert_eq!(challenge(&endorsement, &good, &[7; 32]), Err(ChallengeError::Point));
        let endorsement = EndorsementKey::new(&good).unwrap();
        assert_eq!(challenge(&endorsement, &good[1..], &[7; 32]), Err(ChallengeError::Point));
    }
}
