//! Text of a peer, made harmless: what a proxy says of itself ends up in an operator's terminal.

use serde_json::Value;

/// `text` without characters that a terminal obeys instead of showing, at most `limit` of the others.
pub(crate) fn text(text: &str, limit: usize) -> String {
    text.chars().filter(|character| is_shown(*character)).take(limit).collect()
}

/// The same for every string in a JSON value, names of fields included. The depth is the parser's bound.
pub(crate) fn json(value: Value) -> Value {
    match value {
        Value::String(string) => Value::String(text(&string, usize::MAX)),
        Value::Array(values) => values.into_iter().map(json).collect(),
        Value::Object(fields) => {
            fields.into_iter().map(|(name, value)| (text(&name, usize::MAX), json(value))).collect()
        }
        other => other,
    }
}

/// Neither a control character (C0, DEL and C1, which has 8-bit escapes) nor one that reorders or breaks the line.
fn is_shown(character: char) -> bool {
    !character.is_control()
        && !matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_line_ends_and_reordering_are_taken_out() {
        assert_eq!(text("a\u{1b}[2Jb\r\nc\u{9b}1md\u{7f}\u{202e}e é", 100), "a[2Jbc1mde é");
        assert_eq!(text("\u{1b}\u{1b}abc", 2), "ab");
    }

    #[test]
    fn json_is_cleaned_in_every_place() {
        let value = serde_json::json!({ "a\u{1b}": ["b\u{9b}", { "c": 1, "d": "\u{202e}" }], "e": null });
        let clean = serde_json::json!({ "a": ["b", { "c": 1, "d": "" }], "e": null });
        assert_eq!(json(value), clean);
    }
}
