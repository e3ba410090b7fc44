//! A device's TPM for many who ask.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use signet_identity::{Apart, HeldKey, KeyModule, KeyModuleError, Unanswered, ecdsa_signature, hex, unhex};
use thiserror::Error;

use crate::credential::Challenge;
use crate::device::{Device, Fault, Nonce};
use crate::object::EndorsementKey;

/// Who waits for the TPM: more handshakes at a time than a chip does in a second or two.
const WAITING_MAX: usize = 16;
/// How long one waits: a slow chip makes a key in a second.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a TPM is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The kernel's device: `/dev/tpmrm0`, which lets others use the TPM too.
    Device(PathBuf),
    /// A Unix socket that speaks as the device does, such as swtpm's.
    Socket(PathBuf),
}

impl FromStr for Place {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (place, path): (fn(PathBuf) -> Self, _) = match text.strip_prefix("unix:") {
            Some(path) => (Self::Socket, path),
            None => (Self::Device, text),
        };
        if path.starts_with('/') {
            Ok(place(path.into()))
        } else {
            Err("give the absolute path of a device, such as /dev/tpmrm0, or unix:PATH of a socket")
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(path) => write!(f, "{}", path.display()),
            Self::Socket(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why the TPM did not do what it was asked for.
#[derive(Debug, Error)]
pub enum TpmError {
    /// Too many wait for it.
    #[error("the TPM at {0} has too much to do")]
    Busy(Place),
    /// It cannot, or is not there.
    #[error("the TPM at {place}: {why}")]
    Failed {
        /// Where it is.
        place: Place,
        /// Why, in words without secrets.
        why: String,
    },
    /// The name of the key is none that it gave.
    #[error("the name of the key is none that a TPM's key has")]
    Reference,
    /// It hangs.
    #[error("the TPM at {0} does not answer")]
    Silent(Place),
    /// There is no thread for it.
    #[error("no thread can be started for the TPM: {0}")]
    Thread(std::io::Error),
}

/// A TPM. Cheap to clone; the thread that talks to it ends with the last.
#[derive(Clone)]
pub struct Tpm {
    place: Place,
    device: Arc<Apart<Device>>,
    /// That it does not sign was said: strangers can have it asked as often as they like.
    failure_told: Arc<AtomicBool>,
}

impl Tpm {
    /// Starts the thread. The TPM is looked at when it is first asked.
    ///
    /// # Errors
    /// [`TpmError::Thread`].
    pub fn new(place: Place) -> Result<Self, TpmError> {
        let device = Apart::new("tpm", Device::new(place.clone()), WAITING_MAX, ANSWER_TIMEOUT);
        Ok(Self { place, device: Arc::new(device.map_err(TpmError::Thread)?), failure_told: Arc::default() })
    }

    /// Which TPM it is. Blocks.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn endorsement_key(&self) -> Result<EndorsementKey, TpmError> {
        self.ask(Device::endorsement_key)
    }

    /// What a challenge for a key of this TPM hides: proof that it is this TPM's. Blocks.
    ///
    /// # Errors
    /// [`TpmError`], also when the challenge is for another TPM or key.
    pub fn activate(&self, reference: &str, challenge: &Challenge) -> Result<Vec<u8>, TpmError> {
        let (nonce, challenge) = (nonce(reference)?, challenge.clone());
        self.ask(move |device| device.activate(&nonce, &challenge.credential, &challenge.secret))
    }

    fn ask<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Device) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, TpmError> {
        let answer = self.device.ask(act).map_err(|why| match why {
            Unanswered::Busy => TpmError::Busy(self.place.clone()),
            Unanswered::Silent => TpmError::Silent(self.place.clone()),
        })?;
        answer.map_err(|fault| TpmError::Failed { place: self.place.clone(), why: fault.to_string() })
    }
}

impl fmt::Debug for Tpm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tpm").field(&self.place).finish()
    }
}

impl KeyModule for Tpm {
    fn generate(&self) -> Result<HeldKey, KeyModuleError> {
        let (nonce, point) = self.ask(Device::generate)?;
        Ok(HeldKey { reference: hex(&nonce), point: point.to_vec() })
    }

    fn sign(&self, reference: &str, message: &[u8]) -> Result<Vec<u8>, KeyModuleError> {
        let (nonce, hash) = (nonce(reference)?, digest(&SHA256, message));
        let signed = self.ask(move |device| device.sign(&nonce, hash.as_ref()));
        let is_told = self.failure_told.swap(signed.is_err(), Ordering::Relaxed);
        let [r, s] = signed.inspect_err(|error| {
            if !is_told {
                tracing::error!(%error, "nothing is signed; said again when it has signed and fails once more");
            }
        })?;
        ecdsa_signature(&r, &s)
            .ok_or_else(|| KeyModuleError("the TPM's signature is none of P-256".to_owned()))
    }

    /// The TPM forgets it. Whoever still has the reference can have it made again.
    fn destroy(&self, reference: &str) -> Result<(), KeyModuleError> {
        let nonce = nonce(reference)?;
        Ok(self.ask(move |device| device.unload(Some(&nonce)))?)
    }
}

impl From<TpmError> for KeyModuleError {
    fn from(error: TpmError) -> Self {
        Self(error.to_string())
    }
}

fn nonce(reference: &str) -> Result<Nonce, TpmError> {
    unhex(reference).ok_or(TpmError::Reference)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_place_is_a_device_or_a_socket() {
        for text in ["/dev/tpmrm0", "unix:/run/swtpm.sock"] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        for bad in ["", "tpmrm0", "unix:", "unix:relative", "tcp:127.0.0.1:2321"] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_tpm_that_is_not_there_or_talks_nonsense_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tpm.sock");
        let tpm = Tpm::new(Place::Socket(path.clone())).unwrap();
        let error = tpm.endorsement_key().unwrap_err().to_string();
        assert!(error.contains("tpm.sock") && error.contains("No such file"), "{error}");

        let listener = UnixListener::bind(&path).unwrap();
        let nonsense = [
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            // Shorter than a header; longer than any response; a success with nothing in it.
            &[0x80, 0x01, 0, 0, 0, 4, 0, 0],
            &[0x80, 0x01, 0xff, 0, 0, 0, 0, 0, 0, 0],
            &[0x80, 0x02, 0, 0, 0, 10, 0, 0, 0, 0],
        ];
        let server = std::thread::spawn(move || {
            use std::io::{Read, Write};
            for answer in nonsense {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 4096]).unwrap();
                stream.write_all(answer).unwrap();
            }
        });
        for answer in nonsense {
            assert!(tpm.endorsement_key().is_err(), "{answer:?}");
        }
        server.join().unwrap();
    }
}
