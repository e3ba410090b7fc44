//! An SVID of another trust domain as evidence at enrolment: who holds its key proves it once, for one connection.
//!
//! What is signed begins with a text that no TLS signature begins with, and holds the connection's own secret (RFC 8446 section
//! 7.5) and the keys that are to be certified: it is worth nothing on another connection, or for other keys.

use std::time::SystemTime;

use rustls::{ConnectionCommon, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use webpki::EndEntityCert;

use crate::bundle::TrustBundle;
use crate::certificate::{Certificate, Leaf};
use crate::fingerprint::sha256;
use crate::id::SpiffeId;
use crate::tls::{TlsError, crypto_provider};
use crate::verify::{ANY_PURPOSE, VerifyError, check_trust_domain, unix_time, verify_path};

/// The TLS exporter label of the secret that evidence is bound to.
const BINDING_LABEL: &[u8] = b"EXPORTER-signet-attestation-v1";

/// What every signed text begins with.
const PREFIX: &[u8] = b"signet attestation by svid, version 1\0";

/// What SPIFFE's issuers make keys for, as far as TLS 1.3 signs with them.
const SCHEMES: [SignatureScheme; 4] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
];

/// What one enrolment is about.
#[derive(Clone, Copy, Debug)]
pub struct Enrolling<'a> {
    /// The connection's secret, from [`attestation_binding`].
    pub binding: &'a [u8; 32],
    /// The two requests, DER.
    pub requests: [&'a [u8]; 2],
}

/// Whose SVID it is, proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttestedSvid {
    /// In the other trust domain.
    pub id: SpiffeId,
    /// SHA-256 of its SubjectPublicKeyInfo: what tells holders of the same identity apart.
    pub key_sha256: [u8; 32],
}

/// Why no evidence was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AttestationError {
    /// The private key is unusable, or of a kind that TLS 1.3 does not sign with.
    #[error("the SVID's private key cannot be used")]
    Key,
}

/// 32 bytes that only the two ends of this connection can know, for evidence alone.
///
/// # Errors
/// [`TlsError::Rustls`] before the handshake is done.
pub fn attestation_binding<D>(connection: &ConnectionCommon<D>) -> Result<[u8; 32], TlsError> {
    Ok(connection.export_keying_material([0; 32], BINDING_LABEL, Some(&[]))?)
}

/// Signs for one enrolment with an SVID's key: the scheme (RFC 8446 section 4.2.3) and the signature.
///
/// # Errors
/// [`AttestationError::Key`].
pub fn attest(key: &PrivateKeyDer<'_>, enrolling: Enrolling<'_>) -> Result<(u16, Vec<u8>), AttestationError> {
    let key = crypto_provider().key_provider.load_private_key(key.clone_key());
    let signer =
        key.map_err(|_| AttestationError::Key)?.choose_scheme(&SCHEMES).ok_or(AttestationError::Key)?;
    let signature = signer.sign(&signed(enrolling)).map_err(|_| AttestationError::Key)?;
    Ok((signer.scheme().into(), signature))
}

/// The trust domain that the leaf of evidence says it is of; by nobody's word yet.
///
/// # Errors
/// The leaf is no SVID.
pub fn claimed_trust_domain(chain: &[CertificateDer<'_>]) -> Result<String, VerifyError> {
    let leaf = chain.first().ok_or(VerifyError::ChainLength)?;
    Ok(Leaf::foreign(leaf)?.id.trust_domain().to_owned())
}

/// Verifies evidence: the chain leads to a root of the other trust domain, its leaf is an SVID's, and its key signed for this
/// enrolment.
///
/// # Errors
/// The first check that fails; [`VerifyError::Possession`] for the signature.
pub fn verify_attestation(
    bundle: &TrustBundle,
    chain: &[CertificateDer<'_>],
    (scheme, signature): (u16, &[u8]),
    enrolling: Enrolling<'_>,
    now: SystemTime,
) -> Result<AttestedSvid, VerifyError> {
    let der = verify_path(bundle, chain, unix_time(now), ANY_PURPOSE)?;
    let leaf = Leaf::foreign(der)?;
    check_trust_domain(&leaf.id, bundle.trust_domain().as_str())?;
    let scheme = SignatureScheme::from(scheme);
    let provider = crypto_provider();
    let known = provider.signature_verification_algorithms.mapping.iter();
    let mut algorithms = known
        .filter(|(known, _)| *known == scheme && SCHEMES.contains(known))
        .flat_map(|(_, algorithms)| algorithms.iter());
    let certificate = CertificateDer::from(der);
    let certificate = EndEntityCert::try_from(&certificate).map_err(VerifyError::Path)?;
    let message = signed(enrolling);
    if !algorithms.any(|&algorithm| certificate.verify_signature(algorithm, &message, signature).is_ok()) {
        return Err(VerifyError::Possession);
    }
    Ok(AttestedSvid { id: leaf.id, key_sha256: sha256(Certificate::parse(der)?.spki) })
}

fn signed(enrolling: Enrolling<'_>) -> Vec<u8> {
    let [tls, signing] = enrolling.requests.map(sha256);
    [PREFIX, enrolling.binding, &tls, &signing].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::CertificateError;
    use crate::testing::{HOUR, Mesh, now};

    const BINDING: [u8; 32] = [7; 32];

    fn enrolling<'a>() -> Enrolling<'a> {
        Enrolling { binding: &BINDING, requests: [b"tls", b"signing"] }
    }

    #[test]
    fn an_svid_of_another_domain_proves_its_holder_for_one_enrolment() {
        let spire = Mesh::named("spire.example");
        let svid = spire.tls_svid("node");
        let bundle = spire.authority.bundle();
        let (scheme, signature) = attest(svid.key.in_memory().unwrap(), enrolling()).unwrap();
        let verify = |scheme, signature: &[u8], enrolling| {
            verify_attestation(&bundle, &svid.chain, (scheme, signature), enrolling, now())
        };
        let found = verify(scheme, &signature, enrolling()).unwrap();
        assert_eq!(
            (found.id, found.key_sha256),
            (svid.id.clone(), sha256(Certificate::parse(&svid.chain[0]).unwrap().spki))
        );
        let other = [8; 32];
        for elsewhere in [
            Enrolling { binding: &other, ..enrolling() },
            Enrolling { requests: [b"tls", b"other"], ..enrolling() },
            Enrolling { requests: [b"signing", b"tls"], ..enrolling() },
        ] {
            assert_eq!(verify(scheme, &signature, elsewhere), Err(VerifyError::Possession));
        }
        // By another scheme, by a key of somebody else, and by none.
        assert_eq!(
            verify(SignatureScheme::ED25519.into(), &signature, enrolling()),
            Err(VerifyError::Possession)
        );
        let (scheme, stolen) = attest(spire.tls_svid("node").key.in_memory().unwrap(), enrolling()).unwrap();
        assert_eq!(verify(scheme, &stolen, enrolling()), Err(VerifyError::Possession));
        assert_eq!(verify(scheme, &[], enrolling()), Err(VerifyError::Possession));
    }

    #[test]
    fn evidence_of_another_authority_time_or_kind_is_refused() {
        let (spire, other) = (Mesh::named("spire.example"), Mesh::named("spire.example"));
        let svid = spire.tls_svid("node");
        let (scheme, signature) = attest(svid.key.in_memory().unwrap(), enrolling()).unwrap();
        let verify = |bundle: &TrustBundle, chain: &[CertificateDer<'_>], at| {
            verify_attestation(bundle, chain, (scheme, &signature), enrolling(), at)
        };
        let bundle = spire.authority.bundle();
        assert_eq!(verify(&other.authority.bundle(), &svid.chain, now()), Err(VerifyError::UnknownIssuer));
        assert_eq!(verify(&bundle, &svid.chain, now() + 2 * HOUR), Err(VerifyError::Expired));
        assert_eq!(verify(&bundle, &[], now()), Err(VerifyError::ChainLength));
        let signing = spire.signing_svid("node");
        assert_eq!(verify(&bundle, &signing.chain, now()), Err(CertificateError::Purpose.into()));
    }
}
