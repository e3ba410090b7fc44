//! Pods with a sidecar of the plain kind, run by podman: `signet inject kubernetes --sidecar container` and
//! `podman kube play`. The containers of a pod share a real network namespace, and the rules of its init container hold there.
//!
//! What podman 4.3, Debian's, does not do as Kubernetes does is written into the manifests before they are played, each
//! with its reason in [`played`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use signet_cli::lab::mesh::wait_until;
use signet_cli::lab::namespace::Namespace;
use signet_cli::lab::tap::Tap;
use tempfile::TempDir;

use crate::engine::succeeded;

const CANARY: &str = "canary-77e0d4b1c6";
/// The network that podman puts pods into, its bridge, and the address at which they see their machine.
const NETWORK: &str = "podman-default-kube-network";
const BRIDGE: &str = "cni-podman1";
const MACHINE: &str = "10.89.0.1";
/// A pod, its enrolment and its policy take seconds, on a busy machine too.
const LIMIT: Duration = Duration::from_secs(90);

/// podman with all it keeps in one folder, in a network namespace of its own.
struct Podman {
    namespace: Namespace,
    folder: TempDir,
}

impl Podman {
    fn new() -> Self {
        let namespace = Namespace::new("podman").expect("a network namespace; this test needs root");
        let forward = || fs::write("/proc/sys/net/ipv4/ip_forward", "1");
        namespace.run(forward).expect("the namespace's thread").expect("forwarding");
        let podman = Self { namespace, folder: TempDir::new().unwrap() };
        // No systemd is asked for; runc takes every version of control groups; a small machine grants no more files.
        let settings = "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"runc\"\n\
                        infra_image = \"localhost/pause:1\"\n\
                        [network]\nnetwork_backend = \"cni\"\n\
                        [containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n";
        fs::write(podman.at("containers.conf"), settings).unwrap();
        let images =
            std::env::var("SIGNET_IMAGES").expect("SIGNET_IMAGES: the folder with the images' archives");
        for image in ["signet-proxy", "signet"] {
            let archive = format!("{image}-{}-amd64.tar.gz", env!("CARGO_PKG_VERSION"));
            // podman 4.3 takes no compressed archives.
            let plain = podman.at(&format!("{image}.tar"));
            let unpacked = Command::new("gzip")
                .arg("-dc")
                .arg(Path::new(&images).join(archive))
                .stdout(fs::File::create(&plain).unwrap())
                .status();
            assert!(unpacked.unwrap().success());
            podman.run(&["load", "-q", "-i", &plain.display().to_string()]);
        }
        // What holds a pod's namespaces: a program that waits.
        let (tool, root) = (image("signet"), podman.at("root.tar").display().to_string());
        podman.run(&["create", "--name", "once", &tool]);
        podman.run(&["export", "-o", &root, "once"]);
        let entry = "ENTRYPOINT [\"/signet\", \"app\", \"rest\", \"--listen\", \"127.0.0.1:9\"]";
        podman.run(&["import", "--change", entry, &root, "localhost/pause:1"]);
        podman
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command.arg("--root").arg(self.at("root")).arg("--runroot").arg(self.at("run"));
        command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]);
        command.args(arguments).env("CONTAINERS_CONF", self.at("containers.conf"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn try_run(&self, arguments: &[&str]) -> std::process::Output {
        self.namespace.spawn(self.command(arguments)).expect("podman").wait_with_output().unwrap()
    }

    fn run(&self, arguments: &[&str]) -> String {
        succeeded(&self.try_run(arguments), &format!("podman {}", arguments.join(" ")))
    }

    /// Runs the operator's tool, with what it reads and writes below `/mesh`.
    fn signet(&self, arguments: &[&str]) -> String {
        let mount = format!("{}:/mesh", self.at("mesh").display());
        let image = image("signet");
        let start =
            ["run", "--rm", "--network", "none", "--user", "0:0", "-v", &mount, "-w", "/mesh", &image];
        self.run(&[&start[..], arguments].concat())
    }

    fn address(&self, pod: &str) -> String {
        let infra = self.run(&["pod", "inspect", "-f", "{{.InfraContainerID}}", pod]);
        let place = format!("{{{{(index .NetworkSettings.Networks \"{NETWORK}\").IPAddress}}}}");
        self.run(&["inspect", "-f", &place, infra.trim()]).trim().to_owned()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        for line in [&["pod", "rm", "-f", "-a", "-t", "1"][..], &["rm", "-f", "-a", "-t", "1"]] {
            // What is not there cannot be removed.
            let _ = self.try_run(line);
        }
    }
}

fn image(name: &str) -> String {
    format!("localhost/{name}:{}", env!("CARGO_PKG_VERSION"))
}

fn pod(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default, \
         annotations: {{signet.mf2c-project.eu/ports: \"8201=http\"}}}}\nspec:\n  restartPolicy: OnFailure\n  \
         containers:\n    - name: app\n      image: {}\n      imagePullPolicy: Never\n      \
         args: [app, rest, --listen, \"0.0.0.0:8201\"]\n      securityContext: {{runAsUser: 1000}}\n",
        image("signet")
    )
}

/// What was injected, as podman 4.3 can play it.
fn played(injected: &str) -> String {
    // It looks at `optional` without asking whether it is there.
    let text = injected.replace("      secretName:", "      optional: false\n      secretName:");
    // It publishes every port of a container at the host, where there is only one 15020.
    let text = text.replace("    ports:\n    - containerPort: 15020\n      name: signet-admin\n", "");
    // Its empty folders are root's, and the sidecar is not root: it keeps what it has in memory, and enrols at each start.
    let state = "    - name: SIGNET_STATE_DIR\n      value: /var/lib/signet\n";
    assert!(text.contains(state), "{text}");
    text.replace(state, "")
}

#[test]
fn injected_pods_are_played_by_podman_and_speak_mutual_tls() {
    let podman = Podman::new();
    fs::create_dir(podman.at("mesh")).unwrap();
    let mount = format!("{}:/mesh", podman.at("mesh").display());
    let (tool, proxy) = (image("signet"), image("signet-proxy"));
    let control_plane = [
        "run",
        "-d",
        "--name",
        "control-plane",
        "--network",
        "host",
        "--user",
        "0:0",
        "-v",
        &mount,
        &tool,
        "control-plane",
        "--trust-domain",
        "pods.example",
        "--state-dir",
        "/mesh/state",
        "--admin-socket",
        "/mesh/admin.sock",
    ];
    podman.run(&control_plane);
    let up = || podman.at("mesh/admin.sock").exists().then_some(());
    assert!(wait_until(LIMIT, up).is_some(), "{}", podman.run(&["logs", "control-plane"]));

    let mesh = "apiVersion: signet.mf2c-project.eu/v1alpha1\nkind: Mesh\nmetadata: {name: pods}\nspec:\n  \
                trustDomain: pods.example\n  mtls: {mode: strict}\n  networks: [{name: cluster, cidrs: [10.89.0.0/16]}]\n\
                ---\napiVersion: signet.mf2c-project.eu/v1alpha1\nkind: AccessPolicy\nmetadata: {name: server}\nspec:\n  \
                target: {workloads: [server.default]}\n  \
                rules: [{from: [{identity: 'spiffe://pods.example/app/default/client'}]}]\n";
    fs::write(podman.at("mesh/mesh.yaml"), mesh).unwrap();
    let place = format!("{MACHINE}:15012");
    let socket = ["--control-plane", "unix:/mesh/admin.sock"];
    for name in ["server", "client"] {
        fs::write(podman.at("mesh").join(format!("{name}.yaml")), pod(name)).unwrap();
        let (file, workload) = (format!("{name}.yaml"), format!("{name}.workload.yaml"));
        let injected = podman.signet(&[
            "inject",
            "kubernetes",
            "-f",
            &file,
            "--enrol",
            "secret",
            "--sidecar",
            "container",
            "--control-plane",
            &place,
            "--image",
            &proxy,
            "--workloads",
            &workload,
        ]);
        fs::write(podman.at(&format!("{name}.injected.yaml")), played(&injected)).unwrap();
    }
    let files =
        ["mesh.yaml", "server.workload.yaml", "client.workload.yaml"].iter().flat_map(|file| ["-f", file]);
    podman.signet(&[&["apply"], &files.collect::<Vec<_>>()[..], &socket].concat());
    for name in ["server", "client"] {
        let workload = format!("{name}.default");
        let token = podman.signet(
            &[&["token", "create", &workload, "--uses", "9", "--instances", "9"][..], &socket].concat(),
        );
        // It gives the content of a Secret's fields as they stand there, and does not decode them.
        let secret = format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: signet-{name}}}\ndata: {{token: {}}}\n",
            token.trim()
        );
        fs::write(podman.at("secret"), secret).unwrap();
        podman.run(&[
            "secret",
            "create",
            &format!("signet-{name}"),
            &podman.at("secret").display().to_string(),
        ]);
        let file = podman.at(&format!("{name}.injected.yaml")).display().to_string();
        podman.run(&["kube", "play", "--log-driver=k8s-file", &file]);
    }
    let tap = Tap::start(&podman.namespace, BRIDGE, &[CANARY.as_bytes()], None).expect("a tap");
    let promiscuous = ["link", "set", "dev", BRIDGE, "promisc", "on"];
    let mut ask = Command::new("ip");
    ask.args(promiscuous);
    assert!(podman.namespace.spawn(ask).unwrap().wait().unwrap().success());

    let server = format!("{}:8201", podman.address("server"));
    let body = format!("{{\"name\": \"{CANARY}\"}}");
    let request = ["http", "--to", &server, "--method", "POST", "--path", "/api/items", "--body", &body];
    let exec = [&["exec", "client-app", "/signet", "app", "call"][..], &request].concat();
    let statuses = |output: &std::process::Output| -> Option<Vec<u64>> {
        let transcript: Value = serde_json::from_slice(&output.stdout).ok()?;
        transcript["exchanges"].as_array()?.iter().map(|exchange| exchange["status"].as_u64()).collect()
    };
    let answered = || {
        let statuses = statuses(&podman.try_run(&exec))?;
        (!statuses.is_empty() && statuses.iter().all(|status| (200..300).contains(status))).then_some(())
    };
    let logs =
        || ["server-signet-proxy", "client-signet-proxy"].map(|name| podman.run(&["logs", name])).join("\n");
    assert!(wait_until(LIMIT, answered).is_some(), "{:?}\n{}", podman.try_run(&exec), logs());
    let report = tap.report().expect("the tap watches");
    assert!(report.lost == 0 && (report.offers("mesh-h1/1") || report.offers("mesh-h2/1")), "{report:?}");
    assert_eq!(report.sightings, [], "in clear on the bridge");

    // Who has no sidecar is refused, and seen.
    let stranger = [&["run", "--rm", "--network", NETWORK, &tool, "app", "call"][..], &request].concat();
    let output = podman.try_run(&stranger);
    let found = statuses(&output).unwrap_or_default();
    assert!(!found.iter().any(|status| (200..300).contains(status)), "{output:?}");
    assert!(
        !tap.report().expect("the tap watches").sightings.is_empty(),
        "the tap would have seen the others, too"
    );
    assert_eq!(shared_network(&podman, "server"), 1, "the app and its sidecar are in one network namespace");
}

/// How many network namespaces the running containers of a pod are in.
fn shared_network(podman: &Podman, pod: &str) -> usize {
    let namespaces = ["app", "signet-proxy"].map(|container| {
        let process = podman.run(&["inspect", "-f", "{{.State.Pid}}", &format!("{pod}-{container}")]);
        fs::read_link(format!("/proc/{}/ns/net", process.trim())).expect("a running container")
    });
    std::collections::BTreeSet::from(namespaces).len()
}
