//! `signet-proxy` as a program: settings, messages, exit codes, signals.

#![expect(clippy::unwrap_used, reason = "a test that unwraps in vain fails and says where")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use signet_sync::Token;

const PROGRAM: &str = env!("CARGO_BIN_EXE_signet-proxy");
/// The user that stands for nobody, on every Linux.
const NOBODY: u32 = 65534;
const LIMIT: Duration = Duration::from_secs(30);

/// The program without any setting that the environment of the tests may hold.
fn program(path: &str) -> Command {
    let mut command = Command::new(path);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SIGNET_") {
            command.env_remove(name);
        }
    }
    command.env_remove("OTEL_EXPORTER_OTLP_ENDPOINT").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    program(PROGRAM).args(arguments).output().unwrap()
}

/// A token that reads well and opens nothing.
fn token() -> String {
    Token::new("test".to_owned(), [7; 32], [8; 32]).unwrap().reveal()
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn wrong_settings_end_with_exit_code_64_and_are_named() {
    let token = token();
    let base = ["run", "--control-plane", "127.0.0.1:1", "--token", &token];
    let cases: [(&[&str], &str); 18] = [
        (&[], "Usage"),
        (&["walk"], "walk"),
        (&["run"], "--control-plane"),
        (&["run", "--control-plane", "nowhere"], "--control-plane"),
        (&["run", "--control-plane", "127.0.0.1:1"], "--token-file"),
        (&["run", "--control-plane", "127.0.0.1:1", "--token", "abc"], "token"),
        (&["run", "--control-plane", "127.0.0.1:1", "--token-file", "/nowhere/token"], "/nowhere/token"),
        (&["run", "--control-plane", "127.0.0.1:1", "--state-dir", "/proc/nowhere"], "/proc/nowhere"),
        (&[&base[..], &["--token-file", "/nowhere"]].concat(), "--token-file"),
        (&[&base[..], &["--workers", "0"]].concat(), "--workers"),
        (&[&base[..], &["--workers", "many"]].concat(), "--workers"),
        (&[&base[..], &["--inbound-port", "15001"]].concat(), "15001"),
        (&[&base[..], &["--drain-seconds", "86400"]].concat(), "--drain-seconds"),
        (&[&base[..], &["--exempt", "nobody"]].concat(), "--exempt"),
        (&[&base[..], &["--local-socket", "/tmp/s"]].concat(), "--local-uid"),
        (&[&base[..], &["--local-payload-bytes", "1048577"]].concat(), "--local-payload-bytes"),
        (&[&base[..], &["--aclib-listen", "0.0.0.0:46080"]].concat(), "--aclib-listen"),
        (&[&base[..], &["--probes", r#"{"a/liveness":{"exec":{}}}"#]].concat(), "--probes"),
    ];
    for (arguments, named) in cases {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {}", printed(&output));
        assert!(
            printed(&output).contains(named),
            "{arguments:?} does not name {named}: {}",
            printed(&output)
        );
        assert!(!printed(&output).contains(&token), "a secret is repeated: {}", printed(&output));
    }
}

#[test]
fn wrong_environment_variable_is_named_by_its_setting() {
    let output = program(PROGRAM)
        .arg("run")
        .env("SIGNET_CONTROL_PLANE", "127.0.0.1:1")
        .env("SIGNET_WORKERS", "many")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(printed(&output).contains("--workers"), "{}", printed(&output));
}

#[test]
fn damaged_state_is_no_reason_to_crash() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["enrolment.pb", "tls.pem", "signing.pem", "sections.pb"] {
        fs::write(folder.path().join(name), b"\xff\x00 not what it should be").unwrap();
    }
    let state = folder.path().to_str().unwrap();
    // Without a token there is nothing else to start from.
    let output = run(&["run", "--control-plane", "127.0.0.1:1", "--state-dir", state]);
    assert_eq!(output.status.code(), Some(64), "{}", printed(&output));
    assert!(!printed(&output).contains("panicked"), "{}", printed(&output));
    assert!(printed(&output).contains(state), "{}", printed(&output));
}

#[test]
fn help_of_every_command_explains_itself_and_run_shows_an_example() {
    for arguments in [
        &["--help"][..],
        &["run", "--help"],
        &["capture", "--help"],
        &["capture", "install", "--help"],
        &["capture", "verify", "--help"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(printed(&output).contains("Usage: signet-proxy"), "{}", printed(&output));
    }
    assert!(printed(&run(&["run", "--help"])).contains("Example"));
}

/// The program where everybody may read it: whoever runs without capabilities may not reach the folder of whoever built
/// it.
struct Copy(tempfile::TempDir);

impl Copy {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let copy = Self(folder);
        // Copied by a process of its own: a file that this one has open for writing could not be run when another test
        // starts a process at that moment.
        assert!(Command::new("cp").arg(PROGRAM).arg(copy.path()).status().unwrap().success());
        for path in [copy.0.path(), &copy.path()] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        copy
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("signet-proxy")
    }

    /// The program, run by a user who may do nothing special.
    fn program(&self) -> Command {
        let mut command = program(self.path().to_str().unwrap());
        if Uid::effective().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }
}

#[test]
fn missing_capability_is_named_and_nothing_goes_on() {
    let copy = Copy::new();
    let [outbound, inbound, admin] = free_ports();
    let token = token();
    let start = [
        "run",
        "--control-plane",
        "127.0.0.1:1",
        "--token",
        &token,
        "--outbound-port",
        &outbound,
        "--inbound-port",
        &inbound,
    ];
    let admin = format!("127.0.0.1:{admin}");
    let start = [&start[..], &["--admin-addr", &admin]].concat();
    for (arguments, code) in [(&start[..], 69), (&["capture", "install"], 1), (&["capture", "verify"], 1)] {
        let output = copy.program().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", printed(&output));
        assert!(printed(&output).contains("CAP_NET_ADMIN"), "{arguments:?}: {}", printed(&output));
    }
}

/// Three ports that nobody uses, at any address. None is of the range that the kernel chooses from for others (from 32768 on), and none is
/// given out twice by this process, so that nobody takes one before the program does.
fn free_ports() -> [String; 3] {
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    [(); 3].map(|()| {
        loop {
            let port = 20_000 + GIVEN.fetch_add(1, Ordering::Relaxed) % 12_000;
            if TcpListener::bind(("0.0.0.0", port)).is_ok() {
                return port.to_string();
            }
        }
    })
}

#[test]
fn proxy_without_identity_lives_is_not_ready_and_ends_when_asked() {
    let copy = Copy::new();
    let app = TcpListener::bind("127.0.0.1:0").unwrap();
    let listening = app.local_addr().unwrap().port();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let [outbound, inbound, admin] = free_ports();
        let probe = |port: u16| format!(r#"{{"tcpSocket":{{"port":{port}}},"timeoutSeconds":5}}"#);
        // Nothing listens on port 1.
        let probes = format!(r#"{{"app/liveness":{},"app/startup":{}}}"#, probe(listening), probe(1));
        let address = format!("127.0.0.1:{admin}");
        // Nothing that needs a capability.
        let mut running = copy
            .program()
            .args(["run", "--control-plane", "127.0.0.1:1", "--token", &token(), "--capture", "none"])
            .args(["--exempt", "uid", "--outbound-port", &outbound, "--inbound-port", &inbound])
            .args(["--admin-addr", &address, "--probes", &probes])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(running.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("control plane cannot be reached") {
            assert!(
                log.read_line(&mut said).unwrap() > 0,
                "it ended before it was asked to: {:?}: {said}",
                running.wait()
            );
        }
        assert_eq!(status_of(&address, "/live"), 200);
        assert_eq!(status_of(&address, "/ready"), 503);
        assert_eq!(status_of(&address, "/probe/app/liveness"), 200);
        assert_eq!(status_of(&address, "/probe/app/startup"), 503);
        assert_eq!(status_of(&address, "/probe/app/readiness"), 404);
        kill(Pid::from_raw(running.id().cast_signed()), signal).unwrap();
        let mut rest = String::new();
        log.read_to_string(&mut rest).unwrap();
        assert_eq!(running.wait().unwrap().code(), Some(0), "after {signal}: {rest}");
    }
}

fn status_of(address: &str, target: &str) -> u16 {
    let address: SocketAddr = address.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, LIMIT).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    write!(stream, "GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}
