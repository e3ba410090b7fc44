//! Enrolment: trusting a control plane by the root key that the join token pins.
//!
//! A proxy that has nothing but a token knows the SHA-256 of its domain's root SubjectPublicKeyInfo. The control
//! plane shows leaf, issuer and roots; the root with that hash becomes the only anchor, and the leaf must be
//! the **control plane's** under it: any other workload of the domain also holds a certificate that leads to
//! this root, and must not be able to collect tokens with it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::bundle::TrustBundle;
use crate::certificate::Certificate;
use crate::fingerprint::sha256;
use crate::id::TrustDomain;
use crate::svid::TlsSvid;
use crate::tls::{TlsError, crypto_provider, finish_client};
use crate::verify::{
    Dating, MAX_CHAIN, MAX_CONTROL_CHAIN, VerifyError, handshake_schemes, no_tls12, presented,
    verify_handshake, verify_tls_chain,
};

/// The dialling end of enrolment. `pin` is the SHA-256 of the root's SubjectPublicKeyInfo; `client`, an SVID to
/// show if there is one already (renewal of trust by the old key).
///
/// After the handshake [`peer`](crate::peer) names the control plane and its trust domain, and [`root_by_pin`]
/// gives the root.
///
/// # Errors
/// `alpn` is empty, or `rustls` refuses the SVID.
pub fn pinned_client_config(
    pin: [u8; 32],
    client: Option<&TlsSvid>,
    alpn: &[&[u8]],
) -> Result<ClientConfig, TlsError> {
    dated_client_config(pin, client, alpn, Dating::OwnClock)
}

/// The same, with a choice of whose word counts for what time it is.
///
/// # Errors
/// As for [`pinned_client_config`].
pub fn dated_client_config(
    pin: [u8; 32],
    client: Option<&TlsSvid>,
    alpn: &[&[u8]],
    dating: Dating,
) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedVerifier { pin, dating }));
    let config = match client {
        Some(svid) => builder.with_client_cert_resolver(svid.key.certified(svid.chain.clone())?),
        None => builder.with_no_client_auth(),
    };
    finish_client(config, alpn)
}

/// The root among the certificates a server has shown (leaf first) whose SubjectPublicKeyInfo has the pinned
/// hash. It is an authority's and signed by itself, so all it says was said by the holder of the pinned key,
/// not by whoever put its public half into a certificate of their own.
///
/// # Errors
/// [`VerifyError::ChainLength`] or [`VerifyError::Pin`].
pub fn root_by_pin(
    certificates: &[CertificateDer<'_>],
    pin: [u8; 32],
) -> Result<CertificateDer<'static>, VerifyError> {
    if certificates.len() > MAX_CONTROL_CHAIN {
        return Err(VerifyError::ChainLength);
    }
    let is_pinned = |der: &&CertificateDer<'_>| {
        Certificate::parse(der).is_ok_and(|certificate| {
            sha256(certificate.spki) == pin
                && certificate.is_authority
                && certificate.is_signed_by(certificate.spki)
        })
    };
    let root = certificates.iter().find(is_pinned).ok_or(VerifyError::Pin)?;
    Ok(root.clone().into_owned())
}

#[derive(Debug)]
struct PinnedVerifier {
    pin: [u8; 32],
    dating: Dating,
}

impl PinnedVerifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), VerifyError> {
        let certificates = presented(leaf, intermediates, MAX_CONTROL_CHAIN)?;
        let root = root_by_pin(&certificates, self.pin)?;
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(self.dating.at(leaf, now).as_secs());
        let trust_domain = trust_domain_of_valid_root(&root, now)?;
        let bundle = TrustBundle::new(trust_domain, vec![root]).map_err(|_| VerifyError::Pin)?;
        // The roots follow the chain; path building has no use for them.
        let chain = certificates.get(..certificates.len().min(MAX_CHAIN)).unwrap_or_default();
        let peer = verify_tls_chain(&bundle, chain, now)?;
        if !peer.id().is_control_plane() {
            return Err(VerifyError::Identity { found: peer.id().clone() });
        }
        Ok(())
    }
}

/// A root learned on the wire must be valid now and say which trust domain it is for.
fn trust_domain_of_valid_root(root: &[u8], now: SystemTime) -> Result<TrustDomain, VerifyError> {
    let root = Certificate::parse(root)?;
    if now > root.not_after {
        return Err(VerifyError::Expired);
    }
    if now < root.not_before {
        return Err(VerifyError::NotYetValid);
    }
    TrustDomain::from_uri(root.only_uri()?).map_err(|_| VerifyError::Pin)
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_handshake(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        handshake_schemes()
    }
}

#[cfg(test)]
mod tests;
