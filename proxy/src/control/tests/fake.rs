//! A control plane for tests: it speaks the real protocol on a real socket, and does as it is told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use prost::Message;
use rustls_pki_types::CertificateDer;
use signet_identity::{
    ALPN_CONTROL, Authority, KeyRequest, Peer, SpiffeId, TlsSvid, TrustDomain, enrolment_server_config,
};
use signet_policy::PolicyModel;
use signet_sync::proto::sync as wire;
use signet_sync::proto::sync::control_server::{Control, ControlServer};
use signet_sync::proto::sync::enrolment_server::{Enrolment, EnrolmentServer};
use signet_sync::proto::sync::identity_server::{Identity, IdentityServer};
use signet_sync::proto::sync::{control_message, proxy_message};
use signet_sync::{
    Anchors, Directory, DirectoryKey, POLICY_KEY_ID, Publisher, Revocations, SectionKey, SectionName, Token,
    Version, area_key_id,
};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

pub(super) const NETWORK: &str = "engine-1/bridge";
const AREA: &str = "main";
const SECRET: [u8; 32] = [9; 32];

/// What proxies said, and what they are to be told.
pub(super) struct Mesh {
    pub(super) authority: Authority,
    pub(super) policy_key: SectionKey,
    area_key: SectionKey,
    pub(super) lifetime: Mutex<Duration>,
    pub(super) refuse_renewals: AtomicBool,
    pub(super) enrolments: AtomicUsize,
    pub(super) renewals: AtomicUsize,
    pub(super) streams: AtomicUsize,
    pub(super) received: watch::Sender<Vec<proxy_message::Message>>,
    sections: watch::Sender<BTreeMap<SectionName, Arc<wire::Section>>>,
    pub(super) queries: watch::Sender<Option<wire::ExplainQuery>>,
}

impl Mesh {
    pub(super) fn new() -> Arc<Self> {
        let now = SystemTime::now();
        let authority = Authority::create(trust_domain(), now, Duration::from_secs(86_400)).unwrap();
        let mesh = Self {
            authority,
            policy_key: SectionKey::generate().unwrap(),
            area_key: SectionKey::generate().unwrap(),
            lifetime: Mutex::new(Duration::from_secs(3_600)),
            refuse_renewals: AtomicBool::new(false),
            enrolments: AtomicUsize::new(0),
            renewals: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            received: watch::Sender::default(),
            sections: watch::Sender::default(),
            queries: watch::Sender::default(),
        };
        mesh.publish_all();
        Arc::new(mesh)
    }

    pub(super) fn token(&self) -> Token {
        Token::new("token-1".into(), SECRET, self.authority.root_spki_sha256()).unwrap()
    }

    /// Anchors with the root that there is, whatever else `change` makes of them.
    pub(super) fn publish_anchors(&self, counter: u64, change: impl FnOnce(&mut Anchors)) {
        let directory_key = DirectoryKey { key: self.area_key.public_key(), networks: vec![] };
        let mut anchors = Anchors::new(
            Arc::new(self.authority.bundle()),
            self.policy_key.public_key(),
            BTreeMap::from([(AREA.to_owned(), directory_key)]),
        );
        change(&mut anchors);
        self.publish(SectionName::Anchors, counter, wire::Anchors::from(&anchors).encode_to_vec());
    }

    fn publish_all(&self) {
        self.publish_anchors(1, |_| {});
        let nobody = wire::Revocations::from(&Revocations::default());
        self.publish(SectionName::Revocations, 1, nobody.encode_to_vec());
        let directory = Directory::new(NETWORK.to_owned(), vec![]).unwrap();
        let name = SectionName::Directory(NETWORK.to_owned());
        self.publish(name, 1, wire::Directory::from(&directory).encode_to_vec());
        self.publish_policy(1);
    }

    pub(super) fn publish_policy(&self, counter: u64) {
        let model = PolicyModel { clock_skew_s: counter, ..PolicyModel::empty(trust_domain()) };
        self.publish(SectionName::Policy, counter, wire::Policy::from(&model).encode_to_vec());
    }

    pub(super) fn publish(&self, name: SectionName, counter: u64, payload: Vec<u8>) {
        let (key, key_id) = match name {
            SectionName::Directory(_) => (&self.area_key, area_key_id(AREA)),
            _ => (&self.policy_key, POLICY_KEY_ID.to_owned()),
        };
        let section = key.sign(&key_id, &name, Version { epoch: 1, counter }, 1, payload, vec![]).unwrap();
        self.sections.send_modify(|sections| drop(sections.insert(name, Arc::new(section))));
    }

    fn issue(&self, tls_csr: &[u8], signing_csr: &[u8]) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let from = SystemTime::now() - Duration::from_secs(1);
        let until = SystemTime::now() + *self.lifetime.lock().unwrap();
        let tls = self.authority.issue_tls(tls_csr, &workload(), from, until).unwrap();
        let signing = self.authority.issue_signing(signing_csr, &workload(), from, until).unwrap();
        (der(&tls), der(&signing))
    }
}

/// A running control plane; it is gone, connections and all, when dropped.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Server {
    pub(super) async fn start(mesh: &Arc<Mesh>) -> Self {
        Self::start_at(mesh, SocketAddr::from(([127, 0, 0, 1], 0)), control_plane()).await
    }

    pub(super) async fn start_at(mesh: &Arc<Mesh>, address: SocketAddr, id: SpiffeId) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let key = KeyRequest::new_tls().unwrap();
        let from = SystemTime::now() - Duration::from_secs(1);
        let until = from + Duration::from_secs(3_600);
        let svid =
            TlsSvid::new(mesh.authority.issue_tls(&key.csr, &id, from, until).unwrap(), key.key).unwrap();
        let bundle = mesh.authority.bundle();
        let config = enrolment_server_config(&svid, &bundle, bundle.roots(), &[ALPN_CONTROL]).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let mesh = Arc::clone(mesh);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, mesh) = (acceptor.clone(), Arc::clone(&mesh));
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let peer = signet_identity::peer(stream.get_ref().1).ok();
                    serve(stream, Service { mesh, peer }).await;
                });
            }
        });
        Self { address, _tasks: tasks }
    }
}

async fn serve(stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>, service: Service) {
    let routes = tonic::service::Routes::new(EnrolmentServer::new(service.clone()))
        .add_service(IdentityServer::new(service.clone()))
        .add_service(ControlServer::new(service));
    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes))
        .await;
}

#[derive(Clone)]
struct Service {
    mesh: Arc<Mesh>,
    peer: Option<Peer>,
}

#[tonic::async_trait]
impl Enrolment for Service {
    async fn challenge(
        &self,
        _: Request<wire::ChallengeRequest>,
    ) -> Result<Response<wire::ChallengeResponse>, Status> {
        Err(Status::unimplemented("it has no attestor"))
    }

    async fn enrol(
        &self,
        request: Request<wire::EnrolRequest>,
    ) -> Result<Response<wire::EnrolResponse>, Status> {
        self.mesh.enrolments.fetch_add(1, Ordering::SeqCst);
        let request = request.into_inner();
        if request.secret != SECRET {
            return Err(Status::permission_denied("no such token"));
        }
        let (tls_chain, signing_chain) = self.mesh.issue(&request.tls_csr, &request.signing_csr);
        Ok(Response::new(wire::EnrolResponse {
            protocol: 1,
            tls_chain,
            signing_chain,
            roots: der(self.mesh.authority.bundle().roots()),
            policy_key: self.mesh.policy_key.public_key().to_vec(),
            spiffe_id: workload().to_string(),
            network: NETWORK.to_owned(),
            control_plane_spiffe_id: control_plane().to_string(),
        }))
    }
}

#[tonic::async_trait]
impl Identity for Service {
    async fn renew(
        &self,
        request: Request<wire::RenewRequest>,
    ) -> Result<Response<wire::RenewResponse>, Status> {
        if self.peer.as_ref().map(Peer::id) != Some(&workload()) {
            return Err(Status::unauthenticated("no certificate"));
        }
        self.mesh.renewals.fetch_add(1, Ordering::SeqCst);
        if self.mesh.refuse_renewals.load(Ordering::SeqCst) {
            return Err(Status::unavailable("not now"));
        }
        let request = request.into_inner();
        let (tls_chain, signing_chain) = self.mesh.issue(&request.tls_csr, &request.signing_csr);
        Ok(Response::new(wire::RenewResponse { tls_chain, signing_chain }))
    }

    async fn report_tampering(
        &self,
        _: Request<wire::ReportTamperingRequest>,
    ) -> Result<Response<wire::ReportTamperingResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn appoint(
        &self,
        _: Request<wire::AppointRequest>,
    ) -> Result<Response<wire::AppointResponse>, Status> {
        Err(Status::permission_denied("not-entitled: nobody is here"))
    }

    async fn certify_app(
        &self,
        _: Request<wire::CertifyAppRequest>,
    ) -> Result<Response<wire::CertifyAppResponse>, Status> {
        Err(Status::permission_denied("workload-api-not-offered: nobody is here"))
    }

    async fn sign_jwt(
        &self,
        _: Request<wire::SignJwtRequest>,
    ) -> Result<Response<wire::SignJwtResponse>, Status> {
        Err(Status::permission_denied("workload-api-not-offered: nobody is here"))
    }
}

#[tonic::async_trait]
impl Control for Service {
    type ConnectStream = Pin<Box<dyn Stream<Item = Result<wire::ControlMessage, Status>> + Send>>;

    async fn connect(
        &self,
        request: Request<Streaming<wire::ProxyMessage>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        if self.peer.is_none() {
            return Err(Status::unauthenticated("no certificate"));
        }
        self.mesh.streams.fetch_add(1, Ordering::SeqCst);
        let (outbound, queue) = mpsc::channel(16);
        tokio::spawn(push(Arc::clone(&self.mesh), request.into_inner(), outbound));
        Ok(Response::new(Box::pin(ReceiverStream::new(queue).map(Ok))))
    }
}

async fn push(
    mesh: Arc<Mesh>,
    mut inbound: Streaming<wire::ProxyMessage>,
    outbound: mpsc::Sender<wire::ControlMessage>,
) {
    let mut sections = mesh.sections.subscribe();
    let mut queries = mesh.queries.subscribe();
    let Ok(Some(wire::ProxyMessage { message: Some(proxy_message::Message::Hello(hello)) })) =
        inbound.message().await
    else {
        return;
    };
    let mut publisher = Publisher::new(&hello);
    mesh.received.send_modify(|all| all.push(proxy_message::Message::Hello(hello)));
    sections.mark_changed();
    loop {
        let sending = tokio::select! {
            message = inbound.message() => {
                let Ok(Some(wire::ProxyMessage { message: Some(message) })) = message else { return };
                match &message {
                    proxy_message::Message::Ack(ack) => publisher.on_ack(ack),
                    proxy_message::Message::Nack(nack) => publisher.on_nack(nack),
                    _ => {}
                }
                mesh.received.send_modify(|all| all.push(message));
                None
            }
            _ = sections.changed() => {
                for section in sections.borrow_and_update().values() {
                    publisher.publish(Arc::clone(section));
                }
                None
            }
            _ = queries.changed() => queries.borrow_and_update().clone().map(control_message::Message::ExplainQuery),
        };
        let mut messages: Vec<_> = sending.into_iter().collect();
        while let Some(section) = publisher.poll(Instant::now()) {
            messages.push(control_message::Message::Section((*section).clone()));
        }
        for message in messages {
            if outbound.send(wire::ControlMessage { message: Some(message) }).await.is_err() {
                return;
            }
        }
    }
}

pub(super) fn trust_domain() -> TrustDomain {
    TrustDomain::parse("mf2c.test").unwrap()
}

pub(super) fn workload() -> SpiffeId {
    SpiffeId::parse("spiffe://mf2c.test/agent/d1/cimi").unwrap()
}

pub(super) fn control_plane() -> SpiffeId {
    SpiffeId::control_plane(&trust_domain(), "cp1").unwrap()
}

fn der(chain: &[CertificateDer<'_>]) -> Vec<Vec<u8>> {
    chain.iter().map(|certificate| certificate.to_vec()).collect()
}
