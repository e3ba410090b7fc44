//! Sets of a table: places, each an address of one IP version and a port, that rules look up as a whole.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::netlink::{Attributes, NetlinkError, attributes};
use super::nftables::Fields;

pub(super) const NEW: u16 = 9;
pub(super) const GET: u16 = 10;
pub(super) const NEW_ELEMENTS: u16 = 12;
pub(super) const GET_ELEMENTS: u16 = 13;

pub(super) const TABLE: u16 = 1;
const NAME: u16 = 2;
const FLAGS: u16 = 3;
const KEY_TYPE: u16 = 4;
const KEY_LENGTH: u16 = 5;
const ID: u16 = 10;
const ELEMENTS: u16 = 3;
const ELEMENT: u16 = 1;
const KEY: u16 = 1;
const DATA_VALUE: u16 = 1;

/// How `nft` numbers "IPv4 address and port", and the same for IPv6: two types of six bits each. Only for showing.
const SHOWN_IPV4: u32 = 7 << 6 | 13;
const SHOWN_IPV6: u32 = 8 << 6 | 13;
/// An address, and a port that fills four bytes.
const LENGTH_IPV4: u32 = 8;
const LENGTH_IPV6: u32 = 20;
/// Elements of one message: a list's length has 16 bits, and an element takes 32 bytes at most.
const AT_ONCE: usize = 1_500;

/// A named set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// Whether its addresses are IPv6.
    pub ipv6: bool,
    /// Flags of the kernel; none is ever set here.
    pub flags: u32,
    /// What is in it; places of the other IP version are left out.
    pub places: BTreeSet<SocketAddr>,
}

impl Set {
    /// A set of those of the places that are of one IP version.
    pub fn of(name: &str, ipv6: bool, places: &BTreeSet<SocketAddr>) -> Self {
        let places = places.iter().filter(|place| place.is_ipv6() == ipv6).copied().collect();
        Self { name: name.to_owned(), ipv6, flags: 0, places }
    }
}

pub(super) fn named(table: &str, set: &str) -> Attributes {
    Attributes::new().text(TABLE, table).text(NAME, set)
}

/// The set itself. The number names it within its transaction.
pub(super) fn encode(table: &str, set: &Set, number: u32) -> Attributes {
    let (shown, length) = if set.ipv6 { (SHOWN_IPV6, LENGTH_IPV6) } else { (SHOWN_IPV4, LENGTH_IPV4) };
    named(table, &set.name)
        .network_u32(FLAGS, set.flags)
        .network_u32(KEY_TYPE, shown)
        .network_u32(KEY_LENGTH, length)
        .network_u32(ID, number)
}

/// What is in it, in as many messages as that takes.
pub(super) fn encode_elements<'a>(table: &'a str, set: &'a Set) -> impl Iterator<Item = Attributes> + 'a {
    let places: Vec<&SocketAddr> = set.places.iter().collect();
    let lists: Vec<Attributes> = places
        .chunks(AT_ONCE)
        .map(|places| {
            let list = places.iter().fold(Attributes::new(), |list, place| {
                let value = Attributes::new().bytes(DATA_VALUE, &key(place));
                list.nest(ELEMENT, Attributes::new().nest(KEY, value))
            });
            named(table, &set.name).nest(ELEMENTS, list)
        })
        .collect();
    lists.into_iter()
}

/// A set without what is in it.
pub(super) fn decode(fields: &Fields<'_>) -> Result<Set, NetlinkError> {
    let name = fields.text(NAME).ok_or(NetlinkError::Malformed)?;
    let ipv6 = fields.number(KEY_LENGTH) == Some(LENGTH_IPV6);
    let flags = fields.number(FLAGS).unwrap_or(0);
    Ok(Set { name: name.to_owned(), ipv6, flags, places: BTreeSet::new() })
}

/// Adds what one message says is in the set.
pub(super) fn decode_elements(fields: &Fields<'_>, set: &mut Set) -> Result<(), NetlinkError> {
    for (_, element) in attributes(fields.bytes(ELEMENTS).unwrap_or_default())? {
        let value = |bytes, kind: u16| -> Result<&[u8], NetlinkError> {
            let found = attributes(bytes)?.into_iter().find(|(found, _)| *found == kind);
            found.map(|(_, value)| value).ok_or(NetlinkError::Malformed)
        };
        let place = place(value(value(element, KEY)?, DATA_VALUE)?).ok_or(NetlinkError::Malformed)?;
        set.places.insert(place);
    }
    Ok(())
}

/// Address and port, in network order; the port is filled up to four bytes.
fn key(place: &SocketAddr) -> Vec<u8> {
    let [high, low] = place.port().to_be_bytes();
    let mut key = match place.ip() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    key.extend([high, low, 0, 0]);
    key
}

fn place(key: &[u8]) -> Option<SocketAddr> {
    let (address, port) = key.split_last_chunk::<4>()?;
    let address = match <[u8; 4]>::try_from(address) {
        Ok(octets) => IpAddr::from(Ipv4Addr::from(octets)),
        Err(_) => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?)),
    };
    Some(SocketAddr::new(address, u16::from_be_bytes([port[0], port[1]])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_has_the_bytes_that_a_rule_loads() {
        let ipv4 = "10.0.0.1:8080".parse().unwrap();
        assert_eq!(key(&ipv4), [10, 0, 0, 1, 0x1f, 0x90, 0, 0]);
        let ipv6 = "[fd00::1]:80".parse().unwrap();
        assert_eq!(key(&ipv6).len(), LENGTH_IPV6 as usize);
        for known in [ipv4, ipv6] {
            assert_eq!(place(&key(&known)), Some(known));
        }
        for wrong in [&[][..], &[0; 3], &[0; 7], &[0; 9]] {
            assert_eq!(place(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn set_takes_places_of_its_ip_version_only() {
        let places = ["10.0.0.1:80".parse().unwrap(), "[fd00::1]:80".parse().unwrap()].into();
        assert_eq!(Set::of("four", false, &places).places.len(), 1);
        assert!(Set::of("six", true, &places).places.iter().all(SocketAddr::is_ipv6));
    }

    #[test]
    fn full_set_fits_its_messages() {
        let places: BTreeSet<SocketAddr> =
            (1..=5_000).map(|port| SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port)).collect();
        let set = Set::of("six", true, &places);
        let messages: Vec<Vec<u8>> = encode_elements("t", &set).map(Attributes::into_bytes).collect();
        assert_eq!(messages.len(), 4);
        assert!(messages.iter().all(|message| message.len() < usize::from(u16::MAX)));
    }
}
