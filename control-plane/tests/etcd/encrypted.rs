//! etcd over TLS, as an operator sets it up: who has no certificate of its authority does not get in, and neither end believes another authority.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::cluster::{Cluster, PATIENCE, Served};
use crate::harness::{MESH, Server, command, run_to_end, workload};

/// An authority, and where what it certifies is written.
struct Outside {
    issuer: Issuer<'static, KeyPair>,
    ca: PathBuf,
}

impl Outside {
    fn new(folder: &Path, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = folder.join(format!("{name}.pem"));
        std::fs::write(&ca, params.self_signed(&key).unwrap().pem()).unwrap();
        Self { issuer: Issuer::new(params, key), ca }
    }

    /// A certificate for this host and its key.
    fn certify(&self, host: &str, path: &Path) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let leaf =
            CertificateParams::new(vec![host.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        let (certificate, key_file) = (path.with_extension("crt"), path.with_extension("key"));
        std::fs::write(&certificate, leaf.pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        (certificate, key_file)
    }
}

/// A control plane with its state there that uses these files.
fn with(state: &Path, cluster: &Cluster, ca: &Path, (certificate, key): &(PathBuf, PathBuf)) -> Command {
    let mut command = command(state);
    command.arg("--store").arg(cluster.address().to_string()).arg("--etcd-ca").arg(ca);
    command.arg("--etcd-certificate").arg(certificate).arg("--etcd-key").arg(key);
    command
}

/// Waits until the member says at its other port that it is well.
fn is_well(cluster: &Cluster) {
    let begun = std::time::Instant::now();
    loop {
        let mut said = String::new();
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", cluster.health_port())) {
            let _ = stream.write_all(b"GET /health HTTP/1.0\r\n\r\n");
            let _ = stream.read_to_string(&mut said);
        }
        if said.contains(r#""health":"true""#) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "etcd does not become well: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn real_etcd_over_tls_takes_who_its_authority_certified_and_nobody_else() {
    let files = tempfile::tempdir().unwrap();
    let authority = Outside::new(files.path(), "ca");
    let other = Outside::new(files.path(), "other");
    let (certificate, key) = authority.certify("127.0.0.1", &files.path().join("member"));
    let own = authority.certify("control-plane", &files.path().join("own"));
    let foreign = other.certify("control-plane", &files.path().join("foreign"));
    let served = Served { ca: authority.ca.clone(), certificate, key };
    let cluster = Cluster::start_over_tls(served);
    is_well(&cluster);

    let state = tempfile::tempdir().unwrap();
    let server = Server::spawn(with(state.path(), &cluster, &authority.ca, &own));
    server.apply(MESH).await;
    server.apply(&workload("api")).await;
    let before = server.info().await;
    server.kill();
    // It is all there, and was never in clear: nothing else is listened for.
    let server = Server::spawn(with(state.path(), &cluster, &authority.ca, &own));
    let after = server.info().await;
    assert_eq!((after.root_fingerprints, after.sections), (before.root_fingerprints, before.sections));
    server.kill();

    let refused = |command: Command, why: &str| {
        let (status, said) = run_to_end(command);
        assert!(!status.success() && said.contains(why), "{status}: {said}");
    };
    let empty = || tempfile::tempdir().unwrap();
    // A member of another authority is not believed; it learns nothing.
    refused(with(empty().path(), &cluster, &other.ca, &own), "invalid peer certificate");
    // The member does not believe who another authority certified.
    refused(with(empty().path(), &cluster, &authority.ca, &foreign), "cannot be reached");
    let mut in_clear = command(empty().path());
    in_clear.arg("--store").arg(cluster.address().to_string());
    refused(in_clear, "cannot be reached");
}
