//! The real binary as operators and proxies meet it: processes, sockets on free ports, signals.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test, also in its helpers")]
#![allow(clippy::disallowed_methods, reason = "tests go by the machine's clock")]

mod access;
mod admin;
mod backup;
mod clocks;
mod copied;
mod directory;
mod durability;
mod enrolment;
mod full_disk;
mod harness;
mod history;
mod push;
mod revocation;
mod rotation;
mod start;
mod tampered;
