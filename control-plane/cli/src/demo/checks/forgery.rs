//! Messages that nobody should take, each refused for its own reason.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use signet_identity::{Authority, KeyRequest, SpiffeId, TrustDomain};
use signet_signature::MeshSigner;

use super::CheckError;
use crate::demo::agents::LOOPBACK_PORT;
use crate::demo::report::{Outcome, Report};
use crate::demo::story::{Stage, TRUST_DOMAIN};
use crate::lab::mesh::intruder::{Answer, Caller, Draft, Identity, IntruderError, Stream, inside};
use crate::lab::mesh::{MeshError, Sidecar, call, wait_until};

/// How long a revocation may take to reach every sidecar.
const REVOCATION_LIMIT: Duration = Duration::from_secs(10);
/// How long a sidecar may take to count what it has refused.
const COUNT_LIMIT: Duration = Duration::from_secs(5);
/// Where all of them are sent.
const CIMI: u16 = 8201;

/// What is done to a properly signed request, and what must come back.
struct Forgery {
    name: &'static str,
    forge: fn(Caller, Target) -> Forging,
    status: u16,
    /// None for the one that nothing is done to.
    code: Option<&'static str>,
}

type Forging = futures_util::future::LocalBoxFuture<'static, Result<Answer, IntruderError>>;

/// Whom the forger speaks to, and as whom.
#[derive(Clone)]
struct Target {
    identity: Identity,
    address: SocketAddr,
}

impl Target {
    fn order(&self) -> Draft {
        let body = br#"{"name":"pump-8","value":1}"#;
        Draft::new("POST", "/api/digest", &self.address.to_string()).with_body("application/json", body)
    }
}

const FORGERIES: [Forgery; 7] = [
    Forgery { name: "signed by hand as a sidecar would: accepted", forge: nothing, status: 200, code: None },
    Forgery {
        name: "one bit of the body turned",
        forge: tampered,
        status: 400,
        code: Some("digest-mismatch"),
    },
    Forgery { name: "the same message again", forge: replayed, status: 400, code: Some("replay") },
    Forgery {
        name: "the signature taken off",
        forge: stripped,
        status: 400,
        code: Some("signature-missing"),
    },
    Forgery { name: "signed with another key", forge: wrong_key, status: 400, code: Some("bad-signature") },
    Forgery { name: "moved to another connection", forge: moved, status: 400, code: Some("replay") },
    Forgery {
        name: "CONNECT, to tunnel past the policy",
        forge: tunnelled,
        status: 403,
        code: Some("connect-refused"),
    },
];

/// Makes the checks.
pub(in crate::demo) fn tell(report: &mut Report, stage: &Stage) -> Result<(), CheckError> {
    report.heading("A forger with a stolen join token of agent B's lifecycle manager");
    let stranger = stage.stranger().namespace();
    let token = stage.mesh.token("b-lm-um")?;
    let identity = Identity::enrol(stranger, stage.mesh.address(), token)?;
    let target = Target { identity, address: stage.agents.published(CIMI) };
    for forgery in &FORGERIES {
        report.check(forgery.name, || forgery.check(stage, target.clone()));
    }
    report.check("bytes instead of HTTP, to a port with HTTP rules", || opaque(stage, target.clone()));
    report.check("its certificate revoked, no connection at all", || revoked(stage, target.clone()));

    report.heading("Others who should not get through");
    report.check("certificates of a foreign trust domain", || {
        foreign(stage, target.clone(), "elsewhere.example")
    });
    report
        .check("certificates of a false authority of our own name", || foreign(stage, target, TRUST_DOMAIN));
    report.check("a workload without permission", || without_permission(stage));
    report.check("a container without a sidecar", || in_clear(stage));
    report.check("a service at loopback, its port published", || loopback(stage));
    Ok(())
}

impl Forgery {
    fn check(&self, stage: &Stage, target: Target) -> Result<Outcome, IntruderError> {
        let forge = self.forge;
        let answer = inside(stage.stranger().namespace(), move || async move {
            forge(Caller::open(&target.identity, target.address).await?, target).await
        })?;
        let (status, code) = (answer.status, answer.code());
        let unit = self.code.unwrap_or("OK");
        Ok(Outcome::holds(status.into(), unit)
            .only_if(status == self.status && code.as_deref() == self.code, || {
                format!("expected {} {unit}, found {status} {}", self.status, code.unwrap_or_default())
            }))
    }
}

fn nothing(mut caller: Caller, target: Target) -> Forging {
    Box::pin(async move {
        let signed = caller.sign(&target.order())?;
        caller.call(&signed).await
    })
}

fn tampered(mut caller: Caller, target: Target) -> Forging {
    Box::pin(async move {
        let signed = caller.sign(&target.order())?.with_tampered_body();
        caller.call(&signed).await
    })
}

fn replayed(mut caller: Caller, target: Target) -> Forging {
    Box::pin(async move {
        let signed = caller.sign(&target.order())?;
        caller.call(&signed).await?;
        caller.call(&signed).await
    })
}

fn stripped(mut caller: Caller, target: Target) -> Forging {
    Box::pin(async move {
        let signed = caller.sign(&target.order())?.without("signature").without("signature-input");
        caller.call(&signed).await
    })
}

fn wrong_key(mut caller: Caller, target: Target) -> Forging {
    Box::pin(async move {
        let other = KeyRequest::new_signing()?;
        caller.signer = MeshSigner::new(other.key.secret_der(), target.identity.signing.keyid())?;
        let signed = caller.sign(&target.order())?;
        caller.call(&signed).await
    })
}

fn moved(mut caller: Caller, target: Target) -> Forging {
    Box::pin(async move {
        let signed = caller.sign(&target.order())?;
        Caller::open(&target.identity, target.address).await?.call(&signed).await
    })
}

fn tunnelled(mut caller: Caller, target: Target) -> Forging {
    Box::pin(async move {
        let authority = target.address.to_string();
        let signed = caller.sign(&Draft::new("CONNECT", &authority, &authority))?;
        caller.call(&signed).await
    })
}

/// A record stream to a port whose rules look into HTTP.
fn opaque(stage: &Stage, target: Target) -> Result<Outcome, CheckError> {
    const CODE: &str = "opaque-to-l7-port";
    let cimi = SpiffeId::parse("spiffe://mf2c.example/agent/agent-a/cimi");
    let opened = inside(stage.stranger().namespace(), move || async move {
        let cimi = cimi.map_err(|error| IntruderError::Message(error.to_string()))?;
        match Stream::open(&target.identity, target.address, (&cimi, CIMI), false).await {
            Ok(_) => Ok(None),
            Err(IntruderError::Refused(code)) => Ok(Some(code)),
            Err(error) => Err(error),
        }
    })?;
    let counted = counted(stage.sidecar("a-cimi"), CODE, 0)?;
    Ok(Outcome::holds(counted as f64, CODE)
        .only_if(opened.as_deref() == Some(CODE), || format!("found {opened:?}")))
}

/// Once the theft is known, the certificate that came of it is worth nothing.
fn revoked(stage: &Stage, target: Target) -> Result<Outcome, CheckError> {
    let started = Instant::now();
    stage.mesh.revoke(target.identity.tls.fingerprint, "join token stolen")?;
    let closed = wait_until(REVOCATION_LIMIT, || {
        let forger = target.clone();
        let attempt = inside(stage.stranger().namespace(), move || async move { order(&forger).await });
        attempt.is_err_and(|error| error.is_cut()).then_some(())
    });
    Ok(Outcome::holds(started.elapsed().as_secs_f64() * 1e3, "ms from revocation to effect")
        .only_if(closed.is_some(), || "it is still accepted".into()))
}

/// Certificates of an authority of one's own, whatever it calls itself.
fn foreign(stage: &Stage, target: Target, domain: &'static str) -> Result<Outcome, CheckError> {
    let sidecar = stage.sidecar("a-cimi");
    let before = sidecar.metrics()?.refusals("peer-unverified");
    let result = inside(stage.stranger().namespace(), move || async move {
        let malformed = |error: signet_identity::IdError| IntruderError::Message(error.to_string());
        let trust_domain = TrustDomain::parse(domain).map_err(malformed)?;
        let authority = Authority::create(trust_domain, SystemTime::now(), Duration::from_secs(3600))?;
        let id = SpiffeId::parse(&format!("spiffe://{domain}/agent/agent-b/lm-um")).map_err(malformed)?;
        let identity = Identity::issue(&authority, &id, target.identity.bundle.clone())?;
        match order(&Target { identity, ..target }).await {
            Ok(answer) => Ok(format!("answer {}", answer.status)),
            Err(error) if error.is_cut() => Ok(String::new()),
            Err(error) => Err(error),
        }
    })?;
    let counted = counted(sidecar, "peer-unverified", before)?;
    Ok(Outcome::holds(counted as f64, "peer-unverified")
        .only_if(result.is_empty() && counted > 0, || format!("found {counted} refusals, {result}")))
}

/// A proper call.
async fn order(target: &Target) -> Result<Answer, IntruderError> {
    let mut caller = Caller::open(&target.identity, target.address).await?;
    let signed = caller.sign(&target.order())?;
    caller.call(&signed).await
}

/// Refused before anything leaves the caller's own container.
fn without_permission(stage: &Stage) -> Result<Outcome, CheckError> {
    let address = stage.agents.published(CIMI).to_string();
    let from = stage.agents.container("b-app").namespace();
    stage.sidecar("b-app").wait_until_known(stage.agents.published(CIMI))?;
    let transcript = call(from, &["http", "--to", &address, "--path", "/api"])?;
    let exchange = transcript.exchanges.first();
    let status = exchange.and_then(|exchange| exchange.status).unwrap_or_default();
    let text = exchange.and_then(|exchange| exchange.body.text.clone()).unwrap_or_default();
    Ok(Outcome::holds(status.into(), "access-denied")
        .only_if(status == 403 && text.contains("\"access-denied\""), || format!("found {status} {text}")))
}

/// Plaintext to a meshed port is reset, never answered.
fn in_clear(stage: &Stage) -> Result<Outcome, CheckError> {
    let sidecar = stage.sidecar("a-cimi");
    let before = sidecar.metrics()?.refusals("plaintext-refused");
    let address = stage.agents.published(CIMI).to_string();
    let transcript = call(stage.stranger().namespace(), &["http", "--to", &address, "--path", "/api"])?;
    let answered = transcript.exchanges.iter().find_map(|exchange| exchange.status);
    let counted = counted(sidecar, "plaintext-refused", before)?;
    Ok(Outcome::holds(counted as f64, "plaintext-refused").only_if(answered.is_none() && counted > 0, || {
        format!("found {counted} refusals, answer {answered:?}")
    }))
}

/// The app is dialled at its container's address: what listens at loopback is not there.
fn loopback(stage: &Stage) -> Result<Outcome, CheckError> {
    let reach = |workload: &str, address: SocketAddr| {
        let arguments = ["tcp", "--to", &address.to_string()];
        call(stage.agents.container(workload).namespace(), &arguments).map(|transcript| {
            transcript.exchanges.first().and_then(|exchange| exchange.body.text.clone()).unwrap_or_default()
        })
    };
    let published = stage.agents.published(LOOPBACK_PORT);
    stage.sidecar("b-lm-um").wait_until_known(published)?;
    let at_home = reach("a-app", SocketAddr::from(([127, 0, 0, 1], LOOPBACK_PORT)))?;
    let from_elsewhere = reach("b-lm-um", published)?;
    let refusals = counted(stage.sidecar("a-app"), "upstream-unreachable", 0)?;
    Ok(Outcome::holds(refusals as f64, "upstream-unreachable")
        .only_if(at_home.contains("secret"), || "it is not there at all".into())
        .only_if(from_elsewhere.is_empty() && refusals > 0, || {
            format!("found {refusals} refusals, answer {from_elsewhere:?}")
        }))
}

/// Refusals with this code since `before`; at least one, if it is counted in time: the caller may see its connection end
/// before the sidecar has counted why.
fn counted(sidecar: &Sidecar, code: &str, before: u64) -> Result<u64, MeshError> {
    let look = || match sidecar.metrics().map(|metrics| metrics.refusals(code).saturating_sub(before)) {
        Ok(0) => None,
        other => Some(other),
    };
    wait_until(COUNT_LIMIT, look).unwrap_or(Ok(0))
}
