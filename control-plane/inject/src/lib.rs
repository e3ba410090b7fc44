//! Puts sidecars beside what people already run: text in, text out. No I/O, no clock.
//!
//! `signet inject` calls it for files. What is written for whom, and why, stands in `docs/install.md`.

pub mod compose;
pub mod kubernetes;
