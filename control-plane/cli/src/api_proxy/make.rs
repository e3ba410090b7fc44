//! `POST /containers/create`: what is to be meshed is made with a holder and a sidecar, or not at all.

use aws_lc_rs::rand;
use serde_json::{Map, Value, json};
use signet_inject::compose::ROLE_LABEL;

use super::body::Body;
use super::create::{Asked, GROUP_LABEL, Plan, ROLE_APP, guest, plan, reserved};
use super::head::{Answer, Head};
use super::{ApiProxy, relay};
use crate::attestor::rules::Choice;
use crate::docker::DockerError;
use crate::docker::operations::{Image, encode};

/// What is made so far; what fails takes it away again.
#[derive(Debug, Default)]
struct Made(Vec<String>);

impl ApiProxy {
    pub(super) async fn make(
        &self,
        head: &Head,
        bytes: &[u8],
        version: &str,
        name: Option<&str>,
        tell: fn(String),
    ) -> Answer {
        let body = match Body::parse(bytes) {
            Ok(body) => body,
            Err(reason) => return Answer::refusal(400, &format!("signet: {reason}")),
        };
        let labels = body.labels();
        let shown = name.unwrap_or_else(|| body.image());
        let refuse = |status: u16, reason: String| {
            tell(format!("{shown} was refused: {reason}"));
            Answer::refusal(status, &format!("signet: {reason}"))
        };
        if labels.contains_key(GROUP_LABEL) {
            let reason = format!("reserved-label: {GROUP_LABEL} is set by signet alone; fix: leave it out");
            return refuse(400, reason);
        }
        let joined = match self.joined(&body).await {
            Ok(joined) => joined,
            Err(error) => return refuse(502, error.to_string()),
        };
        let workload = match (self.rules.choose(&labels), body.host_text("NetworkMode")) {
            // Where there is no network there is nothing to protect.
            (Choice::Out, _) | (_, "none") => None,
            (Choice::Unnamed, _) if joined.is_some() || !self.refuse_unnamed => None,
            (Choice::Unnamed, _) => {
                let reason = "workload-unnamed: neither its labels nor a rule say which workload it is; fix: name it by \
                              the label signet.mf2c-project.eu/workload, or keep it out by \
                              signet.mf2c-project.eu/inject=false";
                return refuse(403, reason.to_owned());
            }
            (Choice::Workload(workload), _) => Some(workload),
        };
        if let Some(holder) = joined {
            // It shares the sidecar of the one it joins, and its identity.
            return relay::ask(&self.engine, &head.with_body(guest(body, &holder).to_string().as_bytes()))
                .await;
        }
        let Some(workload) = workload else { return relay::ask(&self.engine, &head.with_body(bytes)).await };
        if body.host_text("NetworkMode").starts_with("container:") {
            let reason = "unmeshed-namespace: it joins the network of a container that is not meshed; fix: mesh that one";
            return refuse(400, reason.to_owned());
        }
        let Ok(_permit) = self.changes.acquire().await else { return refuse(503, "it is ending".to_owned()) };
        let image = match self.docker().image(body.image()).await {
            Ok(Some(image)) => image,
            // In the engine's words, on which clients fetch it and try again.
            Ok(None) => return relay::ask(&self.engine, &head.with_body(bytes)).await,
            Err(error) => return refuse(502, error.to_string()),
        };
        if let Err(refusal) = self.rules.attest(&workload, body.image(), &image) {
            return refuse(403, refusal.to_string());
        }
        let Some(group) = random() else { return refuse(500, "no randomness".to_owned()) };
        let exposed = exposed(&image);
        let asked = Asked { body: &body, name, workload: &workload, group: &group, exposed: Some(&exposed) };
        let plan = match plan(asked, &self.settings) {
            Ok(plan) => plan,
            Err(reason) => return refuse(400, reason),
        };
        match self.volumes_from(&body).await {
            Ok(None) => {}
            Ok(Some(reason)) => return refuse(400, reason),
            Err(error) => return refuse(502, error.to_string()),
        }
        // Whoever clears away what has no app waits until it has one.
        let _lock = self.groups.lock(&group).await;
        let mut made = Made::default();
        let base = name.map_or_else(|| format!("signet-{group}"), str::to_owned);
        let done = self.make_all(head, &plan, version, &base, &image, &mut made).await;
        let answer = done.unwrap_or_else(|error| match error {
            // The engine's own words, as if it had been asked for this alone.
            DockerError::Refused { status, message } => Answer::refusal(status.as_u16(), &message),
            error => Answer::refusal(502, &format!("signet: {error}")),
        });
        if answer.is_success() {
            tell(format!("{shown} is meshed as {workload}"));
            return answer;
        }
        for id in made.0.iter().rev() {
            if let Err(error) = self.docker().remove(id).await {
                tell(format!("{shown}: {id} was made for it and cannot be removed: {error}"));
            }
        }
        answer
    }

    async fn make_all(
        &self,
        head: &Head,
        plan: &Plan,
        version: &str,
        base: &str,
        image: &Image,
        made: &mut Made,
    ) -> Result<Answer, DockerError> {
        let docker = self.docker();
        let holder = docker.create(version, &format!("{base}-holder"), &plan.holder).await?;
        made.0.push(holder.clone());
        if let Some(network) = &self.network {
            self.join(network, &holder).await?;
        }
        let sidecar = docker.create(version, &format!("{base}-sidecar"), &plan.sidecar(&holder)).await?;
        made.0.push(sidecar);
        let answer =
            relay::ask(&self.engine, &head.with_body(plan.app(&holder).to_string().as_bytes())).await;
        let Some(id) = id_in(&answer) else { return Ok(answer) };
        made.0.push(id.clone());
        // A name may have been given to another image meanwhile.
        let found = docker.container(&id).await?;
        if found.is_none_or(|found| found.image != image.id) {
            let message =
                "signet: image-changed: the image was replaced while the container was made; fix: try again";
            return Ok(Answer::refusal(409, message));
        }
        Ok(warned(answer, &plan.warnings))
    }

    /// Why a container may not have the volumes of another one, if it may not.
    async fn volumes_from(&self, body: &Body) -> Result<Option<String>, DockerError> {
        for other in body.host_texts("VolumesFrom") {
            let name = other.split(':').next().unwrap_or(other);
            // Of one that is not there the engine says so itself.
            let Some(found) = self.docker().container(&encode(name)).await? else { continue };
            if found.label(ROLE_LABEL).is_some_and(|role| role != ROLE_APP) {
                return Ok(Some(format!(
                    "reserved-mount: {name} has keys or holds a network; fix: leave it out"
                )));
            }
            let mounts = found.mounts.iter().flatten().flat_map(|mount| [&mount.name, &mount.source]);
            if let Some(source) = mounts.into_iter().find(|source| self.settings.holds_back(source)) {
                return Ok(Some(reserved(&format!("{source}, which {name} has,"))));
            }
        }
        Ok(None)
    }

    /// Puts a holder into the control plane's network, unless that is one of its own.
    async fn join(&self, network: &str, holder: &str) -> Result<(), DockerError> {
        let found = self.docker().container(holder).await?;
        let networks = found.and_then(|found| found.network_settings.networks).unwrap_or_default();
        let already =
            networks.iter().any(|(name, endpoint)| name == network || endpoint.network_id == network);
        if already { Ok(()) } else { self.docker().connect(network, holder).await }
    }

    /// The holder of the meshed container whose network this one is to live in.
    async fn joined(&self, body: &Body) -> Result<Option<String>, DockerError> {
        let Some(other) = body.host_text("NetworkMode").strip_prefix("container:") else { return Ok(None) };
        let group = self.groups.of(other).await?;
        Ok(group.and_then(|group| group.holder().ok().map(str::to_owned)))
    }

    pub(super) const fn docker(&self) -> &crate::docker::Docker {
        &self.groups.docker
    }
}

fn exposed(image: &Image) -> Map<String, Value> {
    let ports = image.config.as_ref().and_then(|config| config.exposed_ports.as_ref());
    ports.into_iter().flatten().map(|(port, value)| (port.clone(), value.clone())).collect()
}

/// The id that a good answer tells.
fn id_in(answer: &Answer) -> Option<String> {
    let body: Value = serde_json::from_slice(&answer.body).ok().filter(|_| answer.is_success())?;
    Some(body.get("Id")?.as_str()?.to_owned())
}

/// Puts warnings among those of the engine.
fn warned(mut answer: Answer, warnings: &[String]) -> Answer {
    if warnings.is_empty() {
        return answer;
    }
    if let Ok(Value::Object(mut body)) = serde_json::from_slice(&answer.body) {
        let told = body.get("Warnings").and_then(Value::as_array).cloned().unwrap_or_default();
        let all: Vec<Value> = told.into_iter().chain(warnings.iter().map(|warning| json!(warning))).collect();
        body.insert("Warnings".to_owned(), all.into());
        answer.body = Value::from(body).to_string().into_bytes();
    }
    answer
}

/// Sixteen hexadecimal digits.
fn random() -> Option<String> {
    let mut bytes = [0; 8];
    rand::fill(&mut bytes).ok()?;
    Some(format!("{:016x}", u64::from_be_bytes(bytes)))
}
