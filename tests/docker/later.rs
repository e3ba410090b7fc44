//! Containers that the Docker API starts later, one step after the other on one engine.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signet_cli::lab::mesh::wait_until;

use crate::api::Api;
use crate::engine::Engine;
use crate::project::SETTLE_LIMIT;
use crate::taps::Taps;

const IMAGE: &str = "signet:0.1.0";
const WEB: &str = "signet.mf2c-project.eu/workload=web";
const SERVE: [&str; 5] = [IMAGE, "app", "rest", "--listen", "0.0.0.0:8201"];

#[test]
fn containers_that_the_docker_api_starts_are_meshed_from_their_first_packet() {
    let mut engine = Engine::start();
    let api = Api::start(&mut engine);
    let taps = Taps::start(api.engine, &["shop_default", "shop_fog"]);
    let begun = Instant::now();
    api.compose(&["up", "-d", "--scale", "web=3"]);
    println!("five containers, four of them meshed, were up after {:.1} s", begun.elapsed().as_secs_f64());
    api.every_replica_answers();
    a_container_that_nobody_named_is_untouched(&api);
    a_container_in_several_networks_answers_in_each(&api);
    details_tell_the_network(&api);
    streams_pass(&api);

    a_replica_is_restarted_stopped_and_killed(&api);
    an_app_that_crashes_comes_back_into_its_namespace(&api);
    all_are_made_anew_and_then_one_by_one(&api);
    an_image_that_is_not_listed_is_refused_and_leaves_nothing(&api);
    the_proxy_is_killed(&api);
    what_ends_by_itself_takes_its_sidecar_along(&api);
    api.engine.restart();
    api.every_replica_answers();

    a_container_started_past_the_proxy_is_paused_until_it_is_meshed(&api);
    taps.saw_nothing_in_clear();
    // In strict mode who has no sidecar is refused, by whoever has one.
    assert!(api.call("shop_plain_1", "web").is_err());
    taps.see_what_is_in_clear();
    everything_goes_with_its_project(&api);
}

fn a_container_that_nobody_named_is_untouched(api: &Api<'_>) {
    assert!(!api.is_there("shop_plain_1-sidecar"));
    assert_eq!(api.inspect("shop_plain_1", "{{.HostConfig.NetworkMode}}"), "shop_default");
    assert_eq!(api.inspect("shop_plain_1", "{{json .HostConfig.CapDrop}}"), "null");
    let labels = api.inspect("shop_plain_1", "{{json .Config.Labels}}");
    assert!(!labels.contains("signet.mf2c-project.eu"), "{labels}");
}

fn a_container_in_several_networks_answers_in_each(api: &Api<'_>) {
    // `cimi` is what the replicas are called in the network that the client is not in yet.
    api.docker(&["network", "connect", "shop_fog", "shop_client_1"]);
    api.call_succeeds("cimi");
    api.docker(&["network", "disconnect", "shop_default", "shop_client_1"]);
    api.call_succeeds("cimi");
    api.docker(&["network", "connect", "shop_default", "shop_client_1"]);
    api.call_succeeds("shop_web_1");
}

fn details_tell_the_network(api: &Api<'_>) {
    let format = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}";
    let told = api.docker(&["inspect", "-f", format, "shop_web_1"]);
    assert_eq!(told.trim(), "shop_default shop_fog signet");
    assert_eq!(api.inspect("shop_web_1", format), "");
    let dropped = api.inspect("shop_web_1", "{{json .HostConfig.CapDrop}}");
    assert!(dropped.contains("NET_RAW"), "{dropped}");
    let secrets = api.inspect("shop_web_1-sidecar", "{{json .Config}}");
    assert!(secrets.contains("SIGNET_TOKEN_FILE=") && !secrets.contains("SIGNET_TOKEN="), "{secrets}");
}

/// What goes in comes out through exec, attach, export and logs.
fn streams_pass(api: &Api<'_>) {
    // Documents that are none of its business are given back byte for byte.
    let document = "kind: ConfigMap\napiVersion: v1\ndata:\n  a: \"\u{e9}\"\n";
    let document = format!("{document}{}", "# the same line, many times\n".repeat(30_000));
    let echo = ["/signet", "inject", "kubernetes", "-f", "-"];
    let exec = [&["exec", "-i", "shop_client_1"], &echo[..]].concat();
    assert!(
        piped(&api.socket(), &exec, document.as_bytes()) == document.as_bytes(),
        "exec changed the stream"
    );
    let run = [&["run", "--rm", "-i", "--network", "none", IMAGE], &echo[1..]].concat();
    assert!(
        piped(&api.socket(), &run, document.as_bytes()) == document.as_bytes(),
        "attach changed the stream"
    );
    for line in [&["save", IMAGE][..], &["logs", "shop_web_1-sidecar"], &["cp", "shop_web_1:/signet", "-"]] {
        let (through, direct) = (piped(&api.socket(), line, b""), piped(&api.engine.socket(), line, b""));
        assert!(!direct.is_empty() || line[0] == "logs", "{line:?}");
        assert!(through == direct, "{line:?} is another through the proxy");
    }
    let archive = piped(&api.engine.socket(), &["save", IMAGE], b"");
    let loaded = piped(&api.socket(), &["load"], &archive);
    assert!(String::from_utf8_lossy(&loaded).contains(IMAGE));
}

/// What `docker` prints when it is given `input`.
fn piped(socket: &Path, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("docker")
        .args(arguments)
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // Both ways at once: neither side holds what the other one sends.
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    // One that reads no input may have ended before it was written.
    let _ = writer.join().unwrap();
    output.stdout
}

fn a_replica_is_restarted_stopped_and_killed(api: &Api<'_>) {
    let holder = api.inspect("shop_web_1-holder", "{{.State.StartedAt}}");
    api.docker(&["restart", "-t", "1", "shop_web_1"]);
    api.call_succeeds("shop_web_1");
    assert_eq!(api.inspect("shop_web_1-holder", "{{.State.StartedAt}}"), holder);
    api.docker(&["stop", "-t", "1", "shop_web_1"]);
    assert!(!api.runs("shop_web_1-sidecar") && !api.runs("shop_web_1-holder"), "{}", api.state());
    // Past the proxy it cannot be started without its sidecar.
    let mut past = Command::new("docker");
    past.args(["start", "shop_web_1"]);
    assert!(!api.engine.run(past).status.success());
    api.docker(&["start", "shop_web_1"]);
    api.docker(&["kill", "shop_web_2"]);
    let down = || (!api.runs("shop_web_2-sidecar") && !api.runs("shop_web_2-holder")).then_some(());
    assert!(wait_until(SETTLE_LIMIT, down).is_some(), "{}", api.state());
    api.docker(&["start", "shop_web_2"]);
    api.every_replica_answers();
}

fn an_app_that_crashes_comes_back_into_its_namespace(api: &Api<'_>) {
    let sidecar = api.inspect("shop_web_3-sidecar", "{{.State.StartedAt}}");
    let process: i32 = api.inspect("shop_web_3", "{{.State.Pid}}").parse().unwrap();
    kill(Pid::from_raw(process), Signal::SIGKILL).unwrap();
    let back = || {
        let now = api.inspect("shop_web_3", "{{.State.Pid}}");
        (now != process.to_string() && now != "0").then_some(())
    };
    assert!(wait_until(SETTLE_LIMIT, back).is_some(), "{}", api.state());
    api.call_succeeds("shop_web_3");
    assert_eq!(api.inspect("shop_web_3-sidecar", "{{.State.StartedAt}}"), sidecar);
}

fn all_are_made_anew_and_then_one_by_one(api: &Api<'_>) {
    let before = api.inspect("shop_web_1", "{{.Id}}");
    api.compose(&["up", "-d", "-t", "1", "--force-recreate", "--scale", "web=3", "web"]);
    assert_ne!(api.inspect("shop_web_1", "{{.Id}}"), before);
    api.every_replica_answers();
    let ids =
        || -> Vec<String> { api.replicas().iter().map(|replica| api.inspect(replica, "{{.Id}}")).collect() };
    let old = ids();
    for replica in &api.replicas() {
        api.docker(&["rm", "-f", replica]);
        assert!(!api.is_there(&format!("{replica}-holder")), "{}", api.state());
        // Meanwhile the others do its work.
        api.call_succeeds("web");
        api.compose(&["up", "-d", "--no-recreate", "--scale", "web=3", "web"]);
        api.every_replica_answers();
    }
    assert!(ids().iter().all(|id| !old.contains(id)), "{}", api.state());
}

fn an_image_that_is_not_listed_is_refused_and_leaves_nothing(api: &Api<'_>) {
    let before = api.state().lines().count();
    for (image, code) in [("signet-proxy:0.1.0", "image-not-listed"), (IMAGE, "workload-not-listed")] {
        let label = if image == IMAGE { "signet.mf2c-project.eu/workload=root" } else { WEB };
        let output =
            api.try_docker(&["create", "--network", "shop_default", "--label", label, image, "ready"]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains(code), "{told}");
    }
    for mount in [
        ["-v", "signet-admin:/x"],
        ["--volumes-from", "signet-docker"],
        ["--volumes-from", "shop_client_1-sidecar"],
    ] {
        let output = api.try_docker(&[&["create", "--label", WEB], &mount[..], &[IMAGE, "check"]].concat());
        assert!(String::from_utf8_lossy(&output.stderr).contains("reserved-mount"), "{mount:?}: {output:?}");
    }
    // What the engine itself refuses leaves nothing either.
    let output = api.try_docker(&["create", "--name", "signet-control-plane", "--label", WEB, IMAGE]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("already in use"), "{output:?}");
    assert_eq!(api.state().lines().count(), before, "{}", api.state());
}

fn the_proxy_is_killed(api: &Api<'_>) {
    let process: i32 = api.inspect("signet-docker", "{{.State.Pid}}").parse().unwrap();
    kill(Pid::from_raw(process), Signal::SIGKILL).unwrap();
    let answers = || {
        let now = api.inspect("signet-docker", "{{.State.Pid}}");
        (now != process.to_string() && api.try_docker(&["version"]).status.success()).then_some(())
    };
    assert!(wait_until(SETTLE_LIMIT, answers).is_some(), "{}", api.state());
    // It knows what it made before.
    let [replica, ..] = &api.replicas()[..] else { panic!("{}", api.state()) };
    api.docker(&["stop", "-t", "1", replica]);
    assert!(!api.runs(&format!("{replica}-sidecar")), "{}", api.state());
    api.docker(&["start", replica]);
    api.every_replica_answers();
}

fn what_ends_by_itself_takes_its_sidecar_along(api: &Api<'_>) {
    let call = [IMAGE, "app", "call", "http", "--to", "web:8201", "--path", "/api"];
    let run = ["run", "--rm", "--name", "once", "--network", "shop_default", "--label"];
    let client = ["signet.mf2c-project.eu/workload=client"];
    api.docker(&[&run[..], &client, &call].concat());
    let gone = || (!api.is_there("once-sidecar") && !api.is_there("once-holder")).then_some(());
    assert!(wait_until(SETTLE_LIMIT, gone).is_some(), "{}", api.state());
}

fn a_container_started_past_the_proxy_is_paused_until_it_is_meshed(api: &Api<'_>) {
    api.helper("signet-watch", &["watch"]);
    api.told("signet-watch", "watching");
    let run = ["run", "-d", "--network", "signet", "--label", WEB, "--name"];
    api.engine.docker(&[&run[..], &["late"], &SERVE].concat());
    println!("{}", api.told("signet-watch", "late is meshed as web: it ran without capture for "));
    assert!(api.runs("late") && api.runs("late-sidecar"), "{}", api.state());
    api.call_succeeds("late");
    // A new namespace, and the sidecar in it.
    api.engine.docker(&["restart", "-t", "1", "late"]);
    api.call_succeeds("late");
    let others = ["run", "-d", "--network", "signet", "--name", "stranger"];
    api.engine.docker(&[&others[..], &SERVE].concat());
    let wrong = ["wrong", "--cap-add", "NET_ADMIN", "signet-proxy:0.1.0", "hold"];
    api.engine.docker(&[&run[..], &wrong].concat());
    let told = api.told("signet-watch", "wrong is not meshed and stays paused: ");
    assert!(told.contains("image-not-listed"), "{told}");
    assert_eq!(api.inspect("wrong", "{{.State.Status}}"), "paused");
    assert!(api.runs("stranger") && !api.is_there("stranger-sidecar"), "{}", api.state());
    api.engine.docker(&["rm", "-f", "late", "wrong", "stranger"]);
    let gone = || (!api.is_there("late-sidecar")).then_some(());
    assert!(wait_until(SETTLE_LIMIT, gone).is_some(), "{}", api.state());
}

fn everything_goes_with_its_project(api: &Api<'_>) {
    api.compose(&["down", "-t", "1"]);
    let left: Vec<String> =
        api.state().lines().map(str::to_owned).filter(|line| line.starts_with("shop_")).collect();
    assert_eq!(left, Vec::<String>::new());
    api.docker(&["network", "rm", "shop_default", "shop_fog"]);
}
