//! The difference of two values as a JSON Patch (RFC 6902).
//!
//! Lists that differ are replaced as a whole: their entries have no names, and a patch is applied to the very value that it was
//! made for.

use serde_json::{Value, json};

/// The operations that make `before` into `after`; none when they are the same.
pub fn patch(before: &Value, after: &Value) -> Vec<Value> {
    let mut operations = Vec::new();
    compare(before, after, "", &mut operations);
    operations
}

fn compare(before: &Value, after: &Value, path: &str, operations: &mut Vec<Value>) {
    let (Value::Object(old), Value::Object(new)) = (before, after) else {
        if before != after {
            operations.push(json!({ "op": "replace", "path": path, "value": after }));
        }
        return;
    };
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        operations.push(json!({ "op": "remove", "path": below(path, name) }));
    }
    for (name, value) in new {
        match old.get(name) {
            Some(before) => compare(before, value, &below(path, name), operations),
            None => operations.push(json!({ "op": "add", "path": below(path, name), "value": value })),
        }
    }
}

/// RFC 6901.
fn below(path: &str, name: &str) -> String {
    format!("{path}/{}", name.replace('~', "~0").replace('/', "~1"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-c/~ü]{0,3}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c/~]{0,2}", inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn an_independent_program_makes_one_into_the_other(before in value(), after in value()) {
            let operations: json_patch::Patch = serde_json::from_value(patch(&before, &after).into()).unwrap();
            let mut patched = before;
            json_patch::patch(&mut patched, &operations).unwrap();
            prop_assert_eq!(patched, after);
        }

        #[test]
        fn nothing_is_done_to_what_is_the_same(same in value()) {
            prop_assert!(patch(&same, &same).is_empty());
        }
    }
}
