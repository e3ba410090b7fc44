//! The way of docs/migration.md, from plaintext to strict, with a client that must never notice. What the commands print
//! here is what the page shows: `cargo test -p signet-tests --test e2e migration -- --nocapture` prints it again.

use serde_json::Value;
use signet_cli::lab::mesh::program;
use signet_cli::lab::runner::{Test, TestResult};
use signet_tests::manifest::{mesh, policy, workload};
use signet_tests::plain::get;
use signet_tests::{Failure, LIMIT, Plain, Recorder, Site, place, wait_for};

pub(crate) const TESTS: &[Test] =
    &[("migration_from_plaintext_to_strict_breaks_nothing_on_the_way", migration_breaks_nothing)];

const PORT: u16 = 8201;
const PORTS: &str = "ports: [{port: 8201, protocol: http}]";

/// The policy that is to come, as `signet inject` writes it for the first day.
fn guard(mode: &str, paths: &str) -> String {
    let rule = format!(
        "{{name: shop, from: [{{identity: 'spiffe://site.example/app/host/shop'}}], to: [{{paths: {paths}}}]}}"
    );
    policy("store-access", "store", &[&rule]).replace("  target:", &format!("  mode: {mode}\n  target:"))
}

fn migration_breaks_nothing() -> TestResult {
    // Day one: everything is permissive, everybody may do everything, and what is to come only observes.
    let everybody = policy("first-day", "store", &["{from: [{any: anyone}]}"]);
    let site = Site::new(&[
        mesh(&["mtls: {mode: permissive}"]),
        workload("store", &[PORTS, "names: [store]"]),
        workload("shop", &[]),
        workload("report", &[]),
        everybody,
        guard("observe", "['/items/**']"),
    ])?;
    let (store, shop, report) =
        (site.container("store")?, site.container("shop")?, site.container("report")?);
    let _app = Recorder::http(&store, PORT)?;
    let to = place(&store, PORT);
    let status = |from, path: &str| -> Result<u16, Failure> {
        Ok(Plain::ask(from, to, &get(path, to.to_string()))?.status)
    };
    let [mut of_store, mut of_shop] = site.sidecars([(&store, "store"), (&shop, "shop")])?;
    of_shop.wait_until_known(to)?;
    for (from, path) in [(&shop, "/items/1"), (&shop, "/basket"), (&report, "/items/all")] {
        assert_eq!(status(from, path)?, 200, "{path}");
    }

    // Coverage names both: who has no sidecar, and what the policy to come would refuse.
    let both = |edges: &Value| edges["edges"].as_array().is_some_and(|edges| edges.len() == 2);
    wait_for("both edges", || json(&site, &["coverage"]).ok().filter(|(_, found)| both(found)))?;
    let (code, shown) = signet(&site, &["coverage"])?;
    assert_eq!(code, Some(1));
    for word in ["report: no sidecar is connected", "plaintext 1", "uncovered 1"] {
        assert!(shown.contains(word), "{word} is not in\n{shown}");
    }
    let basket = ["explain", "--from", "shop", "--to", "store", "--port", "8201", "--path", "/basket"];
    let (code, shown) = signet(&site, &basket)?;
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("store-access"), "{shown}");

    // The rule forgot the basket; the reports get a sidecar and a rule of their own.
    site.mesh.apply("store.yaml", &guard("observe", "['/items/**', /basket]"))?;
    let [mut of_report] = site.sidecars([(&report, "report")])?;
    of_report.wait_until_known(to)?;
    let rule = "{name: reports, from: [{identity: 'spiffe://site.example/app/host/report'}], to: [{methods: [GET], paths: ['/items/**']}]}";
    site.mesh.apply("reports.yaml", &policy("reports", "store", &[rule]))?;
    for (from, path) in [(&shop, "/items/1"), (&shop, "/basket"), (&report, "/items/all")] {
        assert_eq!(status(from, path)?, 200, "{path}");
    }
    let (_, shown) = signet(&site, &basket)?;
    assert!(shown.contains("store-access/shop"), "{shown}");

    // Enforce, without the rule for everybody.
    site.mesh.apply("store.yaml", &guard("enforce", "['/items/**', /basket]"))?;
    let (code, shown) = signet(&site, &["delete", "AccessPolicy", "first-day"])?;
    assert_eq!(code, Some(0), "{shown}");
    // Strict: without a certificate nobody gets in.
    site.mesh.apply("mesh.yaml", &mesh(&["mtls: {mode: strict}"]))?;
    // What only calls is called by nobody but who asks whether it lives.
    let health = "{name: health, from: [{class: platform}], to: [{methods: [GET], paths: [/health]}]}";
    site.mesh.apply("callers.yaml", &policy("callers", "shop, report", &[health]))?;
    for (from, path) in [(&shop, "/items/1"), (&shop, "/basket"), (&report, "/items/all")] {
        assert_eq!(status(from, path)?, 200, "{path}");
    }
    let refused = wait_for("the enforced policy", || {
        Plain::ask(&report, to, &get("/basket", to.to_string())).ok().filter(|answer| answer.status == 403)
    })?;
    let id =
        serde_json::from_slice::<Value>(&refused.body)?["request_id"].as_str().unwrap_or_default().to_owned();
    println!("{}", String::from_utf8_lossy(&refused.body));
    let (code, shown) = signet(&site, &["explain", &id])?;
    assert_eq!(code, Some(1), "{shown}");
    assert!(shown.contains("refused access-denied"), "{shown}");
    let stranger = site.container("stranger")?;
    wait_for("strict mode", || (status(&stranger, "/items/1").ok() != Some(200)).then_some(()))?;
    // Sidecars tell of what went past them since they started; from here on there is nothing to tell.
    for sidecar in [&mut of_store, &mut of_shop, &mut of_report] {
        sidecar.restart()?;
    }
    let covered = || signet_quietly(&site, &["coverage"]).ok().filter(|(code, _)| *code == Some(0));
    let waited = wait_for("coverage of everything", covered);
    let (_, shown) = signet(&site, &["coverage"])?;
    waited.map_err(|error| format!("{error}; at last:\n{shown}"))?;
    let well = || signet_quietly(&site, &["check"]).ok().filter(|(code, _)| *code == Some(0));
    wait_for("a mesh that is well", well)?;
    signet(&site, &["check"])?;
    Ok(())
}

/// Runs a command of the operator's and prints what it printed.
fn signet(site: &Site, arguments: &[&str]) -> Result<(Option<i32>, String), Failure> {
    let (code, output) = signet_quietly(site, arguments)?;
    println!("$ signet {}\n{output}exit code {code:?}\n", arguments.join(" "));
    Ok((code, output))
}

fn signet_quietly(site: &Site, arguments: &[&str]) -> Result<(Option<i32>, String), Failure> {
    let socket = format!("unix:{}", site.mesh.socket().display());
    let running =
        site.host.namespace().start(program(&[arguments, &["--control-plane", &socket]].concat()))?;
    let code = running.wait(LIMIT)?.code();
    Ok((code, running.output()))
}

fn json(site: &Site, arguments: &[&str]) -> Result<(Option<i32>, Value), Failure> {
    crate::policy::signet(site, &[arguments, &["-o", "json"]].concat())
}
