//! End-to-end tests: the real binaries across network namespaces, each test in a lab of its own, and peers that speak
//! the mesh's protocols by hand so that they can also speak them wrongly.

mod areas;
mod attestors;
mod bypass;
mod claims;
mod coverage;
mod domains;
mod egress;
mod guard;
mod headers;
mod identity;
mod intermediary;
mod kubernetes;
mod lifecycle;
mod messages;
mod migration;
mod policy;
mod protection;
mod protocols;
mod signatures;
mod streams;
mod traffic;
mod workload_api;

use std::process::ExitCode;

use signet_cli::lab::runner;

fn main() -> ExitCode {
    // Before anything else: this process may be one of a lab's helpers.
    signet_cli::lab::helper();
    runner::main(
        &[
            signatures::TESTS,
            streams::TESTS,
            bypass::TESTS,
            identity::TESTS,
            areas::TESTS,
            attestors::TESTS,
            claims::TESTS,
            policy::TESTS,
            coverage::TESTS,
            domains::TESTS,
            headers::TESTS,
            kubernetes::TESTS,
            lifecycle::TESTS,
            protocols::TESTS,
            protection::TESTS,
            messages::TESTS,
            workload_api::TESTS,
            traffic::TESTS,
            egress::TESTS,
            guard::TESTS,
            intermediary::TESTS,
            migration::TESTS,
        ]
        .concat(),
    )
}
