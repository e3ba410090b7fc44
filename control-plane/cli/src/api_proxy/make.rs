//! `POST /containers/create`: what is to be meshed is made with a holder and a sidecar, or not at all.

use aws_lc_rs::rand;
use serde_json::{Map, Value, json};

use super::body::Body;
use super::create::{Asked, Plan, plan};
use super::head::{Answer, Head};
use super::joining::{Home, reserved_label, reserved_label_of};
use super::{ApiProxy, relay};
use crate::attestor::rules::Choice;
use crate::docker::DockerError;
use crate::docker::operations::Image;

/// What is made so far; what fails takes it away again.
#[derive(Debug, Default)]
pub(super) struct Made(pub(super) Vec<String>);

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
        if let Some(label) = reserved_label(&body) {
            let reason = format!("reserved-label: {label} is set by signet alone; fix: leave it out");
            return refuse(400, reason);
        }
        let home = match self.home(&body).await {
            Ok(Home::Refused(reason)) => return refuse(403, reason),
            Ok(home) => home,
            Err(error) => return refuse(502, error.to_string()),
        };
        let workload = match (self.groups.trust.rules.choose(&labels), body.host_text("NetworkMode")) {
            // Where there is no network there is nothing to protect.
            (Choice::Out, _) | (_, "none") => None,
            (Choice::Unnamed, _) if matches!(home, Home::Meshed { .. }) || !self.refuse_unnamed => None,
            (Choice::Unnamed, _) => {
                let reason = "workload-unnamed: neither its labels nor a rule say which workload it is; fix: name it by \
                              the label signet.mf2c-project.eu/workload, or keep it out by \
                              signet.mf2c-project.eu/inject=false";
                return refuse(403, reason.to_owned());
            }
            (Choice::Workload(workload), _) => Some(workload),
        };
        if workload.is_some() && home == Home::Unmeshed {
            let reason = "unmeshed-namespace: it joins the network of a container that is not meshed; fix: mesh that one";
            return refuse(400, reason.to_owned());
        }
        let Ok(_permit) = self.changes.acquire().await else { return refuse(503, "it is ending".to_owned()) };
        let image = match body.image() {
            "" => Ok(None),
            name => self.docker().image(name).await,
        };
        let image = match image {
            Ok(Some(image)) => image,
            // In the engine's words, on which clients fetch it and try again. The engine is not asked: it may have it by now.
            Ok(None) => return Answer::refusal(404, &format!("No such image: {}", body.image())),
            Err(error) => return refuse(502, error.to_string()),
        };
        if let Some(label) = reserved_label_of(&image) {
            let reason = format!(
                "reserved-label: the image has {label}, which is set by signet alone; fix: make the image without it"
            );
            return refuse(403, reason);
        }
        if let Home::Meshed { container, workload } = &home {
            return self.make_guest(head, body, (container, workload), &image, tell).await;
        }
        let Some(workload) = workload else { return relay::ask(&self.engine, &head.with_body(bytes)).await };
        if let Err(refusal) = self.groups.trust.rules.attest(&workload, body.image(), &image) {
            return refuse(403, refusal.to_string());
        }
        let Some(group) = random() else { return refuse(500, "no randomness".to_owned()) };
        let exposed = exposed(&image);
        let asked = Asked { body: &body, name, workload: &workload, group: &group, exposed: Some(&exposed) };
        let plan = match plan(asked, &self.settings) {
            Ok(plan) => plan,
            Err(reason) => return refuse(400, reason),
        };
        match self.mounts_fault(&body).await {
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
        self.take_away(&made, shown, tell).await;
        answer
    }

    pub(super) async fn take_away(&self, made: &Made, shown: &str, tell: fn(String)) {
        for id in made.0.iter().rev() {
            if let Err(error) = self.docker().remove(id).await {
                tell(format!("{shown}: {id} was made for it and cannot be removed: {error}"));
            }
        }
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
        if let Some(reason) = self.made_otherwise(&id, image).await? {
            return Ok(Answer::refusal(409, &format!("signet: {reason}")));
        }
        Ok(warned(answer, &plan.warnings))
    }

    /// Puts a holder into the control plane's network, unless that is one of its own.
    async fn join(&self, network: &str, holder: &str) -> Result<(), DockerError> {
        let found = self.docker().container(holder).await?;
        let networks = found.and_then(|found| found.network_settings.networks).unwrap_or_default();
        let already =
            networks.iter().any(|(name, endpoint)| name == network || endpoint.network_id == network);
        if already { Ok(()) } else { self.docker().connect(network, holder).await }
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
pub(super) fn id_in(answer: &Answer) -> Option<String> {
    let body: Value = serde_json::from_slice(&answer.body).ok().filter(|_| answer.is_success())?;
    Some(body.get("Id")?.as_str()?.to_owned())
}

/// Puts warnings among those of the engine.
pub(super) fn warned(mut answer: Answer, warnings: &[String]) -> Answer {
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
