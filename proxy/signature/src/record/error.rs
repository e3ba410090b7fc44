//! What can go wrong: [`RecordError`] is the peer's doing, [`WriteError`] our own.

use super::RecordType;

/// Why a received half-stream is refused. Nothing that was not signed before has been delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Bytes follow the end of the half-stream.
    #[error("bytes follow the end of the record stream")]
    AfterEnd,
    /// The peer gave up with an ALERT; the stream has no clean end.
    #[error("the peer ended the record stream with an alert")]
    Alerted,
    /// The signature does not verify under the signer's key.
    #[error("record signature does not verify")]
    BadSignature,
    /// A SIG counts other payload bytes than arrived.
    #[error("record signature counts other bytes than arrived")]
    ByteCountMismatch,
    /// The leaf of CHAIN is not the certificate HELLO announced.
    #[error("the signing chain is not the one the hello announced")]
    ChainMismatch,
    /// HELLO was made for another TLS connection.
    #[error("the hello was made for another connection")]
    ChannelMismatch,
    /// A SIG names another running hash than the received records have.
    #[error("record hash differs from the signed one")]
    HashMismatch,
    /// The signer's public key is not an Ed25519 key.
    #[error("the signer's public key is not usable")]
    KeyInvalid,
    /// A SIG arrived before the caller resolved the signer's key.
    #[error("a signature arrived before its key was known")]
    KeyMissing,
    /// A payload does not have its type's form.
    #[error("malformed {0} record")]
    Malformed(RecordType),
    /// A SIG covers no record that the one before did not.
    #[error("a record signature covers nothing new")]
    NothingSigned,
    /// A record is longer than its type allows.
    #[error("{0} record is too long")]
    Oversize(RecordType),
    /// HELLO was made for a peer with another TLS certificate than ours.
    #[error("the hello was made for another peer")]
    PeerMismatch,
    /// A SIG has another sequence number than the received records.
    #[error("record signature has another sequence number than the records")]
    SequenceMismatch,
    /// The bytes ended before a signed FIN or RELEASE.
    #[error("record stream ended without a signed end")]
    Truncated,
    /// A known record stands where it may not.
    #[error("unexpected {0} record")]
    UnexpectedRecord(RecordType),
    /// HELLO has a flag this version does not know.
    #[error("hello has unknown flags")]
    UnknownFlags,
    /// The record type does not exist.
    #[error("unknown record type")]
    UnknownType,
    /// HELLO asks for a stream without signatures where they are required, or answers with one that was not offered.
    #[error("hello asks for a stream without signatures")]
    Unsigned,
    /// More payload arrived without a signature than may be held.
    #[error("too much payload without a signature")]
    UnsignedDebt,
    /// HELLO names a hash that does not exist, or answers with one that was not offered.
    #[error("hello asks for an unsupported hash")]
    UnsupportedHash,
    /// HELLO is of another version.
    #[error("hello has an unsupported version")]
    UnsupportedVersion,
}

impl RecordError {
    /// Stable kebab-case code for logs, metrics and [`RecordWriter::alert`](super::RecordWriter::alert).
    pub const fn code(self) -> &'static str {
        match self {
            Self::AfterEnd => "record-after-end",
            Self::Alerted => "record-alerted",
            Self::BadSignature => "record-bad-signature",
            Self::ByteCountMismatch => "record-byte-count-mismatch",
            Self::ChainMismatch => "record-chain-mismatch",
            Self::ChannelMismatch => "record-channel-mismatch",
            Self::HashMismatch => "record-hash-mismatch",
            Self::KeyInvalid => "record-key-invalid",
            Self::KeyMissing => "record-key-missing",
            Self::Malformed(_) => "record-malformed",
            Self::NothingSigned => "record-nothing-signed",
            Self::Oversize(_) => "record-oversize",
            Self::PeerMismatch => "record-peer-mismatch",
            Self::SequenceMismatch => "record-sequence-mismatch",
            Self::Truncated => "record-truncated",
            Self::UnexpectedRecord(_) => "record-unexpected",
            Self::UnknownFlags => "record-unknown-flags",
            Self::UnknownType => "record-unknown-type",
            Self::Unsigned => "record-unsigned",
            Self::UnsignedDebt => "record-unsigned-debt",
            Self::UnsupportedHash => "record-unsupported-hash",
            Self::UnsupportedVersion => "record-unsupported-version",
        }
    }
}

/// Why a record could not be written. Nothing was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// An alert code is empty, too long, or not kebab-case ASCII.
    #[error("alert code is not 1 to 64 lower-case letters, digits or hyphens")]
    AlertInvalid,
    /// The signing chain is empty, has more than four certificates, or is over 16 KiB.
    #[error("signing chain does not fit a record")]
    ChainInvalid,
    /// The destination is no SPIFFE ID of at most 2,048 visible ASCII bytes, or its port is 0.
    #[error("stream destination does not fit a record")]
    DestinationInvalid,
    /// The half-stream has already ended.
    #[error("record stream has already ended")]
    Ended,
    /// The private key is not a PKCS#8 Ed25519 key.
    #[error("signing key is not a PKCS#8 Ed25519 key")]
    KeyInvalid,
    /// RAW in a half that is signed.
    #[error("a signed record stream has no raw bytes")]
    NotRaw,
    /// Only an HTTP body has trailers.
    #[error("trailers belong to bodies only")]
    NotABody,
    /// RELEASE outside an auto stream, from the server, or after data.
    #[error("this stream cannot be released")]
    NotReleasable,
    /// DATA in a half that is not signed.
    #[error("an unsigned record stream has no data records")]
    NotSigned,
    /// The payload of a single DATA record is empty or longer than the maximum.
    #[error("payload does not fit one data record")]
    PayloadLength,
    /// A signature is due before more data.
    #[error("a signature is due before more data")]
    SignatureDue,
    /// More than 100 trailer fields, or over 16 KiB of them.
    #[error("trailers do not fit a record")]
    TrailersTooLarge,
}
