//! Generates the client of etcd from `proto/`; protox parses the schema, so no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = protox::compile(["etcd.proto"], ["proto"])?;
    tonic_prost_build::configure().build_server(false).build_transport(false).compile_fds(files)?;
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}
