//! The control client against a control plane that speaks the real protocol.

mod fake;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use signet_sync::proto::sync::proxy_message::Message;
use signet_sync::{SectionName, Token};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::*;
use fake::{Mesh, NETWORK, Server, workload};

/// How long a fact is waited for; never reached by a passing test.
const PATIENCE: Duration = Duration::from_secs(30);

/// A client that runs until dropped.
struct Running {
    snapshots: Arc<ArcSwap<Snapshot>>,
    credentials: Arc<ArcSwapOption<Credentials>>,
    changes: watch::Receiver<u64>,
    link: watch::Receiver<Link>,
    _observed: mpsc::Sender<Observation>,
    task: JoinHandle<Infallible>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Running {
    async fn start(settings: Settings) -> Self {
        let control = Control::open(settings).unwrap();
        let link = control.link();
        let mut joined = within(control.join()).await;
        let (observed, observations) = mpsc::channel(1);
        let (snapshots, credentials, changes) = (joined.snapshots(), joined.credentials(), joined.changes());
        let hooks = Hooks {
            explain: Box::new(|id| (id == "known").then(|| "{\"allowed\":true}".to_owned())),
            health: Box::new(|| Health { capture_in_force: true, open_connections: 3, ..Health::default() }),
            observed: observations,
            appointments: mpsc::channel(1).1,
            app_svids: mpsc::channel(1).1,
            report: Arc::default(),
        };
        let task = tokio::spawn(async move { joined.run(hooks).await });
        Self { snapshots, credentials, changes, link, _observed: observed, task }
    }

    async fn until(&mut self, fact: impl Fn(&Snapshot, Option<&Credentials>) -> bool) {
        let (snapshots, credentials) = (&self.snapshots, &self.credentials);
        let holds = |_: &u64| fact(&snapshots.load(), credentials.load().as_deref());
        within(self.changes.wait_for(holds)).await.unwrap();
        // What was judged under the snapshot in force is known to be so by its number, whatever changed last.
        assert_eq!(self.snapshots.load().generation, *self.changes.borrow());
    }
}

async fn within<T>(fact: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, fact).await.expect("the fact never came true")
}

fn settings(server: &Server, token: Option<Token>, state: Option<&Path>) -> Settings {
    Settings {
        control_plane: server.address.into(),
        token: token.map(|token| TokenSource::Text(token.reveal())),
        tpm: None,
        state_dir: state.map(Path::to_owned),
        dial: Dial::new(TcpStream::connect),
    }
}

async fn received(mesh: &Mesh, what: impl Fn(&Message) -> bool) -> Message {
    let mut all = mesh.received.subscribe();
    let found = within(all.wait_for(|all| all.iter().any(&what))).await.unwrap();
    found.iter().rfind(|message| what(message)).cloned().unwrap()
}

#[tokio::test]
async fn a_proxy_enrols_applies_what_is_pushed_and_reports() {
    let mesh = Mesh::new();
    let server = Server::start(&mesh).await;
    let mut proxy = Running::start(settings(&server, Some(mesh.token()), None)).await;
    proxy.until(|snapshot, _| snapshot.ready).await;
    assert_eq!(proxy.credentials.load().as_ref().unwrap().id(), &workload());
    assert_eq!(&*proxy.snapshots.load().policy_version, "1.1");
    assert_eq!(proxy.snapshots.load().directories[0].network(), NETWORK);
    mesh.publish_policy(2);
    proxy.until(|snapshot, _| snapshot.clock_skew_s == 2).await;
    received(&mesh, |m| matches!(m, Message::Ack(ack) if ack.name == "policy" && ack.counter == 2)).await;
    let Message::Status(status) = received(&mesh, |m| matches!(m, Message::Status(_))).await else {
        unreachable!()
    };
    assert!(status.capture_in_force && !status.canary_ok && status.open_connections == 3);
    assert!(proxy.link.borrow().connected && proxy.link.borrow().error.is_none());
}

#[tokio::test]
async fn when_another_issuer_certifies_the_proxy_renews_and_says_what_it_uses_now() {
    let mesh = Mesh::new();
    let server = Server::start(&mesh).await;
    let mut proxy = Running::start(settings(&server, Some(mesh.token()), None)).await;
    proxy.until(|snapshot, _| snapshot.ready).await;
    let leaf = |credentials: &Credentials| credentials.tls.fingerprint;
    let first = leaf(proxy.credentials.load().as_ref().unwrap());
    // The one that it has certificates of is no reason.
    mesh.publish_anchors(2, |anchors| anchors.issuer = Some(mesh.authority.issuer_spki_sha256()));
    received(&mesh, |m| matches!(m, Message::Ack(ack) if ack.name == "anchors" && ack.counter == 2)).await;
    assert_eq!(mesh.renewals.load(Ordering::SeqCst), 0);
    mesh.publish_anchors(3, |anchors| anchors.issuer = Some([7; 32]));
    proxy.until(|_, credentials| credentials.is_some_and(|now| leaf(now) != first)).await;
    let second = leaf(proxy.credentials.load().as_ref().unwrap());
    received(&mesh, |m| matches!(m, Message::Status(status) if status.tls_leaf == second.0)).await;
}

#[tokio::test]
async fn a_refused_issuer_is_believed_no_more_and_what_is_open_goes_on_if_it_may() {
    let mesh = Mesh::new();
    let server = Server::start(&mesh).await;
    let mut proxy = Running::start(settings(&server, Some(mesh.token()), None)).await;
    proxy.until(|snapshot, _| snapshot.ready).await;
    let chain = proxy.credentials.load().as_ref().unwrap().tls.chain.clone();
    let holds = |bundle: &TrustBundle| verify_tls_chain(bundle, &chain, SystemTime::now()).is_ok();
    let own = mesh.authority.issuer_spki_sha256();
    let refusing = || Arc::new(mesh.authority.bundle().without_issuers(vec![own]).unwrap());
    mesh.publish_anchors(2, |anchors| anchors.bundle = refusing());
    proxy.until(|snapshot, _| !holds(&snapshot.bundle) && holds(&snapshot.open_bundle)).await;
    mesh.publish_anchors(3, |anchors| (anchors.bundle, anchors.open) = (refusing(), refusing()));
    proxy.until(|snapshot, _| !holds(&snapshot.bundle) && !holds(&snapshot.open_bundle)).await;
}

#[tokio::test]
async fn a_refused_section_is_answered_with_its_error_and_the_last_good_one_stays() {
    let mesh = Mesh::new();
    let server = Server::start(&mesh).await;
    let mut proxy = Running::start(settings(&server, Some(mesh.token()), None)).await;
    proxy.until(|snapshot, _| snapshot.ready).await;
    mesh.publish(SectionName::Policy, 2, vec![0xff]);
    let Message::Nack(nack) = received(&mesh, |m| matches!(m, Message::Nack(_))).await else {
        unreachable!()
    };
    assert_eq!((nack.code.as_str(), nack.counter), ("malformed-payload", 2));
    assert_eq!(&*proxy.snapshots.load().policy_version, "1.1");
    assert!(proxy.snapshots.load().ready);
    assert_eq!(proxy.link.borrow().refused_sections, 1);
}

#[tokio::test]
async fn an_explain_query_is_answered_from_the_ring() {
    let mesh = Mesh::new();
    let server = Server::start(&mesh).await;
    let mut proxy = Running::start(settings(&server, Some(mesh.token()), None)).await;
    proxy.until(|snapshot, _| snapshot.ready).await;
    for (query_id, request_id, json) in [(7, "known", "{\"allowed\":true}"), (8, "forgotten", "")] {
        let query = signet_sync::proto::sync::ExplainQuery { query_id, request_id: request_id.to_owned() };
        mesh.queries.send_replace(Some(query));
        let is_answer = |m: &Message| matches!(m, Message::ExplainAnswer(a) if a.query_id == query_id);
        let Message::ExplainAnswer(answer) = received(&mesh, is_answer).await else { unreachable!() };
        assert_eq!(answer.json, json);
    }
}

#[tokio::test]
async fn certificates_are_renewed_over_fresh_keys_and_the_stream_follows() {
    let mesh = Mesh::new();
    *mesh.lifetime.lock().unwrap() = Duration::from_secs(5);
    let server = Server::start(&mesh).await;
    let mut proxy = Running::start(settings(&server, Some(mesh.token()), None)).await;
    proxy.until(|snapshot, _| snapshot.ready).await;
    let first = proxy.credentials.load_full().unwrap();
    let credentials = Arc::clone(&proxy.credentials);
    let mut gaps = proxy.changes.clone();
    let watching = tokio::spawn(async move {
        while gaps.changed().await.is_ok() {
            assert!(credentials.load().is_some(), "a certificate was missing");
        }
    });
    for _ in 0..2 {
        let before = proxy.credentials.load_full().unwrap().tls.fingerprint;
        proxy.until(|_, credentials| credentials.is_some_and(|c| c.tls.fingerprint != before)).await;
    }
    let last = proxy.credentials.load_full().unwrap();
    assert_ne!(spki(&first), spki(&last), "renewal makes new keys");
    assert!(mesh.streams.load(Ordering::SeqCst) >= 2, "the stream moved to a newer certificate");
    mesh.publish_policy(2);
    proxy.until(|snapshot, _| snapshot.clock_skew_s == 2).await;
    assert!(!watching.is_finished());
    assert_eq!(mesh.enrolments.load(Ordering::SeqCst), 1);
}

fn spki(credentials: &Credentials) -> [u8; 32] {
    signet_identity::spki_sha256(&credentials.tls.chain[0]).unwrap()
}

#[tokio::test]
async fn a_failed_renewal_drops_nothing_until_the_end_and_then_fails_closed_and_recovers() {
    let mesh = Mesh::new();
    *mesh.lifetime.lock().unwrap() = Duration::from_secs(3);
    mesh.refuse_renewals.store(true, Ordering::SeqCst);
    let server = Server::start(&mesh).await;
    let mut proxy = Running::start(settings(&server, Some(mesh.token()), None)).await;
    let end = proxy.credentials.load_full().unwrap().tls.not_after;
    proxy.until(|_, credentials| credentials.is_none()).await;
    assert!(SystemTime::now() >= end, "not before their end");
    assert!(mesh.renewals.load(Ordering::SeqCst) >= 1, "it did try");
    mesh.refuse_renewals.store(false, Ordering::SeqCst);
    proxy.until(|_, credentials| credentials.is_some()).await;
    assert_eq!(mesh.enrolments.load(Ordering::SeqCst), 2, "enrolled anew, without anybody's help");
}

#[tokio::test]
async fn a_restart_needs_neither_control_plane_nor_token() {
    let mesh = Mesh::new();
    let state = TempDir::new().unwrap();
    let server = Server::start(&mesh).await;
    let mut proxy = Running::start(settings(&server, Some(mesh.token()), Some(state.path()))).await;
    proxy.until(|snapshot, _| snapshot.ready).await;
    within(saved(state.path())).await;
    drop(proxy);
    let away = settings(&server, None, Some(state.path()));
    drop(server);
    let proxy = Running::start(away).await;
    assert!(proxy.snapshots.load().ready, "the last good state is in force at once");
    assert_eq!(proxy.credentials.load().as_ref().unwrap().id(), &workload());
    assert!(!proxy.link.borrow().connected);
}

#[tokio::test]
async fn a_returning_control_plane_is_found_again() {
    let mesh = Mesh::new();
    let server = Server::start(&mesh).await;
    let mut proxy = Running::start(settings(&server, Some(mesh.token()), None)).await;
    proxy.until(|snapshot, _| snapshot.ready).await;
    let address = server.address;
    drop(server);
    within(proxy.link.wait_for(|link| !link.connected)).await.unwrap();
    assert!(proxy.snapshots.load().ready && proxy.credentials.load().is_some(), "nothing is given up");
    mesh.publish_policy(2);
    let _server = Server::start_at(&mesh, address, fake::control_plane()).await;
    proxy.until(|snapshot, _| snapshot.clock_skew_s == 2).await;
}

#[tokio::test]
async fn state_files_are_private_and_altered_ones_are_not_believed() {
    let mesh = Mesh::new();
    let state = TempDir::new().unwrap();
    let server = Server::start(&mesh).await;
    let mut proxy = Running::start(settings(&server, Some(mesh.token()), Some(state.path()))).await;
    proxy.until(|snapshot, _| snapshot.ready).await;
    within(saved(state.path())).await;
    drop(proxy);
    for file in std::fs::read_dir(state.path()).unwrap() {
        assert_eq!(file.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    let sections = state.path().join("sections.pb");
    let mut bytes = std::fs::read(&sections).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&sections, bytes).unwrap();
    let away = settings(&server, None, Some(state.path()));
    drop(server);
    let proxy = Running::start(away).await;
    assert!(!proxy.snapshots.load().ready, "an altered section is worth nothing");
}

#[tokio::test]
async fn a_damaged_identity_is_refused_unless_a_token_can_replace_it() {
    let mesh = Mesh::new();
    let state = TempDir::new().unwrap();
    let server = Server::start(&mesh).await;
    drop(Running::start(settings(&server, Some(mesh.token()), Some(state.path()))).await);
    std::fs::write(state.path().join("tls.pem"), "not a certificate").unwrap();
    let refused = Control::open(settings(&server, None, Some(state.path())));
    assert!(matches!(refused, Err(ControlError::State(_))));
    let proxy = Running::start(settings(&server, Some(mesh.token()), Some(state.path()))).await;
    assert!(proxy.credentials.load().is_some());
}

#[tokio::test]
async fn the_secret_is_not_sent_to_a_server_under_another_pin() {
    let mesh = Mesh::new();
    let server = Server::start(&mesh).await;
    let foreign = Token::new("token-1".into(), *mesh.token().secret(), [1; 32]).unwrap();
    let control = Control::open(settings(&server, Some(foreign), None)).unwrap();
    let mut link = control.link();
    let joining = tokio::spawn(control.join());
    within(link.wait_for(|link| link.error.is_some())).await.unwrap();
    joining.abort();
    assert_eq!(mesh.enrolments.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn the_secret_is_not_sent_to_a_workload_that_poses_as_the_control_plane() {
    let mesh = Mesh::new();
    let impostor = Server::start_at(&mesh, SocketAddr::from(([127, 0, 0, 1], 0)), workload()).await;
    let control = Control::open(settings(&impostor, Some(mesh.token()), None)).unwrap();
    let mut link = control.link();
    let joining = tokio::spawn(control.join());
    within(link.wait_for(|link| link.error.is_some())).await.unwrap();
    joining.abort();
    assert_eq!(mesh.enrolments.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_refused_token_is_named_and_tried_again() {
    let mesh = Mesh::new();
    let server = Server::start(&mesh).await;
    let used_up = Token::new("token-1".into(), [1; 32], mesh.token().pin()).unwrap();
    let control = Control::open(settings(&server, Some(used_up), None)).unwrap();
    let mut link = control.link();
    let joining = tokio::spawn(control.join());
    let told = within(link.wait_for(|link| link.error.is_some())).await.unwrap().error.clone().unwrap();
    assert!(told.contains("no such token"), "{told}");
    assert!(!joining.is_finished());
    joining.abort();
}

#[test]
fn nothing_to_start_from_is_a_configuration_error() {
    let state = TempDir::new().unwrap();
    let settings = |token: Option<&str>| Settings {
        control_plane: SocketAddr::from(([127, 0, 0, 1], 1)).into(),
        token: token.map(|text| TokenSource::Text(text.to_owned())),
        tpm: None,
        state_dir: Some(state.path().to_owned()),
        dial: Dial::new(TcpStream::connect),
    };
    assert!(matches!(Control::open(settings(None)), Err(ControlError::NoIdentity)));
    assert!(matches!(
        Control::open(settings(Some("no-token"))),
        Err(ControlError::Proof(ProofError::Token(_)))
    ));
}

/// Until the sections have been written.
async fn saved(state: &Path) {
    while !state.join("sections.pb").exists() {
        tokio::task::yield_now().await;
    }
}
