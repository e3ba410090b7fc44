//! The edge to the kernel: listening sockets, marked dials, original destinations.
//!
//! Every socket the proxy opens towards the network carries a mark, which the capture rules let
//! pass; a socket without it would be redirected back to the proxy.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use crate::capture::Exempt;

/// How long a TCP connection may take to be established. Longer than one lost SYN (1 s) and its
/// retransmission (3 s), shorter than what a caller would wait for.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections that the kernel may hold ready for us to accept; the usual `somaxconn`.
const BACKLOG: u32 = 4096;

/// Detects a peer that vanished without a word: 15 s idle, then 3 probes 5 s apart.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;

/// Binds a non-blocking listener that shares its port with the other workers' (`SO_REUSEPORT`).
pub fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // The wildcard serves both families; ::1 stays what it is.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG as i32)?;
    Ok(socket.into())
}

/// Refuses a place where somebody listens already, also one who would share it.
///
/// # Errors
/// `EADDRINUSE`. What this machine has no address for is free.
pub fn refuse_shared(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP));
    let Ok(socket) = socket else { return Ok(()) };
    // Connections of an earlier process that are not over yet do not count.
    socket.set_reuse_address(true)?;
    match socket.bind(&address.into()) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
        _ => Ok(()),
    }
}

/// Connects with the proxy's mark (where the rules go by mark), Nagle off and keep-alive on.
pub async fn dial(address: SocketAddr, exempt: Exempt) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Exempt::Mark(mark) = exempt {
        SockRef::from(&socket).set_mark(mark)?;
    }
    let stream = match tokio::time::timeout(CONNECT_TIMEOUT, socket.connect(address)).await {
        Ok(connected) => connected?,
        Err(_) => return Err(io::Error::new(io::ErrorKind::TimedOut, "connection not established in 5 s")),
    };
    tune(&stream)?;
    Ok(stream)
}

/// Sets what every connection of ours has: no delay, keep-alive probes.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Makes the next close send a reset, so that the application never takes a failure for the end.
pub fn reset_on_close(stream: &TcpStream) {
    // A socket that is already gone cannot be reset any further.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Where the client of a redirected connection wanted to go.
///
/// # Errors
/// When the connection was not redirected: it was addressed to the proxy itself.
pub fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let local = canonical(stream.local_addr()?);
    let socket = SockRef::from(stream);
    let original = match local {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    // Without connection tracking there is no entry, so it was not redirected either.
    let original = original?.as_socket().map(canonical);
    match original {
        Some(original) if original != local => Ok(original),
        _ => Err(io::Error::new(
            io::ErrorKind::AddrNotAvailable,
            "connection was addressed to the proxy itself",
        )),
    }
}

/// An IPv4-mapped IPv6 address as the IPv4 address it is.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The addresses of the outbound listener: redirected connections arrive at loopback.
pub fn loopback(port: u16) -> [SocketAddr; 2] {
    [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].map(|ip| SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_that_was_not_redirected_has_no_original_destination() {
        let listener = tokio::net::TcpListener::from_std(listen(loopback(0)[0]).unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(dial(address, Exempt::Uid(0)), listener.accept());
        client.unwrap();
        assert!(original_destination(&accepted.unwrap().0).is_err());
    }

    #[test]
    fn port_that_is_listened_at_is_not_shared_with_another_guard() {
        let listener = listen(loopback(0)[0]).unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(refuse_shared(address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        refuse_shared(address).unwrap();
    }

    #[test]
    fn mapped_addresses_are_the_ipv4_addresses_they_are() {
        assert_eq!(canonical("[::ffff:10.0.0.1]:80".parse().unwrap()), "10.0.0.1:80".parse().unwrap());
        assert_eq!(canonical("[2001:db8::1]:80".parse().unwrap()), "[2001:db8::1]:80".parse().unwrap());
    }
}
