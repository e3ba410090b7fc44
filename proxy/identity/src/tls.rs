//! The one way a mesh channel is set up.
//!
//! TLS 1.3 only; X25519MLKEM768 first, so that recorded traffic stays closed to a later quantum computer; no
//! tickets, no resumption and no early data, so that every connection is verified against the trust of its own
//! moment and no first flight can be replayed; no server name, for there are no names to show.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::version::TLS13;
use rustls::{CipherSuite, ClientConfig, ConnectionCommon, ServerConfig, SupportedCipherSuite};
use rustls_pki_types::{CertificateDer, IpAddr, Ipv4Addr, ServerName};
use thiserror::Error;

use crate::bundle::TrustBundle;
use crate::svid::TlsSvid;
use crate::verify::{Dating, PeerVerifier};

/// HTTP/1.1 between sidecars.
pub const ALPN_H1: &[u8] = b"mesh-h1/1";
/// HTTP/2 between sidecars.
pub const ALPN_H2: &[u8] = b"mesh-h2/1";
/// A record stream on a connection of its own.
pub const ALPN_RECORDS: &[u8] = b"mesh-rec/1";
/// gRPC with the control plane.
pub const ALPN_CONTROL: &[u8] = b"h2";

/// The TLS exporter label (RFC 8446 section 7.5) of the channel id that message signatures are bound to.
pub const CHANNEL_ID_LABEL: &[u8] = b"EXPORTER-mesh-msgsig-v1";

/// The label of the keys that messages are authenticated with, mode `hmac`.
pub const MAC_KEY_LABEL: &[u8] = b"EXPORTER-mesh-msgmac-v1";

/// The accepting end between sidecars: a client must show a TLS SVID of the bundle's trust domain.
///
/// # Errors
/// `alpn` is empty, or `rustls` refuses the SVID.
pub fn server_config(svid: &TlsSvid, bundle: &TrustBundle, alpn: &[&[u8]]) -> Result<ServerConfig, TlsError> {
    let verifier = PeerVerifier::new(Arc::new(bundle.clone()));
    build_server(svid, svid.chain.clone(), verifier, alpn)
}

/// The control plane's end: like [`server_config`], but a client that has no SVID yet may show none (a bad one
/// is refused), and `shown` is sent after the chain: certificates by which retired roots vouch for the one in force, so
/// that a client that believes those finds its way, then the roots, so that a client can find the one its token pins.
///
/// # Errors
/// As for [`server_config`].
pub fn enrolment_server_config(
    svid: &TlsSvid,
    bundle: &TrustBundle,
    shown: &[CertificateDer<'static>],
    alpn: &[&[u8]],
) -> Result<ServerConfig, TlsError> {
    rejoin_server_config(svid, bundle, shown, alpn, Duration::ZERO)
}

/// The same, where a client's SVID that has ended for no longer than `grace` passes the handshake too. What its holder may
/// still do is for the caller to say, who sees its end in [`Peer::not_after`](crate::Peer::not_after).
///
/// # Errors
/// As for [`server_config`].
pub fn rejoin_server_config(
    svid: &TlsSvid,
    bundle: &TrustBundle,
    shown: &[CertificateDer<'static>],
    alpn: &[&[u8]],
    grace: Duration,
) -> Result<ServerConfig, TlsError> {
    let verifier = PeerVerifier::of_control_plane(Arc::new(bundle.clone()), grace);
    let chain = svid.chain.iter().chain(shown).cloned().collect();
    build_server(svid, chain, verifier, alpn)
}

/// The dialling end: shows its SVID and demands one of the bundle's trust domain. Whose, is for
/// [`expect`](crate::expect) to check after the handshake, before a byte is sent.
///
/// # Errors
/// As for [`server_config`].
pub fn client_config(svid: &TlsSvid, bundle: &TrustBundle, alpn: &[&[u8]]) -> Result<ClientConfig, TlsError> {
    build_client(svid, PeerVerifier::new(Arc::new(bundle.clone())), alpn)
}

/// The end that dials the control plane, which shows more certificates than a workload (see [`enrolment_server_config`]):
/// like [`client_config`], with a choice of whose word counts for what time it is.
///
/// # Errors
/// As for [`server_config`].
pub fn control_client_config(
    svid: &TlsSvid,
    bundle: &TrustBundle,
    alpn: &[&[u8]],
    dating: Dating,
) -> Result<ClientConfig, TlsError> {
    build_client(svid, PeerVerifier::dating(Arc::new(bundle.clone()), dating), alpn)
}

fn build_client(svid: &TlsSvid, verifier: PeerVerifier, alpn: &[&[u8]]) -> Result<ClientConfig, TlsError> {
    let config = ClientConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(svid.key.certified(svid.chain.clone())?);
    finish_client(config, alpn)
}

/// The channel id: 16 bytes that only the two ends of this connection can know.
///
/// # Errors
/// [`TlsError::Rustls`] before the handshake is done.
pub fn channel_id<D>(connection: &ConnectionCommon<D>) -> Result<[u8; 16], TlsError> {
    Ok(connection.export_keying_material([0; 16], CHANNEL_ID_LABEL, Some(&[]))?)
}

/// The keys of a connection for messages of the client and of the server, in this order: each good for one direction.
///
/// # Errors
/// [`TlsError::Rustls`] before the handshake is done.
pub fn mac_keys<D>(connection: &ConnectionCommon<D>) -> Result<[[u8; 32]; 2], TlsError> {
    let key = |direction: &[u8]| connection.export_keying_material([0; 32], MAC_KEY_LABEL, Some(direction));
    Ok([key(b"c2s")?, key(b"s2c")?])
}

/// What to give `rustls` where it asks for a server name: it is neither sent nor checked.
pub fn dial_name() -> ServerName<'static> {
    ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([0, 0, 0, 0])))
}

/// aws-lc-rs with the mesh's key exchange groups, in the order they are offered, and ciphers in the order that suits this
/// machine.
pub fn crypto_provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let kx_groups = vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
        ];
        let default = aws_lc_rs::default_provider();
        let cipher_suites = in_order(default.cipher_suites, aes_is_fast());
        Arc::new(CryptoProvider { kx_groups, cipher_suites, ..default })
    });
    Arc::clone(&PROVIDER)
}

/// Where the processor has no instructions for AES, as on a Raspberry Pi up to its fourth, it is several times slower
/// than ChaCha20 and no longer takes the same time for all keys.
fn in_order(mut suites: Vec<SupportedCipherSuite>, aes_is_fast: bool) -> Vec<SupportedCipherSuite> {
    if !aes_is_fast {
        suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
    }
    suites
}

/// Whether the processor has instructions for AES.
fn aes_is_fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// Why a channel cannot be set up.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum TlsError {
    /// No application protocol was given; every channel of the mesh has one.
    #[error("no application protocol was given")]
    NoProtocol,
    /// `rustls` refuses.
    #[error("tls refuses: {0}")]
    Rustls(#[from] rustls::Error),
}

fn build_server(
    svid: &TlsSvid,
    chain: Vec<CertificateDer<'static>>,
    verifier: PeerVerifier,
    alpn: &[&[u8]],
) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(svid.key.certified(chain)?);
    config.alpn_protocols = protocols(alpn)?;
    // Usually the client's order counts; the end without AES is the one that it costs more.
    config.ignore_client_order = !aes_is_fast();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

pub(crate) fn finish_client(mut config: ClientConfig, alpn: &[&[u8]]) -> Result<ClientConfig, TlsError> {
    config.alpn_protocols = protocols(alpn)?;
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    Ok(config)
}

fn protocols(alpn: &[&[u8]]) -> Result<Vec<Vec<u8>>, TlsError> {
    if alpn.is_empty() {
        return Err(TlsError::NoProtocol);
    }
    Ok(alpn.iter().map(|protocol| protocol.to_vec()).collect())
}

#[cfg(test)]
mod tests;
