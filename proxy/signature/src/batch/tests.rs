use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;

/// The key of RFC 9421 appendix B.1.4, which the reference vectors are made with.
const SEED: [u8; 32] = [
    0x9f, 0x83, 0x62, 0xf8, 0x7a, 0x48, 0x4a, 0x95, 0x4e, 0x6e, 0x74, 0x0c, 0x5b, 0x4c, 0x0e, 0x84, 0x22,
    0x91, 0x39, 0xa2, 0x0a, 0xa8, 0xab, 0x56, 0xff, 0x66, 0x58, 0x6f, 0x6a, 0x7d, 0x29, 0xc5,
];

struct Signer(Ed25519KeyPair);

impl Signer {
    fn new(seed: &[u8; 32]) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(seed).unwrap())
    }

    fn public_key(&self) -> [u8; 32] {
        self.0.public_key().as_ref().try_into().unwrap()
    }

    fn sign(&self, statement: &[u8]) -> Option<[u8; 64]> {
        self.0.sign(statement).as_ref().try_into().ok()
    }

    fn batch(&self, messages: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let messages: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
        sign_batch(&messages, |statement| self.sign(statement)).unwrap()
    }

    fn accepts(&self, message: &[u8], value: &[u8]) -> bool {
        verify(&self.public_key(), message, value, &mut RootCache::default()).is_ok()
    }
}

fn verify(key: &[u8; 32], message: &[u8], value: &[u8], roots: &mut RootCache) -> Result<(), BatchError> {
    BatchSignature::parse(value)?.verify(key, message, roots)
}

fn messages(count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|number| format!("\"@method\": GET\n{number}").into_bytes()).collect()
}

#[test]
fn the_vectors_of_the_reference_implementation_are_reproduced_byte_for_byte() {
    let vectors: serde_json::Value = serde_json::from_str(include_str!("reference-n3.json")).unwrap();
    let vectors = vectors.as_array().unwrap();
    let messages: Vec<&[u8]> = vectors.iter().map(|v| v["m"].as_str().unwrap().as_bytes()).collect();
    let expected: Vec<_> =
        vectors.iter().map(|v| STANDARD.decode(v["sig"].as_str().unwrap()).unwrap()).collect();
    // The reference blinds leaf i with the beginning of SHA-256("r<i>").
    let blinders: Vec<[u8; 16]> =
        (0..3).map(|i| hash(&[format!("r{i}").as_bytes()])[..16].try_into().unwrap()).collect();
    let signer = Signer::new(&SEED);
    let made = sign_blinded(&messages, &blinders, |statement| signer.sign(statement)).unwrap();
    assert_eq!(made, expected);
    for (message, value) in messages.iter().zip(&expected) {
        assert!(signer.accepts(message, value));
    }
}

#[test]
fn roots_are_those_of_rfc_6962() {
    let data: [&[u8]; 8] = [
        b"",
        b"\x00",
        b"\x10",
        b"\x20\x21",
        b"\x30\x31",
        b"\x40\x41\x42\x43",
        b"\x50\x51\x52\x53\x54\x55\x56\x57",
        b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
    ];
    let leaves: Vec<Hash> = data.iter().map(|data| hash(&[b"\0", data])).collect();
    let begins = [
        0x6e34_0b9c,
        0xfac5_4203,
        0xaeb6_bcfe,
        0xd37e_e418,
        0x4e3b_bb1f,
        0x76e6_7dad,
        0xddb8_9be4,
        0x5dc9_da79,
    ];
    for (size, begin) in (1..).zip(begins) {
        let root = grow(&leaves[..size], &mut vec![Vec::new(); size]);
        assert_eq!(u32::from_be_bytes(root[..4].try_into().unwrap()), begin, "{size} leaves");
    }
}

#[test]
fn every_message_of_a_batch_of_any_size_verifies_alone() {
    let signer = Signer::new(&SEED);
    for size in (1..=40).chain([63, 64, 65, 127, 128, 129, 255, 256]) {
        let messages = messages(size);
        for (message, value) in messages.iter().zip(signer.batch(&messages)) {
            assert!(signer.accepts(message, &value), "{size}");
        }
    }
    assert!(sign_batch(&[], |statement| signer.sign(statement)).is_err());
    let many = messages(MAX_BATCH + 1);
    let many: Vec<&[u8]> = many.iter().map(Vec::as_slice).collect();
    assert!(sign_batch(&many, |statement| signer.sign(statement)).is_err());
}

#[test]
fn one_root_is_verified_once_and_only_for_its_key() {
    let signer = Signer::new(&SEED);
    let messages = messages(16);
    let values = signer.batch(&messages);
    let mut roots = RootCache::default();
    for (message, value) in messages.iter().zip(&values) {
        verify(&signer.public_key(), message, value, &mut roots).unwrap();
    }
    assert_eq!(roots.counts(), (15, 1));
    let other = Signer::new(&[7; 32]).public_key();
    assert_eq!(verify(&other, &messages[0], &values[0], &mut roots), Err(BatchError::BadSignature));
    // What is remembered is the whole statement: a known root under another signature is verified again.
    let mut forged = values[1].clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(
        verify(&signer.public_key(), &messages[1], &forged, &mut roots),
        Err(BatchError::BadSignature)
    );
}

#[test]
fn a_cache_of_roots_does_not_grow_without_bound_and_forgets_the_oldest() {
    let signer = Signer::new(&SEED);
    let mut roots = RootCache::default();
    let message = messages(1);
    for _ in 0..2 * ROOTS + 1 {
        let value = signer.batch(&message);
        verify(&signer.public_key(), &message[0], &value[0], &mut roots).unwrap();
        assert!(roots.young.len() <= ROOTS && roots.old.len() <= ROOTS);
    }
    assert_eq!(roots.counts().0, 0);
}

#[test]
fn no_bit_of_a_value_or_its_message_can_be_changed() {
    let signer = Signer::new(&SEED);
    let messages = messages(5);
    for (message, value) in messages.iter().zip(signer.batch(&messages)) {
        for bit in 0..value.len() * 8 {
            let mut changed = value.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(!signer.accepts(message, &changed), "bit {bit}");
        }
        for bit in 0..message.len() * 8 {
            let mut changed = message.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(!signer.accepts(&changed, &value), "bit {bit} of the message");
        }
    }
}

#[test]
fn a_value_fits_one_message_and_one_place_only() {
    let signer = Signer::new(&SEED);
    let messages = messages(8);
    let values = signer.batch(&messages);
    for (at, message) in messages.iter().enumerate() {
        for (other, value) in values.iter().enumerate() {
            assert_eq!(signer.accepts(message, value), at == other);
        }
        let mut moved = values[at].clone();
        moved[3] = (at as u8 + 1) % 8;
        assert!(!signer.accepts(message, &moved));
    }
    // An inner node is not a leaf: the prefix of a leaf's hash keeps them apart.
    let node_as_message = [&hash(&[b"x"])[..], &hash(&[b"y"])].concat();
    assert!(!signer.accepts(&node_as_message, &values[0]));
}

#[test]
fn a_plain_signature_and_a_batch_signature_cannot_be_taken_for_each_other() {
    let signer = Signer::new(&SEED);
    let message = b"\"@method\": GET".to_vec();
    let plain = signer.sign(&message).unwrap();
    assert!(BatchSignature::parse(&plain).is_err());
    let value = signer.batch(std::slice::from_ref(&message)).remove(0);
    let root_signature: &[u8] = &value[value.len() - 64..];
    assert!(verify_ed25519(&signer.public_key(), &message, root_signature).is_err());
    let mut posing = value.clone();
    let end = posing.len();
    posing[end - 64..].copy_from_slice(&plain);
    assert!(!signer.accepts(&message, &posing));
}

#[test]
fn malformed_values_are_refused_without_a_panic() {
    let signer = Signer::new(&SEED);
    let messages = messages(3);
    let value = &signer.batch(&messages)[0];
    for length in 0..value.len() {
        assert!(BatchSignature::parse(&value[..length]).is_err(), "{length} bytes");
    }
    assert!(BatchSignature::parse(&[&value[..], &[0; 32]].concat()).is_err());
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = value.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    for (why, changed) in [
        ("version", with(0, &[2])),
        ("depth", with(1, &[3])),
        ("index outside", with(2, &[0, 3])),
        ("no leaves", with(2, &[0, 0, 0, 0])),
        ("too many leaves", with(4, &[1, 1])),
    ] {
        assert_eq!(BatchSignature::parse(&changed).unwrap_err(), BatchError::Malformed, "{why}");
    }
    // A tree of two leaves has a path of one, one of 256 a path of eight.
    for size in [2_u16, 256] {
        assert_eq!(
            verify(
                &signer.public_key(),
                &messages[0],
                &with(4, &size.to_be_bytes()),
                &mut RootCache::default()
            ),
            Err(BatchError::Malformed)
        );
    }
}

#[test]
fn a_key_of_small_order_proves_nothing() {
    let value = Signer::new(&SEED).batch(&messages(1)).remove(0);
    let mut one = [0; 32];
    one[0] = 1;
    assert_eq!(
        verify(&one, &messages(1)[0], &value, &mut RootCache::default()),
        Err(BatchError::BadSignature)
    );
}
