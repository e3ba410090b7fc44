//! Whose network a container is to live in, and what it may be there: who joins a meshed container has its identity.

use serde_json::Value;
use signet_inject::compose::{ROLE_HOLDER, ROLE_LABEL};

use super::body::Body;
use super::create::{BESIDE_LABEL, GROUP_LABEL, ROLE_APP, guest, warned_of};
use super::head::{Answer, Head};
use super::make::{Made, id_in, warned};
use super::mounts::{beside, fault_of};
use super::{ApiProxy, relay};
use crate::attestor::rules::WORKLOAD_LABEL;
use crate::docker::operations::{Image, encode};
use crate::docker::{Container, DockerError};

/// Containers that join one another, one after the other: nobody needs more than two.
const HOPS_MAX: usize = 8;

/// Where a container is to live.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Home {
    /// With a container that is meshed.
    Meshed { container: String, workload: String },
    /// In a network of its own, or none.
    Own,
    /// Nowhere: why.
    Refused(String),
    /// With a container that is not meshed.
    Unmeshed,
}

/// What the next container of a chain says of the place.
#[derive(Debug, Eq, PartialEq)]
enum Hop<'a> {
    /// It is one of this group.
    Group(&'a str),
    /// It holds a network, for nobody that is known here.
    Held,
    /// It lives with that one.
    Joins(&'a str),
    /// It has its own.
    Last,
}

fn hop(container: &Container) -> Hop<'_> {
    let role = container.label(ROLE_LABEL);
    match (role, container.label(GROUP_LABEL), container.joined()) {
        (Some(ROLE_APP), Some(group), Some(_)) | (Some(ROLE_HOLDER), Some(group), None) => Hop::Group(group),
        (Some(ROLE_HOLDER), ..) => Hop::Held,
        (.., Some(next)) => Hop::Joins(next),
        (.., None) => Hop::Last,
    }
}

/// The refusal to touch a container that has keys or holds a network.
pub(super) fn reserved(name: &str) -> String {
    format!(
        "reserved-container: {} has keys or holds the network of a workload, and is signet's alone; fix: name the \
         workload's own container, or use the engine's own socket",
        name.trim_start_matches('/')
    )
}

impl ApiProxy {
    /// Where a body wants its container to live.
    pub(super) async fn home(&self, body: &Body) -> Result<Home, DockerError> {
        for field in ["IpcMode", "PidMode"] {
            let Some(name) = body.host_text(field).strip_prefix("container:") else { continue };
            if let Some(found) = self.container(name).await?
                && beside(found.label(ROLE_LABEL))
            {
                return Ok(Home::Refused(reserved(&found.name)));
            }
        }
        let mode = body.host_text("NetworkMode");
        if mode.starts_with("ns:") {
            let reason = "reserved-container: a network by its path may be anybody's; fix: name a network or a container";
            return Ok(Home::Refused(reason.to_owned()));
        }
        let Some(name) = mode.strip_prefix("container:") else { return Ok(Home::Own) };
        let Some(mut at) = self.container(name).await? else { return Ok(Home::Unmeshed) };
        if beside(at.label(ROLE_LABEL)) {
            return Ok(Home::Refused(reserved(&at.name)));
        }
        for _ in 0..HOPS_MAX {
            let next = match hop(&at) {
                Hop::Group(id) => {
                    let group = self.groups.named(id).await?;
                    let home = group
                        .holder()
                        .ok()
                        .filter(|holder| [&*at.id, at.joined().unwrap_or_default()].contains(holder));
                    return Ok(match home {
                        Some(holder) => {
                            Home::Meshed { container: holder.to_owned(), workload: group.workload.clone() }
                        }
                        None => Home::Refused(reserved(&at.name)),
                    });
                }
                Hop::Held => return Ok(Home::Refused(reserved(&at.name))),
                Hop::Joins(next) => next.to_owned(),
                Hop::Last => return self.late(at.id).await,
            };
            // Its namespace is left behind, and the engine says so itself.
            let Some(found) = self.container(&next).await? else { return Ok(Home::Unmeshed) };
            at = found;
        }
        Ok(Home::Refused(format!("reserved-container: more than {HOPS_MAX} containers join one another")))
    }

    /// A container of its own network may have got a sidecar from the watcher.
    async fn late(&self, id: String) -> Result<Home, DockerError> {
        let sidecars = self.docker().labelled(&format!("{BESIDE_LABEL}={id}")).await?;
        let home = format!("container:{id}");
        let sidecar = sidecars.iter().find(|sidecar| sidecar.host_config.network_mode == home);
        Ok(sidecar.map_or(Home::Unmeshed, |sidecar| Home::Meshed {
            container: id,
            workload: sidecar.label(WORKLOAD_LABEL).unwrap_or_default().to_owned(),
        }))
    }

    /// A container by what a client calls it; names have a slash before them to the engine.
    pub(super) async fn container(&self, name: &str) -> Result<Option<Container>, DockerError> {
        let name = name.strip_prefix('/').unwrap_or(name);
        if name.is_empty() {
            return Ok(None);
        }
        self.docker().container(&encode(name)).await
    }

    /// Makes a container that lives with a meshed one, shares its sidecar and has its identity: so its image must be one that
    /// may be that workload, and it mounts no more than that one may.
    pub(super) async fn make_guest(
        &self,
        head: &Head,
        body: Body,
        (container, workload): (&str, &str),
        image: &Image,
        tell: fn(String),
    ) -> Answer {
        let refuse = |status: u16, reason: String| {
            tell(format!("{} was refused: {reason}", body.image()));
            Answer::refusal(status, &format!("signet: {reason}"))
        };
        if let Err(refusal) = self.groups.trust.rules.attest(workload, body.image(), image) {
            return refuse(403, refusal.to_string());
        }
        match self.mounts_fault(&body).await {
            Ok(None) => {}
            Ok(Some(reason)) => return refuse(400, reason),
            Err(error) => return refuse(502, error.to_string()),
        }
        let warnings = warned_of(&body);
        let request = head.with_body(guest(body.clone(), container).to_string().as_bytes());
        let answer = relay::ask(&self.engine, &request).await;
        let Some(id) = id_in(&answer) else { return answer };
        let mut made = Made::default();
        made.0.push(id.clone());
        let reason = match self.made_otherwise(&id, image).await {
            Ok(None) => return warned(answer, &warnings),
            Ok(Some(reason)) => reason,
            Err(error) => error.to_string(),
        };
        self.take_away(&made, body.image(), tell).await;
        refuse(409, reason)
    }

    /// Why a container that was made is not what was looked at, if it is not: names may have moved meanwhile.
    pub(super) async fn made_otherwise(
        &self,
        id: &str,
        image: &Image,
    ) -> Result<Option<String>, DockerError> {
        let found = self.docker().container(id).await?;
        let Some(found) = found.filter(|found| found.image == image.id) else {
            let reason = "image-changed: the image was replaced while the container was made; fix: try again";
            return Ok(Some(reason.to_owned()));
        };
        fault_of(self.docker(), &self.settings, &found).await
    }
}

/// A label of a body that only signet gives, whatever its value.
pub(super) fn reserved_label(body: &Body) -> Option<&'static str> {
    let labels = body.get("Labels").and_then(Value::as_object)?;
    OURS.into_iter().find(|name| labels.contains_key(*name))
}

/// The same of an image: its containers have its labels.
pub(super) fn reserved_label_of(image: &Image) -> Option<&'static str> {
    OURS.into_iter().find(|ours| image.labels().any(|(name, _)| name == ours))
}

/// By these it is known what belongs together, and what has keys.
const OURS: [&str; 3] = [GROUP_LABEL, ROLE_LABEL, BESIDE_LABEL];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn container(role: Option<&str>, group: Option<&str>, mode: &str) -> Container {
        let labels = [(ROLE_LABEL, role), (GROUP_LABEL, group)];
        let labels: serde_json::Map<_, _> =
            labels.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into()))).collect();
        serde_json::from_value(json!({
            "Id": "c", "Name": "/c",
            "State": { "Running": true, "Restarting": false, "Error": "", "StartedAt": "2026-11-26T20:07:31Z" },
            "HostConfig": { "NetworkMode": mode }, "Config": { "Labels": labels },
        }))
        .unwrap()
    }

    #[test]
    fn a_place_is_followed_through_guests_and_sidecars_to_who_holds_it() {
        for (role, group, mode, expected) in [
            (Some("app"), Some("g"), "container:h", Hop::Group("g")),
            (Some("holder"), Some("g"), "fog", Hop::Group("g")),
            (Some("sidecar"), Some("g"), "container:h", Hop::Joins("h")),
            (Some("holder"), None, "fog", Hop::Held),
            (None, None, "container:web", Hop::Joins("web")),
            (None, None, "bridge", Hop::Last),
            // Labels of an image alone make no member.
            (Some("app"), Some("g"), "fog", Hop::Last),
            (Some("app"), None, "container:h", Hop::Joins("h")),
        ] {
            assert_eq!(hop(&container(role, group, mode)), expected, "{role:?} {group:?} {mode}");
        }
    }

    #[test]
    fn labels_of_signets_own_are_refused_in_bodies_and_images_whatever_their_value() {
        for name in [GROUP_LABEL, ROLE_LABEL, BESIDE_LABEL] {
            for value in [json!("x"), json!(""), Value::Null] {
                let body = json!({ "Image": "a", "labels": { name: value } }).to_string();
                assert_eq!(reserved_label(&Body::parse(body.as_bytes()).unwrap()), Some(name));
            }
            let image = json!({ "Id": "sha256:0a", "Config": { "Labels": { name: "x", "other": "y" } } });
            assert_eq!(reserved_label_of(&serde_json::from_value(image).unwrap()), Some(name));
        }
        let plain = json!({ "Id": "sha256:0a", "Config": { "Labels": { WORKLOAD_LABEL: "web" } } });
        assert_eq!(reserved_label_of(&serde_json::from_value(plain).unwrap()), None);
        let body = Body::parse(br#"{"Labels": {"signet.mf2c-project.eu/workload": "web"}}"#).unwrap();
        assert_eq!(reserved_label(&body), None);
    }
}
