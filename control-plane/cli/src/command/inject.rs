//! `signet inject`: puts sidecars beside what people already run.

mod compose;
mod kubernetes;

use crate::output::{Failure, Format, Verdict};

/// Puts a sidecar beside each service of a Compose file, or into each pod of Kubernetes manifests
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Inject {
    Compose(compose::Compose),
    Kubernetes(kubernetes::Kubernetes),
}

impl Inject {
    pub(crate) fn run(self, format: Format) -> Result<Verdict, Failure> {
        match self {
            Self::Compose(compose) => compose.run(format),
            Self::Kubernetes(kubernetes) => kubernetes.run(format),
        }
    }
}
