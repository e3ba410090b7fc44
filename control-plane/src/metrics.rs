//! What the control plane counts. Labels come from our own enumerations, never from a peer.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::publish::Published;

/// The outcome of an operation: `ok` or a refusal's code.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) outcome: &'static str,
}

/// Which section; networks in it are the operator's.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(crate) struct Section {
    section: String,
}

/// All metrics. Names end in their unit; `_total` is added to counters.
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) acknowledgements: Counter,
    pub(crate) admissions: Family<Outcome, Counter>,
    pub(crate) claims: Family<Outcome, Counter>,
    pub(crate) connections: Family<Outcome, Counter>,
    pub(crate) enrolments: Family<Outcome, Counter>,
    pub(crate) refused_sections: Counter,
    pub(crate) foreign_sections: Counter,
    pub(crate) appointments: Family<Outcome, Counter>,
    pub(crate) app_svids: Family<Outcome, Counter>,
    pub(crate) renewals: Family<Outcome, Counter>,
    pub(crate) rounds_failed: Counter,
    pub(crate) streams: Gauge,
    pub(crate) tampering: Family<Outcome, Counter>,
    section_versions: Family<Section, Gauge<u64, AtomicU64>>,
    store_revision: Gauge<u64, AtomicU64>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("signet_control"),
            acknowledgements: Counter::default(),
            admissions: Family::default(),
            claims: Family::default(),
            connections: Family::default(),
            enrolments: Family::default(),
            refused_sections: Counter::default(),
            foreign_sections: Counter::default(),
            appointments: Family::default(),
            app_svids: Family::default(),
            renewals: Family::default(),
            rounds_failed: Counter::default(),
            streams: Gauge::default(),
            tampering: Family::default(),
            section_versions: Family::default(),
            store_revision: Gauge::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "acknowledged_sections",
            "Sections that proxies applied",
            self.acknowledgements.clone(),
        );
        registry.register("admissions", "Admission reviews, by outcome", self.admissions.clone());
        registry.register("claims", "Claims on directory places, by outcome", self.claims.clone());
        registry.register(
            "connections",
            "Connections to the control port, by outcome of the handshake",
            self.connections.clone(),
        );
        registry.register("enrolments", "Enrolments, by outcome", self.enrolments.clone());
        registry.register("refused_sections", "Sections that proxies refused", self.refused_sections.clone());
        registry.register(
            "foreign_sections",
            "Sections that proxies hold in versions which this control plane has not made",
            self.foreign_sections.clone(),
        );
        registry.register(
            "appointments",
            "Roles that workloads gave each other, by outcome",
            self.appointments.clone(),
        );
        registry.register(
            "app_svids",
            "Certificates and tokens for applications, by outcome",
            self.app_svids.clone(),
        );
        registry.register("renewals", "Renewals, by outcome", self.renewals.clone());
        registry.register(
            "failed_rounds",
            "Times the state could not be published; the last good one stayed in force",
            self.rounds_failed.clone(),
        );
        registry.register("streams", "Open control streams", self.streams.clone());
        registry.register(
            "tampering_reports",
            "Reports of proxies whose device was tampered with, by outcome",
            self.tampering.clone(),
        );
        registry.register(
            "section_version",
            "Counter of each section's newest version",
            self.section_versions.clone(),
        );
        registry.register(
            "store_revision",
            "Revision of the store that is published",
            self.store_revision.clone(),
        );
    }

    /// Takes over the versions of a round.
    pub(crate) fn published(&self, published: &Published) {
        self.store_revision.set(published.revision.0);
        for (name, section) in &published.sections {
            self.section_versions.get_or_create(&Section { section: name.to_string() }).set(section.counter);
        }
    }

    /// The metrics in the OpenMetrics text format.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry) {
            tracing::error!(%error, "metrics cannot be written");
        }
        text
    }
}

/// Counts one outcome of a family.
pub(crate) fn count(family: &Family<Outcome, Counter>, outcome: &'static str) {
    family.get_or_create(&Outcome { outcome }).inc();
}
