//! The authority's keys in a real token: SoftHSM, which keeps its objects in files, one each.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test, also in its helpers")]
#![allow(clippy::disallowed_methods, reason = "tests go by the machine's clock")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use signet_identity::{verify_signing_chain, verify_tls_chain};
use signet_sync::proto::admin::{RotateRequest, RotationTarget};
use tempfile::TempDir;

use crate::harness::{MESH, PATIENCE, Server, command, run_to_end, workload};

#[allow(dead_code, reason = "not all of it is needed here")]
#[path = "../process/harness.rs"]
mod harness;

/// Where Debian's package has it, by machine.
const MODULES: [&str; 3] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
];
const PIN: &str = "pin-of-the-test";

/// A folder with tokens and the PIN.
struct Hsm {
    folder: TempDir,
    module: &'static str,
}

impl Hsm {
    fn new() -> Self {
        let module = MODULES.into_iter().find(|module| Path::new(module).exists());
        let module = module.expect("SoftHSM is not installed: apt-get install softhsm2");
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("tokens")).unwrap();
        let tokens = folder.path().join("tokens");
        let text = format!("directories.tokendir = {}\nobjectstore.backend = file\n", tokens.display());
        std::fs::write(folder.path().join("softhsm2.conf"), text).unwrap();
        std::fs::write(folder.path().join("pin"), format!("{PIN}\n")).unwrap();
        let hsm = Self { folder, module };
        hsm.add("mesh");
        hsm
    }

    fn add(&self, label: &str) {
        let mut init = Command::new("softhsm2-util");
        init.args(["--init-token", "--free", "--label", label, "--so-pin", "so-pin", "--pin", PIN]);
        let output = init.env("SOFTHSM2_CONF", self.configuration()).output().expect("softhsm2-util runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn configuration(&self) -> PathBuf {
        self.folder.path().join("softhsm2.conf")
    }

    fn tokens(&self) -> PathBuf {
        self.folder.path().join("tokens")
    }

    /// The control plane with its keys in this token.
    fn command(&self, state: &Path, token: &str) -> Command {
        let pin = self.folder.path().join("pin");
        let uri =
            format!("pkcs11:token={token}?module-path={}&pin-source=file:{}", self.module, pin.display());
        let mut command = command(state);
        command.arg("--authority-key").arg(uri).env("SOFTHSM2_CONF", self.configuration());
        command
    }

    /// The files of all keys, public and private.
    fn objects(&self) -> BTreeSet<PathBuf> {
        let tokens = std::fs::read_dir(self.tokens()).unwrap().map(|token| token.unwrap().path());
        let files =
            tokens.flat_map(|token| std::fs::read_dir(token).unwrap().map(|file| file.unwrap().path()));
        let is_key = |file: &PathBuf| {
            file.extension().is_some_and(|extension| extension == "object")
                && file.file_name().is_some_and(|name| name != "token.object")
        };
        files.filter(is_key).collect()
    }
}

fn authority(state: &Path) -> String {
    std::fs::read_to_string(state.join("authority.pem")).unwrap()
}

#[tokio::test]
async fn keys_are_made_in_the_token_certify_and_rotate_there_and_are_nowhere_else() {
    let (hsm, state) = (Hsm::new(), tempfile::tempdir().unwrap());
    let server = Server::spawn(hsm.command(state.path(), "mesh"));
    let text = authority(state.path());
    assert!(text.starts_with("signet-authority 3 "), "{}", &text[..32]);
    assert_eq!(text.matches("BEGIN PRIVATE KEY").count(), 2, "those that sign sections");
    assert_eq!(text.matches("BEGIN SIGNET HELD KEY").count(), 2, "root and issuer");
    let made = hsm.objects();
    assert_eq!(made.len(), 4, "two pairs");

    server.apply(&format!("{MESH}---\n{}", workload("api"))).await;
    let proxy = server.proxy("api").await;
    let now = std::time::SystemTime::now();
    verify_tls_chain(&proxy.bundle, &proxy.tls.chain, now).unwrap();
    verify_signing_chain(&proxy.bundle, &proxy.signing.chain, now).unwrap();

    // The same keys over a restart.
    assert_eq!(server.terminate().code(), Some(0));
    let server = Server::spawn(hsm.command(state.path(), "mesh"));
    let mut proxy = proxy;
    proxy.renew(server.control).await.unwrap();
    assert_eq!(hsm.objects(), made);

    // New keys are made there too, and the old ones are destroyed.
    let target = RotationTarget::Root.into();
    let request = RotateRequest { target, emergency: true, ..RotateRequest::default() };
    server.operator().await.rotate(request).await.unwrap();
    let began = Instant::now();
    while hsm.objects().len() != 4 || !hsm.objects().is_disjoint(&made) {
        assert!(began.elapsed() < PATIENCE, "old keys are left: {:?}", hsm.objects());
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(authority(state.path()).matches("BEGIN SIGNET HELD KEY").count(), 2);
    let next = server.proxy("api").await;
    verify_tls_chain(&next.bundle, &next.tls.chain, now).unwrap();
    assert_ne!(next.bundle.roots(), proxy.bundle.roots());
}

#[test]
fn an_authority_whose_token_is_lost_does_not_start_and_no_new_one_takes_its_place() {
    let (hsm, state) = (Hsm::new(), tempfile::tempdir().unwrap());
    Server::spawn(hsm.command(state.path(), "mesh")).terminate();
    let before = authority(state.path());
    let refused = |command, code, wanted: &str| {
        let (status, said) = run_to_end(command);
        assert_eq!(status.code(), Some(code), "{said}");
        assert!(said.contains(wanted) && !said.contains(PIN), "{said}");
        assert_eq!(authority(state.path()), before);
    };
    refused(command(state.path()), 70, "authority.pem names keys that a hardware module holds");
    refused(hsm.command(state.path(), "another"), 70, "0 tokens of the module fit the URI");
    hsm.add("another");
    refused(hsm.command(state.path(), "another"), 70, "the token does not have this key of the authority");
    std::fs::write(hsm.folder.path().join("pin"), "a-wrong-pin").unwrap();
    refused(hsm.command(state.path(), "mesh"), 70, "the token does not let us in: PinIncorrect");
    std::fs::write(hsm.folder.path().join("pin"), PIN).unwrap();
    let away = hsm.folder.path().join("away");
    std::fs::rename(hsm.tokens(), &away).unwrap();
    std::fs::create_dir(hsm.tokens()).unwrap();
    refused(hsm.command(state.path(), "mesh"), 70, "0 tokens of the module fit the URI");
    std::fs::remove_dir(hsm.tokens()).unwrap();
    std::fs::rename(&away, hsm.tokens()).unwrap();
    Server::spawn(hsm.command(state.path(), "mesh")).terminate();
    assert_eq!(authority(state.path()), before);
}

/// An authority that has its keys in a file goes on; the next ones are made in the token.
#[tokio::test]
async fn keys_of_a_file_move_into_the_token_by_rotation() {
    let (hsm, state) = (Hsm::new(), tempfile::tempdir().unwrap());
    Server::start(state.path()).terminate();
    assert!(authority(state.path()).starts_with("signet-authority 2 "));
    let server = Server::spawn(hsm.command(state.path(), "mesh"));
    assert!(hsm.objects().is_empty());
    let target = RotationTarget::Root.into();
    let request = RotateRequest { target, emergency: true, ..RotateRequest::default() };
    server.operator().await.rotate(request).await.unwrap();
    let began = Instant::now();
    while authority(state.path()).matches("BEGIN PRIVATE KEY").count() != 2 {
        assert!(began.elapsed() < PATIENCE, "old keys are left in the file");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(hsm.objects().len(), 4);
}

/// Neither the keys in the token nor what opens it are left.
#[tokio::test]
async fn tampering_destroys_the_keys_in_the_token_and_its_pin() {
    let (hsm, state) = (Hsm::new(), tempfile::tempdir().unwrap());
    let sensor = state.path().join("sensor");
    let mut command = hsm.command(state.path(), "mesh");
    command.arg("--tamper-file").arg(&sensor);
    let server = Server::spawn(command);
    assert_eq!(hsm.objects().len(), 4);
    std::fs::write(&sensor, "lid").unwrap();
    let began = Instant::now();
    while !hsm.objects().is_empty() {
        assert!(began.elapsed() < PATIENCE, "keys are left: {:?}", hsm.objects());
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(!hsm.folder.path().join("pin").exists() && !state.path().join("authority.pem").exists());
    assert_eq!(server.terminate().code(), Some(1));
}
