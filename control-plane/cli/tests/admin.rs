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
fn tokens_are_listed_without_their_secrets_until_they_are_withdrawn() {
    let desk = Desk::with_control_plane();
    assert_eq!(desk.run(&["token", "list"]).exits(0).stdout, "no token is valid\n");
    desk.run(&["apply", "-f", "manifests"]).exits(0);
    let token = desk.run(&["token", "create", "store", "--uses", "3"]).exits(0).stdout;
    let (id, secret) = (token.split('.').next().unwrap(), token.split('.').nth(1).unwrap());
    let listed = desk.run(&["token", "list"]).exits(0).stdout;
    assert!(listed.starts_with(id) && listed.contains("3 uses left") && !listed.contains(secret), "{listed}");
    let listed = desk.run(&["token", "list", "-o", "json"]).exits(0).json();
    assert_eq!((&listed["tokens"][0]["id"], &listed["tokens"][0]["uses"]), (&id.into(), &3.into()));

    // The whole token does as well as its id.
    let gone = desk.run(&["token", "delete", token.trim_end()]).exits(0).stdout;
    assert_eq!(gone, format!("token {id} for spiffe://mesh.example/app/d1/store is withdrawn\n"));
    assert_eq!(desk.run(&["token", "list", "-o", "json"]).exits(0).json()["tokens"], Value::Array(vec![]));
    for unknown in [id, "-unknown", ""] {
        let ran = desk.run(&["token", "delete", unknown]).exits(1);
        assert!(ran.stdout.contains("signet token list"), "{}", ran.stdout);
    }
    Desk::new().run(&["token", "list"]).exits(69);
}

#[test]
fn history_tells_when_in_a_form_that_people_read() {
    let desk = Desk::with_control_plane();
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    desk.run(&["apply", "-f", "manifests"]).exits(0);
    let shown = desk.run(&["history"]).exits(0).stdout;
    let time = shown.lines().next().unwrap().strip_prefix("version 1, ").unwrap();
    assert!(signet_policy::unix_seconds(time).unwrap() >= before, "{shown}");
    let version = desk.run(&["history", "-o", "json"]).exits(0).json()["versions"][0].clone();
    assert_eq!(version["at"].as_u64(), signet_policy::unix_seconds(version["time"].as_str().unwrap()));
}

#[test]
fn a_workload_that_is_misspelt_is_answered_with_the_name_that_is_meant() {
    let desk = Desk::with_control_plane();
    desk.run(&["apply", "-f", "manifests"]).exits(0);
    for arguments in [
        &["explain", "--from", "gatewy", "--to", "store", "--port", "8080"][..],
        &["explain", "--from", "gatewy", "--to", "store", "--port", "8080", "-f", "manifests"],
        &["token", "create", "gatewy"],
    ] {
        let ran = desk.run(arguments).exits(64);
        assert!(ran.stderr.contains("gatewy") && ran.stderr.contains("write `gateway`"), "{}", ran.stderr);
    }
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
    let ids = |checked: &Value| -> Vec<String> {
        let bad = checked["checks"].as_array().unwrap().iter().filter(|check| check["severity"] == "error");
        bad.map(|check| check["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(
        (&checked["schema"], ids(&checked)),
        (&1.into(), vec!["policy-stored".into(), "proxy-enrolled".into()])
    );
    desk.run(&["apply", "-f", "manifests"]).exits(0);
    assert_eq!(ids(&desk.run(&["check", "-o", "json"]).exits(1).json()), ["proxy-enrolled"]);
    let shown = desk.run(&["check"]).exits(1).stdout;
    for part in ["✗ proxy-enrolled", "no proxy has enrolled", "hint: `signet token create", "#proxy-enrolled"]
    {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
}

#[test]
fn a_machine_is_looked_at_before_there_is_a_control_plane() {
    let desk = Desk::new();
    // No engine is needed for what the kernel can do, and none is found.
    let ran = desk.run(&["check", "--pre", "--docker", "no.sock", "-o", "json"]);
    let checked = ran.json();
    let checks = checked["checks"].as_array().unwrap();
    let severity = |id: &str| {
        let of_id = checks.iter().filter(|check| check["id"] == id);
        of_id.map(|check| check["severity"].as_str().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(severity("kernel-namespaces"), ["ok"], "{checked:#}");
    assert_eq!(severity("kernel-capture"), ["ok", "ok"], "the rules, and what they do: {checked:#}");
    assert_eq!(severity("kernel-marks"), ["ok"], "{checked:#}");
    assert_eq!(severity("machine-clock"), ["ok"], "{checked:#}");
    assert_eq!(severity("container-engine"), ["skipped"], "{checked:#}");
    assert_eq!((checked["proxies"].as_array().unwrap().len(), &checked["trust_domain"]), (0, &Value::Null));
    let listener = std::net::TcpListener::bind("0.0.0.0:15012");
    let shown = desk.run(&["check", "--pre", "--docker", "no.sock"]).stdout;
    // Bound by us or by somebody else: it is taken.
    assert!(shown.contains("‼ ports-free") && shown.contains("15012 (the control plane's"), "{shown}");
    drop(listener);
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

const CASES: &str = "policies: [manifests]
cases:
- { name: the gateway reads, from: gateway, to: store, port: 8080, method: GET, path: /api/x, expect: allow, rule: read-store/gateway-reads }
- { name: and no more, from: gateway, to: store, port: 8080, method: POST, path: /api/x, expect: access-denied }
";

#[test]
fn cases_are_asked_of_the_manifests_they_name() {
    let desk = Desk::new();
    fs::write(desk.folder.path().join("cases.yaml"), CASES).unwrap();
    let good = desk.run(&["policy", "test", "cases.yaml"]).exits(0);
    assert!(
        good.stdout.contains("case the gateway reads ... ok\ncase and no more ... ok\n"),
        "{}",
        good.stdout
    );
    assert!(good.stdout.ends_with("case result: ok. 2 passed; 0 failed\n"), "{}", good.stdout);

    fs::write(desk.folder.path().join("cases.yaml"), CASES.replace("expect: access-denied", "expect: allow"))
        .unwrap();
    let bad = desk.run(&["policy", "test", "cases.yaml"]).exits(1);
    for part in [
        "case and no more ... FAILED",
        "cases.yaml:4: and no more\nexpected allow, but it is refused access-denied (403)",
        "✗ read-store/gateway-reads: it does not allow the method POST",
        "case result: FAILED. 1 passed; 1 failed",
    ] {
        assert!(bad.stdout.contains(part), "{part} is missing in:\n{}", bad.stdout);
    }
    let json = desk.run(&["policy", "test", "cases.yaml", "-f", "manifests", "-o", "json"]).exits(1).json();
    assert_eq!(
        (&json["passed"], &json["failed"], &json["cases"][1]["ok"]),
        (&1.into(), &1.into(), &false.into())
    );

    fs::write(desk.folder.path().join("cases.yaml"), CASES.replace("expect: allow", "expects: allow"))
        .unwrap();
    let wrong = desk.run(&["policy", "test", "cases.yaml"]).exits(64);
    assert!(
        wrong.stderr.contains("cases.yaml:3:") && wrong.stderr.contains("fix: write `expect`"),
        "{}",
        wrong.stderr
    );
    desk.run(&["policy", "test", "none.yaml"]).exits(64);
}

#[test]
fn the_schema_is_printed_for_editors() {
    let schema = Desk::new().run(&["policy", "schema"]).exits(0).json();
    let kinds = schema["properties"]["kind"]["enum"].as_array().unwrap().len();
    assert_eq!(kinds, signet_policy::Kind::ALL.len());
}

#[test]
fn a_hypothetical_request_is_explained_under_its_conditions() {
    let desk = Desk::new();
    let conditional = POLICY.replace(
        "      to:",
        "      when: { sourceAddresses: [10.0.0.0/8], time: [{ days: [mon] }] }\n      to:",
    );
    fs::write(desk.folder.path().join("manifests/3-policy.yaml"), conditional).unwrap();
    let ask = |more: &[&str]| {
        let question = "explain --from gateway --to store --port 8080 --path /api/x -f manifests -o json";
        desk.run(&[&question.split(' ').collect::<Vec<_>>(), more].concat())
    };
    let monday = ["--at", "2026-03-02T12:00:00Z"];
    assert_eq!(ask(&monday).exits(0).json()["decision"]["rule"], "gateway-reads");
    ask(&["--at", "2026-03-03T12:00:00Z"]).exits(1);
    ask(&[&monday[..], &["--source-address", "10.1.1.1", "--header", "x-a: b"]].concat()).exits(0);
    ask(&[&monday[..], &["--source-address", "192.0.2.1"]].concat()).exits(1);
    ask(&["--at", "noon"]).exits(64);
}

#[test]
fn a_change_is_shown_line_by_line_and_undone() {
    let desk = Desk::with_control_plane();
    desk.run(&["apply", "-f", "manifests"]).exits(0);
    let file = desk.folder.path().join("manifests/3-policy.yaml");
    fs::write(&file, POLICY.replace("[GET]", "[GET, POST]")).unwrap();
    let diff =
        "    -      to: [{ methods: [GET], paths: [\"/api/**\"] }]\n    +      to: [{ methods: [GET, POST]";
    let dry = desk.run(&["apply", "-f", "manifests", "--dry-run"]).exits(0);
    assert!(dry.stdout.contains("AccessPolicy/read-store updated (dry run)\n"), "{}", dry.stdout);
    assert!(dry.stdout.contains(diff) && !dry.stdout.contains("rollback"), "{}", dry.stdout);
    let done = desk.run(&["apply", "-f", "manifests"]).exits(0);
    assert!(
        done.stdout.contains(diff) && done.stdout.contains("version 2; `signet rollback` undoes it"),
        "{}",
        done.stdout
    );

    let undone = desk.run(&["rollback"]).exits(0);
    assert!(undone.stdout.contains("AccessPolicy/read-store updated\n"), "{}", undone.stdout);
    let stored = desk.run(&["get", "AccessPolicy", "read-store", "-o", "yaml"]).exits(0);
    assert!(stored.stdout.contains("methods: [GET]"), "{}", stored.stdout);
    let history = desk.run(&["history"]).exits(0);
    assert!(history.stdout.starts_with("version 3, "), "{}", history.stdout);
    desk.run(&["rollback", "17"]).exits(1);
    desk.run(&["rollback", "0"]).exits(0);
    assert_eq!(desk.run(&["get"]).exits(0).stdout, "nothing is stored under that name\n");
}

#[test]
fn coverage_lists_what_is_not_protected_yet() {
    let desk = Desk::with_control_plane();
    desk.run(&["coverage"]).exits(64);
    desk.run(&["apply", "-f", "manifests"]).exits(0);
    let listed = desk.run(&["coverage"]).exits(1).stdout;
    assert_eq!(
        listed,
        "✗ gateway, port 8080: no enforced rule\n✗ gateway: no sidecar is connected\n✗ store: no sidecar is connected\n"
    );
    let json = desk.run(&["coverage", "-f", "manifests", "-o", "json"]).exits(1).json();
    assert_eq!(
        (&json["ports"][0]["gaps"][0]["gap"], &json["withoutSidecar"]),
        (&"noRule".into(), &Value::Array(Vec::new()))
    );
}
