//! Follows what happens to meshed containers that nobody asked the proxy for: an app that ends by itself, one that its
//! engine removes, a holder that comes back with other addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::{Group, Groups};
use crate::api_proxy::create::GROUP_LABEL;
use crate::docker::DockerError;

/// What it looks at.
const EVENTS: [&str; 5] = ["start", "die", "destroy", "connect", "disconnect"];
/// How long to collect changes before looking.
const SETTLE: Duration = Duration::from_millis(250);
/// How often to look without being told.
const LOOK: Duration = Duration::from_secs(30);
/// How often while an app is down and may come back.
const LOOK_SOON: Duration = Duration::from_secs(1);
/// How long an app may be down before what stands beside it is stopped: a restart is a stop and a start.
const DOWN: Duration = Duration::from_secs(5);
/// How long before an engine that is away is tried again.
const AWAY: Duration = Duration::from_secs(2);

/// What becomes of a group.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    /// Nobody lives there.
    Clear,
    /// The app has ended.
    Lower,
    /// It is as it should be.
    Nothing,
    /// The app has ended a moment ago.
    Wait,
}

/// Since when apps are down, by group.
type Down = BTreeMap<String, Instant>;

fn step(group: &Group, down: &mut Down, now: Instant) -> Step {
    let Some(app) = &group.app else {
        down.remove(&group.id);
        return Step::Clear;
    };
    let up = |state: &str| matches!(state, "running" | "paused" | "restarting");
    let beside = [&group.holder, &group.sidecar];
    if up(&app.state) || !beside.into_iter().flatten().any(|each| up(&each.state)) {
        down.remove(&group.id);
        return Step::Nothing;
    }
    let since = *down.entry(group.id.clone()).or_insert(now);
    if now.saturating_duration_since(since) < DOWN { Step::Wait } else { Step::Lower }
}

impl Groups {
    /// Follows for ever. What it did is told to `tell`, a line each.
    pub(crate) async fn follow(&self, tell: impl Fn(String)) {
        let mut away = false;
        loop {
            let Err(error) = self.follow_events(&mut away, &tell).await;
            if !away {
                tell(format!("waiting for the engine: {error}"));
            }
            away = true;
            tokio::time::sleep(AWAY).await;
        }
    }

    async fn follow_events(
        &self,
        away: &mut bool,
        tell: &impl Fn(String),
    ) -> Result<std::convert::Infallible, DockerError> {
        // Asked for first, so that no change falls between looking and waiting.
        let mut changes = self.docker.events(&EVENTS).await?;
        *away = false;
        let mut down = Down::new();
        let mut troubled = BTreeSet::new();
        loop {
            let waiting = self.look(&mut down, &mut troubled, tell).await?;
            let pause = if waiting { LOOK_SOON } else { LOOK };
            if let Ok(ended) = tokio::time::timeout(pause, changes.next()).await {
                ended?;
                tokio::time::sleep(SETTLE).await;
            }
        }
    }

    /// Looks at every group once; whether to look again soon.
    async fn look(
        &self,
        down: &mut Down,
        troubled: &mut BTreeSet<String>,
        tell: &impl Fn(String),
    ) -> Result<bool, DockerError> {
        let listed = self.docker.labelled(GROUP_LABEL).await?;
        let ids: BTreeSet<String> =
            listed.iter().filter_map(|each| each.label(GROUP_LABEL)).map(str::to_owned).collect();
        down.retain(|id, _| ids.contains(id));
        troubled.retain(|id| ids.contains(id));
        let mut waiting = false;
        for id in ids {
            let group = Group::of(&id, listed.iter().cloned());
            let step = step(&group, down, Instant::now());
            let done = match step {
                Step::Wait | Step::Nothing => self.keep_vouching(&group).await.map(|()| false),
                Step::Clear | Step::Lower => match self.try_lock(&id) {
                    Some(_lock) => self.settle_now(&id).await,
                    // Somebody is at it.
                    None => Ok(false),
                },
            };
            waiting |= step != Step::Nothing;
            let name = group.name().unwrap_or(&group.workload);
            // What goes wrong is told once, not with each look.
            match done {
                Ok(done) => {
                    troubled.remove(&id);
                    if done {
                        tell(format!("{name}: its sidecar has followed it"));
                    }
                }
                Err(error) if troubled.insert(id.clone()) => {
                    tell(format!("{name}: holder and sidecar are not as they should be: {error}"));
                }
                Err(_) => {}
            }
        }
        Ok(waiting)
    }

    /// Settles a group as it is now: what was seen may be past. Whoever makes or starts one holds its lock.
    async fn settle_now(&self, id: &str) -> Result<bool, super::GroupError> {
        self.settle(&self.named(id).await?).await
    }

    async fn keep_vouching(&self, group: &Group) -> Result<(), super::GroupError> {
        let Some(holder) = &group.holder else { return Ok(()) };
        let addresses = holder.network_settings.addresses();
        // Before its first start there are none, and what was vouched for a stopped one is vouched for until it is gone.
        if addresses.is_empty() || group.sidecar.as_ref().is_none_or(|sidecar| sidecar.state != "running") {
            return Ok(());
        }
        self.vouch(group, &addresses).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::docker::operations::Listed;

    fn group(app: Option<&str>, beside: &str) -> Group {
        let one = |role: &str, state: &str, mode: &str| -> Listed {
            serde_json::from_str(&format!(
                r#"{{"Id": "{role}", "Names": ["/{role}"], "State": "{state}", 
                    "Labels": {{"signet.mf2c-project.eu/group": "g", "signet.mf2c-project.eu/role": "{role}"}},
                    "HostConfig": {{"NetworkMode": "{mode}"}}}}"#
            ))
            .unwrap()
        };
        let app = app.map(|state| one("app", state, "container:holder"));
        Group::of(
            "g",
            [one("holder", beside, "fog"), one("sidecar", beside, "container:holder")].into_iter().chain(app),
        )
    }

    #[test]
    fn what_stands_beside_an_app_follows_it_down_after_a_pause_and_not_within_a_restart() {
        let (mut down, now) = (Down::new(), Instant::now());
        assert_eq!(step(&group(Some("exited"), "running"), &mut down, now), Step::Wait);
        assert_eq!(step(&group(Some("running"), "running"), &mut down, now + DOWN), Step::Nothing);
        assert_eq!(step(&group(Some("exited"), "running"), &mut down, now + DOWN), Step::Wait);
        assert_eq!(step(&group(Some("exited"), "running"), &mut down, now + DOWN * 2), Step::Lower);
        for alive in ["running", "paused", "restarting"] {
            assert_eq!(step(&group(Some(alive), "running"), &mut down, now + DOWN * 9), Step::Nothing);
        }
        assert_eq!(step(&group(Some("created"), "created"), &mut down, now + DOWN * 9), Step::Nothing);
    }

    #[test]
    fn what_has_no_app_is_cleared_away() {
        let (mut down, now) = (Down::new(), Instant::now());
        assert_eq!(step(&group(None, "created"), &mut down, now), Step::Clear);
        assert_eq!(step(&group(None, "running"), &mut down, now), Step::Clear);
    }

    #[test]
    fn a_container_of_an_image_with_the_labels_is_not_the_app() {
        let mut stranger = group(Some("running"), "running").app.unwrap();
        stranger.host_config.network_mode = "fog".to_owned();
        let whole = group(None, "running");
        let all = [whole.holder.unwrap(), whole.sidecar.unwrap(), stranger];
        assert!(Group::of("g", all).app.is_none());
    }
}
