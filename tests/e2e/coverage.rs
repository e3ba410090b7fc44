//! What `signet coverage` lists: the edges that lack protection, and no others.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use signet_cli::lab::runner::{Test, TestResult};
use signet_tests::manifest::{deny, egress_policy, mesh, policy, workload};
use signet_tests::plain::get;
use signet_tests::{Failure, Plain, Recorder, Site, id, place, wait_for};

use crate::policy::signet;

pub(crate) const TESTS: &[Test] = &[
    ("edges_without_protection_are_listed_and_no_others", edges_without_protection_are_listed_and_no_others),
    ("what_leaves_in_clear_is_listed_in_the_words_of_policy", what_leaves_in_clear_is_listed),
];

const HTTP: u16 = 8201;

fn edges_without_protection_are_listed_and_no_others() -> TestResult {
    let ports = "ports: [{port: 8201, protocol: http}]";
    let anyone = ["{from: [{any: anyone}]}"];
    let admin = ["{from: [{any: authenticated}], to: [{paths: [/admin/**]}]}"];
    let observed =
        deny("no-admin", "server", &admin).replace("action: deny", "action: deny\n  mode: observe");
    let site = Site::new(&[
        mesh(&[]),
        workload("server", &[ports, "mtls: {mode: permissive}"]),
        workload("client", &[]),
        // What is spoken there is asked for by a stream of its own, which counts for nothing.
        workload("other", &["ports: [{port: 8201}]", "protection: {level: public}"]),
        policy("open", "server", &anyone),
        policy("open-other", "other", &anyone),
        observed,
    ])?;
    let (server, client, other) =
        (site.container("server")?, site.container("client")?, site.container("other")?);
    let stranger = site.container("stranger")?;
    let _apps = [Recorder::http(&server, HTTP)?, Recorder::http(&other, HTTP)?];
    let [_server, of_client, of_other] =
        site.sidecars([(&server, "server"), (&client, "client"), (&other, "other")])?;
    let (to_server, to_other) = (place(&server, HTTP), place(&other, HTTP));
    of_client.wait_until_known(to_server)?;
    of_client.wait_until_known(to_other)?;
    of_other.wait_until_known(to_server)?;

    // First what is fully protected: had it been noted, it would be in the report that tells of the others.
    for (from, to, path) in [
        (&client, to_server, "/"),
        (&stranger, to_server, "/secret-path"),
        (&client, to_other, "/"),
        (&client, to_other, "/"),
        (&other, to_server, "/admin/secret-path"),
    ] {
        assert_eq!(Plain::ask(from, to, &get(path, to.to_string()))?.status, 200, "{path} at {to}");
    }

    let (client, other_id, server) = (id("client"), id("other"), id("server"));
    let expected = sorted(vec![
        json!({"source": stranger.ipv4(), "destination": server, "port": HTTP, "missing": {"plaintext": 1}}),
        json!({"source": client, "destination": other_id, "port": HTTP, "missing": {"unsigned": 2}}),
        json!({"source": other_id, "destination": server, "port": HTTP, "missing": {"uncovered": 1}}),
    ]);
    assert_eq!(reported(&site, expected.len())?, expected);
    Ok(())
}

fn what_leaves_in_clear_is_listed() -> TestResult {
    let site = Site::new(&[
        mesh(&["mtls: {mode: permissive}"]),
        workload("client", &[]),
        workload("other", &[]),
        egress_policy("outside", "client", &["{names: ['*.web.test'], ports: [9000]}"]),
    ])?;
    let (client, other) = (site.container("client")?, site.container("other")?);
    let stranger = site.container("stranger")?;
    let _apps = [Recorder::http(&stranger, 9000)?, Recorder::http(&stranger, 9001)?];
    let _sidecars = site.sidecars([(&client, "client"), (&other, "other")])?;
    for (from, port, host, status) in
        [(&client, 9000, "secret.web.test", 200), (&client, 9001, "x", 403), (&other, 9001, "x", 200)]
    {
        let answer = Plain::ask(from, place(&stranger, port), &get("/", host))?;
        assert_eq!(answer.status, status, "{host}, {port}: {answer:?}");
    }

    let (client, other, outside) = (id("client"), id("other"), stranger.ipv4());
    let expected = sorted(vec![
        json!({"source": client, "destination": outside, "port": 9000, "name": "*.web.test", "missing": {"plaintext": 1}}),
        json!({"source": other, "destination": outside, "port": 9001, "missing": {"plaintext": 1, "uncovered": 1}}),
    ]);
    assert_eq!(
        reported(&site, expected.len())?,
        expected,
        "what is refused is not listed, nor what was asked for"
    );
    Ok(())
}

/// The edges, once so many are reported, without the times: those are looked at here.
fn reported(site: &Site, count: usize) -> Result<Vec<Value>, Failure> {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut edges = wait_for("the report of the edges", || {
        let (exit, coverage) = signet(site, &["coverage", "-o", "json"]).ok()?;
        let edges = coverage["edges"].as_array()?;
        let whole = exit == Some(1) && coverage["edgesLost"] == 0 && edges.len() >= count;
        whole.then(|| edges.clone())
    })?;
    for edge in &mut edges {
        let seen = edge["lastSeen"].as_u64().ok_or("no time")?;
        assert!((now() - 300..=now() + 1).contains(&seen), "{edge}");
        edge.as_object_mut().ok_or("no object")?.remove("lastSeen");
    }
    let (_, table) = signet(site, &["coverage"])?;
    let table = table.as_str().ok_or("no text")?;
    assert!(table.contains("  source ") && table.contains(" s ago\n"), "{table}");
    assert!(!table.contains("secret"), "{table}");
    Ok(sorted(edges))
}

fn sorted(mut edges: Vec<Value>) -> Vec<Value> {
    edges.sort_by_key(Value::to_string);
    edges
}
