//! Control plane, policy, and the mesh as a whole.

use std::collections::{BTreeSet, HashSet};

use signet_identity::Class;
use signet_policy::{PolicyModel, rfc3339};
use signet_sync::proto::admin::{InfoResponse, Proxy, Revocation};
use x509_parser::parse_x509_certificate;

use super::finding::{Finding, Topic};
use super::machine;
use super::proxy::{Measure, ProxyReport, look_at};
use super::version::work_together;

/// Days before the end of a root or an issuer from which its renewal is to be planned, as `linkerd check` has it.
const AUTHORITY_DAYS: u64 = 60;

/// How long ago an area may have heard from its origin, which speaks every ten seconds.
const HEARD_MS: u64 = 60_000;

const DAY: u64 = 24 * 3_600;

/// Workloads without a sidecar that are named; more are counted.
const NAMED_MAX: usize = 20;

/// What a control plane answered.
#[derive(Debug)]
pub(crate) struct Answers {
    pub(crate) info: InfoResponse,
    pub(crate) proxies: Vec<Proxy>,
    /// The stored policy; none is stored, or why what is stored cannot be read here.
    pub(crate) model: Option<Result<PolicyModel, String>>,
    /// What was revoked because its device reported that it was tampered with.
    pub(crate) tampered: Vec<Revocation>,
}

impl Answers {
    fn compiled(&self) -> Option<&PolicyModel> {
        self.model.as_ref()?.as_ref().ok()
    }
}

/// Looks at control plane, policy and what is missing. `own_ms` is this program's clock when the answers came.
pub(crate) fn look_at_mesh(
    answers: &Answers,
    own_ms: u64,
    skew_max_ms: u64,
    own_version: &str,
) -> Vec<Finding> {
    let Answers { info, proxies, .. } = answers;
    let now = info.unix_ms / 1_000;
    let is_area = !info.area.is_empty();
    let mut findings = vec![if is_area { area(info) } else { origin(info) }];
    let versions = format!("signet {own_version}, control plane {}", info.version);
    findings.push(if work_together(own_version, &info.version) {
        Finding::ok(Topic::ControlPlaneVersion, versions)
    } else {
        Finding::warning(Topic::ControlPlaneVersion, format!("{versions}: more than one release apart"))
    });
    findings.push(machine::clock(now));
    let skew_ms = own_ms.abs_diff(info.unix_ms);
    if skew_ms > skew_max_ms {
        let message = format!("this machine's clock and the control plane's are {skew_ms} ms apart");
        findings.push(Finding::error(Topic::MachineClock, message));
    }
    findings.extend(info.root_certificates.iter().map(|root| root_expiry(root, now)));
    // An older control plane does not tell.
    if info.issuer_not_after > 0 && !is_area {
        findings.push(authority_expiry(Topic::IssuerExpiry, "issuer", info.issuer_not_after, now));
    }
    // An area passes on what its origin has.
    if !is_area {
        findings.push(policy(answers));
    }
    if proxies.is_empty() {
        findings.push(Finding::error(Topic::ProxyEnrolled, "no proxy has enrolled"));
    } else {
        let connected = proxies.iter().filter(|proxy| proxy.connected).count();
        findings.push(Finding::ok(Topic::ProxyEnrolled, format!("{connected} connected")));
        findings.extend(answers.compiled().and_then(|model| missing(model, proxies)));
    }
    findings.extend(tampered(answers));
    findings
}

fn origin(info: &InfoResponse) -> Finding {
    let message = format!("{}, revision {}", info.trust_domain, info.revision);
    Finding::ok(Topic::ControlPlaneReachable, message)
}

/// What an area says of itself. Its issuer's time is what it may go on for, and is renewed by its parent.
fn area(info: &InfoResponse) -> Finding {
    let InfoResponse { trust_domain, area, parent, .. } = info;
    let until = rfc3339(info.issuer_not_after);
    if info.unix_ms.saturating_sub(info.heard_ms) <= HEARD_MS {
        let message = format!("{trust_domain}, area {area} of {parent}, until {until}");
        return Finding::ok(Topic::ControlPlaneReachable, message);
    }
    let heard = match info.heard_ms {
        0 => "not heard since it started".to_owned(),
        at => format!("last heard {}", rfc3339(at / 1_000)),
    };
    let message =
        format!("{trust_domain}, area {area} is on its own: {parent} {heard}; it goes on until {until}");
    Finding::warning(Topic::ControlPlaneReachable, message)
}

/// Instances whose device was tampered with, each once: all of its certificates were revoked with one word.
fn tampered(answers: &Answers) -> Vec<Finding> {
    let said = |revocation: &Revocation| {
        (revocation.revoked_at, revocation.tampered.clone(), revocation.reason.clone())
    };
    let events: BTreeSet<_> = answers.tampered.iter().map(said).collect();
    let connected: HashSet<&str> =
        answers.proxies.iter().filter(|proxy| proxy.connected).map(|proxy| &*proxy.spiffe_id).collect();
    let finding = |(at, id, reason): &(u64, String, String)| {
        let message = format!("{id}, {}: {}", rfc3339(*at), reason.escape_debug());
        // Another instance serves: somebody let it in, or it is a replica.
        if connected.contains(id.as_str()) {
            Finding::warning(Topic::ProxyTampered, message)
        } else {
            Finding::error(Topic::ProxyTampered, message)
        }
    };
    events.iter().rev().take(NAMED_MAX).map(finding).collect()
}

/// Looks at every proxy.
pub(crate) fn look_at_proxies(answers: &Answers, skew_max_ms: u64) -> Vec<ProxyReport> {
    let Answers { info, proxies, .. } = answers;
    let measure = Measure { now_ms: info.unix_ms, skew_max_ms, version: &info.version };
    let look = |(index, proxy): (usize, &Proxy)| {
        // Those of one identity come in the order in which they enrolled.
        let later = proxies.iter().skip(index + 1);
        let newer = later.filter(|other| other.spiffe_id == proxy.spiffe_id && other.connected).count();
        look_at(proxy, newer, lifetime(answers.compiled(), proxy), measure)
    };
    proxies.iter().enumerate().filter_map(look).collect()
}

/// How long the proxy's certificates are made for, seconds.
fn lifetime(model: Option<&PolicyModel>, proxy: &Proxy) -> Option<u64> {
    let model = model?;
    let workload = model.workloads.iter().find(|workload| workload.id.as_str() == proxy.spiffe_id)?;
    let class = workload.id.parts().map_or(Class::External, |parts| parts.class);
    Some(model.lifetimes.of(class).as_secs())
}

fn root_expiry(der: &[u8], now: u64) -> Finding {
    match parse_x509_certificate(der) {
        Ok((_, root)) => {
            // Before 1970 counts as 1970.
            let not_after = u64::try_from(root.validity().not_after.timestamp()).unwrap_or_default();
            authority_expiry(Topic::RootExpiry, "root", not_after, now)
        }
        Err(error) => {
            Finding::error(Topic::RootExpiry, format!("a root certificate cannot be read: {error}"))
        }
    }
}

fn authority_expiry(id: Topic, what: &str, not_after: u64, now: u64) -> Finding {
    let at = rfc3339(not_after);
    match not_after.saturating_sub(now) {
        0 => Finding::error(id, format!("{what} ended {at}")),
        left if left < AUTHORITY_DAYS * DAY => {
            Finding::warning(id, format!("{what} ends in {} days, {at}", left / DAY))
        }
        left => Finding::ok(id, format!("{what} ends in {} days, {at}", left / DAY)),
    }
}

fn policy(answers: &Answers) -> Finding {
    let version = answers.info.sections.iter().find(|section| section.name == "policy");
    let version = version.map(|section| format!("policy {}.{}", section.epoch, section.counter));
    match &answers.model {
        None => Finding::error(Topic::PolicyStored, "no policy is stored"),
        Some(Ok(model)) => {
            let version = version.unwrap_or_else(|| "policy".to_owned());
            let (workloads, policies) = (model.workloads.len(), model.policies.len());
            let message = format!("{version}, {workloads} workloads, {policies} access policies");
            Finding::ok(Topic::PolicyStored, message)
        }
        Some(Err(wrong)) => {
            let message = format!("the stored policy is not understood by this version of signet: {wrong}");
            Finding::warning(Topic::PolicyStored, message)
        }
    }
}

/// Workloads that no connected proxy serves. Those outside the mesh have none.
fn missing(model: &PolicyModel, proxies: &[Proxy]) -> Option<Finding> {
    let connected: HashSet<&str> =
        proxies.iter().filter(|proxy| proxy.connected).map(|proxy| proxy.spiffe_id.as_str()).collect();
    // One that enrolled and is away is told of by itself.
    let enrolled: HashSet<&str> = proxies.iter().map(|proxy| proxy.spiffe_id.as_str()).collect();
    let expects_one = |id: &signet_identity::SpiffeId| {
        !id.is_control_plane() && id.parts().is_none_or(|parts| parts.class != Class::External)
    };
    let bare: Vec<&str> = model
        .workloads
        .iter()
        .filter(|workload| expects_one(&workload.id))
        .filter(|workload| {
            !connected.contains(workload.id.as_str()) && !enrolled.contains(workload.id.as_str())
        })
        .map(|workload| workload.name.as_str())
        .collect();
    if bare.is_empty() {
        return None;
    }
    let named = bare.iter().take(NAMED_MAX).copied().collect::<Vec<_>>().join(", ");
    let more = match bare.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(Finding::warning(Topic::SidecarMissing, format!("no sidecar has enrolled for {named}{more}")))
}

#[cfg(test)]
mod tests {
    use signet_policy::{compile, parse_manifests};
    use signet_sync::proto::admin::SectionInfo;

    use super::super::finding::Severity;
    use super::super::proxy::tests::{NOW, healthy};
    use super::*;

    const MANIFESTS: &str = "apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Mesh
metadata: {name: mesh}
spec: {trustDomain: mesh.example, networks: [{name: edge}]}
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: {name: store}
spec: {class: app, device: d1, network: edge}
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: {name: gateway}
spec: {class: app, device: d1, network: edge}
---
apiVersion: signet.mf2c-project.eu/v1alpha1
kind: Workload
metadata: {name: browser}
spec: {class: external, device: d1, network: edge}
";

    fn root(not_after: u64) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(not_after);
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    fn answers() -> Answers {
        let model = compile(&parse_manifests("mesh.yaml", MANIFESTS).unwrap()).unwrap();
        let gateway = "spiffe://mesh.example/app/d1/gateway".to_owned();
        Answers {
            info: InfoResponse {
                trust_domain: "mesh.example".to_owned(),
                unix_ms: NOW * 1_000,
                version: "0.2.0".to_owned(),
                root_certificates: vec![root(NOW + 61 * DAY)],
                issuer_not_after: NOW + 61 * DAY,
                sections: vec![SectionInfo { name: "policy".to_owned(), epoch: 1, counter: 3 }],
                ..InfoResponse::default()
            },
            proxies: vec![healthy(), Proxy { spiffe_id: gateway, ..healthy() }],
            model: Some(Ok(model)),
            tampered: Vec::new(),
        }
    }

    /// What is not well after a change, with how bad it is.
    fn found(change: impl FnOnce(&mut Answers)) -> Vec<(Topic, Severity)> {
        let mut answers = answers();
        change(&mut answers);
        let findings = look_at_mesh(&answers, NOW * 1_000, 30_000, "0.1.0");
        let bad = findings.into_iter().filter(|finding| finding.severity != Severity::Ok);
        bad.map(|finding| (finding.id, finding.severity)).collect()
    }

    #[test]
    fn a_mesh_that_is_well_has_no_findings_but_good_ones() {
        assert_eq!(found(|_| ()), []);
    }

    #[test]
    fn each_fault_of_the_mesh_is_found_by_its_name() {
        let (error, warning) = (Severity::Error, Severity::Warning);
        let root_ends = |at| found(|answers| answers.info.root_certificates.push(root(at)));
        assert_eq!(root_ends(NOW), [(Topic::RootExpiry, error)]);
        assert_eq!(root_ends(NOW + 59 * DAY), [(Topic::RootExpiry, warning)]);
        assert_eq!(
            found(|answers| answers.info.root_certificates = vec![vec![1]]),
            [(Topic::RootExpiry, error)]
        );
        let issuer_ends = |at| found(|answers| answers.info.issuer_not_after = at);
        assert_eq!(issuer_ends(NOW - 1), [(Topic::IssuerExpiry, error)]);
        assert_eq!(issuer_ends(NOW + DAY), [(Topic::IssuerExpiry, warning)]);
        assert_eq!(issuer_ends(0), [], "an older control plane does not tell");
        assert_eq!(
            found(|answers| answers.info.version = "0.3.0".to_owned()),
            [(Topic::ControlPlaneVersion, warning)]
        );
        assert_eq!(found(|answers| answers.info.unix_ms += 31_000), [(Topic::MachineClock, error)]);
        assert_eq!(found(|answers| answers.model = None), [(Topic::PolicyStored, error)]);
        assert_eq!(
            found(|answers| answers.model = Some(Err("unknown kind".to_owned()))),
            [(Topic::PolicyStored, warning)]
        );
        assert_eq!(found(|answers| answers.proxies.clear()), [(Topic::ProxyEnrolled, error)]);
    }

    #[test]
    fn a_workload_without_a_sidecar_is_named_and_one_outside_the_mesh_needs_none() {
        let mut answers = answers();
        answers.proxies.pop();
        let findings = look_at_mesh(&answers, NOW * 1_000, 30_000, "0.1.0");
        let missing = findings.iter().find(|finding| finding.id == Topic::SidecarMissing).unwrap();
        assert_eq!(missing.severity, Severity::Warning);
        assert_eq!(missing.message, "no sidecar has enrolled for gateway");
    }

    #[test]
    fn a_device_that_was_tampered_with_is_told_once_and_is_an_error_until_another_serves() {
        let revocation = |id: &str| Revocation {
            reason: "tampered: the tamper file says \"1\"".to_owned(),
            revoked_at: NOW,
            tampered: id.to_owned(),
            ..Revocation::default()
        };
        let lost = "spiffe://mesh.example/app/d1/lost";
        let twice = |id: &str| found(|answers| answers.tampered = vec![revocation(id), revocation(id)]);
        assert_eq!(twice(lost), [(Topic::ProxyTampered, Severity::Error)]);
        assert_eq!(
            twice("spiffe://mesh.example/app/d1/gateway"),
            [(Topic::ProxyTampered, Severity::Warning)]
        );
    }

    #[test]
    fn only_what_enrolled_later_takes_a_lost_instance_s_place() {
        let mut answers = answers();
        let lost = || Proxy { connected: false, status: None, ..healthy() };
        answers.proxies = vec![lost(), healthy()];
        assert!(look_at_proxies(&answers, 30_000).iter().all(|report| report.ok));
        answers.proxies = vec![healthy(), lost()];
        let reports = look_at_proxies(&answers, 30_000);
        assert_eq!(reports.iter().map(|report| report.ok).collect::<Vec<_>>(), [true, false]);
        // Another workload's does not.
        answers.proxies =
            vec![lost(), Proxy { spiffe_id: "spiffe://mesh.example/app/d1/gateway".to_owned(), ..healthy() }];
        assert!(!look_at_proxies(&answers, 30_000)[0].ok);
    }
}
