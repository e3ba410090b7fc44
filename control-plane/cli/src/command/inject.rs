//! `signet inject`: puts sidecars beside what people already run.

mod compose;
mod kubernetes;

use crate::output::{Failure, Format, Verdict};

/// Puts a sidecar beside each service of a Compose file, or into each pod of Kubernetes manifests
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Example:\n  signet inject compose --dry-run docker-compose.yml")]
pub(crate) enum Inject {
    Compose(Box<compose::Compose>),
    Kubernetes(Box<kubernetes::Kubernetes>),
}

impl Inject {
    pub(crate) fn run(self, format: Format) -> Result<Verdict, Failure> {
        match self {
            Self::Compose(compose) => compose.run(format),
            Self::Kubernetes(kubernetes) => kubernetes.run(format),
        }
    }
}

/// Names the SHA-256 of bytes, as in `sha256:…`.
pub(super) fn digest(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut text = "sha256:".to_owned();
    for byte in digest.as_ref() {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}
