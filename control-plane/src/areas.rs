//! The areas of this control plane: who may run one, what each was granted, and what is believed of what it tells.
//!
//! An area is a control plane under this one. Its issuer is certified by the root over the identities it was granted, its networks'
//! directories are signed by its own key, and everything else it serves is passed on as it was signed here. So it can make up nobody
//! outside its grant and no address outside its networks; what it says within them is its own word.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prost::Message as _;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use signet_identity::{
    AreaGrant, Fingerprint, GrantError, IssueError, MAX_REFUSED_ISSUERS, SpiffeId, TrustBundle,
    area_of_chain, spki_sha256, verify_signing_chain, verify_tls_chain,
};
use signet_policy::{Network, PolicyModel, WorkloadModel};
use signet_sync::proto::sync as wire;
use signet_sync::{Directory, DirectoryKey, SectionName, Version};
use thiserror::Error;

use crate::authority::{Authority, AuthorityError, BACKDATE, DEVICE, name};
use crate::records::{
    self, AREA_DIRECTORIES, AREAS, AREAS_HEAD, Found, Instance, Leaf, REGISTRATIONS, RESTORED, REVOCATIONS,
    Registration, Restored, Revocation, SectionVersion, Subject, VERSIONS, registration_key, unix_seconds,
};
use crate::revocation::{KEPT_AFTER, LONGEST_LIFE, RevocationError, revoke_as_told};
use crate::store::{Expect, Listing, Revision, Store, StoreError, Write};
use crate::token;

/// Areas of one trust domain, revoked ones counted until their certificates have ended: the hash of each may have to stand among
/// the refused issuers of every proxy, beside those of rotations.
pub(crate) const AREAS_MAX: usize = MAX_REFUSED_ISSUERS / 2;

/// Networks of one area.
pub(crate) const NETWORKS_MAX: usize = 16;

/// How long an area may be told to go on without its parent: as long as a workload's certificate may last.
pub(crate) const BUDGET_MAX: Duration = LONGEST_LIFE;

/// The least: below that a parent that restarts would end it.
pub(crate) const BUDGET_MIN: Duration = Duration::from_secs(10);

/// How long a token for an area is good: to carry it to a machine and start it there.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);

/// Certificates of an area's end that are remembered: it asks again when an answer was lost.
const ENDS_MAX: usize = 16;

/// Leaves and instances as in the registrar.
const LEAVES_MAX: usize = 64;
const INSTANCES_MAX: usize = 1_024;

/// Entries of the list of revocations by the word of one area: what was renewed there while it was cut off, by holders who were
/// revoked meanwhile.
const TOLD_MAX: usize = 4_096;

/// How often a write is tried again when others write the same records.
const ATTEMPTS_MAX: usize = 64;

/// An area, as it is kept.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Area {
    pub(crate) name: String,
    pub(crate) networks: Vec<String>,
    pub(crate) identities: Vec<String>,
    /// Seconds.
    pub(crate) budget_s: u64,
    pub(crate) token: AreaToken,
    /// Since it joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) joined: Option<JoinedArea>,
    /// Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) revoked_at: Option<u64>,
}

/// The token that it joins with, once.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct AreaToken {
    id: String,
    secret_sha256: String,
    /// Unix seconds.
    expires: u64,
}

/// What an area has since it joined.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct JoinedArea {
    /// Ed25519.
    section_key: [u8; 32],
    /// Name of its issuer: the hash of its key.
    pub(crate) issuer: String,
    /// Unix seconds: the end of the longest that was certified.
    pub(crate) not_after: u64,
    /// Certificates of its control plane's end, oldest first.
    ends: Vec<End>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct End {
    fingerprint: String,
    /// Unix seconds.
    not_after: u64,
}

/// The directory of an area's network, as the area signed it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct AreaDirectory {
    /// base64url of the section.
    section: String,
}

/// Why an area does not get what it, or an operator for it, asks for.
#[derive(Debug, Error)]
pub(crate) enum AreaError {
    #[error("the control plane cannot certify now: {0}")]
    Authority(#[from] AuthorityError),
    #[error("an area goes on without its parent for 10 seconds to 90 days")]
    Budget,
    #[error("somebody else keeps changing the same things, try again")]
    Busy,
    #[error(
        "the delegation ended longer ago than it was good for: revoke the area and add it again, or add it under another name"
    )]
    Ended,
    #[error(
        "there are {AREAS_MAX} areas, revoked ones counted, or as many areas and retired issuers as a proxy can refuse"
    )]
    Full,
    #[error(transparent)]
    Grant(#[from] GrantError),
    #[error("area {0} is there already, or was revoked a while ago; take another name")]
    Name(String),
    #[error("network {network} is area {area}'s")]
    Network { network: String, area: String },
    #[error("an area has 1 to {NETWORKS_MAX} networks of the Mesh that have cidrs; {0} is none")]
    NoNetwork(String),
    #[error("the request asks for another key than the area has had from the beginning")]
    OtherKey,
    #[error("the request cannot be certified: {0}")]
    Request(#[from] IssueError),
    #[error("the area was revoked")]
    Revoked,
    #[error(transparent)]
    Revocation(#[from] RevocationError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the token is unknown, was used, or has expired; signet area add makes another")]
    Token,
    #[error("the caller is no area of this control plane")]
    Unknown,
}

impl AreaError {
    /// A stable name for logs and the area's own errors.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Authority(_) => "authority-unavailable",
            Self::Budget => "area-budget",
            Self::Busy => "busy",
            Self::Ended => "area-ended",
            Self::Full => "areas-full",
            Self::Grant(_) => "area-grant",
            Self::Name(_) => "area-exists",
            Self::Network { .. } | Self::NoNetwork(_) => "area-network",
            Self::OtherKey => "area-key",
            Self::Request(_) => "bad-request",
            Self::Revoked => "area-revoked",
            Self::Revocation(_) | Self::Store(_) => "store-unavailable",
            Self::Token => "token-refused",
            Self::Unknown => "area-unknown",
        }
    }
}

/// The areas, as of one look at the store.
#[derive(Debug, Default)]
pub(crate) struct Areas {
    all: Vec<Area>,
}

impl Areas {
    /// Those in a listing of what is desired.
    pub(crate) fn of(listing: &Listing) -> Result<Self, StoreError> {
        let entries = listing.entries.iter().filter(|entry| entry.key.starts_with(AREAS));
        Ok(Self {
            all: entries
                .map(|entry| Ok(records::decode(entry)?.record))
                .collect::<Result<_, StoreError>>()?,
        })
    }

    /// Those that joined and were not revoked.
    fn in_force(&self) -> impl Iterator<Item = (&Area, &JoinedArea)> {
        let live = self.all.iter().filter(|area| area.revoked_at.is_none());
        live.filter_map(|area| Some((area, area.joined.as_ref()?)))
    }

    /// Whether an area writes the directory of this network.
    pub(crate) fn owns(&self, network: &str) -> bool {
        self.networks().any(|own| own == network)
    }

    /// The networks of areas.
    pub(crate) fn networks(&self) -> impl Iterator<Item = &String> {
        self.in_force().flat_map(|(area, _)| &area.networks)
    }

    /// The keys that `anchors` name.
    pub(crate) fn directory_keys(&self) -> impl Iterator<Item = (String, DirectoryKey)> {
        self.in_force().map(|(area, joined)| {
            let key = DirectoryKey { key: joined.section_key, networks: area.networks.clone() };
            (area.name.clone(), key)
        })
    }

    /// Names of the issuers that are refused: of areas that were revoked.
    pub(crate) fn refused(&self) -> impl Iterator<Item = &str> {
        let revoked = self.all.iter().filter(|area| area.revoked_at.is_some());
        revoked.filter_map(|area| Some(&*area.joined.as_ref()?.issuer))
    }

    /// How many there are, with those that were revoked.
    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    /// Names of those that were not revoked.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.all.iter().filter(|area| area.revoked_at.is_none()).map(|area| &*area.name).collect()
    }

    /// The directories that areas told of, as they signed them.
    pub(crate) fn directories(
        &self,
        listing: &Listing,
    ) -> Result<BTreeMap<SectionName, wire::Section>, StoreError> {
        let mut sections = BTreeMap::new();
        for entry in listing.entries.iter().filter(|entry| entry.key.starts_with(AREA_DIRECTORIES)) {
            let found: Found<AreaDirectory> = records::decode(entry)?;
            let section = decode(&found.record).ok_or_else(|| StoreError::Corrupted(entry.key.clone()))?;
            if let Some(name @ SectionName::Directory(_)) = SectionName::parse(&section.name)
                && matches!(&name, SectionName::Directory(network) if self.owns(network))
            {
                sections.insert(name, section);
            }
        }
        Ok(sections)
    }
}

/// All areas.
pub(crate) async fn list(store: &dyn Store) -> Result<Vec<Area>, StoreError> {
    Ok(records::list::<Area>(store, AREAS).await?.into_iter().map(|found| found.record).collect())
}

/// An area to be.
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) networks: Vec<String>,
    pub(crate) identities: Vec<String>,
    pub(crate) budget: Duration,
}

/// Makes an area and the token that it joins with. Returns the token and when it expires.
pub(crate) async fn add(
    store: &dyn Store,
    authority: &Authority,
    wanted: Wanted,
    model: &PolicyModel,
    now: SystemTime,
) -> Result<(signet_sync::Token, u64, Revision), AreaError> {
    let Wanted { name, networks, identities, budget } = wanted;
    let grant = AreaGrant::new(&name, identities)?;
    if !(BUDGET_MIN..=BUDGET_MAX).contains(&budget) {
        return Err(AreaError::Budget);
    }
    let networks: BTreeSet<String> = networks.into_iter().collect();
    let is_bounded = |network: &Network| !network.cidrs.is_empty();
    let unknown = networks.iter().find(|network| !model.network(network).is_some_and(is_bounded));
    if networks.is_empty() || networks.len() > NETWORKS_MAX || unknown.is_some() {
        return Err(AreaError::NoNetwork(unknown.cloned().unwrap_or_default()));
    }
    // `main` signs for the networks that are nobody's, and the origin's own end has the other's name.
    if [crate::publish::AREA, DEVICE].contains(&&*name) {
        return Err(AreaError::Name(name));
    }
    for _ in 0..ATTEMPTS_MAX {
        // Written with each, so that two never get the same network.
        let head = store.read(AREAS_HEAD).await?.map_or(Expect::Absent, |head| Expect::At(head.revision));
        let known = list(store).await?;
        // Each may have to stand among the refused issuers of every proxy, beside those that were rotated away.
        let refused = known.len() + authority.slots().issuers.len();
        if known.len() >= AREAS_MAX || refused >= MAX_REFUSED_ISSUERS {
            return Err(AreaError::Full);
        }
        if known.iter().any(|area| area.name == name) {
            return Err(AreaError::Name(name));
        }
        for area in known.iter().filter(|area| area.revoked_at.is_none()) {
            if let Some(network) = area.networks.iter().find(|network| networks.contains(*network)) {
                return Err(AreaError::Network { network: network.clone(), area: area.name.clone() });
            }
        }
        let (made, id, secret_sha256) = token::fresh(authority.pin()?)?;
        let expires = unix_seconds(now).saturating_add(TOKEN_TTL.as_secs());
        let area = Area {
            name: name.clone(),
            networks: networks.iter().cloned().collect(),
            identities: grant.identities().to_vec(),
            budget_s: budget.as_secs(),
            token: AreaToken { id, secret_sha256, expires },
            joined: None,
            revoked_at: None,
        };
        let writes = vec![
            records::put(key(&name), Expect::Absent, &area)?,
            Write::put(AREAS_HEAD, head, name.clone().into_bytes()),
        ];
        match store.commit(writes).await {
            Ok(revision) => return Ok((made, expires, revision)),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(AreaError::Busy)
}

/// What an area asks to be certified: PKCS#10, DER.
#[derive(Clone, Copy)]
pub(crate) struct Requests<'a> {
    pub(crate) issuer: &'a [u8],
    pub(crate) end: &'a [u8],
}

/// Uses up an area's token for its first delegation.
pub(crate) async fn join(
    store: &dyn Store,
    authority: &Authority,
    (token_id, secret): (&str, &[u8]),
    section_key: [u8; 32],
    requests: Requests<'_>,
    now: SystemTime,
) -> Result<(wire::Delegation, Revision), AreaError> {
    let presented = token::secret_digest(secret);
    let areas = records::list::<Area>(store, AREAS).await?;
    let found = areas.into_iter().find(|found| found.record.token.id == token_id).ok_or(AreaError::Token)?;
    let token = &found.record.token;
    let equal = verify_slices_are_equal(presented.as_bytes(), token.secret_sha256.as_bytes()).is_ok();
    if !equal || token.expires <= unix_seconds(now) || found.record.joined.is_some() {
        return Err(AreaError::Token);
    }
    if found.record.revoked_at.is_some() {
        return Err(AreaError::Revoked);
    }
    let empty = JoinedArea { section_key, issuer: String::new(), not_after: 0, ends: Vec::new() };
    certify(store, authority, found, empty, requests, now).await
}

/// Gives an area a new delegation, by the certificate of its end.
pub(crate) async fn renew(
    store: &dyn Store,
    authority: &Authority,
    area: Found<Area>,
    end_not_after: SystemTime,
    requests: Requests<'_>,
    now: SystemTime,
) -> Result<(wire::Delegation, Revision), AreaError> {
    if end_not_after + Duration::from_secs(area.record.budget_s) <= now {
        return Err(AreaError::Ended);
    }
    let joined = area.record.joined.clone().ok_or(AreaError::Unknown)?;
    certify(store, authority, area, joined, requests, now).await
}

/// The area that shows a certificate with this fingerprint for its end.
pub(crate) async fn caller(
    store: &dyn Store,
    id: &SpiffeId,
    leaf: Fingerprint,
) -> Result<Found<Area>, AreaError> {
    let area = id.parts().map(|parts| parts.device).ok_or(AreaError::Unknown)?;
    let found = records::read::<Area>(store, &key(area)).await?.ok_or(AreaError::Unknown)?;
    let leaf = leaf.to_string();
    let ends = found.record.joined.as_ref().map(|joined| &*joined.ends).unwrap_or_default();
    if !id.is_control_plane() || !ends.iter().any(|end| end.fingerprint == leaf) {
        return Err(AreaError::Unknown);
    }
    if found.record.revoked_at.is_some() { Err(AreaError::Revoked) } else { Ok(found) }
}

async fn certify(
    store: &dyn Store,
    authority: &Authority,
    found: Found<Area>,
    mut joined: JoinedArea,
    requests: Requests<'_>,
    now: SystemTime,
) -> Result<(wire::Delegation, Revision), AreaError> {
    let area = &found.record;
    let grant = AreaGrant::new(&area.name, area.identities.clone())?;
    let root = authority.current()?;
    let not_after = now + Duration::from_secs(area.budget_s);
    let issuer = root.delegate(requests.issuer, &grant, now - BACKDATE, not_after)?;
    let id = SpiffeId::control_plane(authority.trust_domain(), &area.name)
        .map_err(|_| AreaError::Grant(GrantError::Area))?;
    let end = root.certify_control_plane(requests.end, &id, now - BACKDATE, not_after)?;
    let issuer_name = name(spki_sha256(&issuer).map_err(IssueError::from)?);
    // One key for good: what is refused when the area is revoked is this one.
    if !joined.issuer.is_empty() && joined.issuer != issuer_name {
        return Err(AreaError::OtherKey);
    }
    joined.issuer = issuer_name;
    joined.not_after = joined.not_after.max(unix_seconds(not_after));
    joined
        .ends
        .push(End { fingerprint: Fingerprint::of(&end).to_string(), not_after: unix_seconds(not_after) });
    let grace = area.budget_s;
    joined.ends.retain(|end| end.not_after.saturating_add(grace) > unix_seconds(now));
    let surplus = joined.ends.len().saturating_sub(ENDS_MAX);
    joined.ends.drain(..surplus);
    let mut networks = Vec::new();
    for network in &area.networks {
        let epoch = epoch_of(store, network).await?;
        let name = SectionName::Directory(network.clone());
        let proved = authority.policy_key().prove_epoch(&name, epoch).map_err(AuthorityError::from)?;
        let epoch_proof = if epoch > 1 { proved } else { Vec::new() };
        networks.push(wire::AreaNetwork { name: network.clone(), epoch, epoch_proof });
    }
    let (name, budget_s) = (area.name.clone(), area.budget_s);
    let record = Area { joined: Some(joined), ..area.clone() };
    let delegation = wire::Delegation {
        protocol: 0,
        area: name.clone(),
        networks,
        issuer: issuer.to_vec(),
        end: end.to_vec(),
        root: root.root_der().to_vec(),
        policy_key: authority.policy_key().public_key().to_vec(),
        budget_s,
    };
    // Nothing that was certified is forgotten: it is durable before anybody has it.
    match store.commit(vec![records::put(key(&name), Expect::At(found.revision), &record)?]).await {
        Ok(revision) => Ok((delegation, revision)),
        Err(StoreError::Conflict { .. }) => Err(AreaError::Busy),
        Err(error) => Err(error.into()),
    }
}

/// The epoch that the directory of a network is in.
async fn epoch_of(store: &dyn Store, network: &str) -> Result<u64, StoreError> {
    let key = format!("{VERSIONS}{}", SectionName::Directory(network.to_owned()));
    let version = records::read::<SectionVersion>(store, &key).await?.map_or(1, |found| found.record.epoch);
    let restored = records::read::<Restored>(store, RESTORED).await?.map_or(1, |found| found.record.epoch);
    Ok(version.max(restored))
}

/// Takes an area's directory, if it is newer than the one that is kept. The caller has checked that the area signed it and may.
pub(crate) async fn take_directory(
    store: &dyn Store,
    area: &Area,
    section: &wire::Section,
    directory: &Directory,
    model: &PolicyModel,
) -> Result<Result<(), &'static str>, AreaError> {
    let network = directory.network();
    if !area.networks.iter().any(|own| own == network) {
        return Ok(Err("the network is not the area's"));
    }
    if let Some(refused) = why_not(area, directory, model)? {
        return Ok(Err(refused));
    }
    let key = format!("{AREA_DIRECTORIES}{network}");
    let found = records::read::<AreaDirectory>(store, &key).await?;
    let held = found.as_ref().and_then(|found| decode(&found.record)).map(|held| Version::from(&held));
    if held >= Some(Version::from(section)) {
        return Ok(Ok(()));
    }
    let record = AreaDirectory { section: URL_SAFE_NO_PAD.encode(section.encode_to_vec()) };
    match store.commit(vec![records::put(key, records::unchanged(found.as_ref()), &record)?]).await {
        Ok(_) => Ok(Ok(())),
        // Another stream of the same area, which is about to be ended.
        Err(StoreError::Conflict { .. }) => Err(AreaError::Busy),
        Err(error) => Err(error.into()),
    }
}

/// An area says who is in its networks, and of whom it may certify; what the manifests advertise there is the operator's word.
fn why_not(
    area: &Area,
    directory: &Directory,
    model: &PolicyModel,
) -> Result<Option<&'static str>, AreaError> {
    let grant = AreaGrant::new(&area.name, area.identities.clone())?;
    let network = directory.network();
    for entry in directory.entries() {
        let advertised = model.advertised(network, entry.address, entry.port);
        let is_advertised = advertised.is_some_and(|(owner, _)| entry.identities == [owner.id.clone()]);
        // Without ranges every address would be its network's.
        let contains = |network: &Network| !network.cidrs.is_empty() && network.contains(entry.address);
        if !is_advertised && !model.network(network).is_some_and(contains) {
            return Ok(Some("an address is not in the network"));
        }
        let is_granted = entry.identities.iter().all(|id| grant.permits(id));
        if !is_advertised && !is_granted {
            return Ok(Some("an identity is not of the area's grant"));
        }
        // What senders find a recipient by is the manifests' word, and what they seal for it with is of the grant.
        let all = |fits: &dyn Fn(&WorkloadModel) -> bool| {
            entry.identities.iter().all(|id| model.workload(id).is_some_and(fits))
        };
        if !entry.names.is_empty() && !all(&|workload| workload.names == entry.names) {
            return Ok(Some("names are not those of the workload"));
        }
        if !entry.workload.is_empty() && !all(&|workload| workload.name == entry.workload) {
            return Ok(Some("the workload is not that of the identity"));
        }
        if !entry.sealing_keys.is_empty() && !is_granted {
            return Ok(Some("a key to what is sealed is for an identity that is not of the area's grant"));
        }
    }
    Ok(None)
}

/// Takes up what an area says of an instance that it certified, so that it can be listed and revoked here. Of certificates it is
/// believed what they say themselves.
pub(crate) async fn take_instance(
    store: &dyn Store,
    area: &Area,
    said: wire::AreaInstance,
    (model, bundle): (&PolicyModel, &TrustBundle),
    now: SystemTime,
) -> Result<Result<(), &'static str>, AreaError> {
    let (grant, joined) = (
        AreaGrant::new(&area.name, area.identities.clone())?,
        area.joined.as_ref().ok_or(AreaError::Unknown)?,
    );
    let Ok(id) = SpiffeId::parse(&said.spiffe_id) else { return Ok(Err("no SPIFFE ID")) };
    if !grant.permits(&id) {
        return Ok(Err("the identity is not of the area's grant"));
    }
    // Patterns have no end; manifests do.
    if model.workload(&id).is_none() {
        return Ok(Err("no workload has this identity"));
    }
    if !area.networks.contains(&said.network) {
        return Ok(Err("the network is not the area's"));
    }
    if said.leaves.is_empty() || said.leaves.len() > LEAVES_MAX || said.first.parse::<Fingerprint>().is_err()
    {
        return Ok(Err("an instance has 1 to 64 certificates, and a first one"));
    }
    let mut proven = Vec::new();
    for leaf in &said.leaves {
        match prove(leaf, &id, bundle, now) {
            Ok(leaf) => proven.extend(leaf),
            Err(reason) => return Ok(Err(reason)),
        }
    }
    // All of them have ended, or are refused by now.
    if proven.is_empty() {
        return Ok(Ok(()));
    }
    let leaves: Vec<Leaf> = proven.iter().map(|(leaf, _)| leaf.clone()).collect();
    for _ in 0..ATTEMPTS_MAX {
        let found = records::read::<Registration>(store, &registration_key(&id)).await?;
        let mut registration = found.as_ref().map_or_else(
            || Registration { id: id.clone(), instances: Vec::new() },
            |found| found.record.clone(),
        );
        let shares = |instance: &Instance| {
            instance.leaves.iter().any(|held| leaves.iter().any(|leaf| leaf.fingerprint == held.fingerprint))
        };
        // Whoever it was elsewhere, that area's end is its end.
        let by_others = proven.iter().filter_map(|(_, by)| by.clone());
        let known = registration.instances.iter().filter(|instance| shares(instance));
        let came = known.flat_map(|instance| instance.area.iter().chain(&instance.came).cloned());
        let mut came: BTreeSet<String> = by_others.chain(came).filter(|by| *by != area.name).collect();
        let is_full = registration.instances.len() >= INSTANCES_MAX;
        // Only with what the area told of itself: what is known otherwise is not the area's to change.
        let own = |instance: &&mut Instance| instance.area.as_deref() == Some(&area.name) && shares(instance);
        match registration.instances.iter_mut().find(own) {
            Some(instance) => {
                let new = leaves
                    .iter()
                    .filter(|leaf| !instance.leaves.iter().any(|held| held.fingerprint == leaf.fingerprint));
                let new: Vec<Leaf> = new.cloned().collect();
                instance.leaves.extend(new);
                instance.leaves.retain(|leaf| leaf.not_after > unix_seconds(now));
                // The area's own go first: they end with its issuer, if it comes to that.
                let is_own = |leaf: &Leaf| leaf.issuer.as_deref() == Some(joined.issuer.as_str());
                while instance.leaves.len() > LEAVES_MAX {
                    let at = instance.leaves.iter().position(is_own).unwrap_or_default();
                    instance.leaves.remove(at);
                }
                came.extend(std::mem::take(&mut instance.came));
                instance.came = came.into_iter().take(AREAS_MAX).collect();
                instance.network.clone_from(&said.network);
            }
            None if is_full => {
                return Ok(Err("the identity has as many instances as one may"));
            }
            None => {
                let first = leaves.first().map(|leaf| leaf.fingerprint.clone()).unwrap_or_default();
                let is_one = leaves.iter().any(|leaf| leaf.fingerprint == said.first);
                registration.instances.push(Instance {
                    first: if is_one { said.first.clone() } else { first },
                    token: format!("area {}", area.name),
                    network: said.network.clone(),
                    leaves: leaves.clone(),
                    area: Some(area.name.clone()),
                    came: came.into_iter().take(AREAS_MAX).collect(),
                });
            }
        }
        registration.instances.retain(|instance| !instance.leaves.is_empty());
        if found.as_ref().is_some_and(|found| found.record == registration) {
            return Ok(Ok(()));
        }
        let write = records::put(registration_key(&id), records::unchanged(found.as_ref()), &registration)?;
        match store.commit(vec![write]).await {
            Ok(_) => return revoke_what_was(store, &area.name, &leaves, now).await,
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(AreaError::Busy)
}

/// What a certificate that an area tells of says by itself: the leaf, and the area that certified it if one did. Nothing for one
/// that has ended, or whose issuer is refused.
fn prove(
    said: &wire::AreaLeaf,
    id: &SpiffeId,
    bundle: &TrustBundle,
    now: SystemTime,
) -> Result<Option<(Leaf, Option<String>)>, &'static str> {
    const LINKS: usize = 2;
    let chain =
        |said: &[Vec<u8>]| said.iter().map(|der| CertificateDer::from(der.clone())).collect::<Vec<_>>();
    let (tls, signing) = (chain(&said.tls_chain), chain(&said.signing_chain));
    let [_, issuer] = tls.as_slice() else { return Err("a certificate is told of with its issuer") };
    if !matches!(signing.len(), 0 | LINKS) {
        return Err("a certificate is told of with its issuer");
    }
    let Ok(peer) = verify_tls_chain(bundle, &tls, now) else { return Ok(None) };
    if peer.id() != id {
        return Err("a certificate is another identity's");
    }
    let signing = match signing.as_slice() {
        [_, by] => match verify_signing_chain(bundle, &signing, now) {
            Ok(signs) if signs.id() == id && spki_sha256(by) == spki_sha256(issuer) => {
                Some(signs.fingerprint())
            }
            _ => return Err("a certificate for messages is not what was issued beside the other"),
        },
        _ => None,
    };
    let leaf = Leaf {
        fingerprint: peer.fingerprint().to_string(),
        signing: signing.map(|fingerprint| fingerprint.to_string()),
        issuer: spki_sha256(issuer).ok().map(name),
        not_after: unix_seconds(peer.not_after()),
    };
    Ok(Some((leaf, area_of_chain(&tls))))
}

/// An instance that was revoked here while its area was cut off may have been renewed there: what it got goes too.
async fn revoke_what_was(
    store: &dyn Store,
    area: &str,
    leaves: &[Leaf],
    now: SystemTime,
) -> Result<Result<(), &'static str>, AreaError> {
    for leaf in leaves {
        let Ok(fingerprint) = leaf.fingerprint.parse() else { continue };
        let subject = Subject::Certificate(fingerprint);
        if let Some(found) = records::read::<Revocation>(store, &subject.key()).await? {
            let listed = records::list::<Revocation>(store, REVOCATIONS).await?;
            let told = listed.iter().filter(|found| found.record.told_by.as_deref() == Some(area)).count();
            if told >= TOLD_MAX {
                return Ok(Err(
                    "more is on the list of revocations by its word than an area may put there: revoke the area",
                ));
            }
            revoke_as_told(store, &subject, &found.record.reason, area, now).await?;
            return Ok(Ok(()));
        }
    }
    Ok(Ok(()))
}

/// Ends an area: its issuer is refused by everybody, its networks are this control plane's again, whatever it told of is gone, and
/// what its instances were given elsewhere is revoked.
pub(crate) async fn revoke_area(
    store: &dyn Store,
    area: &str,
    now: SystemTime,
) -> Result<Revision, AreaError> {
    for _ in 0..ATTEMPTS_MAX {
        let found = records::read::<Area>(store, &key(area)).await?.ok_or(AreaError::Unknown)?;
        let issuer = found.record.joined.as_ref().map(|joined| joined.issuer.clone()).unwrap_or_default();
        if found.record.revoked_at.is_some() {
            // What a process that died left, or came from it meanwhile.
            without_instances(store, area, &issuer, now).await?;
            return Err(AreaError::Revoked);
        }
        let mut writes = Vec::new();
        for end in found.record.joined.iter().flat_map(|joined| &joined.ends) {
            let Ok(fingerprint) = end.fingerprint.parse() else { continue };
            writes.push(listed(Subject::Certificate(fingerprint), area, end.not_after, now)?);
        }
        let revoked = Area { revoked_at: Some(unix_seconds(now)), ..found.record.clone() };
        writes.push(records::put(key(area), Expect::At(found.revision), &revoked)?);
        for network in &found.record.networks {
            writes.push(Write::delete(format!("{AREA_DIRECTORIES}{network}"), Expect::Any));
            // The area's numbers are far above; what is said from now on is newer all the same.
            let key = format!("{VERSIONS}{}", SectionName::Directory(network.clone()));
            let version = records::read::<SectionVersion>(store, &key).await?;
            let record = SectionVersion {
                epoch: epoch_of(store, network).await?,
                counter: version.as_ref().map_or(0, |found| found.record.counter).max(unix_ms(now)),
                payload_sha256: String::new(),
                made_from: 0,
            };
            writes.push(records::put(key, records::unchanged(version.as_ref()), &record)?);
        }
        match store.commit(writes).await {
            Ok(revision) => {
                return Ok(without_instances(store, area, &issuer, now).await?.unwrap_or(revision));
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(AreaError::Busy)
}

/// Takes away what an area told of, identity by identity: what its issuer certified is refused by that; what others certified for
/// the same holders is put on the list.
async fn without_instances(
    store: &dyn Store,
    area: &str,
    issuer: &str,
    now: SystemTime,
) -> Result<Option<Revision>, AreaError> {
    let mut last = None;
    for entry in store.list(REGISTRATIONS).await?.entries {
        for _ in 0..ATTEMPTS_MAX {
            let Some(found) = records::read::<Registration>(store, &entry.key).await? else { break };
            let (gone, kept): (Vec<_>, Vec<_>) = found
                .record
                .instances
                .into_iter()
                .partition(|instance| instance.area.iter().chain(&instance.came).any(|of| of == area));
            if gone.is_empty() {
                break;
            }
            let mut writes = Vec::new();
            for leaf in gone.iter().flat_map(|instance| &instance.leaves) {
                if leaf.issuer.as_deref() == Some(issuer) || leaf.not_after <= unix_seconds(now) {
                    continue;
                }
                for fingerprint in std::iter::once(&leaf.fingerprint).chain(&leaf.signing) {
                    let Ok(fingerprint) = fingerprint.parse() else { continue };
                    writes.push(listed(Subject::Certificate(fingerprint), area, leaf.not_after, now)?);
                }
            }
            let registration = Registration { id: found.record.id, instances: kept };
            writes.push(records::put(entry.key.clone(), Expect::At(found.revision), &registration)?);
            match store.commit(writes).await {
                Ok(revision) => {
                    last = Some(revision);
                    break;
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(last)
}

/// The write that puts a certificate on the list because its area is revoked.
fn listed(subject: Subject, area: &str, not_after: u64, now: SystemTime) -> Result<Write, StoreError> {
    let revocation = Revocation {
        subject,
        reason: format!("area {area} was revoked"),
        revoked_at: unix_seconds(now),
        expires: Some(not_after.saturating_add(KEPT_AFTER.as_secs())),
        tampered: None,
        told_by: None,
    };
    records::put(revocation.subject.key(), Expect::Any, &revocation)
}

/// Forgets areas that were revoked and whose certificates have ended.
pub(crate) async fn sweep(store: &dyn Store, now: SystemTime) -> Result<(), StoreError> {
    for found in records::list::<Area>(store, AREAS).await? {
        let area = &found.record;
        let ends = area.joined.as_ref().map_or(area.token.expires, |joined| joined.not_after);
        if area.revoked_at.is_some() && ends.saturating_add(KEPT_AFTER.as_secs()) <= unix_seconds(now) {
            match store.commit(vec![Write::delete(key(&area.name), Expect::At(found.revision))]).await {
                Ok(_) | Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Milliseconds since 1970: where an area, or who takes its networks back, begins to number directories.
pub(crate) fn unix_ms(now: SystemTime) -> u64 {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn key(area: &str) -> String {
    format!("{AREAS}{area}")
}

fn decode(directory: &AreaDirectory) -> Option<wire::Section> {
    let bytes = URL_SAFE_NO_PAD.decode(&directory.section).ok()?;
    wire::Section::decode(&*bytes).ok()
}

#[cfg(test)]
mod tests;
