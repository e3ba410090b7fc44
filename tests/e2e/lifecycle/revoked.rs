//! Whoever is revoked is out: with what it has open, with what it would open, and with what it would come back with.

use std::sync::mpsc;
use std::time::Instant;

use signet_cli::lab::mesh::intruder::{Caller, Draft, Identity, IntruderError, Stream, inside};
use signet_cli::lab::mesh::{Mesh, app, client, transcript};
use signet_cli::lab::runner::TestResult;
use signet_identity::Fingerprint;
use tokio::sync::oneshot;

use crate::protocols::stage::{CLIENT_MAY_ALL, Failure, Stage, manifests, server_id};

const REST: u16 = 8201;
const EVENTS: u16 = 8000;
const BYTES: u16 = 3306;

/// Holds a connection and a stream open while it is revoked, and goes on as if nothing had happened: it is the other side
/// that must end them. The order is that of the events: the answer to the operator, then everything else.
pub(super) fn revoked_instance_loses_what_is_open_and_neither_calls_nor_renews_nor_enrols() -> TestResult {
    let stage = Stage::new()?;
    let _apps = [
        app(&stage.server, &["rest"], &[REST])?,
        app(&stage.server, &["sse"], &[EVENTS])?,
        app(&stage.server, &["greeter"], &[BYTES])?,
    ];
    let ports = format!(
        "ports: [{{port: {REST}, protocol: http}}, {{port: {EVENTS}, protocol: http}}, {{port: {BYTES}}}]"
    );
    let meshed = stage.mesh(&manifests("", &ports, CLIENT_MAY_ALL), &[REST, EVENTS, BYTES])?;
    // It has no sidecar, and speaks for itself.
    let bare = stage.host.container("bare")?;
    let bare = bare.namespace();
    let token = meshed.mesh.token("client")?;
    let enrol = || Identity::enrol(bare, meshed.mesh.address(), token.clone());
    let (stolen, other) = (enrol()?, enrol()?);
    let leaf = stolen.tls.fingerprint;

    let (opened, is_open) = mpsc::channel();
    let (tell, told) = oneshot::channel::<()>();
    let (from, rest, bytes) = (bare.clone(), stage.place(REST), stage.place(BYTES));
    let id = server_id()?;
    let holder = std::thread::spawn(move || {
        inside(&from, move || async move {
            let mut caller = Caller::open(&stolen, rest).await?;
            let mut stream = Stream::open(&stolen, bytes, (&id, BYTES), true).await?;
            let request = caller.sign(&Draft::new("GET", "/api", "server"))?;
            let before = caller.call(&request).await?.status;
            let greeting = format!("{:?}", stream.receive().await?);
            let _ = opened.send((before, greeting));
            let _ = told.await;
            // Whatever comes next is the end: neither gets another byte of the app.
            let stream_goes_on = async {
                stream.send(b"still here\n").await?;
                stream.receive().await.map(|event| format!("{event:?}"))
            };
            let stream_goes_on = stream_goes_on.await;
            let request = caller.sign(&Draft::new("GET", "/api", "server"))?;
            let connection = caller.call(&request).await.map(|answer| answer.status);
            let anew = Caller::open(&stolen, rest).await;
            let anew = match anew {
                Ok(mut caller) => {
                    let request = caller.sign(&Draft::new("GET", "/api", "server"))?;
                    caller.call(&request).await.map(|answer| answer.status)
                }
                Err(error) => Err(error),
            };
            Ok::<_, IntruderError>((stream_goes_on, connection, anew))
        })
    });
    let (before, greeting) = is_open.recv()?;
    assert_eq!(before, 200);
    assert!(greeting.contains("Data"), "{greeting}");
    // A sidecar that is not meant has a stream of its own open.
    let to = stage.place(EVENTS).to_string();
    let arguments = ["sse", "--to", &to, "--events", "20", "--every", "100", "--timeout", "60"];
    let events = client(stage.client.namespace(), &arguments)?;

    meshed.mesh.revoke(leaf, "stolen")?;
    wait_until_acknowledged(&meshed.mesh)?;
    let _ = tell.send(());
    let (stream, connection, anew) = holder.join().map_err(|_| "the holder panicked")??;
    assert!(stream.is_err(), "the stream goes on: {stream:?}");
    assert!(
        connection.as_ref().map_or(true, |status| *status != 200),
        "the connection goes on: {connection:?}"
    );
    assert!(anew.as_ref().map_or(true, |status| *status != 200), "it is served anew: {anew:?}");
    // Its token is good for a hundred; now only an operator lets it in again.
    assert!(enrol().is_err(), "it enrols again");
    let let_in = Identity::enrol(bare, meshed.mesh.address(), meshed.mesh.token("client")?)?;
    for identity in [other, let_in] {
        let status = inside(bare, move || async move {
            let mut caller = Caller::open(&identity, rest).await?;
            let request = caller.sign(&Draft::new("GET", "/api", "server"))?;
            Ok(caller.call(&request).await?.status)
        });
        assert_eq!(status?, 200, "others of the same identity go on");
    }
    let events = transcript(&events)?;
    assert_eq!(events.exchanges[0].timing.events_ms.len(), 20, "the sidecar's own stream goes on");
    Ok(())
}

/// A sidecar's own app has a stream open when that sidecar is revoked: the stream ends, and calls are refused.
pub(super) fn revoked_sidecars_streams_and_tunnels_end_and_its_calls_are_refused() -> TestResult {
    let stage = Stage::new()?;
    let _apps = [
        app(&stage.server, &["rest"], &[REST])?,
        app(&stage.server, &["sse"], &[EVENTS])?,
        app(&stage.server, &["greeter"], &[BYTES])?,
    ];
    let ports = format!(
        "ports: [{{port: {REST}, protocol: http}}, {{port: {EVENTS}, protocol: http}}, {{port: {BYTES}}}]"
    );
    let meshed = stage.mesh(&manifests("", &ports, CLIENT_MAY_ALL), &[REST, EVENTS, BYTES])?;
    let to = stage.place(EVENTS).to_string();
    let arguments = ["sse", "--to", &to, "--events", "100000", "--every", "50", "--timeout", "60"];
    let events = client(stage.client.namespace(), &arguments)?;
    let mut bytes = crate::protocols::stage::connect(stage.client.namespace(), stage.place(BYTES))?;
    let mut greeting = [0; 19];
    std::io::Read::read_exact(&mut bytes, &mut greeting)?;

    let proxies = meshed.mesh.proxies()?;
    let client_leaf = proxies.iter().find(|proxy| proxy.spiffe_id.ends_with("/client")).ok_or("no client")?;
    let asked = Instant::now();
    meshed.mesh.revoke(client_leaf.instance.parse::<Fingerprint>()?, "stolen")?;
    let answered = asked.elapsed();
    // Both ends of both streams: what the app sees is their end, which it waits for.
    let mut rest = Vec::new();
    let end = std::io::Read::read_to_end(&mut bytes, &mut rest);
    println!("revoked in {answered:?}, the open stream ended {:?} after it was asked for", asked.elapsed());
    assert!(rest.is_empty(), "{end:?} after {rest:?}");
    let events = transcript(&events)?;
    assert!(events.exchanges[0].timing.events_ms.len() < 100_000);
    let answer = crate::protocols::http::get(stage.client.namespace(), stage.place(REST), "/api");
    assert!(answer.as_ref().map_or(true, |answer| answer.status() != 200), "it is served");
    Ok(())
}

/// Until every connected sidecar has the newest list.
fn wait_until_acknowledged(mesh: &Mesh) -> Result<(), Failure> {
    let has_it = || {
        let proxies = mesh.proxies().ok()?;
        let mut connected = proxies.iter().filter(|proxy| proxy.connected);
        let is_current = |proxy: &signet_sync::proto::admin::Proxy| {
            let mut sections = proxy.sections.iter();
            let list = sections.find(|section| section.name == "revocations");
            list.is_some_and(|list| list.counter > 1 && list.acked_counter == list.counter)
        };
        connected.all(is_current).then_some(())
    };
    signet_cli::lab::mesh::wait_until(crate::protocols::stage::LIMIT, has_it)
        .ok_or_else(|| "not every sidecar acknowledged the list".into())
}
