//! The custom resources of the cluster become the mesh's manifests, and are told how they stand.
//!
//! ```text
//! one follow for each kind ─► Objects ─► manifests::follow ─► store ─► published ─► proxies acknowledge
//!                                │                                                          │
//!                                └──────────── status, at most STATUS_BURST a second ◄──────┘
//! ```
//!
//! Nothing is stored before every kind was listed once, so that what is not known yet is not taken for deleted. While the API
//! server is away, everything stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use serde_json::{Value, json};
use signet_policy::{API_VERSION, Kind, plural_of};
use signet_sync::{SectionName, Version};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::client::{Client, MERGE_PATCH};
use super::follow::{Collection, Event, follow};
use super::resource::{Rendered, render};
use super::status::{Difference, Standing, rfc3339, status};
use crate::manifests::Manifests;
use crate::manifests::follow::{Followed, Place};
use crate::records::unix_seconds;
use crate::services::Mesh;
use crate::store::StoreError;

/// How often it is looked at how far proxies are: they acknowledge within a second as a rule.
const TICK: Duration = Duration::from_secs(1);
/// Statuses written in one tick: a thousand resources are told within a minute and a half, and the API server's time is left
/// to others.
const STATUS_BURST: usize = 12;
/// How often a status is written in which nothing but the number of proxies changed: a rollout changes it with each pod.
const COUNT_PACE: Duration = Duration::from_secs(30);
/// How long it is waited for that what was stored is pushed, before it is told what is in force.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);
/// How often storing is tried again when something else writes at the same time.
const ATTEMPTS_MAX: usize = 8;

/// What is known of the cluster's resources.
#[derive(Default)]
struct Objects {
    listed: BTreeSet<Kind>,
    all: BTreeMap<Place, Arc<Object>>,
    /// Counts what was heard of them.
    heard: u64,
}

/// One resource.
struct Object {
    resource_version: String,
    generation: i64,
    rendered: Rendered,
    status: Value,
}

/// Follows and tells. Dropped, it stops.
pub(crate) struct Controller {
    client: Arc<Client>,
    mesh: Mesh,
    objects: Mutex<Objects>,
    changed: Notify,
}

/// What became of the resources when they were last stored.
#[derive(Default)]
struct Judged {
    /// What each text came to.
    verdicts: BTreeMap<Place, Verdict>,
    /// Counts how often.
    rounds: u64,
}

/// What statuses are made from; the same makes the same.
type Facts = (u64, u64, Vec<Option<Version>>);

struct Verdict {
    text: String,
    accepted: Result<(), (&'static str, String)>,
    /// The version of the policy from which on it is in force.
    since: Version,
}

impl Controller {
    pub(crate) fn new(client: Arc<Client>, mesh: Mesh) -> Self {
        Self { client, mesh, objects: Mutex::default(), changed: Notify::new() }
    }

    /// Never returns.
    pub(crate) async fn run(&self) {
        let following = join_all(Kind::ALL.into_iter().map(|kind| self.follow(kind)));
        tokio::select! {
            _ = following => {}
            () = self.reconcile() => {}
        }
    }

    async fn follow(&self, kind: Kind) {
        let collection = Collection { path: path(kind), query: None };
        let never = follow(&self.client, &collection, |event| {
            self.objects().take(kind, event);
            self.changed.notify_one();
        });
        match never.await {}
    }

    async fn reconcile(&self) {
        let (mut judged, mut due) = (Judged::default(), true);
        let (mut counted, mut told): (_, Option<Facts>) = (BTreeMap::new(), None);
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                () = self.changed.notified() => due = true,
                _ = tick.tick() => {}
            }
            if due && self.objects().listed.len() == Kind::ALL.len() {
                due = match self.store(&mut judged).await {
                    Ok(()) => false,
                    Err(error) => {
                        tracing::error!(%error, "resources cannot be stored; what is in force stays");
                        true
                    }
                };
            }
            let facts = (self.objects().heard, judged.rounds, self.acknowledged());
            if told.as_ref() != Some(&facts) && self.tell(&judged, &facts.2, &mut counted).await {
                // What was written meanwhile is heard of, and looked at once more.
                told = Some(facts);
            }
        }
    }

    /// Makes the resources the mesh's manifests.
    async fn store(&self, judged: &mut Judged) -> Result<(), StoreError> {
        let objects: BTreeMap<Place, Rendered> = self
            .objects()
            .all
            .iter()
            .map(|(place, object)| (place.clone(), object.rendered.clone()))
            .collect();
        let texts = objects.iter().map(|(place, rendered)| (place.clone(), rendered.text.clone())).collect();
        let followed = self.stored(&texts).await?;
        let mut published = self.mesh.published.clone();
        if let Some(outcome) = &followed.outcome {
            let changes = outcome.changes.len();
            if changes > 0 {
                tracing::info!(
                    revision = outcome.revision.0,
                    version = outcome.version,
                    changes,
                    "resources stored"
                );
            }
            for note in &outcome.notes {
                tracing::info!(resource = note.file, "{}", note.message);
            }
            let pushed = published.wait_for(|published| published.revision >= outcome.revision);
            let _ = tokio::time::timeout(PUBLISH_TIMEOUT, pushed).await;
        }
        let section =
            published.borrow().sections.get(&SectionName::Policy).map(|section| Version::from(&**section));
        let since = section.unwrap_or(Version::FIRST);
        let mut verdicts = BTreeMap::new();
        for (place, rendered) in objects {
            let accepted = verdict(&place, &rendered, &followed);
            if let Err((reason, message)) = &accepted {
                tracing::warn!(kind = %place.0, name = place.1, reason, message, "a resource is not accepted");
            }
            // What was in force before in the same words has been so since then.
            let before = judged
                .verdicts
                .remove(&place)
                .filter(|before| before.text == rendered.text && before.accepted.is_ok());
            let since = before.map_or(since, |before| before.since);
            verdicts.insert(place, Verdict { text: rendered.text, accepted, since });
        }
        judged.verdicts = verdicts;
        judged.rounds += 1;
        Ok(())
    }

    async fn stored(&self, texts: &BTreeMap<Place, String>) -> Result<Followed, StoreError> {
        let mut last = None;
        for _ in 0..ATTEMPTS_MAX {
            let known = self.mesh.published.borrow().manifests.clone();
            let manifests = Manifests::load(&*self.mesh.store, &known).await?;
            let trust_domain = self.mesh.authority.trust_domain();
            match manifests.follow(&*self.mesh.store, trust_domain, texts).await {
                Err(error @ StoreError::Conflict { .. }) => last = Some(error),
                done => return done,
            }
        }
        Err(last.unwrap_or_else(|| StoreError::Corrupted("no attempt was made".to_owned())))
    }

    /// Writes statuses that say something else than they did; whether all are told now.
    async fn tell(
        &self,
        judged: &Judged,
        acknowledged: &[Option<Version>],
        counted: &mut BTreeMap<Place, Instant>,
    ) -> bool {
        let (now, at) = (Instant::now(), rfc3339(unix_seconds(self.mesh.clock.best())));
        let objects = self.objects().all.clone();
        counted.retain(|place, _| objects.contains_key(place));
        let (mut written, mut all) = (0, true);
        for (place, object) in objects {
            // What has changed since it was judged is told when it was judged again.
            let verdict = judged.verdicts.get(&place).filter(|verdict| verdict.text == object.rendered.text);
            let Some(verdict) = verdict else { continue };
            let standing = Standing {
                generation: object.generation,
                accepted: verdict.accepted.clone(),
                programmed: acknowledged.iter().filter(|version| **version >= Some(verdict.since)).count(),
                proxies: acknowledged.len(),
            };
            let (new, difference) = status(&standing, &object.status, &at);
            let recently = || counted.get(&place).is_some_and(|last| now.duration_since(*last) < COUNT_PACE);
            match difference {
                Difference::None => continue,
                Difference::Count if recently() => {
                    all = false;
                    continue;
                }
                Difference::Count | Difference::Meaning => {}
            }
            if written == STATUS_BURST || !self.write(&place, &object, new).await {
                return false;
            }
            counted.insert(place, now);
            written += 1;
        }
        all
    }

    /// The version of the policy that each connected proxy has in force.
    fn acknowledged(&self) -> Vec<Option<Version>> {
        let streams = self.mesh.streams.of_instances().into_values();
        let policy = |sections: &[signet_sync::SectionState]| {
            sections
                .iter()
                .find(|section| section.name == SectionName::Policy)
                .and_then(|section| section.acked)
        };
        streams.map(|stream| policy(&stream.report().sections)).collect()
    }

    /// Whether to go on: not when the API server is away.
    async fn write(&self, place: &Place, object: &Object, status: Value) -> bool {
        let (kind, name) = place;
        let change = json!({ "metadata": { "resourceVersion": object.resource_version }, "status": status });
        match self.client.patch(&format!("{}/{name}/status", path(*kind)), MERGE_PATCH, &change).await {
            Ok(new) => {
                // The watch says so too, later: until then this is what it looks like.
                self.objects().replace(*kind, &new);
                true
            }
            // Somebody changed or deleted it meanwhile; the watch says so, and then it is looked at again.
            Err(error) if error.is(StatusCode::CONFLICT) || error.is(StatusCode::NOT_FOUND) => true,
            Err(error) => {
                tracing::warn!(%kind, name, %error, "a status cannot be written");
                false
            }
        }
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Objects {
    fn take(&mut self, kind: Kind, event: Event) {
        self.heard += 1;
        match event {
            Event::Replaced(objects) => {
                self.all.retain(|(other, _), _| *other != kind);
                objects.iter().for_each(|object| self.put(kind, object));
                self.listed.insert(kind);
            }
            Event::Changed(object) => self.put(kind, &object),
            Event::Deleted(object) => {
                if let Some(name) = object["metadata"]["name"].as_str() {
                    self.all.remove(&(kind, name.to_owned()));
                }
            }
        }
    }

    /// Takes what a write answered with, unless something else is known by now.
    fn replace(&mut self, kind: Kind, object: &Value) {
        let Some(name) = object["metadata"]["name"].as_str() else { return };
        let generation = object["metadata"]["generation"].as_i64();
        let known = self.all.get(&(kind, name.to_owned()));
        if known.is_some_and(|known| Some(known.generation) == generation) {
            self.put(kind, object);
        }
    }

    fn put(&mut self, kind: Kind, object: &Value) {
        let metadata = &object["metadata"];
        let Some(name) = metadata["name"].as_str() else { return };
        let read = Object {
            resource_version: metadata["resourceVersion"].as_str().unwrap_or_default().to_owned(),
            generation: metadata["generation"].as_i64().unwrap_or_default(),
            rendered: render(kind, name, &object["spec"]),
            status: object["status"].clone(),
        };
        self.all.insert((kind, name.to_owned()), Arc::new(read));
        self.heard += 1;
    }
}

fn path(kind: Kind) -> String {
    format!("/apis/{API_VERSION}/{}", plural_of(kind))
}

/// What is to be told of one resource.
fn verdict(place: &Place, rendered: &Rendered, followed: &Followed) -> Result<(), (&'static str, String)> {
    if let Some(faults) = followed.faults.get(place) {
        let mut told: Vec<String> = faults.iter().map(|fault| rendered.told(fault)).collect();
        if !followed.needed.is_empty() {
            let kept: Vec<String> =
                followed.needed.iter().map(|(kind, name)| format!("{kind}/{name}")).collect();
            told.push(format!(
                "what it needs was deleted and stays in force until it does not need it: {}",
                kept.join(", ")
            ));
        }
        return Err(("Invalid", told.join("\n")));
    }
    if followed.outcome.is_some() {
        return Ok(());
    }
    let whole =
        followed.refused.iter().map(|fault| format!("{}: {}; fix: {}", fault.file, fault.message, fault.fix));
    let whole: Vec<String> = whole.collect();
    match whole.as_slice() {
        [] => Err((
            "NoMesh",
            "there is no Mesh that is accepted, and nothing counts without one; fix: apply one".to_owned(),
        )),
        faults => Err(("Refused", format!("all resources together are refused: {}", faults.join("\n")))),
    }
}
