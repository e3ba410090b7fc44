use serde_json::json;

use super::*;

fn settings() -> Settings {
    let reserved = ["/run/signet/admin.sock", "signet-admin", "/var/lib/docker"];
    Settings {
        control_plane: "cp:15012".to_owned(),
        image: "sha256:0a".to_owned(),
        reserved: reserved.map(str::to_owned).to_vec(),
    }
}

#[test]
fn a_path_is_compared_as_the_engine_cleans_it() {
    for held in [
        "/run/signet/admin.sock",
        "/x/../run/signet",
        "/../run//signet/./admin.sock",
        "/run/signet/other/..",
        "/var/run/signet",
        "/var/lib/../run/signet/",
        "/",
        "/..",
        "/var",
        "/var/lib/docker/volumes/signet-state/_data",
        "/home/../var/lib/docker",
        "/proc/1/root",
        "signet-admin",
    ] {
        assert!(settings().holds_back(held), "{held}");
    }
    for free in
        ["/run/signet-other", "/run/signet/../other", "/var/lib/dockers", "/srv", "data", "signet-admin2"]
    {
        assert!(!settings().holds_back(free), "{free}");
    }
}

#[test]
fn a_volume_that_shows_the_host_is_judged_by_what_it_shows() {
    let held = |options: Value| {
        let volume: Volume = serde_json::from_value(json!({ "Options": options })).unwrap();
        settings().holds_back_volume(&volume)
    };
    for options in [
        json!({ "type": "none", "o": "bind", "device": "/run/signet" }),
        json!({ "type": "none", "o": "ro,rbind", "device": "/x/../run/signet" }),
        json!({ "TYPE": "none", "O": "bind", "Device": "/" }),
        json!({ "type": "none", "o": "bind", "device": "run/signet" }),
        json!({ "type": "overlay", "o": "lowerdir=/run/signet:/x", "device": "overlay" }),
        json!({ "type": "ext4", "device": "/dev/sda1" }),
    ] {
        assert!(held(options.clone()), "{options}");
    }
    for options in [
        Value::Null,
        json!({}),
        json!({ "size": "10G" }),
        json!({ "type": "tmpfs", "device": "tmpfs", "o": "size=1m" }),
        json!({ "type": "nfs", "device": ":/run/signet", "o": "addr=10.0.0.1" }),
        json!({ "type": "none", "o": "bind", "device": "/srv/data" }),
    ] {
        assert!(!held(options.clone()), "{options}");
    }
}

#[test]
fn a_volume_with_a_drivers_options_is_refused() {
    let refused = |config: Value| {
        let mount = json!({ "type": "volume", "target": "/x", "volumeoptions": { "driverconfig": config } });
        let body = json!({ "Image": "a", "HostConfig": { "Mounts": [mount] } });
        fault(&Body::parse(body.to_string().as_bytes()).unwrap(), &settings()).is_some()
    };
    assert!(refused(json!({ "Name": "local", "Options": { "device": "/run/signet", "o": "bind" } })));
    assert!(refused(json!({ "name": "local" })) && refused(json!([])));
    assert!(!refused(Value::Null) && !refused(json!({})));
}

#[test]
fn a_volume_of_a_sidecar_and_one_that_it_may_have_left_behind_are_reserved() {
    let anonymous = "ab".repeat(32);
    let other = "cd".repeat(32);
    let orphan = "ef".repeat(32);
    let container = |role: Value, volume: &str| -> Listed {
        serde_json::from_value(json!({
            "Id": "1", "State": "exited", "HostConfig": { "NetworkMode": "fog" },
            "Labels": { ROLE_LABEL: role }, "Mounts": [{ "Type": "volume", "Name": volume, "Source": "/x" }],
        }))
        .unwrap()
    };
    let all = [
        container(json!("sidecar"), &anonymous),
        container(json!("holder"), "named"),
        container(json!("app"), &other),
    ];
    for (name, reserved) in
        [(&*anonymous, true), ("named", true), (&*orphan, true), (&*other, false), ("data", false)]
    {
        assert_eq!(owned(name, &all, true).is_some(), reserved, "{name}");
    }
    // Its own, which the engine made for it.
    assert_eq!(owned(&orphan, &all, false), None);
    assert!(owned(&anonymous, &all, false).is_some());
}
