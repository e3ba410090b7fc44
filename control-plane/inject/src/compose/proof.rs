//! The last look before a file is given out: it comes back as it was, and it says what was planned and nothing else.
//!
//! The edits are made by lines, and readers of YAML see no lines. So what was edited is read again as any reader would.

use std::collections::BTreeMap;

use super::Fault;
use super::marks::restore;
use super::project::Part;
use super::tree::{Bounds, Tree};
use super::value::{Data, Value, expand};

/// Compares `after`, the edited text of `before`, with the plan: what stands under each of `services`, and what is added
/// to other sections.
pub(super) fn check(
    file: &str,
    before: &str,
    after: &str,
    part: &Part,
    planned: &[(&str, Vec<(String, Value)>)],
) -> Result<(), Fault> {
    let wrong = |line, what: &str| {
        let message = format!("{what} after injection, so nothing is written");
        Fault::new(file, line, message, "write this part as plain block YAML without tags and anchors")
    };
    if restore(file, after)?.text != before {
        return Err(wrong(1, "the file would not come back as it is"));
    }
    let read = |text| expand(file, &Tree::parse_within(file, text, Bounds::INJECTED)?);
    let said =
        read(after).map_err(|fault| wrong(1, &format!("the file would be none ({})", fault.message)))?;
    let said = index(&said);
    let before = index(&part.root);
    for section in said.keys().chain(before.keys()) {
        let expected = planned.iter().find(|(name, _)| name == section);
        let line = before.get(section).map_or(1, |value| value.line.max(1));
        let same = match (expected, said.get(section)) {
            (Some((_, expected)), Some(said)) => {
                let expected: BTreeMap<&str, &Value> =
                    expected.iter().map(|(name, value)| (&**name, value)).collect();
                let found = index(said);
                let differs = expected
                    .iter()
                    .find(|(name, value)| !found.get(*name).is_some_and(|found| same(found, value)));
                if let Some((name, value)) = differs {
                    return Err(wrong(value.line.max(1), &format!("`{name}` of {section} would be another")));
                }
                expected.len() == found.len()
            }
            (None, Some(said)) => before.get(section).is_some_and(|value| same(said, value)),
            (_, None) => false,
        };
        if !same {
            return Err(wrong(line, &format!("`{section}` would say something else")));
        }
    }
    Ok(())
}

fn index(value: &Value) -> BTreeMap<&str, &Value> {
    value.entries().unwrap_or_default().iter().map(|entry| (&*entry.key, &entry.value)).collect()
}

/// Whether two values say the same: the order of keys says nothing, nor does how a text is quoted.
fn same(one: &Value, other: &Value) -> bool {
    if one.is_null() && other.is_null() {
        return true;
    }
    if one.tag != other.tag {
        return false;
    }
    match (&one.data, &other.data) {
        (Data::Scalar { text: one, plain: how }, Data::Scalar { text: other, plain }) => {
            // A plain word may be a number; in quotes it is a text.
            one == other && (how == plain || is_text(one))
        }
        (Data::Sequence(one), Data::Sequence(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Data::Mapping(_), Data::Mapping(_)) => {
            let (one, other) = (index(one), index(other));
            one.len() == other.len()
                && one.iter().all(|(key, value)| other.get(key).is_some_and(|other| same(value, other)))
        }
        _ => false,
    }
}

/// Whether a plain scalar is a text to every reader: what is written plain from a text is, and so is what has lines.
fn is_text(text: &str) -> bool {
    text.contains('\n') || text == "-" || !super::emit::quoted(text).starts_with('"')
}
