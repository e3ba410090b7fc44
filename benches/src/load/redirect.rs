//! Puts a peer behind the redirection that a sidecar is behind, so that both pay for it.
//!
//! The sidecar tells its own connections by a mark. Peers cannot set one, so theirs are told by where they go: the
//! client-side proxy dials ports that nobody else dials, and a rule on the server's host brings those to the
//! server-side proxy. Chains, hooks, priorities and the connection tracking behind them are the same, and each
//! connection is translated as often as with a sidecar.

use signet_cli::lab::{LabError, Namespace};
use signet_proxy::capture::expression::{
    Verdict, came_by, destination_port, leaves_by, redirect_to, tcp_opening,
};
use signet_proxy::capture::nftables::{self, Chain, DESTINATION_PRIORITY, Hook, Kind, Ruleset};

use super::service::Service;
use super::stage::Stage;

const TABLE: &str = "load";
const LOOPBACK: &str = "lo";

/// Puts the rules in force on both hosts.
///
/// # Errors
/// [`LabError::Netlink`].
pub fn install(stage: &Stage) -> Result<(), LabError> {
    for host in [&stage.client.namespace, &stage.server.namespace] {
        apply(host)?;
    }
    Ok(())
}

fn apply(host: &Namespace) -> Result<(), LabError> {
    let namespace = host.name().to_owned();
    host.run(|| nftables::apply(&table()))?.map_err(|source| LabError::Netlink { namespace, source })
}

fn table() -> Ruleset {
    let mut output = Chain::new("output", Kind::Nat, Hook::Output, DESTINATION_PRIORITY);
    let mut prerouting = Chain::new("prerouting", Kind::Nat, Hook::Prerouting, DESTINATION_PRIORITY);
    output.decide("loopback", leaves_by(LOOPBACK), Verdict::Return);
    prerouting.decide("loopback", came_by(LOOPBACK), Verdict::Return);
    for service in Service::ALL {
        let to = |port| [tcp_opening(), destination_port(port)].concat();
        output.act("outbound", to(service.port()), redirect_to(service.entry().port()));
        prerouting.act("inbound", to(service.redirected().port()), redirect_to(service.secured().port()));
    }
    Ruleset { chains: vec![output, prerouting], ..Ruleset::new(TABLE) }
}
