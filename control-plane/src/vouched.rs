//! Addresses that an attestor vouches for: whoever starts containers knows which address each of them was given.
//!
//! A claim is believed otherwise only where its stream comes from, which is one address of a container in several
//! networks. What is attested comes over the operators' socket and counts like an address that the operator listed, for
//! as long as the attestor says so.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use signet_identity::SpiffeId;
use signet_policy::PolicyModel;

use crate::records::{self, Claim, Found};
use crate::store::{Expect, Revision, Store, StoreError, Write};

/// Addresses of one instance: a container in more networks is a mistake.
pub(crate) const ADDRESSES_MAX: usize = 64;
/// Vouched addresses of the whole mesh: ten thousand containers on one control plane.
pub(crate) const PLACES_MAX: usize = 10_000;
/// Letters of an instance's name: a container's id has 64.
pub(crate) const INSTANCE_MAX: usize = 128;
/// How often a change is tried again when another writes the same records.
const ATTEMPTS_MAX: usize = 16;

/// An address that belongs to an identity because an attestor says so.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Vouched {
    pub(crate) id: SpiffeId,
    /// The attestor's name for the container.
    pub(crate) instance: String,
    pub(crate) network: String,
    pub(crate) address: IpAddr,
}

impl Vouched {
    pub(crate) fn key(network: &str, address: IpAddr) -> String {
        format!("{}{network}/{}", records::ATTESTED, address.to_canonical())
    }

    fn own_key(&self) -> String {
        Self::key(&self.network, self.address)
    }
}

/// What an attestor says of one instance: all of its addresses, or that it is gone.
#[derive(Clone, Debug)]
pub(crate) struct Statement {
    pub(crate) id: SpiffeId,
    pub(crate) instance: String,
    pub(crate) network: String,
    pub(crate) addresses: BTreeSet<IpAddr>,
}

/// Why a statement is not recorded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VouchError {
    #[error("{PLACES_MAX} addresses are attested already")]
    Full,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Records a statement in the place of the instance's former one. An address that another instance had is this one's
/// now. What was the instance's and is no longer leaves the directory, since nobody is there any more.
pub(crate) async fn record(store: &dyn Store, said: &Statement) -> Result<Revision, VouchError> {
    for _ in 0..ATTEMPTS_MAX {
        let (writes, left) = changes(store, said).await?;
        if left > PLACES_MAX {
            return Err(VouchError::Full);
        }
        if writes.is_empty() {
            return Ok(store.list(records::ATTESTED).await?.revision);
        }
        let mut committed = Ok(Revision(0));
        for part in writes.chunks(crate::store::WRITES_MAX) {
            committed = store.commit(part.to_vec()).await;
            if committed.is_err() {
                break;
            }
        }
        match committed {
            Err(StoreError::Conflict { .. }) => {}
            committed => return Ok(committed?),
        }
    }
    Err(StoreError::Conflict { key: records::ATTESTED.to_owned() }.into())
}

/// The writes, and how many places are attested after them.
async fn changes(store: &dyn Store, said: &Statement) -> Result<(Vec<Write>, usize), StoreError> {
    let all = records::list::<Vouched>(store, records::ATTESTED).await?;
    let before = all.len();
    let mut writes = Vec::new();
    let (mut added, mut removed) = (0, 0);
    for &address in &said.addresses {
        let attested = Vouched {
            id: said.id.clone(),
            instance: said.instance.clone(),
            network: said.network.clone(),
            address: address.to_canonical(),
        };
        let key = attested.own_key();
        let found = all.iter().find(|found| found.record.own_key() == key);
        if found.is_some_and(|found| found.record == attested) {
            continue;
        }
        added += usize::from(found.is_none());
        writes.push(records::put(key, records::unchanged(found), &attested)?);
    }
    let canonical: BTreeSet<IpAddr> = said.addresses.iter().map(IpAddr::to_canonical).collect();
    let gone = |record: &Vouched| {
        record.instance == said.instance
            && (record.network != said.network || !canonical.contains(&record.address))
    };
    for Found { record, revision } in all.iter().filter(|found| gone(&found.record)) {
        removed += 1;
        writes.push(Write::delete(record.own_key(), Expect::At(*revision)));
        for entry in store.list(&Claim::of_address(&record.network, record.address)).await?.entries {
            let claim: Found<Claim> = records::decode(&entry)?;
            if claim.record.id == record.id {
                writes.push(Write::delete(entry.key, Expect::At(claim.revision)));
            }
        }
    }
    Ok((writes, (before + added).saturating_sub(removed)))
}

/// Whose an address is by an attestor's word.
pub(crate) async fn owner(
    store: &dyn Store,
    network: &str,
    address: IpAddr,
) -> Result<Option<SpiffeId>, StoreError> {
    let found = records::read::<Vouched>(store, &Vouched::key(network, address)).await?;
    Ok(found.map(|found| found.record.id))
}

/// Removes what belongs to workloads that left the mesh.
pub(crate) async fn removals(store: &dyn Store, model: &PolicyModel) -> Result<Vec<Write>, StoreError> {
    let all = records::list::<Vouched>(store, records::ATTESTED).await?;
    let left = all.iter().filter(|found| model.workload(&found.record.id).is_none());
    Ok(left.map(|found| Write::delete(found.record.own_key(), Expect::At(found.revision))).collect())
}
