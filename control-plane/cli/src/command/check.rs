//! `signet check`: whether every proxy protects what it should.

use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use signet_sync::proto::admin::{InfoRequest, ListProxiesRequest, Proxy, ProxyStatus};

use crate::client::{ControlPlane, answered};
use crate::output::{Failure, Format, Verdict, print_json, print_line, text_or_json};

/// Oldest report of a proxy that still says something about it: proxies report every few seconds.
const REPORT_AGE_MAX: Duration = Duration::from_secs(60);

/// Looks at every proxy: rules in force, leak canary, certificates, clock, policy version
///
/// Exit code 1 if anything is wrong, or no proxy has enrolled.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  signet check\n  signet check --max-skew 5 -o json")]
pub(crate) struct Check {
    /// Most seconds that a proxy's clock may be off
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    max_skew: u64,
    #[command(flatten)]
    control_plane: ControlPlane,
}

/// One proxy and all that was looked at.
#[derive(Debug, Serialize)]
struct ProxyReport {
    spiffe_id: String,
    instance: String,
    ok: bool,
    checks: Vec<Finding>,
}

/// One thing looked at.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    name: &'static str,
    ok: bool,
    figure: String,
}

impl Check {
    pub(crate) async fn run(self, format: Format) -> Result<Verdict, Failure> {
        text_or_json(format)?;
        let mut client = self.control_plane.connect().await?;
        let info = answered(client.info(InfoRequest {}).await)?;
        let proxies = answered(client.list_proxies(ListProxiesRequest {}).await)?.proxies;
        let reports: Vec<ProxyReport> =
            proxies.iter().map(|proxy| self.look_at(proxy, info.unix_ms)).collect();
        let ok = !reports.is_empty() && reports.iter().all(|report| report.ok);
        if format == Format::Json {
            print_json(
                &json!({ "ok": ok, "trust_domain": info.trust_domain, "revision": info.revision, "proxies": reports }),
            )?;
        } else {
            print_line(format_args!("{}, revision {}", info.trust_domain, info.revision))?;
            for report in &reports {
                print_table(report)?;
            }
            if reports.is_empty() {
                print_line("✗ no proxy has enrolled")?;
            }
        }
        Ok(Verdict::of(ok))
    }

    /// `now_ms` is the control plane's clock: the one that its certificates and reports go by.
    fn look_at(&self, proxy: &Proxy, now_ms: u64) -> ProxyReport {
        let mut checks =
            vec![Finding::new("connected", proxy.connected, if proxy.connected { "yes" } else { "no" })];
        match &proxy.status {
            None => checks.push(Finding::new("report", false, "none yet")),
            Some(status) => checks.extend(self.findings(status, now_ms)),
        }
        checks.push(policy_version(proxy));
        ProxyReport {
            spiffe_id: proxy.spiffe_id.clone(),
            instance: proxy.instance.clone(),
            ok: checks.iter().all(|check| check.ok),
            checks,
        }
    }

    fn findings(&self, status: &ProxyStatus, now_ms: u64) -> Vec<Finding> {
        let yes_no = |name, ok| Finding::new(name, ok, if ok { "yes" } else { "no" });
        // The proxy's own clock stamped the report; what it is off by is known.
        let stamped = i128::from(status.unix_ms) + i128::from(status.clock_offset_ms);
        let age_ms = (i128::from(now_ms) - stamped).max(0);
        let skew_ms = status.clock_offset_ms.unsigned_abs();
        vec![
            Finding::new(
                "report",
                age_ms <= REPORT_AGE_MAX.as_millis() as i128,
                format!("{} s old", age_ms / 1000),
            ),
            yes_no("rules in force", status.capture_in_force),
            yes_no("leak canary", status.canary_ok),
            certificate("TLS certificate", status.tls_not_after, now_ms),
            certificate("signing certificate", status.signing_not_after, now_ms),
            Finding::new("clock", skew_ms <= self.max_skew.saturating_mul(1000), format!("{skew_ms} ms off")),
        ]
    }
}

impl Finding {
    fn new(name: &'static str, ok: bool, figure: impl Into<String>) -> Self {
        Self { name, ok, figure: figure.into() }
    }
}

fn certificate(name: &'static str, not_after: u64, now_ms: u64) -> Finding {
    let now = now_ms / 1000;
    match not_after.checked_sub(now) {
        Some(left) if left > 0 => Finding::new(name, true, format!("ends in {left} s")),
        _ => Finding::new(name, false, format!("ended {} s ago", now - not_after)),
    }
}

fn policy_version(proxy: &Proxy) -> Finding {
    const NAME: &str = "policy version";
    if !proxy.last_nack.is_empty() {
        return Finding::new(NAME, false, format!("refused: {}", proxy.last_nack));
    }
    let behind = proxy
        .sections
        .iter()
        .find(|section| (section.acked_epoch, section.acked_counter) != (section.epoch, section.counter));
    match (behind, proxy.sections.iter().find(|section| section.name == "policy")) {
        (Some(section), _) => {
            let have = format!("{}.{}", section.acked_epoch, section.acked_counter);
            Finding::new(
                NAME,
                false,
                format!("{} is {have}, not {}.{}", section.name, section.epoch, section.counter),
            )
        }
        (None, Some(policy)) => Finding::new(NAME, true, format!("{}.{}", policy.epoch, policy.counter)),
        (None, None) => Finding::new(NAME, false, "none"),
    }
}

fn print_table(report: &ProxyReport) -> Result<(), Failure> {
    let mark = |ok| if ok { '✓' } else { '✗' };
    let instance: String = report.instance.chars().take(8).collect();
    print_line(format_args!("{} {} {instance}", mark(report.ok), report.spiffe_id))?;
    for check in &report.checks {
        print_line(format_args!("    {} {:20} {}", mark(check.ok), check.name, check.figure))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use signet_sync::proto::admin::SectionState;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn check() -> Check {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            check: Check,
        }
        <Line as clap::Parser>::parse_from(["check"]).check
    }

    fn healthy() -> Proxy {
        Proxy {
            spiffe_id: "spiffe://mesh.example/app/d1/store".to_owned(),
            connected: true,
            status: Some(ProxyStatus {
                unix_ms: NOW * 1000,
                capture_in_force: true,
                canary_ok: true,
                tls_not_after: NOW + 60,
                signing_not_after: NOW + 60,
                ..ProxyStatus::default()
            }),
            sections: vec![SectionState {
                name: "policy".to_owned(),
                epoch: 1,
                counter: 3,
                acked_epoch: 1,
                acked_counter: 3,
            }],
            ..Proxy::default()
        }
    }

    fn wrong(change: impl FnOnce(&mut Proxy, &mut ProxyStatus)) -> Vec<&'static str> {
        let mut proxy = healthy();
        let mut status = proxy.status.take().unwrap();
        change(&mut proxy, &mut status);
        proxy.status = Some(status);
        let report = check().look_at(&proxy, NOW * 1000);
        report.checks.iter().filter(|check| !check.ok).map(|check| check.name).collect()
    }

    #[test]
    fn healthy_proxy_passes() {
        assert!(wrong(|_, _| ()).is_empty());
    }

    #[test]
    fn each_fault_is_found() {
        assert_eq!(wrong(|proxy, _| proxy.connected = false), ["connected"]);
        assert_eq!(wrong(|_, status| status.capture_in_force = false), ["rules in force"]);
        assert_eq!(wrong(|_, status| status.canary_ok = false), ["leak canary"]);
        assert_eq!(wrong(|_, status| status.tls_not_after = NOW), ["TLS certificate"]);
        assert_eq!(wrong(|_, status| status.signing_not_after = 0), ["signing certificate"]);
        assert_eq!(wrong(|_, status| status.unix_ms -= 61_000), ["report"]);
        assert_eq!(wrong(|_, status| status.clock_offset_ms = -31_000), ["clock"]);
        assert_eq!(wrong(|proxy, _| proxy.sections[0].acked_counter = 2), ["policy version"]);
        assert_eq!(wrong(|proxy, _| proxy.sections.clear()), ["policy version"]);
        assert_eq!(wrong(|proxy, _| proxy.last_nack = "too large".to_owned()), ["policy version"]);
    }

    #[test]
    fn proxy_that_never_reported_is_found() {
        let report = check().look_at(&Proxy { status: None, ..healthy() }, NOW * 1000);
        assert!(!report.ok);
    }
}
