//! What a policy decision costs, in the smallest mesh and in a large one: it is made for every request, twice.

use std::hint::black_box;
use std::time::Instant;

use criterion::{Criterion, criterion_group, criterion_main};
use hdrhistogram::Histogram;
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
    let index = with_every_condition();
    decisions(criterion, "decide, 1000 policies for 100 workloads, every condition", &LARGE, &index);
}

fn with_every_condition() -> PolicyIndex {
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
    PolicyIndex::new(&compile(&manifests).expect("compiles"))
}

/// Decisions timed one by one.
const TIMED: u32 = 1_000_000;

/// What one decision takes at the median and at worst, which a mean does not tell: every caller asks every workload in
/// turn, so that nothing stays in the cache that would not in a sidecar's day. Reading the clock is part of each.
fn one_by_one(_: &mut Criterion) {
    for (name, index) in [("plain", LARGE.index()), ("every condition", with_every_condition())] {
        let own: Vec<_> = (0..LARGE.policies).map(|number| id(&format!("c{number}"))).collect();
        let paths: Vec<_> = (0..LARGE.policies).map(|number| format!("/p{number}/devices/42")).collect();
        let workloads: Vec<_> = (0..LARGE.workloads).map(|number| id(&format!("s{number}"))).collect();
        let headers = RequestHeaders::new([("accept", &b"*/*"[..])]);
        let mut times = Histogram::<u64>::new_with_max(1_000_000_000, 3).expect("bounds are right");
        let (mut state, mut allowed) = (1_u64, 0_u32);
        for _ in 0..TIMED {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let caller = usize::try_from(state >> 33).unwrap_or_default() % LARGE.policies;
            // Half of them ask where they may, the others somewhere else.
            let workload = if state >> 63 == 0 { caller } else { caller + 1 } % LARGE.workloads;
            let layer = Layer::Http {
                method: "GET",
                path: &paths[caller],
                authority: "10.0.0.1",
                headers: Some(&headers),
            };
            let facts = Facts {
                source: Some(&own[caller]),
                origin: Origin::LeftToDestination,
                destination: &workloads[workload],
                port: 80,
                layer,
                now: NOW,
            };
            let start = Instant::now();
            let decided = black_box(decide(&index, black_box(&facts)));
            times.saturating_record(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
            allowed += u32::from(decided.is_ok());
        }
        assert!(
            (TIMED / 3..TIMED).contains(&allowed),
            "{allowed} of {TIMED} allowed: the bench measures the wrong thing"
        );
        let at = |quantile| times.value_at_quantile(quantile);
        println!(
            "one decision among 1000 policies for 100 workloads, {name}: p50 {} ns, p99 {} ns, p99.9 {} ns, max {} ns",
            at(0.5),
            at(0.99),
            at(0.999),
            times.max()
        );
    }
}

fn targets(criterion: &mut Criterion) {
    let target = "/api/service-instance/0123456789?$filter=status";
    criterion.bench_function("check target", |bencher| {
        bencher.iter(|| check_target("GET", black_box(target), None, &["cimi.edge:8201"]));
    });
}

criterion_group!(benches, one_by_one, one_policy, thousand_policies, every_condition, targets);
criterion_main!(benches);
