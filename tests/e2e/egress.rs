//! What a workload may reach outside the mesh: by address, by name, and with TLS that its sidecar opens.

use std::net::UdpSocket;
use std::sync::Arc;

use signet_cli::lab::Container;
use signet_cli::lab::mesh::Sidecar;
use signet_cli::lab::runner::{Test, TestResult};
use signet_tests::manifest::{egress_policy, mesh, workload};
use signet_tests::outside::{Outside, client_hello};
use signet_tests::plain::{datagrams, get};
use signet_tests::{Ended, Failure, Impostor, Plain, Recorder, Site, place, wait_for};

pub(crate) const TESTS: &[Test] = &[
    ("egress_by_name_is_judged_request_by_request", egress_by_name_is_judged_request_by_request),
    ("egress_by_server_name_passes_tls_as_it_is", egress_by_server_name_passes_tls_as_it_is),
    ("originated_tls_reaches_only_who_proves_the_name", originated_tls_reaches_only_who_proves_the_name),
    ("egress_policy_lists_all_that_leaves_a_permissive_workload", egress_policy_lists_all_that_leaves),
    ("datagrams_leave_by_the_list_of_their_own_workload", datagrams_leave_by_the_list_of_their_own_workload),
];

/// A client and another workload, and a stranger that is outside the mesh.
struct Outing {
    site: Site,
    client: Container,
    other: Container,
    stranger: Container,
    sidecars: [Sidecar; 2],
}

impl Outing {
    fn new(settings: &[&str], entries: &[&str]) -> Result<Self, Failure> {
        let site = Site::new(&[
            mesh(settings),
            workload("client", &[]),
            workload("other", &[]),
            egress_policy("outside", "client", entries),
        ])?;
        let (client, other) = (site.container("client")?, site.container("other")?);
        let stranger = site.container("stranger")?;
        let sidecars = site.sidecars([(&client, "client"), (&other, "other")])?;
        Ok(Self { site, client, other, stranger, sidecars })
    }

    fn refused(&self, from: &Container, port: u16, host: &str) -> Result<(u16, String), Failure> {
        let answer = Plain::ask(from, place(&self.stranger, port), &get("/", host))?;
        Ok((answer.status, answer.code().unwrap_or_default()))
    }
}

fn unlisted() -> (u16, String) {
    (403, "unmeshed-destination".to_owned())
}

fn egress_by_name_is_judged_request_by_request() -> TestResult {
    let outing = Outing::new(&[], &["{names: [api.example.test, '*.web.test'], ports: [9000]}"])?;
    let [named, elsewhere] =
        [Recorder::http(&outing.stranger, 9000)?, Recorder::http(&outing.stranger, 9001)?];
    let mut kept = Plain::dial(&outing.client, place(&outing.stranger, 9000))?;
    for (host, status) in [
        ("api.example.test", 200),
        ("API.example.test.:9000", 200),
        ("other.example.test", 403),
        ("a.b.web.test", 200),
        ("web.test", 403),
        ("api.example.test", 200),
    ] {
        kept.send(get(&format!("/{status}"), host).as_bytes())?;
        let answer = kept.answer()?;
        assert_eq!(answer.status, status, "{host}: {answer:?}");
    }
    let seen = named.requests();
    assert_eq!(seen.len(), 4, "{seen:?}");
    assert!(seen.iter().all(|request| request.starts_with("GET /200 ")), "{seen:?}");

    assert_eq!(outing.refused(&outing.client, 9001, "api.example.test")?, unlisted(), "another port");
    assert_eq!(outing.refused(&outing.other, 9000, "api.example.test")?, unlisted(), "another workload");
    let (_, ended) = Plain::tell(&outing.client, place(&outing.stranger, 9000), b"\x00opaque")?;
    assert_eq!(ended, Ended::Reset, "bytes name nobody");
    assert!(elsewhere.connections().is_empty());
    assert!(!named.text().contains("opaque"));

    outing.site.mesh.delete("EgressPolicy", "outside")?;
    // Asked on other connections: one that carries an answer in the moment of the change is cut off.
    wait_for("the refusal", || {
        let refused = outing.refused(&outing.client, 9000, "api.example.test").ok()?;
        (refused == unlisted()).then_some(())
    })?;
    kept.send(get("/200", "api.example.test").as_bytes())?;
    assert_eq!(kept.answer()?.status, 403, "on a connection that was served");
    Ok(())
}

fn egress_by_server_name_passes_tls_as_it_is() -> TestResult {
    let outing = Outing::new(&[], &["{names: [api.example.test], ports: [9443]}"])?;
    let server = Recorder::silent(&outing.stranger, 9443)?;
    let to = place(&outing.stranger, 9443);
    let (_, ended) = Plain::tell(&outing.client, to, &client_hello("other.example.test")?)?;
    assert_eq!(ended, Ended::Reset, "another name");
    assert!(server.connections().is_empty());
    let hello = client_hello("api.example.test")?;
    let mut client = Plain::dial(&outing.client, to)?;
    client.send(&hello)?;
    let expected = hello.clone();
    server.wait_for("the hello", move |all| all.iter().any(|connection| connection.bytes == expected))?;

    outing.site.mesh.apply("none.yaml", &egress_policy("outside", "client", &[]))?;
    let (_, ended) = client.rest();
    assert_eq!(ended, Ended::Reset, "no longer listed");
    Ok(())
}

fn originated_tls_reaches_only_who_proves_the_name() -> TestResult {
    let (ours, theirs) = (Outside::new()?, Outside::new()?);
    let entry = |name: &str, roots: &Outside, more: &str| -> Result<String, Failure> {
        let roots = roots.quoted()?;
        Ok(format!(
            "{{names: [{name}], ports: [80], tls: {{originate: true, port: 8443, caCertificates: {roots}{more}}}}}"
        ))
    };
    let entries = [
        entry("api.example.test", &ours, "")?,
        entry("wrong.example.test", &ours, "")?,
        entry("alias.example.test", &ours, ", serverName: api.example.test")?,
        entry("foreign.example.test", &theirs, ", serverName: api.example.test")?,
    ];
    let entries: Vec<&str> = entries.iter().map(String::as_str).collect();
    let outing = Outing::new(&[], &entries)?;
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nproven".to_vec();
    let server = Impostor::start(
        &outing.stranger,
        8443,
        ours.server("api.example.test")?,
        Arc::new(move |_, _| answer.clone()),
    )?;
    let to = place(&outing.stranger, 80);
    for host in ["wrong.example.test", "foreign.example.test"] {
        assert_eq!(
            outing.refused(&outing.client, 80, host)?,
            (502, "egress-unverified".to_owned()),
            "{host}"
        );
    }
    assert!(server.requests().is_empty(), "{:?}", server.requests());
    for host in ["api.example.test", "alias.example.test"] {
        let answer = Plain::ask(&outing.client, to, &get("/", host))?;
        assert_eq!((answer.status, &*answer.body), (200, &b"proven"[..]), "{host}");
    }
    let seen = server.requests();
    assert_eq!(seen.len(), 2);
    assert!(seen[0].to_lowercase().contains("host: api.example.test"), "{seen:?}");
    assert_eq!(outing.refused(&outing.client, 80, "unknown.example.test")?, unlisted());
    assert_eq!(outing.sidecars[0].metrics()?.value("signet_egress_tls_connections_total"), 1.0, "kept");
    Ok(())
}

fn egress_policy_lists_all_that_leaves() -> TestResult {
    let outing = Outing::new(
        &["mtls: {mode: permissive}", "egress: [{cidr: 172.18.0.0/16, protocol: tcp, ports: [9001]}]"],
        &["{cidrs: [172.18.0.0/16], ports: [9000]}"],
    )?;
    for port in [9000, 9001, 9002] {
        let _listening = Recorder::http(&outing.stranger, port)?;
    }
    for port in [9000, 9001] {
        assert_eq!(Plain::ask(&outing.client, place(&outing.stranger, port), &get("/", "x"))?.status, 200);
    }
    assert_eq!(outing.refused(&outing.client, 9002, "x")?, unlisted());
    let free = Plain::ask(&outing.other, place(&outing.stranger, 9002), &get("/", "x"))?;
    assert_eq!(free.status, 200, "no egress policy selects it");
    let socket = datagrams(&outing.client, 0)?;
    wait_for("the rules against datagrams", || {
        socket.send_to(b"out", place(&outing.stranger, 9003)).is_err().then_some(())
    })?;
    Ok(())
}

fn datagrams_leave_by_the_list_of_their_own_workload() -> TestResult {
    let outing = Outing::new(&[], &["{cidrs: [172.18.0.0/16], protocol: udp, ports: [9002]}"])?;
    let (listed, unlisted) = (datagrams(&outing.stranger, 9002)?, datagrams(&outing.stranger, 9003)?);
    let (client, other) = (datagrams(&outing.client, 0)?, datagrams(&outing.other, 0)?);
    let received = |socket: &UdpSocket| -> Result<Vec<u8>, Failure> {
        let mut block = [0; 64];
        let length = socket.recv(&mut block)?;
        Ok(block[..length].to_vec())
    };
    wait_for("the rule for datagrams", || client.send_to(b"first", place(&outing.stranger, 9002)).ok())?;
    assert_eq!(received(&listed)?, b"first");
    for (socket, port) in [(&client, 9003), (&other, 9002)] {
        let refused = socket.send_to(b"no", place(&outing.stranger, port));
        assert_eq!(
            refused.map_err(|error| error.kind()),
            Err(std::io::ErrorKind::PermissionDenied),
            "{port}"
        );
    }
    client.send_to(b"second", place(&outing.stranger, 9002))?;
    assert_eq!(received(&listed)?, b"second", "nothing came in between");
    unlisted.set_nonblocking(true)?;
    assert!(unlisted.recv(&mut [0; 8]).is_err());
    Ok(())
}
