//! What end-to-end tests have in common, so that each of them is short.
//!
//! [`Site`] is one host with a control plane and as many containers as a test wants; [`manifest`] writes the policy in
//! few words. [`Recorder`] is an app that notes every byte that reaches it, [`Plain`] a client that knows nothing of the
//! mesh and sends what no library would. Peers that speak the mesh's own protocols wrongly are in
//! `signet_cli::lab::mesh::intruder`; [`Impostor`] is such a server and [`Claimant`] such a proxy towards the control
//! plane.

use std::error::Error;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use signet_cli::lab::mesh::intruder::Identity;
use signet_cli::lab::mesh::{Mesh, Setup, Sidecar, wait_until};
use signet_cli::lab::{Container, Host, HostPlan, Lab};
use signet_identity::{Authority, SigningSvid, SpiffeId};
use signet_signature::seal::SealingKey;

pub mod claimant;
pub mod impostor;
pub mod kubernetes;
pub mod local;
pub mod manifest;
pub mod outside;
pub mod plain;
pub mod recorder;
pub mod workload_api;

pub use claimant::Claimant;
pub use impostor::Impostor;
pub use plain::{Ended, Plain};
pub use recorder::Recorder;

/// What fails a test.
pub type Failure = Box<dyn Error>;

/// How long anything may take on a small machine under full load.
pub const LIMIT: Duration = Duration::from_secs(30);

/// One host with a mesh.
#[derive(Debug)]
pub struct Site {
    /// Its control plane.
    pub mesh: Mesh,
    /// The host, at 10.0.0.1 and fd00::1.
    pub host: Host,
    /// The switch it is on.
    pub lab: Lab,
}

impl Site {
    /// Starts a control plane with these manifests, see [`manifest`].
    ///
    /// # Errors
    /// What the lab or the control plane fail with.
    pub fn new(manifests: &[String]) -> Result<Self, Failure> {
        let lab = Lab::new()?;
        let host = lab.host("host", HostPlan::numbered(1))?;
        let mesh = Mesh::start(&host, manifest::TRUST_DOMAIN)?;
        mesh.apply("site.yaml", &manifests.concat())?;
        Ok(Self { mesh, host, lab })
    }

    /// Adds a container.
    ///
    /// # Errors
    /// What the lab fails with.
    pub fn container(&self, name: &str) -> Result<Container, Failure> {
        Ok(self.host.container(name)?)
    }

    /// Starts a sidecar for each workload, side by side, and waits until all are ready.
    ///
    /// # Errors
    /// What a sidecar fails with.
    pub fn sidecars<const N: usize>(&self, pairs: [(&Container, &str); N]) -> Result<[Sidecar; N], Failure> {
        let begun: Result<Vec<Sidecar>, _> = pairs
            .into_iter()
            .map(|(container, workload)| self.mesh.begin_sidecar(container, workload, Setup::default()))
            .collect();
        let begun = begun?;
        begun.iter().try_for_each(Sidecar::wait_until_ready)?;
        begun.try_into().map_err(|_| "as many sidecars as pairs".into())
    }

    /// What a thief has who enrolled with a workload's join token, from a container without a sidecar.
    ///
    /// # Errors
    /// What enrolling fails with.
    pub fn intruder(&self, container: &Container, workload: &str) -> Result<Identity, Failure> {
        Ok(Identity::enrol(container.namespace(), self.mesh.address(), self.mesh.token(workload)?)?)
    }

    /// The mesh's own authority: with it a test makes certificates that are wrong in one point only.
    ///
    /// # Errors
    /// The control plane's state cannot be read.
    pub fn authority(&self) -> Result<Authority, Failure> {
        Ok(Authority::from_pem(&authority_pem(&self.mesh)?)?)
    }
}

/// Root and issuer of a mesh with their keys, as a thief of the control plane's state reads them.
///
/// # Errors
/// The control plane's state cannot be read.
pub fn authority_pem(mesh: &Mesh) -> Result<String, Failure> {
    let text = fs::read_to_string(mesh.state().join("authority.pem"))?;
    // Two keys that issue no certificates, then the first pair: root and issuer with their keys.
    let place = |nth| text.match_indices("-----BEGIN ").nth(nth).map_or(text.len(), |(at, _)| at);
    Ok(text[place(2)..place(6)].to_owned())
}

/// The root of a mesh, PEM, as its control plane shows it to everybody.
///
/// # Errors
/// The control plane's state cannot be read.
pub fn root_pem(mesh: &Mesh) -> Result<String, Failure> {
    let pair = authority_pem(mesh)?;
    // It is one indeed, and stands first.
    Authority::from_pem(&pair)?;
    let end = pair.match_indices("-----BEGIN ").nth(1).map_or(pair.len(), |(at, _)| at);
    Ok(pair[..end].to_owned())
}

/// The identity of a workload that [`manifest::workload`] declares.
pub fn id(workload: &str) -> SpiffeId {
    let text = format!("spiffe://{}/app/host/{workload}", manifest::TRUST_DOMAIN);
    SpiffeId::parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The key that callers seal for, of a sidecar that has enrolled.
///
/// # Errors
/// Its state cannot be read.
pub fn sealing_key(sidecar: &Sidecar) -> Result<[u8; 32], Failure> {
    let pem = fs::read(sidecar.folder().join("state/signing.pem"))?;
    let svid = SigningSvid::from_pem(&pem)?;
    Ok(SealingKey::derive(svid.key.secret_der())?.public())
}

/// Where a port of a container is for everybody else.
pub fn place(container: &Container, port: u16) -> SocketAddr {
    (container.ipv4(), port).into()
}

/// Waits for a fact.
///
/// # Errors
/// It does not come about within [`LIMIT`].
pub fn wait_for<R>(what: &str, look: impl FnMut() -> Option<R>) -> Result<R, Failure> {
    wait_until(LIMIT, look).ok_or_else(|| format!("waited in vain for: {what}").into())
}
