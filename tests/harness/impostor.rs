//! A hand-made server of the mesh: it answers HTTP over mutual TLS as it likes.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use http::Response;
use http_body_util::Full;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
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
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (seen, acceptor) = (Arc::clone(&heads), TlsAcceptor::from(Arc::new(config)));
        listen(at, port, move |tcp| {
            let (acceptor, seen, answering) = (acceptor.clone(), Arc::clone(&seen), Arc::clone(&answering));
            async move { serve(tcp, &acceptor, &seen, &answering).await }
        })?;
        Ok(Self { heads })
    }

    /// Listens at a port with this certificate and answers each HTTP/2 request with a field of this length, unsigned.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn long_winded(
        at: &Container,
        port: u16,
        config: ServerConfig,
        length: usize,
    ) -> Result<(), Failure> {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        listen(at, port, move |tcp| {
            let acceptor = acceptor.clone();
            async move {
                let stream = acceptor.accept(tcp).await?;
                let answer = service_fn(move |_| async move {
                    let response = Response::builder().header("x-long", "v".repeat(length));
                    response.body(Full::new(Bytes::from_static(b"unsigned")))
                });
                let served =
                    http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer);
                served.await.map_err(std::io::Error::other)
            }
        })
    }

    /// The heads of the requests it was sent.
    pub fn requests(&self) -> Vec<String> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Serves each connection by itself, on a thread that ends with the test.
fn listen<F>(
    at: &Container,
    port: u16,
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> Result<(), Failure>
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let listener = at.namespace().run(move || TcpListener::bind(any))??;
    listener.set_nonblocking(true)?;
    std::thread::Builder::new().name("impostor".into()).spawn(move || -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            loop {
                let (tcp, _) = listener.accept().await?;
                // A caller that does not believe the certificate leaves: nothing to tell anybody.
                tokio::spawn(serve(tcp));
            }
        })
    })?;
    Ok(())
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
