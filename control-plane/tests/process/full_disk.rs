//! No room on the disk: nothing is acknowledged that is not kept, and nobody has to start anything again.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use tonic::Code;

use crate::harness::{MESH, Server, command, enrol, workload};

/// All the room there is: the store begins with a few MiB.
const DISK_BYTES: usize = 16 * 1024 * 1024;

/// Of one manifest, so that few of them are needed.
const MANIFEST_BYTES: usize = 64 * 1024;

/// More manifests than there is room for.
const MANIFESTS_MAX: usize = 2 * DISK_BYTES / MANIFEST_BYTES;

/// A small disk in a namespace of its own: no root is needed. It is gone with its keeper.
struct Disk {
    keeper: Child,
    folder: TempDir,
}

impl Disk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script = "mount -t tmpfs -o size=$1,mode=700 tmpfs \"$2\" && echo mounted && exec cat";
        let mut keeper = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
            .arg(DISK_BYTES.to_string())
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "mounted\n", "this test needs user namespaces, as all that run whole meshes do");
        Self { keeper, folder }
    }

    /// Starts the control plane with its state on this disk.
    fn start(&self) -> Server {
        let binary = command(self.folder.path());
        let keeper = self.keeper.id().to_string();
        let mut entering = Command::new("nsenter");
        entering
            .args(["--target", &keeper, "--user", "--mount", "--preserve-credentials"])
            .arg(binary.get_program())
            .args(binary.get_args())
            .env("SIGNET_LOG", "off")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut server = Server::spawn(entering);
        server.socket = self.seen_from_here(&server.socket);
        server
    }

    fn seen_from_here(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.keeper.id()));
        root.join(path.strip_prefix("/").unwrap())
    }

    /// Takes all the room that is left, until the file is removed.
    fn fill(&self) -> PathBuf {
        let path = self.seen_from_here(self.folder.path()).join("filler");
        let mut filler = File::create(&path).unwrap();
        let full = loop {
            if let Err(error) = filler.write_all(&[1; 4096]) {
                break error;
            }
        };
        assert_eq!(full.kind(), ErrorKind::StorageFull);
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

fn large(name: &str) -> String {
    format!("{}# {}\n", workload(name), "x".repeat(MANIFEST_BYTES))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_loses_nothing_and_is_written_again_when_there_is_room() {
    let disk = Disk::new();
    let server = disk.start();
    server.apply(MESH).await;
    let mut proxy = server.proxy("api").await;
    let token = server.token("api", 1).await;
    let mut kept: BTreeSet<String> = ["api".to_owned()].into();
    for round in 0..2 {
        let filler = disk.fill();
        let mut refusal = None;
        for number in 0..MANIFESTS_MAX {
            let name = format!("w{round}-{number}");
            match server.try_apply(&large(&name)).await {
                Ok(applied) => {
                    assert!(applied.diagnostics.is_empty(), "{:?}", applied.diagnostics);
                    kept.insert(name);
                }
                Err(status) => {
                    refusal = Some(status);
                    break;
                }
            }
        }
        let refusal = refusal.expect("more than there is room for was stored");
        assert_eq!(refusal.code(), Code::Unavailable, "{refusal}");
        assert!(refusal.message().starts_with("store-unavailable: "), "{refusal}");
        // A certificate that cannot be recorded is not given out.
        assert!(proxy.renew(server.control).await.is_err());
        assert!(enrol(server.control, &token).await.is_err());
        fs::remove_file(filler).unwrap();

        server.apply(&workload(&format!("after-{round}"))).await;
        kept.insert(format!("after-{round}"));
        let stored = server.workloads().await;
        assert!(stored.is_superset(&kept), "lost: {:?}", kept.difference(&stored));
        proxy.renew(server.control).await.unwrap();
    }
    // Killed without room, it starts when there is some.
    let filler = disk.fill();
    let _ = server.try_apply(&large("in-doubt")).await;
    tokio::task::spawn_blocking(|| server.kill()).await.unwrap();
    fs::remove_file(filler).unwrap();
    let server = tokio::task::block_in_place(|| disk.start());
    let stored = server.workloads().await;
    assert!(stored.is_superset(&kept), "lost: {:?}", kept.difference(&stored));
    enrol(server.control, &token).await.unwrap();
    proxy.renew(server.control).await.unwrap();
}
