//! Prometheus metrics. Label values come from closed sets, so that no peer can grow them.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use signet_policy::Refusal;

use crate::ring::Direction;

/// The content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// One counter for each direction; both exist from the start, so counting takes no lock.
#[derive(Clone, Debug, Default)]
pub struct ByDirection {
    inbound: Counter,
    outbound: Counter,
}

impl ByDirection {
    /// Counts one.
    pub fn inc(&self, direction: Direction) {
        match direction {
            Direction::Inbound => self.inbound.inc(),
            Direction::Outbound => self.outbound.inc(),
        };
    }

    /// How many were counted.
    pub fn get(&self, direction: Direction) -> u64 {
        match direction {
            Direction::Inbound => self.inbound.get(),
            Direction::Outbound => self.outbound.get(),
        }
    }
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct RefusalLabels {
    direction: Direction,
    refusal: Refusal,
}

impl EncodeLabelSet for RefusalLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        [("direction", self.direction.as_str()), ("code", self.refusal.code())].encode(encoder)
    }
}

/// Both are names that stand in the code.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct LocalLabels {
    operation: &'static str,
    code: &'static str,
}

impl EncodeLabelSet for LocalLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        [("operation", self.operation), ("code", self.code)].encode(encoder)
    }
}

/// Every metric of the proxy.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// HTTP requests that were answered by the far application.
    pub requests: ByDirection,
    /// Connections that carried opaque bytes as signed records.
    pub streams: ByDirection,
    /// Connections passed on outside the mesh.
    pub plaintext: ByDirection,
    /// Messages received without a signature, where policy asks for none.
    pub unsigned_messages: ByDirection,
    /// Messages signed.
    pub signatures: Counter,
    /// Signatures made for batches of messages.
    pub signature_batches: Counter,
    /// Messages authenticated with a key of their connection instead.
    pub macs: Counter,
    /// Checkpoints signed over such messages.
    pub checkpoints_signed: Counter,
    /// Checkpoints of peers that fit the messages received.
    pub checkpoints_verified: Counter,
    /// Messages of peers that a checkpoint has covered.
    pub macs_covered: Counter,
    /// Messages whose signature was verified after they were handed on.
    pub deferred_verifications: Counter,
    /// Messages whose signature was verified.
    pub verifications: Counter,
    /// Messages whose batch's root was verified before.
    pub root_cache_hits: Counter,
    /// Messages whose batch's root had to be verified.
    pub root_cache_misses: Counter,
    /// Connections with other sidecars, open now.
    pub mesh_connections: Gauge,
    /// TLS handshakes with other sidecars.
    pub handshakes: ByDirection,
    /// Connections open now.
    pub open_connections: Gauge,
    /// Accept errors, such as a lack of descriptors.
    pub accept_errors: Counter,
    /// Requests sent again on another connection because the first was closed before they left.
    pub retries: Counter,
    /// Requests sent again because a traffic policy says so.
    pub policy_retries: Counter,
    /// Requests that were not sent again because too many were.
    pub retries_over_budget: Counter,
    /// Rests given to endpoints that failed too often.
    pub ejections: Counter,
    /// TLS connections opened for the application to servers outside the mesh.
    pub egress_tls: Counter,
    /// Exchanges that a policy in `mode: observe` would have refused.
    pub observed_refusals: Counter,
    /// 1 while a policy from the control plane is in force.
    pub ready: Gauge,
    /// When the TLS certificate ends, in seconds since 1970.
    pub certificate_expiry: Gauge<f64, AtomicU64>,
    /// Seconds since the control plane last said that nothing is out of date.
    pub policy_age: Gauge<f64, AtomicU64>,
    /// How old policy lets that be.
    pub policy_age_limit: Gauge<f64, AtomicU64>,
    /// 1 while it is older.
    pub policy_stale: Gauge,
    /// How far the machine's clock is ahead of the time gone by, in seconds.
    pub clock_skew: Gauge<f64, AtomicU64>,
    /// 1 while the machine's clock is believed.
    pub clock_believed: Gauge,
    /// Largest difference between a peer's signed times and ours in the last messages, in seconds.
    pub peer_skew: Gauge,
    /// Certificates obtained since start.
    pub rotations: Counter,
    refusals: Family<RefusalLabels, Counter>,
    incidents: Family<RefusalLabels, Counter>,
    local_requests: Family<LocalLabels, Counter>,
    workload_api_requests: Family<LocalLabels, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            requests: ByDirection::default(),
            streams: ByDirection::default(),
            plaintext: ByDirection::default(),
            unsigned_messages: ByDirection::default(),
            signatures: Counter::default(),
            signature_batches: Counter::default(),
            macs: Counter::default(),
            checkpoints_signed: Counter::default(),
            checkpoints_verified: Counter::default(),
            macs_covered: Counter::default(),
            deferred_verifications: Counter::default(),
            verifications: Counter::default(),
            root_cache_hits: Counter::default(),
            root_cache_misses: Counter::default(),
            mesh_connections: Gauge::default(),
            handshakes: ByDirection::default(),
            open_connections: Gauge::default(),
            accept_errors: Counter::default(),
            retries: Counter::default(),
            policy_retries: Counter::default(),
            retries_over_budget: Counter::default(),
            ejections: Counter::default(),
            egress_tls: Counter::default(),
            observed_refusals: Counter::default(),
            ready: Gauge::default(),
            certificate_expiry: Gauge::default(),
            policy_age: Gauge::default(),
            policy_age_limit: Gauge::default(),
            policy_stale: Gauge::default(),
            clock_skew: Gauge::default(),
            clock_believed: Gauge::default(),
            peer_skew: Gauge::default(),
            rotations: Counter::default(),
            refusals: Family::default(),
            incidents: Family::default(),
            local_requests: Family::default(),
            workload_api_requests: Family::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let root = self.registry.sub_registry_with_prefix("signet");
        for (name, help, counters) in [
            ("requests", "HTTP requests answered by the far application", &self.requests),
            ("streams", "Connections of other protocols than HTTP, carried inside the mesh", &self.streams),
            ("plaintext_connections", "Connections passed on outside the mesh", &self.plaintext),
            ("handshakes", "TLS handshakes with other sidecars", &self.handshakes),
            (
                "unsigned_messages",
                "Messages and streams received without a signature, where policy asks for none",
                &self.unsigned_messages,
            ),
        ] {
            for (direction, counter) in [("inbound", &counters.inbound), ("outbound", &counters.outbound)] {
                root.sub_registry_with_label(("direction".into(), direction.into())).register(
                    name,
                    help,
                    counter.clone(),
                );
            }
        }
        root.register("signatures", "Messages signed", self.signatures.clone());
        root.register(
            "signature_batches",
            "Signatures made for batches of messages",
            self.signature_batches.clone(),
        );
        for (name, help, counter) in [
            ("macs", "Messages authenticated with a key of their connection", &self.macs),
            (
                "checkpoints_signed",
                "Checkpoints signed over authenticated messages",
                &self.checkpoints_signed,
            ),
            (
                "checkpoints_verified",
                "Checkpoints of peers that fit the messages received",
                &self.checkpoints_verified,
            ),
            ("macs_covered", "Authenticated messages of peers covered by a checkpoint", &self.macs_covered),
            (
                "deferred_verifications",
                "Messages whose signature was verified after they were handed on",
                &self.deferred_verifications,
            ),
        ] {
            root.register(name, help, counter.clone());
        }
        root.register(
            "incidents",
            "Connections cut because of what an authenticated peer sent, by refusal code",
            self.incidents.clone(),
        );
        root.register("verifications", "Messages whose signature was verified", self.verifications.clone());
        root.register(
            "root_cache_hits",
            "Messages whose batch's root was verified before",
            self.root_cache_hits.clone(),
        );
        root.register(
            "root_cache_misses",
            "Messages whose batch's root had to be verified",
            self.root_cache_misses.clone(),
        );
        root.register(
            "mesh_connections",
            "Connections with other sidecars, open now",
            self.mesh_connections.clone(),
        );
        root.register("accept_errors", "Failed accepts", self.accept_errors.clone());
        root.register(
            "retries",
            "Requests sent again because their connection had closed before they left",
            self.retries.clone(),
        );
        for (name, help, counter) in [
            ("policy_retries", "Requests sent again because a traffic policy says so", &self.policy_retries),
            (
                "retries_over_budget",
                "Requests not sent again because the retry budget was used up",
                &self.retries_over_budget,
            ),
            (
                "egress_tls_connections",
                "TLS connections opened for the application to servers outside the mesh",
                &self.egress_tls,
            ),
            ("ejections", "Rests given to endpoints that failed too often", &self.ejections),
        ] {
            root.register(name, help, counter.clone());
        }
        root.register(
            "observed_refusals",
            "Exchanges that a policy in observe mode would have refused",
            self.observed_refusals.clone(),
        );
        root.register("rotations", "Certificates obtained since start", self.rotations.clone());
        root.register("refusals", "Refused exchanges by refusal code", self.refusals.clone());
        root.register(
            "local_requests",
            "Requests of the application to sign, verify, seal or open a message, by outcome",
            self.local_requests.clone(),
        );
        root.register(
            "workload_api_requests",
            "Requests of the application to the Workload API, by outcome",
            self.workload_api_requests.clone(),
        );
        root.register("open_connections", "Connections open now", self.open_connections.clone());
        root.register("ready", "1 while a policy from the control plane is in force", self.ready.clone());
        self.register_time();
    }

    /// What is known of the time.
    fn register_time(&mut self) {
        let root = self.registry.sub_registry_with_prefix("signet");
        root.register(
            "policy_age_seconds",
            "Seconds since the control plane last said that nothing is out of date; NaN before it did",
            self.policy_age.clone(),
        );
        root.register(
            "policy_age_limit_seconds",
            "How old policy lets that be for this workload's class; 0 without a bound",
            self.policy_age_limit.clone(),
        );
        root.register("policy_stale", "1 while the policy is older than that", self.policy_stale.clone());
        root.register(
            "clock_skew_seconds",
            "How far the machine's clock is ahead of the time that the sidecar goes by",
            self.clock_skew.clone(),
        );
        root.register(
            "clock_believed",
            "1 while the machine's clock is believed",
            self.clock_believed.clone(),
        );
        root.register(
            "peer_clock_skew_seconds",
            "How far the signed time of the last message that was looked at is ahead of the time that the sidecar goes by",
            self.peer_skew.clone(),
        );
        root.register(
            "certificate_expiry_timestamp_seconds",
            "End of the TLS certificate, in seconds since 1970",
            self.certificate_expiry.clone(),
        );
    }

    /// Counts a refusal.
    pub fn refuse(&self, direction: Direction, refusal: Refusal) {
        self.refusals.get_or_create(&RefusalLabels { direction, refusal }).inc();
    }

    /// Counts a connection that was cut because of what its peer sent; the refusal is counted by itself.
    pub fn incident(&self, direction: Direction, refusal: Refusal) {
        self.incidents.get_or_create(&RefusalLabels { direction, refusal }).inc();
    }

    /// Counts a request of the application, with the code it was refused for, or `ok`.
    pub(crate) fn local_request(&self, operation: &'static str, code: &'static str) {
        self.local_requests.get_or_create(&LocalLabels { operation, code }).inc();
    }

    /// Counts a request to the Workload API, or a stream that began.
    pub(crate) fn workload_api_request(&self, operation: &'static str, code: &'static str) {
        self.workload_api_requests.get_or_create(&LocalLabels { operation, code }).inc();
    }

    /// Refusals since start by code, both directions together; codes that never happened are left out.
    pub fn refused(&self) -> Vec<(&'static str, u64)> {
        let count = |refusal: Refusal| -> u64 {
            [Direction::Inbound, Direction::Outbound]
                .into_iter()
                .filter_map(|direction| {
                    self.refusals.get(&RefusalLabels { direction, refusal }).map(|c| c.get())
                })
                .sum()
        };
        Refusal::ALL.iter().map(|&refusal| (refusal.code(), count(refusal))).filter(|(_, n)| *n > 0).collect()
    }

    /// The whole exposition in OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_own_line() {
        let metrics = Metrics::default();
        metrics.refuse(Direction::Inbound, Refusal::Replay);
        metrics.refuse(Direction::Outbound, Refusal::Replay);
        metrics.requests.inc(Direction::Inbound);
        let text = metrics.encode();
        assert!(text.contains("signet_refusals_total{direction=\"inbound\",code=\"replay\"} 1"), "{text}");
        assert!(text.contains("signet_requests_total{direction=\"inbound\"} 1"), "{text}");
        assert_eq!(metrics.refused(), [("replay", 2)]);
    }
}
