//! TLS that the sidecar opens for an application that speaks plain HTTP to a server outside the mesh.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::request;
use http::uri::Scheme;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use signet_identity::{authorities, outside_client_config};
use signet_policy::{Origination, Refusal};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::http_server::Version;
use crate::sockets;
use crate::worker::Worker;

/// How long a handshake may take: as between sidecars.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Sets of authorities that are kept ready, per worker and HTTP version.
const KEPT_MAX: usize = 64;
/// Where systems keep the authorities they trust; the first that is there counts.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
/// Longest list of the system's authorities.
const SYSTEM_ROOTS_MAX: u64 = 4 * 1024 * 1024;

/// Who has to answer, and who may vouch for it: connections are shared within this boundary.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Key {
    port: u16,
    server_name: String,
    roots: Roots,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Roots {
    pem: Option<String>,
    system: bool,
}

impl Key {
    /// For a request that names this authority.
    pub(crate) fn of(tls: &Origination, authority: &str) -> Result<Self, Refusal> {
        let server_name = match &tls.server_name {
            Some(name) => name.clone(),
            None => {
                let authority: http::uri::Authority =
                    authority.parse().map_err(|_| Refusal::AmbiguousTarget)?;
                authority.host().trim_end_matches('.').to_ascii_lowercase()
            }
        };
        let roots = Roots { pem: tls.ca_certificates.clone(), system: tls.system_roots };
        Ok(Self { port: tls.port, server_name, roots })
    }
}

/// Configurations made from the authorities of policy, of one worker.
#[derive(Default)]
pub(crate) struct Originations(RefCell<HashMap<(Roots, Version), Arc<ClientConfig>>>);

impl Originations {
    fn config(&self, roots: &Roots, version: Version) -> Result<Arc<ClientConfig>, Refusal> {
        let key = (roots.clone(), version);
        if let Some(config) = self.0.borrow().get(&key) {
            return Ok(Arc::clone(config));
        }
        let mut text = roots.pem.clone().unwrap_or_default();
        if roots.system {
            text.push_str(&system_roots()?);
        }
        let unusable = |what: &dyn std::fmt::Display| {
            tracing::error!(error = %what, "no server outside the mesh can be proven");
            Refusal::EgressUnverified
        };
        let store = authorities(&text).map_err(|error| unusable(&error))?;
        let alpn: &[&[u8]] = match version {
            Version::Http1 => &[b"http/1.1"],
            Version::Http2 => &[b"h2"],
        };
        let config = outside_client_config(store, alpn).map_err(|error| unusable(&error))?;
        let config = Arc::new(config);
        let mut kept = self.0.borrow_mut();
        if kept.len() >= KEPT_MAX {
            // Policies that changed; the next connections make what is needed.
            kept.clear();
        }
        kept.insert(key, Arc::clone(&config));
        Ok(config)
    }
}

fn system_roots() -> Result<String, Refusal> {
    let read = |path: &&str| {
        let is_list = std::fs::metadata(path).is_ok_and(|file| file.len() <= SYSTEM_ROOTS_MAX);
        is_list.then(|| std::fs::read_to_string(path).ok()).flatten()
    };
    SYSTEM_ROOTS.iter().find_map(read).ok_or_else(|| {
        tracing::error!(looked_at = ?SYSTEM_ROOTS, "the system has no list of authorities; give caCertificates");
        Refusal::EgressUnverified
    })
}

/// Opens TLS towards a server that proves its name.
pub(crate) async fn dial(
    worker: &Worker,
    address: SocketAddr,
    key: &Key,
    version: Version,
) -> Result<TlsStream<TcpStream>, Refusal> {
    let config = worker.originations.config(&key.roots, version)?;
    let name = ServerName::try_from(key.server_name.clone()).map_err(|_| Refusal::EgressUnverified)?;
    let tcp = sockets::dial(address, worker.shared.config.exempt).await.map_err(|error| {
        tracing::debug!(%address, %error, "server outside the mesh cannot be reached");
        Refusal::UpstreamUnreachable
    })?;
    let handshake = TlsConnector::from(config).connect(name, tcp);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => {
            worker.shared.metrics.egress_tls.inc();
            Ok(stream)
        }
        Ok(Err(error)) => {
            tracing::warn!(%address, name = key.server_name, %error, "server outside the mesh is not proven");
            let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            Err(if tls.is_some() { Refusal::EgressUnverified } else { Refusal::UpstreamUnreachable })
        }
        Err(_) => Err(Refusal::UpstreamTimeout),
    }
}

/// A request of HTTP/2 says how it was called.
pub(crate) fn as_https(parts: &mut request::Parts) -> Result<(), Refusal> {
    if parts.uri.scheme().is_some() {
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        uri.scheme = Some(Scheme::HTTPS);
        parts.uri = uri.try_into().map_err(|_| Refusal::MalformedMessage)?;
    }
    Ok(())
}
