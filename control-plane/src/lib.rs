//! The Signet control plane: authority, policy store and compiler, workload directory, push.
//!
//! ```text
//!  operator ──► admin ──► manifests ──┐                      ┌─► services::enrolment  token ─► SVIDs
//!  (Unix socket)                      ▼                      ├─► services::identity   SVID  ─► SVIDs
//!                        store ──► publish ──► Published ────┴─► services::control    one stream per proxy
//!                          ▲     (compile, number, sign)                 │
//!                          └────────── claims ◄──────────────────────────┘
//! ```
//!
//! - `config` → [`Config`], one for each trust domain; [`ControlPlane::bind_all`] opens state directories and every socket;
//!   [`ControlPlane::run`] serves until told to stop; `neighbours` is all that passes between trust domains.
//! - [`bootstrap`] is a mesh prepared before the first start.
//! - `authority` holds the trust domain's keys; `registrar` alone turns them into certificates; `rotation` replaces them.
//! - `store` is what must not be forgotten, `records` what is in it, `publish` what becomes of it.
//! - `backup` copies all that and brings it back; `replica` knows the other control planes on the same store.
//! - `attest` is who may vouch for a proxy without a token; `kubernetes` is all that is about clusters.
//! - `directory` has the rules on who may be where, `claims` applies them; `vouched` is what an attestor vouches for.
//!
//! Nothing is acknowledged before it is durable, and nothing durable is ever served in an older version.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests go by the machine's clock"))]

mod admin;
#[cfg(any(test, feature = "pkcs11"))]
mod apart;
mod app_svid;
mod appointments;
mod area;
mod areas;
mod attest;
mod authority;
mod backup;
pub mod bootstrap;
mod caller;
mod churn;
mod claims;
mod clock;
mod config;
mod control_plane;
mod diff;
mod directory;
mod files;
mod health;
mod history;
mod kubernetes;
mod location;
mod manifests;
mod metrics;
mod neighbours;
mod pkcs11;
mod plain;
mod publish;
mod ready;
mod records;
mod registrar;
mod replica;
mod revocation;
mod rotation;
mod server;
mod services;
mod spiffe;
pub mod store;
mod streams;
mod tampered;
mod telemetry;
mod token;
mod told;
mod tpm;
mod vouched;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub use crate::authority::AuthorityError;
pub use crate::clock::Fault as ClockFault;
pub use crate::config::{Config, ConfigError, KubernetesConfig, LogConfig};
pub use crate::control_plane::{Addresses, ControlPlane, RunError, StartError};
pub use crate::location::{EtcdFiles, StoreLocation};
pub use crate::pkcs11::{ModuleError, Place, UriError};
pub use crate::publish::PublishError;
pub use crate::spiffe::{Rules as SpiffeRules, RulesError as SpiffeRulesError};
pub use crate::tpm::{Rules as TpmRules, RulesError as TpmRulesError};

/// Exit code for a configuration that cannot be used (`EX_USAGE`).
const EXIT_CONFIG: u8 = 64;

/// Exit code for everything else that stops the control plane (`EX_SOFTWARE`).
const EXIT_FAILED: u8 = 70;

/// Threads of the store. Each reads for a fraction of a millisecond; more of them would only have more memory of their own.
const STORE_THREADS: usize = 8;

/// Threads that serve; the store has its own. Signing is fast and proxies are patient.
const WORKERS: usize = 2;

/// The whole program. `ready` as the first argument asks one that runs beside it whether it is ready, `backup` and `restore`
/// are what they say; everything else is the control plane itself: reads flags (the first argument is the program's name) and environment, serves until SIGTERM or
/// SIGINT, drains. It writes one line to standard output for each trust domain when it is ready:
/// `listening control=ADDRESS admin=ADDRESS socket=PATH`, and ` webhook=ADDRESS` where there is one, ` trust-domain=NAME` where
/// there are several.
pub fn main_from(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    match arguments.get(1).and_then(|argument| argument.to_str()) {
        Some("ready") => return ready::main_from(arguments.into_iter().skip(1)),
        Some("backup") => return backup::command::backup(arguments.into_iter().skip(1)),
        Some("restore") => return backup::command::restore(arguments.into_iter().skip(1)),
        _ => {}
    }
    let configs = match Config::parse_from(arguments) {
        Ok(configs) => configs,
        Err(ConfigError::Shown(text)) => {
            let _ = write!(std::io::stdout(), "{text}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "signet-control-plane: {}", error.to_string().trim_end());
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    // Neither a core dump nor another process of the same user gets at the authority's keys in memory.
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        let _ = writeln!(
            std::io::stderr(),
            "signet-control-plane: core dumps could not be switched off: {error}"
        );
    }
    if let Some(config) = configs.first() {
        telemetry::init(&config.log);
    }
    let watched = match tampered::Watched::start(&configs) {
        Ok(watched) => watched,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "signet-control-plane: {error}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(STORE_THREADS)
        .enable_all()
        .build();
    let served = match runtime {
        Ok(runtime) => watched.serve(runtime, configs),
        Err(error) => Err(RunError::Runtime(error)),
    };
    match served {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "signet-control-plane: {}", with_causes(&error));
            let is_setting = matches!(
                error,
                RunError::Start(
                    StartError::GivenUp { .. }
                        | StartError::Module(ModuleError::NotBuilt)
                        | StartError::SharedStateDirectory { .. }
                )
            );
            ExitCode::from(if is_setting { EXIT_CONFIG } else { EXIT_FAILED })
        }
    }
}

/// `bound` is told of the control planes once they are there, `on_stop` called when this process is told to stop.
async fn serve(
    configs: Vec<Config>,
    bound: impl FnOnce(&[ControlPlane]),
    on_stop: impl FnOnce() + Send,
) -> Result<(), RunError> {
    let stopped = stop_signal().map_err(RunError::Runtime)?;
    let control_planes = ControlPlane::bind_all(configs).await?;
    bound(&control_planes);
    let mut out = std::io::stdout();
    for control_plane in &control_planes {
        // Whoever started this may not be listening.
        let _ = writeln!(out, "{}", control_plane.addresses());
    }
    let _ = out.flush();
    let stop = &CancellationToken::new();
    let told = async {
        tokio::select! {
            () = stopped => on_stop(),
            // One that ended by itself takes the others along: half a process is nobody's plan.
            () = stop.cancelled() => {}
        }
        stop.cancel();
    };
    let all = control_planes.into_iter().map(|control_plane| async move {
        let served = control_plane.run(stop.cancelled()).await;
        stop.cancel();
        served
    });
    let (served, ()) = futures_util::future::join(futures_util::future::join_all(all), told).await;
    served.into_iter().collect()
}

/// From now on SIGTERM and SIGINT end this wait instead of the process.
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Transparent errors repeat their source's words.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
