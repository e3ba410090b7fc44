//! A sealed body: `u32 mark and length of the rest | ciphertext | tag`, one chunk after the other. The top bit of the
//! length marks the last one, and is authenticated with it.

use bytes::{Buf, BytesMut};

use super::SealError;
use super::aead::{Cipher, TAG_LEN};

/// Most plaintext in one chunk: what a TLS record holds, and what is lost to a reader that waits for a whole one.
pub const MAX_CHUNK: usize = 16 * 1024;

/// What a chunk is longer than its plaintext.
pub const OVERHEAD: usize = LENGTH_LEN + TAG_LEN;

const LENGTH_LEN: usize = 4;

/// In the length of the last chunk.
const LAST: u32 = 1 << 31;

/// Authenticated with every chunk: whether anything follows.
const MORE: &[u8] = b"more";
const FINAL: &[u8] = b"final";

/// Seals a body.
pub struct ChunkWriter {
    cipher: Cipher,
    number: u64,
}

impl ChunkWriter {
    pub(super) fn new(cipher: Cipher) -> Self {
        Self { cipher, number: 0 }
    }

    /// Appends `plaintext`, sealed; more follows.
    pub fn write(&mut self, plaintext: &[u8], out: &mut Vec<u8>) {
        plaintext.chunks(MAX_CHUNK).for_each(|chunk| self.push(chunk, false, out));
    }

    /// Appends the rest of the body, which may be empty, sealed; nothing follows.
    pub fn finish(mut self, plaintext: &[u8], out: &mut Vec<u8>) {
        let last = plaintext.len().saturating_sub(1) / MAX_CHUNK * MAX_CHUNK;
        let (before, last) = plaintext.split_at(last);
        self.write(before, out);
        self.push(last, true, out);
    }

    fn push(&mut self, chunk: &[u8], last: bool, out: &mut Vec<u8>) {
        // At most MAX_CHUNK and a tag: far below the mark.
        let length = (chunk.len() + TAG_LEN) as u32 | if last { LAST } else { 0 };
        out.extend_from_slice(&length.to_be_bytes());
        self.cipher.seal(self.number, if last { FINAL } else { MORE }, chunk, out);
        // A chunk carries a byte at least, so no stream lives to the end of these.
        self.number += 1;
    }
}

/// One opened chunk.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Its plaintext.
    pub data: BytesMut,
    /// Whether the body ends with it.
    pub last: bool,
}

/// Opens a body.
pub struct ChunkReader {
    cipher: Cipher,
    number: u64,
    done: bool,
}

impl ChunkReader {
    pub(super) fn new(cipher: Cipher) -> Self {
        Self { cipher, number: 0, done: false }
    }

    /// Takes the next chunk off `input`; `None` when it is not there yet. `input` never needs to hold more than one
    /// chunk, [`MAX_CHUNK`] + [`OVERHEAD`] bytes.
    ///
    /// # Errors
    /// [`SealError::Malformed`] for a length out of bounds and for bytes after the end, [`SealError::Broken`].
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Chunk>, SealError> {
        if self.done {
            return if input.is_empty() { Ok(None) } else { Err(SealError::Malformed) };
        }
        let Some(length) = input.first_chunk::<LENGTH_LEN>() else { return Ok(None) };
        let marked = u32::from_be_bytes(*length);
        let (last, length) = (marked & LAST != 0, (marked & !LAST) as usize);
        // Only the last one may be empty: nobody is kept busy with nothing.
        let least = if last { TAG_LEN } else { TAG_LEN + 1 };
        if !(least..=MAX_CHUNK + TAG_LEN).contains(&length) {
            return Err(SealError::Malformed);
        }
        if input.len() < LENGTH_LEN + length {
            return Ok(None);
        }
        input.advance(LENGTH_LEN);
        let mut data = input.split_to(length);
        let opened = self.cipher.open(self.number, if last { FINAL } else { MORE }, &mut data);
        let length = opened.ok_or(SealError::Broken)?.len();
        data.truncate(length);
        self.number += 1;
        self.done = last;
        Ok(Some(Chunk { data, last }))
    }

    /// Whether the body came to its end.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done
    }
}
