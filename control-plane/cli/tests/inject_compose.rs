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
    let twice = signet(folder.path(), &["inject", "compose", "c.yml", "c.yml"]);
    assert_eq!(twice.status.code(), Some(64), "{}", String::from_utf8_lossy(&twice.stderr));
    assert_eq!(read(folder.path(), "c.yml"), bad);
}

const OVER: &str = "services:\n  web:\n    ports: [\"81:81\"]\n    environment: {A: b}\n";

#[test]
fn several_files_are_written_all_or_none_and_come_back_together() {
    let folder = folder();
    let folder = folder.path();
    fs::write(folder.join("over.yml"), OVER).expect("a file");
    fs::write(folder.join("wrong.yml"), "services:\n  web:\n    ports: [\"80:82\"]\n").expect("a file");
    let inject = |files: &[&str]| {
        let start = ["inject", "compose", "--project-name", "box"];
        signet(folder, &[&start[..], files].concat())
    };
    let refused = inject(&["--in-place", "-f", "c.yml", "-f", "wrong.yml"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && told.contains("wrong.yml:3:"), "{told}");
    assert_eq!(read(folder, "c.yml"), PROJECT, "nothing is written where one of the files is wrong");
    let refused = inject(&["c.yml", "over.yml"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--in-place"), "{refused:?}");

    let shown = inject(&["--dry-run", "c.yml", "over.yml"]);
    let diff = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.status.success() && diff.contains("c.yml") && diff.contains("over.yml"), "{diff}");
    assert_eq!((read(folder, "c.yml").as_str(), read(folder, "over.yml").as_str()), (PROJECT, OVER));

    for _ in 0..2 {
        let done = inject(&["--in-place", "-f", "c.yml", "-f", "over.yml"]);
        assert!(done.status.success(), "{done:?}");
        assert!(
            read(folder, "over.yml").contains("#signet-     ports: [\"81:81\"]"),
            "{}",
            read(folder, "over.yml")
        );
        assert!(read(folder, "c.yml").contains("\"81:81\""), "the holder publishes what both files say");
    }
    // Changes between the marks would be lost, in either file.
    let over = read(folder, "over.yml");
    fs::write(folder.join("over.yml"), over.replacen("# Written by", "# Changed by", 1)).expect("a file");
    let before = read(folder, "c.yml");
    let uninject = ["uninject", "--in-place", "-f", "c.yml", "-f", "over.yml"];
    let refused = signet(folder, &uninject);
    assert!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("--force"),
        "{refused:?}"
    );
    assert_eq!(read(folder, "c.yml"), before);
    let done = signet(folder, &[&uninject[..], &["--force"]].concat());
    assert!(done.status.success(), "{done:?}");
    assert_eq!((read(folder, "c.yml").as_str(), read(folder, "over.yml").as_str()), (PROJECT, OVER));
}

#[test]
fn pipe_that_is_extended_is_refused_and_not_waited_for() {
    let folder = folder();
    let folder = folder.path();
    nix::unistd::mkfifo(&folder.join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    fs::write(folder.join("e.yml"), "services:\n  a:\n    extends: {file: pipe, service: a}\n")
        .expect("a file");
    let refused = signet(folder, &["inject", "compose", "--dry-run", "e.yml"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && told.contains("no regular file"), "{told}");
}
