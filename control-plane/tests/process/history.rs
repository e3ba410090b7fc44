//! `kill -9` at random moments of concurrent work, held against a history of what was acknowledged.
//!
//! Clients work at the same time and write down what they ask for and what is acknowledged. After each kill the control plane
//! starts again and has to have all of it: what was asked for and not acknowledged may have happened or not, but as a whole.
//!
//! `SIGNET_TEST_KILLS` makes it longer; `SIGNET_TEST_SEED` repeats the random choices of a run, which prints its own.

mod ledger;
mod work;

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use signet_sync::proto::admin::{GetRequest, InfoResponse, ListTokensRequest};
use signet_sync::proto::sync as wire;
use signet_sync::{SectionName, Subscriber};
use tokio::task::JoinHandle;
use tonic::Code;

use self::ledger::{Ledger, version_in};
use self::work::{KINDS, Work};
use crate::harness::{MESH, Proxy, Server, Stream, code, counter, enrol, hello, workload};

/// Of one run; more by `SIGNET_TEST_KILLS`.
const KILLS: u64 = 15;

/// A kill comes so long after an acknowledgement at most, in microseconds: several writes, and the pauses between them.
const MOMENT_MAX: u64 = 20_000;

/// Identities that enrol, in turn: none has more instances than one may have, however long the run.
const ENROLLING: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_write_is_lost_repeated_or_undone_by_kills_at_random_moments() {
    let kills = number("SIGNET_TEST_KILLS").unwrap_or(KILLS);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = number("SIGNET_TEST_SEED").unwrap_or_else(|| u64::from(since.subsec_nanos()));
    println!("SIGNET_TEST_SEED={seed} SIGNET_TEST_KILLS={kills}");
    let mut dice = Dice { seed, thrown: 0 };
    let state = tempfile::tempdir().unwrap();
    let mut server = Server::start(state.path());
    server.apply(&everything()).await;
    let mut ledger = Ledger::default();
    let mut witness = Witness::new(&server).await;
    let mut before = server.info().await;
    for kill in 0..kills {
        let kind = dice.below(KINDS as u64) as usize;
        let (wanted, moment) = (1 + dice.below(3), Duration::from_micros(dice.below(MOMENT_MAX)));
        let identity = format!("e{}", kill as usize % ENROLLING);
        let watching = witness.watch();
        let mut work = Work::begin(&server, ledger, &identity).await;
        work.until(kind, wanted).await;
        // Not to wait for anything: this is the moment.
        tokio::time::sleep(moment).await;
        work.is_killed();
        tokio::task::spawn_blocking(|| server.kill()).await.unwrap();
        ledger = work.end().await;
        let seen = watching.await.unwrap();
        server = tokio::task::block_in_place(|| Server::start(state.path()));
        before = judge(&server, &mut ledger, &before, &seen).await;
        witness = Witness::again(&server, seen).await;
        witness.agrees(&before, &ledger).await;
    }
    ledger.ordered();
    for proxy in &mut ledger.enrolled {
        proxy.renew(server.control).await.unwrap();
    }
    for proxy in &mut ledger.revoked {
        refused_as_revoked(proxy, &server).await;
    }
    let Ledger { enrolled, revoked, serials, changes, .. } = &ledger;
    println!(
        "{kills} kills: {} changes, {} instances enrolled, {} revoked, {} certificates, none lost, repeated or undone",
        changes.len(),
        enrolled.len(),
        revoked.len(),
        serials.len(),
    );
    assert!(changes.len() + enrolled.len() + revoked.len() >= kills as usize);
}

/// Holds the history against what is stored, and takes down what turned out to have happened.
async fn judge(server: &Server, ledger: &mut Ledger, before: &InfoResponse, seen: &Witness) -> InfoResponse {
    let info = server.info().await;
    assert_eq!(before.root_fingerprints, info.root_fingerprints, "another authority");
    let newest = ledger.changes.iter().map(|change| change.revision).max().unwrap_or_default();
    assert!(info.revision >= newest.max(before.revision), "{} is older than what was said", info.revision);
    for section in &before.sections {
        let name = SectionName::parse(&section.name).unwrap();
        assert!(counter(&info, &name) >= section.counter, "{name} went back");
    }
    // A version is durable before anybody sees it.
    for (name, version) in seen.subscriber().versions() {
        assert!(counter(&info, name) >= version.counter, "{name} was seen with version {version}");
    }
    let request = GetRequest { kind: "Workload".to_owned(), name: String::new() };
    let stored = server.operator().await.get(request).await.unwrap().into_inner().items;
    assert!(stored.iter().any(|item| item.name == "steady"), "what nobody touched is gone");
    for (name, register) in &mut ledger.registers {
        let found = stored.iter().find(|item| item.name == *name).map_or(0, |item| version_in(&item.yaml));
        register.settle(name, found);
    }
    let listed = server.operator().await.list_tokens(ListTokensRequest {}).await.unwrap().into_inner();
    assert_eq!(listed.more, 0);
    for (id, uses) in &mut ledger.tokens {
        let found = listed.tokens.iter().find(|token| token.id == *id);
        uses.settle(id, found.expect("a token that was handed out").uses);
    }
    let (enrolled, revoked) = ledger.unproven();
    for proxy in enrolled {
        proxy.renew(server.control).await.unwrap();
    }
    for proxy in revoked {
        refused_as_revoked(proxy, server).await;
    }
    ledger.prove();
    info
}

async fn refused_as_revoked(proxy: &mut Proxy, server: &Server) {
    let refusal = proxy.renew(server.control).await.expect_err("a revoked instance renews");
    assert_eq!(code(&refusal), (Code::PermissionDenied, "revoked"));
}

/// A proxy that is there before and after each kill, with everything it was ever told: its subscriber takes no section
/// that nobody signed, none that goes back, and none that is another than the one of the same version.
struct Witness {
    proxy: Proxy,
    stream: Stream,
}

impl Witness {
    async fn new(server: &Server) -> Self {
        let token = server.token("steady", 1).await;
        let proxy = enrol(server.control, &token).await.unwrap();
        let mut stream = proxy.try_connect(server.control).await.unwrap();
        stream.until(|subscriber| subscriber.policy().is_some()).await;
        Self { proxy, stream }
    }

    async fn again(server: &Server, Self { proxy, stream }: Self) -> Self {
        let hello = wire::Hello { have: stream.subscriber.have(), ..hello() };
        let mut opened = proxy.hello(server.control, "127.0.0.1", hello).await.unwrap();
        opened.subscriber = stream.subscriber;
        Self { proxy, stream: opened }
    }

    /// Follows until the stream breaks.
    fn watch(mut self) -> JoinHandle<Self> {
        tokio::spawn(async move {
            while let Ok(Some(_)) = self.stream.next().await {
                not_empty(&self.stream.subscriber);
            }
            self
        })
    }

    fn subscriber(&self) -> &Subscriber {
        &self.stream.subscriber
    }

    /// What is pushed is what is stored.
    async fn agrees(&mut self, info: &InfoResponse, ledger: &Ledger) {
        let wanted = counter(info, &SectionName::Policy);
        let version = |subscriber: &Subscriber| {
            let mut versions = subscriber.versions();
            versions.find(|(name, _)| **name == SectionName::Policy).map_or(0, |(_, version)| version.counter)
        };
        self.stream.until(|subscriber| version(subscriber) >= wanted).await;
        not_empty(&self.stream.subscriber);
        let model = &self.stream.subscriber.policy().unwrap().model;
        for (name, register) in &ledger.registers {
            let pushed = model.workloads.iter().find(|workload| workload.name == *name);
            let pushed = pushed.map_or(0, |workload| version_in(&workload.names.join(" ")));
            assert_eq!(pushed, register.acknowledged, "{name} as it is pushed");
        }
    }
}

fn not_empty(subscriber: &Subscriber) {
    let policy = subscriber.policy().expect("a policy that is never taken back");
    assert!(
        policy.model.workloads.iter().any(|workload| workload.name == "steady"),
        "a policy without steady"
    );
    assert_eq!(policy.model.policies.len(), 1, "a policy without its rules");
}

/// What is there before the first kill.
fn everything() -> String {
    let mut yaml = MESH.to_owned();
    for name in std::iter::once("steady".to_owned()).chain((0..ENROLLING).map(|number| format!("e{number}")))
    {
        let _ = write!(yaml, "---\n{}", workload(&name));
    }
    yaml + "---\napiVersion: signet.mf2c-project.eu/v1alpha1\nkind: AccessPolicy\nmetadata: { name: steady }\n\
            spec:\n  target: { workloads: [steady] }\n  rules: [{ from: [{ any: authenticated }] }]\n"
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// Choices by chance that a seed repeats.
struct Dice {
    seed: u64,
    thrown: u64,
}

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.thrown += 1;
        let mut hasher = DefaultHasher::new();
        (self.seed, self.thrown).hash(&mut hasher);
        hasher.finish() % end
    }
}
