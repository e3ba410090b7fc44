//! Clients that want an identity, or a sidecar's keys, that the rules do not give them.

use super::*;
use crate::attestor::pin;

#[tokio::test]
async fn labels_of_signets_own_are_refused_in_a_body_and_in_an_image() {
    let fixture = Fixture::new(false).await;
    for label in [create::GROUP_LABEL, ROLE_LABEL, create::BESIDE_LABEL] {
        let body = json!({ "Image": "a", "Labels": { label: null } }).to_string();
        let answer = fixture.told(&create(&body), &[]).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("reserved-label"), "{answer}");
        let image = json!({ "Id": "sha256:0b", "Config": { "Labels": { label: "x" } } });
        let answer = fixture.told(&create(r#"{"Image":"a"}"#), &[("GET /images/a/json ", image)]).await;
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("reserved-label"), "{answer}");
    }
}

#[tokio::test]
async fn nobody_joins_a_holder_or_a_sidecar() {
    let fixture = Fixture::new(false).await;
    for (role, mode) in [("holder", "fog"), ("sidecar", "container:h")] {
        for field in ["NetworkMode", "networkmode", "PidMode", "IpcMode"] {
            let body = json!({ "Image": "a", "HostConfig": { field: "container:/x" } }).to_string();
            let found = ("GET /containers/x/json ", container("x", "sha256:0a", role, mode));
            let answer = fixture.told(&create(&body), &[found]).await;
            assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("reserved-container"), "{answer}");
        }
    }
}

#[tokio::test]
async fn who_joins_a_workload_or_its_guest_must_have_an_image_that_may_be_that_workload() {
    let fixture = Fixture::new(false).await;
    let body = r#"{"Image":"evil","HostConfig":{"NetworkMode":"container:web"}}"#;
    let app = ("GET /containers/web/json ", container("a", "sha256:0b", "app", "container:h"));
    let group = ("GET /containers/json?all=1&filters=", whole_group());
    let image = ("GET /images/evil/json ", json!({ "Id": "sha256:0e", "RepoTags": ["web:1"] }));
    let answer = fixture.told(&create(body), &[app.clone(), group.clone(), image.clone()]).await;
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("image-not-listed"), "{answer}");
    let mut guest = container("guest", "sha256:0b", "", "container:a");
    guest["Config"]["Labels"] = Value::Null;
    let guest = ("GET /containers/web/json ", guest);
    let next = ("GET /containers/a/json ", app.1);
    let answer = fixture.told(&create(body), &[guest, next, group, image]).await;
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("image-not-listed"), "{answer}");
}

#[tokio::test]
async fn a_guest_with_a_listed_image_mounts_no_more_than_the_app_may() {
    let fixture = Fixture::new(false).await;
    let body =
        r#"{"Image":"web:2","HostConfig":{"NetworkMode":"container:web","Binds":["/proc/1/root:/x"]}}"#;
    let exchanges = [
        ("GET /containers/web/json ", container("a", "sha256:0b", "app", "container:h")),
        ("GET /containers/json?all=1&filters=", whole_group()),
        ("GET /images/web:2/json ", json!({ "Id": LISTED })),
    ];
    let answer = fixture.told(&create(body), &exchanges).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("reserved-mount"), "{answer}");
}

#[tokio::test]
async fn nothing_is_started_in_a_group_that_labels_made_up() {
    let fixture = Fixture::new(false).await;
    let start = b"POST /containers/web/start HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n";
    for (holder, app, reason) in
        [("sha256:0e", LISTED, "group-not-ours"), ("sha256:0a", "sha256:0e", "image-not-listed")]
    {
        let app = container("a", app, "app", "container:h");
        let mut exchanges = vec![
            ("GET /containers/web/json ", app.clone()),
            ("GET /containers/json?all=1&filters=", whole_group()),
            ("GET /containers/h/json ", container("h", holder, "holder", "fog")),
            ("GET /containers/s/json ", container("s", "sha256:0a", "sidecar", "container:h")),
            ("GET /containers/a/json ", app),
        ];
        if reason == "image-not-listed" {
            exchanges.push(("GET /images/sha256:0e/json ", Value::Null));
        }
        let answer = fixture.told(start, &exchanges).await;
        assert!(answer.starts_with("HTTP/1.1 500 ") && answer.contains(reason), "{answer}");
    }
}

#[tokio::test]
async fn what_a_sidecar_has_is_neither_read_nor_changed_and_the_container_that_was_looked_at_is_meant() {
    let fixture = Fixture::new(false).await;
    let request =
        |line: &str| format!("{line} HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n").into_bytes();
    for line in [
        "POST /containers/x/exec",
        "GET /containers/x/archive?path=/var/lib/signet",
        "PUT /containers/x/archive?path=/run/signet",
        "GET /containers/x/export",
        "POST /commit?container=x",
        "POST /containers/x/attach?stdin=1",
        "POST /containers/x/copy",
    ] {
        for role in ["holder", "sidecar"] {
            let found = ("GET /containers/x/json ", container("5", "sha256:0a", role, "fog"));
            let answer = fixture.told(&request(line), &[found]).await;
            assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("reserved-container"), "{answer}");
        }
    }
    let app = ("GET /containers/x/json ", container("5", LISTED, "app", "container:h"));
    let exec = ("POST /v1.41/containers/5/exec HTTP", json!({ "Id": "1" }));
    let answer = fixture.told(&request("POST /v1.41/containers/x/exec"), &[app, exec]).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let form = b"POST /commit?container=a HTTP/1.1\r\nHost: d\r\nContent-Type: application/x-www-form-URLencoded\r\n\r\n";
    let answer = fixture.told(form, &[]).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("form"), "{answer}");
}

#[tokio::test]
async fn other_ways_to_start_containers_are_refused_where_what_nobody_named_is() {
    let fixture = Fixture::new(true).await;
    for line in ["POST /services/create", "POST /swarm/init", "POST /v4.0.0/libpod/containers/create"] {
        let request = format!("{line} HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n");
        let answer = fixture.told(request.as_bytes(), &[]).await;
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("unread-api"), "{answer}");
    }
}

#[tokio::test]
async fn a_guest_that_is_not_what_was_looked_at_is_taken_away_before_it_can_start() {
    let fixture = Fixture::new(false).await;
    let body = r#"{"Image":"web:2","HostConfig":{"NetworkMode":"container:web"}}"#;
    let keys = json!([{ "Type": "volume", "Name": "keys", "Source": "/x" }]);
    for (image, mounts, reason) in
        [("sha256:0e", Value::Null, "image-changed"), (LISTED, keys.clone(), "reserved-mount")]
    {
        let mut made = container("n", image, "", "container:h");
        made["Mounts"] = mounts;
        let mut sidecar = listed("s", "sidecar", "container:h");
        sidecar["Mounts"] = keys.clone();
        let mut exchanges = vec![
            ("GET /containers/web/json ", container("a", LISTED, "app", "container:h")),
            ("GET /containers/json?all=1&filters=", whole_group()),
            ("GET /images/web:2/json ", json!({ "Id": LISTED })),
            ("POST /v1.41/containers/create ", json!({ "Id": "n" })),
            ("GET /containers/n/json ", made),
        ];
        if reason == "reserved-mount" {
            exchanges.push(("GET /containers/json?all=1 ", json!([sidecar])));
        }
        exchanges.push(("DELETE /containers/n?", json!({})));
        let answer = fixture.told(&create(body), &exchanges).await;
        assert!(answer.starts_with("HTTP/1.1 409 ") && answer.contains(reason), "{answer}");
    }
}

#[tokio::test]
async fn a_tag_stands_for_the_image_that_had_it_at_the_start() {
    let fixture = Fixture::new(false).await;
    let rules =
        Rules::parse("rules", "workloads: [{name: web, images: ['web:1', 'cafe', 'gone:1']}]").unwrap();
    let docker = Docker::at(fixture.at("engine"));
    let exchanges = [
        // The first digits of an id, which are no tag.
        ("GET /images/cafe/json ", json!({ "Id": "sha256:cafe00", "RepoTags": ["evil:1"] })),
        ("GET /images/gone:1/json ", Value::Null),
        ("GET /images/web:1/json ", json!({ "Id": "sha256:01", "RepoTags": ["web:1"] })),
    ];
    let ((), rules) = tokio::join!(fixture.engine_answers(&exchanges), pin(rules, &docker, |_| {}));
    let rules = rules.unwrap();
    let image =
        |id: &str, tags: Value| serde_json::from_value(json!({ "Id": id, "RepoTags": tags })).unwrap();
    assert!(rules.attest("web", "x", &image("sha256:01", json!([]))).is_ok());
    assert!(rules.attest("web", "x", &image("sha256:0e", json!(["web:1", "gone:1"]))).is_err());
    assert!(rules.attest("web", "x", &image("sha256:cafe00", json!(["evil:1"]))).is_err());
}
