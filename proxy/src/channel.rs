//! One authenticated connection between two sidecars, as message signatures see it.
//!
//! A channel is where nonces come from: each signature is made for the next place on one channel
//! and is worthless on any other. It also knows which signing certificates its two ends have shown
//! each other, and whether its peer is still trusted.

use std::cell::{Cell, RefCell, RefMut};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderValue};
use prometheus_client::metrics::gauge::Gauge;
use rustls_pki_types::CertificateDer;
use signet_identity::{
    ALPN_H1, ALPN_RECORDS, Fingerprint, Peer, SigningIdentity, SpiffeId, TlsError, VerifyError, channel_id,
    mac_keys, peer, verify_signing_chain, verify_tls_chain,
};
use signet_policy::Refusal;
use signet_signature::checkpoint::{CheckpointError, Moment, ReceivedLog, SentLog};
use signet_signature::record::Direction;
use signet_signature::{ChannelId, Form, MacKey, ReplayWindow, VerifiedKey};
use thiserror::Error;

use crate::clock;
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
/// How long a server repeats its new certificate in HTTP/2, where responses of one connection may overtake each other.
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
    /// Whether an answer is read before the next request is sent: HTTP/1.1.
    is_sequential: bool,
    confirmed: Cell<Option<Fingerprint>>,
    introduced: Cell<Option<(Fingerprint, Instant)>>,
    /// What messages may be authenticated with; none on a connection that carries no HTTP.
    secrets: Option<Box<Secrets>>,
    /// Made when the first message is, so that nobody else pays for it.
    ledger: RefCell<Option<Box<Ledger>>>,
    /// Whether a checkpoint is on its way from here.
    settling: Turn,
    /// Numbers of requests that were handed on and are being verified.
    unproven: RefCell<Vec<u64>>,
    /// Something came here that the peer cannot have sent honestly: nothing more is taken or sent.
    cut: Cell<bool>,
    /// Who carries the connection and has to be told.
    carrier: RefCell<Option<Waker>>,
    /// Counted among the open connections as long as anybody holds the channel.
    open: Gauge,
}

/// The keys of a connection, before they are used.
struct Secrets {
    own: SpiffeId,
    own_direction: Direction,
    client: [u8; 32],
    server: [u8; 32],
}

/// What was authenticated on a channel, either way (mode `hmac`).
pub(crate) struct Ledger {
    /// The key of what we send, and of what the peer does.
    pub(crate) own: MacKey,
    pub(crate) peer: MacKey,
    pub(crate) sent: SentLog,
    pub(crate) received: ReceivedLog,
}

impl Ledger {
    fn new(secrets: &Secrets, channel: &ChannelId, peer: &SpiffeId) -> Self {
        let (client, server) = (MacKey::new(&secrets.client), MacKey::new(&secrets.server));
        let (c2s, s2c) = (Direction::ClientToServer, Direction::ServerToClient);
        let (own, theirs, own_direction, peer_direction) = match secrets.own_direction {
            Direction::ClientToServer => (client, server, c2s, s2c),
            Direction::ServerToClient => (server, client, s2c, c2s),
        };
        Self {
            own,
            peer: theirs,
            sent: SentLog::new(secrets.own.as_str(), channel, own_direction),
            received: ReceivedLog::new(peer.as_str(), channel, peer_direction),
        }
    }

    /// Whether a checkpoint should be exchanged now.
    fn is_due(&self, now: Moment) -> bool {
        self.sent.is_due(now) || self.received.is_due(now)
    }
}

/// A signing certificate that was shown and verified.
pub(crate) struct Known {
    pub(crate) identity: SigningIdentity,
    /// Its name in signatures, and what a verifier needs of it: asked for with every message.
    keyid: String,
    key: VerifiedKey,
    chain: Vec<CertificateDer<'static>>,
}

impl Known {
    /// Verifies a signing chain.
    pub(crate) fn verify(
        chain: &[CertificateDer<'_>],
        snapshot: &Snapshot,
        now: SystemTime,
    ) -> Result<Self, Refusal> {
        let identity = verify_signing_chain(&snapshot.bundle, chain, now).map_err(|error| {
            tracing::info!(%error, "signing certificate refused");
            Refusal::SignatureUnknownKey
        })?;
        if snapshot.revoked(identity.id(), &identity.fingerprint()) {
            return Err(Refusal::SignatureUnknownKey);
        }
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let key =
            VerifiedKey { spiffe_id: identity.id().as_str().into(), public_key: *identity.public_key() };
        Ok(Self { keyid: identity.keyid(), key, identity, chain })
    }

    /// Its key, if that is the one meant and its certificate has not ended.
    pub(crate) fn resolve(&self, keyid: &str, now: SystemTime) -> Option<VerifiedKey> {
        let ended = now > self.identity.not_after() + EXPIRY_GRACE;
        (self.keyid == keyid && !ended).then(|| self.key.clone())
    }

    /// Whether it would be verified again.
    pub(crate) fn is_trusted(&self, snapshot: &Snapshot, now: SystemTime) -> bool {
        let Self { identity, chain, .. } = self;
        let then = now.clamp(identity.not_before(), identity.not_after());
        !snapshot.revoked(identity.id(), &identity.fingerprint())
            && verify_signing_chain(&snapshot.open_bundle, chain, then).is_ok()
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
        let http = state.alpn_protocol() != Some(ALPN_RECORDS);
        // The keys cannot be had later, when the stream belongs to the HTTP library.
        let (id, own_direction, keys) = match stream {
            MeshStream::Client(client) => {
                let tls = client.get_ref().1;
                (channel_id(tls)?, Direction::ClientToServer, http.then(|| mac_keys(tls)).transpose()?)
            }
            MeshStream::Server(server) => {
                let tls = server.get_ref().1;
                (channel_id(tls)?, Direction::ServerToClient, http.then(|| mac_keys(tls)).transpose()?)
            }
        };
        let own = || credentials.id().clone();
        let secrets =
            keys.map(|[client, server]| Box::new(Secrets { own: own(), own_direction, client, server }));
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
            is_sequential: state.alpn_protocol() == Some(ALPN_H1),
            confirmed: Cell::default(),
            introduced: Cell::default(),
            secrets,
            ledger: RefCell::default(),
            settling: Turn::default(),
            unproven: RefCell::default(),
            cut: Cell::default(),
            carrier: RefCell::default(),
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

    /// What was authenticated here so far; none where nothing can be.
    pub(crate) fn ledger(&self) -> Option<RefMut<'_, Ledger>> {
        let secrets = self.secrets.as_ref()?;
        let ledger = RefMut::map(self.ledger.borrow_mut(), |ledger| {
            ledger.get_or_insert_with(|| Box::new(Ledger::new(secrets, &self.id, self.peer.id())))
        });
        Some(RefMut::map(ledger, |ledger| &mut **ledger))
    }

    /// The same, unless nothing was authenticated yet.
    pub(crate) fn known_ledger(&self) -> Option<RefMut<'_, Ledger>> {
        let ledger = RefMut::filter_map(self.ledger.borrow_mut(), Option::as_mut).ok()?;
        Some(RefMut::map(ledger, |ledger| &mut **ledger))
    }

    /// How a message is signed that policy lets be authenticated: while too much waits for a checkpoint, or where there
    /// are no keys, it gets a signature, which is taken everywhere.
    pub(crate) fn affordable(&self, form: Form, now: impl FnOnce() -> Moment) -> Form {
        if form != Form::Mac || self.ledger().is_some_and(|ledger| ledger.sent.has_room(now())) {
            return form;
        }
        Form::Batch
    }

    /// Whether the two ends should exchange checkpoints now; always, to leave nothing behind, if anything waits at all
    /// and the channel is `left`.
    pub(crate) fn wants_checkpoint(&self, now: impl FnOnce() -> Moment, left: bool) -> bool {
        if self.cut.get() || self.settling.is_taken() || self.ledger.borrow().is_none() {
            return false;
        }
        self.known_ledger().is_some_and(|ledger| {
            ledger.is_due(now()) || (left && !(ledger.sent.is_settled() && ledger.received.debt() == 0))
        })
    }

    /// Takes the turn of exchanging checkpoints, for one at a time: the order of the log is theirs.
    pub(crate) fn begin_settling(&self) -> Option<Taken<'_>> {
        self.settling.take()
    }

    /// Takes up a checkpoint of the peer.
    pub(crate) fn cover(&self, note: &str, entries: &[u8]) -> Result<usize, CheckpointError> {
        let keys = self.keys.borrow();
        let mut ledger = self.known_ledger().ok_or(CheckpointError::Mismatch)?;
        ledger.received.cover(note, entries, keys.iter().map(|known| &known.key.public_key))
    }

    /// Keeps a number from being handed on again while its message is verified; false when it is already kept.
    pub(crate) fn reserve(&self, seq: u64) -> bool {
        let mut unproven = self.unproven.borrow_mut();
        let free = !unproven.contains(&seq);
        if free {
            unproven.push(seq);
        }
        free
    }

    /// Whether the number is that of a message being verified.
    pub(crate) fn is_reserved(&self, seq: u64) -> bool {
        self.unproven.borrow().contains(&seq)
    }

    /// Ends what [`reserve`](Self::reserve) began.
    pub(crate) fn release(&self, seq: u64) {
        self.unproven.borrow_mut().retain(|known| *known != seq);
    }

    /// Ends the connection: nothing that comes here can be trusted any more.
    pub(crate) fn cut(&self) {
        self.cut.set(true);
        if let Some(carrier) = self.carrier.borrow_mut().take() {
            carrier.wake();
        }
    }

    /// Whether the connection was ended so.
    pub(crate) fn is_cut(&self) -> bool {
        self.cut.get()
    }

    /// Ready as soon as the connection was ended; for the one task that carries it.
    pub(crate) fn poll_cut(&self, cx: &Context<'_>) -> Poll<()> {
        if self.cut.get() {
            return Poll::Ready(());
        }
        let mut carrier = self.carrier.borrow_mut();
        if !carrier.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            *carrier = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Whether the peer is still trusted under the snapshot: asked once per snapshot.
    pub(crate) fn check_trust(&self, snapshot: &Snapshot) -> Result<(), Refusal> {
        if self.cut.get() {
            return Err(Refusal::PeerUnverified);
        }
        let now = clock::now();
        if now > self.peer.not_after() + EXPIRY_GRACE {
            return Err(Refusal::PeerUnverified);
        }
        if self.checked.get() == Some(snapshot.edition) {
            return Ok(());
        }
        if snapshot.revoked(self.peer.id(), &self.peer.fingerprint()) {
            return Err(Refusal::PeerUnverified);
        }
        // A connection outlives its certificate; what is asked is whether the roots still stand.
        let then = now.min(self.peer.not_after()).max(self.peer.not_before());
        verify_tls_chain(&snapshot.open_bundle, &self.chain, then).map_err(|_| Refusal::PeerUnverified)?;
        self.keys.borrow_mut().retain(|known| known.is_trusted(snapshot, now));
        self.checked.set(Some(snapshot.edition));
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
        let known = Known::verify(chain, snapshot, now)?;
        let identity = known.identity.clone();
        if identity.id() != self.peer.id() {
            return Err(Refusal::SignatureUnknownKey);
        }
        let mut keys = self.keys.borrow_mut();
        if keys.len() >= KEYS_MAX {
            keys.remove(0);
        }
        keys.push(known);
        Ok(identity)
    }

    /// The key behind a key id, if its certificate was shown here and has not ended.
    pub(crate) fn resolve(&self, keyid: &str, now: SystemTime) -> Option<VerifiedKey> {
        let keys = self.keys.borrow();
        keys.iter().find_map(|known| known.resolve(keyid, now))
    }

    /// Whether a request must carry our signing chain: until a response proves that the peer has it.
    pub(crate) fn must_introduce(&self, own: Fingerprint) -> bool {
        self.confirmed.get() != Some(own)
    }

    /// Something is wrong with what the peer signs: the next request asks for its certificate once more, by bringing ours.
    pub(crate) fn unconfirm(&self) {
        self.confirmed.set(None);
    }

    /// The peer has verified a message signed under this certificate.
    pub(crate) fn confirm(&self, own: Fingerprint) {
        self.confirmed.set(Some(own));
    }

    /// Whether a response must carry our signing chain: the request asked for it by carrying its
    /// own, or our certificate is new here. In HTTP/1.1 it is new to one response only: whoever sends the next request
    /// has read it.
    pub(crate) fn answer_introduces(&self, own: Fingerprint, request: &HeaderMap) -> bool {
        match self.introduced.get() {
            Some((known, since)) if known == own => {
                let overtaken = !self.is_sequential && since.elapsed() < REINTRODUCE;
                overtaken || request.contains_key(MESH_CERT)
            }
            _ => {
                self.introduced.set(Some((own, Instant::now())));
                true
            }
        }
    }
}

/// Something that one at a time may do.
#[derive(Default)]
struct Turn(Cell<bool>);

/// The turn of its holder, until it is dropped.
pub(crate) struct Taken<'a>(&'a Turn);

impl Turn {
    fn is_taken(&self) -> bool {
        self.0.get()
    }

    fn take(&self) -> Option<Taken<'_>> {
        // Made only when the turn is free: dropping one that was made in vain would end another's.
        (!self.0.replace(true)).then(|| Taken(self))
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.0.0.set(false);
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.open.dec();
        let owed = self.ledger.get_mut().as_ref().map_or(0, |ledger| ledger.received.debt());
        if owed > 0 {
            // Nobody can prove to others that the peer sent them.
            tracing::warn!(peer = %self.peer.id(), messages = owed, "connection ended before a checkpoint covered them");
        }
    }
}

/// A signing chain as a `mesh-cert` field: byte sequences, leaf first (the syntax of RFC 9440).
pub(crate) fn encode_chain(chain: &[CertificateDer<'_>]) -> Option<HeaderValue> {
    let items: Vec<String> = chain.iter().map(|der| format!(":{}:", BASE64_STANDARD.encode(der))).collect();
    HeaderValue::try_from(items.join(", ")).ok()
}

pub(crate) fn decode_chain(value: &HeaderValue) -> Option<Vec<CertificateDer<'static>>> {
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
    fn a_turn_that_is_asked_for_in_vain_stays_with_its_holder() {
        let turn = Turn::default();
        let held = turn.take();
        assert!(held.is_some());
        assert!(turn.take().is_none());
        assert!(turn.take().is_none(), "asking did not end it");
        drop(held);
        assert!(!turn.is_taken() && turn.take().is_some());
    }

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
