use serde_json::{Value, json};

use super::*;

const GROUP: &str = "00000000000000ab";
const HOLDER: &str = "4f1e";

fn settings() -> Settings {
    Settings {
        control_plane: "signet-control-plane:15012".to_owned(),
        image: "signet-proxy:0.1.0".to_owned(),
        reserved: vec!["/run/signet/admin.sock".to_owned(), "signet-admin".to_owned()],
    }
}

fn planned(body: &Value) -> Result<Plan, String> {
    let body = Body::parse(body.to_string().as_bytes()).unwrap();
    let exposed = Map::from_iter([("9090/tcp".to_owned(), json!({}))]);
    let asked = Asked {
        body: &body,
        name: Some("shop_web_1"),
        workload: "web",
        group: GROUP,
        exposed: Some(&exposed),
    };
    plan(asked, &settings())
}

fn host(value: &Value, field: &str) -> Value {
    value["HostConfig"][field].clone()
}

/// The file beside is written anew with `SIGNET_BLESS=1`; read the difference before it is taken.
#[test]
fn a_container_becomes_a_holder_a_sidecar_and_an_app_that_joins() {
    let body: Value = serde_json::from_str(include_str!("run.json")).unwrap();
    let plan = planned(&body).unwrap();
    let made = json!({ "holder": plan.holder, "sidecar": plan.sidecar(HOLDER), "app": plan.app(HOLDER) });
    if std::env::var_os("SIGNET_BLESS").is_some() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/api_proxy/create/run.golden.json");
        std::fs::write(file, format!("{made:#}\n")).unwrap();
    }
    let expected: Value = serde_json::from_str(include_str!("run.golden.json")).unwrap();
    assert_eq!(made, expected, "{made:#}");
    assert_eq!(plan.warnings, Vec::<String>::new());
}

#[test]
fn what_the_app_has_is_kept_unless_it_is_of_the_network() {
    let body: Value = serde_json::from_str(include_str!("run.json")).unwrap();
    let app = planned(&body).unwrap().app(HOLDER);
    for field in ["Cmd", "Env", "Healthcheck", "Image", "User", "Volumes"] {
        assert_eq!(app[field], body[field], "{field}");
    }
    for field in ["Binds", "Memory", "RestartPolicy", "LogConfig"] {
        assert_eq!(host(&app, field), host(&body, field), "{field}");
    }
}

#[test]
fn a_container_of_the_default_bridge_has_no_alias_which_docker_refuses_there() {
    for mode in ["", "default", "bridge"] {
        let plan = planned(&json!({ "Image": "a", "HostConfig": { "NetworkMode": mode } })).unwrap();
        assert_eq!(plan.holder.get("NetworkingConfig"), None, "{mode}");
        assert_eq!(host(&plan.holder, "NetworkMode"), mode);
    }
    let plan = planned(&json!({ "Image": "a", "HostConfig": { "NetworkMode": "fog" } })).unwrap();
    let endpoints = json!({ "fog": { "Aliases": ["shop_web_1"] } });
    assert_eq!(plan.holder["NetworkingConfig"]["EndpointsConfig"], endpoints);
}

#[test]
fn what_stands_beside_an_app_comes_back_whenever_the_app_may() {
    for (policy, expected) in [
        ("", "no"),
        ("no", "no"),
        ("always", "always"),
        ("unless-stopped", "always"),
        ("on-failure", "always"),
    ] {
        let plan =
            planned(&json!({ "Image": "a", "HostConfig": { "RestartPolicy": { "Name": policy } } })).unwrap();
        assert_eq!(host(&plan.holder, "RestartPolicy")["Name"], expected, "{policy}");
        assert_eq!(host(&plan.sidecar(HOLDER), "RestartPolicy")["Name"], expected, "{policy}");
    }
}

#[test]
fn an_app_loses_what_gets_round_its_sidecar_unless_it_asks_for_it_by_name() {
    let dropped = |host_config: Value| {
        let plan = planned(&json!({ "Image": "a", "HostConfig": host_config })).unwrap();
        (host(&plan.app(HOLDER), "CapDrop"), plan.warnings.len())
    };
    assert_eq!(dropped(json!({})), (json!(["NET_ADMIN", "NET_RAW"]), 0));
    assert_eq!(dropped(json!({ "CapDrop": ["cap_net_raw"] })), (json!(["cap_net_raw", "NET_ADMIN"]), 0));
    assert_eq!(dropped(json!({ "CapDrop": ["ALL"] })), (json!(["ALL"]), 0));
    assert_eq!(dropped(json!({ "CapAdd": ["CAP_NET_RAW"] })), (json!(["NET_ADMIN"]), 1));
    assert_eq!(dropped(json!({ "CapAdd": ["ALL"], "Privileged": true })).1, 2);
    let socket = json!({ "Binds": ["/run/docker.sock:/run/docker.sock"], "PidMode": "host" });
    assert_eq!(dropped(socket).1, 2);
}

#[test]
fn what_cannot_be_meshed_is_refused_with_its_name() {
    let mount = |source: &str| json!({ "Mounts": [{ "type": "bind", "source": source, "Target": "/x" }] });
    for (body, code) in [
        (json!({ "HostConfig": { "NetworkMode": "host" } }), "host-network"),
        (json!({ "ExposedPorts": { "15006/tcp": {} } }), "own-port"),
        (json!({ "HostConfig": { "PortBindings": { "15020/tcp": [] } } }), "own-port"),
        (json!({ "HostConfig": { "Binds": ["/var/run/signet:/a"] } }), "reserved-mount"),
        (json!({ "HostConfig": { "Binds": ["/:/a:ro"] } }), "reserved-mount"),
        (json!({ "HostConfig": { "Binds": ["signet-admin:/a"] } }), "reserved-mount"),
        (json!({ "HostConfig": mount("/run//./signet/admin.sock") }), "reserved-mount"),
        (json!({ "HostConfig": mount("/srv/../run/signet") }), "reserved-mount"),
    ] {
        let refusal = planned(&body).unwrap_err();
        assert!(refusal.starts_with(code) && refusal.contains("; fix: "), "{body}: {refusal}");
    }
    assert!(planned(&json!({ "HostConfig": { "Binds": ["/run/signet-other:/a", "data:/b"] } })).is_ok());
}

#[test]
fn who_joins_a_meshed_container_lives_in_its_holders_namespace_without_raw_sockets() {
    let body = Body::parse(br#"{"Image": "a", "HostConfig": {"NetworkMode": "container:web"}}"#).unwrap();
    let joined = guest(body, HOLDER);
    assert_eq!(host(&joined, "NetworkMode"), "container:4f1e");
    assert_eq!(host(&joined, "CapDrop"), json!(["NET_ADMIN", "NET_RAW"]));
    assert_eq!(joined["Labels"], Value::Null);
}

#[test]
fn no_body_holds_a_token() {
    let plan = planned(&json!({ "Image": "a" })).unwrap();
    for body in [plan.holder.to_string(), plan.sidecar(HOLDER).to_string(), plan.app(HOLDER).to_string()] {
        assert!(!body.contains("SIGNET_TOKEN="), "{body}");
    }
    assert!(plan.sidecar(HOLDER).to_string().contains("SIGNET_TOKEN_FILE=/run/signet/token"));
}
