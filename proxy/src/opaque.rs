//! Bytes that are not HTTP: carried as signed records inside the mesh, as they are to a `public` workload, and copied
//! outside of the mesh.
//!
//! Inside the mesh the application sees an end only when the other sidecar signed one, or said it on the authenticated
//! connection where nothing is signed. Whatever else happens, it sees a reset.

mod mesh;
mod pace;
mod signed;
mod unsigned;

use std::io;

use bytes::BytesMut;
use signet_signature::record::{RecordError, RecordReader, RecordWriter};
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use self::mesh::Mesh;
use crate::recheck::Recheck;
use crate::sockets::reset_on_close;
use crate::tls::MeshStream;

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

/// An open record stream: both HELLOs exchanged, the peer's signing key known if anything is signed.
pub(crate) struct Records {
    pub(crate) mesh: MeshStream,
    pub(crate) reader: RecordReader,
    pub(crate) writer: RecordWriter,
    /// Read from the connection and not yet decoded.
    pub(crate) input: BytesMut,
}

/// Carries bytes both ways until both ends are there. `first` was already read from the application. On failure
/// both legs are reset.
pub(crate) async fn carry(
    records: Records,
    mut app: TcpStream,
    first: BytesMut,
    mut recheck: Recheck,
) -> Result<(), Broken> {
    let Records { mesh, mut reader, mut writer, mut input } = records;
    let mesh = Mesh::new(mesh);
    // What was decided when the stream was opened may have changed while it was.
    let outcome = if recheck.stands_now() {
        let (mut app_read, mut app_write) = app.split();
        let both = async {
            if writer.is_signed() {
                tokio::try_join!(
                    signed::send(&mut app_read, &mesh, &mut writer, first),
                    signed::receive(&mesh, &mut app_write, &mut reader, &mut input),
                )
            } else {
                tokio::try_join!(
                    unsigned::send(&mut app_read, &mesh, &mut writer, first),
                    unsigned::receive(&mesh, &mut app_write, &mut reader, &mut input),
                )
            }
        };
        tokio::select! {
            both = both => both.map(|_| ()),
            () = recheck.withdrawn() => Err(Broken::NoLongerPermitted),
        }
    } else {
        Err(Broken::NoLongerPermitted)
    };
    let mut mesh = mesh.into_inner();
    if let Err(broken) = &outcome {
        let mut alert = BytesMut::new();
        // Among raw bytes there is no place for a word: the reset alone tells.
        if writer.alert(broken.code(), &mut alert).is_ok() {
            say_last(&mut mesh, &alert).await;
        }
        reset_on_close(&app);
        reset_on_close(mesh.get_ref().0.get_ref());
    } else {
        // close_notify; the peer has everything already.
        let _ = mesh.shutdown().await;
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
