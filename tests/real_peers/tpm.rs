//! A device with a TPM: swtpm, which is the TCG's reference implementation, and what tpm2-tools and OpenSSL say of it.

use std::fs;
use std::path::{Path, PathBuf};

use signet_cli::lab::mesh::{Evidence, Mesh, Setup, Sidecar, program as signet};
use signet_cli::lab::runner::TestResult;
use signet_cli::lab::{HostPlan, Lab, Namespace};
use signet_sync::proto::admin::RotationTarget;
use signet_tests::{root_pem, wait_for};

use crate::pair::{Failure, run_at};
use crate::programs::{app, program};

const MESH: &str = "apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Mesh
metadata: {name: mesh}
spec:
  trustDomain: mesh.example
  networks: [{name: lan, cidrs: [172.18.0.0/16, 'fd18::/64'], gateways: [10.0.0.1, 'fd00::1']}]
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: {name: boat}
spec: {class: app, device: host, network: lan}
";
const ID: &str = "spiffe://mesh.example/app/host/boat";

/// A device's TPM; dropping it ends it.
struct Chip<'a> {
    folder: tempfile::TempDir,
    at: &'a Namespace,
}

impl<'a> Chip<'a> {
    fn new(at: &'a Namespace) -> Result<Self, Failure> {
        let chip = Self { folder: tempfile::Builder::new().prefix("tpm-").tempdir()?, at };
        chip.power_on()?;
        Ok(chip)
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }

    /// Returns when its sockets are there: it goes to the background then.
    fn power_on(&self) -> Result<(), Failure> {
        let swtpm = app("swtpm")?
            .args(["socket", "--tpm2", "--daemon", "--flags", "not-need-init,startup-clear"])
            .args(["--tpmstate", &format!("dir={}", self.folder.path().display())])
            .args(["--server", &format!("type=unixio,path={}", self.file("tpm.sock"))])
            .args(["--ctrl", &format!("type=unixio,path={}", self.file("tpm.sock.ctrl"))])
            .args(["--pid", &format!("file={}", self.file("pid"))]);
        run_at(self.at, swtpm).map(drop)
    }

    fn power_off(&self) -> Result<(), Failure> {
        let pid: i32 = fs::read_to_string(self.file("pid"))?.trim().parse()?;
        let process = PathBuf::from(format!("/proc/{pid}/fd/0"));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
        wait_for("the TPM's end", || (!process.exists()).then_some(()))?;
        ["tpm.sock", "tpm.sock.ctrl"].iter().try_for_each(|name| fs::remove_file(self.file(name)))?;
        Ok(())
    }

    /// What an operator writes into the rules: by tools that know nothing of Signet.
    fn endorsement_key(&self) -> Result<String, Failure> {
        let (pem, der) = (self.file("ek.pem"), self.file("ek.der"));
        let create = app("tpm2_createek")?
            .args(["-T", &format!("swtpm:path={}", self.file("tpm.sock"))])
            .args(["-G", "ecc", "-f", "pem", "-u", &pem, "-c", &self.file("ek.ctx")]);
        run_at(self.at, create)?;
        run_at(
            self.at,
            app("openssl")?.args(["pkey", "-pubin", "-in", &pem, "-outform", "der", "-out", &der]),
        )?;
        let digest = run_at(self.at, app("sha256sum")?.args([der]))?;
        Ok(digest.split_whitespace().next().ok_or("no digest")?.to_owned())
    }

    fn setup(&self, roots: &Path) -> Setup {
        let place = format!("unix:{}", self.file("tpm.sock"));
        Setup { evidence: Some(Evidence::Tpm { place, roots: roots.to_owned() }), ..Setup::default() }
    }
}

impl Drop for Chip<'_> {
    fn drop(&mut self) {
        let _ = self.power_off();
    }
}

fn log(sidecar: &Sidecar) -> Option<String> {
    fs::read_to_string(sidecar.folder().join("log")).ok()
}

fn state(sidecar: &Sidecar, file: &str) -> Result<String, Failure> {
    Ok(fs::read_to_string(sidecar.folder().join("state").join(file))?)
}

/// The device is who it is by its TPM alone: without a token it enrols, and what is copied from its disk is nobody elsewhere.
pub(crate) fn device_is_who_it_is_by_its_tpm_alone() -> TestResult {
    program("swtpm")?;
    let lab = Lab::new()?;
    let host = lab.host("host", HostPlan::numbered(1))?;
    let (here, elsewhere) = (Chip::new(host.namespace())?, Chip::new(host.namespace())?);
    let folder = tempfile::Builder::new().prefix("peers-").tempdir()?;
    let (rules, roots) = (folder.path().join("tpm.yaml"), folder.path().join("roots.pem"));
    let rule = format!("devices: [{{endorsementKey: {}, workload: boat}}]\n", here.endorsement_key()?);
    fs::write(&rules, rule)?;
    let control_plane = signet(&[]).env("SIGNET_ATTEST_TPM", &rules);
    let mut mesh = Mesh::start_program(control_plane, host.namespace(), host.ipv4(), "mesh.example")?;
    mesh.apply("mesh.yaml", MESH)?;
    fs::write(&roots, root_pem(&mesh)?)?;

    let mut boat = mesh.sidecar(&host.container("boat")?, "boat", here.setup(&roots))?;
    assert!(mesh.proxies()?.iter().map(|proxy| proxy.spiffe_id.as_str()).eq([ID]));
    // The key of channels is not on the disk, in whatever form.
    let saved = state(&boat, "tls.pem")?;
    assert!(!saved.contains("PRIVATE KEY") && saved.contains("BEGIN SIGNET HELD KEY"), "{saved}");

    // Another issuer certifies the same key.
    let public = |file: &str| -> Result<String, Failure> {
        let saved = boat.folder().join("state").join(file);
        run_at(
            host.namespace(),
            app("openssl")?.args(["x509", "-in"]).args([saved]).args(["-noout", "-pubkey"]),
        )
    };
    let (key, signing_key) = (public("tls.pem")?, public("signing.pem")?);
    mesh.rotate(RotationTarget::Issuer, true)?;
    wait_for("the new certificate", || state(&boat, "tls.pem").ok().filter(|now| *now != saved))?;
    wait_for("the new signing key", || public("signing.pem").ok().filter(|now| *now != signing_key))?;
    assert_eq!(public("tls.pem")?, key);

    // What is on the disk, beside another TPM: the saved key is not there, and the rules do not name it.
    let mut thief = mesh.begin_sidecar(&host.container("thief")?, "boat", elsewhere.setup(&roots))?;
    wait_for("its reason", || log(&thief).filter(|log| log.contains("attestation-no-workload")))?;
    thief.kill();
    fs::create_dir_all(thief.folder().join("state"))?;
    for entry in fs::read_dir(boat.folder().join("state"))? {
        let entry = entry?;
        fs::copy(entry.path(), thief.folder().join("state").join(entry.file_name()))?;
    }
    thief.begin()?;
    wait_for("both reasons", || {
        let said = log(&thief)?;
        let reasons = ["does not belong to the certificate", "attestation-no-workload"];
        reasons.iter().all(|reason| said.contains(reason)).then_some(())
    })?;

    // Cold, without a control plane: the TPM makes the key again.
    boat.kill();
    mesh.kill_control_plane();
    here.power_off()?;
    here.power_on()?;
    boat.restart()?;
    Ok(())
}
