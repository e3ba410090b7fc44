//! The end of a control plane whose machine was tampered with.
//!
//! First the files with keys are destroyed, also those of a prepared directory, and the file with the PIN where the keys are in a
//! hardware module; then the keys in that module. Everything that runs is dropped with the runtime it runs on: connections,
//! streams, keys. What stays is the store, which holds none, and the word «tampered» at the health
//! address, until an operator acts.
//!
//! Proxies go on by what they hold, as in every outage; whether the authority's keys can be believed any longer is for the
//! operator to say (`signet rotate root --emergency`, from a backup).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use signet_tamper::{Tampering, Watch, WatchError};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::runtime::{self, Runtime};

use crate::area;
use crate::authority::{Authority, FILE};
use crate::config::Config;
use crate::control_plane::{ControlPlane, RunError};
use crate::{health, records, serve, stop_signal};

/// How long a write that is under way may take; what was not written was not acknowledged.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(2);

/// Why nothing starts.
#[derive(Debug, Error)]
pub(crate) enum Refused {
    #[error("this machine was tampered with, and the authority's keys on it are destroyed: {0}")]
    Tampered(Tampering),
    #[error(transparent)]
    Watch(#[from] WatchError),
}

/// What is watched, and what is destroyed.
pub(crate) struct Watched {
    watch: Watch,
    /// Where keys are: of each trust domain, and of what was prepared for it.
    directories: Vec<PathBuf>,
    /// What opens the hardware module with the authority's keys, if they are in one.
    pin: Option<PathBuf>,
}

/// How serving ended.
enum End {
    Drained,
    Tampered(Tampering, Vec<Arc<Authority>>),
}

impl Watched {
    /// Begins to watch, before a key is read. What is watched is the same for all trust domains.
    pub(crate) fn start(configs: &[Config]) -> Result<Self, Refused> {
        let settings = configs.first().map(|config| config.tamper.clone()).unwrap_or_default();
        let watch = Watch::start(&settings)?;
        let of = |config: &Config| [Some(config.state_dir.clone()), config.bootstrap_dir.clone()];
        let directories = configs.iter().flat_map(of).flatten().collect();
        let place = configs.first().and_then(|config| config.authority_key.as_ref());
        let mut watched = Self { watch, directories, pin: place.map(|place| place.pin.clone()) };
        match watched.watch.noticed() {
            None => Ok(watched),
            Some(why) => {
                watched.destroy(&why);
                Err(Refused::Tampered(why))
            }
        }
    }

    /// Serves until this process is told to stop, whatever happens before.
    pub(crate) fn serve(mut self, runtime: Runtime, configs: Vec<Config>) -> Result<ExitCode, RunError> {
        let held: Mutex<Vec<(Weak<Authority>, SocketAddr)>> = Mutex::default();
        let all_held = || held.lock().unwrap_or_else(PoisonError::into_inner);
        let on_stop = self.watch.on_stop();
        let end = runtime.block_on(async {
            let bound = |control_planes: &[ControlPlane]| {
                let of = |one: &ControlPlane| (one.keys(), one.addresses().admin);
                all_held().extend(control_planes.iter().map(of));
            };
            tokio::select! {
                served = serve(configs, bound, on_stop) => served.map(|()| End::Drained),
                tampered = async {
                    let why = self.watch.tampering().await;
                    // They name what lies in a module; whatever serves is dropped when this is done.
                    let authorities = all_held().iter().filter_map(|(keys, _)| keys.upgrade()).collect();
                    End::Tampered(why, authorities)
                } => Ok(tampered),
            }
        })?;
        let (why, authorities) = match end {
            End::Drained => return Ok(ExitCode::SUCCESS),
            End::Tampered(why, authorities) => (why, authorities),
        };
        tracing::error!(
            code = why.code(),
            "tampering: {why}; everything is cut and the authority's keys are destroyed"
        );
        // First of all, for the power may be cut next; and again, for what somebody was writing at that moment.
        self.destroy(&why);
        // After what cannot hang: a module may.
        for authority in authorities {
            let (destroyed, left) = authority.destroy_held();
            if destroyed + left > 0 {
                tracing::error!(destroyed, left, "the authority's keys in the hardware module are destroyed");
            }
        }
        runtime.shutdown_timeout(SHUTDOWN_LIMIT);
        self.destroy(&why);
        let held = held.into_inner().unwrap_or_else(PoisonError::into_inner);
        if held.iter().any(|(keys, _)| keys.strong_count() > 0) {
            tracing::error!("something still holds the authority's keys: the process ends");
            return Ok(ExitCode::from(crate::EXIT_FAILED));
        }
        tracing::error!("no key of the authority is left in memory; this stays so until an operator acts");
        stay(held.into_iter().map(|(_, admin)| admin).collect()).map_err(RunError::Runtime)?;
        Ok(ExitCode::FAILURE)
    }

    fn destroy(&self, why: &Tampering) {
        let at = records::unix_seconds(crate::clock::machine());
        for directory in &self.directories {
            // An area has its keys in a file of its own.
            let unfinished = [FILE, area::FILE].map(|file| Path::new(file).with_extension("new"));
            let unfinished = unfinished.iter().filter_map(|file| file.to_str());
            // Wherever it is, and of all of them once: what is gone is passed over.
            let pin = self.pin.as_deref().and_then(Path::to_str);
            let files = [FILE, area::FILE].into_iter().chain(unfinished).chain(pin);
            let surrender = signet_tamper::give_up(directory, files, why, at);
            for (path, error) in &surrender.failed {
                tracing::error!(file = %path.display(), %error, "a file could not be destroyed");
            }
            let files = surrender.destroyed.len();
            tracing::error!(directory = %directory.display(), files, "the authority's keys are overwritten and removed");
        }
    }
}

/// Says so at the health addresses until this process is told to stop: a supervisor would only start it again and again.
fn stay(addresses: Vec<SocketAddr>) -> std::io::Result<()> {
    runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let stopped = stop_signal()?;
        for address in addresses {
            match TcpListener::bind(address).await {
                Ok(listener) => drop(tokio::spawn(health::serve_tampered(listener))),
                Err(error) => tracing::error!(%address, %error, "the health address is taken"),
            }
        }
        stopped.await;
        Ok(())
    })
}
