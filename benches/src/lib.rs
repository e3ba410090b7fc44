//! The load test of Signet: what it costs beside what operators would pick instead.
//!
//! [`load`] sets up two hosts, puts a pair of proxies between a client and a back end and measures, pair after pair and
//! round after round; [`traffic`] is the client and the back end; [`report`] turns the figures of a run into tables
//! and plots; [`fleet`] drives thousands of proxies against one control plane; [`instructions`] counts instructions under `valgrind`, of what is in [`micro`] and of whole requests. See
//! `README.md` beside this crate.

pub mod cli;
pub mod fleet;
pub mod instructions;
pub mod load;
pub mod micro;
pub mod report;
pub mod results;
pub mod traffic;
