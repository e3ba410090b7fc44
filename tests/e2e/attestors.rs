//! Enrolment without a token of one's own: by what a process is, by an SVID of another trust domain, and what comes of a token
//! that many have.

use std::fs;
use std::path::{Path, PathBuf};

use signet_cli::lab::mesh::{Evidence, Mesh, Setup, Sidecar, program};
use signet_cli::lab::runner::{Test, TestResult};
use signet_cli::lab::{HostPlan, Lab, Proc};
use signet_identity::Fingerprint;
use signet_tests::manifest::{TRUST_DOMAIN, mesh, workload};
use signet_tests::workload_api::WorkloadSocket;
use signet_tests::{Failure, LIMIT, Site, id, root_pem, wait_for};

pub(crate) const TESTS: &[Test] = &[
    ("process_that_the_rules_list_enrols_and_no_other", process_that_the_rules_list_enrols_and_no_other),
    (
        "node_with_an_svid_enrols_once_as_what_the_rules_say",
        node_with_an_svid_enrols_once_as_what_the_rules_say,
    ),
    (
        "of_many_sidecars_that_start_with_one_token_exactly_one_enrols",
        of_many_sidecars_that_start_with_one_token_exactly_one_enrols,
    ),
];

/// Sidecars that start at once with the same token.
const MANY: usize = 8;

fn by(evidence: Evidence) -> Setup {
    Setup { evidence: Some(evidence), ..Setup::default() }
}

/// An attestor of the host's with these rules, and its socket.
fn attestor(site: &Site, name: &str, rules: &str) -> Result<(Proc, PathBuf), Failure> {
    let at = |suffix: &str| site.mesh.folder().join(format!("{name}.{suffix}"));
    let (socket, file) = (at("sock"), at("yaml"));
    fs::write(&file, format!("workloads: [{rules}]\n"))?;
    let attestor = program(&["attest", "unix", "--listen"])
        .args([socket.as_os_str(), "--rules".as_ref(), file.as_os_str()])
        .args(["--control-plane".as_ref(), site.mesh.socket().as_os_str()]);
    let attestor = site.host.namespace().start(attestor)?;
    attestor.wait_for_line("listening on", LIMIT)?;
    Ok((attestor, socket))
}

fn process_that_the_rules_list_enrols_and_no_other() -> TestResult {
    let site = Site::new(&[mesh(&[]), workload("alice", &[]), workload("bob", &[])])?;
    // Sidecars of the lab are this program, run by user 0.
    let program = std::env::current_exe()?;
    let digest: String =
        Fingerprint::of(&fs::read(&program)?).0.iter().map(|byte| format!("{byte:02x}")).collect();
    let path = program.display();
    let whole = format!("{{name: alice, uid: 0, gid: 0, path: '{path}', sha256: {digest}}}");
    let (listing, socket) = attestor(&site, "listing", &whole)?;
    let mut alice = site.mesh.sidecar(&site.container("alice")?, "alice", by(Evidence::Process(socket)))?;
    listing.wait_for_line("alice was given to process", LIMIT)?;
    // What it got is kept: a restart asks nobody.
    drop(listing);
    alice.restart()?;

    let others = [
        ("user", "{name: bob, uid: 4711}".to_owned(), "process-not-listed"),
        ("unit", "{name: bob, unit: bob.service}".to_owned(), "process-not-listed"),
        ("digest", format!("{{name: bob, uid: 0, sha256: {}}}", "00".repeat(32)), "process-not-listed"),
        ("both", "{name: alice, uid: 0}, {name: bob, gid: 0, uid: 0}".to_owned(), "process-ambiguous"),
        ("undeclared", "{name: carol, uid: 0}".to_owned(), "carol"),
    ];
    for (name, rules, reason) in others {
        let (refusing, socket) = attestor(&site, name, &rules)?;
        let container = site.container(name)?;
        let bob = site.mesh.begin_sidecar(&container, "bob", by(Evidence::Process(socket)))?;
        let line = refusing.wait_for_line("refused: ", LIMIT)?;
        assert!(line.contains(reason), "{name}: {line}");
        // And who asked says why it has no identity.
        wait_for("its reason", || log(&bob).ok().filter(|log| log.contains(reason)))?;
    }
    let proxies = site.mesh.proxies()?;
    assert!(proxies.iter().all(|proxy| proxy.spiffe_id == id("alice").as_str()), "{proxies:?}");
    Ok(())
}

fn log(sidecar: &Sidecar) -> Result<String, Failure> {
    Ok(fs::read_to_string(sidecar.folder().join("log"))?)
}

/// The root of a mesh, in a file.
fn roots(mesh: &Mesh) -> Result<PathBuf, Failure> {
    let path = mesh.folder().join("roots.pem");
    fs::write(&path, root_pem(mesh)?)?;
    Ok(path)
}

/// A sidecar of another mesh with the Workload API, in the place of SPIRE's agent: where it listens.
fn agent(other: &Mesh, host: &signet_cli::lab::Host, name: &str) -> Result<(Sidecar, PathBuf), Failure> {
    let (socket, setup) = WorkloadSocket::of(other, name, "0");
    let sidecar = other.sidecar(&host.container(name)?, name, setup)?;
    Ok((sidecar, socket.path().to_owned()))
}

fn node_with_an_svid_enrols_once_as_what_the_rules_say() -> TestResult {
    let offered = "workloadApi: {x509: true}";
    let manifests = [mesh(&[]), workload("node", &[offered]), workload("unlisted", &[offered])].concat();
    let lab = Lab::new()?;
    let there = lab.host("there", HostPlan::numbered(2))?;
    let other = Mesh::start(&there, "spire.example")?;
    other.apply("other.yaml", &manifests.replace(TRUST_DOMAIN, "spire.example"))?;
    let (_node, listed) = agent(&other, &there, "node")?;
    let (_unlisted, unlisted) = agent(&other, &there, "unlisted")?;

    let rules = other.folder().join("spiffe.yaml");
    let bundle = roots(&other)?;
    fs::write(
        &rules,
        format!(
            "trustDomains: [{{name: spire.example, bundle: {}}}]\n\
             workloads: [{{spiffeId: 'spiffe://spire.example/app/host/node', workload: alice}}]\n",
            bundle.display()
        ),
    )?;
    let host = lab.host("host", HostPlan::numbered(1))?;
    let signet = program(&[]).env("SIGNET_ATTEST_SPIFFE", &rules);
    let own = Mesh::start_program(signet, host.namespace(), host.ipv4(), TRUST_DOMAIN)?;
    own.apply("own.yaml", &[mesh(&[]), workload("alice", &[])].concat())?;
    let own_roots = roots(&own)?;
    let svid = |socket: &Path, roots: &Path| Evidence::Svid { socket: socket.into(), roots: roots.into() };

    // Without a state directory, so that each start enrols anew: a node is one instance all the same.
    let setup = Setup { forgetful: true, ..by(svid(&listed, &own_roots)) };
    let mut alice = own.sidecar(&host.container("alice")?, "alice", setup)?;
    alice.restart()?;
    let proxies = own.proxies()?;
    assert_eq!(proxies.len(), 1, "{proxies:?}");
    assert_eq!(proxies[0].spiffe_id, id("alice").as_str());

    let stranger =
        own.begin_sidecar(&host.container("stranger")?, "alice", by(svid(&unlisted, &own_roots)))?;
    wait_for("its reason", || log(&stranger).ok().filter(|log| log.contains("attestation-no-workload")))?;
    // Its roots are of the other mesh: this control plane is shown nothing.
    let misled = own.begin_sidecar(&host.container("misled")?, "alice", by(svid(&listed, &bundle)))?;
    wait_for("its reason", || log(&misled).ok().filter(|log| log.contains("the handshake failed")))?;
    assert_eq!(own.control_metrics()?.sum("signet_control_enrolments_total", &["outcome=\"ok\""]), 2.0);
    assert_eq!(own.proxies()?.len(), 1);
    Ok(())
}

fn of_many_sidecars_that_start_with_one_token_exactly_one_enrols() -> TestResult {
    let site = Site::new(&[mesh(&[]), workload("alice", &[])])?;
    let file = site.mesh.folder().join("one-token");
    fs::write(&file, site.mesh.token_for("alice", 1)?)?;
    let containers = (0..MANY).map(|n| site.container(&format!("c{n}"))).collect::<Result<Vec<_>, _>>()?;
    let begun = containers
        .iter()
        .map(|container| site.mesh.begin_sidecar(container, "alice", by(Evidence::Token(file.clone()))));
    let sidecars = begun.collect::<Result<Vec<_>, _>>()?;
    // Each has been told; those that were refused go on asking.
    let said = || sidecars.iter().map(|sidecar| log(sidecar).unwrap_or_default()).collect::<Vec<_>>();
    let refused = wait_for("all but one to be refused", || {
        let said = said();
        let refused = said.iter().filter(|log| log.contains("token-refused"));
        (refused.count() == MANY - 1).then_some(())
    });
    refused.map_err(|error| format!("{error}\n{}", said().join("\n")))?;
    let enrolled = sidecars.iter().filter(|sidecar| log(sidecar).is_ok_and(|log| log.contains("enrolled")));
    assert_eq!(enrolled.count(), 1);
    assert_eq!(site.mesh.control_metrics()?.sum("signet_control_enrolments_total", &["outcome=\"ok\""]), 1.0);
    assert_eq!(site.mesh.proxies()?.len(), 1);
    Ok(())
}
