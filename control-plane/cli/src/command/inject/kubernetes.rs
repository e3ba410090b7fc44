//! `signet inject kubernetes`.

use crate::output::{Failure, Format, Verdict};

/// Writes Kubernetes manifests with sidecars in them
#[derive(Debug, clap::Args)]
pub(crate) struct Kubernetes {}

impl Kubernetes {
    pub(crate) fn run(self, _format: Format) -> Result<Verdict, Failure> {
        Err(Failure::Unavailable("not built yet".to_owned()))
    }
}
