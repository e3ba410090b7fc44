//! The directory's rules, without I/O: which claims are believed, and what the directory of each network says.
//!
//! A claim is believed when
//! 1. its network is the one the instance enrolled for, and the operator knows that network;
//! 2. the address lies in it, and in the workload's `addresses` when it lists any;
//! 3. it is not the address of a gateway, behind which many are;
//! 4. the claimant was seen there: its stream comes from that address or from a gateway of the network, or the
//!    operator listed the address for this workload, or an attestor vouches for it: see [`crate::vouched`];
//! 5. the workload declares the port, unless it declares none at all;
//! 6. the operator does not advertise that place for another workload, and nobody else holds a live claim on it that is
//!    as well founded: see [`crate::claims`].
//!
//! Names are never claimed: they come from the manifests alone.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use signet_identity::SpiffeId;
use signet_policy::{Network, PolicyModel, Protocol, SpeaksFirst, WorkloadModel};
use signet_sync::{Entry, MAX_ENTRIES, MAX_SEALING_KEYS};
use thiserror::Error;

use crate::records::{Claim, SealingKey};

/// Who is claiming, and where it was seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claimant<'a> {
    pub(crate) id: &'a SpiffeId,
    /// The network recorded at enrolment.
    pub(crate) network: &'a str,
    /// Where its stream comes from.
    pub(crate) source: IpAddr,
}

/// Why a claim is not believed.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub(crate) enum ClaimRefusal {
    #[error("the operator did not list the address for this workload")]
    AddressNotListed,
    #[error("the address is not in the network the proxy enrolled for")]
    AddressOutsideNetwork,
    #[error("another workload holds the address and port")]
    AddressTaken,
    #[error("the operator advertises the address and port for another workload")]
    AdvertisedByAnother,
    #[error("the address is a gateway's, which stands for many")]
    GatewayAddress,
    #[error("the workload does not declare the port")]
    PortNotDeclared,
    #[error("the stream comes neither from the address nor from a gateway of its network")]
    SourceMismatch,
    #[error("more addresses and ports are claimed than one proxy may hold")]
    TooMany,
    #[error("the network the proxy enrolled for is not in the mesh")]
    UnknownNetwork,
    #[error("no workload has this identity")]
    UnknownWorkload,
}

impl ClaimRefusal {
    /// A stable name for the proxy, logs and metrics.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::AddressNotListed => "address-not-listed",
            Self::AddressOutsideNetwork => "address-outside-network",
            Self::AddressTaken => "address-taken",
            Self::AdvertisedByAnother => "advertised-by-another",
            Self::GatewayAddress => "gateway-address",
            Self::PortNotDeclared => "port-not-declared",
            Self::SourceMismatch => "source-mismatch",
            Self::TooMany => "too-many-claims",
            Self::UnknownNetwork => "unknown-network",
            Self::UnknownWorkload => "unknown-workload",
        }
    }
}

/// Judges one claim by rules 1 to 6, save what others hold: that is the store's to say. `owner` is whose the address is
/// by an attestor's word.
pub(crate) fn judge(
    model: &PolicyModel,
    claimant: Claimant<'_>,
    owner: Option<&SpiffeId>,
    address: IpAddr,
    port: u16,
) -> Result<(), ClaimRefusal> {
    let address = address.to_canonical();
    let source = claimant.source.to_canonical();
    let workload = model.workload(claimant.id).ok_or(ClaimRefusal::UnknownWorkload)?;
    let network = model.network(claimant.network).ok_or(ClaimRefusal::UnknownNetwork)?;
    if !network.contains(address) {
        return Err(ClaimRefusal::AddressOutsideNetwork);
    }
    if is_gateway(network, address) {
        return Err(ClaimRefusal::GatewayAddress);
    }
    let listed = workload.addresses.contains(&address);
    if !workload.addresses.is_empty() && !listed {
        return Err(ClaimRefusal::AddressNotListed);
    }
    if owner.is_some_and(|owner| owner != claimant.id) {
        return Err(ClaimRefusal::AddressTaken);
    }
    if !listed && owner.is_none() && source != address && !is_gateway(network, source) {
        return Err(ClaimRefusal::SourceMismatch);
    }
    if !declares(workload, port) {
        return Err(ClaimRefusal::PortNotDeclared);
    }
    match model.advertised(claimant.network, address, port) {
        Some((owner, _)) if owner.id != *claimant.id => Err(ClaimRefusal::AdvertisedByAnother),
        _ => Ok(()),
    }
}

/// Whether nothing but a gateway's word is behind a claim that [`judge`] accepted: its stream did not come from the
/// address, and the operator did not list it.
pub(crate) fn is_by_gateway(model: &PolicyModel, claimant: Claimant<'_>, address: IpAddr) -> bool {
    let address = address.to_canonical();
    let listed = model.workload(claimant.id).is_some_and(|workload| workload.addresses.contains(&address));
    !listed && claimant.source.to_canonical() != address
}

fn is_gateway(network: &Network, address: IpAddr) -> bool {
    network.gateways.iter().any(|gateway| gateway.to_canonical() == address)
}

/// Whether a stored claim still holds under the model, which may have changed since it was accepted.
pub(crate) fn stands(model: &PolicyModel, claim: &Claim) -> bool {
    let (workload, network) = (model.workload(&claim.id), model.network(&claim.network));
    workload.zip(network).is_some_and(|(workload, network)| stands_for(workload, network, claim))
}

fn stands_for(workload: &WorkloadModel, network: &Network, claim: &Claim) -> bool {
    network.contains(claim.address)
        && !is_gateway(network, claim.address)
        && (workload.addresses.is_empty() || workload.addresses.contains(&claim.address))
        && declares(workload, claim.port)
}

fn declares(workload: &WorkloadModel, port: u16) -> bool {
    workload.ports.is_empty() || workload.port(port).is_some()
}

/// Who speaks first on a port and what, as a proxy observed it on its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Habit {
    pub(crate) protocol: Option<Protocol>,
    pub(crate) speaks_first: Option<SpeaksFirst>,
    /// Unix seconds.
    pub(crate) expires: u64,
}

/// Observed habits by workload and container port.
pub(crate) type Habits = BTreeMap<(SpiffeId, u16), Habit>;

/// The entries of every network of the mesh, empty ones included, sorted by address and port.
///
/// What the operator advertises comes first, then the claims whose holder is here, then those of holders that are away:
/// none displaces one before it, and what is beyond the most entries a proxy takes is left out.
pub(crate) fn build(
    model: &PolicyModel,
    claims: &[Claim],
    keys: &[SealingKey],
    habits: &Habits,
    now: u64,
) -> BTreeMap<String, Vec<Entry>> {
    let sealing_keys = sealing_keys(keys, now);
    let mut networks: BTreeMap<String, BTreeMap<(IpAddr, u16), Entry>> =
        model.networks.iter().map(|network| (network.name.clone(), BTreeMap::new())).collect();
    for workload in &model.workloads {
        for place in &workload.advertise {
            let address = place.address.to_canonical();
            let mut entry = entry(workload, address, place.port, place.target_port, habits, now);
            entry.sealing_keys.clone_from(of(&sealing_keys, workload));
            networks.entry(place.network.clone()).or_default().entry((address, place.port)).or_insert(entry);
        }
    }
    // Found once for all: the model looks from one to the next, and there are as many claims as proxies.
    let workloads: HashMap<_, _> = model.workloads.iter().map(|workload| (&workload.id, workload)).collect();
    let known: HashMap<_, _> = model.networks.iter().map(|network| (&*network.name, network)).collect();
    let standing = claims.iter().filter_map(|claim| {
        let (workload, network) = (*workloads.get(&claim.id)?, known.get(&*claim.network)?);
        stands_for(workload, network, claim).then_some((claim, workload))
    });
    let (here, away): (Vec<_>, Vec<_>) = standing.partition(|(claim, _)| claim.expires.is_none());
    for (claim, workload) in here.into_iter().chain(away) {
        let mut entry = entry(workload, claim.address, claim.port, claim.port, habits, now);
        entry.sealing_keys.clone_from(of(&sealing_keys, workload));
        if let Some(network) = networks.get_mut(&claim.network)
            && network.len() < MAX_ENTRIES
        {
            network.entry((claim.address, claim.port)).or_insert(entry);
        }
    }
    networks.into_iter().map(|(name, entries)| (name, entries.into_values().collect())).collect()
}

/// What is sealed for a workload is sealed for all its instances: behind a published address nobody knows which one
/// answers. The keys that last longest come first, and no more of them than one message can be sealed for.
fn sealing_keys(keys: &[SealingKey], now: u64) -> BTreeMap<&SpiffeId, Vec<[u8; 32]>> {
    let mut newest: Vec<&SealingKey> = keys.iter().filter(|key| key.expires > now).collect();
    newest.sort_by_key(|key| (Reverse(key.expires), key.key));
    let mut of: BTreeMap<&SpiffeId, Vec<[u8; 32]>> = BTreeMap::new();
    for SealingKey { id, key, .. } in newest {
        let keys = of.entry(id).or_default();
        if keys.len() < MAX_SEALING_KEYS && !keys.contains(key) {
            keys.push(*key);
        }
    }
    of
}

fn of<'a>(keys: &'a BTreeMap<&SpiffeId, Vec<[u8; 32]>>, workload: &WorkloadModel) -> &'a Vec<[u8; 32]> {
    static NONE: Vec<[u8; 32]> = Vec::new();
    keys.get(&workload.id).unwrap_or(&NONE)
}

fn entry(
    workload: &WorkloadModel,
    address: IpAddr,
    port: u16,
    target_port: u16,
    habits: &Habits,
    now: u64,
) -> Entry {
    let declared = workload.port(target_port);
    let observed = habits.get(&(workload.id.clone(), target_port)).filter(|habit| habit.expires > now);
    let declared_protocol = declared.map_or(Protocol::Auto, |port| port.protocol);
    let declared_first = declared.and_then(|port| port.speaks_first);
    let protocol = match declared_protocol {
        Protocol::Auto => observed.and_then(|habit| habit.protocol).unwrap_or(Protocol::Auto),
        declared => declared,
    };
    let speaks_first = declared_first.or_else(|| observed.and_then(|habit| habit.speaks_first));
    let is_observed = protocol != declared_protocol || speaks_first != declared_first;
    Entry {
        address,
        port,
        target_port,
        identities: vec![workload.id.clone()],
        workload: workload.name.clone(),
        names: workload.names.clone(),
        protocol,
        speaks_first,
        habit_expires: observed.filter(|_| is_observed).map(|habit| habit.expires),
        sealing_keys: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
