//! Where the application finds the Workload API, and who counts as the application.

use std::path::PathBuf;

use clap::Args;

/// Settings of the Workload API; without a socket it is not offered.
#[derive(Args, Clone, Debug)]
pub struct WorkloadApiArguments {
    /// Unix socket at which the application finds SPIFFE's Workload API; what it gets there is said by its Workload.
    #[arg(long, env = "SIGNET_WORKLOAD_API_SOCKET", value_name = "PATH", requires = "workload_api_uid")]
    pub workload_api_socket: Option<PathBuf>,
    /// Users that may use it: the application's.
    #[arg(long, env = "SIGNET_WORKLOAD_API_UID", value_delimiter = ',', value_name = "UID,…")]
    pub workload_api_uid: Vec<u32>,
    /// Group of the socket, whose members may connect if their user is listed; left out: this process's.
    #[arg(long, env = "SIGNET_WORKLOAD_API_GID", value_name = "GID", requires = "workload_api_socket")]
    pub workload_api_gid: Option<u32>,
}

/// Where and for whom.
#[derive(Clone, Debug)]
pub struct WorkloadApiConfig {
    /// The Unix socket.
    pub socket: PathBuf,
    /// Who may use it.
    pub uids: Vec<u32>,
    /// Its group, if it is another one than this process's.
    pub gid: Option<u32>,
}

impl WorkloadApiArguments {
    /// What was asked for, if anything.
    pub fn read(self) -> Option<WorkloadApiConfig> {
        let (uids, gid) = (self.workload_api_uid, self.workload_api_gid);
        self.workload_api_socket.map(|socket| WorkloadApiConfig { socket, uids, gid })
    }
}
