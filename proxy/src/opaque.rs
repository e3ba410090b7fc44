//! Bytes that are not HTTP: carried as signed records inside the mesh, copied outside of it.
//!
//! Inside the mesh the application sees an end only when the other sidecar signed one. Whatever
//! else happens, it sees a reset.

use std::io;

use bytes::BytesMut;
use signet_signature::record::{Event, RecordError, RecordReader, RecordWriter};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf as TcpReadHalf, WriteHalf as TcpWriteHalf};

use crate::clock;
use crate::recheck::Recheck;
use crate::sockets::reset_on_close;
use crate::tls::MeshStream;

/// Read at a time from the application, and gathered under one signature while it has more.
const READ: usize = 64 * 1024;
/// Bytes under one signature at most; the record layer's own bound.
const GATHER: usize = signet_signature::record::MAX_UNSIGNED;

/// Why opaque traffic ended other than by both sides' signed end.
#[derive(Debug, Error)]
pub(crate) enum Broken {
    #[error("the other sidecar reported {0}")]
    Alert(String),
    #[error("application connection: {0}")]
    App(#[source] io::Error),
    #[error("mesh connection: {0}")]
    Mesh(#[source] io::Error),
    #[error("no longer permitted")]
    NoLongerPermitted,
    #[error("signed record refused: {0}")]
    Record(#[from] RecordError),
    #[error("the other side released a stream that was already in use")]
    Release,
    #[error("own record could not be written: {0}")]
    Write(#[from] signet_signature::record::WriteError),
}

impl Broken {
    /// The word that the other sidecar is told.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Alert(_) => "alerted",
            Self::App(_) => "app-broke-off",
            Self::Mesh(_) => "mesh-broke-off",
            Self::NoLongerPermitted => "access-denied",
            Self::Record(error) => error.code(),
            Self::Release => "record-unexpected",
            Self::Write(_) => "record-write",
        }
    }
}

/// An open record stream: both HELLOs exchanged, the peer's signing key known.
pub(crate) struct Records {
    pub(crate) mesh: MeshStream,
    pub(crate) reader: RecordReader,
    pub(crate) writer: RecordWriter,
    /// Read from the connection and not yet decoded.
    pub(crate) input: BytesMut,
}

/// Carries bytes both ways until both ends are signed. `first` was already read from the
/// application. On failure both legs are reset.
pub(crate) async fn carry(
    records: Records,
    mut app: TcpStream,
    first: BytesMut,
    mut recheck: Recheck,
) -> Result<(), Broken> {
    let Records { mesh, mut reader, mut writer, mut input } = records;
    let (mut mesh_read, mut mesh_write) = tokio::io::split(mesh);
    let outcome = {
        let (mut app_read, mut app_write) = app.split();
        let both = async {
            tokio::try_join!(
                sign_upstream(&mut app_read, &mut mesh_write, &mut writer, first),
                verify_downstream(&mut mesh_read, &mut app_write, &mut reader, &mut input),
            )
        };
        tokio::select! {
            both = both => both.map(|_| ()),
            () = recheck.withdrawn() => Err(Broken::NoLongerPermitted),
        }
    };
    if let Err(broken) = &outcome {
        let mut alert = BytesMut::new();
        if writer.alert(broken.code(), &mut alert).is_ok() {
            say_last(&mut mesh_write, &alert).await;
        }
        reset_on_close(&app);
        reset_on_close(mesh_read.unsplit(mesh_write).get_ref().0.get_ref());
    } else {
        // close_notify; the peer has everything already.
        let _ = mesh_write.shutdown().await;
    }
    outcome
}

/// Tries to tell the peer why, without waiting for a peer that does not read.
pub(crate) async fn say_last(mesh: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8]) {
    let telling = async {
        mesh.write_all(bytes).await?;
        mesh.flush().await
    };
    let _ = tokio::time::timeout(std::time::Duration::from_millis(200), telling).await;
}

async fn sign_upstream(
    app: &mut TcpReadHalf<'_>,
    mesh: &mut WriteHalf<MeshStream>,
    writer: &mut RecordWriter,
    first: BytesMut,
) -> Result<(), Broken> {
    let mut out = BytesMut::new();
    let mut buffer = first;
    loop {
        if buffer.is_empty() {
            buffer.reserve(READ);
            if app.read_buf(&mut buffer).await.map_err(Broken::App)? == 0 {
                writer.fin(clock::unix_ms(), &mut out)?;
                return send(mesh, &mut out).await;
            }
        }
        let ended = gather(app, &mut buffer)?;
        writer.data(&buffer, clock::unix_ms(), &mut out)?;
        buffer.clear();
        if ended {
            writer.fin(clock::unix_ms(), &mut out)?;
            return send(mesh, &mut out).await;
        }
        writer.sign(clock::unix_ms(), &mut out);
        send(mesh, &mut out).await?;
    }
}

/// Takes what the application has ready, so that bulk data shares signatures; true at its end.
fn gather(app: &mut TcpReadHalf<'_>, buffer: &mut BytesMut) -> Result<bool, Broken> {
    while buffer.len() + READ <= GATHER {
        buffer.reserve(READ);
        match app.try_read_buf(buffer) {
            Ok(0) => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(Broken::App(error)),
        }
    }
    Ok(false)
}

async fn send(mesh: &mut WriteHalf<MeshStream>, out: &mut BytesMut) -> Result<(), Broken> {
    mesh.write_all(out).await.map_err(Broken::Mesh)?;
    mesh.flush().await.map_err(Broken::Mesh)?;
    out.clear();
    Ok(())
}

async fn verify_downstream(
    mesh: &mut ReadHalf<MeshStream>,
    app: &mut TcpWriteHalf<'_>,
    reader: &mut RecordReader,
    input: &mut BytesMut,
) -> Result<(), Broken> {
    loop {
        while let Some(event) = reader.decode(input)? {
            match event {
                Event::Data(data) => app.write_all(&data).await.map_err(Broken::App)?,
                Event::Fin { .. } => return app.shutdown().await.map_err(Broken::App),
                Event::Alert(code) => return Err(Broken::Alert(code.as_str().to_owned())),
                Event::Hello(_) | Event::Chain(_) | Event::Release => return Err(Broken::Release),
            }
        }
        input.reserve(READ);
        if mesh.read_buf(input).await.map_err(Broken::Mesh)? == 0 {
            reader.finish()?;
        }
    }
}

/// Copies bytes both ways with half-close intact: traffic outside the mesh, as long as it is
/// permitted.
pub(crate) async fn copy(
    mut one: TcpStream,
    first: BytesMut,
    mut other: TcpStream,
    mut recheck: Recheck,
) -> io::Result<()> {
    other.write_all(&first).await?;
    let copied = tokio::select! {
        copied = tokio::io::copy_bidirectional(&mut one, &mut other) => copied.map(|_| ()),
        () = recheck.withdrawn() => Err(io::Error::new(io::ErrorKind::PermissionDenied, "no longer permitted")),
    };
    if copied.is_err() {
        reset_on_close(&one);
        reset_on_close(&other);
    }
    copied
}
