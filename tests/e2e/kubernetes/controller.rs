//! Custom resources and their status.

use signet_cli::lab::runner::TestResult;
use signet_tests::kubernetes::ApiServer;
use signet_tests::manifest::{allow, mesh, policy, workload};
use signet_tests::{Failure, wait_for};

use super::stage::{Stage, resources};

const PORTS: &str = "ports: [{port: 8201, protocol: http}]";

fn manifests() -> [String; 4] {
    [
        mesh(&[]),
        workload("server", &[PORTS]),
        workload("client", &[]),
        policy("access", "server", &[&allow("client", "")]),
    ]
}

/// Puts manifests in as somebody who applies them.
fn put(stage: &Stage, manifests: &str) -> TestResult {
    resources(manifests)?.iter().for_each(|resource| stage.cluster.put(resource));
    Ok(())
}

/// What the control plane has, by its own account.
fn stored(stage: &Stage) -> Result<String, Failure> {
    let output = std::process::Command::new("/proc/self/exe")
        .args(["signet", "get", "-o", "yaml", "--control-plane"])
        .arg(format!("unix:{}", stage.mesh.socket().display()))
        .output()?;
    Ok(String::from_utf8(output.stdout)?)
}

/// Waits until nothing is left to tell.
fn all_told(stage: &Stage) -> TestResult {
    let all =
        [("meshes", "site"), ("workloads", "server"), ("workloads", "client"), ("accesspolicies", "access")];
    for (plural, name) in all {
        stage.until(plural, name, "Programmed", "True", "0 of 0")?;
    }
    Ok(())
}

pub(super) fn resources_become_the_meshs_policy_and_are_told_where_they_stand() -> TestResult {
    let stage = Stage::new(&manifests())?;
    stage.until("accesspolicies", "access", "Accepted", "True", "")?;
    all_told(&stage)?;
    assert_eq!(
        stage.cluster.object("workloads", "", "server").ok_or("gone")?["status"]["observedGeneration"],
        1
    );
    // A proxy that connects has it in force, and is counted.
    let container = stage.host.container("server")?;
    let _sidecar = stage.sidecar(&container, "server")?;
    put(&stage, &policy("access", "server", &[&allow("client", "{methods: [GET]}")]))?;
    stage.until("accesspolicies", "access", "Programmed", "True", "1 of 1")?;
    assert_eq!(
        stage.cluster.object("accesspolicies", "", "access").ok_or("gone")?["status"]["observedGeneration"],
        2
    );
    assert!(stored(&stage)?.contains("methods:\n"), "{}", stored(&stage)?);

    // Nobody else writes.
    let refused =
        stage.mesh.apply("by-hand.yaml", &workload("another", &[])).map_err(|error| error.to_string());
    assert!(refused.as_ref().is_err_and(|error| error.contains("followed")), "{refused:?}");
    let refused = stage.mesh.delete("Workload", "client").map_err(|error| error.to_string());
    assert!(refused.as_ref().is_err_and(|error| error.contains("followed")), "{refused:?}");

    // Without a Mesh nothing counts, and what was in force stays; so a deletion by mistake costs nothing.
    stage.cluster.remove("meshes", "", "site");
    put(&stage, &workload("late", &[]))?;
    stage.until("workloads", "late", "Accepted", "False", "no Mesh")?;
    assert!(stored(&stage)?.contains("site.example"));
    put(&stage, &mesh(&[]))?;
    stage.until("workloads", "late", "Accepted", "True", "")?;
    stage.cluster.remove("workloads", "", "late");
    wait_for("the workload to be gone", || stored(&stage).ok().filter(|yaml| !yaml.contains("late")))?;
    Ok(())
}

pub(super) fn invalid_resource_keeps_its_last_good_form_and_is_told_the_field() -> TestResult {
    let stage = Stage::new(&manifests())?;
    stage.until("accesspolicies", "access", "Accepted", "True", "")?;
    // What the schema cannot know: there is no such workload.
    put(&stage, &policy("access", "nobody", &[&allow("client", "")]))?;
    let message = stage.until("accesspolicies", "access", "Accepted", "False", "nobody")?;
    assert!(message.starts_with("spec.target.workloads[0] (line "), "{message}");
    assert!(message.contains("; fix: "), "{message}");
    stage.until("accesspolicies", "access", "Programmed", "False", "last accepted form")?;
    assert_eq!(
        stage.cluster.object("accesspolicies", "", "access").ok_or("gone")?["status"]["observedGeneration"],
        2
    );
    // Others are not held up by it.
    put(&stage, &workload("nobody-else", &[]))?;
    stage.until("workloads", "nobody-else", "Accepted", "True", "")?;
    assert!(stored(&stage)?.contains("- \"server\""), "{}", stored(&stage)?);
    // And it is taken as soon as it is right, without being touched.
    put(&stage, &workload("nobody", &[]))?;
    stage.until("accesspolicies", "access", "Accepted", "True", "")?;
    Ok(())
}

pub(super) fn api_server_that_was_away_and_has_forgotten_loses_nothing() -> TestResult {
    let mut stage = Stage::new(&manifests())?;
    stage.until("accesspolicies", "access", "Accepted", "True", "")?;
    let lists = stage.cluster.lists();
    stage.api = None;
    // While it is away: something new, something gone, and the versions from before are forgotten.
    put(&stage, &workload("late", &[]))?;
    stage.cluster.remove("accesspolicies", "", "access");
    stage.cluster.forget();
    let container = stage.host.container("server")?;
    assert!(stored(&stage)?.contains("name: \"access\""), "what is known stays while the server is away");
    stage.api = Some(ApiServer::start(stage.host.namespace(), &stage.endpoint, &stage.cluster)?);
    stage.until("workloads", "late", "Accepted", "True", "")?;
    assert!(stage.cluster.lists() > lists, "it was not listed anew");
    wait_for("the policy to be gone", || {
        stored(&stage).ok().filter(|yaml| !yaml.contains("name: \"access\""))
    })?;
    let _sidecar = stage.sidecar(&container, "server")?;
    Ok(())
}

pub(super) fn control_plane_that_starts_again_writes_no_status_that_says_the_same() -> TestResult {
    let mut stage = Stage::new(&manifests())?;
    all_told(&stage)?;
    stage.mesh.kill_control_plane();
    let (lists, writes) = (stage.cluster.lists(), stage.cluster.status_writes());
    stage.mesh.start_control_plane()?;
    wait_for("all kinds to be listed", || (stage.cluster.lists() >= lists + 11).then_some(()))?;
    // What is changed now is told in the same round as the rest would be.
    put(&stage, &workload("late", &[]))?;
    stage.until("workloads", "late", "Programmed", "True", "0 of 0")?;
    assert_eq!(stage.cluster.status_writes(), writes + 1, "statuses were written that say the same");
    Ok(())
}

pub(super) fn conflict_on_a_status_is_met_with_what_is_there_by_then() -> TestResult {
    let stage = Stage::new(&manifests())?;
    all_told(&stage)?;
    stage.cluster.conflicts(2);
    put(&stage, &workload("late", &[]))?;
    stage.until("workloads", "late", "Accepted", "True", "")?;
    assert_eq!(stage.cluster.conflicts_left(), 0);
    let late = stage.cluster.object("workloads", "", "late").ok_or("gone")?;
    assert!(
        late["metadata"]["annotations"]["touched"].is_string(),
        "what somebody else wrote is lost: {late}"
    );
    Ok(())
}
