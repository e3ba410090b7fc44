//! Compose files.
#![allow(dead_code)]
mod emit;
mod extends;
mod fault;
mod marks;
mod merge;
mod ports;
mod tree;
mod value;
pub use fault::Fault;
pub use marks::{Restored, is_injected, restore};
/// Reads another file by its path, as seen from the folder of the first one; or says why it cannot.
pub type Read<'a> = dyn Fn(&str) -> Result<String, String> + 'a;
