//! Commands and responses as bytes (part 1, section 18; part 3, section 5): big-endian numbers, and byte strings with their
//! length in two bytes before them.

use std::fmt;

use thiserror::Error;

/// Bytes of tag, size and code.
pub(crate) const HEADER: usize = 10;
/// The longest response: what no TPM's buffer exceeds.
pub(crate) const RESPONSE_MAX: usize = 4096;

const NO_SESSIONS: u16 = 0x8001;
const SESSIONS: u16 = 0x8002;

/// An empty password, which is what the owner's and endorsement hierarchies and keys without a password have.
const PASSWORD: u32 = 0x4000_0009;
const CONTINUE_SESSION: u8 = 1;

/// A command that is being written.
pub(crate) struct Command {
    code: u32,
    handles: Vec<u8>,
    sessions: Vec<u8>,
    parameters: Vec<u8>,
}

impl Command {
    pub(crate) fn new(code: u32, handles: &[u32]) -> Self {
        let handles = handles.iter().flat_map(|handle| handle.to_be_bytes()).collect();
        Self { code, handles, sessions: Vec::new(), parameters: Vec::new() }
    }

    /// Authorises the next handle with an empty password.
    pub(crate) fn by_password(mut self) -> Self {
        self.session(PASSWORD, CONTINUE_SESSION);
        self
    }

    /// Authorises the next handle with a policy session, which ends with this command.
    pub(crate) fn by_policy(mut self, session: u32) -> Self {
        self.session(session, 0);
        self
    }

    fn session(&mut self, handle: u32, attributes: u8) {
        self.sessions.extend(handle.to_be_bytes());
        self.sessions.extend([0, 0, attributes, 0, 0]);
    }

    pub(crate) fn u8(mut self, value: u8) -> Self {
        self.parameters.push(value);
        self
    }

    pub(crate) fn u16(mut self, value: u16) -> Self {
        self.parameters.extend(value.to_be_bytes());
        self
    }

    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.parameters.extend(value.to_be_bytes());
        self
    }

    /// A byte string, with its length. None here is longer than a few hundred bytes.
    pub(crate) fn sized(mut self, bytes: &[u8]) -> Self {
        self.parameters.extend(sized(bytes));
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let has_sessions = !self.sessions.is_empty();
        let tag = if has_sessions { SESSIONS } else { NO_SESSIONS };
        let sessions = if has_sessions {
            [&(self.sessions.len() as u32).to_be_bytes(), self.sessions.as_slice()].concat()
        } else {
            Vec::new()
        };
        let size = HEADER + self.handles.len() + sessions.len() + self.parameters.len();
        let header =
            [&tag.to_be_bytes()[..], &(size as u32).to_be_bytes(), &self.code.to_be_bytes()].concat();
        [header, self.handles.clone(), sessions, self.parameters.clone()].concat()
    }
}

/// A byte string with its length before it.
pub(crate) fn sized(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    let bytes = bytes.get(..usize::from(length)).unwrap_or_default();
    [&length.to_be_bytes(), bytes].concat()
}

/// Why the TPM did not do it.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum Refusal {
    #[error("its answer is no TPM 2.0 response")]
    Malformed,
    #[error("{0}")]
    Code(Code),
}

/// A response code (part 2, section 6.6).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Code(pub(crate) u32);

impl Code {
    /// Whether the same command may succeed a moment later.
    pub(crate) fn is_for_now(self) -> bool {
        // TPM_RC_YIELDED, TPM_RC_TESTING, TPM_RC_RETRY.
        matches!(self.0, 0x908 | 0x90a | 0x922)
    }

    fn meaning(self) -> Option<&'static str> {
        const FORMAT_ONE: u32 = 0x080;
        let base = if self.0 & FORMAT_ONE == 0 { self.0 } else { self.0 & 0x0bf };
        Some(match base {
            0x100 => "it was not started: TPM2_Startup is missing",
            0x101 => "it is in failure mode",
            0x084 => "a value is none that it knows",
            0x08b => "the handle is not of the right kind, or its key is gone",
            0x08e | 0x0a2 => "a hierarchy or key has a password",
            0x09f => "the credential is not for this key in this TPM",
            0x902..=0x904 => "it has no room for another key or session",
            0x910 => "a key that was loaded is gone",
            0x921 => "it is locked out after too many wrong passwords",
            _ => return None,
        })
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.meaning() {
            Some(meaning) => write!(f, "{meaning} (code {:#05x})", self.0),
            None => write!(f, "code {:#05x}", self.0),
        }
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// How long a response says that it is; `None` before its header is there.
pub(crate) fn size_of(received: &[u8]) -> Option<usize> {
    let size = received.get(2..6)?;
    usize::try_from(u32::from_be_bytes(size.try_into().ok()?)).ok()
}

/// What follows a whole response's header; an error for what is none, or whose code says so.
pub(crate) fn body(response: &[u8]) -> Result<Reader<'_>, Refusal> {
    if size_of(response) != Some(response.len()) {
        return Err(Refusal::Malformed);
    }
    let mut reader = Reader(response);
    let tag = reader.u16()?;
    reader.u32()?;
    match reader.u32()? {
        0 if matches!(tag, NO_SESSIONS | SESSIONS) => Ok(reader),
        0 => Err(Refusal::Malformed),
        code => Err(Refusal::Code(Code(code))),
    }
}

/// Reads from the front.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Refusal> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Refusal::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Refusal> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes(bytes.try_into().map_err(|_| Refusal::Malformed)?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Refusal> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes(bytes.try_into().map_err(|_| Refusal::Malformed)?))
    }

    /// A byte string, by the length before it.
    pub(crate) fn sized(&mut self) -> Result<&'a [u8], Refusal> {
        let length = self.u16()?;
        self.take(length.into())
    }

    /// Nothing may be left.
    pub(crate) fn finish(self) -> Result<(), Refusal> {
        if self.0.is_empty() { Ok(()) } else { Err(Refusal::Malformed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_written_as_the_specification_lays_them_out() {
        let flush = Command::new(0x165, &[]).u32(0x8000_0001).bytes();
        assert_eq!(flush, [0x80, 0x01, 0, 0, 0, 14, 0, 0, 1, 0x65, 0x80, 0, 0, 1]);
        let authorised = Command::new(0x15d, &[0x8000_0001]).by_password().sized(&[7, 8]).bytes();
        assert_eq!(
            authorised,
            [
                &[0x80, 0x02, 0, 0, 0, 31, 0, 0, 1, 0x5d, 0x80, 0, 0, 1][..],
                &[0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 1, 0, 0],
                &[0, 2, 7, 8],
            ]
            .concat()
        );
    }

    #[test]
    fn responses_are_read_whole_or_refused() {
        let response = [0x80, 0x01, 0, 0, 0, 14, 0, 0, 0, 0, 0, 2, 9, 9];
        let mut reader = body(&response).unwrap();
        assert_eq!(reader.sized().unwrap(), [9, 9]);
        reader.finish().unwrap();
        for cut in 0..response.len() {
            assert!(body(&response[..cut]).is_err(), "{cut} bytes");
        }
        assert!(Reader::new(&[0, 3, 1, 2]).sized().is_err());
        assert!(Reader::new(&[1]).finish().is_err());
        let refused = [0x80, 0x01, 0, 0, 0, 10, 0, 0, 1, 0];
        assert_eq!(body(&refused).err(), Some(Refusal::Code(Code(0x100))));
        assert!(Code(0x100).to_string().contains("TPM2_Startup"));
        // Format one: the number of handle, session or parameter stands beside the error.
        assert!(Code(0x1df).to_string().contains("not for this key"), "{}", Code(0x1df));
    }
}
