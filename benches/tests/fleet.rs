//! A small fleet against a real control plane: everybody gets every policy, and comes back after each restart.

use std::time::Duration;

use signet_benches::fleet::mesh::Mesh;
use signet_benches::fleet::plane::Launch;
use signet_benches::fleet::{Plan, run};
use signet_benches::load::stage;

/// What a control plane may have at most for so many: 50 MiB for 100, whatever it was built for.
const PROXIES: usize = 200;
const MEMORY_KIB: u64 = 100 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn everybody_gets_every_policy_and_comes_back_after_each_restart() {
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan {
        mesh: Mesh { proxies: PROXIES, per_site: 50, services: 2 },
        pushes: 2,
        rest: Duration::from_millis(500),
        between: Duration::from_millis(100),
        launch: Launch {
            command: vec![env!("CARGO_BIN_EXE_signet-benches").into(), "control-plane".into()],
            processors: stage::processors().unwrap(),
            folder: folder.path().to_owned(),
        },
    };
    let figures = run(&plan).await.unwrap_or_else(|error| panic!("{error}\n{}", plan.launch.last_words()));
    assert_eq!(figures.pushes.len(), 2);
    for push in &figures.pushes {
        assert_eq!(push.taken.len(), PROXIES);
        assert!(push.peak_kib <= MEMORY_KIB, "{} KiB", push.peak_kib);
    }
    assert_eq!(figures.storms.len(), 2);
    for storm in &figures.storms {
        assert!(storm.peak_kib <= MEMORY_KIB, "{}: {} KiB", storm.kind, storm.peak_kib);
    }
    assert!(figures.memory_rest_kib <= MEMORY_KIB, "{} KiB at rest", figures.memory_rest_kib);
}
