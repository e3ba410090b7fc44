//! The syntax of a YAML file: nodes that know their lines, anchors and style, so that its text can be edited by lines.

use std::collections::HashMap;
use std::rc::Rc;

use granit_parser::{Event, Parser, ScalarStyle, Span, StructureStyle, Tag, options};

use super::Fault;

/// Most bytes of a file: projects of thirty services have some 30 KiB.
pub(super) const MAX_TEXT_BYTES: usize = 4 * 1024 * 1024;
/// Deepest nesting of a file, and of what its aliases stand for; Compose's schema needs about eight.
pub(super) const MAX_DEPTH: usize = 64;

/// Most nodes of a file, and of what it stands for with its aliases worked out: a thousand services of fifty.
const MAX_NODES: usize = 50_000;

/// How much a file and what its aliases stand for may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) nodes: usize,
    pub(super) bytes: usize,
}

impl Bounds {
    /// Of what people write. What aliases stand for may be longer than the file.
    pub(super) const WRITTEN: Self = Self { nodes: MAX_NODES, bytes: 4 * MAX_TEXT_BYTES };
    /// Of what becomes of it: each service has two more beside it, with some of its settings.
    pub(super) const INJECTED: Self = Self { nodes: 20 * MAX_NODES, bytes: 64 * MAX_TEXT_BYTES };
}

/// A node as it is written.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) kind: Kind,
    /// The line it begins at, from 1. Of a block mapping that of its first key.
    pub(super) line: usize,
    /// The last line that has something of it.
    pub(super) last: usize,
    /// The number of its anchor; 0: it has none.
    pub(super) anchor: usize,
    /// Its tag as written, such as `!reset`.
    pub(super) tag: Option<String>,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// Stands for the anchor of this number.
    Alias(usize),
    Mapping {
        flow: bool,
        entries: Vec<(Rc<Node>, Rc<Node>)>,
    },
    Scalar {
        text: String,
        plain: bool,
    },
    Sequence {
        items: Vec<Rc<Node>>,
    },
}

/// Where an anchor is set, and on what.
#[derive(Debug)]
pub(super) struct Anchor {
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) node: Rc<Node>,
}

/// A file's one document.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) root: Rc<Node>,
    pub(super) anchors: HashMap<usize, Anchor>,
    /// Each use of an anchor: its number and the line.
    pub(super) aliases: Vec<(usize, usize)>,
    /// Those that it was read with.
    pub(super) bounds: Bounds,
}

impl Tree {
    /// Reads the one document of a file.
    pub(super) fn parse(file: &str, text: &str) -> Result<Self, Fault> {
        if text.len() > MAX_TEXT_BYTES {
            let message = format!("the file is longer than {MAX_TEXT_BYTES} bytes");
            return Err(Fault::new(file, 1, message, "split the project"));
        }
        Self::parse_within(file, text, Bounds::WRITTEN)
    }

    /// Reads the one document of a file of any length.
    pub(super) fn parse_within(file: &str, text: &str, bounds: Bounds) -> Result<Self, Fault> {
        one_kind_of_line_end(file, text)?;
        let options = options! {
            emit_comments: false,
            emit_anchor_events: true,
            block_scalar_eof_without_line_feed: true,
        };
        let parser = Parser::new_from_str_with_options(text, options);
        let mut builder = Builder {
            file,
            lines: text.lines().collect(),
            open: Vec::new(),
            root: None,
            nodes: 0,
            nodes_max: bounds.nodes,
            names: HashMap::new(),
            anchors: HashMap::new(),
            aliases: Vec::new(),
        };
        for next in parser {
            let (event, span) = next.map_err(|error| {
                let line = error.marker().line();
                Fault::new(file, line, format!("it is no YAML: {}", error.info()), "correct the line")
            })?;
            builder.take(event, span)?;
        }
        let root =
            builder.root.ok_or_else(|| Fault::new(file, 1, "the file is empty", "name a Compose file"))?;
        Ok(Self { root, anchors: builder.anchors, aliases: builder.aliases, bounds })
    }
}

/// Readers of YAML disagree about these: what is a comment to one would be content to another.
fn one_kind_of_line_end(file: &str, text: &str) -> Result<(), Fault> {
    let bytes = text.as_bytes();
    let lone = |(at, byte): (usize, &u8)| *byte == b'\r' && bytes.get(at + 1) != Some(&b'\n');
    let odd = bytes
        .iter()
        .enumerate()
        .position(lone)
        .into_iter()
        .chain(text.find(['\u{85}', '\u{2028}', '\u{2029}']))
        .min();
    let Some(odd) = odd else { return Ok(()) };
    let line = bytes.iter().take(odd).filter(|byte| **byte == b'\n').count() + 1;
    let message = "a line ends with something else than LF or CR LF";
    Err(Fault::new(file, line, message, "save the file with one kind of line ends"))
}

struct Builder<'a> {
    file: &'a str,
    lines: Vec<&'a str>,
    open: Vec<Open>,
    root: Option<Rc<Node>>,
    nodes: usize,
    nodes_max: usize,
    /// Anchors whose node is not complete yet.
    names: HashMap<usize, (String, usize)>,
    anchors: HashMap<usize, Anchor>,
    aliases: Vec<(usize, usize)>,
}

/// A collection that is not complete yet.
struct Open {
    node: Node,
    key: Option<Rc<Node>>,
}

impl Builder<'_> {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Fault> {
        let line = span.start.line();
        match event {
            Event::Alias(anchor) => {
                self.aliases.push((anchor, line));
                self.add(Node { kind: Kind::Alias(anchor), line, last: line, anchor: 0, tag: None })
            }
            Event::Anchor(anchor, name) => {
                let name = name.into_owned();
                if let Some(known) = self.anchors.get_mut(&anchor) {
                    (known.name, known.line) = (name, line);
                } else {
                    self.names.insert(anchor, (name, line));
                }
                Ok(())
            }
            Event::MappingStart(style, anchor, tag) => {
                let kind = Kind::Mapping { flow: style == StructureStyle::Flow, entries: Vec::new() };
                self.begin(Node { kind, line, last: line, anchor, tag: written(tag.as_deref()) })
            }
            Event::SequenceStart(_, anchor, tag) => {
                let kind = Kind::Sequence { items: Vec::new() };
                self.begin(Node { kind, line, last: line, anchor, tag: written(tag.as_deref()) })
            }
            Event::MappingEnd | Event::SequenceEnd => self.end(span),
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain;
                // A value that is left out.
                let text = if plain && span.is_empty() { String::new() } else { text.into_owned() };
                let last = match style {
                    ScalarStyle::Literal | ScalarStyle::Folded => {
                        self.block_end(&span, text.ends_with("\n\n"))
                    }
                    _ => span.end.line(),
                };
                let kind = Kind::Scalar { text, plain };
                self.add(Node { kind, line, last, anchor, tag: written(tag.as_deref()) })
            }
            Event::DocumentStart(..) if self.root.is_some() => Err(Fault::new(
                self.file,
                line,
                "a second document begins here",
                "keep one document in a Compose file",
            )),
            _ => Ok(()),
        }
    }

    fn begin(&mut self, node: Node) -> Result<(), Fault> {
        if self.open.len() >= MAX_DEPTH {
            let message = format!("it is nested deeper than {MAX_DEPTH}");
            return Err(Fault::new(self.file, node.line, message, "flatten it"));
        }
        self.open.push(Open { node, key: None });
        Ok(())
    }

    fn end(&mut self, span: Span) -> Result<(), Fault> {
        let Some(mut open) = self.open.pop() else { return Ok(()) };
        // The end of a block collection is where the next token stands; that of a flow one is its bracket.
        if !span.is_empty() {
            open.node.last = open.node.last.max(span.end.line());
        }
        self.add(open.node)
    }

    fn add(&mut self, node: Node) -> Result<(), Fault> {
        self.nodes += 1;
        if self.nodes > self.nodes_max {
            let message = format!("there are more than {} keys and values", self.nodes_max);
            return Err(Fault::new(self.file, node.line, message, "split the project"));
        }
        let node = Rc::new(node);
        if node.anchor != 0 {
            let (name, line) = self.names.remove(&node.anchor).unwrap_or((String::new(), node.line));
            self.anchors.insert(node.anchor, Anchor { name, line, node: Rc::clone(&node) });
        }
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        parent.node.last = parent.node.last.max(node.last);
        match &mut parent.node.kind {
            Kind::Sequence { items } => items.push(node),
            Kind::Mapping { entries, .. } => match parent.key.take() {
                Some(key) => entries.push((key, node)),
                None => parent.key = Some(node),
            },
            Kind::Alias(_) | Kind::Scalar { .. } => {}
        }
        Ok(())
    }

    /// The last line of a block scalar. Its span reaches to the next token; empty lines count if it keeps them.
    fn block_end(&self, span: &Span, keeps: bool) -> usize {
        let text = |line: usize| self.lines.get(line.wrapping_sub(1)).copied().unwrap_or_default();
        let before = text(span.end.line()).chars().take(span.end.col());
        let mut last = span.end.line();
        if before.into_iter().all(char::is_whitespace) {
            last -= 1;
        }
        while !keeps && last > span.start.line() && text(last).trim().is_empty() {
            last -= 1;
        }
        last.max(1)
    }
}

fn written(tag: Option<&Tag>) -> Option<String> {
    tag.map(Tag::original)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<(String, usize, usize)> {
        let tree = Tree::parse("f", text).unwrap();
        let Kind::Mapping { entries, .. } = &tree.root.kind else { panic!("a mapping") };
        let told = |(key, value): &(Rc<Node>, Rc<Node>)| {
            let Kind::Scalar { text, .. } = &key.kind else { panic!("a scalar") };
            (text.clone(), key.line, value.last)
        };
        entries.iter().map(told).collect()
    }

    #[test]
    fn each_value_knows_its_last_line() {
        let text = "a: |\n  b\n  # c\n\nd:\n- e\n  f\n\n# g\nh: {i: [1,\n  2]}\nj:\nk: |+\n  l\n\nm: n\n";
        let expected = [("a", 1, 3), ("d", 5, 7), ("h", 10, 11), ("j", 12, 12), ("k", 13, 15), ("m", 16, 16)];
        assert_eq!(lines(text), expected.map(|(key, line, last)| (key.to_owned(), line, last)));
    }

    #[test]
    fn block_scalar_at_the_end_of_a_file_without_line_end_ends_there() {
        assert_eq!(lines("a: |\n  b\n  c"), [("a".to_owned(), 1, 3)]);
    }

    #[test]
    fn second_document_deep_nesting_odd_line_ends_and_long_files_are_refused() {
        assert_eq!(Tree::parse("f", "a: 1\n---\nb: 1\n").unwrap_err().line, 2);
        assert!(Tree::parse("f", &"[".repeat(100)).is_err());
        assert!(Tree::parse("f", &"a: {".repeat(10_000)).is_err());
        assert_eq!(Tree::parse("f", "a: 1\nb: 2\rc: 3\n").unwrap_err().line, 2);
        assert_eq!(Tree::parse("f", "a: 1\n\n# x\u{2028}c: 3\n").unwrap_err().line, 3);
        assert!(Tree::parse("f", &"#".repeat(MAX_TEXT_BYTES + 1)).is_err());
        assert!(Tree::parse("f", &format!("[{}]", "a,".repeat(MAX_NODES))).is_err());
        assert!(Tree::parse("f", "").is_err());
    }
}
