//! The two kinds of public key that Signet certifies, as they stand in a SubjectPublicKeyInfo (RFC 5480,
//! RFC 8410). Both have one encoding only, so a prefix comparison is a complete parse.

use aws_lc_rs::signature::{self, UnparsedPublicKey};

/// Which key a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyKind {
    /// Messages.
    Ed25519,
    /// Channels and authorities.
    P256,
}

impl KeyKind {
    /// The key itself in a SubjectPublicKeyInfo: 32 bytes, or an uncompressed point of 65 bytes. `None` for
    /// another kind of key, and for an Ed25519 key of small order: signatures under it can be made to fit any
    /// message, so they would prove nothing.
    pub(crate) fn public_key(self, spki: &[u8]) -> Option<&[u8]> {
        match self {
            Self::Ed25519 => {
                let key: &[u8; 32] = spki.strip_prefix(&ED25519_PREFIX)?.try_into().ok()?;
                (!is_small_order(key)).then_some(key)
            }
            // Whether the point lies on the curve is for the first signature check to say.
            Self::P256 => {
                let is_p256 = spki.len() == P256_SPKI_BYTES && spki.starts_with(&P256_PREFIX);
                if is_p256 { spki.get(P256_POINT_AT..) } else { None }
            }
        }
    }

    /// Whether `signature`, of the given X.509 AlgorithmIdentifier, is this kind of key's over `message`.
    pub(crate) fn verifies(self, spki: &[u8], algorithm: &[u8], message: &[u8], signature: &[u8]) -> bool {
        let Some(key) = self.public_key(spki) else { return false };
        match self {
            Self::Ed25519 => {
                algorithm == ED25519_ALGORITHM
                    && UnparsedPublicKey::new(&signature::ED25519, key).verify(message, signature).is_ok()
            }
            Self::P256 => {
                algorithm == ECDSA_SHA256_ALGORITHM
                    && UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_ASN1, key)
                        .verify(message, signature)
                        .is_ok()
            }
        }
    }

    /// Whether a P-256 signature, DER, is of this key over `message`.
    pub(crate) fn signed(self, spki: &[u8], message: &[u8], signature: &[u8]) -> bool {
        self.verifies(spki, &ECDSA_SHA256_ALGORITHM, message, signature)
    }

    pub(crate) fn issuing_algorithm(self) -> &'static rcgen::SignatureAlgorithm {
        match self {
            Self::Ed25519 => &rcgen::PKCS_ED25519,
            Self::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
        }
    }
}

/// The SubjectPublicKeyInfo (RFC 5480) of an uncompressed point on P-256.
pub fn p256_spki(point: &[u8]) -> Vec<u8> {
    // The prefix has the point's first byte.
    [&P256_PREFIX[..P256_POINT_AT], point].concat()
}

/// ECDSA-Sig-Value (RFC 3279 section 2.2.3) of the two halves of a signature on P-256, as a module gives them: big-endian,
/// with or without zeros in front. `None` for what is longer than a half can be, or nothing.
pub fn ecdsa_signature(r: &[u8], s: &[u8]) -> Option<Vec<u8>> {
    let content = [integer(r)?, integer(s)?].concat();
    // At most 70 bytes: one byte of length.
    Some([&[0x30, u8::try_from(content.len()).ok()?], &*content].concat())
}

/// A positive INTEGER without leading zeros.
fn integer(bytes: &[u8]) -> Option<Vec<u8>> {
    let last = bytes.len().checked_sub(1)?;
    let first = bytes.iter().position(|byte| *byte != 0).unwrap_or(last);
    let digits = bytes.get(first..).filter(|digits| digits.len() <= P256_SCALAR_BYTES)?;
    let sign = if digits.first().is_some_and(|byte| byte & 0x80 != 0) { &[0][..] } else { &[] };
    let length = u8::try_from(sign.len() + digits.len()).ok()?;
    Some([&[0x02, length], sign, digits].concat())
}

const P256_SCALAR_BYTES: usize = 32;

/// Up to and including the first byte, 0x04, of an uncompressed point on P-256.
const P256_PREFIX: [u8; 27] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];
const P256_SPKI_BYTES: usize = P256_PREFIX.len() + 64;
const P256_POINT_AT: usize = P256_PREFIX.len() - 1;

const ED25519_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The content of the AlgorithmIdentifier sequence: ecdsa-with-SHA256, id-Ed25519; neither has parameters.
const ECDSA_SHA256_ALGORITHM: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const ED25519_ALGORITHM: [u8; 5] = [0x06, 0x03, 0x2b, 0x65, 0x70];

/// Whether an encoded point's order divides the cofactor 8. The y coordinates of these points are few; the
/// non-canonical encodings p and p+1 of 0 and 1 are listed too, and the sign of x (top bit) does not matter.
fn is_small_order(key: &[u8; 32]) -> bool {
    const ORDER_8_A: [u8; 32] = [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5,
        0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
    ];
    const ORDER_8_B: [u8; 32] = [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a,
        0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
    ];
    let mut y = *key;
    y[31] &= 0x7f;
    // The field prime is 2^255 - 19: little-endian 0xed, 30 times 0xff, 0x7f.
    let near_prime = y[1..31].iter().all(|&b| b == 0xff) && y[31] == 0x7f && (0xec..=0xee).contains(&y[0]);
    let zero_or_one = y[0] <= 1 && y[1..].iter().all(|&b| b == 0);
    near_prime || zero_or_one || y == ORDER_8_A || y == ORDER_8_B
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_order_keys_are_refused() {
        let spki = |key: [u8; 32]| [&ED25519_PREFIX[..], &key].concat();
        let mut prime_minus_one = [0xff; 32];
        (prime_minus_one[0], prime_minus_one[31]) = (0xec, 0x7f);
        let mut identity = [0; 32];
        identity[0] = 1;
        let mut negative_identity = identity;
        negative_identity[31] = 0x80;
        for weak in [[0; 32], identity, negative_identity, prime_minus_one] {
            assert_eq!(KeyKind::Ed25519.public_key(&spki(weak)), None);
        }
        let mut base_point = [0x66; 32];
        base_point[0] = 0x58;
        assert_eq!(KeyKind::Ed25519.public_key(&spki(base_point)), Some(&base_point[..]));
    }

    #[test]
    fn signatures_are_written_as_certificates_have_them() {
        let half = |last: u8| [&[0; 31][..], &[last]].concat();
        assert_eq!(ecdsa_signature(&half(1), &half(0)).unwrap(), [0x30, 6, 2, 1, 1, 2, 1, 0]);
        assert_eq!(ecdsa_signature(&[1], &[0]).unwrap(), [0x30, 6, 2, 1, 1, 2, 1, 0]);
        let long = ecdsa_signature(&[0xff; 32], &[0xff; 32]).unwrap();
        assert_eq!((long.len(), &long[..5]), (72, &[0x30, 70, 2, 33, 0][..]));
        assert_eq!(ecdsa_signature(&[0xff; 33], &[1]), None);
        assert_eq!(ecdsa_signature(&[1], &[]), None);
    }

    #[test]
    fn a_point_and_its_spki_are_one() {
        let spki = p256_spki(&[&[0x04][..], &[9; 64]].concat());
        assert_eq!(KeyKind::P256.public_key(&spki).map(<[u8]>::len), Some(65));
    }

    #[test]
    fn keys_of_another_length_or_kind_are_refused() {
        let ed25519 = |length: usize| [&ED25519_PREFIX[..], &vec![9; length]].concat();
        let p256 = |length: usize| [&P256_PREFIX[..], &vec![9; length]].concat();
        assert_eq!(KeyKind::Ed25519.public_key(&ed25519(31)), None);
        assert_eq!(KeyKind::Ed25519.public_key(&ed25519(33)), None);
        assert_eq!(KeyKind::Ed25519.public_key(&p256(64)), None);
        assert_eq!(KeyKind::P256.public_key(&p256(63)), None);
        assert_eq!(KeyKind::P256.public_key(&ed25519(32)), None);
        assert_eq!(KeyKind::P256.public_key(&p256(64)).map(<[u8]>::len), Some(65));
    }
}
