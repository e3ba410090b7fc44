use signet_identity::TrustDomain;

use super::*;
use crate::store::{Expect, MemoryStore};
use crate::streams::Streams;

const MESH: &str = "apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Mesh
metadata: { name: mesh }
spec: { trustDomain: mesh.example, networks: [{ name: edge }] }
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: { name: api }
spec: { class: app, device: edge, network: edge }
";

/// A compiler at work on a store that holds a mesh, and what it publishes.
async fn compiler() -> (Arc<MemoryStore>, watch::Receiver<Arc<Published>>) {
    compiler_of(0).await
}

/// The same with so many streams open.
async fn compiler_of(streams: i64) -> (Arc<MemoryStore>, watch::Receiver<Arc<Published>>) {
    let directory = tempfile::tempdir().unwrap();
    let trust_domain = TrustDomain::parse("mesh.example").unwrap();
    let now = SystemTime::now();
    let authority = Arc::new(Authority::create(directory.path(), &trust_domain, now).unwrap());
    let store = Arc::new(MemoryStore::new());
    apply(&store, &trust_domain, MESH).await;
    let (metrics, habits) = (Arc::new(Metrics::new()), Arc::new(ObservedHabits::default()));
    metrics.streams.set(streams);
    let clock = Arc::new(Clock::open(store.clone(), Arc::new(Streams::new()), None, false).await.unwrap());
    let alone = Neighbours::none(trust_domain);
    let compiler = Compiler::start(store.clone(), authority, clock, metrics, habits, alone).await.unwrap();
    let published = compiler.subscribe();
    tokio::spawn(compiler.run());
    (store, published)
}

async fn apply(store: &MemoryStore, trust_domain: &TrustDomain, text: &str) -> Revision {
    let manifests = Manifests::load(store, &Manifests::default()).await.unwrap();
    let outcome = manifests.apply(store, trust_domain, &[("test", text)], false).await.unwrap();
    assert!(outcome.diagnostics.is_empty(), "{:?}", outcome.diagnostics);
    outcome.revision
}

async fn claim(store: &MemoryStore, port: u16) {
    let claim = Claim {
        id: signet_identity::SpiffeId::parse("spiffe://mesh.example/app/edge/api").unwrap(),
        network: "edge".to_owned(),
        address: "10.0.0.5".parse().unwrap(),
        port,
        expires: None,
        by_gateway: false,
        replica: String::new(),
    };
    let key = Claim::key("edge", claim.address, port);
    store.commit(vec![records::put(key, Expect::Any, &claim).unwrap()]).await.unwrap();
}

async fn announce(store: &MemoryStore, number: u16) {
    let id = signet_identity::SpiffeId::parse("spiffe://mesh.example/app/edge/api").unwrap();
    let leaf = signet_identity::Fingerprint::of(&number.to_be_bytes()).to_string();
    let key = SealingKey { id, key: [1; 32], leaf, expires: u64::from(u32::MAX) };
    let place = SealingKey::key(&key.id, &format!("instance-{number}"));
    store.commit(vec![records::put(place, Expect::Any, &key).unwrap()]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn whatever_proxies_change_everybody_gets_at_most_two_directories_a_second() {
    let (store, mut published) = compiler().await;
    published.mark_unchanged();
    let start = Instant::now();
    let churn = tokio::spawn(async move {
        for number in 1..=100 {
            claim(&store, number).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let mut rounds = 0;
    let name = SectionName::Directory("edge".to_owned());
    while published.borrow_and_update().sections[&name].counter < 2 || !churn.is_finished() {
        published.changed().await.unwrap();
        rounds += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    assert!(f64::from(rounds) <= seconds * 2.0 + 2.0 && rounds >= 8, "{rounds} rounds in {seconds} s");
}

#[tokio::test(start_paused = true)]
async fn an_operators_change_is_published_at_once_whatever_proxies_do() {
    let (store, mut published) = compiler().await;
    // A round has just been made for a proxy.
    published.mark_unchanged();
    claim(&store, 1).await;
    published.changed().await.unwrap();
    claim(&store, 2).await;
    let start = Instant::now();
    let trust_domain = TrustDomain::parse("mesh.example").unwrap();
    let revision = apply(&store, &trust_domain, &MESH.replace("name: api", "name: web")).await;
    published.wait_for(|published| published.revision >= revision).await.unwrap();
    let write = records::put(
        records::Subject::Identity(signet_identity::SpiffeId::parse("spiffe://mesh.example/a").unwrap())
            .key(),
        Expect::Absent,
        &records::Revocation {
            subject: records::Subject::Identity(
                signet_identity::SpiffeId::parse("spiffe://mesh.example/a").unwrap(),
            ),
            reason: String::new(),
            revoked_at: 0,
            expires: None,
            tampered: None,
            told_by: None,
        },
    );
    let revision = store.commit(vec![write.unwrap()]).await.unwrap();
    published.wait_for(|published| published.revision >= revision).await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn what_is_published_is_the_newest_only_while_rounds_succeed() {
    let (store, mut published) = compiler().await;
    published.mark_unchanged();
    let first = published.borrow().clone();
    assert!(first.is_current(Instant::now()));
    // Without any change there is a round all the same, and the word of the first one is over.
    tokio::time::timeout(3 * TICK, async {
        while published.borrow_and_update().at < first.at + 2 * TICK {
            published.changed().await.unwrap();
        }
    })
    .await
    .unwrap();
    assert!(published.borrow().is_current(Instant::now()));
    assert!(!first.is_current(first.at + 2 * TICK + Duration::from_millis(1)));
    // What cannot be read makes every round fail.
    let damaged =
        crate::store::Write::put(Claim::key("edge", [10, 0, 0, 5].into(), 1), Expect::Any, b"{".to_vec());
    store.commit(vec![damaged]).await.unwrap();
    tokio::time::sleep(3 * TICK).await;
    assert!(!published.borrow().is_current(Instant::now()));
}

#[test]
fn the_larger_the_fleet_and_the_slower_rounds_are_the_rarer_are_those_that_proxies_cause() {
    let begun = Instant::now();
    let after = |streams, last_ms| {
        let pace = Pace::from(begun, streams, Duration::from_millis(last_ms));
        (pace.any.duration_since(begun).as_millis(), pace.keys.duration_since(begun).as_millis())
    };
    assert_eq!(after(0, 1), (500, 20));
    assert_eq!(after(1_000, 1), (500, 250));
    assert_eq!(after(10_000, 1), (2_500, 2_500));
    assert_eq!(after(0, 300), (1_500, 1_500));
    assert_eq!(after(usize::MAX, u64::MAX), (3_000, 3_000));
}

#[tokio::test(start_paused = true)]
async fn a_key_to_what_is_sealed_waits_for_no_claim_and_causes_no_round_of_its_own_in_a_large_fleet() {
    for (streams, most) in [(0, 25), (10_000, 2_525)] {
        let (store, mut published) = compiler_of(streams).await;
        // A round has just been made for a proxy.
        published.mark_unchanged();
        claim(&store, 1).await;
        published.changed().await.unwrap();
        published.mark_unchanged();
        let start = Instant::now();
        for number in 1..=100 {
            announce(&store, number).await;
        }
        let name = SectionName::Directory("edge".to_owned());
        let before = published.borrow().sections[&name].counter;
        let directory =
            published.wait_for(|published| published.sections[&name].counter > before).await.unwrap();
        assert_eq!(directory.sections[&name].counter, before + 1, "one round for all of them");
        drop(directory);
        let waited = start.elapsed().as_millis();
        assert!(waited <= most && (most < 100 || waited > 2_000), "{waited} ms with {streams} streams");
    }
}
