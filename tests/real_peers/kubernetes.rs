//! Kubernetes' published schemas, `kubectl` and `helm` on the manifests that Signet writes. No cluster runs here.

use std::path::Path;
use std::process::Command;

use signet_cli::lab::runner::TestResult;

use crate::programs::{python, script};

/// What is injected and installed fits the schemas of three versions of Kubernetes.
pub(crate) fn manifests_fit_the_schemas_of_kubernetes() -> TestResult {
    run("validate")
}

/// `kubectl kustomize` and `helm template` give the same objects.
pub(crate) fn chart_renders_what_kustomize_renders() -> TestResult {
    run("compare")
}

fn run(what: &str) -> TestResult {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let output = Command::new(python()?).arg(script("kubernetes.py")).arg(what).arg(root).output()?;
    let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    println!("{printed}");
    if output.status.success() { Ok(()) } else { Err(printed.into_owned().into()) }
}
