//! A custom resource as a manifest: the same fields as text, and for each line of it the way to the field there.
//!
//! The text is what is stored, so `signet get -o yaml` shows it; diagnostics name lines of it, and people who wrote the
//! resource some other way are told the field.

use std::fmt::Write as _;

use serde_json::Value;
use signet_policy::{Diagnostic, Kind};

/// Deepest nesting; manifests have ten levels, and what is deeper is refused when it is read.
const DEPTH_MAX: usize = 64;

/// A resource as read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Rendered {
    /// The manifest.
    pub(crate) text: String,
    /// For each line, the field.
    paths: Vec<String>,
}

/// The manifest of a custom resource.
pub(crate) fn render(kind: Kind, name: &str, spec: &Value) -> Rendered {
    let mut to = Rendered { text: String::new(), paths: Vec::new() };
    to.line(0, &format!("apiVersion: {}", signet_policy::API_VERSION), "apiVersion");
    to.line(0, &format!("kind: {kind}"), "kind");
    to.line(0, "metadata:", "metadata");
    to.line(1, &format!("name: {}", quoted(name)), "metadata.name");
    to.field(0, "spec", spec, "spec");
    to
}

impl Rendered {
    /// What is wrong with it, in one line for people.
    pub(crate) fn told(&self, diagnostic: &Diagnostic) -> String {
        let line = usize::try_from(diagnostic.line).unwrap_or_default();
        let field = line.checked_sub(1).and_then(|line| self.paths.get(line));
        let place =
            field.map(|field| format!("{field} (line {}, column {}): ", diagnostic.line, diagnostic.column));
        format!("{}{}; fix: {}", place.unwrap_or_default(), diagnostic.message, diagnostic.fix)
    }

    fn line(&mut self, depth: usize, text: &str, path: &str) {
        let _ = writeln!(self.text, "{:indent$}{text}", "", indent = depth * 2);
        self.paths.push(path.to_owned());
    }

    fn field(&mut self, depth: usize, name: &str, value: &Value, path: &str) {
        let name = key(name);
        match inline(value, depth) {
            Some(text) => self.line(depth, &format!("{name}: {text}"), path),
            None => {
                self.line(depth, &format!("{name}:"), path);
                self.inside(depth + 1, value, path);
            }
        }
    }

    fn inside(&mut self, depth: usize, value: &Value, path: &str) {
        match value {
            Value::Array(entries) => {
                for (number, entry) in entries.iter().enumerate() {
                    let path = format!("{path}[{number}]");
                    match inline(entry, depth) {
                        Some(text) => self.line(depth, &format!("- {text}"), &path),
                        None => {
                            self.line(depth, "-", &path);
                            self.inside(depth + 1, entry, &path);
                        }
                    }
                }
            }
            Value::Object(fields) => {
                for (name, value) in fields {
                    self.field(depth, name, value, &format!("{path}.{name}"));
                }
            }
            _ => {}
        }
    }
}

/// What fits on the line of its name: everything but lists and mappings with something in them.
fn inline(value: &Value, depth: usize) -> Option<String> {
    match value {
        Value::Array(entries) if entries.is_empty() => Some("[]".to_owned()),
        Value::Object(fields) if fields.is_empty() => Some("{}".to_owned()),
        // Refused when it is read; it must not take the stack here.
        Value::Array(_) | Value::Object(_) if depth >= DEPTH_MAX => Some(quoted("nested too deeply")),
        Value::Array(_) | Value::Object(_) => None,
        Value::String(text) => Some(quoted(text)),
        other => Some(other.to_string()),
    }
}

fn key(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric();
    let starts = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
    // The words that YAML takes for something else are no fields of ours, and quoted like everything unknown.
    let word = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
        .contains(&name.to_ascii_lowercase().as_str());
    if starts && !word && name.bytes().all(plain) { name.to_owned() } else { quoted(name) }
}

/// In double quotes, everything that YAML would not print escaped.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            // Of those in the first plane: controls, line and paragraph separators, the byte order mark.
            '\u{0}'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{2028}'
            | '\u{2029}'
            | '\u{feff}'
            | '\u{fffe}'
            | '\u{ffff}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use signet_policy::parse_manifests;

    use super::*;

    fn spec() -> Value {
        json!({
            "trustDomain": "mesh.example",
            "mtls": { "mode": "permissive" },
            "networks": [{ "name": "cluster", "cidrs": ["10.0.0.0/8", "fd00::/8"] }, { "name": "edge", "cidrs": [] }],
        })
    }

    #[test]
    fn a_resource_is_the_manifest_it_says() {
        let rendered = render(Kind::Mesh, "mesh", &spec());
        let manifests =
            parse_manifests("Mesh/mesh", &rendered.text).unwrap_or_else(|faults| panic!("{faults:?}"));
        assert_eq!((manifests.len(), manifests[0].kind(), manifests[0].name()), (1, Kind::Mesh, "mesh"));
        assert_eq!(manifests[0].text(), rendered.text);
        assert_eq!(rendered.text.lines().count(), rendered.paths.len());
    }

    #[test]
    fn a_fault_names_the_field() {
        let mut spec = spec();
        spec["networks"][1]["cidrs"] = json!(["10.0.0.0/40"]);
        let rendered = render(Kind::Mesh, "mesh", &spec);
        let manifests = parse_manifests("Mesh/mesh", &rendered.text).unwrap();
        let faults = signet_policy::compile(&manifests).unwrap_err();
        let told = rendered.told(&faults[0]);
        assert!(told.starts_with("spec.networks[1].cidrs[0] (line 16, column "), "{told}");
        assert!(told.contains("10.0.0.0/40") && told.contains("; fix: "), "{told}");
    }

    #[test]
    fn texts_stay_what_they_are_whatever_stands_in_them() {
        for text in [
            "",
            "yes",
            "null",
            "1",
            "a: b",
            "- x",
            "--- \n...",
            "#",
            "'",
            "\"\\",
            "tab\tend\r\n",
            "\u{0}\u{7}\u{85}\u{2028}\u{feff}",
            "ünïcode \u{1f600}",
            "*alias &anchor !tag <<",
            " spaces ",
        ] {
            let rendered = render(Kind::Mesh, text, &json!({ "trustDomain": text }));
            let read: Value =
                serde_saphyr::from_str(&rendered.text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
            assert_eq!(
                (&read["metadata"]["name"], &read["spec"]["trustDomain"]),
                (&json!(text), &json!(text))
            );
        }
        let odd = json!({ "true": 1, "a b": { "": [[], [[1, -2.5, true, null]]] } });
        let read: Value = serde_saphyr::from_str(&render(Kind::Mesh, "m", &odd).text).unwrap();
        assert_eq!(read["spec"], odd);
    }

    #[test]
    fn nesting_without_end_takes_no_stack() {
        let mut deep = json!(1);
        for _ in 0..100 {
            deep = json!([deep]);
        }
        assert!(parse_manifests("Mesh/m", &render(Kind::Mesh, "m", &deep).text).is_err());
    }
}
