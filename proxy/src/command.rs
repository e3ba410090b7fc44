//! The command line: what `signet-proxy` can be asked, and which file answers.

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::runtime::{self, Runtime};

use crate::capture::command::CaptureArgs;
use crate::config::{Arguments, Config, ConfigError, EXIT_CONFIG};
use crate::hold::Hold;
use crate::host::HostArguments;
use crate::ready::Ready;
use crate::{proxy, telemetry};

/// Exit code when the proxy cannot do its work (`EX_UNAVAILABLE` in sysexits.h).
pub(crate) const EXIT_UNAVAILABLE: u8 = 69;

#[derive(Debug, Parser)]
#[command(
    name = "signet-proxy",
    version,
    about = "The Signet sidecar: captures a container's TCP, authenticates it with mutual TLS and signs every message",
    after_help = "Example:\n  signet-proxy capture verify\n  signet-proxy run --help"
)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install, verify or remove the rules that redirect traffic to the sidecar.
    Capture(CaptureArgs),
    /// Run the sidecar of a service in the host's network: some ports and the mesh's places are captured, nothing else.
    Guard(Box<GuardArguments>),
    /// Capture everything in this network namespace and keep it alive, for a sidecar and its app to join.
    Hold(Hold),
    /// Ask the sidecar beside it whether it is ready: exit code 0 or 1.
    Ready(Ready),
    /// Run the sidecar.
    Run(Box<Arguments>),
}

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example:\n  signet-proxy guard --ports 8080 --control-plane 10.0.0.2:15012 --token-file /run/secrets/token --state-dir /var/lib/signet"
)]
struct GuardArguments {
    #[command(flatten)]
    host: HostArguments,
    #[command(flatten)]
    proxy: Arguments,
}

/// Runs the program with its arguments, the program's name first.
pub fn run_from_args(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let line = match CommandLine::try_parse_from(arguments) {
        Ok(line) => line,
        Err(error) => {
            // Nobody to tell when the terminal is gone.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EXIT_CONFIG) } else { ExitCode::SUCCESS };
        }
    };
    match line.command {
        Command::Capture(arguments) => arguments.run(),
        Command::Guard(arguments) => run(arguments.proxy, Some(arguments.host)),
        Command::Hold(hold) => hold.run(),
        Command::Ready(ready) => ready.run(),
        Command::Run(arguments) => run(*arguments, None),
    }
}

fn run(arguments: Arguments, host: Option<HostArguments>) -> ExitCode {
    keep_keys_out_of_dumps();
    let exporter = match exporter_runtime(arguments.otlp_endpoint.is_some()) {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("signet-proxy: cannot start a thread: {error}");
            return ExitCode::from(EXIT_UNAVAILABLE);
        }
    };
    let entered = exporter.as_ref().map(Runtime::enter);
    let telemetry = match telemetry::trace::init(arguments.log_json, arguments.otlp_endpoint.as_deref()) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            eprintln!("signet-proxy: {error}; fix OTEL_EXPORTER_OTLP_ENDPOINT");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    drop(entered);
    let code = match meant(arguments, host) {
        Err(error) => {
            eprintln!("signet-proxy: {error}");
            ExitCode::from(EXIT_CONFIG)
        }
        Ok(config) => proxy::run(config).unwrap_or_else(|error| {
            tracing::error!(%error, "the proxy cannot start");
            match error {
                proxy::RunError::Control(_) | proxy::RunError::Tampered(_) | proxy::RunError::Watch(_) => {
                    ExitCode::from(EXIT_CONFIG)
                }
                _ => ExitCode::from(EXIT_UNAVAILABLE),
            }
        }),
    };
    drop(telemetry);
    code
}

fn meant(arguments: Arguments, host: Option<HostArguments>) -> Result<Config, ConfigError> {
    let mut config = Config::try_from(arguments)?;
    config.host = host.map(|host| host.meant(&config)).transpose()?;
    Ok(config)
}

/// Neither a core dump nor another process of the same user gets at the keys in memory.
fn keep_keys_out_of_dumps() {
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        eprintln!("signet-proxy: core dumps could not be switched off: {error}");
    }
}

/// The span exporter needs a runtime on a thread of its own, which outlives the proxy's.
fn exporter_runtime(needed: bool) -> io::Result<Option<Runtime>> {
    if !needed {
        return Ok(None);
    }
    runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().map(Some)
}
