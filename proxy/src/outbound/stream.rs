//! Opaque bytes to another workload, as signed records on a connection of their own.

use std::rc::Rc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use signet_identity::SpiffeId;
use signet_policy::{Refusal, SpeaksFirst};
use signet_signature::record::{Event as RecordEvent, RecordType};
use tokio::io::AsyncReadExt;

use super::Destination;
use crate::authorize::{Content, Grant};
use crate::channel::Channel;
use crate::clock;
use crate::detect::Protocol;
use crate::opaque::{self, Broken, Records, say_last};
use crate::prefixed::Prefixed;
use crate::recheck::Recheck;
use crate::records;
use crate::ring::Direction;
use crate::sockets::reset_on_close;
use crate::tls::{self, Alpn};
use crate::worker::{Event, Worker};

/// How long the other side may take to give its application connection back.
const RELEASE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// A stream that is open, and the connection it is on.
struct Stream {
    records: Records,
    channel: Rc<Channel>,
}

/// Carries a connection of which it is known that it is not HTTP.
pub(crate) async fn carry(
    worker: &Rc<Worker>,
    own: &SpiffeId,
    client: Prefixed,
    destination: &Destination,
    auto: bool,
) {
    let request_id = worker.request_id();
    let grant = destination.grant(own, Content::Opaque);
    let decided = grant.decide(&worker.shared.snapshot());
    let opened = match &decided {
        Ok(_) => open(worker, destination, auto).await,
        Err(refusal) => Err(*refusal),
    };
    let outcome = match &opened {
        Ok(_) => decided,
        Err(refusal) => Err(*refusal),
    };
    record(worker, &request_id, destination, &grant, &outcome);
    match opened {
        Ok(stream) => run(worker, stream, client, grant).await,
        Err(_) => reset_on_close(client.get_ref()),
    }
}

/// Finds out who speaks first on a port of unknown habit: the client's first bytes and an open
/// stream to the application race, and no clock decides. Returns the client when it turned out to
/// speak HTTP; otherwise the connection has been served.
pub(crate) async fn race(
    worker: &Rc<Worker>,
    own: &SpiffeId,
    mut client: Prefixed,
    destination: &Destination,
) -> Option<(Prefixed, Protocol)> {
    let grant = destination.grant(own, Content::Opaque);
    let permitted = grant.decide(&worker.shared.snapshot());
    if permitted.is_err() {
        // Without an L4 permission the far side would refuse; HTTP is judged request by request.
        return detect_only(client).await;
    }
    let mut opening = std::pin::pin!(open(worker, destination, true));
    let opened = tokio::select! {
        biased;
        detected = client.detect() => {
            let protocol = match detected {
                Ok(protocol) => protocol.unwrap_or(Protocol::Opaque),
                Err(_) => { reset_on_close(client.get_ref()); return None }
            };
            let opened = opening.await;
            return client_first(worker, client, destination, grant, protocol, opened).await;
        }
        opened = &mut opening => opened,
    };
    let Ok(mut stream) = opened else { return detect_only(client).await };
    // The stream is open and the client still silent: whoever speaks now speaks first.
    tokio::select! {
        biased;
        detected = client.detect() => {
            let protocol = match detected {
                Ok(protocol) => protocol.unwrap_or(Protocol::Opaque),
                Err(_) => { reset_on_close(client.get_ref()); return None }
            };
            client_first(worker, client, destination, grant, protocol, Ok(stream)).await
        }
        spoke = wait_readable(&mut stream.records) => {
            if spoke {
                worker.habits.borrow_mut().observe(&destination.id, destination.port, SpeaksFirst::Server, Instant::now());
            }
            begin(worker, destination, stream, client, grant).await;
            None
        }
    }
}

async fn detect_only(mut client: Prefixed) -> Option<(Prefixed, Protocol)> {
    match client.detect().await {
        Ok(Some(protocol)) => Some((client, protocol)),
        Ok(None) => None,
        Err(_) => {
            reset_on_close(client.get_ref());
            None
        }
    }
}

/// The client spoke: HTTP leaves the stream, everything else uses it.
async fn client_first(
    worker: &Rc<Worker>,
    client: Prefixed,
    destination: &Destination,
    grant: Grant,
    protocol: Protocol,
    opened: Result<Stream, Refusal>,
) -> Option<(Prefixed, Protocol)> {
    if !client.prefix().is_empty() {
        worker.habits.borrow_mut().observe(
            &destination.id,
            destination.port,
            SpeaksFirst::Client,
            Instant::now(),
        );
    }
    let http = matches!(protocol, Protocol::Http1 | Protocol::Http2);
    match opened {
        Ok(stream) if http => {
            release(stream).await;
            Some((client, protocol))
        }
        Ok(stream) => {
            begin(worker, destination, stream, client, grant).await;
            None
        }
        // HTTP gets its answer from the request's own way; opaque bytes try again and get theirs.
        Err(_) => Some((client, protocol)),
    }
}

async fn begin(
    worker: &Rc<Worker>,
    destination: &Destination,
    stream: Stream,
    client: Prefixed,
    grant: Grant,
) {
    let request_id = worker.request_id();
    let outcome = grant.decide(&worker.shared.snapshot());
    record(worker, &request_id, destination, &grant, &outcome);
    match outcome {
        Ok(_) => run(worker, stream, client, grant).await,
        Err(_) => reset_on_close(client.get_ref()),
    }
}

async fn open(worker: &Worker, destination: &Destination, auto: bool) -> Result<Stream, Refusal> {
    let (mesh, channel) =
        tls::dial(worker, destination.address, &destination.identities, Alpn::Records).await?;
    let protection = worker.shared.snapshot().index.protection(channel.peer.id(), destination.port, None);
    let to =
        records::Destination { workload: channel.peer.id().as_str(), port: destination.port, protection };
    let records = records::open(worker, mesh, Bytes::new(), &channel, to, auto).await?;
    Ok(Stream { records, channel })
}

/// Waits for the far side's next record: true when it carries something the application said, false
/// when the stream merely ended. Cancel safe: what was read stays in the stream's input.
async fn wait_readable(records: &mut Records) -> bool {
    if records.input.is_empty() {
        records.input.reserve(4096);
        if !matches!(records.mesh.read_buf(&mut records.input).await, Ok(1..)) {
            return false;
        }
    }
    matches!(RecordType::of_first(&records.input), Some(RecordType::Data | RecordType::Raw))
}

async fn run(worker: &Rc<Worker>, stream: Stream, client: Prefixed, mut grant: Grant) {
    grant.channel = Some(stream.channel);
    worker.shared.metrics.streams.inc(Direction::Outbound);
    if !stream.records.writer.is_signed() {
        worker.shared.metrics.unsigned_messages.inc(Direction::Outbound);
    }
    let (client, first) = client.into_parts();
    let recheck = Recheck::of(worker, grant, stream.records.writer.is_signed());
    if let Err(broken) = opaque::carry(stream.records, client, first, recheck).await {
        tracing::info!(code = broken.code(), error = %broken, "outbound stream broke off");
    }
}

/// Gives the far application connection to the HTTP request that follows.
async fn release(stream: Stream) {
    let Records { mut mesh, mut reader, mut writer, mut input } = stream.records;
    let handover = async {
        let mut out = BytesMut::new();
        writer.release(clock::unix_ms(), &mut out)?;
        say_last(&mut mesh, &out).await;
        loop {
            match reader.decode(&mut input)? {
                Some(RecordEvent::Fin { .. }) => return Ok(()),
                Some(RecordEvent::Alert(code)) => return Err(Broken::Alert(code.as_str().to_owned())),
                Some(_) => return Err(Broken::Release),
                None => {}
            }
            input.reserve(256);
            if mesh.read_buf(&mut input).await.map_err(Broken::Mesh)? == 0 {
                reader.finish()?;
            }
        }
    };
    match tokio::time::timeout(RELEASE_TIMEOUT, handover).await {
        Ok(Ok(())) => {}
        Ok(Err(broken)) => tracing::info!(error = %broken, "probe stream was not released"),
        Err(_) => tracing::info!("probe stream was not released in time"),
    }
}

fn record(
    worker: &Worker,
    request_id: &str,
    destination: &Destination,
    grant: &Grant,
    outcome: &Result<signet_policy::Permit, Refusal>,
) {
    worker.record(&Event {
        request_id,
        direction: Direction::Outbound,
        peer: destination.id.as_str(),
        address: destination.address,
        grant: Some(grant),
        outcome,
    });
}
