//! `signet inject compose` and `signet uninject` as people call them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

const PROJECT: &str = "services:\n  web:\n    image: web\n    ports: [\"80:80\"]\n  db: {image: db}\n";

fn signet(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_signet"));
    command
        .current_dir(folder)
        .env_remove("COMPOSE_PROJECT_NAME")
        .args(arguments)
        .output()
        .expect("the program starts")
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("c.yml"), PROJECT).expect("a file");
    folder
}

fn read(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn in_place_twice_changes_nothing_more_and_uninject_gives_the_original() {
    let folder = folder();
    let folder = folder.path();
    let inject = ["inject", "compose", "--in-place", "--project-name", "box", "c.yml"];
    let first = signet(folder, &inject);
    assert!(first.status.success(), "{first:?}");
    let (once, token) = (read(folder, "c.yml"), read(folder, "signet/tokens/web.token"));
    assert!(
        once.contains("web-holder:") && once.contains("SIGNET_TRUST_DOMAIN: box.signet.internal"),
        "{once}"
    );
    assert!(signet(folder, &inject).status.success());
    assert_eq!(read(folder, "c.yml"), once);
    assert_eq!(read(folder, "signet/tokens/web.token"), token, "a token that is there stays");
    let back = signet(folder, &["uninject", "--in-place", "c.yml"]);
    assert!(String::from_utf8_lossy(&back.stderr).contains("byte for byte"), "{back:?}");
    assert_eq!(read(folder, "c.yml"), PROJECT);
}

#[test]
fn mesh_directory_is_its_owners_and_what_is_mounted_from_it_can_be_read() {
    let folder = folder();
    let folder = folder.path();
    assert!(signet(folder, &["inject", "compose", "--write", "out.yml", "c.yml"]).status.success());
    let mode = |name: &str| fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("signet"), 0o700);
    assert_eq!(read(folder, "signet/.gitignore"), "*\n");
    for name in ["authority.pem", "tokens.json", "mesh.yaml"] {
        assert_eq!(mode(&format!("signet/bootstrap/{name}")), 0o644, "{name}");
    }
    assert_eq!(mode("signet/tokens/db.token"), 0o644);
    assert_eq!(read(folder, "c.yml"), PROJECT);
    // The manifests are what `signet validate` takes.
    let valid = signet(folder, &["validate", "-f", "signet/bootstrap/mesh.yaml"]);
    assert!(valid.status.success(), "{valid:?}");
    // An operator's own stay.
    fs::write(folder.join("signet/bootstrap/mesh.yaml"), "mine").unwrap();
    assert!(signet(folder, &["inject", "compose", "--write", "out.yml", "c.yml"]).status.success());
    assert_eq!(read(folder, "signet/bootstrap/mesh.yaml"), "mine");
    assert!(read(folder, "signet/bootstrap/mesh.yaml.new").contains("kind: Mesh"));
}

#[test]
fn dry_run_shows_a_difference_and_writes_nothing() {
    let folder = folder();
    let shown = signet(folder.path(), &["inject", "compose", "--dry-run", "--in-place", "c.yml"]);
    assert!(shown.status.success());
    let diff = String::from_utf8(shown.stdout).unwrap();
    assert!(diff.starts_with("--- c.yml\n+++ c.yml\n@@ -1,"), "{diff}");
    assert!(
        diff.contains("\n-  db: {image: db}\n") && diff.contains("\n+#signet-   db: {image: db}\n"),
        "{diff}"
    );
    assert_eq!(read(folder.path(), "c.yml"), PROJECT);
    assert!(!folder.path().join("signet").exists());
}

#[test]
fn json_tells_what_became_of_each_service() {
    let folder = folder();
    let told = signet(folder.path(), &["inject", "compose", "-o", "json", "c.yml"]);
    let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(told["services"]["web"]["action"], "meshed");
    assert!(told["compose"].as_str().unwrap().contains("db-sidecar:"));
}

#[test]
fn refused_file_is_untouched_and_the_place_is_told() {
    let folder = folder();
    let bad = format!("{PROJECT}  again:\n    image: a\n    ports: [\"80:81\"]\n");
    fs::write(folder.path().join("c.yml"), &bad).unwrap();
    let refused = signet(folder.path(), &["inject", "compose", "--in-place", "c.yml"]);
    assert_eq!(refused.status.code(), Some(64));
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(told.starts_with("signet: c.yml:8: port 80 of the host is published by `again`"), "{told}");
    assert_eq!(read(folder.path(), "c.yml"), bad);
    assert!(!folder.path().join("signet").exists());
    let plain = signet(folder.path(), &["uninject", "--in-place", "c.yml"]);
    assert_eq!(plain.status.code(), Some(64));
    let several = signet(folder.path(), &["inject", "compose", "c.yml", "c.yml"]);
    assert!(String::from_utf8_lossy(&several.stderr).contains("one file at a time"));
}
