//! What a node means once aliases and merge keys are worked out.

use std::collections::HashMap;
use std::rc::Rc;

use super::Fault;
use super::tree::{Bounds, Kind, MAX_DEPTH, Node, Tree};

/// A value without aliases and merge keys.
#[derive(Clone, Debug)]
pub(super) struct Value {
    pub(super) data: Data,
    /// Where it stands, from 1.
    pub(super) line: usize,
    pub(super) tag: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) enum Data {
    Mapping(Vec<Entry>),
    Scalar { text: String, plain: bool },
    Sequence(Vec<Value>),
}

/// One entry of a mapping.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) line: usize,
    /// It came by a merge key.
    pub(super) merged: bool,
    pub(super) value: Value,
}

impl Value {
    /// A scalar that is written plain if it can be.
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::of(Data::Scalar { text: text.into(), plain: false })
    }

    /// A scalar that is written plain: a number, a truth value, nothing.
    pub(super) fn plain(text: impl Into<String>) -> Self {
        Self::of(Data::Scalar { text: text.into(), plain: true })
    }

    pub(super) fn list(items: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self::of(Data::Sequence(items.into_iter().map(Self::text).collect()))
    }

    pub(super) fn sequence(items: Vec<Self>) -> Self {
        Self::of(Data::Sequence(items))
    }

    pub(super) fn mapping(entries: impl IntoIterator<Item = (impl Into<String>, Self)>) -> Self {
        let entry = |(key, value)| Entry { key: Into::into(key), line: 0, merged: false, value };
        Self::of(Data::Mapping(entries.into_iter().map(entry).collect()))
    }

    /// A mapping without entries.
    pub(super) fn empty() -> Self {
        Self::of(Data::Mapping(Vec::new()))
    }

    fn of(data: Data) -> Self {
        Self { data, line: 0, tag: None }
    }

    pub(super) fn entries(&self) -> Option<&[Entry]> {
        if let Data::Mapping(entries) = &self.data { Some(entries) } else { None }
    }

    pub(super) fn items(&self) -> Option<&[Self]> {
        if let Data::Sequence(items) = &self.data { Some(items) } else { None }
    }

    pub(super) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries()?.iter().find(|entry| entry.key == key)
    }

    /// What stands under `key`, if it is not nothing.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        self.entry(key).map(|entry| &entry.value).filter(|value| !value.is_null())
    }

    pub(super) fn as_text(&self) -> Option<&str> {
        if let Data::Scalar { text, .. } = &self.data { Some(text) } else { None }
    }

    pub(super) fn text_of(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_text()
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(&self.data, Data::Scalar { text, plain: true }
            if self.tag.is_none() && matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// Whether it says yes, as YAML 1.1 does too.
    pub(super) fn is_true(&self) -> bool {
        self.as_text().is_some_and(|text| matches!(text.to_ascii_lowercase().as_str(), "true" | "yes" | "on"))
    }

    /// Puts `value` under `key`, in the place of what was there.
    pub(super) fn set(&mut self, key: &str, value: Self) {
        let Data::Mapping(entries) = &mut self.data else { return };
        match entries.iter_mut().find(|entry| entry.key == key) {
            Some(entry) => entry.value = value,
            None => entries.push(Entry { key: key.to_owned(), line: value.line, merged: false, value }),
        }
    }

    pub(super) fn remove(&mut self, key: &str) {
        if let Data::Mapping(entries) = &mut self.data {
            entries.retain(|entry| entry.key != key);
        }
    }

    /// The same, so many lines further down.
    pub(super) fn moved(mut self, lines: usize) -> Self {
        let down = |line: usize| if line == 0 { 0 } else { line + lines };
        self.line = down(self.line);
        self.data = match self.data {
            Data::Sequence(items) => {
                Data::Sequence(items.into_iter().map(|item| item.moved(lines)).collect())
            }
            Data::Mapping(entries) => {
                let entry =
                    |entry: Entry| Entry { line: down(entry.line), value: entry.value.moved(lines), ..entry };
                Data::Mapping(entries.into_iter().map(entry).collect())
            }
            scalar => scalar,
        };
        self
    }

    /// What it takes to write it: the bytes of its texts, and one for each value.
    pub(super) fn weight(&self) -> usize {
        match &self.data {
            Data::Scalar { text, .. } => 1 + text.len(),
            Data::Sequence(items) => 1 + items.iter().map(Self::weight).sum::<usize>(),
            Data::Mapping(entries) => {
                1 + entries.iter().map(|entry| entry.key.len() + entry.value.weight()).sum::<usize>()
            }
        }
    }

    /// Calls `each` for every scalar below.
    pub(super) fn each_text(&self, each: &mut impl FnMut(&str)) {
        match &self.data {
            Data::Scalar { text, .. } => each(text),
            Data::Sequence(items) => items.iter().for_each(|item| item.each_text(each)),
            Data::Mapping(entries) => entries.iter().for_each(|entry| entry.value.each_text(each)),
        }
    }
}

/// Works out aliases and merge keys of a whole file.
pub(super) fn expand(file: &str, tree: &Tree) -> Result<Value, Fault> {
    let Bounds { nodes, bytes } = tree.bounds;
    Expander { file, tree, nodes, bytes }.value(&tree.root, 0)
}

struct Expander<'a> {
    file: &'a str,
    tree: &'a Tree,
    /// How many nodes may still come.
    nodes: usize,
    /// How many bytes of text may still come: one long text can have many aliases.
    bytes: usize,
}

impl Expander<'_> {
    fn value(&mut self, node: &Node, depth: usize) -> Result<Value, Fault> {
        let long = if let Kind::Scalar { text, .. } = &node.kind { text.len() } else { 0 };
        let left = self.nodes.checked_sub(1).zip(self.bytes.checked_sub(long));
        (self.nodes, self.bytes) = left.filter(|_| depth <= MAX_DEPTH).ok_or_else(|| {
            let message = "what its aliases stand for is too much or too deep";
            Fault::new(self.file, node.line, message, "use fewer aliases within aliases")
        })?;
        let data = match &node.kind {
            Kind::Alias(anchor) => {
                let target = self.target(*anchor, node.line)?;
                return self.value(&target, depth + 1);
            }
            Kind::Scalar { text, plain } => Data::Scalar { text: text.clone(), plain: *plain },
            Kind::Sequence { items } => Data::Sequence(
                items.iter().map(|item| self.value(item, depth + 1)).collect::<Result<_, _>>()?,
            ),
            Kind::Mapping { entries, .. } => Data::Mapping(self.mapping(entries, depth)?),
        };
        Ok(Value { data, line: node.line, tag: node.tag.clone() })
    }

    fn target(&self, anchor: usize, line: usize) -> Result<Rc<Node>, Fault> {
        self.tree
            .anchors
            .get(&anchor)
            .map(|anchor| Rc::clone(&anchor.node))
            .ok_or_else(|| Fault::new(self.file, line, "an alias that stands for nothing", "write it out"))
    }

    fn mapping(&mut self, nodes: &[(Rc<Node>, Rc<Node>)], depth: usize) -> Result<Vec<Entry>, Fault> {
        let mut entries: Vec<Entry> = Vec::with_capacity(nodes.len());
        let mut merges = Vec::new();
        let mut lines: HashMap<String, usize> = HashMap::new();
        for (key, node) in nodes {
            let (text, plain) = self.key(key)?;
            let line = key.line;
            let value = self.value(node, depth + 1)?;
            if plain && text == "<<" {
                merges.push((entries.len(), line, value));
                continue;
            }
            if let Some(earlier) = lines.insert(text.clone(), line) {
                let message = format!("`{text}` stands here again, after line {earlier}");
                return Err(Fault::new(self.file, line, message, "keep one of them"));
            }
            entries.push(Entry { key: text, line, merged: false, value });
        }
        // From the back, so that the places stay right.
        for (at, line, value) in merges.into_iter().rev() {
            let sources = match value.data {
                Data::Mapping(source) => vec![source],
                Data::Sequence(items) => items
                    .into_iter()
                    .filter_map(|item| match item.data {
                        Data::Mapping(source) => Some(source),
                        _ => None,
                    })
                    .collect(),
                Data::Scalar { .. } => {
                    let message = "a merge key needs a mapping or a list of them";
                    return Err(Fault::new(self.file, line, message, "name an anchor of a mapping"));
                }
            };
            let mut merged: Vec<Entry> = Vec::new();
            for entry in sources.into_iter().flatten() {
                if !lines.contains_key(&entry.key) {
                    lines.insert(entry.key.clone(), entry.line);
                    merged.push(Entry { merged: true, ..entry });
                }
            }
            let at = at.min(entries.len());
            entries.splice(at..at, merged);
        }
        Ok(entries)
    }

    fn key(&self, node: &Node) -> Result<(String, bool), Fault> {
        let target;
        let node = match node.kind {
            Kind::Alias(anchor) => {
                target = self.target(anchor, node.line)?;
                &*target
            }
            _ => node,
        };
        match &node.kind {
            Kind::Scalar { text, plain } => Ok((text.clone(), *plain)),
            _ => Err(Fault::new(self.file, node.line, "a key is a list or a mapping", "use a word as key")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<Value, Fault> {
        expand("f", &Tree::parse("f", text)?)
    }

    #[test]
    fn merge_keys_yield_to_what_stands_beside_them_and_the_first_source_wins() {
        let text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc:\n  <<: [*a, *b]\n  x: 3\n";
        let value = expanded(text).unwrap();
        let merged = value.get("c").unwrap();
        let told: Vec<_> = merged
            .entries()
            .unwrap()
            .iter()
            .map(|entry| (&*entry.key, entry.value.as_text(), entry.merged))
            .collect();
        assert_eq!(told, [("y", Some("1"), true), ("z", Some("2"), true), ("x", Some("3"), false)]);
    }

    #[test]
    fn key_that_stands_twice_is_refused_with_both_lines() {
        let fault = expanded("a: 1\nb: 2\na: 3\n").unwrap_err();
        assert_eq!(fault.to_string(), "f:3: `a` stands here again, after line 1; fix: keep one of them");
    }

    #[test]
    fn alias_bombs_and_circles_are_refused() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb += &format!("a{level}: &a{level} [{aliases}]\n");
        }
        assert!(expanded(&bomb).unwrap_err().message.contains("too much"));
        let chain: String = (1..100).fold("a0: &a0 [x]\n".to_owned(), |text, level| {
            text + &format!("a{level}: &a{level} [*a{}]\n", level - 1)
        });
        assert!(expanded(&chain).unwrap_err().message.contains("too deep"));
        let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(1_000_000), "*a, ".repeat(40_000));
        assert!(expanded(&long).unwrap_err().message.contains("too much"));
        assert!(expanded("a: &a [*a]\n").unwrap_err().message.contains("too deep"));
        assert!(expanded("a: &a {<<: *a}\n").unwrap_err().message.contains("too deep"));
    }
}
