//! What is put into a pod: a step that captures, and the proxy.

use serde_json::{Value, json};

use super::model::made;
use super::{Enrolment, Options, ROOTS_CONFIG_MAP, ROOTS_KEY, SECRET_PREFIX, Sidecar, audience};

/// The step that puts the capture rules in force, before all else in the pod.
pub(super) const CAPTURE: &str = "signet-capture";
/// The sidecar.
pub(super) const PROXY: &str = "signet-proxy";
/// Volumes of the sidecar alone.
pub(super) const VOLUMES: [&str; 2] = [STATE, TOKEN];
const STATE: &str = "signet-state";
const TOKEN: &str = "signet-token";
/// The sidecar's user, whose connections the rules leave alone.
pub(super) const PROXY_UID: u64 = 1337;
/// Seconds that a service-account token lasts; the kubelet replaces it in time. At least 600.
const TOKEN_SECONDS: u32 = 3_600;
/// Health, readiness, metrics and probes.
pub(super) const ADMIN_PORT: u16 = 15020;
/// The sidecar's ports.
pub(super) const PORTS: [u16; 3] = [15001, 15006, ADMIN_PORT];

/// Puts both into a pod whose names are free.
pub(super) fn add(pod: &mut Value, what: &Added<'_>, options: &Options) {
    let spec = made(pod, "spec", json!({}));
    let proxy = proxy(what, options);
    let mut first = vec![capture(what, options)];
    match options.sidecar {
        // kubectl takes the first container for the one that is meant.
        Sidecar::Container => push(made(spec, "containers", json!([])), proxy),
        Sidecar::Native => first.push(proxy),
    }
    let steps = made(spec, "initContainers", json!([]));
    if let Some(steps) = steps.as_array_mut() {
        steps.splice(0..0, first);
    }
    let volumes = made(spec, "volumes", json!([]));
    push(volumes, json!({ "name": STATE, "emptyDir": { "medium": "Memory", "sizeLimit": "64Mi" } }));
    push(volumes, token(what, options));
}

/// What the sidecar shows of who it is. Readable to its user, who is not root; no other container mounts it.
fn token(what: &Added<'_>, options: &Options) -> Value {
    match &options.enrolment {
        Enrolment::Secret => {
            let secret = format!("{SECRET_PREFIX}{}", what.workload);
            json!({ "name": TOKEN, "secret": { "secretName": secret, "defaultMode": 0o444 } })
        }
        Enrolment::ServiceAccount { trust_domain } => json!({
            "name": TOKEN,
            "projected": {
                "defaultMode": 0o444,
                "sources": [
                    { "serviceAccountToken": {
                        "audience": audience(trust_domain), "expirationSeconds": TOKEN_SECONDS, "path": "token",
                    } },
                    { "configMap": {
                        "name": ROOTS_CONFIG_MAP, "items": [{ "key": ROOTS_KEY, "path": ROOTS_KEY }],
                    } },
                ],
            },
        }),
    }
}

/// What a sidecar differs in from others.
pub(super) struct Added<'a> {
    pub(super) excluded: &'a [u16],
    pub(super) probes: Option<String>,
    pub(super) workload: &'a str,
}

fn push(list: &mut Value, entry: Value) {
    if let Some(list) = list.as_array_mut() {
        list.push(entry);
    }
}

fn capture(what: &Added<'_>, options: &Options) -> Value {
    let excluded: Vec<String> = [ADMIN_PORT].iter().chain(what.excluded).map(ToString::to_string).collect();
    json!({
        "name": CAPTURE,
        "image": options.image,
        "args": [
            "capture", "install", "--exempt", "uid", "--uid", PROXY_UID.to_string(),
            "--exclude-inbound-port", excluded.join(","),
        ],
        "resources": { "requests": { "cpu": "10m", "memory": "16Mi" } },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "add": ["NET_ADMIN"], "drop": ["ALL"] },
            "readOnlyRootFilesystem": true,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "runAsUser": 0,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
    })
}

fn proxy(what: &Added<'_>, options: &Options) -> Value {
    let variable = |name: &str, value: &str| json!({ "name": name, "value": value });
    let mut environment = vec![variable("SIGNET_CONTROL_PLANE", &options.control_plane)];
    match options.enrolment {
        Enrolment::Secret => environment.push(variable("SIGNET_TOKEN_FILE", "/run/secrets/signet/token")),
        Enrolment::ServiceAccount { .. } => environment.extend([
            variable("SIGNET_ATTESTATION_FILE", "/run/secrets/signet/token"),
            variable("SIGNET_ROOTS_FILE", "/run/secrets/signet/roots.pem"),
        ]),
    }
    environment.extend([
        variable("SIGNET_STATE_DIR", "/var/lib/signet"),
        variable("SIGNET_CAPTURE", "none"),
        variable("SIGNET_EXEMPT", "uid"),
    ]);
    environment.extend(what.probes.as_deref().map(|probes| variable("SIGNET_PROBES", probes)));
    let ready = json!({ "path": "/ready", "port": ADMIN_PORT });
    let mut container = json!({
        "name": PROXY,
        "image": options.image,
        "args": ["run"],
        "env": environment,
        "ports": [{ "name": "signet-admin", "containerPort": ADMIN_PORT }],
        "readinessProbe": { "httpGet": ready, "periodSeconds": 5, "timeoutSeconds": 3 },
        // What comes after it waits for the first certificate and policy, up to ten minutes.
        "startupProbe": { "httpGet": ready, "periodSeconds": 1, "timeoutSeconds": 3, "failureThreshold": 600 },
        "resources": { "requests": { "cpu": "10m", "memory": "32Mi" } },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "readOnlyRootFilesystem": true,
            "runAsGroup": PROXY_UID,
            "runAsNonRoot": true,
            "runAsUser": PROXY_UID,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "volumeMounts": [
            { "name": STATE, "mountPath": "/var/lib/signet" },
            { "name": TOKEN, "mountPath": "/run/secrets/signet", "readOnly": true },
        ],
    });
    if options.sidecar == Sidecar::Native {
        *made(&mut container, "restartPolicy", Value::Null) = "Always".into();
    }
    container
}
