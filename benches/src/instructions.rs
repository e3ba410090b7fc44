//! Instruction counts under `valgrind --tool=callgrind`: the figure that a busy machine does not move.

use clap::Args;

use crate::cli::Failed;

/// Count instructions of sign, verify, decide and one proxied request; needs valgrind
#[derive(Args, Debug)]
pub struct Instructions {}

impl Instructions {
    pub(crate) fn run(&self) -> Result<(), Failed> {
        Err(Failed::unavailable("not yet"))
    }
}
