//! Keeps containers together that share a network namespace.
//!
//! A Docker engine that restarts starts all containers at once, and gives up on one that was to join the namespace of
//! another that was not up yet. And when a holder is restarted, what joined it stays behind in a namespace without
//! interfaces. Neither lets anything out in clear, and neither heals by itself: this does it.
//!
//! A container that an operator stopped stays stopped, and so does one whose holder is none of the mesh: only holders
//! that `signet inject compose` labelled are looked after.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;

use crate::docker::{Container, Docker, DockerError, Moment};

/// What the engine says of a container that it could not start, in all its versions since 2015.
const NO_HOLDER: &str = "cannot join network of a non running container";
/// Tries for one container and one life of its holder: what does not start then needs a person.
const TRIES_MAX: u32 = 5;
/// How long to collect changes before looking: an engine starts many containers within moments.
const SETTLE: Duration = Duration::from_millis(250);
/// How long before an engine that is away is tried again.
const AWAY: Duration = Duration::from_secs(2);
/// How often to look without being told: an event can be lost with the engine's connection.
const LOOK: Duration = Duration::from_secs(30);

/// What a container needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Need {
    /// It is left behind in the namespace that its holder had before.
    Restart,
    /// The engine gave up on it.
    Start,
}

fn need(container: &Container, holder: &Container) -> Option<Need> {
    let known = holder.is_holder() || holder.is_guard();
    if !known || !holder.state.running || container.state.restarting || !container.comes_back() {
        return None;
    }
    if container.state.running {
        // The network of a guard is the host's, and outlives it.
        let left_behind = !holder.is_guard() && container.state.started_at < holder.state.started_at;
        return left_behind.then_some(Need::Restart);
    }
    container.state.error.starts_with(NO_HOLDER).then_some(Need::Start)
}

/// Tries so far, by container and its holder's start: bounded by the engine's containers, see [`Tries::forget`].
#[derive(Debug, Default)]
struct Tries(BTreeMap<String, (Moment, u32)>);

impl Tries {
    /// Counts one more, unless there were enough.
    fn one_more(&mut self, container: &Container, holder: &Container) -> bool {
        let (life, count) =
            self.0.entry(container.id.clone()).or_insert_with(|| (holder.state.started_at.clone(), 0));
        if *life != holder.state.started_at {
            (*life, *count) = (holder.state.started_at.clone(), 0);
        }
        *count += 1;
        *count <= TRIES_MAX
    }

    /// Forgets containers that are gone.
    fn forget(&mut self, present: &[Container]) {
        self.0.retain(|id, _| present.iter().any(|container| container.id == *id));
    }
}

/// Keeps them together, for ever. What it did is told to `tell`, a line each.
pub(crate) async fn keep(docker: &Docker, tell: impl Fn(String)) {
    let mut tries = Tries::default();
    let mut away = false;
    loop {
        let Err(error) = follow(docker, &mut tries, &mut away, &tell).await;
        if !away {
            tell(format!("waiting for the engine: {error}"));
        }
        away = true;
        tokio::time::sleep(AWAY).await;
    }
}

async fn follow(
    docker: &Docker,
    tries: &mut Tries,
    away: &mut bool,
    tell: &impl Fn(String),
) -> Result<std::convert::Infallible, DockerError> {
    // Asked for first, so that no change falls between looking and waiting.
    let mut changes = docker.changes().await?;
    *away = false;
    loop {
        look(docker, tries, tell).await?;
        if let Ok(ended) = tokio::time::timeout(LOOK, changes.next()).await {
            ended?;
            tokio::time::sleep(SETTLE).await;
        }
    }
}

async fn look(docker: &Docker, tries: &mut Tries, tell: &impl Fn(String)) -> Result<(), DockerError> {
    let containers = docker.joined().await?;
    tries.forget(&containers);
    let mut needs = Vec::new();
    for container in &containers {
        let Some(holder) = container.joined() else { continue };
        let Some(holder) = docker.container(holder).await? else { continue };
        let Some(need) = need(container, &holder) else { continue };
        if tries.one_more(container, &holder) {
            needs.push(help(docker, container, need));
        }
    }
    // Together: one that takes its time to end must not keep the others waiting.
    join_all(needs).await.into_iter().for_each(tell);
    Ok(())
}

/// Gives a container what it needs, and says so.
async fn help(docker: &Docker, container: &Container, need: Need) -> String {
    let name = container.name.trim_start_matches('/');
    let (did, done) = match need {
        Need::Restart => ("restarted: its namespace was replaced", docker.restart(&container.id).await),
        Need::Start => ("started: its holder was not up before", docker.start(&container.id).await),
    };
    match done {
        Ok(()) => format!("{name} {did}"),
        Err(error) => format!("{name} was to be {did}, but: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(state: &str, policy: &str) -> Container {
        labelled(state, policy, r#"{"signet.mf2c-project.eu/role": "holder"}"#)
    }

    fn labelled(state: &str, policy: &str, labels: &str) -> Container {
        serde_json::from_str(&format!(
            r#"{{"Id": "c", "Name": "/web", "State": {{{state}}}, "Config": {{"Labels": {labels}}},
                "HostConfig": {{"NetworkMode": "container:h", "RestartPolicy": {{"Name": "{policy}"}}}}}}"#
        ))
        .unwrap()
    }

    fn running(since: &str) -> String {
        format!(
            r#""Running": true, "Restarting": false, "Error": "", "StartedAt": "2026-11-26T10:00:{since}Z""#
        )
    }

    fn ended(error: &str) -> String {
        format!(
            r#""Running": false, "Restarting": false, "Error": "{error}", "StartedAt": "2026-11-26T09:00:00Z""#
        )
    }

    #[test]
    fn what_the_engine_gave_up_on_is_started_once_its_holder_runs() {
        let given_up = container(&ended(&format!("{NO_HOLDER}: 4f")), "always");
        assert_eq!(need(&given_up, &container(&running("05"), "always")), Some(Need::Start));
        assert_eq!(need(&given_up, &container(&ended(""), "always")), None);
    }

    #[test]
    fn what_was_left_behind_is_restarted() {
        let holder = container(&running("05.5"), "always");
        assert_eq!(need(&container(&running("05"), "unless-stopped"), &holder), Some(Need::Restart));
        assert_eq!(need(&container(&running("05.6"), "always"), &holder), None);
    }

    #[test]
    fn what_was_stopped_or_should_not_come_back_is_left_alone() {
        let holder = container(&running("05"), "always");
        assert_eq!(need(&container(&ended(""), "always"), &holder), None);
        assert_eq!(need(&container(&ended(NO_HOLDER), "no"), &holder), None);
        assert_eq!(need(&container(&running("01"), "on-failure"), &holder), None);
    }

    #[test]
    fn what_joined_a_holder_of_somebody_else_is_left_alone() {
        let (behind, given_up) =
            (container(&running("01"), "always"), container(&ended(NO_HOLDER), "always"));
        for labels in ["null", "{}", r#"{"signet.mf2c-project.eu/role": "sidecar"}"#, r#"{"role": "holder"}"#]
        {
            let holder = labelled(&running("05"), "always", labels);
            assert_eq!((need(&behind, &holder), need(&given_up, &holder)), (None, None), "{labels}");
        }
    }

    #[test]
    fn tries_are_bounded_for_one_life_of_the_holder() {
        let mut tries = Tries::default();
        let (web, holder) = (container(&ended(NO_HOLDER), "always"), container(&running("05"), "always"));
        let granted = (0..20).filter(|_| tries.one_more(&web, &holder)).count();
        assert_eq!(granted, TRIES_MAX as usize);
        assert!(tries.one_more(&web, &container(&running("06"), "always")));
        tries.forget(&[]);
        assert!(tries.0.is_empty());
    }
}
