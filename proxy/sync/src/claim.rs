//! Claims: which addresses and ports a proxy says are its own. The control plane decides what to believe.

use std::net::IpAddr;

use crate::bytes::{address, at_most, octets, port};
use crate::{DecodeError, MAX_CLAIMS, proto::sync as wire};

/// One address of the proxy's own and the ports served on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// An address of one of the proxy's interfaces.
    pub address: IpAddr,
    /// Ports served, as the workload's manifest lists them; empty when it lists none.
    pub ports: Vec<u16>,
}

/// Claims from `Hello.claims` or `Claims.claims`.
///
/// # Errors
/// More than [`MAX_CLAIMS`] addresses or ports, or a malformed one: none is taken then.
pub fn decode_claims(claims: &[wire::Claim]) -> Result<Vec<Claim>, DecodeError> {
    at_most("claims", claims.len(), MAX_CLAIMS)?;
    claims.iter().map(Claim::try_from).collect()
}

impl TryFrom<&wire::Claim> for Claim {
    type Error = DecodeError;

    fn try_from(claim: &wire::Claim) -> Result<Self, DecodeError> {
        at_most("claim.ports", claim.ports.len(), MAX_CLAIMS)?;
        Ok(Self {
            address: address("claim.address", &claim.address)?,
            ports: claim.ports.iter().map(|&p| port("claim.ports", p)).collect::<Result<_, _>>()?,
        })
    }
}

impl From<&Claim> for wire::Claim {
    fn from(claim: &Claim) -> Self {
        Self { address: octets(claim.address), ports: claim.ports.iter().map(|&p| u32::from(p)).collect() }
    }
}
