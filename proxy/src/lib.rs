//! The Signet sidecar.
//!
//! One request, by file:
//!
//! ```text
//! OUTBOUND  app -> kernel redirect -> listen -> outbound (route) -> detect -> outbound/http
//!           judge (target, authorize) -> body::Payload -> pool checkout -> tls -> sign -> wire
//!           -> verify (response) -> app
//! INBOUND   wire -> listen -> inbound -> detect -> tls -> Peer -> inbound/http
//!           verify -> authorize -> inbound/app -> app -> sign (response) -> wire
//! OPAQUE    outbound/stream, inbound/stream -> records (HELLO) -> opaque (signed records)
//! ```
//!
//! Threads: one current-thread runtime per worker ([`proxy`]), each with its own listeners, pools
//! and tasks; the control client ([`control`]), the admin endpoints ([`admin`]) and telemetry run on
//! one separate thread, and so do handshakes whose keys a TPM holds. Workers read policy and identity from [`snapshot`], replaced as a whole.

pub mod admin;
pub mod appoint;
mod authorize;
mod batcher;
mod body;
pub mod capture;
mod channel;
mod checkpoint;
mod clock;
mod command;
pub mod config;
pub mod control;
mod deferred;
pub mod detect;
pub mod edges;
pub mod guard;
pub mod habit;
mod handshakes;
mod head;
mod headers;
mod hold;
pub mod host;
mod http_client;
mod http_server;
mod inbound;
mod limits;
mod listen;
pub mod local;
mod normal;
mod opaque;
mod outbound;
mod own;
mod pool;
pub mod prefixed;
pub mod probes;
mod problem;
pub mod proxy;
mod ready;
mod recheck;
mod records;
mod relay;
pub mod ring;
mod round_trip;
mod seal;
mod severable;
mod sign;
pub mod snapshot;
pub mod sockets;
mod tampered;
mod target;
pub mod telemetry;
mod tls;
mod traffic;
mod unix_socket;
mod verify;
pub mod worker;
pub mod workload_api;

pub use command::run_from_args;
