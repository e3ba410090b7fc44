//! Why a payload was not understood.

/// A payload, or a message of the stream, that is not what its schema says.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DecodeError {
    /// An IP address is not 4 or 16 bytes, or is a v4-mapped IPv6 address.
    #[error("{field} is not an address of 4 or 16 bytes")]
    Address {
        /// The field.
        field: &'static str,
    },
    /// A prefix length does not fit its address.
    #[error("{field} is not a network prefix")]
    Prefix {
        /// The field.
        field: &'static str,
    },
    /// The roots do not make a trust bundle.
    #[error("the roots do not make a trust bundle: {0}")]
    Bundle(String),
    /// The same address and port is listed twice.
    #[error("{address} is listed twice")]
    Duplicate {
        /// Address and port.
        address: std::net::SocketAddr,
    },
    /// An enum value this version does not know: it refuses rather than guess.
    #[error("{field} has the unknown value {value}")]
    Enum {
        /// The field.
        field: &'static str,
        /// The number received.
        value: i32,
    },
    /// A SPIFFE ID or trust domain is malformed.
    #[error("{field}: {source}")]
    Id {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        source: signet_identity::IdError,
    },
    /// A key or digest has the wrong length.
    #[error("{field} is not {expected} bytes long")]
    Length {
        /// The field.
        field: &'static str,
        /// Bytes expected.
        expected: usize,
    },
    /// A field that must be there is not.
    #[error("{field} is missing")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A name is empty, too long or holds characters that no such name has.
    #[error("{field} is empty, too long or holds characters that no such name has")]
    Name {
        /// The field.
        field: &'static str,
    },
    /// A directory names another network than its section.
    #[error("the directory is of another network than its section")]
    Network,
    /// An identity or path pattern is malformed.
    #[error("{field}: {source}")]
    Pattern {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        source: signet_policy::PatternError,
    },
    /// A port is 0 or above 65535.
    #[error("{field} is not a port")]
    Port {
        /// The field.
        field: &'static str,
    },
    /// A number is outside of what it can be.
    #[error("{field} is out of range")]
    Range {
        /// The field.
        field: &'static str,
    },
    /// The bytes are not protobuf of the expected message.
    #[error("not a well-formed message: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// A list is longer than its bound.
    #[error("{field} has more than {max} entries")]
    TooMany {
        /// The field.
        field: &'static str,
        /// The bound.
        max: usize,
    },
}
