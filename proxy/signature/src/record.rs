//! The signed record layer: a byte stream cut into records, with an Ed25519 signature over a running hash at
//! every flush. It has two uses that share one core:
//!
//! * **opaque streams**: everything that is not HTTP, on a TLS connection of its own ([`Opening`]);
//! * **HTTP bodies** in the content-coding `mesh-rec`: what is too long for a digest in the head
//!   ([`RecordWriter::body`], [`RecordReader::body`]).
//!
//! Sans-I/O and without a clock: bytes in, bytes out, Unix milliseconds passed in.
//!
//! # Wire format
//!
//! Integers are big-endian. A record is `type u8, length u24, payload`.
//!
//! | type | record   | payload                                                                             | length (bytes) | use    |
//! |------|----------|-------------------------------------------------------------------------------------|----------------|--------|
//! | 0x00 | HELLO    | ver u8 = 1, hash u8 (0 none, 1 SHA-256, 2 BLAKE3), flags u8 (bit 0 auto), `fp_self` 32, `fp_peer` 32, `chan` 16, `stream` 16, `unix_ms` u64, length u16, destination `spiffe-id:port` | 109 + ≤ 2,056 | stream |
//! | 0x01 | DATA     | application bytes                                                                   | 1 to 262,144   | both   |
//! | 0x02 | SIG      | seq u64, bytes u64, `unix_ms` u64, `H_seq` 32, signature 64                         | 120            | both   |
//! | 0x03 | FIN      | nothing                                                                             | 0              | both   |
//! | 0x04 | ALERT    | code: lower-case letters, digits and hyphens                                        | 1 to 64        | both   |
//! | 0x05 | CHAIN    | count u8 (1 to 4), each: length u24, certificate DER; leaf first                    | ≤ 16,384       | stream |
//! | 0x06 | RELEASE  | nothing                                                                             | 0              | stream |
//! | 0x07 | TRAILERS | count u16 (1 to 100), each: length u16, lower-case name, length u16, value          | ≤ 16,384       | body   |
//! | 0x08 | RAW      | nothing                                                                             | 0              | unsigned stream |
//!
//! The two directions of a connection are two half-streams, each signed by its sender. Order in a half:
//!
//! * stream: `HELLO CHAIN (DATA | SIG)* (FIN | RELEASE) SIG`
//! * unsigned stream: `HELLO (FIN | RELEASE | RAW bytes…)`
//! * body: `(DATA | SIG)* [TRAILERS] FIN SIG`
//!
//! An ALERT may stand anywhere in place of the rest. It says why the sender gave up, is not signed, and never
//! makes an end clean. RELEASE says that the client of an `auto` stream turned out to speak HTTP; it is
//! admitted from client to server only, only when HELLO has the flag, and only before any DATA.
//!
//! # Negotiation
//!
//! The client's HELLO names the best hash it offers, the server's the one that is used in both directions: BLAKE3 if
//! both want it, else SHA-256. Both HELLOs are in `H_0`, so that nobody in between can change either. Hash 0 asks for
//! a stream on which nothing is signed; a server that requires signatures refuses it, and never gives it unasked.
//! Such a half has no CHAIN. It has records only as long as its sender does not know what it will carry; after RAW
//! the bytes are the application's, and the end is the connection's authenticated end (`close_notify`).
//!
//! # Transcript
//!
//! Every record except HELLO, SIG and ALERT has an implicit number `i`, counted from 1, and moves the hash on:
//!
//! ```text
//! stream  H_0 = HASH("mesh-opq-v1\0" || dir || HELLO payload c2s || HELLO payload s2c)    dir = "c2s" | "s2c"
//!         sig = Ed25519("mesh-opq-sig-v1\0" || dir || seq || bytes || unix_ms || H_seq)
//! body    H_0 = HASH("mesh-rec-v1\0" || SHA-256(signature base of the head))                    HASH = SHA-256
//!         sig = Ed25519("mesh-rec-sig-v1\0" || dir || seq || bytes || unix_ms || H_seq)      dir = "req" | "rsp"
//! both    H_i = HASH(H_{i-1} || i u64 || type || length u24 || payload)
//! ```
//!
//! `seq` is the number of the last record before the SIG and `bytes` the DATA payload bytes so far, so that
//! order, loss, repetition, truncation and position are all covered. Each SIG covers all from the start, so that
//! one that is missing only delays what it would have released. A SIG that covers nothing new is refused:
//! checking one costs far more than sending it. `chan` is the TLS exporter value and `fp_peer` the SHA-256 of
//! the peer's TLS leaf, so that a half is worthless on any other connection; `stream` is random, so that it is
//! worthless on a second stream of the same one. No signature made here is ever valid for an HTTP signature
//! base (which starts with `"`), nor one for a stream as one for a body.
//!
//! # Invariants
//!
//! * Only signed payload leaves the reader, and an end is reported only after the signature over it.
//! * A length beyond its type's maximum is refused at the header, before anything is stored.
//! * A reader holds at most [`MAX_UNSIGNED`] of unverified payload.

mod alert;
mod chain;
mod error;
mod frame;
mod hash;
mod hello;
mod key;
mod reader;
mod trailers;
mod transcript;
mod writer;

pub use alert::{ALERT_MAX, AlertCode, alert_record};
pub use chain::{CHAIN_CERTS_MAX, CHAIN_MAX};
pub use error::{RecordError, WriteError};
pub use frame::{DATA_MAX, HEADER_LEN, RecordType};
pub use hash::RecordHash;
pub use hello::{DESTINATION_MAX, Hello, Opening, StreamParams};
pub use key::{Ed25519Signer, RecordSigner};
pub use reader::{Event, RecordReader};
pub use trailers::{TRAILER_FIELDS_MAX, TRAILERS_MAX};
pub use transcript::{Direction, SignatureRecord};
pub use writer::RecordWriter;

/// Payload bytes a half may carry before the next SIG is due. Large enough that signing (about 10 µs) and
/// verifying (about 40 µs) vanish beside hashing, small enough to be held for every connection at once.
pub const MAX_UNSIGNED: usize = 256 * 1024;

/// What a half-stream carries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// The body of an HTTP message.
    Body,
    /// One direction of an opaque stream, and whether RELEASE may end it.
    Stream { releasable: bool },
    /// The same where nothing is signed: records only until it is known what the stream carries.
    Unsigned { releasable: bool },
}
