//! What the tests share: a trust domain at a fixed time, certificates that no authority would issue, and a
//! handshake without a network.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, KeyPair};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::id::{Class, SpiffeId, TrustDomain};
use crate::issue::Authority;
use crate::key::KeyKind;
use crate::request::KeyRequest;
use crate::secret::PrivateKey;
use crate::svid::{SigningSvid, TlsSvid};
use crate::tls::dial_name;

/// 2026-11-23T07:38:00Z.
pub(crate) fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_419_480)
}

pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// A trust domain with its authority.
pub(crate) struct Mesh {
    pub(crate) authority: Authority,
}

impl Mesh {
    pub(crate) fn new() -> Self {
        Self::named("edge.example")
    }

    pub(crate) fn named(trust_domain: &str) -> Self {
        let trust_domain = TrustDomain::parse(trust_domain).unwrap();
        Self { authority: Authority::create(trust_domain, now(), 100 * HOUR).unwrap() }
    }

    pub(crate) fn id(&self, workload: &str) -> SpiffeId {
        SpiffeId::workload(self.authority.trust_domain(), Class::App, "d1", workload).unwrap()
    }

    pub(crate) fn tls_svid(&self, workload: &str) -> TlsSvid {
        self.tls_svid_of(&self.id(workload), now() - MINUTE, now() + HOUR)
    }

    pub(crate) fn tls_svid_of(&self, id: &SpiffeId, from: SystemTime, until: SystemTime) -> TlsSvid {
        let request = KeyRequest::new_tls().unwrap();
        let chain = self.authority.issue_tls(&request.csr, id, from, until).unwrap();
        TlsSvid::new(chain, request.key).unwrap()
    }

    pub(crate) fn signing_svid(&self, workload: &str) -> SigningSvid {
        let request = KeyRequest::new_signing().unwrap();
        let id = self.id(workload);
        let chain = self.authority.issue_signing(&request.csr, &id, now() - MINUTE, now() + HOUR).unwrap();
        SigningSvid::new(chain, request.key).unwrap()
    }

    pub(crate) fn control_plane_svid(&self) -> TlsSvid {
        let id = SpiffeId::control_plane(self.authority.trust_domain(), "d1").unwrap();
        self.tls_svid_of(&id, now() - MINUTE, now() + HOUR)
    }

    /// A chain whose leaf says whatever `params` says, truly signed by the issuer.
    pub(crate) fn forge(&self, kind: KeyKind, params: &CertificateParams) -> Forged {
        let key = KeyPair::generate_for(kind.issuing_algorithm()).unwrap();
        let leaf = params.signed_by(&key, &self.authority.issuer).unwrap();
        let issuer = self.tls_svid("gw").chain.remove(1);
        Forged { chain: vec![leaf.into(), issuer], key: key.into() }
    }
}

pub(crate) struct Forged {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKey,
}

impl Forged {
    /// As a rogue would hold it: without the checks of `TlsSvid::new`.
    pub(crate) fn into_tls_svid(self) -> TlsSvid {
        let honest = Mesh::new().tls_svid("gw");
        TlsSvid { chain: self.chain, key: self.key.into(), ..honest }
    }
}

/// A clock that stands still.
#[derive(Debug)]
pub(crate) struct FixedClock(pub(crate) SystemTime);

impl TimeProvider for FixedClock {
    fn current_time(&self) -> Option<UnixTime> {
        self.0.duration_since(SystemTime::UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

/// Both ends after a handshake at `now`, or the error of the end that refused first.
pub(crate) fn handshake(
    client: ClientConfig,
    server: ServerConfig,
    now: SystemTime,
) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
    let (client, server) = at(client, server, now);
    handshake_again(&client, &server)
}

pub(crate) fn at(
    mut client: ClientConfig,
    mut server: ServerConfig,
    now: SystemTime,
) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    client.time_provider = Arc::new(FixedClock(now));
    server.time_provider = Arc::new(FixedClock(now));
    (Arc::new(client), Arc::new(server))
}

pub(crate) fn handshake_again(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
    let mut client = ClientConnection::new(Arc::clone(client), dial_name())?;
    let mut server = ServerConnection::new(Arc::clone(server))?;
    loop {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        feed(&wire, |bytes| {
            server.read_tls(bytes).unwrap();
            server.process_new_packets().map(|_| ())
        })?;
        let mut back = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut back).unwrap();
        }
        feed(&back, |bytes| {
            client.read_tls(bytes).unwrap();
            client.process_new_packets().map(|_| ())
        })?;
        if wire.is_empty() && back.is_empty() {
            assert!(!client.is_handshaking() && !server.is_handshaking());
            return Ok((client, server));
        }
    }
}

fn feed(
    mut wire: &[u8],
    mut read: impl FnMut(&mut &[u8]) -> Result<(), rustls::Error>,
) -> Result<(), rustls::Error> {
    while !wire.is_empty() {
        read(&mut wire)?;
    }
    Ok(())
}
