//! What has to be so before a group gets an identity or an address: labels are words, and words can be made up.

use crate::api_proxy::create::GROUP_LABEL;
use crate::attestor::Rules;
use crate::docker::Container;
use crate::docker::operations::Image;

use super::{Group, GroupError, Groups};

/// What is trusted here.
#[derive(Clone, Debug)]
pub(crate) struct Trust {
    pub(crate) rules: Rules,
    /// The id of the image that holders and sidecars have.
    pub(crate) image: String,
}

impl Trust {
    /// Why these three are no group of ours, if they are not.
    fn fault(&self, holder: &Container, sidecar: &Container, app: &Container) -> Option<&'static str> {
        let group = holder.label(GROUP_LABEL);
        let faults = [
            (holder.image != self.image, "its holder has another image than the sidecar's"),
            (sidecar.image != self.image, "its sidecar has another image than the one it is to have"),
            (holder.joined().is_some(), "its holder lives in another container's network"),
            (sidecar.joined() != Some(&*holder.id), "its sidecar did not join its holder"),
            (app.joined() != Some(&*holder.id), "it did not join its holder"),
            (
                group.is_none() || [sidecar, app].iter().any(|each| each.label(GROUP_LABEL) != group),
                "its group is not its holder's",
            ),
        ];
        faults.into_iter().find_map(|(wrong, what)| wrong.then_some(what))
    }
}

impl Groups {
    /// Returns only if the engine says that the group is what its labels say, and the rules that its app may be its workload.
    /// Images and namespaces of a container do not change, so what was seen by id stays so.
    pub(super) async fn verified(&self, group: &Group) -> Result<(), GroupError> {
        let holder = self.present(group.holder()?, "holder").await?;
        let sidecar = self.present(group.sidecar()?, "sidecar").await?;
        let app = group.app.as_ref().ok_or(GroupError::Gone("app"))?;
        let app = self.present(&app.id, "app").await?;
        if let Some(what) = self.trust.fault(&holder, &sidecar, &app) {
            return Err(GroupError::NotOurs(what));
        }
        // Of an image that is gone the id is left.
        let image = self.docker.image(&app.image).await?.unwrap_or_else(|| Image::gone(&app.image));
        Ok(self.trust.rules.attest(&group.workload, &app.config.image, &image)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "sha256:0a";

    fn container(id: &str, image: &str, mode: &str, group: &str) -> Container {
        serde_json::from_value(serde_json::json!({
            "Id": id, "Name": format!("/{id}"), "Image": image,
            "State": { "Running": true, "Restarting": false, "Error": "", "StartedAt": "2026-11-26T20:07:31Z" },
            "HostConfig": { "NetworkMode": mode },
            "Config": { "Labels": { GROUP_LABEL: group } },
        }))
        .unwrap()
    }

    #[test]
    fn a_group_that_labels_make_up_is_none() {
        let rules = Rules::parse("rules", "workloads: []").unwrap();
        let trust = Trust { rules, image: OURS.to_owned() };
        let holder = || container("h", OURS, "fog", "g");
        let sidecar = || container("s", OURS, "container:h", "g");
        let app = || container("a", "sha256:0b", "container:h", "g");
        assert_eq!(trust.fault(&holder(), &sidecar(), &app()), None);
        for (holder, sidecar, app, what) in [
            (container("h", "sha256:0e", "fog", "g"), sidecar(), app(), "its holder has another image"),
            (container("h", OURS, "container:x", "g"), sidecar(), app(), "its holder lives in another"),
            (
                holder(),
                container("s", "sha256:0e", "container:h", "g"),
                app(),
                "its sidecar has another image",
            ),
            (holder(), container("s", OURS, "fog", "g"), app(), "its sidecar did not join"),
            (holder(), container("s", OURS, "container:x", "g"), app(), "its sidecar did not join"),
            (holder(), sidecar(), container("a", "sha256:0b", "container:s", "g"), "it did not join"),
            (holder(), sidecar(), container("a", "sha256:0b", "container:h", "x"), "its group is not"),
        ] {
            let fault = trust.fault(&holder, &sidecar, &app).unwrap();
            assert!(fault.starts_with(what), "{fault}");
        }
    }
}
