//! Servers and clients outside the mesh: servers are proven by a DNS name under given authorities as on the web (RFC 9525).

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::server::NoServerSessionStorage;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use thiserror::Error;

use crate::channel_key::ChannelKey;
use crate::secret::PrivateKey;
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

/// TLS 1.3 for clients outside the mesh, which show nothing of themselves.
///
/// # Errors
/// [`TlsError`] when key and chain do not belong together.
pub fn outside_server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKey,
    alpn: &[&[u8]],
) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(ChannelKey::from(key.clone()).certified(chain)?);
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls_pki_types::{ServerName, UnixTime};

    use super::*;
    use crate::testing::{Mesh, now};
    use crate::{KeyRequest, verify_tls_chain};

    #[test]
    fn a_server_of_a_name_is_believed_for_that_name_alone_and_is_nobody_in_the_mesh() {
        let (mesh, now) = (Mesh::new(), now());
        let request = KeyRequest::new_tls().unwrap();
        let name = "signet-control-plane.signet-system.svc";
        let life = Duration::from_secs(3600);
        let chain = mesh.authority.issue_dns(&request.csr, name, now - life, now + life).unwrap();
        let roots = authorities(&mesh.authority.to_pem()).unwrap();
        let provider = crypto_provider();
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = verifier.build().unwrap();
        let believed = |name: &'static str| {
            use rustls::client::danger::ServerCertVerifier as _;
            let name = ServerName::try_from(name).unwrap();
            let at = UnixTime::since_unix_epoch(now.duration_since(std::time::UNIX_EPOCH).unwrap());
            verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], at).is_ok()
        };
        assert!(believed("signet-control-plane.signet-system.svc"));
        assert!(!believed("signet-control-plane.elsewhere.svc"));
        assert!(verify_tls_chain(&mesh.authority.bundle(), &chain, now).is_err());
        assert!(outside_server_config(chain, request.key, &[b"http/1.1"]).is_ok());
    }

    #[test]
    fn authorities_are_read_all_or_none() {
        let pem = Mesh::new().authority.to_pem().to_string();
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
