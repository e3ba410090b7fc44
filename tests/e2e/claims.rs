//! What a stolen key, or none, gets from the control plane.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use signet_cli::lab::mesh::Sidecar;
use signet_cli::lab::mesh::intruder::{Identity, IntruderError, inside};
use signet_cli::lab::runner::{Test, TestResult};
use signet_identity::{ALPN_CONTROL, Authority, KeyRequest, client_config, pinned_client_config};
use signet_sync::PROTOCOL;
use signet_sync::proto::admin::InfoRequest;
use signet_sync::proto::admin::admin_client::AdminClient;
use signet_sync::proto::sync::control_client::ControlClient;
use signet_sync::proto::sync::identity_client::IdentityClient;
use signet_sync::proto::sync::proxy_message::Message;
use signet_sync::proto::sync::{Hello, ProxyMessage, RenewRequest};
use signet_tests::claimant::channel;
use signet_tests::manifest::{TRUST_DOMAIN, allow, mesh, policy, workload};
use signet_tests::plain::get;
use signet_tests::{Claimant, Failure, Plain, Recorder, Site, id, place};
use tonic::Code;
use tonic::transport::Channel;

pub(crate) const TESTS: &[Test] = &[
    ("stolen_key_claims_nothing_of_others", stolen_key_claims_nothing_of_others),
    ("strangers_get_nothing_from_the_control_plane", strangers_get_nothing_from_the_control_plane),
    ("identity_of_the_control_plane_is_given_to_nobody", identity_of_the_control_plane_is_given_to_nobody),
];

const HTTP: u16 = 8201;
const HOUR: Duration = Duration::from_secs(3600);

fn site() -> Result<Site, Failure> {
    let ports = "ports: [{port: 8201, protocol: http}]";
    let advertise = "advertise: [{network: area, address: 10.0.0.1, port: 8201, targetPort: 8201}]";
    let manifests = [
        mesh(&[]),
        // Its stream comes over IPv4: its other address is its own because the operator says so.
        workload("server", &[ports, advertise, "addresses: [172.18.0.2, 'fd18::2']"]),
        workload("client", &[]),
        workload("caller", &[ports]),
        workload("other", &[ports, "addresses: [172.18.0.99]"]),
        policy("open", "server", &[&allow("client", "")]),
    ];
    Site::new(&manifests)
}

fn stolen_key_claims_nothing_of_others() -> TestResult {
    let site = site()?;
    let (server, client) = (site.container("server")?, site.container("client")?);
    let stranger = site.container("stranger")?;
    let app = Recorder::http(&server, HTTP)?;
    let [_server, sidecar] = site.sidecars([(&server, "server"), (&client, "client")])?;
    let victim = place(&server, HTTP);
    sidecar.wait_until_known(victim)?;
    let before = entries(&sidecar, victim)?;
    assert_eq!(before.len(), 1, "{before:?}");

    let thief = site.intruder(&stranger, "caller")?;
    let (own, undeclared) = (place(&stranger, HTTP), place(&stranger, 9999));
    let published = SocketAddr::from((site.host.ipv4(), HTTP));
    let outside = SocketAddr::from(([192, 0, 2, 1], HTTP));
    let loopback = SocketAddr::from(([127, 0, 0, 1], HTTP));

    // Seen from its own address it is told at once that the place is another's.
    let claims = Claimant::start(&stranger, &thief, site.mesh.address(), &[victim, undeclared, own])?;
    assert_eq!(claims.verdict(victim)?.err().as_deref(), Some("source-mismatch"));
    assert_eq!(claims.verdict(undeclared)?.err().as_deref(), Some("port-not-declared"));
    assert_eq!(claims.verdict(own)?, Ok(()), "its own place");
    // What an operator tied to other addresses is not to be had at this one.
    let tied = site.intruder(&stranger, "other")?;
    let tied = Claimant::start(&stranger, &tied, site.mesh.address(), &[own])?;
    assert_eq!(tied.verdict(own)?.err().as_deref(), Some("address-not-listed"));
    drop((claims, tied));

    let ipv6 = SocketAddr::from((server.ipv6(), HTTP));
    sidecar.wait_until_known(ipv6)?;

    // Behind a gateway, where all containers of a host look alike, who came first counts.
    let gateway = format!("gateways: [{}, ", stranger.ipv4());
    site.mesh.apply("gateway.yaml", &mesh(&[]).replace("gateways: [", &gateway))?;
    let free = SocketAddr::from(([172, 18, 0, 77], HTTP));
    let all = [victim, ipv6, published, outside, loopback, free];
    let claims = Claimant::start(&stranger, &thief, site.mesh.address(), &all)?;
    let refused = |place| -> Result<String, Failure> { Ok(claims.verdict(place)?.err().unwrap_or_default()) };
    assert_eq!(refused(victim)?, "address-taken");
    assert_eq!(refused(ipv6)?, "address-taken");
    let codes = ["address-outside-network", "advertised-by-another"];
    assert!(codes.contains(&&*refused(published)?), "{}", refused(published)?);
    assert_eq!(refused(outside)?, "address-outside-network");
    assert_eq!(refused(loopback)?, "address-outside-network");
    assert_eq!(claims.verdict(free)?, Ok(()), "a place of nobody");

    // The accepted place is pushed in the same section as all others.
    sidecar.wait_until_known(free)?;
    assert_eq!(entries(&sidecar, victim)?, before, "the older entry stays");
    assert_eq!(Plain::ask(&client, victim, &get("/api", "server"))?.status, 200, "and leads where it led");
    assert_eq!(app.requests().len(), 1);
    let places = sidecar.directory()?.to_string();
    for place in [outside, loopback, undeclared] {
        assert!(!places.contains(&format!("\"{place}\"")), "{place} in {places}");
    }
    Ok(())
}

/// What a sidecar knows of a place.
fn entries(sidecar: &Sidecar, place: SocketAddr) -> Result<Vec<serde_json::Value>, Failure> {
    let directory = sidecar.directory()?;
    let of_place = |entry: &&serde_json::Value| entry["address"] == place.to_string().as_str();
    Ok(directory.as_array().ok_or("the directory is a list")?.iter().filter(of_place).cloned().collect())
}

fn strangers_get_nothing_from_the_control_plane() -> TestResult {
    let site = site()?;
    let stranger = site.container("stranger")?;
    let own = site.intruder(&stranger, "caller")?;
    let (control_plane, authority) = (site.mesh.address(), site.authority()?);
    let pin = authority.root_spki_sha256();

    inside(stranger.namespace(), move || async move {
        let anonymous = pinned_client_config(pin, None, &[ALPN_CONTROL])?;
        let channel_of = |config| async move {
            channel(config, control_plane).await.map_err(|error| IntruderError::Message(format!("{error:?}")))
        };
        let nobody = channel_of(anonymous).await?;
        assert_eq!(renewed(&nobody).await, Code::Unauthenticated, "a renewal for nobody");
        assert_eq!(connected(&nobody).await, Code::Unauthenticated, "a control stream for nobody");
        let operator = AdminClient::new(nobody).info(InfoRequest {}).await;
        assert_eq!(
            operator.map(|_| ()).map_err(|status| status.code()),
            Err(Code::Unimplemented),
            "operators are elsewhere"
        );

        // Certified by the authority, and yet the control plane never let it in.
        let unknown = Identity::issue(&authority, &id("caller"), own.bundle.clone())?;
        let unknown = channel_of(client_config(&unknown.tls, &unknown.bundle, &[ALPN_CONTROL])?).await?;
        assert_eq!(renewed(&unknown).await, Code::Unauthenticated, "a renewal for an unknown instance");
        assert_eq!(
            connected(&unknown).await,
            Code::Unauthenticated,
            "a control stream for an unknown instance"
        );

        let domain = own.bundle.trust_domain().clone();
        let namesake = Authority::create(domain, SystemTime::now(), HOUR)?;
        let forged = Identity::issue(&namesake, &id("caller"), own.bundle.clone())?;
        // Refused in the handshake, which a TLS 1.3 client notices with the first answer.
        if let Ok(forged) = channel_of(client_config(&forged.tls, &forged.bundle, &[ALPN_CONTROL])?).await {
            assert_ne!(renewed(&forged).await, Code::Ok, "a renewal for a forged certificate");
        }

        let known = channel_of(client_config(&own.tls, &own.bundle, &[ALPN_CONTROL])?).await?;
        assert_eq!(renewed(&known).await, Code::Ok, "a renewal for the one it let in");
        Ok(())
    })?;
    assert!(site.mesh.proxies()?.iter().all(|proxy| !proxy.connected), "nobody has a stream");
    Ok(())
}

pub(crate) async fn renewed(channel: &Channel) -> Code {
    let (Ok(tls), Ok(signing)) = (KeyRequest::new_tls(), KeyRequest::new_signing()) else {
        return Code::Internal;
    };
    let request = RenewRequest {
        protocol: PROTOCOL,
        min_protocol: PROTOCOL,
        tls_csr: tls.csr,
        signing_csr: signing.csr,
    };
    IdentityClient::new(channel.clone())
        .renew(request)
        .await
        .map_or_else(|status| status.code(), |_| Code::Ok)
}

pub(crate) async fn connected(channel: &Channel) -> Code {
    let version = "by hand".to_owned();
    let hello = Hello {
        protocol: PROTOCOL,
        min_protocol: PROTOCOL,
        version,
        have: Vec::new(),
        claims: Vec::new(),
        sealing_key: Vec::new(),
    };
    let messages = tokio_stream::once(ProxyMessage { message: Some(Message::Hello(hello)) });
    let stream = match ControlClient::new(channel.clone()).connect(messages).await {
        Ok(stream) => stream,
        Err(status) => return status.code(),
    };
    stream.into_inner().message().await.map_or_else(|status| status.code(), |_| Code::Ok)
}

/// Its name is what an enrolling sidecar gives its token to.
fn identity_of_the_control_plane_is_given_to_nobody() -> TestResult {
    let site = site()?;
    let posing = workload("posing", &["workload: control-plane"])
        .replace("class: app", "class: platform")
        .replace("device: host", "device: control-plane");
    if site.mesh.apply("posing.yaml", &posing).is_ok() {
        let token = site.mesh.token("posing");
        assert!(
            token.is_err(),
            "there is a token for spiffe://{TRUST_DOMAIN}/platform/control-plane/control-plane"
        );
    }
    Ok(())
}
