//! Edits by whole lines that can be taken back: what is taken out stays as a comment, what is added stands between marks.

use std::collections::{BTreeMap, BTreeSet};

use super::Fault;

/// Before a line that was taken out; the line follows with its own line end.
const REMOVED: &str = "#signet- ";
const BEGIN: &str = "#signet+ begin";
/// As [`BEGIN`], where the line before had no line end.
const BEGIN_JOINED: &str = "#signet+ begin, the line before had no line end";
const END: &str = "#signet+ end";
/// Before the version of these marks, in the first block.
const FORMAT: &str = "# signet-format: ";
const FORMAT_VERSION: &str = "1";
/// Before the digest of what was there before, in the first block.
const ORIGINAL: &str = "# signet-original: ";
/// Before the digest of all that was added, this line apart, in the first block.
const ADDED: &str = "# signet-added: ";
const BYTE_ORDER_MARK: char = '\u{feff}';

/// What to change in a text.
#[derive(Debug, Default)]
pub(super) struct Edits {
    /// Lines that are taken out, from 1.
    pub(super) removed: BTreeSet<usize>,
    /// Lines that are added after the line of this number, without line ends.
    pub(super) added: BTreeMap<usize, Vec<String>>,
}

impl Edits {
    pub(super) fn remove(&mut self, first: usize, last: usize) {
        self.removed.extend(first..=last);
    }

    pub(super) fn add_after(&mut self, line: usize, lines: Vec<String>) {
        self.added.entry(line).or_default().extend(lines);
    }

    /// Whether nothing changes.
    pub(super) fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.added.is_empty()
    }

    /// The edited text. `digest` names the digest of bytes, and `note` tells people what this is.
    pub(super) fn apply(&self, text: &str, digest: &dyn Fn(&[u8]) -> String, note: &[String]) -> String {
        let mut head: Vec<String> = note.iter().map(|line| format!("# {line}")).collect();
        head.extend([format!("{FORMAT}{FORMAT_VERSION}"), format!("{ORIGINAL}{}", digest(text.as_bytes()))]);
        let added = added(&self.written(text, &head));
        head.push(format!("{ADDED}{}", digest(added.as_bytes())));
        self.written(text, &head)
    }

    fn written(&self, text: &str, head: &[String]) -> String {
        let body = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
        let line_end = if body.split_inclusive('\n').next().is_some_and(|line| line.ends_with("\r\n")) {
            "\r\n"
        } else {
            "\n"
        };
        let mut out = String::with_capacity(text.len() * 3);
        if body.len() < text.len() {
            out.push(BYTE_ORDER_MARK);
        }
        block(&mut out, head, line_end);
        for (at, line) in body.split_inclusive('\n').enumerate() {
            let number = at + 1;
            if self.removed.contains(&number) {
                out.push_str(REMOVED);
            }
            out.push_str(line);
            if let Some(added) = self.added.get(&number) {
                block(&mut out, added, line_end);
            }
        }
        out
    }
}

fn block(out: &mut String, lines: &[String], line_end: &str) {
    let joined = !(out.is_empty() || out.ends_with('\n') || *out == BYTE_ORDER_MARK.to_string());
    if joined {
        out.push_str(line_end);
    }
    for line in [if joined { BEGIN_JOINED } else { BEGIN }]
        .into_iter()
        .chain(lines.iter().map(String::as_str))
        .chain([END])
    {
        out.push_str(line);
        out.push_str(line_end);
    }
}

/// A text as it was before, with what the marks say of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Restored {
    /// The text without what was added.
    pub text: String,
    /// The digest of the original, as it was noted when the text was injected. Where the text's own digest is another,
    /// somebody has changed the file since, and the change is kept.
    pub digest: String,
    /// All that was between the marks.
    pub added: String,
    /// The digest of what was put there; none in a file of an earlier version.
    pub added_digest: Option<String>,
}

impl Restored {
    /// Whether somebody has changed what stands between the marks: taking it back would lose that.
    pub fn is_added_changed(&self, digest: &dyn Fn(&[u8]) -> String) -> bool {
        self.added_digest.as_ref().is_some_and(|known| *known != digest(self.added.as_bytes()))
    }
}

/// What stands between marks, without the line that holds its digest. Editors take spaces off the ends of lines.
fn added(text: &str) -> String {
    let mut inside = false;
    let mut added = String::new();
    for line in text.trim_start_matches(BYTE_ORDER_MARK).lines().map(str::trim_end) {
        match line.trim_start() {
            BEGIN | BEGIN_JOINED => inside = true,
            END => inside = false,
            other if inside && !other.starts_with(ADDED.trim_end()) => {
                added.push_str(line);
                added.push('\n');
            }
            _ => {}
        }
    }
    added
}

/// Whether a text holds marks of an injection.
pub fn is_injected(text: &str) -> bool {
    text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text).lines().any(is_mark)
}

fn is_mark(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("#signet-") || line.starts_with("#signet+")
}

/// Takes back what was injected: the original, byte for byte, where nobody has changed the file since.
///
/// # Errors
/// There are no marks, they do not fit together, or another version has written them.
pub fn restore(file: &str, text: &str) -> Result<Restored, Fault> {
    let body = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let mut out = String::with_capacity(text.len());
    if body.len() < text.len() {
        out.push(BYTE_ORDER_MARK);
    }
    let (mut inside, mut format, mut digest, mut added_digest) = (None, None, None, None);
    let again = "take the file from where it came, or correct the marks by hand";
    for (at, whole) in body.split_inclusive('\n').enumerate() {
        let number = at + 1;
        let line = whole.trim();
        if inside.is_some() {
            if line == END {
                inside = None;
            } else if line == BEGIN || line == BEGIN_JOINED {
                return Err(Fault::new(file, number, "an added block begins within another", again));
            } else if let Some(found) = line.strip_prefix(FORMAT) {
                format = format.or(Some((found, number)));
            } else if let Some(found) = line.strip_prefix(ORIGINAL) {
                digest = digest.or_else(|| Some(found.to_owned()));
            } else if let Some(found) = line.strip_prefix(ADDED) {
                added_digest = added_digest.or_else(|| Some(found.to_owned()));
            }
        } else if line == BEGIN || line == BEGIN_JOINED {
            inside = Some(number);
            if line == BEGIN_JOINED {
                let kept = out.strip_suffix('\n').map(|rest| rest.strip_suffix('\r').unwrap_or(rest).len());
                out.truncate(kept.unwrap_or(out.len()));
            }
        } else if let Some(original) = whole.trim_start_matches([' ', '\t']).strip_prefix(REMOVED.trim_end())
        {
            // Editors take spaces off the ends of lines.
            out.push_str(original.strip_prefix(' ').unwrap_or(original));
        } else if is_mark(line) {
            return Err(Fault::new(file, number, "a mark of an injection that means nothing here", again));
        } else {
            out.push_str(whole);
        }
    }
    if let Some(begin) = inside {
        return Err(Fault::new(file, begin, "the added block that begins here has no end", again));
    }
    let (Some((format, line)), Some(digest)) = (format, digest) else {
        let message = "this was not written by `signet inject compose`: the block that says so is missing";
        return Err(Fault::new(file, 1, message, "name an injected file"));
    };
    if format != FORMAT_VERSION {
        let message = format!("marks of version {format}, and this program knows {FORMAT_VERSION}");
        return Err(Fault::new(file, line, message, "use the version of `signet` that wrote the file"));
    }
    Ok(Restored { text: out, digest, added: added(body), added_digest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_out_and_added_comes_back_byte_for_byte() {
        for text in [
            "a: 1\nb: 2\nc: 3\n",
            "a: 1\nb: 2\nc: 3",
            "a: 1\r\n\tb: 2  \r\nc: 3\r\n",
            "a: 1\r\nb: 2\r\nc: 3",
            "\u{feff}a: 1\n\nc: 3",
            "\u{feff}",
            "",
        ] {
            for edited in [vec![], vec![2], vec![1, 2, 3], vec![3]] {
                let mut edits = Edits::default();
                edited.iter().for_each(|line| edits.remove(*line, *line));
                edited.iter().for_each(|line| edits.add_after(*line, vec!["x: 1".to_owned()]));
                let digest =
                    |bytes: &[u8]| format!("={}", String::from_utf8_lossy(bytes).replace(['\r', '\n'], "|"));
                let injected = edits.apply(text, &digest, &["note".to_owned()]);
                let restored =
                    restore("f", &injected).unwrap_or_else(|fault| panic!("{fault:?} in {injected:?}"));
                assert_eq!((&*restored.text, restored.digest.clone()), (text, digest(text.as_bytes())));
                assert!(!restored.is_added_changed(&digest));
                let changed = restore("f", &injected.replacen("# note", "# mine", 1)).unwrap();
                assert!(changed.is_added_changed(&digest));
                let elsewhere = restore("f", &format!("{injected}# mine\n")).unwrap();
                assert!(!elsewhere.is_added_changed(&digest));
            }
        }
    }

    #[test]
    fn marks_that_do_not_fit_are_refused_with_their_line() {
        let head = "#signet+ begin\n# signet-format: 1\n# signet-original: x\n#signet+ end\n";
        assert!(restore("f", head).is_ok());
        for (text, line) in [
            ("a: 1\n".to_owned(), 1),
            ("#signet- a: 1\n".to_owned(), 1),
            (format!("{head}#signet+ begin\n"), 5),
            (format!("{head}#signet+ begin\n#signet+ begin\n"), 6),
            (format!("{head}#signet+ end\n"), 5),
            (head.replace(": 1", ": 2"), 2),
        ] {
            assert_eq!(restore("f", &text).unwrap_err().line, line, "{text}");
        }
    }
}
