//! The operator's manifests: kept as written, changed all together or not at all.

use std::collections::BTreeMap;
use std::time::SystemTime;

use prost::Message as _;
use signet_identity::TrustDomain;
use signet_policy::{Diagnostic, Kind, MAX_DIAGNOSTICS, Manifest, PolicyModel, compile, parse_manifests};
use signet_sync::MAX_SECTION_BYTES;
use signet_sync::proto::sync as wire;

use crate::records::{self, MANIFESTS, MANIFESTS_HEAD};
use crate::store::{Expect, Listing, Revision, Store, StoreError, Write};

/// Files in one `apply`: a folder of them, not a disk.
const FILES_MAX: usize = 4_096;

/// The manifests in force.
#[derive(Clone, Debug, Default)]
pub(crate) struct Manifests {
    /// The commit that last changed any of them; none when there never was one.
    head: Option<Revision>,
    entries: BTreeMap<(Kind, String), Stored>,
}

#[derive(Clone, Debug)]
struct Stored {
    manifest: Manifest,
    revision: Revision,
}

/// What a change does to one manifest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Action {
    Created,
    Deleted,
    Unchanged,
    Updated,
}

/// The outcome of a change. Diagnostics mean that nothing was stored.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) revision: Revision,
    pub(crate) changes: Vec<(Kind, String, Action)>,
    pub(crate) diagnostics: Vec<Diagnostic>,
    /// What is valid but less safe than it could be.
    pub(crate) notes: Vec<Diagnostic>,
}

/// One manifest as listed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Item<'a> {
    pub(crate) kind: Kind,
    pub(crate) name: &'a str,
    pub(crate) yaml: &'a str,
}

impl Manifests {
    /// The commit that last changed a manifest in a listing that has [`MANIFESTS_HEAD`] in it.
    pub(crate) fn revision_in(listing: &Listing) -> Revision {
        let head = listing.entries.iter().find(|entry| entry.key == MANIFESTS_HEAD);
        head.map_or_else(Revision::default, |head| head.revision)
    }

    /// Reads all manifests; those that are as in `known` are not parsed again.
    pub(crate) async fn load(store: &dyn Store, known: &Self) -> Result<Self, StoreError> {
        // The head and the manifests share this prefix, so one listing sees both at one revision.
        Self::from_listing(&store.list(MANIFESTS_HEAD.trim_end_matches('s')).await?, known)
    }

    /// Picks the manifests out of a listing of more; those that are as in `known` are not parsed again.
    pub(crate) fn from_listing(listing: &Listing, known: &Self) -> Result<Self, StoreError> {
        let mut manifests = Self::default();
        for entry in &listing.entries {
            if entry.key == MANIFESTS_HEAD {
                manifests.head = Some(entry.revision);
            }
            let Some(name) = entry.key.strip_prefix(MANIFESTS) else { continue };
            if let Some((place, stored)) = known.stored(name, entry.revision) {
                manifests.entries.insert(place, stored.clone());
                continue;
            }
            let damaged = || StoreError::Corrupted(format!("{} is not the manifest it was", entry.key));
            let text = std::str::from_utf8(&entry.value).map_err(|_| damaged())?;
            let parsed = parse_manifests(name, text).map_err(|_| damaged())?;
            let [manifest] = parsed.as_slice() else { return Err(damaged()) };
            let stored = Stored { manifest: manifest.clone(), revision: entry.revision };
            manifests.entries.insert((manifest.kind(), manifest.name().to_owned()), stored);
        }
        Ok(manifests)
    }

    /// The manifest stored as `<kind>/<name>` by that very commit.
    fn stored(&self, name: &str, revision: Revision) -> Option<((Kind, String), &Stored)> {
        let (kind, name) = name.split_once('/')?;
        let place = (kind.parse().ok()?, name.to_owned());
        let stored = self.entries.get(&place).filter(|stored| stored.revision == revision)?;
        Some((place, stored))
    }

    /// The commit that last changed any of them, zero before the first: equal revisions mean equal manifests.
    pub(crate) fn revision(&self) -> Revision {
        self.head.unwrap_or_default()
    }

    /// The compiled policy; what denies everything when there is no manifest at all.
    pub(crate) fn model(&self, trust_domain: &TrustDomain) -> Result<PolicyModel, Vec<Diagnostic>> {
        if self.entries.is_empty() {
            return Ok(PolicyModel::empty(trust_domain.clone()));
        }
        let manifests: Vec<Manifest> = self.entries.values().map(|stored| stored.manifest.clone()).collect();
        checked(&manifests, trust_domain)
    }

    /// All manifests of a kind (or every kind) and name (or every name).
    pub(crate) fn items<'a>(
        &'a self,
        kind: Option<Kind>,
        name: Option<&'a str>,
    ) -> impl Iterator<Item = Item<'a>> {
        self.entries
            .iter()
            .filter(move |((its_kind, its_name), _)| {
                kind.is_none_or(|kind| kind == *its_kind) && name.is_none_or(|name| name == its_name)
            })
            .map(|((kind, name), stored)| Item { kind: *kind, name, yaml: stored.manifest.text() })
    }

    /// Adds or replaces manifests; nothing is stored when anything is wrong, or on `dry_run`.
    pub(crate) async fn apply(
        &self,
        store: &dyn Store,
        trust_domain: &TrustDomain,
        files: &[(&str, &str)],
        dry_run: bool,
    ) -> Result<Outcome, StoreError> {
        let new = match parse(files) {
            Ok(new) => new,
            Err(diagnostics) => return Ok(self.refused(diagnostics)),
        };
        let replaced =
            |kind: Kind, name: &str| new.iter().any(|new| new.kind() == kind && new.name() == name);
        let kept = self.entries.iter().filter(|((kind, name), _)| !replaced(*kind, name));
        let together: Vec<Manifest> =
            kept.map(|(_, stored)| stored.manifest.clone()).chain(new.iter().cloned()).collect();
        let model = match checked(&together, trust_domain) {
            Ok(model) => model,
            Err(diagnostics) => return Ok(self.refused(diagnostics)),
        };
        let mut outcome = self.refused(Vec::new());
        // A Mesh can make a network of workloads that are stored already one with gateways.
        let looked_at = if new.iter().any(|new| new.kind() == Kind::Mesh) { &together } else { &new };
        outcome.notes = notes(looked_at, &model);
        let mut writes = Vec::new();
        for manifest in &new {
            let stored = self.entries.get(&(manifest.kind(), manifest.name().to_owned()));
            let action = match stored {
                None => Action::Created,
                Some(stored) if stored.manifest.text() == manifest.text() => Action::Unchanged,
                Some(_) => Action::Updated,
            };
            if action != Action::Unchanged {
                let expect = stored.map_or(Expect::Absent, |stored| Expect::At(stored.revision));
                writes.push(Write::put(key(manifest), expect, manifest.text().as_bytes().to_vec()));
            }
            outcome.changes.push((manifest.kind(), manifest.name().to_owned(), action));
        }
        if !dry_run {
            outcome.revision = self.commit(store, writes).await?;
        }
        Ok(outcome)
    }

    /// Removes one manifest, unless the rest would not be valid without it.
    pub(crate) async fn delete(
        &self,
        store: &dyn Store,
        trust_domain: &TrustDomain,
        kind: Kind,
        name: &str,
        dry_run: bool,
    ) -> Result<Option<Outcome>, StoreError> {
        let place = (kind, name.to_owned());
        let Some(stored) = self.entries.get(&place) else { return Ok(None) };
        let rest: Vec<Manifest> = self
            .entries
            .iter()
            .filter(|(other, _)| **other != place)
            .map(|(_, stored)| stored.manifest.clone())
            .collect();
        if !rest.is_empty()
            && let Err(diagnostics) = checked(&rest, trust_domain)
        {
            return Ok(Some(self.refused(diagnostics)));
        }
        let mut outcome = self.refused(Vec::new());
        outcome.changes.push((kind, name.to_owned(), Action::Deleted));
        if !dry_run {
            let write = Write::delete(key(&stored.manifest), Expect::At(stored.revision));
            outcome.revision = self.commit(store, vec![write]).await?;
        }
        Ok(Some(outcome))
    }

    async fn commit(&self, store: &dyn Store, mut writes: Vec<Write>) -> Result<Revision, StoreError> {
        if writes.is_empty() {
            return Ok(self.revision());
        }
        let stamp = records::unix_seconds(SystemTime::now()).to_string();
        let expect = self.head.map_or(Expect::Absent, Expect::At);
        writes.push(Write::put(MANIFESTS_HEAD, expect, stamp.into_bytes()));
        store.commit(writes).await
    }

    fn refused(&self, diagnostics: Vec<Diagnostic>) -> Outcome {
        Outcome { revision: self.revision(), changes: Vec::new(), diagnostics, notes: Vec::new() }
    }
}

fn key(manifest: &Manifest) -> String {
    format!("{MANIFESTS}{}/{}", manifest.kind(), manifest.name())
}

fn parse(files: &[(&str, &str)]) -> Result<Vec<Manifest>, Vec<Diagnostic>> {
    if files.len() > FILES_MAX {
        return Err(vec![diagnostic(
            format!("{} files are more than one change may have", files.len()),
            format!("apply at most {FILES_MAX} files at a time"),
        )]);
    }
    let mut manifests = Vec::new();
    let mut diagnostics = Vec::new();
    for (name, text) in files {
        match parse_manifests(name, text) {
            Ok(parsed) => manifests.extend(parsed),
            Err(found) => diagnostics.extend(found),
        }
    }
    if diagnostics.is_empty() { Ok(manifests) } else { Err(diagnostics) }
}

/// Compiles, and checks what only the control plane can know.
fn checked(manifests: &[Manifest], trust_domain: &TrustDomain) -> Result<PolicyModel, Vec<Diagnostic>> {
    let model = compile(manifests)?;
    if model.trust_domain != *trust_domain {
        return Err(vec![diagnostic(
            format!("the mesh's trust domain is {}, not {}", trust_domain, model.trust_domain),
            format!("set the Mesh's trustDomain to {trust_domain}"),
        )]);
    }
    let bytes = wire::Policy::from(&model).encoded_len();
    if bytes > MAX_SECTION_BYTES {
        return Err(vec![diagnostic(
            format!("the compiled policy is {bytes} bytes, more than a proxy takes"),
            format!("keep it under {MAX_SECTION_BYTES} bytes: fewer or broader rules"),
        )]);
    }
    Ok(model)
}

/// Workloads behind a gateway that anybody else behind it could pass for, as long as they are not there.
fn notes(manifests: &[Manifest], model: &PolicyModel) -> Vec<Diagnostic> {
    let exposed = |manifest: &&Manifest| {
        let workload = model.workload_named(manifest.name()).filter(|_| manifest.kind() == Kind::Workload);
        workload.is_some_and(|workload| {
            let gateways =
                model.network(&workload.network).is_some_and(|network| !network.gateways.is_empty());
            gateways && workload.addresses.is_empty()
        })
    };
    let note = |manifest: &Manifest| Diagnostic {
        file: manifest.file().to_owned(),
        line: manifest.line(),
        column: 1,
        message: format!(
            "Workload {} lists no addresses in a network with gateways: whoever behind a gateway claims its address \
             first, gets it",
            manifest.name()
        ),
        fix: "give it `addresses`, unless all workloads behind the gateways trust each other".to_owned(),
    };
    manifests.iter().filter(exposed).map(note).take(MAX_DIAGNOSTICS).collect()
}

fn diagnostic(message: String, fix: String) -> Diagnostic {
    Diagnostic { file: String::new(), line: 0, column: 0, message, fix }
}
