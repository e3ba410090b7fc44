//! The story, one after the other on one project: starting an engine for each part would take minutes.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signet_cli::lab::mesh::wait_until;

use crate::engine::Engine;
use crate::project::{Project, SETTLE_LIMIT};
use crate::taps::{CANARY, Taps};

/// A sidecar and its holder, idle: 26 of them must fit 260 MB.
const PAIR_BYTES_MAX: f64 = 10.0 * 1_000_000.0;

#[test]
fn a_project_of_eight_services_stays_meshed_through_crashes_restarts_and_an_upgrade() {
    let mut engine = Engine::start();
    let project = Project::inject(&mut engine);
    project.compose(&["up", "-d"]);
    let taps = Taps::start(project.engine, &["agent_default", "agent_fog"]);
    project.every_app_answers();
    services_that_share_a_network_share_a_sidecar(&project);
    project.check_finds_nothing();
    the_canary_passes(&project);

    an_app_is_restarted(&project);
    a_sidecar_crashes(&project);
    the_control_plane_is_restarted(&project);
    sidecars_are_upgraded(&project);
    a_holder_is_restarted(&project);
    project.engine.restart();
    project.every_app_answers();
    project.check_finds_nothing();
    // Last of these: `check` names the lost instance until its certificate ends.
    a_sidecar_comes_back_without_its_volume(&project);
    the_canary_passes(&project);

    taps.saw_nothing_in_clear();
    outside_clients_reach_published_ports(&project);
    taps.see_what_is_in_clear();
    a_pair_is_small(&project);
    the_original_comes_back(&project);
}

fn the_canary_passes(project: &Project<'_>) {
    let request = ["http", "--to", "cimi:8201", "--method", "POST", "--path", "/api/items", "--body", CANARY];
    project.call_succeeds(&request);
    project.call_succeeds(&["tcp", "--to", "tokens:46080", "--send", CANARY]);
}

fn services_that_share_a_network_share_a_sidecar(project: &Project<'_>) {
    // By its own loopback, as before.
    project.call_succeeds(&["line", "--to", "127.0.0.1:46065"]);
    let services = project.compose(&["config", "--services"]);
    assert!(services.lines().any(|service| service == "policies-sidecar"));
    assert!(!services.lines().any(|service| service == "policies-agent-sidecar"));
}

fn an_app_is_restarted(project: &Project<'_>) {
    let namespace = project.inspect("cimi-holder", "{{.State.StartedAt}}");
    project.compose(&["restart", "-t", "1", "cimi"]);
    project.every_app_answers();
    assert_eq!(project.inspect("cimi-holder", "{{.State.StartedAt}}"), namespace);
}

fn a_sidecar_crashes(project: &Project<'_>) {
    let app = project.inspect("cimi", "{{.State.StartedAt}}");
    let process: i32 = project.inspect("cimi-sidecar", "{{.State.Pid}}").parse().unwrap();
    kill(Pid::from_raw(process), Signal::SIGKILL).unwrap();
    project.every_app_answers();
    assert_ne!(project.inspect("cimi-sidecar", "{{.State.Pid}}"), process.to_string());
    assert_eq!(project.inspect("cimi", "{{.State.StartedAt}}"), app);
}

fn the_control_plane_is_restarted(project: &Project<'_>) {
    project.compose(&["restart", "-t", "5", "signet-control-plane"]);
    project.every_app_answers();
    project.check_finds_nothing();
}

fn a_sidecar_comes_back_without_its_volume(project: &Project<'_>) {
    project.compose(&["rm", "-s", "-f", "aclib-sidecar"]);
    project.engine.docker(&["volume", "rm", "agent_signet-aclib"]);
    project.compose(&["up", "-d"]);
    project.every_app_answers();
}

fn sidecars_are_upgraded(project: &Project<'_>) {
    let version = env!("CARGO_PKG_VERSION");
    project.engine.docker(&["tag", &format!("signet-proxy:{version}"), "signet-proxy:next"]);
    let text = fs::read_to_string(project.file()).unwrap();
    let mut upgraded = String::new();
    let mut within_sidecar = false;
    for line in text.split_inclusive('\n') {
        if line.starts_with("  ") && !line.starts_with("   ") {
            within_sidecar = line.trim_end().ends_with("-sidecar:");
        }
        let replaced = line.replace(&format!("signet-proxy:{version}"), "signet-proxy:next");
        upgraded.push_str(if within_sidecar { &replaced } else { line });
    }
    assert_ne!(upgraded, text);
    fs::write(project.file(), upgraded).unwrap();
    let holder = project.container("cimi-holder");
    let sidecar = project.container("cimi-sidecar");
    project.compose(&["up", "-d"]);
    project.every_app_answers();
    assert_eq!(project.container("cimi-holder"), holder);
    assert_ne!(project.container("cimi-sidecar"), sidecar);
    assert_eq!(project.inspect("cimi-sidecar", "{{.Config.Image}}"), "signet-proxy:next");
    fs::write(project.file(), text).unwrap();
    project.compose(&["up", "-d"]);
}

fn a_holder_is_restarted(project: &Project<'_>) {
    project.engine.docker(&["restart", "-t", "1", &project.container("cimi-holder")]);
    project.every_app_answers();
    project.check_finds_nothing();
}

fn outside_clients_reach_published_ports(project: &Project<'_>) {
    let published = project.compose(&["port", "cimi-holder", "8201"]);
    let port: u16 = published.trim().rsplit(':').next().unwrap().parse().unwrap();
    let ask = move || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let length = CANARY.len();
        let head = format!(
            "POST /api/items HTTP/1.1\r\nHost: cimi\r\nConnection: close\r\nContent-Length: {length}"
        );
        write!(stream, "{head}\r\n\r\n{CANARY}")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let mut last = String::new();
    let answered = || {
        let asked = project.engine.namespace().run(ask).expect("the namespace's thread");
        last = asked.unwrap_or_else(|error| error.to_string());
        // The app's own words, whatever it thinks of the request.
        last.contains("Server: ring/").then_some(())
    };
    assert!(wait_until(SETTLE_LIMIT, answered).is_some(), "{last}\n{}", project.state());
}

fn a_pair_is_small(project: &Project<'_>) {
    let usage = project.engine.docker(&["stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}"]);
    let of = |suffix: &str| -> Vec<f64> {
        let named = usage.lines().filter(|line| line.contains(suffix));
        named.map(|line| bytes(line.split(' ').nth(1).unwrap())).collect()
    };
    let (holders, sidecars) = (of("-holder_"), of("-sidecar_"));
    assert_eq!((holders.len(), sidecars.len()), (7, 7), "{usage}");
    let pair = (holders.iter().sum::<f64>() + sidecars.iter().sum::<f64>()) / 7.0;
    println!("a holder and its sidecar: {:.1} MB\n{usage}", pair / 1e6);
    assert!(pair <= PAIR_BYTES_MAX, "{usage}");
}

/// `4.762MiB` as `docker stats` writes it.
fn bytes(text: &str) -> f64 {
    let units = [("GiB", 1_073_741_824.0), ("MiB", 1_048_576.0), ("KiB", 1024.0), ("B", 1.0)];
    let (unit, factor) = units.into_iter().find(|(unit, _)| text.ends_with(unit)).unwrap();
    text.trim_end_matches(unit).parse::<f64>().unwrap() * factor
}

fn the_original_comes_back(project: &Project<'_>) {
    project.signet(&["uninject", "--in-place"]);
    let text = fs::read_to_string(project.file()).unwrap();
    assert_eq!(text, include_str!("project/docker-compose.yml"));
}
