//! Calls to an etcd cluster: one member at a time, each call with an end, another member when one does not answer.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::address::EtcdAddress;
use super::wire;
use crate::store::StoreError;

/// The longest single call. etcd itself gives up a proposal after some seconds.
const CALL_TIMEOUT: Duration = Duration::from_secs(4);

/// How long members are tried one after the other: longer than an election takes.
const PATIENCE: Duration = Duration::from_secs(15);

/// Pause after every member was tried once.
const PAUSE: Duration = Duration::from_millis(200);

/// A member that has not answered for this long is dialled anew.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How soon a connection to a machine that vanished is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// The largest answer: a page of the largest values.
const ANSWER_MAX: usize = 320 * 1024 * 1024;

/// A cluster. Cheap to clone.
#[derive(Clone)]
pub(super) struct Client {
    members: Arc<Vec<Member>>,
    /// The one that answered last.
    current: Arc<AtomicUsize>,
}

struct Member {
    name: String,
    channel: Channel,
}

/// What came of a call that was made once.
pub(super) enum Outcome<T> {
    Done(T),
    /// No answer, or a fault of this member: whether it happened is not known.
    Unknown(Status),
}

impl Client {
    /// Connects when the first call is made. Without `tls` everything is in clear.
    pub(super) fn new(address: &EtcdAddress, tls: Option<Arc<ClientConfig>>) -> Result<Self, StoreError> {
        let member = |(host, port): &(String, u16)| {
            let channel = channel(host.clone(), *port, tls.clone())?;
            Ok(Member { name: format!("{host}:{port}"), channel })
        };
        let members = address.members.iter().map(member).collect::<Result<_, StoreError>>()?;
        Ok(Self { members: Arc::new(members), current: Arc::default() })
    }

    /// Reads; tries members until one answers.
    pub(super) async fn range(&self, request: wire::RangeRequest) -> Result<wire::RangeResponse, StoreError> {
        self.until_done(|channel| {
            let request = request.clone();
            async move { kv(channel).range(request).await.map(tonic::Response::into_inner) }
        })
        .await
    }

    /// Writes one key; happening twice is as once.
    pub(super) async fn put(&self, request: wire::PutRequest) -> Result<(), StoreError> {
        self.until_done(|channel| {
            let request = request.clone();
            async move { kv(channel).put(request).await.map(drop) }
        })
        .await
    }

    /// A transaction that may be made twice without harm: one that reads, or whose comparison fails the second time and who
    /// asks for it does not care.
    pub(super) async fn txn(&self, request: wire::TxnRequest) -> Result<wire::TxnResponse, StoreError> {
        self.until_done(|channel| {
            let request = request.clone();
            async move { kv(channel).txn(request).await.map(tonic::Response::into_inner) }
        })
        .await
    }

    /// A transaction, sent once.
    pub(super) async fn txn_once(
        &self,
        request: wire::TxnRequest,
    ) -> Result<Outcome<wire::TxnResponse>, StoreError> {
        let at = self.current.load(Ordering::Relaxed);
        let Some(member) = self.members.get(at) else { return Err(unanswered("no member", None)) };
        let call = async { kv(member.channel.clone()).txn(request).await.map(tonic::Response::into_inner) };
        match self.once(at, call).await {
            Ok(done) => Ok(Outcome::Done(done)),
            Err(status) if is_of_the_member(&status) => Ok(Outcome::Unknown(status)),
            Err(status) => Err(refused(&status)),
        }
    }

    /// Follows one key from a revision on.
    pub(super) async fn watch(
        &self,
        key: Vec<u8>,
        from: i64,
    ) -> Result<tonic::Streaming<wire::WatchResponse>, StoreError> {
        let at = self.current.load(Ordering::Relaxed);
        let Some(member) = self.members.get(at) else { return Err(unanswered("no member", None)) };
        let create = wire::WatchCreateRequest { key, start_revision: from };
        let create = wire::watch_request::Request::CreateRequest(create);
        // The stream of requests stays open: its end would end the watch.
        let requests = futures_util::stream::StreamExt::chain(
            tokio_stream::once(wire::WatchRequest { request: Some(create) }),
            tokio_stream::pending(),
        );
        let mut request = Request::new(requests);
        // A member that lost its leader ends the watch instead of being silent.
        request.metadata_mut().insert("hasleader", tonic::metadata::MetadataValue::from_static("true"));
        let mut client = wire::watch_client::WatchClient::new(member.channel.clone());
        let call = async { client.watch(request).await.map(tonic::Response::into_inner) };
        self.once(at, call).await.map_err(|status| unanswered(&member.name, Some(&status)))
    }

    async fn until_done<T, F: Future<Output = Result<T, Status>>>(
        &self,
        call: impl Fn(Channel) -> F,
    ) -> Result<T, StoreError> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut tried = 0;
        loop {
            let at = self.current.load(Ordering::Relaxed);
            let Some(member) = self.members.get(at) else { return Err(unanswered("no member", None)) };
            match self.once(at, call(member.channel.clone())).await {
                Ok(done) => return Ok(done),
                Err(status) if !is_of_the_member(&status) => return Err(refused(&status)),
                Err(status) if tokio::time::Instant::now() >= deadline => {
                    return Err(unanswered(&member.name, Some(&status)));
                }
                Err(_) => tried += 1,
            }
            if tried % self.members.len() == 0 {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// One call to one member; after one that it did not answer the next member's turn begins.
    async fn once<T>(&self, at: usize, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        let answer = tokio::time::timeout(CALL_TIMEOUT, call).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
        if answer.as_ref().is_err_and(is_of_the_member) {
            let next = (at + 1) % self.members.len().max(1);
            let _ = self.current.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
        }
        answer
    }
}

fn kv(channel: Channel) -> wire::kv_client::KvClient<Channel> {
    wire::kv_client::KvClient::new(channel).max_decoding_message_size(ANSWER_MAX)
}

/// Whether another member, or the same one later, may answer.
fn is_of_the_member(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted => true,
        // How tonic tells of a connection that broke.
        Code::Unknown | Code::Internal => !status.message().starts_with("etcdserver:"),
        _ => false,
    }
}

fn unanswered(member: &str, status: Option<&Status>) -> StoreError {
    let reason = status.map_or_else(String::new, |status| status.message().to_owned());
    StoreError::Unreachable { member: member.to_owned(), reason }
}

/// What the cluster refuses, with the setting that decides on it where it is one.
fn refused(status: &Status) -> StoreError {
    let message = status.message();
    let hint = match message {
        _ if message.contains("database space exceeded") => {
            "; its quota is used up: set --auto-compaction-retention, defragment it, then disarm its alarm"
        }
        _ if message.contains("request is too large") => {
            "; start etcd with --max-request-bytes of 1572864 or more"
        }
        _ if message.contains("too many operations") => "; start etcd with --max-txn-ops of 128 or more",
        _ => "",
    };
    StoreError::Refused(format!("{message}{hint}"))
}

fn channel(host: String, port: u16, tls: Option<Arc<ClientConfig>>) -> Result<Channel, StoreError> {
    let name = match host.parse::<IpAddr>() {
        Ok(address) => ServerName::from(address),
        Err(_) => ServerName::try_from(host.clone())
            .map_err(|error| StoreError::Refused(format!("{host} is no name of a server: {error}")))?,
    };
    let connector = tower::service_fn(move |_| {
        let (host, name, tls) = (host.clone(), name.clone(), tls.clone());
        async move {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            stream.set_nodelay(true)?;
            Ok::<_, std::io::Error>(TokioIo::new(match tls {
                None => Stream::Clear(stream),
                Some(tls) => Stream::Tls(Box::new(TlsConnector::from(tls).connect(name, stream).await?)),
            }))
        }
    });
    Ok(Endpoint::from_static("http://etcd.invalid")
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(connector))
}

/// A connection to a member.
enum Stream {
    Clear(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

mod stream {
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::Stream;

    impl AsyncRead for Stream {
        fn poll_read(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            match self.get_mut() {
                Self::Clear(stream) => Pin::new(stream).poll_read(cx, buffer),
                Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
            }
        }
    }

    impl AsyncWrite for Stream {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            match self.get_mut() {
                Self::Clear(stream) => Pin::new(stream).poll_write(cx, bytes),
                Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            }
        }

        fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            match self.get_mut() {
                Self::Clear(stream) => Pin::new(stream).poll_flush(cx),
                Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            }
        }

        fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            match self.get_mut() {
                Self::Clear(stream) => Pin::new(stream).poll_shutdown(cx),
                Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            }
        }
    }
}
