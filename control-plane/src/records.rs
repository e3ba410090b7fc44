//! What the control plane keeps in the store, and under which keys.
//!
//! Values are JSON, so that a broken mesh can be looked at with plain tools; fields are only ever added. Everything
//! the pushed sections are computed from lies under [`DESIRED`], so one watch sees every reason to compute them anew.

use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use signet_identity::{Fingerprint, SpiffeId};

use crate::store::{Entry, Expect, Revision, Store, StoreError, Write};

/// Prefix of everything the sections are made from.
pub(crate) const DESIRED: &str = "desired/";
/// Prefix of the manifests: `desired/manifest/<kind>/<name>`, the YAML as written.
pub(crate) const MANIFESTS: &str = "desired/manifest/";
/// Written with every change of a manifest, so that two changes of the set never pass each other.
pub(crate) const MANIFESTS_HEAD: &str = "desired/manifests";
/// Prefix of the accepted directory claims.
pub(crate) const CLAIMS: &str = "desired/claim/";
/// Addresses that an attestor vouches for.
pub(crate) const ATTESTED: &str = "desired/attested/";
/// Prefix of the keys that messages are sealed for.
pub(crate) const SEALING_KEYS: &str = "desired/sealing-key/";
/// Prefix of the roles that workloads gave each other.
pub(crate) const APPOINTMENTS: &str = "desired/appointment/";
/// Prefix of the revocations.
pub(crate) const REVOCATIONS: &str = "desired/revocation/";
/// Prefix of the areas under this control plane.
pub(crate) const AREAS: &str = "desired/area/";
/// Written with every new area, so that two never get the same network.
pub(crate) const AREAS_HEAD: &str = "areas";
/// Prefix of the directories that areas told of: `desired/area-directory/<network>`.
pub(crate) const AREA_DIRECTORIES: &str = "desired/area-directory/";
/// Prefix of the join tokens.
pub(crate) const TOKENS: &str = "token/";
/// Prefix of the registrations.
pub(crate) const REGISTRATIONS: &str = "registration/";
/// Prefix of the holders that an attestor knows and whose certificates were revoked: they enrol no more.
pub(crate) const REVOKED_HOLDERS: &str = "revoked-holder/";
/// Prefix of the version each section was last published under.
pub(crate) const VERSIONS: &str = "version/";
/// The restore of a backup that this state came from, if it came from one.
pub(crate) const RESTORED: &str = "restored";
/// Prefix of the control planes that serve from this store, where there may be several.
pub(crate) const REPLICAS: &str = "replica/";
/// When a certificate was issued last.
pub(crate) const ISSUED: &str = "issued";
/// Which key plays which part. Absent until something is rotated for the first time.
pub(crate) const SLOTS: &str = "desired/authority";
/// Which authority the store belongs to: the pin of its root in force.
pub(crate) const AUTHORITY: &str = "authority";

/// A join token, without its secret.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Token {
    /// base64url of the SHA-256 of the secret.
    pub(crate) secret_sha256: String,
    pub(crate) id: SpiffeId,
    pub(crate) network: String,
    /// How many enrolments are left.
    pub(crate) uses: u32,
    /// How many of the instances enrolled with this token may hold unexpired certificates at once.
    pub(crate) instances: u32,
    /// Unix seconds.
    pub(crate) expires: u64,
    /// An operator took it back, or revoked somebody who enrolled with it. The record stays until it expires, so that a prepared mesh does not bring it back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) withdrawn: bool,
}

/// An identity that was enrolled, and by whom it is held.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Registration {
    pub(crate) id: SpiffeId,
    pub(crate) instances: Vec<Instance>,
}

/// One holder of an identity.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Instance {
    /// Fingerprint of its first TLS leaf; it names the instance for good.
    pub(crate) first: String,
    /// Id of the token it enrolled with, or the holder that an attestor named, which has a `/` in it.
    pub(crate) token: String,
    /// The network that was for: where its addresses must lie.
    pub(crate) network: String,
    /// Its unexpired TLS leaves, oldest first.
    pub(crate) leaves: Vec<Leaf>,
    /// The area that told of it, or whose certificate it came with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) area: Option<String>,
    /// Other areas that certified it before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) came: Vec<String>,
}

/// A certificate an instance may still show.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Leaf {
    pub(crate) fingerprint: String,
    /// Fingerprint of the signing leaf that was issued beside it.
    #[serde(default)]
    pub(crate) signing: Option<String>,
    /// Name of the issuer of both; absent where it was issued before there was a second one.
    #[serde(default)]
    pub(crate) issuer: Option<String>,
    /// Unix seconds.
    pub(crate) not_after: u64,
}

/// An address and port that belong to an identity.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Claim {
    pub(crate) id: SpiffeId,
    pub(crate) network: String,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    /// Unix seconds; absent while a stream of the claimant's is open.
    pub(crate) expires: Option<u64>,
    /// The claimant was not seen at the address: its stream came through a gateway of the network.
    #[serde(default)]
    pub(crate) by_gateway: bool,
    /// Id of the control plane that has the claimant's stream; empty where there is but one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) replica: String,
}

/// A certificate or identity that is no longer believed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Revocation {
    pub(crate) subject: Subject,
    pub(crate) reason: String,
    /// Unix seconds.
    pub(crate) revoked_at: u64,
    /// Unix seconds: when nobody can believe the certificate any more anyway. Absent for an identity, and for what was
    /// revoked before there was such an end.
    #[serde(default)]
    pub(crate) expires: Option<u64>,
    /// Whose it was, where that instance reported that its device was tampered with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tampered: Option<SpiffeId>,
    /// The area by whose word it is on the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) told_by: Option<String>,
}

/// What is revoked.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Subject {
    Certificate(#[serde(with = "fingerprint_text")] Fingerprint),
    Identity(SpiffeId),
}

/// Fingerprints in records read like those in logs and certificates' tools.
mod fingerprint_text {
    use serde::{Deserialize, Deserializer, Serializer, de};
    use signet_identity::Fingerprint;

    pub(super) fn serialize<S: Serializer>(fingerprint: &Fingerprint, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(fingerprint)
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Fingerprint, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

/// The newest version of a section, recorded before anybody sees it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct SectionVersion {
    pub(crate) epoch: u64,
    pub(crate) counter: u64,
    /// base64url of the SHA-256 of the payload: the same content keeps its version over a restart.
    pub(crate) payload_sha256: String,
    /// The store's revision that it was made from: of two control planes, the one that has seen less publishes nothing.
    #[serde(default)]
    pub(crate) made_from: u64,
}

/// A restore of a backup.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Restored {
    /// Every section has this epoch, or a later one.
    pub(crate) epoch: u64,
    /// Unix seconds: when it was restored, and when the backup was made.
    pub(crate) at: u64,
    pub(crate) backup_at: u64,
    /// The store's revision that the backup was made from.
    pub(crate) backup_revision: u64,
}

/// A control plane that serves, by its id.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Replica {
    /// Unix seconds; it is gone after that.
    pub(crate) expires: u64,
}

/// An instance's key to what is sealed for it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct SealingKey {
    pub(crate) id: SpiffeId,
    /// X25519.
    pub(crate) key: [u8; 32],
    /// Fingerprint of the TLS certificate it came with.
    pub(crate) leaf: String,
    /// Unix seconds: the end of that certificate.
    pub(crate) expires: u64,
}

/// A role that one identity gave to another.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Appointment {
    pub(crate) role: String,
    /// Who holds the role.
    pub(crate) identity: SpiffeId,
    /// Who gave it.
    pub(crate) by: SpiffeId,
    /// Which instance of that identity.
    pub(crate) instance: String,
    /// Unix seconds.
    pub(crate) appointed_at: u64,
    /// Unix seconds.
    pub(crate) not_after: u64,
}

impl Appointment {
    /// One for each role, holder and appointer: a later one takes its place.
    pub(crate) fn key(role: &str, identity: &SpiffeId, by: &SpiffeId) -> String {
        format!("{APPOINTMENTS}{role} {identity} {by}")
    }

    pub(crate) fn own_key(&self) -> String {
        Self::key(&self.role, &self.identity, &self.by)
    }
}

impl SealingKey {
    /// An instance has one, the newest.
    pub(crate) fn key(id: &SpiffeId, instance: &str) -> String {
        format!("{SEALING_KEYS}{id}/{instance}")
    }
}

impl Claim {
    pub(crate) fn key(network: &str, address: IpAddr, port: u16) -> String {
        format!("{}{port}", Self::of_address(network, address))
    }

    /// What the keys of all claims on an address begin with.
    pub(crate) fn of_address(network: &str, address: IpAddr) -> String {
        format!("{CLAIMS}{network}/{address}/")
    }
}

impl Subject {
    pub(crate) fn key(&self) -> String {
        match self {
            Self::Certificate(fingerprint) => format!("{REVOCATIONS}{fingerprint}"),
            Self::Identity(id) => format!("{REVOCATIONS}{id}"),
        }
    }
}

pub(crate) fn token_key(id: &str) -> String {
    format!("{TOKENS}{id}")
}

pub(crate) fn registration_key(id: &SpiffeId) -> String {
    format!("{REGISTRATIONS}{id}")
}

/// A record with the revision to expect when it is written again.
#[derive(Clone, Debug)]
pub(crate) struct Found<T> {
    pub(crate) record: T,
    pub(crate) revision: Revision,
}

/// Reads the record under `key`.
pub(crate) async fn read<T: DeserializeOwned>(
    store: &dyn Store,
    key: &str,
) -> Result<Option<Found<T>>, StoreError> {
    store.read(key).await?.map(|entry| decode(&entry)).transpose()
}

/// Reads all records under `prefix`.
pub(crate) async fn list<T: DeserializeOwned>(
    store: &dyn Store,
    prefix: &str,
) -> Result<Vec<Found<T>>, StoreError> {
    store.list(prefix).await?.entries.iter().map(decode).collect()
}

/// The record of an entry. One that cannot be read is damage: it is never skipped.
pub(crate) fn decode<T: DeserializeOwned>(entry: &Entry) -> Result<Found<T>, StoreError> {
    let record = serde_json::from_slice(&entry.value)
        .map_err(|error| StoreError::Corrupted(format!("{}: {error}", entry.key)))?;
    Ok(Found { record, revision: entry.revision })
}

/// A write of a record.
pub(crate) fn put<T: Serialize>(key: String, expect: Expect, record: &T) -> Result<Write, StoreError> {
    let value = serde_json::to_vec(record).map_err(|error| StoreError::Io(std::io::Error::other(error)))?;
    Ok(Write::put(key, expect, value))
}

/// What to expect of a key that was just read.
pub(crate) fn unchanged<T>(found: Option<&Found<T>>) -> Expect {
    found.map_or(Expect::Absent, |found| Expect::At(found.revision))
}

/// Seconds since 1970; a clock before that counts as 1970.
pub(crate) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
