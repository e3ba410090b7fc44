//! Generates both ends of SPIFFE's Workload API from `proto/`; protox parses the schema, so no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = protox::compile(["workload.proto"], ["proto"])?;
    // Keys and tokens must not reach a log through a derived Debug; these messages get a redacting one in the crate.
    tonic_prost_build::configure()
        .build_transport(false)
        .skip_debug([".X509SVID", ".JWTSVID", ".ValidateJWTSVIDRequest"])
        .compile_fds(files)?;
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}
