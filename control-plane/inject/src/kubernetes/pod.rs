//! One pod: read, checked, changed.

use serde_json::{Value, json};

use super::annotations::{Annotations, INJECTED, WORKLOAD};
use super::model::{List, Pod, labels, made};
use super::ports::{self, WorkloadPort};
use super::reason::{Finding, InjectError, Reason};
use super::{Options, Sidecar, probes, security, sidecar};

/// Whose pod it is.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// The kind that makes it, such as `Deployment`.
    pub kind: &'a str,
    /// The owner's name, which becomes the last part of the identity.
    pub name: &'a str,
}

/// What became of a pod.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Whether it has a sidecar now that it did not have.
    pub changed: bool,
    /// What is to be known about it.
    pub findings: Vec<Finding>,
    /// Who it is in the mesh; `None` where it is not in it.
    pub workload: Option<PodWorkload>,
}

/// Who an injected pod is in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodWorkload {
    /// The first part of the identity, where the pod says it.
    pub class: Option<String>,
    /// Its labels, which Services select it by.
    pub labels: std::collections::BTreeMap<String, String>,
    /// The last part of the identity.
    pub name: String,
    /// Where it listens.
    pub ports: Vec<WorkloadPort>,
}

/// Puts a sidecar into a pod, or into the template of one: an object with `metadata` and `spec`.
///
/// # Errors
/// When the pod cannot have one. It is unchanged then.
pub fn inject_pod(pod: &mut Value, owner: Owner<'_>, options: &Options) -> Result<Outcome, InjectError> {
    let annotations = Annotations::of(pod)?;
    let read = Pod::read(pod)?;
    let name = annotations.workload.as_deref().unwrap_or(owner.name).to_owned();
    if let Some(version) = &annotations.injected {
        for name in [sidecar::CAPTURE, sidecar::PROXY] {
            if !read.containers.iter().any(|container| container.name == name) {
                let path = ["metadata".into(), "annotations".into(), INJECTED.into()];
                return Err(InjectError::at(&path, Reason::MarkWithoutSidecar(name, INJECTED)));
            }
        }
        let ports = ports::of_pod(&read, &annotations, &mut Vec::new());
        let workload = PodWorkload { class: annotations.class, labels: labels(pod), name, ports };
        let findings = vec![Finding::AlreadyInjected { version: version.clone() }];
        return Ok(Outcome { changed: false, findings, workload: Some(workload) });
    }
    if let Some(finding) = left_alone(&read, &annotations) {
        return Ok(Outcome { changed: false, findings: vec![finding], workload: None });
    }
    security::check(&read)?;
    let mut findings = security::findings(&read);
    if options.sidecar == Sidecar::Container {
        findings.extend(of_plain_container(&read, owner));
    }
    let taken = probes::read(&read, &mut findings)?;
    let ports = ports::of_pod(&read, &annotations, &mut findings);
    let losses: Vec<_> = read
        .containers
        .iter()
        .map(|container| (container.list, container.number, security::to_drop(container)))
        .collect();

    security::drop_capabilities(pod, &losses);
    probes::redirect(pod, &taken);
    let added =
        sidecar::Added { excluded: &annotations.excluded, probes: probes::setting(&taken), workload: &name };
    sidecar::add(pod, &added, options);
    let written = made(made(pod, "metadata", json!({})), "annotations", json!({}));
    *made(written, INJECTED, Value::Null) = env!("CARGO_PKG_VERSION").into();
    // Who it is, for the control plane: a pod's own name says less.
    *made(written, WORKLOAD, Value::Null) = name.as_str().into();
    let workload = PodWorkload { class: annotations.class, labels: labels(pod), name, ports };
    Ok(Outcome { changed: true, findings, workload: Some(workload) })
}

fn left_alone(pod: &Pod<'_>, annotations: &Annotations) -> Option<Finding> {
    if annotations.inject == Some(false) {
        Some(Finding::OptedOut)
    } else if pod.host_network {
        Some(Finding::HostNetwork)
    } else {
        pod.windows.then_some(Finding::Windows)
    }
}

/// What a sidecar that is a plain container cannot do.
fn of_plain_container(pod: &Pod<'_>, owner: Owner<'_>) -> Vec<Finding> {
    let steps = pod.containers.iter().filter(|container| container.list == List::InitContainers);
    let mut findings: Vec<Finding> =
        steps.map(|step| Finding::StartsWithoutNetwork { container: step.name.to_owned() }).collect();
    if ["CronJob", "Job"].contains(&owner.kind) {
        findings.push(Finding::NeverEnds);
    }
    findings
}
