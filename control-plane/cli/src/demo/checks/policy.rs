//! A policy pushed while calls are running decides the next call.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use super::CheckError;
use crate::demo::report::{Outcome, Report};
use crate::demo::story::{MANIFESTS, Stage};
use crate::lab::Proc;
use crate::lab::mesh::{client, transcript};

/// Takes agent B's access away.
const LOCKED: &str = include_str!("../locked.yaml");
/// How long a push may take to have effect.
const LIMIT: Duration = Duration::from_secs(10);
/// Events of the stream that is cut: one each 50 ms.
const EVENTS: &str = "200";
/// The longest answer of the app called.
const ANSWER_MAX: u64 = 64 * 1024;

/// Makes the checks.
pub(in crate::demo) fn tell(report: &mut Report, stage: &Stage) {
    report.heading("While calls are running");
    let events = begin_events(stage);
    report.check("a policy that forbids them bites", || push(stage, "locked.yaml", LOCKED, 403));
    report.check("it cuts an event stream that is open", || is_cut(&events?));
    report.check("the refusal explains itself by its request id", || explained(stage));
    report.check("the policy that allows them again, too", || push(stage, "mesh.yaml", MANIFESTS, 200));
}

/// Opens a stream of events that would last for ten seconds.
fn begin_events(stage: &Stage) -> Result<Proc, CheckError> {
    let address = stage.agents.published(8000).to_string();
    let manager = stage.sidecar("a-event-manager");
    let begun = || manager.metrics().map(|metrics| metrics.sum("signet_requests_total", &["inbound"]));
    let before = begun()?;
    let arguments = ["sse", "--to", &address, "--events", EVENTS, "--every", "50"];
    let events = client(stage.agents.container("b-lm-um").namespace(), &arguments)?;
    manager.wait_for("pass an event stream", LIMIT, |_| begun().is_ok_and(|now| now > before))?;
    Ok(events)
}

/// The stream ended before its end, and not as if it were complete.
fn is_cut(events: &Proc) -> Result<Outcome, CheckError> {
    let transcript = transcript(events)?;
    let cut = transcript.exchanges.iter().all(|exchange| exchange.error.is_some());
    let came = transcript.exchanges.first().map_or(0, |exchange| exchange.timing.events_ms.len());
    Ok(Outcome::holds(came as f64, "of 200 events came")
        .only_if(cut, || format!("{:?}", transcript.exchanges)))
}

/// Calls without pause, pushes a manifest, and measures when the answer changes.
fn push(stage: &Stage, name: &str, manifests: &str, wanted: u16) -> Result<Outcome, CheckError> {
    let address = stage.agents.published(8201);
    let (running, begun) = channel();
    let calls = stage
        .agents
        .container("b-lm-um")
        .namespace()
        .thread("calls", move || call_until(address, wanted, &running))?;
    // An error here means that the first call failed, and the thread's result says why.
    let before = begun.recv().unwrap_or_default();
    let pushed = Instant::now();
    stage.mesh.apply(name, manifests)?;
    let seen = calls.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    Ok(match seen {
        Ok(Some(at)) => {
            Outcome::holds(at.duration_since(pushed).as_secs_f64() * 1e3, "ms from push to effect")
                .only_if(before != wanted, || format!("it was {before} before"))
        }
        Ok(None) => Outcome::holds(LIMIT.as_secs_f64(), "s")
            .only_if(false, || format!("no {wanted} within the limit")),
        Err(error) => Outcome::holds(0.0, "ms").only_if(false, || format!("a call failed: {error}")),
    })
}

/// When the first answer with this status came; `None` when none came in time.
fn call_until(address: SocketAddr, wanted: u16, running: &Sender<u16>) -> io::Result<Option<Instant>> {
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        let status = status(address)?.0;
        // Only the first is listened to.
        let _ = running.send(status);
        if status == wanted {
            return Ok(Some(Instant::now()));
        }
    }
    Ok(None)
}

fn status(address: SocketAddr) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(stream, "GET /api HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.split(' ').nth(1).and_then(|digits| digits.parse().ok());
    let status = status
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no answer but {text:?}")))?;
    Ok((status, text))
}

/// `signet explain ID` finds the refused request in the sidecar that refused it.
fn explained(stage: &Stage) -> Result<Outcome, CheckError> {
    let address = stage.agents.published(8201);
    let asked = stage.agents.container("b-lm-um").namespace().thread("call", move || status(address))?;
    let (status, answer) = match asked.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
        Ok(answered) => answered,
        Err(error) => return Ok(Outcome::holds(0.0, "").only_if(false, || error.to_string())),
    };
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let problem: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    let id = problem["request_id"].as_str().unwrap_or_default();
    let explanation = stage.mesh.explain(id)?.unwrap_or_default().to_string();
    Ok(Outcome::holds(status.into(), "access-denied")
        .only_if(explanation.contains("access-denied"), || format!("{body}\nexplained as {explanation}")))
}
