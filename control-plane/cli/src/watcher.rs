//! For containers that were not made through the API proxy: pauses one that is to be meshed at its start event, puts a
//! sidecar into its namespace, and lets it go on.
//!
//! From its start until it is paused it runs without capture. How long that was is measured for each container and told.
//! What cannot be meshed stays paused, or is stopped where it cannot be paused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use signet_inject::compose::ROLE_LABEL;
use thiserror::Error;
use tokio::sync::Semaphore;

use crate::api_proxy::create::{BESIDE_LABEL, GROUP_LABEL, Settings, late_sidecar};
use crate::api_proxy::mounts::fault_of;
use crate::attestor::rules::{Choice, INJECT_LABEL, Refusal, WORKLOAD_LABEL};
use crate::attestor::{Attestor, AttestorError, Rules};
use crate::docker::operations::Image;
use crate::docker::{Container, Docker, DockerError};

/// Containers that are meshed at a time; others wait, paused.
const AT_ONCE: usize = 4;
/// How long a sidecar may take to have its rules in force and its policy.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// How often is looked.
const LOOK: Duration = Duration::from_millis(100);
/// How long before an engine that is away is tried again.
const AWAY: Duration = Duration::from_secs(2);
/// What a sidecar gets to end.
const END_LIMIT: Duration = Duration::from_secs(5);

/// Why a container is not meshed.
#[derive(Debug, Error)]
enum WatchError {
    #[error(transparent)]
    Attestor(#[from] AttestorError),
    #[error("the image {0} is gone")]
    Image(String),
    #[error(transparent)]
    Docker(#[from] DockerError),
    #[error("host-network: it is in the network {0}, which is not its own")]
    Network(String),
    #[error("its sidecar is not ready after {} s: {said}", READY_LIMIT.as_secs())]
    NotReady { said: String },
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(
        "reserved-label: the image has labels that a container itself has to have, or signet alone gives ({0}); fix: make the \
         image without them"
    )]
    ImageLabel(String),
    #[error("{0}")]
    Mount(String),
}

/// What it works with.
#[derive(Debug)]
pub(crate) struct Watcher {
    docker: Docker,
    attestor: Attestor,
    rules: Rules,
    settings: Settings,
    at_once: Semaphore,
}

impl Watcher {
    pub(crate) const fn new(docker: Docker, attestor: Attestor, rules: Rules, settings: Settings) -> Self {
        Self { docker, attestor, rules, settings, at_once: Semaphore::const_new(AT_ONCE) }
    }

    /// Watches for ever. What it did is told to `tell`, a line each.
    pub(crate) async fn watch(self: Arc<Self>, tell: fn(String)) {
        let mut away = false;
        loop {
            let Err(error) = self.follow(&mut away, tell).await;
            if !away {
                tell(format!("waiting for the engine: {error}"));
            }
            away = true;
            tokio::time::sleep(AWAY).await;
        }
    }

    async fn follow(
        self: &Arc<Self>,
        away: &mut bool,
        tell: fn(String),
    ) -> Result<std::convert::Infallible, DockerError> {
        // Asked for first, so that no start falls between looking and waiting.
        let mut changes = self.docker.events(&["start", "die", "destroy"]).await?;
        *away = false;
        self.meet_those_who_run(tell).await?;
        loop {
            let event = changes.event().await?;
            let id = event.actor.id;
            match event.action.as_str() {
                "start" => self.started(id, &event.actor.attributes, Some(event.time_nano), tell).await,
                "die" | "destroy" if workload_of(&self.rules, &event.actor.attributes).is_some() => {
                    let gone = event.action == "destroy";
                    let ended = self.ended(&id, &event.actor.attributes, gone).await;
                    if let Err(error) = ended {
                        tell(format!("{id}: its sidecar does not follow it: {error}"));
                    }
                }
                _ => {}
            }
        }
    }

    /// Those that started before somebody watched.
    async fn meet_those_who_run(self: &Arc<Self>, tell: fn(String)) -> Result<(), DockerError> {
        for listed in self.docker.running().await? {
            let labels = listed.labels.unwrap_or_default();
            if workload_of(&self.rules, &labels).is_some()
                && let Some(sidecar) = self.beside(&listed.id).await?
                && let Some(app) = self.docker.container(&listed.id).await?
                && sidecar.state.running
                && sidecar.state.started_at > app.state.started_at
            {
                continue;
            }
            self.started(listed.id, &labels, None, tell).await;
        }
        Ok(())
    }

    /// Pauses a container that only its image's labels keep out.
    async fn unmask(
        &self,
        id: &str,
        labels: &BTreeMap<String, String>,
        tell: fn(String),
    ) -> Result<(), DockerError> {
        if !MARKS.iter().any(|mark| labels.contains_key(*mark)) {
            return Ok(());
        }
        let Some(app) = self.docker.container(id).await? else { return Ok(()) };
        let Some(image) = self.docker.image(&app.image).await? else { return Ok(()) };
        if let Some(label) = of_image(&self.rules, labels, &image) {
            self.still(id).await?;
            tell(format!(
                "{} is not meshed and stays paused: {}",
                app.name.trim_start_matches('/'),
                WatchError::ImageLabel(label)
            ));
        }
        Ok(())
    }

    /// Pauses it at once; everything else takes its time.
    async fn started(
        self: &Arc<Self>,
        id: String,
        labels: &BTreeMap<String, String>,
        since: Option<u64>,
        tell: fn(String),
    ) {
        let Some(workload) = workload_of(&self.rules, labels) else {
            // Others are not to wait for that.
            let (watcher, labels) = (Arc::clone(self), labels.clone());
            tokio::spawn(async move {
                if let Err(error) = watcher.unmask(&id, &labels, tell).await {
                    tell(format!("{id}: whether its image's labels keep it out is not known: {error}"));
                }
            });
            return;
        };
        if let Err(error) = self.still(&id).await {
            tell(format!("{id}: it runs without a sidecar and can be neither paused nor stopped: {error}"));
            return;
        }
        let (paused, window) = (Instant::now(), since.map(since_event));
        let watcher = Arc::clone(self);
        tokio::spawn(async move {
            let Ok(_permit) = watcher.at_once.acquire().await else { return };
            let name = watcher.name(&id).await;
            match watcher.mesh(&id, &workload).await {
                Ok(()) => {
                    let window = window.map_or_else(
                        || "since before anybody watched".to_owned(),
                        |window| format!("for {:.1} ms", window.as_secs_f64() * 1e3),
                    );
                    let paused = paused.elapsed().as_secs_f64();
                    tell(format!(
                        "{name} is meshed as {workload}: it ran without capture {window}, and was paused for {paused:.1} s"
                    ));
                }
                Err(error) => tell(format!("{name} is not meshed and stays paused: {error}")),
            }
        });
    }

    /// Pauses a container; one that cannot be is stopped.
    async fn still(&self, id: &str) -> Result<(), DockerError> {
        if self.docker.pause(id).await.is_ok() {
            return Ok(());
        }
        match self.docker.container(id).await? {
            // Somebody did already, or it has ended by itself.
            None => Ok(()),
            Some(found) if found.state.paused || !found.state.running => Ok(()),
            Some(_) => self.docker.stop(id, Duration::ZERO).await,
        }
    }

    async fn mesh(&self, id: &str, workload: &str) -> Result<(), WatchError> {
        let Some(app) = self.docker.container(id).await? else { return Ok(()) };
        match app.host_config.network_mode.as_str() {
            "none" => return Ok(self.docker.unpause(id).await?),
            mode if mode == "host" || app.joined().is_some() => {
                return Err(WatchError::Network(mode.to_owned()));
            }
            _ => {}
        }
        let image =
            self.docker.image(&app.image).await?.ok_or_else(|| WatchError::Image(app.image.clone()))?;
        let labels = app.config.labels.clone().unwrap_or_default();
        if let Some(label) = of_image(&self.rules, &labels, &image) {
            return Err(WatchError::ImageLabel(label));
        }
        self.rules.attest(workload, &app.config.image, &image)?;
        if let Some(reason) = fault_of(&self.docker, &self.settings, &app).await? {
            return Err(WatchError::Mount(reason));
        }
        let known = self.attestor.vouch(id, workload, &app.addresses()).await;
        known.map_err(AttestorError::ControlPlane)?;
        let sidecar = match self.beside(id).await? {
            // Left behind in the namespace that was.
            Some(sidecar) => {
                self.docker.restart(&sidecar.id).await?;
                sidecar.id
            }
            None => self.put_beside(&app, workload).await?,
        };
        // Its policy, and the canary that tries whether anything passes by it.
        self.wait(&sidecar, &["/signet-proxy", "ready"]).await?;
        self.wait(&sidecar, &["/signet-proxy", "hold", "--check"]).await?;
        Ok(self.docker.unpause(id).await?)
    }

    async fn put_beside(&self, app: &Container, workload: &str) -> Result<String, WatchError> {
        for other in self.all_beside(&app.id).await? {
            self.docker.remove(&other.id).await?;
        }
        let body = late_sidecar(&self.settings, workload, &app.id);
        let name = format!("{}-sidecar", app.name.trim_start_matches('/'));
        let sidecar = self.docker.create("", &name, &body).await?;
        self.attestor.enrol(&self.docker, &sidecar, workload).await?;
        self.docker.start(&sidecar).await?;
        Ok(sidecar)
    }

    async fn wait(&self, sidecar: &str, check: &[&str]) -> Result<(), WatchError> {
        let until = Instant::now() + READY_LIMIT;
        loop {
            let said = match self.docker.execute(sidecar, check).await {
                Ok(ran) if ran.exit_code == 0 => return Ok(()),
                Ok(ran) => ran.said,
                // It may be starting anew.
                Err(error @ DockerError::Refused { .. }) => error.to_string(),
                Err(error) => return Err(error.into()),
            };
            if Instant::now() >= until {
                return Err(WatchError::NotReady { said });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The sidecar of a container that has ended is stopped, and goes with it.
    async fn ended(&self, id: &str, labels: &BTreeMap<String, String>, gone: bool) -> Result<(), WatchError> {
        let sidecars = self.all_beside(id).await?;
        if sidecars.is_empty() {
            return Ok(());
        }
        if !gone {
            // One that is starting anew already needs its sidecar.
            let up =
                self.docker.container(id).await?.is_some_and(|app| app.state.running || app.state.restarting);
            for sidecar in sidecars.iter().filter(|_| !up) {
                self.docker.stop(&sidecar.id, END_LIMIT).await?;
            }
            return Ok(());
        }
        for sidecar in &sidecars {
            self.docker.remove(&sidecar.id).await?;
        }
        let workload = workload_of(&self.rules, labels).unwrap_or_default();
        let told = self.attestor.vouch(id, &workload, &std::collections::BTreeSet::new()).await;
        Ok(told.map_err(AttestorError::ControlPlane)?)
    }

    /// Its sidecar: anybody can give the label, so what counts is its image and where it lives.
    async fn beside(&self, id: &str) -> Result<Option<Container>, DockerError> {
        let all = self.all_beside(id).await?;
        Ok(all.into_iter().find(|found| found.image == self.settings.image))
    }

    /// The same with those of another image, as before an upgrade.
    async fn all_beside(&self, id: &str) -> Result<Vec<Container>, DockerError> {
        let mut all = Vec::new();
        for listed in self.docker.labelled(&format!("{BESIDE_LABEL}={id}")).await? {
            let found = self.docker.container(&listed.id).await?;
            all.extend(found.filter(|found| found.joined() == Some(id)));
        }
        Ok(all)
    }

    async fn name(&self, id: &str) -> String {
        let found = self.docker.container(id).await.ok().flatten();
        found.map_or_else(|| id.to_owned(), |found| found.name.trim_start_matches('/').to_owned())
    }
}

/// Labels that decide whether a container is to be meshed, and as what.
const MARKS: [&str; 5] = [BESIDE_LABEL, GROUP_LABEL, INJECT_LABEL, ROLE_LABEL, WORKLOAD_LABEL];

/// The workload that a container with these labels is to be, if it is one for the watcher.
fn workload_of(rules: &Rules, labels: &BTreeMap<String, String>) -> Option<String> {
    if labels.contains_key(ROLE_LABEL) {
        return None;
    }
    match rules.choose(labels) {
        Choice::Workload(workload) => Some(workload),
        Choice::Out | Choice::Unnamed => None,
    }
}

/// The labels of an image that make another thing of its container than the container's own do. Of one that both have alike
/// nobody can tell whose it is: it counts as the image's.
fn of_image(rules: &Rules, labels: &BTreeMap<String, String>, image: &Image) -> Option<String> {
    let given: Vec<&str> = image
        .labels()
        .filter(|(name, value)| MARKS.contains(&&***name) && labels.get(*name) == Some(*value))
        .map(|(name, _)| &**name)
        .collect();
    let own = labels.iter().filter(|(name, _)| !given.contains(&&***name));
    let own = own.map(|(name, value)| (name.clone(), value.clone())).collect();
    (workload_of(rules, labels) != workload_of(rules, &own)).then(|| given.join(", "))
}

/// How long ago an event was, by the engine's clock, which is this machine's.
fn since_event(time_nano: u64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_nanos(time_nano))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_an_image_neither_keep_a_container_out_nor_name_it() {
        let rules = "workloads: [{name: web, images: [a], labels: {service: web}}, {name: api, images: [a]}]";
        let rules = Rules::parse("rules", rules).unwrap();
        let map = |labels: &[(&str, &str)]| -> BTreeMap<String, String> {
            labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let service = ("service", "web");
        for (own, of_its_image, expected) in [
            (&[service][..], &[][..], None),
            (&[service], &[("other", "x")], None),
            (&[service], &[(INJECT_LABEL, "false")], Some(INJECT_LABEL)),
            (&[service], &[(ROLE_LABEL, "app")], Some(ROLE_LABEL)),
            (&[service], &[(WORKLOAD_LABEL, "api")], Some(WORKLOAD_LABEL)),
            (&[], &[(WORKLOAD_LABEL, "api")], Some(WORKLOAD_LABEL)),
            (&[service, (INJECT_LABEL, "true")], &[(INJECT_LABEL, "false")], None),
            (&[], &[(ROLE_LABEL, "app")], None),
            // Alike: nobody can tell whose it is.
            (&[(WORKLOAD_LABEL, "api")], &[(WORKLOAD_LABEL, "api")], Some(WORKLOAD_LABEL)),
        ] {
            let image = serde_json::json!({ "Id": "sha256:0a", "Config": { "Labels": map(of_its_image) } });
            let image: Image = serde_json::from_value(image).unwrap();
            let mut labels = map(of_its_image);
            labels.extend(map(own));
            assert_eq!(of_image(&rules, &labels, &image).as_deref(), expected, "{own:?} {of_its_image:?}");
        }
    }
}
