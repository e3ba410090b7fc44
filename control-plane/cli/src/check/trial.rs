//! Capture, tried out in a network that exists for this alone: nothing of the machine is changed.
//!
//! A process of its own enters a [lab], puts a sidecar's rules in force there, and looks whether connections
//! come out where they should. So the kernel itself is asked, not its version or its configuration.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::process::Stdio;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use signet_proxy::capture::{self, MARK, Other, Rules, Way};
use signet_proxy::sockets;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::process::Command;

use super::finding::{Finding, Topic};
use crate::lab::{self, LabError, Namespace};

/// The hidden command that runs the trial.
pub(crate) const COMMAND: &str = "capture-trial";

/// A connection in the trial goes from one end of a cable to the other.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The whole trial: a moment, and some more on a machine that loads kernel modules for it.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// Both ends of the cable, by addresses for documentation (RFC 5737, RFC 3849).
const NEAR: [&str; 2] = ["192.0.2.2/30", "2001:db8::2/126"];
const FAR: [&str; 2] = ["192.0.2.1/30", "2001:db8::1/126"];

/// The port that is called there; nobody listens.
const PORT: u16 = 9;

/// What worked, or why not.
type Outcome = Result<String, String>;

/// What came of the trial.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Trial {
    /// Why there was no network to try it in; the rest is missing then.
    no_namespace: Option<String>,
    rules: Option<Outcome>,
    ipv4: Option<Outcome>,
    ipv6: Option<Outcome>,
    marks: Option<Outcome>,
}

/// Runs the trial in another process and judges it.
pub(crate) async fn run() -> Vec<Finding> {
    let child = Command::new("/proc/self/exe")
        .arg(COMMAND)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = match tokio::time::timeout(TRIAL_TIMEOUT, child).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return not_tried(&format!("the trial cannot be started: {error}")),
        Err(_) => return not_tried(&format!("the trial took longer than {} s", TRIAL_TIMEOUT.as_secs())),
    };
    match serde_json::from_slice::<Trial>(&output.stdout) {
        Ok(trial) => judge(&trial),
        Err(_) => not_tried(&format!("the trial ended without an answer ({})", output.status)),
    }
}

fn not_tried(reason: &str) -> Vec<Finding> {
    vec![Finding::warning(Topic::KernelNamespaces, format!("capture was not tried: {reason}"))]
}

fn judge(trial: &Trial) -> Vec<Finding> {
    if let Some(reason) = &trial.no_namespace {
        return not_tried(reason);
    }
    let mut findings = vec![Finding::ok(Topic::KernelNamespaces, "a network of its own can be made")];
    // Without rules there is nothing to look at.
    let rules = [(Topic::KernelCapture, &trial.rules), (Topic::KernelCapture, &trial.ipv4)];
    for (id, outcome) in rules.into_iter().chain([(Topic::KernelMarks, &trial.marks)]) {
        findings.extend(outcome.as_ref().map(|outcome| match outcome {
            Ok(message) => Finding::ok(id, message),
            Err(message) => Finding::error(id, message),
        }));
    }
    findings.extend(trial.ipv6.as_ref().map(|outcome| match outcome {
        Ok(message) => Finding::ok(Topic::KernelIpv6, message),
        Err(message) => Finding::warning(Topic::KernelIpv6, message),
    }));
    findings
}

/// Tries it, in this process, which must not have threads yet.
pub(crate) fn here() -> Trial {
    let mut trial = Trial { no_namespace: None, rules: None, ipv4: None, ipv6: None, marks: None };
    match prepared() {
        Err(error) => trial.no_namespace = Some(error.to_string()),
        Ok((near, _far, has_ipv6)) => {
            if let Err(error) = near.run(move || tried(has_ipv6)).map(|tried| trial = tried) {
                trial.no_namespace = Some(error.to_string());
            }
        }
    }
    trial
}

/// Two networks with a cable between them, and whether it carries IPv6.
fn prepared() -> Result<(Namespace, Namespace, Result<(), String>), LabError> {
    lab::enter()?;
    let (near, far) = (Namespace::new("near")?, Namespace::new("far")?);
    near.add_veth("eth0", &far, "eth0")?;
    let address = |namespace: &Namespace, text: &str| match text.parse::<IpNet>() {
        Ok(address) => namespace.add_address("eth0", address),
        Err(_) => unreachable!("an address of ours"),
    };
    address(&near, NEAR[0])?;
    address(&far, FAR[0])?;
    let ipv6 = address(&near, NEAR[1]).and_then(|()| address(&far, FAR[1]));
    Ok((near, far, ipv6.map_err(|error| error.to_string())))
}

fn tried(has_ipv6: Result<(), String>) -> Trial {
    let rules = Rules { other: Other::Refuse { egress: Vec::new() }, ..Rules::default() };
    let installed = capture::install(&rules, Way::Any).and_then(|_| capture::verify(&rules, Way::Any));
    let mut trial = Trial { no_namespace: None, rules: None, ipv4: None, ipv6: None, marks: None };
    let backend = match installed {
        Ok(backend) => backend,
        Err(error) => {
            trial.rules = Some(Err(format!("the capture rules cannot be put in force: {error}")));
            return trial;
        }
    };
    trial.rules = Some(match datagram_is_refused() {
        Ok(()) => Ok(format!("the capture rules can be put in force, by {backend}")),
        Err(error) => Err(format!("the rules are in force by {backend}, and UDP gets past them: {error}")),
    });
    let far = |text: &str| text.parse::<IpNet>().ok().map(|network| SocketAddr::new(network.addr(), PORT));
    let redirected = |family: &str, text: &str| match far(text).map(|to| redirected(to, &rules)) {
        Some(Ok(())) => Ok(format!("{family} connections are redirected and tell where they were going")),
        Some(Err(error)) => Err(format!("{family} connections are not redirected: {error}")),
        None => Err("no address".to_owned()),
    };
    trial.ipv4 = Some(redirected("IPv4", FAR[0]));
    trial.ipv6 = Some(match has_ipv6 {
        Ok(()) => redirected("IPv6", FAR[1]),
        Err(error) => Err(format!("this kernel has no IPv6: {error}")),
    });
    trial.marks = far(FAR[0]).map(|to| match marked_gets_out(to) {
        Ok(()) => Ok("marked connections are let out".to_owned()),
        Err(error) => Err(format!("marked connections are not let out: {error}")),
    });
    trial
}

/// A connection comes out at the sidecar's listener and knows where it was going.
fn redirected(to: SocketAddr, rules: &Rules) -> io::Result<()> {
    let [ipv4, ipv6] = sockets::loopback(rules.outbound_port);
    let listener = sockets::listen(if to.is_ipv4() { ipv4 } else { ipv6 })?;
    let listener = SockRef::from(&listener).try_clone()?;
    listener.set_nonblocking(false)?;
    listener.set_read_timeout(Some(CONNECT_TIMEOUT))?;
    let stream = TcpStream::connect_timeout(&to, CONNECT_TIMEOUT)?;
    let (accepted, source) = listener.accept()?;
    if source.as_socket() != Some(stream.local_addr()?) {
        return Err(io::Error::other("another connection came out"));
    }
    let original = if to.is_ipv4() { accepted.original_dst_v4()? } else { accepted.original_dst_v6()? };
    match original.as_socket() {
        Some(original) if original == to => Ok(()),
        _ => Err(io::Error::other("the kernel does not tell where it was going")),
    }
}

/// A marked connection reaches the other end, where nobody listens and the kernel says so.
fn marked_gets_out(to: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_mark(MARK)?;
    match socket.connect_timeout(&to.into(), CONNECT_TIMEOUT) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(error),
        Ok(()) => Err(io::Error::other("they are captured")),
    }
}

fn datagram_is_refused() -> io::Result<()> {
    let any = IpAddr::from([0, 0, 0, 0]);
    let to = FAR[0].parse::<IpNet>().map_err(io::Error::other)?;
    match UdpSocket::bind((any, 0))?.send_to(b"x", (to.addr(), PORT)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::other("it was sent")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;

    fn found(trial: &Trial) -> Vec<(Topic, Severity)> {
        judge(trial).into_iter().map(|finding| (finding.id, finding.severity)).collect()
    }

    #[test]
    fn what_sidecars_need_is_an_error_and_what_they_can_do_without_a_warning() {
        let (well, bad) = (|| Some(Ok(String::new())), || Some(Err(String::new())));
        let trial = Trial { no_namespace: None, rules: well(), ipv4: bad(), ipv6: bad(), marks: bad() };
        assert_eq!(
            found(&trial),
            [
                (Topic::KernelNamespaces, Severity::Ok),
                (Topic::KernelCapture, Severity::Ok),
                (Topic::KernelCapture, Severity::Error),
                (Topic::KernelMarks, Severity::Error),
                (Topic::KernelIpv6, Severity::Warning),
            ]
        );
    }

    #[test]
    fn a_trial_that_cannot_be_made_says_nothing_of_the_kernel() {
        let trial = Trial {
            no_namespace: Some("forbidden".into()),
            rules: None,
            ipv4: None,
            ipv6: None,
            marks: None,
        };
        assert_eq!(found(&trial), [(Topic::KernelNamespaces, Severity::Warning)]);
    }
}
