//! Starts the binary, and plays operator and proxy over the real sockets.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::CertificateDer;
use signet_identity::{
    ALPN_CONTROL, Dating, KeyRequest, SigningSvid, SpiffeId, TlsSvid, TrustBundle, TrustDomain,
    control_client_config, dial_name, pinned_client_config,
};
use signet_sync::proto::admin::admin_client::AdminClient;
use signet_sync::proto::admin::{self};
use signet_sync::proto::sync::control_client::ControlClient;
use signet_sync::proto::sync::control_message::Message as Down;
use signet_sync::proto::sync::enrolment_client::EnrolmentClient;
use signet_sync::proto::sync::identity_client::IdentityClient;
use signet_sync::proto::sync::proxy_message::Message as Up;
use signet_sync::proto::sync::{self as wire};
use signet_sync::{MAX_ADMIN_ANSWER_BYTES, MAX_MESSAGE_BYTES, PROTOCOL, SectionName, Subscriber, Token};
use tempfile::TempDir;
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

pub(crate) const TRUST_DOMAIN: &str = "mesh.example";

/// Long enough for a loaded machine; a test that waits this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const MESH: &str = r#"
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Mesh
metadata: { name: mesh }
spec:
  trustDomain: mesh.example
  networks:
    - { name: edge, cidrs: [127.0.0.0/8] }
    - { name: cloud, cidrs: [127.0.0.0/8] }
    - { name: lan }
"#;

/// A workload of network `edge` that serves port 8080.
pub(crate) fn workload(name: &str) -> String {
    format!(
        "apiVersion: signet.mf2c-project.eu/v1alpha1\nkind: Workload\nmetadata: {{ name: {name} }}\n\
         spec: {{ class: app, device: edge, network: edge, names: [{name}.example], ports: [{{ port: 8080 }}] }}\n"
    )
}

/// A running control plane; killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) control: SocketAddr,
    pub(crate) health: SocketAddr,
    pub(crate) socket: PathBuf,
}

/// The binary with free ports and a state directory.
pub(crate) fn command(state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_signet-control-plane"));
    command
        .args(["--trust-domain", TRUST_DOMAIN, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
        .arg("--state-dir")
        .arg(state)
        .env("SIGNET_LOG", "warn")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs the binary to its end: how it exited and what it said about it.
pub(crate) fn run_to_end(mut command: Command) -> (ExitStatus, String) {
    let output = command.output().unwrap();
    (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
}

impl Server {
    pub(crate) fn start(state: &Path) -> Self {
        Self::spawn(command(state))
    }

    pub(crate) fn spawn(command: Command) -> Self {
        Self::try_spawn(command).unwrap_or_else(|reason| panic!("it did not start: {reason}"))
    }

    /// What it says about it, if it does not start.
    pub(crate) fn try_spawn(mut command: Command) -> Result<Self, String> {
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mut words = line.split_whitespace();
        if words.next() != Some("listening") {
            let mut reason = String::new();
            child.stderr.take().unwrap().read_to_string(&mut reason).unwrap();
            child.wait().unwrap();
            return Err(reason);
        }
        let mut value = |name: &str| words.next().unwrap().strip_prefix(name).unwrap().to_owned();
        Ok(Self {
            control: value("control=").parse().unwrap(),
            health: value("admin=").parse().unwrap(),
            socket: value("socket=").into(),
            child,
        })
    }

    /// SIGKILL, and waits until the process is gone.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and waits for the exit.
    pub(crate) fn terminate(mut self) -> ExitStatus {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.child.wait().unwrap()
    }

    pub(crate) async fn operator(&self) -> AdminClient<Channel> {
        let socket = self.socket.clone();
        let connect = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel =
            Endpoint::from_static("http://signet.invalid").connect_with_connector(connect).await.unwrap();
        AdminClient::new(channel).max_decoding_message_size(MAX_ADMIN_ANSWER_BYTES)
    }

    pub(crate) async fn apply(&self, yaml: &str) -> admin::ApplyResponse {
        let response = self.try_apply(yaml).await.unwrap();
        assert!(response.diagnostics.is_empty(), "{:?}", response.diagnostics);
        response
    }

    pub(crate) async fn try_apply(&self, yaml: &str) -> Result<admin::ApplyResponse, Status> {
        let files = vec![admin::ManifestFile { name: "test.yaml".to_owned(), text: yaml.to_owned() }];
        let request = admin::ApplyRequest { files, dry_run: false };
        Ok(self.operator().await.apply(request).await?.into_inner())
    }

    pub(crate) async fn token(&self, workload: &str, uses: u32) -> Token {
        let request = admin::CreateTokenRequest {
            workload: workload.to_owned(),
            uses,
            instances: uses,
            ..Default::default()
        };
        let created = self.operator().await.create_token(request).await.unwrap().into_inner();
        Token::parse(&created.token).unwrap()
    }

    /// Vouches for an instance's addresses.
    pub(crate) async fn attest(
        &self,
        workload: &str,
        instance: &str,
        addresses: &[&str],
    ) -> Result<(), Status> {
        let request = admin::AttestRequest {
            workload: workload.to_owned(),
            instance: instance.to_owned(),
            addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
            ..Default::default()
        };
        self.operator().await.attest(request).await.map(drop)
    }

    /// Applies the workload, makes a token and enrols with it.
    pub(crate) async fn proxy(&self, workload_name: &str) -> Proxy {
        self.apply(&workload(workload_name)).await;
        let token = self.token(workload_name, 1).await;
        enrol(self.control, &token).await.unwrap()
    }

    /// Whoever else holds the same keys.
    pub(crate) fn another(&self, proxy: &Proxy) -> Proxy {
        Proxy {
            tls: proxy.tls.clone(),
            signing: proxy.signing.clone(),
            bundle: proxy.bundle.clone(),
            policy_key: proxy.policy_key,
            response: proxy.response.clone(),
        }
    }

    pub(crate) async fn proxies(&self) -> Vec<admin::Proxy> {
        self.operator().await.list_proxies(admin::ListProxiesRequest {}).await.unwrap().into_inner().proxies
    }

    /// Names of the workloads that are stored.
    pub(crate) async fn workloads(&self) -> BTreeSet<String> {
        let request = admin::GetRequest { kind: "Workload".to_owned(), name: String::new() };
        let items = self.operator().await.get(request).await.unwrap().into_inner().items;
        items.into_iter().map(|item| item.name).collect()
    }

    pub(crate) async fn info(&self) -> admin::InfoResponse {
        self.operator().await.info(admin::InfoRequest {}).await.unwrap().into_inner()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Neither the authority nor any version is another or older than before.
pub(crate) fn assert_nothing_went_back(before: &admin::InfoResponse, after: &admin::InfoResponse) {
    assert_eq!(before.root_fingerprints, after.root_fingerprints);
    assert!(before.revision <= after.revision, "{} > {}", before.revision, after.revision);
    for section in &before.sections {
        let name = SectionName::parse(&section.name).unwrap();
        assert!(counter(after, &name) >= section.counter, "{name} went back");
    }
}

/// A fresh control plane with the test mesh applied.
pub(crate) async fn mesh() -> (TempDir, Server) {
    let state = tempfile::tempdir().unwrap();
    let server = Server::start(state.path());
    server.apply(MESH).await;
    (state, server)
}

/// What an enrolled proxy holds.
pub(crate) struct Proxy {
    pub(crate) tls: TlsSvid,
    pub(crate) signing: SigningSvid,
    pub(crate) bundle: TrustBundle,
    pub(crate) policy_key: [u8; 32],
    pub(crate) response: wire::EnrolResponse,
}

impl Proxy {
    pub(crate) fn id(&self) -> &SpiffeId {
        &self.tls.id
    }

    pub(crate) fn tls_config(&self) -> ClientConfig {
        control_client_config(&self.tls, &self.bundle, &[ALPN_CONTROL], Dating::OwnClock).unwrap()
    }

    /// New keys, new certificates, by the ones in force.
    pub(crate) async fn renew(&mut self, control: SocketAddr) -> Result<(), Status> {
        self.renew_over(dial(control, self.tls_config(), None).await).await
    }

    pub(crate) async fn renew_over(&mut self, channel: Channel) -> Result<(), Status> {
        let tls = KeyRequest::new_tls().unwrap();
        let signing = KeyRequest::new_signing().unwrap();
        let request = wire::RenewRequest {
            protocol: PROTOCOL,
            min_protocol: PROTOCOL,
            tls_csr: tls.csr.clone(),
            signing_csr: signing.csr.clone(),
        };
        let response = IdentityClient::new(channel).renew(request).await?.into_inner();
        self.tls = TlsSvid::new(chain(response.tls_chain), tls.key).unwrap();
        self.signing = SigningSvid::new(chain(response.signing_chain), signing.key).unwrap();
        Ok(())
    }

    /// What is for who shows a certificate.
    pub(crate) async fn identity(&self, control: SocketAddr) -> IdentityClient<Channel> {
        IdentityClient::new(dial(control, self.tls_config(), None).await)
    }

    /// Opens a control stream from a loopback address, claiming it with every declared port.
    pub(crate) async fn connect(&self, control: SocketAddr, source: &str) -> Stream {
        self.connect_with(control, source, &[source]).await
    }

    pub(crate) async fn connect_with(&self, control: SocketAddr, source: &str, claims: &[&str]) -> Stream {
        let claims = claims.iter().map(|address| claim(address)).collect();
        self.hello(control, source, wire::Hello { claims, ..hello() }).await.unwrap()
    }

    /// Opens a control stream that claims nothing.
    pub(crate) async fn try_connect(&self, control: SocketAddr) -> Result<Stream, Status> {
        self.hello(control, "127.0.0.1", hello()).await
    }

    pub(crate) async fn hello(
        &self,
        control: SocketAddr,
        source: &str,
        hello: wire::Hello,
    ) -> Result<Stream, Status> {
        let source = Some(source.parse().unwrap());
        let channel = dial(control, self.tls_config(), source).await;
        let (up, messages) = mpsc::channel(16);
        up.send(wire::ProxyMessage { message: Some(Up::Hello(hello)) }).await.unwrap();
        let mut client = ControlClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let down = client.connect(ReceiverStream::new(messages)).await?.into_inner();
        let subscriber = Subscriber::new(TrustDomain::parse(TRUST_DOMAIN).unwrap(), self.policy_key);
        Ok(Stream { up, down, subscriber })
    }
}

pub(crate) fn hello() -> wire::Hello {
    wire::Hello {
        protocol: PROTOCOL,
        min_protocol: PROTOCOL,
        version: "test".to_owned(),
        ..Default::default()
    }
}

/// One open control stream with a real subscriber behind it.
pub(crate) struct Stream {
    pub(crate) up: mpsc::Sender<wire::ProxyMessage>,
    pub(crate) down: Streaming<wire::ControlMessage>,
    pub(crate) subscriber: Subscriber,
}

impl Stream {
    pub(crate) async fn send(&self, message: Up) {
        self.up.send(wire::ProxyMessage { message: Some(message) }).await.unwrap();
    }

    /// The next message; sections are verified, applied and answered on the way.
    pub(crate) async fn next(&mut self) -> Result<Option<Down>, Status> {
        let next = tokio::time::timeout(PATIENCE, self.down.message()).await.expect("a message in time")?;
        let Some(message) = next.and_then(|message| message.message) else { return Ok(None) };
        if let Down::Section(section) = &message {
            let outcome = self.subscriber.handle(section.clone());
            assert!(outcome.refused.is_none(), "{:?}", outcome.refused);
            // The stream may have been closed meanwhile, which the next read tells.
            let _ = self.up.send(outcome.reply).await;
        }
        Ok(Some(message))
    }

    /// Reads on until the subscriber's state is as wanted.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&Subscriber) -> bool) {
        while !wanted(&self.subscriber) {
            self.next().await.unwrap().expect("an open stream");
        }
    }

    /// Reads on until the verdict on a place.
    pub(crate) async fn verdict(&mut self) -> wire::ClaimResult {
        loop {
            if let Down::ClaimResult(result) = self.next().await.unwrap().expect("an open stream") {
                return result;
            }
        }
    }

    /// Reads on until the stream ends: with a reason, or in good order.
    pub(crate) async fn end(&mut self) -> Result<(), Status> {
        while self.next().await?.is_some() {}
        Ok(())
    }

    /// Whether the directory of `network` has `address`:8080 as a place of `id`.
    pub(crate) fn lists(subscriber: &Subscriber, network: &str, address: &str, id: &SpiffeId) -> bool {
        let address: IpAddr = address.parse().unwrap();
        subscriber.directories().any(|directory| {
            directory.network() == network
                && directory.lookup(address, 8080).is_some_and(|entry| entry.identities.contains(id))
        })
    }
}

pub(crate) fn claim(address: &str) -> wire::Claim {
    let octets = match address.parse().unwrap() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    wire::Claim { address: octets, ports: Vec::new() }
}

pub(crate) async fn enrol(control: SocketAddr, token: &Token) -> Result<Proxy, Status> {
    enrol_over(dial(control, pinned(token), None).await, token).await
}

pub(crate) async fn enrol_over(channel: Channel, token: &Token) -> Result<Proxy, Status> {
    let tls = KeyRequest::new_tls().unwrap();
    let signing = KeyRequest::new_signing().unwrap();
    let request = Request::new(enrol_request(token, &tls, &signing));
    let response = EnrolmentClient::new(channel).enrol(request).await?.into_inner();
    let roots = chain(response.roots.clone());
    let bundle = TrustBundle::new(TrustDomain::parse(TRUST_DOMAIN).unwrap(), roots).unwrap();
    Ok(Proxy {
        tls: TlsSvid::new(chain(response.tls_chain.clone()), tls.key).unwrap(),
        signing: SigningSvid::new(chain(response.signing_chain.clone()), signing.key).unwrap(),
        bundle,
        policy_key: response.policy_key.as_slice().try_into().unwrap(),
        response,
    })
}

pub(crate) fn enrol_request(token: &Token, tls: &KeyRequest, signing: &KeyRequest) -> wire::EnrolRequest {
    wire::EnrolRequest {
        protocol: PROTOCOL,
        min_protocol: PROTOCOL,
        token_id: token.id().to_owned(),
        secret: token.secret().to_vec(),
        tls_csr: tls.csr.clone(),
        signing_csr: signing.csr.clone(),
        version: "test".to_owned(),
        ..wire::EnrolRequest::default()
    }
}

pub(crate) async fn try_enrol(
    control: SocketAddr,
    token: &Token,
    request: wire::EnrolRequest,
) -> Result<wire::EnrolResponse, Status> {
    let channel = dial(control, pinned(token), None).await;
    Ok(EnrolmentClient::new(channel).enrol(Request::new(request)).await?.into_inner())
}

/// The configuration of a client that has nothing but a token.
pub(crate) fn pinned(token: &Token) -> ClientConfig {
    pinned_client_config(token.pin(), None, &[ALPN_CONTROL]).unwrap()
}

pub(crate) async fn dial(control: SocketAddr, tls: ClientConfig, source: Option<IpAddr>) -> Channel {
    try_dial(control, tls, source).await.unwrap()
}

pub(crate) async fn try_dial(
    control: SocketAddr,
    tls: ClientConfig,
    source: Option<IpAddr>,
) -> Result<Channel, tonic::transport::Error> {
    dial_by(Endpoint::from_static("http://signet.invalid"), control, tls, source).await
}

/// With settings of HTTP/2.
pub(crate) async fn dial_by(
    endpoint: Endpoint,
    control: SocketAddr,
    tls: ClientConfig,
    source: Option<IpAddr>,
) -> Result<Channel, tonic::transport::Error> {
    let connector = TlsConnector::from(Arc::new(tls));
    let connect = tower::service_fn(move |_| {
        let connector = connector.clone();
        async move {
            let tcp = tcp(control, source).await?;
            Ok::<_, std::io::Error>(TokioIo::new(connector.connect(dial_name(), tcp).await?))
        }
    });
    endpoint.connect_with_connector(connect).await
}

async fn tcp(control: SocketAddr, source: Option<IpAddr>) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    socket.connect(control).await
}

fn chain(ders: Vec<Vec<u8>>) -> Vec<CertificateDer<'static>> {
    ders.into_iter().map(CertificateDer::from).collect()
}

/// The refusal's stable code: what stands before the colon.
pub(crate) fn code(status: &Status) -> (Code, &str) {
    (status.code(), status.message().split(':').next().unwrap_or_default())
}

/// The counter of a section as published.
pub(crate) fn counter(info: &admin::InfoResponse, section: &SectionName) -> u64 {
    let name = section.to_string();
    info.sections.iter().find(|section| section.name == name).map_or(0, |section| section.counter)
}
