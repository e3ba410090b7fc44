//! Packet captures on an engine's bridges.

use signet_cli::lab::tap::{Flow, Opening, Tap, TapReport};

use crate::engine::Engine;

/// Nowhere but in the clients' requests.
pub(crate) const CANARY: &str = "canary-5f1c2a7e90";

/// Watches every bridge of a project.
pub(crate) struct Taps(Vec<Tap>);

impl Taps {
    pub(crate) fn start(engine: &Engine, networks: &[&str]) -> Self {
        let start = |network: &&str| {
            let id = engine.docker(&["network", "inspect", "-f", "{{.Id}}", network]);
            let bridge = format!("br-{}", &id[..12]);
            // A bridge shows its machine what is between two of its ports only when it is asked to.
            let ask = format!("ip link set dev {bridge} promisc on");
            let asked = engine.within(&["sh", "-c", &ask]);
            assert!(asked.success(), "{ask}");
            Tap::start(engine.namespace(), &bridge, &[CANARY.as_bytes()], None).expect("a tap")
        };
        Self(networks.iter().map(start).collect())
    }

    fn reports(&self) -> Vec<TapReport> {
        self.0.iter().map(|tap| tap.report().expect("the tap watches")).collect()
    }

    pub(crate) fn saw_nothing_in_clear(&self) {
        let reports = self.reports();
        assert!(reports.iter().any(|report| report.offers("mesh-h1/1") || report.offers("mesh-h2/1")));
        for report in reports {
            assert_eq!(report.lost, 0);
            assert_eq!(report.sightings, []);
            // Of connections that are older than the tap, nothing can be told.
            let clear = |flow: &&&Flow| matches!(flow.opening, Opening::Other(_));
            let in_clear = report.in_clear();
            assert_eq!(in_clear.iter().filter(clear).collect::<Vec<_>>(), Vec::<&&Flow>::new());
        }
    }

    /// The taps would have seen it.
    pub(crate) fn see_what_is_in_clear(&self) {
        assert!(self.reports().iter().any(|report| !report.sightings.is_empty()));
    }
}
