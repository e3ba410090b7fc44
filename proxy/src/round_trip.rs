//! How long a TCP connection's bytes take there and back, as the kernel has measured it.
//!
//! The kernel tells `struct tcp_info` by `getsockopt`, for which no crate has a function without
//! `unsafe`, and by netlink (`sock_diag(7)`), which this uses: one question about one socket, named by
//! its two addresses. It needs no capability.
//!
//! Layout: `include/uapi/linux/{sock_diag,inet_diag,tcp}.h`. Ports and addresses are in network order,
//! everything else in host order.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::capture::netlink::{Answer, Connection, NetlinkError, Request, attributes};
use crate::sockets::canonical;

/// How long the answer is waited for. It takes microseconds, but for the first question after boot the
/// kernel may have to load a module; who waits here holds a connection, not the worker.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(50);

/// `SOCK_DIAG_BY_FAMILY`, the type of question and answer.
const BY_FAMILY: u16 = 20;
const INET: u8 = 2;
const INET6: u8 = 10;
const TCP: u8 = 6;
/// `INET_DIAG_INFO`: the attribute that holds `struct tcp_info`. It is asked for by bit.
const INFO: u16 = 2;
const INFO_BIT: u8 = 1 << (INFO - 1);
/// The socket is named by its addresses, not by a cookie of an earlier answer.
const NO_COOKIE: [u8; 8] = [0xff; 8];
/// `struct inet_diag_msg`, in front of the attributes.
const ANSWER_HEADER: usize = 72;
/// Where its `struct inet_diag_sockid` begins, and how long ports and addresses in it are.
const SOCKET_AT: usize = 4;
const SOCKET_NAME: usize = 36;
/// `tcpi_rtt`, a `u32` of microseconds, in `struct tcp_info`, which only ever grows at its end.
const RTT_AT: usize = 68;

/// The smoothed round trip of an established connection; `None` when the kernel does not tell.
pub(crate) async fn measured(stream: &TcpStream) -> Option<Duration> {
    let (local, peer) = (stream.local_addr().ok()?, stream.peer_addr().ok()?);
    let asked = tokio::task::spawn_blocking(move || ask(local, peer));
    match tokio::time::timeout(ANSWER_TIMEOUT, asked).await.ok()?.ok()? {
        Ok(round_trip) => round_trip,
        Err(error) => {
            tracing::debug!(%peer, %error, "the kernel does not tell the round trip");
            None
        }
    }
}

fn ask(local: SocketAddr, peer: SocketAddr) -> Result<Option<Duration>, NetlinkError> {
    let body = question(local, peer);
    let purpose = format!("tell the round trip to {peer}");
    let answer = Connection::sockets()?.ask(&Request { kind: BY_FAMILY, flags: 0, body, purpose })?;
    round_trip(&answer, local, peer)
}

/// `struct inet_diag_req_v2` for exactly one socket.
fn question(local: SocketAddr, peer: SocketAddr) -> Vec<u8> {
    let (family, name) = socket(local, peer);
    // An address that means something on one link only is looked up on that link.
    let interface = match peer {
        SocketAddr::V6(peer) => peer.scope_id(),
        SocketAddr::V4(_) => 0,
    };
    let any_state = u32::MAX;
    [&[family, TCP, INFO_BIT, 0][..], &any_state.to_ne_bytes(), &name, &interface.to_ne_bytes(), &NO_COOKIE]
        .concat()
}

/// Reads `struct inet_diag_msg` and what follows it. A socket without a measurement has none to tell.
fn round_trip(
    answer: &Answer,
    local: SocketAddr,
    peer: SocketAddr,
) -> Result<Option<Duration>, NetlinkError> {
    let about = named(&answer.body).filter(|about| *about == (canonical(local), canonical(peer)));
    if answer.kind != BY_FAMILY || about.is_none() {
        return Err(NetlinkError::Malformed);
    }
    let list = attributes(answer.body.get(ANSWER_HEADER..).ok_or(NetlinkError::Malformed)?)?;
    let Some((_, info)) = list.into_iter().find(|(kind, _)| *kind == INFO) else { return Ok(None) };
    let microseconds = info.get(RTT_AT..RTT_AT + 4).and_then(|field| field.first_chunk());
    let microseconds = microseconds.map(|field| u32::from_ne_bytes(*field)).filter(|measured| *measured > 0);
    Ok(microseconds.map(|measured| Duration::from_micros(measured.into())))
}

/// Whom an answer is about: our address and the peer's. That of a v4-mapped connection is mapped too.
fn named(body: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let (family, name) = (body.first()?, body.get(SOCKET_AT..SOCKET_AT + SOCKET_NAME)?);
    let (ports, addresses) = name.split_at_checked(4)?;
    let (ours, theirs) = addresses.split_first_chunk::<16>()?;
    let address = |bytes: &[u8; 16]| match *family {
        INET => bytes.first_chunk::<4>().map(|v4| IpAddr::from(*v4)),
        INET6 => Some(IpAddr::from(*bytes)),
        _ => None,
    };
    let port = |bytes: &[u8; 2]| u16::from_be_bytes(*bytes);
    let local = SocketAddr::new(address(ours)?, port(ports.first_chunk()?));
    let peer = SocketAddr::new(address(theirs.first_chunk()?)?, port(ports.last_chunk()?));
    Some((canonical(local), canonical(peer)))
}

/// The family, and ports and addresses as `struct inet_diag_sockid` begins with them: ours, then the
/// peer's. A v4-mapped connection is looked up as the IPv4 connection it is.
fn socket(local: SocketAddr, peer: SocketAddr) -> (u8, Vec<u8>) {
    let (local, peer) = (canonical(local), canonical(peer));
    let family = if local.is_ipv4() { INET } else { INET6 };
    let name = [
        &local.port().to_be_bytes()[..],
        &peer.port().to_be_bytes(),
        &padded(local.ip()),
        &padded(peer.ip()),
    ];
    (family, name.concat())
}

/// An address in the sixteen bytes that the structure has for it.
fn padded(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::capture::netlink::Attributes;

    const LOCAL: &str = "10.0.0.1:15006";
    const PEER: &str = "10.0.0.2:40000";

    fn addresses() -> (SocketAddr, SocketAddr) {
        (LOCAL.parse().unwrap(), PEER.parse().unwrap())
    }

    /// An answer about the socket, with these attributes.
    fn answer(attributes: Vec<u8>) -> Answer {
        let (local, peer) = addresses();
        let mut body = [&[INET, 1, 0, 0][..], &socket(local, peer).1].concat();
        body.resize(ANSWER_HEADER, 0);
        body.extend(attributes);
        Answer { kind: BY_FAMILY, body }
    }

    fn tcp_info(round_trip: u32) -> Vec<u8> {
        let mut info = vec![0xee; 240];
        info[RTT_AT..RTT_AT + 4].copy_from_slice(&round_trip.to_ne_bytes());
        info
    }

    fn read(answer: &Answer) -> Result<Option<Duration>, NetlinkError> {
        let (local, peer) = addresses();
        round_trip(answer, local, peer)
    }

    #[test]
    fn question_has_the_bytes_the_kernel_documents() {
        let (local, peer) = addresses();
        let expected = [
            &[2, 6, 2, 0, 0xff, 0xff, 0xff, 0xff][..],
            &[0x3a, 0x9e, 0x9c, 0x40],
            &[10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0, 0, 0, 0],
            &[0xff; 8],
        ];
        assert_eq!(question(local, peer), expected.concat());
        let mapped =
            |text: &str| -> SocketAddr { format!("[::ffff:{}", text.replace(':', "]:")).parse().unwrap() };
        assert_eq!(question(mapped(LOCAL), mapped(PEER)), expected.concat());
    }

    #[test]
    fn link_local_peer_is_asked_for_on_its_link() {
        let peer = SocketAddr::V6(std::net::SocketAddrV6::new("fe80::2".parse().unwrap(), 1, 0, 7));
        let question = question("[fe80::1]:2".parse().unwrap(), peer);
        assert_eq!((question[0], &question[44..48]), (INET6, &7u32.to_ne_bytes()[..]));
        assert_eq!(question.len(), 56);
    }

    #[test]
    fn round_trip_is_read_in_microseconds() {
        let list = Attributes::new().bytes(1, &[0; 16]).bytes(INFO, &tcp_info(80_000));
        let found = read(&answer(list.into_bytes())).unwrap();
        assert_eq!(found, Some(Duration::from_millis(80)));
    }

    #[test]
    fn v4_mapped_connection_is_known_by_either_name() {
        let (local, peer) = addresses();
        let mut mapped = answer(Attributes::new().bytes(INFO, &tcp_info(9)).into_bytes());
        mapped.body[0] = INET6;
        for (at, address) in [(8, local), (24, peer)] {
            let IpAddr::V4(v4) = address.ip() else { panic!("{address}") };
            mapped.body[at..at + 16].copy_from_slice(&v4.to_ipv6_mapped().octets());
        }
        assert_eq!(read(&mapped).unwrap(), Some(Duration::from_micros(9)));
    }

    #[test]
    fn nothing_measured_is_nothing_told() {
        assert_eq!(read(&answer(Vec::new())).unwrap(), None);
        assert_eq!(read(&answer(Attributes::new().bytes(INFO, &tcp_info(0)).into_bytes())).unwrap(), None);
        let short = Attributes::new().bytes(INFO, &[1; RTT_AT + 3]);
        assert_eq!(read(&answer(short.into_bytes())).unwrap(), None);
    }

    #[test]
    fn answers_that_lie_are_refused_and_none_panics() {
        let whole = answer(Attributes::new().bytes(INFO, &tcp_info(5)).into_bytes());
        let other = Answer { kind: 3, ..whole.clone() };
        assert!(matches!(read(&other), Err(NetlinkError::Malformed)));
        for length in 0..whole.body.len() {
            let cut = Answer { body: whole.body[..length].to_vec(), ..whole.clone() };
            assert!(!matches!(read(&cut), Ok(Some(_))), "{length} bytes");
        }
        for at in 0..whole.body.len() {
            for byte in [0, 1, 0x7f, 0xff] {
                let mut changed = whole.clone();
                changed.body[at] = byte;
                // Any answer will do, as long as it is one.
                let _ = read(&changed);
            }
        }
        let (local, _) = addresses();
        assert!(round_trip(&whole, local, "10.0.0.3:1".parse().unwrap()).is_err(), "another socket");
    }

    #[tokio::test]
    async fn kernel_tells_the_round_trip_of_a_real_connection() {
        for address in ["127.0.0.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
            let listener = tokio::net::TcpListener::bind(address).await.unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap());
            let (client, accepted) = tokio::join!(client, listener.accept());
            let (_client, (accepted, _)) = (client.unwrap(), accepted.unwrap());
            let found = ask(accepted.local_addr().unwrap(), accepted.peer_addr().unwrap());
            let found = found.unwrap().expect("measured by the handshake");
            assert!(found < Duration::from_secs(1), "{address}: {found:?}");
            assert!(
                measured(&accepted).await.is_some_and(|found| found < Duration::from_secs(1)),
                "{address}"
            );
        }
    }

    #[test]
    fn connection_that_does_not_exist_is_told_as_such() {
        let (local, peer) = addresses();
        let refused = ask(local, peer).unwrap_err();
        assert_eq!(refused.errno(), Some(nix::errno::Errno::ENOENT), "{refused}");
    }
}
