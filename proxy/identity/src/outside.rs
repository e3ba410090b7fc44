//! Servers outside the mesh, proven by a DNS name under given authorities as on the web (RFC 9525).

use rustls::client::Resumption;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use thiserror::Error;

use crate::tls::{TlsError, crypto_provider};

/// Most certificates of authorities in one text: the usual lists of the web hold about 150.
pub const MAX_AUTHORITIES: usize = 1_000;

/// Why a text names no authorities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AuthoritiesError {
    /// One of them is no certificate.
    #[error("one of its certificates cannot be read")]
    Malformed,
    /// It holds none.
    #[error("it holds no certificate in PEM form")]
    None,
    /// More than [`MAX_AUTHORITIES`].
    #[error("it holds more than {MAX_AUTHORITIES} certificates")]
    TooMany,
}

/// The authorities whose certificates stand in a text in PEM form; what else stands there is passed over.
///
/// # Errors
/// [`AuthoritiesError`], also for a single certificate that cannot be read.
pub fn authorities(pem: &str) -> Result<RootCertStore, AuthoritiesError> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        if store.len() >= MAX_AUTHORITIES {
            return Err(AuthoritiesError::TooMany);
        }
        let certificate = certificate.map_err(|_| AuthoritiesError::Malformed)?;
        store.add(certificate).map_err(|_| AuthoritiesError::Malformed)?;
    }
    if store.is_empty() { Err(AuthoritiesError::None) } else { Ok(store) }
}

/// TLS 1.3 towards a server that must prove the name it is dialled by. Nothing is shown of who dials.
///
/// # Errors
/// [`TlsError`] when the protocol version cannot be used.
pub fn outside_client_config(roots: RootCertStore, alpn: &[&[u8]]) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Mesh;

    #[test]
    fn authorities_are_read_all_or_none() {
        let pem = Mesh::new().authority.to_pem();
        let count = authorities(&pem).unwrap().len();
        assert!(count >= 1);
        assert_eq!(authorities(&format!("# ours\n{pem}{pem}")).map(|store| store.len()), Ok(2 * count));
        assert_eq!(authorities("").map(|store| store.len()), Err(AuthoritiesError::None));
        assert_eq!(authorities("no PEM").map(|store| store.len()), Err(AuthoritiesError::None));
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(
            authorities(&format!("{pem}{broken}")).map(|store| store.len()),
            Err(AuthoritiesError::Malformed)
        );
    }
}
