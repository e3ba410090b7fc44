//! May this exchange take place, and may it still?

use std::net::IpAddr;
use std::rc::Rc;

use signet_identity::SpiffeId;
use signet_policy::{Facts, Layer, Permit, ProtectionLevel, Refusal, decide};

use crate::channel::Channel;
use crate::snapshot::Snapshot;

/// The facts of one exchange, kept so that it can be judged again while it is open.
#[derive(Clone)]
pub(crate) struct Grant {
    /// The caller; none for plaintext, which permissive mode lets in.
    pub(crate) source: Option<SpiffeId>,
    pub(crate) source_addr: Option<IpAddr>,
    pub(crate) destination: SpiffeId,
    /// The destination's own port, behind any published one.
    pub(crate) port: u16,
    pub(crate) content: Content,
    /// The mesh connection it came or goes over.
    pub(crate) channel: Option<Rc<Channel>>,
}

/// What is exchanged.
#[derive(Clone)]
pub(crate) enum Content {
    Http { method: String, path: String, authority: String },
    Opaque,
}

impl Grant {
    /// Decides under the policy in force.
    pub(crate) fn decide(&self, snapshot: &Snapshot) -> Result<Permit, Refusal> {
        if let Some(channel) = &self.channel {
            channel.check_trust(snapshot)?;
        }
        decide(&snapshot.index, &self.facts())
    }

    /// Whether it would be permitted again.
    pub(crate) fn stands(&self, snapshot: &Snapshot) -> bool {
        self.decide(snapshot).is_ok()
    }

    /// The same for an exchange that began without signatures: only as long as nothing has to be signed.
    pub(crate) fn stands_unsigned(&self, snapshot: &Snapshot) -> bool {
        snapshot.index.protection(&self.destination).level == ProtectionLevel::Public && self.stands(snapshot)
    }

    /// The facts, borrowed.
    pub(crate) fn facts(&self) -> Facts<'_> {
        let layer = match &self.content {
            Content::Http { method, path, authority } => Layer::Http { method, path, authority },
            Content::Opaque => Layer::Opaque,
        };
        Facts {
            source: self.source.as_ref(),
            source_addr: self.source_addr,
            destination: &self.destination,
            port: self.port,
            layer,
        }
    }
}
