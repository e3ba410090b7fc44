//! The parts put together: opened and bound by [`ControlPlane::bind_all`], served by [`ControlPlane::run`].
//!
//! A process that serves several trust domains has as many of these, each with everything of its own; what passes between
//! them is in [`crate::neighbours`].

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use signet_identity::{Keys, TrustDomain};
use signet_policy::PolicyModel;
use signet_sync::Subscriber;
use thiserror::Error;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::area::{self, AreaStartError, Delegated};
use crate::attest::{Attestor, Attestors};
use crate::authority::slots::Slots;
use crate::authority::{Authority, AuthorityError, FILE, Keyring};
use crate::bootstrap::{self, BootstrapError};
use crate::churn::Churn;
use crate::claims::Claims;
use crate::clock::Clock;
use crate::config::Config;
use crate::health::{self, Health};
use crate::kubernetes::Kubernetes;
use crate::metrics::Metrics;
use crate::neighbours::Neighbours;
use crate::publish::{self, Compiler, ObservedHabits, PublishError, Published};
use crate::records;
use crate::registrar::Registrar;
use crate::replica::{BEAT, Replicas};
use crate::server::{self, OwnCertificate};
use crate::services::Mesh;
use crate::spiffe::SvidAttestor;
use crate::store::{Expect, Revision, Store, StoreError, Write};
use crate::streams::Streams;
use crate::tpm::TpmAttestor;
use crate::{admin, app_svid, areas, clock, files, pkcs11, revocation, rotation, token};

/// How often expired tokens, and claims of removed workloads, are taken out of the store.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// The control plane of one trust domain, which holds its state and its sockets, ready to serve.
pub struct ControlPlane {
    addresses: Addresses,
    drain: Duration,
    control: TcpListener,
    health_listener: TcpListener,
    admin: UnixListener,
    certificate: OwnCertificate,
    compiler: Compiler,
    store: Arc<dyn Store>,
    health: Arc<Health>,
    kubernetes: Option<Kubernetes>,
    mesh: Mesh,
    /// What follows the parent, where this is an area.
    uplink: Option<(Arc<Delegated>, Subscriber)>,
    /// How many trust domains share this process's files.
    sharers: usize,
}

/// What a trust domain has before it is served: its keys, its store, and what time it is.
struct Opened {
    config: Config,
    store: Arc<dyn Store>,
    authority: Arc<Authority>,
    streams: Arc<Streams>,
    clock: Arc<Clock>,
    neighbours: Neighbours,
    uplink: Option<(Arc<Delegated>, Subscriber)>,
}

/// Where it listens, with real port numbers.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// The trust domain, where the process serves several.
    pub trust_domain: Option<TrustDomain>,
    /// For proxies.
    pub control: SocketAddr,
    /// For health and metrics.
    pub admin: SocketAddr,
    /// For operators.
    pub socket: PathBuf,
    /// For admission reviews, where they are taken.
    pub webhook: Option<SocketAddr>,
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "listening control={} admin={} socket={}",
            self.control,
            self.admin,
            self.socket.display()
        )?;
        self.webhook.map_or(Ok(()), |webhook| write!(f, " webhook={webhook}"))?;
        self.trust_domain.as_ref().map_or(Ok(()), |domain| write!(f, " trust-domain={domain}"))
    }
}

impl ControlPlane {
    /// Opens the state directory of each trust domain (creating it on the first start), publishes the first state and binds
    /// every socket.
    ///
    /// # Errors
    /// [`StartError`]: a state directory that is damaged or not ours, or an address that is taken.
    pub async fn bind_all(configs: Vec<Config>) -> Result<Vec<Self>, StartError> {
        let domains: Vec<TrustDomain> = configs.iter().map(|config| config.trust_domain.clone()).collect();
        let mut opened = Vec::with_capacity(configs.len());
        for (config, neighbours) in configs.into_iter().zip(Neighbours::of(&domains)) {
            opened.push(Opened::open(config, neighbours).await?);
        }
        // Each is published with what the others show.
        if opened.len() > 1 {
            for one in &opened {
                publish::show(&*one.store, &one.authority, &one.neighbours, one.clock.best()).await?;
            }
        }
        let mut bound = Vec::with_capacity(opened.len());
        for one in opened {
            bound.push(Self::bind(one, domains.len()).await?);
        }
        Ok(bound)
    }

    async fn bind(opened: Opened, sharers: usize) -> Result<Self, StartError> {
        let Opened { config, store, authority, streams, clock, neighbours, uplink } = opened;
        let now = clock.best();
        let metrics = Arc::new(Metrics::new());
        let habits = Arc::new(ObservedHabits::default());
        let replicas = if config.store.is_shared() {
            Replicas::one_of_several(store.clone())?
        } else {
            Replicas::alone(store.clone())
        };
        replicas.beat(now).await?;
        let claims = Arc::new(Claims::new(store.clone(), replicas.id().to_owned()));
        claims.adopt(&replicas.serving(now).await?, now).await?;
        let compiler = Compiler::start(
            store.clone(),
            authority.clone(),
            clock.clone(),
            metrics.clone(),
            habits.clone(),
            neighbours,
        )
        .await?;
        let certificate = OwnCertificate::issue(authority.clone(), clock.clone())?;
        let control = listen(config.listen).await?;
        let health_listener = listen(config.admin_listen).await?;
        let admin = admin::bind(&config.admin_socket)
            .map_err(|error| StartError::Socket { path: config.admin_socket.clone(), error })?;
        let webhook = match config.kubernetes.as_ref().and_then(|kubernetes| kubernetes.webhook) {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let webhook_address = webhook.as_ref().and_then(|listener| listener.local_addr().ok());
        let kubernetes =
            config.kubernetes.map(|config| Kubernetes::new(config, webhook, &authority, &metrics, now));
        let kubernetes = kubernetes.transpose()?;
        let spiffe = config.spiffe.map(|rules| -> Arc<dyn Attestor> { Arc::new(SvidAttestor::new(rules)) });
        let tpm = config.tpm.map(TpmAttestor::new).transpose().map_err(|_| StartError::Random)?;
        let tpm = tpm.map(|attestor| -> Arc<dyn Attestor> { Arc::new(attestor) });
        let attestors =
            kubernetes.as_ref().and_then(Kubernetes::attestor).into_iter().chain(spiffe).chain(tpm).collect();
        let draining = CancellationToken::new();
        let health = Health {
            metrics: metrics.clone(),
            authority: authority.clone(),
            draining: draining.clone(),
            published: compiler.subscribe(),
        };
        let local = |listener: &TcpListener, configured| {
            listener.local_addr().map_err(|error| StartError::Listen { address: configured, error })
        };
        Ok(Self {
            addresses: Addresses {
                trust_domain: (sharers > 1).then(|| config.trust_domain.clone()),
                control: local(&control, config.listen)?,
                admin: local(&health_listener, config.admin_listen)?,
                socket: config.admin_socket,
                webhook: webhook_address,
            },
            drain: config.drain,
            control,
            health_listener,
            admin,
            certificate,
            store: store.clone(),
            health: Arc::new(health),
            mesh: Mesh {
                frames: Arc::default(),
                attestors: Attestors::new(attestors),
                followed: kubernetes.as_ref().is_some_and(Kubernetes::is_followed),
                registrar: Registrar::new(store.clone(), authority.clone()),
                replicas: Arc::new(replicas),
                store,
                published: compiler.subscribe(),
                streams,
                authority,
                app_svids: Arc::new(Churn::new(app_svid::BURST, app_svid::REFILL)),
                churn: Arc::new(Churn::default()),
                claims,
                clock,
                draining,
                habits,
                metrics,
            },
            kubernetes,
            compiler,
            uplink,
            sharers,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Tells whether anybody still holds the authority's keys.
    pub(crate) fn keys(&self) -> Weak<Authority> {
        Arc::downgrade(&self.mesh.authority)
    }

    /// Serves until `stop` ends, then lets open calls end and tells every proxy to come back.
    ///
    /// # Errors
    /// [`RunError`] when a server stops by itself.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), RunError> {
        let draining = self.mesh.draining.clone();
        let own_certificate = self.certificate.subscribe();
        let (claims, published) = (self.mesh.claims.clone(), self.mesh.published.clone());
        let socket = self.addresses.socket.clone();
        let (kubernetes, cluster) = (self.kubernetes, self.mesh.clone());
        let kubernetes = async move {
            match kubernetes {
                Some(kubernetes) => kubernetes.run(cluster).await,
                None => std::future::pending().await,
            }
        };
        let (uplink, area) = (self.uplink, self.mesh.clone());
        let uplink = async move {
            match uplink {
                Some((delegated, subscriber)) => area::follow(area, delegated, subscriber).await,
                None => std::future::pending().await,
            }
        };
        let clock = self.mesh.clock.clone();
        let rotating = rotation::driver::drive(self.mesh.clone());
        let streams = self.mesh.streams.clone();
        let replicas = self.mesh.replicas.clone();
        let servers = async {
            tokio::try_join!(
                server::serve(self.control, own_certificate, self.mesh.clone(), self.sharers),
                admin::serve(self.admin, self.store.clone(), self.mesh),
            )
            .map(drop)
        };
        tokio::pin!(servers);
        let served = tokio::select! {
            served = &mut servers => served.map_err(RunError::Serve),
            () = self.compiler.run() => Ok(()),
            () = self.certificate.keep_fresh() => Ok(()),
            () = rotating => Ok(()),
            () = health::serve(self.health_listener, self.health) => Ok(()),
            () = clock.follow_drill() => Ok(()),
            () = sweep(&*self.store, &clock, &claims, &published) => Ok(()),
            () = kubernetes => Ok(()),
            () = uplink => Ok(()),
            () = serve_beside_others(&replicas, &clock, &claims, &streams) => Ok(()),
            () = stop => {
                tracing::info!("draining");
                draining.cancel();
                // Calls that do not end in time are cut: whatever was acknowledged is durable.
                tokio::time::timeout(self.drain, &mut servers).await.unwrap_or(Ok(())).map_err(RunError::Serve)
            }
        };
        let left = tokio::time::timeout(self.drain, replicas.leave()).await;
        if !matches!(left, Ok(Ok(()))) {
            tracing::warn!("the others will notice only in a minute that this control plane is gone");
        }
        let _ = std::fs::remove_file(socket);
        served
    }
}

impl Opened {
    async fn open(config: Config, neighbours: Neighbours) -> Result<Self, StartError> {
        let (store, authority, uplink) = open_state(&config, clock::machine()).await?;
        let streams = Arc::new(Streams::new());
        let (drill, is_right) = (config.clock_drill.clone(), config.clock_is_right);
        let clock = Arc::new(Clock::open(store.clone(), streams.clone(), drill, is_right).await?);
        if let Some(fault) = clock.fault() {
            tracing::error!(code = fault.code(), "{fault}");
            if !clock.has_issued() {
                return Err(StartError::Clock(fault));
            }
        }
        if let Some(directory) = &config.bootstrap_dir {
            bootstrap::adopt(directory, &*store, &authority, clock.best()).await?;
        }
        Ok(Self { config, store, authority, streams, clock, neighbours, uplink })
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|error| StartError::Listen { address, error })
}

/// Store and authority, and what follows the parent of an area.
type State = (Arc<dyn Store>, Arc<Authority>, Option<(Arc<Delegated>, Subscriber)>);

/// Opens store and authority, which must both be there or both be new.
async fn open_state(config: &Config, now: SystemTime) -> Result<State, StartError> {
    let directory = config.state_dir.clone();
    files::private_directory(&directory)
        .and_then(|()| files::intruders(&directory))
        .map_err(|error| StartError::StateDirectory { path: directory.clone(), error })
        .and_then(|fault| match fault {
            None => Ok(()),
            Some(fault) => Err(StartError::SharedStateDirectory { path: directory.clone(), fault }),
        })?;
    match signet_tamper::given_up(&directory) {
        Ok(None) => {}
        Ok(Some(said)) => {
            return Err(StartError::GivenUp { said, marker: directory.join(signet_tamper::MARKER) });
        }
        Err(error) => return Err(StartError::StateDirectory { path: directory, error }),
    }
    if let Some(settings) = &config.area {
        if directory.join(FILE).exists() {
            return Err(StartError::OwnAuthority { path: directory });
        }
        let store = config.store.open(&directory).await?;
        let (delegated, subscriber) =
            Delegated::open(&directory, settings, &config.trust_domain, now).await?;
        let authority = Authority::delegated(&directory, delegated.clone())?;
        return Ok((store, Arc::new(authority), Some((delegated, subscriber))));
    }
    if directory.join(area::FILE).exists() {
        return Err(StartError::IsArea { path: directory });
    }
    let store = config.store.open(&directory).await?;
    let owner = store.read(records::AUTHORITY).await?;
    let keys = pkcs11::keys(config.authority_key.as_ref())?;
    let keyring = match (Keyring::load_in(&directory, &config.trust_domain, &keys)?, &owner) {
        (Some(keyring), _) => keyring,
        (None, None) => new_keyring(config, &keys, now)?,
        (None, Some(_)) => return Err(AuthorityError::Missing.into()),
    };
    let slots = match records::read::<Slots>(&*store, records::SLOTS).await? {
        Some(found) => (found.revision, found.record),
        None => (Revision(0), Slots::first(&keyring)?),
    };
    match owner {
        Some(owner) if owner.value == slots.1.root.as_bytes() => {}
        Some(_) => return Err(AuthorityError::OtherStore.into()),
        None => {
            let root = slots.1.root.clone().into_bytes();
            store.commit(vec![Write::put(records::AUTHORITY, Expect::Absent, root)]).await?;
        }
    }
    // Before anybody is told anything: a module that lost them is found out here, and never replaced by other keys.
    if keyring.held().next().is_some() {
        if matches!(keys, Keys::Memory) {
            return Err(AuthorityError::HeldElsewhere.into());
        }
        keyring.pairs.iter().try_for_each(|pair| pair.prove_keys()).map_err(AuthorityError::from)?;
    }
    let authority = Authority::new(&directory, keys, keyring, slots)?.constraining(config.name_constraints);
    rotation::driver::tidy(&authority)?;
    if let Some(found) = records::read::<records::Restored>(&*store, records::RESTORED).await? {
        let records::Restored { epoch, at, backup_at, backup_revision } = found.record;
        tracing::warn!(
            epoch,
            restored_at = at,
            backup_at,
            backup_revision,
            "this state was restored from a backup: what was revoked or enrolled after the backup is not in it"
        );
    }
    Ok((store, Arc::new(authority), None))
}

/// The prepared authority where there is one, else a new one.
fn new_keyring(config: &Config, keys: &Keys, now: SystemTime) -> Result<Keyring, AuthorityError> {
    let (state, trust_domain) = (&config.state_dir, &config.trust_domain);
    let prepared = match &config.bootstrap_dir {
        Some(directory) => bootstrap::adopt_authority(directory, state, trust_domain)?,
        None => None,
    };
    match prepared {
        Some(keyring) => Ok(keyring),
        // Its root would be over before the clock is set.
        None if clock::is_unset(now) => Err(AuthorityError::ClockUnset),
        None => Keyring::create_in(state, trust_domain, now, keys, config.name_constraints),
    }
}

/// Removes what is over, now and then; never returns.
async fn sweep(
    store: &dyn Store,
    clock: &Clock,
    claims: &Claims,
    published: &watch::Receiver<Arc<Published>>,
) {
    let mut interval = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        interval.tick().await;
        let model = published.borrow().model.clone();
        sweep_once(store, clock, claims, &model).await;
    }
}

/// By a clock that is not believed nothing is over: what is removed does not come back when the clock does.
async fn sweep_once(store: &dyn Store, clock: &Clock, claims: &Claims, model: &PolicyModel) {
    let Ok(now) = clock.believed() else { return };
    if let Err(error) = clock.remember().await {
        tracing::warn!(%error, "what time it is cannot be remembered");
    }
    if let Err(error) = token::sweep(store, now).await {
        tracing::warn!(%error, "expired tokens cannot be removed");
    }
    if let Err(error) = revocation::sweep(store, now).await {
        tracing::warn!(%error, "revocations of certificates that ended cannot be removed");
    }
    if let Err(error) = area::chains::sweep(store, now).await {
        tracing::warn!(%error, "what was told of ended certificates is not forgotten yet");
    }
    if let Err(error) = areas::sweep(store, now).await {
        tracing::warn!(%error, "areas that were revoked and have ended cannot be removed");
    }
    if let Err(error) = claims.sweep(model, now).await {
        tracing::warn!(%error, "claims of removed workloads cannot be removed");
    }
}

/// Says that this control plane serves, and looks after the claims of those that no longer do; never returns.
async fn serve_beside_others(replicas: &Replicas, clock: &Clock, claims: &Claims, streams: &Streams) {
    let mut interval = tokio::time::interval(BEAT);
    loop {
        interval.tick().await;
        let now = clock.best();
        match replicas.beat(now).await {
            Ok(false) => {}
            // Others may have given its claims leases: its streams claim again.
            Ok(true) => streams.displaced(&streams.all().iter().map(|stream| stream.id).collect()),
            Err(error) => tracing::warn!(%error, "other control planes cannot be told that this one serves"),
        }
        // By a clock that is not believed nobody else is gone.
        if replicas.id().is_empty() || clock.fault().is_some() {
            continue;
        }
        let adopted = async { claims.adopt(&replicas.serving(now).await?, now).await };
        match adopted.await {
            // Another one was faster.
            Ok(()) | Err(StoreError::Conflict { .. }) => {}
            Err(error) => {
                tracing::warn!(%error, "claims of control planes that are gone cannot be looked after")
            }
        }
    }
}

/// Why the control plane did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The area cannot be set up.
    #[error(transparent)]
    Area(#[from] AreaStartError),
    /// The authority is unusable.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The bootstrap directory is unusable.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The clock is wrong, and nothing was issued before that could say what time it is at least.
    #[error("{0}")]
    Clock(clock::Fault),
    /// The machine gives no randomness.
    #[error("the machine gives no randomness")]
    Random,
    /// This machine was tampered with: the authority's keys that were here are destroyed.
    #[error(
        "this machine was tampered with ({said}) and the authority's keys on it are destroyed; look at the machine, then \
         restore a backup elsewhere or remove {}, and replace the keys: signet rotate root --emergency",
        marker.display()
    )]
    GivenUp {
        /// What the marker says.
        said: String,
        /// The file that says so.
        marker: PathBuf,
    },
    /// The state directory is an area's, and this is to be no area.
    #[error("{} is the state of an area; start it with --area and --parent, or with another state directory", path.display())]
    IsArea {
        /// The configured path.
        path: PathBuf,
    },
    /// The state directory has an authority of its own, and this is to be an area.
    #[error("{} has an authority of its own, which an area has from its parent; take another state directory", path.display())]
    OwnAuthority {
        /// The configured path.
        path: PathBuf,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// The module that is to hold the authority's keys cannot be used.
    #[error(transparent)]
    Module(#[from] pkcs11::ModuleError),
    /// The first state cannot be published.
    #[error("the stored state cannot be served")]
    Publish(#[from] PublishError),
    /// Somebody else could put files into the state directory.
    #[error("the state directory {} is not this user's alone: {fault}", path.display())]
    SharedStateDirectory {
        /// The configured path.
        path: PathBuf,
        /// What is wrong, and the command that mends it.
        fault: String,
    },
    /// The admin socket cannot be made.
    #[error("cannot listen on {}", path.display())]
    Socket {
        /// The configured path.
        path: PathBuf,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// The state directory cannot be used.
    #[error("cannot use the state directory {}", path.display())]
    StateDirectory {
        /// The configured path.
        path: PathBuf,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// The store is unusable.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why the control plane stopped without being told to.
#[derive(Debug, Error)]
pub enum RunError {
    /// The runtime cannot be started.
    #[error("the runtime cannot be started")]
    Runtime(#[source] std::io::Error),
    /// A server stopped.
    #[error("a server stopped")]
    Serve(#[source] tonic::transport::Error),
    /// It did not even start.
    #[error(transparent)]
    Start(#[from] StartError),
}

#[cfg(test)]
mod tests;
