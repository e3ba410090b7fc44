//! The `signet-proxy` program; everything it does is in the library.

use std::process::ExitCode;

/// A message costs many small allocations; what this one saves, and costs, is in docs/decisions/0016-allocator.md.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    signet_proxy::run_from_args(std::env::args_os())
}
