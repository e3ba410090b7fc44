//! Areas: control planes under another one, cut off from it and back again.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::ClientConfig;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use signet_cli::lab::mesh::intruder::{Identity, inside};
use signet_cli::lab::mesh::{Mesh, Setup, Sidecar, program, wait_until};
use signet_cli::lab::runner::{Test, TestResult};
use signet_cli::lab::{Container, Host, HostPlan, Lab};
use signet_identity::{
    ALPN_H1, Fingerprint, SpiffeId, TlsSvid, area_of_chain, client_config, crypto_provider,
};
use signet_sync::proto::admin::{RotationPhase, RotationTarget};
use signet_tests::manifest::{TRUST_DOMAIN, policy};
use signet_tests::plain::get;
use signet_tests::{Failure, LIMIT, Plain, Recorder, place, wait_for};

use crate::identity::attempt;

pub(crate) const TESTS: &[Test] = &[
    (
        "area_cut_off_for_longer_than_a_leaf_lives_goes_on_over_cold_restarts_and_rejoins",
        area_cut_off_for_longer_than_a_leaf_lives_goes_on_over_cold_restarts_and_rejoins,
    ),
    (
        "device_that_moves_to_another_area_keeps_its_identity",
        device_that_moves_to_another_area_keeps_its_identity,
    ),
    (
        "area_whose_delegation_ended_stops_and_is_let_back_in_by_its_keys",
        area_whose_delegation_ended_stops_and_is_let_back_in_by_its_keys,
    ),
    (
        "stolen_area_certifies_nobody_outside_its_grant_and_ends_when_it_is_revoked",
        stolen_area_certifies_nobody_outside_its_grant_and_ends_when_it_is_revoked,
    ),
];

const PORT: u16 = 8201;

/// How long a workload's certificate lives here.
const LEAF: Duration = Duration::from_secs(8);

/// How long an area or a sidecar may take to be back.
const RETURN_LIMIT: Duration = Duration::from_secs(60);

/// A parent in the cloud and two areas, each with a network of its own; routes lead from each to each.
struct Plants {
    parent: Mesh,
    cloud: Host,
    areas: [Mesh; 2],
    hosts: [Host; 2],
    _lab: Lab,
}

fn id(workload: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://{TRUST_DOMAIN}/app/host/{workload}"))
        .unwrap_or_else(|_| unreachable!())
}

fn manifests() -> String {
    let lifetime = LEAF.as_secs();
    let networks = "networks: [{name: cloud, cidrs: [172.18.0.0/16, 10.0.0.1/32, 'fd18::/64'], gateways: [10.0.0.1]}, \
                    {name: east, cidrs: [172.19.0.0/16, 'fd19::/64'], gateways: [10.0.0.2, 'fd00::2']}, \
                    {name: west, cidrs: [172.20.0.0/16, 'fd20::/64'], gateways: [10.0.0.3, 'fd00::3']}]";
    let certificates = format!("certificates: {{app: {{lifetime: {lifetime}s, rejoin: 1h}}}}");
    let document = |kind: &str, name: &str, spec: &str| {
        format!(
            "---\napiVersion: signet.mf2c-project.eu/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n{spec}"
        )
    };
    let mut all =
        document("Mesh", "site", &format!("  trustDomain: {TRUST_DOMAIN}\n  {networks}\n  {certificates}\n"));
    for (name, network) in
        [("server", "west"), ("client", "east"), ("late", "east"), ("mover", "east"), ("boss", "cloud")]
    {
        let ports = format!("ports: [{{port: {PORT}, protocol: http}}]");
        let spec = format!("  class: app\n  device: host\n  network: {network}\n  {ports}\n");
        all.push_str(&document("Workload", name, &spec));
    }
    all.push_str(&open());
    all
}

fn open() -> String {
    policy("anybody", "server", &["{from: [{any: authenticated}]}"])
}

impl Plants {
    fn new() -> Result<Self, Failure> {
        Self::with_budget(3600)
    }

    fn with_budget(seconds: u64) -> Result<Self, Failure> {
        let lab = Lab::new()?;
        let plan = |number: u8, second: u8, containers_ipv6: &str| -> Result<HostPlan, Failure> {
            let containers_ipv4 = format!("172.{second}.0.0/16").parse()?;
            Ok(HostPlan {
                containers_ipv4,
                containers_ipv6: containers_ipv6.parse()?,
                ..HostPlan::numbered(number)
            })
        };
        let cloud = lab.host("cloud", HostPlan::numbered(1))?;
        let east = lab.host("east", plan(2, 19, "fd19::/64")?)?;
        let west = lab.host("west", plan(3, 20, "fd20::/64")?)?;
        east.namespace().add_route("172.20.0.0/16".parse()?, west.ipv4().into())?;
        west.namespace().add_route("172.19.0.0/16".parse()?, east.ipv4().into())?;
        let parent = Mesh::start(&cloud, TRUST_DOMAIN)?;
        parent.apply("site.yaml", &manifests())?;
        let area = |host: &Host, name: &str| -> Result<Mesh, Failure> {
            Ok(parent.start_area(host, (TRUST_DOMAIN, name), name, &["app/host/*"], seconds)?)
        };
        let areas = [area(&east, "east")?, area(&west, "west")?];
        Ok(Self { parent, cloud, areas, hosts: [east, west], _lab: lab })
    }

    fn container(&self, area: usize, name: &str) -> Result<Container, Failure> {
        Ok(self.hosts[area].container(name)?)
    }

    fn sidecar(&self, area: usize, container: &Container, workload: &str) -> Result<Sidecar, Failure> {
        Ok(self.areas[area].sidecar(container, workload, Setup::default())?)
    }
}

fn status(from: &Container, to: SocketAddr) -> Result<u16, Failure> {
    Ok(Plain::ask(from, to, &get("/api", to))?.status)
}

fn until(what: &str, from: &Container, to: SocketAddr, expected: u16) -> Result<(), Failure> {
    let mut last = None;
    let answered = wait_until(RETURN_LIMIT, || {
        last = status(from, to).ok();
        (last == Some(expected)).then_some(())
    });
    answered.ok_or_else(|| format!("{what}: {expected} did not come, the last was {last:?}").into())
}

fn area_cut_off_for_longer_than_a_leaf_lives_goes_on_over_cold_restarts_and_rejoins() -> TestResult {
    let mut plants = Plants::new()?;
    let (server, client, late) =
        (plants.container(1, "server")?, plants.container(0, "client")?, plants.container(0, "late")?);
    let _app = Recorder::http(&server, PORT)?;
    let _served = plants.sidecar(1, &server, "server")?;
    let mut calling = plants.sidecar(0, &client, "client")?;
    let address = place(&server, PORT);
    calling.wait_until_known(address)?;
    assert_eq!(status(&client, address)?, 200, "workloads of two areas talk directly");
    let chain = chain_of(&calling)?;
    assert_eq!(area_of_chain(&chain).as_deref(), Some("east"), "its area certified it");
    let listed = plants.parent.areas()?;
    assert!(listed.len() == 2 && listed.iter().all(|area| area.connected), "{listed:?}");

    // What an area may not do is refused at its socket, and says where it is done.
    let refused = plants.areas[0].apply("site.yaml", &manifests()).err().map(|error| error.to_string());
    assert!(
        refused.as_ref().is_some_and(|error| error.contains("at the origin, 10.0.0.1:15012")),
        "{refused:?}"
    );
    let refused = plants.areas[0].token("boss").err().map(|error| error.to_string());
    assert!(
        refused.as_ref().is_some_and(|error| error.contains("network cloud is not east's")),
        "{refused:?}"
    );

    // The uplink of both is cut, for longer than any certificate lives.
    plants.cloud.namespace().cut()?;
    let cut = Instant::now();
    let before = leaf_of(&calling)?;
    wait_for("the end of what was certified before the cut", || (cut.elapsed() > LEAF * 2).then_some(()))?;
    assert_eq!(status(&client, address)?, 200, "renewed by its area");
    assert_ne!(leaf_of(&calling)?, before);

    // Both of the area's ends start cold while nobody answers; somebody new enrols.
    plants.areas[0].kill_control_plane();
    calling.kill();
    plants.areas[0].start_control_plane()?;
    calling.restart()?;
    until("cold restarts while cut off", &client, address, 200)?;
    let newcomer = plants.sidecar(0, &late, "late")?;
    newcomer.wait_until_known(address)?;
    until("who enrolled while cut off", &late, address, 200)?;
    // What the area kept of the origin's words counts from when it was said.
    let since = newcomer.metrics()?.value("signet_policy_age_seconds");
    assert!(since >= LEAF.as_secs_f64(), "the origin spoke {since} s ago");

    // Meanwhile the origin changes its mind.
    plants.parent.apply(
        "closed.yaml",
        &policy(
            "anybody",
            "server",
            &[&format!("{{from: [{{identity: '{}'}}, {{identity: '{}'}}]}}", id("client"), id("boss"))],
        ),
    )?;
    plants.parent.revoke_identity(&id("client"), "stolen while the area was away")?;
    assert_eq!(status(&client, address)?, 200, "what is in force is what came last");
    assert_eq!(status(&late, address)?, 200);

    plants.cloud.namespace().heal()?;
    until("the policy made meanwhile", &late, address, 403)?;
    wait_for("the revocation made meanwhile", || {
        status(&client, address).map_or(Some(()), |status| (status != 200).then_some(()))
    })?;
    // Whom the area let in meanwhile is known where it can be revoked.
    let told = wait_until(RETURN_LIMIT, || {
        let proxies = plants.parent.proxies().ok()?;
        proxies.iter().any(|proxy| proxy.spiffe_id == id("late").as_str()).then_some(())
    });
    assert!(told.is_some(), "the parent does not know who enrolled: {:?}", plants.parent.proxies()?);
    let all_back =
        || plants.parent.areas().is_ok_and(|areas| areas.iter().all(|area| area.connected)).then_some(());
    wait_for("both areas", all_back)?;
    Ok(())
}

fn device_that_moves_to_another_area_keeps_its_identity() -> TestResult {
    let plants = Plants::new()?;
    let (server, there, here) =
        (plants.container(1, "server")?, plants.container(0, "there")?, plants.container(1, "here")?);
    let _app = Recorder::http(&server, PORT)?;
    let _served = plants.sidecar(1, &server, "server")?;
    let address = place(&server, PORT);
    let moving = plants.sidecar(0, &there, "mover")?;
    moving.wait_until_known(address)?;
    assert_eq!(status(&there, address)?, 200);
    assert_eq!(area_of_chain(&chain_of(&moving)?).as_deref(), Some("east"));

    let moved = moving.moved(&here, plants.areas[1].address())?;
    moved.wait_until_known(address)?;
    until("in its new area", &here, address, 200)?;
    wait_for("a certificate of the new area", || {
        chain_of(&moved).ok().filter(|chain| area_of_chain(chain).as_deref() == Some("west"))
    })?;
    let kept = TlsSvid::from_pem(&fs::read(moved.folder().join("state").join("tls.pem"))?)?;
    assert_eq!(kept.id, id("mover"));
    until("after its renewal", &here, address, 200)?;

    // Another issuer certifies at the origin: areas have theirs of the root, and go on. The root waits for no area.
    plants.parent.rotate(RotationTarget::Issuer, false)?;
    wait_for("the end of the rotation", || {
        plants.parent.rotation().ok().filter(|state| state.phase() == RotationPhase::Unspecified)
    })?;
    let before = leaf_of(&moved)?;
    wait_for("a renewal after it", || leaf_of(&moved).ok().filter(|leaf| *leaf != before))?;
    assert_eq!(area_of_chain(&chain_of(&moved)?).as_deref(), Some("west"));
    assert_eq!(status(&here, address)?, 200);
    // A revocation takes the way of any other, through the area.
    let revoked = Instant::now();
    plants.parent.revoke_identity(&id("mover"), "lost")?;
    wait_for("the revocation", || {
        status(&here, address).map_or(Some(()), |status| (status != 200).then_some(()))
    })?;
    let took = revoked.elapsed();
    assert!(took < Duration::from_secs(5), "revoked at the origin, and refused in the area {took:?} later");
    let refused = plants.parent.rotate(RotationTarget::Root, false).err().map(|error| error.to_string());
    assert!(refused.as_ref().is_some_and(|error| error.contains("while there are areas")), "{refused:?}");
    Ok(())
}

fn area_whose_delegation_ended_stops_and_is_let_back_in_by_its_keys() -> TestResult {
    let budget = 30;
    let plants = Plants::with_budget(budget)?;
    let (server, client) = (plants.container(1, "server")?, plants.container(0, "client")?);
    let _app = Recorder::http(&server, PORT)?;
    let _served = plants.sidecar(1, &server, "server")?;
    let calling = plants.sidecar(0, &client, "client")?;
    let address = place(&server, PORT);
    calling.wait_until_known(address)?;
    assert_eq!(status(&client, address)?, 200);

    // No certificate outlives what the area was given.
    plants.cloud.namespace().cut()?;
    let ended = wait_until(Duration::from_secs(2 * budget), || {
        status(&client, address).map_or(Some(()), |status| (status != 200).then_some(()))
    });
    assert!(ended.is_some(), "an area that ended still certifies");
    wait_for("its end at the parent, too", || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
        let areas = plants.parent.areas().ok()?;
        areas.iter().all(|area| area.not_after <= now && !area.connected).then_some(())
    })?;

    // It has its keys, and it is not longer ago than it was good for.
    plants.cloud.namespace().heal()?;
    let back = wait_until(RETURN_LIMIT * 2, || status(&client, address).ok().filter(|status| *status == 200));
    assert!(back.is_some(), "not let back in: {:?}; {}", plants.parent.areas()?, calling.log_tail());
    Ok(())
}

fn stolen_area_certifies_nobody_outside_its_grant_and_ends_when_it_is_revoked() -> TestResult {
    let plants = Plants::new()?;
    let (server, thief, client) =
        (plants.container(1, "server")?, plants.container(0, "thief")?, plants.container(0, "client")?);
    let app = Recorder::http(&server, PORT)?;
    let guarded = plants.sidecar(1, &server, "server")?;
    let calling = plants.sidecar(0, &client, "client")?;
    let address = place(&server, PORT);
    calling.wait_until_known(address)?;
    assert_eq!(status(&client, address)?, 200);

    let own = Identity::enrol(thief.namespace(), plants.areas[0].address(), plants.areas[0].token("late")?)?;
    let keys: Value = serde_json::from_str(&fs::read_to_string(plants.areas[0].state().join("area.json"))?)?;
    let before = app.connections().len();
    // A class, a device and a control plane that the area was not granted.
    for path in ["agent/host/late", "app/other/late", "platform/east/control-plane"] {
        let config = forged(&keys, &own, &format!("spiffe://{TRUST_DOMAIN}/{path}"))?;
        let refused = guarded.metrics()?.refusals("peer-unverified");
        let answer = inside(thief.namespace(), move || async move { Ok(attempt(config, address).await) })?;
        assert!(answer.is_empty(), "{path}: {}", String::from_utf8_lossy(&answer));
        guarded.wait_for("refuse what was not granted", LIMIT, |sidecar| {
            sidecar.metrics().is_ok_and(|metrics| metrics.refusals("peer-unverified") > refused)
        })?;
    }
    assert_eq!(app.connections().len(), before, "nothing of it reached the app");

    plants.parent.revoke_area("east")?;
    wait_for("the end of the area", || {
        status(&client, address).map_or(Some(()), |status| (status != 200).then_some(()))
    })?;
    let area = plants.parent.areas()?;
    assert!(area.iter().any(|area| area.name == "east" && area.revoked_at > 0), "{area:?}");
    let shown = plants.cloud.namespace().start(program(&[
        "area",
        "list",
        "--control-plane",
        &format!("unix:{}", plants.parent.socket().display()),
    ]))?;
    assert!(shown.wait(LIMIT)?.success() && shown.output().contains("east  revoked"), "{}", shown.output());
    Ok(())
}

/// The certificates that a sidecar keeps, leaf first.
fn chain_of(sidecar: &Sidecar) -> Result<Vec<CertificateDer<'static>>, Failure> {
    use rustls_pki_types::pem::PemObject;
    let pem = fs::read(sidecar.folder().join("state").join("tls.pem"))?;
    Ok(CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>()?)
}

fn leaf_of(sidecar: &Sidecar) -> Result<Fingerprint, Failure> {
    let chain = chain_of(sidecar)?;
    Ok(Fingerprint::of(chain.first().ok_or("a leaf")?))
}

/// TLS with a leaf over this name, truly signed by the area's issuer.
fn forged(keys: &Value, own: &Identity, name: &str) -> Result<ClientConfig, Failure> {
    use base64::Engine as _;
    let field = |field: &str| -> Result<Vec<u8>, Failure> {
        let text = keys[field].as_str().ok_or("a field")?;
        Ok(base64::engine::general_purpose::STANDARD.decode(text)?)
    };
    let issuer = CertificateDer::from(field("issuer")?);
    let key = KeyPair::try_from(&PrivatePkcs8KeyDer::from(field("issuer_key")?))?;
    let issuing = Issuer::from_ca_cert_der(&issuer, key)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.not_before = SystemTime::UNIX_EPOCH.into();
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(name)?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let leaf = params.signed_by(&key, &issuing)?;
    let chain = vec![CertificateDer::from(leaf), issuer];
    let key = PrivateKeyDer::try_from(key.serialize_der())?;
    let key = crypto_provider().key_provider.load_private_key(key)?;
    let mut config = client_config(&own.tls, &own.bundle, &[ALPN_H1])?;
    config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key)));
    Ok(config)
}
