//! Python: `requests` over HTTP/1.1, and gRPC over HTTP/2.

use serde_json::Value;
use signet_cli::lab::runner::TestResult;
use signet_cli::lab::{Capabilities, Program};

use crate::pair::{Failure, Pair};
use crate::programs::{python, script};

const PORT: u16 = 8000;

/// A session of kept connections, a chunked upload, and names as they were written.
pub(crate) fn requests_sees_no_difference() -> TestResult {
    let pair = Pair::new()?;
    let _server = pair.serve(run("http_server.py")?.args([PORT.to_string()]), PORT)?;
    let client =
        || Ok::<_, Failure>(run("requests_client.py")?.args([format!("http://{}", pair.place(PORT))]));

    let direct: Value = serde_json::from_str(&pair.call(client()?)?)?;
    let mesh = pair.mesh(PORT, "to: [{methods: [GET, POST, PUT], paths: ['/**']}]")?;
    let meshed: Value = serde_json::from_str(&pair.call(client()?)?)?;
    let seen = &meshed[21]["body"];
    assert_eq!((&seen["target"], &seen["length"]), (&"/chunked".into(), &1_280_000.into()));
    let caller = field(&seen["headers"], "X-Forwarded-Client-Cert").unwrap_or_default();
    assert!(caller.ends_with(";URI=spiffe://mesh.example/app/host/client"), "{caller}");
    same(&steady(direct), &steady(meshed));
    mesh.check("signet_requests_total", 23)
}

/// Unary, streaming one way and both ways, metadata, trailers, and failures with their status.
pub(crate) fn grpc_sees_no_difference() -> TestResult {
    let pair = Pair::new()?;
    let _server = pair.serve(run("grpc_server.py")?.args([PORT.to_string()]), PORT)?;
    let client = || Ok::<_, Failure>(run("grpc_client.py")?.args([pair.place(PORT).to_string()]));

    let direct: Value = serde_json::from_str(&pair.call(client()?)?)?;
    let mesh = pair.mesh(PORT, "to: [{methods: [POST], paths: ['/peers.Service/*']}]")?;
    let meshed: Value = serde_json::from_str(&pair.call(client()?)?)?;
    assert_eq!(meshed["error"][0], "FAILED_PRECONDITION");
    same(&direct, &meshed);
    mesh.check("signet_requests_total", 5)
}

fn run(name: &str) -> Result<Program, Failure> {
    Ok(Program::new(python()?)
        .capabilities(Capabilities::None)
        .args([script(name)])
        .env("PYTHONUNBUFFERED", "1")
        .env("no_proxy", "*"))
}

fn field(fields: &Value, name: &str) -> Option<String> {
    let found = fields.as_array()?.iter().find(|field| field[0] == name)?;
    Some(found[1].as_str()?.to_owned())
}

/// Without the fields that the sidecar is meant to change: `Connection`, which each connection has of its own, the one
/// that tells the server who calls, and the length of the answer that repeats it.
fn steady(mut calls: Value) -> Value {
    for call in calls.as_array_mut().into_iter().flatten() {
        for path in ["/headers", "/body/headers"] {
            let changed = ["Connection", "X-Forwarded-Client-Cert", "Content-Length"];
            if let Some(fields) = call.pointer_mut(path).and_then(Value::as_array_mut) {
                fields.retain(|field| !changed.iter().any(|name| field[0] == *name));
            }
        }
    }
    calls
}

/// What each call gave has to be equal; says in which it is not.
fn same(direct: &Value, meshed: &Value) {
    let entries = |value: &Value| match value {
        Value::Array(list) => {
            list.iter().cloned().enumerate().map(|(index, value)| (index.to_string(), value)).collect()
        }
        Value::Object(map) => map.clone().into_iter().collect::<Vec<_>>(),
        other => vec![(String::new(), other.clone())],
    };
    let (direct, meshed) = (entries(direct), entries(meshed));
    assert_eq!(direct.len(), meshed.len());
    for (direct, meshed) in direct.iter().zip(&meshed) {
        assert_eq!(direct, meshed);
    }
}
