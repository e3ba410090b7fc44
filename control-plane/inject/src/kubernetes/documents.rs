//! YAML text to documents and back: where each begins, what it holds, and on which line.
//!
//! Documents are told apart as kubectl does it: a line that begins with `---` starts the next one. What nobody changes
//! is written as it was read, byte for byte.

use std::cell::OnceCell;

use granit_parser::{Event, Parser};
use serde_json::Value;
use serde_saphyr::DuplicateKeyPolicy;

use super::reason::Reason;

/// Most documents of one file; a rendered Helm chart has tens to hundreds.
const DOCUMENTS_MAX: usize = 10_000;
/// Deepest nesting; schemas in custom resource definitions have some forty levels.
const DEPTH_MAX: usize = 128;
/// Most nodes of one document: large custom resource definitions have ten thousands.
const NODES_MAX: usize = 500_000;
/// Most anchors and aliases of one document, and most events that aliases may repeat.
const ALIASES_MAX: usize = 1_000;
const REPLAYED_MAX: usize = 100_000;

/// One document of a file.
pub(super) struct Document<'t> {
    /// The line that separates it from the one before, with its line end; empty for the first.
    pub(super) separator: &'t str,
    /// What follows, up to the next separator.
    pub(super) body: &'t str,
    /// Line of the body's first byte, from 1.
    pub(super) line: usize,
    lines: OnceCell<Lines>,
}

/// One step of the way to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A list's entry, from 0.
    Entry(usize),
    /// A mapping's field.
    Field(String),
}

impl From<&str> for Step {
    fn from(name: &str) -> Self {
        Self::Field(name.to_owned())
    }
}

/// Takes a text apart.
pub(super) fn split(text: &str) -> Result<Vec<Document<'_>>, Reason> {
    let mut documents = Vec::new();
    let (mut separator, mut start, mut first_line) = (0..0, 0, 1);
    let mut offset = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if is_separator(line) {
            documents.push(Document::new(
                text.get(separator).unwrap_or_default(),
                text.get(start..offset).unwrap_or_default(),
                first_line,
            ));
            // What stands on the line of the separator belongs to the document.
            let alone =
                line.trim_end().len() == 3 || line.trim_start_matches('-').trim_start().starts_with('#');
            let length = if alone { line.len() } else { 3 };
            separator = offset..offset + length;
            start = offset + length;
            first_line = number + if alone { 2 } else { 1 };
        }
        offset += line.len();
    }
    documents.push(Document::new(
        text.get(separator).unwrap_or_default(),
        text.get(start..).unwrap_or_default(),
        first_line,
    ));
    if documents.len() > DOCUMENTS_MAX {
        Err(Reason::TooManyDocuments { most: DOCUMENTS_MAX })
    } else {
        Ok(documents)
    }
}

fn is_separator(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

impl<'t> Document<'t> {
    const fn new(separator: &'t str, body: &'t str, line: usize) -> Self {
        Self { separator, body, line, lines: OnceCell::new() }
    }

    /// Whether there is nothing in it but comments.
    pub(super) fn is_blank(&self) -> bool {
        self.body.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#') || line == "...")
    }

    /// What it says. The line with the reason counts from the beginning of the file.
    pub(super) fn read(&self) -> Result<Value, (usize, Reason)> {
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! {
                max_depth: DEPTH_MAX,
                flow_nesting_limit: DEPTH_MAX,
                max_nodes: NODES_MAX,
                max_anchors: ALIASES_MAX,
                max_aliases: ALIASES_MAX,
                max_documents: 2,
            },
            duplicate_keys: DuplicateKeyPolicy::Error,
            alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: REPLAYED_MAX },
            // kubectl reads YAML 1.1, where `defaultMode: 0400` is octal.
            legacy_octal_numbers: true,
            with_snippet: false,
        };
        serde_saphyr::from_str_with_options(self.body, options).map_err(|error| {
            let line = error.location().and_then(|place| usize::try_from(place.line()).ok()).unwrap_or(1);
            let reason = if self.body.contains("{{") {
                Reason::Template
            } else {
                Reason::Yaml { message: plain(&error) }
            };
            (self.line + line.max(1) - 1, reason)
        })
    }

    /// The line of the file on which the node at `path` stands, or the deepest node on the way to it that is there.
    pub(super) fn line_of(&self, path: &[Step]) -> usize {
        self.line + self.lines.get_or_init(|| Lines::read(self.body)).find(path).max(1) - 1
    }
}

/// The parser's own words, without place and snippet.
fn plain(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::{MessageFormatter, UserMessageFormatter};
    UserMessageFormatter.format_message(error).lines().next().unwrap_or("no YAML").to_owned()
}

/// Writes a document. Fields come in alphabetical order, as `kubectl get -o yaml` has them.
pub(super) fn write(value: &Value) -> Result<String, Reason> {
    let options = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX, min_fold_chars: usize::MAX };
    let mut text = serde_saphyr::to_string_with_options(value, options)
        .map_err(|error| Reason::Yaml { message: error.to_string() })?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// The lines of a document's nodes, as a tree.
#[derive(Debug, Default)]
struct Lines {
    line: usize,
    children: Vec<(Step, Self)>,
}

impl Lines {
    fn read(text: &str) -> Self {
        let mut open: Vec<Frame> = Vec::new();
        let mut root = Self { line: 1, children: Vec::new() };
        let mut parser = Parser::new_from_str(text);
        while let Some(Ok((event, span))) = parser.next_event() {
            let line = span.start.line();
            match event {
                Event::MappingStart(..) => {
                    open.push(Frame { key: Some(None), node: Self { line, children: Vec::new() } })
                }
                Event::SequenceStart(..) => {
                    open.push(Frame { key: None, node: Self { line, children: Vec::new() } })
                }
                Event::MappingEnd | Event::SequenceEnd => match (open.pop(), open.last_mut()) {
                    (Some(ended), Some(around)) => around.add(ended.node, None),
                    (Some(ended), None) => root = ended.node,
                    (None, _) => {}
                },
                Event::Scalar(text, ..) => {
                    if let Some(around) = open.last_mut() {
                        around.add(Self { line, children: Vec::new() }, Some(&text));
                    }
                }
                Event::Alias(..) => {
                    if let Some(around) = open.last_mut() {
                        around.add(Self { line, children: Vec::new() }, None);
                    }
                }
                _ => {}
            }
        }
        root
    }

    /// The line of the node at `path`, or of the deepest one on the way.
    fn find(&self, path: &[Step]) -> usize {
        let mut here = self;
        for step in path {
            let next = match step {
                Step::Entry(number) => here.children.get(*number).filter(|(found, _)| found == step),
                Step::Field(_) => here.children.iter().find(|(found, _)| found == step),
            };
            let Some((_, next)) = next else { break };
            here = next;
        }
        here.line
    }
}

/// A node whose end was not met yet.
struct Frame {
    /// Of a mapping: the key whose value comes next, with its line.
    key: Option<Option<(String, usize)>>,
    node: Lines,
}

impl Frame {
    fn add(&mut self, mut child: Lines, scalar: Option<&str>) {
        let step = match &mut self.key {
            None => Step::Entry(self.node.children.len()),
            Some(key) => match key.take() {
                Some((name, line)) => {
                    child.line = line;
                    Step::Field(name)
                }
                None => {
                    *key = Some((scalar.unwrap_or_default().to_owned(), child.line));
                    return;
                }
            },
        };
        self.node.children.push((step, child));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bodies(text: &str) -> Vec<(usize, &str)> {
        split(text).unwrap().iter().map(|document| (document.line, document.body)).collect()
    }

    #[test]
    fn documents_are_told_apart_as_kubectl_does() {
        assert_eq!(bodies("a: 1\n---\nb: 2\n--- # c\nc: 3"), [(1, "a: 1\n"), (3, "b: 2\n"), (5, "c: 3")]);
        assert_eq!(bodies("---\na: 1\n"), [(1, ""), (2, "a: 1\n")]);
        assert_eq!(bodies("--- {a: 1}\n----\n"), [(1, ""), (1, " {a: 1}\n----\n")]);
        let text = "---\r\na: 1\r\n---\r\n";
        let whole: String = split(text).unwrap().iter().flat_map(|d| [d.separator, d.body]).collect();
        assert_eq!(whole, text);
    }

    #[test]
    fn nodes_are_found_on_their_lines() {
        let text = "kind: Pod\n---\n# comment\nspec:\n  containers:\n  - name: a\n  - name: b\n    x: {y: [1,\n      2]}\n";
        let documents = split(text).unwrap();
        let line = |path: &[Step]| documents[1].line_of(path);
        let containers = [Step::from("spec"), Step::from("containers")];
        let to = |rest: &[Step]| [&containers, rest].concat();
        assert_eq!(line(&containers), 5);
        assert_eq!(line(&to(&[Step::Entry(1)])), 7);
        let y = [Step::Entry(1), "x".into(), "y".into(), Step::Entry(1)];
        assert_eq!(line(&to(&y)), 9);
        assert_eq!(line(&to(&[Step::Entry(1), "missing".into()])), 7);
        assert_eq!(line(&["nothing".into()]), 4);
    }

    #[test]
    fn text_of_yaml_1_1_is_read_as_kubectl_reads_it_and_written_so_that_it_stays() {
        let document = |body| Document::new("", body, 1);
        let read = document("a: 0400\nb: yes\nc: \"yes\"\nd: 'y'\ne: \"0400\"\nf: \"1e3\"\ng: \"12:30:45\"\nh: \"null\"\ni: \"~\"\nj: \"0x1F\"\nk: \"1_000\"\nl: \"2020-01-01\"\n")
            .read()
            .unwrap();
        assert_eq!(read["a"], 256);
        assert_eq!(read["b"], true);
        for name in ["c", "d", "e", "f", "g", "h", "i", "j", "k", "l"] {
            assert!(read[name].is_string(), "{name}: {}", read[name]);
        }
        let written = write(&read).unwrap();
        assert_eq!(document(&written).read().unwrap(), read, "{written}");
    }
}
