//! Opaque bytes from another workload: a signed record stream, verified and passed to the application.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use signet_policy::{Permit, Refusal, SpeaksFirst};
use signet_signature::record::{Event as RecordEvent, RecordType};
use signet_sync::Gap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Reached, app};
use crate::authorize::{Content, Grant};
use crate::channel::Channel;
use crate::clock;
use crate::habit::Observation;
use crate::opaque::{self, Broken, Records};
use crate::recheck::Recheck;
use crate::records::{self, Destination};
use crate::ring::Direction;
use crate::tls::MeshStream;
use crate::worker::{Event, Worker};

/// Serves one record stream: decided before the application is dialled.
pub(crate) async fn serve(worker: &Rc<Worker>, stream: MeshStream, channel: Rc<Channel>, reached: Reached) {
    let request_id = worker.request_id();
    let source = Some(channel.peer.id().clone());
    let grant = Grant { channel: Some(Rc::clone(&channel)), ..reached.grant(source, Content::Opaque) };
    let outcome = open(worker, stream, &channel, &reached, &grant).await;
    let decided = match &outcome {
        Ok((_, _, _, permit)) => Ok(permit.clone()),
        Err(refusal) => Err(*refusal),
    };
    worker.record(&Event {
        request_id: &request_id,
        direction: Direction::Inbound,
        peer: channel.peer.id().as_str(),
        address: reached.caller,
        grant: Some(&grant),
        outcome: &decided,
    });
    let Ok((records, app, auto, _)) = outcome else { return };
    worker.shared.metrics.streams.inc(Direction::Inbound);
    if !records.writer.is_signed() {
        worker.shared.metrics.unsigned_messages.inc(Direction::Inbound);
    }
    let carried = if auto {
        carry_auto(worker, records, app, &reached, grant).await
    } else {
        note(worker, &records, &grant);
        let recheck = Recheck::of(worker, grant, records.writer.is_signed());
        opaque::carry(records, app, BytesMut::new(), recheck).await
    };
    if let Err(broken) = carried {
        tracing::info!(%request_id, code = broken.code(), error = %broken, "inbound stream broke off");
    }
}

async fn open(
    worker: &Rc<Worker>,
    stream: MeshStream,
    channel: &Channel,
    reached: &Reached,
    grant: &Grant,
) -> Result<(Records, TcpStream, bool, Permit), Refusal> {
    let protection = grant.protection(&worker.shared.snapshot().index);
    let destination =
        Destination { workload: reached.own.as_str(), port: reached.address.port(), protection };
    let opened = records::accept(worker, stream, Bytes::new(), channel, destination).await?;
    let auto = opened.hello.auto;
    let permitted = grant.decide(&worker.shared.snapshot());
    let ready = match permitted {
        Ok(permit) => app::dial(worker, reached.address).await.map(|app| (app, permit)),
        Err(refusal) => Err(refusal),
    };
    match ready {
        Ok((app, permit)) => Ok((opened.answer().await?, app, auto, permit)),
        Err(refusal) => {
            opened.refuse(refusal).await;
            Err(refusal)
        }
    }
}

/// A stream that was opened to see who speaks first.
async fn carry_auto(
    worker: &Rc<Worker>,
    mut records: Records,
    app: TcpStream,
    reached: &Reached,
    grant: Grant,
) -> Result<(), Broken> {
    let mut first = [0; 1];
    let mut recheck = Recheck::of(worker, grant.clone(), records.writer.is_signed());
    let speaks_first = tokio::select! {
        biased;
        event = next_record(&mut records) => match event? {
            FirstRecord::Release => return park(worker, records, app, reached, &grant).await,
            FirstRecord::Other => SpeaksFirst::Client,
        },
        () = recheck.withdrawn() => return Err(Broken::NoLongerPermitted),
        spoken = app.peek(&mut first) => {
            // An application that only closes has not spoken.
            if matches!(spoken, Ok(1)) { SpeaksFirst::Server } else { SpeaksFirst::Client }
        }
    };
    note(worker, &records, &grant);
    if speaks_first == SpeaksFirst::Server {
        // Full means that the control plane is told of other ports first; it is only a hint.
        let _ = worker.shared.observed.try_send(Observation { port: reached.address.port(), speaks_first });
    }
    opaque::carry(records, app, BytesMut::new(), recheck).await
}

/// Notes what a stream lacks, once it is one: who only asks who speaks first is judged by the request that follows.
fn note(worker: &Worker, records: &Records, grant: &Grant) {
    worker.carries(grant, (!records.writer.is_signed()).then_some(Gap::Unsigned));
}

enum FirstRecord {
    Release,
    Other,
}

/// Looks at the type of the peer's first record without taking it, so that the bytes in front of
/// it are still all there for whoever carries the stream. Cancel safe.
async fn next_record(records: &mut Records) -> Result<FirstRecord, Broken> {
    if records.input.is_empty() {
        records.input.reserve(4096);
        records.mesh.read_buf(&mut records.input).await.map_err(Broken::Mesh)?;
    }
    Ok(match RecordType::of_first(&records.input) {
        Some(RecordType::Release) => FirstRecord::Release,
        _ => FirstRecord::Other,
    })
}

/// The caller turned out to speak HTTP: the connection waits for its request.
async fn park(
    worker: &Worker,
    mut records: Records,
    app: TcpStream,
    reached: &Reached,
    grant: &Grant,
) -> Result<(), Broken> {
    let Records { mesh, reader, writer, input } = &mut records;
    loop {
        match reader.decode(input)? {
            Some(RecordEvent::Release) => break,
            Some(RecordEvent::Alert(code)) => return Err(Broken::Alert(code.as_str().to_owned())),
            Some(_) => return Err(Broken::Release),
            None => {}
        }
        if mesh.read_buf(input).await.map_err(Broken::Mesh)? == 0 {
            reader.finish()?;
        }
    }
    worker.shared.parked.put(reached.address, grant.source.as_ref(), app);
    let mut out = BytesMut::new();
    writer.fin(clock::unix_ms(), &mut out)?;
    mesh.write_all(&out).await.map_err(Broken::Mesh)?;
    mesh.shutdown().await.map_err(Broken::Mesh)
}
