//! Keys in every encoding, and the rule that the key decides the algorithm.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use aws_lc_rs::encoding::{AsDer as _, EcPrivateKeyRfc5915Der, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    self as sig, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use signet_signature::{Algorithm, KeyError, SigningKey, VerifyingKey};

const MESSAGE: &[u8] = b"\"@signature-params\": ()";

fn pem(label: &str, der: &[u8]) -> Vec<u8> {
    let encoded = STANDARD.encode(der);
    let lines: Vec<_> =
        encoded.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n")).into_bytes()
}

fn ed25519() -> (Vec<u8>, Vec<u8>) {
    let key = Ed25519KeyPair::generate().unwrap();
    let public: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
    (pem("PRIVATE KEY", key.to_pkcs8v1().unwrap().as_ref()), pem("PUBLIC KEY", public.as_ref()))
}

fn ecdsa(algorithm: &'static EcdsaSigningAlgorithm) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let key = EcdsaKeyPair::generate(algorithm).unwrap();
    let sec1: EcPrivateKeyRfc5915Der<'_> = key.private_key().as_der().unwrap();
    let public: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
    (
        pem("PRIVATE KEY", key.to_pkcs8v1().unwrap().as_ref()),
        pem("EC PRIVATE KEY", sec1.as_ref()),
        pem("PUBLIC KEY", public.as_ref()),
    )
}

struct Rsa {
    pkcs8: Vec<u8>,
    spki: Vec<u8>,
    pkcs1: Vec<u8>,
}

fn rsa(size: KeySize) -> Rsa {
    let key = RsaKeyPair::generate(size).unwrap();
    let pkcs8: Pkcs8V1Der<'_> = key.as_der().unwrap();
    let spki: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
    Rsa {
        pkcs8: pkcs8.as_ref().to_vec(),
        spki: spki.as_ref().to_vec(),
        pkcs1: key.public_key().as_ref().to_vec(),
    }
}

/// Marks an RSA key for RSASSA-PSS: the last byte of the algorithm identifier is what differs.
fn marked_for_pss(der: &[u8]) -> Vec<u8> {
    let rsa = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    let position = der.windows(rsa.len()).position(|window| window == rsa).unwrap();
    let mut marked = der.to_vec();
    marked[position + 8] = 0x0a;
    marked
}

fn fits(private: &[u8], public: &[u8], algorithm: Algorithm) {
    let signing = SigningKey::from_pem(private).unwrap().with_algorithm(algorithm).unwrap();
    let verifying = VerifyingKey::from_pem(public).unwrap().with_algorithm(algorithm).unwrap();
    assert_eq!((signing.algorithm(), verifying.algorithm()), (algorithm, algorithm));
    let signature = signing.sign(MESSAGE).unwrap();
    for key in [&verifying, &signing.verifying_key().unwrap()] {
        assert_eq!(key.verify(MESSAGE, &signature), Ok(()));
        assert!(key.verify(b"another message", &signature).is_err());
        assert!(key.verify(MESSAGE, &signature[1..]).is_err());
    }
}

#[test]
fn every_encoding_of_a_key_is_read() {
    let (private, public) = ed25519();
    fits(&private, &public, Algorithm::Ed25519);
    for (curve, algorithm) in [
        (&sig::ECDSA_P256_SHA256_FIXED_SIGNING, Algorithm::EcdsaP256Sha256),
        (&sig::ECDSA_P384_SHA384_FIXED_SIGNING, Algorithm::EcdsaP384Sha384),
    ] {
        let (pkcs8, sec1, public) = ecdsa(curve);
        fits(&pkcs8, &public, algorithm);
        fits(&sec1, &public, algorithm);
    }
    let rsa = rsa(KeySize::Rsa2048);
    // In PKCS#8 of this size the PKCS#1 key follows a header of 26 bytes.
    let privates = [pem("PRIVATE KEY", &rsa.pkcs8), pem("RSA PRIVATE KEY", &rsa.pkcs8[26..])];
    let publics = [pem("PUBLIC KEY", &rsa.spki), pem("RSA PUBLIC KEY", &rsa.pkcs1)];
    for private in &privates {
        for public in &publics {
            for algorithm in [Algorithm::RsaPssSha512, Algorithm::RsaV15Sha256] {
                fits(private, public, algorithm);
            }
        }
    }
    let private = pem("PRIVATE KEY", &marked_for_pss(&rsa.pkcs8));
    let public = pem("PUBLIC KEY", &marked_for_pss(&rsa.spki));
    fits(&private, &public, Algorithm::RsaPssSha512);
}

#[test]
fn no_key_takes_the_algorithm_of_another() {
    let (ed_private, ed_public) = ed25519();
    let (p256_private, _, p256_public) = ecdsa(&sig::ECDSA_P256_SHA256_FIXED_SIGNING);
    let (p384_private, _, p384_public) = ecdsa(&sig::ECDSA_P384_SHA384_FIXED_SIGNING);
    let rsa = rsa(KeySize::Rsa2048);
    let (rsa_private, rsa_public) = (pem("PRIVATE KEY", &rsa.pkcs8), pem("PUBLIC KEY", &rsa.spki));
    let pss_private = pem("PRIVATE KEY", &marked_for_pss(&rsa.pkcs8));
    let pss_public = pem("PUBLIC KEY", &marked_for_pss(&rsa.spki));
    let both = [Algorithm::RsaPssSha512, Algorithm::RsaV15Sha256];
    for (private, public, own) in [
        (&ed_private, &ed_public, &[Algorithm::Ed25519][..]),
        (&p256_private, &p256_public, &[Algorithm::EcdsaP256Sha256]),
        (&p384_private, &p384_public, &[Algorithm::EcdsaP384Sha384]),
        (&rsa_private, &rsa_public, &both),
        (&pss_private, &pss_public, &both[..1]),
    ] {
        for algorithm in Algorithm::ALL {
            let signing = SigningKey::from_pem(private).unwrap().with_algorithm(algorithm);
            let verifying = VerifyingKey::from_pem(public).unwrap().with_algorithm(algorithm);
            assert_eq!(
                (signing.is_ok(), verifying.is_ok()),
                (own.contains(&algorithm), own.contains(&algorithm))
            );
        }
    }
    let secret = SigningKey::from_hmac_secret(&ed_public).unwrap();
    assert_eq!(secret.with_algorithm(Algorithm::Ed25519).unwrap_err(), KeyError::Algorithm);
}

#[test]
fn algorithm_names_are_read_back_and_others_refused() {
    for algorithm in Algorithm::ALL {
        assert_eq!(Algorithm::from_name(algorithm.name()), Some(algorithm));
    }
    for name in ["", "none", "ED25519", "ed25519 ", "ecdsa-p521-sha512", "rsa-v1_5-sha1"] {
        assert_eq!(Algorithm::from_name(name), None);
    }
}

#[test]
fn ecdsa_signatures_are_fixed_length_and_never_der() {
    let (private, _, public) = ecdsa(&sig::ECDSA_P256_SHA256_FIXED_SIGNING);
    let verifying = VerifyingKey::from_pem(&public).unwrap();
    assert_eq!(SigningKey::from_pem(&private).unwrap().sign(MESSAGE).unwrap().len(), 64);
    let text = String::from_utf8(private).unwrap();
    let der: String = text.lines().filter(|line| !line.starts_with("---")).collect();
    let der = STANDARD.decode(der).unwrap();
    let key = EcdsaKeyPair::from_pkcs8(&sig::ECDSA_P256_SHA256_ASN1_SIGNING, &der).unwrap();
    let asn1 = key.sign(&SystemRandom::new(), MESSAGE).unwrap();
    assert!(verifying.verify(MESSAGE, asn1.as_ref()).is_err());
    assert!(verifying.verify(MESSAGE, &[0; 64]).is_err());
}

#[test]
fn weak_or_unsupported_keys_are_refused() {
    assert_eq!(SigningKey::from_hmac_secret(&[1; 15]).unwrap_err(), KeyError::SecretTooShort);
    assert_eq!(VerifyingKey::from_hmac_secret(b"").unwrap_err(), KeyError::SecretTooShort);
    let (_, _, p384) = ecdsa(&sig::ECDSA_P384_SHA384_FIXED_SIGNING);
    assert_eq!(SigningKey::from_pem(&p384).unwrap_err(), KeyError::Missing);
    let (private, _) = ed25519();
    assert_eq!(VerifyingKey::from_pem(&private).unwrap_err(), KeyError::Missing);
    let p521 = EcdsaKeyPair::generate(&sig::ECDSA_P521_SHA512_FIXED_SIGNING).unwrap();
    let public: PublicKeyX509Der<'_> = p521.public_key().as_der().unwrap();
    assert_eq!(
        VerifyingKey::from_pem(&pem("PUBLIC KEY", public.as_ref())).unwrap_err(),
        KeyError::Unsupported
    );
    assert_eq!(
        SigningKey::from_pem(&pem("PRIVATE KEY", p521.to_pkcs8v1().unwrap().as_ref())).unwrap_err(),
        KeyError::Unsupported
    );
    for y in [0_u8, 1] {
        let mut small = [0; 32];
        small[0] = y;
        assert_eq!(VerifyingKey::from_ed25519(&small).unwrap_err(), KeyError::Unsupported);
    }
}

#[test]
fn broken_pem_is_refused() {
    for text in [
        "",
        "no key",
        "-----BEGIN PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\n!!!\n-----END PRIVATE KEY-----",
    ] {
        assert!(SigningKey::from_pem(text.as_bytes()).is_err(), "{text}");
        assert!(VerifyingKey::from_pem(text.replace("PRIVATE", "PUBLIC").as_bytes()).is_err(), "{text}");
        assert!(VerifyingKey::from_pem(text.replace("PRIVATE", "RSA PUBLIC").as_bytes()).is_err(), "{text}");
    }
    for der in [
        &b""[..],
        &[0x30],
        &[0x30, 0x82],
        &[0x30, 0x82, 0xff, 0xff],
        &[0x30, 0x84, 1, 1, 1, 1],
        &[0x30, 0x03, 0x02, 0x01, 0x00],
    ] {
        assert_eq!(SigningKey::from_pem(&pem("PRIVATE KEY", der)).unwrap_err(), KeyError::Unsupported);
        assert_eq!(VerifyingKey::from_pem(&pem("PUBLIC KEY", der)).unwrap_err(), KeyError::Unsupported);
    }
}

#[test]
fn keys_print_no_key() {
    let (private, public) = ed25519();
    assert_eq!(
        format!("{:?}", SigningKey::from_pem(&private).unwrap()),
        "SigningKey { algorithm: Ed25519, .. }"
    );
    assert_eq!(
        format!("{:?}", VerifyingKey::from_pem(&public).unwrap()),
        "VerifyingKey { algorithm: Ed25519, .. }"
    );
}
