//! A workload's signing certificate chain, from PEM files.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use signet_identity::{
    BundleError, IdError, SIGNING_EKU, SigningIdentity, SpiffeId, TrustBundle, TrustDomain, VerifyError,
    verify_signing_chain,
};
use x509_parser::extensions::{ExtendedKeyUsage, GeneralName};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Largest file: dozens of certificates.
const FILE_MAX: u64 = 256 * 1024;
/// Most certificates of one file.
const CERTIFICATES_MAX: usize = 16;

/// Why a file gives no certificates.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChainFileError {
    #[error("the file holds no PEM certificate")]
    Empty,
    #[error("the file is not well-formed PEM")]
    Pem,
    #[error("the file is longer than {FILE_MAX} bytes or has more than {CERTIFICATES_MAX} certificates")]
    TooLong,
    #[error(transparent)]
    Unreadable(#[from] io::Error),
}

/// Why a chain proves nothing about a message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChainError {
    #[error("the roots: {0}")]
    Bundle(#[from] BundleError),
    #[error("the leaf is not a well-formed X.509 certificate")]
    Certificate,
    #[error("the leaf's SPIFFE ID: {0}")]
    Id(#[from] IdError),
    #[error("the leaf has no SPIFFE ID, so it is no workload's: to trust a plain key, give it with --key")]
    NoId,
    #[error("the leaf is for {0}, not for signing messages: a workload signs with a certificate of its own")]
    NotForSigning(String),
    #[error(transparent)]
    Verify(#[from] VerifyError),
}

/// The certificates of a PEM file, in order.
pub(crate) fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>, ChainFileError> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
        .take(CERTIFICATES_MAX + 1)
        .collect::<Result<_, _>>()
        .map_err(|_| ChainFileError::Pem)?;
    if bytes.len() as u64 > FILE_MAX || certificates.len() > CERTIFICATES_MAX {
        return Err(ChainFileError::TooLong);
    }
    if certificates.is_empty() { Err(ChainFileError::Empty) } else { Ok(certificates) }
}

/// Verifies a chain up to one of `roots`. The trust domain is the one that the leaf claims: whoever names the
/// roots vouches for it.
pub(crate) fn verify(
    chain: &[CertificateDer<'static>],
    roots: &[CertificateDer<'static>],
    now: SystemTime,
) -> Result<SigningIdentity, ChainError> {
    let leaf = chain.first().ok_or(ChainError::Certificate)?;
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| ChainError::Certificate)?;
    let id = SpiffeId::parse(spiffe_uri(&certificate)?)?;
    for_signing(&certificate)?;
    let bundle = TrustBundle::new(TrustDomain::parse(id.trust_domain())?, roots.to_vec())?;
    Ok(verify_signing_chain(&bundle, chain, now)?)
}

fn spiffe_uri<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a str, ChainError> {
    let names = certificate.subject_alternative_name().map_err(|_| ChainError::Certificate)?;
    let uri = |name: &'a GeneralName<'_>| match name {
        GeneralName::URI(uri) if uri.starts_with("spiffe://") => Some(*uri),
        _ => None,
    };
    names.and_then(|names| names.value.general_names.iter().find_map(uri)).ok_or(ChainError::NoId)
}

/// The verifier would refuse another purpose too, but cannot say it in the words of this command.
fn for_signing(certificate: &X509Certificate<'_>) -> Result<(), ChainError> {
    let usage = certificate.extended_key_usage().map_err(|_| ChainError::Certificate)?;
    match usage.map(|usage| usage.value) {
        Some(usage) if usage.other.iter().any(|purpose| purpose.as_bytes() == SIGNING_EKU) => Ok(()),
        Some(usage) => Err(ChainError::NotForSigning(purposes(usage))),
        None => Err(ChainError::NotForSigning("any purpose".to_owned())),
    }
}

fn purposes(usage: &ExtendedKeyUsage<'_>) -> String {
    let known = [
        (usage.any, "any purpose"),
        (usage.server_auth, "TLS servers"),
        (usage.client_auth, "TLS clients"),
        (usage.code_signing, "code"),
        (usage.email_protection, "e-mail"),
        (usage.time_stamping, "time stamps"),
        (usage.ocsp_signing, "OCSP"),
    ];
    let mut names: Vec<String> =
        known.iter().filter(|(is, _)| *is).map(|(_, name)| (*name).to_owned()).collect();
    names.extend(usage.other.iter().map(ToString::to_string));
    names.join(" and ")
}
