//! A mesh for containers that the Docker API starts: control plane, API proxy and watcher as containers of the engine.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use signet_cli::lab::mesh::wait_until;

use crate::engine::{Engine, run_at, succeeded};
use crate::project::SETTLE_LIMIT;

/// Which images may be which workload.
const RULES: &str = "
workloads:
  - name: web
    images: [signet:0.1.0]
    # Named by no label of the project's own: those that Compose sets are enough.
    labels: {com.docker.compose.service: web}
  - name: client
    images: [signet:0.1.0]
";
const MESH: &str = "
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Mesh
metadata: {name: shop}
spec: {trustDomain: shop.internal, mtls: {mode: strict}, networks: [{name: shop}]}
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: {name: web}
spec: {class: app, device: box, network: shop, names: [web, cimi], ports: [{port: 8201}]}
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: {name: client}
spec: {class: app, device: box, network: shop, names: [client]}
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: AccessPolicy
metadata: {name: everybody}
spec: {target: {workloads: ['*']}, rules: [{name: all, from: [{any: authenticated}]}]}
";
const PROJECT: &str = r#"
version: "3.7"
x-web: &web
  image: signet:0.1.0
  command: [app, rest, --listen, "0.0.0.0:8201"]
  restart: always
services:
  web:
    <<: *web
    networks:
      default: {}
      fog: {aliases: [cimi]}
  client:
    <<: *web
    labels: {signet.mf2c-project.eu/workload: client}
  plain: *web
networks:
  default: {external: {name: shop_default}}
  fog: {external: {name: shop_fog}}
"#;
const IMAGE: &str = "signet:0.1.0";

/// The mesh, and the socket of its API proxy.
pub(crate) struct Api<'e> {
    pub(crate) engine: &'e mut Engine,
}

impl<'e> Api<'e> {
    pub(crate) fn start(engine: &'e mut Engine) -> Self {
        let api = Self { engine };
        for network in ["signet", "shop_default", "shop_fog"] {
            api.engine.docker(&["network", "create", network]);
        }
        let at = |name: &str| api.engine.folder().join(name);
        fs::create_dir(at("api")).unwrap();
        fs::write(at("rules.yaml"), RULES).unwrap();
        fs::create_dir(at("manifests")).unwrap();
        fs::write(at("manifests/mesh.yaml"), MESH).unwrap();
        fs::write(at("docker-compose.yml"), PROJECT).unwrap();
        let environment =
            ["-e", "SIGNET_ADMIN_SOCKET=/run/signet/admin.sock", "-v", "signet-admin:/run/signet"];
        let control_plane = [
            &["run", "-d", "--name", "signet-control-plane", "--restart", "always", "--network", "signet"],
            &environment[..],
            &["-v", "signet-state:/var/lib/signet", "-e", "SIGNET_TRUST_DOMAIN=shop.internal"],
            &["signet-control-plane:0.1.0"],
        ];
        api.engine.docker(&control_plane.concat());
        let manifests = format!("{}:/manifests:ro", at("manifests").display());
        let mut last = String::new();
        let applied = || {
            let mut command = Command::new("docker");
            command.args(["run", "--rm", "-v", &manifests]).args(environment);
            command.args([IMAGE, "apply", "-f", "/manifests"]);
            let output = api.engine.run(command);
            last = String::from_utf8_lossy(&output.stderr).into_owned();
            output.status.success().then_some(())
        };
        assert!(wait_until(SETTLE_LIMIT, applied).is_some(), "{last}");
        let listen = ["proxy", "--listen", "/api/docker.sock", "--network", "signet"];
        api.helper("signet-docker", &listen);
        let answers = || api.try_docker(&["version"]).status.success().then_some(());
        assert!(wait_until(SETTLE_LIMIT, answers).is_some(), "{}", api.log("signet-docker"));
        api
    }

    /// Starts `signet docker …` beside the engine.
    pub(crate) fn helper(&self, name: &str, command: &[&str]) {
        let at = |name: &str| self.engine.folder().join(name).display().to_string();
        let mounts = [
            format!("{}:/var/run/docker.sock", self.engine.socket().display()),
            format!("{}:/api", at("api")),
            format!("{}:/rules.yaml:ro", at("rules.yaml")),
            "signet-admin:/run/signet".to_owned(),
        ];
        let mounts: Vec<&str> = mounts.iter().flat_map(|mount| ["-v", mount]).collect();
        let line = [
            &["run", "-d", "--name", name, "--restart", "always", "--user", "0:0", "--network", "none"],
            &mounts[..],
            &["-e", "SIGNET_ADMIN_SOCKET=/run/signet/admin.sock", IMAGE, "docker"],
            command,
            &["--rules", "/rules.yaml", "--mesh", "signet-control-plane:15012", "--reserved", "signet-admin"],
        ];
        self.engine.docker(&line.concat());
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.engine.folder().join("api/docker.sock")
    }

    /// Runs `docker` through the proxy.
    pub(crate) fn try_docker(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("docker");
        command.args(arguments);
        run_at(&self.socket(), command)
    }

    /// Runs `docker` through the proxy and returns what it printed; it must succeed.
    pub(crate) fn docker(&self, arguments: &[&str]) -> String {
        let what = format!("docker {}, {}", arguments.join(" "), self.log("signet-docker"));
        succeeded(&self.try_docker(arguments), &what)
    }

    /// Runs `docker-compose` through the proxy; it must succeed.
    pub(crate) fn compose(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("docker-compose");
        command.args(["-p", "shop"]).args(arguments).current_dir(self.engine.folder());
        let output = run_at(&self.socket(), command);
        succeeded(&output, &format!("docker-compose {}, {}", arguments.join(" "), self.log("signet-docker")))
    }

    /// A request of the client's with the canary in it, to a name.
    pub(crate) fn call(&self, from: &str, to: &str) -> Result<(), String> {
        let to = format!("{to}:8201");
        let call = ["exec", from, "/signet", "app", "call", "http", "--to", &to];
        let rest = ["--method", "POST", "--path", "/api/digest", "--body", crate::taps::CANARY];
        let output = self.try_docker(&[&call[..], &rest].concat());
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() && shown.contains("\"status\": 200") {
            return Ok(());
        }
        Err(format!("{shown}{}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Waits until a call succeeds.
    pub(crate) fn call_succeeds(&self, to: &str) {
        let mut last = String::new();
        let call = || match self.call("shop_client_1", to) {
            Ok(()) => Some(()),
            Err(shown) => {
                last = shown;
                None
            }
        };
        let answered = wait_until(SETTLE_LIMIT, call);
        assert!(answered.is_some(), "{to}: {last}\n{}\n{}", self.state(), self.log("signet-docker"));
    }

    /// Every replica answers by its own name and by the one they share.
    pub(crate) fn every_replica_answers(&self) {
        let three = || Some(self.replicas()).filter(|replicas| replicas.len() == 3);
        let replicas = wait_until(SETTLE_LIMIT, three).unwrap_or_else(|| panic!("{}", self.state()));
        for name in replicas.iter().map(String::as_str).chain(["web"; 6]) {
            self.call_succeeds(name);
        }
    }

    /// The names of the replicas that run.
    pub(crate) fn replicas(&self) -> Vec<String> {
        let filter = "label=com.docker.compose.service=web";
        let names = self.engine.docker(&["ps", "--filter", filter, "--format", "{{.Names}}"]);
        names.lines().map(str::to_owned).collect()
    }

    /// Names and states of all containers.
    pub(crate) fn state(&self) -> String {
        self.engine.docker(&["ps", "-a", "--format", "{{.Names}} {{.Status}}"])
    }

    /// Whether a container runs.
    pub(crate) fn runs(&self, name: &str) -> bool {
        let state = self.state();
        state.lines().any(|line| line.starts_with(&format!("{name} Up")) && !line.contains("Paused"))
    }

    /// Whether there is a container of this name.
    pub(crate) fn is_there(&self, name: &str) -> bool {
        self.state().lines().any(|line| line.split(' ').next() == Some(name))
    }

    /// One value of `docker inspect`, as the engine itself has it.
    pub(crate) fn inspect(&self, name: &str, format: &str) -> String {
        self.engine.docker(&["inspect", "-f", format, name]).trim().to_owned()
    }

    pub(crate) fn log(&self, name: &str) -> String {
        let mut command = Command::new("docker");
        command.args(["logs", "--tail", "30", name]);
        let output = self.engine.run(command);
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    /// Waits for a line of a container's log.
    pub(crate) fn told(&self, name: &str, text: &str) -> String {
        let line = || self.log(name).lines().find(|line| line.contains(text)).map(str::to_owned);
        wait_until(SETTLE_LIMIT, line)
            .unwrap_or_else(|| panic!("{text}: {}\n{}", self.log(name), self.state()))
    }
}
