//! Opening a record stream with the other sidecar: HELLO and, if anything is signed, the signing chain, both ways.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use bytes::{Bytes, BytesMut};
use rustls_pki_types::CertificateDer;
use signet_policy::{Protection, ProtectionLevel, Refusal};
use signet_signature::record::{
    Direction, Event, Hello, Opening, RecordError, RecordHash, RecordReader, RecordSigner, RecordWriter,
    StreamParams, alert_record,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::channel::Channel;
use crate::clock;
use crate::opaque::{Records, say_last};
use crate::snapshot::Credentials;
use crate::tls::MeshStream;
use crate::worker::Worker;

/// How long the other sidecar may take for its HELLO: it dials its application first.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Read at a time while the stream is opened.
const READ: usize = 4 * 1024;

/// Where a record stream goes: the workload and its own port.
pub(crate) struct Destination<'a> {
    pub(crate) workload: &'a str,
    pub(crate) port: u16,
    /// What its policy asks for.
    pub(crate) protection: Protection,
}

/// Opens a stream as its client. `auto` asks the other side to let the application speak first. `read` was read from the
/// connection already.
pub(crate) async fn open(
    worker: &Worker,
    mut mesh: MeshStream,
    read: Bytes,
    channel: &Channel,
    to: Destination<'_>,
    auto: bool,
) -> Result<Records, Refusal> {
    let credentials = worker.shared.credentials().ok_or(Refusal::NotReady)?;
    let opening = opening(&credentials, channel, Direction::ClientToServer, &to, auto)?;
    let opened = async {
        say(&mut mesh, &opening.records()).await?;
        let mut incoming = Incoming::new(opening.reader(), read);
        let hello = incoming.hello(&mut mesh).await?;
        if hello.hash.is_some() {
            let chain = incoming.chain(&mut mesh).await?;
            incoming.trust(worker, channel, &chain)?;
        }
        let writer = opening.writer(credentials.signer.clone(), &hello);
        Ok((writer, incoming))
    };
    let (writer, incoming) = within(opened).await?;
    Ok(incoming.into_records(mesh, writer))
}

/// A stream that a peer has opened and that still has to be answered.
pub(crate) struct Opened {
    mesh: MeshStream,
    incoming: Incoming,
    /// Our answer; the peer's signatures cover it, so it is made once.
    opening: Opening,
    /// The key of the certificate in that answer, whatever rotates meanwhile.
    signer: Arc<dyn RecordSigner>,
    /// What the peer asks for, already checked against where it arrived.
    pub(crate) hello: Hello,
}

/// Reads a peer's HELLO and chain, and checks that it wants what it reached. `read` was read from the connection already.
pub(crate) async fn accept(
    worker: &Worker,
    mut mesh: MeshStream,
    read: Bytes,
    channel: &Channel,
    reached: Destination<'_>,
) -> Result<Opened, Refusal> {
    let credentials = worker.shared.credentials().ok_or(Refusal::NotReady)?;
    let opening = opening(&credentials, channel, Direction::ServerToClient, &reached, false)?;
    let mut incoming = Incoming::new(opening.reader(), read);
    let read = async {
        let hello = incoming.hello(&mut mesh).await?;
        if hello.destination != reached.workload || hello.port != reached.port {
            return Err(Refusal::PeerIdentityMismatch);
        }
        if hello.hash.is_some() {
            let chain = incoming.chain(&mut mesh).await?;
            incoming.trust(worker, channel, &chain)?;
        }
        let opening = opening.answering(&hello).map_err(refusal)?;
        Ok((hello, opening))
    };
    match within(read).await {
        Ok((hello, opening)) => {
            Ok(Opened { mesh, incoming, opening, signer: credentials.signer.clone(), hello })
        }
        Err(refusal) => {
            refuse(&mut mesh, refusal).await;
            Err(refusal)
        }
    }
}

impl Opened {
    /// Answers with our own HELLO and chain: the application is reachable.
    pub(crate) async fn answer(mut self) -> Result<Records, Refusal> {
        within(say(&mut self.mesh, &self.opening.records())).await?;
        let writer = self.opening.writer(self.signer, &self.hello);
        Ok(self.incoming.into_records(self.mesh, writer))
    }

    /// Tells the peer why there will be no stream.
    pub(crate) async fn refuse(mut self, refusal: Refusal) {
        refuse(&mut self.mesh, refusal).await;
    }
}

async fn refuse(mesh: &mut MeshStream, refusal: Refusal) {
    if let Ok(alert) = alert_record(refusal.code()) {
        say_last(mesh, &alert).await;
    }
}

fn opening(
    credentials: &Credentials,
    channel: &Channel,
    direction: Direction,
    to: &Destination<'_>,
    auto: bool,
) -> Result<Opening, Refusal> {
    let mut stream = [0; 16];
    rand::fill(&mut stream).map_err(|_| Refusal::NotReady)?;
    let params = StreamParams {
        auto,
        hash: match to.protection.record_hash {
            signet_policy::RecordHash::Blake3 => RecordHash::Blake3,
            signet_policy::RecordHash::Sha256 => RecordHash::Sha256,
        },
        unsigned: to.protection.level == ProtectionLevel::Public,
        own_tls: channel.own_leaf.0,
        peer_tls: channel.peer.fingerprint().0,
        channel: channel.id.0,
        stream,
        unix_ms: clock::unix_ms(),
        destination: to.workload.to_owned(),
        port: to.port,
    };
    // Only a chain too long for a record is refused here, and such a chain is ours.
    Opening::new(direction, params, &credentials.signing.chain).map_err(|_| Refusal::NotReady)
}

/// The peer's half while the stream is opened.
struct Incoming {
    reader: RecordReader,
    input: BytesMut,
}

impl Incoming {
    fn new(reader: RecordReader, read: Bytes) -> Self {
        Self { reader, input: BytesMut::from(read) }
    }

    async fn hello(&mut self, mesh: &mut MeshStream) -> Result<Hello, Refusal> {
        match self.next(mesh).await? {
            Event::Hello(hello) => Ok(hello),
            event => Err(unexpected(&event)),
        }
    }

    async fn chain(&mut self, mesh: &mut MeshStream) -> Result<Vec<CertificateDer<'static>>, Refusal> {
        match self.next(mesh).await? {
            Event::Chain(chain) => Ok(chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect()),
            event => Err(unexpected(&event)),
        }
    }

    /// The chain must be the TLS peer's own; its key then verifies the records.
    fn trust(
        &mut self,
        worker: &Worker,
        channel: &Channel,
        chain: &[CertificateDer<'_>],
    ) -> Result<(), Refusal> {
        let identity = channel.learn_chain(chain, &worker.shared.snapshot(), clock::now())?;
        self.reader.set_key(identity.public_key()).map_err(|_| Refusal::SignatureUnknownKey)
    }

    async fn next(&mut self, mesh: &mut MeshStream) -> Result<Event, Refusal> {
        loop {
            match self.reader.decode(&mut self.input) {
                Ok(Some(event)) => return Ok(event),
                Ok(None) => {}
                Err(error) => {
                    tracing::info!(code = error.code(), "record stream refused while opening");
                    return Err(refusal(error));
                }
            }
            self.input.reserve(READ);
            match mesh.read_buf(&mut self.input).await {
                Ok(0) | Err(_) => return Err(Refusal::StreamTruncated),
                Ok(_) => {}
            }
        }
    }

    fn into_records(self, mesh: MeshStream, writer: RecordWriter) -> Records {
        Records { mesh, reader: self.reader, writer, input: self.input }
    }
}

/// Asking for a stream without signatures is no malformed record, it is one that lacks them.
fn refusal(error: RecordError) -> Refusal {
    match error {
        RecordError::Unsigned => Refusal::SignatureMissing,
        _ => Refusal::RecordMalformed,
    }
}

/// The other side's refusal, where it named one that we know.
fn unexpected(event: &Event) -> Refusal {
    match event {
        Event::Alert(code) => Refusal::from_code(code.as_str()).unwrap_or(Refusal::UpstreamUnreachable),
        _ => Refusal::RecordMalformed,
    }
}

async fn say(mesh: &mut MeshStream, bytes: &[u8]) -> Result<(), Refusal> {
    mesh.write_all(bytes).await.map_err(|_| Refusal::UpstreamUnreachable)?;
    mesh.flush().await.map_err(|_| Refusal::UpstreamUnreachable)
}

async fn within<T>(opening: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
    tokio::time::timeout(HELLO_TIMEOUT, opening).await.unwrap_or(Err(Refusal::UpstreamTimeout))
}
