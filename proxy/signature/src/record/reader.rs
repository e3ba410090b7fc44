//! Reads one half-stream and lets only signed payload through.

use std::{collections::VecDeque, fmt, mem};

use bytes::{Buf, Bytes};
use http::HeaderMap;

use super::{
    AlertCode, Direction, HEADER_LEN, Hello, MAX_UNSIGNED, Opening, Purpose, RecordError, RecordType,
    SignatureRecord, chain, frame::Header, hash::sha256, key::RecordVerifier, trailers,
    transcript::Transcript,
};

/// What a half-stream brought.
#[derive(Clone, PartialEq, Eq)]
pub enum Event {
    /// The peer gave up. Not signed; the half is over and has no clean end.
    Alert(AlertCode),
    /// The peer's signing chain, leaf first; the leaf is the one its HELLO announced. The caller verifies it
    /// and calls [`RecordReader::set_key`].
    Chain(Vec<Bytes>),
    /// Verified payload: all that one SIG newly covered.
    Data(Bytes),
    /// The verified end of the half.
    Fin {
        /// The trailer fields of a body, if it had any.
        trailers: Option<HeaderMap>,
    },
    /// The peer's HELLO, made for this connection.
    Hello(Hello),
    /// The half is not signed: everything after this is payload, and stays in the input.
    Raw,
    /// The verified end of the half: the client turned out to speak HTTP.
    Release,
}

/// Prints sizes, never payload or field values.
impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alert(code) => f.debug_tuple("Alert").field(code).finish(),
            Self::Chain(certificates) => write!(f, "Chain({} certificates)", certificates.len()),
            Self::Data(payload) => write!(f, "Data({} bytes)", payload.len()),
            Self::Fin { trailers } => {
                write!(f, "Fin({} trailers)", trailers.as_ref().map_or(0, HeaderMap::len))
            }
            Self::Hello(hello) => f.debug_tuple("Hello").field(hello).finish(),
            Self::Raw => f.write_str("Raw"),
            Self::Release => f.write_str("Release"),
        }
    }
}

/// Reads one half of an opaque stream ([`Opening::reader`]) or one body ([`RecordReader::body`]).
pub struct RecordReader {
    transcript: Transcript,
    stage: Stage,
    progress: Progress,
    verifier: Option<RecordVerifier>,
    /// DATA payload no SIG covers yet; at most [`MAX_UNSIGNED`].
    held: Vec<u8>,
    /// Bytes of the last segment, which the next one will probably have too.
    expected: usize,
    /// Events of the last record, oldest first; at most two.
    ready: VecDeque<Event>,
    last_signature: Option<SignatureRecord>,
    failed: Option<RecordError>,
}

/// Which records may come next.
enum Stage {
    /// Stream: HELLO.
    Hello(Box<Opening>),
    /// Stream: the CHAIN of this HELLO.
    Chain {
        signer: [u8; 32],
        releasable: bool,
    },
    /// DATA, SIG or the beginning of the end.
    Open(Purpose),
    /// Body: FIN.
    Trailers(HeaderMap),
    /// The SIG that makes this event true.
    Closing(Event),
    Ended,
    Alerted,
}

/// How much of the current record has arrived.
enum Progress {
    Header { bytes: [u8; HEADER_LEN], filled: usize },
    Payload { header: Header, missing: usize, control: Vec<u8> },
}

impl Progress {
    const START: Self = Self::Header { bytes: [0; HEADER_LEN], filled: 0 };
}

impl RecordReader {
    /// For a body whose verified head has the signature base `head_base`, signed with the key of the head.
    ///
    /// # Errors
    /// [`RecordError::KeyInvalid`] if `public_key` is not an Ed25519 key.
    pub fn body(direction: Direction, head_base: &[u8], public_key: &[u8; 32]) -> Result<Self, RecordError> {
        let mut reader = Self::new(Transcript::body(direction, head_base), Stage::Open(Purpose::Body));
        reader.set_key(public_key)?;
        Ok(reader)
    }

    /// For the peer's half of the stream that `opening` opens.
    pub(super) fn stream(opening: Opening) -> Self {
        // No hashed record is admitted before HELLO, which puts the true transcript in its place.
        Self::new(opening.no_transcript(), Stage::Hello(Box::new(opening)))
    }

    fn new(transcript: Transcript, stage: Stage) -> Self {
        Self {
            transcript,
            stage,
            progress: Progress::START,
            verifier: None,
            held: Vec::new(),
            expected: 0,
            ready: VecDeque::new(),
            last_signature: None,
            failed: None,
        }
    }

    /// Takes bytes from `input` up to the next event, or all of them. Once the half has ended, `input` keeps
    /// what follows: raw payload, or the next stream on the connection; passing it here is an error.
    ///
    /// # Errors
    /// Why the half is refused; every later call repeats it.
    pub fn decode(&mut self, input: &mut impl Buf) -> Result<Option<Event>, RecordError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let outcome = self.advance(input);
        if let Err(error) = outcome {
            self.failed = Some(error);
            self.held = Vec::new();
        }
        outcome
    }

    /// Gives a stream the key its CHAIN was verified to hold; without it the first SIG is refused.
    ///
    /// # Errors
    /// [`RecordError::KeyInvalid`] if `public_key` is not an Ed25519 key.
    pub fn set_key(&mut self, public_key: &[u8; 32]) -> Result<(), RecordError> {
        self.verifier = Some(RecordVerifier::new(public_key)?);
        Ok(())
    }

    /// Whether the bytes may end here.
    ///
    /// # Errors
    /// [`RecordError::Truncated`] before a signed end, [`RecordError::Alerted`] after an ALERT, or the error
    /// the half was refused with.
    pub fn finish(&self) -> Result<(), RecordError> {
        match (self.failed, &self.stage) {
            (Some(error), _) => Err(error),
            (None, Stage::Ended) => Ok(()),
            (None, Stage::Alerted) => Err(RecordError::Alerted),
            (None, _) => Err(RecordError::Truncated),
        }
    }

    /// Whether the half has ended: by its clean end, by RAW or by an ALERT.
    pub fn is_ended(&self) -> bool {
        self.failed.is_none() && matches!(self.stage, Stage::Ended | Stage::Alerted)
    }

    /// The last SIG that verified: the evidence for everything delivered so far.
    pub fn last_signature(&self) -> Option<&SignatureRecord> {
        self.last_signature.as_ref()
    }

    fn advance(&mut self, input: &mut impl Buf) -> Result<Option<Event>, RecordError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            if !input.has_remaining() {
                return Ok(None);
            }
            if self.is_ended() {
                return Err(RecordError::AfterEnd);
            }
            self.take_chunk(input)?;
        }
    }

    /// Takes what the current header or payload still misses from the next chunk of `input`.
    fn take_chunk(&mut self, input: &mut impl Buf) -> Result<(), RecordError> {
        let (taken, complete) = match &mut self.progress {
            Progress::Header { bytes, filled } => {
                let taken = fill(bytes, filled, input.chunk());
                (taken, *filled == HEADER_LEN)
            }
            Progress::Payload { header, missing, control } => {
                let chunk = input.chunk();
                let chunk = &chunk[..chunk.len().min(*missing)];
                let into = if header.record == RecordType::Data { &mut self.held } else { control };
                into.extend_from_slice(chunk);
                *missing -= chunk.len();
                (chunk.len(), *missing == 0)
            }
        };
        input.advance(taken);
        if complete { self.step() } else { Ok(()) }
    }

    /// Goes on from a complete header to its payload, and from a complete payload to the next header.
    fn step(&mut self) -> Result<(), RecordError> {
        match mem::replace(&mut self.progress, Progress::START) {
            Progress::Header { bytes, .. } => self.begin(bytes),
            Progress::Payload { header, control, .. } => {
                let payload = match header.record {
                    RecordType::Alert | RecordType::Hello | RecordType::Signature => None,
                    // The whole record is there: it is the end of what is held.
                    RecordType::Data => self.held.len().checked_sub(header.length).map(|at| &self.held[at..]),
                    _ => Some(&control[..]),
                };
                if let Some(payload) = payload {
                    self.transcript.append(header.record, payload);
                }
                self.complete(header.record, control)
            }
        }
    }

    /// Everything that can be refused without the payload is refused here, before any of it is stored.
    fn begin(&mut self, bytes: [u8; HEADER_LEN]) -> Result<(), RecordError> {
        let header = Header::parse(bytes)?;
        self.admit(header.record)?;
        if header.record == RecordType::Data {
            if header.length == 0 {
                return Err(RecordError::Malformed(RecordType::Data));
            }
            if self.held.len() + header.length > MAX_UNSIGNED {
                return Err(RecordError::UnsignedDebt);
            }
            self.reserve(header.length);
        }
        self.progress = Progress::Payload { header, missing: header.length, control: Vec::new() };
        if header.length == 0 { self.step() } else { Ok(()) }
    }

    fn admit(&self, record: RecordType) -> Result<(), RecordError> {
        let admitted = match (&self.stage, record) {
            (Stage::Ended | Stage::Alerted, _) => false,
            (_, RecordType::Alert) => true,
            (Stage::Hello(_), RecordType::Hello) | (Stage::Chain { .. }, RecordType::Chain) => true,
            (
                Stage::Open(Purpose::Body | Purpose::Stream { .. }),
                RecordType::Data | RecordType::Signature | RecordType::Fin,
            ) => true,
            (Stage::Open(Purpose::Body), RecordType::Trailers) => true,
            (Stage::Open(Purpose::Stream { releasable }), RecordType::Release) => {
                *releasable && self.transcript.bytes() == 0
            }
            (Stage::Open(Purpose::Unsigned { releasable }), RecordType::Release) => *releasable,
            (Stage::Open(Purpose::Unsigned { .. }), RecordType::Fin | RecordType::Raw) => true,
            (Stage::Trailers(_), RecordType::Fin) | (Stage::Closing(_), RecordType::Signature) => true,
            _ => false,
        };
        if admitted { Ok(()) } else { Err(RecordError::UnexpectedRecord(record)) }
    }

    /// Grows `held` as a vector does, but never beyond [`MAX_UNSIGNED`]; at once to what the last segment had.
    fn reserve(&mut self, length: usize) {
        let needed = self.held.len() + length;
        if needed > self.held.capacity() {
            let target = needed.max(2 * self.held.capacity()).max(self.expected).min(MAX_UNSIGNED);
            self.held.reserve_exact(target - self.held.len());
        }
    }

    /// Acts on a whole, admitted record.
    fn complete(&mut self, record: RecordType, payload: Vec<u8>) -> Result<(), RecordError> {
        let stage = mem::replace(&mut self.stage, Stage::Ended);
        self.stage = match (record, stage) {
            (RecordType::Alert, _) => {
                let code = AlertCode::parse(&payload).ok_or(RecordError::Malformed(record))?;
                self.held = Vec::new();
                self.ready.push_back(Event::Alert(code));
                Stage::Alerted
            }
            (RecordType::Hello, Stage::Hello(opening)) => self.complete_hello(*opening, &payload)?,
            (RecordType::Chain, Stage::Chain { signer, releasable }) => {
                let certificates = chain::parse(&payload.into())?;
                if certificates.first().is_none_or(|leaf| sha256(&[leaf]) != signer) {
                    return Err(RecordError::ChainMismatch);
                }
                self.ready.push_back(Event::Chain(certificates));
                Stage::Open(Purpose::Stream { releasable })
            }
            (RecordType::Raw, _) => self.end(Event::Raw),
            (RecordType::Release, Stage::Open(Purpose::Unsigned { .. })) => self.end(Event::Release),
            (RecordType::Fin, Stage::Open(Purpose::Unsigned { .. })) => {
                self.end(Event::Fin { trailers: None })
            }
            (RecordType::Trailers, Stage::Open(_)) => Stage::Trailers(trailers::parse(&payload)?),
            (RecordType::Fin, Stage::Trailers(trailers)) => {
                Stage::Closing(Event::Fin { trailers: Some(trailers) })
            }
            (RecordType::Fin, _) => Stage::Closing(Event::Fin { trailers: None }),
            (RecordType::Release, _) => Stage::Closing(Event::Release),
            (RecordType::Signature, stage) => {
                self.verify(&payload)?;
                match stage {
                    Stage::Closing(event) => self.end(event),
                    stage => stage,
                }
            }
            (_, stage) => stage,
        };
        Ok(())
    }

    fn end(&mut self, event: Event) -> Stage {
        self.ready.push_back(event);
        Stage::Ended
    }

    fn complete_hello(&mut self, opening: Opening, payload: &[u8]) -> Result<Stage, RecordError> {
        let hello = Hello::parse(payload)?;
        let opening = opening.met(&hello)?;
        let direction = opening.peer_direction();
        self.transcript = opening.transcript(direction, &hello, payload);
        let releasable = hello.auto && direction == Direction::ClientToServer;
        let stage = match opening.agreed(&hello) {
            None => Stage::Open(Purpose::Unsigned { releasable }),
            Some(_) => Stage::Chain { signer: hello.signer, releasable },
        };
        self.ready.push_back(Event::Hello(hello));
        Ok(stage)
    }

    /// Releases the held payload if the SIG in `payload` covers it.
    fn verify(&mut self, payload: &[u8]) -> Result<(), RecordError> {
        let record = SignatureRecord::parse(payload)?;
        let signed_seq = self.last_signature.as_ref().map_or(0, |last| last.seq);
        if self.transcript.seq() == signed_seq {
            return Err(RecordError::NothingSigned);
        }
        let message = self.transcript.signed_message(&record)?;
        let verifier = self.verifier.as_ref().ok_or(RecordError::KeyMissing)?;
        verifier.verify(&message, &record.signature)?;
        self.last_signature = Some(record);
        self.expected = self.held.len();
        if !self.held.is_empty() {
            // Given away whole, so that an idle stream keeps no buffer.
            self.ready.push_back(Event::Data(mem::take(&mut self.held).into()));
        }
        Ok(())
    }
}

/// Copies into `target` from `filled` on; returns how many bytes of `chunk` it took.
fn fill(target: &mut [u8; HEADER_LEN], filled: &mut usize, chunk: &[u8]) -> usize {
    let mut taken = 0;
    for (slot, byte) in target.iter_mut().skip(*filled).zip(chunk) {
        *slot = *byte;
        taken += 1;
    }
    *filled += taken;
    taken
}

impl fmt::Debug for RecordReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordReader")
            .field("seq", &self.transcript.seq())
            .field("held", &self.held.len())
            .field("ended", &self.is_ended())
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}
