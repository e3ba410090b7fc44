//! A small mesh to publish: its keys, and sections of it in any version.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use prost::Message;
use rustls_pki_types::CertificateDer;
use signet_identity::{Class, Fingerprint, SpiffeId, TrustBundle, TrustDomain};
use signet_policy::{
    AccessPolicyModel, Advertised, CircuitBreaking, Concurrency, Conditions, EgressEntry, EgressPolicyModel,
    EgressRule, FieldPattern, Form, HashOn, HeaderMatch, HeaderPolicyModel, IdentityFields, IdentityPattern,
    IntermediaryModel, IntermediaryRoute, Lifetimes, LoadBalancing, MtlsMode, NamePattern, Network,
    NormalizationPolicyModel, NormalizationRuleModel, Offline, OfflineBound, Operation, Origination,
    PathPattern, PolicyAction, PolicyMode, PolicyModel, PortModel, Protection, ProtectionChange,
    ProtectionLevel, ProtectionPolicyModel, ProtectionRuleModel, Protocol, RateKey, RateLimit, RecordHash,
    Rejoin, Retries, RetryBudget, RetryOn, RoleGrantModel, Route, RuleModel, SignatureMode, SourceMatch,
    SpeaksFirst, SuccessRate, Target, TimeWindow, Timeouts, TrafficPolicyModel, TrafficRoute,
    TrafficSettings, Transport, ValueMatch, Verification, WhenStale, WorkloadApi, WorkloadModel,
};
use signet_sync::proto::sync as wire;
use signet_sync::{
    Anchors, Directory, DirectoryKey, Entry, POLICY_KEY_ID, Revocation, Revocations, SectionKey, SectionName,
    Subject, Subscriber, Version, area_key_id, minimum_reader,
};

pub(crate) const AREA: &str = "plant";
pub(crate) const NETWORK: &str = "engine-1/bridge";

/// A root certificate made once for these tests; only its bytes matter here.
pub(crate) const ROOT: &[u8] = include_bytes!("../golden/root.der");

pub(crate) struct Mesh {
    pub(crate) policy_key: SectionKey,
    pub(crate) area_key: SectionKey,
}

impl Mesh {
    pub(crate) fn new() -> Self {
        Self { policy_key: key(1), area_key: key(2) }
    }

    pub(crate) fn subscriber(&self) -> Subscriber {
        Subscriber::new(trust_domain(), self.policy_key.public_key())
    }

    pub(crate) fn anchors(&self, version: Version) -> wire::Section {
        let keys = BTreeMap::from([(AREA.to_owned(), self.area_key.public_key())]);
        self.anchors_with(version, keys)
    }

    pub(crate) fn anchors_with(&self, version: Version, keys: BTreeMap<String, [u8; 32]>) -> wire::Section {
        let bundle = Arc::new(TrustBundle::new(trust_domain(), vec![CertificateDer::from(ROOT)]).unwrap());
        let directory_keys = keys
            .into_iter()
            .map(|(area, key)| (area, DirectoryKey { key, networks: vec![NETWORK.to_owned()] }))
            .collect();
        let anchors = Anchors::new(bundle, self.policy_key.public_key(), directory_keys);
        self.by_policy_key(&SectionName::Anchors, version, wire::Anchors::from(&anchors).encode_to_vec())
    }

    pub(crate) fn policy(&self, version: Version) -> wire::Section {
        self.policy_of(version, &policy_model(version.counter))
    }

    pub(crate) fn policy_of(&self, version: Version, model: &PolicyModel) -> wire::Section {
        let (name, payload) = (SectionName::Policy, wire::Policy::from(model).encode_to_vec());
        let proof = self.proof(&name, version);
        self.policy_key.sign(POLICY_KEY_ID, &name, version, minimum_reader(model), payload, proof).unwrap()
    }

    pub(crate) fn directory(&self, version: Version) -> wire::Section {
        let payload = wire::Directory::from(&directory(version.counter)).encode_to_vec();
        let name = SectionName::Directory(NETWORK.to_owned());
        self.area_key
            .sign(&area_key_id(AREA), &name, version, 1, payload, self.proof(&name, version))
            .unwrap()
    }

    pub(crate) fn revocations(&self, version: Version) -> wire::Section {
        let mut revocations = Revocations::default();
        let revocation = Revocation { reason: "key stolen".into(), revoked_at: 1_800_000_000 };
        revocations.insert(Subject::Identity(id("spiffe://mf2c.test/app/d2/thief")), revocation.clone());
        revocations.insert(Subject::Certificate(Fingerprint([3; 32])), revocation);
        let payload = wire::Revocations::from(&revocations).encode_to_vec();
        self.by_policy_key(&SectionName::Revocations, version, payload)
    }

    pub(crate) fn by_policy_key(
        &self,
        name: &SectionName,
        version: Version,
        payload: Vec<u8>,
    ) -> wire::Section {
        self.policy_key.sign(POLICY_KEY_ID, name, version, 1, payload, self.proof(name, version)).unwrap()
    }

    fn proof(&self, name: &SectionName, version: Version) -> Vec<u8> {
        if version.epoch == 1 {
            Vec::new()
        } else {
            self.policy_key.prove_epoch(name, version.epoch).unwrap()
        }
    }
}

pub(crate) fn v(epoch: u64, counter: u64) -> Version {
    Version { epoch, counter }
}

pub(crate) fn trust_domain() -> TrustDomain {
    TrustDomain::parse("mf2c.test").unwrap()
}

pub(crate) fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

/// An Ed25519 key from a fixed seed, as PKCS#8 version 1 (RFC 8410).
pub(crate) fn key(seed: u8) -> SectionKey {
    let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    der.extend([seed; 32]);
    SectionKey::from_pkcs8(&der).unwrap()
}

/// A policy with every kind of everything in it; `mark` makes versions differ.
pub(crate) fn policy_model(mark: u64) -> PolicyModel {
    let mut model = policy_model_1(mark);
    let value = |value| HeaderMatch { name: "x-tenant".into(), value };
    let operation = Operation {
        methods: Vec::new(),
        paths: Vec::new(),
        ports: vec![8201],
        headers: vec![
            value(ValueMatch::Absent),
            value(ValueMatch::Exact("blue".into())),
            value(ValueMatch::Prefix("b".into())),
            value(ValueMatch::Present),
        ],
    };
    let when = Conditions {
        source_addresses: vec!["10.0.0.0/8".parse().unwrap()],
        time: vec![TimeWindow { days: 0b1_1111, from: 480, to: 1_080, utc_offset: -90 }],
    };
    let leaders = vec![SourceMatch::Role("leader".into())];
    model.policies.push(AccessPolicyModel {
        name: "shut".into(),
        target: Target::Everything,
        ports: Vec::new(),
        mode: PolicyMode::Enforce,
        action: PolicyAction::Deny,
        rules: vec![RuleModel {
            name: "rule-1".into(),
            from: leaders.clone(),
            to: vec![operation],
            when,
            life_safety: false,
        }],
    });
    model.policies[0].rules[0].life_safety = true;
    model.offline = Offline {
        agent: Some(OfflineBound { budget_s: 259_200, then: WhenStale::Refuse }),
        platform: Some(OfflineBound { budget_s: 3_600, then: WhenStale::LifeSafety }),
        ..Offline::default()
    };
    let names = |names: &[&str]| names.iter().map(|name| FieldPattern::parse(name).unwrap()).collect();
    model.header_policies.push(HeaderPolicyModel {
        name: "identity".into(),
        target: Target::Everything,
        ports: vec![8201],
        fields: vec![
            IdentityFields { names: names(&["x-user"]), entitled: leaders, overwrite: Some("nobody".into()) },
            IdentityFields { names: names(&["x-admin-*"]), entitled: Vec::new(), overwrite: None },
        ],
        peer_header: Some("x-peer".into()),
    });
    model.role_grants.push(RoleGrantModel {
        name: "cimi-leads".into(),
        identity: id("spiffe://mf2c.test/agent/d1/cimi"),
        role: "leader".into(),
        not_after: 1_900_000_000,
    });
    let change = ProtectionChange {
        level: Some(ProtectionLevel::Private),
        mode: Some(SignatureMode::Hmac),
        record_hash: Some(RecordHash::Sha256),
        verify: Some(Verification::Async),
        sealed_headers: Some(vec!["x-secret".into()]),
    };
    let route =
        |path: &str| Route { methods: vec!["POST".into()], paths: vec![PathPattern::parse(path).unwrap()] };
    let rule = |name: &str, change| ProtectionRuleModel {
        name: name.to_owned(),
        to: vec![route("/api/session/**")],
        change,
    };
    model.normalization_policies.push(NormalizationPolicyModel {
        name: "lenient".into(),
        target: Target::Workloads(vec!["cimi".into()]),
        ports: vec![8201],
        rules: vec![NormalizationRuleModel {
            to: vec![route("/legacy/**")],
            forms: Form::ALL.into_iter().collect(),
        }],
    });
    let open = ProtectionChange { level: Some(ProtectionLevel::Public), ..ProtectionChange::default() };
    model.intermediaries.push(IntermediaryModel {
        name: "edge".into(),
        addresses: vec!["172.18.0.99".parse().unwrap()],
        ports: vec![80],
        routes: vec![IntermediaryRoute {
            to: "lm".into(),
            port: 46000,
            path: "/lm".into(),
            replace_prefix: Some("/".into()),
            host: Some("lm:46000".into()),
            may_change: vec!["location".into()],
        }],
    });
    model.protection_policies.push(ProtectionPolicyModel {
        name: "sessions".into(),
        target: Target::Classes(vec![Class::Agent]),
        ports: vec![8201],
        default: Some(ProtectionChange { mode: Some(SignatureMode::Ed25519), ..change.clone() }),
        rules: vec![rule("rule-1", change), rule("rule-2", open)],
    });
    let to =
        vec![Route { methods: vec!["GET".into()], paths: vec![PathPattern::parse("/slow/**").unwrap()] }];
    let limit = |key| RateLimit { requests: 100, per_ms: 1_000, key };
    let policy = |name: &str, load_balancing| TrafficPolicyModel {
        name: name.to_owned(),
        target: Target::Everything,
        ports: vec![8201],
        settings: TrafficSettings {
            timeouts: Some(Timeouts { connect_ms: Some(500), request_ms: Some(10_000), idle_ms: None }),
            retries: Some(Retries {
                attempts: 2,
                on: vec![RetryOn::ConnectFailure, RetryOn::GatewayError, RetryOn::Reset],
                methods: vec!["PUT".into()],
                budget: RetryBudget { percent: 10, min_per_second: 1 },
            }),
            rate_limits: Some(vec![limit(RateKey::Identity), limit(RateKey::Workload)]),
        },
        routes: vec![TrafficRoute {
            to: to.clone(),
            settings: TrafficSettings { rate_limits: Some(Vec::new()), ..TrafficSettings::default() },
        }],
        circuit_breaking: Some(CircuitBreaking {
            consecutive_failures: Some(5),
            success_rate: Some(SuccessRate { minimum: 80, volume: 20 }),
            ejection_time_ms: 30_000,
            max_ejection_percent: 50,
        }),
        concurrency: Some(Concurrency { max_requests: 64, max_pending: 16 }),
        load_balancing,
    };
    let hashes = [HashOn::Header("x-user".into()), HashOn::Path, HashOn::SourceIdentity];
    let balancing = hashes.into_iter().map(LoadBalancing::ConsistentHash).chain([LoadBalancing::P2c]);
    model.traffic_policies = balancing
        .map(Some)
        .chain([None])
        .enumerate()
        .map(|(number, balancing)| policy(&format!("traffic-{number}"), balancing))
        .collect();
    let tls = Some(Origination {
        server_name: Some("api.test".into()),
        port: 443,
        ca_certificates: Some("PEM".into()),
        system_roots: true,
    });
    let entry = |names: &[&str], protocol, tls| EgressEntry {
        names: names.iter().map(|name| NamePattern::parse(name).unwrap()).collect(),
        cidrs: vec!["192.0.2.0/24".parse().unwrap()],
        ports: vec![80],
        protocol,
        tls,
    };
    model.egress_policies.push(EgressPolicyModel {
        name: "outside".into(),
        target: Target::Everything,
        to: vec![
            entry(&["api.test", "*.web.test"], Transport::Tcp, tls),
            entry(&["api.test"], Transport::Tcp, None),
            entry(&[], Transport::Udp, None),
        ],
    });
    model.workloads[0].virtual_addresses = vec![Advertised {
        network: NETWORK.to_owned(),
        address: "172.18.255.1".parse().unwrap(),
        port: 80,
        target_port: 8201,
    }];
    model
}

/// The same with what protocol 1 could say.
pub(crate) fn policy_model_1(mark: u64) -> PolicyModel {
    let operation = Operation {
        methods: vec!["GET".into()],
        paths: vec![PathPattern::parse("/api/**").unwrap()],
        ports: vec![8201],
        headers: Vec::new(),
    };
    let from = vec![
        SourceMatch::Anyone,
        SourceMatch::Authenticated,
        SourceMatch::Class(Class::External),
        SourceMatch::Identity(IdentityPattern::parse("spiffe://mf2c.test/app/*/gateway").unwrap()),
        SourceMatch::TrustDomain(TrustDomain::parse("partner.test").unwrap()),
    ];
    let policy = |name: &str, target, mode| AccessPolicyModel {
        name: name.to_owned(),
        target,
        ports: vec![8201],
        mode,
        action: PolicyAction::Allow,
        rules: vec![RuleModel {
            name: "rule-1".into(),
            from: from.clone(),
            to: vec![operation.clone()],
            when: Conditions::default(),
            life_safety: false,
        }],
    };
    PolicyModel {
        mtls: MtlsMode::Permissive,
        clock_skew_s: mark,
        networks: vec![Network {
            name: NETWORK.to_owned(),
            cidrs: vec!["172.18.0.0/16".parse().unwrap(), "fd00::/64".parse().unwrap()],
            gateways: vec!["172.18.0.1".parse().unwrap()],
        }],
        egress: [Transport::Tcp, Transport::Udp]
            .map(|protocol| EgressRule {
                cidr: "192.0.2.0/24".parse().unwrap(),
                ports: vec![443],
                protocol,
                comment: Some("time and updates".into()),
            })
            .to_vec(),
        lifetimes: Lifetimes { agent: 4, app: 3, external: 2, platform: 1 },
        offline: Offline::default(),
        rejoin: Rejoin::default(),
        workloads: vec![workload()],
        policies: vec![
            policy("everyone", Target::Everything, PolicyMode::Observe),
            policy("apps", Target::Classes(vec![Class::App, Class::Platform]), PolicyMode::Enforce),
            policy("cimi", Target::Workloads(vec!["cimi".into()]), PolicyMode::Enforce),
        ],
        ..PolicyModel::empty(trust_domain())
    }
}

fn workload() -> WorkloadModel {
    use Protocol::{Auto, Grpc, Http, Http2, Opaque, Tls};
    let speaks_first = [None, Some(SpeaksFirst::Client), Some(SpeaksFirst::Server)];
    let ports =
        [Auto, Grpc, Http, Http2, Opaque, Tls].into_iter().zip(speaks_first.into_iter().cycle()).zip(8200..);
    WorkloadModel {
        name: "cimi".into(),
        id: id("spiffe://mf2c.test/agent/d1/cimi"),
        class: Class::Agent,
        network: NETWORK.to_owned(),
        names: vec!["cimi".into()],
        ports: ports
            .map(|((protocol, speaks_first), port)| PortModel {
                port,
                name: (port == 8201).then(|| "api".to_owned()),
                protocol,
                speaks_first,
            })
            .collect(),
        mtls: Some(MtlsMode::Strict),
        protection: Protection {
            level: ProtectionLevel::Public,
            mode: SignatureMode::Ed25519,
            record_hash: RecordHash::Sha256,
            verify: Verification::Gate,
        },
        sealed_headers: vec!["cookie".to_owned()],
        addresses: vec!["172.18.0.2".parse().unwrap()],
        virtual_addresses: Vec::new(),
        workload_api: WorkloadApi::default(),
        advertise: vec![Advertised {
            network: "lan".into(),
            address: "192.0.2.7".parse().unwrap(),
            port: 18_201,
            target_port: 8201,
        }],
    }
}

/// A directory of two entries; `mark` makes versions differ.
pub(crate) fn directory(mark: u64) -> Directory {
    let entry = |last: u8, port: u16| Entry {
        address: IpAddr::V4(Ipv4Addr::new(172, 18, 0, last)),
        port,
        target_port: port,
        identities: vec![id("spiffe://mf2c.test/agent/d1/cimi")],
        workload: "cimi".into(),
        names: vec!["cimi".into()],
        protocol: Protocol::Http,
        speaks_first: Some(SpeaksFirst::Client),
        habit_expires: Some(mark),
        sealing_keys: vec![[last; 32]],
    };
    let v6 = Entry { address: "fd00::7".parse().unwrap(), ..entry(7, 3306) };
    Directory::new(NETWORK.to_owned(), vec![entry(2, 8201), v6]).unwrap()
}
