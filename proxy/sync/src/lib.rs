//! The contract between a proxy and its control plane: the schema, the signed sections, and the two ends of the stream.
//!
//! ```text
//!  control plane                                   proxy
//!  store ─► SectionKey::sign ─► Publisher ══════► Subscriber ─► models (policy, anchors, directory, revocations)
//!                                   ▲    Section       │
//!                                   └═════ Ack / Nack ◄┘
//! ```
//!
//! Invariants:
//! - A section is a whole state, never a delta. It is signed by its own authority and versioned by (epoch, counter);
//!   the [`Subscriber`] never goes back, and never leaves its last good state for one it could not verify and compile.
//! - The [`Publisher`] keeps at most one unanswered version per section in flight, so a slow proxy costs the control
//!   plane a bounded amount of memory and always ends on the newest version.
//! - Nothing in this crate does I/O or reads a clock.

mod anchors;
mod bytes;
mod claim;
mod decode;
mod directory;
mod edge;
mod freshness;
mod policy;
pub mod proto;
mod protocol;
mod publisher;
mod revocations;
mod section;
mod subscriber;
mod token;

pub use anchors::{Anchors, DirectoryKey};
pub use claim::{Claim, decode_claims};
pub use decode::DecodeError;
pub use directory::{Directory, Entry, sealing_key};
pub use edge::{Edge, End, Gap, Tally, decode_edges};
pub use freshness::SAID_NOW_MS;
pub use policy::minimum_reader;
pub use protocol::{MIN_PROTOCOL, PROTOCOL, ProtocolMismatch, ROTATION_PROTOCOL, negotiate};
pub use publisher::{ACK_TIMEOUT, Publisher, SectionState};
pub use revocations::{Revocation, Revocations, Subject};
pub use section::{KeyError, POLICY_KEY_ID, SectionError, SectionKey, SectionName, Version, area_key_id};
pub use subscriber::{Outcome, PolicyState, Subscriber};
pub use token::{MAX_ATTESTATION_BYTES, SECRET_BYTES, Token, TokenError};

/// Bytes in one section's payload. A mesh of ten thousand workloads compiles to under 3 MiB; more than this is refused
/// so that one section can neither exhaust a small proxy nor block the stream for long.
pub const MAX_SECTION_BYTES: usize = 4 * 1024 * 1024;

/// Bytes in one gRPC message of the stream: a full section and its envelope.
pub const MAX_MESSAGE_BYTES: usize = MAX_SECTION_BYTES + 64 * 1024;

/// Bytes in one answer to an operator: a change that is about twice the manifests that a mesh may have, each named at its
/// longest, takes 20 MiB. Only the control plane's own user and root are answered.
pub const MAX_ADMIN_ANSWER_BYTES: usize = 32 * 1024 * 1024;

/// Sections one proxy follows: policy, anchors, revocations and the directory of each network it is attached to.
pub const MAX_SECTIONS: usize = 64;

/// Bytes in a section's name; network names are far shorter.
pub const MAX_NAME_BYTES: usize = 300;

/// Entries in the directory of one network, and in the list of revocations: the size of a large cluster.
pub const MAX_ENTRIES: usize = 100_000;

/// Roots in force at once: the current and the next one, with room for an emergency.
pub const MAX_ROOTS: usize = 8;

/// Keys that JWT-SVIDs verify under: the one that signs, the next one, and those whose tokens have not ended.
pub const MAX_JWT_KEYS: usize = 8;

/// Audiences of one JWT-SVID: SPIFFE advises one.
pub const MAX_AUDIENCES: usize = 8;

/// Areas that may sign directories in one trust domain.
pub const MAX_DIRECTORY_KEYS: usize = 1_024;

/// Identities or names behind one address and port, and networks of one area.
pub const MAX_PER_ENTRY: usize = 256;

/// Keys to what is sealed for one place: as many as one message can be sealed for.
pub const MAX_SEALING_KEYS: usize = 64;

/// Header fields that are sealed for one workload.
pub const MAX_SEALED_HEADERS: usize = 64;

/// Addresses one proxy may claim, and ports on each: a container has a handful.
pub const MAX_CLAIMS: usize = 256;

/// Edges that lack protection in one status: a workload has a few dozen callers and destinations.
pub const MAX_EDGES: usize = 256;

/// Bytes they may take: room for all of them with identities as long as those of mF2C. It is kept per proxy.
pub const MAX_EDGE_BYTES: usize = 64 * 1024;

/// Bytes of the reason in a negative answer: it is shown to people and kept per proxy.
pub const MAX_NACK_BYTES: usize = 1_024;
