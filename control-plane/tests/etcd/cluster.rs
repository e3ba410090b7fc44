//! Real members of etcd, on free ports, in folders of their own.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use signet_control_plane::store::{EtcdAddress, EtcdStore, StoreError};

/// Longer than a machine under load takes to elect a leader.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster of etcd; its members are killed when it is dropped.
pub(crate) struct Cluster {
    pub(crate) folder: tempfile::TempDir,
    /// Ports for clients and for each other.
    ports: Vec<(u16, u16)>,
    members: Vec<Option<Child>>,
    /// What it serves clients with, if not in clear; and the port where it says in clear how it is.
    tls: Option<(Served, u16)>,
}

/// PEM files of a member that serves clients over TLS and asks them for a certificate.
pub(crate) struct Served {
    /// Who certifies clients.
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Cluster {
    pub(crate) fn start(count: usize) -> Self {
        Self::start_with(count, None)
    }

    /// One member that speaks TLS with clients.
    pub(crate) fn start_over_tls(served: Served) -> Self {
        Self::start_with(1, Some(served))
    }

    fn start_with(count: usize, served: Option<Served>) -> Self {
        // All listen at once, so that no port is given twice.
        let free = || TcpListener::bind("127.0.0.1:0").unwrap();
        let held: Vec<(TcpListener, TcpListener)> = (0..count).map(|_| (free(), free())).collect();
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let ports = held.iter().map(|(client, peer)| (port(client), port(peer))).collect();
        let health = free();
        let tls = served.map(|served| (served, port(&health)));
        drop((held, health));
        let mut cluster = Self { folder: tempfile::tempdir().unwrap(), ports, members: Vec::new(), tls };
        for number in 0..count {
            let member = cluster.spawn(number);
            cluster.members.push(Some(member));
        }
        cluster
    }

    fn spawn(&self, number: usize) -> Child {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let (client, peer) = self.ports[number];
        let all: Vec<String> =
            self.ports.iter().enumerate().map(|(n, (_, peer))| format!("m{n}={}", url(*peer))).collect();
        let log = std::fs::File::create(self.folder.path().join(format!("log-{number}"))).unwrap();
        let mut command = Command::new("etcd");
        let mut client = url(client);
        if let Some((Served { ca, certificate, key }, health)) = &self.tls {
            client = client.replace("http:", "https:");
            command.arg("--client-cert-auth").args(["--listen-metrics-urls", &url(*health)]);
            command
                .arg("--trusted-ca-file")
                .arg(ca)
                .arg("--cert-file")
                .arg(certificate)
                .arg("--key-file")
                .arg(key);
        }
        command
            .args(["--name", &format!("m{number}"), "--data-dir"])
            .arg(self.folder.path().join(format!("m{number}")))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)])
            .args(["--initial-cluster", &all.join(","), "--logger", "zap", "--log-level", "error"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("etcd is needed: install etcd-server from Debian")
    }

    pub(crate) fn kill(&mut self, number: usize) {
        let mut member = self.members[number].take().expect("it runs");
        member.kill().unwrap();
        member.wait().unwrap();
    }

    pub(crate) fn start_again(&mut self, number: usize) {
        assert!(self.members[number].is_none());
        self.members[number] = Some(self.spawn(number));
    }

    /// Where a member that speaks TLS says in clear how it is.
    pub(crate) fn health_port(&self) -> u16 {
        self.tls.as_ref().expect("it speaks TLS").1
    }

    pub(crate) fn address(&self) -> EtcdAddress {
        let members: Vec<String> =
            self.ports.iter().map(|(client, _)| format!("127.0.0.1:{client}")).collect();
        EtcdAddress::parse(&format!("etcd://{}/test", members.join(",")), "unused").unwrap()
    }

    /// A store on it, as soon as it answers.
    pub(crate) async fn open(&self, directory: &Path) -> EtcdStore {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            match EtcdStore::open(&self.address(), None, directory).await {
                Ok(store) => return store,
                Err(StoreError::Unreachable { .. }) if tokio::time::Instant::now() < deadline => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in self.members.iter_mut().flatten() {
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}
