//! One sidecar, by what it last reported.

use std::time::Duration;

use serde::Serialize;
use signet_policy::{Refusal, rfc3339};
use signet_sync::proto::admin::{Proxy, ProxyStatus, SectionState};

use super::finding::{Finding, Severity, Topic};
use super::version::work_together;

/// Oldest report of a proxy that still says something about it: proxies report every few seconds.
const REPORT_AGE_MAX: Duration = Duration::from_secs(60);

/// Renewal begins at half of a certificate's life, give or take; with so little left it has failed for a while.
const RENEWAL_OVERDUE: u64 = 3;

/// Codes that an undisturbed mesh with policies as they are meant does not count. `not-ready` does every start.
const TROUBLE: [Refusal; 28] = [
    Refusal::BadSignature,
    Refusal::CheckpointMismatch,
    Refusal::CheckpointOverdue,
    Refusal::DigestMismatch,
    Refusal::EgressUnverified,
    Refusal::LoopDetected,
    Refusal::NoPolicy,
    Refusal::OpaqueToL7Port,
    Refusal::Overloaded,
    Refusal::PeerIdentityMismatch,
    Refusal::PeerUnverified,
    Refusal::PlaintextRefused,
    Refusal::PolicyStale,
    Refusal::RecipientUnknown,
    Refusal::RecordMalformed,
    Refusal::Replay,
    Refusal::ResponseUnverified,
    Refusal::SealBroken,
    Refusal::SealMissing,
    Refusal::SealUnknownKey,
    Refusal::SignatureClock,
    Refusal::SignatureCoverage,
    Refusal::SignatureExpired,
    Refusal::SignatureMalformed,
    Refusal::SignatureMissing,
    Refusal::SignatureMode,
    Refusal::SignatureUnknownKey,
    Refusal::UnmeshedDestination,
];

/// What proxies are measured by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measure<'a> {
    /// The control plane's clock, by which certificates and reports go: Unix milliseconds.
    pub(crate) now_ms: u64,
    /// Most milliseconds that a proxy's clock may be off.
    pub(crate) skew_max_ms: u64,
    /// The control plane's version.
    pub(crate) version: &'a str,
}

/// One proxy and all that was looked at.
#[derive(Debug, Serialize)]
pub(crate) struct ProxyReport {
    pub(crate) spiffe_id: String,
    /// Fingerprint of its certificate.
    pub(crate) instance: String,
    pub(crate) connected: bool,
    /// No error.
    pub(crate) ok: bool,
    pub(crate) network: String,
    pub(crate) version: String,
    pub(crate) checks: Vec<Finding>,
}

/// Looks at a proxy. `newer` is how many connected ones of its identity enrolled after it, `lifetime_s` how long its
/// certificates are made for. `None` for one that is over: its certificates have ended, and newer ones are there.
pub(crate) fn look_at(
    proxy: &Proxy,
    newer: usize,
    lifetime_s: Option<u64>,
    measure: Measure<'_>,
) -> Option<ProxyReport> {
    let checks = if proxy.connected {
        let mut checks = vec![Finding::ok(Topic::ProxyConnected, "connected")];
        match &proxy.status {
            None => checks.push(Finding::error(Topic::ProxyReport, "connected, and has not reported yet")),
            Some(status) => checks.extend(of_status(status, lifetime_s, measure)),
        }
        checks.push(policy_version(&proxy.sections));
        if !proxy.last_nack.is_empty() {
            checks.push(Finding::error(Topic::PolicyRefused, format!("refused {}", proxy.last_nack)));
        }
        checks.push(version(&proxy.version, measure.version));
        checks
    } else if !proxy.area.is_empty() && proxy.not_after > measure.now_ms / 1_000 {
        let end = rfc3339(proxy.not_after);
        vec![Finding::ok(Topic::ProxyConnected, format!("in area {}, certified until {end}", proxy.area))]
    } else {
        vec![gone(proxy, newer, measure.now_ms / 1_000)?]
    };
    Some(ProxyReport {
        spiffe_id: proxy.spiffe_id.clone(),
        instance: proxy.instance.clone(),
        connected: proxy.connected,
        ok: checks.iter().all(|check| check.severity != Severity::Error),
        network: proxy.network.clone(),
        version: proxy.version.clone(),
        checks,
    })
}

/// A proxy without a stream. One that lost its volume enrolled anew and serves under another certificate.
fn gone(proxy: &Proxy, newer: usize, now: u64) -> Option<Finding> {
    let ended = proxy.not_after <= now;
    let end =
        format!("its certificate {} {}", if ended { "ended" } else { "ends" }, rfc3339(proxy.not_after));
    match newer {
        0 => Some(Finding::error(Topic::ProxyConnected, format!("not connected; {end}"))),
        _ if ended => None,
        newer => {
            let message =
                format!("not connected, and {newer} that enrolled later as the same workload are; {end}");
            let hint = format!(
                "nothing, if its volume was lost; else end it for good: `signet revoke --certificate {} --reason lost`",
                proxy.instance
            );
            Some(Finding { hint: Some(hint), ..Finding::warning(Topic::ProxySuperseded, message) })
        }
    }
}

fn of_status(status: &ProxyStatus, lifetime_s: Option<u64>, measure: Measure<'_>) -> Vec<Finding> {
    // The proxy's own clock stamped the report; what it is off by is known.
    let stamped = i128::from(status.unix_ms) + i128::from(status.clock_offset_ms);
    let age_ms = (i128::from(measure.now_ms) - stamped).max(0);
    let clock = clock(status, measure.skew_max_ms);
    let captured = if status.capture_in_force { "rules are in force" } else { "rules are not in force" };
    let canary = if status.canary_ok {
        "the canary came out at the sidecar"
    } else {
        "the canary has not come out at the sidecar"
    };
    let mut findings = vec![
        Finding::holds(
            Topic::ProxyReport,
            age_ms <= REPORT_AGE_MAX.as_millis() as i128,
            format!("reported {} s ago", age_ms / 1_000),
        ),
        Finding::holds(Topic::CaptureRules, status.capture_in_force, captured),
        Finding::holds(Topic::LeakCanary, status.canary_ok, canary),
        certificate(Topic::TlsCertificate, status.tls_not_after, lifetime_s, measure.now_ms),
        certificate(Topic::SigningCertificate, status.signing_not_after, lifetime_s, measure.now_ms),
        clock,
    ];
    findings.extend(refusals(status));
    findings
}

/// The time that the proxy goes by, and its machine's clock, which it may have ceased to believe.
fn clock(status: &ProxyStatus, skew_max_ms: u64) -> Finding {
    let (offset_ms, wall_ms) = (status.clock_offset_ms.unsigned_abs(), status.wall_ahead_ms.unsigned_abs());
    let (skew_ms, ahead, note) = if wall_ms > offset_ms {
        (wall_ms, status.wall_ahead_ms > 0, ", and not gone by")
    } else {
        (offset_ms, status.clock_offset_ms <= 0, "")
    };
    let way = if ahead { "ahead" } else { "behind" };
    Finding::holds(Topic::ProxyClock, skew_ms <= skew_max_ms, format!("clock {skew_ms} ms {way}{note}"))
}

fn certificate(id: Topic, not_after: u64, lifetime_s: Option<u64>, now_ms: u64) -> Finding {
    let now = now_ms / 1_000;
    match not_after.checked_sub(now) {
        Some(left) if left > 0 => {
            let message = format!("ends in {left} s, at {}", rfc3339(not_after));
            if lifetime_s.is_some_and(|lifetime| left < lifetime / RENEWAL_OVERDUE) {
                Finding::warning(id, format!("{message}, and its renewal is overdue"))
            } else {
                Finding::ok(id, message)
            }
        }
        _ => Finding::error(id, format!("ended {} s ago, at {}", now - not_after, rfc3339(not_after))),
    }
}

/// Refusals that tell of something broken; what policy keeps out is not among them.
fn refusals(status: &ProxyStatus) -> Option<Finding> {
    let counted = TROUBLE.iter().filter_map(|refusal| {
        let count = status.refused.get(refusal.code()).filter(|count| **count > 0)?;
        Some(format!("{count} × {}", refusal.code()))
    });
    let counted: Vec<String> = counted.collect();
    if counted.is_empty() {
        return None;
    }
    let message = format!("refused since its start: {}", counted.join(", "));
    Some(Finding::warning(Topic::ProxyRefusals, message))
}

fn policy_version(sections: &[SectionState]) -> Finding {
    let id = Topic::PolicyVersion;
    let behind = sections
        .iter()
        .find(|section| (section.acked_epoch, section.acked_counter) != (section.epoch, section.counter));
    match (behind, sections.iter().find(|section| section.name == "policy")) {
        (Some(section), _) => {
            let have = format!("{}.{}", section.acked_epoch, section.acked_counter);
            let wanted = format!("{}.{}", section.epoch, section.counter);
            Finding::error(id, format!("{} is at {have}, not at {wanted}", section.name))
        }
        (None, Some(policy)) => Finding::ok(id, format!("policy {}.{}", policy.epoch, policy.counter)),
        (None, None) => Finding::error(id, "no policy was sent yet"),
    }
}

fn version(own: &str, control_plane: &str) -> Finding {
    let message = format!("version {own}, control plane {control_plane}");
    if work_together(own, control_plane) {
        Finding::ok(Topic::ProxyVersion, message)
    } else {
        Finding::warning(Topic::ProxyVersion, format!("{message}: more than one release apart"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const NOW: u64 = 1_800_000_000;
    pub(crate) const MEASURE: Measure<'static> =
        Measure { now_ms: NOW * 1_000, skew_max_ms: 30_000, version: "0.2.0" };

    pub(crate) fn healthy() -> Proxy {
        Proxy {
            spiffe_id: "spiffe://mesh.example/app/d1/store".to_owned(),
            connected: true,
            status: Some(ProxyStatus {
                unix_ms: NOW * 1_000,
                capture_in_force: true,
                canary_ok: true,
                tls_not_after: NOW + 1_800,
                signing_not_after: NOW + 1_800,
                ..ProxyStatus::default()
            }),
            sections: vec![SectionState {
                name: "policy".to_owned(),
                epoch: 1,
                counter: 3,
                acked_epoch: 1,
                acked_counter: 3,
            }],
            version: "0.1.7".to_owned(),
            not_after: NOW + 1_800,
            ..Proxy::default()
        }
    }

    fn looked_at(proxy: &Proxy, newer: usize) -> Option<ProxyReport> {
        look_at(proxy, newer, Some(3_600), MEASURE)
    }

    /// What is not well after a change, with how bad it is.
    fn found(change: impl FnOnce(&mut Proxy, &mut ProxyStatus)) -> Vec<(Topic, Severity)> {
        let mut proxy = healthy();
        let mut status = proxy.status.take().unwrap();
        change(&mut proxy, &mut status);
        proxy.status = Some(status);
        let report = looked_at(&proxy, 0).unwrap();
        let bad: Vec<_> = report.checks.iter().filter(|check| check.severity != Severity::Ok).collect();
        assert_eq!(report.ok, bad.iter().all(|check| check.severity == Severity::Warning));
        bad.iter().map(|check| (check.id, check.severity)).collect()
    }

    #[test]
    fn a_healthy_proxy_passes() {
        assert!(found(|_, _| ()).is_empty());
    }

    #[test]
    fn each_fault_is_found_and_by_its_name() {
        let error = |id| vec![(id, Severity::Error)];
        assert_eq!(found(|_, status| status.capture_in_force = false), error(Topic::CaptureRules));
        assert_eq!(found(|_, status| status.canary_ok = false), error(Topic::LeakCanary));
        assert_eq!(found(|_, status| status.tls_not_after = NOW), error(Topic::TlsCertificate));
        assert_eq!(found(|_, status| status.signing_not_after = 0), error(Topic::SigningCertificate));
        assert_eq!(found(|_, status| status.unix_ms -= 61_000), error(Topic::ProxyReport));
        assert_eq!(found(|_, status| status.clock_offset_ms = -31_000), error(Topic::ProxyClock));
        assert_eq!(found(|_, status| status.wall_ahead_ms = -86_400_000), error(Topic::ProxyClock));
        assert_eq!(found(|proxy, _| proxy.sections[0].acked_counter = 2), error(Topic::PolicyVersion));
        assert_eq!(found(|proxy, _| proxy.sections.clear()), error(Topic::PolicyVersion));
        assert_eq!(
            found(|proxy, _| proxy.last_nack = "policy: x: y".to_owned()),
            error(Topic::PolicyRefused)
        );
        assert_eq!(found(|proxy, _| proxy.connected = false), error(Topic::ProxyConnected));
        let in_area = |proxy: &mut Proxy, _: &mut _| {
            (proxy.connected, proxy.area, proxy.not_after) = (false, "fog".to_owned(), NOW + 60);
        };
        assert_eq!(found(in_area), []);
    }

    #[test]
    fn what_will_be_a_fault_is_a_warning() {
        let warning = |id| vec![(id, Severity::Warning)];
        assert_eq!(found(|_, status| status.tls_not_after = NOW + 1_199), warning(Topic::TlsCertificate));
        assert_eq!(found(|proxy, _| proxy.version = "0.4.0".to_owned()), warning(Topic::ProxyVersion));
        let refused = |code: &'static str| {
            found(|_, status| {
                status.refused.insert(code.to_owned(), 3);
            })
        };
        assert_eq!(refused("peer-unverified"), warning(Topic::ProxyRefusals));
        assert_eq!(refused("access-denied"), [], "policy does its work");
    }

    #[test]
    fn a_certificate_whose_life_is_not_known_is_not_called_overdue() {
        let report =
            look_at(&Proxy { ..healthy() }, 0, None, Measure { now_ms: (NOW + 1_799) * 1_000, ..MEASURE });
        let bad = |check: &&Finding| check.id == Topic::TlsCertificate && check.severity != Severity::Ok;
        assert_eq!(report.unwrap().checks.iter().find(bad), None);
    }

    #[test]
    fn a_proxy_that_never_reported_is_found() {
        assert!(!looked_at(&Proxy { status: None, ..healthy() }, 0).unwrap().ok);
    }

    #[test]
    fn an_instance_that_enrolled_anew_is_no_error_and_forgotten_when_its_certificate_has_ended() {
        let lost = Proxy { connected: false, status: None, ..healthy() };
        let report = looked_at(&lost, 1).unwrap();
        assert!(report.ok);
        assert_eq!(report.checks[0].id, Topic::ProxySuperseded);
        assert!(report.checks[0].message.contains("2027-01-15T08:30:00Z"), "{}", report.checks[0].message);
        let over = Proxy { not_after: NOW, ..lost.clone() };
        assert!(looked_at(&over, 1).is_none());
        // Nobody took its place: it is missing, however long ago its certificate ended.
        assert!(!looked_at(&over, 0).unwrap().ok);
    }
}
