//! Which addresses are ours: an inbound connection to any other is somebody using us as a relay.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;

/// How long the list is relied on: addresses come and go with networks a container is attached to.
const FRESH: Duration = Duration::from_secs(10);
/// How soon an address that is not on the list makes us look again.
const AGAIN: Duration = Duration::from_millis(100);

/// The addresses of this network namespace, as last seen.
pub(crate) struct OwnAddresses {
    known: RefCell<HashSet<IpAddr>>,
    read: Cell<Option<Instant>>,
}

impl Default for OwnAddresses {
    fn default() -> Self {
        Self { known: RefCell::default(), read: Cell::new(None) }
    }
}

impl OwnAddresses {
    /// Whether an address is assigned to an interface of ours. Before the first reading succeeds, none is.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        if self.older_than(FRESH) {
            self.read();
        }
        if self.known.borrow().contains(&address) {
            return true;
        }
        if self.older_than(AGAIN) {
            self.read();
        }
        self.known.borrow().contains(&address)
    }

    fn older_than(&self, age: Duration) -> bool {
        self.read.get().is_none_or(|read| read.elapsed() >= age)
    }

    fn read(&self) {
        self.read.set(Some(Instant::now()));
        let addresses = getifaddrs().map(|interfaces| {
            interfaces
                .filter_map(|interface| interface.address)
                .filter_map(|address| {
                    let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
                    v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
                })
                .collect()
        });
        // Out of descriptors, the last list is a better answer than none.
        if let Ok(addresses) = addresses {
            self.known.replace(addresses);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_ours_and_a_documentation_address_is_not() {
        let own = OwnAddresses::default();
        assert!(own.contains("127.0.0.1".parse().unwrap()));
        assert!(!own.contains("192.0.2.1".parse().unwrap()));
    }
}
