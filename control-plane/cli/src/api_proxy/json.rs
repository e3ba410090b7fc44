//! JSON as the engine would have to read it: an object in which a name stands twice is refused.
//!
//! The engine (Go's `encoding/json`) takes field names in any case and of two the later one, and merges objects that stand
//! twice. What is decided here must be what it does, so there is only one reading.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Reads a text that is one JSON value.
///
/// # Errors
/// What is wrong with it: no JSON, or a name that stands twice in an object, at any depth.
pub(super) fn parse(bytes: &[u8]) -> Result<Value, String> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let read = Once.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    read.map_err(|error| format!("the body is no JSON that can be read in one way only: {error}"))
}

/// A name as the engine compares it: two letters beyond ASCII stand for ASCII ones there.
pub(super) fn folded(name: &str) -> String {
    let fold = |letter: char| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        letter => letter.to_ascii_lowercase(),
    };
    name.chars().map(fold).collect()
}

/// A value whose objects have each name once. How deep it may be is `serde_json`'s limit, 128.
struct Once;

impl<'de> DeserializeSeed<'de> for Once {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Once {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Self)? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let (mut object, mut seen) = (Map::new(), BTreeSet::new());
        while let Some(name) = fields.next_key::<String>()? {
            if !seen.insert(folded(&name)) {
                return Err(A::Error::custom(format!("the field {name} stands there twice")));
            }
            let value = fields.next_value_seed(Self)?;
            object.insert(name, value);
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_stands_twice_is_refused_at_any_depth_and_in_any_case() {
        for text in [
            r#"{"Image": "a", "Image": "b"}"#,
            r#"{"Image": "a", "image": "b"}"#,
            r#"{"Image": "a", "\u0049mage": "b"}"#,
            r#"{"HostConfig": {"Mounts": [{"VolumeOptions": {"NoCopy": true, "nocopy": false}}]}}"#,
            r#"{"Labels": {"signet.mf2c-project.eu/workload": "a", "signet.mf2c-project.eu/workload": "b"}}"#,
            "{\"Links\": [], \"lin\u{212a}s\": []}",
            "{\"HostConfig\": {}, \"Ho\u{17f}tconfig\": {}}",
        ] {
            let refusal = parse(text.as_bytes()).unwrap_err();
            assert!(refusal.contains("twice"), "{text}: {refusal}");
        }
    }

    #[test]
    fn everything_else_is_read_as_it_is() {
        let text = r#"{"a": [null, true, -1, 1, 1.5, "x", {"b": {}}, []], "b": {"a": {}}}"#;
        let plain: Value = serde_json::from_str(text).unwrap();
        assert_eq!(parse(text.as_bytes()), Ok(plain));
        for text in ["{} {}", "{", "", &"[".repeat(200_000)] {
            assert!(parse(text.as_bytes()).is_err());
        }
    }
}
