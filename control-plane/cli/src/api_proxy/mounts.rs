//! What a meshed container may not mount: what gives identities, or holds them.
//!
//! What is asked for is judged before a container is made, and what the engine made of it afterwards, before it can start:
//! a volume may come into being in between. Symbolic links of the host are the host's: nobody here can follow them.

use std::collections::BTreeSet;

use serde_json::Value;
use signet_inject::compose::{ROLE_HOLDER, ROLE_LABEL};

use super::ApiProxy;
use super::body::Body;
use super::create::{ROLE_SIDECAR, Settings};
use crate::docker::operations::{Listed, Volume, encode};
use crate::docker::{Container, Docker, DockerError};

/// Through a process's folder there one gets to the files that the process sees.
const PROCESSES: &str = "/proc";
/// Digits of the name of a volume that has no name of its own.
const ANONYMOUS: usize = 64;
/// File systems that show nothing of this host's.
const FOREIGN: [&str; 4] = ["cifs", "nfs", "nfs4", "tmpfs"];

/// The refusal of a mount.
pub(crate) fn reserved(source: &str) -> String {
    format!(
        "reserved-mount: {source} leads to what gives identities, and no workload may mount it; fix: leave it out"
    )
}

impl Settings {
    /// Whether nothing that is meshed may mount this.
    pub(crate) fn holds_back(&self, source: &str) -> bool {
        let held = self.reserved.iter().map(|held| &**held).chain([PROCESSES]);
        held.into_iter().any(|held| leads_to(source, held))
    }

    /// Whether a volume of these options is a view of what is held back, or may be one.
    fn holds_back_volume(&self, volume: &Volume) -> bool {
        let option = |name: &str| {
            let mut options = volume.options.iter().flatten();
            options.find(|(known, _)| known.eq_ignore_ascii_case(name)).map_or("", |(_, value)| &**value)
        };
        let (kind, device) = (option("type").to_ascii_lowercase(), option("device"));
        if (kind.is_empty() && device.is_empty()) || FOREIGN.contains(&&*kind) {
            return false;
        }
        // Only of a bind is known what is seen in it.
        let bind = option("o").split(',').any(|part| matches!(part.trim(), "bind" | "rbind"));
        !bind || !device.starts_with('/') || self.holds_back(device)
    }
}

/// What a body mounts from the host or by name.
pub(crate) fn sources(body: &Body) -> Vec<&str> {
    let binds = body.host_texts("Binds").into_iter().filter_map(|bind| bind.split(':').next());
    let mounts = body.host("Mounts").and_then(Value::as_array).into_iter().flatten();
    binds.chain(mounts.filter_map(|mount| mount.get("Source")?.as_str())).collect()
}

/// Why a body's mounts are refused, by what is in it alone.
pub(crate) fn fault(body: &Body, settings: &Settings) -> Option<String> {
    if let Some(source) = sources(body).into_iter().find(|source| settings.holds_back(source)) {
        return Some(reserved(source));
    }
    let mut mounts = body.host("Mounts").and_then(Value::as_array).into_iter().flatten();
    let driven = mounts.any(|mount| {
        let config = mount.pointer("/VolumeOptions/DriverConfig");
        config
            .is_some_and(|config| !config.is_null() && config.as_object().is_none_or(|some| !some.is_empty()))
    });
    driven.then(|| {
        "reserved-mount: a volume with a driver's options (DriverConfig) can show anything of the host; fix: make the volume \
         before, and mount it by its name"
            .to_owned()
    })
}

/// Whether one of two paths is the other, or leads to it; or, of names, whether they are the same.
pub(crate) fn leads_to(source: &str, held: &str) -> bool {
    if !source.starts_with('/') || !held.starts_with('/') {
        return source == held;
    }
    let (source, held) = (clean(source), clean(held));
    source.starts_with(&held) || held.starts_with(&source)
}

/// The parts of an absolute path as the engine cleans it (Go's `path.Clean`).
fn clean(path: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    // `/run` is where `/var/run` leads on every system of the last ten years.
    if parts.starts_with(&["var", "run"]) {
        parts.remove(0);
    }
    parts
}

/// Why a volume may not be mounted, by who has it. Only one that is `asked` for by its name has to be somebody's.
fn owned(name: &str, all: &[Listed], asked: bool) -> Option<String> {
    let has = |each: &&Listed| each.mounts.iter().flatten().any(|mount| mount.name == name);
    let (ours, others): (Vec<_>, Vec<_>) =
        all.iter().filter(has).partition(|each| beside(each.label(ROLE_LABEL)));
    // What a sidecar left behind has such a name. Compose hands on those of a container that it makes anew.
    let anonymous = asked && name.len() == ANONYMOUS && name.bytes().all(|digit| digit.is_ascii_hexdigit());
    (!ours.is_empty() || (anonymous && others.is_empty())).then(|| reserved(&format!("the volume {name}")))
}

/// Whether that is the role of a container that has keys or holds a network.
pub(crate) fn beside(role: Option<&str>) -> bool {
    matches!(role, Some(ROLE_HOLDER | ROLE_SIDECAR))
}

/// Why what a container mounts is refused, as the engine has it.
///
/// # Errors
/// The engine does not answer.
pub(crate) async fn fault_of(
    docker: &Docker,
    settings: &Settings,
    container: &Container,
) -> Result<Option<String>, DockerError> {
    let mounts = || container.mounts.iter().flatten();
    let held = |mount: &&crate::docker::Mount| {
        if mount.kind == "volume" {
            settings.holds_back(&mount.name)
        } else {
            settings.holds_back(&mount.source)
        }
    };
    if let Some(mount) = mounts().find(held) {
        return Ok(Some(reserved(if mount.name.is_empty() { &mount.source } else { &mount.name })));
    }
    let names: BTreeSet<&str> = mounts().map(|mount| &*mount.name).filter(|name| !name.is_empty()).collect();
    volumes(docker, settings, &names, false).await
}

/// Why volumes may not be mounted.
async fn volumes(
    docker: &Docker,
    settings: &Settings,
    names: &BTreeSet<&str>,
    asked: bool,
) -> Result<Option<String>, DockerError> {
    if names.is_empty() {
        return Ok(None);
    }
    let all = docker.everything().await?;
    for name in names {
        if let Some(reason) = owned(name, &all, asked) {
            return Ok(Some(reason));
        }
        if docker.volume(name).await?.is_some_and(|volume| settings.holds_back_volume(&volume)) {
            return Ok(Some(reserved(&format!("the volume {name}"))));
        }
    }
    Ok(None)
}

impl ApiProxy {
    /// Why the mounts that are asked for are refused, with those of other containers and by name.
    pub(super) async fn mounts_fault(&self, body: &Body) -> Result<Option<String>, DockerError> {
        if let Some(reason) = fault(body, &self.settings) {
            return Ok(Some(reason));
        }
        for other in body.host_texts("VolumesFrom") {
            let name = other.split(':').next().unwrap_or(other);
            // Of one that is not there the engine says so itself.
            let Some(found) = self.docker().container(&encode(name)).await? else { continue };
            if beside(found.label(ROLE_LABEL)) {
                return Ok(Some(format!(
                    "reserved-mount: {name} has keys or holds a network; fix: leave it out"
                )));
            }
            if let Some(reason) = fault_of(self.docker(), &self.settings, &found).await? {
                return Ok(Some(format!("{reason} (it is among the volumes of {name})")));
            }
        }
        let names = sources(body).into_iter().filter(|source| !source.is_empty() && !source.starts_with('/'));
        volumes(self.docker(), &self.settings, &names.collect(), true).await
    }
}

#[cfg(test)]
mod tests;
