//! The custom resource definitions: as checked in, structural, and true of every example.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use signet_policy::custom_resources;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// `SIGNET_BLESS=1 cargo test -p signet-policy` writes them anew.
#[test]
fn custom_resource_definitions_are_the_ones_that_are_checked_in() {
    let folder = root().join("manifests/kubernetes/crds");
    for resource in custom_resources() {
        let path = folder.join(format!("{}.yaml", resource.plural));
        let generated = "# Generated from the policy model: SIGNET_BLESS=1 cargo test -p signet-policy\n"
            .to_owned()
            + &serde_saphyr::to_string(&resource.definition).unwrap();
        if std::env::var_os("SIGNET_BLESS").is_some() {
            std::fs::write(&path, &generated).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), generated, "{}", path.display());
    }
    let checked_in = std::fs::read_dir(&folder).unwrap().count();
    assert_eq!(checked_in, custom_resources().len(), "a definition that nobody generates");
}

const SCHEMA: &str = "/spec/versions/0/schema/openAPIV3Schema";
/// What the API server knows of JSON Schema, and what we use of it.
const KEYWORDS: [&str; 16] = [
    "additionalProperties",
    "description",
    "enum",
    "format",
    "items",
    "maxProperties",
    "maximum",
    "minItems",
    "minProperties",
    "minimum",
    "pattern",
    "properties",
    "required",
    "type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
];

#[test]
fn schemas_are_structural() {
    fn check(schema: &Value, path: &str) {
        let fields = schema.as_object().unwrap_or_else(|| panic!("{path}: no schema"));
        for keyword in fields.keys() {
            assert!(KEYWORDS.contains(&keyword.as_str()), "{path}: {keyword}");
        }
        assert!(schema["type"].is_string(), "{path}: no type");
        assert_eq!(schema["type"] == "array", schema.get("items").is_some(), "{path}");
        assert!(schema.get("properties").is_none() || schema.get("additionalProperties").is_none(), "{path}");
        let properties = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
        properties.for_each(|(name, field)| check(field, &format!("{path}/{name}")));
        schema.get("items").into_iter().for_each(|items| check(items, &format!("{path}/[]")));
    }
    for resource in custom_resources() {
        check(resource.definition.pointer(SCHEMA).unwrap(), &resource.plural);
    }
}

/// As far as our schemas go, but for patterns and formats.
fn validate(value: &Value, schema: &Value, path: &str) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("{path}: {what}: {value}"));
    let fits = match schema["type"].as_str() {
        Some("array") => value.is_array(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64(),
        Some("object") => value.is_object(),
        Some("string") => value.is_string(),
        _ => false,
    };
    if !fits {
        return wrong("type");
    }
    if schema.get("enum").and_then(Value::as_array).is_some_and(|words| !words.contains(value)) {
        return wrong("enum");
    }
    let number = |keyword: &str| schema.get(keyword).and_then(Value::as_i64);
    let length = value.as_array().map(Vec::len).or_else(|| value.as_object().map(serde_json::Map::len));
    let length = length.map_or(0, |length| i64::try_from(length).unwrap());
    let size = value.as_i64().unwrap_or_default();
    let out = number("minItems").is_some_and(|least| length < least)
        || number("minProperties").is_some_and(|least| length < least)
        || number("maxProperties").is_some_and(|most| length > most)
        || number("minimum").is_some_and(|least| size < least)
        || number("maximum").is_some_and(|most| size > most);
    if out {
        return wrong("bounds");
    }
    for name in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
        if value.get(name.as_str().unwrap()).is_none() {
            return wrong("required");
        }
    }
    for (name, field) in value.as_object().into_iter().flatten() {
        let below = format!("{path}/{name}");
        match schema.get("properties").and_then(|fields| fields.get(name)) {
            Some(schema) => validate(field, schema, &below)?,
            // `metadata` is the API server's.
            None if schema.get("properties").is_none() => {}
            None => return Err(format!("{below}: unknown")),
        }
    }
    for (number, entry) in value.as_array().into_iter().flatten().enumerate() {
        validate(entry, &schema["items"], &format!("{path}/{number}"))?;
    }
    Ok(())
}

#[test]
fn every_example_fits_its_definition_and_a_wrong_one_does_not() {
    let schemas: BTreeMap<String, Value> = custom_resources()
        .into_iter()
        .map(|it| {
            (
                it.definition["spec"]["names"]["kind"].as_str().unwrap().to_owned(),
                it.definition.pointer(SCHEMA).unwrap().clone(),
            )
        })
        .collect();
    let mut seen = 0;
    for entry in std::fs::read_dir(root().join("manifests/examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|ending| ending != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for manifest in serde_saphyr::from_multiple::<Value>(&text).unwrap() {
            let schema = &schemas[manifest["kind"].as_str().unwrap()];
            validate(&manifest, schema, &path.display().to_string()).unwrap();
            let mut wrong = manifest.clone();
            wrong["spec"]["nobodyKnowsThis"] = true.into();
            validate(&wrong, schema, "").unwrap_err();
            seen += 1;
        }
    }
    assert!(seen > 10, "{seen}");
}
