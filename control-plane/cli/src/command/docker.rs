//! `signet docker`: what a Docker engine needs beside it.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use crate::api_proxy::create::Settings;
use crate::api_proxy::{ApiProxy, listen, serve};
use crate::attestor::{Attestor, Rules, pin};
use crate::client::ControlPlane;
use crate::docker::Docker as Engine;
use crate::group::{Groups, Trust};
use crate::output::{Failure, Verdict};
use crate::watcher::Watcher;
use crate::{files, keeper};

/// Looks after the containers of a Docker engine
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Example:\n  signet docker keep")]
pub(crate) enum Docker {
    Keep(Keep),
    Proxy(Proxy),
    Watch(Watch),
}

/// Keeps containers together that share a network namespace, until it is told to stop
///
/// Starts those that the engine gave up on because their holder was not up yet, and restarts those that a restarted
/// holder left behind. Containers that were stopped stay stopped, and those that joined a container without the label
/// `signet.mf2c-project.eu/role: holder` are left alone.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  signet docker keep --docker /var/run/docker.sock")]
pub(crate) struct Keep {
    /// The engine's Unix socket. Whoever may use it is root on its machine
    #[arg(long, env = "SIGNET_DOCKER", default_value = "/var/run/docker.sock", value_name = "PATH")]
    docker: PathBuf,
}

/// Serves the Docker API, so that containers are made with a sidecar
///
/// What is made through its socket and is to be a workload, by its label or by the rules, gets a namespace that refuses
/// everything before it exists, a sidecar with an identity of its own, and starts when that is ready. Everything else
/// passes as it is. It keeps containers together as `signet docker keep` does.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  signet docker proxy --listen /run/signet/docker.sock --rules docker.yaml \\\n      \
                  --mesh signet-control-plane:15012 --network signet\n  \
                  DOCKER_HOST=unix:///run/signet/docker.sock docker-compose up -d --scale web=3"
)]
pub(crate) struct Proxy {
    /// Where clients find the API. Whoever may use the engine's socket may use this one
    #[arg(
        long,
        env = "SIGNET_DOCKER_LISTEN",
        default_value = "/run/signet/docker.sock",
        value_name = "PATH"
    )]
    listen: PathBuf,
    /// What becomes of containers that neither say nor are said to be a workload
    #[arg(long, env = "SIGNET_UNNAMED", value_enum, default_value_t, value_name = "WHAT")]
    unnamed: Unnamed,
    /// A network that every meshed container is put into as well, to reach the control plane
    #[arg(long, env = "SIGNET_NETWORK", value_name = "NAME")]
    network: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// Puts sidecars beside containers that were started without one
///
/// For what cannot use the socket of `signet docker proxy`: a container that is to be a workload is paused at its start,
/// and goes on when its sidecar is ready. Until it is paused it runs without capture; how long, is told for each. What
/// cannot be meshed stays paused.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  signet docker watch --rules docker.yaml --mesh signet-control-plane:15012"
)]
pub(crate) struct Watch {
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Common {
    /// The engine's Unix socket
    #[arg(long, env = "SIGNET_DOCKER", default_value = "/var/run/docker.sock", value_name = "PATH")]
    docker: PathBuf,
    /// Which images may be which workload. Tags are resolved when this starts
    #[arg(long, env = "SIGNET_RULES", value_name = "FILE")]
    rules: PathBuf,
    /// The control plane as sidecars reach it
    #[arg(long, env = "SIGNET_CONTROL_PLANE", value_name = "HOST:PORT")]
    mesh: String,
    /// The sidecar's image, resolved when this starts
    #[arg(
        long,
        env = "SIGNET_PROXY_IMAGE",
        default_value = concat!("signet-proxy:", env!("CARGO_PKG_VERSION")),
        value_name = "IMAGE"
    )]
    image: String,
    /// Paths and volumes that no meshed container may mount, besides the control plane's socket and the engine's data
    #[arg(long, env = "SIGNET_RESERVED", value_delimiter = ',', value_name = "PATH")]
    reserved: Vec<String>,
    /// Identities that are given in a minute at most
    #[arg(
        long,
        env = "SIGNET_TOKENS_PER_MINUTE",
        default_value_t = 60,
        value_parser = clap::value_parser!(u16).range(1..=1000),
        value_name = "N"
    )]
    tokens_per_minute: u16,
    #[command(flatten)]
    control_plane: ControlPlane,
}

/// What becomes of containers that nobody named.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
enum Unnamed {
    /// They are made as they are, without a sidecar
    #[default]
    Pass,
    /// They are refused, unless their label keeps them out
    Refuse,
}

impl Docker {
    pub(crate) async fn run(self) -> Result<Verdict, Failure> {
        let failed = |error| Failure::Internal(format!("signals: {error}"));
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let work = async {
            match self {
                Self::Keep(Keep { docker }) => {
                    keeper::keep(&Engine::at(docker), tell).await;
                    Ok(())
                }
                Self::Proxy(proxy) => proxy.run().await,
                Self::Watch(watch) => watch.run().await,
            }
        };
        tokio::select! {
            done = work => done.map(|()| Verdict::Yes),
            _ = terminate.recv() => Ok(Verdict::Yes),
            _ = interrupt.recv() => Ok(Verdict::Yes),
        }
    }
}

impl Proxy {
    async fn run(self) -> Result<(), Failure> {
        let Self { listen: path, unnamed, network, common } = self;
        let engine = Engine::at(common.docker.clone());
        let (rules, settings) = common.known(&engine).await?;
        let failed = |error| Failure::Unavailable(format!("{}: {error}", path.display()));
        let listener = listen(&path, &common.docker).await.map_err(failed)?;
        let trust = Trust { rules, image: settings.image.clone() };
        let groups = Groups::new(engine.clone(), common.attestor(), trust);
        let refuse = unnamed == Unnamed::Refuse;
        let proxy = Arc::new(ApiProxy::new(groups, common.docker, settings, network, refuse));
        tell(format!("listening on {}", path.display()));
        tokio::join!(
            serve(listener, Arc::clone(&proxy), tell),
            proxy.groups.follow(tell),
            keeper::keep(&engine, tell),
        );
        Ok(())
    }
}

impl Watch {
    async fn run(self) -> Result<(), Failure> {
        let Self { common } = self;
        let engine = Engine::at(common.docker.clone());
        let (rules, settings) = common.known(&engine).await?;
        let watcher = Watcher::new(engine, common.attestor(), rules, settings);
        tell(format!("watching {}", common.docker.display()));
        Arc::new(watcher).watch(tell).await;
        Ok(())
    }
}

impl Common {
    fn rules(&self) -> Result<Rules, Failure> {
        let text = files::read(&self.rules)?;
        Rules::parse(&self.rules.display().to_string(), &text).map_err(Failure::Usage)
    }

    /// Rules and settings as the engine knows them now: what tags stand for, and where it has its data.
    async fn known(&self, engine: &Engine) -> Result<(Rules, Settings), Failure> {
        let failed = |error| Failure::Unavailable(format!("{}: {error}", self.docker.display()));
        let rules = pin(self.rules()?, engine, tell).await.map_err(failed)?;
        let image = engine.image(&self.image).await.map_err(failed)?.ok_or_else(|| {
            Failure::Unavailable(format!(
                "the engine has no image {}; fix: pull or load the sidecar's image",
                self.image
            ))
        })?;
        tell(format!("sidecars: {} is {} until this starts anew", self.image, image.id));
        let root = engine.data_root().await.map_err(failed)?;
        let socket = self.control_plane.path().to_string_lossy().into_owned();
        let reserved = [socket, root].into_iter().filter(|path| !path.is_empty());
        let reserved = reserved.chain(self.reserved.iter().cloned()).collect();
        Ok((rules, Settings { control_plane: self.mesh.clone(), image: image.id, reserved }))
    }

    fn attestor(&self) -> Attestor {
        Attestor::new(self.control_plane.clone(), self.tokens_per_minute.into())
    }
}

fn tell(line: String) {
    // Whoever started this may not be listening.
    let _ = writeln!(std::io::stderr(), "signet: {line}");
}
