//! HELLO, and the opening of an opaque stream: what binds it to its connection, its peers and its purpose.

use bytes::{BufMut, Bytes, BytesMut};
use std::sync::Arc;

use super::{
    Direction, Purpose, RecordError, RecordHash, RecordReader, RecordSigner, RecordType, RecordWriter,
    WriteError, chain,
    frame::{Fields, Header},
    hash::sha256,
    transcript::Transcript,
};

/// Bytes of a destination: a SPIFFE ID of 2,048 (the SPIFFE bound), a colon and a port, rounded up.
pub const DESTINATION_MAX: usize = 2_056;

/// Bytes of a SPIFFE ID.
const SPIFFE_ID_MAX: usize = 2_048;

/// Bytes before the destination.
const FIXED_LEN: usize = 3 + 2 * 32 + 2 * 16 + 8 + 2;

pub(super) const PAYLOAD_MAX: usize = FIXED_LEN + DESTINATION_MAX;

const VERSION: u8 = 1;
const HASH_NONE: u8 = 0;
const HASH_SHA256: u8 = 1;
const HASH_BLAKE3: u8 = 2;
const FLAG_AUTO: u8 = 1;

/// What one side says about a stream before it carries anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The protocol is not known yet: whoever speaks first decides, and the client may RELEASE the stream.
    pub auto: bool,
    /// What the records are hashed with: from the client the best it offers, from the server what is used. None:
    /// nothing is signed, and after the opening the bytes flow as they are.
    pub hash: Option<RecordHash>,
    /// SHA-256 of the sender's own signing leaf (`fp_self`).
    pub signer: [u8; 32],
    /// SHA-256 of the TLS leaf of the sender's peer (`fp_peer`).
    pub peer_tls: [u8; 32],
    /// The TLS exporter value of the connection (`chan`).
    pub channel: [u8; 16],
    /// Random; tells the streams of one connection apart.
    pub stream: [u8; 16],
    /// The sender's clock, Unix milliseconds; a claim, not checked here.
    pub unix_ms: u64,
    /// SPIFFE ID of the workload the stream is meant for, as the sender sees it. Only its bounds and character
    /// set are checked here; the caller compares it with the real destination.
    pub destination: String,
    /// Port of that workload.
    pub port: u16,
}

impl Hello {
    pub(super) fn parse(payload: &[u8]) -> Result<Self, RecordError> {
        let malformed = RecordError::Malformed(RecordType::Hello);
        let mut fields = Fields(payload);
        if fields.u8().ok_or(malformed)? != VERSION {
            return Err(RecordError::UnsupportedVersion);
        }
        let hash = match fields.u8().ok_or(malformed)? {
            HASH_NONE => None,
            HASH_SHA256 => Some(RecordHash::Sha256),
            HASH_BLAKE3 => Some(RecordHash::Blake3),
            _ => return Err(RecordError::UnsupportedHash),
        };
        let flags = fields.u8().ok_or(malformed)?;
        if flags & !FLAG_AUTO != 0 {
            return Err(RecordError::UnknownFlags);
        }
        Self::parse_rest(flags & FLAG_AUTO != 0, hash, fields).ok_or(malformed)
    }

    fn parse_rest(auto: bool, hash: Option<RecordHash>, mut fields: Fields<'_>) -> Option<Self> {
        let signer = fields.array()?;
        let peer_tls = fields.array()?;
        let channel = fields.array()?;
        let stream = fields.array()?;
        let unix_ms = fields.u64()?;
        let length = fields.u16()?;
        let (destination, port) = parse_destination(fields.bytes(length.into())?)?;
        fields.end()?;
        Some(Self { auto, hash, signer, peer_tls, channel, stream, unix_ms, destination, port })
    }

    /// The payload. There is exactly one for each value, so that encoding a parsed HELLO gives what arrived.
    fn encode(&self) -> BytesMut {
        let destination = format!("{}:{}", self.destination, self.port);
        let mut payload = BytesMut::with_capacity(FIXED_LEN + destination.len());
        payload.put_u8(VERSION);
        payload.put_u8(match self.hash {
            None => HASH_NONE,
            Some(RecordHash::Sha256) => HASH_SHA256,
            Some(RecordHash::Blake3) => HASH_BLAKE3,
        });
        payload.put_u8(if self.auto { FLAG_AUTO } else { 0 });
        payload.put_slice(&self.signer);
        payload.put_slice(&self.peer_tls);
        payload.put_slice(&self.channel);
        payload.put_slice(&self.stream);
        payload.put_u64(self.unix_ms);
        payload.put_u16(destination.len() as u16);
        payload.put_slice(destination.as_bytes());
        payload
    }
}

/// `spiffe-id:port`, the port in its one decimal form.
fn parse_destination(bytes: &[u8]) -> Option<(String, u16)> {
    let (id, digits) = str::from_utf8(bytes).ok()?.rsplit_once(':')?;
    let port: u16 = digits.parse().ok()?;
    let canonical = port.to_string() == digits;
    (canonical && is_destination(id, port)).then(|| (id.to_owned(), port))
}

fn is_destination(id: &str, port: u16) -> bool {
    id.starts_with("spiffe://")
        && id.len() <= SPIFFE_ID_MAX
        && id.bytes().all(|byte| byte.is_ascii_graphic())
        && port != 0
}

/// What one side knows when it opens an opaque stream.
#[derive(Clone, Debug)]
pub struct StreamParams {
    /// See [`Hello::auto`].
    pub auto: bool,
    /// The hash this side wants; SHA-256 is what is used unless both want BLAKE3.
    pub hash: RecordHash,
    /// A client asks for a stream on which nothing is signed; a server takes one, and signs whatever the client wants
    /// signed.
    pub unsigned: bool,
    /// SHA-256 of the TLS leaf this side presented on the connection.
    pub own_tls: [u8; 32],
    /// SHA-256 of the TLS leaf the peer presented on the connection.
    pub peer_tls: [u8; 32],
    /// The TLS exporter value of the connection.
    pub channel: [u8; 16],
    /// Fresh random bytes.
    pub stream: [u8; 16],
    /// Now, Unix milliseconds.
    pub unix_ms: u64,
    /// SPIFFE ID of the workload the stream is meant for.
    pub destination: String,
    /// Port of that workload.
    pub port: u16,
}

/// One side's half of a stream opening: its HELLO and CHAIN. Both sides send theirs at once and neither waits,
/// so that a server that speaks first may do so; a writer exists only once the peer's HELLO is known, because
/// the hash begins with both.
#[derive(Clone, Debug)]
pub struct Opening {
    direction: Direction,
    own_tls: [u8; 32],
    wanted: RecordHash,
    unsigned: bool,
    hello: Hello,
    hello_payload: Bytes,
    chain_payload: Bytes,
}

impl Opening {
    /// For the side that sends in `direction` and signs with the first certificate of `chain` (DER, leaf first).
    ///
    /// # Errors
    /// [`WriteError::ChainInvalid`] and [`WriteError::DestinationInvalid`] if either does not fit its record.
    pub fn new(
        direction: Direction,
        params: StreamParams,
        chain: &[impl AsRef<[u8]>],
    ) -> Result<Self, WriteError> {
        let leaf = chain.first().ok_or(WriteError::ChainInvalid)?;
        if !is_destination(&params.destination, params.port) {
            return Err(WriteError::DestinationInvalid);
        }
        let hello = Hello {
            auto: params.auto,
            hash: (!params.unsigned).then_some(params.hash),
            signer: sha256(&[leaf.as_ref()]),
            peer_tls: params.peer_tls,
            channel: params.channel,
            stream: params.stream,
            unix_ms: params.unix_ms,
            destination: params.destination,
            port: params.port,
        };
        Ok(Self {
            direction,
            own_tls: params.own_tls,
            wanted: params.hash,
            unsigned: params.unsigned,
            hello_payload: hello.encode().freeze(),
            hello,
            chain_payload: chain::encode(chain)?.freeze(),
        })
    }

    /// What a server answers to this HELLO of its client: the better hash that both want, or no signatures if the
    /// client asks for none and this side does without. The client's HELLO was reported by the reader, so that
    /// everything else in it is right.
    ///
    /// # Errors
    /// [`RecordError::Unsigned`] if the client wants to do without signatures and may not.
    pub fn answering(self, client: &Hello) -> Result<Self, RecordError> {
        let mut hello = self.hello;
        hello.hash = match client.hash {
            None if self.unsigned => None,
            None => return Err(RecordError::Unsigned),
            Some(RecordHash::Blake3) => Some(self.wanted),
            Some(RecordHash::Sha256) => Some(RecordHash::Sha256),
        };
        Ok(Self { hello_payload: hello.encode().freeze(), hello, ..self })
    }

    /// HELLO, and CHAIN if anything is signed: the first bytes of this side's half. A server's are those of
    /// [`Opening::answering`].
    pub fn records(&self) -> Bytes {
        let mut out = BytesMut::new();
        let mut put = |record, payload: &Bytes| {
            out.put_slice(&Header::of(record, payload.len()));
            out.put_slice(payload);
        };
        put(RecordType::Hello, &self.hello_payload);
        if self.hello.hash.is_some() {
            put(RecordType::Chain, &self.chain_payload);
        }
        out.freeze()
    }

    /// This side's HELLO.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The reader of the peer's half.
    pub fn reader(&self) -> RecordReader {
        RecordReader::stream(self.clone())
    }

    /// The writer of this side's half, which goes on after [`Opening::records`]. `peer` is the HELLO that the
    /// reader reported; a server's opening is the one that answers it.
    pub fn writer(&self, signer: Arc<dyn RecordSigner>, peer: &Hello) -> RecordWriter {
        let releasable = self.hello.auto && self.direction == Direction::ClientToServer;
        let mut transcript = self.transcript(self.direction, peer, &peer.encode());
        let purpose = match self.agreed(peer) {
            None => Purpose::Unsigned { releasable },
            Some(_) => {
                transcript.append(RecordType::Chain, &self.chain_payload);
                Purpose::Stream { releasable }
            }
        };
        RecordWriter::stream(signer, transcript, purpose)
    }

    /// The direction of the peer's half.
    pub(super) fn peer_direction(&self) -> Direction {
        self.direction.reverse()
    }

    /// Refuses a peer's HELLO that was made for another connection, and a server's that is no answer to ours;
    /// returns the opening as it stands now.
    pub(super) fn met(self, peer: &Hello) -> Result<Self, RecordError> {
        if peer.channel != self.hello.channel {
            return Err(RecordError::ChannelMismatch);
        }
        if peer.peer_tls != self.own_tls {
            return Err(RecordError::PeerMismatch);
        }
        match (self.direction, self.hello.hash, peer.hash) {
            (Direction::ServerToClient, ..) => self.answering(peer),
            (_, None, None) | (_, Some(_), Some(RecordHash::Sha256)) => Ok(self),
            (_, Some(RecordHash::Blake3), Some(RecordHash::Blake3)) => Ok(self),
            (_, Some(_), None) => Err(RecordError::Unsigned),
            (_, None | Some(RecordHash::Sha256), Some(_)) => Err(RecordError::UnsupportedHash),
        }
    }

    /// What both HELLOs together say: the server's choice.
    pub(super) fn agreed(&self, peer: &Hello) -> Option<RecordHash> {
        match self.direction {
            Direction::ClientToServer => peer.hash,
            Direction::ServerToClient => self.hello.hash,
        }
    }

    /// The beginning of the half that goes in `direction`, now that both HELLOs are known.
    pub(super) fn transcript(&self, direction: Direction, peer: &Hello, peer_payload: &[u8]) -> Transcript {
        // Without signatures nobody looks at it.
        let hash = self.agreed(peer).unwrap_or(RecordHash::Sha256);
        match self.direction {
            Direction::ClientToServer => {
                Transcript::stream(direction, hash, &self.hello_payload, peer_payload)
            }
            Direction::ServerToClient => {
                Transcript::stream(direction, hash, peer_payload, &self.hello_payload)
            }
        }
    }

    /// A transcript that stands in its place before.
    pub(super) fn no_transcript(&self) -> Transcript {
        Transcript::stream(self.peer_direction(), RecordHash::Sha256, &[], &[])
    }
}
