//! What a policy decision costs, in the smallest mesh and in a large one: it is made for every request, twice.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use signet_benches::micro::{Mesh, NOW, envelope, id};
use signet_policy::{
    Facts, Layer, Origin, PolicyIndex, RequestHeaders, check_target, compile, decide, parse_manifests,
};

fn decisions(criterion: &mut Criterion, name: &str, mesh: &Mesh, index: &PolicyIndex) {
    // The last policy is the worst case of anything that looks at them in order.
    let last = mesh.policies - 1;
    let (caller, stranger) = (id(&format!("c{last}")), id("stranger"));
    let destination = id(&format!("s{}", last % mesh.workloads));
    let path = format!("/p{last}/devices/42");
    // As many fields as a browser sends.
    let fields: Vec<String> = (0..12).map(|number| format!("x-field-{number}")).collect();
    let headers = RequestHeaders::new(fields.iter().map(|name| (name.as_str(), &b"value"[..])));
    let facts = |source| Facts {
        source: Some(source),
        origin: Origin::LeftToDestination,
        destination: &destination,
        port: 80,
        layer: Layer::Http { method: "GET", path: &path, authority: "10.0.0.1", headers: Some(&headers) },
        now: NOW,
    };
    let (allowed, refused) = (facts(&caller), facts(&stranger));
    assert!(
        decide(index, &allowed).is_ok() && decide(index, &refused).is_err(),
        "the bench measures the wrong thing"
    );

    let mut group = criterion.benchmark_group(name);
    group.bench_function("allowed", |bencher| bencher.iter(|| decide(index, black_box(&allowed))));
    group.bench_function("refused", |bencher| bencher.iter(|| decide(index, black_box(&refused))));
    group.finish();
}

fn one_policy(criterion: &mut Criterion) {
    let mesh = Mesh { policies: 1, workloads: 1 };
    decisions(criterion, "decide, 1 policy", &mesh, &mesh.index());
}

const LARGE: Mesh = Mesh { policies: 1_000, workloads: 100 };

fn thousand_policies(criterion: &mut Criterion) {
    decisions(criterion, "decide, 1000 policies for 100 workloads", &LARGE, &LARGE.index());
}

/// The same with everything that the language has: for each workload a policy that denies by role, header field,
/// address and time of the day, none of which applies; and a role for each caller.
fn every_condition(criterion: &mut Criterion) {
    let mut text = LARGE.text();
    for workload in 0..LARGE.workloads {
        text += &envelope("AccessPolicy", &format!("deny{workload}"));
        text += &format!(
            "  target: {{workloads: [s{workload}]}}
  ports: [80]
  action: deny
  rules:
  - from: [{{role: retired}}]
  - from: [{{any: authenticated}}]
    to: [{{paths: [/admin/**]}}, {{headers: [{{name: x-debug, present: true}}]}}]
  - from: [{{any: authenticated}}]
    when: {{sourceAddresses: [192.0.2.0/24], time: [{{days: [sat, sun]}}]}}
"
        );
    }
    for caller in 0..LARGE.policies {
        text += &envelope("RoleGrant", &format!("g{caller}"));
        let identity = id(&format!("c{caller}"));
        text += &format!("  identity: {identity}\n  role: reader\n  notAfter: 2100-01-01T00:00:00Z\n");
    }
    let manifests = parse_manifests("bench.yaml", &text).expect("parses");
    let index = PolicyIndex::new(&compile(&manifests).expect("compiles"));
    decisions(criterion, "decide, 1000 policies for 100 workloads, every condition", &LARGE, &index);
}

fn targets(criterion: &mut Criterion) {
    let target = "/api/service-instance/0123456789?$filter=status";
    criterion.bench_function("check target", |bencher| {
        bencher.iter(|| check_target("GET", black_box(target), None, &["cimi.edge:8201"]));
    });
}

criterion_group!(benches, one_policy, thousand_policies, every_condition, targets);
criterion_main!(benches);
