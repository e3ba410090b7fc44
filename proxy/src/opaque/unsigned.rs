//! Bytes as they are, to a workload whose policy asks for no signatures. Each direction begins with a record, RAW or
//! the FIN of one that says nothing, and ends with `close_notify`; a connection that ends otherwise has broken off.

use std::io::IoSlice;

use bytes::BytesMut;
use signet_signature::record::{Event, RecordReader, RecordWriter};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::Broken;
use super::mesh::Mesh;
use super::pace::Pace;
use crate::clock;

/// Moved at a time at most: enough to share system calls, little enough to stay in a core's cache.
const PIECE: usize = 128 * 1024;

/// What the application says is passed on; RAW goes out with its first byte, so that it means that it has spoken.
pub(super) async fn send(
    app: &mut ReadHalf<'_>,
    mesh: &Mesh,
    writer: &mut RecordWriter,
    first: BytesMut,
) -> Result<(), Broken> {
    let mut buffer = first;
    let mut pace = Pace::up_to(PIECE);
    loop {
        let more = pace.read(app, &mut buffer).await.map_err(Broken::App)?;
        let mut opening = BytesMut::new();
        if !writer.is_ended() {
            if buffer.is_empty() {
                writer.fin(clock::unix_ms(), &mut opening)?;
            } else {
                writer.raw(&mut opening)?;
            }
        }
        let pieces = &mut [IoSlice::new(&opening), IoSlice::new(&buffer)];
        mesh.send(pieces).await.map_err(Broken::Mesh)?;
        buffer.clear();
        if !more {
            return mesh.shutdown().await.map_err(Broken::Mesh);
        }
    }
}

/// What the peer says goes to the application, and its authenticated end.
pub(super) async fn receive(
    mesh: &Mesh,
    app: &mut WriteHalf<'_>,
    reader: &mut RecordReader,
    input: &mut BytesMut,
) -> Result<(), Broken> {
    match mesh.event(reader, input).await? {
        Event::Raw => {}
        Event::Fin { .. } => return app.shutdown().await.map_err(Broken::App),
        Event::Alert(code) => return Err(Broken::Alert(code.as_str().to_owned())),
        Event::Hello(_) | Event::Chain(_) | Event::Data(_) | Event::Release => return Err(Broken::Release),
    }
    let mut buffer = std::mem::take(input);
    let mut pace = Pace::up_to(PIECE);
    loop {
        let more = mesh.read(&mut buffer, pace.size()).await.map_err(Broken::Mesh)?;
        pace.took(buffer.len());
        app.write_all(&buffer).await.map_err(Broken::App)?;
        buffer.clear();
        if !more {
            return app.shutdown().await.map_err(Broken::App);
        }
    }
}
