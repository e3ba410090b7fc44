//! The operator's commands against a running control plane: both are the real binary.

#![expect(clippy::unwrap_used, reason = "a test that unwraps in vain fails and says where")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

const MESH: &str = "apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Mesh
metadata: { name: mesh }
spec:
  trustDomain: mesh.example
  networks:
    - { name: edge, cidrs: [127.0.0.0/8] }
";
const WORKLOADS: &str = "apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: { name: store }
spec: { class: app, device: d1, network: edge, names: [store.example], ports: [{ port: 8080 }] }
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: { name: gateway }
spec: { class: app, device: d1, network: edge, names: [gateway.example], ports: [{ port: 8080 }] }
";
const POLICY: &str = "apiVersion: signet.mf2c-project.eu/v1alpha1
kind: AccessPolicy
metadata: { name: read-store }
spec:
  target: { workloads: [store] }
  ports: [8080]
  rules:
    - name: gateway-reads
      from: [{ identity: spiffe://mesh.example/app/d1/gateway }]
      to: [{ methods: [GET], paths: [\"/api/**\"] }]
";

/// A folder with manifests, and maybe a control plane; both end with the test.
struct Desk {
    folder: TempDir,
    control_plane: Option<Child>,
}

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|_| panic!("not JSON: {}{}", self.stdout, self.stderr))
    }

    /// Checks the exit code.
    fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        self
    }
}

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("manifests")).unwrap();
        for (name, text) in
            [("1-mesh.yaml", MESH), ("2-workloads.yaml", WORKLOADS), ("3-policy.yaml", POLICY)]
        {
            fs::write(folder.path().join("manifests").join(name), text).unwrap();
        }
        Self { folder, control_plane: None }
    }

    fn with_control_plane() -> Self {
        let mut desk = Self::new();
        let mut child = desk
            .command(&["control-plane", "--trust-domain", "mesh.example", "--state-dir", "state"])
            .args([
                "--listen",
                "127.0.0.1:0",
                "--admin-listen",
                "127.0.0.1:0",
                "--admin-socket",
                "admin.sock",
            ])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        desk.control_plane = Some(child);
        assert!(line.starts_with("listening control="), "control plane did not start: {line}");
        desk
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_signet"));
        command
            .args(arguments)
            .env_remove("SIGNET_STATE_DIR")
            .env("SIGNET_ADMIN_SOCKET", "unix:admin.sock")
            .env("SIGNET_LOG", "warn")
            .current_dir(&self.folder);
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        self.run_with(arguments, "")
    }

    fn run_with(&self, arguments: &[&str], input: &str) -> Ran {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Not every command reads.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        Ran {
            code: output.status.code().expect("ended by a signal"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        if let Some(child) = &mut self.control_plane {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn manifests_are_stored_shown_and_deleted() {
    let desk = Desk::with_control_plane();
    let dry = desk.run(&["apply", "-f", "manifests", "--dry-run", "-o", "json"]).exits(0).json();
    assert_eq!((&dry["stored"], dry["changes"].as_array().unwrap().len()), (&Value::from(false), 4));
    desk.run(&["get", "Mesh", "mesh"]).exits(1);

    desk.run(&["apply", "-f", "manifests"]).exits(0);
    let again = desk.run(&["apply", "-f", "manifests", "-o", "json"]).exits(0).json();
    assert!(
        again["changes"].as_array().unwrap().iter().all(|change| change["action"] == "unchanged"),
        "{again}"
    );

    assert_eq!(desk.run(&["get"]).exits(0).stdout.lines().count(), 4);
    let shown = desk.run(&["get", "workload", "store", "-o", "json"]).exits(0).json();
    assert_eq!(shown["items"][0]["spec"]["names"][0], "store.example");
    let yaml = desk.run(&["get", "-o", "yaml"]).exits(0).stdout;
    let again = desk.run_with(&["apply", "-f", "-", "-o", "json"], &yaml).exits(0).json();
    assert!(
        again["changes"].as_array().unwrap().iter().all(|change| change["action"] != "created"),
        "{again}"
    );

    desk.run(&["delete", "AccessPolicy", "read-store", "--dry-run"]).exits(0);
    desk.run(&["delete", "AccessPolicy", "read-store"]).exits(0);
    desk.run(&["delete", "AccessPolicy", "read-store"]).exits(1);
    desk.run(&["get", "AccessPolicy", "read-store"]).exits(1);
}

#[test]
fn wrong_manifest_stores_nothing_and_names_its_line() {
    let desk = Desk::with_control_plane();
    desk.run(&["apply", "-f", "manifests/1-mesh.yaml"]).exits(0);
    let wrong = WORKLOADS
        .replace("network: edge, names: [gateway.example]", "network: nowhere, names: [gateway.example]");
    let ran = desk.run_with(&["apply", "-f", "-", "-o", "json"], &wrong).exits(64);
    assert_eq!(ran.json()["stored"], false);
    let diagnostic = &ran.json()["diagnostics"][0];
    assert_eq!(
        (&diagnostic["file"], &diagnostic["line"]),
        (&Value::from("<stdin>"), &Value::from(9)),
        "{diagnostic}"
    );
    assert!(!diagnostic["fix"].as_str().unwrap().is_empty());
    let ran = desk.run_with(&["apply", "-f", "-"], &wrong).exits(64);
    assert!(ran.stdout.starts_with("<stdin>:9:") && ran.stdout.contains("; fix: "), "{}", ran.stdout);
    desk.run(&["get", "Workload", "store"]).exits(1);
}

#[test]
fn token_is_alone_on_its_line() {
    let desk = Desk::with_control_plane();
    desk.run(&["apply", "-f", "manifests"]).exits(0);
    let ran = desk.run(&["token", "create", "store", "--ttl", "10m"]).exits(0);
    assert_eq!(ran.stdout.trim_end().split('.').count(), 3);
    let made = desk.run(&["token", "create", "store", "--uses", "2", "-o", "json"]).exits(0).json();
    assert_eq!(made["spiffe_id"], "spiffe://mesh.example/app/d1/store");
    desk.run(&["token", "create", "nobody"]).exits(64);
    desk.run(&["token", "create", "store", "--ttl", "soon"]).exits(64);
    desk.run(&["token", "create", "store", "--uses", "0"]).exits(64);
}

#[test]
fn hypothetical_request_is_explained_with_and_without_a_control_plane() {
    let desk = Desk::with_control_plane();
    desk.run(&["apply", "-f", "manifests"]).exits(0);
    for offline in [&[][..], &["-f", "manifests"]] {
        let explain = |arguments: &[&str]| {
            let call = ["explain", "--from", "gateway", "--to", "store", "--port", "8080", "-o", "json"];
            desk.run(&[&call, arguments, offline].concat())
        };
        let allowed = explain(&["--path", "/api/device?x=//"]).exits(0).json();
        assert_eq!(allowed["decision"]["rule"], "gateway-reads");
        let code = |ran: Ran| ran.exits(1).json()["decision"]["code"].as_str().unwrap().to_owned();
        assert_eq!(code(explain(&["--path", "/api/device", "--method", "POST"])), "access-denied");
        assert_eq!(
            code(explain(&["--path", "/api/device", "--authority", "gateway.example"])),
            "authority-mismatch"
        );
        assert_eq!(code(explain(&["--opaque"])), "opaque-to-l7-port");
        let anonymous =
            [&["explain", "--to", "store", "--port", "8080", "--path", "/api/x"], offline].concat();
        desk.run(&anonymous).exits(1);
        desk.run(&[&["explain", "--to", "nobody", "--port", "8080"], offline].concat()).exits(64);
    }
    assert_eq!(desk.run(&["explain", "0123456789abcdef", "-o", "json"]).exits(1).json()["found"], false);
}

#[test]
fn check_of_an_empty_mesh_is_a_no() {
    let desk = Desk::with_control_plane();
    let checked = desk.run(&["check", "-o", "json"]).exits(1).json();
    assert_eq!(
        (&checked["ok"], &checked["trust_domain"]),
        (&Value::from(false), &Value::from("mesh.example"))
    );
    assert!(desk.run(&["check"]).exits(1).stdout.contains("✗ no proxy has enrolled"));
}

#[test]
fn manifests_are_validated_without_a_control_plane() {
    let desk = Desk::new();
    desk.run(&["validate", "-f", "manifests"]).exits(0);
    let alone = desk.run(&["validate", "-f", "manifests/3-policy.yaml", "-o", "json"]).exits(0).json();
    assert_eq!((&alone["valid"], &alone["cross_checked"]), (&Value::from(true), &Value::from(false)));
    let wrong = desk.run_with(&["validate", "-f", "-"], &POLICY.replace("methods:", "method:")).exits(64);
    assert!(wrong.stdout.starts_with("<stdin>:10:"), "{}", wrong.stdout);
    desk.run(&["validate", "-f", "nothing.yaml"]).exits(64);
}

#[test]
fn missing_control_plane_exits_69_and_wrong_arguments_64() {
    let desk = Desk::new();
    for arguments in [
        &["get"][..],
        &["check"],
        &["token", "create", "store"],
        &["apply", "-f", "manifests"],
        &["explain", "x"],
    ] {
        let ran = desk.run(arguments).exits(69);
        assert!(ran.stderr.contains("admin.sock"), "{}", ran.stderr);
        assert_eq!(desk.run(&[arguments, &["-o", "json"]].concat()).json()["exit_code"], 69);
    }
    for arguments in [
        &["nonsense"][..],
        &[],
        &["get", "Bogus"],
        &["apply"],
        &["explain"],
        &["check", "-o", "yaml"],
        &["get", "--control-plane", "http://host"],
    ] {
        desk.run(arguments).exits(64);
    }
    assert!(desk.run(&["check", "--help"]).exits(0).stdout.contains("Examples:"));
    desk.run(&["--version"]).exits(0);
}

#[test]
fn the_other_two_programs_are_in_the_same_file() {
    let desk = Desk::new();
    assert!(desk.run(&["proxy", "--help"]).exits(0).stdout.contains("capture"));
    assert!(desk.run(&["control-plane", "--help"]).exits(0).stdout.contains("--trust-domain"));
}

#[test]
fn identities_and_certificates_are_revoked() {
    let desk = Desk::with_control_plane();
    desk.run(&["apply", "-f", "manifests"]).exits(0);
    let id = "spiffe://mesh.example/app/d1/store";
    let made = desk.run(&["revoke", "--identity", id, "--reason", "stolen", "-o", "json"]).exits(0).json();
    assert_eq!((&made["revoked"], made["revision"].is_u64()), (&Value::from(id), true));
    // The first character says that a leading hyphen is no flag.
    let leaf = format!("-{}A", "x".repeat(41));
    let ran = desk.run(&["revoke", "--certificate", &leaf, "--reason", "stolen"]).exits(0);
    assert_eq!(ran.stdout, format!("{leaf} is revoked\n"));
    for wrong in [
        &["--reason", "r"][..],
        &["--identity", id],
        &["--identity", "store", "--reason", "r"],
        &["--certificate", "short", "--reason", "r"],
        &["--identity", id, "--certificate", &leaf, "--reason", "r"],
    ] {
        desk.run(&[&["revoke"], wrong].concat()).exits(64);
    }
    Desk::new().run(&["revoke", "--identity", id, "--reason", "r"]).exits(69);
}

#[test]
fn workload_that_anybody_behind_a_gateway_could_pass_for_is_noted() {
    let desk = Desk::with_control_plane();
    let gateways = MESH.replace("127.0.0.0/8]", "127.0.0.0/8], gateways: [127.0.0.1]");
    fs::write(desk.folder.path().join("manifests/1-mesh.yaml"), gateways).unwrap();
    let ran = desk.run(&["apply", "-f", "manifests"]).exits(0);
    assert!(
        ran.stdout.contains("note: manifests/2-workloads.yaml:3:1: Workload store lists"),
        "{}",
        ran.stdout
    );
    let again = desk.run(&["apply", "-f", "manifests", "-o", "json"]).exits(0).json();
    assert_eq!((&again["stored"], again["notes"].as_array().unwrap().len()), (&Value::from(true), 2));
}
