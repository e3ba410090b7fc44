//! Text of a peer, made harmless: what a proxy says of itself ends up in an operator's terminal.

/// `text` without characters that a terminal obeys instead of showing, at most `limit` of the others.
pub(crate) fn text(text: &str, limit: usize) -> String {
    text.chars().filter(|character| is_shown(*character)).take(limit).collect()
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
}
