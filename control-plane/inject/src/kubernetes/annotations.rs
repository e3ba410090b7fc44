//! What a pod's annotations ask of the injector.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::at::At;
use super::documents::Step;
use super::reason::{InjectError, Reason};

/// What all of ours begin with.
pub const PREFIX: &str = "signet.mf2c-project.eu/";
/// The identity's first part.
pub(super) const CLASS: &str = "signet.mf2c-project.eu/class";
/// Inbound ports that are not captured.
const EXCLUDE: &str = "signet.mf2c-project.eu/exclude-inbound-ports";
/// Whether at all.
const INJECT: &str = "signet.mf2c-project.eu/inject";
/// Written by the injector: its version.
pub(super) const INJECTED: &str = "signet.mf2c-project.eu/injected";
/// What is spoken on which port.
const PORTS: &str = "signet.mf2c-project.eu/ports";
/// The identity's last part.
pub const WORKLOAD: &str = "signet.mf2c-project.eu/workload";

/// Most ports of one list; the sidecar's rules hold 128 in all.
const PORTS_MAX: usize = 64;
/// The classes of identities.
pub(super) const CLASSES: [&str; 4] = ["agent", "app", "external", "platform"];
/// What can be spoken on a port.
pub(super) const PROTOCOLS: [&str; 6] = ["auto", "grpc", "http", "http2", "opaque", "tls"];

/// What they say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Annotations {
    pub(super) class: Option<String>,
    pub(super) excluded: Vec<u16>,
    pub(super) inject: Option<bool>,
    pub(super) injected: Option<String>,
    pub(super) ports: BTreeMap<u16, &'static str>,
    pub(super) workload: Option<String>,
}

impl Annotations {
    /// Those of an object's `metadata`.
    pub(super) fn of(object: &Value) -> Result<Self, InjectError> {
        let mut read = Self::default();
        let metadata = At::root(object, "pod.metadata").object("metadata")?;
        let Some(all) = metadata.map(|metadata| metadata.object("annotations")).transpose()?.flatten() else {
            return Ok(read);
        };
        let Some(all) = all.value().as_object() else { return Ok(read) };
        for (name, value) in ours(all) {
            let path = [Step::from("metadata"), "annotations".into(), name.into()];
            let text = value.as_str().unwrap_or_default();
            let wrong = |fix: &str| {
                let written = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let reason =
                    Reason::AnnotationValue { name: name.to_owned(), value: written, fix: fix.to_owned() };
                InjectError::at(&path, reason)
            };
            match name {
                CLASS if CLASSES.contains(&text) => read.class = Some(text.to_owned()),
                CLASS => return Err(wrong("`agent`, `app`, `external` or `platform`")),
                EXCLUDE => {
                    let ports: Option<Vec<u16>> = text.split(',').map(port).collect();
                    let fix = "port numbers separated by commas, at most 64, such as \"9090,9100\"";
                    read.excluded =
                        ports.filter(|ports| ports.len() <= PORTS_MAX).ok_or_else(|| wrong(fix))?;
                }
                INJECT => {
                    read.inject = Some(text.parse().map_err(|_| wrong("\"true\" or \"false\", quoted"))?)
                }
                INJECTED => read.injected = Some(text.to_owned()),
                PORTS => {
                    let fix = "PORT=PROTOCOL separated by commas, at most 64, such as \"8080=http,9000=opaque\"; the protocols are auto, grpc, http, http2, opaque and tls";
                    read.ports = protocols(text).ok_or_else(|| wrong(fix))?;
                }
                WORKLOAD if is_name(text) => read.workload = Some(text.to_owned()),
                WORKLOAD => return Err(wrong("lower-case letters, digits and `-`, at most 63")),
                _ => {
                    let known = [CLASS, EXCLUDE, INJECT, PORTS, WORKLOAD].join(", ");
                    let reason = Reason::AnnotationUnknown { name: name.to_owned(), known };
                    return Err(InjectError::at(&path, reason));
                }
            }
        }
        Ok(read)
    }
}

fn ours(all: &Map<String, Value>) -> impl Iterator<Item = (&str, &Value)> {
    all.iter().map(|(name, value)| (name.as_str(), value)).filter(|(name, _)| name.starts_with(PREFIX))
}

fn protocols(text: &str) -> Option<BTreeMap<u16, &'static str>> {
    let mut found = BTreeMap::new();
    for entry in text.split(',') {
        let (number, protocol) = entry.split_once('=')?;
        let protocol = PROTOCOLS.into_iter().find(|known| *known == protocol.trim())?;
        if found.insert(port(number)?, protocol).is_some() || found.len() > PORTS_MAX {
            return None;
        }
    }
    Some(found)
}

fn port(text: &str) -> Option<u16> {
    text.trim().parse().ok().filter(|port| *port != 0)
}

/// Whether a text is a name as Services have it; a part of an identity holds it too.
pub fn is_name(text: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| inside(byte) || byte == b'-')
        && text.bytes().next().is_some_and(inside)
        && text.bytes().last().is_some_and(inside)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(annotations: Value) -> Result<Annotations, InjectError> {
        Annotations::of(&json!({ "metadata": { "annotations": annotations } }))
    }

    #[test]
    fn annotations_are_read_and_those_of_others_are_theirs() {
        let read = read(json!({
            "prometheus.io/scrape": "true",
            "signet.mf2c-project.eu/class": "agent",
            "signet.mf2c-project.eu/exclude-inbound-ports": "9090, 9100",
            "signet.mf2c-project.eu/inject": "true",
            "signet.mf2c-project.eu/ports": "8080=http,9000=opaque",
            "signet.mf2c-project.eu/workload": "cimi",
        }))
        .unwrap();
        assert_eq!(read.class.as_deref(), Some("agent"));
        assert_eq!(read.excluded, [9090, 9100]);
        assert_eq!(read.inject, Some(true));
        assert_eq!(read.ports, BTreeMap::from([(8080, "http"), (9000, "opaque")]));
        assert_eq!(read.workload.as_deref(), Some("cimi"));
    }

    #[test]
    fn wrong_annotations_are_refused_with_their_place() {
        for (name, value, code) in [
            ("signet.mf2c-project.eu/injekt", json!("false"), "annotation-unknown"),
            ("signet.mf2c-project.eu/inject", json!("no"), "annotation-value"),
            ("signet.mf2c-project.eu/inject", json!(false), "annotation-value"),
            ("signet.mf2c-project.eu/class", json!("user"), "annotation-value"),
            ("signet.mf2c-project.eu/ports", json!("8080=html"), "annotation-value"),
            ("signet.mf2c-project.eu/ports", json!("8080=http,8080=grpc"), "annotation-value"),
            ("signet.mf2c-project.eu/exclude-inbound-ports", json!("0"), "annotation-value"),
            ("signet.mf2c-project.eu/workload", json!("Web"), "annotation-value"),
        ] {
            let error = read(json!({ name: value })).unwrap_err();
            assert_eq!(error.reason.code(), code, "{name}");
            assert_eq!(error.path.last(), Some(&Step::from(name)));
        }
    }
}
