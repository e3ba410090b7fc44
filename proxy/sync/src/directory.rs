//! Payload of section `directory/<network>`: which workload is behind an address and port of one network.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use prost::Message;
use signet_identity::SpiffeId;
use signet_policy::{Protocol, SpeaksFirst};

use crate::bytes::{address, at_most, fields_at_most, name, octets, port_or_none, spiffe_id};
use crate::proto::sync as wire;
use crate::{DecodeError, MAX_ENTRIES, MAX_PER_ENTRY, MAX_SEALING_KEYS};

/// The directory of one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    network: String,
    entries: Vec<Entry>,
    by_address: HashMap<SocketAddr, usize>,
    addresses: HashSet<IpAddr>,
    by_identity: HashMap<SpiffeId, Vec<usize>>,
}

/// What is behind one address and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Address callers dial.
    pub address: IpAddr,
    /// Port callers dial; 0 for a workload that serves none, whose address is known all the same.
    pub port: u16,
    /// The container's own port, the one policy speaks of.
    pub target_port: u16,
    /// Identities that may answer there; a caller accepts no other.
    pub identities: Vec<SpiffeId>,
    /// Name of the `Workload`.
    pub workload: String,
    /// Host names of the workload, lower case.
    pub names: Vec<String>,
    /// Protocol, as declared or observed.
    pub protocol: Protocol,
    /// Who speaks first, when known.
    pub speaks_first: Option<SpeaksFirst>,
    /// Unix seconds after which an observed habit is no longer to be relied on; `None` for a declared one.
    pub habit_expires: Option<u64>,
    /// X25519 keys of the instances that answer there, to what is sealed for them.
    pub sealing_keys: Vec<[u8; 32]>,
}

impl Entry {
    /// Who speaks first, unless unknown or observed too long ago.
    pub fn speaks_first_at(&self, now_unix_s: u64) -> Option<SpeaksFirst> {
        match self.habit_expires {
            Some(expires) if expires <= now_unix_s => None,
            _ => self.speaks_first,
        }
    }
}

impl Directory {
    /// A directory of `network` with `entries`.
    ///
    /// # Errors
    /// [`DecodeError::Duplicate`] when two entries have the same address and port, [`DecodeError::TooMany`],
    /// [`DecodeError::Missing`] when an entry has no identity.
    pub fn new(network: String, entries: Vec<Entry>) -> Result<Self, DecodeError> {
        at_most("directory.entries", entries.len(), MAX_ENTRIES)?;
        let mut by_address = HashMap::with_capacity(entries.len());
        let mut by_identity: HashMap<SpiffeId, Vec<usize>> = HashMap::new();
        for (index, entry) in entries.iter().enumerate() {
            if entry.identities.is_empty() {
                return Err(DecodeError::Missing { field: "directory.identities" });
            }
            let address = SocketAddr::new(entry.address, entry.port);
            if by_address.insert(address, index).is_some() {
                return Err(DecodeError::Duplicate { address });
            }
            for id in &entry.identities {
                by_identity.entry(id.clone()).or_default().push(index);
            }
        }
        let addresses = entries.iter().map(|entry| entry.address).collect();
        Ok(Self { network: name("directory.network", network)?, entries, by_address, addresses, by_identity })
    }

    /// From a section's payload.
    ///
    /// # Errors
    /// [`DecodeError`] names the field.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        fields_at_most("directory.entries", payload)?;
        Self::try_from(wire::Directory::decode(payload)?)
    }

    /// The network it is of.
    pub fn network(&self) -> &str {
        &self.network
    }

    /// What is behind `address` and `port`; a v4-mapped IPv6 address counts as the IPv4 one.
    pub fn lookup(&self, address: IpAddr, port: u16) -> Option<&Entry> {
        let index = self.by_address.get(&SocketAddr::new(address.to_canonical(), port))?;
        self.entries.get(*index)
    }

    /// Whether anything of the mesh is behind `address`, at whatever port.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address.to_canonical())
    }

    /// Everywhere an identity answers.
    pub fn of(&self, id: &SpiffeId) -> impl Iterator<Item = &Entry> {
        self.by_identity.get(id).into_iter().flatten().filter_map(|&index| self.entries.get(index))
    }

    /// Every entry, in the order received.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

impl TryFrom<wire::Directory> for Directory {
    type Error = DecodeError;

    fn try_from(directory: wire::Directory) -> Result<Self, DecodeError> {
        at_most("directory.entries", directory.entries.len(), MAX_ENTRIES)?;
        let entries = directory.entries.into_iter().map(Entry::try_from).collect::<Result<_, _>>()?;
        Self::new(directory.network, entries)
    }
}

impl TryFrom<wire::DirectoryEntry> for Entry {
    type Error = DecodeError;

    fn try_from(entry: wire::DirectoryEntry) -> Result<Self, DecodeError> {
        at_most("directory.identities", entry.identities.len(), MAX_PER_ENTRY)?;
        at_most("directory.names", entry.names.len(), MAX_PER_ENTRY)?;
        at_most("directory.sealing_keys", entry.sealing_keys.len(), MAX_SEALING_KEYS)?;
        Ok(Self {
            address: address("directory.address", &entry.address)?,
            port: port_or_none("directory.port", entry.port)?,
            target_port: port_or_none("directory.target_port", entry.target_port)?,
            protocol: protocol_from("directory.protocol", entry.protocol)?,
            speaks_first: speaks_first_from("directory.speaks_first", entry.speaks_first)?,
            identities: entry
                .identities
                .iter()
                .map(|id| spiffe_id("directory.identities", id))
                .collect::<Result<_, _>>()?,
            workload: name("directory.workload", entry.workload)?,
            names: entry.names.into_iter().map(|n| name("directory.names", n)).collect::<Result<_, _>>()?,
            habit_expires: (entry.habit_expires != 0).then_some(entry.habit_expires),
            sealing_keys: entry
                .sealing_keys
                .iter()
                .map(|key| sealing_key("directory.sealing_keys", key))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl From<&Directory> for wire::Directory {
    fn from(directory: &Directory) -> Self {
        Self {
            network: directory.network.clone(),
            entries: directory.entries.iter().map(wire::DirectoryEntry::from).collect(),
        }
    }
}

impl From<&Entry> for wire::DirectoryEntry {
    fn from(entry: &Entry) -> Self {
        Self {
            address: octets(entry.address),
            port: entry.port.into(),
            target_port: entry.target_port.into(),
            identities: entry.identities.iter().map(ToString::to_string).collect(),
            workload: entry.workload.clone(),
            names: entry.names.clone(),
            protocol: wire::Protocol::from(entry.protocol).into(),
            speaks_first: wire::SpeaksFirst::from(entry.speaks_first).into(),
            habit_expires: entry.habit_expires.unwrap_or(0),
            sealing_keys: entry.sealing_keys.iter().map(|key| key.to_vec()).collect(),
        }
    }
}

/// An X25519 public key.
///
/// # Errors
/// [`DecodeError::Length`] when it is not 32 bytes long.
pub fn sealing_key(field: &'static str, bytes: &[u8]) -> Result<[u8; 32], DecodeError> {
    bytes.try_into().map_err(|_| DecodeError::Length { field, expected: 32 })
}

pub(crate) fn protocol_from(field: &'static str, value: i32) -> Result<Protocol, DecodeError> {
    match wire::Protocol::try_from(value) {
        Ok(wire::Protocol::Auto) => Ok(Protocol::Auto),
        Ok(wire::Protocol::Grpc) => Ok(Protocol::Grpc),
        Ok(wire::Protocol::Http) => Ok(Protocol::Http),
        Ok(wire::Protocol::Http2) => Ok(Protocol::Http2),
        Ok(wire::Protocol::Opaque) => Ok(Protocol::Opaque),
        Ok(wire::Protocol::Tls) => Ok(Protocol::Tls),
        Ok(wire::Protocol::Unspecified) | Err(_) => Err(DecodeError::Enum { field, value }),
    }
}

pub(crate) fn speaks_first_from(field: &'static str, value: i32) -> Result<Option<SpeaksFirst>, DecodeError> {
    match wire::SpeaksFirst::try_from(value) {
        Ok(wire::SpeaksFirst::Unknown) => Ok(None),
        Ok(wire::SpeaksFirst::Client) => Ok(Some(SpeaksFirst::Client)),
        Ok(wire::SpeaksFirst::Server) => Ok(Some(SpeaksFirst::Server)),
        Ok(wire::SpeaksFirst::Unspecified) | Err(_) => Err(DecodeError::Enum { field, value }),
    }
}

impl From<Protocol> for wire::Protocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Auto => Self::Auto,
            Protocol::Grpc => Self::Grpc,
            Protocol::Http => Self::Http,
            Protocol::Http2 => Self::Http2,
            Protocol::Opaque => Self::Opaque,
            Protocol::Tls => Self::Tls,
        }
    }
}

impl From<Option<SpeaksFirst>> for wire::SpeaksFirst {
    fn from(speaks_first: Option<SpeaksFirst>) -> Self {
        match speaks_first {
            None => Self::Unknown,
            Some(SpeaksFirst::Client) => Self::Client,
            Some(SpeaksFirst::Server) => Self::Server,
        }
    }
}
