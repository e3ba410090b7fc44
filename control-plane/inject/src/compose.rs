//! Compose files: a namespace holder and a sidecar beside each service, and the way back.
//!
//! [`inject`] reads the file's syntax, works out what its services mean, plans what becomes of each, and edits the text
//! by whole lines: comments and order stay, what is taken out stays as a comment, what is added stands between marks.
//! [`restore`] takes that back byte for byte.

mod beside;
mod emit;
mod extends;
mod fault;
mod host;
mod marks;
mod merge;
mod mesh;
mod plan;
mod ports;
mod project;
mod proof;
mod rewrite;
mod tree;
mod value;

use std::net::IpAddr;

pub use fault::Fault;
pub use marks::{Restored, is_injected, restore};
pub use mesh::Enrolment;
pub use plan::{Finding, Outcome, Severity};

/// The label that says what a container is for.
pub const ROLE_LABEL: &str = "signet.mf2c-project.eu/role";
/// The value of [`ROLE_LABEL`] on namespace holders: the keeper looks after what joined one, and nothing else.
pub const ROLE_HOLDER: &str = "holder";

/// The value of [`ROLE_LABEL`] on guards: services of the host's network join them.
pub const ROLE_GUARD: &str = "guard";

/// Reads another file by its path, as seen from the folder of the first one; or says why it cannot.
pub type Read<'a> = dyn Fn(&str) -> Result<String, String> + 'a;

/// How a project is to be meshed.
#[derive(Clone, Debug)]
pub struct Options {
    /// The class of the services' identities: `platform`, `agent`, `app` or `external`.
    pub class: String,
    /// The device in their identities.
    pub device: String,
    /// The mesh's directory as seen from the Compose file's folder, such as `./signet`.
    pub directory: String,
    /// The Docker engine's socket, for the keeper; `None`: no keeper is added.
    pub docker_socket: Option<String>,
    /// Inject a file anew although its marked blocks were changed by hand.
    pub force: bool,
    /// Where the host is reached by other hosts: published ports are advertised there.
    pub host_address: Option<IpAddr>,
    /// The first of the host's ports that the control plane and guards of services of the host's network listen at.
    pub host_ports: u16,
    /// What stands before the images' names, with its `/`.
    pub image_prefix: String,
    /// The name of the mesh and its network: the project's, in lower-case letters, digits and `-`.
    pub mesh: String,
    /// Refuse plaintext within the mesh from the start.
    pub strict: bool,
    /// The images' tag.
    pub tag: String,
    /// The trust domain of all identities.
    pub trust_domain: String,
}

/// A file of a project.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Its name, for messages.
    pub file: &'a str,
    /// Its text.
    pub text: &'a str,
}

/// What to inject.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// Names the digest of bytes, algorithm included, such as `sha256:…`.
    pub digest: &'a dyn Fn(&[u8]) -> String,
    /// The file's name, for messages.
    pub file: &'a str,
    /// How to mesh it.
    pub options: &'a Options,
    /// Files that are laid over it, in their order.
    pub over: &'a [Source<'a>],
    /// Reads the files that services extend.
    pub read: &'a Read<'a>,
    /// The file's text.
    pub text: &'a str,
}

/// A project with sidecars.
#[derive(Clone, Debug)]
pub struct Injected {
    /// One for each identity: what needs a join token.
    pub enrolments: Vec<Enrolment>,
    /// What people should know.
    pub findings: Vec<Finding>,
    /// The manifests of the mesh.
    pub manifests: String,
    /// What became of each service, in the file's order.
    pub services: Vec<(String, Outcome)>,
    /// The Compose file.
    pub text: String,
    /// The files that are laid over it: each changed by itself, as they are used together.
    pub over: Vec<String>,
}

/// Puts a sidecar beside each service. A file that has them gets them anew: where nothing changed, the same bytes.
///
/// # Errors
/// The first thing that is wrong, with its line.
pub fn inject(input: &Input<'_>) -> Result<Injected, Fault> {
    let first = Source { file: input.file, text: input.text };
    let sources: Vec<Source<'_>> = std::iter::once(first).chain(input.over.iter().copied()).collect();
    let mut pieces = Vec::with_capacity(sources.len());
    for (at, source) in sources.iter().enumerate() {
        if sources.iter().take(at).any(|earlier| earlier.file == source.file) {
            return Err(Fault::new(source.file, 1, "the file is given twice", "give it once"));
        }
        pieces.push(original(input, source)?);
    }
    let trees = sources.iter().zip(&pieces).map(|(source, text)| tree::Tree::parse(source.file, text));
    let trees = trees.collect::<Result<Vec<_>, _>>()?;
    let mut parts = Vec::with_capacity(sources.len());
    for (source, tree) in sources.iter().zip(&trees) {
        let root = value::expand(source.file, tree)?;
        parts.push(project::Part::read(source.file, root, input.read, parts.is_empty())?);
    }
    let places = Places::of(&sources, &pieces);
    let made = project_of(input, &parts, &places).map_err(|fault| places.locate(fault));
    let (project, plan, manifests, enrolments) = made?;
    let mut texts = Vec::with_capacity(sources.len());
    for (at, ((source, text), (tree, part))) in
        sources.iter().zip(&pieces).zip(trees.iter().zip(&parts)).enumerate()
    {
        let piece = rewrite::Piece {
            file: source.file,
            text,
            tree,
            part,
            earlier: parts.get(..at).unwrap_or_default(),
            project: &project,
            plan: &plan,
            options: input.options,
        };
        let edits = rewrite::edits(piece)?;
        if edits.is_empty() {
            // Nothing of the file changes, so nothing has to be taken back.
            texts.push(text.clone());
            continue;
        }
        let after = edits.apply(text, input.digest, &NOTE.map(str::to_owned));
        proof::check(source.file, text, &after, part, &rewrite::planned(piece))?;
        texts.push(after);
    }
    let findings = plan.findings.into_iter().map(|finding| places.place(finding)).collect();
    let names = project.services.into_iter().map(|service| service.name);
    let services = names.zip(plan.outcomes).collect();
    let mut texts = texts.into_iter();
    let text = texts.next().unwrap_or_default();
    Ok(Injected { enrolments, findings, manifests, services, text, over: texts.collect() })
}

/// What the first block of an injected file says.
const NOTE: [&str; 2] = [
    "Written by `signet inject compose`. `signet uninject FILE` gives the original back.",
    "Lines behind `#signet-` were taken out; edit them there, and what is between the marks not at all.",
];

/// A file's text without what was injected before.
fn original(input: &Input<'_>, source: &Source<'_>) -> Result<String, Fault> {
    if !is_injected(source.text) {
        return Ok(source.text.to_owned());
    }
    let restored = restore(source.file, source.text)?;
    if !input.options.force && restored.is_added_changed(input.digest) {
        let message = "what stands between the marks was changed, and would be written anew";
        let fix = "put the changes outside of the marks, or lose them by --force";
        return Err(Fault::new(source.file, 1, message, fix));
    }
    Ok(restored.text)
}

type Made = (project::Project, plan::Plan, String, Vec<Enrolment>);

/// What all files together mean, and what becomes of it. Lines are counted through all of them.
fn project_of(input: &Input<'_>, parts: &[project::Part], places: &Places<'_>) -> Result<Made, Fault> {
    let Input { file, options, .. } = *input;
    let project = project::Project::of(file, parts.iter().zip(places.before()))?;
    let mut plan = plan::Plan::make(file, &project, options)?;
    host::look(file, &project, &mut plan, options)?;
    let (manifests, enrolments) = mesh::describe(file, &project, &mut plan, options)?;
    Ok((project, plan, manifests, enrolments))
}

/// Which lines, counted through all files, are whose.
struct Places<'a>(Vec<(&'a str, usize)>);

impl<'a> Places<'a> {
    fn of(sources: &[Source<'a>], texts: &[String]) -> Self {
        let mut before = 0;
        let place = |(source, text): (&Source<'a>, &String)| {
            let first = before;
            before += text.lines().count();
            (source.file, first)
        };
        Self(sources.iter().zip(texts).map(place).collect())
    }

    fn before(&self) -> impl Iterator<Item = usize> {
        self.0.iter().map(|(_, before)| *before)
    }

    /// File and line there.
    fn at(&self, line: usize) -> (&'a str, usize) {
        let whose = self.0.iter().rev().find(|(_, before)| line > *before).or_else(|| self.0.first());
        whose.map_or(("", line), |(file, before)| (*file, line - before))
    }

    fn locate(&self, fault: Fault) -> Fault {
        // What other files say has their own lines.
        if self.0.first().is_none_or(|(file, _)| *file != fault.file) {
            return fault;
        }
        let (file, line) = self.at(fault.line);
        Fault { file: file.to_owned(), line, ..fault }
    }

    fn place(&self, finding: Finding) -> Finding {
        let (file, line) = self.at(finding.line);
        Finding { file: file.to_owned(), line, ..finding }
    }
}
