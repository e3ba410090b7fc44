//! Generates the gRPC client and server code from `proto/`; protox parses the schema, so no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = protox::compile(["sync.proto", "admin.proto"], ["proto"])?;
    // Secrets must not reach a log through a derived Debug; these messages get a redacting one in the library.
    // Transport helpers are left out: both ends bring their own sockets, and `Control/Connect` would collide with them.
    tonic_prost_build::configure()
        .build_transport(false)
        .skip_debug([
            ".signet.sync.v1.EnrolRequest",
            ".signet.sync.v1.JoinAreaRequest",
            ".signet.admin.v1.AddAreaResponse",
            ".signet.admin.v1.CreateTokenResponse",
            ".signet.sync.v1.SignJwtResponse",
        ])
        .compile_fds(files)?;
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}
