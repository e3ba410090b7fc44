//! The operator's manifests: kept as written, changed all together or not at all.

pub(crate) mod follow;

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use serde::{Deserialize, Serialize};
use signet_identity::{Class, TrustDomain};
use signet_policy::{
    Diagnostic, Kind, MAX_DIAGNOSTICS, MAX_MANIFESTS, Manifest, PolicyModel, compile, parse_manifests,
};
use signet_sync::MAX_SECTION_BYTES;
use signet_sync::proto::sync as wire;

use crate::clock;
use crate::diff::diff;
use crate::history::History;
use crate::records::{self, MANIFESTS, MANIFESTS_HEAD};
use crate::store::{Expect, Listing, Revision, Store, StoreError, WRITES_MAX, Write};

/// Manifests that one change can be about: a rollback may take away all there are, and put as many others in their place.
const CHANGED_MAX: usize = 2 * MAX_MANIFESTS;

// One key for each, one for what it was before, one that goes with the oldest version, whose change may have been as
// large, and those of the versions and the head.
const _: () = assert!(3 * CHANGED_MAX + 3 <= WRITES_MAX, "the largest change is one commit");

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
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
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
    /// The version that this made, or the one in force.
    pub(crate) version: u64,
    pub(crate) changes: Vec<Change>,
    pub(crate) diagnostics: Vec<Diagnostic>,
    /// What is valid but less safe than it could be.
    pub(crate) notes: Vec<Diagnostic>,
}

/// What happened, or would happen, to one manifest.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) action: Action,
    /// The lines that differ.
    pub(crate) diff: String,
}

/// What is wanted of each manifest that a change is about: the new one, or none at all.
type Wanted = BTreeMap<(Kind, String), Option<Manifest>>;

/// Bytes of all diffs in one answer; later ones are left out.
const DIFFS_MAX: usize = 512 * 1024;

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
            let damaged = |_| StoreError::Corrupted(format!("{} is no text", entry.key));
            let text = std::str::from_utf8(&entry.value).map_err(damaged)?;
            let manifest = stored_manifest(name, text)?;
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

    /// Whether there is or was a manifest: deleting the last one is a change too.
    pub(crate) fn ever_had_any(&self) -> bool {
        self.head.is_some()
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
        let history = History::load(store).await?;
        let new = match parse(files) {
            Ok(new) => new,
            Err(diagnostics) => return Ok(self.refused(&history, diagnostics)),
        };
        // Two of one name must come before the compiler as two.
        let replaced: BTreeSet<(Kind, &str)> = new.iter().map(|new| (new.kind(), new.name())).collect();
        let kept = self.entries.iter().filter(|((kind, name), _)| !replaced.contains(&(*kind, name)));
        let together: Vec<Manifest> =
            kept.map(|(_, stored)| stored.manifest.clone()).chain(new.iter().cloned()).collect();
        let model = match checked(&together, trust_domain) {
            Ok(model) => model,
            Err(diagnostics) => return Ok(self.refused(&history, diagnostics)),
        };
        // A Mesh can make a network of workloads that are stored already one with gateways.
        let looked_at = if new.iter().any(|new| new.kind() == Kind::Mesh) { &together } else { &new };
        let mut notes = notes(looked_at, &model);
        notes.extend(short_lives(&new, &model));
        notes.extend(over(&new, &model, records::unix_seconds(clock::machine())));
        let wanted = new.into_iter().map(|new| ((new.kind(), new.name().to_owned()), Some(new))).collect();
        let outcome = self.change(store, &history, &wanted, dry_run).await?;
        Ok(Outcome { notes, ..outcome })
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
        if !self.entries.contains_key(&place) {
            return Ok(None);
        }
        let history = History::load(store).await?;
        let wanted = Wanted::from([(place, None)]);
        if let Err(diagnostics) = self.checked_with(&wanted, trust_domain) {
            return Ok(Some(self.refused(&history, diagnostics)));
        }
        self.change(store, &history, &wanted, dry_run).await.map(Some)
    }

    /// Makes the manifests what they were at a version, or at the one before the one in force. `None` when that version
    /// is not kept.
    pub(crate) async fn rollback(
        &self,
        store: &dyn Store,
        trust_domain: &TrustDomain,
        version: Option<u64>,
        dry_run: bool,
    ) -> Result<Option<Outcome>, StoreError> {
        let history = History::load(store).await?;
        let version = match version {
            Some(version) => version,
            None if history.current() == 0 => return Ok(None),
            None => history.current() - 1,
        };
        if !(history.oldest()..=history.current()).contains(&version) {
            return Ok(None);
        }
        let mut wanted = Wanted::new();
        for (place, text) in history.undo(store, version).await? {
            let manifest = match text {
                Some(text) => Some(stored_manifest(&format!("{}/{}", place.0, place.1), &text)?),
                None => None,
            };
            wanted.insert(place, manifest);
        }
        // What was valid then can be refused by a newer program.
        if let Err(diagnostics) = self.checked_with(&wanted, trust_domain) {
            return Ok(Some(self.refused(&history, diagnostics)));
        }
        self.change(store, &history, &wanted, dry_run).await.map(Some)
    }

    /// Checks what there would be after a change.
    fn checked_with(&self, wanted: &Wanted, trust_domain: &TrustDomain) -> Result<(), Vec<Diagnostic>> {
        let kept = self.entries.iter().filter(|(place, _)| !wanted.contains_key(*place));
        let kept = kept.map(|(_, stored)| stored.manifest.clone());
        let together: Vec<Manifest> = kept.chain(wanted.values().flatten().cloned()).collect();
        if together.is_empty() {
            return Ok(());
        }
        checked(&together, trust_domain).map(|_| ())
    }

    /// Stores what is wanted, all of it in one commit, together with what it takes to undo it.
    async fn change(
        &self,
        store: &dyn Store,
        history: &History,
        wanted: &Wanted,
        dry_run: bool,
    ) -> Result<Outcome, StoreError> {
        let mut outcome = self.refused(history, Vec::new());
        let (mut writes, mut replaced, mut room) = (Vec::new(), Vec::new(), DIFFS_MAX);
        for ((kind, name), new) in wanted {
            let stored = self.entries.get(&(*kind, name.clone()));
            let (before, after) =
                (stored.map(|stored| stored.manifest.text()), new.as_ref().map(Manifest::text));
            let action = match (before, after) {
                (None, None) => continue,
                (None, Some(_)) => Action::Created,
                (Some(_), None) => Action::Deleted,
                (Some(before), Some(after)) if before == after => Action::Unchanged,
                (Some(_), Some(_)) => Action::Updated,
            };
            let mut shown = diff(before.unwrap_or_default(), after.unwrap_or_default());
            if shown.len() > room {
                shown.clear();
            }
            room -= shown.len();
            outcome.changes.push(Change { kind: *kind, name: name.clone(), action, diff: shown });
            if action == Action::Unchanged {
                continue;
            }
            let expect = stored.map_or(Expect::Absent, |stored| Expect::At(stored.revision));
            let key = format!("{MANIFESTS}{kind}/{name}");
            writes.push(match after {
                Some(text) => Write::put(key, expect, text.as_bytes().to_vec()),
                None => Write::delete(key, expect),
            });
            replaced.push((*kind, name.as_str(), action, before));
        }
        if dry_run || writes.is_empty() {
            return Ok(outcome);
        }
        let at = records::unix_seconds(clock::machine());
        writes.extend(history.record(store, at, &replaced).await?);
        let expect = self.head.map_or(Expect::Absent, Expect::At);
        writes.push(Write::put(MANIFESTS_HEAD, expect, at.to_string().into_bytes()));
        outcome.revision = store.commit(writes).await?;
        outcome.version += 1;
        Ok(outcome)
    }

    fn refused(&self, history: &History, diagnostics: Vec<Diagnostic>) -> Outcome {
        Outcome {
            revision: self.revision(),
            version: history.current(),
            changes: Vec::new(),
            diagnostics,
            notes: Vec::new(),
        }
    }
}

/// A manifest as it was stored; `name` is for whoever looks for the damage.
fn stored_manifest(name: &str, text: &str) -> Result<Manifest, StoreError> {
    let damaged = || StoreError::Corrupted(format!("{name} is not the manifest it was"));
    let parsed = parse_manifests(name, text).map_err(|_| damaged())?;
    let [manifest] = parsed.as_slice() else { return Err(damaged()) };
    Ok(manifest.clone())
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

/// Classes whose certificates may end before their offline budget: renewed at half their life, half of it is left for sure.
fn short_lives(manifests: &[Manifest], model: &PolicyModel) -> Vec<Diagnostic> {
    let Some(mesh) = manifests.iter().find(|manifest| manifest.kind() == Kind::Mesh) else {
        return Vec::new();
    };
    let note = |class: Class| {
        let (budget_s, left_s) = (model.offline.of(class)?.budget_s, model.lifetimes.of(class).as_secs() / 2);
        (budget_s > left_s).then(|| Diagnostic {
            file: mesh.file().to_owned(),
            line: mesh.line(),
            column: 1,
            message: format!(
                "workloads of class {class} may be offline for {budget_s} s, and their certificates last {left_s} s without the \
                 control plane for sure"
            ),
            fix: format!("give `certificates.{class}.lifetime` twice the budget"),
        })
    };
    [Class::Agent, Class::App, Class::External, Class::Platform].into_iter().filter_map(note).collect()
}

/// Role grants that are over before they begin.
fn over(manifests: &[Manifest], model: &PolicyModel, now: u64) -> Vec<Diagnostic> {
    let ended = |manifest: &&Manifest| {
        let grant = model.role_grants.iter().find(|grant| grant.name == manifest.name());
        manifest.kind() == Kind::RoleGrant && grant.is_some_and(|grant| !grant.is_in_force(now))
    };
    let note = |manifest: &Manifest| Diagnostic {
        file: manifest.file().to_owned(),
        line: manifest.line(),
        column: 1,
        message: format!("RoleGrant {} is over already", manifest.name()),
        fix: "give it a later `notAfter`, or delete it".to_owned(),
    };
    manifests.iter().filter(ended).map(note).take(MAX_DIAGNOSTICS).collect()
}

fn diagnostic(message: String, fix: String) -> Diagnostic {
    Diagnostic { file: String::new(), line: 0, column: 0, message, fix }
}
