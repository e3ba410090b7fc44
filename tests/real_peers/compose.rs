//! docker-compose itself reads what `signet inject compose` writes; it needs no engine for that.

use std::path::{Path, PathBuf};
use std::process::Command;

use signet_cli::lab::runner::TestResult;

use crate::programs::program;

/// The files beside which `control-plane/inject` keeps what it writes for them, and its own tests compare.
fn fixtures() -> Result<Vec<PathBuf>, std::io::Error> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../control-plane/inject/tests/compose");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(".injected.yml") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The services that docker-compose finds in a file.
fn services(file: &Path) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let mut command = Command::new(program("docker-compose")?);
    command.arg("-f").arg(file).args(["--profile", "debug", "--profile", "also", "config", "--services"]);
    let variables = [("usr", "u"), ("pwd", "p"), ("OTHER", "8081")];
    let output = command.envs(variables).env_remove("COMPOSE_FILE").output()?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{}: docker-compose refuses it: {told}", file.display()).into());
    }
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

pub(crate) fn docker_compose_reads_what_is_injected() -> TestResult {
    let fixtures = fixtures()?;
    assert_eq!(fixtures.len(), 8, "{fixtures:?}");
    for injected in fixtures {
        let original = PathBuf::from(injected.to_string_lossy().replace(".injected.yml", ".yml"));
        let (before, after) = (services(&original)?, services(&injected)?);
        for service in &before {
            assert!(after.contains(service), "{service} is missing in {}", injected.display());
        }
        assert!(after.iter().any(|service| service == "signet-control-plane"), "{}", injected.display());
        // Every holder has its sidecar, and there is at least one.
        let holders: Vec<&str> = after.iter().filter_map(|service| service.strip_suffix("-holder")).collect();
        assert!(!holders.is_empty(), "{}", injected.display());
        for name in holders {
            assert!(after.contains(&format!("{name}-sidecar")), "{name} in {}", injected.display());
        }
    }
    Ok(())
}
