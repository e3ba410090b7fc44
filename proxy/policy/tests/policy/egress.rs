//! Egress policies: what is read, what is refused, and what may leave.

use std::net::IpAddr;

use signet_policy::{Egress, PolicyIndex, Refusal, Transport};

use crate::conditions::assert_fault;
use crate::{id, manifest, model_of};

fn base(mode: &str) -> String {
    let mesh =
        "trustDomain: td\nnetworks: [{name: n}]\negress: [{cidr: 10.0.0.0/8, protocol: tcp, ports: [1]}]";
    let workload = |name: &str, mode: &str| {
        manifest("Workload", name, &format!("class: app\ndevice: d\nnetwork: n\nmtls: {{mode: {mode}}}"))
    };
    manifest("Mesh", "m", mesh) + &workload("web", mode) + &workload("free", "permissive")
}

fn egress(name: &str, to: &str) -> String {
    manifest("EgressPolicy", name, &format!("target: {{workloads: [web]}}\nto: {to}"))
}

/// A self-signed authority, for 100 years; nobody has its key any more.
const PEM: &str = include_str!("authority.pem");

#[test]
fn what_is_listed_by_name_or_address_may_leave_and_nothing_else() {
    let pem = serde_json::to_string(PEM).unwrap();
    let entries = format!(
        "[{{names: [api.test, '*.web.test'], ports: [80]}}, {{cidrs: [192.0.2.0/24], ports: [5432]}},\
         {{names: [both.test], cidrs: [192.0.2.0/24], ports: [81]}}, {{cidrs: [192.0.2.1/32], ports: [5], protocol: udp}},\
         {{names: [tls.test], ports: [80], tls: {{originate: true, caCertificates: {pem}, port: 8443}}}}]"
    );
    for mode in ["strict", "permissive"] {
        let index = PolicyIndex::new(&model_of(&(base(mode) + &egress("e", &entries))));
        let (web, free) = (id("spiffe://td/app/d/web"), id("spiffe://td/app/d/free"));
        let at = |address: &str| address.parse::<IpAddr>().unwrap();
        let ask = |address, port, transport| index.egress(&web, at(address), port, transport);
        let refused = Err(Refusal::UnmeshedDestination);
        assert_eq!(ask("198.51.100.1", 80, Transport::Tcp), Ok(Egress::Named));
        assert_eq!(ask("198.51.100.1", 81, Transport::Tcp), refused);
        assert_eq!(ask("192.0.2.9", 81, Transport::Tcp), Ok(Egress::Named));
        assert_eq!(ask("192.0.2.9", 5432, Transport::Tcp), Ok(Egress::Listed));
        assert_eq!(ask("::ffff:192.0.2.9", 5432, Transport::Tcp), Ok(Egress::Listed));
        assert_eq!(ask("10.0.0.1", 1, Transport::Tcp), Ok(Egress::Listed), "by the Mesh");
        assert_eq!(ask("192.0.2.1", 5, Transport::Udp), Ok(Egress::Listed));
        assert_eq!(ask("192.0.2.2", 5, Transport::Udp), refused);
        assert_eq!(ask("198.51.100.1", 443, Transport::Tcp), refused, "{mode}");
        assert_eq!(index.egress(&free, at("198.51.100.1"), 443, Transport::Tcp), Ok(Egress::Permissive));

        let to = |address, port, name| {
            index.egress_to(&web, at(address), port, name).map(|tls| tls.map(|tls| tls.port))
        };
        for (name, expected) in [
            (Some("api.test"), Ok(None)),
            (Some("API.test.:80"), Ok(None)),
            (Some("a.b.web.test"), Ok(None)),
            (Some("tls.test"), Ok(Some(8443))),
            (Some("web.test"), Err(Refusal::UnmeshedDestination)),
            (Some("evil-api.test"), Err(Refusal::UnmeshedDestination)),
            (Some("198.51.100.1"), Err(Refusal::UnmeshedDestination)),
            (Some(""), Err(Refusal::UnmeshedDestination)),
            (None, Err(Refusal::UnmeshedDestination)),
        ] {
            assert_eq!(to("198.51.100.1", 80, name), expected, "{name:?}");
        }
        assert!(to("198.51.100.1", 81, Some("both.test")).is_err(), "the name alone is not enough");
        assert_eq!(to("192.0.2.9", 81, Some("both.test")), Ok(None));
        assert_eq!(to("192.0.2.9", 5432, None), Ok(None));

        let listed_as =
            |port, called| index.egress_name(&web, at("192.0.2.9"), port, called).map(ToString::to_string);
        assert_eq!(listed_as(80, "A.b.web.test:80").as_deref(), Some("*.web.test"));
        assert_eq!(listed_as(80, "other.test"), None);
        assert_eq!(listed_as(5432, "api.test"), None, "listed by address there");
    }
    let strict = PolicyIndex::new(&model_of(&(base("strict") + &egress("e", "[]"))));
    assert!(strict.restricts_egress(&id("spiffe://td/app/d/web")));
    assert!(!strict.restricts_egress(&id("spiffe://td/app/d/free")));
}

#[test]
fn values_of_egress_policies_are_checked() {
    let pem = serde_json::to_string(PEM).unwrap();
    let tls = |rest: &str| format!("[{{names: [a.test], tls: {{{rest}}}}}]");
    let ranges = |count: u16| {
        let ports: Vec<String> = (1..=count).map(|port| port.to_string()).collect();
        format!("[{{cidrs: [192.0.2.0/24], protocol: udp, ports: [{}]}}]", ports.join(", "))
    };
    let table = [
        ("[{}]".to_owned(), "an entry has `names`, `cidrs` or both"),
        ("[{ports: [80]}]".to_owned(), "an entry has `names`, `cidrs` or both"),
        ("[{names: []}]".to_owned(), "`names` is empty"),
        ("[{names: ['*']}]".to_owned(), "`*` is no name for egress"),
        ("[{names: ['*.com']}]".to_owned(), "`*.com` is no name for egress"),
        ("[{names: [192.0.2.1]}]".to_owned(), "`192.0.2.1` is no name for egress"),
        ("[{cidrs: [192.0.2.1]}]".to_owned(), "is no address range"),
        ("[{cidrs: [192.0.2.0/24], protocol: sctp}]".to_owned(), "`sctp` is no transport protocol"),
        ("[{names: [a.test], protocol: udp}]".to_owned(), "UDP carries no name"),
        (
            format!("[{{cidrs: [192.0.2.0/24], tls: {{originate: true, caCertificates: {pem}}}}}]"),
            "this entry has none",
        ),
        (tls("originate: false, systemRoots: true"), "`originate: false` says nothing here"),
        (tls("systemRoots: true"), "the field `originate` is missing"),
        (tls("originate: true"), "says not who may vouch for the server"),
        (tls("originate: true, caCertificates: none"), "`caCertificates` cannot be used"),
        (
            tls("originate: true, systemRoots: true, serverName: '*.a.test'"),
            "is no name that a server could prove",
        ),
        (tls("originate: true, systemRoots: true, port: 0"), "`0` is no port"),
        (tls("originate: true, systemRoots: true, insecure: true"), "unknown field `insecure`"),
        (ranges(97), "may go to 97 pairs of range and port, and a sidecar takes 96"),
    ];
    for (to, expected) in table {
        assert_fault(&(base("strict") + &egress("e", &to)), expected);
    }
    model_of(&(base("strict") + &egress("e", &ranges(96))));
    assert_fault(
        &(base("strict") + &egress("a", &ranges(60)) + &egress("b", &ranges(60))),
        "may go to 120 pairs of range and port",
    );
}
