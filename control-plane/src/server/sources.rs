//! Shares: how much of a thing one source may hold.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Whoever has an IPv6 address has this many bits of addresses beside it.
const HOST_BITS: u32 = 64;

/// Counts what each source holds.
pub(crate) struct Sources {
    most: usize,
    held: Mutex<HashMap<IpAddr, usize>>,
}

/// One thing held; it is given back when this is dropped.
pub(crate) struct Share {
    of: Arc<Sources>,
    source: IpAddr,
}

impl Sources {
    /// At most `most` for each IPv4 address and each IPv6 subnet.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, held: Mutex::default() })
    }

    /// One more for `source`, unless it holds its share.
    pub(crate) fn enter(self: &Arc<Self>, source: IpAddr) -> Option<Share> {
        let source = subnet(source);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.entry(source).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Share { of: self.clone(), source })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.of.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.source);
            }
        }
    }
}

fn subnet(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> HOST_BITS << HOST_BITS).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_source_holds_its_share_and_no_more_until_it_gives_back() {
        let sources = Sources::new(2);
        let first = sources.enter(ip("10.0.0.1")).unwrap();
        let _second = sources.enter(ip("::ffff:10.0.0.1")).unwrap();
        assert!(sources.enter(ip("10.0.0.1")).is_none());
        assert!(sources.enter(ip("10.0.0.2")).is_some());
        drop(first);
        assert!(sources.enter(ip("10.0.0.1")).is_some());
    }

    #[test]
    fn a_subnet_of_ipv6_is_one_source() {
        let sources = Sources::new(1);
        let _held = sources.enter(ip("2001:db8:0:1::1")).unwrap();
        assert!(sources.enter(ip("2001:db8:0:1:ffff::2")).is_none());
        assert!(sources.enter(ip("2001:db8:0:2::1")).is_some());
    }

    #[test]
    fn nothing_is_kept_of_sources_that_hold_nothing() {
        let sources = Sources::new(1);
        drop(sources.enter(ip("10.0.0.1")));
        assert!(sources.held.lock().unwrap().is_empty());
    }
}
