//! Services of the host's network: which of their ports are guarded, by which ports of the guard, and for whom it
//! speaks.

use std::collections::BTreeSet;

use super::beside::{MOVED, enrolled, healthcheck, program, with_habits};
use super::plan::{CONTROL_PLANE, Outcome, Plan, Severity};
use super::ports::{interpolated, range};
use super::project::{Project, Service, texts};
use super::value::Value;
use super::{Fault, Options, ROLE_GUARD, ROLE_LABEL};

/// The label that lists a service's ports.
const PORTS_LABEL: &str = "signet.mf2c-project.eu/ports";
/// The key that does the same.
const EXTENSION: &str = "x-signet";
/// What a guard takes at most, see `signet-proxy guard`.
const GUARDED_MAX: usize = 64;
/// Ports of the host for each guard: outbound, inbound, health.
const OWN_PORTS: u16 = 3;

/// The TCP ports that a service of the host's network declares: under `expose`, `x-signet` or by label.
pub(super) fn declared(file: &str, service: &Service) -> Result<BTreeSet<u16>, Fault> {
    let mut found = BTreeSet::new();
    let mut add = |text: &str, line: usize, whence: &str| {
        let wrong = || {
            let message = format!("`{text}` of {whence} is no port");
            Fault::new(file, line, message, "write a number, or a range such as 8080-8083")
        };
        // What a variable without a default holds is not known here.
        let Some(text) = interpolated(text) else { return Ok(()) };
        let (number, protocol) = text.split_once('/').unwrap_or((&text, "tcp"));
        let (first, last) = range(number).ok_or_else(wrong)?;
        if protocol == "tcp" {
            found.extend((first..=last).take(GUARDED_MAX + 1));
        }
        Ok(())
    };
    for text in texts(service.whole.get("expose")) {
        add(text, service.line_of("expose"), "`expose`")?;
    }
    if let Some(said) = service.whole.get(EXTENSION) {
        let line = service.line_of(EXTENSION);
        let known = said.entries().is_some_and(|entries| entries.iter().all(|entry| entry.key == "ports"));
        if !known {
            let message = format!("`{EXTENSION}` of a service knows `ports` alone");
            return Err(Fault::new(file, line, message, "write `x-signet: {ports: [8080]}`"));
        }
        for text in texts(said.get("ports")) {
            add(text, line, "`x-signet`")?;
        }
    }
    if let Some(text) = label(service) {
        for each in text.split(',') {
            add(each.trim(), service.line_of("labels"), "the label")?;
        }
    }
    if found.len() > GUARDED_MAX {
        let message = format!("`{}` has more than {GUARDED_MAX} ports in the host's network", service.name);
        return Err(Fault::new(file, service.line, message, "guard those that the mesh has to reach"));
    }
    Ok(found)
}

fn label(service: &Service) -> Option<String> {
    let labels = service.whole.get("labels")?;
    if let Some(text) = labels.text_of(PORTS_LABEL) {
        return Some(text.to_owned());
    }
    let listed = texts(Some(labels)).into_iter().filter_map(|text| text.split_once('='));
    listed.filter(|(key, _)| *key == PORTS_LABEL).map(|(_, said)| said.to_owned()).next()
}

/// The ports that the guard of a service captures: its own, and those of the services that use its network.
pub(super) fn guarded(
    file: &str,
    project: &Project,
    plan: &Plan,
    service: &Service,
) -> Result<BTreeSet<u16>, Fault> {
    let mut all = BTreeSet::new();
    for each in plan.group(project, &service.name) {
        all.extend(declared(file, each)?);
    }
    Ok(all)
}

/// The user that a service says it runs as, where that is a number.
fn user(service: &Service) -> Option<u32> {
    interpolated(service.whole.text_of("user")?)?.split(':').next()?.parse().ok()
}

/// The services with a guard, in the file's order, each with whether its guard speaks: of those that the host's network
/// cannot tell apart, the first does.
pub(super) fn guards<'a>(project: &'a Project, plan: &'a Plan) -> Vec<(&'a Service, bool)> {
    let mut spoken_for = BTreeSet::new();
    let each = project.services.iter().zip(&plan.outcomes);
    let guarded = each.filter(|(_, outcome)| **outcome == Outcome::Guarded).map(|(service, _)| service);
    guarded.map(|service| (service, spoken_for.insert(user(service)))).collect()
}

/// Refuses guards that would fight, and tells what the host's network cannot do.
pub(super) fn look(file: &str, project: &Project, plan: &mut Plan, options: &Options) -> Result<(), Fault> {
    let guards: Vec<(&Service, bool)> = guards(project, plan);
    let mut taken: Vec<(&str, BTreeSet<u16>)> = Vec::new();
    let count = u16::try_from(guards.len()).unwrap_or(u16::MAX);
    let own = options.host_ports..=options.host_ports.saturating_add(count.saturating_mul(OWN_PORTS));
    let mut found = Vec::new();
    for (service, speaks) in &guards {
        let (name, line) = (service.name.as_str(), service.line_of("network_mode"));
        let ports = guarded(file, project, plan, service)?;
        if let Some(port) = ports.iter().find(|port| own.contains(port)) {
            let message = format!("port {port} of the host is for guards and the control plane");
            return Err(Fault::new(file, line, message, "name the first of others by --host-ports"));
        }
        for (other, theirs) in &taken {
            if let Some(port) = ports.intersection(theirs).next() {
                let message = format!("port {port} of the host is that of `{other}` and of `{name}`");
                return Err(Fault::new(file, line, message, "let one of them listen at another"));
            }
        }
        if taken.iter().any(|(other, _)| guard_name(options, other) == guard_name(options, name)) {
            let message = format!("the guards of two services would both be `{}`", guard_name(options, name));
            return Err(Fault::new(file, line, message, "rename one of the services"));
        }
        taken.push((name, ports));
        let text = match (user(service), speaks) {
            (Some(user), true) => format!(
                "host network: its guard captures its ports, and calls to the mesh of whatever runs as user {user} on \
                 this host"
            ),
            (None, true) => "host network: calls to the mesh of every program on this host are made as this service, \
                             for the kernel cannot tell them apart; fix: give it a `user` of its own, as a number"
                .to_owned(),
            (_, false) => "host network: its own calls to the mesh are made as an earlier service's with the same \
                           `user`; fix: give it another `user`, as a number"
                .to_owned(),
        };
        let severity = if user(service).is_some() && *speaks { Severity::Note } else { Severity::Warning };
        found.push((name.to_owned(), line, severity, text));
        if options.host_address.is_none() {
            let text = "host network: nobody is told its address, so others than the containers of this project reach \
                        it in clear; fix: give this host's by --host-address"
                .to_owned();
            found.push((name.to_owned(), line, Severity::Warning, text));
        }
    }
    for (name, line, severity, text) in found {
        plan.find(&name, line, severity, text);
    }
    Ok(())
}

/// The guard's name on its host: of its project, so that projects do not meet.
fn guard_name(options: &Options, service: &str) -> String {
    let name = format!("{}.{}", options.mesh, service.to_ascii_lowercase());
    name.chars().take(63).collect()
}

/// Where the control plane is for guards: at a port of the host that only the host reaches.
pub(super) fn control_plane_port(options: &Options) -> String {
    format!("127.0.0.1:{}:15012", options.host_ports)
}

/// The guard of a service. The service uses its network, which is the host's: so it never starts without the rules.
pub(super) fn guard_of(project: &Project, plan: &Plan, service: &Service, options: &Options) -> Value {
    let guards = guards(project, plan);
    let at = guards.iter().position(|(known, _)| known.name == service.name).unwrap_or_default();
    let speaks = guards.get(at).is_some_and(|(_, speaks)| *speaks);
    let first = options.host_ports + 1 + OWN_PORTS * u16::try_from(at).unwrap_or_default();
    // Refused before, where they cannot be read.
    let ports = guarded("", project, plan, service).unwrap_or_default();
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();

    let mut added = program(options, "signet-proxy", Some(&["guard"]));
    added.set("labels", Value::mapping([(ROLE_LABEL, Value::text(ROLE_GUARD))]));
    added.set("network_mode", Value::text("host"));
    added.set("cap_add", Value::list(["NET_ADMIN"]));
    for key in MOVED.into_iter().filter(|key| !matches!(*key, "networks" | "ports")) {
        if let Some(value) = service.whole.get(key) {
            added.set(key, value.clone());
        }
    }
    let mut settings = vec![
        ("SIGNET_CONTROL_PLANE", Value::text(format!("127.0.0.1:{}", options.host_ports))),
        ("SIGNET_GUARD", Value::text(guard_name(options, &service.name))),
        ("SIGNET_PORTS", Value::text(ports.join(","))),
        ("SIGNET_OUTBOUND_PORT", Value::text(first.to_string())),
        ("SIGNET_INBOUND_PORT", Value::text((first + 1).to_string())),
        ("SIGNET_ADMIN_ADDR", Value::text(format!("127.0.0.1:{}", first + 2))),
    ];
    match user(service) {
        _ if !speaks => settings.push(("SIGNET_NO_OUTBOUND", Value::text("true"))),
        Some(user) => settings.push(("SIGNET_USERS", Value::text(user.to_string()))),
        None => {}
    }
    enrolled(&mut added, settings, &service.name);
    let healthy = Value::mapping([("condition", Value::text("service_healthy"))]);
    added.set("depends_on", Value::mapping([(CONTROL_PLANE, healthy)]));
    added.set("healthcheck", healthcheck(&["/signet-proxy", "ready"], "60s"));
    with_habits(added, project, plan, service)
}
