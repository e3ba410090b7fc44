//! Which protocol number two ends speak.

/// The protocol number of this version: the highest it speaks, and the highest `Section.minimum_reader` it applies.
///
/// 2 added to policy what a reader of 1 would pass over: rules that deny, conditions, roles, header policies.
/// 3 added protection and normal forms by route, intermediaries, traffic and egress policies, virtual addresses.
/// 4 added bounds on how long a proxy goes on without its control plane, issuers that are refused although a root vouches for
/// them, and control planes that show several roots.
/// 5 added the anchors to the word on what is newest; a proxy of 4 believes none, and takes itself for alone where policy bounds
/// that.
pub const PROTOCOL: u32 = 5;

/// The lowest protocol number with which a proxy can follow a rotation of issuers or roots.
pub const ROTATION_PROTOCOL: u32 = 4;

/// The lowest protocol number this version still speaks: N and N−1 interoperate.
pub const MIN_PROTOCOL: u32 = 1;

/// The two ends have no protocol number in common.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the peer speaks protocol {peer_min} to {peer_max}, this side {MIN_PROTOCOL} to {PROTOCOL}: upgrade the older side"
)]
pub struct ProtocolMismatch {
    /// Lowest number the peer speaks.
    pub peer_min: u32,
    /// Highest number the peer speaks.
    pub peer_max: u32,
}

/// The highest protocol number both ends speak, from the range in `Hello` or `EnrolRequest`.
///
/// # Errors
/// [`ProtocolMismatch`] when the ranges do not meet.
pub fn negotiate(peer_min: u32, peer_max: u32) -> Result<u32, ProtocolMismatch> {
    let agreed = PROTOCOL.min(peer_max);
    if agreed < MIN_PROTOCOL.max(peer_min) {
        return Err(ProtocolMismatch { peer_min, peer_max });
    }
    Ok(agreed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_common_protocol_is_spoken() {
        assert_eq!(negotiate(PROTOCOL, PROTOCOL), Ok(PROTOCOL));
        assert_eq!(negotiate(PROTOCOL, PROTOCOL + 1), Ok(PROTOCOL));
        assert_eq!(negotiate(0, PROTOCOL), Ok(PROTOCOL));
    }

    #[test]
    fn ranges_that_do_not_meet_are_refused() {
        assert!(negotiate(PROTOCOL + 1, PROTOCOL + 2).is_err());
        assert!(negotiate(0, MIN_PROTOCOL - 1).is_err());
        assert!(negotiate(PROTOCOL, 0).is_err());
    }
}
