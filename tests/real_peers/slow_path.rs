//! A path with delay: iptables hands a container's packets to this process, which lets each go a while later.
//!
//! Layout: `include/uapi/linux/netfilter/nfnetlink_queue.h`. Headers are in host order, what is inside in network order.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_NETFILTER};
use signet_cli::lab::mesh::app;
use signet_cli::lab::mesh::intruder::{Identity, IntruderError, Stream, inside};
use signet_cli::lab::runner::TestResult;
use signet_cli::lab::{Container, Program};
use signet_proxy::capture::netlink::{Attributes, attributes};
use signet_signature::record::Event;
use signet_tests::manifest::{mesh, policy, workload};
use signet_tests::{Site, id, place};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use crate::pair::run;
use crate::programs::program;

const PORT: u16 = 3306;
const BANNER: &[u8] = b"220 greeter ready\r\n";
/// How late the ClientHello comes after the connection is open: far more than the shortest hold.
const LATE: Duration = Duration::from_millis(400);
/// How long each packet of the caller takes; twice that is the hold, well above [`LATE`] and below its bound.
const DELAY: Duration = Duration::from_millis(450);

const QUEUE: u16 = 7;
/// Message types: the subsystem in the high byte.
const PACKET: u16 = 3 << 8;
const VERDICT: u16 = PACKET | 1;
const CONFIGURE: u16 = PACKET | 2;
const REQUEST: u16 = 1;
const HEADER: usize = 16;
const QUEUE_HEADER: usize = 4;
const READ_BYTES: usize = 64 * 1024;

/// Nobody knows the caller's address, so its greeting is held back for as long as its path suggests: once without
/// delay, when the greeting overtakes the ClientHello, and once with.
pub(crate) fn late_client_hello_is_waited_for_on_a_slow_path() -> TestResult {
    let site = Site::new(&[
        mesh(&[]),
        workload("server", &["mtls: {mode: permissive}", &format!("ports: [{{port: {PORT}}}]")]),
        workload("caller", &[]),
        policy("access", "server", &["{from: [{any: anyone}]}"]),
    ])?;
    let (server, far) = (site.container("server")?, site.container("far")?);
    let _app = app(&server, &["greeter"], &[PORT])?;
    let [_sidecar] = site.sidecars([(&server, "server")])?;
    let identity = site.intruder(&far, "caller")?;
    let to = place(&server, PORT);

    let overtaken = greeting(&far, &identity, to);
    assert!(overtaken.is_err(), "a greeting came through the mesh: {overtaken:?}");
    delay(&far)?;
    let waited_for = greeting(&far, &identity, to)?;
    assert_eq!(waited_for, BANNER);
    Ok(())
}

/// What the app says to a sidecar whose ClientHello is late.
fn greeting(from: &Container, identity: &Identity, to: SocketAddr) -> Result<Vec<u8>, IntruderError> {
    let identity = identity.clone();
    inside(from.namespace(), move || async move {
        let late = TcpListener::bind("127.0.0.1:0").await?;
        let near = late.local_addr()?;
        tokio::spawn(async move {
            let (mut near, _) = late.accept().await?;
            let mut far = TcpStream::connect(to).await?;
            // The delay is what is tested.
            tokio::time::sleep(LATE).await;
            copy_bidirectional(&mut near, &mut far).await
        });
        let mut stream = Stream::open(&identity, near, (&id("server"), PORT), true).await?;
        match stream.receive().await? {
            Event::Data(greeting) => Ok(greeting.to_vec()),
            other => Err(IntruderError::Answer(format!("{other:?}"))),
        }
    })
}

/// Delays every TCP packet that leaves the container, until the test ends.
fn delay(of: &Container) -> TestResult {
    let socket = of.namespace().run(open)??;
    let (noted, waiting) = channel();
    let socket = Arc::new(socket);
    let releasing = Arc::clone(&socket);
    of.namespace().thread("release", move || release(&releasing, &waiting))?;
    of.namespace().thread("hold", move || -> io::Result<()> {
        loop {
            let mut datagram = Vec::with_capacity(READ_BYTES);
            socket.recv(&mut datagram, 0)?;
            for packet in packets(&datagram) {
                // When nobody releases any more, the test has ended.
                noted.send((Instant::now() + DELAY, packet)).map_err(io::Error::other)?;
            }
        }
    })?;
    let rule =
        ["-t", "mangle", "-A", "OUTPUT", "-o", "eth0", "-p", "tcp", "-j", "NFQUEUE", "--queue-num", "7"];
    run(of, Program::new(program("iptables")?).args(rule)).map(drop)
}

fn release(socket: &Socket, waiting: &Receiver<(Instant, [u8; 4])>) -> io::Result<()> {
    // Nothing is ever sent: waiting on it is the wait for a packet's time.
    let (_sender, pause) = channel::<()>();
    while let Ok((when, packet)) = waiting.recv() {
        let _ = pause.recv_timeout(when.saturating_duration_since(Instant::now()));
        let accept = 1u32.to_be_bytes();
        socket.send(&message(VERDICT, Attributes::new().bytes(2, &[accept, packet].concat())), 0)?;
    }
    Ok(())
}

/// A socket that is given the packets of the queue, without their content.
fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddress::new(0, 0))?;
    let bind = [1, 0, 0, 0];
    socket.send(&message(CONFIGURE, Attributes::new().bytes(1, &bind)), 0)?;
    let without_content = [0, 0, 0, 0, 1];
    socket.send(&message(CONFIGURE, Attributes::new().bytes(2, &without_content)), 0)?;
    Ok(socket)
}

fn message(kind: u16, attributes: Attributes) -> Vec<u8> {
    let [high, low] = QUEUE.to_be_bytes();
    let body = [vec![0, 0, high, low], attributes.into_bytes()].concat();
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let header = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &REQUEST.to_ne_bytes(), &[0; 8]];
    [header.concat(), body].concat()
}

/// The numbers of the packets that were handed over.
fn packets(mut datagram: &[u8]) -> Vec<[u8; 4]> {
    let mut numbers = Vec::new();
    while let Some(length) = datagram.first_chunk::<4>() {
        let length = u32::from_ne_bytes(*length) as usize;
        let list = datagram.get(HEADER + QUEUE_HEADER..length).map(attributes);
        let first =
            |list: Vec<(u16, &[u8])>| list.iter().find(|(kind, _)| *kind == 1)?.1.first_chunk().copied();
        numbers.extend(list.and_then(Result::ok).and_then(first));
        datagram = datagram.get(length.next_multiple_of(4).max(HEADER)..).unwrap_or_default();
    }
    numbers
}
