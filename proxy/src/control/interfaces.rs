//! The proxy's own addresses: what it claims in the directory.

use std::collections::BTreeSet;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use signet_sync::MAX_CLAIMS;

/// Addresses of the interfaces that are up, except those nobody else can reach: loopback, link-local, multicast.
/// Sorted; at most [`MAX_CLAIMS`].
pub(super) fn addresses() -> std::io::Result<BTreeSet<IpAddr>> {
    Ok(getifaddrs()?
        .filter(|interface| {
            interface.flags.contains(InterfaceFlags::IFF_UP)
                && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK)
        })
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        })
        .filter(is_reachable)
        .take(MAX_CLAIMS)
        .collect())
}

fn is_reachable(address: &IpAddr) -> bool {
    if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
        return false;
    }
    match address {
        IpAddr::V4(v4) => !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && v6.to_ipv4_mapped().is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_others_can_reach_are_claimed() {
        let claimed = |text: &str| is_reachable(&text.parse().unwrap());
        for address in ["172.18.0.2", "192.0.2.1", "fd00::2", "2001:db8::1"] {
            assert!(claimed(address), "{address}");
        }
        for address in
            ["127.0.0.1", "::1", "169.254.1.1", "fe80::1", "0.0.0.0", "224.0.0.1", "::ffff:10.0.0.1"]
        {
            assert!(!claimed(address), "{address}");
        }
    }
}
