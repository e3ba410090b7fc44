//! Traffic: the back end and the clients of the load test, each a process of its own.
//!
//! A [`Part`] is what such a process is told to be, as JSON on its command line; what it found is JSON on its standard
//! output. They are plain programs: nothing in here knows of proxies.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use signet_cli::lab::Program;

use crate::micro::Operation;

pub mod backend;
pub mod bulk;
pub mod generator;
pub mod grpc;
pub mod hold;
pub mod pacer;
pub mod response;

/// The first argument of such a process; the second says what it is to be.
const PART: &str = "load-part";
/// A spinner that nobody ends gives up after this: longer than any run.
const SPIN_LIMIT: Duration = Duration::from_secs(4 * 3600);

/// What a process is to be.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The back end for everything but the small file.
    BackEnd(backend::Places),
    /// One connection from which as much as possible is read.
    Bulk(bulk::Plan),
    /// HTTP/1.1 requests, as fast as they are answered or at a rate.
    Generator(generator::Plan),
    /// gRPC calls as fast as they are answered.
    Grpc(grpc::Plan),
    /// Connections that are opened, used once and kept.
    Hold(hold::Plan),
    /// An operation of the hot path, so many times, for an instruction counter.
    Micro(Operation, u32),
    /// A loop that keeps a processor awake.
    Spin,
}

impl Part {
    /// The arguments that make this binary that part.
    ///
    /// # Panics
    /// Never: a part is plain data.
    pub fn arguments(&self) -> [String; 2] {
        [PART.into(), serde_json::to_string(self).expect("numbers and strings are JSON")]
    }

    /// This same binary as that part.
    pub fn program(&self) -> Program {
        Program::this().args(self.arguments())
    }
}

/// A port somewhere, as JSON has it.
pub type Place = SocketAddr;

/// Call in `main` after the lab's own parts: a process that was started for the load test does its part and returns its
/// exit code; in every other process nothing happens.
pub fn part() -> Option<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    arguments.next().filter(|first| first == PART)?;
    let text = arguments.next().unwrap_or_default();
    let outcome = serde_json::from_str::<Part>(&text).map_err(io::Error::from).and_then(run);
    Some(match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    })
}

fn run(part: Part) -> io::Result<()> {
    match part {
        Part::BackEnd(places) => runtime()?.block_on(backend::serve(places)),
        Part::Bulk(plan) => tell(&bulk::read(&plan)?),
        Part::Generator(plan) => tell(&generator::run(&plan)?),
        Part::Grpc(plan) => tell(&runtime()?.block_on(grpc::run(&plan))?),
        Part::Hold(plan) => hold::hold(&plan),
        Part::Micro(operation, count) => {
            operation.repeat(count);
            Ok(())
        }
        Part::Spin => {
            spin();
            Ok(())
        }
    }
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn tell(outcome: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(io::stdout().lock(), outcome).map_err(io::Error::from)
}

/// In the session, and so in the scheduler's group, of what is measured: a rank counts within a group alone.
fn spin() {
    let begun = std::time::Instant::now();
    while begun.elapsed() < SPIN_LIMIT {
        for _ in 0..100_000 {
            std::hint::spin_loop();
        }
    }
}
