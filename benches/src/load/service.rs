//! What the back end offers, and the ports by which each pair of proxies offers it.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// The client's host on the cable.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// The server's host on the cable.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);
/// Where the small file is, nginx; the other services follow.
const BACK_END: u16 = 8080;
/// Where the client-side proxy of a peer listens for the first service.
const ENTRY: u16 = 9080;
/// Where the server-side proxy of a peer listens for the first service.
const SECURED: u16 = 9443;
/// What the client-side proxy dials when a redirect on the server's host brings it to [`SECURED`].
const REDIRECTED: u16 = 18443;

/// One port of the back end.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    /// Plain bytes: nothing that a proxy could parse.
    Bytes,
    /// gRPC.
    Grpc,
    /// HTTP/1.1 of our own back end.
    Http,
    /// The small file, from nginx.
    Small,
}

impl Service {
    /// All of them, in the order of their ports.
    pub const ALL: [Self; 4] = [Self::Small, Self::Http, Self::Grpc, Self::Bytes];

    const fn number(self) -> u16 {
        match self {
            Self::Small => 0,
            Self::Http => 1,
            Self::Grpc => 2,
            Self::Bytes => 3,
        }
    }

    /// Its port on the server's host.
    pub const fn port(self) -> u16 {
        BACK_END + self.number()
    }

    /// The back end itself.
    pub fn back_end(self) -> SocketAddr {
        (SERVER, self.port()).into()
    }

    /// Where a peer's client-side proxy listens.
    pub fn entry(self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, ENTRY + self.number()).into()
    }

    /// Where a peer's server-side proxy listens.
    pub fn secured(self) -> SocketAddr {
        (SERVER, SECURED + self.number()).into()
    }

    /// What a peer's client-side proxy dials to get there by a redirect.
    pub fn redirected(self) -> SocketAddr {
        (SERVER, REDIRECTED + self.number()).into()
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bytes => "bytes",
            Self::Grpc => "grpc",
            Self::Http => "http",
            Self::Small => "small",
        })
    }
}
