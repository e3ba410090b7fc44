//! Kubernetes manifests: a native sidecar in each pod.
//!
//! ```text
//! files ─► documents ─► objects ─► pod ─► checked ─► changed ─► documents as text
//!                         └ Services ─────────────────────────► Workload manifests
//! ```
//!
//! Promises: a document without a pod, or whose pods are left alone, comes out byte for byte; what was injected comes out
//! as it went in; nothing comes out at all if anything is refused. Comments in documents that are changed are lost, and
//! their fields come in alphabetical order.
//!
//! [`inject_pod`] works on one pod; [`admit`] is what an admission webhook makes of it.

mod admission;
mod annotations;
mod at;
mod documents;
mod model;
mod objects;
mod patch;
mod pod;
mod ports;
mod probes;
mod reason;
mod security;
mod sidecar;
mod workloads;

use std::collections::HashSet;
use std::fmt;

use serde::Serialize;
use serde_json::Value;

pub use admission::{Admission, ReviewError, admit};
pub use annotations::{PREFIX as ANNOTATION_PREFIX, WORKLOAD as WORKLOAD_ANNOTATION, is_name};
use documents::Document;
pub use documents::Step;
use objects::{Object, Service};
pub use patch::patch;
pub use pod::{Outcome, Owner, PodWorkload, inject_pod};
pub use ports::WorkloadPort;
pub use reason::{Finding, InjectError, Reason};
use workloads::Located;

/// Most bytes of one file: rendered charts with their custom resource definitions have a few MiB.
pub const MAX_TEXT_BYTES: usize = 16 * 1024 * 1024;
/// Most lists within lists.
const LISTS_MAX: usize = 4;
/// Most objects with pods: as many as a mesh may have workloads.
const WORKLOADS_MAX: usize = 10_000;
/// What the names of Services end with where nobody chose otherwise.
const CLUSTER_DOMAIN: &str = "cluster.local";
/// What the names of the sidecars' Secrets begin with; the workload's name follows.
pub const SECRET_PREFIX: &str = "signet-";
/// The ConfigMap with the mesh's roots, which the control plane keeps in each namespace that has [`NAMESPACE_LABEL`].
pub const ROOTS_CONFIG_MAP: &str = "signet-roots";
/// Its only key: the roots, PEM.
pub const ROOTS_KEY: &str = "roots.pem";
/// With the value `enabled`, a namespace is one whose pods get sidecars.
pub const NAMESPACE_LABEL: &str = "signet.mf2c-project.eu/injection";

/// What is put into pods.
#[derive(Clone, Debug)]
pub struct Options {
    /// Class of workloads whose pods do not say theirs.
    pub class: String,
    /// The control plane, `HOST:PORT`.
    pub control_plane: String,
    /// How sidecars get their identity.
    pub enrolment: Enrolment,
    /// The image of `signet-proxy`.
    pub image: String,
    /// Namespace of objects that do not say theirs.
    pub namespace: String,
    /// Name of the cluster's network in the `Mesh`.
    pub network: String,
    /// In which form the sidecar is put into a pod.
    pub sidecar: Sidecar,
}

/// How a sidecar gets its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enrolment {
    /// By a token in a Secret, which an operator makes.
    Secret,
    /// By its pod's service-account token, which the control plane has reviewed.
    ServiceAccount {
        /// The mesh that the token is for.
        trust_domain: String,
    },
}

/// What service-account tokens for a mesh are made for: no other mesh, and no API server, takes them.
pub fn audience(trust_domain: &str) -> String {
    format!("spiffe://{trust_domain}")
}

/// The form of a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sidecar {
    /// A container beside the others: for Kubernetes before 1.29 and for `podman kube play`.
    Container,
    /// An init container that goes on (`restartPolicy: Always`).
    Native,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            class: "app".to_owned(),
            control_plane: "signet-control-plane.signet-system.svc:15012".to_owned(),
            enrolment: Enrolment::ServiceAccount { trust_domain: "cluster.example".to_owned() },
            image: concat!("signet-proxy:", env!("CARGO_PKG_VERSION")).to_owned(),
            namespace: "default".to_owned(),
            network: "cluster".to_owned(),
            sidecar: Sidecar::Native,
        }
    }
}

/// A file and its name in messages.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The name.
    pub name: &'a str,
    /// The text.
    pub text: &'a str,
}

/// What came of manifests.
#[derive(Clone, Debug, Default)]
pub struct Injected {
    /// All of them, with sidecars.
    pub manifests: String,
    /// What is to be known.
    pub notes: Vec<Note>,
    /// The Secrets that pods wait for; none where they enrol otherwise.
    pub secrets: Vec<Secret>,
    /// `Workload` manifests of what is in the mesh now, YAML.
    pub workloads: String,
}

/// The Secret with a workload's token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Secret {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The `Workload` that the token is for.
    pub workload: String,
}

/// Where an object stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The document, from 1.
    pub document: usize,
    /// Kind and name, such as `Deployment web`; empty where they are not known.
    pub object: String,
}

/// A finding and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// What.
    #[serde(flatten)]
    pub finding: Finding,
}

/// A refusal and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// Why.
    pub reason: Reason,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: document {}", self.file, self.line, self.document)?;
        if self.object.is_empty() { Ok(()) } else { write!(f, ", {}", self.object) }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.finding)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)
    }
}

/// Puts a sidecar into each pod of the files.
///
/// # Errors
/// All that is at fault, one fault for each document; nothing is injected then.
pub fn inject(files: &[Source<'_>], options: &Options) -> Result<Injected, Vec<Fault>> {
    let mut run = Run {
        options,
        faults: Vec::new(),
        notes: Vec::new(),
        services: Vec::new(),
        workloads: Vec::new(),
        names: HashSet::new(),
    };
    let mut manifests = String::new();
    for file in files {
        if !manifests.is_empty() {
            if !manifests.ends_with('\n') {
                manifests.push('\n');
            }
            manifests.push_str("---\n");
        }
        run.file(file, &mut manifests);
    }
    run.name_services();
    if !run.faults.is_empty() {
        return Err(run.faults);
    }
    Ok(Injected { manifests, secrets: run.secrets(), workloads: run.manifests(), notes: run.notes })
}

/// What was read so far.
struct Run<'o> {
    options: &'o Options,
    faults: Vec<Fault>,
    notes: Vec<Note>,
    services: Vec<(Place, Service)>,
    workloads: Vec<Located>,
    names: HashSet<String>,
}

impl Run<'_> {
    fn file(&mut self, file: &Source<'_>, out: &mut String) {
        let place =
            |line, document| Place { file: file.name.to_owned(), line, document, object: String::new() };
        let documents = match documents::split(file.text) {
            Ok(documents) => documents,
            Err(reason) => return self.faults.push(Fault { place: place(1, 1), reason }),
        };
        // A file that begins with a separator has nothing before it.
        let empty = documents.first().is_some_and(|first| first.body.is_empty());
        for (number, document) in documents.iter().enumerate() {
            let number = number + usize::from(!empty);
            if document.is_blank() {
                out.push_str(document.separator);
                out.push_str(document.body);
                continue;
            }
            let read = document
                .read()
                .map_err(|(line, reason)| Box::new(Fault { place: place(line, number), reason }));
            let written = read.and_then(|mut value| {
                let changed =
                    self.object(&mut value, &mut Here { file, document, number, path: Vec::new() })?;
                let whole = |reason| Box::new(Fault { place: place(document.line, number), reason });
                changed.then(|| documents::write(&value).map_err(whole)).transpose()
            });
            match written {
                Ok(Some(text)) => {
                    out.push_str(if document.separator.is_empty() { "" } else { "---\n" });
                    out.push_str(&text);
                }
                Ok(None) => {
                    out.push_str(document.separator);
                    out.push_str(document.body);
                }
                Err(fault) => self.faults.push(*fault),
            }
        }
    }

    /// Changes an object; whether it did.
    fn object(&mut self, value: &mut Value, here: &mut Here<'_>) -> Result<bool, Box<Fault>> {
        let object = objects::classify(value).map_err(|error| here.fault(value, error))?;
        match object {
            Object::List => self.list(value, here),
            Object::Other => Ok(false),
            Object::Service => {
                let service = objects::service(value).map_err(|error| here.fault(value, error))?;
                self.services.extend(service.map(|service| (here.place(value, &[]), service)));
                Ok(false)
            }
            Object::WithPod(with_pod) => self.pod(value, with_pod, here),
        }
    }

    fn list(&mut self, value: &mut Value, here: &mut Here<'_>) -> Result<bool, Box<Fault>> {
        if here.path.len() >= 2 * LISTS_MAX {
            let reason = Reason::TooMany { what: "lists in each other", most: LISTS_MAX };
            return Err(here.fault(value, InjectError::at(&[], reason)));
        }
        let Some(items) = value.get_mut("items").and_then(Value::as_array_mut) else { return Ok(false) };
        let mut changed = false;
        for (number, item) in items.iter_mut().enumerate() {
            here.path.extend([Step::from("items"), Step::Entry(number)]);
            changed |= self.object(item, here)?;
            here.path.truncate(here.path.len().saturating_sub(2));
        }
        Ok(changed)
    }

    fn pod(
        &mut self,
        value: &mut Value,
        object: objects::WithPod,
        here: &Here<'_>,
    ) -> Result<bool, Box<Fault>> {
        let place = here.place(value, &[]);
        let owner = Owner { kind: object.kind, name: &object.name };
        let outcome = objects::pod_of(value, object.way)
            .and_then(|(pod, path)| inject_pod(pod, owner, self.options).map_err(|error| error.below(&path)));
        let outcome = outcome.map_err(|error| here.fault(value, error))?;
        let note = |finding| Note { place: place.clone(), finding };
        self.notes.extend(outcome.findings.into_iter().map(note));
        if let Some(workload) = outcome.workload {
            let namespace = object.namespace.unwrap_or_else(|| self.options.namespace.clone());
            self.add(Located { namespace, workload }).map_err(|reason| Box::new(Fault { place, reason }))?;
        }
        Ok(outcome.changed)
    }

    fn add(&mut self, new: Located) -> Result<(), Reason> {
        if self.workloads.len() >= WORKLOADS_MAX {
            return Err(Reason::TooMany { what: "objects with pods", most: WORKLOADS_MAX });
        }
        if !self.names.insert(new.manifest_name()) {
            let (name, namespace) = (new.workload.name, new.namespace);
            return Err(Reason::WorkloadTwice { name, namespace, annotation: annotations::WORKLOAD });
        }
        self.workloads.push(new);
        Ok(())
    }

    /// Says which Services cannot be known by their address.
    fn name_services(&mut self) {
        for (place, service) in &self.services {
            let used =
                self.workloads.iter().any(|workload| workload.is_behind(service, self.namespace(service)));
            if used && service.addresses.is_empty() && !service.headless {
                let finding = Finding::ClusterAddressUnknown { service: service.name.clone() };
                self.notes.push(Note { place: place.clone(), finding });
            }
        }
    }

    fn namespace<'s>(&'s self, service: &'s Service) -> &'s str {
        service.namespace.as_deref().unwrap_or(&self.options.namespace)
    }

    fn manifests(&self) -> String {
        let manifest = |workload: &Located| {
            let behind = |service: &&Service| workload.is_behind(service, self.namespace(service));
            let services: Vec<&Service> =
                self.services.iter().map(|(_, service)| service).filter(behind).collect();
            // Texts, numbers and lists of them are always written.
            documents::write(&workload.manifest(&services, self.options)).unwrap_or_default()
        };
        self.workloads.iter().map(manifest).collect::<Vec<_>>().join("---\n")
    }

    fn secrets(&self) -> Vec<Secret> {
        let secret = |located: &Located| Secret {
            name: format!("{SECRET_PREFIX}{}", located.workload.name),
            namespace: located.namespace.clone(),
            workload: located.manifest_name(),
        };
        match self.options.enrolment {
            Enrolment::Secret => self.workloads.iter().map(secret).collect(),
            Enrolment::ServiceAccount { .. } => Vec::new(),
        }
    }
}

/// Which object is looked at.
struct Here<'d> {
    file: &'d Source<'d>,
    document: &'d Document<'d>,
    number: usize,
    path: Vec<Step>,
}

impl Here<'_> {
    fn place(&self, object: &Value, below: &[Step]) -> Place {
        let text = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        Place {
            file: self.file.name.to_owned(),
            line: self.document.line_of(&[self.path.as_slice(), below].concat()),
            document: self.number,
            object: format!("{} {}", text("/kind"), text("/metadata/name")).trim().to_owned(),
        }
    }

    fn fault(&self, object: &Value, error: InjectError) -> Box<Fault> {
        Box::new(Fault { place: self.place(object, &error.path), reason: error.reason })
    }
}
