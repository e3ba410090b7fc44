//! What a proxy shows to get its first identity, read from where its settings say.

mod host;
mod spiffe;
pub(super) mod tpm;

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use signet_identity::spki_sha256;
use signet_sync::{MAX_ATTESTATION_BYTES, Token, TokenError};
use thiserror::Error;

use crate::config::TokenSource;
pub(super) use crate::control::proof::spiffe::Svid;

/// The largest file of roots: a root has about a kilobyte, and a trust domain a few.
const ROOTS_BYTES: usize = 64 * 1024;
/// The most roots tried: the one in force, the next, and what else a bundle may hold.
const ROOTS_MAX: usize = 8;

/// Shown to the control plane, and to nobody but the one under a pin.
pub(super) enum Proof {
    /// An attestor of the control plane judges the evidence. The control plane is one under any of these pins.
    Attested { attestor: String, evidence: Vec<u8>, pins: Vec<[u8; 32]> },
    /// An SVID of another trust domain, whose key signs for the enrolment. The control plane is one under any of these pins.
    Svid { svid: Svid, pins: Vec<[u8; 32]> },
    /// A join token.
    Token(Token),
    /// The TPM of this device. The control plane is one under any of these pins.
    Tpm { pins: Vec<[u8; 32]> },
}

/// Why there is nothing to show.
#[derive(Debug, Error)]
pub enum ProofError {
    /// A file cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The evidence is empty.
    #[error("{} is empty: it has to hold what the attestor checks", .0.display())]
    NoEvidence(PathBuf),
    /// The host's attestor says no.
    #[error("the attestor at {} says: {reason}", path.display())]
    Denied {
        /// Its socket.
        path: PathBuf,
        /// What it says.
        reason: String,
    },
    /// The file of roots has none, too many, or one that cannot be read.
    #[error("{} does not hold one to {ROOTS_MAX} certificates in PEM form", .0.display())]
    Roots(PathBuf),
    /// The Workload API gives no SVID that can be used.
    #[error("the Workload API at {} gives no X.509-SVID: {reason}", path.display())]
    Svid {
        /// Its socket.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The token is malformed.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// Looks at what can be looked at before there is anybody to show it to: a wrong setting shows at the start.
pub(super) fn check(source: &TokenSource) -> Result<(), ProofError> {
    match source {
        TokenSource::Socket(_) => Ok(()),
        TokenSource::Svid { roots, .. } | TokenSource::Tpm { roots } => pins(roots).map(drop),
        held => read_held(held).map(drop),
    }
}

/// Reads it anew, or asks for it: tokens and roots are replaced while a proxy runs.
pub(super) async fn read(source: &TokenSource) -> Result<Proof, ProofError> {
    match source {
        TokenSource::Socket(path) => host::token(path).await.map(Proof::Token),
        TokenSource::Svid { socket, roots } => {
            let pins = pins(roots)?;
            Ok(Proof::Svid { svid: spiffe::svid(socket).await?, pins })
        }
        TokenSource::Tpm { roots } => Ok(Proof::Tpm { pins: pins(roots)? }),
        held => read_held(held),
    }
}

/// What is in a file, or was given.
fn read_held(source: &TokenSource) -> Result<Proof, ProofError> {
    match source {
        TokenSource::Attested { attestor, evidence, roots } => {
            let pins = pins(roots)?;
            let bytes = bounded(evidence, MAX_ATTESTATION_BYTES)?;
            let bytes = bytes.trim_ascii().to_vec();
            if bytes.is_empty() {
                return Err(ProofError::NoEvidence(evidence.clone()));
            }
            Ok(Proof::Attested { attestor: attestor.clone(), evidence: bytes, pins })
        }
        TokenSource::File(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|source| ProofError::File { path: path.clone(), source })?;
            Ok(Proof::Token(Token::parse(&text)?))
        }
        TokenSource::Text(text) => Ok(Proof::Token(Token::parse(text)?)),
        TokenSource::Socket(path)
        | TokenSource::Svid { socket: path, .. }
        | TokenSource::Tpm { roots: path } => {
            let source = io::Error::from(io::ErrorKind::Unsupported);
            Err(ProofError::File { path: path.clone(), source })
        }
    }
}

fn bounded(path: &Path, most: usize) -> Result<Vec<u8>, ProofError> {
    let failed = |source| ProofError::File { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(most as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > most {
        return Err(failed(io::Error::other(format!("it is larger than {most} bytes"))));
    }
    Ok(bytes)
}

fn pins(roots: &Path) -> Result<Vec<[u8; 32]>, ProofError> {
    pins_of(&bounded(roots, ROOTS_BYTES)?).ok_or_else(|| ProofError::Roots(roots.to_owned()))
}

fn pins_of(pem: &[u8]) -> Option<Vec<[u8; 32]>> {
    let mut pins = Vec::new();
    for root in CertificateDer::pem_slice_iter(pem) {
        if pins.len() >= ROOTS_MAX {
            return None;
        }
        pins.push(spki_sha256(&root.ok()?).ok()?);
    }
    (!pins.is_empty()).then_some(pins)
}

#[cfg(test)]
mod tests {
    use signet_identity::{Authority, TrustDomain};

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn authority() -> Authority {
        let now = crate::clock::now();
        let life = std::time::Duration::from_secs(3600);
        Authority::create(TrustDomain::parse("mesh.example").unwrap(), now, life).unwrap()
    }

    fn source(folder: &Path) -> TokenSource {
        let (evidence, roots) = (folder.join("token"), folder.join("roots.pem"));
        TokenSource::Attested { attestor: "kubernetes".into(), evidence, roots }
    }

    #[test]
    fn evidence_is_read_with_a_pin_for_each_root() {
        let (folder, first, second) = (folder(), authority(), authority());
        std::fs::write(folder.path().join("token"), "header.claims.signature\n").unwrap();
        // Whatever else stands in the text: here two certificates and two keys each.
        let roots: Vec<String> =
            [&first, &second].iter().map(|authority| authority.to_pem().to_string()).collect();
        std::fs::write(folder.path().join("roots.pem"), roots.concat()).unwrap();
        let Proof::Attested { attestor, evidence, pins } = read_held(&source(folder.path())).unwrap() else {
            panic!("a token")
        };
        assert_eq!((attestor.as_str(), evidence.as_slice()), ("kubernetes", &b"header.claims.signature"[..]));
        assert!(pins.contains(&first.root_spki_sha256()) && pins.contains(&second.root_spki_sha256()));
    }

    #[test]
    fn evidence_that_is_missing_empty_or_too_long_is_refused_by_its_file() {
        let folder = folder();
        std::fs::write(folder.path().join("roots.pem"), authority().to_pem()).unwrap();
        let error = |folder: &Path| match read_held(&source(folder)) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("something was read"),
        };
        assert!(error(folder.path()).contains("token cannot be read"));
        std::fs::write(folder.path().join("token"), " \n").unwrap();
        assert!(error(folder.path()).contains("token is empty"));
        std::fs::write(folder.path().join("token"), vec![b'a'; MAX_ATTESTATION_BYTES + 1]).unwrap();
        assert!(error(folder.path()).contains("larger than"));
        std::fs::write(folder.path().join("roots.pem"), "").unwrap();
        assert!(error(folder.path()).contains("roots.pem does not hold"));
    }
}
