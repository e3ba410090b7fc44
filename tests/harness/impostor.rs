//! A hand-made server of the mesh: it answers HTTP over mutual TLS as it likes.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;
use rustls::ServerConfig;
use signet_cli::lab::Container;
use signet_identity::channel_id;
use signet_signature::ChannelId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::Failure;

/// Answers one request: its head, and the channel it came on.
pub type Answering = Arc<dyn Fn(&str, &ChannelId) -> Vec<u8> + Send + Sync>;

/// The server; it listens until the test ends.
pub struct Impostor {
    heads: Arc<Mutex<Vec<String>>>,
}

impl Impostor {
    /// Listens at a port with this certificate and answers each request without body by `answering`.
    ///
    /// # Errors
    /// The port is taken, or the lab fails.
    pub fn start(
        at: &Container,
        port: u16,
        config: ServerConfig,
        answering: Answering,
    ) -> Result<Self, Failure> {
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let listener = at.namespace().run(move || TcpListener::bind(any))??;
        listener.set_nonblocking(true)?;
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (seen, acceptor) = (Arc::clone(&heads), TlsAcceptor::from(Arc::new(config)));
        std::thread::Builder::new().name("impostor".into()).spawn(move || -> std::io::Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                loop {
                    let (tcp, _) = listener.accept().await?;
                    let (acceptor, seen, answering) =
                        (acceptor.clone(), Arc::clone(&seen), Arc::clone(&answering));
                    tokio::spawn(async move {
                        // A caller that does not believe the certificate leaves: nothing to tell anybody.
                        let _ = serve(tcp, &acceptor, &seen, &answering).await;
                    });
                }
            })
        })?;
        Ok(Self { heads })
    }

    /// The heads of the requests it was sent.
    pub fn requests(&self) -> Vec<String> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn serve(
    tcp: TcpStream,
    acceptor: &TlsAcceptor,
    seen: &Mutex<Vec<String>>,
    answering: &Answering,
) -> std::io::Result<()> {
    let mut stream = acceptor.accept(tcp).await?;
    let channel = ChannelId(channel_id(stream.get_ref().1).map_err(std::io::Error::other)?);
    let mut received = BytesMut::new();
    while stream.read_buf(&mut received).await? > 0 {
        while let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&received.split_to(end + 4)).into_owned();
            let answer = answering(&head, &channel);
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(head);
            stream.write_all(&answer).await?;
            stream.flush().await?;
        }
    }
    Ok(())
}
