//! A whole mesh whose capture rules go in by iptables alone: as newer distributions have it, over nf_tables, and as
//! kernels without nf_tables need it.

use std::env;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;

use signet_cli::lab::mesh::{Setup, Sidecar, program as signet};
use signet_cli::lab::runner::TestResult;
use signet_cli::lab::{Capability, Container, Program, Tap};
use signet_proxy::capture::{TABLE, nftables};
use signet_tests::manifest::{allow, mesh, policy, workload};
use signet_tests::plain::{datagrams, get};
use signet_tests::{Ended, LIMIT, Plain, Recorder, Site};
use tempfile::TempDir;

use crate::pair::Failure;
use crate::programs::program;

const PORT: u16 = 8201;
const OUTSIDE: u16 = 9000;
const CANARY: &str = "canary-51c0de";
/// The names by which the proxy starts what is one program.
const NAMES: [&str; 4] = ["iptables-save", "iptables-restore", "ip6tables-save", "ip6tables-restore"];
const TABLES: [&str; 2] = ["nat", "filter"];

pub(crate) fn iptables_over_nf_tables_captures_for_a_whole_mesh() -> TestResult {
    captures_for_a_whole_mesh(&Iptables::new("xtables-nft-multi", &[])?)
}

pub(crate) fn legacy_iptables_captures_for_a_whole_mesh() -> TestResult {
    // It speaks to the kernel over a raw socket.
    captures_for_a_whole_mesh(&Iptables::new("xtables-legacy-multi", &[Capability::CAP_NET_RAW])?)
}

/// One kind of iptables, first in the `PATH`.
struct Iptables {
    folder: TempDir,
    /// What it needs of a sidecar.
    capabilities: Vec<Capability>,
}

impl Iptables {
    fn new(kind: &str, capabilities: &[Capability]) -> Result<Self, Failure> {
        let folder = tempfile::Builder::new().prefix("iptables-").tempdir()?;
        let binary = program(kind)?;
        for name in NAMES.iter().chain(&["iptables", "ip6tables"]) {
            symlink(&binary, folder.path().join(name))?;
        }
        Ok(Self { folder, capabilities: capabilities.to_vec() })
    }

    fn path(&self) -> String {
        format!("{}:{}", self.folder.path().display(), env::var("PATH").unwrap_or_default())
    }

    fn setup(&self) -> Setup {
        Setup {
            flags: vec!["--capture".into(), "iptables".into()],
            capabilities: self.capabilities.clone(),
            environment: vec![("PATH".into(), self.path())],
            ..Setup::default()
        }
    }

    /// What one of its programs prints in a container, and its exit code.
    fn run(&self, at: &Container, name: &str, arguments: &[&str]) -> Result<(Option<i32>, String), Failure> {
        finish(at, Program::new(self.folder.path().join(name)).args(arguments))
    }

    fn capture(&self, at: &Container, arguments: &[&str]) -> Result<(Option<i32>, String), Failure> {
        let command = [&["proxy", "capture"][..], arguments].concat();
        finish(at, signet(&command).env("PATH", self.path()))
    }

    /// Every rule and chain of ours, in all tables of both IP versions.
    fn ours(&self, at: &Container) -> Result<Vec<String>, Failure> {
        let mut lines = Vec::new();
        for (name, table) in ["iptables-save", "ip6tables-save"].iter().flat_map(|n| TABLES.map(|t| (n, t))) {
            let (code, output) = self.run(at, name, &["-t", table])?;
            assert_eq!(code, Some(0), "{name} -t {table}: {output}");
            lines.extend(output.lines().filter(|line| line.contains("SIGNET")).map(str::to_owned));
        }
        Ok(lines)
    }
}

fn finish(at: &Container, program: Program) -> Result<(Option<i32>, String), Failure> {
    let running = at.namespace().start(program)?;
    let code = running.wait(LIMIT)?.code();
    Ok((code, running.output()))
}

fn places(of: &Container) -> [SocketAddr; 2] {
    [(of.ipv4(), PORT).into(), (of.ipv6(), PORT).into()]
}

fn captures_for_a_whole_mesh(iptables: &Iptables) -> TestResult {
    let ports = format!("ports: [{{port: {PORT}, protocol: http}}]");
    let everything = |caller: &str| allow(caller, "{methods: [GET], paths: [/**]}");
    let site = Site::new(&[mesh(&[])])?;
    let (left, right) = (site.container("left")?, site.container("right")?);
    for (name, of) in [("left", &left), ("right", &right)] {
        // Their sidecars are seen at one address only, and each has two.
        let addresses = format!("addresses: ['{}', '{}']", of.ipv4(), of.ipv6());
        site.mesh.apply(&format!("{name}.yaml"), &workload(name, &[&ports, &addresses]))?;
    }
    let policies =
        [policy("left", "left", &[&everything("right")]), policy("right", "right", &[&everything("left")])];
    site.mesh.apply("policies.yaml", &policies.concat())?;
    let stranger = site.container("stranger")?;
    let apps = [Recorder::http(&left, PORT)?, Recorder::http(&right, PORT)?];
    let outside = Recorder::silent(&stranger, OUTSIDE)?;
    let tap = Tap::start(left.namespace(), "eth0", &[CANARY.as_bytes()], None)?;
    // Rules of the other way give place to those of this one.
    assert_eq!(iptables.capture(&left, &["install"])?.1.trim(), "capture is in force (nf_tables)");
    let begin = |container: &Container, name| site.mesh.begin_sidecar(container, name, iptables.setup());
    let mut sidecars = [begin(&left, "left")?, begin(&right, "right")?];
    for (sidecar, other) in sidecars.iter().zip([&right, &left]) {
        sidecar.wait_until_ready()?;
        for place in places(other) {
            sidecar.wait_until_known(place)?;
        }
        assert_eq!(sidecar.container().namespace().run(|| nftables::read(TABLE))??, None, "a table of ours");
        assert!(!iptables.ours(sidecar.container())?.is_empty());
    }

    calls_are_signed_both_ways([&left, &right], &sidecars, &apps)?;
    what_is_not_meshed_is_refused(&left, &right, &stranger)?;
    the_command_knows_the_rules(iptables, &left)?;
    lost_rules_are_put_back(iptables, &sidecars[0])?;

    // Without its sidecar nothing leaves, and nothing comes in.
    let [left_sidecar, _] = &mut sidecars;
    left_sidecar.kill();
    let delivered = apps.each_ref().map(|app| app.text().len());
    let request = get(&format!("/{CANARY}"), "right");
    for to in
        [places(&right).to_vec(), vec![(stranger.ipv4(), OUTSIDE).into(), (stranger.ipv6(), OUTSIDE).into()]]
            .concat()
    {
        let told = Plain::tell(&left, to, request.as_bytes())?;
        assert_eq!(told, (Vec::new(), Ended::Reset), "from left to {to}");
    }
    for to in places(&left) {
        let told = Plain::tell(&stranger, to, request.as_bytes())?;
        assert_eq!(told, (Vec::new(), Ended::Reset), "to left at {to}");
    }
    assert_eq!(apps.each_ref().map(|app| app.text().len()), delivered, "the apps are sent nothing");
    assert!(outside.connections().is_empty(), "{:?}", outside.connections());
    left_sidecar.restart()?;
    left_sidecar.wait_until_known(places(&right)[0])?;
    assert_eq!(Plain::ask(&left, places(&right)[0], &request)?.status, 200, "afterwards all is as before");
    let report = tap.report()?;
    assert_eq!(report.lost, 0, "the tap was too slow to prove anything");
    assert!(report.offers("mesh-h1/1"), "the tap watches the right wire");
    assert!(report.sightings.is_empty(), "seen in clear: {:?}", report.sightings);

    removal_leaves_nothing(iptables, [&left, &right], sidecars)
}

fn calls_are_signed_both_ways(
    [left, right]: [&Container; 2],
    sidecars: &[Sidecar; 2],
    apps: &[Recorder; 2],
) -> TestResult {
    for (from, to, app) in [(left, right, &apps[1]), (right, left, &apps[0])] {
        for place in places(to) {
            let answer = Plain::ask(from, place, &get(&format!("/{CANARY}"), place))?;
            assert_eq!(answer.status, 200, "{place}: {answer:?}");
        }
        assert_eq!(app.text().matches("X-Forwarded-Client-Cert: By=spiffe://").count(), 2, "{}", app.text());
    }
    for sidecar in sidecars {
        let metrics = sidecar.metrics()?;
        for direction in ["inbound", "outbound"] {
            assert_eq!(metrics.sum("signet_requests_total", &[direction]), 2.0, "{direction}");
        }
        // Requests made and responses made, and as many checked.
        assert_eq!(metrics.value("signet_signatures_total"), 4.0);
        assert_eq!(metrics.value("signet_verifications_total"), 4.0);
    }
    Ok(())
}

fn what_is_not_meshed_is_refused(left: &Container, right: &Container, stranger: &Container) -> TestResult {
    for to in places(right) {
        let told = Plain::tell(stranger, to, get("/", "right").as_bytes())?;
        assert_eq!(told, (Vec::new(), Ended::Reset), "plaintext to {to}");
    }
    let refused = Plain::ask(left, (stranger.ipv4(), OUTSIDE).into(), &get("/", "outside"))?;
    assert_eq!(refused.code().as_deref(), Some("unmeshed-destination"));
    let sent = datagrams(left, 0)?.send_to(CANARY.as_bytes(), SocketAddr::from((stranger.ipv4(), OUTSIDE)));
    assert_eq!(sent.map_err(|error| error.kind()), Err(ErrorKind::PermissionDenied), "UDP");
    Ok(())
}

fn the_command_knows_the_rules(iptables: &Iptables, at: &Container) -> TestResult {
    for way in [&["--way", "iptables"][..], &[]] {
        let (code, output) = iptables.capture(at, &[&["verify", "--other", "refuse"][..], way].concat())?;
        assert_eq!((code, output.trim()), (Some(0), "capture is as installed (iptables)"), "{way:?}");
    }
    let (code, output) = iptables.capture(at, &["verify", "--way", "iptables"])?;
    assert_eq!(code, Some(1), "other rules: {output}");
    let before = iptables.ours(at)?;
    let (code, output) = iptables.capture(at, &["drain"])?;
    assert_eq!(code, Some(1), "drain: {output}");
    assert!(output.contains("cannot be drained"), "{output}");
    assert_eq!(iptables.ours(at)?, before, "drain has changed nothing");
    Ok(())
}

fn lost_rules_are_put_back(iptables: &Iptables, sidecar: &Sidecar) -> TestResult {
    let at = sidecar.container();
    let before = iptables.ours(at)?;
    for name in ["iptables", "ip6tables"] {
        assert_eq!(iptables.run(at, name, &["-t", "nat", "-F", "SIGNET_OUTPUT"])?.0, Some(0));
    }
    sidecar.wait_for("see that its rules are gone", LIMIT, |sidecar| {
        sidecar.state().is_ok_and(|state| state["capture_in_force"] == false)
    })?;
    sidecar.wait_until_ready()?;
    assert_eq!(iptables.ours(at)?, before);
    Ok(())
}

fn removal_leaves_nothing(
    iptables: &Iptables,
    [left, right]: [&Container; 2],
    sidecars: [Sidecar; 2],
) -> TestResult {
    drop(sidecars);
    for at in [left, right] {
        for _ in 0..2 {
            let (code, output) = iptables.capture(at, &["remove"])?;
            assert_eq!(code, Some(0), "{output}");
        }
        assert_eq!(iptables.ours(at)?, Vec::<String>::new());
    }
    for place in places(right) {
        assert_eq!(Plain::ask(left, place, &get("/in-clear", place))?.status, 200, "{place}, without a mesh");
    }
    Ok(())
}
