//! The body of `POST /containers/create`, read as the engine reads it.
//!
//! The engine takes a field's name in any case, so names are written as it documents them here. That none stands twice has
//! been [seen to](super::json).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::json;

/// Fields that decide something here.
const KNOWN: [&str; 8] = [
    "Domainname",
    "ExposedPorts",
    "HostConfig",
    "Hostname",
    "Image",
    "Labels",
    "MacAddress",
    "NetworkingConfig",
];
/// Fields of `HostConfig` that decide something here.
const KNOWN_OF_HOST: [&str; 20] = [
    "AutoRemove",
    "Binds",
    "CapAdd",
    "CapDrop",
    "Dns",
    "DnsOptions",
    "DnsSearch",
    "ExtraHosts",
    "IpcMode",
    "Links",
    "LogConfig",
    "Mounts",
    "NetworkMode",
    "PidMode",
    "PortBindings",
    "Privileged",
    "PublishAllPorts",
    "RestartPolicy",
    "Sysctls",
    "VolumesFrom",
];
/// Fields of `NetworkingConfig`, of an endpoint in it, and of a mount.
const KNOWN_OF_NETWORKING: [&str; 1] = ["EndpointsConfig"];
const KNOWN_OF_ENDPOINT: [&str; 1] = ["Aliases"];
const KNOWN_OF_MOUNT: [&str; 3] = ["Source", "Type", "VolumeOptions"];
const KNOWN_OF_VOLUME: [&str; 1] = ["DriverConfig"];

/// A body with its fields named as documented.
#[derive(Clone, Debug)]
pub(crate) struct Body {
    whole: Map<String, Value>,
    /// Its `HostConfig`.
    host: Map<String, Value>,
}

impl Body {
    /// Reads a body.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut whole = object("the body", json::parse(bytes)?, &KNOWN)?;
        let mut host = match whole.remove("HostConfig") {
            None | Some(Value::Null) => Map::new(),
            Some(value) => object("HostConfig", value, &KNOWN_OF_HOST)?,
        };
        if let Some(Value::Array(mounts)) = host.get_mut("Mounts") {
            for mount in mounts {
                let mut named = object("HostConfig.Mounts", mount.take(), &KNOWN_OF_MOUNT)?;
                if let Some(options) = named.get_mut("VolumeOptions").filter(|options| !options.is_null()) {
                    *options = object("VolumeOptions", options.take(), &KNOWN_OF_VOLUME)?.into();
                }
                *mount = named.into();
            }
        }
        if let Some(value) = whole.remove("NetworkingConfig").filter(|value| !value.is_null()) {
            let mut networking = object("NetworkingConfig", value, &KNOWN_OF_NETWORKING)?;
            if let Some(Value::Object(endpoints)) = networking.get_mut("EndpointsConfig") {
                for endpoint in endpoints.values_mut().filter(|endpoint| !endpoint.is_null()) {
                    *endpoint = object("EndpointsConfig", endpoint.take(), &KNOWN_OF_ENDPOINT)?.into();
                }
            }
            whole.insert("NetworkingConfig".to_owned(), networking.into());
        }
        Ok(Self { whole, host })
    }

    /// A field; `None` where it is missing or null.
    pub(crate) fn get(&self, field: &str) -> Option<&Value> {
        self.whole.get(field).filter(|value| !value.is_null())
    }

    /// A field of `HostConfig`.
    pub(crate) fn host(&self, field: &str) -> Option<&Value> {
        self.host.get(field).filter(|value| !value.is_null())
    }

    /// A text of `HostConfig`; empty where there is none.
    pub(crate) fn host_text(&self, field: &str) -> &str {
        self.host(field).and_then(Value::as_str).unwrap_or_default()
    }

    /// The texts of a list of `HostConfig`.
    pub(crate) fn host_texts(&self, field: &str) -> Vec<&str> {
        self.host(field).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// Whether a switch of `HostConfig` is on.
    pub(crate) fn host_is(&self, field: &str) -> bool {
        self.host(field).and_then(Value::as_bool) == Some(true)
    }

    pub(crate) fn image(&self) -> &str {
        self.get("Image").and_then(Value::as_str).unwrap_or_default()
    }

    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        let labels = self.get("Labels").and_then(Value::as_object).into_iter().flatten();
        labels.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
    }

    /// Takes a field out.
    pub(crate) fn take(&mut self, field: &str) -> Option<Value> {
        self.whole.remove(field).filter(|value| !value.is_null())
    }

    /// Takes a field of `HostConfig` out.
    pub(crate) fn take_host(&mut self, field: &str) -> Option<Value> {
        self.host.remove(field).filter(|value| !value.is_null())
    }

    pub(crate) fn set_host(&mut self, field: &str, value: Value) {
        self.host.insert(field.to_owned(), value);
    }

    pub(crate) fn set_label(&mut self, name: &str, value: &str) {
        let labels = self.whole.entry("Labels").or_insert_with(|| Map::new().into());
        if !labels.is_object() {
            *labels = Map::new().into();
        }
        if let Value::Object(labels) = labels {
            labels.insert(name.to_owned(), value.into());
        }
    }

    pub(crate) fn into_value(self) -> Value {
        let Self { mut whole, host } = self;
        whole.insert("HostConfig".to_owned(), host.into());
        whole.into()
    }
}

/// An object with the fields that matter named as documented.
pub(super) fn object(what: &str, value: Value, known: &[&str]) -> Result<Map<String, Value>, String> {
    let Value::Object(fields) = value else { return Err(format!("{what} is no JSON object")) };
    let mut named = Map::new();
    for (name, value) in fields {
        // Letters beyond ASCII can stand for ASCII ones to the engine.
        if !name.is_ascii() {
            return Err(format!("{what} has a field whose name is not ASCII"));
        }
        let canonical = known.iter().find(|known| known.eq_ignore_ascii_case(&name));
        let canonical = canonical.map_or(name, |known| (*known).to_owned());
        named.insert(canonical, value);
    }
    Ok(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_count_in_any_case_as_the_engine_takes_them() {
        let body =
            Body::parse(br#"{"image": "a", "HOSTCONFIG": {"networkmode": "host"}, "labels": {"A": "b"}}"#);
        let body = body.unwrap();
        assert_eq!((body.image(), body.host_text("NetworkMode")), ("a", "host"));
        assert_eq!(body.labels(), BTreeMap::from([("A".to_owned(), "b".to_owned())]));
    }

    #[test]
    fn a_field_that_stands_twice_and_what_is_no_object_is_refused() {
        for text in [
            r#"{"Labels": {}, "labels": {}}"#,
            r#"{"HostConfig": {"CapAdd": [], "capadd": []}}"#,
            r#"{"Image": "a", "Image": "b"}"#,
            r#"{"HostConfig": {"Sysctls": {"a": "1", "a": "2"}}}"#,
            r#"{"HostConfig": {"Mounts": [{"Source": "/a", "source": "/b"}]}}"#,
            r#"{"HostConfig": []}"#,
            "{\"Ho\u{17f}tConfig\": {}}",
            "[]",
            "null",
            "{",
            "",
        ] {
            assert!(Body::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
