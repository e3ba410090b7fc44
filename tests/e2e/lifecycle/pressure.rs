//! When the machine has nothing left to give.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;

use signet_cli::lab::mesh::{Mesh, Setup, app, wait_until};
use signet_cli::lab::runner::TestResult;
use signet_cli::lab::{Capabilities, Capability, Program};

use crate::protocols::http::get;
use crate::protocols::stage::{CLIENT_MAY_ALL, LIMIT, Stage, TRUST_DOMAIN, connect, manifests};

const HTTP: u16 = 8201;
const BYTES: u16 = 3306;
/// Descriptors the client's sidecar may have: an idle one needs some forty.
const DESCRIPTORS: &str = "128";
/// More connections than that.
const CONNECTIONS: usize = 200;

pub(super) fn sidecar_out_of_file_descriptors_survives_and_recovers() -> TestResult {
    let stage = Stage::new()?;
    let _apps = [app(&stage.server, &["rest"], &[HTTP])?, app(&stage.server, &["greeter"], &[BYTES])?];
    let mesh = Mesh::start(&stage.cloud, TRUST_DOMAIN)?;
    let ports = format!("ports: [{{port: {HTTP}, protocol: http}}, {{port: {BYTES}}}]");
    mesh.apply("mesh.yaml", &manifests("", &ports, CLIENT_MAY_ALL))?;
    let _server = mesh.sidecar(&stage.server, "server", Setup::default())?;
    let token = mesh.folder().join("limited-token");
    fs::write(&token, mesh.token("client")?)?;
    let limited = Program::new("sh")
        .args(["-c", &format!("ulimit -n {DESCRIPTORS} && exec \"$@\""), "sh"])
        .args([
            std::env::current_exe()?.as_os_str(),
            OsStr::new("signet"),
            OsStr::new("proxy"),
            OsStr::new("run"),
        ])
        .args(["--control-plane", &mesh.address().to_string(), "--token-file"])
        .args([token.as_os_str()])
        .capabilities(Capabilities::Only(vec![Capability::CAP_NET_ADMIN]));
    let sidecar = stage.client.namespace().start(limited)?;
    let from = stage.client.namespace();
    let is_ready = || {
        let health = SocketAddr::from(([127, 0, 0, 1], 15020));
        let served = || get(from, stage.place(HTTP), "/api").is_ok_and(|answer| answer.status() == 200);
        (get(from, health, "/ready").is_ok_and(|answer| answer.status() == 200) && served()).then_some(())
    };
    wait_until(LIMIT, is_ready).ok_or_else(|| sidecar.output())?;

    let mut older = BufReader::new(connect(from, stage.place(BYTES))?);
    let mut line = String::new();
    older.read_line(&mut line)?;
    let crowd: Vec<_> = (0..CONNECTIONS).filter_map(|_| connect(from, stage.place(BYTES)).ok()).collect();
    // They are many more than it can have: it uses up what it may use.
    let limit: usize = DESCRIPTORS.parse()?;
    let open = || fs::read_dir(format!("/proc/{}/fd", sidecar.id())).map_or(0, Iterator::count);
    let full = wait_until(LIMIT, || (open() >= limit * 9 / 10).then_some(()));
    assert!(full.is_some() || crowd.len() < CONNECTIONS, "{} of {limit} descriptors are in use", open());
    assert_eq!(sidecar.status(), None, "{}", sidecar.output());
    older.get_mut().write_all(b"still here\n")?;
    line.clear();
    older.read_line(&mut line)?;
    assert_eq!(line, "250 still here\n", "a connection from before");

    drop(crowd);
    let served = || get(from, stage.place(HTTP), "/api").ok().filter(|answer| answer.status() == 200);
    assert!(wait_until(LIMIT, served).is_some(), "not served again:\n{}", sidecar.output());
    assert_eq!(sidecar.status(), None, "{}", sidecar.output());
    assert!(!sidecar.output().contains("panicked"), "{}", sidecar.output());
    Ok(())
}
