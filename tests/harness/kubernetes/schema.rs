//! Structural schemas, as strict as `fieldValidation=Strict` is.

use serde_json::Value;

/// The first fault of a value.
pub(super) fn check(value: &Value, schema: &Value, path: &str) -> Result<(), String> {
    if let Some(words) = schema["enum"].as_array()
        && !words.contains(value)
    {
        return Err(format!("{path}: Unsupported value: {value}"));
    }
    let fits = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64() || schema["x-kubernetes-int-or-string"] == true,
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        _ => true,
    };
    if !fits {
        return Err(format!("{path}: Invalid value: must be of type {}", schema["type"]));
    }
    if let Some(entries) = value.as_array() {
        for (number, entry) in entries.iter().enumerate() {
            check(entry, &schema["items"], &format!("{path}[{number}]"))?;
        }
    }
    if let Some(fields) = value.as_object() {
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !fields.contains_key(name) {
                return Err(format!("{path}.{name}: Required value"));
            }
        }
        for (name, field) in fields {
            let path = format!("{path}.{name}");
            match (&schema["properties"][name], &schema["additionalProperties"]) {
                // Metadata has a schema of its own.
                (known, _) if known.is_object() && path != ".metadata" => check(field, known, &path)?,
                (known, _) if known.is_object() => {}
                (_, others) if others.is_object() => check(field, others, &path)?,
                _ if schema["properties"].is_object() => {
                    return Err(format!("unknown field \"{}\"", path.trim_start_matches('.')));
                }
                _ => {}
            }
        }
    }
    Ok(())
}
