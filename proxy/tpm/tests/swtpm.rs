//! A TPM of its own for each test: swtpm, which is the TCG's reference implementation behind a socket.

use std::path::{Path, PathBuf};
use std::process::Command;

use signet_identity::{ChannelKeyRequest, KeyModule, Keys, requested_point};
use signet_tpm::{Place, Tpm, TpmError, challenge};

const SECRET: [u8; 32] = [7; 32];

/// A running swtpm, with its state in a folder.
struct Chip {
    folder: PathBuf,
}

impl Chip {
    /// Returns when its socket is there: it goes to the background then.
    fn start(folder: &Path) -> Self {
        let file = |name: &str| folder.join(name).display().to_string();
        let started = Command::new("swtpm")
            .args(["socket", "--tpm2", "--daemon", "--flags", "not-need-init,startup-clear"])
            .args(["--tpmstate", &format!("dir={}", folder.display())])
            .args(["--server", &format!("type=unixio,path={}", file("tpm.sock"))])
            .args(["--pid", &format!("file={}", file("pid")), "--log", &format!("file={}", file("log"))])
            .status();
        assert!(started.expect("swtpm is not installed").success());
        Self { folder: folder.to_owned() }
    }

    fn place(&self) -> Place {
        Place::Socket(self.folder.join("tpm.sock"))
    }
}

impl Drop for Chip {
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(self.folder.join("pid")).unwrap_or_default();
        let pid = pid.trim();
        let _ = Command::new("kill").args(["-9", pid]).status();
        // Until the kernel has let it go; it is somebody else's child.
        while Path::new("/proc").join(pid).join("fd/0").exists() && !pid.is_empty() {
            std::thread::yield_now();
        }
        let _ = std::fs::remove_file(self.folder.join("tpm.sock"));
    }
}

fn chip() -> (tempfile::TempDir, Chip) {
    let folder = tempfile::tempdir().expect("no folder");
    let chip = Chip::start(folder.path());
    (folder, chip)
}

#[test]
fn a_key_of_the_tpm_signs_what_it_is_given_and_is_the_same_after_a_restart() {
    let (folder, chip) = chip();
    let tpm = Tpm::new(chip.place()).unwrap();
    let key = tpm.generate().unwrap();
    let endorsement = tpm.endorsement_key().unwrap();
    drop(chip);
    let error = tpm.sign(&key.reference, b"message").unwrap_err().to_string();
    assert!(error.contains("tpm.sock"), "{error}");

    // The same TPM, reset: it has forgotten what was loaded. The connection is opened anew by itself.
    let _chip = Chip::start(folder.path());
    let point = aws_lc_rs::signature::UnparsedPublicKey::new(
        &aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1,
        key.point.clone(),
    );
    for message in [&b"message"[..], b"", &[9; 5000]] {
        point.verify(message, &tpm.sign(&key.reference, message).unwrap()).unwrap();
    }
    assert_eq!(tpm.endorsement_key().unwrap(), endorsement);
}

#[test]
fn only_the_tpm_that_holds_both_keys_opens_a_challenge() {
    let ((_one, chip), (_other, elsewhere)) = (chip(), chip());
    let (tpm, other) = (Tpm::new(chip.place()).unwrap(), Tpm::new(elsewhere.place()).unwrap());
    let (endorsement, key) = (tpm.endorsement_key().unwrap(), tpm.generate().unwrap());
    let made = challenge(&endorsement, &key.point, &SECRET).unwrap();
    assert_eq!(tpm.activate(&key.reference, &made).unwrap(), SECRET);

    let refused =
        |outcome: Result<Vec<u8>, TpmError>| assert!(matches!(outcome, Err(TpmError::Failed { .. })));
    // Another TPM; another key of the same; a key of the other TPM; a credential that was altered.
    refused(other.activate(&key.reference, &made));
    refused(tpm.activate(&tpm.generate().unwrap().reference, &made));
    let foreign = challenge(&endorsement, &other.generate().unwrap().point, &SECRET).unwrap();
    refused(tpm.activate(&key.reference, &foreign));
    let mut altered = made.clone();
    *altered.credential.last_mut().unwrap() ^= 1;
    refused(tpm.activate(&key.reference, &altered));
    // Nothing that was refused is left in it: there is room for three keys and sessions.
    for _ in 0..8 {
        refused(tpm.activate(&key.reference, &altered));
    }
    assert_eq!(tpm.activate(&key.reference, &made).unwrap(), SECRET);
}

#[test]
fn a_key_that_is_not_the_tpms_own_cannot_be_passed_off_as_one() {
    let (_folder, chip) = chip();
    let tpm = Tpm::new(chip.place()).unwrap();
    // In memory, with the TPM at hand: its name is of no key that the TPM has loaded.
    let outside = requested_point(&ChannelKeyRequest::new(&Keys::Memory).unwrap().csr).unwrap();
    let made = challenge(&tpm.endorsement_key().unwrap(), &outside, &SECRET).unwrap();
    assert!(tpm.activate(&tpm.generate().unwrap().reference, &made).is_err());
}

#[test]
fn several_keys_take_turns_in_one_place() {
    let (_folder, chip) = chip();
    let tpm = Tpm::new(chip.place()).unwrap();
    let keys = [(); 5].map(|()| tpm.generate().unwrap());
    std::thread::scope(|scope| {
        for key in &keys {
            let tpm = tpm.clone();
            scope.spawn(move || {
                for _ in 0..3 {
                    tpm.sign(&key.reference, b"message").unwrap();
                }
            });
        }
    });
    keys.iter().for_each(|key| tpm.destroy(&key.reference).unwrap());
}
