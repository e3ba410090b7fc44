//! docker-compose itself reads what `signet inject compose` writes, and the Compose Specification's own schema takes it;
//! neither needs an engine.

use std::path::{Path, PathBuf};
use std::process::Command;

use signet_cli::lab::runner::TestResult;

use crate::programs::{program, python};

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
    assert_eq!(fixtures.len(), 9, "{fixtures:?}");
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

/// What Compose v2 reads files by: `check-jsonschema` brings the schema of the Compose Specification.
pub(crate) fn compose_specification_takes_what_is_injected() -> TestResult {
    let check = |file: &Path| -> Result<_, Box<dyn std::error::Error>> {
        let mut command = Command::new(python()?);
        command.args(["-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]);
        Ok(command.arg(file).output()?)
    };
    let fixtures = fixtures()?;
    assert_eq!(fixtures.len(), 9, "{fixtures:?}");
    for injected in &fixtures {
        let output = check(injected)?;
        assert!(output.status.success(), "{}: {output:?}", injected.display());
    }
    // It would have told.
    let folder = tempfile::tempdir()?;
    let wrong = folder.path().join("wrong.yml");
    let text = std::fs::read_to_string(&fixtures[0])?.replace("read_only: true", "read_only: [true]");
    std::fs::write(&wrong, text)?;
    let output = check(&wrong)?;
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && told.contains("read_only"), "{output:?}");
    Ok(())
}

const BASE: &str = "version: '3.7'\nservices:\n  web:\n    image: web\n    ports: ['8080:80'] # outside\n  db: {image: db}\n";
const OVER: &str = "version: '3.7'\nservices:\n  web:\n    ports: ['8443:443']\n    hostname: shop\n  db:\n    networks: [back]\n  \
                    agent:\n    image: agent\n    network_mode: host\n    expose: ['9100']\nnetworks: {back: }\n";

/// docker-compose lays the two over each other as before, once each is injected.
pub(crate) fn docker_compose_lays_injected_files_over_each_other() -> TestResult {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("base.yml"), BASE)?;
    std::fs::write(at("over.yml"), OVER)?;
    let signet = |arguments: &[&str]| -> TestResult {
        let files = ["--in-place", "-f", "base.yml", "-f", "over.yml"];
        let mut command = Command::new("/proc/self/exe");
        command.arg("signet").args(arguments).args(files).current_dir(folder.path());
        let output = command.env_remove("COMPOSE_PROJECT_NAME").output()?;
        if output.status.success() { Ok(()) } else { Err(format!("{arguments:?}: {output:?}").into()) }
    };
    signet(&["inject", "compose", "--project-name", "shop"])?;
    let mut command = Command::new(program("docker-compose")?);
    command.args(["-f", "base.yml", "-f", "over.yml", "config"]).current_dir(folder.path());
    let output = command.env_remove("COMPOSE_FILE").output()?;
    assert!(output.status.success(), "{output:?}");
    let config = String::from_utf8(output.stdout)?;
    let service = |name: &str| -> String {
        let lines = config.lines().skip_while(|line| *line != format!("  {name}:")).skip(1);
        lines.take_while(|line| line.starts_with("    ")).map(|line| format!("{line}\n")).collect()
    };
    let (web, holder, db) = (service("web"), service("web-holder"), service("db-holder"));
    assert!(web.contains("network_mode: service:web-holder") && !web.contains("ports"), "{web}");
    for said in ["8080", "8443", "hostname: shop"] {
        assert!(holder.contains(said), "{said} in {holder}");
    }
    assert!(db.contains("back:") && !db.contains("default:"), "{db}");
    let guard = service("agent-guard");
    assert!(guard.contains("network_mode: host") && guard.contains("SIGNET_PORTS: '9100'"), "{guard}");
    assert!(service("agent").contains("network_mode: service:agent-guard"), "{config}");
    signet(&["uninject"])?;
    assert_eq!(std::fs::read_to_string(at("base.yml"))?, BASE);
    assert_eq!(std::fs::read_to_string(at("over.yml"))?, OVER);
    Ok(())
}
