//! File descriptors that are kept for when there are none left: to see tampering, and to destroy what has to be.

use std::fs::File;
use std::sync::{Mutex, PoisonError};

/// For a directory, a file in it, and one that somebody else was faster to take.
const DESCRIPTORS: usize = 3;

static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// Holds them, as far as there are any.
pub(crate) fn hold() {
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    while held.len() < DESCRIPTORS {
        let Ok(file) = File::open("/dev/null") else { return };
        held.push(file);
    }
}

/// Lets them go, for what follows at once.
pub(crate) fn lend() {
    HELD.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use nix::sys::resource::{Resource, setrlimit};

    use super::*;
    use crate::{Settings, Watch, give_up};

    const CHILD: &str = "SIGNET_TEST_WITHOUT_DESCRIPTORS";

    /// In a process of its own, for its limit is that of the process.
    #[test]
    fn tampering_is_seen_and_keys_are_destroyed_when_no_descriptor_is_left() {
        let name = "reserve::tests::tampering_is_seen_and_keys_are_destroyed_when_no_descriptor_is_left";
        if let Some(folder) = std::env::var_os(CHILD) {
            return without_descriptors(folder.as_ref());
        }
        let folder = tempfile::tempdir().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(CHILD, folder.path())
            .output()
            .unwrap();
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    }

    fn without_descriptors(folder: &std::path::Path) {
        let (sensor, key) = (folder.join("sensor"), folder.join("key"));
        std::fs::write(&sensor, "0").unwrap();
        std::fs::write(&key, "key").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let settings = Settings { file: Some(sensor.clone()), ..Settings::default() };
        let mut watch = Watch::start(&settings).unwrap();
        assert!(watch.noticed().is_none());
        std::fs::write(&sensor, "1").unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 48, 48).unwrap();
        let mut all = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            all.push(file);
        }
        let why = runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(30), watch.tampering()).await.expect("it is seen")
        });
        let surrender = give_up(folder, ["key"], &why, 7);
        assert!(surrender.failed.is_empty(), "{:?}", surrender.failed);
        drop(all);
        assert!(!key.exists() && folder.join(crate::MARKER).exists());
    }
}
