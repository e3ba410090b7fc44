//! How Compose lays one service over another: what `extends` does, and several files.
//!
//! Source: the Compose Specification, "Merge", and `merge_service_dicts` of docker-compose 1.29.

use super::value::{Data, Entry, Value};

/// Lists of `KEY=VALUE` or mappings: entry by entry.
const PAIRS: [&str; 6] = ["annotations", "environment", "labels", "storage_opt", "sysctls", "ulimits"];
/// Lists in which everything of both counts once.
const UNIONS: [&str; 20] = [
    "cap_add",
    "cap_drop",
    "configs",
    "device_cgroup_rules",
    "dns",
    "dns_opt",
    "dns_search",
    "env_file",
    "expose",
    "external_links",
    "group_add",
    "links",
    "ports",
    "profiles",
    "secrets",
    "security_opt",
    "tmpfs",
    "volumes_from",
    "label_file",
    "gpus",
];
/// Lists in which a later entry for the same path within the container replaces an earlier one.
const PATHS: [&str; 2] = ["devices", "volumes"];
/// Mappings that are merged entry by entry, and within.
const DEEP: [&str; 6] = ["blkio_config", "build", "credential_spec", "deploy", "develop", "healthcheck"];

/// `over` laid over `base`.
pub(super) fn services(base: Value, over: Value) -> Value {
    let (Data::Mapping(base_entries), Data::Mapping(over_entries)) = (base.data, over.data) else {
        return Value::sequence(Vec::new());
    };
    let mut merged = Value { data: Data::Mapping(base_entries), line: over.line, tag: None };
    for Entry { key, value, .. } in over_entries {
        match value.tag.as_deref() {
            Some("!reset") => merged.remove(&key),
            Some("!override") => merged.set(&key, Value { tag: None, ..value }),
            _ => {
                let value = match merged.entry(&key) {
                    Some(entry) => field(&key, entry.value.clone(), value),
                    None => value,
                };
                merged.set(&key, value);
            }
        }
    }
    merged
}

/// One file laid over another, but for its services: sections entry by entry, and within.
pub(super) fn files(base: Value, over: Value) -> Value {
    let mut merged = base;
    for entry in over.entries().unwrap_or_default() {
        match (merged.get(&entry.key).cloned(), &mut merged.data) {
            (Some(known), _) => merged.set(&entry.key, deep(known, entry.value.clone(), false)),
            // With its own line.
            (None, Data::Mapping(entries)) => entries.push(entry.clone()),
            (None, _) => {}
        }
    }
    merged
}

fn field(key: &str, base: Value, over: Value) -> Value {
    if base.is_null() {
        return over;
    }
    match key {
        _ if PAIRS.contains(&key) => entries(pairs(base, &['=']), pairs(over, &['='])),
        "extra_hosts" => entries(pairs(base, &['=', ':']), pairs(over, &['=', ':'])),
        "depends_on" => entries(dependencies(base), dependencies(over)),
        "networks" => deep(names(base), names(over), true),
        "build" => deep(built(base), built(over), true),
        "logging" if base.text_of("driver") == over.text_of("driver") || over.get("driver").is_none() => {
            deep(base, over, true)
        }
        _ if DEEP.contains(&key) => deep(base, over, false),
        _ if UNIONS.contains(&key) => union(base, over),
        _ if PATHS.contains(&key) => by_path(base, over),
        _ => over,
    }
}

/// A list of `KEY=VALUE` as a mapping.
fn pairs(value: Value, separators: &[char]) -> Value {
    let Data::Sequence(items) = value.data else { return value };
    let mut mapping = Value { data: Data::Mapping(Vec::new()), line: value.line, tag: None };
    for item in items {
        let Some(text) = item.as_text() else { continue };
        let pair = text.split_once(separators);
        let said = pair.map_or_else(|| Value::plain(""), |(_, said)| Value::text(said));
        mapping.set(pair.map_or(text, |(key, _)| key), Value { line: item.line, ..said });
    }
    mapping
}

/// `depends_on` in its long form.
pub(super) fn dependencies(value: Value) -> Value {
    let Data::Sequence(items) = value.data else { return value };
    let long = |item: &Value| {
        let started = Value::mapping([("condition", Value::text("service_started"))]);
        Some((item.as_text()?.to_owned(), started))
    };
    Value { line: value.line, ..Value::mapping(items.iter().filter_map(long)) }
}

/// `networks` in its long form.
pub(super) fn names(value: Value) -> Value {
    let Data::Sequence(items) = value.data else { return value };
    let named = items.iter().filter_map(|item| Some((item.as_text()?.to_owned(), Value::plain(""))));
    Value { line: value.line, ..Value::mapping(named) }
}

fn built(value: Value) -> Value {
    match value.data {
        Data::Scalar { .. } => Value::mapping([("context", value)]),
        _ => value,
    }
}

fn entries(mut base: Value, over: Value) -> Value {
    if let Data::Mapping(entries) = over.data {
        entries.into_iter().for_each(|entry| base.set(&entry.key, entry.value));
    }
    base
}

/// Merges mappings and, where `lists` says so, joins lists; everything else is replaced.
fn deep(base: Value, over: Value, lists: bool) -> Value {
    match (&base.data, over.data) {
        (Data::Mapping(_), Data::Mapping(entries)) => {
            let mut merged = base;
            for Entry { key, value, .. } in entries {
                let value = match merged.get(&key) {
                    Some(known) => deep(known.clone(), value, lists),
                    None => value,
                };
                merged.set(&key, value);
            }
            merged
        }
        (Data::Sequence(_), data @ Data::Sequence(_)) if lists => {
            union(base, Value { data, line: over.line, tag: over.tag })
        }
        (Data::Mapping(_), Data::Scalar { text, plain: true }) if text.is_empty() => base,
        (_, data) => Value { data, line: over.line, tag: over.tag },
    }
}

fn union(base: Value, over: Value) -> Value {
    let mut items = listed(base);
    for item in listed(over) {
        // What is not a word is compared by nothing and stays.
        if item.as_text().is_none() || !items.iter().any(|known| known.as_text() == item.as_text()) {
            items.push(item);
        }
    }
    Value::sequence(items)
}

fn by_path(base: Value, over: Value) -> Value {
    let mut items = listed(base);
    for item in listed(over) {
        match items.iter_mut().find(|known| target(known).is_some() && target(known) == target(&item)) {
            Some(known) => *known = item,
            None => items.push(item),
        }
    }
    Value::sequence(items)
}

/// A list, also where one word stands for a list of one.
fn listed(value: Value) -> Vec<Value> {
    match value.data {
        Data::Sequence(items) => items,
        Data::Scalar { .. } if !value.is_null() => vec![value],
        _ => Vec::new(),
    }
}

/// The path within the container.
fn target(item: &Value) -> Option<&str> {
    match item.as_text() {
        Some(text) => {
            let mut parts = text.split(':');
            let first = parts.next();
            parts.next().or(first)
        }
        None => item.text_of("target"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compose::emit;
    use crate::compose::tree::Tree;
    use crate::compose::value::expand;

    #[test]
    fn services_are_merged_as_compose_does() {
        let text = "\
base:
  image: a
  command: [x, y]
  environment: [A=1, B=2]
  ports: [\"80:80\"]
  volumes: [\"./a:/data\", \"./b:/more\"]
  networks: [front]
  depends_on: [db]
  build: .
  healthcheck: {test: [CMD, a], interval: 3s}
  labels: {x: a}
over:
  image: b
  command: [z]
  environment: {B: 3, C: }
  ports: [\"80:80\", \"81:81\"]
  volumes: [\"./c:/data:ro\"]
  networks: {back: {aliases: [w]}}
  depends_on: {cache: {condition: service_healthy}}
  build: {target: t}
  healthcheck: {test: [CMD, b]}
  labels: !reset
";
        let value = expand("f", &Tree::parse("f", text).unwrap()).unwrap();
        let merged = services(value.get("base").unwrap().clone(), value.get("over").unwrap().clone());
        let mut lines = Vec::new();
        emit::entry(&mut lines, 0, "s", &merged);
        let expected = "\
s:
  image: b
  command: [z]
  environment:
    A: \"1\"
    B: 3
    C:
  ports: [\"80:80\", \"81:81\"]
  volumes: [\"./c:/data:ro\", \"./b:/more\"]
  networks:
    front:
    back:
      aliases: [w]
  depends_on:
    db:
      condition: service_started
    cache:
      condition: service_healthy
  build:
    context: .
    target: t
  healthcheck:
    test: [CMD, b]
    interval: 3s";
        assert_eq!(lines.join("\n"), expected);
    }
}
