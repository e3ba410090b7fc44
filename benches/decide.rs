//! What a policy decision costs, in the smallest mesh and in a large one: it is made for every request, twice.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use signet_benches::micro::{Mesh, id};
use signet_policy::{Facts, Layer, check_target, decide};

fn decisions(criterion: &mut Criterion, name: &str, mesh: &Mesh) {
    let index = mesh.index();
    // The last policy is the worst case of anything that looks at them in order.
    let last = mesh.policies - 1;
    let (caller, stranger) = (id(&format!("c{last}")), id("stranger"));
    let destination = id(&format!("s{}", last % mesh.workloads));
    let path = format!("/p{last}/devices/42");
    let facts = |source| Facts {
        source: Some(source),
        source_addr: None,
        destination: &destination,
        port: 80,
        layer: Layer::Http { method: "GET", path: &path, authority: "10.0.0.1" },
    };
    let (allowed, refused) = (facts(&caller), facts(&stranger));
    assert!(
        decide(&index, &allowed).is_ok() && decide(&index, &refused).is_err(),
        "the bench measures the wrong thing"
    );

    let mut group = criterion.benchmark_group(name);
    group.bench_function("allowed", |bencher| bencher.iter(|| decide(&index, black_box(&allowed))));
    group.bench_function("refused", |bencher| bencher.iter(|| decide(&index, black_box(&refused))));
    group.finish();
}

fn one_policy(criterion: &mut Criterion) {
    decisions(criterion, "decide, 1 policy", &Mesh { policies: 1, workloads: 1 });
}

fn thousand_policies(criterion: &mut Criterion) {
    decisions(
        criterion,
        "decide, 1000 policies for 100 workloads",
        &Mesh { policies: 1_000, workloads: 100 },
    );
}

fn targets(criterion: &mut Criterion) {
    let target = "/api/service-instance/0123456789?$filter=status";
    criterion.bench_function("check target", |bencher| {
        bencher.iter(|| check_target("GET", black_box(target), None, &["cimi.edge:8201"]));
    });
}

criterion_group!(benches, one_policy, thousand_policies, targets);
criterion_main!(benches);
