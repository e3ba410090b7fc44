//! Who calls: what a handshake proved, and the chain it was proved with.

use std::ops::Deref;
use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use signet_identity::{Peer, TrustBundle, area_of_chain, channel_point, device_of, verify_tls_chain};

/// A verified peer. The handshake believes retired roots and issuers too, for renewal; the chain is kept to ask again where
/// that is not enough.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    peer: Peer,
    /// As shown, leaf first; the handshake bounds it.
    chain: Arc<[CertificateDer<'static>]>,
}

impl Caller {
    pub(crate) fn new(peer: Peer, chain: &[CertificateDer<'_>]) -> Self {
        Self { peer, chain: chain.iter().map(|der| der.clone().into_owned()).collect() }
    }

    /// As shown, leaf first.
    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The key of its certificate, an uncompressed point; `None` for one that is none of the mesh's.
    pub(crate) fn point(&self) -> Option<Vec<u8>> {
        channel_point(self.chain.first()?).ok().flatten()
    }

    /// The device that its key lies in, by whoever certified it.
    pub(crate) fn device(&self) -> Option<[u8; 32]> {
        device_of(self.chain.first()?).ok().flatten()
    }

    /// The area that certified it; none for the trust domain's own issuers.
    pub(crate) fn area(&self) -> Option<String> {
        area_of_chain(&self.chain)
    }

    /// Whether the chain verifies under this bundle, with the issuers that it refuses.
    pub(crate) fn is_believed_by(&self, bundle: &TrustBundle, now: SystemTime) -> bool {
        verify_tls_chain(bundle, &self.chain, now).is_ok_and(|peer| peer == self.peer)
    }
}

impl Deref for Caller {
    type Target = Peer;

    fn deref(&self) -> &Peer {
        &self.peer
    }
}
