//! A meshed container and what stands beside it: a holder that owns the network, and the sidecar. They follow it: up
//! before it, down after it, gone with it.

mod follow;
mod trust;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use signet_inject::compose::{ROLE_HOLDER, ROLE_LABEL};
use thiserror::Error;

pub(crate) use self::trust::Trust;
use crate::api_proxy::create::{GROUP_LABEL, ROLE_APP, ROLE_SIDECAR};
use crate::attestor::rules::{Refusal, WORKLOAD_LABEL};
use crate::attestor::{Attestor, AttestorError};
use crate::docker::operations::Listed;
use crate::docker::{Container, Docker, DockerError};

/// How long a holder may take to have its rules in force: they are one message to the kernel.
const HOLD_LIMIT: Duration = Duration::from_secs(20);
/// How long a sidecar may take to enrol and get its policy. Clients of the API wait a minute for an answer.
const READY_LIMIT: Duration = Duration::from_secs(40);
/// How long a sidecar that has an identity may take before it is given a new token: the old one may have ended.
const RENEW_AFTER: Duration = Duration::from_secs(8);
/// How often is looked. A look takes the engine some 50 ms.
const LOOK: Duration = Duration::from_millis(100);
/// What a sidecar gets to end: nobody talks through it any more.
const END_LIMIT: Duration = Duration::from_secs(5);
/// When a container was started that never was.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// Why a container's sidecar is not there.
#[derive(Debug, Error)]
pub(crate) enum GroupError {
    #[error(transparent)]
    Attestor(#[from] AttestorError),
    #[error(transparent)]
    Docker(#[from] DockerError),
    #[error("its {0} is gone; fix: make the container anew")]
    Gone(&'static str),
    #[error("group-not-ours: {0}; fix: make the container anew")]
    NotOurs(&'static str),
    #[error("its {what} is not ready after {} s: {said}", limit.as_secs())]
    NotReady { what: &'static str, limit: Duration, said: String },
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// The three containers.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) id: String,
    pub(crate) workload: String,
    app: Option<Listed>,
    holder: Option<Listed>,
    sidecar: Option<Listed>,
}

/// All groups of an engine.
#[derive(Debug)]
pub(crate) struct Groups {
    pub(crate) docker: Docker,
    attestor: Attestor,
    pub(crate) trust: Trust,
    /// Held while a group is changed; an entry for each group that is.
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// What was vouched for last, by group.
    vouched: Mutex<HashMap<String, BTreeSet<IpAddr>>>,
}

impl Group {
    /// Puts the containers of one group together. An app counts only if it lives in the holder's namespace: images made of
    /// a meshed container have its labels, too.
    fn of(id: &str, listed: impl IntoIterator<Item = Listed>) -> Self {
        let (mut holder, mut sidecar, mut apps) = (None, None, Vec::new());
        let mut workload = String::new();
        for each in listed.into_iter().filter(|each| each.label(GROUP_LABEL) == Some(id)) {
            match each.label(ROLE_LABEL) {
                Some(ROLE_HOLDER) => {
                    workload = each.label(WORKLOAD_LABEL).unwrap_or_default().to_owned();
                    holder = Some(each);
                }
                Some(ROLE_SIDECAR) => sidecar = Some(each),
                Some(ROLE_APP) => apps.push(each),
                _ => {}
            }
        }
        let home = holder.as_ref().map(|holder: &Listed| format!("container:{}", holder.id));
        let app = apps.into_iter().find(|app| Some(&app.host_config.network_mode) == home.as_ref());
        Self { id: id.to_owned(), workload, app, holder, sidecar }
    }

    /// The holder's id.
    pub(crate) fn holder(&self) -> Result<&str, GroupError> {
        self.holder.as_ref().map(|holder| &*holder.id).ok_or(GroupError::Gone("holder"))
    }

    /// The sidecar's id.
    pub(crate) fn sidecar(&self) -> Result<&str, GroupError> {
        self.sidecar.as_ref().map(|sidecar| &*sidecar.id).ok_or(GroupError::Gone("sidecar"))
    }

    /// The app's name.
    pub(crate) fn name(&self) -> Option<&str> {
        let name = self.app.as_ref()?.names.as_ref()?.first()?;
        Some(name.trim_start_matches('/'))
    }
}

impl Groups {
    pub(crate) fn new(docker: Docker, attestor: Attestor, trust: Trust) -> Self {
        Self { docker, attestor, trust, locks: Mutex::default(), vouched: Mutex::default() }
    }

    /// The group of a meshed container; `None` for any other.
    pub(crate) async fn of(&self, container: &str) -> Result<Option<Group>, DockerError> {
        // What is asked for is in a path here; what cannot be one is nobody's name.
        let known = |letter: u8| letter.is_ascii_alphanumeric() || b"_.-".contains(&letter);
        if container.is_empty() || !container.bytes().all(known) {
            return Ok(None);
        }
        let Some(found) = self.docker.container(container).await? else { return Ok(None) };
        if found.label(ROLE_LABEL) != Some(ROLE_APP) {
            return Ok(None);
        }
        let Some(id) = found.label(GROUP_LABEL) else { return Ok(None) };
        let group = self.named(id).await?;
        Ok(group.app.as_ref().is_some_and(|app| app.id == found.id).then_some(group))
    }

    /// What the containers of this label are, whoever gave it to them.
    pub(crate) async fn named(&self, id: &str) -> Result<Group, DockerError> {
        Ok(Group::of(id, self.docker.labelled(&format!("{GROUP_LABEL}={id}")).await?))
    }

    /// Keeps others from changing a group meanwhile.
    pub(crate) async fn lock(&self, group: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(group.to_owned()).or_default())
        };
        lock.lock_owned().await
    }

    /// The same, unless somebody is at it.
    fn try_lock(&self, group: &str) -> Option<tokio::sync::OwnedMutexGuard<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(locks.entry(group.to_owned()).or_default()).try_lock_owned().ok()
    }

    /// Has holder and sidecar up: rules in force, then an identity and a policy. Returns only then.
    pub(crate) async fn raise(&self, group: &Group) -> Result<(), GroupError> {
        self.verified(group).await?;
        let (holder, sidecar) = (group.holder()?, group.sidecar()?);
        let running = self.present(holder, "holder").await?.state.running;
        if !running {
            // Of the namespace that was.
            self.docker.stop(sidecar, END_LIMIT).await?;
            self.docker.start(holder).await?;
        }
        self.wait("holder", holder, &["/signet-proxy", "hold", "--check"], HOLD_LIMIT).await?;
        let holding = self.present(holder, "holder").await?;
        // Without the control plane what was vouched for before still counts.
        let vouched = self.vouch(group, &holding.addresses()).await;
        let beside = self.present(sidecar, "sidecar").await?;
        let first = beside.state.started_at == crate::docker::Moment::of(NEVER);
        if first {
            vouched?;
            self.attestor.enrol(&self.docker, sidecar, &group.workload).await?;
        }
        if !beside.state.running {
            self.docker.start(sidecar).await?;
        } else if beside.state.started_at < holding.state.started_at {
            self.docker.restart(sidecar).await?;
        }
        self.ready(group, sidecar, first).await
    }

    async fn ready(&self, group: &Group, sidecar: &str, first: bool) -> Result<(), GroupError> {
        let check = ["/signet-proxy", "ready"];
        if first {
            return self.wait("sidecar", sidecar, &check, READY_LIMIT).await;
        }
        match self.wait("sidecar", sidecar, &check, RENEW_AFTER).await {
            Err(GroupError::NotReady { .. }) => {}
            done => return done,
        }
        self.attestor.enrol(&self.docker, sidecar, &group.workload).await?;
        self.wait("sidecar", sidecar, &check, READY_LIMIT).await
    }

    async fn wait(
        &self,
        what: &'static str,
        id: &str,
        check: &[&str],
        limit: Duration,
    ) -> Result<(), GroupError> {
        let until = Instant::now() + limit;
        loop {
            let said = match self.docker.execute(id, check).await {
                Ok(ran) if ran.exit_code == 0 => return Ok(()),
                Ok(ran) => ran.said,
                // It may be starting anew.
                Err(error @ DockerError::Refused { .. }) => error.to_string(),
                Err(error) => return Err(error.into()),
            };
            if Instant::now() >= until {
                return Err(GroupError::NotReady { what, limit, said });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Tells the control plane where the group is reached.
    pub(crate) async fn vouch(&self, group: &Group, addresses: &BTreeSet<IpAddr>) -> Result<(), GroupError> {
        let known =
            self.vouched.lock().unwrap_or_else(PoisonError::into_inner).get(&group.id) == Some(addresses);
        if known {
            return Ok(());
        }
        // That nobody is there any more needs no proof.
        if !addresses.is_empty() {
            self.verified(group).await?;
        }
        self.attestor
            .vouch(&group.id, &group.workload, addresses)
            .await
            .map_err(AttestorError::ControlPlane)?;
        remember(&mut self.vouched.lock().unwrap_or_else(PoisonError::into_inner), &group.id, addresses);
        Ok(())
    }

    /// The same, after its networks have changed.
    pub(crate) async fn vouch_anew(&self, group: &Group) -> Result<(), GroupError> {
        let holder = self.present(group.holder()?, "holder").await?;
        if holder.state.running {
            self.vouch(group, &holder.addresses()).await?;
        }
        Ok(())
    }

    /// Lets holder and sidecar follow an app that may have ended or gone. Whether there was anything to do.
    pub(crate) async fn settle(&self, group: &Group) -> Result<bool, GroupError> {
        let app = match &group.app {
            Some(app) => self.docker.container(&app.id).await?,
            None => None,
        };
        match app {
            Some(app) if app.state.running || app.state.restarting => Ok(false),
            Some(_) => self.lower(group).await,
            None => self.clear(group).await.map(|()| true),
        }
    }

    /// Stops them, the sidecar first.
    async fn lower(&self, group: &Group) -> Result<bool, GroupError> {
        let mut done = false;
        for each in [&group.sidecar, &group.holder].into_iter().flatten() {
            let Some(found) = self.docker.container(&each.id).await? else { continue };
            if found.state.running || found.state.restarting {
                self.docker.stop(&each.id, END_LIMIT).await?;
                done = true;
            }
        }
        Ok(done)
    }

    /// Removes them, with the keys, and tells the control plane that nobody is there any more.
    pub(crate) async fn clear(&self, group: &Group) -> Result<(), GroupError> {
        for each in [&group.sidecar, &group.holder].into_iter().flatten() {
            self.docker.remove(&each.id).await?;
        }
        self.vouch(group, &BTreeSet::new()).await
    }

    async fn present(&self, id: &str, what: &'static str) -> Result<Container, GroupError> {
        self.docker.container(id).await?.ok_or(GroupError::Gone(what))
    }
}

/// Notes what was vouched for. An address has one owner: who had it before has to be vouched for anew, should it get it back.
fn remember(vouched: &mut HashMap<String, BTreeSet<IpAddr>>, group: &str, addresses: &BTreeSet<IpAddr>) {
    vouched.retain(|other, held| other != group && held.is_disjoint(addresses));
    if !addresses.is_empty() {
        vouched.insert(group.to_owned(), addresses.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gets_an_address_back_is_vouched_for_again() {
        let one = |address: &str| BTreeSet::from([address.parse().unwrap()]);
        let mut vouched = HashMap::new();
        remember(&mut vouched, "a", &one("10.0.0.2"));
        remember(&mut vouched, "b", &one("10.0.0.3"));
        // The engine has restarted: they come back in another order, and then as they were.
        remember(&mut vouched, "a", &one("10.0.0.3"));
        assert_eq!(vouched.get("b"), None, "nothing is vouched for b any more");
        remember(&mut vouched, "b", &one("10.0.0.2"));
        remember(&mut vouched, "a", &BTreeSet::new());
        assert_eq!(vouched, HashMap::from([("b".to_owned(), one("10.0.0.2"))]));
    }
}
