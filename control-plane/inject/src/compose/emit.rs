//! Writes values as YAML in block style, for every reader from YAML 1.1 on.

use super::value::{Data, Value};

/// Longest list that is written on one line, in bytes.
const SHORT: usize = 72;

/// The lines of `key: value`, indented by `indent` spaces.
pub(super) fn entry(lines: &mut Vec<String>, indent: usize, key: &str, value: &Value) {
    let head = format!("{:indent$}{}:", "", quoted(key));
    under(lines, indent, head, value, 2);
}

/// Writes `value` after or under `head`.
fn under(lines: &mut Vec<String>, indent: usize, mut head: String, value: &Value, deeper: usize) {
    if let Some(tag) = &value.tag {
        head.push(' ');
        head.push_str(tag);
    }
    match &value.data {
        Data::Scalar { text, plain } => {
            let text = as_scalar(text, *plain);
            if !text.is_empty() {
                head.push(' ');
                head.push_str(&text);
            }
            lines.push(head);
        }
        Data::Mapping(entries) if entries.is_empty() => lines.push(head + " {}"),
        Data::Mapping(entries) => {
            lines.push(head);
            for each in entries {
                entry(lines, indent + deeper, &each.key, &each.value);
            }
        }
        Data::Sequence(items) => match on_one_line(items) {
            Some(list) => lines.push(format!("{head} {list}")),
            None => {
                lines.push(head);
                items.iter().for_each(|each| item(lines, indent + deeper, each));
            }
        },
    }
}

fn item(lines: &mut Vec<String>, indent: usize, value: &Value) {
    match &value.data {
        // The first entry stands behind the dash.
        Data::Mapping(entries) if !entries.is_empty() && value.tag.is_none() => {
            let mut below = Vec::new();
            for each in entries {
                entry(&mut below, indent + 2, &each.key, &each.value);
            }
            if let Some(first) = below.first_mut() {
                let rest = first.trim_start();
                *first = format!("{:indent$}- {rest}", "");
            }
            lines.append(&mut below);
        }
        _ => under(lines, indent, format!("{:indent$}-", ""), value, 2),
    }
}

/// A list of a few words that need no care within brackets.
fn on_one_line(items: &[Value]) -> Option<String> {
    let mut words = Vec::with_capacity(items.len());
    for item in items {
        let Data::Scalar { text, plain } = &item.data else { return None };
        let text = as_scalar(text, *plain);
        let careless = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_./-".contains(&byte))
        };
        if item.tag.is_some() || !(text.starts_with('"') || careless(&text)) {
            return None;
        }
        words.push(text);
    }
    let list = format!("[{}]", words.join(", "));
    (list.len() <= SHORT).then_some(list)
}

/// A scalar on one line. What was plain stays so, unless it spans lines or would begin a list: then it is a text to every
/// reader, and in quotes it still is.
fn as_scalar(text: &str, plain: bool) -> String {
    if plain && !text.contains('\n') && text != "-" { text.to_owned() } else { quoted(text) }
}

/// A text as a plain scalar if every reader takes it for a text, in double quotes otherwise.
pub(super) fn quoted(text: &str) -> String {
    let begins = text.starts_with(|first: char| first.is_ascii_alphabetic() || "_/".contains(first));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_./=@:-".contains(&byte);
    let word = matches!(
        text.to_ascii_lowercase().as_str(),
        "y" | "n" | "yes" | "no" | "on" | "off" | "true" | "false" | "null"
    );
    if begins && text.bytes().all(plain) && !text.ends_with(':') && !word {
        return text.to_owned();
    }
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            // Line ends of YAML 1.1, the mark of byte order, and what YAML does not take unescaped.
            '\u{85}' | '\u{2028}' | '\u{2029}' | '\u{feff}' => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            control if control.is_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(control))),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compose::tree::Tree;
    use crate::compose::value::expand;

    #[test]
    fn written_values_are_read_as_they_were() {
        let text = "a: {b: [1, 'on', \"x\\ny\"], c: {}, d: [], e: , f: [[1, [2]], {g: h, i: [{j: k}]}]}\n\
                    l: |\n  m: n\n  # o\np: !!str 80\nq: [\"a b\", 'it''s', \"\\u2028\\x07\"]\n'r s': 22:22\n";
        let mut lines = Vec::new();
        let value = expand("f", &Tree::parse("f", text).unwrap()).unwrap();
        for each in value.entries().unwrap() {
            entry(&mut lines, 2, &each.key, &each.value);
        }
        let again = expand("f", &Tree::parse("f", &lines.join("\n")).unwrap()).unwrap();
        assert_eq!(bare(&again), bare(&value), "{}", lines.join("\n"));
    }

    #[test]
    fn plain_text_over_several_lines_stays_one_text() {
        let text = "a: one\n\n  services\n\n  - two\nb: {c: [x\n\n  y, z]}\n";
        let value = expand("f", &Tree::parse("f", text).unwrap()).unwrap();
        let mut lines = Vec::new();
        for each in value.entries().unwrap() {
            entry(&mut lines, 2, &each.key, &each.value);
        }
        assert_eq!(lines, ["  a: \"one\\nservices\\n- two\"", "  b:", "    c: [\"x\\ny\", z]"]);
    }

    /// What is said, without where and how.
    fn bare(value: &Value) -> String {
        let tag = value.tag.as_deref().unwrap_or_default();
        match &value.data {
            Data::Scalar { text, plain: true } if tag.is_empty() => format!("plain {text}"),
            Data::Scalar { text, .. } => format!("{tag}{text:?}"),
            Data::Sequence(items) => format!("{:?}", items.iter().map(bare).collect::<Vec<_>>()),
            Data::Mapping(entries) => {
                format!(
                    "{:?}",
                    entries.iter().map(|entry| (&entry.key, bare(&entry.value))).collect::<Vec<_>>()
                )
            }
        }
    }
}
