//! The real kubectl against the API server of these tests and the real control plane: definitions and policies are applied by
//! both of its ways, and their status is waited for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use signet_cli::lab::mesh::{Mesh, program};
use signet_cli::lab::runner::TestResult;
use signet_cli::lab::{Host, HostPlan, Lab, Program};
use signet_tests::Failure;
use signet_tests::kubernetes::{ApiServer, Cluster, Endpoint};

use crate::programs::{python, script};

/// How long kubectl may take, waiting included.
const PATIENCE: Duration = Duration::from_secs(120);

struct Stage {
    kubectl: PathBuf,
    config: PathBuf,
    host: Host,
    folder: tempfile::TempDir,
    root: PathBuf,
    _mesh: Mesh,
    _api: ApiServer,
    _lab: Lab,
}

impl Stage {
    fn new() -> Result<Self, Failure> {
        let folder = tempfile::tempdir()?;
        let output =
            Command::new(python()?).arg(script("kubernetes.py")).arg("tools").arg(folder.path()).output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        let kubectl = PathBuf::from(String::from_utf8(output.stdout)?.trim());
        let lab = Lab::new()?;
        let host = lab.host("host", HostPlan::numbered(1))?;
        let cluster = Cluster::new();
        let endpoint = Endpoint::new(host.ipv4())?;
        let api = ApiServer::start(host.namespace(), &endpoint, &cluster)?;
        let credentials = endpoint.credentials(folder.path(), "signet-system")?;
        let config = endpoint.kubeconfig(folder.path())?;
        let signet = program(&[])
            .env("SIGNET_KUBERNETES", "attest,controller,webhook")
            .env("SIGNET_KUBERNETES_API", endpoint.address.to_string())
            .env("SIGNET_KUBERNETES_CREDENTIALS", credentials);
        let mesh = Mesh::start_program(signet, host.namespace(), host.ipv4(), "mf2c.example")?;
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
        Ok(Self { kubectl, config, host, folder, root, _mesh: mesh, _api: api, _lab: lab })
    }

    /// Runs it to its end: whether it was content, and what it said.
    fn run(&self, arguments: &[&str]) -> Result<(bool, String), Failure> {
        let program = Program::new(&self.kubectl)
            .env("KUBECONFIG", &self.config)
            .env("HOME", self.folder.path())
            .args(["--cache-dir", &self.folder.path().join("cache").display().to_string()])
            .args(arguments);
        let running = self.host.namespace().start(program)?;
        let status = running.wait(PATIENCE)?;
        Ok((status.success(), running.output()))
    }

    /// Runs it; it has to be content.
    fn kubectl(&self, arguments: &[&str]) -> Result<String, Failure> {
        let (content, said) = self.run(arguments)?;
        if content { Ok(said) } else { Err(format!("kubectl {}: {said}", arguments.join(" ")).into()) }
    }

    fn apply(&self, path: &Path, way: &str) -> Result<String, Failure> {
        self.kubectl(&["apply", way, "-f", &path.display().to_string()])
    }
}

pub(crate) fn kubectl_applies_policies_and_sees_them_accepted_and_programmed() -> TestResult {
    let stage = Stage::new()?;
    // The rules first: the control plane may do nothing before.
    stage.kubectl(&[
        "apply",
        "--server-side=true",
        "-f",
        &stage.root.join("kubernetes/access.yaml").display().to_string(),
    ])?;
    stage.apply(&stage.root.join("kubernetes/crds"), "--server-side=false")?;
    stage.kubectl(&[
        "wait",
        "--for=condition=Established",
        "--timeout=60s",
        "customresourcedefinitions",
        "--all",
    ])?;
    stage.apply(&stage.root.join("kubernetes/webhook.yaml"), "--server-side=false")?;

    // What is installed in a mesh of examples: their Mesh, their workloads and the rules between them.
    for (file, way) in [
        ("mesh.yaml", "--server-side=false"),
        ("agent-leader.yaml", "--server-side=true"),
        ("agent-access.yaml", "--server-side=false"),
    ] {
        let said = stage.apply(&stage.root.join("examples").join(file), way)?;
        assert!(said.contains("created") || said.contains("serverside-applied"), "{said}");
    }
    for condition in ["Accepted", "Programmed"] {
        let waited = format!("--for=condition={condition}");
        stage.kubectl(&["wait", &waited, "--timeout=60s", "meshes,workloads,accesspolicies", "--all"])?;
    }
    let shown = stage.kubectl(&[
        "get",
        "accesspolicy",
        "cimi-access",
        "-o",
        "jsonpath={.status.conditions[?(@.type==\"Programmed\")].message}",
    ])?;
    assert_eq!(shown.trim(), "in force at 0 of 0 connected proxies");

    // Applied again, nothing changes.
    let said = stage.apply(&stage.root.join("examples/mesh.yaml"), "--server-side=false")?;
    assert!(said.contains("unchanged"), "{said}");

    // A field that does not exist is refused by the server, by the schema in the definition.
    let wrong = stage.folder.path().join("wrong.yaml");
    let policy = "apiVersion: signet.mf2c-project.eu/v1alpha1\nkind: AccessPolicy\nmetadata: {name: wrong}\n";
    fs::write(
        &wrong,
        format!("{policy}spec: {{target: {{workloads: [leader-cimi]}}, rules: [], rulez: []}}\n"),
    )?;
    let (content, said) = stage.run(&["apply", "-f", &wrong.display().to_string()])?;
    assert!(!content && said.contains("rulez"), "{said}");
    // What only the compiler can know is told in the status.
    fs::write(
        &wrong,
        format!("{policy}spec: {{target: {{workloads: [nobody]}}, rules: [{{from: [{{class: app}}]}}]}}\n"),
    )?;
    stage.apply(&wrong, "--server-side=false")?;
    stage.kubectl(&["wait", "--for=condition=Accepted=False", "--timeout=60s", "accesspolicy/wrong"])?;
    let shown = stage.kubectl(&[
        "get",
        "accesspolicy",
        "wrong",
        "-o",
        "jsonpath={.status.conditions[?(@.type==\"Accepted\")].message}",
    ])?;
    assert!(shown.contains("spec.target.workloads[0]") && shown.contains("nobody"), "{shown}");
    stage.kubectl(&["delete", "accesspolicy", "wrong", "--wait=false"])?;

    // The API server has been told whom to believe.
    stage.kubectl(&[
        "wait",
        "--for=jsonpath={.webhooks[0].clientConfig.caBundle}",
        "--timeout=60s",
        "mutatingwebhookconfiguration/signet-control-plane",
    ])?;
    Ok(())
}
