//! Manifests as people write them: what comes out, byte for byte; what is refused, where and why.

#![expect(clippy::unwrap_used, reason = "a test that unwraps in vain fails and says where")]

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};
use signet_inject::kubernetes::{
    Finding, Injected, Options, Owner, Reason, Sidecar, Source, inject, inject_pod,
};

const FILES: [&str; 4] = ["around", "jobs", "list", "shop"];

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kubernetes")
}

fn injected(name: &str, text: &str, options: &Options) -> Injected {
    inject(&[Source { name, text }], options).unwrap_or_else(|faults| {
        panic!("{}", faults.iter().map(|fault| format!("{fault}\n")).collect::<String>())
    })
}

fn refused(text: &str) -> String {
    let faults = inject(&[Source { name: "app.yaml", text }], &Options::default()).unwrap_err();
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// `SIGNET_BLESS=1 cargo test -p signet-inject` writes them anew.
#[test]
fn manifests_come_out_as_checked_in() {
    for file in FILES {
        let name = format!("{file}.yaml");
        let text = std::fs::read_to_string(folder().join(&name)).unwrap();
        let made = injected(&name, &text, &Options::default());
        let notes: String = made.notes.iter().map(|note| format!("{note}\n")).collect();
        for (kind, generated) in
            [("injected", &made.manifests), ("workloads", &made.workloads), ("notes", &notes)]
        {
            let ending = if kind == "notes" { "txt" } else { "yaml" };
            let path = folder().join(format!("golden/{file}.{kind}.{ending}"));
            if std::env::var_os("SIGNET_BLESS").is_some() {
                std::fs::write(&path, generated).unwrap();
            }
            assert_eq!(&std::fs::read_to_string(&path).unwrap(), generated, "{}", path.display());
        }
    }
}

#[test]
fn what_was_injected_comes_out_byte_for_byte_with_the_same_workloads() {
    for file in FILES {
        let text = std::fs::read_to_string(folder().join(format!("{file}.yaml"))).unwrap();
        for sidecar in [Sidecar::Container, Sidecar::Native] {
            let options = Options { sidecar, ..Options::default() };
            let once = injected("once", &text, &options);
            let twice = injected("twice", &once.manifests, &options);
            assert_eq!(twice.manifests, once.manifests, "{file}");
            assert_eq!(twice.workloads, once.workloads, "{file}");
        }
    }
}

#[test]
fn files_without_pods_come_out_byte_for_byte() {
    let text = "# first\r\n---\r\napiVersion: v1   # a comment\r\nkind: ConfigMap\r\ndata: {a: 0400}\r\n...\r\n---\n\napiVersion: example.org/v7\nkind: Deployment\nspec: 1";
    assert_eq!(injected("a.yaml", text, &Options::default()).manifests, text);
}

#[test]
fn plain_container_is_the_last_one_and_a_job_with_it_is_told() {
    let text = std::fs::read_to_string(folder().join("jobs.yaml")).unwrap();
    let options = Options { sidecar: Sidecar::Container, ..Options::default() };
    let made = injected("jobs.yaml", &text, &options);
    assert!(!made.manifests.contains("restartPolicy: Always"));
    assert_eq!(made.notes.iter().filter(|note| note.finding == Finding::NeverEnds).count(), 2);
    let mut pod =
        json!({ "spec": { "initContainers": [{ "name": "step" }], "containers": [{ "name": "app" }] } });
    let outcome = inject_pod(&mut pod, Owner { kind: "Pod", name: "app" }, &options).unwrap();
    assert_eq!(pod["spec"]["containers"][1]["name"], "signet-proxy");
    assert_eq!(pod["spec"]["initContainers"][0]["name"], "signet-capture");
    assert!(outcome.findings.contains(&Finding::StartsWithoutNetwork { container: "step".to_owned() }));
}

#[test]
fn sidecar_comes_before_the_steps_of_the_app() {
    let mut pod =
        json!({ "spec": { "initContainers": [{ "name": "step" }], "containers": [{ "name": "app" }] } });
    inject_pod(&mut pod, Owner { kind: "Pod", name: "app" }, &Options::default()).unwrap();
    let names: Vec<&Value> =
        pod["spec"]["initContainers"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(names, ["signet-capture", "signet-proxy", "step"]);
    assert_eq!(pod["spec"]["initContainers"][1]["restartPolicy"], "Always");
}

#[test]
fn what_cannot_be_injected_is_refused_with_its_line_and_left_as_it_is() {
    let pod =
        |rest: &str| format!("# a pod\napiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n{rest}");
    let container = |rest: &str| pod(&format!("  containers:\n  - name: web\n    image: web\n{rest}"));
    let table = [
        ("services: {web: {image: web}}".to_owned(), "app.yaml:1: document 1: this is a Compose file; fix: `signet inject compose`"),
        ("a: 1\n---\nb: 2".to_owned(), "app.yaml:1: document 1: this is no Kubernetes object: it has no `apiVersion`"),
        ("just words".to_owned(), "app.yaml:1: document 1: this is no Kubernetes object"),
        ("apiVersion: v1\nmetadata: {}".to_owned(), "app.yaml:1: document 1: this is no Kubernetes object: it has no `kind`"),
        ("apiVersion: extensions/v1beta1\nkind: Deployment\nmetadata: {name: web}\nspec: {}".to_owned(), "app.yaml:1: document 1, Deployment web: `extensions/v1beta1` has no Deployment; fix: write `apiVersion: apps/v1`"),
        ("kind: CronJob\napiVersion: batch/v1beta1\nmetadata: {name: web}".to_owned(), "app.yaml:2: document 1, CronJob web: `batch/v1beta1` has no CronJob; fix: write `apiVersion: batch/v1`"),
        ("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {}".to_owned(), "app.yaml:4: document 1, Deployment web: `template` is not a mapping"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  annotations: [a]\nspec: {containers: [{name: web}]}"
                .to_owned(),
            "app.yaml:5: document 1, Pod web: `annotations` is not a mapping",
        ),
        (pod("  containers: web"), "app.yaml:6: document 1, Pod web: `containers` is not a list"),
        (pod("  containers: []"), "app.yaml:6: document 1, Pod web: `containers` is not a list with an entry"),
        (container("    securityContext:\n      runAsUser: 1337"), "app.yaml:10: document 1, Pod web: it runs as user 1337"),
        (pod("  securityContext: {runAsUser: 1337}\n  containers: [{name: web}]"), "app.yaml:6: document 1, Pod web: it runs as user 1337"),
        (container("    ports:\n    - containerPort: 8080\n    - containerPort: 15006"), "app.yaml:11: document 1, Pod web: port 15006 is the sidecar's"),
        (container("    ports: [{containerPort: 70000}]"), "app.yaml:9: document 1, Pod web: `containerPort` is not a port"),
        (container("    livenessProbe:\n      httpGet:\n        port: admin"), "app.yaml:11: document 1, Pod web: no port of this container is called `admin`"),
        (container("  - name: signet-proxy"), "app.yaml:9: document 1, Pod web: a container is called `signet-proxy`"),
        (container("  volumes: [{name: signet-token}]"), "app.yaml:9: document 1, Pod web: a volume is called `signet-token`"),
        (container("    volumeMounts:\n    - {name: signet-state, mountPath: /x}"), "app.yaml:10: document 1, Pod web: a volume is called `signet-state`"),
        (container("    volumeDevices: [{name: signet-token, devicePath: /x}]"), "app.yaml:9: document 1, Pod web: a volume is called `signet-token`"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  annotations:\n    signet.mf2c-project.eu/injected: \"1\"\nspec: {containers: [{name: web}]}"
                .to_owned(),
            "app.yaml:6: document 1, Pod web: it is marked as injected and has no container `signet-capture`",
        ),
        ("a: {{ .Values.a }}".to_owned(), "document 1: this is a template that was not rendered"),
        ("a: 1\na: 2".to_owned(), "app.yaml:2: document 1: "),
        (format!("{0}---\n{0}", container("")), "app.yaml:11: document 2, Pod web: `web` in namespace `default` is injected twice"),
        (format!("a: {}", "[".repeat(200)), "app.yaml:1: document 1: "),
        ("a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e]".to_owned(), "document 1: "),
    ];
    for (text, expected) in table {
        let found = refused(&text);
        assert!(found.contains(expected), "{text}\n{found}\n{expected}");
    }
    let mut pod = json!({ "spec": { "containers": [{ "name": "a" }, { "name": "b", "securityContext": { "runAsUser": 1337 } }] } });
    let before = pod.clone();
    let error = inject_pod(&mut pod, Owner { kind: "Pod", name: "a" }, &Options::default()).unwrap_err();
    assert_eq!(error.reason, Reason::ProxyUser);
    assert_eq!(pod, before);
}

#[test]
fn probe_keeps_its_dollars_where_kubernetes_would_put_variables() {
    let probe = json!({ "httpGet": { "port": 80, "path": "/$(SIGNET_TOKEN_FILE)/$$" } });
    let mut pod = json!({ "spec": { "containers": [{ "name": "a", "livenessProbe": probe }] } });
    inject_pod(&mut pod, Owner { kind: "Pod", name: "a" }, &Options::default()).unwrap();
    let environment = pod["spec"]["initContainers"][1]["env"].as_array().unwrap();
    let written = environment.iter().find(|variable| variable["name"] == "SIGNET_PROBES").unwrap();
    let value = written["value"].as_str().unwrap();
    assert!(value.contains("/$$(SIGNET_TOKEN_FILE)/$$$$"), "{value}");
}

#[test]
fn pods_that_reach_the_node_are_told_of() {
    for spec in [
        json!({ "hostPID": true }),
        json!({ "volumes": [{ "name": "n", "hostPath": { "path": "/" } }] }),
        json!({ "volumes": [{ "name": "n", "hostPath": { "path": "/var/run/" } }] }),
        json!({ "volumes": [{ "name": "n", "hostPath": { "path": "/run/containerd" } }] }),
        json!({ "volumes": [{ "name": "n", "hostPath": { "path": "/run/docker.sock" } }] }),
    ] {
        let mut pod = json!({ "spec": spec });
        let security = json!({ "runAsUser": 1000 });
        pod["spec"]["containers"] = json!([{ "name": "a", "securityContext": security }]);
        let told = inject_pod(&mut pod, Owner { kind: "Pod", name: "a" }, &Options::default()).unwrap();
        let unenforceable = |finding: &&Finding| matches!(finding, Finding::EgressNotEnforceable { .. });
        assert_eq!(told.findings.iter().filter(unenforceable).count(), 1, "{spec}");
    }
}

/// Pods with all sorts of values where something else belongs.
fn odd_pod() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z0-9/.-]{0,8}".prop_map(Value::from),
    ];
    let names = prop::sample::select(vec![
        "spec",
        "metadata",
        "annotations",
        "containers",
        "initContainers",
        "name",
        "securityContext",
        "capabilities",
        "drop",
        "add",
        "ports",
        "containerPort",
        "livenessProbe",
        "httpGet",
        "port",
        "volumes",
        "restartPolicy",
        "signet.mf2c-project.eu/inject",
        "lifecycle",
        "preStop",
        "timeoutSeconds",
    ]);
    leaf.prop_recursive(6, 64, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(names.clone().prop_map(str::to_owned), inner, 0..5)
                .prop_map(|fields| Value::from(fields.into_iter().collect::<serde_json::Map<_, _>>())),
        ]
    })
}

proptest! {
    #[test]
    fn odd_pods_are_refused_unchanged_or_injected(spec in odd_pod(), container in odd_pod()) {
        for pod in [spec.clone(), json!({ "spec": spec }), json!({ "spec": { "containers": [{ "name": "a", "x": container.clone() }, container] } })] {
            let mut changed = pod.clone();
            match inject_pod(&mut changed, Owner { kind: "Pod", name: "a" }, &Options::default()) {
                Ok(outcome) if outcome.changed => prop_assert_ne!(changed, pod),
                _ => prop_assert_eq!(changed, pod),
            }
        }
    }

    #[test]
    fn odd_text_never_panics(text in "[ a-z0-9:{}\\[\\]&*!|>'\"%#\n-]{0,200}") {
        let _ = inject(&[Source { name: "odd", text: &text }], &Options::default());
    }
}
