//! Watches an interface: what passes, whether it is TLS, and whether byte strings appear that must not.
//!
//! Each direction of a TCP connection is a [`Flow`]. Byte strings are looked for in every frame and across the borders
//! of consecutive segments. A tap on a switch port sees each frame once, as it is on the wire.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, IoSliceMut, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvmsg, setsockopt,
    socket, sockopt,
};

use super::{LabError, Namespace};

/// Frames that wait for the reader; the kernel grants what its limits allow.
const QUEUE_BYTES: usize = 32 * 1024 * 1024;
/// Virtual links pass segments of up to 64 KiB uncut.
const FRAME_BYTES: usize = 128 * 1024;
/// A lab has some hundred connections; beyond this, new ones are counted but not followed.
const MAX_FLOWS: usize = 16_384;
/// A post-quantum ClientHello with some extensions is below 3 KiB.
const OPENING_BYTES: usize = 4096;

/// A running watch. Dropping it ends it.
pub struct Tap {
    questions: Sender<Sender<TapReport>>,
    wake: OwnedFd,
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tap").finish_non_exhaustive()
    }
}

/// What has passed so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TapReport {
    /// Frames seen.
    pub frames: u64,
    /// Bytes of these frames, link headers included.
    pub bytes: u64,
    /// Frames the kernel had to drop because the reader was too slow: when not zero, absence proves nothing.
    pub lost: u64,
    /// Each direction of each TCP connection, in the order of appearance.
    pub flows: Vec<Flow>,
    /// Each canary in each flow it was seen in, once.
    pub sightings: Vec<Sighting>,
}

/// One direction of a TCP connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Who sends.
    pub source: SocketAddr,
    /// Who receives.
    pub destination: SocketAddr,
    /// Segments, empty ones included.
    pub segments: u64,
    /// Bytes of payload, repetitions included.
    pub bytes: u64,
    /// How the payload begins.
    pub opening: Opening,
}

/// How a flow begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// A TLS client.
    ClientHello(ClientHello),
    /// No payload yet, or the beginning was not seen.
    Nothing,
    /// Something else; at most its first 16 bytes.
    Other(Vec<u8>),
    /// A TLS handshake record that is no ClientHello: a TLS server.
    TlsServer,
}

/// What a TLS client says in clear.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// The application protocols it offers, such as `mesh-h2/1`.
    pub alpn: Vec<String>,
    /// The server name it asks for.
    pub server_name: Option<String>,
    /// The groups it offers a key for, in order.
    pub key_shares: Vec<u16>,
}

/// A byte string that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Which.
    pub canary: Vec<u8>,
    /// The frame it was seen in, or ended in, counted from 1.
    pub frame: u64,
    /// Source and destination, if the frame is TCP.
    pub flow: Option<(SocketAddr, SocketAddr)>,
}

impl TapReport {
    /// Whether any flow offers this application protocol.
    pub fn offers(&self, alpn: &str) -> bool {
        let offers = |flow: &Flow| match &flow.opening {
            Opening::ClientHello(hello) => hello.alpn.iter().any(|offered| offered == alpn),
            _ => false,
        };
        self.flows.iter().any(offers)
    }

    /// Flows with payload that does not begin as TLS.
    pub fn in_clear(&self) -> Vec<&Flow> {
        let clear = |flow: &&Flow| match flow.opening {
            Opening::ClientHello(_) | Opening::TlsServer => false,
            Opening::Nothing => flow.bytes > 0,
            Opening::Other(_) => true,
        };
        self.flows.iter().filter(clear).collect()
    }
}

impl Tap {
    /// Watches an interface of the namespace from now on, looking for the canaries; with `pcap`, every frame is also
    /// written to that file in the format packet analysers read.
    ///
    /// # Errors
    /// [`LabError::System`] names the step.
    pub fn start(
        namespace: &Namespace,
        interface: &str,
        canaries: &[&[u8]],
        pcap: Option<&Path>,
    ) -> Result<Self, LabError> {
        let named = interface.to_owned();
        let (tap_socket, index) = namespace.run(move || open(&named))??;
        let pcap = pcap.map(Pcap::create).transpose()?;
        let canaries = canaries.iter().filter(|canary| !canary.is_empty()).map(|canary| canary.to_vec()).collect();
        let (questions, asked) = channel();
        let pair = std::os::unix::net::UnixStream::pair();
        let (wake, woken) = pair.map_err(|error| LabError::system("make a socket pair", error))?;
        let watch = Watch { socket: tap_socket, index, pcap, seen: Seen::new(canaries) };
        namespace.thread("tap", move || watch.run(&asked, &woken))?;
        Ok(Self { questions, wake: wake.into() })
    }

    /// What has passed; every frame that was on the interface before this call is in it.
    ///
    /// # Errors
    /// [`LabError::System`] when the watch has failed.
    pub fn report(&self) -> Result<TapReport, LabError> {
        let (reply, answer) = channel();
        let failed = || LabError::system("ask the tap", io::Error::from(io::ErrorKind::BrokenPipe));
        self.questions.send(reply).map_err(|_| failed())?;
        nix::unistd::write(&self.wake, &[1]).map_err(|error| LabError::system("wake the tap", error))?;
        answer.recv().map_err(|_| failed())
    }
}

fn open(interface: &str) -> Result<(OwnedFd, usize), LabError> {
    let step = |what: &str| {
        let what = format!("{what} for a tap on {interface}");
        move |error: Errno| LabError::system(what, error)
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let opened = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll);
    let opened = opened.map_err(step("open a packet socket"))?;
    let is_it = |address: nix::ifaddrs::InterfaceAddress| {
        if address.interface_name == interface { address.address?.as_link_addr().copied() } else { None }
    };
    let address = getifaddrs().map_err(step("list interfaces"))?.find_map(is_it);
    let address = address.ok_or(Errno::ENODEV).map_err(step("find the interface"))?;
    // Only the machine's own root may go beyond the limit for queues; otherwise as far as the limit allows.
    if setsockopt(&opened, sockopt::RcvBufForce, &QUEUE_BYTES).is_err() {
        setsockopt(&opened, sockopt::RcvBuf, &QUEUE_BYTES).map_err(step("size the queue"))?;
    }
    setsockopt(&opened, sockopt::RxqOvfl, &1).map_err(step("count losses"))?;
    bind(opened.as_raw_fd(), &address).map_err(step("bind"))?;
    Ok((opened, address.ifindex()))
}

struct Watch {
    socket: OwnedFd,
    index: usize,
    pcap: Option<Pcap>,
    seen: Seen,
}

impl Watch {
    /// Reads until nobody can ask any more.
    fn run(mut self, asked: &Receiver<Sender<TapReport>>, woken: &impl AsFd) {
        let mut buffer = vec![0; FRAME_BYTES];
        loop {
            if self.read_queue(&mut buffer).is_err() {
                return;
            }
            match asked.try_recv() {
                Ok(reply) => {
                    // The question came after frames that may have been queued since the last look.
                    if self.read_queue(&mut buffer).is_err() {
                        return;
                    }
                    if let Some(pcap) = &mut self.pcap {
                        pcap.flush();
                    }
                    // Nobody waits for the answer any more: nothing to tell.
                    let _ = reply.send(self.seen.report());
                    let _ = nix::unistd::read(woken, &mut [0]);
                }
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => {
                    let mut sources = [
                        PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
                        PollFd::new(woken.as_fd(), PollFlags::POLLIN),
                    ];
                    if !matches!(poll(&mut sources, PollTimeout::NONE), Ok(_) | Err(Errno::EINTR)) {
                        return;
                    }
                }
            }
        }
    }

    fn read_queue(&mut self, buffer: &mut [u8]) -> Result<(), Errno> {
        let mut control = cmsg_space!(u32);
        loop {
            let mut slices = [IoSliceMut::new(buffer)];
            let flags = MsgFlags::MSG_DONTWAIT;
            let (length, index, lost) = match recvmsg::<LinkAddr>(self.socket.as_raw_fd(), &mut slices, Some(&mut control), flags) {
                Ok(message) => {
                    let lost = message.cmsgs()?.find_map(|control| match control {
                        ControlMessageOwned::RxqOvfl(lost) => Some(lost),
                        _ => None,
                    });
                    (message.bytes, message.address.map(|address| address.ifindex()), lost)
                }
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => continue,
                // The interface went down or away; what passed before still counts.
                Err(Errno::ENETDOWN | Errno::ENODEV) => continue,
                Err(error) => return Err(error),
            };
            // Between opening and binding the socket hears every interface.
            if index != Some(self.index) {
                continue;
            }
            let frame = buffer.get(..length).unwrap_or_default();
            if let Some(pcap) = &mut self.pcap {
                pcap.write(frame);
            }
            self.seen.frame(frame, lost);
        }
    }
}

/// The part without sockets.
struct Seen {
    canaries: Vec<Vec<u8>>,
    frames: u64,
    bytes: u64,
    lost: u64,
    order: Vec<(SocketAddr, SocketAddr)>,
    flows: HashMap<(SocketAddr, SocketAddr), Stream>,
    sighted: HashSet<(usize, Option<(SocketAddr, SocketAddr)>)>,
    sightings: Vec<Sighting>,
}

#[derive(Default)]
struct Stream {
    segments: u64,
    bytes: u64,
    next: Option<u32>,
    opening: Vec<u8>,
    opening_complete: bool,
    /// The end of what came before, one byte shorter than the longest canary.
    tail: Vec<u8>,
}

struct Segment<'a> {
    flow: (SocketAddr, SocketAddr),
    sequence: u32,
    syn: bool,
    payload: &'a [u8],
}

impl Seen {
    fn new(canaries: Vec<Vec<u8>>) -> Self {
        Self {
            canaries,
            frames: 0,
            bytes: 0,
            lost: 0,
            order: Vec::new(),
            flows: HashMap::new(),
            sighted: HashSet::new(),
            sightings: Vec::new(),
        }
    }

    fn frame(&mut self, frame: &[u8], lost: Option<u32>) {
        self.frames += 1;
        self.bytes += frame.len() as u64;
        self.lost = lost.map_or(self.lost, u64::from);
        let segment = tcp_segment(frame);
        let flow = segment.as_ref().map(|segment| segment.flow);
        self.search(frame, flow);
        let Some(segment) = segment else { return };
        if !self.flows.contains_key(&segment.flow) {
            if self.flows.len() >= MAX_FLOWS {
                return;
            }
            self.order.push(segment.flow);
        }
        let longest = self.canaries.iter().map(Vec::len).max().unwrap_or(0);
        let joint = self.flows.entry(segment.flow).or_default().segment(&segment, longest);
        self.search(&joint, flow);
    }

    fn search(&mut self, bytes: &[u8], flow: Option<(SocketAddr, SocketAddr)>) {
        for (number, canary) in self.canaries.iter().enumerate() {
            if contains(bytes, canary) && self.sighted.insert((number, flow)) {
                self.sightings.push(Sighting { canary: canary.clone(), frame: self.frames, flow });
            }
        }
    }

    fn report(&self) -> TapReport {
        let flow = |key: &(SocketAddr, SocketAddr)| {
            let stream = self.flows.get(key)?;
            let opening = opening(&stream.opening);
            let (source, destination) = *key;
            Some(Flow { source, destination, segments: stream.segments, bytes: stream.bytes, opening })
        };
        let flows = self.order.iter().filter_map(flow).collect();
        let Self { frames, bytes, lost, .. } = *self;
        TapReport { frames, bytes, lost, flows, sightings: self.sightings.clone() }
    }
}

impl Stream {
    /// Takes a segment in and returns the bytes around its border with what came before.
    fn segment(&mut self, segment: &Segment<'_>, longest: usize) -> Vec<u8> {
        self.segments += 1;
        self.bytes += segment.payload.len() as u64;
        let start = segment.sequence.wrapping_add(u32::from(segment.syn));
        if segment.syn {
            *self = Self { segments: self.segments, bytes: self.bytes, next: Some(start), ..Self::default() };
        }
        let end = start.wrapping_add(u32::try_from(segment.payload.len()).unwrap_or(0));
        // How many bytes of the segment were seen before; negative when some are missing in between.
        let repeated = self.next.unwrap_or(start).wrapping_sub(start).cast_signed();
        let Ok(repeated) = usize::try_from(repeated) else {
            *self = Self { opening_complete: true, tail: Vec::new(), next: Some(end), ..std::mem::take(self) };
            return Vec::new();
        };
        // The beginning of a connection that is older than the tap was missed.
        self.opening_complete |= self.next.is_none();
        let Some(fresh) = segment.payload.get(repeated..).filter(|fresh| !fresh.is_empty()) else { return Vec::new() };
        self.next = Some(end);
        if !self.opening_complete {
            let room = OPENING_BYTES - self.opening.len();
            self.opening.extend(fresh.iter().take(room));
            self.opening_complete = self.opening.len() == OPENING_BYTES;
        }
        let kept = longest.saturating_sub(1);
        let mut joint = std::mem::take(&mut self.tail);
        joint.extend(fresh.iter().take(kept));
        self.tail = if fresh.len() >= kept { fresh } else { &joint }.iter().rev().take(kept).rev().copied().collect();
        joint
    }
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

fn tcp_segment(frame: &[u8]) -> Option<Segment<'_>> {
    const TCP: u8 = 6;
    let packet = frame.get(14..)?;
    let (source, destination, segment) = match number(frame, 12)? {
        0x0800 => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            // Offloaded segments of 64 KiB and more have no length of their own.
            let length = usize::from(number(packet, 2)?);
            let end = if length == 0 { packet.len() } else { length };
            let address = |at: usize| packet.get(at..at + 4)?.try_into().ok().map(|octets: [u8; 4]| IpAddr::from(octets));
            (*packet.get(9)? == TCP).then_some((address(12)?, address(16)?, packet.get(header..end)?))?
        }
        0x86dd => {
            let length = usize::from(number(packet, 4)?);
            let end = if length == 0 { packet.len() } else { 40 + length };
            let address = |at: usize| packet.get(at..at + 16)?.try_into().ok().map(|octets: [u8; 16]| IpAddr::from(octets));
            (*packet.get(6)? == TCP).then_some((address(8)?, address(24)?, packet.get(40..end)?))?
        }
        _ => return None,
    };
    let flow = (SocketAddr::new(source, number(segment, 0)?), SocketAddr::new(destination, number(segment, 2)?));
    let sequence = u32::from_be_bytes(segment.get(4..8)?.try_into().ok()?);
    let header = usize::from(segment.get(12)? >> 4) * 4;
    Some(Segment { flow, sequence, syn: segment.get(13)? & 2 != 0, payload: segment.get(header..)? })
}

fn opening(bytes: &[u8]) -> Opening {
    const HANDSHAKE: u8 = 22;
    const CLIENT_HELLO: u8 = 1;
    match bytes {
        [] => Opening::Nothing,
        [HANDSHAKE, 3, _, _, _, CLIENT_HELLO, ..] => Opening::ClientHello(client_hello(bytes).unwrap_or_default()),
        [HANDSHAKE, 3, ..] => Opening::TlsServer,
        _ => Opening::Other(bytes.iter().take(16).copied().collect()),
    }
}

/// `None`: cut short or not well formed.
fn client_hello(bytes: &[u8]) -> Option<ClientHello> {
    const SERVER_NAME: u16 = 0;
    const ALPN: u16 = 16;
    const KEY_SHARE: u16 = 51;
    // Record and handshake headers, version, random; then session id, cipher suites, compression.
    let rest = bytes.get(5 + 4 + 2 + 32..)?;
    let (_, rest) = prefixed(rest, 1)?;
    let (_, rest) = prefixed(rest, 2)?;
    let (_, rest) = prefixed(rest, 1)?;
    let (mut extensions, _) = prefixed(rest, 2)?;
    let mut hello = ClientHello::default();
    while !extensions.is_empty() {
        let (body, rest) = prefixed(extensions.get(2..)?, 2)?;
        match number(extensions, 0)? {
            SERVER_NAME => {
                let (name, _) = prefixed(prefixed(body, 2)?.0.get(1..)?, 2)?;
                hello.server_name = Some(String::from_utf8_lossy(name).into_owned());
            }
            ALPN => {
                let (mut names, _) = prefixed(body, 2)?;
                while !names.is_empty() {
                    let (name, rest) = prefixed(names, 1)?;
                    hello.alpn.push(String::from_utf8_lossy(name).into_owned());
                    names = rest;
                }
            }
            KEY_SHARE => {
                let (mut shares, _) = prefixed(body, 2)?;
                while !shares.is_empty() {
                    hello.key_shares.push(number(shares, 0)?);
                    shares = prefixed(shares.get(2..)?, 2)?.1;
                }
            }
            _ => {}
        }
        extensions = rest;
    }
    Some(hello)
}

/// A vector behind its length of one or two bytes, and what follows it.
fn prefixed(bytes: &[u8], width: usize) -> Option<(&[u8], &[u8])> {
    let length = bytes.get(..width)?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    bytes.get(width..)?.split_at_checked(length)
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

/// Frames in the classic capture format.
struct Pcap(BufWriter<File>);

impl Pcap {
    fn create(path: &Path) -> Result<Self, LabError> {
        const MAGIC: u32 = 0xa1b2_c3d4;
        const VERSION: [u16; 2] = [2, 4];
        const ETHERNET: u32 = 1;
        let write = || -> io::Result<_> {
            let mut file = BufWriter::new(File::create(path)?);
            file.write_all(&MAGIC.to_ne_bytes())?;
            VERSION.iter().try_for_each(|part| file.write_all(&part.to_ne_bytes()))?;
            file.write_all(&[0; 8])?;
            file.write_all(&u32::try_from(FRAME_BYTES).unwrap_or(u32::MAX).to_ne_bytes())?;
            file.write_all(&ETHERNET.to_ne_bytes())?;
            Ok(file)
        };
        write().map(Self).map_err(|error| LabError::system(format!("write {}", path.display()), error))
    }

    /// A disk that is full costs the file, not the watch.
    fn write(&mut self, frame: &[u8]) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        // The format has room for seconds until 2106.
        let header = [now.as_secs() as u32, now.subsec_micros(), length, length];
        let _ = header.iter().try_for_each(|field| self.0.write_all(&field.to_ne_bytes()));
        let _ = self.0.write_all(frame);
    }

    fn flush(&mut self) {
        let _ = self.0.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(40 + payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0x30, 0x39, 0x00, 0x50]);
        frame.extend(sequence.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        frame
    }

    fn seen(canary: &[u8], frames: &[Vec<u8>]) -> TapReport {
        let mut seen = Seen::new(vec![canary.to_vec()]);
        frames.iter().for_each(|frame| seen.frame(frame, None));
        seen.report()
    }

    #[test]
    fn canary_is_seen_across_segments() {
        let frames = [frame(9, 2, b""), frame(10, 16, b"..sec"), frame(15, 16, b"r"), frame(16, 16, b"et..")];
        let report = seen(b"secret", &frames);
        assert_eq!(report.sightings.len(), 1);
        assert_eq!(report.sightings[0].frame, 4);
        let flow = &report.flows[0];
        assert_eq!((flow.source.to_string().as_str(), flow.bytes), ("10.0.0.1:12345", 10));
        assert_eq!(flow.opening, Opening::Other(b"..secret..".to_vec()));
    }

    #[test]
    fn repeated_segment_does_not_break_a_canary_and_a_gap_does() {
        let repeated = [frame(10, 16, b"sec"), frame(10, 16, b"sec"), frame(12, 16, b"cret")];
        assert_eq!(seen(b"secret", &repeated).sightings.len(), 1);
        let gap = [frame(10, 16, b"sec"), frame(14, 16, b"ret")];
        assert_eq!(seen(b"secret", &gap).sightings.len(), 0);
    }

    #[test]
    fn client_hello_is_told_with_its_protocols() {
        let extension = |kind: u16, body: &[u8]| {
            [&kind.to_be_bytes()[..], &u16::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
        };
        let extensions = [
            extension(0, b"\0\x07\0\0\x04mesh"),
            extension(16, b"\0\x0a\x09mesh-h2/1"),
            extension(51, b"\0\x05\x11\xec\0\x01k"),
        ]
        .concat();
        let body = [
            &[3, 3][..],
            &[0; 32],
            &[0],
            &[0, 2, 0x13, 1],
            &[1, 0],
            &u16::try_from(extensions.len()).unwrap().to_be_bytes(),
            &extensions,
        ]
        .concat();
        let record = [&[22, 3, 1, 0, 0, 1, 0, 0, 0][..], &body].concat();
        let (first, second) = record.split_at(60);
        let report = seen(b"x", &[frame(9, 2, b""), frame(10, 16, first), frame(70, 16, second)]);
        let expected = ClientHello {
            alpn: vec!["mesh-h2/1".into()],
            server_name: Some("mesh".into()),
            key_shares: vec![0x11ec],
        };
        assert_eq!(report.flows[0].opening, Opening::ClientHello(expected));
        assert!(report.offers("mesh-h2/1"));
        assert!(report.in_clear().is_empty());
    }

    #[test]
    fn malformed_frames_are_counted_only() {
        let whole = frame(10, 16, b"payload");
        for cut in 0..whole.len() - 7 {
            assert_eq!(seen(b"x", &[whole[..cut].to_vec()]).flows.len(), 0, "cut at {cut}");
        }
    }
}
