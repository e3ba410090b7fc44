//! The mesh profile of RFC 9421: each message signed by its sender, fresh for one place on one channel.
//!
//! * A signature has one of three [`Form`]s: an Ed25519 signature of its own, a place in a [batch](crate::batch)
//!   under one, or a code made with a key of the channel. What is covered is the same; what the third proves to others
//!   comes later, with a [checkpoint](crate::checkpoint).
//! * What is covered is computed from the message by one function, `cover::required`, for signer and verifier
//!   alike: the fixed components, and every field present that an application could act upon. So a
//!   component the verifier needs is always demanded, and a sensitive field added on the way is a
//!   coverage error.
//! * The nonce is `<channel>.<sequence>`. A request takes the next number of its connection, its response
//!   repeats it; the tag tells the direction, so a request can never be reflected as a response.
//! * A body is bound by a covered `content-digest`, or by `content-encoding: mesh-rec`: then the records
//!   of the body continue from the hash of the head's base. A head and a tail signature in the trailers could do
//!   the same where no records are spoken.
//! * What passes an intermediary that is not of the mesh is signed as its origin sent it, under tags of its own.

mod cover;
mod error;
mod head;
mod nonce;
mod origin;
mod signer;
mod strip;
#[cfg(test)]
mod tests;
mod unsigned;
mod verifier;

pub use error::{SignError, SignatureError};
pub use nonce::ChannelId;
pub use origin::{OriginWindows, examine_origin_request, examine_origin_response};
pub use signer::{MeshSigner, keyid};
pub use strip::{claims_signature, strip};
pub use unsigned::{SignedHead, Unsigned};
pub use verifier::{
    BodyBinding, Freshness, Rules, Unproven, VerifiedHead, VerifiedKey, examine_request, examine_response,
    verify_ed25519, verify_head, verify_request, verify_response, verify_tail,
};

/// Most signatures on a message of the mesh: ours and a few of the application's own.
pub const MAX_LABELS: usize = 4;

/// Most bytes of `Signature-Input`, and of `Signature`, on a message of the mesh.
pub const MAX_FIELD_BYTES: usize = 4096;

/// Most components a mesh signature may cover: all that the profile ever covers on both sides, doubled.
pub const MAX_COVERED: usize = 64;

/// How long a signature is valid, in seconds: long enough for a queue, short enough to bound harm.
pub const VALIDITY_SECONDS: u64 = 60;

/// The content coding of a body that is carried as signed records.
pub const RECORD_CODING: &str = "mesh-rec";

/// The header that carries certificates. It is the one `mesh-` field that is not covered, because the
/// chain in it proves itself.
pub const CERTIFICATE_FIELD: &str = "mesh-cert";

/// Bytes of an Ed25519 signature (RFC 8032 section 5.1.6).
const ED25519_LEN: usize = 64;

/// Which of the signatures of a message is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The only one, over the head, with the body bound by digest or records.
    Whole,
    /// The only one, like [`Whole`](Self::Whole), but for a workload behind an intermediary and not for a channel.
    Origin,
    /// The first of two, over the head of a message whose digest follows in the trailers.
    Head,
    /// The second of two, over the trailers.
    Tail,
}

/// Which signature a message has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A path to the signed root of a [batch](crate::batch). The parameter `alg` is left out, since no algorithm of
    /// that kind is registered; the tag tells.
    Batch,
    /// A code made with a [key of the channel](crate::MacKey), `alg="hmac-sha256"`. It convinces the other end of the
    /// channel and nobody else.
    Mac,
    /// An Ed25519 signature of its own, `alg="ed25519"`.
    Single,
}

/// The tag of a signature: direction, part and form.
pub(crate) fn tag(message: &crate::MessageView<'_>, part: Part, form: Form) -> &'static str {
    use crate::MessageView::{Request, Response};
    match (message, part, form) {
        (Request(_), Part::Whole, Form::Batch) => "mesh-req-b-v1",
        (Request(_), Part::Whole, Form::Mac) => "mesh-req-m-v1",
        (Request(_), Part::Whole, Form::Single) => "mesh-req-v1",
        (Request(_), Part::Origin, _) => "mesh-req-o-v1",
        (Request(_), Part::Head, _) => "mesh-req-head-v1",
        (Request(_), Part::Tail, _) => "mesh-req-tail-v1",
        (Response(_), Part::Whole, Form::Batch) => "mesh-rsp-b-v1",
        (Response(_), Part::Whole, Form::Mac) => "mesh-rsp-m-v1",
        (Response(_), Part::Whole, Form::Single) => "mesh-rsp-v1",
        (Response(_), Part::Origin, _) => "mesh-rsp-o-v1",
        (Response(_), Part::Head, _) => "mesh-rsp-head-v1",
        (Response(_), Part::Tail, _) => "mesh-rsp-tail-v1",
    }
}
