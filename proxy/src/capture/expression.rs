//! The nf_tables expressions in use, each with its encoding, its decoding and its words.
//!
//! Expressions work on registers; one is enough except for address translation, which takes the port from a second.
//! Decoding is strict: an expression with anything we never send becomes [`Expression::Unknown`], so a rule that
//! was altered never compares equal to the one installed. Layout: `include/uapi/linux/netfilter/nf_tables.h`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::netlink::{Attributes, NetlinkError, attributes};

const REGISTER: u32 = 1;
const SECOND_REGISTER: u32 = 2;
/// The second of the four words that a register is made of: what is loaded there lies behind four bytes in the first.
const SECOND_WORD: u32 = 9;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_REGISTER: u32 = 0;
const NAME: u16 = 1;
const DATA: u16 = 2;
/// Interface names are compared with all their sixteen bytes.
const INTERFACE_NAME: usize = 16;
const RANGE_ADDRESS: u32 = 1;
const RANGE_PORT: u32 = 2;
const DESTINATION_NAT: u32 = 1;
const OF_DESTINATION: u32 = 2;
const ADDRESS_TYPE: u32 = 3;
/// The kernel's word for addresses of this machine (`RTN_LOCAL`).
const LOCAL: u32 = 2;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// One step of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// Loads the kind of the destination's address, as routing sees it.
    AddressType,
    /// Keeps the bits of the register that the mask has.
    Bitwise {
        /// One bit per bit of the register's value.
        mask: Vec<u8>,
    },
    /// Goes on with the rule only if the register relates so to the value.
    Compare {
        /// How.
        relation: Relation,
        /// In the order of the loaded field: network order for payload, host order for mark and user.
        value: Vec<u8>,
    },
    /// Rewrites the destination to the address in the first register and the port in the second.
    DestinationNat {
        /// Whether the address is IPv6.
        ipv6: bool,
    },
    /// Puts a constant into a register.
    Immediate {
        /// Whether it is the second register.
        second: bool,
        /// The constant.
        value: Vec<u8>,
    },
    /// Goes on with the rule only if what is in the registers is in the table's set.
    Lookup {
        /// The set's name.
        set: String,
    },
    /// Rewrites the source to the address of the interface the packet leaves by.
    Masquerade,
    /// Loads what the kernel knows about the packet.
    Meta(Meta),
    /// Loads bytes of the packet.
    Payload {
        /// Which header.
        header: Header,
        /// From its start, bytes.
        offset: u32,
        /// Bytes.
        length: u32,
        /// Where to.
        to: Place,
    },
    /// Rewrites the destination to this machine, at the port in the register.
    Redirect,
    /// Something we never send.
    Unknown {
        /// The kernel's name for it.
        name: String,
        /// Its encoded attributes.
        data: Vec<u8>,
    },
    /// Ends the rule.
    Verdict(Verdict),
}

/// Where a field of the packet is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Into the register that everything else works on.
    First,
    /// Behind four bytes in that register: an IPv4 address.
    BehindFour,
    /// Into the register behind it, which sixteen bytes fill: an IPv6 address.
    BehindSixteen,
}

/// How a register is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// The same bytes.
    Equal,
    /// Not above, byte by byte.
    NotAbove,
    /// Not below, byte by byte.
    NotBelow,
}

/// A header of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// IPv4 or IPv6.
    Network,
    /// TCP, UDP or ICMP.
    Transport,
}

/// What the kernel knows about a packet beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meta {
    /// Name of the interface it came in by.
    InputInterface,
    /// The transport protocol, whatever the IP version.
    Layer4Protocol,
    /// The mark of the socket that sent it.
    Mark,
    /// IPv4 or IPv6.
    NetworkProtocol,
    /// Name of the interface it leaves by.
    OutputInterface,
    /// User id of the socket that sent it.
    SocketUser,
}

/// How a rule ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This chain lets the packet pass.
    Accept,
    /// The packet goes no further; its sender gets `EPERM`.
    Drop,
    /// The chain's own policy decides.
    Return,
}

// Codes of the kernel, in both directions from one table each.
const RELATIONS: [(Relation, u32, &str); 3] =
    [(Relation::Equal, 0, "=="), (Relation::NotAbove, 3, "<="), (Relation::NotBelow, 5, ">=")];
const HEADERS: [(Header, u32, &str); 2] =
    [(Header::Network, 1, "network"), (Header::Transport, 2, "transport")];
const PLACES: [(Place, u32, &str); 3] = [
    (Place::First, REGISTER, ""),
    (Place::BehindFour, SECOND_WORD, " behind"),
    (Place::BehindSixteen, SECOND_REGISTER, " behind"),
];
const METAS: [(Meta, u32, &str); 6] = [
    (Meta::InputInterface, 6, "iifname"),
    (Meta::Layer4Protocol, 16, "l4proto"),
    (Meta::Mark, 3, "mark"),
    (Meta::NetworkProtocol, 15, "nfproto"),
    (Meta::OutputInterface, 7, "oifname"),
    (Meta::SocketUser, 10, "skuid"),
];
const VERDICTS: [(Verdict, u32, &str); 3] =
    [(Verdict::Accept, 1, "accept"), (Verdict::Drop, 0, "drop"), (Verdict::Return, -5i32 as u32, "return")];

fn code<T: PartialEq>(table: &[(T, u32, &str)], value: &T) -> u32 {
    // Every variant stands in its table (checked by a test); a missing one would be refused by the kernel.
    table.iter().find(|(known, ..)| known == value).map_or(u32::MAX, |(_, code, _)| *code)
}

fn known<T: Copy>(table: &[(T, u32, &str)], code: u32) -> Option<T> {
    table.iter().find(|(_, known, _)| *known == code).map(|(value, ..)| *value)
}

fn word<'a, T: PartialEq>(table: &[(T, u32, &'a str)], value: &T) -> &'a str {
    table.iter().find(|(known, ..)| known == value).map_or("?", |(.., word)| word)
}

impl Expression {
    /// Name and data, as an element of a rule's expression list.
    pub(super) fn encode(&self) -> Attributes {
        let (name, data) = match self {
            Self::Unknown { name, data } => {
                return Attributes::new().text(NAME, name).bytes(DATA, data);
            }
            Self::AddressType => {
                let data = Attributes::new().network_u32(1, REGISTER).network_u32(2, ADDRESS_TYPE);
                ("fib", data.network_u32(3, OF_DESTINATION))
            }
            Self::Bitwise { mask } => ("bitwise", bitwise(mask)),
            Self::Compare { relation, value } => {
                let data =
                    Attributes::new().network_u32(1, REGISTER).network_u32(2, code(&RELATIONS, relation));
                ("cmp", data.nest(3, Attributes::new().bytes(DATA_VALUE, value)))
            }
            Self::DestinationNat { ipv6 } => ("nat", destination_nat(*ipv6)),
            Self::Immediate { second, value } => {
                let register = if *second { SECOND_REGISTER } else { REGISTER };
                let value = Attributes::new().bytes(DATA_VALUE, value);
                ("immediate", Attributes::new().network_u32(1, register).nest(2, value))
            }
            Self::Lookup { set } => ("lookup", Attributes::new().text(1, set).network_u32(2, REGISTER)),
            Self::Masquerade => ("masq", Attributes::new()),
            Self::Meta(meta) => {
                ("meta", Attributes::new().network_u32(1, REGISTER).network_u32(2, code(&METAS, meta)))
            }
            Self::Payload { header, offset, length, to } => {
                let data = Attributes::new().network_u32(1, code(&PLACES, to));
                let data = data.network_u32(2, code(&HEADERS, header));
                ("payload", data.network_u32(3, *offset).network_u32(4, *length))
            }
            Self::Redirect => {
                let data = Attributes::new().network_u32(1, REGISTER).network_u32(2, REGISTER);
                ("redir", data.network_u32(3, RANGE_PORT))
            }
            Self::Verdict(verdict) => {
                let verdict = Attributes::new().network_u32(VERDICT_CODE, code(&VERDICTS, verdict));
                let data = Attributes::new().network_u32(1, VERDICT_REGISTER);
                ("immediate", data.nest(2, Attributes::new().nest(DATA_VERDICT, verdict)))
            }
        };
        Attributes::new().text(NAME, name).nest(DATA, data)
    }

    /// Reads an element of a rule's expression list.
    pub(super) fn decode(element: &[u8]) -> Result<Self, NetlinkError> {
        let mut fields = Fields::of(element)?;
        let name = fields.text(NAME)?;
        let data = fields.take(DATA).unwrap_or_default();
        let understood = decode_data(&name, Fields::of(data)?)?;
        Ok(understood.unwrap_or_else(|| Self::Unknown { name, data: data.to_vec() }))
    }
}

fn bitwise(mask: &[u8]) -> Attributes {
    let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
    Attributes::new()
        .network_u32(1, REGISTER)
        .network_u32(2, REGISTER)
        .network_u32(3, length)
        .nest(4, Attributes::new().bytes(DATA_VALUE, mask))
        .nest(5, Attributes::new().bytes(DATA_VALUE, &vec![0; mask.len()]))
}

fn destination_nat(ipv6: bool) -> Attributes {
    Attributes::new()
        .network_u32(1, DESTINATION_NAT)
        .network_u32(2, if ipv6 { IPV6 } else { IPV4 }.into())
        .network_u32(3, REGISTER)
        .network_u32(4, REGISTER)
        .network_u32(5, SECOND_REGISTER)
        .network_u32(6, SECOND_REGISTER)
        .network_u32(7, RANGE_ADDRESS | RANGE_PORT)
}

/// `None`: something in it is not what we would have sent.
fn decode_data(name: &str, mut fields: Fields<'_>) -> Result<Option<Expression>, NetlinkError> {
    let expression = match name {
        "bitwise" => fields.bitwise()?,
        "cmp" => fields.compare()?,
        "fib" => fields.address_type()?,
        "immediate" => fields.immediate()?,
        "lookup" => fields.lookup()?,
        "masq" => Some(Expression::Masquerade),
        "meta" => fields.meta()?,
        "nat" => fields.destination_nat()?,
        "payload" => fields.payload()?,
        "redir" => fields.redirect()?,
        _ => None,
    };
    Ok(if fields.0.is_empty() { expression } else { None })
}

/// Attributes by kind, taken out one by one: what is left over was not understood.
struct Fields<'a>(BTreeMap<u16, &'a [u8]>);

impl<'a> Fields<'a> {
    fn of(bytes: &'a [u8]) -> Result<Self, NetlinkError> {
        Ok(Self(attributes(bytes)?.into_iter().collect()))
    }

    fn take(&mut self, kind: u16) -> Option<&'a [u8]> {
        self.0.remove(&kind)
    }

    fn text(&mut self, kind: u16) -> Result<String, NetlinkError> {
        let bytes = self.take(kind).ok_or(NetlinkError::Malformed)?;
        Ok(String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned())
    }

    fn number(&mut self, kind: u16) -> Result<u32, NetlinkError> {
        let bytes = self.take(kind).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_be_bytes).ok_or(NetlinkError::Malformed)
    }

    fn is(&mut self, kind: u16, expected: u32) -> Result<bool, NetlinkError> {
        Ok(self.number(kind)? == expected)
    }

    /// The bytes of a constant; `None` when it is a verdict.
    fn value(&mut self, kind: u16) -> Result<Option<Vec<u8>>, NetlinkError> {
        let nested = self.take(kind).ok_or(NetlinkError::Malformed)?;
        Ok(Fields::of(nested)?.take(DATA_VALUE).map(<[u8]>::to_vec))
    }

    fn bitwise(&mut self) -> Result<Option<Expression>, NetlinkError> {
        let ours = self.is(1, REGISTER)? & self.is(2, REGISTER)?;
        let length = self.number(3)? as usize;
        let (mask, flipped) = (self.value(4)?, self.value(5)?);
        // Newer kernels name the operation; zero is the only one older ones had.
        let operation = if self.0.contains_key(&6) { self.number(6)? } else { 0 };
        let Some(mask) = mask.filter(|mask| mask.len() == length) else { return Ok(None) };
        let plain = operation == 0 && flipped.is_some_and(|flipped| flipped.iter().all(|byte| *byte == 0));
        Ok((ours && plain).then_some(Expression::Bitwise { mask }))
    }

    fn compare(&mut self) -> Result<Option<Expression>, NetlinkError> {
        let ours = self.is(1, REGISTER)?;
        let relation = known(&RELATIONS, self.number(2)?).filter(|_| ours);
        Ok(relation.zip(self.value(3)?).map(|(relation, value)| Expression::Compare { relation, value }))
    }

    fn immediate(&mut self) -> Result<Option<Expression>, NetlinkError> {
        let register = self.number(1)?;
        let mut data = Fields::of(self.take(2).ok_or(NetlinkError::Malformed)?)?;
        let value = data.take(DATA_VALUE).map(<[u8]>::to_vec);
        Ok(match (register, value) {
            (VERDICT_REGISTER, None) => {
                let mut verdict = Fields::of(data.take(DATA_VERDICT).ok_or(NetlinkError::Malformed)?)?;
                let verdict = known(&VERDICTS, verdict.number(VERDICT_CODE)?);
                verdict.map(Expression::Verdict)
            }
            (REGISTER, Some(value)) => Some(Expression::Immediate { second: false, value }),
            (SECOND_REGISTER, Some(value)) => Some(Expression::Immediate { second: true, value }),
            _ => None,
        })
    }

    fn meta(&mut self) -> Result<Option<Expression>, NetlinkError> {
        // A meta statement sets a field from a register and has no destination register.
        if !self.0.contains_key(&1) {
            return Ok(None);
        }
        let ours = self.is(1, REGISTER)?;
        Ok(known(&METAS, self.number(2)?).filter(|_| ours).map(Expression::Meta))
    }

    fn destination_nat(&mut self) -> Result<Option<Expression>, NetlinkError> {
        let ipv6 = match self.0.get(&2) {
            Some([0, 0, 0, family]) if [IPV4, IPV6].contains(family) => *family == IPV6,
            _ => return Ok(None),
        };
        let expected = destination_nat(ipv6).into_bytes();
        let same = attributes(&expected)?.into_iter().all(|(kind, value)| self.take(kind) == Some(value));
        Ok(same.then_some(Expression::DestinationNat { ipv6 }))
    }

    fn payload(&mut self) -> Result<Option<Expression>, NetlinkError> {
        if !self.0.contains_key(&1) {
            return Ok(None);
        }
        let (to, header) = (known(&PLACES, self.number(1)?), known(&HEADERS, self.number(2)?));
        let (offset, length) = (self.number(3)?, self.number(4)?);
        Ok(to.zip(header).map(|(to, header)| Expression::Payload { header, offset, length, to }))
    }

    fn address_type(&mut self) -> Result<Option<Expression>, NetlinkError> {
        let ours = self.is(1, REGISTER)? & self.is(2, ADDRESS_TYPE)? & self.is(3, OF_DESTINATION)?;
        Ok(ours.then_some(Expression::AddressType))
    }

    fn lookup(&mut self) -> Result<Option<Expression>, NetlinkError> {
        let set = self.text(1)?;
        let ours = self.is(2, REGISTER)?;
        // Flags, which the kernel always tells: one of them turns the answer round.
        let plain = !self.0.contains_key(&5) || self.is(5, 0)?;
        Ok((ours && plain).then_some(Expression::Lookup { set }))
    }

    fn redirect(&mut self) -> Result<Option<Expression>, NetlinkError> {
        if self.0.len() != 3 {
            return Ok(None);
        }
        let ours = self.is(1, REGISTER)? & self.is(2, REGISTER)? & self.is(3, RANGE_PORT)?;
        Ok(ours.then_some(Expression::Redirect))
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddressType => f.write_str("fib daddr type"),
            Self::Bitwise { mask } => write!(f, "& {}", Hex(mask)),
            Self::Compare { relation, value } => write!(f, "{} {}", word(&RELATIONS, relation), Hex(value)),
            Self::DestinationNat { ipv6: false } => f.write_str("dnat ip"),
            Self::DestinationNat { ipv6: true } => f.write_str("dnat ip6"),
            Self::Immediate { value, .. } => write!(f, "load {}", Hex(value)),
            Self::Lookup { set } => write!(f, "in @{set}"),
            Self::Masquerade => f.write_str("masquerade"),
            Self::Meta(meta) => write!(f, "meta {}", word(&METAS, meta)),
            Self::Payload { header, offset, length, to } => {
                write!(f, "@{},{offset},{length}{}", word(&HEADERS, header), word(&PLACES, to))
            }
            Self::Redirect => f.write_str("redirect"),
            Self::Unknown { name, data } => write!(f, "{name} {}", Hex(data)),
            Self::Verdict(verdict) => f.write_str(word(&VERDICTS, verdict)),
        }
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn compare(value: &[u8]) -> Expression {
    Expression::Compare { relation: Relation::Equal, value: value.to_vec() }
}

fn meta_is(meta: Meta, value: &[u8]) -> Vec<Expression> {
    vec![Expression::Meta(meta), compare(value)]
}

fn transport(offset: u32, length: u32) -> Expression {
    Expression::Payload { header: Header::Transport, offset, length, to: Place::First }
}

/// Matches TCP.
pub fn tcp() -> Vec<Expression> {
    meta_is(Meta::Layer4Protocol, &[TCP])
}

/// Matches UDP.
pub fn udp() -> Vec<Expression> {
    meta_is(Meta::Layer4Protocol, &[UDP])
}

/// Matches an opening TCP segment, so that connections older than the rules are left alone.
pub fn tcp_opening() -> Vec<Expression> {
    const FLAGS_OFFSET: u32 = 13;
    const FIN_SYN_RST_ACK: u8 = 0x17;
    const SYN: u8 = 0x02;
    let flags =
        [transport(FLAGS_OFFSET, 1), Expression::Bitwise { mask: vec![FIN_SYN_RST_ACK] }, compare(&[SYN])];
    [tcp(), flags.to_vec()].concat()
}

/// Matches a destination port; stands after [`tcp`], [`tcp_opening`] or [`udp`].
pub fn destination_port(port: u16) -> Vec<Expression> {
    vec![transport(2, 2), compare(&port.to_be_bytes())]
}

/// Matches ICMP messages whose type lies in the range; the IP version is matched too.
pub fn icmp_types(ipv6: bool, first: u8, last: u8) -> Vec<Expression> {
    let (network, protocol) = if ipv6 { (IPV6, ICMPV6) } else { (IPV4, ICMP) };
    let range = [
        transport(0, 1),
        Expression::Compare { relation: Relation::NotBelow, value: vec![first] },
        Expression::Compare { relation: Relation::NotAbove, value: vec![last] },
    ];
    [meta_is(Meta::NetworkProtocol, &[network]), meta_is(Meta::Layer4Protocol, &[protocol]), range.to_vec()]
        .concat()
}

/// Matches packets of one IP version that go to the network.
pub fn destination(network: &IpNet) -> Vec<Expression> {
    address(network, (16, 24))
}

/// Matches packets of one IP version that come from the network.
pub fn source(network: &IpNet) -> Vec<Expression> {
    address(network, (12, 8))
}

fn address(network: &IpNet, (ipv4_offset, ipv6_offset): (u32, u32)) -> Vec<Expression> {
    let (version, offset, length) = match network {
        IpNet::V4(_) => (IPV4, ipv4_offset, 4),
        IpNet::V6(_) => (IPV6, ipv6_offset, 16),
    };
    let mut list = meta_is(Meta::NetworkProtocol, &[version]);
    if network.prefix_len() > 0 {
        list.push(Expression::Payload { header: Header::Network, offset, length, to: Place::First });
        if network.prefix_len() < network.max_prefix_len() {
            list.push(Expression::Bitwise { mask: octets(network.netmask()) });
        }
        list.push(compare(&octets(network.network())));
    }
    list
}

/// Matches packets that are for an address of this machine, however they came here.
pub fn for_this_machine() -> Vec<Expression> {
    vec![Expression::AddressType, compare(&LOCAL.to_ne_bytes())]
}

/// Matches packets of one IP version whose destination address and port, together, are in the table's set; stands
/// after [`tcp`] or [`tcp_opening`].
pub fn destination_in(ipv6: bool, set: &str) -> Vec<Expression> {
    let (version, offset, length, behind) =
        if ipv6 { (IPV6, 24, 16, Place::BehindSixteen) } else { (IPV4, 16, 4, Place::BehindFour) };
    let mut list = meta_is(Meta::NetworkProtocol, &[version]);
    list.extend([
        Expression::Payload { header: Header::Network, offset, length, to: Place::First },
        Expression::Payload { header: Header::Transport, offset: 2, length: 2, to: behind },
        Expression::Lookup { set: set.to_owned() },
    ]);
    list
}

/// Matches packets that leave by the interface.
pub fn leaves_by(interface: &str) -> Vec<Expression> {
    meta_is(Meta::OutputInterface, &interface_name(interface))
}

/// Matches packets that came in by the interface.
pub fn came_by(interface: &str) -> Vec<Expression> {
    meta_is(Meta::InputInterface, &interface_name(interface))
}

/// Matches packets of sockets with the mark.
pub fn marked(mark: u32) -> Vec<Expression> {
    meta_is(Meta::Mark, &mark.to_ne_bytes())
}

/// Matches packets of sockets of the user.
pub fn sent_by_user(uid: u32) -> Vec<Expression> {
    meta_is(Meta::SocketUser, &uid.to_ne_bytes())
}

/// Sends the connection to a port of this machine.
pub fn redirect_to(port: u16) -> Vec<Expression> {
    vec![Expression::Immediate { second: false, value: port.to_be_bytes().to_vec() }, Expression::Redirect]
}

/// Sends the connection to another address and port; the rule must match the address's IP version.
pub fn nat_to(address: IpAddr, port: u16) -> Vec<Expression> {
    vec![
        Expression::Immediate { second: false, value: octets(address) },
        Expression::Immediate { second: true, value: port.to_be_bytes().to_vec() },
        Expression::DestinationNat { ipv6: address.is_ipv6() },
    ]
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn interface_name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(INTERFACE_NAME, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_kind() -> Vec<Expression> {
        let network = "10.0.0.0/8".parse().unwrap();
        let nat = nat_to("fd00::2".parse().unwrap(), 80);
        let lists = [
            icmp_types(true, 1, 4),
            tcp_opening(),
            destination(&network),
            source(&network),
            leaves_by("lo"),
            came_by("lo"),
            marked(1),
            sent_by_user(2),
            redirect_to(3),
            for_this_machine(),
            destination_in(false, "four"),
            destination_in(true, "six"),
            nat,
            vec![Expression::Masquerade],
            vec![Expression::DestinationNat { ipv6: false }],
            vec![Expression::Unknown { name: "counter".into(), data: Vec::new() }],
        ];
        let verdicts = VERDICTS.map(|(verdict, ..)| Expression::Verdict(verdict));
        [lists.concat(), verdicts.to_vec()].concat()
    }

    #[test]
    fn expressions_decode_to_what_was_encoded() {
        for expression in every_kind() {
            let element = expression.encode().into_bytes();
            assert_eq!(Expression::decode(&element).unwrap(), expression);
        }
    }

    #[test]
    fn redirect_has_the_bytes_the_kernel_documents() {
        let element = Expression::Redirect.encode().into_bytes();
        let number =
            |kind: u16, value: u8| [&8u16.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0, 0, 0, value]].concat();
        let expected = [
            [&10u16.to_ne_bytes()[..], &1u16.to_ne_bytes(), b"redir\0\0\0"].concat(),
            [28u16.to_ne_bytes(), 0x8002u16.to_ne_bytes()].concat(),
            number(1, 1),
            number(2, 1),
            number(3, 2),
        ]
        .concat();
        assert_eq!(element, expected);
    }

    #[test]
    fn expression_with_an_extra_attribute_is_unknown() {
        let data = Attributes::new().network_u32(1, 1).network_u32(2, 1).network_u32(3, 2).network_u32(9, 1);
        let element = Attributes::new().text(NAME, "redir").nest(DATA, data).into_bytes();
        assert!(matches!(Expression::decode(&element).unwrap(), Expression::Unknown { .. }));
    }

    #[test]
    fn expression_on_another_register_is_unknown() {
        let elsewhere = || Attributes::new().network_u32(1, 4);
        let field = elsewhere().network_u32(2, 2).network_u32(3, 2).network_u32(4, 2);
        for (name, data) in [("meta", elsewhere().network_u32(2, 3)), ("payload", field)] {
            let element = Attributes::new().text(NAME, name).nest(DATA, data).into_bytes();
            assert!(matches!(Expression::decode(&element).unwrap(), Expression::Unknown { .. }), "{name}");
        }
    }

    #[test]
    fn lookup_that_was_turned_round_is_unknown() {
        let data = Attributes::new().text(1, "four").network_u32(2, REGISTER).network_u32(5, 1);
        let element = Attributes::new().text(NAME, "lookup").nest(DATA, data).into_bytes();
        assert!(matches!(Expression::decode(&element).unwrap(), Expression::Unknown { .. }));
    }

    #[test]
    fn whole_address_space_compares_the_ip_version_only() {
        assert_eq!(destination(&"0.0.0.0/0".parse().unwrap()).len(), 2);
        assert_eq!(destination(&"::1/128".parse().unwrap()).len(), 4);
        assert_eq!(destination(&"fd00::/8".parse().unwrap()).len(), 5);
    }

    #[test]
    fn words_are_readable() {
        let words = tcp_opening().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(words, "meta l4proto == 0x06 @transport,13,1 & 0x17 == 0x02");
    }
}
