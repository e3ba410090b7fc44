//! Writes one half-stream.

use std::{fmt, sync::Arc};

use bytes::{BufMut, BytesMut};
use http::HeaderMap;

use super::{
    DATA_MAX, Direction, HEADER_LEN, MAX_UNSIGNED, Purpose, RecordSigner, RecordType, WriteError,
    alert_record, trailers, transcript::Transcript,
};

/// Writes one half of an opaque stream ([`Opening::writer`](super::Opening::writer)) or one body
/// ([`RecordWriter::body`]). The key is fixed for its life. Records are appended to the buffer the caller
/// passes; after an error nothing was.
pub struct RecordWriter {
    signer: Arc<dyn RecordSigner>,
    transcript: Transcript,
    purpose: Purpose,
    /// Number of the last record a SIG covers.
    signed_seq: u64,
    unsigned_bytes: usize,
    ended: bool,
}

impl RecordWriter {
    /// For a body whose head has the signature base `head_base`, in the direction of its message.
    pub fn body(signer: Arc<dyn RecordSigner>, direction: Direction, head_base: &[u8]) -> Self {
        Self::new(signer, Transcript::body(direction, head_base), Purpose::Body)
    }

    /// For a half whose opening is already in `transcript`.
    pub(super) fn stream(signer: Arc<dyn RecordSigner>, transcript: Transcript, purpose: Purpose) -> Self {
        Self::new(signer, transcript, purpose)
    }

    fn new(signer: Arc<dyn RecordSigner>, transcript: Transcript, purpose: Purpose) -> Self {
        Self { signer, transcript, purpose, signed_seq: 0, unsigned_bytes: 0, ended: false }
    }

    /// Appends `payload`, of any length, as DATA records, with a SIG of `now_ms` wherever [`MAX_UNSIGNED`] is
    /// reached. What is left uncovered waits for [`RecordWriter::sign`].
    ///
    /// # Errors
    /// [`WriteError::Ended`] after the end of the half; [`WriteError::NotSigned`].
    pub fn data(&mut self, payload: &[u8], now_ms: u64, out: &mut BytesMut) -> Result<(), WriteError> {
        self.check_signed()?;
        out.reserve(payload.len() + HEADER_LEN * payload.len().div_ceil(DATA_MAX));
        let mut rest = payload;
        while !rest.is_empty() {
            let room = MAX_UNSIGNED.saturating_sub(self.unsigned_bytes);
            let (part, after) = rest.split_at(rest.len().min(room).min(DATA_MAX));
            rest = after;
            if !part.is_empty() {
                self.put(RecordType::Data, part, out);
                self.unsigned_bytes += part.len();
            }
            if self.needs_signature() {
                self.sign(now_ms, out);
            }
        }
        Ok(())
    }

    /// The header of one DATA record, for a caller that sends header and payload without joining them. It must
    /// send both, and then [`RecordWriter::sign`] when [`RecordWriter::needs_signature`] says so.
    ///
    /// # Errors
    /// [`WriteError::Ended`]; [`WriteError::NotSigned`]; [`WriteError::PayloadLength`] unless there are 1 to
    /// [`DATA_MAX`] bytes; [`WriteError::SignatureDue`] if the caller did not sign when it had to.
    pub fn data_header(&mut self, payload: &[u8]) -> Result<[u8; HEADER_LEN], WriteError> {
        self.check_signed()?;
        if payload.is_empty() || payload.len() > DATA_MAX {
            return Err(WriteError::PayloadLength);
        }
        if self.unsigned_bytes + payload.len() > MAX_UNSIGNED {
            return Err(WriteError::SignatureDue);
        }
        self.unsigned_bytes += payload.len();
        Ok(self.transcript.append(RecordType::Data, payload))
    }

    /// Appends a SIG over everything so far; false, and nothing appended, if the last one covers it already.
    pub fn sign(&mut self, now_ms: u64, out: &mut BytesMut) -> bool {
        let new = self.has_unsigned();
        if new {
            let signer = &self.signer;
            self.transcript.signature(now_ms, |message| signer.sign(message)).encode(out);
            self.signed_seq = self.transcript.seq();
            self.unsigned_bytes = 0;
        }
        new
    }

    /// Ends the half: FIN and SIG; FIN alone where nothing is signed.
    ///
    /// # Errors
    /// [`WriteError::Ended`] if it has already ended.
    pub fn fin(&mut self, now_ms: u64, out: &mut BytesMut) -> Result<(), WriteError> {
        self.check_open()?;
        self.end(RecordType::Fin, now_ms, out);
        Ok(())
    }

    /// Ends a body with its trailer fields: TRAILERS, FIN and SIG. Without fields it is [`RecordWriter::fin`].
    ///
    /// # Errors
    /// [`WriteError::Ended`]; [`WriteError::NotABody`] on a stream; [`WriteError::TrailersTooLarge`].
    pub fn fin_with_trailers(
        &mut self,
        trailers: &HeaderMap,
        now_ms: u64,
        out: &mut BytesMut,
    ) -> Result<(), WriteError> {
        self.check_open()?;
        if self.purpose != Purpose::Body {
            return Err(WriteError::NotABody);
        }
        if !trailers.is_empty() {
            let payload = trailers::encode(trailers)?;
            self.put(RecordType::Trailers, &payload, out);
        }
        self.end(RecordType::Fin, now_ms, out);
        Ok(())
    }

    /// Ends the client's half of an `auto` stream before any DATA, because the client speaks HTTP: RELEASE and
    /// SIG (RELEASE alone where nothing is signed). No FIN follows.
    ///
    /// # Errors
    /// [`WriteError::Ended`]; [`WriteError::NotReleasable`] if the above does not hold.
    pub fn release(&mut self, now_ms: u64, out: &mut BytesMut) -> Result<(), WriteError> {
        self.check_open()?;
        let releasable = matches!(
            self.purpose,
            Purpose::Stream { releasable: true } | Purpose::Unsigned { releasable: true }
        );
        if !releasable || self.transcript.bytes() > 0 {
            return Err(WriteError::NotReleasable);
        }
        self.end(RecordType::Release, now_ms, out);
        Ok(())
    }

    /// Ends the records of a half that is not signed: RAW, and whatever follows is the application's.
    ///
    /// # Errors
    /// [`WriteError::Ended`]; [`WriteError::NotRaw`] if the half is signed.
    pub fn raw(&mut self, out: &mut BytesMut) -> Result<(), WriteError> {
        self.check_open()?;
        if self.is_signed() {
            return Err(WriteError::NotRaw);
        }
        self.end(RecordType::Raw, 0, out);
        Ok(())
    }

    /// Gives up: ALERT, and nothing after it. What no SIG covers yet will never be delivered.
    ///
    /// # Errors
    /// [`WriteError::Ended`]; [`WriteError::AlertInvalid`] if `code` is not a short kebab-case code.
    pub fn alert(&mut self, code: &str, out: &mut BytesMut) -> Result<(), WriteError> {
        self.check_open()?;
        out.put_slice(&alert_record(code)?);
        self.ended = true;
        self.signed_seq = self.transcript.seq();
        self.unsigned_bytes = 0;
        Ok(())
    }

    /// Whether a record has been written that no SIG covers; the peer delivers nothing of it until one does.
    pub fn has_unsigned(&self) -> bool {
        self.is_signed() && self.transcript.seq() > self.signed_seq
    }

    /// Whether this half is signed; if not, it has no DATA and ends with [`RecordWriter::raw`] or
    /// [`RecordWriter::fin`].
    pub fn is_signed(&self) -> bool {
        !matches!(self.purpose, Purpose::Unsigned { .. })
    }

    /// Whether [`MAX_UNSIGNED`] is reached: the next record must be a SIG.
    pub fn needs_signature(&self) -> bool {
        self.unsigned_bytes >= MAX_UNSIGNED
    }

    /// DATA payload bytes that no SIG covers.
    pub fn unsigned_bytes(&self) -> usize {
        self.unsigned_bytes
    }

    /// Whether the half has ended, cleanly or not.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    fn check_open(&self) -> Result<(), WriteError> {
        if self.ended { Err(WriteError::Ended) } else { Ok(()) }
    }

    fn check_signed(&self) -> Result<(), WriteError> {
        self.check_open()?;
        if self.is_signed() { Ok(()) } else { Err(WriteError::NotSigned) }
    }

    fn end(&mut self, record: RecordType, now_ms: u64, out: &mut BytesMut) {
        self.put(record, &[], out);
        self.sign(now_ms, out);
        self.ended = true;
    }

    fn put(&mut self, record: RecordType, payload: &[u8], out: &mut BytesMut) {
        let header = self.transcript.append(record, payload);
        out.put_slice(&header);
        out.put_slice(payload);
    }
}

impl fmt::Debug for RecordWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordWriter")
            .field("seq", &self.transcript.seq())
            .field("unsigned_bytes", &self.unsigned_bytes)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}
