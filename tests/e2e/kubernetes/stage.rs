//! One host with an API server, a control plane that is told of it, and pods.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use signet_cli::lab::mesh::{Evidence, Mesh, Setup, Sidecar, program};
use signet_cli::lab::{Container, Host, HostPlan, Lab};
use signet_tests::kubernetes::{ApiServer, Cluster, Endpoint, PodToken, Rules};
use signet_tests::manifest::TRUST_DOMAIN;
use signet_tests::{Failure, wait_for};

/// The namespace of the control plane.
pub(super) const SYSTEM: &str = "signet-system";
/// The namespace of the pods: what their Workloads have as `device`.
pub(super) const NAMESPACE: &str = "host";

pub(super) struct Stage {
    pub(super) mesh: Mesh,
    pub(super) api: Option<ApiServer>,
    pub(super) endpoint: Endpoint,
    pub(super) cluster: Cluster,
    pub(super) folder: tempfile::TempDir,
    pub(super) host: Host,
    _lab: Lab,
}

/// The audience of tokens for this mesh.
pub(super) fn audience() -> String {
    format!("spiffe://{TRUST_DOMAIN}")
}

/// The documents of manifests, as resources.
pub(super) fn resources(manifests: &str) -> Result<Vec<Value>, Failure> {
    let documents = manifests.split("---\n").filter(|document| !document.trim().is_empty());
    documents.map(|document| Ok(serde_saphyr::from_str::<Value>(document)?)).collect()
}

/// What `kubectl apply -k manifests/kubernetes` applies, of one file.
pub(super) fn installed(file: &str) -> Result<Vec<Value>, Failure> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/kubernetes");
    resources(&fs::read_to_string(root.join(file))?)
}

impl Stage {
    /// Starts all of it with these manifests as resources.
    pub(super) fn new(manifests: &[String]) -> Result<Self, Failure> {
        let lab = Lab::new()?;
        let host = lab.host("host", HostPlan::numbered(1))?;
        let cluster = Cluster::new();
        for definition in signet_policy::custom_resources() {
            cluster.put(&definition.definition);
        }
        let namespace = |name: &str, labels: Value| {
            json!({
                "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels },
            })
        };
        cluster.put(&namespace(NAMESPACE, json!({ "signet.mf2c-project.eu/injection": "enabled" })));
        cluster.put(&namespace("other", json!({})));
        for object in installed("webhook.yaml")? {
            cluster.put(&object);
        }
        let access = installed("access.yaml")?;
        let role = access.iter().find(|object| object["kind"] == "ClusterRole").ok_or("no ClusterRole")?;
        cluster.grant(Rules::of(role));
        for resource in resources(&manifests.concat())? {
            cluster.put(&resource);
        }
        let endpoint = Endpoint::new(host.ipv4())?;
        let api = ApiServer::start(host.namespace(), &endpoint, &cluster)?;
        let folder = tempfile::tempdir()?;
        let credentials = endpoint.credentials(folder.path(), SYSTEM)?;
        let signet = program(&[])
            .env("SIGNET_KUBERNETES", "attest,controller,webhook")
            .env("SIGNET_KUBERNETES_API", endpoint.address.to_string())
            .env("SIGNET_KUBERNETES_CREDENTIALS", credentials)
            .env("SIGNET_KUBERNETES_NETWORK", "lan");
        let mesh = Mesh::start_program(signet, host.namespace(), host.ipv4(), TRUST_DOMAIN)?;
        Ok(Self { mesh, api: Some(api), endpoint, cluster, folder, host, _lab: lab })
    }

    /// Waits until a condition of a resource has this status and its message contains these words.
    pub(super) fn until(
        &self,
        plural: &str,
        name: &str,
        condition: &str,
        status: &str,
        words: &str,
    ) -> Result<String, Failure> {
        wait_for(&format!("{plural}/{name} {condition}={status} {words}"), || {
            let (found, message) = self.cluster.condition(plural, name, condition)?;
            (found == status && message.contains(words)).then_some(message)
        })
    }

    /// The mesh's roots, as a pod has them mounted.
    pub(super) fn roots(&self) -> Result<PathBuf, Failure> {
        let map = wait_for("the ConfigMap with the roots", || {
            self.cluster.object("configmaps", NAMESPACE, "signet-roots")
        })?;
        let path = self.folder.path().join("roots.pem");
        fs::write(&path, map["data"]["roots.pem"].as_str().ok_or("no roots")?)?;
        Ok(path)
    }

    /// A pod of a workload, and its token for this mesh.
    pub(super) fn pod(&self, workload: &str) -> PodToken {
        let pod = PodToken {
            namespace: NAMESPACE.to_owned(),
            account: "default".to_owned(),
            pod: format!("{workload}-7d9f8b6c5-x2x4z"),
            uid: format!(
                "0f0f0f0f-0000-4000-8000-{:012}",
                workload.bytes().fold(0_u64, |sum, byte| (sum * 31 + u64::from(byte)) % 1_000_003)
            ),
            audience: audience(),
            expired: false,
        };
        self.cluster.put(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": pod.pod, "namespace": pod.namespace, "uid": pod.uid,
                "annotations": { "signet.mf2c-project.eu/workload": workload },
            },
            "spec": { "containers": [{ "name": "app", "image": "app" }] },
            "status": { "phase": "Pending" },
        }));
        self.cluster.issue(&token(workload), pod.clone());
        pod
    }

    /// What its sidecar has mounted.
    pub(super) fn setup(&self, workload: &str) -> Result<Setup, Failure> {
        let file = self.folder.path().join(format!("token-{workload}"));
        fs::write(&file, token(workload))?;
        let evidence = Some(Evidence::Pod { token: file, roots: self.roots()? });
        // Keys of a pod are in memory.
        Ok(Setup { forgetful: true, evidence, ..Setup::default() })
    }

    /// Makes the pod, and starts its sidecar in a container's network.
    pub(super) fn sidecar(&self, container: &Container, workload: &str) -> Result<Sidecar, Failure> {
        self.pod(workload);
        Ok(self.mesh.sidecar(container, workload, self.setup(workload)?)?)
    }
}

/// A token as it looks; what it says is known to the API server alone.
pub(super) fn token(workload: &str) -> String {
    format!("eyJhbGciOiJSUzI1NiJ9.{workload}.c2lnbmF0dXJl")
}
