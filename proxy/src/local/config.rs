//! Where the application finds its sidecar, and who counts as the application.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use signet_signature::jws::{Audience, JwsError, MAX_PAYLOAD};

use crate::config::ConfigError;

/// What a request holds beside its payload: a header, its chain and envelope in base64, and JSON around it.
const AROUND_PAYLOAD: usize = 128 * 1024;

/// Settings of the local endpoint; without any it does not exist.
#[derive(Args, Clone, Debug)]
pub struct LocalArguments {
    /// Unix socket at which the application has messages signed, verified, sealed and opened.
    #[arg(long, env = "SIGNET_LOCAL_SOCKET", value_name = "PATH", requires = "local_uid")]
    pub local_socket: Option<PathBuf>,
    /// Users that may use the socket: the application's.
    #[arg(long, env = "SIGNET_LOCAL_UID", value_delimiter = ',', value_name = "UID,…")]
    pub local_uid: Vec<u32>,
    /// Group of the socket, whose members may connect if their user is listed; left out: this process's.
    #[arg(long, env = "SIGNET_LOCAL_GID", value_name = "GID", requires = "local_socket")]
    pub local_gid: Option<u32>,
    /// The largest payload of a message, in bytes.
    #[arg(long, env = "SIGNET_LOCAL_PAYLOAD_BYTES", default_value_t = 64 * 1024, value_name = "BYTES")]
    pub local_payload_bytes: usize,
    /// Loopback address of mF2C's aclib protocol; every process of the container may use it.
    #[arg(long, env = "SIGNET_ACLIB_LISTEN", value_name = "IP:PORT")]
    pub aclib_listen: Option<SocketAddr>,
    /// Whom a signed aclib message without recipients is for: SPIFFE IDs, or `any`.
    #[arg(
        long,
        env = "SIGNET_ACLIB_AUDIENCE",
        value_delimiter = ',',
        value_name = "ID,…",
        requires = "aclib_listen"
    )]
    pub aclib_audience: Vec<String>,
}

/// Valid settings of the local endpoint.
#[derive(Clone, Debug)]
pub struct LocalConfig {
    /// The Unix socket, if there is one.
    pub socket: Option<PathBuf>,
    /// Who may use it.
    pub uids: Vec<u32>,
    /// Its group, if it is another one than this process's.
    pub gid: Option<u32>,
    /// The largest payload.
    pub payload_bytes: usize,
    /// The loopback address of the line protocol, if there is one.
    pub aclib: Option<SocketAddr>,
    /// Whom a signed message without recipients is for, there.
    pub aclib_audience: Option<Audience>,
}

impl LocalConfig {
    /// The largest request: a payload in base64, or the message that carries it.
    pub fn request_bytes(&self) -> usize {
        self.payload_bytes * 2 + AROUND_PAYLOAD
    }
}

impl TryFrom<LocalArguments> for LocalConfig {
    type Error = ConfigError;

    fn try_from(raw: LocalArguments) -> Result<Self, ConfigError> {
        if !(1..=MAX_PAYLOAD).contains(&raw.local_payload_bytes) {
            return Err(ConfigError::LocalPayload(raw.local_payload_bytes));
        }
        if let Some(address) = raw.aclib_listen.filter(|address| !address.ip().is_loopback()) {
            return Err(ConfigError::AclibNotLoopback(address));
        }
        let audience = (!raw.aclib_audience.is_empty()).then(|| Audience::new(raw.aclib_audience));
        Ok(Self {
            socket: raw.local_socket,
            uids: raw.local_uid,
            gid: raw.local_gid,
            payload_bytes: raw.local_payload_bytes,
            aclib: raw.aclib_listen,
            aclib_audience: audience.transpose().map_err(|_: JwsError| ConfigError::AclibAudience)?,
        })
    }
}
