//! A connection to a TPM, and what is asked of it. Everything loaded is flushed again but the key in use: a TPM has room for
//! three.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use thiserror::Error;

use crate::object::{self, COORDINATE, EndorsementKey, POINT};
use crate::tpm::Place;
use crate::wire::{self, Code, Command, HEADER, RESPONSE_MAX, Reader, Refusal};

const CREATE_PRIMARY: u32 = 0x131;
const ACTIVATE_CREDENTIAL: u32 = 0x147;
const POLICY_SECRET: u32 = 0x151;
const SIGN: u32 = 0x15d;
const FLUSH_CONTEXT: u32 = 0x165;
const START_AUTH_SESSION: u32 = 0x176;

const OWNER: u32 = 0x4000_0001;
const NULL_HANDLE: u32 = 0x4000_0007;
const ENDORSEMENT: u32 = 0x4000_000b;

const NULL: u16 = 0x0010;
const SHA256: u16 = 0x000b;
const ECDSA: u16 = 0x0018;
const HASHCHECK: u16 = 0x8024;
const POLICY_SESSION: u8 = 1;

/// The key that was loaded is not, or not any more: a TPM that was reset forgets all of them.
const GONE: [u32; 2] = [0x910, 0x18b];
/// How often a TPM that says "not now" is asked again, and after how long: its own tests take a second or two.
const ASKED_AGAIN: u32 = 40;
const PAUSE: Duration = Duration::from_millis(100);
/// How long a socket may be silent. A device's driver has limits of its own.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(30);
/// Nonces that are tried for a key whose coordinates have their full length: one in 128 has not, where a TPM leaves zeros out.
const NONCES: u32 = 8;

/// What one is made from again; no other process can without it.
pub(crate) type Nonce = [u8; COORDINATE];

/// Why something was not done.
#[derive(Debug, Error)]
pub(crate) enum Fault {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("there is no randomness")]
    Random,
    #[error("a coordinate of its endorsement key is cut short, which is not supported")]
    Short,
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

struct Loaded {
    nonce: Nonce,
    handle: u32,
    point: Option<[u8; POINT]>,
}

/// A TPM. Not shared: one command follows the other.
pub(crate) struct Device {
    place: Place,
    stream: Option<Box<dyn Stream>>,
    loaded: Option<Loaded>,
}

impl Device {
    pub(crate) fn new(place: Place) -> Self {
        Self { place, stream: None, loaded: None }
    }

    /// Which TPM it is.
    pub(crate) fn endorsement_key(&mut self) -> Result<EndorsementKey, Fault> {
        self.again(|device| {
            let (handle, point) = device.endorse()?;
            device.flush(handle)?;
            let point = point.ok_or(Fault::Short)?;
            EndorsementKey::new(&point).map_err(|_| Fault::Refused(Refusal::Malformed))
        })
    }

    /// A new key for channels: its nonce and its public half.
    pub(crate) fn generate(&mut self) -> Result<(Nonce, [u8; POINT]), Fault> {
        let mut nonce = [0; COORDINATE];
        for _ in 0..NONCES {
            aws_lc_rs::rand::fill(&mut nonce).map_err(|_| Fault::Random)?;
            let point = self.again(|device| {
                device.load(&nonce)?;
                Ok(device.loaded.as_ref().and_then(|loaded| loaded.point))
            })?;
            if let Some(point) = point {
                return Ok((nonce, point));
            }
        }
        Err(Fault::Random)
    }

    /// The two halves of an ECDSA signature over a SHA-256.
    pub(crate) fn sign(&mut self, nonce: &Nonce, hash: &[u8]) -> Result<[Vec<u8>; 2], Fault> {
        self.again(|device| {
            let key = device.load(nonce)?;
            let command = Command::new(SIGN, &[key])
                .by_password()
                .sized(hash)
                .u16(ECDSA)
                .u16(SHA256)
                // The hash was not made by the TPM.
                .u16(HASHCHECK)
                .u32(NULL_HANDLE)
                .sized(&[]);
            let response = device.transmit(&command)?;
            let mut reader = parameters(wire::body(&response)?)?;
            if reader.u16()? != ECDSA || reader.u16()? != SHA256 {
                return Err(Refusal::Malformed.into());
            }
            Ok([reader.sized()?.to_vec(), reader.sized()?.to_vec()])
        })
    }

    /// What a credential for this key hides, see [`crate::challenge`].
    pub(crate) fn activate(
        &mut self,
        nonce: &Nonce,
        credential: &[u8],
        secret: &[u8],
    ) -> Result<Vec<u8>, Fault> {
        self.again(|device| {
            let key = device.load(nonce)?;
            let (endorsement, _) = device.endorse()?;
            let opened = device.open(key, endorsement, credential, secret);
            device.flush(endorsement)?;
            opened
        })
    }

    fn open(
        &mut self,
        key: u32,
        endorsement: u32,
        credential: &[u8],
        secret: &[u8],
    ) -> Result<Vec<u8>, Fault> {
        let mut nonce = [0; 16];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| Fault::Random)?;
        let start = Command::new(START_AUTH_SESSION, &[NULL_HANDLE, NULL_HANDLE])
            .sized(&nonce)
            .sized(&[])
            .u8(POLICY_SESSION)
            .u16(NULL)
            .u16(SHA256);
        let session = wire::body(&self.transmit(&start)?)?.u32()?;
        let policy = Command::new(POLICY_SECRET, &[ENDORSEMENT, session])
            .by_password()
            .sized(&[])
            .sized(&[])
            .sized(&[])
            .u32(0);
        let activate = Command::new(ACTIVATE_CREDENTIAL, &[key, endorsement])
            .by_password()
            .by_policy(session)
            .sized(credential)
            .sized(secret);
        let opened = self.transmit(&policy).and_then(|response| {
            wire::body(&response)?;
            let response = self.transmit(&activate)?;
            Ok(parameters(wire::body(&response)?)?.sized()?.to_vec())
        });
        if opened.is_err() {
            // It ends with the command that succeeds.
            self.flush(session)?;
        }
        opened
    }

    /// Forgets a key that is loaded.
    pub(crate) fn unload(&mut self, nonce: Option<&Nonce>) -> Result<(), Fault> {
        match self.loaded.take_if(|loaded| nonce.is_none_or(|nonce| *nonce == loaded.nonce)) {
            Some(Loaded { handle, .. }) => self.flush(handle),
            None => Ok(()),
        }
    }

    /// The handle of a key, which is made again if it is not the one that is loaded.
    fn load(&mut self, nonce: &Nonce) -> Result<u32, Fault> {
        if let Some(loaded) = self.loaded.as_ref().filter(|loaded| loaded.nonce == *nonce) {
            return Ok(loaded.handle);
        }
        self.unload(None)?;
        let template = object::channel_template(nonce);
        let (handle, point) = self.create_primary(OWNER, &template, 2 + COORDINATE + 2)?;
        self.loaded = Some(Loaded { nonce: *nonce, handle, point });
        Ok(handle)
    }

    fn endorse(&mut self) -> Result<(u32, Option<[u8; POINT]>), Fault> {
        self.create_primary(ENDORSEMENT, &object::endorsement_template(), 2 * (2 + COORDINATE))
    }

    fn create_primary(
        &mut self,
        hierarchy: u32,
        template: &[u8],
        unique_bytes: usize,
    ) -> Result<(u32, Option<[u8; POINT]>), Fault> {
        let command = Command::new(CREATE_PRIMARY, &[hierarchy])
            .by_password()
            // TPM2B_SENSITIVE_CREATE: no password, no data.
            .sized(&[0; 4])
            .sized(template)
            .sized(&[])
            // No PCRs.
            .u32(0);
        let response = self.transmit(&command)?;
        let mut reader = wire::body(&response)?;
        let handle = reader.u32()?;
        let made = parameters(reader).and_then(|mut reader| reader.sized());
        let point = made.and_then(|made| object::point_of(made, template, unique_bytes));
        match point {
            Ok(point) => Ok((handle, point)),
            Err(refusal) => {
                self.flush(handle)?;
                Err(refusal.into())
            }
        }
    }

    fn flush(&mut self, handle: u32) -> Result<(), Fault> {
        let response = self.transmit(&Command::new(FLUSH_CONTEXT, &[]).u32(handle))?;
        // One that was reset knows it no more, and nothing else could be done about it either.
        if let Err(refusal) = wire::body(&response) {
            tracing::debug!(%refusal, "the TPM does not flush a key");
        }
        Ok(())
    }

    /// Once more from the start when the connection broke or the TPM was reset meanwhile: nothing here changes a TPM for good.
    fn again<T>(&mut self, act: impl Fn(&mut Self) -> Result<T, Fault>) -> Result<T, Fault> {
        let was_open = self.stream.is_some();
        match act(self) {
            Err(Fault::Io(error)) if was_open && self.stream.is_none() => {
                tracing::warn!(%error, tpm = %self.place, "the connection to the TPM is opened anew");
            }
            Err(Fault::Refused(Refusal::Code(Code(code))))
                if GONE.contains(&code) && self.loaded.is_some() =>
            {
                self.loaded = None;
            }
            outcome => return outcome,
        }
        act(self)
    }

    /// Sends a command; the response is as received, but not one that says "not now".
    fn transmit(&mut self, command: &Command) -> Result<Vec<u8>, Fault> {
        let bytes = command.bytes();
        let mut asked = 0;
        loop {
            let response = self.exchange(&bytes).inspect_err(|_| {
                // Whatever comes late over it is the answer to something else.
                self.stream = None;
                self.loaded = None;
            })?;
            match wire::body(&response) {
                Err(Refusal::Code(code)) if code.is_for_now() && asked < ASKED_AGAIN => asked += 1,
                Err(Refusal::Malformed) => {
                    // Who knows what follows.
                    self.stream = None;
                    self.loaded = None;
                    return Ok(response);
                }
                _ => return Ok(response),
            }
            pause();
        }
    }

    fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => none.insert(connect(&self.place)?),
        };
        stream.write_all(command)?;
        let mut response = vec![0; RESPONSE_MAX];
        let mut received = 0;
        loop {
            let count = stream.read(response.get_mut(received..).unwrap_or_default())?;
            received += count;
            let size = wire::size_of(response.get(..received).unwrap_or_default());
            match size {
                Some(size) if size <= received => break,
                Some(size) if size > RESPONSE_MAX => return Err(io::ErrorKind::InvalidData.into()),
                _ if count == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ => {}
            }
        }
        if received < HEADER {
            return Err(io::ErrorKind::InvalidData.into());
        }
        response.truncate(received);
        Ok(response)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Err(error) = self.unload(None) {
            tracing::debug!(%error, "a key stays loaded in the TPM until it is reset");
        }
    }
}

fn connect(place: &Place) -> io::Result<Box<dyn Stream>> {
    Ok(match place {
        Place::Device(path) => Box::new(OpenOptions::new().read(true).write(true).open(path)?),
        Place::Socket(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(SOCKET_TIMEOUT))?;
            stream.set_write_timeout(Some(SOCKET_TIMEOUT))?;
            Box::new(stream)
        }
    })
}

/// Past the size of the parameters, which stands before them where a command had sessions.
fn parameters(mut reader: Reader<'_>) -> Result<Reader<'_>, Refusal> {
    reader.u32()?;
    Ok(reader)
}

#[expect(clippy::disallowed_methods, reason = "the TPM tells nobody when it is ready; the thread is its own")]
fn pause() {
    std::thread::sleep(PAUSE);
}
