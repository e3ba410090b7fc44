//! The clients that work at the same time.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use signet_sync::Token;
use signet_sync::proto::admin::admin_client::AdminClient;
use signet_sync::proto::admin::revoke_request::Subject;
use signet_sync::proto::admin::{ApplyRequest, CreateTokenRequest, ManifestFile, RevokeRequest};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::ledger::{Change, Ledger, Uses, versioned};
use crate::harness::{Proxy, Server, code, enrol_over, pinned, try_dial};

/// Kinds of what is acknowledged.
pub(super) const KINDS: usize = 4;
const APPLIED: usize = 0;
const ENROLLED: usize = 1;
const RENEWED: usize = 2;
const REVOKED: usize = 3;

/// Workloads that are rewritten, each by one client.
const REGISTERS: usize = 3;

/// Clients that enrol with one token, and its uses: they race for the last one.
const ENROLLERS: usize = 2;
const SHARED_USES: u32 = 3;

/// Renewals of one instance before another is taken: it cannot hold any number of certificates.
const RENEWALS: usize = 40;

/// The clients of one life of the control plane.
pub(super) struct Work {
    client: Client,
    clients: JoinSet<()>,
}

/// What all clients share.
#[derive(Clone)]
struct Client {
    control: SocketAddr,
    operator: AdminClient<Channel>,
    identity: String,
    ledger: Arc<Mutex<Ledger>>,
    acknowledged: watch::Sender<[u64; KINDS]>,
    killed: Arc<AtomicBool>,
}

impl Work {
    pub(super) async fn begin(server: &Server, ledger: Ledger, identity: &str) -> Self {
        let client = Client {
            control: server.control,
            operator: server.operator().await,
            identity: identity.to_owned(),
            ledger: Arc::new(Mutex::new(ledger)),
            acknowledged: watch::Sender::new([0; KINDS]),
            killed: Arc::default(),
        };
        let mut clients = JoinSet::new();
        for number in 0..REGISTERS {
            clients.spawn(client.clone().until_killed(move |client| client.rewrite(format!("w{number}"))));
        }
        let shared = Arc::new(tokio::sync::Mutex::new(None));
        for _ in 0..ENROLLERS {
            let shared = shared.clone();
            clients.spawn(client.clone().until_killed(|client| client.enrol_together(shared)));
        }
        clients.spawn(client.clone().until_killed(Client::renew));
        clients.spawn(client.clone().until_killed(Client::revoke));
        Self { client, clients }
    }

    /// Waits until so many of a kind are acknowledged.
    pub(super) async fn until(&mut self, kind: usize, wanted: u64) {
        let mut acknowledged = self.client.acknowledged.subscribe();
        tokio::select! {
            counts = acknowledged.wait_for(|counts| counts[kind] >= wanted) => drop(counts.unwrap()),
            ended = self.clients.join_next() => panic!("a client has ended: {ended:?}"),
        }
    }

    /// From now on whatever fails may fail.
    pub(super) fn is_killed(&self) {
        self.client.killed.store(true, Ordering::SeqCst);
    }

    /// Everybody has noticed.
    pub(super) async fn end(mut self) -> Ledger {
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
        std::mem::take(&mut *self.client.ledger())
    }
}

impl Client {
    /// Works until a request fails because the control plane was killed; any other failure fails the test.
    async fn until_killed<F>(self, work: impl FnOnce(Self) -> F)
    where
        F: Future<Output = Result<(), Status>>,
    {
        let killed = self.killed.clone();
        if let Err(failure) = work(self).await {
            assert!(killed.load(Ordering::SeqCst), "{failure}");
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    fn count(&self, kind: usize) {
        self.acknowledged.send_modify(|counts| counts[kind] += 1);
    }

    fn changed(&self, began: Instant, revision: u64) {
        self.ledger().changes.push(Change { began, ended: Instant::now(), revision });
    }

    /// Applies one version after the other of a workload that is its own.
    async fn rewrite(mut self, name: String) -> Result<(), Status> {
        loop {
            let version = {
                let mut ledger = self.ledger();
                let register = ledger.registers.entry(name.clone()).or_default();
                register.asked += 1;
                register.asked
            };
            let file = ManifestFile { name: name.clone(), text: versioned(&name, version) };
            let began = Instant::now();
            let request = ApplyRequest { files: vec![file], dry_run: false };
            let applied = match self.operator.apply(request).await {
                Ok(applied) => applied.into_inner(),
                // The other writers were always faster: nothing was stored.
                Err(busy) if busy.code() == Code::Aborted => continue,
                Err(failure) => return Err(failure),
            };
            assert!(applied.diagnostics.is_empty(), "{:?}", applied.diagnostics);
            self.changed(began, applied.revision);
            self.ledger().registers.get_mut(&name).unwrap().acknowledged = version;
            self.count(APPLIED);
        }
    }

    /// Enrols with a token that others enrol with too; when it is used up somebody makes the next one.
    async fn enrol_together(mut self, shared: Arc<tokio::sync::Mutex<Option<Token>>>) -> Result<(), Status> {
        loop {
            let token = {
                let mut shared = shared.lock().await;
                match &*shared {
                    Some(token) => token.clone(),
                    None => shared.insert(self.token(SHARED_USES).await?).clone(),
                }
            };
            match self.enrol(&token).await? {
                Some(proxy) => self.ledger().enrolled.push(proxy),
                None => {
                    let mut shared = shared.lock().await;
                    if shared.as_ref().is_some_and(|current| current.id() == token.id()) {
                        *shared = None;
                    }
                }
            }
        }
    }

    async fn renew(mut self) -> Result<(), Status> {
        loop {
            let token = self.token(1).await?;
            let mut proxy = self.enrol(&token).await?.expect("a token that nobody else has");
            let mut outcome = Ok(());
            for _ in 0..RENEWALS {
                outcome = self.renew_once(&mut proxy).await;
                if outcome.is_err() {
                    break;
                }
                self.ledger().received(&proxy);
                self.count(RENEWED);
            }
            self.ledger().enrolled.push(proxy);
            outcome?;
        }
    }

    async fn renew_once(&self, proxy: &mut Proxy) -> Result<(), Status> {
        let channel = try_dial(self.control, proxy.tls_config(), None).await.map_err(broken)?;
        proxy.renew_over(channel).await
    }

    async fn revoke(mut self) -> Result<(), Status> {
        loop {
            let token = self.token(1).await?;
            let proxy = self.enrol(&token).await?.expect("a token that nobody else has");
            // It is taken back with whoever enrolled by it, and not listed any more.
            self.ledger().tokens.remove(token.id());
            let subject = Some(Subject::Fingerprint(proxy.tls.fingerprint.to_string()));
            let began = Instant::now();
            let request = RevokeRequest { subject, reason: "stolen".to_owned() };
            let revoked = self.operator.revoke(request).await?.into_inner();
            self.changed(began, revoked.revision);
            self.ledger().revoked.push(proxy);
            self.count(REVOKED);
        }
    }

    async fn token(&mut self, uses: u32) -> Result<Token, Status> {
        let workload = self.identity.clone();
        let request = CreateTokenRequest { workload, uses, instances: uses, ..Default::default() };
        let token = self.operator.create_token(request).await?.into_inner().token;
        let token = Token::parse(&token).unwrap();
        let uses = Uses { all: uses, asked: 0, acknowledged: 0 };
        assert!(self.ledger().tokens.insert(token.id().to_owned(), uses).is_none(), "a token twice");
        Ok(token)
    }

    /// Enrols; nothing when the token is used up, and then it is.
    async fn enrol(&self, token: &Token) -> Result<Option<Proxy>, Status> {
        let channel = try_dial(self.control, pinned(token), None).await.map_err(broken)?;
        self.ledger().tokens.get_mut(token.id()).unwrap().asked += 1;
        let enrolled = enrol_over(channel, token).await;
        let mut ledger = self.ledger();
        let uses = ledger.tokens.get_mut(token.id()).unwrap();
        match enrolled {
            Ok(proxy) => {
                uses.acknowledged += 1;
                assert!(uses.acknowledged <= uses.all, "a use too many");
                ledger.received(&proxy);
                drop(ledger);
                self.count(ENROLLED);
                Ok(Some(proxy))
            }
            Err(refusal) if code(&refusal) == (Code::PermissionDenied, "token-refused") => {
                uses.asked -= 1;
                assert!(uses.asked >= uses.all, "refused with {} of {} uses asked for", uses.asked, uses.all);
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }
}

fn broken(error: tonic::transport::Error) -> Status {
    Status::unavailable(error.to_string())
}
