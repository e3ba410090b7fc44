//! Two hosts, a cable between them, the back end on one.
//!
//! ```text
//!   host "client", processor A            host "server", processor B
//!   load generator ─ client-side proxy ── veth ── server-side proxy ─ back end
//!   10.0.0.2                              10.0.0.3
//! ```
//!
//! A third namespace, reached by a cable of its own from each host, is for what manages proxies.
//!
//! Everything that is started on a host runs on that host's processors alone: its namespace's thread is bound to them,
//! and programs are born with the binding of the thread that starts them.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use ipnet::Ipv4Net;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use signet_cli::lab::mesh::Folder;
use signet_cli::lab::{Capabilities, Container, LabError, Namespace, Proc, Program};

use super::service::{CLIENT, SERVER, Service};
use super::template::{self, Values};
use crate::traffic::{Part, backend};

const INTERFACE: &str = "eth0";
const CONTROL_INTERFACE: &str = "eth1";
const CONTROL_BRIDGE: &str = "br0";
/// How long a back end may take to listen.
const START_LIMIT: Duration = Duration::from_secs(20);
const NGINX: &str = include_str!("../../peers/back-end.conf");
/// So that thousands of connections per second find ports, and find them again after a second.
const PARAMETERS: [(&str, &str); 2] =
    [("net/ipv4/ip_local_port_range", "10240 65000"), ("net/ipv4/tcp_tw_reuse", "1")];
/// The back end's small file.
const SMALL_FILE: &str = "small";

/// One host.
#[derive(Debug)]
pub struct Host {
    /// Its network; programs started in it are bound to its processors.
    pub namespace: Namespace,
    address: Ipv4Addr,
}

/// The two hosts, with the back end running.
#[derive(Debug)]
pub struct Stage {
    /// Where the client is.
    pub client: Host,
    /// Where the back end is.
    pub server: Host,
    _back_ends: Vec<Proc>,
    /// For configuration files, sockets and logs; last, so that nothing runs any more when it goes.
    pub folder: Folder,
}

/// Why there is no stage.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The lab failed.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The system failed.
    #[error(transparent)]
    System(#[from] io::Error),
    /// A configuration could not be made.
    #[error(transparent)]
    Template(#[from] template::TemplateError),
}

/// The processors this process may use.
///
/// # Errors
/// A kernel that does not tell.
pub fn processors() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|&number| set.is_set(number).unwrap_or(false)).collect())
}

impl Stage {
    /// Builds the hosts and starts the back end. `processors` are the client's and the server's.
    ///
    /// # Errors
    /// As [`StageError`] tells.
    pub fn build(processors: [&[usize]; 2], nginx: &Path) -> Result<Self, StageError> {
        let client = Host::new("client", CLIENT, processors[0])?;
        let server = Host::new("server", SERVER, processors[1])?;
        client.namespace.add_veth(INTERFACE, &server.namespace, INTERFACE)?;
        for host in [&client, &server] {
            host.namespace.add_address(INTERFACE, Ipv4Net::new_assert(host.address, 24).into())?;
            for (parameter, value) in PARAMETERS {
                host.namespace.set_parameter(parameter, value)?;
            }
        }
        let folder = Folder::new()?;
        let back_ends = vec![start_nginx(&server, folder.path(), nginx)?, start_own(&server)?];
        Ok(Self { client, server, folder, _back_ends: back_ends })
    }
}

impl Stage {
    /// A namespace beside the hosts, and its address: for a control plane. It is bound to no processor.
    ///
    /// # Errors
    /// [`LabError`].
    pub fn control(&self) -> Result<(Namespace, Ipv4Addr), LabError> {
        let control = Namespace::new("control")?;
        control.add_bridge(CONTROL_BRIDGE)?;
        let [own, client, server] = [1, 2, 3].map(|number| Ipv4Addr::new(10, 0, 1, number));
        control.add_address(CONTROL_BRIDGE, Ipv4Net::new_assert(own, 24).into())?;
        for (host, address) in [(&self.client, client), (&self.server, server)] {
            host.namespace.add_veth(CONTROL_INTERFACE, &control, host.namespace.name())?;
            control.attach(host.namespace.name(), CONTROL_BRIDGE)?;
            host.namespace.add_address(CONTROL_INTERFACE, Ipv4Net::new_assert(address, 24).into())?;
        }
        Ok((control, own))
    }
}

impl Host {
    fn new(name: &str, address: Ipv4Addr, processors: &[usize]) -> Result<Self, StageError> {
        let namespace = Namespace::new(name)?;
        let mut set = CpuSet::new();
        for &number in processors {
            set.set(number).map_err(io::Error::from)?;
        }
        namespace.run(move || sched_setaffinity(Pid::from_raw(0), &set))?.map_err(io::Error::from)?;
        Ok(Self { namespace, address })
    }

    /// As a container, for a sidecar. IPv6 is not used.
    pub fn container(&self) -> Container {
        Container::alone(self.namespace.clone(), self.address, Ipv6Addr::UNSPECIFIED)
    }

    /// Starts a plain program here, without any capability.
    ///
    /// # Errors
    /// As [`Namespace::start`].
    pub fn start(&self, program: Program) -> Result<Proc, LabError> {
        self.namespace.start(program.capabilities(Capabilities::None))
    }
}

fn start_nginx(server: &Host, folder: &Path, nginx: &Path) -> Result<Proc, StageError> {
    let root = folder.join("back-end");
    fs::create_dir(&root)?;
    fs::write(root.join(SMALL_FILE), [b'x'; backend::SMALL])?;
    let values = Values::from([
        ("folder".into(), root.display().to_string()),
        ("listen".into(), Service::Small.back_end().to_string()),
    ]);
    let config = root.join("nginx.conf");
    fs::write(&config, template::fill(NGINX, &values)?)?;
    let program = Program::new(nginx)
        .args([Path::new("-e"), Path::new("stderr"), Path::new("-c"), &config])
        .log(root.join("log"));
    let running = server.start(program)?;
    super::pair::wait_until_open(&server.namespace, Service::Small.back_end(), &running, START_LIMIT)?;
    Ok(running)
}

fn start_own(server: &Host) -> Result<Proc, StageError> {
    let places = backend::Places {
        http: Service::Http.back_end(),
        grpc: Service::Grpc.back_end(),
        bytes: Service::Bytes.back_end(),
    };
    let running = server.start(Part::BackEnd(places).program())?;
    running.wait_for_line(backend::LISTENING, START_LIMIT)?;
    Ok(running)
}
