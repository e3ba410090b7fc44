//! What a pod may not have beside a sidecar, and what it may have that gets round one.

use serde_json::{Value, json};

use super::model::{Container, List, Pod, made};
use super::reason::{Finding, InjectError, Reason};
use super::sidecar::{CAPTURE, PORTS, PROXY, PROXY_UID, VOLUMES};

/// Capabilities that open a way round the rules, and what it is.
const WAYS_ROUND: [(&str, &str); 4] = [
    ("NET_ADMIN", "it can change the rules"),
    ("NET_RAW", "it can open raw sockets"),
    ("SYS_ADMIN", "it can enter other namespaces"),
    ("SYS_PTRACE", "it can look into other processes"),
];
/// Those that containers lose: nothing that listens and calls over TCP needs them.
const TAKEN: [&str; 2] = ["NET_ADMIN", "NET_RAW"];

/// Refuses what cannot be injected.
pub(super) fn check(pod: &Pod<'_>) -> Result<(), InjectError> {
    for container in &pod.containers {
        if [CAPTURE, PROXY].contains(&container.name) {
            return Err(container.at.refuse(Reason::ContainerName(container.name.to_owned())));
        }
        if let Some((at, PROXY_UID)) = &container.security.user {
            return Err(at.refuse(Reason::ProxyUser));
        }
        if let Some(port) = container.ports.iter().find(|port| PORTS.contains(&port.number)) {
            return Err(port.at.refuse(Reason::PortTaken(port.number)));
        }
    }
    // One that only mounts such a volume would find the sidecar's.
    let mounts = pod.containers.iter().flat_map(|container| &container.mounts);
    match pod.volumes.iter().chain(mounts).find(|volume| VOLUMES.contains(&volume.name)) {
        Some(volume) => Err(volume.at.refuse(Reason::VolumeName(volume.name.to_owned()))),
        None => Ok(()),
    }
}

/// What lets containers get round their sidecar.
pub(super) fn findings(pod: &Pod<'_>) -> Vec<Finding> {
    let finding = |container: &str, because: &str| Finding::EgressNotEnforceable {
        container: container.to_owned(),
        because: because.to_owned(),
    };
    let mut findings = Vec::new();
    for container in &pod.containers {
        let of = |because: &str| finding(container.name, because);
        if container.security.privileged {
            findings.push(of("it is privileged"));
            continue;
        }
        let ways = WAYS_ROUND.iter().filter(|(name, _)| container.security.holds(name, false));
        findings.extend(ways.map(|(name, because)| of(&format!("{because} ({name})"))));
        // A fixed user other than root has no capabilities, unless its files do.
        let fixed = container.security.user.as_ref().is_some_and(|(_, user)| *user != 0);
        if !fixed && container.security.holds("SETUID", true) {
            findings.push(of(
                "it may run as root and become user 1337 (SETUID); fix: set `runAsUser`, or drop the capability",
            ));
        }
    }
    if pod.shares_processes {
        findings.push(finding(
            "*",
            "its containers share their processes with the sidecar (shareProcessNamespace)",
        ));
    }
    if pod.host_processes {
        findings.push(finding("*", "its containers see the node's processes (hostPID)"));
    }
    for volume in &pod.volumes {
        if volume.host_path.is_some_and(reaches_sockets) {
            findings.push(finding("*", &format!("volume `{}` gives it sockets of the node", volume.name)));
        }
    }
    findings
}

/// Whether a path of the node is the socket of a runtime, or a folder above one.
fn reaches_sockets(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let folders = matches!(parts.as_slice(), [] | ["run" | "var"] | ["var", "run"])
        || matches!(parts.as_slice(), ["run", _] | ["var", "run", _]
            if parts.last().is_some_and(|last| ["containerd", "crio", "docker", "k3s"].contains(last)));
    folders || parts.last().is_some_and(|last| last.ends_with(".sock"))
}

/// The capabilities that a container loses: those it has not asked for, and does not drop by itself.
pub(super) fn to_drop(container: &Container<'_>) -> Vec<&'static str> {
    let security = &container.security;
    let dropped = |name: &str| {
        security
            .dropped
            .iter()
            .map(|name| name.trim_start_matches("CAP_"))
            .any(|it| it == name || it == "ALL")
    };
    TAKEN.into_iter().filter(|name| !security.holds(name, false) && !dropped(name)).collect()
}

/// Takes capabilities away.
pub(super) fn drop_capabilities(pod: &mut Value, losses: &[(List, usize, Vec<&'static str>)]) {
    for (list, number, names) in losses.iter().filter(|(.., names)| !names.is_empty()) {
        let Some(container) = pod.pointer_mut(&format!("/spec/{}/{number}", list.name())) else { continue };
        let security = made(container, "securityContext", json!({}));
        let drop = made(made(security, "capabilities", json!({})), "drop", json!([]));
        if let Some(drop) = drop.as_array_mut() {
            drop.extend(names.iter().map(|name| json!(name)));
        }
    }
}
