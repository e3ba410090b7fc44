//! Message signatures: HTTP Message Signatures (RFC 9421), digest fields (RFC 9530), the profile the
//! mesh signs every message with, and the signed record layer for streams.
//!
//! Nothing here does I/O or reads a clock: a message is borrowed as a [`MessageView`], time comes in as
//! Unix seconds, randomness is only used inside the signature algorithms.
//!
//! * [`component`], [`base`], [`input`], [`key`] and [`sign`] / [`verify`] are the generic protocol, for any message and key;
//! * [`digest`] makes and checks `Content-Digest`;
//! * [`profile`] is the narrow, fast form spoken between sidecars, with [`replay`] protection;
//! * [`batch`] puts many messages under one signature;
//! * [`checkpoint`] puts messages that were only authenticated ([`MacKey`]) under one afterwards;
//! * [`record`] signs byte streams;
//! * [`seal`] encrypts what only the destination may read;
//! * [`jws`] signs and seals what is to be verified long after the connection that carried it.
//!
//! Invariants: the type of a key decides its algorithm and a message can only agree; a signature base is
//! rebuilt from what was received, never from what we would have sent; every list a peer controls has a
//! named bound.

pub mod base;
pub mod batch;
pub mod checkpoint;
pub mod component;
mod derived;
pub mod digest;
mod field;
pub mod input;
pub mod jws;
pub mod key;
mod mac;
pub mod message;
pub mod profile;
pub mod record;
pub mod replay;
pub mod seal;
pub mod sign;
pub mod verify;

pub use base::{BaseError, signature_base};
pub use component::Component;
pub use digest::{DigestError, DigestVerifier, StreamingDigest, sha256_header, verify_digest};
pub use input::{LabelledSignature, Params, ParseError, parse_signatures};
pub use key::{Algorithm, KeyError, SigningKey, VerifyingKey};
pub use mac::MacKey;
pub use message::{MessageView, RequestView, ResponseView};
pub use profile::{
    BodyBinding, ChannelId, Form, Freshness, MeshSigner, OriginWindows, Rules, SignError, SignatureError,
    SignedHead, Unproven, Unsigned, VerifiedHead, VerifiedKey, claims_signature, examine_origin_request,
    examine_origin_response, examine_request, examine_response, strip, verify_request, verify_response,
};
pub use replay::ReplayWindow;
