//! The real binary as operators and proxies meet it: processes, sockets on free ports, signals.

mod access;
mod admin;
mod directory;
mod durability;
mod enrolment;
mod harness;
mod push;
mod start;
