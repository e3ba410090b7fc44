//! Trust domains that are served by one process, and what they let each other see.
//!
//! Each has its own authority, store, sockets and sections. What passes between two of them is an [`Offer`], made by the
//! one and taken up by the other where both have a Federation: nothing else of a domain is within reach of another.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use signet_identity::{SpiffeId, TrustBundle, TrustDomain};
use signet_policy::{Federated, Network, PolicyModel, federate};
use signet_sync::{Entry, MAX_ENTRIES, MAX_NAME_BYTES, Revocations};
use tokio::sync::watch;

/// Most revocations taken over from one trust domain: what it revokes must not fill the list of another.
const REVOCATIONS_MAX: usize = 10_000;

/// Most of all together: 1.6 MB of the 4 MiB that a section may have, so that what the domain revokes itself has its place.
const REVOCATIONS_MAX_OF_ALL: usize = 20_000;

/// Most bytes of others' entries in one directory, so that its own have their place.
const PLACES_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of an entry's numbers and lengths.
const ENTRY_BYTES: usize = 64;

/// What a trust domain shows those that it is federated with. Made of its own state alone, so that two that look at each
/// other do not go round in a circle.
#[derive(Debug, PartialEq)]
pub(crate) struct Offer {
    /// Its policy, of which [`federate`] takes what both sides allow.
    pub(crate) model: Arc<PolicyModel>,
    /// Its roots in force.
    pub(crate) bundle: TrustBundle,
    /// The same and what was retired in good order.
    pub(crate) open: TrustBundle,
    /// Where its workloads are, by network.
    pub(crate) directories: BTreeMap<String, Vec<Entry>>,
    /// What it no longer believes.
    pub(crate) revocations: Arc<Revocations>,
}

type Offers = BTreeMap<TrustDomain, Arc<Offer>>;

/// One trust domain's view of those that are served beside it.
#[derive(Clone, Debug)]
pub(crate) struct Neighbours {
    own: TrustDomain,
    served: Arc<BTreeSet<TrustDomain>>,
    offers: watch::Sender<Offers>,
}

impl Neighbours {
    /// A view for each of the trust domains that one process serves, in their order.
    pub(crate) fn of(domains: &[TrustDomain]) -> Vec<Self> {
        let served: Arc<BTreeSet<TrustDomain>> = Arc::new(domains.iter().cloned().collect());
        let offers = watch::Sender::new(Offers::new());
        let view =
            |own: &TrustDomain| Self { own: own.clone(), served: served.clone(), offers: offers.clone() };
        domains.iter().map(view).collect()
    }

    /// The view of a trust domain that is alone.
    #[cfg(test)]
    pub(crate) fn none(own: TrustDomain) -> Self {
        Self { served: Arc::default(), offers: watch::Sender::new(Offers::new()), own }
    }

    /// Replaces what this trust domain shows; one that has no Federation shows nothing.
    pub(crate) fn show(&self, offer: Offer) {
        let offer = (!offer.model.federations.is_empty()).then(|| Arc::new(offer));
        self.offers.send_if_modified(|offers| match offer {
            Some(offer) if offers.get(&self.own) == Some(&offer) => false,
            Some(offer) => {
                offers.insert(self.own.clone(), offer);
                true
            }
            None => offers.remove(&self.own).is_some(),
        });
    }

    /// What the others show now.
    pub(crate) fn offers(&self) -> Vec<Arc<Offer>> {
        let offers = self.offers.borrow();
        offers.iter().filter(|(domain, _)| **domain != self.own).map(|(_, offer)| offer.clone()).collect()
    }

    /// Waits until the others show something else than that.
    pub(crate) async fn differ_from(&self, known: &[Arc<Offer>]) {
        let mut changes = self.offers.subscribe();
        while same(&self.offers(), known) {
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Trust domains that this one has a Federation with and that are not served here: nothing comes of those.
    pub(crate) fn absent<'a>(&'a self, model: &'a PolicyModel) -> impl Iterator<Item = &'a TrustDomain> {
        let named = model.federations.iter().map(|federation| &federation.trust_domain);
        named.filter(|domain| !self.served.contains(*domain))
    }
}

fn same(one: &[Arc<Offer>], other: &[Arc<Offer>]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| Arc::ptr_eq(one, other))
}

/// A trust domain with which something may pass in one direction at least.
#[derive(Debug)]
pub(crate) struct Joined {
    offer: Arc<Offer>,
    federated: Federated,
}

/// Puts into a policy what the domain and the others allow each other. What cannot be taken up is left out whole, and said.
pub(crate) fn join(model: &mut PolicyModel, own: &Revocations, offers: &[Arc<Offer>]) -> Vec<Joined> {
    let mut joined = Vec::new();
    let mut room = MAX_ENTRIES.saturating_sub(own.len()).min(REVOCATIONS_MAX_OF_ALL);
    for offer in offers {
        let with = &offer.model.trust_domain;
        let revoked = offer.revocations.len();
        if revoked > REVOCATIONS_MAX.min(room) {
            tracing::error!(trust_domain = %with, revoked, "not federated: it has revoked more than can be taken over");
            continue;
        }
        match federate(model, &offer.model) {
            Ok(federated) if federated.is_empty() => {}
            Ok(federated) => {
                room -= revoked;
                joined.push(Joined { offer: offer.clone(), federated });
            }
            Err(error) => tracing::error!(trust_domain = %with, %error, "not federated"),
        }
    }
    joined
}

/// The roots of those that are federated: in force, and those that what is open goes on under.
pub(crate) fn bundles(joined: &[Joined]) -> (Vec<TrustBundle>, Vec<TrustBundle>) {
    joined.iter().map(|Joined { offer, .. }| (offer.bundle.clone(), offer.open.clone())).unzip()
}

/// What is revoked, with what those that are federated revoked.
pub(crate) fn revocations(own: &Revocations, joined: &[Joined]) -> Revocations {
    let mut all = own.clone();
    for Joined { offer, federated } in joined {
        let named = |id: &SpiffeId| federated.callers.contains(id) || federated.callees.contains(id);
        all.federate(offer.model.trust_domain.clone(), &offer.revocations, named);
    }
    all
}

/// Adds to the directories where those may be called that may be: in networks that both domains know by the same name, at
/// addresses that this one counts to them, and never in place of an entry of its own, nor at an address that its manifests
/// have another use for.
pub(crate) fn add_places(
    directories: &mut BTreeMap<String, Vec<Entry>>,
    model: &PolicyModel,
    joined: &[Joined],
) {
    let used = used(model);
    for (name, entries) in directories {
        let Some(network) = model.network(name) else { continue };
        let mut room = PLACES_BYTES_MAX;
        let mut taken: BTreeSet<(IpAddr, u16)> =
            entries.iter().map(|entry| (entry.address, entry.port)).collect();
        for Joined { offer, federated } in joined {
            let theirs = offer.directories.get(name).into_iter().flatten();
            let callable = |entry: &&Entry| {
                entry.identities.iter().all(|id| federated.callees.contains(id))
                    && holds(network, entry.address)
                    && !used.contains(&entry.address.to_canonical())
            };
            for entry in theirs.filter(callable) {
                let workload = format!("{}/{}", offer.model.trust_domain, entry.workload);
                let bytes = ENTRY_BYTES
                    + workload.len()
                    + entry.identities.iter().map(|id| id.as_str().len() + 4).sum::<usize>()
                    + entry.sealing_keys.len() * 34;
                let fits = entries.len() < MAX_ENTRIES && bytes <= room && workload.len() <= MAX_NAME_BYTES;
                if fits && taken.insert((entry.address, entry.port)) {
                    room -= bytes;
                    entries.push(Entry { workload, names: Vec::new(), ..entry.clone() });
                }
            }
        }
        entries.sort_by_key(|entry| (entry.address, entry.port));
    }
}

/// Networks in which somebody that may be called is published: everybody gets their directories.
pub(crate) fn advertised(joined: &[Joined]) -> impl Iterator<Item = String> {
    joined.iter().flat_map(|Joined { offer, federated }| {
        let called = offer.model.workloads.iter().filter(|workload| federated.callees.contains(&workload.id));
        called.flat_map(|workload| &workload.advertise).map(|place| place.network.clone())
    })
}

/// Addresses that a domain's own manifests name: of its workloads, of what stands for them, of intermediaries and of hosts
/// outside.
fn used(model: &PolicyModel) -> BTreeSet<IpAddr> {
    let workloads = model.workloads.iter().flat_map(|workload| {
        let named = workload.advertise.iter().chain(&workload.virtual_addresses).map(|place| place.address);
        workload.addresses.iter().copied().chain(named)
    });
    let intermediaries = model.intermediaries.iter().flat_map(|intermediary| intermediary.addresses.clone());
    let hosts = model.egress.iter().filter(|rule| rule.cidr.prefix_len() == rule.cidr.max_prefix_len());
    let all = workloads.chain(intermediaries).chain(hosts.map(|rule| rule.cidr.addr()));
    all.map(|address| address.to_canonical()).collect()
}

fn holds(network: &Network, address: IpAddr) -> bool {
    let is_gateway = network.gateways.iter().any(|gateway| gateway.to_canonical() == address);
    network.contains(address) && !is_gateway
}

#[cfg(test)]
mod tests;
