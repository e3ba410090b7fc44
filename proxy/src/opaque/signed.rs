//! Bytes as signed records: what a signature covers is delivered, and nothing else.

use std::io::IoSlice;

use bytes::BytesMut;
use signet_signature::record::{DATA_MAX, Event, RecordReader, RecordWriter};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::Broken;
use super::mesh::Mesh;
use super::pace::Pace;
use crate::clock;

/// What the application says becomes records; a signature follows at each of its pauses and at the latest after what
/// one may cover.
pub(super) async fn send(
    app: &mut ReadHalf<'_>,
    mesh: &Mesh,
    writer: &mut RecordWriter,
    first: BytesMut,
) -> Result<(), Broken> {
    let mut buffer = first;
    let mut pace = Pace::up_to(DATA_MAX);
    loop {
        let more = pace.read(app, &mut buffer).await.map_err(Broken::App)?;
        // What was read before the stream was open may be more than one signature's.
        let mut segments = buffer.chunks(DATA_MAX).peekable();
        while let Some(segment) = segments.next() {
            let last = !more && segments.peek().is_none();
            send_segment(mesh, writer, segment, last).await?;
        }
        if !more {
            if !writer.is_ended() {
                send_segment(mesh, writer, &[], true).await?;
            }
            return Ok(());
        }
        buffer.clear();
    }
}

/// Sends what one signature covers, and the end with the last of it.
async fn send_segment(
    mesh: &Mesh,
    writer: &mut RecordWriter,
    segment: &[u8],
    last: bool,
) -> Result<(), Broken> {
    let header = if segment.is_empty() { None } else { Some(writer.data_header(segment)?) };
    let mut signature = BytesMut::new();
    if last {
        writer.fin(clock::unix_ms(), &mut signature)?;
    } else {
        writer.sign(clock::unix_ms(), &mut signature);
    }
    // The payload is encrypted from where it was read to.
    let header = header.as_ref().map_or(&[][..], |header| header);
    let mut pieces = [header, segment, &signature].map(IoSlice::new);
    mesh.send(&mut pieces).await.map_err(Broken::Mesh)
}

/// What the peer has signed goes to the application.
pub(super) async fn receive(
    mesh: &Mesh,
    app: &mut WriteHalf<'_>,
    reader: &mut RecordReader,
    input: &mut BytesMut,
) -> Result<(), Broken> {
    loop {
        match mesh.event(reader, input).await? {
            Event::Data(data) => app.write_all(&data).await.map_err(Broken::App)?,
            Event::Fin { .. } => return app.shutdown().await.map_err(Broken::App),
            Event::Alert(code) => return Err(Broken::Alert(code.as_str().to_owned())),
            Event::Hello(_) | Event::Chain(_) | Event::Raw | Event::Release => return Err(Broken::Release),
        }
    }
}
