//! A service in the host's network: its ports and the mesh's places are captured, and nothing else is touched.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use signet_cli::lab::mesh::{Setup, Sidecar, program};
use signet_cli::lab::runner::{Test, TestResult};
use signet_cli::lab::{Container, Host, HostPlan, Tap};
use signet_proxy::capture::nftables;
use signet_tests::manifest::{allow, mesh, policy, workload};
use signet_tests::plain::{datagrams, get};
use signet_tests::{Ended, Failure, LIMIT, Plain, Recorder, Site, place, wait_for};

pub(crate) const TESTS: &[Test] = &[
    ("guarded_port_is_mutual_tls_only_and_the_host_is_untouched", guarded_port_is_mutual_tls_only),
    ("killed_guard_refuses_its_ports_and_leaves_the_host_alone", killed_guard_refuses_its_ports),
    ("guard_that_is_stopped_stays_while_its_service_listens", stopped_guard_stays_while_its_service_listens),
    ("places_in_the_kernel_follow_pushes_without_a_window", places_follow_pushes),
    ("guards_of_one_host_go_side_by_side_and_never_share", guards_go_side_by_side),
    ("guard_speaks_for_its_users_only", guard_speaks_for_its_users),
];

/// Of the guarded service.
const WEB: u16 = 8080;
/// Of another program on the same host.
const OTHER: u16 = 9090;
/// Of programs elsewhere that are not of the mesh.
const OUTSIDE: u16 = 9000;
/// Where the meshed server is published at the site's host.
const SERVER: u16 = 8201;
const CANARY: &str = "canary-5d20c7";

/// A machine with a guarded service, a meshed server and client on another host, and a stranger on the wire.
struct Yard {
    machine: Container,
    stranger: Container,
    /// The site's host itself: at the meshed server's address, and not of the mesh.
    front: Container,
    /// A container behind the machine.
    inner: Container,
    client: Container,
    web: Recorder,
    other: Recorder,
    outside: [(SocketAddr, Recorder); 5],
    served: Recorder,
    _sidecar: Sidecar,
    // Last: with it the networks go.
    site: Site,
    _hosts: [Host; 2],
}

fn in_area(name: &str, settings: &[&str]) -> String {
    workload(name, settings).replace("network: lan", "network: area")
}

fn alone(host: &Host) -> Container {
    Container::alone(host.namespace().clone(), host.ipv4(), host.ipv6())
}

impl Yard {
    fn new() -> Result<Self, Failure> {
        let advertise = "advertise: [{network: area, address: 10.0.0.1, port: 8201, targetPort: 8201}]";
        let site = Site::new(&[
            mesh(&[]),
            workload("server", &["names: [server]", "ports: [{port: 8201, protocol: http}]", advertise]),
            workload("client", &[]),
            in_area("web", &["ports: [{port: 8080, protocol: http}]", "addresses: [10.0.0.2, 'fd00::2']"]),
            in_area("shop", &["ports: [{port: 8081, protocol: http}]", "addresses: [10.0.0.2]"]),
            policy("server", "server", &[&allow("web", ""), &allow("shop", "")]),
            policy("web", "web", &[&allow("client", "")]),
            policy("shop", "shop", &[&allow("client", "")]),
        ])?;
        let hosts = [
            site.lab.host("machine", HostPlan::numbered(2))?,
            site.lab.host("stranger", HostPlan::numbered(3))?,
        ];
        let (machine, stranger, front) = (alone(&hosts[0]), alone(&hosts[1]), alone(&site.host));
        let (server, client) = (site.container("server")?, site.container("client")?);
        site.host.publish(SERVER, &server, SERVER)?;
        let (plain, dns, same) = (
            Recorder::silent(&stranger, OUTSIDE)?,
            Recorder::silent(&stranger, 53)?,
            Recorder::silent(&stranger, WEB)?,
        );
        let beside = Recorder::silent(&front, OUTSIDE)?;
        let outside = [
            ((stranger.ipv4(), OUTSIDE).into(), plain.clone()),
            ((stranger.ipv6(), OUTSIDE).into(), plain.clone()),
            ((stranger.ipv4(), 53).into(), dns.clone()),
            ((stranger.ipv4(), WEB).into(), same.clone()),
            ((front.ipv4(), OUTSIDE).into(), beside.clone()),
        ];
        Ok(Self {
            web: Recorder::http(&machine, WEB)?,
            other: Recorder::silent(&machine, OTHER)?,
            served: Recorder::http(&server, SERVER)?,
            _sidecar: site.mesh.sidecar(&server, "server", Setup::default())?,
            inner: hosts[0].container("inner")?,
            machine,
            stranger,
            front,
            client,
            outside,
            site,
            _hosts: hosts,
        })
    }

    fn guard(&self, flags: &[&str]) -> Result<Sidecar, Failure> {
        let flags = [&["--name", "web"], flags].concat().into_iter().map(str::to_owned).collect();
        let setup = Setup { guarded: vec![WEB], flags, ..Setup::default() };
        let guard = self.site.mesh.sidecar(&self.machine, "web", setup)?;
        // Its own places come to the directory once it has enrolled.
        let places = [self.published(), place(&self.machine, WEB), (self.machine.ipv6(), WEB).into()];
        wait_for("the mesh's places to be captured", || {
            let captured = self.captured_places().ok()?;
            places.iter().all(|place| captured.contains(place)).then_some(())
        })?;
        Ok(guard)
    }

    fn published(&self) -> SocketAddr {
        place(&self.front, SERVER)
    }

    /// Everything of the host that has nothing to do with the mesh: what was sent arrives, and from the very socket
    /// that sent it.
    fn is_untouched(&self, when: &str) -> TestResult {
        for (to, recorder) in &self.outside {
            arrives(&self.machine, *to, recorder, when)?;
        }
        for to in [place(&self.machine, OTHER), (self.machine.ipv6(), OTHER).into()] {
            arrives(&self.stranger, to, &self.other, when)?;
        }
        for (from, to, port) in [
            (&self.machine, &self.stranger, OUTSIDE),
            (&self.machine, &self.stranger, 53),
            // Where TCP goes to the mesh, and where it comes to the guard.
            (&self.machine, &self.front, SERVER),
            (&self.stranger, &self.machine, WEB),
        ] {
            let (receiver, sender) = (datagrams(to, port)?, datagrams(from, 0)?);
            sender.send_to(when.as_bytes(), place(to, port))?;
            let mut block = [0; 64];
            let (length, source) = receiver.recv_from(&mut block)?;
            assert_eq!((&block[..length], source), (when.as_bytes(), sender.local_addr()?), "UDP {when}");
        }
        // What only passes through the machine, to a port that has a guarded port's number.
        let (to, recorder) = &self.outside[3];
        let before = recorder.connections().len();
        Plain::dial(&self.inner, *to)?.send(when.as_bytes())?;
        recorder.wait_for("what is forwarded", |all| {
            all.len() > before && all.last().is_some_and(|last| last.bytes == when.as_bytes())
        })?;
        Ok(())
    }

    /// What is captured here of that which leaves.
    fn captured_places(&self) -> Result<BTreeSet<SocketAddr>, Failure> {
        let table = self.machine.namespace().run(|| nftables::read("signet-guard-web"))??;
        let sets = table.ok_or("the guard has no table")?.sets;
        Ok(sets.into_iter().flat_map(|set| set.places).collect())
    }

    fn tables(&self) -> Result<Vec<String>, Failure> {
        let tables = self.machine.namespace().run(nftables::tables)??;
        Ok(tables.into_iter().filter(|name| name.starts_with("signet-guard-")).collect())
    }
}

fn arrives(from: &Container, to: SocketAddr, at: &Recorder, when: &str) -> TestResult {
    let before = at.connections().len();
    let mut plain = Plain::dial(from, to)?;
    // All that bytes can be.
    let bytes: Vec<u8> = (0..=255).chain(when.bytes()).collect();
    plain.send(&bytes)?;
    let seen = at.wait_for("the bytes to arrive", |all| {
        all.len() > before && all.last().is_some_and(|last| last.bytes.len() >= bytes.len())
    })?;
    let last = seen.last().ok_or("a connection")?;
    assert_eq!((last.peer, &last.bytes), (plain.own_end()?, &bytes), "{to} {when}");
    Ok(())
}

fn is_refused(from: &Container, to: SocketAddr) -> TestResult {
    for bytes in [get("/", "web").as_bytes(), b"\x00opaque"] {
        let found = Plain::tell(from, to, bytes)?;
        assert_eq!(found, (Vec::new(), Ended::Reset), "plaintext to {to}");
    }
    Ok(())
}

fn guarded_port_is_mutual_tls_only() -> TestResult {
    let yard = Yard::new()?;
    let web = place(&yard.machine, WEB);
    // Open before the guard is, to where it will capture and to where it will not.
    let mut old = Plain::dial(&yard.stranger, web)?;
    let mut old_other = Plain::dial(&yard.stranger, place(&yard.machine, OTHER))?;
    old.send(get("/before", "web").as_bytes())?;
    assert_eq!(old.answer()?.status, 200);
    old_other.send(b"before ")?;
    yard.is_untouched("without a guard")?;

    let guard = yard.guard(&[])?;
    let client = yard.site.mesh.sidecar(&yard.client, "client", Setup::default())?;
    client.wait_until_known(web)?;
    let tap = Tap::start(yard.machine.namespace(), "eth0", &[CANARY.as_bytes()], None)?;

    let served = yard.web.connections().len();
    for to in [web, (yard.machine.ipv6(), WEB).into()] {
        is_refused(&yard.stranger, to)?;
    }
    assert_eq!(yard.web.connections().len(), served, "plaintext reaches nobody");
    assert!(guard.metrics()?.refusals("plaintext-refused") >= 4);
    let request = get(&format!("/{CANARY}"), "web");
    assert_eq!(Plain::ask(&yard.client, web, &request)?.status, 200, "the mesh comes in");
    let request = get(&format!("/{CANARY}"), "server");
    assert_eq!(Plain::ask(&yard.machine, yard.published(), &request)?.status, 200, "and goes out");
    assert!(yard.web.text().contains(CANARY) && yard.served.text().contains(CANARY));
    let report = tap.report()?;
    assert!(report.lost == 0 && report.offers("mesh-h1/1"), "the tap watches the right wire");
    assert!(report.sightings.is_empty(), "seen in clear: {:?}", report.sightings);

    let carried = guard.metrics()?;
    yard.is_untouched("beside a guard")?;
    old.send(get("/after", "web").as_bytes())?;
    assert_eq!(old.answer()?.status, 200, "what was open before goes on");
    old_other.send(b"after")?;
    yard.other.wait_for("what was open before", |all| all.iter().any(|one| one.bytes == b"before after"))?;
    // What stays on the machine is nobody's to see.
    for to in [SocketAddr::from(([127, 0, 0, 1], WEB)), web] {
        assert_eq!(Plain::ask(&yard.machine, to, &get("/local", "web"))?.status, 200, "{to}");
    }
    let all = |metrics: &signet_cli::lab::mesh::Metrics| {
        let named = ["signet_requests_total", "signet_refusals_total", "signet_plaintext_connections_total"];
        named.map(|name| metrics.sum(name, &[]))
    };
    assert_eq!(all(&guard.metrics()?), all(&carried), "none of it has passed the guard");
    Ok(())
}

fn killed_guard_refuses_its_ports() -> TestResult {
    let yard = Yard::new()?;
    let mut guard = yard.guard(&[])?;
    let known = yard.captured_places()?;
    let request = get("/", "server");
    assert_eq!(Plain::ask(&yard.machine, yard.published(), &request)?.status, 200);

    guard.kill();
    let seen = (yard.web.connections().len(), yard.served.connections().len());
    for to in [place(&yard.machine, WEB), (yard.machine.ipv6(), WEB).into()] {
        is_refused(&yard.stranger, to)?;
    }
    is_refused(&yard.machine, yard.published())?;
    assert_eq!((yard.web.connections().len(), yard.served.connections().len()), seen);
    yard.is_untouched("behind a dead guard")?;

    // What it knew of the mesh is still captured when it comes back, before anybody has told it anew.
    guard.begin()?;
    assert_eq!(yard.captured_places()?, known);
    guard.wait_until_ready()?;
    assert!(yard.captured_places()?.contains(&yard.published()));
    // What it had kept on disk may be a moment older than what it knew.
    wait_for("the newest places to be captured", || (yard.captured_places().ok()? == known).then_some(()))?;
    assert_eq!(Plain::ask(&yard.machine, yard.published(), &request)?.status, 200);
    Ok(())
}

fn stopped_guard_stays_while_its_service_listens() -> TestResult {
    let yard = Yard::new()?;
    let mut guard = yard.guard(&[])?;
    assert_eq!(guard.terminate(LIMIT)?, Some(0));
    assert_eq!(yard.tables()?, ["signet-guard-web"], "the service listens: an upgrade opens nothing");
    is_refused(&yard.stranger, place(&yard.machine, WEB))?;

    let remove = ["proxy", "capture", "remove", "--guard", "web"];
    for _ in 0..2 {
        let removed = yard.machine.namespace().start(program(&remove))?.wait(LIMIT)?;
        assert!(removed.success(), "{removed}");
        assert!(yard.tables()?.is_empty());
    }
    assert_eq!(Plain::ask(&yard.stranger, place(&yard.machine, WEB), &get("/", "web"))?.status, 200);

    // A service that is down already leaves nothing to guard.
    let idle = Setup { guarded: vec![8081], ..Setup::default() };
    let mut idle = yard.site.mesh.sidecar(&yard.machine, "shop", idle)?;
    assert_eq!(yard.tables()?, ["signet-guard-8081"], "named after its port");
    assert_eq!(idle.terminate(LIMIT)?, Some(0));
    assert!(yard.tables()?.is_empty(), "rules are gone with the service");
    yard.is_untouched("after all guards")
}

fn places_follow_pushes() -> TestResult {
    let yard = Yard::new()?;
    let guard = yard.guard(&[])?;
    let held = yard.captured_places()?;
    let more = |port: u16| {
        let at = format!("advertise: [{{network: area, address: 10.0.0.9, port: {port}, targetPort: 1}}]");
        in_area("more", &["ports: [{port: 1}]", &at])
    };
    let mut kept = Plain::dial(&yard.machine, yard.published())?;
    for port in 7_000..7_012 {
        yard.site.mesh.apply("more.yaml", &more(port))?;
        let expected: SocketAddr = ([10, 0, 0, 9], port).into();
        // The whole way long: one connection that stays, and new ones.
        wait_for("the place to be captured", || {
            for plain in [&mut kept, &mut Plain::dial(&yard.machine, yard.published()).ok()?] {
                plain.send(get("/during", "server").as_bytes()).ok()?;
                assert_eq!(plain.answer().ok()?.status, 200);
            }
            let places = yard.captured_places().ok()?;
            (places == &held | &BTreeSet::from([expected])).then_some(())
        })?;
    }
    yard.site.mesh.delete("Workload", "more")?;
    wait_for("the place to go", || (yard.captured_places().ok()? == held).then_some(()))?;
    let state = guard.state()?;
    assert_eq!((&state["ready"], &state["capture_in_force"]), (&true.into(), &true.into()), "{state}");
    // The server is strict: what had gone past the guard would have been refused there.
    let requests = yard.served.requests();
    assert!(
        requests.len() >= 24 && requests.iter().all(|request| request.contains("/app/host/web")),
        "{requests:?}"
    );
    Ok(())
}

fn guards_go_side_by_side() -> TestResult {
    let yard = Yard::new()?;
    let shop = Recorder::http(&yard.machine, 8081)?;
    let mut first = yard.guard(&[])?;
    let own = ["--outbound-port", "15101", "--inbound-port", "15106", "--admin-addr", "127.0.0.1:15120"];
    let begin = |ports: &[u16], flags: &[&str]| -> Result<Sidecar, Failure> {
        let flags = flags.iter().copied().map(str::to_owned).collect();
        Ok(yard.site.mesh.begin_sidecar(
            &yard.machine,
            "shop",
            Setup { guarded: ports.to_vec(), flags, ..Setup::default() },
        )?)
    };
    let refused = |ports: &[u16], flags: &[&str], told: &str| -> TestResult {
        let begun = begin(ports, flags)?;
        let status = begun.process().ok_or("a process")?.wait(LIMIT)?;
        assert_eq!(status.code(), Some(69), "{}", begun.log_tail());
        assert!(begun.log_tail().contains(told), "{told}: {}", begun.log_tail());
        assert_eq!(yard.tables()?, ["signet-guard-web"]);
        Ok(())
    };
    refused(&[8081], &["--no-outbound"], "15001")?;
    refused(&[8081, WEB], &[&own[..], &["--no-outbound"]].concat(), "port 8080: table `signet-guard-web`")?;
    refused(&[8081], &own, "everybody to the mesh: table `signet-guard-web`")?;

    let second = begin(&[8081], &[&own[..], &["--no-outbound"]].concat())?;
    second.wait_until_ready()?;
    let client = yard.site.mesh.sidecar(&yard.client, "client", Setup::default())?;
    for (port, app) in [(WEB, &yard.web), (8081, &shop)] {
        client.wait_until_known(place(&yard.machine, port))?;
        is_refused(&yard.stranger, place(&yard.machine, port))?;
        assert_eq!(Plain::ask(&yard.client, place(&yard.machine, port), &get("/", "it"))?.status, 200);
        assert_eq!(app.requests().len(), 1);
    }
    assert_eq!(Plain::ask(&yard.machine, yard.published(), &get("/", "server"))?.status, 200);
    let caller = yard.served.requests().pop().unwrap_or_default();
    assert!(caller.contains("/app/host/web"), "the one that speaks for everybody: {caller}");

    first.kill();
    assert_eq!(Plain::ask(&yard.client, place(&yard.machine, 8081), &get("/", "it"))?.status, 200);
    is_refused(&yard.stranger, place(&yard.machine, WEB))?;
    yard.is_untouched("between guards")
}

fn guard_speaks_for_its_users() -> TestResult {
    let yard = Yard::new()?;
    // Every program of a lab is of user 0.
    let mut guard = yard.guard(&["--user", "0"])?;
    assert_eq!(Plain::ask(&yard.machine, yard.published(), &get("/", "server"))?.status, 200);
    guard.terminate(Duration::from_secs(30))?;
    drop(guard);

    let _guard = yard.guard(&["--user", "4242,4243"])?;
    is_refused(&yard.machine, yard.published())?;
    assert_eq!(yard.served.requests().len(), 1, "who is not spoken for comes in clear, and is refused there");
    is_refused(&yard.stranger, place(&yard.machine, WEB))?;
    yard.is_untouched("beside a guard of some users")
}
