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

/// What to inject.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// Names the digest of bytes, algorithm included, such as `sha256:…`.
    pub digest: &'a dyn Fn(&[u8]) -> String,
    /// The file's name, for messages.
    pub file: &'a str,
    /// How to mesh it.
    pub options: &'a Options,
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
}

/// Puts a sidecar beside each service. A file that has them gets them anew: where nothing changed, the same bytes.
///
/// # Errors
/// The first thing that is wrong, with its line.
pub fn inject(input: &Input<'_>) -> Result<Injected, Fault> {
    let Input { file, options, .. } = *input;
    let restored;
    let text = if is_injected(input.text) {
        restored = restore(file, input.text)?;
        if !options.force && restored.is_added_changed(input.digest) {
            let message = "what stands between the marks was changed, and would be written anew";
            let fix = "put the changes outside of the marks, or lose them by --force";
            return Err(Fault::new(file, 1, message, fix));
        }
        &restored.text
    } else {
        input.text
    };
    let tree = tree::Tree::parse(file, text)?;
    let root = value::expand(file, &tree)?;
    let project = project::Project::read(file, root, input.read)?;
    let mut plan = plan::Plan::make(file, &project, options)?;
    host::look(file, &project, &mut plan, options)?;
    let (manifests, enrolments) = mesh::describe(file, &project, &mut plan, options)?;
    let edits = rewrite::edits(file, text, &tree, &project, &plan, options)?;
    let note = [
        "Written by `signet inject compose`. `signet uninject FILE` gives the original back.".to_owned(),
        "Lines behind `#signet-` were taken out; edit them there, and what is between the marks not at all."
            .to_owned(),
    ];
    let original = text;
    let text = edits.apply(original, input.digest, &note);
    let planned = rewrite::planned(file, &tree, &project, &plan, options);
    proof::check(input, original, &text, &project, &planned)?;
    let names = project.services.into_iter().map(|service| service.name);
    let services = names.zip(plan.outcomes).collect();
    Ok(Injected { enrolments, findings: plan.findings, manifests, services, text })
}
