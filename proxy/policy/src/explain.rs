//! The decision with its reasons: every rule looked at, and why it did or did not match.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use crate::compile::value;
use crate::decide::{Facts, Layer, Permit, decide};
use crate::index::{Asked, Entry, IndexedPolicy, IndexedRule, PolicyIndex, from_there, in_time};
use crate::model::{Caller, MtlsMode, Operation, PolicyAction, PolicyMode, Protection, Protocol};
use crate::normal::ReceivedTarget;
use crate::refusal::Refusal;
use crate::target::check_path;

/// Why something is allowed or refused. Serializes to JSON for programs; `Display` is for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The source's identity; `None` for plaintext.
    pub source: Option<String>,
    /// Where the connection came from, if known.
    pub source_address: Option<IpAddr>,
    /// The destination's identity.
    pub destination: String,
    /// The container port.
    pub port: u16,
    /// The method, for HTTP.
    pub method: Option<String>,
    /// The raw path, for HTTP.
    pub path: Option<String>,
    /// The host the request names, for HTTP.
    pub authority: Option<String>,
    /// The mode in force at the destination.
    pub mtls: MtlsMode,
    /// The declared protocol of the port.
    pub protocol: Protocol,
    /// Whether only HTTP passes at this port.
    pub layer7: bool,
    /// How the message has to be protected, where the destination is declared.
    pub protection: Option<ProtectionReport>,
    /// What was decided.
    pub decision: Decision,
    /// What decided before any rule was asked, in words.
    pub note: Option<String>,
    /// The roles that the source holds.
    pub roles: Vec<String>,
    /// The rules of all policies that select the destination workload.
    pub rules: Vec<RuleReport>,
    /// The traffic policy that applies to the request, if one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic: Option<TrafficReport>,
}

/// How a request is sent, and how many like it are taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficReport {
    /// The policy.
    pub policy: String,
    /// The route, counted from 1; none where the policy's own settings count alone.
    pub route: Option<usize>,
    /// What is set, in words.
    pub settings: Vec<String>,
}

/// How a message has to be protected, and who says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProtectionReport {
    /// What is asked of it.
    #[serde(flatten)]
    pub protection: Protection,
    /// The rules and defaults of protection policies that ask for it together; empty for the settings of the workload.
    pub by: Vec<String>,
}

impl ProtectionReport {
    fn of(index: &PolicyIndex, entry: &Entry, facts: &Facts<'_>) -> Self {
        let request = match facts.layer {
            Layer::Http { method, path, .. } => Some((method, path)),
            Layer::Opaque => None,
        };
        let mut by = Vec::new();
        entry.protection_answers(facts.port, request, |answer| {
            by.extend(answer.by.map(|(policy, rule)| match rule {
                Some(rule) => format!("{}/{}", policy.name, rule.name),
                None => format!("{}/default", policy.name),
            }));
        });
        Self { protection: index.protection(facts.destination, facts.port, request), by }
    }
}

impl fmt::Display for ProtectionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(word_of(value::LEVELS, self.protection.level))?;
        if self.by.is_empty() {
            return f.write_str(", as the workload's settings say");
        }
        write!(f, ", as {} say", self.by.join(", "))
    }
}

fn word_of<T: Copy + PartialEq>(words: &[(&'static str, T)], value: T) -> &'static str {
    words.iter().find(|(_, known)| *known == value).map_or("", |(word, _)| word)
}

/// The outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "outcome")]
pub enum Decision {
    /// A rule allows it.
    Allowed {
        /// The policy.
        policy: String,
        /// The rule in it.
        rule: String,
    },
    /// It is refused.
    Refused {
        /// The refusal; serialized as its code.
        code: Refusal,
        /// The HTTP status it is answered with.
        status: u16,
        /// The sentence the caller sees.
        detail: &'static str,
        /// The policy that denies it, where a rule does.
        #[serde(skip_serializing_if = "Option::is_none")]
        policy: Option<String>,
        /// The rule in it.
        #[serde(skip_serializing_if = "Option::is_none")]
        rule: Option<String>,
    },
}

/// One rule and whether it matched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleReport {
    /// The policy.
    pub policy: String,
    /// The rule in it; `None` for a policy without rules.
    pub rule: Option<String>,
    /// Whether the policy decides or only reports.
    pub mode: PolicyMode,
    /// Whether its rules allow or deny.
    pub action: PolicyAction,
    /// Whether the rule allows, or denies, the message.
    pub matched: bool,
    /// Why it matches or does not.
    pub reason: String,
}

/// Explains the decision on one message. The decision in it is [`decide()`]'s own.
pub fn explain(index: &PolicyIndex, facts: &Facts<'_>) -> Explanation {
    let Layer::Http { method, path, authority, headers } = facts.layer else {
        return of_normal(index, facts);
    };
    let received = ReceivedTarget { method, target: path, authority: None, hosts: &[authority] };
    let Ok(read) = index.read_target(facts.destination, facts.port, &received) else {
        return of_normal(index, facts);
    };
    let layer = Layer::Http { method, path: &read.path, authority: &read.authority, headers };
    let mut explanation = of_normal(index, &Facts { layer, ..*facts });
    if *path != *read.path {
        let note = format!("the path {} is taken as {}", shown(path), shown(&read.path));
        explanation.note = Some(match explanation.note {
            Some(more) => format!("{note}; {more}"),
            None => note,
        });
    }
    explanation
}

fn of_normal(index: &PolicyIndex, facts: &Facts<'_>) -> Explanation {
    let decided = decide(index, facts);
    let entry = index.entry(facts.destination);
    let caller = index.caller(facts.source, facts.now);
    let (method, path, authority) = match facts.layer {
        Layer::Http { method, path, authority, .. } => (Some(method), Some(path), Some(authority)),
        Layer::Opaque => (None, None, None),
    };
    let rules: Vec<RuleReport> = match (entry, &caller) {
        (Some(entry), Some(caller)) => {
            entry.policies.iter().flat_map(|policy| report(policy, facts, caller)).collect()
        }
        _ => Vec::new(),
    };
    let held =
        caller.into_iter().flat_map(|caller| caller.roles).filter(|grant| grant.is_in_force(facts.now));
    Explanation {
        source: facts.source.map(ToString::to_string),
        source_address: facts.origin.address(),
        destination: facts.destination.to_string(),
        port: facts.port,
        method: method.map(str::to_owned),
        path: path.map(str::to_owned),
        authority: authority.map(str::to_owned),
        mtls: index.mtls(facts.destination),
        protocol: index.protocol(facts.destination, facts.port),
        layer7: index.is_l7(facts.destination, facts.port),
        protection: entry.map(|entry| ProtectionReport::of(index, entry, facts)),
        note: note(index, facts, entry, decided.as_ref().err().copied()),
        decision: Decision::of(&decided, &rules),
        roles: held.map(|grant| grant.role.clone()).collect(),
        rules,
        traffic: method.zip(path).and_then(|(method, path)| {
            let policy = index.traffic(facts.destination, facts.port)?;
            Some(TrafficReport {
                policy: policy.name.clone(),
                route: policy.route(method, path).map(|number| number + 1),
                settings: policy.in_words(method, path),
            })
        }),
    }
}

impl Explanation {
    /// One line for a log: who, what, where, and the outcome.
    pub fn summary(&self) -> String {
        let source = self.source.as_deref().unwrap_or("anonymous");
        let what = match (&self.method, &self.path) {
            (Some(method), Some(path)) => format!("{} {}", shown(method), shown(path)),
            _ => "opaque bytes".to_owned(),
        };
        format!("{source} -> {}:{} {what}: {}", self.destination, self.port, self.decision)
    }
}

impl Decision {
    fn of(decided: &Result<Permit, Refusal>, rules: &[RuleReport]) -> Self {
        match decided {
            Ok(permit) => {
                Self::Allowed { policy: permit.policy().to_owned(), rule: permit.rule().to_owned() }
            }
            Err(refusal) => {
                let denies = |report: &&RuleReport| {
                    report.matched
                        && report.action == PolicyAction::Deny
                        && report.mode == PolicyMode::Enforce
                        && *refusal == Refusal::DenyRule
                };
                let by = rules.iter().find(denies);
                Self::Refused {
                    code: *refusal,
                    status: refusal.status(),
                    detail: refusal.detail(),
                    policy: by.map(|report| report.policy.clone()),
                    rule: by.and_then(|report| report.rule.clone()),
                }
            }
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allowed { policy, rule } => write!(f, "allowed by {policy}/{rule}"),
            Self::Refused { code, status, policy: Some(policy), rule: Some(rule), .. } => {
                write!(f, "refused {code} ({status}) by {policy}/{rule}")
            }
            Self::Refused { code, status, detail, .. } => write!(f, "refused {code} ({status}): {detail}"),
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.summary())?;
        if let Some(note) = &self.note {
            writeln!(f, "  {note}")?;
        }
        if let Some(protection) = &self.protection {
            writeln!(f, "  protection: {protection}")?;
        }
        if !self.roles.is_empty() {
            writeln!(f, "  the source holds the roles {}", self.roles.join(", "))?;
        }
        if let Some(TrafficReport { policy, route, settings }) = &self.traffic {
            let route = route.map_or_else(String::new, |number| format!("/route-{number}"));
            writeln!(f, "  traffic by {policy}{route}: {}", settings.join("; "))?;
        }
        if self.rules.is_empty() {
            return writeln!(f, "  no policy selects this workload");
        }
        for report in &self.rules {
            let mark = if report.matched { "✓" } else { "✗" };
            let rule = report.rule.as_deref().unwrap_or("(no rules)");
            let action = if report.action == PolicyAction::Deny { " [deny]" } else { "" };
            let mode = if report.mode == PolicyMode::Observe { " [observe]" } else { "" };
            writeln!(f, "  {mark} {}/{rule}{action}{mode}: {}", report.policy, report.reason)?;
        }
        Ok(())
    }
}

fn note(
    index: &PolicyIndex,
    facts: &Facts<'_>,
    entry: Option<&Entry>,
    refusal: Option<Refusal>,
) -> Option<String> {
    Some(match refusal? {
        Refusal::NoPolicy if entry.is_none() => format!("no Workload declares {}", facts.destination),
        Refusal::PlaintextRefused => {
            "the workload's mode is strict and the source proved no identity".to_owned()
        }
        Refusal::AmbiguousTarget => match facts.layer {
            Layer::Http { path, authority, .. } => match check_path(path) {
                Err(ambiguity) => ambiguity.to_string(),
                Ok(()) => format!("the host {} is not a plain name or address", shown(authority)),
            },
            Layer::Opaque => return None,
        },
        Refusal::AuthorityMismatch => {
            "the host is a declared name of another workload, and not one of this workload's names".to_owned()
        }
        Refusal::OpaqueToL7Port => {
            let protocol = index.protocol(facts.destination, facts.port);
            if protocol.is_http() {
                format!("port {} is declared as {}", facts.port, protocol.as_str())
            } else {
                format!("an enforced rule decides on port {} by method, path or header", facts.port)
            }
        }
        _ => return None,
    })
}

fn report(policy: &IndexedPolicy, facts: &Facts<'_>, caller: &Caller<'_>) -> Vec<RuleReport> {
    let line = |rule: Option<&IndexedRule>, reason: Result<String, String>| RuleReport {
        policy: policy.model.name.clone(),
        rule: rule.map(|rule| rule.name.to_string()),
        mode: policy.model.mode,
        action: policy.model.action,
        matched: reason.is_ok(),
        reason: reason.unwrap_or_else(|why| why),
    };
    if policy.rules.is_empty() {
        let reason = match policy.model.action {
            PolicyAction::Allow => "the policy allows nothing",
            PolicyAction::Deny => "the policy denies nothing",
        };
        return vec![line(None, Err(reason.to_owned()))];
    }
    policy.rules.iter().map(|rule| line(Some(rule), judge(policy, rule, facts, caller))).collect()
}

/// `Ok` with the reason when the rule matches the message, `Err` with the reason when it does not.
fn judge(
    policy: &IndexedPolicy,
    rule: &IndexedRule,
    facts: &Facts<'_>,
    caller: &Caller<'_>,
) -> Result<String, String> {
    let (port, action) = (facts.port, policy.model.action);
    if !policy.model.selects_port(port) {
        return Err(format!("the policy is for ports {}, not {port}", joined(&policy.model.ports)));
    }
    if !rule.is_asked_about(caller, action) {
        return Err("the source is of another trust domain, which only a Federation admits".to_owned());
    }
    if !rule.model.matches_source(caller) {
        return Err(match facts.source {
            Some(source) => format!("the source {source} is none of those in `from`"),
            None => "an anonymous source matches only `any: anyone`".to_owned(),
        });
    }
    let asked = Asked::of(facts);
    if !rule.covers_operation(&asked, action) {
        return Err(why_not(rule, &asked, action));
    }
    if !in_time(&rule.model.when, facts.now) {
        return Err("none of its time windows is open".to_owned());
    }
    if !from_there(&rule.model.when, facts.origin, action) {
        return Err(match facts.origin.address() {
            Some(address) => format!("the address {address} is none of its `sourceAddresses`"),
            None => "the destination has to see where the connection comes from".to_owned(),
        });
    }
    let does = match action {
        PolicyAction::Allow => "allows",
        PolicyAction::Deny => "denies",
    };
    let mut reason = if rule.model.to.is_empty() {
        format!("the source matches and the rule {does} everything on these ports")
    } else {
        "source and operation match".to_owned()
    };
    if !rule.model.when.source_addresses.is_empty() && facts.origin.address().is_none() {
        reason += ", if the destination sees one of its `sourceAddresses`";
    }
    Ok(reason)
}

/// Why none of a rule's operations is what is asked.
fn why_not(rule: &IndexedRule, asked: &Asked<'_>, action: PolicyAction) -> String {
    let is = match action {
        PolicyAction::Allow => "allow",
        PolicyAction::Deny => "deny",
    };
    let at_port: Vec<&Operation> =
        rule.model.to.iter().filter(|operation| operation.covers_port(asked.port)).collect();
    if at_port.is_empty() {
        return format!("none of its operations is for port {}", asked.port);
    }
    let Some((method, path, headers)) = asked.request else {
        return "it is about HTTP requests, and these are opaque bytes".to_owned();
    };
    let none = |matches: &dyn Fn(&Operation) -> bool| at_port.iter().all(|operation| !matches(operation));
    if none(&|operation| operation.matches_method(method, action)) {
        return format!("it does not {is} the method {}", shown(method));
    }
    if none(&|operation| operation.matches_path(path, action)) {
        return format!("it does not {is} the path {}", shown(path));
    }
    let both = |operation: &Operation| {
        operation.matches_method(method, action) && operation.matches_path(path, action)
    };
    if none(&both) {
        return format!(
            "no single operation has both the method {} and the path {}",
            shown(method),
            shown(path)
        );
    }
    let missing = at_port
        .iter()
        .filter(|operation| both(operation))
        .flat_map(|operation| &operation.headers)
        .find(|header| headers.is_none_or(|headers| !header.matches(headers, action)));
    match missing {
        Some(header) => format!("the header field {} is not as it asks for", header.name),
        None => "no single operation has it all".to_owned(),
    }
}

fn joined(ports: &[u16]) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}

/// Text of a peer, made harmless for a terminal or a log line.
fn shown(text: &str) -> String {
    text.escape_debug().to_string()
}
