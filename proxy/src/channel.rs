//! One authenticated connection between two sidecars, as message signatures see it.
//!
//! A channel is where nonces come from: each signature is made for the next place on one channel
//! and is worthless on any other. It also knows which signing certificates its two ends have shown
//! each other, and whether its peer is still trusted.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderValue};
use prometheus_client::metrics::gauge::Gauge;
use rustls_pki_types::CertificateDer;
use signet_identity::{
    Fingerprint, Peer, SigningIdentity, TlsError, VerifyError, channel_id, peer, verify_signing_chain,
    verify_tls_chain,
};
use signet_policy::Refusal;
use signet_signature::{ChannelId, ReplayWindow, VerifiedKey};
use thiserror::Error;

use crate::headers::MESH_CERT;
use crate::snapshot::{Credentials, Snapshot};
use crate::tls::MeshStream;

/// Signing certificates remembered per channel: the current one and those that messages still in
/// flight were signed with while it rotated.
const KEYS_MAX: usize = 4;
/// Certificates in one `mesh-cert` field: leaf, issuer and two spare intermediates.
const CHAIN_MAX: usize = 4;
/// Length of a `mesh-cert` field; certificates of the mesh are 500 to 700 bytes each.
const CHAIN_TEXT_MAX: usize = 16 * 1024;
/// How long a server repeats its new certificate: responses of one connection may overtake each other.
const REINTRODUCE: Duration = Duration::from_secs(2);
/// A signature of a peer whose TLS certificate ended this long ago is still taken: clocks differ.
const EXPIRY_GRACE: Duration = Duration::from_secs(300);

/// The connection was authenticated but cannot carry signed messages.
#[derive(Debug, Error)]
pub(crate) enum ChannelError {
    #[error(transparent)]
    Peer(#[from] VerifyError),
    #[error(transparent)]
    Exporter(#[from] TlsError),
}

/// One end of a mesh connection.
pub(crate) struct Channel {
    /// What both ends derive from the TLS session and nobody else knows.
    pub(crate) id: ChannelId,
    /// The other end, proven by its TLS certificate.
    pub(crate) peer: Peer,
    /// Our own TLS certificate on this connection.
    pub(crate) own_leaf: Fingerprint,
    /// No new message starts here after this time: one of the two certificates ends.
    pub(crate) usable_until: SystemTime,
    /// The peer's TLS chain, to be judged again when the roots change.
    chain: Vec<CertificateDer<'static>>,
    /// The snapshot under which the peer was last found trusted.
    checked: Cell<Option<u64>>,
    next_sequence: Cell<u64>,
    window: RefCell<ReplayWindow>,
    keys: RefCell<Vec<Known>>,
    confirmed: Cell<Option<Fingerprint>>,
    introduced: Cell<Option<(Fingerprint, Instant)>>,
    /// Counted among the open connections as long as anybody holds the channel.
    open: Gauge,
}

/// A signing certificate that the peer has shown.
struct Known {
    identity: SigningIdentity,
    /// Its name in signatures, and what a verifier needs of it: asked for with every message.
    keyid: String,
    key: VerifiedKey,
    chain: Vec<CertificateDer<'static>>,
}

impl Known {
    fn is_trusted(&self, snapshot: &Snapshot, now: SystemTime) -> bool {
        let Self { identity, chain, .. } = self;
        let then = now.clamp(identity.not_before(), identity.not_after());
        !snapshot.revoked(identity.id(), &identity.fingerprint())
            && verify_signing_chain(&snapshot.bundle, chain, then).is_ok()
    }
}

impl Channel {
    /// The channel of a finished handshake.
    pub(crate) fn new(
        credentials: &Credentials,
        stream: &MeshStream,
        open: &Gauge,
    ) -> Result<Self, ChannelError> {
        let (_, state) = stream.get_ref();
        let peer = peer(state)?;
        let id = match stream {
            MeshStream::Client(client) => channel_id(client.get_ref().1)?,
            MeshStream::Server(server) => channel_id(server.get_ref().1)?,
        };
        let chain = state.peer_certificates().unwrap_or_default();
        open.inc();
        Ok(Self {
            id: ChannelId(id),
            own_leaf: credentials.tls.fingerprint,
            usable_until: peer.not_after().min(credentials.tls.not_after),
            chain: chain.iter().map(|certificate| certificate.clone().into_owned()).collect(),
            peer,
            checked: Cell::default(),
            next_sequence: Cell::new(1),
            window: RefCell::default(),
            keys: RefCell::default(),
            confirmed: Cell::default(),
            introduced: Cell::default(),
            open: open.clone(),
        })
    }

    /// The number of the next message we send here; never given twice.
    pub(crate) fn next_sequence(&self) -> u64 {
        let sequence = self.next_sequence.get();
        self.next_sequence.set(sequence + 1);
        sequence
    }

    /// The messages received here so far.
    pub(crate) fn window(&self) -> &RefCell<ReplayWindow> {
        &self.window
    }

    /// Whether the peer is still trusted under the snapshot: asked once per snapshot.
    pub(crate) fn check_trust(&self, snapshot: &Snapshot) -> Result<(), Refusal> {
        let now = SystemTime::now();
        if now > self.peer.not_after() + EXPIRY_GRACE {
            return Err(Refusal::PeerUnverified);
        }
        if self.checked.get() == Some(snapshot.generation) {
            return Ok(());
        }
        if snapshot.revoked(self.peer.id(), &self.peer.fingerprint()) {
            return Err(Refusal::PeerUnverified);
        }
        // A connection outlives its certificate; what is asked is whether the roots still stand.
        let then = now.min(self.peer.not_after()).max(self.peer.not_before());
        verify_tls_chain(&snapshot.bundle, &self.chain, then).map_err(|_| Refusal::PeerUnverified)?;
        self.keys.borrow_mut().retain(|known| known.is_trusted(snapshot, now));
        self.checked.set(Some(snapshot.generation));
        Ok(())
    }

    /// Takes up the signing certificate that a message introduces.
    pub(crate) fn learn(
        &self,
        headers: &HeaderMap,
        snapshot: &Snapshot,
        now: SystemTime,
    ) -> Result<(), Refusal> {
        let Some(value) = headers.get(MESH_CERT) else { return Ok(()) };
        let chain = decode_chain(value).ok_or(Refusal::SignatureMalformed)?;
        let known = chain.first().map(|leaf| Fingerprint::of(leaf));
        if known.is_some_and(|leaf| self.keys.borrow().iter().any(|key| key.identity.fingerprint() == leaf)) {
            return Ok(());
        }
        self.learn_chain(&chain, snapshot, now).map(|_| ())
    }

    /// Verifies a signing chain of the peer and remembers its key.
    pub(crate) fn learn_chain(
        &self,
        chain: &[CertificateDer<'_>],
        snapshot: &Snapshot,
        now: SystemTime,
    ) -> Result<SigningIdentity, Refusal> {
        let identity = verify_signing_chain(&snapshot.bundle, chain, now).map_err(|error| {
            tracing::info!(peer = %self.peer.id(), %error, "signing certificate refused");
            Refusal::SignatureUnknownKey
        })?;
        if identity.id() != self.peer.id() || snapshot.revoked(identity.id(), &identity.fingerprint()) {
            return Err(Refusal::SignatureUnknownKey);
        }
        let mut keys = self.keys.borrow_mut();
        if keys.len() >= KEYS_MAX {
            keys.remove(0);
        }
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let key =
            VerifiedKey { spiffe_id: identity.id().as_str().into(), public_key: *identity.public_key() };
        keys.push(Known { keyid: identity.keyid(), key, identity: identity.clone(), chain });
        Ok(identity)
    }

    /// The key behind a key id, if its certificate was shown here and has not ended.
    pub(crate) fn resolve(&self, keyid: &str, now: SystemTime) -> Option<VerifiedKey> {
        let keys = self.keys.borrow();
        let ended = |known: &&Known| now > known.identity.not_after() + EXPIRY_GRACE;
        let known = keys.iter().find(|known| known.keyid == keyid).filter(|known| !ended(known))?;
        Some(known.key.clone())
    }

    /// Whether a request must carry our signing chain: until a response proves that the peer has it.
    pub(crate) fn must_introduce(&self, own: Fingerprint) -> bool {
        self.confirmed.get() != Some(own)
    }

    /// The peer has verified a message signed under this certificate.
    pub(crate) fn confirm(&self, own: Fingerprint) {
        self.confirmed.set(Some(own));
    }

    /// Whether a response must carry our signing chain: the request asked for it by carrying its
    /// own, or our certificate is new here.
    pub(crate) fn answer_introduces(&self, own: Fingerprint, request: &HeaderMap) -> bool {
        match self.introduced.get() {
            Some((known, since)) if known == own => {
                since.elapsed() < REINTRODUCE || request.contains_key(MESH_CERT)
            }
            _ => {
                self.introduced.set(Some((own, Instant::now())));
                true
            }
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.open.dec();
    }
}

/// A signing chain as a `mesh-cert` field: byte sequences, leaf first (the syntax of RFC 9440).
pub(crate) fn encode_chain(chain: &[CertificateDer<'_>]) -> Option<HeaderValue> {
    let items: Vec<String> = chain.iter().map(|der| format!(":{}:", BASE64_STANDARD.encode(der))).collect();
    HeaderValue::try_from(items.join(", ")).ok()
}

fn decode_chain(value: &HeaderValue) -> Option<Vec<CertificateDer<'static>>> {
    let text = value.to_str().ok().filter(|text| text.len() <= CHAIN_TEXT_MAX)?;
    let items: Vec<&str> = text.split(',').map(str::trim).collect();
    if items.len() > CHAIN_MAX {
        return None;
    }
    let decode = |item: &str| BASE64_STANDARD.decode(item.strip_prefix(':')?.strip_suffix(':')?).ok();
    items.into_iter().map(|item| decode(item).map(CertificateDer::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_survives_its_field() {
        let chain = vec![CertificateDer::from(vec![1; 600]), CertificateDer::from(vec![2; 500])];
        assert_eq!(decode_chain(&encode_chain(&chain).unwrap()).unwrap(), chain);
    }

    #[test]
    fn malformed_chains_are_refused() {
        for text in ["", "AA==", ":AA", ":***:", ":AA==:, :AA==:, :AA==:, :AA==:, :AA==:"] {
            assert_eq!(decode_chain(&HeaderValue::from_static(text)), None, "{text}");
        }
    }
}
