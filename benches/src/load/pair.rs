//! A pair of proxies between the client and the back end, running.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use signet_cli::lab::mesh::MeshError;
use signet_cli::lab::{LabError, Namespace, Proc};

use super::certificates;
use super::peer::{End, Peer, PeerError, Programs};
use super::service::Service;
use super::signet::{self, Launch, Mode};
use super::stage::{Stage, StageError};
use super::wait::pause;
use super::{redirect, usage};

/// How long a peer may take to listen.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Pause between two looks whether it does.
const LOOK_AGAIN: Duration = Duration::from_micros(500);
/// How long one look may take.
const DIAL_LIMIT: Duration = Duration::from_secs(1);
/// Of a program's output, this much goes into an error.
const OUTPUT_SHOWN: usize = 2000;

/// What is to stand between.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Nothing.
    Direct,
    /// Proxies of others.
    Peer(Box<Peer>),
    /// Two sidecars.
    Signet(Mode, Launch),
}

/// One column of the report.
#[derive(Clone, Debug)]
pub struct Pair {
    /// By which it is chosen and reported.
    pub name: String,
    /// What it is.
    pub kind: Kind,
}

/// Why a pair does not run.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// The lab failed.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The mesh failed.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// The control plane refused the manifests.
    #[error("not offered by this build: {0}")]
    NotOffered(String),
    /// The peer failed.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// There is no stage.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// The system failed.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// A running pair on its own two hosts.
#[derive(Debug)]
pub struct Running {
    proxies: Proxies,
    /// From the start of the client-side process to ready.
    pub ready_after: Duration,
    redirected: bool,
    services: Vec<Service>,
    /// The hosts; last, so that they end after what runs on them.
    pub stage: Stage,
}

#[derive(Debug)]
enum Proxies {
    None,
    Peer([Proc; 2]),
    Signet(Box<signet::Pair>),
}

impl Pair {
    /// Starts it on a stage of its own.
    ///
    /// # Errors
    /// As [`PairError`] tells.
    pub fn start(&self, stage: Stage, redirected: bool, programs: &Programs) -> Result<Running, PairError> {
        let mut services = Service::ALL.to_vec();
        let (proxies, ready_after) = match &self.kind {
            Kind::Direct => (Proxies::None, start_nothing(&stage)?),
            Kind::Peer(peer) => {
                services.clone_from(&peer.services);
                let (processes, ready_after) = start_peer(peer, &stage, redirected, programs)?;
                (Proxies::Peer(processes), ready_after)
            }
            Kind::Signet(mode, launch) => {
                let pair = signet::Pair::start(&stage, *mode, launch).map_err(|error| match error {
                    MeshError::Manifests(text) => PairError::NotOffered(text),
                    other => other.into(),
                })?;
                let ready_after = pair.enrolled_after;
                (Proxies::Signet(Box::new(pair)), ready_after)
            }
        };
        Ok(Running { proxies, ready_after, redirected, services, stage })
    }
}

impl Running {
    /// Where a client goes for a service; none if the pair does not carry it.
    pub fn entry(&self, service: Service) -> Option<SocketAddr> {
        self.services.contains(&service).then(|| match self.proxies {
            Proxies::Peer(_) if !self.redirected => service.entry(),
            _ => service.back_end(),
        })
    }

    /// The proxies' processes, the client's side and the server's; none without proxies.
    ///
    /// # Errors
    /// A proxy that has ended.
    pub fn families(&self) -> io::Result<Option<[Vec<u32>; 2]>> {
        let roots = match &self.proxies {
            Proxies::None => return Ok(None),
            Proxies::Peer(processes) => processes.each_ref().map(Proc::id),
            Proxies::Signet(pair) => {
                let id = |sidecar: &signet_cli::lab::mesh::Sidecar| sidecar.process().map(Proc::id);
                let both = id(&pair.client).zip(id(&pair.server));
                let (client, server) = both.ok_or_else(|| io::Error::other("a sidecar has ended"))?;
                [client, server]
            }
        };
        let [client, server] = roots;
        Ok(Some([usage::family(client)?, usage::family(server)?]))
    }

    /// The sidecars, if these are some.
    pub fn signet(&mut self) -> Option<&mut signet::Pair> {
        match &mut self.proxies {
            Proxies::Signet(pair) => Some(pair),
            _ => None,
        }
    }

    /// Which proxies have ended that should not have, in words for an error; nothing when all run.
    pub fn ended(&self) -> String {
        let processes = match &self.proxies {
            Proxies::None => [None, None],
            Proxies::Peer(processes) => processes.each_ref().map(Some),
            Proxies::Signet(pair) => [pair.client.process(), pair.server.process()],
        };
        let statuses = ["client", "server"].into_iter().zip(processes);
        let ended = statuses.filter_map(|(side, process)| Some((side, process?.status()?)));
        ended.map(|(side, status)| format!("; the {side}-side proxy has ended: {status}")).collect()
    }

    /// The ends of the proxies' logs, for an error.
    pub fn logs(&self) -> String {
        let tail = |text: String| {
            let skipped = text.chars().count().saturating_sub(OUTPUT_SHOWN);
            text.chars().skip(skipped).collect::<String>()
        };
        match &self.proxies {
            Proxies::None => String::new(),
            Proxies::Peer(processes) => processes.iter().map(|process| tail(process.output())).collect(),
            Proxies::Signet(pair) => pair.client.log_tail() + &pair.server.log_tail(),
        }
    }
}

/// What every start costs here that has nothing to do with what is started.
fn start_nothing(stage: &Stage) -> Result<Duration, PairError> {
    let begun = Instant::now();
    let process = stage.client.start(signet_cli::lab::Program::new("true"))?;
    process.wait(START_LIMIT)?;
    Ok(begun.elapsed())
}

fn start_peer(
    peer: &Peer,
    stage: &Stage,
    redirected: bool,
    programs: &Programs,
) -> Result<([Proc; 2], Duration), PairError> {
    let folder: &Path = stage.folder.path();
    let [client_files, server_files] = certificates::make(folder)?;
    let server = peer.program(End::Server, folder, &server_files, redirected, programs)?;
    let client = peer.program(End::Client, folder, &client_files, redirected, programs)?;
    if redirected {
        redirect::install(stage)?;
    }
    let server = stage.server.start(server)?;
    for service in &peer.services {
        wait_until_open(&stage.server.namespace, service.secured(), &server, START_LIMIT)?;
    }
    let begun = Instant::now();
    let client = stage.client.start(client)?;
    for service in &peer.services {
        wait_until_open(&stage.client.namespace, service.entry(), &client, START_LIMIT)?;
    }
    Ok(([client, server], begun.elapsed()))
}

/// Waits until somebody accepts connections.
///
/// # Errors
/// [`LabError::Overdue`], at once when the process has ended.
pub fn wait_until_open(
    from: &Namespace,
    place: SocketAddr,
    process: &Proc,
    limit: Duration,
) -> Result<(), LabError> {
    let begun = Instant::now();
    loop {
        if from.run(move || TcpStream::connect_timeout(&place, DIAL_LIMIT).is_ok())? {
            return Ok(());
        }
        if process.status().is_some() || begun.elapsed() > limit {
            let (program, output) = (format!("{process:?}"), process.output());
            return Err(LabError::Overdue { program, what: format!("listen at {place}"), limit, output });
        }
        pause(LOOK_AGAIN);
    }
}
