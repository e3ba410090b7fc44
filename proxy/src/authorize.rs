//! May this exchange take place, and may it still?

use std::cell::Cell;
use std::rc::Rc;

use http::HeaderMap;
use signet_identity::SpiffeId;
use signet_policy::{
    Facts, Layer, Origin, Permit, PolicyIndex, Protection, ProtectionLevel, Refusal, RequestHeaders,
    decide_while, foresee,
};
use signet_sync::{Edge, End};

use crate::channel::Channel;
use crate::clock;
use crate::relay::Signer;
use crate::snapshot::Snapshot;

/// The facts of one exchange, kept so that it can be judged again while it is open.
#[derive(Clone)]
pub(crate) struct Grant {
    /// The caller; none for plaintext, which permissive mode lets in.
    pub(crate) source: Option<SpiffeId>,
    /// The caller's address, which only its callee sees.
    pub(crate) origin: Origin,
    pub(crate) destination: SpiffeId,
    /// The destination's own port, behind any published one.
    pub(crate) port: u16,
    pub(crate) content: Content,
    /// The mesh connection it came or goes over.
    pub(crate) channel: Option<Rc<Channel>>,
    /// Who signed it, where it passed an intermediary and there is no such connection.
    pub(crate) signer: Option<Rc<Signer>>,
    /// Under which generation, and in which second since 1970, it was last permitted; zeros before.
    pub(crate) judged: Cell<(u64, u64)>,
}

/// What is exchanged.
#[derive(Clone)]
pub(crate) enum Content {
    Http {
        method: Rc<str>,
        path: Rc<str>,
        authority: Rc<str>,
        /// Kept only where a rule asks for header fields: most meshes have none that do.
        headers: Option<Rc<RequestHeaders>>,
    },
    Opaque,
}

impl Content {
    /// Keeps the header fields of a request as they were received, if policy may ask for them. An exchange that began
    /// before any rule did is judged later as if it had none that allow.
    pub(crate) fn with_headers(
        mut self,
        index: &PolicyIndex,
        destination: &SpiffeId,
        received: &HeaderMap,
    ) -> Self {
        if let Self::Http { headers, .. } = &mut self
            && index.asks_for_headers(destination)
        {
            let fields = received.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
            *headers = Some(Rc::new(RequestHeaders::new(fields)));
        }
        self
    }
}

impl Content {
    /// Method and path; none of bytes that are not HTTP.
    pub(crate) fn request(&self) -> Option<(&str, &str)> {
        match self {
            Self::Http { method, path, .. } => Some((method, path)),
            Self::Opaque => None,
        }
    }
}

impl Grant {
    /// How the messages of the exchange are protected at least.
    pub(crate) fn protection(&self, index: &PolicyIndex) -> Protection {
        index.protection(&self.destination, self.port, self.content.request())
    }

    /// The header fields of them that are sealed, where they are.
    pub(crate) fn sealed_headers(&self, index: &PolicyIndex) -> Vec<String> {
        index.sealed_headers(&self.destination, self.port, self.content.request())
    }

    /// The header fields that must not be there in clear at a level of protection.
    pub(crate) fn never_clear(&self, index: &PolicyIndex, level: ProtectionLevel) -> Vec<String> {
        match level {
            ProtectionLevel::Private => self.sealed_headers(index),
            ProtectionLevel::Protected | ProtectionLevel::Public => Vec::new(),
        }
    }

    /// Decides under the policy in force.
    pub(crate) fn decide(&self, snapshot: &Snapshot) -> Result<Permit, Refusal> {
        if let Some(channel) = &self.channel {
            channel.check_trust(snapshot)?;
        }
        if let Some(signer) = &self.signer {
            signer.check_trust(snapshot)?;
        }
        let facts = self.facts();
        let permit = decide_while(&snapshot.index, &facts, snapshot.staleness())?;
        self.judged.set((snapshot.generation, facts.now));
        Ok(permit)
    }

    /// Whether it was permitted under this very snapshot and in this very second, and whoever it came from or goes to is
    /// still trusted: then deciding would say the same.
    pub(crate) fn is_judged(&self, snapshot: &Snapshot) -> bool {
        self.judged.get() == (snapshot.generation, clock::unix_seconds())
            && self.channel.as_ref().is_none_or(|channel| channel.check_trust(snapshot).is_ok())
            && self.signer.as_ref().is_none_or(|signer| signer.check_trust(snapshot).is_ok())
    }

    /// Decides before the work of verifying. What is sealed cannot be read yet: where a rule asks for header fields, that
    /// much is left open until they were opened, and there is no permit yet.
    pub(crate) fn decide_before(
        &self,
        snapshot: &Snapshot,
        is_sealed: bool,
    ) -> Result<Option<Permit>, Refusal> {
        if !is_sealed || !snapshot.index.asks_for_headers(&self.destination) {
            return self.decide(snapshot).map(Some);
        }
        if let Some(channel) = &self.channel {
            channel.check_trust(snapshot)?;
        }
        foresee(&snapshot.index, &self.facts(), snapshot.staleness()).map(|()| None)
    }

    /// Whether it would be permitted again.
    pub(crate) fn stands(&self, snapshot: &Snapshot) -> bool {
        self.decide(snapshot).is_ok()
    }

    /// The same for an exchange that began without signatures: only as long as nothing has to be signed.
    pub(crate) fn stands_unsigned(&self, snapshot: &Snapshot) -> bool {
        self.is_public(&snapshot.index) && self.stands(snapshot)
    }

    /// Whether nothing of it has to be signed.
    pub(crate) fn is_public(&self, index: &PolicyIndex) -> bool {
        self.protection(index).level == ProtectionLevel::Public
    }

    /// Where it came from and to which port of ours; none for what goes out.
    pub(crate) fn inbound_edge(&self) -> Option<Edge> {
        let address = self.origin.address()?;
        let end = self.source.clone().map_or(End::Address(address), End::Caller);
        Some(Edge { end, port: self.port })
    }

    /// The facts, borrowed.
    pub(crate) fn facts(&self) -> Facts<'_> {
        let layer = match &self.content {
            Content::Http { method, path, authority, headers } => {
                Layer::Http { method, path, authority, headers: headers.as_deref() }
            }
            Content::Opaque => Layer::Opaque,
        };
        Facts {
            source: self.source.as_ref(),
            origin: self.origin,
            destination: &self.destination,
            port: self.port,
            layer,
            now: clock::unix_seconds(),
        }
    }
}
