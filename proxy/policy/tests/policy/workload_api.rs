//! `Workload.workloadApi`: what a sidecar offers its application.

use signet_policy::{JwtApi, WorkloadApi};

use crate::{faults_of, manifest, model_of};

fn text(rest: &str) -> String {
    let mesh = manifest("Mesh", "m", "trustDomain: td\nnetworks: [{name: n, cidrs: [10.0.0.0/8]}]");
    mesh + &manifest("Workload", "w", &format!("class: app\ndevice: d\nnetwork: n\n{rest}"))
}

fn offered(rest: &str) -> WorkloadApi {
    model_of(&text(rest)).workloads[0].workload_api.clone()
}

#[test]
fn nothing_is_offered_that_is_not_written() {
    assert!(offered("").is_empty());
    assert!(offered("workloadApi: {}").is_empty());
    assert!(offered("workloadApi: {x509: false}").is_empty());
    assert_eq!(offered("workloadApi: {x509: true}"), WorkloadApi { x509: true, jwt: None });
    assert_eq!(
        offered("workloadApi: {jwt: {}}"),
        WorkloadApi { x509: false, jwt: Some(JwtApi { audiences: Vec::new() }) }
    );
    let some = offered("workloadApi: {jwt: {audiences: ['https://vault.example', db]}}");
    let asked = |audiences: &[&str]| audiences.iter().map(|&a| a.to_owned()).collect::<Vec<_>>();
    assert_eq!(some.refused_audience(&asked(&["db", "https://vault.example"])), None);
    assert_eq!(
        some.refused_audience(&asked(&["db", "https://vault.example/"])),
        Some("https://vault.example/")
    );
    assert_eq!(WorkloadApi::default().refused_audience(&asked(&["db"])), Some("db"));
}

#[test]
fn faults_are_named_at_their_place() {
    for (rest, expected) in [
        ("workloadApi: {x509: yes please}", "true or false"),
        ("workloadApi: {jwt: {audience: [a]}}", "unknown field `audience`; fix: write `audiences`"),
        (
            "workloadApi: {jwt: {audiences: []}}",
            "`audiences` is empty; fix: leave it out when tokens are only verified",
        ),
        (
            "workloadApi: {jwt: {audiences: [a, b, a]}}",
            "audience `a` is there twice; fix: remove one of the two",
        ),
        ("workloadApi: {jwt: {audiences: ['a b']}}", "`a b` is no audience"),
        ("workloadApi: {jwt: {audiences: ['']}}", "`` is no audience"),
    ] {
        let faults = faults_of(&text(rest));
        assert!(faults.len() == 1 && faults[0].contains(expected), "{rest}: {faults:?}");
    }
}
