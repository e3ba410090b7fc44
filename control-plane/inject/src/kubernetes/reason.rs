//! Why manifests are refused, and what is to be known about those that are not.

use std::fmt;

use serde::Serialize;
use thiserror::Error;

use super::documents::Step;

/// Why an object is refused. Each has a stable code.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Reason {
    /// An annotation of ours that does not exist.
    #[error("there is no annotation `{name}`; fix: write one of {known}")]
    AnnotationUnknown {
        /// As written.
        name: String,
        /// Those that exist.
        known: String,
    },
    /// An annotation of ours that says nothing known.
    #[error("annotation `{name}` says `{value}`; fix: write {fix}")]
    AnnotationValue {
        /// Which.
        name: String,
        /// What it says.
        value: String,
        /// What it may say.
        fix: String,
    },
    /// A version of the API that has no such kind.
    #[error("`{found}` has no {kind}; fix: write `apiVersion: {wanted}`")]
    ApiVersion {
        /// The kind.
        kind: String,
        /// The version that was written.
        found: String,
        /// The version that has it.
        wanted: &'static str,
    },
    /// A Compose file.
    #[error("this is a Compose file; fix: `signet inject compose`")]
    Compose,
    /// A container is named like one of ours, and the pod is not marked as injected.
    #[error(
        "a container is called `{0}`, as the sidecar's are; fix: rename it, or take out what was injected by hand"
    )]
    ContainerName(String),
    /// Marked as injected, and nothing was.
    #[error("it is marked as injected and has no container `{0}`; fix: take the annotation `{1}` out")]
    MarkWithoutSidecar(&'static str, &'static str),
    /// No object of Kubernetes.
    #[error("this is no Kubernetes object: it has no `{missing}`; fix: {fix}")]
    NotKubernetes {
        /// The field that every object has.
        missing: &'static str,
        /// What to do.
        fix: &'static str,
    },
    /// A port that the sidecar needs.
    #[error("port {0} is the sidecar's; fix: have the container listen on another")]
    PortTaken(u16),
    /// A probe asks a port by a name that its container does not have.
    #[error("no port of this container is called `{0}`; fix: name one, or write its number")]
    ProbePort(String),
    /// A container runs as the sidecar's user, whose connections are not captured.
    #[error("it runs as user 1337, whose connections are not captured; fix: another `runAsUser`")]
    ProxyUser,
    /// Something is not of the type that Kubernetes has there.
    #[error("`{field}` is not {expected}; fix: see `kubectl explain {explain}`")]
    Shape {
        /// The field.
        field: String,
        /// What it has to be.
        expected: &'static str,
        /// Where Kubernetes explains it.
        explain: &'static str,
    },
    /// A template that was not rendered.
    #[error(
        "this is a template that was not rendered; fix: `helm template … | signet inject kubernetes -f -`"
    )]
    Template,
    /// More documents than a file may have.
    #[error("there are more than {most} documents; fix: split the file")]
    TooManyDocuments {
        /// The bound.
        most: usize,
    },
    /// More entries than the sidecar takes.
    #[error("there are more than {most} {what}; fix: use fewer")]
    TooMany {
        /// What.
        what: &'static str,
        /// The bound.
        most: usize,
    },
    /// A volume is named like one of ours.
    #[error("a volume is called `{0}`, as one of the sidecar's is, which nobody else mounts; fix: rename it")]
    VolumeName(String),
    /// Two objects would have one identity.
    #[error(
        "`{name}` in namespace `{namespace}` is injected twice; fix: give one of them the annotation `{annotation}`"
    )]
    WorkloadTwice {
        /// The workload's name.
        name: String,
        /// Its namespace.
        namespace: String,
        /// What names it otherwise.
        annotation: &'static str,
    },
    /// No YAML.
    #[error("{message}; fix: correct the YAML here")]
    Yaml {
        /// The parser's words.
        message: String,
    },
}

impl Reason {
    /// The stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::AnnotationUnknown { .. } => "annotation-unknown",
            Self::AnnotationValue { .. } => "annotation-value",
            Self::ApiVersion { .. } => "api-version",
            Self::Compose => "compose-file",
            Self::ContainerName(_) => "container-name",
            Self::MarkWithoutSidecar(..) => "mark-without-sidecar",
            Self::NotKubernetes { .. } => "not-kubernetes",
            Self::PortTaken(_) => "port-taken",
            Self::ProbePort(_) => "probe-port",
            Self::ProxyUser => "proxy-user",
            Self::Shape { .. } => "shape",
            Self::Template => "template",
            Self::TooMany { .. } => "too-many",
            Self::TooManyDocuments { .. } => "too-many-documents",
            Self::VolumeName(_) => "volume-name",
            Self::WorkloadTwice { .. } => "workload-twice",
            Self::Yaml { .. } => "yaml",
        }
    }
}

/// A reason and where in the object it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InjectError {
    /// The way from the object that was given to the node at fault.
    pub path: Vec<Step>,
    /// What is wrong.
    pub reason: Reason,
}

impl InjectError {
    pub(super) fn at(path: &[Step], reason: Reason) -> Self {
        Self { path: path.to_vec(), reason }
    }

    /// The same, seen from an object around.
    pub(super) fn below(mut self, path: &[Step]) -> Self {
        self.path.splice(0..0, path.iter().cloned());
        self
    }
}

impl fmt::Display for InjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.path {
            match step {
                Step::Entry(number) => write!(f, "[{number}]")?,
                Step::Field(name) => write!(f, ".{name}")?,
            }
        }
        write!(f, ": {}", self.reason)
    }
}

impl std::error::Error for InjectError {}

/// What is to be known about an object that was injected, or why it was not. Nothing here refuses anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "code", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Finding {
    /// It has a sidecar already.
    AlreadyInjected {
        /// The version that put it there.
        version: String,
    },
    /// A Service's address, assigned by the cluster, is not in the file.
    ClusterAddressUnknown {
        /// The Service.
        service: String,
    },
    /// A container can send what the sidecar does not see.
    EgressNotEnforceable {
        /// The container, or the pod where it is about all.
        container: String,
        /// What lets it.
        because: String,
    },
    /// A hook that the kubelet calls over the network.
    HookOverNetwork {
        /// The container.
        container: String,
        /// `postStart` or `preStop`.
        hook: String,
    },
    /// The node's own network.
    HostNetwork,
    /// A Job beside a sidecar that is a plain container.
    NeverEnds,
    /// A port that is neither TCP nor captured.
    NotTcp {
        /// The container or Service.
        of: String,
        /// The port.
        port: u64,
        /// Its protocol.
        protocol: String,
    },
    /// By annotation.
    OptedOut,
    /// A probe that goes somewhere else than to the pod.
    ProbeLeftAlone {
        /// The container.
        container: String,
        /// Which probe.
        probe: String,
        /// Why.
        because: String,
    },
    /// A probe by HTTPS.
    ProbeOverTls {
        /// The container.
        container: String,
        /// Which probe.
        probe: String,
    },
    /// Init containers beside a sidecar that starts after them.
    StartsWithoutNetwork {
        /// The init container.
        container: String,
    },
    /// A pod of Windows.
    Windows,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyInjected { version } => {
                write!(f, "already injected by version {version}: left as it is; to inject anew, start from the original")
            }
            Self::ClusterAddressUnknown { service } => write!(
                f,
                "service `{service}`: its cluster address is not in the file, and calls to it are outside the mesh until the Workload lists it under `virtualAddresses`; fix: once it exists, `kubectl get service {service} -o yaml` beside this file"
            ),
            Self::EgressNotEnforceable { container, because } => {
                write!(f, "container `{container}`: egress not enforceable: {because}")
            }
            Self::HookOverNetwork { container, hook } => write!(
                f,
                "container `{container}`: the kubelet calls `{hook}` over the network, which a strict mesh refuses; fix: use `exec`"
            ),
            Self::HostNetwork => f.write_str("not meshed: it uses the node's network"),
            Self::NeverEnds => f.write_str(
                "a sidecar that is a plain container keeps a Job from ending; fix: leave out `--sidecar container`",
            ),
            Self::NotTcp { of, port, protocol } => {
                write!(f, "`{of}`: port {port} is {protocol}: never protected, allowed or refused as a whole")
            }
            Self::OptedOut => f.write_str("not meshed: its annotation says so"),
            Self::ProbeLeftAlone { container, probe, because } => {
                write!(f, "container `{container}`: `{probe}` is left as it is: {because}")
            }
            Self::ProbeOverTls { container, probe } => write!(
                f,
                "container `{container}`: the sidecar asks `{probe}` over TLS 1.3 alone; where the app has TLS 1.2 only, probe a port without TLS"
            ),
            Self::StartsWithoutNetwork { container } => write!(
                f,
                "init container `{container}`: it has no network, since a sidecar that is a plain container starts after it"
            ),
            Self::Windows => f.write_str("not meshed: it is a pod of Windows"),
        }
    }
}
