//! The proxy's end of the stream: verifies, decodes and applies sections, and answers each of them.
//!
//! A section is applied whole or not at all. Checks run in this order, cheap and unauthenticated ones only to bound
//! work: name and size, signer, signature, version, reader, payload. Until the first anchors and policy are applied
//! there is no policy, and the caller must deny.

use std::collections::BTreeMap;
use std::sync::Arc;

use signet_identity::{TrustBundle, TrustDomain};
use signet_policy::{PolicyIndex, PolicyModel};

use crate::proto::sync as wire;
use crate::section::{area_of, payload_sha256, verify_epoch, verify_section};
use crate::{
    Anchors, Directory, MAX_SECTION_BYTES, MAX_SECTIONS, POLICY_KEY_ID, PROTOCOL, Revocations, SectionError,
    SectionName, Version, freshness, policy,
};

/// Follows the sections of one trust domain. Trust starts from the policy key learned at enrolment.
#[derive(Debug)]
pub struct Subscriber {
    trust_domain: TrustDomain,
    policy_key: [u8; 32],
    /// Last good section of each name, as signed: what is saved, and compared with.
    held: BTreeMap<SectionName, Arc<wire::Section>>,
    anchors: Option<Arc<Anchors>>,
    directories: BTreeMap<String, Arc<Directory>>,
    policy: Option<PolicyState>,
    revocations: Arc<Revocations>,
}

/// A policy and its index, always of the same version.
#[derive(Debug, Clone)]
pub struct PolicyState {
    /// The policy as received.
    pub model: Arc<PolicyModel>,
    /// The same, made for decisions.
    pub index: Arc<PolicyIndex>,
}

/// What came of a section.
#[derive(Debug)]
pub struct Outcome {
    /// `Ack` or `Nack`, to be sent.
    pub reply: wire::ProxyMessage,
    /// The section that changed; `None` when it was refused or already held.
    pub changed: Option<SectionName>,
    /// Why it was refused, for the proxy's own log and metrics.
    pub refused: Option<SectionError>,
}

/// A payload decoded and compiled, not yet applied.
enum Decoded {
    Anchors(Anchors),
    Directory(Directory),
    Policy(PolicyState),
    Revocations(Revocations),
}

impl Subscriber {
    /// Follows `trust_domain`, believing `policy_key` (Ed25519, from the answer to the enrolment).
    pub fn new(trust_domain: TrustDomain, policy_key: [u8; 32]) -> Self {
        Self {
            trust_domain,
            policy_key,
            held: BTreeMap::new(),
            anchors: None,
            directories: BTreeMap::new(),
            policy: None,
            revocations: Arc::default(),
        }
    }

    /// A section from the stream: applied if it is good and new, and answered in any case.
    pub fn handle(&mut self, section: wire::Section) -> Outcome {
        let (name, epoch, counter) = (section.name.clone(), section.epoch, section.counter);
        match self.apply(section) {
            Ok(changed) => {
                let ack = wire::Ack { name, epoch, counter };
                Outcome { reply: reply(wire::proxy_message::Message::Ack(ack)), changed, refused: None }
            }
            Err(error) => {
                let (code, text) = (error.code().to_owned(), error.to_string());
                let nack = wire::Nack { name, epoch, counter, code, error: text };
                let reply = reply(wire::proxy_message::Message::Nack(nack));
                Outcome { reply, changed: None, refused: Some(error) }
            }
        }
    }

    /// Applies a section if it is good and new; `None` when this very section is held already. Also the way back in for
    /// saved sections, which are verified like any other: anchors first.
    ///
    /// # Errors
    /// [`SectionError`]; nothing has changed then.
    pub fn apply(&mut self, section: wire::Section) -> Result<Option<SectionName>, SectionError> {
        let name = SectionName::parse(&section.name).ok_or(SectionError::UnknownSection)?;
        if section.payload.len() > MAX_SECTION_BYTES {
            return Err(SectionError::TooLarge);
        }
        verify_section(&self.signer(&name, &section.key_id)?, &section)?;
        verify_epoch(&self.policy_key, &section)?;
        if self.already_held(&name, &section)? {
            return Ok(None);
        }
        if section.minimum_reader > PROTOCOL {
            return Err(SectionError::ReaderTooOld { minimum: section.minimum_reader });
        }
        let decoded = self.decode(&name, &section.payload)?;
        self.install(decoded);
        self.held.insert(name.clone(), Arc::new(section));
        if name == SectionName::Anchors {
            self.drop_directories_without_signer();
        }
        Ok(Some(name))
    }

    /// Whether the control plane, by its own signed word, has no newer anchors, policy and list of revocations than those
    /// held: then what is held was the newest at that moment.
    ///
    /// # Errors
    /// [`SectionError::BadSignature`].
    pub fn is_newest(&self, said: &wire::Freshness) -> Result<bool, SectionError> {
        freshness::verify(&self.policy_key, said)?;
        let held = |name| self.held.get(name).map(|section| Version::from(&**section));
        Ok(held(&SectionName::Anchors) >= Some(freshness::anchors(said))
            && held(&SectionName::Policy) >= Some(freshness::policy(said))
            && held(&SectionName::Revocations) >= Some(freshness::revocations(said)))
    }

    /// Whether a directory is one that its area may write, signed by it and well-formed: what a control plane asks before it
    /// passes on another's. Nothing changes.
    ///
    /// # Errors
    /// [`SectionError`].
    pub fn check_directory(&self, section: &wire::Section) -> Result<Directory, SectionError> {
        let name = SectionName::parse(&section.name).ok_or(SectionError::UnknownSection)?;
        let SectionName::Directory(_) = name else { return Err(SectionError::UnknownSection) };
        if section.payload.len() > MAX_SECTION_BYTES {
            return Err(SectionError::TooLarge);
        }
        verify_section(&self.signer(&name, &section.key_id)?, section)?;
        verify_epoch(&self.policy_key, section)?;
        match self.decode(&name, &section.payload)? {
            Decoded::Directory(directory) => Ok(directory),
            _ => Err(SectionError::UnknownSection),
        }
    }

    /// What is held, for `Hello.have`.
    pub fn have(&self) -> Vec<wire::SectionVersion> {
        self.held
            .values()
            .map(|section| wire::SectionVersion {
                name: section.name.clone(),
                epoch: section.epoch,
                counter: section.counter,
                payload_sha256: payload_sha256(&section.payload),
            })
            .collect()
    }

    /// Last good sections as signed, anchors first: what to save, and the order to apply them in again.
    pub fn sections(&self) -> impl Iterator<Item = (&SectionName, &Arc<wire::Section>)> {
        self.held.iter()
    }

    /// Version held of each section.
    pub fn versions(&self) -> impl Iterator<Item = (&SectionName, Version)> {
        self.held.iter().map(|(name, section)| (name, Version::from(&**section)))
    }

    /// The trust domain followed.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The key that trust starts from.
    pub fn policy_key(&self) -> &[u8; 32] {
        &self.policy_key
    }

    /// Policy in force; `None` before the first one: deny.
    pub fn policy(&self) -> Option<&PolicyState> {
        self.policy.as_ref()
    }

    /// Roots in force, once anchors were received.
    pub fn bundle(&self) -> Option<&Arc<TrustBundle>> {
        self.anchors.as_ref().map(|anchors| &anchors.bundle)
    }

    /// Whom to believe, once that was received.
    pub fn anchors(&self) -> Option<&Arc<Anchors>> {
        self.anchors.as_ref()
    }

    /// Directory of each network, in the order of their names.
    pub fn directories(&self) -> impl Iterator<Item = &Arc<Directory>> {
        self.directories.values()
    }

    /// What is revoked.
    pub fn revocations(&self) -> &Arc<Revocations> {
        &self.revocations
    }

    /// The one key that may sign this section.
    fn signer(&self, name: &SectionName, key_id: &str) -> Result<[u8; 32], SectionError> {
        let not_allowed = || SectionError::KeyNotAllowed(key_id.chars().take(64).collect());
        let SectionName::Directory(network) = name else {
            return if key_id == POLICY_KEY_ID { Ok(self.policy_key) } else { Err(not_allowed()) };
        };
        let area = area_of(key_id).ok_or_else(not_allowed)?;
        let anchors = self.anchors.as_ref().ok_or_else(not_allowed)?;
        anchors.directory_signer(area, network).copied().ok_or_else(not_allowed)
    }

    fn already_held(&self, name: &SectionName, section: &wire::Section) -> Result<bool, SectionError> {
        let offered = Version::from(section);
        if offered.epoch == 0 || offered.counter == 0 {
            return Err(SectionError::VersionZero);
        }
        let Some(held_section) = self.held.get(name) else {
            return if self.held.len() < MAX_SECTIONS {
                Ok(false)
            } else {
                Err(SectionError::TooManySections)
            };
        };
        let held = Version::from(&**held_section);
        if offered < held {
            return Err(SectionError::Rollback { held, offered });
        }
        if offered > held {
            return Ok(false);
        }
        if section.payload == held_section.payload { Ok(true) } else { Err(SectionError::Conflict(held)) }
    }

    fn decode(&self, name: &SectionName, payload: &[u8]) -> Result<Decoded, SectionError> {
        match name {
            SectionName::Anchors => {
                let anchors = Anchors::decode(payload)?;
                if *anchors.bundle.trust_domain() != self.trust_domain {
                    return Err(SectionError::TrustDomain);
                }
                if anchors.policy_key != self.policy_key {
                    return Err(SectionError::PolicyKeyChanged);
                }
                Ok(Decoded::Anchors(anchors))
            }
            SectionName::Directory(network) => {
                let directory = Directory::decode(payload)?;
                if directory.network() != network {
                    return Err(crate::DecodeError::Network.into());
                }
                Ok(Decoded::Directory(directory))
            }
            SectionName::Policy => {
                let model = policy::decode(payload)?;
                if model.trust_domain != self.trust_domain {
                    return Err(SectionError::TrustDomain);
                }
                let index = Arc::new(PolicyIndex::new(&model));
                Ok(Decoded::Policy(PolicyState { model: Arc::new(model), index }))
            }
            SectionName::Revocations => Ok(Decoded::Revocations(Revocations::decode(payload)?)),
        }
    }

    fn install(&mut self, decoded: Decoded) {
        match decoded {
            Decoded::Anchors(anchors) => self.anchors = Some(Arc::new(anchors)),
            Decoded::Directory(directory) => {
                self.directories.insert(directory.network().to_owned(), Arc::new(directory));
            }
            Decoded::Policy(policy) => self.policy = Some(policy),
            Decoded::Revocations(revocations) => self.revocations = Arc::new(revocations),
        }
    }

    /// New anchors may have taken an area's key away: what only that key vouched for goes with it.
    fn drop_directories_without_signer(&mut self) {
        let orphans: Vec<SectionName> = self
            .held
            .iter()
            .filter(|(name, section)| {
                matches!(name, SectionName::Directory(_))
                    && self
                        .signer(name, &section.key_id)
                        .and_then(|key| verify_section(&key, section))
                        .is_err()
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in orphans {
            if let SectionName::Directory(network) = &name {
                self.directories.remove(network);
            }
            self.held.remove(&name);
        }
    }
}

fn reply(message: wire::proxy_message::Message) -> wire::ProxyMessage {
    wire::ProxyMessage { message: Some(message) }
}
