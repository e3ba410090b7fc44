//! Watches an interface: what passes, whether it is TLS, and whether byte strings appear that must not.
//!
//! Each direction of a TCP connection is a [`Flow`]. Byte strings are looked for in every frame and across the borders
//! of consecutive segments. A tap on a switch port sees each frame once, as it is on the wire.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, IoSliceMut, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvmsg,
    setsockopt, socket, sockopt,
};

use self::seen::Seen;
use super::{LabError, Namespace};

mod seen;

/// Frames that wait for the reader; the kernel grants what its limits allow.
const QUEUE_BYTES: usize = 32 * 1024 * 1024;
/// Virtual links pass segments of up to 64 KiB uncut.
const FRAME_BYTES: usize = 128 * 1024;

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
        let canaries =
            canaries.iter().filter(|canary| !canary.is_empty()).map(|canary| canary.to_vec()).collect();
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
            let (length, index, lost) =
                match recvmsg::<LinkAddr>(self.socket.as_raw_fd(), &mut slices, Some(&mut control), flags) {
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
