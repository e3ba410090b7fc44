//! The `Mesh` manifest: trust domain, defaults, networks, egress.

use signet_identity::TrustDomain;

use crate::compile::{Scope, intermediary, value};
use crate::diagnostic::{Place, quoted};
use crate::manifest::{EgressSpec, LifetimeSpec, MeshSpec, NetworkSpec, OfflineBoundSpec};
use crate::model::{EgressRule, Network, PolicyModel, Transport};
use crate::offline::{Offline, OfflineBound, WhenStale};

/// A clock may be off by a second to an hour; more would make expiry meaningless.
const CLOCK_SKEW_S: (u64, u64) = (1, 3_600);

/// Certificates live from a second (demonstrations rotate that fast) to 90 days.
const LIFETIME_S: (u64, u64) = (1, 90 * 86_400);

/// A certificate that has ended gets its holder a new one for 90 days at most; 0 for never.
const REJOIN_S: (u64, u64) = (0, MAX_REJOIN_S);

/// The longest time after its end that a certificate may get its holder a new one, in seconds: a season of a boat in dock.
pub const MAX_REJOIN_S: u64 = 90 * 86_400;

/// The control plane says every ten seconds that nothing is out of date, and may miss some; a year is what no certificate
/// outlasts.
const OFFLINE_S: (u64, u64) = (30, 365 * 86_400);

pub(crate) const WHEN_STALE: &[(&str, WhenStale)] =
    &[("life-safety", WhenStale::LifeSafety), ("refuse", WhenStale::Refuse)];

pub(crate) const TRANSPORTS: &[(&str, Transport)] = &[("tcp", Transport::Tcp), ("udp", Transport::Udp)];

/// Most pairs of address range and port that UDP may go to: what a sidecar has room for in the kernel's rules. A range
/// for all ports counts once.
pub(super) const MAX_UDP_EGRESS: usize = 96;

/// The model with everything but workloads and policies; `None` when not even the trust domain is known.
pub(super) fn lower(scope: &mut Scope<'_>, spec: &MeshSpec) -> Option<PolicyModel> {
    let name = scope.manifest.spanned_name().clone();
    value::name(scope, &name, "Mesh");
    let trust_domain = match TrustDomain::parse(&spec.trust_domain.value) {
        Ok(trust_domain) => trust_domain,
        Err(error) => {
            let message = format!("{} is no trust domain: {error}", quoted(&spec.trust_domain.value));
            let fix = "use lower-case letters, digits, `.`, `-` and `_`, such as `mf2c.example`";
            scope.refuse(Place::of(&spec.trust_domain), message, fix);
            return None;
        }
    };
    let mut model = PolicyModel::empty(trust_domain);
    if let Some(mode) = spec.mtls.as_ref().and_then(|mtls| value::mtls_mode(scope, mtls)) {
        model.mtls = mode;
    }
    if let Some(protection) = &spec.protection {
        model.protection = value::protection(scope, protection, model.protection);
        if let Some(names) = value::sealed_headers(scope, protection) {
            model.sealed_headers = names;
        }
    }
    if let Some(skew) = &spec.clock_skew {
        model.clock_skew_s =
            value::duration(scope, skew, CLOCK_SKEW_S.0, CLOCK_SKEW_S.1).unwrap_or(model.clock_skew_s);
    }
    for entry in value::entries(scope, spec.networks.as_ref(), "networks", "when there are none") {
        if let Some(network) = network(scope, &entry.value) {
            if model.network(&network.name).is_some() {
                let message = format!("network {} is declared twice", quoted(&network.name));
                scope.refuse(Place::of(&entry.value.name), message, "rename or remove one of the two");
            } else {
                model.networks.push(network);
            }
        }
    }
    let mut udp_refused = false;
    for entry in value::entries(scope, spec.egress.as_ref(), "egress", "to permit none") {
        model.egress.extend(egress(scope, &entry.value));
        let pairs = udp_pairs(&model.egress);
        if pairs > MAX_UDP_EGRESS && !udp_refused {
            udp_refused = true;
            let message = format!(
                "with this entry UDP may go to {pairs} pairs of range and port, and a sidecar takes {MAX_UDP_EGRESS}"
            );
            scope.refuse(Place::of(&entry.value.cidr), message, "use broader ranges, or leave `ports` out");
        }
    }
    let given = spec.intermediaries.as_ref();
    for entry in value::entries(scope, given, "intermediaries", "when there are none") {
        model.intermediaries.extend(intermediary::lower(scope, entry, &model.intermediaries));
    }
    let certificates = &spec.certificates;
    let (lifetimes, rejoin) = (&mut model.lifetimes, &mut model.rejoin);
    for (given, lifetime, rejoin) in [
        (&certificates.agent, &mut lifetimes.agent, &mut rejoin.agent),
        (&certificates.app, &mut lifetimes.app, &mut rejoin.app),
        (&certificates.external, &mut lifetimes.external, &mut rejoin.external),
        (&certificates.platform, &mut lifetimes.platform, &mut rejoin.platform),
    ] {
        let Some(LifetimeSpec { lifetime: lasts, rejoin: after }) = given else { continue };
        let read = |scope: &mut Scope<'_>, text: &Option<_>, (least, most)| {
            text.as_ref().and_then(|text| value::duration(scope, text, least, most))
        };
        *lifetime = read(scope, lasts, LIFETIME_S).unwrap_or(*lifetime);
        *rejoin = read(scope, after, REJOIN_S);
    }
    if let Some(spec) = &spec.offline {
        model.offline = Offline {
            agent: offline_bound(scope, spec.agent.as_ref()),
            app: offline_bound(scope, spec.app.as_ref()),
            external: offline_bound(scope, spec.external.as_ref()),
            platform: offline_bound(scope, spec.platform.as_ref()),
        };
    }
    Some(model)
}

fn offline_bound(scope: &mut Scope<'_>, spec: Option<&OfflineBoundSpec>) -> Option<OfflineBound> {
    let OfflineBoundSpec { budget, then } = spec?;
    let budget_s = value::duration(scope, budget, OFFLINE_S.0, OFFLINE_S.1);
    let then = match then {
        Some(word) => value::word(scope, word, "answer to a stale policy", WHEN_STALE),
        None => Some(WhenStale::Refuse),
    };
    Some(OfflineBound { budget_s: budget_s?, then: then? })
}

fn network(scope: &mut Scope<'_>, spec: &NetworkSpec) -> Option<Network> {
    let cidrs = value::entries(scope, spec.cidrs.as_ref(), "cidrs", "when any address can be in the network");
    let cidrs = cidrs.iter().filter_map(|text| value::cidr(scope, text)).collect();
    let gateways = value::entries(scope, spec.gateways.as_ref(), "gateways", "when there are none");
    let gateways = gateways.iter().filter_map(|text| value::address(scope, text)).collect();
    Some(Network { name: value::name(scope, &spec.name, "network")?, cidrs, gateways })
}

pub(super) fn udp_pairs(egress: &[EgressRule]) -> usize {
    egress.iter().filter(|rule| rule.protocol == Transport::Udp).map(|rule| rule.ports.len().max(1)).sum()
}

fn egress(scope: &mut Scope<'_>, spec: &EgressSpec) -> Option<EgressRule> {
    // Here an empty list is the documented way to say «all».
    let ports = match &spec.ports {
        Some(list) => {
            let entries = value::within_bounds(scope, &list.0, "ports");
            value::ports(scope, entries)
        }
        None => Vec::new(),
    };
    let protocol = value::word(scope, &spec.protocol, "transport protocol", TRANSPORTS);
    let comment = spec.comment.as_ref().map(|comment| comment.value.clone());
    Some(EgressRule { cidr: value::cidr(scope, &spec.cidr)?, ports, protocol: protocol?, comment })
}
