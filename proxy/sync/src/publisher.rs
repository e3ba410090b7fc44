//! The control plane's end of one proxy's stream: what to send next, and what the proxy has answered.
//!
//! Each section has one place: the newest version to send, and at most one version sent and not yet answered. A burst
//! of changes therefore collapses into the last one, and a proxy that does not read costs nothing but its silence.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::proto::sync as wire;
use crate::section::payload_sha256;
use crate::{MAX_NACK_BYTES, MAX_SECTIONS, SectionName, Version};

/// How long a proxy may leave a section unanswered before its stream is given up. Verifying and compiling the largest
/// section takes well under a second on a Raspberry Pi; this leaves room for a slow link.
pub const ACK_TIMEOUT: Duration = Duration::from_secs(30);

/// Sends sections to one proxy. Made from the proxy's `Hello`; forgotten with the stream.
#[derive(Debug, Default)]
pub struct Publisher {
    lanes: BTreeMap<SectionName, Lane>,
}

/// One section on its way to one proxy.
#[derive(Debug, Default)]
struct Lane {
    latest: Option<Arc<wire::Section>>,
    in_flight: Option<(Version, Instant)>,
    /// Newest version the proxy answered, either way: it is not sent again.
    settled: Option<Version>,
    acked: Option<Version>,
    /// Digest of what `Hello` said is held; forgotten with the first answer.
    held_sha256: Option<Vec<u8>>,
    nack: Option<wire::Nack>,
}

/// Where a proxy stands on one section.
#[derive(Debug, Clone, PartialEq)]
pub struct SectionState {
    /// Which section.
    pub name: SectionName,
    /// Newest version there is to send.
    pub latest: Option<Version>,
    /// Newest version the proxy applied, now or before this stream. Above `latest` means this control plane has gone
    /// back in time: it needs a new epoch.
    pub acked: Option<Version>,
    /// The proxy's last refusal, until a later version is applied.
    pub nack: Option<wire::Nack>,
}

impl Publisher {
    /// The state of a proxy that just said what it has. Names this version does not know are passed over: a newer
    /// proxy may follow sections that an older control plane has never heard of.
    pub fn new(hello: &wire::Hello) -> Self {
        let mut lanes = BTreeMap::new();
        for have in hello.have.iter().take(MAX_SECTIONS) {
            let Some(name) = SectionName::parse(&have.name) else { continue };
            let version = Version { epoch: have.epoch, counter: have.counter };
            lanes.insert(
                name,
                Lane {
                    settled: Some(version),
                    acked: Some(version),
                    held_sha256: Some(have.payload_sha256.clone()),
                    ..Lane::default()
                },
            );
        }
        Self { lanes }
    }

    /// Offers a version of a section. Only the newest offered is kept; one whose name is unknown, or beyond the
    /// [`MAX_SECTIONS`]th, is not sent.
    pub fn publish(&mut self, section: Arc<wire::Section>) {
        let Some(name) = SectionName::parse(&section.name) else { return };
        if !self.lanes.contains_key(&name) && self.lanes.len() >= MAX_SECTIONS {
            return;
        }
        let lane = self.lanes.entry(name).or_default();
        if lane.latest.as_deref().is_none_or(|latest| Version::from(latest) < Version::from(&*section)) {
            lane.latest = Some(section);
        }
    }

    /// The next section to put on the stream; call until `None` after `publish`, `on_ack` and `on_nack`.
    pub fn poll(&mut self, now: Instant) -> Option<Arc<wire::Section>> {
        self.lanes.values_mut().find_map(|lane| lane.poll(now))
    }

    /// The proxy applied a version. An answer about anything but the version in flight is late and means nothing.
    pub fn on_ack(&mut self, ack: &wire::Ack) {
        let version = Version { epoch: ack.epoch, counter: ack.counter };
        let Some(name) = SectionName::parse(&ack.name) else { return };
        let Some(lane) = self.answered(&name, version) else { return };
        lane.acked = Some(version);
        lane.nack = None;
        if name == SectionName::Anchors {
            self.retry_refused_directories();
        }
    }

    /// The proxy refused a version and keeps what it had. The version is not sent again.
    pub fn on_nack(&mut self, nack: &wire::Nack) {
        let version = Version { epoch: nack.epoch, counter: nack.counter };
        let Some(name) = SectionName::parse(&nack.name) else { return };
        let Some(lane) = self.answered(&name, version) else { return };
        let mut nack = nack.clone();
        truncate(&mut nack.code);
        truncate(&mut nack.error);
        lane.nack = Some(nack);
    }

    /// Whether the proxy has left something unanswered for [`ACK_TIMEOUT`]: the stream is to be closed.
    pub fn overdue(&self, now: Instant) -> bool {
        self.lanes
            .values()
            .filter_map(|lane| lane.in_flight)
            .any(|(_, sent)| now.saturating_duration_since(sent) >= ACK_TIMEOUT)
    }

    /// Where the proxy stands on each section.
    pub fn states(&self) -> impl Iterator<Item = SectionState> {
        self.lanes.iter().map(|(name, lane)| SectionState {
            name: name.clone(),
            latest: lane.latest.as_deref().map(Version::from),
            acked: lane.acked,
            nack: lane.nack.clone(),
        })
    }

    /// What the proxy holds in a newer version than was offered: the section, that version, and the newest offered.
    pub fn ahead(&self) -> impl Iterator<Item = (&SectionName, Version, Version)> {
        self.lanes.iter().filter_map(|(name, lane)| {
            let (held, latest) = (lane.acked?, Version::from(lane.latest.as_deref()?));
            (held > latest).then_some((name, held, latest))
        })
    }

    fn answered(&mut self, name: &SectionName, version: Version) -> Option<&mut Lane> {
        let lane = self.lanes.get_mut(name)?;
        if lane.in_flight.map(|(sent, _)| sent) != Some(version) {
            return None;
        }
        lane.in_flight = None;
        lane.settled = Some(version);
        lane.held_sha256 = None;
        Some(lane)
    }

    /// A directory refused for want of its signer's key may be good under the anchors just applied.
    fn retry_refused_directories(&mut self) {
        for (name, lane) in &mut self.lanes {
            if matches!(name, SectionName::Directory(_)) && lane.nack.is_some() {
                lane.settled = lane.acked;
            }
        }
    }
}

impl Lane {
    fn poll(&mut self, now: Instant) -> Option<Arc<wire::Section>> {
        if self.in_flight.is_some() {
            return None;
        }
        let latest = Arc::clone(self.latest.as_ref()?);
        let version = Version::from(&*latest);
        if self.settled.is_some_and(|settled| version < settled) {
            return None;
        }
        if self.settled == Some(version) && !self.forked(&latest) {
            // Compared once: this is asked again with each message, and a policy may be long.
            self.held_sha256 = None;
            return None;
        }
        self.in_flight = Some((version, now));
        Some(latest)
    }

    /// The same version as the proxy says it has, but other bytes: sent all the same, so that the proxy refuses it
    /// with `conflict` and an operator learns of it.
    fn forked(&self, latest: &wire::Section) -> bool {
        self.held_sha256.as_ref().is_some_and(|held| *held != payload_sha256(&latest.payload))
    }
}

/// Answers are kept per proxy, so their size is ours to bound.
fn truncate(text: &mut String) {
    let mut end = MAX_NACK_BYTES.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}
