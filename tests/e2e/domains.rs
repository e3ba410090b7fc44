//! A platform and an application in one control plane, with nothing in common: what a thief of the application's keys
//! reaches of the platform, and what a Federation lets through.

use std::sync::Arc;
use std::time::SystemTime;

use rcgen::string::Ia5String;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::ClientConfig;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use signet_cli::lab::mesh::intruder::{Caller, Draft, Identity, IntruderError, inside};
use signet_cli::lab::mesh::{Mesh, Setup, Sidecar, app, program};
use signet_cli::lab::runner::{Test, TestResult};
use signet_cli::lab::{Container, Host, HostPlan, Lab};
use signet_identity::{ALPN_CONTROL, ALPN_H1, Authority, TrustBundle, client_config, crypto_provider};
use signet_sync::Token;
use signet_tests::claimant::channel;
use signet_tests::manifest::{TRUST_DOMAIN, deny, federation, mesh, policy, workload};
use signet_tests::plain::get;
use signet_tests::{Ended, Failure, LIMIT, Plain, Recorder, authority_pem, id, place, wait_for};
use tonic::Code;

use crate::claims::{connected, renewed};
use crate::identity::{attempt, enrol};

pub(crate) const TESTS: &[Test] = &[
    (
        "stolen_keys_of_an_application_reach_nothing_of_the_platform",
        stolen_keys_of_an_application_reach_nothing_of_the_platform,
    ),
    (
        "federation_lets_through_what_both_sides_name_and_no_more",
        federation_lets_through_what_both_sides_name_and_no_more,
    ),
];

/// The application's trust domain; the platform's is [`TRUST_DOMAIN`].
const SHOP: &str = "shop.example";
const HTTP: u16 = 8201;
const EVENTS: u16 = 8000;

/// A platform and an application in one control plane, on one host and one network.
struct Two {
    platform: Mesh,
    shop: Mesh,
    host: Host,
    _lab: Lab,
}

impl Two {
    fn new() -> Result<Self, Failure> {
        let lab = Lab::new()?;
        let host = lab.host("host", HostPlan::numbered(1))?;
        let meshes = Mesh::start_several(&host, &[TRUST_DOMAIN, SHOP])?;
        let [platform, shop] = <[Mesh; 2]>::try_from(meshes).map_err(|_| "two trust domains")?;
        let ports = "ports: [{port: 8201, protocol: http}, {port: 8000, protocol: http}]";
        let anybody = "{from: [{any: authenticated}, {trustDomain: shop.example}]}";
        let own = [
            mesh(&[]),
            workload("server", &[ports]),
            workload("client", &[]),
            policy("anybody", "server", &[anybody]),
        ];
        platform.apply("platform.yaml", &own.concat())?;
        let theirs = [mesh(&[]), workload("cart", &[]), workload("other", &[])].concat();
        shop.apply("shop.yaml", &theirs.replace(TRUST_DOMAIN, SHOP))?;
        Ok(Self { platform, shop, host, _lab: lab })
    }

    fn container(&self, name: &str) -> Result<Container, Failure> {
        Ok(self.host.container(name)?)
    }

    /// What a thief has who took a workload's join token of the application, and believes the platform's roots: it is the
    /// platform that must refuse.
    fn stolen(&self, container: &Container, workload: &str) -> Result<Identity, Failure> {
        let namespace = container.namespace();
        let stolen = Identity::enrol(namespace, self.shop.address(), self.shop.token(workload)?)?;
        Ok(Identity { bundle: self.platform_roots()?, ..stolen })
    }

    fn platform_roots(&self) -> Result<TrustBundle, Failure> {
        Ok(Authority::from_pem(&authority_pem(&self.platform)?)?.bundle())
    }
}

fn sidecar(mesh: &Mesh, container: &Container, workload: &str) -> Result<Sidecar, Failure> {
    Ok(mesh.sidecar(container, workload, Setup::default())?)
}

fn stolen_keys_of_an_application_reach_nothing_of_the_platform() -> TestResult {
    let two = Two::new()?;
    let (server, thief) = (two.container("server")?, two.container("thief")?);
    let app = Recorder::http(&server, HTTP)?;
    let guarded = sidecar(&two.platform, &server, "server")?;
    let address = place(&server, HTTP);
    let stolen = two.stolen(&thief, "cart")?;
    let forged = forged(&two.shop, stolen.clone())?;

    // The workload's keys, and a chain of the application's own root that names one of the platform's workloads.
    let with_keys = client_config(&stolen.tls, &stolen.bundle, &[ALPN_H1])?;
    for (what, config) in [("stolen keys", with_keys), ("a chain made with a stolen root", forged(ALPN_H1)?)]
    {
        let before = guarded.metrics()?.refusals("peer-unverified");
        let answer = inside(thief.namespace(), move || async move { Ok(attempt(config, address).await) })?;
        assert!(answer.is_empty(), "{what}: {}", String::from_utf8_lossy(&answer));
        guarded.wait_for("count the refusal", LIMIT, |sidecar| {
            sidecar.metrics().is_ok_and(|metrics| metrics.refusals("peer-unverified") > before)
        })?;
    }
    let signing = stolen.clone();
    let signed = inside(thief.namespace(), move || async move {
        let mut caller = Caller::open(&signing, address).await?;
        let request = caller.sign(&Draft::new("GET", "/api", "server"))?;
        caller.call(&request).await
    });
    assert!(signed.is_err(), "a signed request: {signed:?}");
    assert!(app.connections().is_empty(), "the app has seen {:?}", app.requests());

    // The platform's control plane: enrolment with the application's token, renewal and control stream with its keys.
    let pin = Authority::from_pem(&authority_pem(&two.platform)?)?.root_spki_sha256();
    let token = Token::parse(&two.shop.token("cart")?)?;
    let (platform, shop) = (two.platform.address(), two.shop.address());
    let wrong = forged(ALPN_CONTROL)?;
    let own = two.shop.state().join("authority.pem");
    assert!(own.exists(), "the application's keys are in a directory of its own");
    let own_bundle = Authority::from_pem(&authority_pem(&two.shop)?)?.bundle();
    inside(thief.namespace(), move || async move {
        let refused = enrol(&token, *token.secret(), platform).await;
        assert!(refused.is_err(), "the token pins another root: {refused:?}");
        let repinned = Token::new(token.id().to_owned(), *token.secret(), pin)
            .map_err(|error| IntruderError::Message(error.to_string()))?;
        let refused = enrol(&repinned, *token.secret(), platform).await?;
        let code = refused.map_err(|status| status.code());
        assert_eq!(code, Err(Code::PermissionDenied), "the platform does not know the token");
        let config = client_config(&stolen.tls, &stolen.bundle, &[ALPN_CONTROL])?;
        for (what, config) in [("stolen keys", config), ("a forged chain", wrong)] {
            // Refused in the handshake, which a TLS 1.3 client notices with the first answer.
            if let Ok(channel) = channel(config, platform).await {
                assert_ne!(renewed(&channel).await, Code::Ok, "a renewal with {what}");
                assert_ne!(connected(&channel).await, Code::Ok, "a control stream with {what}");
            }
        }
        let config = client_config(&stolen.tls, &own_bundle, &[ALPN_CONTROL])?;
        let at_home =
            channel(config, shop).await.map_err(|error| IntruderError::Message(format!("{error:?}")))?;
        assert_eq!(renewed(&at_home).await, Code::Ok, "the same keys where they belong");
        Ok(())
    })?;
    assert!(two.platform.proxies()?.iter().all(|proxy| proxy.spiffe_id == id("server").to_string()));
    Ok(())
}

/// TLS with a leaf that names a workload of the platform, truly signed by the application's issuer.
fn forged(
    shop: &Mesh,
    own: Identity,
) -> Result<impl Fn(&[u8]) -> Result<ClientConfig, Failure> + use<>, Failure> {
    let pem = authority_pem(shop)?;
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let keys = PrivateKeyDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let issuer = certificates.last().ok_or("an issuer")?.clone();
    let issuing = KeyPair::try_from(keys.last().ok_or("its key")?)?;
    let issuing = Issuer::from_ca_cert_der(&issuer, issuing)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.not_before = SystemTime::UNIX_EPOCH.into();
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(id("client").as_str())?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let leaf = params.signed_by(&key, &issuing)?;
    let chain = vec![CertificateDer::from(leaf), issuer];
    let key = PrivateKeyDer::try_from(key.serialize_der())?;
    let key = crypto_provider().key_provider.load_private_key(key)?;
    let shown = Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key)));
    Ok(move |alpn: &[u8]| {
        let mut config = client_config(&own.tls, &own.bundle, &[alpn])?;
        config.client_auth_cert_resolver = shown.clone();
        Ok(config)
    })
}

/// Who of the application may call what of the platform.
fn inbound(caller: &str) -> String {
    let from = format!("from: [{{identity: 'spiffe://{SHOP}/app/host/{caller}'}}]");
    let read = format!("{{methods: [GET], paths: [/api/**], ports: [{HTTP}]}}");
    let follow = format!("{{paths: [/events], ports: [{EVENTS}]}}");
    let rule = format!("inbound: [{{name: orders, {from}, workloads: [server], to: [{read}, {follow}]}}]");
    federation("shop", SHOP, &[&rule])
}

/// Whom the application's workloads may call.
fn outbound(callers: &str) -> String {
    let rule = format!("outbound: [{{workloads: [{callers}], to: [{{identity: '{}'}}]}}]", id("server"));
    federation("platform", TRUST_DOMAIN, &[&rule])
}

fn federation_lets_through_what_both_sides_name_and_no_more() -> TestResult {
    let two = Two::new()?;
    let (server, cart, other) = (two.container("server")?, two.container("cart")?, two.container("other")?);
    let bare = two.container("bare")?;
    let app_of_platform = Recorder::http(&server, HTTP)?;
    let _events = app(&server, &["sse"], &[EVENTS])?;
    let guarded = sidecar(&two.platform, &server, "server")?;
    let carts = sidecar(&two.shop, &cart, "cart")?;
    let _other = sidecar(&two.shop, &other, "other")?;
    let (address, events) = (place(&server, HTTP), place(&server, EVENTS));
    let ask = |from: &Container, method: &str, path: &str| -> Result<(u16, String), Failure> {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        let answer = Plain::ask(from, address, &request)?;
        Ok((answer.status, answer.code().unwrap_or_default()))
    };
    let refused = |code: &str| (403, code.to_owned());
    assert_eq!(ask(&cart, "GET", "/api/user")?, refused("unmeshed-destination"), "before any Federation");

    // One side alone opens nothing.
    two.platform.apply("in.yaml", &inbound("cart"))?;
    let thief = two.stolen(&bare, "cart")?;
    let refused_by_name = |when: &str| -> TestResult {
        let before = guarded.metrics()?.refusals("peer-unverified");
        let called = call(&bare, &thief, address, "GET", "/api/user");
        assert!(called.is_err(), "{when}: {called:?}");
        Ok(guarded.wait_for("count the refusal", LIMIT, |sidecar| {
            sidecar.metrics().is_ok_and(|metrics| metrics.refusals("peer-unverified") > before)
        })?)
    };
    refused_by_name("what the application has not let out")?;

    two.shop.apply("out.yaml", &outbound("cart"))?;
    carts.wait_until_known(address)?;
    wait_for("the Federation", || {
        ask(&cart, "GET", "/api/user").ok().filter(|answer| *answer == (200, String::new()))
    })?;
    assert_eq!(ask(&cart, "POST", "/api/user")?, refused("access-denied"), "another method");
    assert_eq!(ask(&cart, "GET", "/admin")?, refused("access-denied"), "another path");
    wait_for("the refusal of another identity", || {
        ask(&other, "GET", "/api/user").ok().filter(|answer| *answer == refused("access-denied"))
    })?;
    // Whoever has keys of the application is believed to be who they name, and no more: no sidecar of its own stands
    // in the way here. The policy that lets in everybody who is authenticated is not asked about it.
    let others = two.stolen(&bare, "other")?;
    for (thief, method, path, expected) in [
        (&thief, "GET", "/api/user", 200),
        (&thief, "POST", "/api/user", 403),
        (&thief, "GET", "/admin", 403),
        (&others, "GET", "/api/user", 403),
    ] {
        assert_eq!(call(&bare, thief, address, method, path)?, expected, "{method} {path} by hand");
    }
    let unexpected = |request: &String| !request.starts_with("GET /api/user ");
    assert!(!app_of_platform.requests().iter().any(unexpected), "{:#?}", app_of_platform.requests());

    let caller = format!("spiffe://{SHOP}/app/host/cart");
    let question = [
        "explain",
        "--from",
        &caller,
        "--to",
        "server",
        "--port",
        "8201",
        "--method",
        "GET",
        "--path",
        "/api/user",
    ];
    let socket =
        format!("unix:{}", two.platform.state().parent().ok_or("a folder")?.join("admin.sock").display());
    let choice = ["--control-plane", &socket, "--trust-domain", TRUST_DOMAIN];
    let explained = two.host.namespace().start(program(&[&question[..], &choice].concat()))?;
    assert!(explained.wait(LIMIT)?.success(), "{}", explained.output());
    assert!(explained.output().contains("allowed by federation/shop/orders"), "{}", explained.output());
    let undecided = two.host.namespace().start(program(&[&question[..], &choice[..2]].concat()))?;
    assert_eq!(undecided.wait(LIMIT)?.code(), Some(64), "{}", undecided.output());
    assert!(
        undecided.output().contains("choose one of shop.example, site.example"),
        "{}",
        undecided.output()
    );

    // What denies has its say, for foreigners too.
    let denial = format!("{{from: [{{trustDomain: {SHOP}}}], to: [{{paths: [/api/secret]}}]}}");
    two.platform.apply("deny.yaml", &deny("never", "server", &[&denial]))?;
    wait_for("the denial", || {
        ask(&cart, "GET", "/api/secret").ok().filter(|answer| *answer == refused("deny-rule"))
    })?;
    assert_eq!(ask(&cart, "GET", "/api/user")?, (200, String::new()));

    // Taken back while a stream is open.
    let mut stream = Plain::dial(&cart, events)?;
    stream.send(get("/events?n=100000&every=50", events).as_bytes())?;
    stream.read_until("id: 3\n")?;
    two.platform.delete("Federation", "shop")?;
    let (received, ended) = stream.rest();
    assert_ne!(ended, Ended::Open, "events still come");
    assert!(!received.ends_with(b"0\r\n\r\n"), "the stream pretends to be complete");
    wait_for("the refusal", || ask(&cart, "GET", "/api/user").ok().filter(|answer| answer.0 == 403))?;
    refused_by_name("after the Federation")?;
    Ok(())
}

/// A signed request by hand, and its status.
fn call(
    from: &Container,
    identity: &Identity,
    to: std::net::SocketAddr,
    method: &str,
    path: &str,
) -> Result<u16, IntruderError> {
    let (identity, draft) = (identity.clone(), Draft::new(method, path, &to.to_string()));
    inside(from.namespace(), move || async move {
        let mut caller = Caller::open(&identity, to).await?;
        let request = caller.sign(&draft)?;
        Ok(caller.call(&request).await?.status)
    })
}
