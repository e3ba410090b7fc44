//! Netlink by hand: attributes, messages, and a connection that sends a batch and reads the kernel's answers.
//!
//! Only what three users need: the nf_tables transaction of [`super::nftables`], the links, addresses and routes
//! of the network lab, and one question about one socket. Attribute and message headers are in host order and padded to
//! four bytes; what stands inside an attribute is in the order its own subsystem wants, so both orders are offered by name.
//!
//! The kernel answers while `send` runs, so every answer is queued before the first read: reading never waits,
//! and a missing answer is an error, not a hang.

use std::fmt;
use std::io;

use netlink_sys::{Socket, SocketAddr, protocols};
use nix::errno::Errno;
use nix::libc;

/// Request flag: this message asks for an answer of its own.
pub const ACK: u16 = 0x4;
/// Request flag: create what is missing.
pub const CREATE: u16 = 0x400;
/// Request flag: refuse when it exists already.
pub const EXCLUSIVE: u16 = 0x200;
/// Request flag: add at the end.
pub const APPEND: u16 = 0x800;

const REQUEST: u16 = 0x1;
const DUMP: u16 = 0x300;
const DUMP_INTERRUPTED: u16 = 0x10;
const CAPPED: u16 = 0x100;
const EXTENDED_ACK: u16 = 0x200;

const NOOP: u16 = 1;
const ERROR: u16 = 2;
const DONE: u16 = 3;

const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
const NESTED: u16 = 0x8000;
const KIND_MASK: u16 = 0x3fff;
const EXTENDED_ACK_TEXT: u16 = 1;

/// One read: the kernel fills at most 32 KiB of a dump into one datagram.
const READ_BYTES: usize = 64 * 1024;
/// One dump: some thousand rules; a table that holds more is not ours.
const DUMP_BYTES: usize = 4 * 1024 * 1024;
/// A dump that other writers interrupt is repeated this often before the caller hears of it.
const DUMP_TRIES: usize = 16;

/// A list of attributes under construction: `kind`, length and value each, padded to four bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a value as it is.
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        // A value that does not fit gets a length that lies, which the kernel refuses; none of ours comes near.
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(padded(self.0.len()), 0);
        self
    }

    /// Adds a text, closed by a zero byte.
    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// Adds a number in network order, as nf_tables wants it.
    pub fn network_u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds a number in host order, as rtnetlink wants it.
    pub fn host_u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Adds a list inside the list.
    pub fn nest(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    /// The encoded list.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Splits an encoded list into (kind without flag bits, value) pairs.
///
/// # Errors
/// [`NetlinkError::Malformed`] when a length does not fit.
pub fn attributes(mut bytes: &[u8]) -> Result<Vec<(u16, &[u8])>, NetlinkError> {
    let mut list = Vec::new();
    while !bytes.is_empty() {
        let length = usize::from(host_u16(bytes, 0)?);
        let kind = host_u16(bytes, 2)? & KIND_MASK;
        let value = bytes.get(ATTRIBUTE_HEADER..length).ok_or(NetlinkError::Malformed)?;
        list.push((kind, value));
        bytes = bytes.get(padded(length)..).unwrap_or_default();
    }
    Ok(list)
}

/// One message to the kernel, without its header, which gets its sequence number when it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The message type, with the subsystem in the high byte where the protocol has subsystems.
    pub kind: u16,
    /// Flags beside "request": [`ACK`], [`CREATE`], [`APPEND`], [`EXCLUSIVE`].
    pub flags: u16,
    /// The protocol's fixed header and the attributes.
    pub body: Vec<u8>,
    /// What it asks for, in words: the kernel refuses with a number only.
    pub purpose: String,
}

impl Request {
    fn encode(&self, sequence: u32, extra_flags: u16, out: &mut Vec<u8>) {
        let length = u32::try_from(HEADER + self.body.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&length.to_ne_bytes());
        out.extend_from_slice(&self.kind.to_ne_bytes());
        out.extend_from_slice(&(self.flags | REQUEST | extra_flags).to_ne_bytes());
        out.extend_from_slice(&sequence.to_ne_bytes());
        out.extend_from_slice(&0u32.to_ne_bytes());
        out.extend_from_slice(&self.body);
        out.resize(padded(out.len()), 0);
    }
}

/// One message from the kernel: its type and what follows the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The message type.
    pub kind: u16,
    /// The protocol's fixed header and the attributes.
    pub body: Vec<u8>,
}

struct Received {
    flags: u16,
    sequence: u32,
    answer: Answer,
}

/// An open netlink socket. It belongs to the network namespace of the thread that opened it.
pub struct Connection {
    socket: Socket,
    next_sequence: u32,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("next_sequence", &self.next_sequence).finish_non_exhaustive()
    }
}

impl Connection {
    /// Opens a connection to the packet filter.
    ///
    /// # Errors
    /// [`NetlinkError::Open`], with `EPROTONOSUPPORT` where the kernel has no netfilter netlink.
    pub fn netfilter() -> Result<Self, NetlinkError> {
        Self::open(protocols::NETLINK_NETFILTER)
    }

    /// Opens a connection to links, addresses and routes.
    ///
    /// # Errors
    /// [`NetlinkError::Open`].
    pub fn route() -> Result<Self, NetlinkError> {
        Self::open(protocols::NETLINK_ROUTE)
    }

    /// Opens a connection to what the kernel knows of sockets. It needs no capability.
    ///
    /// # Errors
    /// [`NetlinkError::Open`].
    pub fn sockets() -> Result<Self, NetlinkError> {
        Self::open(protocols::NETLINK_SOCK_DIAG)
    }

    fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let open = || {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // Refusals then name the reason in words where the kernel has one, and do not repeat the request.
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        Ok(Self { socket: open().map_err(NetlinkError::Open)?, next_sequence: 1 })
    }

    /// Sends the requests in one datagram and reads until each one flagged [`ACK`] is answered.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`] names the first request the kernel refused.
    pub fn transact(&mut self, requests: &[Request]) -> Result<(), NetlinkError> {
        let first = self.send(requests, 0)?;
        let mut awaited = requests.iter().filter(|request| request.flags & ACK != 0).count();
        while awaited > 0 {
            for received in self.receive()? {
                let Some(request) = asked(requests, first, received.sequence) else { continue };
                if received.answer.kind != ERROR {
                    continue;
                }
                outcome(&received, request)?;
                awaited = awaited.saturating_sub(1);
            }
        }
        Ok(())
    }

    /// Asks a question that one message answers.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`] when there is nothing to tell.
    pub fn ask(&mut self, request: &Request) -> Result<Answer, NetlinkError> {
        let sequence = self.send(std::slice::from_ref(request), 0)?;
        let answers = self.receive()?;
        let received = answers.into_iter().find(|received| received.sequence == sequence);
        let received = received.ok_or(NetlinkError::NoAnswer)?;
        if received.answer.kind != ERROR {
            return Ok(received.answer);
        }
        // Success without an answer is no answer.
        outcome(&received, request).and(Err(NetlinkError::NoAnswer))
    }

    /// Asks for a list and returns all of it.
    ///
    /// # Errors
    /// [`NetlinkError::Interrupted`] when the list kept changing while it was read.
    pub fn dump(&mut self, request: &Request) -> Result<Vec<Answer>, NetlinkError> {
        for _ in 0..DUMP_TRIES {
            match self.dump_once(request) {
                Err(NetlinkError::Interrupted) => {}
                finished => return finished,
            }
        }
        Err(NetlinkError::Interrupted)
    }

    fn dump_once(&mut self, request: &Request) -> Result<Vec<Answer>, NetlinkError> {
        let first = self.send(std::slice::from_ref(request), DUMP)?;
        let mut list = Vec::new();
        let mut bytes = 0;
        let mut interrupted = false;
        loop {
            for received in self.receive()? {
                if received.sequence != first {
                    continue;
                }
                interrupted |= received.flags & DUMP_INTERRUPTED != 0;
                match received.answer.kind {
                    ERROR | DONE => {
                        outcome(&received, request)?;
                        return if interrupted { Err(NetlinkError::Interrupted) } else { Ok(list) };
                    }
                    NOOP => {}
                    _ => {
                        bytes += received.answer.body.len();
                        list.push(received.answer);
                    }
                }
            }
            if bytes > DUMP_BYTES {
                return Err(NetlinkError::TooLong { purpose: request.purpose.clone() });
            }
        }
    }

    fn send(&mut self, requests: &[Request], extra_flags: u16) -> Result<u32, NetlinkError> {
        let first = self.next_sequence;
        let mut datagram = Vec::new();
        for request in requests {
            request.encode(self.next_sequence, extra_flags, &mut datagram);
            self.next_sequence = self.next_sequence.wrapping_add(1);
        }
        let purpose = || requests.first().map(|request| request.purpose.clone()).unwrap_or_default();
        let sent = self.socket.send(&datagram, 0);
        let sent = sent.map_err(|source| NetlinkError::Transfer { purpose: purpose(), source })?;
        if sent == datagram.len() { Ok(first) } else { Err(NetlinkError::TooLong { purpose: purpose() }) }
    }

    fn receive(&mut self) -> Result<Vec<Received>, NetlinkError> {
        let mut datagram = Vec::with_capacity(READ_BYTES);
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        let read = self.socket.recv(&mut datagram, flags);
        let length = read.map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => NetlinkError::NoAnswer,
            _ => NetlinkError::Transfer { purpose: "read the kernel's answer".into(), source },
        })?;
        if length > datagram.len() { Err(NetlinkError::Malformed) } else { messages(&datagram) }
    }
}

fn messages(mut bytes: &[u8]) -> Result<Vec<Received>, NetlinkError> {
    let mut list = Vec::new();
    while !bytes.is_empty() {
        let length = host_u32(bytes, 0)? as usize;
        let body = bytes.get(HEADER..length).ok_or(NetlinkError::Malformed)?.to_vec();
        let answer = Answer { kind: host_u16(bytes, 4)?, body };
        list.push(Received { flags: host_u16(bytes, 6)?, sequence: host_u32(bytes, 8)?, answer });
        bytes = bytes.get(padded(length)..).unwrap_or_default();
    }
    Ok(list)
}

fn asked(requests: &[Request], first: u32, sequence: u32) -> Option<&Request> {
    requests.get(usize::try_from(sequence.wrapping_sub(first)).ok()?)
}

/// Reads the code at the head of an error or done message; zero is success.
fn outcome(received: &Received, request: &Request) -> Result<(), NetlinkError> {
    let body = &received.answer.body;
    if received.answer.kind == DONE && body.len() < 4 {
        return Ok(());
    }
    let code = host_u32(body, 0)?.cast_signed();
    if code == 0 {
        return Ok(());
    }
    let errno = Errno::from_raw(code.wrapping_neg());
    let text = extended_text(received).map(|text| format!(" ({text})")).unwrap_or_default();
    let sequence = received.sequence;
    Err(NetlinkError::Refused { sequence, purpose: request.purpose.clone(), errno, text, hint: hint(errno) })
}

/// The kernel's own words for a refusal, where it has any.
fn extended_text(received: &Received) -> Option<String> {
    if received.flags & EXTENDED_ACK == 0 {
        return None;
    }
    // The code, then the refused message's header, or all of it where the kernel could not cap it.
    let echoed = match received.flags & CAPPED {
        0 => padded(host_u32(&received.answer.body, 4).ok()? as usize),
        _ => HEADER,
    };
    let list = attributes(received.answer.body.get(4 + echoed..)?).ok()?;
    let (_, text) = list.into_iter().find(|(kind, _)| *kind == EXTENDED_ACK_TEXT)?;
    Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
}

fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM | Errno::EACCES => {
            "; it needs CAP_NET_ADMIN in the user namespace that owns this network namespace"
        }
        Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT => {
            "; the kernel lacks this part or its module is not loaded"
        }
        Errno::EBUSY => "; something else still uses it",
        Errno::EEXIST => "; it exists already",
        Errno::ENODEV => "; there is no such interface in this network namespace",
        _ => "",
    }
}

/// Why netlink did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// A list kept changing while it was read.
    #[error("the list kept changing while it was read")]
    Interrupted,
    /// A message of the kernel that cannot be decoded.
    #[error("the kernel's answer cannot be decoded")]
    Malformed,
    /// The kernel took the request and said nothing.
    #[error("the kernel did not answer")]
    NoAnswer,
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// The kernel refused one message of the batch; nothing of the batch is in force.
    #[error("the kernel refused message {sequence}, {purpose}: {errno}{text}{hint}")]
    Refused {
        /// The message's place in the conversation, counted from 1.
        sequence: u32,
        /// What it asked for.
        purpose: String,
        /// The kernel's error number.
        errno: Errno,
        /// The kernel's own words, in brackets, or nothing.
        text: String,
        /// What is probably missing, or nothing.
        hint: &'static str,
    },
    /// A request or a list beyond its bound.
    #[error("too long for one netlink conversation: {purpose}")]
    TooLong {
        /// What was asked for.
        purpose: String,
    },
    /// Sending or reading failed.
    #[error("netlink failed at {purpose}: {source}")]
    Transfer {
        /// What was asked for.
        purpose: String,
        /// The system's error.
        source: io::Error,
    },
}

impl NetlinkError {
    /// The error number behind it, where there is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Open(source) | Self::Transfer { source, .. } => source.raw_os_error().map(Errno::from_raw),
            Self::Interrupted | Self::Malformed | Self::NoAnswer | Self::TooLong { .. } => None,
        }
    }
}

fn padded(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn host_u16(bytes: &[u8], at: usize) -> Result<u16, NetlinkError> {
    let field = bytes.get(at..at + 2).and_then(|field| field.try_into().ok());
    field.map(u16::from_ne_bytes).ok_or(NetlinkError::Malformed)
}

fn host_u32(bytes: &[u8], at: usize) -> Result<u32, NetlinkError> {
    let field = bytes.get(at..at + 4).and_then(|field| field.try_into().ok());
    field.map(u32::from_ne_bytes).ok_or(NetlinkError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested() {
        let list = Attributes::new().text(1, "lo").nest(2, Attributes::new().network_u32(3, 0x5167));
        let bytes = [
            &7u16.to_ne_bytes()[..],
            &1u16.to_ne_bytes(),
            b"lo\0\0",
            &12u16.to_ne_bytes(),
            &0x8002u16.to_ne_bytes(),
            &8u16.to_ne_bytes(),
            &3u16.to_ne_bytes(),
            &[0, 0, 0x51, 0x67],
        ]
        .concat();
        assert_eq!(list.clone().into_bytes(), bytes);
        assert_eq!(attributes(&bytes).unwrap(), [(1, &b"lo\0"[..]), (2, &bytes[12..])]);
    }

    #[test]
    fn attribute_lengths_that_lie_are_refused() {
        for bytes in [&[3, 0, 1, 0][..], &[9, 0, 1, 0, 1, 2, 3, 4], &[4, 0, 1]] {
            assert!(matches!(attributes(bytes), Err(NetlinkError::Malformed)), "{bytes:?}");
        }
        for bytes in [&[0; 16][..], &[20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[16, 0, 0]] {
            assert!(matches!(messages(bytes), Err(NetlinkError::Malformed)), "{bytes:?}");
        }
    }

    #[test]
    fn refusal_names_the_request_and_the_reason() {
        let request = Request { kind: 0, flags: ACK, body: Vec::new(), purpose: "add table signet".into() };
        let body = [&(-1i32).to_ne_bytes()[..], &[0; HEADER]].concat();
        let received = Received { flags: CAPPED, sequence: 7, answer: Answer { kind: ERROR, body } };
        let refusal = outcome(&received, &request).unwrap_err();
        assert_eq!(refusal.errno(), Some(Errno::EPERM));
        assert_eq!(
            refusal.to_string(),
            "the kernel refused message 7, add table signet: EPERM: Operation not permitted; \
             it needs CAP_NET_ADMIN in the user namespace that owns this network namespace"
        );
    }

    #[test]
    fn kernel_text_is_passed_on() {
        let request = Request { kind: 0, flags: ACK, body: Vec::new(), purpose: "add route".into() };
        let text = Attributes::new().text(EXTENDED_ACK_TEXT, "Nexthop has invalid gateway").into_bytes();
        let body = [&(-22i32).to_ne_bytes()[..], &[0; HEADER], &text].concat();
        let answer = Answer { kind: ERROR, body };
        let received = Received { flags: CAPPED | EXTENDED_ACK, sequence: 1, answer };
        let words = outcome(&received, &request).unwrap_err().to_string();
        assert!(words.ends_with("EINVAL: Invalid argument (Nexthop has invalid gateway)"), "{words}");
    }
}
