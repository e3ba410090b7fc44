//! The `signet` binary: see the library for what it does.

use std::process::ExitCode;

/// A message costs many small allocations; what this one saves, and costs, is in docs/decisions/0016-allocator.md.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // A process that the demonstration starts in a namespace passes through here before anything else.
    signet_cli::lab::helper();
    if let Some(code) = signet_cli::lab::mesh::part() {
        return code;
    }
    signet_cli::cli::main()
}
