//! Wrong clocks, by the programs' own drill: the machine's clock is the same for everything that runs here.

use std::fs;
use std::path::PathBuf;

use signet_cli::lab::mesh::{Mesh, Setup, Sidecar, program, wait_until};
use tempfile::TempDir;

use crate::protocols::stage::{Failure, LIMIT, Meshed, Stage, TRUST_DOMAIN};

/// In seconds.
pub(super) const DAY: i64 = 86_400;

/// The file that one program reads.
pub(super) struct Drill {
    folder: TempDir,
}

impl Drill {
    pub(super) fn new() -> Result<Self, Failure> {
        Ok(Self { folder: tempfile::tempdir()? })
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("offset")
    }

    /// Moves the program's clock by so many seconds, from within the next fifth of a second on.
    pub(super) fn set(&self, seconds: i64) -> Result<(), Failure> {
        // Whole or not at all: a program may read at any moment.
        let new = self.folder.path().join("new");
        fs::write(&new, seconds.to_string())?;
        Ok(fs::rename(new, self.file())?)
    }

    fn variable(&self) -> (String, String) {
        ("SIGNET_CLOCK_DRILL_FILE".to_owned(), self.file().display().to_string())
    }

    /// How a sidecar is started that obeys it.
    pub(super) fn setup(&self) -> Setup {
        Setup { environment: vec![self.variable()], ..Setup::default() }
    }

    /// The machine was started anew since: all processes here share one start, by which a saved clock is carried on.
    pub(super) fn forget_the_clock(&self, sidecar: &Sidecar) -> Result<(), Failure> {
        Ok(fs::remove_file(sidecar.folder().join("state").join("clock.pb"))?)
    }

    /// A mesh whose control plane obeys it.
    pub(super) fn control_plane(&self, stage: &Stage) -> Result<Mesh, Failure> {
        let (name, value) = self.variable();
        let program = program(&[]).env(&name, &value);
        Ok(Mesh::start_program(program, stage.cloud.namespace(), stage.cloud.ipv4(), TRUST_DOMAIN)?)
    }
}

/// As [`Stage::mesh`], with a drill for the server's and one for the client's sidecar.
pub(super) fn mesh(stage: &Stage, drills: &[Drill; 2], yaml: &str, ports: &[u16]) -> Result<Meshed, Failure> {
    let mesh = Mesh::start(&stage.cloud, TRUST_DOMAIN)?;
    with(stage, mesh, drills, yaml, ports)
}

/// The same with a control plane that runs.
pub(super) fn with(
    stage: &Stage,
    mesh: Mesh,
    [server, client]: &[Drill; 2],
    yaml: &str,
    ports: &[u16],
) -> Result<Meshed, Failure> {
    mesh.apply("mesh.yaml", yaml)?;
    let server = mesh.begin_sidecar(&stage.server, "server", server.setup())?;
    let client = mesh.begin_sidecar(&stage.client, "client", client.setup())?;
    server.wait_until_ready()?;
    client.wait_until_ready()?;
    for &port in ports {
        client.wait_until_known(stage.place(port))?;
    }
    // And has it on disk, for a start with nobody to ask: changes are saved within a second.
    let (sections, place) = (client.folder().join("state").join("sections.pb"), stage.server.ipv4().octets());
    let is_kept = || {
        let saved = fs::read(&sections).unwrap_or_default();
        saved.windows(place.len()).any(|bytes| bytes == place).then_some(())
    };
    wait_until(LIMIT, is_kept).ok_or("the server's place was not saved")?;
    Ok(Meshed { server, client, mesh })
}
