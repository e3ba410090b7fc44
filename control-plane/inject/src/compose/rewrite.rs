//! Which lines are taken out of a file, and what is written in their place.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::marks::Edits;
use super::plan::{CONTROL_PLANE, KEEPER, Outcome, Plan, TOOL, added_capabilities, guard, holder, sidecar};
use super::project::{Own, Part, Project, Service, texts};
use super::tree::{Kind, Node, Tree};
use super::value::Value;
use super::{Fault, Options, beside, emit, host, merge};

/// One file of a project, and what becomes of all of it.
#[derive(Clone, Copy)]
pub(super) struct Piece<'a> {
    pub(super) file: &'a str,
    pub(super) text: &'a str,
    pub(super) tree: &'a Tree,
    pub(super) part: &'a Part,
    /// The files before it: what is added to a service stands in the first file that has it, and what is added to the
    /// project in the first of all.
    pub(super) earlier: &'a [Part],
    pub(super) project: &'a Project,
    pub(super) plan: &'a Plan,
    pub(super) options: &'a Options,
}

/// The edits that put sidecars beside the services.
pub(super) fn edits(piece: Piece<'_>) -> Result<Edits, Fault> {
    let rewriter = Rewriter::of(piece);
    let Some(root) = block(&piece.tree.root) else { return Ok(rewriter.whole_file()) };
    let section = root.iter().find(|(key, _)| is_text(key, "services"));
    match section {
        Some((key, value)) => match block(value) {
            Some(nodes) => rewriter.by_services(root, key, value, nodes),
            None => rewriter.by_section(root, key, value),
        },
        None if rewriter.is_first() => Ok(rewriter.whole_file()),
        // Nothing of it changes.
        None => Ok(Edits::default()),
    }
}

/// What the file says once it is edited, by the sections that change.
pub(super) fn planned(piece: Piece<'_>) -> Vec<(&'static str, Vec<(String, Value)>)> {
    let rewriter = Rewriter::of(piece);
    let mut services = Vec::new();
    for own in &piece.part.services {
        services.push((own.name.clone(), rewriter.rewritten(own)));
        services.extend(rewriter.beside(own));
    }
    services.extend(rewriter.mesh_services());
    if !rewriter.is_first() {
        // Its other sections stay as they are.
        return if piece.part.services.is_empty() { Vec::new() } else { vec![("services", services)] };
    }
    let section = |name| {
        let known = piece.part.root.get(name).and_then(Value::entries).unwrap_or_default();
        let known = known.iter().map(|entry| (entry.key.clone(), entry.value.clone()));
        known.chain(rewriter.section(name)).collect()
    };
    vec![("services", services), ("volumes", section("volumes")), ("secrets", section("secrets"))]
}

/// The entries of a mapping in block style that holds no merge key.
fn block(node: &Node) -> Option<&[(Rc<Node>, Rc<Node>)]> {
    match &node.kind {
        Kind::Mapping { flow: false, entries } if !entries.iter().any(|(key, _)| is_text(key, "<<")) => {
            Some(entries)
        }
        _ => None,
    }
}

fn is_text(node: &Node, expected: &str) -> bool {
    matches!(&node.kind, Kind::Scalar { text, .. } if text == expected)
}

struct Rewriter<'a> {
    file: &'a str,
    lines: Vec<&'a str>,
    tree: &'a Tree,
    part: &'a Part,
    earlier: &'a [Part],
    project: &'a Project,
    plan: &'a Plan,
    options: &'a Options,
}

impl<'a> Rewriter<'a> {
    fn of(piece: Piece<'a>) -> Self {
        let Piece { file, text, tree, part, earlier, project, plan, options } = piece;
        let lines = text.trim_start_matches('\u{feff}').lines().collect();
        Self { file, lines, tree, part, earlier, project, plan, options }
    }

    /// Whether this is the project's first file.
    fn is_first(&self) -> bool {
        self.earlier.is_empty()
    }

    /// Whether no earlier file has the service.
    fn is_first_of(&self, own: &Own) -> bool {
        !self.earlier.iter().flat_map(|part| &part.services).any(|known| known.name == own.name)
    }

    /// The service as all files together make it, and what becomes of it.
    fn of_project(&self, own: &Own) -> Option<(&'a Service, &'a Outcome)> {
        let each = self.project.services.iter().zip(&self.plan.outcomes);
        each.into_iter().find(|(service, _)| service.name == own.name)
    }

    fn is_left(&self, own: &Own) -> bool {
        self.of_project(own).is_none_or(|(_, outcome)| matches!(outcome, Outcome::Left { .. }))
    }

    /// Service by service; what aliases of changed places stand for is written out, as often as that changes more.
    fn by_services(
        &self,
        root: &[(Rc<Node>, Rc<Node>)],
        key: &Node,
        section: &Node,
        nodes: &[(Rc<Node>, Rc<Node>)],
    ) -> Result<Edits, Fault> {
        let mut written_out: BTreeSet<usize> = BTreeSet::new();
        let services: Vec<_> = self.part.services.iter().zip(nodes).collect();
        for (at, (own, (_, node))) in services.iter().enumerate() {
            if own.said.entry("extends").is_some() || !self.is_left(own) && !self.by_keys(own, node) {
                written_out.insert(at);
            }
        }
        loop {
            let mut edits = Edits::default();
            let indent = self.indent(section.line);
            for (at, (own, (key, node))) in services.iter().enumerate() {
                let last = node.last.max(key.line);
                if written_out.contains(&at) {
                    edits.remove(key.line, last);
                    let mut lines = Vec::new();
                    emit::entry(&mut lines, indent, &own.name, &self.rewritten(own));
                    edits.add_after(last, lines);
                } else if !self.is_left(own) {
                    self.edit_keys(&mut edits, own, node);
                }
                let beside = self.beside(own);
                if !beside.is_empty() {
                    let mut lines = Vec::new();
                    write(&mut lines, indent, beside);
                    edits.add_after(last, lines);
                }
            }
            let more = self.disturbed(&edits, &services_lines(nodes), &written_out)?;
            if more.is_empty() {
                let end = section.last.max(key.line);
                if self.is_first() {
                    let mut lines = Vec::new();
                    write(&mut lines, indent, self.mesh_services());
                    edits.add_after(end, lines);
                }
                self.sections(&mut edits, root, self.indent(key.line), end);
                // The sections may hold aliases, too.
                self.disturbed(&edits, &[], &written_out)?;
                return Ok(edits);
            }
            written_out.extend(more);
        }
    }

    /// The whole of `services` anew.
    fn by_section(&self, root: &[(Rc<Node>, Rc<Node>)], key: &Node, section: &Node) -> Result<Edits, Fault> {
        let mut edits = Edits::default();
        let (indent, last) = (self.indent(key.line), section.last.max(key.line));
        edits.remove(key.line, last);
        let mut lines = vec![format!("{:indent$}services:", "")];
        self.all_services(&mut lines, indent + 2);
        edits.add_after(last, lines);
        self.sections(&mut edits, root, indent, last);
        self.disturbed(&edits, &[], &BTreeSet::new())?;
        Ok(edits)
    }

    /// The whole file anew.
    fn whole_file(&self) -> Edits {
        let mut edits = Edits::default();
        edits.remove(1, self.tree.root.last);
        let mut lines = Vec::new();
        for entry in self.part.root.entries().unwrap_or_default() {
            if entry.key == "services" {
                lines.push("services:".to_owned());
                self.all_services(&mut lines, 2);
                continue;
            }
            let mut value = entry.value.clone();
            let added = self.section(&entry.key);
            if !added.is_empty() && value.is_null() {
                value = Value::empty();
            }
            added.iter().for_each(|(name, said)| value.set(name, said.clone()));
            emit::entry(&mut lines, 0, &entry.key, &value);
        }
        for name in ["volumes", "secrets"] {
            if self.is_first() && self.part.root.entry(name).is_none() {
                emit::entry(&mut lines, 0, name, &Value::mapping(self.section(name)));
            }
        }
        edits.add_after(self.tree.root.last, lines);
        edits
    }

    fn all_services(&self, lines: &mut Vec<String>, indent: usize) {
        for own in &self.part.services {
            emit::entry(lines, indent, &own.name, &self.rewritten(own));
            write(lines, indent, self.beside(own));
        }
        write(lines, indent, self.mesh_services());
    }

    /// Whether it is enough to change single keys: they stand in the service itself, each on lines of its own.
    fn by_keys(&self, own: &Own, node: &Node) -> bool {
        let Kind::Mapping { flow: false, entries } = &node.kind else { return false };
        let taken: Vec<&str> = self.gone(own);
        let merged = own.said.entries().unwrap_or_default().iter().filter(|entry| entry.merged);
        // A service of which nothing is left would be no mapping any more.
        let empties = || self.rewritten(own).entries().is_none_or(<[_]>::is_empty);
        let ordinary = |key: &Node| !self.line(key.line).trim_start().starts_with('?');
        !merged.into_iter().any(|entry| taken.contains(&entry.key.as_str()))
            && !entries.is_empty()
            && !empties()
            && entries.iter().all(|(key, _)| ordinary(key))
    }

    /// The keys that must go from a service.
    fn gone(&self, own: &Own) -> Vec<&'static str> {
        let mut gone: Vec<&str> = beside::MOVED.into_iter().chain(["links"]).collect();
        if !self.is_first_of(own) {
            // They stand in the first file, and would be laid over there.
            gone.extend(
                self.of_project(own).into_iter().flat_map(|(service, _)| self.given(service)).map(|it| it.0),
            );
        }
        gone.retain(|key| own.whole.entry(key).is_some());
        gone
    }

    /// The keys that it gets here.
    fn given_here(&self, own: &Own) -> Vec<(&'static str, Value)> {
        match self.of_project(own) {
            Some((service, _)) if self.is_first_of(own) => self.given(service),
            _ => Vec::new(),
        }
    }

    /// The keys that a service gets, in the place of what it says there.
    fn given(&self, service: &Service) -> Vec<(&'static str, Value)> {
        let Some(own) = self.plan.sidecar_of(self.project, &service.name) else { return Vec::new() };
        let (holder, sidecar) = self.plan.beside(self.project, own);
        let mut given = vec![("network_mode", Value::text(format!("service:{holder}")))];
        let condition = |condition| Value::mapping([("condition", Value::text(condition))]);
        let empty = Value::empty;
        let mut waits = service.whole.get("depends_on").cloned().map_or_else(empty, merge::dependencies);
        for name in beside::implied(service) {
            if waits.entry(&name).is_none() {
                waits.set(&name, condition("service_started"));
            }
        }
        waits.set(&sidecar, condition("service_healthy"));
        given.push(("depends_on", waits));
        let added = added_capabilities(service);
        let dropped = texts(service.whole.get("cap_drop"));
        let bare = |text: &&str| text.to_ascii_uppercase().trim_start_matches("CAP_").to_owned();
        let known: Vec<String> = dropped.iter().map(bare).collect();
        let privileged = service.whole.get("privileged").is_some_and(Value::is_true);
        let more: Vec<&str> = ["NET_ADMIN", "NET_RAW"]
            .into_iter()
            .filter(|each| !added.iter().any(|added| added == each || added == "ALL"))
            .filter(|each| !known.iter().any(|known| known == each || known == "ALL"))
            .collect();
        if !privileged && !more.is_empty() {
            given.push(("cap_drop", Value::list(dropped.into_iter().chain(more))));
        }
        let settings = beside::sysctls(service);
        if settings.iter().any(beside::is_of_network) {
            let rest = settings.into_iter().filter(|entry| !beside::is_of_network(entry));
            given.push(("sysctls", Value::mapping(rest.map(|entry| (entry.key, entry.value)))));
        }
        given
    }

    /// A service as it is written anew.
    fn rewritten(&self, own: &Own) -> Value {
        let mut value = own.whole.clone();
        if !self.is_left(own) {
            self.gone(own).into_iter().for_each(|key| value.remove(key));
            self.given_here(own).into_iter().for_each(|(key, said)| value.set(key, said));
        }
        value
    }

    fn edit_keys(&self, edits: &mut Edits, own: &Own, node: &Node) {
        let Kind::Mapping { entries, .. } = &node.kind else { return };
        let (taken, given) = (self.gone(own), self.given_here(own));
        for (key, value) in entries {
            let Kind::Scalar { text, .. } = &key.kind else { continue };
            let text = text.as_str();
            if taken.contains(&text) || given.iter().any(|(given, _)| *given == text) {
                edits.remove(key.line, value.last.max(key.line));
            }
        }
        let indent = self.indent(node.line);
        let mut lines = Vec::new();
        for (key, value) in &given {
            emit::entry(&mut lines, indent, key, value);
        }
        if !lines.is_empty() {
            edits.add_after(node.line.saturating_sub(1), lines);
        }
    }

    fn beside(&self, own: &Own) -> Vec<(String, Value)> {
        let (project, plan, options) = (self.project, self.plan, self.options);
        let Some((service, outcome)) = self.of_project(own) else { return Vec::new() };
        if !outcome.has_sidecar() || !self.is_first_of(own) {
            return Vec::new();
        }
        let name = service.name.as_str();
        if plan.is_guarded(project, name) {
            return vec![(guard(name), host::guard_of(project, plan, service, options))];
        }
        vec![
            (holder(name), beside::holder_of(project, plan, service, options)),
            (sidecar(name), beside::sidecar_of(project, plan, service, options)),
        ]
    }

    fn mesh_services(&self) -> Vec<(String, Value)> {
        if !self.is_first() {
            return Vec::new();
        }
        let control_plane = beside::control_plane(self.project, self.plan, self.options);
        let keeper = beside::keeper(self.options).map(|keeper| (KEEPER, keeper));
        let all = std::iter::once((CONTROL_PLANE, control_plane))
            .chain(keeper)
            .chain([(TOOL, beside::tool(self.options))]);
        all.map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// What is added to a section at the top.
    fn section(&self, name: &str) -> Vec<(String, Value)> {
        match name {
            _ if !self.is_first() => Vec::new(),
            "volumes" => beside::volumes(self.project, self.plan),
            "secrets" => beside::secrets(self.project, self.plan, self.options),
            _ => Vec::new(),
        }
    }

    /// Adds volumes and secrets to their sections, or new ones after line `end`.
    fn sections(&self, edits: &mut Edits, root: &[(Rc<Node>, Rc<Node>)], indent: usize, end: usize) {
        for name in ["volumes", "secrets"] {
            let added = self.section(name);
            if added.is_empty() {
                continue;
            }
            let mut lines = Vec::new();
            let Some((key, value)) = root.iter().find(|(key, _)| is_text(key, name)) else {
                emit::entry(&mut lines, indent, name, &Value::mapping(added));
                edits.add_after(end, lines);
                continue;
            };
            let last = value.last.max(key.line);
            if let Kind::Mapping { flow: false, .. } = &value.kind {
                let indent = self.indent(value.line);
                added.iter().for_each(|(name, said)| emit::entry(&mut lines, indent, name, said));
            } else {
                edits.remove(key.line, last);
                let known = self.part.root.get(name).and_then(Value::entries).unwrap_or_default();
                let known = known.iter().map(|entry| (entry.key.clone(), entry.value.clone()));
                emit::entry(&mut lines, indent, name, &Value::mapping(known.chain(added)));
            }
            edits.add_after(last, lines);
        }
    }

    /// The services with aliases that would stand for something else, or for nothing, after the edits.
    fn disturbed(
        &self,
        edits: &Edits,
        services: &[(usize, usize)],
        written_out: &BTreeSet<usize>,
    ) -> Result<BTreeSet<usize>, Fault> {
        let mut found = BTreeSet::new();
        for (anchor, line) in &self.tree.aliases {
            let Some(anchor) = self.tree.anchors.get(anchor) else { continue };
            let (first, last) = (anchor.line, anchor.node.last);
            let removed = edits.removed.range(first..=last).next().is_some();
            // Lines within what the anchor stands on: a service whose keys change, or all services.
            let added = edits.added.range(first..last).next().is_some();
            if edits.removed.contains(line) || !(removed || added) {
                continue;
            }
            match services.iter().position(|(first, last)| (*first..=*last).contains(line)) {
                Some(at) if !written_out.contains(&at) => {
                    found.insert(at);
                }
                _ => {
                    let message = format!(
                        "`*{}` stands for lines from {first} on, and those are changed by injection",
                        anchor.name
                    );
                    return Err(Fault::new(self.file, *line, message, "write out what it stands for"));
                }
            }
        }
        Ok(found)
    }

    fn line(&self, number: usize) -> &str {
        self.lines.get(number.wrapping_sub(1)).copied().unwrap_or_default()
    }

    /// How far a line is indented.
    fn indent(&self, number: usize) -> usize {
        self.line(number).bytes().take_while(|byte| *byte == b' ').count()
    }
}

fn write(lines: &mut Vec<String>, indent: usize, services: impl IntoIterator<Item = (String, Value)>) {
    services.into_iter().for_each(|(name, value)| emit::entry(lines, indent, &name, &value));
}

/// First and last line of each service.
fn services_lines(nodes: &[(Rc<Node>, Rc<Node>)]) -> Vec<(usize, usize)> {
    nodes.iter().map(|(key, value)| (key.line, value.last.max(key.line))).collect()
}
