//! `signet demo` as a program: enters a lab, tells the story, cleans up however it ends.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;

use tokio::signal::unix::{SignalKind, signal};

use super::report::Report;
use super::story::{self, Stage};
use crate::lab::{self, LabError};
use crate::output::{Failure, Format, Verdict, print_json, text_or_json};

/// As shells say it of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;
/// The exit code when the process is told to end.
static CODE: AtomicU8 = AtomicU8::new(INTERRUPTED);

/// Tells the story; call it before the process starts any thread.
pub(crate) fn run(report_file: Option<&Path>, stay: bool, format: Format) -> Result<Verdict, Failure> {
    text_or_json(format)?;
    // Found out now, not after the story.
    let mut file = match report_file {
        Some(path) => Some(
            fs::File::create(path).map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?,
        ),
        None => None,
    };
    let mut report = Report::new(format == Format::Text);
    if let Err(error) = lab::enter() {
        report.broken("this system lets the demonstration have networks of its own", &error);
        write(file.as_mut(), &report)?;
        return Err(match error {
            LabError::Forbidden { .. } => Failure::Unavailable(error.to_string()),
            _ => Failure::Internal(error.to_string()),
        });
    }
    end_when_told_to()?;
    let stage = story::tell(&mut report);
    let verdict = Verdict::of(report.all_hold());
    write(file.as_mut(), &report)?;
    if format == Format::Json {
        print_json(&report)?;
    }
    let (holding, all) = report.count();
    report.heading(&format!("{holding} of {all} checks hold."));
    if stay && let Some(stage) = &stage {
        CODE.store(u8::from(verdict == Verdict::No), Ordering::Relaxed);
        show_what_to_try(&report, stage);
        // The other thread ends the process.
        loop {
            thread::park();
        }
    }
    Ok(verdict)
}

fn write(file: Option<&mut fs::File>, report: &Report) -> Result<(), Failure> {
    let Some(file) = file else { return Ok(()) };
    let written = serde_json::to_writer_pretty(&mut *file, report).map_err(io::Error::from);
    written
        .and_then(|()| file.write_all(b"\n"))
        .map_err(|error| Failure::Internal(format!("the report: {error}")))
}

/// Ctrl-C and its like end this process, and with it every other one of the demonstration.
fn end_when_told_to() -> Result<(), Failure> {
    let internal = |error: io::Error| Failure::Internal(format!("signals: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(internal)?;
    let wait = async || -> io::Result<()> {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let mut hangup = signal(SignalKind::hangup())?;
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, _ = hangup.recv() => {} }
        Ok(())
    };
    let body = move || {
        if runtime.block_on(wait()).is_ok() {
            std::process::exit(CODE.load(Ordering::Relaxed).into());
        }
    };
    thread::Builder::new().name("signals".into()).spawn(body).map(drop).map_err(internal)
}

fn show_what_to_try(report: &Report, stage: &Stage) {
    let signet = std::env::current_exe().unwrap_or_else(|_| "signet".into());
    let (signet, socket) = (signet.display(), stage.mesh.socket());
    let socket = format!("--control-plane unix:{}", socket.display());
    let client = stage.agents.app_id("b-lm-um").unwrap_or_default();
    let inside = format!("nsenter -t {client} -U -n --preserve-credentials");
    let sidecar = stage.sidecar("a-cimi").folder().join("admin.sock");
    report.say("\nIt all keeps running until Ctrl-C. From another terminal:");
    report.say(format_args!("  {signet} get workload {socket}"));
    report.say(format_args!("  {signet} check {socket}"));
    report.say(format_args!(
        "  {signet} explain {socket} --from b-lm-um --to a-cimi --port 8201 --method DELETE --path /api/device/1"
    ));
    report.say("A call from inside agent B's container, whose sidecar makes it mTLS and signed:");
    report.say(format_args!("  {inside} curl -i http://{}/api", stage.agents.published(8201)));
    report.say(format_args!("  {inside} curl -i http://{}/secret", stage.agents.published(8201)));
    report.say("The second is refused; by the request_id it answers with:");
    report.say(format_args!("  {signet} explain REQUEST_ID {socket}"));
    report.say("The counters of that sidecar, and the state of the other one:");
    report.say(format_args!("  {inside} curl http://127.0.0.1:15020/metrics"));
    report.say(format_args!("  curl --unix-socket {} http://sidecar/state", sidecar.display()));
    report.say(format_args!("The logs are in {}.", stage.mesh.folder().display()));
}
