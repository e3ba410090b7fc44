//! One record stream, opened and written by hand.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::BytesMut;
use rustls_pki_types::CertificateDer;
use signet_identity::{ALPN_RECORDS, SpiffeId, channel_id, peer, verify_signing_chain};
use signet_signature::record::{
    Direction, Ed25519Signer, Event, Opening, RecordHash, RecordReader, RecordSigner, RecordWriter,
    StreamParams,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::{Identity, IntruderError, now_ms, within};

/// One record stream into the mesh.
pub struct Stream {
    stream: TlsStream<TcpStream>,
    /// Signs what is sent.
    pub writer: RecordWriter,
    /// What the other side chose.
    pub hash: Option<RecordHash>,
    reader: RecordReader,
    input: BytesMut,
}

impl Stream {
    /// Connects and opens a stream to a workload's port. `auto` lets the app speak first.
    ///
    /// # Errors
    /// [`IntruderError::Refused`] with the other side's code.
    pub async fn open(
        identity: &Identity,
        address: SocketAddr,
        destination: (&SpiffeId, u16),
        auto: bool,
    ) -> Result<Self, IntruderError> {
        Self::open_as(identity, address, destination, |params| params.auto = auto).await
    }

    /// The same on other terms than a sidecar's usual ones, which are BLAKE3 and a known protocol.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_as(
        identity: &Identity,
        address: SocketAddr,
        destination: (&SpiffeId, u16),
        terms: impl FnOnce(&mut StreamParams),
    ) -> Result<Self, IntruderError> {
        let mut stream = identity.connect(address, ALPN_RECORDS).await?;
        let state = stream.get_ref().1;
        let server = peer(state)?;
        let channel = channel_id(state)?;
        let mut id = [0; 16];
        aws_lc_rs::rand::fill(&mut id).map_err(|_| io::Error::other("no random numbers"))?;
        let mut params = StreamParams {
            auto: false,
            hash: RecordHash::Blake3,
            unsigned: false,
            own_tls: identity.tls.fingerprint.0,
            peer_tls: server.fingerprint().0,
            channel,
            stream: id,
            unix_ms: now_ms(),
            destination: destination.0.as_str().to_owned(),
            port: destination.1,
        };
        terms(&mut params);
        let opening = Opening::new(Direction::ClientToServer, params, &identity.signing.chain)?;
        within(stream.write_all(&opening.records())).await?;
        let (mut reader, mut input) = (opening.reader(), BytesMut::new());
        let hello = match next(&mut stream, &mut reader, &mut input).await? {
            Event::Hello(hello) => hello,
            event => return Err(refused(&event)),
        };
        if hello.hash.is_some() {
            let chain = match next(&mut stream, &mut reader, &mut input).await? {
                Event::Chain(chain) => chain,
                event => return Err(refused(&event)),
            };
            let chain: Vec<_> = chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
            let signer = verify_signing_chain(&identity.bundle, &chain, SystemTime::now())?;
            reader.set_key(signer.public_key())?;
        }
        let own: Arc<dyn RecordSigner> =
            Arc::new(Ed25519Signer::from_pkcs8(identity.signing.key.secret_der())?);
        Ok(Self { writer: opening.writer(own, &hello), hash: hello.hash, stream, reader, input })
    }

    /// Sends signed bytes.
    ///
    /// # Errors
    /// [`IntruderError::Broken`], [`IntruderError::Write`].
    pub async fn send(&mut self, payload: &[u8]) -> Result<(), IntruderError> {
        let mut out = BytesMut::new();
        self.writer.data(payload, now_ms(), &mut out)?;
        self.writer.sign(now_ms(), &mut out);
        self.send_raw(&out).await
    }

    /// Ends the sending side properly.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn finish(&mut self) -> Result<(), IntruderError> {
        let mut out = BytesMut::new();
        self.writer.fin(now_ms(), &mut out)?;
        self.send_raw(&out).await
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// [`IntruderError::Broken`].
    pub async fn send_raw(&mut self, bytes: &[u8]) -> Result<(), IntruderError> {
        within(self.stream.write_all(bytes)).await
    }

    /// Ends the connection's sending side as TLS does, whatever was said before.
    ///
    /// # Errors
    /// [`IntruderError::Broken`].
    pub async fn close(&mut self) -> Result<(), IntruderError> {
        within(self.stream.shutdown()).await
    }

    /// The bytes that follow RAW, up to the end.
    ///
    /// # Errors
    /// [`IntruderError::Broken`], also when the end is none that TLS vouches for.
    pub async fn rest(&mut self) -> Result<Vec<u8>, IntruderError> {
        let mut bytes = self.input.split().to_vec();
        within(self.stream.read_to_end(&mut bytes)).await?;
        Ok(bytes)
    }

    /// Breaks off without a word.
    pub fn cut(self) {
        // What the kernel still holds is sent; what is missing is the end.
        drop(self.stream);
    }

    /// The next verified thing.
    ///
    /// # Errors
    /// [`IntruderError::Record`], also when the other side ends without saying so; [`IntruderError::Refused`].
    pub async fn receive(&mut self) -> Result<Event, IntruderError> {
        match next(&mut self.stream, &mut self.reader, &mut self.input).await? {
            event @ Event::Alert(_) => Err(refused(&event)),
            event => Ok(event),
        }
    }
}

async fn next(
    stream: &mut TlsStream<TcpStream>,
    reader: &mut RecordReader,
    input: &mut BytesMut,
) -> Result<Event, IntruderError> {
    loop {
        if let Some(event) = reader.decode(input)? {
            return Ok(event);
        }
        if within(stream.read_buf(input)).await? == 0 {
            reader.finish()?;
            return Err(IntruderError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

fn refused(event: &Event) -> IntruderError {
    match event {
        Event::Alert(code) => IntruderError::Refused(code.as_str().to_owned()),
        other => IntruderError::Answer(format!("unexpected {other:?}")),
    }
}
